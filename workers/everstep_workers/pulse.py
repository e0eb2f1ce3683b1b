"""The pulse of a worker process: when the threads that keep it going last made progress.

    main, front, keeper ──beat──► eight numbers in memory that the pool's parent shares ──read──► health

To beat costs a store, and needs neither a lock nor Redis; a process that hangs, by whatever, just stops. A thread that
waits for Redis beats at each try. One that rests isn't judged: it has ended, or rebuilds indexes, which takes its time.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

# What stands where in a row. Times are of the monotonic clock, which all processes share; 0 is never.
PID, SINCE, STATE, MAIN, FRONT, KEEPER, AWAY, REBUILDS = range(8)
CELLS = 8
PARTS = {MAIN: "main thread", FRONT: "claim loop", KEEPER: "lease thread"}
STARTING, WORKING, DRAINING, SPARE = 0.0, 1.0, 2.0, 3.0  # a spare waits to be called, and is not judged


class Pulse:
    """One process's row, of a board or of its own."""

    def __init__(self, cells: memoryview[float] | None = None) -> None:
        self.cells = cells if cells is not None else memoryview(bytearray(CELLS * 8)).cast("d")
        self._parts: dict[int, int] = {}  # thread -> the part that it is
        self._lock = threading.Lock()

    def state(self, state: float) -> None:
        self.cells[STATE] = state

    def beat(self, part: int) -> None:
        """The calling thread is this part, and makes progress."""
        self._parts[threading.get_ident()] = part
        self.cells[part] = time.monotonic()

    def again(self) -> None:
        """The calling thread makes progress, if it is a part."""
        part = self._parts.get(threading.get_ident())
        if part is not None:
            self.cells[part] = time.monotonic()

    def rest(self) -> None:
        """The calling thread is no part any more."""
        part = self._parts.pop(threading.get_ident(), None)
        if part is not None:
            self.cells[part] = 0.0

    @contextmanager
    def rebuilding(self) -> Generator[None]:
        """The calling thread makes indexes anew: as long as it takes."""
        part = self._parts.get(threading.get_ident())
        self.rest()
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)
            if part is not None:
                self.beat(part)

    def _count(self, more: int) -> None:
        with self._lock:
            self.cells[REBUILDS] += more

    def away(self, away: bool) -> None:
        """Does a thread wait for Redis? Since when, if it does."""
        if not away:
            self.cells[AWAY] = 0.0
        elif not self.cells[AWAY]:
            self.cells[AWAY] = time.monotonic()


class Board:
    """The rows of a pool, in memory shared with the processes forked from here. Row 0 is the parent's."""

    def __init__(self, children: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, 8 * CELLS * (children + 1))).cast("d")
        self.rows = [self._cells[i * CELLS : (i + 1) * CELLS] for i in range(children + 1)]

    def take(self, first: int, last: int) -> int:
        """A free row of these, for a process that begins now: the pool keeps no more of them than it has rows."""
        row = next(i for i in range(first, last) if not self.rows[i][SINCE])
        self.rows[row][SINCE] = time.monotonic()
        return row

    def clear(self, row: int) -> None:
        """Its process has ended."""
        for i in range(CELLS):
            self.rows[row][i] = 0.0
