"""Events: a run as it goes, from its log and its live stream, resumable from any process by the last cursor seen.

    log  ──┐ in order: what a task says comes before what came of it
    live ──┴─► Event(cursor, mode, chunk, task, attempt)

    superseded   what this attempt at a task has said is void: it failed, was lost, or another one speaks
    gap          something said live was dropped, or kept no longer: how much
    rewound      the log is another one than was read: Redis lost its tail, or the thread was deleted
    trimmed      the beginning is not kept any more

A cursor says which entry was read last, how many of its chunks, and what that entry was; so a reader who comes back to
another log is told, and one who comes late misses nothing of the log.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import pack
from everstep_checkpoint.errors import InvalidInput, UnknownRun

from ..moves.live import Said
from ..reading.chunks import LogStream
from ..reading.ending import Ending, EndingFinder
from ..reading.ledger import GAP, SUPERSEDED, Ledger, Notice
from ..reading.shapes import MODES, Told, live_modes
from .tail import BLOCK_MS, PAGE, Row, Tail, entries

if TYPE_CHECKING:
    from ..reading.shapes import Reading
    from .client import Client
    from .runhandle import Run

REWOUND = "rewound"
TRIMMED = "trimmed"
LIVE_WAIT_S = 2.0  # for words that are still under way when their attempt is committed
AHEAD_MAX = 4 * PAGE  # words read ahead of the log


class Event(NamedTuple):
    """One event of a run. `cursor`: hand it to `Run.events(after=...)` to go on behind it.

    `chunk` is LangGraph's for its modes. `task` and `attempt` say who said it, in the modes `custom` and `messages`.
    """

    cursor: str
    mode: str
    chunk: Any
    task: str = ""
    attempt: int = 0


class Cursor(NamedTuple):
    """Where a reader is: `entry` was read, and its first `chunks` chunks in `modes`; `mark` is what the entry was."""

    entry: str
    chunks: int
    modes: str
    mark: str
    live: str

    def text(self) -> str:
        return f"{self.entry}/{self.chunks}/{self.modes}/{self.mark}/{self.live}"

    @classmethod
    def read(cls, text: str) -> Cursor:
        """A cursor from its text. Raises InvalidInput."""
        try:
            entry, chunks, modes, mark, live = text.split("/")
            for each in (entry, live):
                e.entry_id(each)
            return cls(entry, int(chunks), modes, mark, live)
        except ValueError:
            raise InvalidInput(f"{text!r} is no cursor of a run's events", fix="hand over `event.cursor`") from None


def mark_of(entry: e.Entry) -> str:
    """8 characters that tell an entry from another one with its id."""
    if entry.is_checkpoint:
        return entry.digest[:8]
    said = hashlib.sha256(pack(sorted([name, value] for name, value in entry.raw.items()))).digest()
    return base64.urlsafe_b64encode(said)[:8].decode()


class EventStream:
    """Reads one run's events. Use `read` once; `ended` says how the run came to its end."""

    def __init__(
        self,
        client: Client,
        run: Run,
        entry: str,
        reading: Reading,
        modes: Sequence[str],
        keys: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.run, self.entry, self.reading = run, entry, reading
        self.modes, self.keys = tuple(modes), keys
        self.ended: Ending | None = None
        self._log, self._client = client.log_store, client
        self._log_key = client.keys.log(run.thread_id)
        self._live_key = client.keys.live(run.thread_id, run.run_id)
        self._listens = bool(live_modes(modes))
        self._tail = Tail(client.redis, client.url)
        self._letters = "".join(str(MODES.index(mode)) for mode in sorted(self.modes, key=MODES.index))
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout
        self._begin()

    def _begin(self) -> None:
        """Before the run's first entry."""
        run = self.run
        self._stream = LogStream(
            self._log, run.thread_id, run.run_id, self.entry, self.reading, self.modes, keys=self.keys
        )
        self._ledger, self._finder = Ledger(run.run_id), EndingFinder(run.run_id)
        self._at: e.Entry | None = None
        self._next = before(self.entry)  # read behind this id
        self._chunks = self._skip = 0
        self._ahead: deque[tuple[str, Said]] = deque()
        self._live_read = self._live_told = "0-0"
        self._trimmed = False
        self._silent = False

    # reading

    def read(self, after: str = "") -> Iterator[Event]:
        """All events behind a cursor, to the run's end. Raises UnknownRun, InvalidInput, TimeoutError, ServerError."""
        cursor, entered = Cursor.read(after) if after else None, False
        while self.ended is None:
            try:
                if not entered:
                    yield from self._enter(cursor)
                    self._check_heard()
                    entered = True
                else:
                    yield from self._round()
            except redis.RedisError as error:
                self._tail.absent(error)
                cursor, entered = Cursor.read(self._cursor()) if entered else cursor, False
                self._begin()

    def _round(self) -> Iterator[Event]:
        """One read of what came, and what it tells."""
        places = {self._log_key: self._next}
        if self._listens and len(self._ahead) < AHEAD_MAX:
            places[self._live_key] = self._live_read
        rows = self._tail.read(places, BLOCK_MS / 1000 if self._end is None else self._end - time.monotonic())
        yield from self._verified()
        if self._next == places[self._log_key]:  # it stands where it stood
            yield from self._take(rows)
        if self._end is not None and time.monotonic() >= self._end and self.ended is None:
            self.run.timed_out(self._timeout or 0.0)

    def _take(self, rows: dict[str, list[Row]]) -> Iterator[Event]:
        self._hear(rows.get(self._live_key, ()))
        found = entries(rows.get(self._log_key, ()), self.run.thread_id)
        for entry in found:
            yield from self._feed(entry)
            if self.ended is not None:
                break
        if len(found) < PAGE:
            yield from self._tell(self._stream.flush())
        yield from self._speak()
        if self._trimmed and not rows and self._is_over():
            self.ended = Ending("done", 0, "")

    def _feed(self, entry: e.Entry) -> Iterator[Event]:
        """One entry: what is left of the one before it, what was said until then, its own chunks."""
        yield from self._tell(self._stream.before(entry))
        yield from self._speak()
        if self._listens:
            yield from self._await(entry)
            yield from self._noticed(self._ledger.close(entry))
        self._at, self._next, self._chunks = entry, entry.id, 0
        yield from self._tell(self._stream.feed(entry))
        self.ended = self._finder.feed(entry) or self.ended

    def _tell(self, told: Iterable[Told]) -> Iterator[Event]:
        for mode, chunk in told:
            self._chunks += 1
            if self._skip:
                self._skip -= 1
            elif not self._silent:
                yield Event(self._cursor(), mode, chunk)

    def _cursor(self) -> str:
        at, mark = ("0-0", "") if self._at is None else (self._at.id, mark_of(self._at))
        return Cursor(at, self._chunks, self._letters, mark, self._live_told).text()

    # what is said live

    def _check_heard(self) -> None:
        """Raises InvalidInput for a live mode that the run's nodes are not listened to in."""
        wanted = set(live_modes(self.modes)) - set(self._stream.record.live)
        if wanted and not self._trimmed:
            raise InvalidInput(
                f"nobody listens to the run {self.run.run_id!r} in mode {sorted(wanted)[0]!r}",
                fix=f"say so when it begins: submit(..., stream_mode={sorted(live_modes(self.modes))})",
            )

    def _hear(self, rows: Iterable[Row]) -> None:
        for row_id, fields in rows:
            self._live_read = row_id.decode()
            self._ahead.append((self._live_read, Said.read(fields)))

    def _speak(self, *, past: bool = False) -> Iterator[Event]:
        """What was said at checkpoints that were read; with `past` also behind words that have to wait for theirs."""
        waiting: deque[tuple[str, Said]] = deque()
        n = self._at.n if self._at is not None else 0
        while self._ahead and (past or not waiting):
            row_id, said = self._ahead.popleft()
            if said.n > n:
                waiting.append((row_id, said))
                continue
            if not waiting:
                self._live_told = row_id
            yield from self._noticed(self._ledger.hear(said))
        self._ahead.extendleft(reversed(waiting))

    def _noticed(self, notices: Iterable[Notice]) -> Iterator[Event]:
        for mode, said, chunk in notices:
            if self._silent or (chunk is None and mode not in self.modes):
                continue
            told = chunk if chunk is not None else self.reading.codec.decode(said.data, f"what {said.node!r} told")
            yield Event(self._cursor(), mode, told, said.id, said.attempt)

    def _await(self, entry: e.Entry) -> Iterator[Event]:
        """The words of the attempt behind an entry are all heard, or it is clear that they will not come."""
        end = 0.0
        while self._ledger.missing(entry) and not self._silent:
            if not end:
                end = time.monotonic() + LIVE_WAIT_S - self._age_s(entry)
            rows = self._tail.read({self._live_key: self._live_read}, max(end - time.monotonic(), 0.001))
            self._hear(rows.get(self._live_key, ()))
            yield from self._speak(past=True)
            if not rows and time.monotonic() >= end:
                return

    def _age_s(self, entry: e.Entry) -> float:
        seconds, micros = self._client.redis.time()
        return max(float(seconds) + float(micros) / 1e6 - entry.number("at") / 1000, 0.0)

    # coming back

    def _enter(self, cursor: Cursor | None) -> Iterator[Event]:
        """Stand where the cursor says, knowing what a reader knows who has read up to there."""
        begun = self._log.read(self.run.thread_id, self.entry, self.entry)
        if cursor is None or not cursor.mark:
            if not begun or begun[0].text("run") != self.run.run_id:
                yield from self._lost(self.entry)
            return
        found = self._log.read(self.run.thread_id, cursor.entry, cursor.entry)
        if not found or mark_of(found[0]) != cursor.mark:
            yield from self._lost(cursor.entry)
            return
        self._silent, self._trimmed = True, not begun
        self._rehear(cursor.live)
        for entry in self._log.pages(self.run.thread_id, self._first_to_read(found[0]), cursor.entry):
            yield from self._tell(self._stream.before(entry))
            if entry.id == cursor.entry:
                self._silent, self._skip = False, cursor.chunks if cursor.modes == self._letters else 0
            yield from self._feed(entry)

    def _first_to_read(self, entry: e.Entry) -> str:
        """The entry from which on the log must be read to know what there is to know at `entry`."""
        base = entry.n - 1 if entry.is_checkpoint else entry.n
        found = self._log.read(self.run.thread_id, f"{base}-0", f"{base}-0")
        if base <= e.entry_id(self.entry)[0] or not found or found[0].text("source") == "input":
            return self.entry
        self._stream.enter(base)
        return f"({base}-0"

    def _rehear(self, live: str) -> None:
        """What was told up to the cursor is heard again, silently: who speaks, and how far."""
        while self._listens and e.entry_id(self._live_read) < e.entry_id(live):
            rows: Any = self._client.redis.xrange(self._live_key, f"({self._live_read}", live, PAGE)
            for row_id, fields in rows:
                self._live_read = self._live_told = row_id.decode()
                self._ledger.hear(Said.read(fields))
            if not rows:
                self._live_read = self._live_told = live

    # what is not there any more

    def _verified(self) -> Iterator[Event]:
        """Is the log still the one that was read? Asked whenever something came of it, and while nothing does."""
        if self._at is None:
            found = self._log.read(self.run.thread_id, self.entry, self.entry)
            if not self._trimmed and (not found or found[0].text("run") != self.run.run_id):
                yield from self._lost(self.entry)
            return
        found = self._log.read(self.run.thread_id, self._at.id, self._at.id)
        if not found or mark_of(found[0]) != mark_of(self._at):
            yield from self._lost(self._at.id)

    def _lost(self, entry: str) -> Iterator[Event]:
        """What stood at `entry` does not: say so, and go on from the beginning that there is."""
        first = self._log.read(self.run.thread_id, count=1)
        begun = self._log.read(self.run.thread_id, self.entry, self.entry)
        if first and not begun and first[0].n > e.entry_id(self.entry)[0]:
            at = max(e.entry_id(entry), e.entry_id(before(first[0].id)))
            self._begin()
            self._trimmed, self._next = True, f"{at[0]}-{at[1]}" if at[0] else before(first[0].id)
            yield Event(self._cursor(), TRIMMED, {"below": first[0].id})
            return
        self._begin()
        there = bool(begun) and begun[0].text("run") == self.run.run_id
        yield Event(self._cursor(), REWOUND, {"to": self.entry if there else ""})
        if not there:
            raise self.run.unknown()

    def _is_over(self) -> bool:
        try:
            return self.run.status() not in ("running", "queued")
        except UnknownRun:
            return True


def before(entry: str) -> str:
    """The id just below a fact's."""
    n, k = e.entry_id(entry)
    return f"{n}-{k - 1}" if k else f"{max(n - 1, 0)}-{2**63 - 1}"


__all__ = ["GAP", "REWOUND", "SUPERSEDED", "TRIMMED", "Cursor", "Event", "EventStream", "before"]
