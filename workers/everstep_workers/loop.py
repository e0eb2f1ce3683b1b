"""The event loop for async nodes, and the thread that commits what does not commit itself.

One thread runs the loop and nothing but the loop. What ends there, and every attempt that a timeout or an operator
ended, goes to the committer: it takes all that is ready, sends it in one pipeline, and starts the leases that come.
"""

from __future__ import annotations

import asyncio
import threading
from queue import Empty, SimpleQueue

from everstep_checkpoint.errors import LogError, ServerError
from everstep_scheduler.moves.redismoves import RedisMoves
from everstep_scheduler.steps.failpoints import reach
from everstep_scheduler.steps.perform import Attempt, Result

from .patience import Hopeless
from .slots import OFFER_MAX, Done, Held
from .work import Work, log


class Committer:
    """Commits outcomes of the loop, of timeouts and of stops. Its thread begins with the first one."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._ready: SimpleQueue[Done | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

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
        moves = self._work.line()
        while (first := self._ready.get()) is not None:
            self._commit(moves, [first, *self._more()])

    def _more(self) -> list[Done]:
        """All that is ready besides, at most a pipeline full."""
        more: list[Done] = []
        try:
            while len(more) < OFFER_MAX - 1:
                done = self._ready.get_nowait()
                if done is None:
                    self._ready.put(None)
                    break
                more.append(done)
        except Empty:
            pass
        return more

    def _commit(self, moves: RedisMoves, batch: list[Done], again: bool = False) -> None:
        try:
            self._work.spread(self._work.commit(moves, batch))
        except ServerError as error:
            log.warning("%d outcomes are dropped, the process ends: %s", len(batch), error.what)
        except Exception as error:  # noqa: BLE001 - the loop's door: a bad outcome must not take others with it
            self._singly(moves, batch, error, again)

    def _singly(self, moves: RedisMoves, batch: list[Done], error: Exception, again: bool) -> None:
        """A batch that can't be committed, one by one; a single outcome that Redis refuses becomes a failure."""
        if len(batch) > 1:
            for done in batch:
                self._commit(moves, [done])
            return
        held, _, own = batch[0]
        if isinstance(error, Hopeless) and held.attempt is not None and not again:
            refused = Result.stopped(held.attempt, f"Redis refuses its outcome: {error}")
            self._commit(moves, [Done(held, refused, own)], again=True)
            return
        self._work.unreadable(held, error) if isinstance(error, LogError) else self._work.stumbled(held, error)
        if own:
            self._work.slots.give_new()


class Loop:
    """One event loop on one thread, begun with the first async node."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False

    def start(self, held: Held) -> None:
        """Run a loaded async attempt."""
        with self._lock:
            loop = self._loop = self._loop or self._begun()
        loop.call_soon_threadsafe(self._begin, held)

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

    def _begin(self, held: Held) -> None:
        if held.settled or held.attempt is None:
            self._work.slots.give_new()
            return
        held.task = asyncio.get_running_loop().create_task(self._attempt(held, held.attempt))
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
