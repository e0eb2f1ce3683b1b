"""A log's states, read anew: on plain values, by docs/log-format.md alone, sharing no code with what replays logs.

    Folded.step(checkpoint, facts) ──► channel -> value        each delta op is five lines of Python on lists and dicts

Where a checkpoint holds its state whole, both are there: what was folded and what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from everstep_checkpoint.codec import PLAIN, unpack
from everstep_checkpoint.entries import Entry, entry_id

SET, APPEND, MERGE, SPLICE, DELETE, TAKE, TAKE_APPEND = range(7)
Ref = int | str
Find = Callable[[Ref], Entry]


def no_ext(code: int, _data: bytes) -> object:
    """There is no ext value outside of values."""
    raise ValueError(f"ext code {code} where none can be")


def plain(encoded: bytes) -> Any:
    """A channel's value, without any class."""
    return PLAIN.decode(encoded)


def items(count: int, bodies: bytes) -> list[Any]:
    """`count` encoded values, one behind the other."""
    header = bytes([0xDD]) + count.to_bytes(4, "big")  # msgpack's array 32
    found: list[Any] = plain(header + bodies)
    return found


def delta_of(checkpoint: Entry) -> dict[str, list[Any]]:
    """The delta of a checkpoint: channel -> op."""
    found: dict[str, list[Any]] = unpack(checkpoint.value("delta") or b"\x80", no_ext)
    return found


def refs(delta: Mapping[str, list[Any]]) -> Iterator[Ref]:
    """The facts that a delta takes, in order of first use."""
    seen = set[Ref]()
    for op in delta.values():
        named = [op[1]] if op[0] == TAKE else op[1] if op[0] == TAKE_APPEND else []
        for ref in named:
            if ref not in seen:
                seen.add(ref)
                yield ref


def written(fact: Entry, channel: str) -> Any:
    """The last thing that a fact wrote to a channel. Raises ValueError."""
    name = "input" if "input" in fact.raw else "writes"
    stored: list[tuple[str, bytes | None]] = unpack(fact.value(name) or b"\x90", no_ext)
    for each, value in reversed(stored):
        if each == channel and value is not None:
            return plain(value)
    raise ValueError(f"{fact.id} wrote nothing to {channel!r}")


def after(before: Any, op: Sequence[Any], find: Find) -> Any:
    """A value after an op. Raises ValueError for one that is none."""
    match op:
        case [0, value]:
            return plain(value)
        case [1, count, bodies]:
            return type(before)([*before, *items(count, bodies)])
        case [2, edits]:
            return _merged(dict(before), edits, find)
        case [3, start, removed, count, bodies]:
            return type(before)([*before[:start], *items(count, bodies), *before[start + removed :]])
        case [5, ref, channel, edits]:
            return _edited(written(find(ref), channel), edits)
        case [6, named, channel]:
            more = [each for ref in named for each in written(find(ref), channel)]
            return type(before)([*before, *more])
        case _:
            raise ValueError(f"no such op: {op[:1]}")


def _merged(value: dict[str, Any], edits: Sequence[Any], find: Find) -> dict[str, Any]:
    for key, op in edits:
        if op[0] == DELETE:
            value.pop(key, None)
        else:
            value[key] = after(value.get(key), op, find)
    return value


def _edited(value: Any, edits: Sequence[Any]) -> Any:
    for edit in edits:
        if edit[0] == "wrap":
            value = [value]
            continue
        *way, last = edit[1]
        at = value
        for each in way:
            at = at[each]
        at[last] = plain(edit[2])
    return value


def stepped(state: Mapping[str, Any], checkpoint: Entry, find: Find) -> dict[str, Any]:
    """The state after a checkpoint's delta. Raises ValueError, KeyError, TypeError for a delta that does not fit."""
    result = dict(state)
    for channel, op in delta_of(checkpoint).items():
        if op[0] == DELETE:
            result.pop(channel, None)
        else:
            result[channel] = after(result.get(channel), op, find)
    return result


def whole(checkpoint: Entry, find: Find) -> dict[str, Any] | None:
    """The state that a checkpoint holds whole, if it does."""
    if "state" in checkpoint.raw:
        stored = checkpoint.value("state") or b""
    elif "parts" in checkpoint.raw and "delta" not in checkpoint.raw:
        stored = b"".join(find(ref).value("state") or b"" for ref in checkpoint.json("parts"))
    else:
        return None
    return {channel: plain(value) for channel, value in unpack(stored, no_ext).items()}


def k_of(ref: Ref) -> int:
    """Which fact of a step a ref means, if it is one of it."""
    return ref if isinstance(ref, int) else entry_id(ref)[1]
