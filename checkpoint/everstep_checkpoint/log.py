"""The log of a thread: one small protocol, and the store in memory.

A log takes entries behind an exact predecessor, all or nothing, and gives them back in order. It knows ids and
digests; it knows nothing of tasks, leases or graphs. `redislog.RedisLog` is the other store; one set of contract tests
(`tests/test_log.py`) runs on both.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from . import entries as e
from .errors import Conflict, LogError, Trimmed, UnknownThread
from .signing import Signer, checked, sealed

PAGE = 256


class Head(NamedTuple):
    """Where a log stands: the last checkpoint (0 and the birth before the first one) and the last entry's id."""

    n: int
    digest: str
    last: str


class Span(NamedTuple):
    """What to read of one log, as `Log.read` takes it."""

    thread: str
    start: str = "-"
    end: str = "+"
    most: int | None = None
    reverse: bool = False


Asked = Callable[[], "list[list[e.Entry] | None]"]
"""Gives the pages that were asked for, the same each time. May wait; may raise what reading raises."""


class Log(ABC):
    """What every store of logs can do. With a `signer` each entry that is appended gets its signature, and each that is
    read is checked; a log without one signs nothing and checks nothing."""

    signer: Signer | None = None

    @abstractmethod
    def append(self, thread: str, new: Sequence[e.Fields], after: tuple[int, str] | None) -> list[str]:
        """Append all of `new`, or nothing.

        Facts take the next free id of the open step, a checkpoint takes `n+1-0` and opens the next step. `after` is the
        (n, digest) of the last checkpoint, (0, birth) before the first, None for a thread without a log; its first
        entry then carries `birth`. Facts that arrived since then are no hindrance.

        Returns the ids. Raises Conflict if the last checkpoint is another one, TooLarge over the entry cap.
        """

    @abstractmethod
    def read(
        self,
        thread: str,
        start: str = "-",
        end: str = "+",
        count: int | None = None,
        *,
        reverse: bool = False,
    ) -> list[e.Entry]:
        """Entries with start <= id <= end, at most `count` (default: all), newest first with `reverse`.

        Raises CorruptEntry, NewerVersion; Forged where there is a signer, and an entry is not signed as it should be.
        """

    def read_all(self, spans: Sequence[Span]) -> list[list[e.Entry] | None]:
        """Several reads at once. None for one that `read` would raise about."""
        return [self._tried(span) for span in spans]

    def ask(self, spans: Sequence[Span]) -> Asked:
        """The same, for who has something to do before it needs the pages."""
        pages = self.read_all(spans)
        return lambda: pages

    def _tried(self, span: Span) -> list[e.Entry] | None:
        try:
            return self.read(*span[:4], reverse=span.reverse)
        except LogError:
            return None

    @abstractmethod
    def head(self, thread: str) -> Head | None:
        """Where the log stands; None if there is none."""

    @abstractmethod
    def threads(self) -> Iterator[str]:
        """The ids of all threads with a log, in no order."""

    @abstractmethod
    def delete(self, thread: str) -> bool:
        """Remove a log whole. False if there was none."""

    @abstractmethod
    def _cut(self, thread: str, mark: str) -> int:
        """Remove all entries below `mark`."""

    def pages(self, thread: str, start: str = "-", end: str = "+", page: int = PAGE) -> Iterator[e.Entry]:
        """Entries in order, read by pages, so that a long log costs no long call."""
        while True:
            found = self.read(thread, start, end, page)
            yield from found
            if len(found) < page:
                return
            start = f"({found[-1].id}"

    def trim(self, thread: str, mark: str) -> int:
        """Remove the entries below `mark`, an entry id. Returns how many.

        Raises Trimmed if the newest snapshot, or anything open, still needs what would go.
        """
        floor = self._floor(thread)
        if e.entry_id(mark) > e.entry_id(floor):
            raise Trimmed(
                f"entries from {floor} on are still needed",
                thread=thread,
                fix=f"trim below {floor}, or wait for the next snapshot",
            )
        return self._cut(thread, mark)

    def _floor(self, thread: str) -> str:
        """The lowest entry that is needed: by the newest snapshot, or by a run that builds on an earlier checkpoint."""
        from .branching import grounds

        floor = self._snapshot_floor(thread)
        return min([floor, *grounds(self, thread)], key=e.entry_id)

    def _snapshot_floor(self, thread: str) -> str:
        """The lowest entry that the newest snapshot says it needs; the beginning where there is none."""
        start = "+"
        while found := self.read(thread, "-", start, PAGE, reverse=True):
            for entry in found:
                if entry.is_checkpoint and entry.raw.get("floor"):
                    return entry.text("floor")
            start = f"({found[-1].id}"
        return "0-1"

    def fork(self, thread: str, n: int, target: str) -> Head:
        """Begin the new thread `target` with the state of checkpoint n of `thread`: a snapshot that names its parent.

        Works at any time. Raises UnknownThread, Trimmed, and ThreadBusy if `target` has a log already.
        """
        from .branching import fork

        return fork(self, thread, n, target)


class MemoryLog(Log):
    """Logs in this process's memory. Safe to use from several threads; gone when the process ends."""

    def __init__(self, signer: Signer | None = None) -> None:
        self.signer = signer
        self._logs: dict[str, list[e.Entry]] = {}
        self._heads: dict[str, tuple[int, str]] = {}
        self._lock = threading.RLock()

    def append(self, thread: str, new: Sequence[e.Fields], after: tuple[int, str] | None) -> list[str]:
        with self._lock:
            log = self._logs.get(thread, [])
            if self._heads.get(thread) != after:
                raise conflict(thread, self._heads.get(thread), after)
            new = sealed(self.signer, thread, new, after)
            n, digest = after or (0, str(new[0]["birth"]))
            made: list[e.Entry] = []
            at = int(time.time() * 1000)
            k = log[-1].k if log else 0
            for fields in new:
                n, k = (n + 1, 0) if fields["kind"] == e.CHECKPOINT else (n, k + 1)
                digest = str(fields["digest"]) if k == 0 else digest
                made.append(e.read_entry(f"{n}-{k}", e.stored({**fields, "at": at})))
            self._logs[thread] = [*log, *made] if not log else _extend(log, made)
            self._heads[thread] = (n, digest)
            return [entry.id for entry in made]

    def read(
        self,
        thread: str,
        start: str = "-",
        end: str = "+",
        count: int | None = None,
        *,
        reverse: bool = False,
    ) -> list[e.Entry]:
        low, high = _bound(start, low=True), _bound(end, low=False)
        with self._lock:
            log = self._logs.get(thread, [])
            first, last = bisect_left(log, low, key=_place), bisect_right(log, high, key=_place)
            if count is not None:
                first, last = (max(first, last - count), last) if reverse else (first, min(last, first + count))
            found = checked(self.signer, thread, log[first:last])
        return found[::-1] if reverse else found

    def head(self, thread: str) -> Head | None:
        with self._lock:
            if thread not in self._logs:
                return None
            return Head(*self._heads[thread], self._logs[thread][-1].id)

    def threads(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._logs))

    def delete(self, thread: str) -> bool:
        with self._lock:
            self._heads.pop(thread, None)
            return self._logs.pop(thread, None) is not None

    def _cut(self, thread: str, mark: str) -> int:
        with self._lock:
            log = self._logs[thread]
            kept = [x for x in log if (x.n, x.k) >= e.entry_id(mark)]
            self._logs[thread] = kept
            return len(log) - len(kept)


def _extend(log: list[e.Entry], made: list[e.Entry]) -> list[e.Entry]:
    log.extend(made)
    return log


def _place(entry: e.Entry) -> tuple[int, float]:
    return entry.n, entry.k


def _bound(text: str, *, low: bool) -> tuple[int, float]:
    """A range bound as in XRANGE: `-`, `+`, `n-k`, `n`, or `(n-k` for an exclusive one."""
    if text in "-+":
        return (-1, 0) if text == "-" else (2**63, 0)
    if text.startswith("("):
        n, k = e.entry_id(text[1:])
        return n, k + 0.5 if low else k - 0.5
    return e.entry_id(text) if "-" in text else (int(text), 0 if low else float("inf"))


def conflict(thread: str, found: tuple[int, str] | None, after: tuple[int, str] | None) -> Conflict:
    def say(head: tuple[int, str] | None) -> str:
        return "no log" if head is None else f"checkpoint {head[0]} {head[1][:8]}"

    return Conflict(f"the thread stands at {say(found)}, not at {say(after)}", thread=thread, fix="load it again")


def unknown_thread(thread: str) -> UnknownThread:
    return UnknownThread("no such thread", thread=thread, fix="`everstep threads` lists those that exist")
