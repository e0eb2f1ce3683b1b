"""A compiled graph that runs where it is called: the inline driver, and LangGraph's methods around it.

invoke / stream ──► Inline.events() ──► start ─► [load ─► call ─► settle ─► commit]* ─► rest
ainvoke / astream ─► the same in a thread; async nodes run on the caller's loop
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from everstep_checkpoint.entries import checkpoint_id
from everstep_checkpoint.errors import (
    EmptyInputError,
    GraphRecursionError,
    InvalidInput,
    InvalidUpdateError,
    RunCancelled,
    RunConflict,
    RunFailed,
    ThreadBusy,
)
from everstep_checkpoint.keys import thread_id_text
from everstep_checkpoint.log import new_id
from everstep_checkpoint.replay import state_at

from .compiled import GraphSpec
from .connection import patiently
from .draw import mermaid, svg
from .ending import Ending, ending
from .loading import Loader
from .moves import START_NODE, Answer, Commit, Lease, Offer, RunKind, Started
from .perform import Attempt, Performer, Result, Unserved
from .record import Config, start_of
from .runtime import START
from .savers import InMemorySaver, Saver
from .snapshot import StateSnapshot, last_writer, snapshot, snapshots
from .streaming import Chunk, Streams

PARALLEL_MAX = 16
POLL_S = 0.05
POLL_MAX_S = 1.0
PATIENCE_S = 60.0
T = TypeVar("T")


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
    ) -> Any:
        """Run to the end here; the output values, or all chunks if `stream_mode` is not "values".

        `input` None continues what rested. `config`: {"configurable": {"thread_id": ...}, "recursion_limit": 10007,
        "max_concurrency": 16, "metadata": {...}, "tags": [...]}. A `run_id` makes it idempotent.

        Raises what the node raised; GraphRecursionError, InvalidUpdateError, EmptyInputError, InvalidInput.
        """
        run = self._run(input, config, context, stream_mode, run_id)
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
    ) -> Any:
        """`invoke` on an event loop: async nodes run on it, sync ones in threads."""
        run = self._run(input, config, context, stream_mode, run_id)
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
    ) -> Iterator[Any]:
        """Run here, chunk by chunk: "values" (the state after each step), "updates" ({node: its update}), or a list of
        both, then as (mode, chunk)."""
        yield from self._run(input, config, context, stream_mode, run_id).events(None)

    async def astream(
        self,
        input: Mapping[str, Any] | object | None,
        config: Mapping[str, Any] | None = None,
        *,
        context: Any = None,
        stream_mode: str | Sequence[str] = "updates",
        run_id: str | None = None,
    ) -> AsyncIterator[Any]:
        """`stream` on an event loop."""
        async for chunk in _on_loop(self._run(input, config, context, stream_mode, run_id)):
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

    def draw_mermaid(self) -> str:
        """The graph as Mermaid text."""
        return mermaid(self.spec)

    def draw_svg(self) -> str:
        """The graph as an SVG, drawn here."""
        return svg(self.spec)

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
    ) -> Inline:
        said = Config.of(config, context=context)
        saver = self.checkpointer or InMemorySaver()
        thread = self._thread(said) if self.checkpointer is not None else new_id()
        kind: RunKind = "continue" if data is None else "input"
        return Inline(self.spec, saver, thread, run_id or new_id(), data, said, kind, START_NODE, mode, self._loader)


@dataclass
class _Job:
    attempt: Attempt
    future: Future[Result]
    deadline: float


class Inline:
    """One run, driven by its caller. Use `events()` once, then `output()`."""

    def __init__(
        self,
        spec: GraphSpec,
        saver: Saver,
        thread: str,
        run: str,
        data: object,
        config: Config,
        kind: RunKind,
        node: str,
        mode: str | Sequence[str] | None = None,
        loader: Loader | None = None,
    ) -> None:
        self.spec, self.saver, self.thread, self.run = spec, saver, thread, run
        self.data, self.config, self.node = data, config, node
        self.kind: RunKind = kind
        self.owner = saver.owner
        self.performer = Performer(saver.moves, saver.log, {spec.name: spec}, by=self.owner, loader=loader)
        self.streams = Streams(spec, mode)
        self.parallel = config.max_concurrency or PARALLEL_MAX
        self.raised: BaseException | None = None
        self.ended: Ending | None = None
        self.keeper = saver.keeper
        self._pool: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own_loop = False
        self._jobs: list[_Job] = []
        self._ready: deque[Lease] = deque()

    # the drive

    def events(self, loop: asyncio.AbstractEventLoop | None) -> Iterator[Chunk]:
        """Run to the rest, giving stream chunks. Async nodes run on `loop`, else on one of our own."""
        self._loop = loop
        try:
            started = self._start()
            if started.status == "nothing":
                self._nothing()
                return
            if self.kind == "continue":
                yield from self.streams.before(self.output())
            self._ready.extend(started.leases)
            yield from self._drive(started)
        finally:
            self._close()
        self._raise()

    def _start(self) -> Started:
        start = start_of(self.spec, self.thread, self.run, self.data, self.config, self.kind, self.node)
        started = self.saver.moves.start(start, self._offer(1))
        self._held(started.leases)
        if started.status == "conflict":
            raise RunConflict(
                f"run {self.run!r} was used with another input", thread=self.thread, fix="give a new run_id"
            )
        if started.status == "busy":
            raise ThreadBusy("a run is under way on the thread", thread=self.thread, fix="wait for it, or cancel it")
        return started

    def _nothing(self) -> None:
        """`invoke(None)` on a thread that has nothing to continue: its values as they are."""
        if self.saver.log.head(self.thread) is None:
            raise EmptyInputError(
                "no input, and nothing on the thread to continue", thread=self.thread, fix="pass an input"
            )

    def _drive(self, started: Started) -> Iterator[Chunk]:
        since, poll = started.entry or "-", POLL_S
        while True:
            while self._ready and len(self._jobs) < self.parallel:
                self._launch(self._ready.popleft())
            if self._jobs:
                for job in self._finished():
                    yield from self._settle(job)
                poll = POLL_S
                if self.ended is None:
                    continue
            if self.ended is None:
                self.ended = ending(self.saver.log, self.thread, self.run, since)
            if self.ended is not None:
                return
            self._ready.extend(self._claim())
            if not self._ready:
                self._idle(poll)
                poll = min(poll * 1.5, POLL_MAX_S)

    def _claim(self) -> Sequence[Lease]:
        """Work of this thread that nobody has: a retry that came due, or another run's, which ours waits for."""
        answer = self.saver.moves.claim(self._offer(self.parallel))
        self._held(answer.leases)
        return answer.leases

    def _idle(self, poll: float) -> None:
        due_in = getattr(self.saver.moves, "due_in", None)
        due = due_in(self.thread) if due_in is not None else None
        time.sleep(poll if due is None else min(due, POLL_MAX_S))

    def _offer(self, slots: int) -> Offer:
        tokens = tuple(new_id() for _ in range(max(slots, 1)))
        return Offer(
            self.owner, tokens, round=self.keeper.round if self.keeper else 0, lease_ms=self.saver.lease_ms, thread=self.thread
        )

    def _held(self, leases: Sequence[Lease]) -> None:
        if self.keeper is not None and leases:
            self.keeper.hold(leases)

    # one attempt

    def _launch(self, lease: Lease) -> None:
        try:
            attempt = self.performer.load(lease)
        except Unserved as error:
            self.saver.moves.release(self.owner, [lease.token], "parked", error.reason)
            return
        deadline = time.monotonic() + attempt.timeout_s if attempt.timeout_s else float("inf")
        self._jobs.append(_Job(attempt, self._future(attempt), deadline))

    def _future(self, attempt: Attempt) -> Future[Result]:
        """Alone and without a timeout it runs right here; else beside others."""
        if attempt.is_async:
            return asyncio.run_coroutine_threadsafe(attempt.acall(), self._event_loop())
        if not self._ready and not self._jobs and not attempt.timeout_s:
            done: Future[Result] = Future()
            done.set_result(attempt.call())
            return done
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.parallel, thread_name_prefix="everstep-node")
        return self._pool.submit(attempt.call)

    def _finished(self) -> list[_Job]:
        """Wait until something is over, or over its time. A late sync node's thread is left to end by itself."""
        first = min(job.deadline for job in self._jobs)
        wait(
            [job.future for job in self._jobs],
            max(first - time.monotonic(), 0) if first < float("inf") else None,
            FIRST_COMPLETED,
        )
        now = time.monotonic()
        over = [job for job in self._jobs if job.future.done() or (now >= job.deadline and not job.attempt.is_async)]
        self._jobs = [job for job in self._jobs if job not in over]
        return over

    def _settle(self, job: _Job) -> Iterator[Chunk]:
        result = job.future.result() if job.future.done() else Result.timeout(job.attempt)
        commit = self._insist(lambda: self.performer.settle(job.attempt, result))
        if commit.outcome in ("failed", "unplanned"):
            self.raised = result.error or _unplanned(commit)
        offer = self._offer(self.parallel - len(self._jobs) - len(self._ready))
        answer = self._insist(lambda: self.saver.moves.commit([(commit, offer)]))[0]
        self._after(job, commit, answer)
        if answer.status == "ok":
            yield from self.streams.of(job.attempt, commit)

    def _insist(self, action: Callable[[], T]) -> T:
        """An outcome in hand outlives a short absence of Redis: the same commit is sent again, and is harmless twice."""
        end = time.monotonic() + PATIENCE_S
        return patiently(action, lambda: time.monotonic() > end)

    def _after(self, job: _Job, commit: Commit, answer: Answer) -> None:
        if self.keeper is not None:
            self.keeper.drop(job.attempt.lease.token)
        self._held(answer.leases)
        self.performer.committed(commit, answer)
        self._ready.extend(answer.leases)
        ours = job.attempt.lease.run == self.run
        if ours and answer.status == "ok" and answer.run_status not in ("running", ""):
            self.ended = ending(self.saver.log, self.thread, self.run, f"{job.attempt.lease.n}-1")

    # the end

    def output(self) -> Any:
        """The output values at the run's end."""
        log = self.saver.log
        warm = self.performer.loader.peek(self.thread, self.ended.digest) if self.ended and self.ended.digest else None
        if warm is not None:
            return self.spec.output(warm.channels)
        head = log.head(self.thread)
        n = self.ended.n if self.ended else head.n if head else 0
        return self.spec.output(state_at(log, self.thread, n).channels) if n else {}

    def _raise(self) -> None:
        ended = self.ended
        if ended is None or ended.status in ("done", "interrupted"):
            return
        if ended.status == "cancelled":
            raise RunCancelled("the run was cancelled", thread=self.thread)
        if ended.error_type == "GraphRecursionError":
            raise GraphRecursionError(
                ended.text, thread=self.thread, fix="raise config['recursion_limit'], or invoke(None) to go on"
            )
        if self.raised is not None:
            raise self.raised
        raise RunFailed(
            f"{ended.error_type}: {ended.text}", error_type=ended.error_type, thread=self.thread, node=ended.node
        )

    def _close(self) -> None:
        """Also when the caller leaves a stream early: leases go back, so that nobody waits for them."""
        left = [*self._ready, *(job.attempt.lease for job in self._jobs)]
        if left:
            self.saver.moves.release(self.owner, [lease.token for lease in left], "job")
            for lease in left:
                if self.keeper is not None:
                    self.keeper.drop(lease.token)
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        if self._own_loop and self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop, self._own_loop = asyncio.new_event_loop(), True
            threading.Thread(target=_run_loop, args=(self._loop,), name="everstep-loop", daemon=True).start()
        return self._loop


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _unplanned(commit: Commit) -> Exception:
    return InvalidUpdateError(commit.reason.partition(": ")[2], thread=commit.lease.thread, node=commit.lease.node)


async def _on_loop(run: Inline) -> AsyncIterator[Chunk]:
    """Drive a run in a thread of its own, and hand its chunks to this loop."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[tuple[Chunk] | None] = asyncio.Queue()

    def drive() -> None:
        try:
            for chunk in run.events(loop):
                loop.call_soon_threadsafe(chunks.put_nowait, (chunk,))
        finally:
            loop.call_soon_threadsafe(chunks.put_nowait, None)

    driving = asyncio.ensure_future(asyncio.to_thread(drive))
    while (item := await chunks.get()) is not None:
        yield item[0]
    await driving
