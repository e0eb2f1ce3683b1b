"""Shapes: LangGraph's stream modes, and what their chunks look like. Pure.

What a task wrote is a dict in `updates`, a list of dicts if it wrote a key several times; in `tasks` several writes to
one key are {"$writes": [...]}.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN, Codec
from everstep_checkpoint.errors import InvalidInput, UnknownNode, UnknownType
from everstep_checkpoint.replay import Channels, State

from ..graph.channels import HIDDEN
from ..graph.entry import is_entry
from ..graph.kinds import restored
from ..graph.placing import Place
from ..graph.runtime import END, START
from ..graph.schema import as_dict
from ..graph.subgraphs import graphs_seen_by
from ..graph.untracked import taken, taken_pairs
from ..moves.contract import Lease
from ..moves.live import LIVE_MODES
from ..moves.record import CALLS, RunRecord

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec

LOG_MODES = ("values", "updates", "checkpoints", "tasks", "debug")
MODES = (*LOG_MODES, *LIVE_MODES)
PUSH = "__pregel_push"
INTERRUPT = "__interrupt__"
Chunk = Any
Told = tuple[str, Chunk]
Writes = Sequence[tuple[str, bytes | None]]


def check_modes(mode: str | Sequence[str] | None) -> tuple[str, ...]:
    """The modes asked for, each once. Raises InvalidInput for one that does not exist."""
    modes = () if mode is None else (mode,) if isinstance(mode, str) else tuple(dict.fromkeys(mode))
    for one in modes:
        if one not in MODES:
            raise InvalidInput(f"no stream mode {one!r}", fix=f"choose among {', '.join(sorted(MODES))}")
    return modes


def live_modes(modes: Iterable[str]) -> tuple[str, ...]:
    """Those of the modes that nodes tell while they run."""
    return tuple(mode for mode in LIVE_MODES if mode in set(modes))


def asked_modes(modes: Iterable[str]) -> tuple[str, ...]:
    """Of modes that somebody asks for when a run begins, what its record says: what is written only then."""
    modes = set(modes)
    return (*live_modes(modes), *((CALLS,) if modes & {CALLS, "debug"} else ()))


@dataclass(frozen=True)
class Reading:
    """How values are read: by a graph's types, or as plain data.

    `keys`: the keys of the output; None: all. `joins`: the graph's barriers, and `graphs` how those are
    read that are nodes of it and have a log of their own, where the graph is known by its manifest. `version`: which
    one that tells of, and `state`: all keys that the state has there.
    """

    spec: GraphSpec | None = None
    keys: Sequence[str] | None = None
    joins: Sequence[str] = ()
    graphs: Mapping[str, Reading] = field(default_factory=dict[str, "Reading"])
    version: str = ""
    state: Collection[str] = ()

    @property
    def codec(self) -> Codec:
        return self.spec.codec if self.spec is not None else PLAIN

    @property
    def outputs(self) -> Sequence[str] | None:
        """The keys of the output; None: all."""
        return list(self.spec.output_schema.fields) if self.spec is not None else self.keys

    @property
    def direct(self) -> bool:
        """Is the state one value, as an entrypoint's is?"""
        return self.spec.direct if self.spec is not None else is_entry(self.keys or ())

    def told(self, keys: Sequence[str] | None) -> Sequence[str] | None:
        """The keys that a stream tells, of those that are wanted; None: all."""
        return [END] if self.direct else keys

    def output(self, state: State | None) -> Any:
        """The output values of a state; None: there is none yet.

        A manifest may be of another version than the one that made the state. Then keys that it knows nothing of are
        values of the output, too: it can't say that they are kept inside, and a result must not lose them.
        """
        if state is None:
            return self.values({}, self.outputs)
        keys = self.outputs
        if keys is not None and self.version not in ("", state.entry.text("graph")):
            keys = [*keys, *(name for name in state.channels if not (name in self.state or name.startswith(HIDDEN)))]
        return self.values(state.channels, keys)

    def values(self, channels: Channels, keys: Iterable[str] | None = None) -> Any:
        """The values of these keys, by default of all that users see; of an entrypoint what it returned."""
        if keys is None:
            keys = (
                self.spec.channels
                if self.spec is not None
                else [name for name in channels if not name.startswith(HIDDEN)]
            )
        found = {name: self.codec.decode(channels[name], f"key {name!r}") for name in keys if name in channels}
        return found.get(END) if self.direct or is_entry(found) else taken(found)

    def result(self, value: bytes) -> Any:
        """What a `@task` came to; plain data where the graph does not know the task's own types."""
        try:
            return self.codec.decode(value, "the result of a task")
        except UnknownType:
            return PLAIN.decode(value, "the result of a task")

    def input(self, node: str, channels: Channels) -> Any:
        """What a node gets as its state."""
        try:
            if self.spec is None:
                given = channels.get(START) if self.direct else None
                return self.values(channels) if given is None else self.codec.decode(given, "the input")
            return self.spec.node_input(node, channels)
        except UnknownNode:  # an older version of the graph had it
            return self.values(channels)

    def metadata(self, node: str) -> Mapping[str, Any]:
        """What the graph says of a node."""
        found = self.spec.nodes.get(node) if self.spec is not None else None
        return found.metadata if found is not None else {}

    def below(self, node: str) -> Reading | None:
        """How the values of a node's graph are read; None for a node that is no graph with a log of its own."""
        if self.spec is None:
            return self.graphs.get(node)
        calls = node in self.spec.nodes and self.spec.node(node).calls
        return Reading(self.spec.nested[node]) if calls else None

    def calls(self, node: str) -> bool:
        """Is it a function that can see a graph and call it, where the graph's code is at hand?"""
        found = self.spec.nodes.get(node) if self.spec is not None else None
        return found is not None and bool(graphs_seen_by(found.fn, 0))

    def triggers(self, node: str) -> tuple[str, ...]:
        """LangGraph's names for what begins a task of a node."""
        if self.direct:
            return (START,)
        joins = self.joins if self.spec is None else [each.channel for each in self.spec.joins]
        return tuple(sorted([f"branch:to:{node}", *(name for name in joins if name.rpartition(":")[2] == node)]))

    def decoded(self, writes: Writes) -> list[tuple[str, Any]]:
        """Writes that have a value, decoded; where the graph is at hand, as they were written."""
        found = [(name, self.codec.decode(value, f"key {name!r}")) for name, value in writes if value is not None]
        found = taken_pairs(found)
        return found if self.spec is None else [(name, restored(value)) for name, value in found]


def update_of(writes: Sequence[tuple[str, Any]], keys: Iterable[str] | None) -> Any:
    """What `updates` shows of a task: a dict; several where a key was written several times; None for nothing; of an
    entrypoint what it returned."""
    wanted = None if keys is None else set(keys)
    shown = [(name, value) for name, value in writes if wanted is None or name in wanted]
    if is_entry(name for name, _ in shown):
        return dict(shown).get(END)
    if len({name for name, _ in shown}) == len(shown):
        return dict(shown) or None
    return [{name: value} for name, value in shown]


def result_of(writes: Sequence[tuple[str, Any]], keys: Iterable[str] | None = None) -> dict[str, Any]:
    """What `tasks` shows of a task: one write as it is, several to one key as {"$writes": [...]}."""
    wanted, found = None if keys is None else set(keys), dict[str, list[Any]]()
    for name, value in writes:
        if wanted is None or name in wanted:
            found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else {"$writes": values} for name, values in found.items()}


def beside(values: Any, questions: Sequence[Any]) -> dict[str, Any]:
    """Questions beside the values as they stand. A value that is no dict has no room for them."""
    return {**(as_dict(values) or {}), INTERRUPT: questions}


def message_metadata(spec: GraphSpec, lease: Lease, step: int, record: RunRecord) -> dict[str, Any]:
    """What goes with each message of an attempt: LangGraph's names, and our `task_id` and `attempt`."""
    sent = lease.task.startswith("s")
    node, task = lease.node, e.idempotency_key(lease.birth, lease.n, lease.digest, lease.task)
    place = Place(*record.parent) if record.parent else Place(lease.thread)
    return {
        "ls_integration": "langgraph",
        **record.metadata,
        **spec.node(node).metadata,
        "thread_id": place.root,
        "langgraph_step": step,
        "langgraph_node": node,
        "langgraph_triggers": (PUSH,) if sent else Reading(spec).triggers(node),
        "langgraph_path": (PUSH, int(lease.task.partition("_")[2]), False) if sent else ("__pregel_pull", node),
        "langgraph_checkpoint_ns": place.below(node, task).ns,
        **({"checkpoint_ns": place.ns.partition("|")[0]} if place.ns else {}),
        "task_id": task,
        "attempt": lease.attempt,
    }
