"""Reader: one run's log and its live stream, as far as they are read. `client/events.py` reads a tree of them.

    log  ──┐ in order: what a task says comes before what came of it
    live ──┴─► Heard(ns, mode, chunk, task, attempt)

It says what entries and words bring, and where it stands; it asks nothing of Redis by itself, but for words that are
still under way.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import pack
from everstep_checkpoint.keys import Keys

from ..moves.live import Said
from ..reading.calledstream import NOBODY, CalledStream
from ..reading.chunks import LogStream
from ..reading.ending import Ending, EndingFinder
from ..reading.ledger import Ledger, Notice
from ..reading.nested import Key, Namespace, Nested
from ..reading.shapes import live_modes
from .tail import PAGE, Row, Tail

LIVE_WAIT_S = 2.0  # for words that are still under way when their attempt is committed
AHEAD_MAX = 4 * PAGE  # words read ahead of the log


class Heard(NamedTuple):
    """A chunk, and the namespace of its graph; `task` and `attempt` say who said it, where it was said live."""

    ns: Namespace
    mode: str
    chunk: Any
    task: str = ""
    attempt: int = 0


class Position(NamedTuple):
    """Where a reader of one run is: `entry` was read, and its first `chunks` chunks; `mark` is what the entry was;
    `live` was the last thing said that was told."""

    entry: str
    chunks: int
    mark: str
    live: str


START = Position("0-0", 0, "", "0-0")


def mark_of(entry: e.Entry) -> str:
    """8 characters that tell an entry from another one with its id."""
    if entry.is_checkpoint:
        return entry.digest[:8]
    said = hashlib.sha256(pack(sorted([name, value] for name, value in entry.raw.items()))).digest()
    return base64.urlsafe_b64encode(said)[:8].decode()


def before(entry: str) -> str:
    """The id just below a fact's."""
    n, k = e.entry_id(entry)
    return f"{n}-{k - 1}" if k else f"{max(n - 1, 0)}-{2**63 - 1}"


class Reader:
    """Reads one run. `via`: the ids of the facts that called it and those above, from the outermost run on."""

    def __init__(
        self, stream: LogStream, modes: Sequence[str], keys: Keys, tail: Tail, redis: Any, via: str = ""
    ) -> None:
        self.stream, self.via = stream, via
        self.thread, self.run, self.entry = stream.thread, stream.run, stream.since
        self.ns = stream.where.ns
        self._hears, self._live_key = self.run, keys.live
        self.log_key, self.live_key = keys.log(self.thread), keys.live(self.thread, self.run)
        self.called: dict[Key, Reader] = {}
        self.opened: set[Key] = set()  # calls of graphs by functions, that are not opened again
        self.ended: Ending | None = None
        self.at: e.Entry | None = None
        self.mark = ""  # of that entry
        self.next = before(self.entry)  # read behind this id
        self.trimmed = False
        self.gone = False  # nobody reads it any more
        self._modes, self._listens = modes, bool(live_modes(modes))
        self._tail, self._redis = tail, redis
        self._ledger, self._finder = Ledger(self.run), EndingFinder(self.run)
        self._chunks = self._skip = 0
        self._ahead: deque[tuple[str, Said]] = deque()
        self._live_read: str = "0-0"
        self._live_told: str = "0-0"
        self._back: Position | None = None  # it comes back, and tells nothing until it is there

    @property
    def position(self) -> Position:
        if self._back is not None:
            return self._back
        at = "0-0" if self.at is None else self.at.id
        return Position(at, self._chunks + self._skip, self.mark, self._live_told)

    @property
    def silent(self) -> bool:
        """Does it read again what it had read?"""
        return self._back is not None

    @property
    def family(self) -> Iterator[Reader]:
        """Itself, and behind it those that its tasks called."""
        yield self
        for each in self.called.values():
            yield from each.family

    def leave(self) -> None:
        """It is read no further, nor what its tasks called."""
        for each in self.family:
            each.gone = True

    def places(self) -> dict[str, str]:
        """What is to be read next: a key, and the id behind which."""
        found = {self.log_key: self.next}
        if self._listens and len(self._ahead) < AHEAD_MAX and self.stream.run != NOBODY:
            found[self.live_key] = self._live_read
        return found

    # entries

    def before(self, entry: e.Entry) -> Iterator[Heard]:
        """What is left to tell before an entry: chunks of the one before it, and what was said until then."""
        yield from self._tell(self.stream.before(entry))
        yield from self.speak()

    def take(self, entry: e.Entry) -> Iterator[Heard]:
        """What an entry brings."""
        if self._listens:
            yield from self._await(entry)
            yield from self._noticed(self._ledger.close(entry))
        self.at, self.mark, self.next, self._chunks = entry, mark_of(entry), entry.id, 0
        yield from self._tell(self.stream.feed(entry))
        if self.follows:
            self._follow()
        else:
            self.ended = self._finder.feed(entry) or self.ended

    def closing(self) -> Iterator[Heard]:
        """What is left when the task that called it has come to something."""
        yield from self._tell(self.stream.closing())

    @property
    def follows(self) -> bool:
        """Is it what a function called? Then its log may go on in another run."""
        return isinstance(self.stream, CalledStream)

    def _follow(self) -> None:
        """Listen to the run that is told now. A graph that a function called has ended once it is done: what failed, or
        asks, may go on."""
        assert isinstance(self.stream, CalledStream), "of others one run is told"
        self.ended = self.stream.ended
        if self.stream.run == self._hears:
            return
        self._hears = self.stream.run
        self._ledger, self.live_key = Ledger(self._hears), self._live_key(self.thread, self._hears)
        self._live_read = self._live_told = "0-0"
        self._ahead.clear()
        if self._back is not None:
            self._listen_again(self._back)

    def rest(self) -> Iterator[Heard]:
        """What else there is to tell where no entry stands behind (yet)."""
        yield from self._tell(self.stream.flush())
        yield from self.speak()

    def _tell(self, told: Iterable[Nested]) -> Iterator[Heard]:
        for ns, mode, chunk in told:
            self._chunks += 1
            if self._skip:
                self._skip -= 1
            elif not self.silent:
                yield Heard(ns, mode, chunk)

    # what is said live

    def hear(self, rows: Iterable[Row]) -> None:
        """Words that were read; they are told when the log has come to them."""
        for row_id, fields in rows:
            if e.entry_id(row_id.decode()) <= e.entry_id(self._live_read):
                continue
            self._live_read = row_id.decode()
            self._ahead.append((self._live_read, Said.read(fields)))

    def speak(self, *, past: bool = False) -> Iterator[Heard]:
        """What was said at checkpoints that were read; with `past` also behind words that have to wait for theirs."""
        waiting: deque[tuple[str, Said]] = deque()
        n = self.at.n if self.at is not None else 0
        while self._ahead and (past or not waiting):
            row_id, said = self._ahead.popleft()
            if said.n > n:
                waiting.append((row_id, said))
                continue
            if not waiting:
                self._live_told = row_id
            yield from self._noticed(self._ledger.hear(said))
        self._ahead.extendleft(reversed(waiting))

    def _noticed(self, notices: Iterable[Notice]) -> Iterator[Heard]:
        codec = self.stream.reading.codec
        for mode, said, chunk in notices:
            if self.silent or (chunk is None and mode not in self._modes):
                continue
            told = chunk if chunk is not None else codec.decode(said.data, f"what {said.node!r} told")
            yield Heard(self.ns, mode, told, said.id, said.attempt)

    def _await(self, entry: e.Entry) -> Iterator[Heard]:
        """The words of the attempt behind an entry are all heard, or it is clear that they will not come."""
        end = 0.0
        while self._ledger.missing(entry) and not self.silent:
            if not end:
                end = time.monotonic() + LIVE_WAIT_S - self._age_s(entry)
            rows = self._tail.read({self.live_key: self._live_read}, max(end - time.monotonic(), 0.001))
            self.hear(rows.get(self.live_key, ()))
            yield from self.speak(past=True)
            if not rows and time.monotonic() >= end:
                return

    def _age_s(self, entry: e.Entry) -> float:
        seconds, micros = self._redis.time()
        return max(float(seconds) + float(micros) / 1e6 - entry.number("at") / 1000, 0.0)

    # coming back

    def come_back(self, position: Position, begun: bool) -> None:
        """Read silently on to a position. `begun`: is the run's first entry still there?"""
        self._back, self.trimmed = position, not begun
        self._listen_again(position)

    def _listen_again(self, position: Position) -> None:
        """Hear, and tell nothing of, what had been told at a position."""
        while self._listens and e.entry_id(self._live_read) < e.entry_id(position.live):
            rows: Any = self._redis.xrange(self.live_key, f"({self._live_read}", position.live, PAGE)
            for row_id, fields in rows:
                self._live_read = self._live_told = row_id.decode()
                self._ledger.hear(Said.read(fields))
            if not rows:
                self._live_read = self._live_told = position.live

    def arrive(self, chunks: int) -> None:
        """The entry of the position is next: all but its first chunks is told."""
        self._back, self._skip = None, chunks
