"""Logs that an attempt keeps for the graphs that its node calls, and the moves over them.

    KeptMoves (in the attempt's memory) ──all entries of one move──► FencedLog ──Moves.within, under the lease──► logs
                                                                        └── the lease is gone: the attempt ends there

So a move is in these logs whole or not at all, whoever dies, and an attempt that lost its task writes nothing more into
them. The next attempt begins with new moves, which read the logs: what was open is open, whoever had it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, TypeVar

from everstep_checkpoint import entries as e
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.log import Head, Log, conflict
from everstep_checkpoint.signing import sealed

from ..moves.contract import (
    LEASE_MS,
    Answer,
    Branch,
    Caller,
    Commit,
    Lease,
    Moves,
    Offer,
    Start,
    Started,
    Within,
)
from ..moves.keeper import LeaseKeeper
from ..moves.live import LiveWriter
from ..moves.promises import Keeper, NoPromises
from ..steps.effects import Effects, Fenced, insist
from ..steps.failpoints import reach
from .logmoves import LogMoves, Thread

T = TypeVar("T")


class FencedLog(Log):
    """The logs below one attempt. Entries wait until `flush`, which writes them all at once under the lease.

    They get their ids here: nobody else writes into these logs while the lease stands, and the move says so if somebody
    did. `lost` is called when the lease is gone, `rang` when something was written.
    """

    def __init__(
        self, base: Log, moves: Moves, lease: Lease, lost: Callable[[], None], rang: Callable[[], None]
    ) -> None:
        self._base, self.signer = base, base.signer
        self._rang = rang
        self._moves = moves
        self._lease = lease
        self._lost = lost
        self._tails: dict[str, Head] = {}
        self._waiting: dict[str, Within] = {}
        self._ended: BaseException | None = None

    def append(self, thread: str, new: Sequence[e.Fields], after: tuple[int, str] | None) -> list[str]:
        tail = self.head(thread)
        standing = None if tail is None else (tail.n, tail.digest)
        if standing != after:
            raise conflict(thread, standing, after)
        new = sealed(self.signer, thread, new, after)
        n, digest = after or (0, str(new[0]["birth"]))
        k = e.entry_id(tail.last)[1] if tail is not None else 0
        made: list[tuple[str, e.Fields]] = []
        for fields in new:
            n, k = (n + 1, 0) if fields["kind"] == e.CHECKPOINT else (n, k + 1)
            digest = str(fields["digest"]) if k == 0 else digest
            made.append((f"{n}-{k}", fields))
        waits = self._waiting.get(thread) or Within(thread, tail.last if tail else "", (), new_id())
        self._waiting[thread] = waits._replace(entries=(*waits.entries, *made))
        self._tails[thread] = Head(n, digest, made[-1][0])
        return [ref for ref, _ in made]

    def flush(self) -> None:
        """Write what waits; where Redis is away, for as long as its moves have patience. Raises Fenced, Conflict,
        ServerError: then these logs take nothing more from this attempt."""
        if self._ended is not None:
            raise self._ended
        logs, self._waiting = list(self._waiting.values()), {}
        if not logs:
            return
        reach("keeping")
        try:
            self._write(logs)
        except BaseException as error:
            self._ended = error
            raise
        reach("kept")

    def _write(self, logs: Sequence[Within]) -> None:
        if not insist(lambda: self._moves.within(self._lease, logs), self._moves.patience_s):
            self._lost()
            raise Fenced
        self._rang()

    def read(
        self, thread: str, start: str = "-", end: str = "+", count: int | None = None, *, reverse: bool = False
    ) -> list[e.Entry]:
        asked = partial(self._base.read, thread, start, end, count, reverse=reverse)
        return insist(asked, self._moves.patience_s)

    def head(self, thread: str) -> Head | None:
        found = self._tails.get(thread) or insist(lambda: self._base.head(thread), self._moves.patience_s)
        if found is not None:
            self._tails[thread] = found
        return found

    def threads(self) -> Iterator[str]:
        return self._base.threads()

    def delete(self, thread: str) -> bool:
        raise AssertionError("what an attempt keeps is deleted with the thread that its task is of")

    def _cut(self, thread: str, mark: str) -> int:
        raise AssertionError("what an attempt keeps is not trimmed while it runs")


class KeptMoves(LogMoves):
    """`Moves` for what one attempt keeps: each is one writing."""

    def __init__(self, log: FencedLog) -> None:
        super().__init__(log)
        self._fence = log

    def _whole(self, move: Callable[[], T]) -> T:
        with self._lock:
            self._fence.flush()  # there is nothing, or it says why there can be nothing more
            answer = move()
            self._fence.flush()
            return answer

    def standing(self, thread: str) -> Thread | None:
        """Where a thread stands; None for one that is not there yet."""
        with self._lock:
            return self._load(thread)

    def start(self, start: Start, offer: Offer | None = None, caller: Caller | None = None) -> Started:
        return self._whole(lambda: super(KeptMoves, self).start(start, offer, caller))

    def branch(self, branch: Branch, offer: Offer | None = None, *, ask: bool = False) -> Started:
        return self._whole(lambda: super(KeptMoves, self).branch(branch, offer, ask=ask))

    def commit(self, commits: Sequence[tuple[Commit, Offer]]) -> list[Answer]:
        return self._whole(lambda: super(KeptMoves, self).commit(commits))

    def part(self, lease: Lease, pieces: Sequence[e.Fields]) -> list[str]:
        return self._whole(lambda: super(KeptMoves, self).part(lease, pieces))

    def within(self, lease: Lease, logs: Sequence[Within]) -> bool:
        return self._whole(lambda: super(KeptMoves, self).within(lease, logs))

    def release(
        self,
        owner: str,
        tokens: Sequence[str] | None,
        to: Literal["job", "parked", "lost"],
        why: str = "",
        node: str = "",
    ) -> int:
        return self._whole(lambda: super(KeptMoves, self).release(owner, tokens, to, why, node))

    def cancel(self, thread: str, run: str = "", actor: str = "") -> str:
        return self._whole(lambda: super(KeptMoves, self).cancel(thread, run, actor))

    def _check(self, thread: str) -> None:
        """These are the threads that begin here."""


class KeptSaver:
    """Where the graphs are kept that one attempt calls: in logs of their own, where its thread's log is.

    Nothing can take their tasks away but the end of the attempt's own lease.
    """

    lease_ms = LEASE_MS
    keeper: LeaseKeeper | None = None
    live: LiveWriter | None = None
    promises: Keeper = NoPromises()  # the commit of the attempt covers it

    def __init__(self, doing: Effects, lost: Callable[[], None]) -> None:
        self.owner = doing.by
        self.log = FencedLog(doing.log, doing.moves, doing.lease, lost, doing.rang)
        self.moves = KeptMoves(self.log)
