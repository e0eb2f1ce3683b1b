"""Mending: a log in which somebody else has written, or an entry has come to harm, is made whole again.

    Walk(log, thread) ──each entry──► good: it verifies, and builds on the good ones before it
                                      bad:  foreign, broken, or out of its place
    cut: under the recovery lock the good entries are copied, and the copy takes the log's place; one script does that,
         and only if nothing has come meanwhile. Indexes that say otherwise than the good entries are made anew.

What verifies is never removed. Where everstep's own checkpoints stand behind a bad one, nothing is.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.chain import Chain
from everstep_checkpoint.codec import MALFORMED
from everstep_checkpoint.errors import Conflict, CorruptEntry, LogError, NewerVersion
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.log import PAGE, unknown_thread
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import Fold, fetch, sums_of
from everstep_checkpoint.signing import placed

from ..moves.connection import Client, translated
from ..moves.redismoves import Scripts, salt
from ..reading.derive import Reader
from .rebuild import LOCK_MS
from .recovery import Recovery

BAD_MAX = 100_000
TRIES = 10
LOCK_WAIT_S = 30.0
RAW_PAGE = 100
_BROKEN = (LogError, *MALFORMED, TypeError, ValueError, LookupError, AttributeError)
Row = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True)
class Bad:
    """An entry that is none of the thread's, and why not."""

    id: str
    why: str


@dataclass
class Walk:
    """A thread's entries read in order, each judged by those before it. `read` goes on where it stood."""

    log: RedisLog
    thread: str
    bad: list[Bad] = field(default_factory=list[Bad])
    ranges: list[list[str]] = field(default_factory=list[list[str]])  # of good entries: first and last id
    good: int = 0
    length: int = 0
    last: str = ""
    reader: Reader = field(default_factory=Reader)
    _n: int | None = None
    _good: str = ""  # the last good checkpoint, as `everstep history` has it
    _broken_n: int | None = None  # the last bad entry that is a checkpoint by its looks
    _goes_on: str = ""
    _joins: bool = False

    def __post_init__(self) -> None:
        self._folder = Fold(fetch(self.log, self.thread))
        self._chain = Chain(self.thread)

    def read(self, tick: Callable[[], object] = lambda: None) -> Walk:
        """Read what there is, or what has come since. Raises CorruptEntry over what can't be mended, NewerVersion."""
        start = f"({self.last}" if self.last else "-"
        while page := self.log.rows(self.thread, start, "+", PAGE):
            for row in page:
                self._feed(row)
            start = f"({self.last}"
            tick()
        if not self.length:
            raise unknown_thread(self.thread)
        return self

    @property
    def upto(self) -> str:
        """The last good entry."""
        return self.ranges[-1][1]

    def _feed(self, row: Row) -> None:
        self.last, self.length = row[0].decode(), self.length + 1
        if why := self._wrong(row):
            self.bad.append(Bad(self.last, why))
            self._joins = False
            if len(self.bad) > BAD_MAX:
                what = f"more than {BAD_MAX:,} entries of the log can't be read"
                raise CorruptEntry(
                    what, thread=self.thread, fix="find who writes them; delete the thread, or restore it"
                )
            return
        self.good += 1
        if self._joins:
            self.ranges[-1][1] = self.last
        else:
            self.ranges.append([self.last, self.last])
        self._joins = True

    def _wrong(self, row: Row) -> str:
        """Why an entry is not the thread's; empty if it is. A newer format is an error: it can't be judged here."""
        try:
            entry = e.read_entry(*row)
        except CorruptEntry as error:
            return error.what
        except NewerVersion as error:
            error.of(self.thread)
            raise
        try:
            if self.log.signer is not None:
                self.log.signer.check(self.thread, entry)
            why = self._checkpoint(entry) if entry.is_checkpoint else self._fact(entry)
            if not why:
                self.reader.feed(entry)
        except _BROKEN as error:  # type: ignore[misc]
            why = error.what if isinstance(error, LogError) else f"entry {entry.id} is not readable: {error!r}"
        if why and entry.is_checkpoint:
            self._note_broken(entry)
        return why

    def _note_broken(self, entry: e.Entry) -> None:
        if self._broken_n is not None and entry.n == self._broken_n + 1:
            self._goes_on = self._goes_on or entry.id
        self._broken_n = entry.n

    def _fact(self, entry: e.Entry) -> str:
        if self._n is None:
            self._n = entry.n  # 0, or where the log was trimmed
        if entry.n != self._n:
            return f"fact {entry.id} belongs to no checkpoint: the last good one is {self._n}"
        if "sum" in entry.raw and e.fact_sum(entry.fields()) != entry.text("sum"):
            return f"fact {entry.id}: its sum does not match what it stores"
        if self._chain.last is not None:
            placed(self.thread, entry, self._n, self._chain.last)
        Reader().feed(entry)  # can it be read at all? Ours must not be touched by half of it
        self._folder.feed(entry)
        if self._n == 0:
            self._chain.fact(entry)
        return ""

    def _checkpoint(self, entry: e.Entry) -> str:
        if self._n is not None and entry.n != self._n + 1:
            return f"checkpoint {entry.n} does not follow {self._n}, the last good one"
        parent = self._chain.parent(entry)
        Reader().feed(entry)
        if parent is not None:  # else below the trim mark: nothing to check it against
            if e.digest_of(parent, entry.n, entry.fields(), sums_of(entry, self._folder)) != entry.digest:
                return f"checkpoint {entry.n}: its digest does not match what it stores and builds on"
            if astray := self._chain.astray(entry):
                return astray
            self._folder.feed(entry)
            self._chain.checkpoint(entry)
        self._n, self._good = entry.n, entry.checkpoint_id
        return ""

    def check(self) -> None:
        """Raises CorruptEntry if what can't be read is not to be cut out."""
        if not self.ranges or not self.reader.birth:
            what = "no entry of this log is everstep's, or its beginning is gone"
            key = shlex.quote(self.log.keys.log(self.thread))
            fix = f"nothing can be made of it; if nobody wants it any more: redis-cli DEL {key}"
            raise CorruptEntry(what, thread=self.thread, fix=fix)
        if self._goes_on:
            what = f"{self.bad[0].why}; checkpoints that may be everstep's stand behind it, as {self._goes_on}"
            begin = f"`everstep fork {shlex.quote(self.thread)} --at {self._good}` begins a thread with what was there"
            fix = f"nothing was cut; {begin}" if self._good else "nothing was cut, and there is none before it"
            raise CorruptEntry(what, thread=self.thread, fix=fix)
        self.reader.told()


@dataclass(frozen=True)
class Found:
    """What is wrong with a log. `bad`: entries that are none of the thread's. `upto`: the last good one.

    `mark` is what `cut` asks for: the first bad one, or, where they were removed by hand, the last id that was given.
    """

    thread: str
    entries: int
    upto: str
    bad: tuple[Bad, ...]
    mark: str

    @property
    def sound(self) -> bool:
        return not self.mark


@dataclass(frozen=True)
class Mended:
    """What a cut did. `stray`: the thread's indexes said otherwise, and were made anew."""

    removed: int
    upto: str
    stray: bool


def look(client: Client, keys: Keys, thread: str) -> Found:
    """Read a whole log and say which entries are none of the thread's. Writes nothing.

    Raises UnknownThread, NewerVersion, CorruptEntry for what no cut can mend, ServerError.
    """
    with translated():
        return _found(Walk(RedisLog(client, keys), thread).read())


def raw(client: Client, keys: Keys, thread: str, bad: tuple[Bad, ...]) -> Iterator[tuple[Bad, dict[bytes, bytes]]]:
    """The entries as they are stored."""
    asked: Any = client  # redis-py types answers for decoding and asynchronous clients too
    for i in range(0, len(bad), RAW_PAGE):
        chunk = bad[i : i + RAW_PAGE]
        pipe = asked.pipeline(transaction=False)
        for each in chunk:
            pipe.xrange(keys.log(thread), each.id, each.id)
        for each, rows in zip(chunk, pipe.execute(), strict=True):
            yield from ((each, fields) for _, fields in rows)


def cut(
    client: Client, keys: Keys, thread: str, mark: str, shown: Callable[[Bad, dict[bytes, bytes]], object]
) -> Mended:
    """Take out of a log what is none of the thread's. `mark` must be what `look` says; `shown` gets each entry first.

    Workers go on meanwhile; what they hold of the thread stays theirs if the indexes say what the good entries say.
    Raises Conflict if another entry is the first bad one, and as `look`.
    """
    with translated():
        mending = Mending(client, keys, thread)
        with mending.locked():
            mended = mending.cut(mark, shown)
        if mended.stray:
            Recovery(client, keys).run()
        return mended


def _found(walk: Walk) -> Found:
    walk.check()
    mark = walk.bad[0].id if walk.bad else ""
    info: Any = walk.log.client.xinfo_stream(walk.log.keys.log(walk.thread))
    given, last = info["last-generated-id"], info["last-entry"]  # of one moment: the thread may have moved on
    if not mark and last is not None and given != last[0]:
        mark = given.decode()
    return Found(walk.thread, walk.length, walk.upto, tuple(walk.bad), mark)


class Mending:
    """One thread's mending, under the recovery lock: no rebuild, and no second mending, runs beside it."""

    def __init__(self, client: Client, keys: Keys, thread: str) -> None:
        self.client: Any = client
        self.keys = keys
        self.thread = thread
        self.scripts = Scripts(client, keys)
        self.mine = new_id()

    @contextmanager
    def locked(self) -> Generator[None]:
        """Raises Conflict if another process holds the lock for too long."""
        end = time.monotonic() + LOCK_WAIT_S
        while not self.client.set(self.keys.recovery, self.mine, nx=True, px=LOCK_MS):
            if time.monotonic() > end:
                raise Conflict(
                    "another process is rebuilding indexes", thread=self.thread, fix="wait for it; try again"
                )
            time.sleep(0.1)
        try:
            yield
        finally:
            if self._holds():
                self.client.delete(self.keys.recovery)
            self.client.unlink(self.keys.mended(self.thread))

    def _holds(self) -> bool:
        return bool(self.client.get(self.keys.recovery) == self.mine.encode())

    def _extend(self) -> None:
        if self._holds():
            self.client.pexpire(self.keys.recovery, LOCK_MS)

    def cut(self, mark: str, shown: Callable[[Bad, dict[bytes, bytes]], object]) -> Mended:
        walk, told = Walk(RedisLog(self.client, self.keys), self.thread), 0
        for _ in range(TRIES):
            found = _found(walk.read(self._extend))
            if found.mark != mark:
                first = f"the first entry to cut is {found.mark}" if found.mark else "nothing is to be cut"
                fix = f"`everstep recover --thread {shlex.quote(self.thread)}` shows it again"
                raise Conflict(f"{first}, not {mark}", thread=self.thread, fix=fix)
            for bad, fields in raw(self.client, self.keys, self.thread, found.bad[told:]):
                shown(bad, fields)
            told = len(found.bad)
            self._copy(walk)
            if (answer := self._take_its_place(walk)) is not None:
                return Mended(len(found.bad), found.upto, bool(answer.get("stray")))
        what = f"the thread moved {TRIES} times while its log was being mended"
        raise Conflict(what, thread=self.thread, fix="cancel its run first, or try again")

    def _copy(self, walk: Walk) -> None:
        self.client.unlink(self.keys.mended(self.thread))
        for first, last in walk.ranges:
            start = first
            while start:
                start = self._run({"from": start, "to": last}).get("next", "")

    def _take_its_place(self, walk: Walk) -> dict[str, Any] | None:
        """None if entries came since the log was read."""
        told = walk.reader.told()
        says = {"n": told.n, "digest": told.digest, "run": told.run, "status": told.status}
        first = answer = self._run({"seen": walk.last, "length": walk.length, "count": walk.good, **says})
        while answer.get("more"):
            answer = self._run({"clean": 1})
        return None if first["status"] == "moved" else first

    def _run(self, header: dict[str, Any]) -> dict[str, Any]:
        said = {"lock": self.mine, "lock_ms": LOCK_MS, "thread": self.thread, "salt": salt()}
        answer = self.scripts.run("mend", {**said, **header})
        if answer["status"] == "lost":
            raise Conflict("another process took the recovery lock", thread=self.thread, fix="try again")
        return answer
