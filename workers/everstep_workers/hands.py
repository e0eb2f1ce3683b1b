"""The threads that run sync nodes.

Each thread drives itself: it runs an attempt, commits it over its own connection, and goes on with the lease that the
same reply brought. So a chain of steps costs one round trip a step and no hand-over between threads. Threads begin when
they are first needed; there are never more than slots.
"""

from __future__ import annotations

import threading
from functools import cached_property
from queue import SimpleQueue

from everstep_checkpoint.errors import LogError, ServerError
from everstep_scheduler.moves.redismoves import RedisMoves
from everstep_scheduler.steps.failpoints import reach
from everstep_scheduler.steps.perform import Attempt, Result

from .patience import Hopeless
from .slots import Done, Held
from .work import Work, log


class Hands:
    """All sync threads of a process."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._idle: list[Hand] = []
        self._lock = threading.Lock()
        self._count = 0
        self._ended = False

    def start(self, held: Held) -> None:
        """Run an attempt on the idle thread that was busy last, or on a new one; RuntimeError if none can begin."""
        with self._lock:
            hand = self._idle.pop() if self._idle else self._begun()
        hand.inbox.put(held)

    def _begun(self) -> Hand:
        hand = Hand(self._work, self, f"everstep-hand-{self._count + 1}")
        hand.start()
        self._count += 1
        return hand

    def idle(self, hand: Hand) -> bool:
        """A thread has nothing to do. False: it is to end."""
        with self._lock:
            if not self._ended:
                self._idle.append(hand)
            return not self._ended

    def end(self) -> None:
        """Idle threads end now, busy ones when their node returns."""
        with self._lock:
            self._ended = True
            idle, self._idle = self._idle, []
        for hand in idle:
            hand.inbox.put(None)


class Hand(threading.Thread):
    """One thread for sync nodes."""

    def __init__(self, work: Work, hands: Hands, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: SimpleQueue[Held | None] = SimpleQueue()
        self._work = work
        self._hands = hands

    @cached_property
    def _moves(self) -> RedisMoves:
        return self._work.line()

    def run(self) -> None:
        while (held := self.inbox.get()) is not None:
            while held is not None:
                held = self._guarded(held)
            if not self._hands.idle(self):
                return

    def _guarded(self, held: Held) -> Held | None:
        """The loop's door: nothing that is raised ends the thread."""
        try:
            return self._step(held)
        except ServerError as error:
            log.warning("%s: its outcome is dropped, the process ends: %s", held, error.what)
        except LogError as error:
            self._work.unreadable(held, error)
            self._work.slots.give_new()
        except BaseException as error:  # noqa: BLE001
            self._work.stumbled(held, error)
            self._work.slots.give_new()
        return None

    def _step(self, held: Held) -> Held | None:
        """Run one attempt to its commit. Returns what this thread runs next."""
        work = self._work
        if not work.load(held):
            return None
        attempt = held.attempt
        assert attempt is not None
        if attempt.is_async:
            work.loop.start(held)
            return None
        if attempt.pace.limited:
            work.watch(held)
        work.tempo.begins(held)
        result = _called(attempt)
        work.tempo.ended(result.ms / 1000)
        reach("called")
        if not held.take_right():
            work.slots.give_new()
            return None
        return work.spread(self._commit(held, result), keep=True)

    def _commit(self, held: Held, result: Result) -> list[Held]:
        try:
            return self._work.commit(self._moves, [Done(held, result)])
        except Hopeless as error:
            assert held.attempt is not None
            log.error("%s: Redis refuses its outcome: %s", held, error)
            refused = Result.stopped(held.attempt, f"Redis refuses its outcome: {error}")
            return self._work.commit(self._moves, [Done(held, refused)])


def _called(attempt: Attempt) -> Result:
    """What the attempt came to; whatever a node raises fails the node, not the thread."""
    try:
        return attempt.call()
    except BaseException as error:  # noqa: BLE001 - the last door to the user's code
        return Result(None, error, attempt.elapsed_ms)
