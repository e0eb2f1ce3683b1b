"""Channels: one per key of the state, and what a superstep's writes make of them. Pure.

A channel without a reducer takes one value a step (LangGraph's LastValue). One with a reducer folds the
values in task order (BinaryOperatorAggregate). Values are decoded freshly for every fold, so nothing that a
reducer or a node mutates can reach another step.
"""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import add, is_
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NotRequired, Required, cast, get_args, get_origin

from everstep_checkpoint.beside import Beside
from everstep_checkpoint.codec import Codec
from everstep_checkpoint.delta import appended, behind
from everstep_checkpoint.errors import EverstepError, GraphError, InvalidUpdateError, caused

from .kinds import Kind, kind_of, overwritten
from .messages import NO_IDS, add_messages, ids_of, listed, new_ids
from .schema import Field, bare, did_you_mean

if TYPE_CHECKING:
    from .spec import GraphSpec

Reducer = Callable[[Any, Any], Any]
Write = tuple[str, bytes]
Wrote = Callable[[str], Iterable[str]]

JOINS, DEFERRED = "join:", "defer:"
HIDDEN = (JOINS, DEFERRED)  # what channels begin with that are no keys of the state
APPENDING = (add, add_messages)  # reducers that put new items behind a list's own, and change none of these in place

# Abstract types that a reducer channel may name, and what it then starts as (LangGraph's table).
CONCRETE: dict[Any, Callable[[], Any]] = {
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
    collections.abc.Mapping: dict,
    collections.abc.MutableMapping: dict,
}


@dataclass(frozen=True)
class Channel:
    """One key of the state. `reducer` and `kind` None: it holds the last value."""

    name: str
    typ: Any
    reducer: Reducer | None = None
    kind: Kind | None = None

    @property
    def is_plain(self) -> bool:
        """Does it hold the last value?"""
        return self.reducer is None and self.kind is None

    @property
    def reducer_name(self) -> str:
        """The reducer's or kind's name for people and for the fingerprint; empty for a last value."""
        if self.kind is not None:
            return self.kind.name
        return "" if self.reducer is None else name_of(self.reducer)

    def same_as(self, other: Channel) -> bool:
        """Whether two schemas agree on the key. Lambdas can't be told apart: they agree with any reducer."""
        if self.kind is not None or other.kind is not None:
            return self.kind == other.kind
        mine, theirs = self.reducer, other.reducer
        if mine is None or theirs is None:
            return mine is theirs
        return mine is theirs or "<lambda>" in (self.reducer_name, other.reducer_name)

    def empty(self) -> Any:
        """What a reducer channel starts as: its type without arguments. TypeError if it has no such value."""
        typ = get_origin(self.typ) or self.typ
        make = CONCRETE.get(typ, typ)
        if self.reducer is None or not isinstance(make, type):
            raise TypeError(f"{self.typ} has no empty value")
        return make()


def channel_of(field: Field) -> Channel:
    """The channel that a schema's key declares: of a kind that any metadata of Annotated names, or with a reducer if
    the last is callable.

    LangGraph's rules (`_is_field_channel`, `_is_field_binop`): a reducer has two positional parameters, else the
    declaration is refused.
    """
    hint = field.annotation
    while get_origin(hint) in (Required, NotRequired):
        hint = get_args(hint)[0]
    metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    typ = bare(field.typ)
    if (kind := kind_of(metadata)) is not None:
        return Channel(field.name, typ, kind=kind)
    last = metadata[-1] if metadata else None
    if not callable(last):
        return Channel(field.name, typ)
    if not _takes_two(last):
        raise GraphError(
            f"The reducer of {field.name!r} must take two positional parameters, (old, new) -> value",
            fix=f"Change {name_of(last)}, or keep other metadata before the reducer.",
        )
    return Channel(field.name, typ, last)


def apply(
    spec: GraphSpec, channels: Mapping[str, bytes], writes: Iterable[Write], wrote: Wrote = lambda name: ()
) -> dict[str, bytes]:
    """All channels after one superstep. `writes` come in task order. What nobody wrote stays as it is. `wrote` says
    which nodes wrote to a key, for people.

    Raises InvalidUpdateError if a channel without a reducer gets two values, or if a reducer raises.
    """
    grouped: dict[str, list[bytes]] = {}
    for name, value in writes:
        grouped.setdefault(name, []).append(value)
    after = dict(channels)
    for name, values in grouped.items():
        found = _update(spec, name, channels.get(name), values, wrote)
        if found is None:
            after.pop(name, None)
        else:
            after[name] = found
    return after


def _update(spec: GraphSpec, name: str, before: bytes | None, values: Sequence[bytes], wrote: Wrote) -> bytes | None:
    channel = spec.channels.get(name)
    if channel is None:
        raise InvalidUpdateError(f"The graph {spec.name!r} has no key {name!r}", fix=did_you_mean(name, spec.channels))
    if channel.kind is not None:
        return channel.kind.update(name, before, values, spec.codec)
    if channel.reducer is not None:
        return _fold(spec.codec, channel, before, values)
    if len(values) != 1:
        nodes = dict.fromkeys(map(repr, wrote(name)))
        by = f" from the node{'s' if len(nodes) > 1 else ''} {', '.join(nodes)}" if nodes else ""
        raise InvalidUpdateError(
            f"At key {name!r}: can take only one value per step, and got {len(values)}{by}",
            fix="Annotate the key with a reducer, such as Annotated[list, operator.add], to combine several.",
        )
    replaced = overwritten(values[0])
    return values[0] if replaced is None else replaced


def _fold(codec: Codec, channel: Channel, before: bytes | None, values: Sequence[bytes]) -> bytes:
    """Left fold, one write at a time; the first value is taken as it is where the channel is empty. An Overwrite
    replaces the value, and ends the fold."""
    where = f"channel {channel.name!r}"
    replaced = [found for each in values if (found := overwritten(each)) is not None]
    if len(replaced) > 1:
        raise InvalidUpdateError(
            f"At key {channel.name!r}: can take only one Overwrite per step, and got {len(replaced)}",
            fix="Overwrite it in one node of the step only.",
        )
    if replaced:
        return replaced[0]
    first, *rest = values if before is None else (before, *values)
    if (behind := _behind(codec, channel, first, rest, where)) is not None:
        return behind
    value = old = codec.decode(first, where)
    for each in rest:
        value = _reduce(channel, value, codec.decode(each, where))
    if channel.reducer in APPENDING and (longer := _appended(codec, first, old, value, where)) is not None:
        return _noted(codec, channel, longer, value)
    return codec.encode(value, where)


NOTED_FROM = 4096


class Made(NamedTuple):
    """What made a long list here. `ids`: of its messages, if it was `add_messages`. `grew`: what was last put behind it
    and what came of it: a router sees its own node's writes, and then the step is planned with the same."""

    codec: Codec
    reducer: Callable[..., Any] | None
    ids: frozenset[str]
    grew: tuple[Sequence[bytes], bytes] | None = None


_made: Beside[Made] = Beside()


def _noted(codec: Codec, channel: Channel, longer: bytes, value: Any) -> bytes:
    """Remember of a long list what it takes to put something behind it unread."""
    if len(longer) >= NOTED_FROM and (ids := ids_of(value) if channel.reducer is add_messages else NO_IDS) is not None:
        _made.put(longer, Made(codec, channel.reducer, ids))
    return longer


def _behind(codec: Codec, channel: Channel, first: bytes, rest: Sequence[bytes], where: str) -> bytes | None:
    """A long list that this process made, with new items put behind it unread. None where it takes a look at them, and
    where another graph made it: that may know other types, or make no difference between messages."""
    made = _made.get(first) if len(first) >= NOTED_FROM and channel.reducer in APPENDING else None
    if made is None or made.codec is not codec or made.reducer is not channel.reducer:
        return None
    if made.grew is not None and made.grew[0] == rest:
        return made.grew[1]
    known, items = made.ids, list[Any]()
    for each in rest:
        value = codec.decode(each, where)
        if channel.reducer is add_messages:
            if (new := new_ids(known, value)) is None:
                return None
            known |= new
            items += listed(value)
        elif type(value) is list:
            items += value
        else:
            return None
    longer = appended(first, codec.encode(items, where))
    if len(longer) > codec.value_max:
        return None
    _made.put(first, made._replace(grew=(rest, longer)), len(longer))
    _made.put(longer, made._replace(ids=known, grew=None))
    return longer


def read_on(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """Another process went on from channels that this one has. Of a long list that is known here, only what was put
    behind it is new."""
    for name, now in after.items():
        was = before.get(name, b"")
        made = _made.get(was) if len(was) >= NOTED_FROM and now is not was else None
        more = behind(was, now) if made is not None else None
        if made is None or more is None:
            continue
        try:
            items = made.codec.decode(more, f"channel {name!r}")
        except EverstepError:
            continue  # whoever decodes it says so
        new = new_ids(made.ids, items) if made.reducer is add_messages else NO_IDS
        if new is not None:
            _made.put(now, made._replace(ids=made.ids | new, grew=None))


def _appended(codec: Codec, first: bytes, old: Any, value: Any, where: str) -> bytes | None:
    """The encoding of a list that still begins with the items of `old`, untouched, which `first` encodes: what is new
    is put behind those. So a long chat costs what was said last. None where it is anything else."""
    if type(old) is not list or type(value) is not list:
        return None
    was, now = cast("list[object]", old), cast("list[object]", value)
    if len(now) < len(was) or not all(map(is_, now, was)):
        return None
    longer = appended(first, codec.encode(now[len(was) :], where))
    return longer if len(longer) <= codec.value_max else None


def _reduce(channel: Channel, old: Any, new: Any) -> Any:
    assert channel.reducer is not None
    try:
        return channel.reducer(old, new)
    except Exception as error:  # the user's code, like a node: it fails the run, never the worker
        raised = InvalidUpdateError(
            f"At key {channel.name!r}: {channel.reducer_name} raised {type(error).__name__}: {error}",
            fix="Mend the reducer, or what the nodes write to this key. The last checkpoint is kept.",
        )
        raise caused(raised, error) from error


def name_of(reducer: Callable[..., Any]) -> str:
    """A callable's name, the same in every process."""
    if isinstance(reducer, partial):
        return f"partial({name_of(reducer.func)})"
    return str(getattr(reducer, "__qualname__", type(reducer).__qualname__))


def _takes_two(reducer: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(reducer).parameters.values()
    except ValueError:  # some builtins, `max` among them, don't tell
        return isinstance(reducer, BuiltinFunctionType)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional for each in parameters) == 2
