"""The event loop for async nodes, and the thread that commits what does not commit itself.

One thread runs the loop and nothing but the loop. What ends there, and every attempt that a timeout or an operator
ended, goes to the committer: it sends one commit behind the other, and starts the leases that come with the answers.
So Redis is at one commit while the next is made up. Outcomes that are there together leave together.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from queue import Empty, SimpleQueue

from everstep_scheduler.steps.failpoints import reach
from everstep_scheduler.steps.perform import Attempt, Result

from .line import Line
from .slots import OFFER_MAX, Done, Held
from .work import TOGETHER_MAX, Posted, Settled, Work, log


class Committer:
    """Commits outcomes of the loop, of timeouts and of stops. Its thread begins with the first one."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._ready: SimpleQueue[Done | None] = SimpleQueue()
        self._posted: deque[Posted] = deque()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @cached_property
    def _line(self) -> Line:
        return self._work.own_line()

    def put(self, done: Done) -> None:
        """Have an outcome committed; the right to it must have been taken."""
        self._ready.put(done)
        if self._thread is None:
            with self._lock:
                self._thread = self._thread or self._begun()

    def end(self) -> None:
        """The thread ends when all before this is committed."""
        self._ready.put(None)

    def _begun(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="everstep-committer", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while (first := self._ready.get()) is not None:
            self._guarded([first])
            while self._posted:
                self._guarded([])

    def _guarded(self, ready: list[Done]) -> None:
        """The loop's door: what is posted still has to be answered."""
        try:
            self._turn(ready)
        except Exception as error:  # noqa: BLE001
            log.error("everstep's own error while committing", exc_info=error)

    def _turn(self, ready: list[Done]) -> None:
        """Send what is ready while answers are on the way; none is awaited before there is nothing to send."""
        while len(ready) < TOGETHER_MAX and (done := self._next()) is not None:
            ready.append(done)
        if ready:
            self._post(ready)
        else:
            self._work.spread(self._collected())

    def _next(self) -> Done | None:
        """An outcome that is ready, and may be sent now."""
        if len(self._posted) >= OFFER_MAX:
            return None
        try:
            done = self._ready.get_nowait()
        except Empty:
            return None
        if done is None:
            self._ready.put(None)  # the end, which `_run` sees once all is answered
        return done

    def _post(self, ready: Sequence[Done]) -> None:
        work, settled = self._work, list[Settled]()
        for done in ready:
            try:
                settled.append(Settled(done, work.settle(done)))
            except Exception as error:  # noqa: BLE001 - a bad outcome must not take others with it
                work.came_to_nothing(done.held, error)
                work.slots.give_new(done.own)
        room = len(settled) if self._posted else work.tempo.room()
        self._posted += work.posted(self._line, settled, room)

    def _collected(self) -> list[Held]:
        """The leases that the answers brought: the oldest one's, and of those that are here already."""
        replies = list[tuple[Posted, object]]()
        while self._posted and (not replies or self._line.has_reply(self._posted[0].at)):
            posted = self._posted.popleft()
            replies.append((posted, self._line.collect(posted.at)))
        return self._work.all_came(replies)


class Loop:
    """One event loop on one thread, begun with the first async node."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False

    def start(self, held: Sequence[Held]) -> None:
        """Run loaded async attempts."""
        with self._lock:
            loop = self._loop = self._loop or self._begun()
        loop.call_soon_threadsafe(self._begin, held)  # once for all: each call wakes the loop

    def cancel(self, held: Held) -> None:
        """Cancel an attempt that is settled otherwise. A thread can't be, but the process of an isolated node can."""
        if held.attempt is not None:
            held.attempt.kill()
        if self._loop is not None and held.task is not None:
            self._loop.call_soon_threadsafe(held.task.cancel)

    def end(self) -> None:
        """Cancel what runs and stop. The thread ends once the loop lets it."""
        self._ended = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _begun(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, args=(loop,), name="everstep-loop", daemon=True).start()
        return loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            while not self._ended:
                self._run_on(loop)
        finally:
            for task in self._tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _run_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Asyncio lets KeyboardInterrupt and SystemExit of any task end its loop; ours goes on with the other tasks."""
        try:
            loop.run_forever()
        except BaseException as error:  # noqa: BLE001 - the loop's door
            log.error("a task that a node began raised %r", error)

    def _begin(self, fresh: Sequence[Held]) -> None:
        loop = asyncio.get_running_loop()
        for held in fresh:
            if held.settled or held.attempt is None:
                self._work.slots.give_new()
                continue
            held.task = loop.create_task(self._attempt(held, held.attempt))
            self._tasks.add(held.task)
            held.task.add_done_callback(self._tasks.discard)

    async def _attempt(self, held: Held, attempt: Attempt) -> None:
        """One attempt. Only a cancel that is ours may end it without a result."""
        try:
            result = await attempt.acall()
        except asyncio.CancelledError:
            result = Result.stopped(attempt, "the node let itself be cancelled")
        except BaseException as error:  # noqa: BLE001 - the last door to the user's code
            result = Result(None, error, attempt.elapsed_ms)
        reach("called")
        if held.take_right():
            self._work.committer(Done(held, result))
        else:
            self._work.slots.give_new()
