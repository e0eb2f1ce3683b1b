"""A graph of one node whose input and output are single values of any type: what `@entrypoint` makes.

    __start__ ──► node ──► __end__         what it was given, until the node is done; what it returned
                       └─► __previous__    what it saved: `previous` of the next run on the thread

Pure. The channels are LangGraph's. The input's checkpoint leads straight to the node, so a run has two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from everstep_checkpoint.errors import EmptyInputError

from .channels import Write
from .kinds import EphemeralValue
from .managed import NO_STEPS, Steps
from .runtime import END, START
from .spec import GraphSpec

PREVIOUS = "__previous__"
KEYS = frozenset({START, END, PREVIOUS})

R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True)
class Final(Generic[R, S]):
    """What an entrypoint returns to keep one thing and give another: `value` is its output, `save` its `previous`."""

    value: R
    save: S


class Kept(NamedTuple):
    """The types of an entrypoint's input, output and `previous`."""

    given: Any
    value: Any
    save: Any


class EntrySpec(GraphSpec):
    """A `GraphSpec` whose state people see as one value. Made by `entry_of`."""

    direct: ClassVar[bool] = True

    # -- state

    def values(self, channels: Mapping[str, bytes]) -> Any:
        """What the last run returned; None before the first one has."""
        return self.output(channels)

    def output(self, channels: Mapping[str, bytes]) -> Any:
        """What the run returned."""
        return self.decoded([END], channels).get(END)

    def shown(self, values: Any) -> Any:
        """Of what people see, the output: all of it."""
        return values

    def update(self, written: Mapping[str, bytes]) -> Any:
        """What the node wrote, as a stream tells it: the value that it returned."""
        return self.output(written)

    # -- input

    @cached_property
    def required(self) -> tuple[str, ...]:
        """No key: the input is one value."""
        return ()

    def lacking(self, data: object) -> list[str]:
        """Nothing: the input is one value, or none at all. Raises EmptyInputError."""
        self.input_writes(data)
        return []

    def input_writes(self, data: object, channels: Mapping[str, bytes] | None = None) -> list[Write]:
        """An input, of any type but None, as writes."""
        if data is None:
            raise EmptyInputError(f"No input for {self.name!r}", fix="Pass a value; None continues what rested.")
        return self.encoded([(START, data)], START)

    def stored_writes(self, values: Mapping[str, Any], channels: Mapping[str, bytes]) -> list[Write]:
        """An input as it was stored."""
        return self.encoded([(START, values.get(START))], START)

    def input_from_json(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A producer's JSON form with the type that the function's first parameter is annotated with."""
        return self.input_schema.from_json({START: data.get(START)})

    def input_schema_json(self) -> dict[str, Any]:
        """JSON schema of `{"__start__": input}`."""
        return self.input_schema.json_schema([START])

    # -- the node

    def node_input(self, node: str, channels: Mapping[str, bytes], steps: Steps = NO_STEPS) -> Any:
        """What the run was given."""
        return self.decoded([START], channels).get(START)

    def node_writes(self, node: str, returned: object) -> list[Write]:
        """What the function returned, and what it saved."""
        final: Any = returned
        if not isinstance(returned, Final):
            final = Final(returned, returned)
        return self.encoded([(END, final.value), (PREVIOUS, final.save)], node)


def entry_of(spec: GraphSpec) -> EntrySpec:
    """The one-node graph as an entrypoint's: its input goes once its node is done."""
    said: dict[str, Any] = {each.name: getattr(spec, each.name) for each in fields(spec)}
    said["channels"] = {**spec.channels, START: replace(spec.channels[START], kind=EphemeralValue())}
    return EntrySpec(**said)


def is_entry(keys: Iterable[str]) -> bool:
    """Are these the keys of an entrypoint's state? For who reads it without its code."""
    found = set(keys)
    return bool(found) and found <= KEYS
