"""How many sync attempts a process should have at once.

Threads whose nodes wait for something cost nothing; threads whose nodes only compute fight for the interpreter, and ten
of them do less than one. So while nodes are quick, one thread, the leader, runs them one behind the other and has its
commits on the way meanwhile; the others rest. An attempt that has run for longer than a moment counts no more: then a
claim brings others, for other threads.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from .slots import OFFER_MAX, Held

MOMENT_S = 0.002
STUCK_S = 0.01  # on a busy machine a thread is often put aside for a few milliseconds: that makes it no slow one
WAITS_S = 0.0005
TOGETHER_S = 0.004  # of nodes that run while what is ready waits for their company,
TOGETHER_MOST_S = 0.02  # and in all: of four processes on two cores each is put aside for 3 to 12 ms again and again
AHEAD_S = 0.008  # of nodes that wait in a process while others might run them
AHEAD_LEAST, AHEAD_MOST = 4, 32
SMOOTH = 0.1


class Leader(Protocol):
    """The thread that runs quick nodes."""

    @property
    def coming(self) -> int:
        """What it has to do after the attempt that it runs: leases it holds, and tokens it has offered."""
        ...

    @property
    def stuck(self) -> bool:
        """Does its attempt take so long that others should go on?"""
        ...


class Tempo:
    """The pace of a process's sync nodes, as their threads tell it. No lock: a lost update costs a moment."""

    def __init__(self) -> None:
        self._begun: deque[Held] = deque(maxlen=4 * AHEAD_MOST)
        self._pace_s = MOMENT_S
        self._waits_s = 0.0
        self._last_s = MOMENT_S
        self._of_node: dict[tuple[str, str], float] = {}
        self.leader: Leader | None = None

    def begins(self, held: Held) -> None:
        """A thread begins an attempt."""
        held.began = time.monotonic()
        self._begun.append(held)

    @property
    def looks(self) -> bool:
        """Is the next node worth a look at its CPU? That is two system calls; of a node that is over sooner than could
        tell anything there is nothing to know."""
        return self._last_s > WAITS_S

    def ended(self, held: Held, seconds: float, computed_s: float | None) -> None:
        """Its node has returned after so long, so much of it spent computing, if somebody looked."""
        self._last_s = self._of_node[held.lease.graph, held.lease.node] = seconds
        self._pace_s += SMOOTH * (seconds - self._pace_s)
        if computed_s is not None:
            self._waits_s += SMOOTH * (max(seconds - computed_s, 0.0) - self._waits_s)
        elif seconds < WAITS_S:
            self._waits_s -= SMOOTH * self._waits_s

    @property
    def quick(self) -> bool:
        """Are nodes over at once, on average, without waiting for anything?"""
        return self._pace_s < MOMENT_S and self._waits_s < WAITS_S

    def expects(self, held: Held) -> bool:
        """Will its node be over at once, as it was the last time, if there was one?"""
        return self.quick and self._of_node.get((held.lease.graph, held.lease.node), 0.0) < MOMENT_S

    def waits(self, since: float, nodes_s: float) -> bool:
        """May what has been ready since then, while nodes ran for so long, wait for more to leave with it?"""
        return nodes_s < TOGETHER_S and time.monotonic() - since < TOGETHER_MOST_S

    def take_lead(self, hand: Leader) -> None:
        """This thread is the one to take more work while nodes are quick, if no other one is at it."""
        if self.leader is None or self.leader.stuck:
            self.leader = hand

    def room(self, hand: Leader | None = None) -> int:
        """For how many more attempts to offer now: all the slots there are, or the few that quick nodes can use.

        While a leader is at it, these are for its commits, not for claims.
        """
        if not self.quick:
            return OFFER_MAX
        leader = self.leader
        if leader is not None and leader is not hand and not leader.stuck:
            return 0
        return max(self._ahead - self._young() - (leader.coming if leader is not None else 0), 0)

    @property
    def _ahead(self) -> int:
        """How many quick attempts a process may have in hand."""
        return min(max(int(AHEAD_S / max(self._pace_s, 1e-6)), AHEAD_LEAST), AHEAD_MOST)

    def _young(self) -> int:
        """How many attempts began a moment ago and run."""
        begun, since = self._begun, time.monotonic() - MOMENT_S
        try:
            while begun and (begun[0].settled or begun[0].began < since):
                begun.popleft()
        except IndexError:  # another thread took the last one
            return 0
        return sum(not held.settled for held in tuple(begun)) if begun else 0
