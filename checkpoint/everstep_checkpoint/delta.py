"""Deltas: what a step changed per channel, found and applied on encoded bytes.

    diff(before, after) -> op          fold(state, {channel: op}) -> state

    SET          0, value                             the value, whatever was there
    APPEND       1, count, items                      items behind those of a list or of a top-level tuple
    MERGE        2, [[key, op], ...]                  keys of a string-keyed dict; new ones at its end
    SPLICE       3, start, removed, count, items      items in place of others
    DELETE       4                                    the channel, or the key, is gone
    TAKE         5, ref, channel, edits               what a fact wrote; edits: ["wrap"], ["set", path, value]
    TAKE_APPEND  6, [ref, ...], channel               the items of the lists that facts wrote

Promise: `diff` gives an op only if applying it to `before` spells `after` byte for byte; all else is a SET.
Values stay encoded, so replaying a log needs no class. Only lists, dicts and a tuple at the top are looked
into; every other ext value is opaque. Pure. Where the items of an encoded value are, `layout` says.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from .codec import MALFORMED, array_header, pack, unpack, walker
from .errors import CorruptEntry, TooLarge
from .layout import Impossible, Layout, Piece, map_header

Op = list[Any]
Delta = dict[str, Op]
Ref = int | str
Written = Callable[[Ref, str], bytes]

SET, APPEND, MERGE, SPLICE, DELETE, TAKE, TAKE_APPEND = range(7)

STATE_MAX = 512 * 2**20  # Redis' bound of one value
WALK_MAX = 50_000  # items of a list, or pairs of a dict, that are compared one by one; beyond it: SET
NEST_MAX = 16  # dicts in dicts that are merged; a deeper one is set
PATH_MAX = 64  # steps of a path, and edits of a value
# What the encodings of values without items begin with: numbers, texts, bytes, true, false, nil.
_LEAVES = frozenset(
    bytes([head])
    for head in range(256)
    if not (0x80 <= head <= 0x9F or 0xC7 <= head <= 0xC9 or 0xD4 <= head <= 0xD8 or 0xDC <= head <= 0xDF)
)
_REF = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


# -- finding what changed


def diff(before: bytes | None, after: bytes | None) -> Op | None:
    """The smallest op that turns one encoding into the other; None if they are equal."""
    if before == after:
        return None
    if after is None:
        return [DELETE]
    if before is None or after[:1] in _LEAVES or before[:1] in _LEAVES:
        return [SET, after]
    try:
        op = _diff(before, after, 0)
        sound = op[0] == SET or _spells(after, _applied(before, op, None))
    except (Impossible, *MALFORMED):  # type: ignore[misc]
        return [SET, after]  # one of them is no encoding; whoever decodes it will say so
    return op if sound else [SET, after]


def _diff(before: bytes, after: bytes, depth: int) -> Op:
    old, new = Layout.of(before), Layout.of(after)
    found: Op | None = None
    if old.kind == new.kind == "map":
        found = _merge(old, new, depth)
    elif old.kind == new.kind and old.kind in ("list", "tuple"):
        found = _append(old, new) or _splice(old, new)
    return found if found is not None and len(pack(found)) < len(after) + 4 else [SET, after]


def _append(old: Layout, new: Layout) -> Op | None:
    """An append shows in a single comparison of memory, however long the list."""
    items = memoryview(old.data)[old.start :]
    if new.count <= old.count or not new.data.startswith(items, new.start):
        return None
    return [APPEND, new.count - old.count, new.data[new.start + len(items) :]]


def _splice(old: Layout, new: Layout) -> Op | None:
    """What differs between the common beginning and the common end."""
    if max(old.count, new.count) > WALK_MAX:
        return None
    was, now = old.parts(), new.parts()
    shorter = min(len(was), len(now))
    head = next((i for i in range(shorter) if was[i] != now[i]), shorter)
    tail = next((i for i in range(shorter - head) if was[-1 - i] != now[-1 - i]), shorter - head)
    fresh = now[head : len(now) - tail]
    return [SPLICE, head, len(was) - head - tail, len(fresh), b"".join(fresh)]


def _merge(old: Layout, new: Layout, depth: int) -> Op | None:
    """The keys that differ, if those that stay kept their order and the new ones are behind them."""
    if depth == NEST_MAX or max(old.count, new.count) > WALK_MAX:
        return None
    was, now = old.pairs(), new.pairs()
    if was is None or now is None:
        return None
    if [*(key for key in was if key in now), *(key for key in now if key not in was)] != list(now):
        return None
    edits: list[list[Any]] = [[_text(key), [DELETE]] for key in was if key not in now]
    for key, value in now.items():
        if key not in was:
            edits.append([_text(key), [SET, value]])
        elif was[key] != value:
            edits.append([_text(key), _diff(was[key], value, depth + 1)])
    return [MERGE, edits]


def _text(key: bytes) -> str:
    text: str = unpack(key, _no_ext)
    return text


def _spells(whole: bytes, pieces: Iterable[Piece]) -> bool:
    """Whether the pieces, joined, are the whole; without joining them."""
    at = 0
    for piece in pieces:
        if not whole.startswith(piece, at):
            return False
        at += len(piece)
    return at == len(whole)


# -- applying it


def fold(state: Mapping[str, bytes], delta: Delta, written: Written | None = None) -> dict[str, bytes]:
    """The state after a delta. `written(ref, channel)` gives what a fact wrote. Raises CorruptEntry."""
    after = dict(state)
    room = STATE_MAX
    for channel, op in delta.items():
        try:
            room -= _fold_one(after, channel, op, written, room)
        except (Impossible, *MALFORMED) as error:  # type: ignore[misc]
            why = str(error) or type(error).__name__
            raise _corrupt(f"the change of channel {channel!r} can't be applied: {why}") from error
    return after


def _fold_one(after: dict[str, bytes], channel: str, op: Op, written: Written | None, room: int) -> int:
    """Change one channel; the bytes of its new value. A few bytes may name large values many times: not over `room`."""
    if not _is_op(op, 0):
        raise Impossible(f"it has an unknown form, {reprlib.repr(op)}")
    if op == [DELETE]:
        if after.pop(channel, None) is None:
            raise Impossible("there is nothing to delete")
        return 0
    pieces = _applied(after.get(channel), op, written)
    size = sum(map(len, pieces))
    if size > room:
        raise Impossible(f"what a delta sets has over {STATE_MAX:,} bytes")
    after[channel] = b"".join(pieces)
    return size


def _applied(before: bytes | None, op: Op, written: Written | None) -> list[Piece]:
    """The pieces of the value after an op of a known form. Raises Impossible, or one of MALFORMED."""
    match op:
        case [0, value]:
            return [value]
        case [1, count, items]:
            return _appended(Layout.some(before), count, [_counted(items, count)])
        case [2, edits]:
            return _merged(Layout.some(before), edits)
        case [3, start, removed, count, items]:
            return _spliced(Layout.some(before), start, removed, count, _counted(items, count))
        case [5, ref, channel, edits]:
            return [_edited(_taken(written, ref, channel), edits)]
        case [6, found, channel]:
            lists = [Layout.of(_taken(written, ref, channel)).sequence() for ref in found]
            bodies: list[Piece] = [memoryview(each.data)[each.start :] for each in lists]
            old = Layout.of(before or array_header(0))
            return _appended(old, sum(each.count for each in lists), bodies)
        case _:
            raise Impossible(f"unknown op {op[0]!r}")


def _appended(old: Layout, count: int, bodies: list[Piece]) -> list[Piece]:
    kept = memoryview(old.sequence().data)[old.start :]
    return old.around(old.count + count, [kept, *bodies])


def appended(data: bytes, more: bytes) -> bytes:
    """The encoding of a list with the items of another one behind its own. Both are lists, not tuples."""
    old, new = Layout.of(data), Layout.of(more)
    return b"".join(_appended(old, new.count, [memoryview(more)[new.start :]]))


def merged(first: Delta, then: Delta) -> Delta | None:
    """One delta for two that follow each other; `first` is empty, or was made here. None where it takes a look at the
    values, or where one may not fit."""
    found = dict(first)
    for channel, op in then.items():
        was = found.get(channel)
        if op[0] == APPEND:
            try:
                _counted(op[2], op[1])
            except (Impossible, *MALFORMED):  # type: ignore[misc]
                return None  # whoever applies it says so
        if was is None or was[0] == op[0] == SET:
            found[channel] = op
        elif was[0] == op[0] == APPEND:
            found[channel] = [APPEND, was[1] + op[1], was[2] + op[2]]
        else:
            return None
    return found


def behind(before: bytes, after: bytes) -> bytes | None:
    """The items that a list has behind all those of an earlier one, as a list. None if it does not begin with them."""
    old, new = Layout.of(before), Layout.of(after)
    op = _append(old, new) if old.kind == new.kind == "list" else None
    return None if op is None else array_header(op[1]) + op[2]


def _spliced(old: Layout, start: int, removed: int, count: int, items: bytes) -> list[Piece]:
    if start + removed > old.sequence().count:
        raise Impossible(f"items {start} to {start + removed} of {old.count}")
    cuts = old.cuts(start + removed)
    view = memoryview(old.data)
    return old.around(old.count - removed + count, [view[old.start : cuts[start]], items, view[cuts[-1] :]])


def _merged(old: Layout, edits: list[Any]) -> list[Piece]:
    pairs = old.pairs() if old.kind == "map" else None
    if pairs is None:
        raise Impossible("not a dict with string keys")
    for name, op in edits:
        key = pack(name)
        if op == [DELETE]:
            if pairs.pop(key, None) is None:
                raise Impossible(f"there is no key {name!r} to delete")
        else:
            pairs[key] = b"".join(_applied(pairs.get(key), op, None))
    return [map_header(len(pairs)), *(piece for pair in pairs.items() for piece in pair)]


def _taken(written: Written | None, ref: Ref, channel: str) -> bytes:
    if written is None:
        raise Impossible(f"it takes from fact {ref}, and no facts are at hand")
    return written(ref, channel)


def _counted(items: bytes, count: int) -> bytes:
    """Items that are as many as the op says, so that what is stored stays well-formed."""
    unpacker = walker(items)
    for _ in range(count):
        unpacker.skip()
    if unpacker.tell() != len(items):
        raise Impossible(f"its items are not {count}")
    return items


# -- edits of what a fact wrote


def _edited(value: bytes, edits: list[Any]) -> bytes:
    for edit in edits:
        value = array_header(1) + value if edit == ["wrap"] else _set_at(value, edit[1], edit[2])
    return value


def _set_at(data: bytes, path: list[Any], value: bytes) -> bytes:
    """Set what is at `path`: items of lists and tuples, keys of dicts, fields of registered objects."""
    if not path:
        return value
    layout = Layout.of(data)
    step, *rest = path
    if type(step) is int:
        if step >= layout.sequence().count:
            raise Impossible(f"there is no item {step}")
        start, end = layout.cuts(step + 1)[-2:]
        return b"".join(_spliced(layout, step, 1, 1, _set_at(data[start:end], rest, value)))
    if layout.kind == "object":
        name, fields = layout.parts()
        return b"".join(layout.around(2, [name, _set_at(fields, path, value)]))
    child = (layout.pairs() or {}).get(pack(step), b"") if layout.kind == "map" else b""
    if not child and rest:
        raise Impossible(f"there is no key {step!r}")
    return b"".join(_merged(layout, [[step, [SET, _set_at(child, rest, value)]]]))


# -- stored form


def refs(delta: Delta) -> list[Ref]:
    """The facts that a delta takes from, in order of first use."""
    found: dict[Ref, None] = {}
    for op in delta.values():
        if op[0] == TAKE:
            found[op[1]] = None
        elif op[0] == TAKE_APPEND:
            found.update(dict.fromkeys(op[1]))
    return list(found)


def encode_delta(delta: Delta) -> bytes:
    """The bytes that a checkpoint stores."""
    return pack(delta)


def decode_delta(data: bytes) -> Delta:
    """A stored delta, every op of it checked for form. Raises CorruptEntry."""
    found = _load(data, "delta")
    for channel, op in found.items():
        if type(channel) is not str or not _is_op(op, 0):
            raise _corrupt("a delta holds an op of an unknown form")
    return found


def encode_state(state: Mapping[str, bytes]) -> bytes:
    """The bytes of a snapshot."""
    return pack(dict(state))


def decode_state(data: bytes) -> dict[str, bytes]:
    """A stored snapshot. Raises CorruptEntry."""
    found = _load(data, "snapshot")
    if not (set(map(type, found)) <= {str} and set(map(type, found.values())) <= {bytes}):
        raise _corrupt("a snapshot is not a map of channels to bytes")
    return found


def _load(data: bytes, what: str) -> dict[Any, Any]:
    if len(data) > STATE_MAX:
        fix = "No log of ours holds one so large"
        raise TooLarge(f"a {what} has {len(data):,} bytes, the cap is {STATE_MAX:,}", fix=fix)
    try:
        found: dict[Any, Any] = unpack(data, _no_ext)
    except MALFORMED as error:
        raise _corrupt(f"a {what} can't be read: {str(error) or type(error).__name__}") from error
    if type(found) is not dict:
        raise _corrupt(f"a {what} is not a map")
    return found


def _no_ext(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"ext {code} has no place here")


def _corrupt(what: str) -> CorruptEntry:
    return CorruptEntry(what, fix="`everstep log` shows the entry; fork from an earlier checkpoint")


def _is_op(op: Any, depth: int) -> bool:
    """Whether this has the form of an op; at a depth, of one that may stand in a MERGE."""
    if not _is_list(op) or not op or not _is_number(op[0]):
        return False
    code, count = op[0], len(op) - 1
    if code == SET:  # nearly all are
        return count == 1 and type(op[1]) is bytes
    if code == MERGE and count == 1 and _is_list(op[1]):
        return depth <= NEST_MAX and all(_is_pair(edit, depth + 1) for edit in op[1])
    form = _FORMS.get(code)
    if form is None or count != len(form) or (depth and code in (TAKE, TAKE_APPEND)):
        return False
    return all(is_one(part) for is_one, part in zip(form, op[1:], strict=True))


def _is_pair(edit: Any, depth: int) -> bool:
    return _is_list(edit) and len(edit) == 2 and _is_name(edit[0]) and _is_op(edit[1], depth)


def _is_edit(edit: Any) -> bool:
    if not _is_list(edit) or edit == ["wrap"]:
        return _is_list(edit)
    if len(edit) != 3 or edit[0] != "set" or not _is_list(edit[1]) or not _is_bytes(edit[2]):
        return False
    return len(edit[1]) <= PATH_MAX and all(_is_name(step) or _is_number(step) for step in edit[1])


def _is_ref(ref: Any) -> bool:
    return _is_number(ref) or (_is_name(ref) and _REF.fullmatch(ref) is not None)


def _is_number(number: Any) -> bool:
    return type(number) is int and number >= 0


def _is_list(value: Any) -> bool:
    return type(value) is list


def _is_bytes(value: Any) -> bool:
    return type(value) is bytes


def _is_name(value: Any) -> bool:
    return type(value) is str


def _all(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda found: _is_list(found) and all(map(is_one, found))


_FORMS: dict[int, tuple[Callable[[Any], bool], ...]] = {
    APPEND: (_is_number, _is_bytes),
    SPLICE: (_is_number, _is_number, _is_number, _is_bytes),
    DELETE: (),
    TAKE: (_is_ref, _is_name, lambda edits: _all(_is_edit)(edits) and len(edits) <= PATH_MAX),
    TAKE_APPEND: (lambda found: _all(_is_ref)(found) and len(set(found)) == len(found), _is_name),
}
