"""The inline driver: one run, driven by its caller, in its own thread.

    start ─► [load ─► call ─► settle ─► commit]* ─► rest

On Redis the caller leases its own thread's tasks, so the fleet leaves them alone, and takes over if the caller dies.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from everstep_checkpoint.errors import (
    EmptyInputError,
    GraphRecursionError,
    InvalidUpdateError,
    RunCancelled,
    RunConflict,
    RunFailed,
    ThreadBusy,
)
from everstep_checkpoint.log import new_id
from everstep_checkpoint.replay import state_at

from ..graph.spec import GraphSpec
from ..moves.connection import patiently
from ..moves.contract import Answer, Commit, Lease, Offer, RunKind, Started
from ..moves.record import Config, start_of
from ..reading.ending import Ending, ending
from ..steps.loading import Loader
from ..steps.perform import Attempt, Performer, Result, Unserved
from ..steps.streaming import Chunk, Streams
from .savers import Saver

PARALLEL_MAX = 16
POLL_S = 0.05
POLL_MAX_S = 1.0
PATIENCE_S = 60.0
T = TypeVar("T")


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
            self.owner,
            tokens,
            round=self.keeper.round if self.keeper else 0,
            lease_ms=self.saver.lease_ms,
            thread=self.thread,
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
        """An outcome in hand outlives a short absence of Redis: the same commit is sent again, harmless twice."""
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
