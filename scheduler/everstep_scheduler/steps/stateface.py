"""StateFace: LangGraph's methods that read and edit the state of a thread, once for graphs inline and on workers.

    get_state, get_state_history, get_path    read the log
    update_state, bulk_update_state       a run of kind update, applied by whoever has the reducers
      as_node="__input__", "__copy__"     a branch: needs no code of the graph

A config with the `checkpoint_id` of an earlier checkpoint begins a branch there; the thread must be at rest for that.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from everstep_checkpoint.codec import PLAIN, Codec
from everstep_checkpoint.entries import checkpoint_id
from everstep_checkpoint.errors import InvalidInput, InvalidUpdateError
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import begun_thread_text, is_within
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import State, state_at

from ..graph.drawing.picture import Graph
from ..graph.placing import Placed, placed
from ..graph.runtime import END, START
from ..graph.subgraphs import graphs_seen_by
from ..moves.contract import UPDATE_TASK, Start
from ..moves.record import Config, On, Writes, start_with
from ..reading.addressed import addressed, last_writer
from ..reading.children import graph_at
from ..reading.path import traced
from ..reading.snapshot import StateSnapshot, snapshot, snapshots
from .branching import Wish, copy_of, forking, on, replaying

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec

INPUT, COPY = "__input__", "__copy__"
Given = Mapping[str, Any]


class StateUpdate(NamedTuple):
    """One update of a superstep. `task_id` is taken for LangGraph's sake and says nothing here."""

    values: Any
    as_node: str | None = None
    task_id: str | None = None


class StateFace(ABC):
    """What an engine adds: where the log is, how values are encoded, how an update and a branch are made."""

    @property
    @abstractmethod
    def _types(self) -> GraphSpec | None:
        """The graph's types, where its code is at hand."""

    @property
    def _codec(self) -> Codec:
        return self._types.codec if self._types is not None else PLAIN

    @property
    @abstractmethod
    def _log(self) -> Log: ...

    @property
    @abstractmethod
    def _graph(self) -> Graph:
        """Its nodes and edges."""

    @abstractmethod
    def _inner(self, spec: GraphSpec) -> StateFace:
        """The same for a graph that is a node of this one."""

    @abstractmethod
    def _thread(self, said: Config) -> str:
        """The thread of a config. Raises InvalidInput."""

    @abstractmethod
    def _named(self) -> tuple[str, str]:
        """The graph's name and its default queue."""

    @property
    @abstractmethod
    def _durability(self) -> str:
        """What the graph's runs are promised where a call says nothing."""

    @abstractmethod
    def _writes(self, node: str, values: Any, thread: str) -> Writes:
        """Values as a node's writes. Raises UnknownNode or InvalidInput, InvalidUpdateError."""

    @abstractmethod
    def _input(self, values: Any) -> tuple[Any, Writes]:
        """Values as an input: its form, and the writes. Raises InvalidInput."""

    @abstractmethod
    def _apply(self, start: Start, said: Config, timeout: float | None) -> int:
        """Run an update to its rest; the number of its checkpoint."""

    @abstractmethod
    def _branch(self, wish: Wish) -> tuple[int, str]:
        """Put a checkpoint at the head; its (n, digest)."""

    @abstractmethod
    def _edited(
        self, spec: GraphSpec, thread: str, config: Given, supersteps: Sequence[Sequence[StateUpdate]]
    ) -> dict[str, Any]:
        """Updates of what a node's function called, on the thread that is kept for it; applied here."""

    # reading

    def get_state(self, config: Given, *, subgraphs: bool = False) -> StateSnapshot:
        """The thread as it stands; with a `checkpoint_id` the record of that checkpoint. An unknown thread has an empty
        state.

        As it stands: what tasks of the open step have written is applied, `next` are those that have yet to end. The
        record of a checkpoint: the values that its tasks began with, and all of them in `next`.

        A task that is a graph has `state`: the config of its own state, or with `subgraphs` that state itself, to any
        depth. Such a config, with its `checkpoint_ns`, is taken here, by the history and by updates.

        Raises InvalidInput, NotFound for a checkpoint that the thread does not have, Trimmed.
        """
        said = Config.of(config)
        at = self._placed(said)
        return snapshot(
            self._log, at.thread, said.checkpoint_id or None, spec=at.spec, place=at.place, subgraphs=subgraphs
        )

    def get_path(self, config: Given, *, xray: int | bool = False, whole: bool = False) -> Graph:
        """The graph with the path that the thread took through it since its last input (`whole`: since its beginning):
        which nodes ran, in which steps and how often, and which failed, asks, or is open. Draw it as any graph, or let
        a notebook show it. `xray`: with the graphs that are nodes opened, so many levels deep; True: all.

        Raises InvalidInput, UnknownThread, CorruptEntry.
        """
        at, graph = self._placed(Config.of(config)), self._graph
        for each in at.place.ns.split("|") if at.place.ns else ():
            graph = graph.inner[each.partition(":")[0]]
        return traced(graph, self._log, at.thread, whole=whole).xray(xray)

    def get_state_history(
        self, config: Given, *, filter: Given | None = None, before: Given | None = None, limit: int | None = None
    ) -> Iterator[StateSnapshot]:
        """The checkpoints of a thread, all branches, newest first.

        `filter`: only those whose metadata has these values, as {"source": "update"}. `before`: a config; only those
        older than its checkpoint. `limit`: at most so many. A `checkpoint_id` in `config`: that one alone.
        """
        said = Config.of(config)
        until = Config.of(before).checkpoint_n if before is not None else None
        at = self._placed(said)
        return snapshots(
            self._log, at.thread, limit, spec=at.spec, before=until, filter=filter, only=said.checkpoint_id or None,
            place=at.place,
        )  # fmt: skip

    async def aget_state(self, config: Given, *, subgraphs: bool = False) -> StateSnapshot:
        """`get_state` for an event loop."""
        return await asyncio.to_thread(self.get_state, config, subgraphs=subgraphs)

    async def aget_state_history(self, config: Given, **more: Any) -> AsyncIterator[StateSnapshot]:
        """`get_state_history` for an event loop."""
        for each in await asyncio.to_thread(lambda: list(self.get_state_history(config, **more))):
            yield each

    def get_subgraphs(self, *, namespace: str | None = None, recurse: bool = False) -> Iterator[tuple[str, Any]]:
        """(node, graph) of the graphs that are nodes here, or that a node's function can see and call: the first one.
        `recurse`: also of those in them, as `node|node`. `namespace`: only that one. Without the graph's code there are
        none."""
        for name, inner in self._graphs():
            if namespace is None or namespace == name:
                yield name, self._inner(inner)
            if not recurse or namespace == name or not (namespace is None or namespace.startswith(f"{name}|")):
                continue
            below = None if namespace is None else namespace[len(name) + 1 :]
            for low, graph in self._inner(inner).get_subgraphs(namespace=below, recurse=True):
                yield f"{name}|{low}", graph

    def _graphs(self) -> Iterator[tuple[str, GraphSpec]]:
        spec = self._types
        for node in spec.nodes.values() if spec is not None else ():
            seen = [] if node.graph is not None else [graph.spec for graph in graphs_seen_by(node.fn)]
            found = spec.nested.get(node.name) if spec is not None else None
            if found is not None or seen:
                yield node.name, found or seen[0]

    def _placed(self, said: Config) -> Placed:
        """The thread that a config names by its `thread_id` and `checkpoint_ns`, and its graph."""
        return placed(self._thread(said), said.checkpoint_ns, self._types, partial(graph_at, self._log))

    # editing

    def update_state(
        self,
        config: Given,
        values: Any,
        as_node: str | None = None,
        task_id: str | None = None,
        *,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Write to the state as if `as_node` had returned `values`; its edges and routers say what comes next.

        Without `as_node`: the node that ran last, where that is one. Special ones: `END` with values None gives up what
        is open; "__input__" takes the values as an input that waits to be applied; "__copy__" repeats the checkpoint,
        and takes values as [(values, as_node), ...] to apply to the copy. With a `checkpoint_id` in the config it
        begins a branch there. On workers it waits for them, at most `timeout` seconds.

        Returns the new checkpoint's config. Raises InvalidUpdateError, InvalidInput, NotFound, Trimmed, ThreadBusy.
        """
        return self.bulk_update_state(config, [[StateUpdate(values, as_node, task_id)]], timeout=timeout)

    def bulk_update_state(
        self, config: Given, supersteps: Sequence[Sequence[StateUpdate]], *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Several updates: each superstep makes one checkpoint, with all its updates applied at once, in order.

        Where a superstep has several, each names its node. Returns the last checkpoint's config. Raises as
        `update_state`; supersteps before the one that raises stay.
        """
        if not supersteps or not all(supersteps):
            raise InvalidUpdateError(
                "No supersteps provided" if not supersteps else "No updates provided",
                fix="give [[StateUpdate(values, as_node)]]",
            )
        said = Config.of(config)
        if said.checkpoint_ns:
            return self._below(self._placed(said), config, supersteps, timeout)
        place = dict(config)
        for updates in supersteps:
            place = self._superstep(place, [StateUpdate(*each) for each in updates], timeout)
        return place

    def _below(
        self, at: Placed, config: Given, supersteps: Sequence[Sequence[StateUpdate]], timeout: float | None
    ) -> dict[str, Any]:
        """Updates of what a task called, on its own thread."""
        if at.spec is None:
            raise InvalidInput(
                f"no graph is known at {at.place.ns!r}",
                thread=at.place.root,
                fix="take the config from get_state().tasks[i].state; a client needs the graph: graph(name, compiled)",
            )
        own = {**config.get("configurable", {}), "thread_id": at.thread, "checkpoint_ns": ""}
        there = {**config, "configurable": own}
        if is_within(at.thread):
            done = self._edited(at.spec, at.thread, there, [[StateUpdate(*x) for x in each] for each in supersteps])
        else:
            done = self._inner(at.spec).bulk_update_state(there, supersteps, timeout=timeout)
        return {"configurable": {**done["configurable"], "thread_id": at.place.root, "checkpoint_ns": at.place.ns}}

    async def aupdate_state(
        self, config: Given, values: Any, as_node: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """`update_state` for an event loop."""
        return await asyncio.to_thread(self.update_state, config, values, as_node, **more)

    async def abulk_update_state(
        self, config: Given, supersteps: Sequence[Sequence[StateUpdate]], **more: Any
    ) -> dict[str, Any]:
        """`bulk_update_state` for an event loop."""
        return await asyncio.to_thread(self.bulk_update_state, config, supersteps, **more)

    # one superstep

    def _superstep(self, config: Given, updates: Sequence[StateUpdate], timeout: float | None) -> dict[str, Any]:
        said = Config.of(config).promised(self._durability)
        thread = self._thread(said)
        first = updates[0]
        special = first.as_node in (INPUT, COPY) or (first.as_node == END and first.values is None)
        if special and len(updates) > 1:
            raise InvalidUpdateError(f"Cannot apply multiple updates as {first.as_node}", thread=thread)
        at, named = self._at(thread, said)
        if at is None and self._log.head(thread) is None:
            begun_thread_text(thread)
        if first.as_node == INPUT:
            return self._as_input(thread, said, at, first.values)
        if first.as_node == COPY:
            return self._copy(thread, said, at, first.values, timeout)
        nodes = self._nodes(thread, at, updates)
        pairs = [(node, self._writes(node, each.values, thread)) for node, each in zip(nodes, updates, strict=True)]
        start = self._update_start(thread, said, pairs, named)
        n = self._apply(start, said, timeout)
        return self._place(thread, n, self._log.read(thread, f"{n}-0", f"{n}-0")[0].digest)

    def _at(self, thread: str, said: Config) -> tuple[State | None, On | None]:
        """The checkpoint that is meant, and what to say of it if it is not the last one."""
        head = self._log.head(thread)
        if said.checkpoint_id:
            at = addressed(self._log, thread, said.checkpoint_id)
            assert head is not None
            return at, None if at.n == head.n else on(at)
        return (state_at(self._log, thread, head.n) if head is not None and head.n else None), None

    def _nodes(self, thread: str, at: State | None, updates: Sequence[StateUpdate]) -> list[str]:
        if len(updates) > 1 and not all(each.as_node for each in updates):
            raise InvalidUpdateError(
                "as_node is required when applying multiple updates", thread=thread, fix="StateUpdate(values, as_node)"
            )
        entry = at.entry if at is not None else None
        nodes = [each.as_node or last_writer(self._log, thread, entry) for each in updates]
        if END in nodes and updates[0].values is not None:
            raise InvalidUpdateError(
                f"an update as {END!r} has no values", thread=thread, fix="values=None gives up what is open"
            )
        return nodes

    def _update_start(self, thread: str, said: Config, pairs: Sequence[tuple[str, Writes]], named: On | None) -> Start:
        graph, queue = self._named()
        alone = len(pairs) == 1 and pairs[0][0] != END
        return start_with(
            said.record("update"), [write for _, writes in pairs for write in writes], thread=thread,
            run=said.run_id or new_id(), graph=graph, queue=queue, task=UPDATE_TASK,
            node=START if pairs[0][0] == END else pairs[0][0], on=named,
            nodes=() if alone else [(node, len(writes)) for node, writes in pairs],
            mode="reject", codec=self._codec,
        )  # fmt: skip

    def _as_input(self, thread: str, said: Config, at: State | None, values: Any) -> dict[str, Any]:
        graph, queue = self._named()
        form, writes = self._input(values)
        if not writes:
            raise InvalidUpdateError("Received no input writes", thread=thread, fix="give keys of the input")
        start = start_with(
            said.record("update", form), writes, thread=thread, run=said.run_id or new_id(), graph=graph, queue=queue,
            on=on(at) if at is not None else None, codec=self._codec,
        )  # fmt: skip
        fresh = (self._types.initial() if self._types is not None else {}) if at is None else None
        wish = Wish(thread, start, at, channels=fresh)
        if at is not None and not said.checkpoint_id:  # at the head, what Commands said about it stays
            wish = replaying(self._log, thread, start, at, self._types)
        return self._place(thread, *self._branch(replace(wish, source="input", input=True, rests=True)))

    def _copy(self, thread: str, said: Config, at: State | None, values: Any, timeout: float | None) -> dict[str, Any]:
        if at is None:
            raise InvalidUpdateError("Cannot copy a non-existent checkpoint", thread=thread, fix="invoke it first")
        updates = self._copied_updates(values, thread)
        start = forking(self._log, thread, at, None, said.run_id or new_id(), *self._named())
        parent = copy_of(self._log, thread, at)
        place = self._place(thread, *self._branch(Wish(thread, start, at, parent=parent, rests=True)))
        return self._superstep(place, updates, timeout) if updates else place

    def _copied_updates(self, values: Any, thread: str) -> list[StateUpdate]:
        """Updates to apply to a copy, those of one node together (LangGraph groups them so)."""
        found: dict[str, list[StateUpdate]] = {}
        given = cast("list[Any]", values) if isinstance(values, list) else []  # type: ignore[redundant-cast]
        for item in given:
            if not isinstance(item, list | tuple) or len(cast("Sequence[Any]", item)) < 2:
                raise InvalidUpdateError(
                    f"Invalid update item: {item!r} when copying checkpoint", thread=thread, fix="(values, as_node)"
                )
            each = StateUpdate(*cast("Sequence[Any]", item)[:2])
            found.setdefault(str(each.as_node), []).append(each)
        return [each for group in found.values() for each in group]

    def _place(self, thread: str, n: int, digest: str) -> dict[str, Any]:
        place = {"thread_id": thread, "checkpoint_ns": "", "checkpoint_id": checkpoint_id(n, digest)}
        return {"configurable": place}
