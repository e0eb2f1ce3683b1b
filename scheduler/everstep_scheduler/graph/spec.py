"""The pure half of a compiled graph: `GraphSpec`, everything about a graph that is not running it.

State is `dict[str, bytes]`: channel name -> canonical encoding. What a node gets is decoded freshly, what it
returns is encoded at once, so nothing that it mutates reaches the log.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel

from everstep_checkpoint.codec import Codec, Registry
from everstep_checkpoint.errors import (
    EmptyInputError,
    InvalidInput,
    UnknownNode,
)

from .channels import JOINS, Channel, Write
from .coding import a, decoded, encoded, pairs_written, seen, where, written
from .durability import COMMIT
from .kinds import UntrackedValue
from .limits import Limit, Limits
from .managed import NO_STEPS, Steps
from .options import CachePolicy, TimeoutPolicy
from .retry import RetryPolicy
from .runtime import END, START, seconds
from .schema import Schema, as_dict, classes_in, did_you_mean, updates_of
from .subgraphs import nested_in

PLACED_MAX = 256  # steps whose tasks a graph remembers
_json = json.JSONEncoder(separators=(",", ":")).encode
Row = tuple[Any, ...]
UNNAMED = "graph"  # the name of a graph compiled without one; a worker renames it after its attribute


@dataclass(frozen=True)
class NodeSpec:
    """One node, or an error handler. `form` names what it takes besides the state: "config", "runtime", "error".

    `ends`: where its Commands may go -> label; None: anywhere. `defer`: it runs where no other node would. `handler`:
    the name of what runs when it has failed for good. `graph`: the graph that it is; `keeps`: whether that graph's
    state lasts beyond a call; False: it runs within the attempt, and is kept nowhere.
    `isolate`: each attempt runs in a process of its own. `limit`: how many of its tasks may run
    at once, or begin within a time.
    """

    name: str
    fn: Callable[..., Any]
    is_async: bool
    queue: str | None
    metadata: Mapping[str, Any]
    input_schema: Schema
    form: tuple[str, ...]
    ends: Mapping[str, str] | None = field(default_factory=dict[str, str])
    defer: bool = False
    retry: tuple[RetryPolicy, ...] = ()
    timeout: TimeoutPolicy | None = None
    cache: CachePolicy | None = None
    handler: str | None = None
    graph: GraphSpec | None = None
    keeps: bool | None = None
    isolate: bool = False
    limit: Limit | None = None

    @property
    def calls(self) -> bool:
        """Is it a graph whose runs have a log of their own?"""
        return self.graph is not None and self.keeps is not False

    @cached_property
    def timeout_s(self) -> float | None:
        """Seconds that one attempt may take; None: no limit."""
        return self._seconds("run_timeout")

    @cached_property
    def idle_s(self) -> float | None:
        """Seconds that an attempt may show no progress; None: no limit."""
        return self._seconds("idle_timeout")

    def _seconds(self, name: str) -> float | None:
        return seconds(getattr(self.timeout, name, None), self.name)


@dataclass(frozen=True)
class Branch:
    """A conditional edge: a router after `source`. `ends` maps what it says to nodes; None: it says nodes."""

    source: str
    name: str
    fn: Callable[..., Any]
    is_async: bool
    form: tuple[str, ...]
    ends: Mapping[Any, str] | None
    input_schema: Schema | None


@dataclass(frozen=True)
class Join:
    """`target` runs when all of `starts` (sorted) have run since it last did."""

    starts: tuple[str, ...]
    target: str

    @property
    def channel(self) -> str:
        """The hidden channel that holds the sorted names seen so far."""
        return f"{JOINS}{'+'.join(self.starts)}:{self.target}"


@dataclass(frozen=True, eq=False)
class GraphSpec:
    """A graph, checked and unchangeable. Build it with `StateGraph.spec`."""

    name: str
    nodes: Mapping[str, NodeSpec]
    edges: tuple[tuple[str, str], ...]
    branches: tuple[Branch, ...]
    joins: tuple[Join, ...]
    channels: Mapping[str, Channel]
    state_schema: Schema
    input_schema: Schema
    output_schema: Schema
    context_schema: type[Any] | None = None
    managed: frozenset[str] = frozenset()
    handlers: Mapping[str, NodeSpec] = field(default_factory=dict[str, NodeSpec])
    registry: Registry = field(default_factory=Registry)
    types: tuple[NamedType, ...] = ()  # beyond those that annotations name
    interrupt_before: tuple[str, ...] = ()
    interrupt_after: tuple[str, ...] = ()
    home: str = ""  # the queue of the graph that this one is nested in
    durability: str = COMMIT  # what its runs are promised where the call says nothing

    direct: ClassVar[bool] = False  # does an input lead straight to its node, in one checkpoint?

    # -- identity

    def named(self, name: str) -> GraphSpec:
        """The same graph under another name, as when a worker serves it under its attribute's."""
        return replace(self, name=name)

    @cached_property
    def fingerprint(self) -> str:
        """8 hex digits over nodes, edges, branches, joins and channels: the same in every process."""
        shape: dict[str, Any] = {
            "nodes": sorted(self.nodes),
            "edges": sorted(self.edges),
            "branches": sorted([each.source, each.name, _labels(each.ends)] for each in self.branches),
            "joins": sorted(each.channel for each in self.joins),
            "channels": sorted([each.name, each.reducer_name] for each in self.channels.values()),
        }
        if leads := sorted([each.name, sorted(each.ends)] for each in self.nodes.values() if each.ends):
            shape["commands"] = leads
        if deferred := sorted(each.name for each in self.nodes.values() if each.defer):
            shape["deferred"] = deferred
        if handled := sorted([each.name, each.handler] for each in self.nodes.values() if each.handler):
            shape["handled"] = handled
        if inner := sorted([each.name, each.graph.fingerprint] for each in self.nodes.values() if each.graph):
            shape["graphs"] = inner
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:8]

    @cached_property
    def version(self) -> str:
        """`name@fingerprint`, stamped on each checkpoint."""
        return f"{self.name}@{self.fingerprint}"

    @cached_property
    def codec(self) -> Codec:
        """Encodes values of the types that the graph's schemas name."""
        return Codec(self.registry)

    # -- graphs in it

    @cached_property
    def nested(self) -> dict[str, GraphSpec]:
        """node -> the graph that it is, as it is named here: `parent.node`."""
        return {each.name: nested_in(self, each.name, each.graph) for each in self.nodes.values() if each.graph}

    @cached_property
    def family(self) -> tuple[GraphSpec, ...]:
        """This graph and all graphs in it, to any depth."""
        return (self, *(each for child in self.nested.values() for each in child.family))

    # -- tasks

    @cached_property
    def placed(self) -> Callable[[tuple[str, ...]], tuple[tuple[str, ...], tuple[Row, ...], str]]:
        """Nodes -> the PULL tasks of a step with them: their names, the rows of `next`, and these as JSON. Remembered,
        because most steps lead where others led."""

        @lru_cache(PLACED_MAX)
        def placed(nodes: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Row, ...], str]:
            rows = tuple(
                (f"p{i}", node, self.queue_of(node), self.node(node).timeout_s or 0) for i, node in enumerate(nodes)
            )
            return tuple(row[0] for row in rows), rows, _json(rows)

        return placed

    @cached_property
    def limits(self) -> Limits:
        """node -> its limit, of those nodes that have one."""
        return {each.name: each.limit for each in self.nodes.values() if each.limit is not None}

    # -- queues

    @property
    def default_queue(self) -> str:
        """The queue of nodes that name none: the graph's name, or that of the graph it is nested in."""
        return self.home or self.name

    def queue_of(self, node: str) -> str:
        """The queue of a node's jobs; START runs on the default queue."""
        return self.default_queue if node == START else self.node(node).queue or self.default_queue

    @property
    def queues(self) -> tuple[str, ...]:
        """All queues of the graph and of those in it, the default one first."""
        nodes = (node for each in self.family for node in each.nodes.values())
        named = {each.queue for each in nodes if each.queue} - {self.default_queue}
        return (self.default_queue, *sorted(named))

    # -- structure

    @property
    def served(self) -> tuple[str, ...]:
        """What a process that has the graph can run: its nodes, and their error handlers."""
        return (*self.nodes, *self.handlers)

    def node(self, name: str) -> NodeSpec:
        """A node by name, or an error handler; UnknownNode with a hint if there is none."""
        if name in self.handlers:
            return self.handlers[name]
        if name not in self.nodes:
            raise UnknownNode(f"The graph {self.name!r} has no node {name!r}", fix=did_you_mean(name, self.nodes))
        return self.nodes[name]

    def branches_of(self, source: str) -> tuple[Branch, ...]:
        """The routers after a node, in the order they were added."""
        return self._after[source][0] if source in self._after else ()

    def led_to(self, source: str) -> tuple[str, ...]:
        """The nodes that edges lead to from a node, END left out, in the order they were added."""
        return self._after[source][1] if source in self._after else ()

    @cached_property
    def _after(self) -> dict[str, tuple[tuple[Branch, ...], tuple[str, ...]]]:
        """source -> its routers, the ends of its edges."""
        sources = {*(each.source for each in self.branches), *(start for start, _ in self.edges)}
        return {
            source: (
                tuple(each for each in self.branches if each.source == source),
                tuple(end for start, end in self.edges if start == source and end != END),
            )
            for source in sources
        }

    @cached_property
    def has_hidden(self) -> bool:
        """Has it channels of joins or of deferred nodes, or such that hold a value for one step?"""
        return bool(self.joins or self.ephemeral) or any(each.defer for each in self.nodes.values())

    @cached_property
    def asked(self) -> dict[str, frozenset[str]]:
        """What each node, and the routers after it, ask to be told: config, runtime ..."""
        nodes = {**self.nodes, **self.handlers}
        return {
            name: frozenset([*node.form, *(each for branch in self.branches_of(name) for each in branch.form)])
            for name, node in nodes.items()
        }

    def needs_loop(self, node: str) -> bool:
        """Whether an attempt at the node, or a router after it, must run on an event loop."""
        return node in self._on_loop

    @cached_property
    def _on_loop(self) -> frozenset[str]:
        routers = {each.source for each in self.branches if each.is_async}
        return frozenset(routers | {node for node in self.served if self.node(node).is_async})

    # -- state

    def initial(self) -> dict[str, bytes]:
        """The channels of a new thread: with a reducer their empty value, others absent."""
        return dict(self.empty)

    @cached_property
    def empty(self) -> dict[str, bytes]:
        found = {name: self._empty(channel) for name, channel in self.channels.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _empty(self, channel: Channel) -> bytes | None:
        if channel.reducer is None:
            return None
        try:
            return self.codec.encode(channel.empty(), where(channel.name))
        except (TypeError, ValueError):  # not constructible without arguments, or not storable: starts absent
            return None

    @cached_property
    def ephemeral(self) -> frozenset[str]:
        """The channels that hold a value for one superstep only."""
        return frozenset(name for name, each in self.channels.items() if each.kind and each.kind.ephemeral)

    @cached_property
    def untracked(self) -> frozenset[str]:
        """The channels whose values are never stored."""
        return frozenset(name for name, each in self.channels.items() if isinstance(each.kind, UntrackedValue))

    def decoded(self, names: Iterable[str], channels: Mapping[str, bytes]) -> dict[str, Any]:
        """The available channels among `names`, freshly decoded."""
        return decoded(self.codec, names, channels, self.untracked)

    def values(self, channels: Mapping[str, bytes]) -> Any:
        """The state that users see: every declared key, also nodes' private ones, as in LangGraph."""
        return self.decoded(self.channels, channels)

    def output(self, channels: Mapping[str, bytes]) -> Any:
        """The keys of the output schema."""
        return self.decoded(self.output_schema.fields, channels)

    def shown(self, values: Any) -> Any:
        """Of the state that users see, the output."""
        return {name: values[name] for name in self.output_schema.fields if name in values}

    def update(self, written: Mapping[str, bytes]) -> Any:
        """What a node wrote, as a stream tells it; None for nothing."""
        return self.decoded(written, written) or None

    # -- input

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The keys without which no input can begin a thread: fields without a default, and without a reducer, whose
        empty value would stand in. A TypedDict requires none, as in LangGraph."""
        return tuple(self.input_schema.missing({*self.initial(), *self.untracked}))

    def lacking(self, data: object) -> list[str]:
        """The required keys that an input does not bring; a thread may have them already. Raises as `input_writes`."""
        given = self._input_dict(data)
        return [name for name in self.required if name not in given]

    def lacks(self, names: Iterable[str]) -> InvalidInput:
        """The error for an input without these required keys."""
        return InvalidInput(
            f"The input of {self.name!r} lacks {', '.join(map(repr, names))}",
            fix=f"{self.input_schema.cls.__name__} requires it: add it to the input, or give the field a default.",
        )

    def input_writes(self, data: object, channels: Mapping[str, bytes] | None = None) -> list[Write]:
        """An input as writes. Partial input is fine; `{}` begins a run that writes nothing.

        `channels`, if given, are the thread's: required fields of the schema must be there or in `data`.
        """
        given = self._input_dict(data)
        values = self.input_schema.check(given)
        if channels is not None and (missing := self.input_schema.missing({*given, *channels})):
            raise self.lacks(missing)
        return self.encoded(values.items(), START)

    def stored_writes(self, values: Mapping[str, Any], channels: Mapping[str, bytes]) -> list[Write]:
        """An input as it was stored, checked against the thread's keys."""
        return self.input_writes(values, channels)

    def input_from_json(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A producer's JSON form as typed input: text becomes a datetime where the schema says so."""
        return self.input_schema.from_json(self._input_dict(data))

    def input_schema_json(self) -> dict[str, Any]:
        """JSON schema of the input of a new thread, for producers without the graph's code: of what can be stored."""
        return self.input_schema.json_schema(self.required, self.untracked)

    def output_schema_json(self) -> dict[str, Any]:
        """JSON schema of the output."""
        return self.output_schema.json_schema((), self.untracked)

    def _input_dict(self, data: object) -> dict[str, Any]:
        if data is None:
            raise EmptyInputError(
                f"No input for the graph {self.name!r}",
                fix="Pass a dict with keys of the input schema, or {}.",
            )
        known = self.input_schema.fields
        if (fields := updates_of(data)) is not None:
            return {name: value for name, value in fields.items() if name in known}
        given = self._stored(as_dict(data))
        if given is None:
            raise InvalidInput(
                f"The input of {self.name!r} must be a dict, not {a(data)}",
                fix=f"Its keys are {', '.join(known)}.",
            )
        for key in given:
            if key not in known:
                raise InvalidInput(f"The input of {self.name!r} has no key {key!r}", fix=did_you_mean(key, known))
        return given

    # -- nodes

    def node_input(self, node: str, channels: Mapping[str, bytes], steps: Steps = NO_STEPS) -> Any:
        """The state as the node's own schema, freshly decoded."""
        return seen(self, self.node(node).input_schema, channels, steps)

    def seen_as(self, schema: Schema, channels: Mapping[str, bytes], steps: Steps) -> Any:
        """The state as a schema shows it, with its managed values."""
        return seen(self, schema, channels, steps)

    def call_args(
        self, node: str, state: object, config: object, runtime: object
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for the node's function."""
        return (state,), form_args(self.node(node).form, config, runtime)

    def node_writes(self, node: str, returned: object) -> list[Write]:
        """What a node returned, as writes. Unknown keys are refused (LangGraph drops them silently)."""
        return written(self, node, returned)

    def key_writes(self, node: str, pairs: Iterable[tuple[str, Any]]) -> list[Write]:
        """Keys and values as writes; a key may come several times. Managed keys are passed over, as in LangGraph."""
        return pairs_written(self, node, pairs)

    def make_context(self, context: object) -> Any:
        """The run's context as `context_schema`: a dict becomes a dataclass or model, all else stays."""
        schema, fields = self.context_schema, as_dict(context)
        if schema is None or fields is None or not (issubclass(schema, BaseModel) or is_dataclass(schema)):
            return context
        try:
            return schema(**fields)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"The context does not fit {schema.__name__}: {error}") from error

    def _stored(self, given: dict[Any, Any] | None) -> dict[Any, Any] | None:
        """Without the managed keys, which nobody can write."""
        if not given or not self.managed:
            return given
        return {key: value for key, value in given.items() if key not in self.managed}

    def encoded(self, pairs: Iterable[tuple[str, Any]], node: str) -> list[Write]:
        """Keys and values as writes of a node. Raises UnknownType, naming it."""
        return encoded(self.codec, pairs, node, self.untracked)


def form_args(form: tuple[str, ...], config: object, runtime: object, error: object = None) -> dict[str, Any]:
    """The keyword arguments that a node's or router's form asks for."""
    if not form:
        return {}
    before = getattr(runtime, "previous", None)
    known = {"config": config, "runtime": runtime, "error": error, "previous": before}
    return {name: known[name] for name in form}


class NamedType(NamedTuple):
    """A class that values may have, and the names under which logs have it, the one that is written first."""

    cls: type[Any]
    names: tuple[str, ...]


def registry_of(annotations: Iterable[Any], types: Iterable[NamedType] = ()) -> Registry:
    """A registry of these types, and of every class of values that the annotations can reach. Raises GraphError."""
    registry = Registry()
    for cls, (name, *aliases) in types:
        registry.add(cls, name, aliases)
    classes = [cls for cls in classes_in(annotations) if registry.shape_of(cls) is None]
    short = Counter(cls.__name__ for cls in classes)
    for cls in classes:  # of two classes with one name both get their full one, whatever their order
        registry.add(cls, cls.__name__ if short[cls.__name__] == 1 else f"{cls.__module__}.{cls.__qualname__}")
    return registry


def _labels(ends: Mapping[Any, str] | None) -> list[list[str]] | None:
    return None if ends is None else sorted([_stable(label), target] for label, target in ends.items())


def _stable(label: object) -> str:
    """A label's text, without the addresses that some objects print."""
    plain = isinstance(label, (str, int, float, Enum)) or label is None
    return str(label) if plain else type(label).__qualname__
