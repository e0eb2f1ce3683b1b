"""RemoteGraph: LangGraph's methods for a graph whose nodes run on the workers.

    graph = connect(url).graph("counter")        graph.invoke({"count": 0}, {"configurable": {"thread_id": "demo"}})

Results are plain data, or typed if the compiled graph was given. Whoever waits here may die: the run goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everstep_checkpoint.codec import PLAIN
from everstep_checkpoint.errors import EmptyInputError, InvalidThreadId
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import thread_id_text
from everstep_checkpoint.log import Log

from ..graph.drawing.picture import Graph, graph_of
from ..graph.runtime import END, START
from ..moves.connection import translated
from ..moves.contract import Mode, Start
from ..moves.record import Config, Form, Nodes, Writes, check_run_id, commands, kind_of
from ..moves.translatedlog import for_user
from ..reading.branches import nesting
from ..reading.chunks import LogStream
from ..reading.nested import shaped
from ..reading.shapes import Chunk, Reading, asked_modes, check_modes
from ..reading.standing import standing
from ..steps.branching import Wish, forking, on, replaying, travel
from ..steps.caches import RedisCache
from ..steps.commanding import Lore, SpecLore, commanding_at
from ..steps.stateface import StateFace, StateUpdate
from .intake import ManifestLore, node_of, take, take_update
from .manifest import Manifest
from .runhandle import Run
from .waiting import may_wait

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec
    from .client import Client

Given = Mapping[str, Any] | None


class RemoteGraph(StateFace):
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
        """Its nodes and edges, to be looked at or drawn; with `xray` those of graphs that are nodes in their places, so
        many levels deep (True: all). `config` is taken as LangGraph's is, and changes nothing. Raises UnknownGraph."""
        return self._graph.xray(xray)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook shows: the SVG, drawn here."""
        return self.get_graph()._repr_mimebundle_()  # pyright: ignore[reportPrivateUsage]

    @property
    def _graph(self) -> Graph:
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
        multitask_strategy: Mode = "enqueue",
        timeout: float | None = None,
        subgraphs: bool = False,
        durability: str | None = None,
    ) -> Any:
        """Run to the end on the workers; the output values, or all chunks if `stream_mode` is not "values".

        `input` None continues what rested, Command(resume=...) answers its question, Command(update=..., goto=...)
        changes the state there and adds nodes to run; a run that rests with questions gives its values with
        `__interrupt__`. With a `checkpoint_id` the run begins there, as a branch: None replays, a Command changes it,
        an input is applied to that state; ThreadBusy if a run is under way. Without a thread_id the thread's id is the
        run's. `timeout`: seconds. `multitask_strategy`: what an input does on a busy thread, `durability`: what each
        step is promised, both as in `Client.submit`.

        Raises RunFailed, which is also what the node raised where that is known (`Client.register_errors`);
        NodeTimeoutError, GraphRecursionError, RunCancelled, InvalidInput, TimeoutError.
        """
        modes = check_modes(stream_mode)
        said = Config.of(
            config, context=context, interrupt_before=interrupt_before, interrupt_after=interrupt_after,
            live=asked_modes(modes), subgraphs=subgraphs, multitask_strategy=multitask_strategy, durability=durability,
        )  # fmt: skip
        if stream_mode != "values":
            outputs = self._reading().outputs
            return list(self._chunks(input, config, said, stream_mode, run_id, timeout, outputs, subgraphs))
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
        multitask_strategy: Mode = "enqueue",
        timeout: float | None = None,
        subgraphs: bool = False,
        durability: str | None = None,
    ) -> Iterator[Chunk]:
        """The run chunk by chunk, in LangGraph's modes; in several at once as (mode, chunk).

        "values": the state after each step. "updates": {node: its update}. "checkpoints": each as `get_state` shows it.
        "tasks": what begins, what came of it. "debug": both, with step and time. "custom": what nodes write with
        `runtime.stream_writer`. "messages": (message or token, metadata). With `subgraphs` also what
        happens in graphs that are nodes or that functions call, each chunk with its namespace first: () is this graph,
        ("child:<task id>",) that in its node "child".

        Raises as `Run.chunks` does.
        """
        said = Config.of(
            config, context=context, interrupt_before=interrupt_before, interrupt_after=interrupt_after,
            live=asked_modes(check_modes(stream_mode)), subgraphs=subgraphs, multitask_strategy=multitask_strategy,
            durability=durability,
        )  # fmt: skip
        yield from self._chunks(input, config, said, stream_mode, run_id, timeout, None, subgraphs)

    def _chunks(
        self,
        input: object,
        config: Given,
        said: Config,
        mode: str | Sequence[str],
        run_id: str | None,
        timeout: float | None,
        keys: Sequence[str] | None,
        subgraphs: bool,
    ) -> Iterator[Chunk]:
        run = self._begin(input, config, said, run_id)
        if run is not None:
            yield from run.chunks(mode, timeout, keys=keys, subgraphs=subgraphs)
            return
        thread, log = thread_id_text(said.thread_id), self.client.log_store
        stream = LogStream(log, thread, "", "", self._reading(), check_modes(mode), keys=keys)
        with translated(self.client.url):
            told = nesting(stream) if subgraphs else stream
            yield from shaped(told.asking(), nested=subgraphs, tagged=not isinstance(mode, str))

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
        may_wait(f"the graph {self.name!r}")  # before anything is begun
        said = said.promised(self._durability)
        _check_thread(config)
        if said.checkpoint_id and said.has_thread:
            return self._travel(input, said, run_id)
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
                if commands(command):
                    return self.client.command(thread, self._lore(), command, said, run_id, self._reading())
                return self.client.answer(thread, self.name, queue, command.resume, said, run_id, self._reading())
            return self.client.proceed(thread, self.name, queue, said, run_id, self._reading())
        except EmptyInputError:
            if self._log.head(thread) is None:
                raise
            return None

    def _travel(self, input: object, said: Config, run_id: str | None) -> Run | None:
        """A run that begins at the checkpoint that the config names."""
        thread = self._thread(said)
        with translated(self.client.url):
            going = travel(self._log, thread, said.checkpoint_id, input)
        if going.how == "plain":
            return self._begin(input, None, replace(said, checkpoint_id=""), run_id)
        if going.how == "input":
            return self.client.begin(self.name, input, said, run_id=run_id, spec=self.spec, on=on(going.at))
        run = check_run_id(run_id or said.run_id or new_id())
        codec = self.spec.codec if self.spec is not None else PLAIN
        if going.how == "command":
            command: Any = input
            wish = commanding_at(
                self._log, thread, run, command, said, self._lore(), going.at, self.spec, codec=self._reading().codec,
                again=going.again,
            )  # fmt: skip
        else:
            start = forking(self._log, thread, going.at, said.record("fork"), run, *self._named(), codec)
            wish = replaying(self._log, thread, start, going.at, self.spec, again=going.again)
        put = self.client.branched(wish)
        return Run(self.client, thread, run, put.started.entry, self._reading(), wish.start.durability)

    def _lore(self) -> Lore:
        return SpecLore(self.spec) if self.spec is not None else ManifestLore(self.manifest)

    def _values(self, said: Config) -> Any:
        """The output values as the thread has them, and its questions."""
        return standing(self._log, thread_id_text(said.thread_id), self._reading())

    def _reading(self) -> Reading:
        return Reading(self.spec) if self.spec is not None else self.manifest.reading

    # cache

    def clear_cache(self, nodes: Sequence[str] | None = None) -> None:
        """Forget the outcomes that workers kept of these nodes; None: of all. Raises ServerError."""
        with translated(self.client.url):
            RedisCache(self.client.redis, keys=self.client.keys).clear(self.name, nodes)

    async def aclear_cache(self, nodes: Sequence[str] | None = None) -> None:
        """`clear_cache` for an event loop."""
        await asyncio.to_thread(self.clear_cache, nodes)

    # state: what StateFace asks of an engine

    @property
    def _types(self) -> GraphSpec | None:
        return self.spec

    def _inner(self, spec: GraphSpec) -> RemoteGraph:
        return RemoteGraph(self.client, spec.name, spec)

    @property
    def _log(self) -> Log:
        return for_user(self.client.log_store, self.client.url)

    def _thread(self, said: Config) -> str:
        if not said.has_thread:
            raise InvalidThreadId("no thread_id", fix='pass config={"configurable": {"thread_id": "..."}}')
        return thread_id_text(said.thread_id)

    @property
    def _durability(self) -> str:
        return self.spec.durability if self.spec is not None else self.manifest.durability

    def _named(self) -> tuple[str, str]:
        if self.spec is not None:
            return self.spec.name, self.spec.default_queue
        return self.manifest.name, self.manifest.queue

    def _writes(self, node: str, values: Any, thread: str) -> Writes:
        if self.spec is None:
            return take_update(self.manifest, values) if node_of(self.manifest, node, thread) else ()
        if node not in (START, END):
            self.spec.node(node)
        return self.spec.node_writes(node, values)

    def _input(self, values: Any) -> tuple[Form, Writes]:
        return (
            ("typed", self.spec.input_writes(values))
            if self.spec is not None
            else take(self.manifest, self.manifest.keyed(values))
        )

    def _apply(self, start: Start, said: Config, timeout: float | None) -> int:
        return self.client.started(start, self._reading()).settled(timeout).n

    def _branch(self, wish: Wish) -> tuple[int, str]:
        put = self.client.branched(wish)
        return put.n, put.digest

    def _edited(
        self, spec: GraphSpec, thread: str, config: Mapping[str, Any], supersteps: Sequence[Sequence[StateUpdate]]
    ) -> dict[str, Any]:
        from ..inline.calledgraph import spec_within  # only who edits in here needs the engine
        from ..inline.compiled import CompiledGraph
        from ..inline.editing import edited

        client, inner = self.client, spec if self.spec is None else spec_within(spec, self.spec)
        made = edited(self._log, client.moves, thread, lambda draft: CompiledGraph(inner, draft), config, supersteps)
        client.confirm(Config.of(config).promised(self._durability).durability, thread, "an update")
        return made


def _check_thread(config: Given) -> None:
    """A thread_id that was given and is None is a mistake, not a wish for a new thread."""
    configurable: Any = (config or {}).get("configurable") or {}
    if "thread_id" in configurable and configurable["thread_id"] is None:
        thread_id_text(None)
