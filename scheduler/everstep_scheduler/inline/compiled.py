"""A compiled graph: LangGraph's methods around the inline driver.

invoke / stream     the caller drives; async nodes run on a loop of their own
ainvoke / astream   a thread drives; async nodes run on the caller's loop
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from everstep_checkpoint.errors import InvalidInput
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import begun_thread_text, thread_id_text
from everstep_checkpoint.log import Log

from ..graph.drawing.picture import Graph, graph_of
from ..graph.durability import COMMIT
from ..graph.options import Cache
from ..graph.runtime import END, START
from ..graph.schema import as_dict, updates_of
from ..graph.spec import GraphSpec
from ..graph.untracked import Shelf
from ..graph.untracked import on as on_shelf
from ..moves.contract import START_NODE, Mode, RunKind, Start
from ..moves.promises import warn
from ..moves.record import Config, Form, Nodes, Writes, kind_of, start_of
from ..reading.shapes import Chunk, asked_modes, check_modes
from ..steps.branching import Travel, Wish, branch, forking, on, replaying, travel
from ..steps.commanding import SpecLore, commanding_at
from ..steps.loading import Loader
from ..steps.stateface import Given, StateFace, StateUpdate
from .calledgraph import Wanted, called, calling, spec_within
from .driver import Inline, Opening
from .editing import edited
from .savers import InMemorySaver, Saver, log_for_user


class Told(NamedTuple):
    """What a call says of its run."""

    before: Nodes
    after: Nodes
    strategy: Mode
    durability: str | None


class CompiledGraph(StateFace):
    """A graph that can be invoked. Made by `StateGraph.compile`."""

    def __init__(
        self,
        spec: GraphSpec,
        checkpointer: Saver | None = None,
        cache: Cache | None = None,
        keeps: bool | None = None,
    ) -> None:
        self.spec = spec
        self.cache = cache
        self.checkpointer = checkpointer
        self.keeps = keeps  # as a node of another graph: does its state last beyond a call? False: it is kept nowhere
        self._loader = Loader(checkpointer.log) if checkpointer is not None else None
        self._within: dict[str, tuple[GraphSpec, GraphSpec]] = {}  # by the versions of graphs whose nodes call it

    @property
    def name(self) -> str:
        return self.spec.name

    def within(self, parent: GraphSpec) -> GraphSpec:
        """The graph as a node of this one calls it."""
        found = self._within.get(parent.version)
        if found is None or found[0] is not parent:
            found = self._within[parent.version] = (parent, spec_within(self.spec, parent))
        return found[1]

    def named(self, name: str) -> CompiledGraph:
        """The same graph under another name, as a worker serves it under its attribute's."""
        return CompiledGraph(self.spec.named(name), self.checkpointer, self.cache, self.keeps)

    # running

    def invoke(
        self,
        input: Mapping[str, Any] | object | None,
        config: Mapping[str, Any] | None = None,
        *,
        context: Any = None,
        stream_mode: str | Sequence[str] = "values",
        run_id: str | None = None,
        interrupt_before: Nodes = None,
        interrupt_after: Nodes = None,
        subgraphs: bool = False,
        multitask_strategy: Mode = "enqueue",
        durability: str | None = None,
    ) -> Any:
        """Run to the end here; the output values, or all chunks if `stream_mode` is not "values".

        `input` None continues what rested, Command(resume=...) answers its question, Command(update=..., goto=...)
        changes the state there and adds nodes to run. A run that rests with questions gives its values with
        `__interrupt__`. `interrupt_before`, `interrupt_after`: nodes to stop at, "*" for all.
        With a `checkpoint_id` the run begins there, as a branch: None replays, an input is applied to that state, a
        Command without an answer changes it;
        ThreadBusy if a run is under way. `config`: {"configurable": {"thread_id": ...}, "recursion_limit": 10007,
        "max_concurrency": 16, "metadata": {...}, "tags": [...]}. A `run_id` makes it idempotent. `multitask_strategy`
        says what an input does on a busy thread: "enqueue" (it waits its turn), "reject" (ThreadBusy), "interrupt" (the
        run under way is stopped, what it finished stays, and this one begins at once), "rollback" (the same, but the
        thread is set back to where it was before that run). `durability`: what each step is promised, the run's
        beginning included: "commit" (it is stored before the next one begins), "fsync" (it is on disk; needs
        `appendfsync always`), "replicas=N" (N replicas have it); LangGraph's "sync", "async" and "exit" mean "commit".
        By default what `compile` says. What is written and not kept so is told by a DurabilityWarning.

        Raises what the node raised; GraphRecursionError, InvalidUpdateError, EmptyInputError, InvalidInput, ThreadBusy;
        RunCancelled if somebody stopped the run; ServerUnsuitable for a durability that the server can't keep.
        """
        told = Told(interrupt_before, interrupt_after, multitask_strategy, durability)
        run = self._invoked(input, config, context, stream_mode, run_id, told, subgraphs)
        with run.shelf:
            chunks = list(run.events(None))
            return run.output() if stream_mode == "values" else chunks

    async def ainvoke(
        self,
        input: Mapping[str, Any] | object | None,
        config: Mapping[str, Any] | None = None,
        *,
        context: Any = None,
        stream_mode: str | Sequence[str] = "values",
        run_id: str | None = None,
        interrupt_before: Nodes = None,
        interrupt_after: Nodes = None,
        subgraphs: bool = False,
        multitask_strategy: Mode = "enqueue",
        durability: str | None = None,
    ) -> Any:
        """`invoke` on an event loop: async nodes run on it, sync ones in threads."""
        told = Told(interrupt_before, interrupt_after, multitask_strategy, durability)
        run = self._invoked(input, config, context, stream_mode, run_id, told, subgraphs)
        with run.shelf:
            chunks = [chunk async for chunk in _on_loop(run)]
            return run.output() if stream_mode == "values" else chunks

    def stream(
        self,
        input: Mapping[str, Any] | object | None,
        config: Mapping[str, Any] | None = None,
        *,
        context: Any = None,
        stream_mode: str | Sequence[str] = "updates",
        run_id: str | None = None,
        interrupt_before: Nodes = None,
        interrupt_after: Nodes = None,
        subgraphs: bool = False,
        multitask_strategy: Mode = "enqueue",
        durability: str | None = None,
    ) -> Iterator[Any]:
        """Run here, chunk by chunk, in LangGraph's modes; in several at once as (mode, chunk).

        "values": the state after each step. "updates": {node: its update}. "checkpoints": each as `get_state` shows it.
        "tasks": what begins, what came of it. "debug": both, with step and time. "custom": what nodes write with
        `runtime.stream_writer`. "messages": (message or token, metadata). With `subgraphs` also what
        happens in graphs that are nodes or that functions call, each chunk with its namespace first: () is this graph,
        ("child:<task id>",) that in its node "child".
        """
        told = Told(interrupt_before, interrupt_after, multitask_strategy, durability)
        run = self._run(input, config, context, stream_mode, run_id, told, subgraphs=subgraphs)
        with run.shelf:
            yield from run.events(None)

    async def astream(
        self,
        input: Mapping[str, Any] | object | None,
        config: Mapping[str, Any] | None = None,
        *,
        context: Any = None,
        stream_mode: str | Sequence[str] = "updates",
        run_id: str | None = None,
        interrupt_before: Nodes = None,
        interrupt_after: Nodes = None,
        subgraphs: bool = False,
        multitask_strategy: Mode = "enqueue",
        durability: str | None = None,
    ) -> AsyncIterator[Any]:
        """`stream` on an event loop."""
        told = Told(interrupt_before, interrupt_after, multitask_strategy, durability)
        run = self._run(input, config, context, stream_mode, run_id, told, subgraphs=subgraphs)
        with run.shelf:
            async for chunk in _on_loop(run):
                yield chunk

    # state: what StateFace asks of an engine

    @property
    def _types(self) -> GraphSpec:
        return self.spec

    def _inner(self, spec: GraphSpec) -> CompiledGraph:
        return CompiledGraph(spec, self.checkpointer)

    @property
    def _log(self) -> Log:
        return log_for_user(self._saver())

    @property
    def _durability(self) -> str:
        return self.spec.durability if self.checkpointer is not None else COMMIT

    def _named(self) -> tuple[str, str]:
        return self.spec.name, self.spec.default_queue

    def _writes(self, node: str, values: Any, thread: str) -> Writes:
        if node not in (START, END):
            self.spec.node(node)
        return self.spec.node_writes(node, values)

    def _input(self, values: Any) -> tuple[Form, Writes]:
        return "typed", self.spec.input_writes(values)

    def _superstep(self, config: Given, updates: Sequence[StateUpdate], timeout: float | None) -> dict[str, Any]:
        with Shelf() as shelf:  # routers see what the update writes, also what is not stored
            return on_shelf(shelf, lambda: super(CompiledGraph, self)._superstep(config, updates, timeout))

    def _apply(self, start: Start, said: Config, timeout: float | None) -> int:
        run = Inline(
            self.spec, self._saver(), start.thread, start.run, None, said, "update", start.node, loader=self._loader,
            opening=lambda drive: drive.begin(start),
        )  # fmt: skip
        list(run.events(None))
        assert run.ended is not None, "an update that passed left a checkpoint"
        return run.ended.n

    def _branch(self, wish: Wish) -> tuple[int, str]:
        saver = self._saver()
        put = branch(self._log, saver.moves, wish)
        if wish.start.durability != COMMIT:
            warn(saver.promises.kept((wish.start.durability,)), f"thread {wish.thread!r}: checkpoint {put.n}")
        return put.n, put.digest

    def _edited(
        self, spec: GraphSpec, thread: str, config: Given, supersteps: Sequence[Sequence[StateUpdate]]
    ) -> dict[str, Any]:
        saver, inner = self._saver(), spec_within(spec, self.spec)
        made = edited(self._log, saver.moves, thread, lambda draft: CompiledGraph(inner, draft), config, supersteps)
        durability = Config.of(config).promised(self._durability).durability
        if durability != COMMIT:
            warn(saver.promises.kept((durability,)), f"thread {thread!r}")
        return made

    # cache

    def clear_cache(self, nodes: Sequence[str] | None = None) -> None:
        """Forget the outcomes that were kept of these nodes; None: of all. Nothing to do without a cache."""
        if self.cache is not None:
            self.cache.clear(self.name, nodes)

    async def aclear_cache(self, nodes: Sequence[str] | None = None) -> None:
        """`clear_cache` for an event loop."""
        await asyncio.to_thread(self.clear_cache, nodes)

    # drawing

    def get_graph(self, config: Mapping[str, Any] | None = None, *, xray: int | bool = False) -> Graph:
        """Its nodes and edges, to be looked at or drawn; with `xray` those of graphs that are nodes in their places, so
        many levels deep (True: all). `config` is taken as LangGraph's is, and changes nothing."""
        return self._graph.xray(xray)

    @property
    def _graph(self) -> Graph:
        return graph_of(self.spec)

    def draw_mermaid(self) -> str:
        """The graph as Mermaid text."""
        return self.get_graph().draw_mermaid()

    def draw_svg(self) -> str:
        """The graph as an SVG, drawn here."""
        return self.get_graph().draw_svg()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook shows: the SVG, without a network."""
        return self.get_graph()._repr_mimebundle_()  # pyright: ignore[reportPrivateUsage]

    # inside

    def _saver(self) -> Saver:
        if self.checkpointer is None:
            raise InvalidInput("the graph has no checkpointer", fix="compile(checkpointer=InMemorySaver())")
        return self.checkpointer

    def _thread(self, said: Config) -> str:
        if not said.has_thread:
            raise InvalidInput(
                "no thread_id", fix='pass config={"configurable": {"thread_id": "..."}}; the graph has a checkpointer'
            )
        return thread_id_text(said.thread_id)

    def _invoked(
        self,
        data: object,
        config: Mapping[str, Any] | None,
        context: Any,
        mode: str | Sequence[str],
        run_id: str | None,
        told: Told,
        subgraphs: bool,
    ) -> Inline:
        """A run whose output is wanted, or chunks that show the keys of the output, as in LangGraph's `invoke`."""
        keys = list(self.spec.output_schema.fields)
        modes = () if mode == "values" else mode
        return self._run(data, config, context, modes, run_id, told, keys, subgraphs=subgraphs)

    def _run(
        self,
        data: object,
        config: Mapping[str, Any] | None,
        context: Any,
        mode: str | Sequence[str],
        run_id: str | None,
        told: Told,
        keys: Sequence[str] | None = None,
        *,
        subgraphs: bool = False,
    ) -> Inline:
        live = asked_modes(check_modes(mode))
        said = Config.of(
            config, context=context, interrupt_before=told.before, interrupt_after=told.after, live=live,
            subgraphs=subgraphs, multitask_strategy=told.strategy, durability=told.durability,
        )  # fmt: skip
        attempt = calling(said)
        if attempt is not None:
            _check_called(said)
            return called(self, attempt, Wanted(data, said, config, mode, keys, run_id or new_id(), subgraphs))
        if self.keeps:
            raise InvalidInput(
                "a graph with checkpointer=True is kept by the graph that it is a node of, or whose node calls it",
                fix="add_node() it there, call it in a node, or compile(checkpointer=InMemorySaver())",
            )
        said = said.promised(self._durability)
        saver = self.checkpointer or InMemorySaver()
        thread = self._thread(said) if self.checkpointer is not None else new_id()
        run = run_id or new_id()
        shelf, kind, opening = Shelf(), None, None
        if self.checkpointer is not None:
            kind, opening = on_shelf(shelf, lambda: self._travel(data, said, thread, run))
        kind = kind or kind_of(data)
        if self.checkpointer is not None and kind == "input":
            begun_thread_text(thread)
        return Inline(
            self.spec, saver, thread, run, data, said, kind, START_NODE, mode, self._loader, opening,
            keys=keys, checkpoints=self.checkpointer is not None, cache=self.cache, nested=subgraphs,
            shelf=shelf,
        )  # fmt: skip

    def _travel(self, data: object, said: Config, thread: str, run: str) -> tuple[RunKind | None, Opening | None]:
        """How a run begins that a `checkpoint_id` sends back; None, None if it begins as usual."""
        if not said.checkpoint_id:
            return None, None
        going = travel(self._log, thread, said.checkpoint_id, data)
        if going.how == "replay":
            record = said.record("fork")
            start = forking(self._log, thread, going.at, record, run, *self._named(), self.spec.codec)
            wish = replaying(self._log, thread, start, going.at, self.spec, again=going.again)
            return "fork", lambda drive: drive.branch(wish)
        if going.how == "command":
            changed = self._commanded(data, said, thread, run, going)
            return "fork", lambda drive: drive.branch(changed)
        if going.how == "input":
            start = start_of(self.spec, thread, run, data, said, "input", on=on(going.at))
            return "input", lambda drive: drive.begin(start)
        return None, None

    def _commanded(self, command: Any, said: Config, thread: str, run: str, going: Travel) -> Wish:
        lore, codec, again = SpecLore(self.spec), self.spec.codec, going.again
        return commanding_at(self._log, thread, run, command, said, lore, going.at, self.spec, codec=codec, again=again)


def _check_called(said: Config) -> None:
    """A run that a node calls is kept as the caller's. Raises InvalidInput."""
    if said.durability not in ("", COMMIT):
        raise InvalidInput(
            f"durability {said.durability!r} was asked for in a node",
            fix="ask for it where the outermost graph is invoked",
        )


def run_in_memory(graph: GraphSpec, state: Any, config: Mapping[str, Any]) -> Any:
    """One run of a graph within an attempt of another one's, kept nowhere; its output."""
    known = graph.input_schema.fields
    said = as_dict(state)
    said = updates_of(state) if said is None else said
    given = state if said is None else {name: value for name, value in said.items() if name in known}
    return CompiledGraph(graph, keeps=False).invoke(given, config)


async def _on_loop(run: Inline) -> AsyncIterator[Chunk]:
    """Drive a run in a thread of its own, and hand its chunks to this loop. Who leaves early ends the drive."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[tuple[Chunk] | None] = asyncio.Queue()

    def drive() -> None:
        try:
            for chunk in run.events(loop):
                loop.call_soon_threadsafe(chunks.put_nowait, (chunk,))
        finally:
            loop.call_soon_threadsafe(chunks.put_nowait, None)

    driving = asyncio.ensure_future(asyncio.to_thread(drive))
    try:
        while (item := await chunks.get()) is not None:
            yield item[0]
        await driving
    finally:
        if not driving.done():
            driving.add_done_callback(lambda task: task.cancelled() or task.exception())
            run.leave()
