"""The inline driver: one run, driven by its caller, in its own thread.

    start ─► [load ─► call ─► settle ─► commit]* ─► rest

On Redis the caller leases its own thread's tasks, so the fleet leaves them alone, and takes over if the caller dies.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from everstep_checkpoint.errors import (
    EmptyInputError,
    GraphRecursionError,
    InvalidResume,
    InvalidUpdateError,
    RunCancelled,
    RunConflict,
    ServerError,
    ThreadBusy,
    UnknownNode,
)
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.replay import state_at

from ..graph.durability import COMMIT
from ..graph.options import Cache
from ..graph.spec import GraphSpec
from ..graph.untracked import Shelf, on
from ..moves.connection import patiently, translated
from ..moves.contract import Answer, Commit, Lease, Offer, RunKind, Start, Started
from ..moves.promises import warn
from ..moves.record import Config, commands, start_of
from ..reading.carried import Errors
from ..reading.ending import Ending, ending
from ..reading.nested import Nested
from ..reading.questions import interrupts, looking_of, open_step, refused, resume_of
from ..reading.shapes import Chunk, beside
from ..reading.snapshot import snapshot
from ..steps.branching import Wish, branch
from ..steps.calling import ChildFailed
from ..steps.commanding import SpecLore, command_of
from ..steps.loading import Loader
from ..steps.outcome import Unserved
from ..steps.perform import Attempt, Performer, Result
from .beginning import LEFT, begin
from .following import Follower
from .logmoves import LogMoves
from .savers import Saver, log_for_user
from .telling import Telling

PARALLEL_MAX = 16
POLL_MIN_S = 0.001
POLL_S = 0.05
POLL_MAX_S = 1.0
PATIENCE_S = 60.0
START_PATIENCE_S = 3.0
T = TypeVar("T")
Opening = Callable[["Inline"], Started]  # how a run begins, where it is not by its input alone
_log = logging.getLogger("everstep")


@dataclass
class _Job:
    attempt: Attempt
    future: Future[Result]

    @property
    def deadline(self) -> float:
        """When a sync call is over its time, if it shows no progress. An async one keeps its timeout by itself."""
        return float("inf") if self.attempt.is_async else self.attempt.pace.due

    def result(self) -> Result:
        """What came of it; one that still runs is late, and an isolated node is ended."""
        if self.future.done():
            return self.future.result()
        self.attempt.kill()
        return Result.timeout(self.attempt)

    def end(self) -> None:
        """Nobody waits for it any more."""
        self.future.cancel()
        self.attempt.kill()


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
        opening: Opening | None = None,
        *,
        keys: Sequence[str] | None = None,
        checkpoints: bool = True,
        cache: Cache | None = None,
        nested: bool = False,
        shelf: Shelf | None = None,
    ) -> None:
        self.opening = opening
        self.shelf = shelf or Shelf()  # what is never stored, as long as who called has this run
        self.spec, self.saver, self.thread, self.run = spec, saver, thread, run
        self.data, self.config, self.node = data, config, node
        self.kind: RunKind = kind
        self.owner = saver.owner
        self.caller = f"{saver.owner}/{new_id()[:8]}"
        self.telling = Telling(spec, saver, thread, run, mode, keys, checkpoints, nested)
        self.performer = Performer(
            saver.moves,
            saver.log,
            {each.name: each for each in spec.family},
            by=self.owner,
            loader=loader,
            listening=self.telling.audience,
            cache=cache,
            shelf=self.shelf,
        )
        self.parallel = config.max_concurrency or PARALLEL_MAX
        self.raised: BaseException | None = None
        self.ended: Ending | None = None
        self.keeper = saver.keeper
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own_loop = False
        self._jobs: list[_Job] = []
        self._here: Attempt | None = None  # runs in the caller's own thread
        self._ready: deque[Lease] = deque()
        self._mine: dict[str, Lease] = {}
        self._family: dict[str, None] = {thread: None}  # our thread, and those that its tasks called
        self._failures: dict[str, BaseException] = {}  # run on one of these -> the error that failed it
        self._unserved_at = 0.0
        self._left = threading.Event()
        self._news = threading.Event()  # somebody let a task of ours in, or we are to leave
        self._drives = self._owns = False  # do we give our word for a run, and is it the one that counts?

    def leave(self) -> None:
        """The caller is gone: cancel what runs on its loop, begin nothing more, give leases back. From any thread."""
        self._left.set()
        self._news.set()
        if (here := self._here) is not None:
            here.kill()
        for job in tuple(self._jobs):
            job.end()

    # the drive

    def events(self, loop: asyncio.AbstractEventLoop | None) -> Iterator[Chunk]:
        """Run to the rest, giving stream chunks. Async nodes run on `loop`, else on one of our own."""
        self._loop = loop
        moves = self.saver.moves
        rings = moves.gates.rings if isinstance(moves, LogMoves) else list[Callable[[], object]]()
        rings.append(self._news.set)
        try:
            started = self._start()
            self.telling.begin(started.entry)
            if started.status in ("nothing", "asked"):
                self._nothing()
                yield from self.telling.shaped(self.telling.standing())
                return
            if started.status == LEFT:
                return
            self._ready.extend(started.leases)
            yield from self.telling.shaped(self._drive(started))
            yield from self.telling.shaped(self.telling.rest())
        finally:
            rings.remove(self._news.set)
            self._close()
        self._raise()

    def _start(self) -> Started:
        self._insist_at_start(self._limit)
        started = on(self.shelf, lambda: self.opening(self) if self.opening is not None else self._opened())
        self._held(started.leases)
        self._driven(started)
        if error := refused(started.status, self.thread):
            raise error
        if started.status == "conflict":
            raise RunConflict(
                f"run {self.run!r} was used with another input", thread=self.thread, fix="give a new run_id"
            )
        if started.status == "busy":
            raise ThreadBusy("a run is under way on the thread", thread=self.thread, fix="wait for it, or cancel it")
        return started

    def _opened(self) -> Started:
        try:
            start = self._begun()
        except InvalidResume:
            # no such question: its answer may be at work, in a run whose caller is gone
            started = self.begin(self._begun(again=True), only=True)
            if started.status == "nothing":
                raise
            return started
        return self.begin(start)

    def begin(self, start: Start, *, only: bool = False) -> Started:
        """Record the run, and lease its first task; or take up one of the same input whose caller is gone."""
        self.saver.promises.check(start.durability)
        begun = begin(self.saver, start, self._offer(1), self._insist_at_start, self._left, only=only)
        self._kept(start.durability, f"the beginning of run {start.run!r}")
        return begun

    def _kept(self, durability: str, what: str) -> None:
        """Wait for what is promised beyond the commit just answered, and warn the caller if it is not kept."""
        if durability != COMMIT:
            warn(self.saver.promises.kept((durability,)), f"thread {self.thread!r}: {what}")

    def _driven(self, started: Started) -> None:
        """Until the end we give our word that somebody drives the run. It may be one that another caller began."""
        if started.status == "resumed":
            self.run = started.run
            self.telling.of(started.run)
        self._owns = started.status in ("started", "queued", "resumed")
        self._drives = self._owns or started.status == "attached"
        if self._drives and self.keeper is not None:
            self.keeper.drive(self.caller)

    def branch(self, wish: Wish) -> Started:
        """Put a checkpoint at the head, and lease its tasks."""
        self.saver.promises.check(wish.start.durability)
        put = branch(self.saver.log, self.saver.moves, wish, lambda: self._offer(self.parallel), self._insist_at_start)
        self._kept(wish.start.durability, f"the beginning of run {wish.start.run!r}")
        return put.started

    def _limit(self) -> None:
        """Say which limits our graphs have, for who counts."""
        for spec in self.spec.family:
            if spec.limits:
                self.saver.moves.limit(spec.name, spec.limits)

    def _insist_at_start(self, action: Callable[[], T]) -> T:
        return self._insist(action, START_PATIENCE_S)

    def _begun(self, *, again: bool = False) -> Start:
        if self.kind == "continue" and (looking := self._looking()) is not None:
            return looking
        if self.kind != "resume":
            return start_of(self.spec, self.thread, self.run, self.data, self.config, self.kind, self.node)
        command: Any = self.data
        log = log_for_user(self.saver)
        if commands(command):
            lore = SpecLore(self.spec)
            return command_of(log, self.thread, self.run, command, self.config, lore, codec=self.spec.codec)
        return resume_of(
            log, self.thread, self.run, command.resume, self.config, graph=self.spec.name,
            queue=self.spec.default_queue, codec=self.spec.codec, again=again,
        )  # fmt: skip

    def _looking(self) -> Start | None:
        spec, log = self.spec, log_for_user(self.saver)
        return looking_of(
            log, self.thread, self.run, self.config, graph=spec.name, queue=spec.default_queue, codec=spec.codec
        )

    def _nothing(self) -> None:
        """`invoke(None)` on a thread that has nothing to continue: its values as they are."""
        if self.saver.log.head(self.thread) is None:
            raise EmptyInputError(
                "no input, and nothing on the thread to continue", thread=self.thread, fix="pass an input"
            )

    def _tell(self, thread: str = "") -> Iterator[Nested]:
        """What the logs have to tell since the last look, or that of one thread."""
        return self.telling.logged(self._insist, thread)

    def _drive(self, started: Started) -> Iterator[Nested]:
        follower, poll = Follower(self.saver.log, self.thread, self.run, started.entry), POLL_S
        yield from self._tell()
        while not self._left.is_set():
            served = self._launch_ready()
            if self._jobs:
                over = self._finished()
                yield from self.telling.meanwhile(self._insist)
                for job in over:
                    if not self._is_void(job):
                        yield from self._settle(job)
                poll = POLL_S
                if self.ended is None:
                    continue
            if self.ended is None:
                self.ended = self._insist(follower.look)
                yield from self._tell()
            if self.ended is not None:
                return
            if served:
                self._ready.extend(self._claim())
            if not self._ready:
                self._idle(poll)
                poll = min(poll * 1.5, POLL_MAX_S)

    def _is_void(self, job: _Job) -> bool:
        """Nobody waits for it: what was killed did not fail. It goes back with its lease."""
        if job.future.cancelled():
            return True
        ended = self._left.is_set() and job.attempt.killed
        return ended and (not job.future.done() or job.future.result().error is not None)

    def _claim(self) -> Sequence[Lease]:
        """Work of our threads that nobody has: a retry that came due, or another run's, which ours waits for."""
        found: list[Lease] = []
        looked: set[str] = set()
        while (thread := next((each for each in self._family if each not in looked), None)) is not None:
            looked.add(thread)
            found += self._claim_of(thread, self.parallel - len(found))
            if len(found) >= self.parallel:
                break
        return found

    def _claim_of(self, thread: str, slots: int) -> Sequence[Lease]:
        offer = self._offer(slots, thread)
        answer = self._insist(lambda: self.saver.moves.claim(offer))
        self._held(answer.leases)
        self._family.update(dict.fromkeys(answer.children))
        if thread != self.thread and answer.run_status != "running":
            self._family.pop(thread, None)
        return answer.leases

    def _idle(self, poll: float) -> None:
        moves = self.saver.moves
        dues = [moves.due_in(each) for each in self._family] if isinstance(moves, LogMoves) else []
        due = min((each for each in dues if each is not None), default=None)
        self._news.wait(poll if due is None else min(max(due, POLL_MIN_S), POLL_MAX_S))
        self._news.clear()

    def _offer(self, slots: int, thread: str = "") -> Offer:
        tokens = tuple(new_id() for _ in range(max(slots, 1)))
        return Offer(
            self.owner,
            tokens,
            lease_ms=self.saver.lease_ms,
            thread=thread or self.thread,
            caller=self.caller,
        )

    def _held(self, leases: Sequence[Lease]) -> None:
        """These are ours now, until they are settled or given back."""
        self._mine.update((lease.token, lease) for lease in leases)
        if self.keeper is not None and leases:
            self.keeper.hold(leases)

    def _drop(self, token: str) -> None:
        self._mine.pop(token, None)
        if self.keeper is not None:
            self.keeper.drop(token)
        elif isinstance(self.saver.moves, LogMoves):
            self.saver.moves.unwatch(token)

    def _watch(self, lease: Lease, gone: Callable[[], object]) -> None:
        """Call it when the lease is taken away: from the keeper's thread, or that of who took it."""
        if self.keeper is not None:
            self.keeper.watch(lease.token, gone)
        elif isinstance(self.saver.moves, LogMoves):
            self.saver.moves.watch(lease.token, gone)

    # one attempt

    def _launch_ready(self) -> bool:
        """Begin what is ready, as far as there is room. False if some of it is not served here."""
        served = True
        while self._ready and len(self._jobs) < self.parallel and not self._left.is_set():
            served = self._launch(self._ready.popleft()) and served
        return served

    def _launch(self, lease: Lease) -> bool:
        try:
            attempt = self._insist(lambda: self.performer.load(lease))
        except Unserved as error:
            self._give_back(lease, error)
            return False
        self._unserved_at = 0.0
        attempt.doing.heeding = self.telling
        self._watch(lease, attempt.kill)  # somebody else may cancel the run
        self._jobs.append(_Job(attempt, self._future(attempt)))
        if self._left.is_set():  # while it was begun
            self._jobs[-1].end()
        return True

    def _give_back(self, lease: Lease, error: Unserved) -> None:
        """Another caller or the fleet serves it, and ours waits; within one process not forever."""
        self._insist(lambda: self.saver.moves.release(self.owner, [lease.token], "job"))
        self._drop(lease.token)
        self._unserved_at = self._unserved_at or time.monotonic()
        if self.keeper is None and (lease.run == self.run or time.monotonic() > self._unserved_at + PATIENCE_S):
            self.saver.moves.cancel(self.thread, self.run)
            raise UnknownNode(error.reason, thread=self.thread, fix="invoke the graph that began it")

    def _future(self, attempt: Attempt) -> Future[Result]:
        """Alone and without a timeout it runs right here; else beside others."""
        if attempt.is_async:
            return asyncio.run_coroutine_threadsafe(attempt.acall(), self._event_loop())
        beside = attempt.voice is not None or (attempt.node is not None and self.telling.waits_beside)
        if self._ready or self._jobs or attempt.pace.limited or beside:
            return _in_thread(attempt)
        done: Future[Result] = Future()
        self._here = attempt
        if self._left.is_set():  # meanwhile: then nobody else ends it
            attempt.kill()
        result = attempt.call()
        self._here = None
        if isinstance(result.error, KeyboardInterrupt):
            raise result.error  # somebody pressed Ctrl-C: that is no failure of the node
        done.set_result(result)
        return done

    def _finished(self) -> list[_Job]:
        """Wait until something is over, late, or said. A late sync node's thread is left to end by itself."""
        first = min(job.deadline for job in self._jobs)
        wait(
            [*(job.future for job in self._jobs), *self.telling.bells],
            max(first - time.monotonic(), 0) if first < float("inf") else None,
            FIRST_COMPLETED,
        )
        now = time.monotonic()
        over = [job for job in self._jobs if job.future.done() or now >= job.deadline]
        self._jobs = [job for job in self._jobs if job not in over]
        return over

    def _settle(self, job: _Job) -> Iterator[Nested]:
        result = job.result()
        commit = self._insist(lambda: self.performer.settle(job.attempt, result))
        lease = job.attempt.lease
        told = lease.run == self.run or self.telling.nested or self.telling.above is not None
        self._note(commit, result.error)
        if told and result.error is not None:
            known = self.raised if lease.run == self.run else self._failures.get(lease.run)
            self.telling.failed(lease.token, known or result.error)
        offer = self._offer(self.parallel - len(self._jobs) - len(self._ready), job.attempt.lease.thread)
        answer = self._insist(lambda: self.saver.moves.commit([(commit, offer)]))[0]
        self._after(job, commit, answer)
        self._kept(job.attempt.record.durability, f"a step of run {lease.run!r}")
        yield from self.telling.said()
        if told and answer.status == "ok":
            yield from self._tell(lease.thread)

    def _note(self, commit: Commit, error: BaseException | None) -> None:
        """What a run that fails is remembered by: the error itself, also where it came from what a task called."""
        if commit.call is not None:
            self._family[commit.call.thread] = None
            nested = self.performer.graphs.get(f"{commit.lease.graph}.{commit.lease.node}")
            self.telling.calls(commit.call.run, nested, commit.lease.run)
        if commit.outcome not in ("failed", "unplanned"):
            return
        found = error or _unplanned(commit)
        if isinstance(found, ChildFailed):
            found = self._failures.pop(found.run, found)
        if commit.lease.run == self.run:
            self.raised = found
        else:
            self._failures[commit.lease.run] = found

    def _interrupts(self) -> list[Any]:
        told = open_step(self.saver.log, self.thread)
        return interrupts(told, self.spec.codec) if told is not None else []

    def _insist(self, action: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
        """An outcome in hand outlives a short absence of Redis: the same commit is sent again, harmless twice."""
        end = time.monotonic() + patience_s

        def tried() -> T:
            with translated():
                return action()

        return patiently(tried, lambda: time.monotonic() > end)

    def _after(self, job: _Job, commit: Commit, answer: Answer) -> None:
        self._drop(job.attempt.lease.token)
        self._held(answer.leases)
        self.performer.committed(commit, answer)
        self._ready.extend(answer.leases)
        ours = job.attempt.lease.run == self.run
        if ours and answer.status == "ok" and answer.run_status not in ("running", ""):
            self.ended = ending(self.saver.log, self.thread, self.run, f"{job.attempt.lease.n}-1")
            self._drives = self._drives and not (self._owns and self.ended is not None)  # the commit has said so

    # the end

    def output(self) -> Any:
        """The output values at the run's end; with the questions that wait, as `__interrupt__`."""
        if self.ended is not None and self.ended.status != "interrupted" and self.ended.digest:
            return self._stored_output()
        known = self.spec.shown(snapshot(self.saver.log, self.thread, spec=self.spec).values)
        known = {**known, **self._untracked()} if self.spec.untracked else known
        return beside(known, found) if (found := self._interrupts()) else known

    def _untracked(self) -> dict[str, Any]:
        """What is held here and is not stored, as the last checkpoint has it."""
        head = self.saver.log.head(self.thread)
        channels = state_at(self.saver.log, self.thread, head.n).channels if head and head.n else {}
        return self.spec.decoded(self.spec.untracked.intersection(self.spec.output_schema.fields), channels)

    def _stored_output(self) -> Any:
        log = self.saver.log
        warm = self.performer.loader.peek(self.thread, self.ended.digest) if self.ended and self.ended.digest else None
        if warm is not None:
            return self.spec.output(warm.channels)
        head = log.head(self.thread)
        n = self.ended.n if self.ended else head.n if head else 0
        return self.spec.output(state_at(log, self.thread, n).channels if n else {})

    def _raise(self) -> None:
        ended = self.ended
        if ended is None or ended.status in ("done", "interrupted"):
            return
        if ended.status == "cancelled":
            by = f" by {ended.actor}" if ended.actor else ""
            raise RunCancelled(f"the run was cancelled{by}", thread=self.thread)
        if ended.error_type == "GraphRecursionError":
            raise GraphRecursionError(
                ended.text, thread=self.thread, fix="raise config['recursion_limit'], or invoke(None) to go on"
            )
        if isinstance(self.raised, Exception):
            raise self.raised
        raise Errors().failed(ended, self.thread) from self.raised

    def _close(self) -> None:
        """Also when the caller leaves a stream early: leases go back, so that nobody waits for them."""
        for job in self._jobs:
            job.end()
        self._release()
        if self._own_loop and self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _release(self) -> None:
        """Give all back. If Redis is away, they expire: nobody renews them any more."""
        left, drives = tuple(self._mine), self._drives
        for token in left:
            self._drop(token)
        if self.keeper is not None:
            self.keeper.undrive(self.caller, ended=self.ended is not None)
        try:
            if left:
                self.saver.moves.release(self.owner, left, "job")
            if drives:
                self.saver.moves.leave(self.caller, ended=self.ended is not None)
        except ServerError as error:
            _log.warning("thread %s: leases were not given back, they will expire: %s", self.thread, error)

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop, self._own_loop = asyncio.new_event_loop(), True
            threading.Thread(target=_run_loop, args=(self._loop,), name="everstep-loop", daemon=True).start()
        return self._loop


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Until it is stopped; what then still runs on it is cancelled."""
    loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _in_thread(attempt: Attempt) -> Future[Result]:
    """Call in a thread of its own. One that is stuck holds up neither other attempts nor the interpreter's end."""
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()
    threading.Thread(target=lambda: done.set_result(attempt.call()), name="everstep-node", daemon=True).start()
    return done


def _unplanned(commit: Commit) -> Exception:
    said: dict[str, str] = json.loads(str(commit.entries[-1]["error"]))
    return InvalidUpdateError(said["text"], thread=commit.lease.thread, node=commit.lease.node)
