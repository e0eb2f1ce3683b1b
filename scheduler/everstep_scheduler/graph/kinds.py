"""Kinds of keys beside the last value and the reducer, to annotate a state with. Names and meaning are LangGraph's.

    Annotated[str, EphemeralValue]      what was written, for one superstep only
    Annotated[str, AnyValue]            the same, of several writes the last one
    Annotated[list[str], Topic(str)]    all that was written in a superstep, as a list
    Annotated[Any, UntrackedValue]      the last value, which no log ever has (`untracked`)

And `Overwrite(value)`, which a node writes to a key with a reducer to replace its value. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everstep_checkpoint.errors import InvalidUpdateError

from .schema import as_dict

if TYPE_CHECKING:
    from everstep_checkpoint.codec import Codec

OVERWRITE = "__overwrite__"
_OVERWRITTEN = b"\x81\xad" + OVERWRITE.encode()  # how a dict with this one key begins, in its canonical encoding


class Kind:
    """What a key of its own kind makes of a superstep's writes. `ephemeral`: without writes it has no value."""

    @property
    def ephemeral(self) -> bool:
        return True

    @property
    def name(self) -> str:
        """For people, and for the graph's fingerprint."""
        return type(self).__name__

    def update(self, key: str, before: bytes | None, values: Sequence[bytes], codec: Codec) -> bytes | None:
        """The value after a superstep that wrote; None for none. Raises InvalidUpdateError."""
        raise NotImplementedError


@dataclass(frozen=True)
class EphemeralValue(Kind):
    """A key that holds what was written to it until the end of the next superstep.

    `typ` is taken for LangGraph's sake. `guard`: two writes in one superstep exclude each other; else the last holds.
    """

    typ: Any = None
    guard: bool = True

    def update(self, key: str, before: bytes | None, values: Sequence[bytes], codec: Codec) -> bytes | None:
        if self.guard and len(values) != 1:
            raise InvalidUpdateError(
                f"At key {key!r}: EphemeralValue(guard=True) can take only one value per step, and got {len(values)}",
                fix="EphemeralValue(..., guard=False) takes the last of several.",
            )
        return values[-1]


@dataclass(frozen=True)
class AnyValue(Kind):
    """A key that holds what was written to it until the end of the next superstep; of several writes the last."""

    typ: Any = None

    def update(self, key: str, before: bytes | None, values: Sequence[bytes], codec: Codec) -> bytes | None:
        return values[-1]


@dataclass(frozen=True)
class Topic(Kind):
    """A key that holds a list of what was written to it: items, or lists of items.

    `typ`: the items' type. `accumulate`: items stay; else they go at the end of the next superstep.
    """

    typ: Any = None
    accumulate: bool = False

    @property
    def ephemeral(self) -> bool:
        return not self.accumulate

    @property
    def name(self) -> str:
        return "Topic(accumulate)" if self.accumulate else "Topic"

    def update(self, key: str, before: bytes | None, values: Sequence[bytes], codec: Codec) -> bytes | None:
        where = f"channel {key!r}"
        items = list[Any]()
        for each in (before, *values) if before is not None and self.accumulate else values:
            value: Any = codec.decode(each, where)
            items += value if isinstance(value, list) else [value]
        return codec.encode(items, where) if items else None


@dataclass(frozen=True)
class UntrackedValue(Kind):
    """A key whose value is never stored: it lasts as long as the call of a graph that runs where it is called.

    So it may be of any type. Whoever goes on with the run later, or elsewhere, finds the key without a value: so does
    each step on a worker. `typ` is taken for LangGraph's sake. `guard`: two writes in one superstep exclude each other;
    else the last holds.
    """

    typ: Any = None
    guard: bool = True

    @property
    def ephemeral(self) -> bool:
        return False

    def update(self, key: str, before: bytes | None, values: Sequence[bytes], codec: Codec) -> bytes | None:
        if self.guard and len(values) != 1:
            raise InvalidUpdateError(
                f"At key {key!r}: UntrackedValue(guard=True) can take only one value per step, and got {len(values)}",
                fix="UntrackedValue(..., guard=False) takes the last of several.",
            )
        return values[-1]


@dataclass(frozen=True)
class Overwrite:
    """Written to a key with a reducer, it replaces the value; one a superstep, and what comes behind it is dropped.

    In the log, and in JSON, it is `{"__overwrite__": value}`.
    """

    value: Any


def stored(value: object) -> object:
    """A value as it is stored: an Overwrite as the dict that stands for it."""
    return {OVERWRITE: value.value} if isinstance(value, Overwrite) else value


def restored(value: Any) -> Any:
    """A stored value as it was written."""
    found = as_dict(value)
    return Overwrite(found[OVERWRITE]) if found is not None and list(found) == [OVERWRITE] else value


def overwritten(value: bytes) -> bytes | None:
    """The encoded value in an encoded Overwrite; None for any other value."""
    return value[len(_OVERWRITTEN) :] if value.startswith(_OVERWRITTEN) else None


def kind_of(metadata: Sequence[Any]) -> Kind | None:
    """The kind that an annotation's metadata names, as a class or an instance (LangGraph: `_is_field_channel`)."""
    for each in metadata:
        if isinstance(each, Kind):
            return each
        if isinstance(each, type) and issubclass(each, Kind) and each is not Kind:
            return each()
    return None
