"""Slots and what occupies them.

A free slot is a token, ready to be offered by a claim; one that came back without a lease is a free slot again. A
commit that fills a free slot offers a new token in its place.
An attempt occupies its slot until the thread or task that runs it has ended, even when its outcome was settled before.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from everstep_checkpoint.ids import new_id
from everstep_scheduler.moves.contract import Lease
from everstep_scheduler.steps.perform import Attempt, Result

OFFER_MAX = 64


class Held:
    """One attempt of this process.

    Whoever first takes the right to settle it settles it: its runner, its timeout, an operator, or the news that its
    lease is gone. All others drop what they have.
    """

    __slots__ = ("_right", "attempt", "began", "lease", "task")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.attempt: Attempt | None = None
        self.task: asyncio.Task[None] | None = None
        self.began = time.monotonic()
        self._right = threading.Lock()

    def take_right(self) -> bool:
        """True for the first who asks."""
        return self._right.acquire(blocking=False)

    @property
    def settled(self) -> bool:
        """Has somebody taken the right?"""
        return self._right.locked()

    def __str__(self) -> str:
        lease = self.lease
        return f"{lease.graph}/{lease.thread}#{lease.n} {lease.node} attempt {lease.attempt}"


class Done(NamedTuple):
    """An attempt that came to something. `own`: its slot is free with it; else its thread is still busy."""

    held: Held
    result: Result
    own: bool = True


class Slots:
    """The free slots of a process."""

    def __init__(self, count: int) -> None:
        self._free = deque(new_id() for _ in range(count))
        self._changed = threading.Condition()
        self._watched = False

    def __len__(self) -> int:
        return len(self._free)

    def take(self, most: int = OFFER_MAX) -> tuple[str, ...]:
        """At most `most` free slots, as tokens to offer; they are taken."""
        if not most:
            return ()
        taken: list[str] = []
        try:
            while len(taken) < most:
                taken.append(self._free.pop())
        except IndexError:
            pass
        return tuple(taken)

    def give(self, tokens: Sequence[str]) -> None:
        """Slots that are free again, with tokens that were never leased."""
        if not tokens:
            return  # under load this is each commit: wake nobody
        self._free.extend(tokens)
        if self._watched:
            with self._changed:
                self._changed.notify_all()

    def give_new(self, count: int = 1) -> None:
        """Slots that are free again, whose tokens are used up or in doubt."""
        if count:
            self.give([new_id() for _ in range(count)])

    def wait(self, timeout_s: float) -> None:
        """Wait until a slot is free."""
        with self._changed:
            self._watched = True
            if not self._free:
                self._changed.wait(timeout_s)
            self._watched = False


class Tally:
    """What a process has done, for RQ's tools."""

    def __init__(self) -> None:
        self.successful = self.failed = 0
        self.working_s = 0.0
        self._lock = threading.Lock()

    def count(self, failed: bool, seconds: float) -> None:
        """One more attempt has ended."""
        with self._lock:
            self.successful += not failed
            self.failed += failed
            self.working_s += seconds


class Deadlines:
    """When sync attempts are over their timeouts. Keeps few more than those that still run."""

    def __init__(self, running_max: int) -> None:
        self._heap: list[tuple[float, int, Held]] = []
        self._most = 4 * running_max + 64
        self._lock = threading.Lock()

    def add(self, held: Held) -> bool:
        """Watch an attempt that begins now. True if it is the first that will be due."""
        assert held.attempt is not None
        due = held.attempt.pace.due
        with self._lock:
            if len(self._heap) > self._most:
                self._heap = [each for each in self._heap if not each[2].settled]
                heapq.heapify(self._heap)
            first = not self._heap or due < self._heap[0][0]
            heapq.heappush(self._heap, (due, id(held), held))
        return first

    def passed(self) -> list[Held]:
        """Those that are due; each is told once. One that showed progress meanwhile is due later."""
        now, due = time.monotonic(), list[Held]()
        with self._lock:
            while self._heap and self._heap[0][0] <= now:
                held = heapq.heappop(self._heap)[2]
                later = held.attempt.pace.due if held.attempt is not None else now
                if later <= now:
                    due.append(held)
                elif not held.settled:
                    heapq.heappush(self._heap, (later, id(held), held))
        return due

    def first_in_s(self) -> float:
        """Seconds until the next one is due."""
        with self._lock:
            return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else float("inf")
