"""Events: a run as it goes, from its log and its live stream, resumable from any process by the last cursor seen.

    Reader of the run ──calls──► Reader of what its tasks called     with `subgraphs`
      └─► Event(cursor, mode, chunk, task, attempt, ns)

    superseded   what this attempt at a task has said is void: it failed, was lost, or another one speaks
    gap          something said live was dropped, or kept no longer: how much
    rewound      the log is another one than was read: Redis lost its tail, or the thread was deleted
    trimmed      the beginning is not kept any more

A cursor says of each run which entry was read last, how many of its chunks, and what that entry was; so a reader who
comes back to another log is told, and one who comes late misses nothing of the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import InvalidInput, UnknownRun
from everstep_checkpoint.redislog import entries_of

from ..reading.branches import calls_in, nesting, stands, still_over, under
from ..reading.chunks import LogStream
from ..reading.ending import Ending
from ..reading.ledger import GAP, SUPERSEDED
from ..reading.nested import Namespace, goes_on, key_of, named_call, spoken_for
from ..reading.shapes import MODES, live_modes
from .reader import START, Heard, Position, Reader, before, mark_of
from .tail import BLOCK_MS, PAGE, Row, Tail

if TYPE_CHECKING:
    from ..reading.shapes import Reading
    from .client import Client
    from .runhandle import Run

REWOUND = "rewound"
TRIMMED = "trimmed"
NESTED = "s"  # in a cursor's modes: it knows what tasks called
OPEN_MAX = 256  # runs that are followed at once; the others are told when one of them, or their task, has ended


class Event(NamedTuple):
    """One event of a run. `cursor`: hand it to `Run.events(after=...)` to go on behind it.

    `chunk` is LangGraph's for its modes. `task` and `attempt` say who said it, in the modes `custom` and `messages`.
    `ns`: the graph it is of, with `subgraphs`: () for the run's own, ("child:<task id>",) for that of its node "child".
    """

    cursor: str
    mode: str
    chunk: Any
    task: str = ""
    attempt: int = 0
    ns: Namespace = ()


class Cursor(NamedTuple):
    """Where a reader is: in the run itself, and in each that its tasks called and that is not told to its end; `called`
    knows those by `Reader.via`. `modes`: those that were read in."""

    at: Position
    modes: str
    called: Mapping[str, Position]

    def text(self) -> str:
        entry, chunks, mark, live = self.at
        below = (f";{via}/{x.entry}/{x.chunks}/{x.mark}/{x.live}" for via, x in self.called.items())
        return f"{entry}/{chunks}/{self.modes}/{mark}/{live}{''.join(below)}"

    @classmethod
    def read(cls, text: str) -> Cursor:
        """A cursor from its text. Raises InvalidInput."""
        try:
            own, *below = text.split(";")
            entry, chunks, modes, mark, live = own.split("/")
            rows = [each.split("/") for each in below]
            called = {via: _position(*row) for via, *row in rows}
            return cls(_position(entry, chunks, mark, live), modes, called)
        except (ValueError, TypeError):
            raise InvalidInput(f"{text!r} is no cursor of a run's events", fix="hand over `event.cursor`") from None


def _position(entry: str, chunks: str, mark: str, live: str) -> Position:
    for each in (entry, live):
        e.entry_id(each)
    return Position(entry, int(chunks), mark, live)


class EventStream:
    """Reads one run's events; with `nested` those of what its tasks called, too. Use `read` once; `ended` says how the
    run came to its end."""

    def __init__(
        self,
        client: Client,
        run: Run,
        entry: str,
        reading: Reading,
        modes: Sequence[str],
        keys: Sequence[str] | None = None,
        timeout: float | None = None,
        *,
        nested: bool = False,
    ) -> None:
        self.run, self.entry, self.reading = run, entry, reading
        self.modes, self.keys, self.nested = tuple(modes), keys, nested
        self._log, self._client = client.log_store, client
        self._tail = Tail(client.redis, client.url)
        letters = "".join(str(MODES.index(mode)) for mode in sorted(self.modes, key=MODES.index))
        self._letters = letters + (NESTED if nested else "")
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout
        self._over: Ending | None = None
        self._begin()

    def _begin(self) -> None:
        """Before the run's first entry."""
        run = self.run
        self._root = self._reader(
            LogStream(self._log, run.thread_id, run.run_id, self.entry, self.reading, self.modes, keys=self.keys)
        )
        self._back = Cursor(START, "", {})  # where those are to go on that are not open yet

    def _reader(self, stream: LogStream, via: str = "") -> Reader:
        stream = nesting(stream) if self.nested else stream
        return Reader(stream, self.modes, self._client.keys, self._tail, self._client.redis, via)

    @property
    def ended(self) -> Ending | None:
        return self._root.ended or self._over

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
        readers = [each for each in self._root.family if each.ended is None][:OPEN_MAX]
        places: dict[str, str] = {}
        for key, place in (row for each in readers for row in each.places().items()):
            places[key] = min(place, places.get(key, place), key=e.entry_id)  # two runs may share a log
        rows = self._tail.read(places, BLOCK_MS / 1000 if self._end is None else self._end - time.monotonic())
        for reader in reversed(readers):  # what was called first: it goes on before what came of it
            if not reader.gone:
                yield from self._go_on(reader, rows, places[reader.log_key])
        if self._end is not None and time.monotonic() >= self._end and self.ended is None:
            self.run.timed_out(self._timeout or 0.0)

    def _go_on(self, reader: Reader, rows: dict[str, list[Row]], read_from: str) -> Iterator[Event]:
        """What came of one run."""
        if reader is self._root or not rows or reader.log_key in rows:
            yield from self._verified(reader)
        if not reader.gone and e.entry_id(reader.next) >= e.entry_id(read_from):
            yield from self._take(reader, rows)

    def _take(self, reader: Reader, rows: dict[str, list[Row]]) -> Iterator[Event]:
        reader.hear(rows.get(reader.live_key, ()))
        found = entries_of(rows.get(reader.log_key, ()), reader.thread, self._log.signer)
        read = e.entry_id(reader.next)
        for entry in (each for each in found if (each.n, each.k) > read):
            yield from self._feed(reader, entry)
            if reader.ended is not None:
                break
        if len(found) < PAGE:
            yield from self._events(reader.rest())
        if reader is self._root and reader.trimmed and not rows and self._is_over():
            self._over = Ending("done", 0, "")

    def _feed(self, reader: Reader, entry: e.Entry) -> Iterator[Event]:
        """One entry: what is left of what stands before it, in this log and in those of tasks it is about; then it."""
        yield from self._events(reader.before(entry))
        for key in spoken_for(entry, reader.stream.run, reader.called):
            if not stands(reader.called[key].stream, entry, key):
                yield from self._finish(reader.called[key])
            if not goes_on(entry, key):
                yield from self._events(reader.called[key].closing())
                reader.called.pop(key).leave()
        yield from self._events(reader.take(entry))
        for key, each in tuple(reader.called.items()):
            if each.follows and each.ended is not None:  # a cursor behind this entry knows of it by its lack
                reader.called.pop(key).leave()
        reader.opened = still_over(reader.opened, entry)
        for call in calls_in(reader.stream, entry) if self.nested else ():
            yield from self._call(reader, call)

    def _events(self, heard: Iterable[Heard]) -> Iterator[Event]:
        for ns, mode, chunk, task, attempt in heard:
            yield Event(self._cursor(), mode, chunk, task, attempt, ns)

    def _cursor(self) -> str:
        called = {each.via: each.position for each in self._root.family if each.via}
        return Cursor(self._root.position, self._letters, {**self._back.called, **called}).text()

    def _check_heard(self) -> None:
        """Raises InvalidInput for a live mode that the run's nodes are not listened to in."""
        live, record = live_modes(self.modes), self._root.stream.record
        wanted = set(live) - set(record.live)
        if self._root.trimmed or not (wanted or (live and self.nested and not record.subgraphs)):
            return
        below, more = (" within subgraphs", ", subgraphs=True") if self.nested else ("", "")
        raise InvalidInput(
            f"nobody listens to the run {self.run.run_id!r} in mode {sorted(wanted or live)[0]!r}{below}",
            fix=f"say so when it begins: submit(..., stream_mode={sorted(live)}{more})",
        )

    # what tasks called

    def _call(self, reader: Reader, call: e.Entry) -> Iterator[Event]:
        """A task called a run: it is read, too, from where the cursor says if that knows it."""
        key, via = key_of(call), f"{reader.via}.{call.id}".lstrip(".")
        named, before = named_call(call), reader.called.get(key)
        if key in reader.opened or (before is not None and named is not None and before.run == named[0]):
            return  # it is waited for once more, or was recorded twice
        reader.opened |= {key} if key[2] else set()
        position = self._back.called.get(via)
        if reader.silent and position is None and NESTED in self._back.modes:
            return  # it was told to its end
        stream = under(reader.stream, call)
        if stream is None:
            return
        found = reader.called[key] = self._reader(stream, via)
        yield from self._come_back(found, position or START, NESTED in self._back.modes)

    def _finish(self, reader: Reader) -> Iterator[Event]:
        """The rest of a run whose task has come to something: all of it is there."""
        if reader.silent:
            return
        while reader.ended is None:
            found = self._log.read(reader.thread, f"({reader.next}", "+", PAGE)
            for entry in found:
                yield from self._feed(reader, entry)
                if reader.ended is not None:
                    break
            if len(found) < PAGE:
                break
        yield from self._events(reader.rest())
        for each in tuple(reader.called.values()):
            yield from self._finish(each)

    # coming back

    def _enter(self, cursor: Cursor | None) -> Iterator[Event]:
        """Stand where the cursor says, knowing what a reader knows who has read up to there."""
        if cursor is not None:
            self._back = cursor if self.nested else cursor._replace(called={})
        same = cursor is not None and cursor.modes == self._letters
        yield from self._come_back(self._root, cursor.at if cursor is not None else START, same)
        self._back = Cursor(START, "", {})

    def _come_back(self, reader: Reader, position: Position, same: bool) -> Iterator[Event]:
        """One run's share of that. `same`: was it read in these modes?"""
        begun = self._log.read(reader.thread, reader.entry, reader.entry)
        if not position.mark:
            if not reader.follows and (not begun or begun[0].text("run") != reader.run):
                yield from self._lost(reader, reader.entry)
            return
        found = self._log.read(reader.thread, position.entry, position.entry)
        if not found or mark_of(found[0]) != position.mark:
            yield from self._lost(reader, position.entry)
            return
        reader.come_back(position, bool(begun))
        for entry in self._log.pages(reader.thread, self._first_to_read(reader, found[0]), position.entry):
            if entry.id == position.entry:
                yield from self._events(reader.before(entry))
                reader.arrive(position.chunks if same else 0)
            yield from self._feed(reader, entry)

    def _first_to_read(self, reader: Reader, entry: e.Entry) -> str:
        """The entry from which on the log must be read to know what there is to know at `entry`."""
        base = entry.n - 1 if entry.is_checkpoint else entry.n
        found = self._log.read(reader.thread, f"{base}-0", f"{base}-0")
        there = found and found[0].text("source") != "input"
        if base <= e.entry_id(reader.entry)[0] or not there or reader.follows:
            return reader.entry
        reader.stream.enter(base)
        return f"({base}-0"

    # what is not there any more

    def _verified(self, reader: Reader) -> Iterator[Event]:
        """Is the log still the one that was read? Asked whenever something came of it, and while nothing does."""
        if reader.at is None:
            found = self._log.read(reader.thread, reader.entry, reader.entry)
            begins = reader.trimmed or reader.follows  # what a function called is recorded before it begins
            if not begins and (not found or found[0].text("run") != reader.run):
                yield from self._lost(reader, reader.entry)
            return
        found = self._log.read(reader.thread, reader.at.id, reader.at.id)
        if not found or mark_of(found[0]) != reader.mark:
            yield from self._lost(reader, reader.at.id)

    def _lost(self, reader: Reader, entry: str) -> Iterator[Event]:
        """What stood at `entry` does not: say so, and go on from the beginning that there is."""
        first = self._log.read(reader.thread, count=1)
        begun = self._log.read(reader.thread, reader.entry, reader.entry)
        anew = self._anew(reader)
        if first and not begun and first[0].n > e.entry_id(reader.entry)[0]:
            at = max(e.entry_id(entry), e.entry_id(before(first[0].id)))
            anew.trimmed, anew.next = True, f"{at[0]}-{at[1]}" if at[0] else before(first[0].id)
            yield Event(self._cursor(), TRIMMED, {"below": first[0].id}, ns=anew.ns)
            return
        there = bool(begun) and (reader.follows or begun[0].text("run") == reader.run)
        yield Event(self._cursor(), REWOUND, {"to": reader.entry if there else ""}, ns=anew.ns)
        if not there and anew is self._root:
            raise self.run.unknown()
        if not there and not anew.follows:
            anew.ended = Ending("cancelled", 0, "")  # it was deleted: its task will say what comes of that

    def _anew(self, reader: Reader) -> Reader:
        """One that stands before the first entry, in its place."""
        reader.leave()
        if reader is self._root:
            self._begin()
            return self._root
        above = next(each for each in self._root.family if any(x is reader for x in each.called.values()))
        key = next(key for key, each in above.called.items() if each is reader)
        above.called[key] = self._reader(reader.stream.anew(), reader.via)
        return above.called[key]

    def _is_over(self) -> bool:
        try:
            return self.run.status() not in ("running", "queued")
        except UnknownRun:
            return True


__all__ = ["GAP", "REWOUND", "SUPERSEDED", "TRIMMED", "Cursor", "Event", "EventStream", "before"]
