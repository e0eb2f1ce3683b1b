"""Loading: what an attempt stands on, from a cache of encoded channels or from the log.

The cache holds bytes keyed by (thread, n, digest), and entries by their id and what says that they are the same: the
run, the checkpoint or the attempt they belong to. Nothing that a node touches is ever in it, and a rewound or newly
created thread can't be taken for the old one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import CorruptEntry
from everstep_checkpoint.log import PAGE, Log, Span
from everstep_checkpoint.readingon import Known, span_on, state_on
from everstep_checkpoint.replay import Channels, State, commands_of, state_at

from ..graph.channels import read_on
from ..moves.contract import JOIN_TASK, START_TASK, UPDATE_TASK, Lease
from ..moves.record import RunRecord
from .readahead import ReadAhead

CACHE_BYTES = 64 * 2**20
ENTRIES_KEPT = 4096
RECORDS_KEPT = 16_384
BEHIND_MAX = 64  # checkpoints; from further behind, a snapshot may be nearer
AHEAD_MAX = 16  # checkpoints that are read for an attempt before it is loaded,
AHEAD_BYTES = 256 * 2**10  # and how large the state may be: what changes it may be as large
NEXTS_KEPT, NEXT_BYTES = 1024, 512  # fields `next` whose rows are remembered: how many, and how long at most
FRESH_STEP = -2
_FIRST = (START_TASK, UPDATE_TASK, JOIN_TASK)  # tasks a run may begin with


class Stand(NamedTuple):
    """A thread at one checkpoint, as a planner needs it. `run`: whose checkpoint it is. `on`: (n, digest) of it where a
    run builds on an earlier checkpoint than the last one, so that what comes next is a branch. `stored`: the channels
    as the log has them, where Commands updated them since."""

    channels: Channels
    step: int
    parts: tuple[tuple[str, int], ...] = ()
    order: tuple[str, ...] = ()
    since_snapshot: int = 0
    delta_bytes: int = 0
    run: str = ""
    on: tuple[int, str] | None = None
    stored: Channels | None = None

    @property
    def logged(self) -> Channels:
        """What a delta is computed against."""
        return self.channels if self.stored is None else self.stored

    @property
    def size(self) -> int:
        return size_of(self.channels)


def size_of(channels: Channels) -> int:
    """Bytes of the channels' names and values."""
    return sum(map(len, channels)) + sum(map(len, channels.values()))


NOWHERE = Stand({}, FRESH_STEP)


def rows_of(next_rows: Any) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """The PULL tasks and the (part, count)s of a checkpoint's `next`."""
    pulls = tuple(row[0] for row in next_rows if len(row) == 4)
    return pulls, tuple((row[0], row[1]) for row in next_rows if len(row) == 2)


_rows_seen: dict[bytes, tuple[tuple[str, ...], tuple[tuple[str, int], ...]]] = {}


def _rows(entry: e.Entry) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """`rows_of` a checkpoint. A graph has few that name no parts, and all its runs have the same: these are kept."""
    raw = entry.raw.get("next", b"")
    if (found := _rows_seen.get(raw)) is None:
        found = rows_of(entry.next)
        if not found[1] and len(raw) <= NEXT_BYTES and len(_rows_seen) < NEXTS_KEPT:
            _rows_seen[raw] = found
    return found


def _stand(state: State) -> Stand:
    pulls, parts = _rows(state.entry)
    step, run = state.entry.number("step"), state.entry.text("run")
    return Stand(state.channels, step, parts, pulls, state.since_snapshot, state.delta_bytes, run)


def _is_at(lease: Lease, state: State) -> bool:
    return state.digest == lease.digest and lease.birth in ("", state.birth)


class Loader:
    """Loads stands, run records and Send parts. Safe to use from several threads; bounded in bytes."""

    def __init__(self, log: Log, cache_bytes: int = CACHE_BYTES) -> None:
        self.log = log
        self._ahead = ReadAhead(log)
        self._cache_bytes = cache_bytes
        self._stands: OrderedDict[str, tuple[int, str, Stand, int]] = OrderedDict()  # n, digest, stand, its size
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, str, str, str], e.Entry] = OrderedDict()
        self._records: OrderedDict[tuple[str, str, str, str], RunRecord] = OrderedDict()
        self._lock = threading.Lock()
        self.gate: Any = None  # what admits leases where entries are signed; whoever shares the loader shares it

    def ground(self, lease: Lease) -> Stand:
        """What a task builds on: the last checkpoint, or the earlier one that its run names. Raises LogError."""
        named = self._named(lease) if lease.width == 1 and lease.task in _FIRST else None
        if named is None:
            return self.stand(lease)
        if named[0] == 0:  # before the first one
            return Stand({}, FRESH_STEP, on=named)
        return self._read(lease._replace(n=named[0], digest=named[1]))._replace(on=named)

    def _named(self, lease: Lease) -> tuple[int, str] | None:
        """(n, digest) that a run's fact names in `on`, until the run has a checkpoint of its own."""
        began = self.entry(lease, lease.rec) if lease.rec else None
        if began is None or began.n != lease.n or began.is_checkpoint or "on" not in began.raw:
            return None
        n, _, digest = began.text("on").partition(" ")
        return int(n), digest

    def stand(self, lease: Lease) -> Stand:
        """A thread at the checkpoint of a lease. Raises LogError."""
        if lease.n == 0:
            return Stand({}, FRESH_STEP)
        with self._lock:
            found = self._stands.get(lease.thread)
            if found is not None and found[:2] == (lease.n, lease.digest):
                self._stands.move_to_end(lease.thread)
                return found[2]
        stand = (self._read_on(lease, *found[:3]) if found is not None else None) or self._read(lease)
        self.keep(lease.thread, lease.n, lease.digest, stand)
        return stand

    def _read_on(self, lease: Lease, n: int, digest: str, stand: Stand) -> Stand | None:
        """Read what other processes have added since this one was here last; None if that leads to nothing."""
        if not 0 < lease.n - n <= BEHIND_MAX:
            return None
        known = Known(n, digest, stand.logged, lease.birth, stand.since_snapshot, stand.delta_bytes)
        try:
            state = state_on(self._ahead.of(lease.token), lease.thread, known, lease.n)
        except CorruptEntry:
            return None  # reading all of it says what is wrong, if anything is
        if state is None or not _is_at(lease, state):
            return None
        read_on(known.channels, state.channels)
        return _stand(state)

    def prove(self, lease: Lease) -> None:
        """Read the checkpoint of a lease from the log, since that came, whatever the cache has. Raises LogError."""
        self.keep(lease.thread, lease.n, lease.digest, self._read(lease))

    def peek(self, thread: str, digest: str = "") -> Stand | None:
        """Where the cache says a thread stands, at the checkpoint of that digest; None if it does not know."""
        with self._lock:
            found = self._stands.get(thread)
            return None if found is None or (digest and found[1] != digest) else found[2]

    def _read(self, lease: Lease) -> Stand:
        state = state_at(self._ahead.of(lease.token), lease.thread, lease.n)
        if not _is_at(lease, state):
            raise CorruptEntry(
                "the log has another checkpoint here than the index says",
                thread=lease.thread,
                checkpoint=str(lease.n),
                fix="`everstep recover` rebuilds the index from the log",
            )
        return _stand(state)

    def keep(self, thread: str, n: int, digest: str, stand: Stand, size: int | None = None) -> None:
        """Remember where a thread stands, within the byte budget; the longest unused goes first."""
        size = stand.size if size is None else size
        with self._lock:
            old = self._stands.pop(thread, None)
            self._bytes += size - (old[3] if old else 0)
            self._stands[thread] = (n, digest, stand, size)
            while self._bytes > self._cache_bytes and len(self._stands) > 1:
                _, gone = self._stands.popitem(last=False)
                self._bytes -= gone[3]

    def entry(self, lease: Lease, ref: str, of: str = "") -> e.Entry:
        """One entry by id, cached: run records and Send parts are read many times. `of`: what it is as old as, at
        least: the lease's run, if nothing is said, for what stood there when that began; a checkpoint's digest, or a
        token, for what came later. After a rewind (a failover, a file cut short) another entry may have its id."""
        thread = lease.thread
        key = (thread, lease.birth, of or lease.run, ref)
        with self._lock:
            if key in self._entries:
                return self._entries[key]
        found = self._ahead.of(lease.token).read(thread, ref, ref)
        if not found:
            raise CorruptEntry(f"the entry {ref} is missing", thread=thread, fix="fork from an earlier checkpoint")
        with self._lock:
            self._entries[key] = found[0]
            while len(self._entries) > ENTRIES_KEPT:
                self._entries.popitem(last=False)
        return found[0]

    def ahead(self, leases: Sequence[Lease]) -> None:
        """Read what several attempts that are to begin will ask for, in one request. What is not found, or can't be
        read, is told when it is asked for. Long logs are left for then."""
        with self._lock:
            wanted = {lease.token: spans for lease in leases if (spans := self._wanted(lease))}
        if wanted:
            self._ahead.fetch(wanted)

    def forget(self, lease: Lease) -> None:
        """The attempt is over, or was never begun: what was read ahead for it is for nobody."""
        self._ahead.forget(lease.token)

    def _wanted(self, lease: Lease) -> list[Span]:
        """What an attempt will ask for that the caches lack: what its run says, and where its thread stands."""
        thread, birth, run = lease.thread, lease.birth, lease.run
        refs = [lease.rec] if lease.width == 1 and lease.task in _FIRST and lease.rec else []
        if lease.conf and (thread, birth, run, lease.conf) not in self._records:
            refs.append(lease.conf)
        wanted = [Span(thread, ref, ref) for ref in refs if (thread, birth, run, ref) not in self._entries]
        n, _, _, size = self._stands.get(thread, (0, "", NOWHERE, 0))
        if 0 < lease.n - n <= AHEAD_MAX and size <= AHEAD_BYTES:
            wanted.append(span_on(thread, n, lease.n) if n else Span(thread, "-", f"{lease.n}-0", PAGE, reverse=True))
        return wanted

    def record(self, lease: Lease, codec: Codec) -> RunRecord:
        """The record of the run that a lease belongs to, its context of the graph's types."""
        key = (lease.thread, lease.birth, lease.run, lease.conf)
        with self._lock:
            if (found := self._records.get(key)) is not None:
                self._records.move_to_end(key)  # a run that goes on keeps its place, however many come and go
                return found
        entry = self.entry(lease, lease.conf)
        record = RunRecord.decode(entry.value("record") or b"\x80", codec)
        with self._lock:
            self._records[key] = record
            while len(self._records) > RECORDS_KEPT:
                self._records.popitem(last=False)
        return record

    def commands(self, lease: Lease, stand: Stand) -> Sequence[e.Entry]:
        """The facts of Commands that updated the state a lease's task builds on. An update by hand that names an
        earlier checkpoint takes that one as it was written."""
        if stand.on is not None:
            return () if lease.task == UPDATE_TASK else commands_of(self.log, lease.thread, stand.on[0])
        return [self.entry(lease, ref) for ref in lease.over.split()]

    def answers(self, lease: Lease) -> list[tuple[str, bytes]]:
        """The questions that a lease's task had answered, by their ids, and the encoded answers, in order."""
        facts = [self.entry(lease, ref) for ref in lease.answers.split()]
        found = ((fact.text("question"), fact.value("answer")) for fact in facts)
        return [(question, b"\xc0" if answer is None else answer) for question, answer in found]

    def send(self, lease: Lease, stand: Stand) -> bytes:
        """The encoded argument of a Send's task, `s<k>_<i>`: the i-th packet of the part whose id ends in `-k`."""
        k, _, i = lease.task[1:].partition("_")
        if k.startswith("g"):  # a Command added it: its part is a fact of this very step
            return self.entry(lease, f"{lease.n}-{k[1:]}").sends()[int(i)][1]
        part = next((ref for ref, _ in stand.parts if e.entry_id(ref)[1] == int(k)), None)
        if part is None:
            raise CorruptEntry(
                "no Send part of this name", thread=lease.thread, checkpoint=str(lease.n), node=lease.node
            )
        return self.entry(lease, part, lease.digest).sends()[int(i)][1]
