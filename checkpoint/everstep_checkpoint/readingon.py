"""Reading on: the state at a checkpoint, from an earlier one that is known, and what stands behind that in the log.

    known 3 ──► 3-1  3-2  4-0  5-0 ──► state at 5        3-0 itself is not read: the digest of 4-0 covers that of 3-0

It comes to what `state_at` comes to, or to nothing: the log may have lost the known checkpoint and gone another way, or
its thread may have been deleted and begun anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from . import entries as e
from .delta import Delta, decode_delta, fold, merged, refs
from .log import PAGE, Log, Span
from .replay import Channels, Fold, State, folder_of, stands_alone, sums_of
from .sound import sound


class Known(NamedTuple):
    """A checkpoint that was read before, and what a `Fold` had at it."""

    n: int
    digest: str
    channels: Channels
    birth: str
    since_snapshot: int
    delta_bytes: int


def span_on(thread: str, known: int, n: int) -> Span:
    """What `state_on` reads first, and most often all it reads: what stands behind checkpoint `known`, up to n."""
    return Span(thread, f"{known}-1", f"{n}-0", PAGE)


@sound
def state_on(log: Log, thread: str, known: Known, n: int) -> State | None:
    """The state at checkpoint n, read on from one before it. None if the log has none there, or what it has behind the
    known one was not built on that.

    A checkpoint that holds the state whole is taken whatever stands before it. Raises CorruptEntry also where what
    follows takes a fact from before the known one, or where a signed log went another way; `state_at` reads it then.
    """
    entries = _behind(log, span_on(thread, known.n, n))
    state = _plainly(known, entries) if log.signer is None else None
    if state is not None:
        return state if state.n == n else None
    folder = _folder_at(log, thread, known)
    for entry in entries:
        if state is None and entry.is_checkpoint and not _builds_on(known, entry, folder):
            return None
        state = folder.feed(entry) or state
    return state if state is not None and state.n == n else None


def _behind(log: Log, span: Span) -> Sequence[e.Entry]:
    found = log.read(span.thread, span.start, span.end, span.most)
    if len(found) < PAGE:
        return found
    return [*found, *log.pages(span.thread, f"({found[-1].id}", span.end)]


def _plainly(known: Known, entries: Sequence[e.Entry]) -> State | None:
    """What a `Fold` would come to, the short way: there are only checkpoints, each a delta that takes nothing from a
    fact. Steps of one task are so. None: it isn't so, or the first one does not build on the known one."""
    channels, size, delta = known.channels, known.delta_bytes, Delta()
    for n, entry in enumerate(entries, known.n + 1):
        if entry.k or entry.n != n or stands_alone(entry):
            return None
        stored = entry.value("delta") or b"\x80"
        found = decode_delta(stored)
        if refs(found):
            return None
        both = merged(delta, found)  # what is put behind a long list several times is so at once
        if both is None:
            channels, both = fold(channels, delta), found
        delta, size = both, size + len(stored)
    if not entries or entries[0].digest_on(known.digest) != entries[0].digest:
        return None
    return State(entries[-1], fold(channels, delta), known.birth, known.since_snapshot + len(entries), size)


def _folder_at(log: Log, thread: str, known: Known) -> Fold:
    folder = folder_of(log, thread)
    folder.n, folder.channels, folder.birth = known.n, known.channels, known.birth
    folder.since_snapshot, folder.delta_bytes = known.since_snapshot, known.delta_bytes
    if folder.chain is not None:
        folder.chain.last = folder.chain.seen[known.n] = known.digest
    return folder


def _builds_on(known: Known, entry: e.Entry, folder: Fold) -> bool:
    """May the first checkpoint be applied to the known one? Where entries are signed, `folder` sees to it."""
    if folder.chain is not None or stands_alone(entry):
        return True
    return entry.digest_on(known.digest, sums_of(entry, folder)) == entry.digest
