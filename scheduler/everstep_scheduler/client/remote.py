"""RemoteGraph: LangGraph's methods for a graph whose nodes run on the workers.

    graph = connect(url).graph("counter")        graph.invoke({"count": 0}, {"configurable": {"thread_id": "demo"}})

Results are plain data, or typed if the compiled graph was given. Whoever waits here may die: the run goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everstep_checkpoint.entries import checkpoint_id
from everstep_checkpoint.errors import EmptyInputError, InvalidThreadId
from everstep_checkpoint.keys import thread_id_text
from everstep_checkpoint.log import new_id

from ..graph.drawing.picture import Graph, graph_of
from ..graph.runtime import START
from ..moves.connection import translated
from ..moves.record import Config, Nodes, kind_of, start_of, start_with
from ..reading.snapshot import StateSnapshot, last_writer, snapshot, snapshots
from .following import Chunk, Reading, standing
from .intake import node_of, take_update
from .manifest import Manifest
from .runhandle import Run

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec
    from .client import Client

Given = Mapping[str, Any] | None


class RemoteGraph:
    """A graph by its name. Made by `Client.graph`."""

    def __init__(self, client: Client, name: str, spec: GraphSpec | None = None) -> None:
        self.client = client
        self.name = name
        self.spec = spec

    @property
    def manifest(self) -> Manifest:
        """What the graph says of itself. Raises UnknownGraph."""
        return self.client.manifest(self.name)

    def get_graph(self, config: Given = None, *, xray: int | bool = False) -> Graph:
        """Its nodes and edges, to be looked at or drawn. Raises UnknownGraph."""
        return graph_of(self.spec) if self.spec is not None else self.manifest.get_graph()

    # running

    def invoke(
        self,
        input: object,
        config: Given = None,
        *,
        context: Any = None,
        stream_mode: str | Sequence[str] = "values",
        run_id: str | None = None,
        interrupt_before: Nodes = None,
        interrupt_after: Nodes = None,
        timeout: float | None = None,
    ) -> Any:
        """Run to the end on the workers; the output values, or all chunks if `stream_mode` is not "values".

        `input` None continues what rested, Command(resume=...) answers its question; a run that rests with questions
        gives its values with `__interrupt__`. Without a thread_id the thread's id is the run's. `timeout`: seconds.

        Raises RunFailed, NodeTimeoutError, GraphRecursionError, RunCancelled, InvalidInput, TimeoutError.
        """
        if stream_mode != "values":
            return list(
                self.stream(
                    input, config, context=context, stream_mode=stream_mode, run_id=run_id, timeout=timeout,
                    interrupt_before=interrupt_before, interrupt_after=interrupt_after,
                )
            )  # fmt: skip
        said = Config.of(config, context=context, interrupt_before=interrupt_before, interrupt_after=interrupt_after)
        run = self._begin(input, config, said, run_id)
        return self._values(said) if run is None else run.result(timeout)

    def stream(
        self,
        input: object,
        config: Given = None,
        *,
        context: Any = None,
        stream_mode: str | Sequence[str] = "updates",
        run_id: str | None = None,
        interrupt_before: Nodes = None,
        interrupt_after: Nodes = None,
        timeout: float | None = None,
    ) -> Iterator[Chunk]:
        """The run chunk by chunk: "values", "updates", or a list of both, then as (mode, chunk)."""
        said = Config.of(config, context=context, interrupt_before=interrupt_before, interrupt_after=interrupt_after)
        run = self._begin(input, config, said, run_id)
        if run is not None:
            yield from run.chunks(stream_mode, timeout)

    async def ainvoke(self, input: object, config: Given = None, **more: Any) -> Any:
        """`invoke` for an event loop; it waits in a thread of its own."""
        return await asyncio.to_thread(self.invoke, input, config, **more)

    async def astream(self, input: object, config: Given = None, **more: Any) -> AsyncIterator[Chunk]:
        """`stream` for an event loop. Leaving it early ends the watching, not the run."""
        loop, chunks, left = asyncio.get_running_loop(), asyncio.Queue[tuple[Chunk] | None](), threading.Event()

        def watch() -> None:
            try:
                for chunk in self.stream(input, config, **more):
                    if left.is_set():
                        return
                    loop.call_soon_threadsafe(chunks.put_nowait, (chunk,))
            finally:
                if not left.is_set():
                    loop.call_soon_threadsafe(chunks.put_nowait, None)

        watching = asyncio.ensure_future(asyncio.to_thread(watch))
        try:
            while (item := await chunks.get()) is not None:
                yield item[0]
            await watching
        finally:
            left.set()

    def _begin(self, input: object, config: Given, said: Config, run_id: str | None) -> Run | None:
        """The run for an input, or one that continues; None if there is nothing to continue on a known thread."""
        _check_thread(config)
        kind = kind_of(input)
        if kind == "input":
            return self.client.begin(self.name, input, said, run_id=run_id, spec=self.spec)
        if not said.has_thread:
            raise EmptyInputError("no input, and no thread to continue", fix="pass an input, or a thread_id")
        thread = thread_id_text(said.thread_id)
        queue = self.spec.default_queue if self.spec is not None else self.manifest.queue
        try:
            if kind == "resume":
                command: Any = input
                return self.client.answer(thread, self.name, queue, command.resume, said, run_id, self._reading())
            return self.client.proceed(thread, self.name, queue, said, run_id, self._reading())
        except EmptyInputError:
            if self.client.log_store.head(thread) is None:
                raise
            return None

    def _values(self, said: Config) -> dict[str, Any]:
        """The output values as the thread has them, and its questions."""
        return standing(self.client.log_store, thread_id_text(said.thread_id), self._reading())

    def _reading(self) -> Reading:
        return Reading(self.spec) if self.spec is not None else Reading(None, self.manifest.outputs)

    # state

    def get_state(self, config: Mapping[str, Any]) -> StateSnapshot:
        """The thread as it stands, or at `checkpoint_id`. An unknown thread has an empty state."""
        said = Config.of(config)
        with translated(self.client.url):
            return snapshot(self.client.log_store, _thread(said), said.checkpoint_id or None, spec=self.spec)

    def get_state_history(self, config: Mapping[str, Any], *, limit: int | None = None) -> Iterator[StateSnapshot]:
        """The checkpoints of a thread, newest first."""
        return snapshots(self.client.log_store, _thread(Config.of(config)), limit, spec=self.spec)

    def update_state(
        self,
        config: Mapping[str, Any],
        values: Mapping[str, Any] | None,
        as_node: str | None = None,
        *,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Write to the state as if `as_node` had returned `values`; a worker applies it, for it has the reducers.

        Without `as_node`: the node that wrote last, where that is one. Returns the new checkpoint's config. On a busy
        thread it waits its turn. Raises InvalidUpdateError, InvalidInput, RunFailed, TimeoutError.
        """
        said = Config.of(config)
        thread, log = _thread(said), self.client.log_store
        nodes = list(self.spec.nodes) if self.spec is not None else list(self.manifest.nodes)
        node = as_node or last_writer(log, thread, nodes)
        run = said.run_id or new_id()
        if self.spec is not None:
            node = node if node == START else self.spec.node(node).name
            start = start_of(self.spec, thread, run, dict(values or {}), said, "update", node)
        else:
            known = self.manifest
            start = start_with(
                said.record("update"), take_update(known, values), thread=thread, run=run, graph=known.name,
                queue=known.queue, task="update", node=node_of(known, node, thread),
            )  # fmt: skip
        running = self.client.started(start, self._reading())
        ended = running.settled(timeout)
        entry = log.read(thread, f"{ended.n}-0", f"{ended.n}-0")[0]
        place = {"thread_id": thread, "checkpoint_ns": "", "checkpoint_id": checkpoint_id(entry.n, entry.digest)}
        return {"configurable": place}


def _check_thread(config: Given) -> None:
    """A thread_id that was given and is None is a mistake, not a wish for a new thread."""
    configurable: Any = (config or {}).get("configurable") or {}
    if "thread_id" in configurable and configurable["thread_id"] is None:
        thread_id_text(None)


def _thread(said: Config) -> str:
    if not said.has_thread:
        raise InvalidThreadId("no thread_id", fix='pass config={"configurable": {"thread_id": "..."}}')
    return thread_id_text(said.thread_id)
