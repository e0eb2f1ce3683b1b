"""How many sync attempts a process should have in their first moments.

Threads whose nodes wait for something cost nothing; threads whose nodes are over at once fight for the interpreter, and
ten of them do less than two. So while nodes are quick, only a few are begun at a time, and a thread that finds enough
others at work rests. An attempt that has run for longer than a moment waits for something, and counts no more.
"""

from __future__ import annotations

import time
from collections import deque

from .slots import OFFER_MAX, Held

MOMENT_S = 0.002
KEEN = 2
SMOOTH = 0.1


class Tempo:
    """The pace of a process's sync nodes, as their threads tell it. No lock: a lost update costs a moment."""

    def __init__(self) -> None:
        self._begun: deque[Held] = deque(maxlen=4 * KEEN)
        self._pace_s = MOMENT_S

    def begins(self, held: Held) -> None:
        """A thread begins an attempt."""
        self._begun.append(held)

    def ended(self, seconds: float) -> None:
        """Its node has returned."""
        self._pace_s += SMOOTH * (seconds - self._pace_s)

    def room(self) -> int:
        """For how many more attempts to offer now: all the slots there are, or the few that quick nodes can use."""
        if self._pace_s >= MOMENT_S:
            return OFFER_MAX
        now = time.monotonic()
        young = sum(not held.settled and now - held.began < MOMENT_S for held in list(self._begun))
        return max(KEEN - young, 0)
