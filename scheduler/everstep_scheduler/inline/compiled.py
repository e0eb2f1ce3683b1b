"""A compiled graph: LangGraph's methods around the inline driver.

invoke / stream     the caller drives; async nodes run on a loop of their own
ainvoke / astream   a thread drives; async nodes run on the caller's loop
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from everstep_checkpoint.entries import checkpoint_id
from everstep_checkpoint.errors import InvalidInput
from everstep_checkpoint.keys import thread_id_text
from everstep_checkpoint.log import new_id

from ..graph.drawing.picture import Graph, graph_of
from ..graph.runtime import START
from ..graph.spec import GraphSpec
from ..moves.contract import START_NODE
from ..moves.record import Config, Nodes, kind_of
from ..reading.snapshot import StateSnapshot, last_writer, snapshot, snapshots
from ..steps.loading import Loader
from ..steps.streaming import Chunk
from .driver import Inline
from .savers import InMemorySaver, Saver


class CompiledGraph:
    """A graph that can be invoked. Made by `StateGraph.compile`."""

    def __init__(self, spec: GraphSpec, checkpointer: Saver | None = None) -> None:
        self.spec = spec
        self.checkpointer = checkpointer
        self._loader = Loader(checkpointer.log) if checkpointer is not None else None

    @property
    def name(self) -> str:
        return self.spec.name

    def named(self, name: str) -> CompiledGraph:
        """The same graph under another name, as a worker serves it under its attribute's."""
        return CompiledGraph(self.spec.named(name), self.checkpointer)

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
    ) -> Any:
        """Run to the end here; the output values, or all chunks if `stream_mode` is not "values".

        `input` None continues what rested, Command(resume=...) answers its question. A run that rests with questions
        gives its values with `__interrupt__`. `interrupt_before`, `interrupt_after`: nodes to stop at, "*" for all.
        `config`: {"configurable": {"thread_id": ...}, "recursion_limit": 10007,
        "max_concurrency": 16, "metadata": {...}, "tags": [...]}. A `run_id` makes it idempotent.

        Raises what the node raised; GraphRecursionError, InvalidUpdateError, EmptyInputError, InvalidInput.
        """
        run = self._run(input, config, context, stream_mode, run_id, (interrupt_before, interrupt_after))
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
    ) -> Any:
        """`invoke` on an event loop: async nodes run on it, sync ones in threads."""
        run = self._run(input, config, context, stream_mode, run_id, (interrupt_before, interrupt_after))
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
    ) -> Iterator[Any]:
        """Run here, chunk by chunk: "values" (the state after each step), "updates" ({node: its update}), or a list of
        both, then as (mode, chunk)."""
        yield from self._run(input, config, context, stream_mode, run_id, (interrupt_before, interrupt_after)).events(
            None
        )

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
    ) -> AsyncIterator[Any]:
        """`stream` on an event loop."""
        async for chunk in _on_loop(
            self._run(input, config, context, stream_mode, run_id, (interrupt_before, interrupt_after))
        ):
            yield chunk

    # state

    def get_state(self, config: Mapping[str, Any]) -> StateSnapshot:
        """The thread as it stands, or at `checkpoint_id`. An unknown thread has an empty state."""
        said = Config.of(config)
        return snapshot(self._saver().log, self._thread(said), said.checkpoint_id or None, spec=self.spec)

    def get_state_history(self, config: Mapping[str, Any], *, limit: int | None = None) -> Iterator[StateSnapshot]:
        """The checkpoints of a thread, newest first."""
        said = Config.of(config)
        return snapshots(self._saver().log, self._thread(said), spec=self.spec, limit=limit)

    def update_state(
        self, config: Mapping[str, Any], values: Mapping[str, Any] | None, as_node: str | None = None
    ) -> dict[str, Any]:
        """Write to the state as if `as_node` had returned `values`; its edges and routers say what comes next.

        Without `as_node`: the node that wrote last, where that is one. Returns the new checkpoint's config.
        """
        said = Config.of(config)
        thread = self._thread(said)
        node = as_node or last_writer(self._saver().log, thread, tuple(self.spec.nodes))
        if node != START:
            self.spec.node(node)
        saver = self._saver()
        run = Inline(self.spec, saver, thread, new_id(), dict(values or {}), said, "update", node, loader=self._loader)
        list(run.events(None))
        head = saver.log.head(thread)
        assert head is not None, "an update that passed left a checkpoint"
        place = {"thread_id": thread, "checkpoint_ns": "", "checkpoint_id": checkpoint_id(head.n, head.digest)}
        return {"configurable": place}

    # drawing

    def get_graph(self, config: Mapping[str, Any] | None = None, *, xray: int | bool = False) -> Graph:
        """Its nodes and edges, to be looked at or drawn. `config` and `xray` are taken as LangGraph's are, and change
        nothing: a graph here has no subgraphs."""
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

    def _run(
        self,
        data: object,
        config: Mapping[str, Any] | None,
        context: Any,
        mode: str | Sequence[str],
        run_id: str | None,
        stops: tuple[Nodes, Nodes],
    ) -> Inline:
        said = Config.of(config, context=context, interrupt_before=stops[0], interrupt_after=stops[1])
        saver = self.checkpointer or InMemorySaver()
        thread = self._thread(said) if self.checkpointer is not None else new_id()
        kind = kind_of(data)
        return Inline(self.spec, saver, thread, run_id or new_id(), data, said, kind, START_NODE, mode, self._loader)


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
