"""The ledger of what nodes say live: which attempt at a task speaks, how much of it was heard, and who speaks no more.

    Said ──hear──► it, after a `superseded` for an attempt it replaces, or a `gap` for what was not heard
    entry ──close──► `superseded` for an attempt that failed or was lost, a `gap` for what never came

The words of one attempt are never mixed with those of another. Pure: rows and entries go in as they are read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from everstep_checkpoint import entries as e

from ..moves.contract import JOIN_TASK, START_TASK
from ..moves.live import Said

SUPERSEDED = "superseded"
GAP = "gap"


class Notice(NamedTuple):
    """What a reader is told about an attempt's words, or (`chunk` None) that `said` is to be told as it is."""

    mode: str
    said: Said
    chunk: dict[str, Any] | None = None


class Ledger:
    """Keeps who speaks, for the open step of one run."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._n = 0
        self._last: dict[tuple[int, str], Said] = {}
        self._over: dict[str, int] = {}

    def hear(self, said: Said) -> list[Notice]:
        """The next thing said. What comes too late, or twice, brings nothing."""
        key = said.n, said.task
        before = self._last.get(key)
        if said.n < self._n or said.token in self._over:
            return []
        found: list[Notice] = []
        if before is not None and before.token != said.token:
            if said.attempt < before.attempt:
                return []
            found.append(self._superseded(before))
            before = None
        heard = before.i if before is not None else 0
        if said.i <= heard:
            return []
        if said.i > heard + 1:
            found.append(_gap(said, said.i - heard - 1))
        self._last[key] = said
        return [*found, Notice(said.mode, said)]

    def missing(self, entry: e.Entry) -> int:
        """How much of what the attempt behind an entry said is not heard yet."""
        failed = entry.kind == "task_failed" and entry.text("run") == self._run
        key = (entry.n, entry.text("task")) if failed else self._closed(entry)
        told = entry.number("told") if key is not None else 0
        if key is None or not told or entry.text("token") in self._over:
            return 0
        last = self._last.get(key)
        return max(told - (last.i if last is not None and last.token == entry.text("token") else 0), 0)

    def close(self, entry: e.Entry) -> list[Notice]:
        """What an entry of the log means for what was said."""
        found, token = list[Notice](), entry.text("token")
        ours = entry.text("run") == self._run
        if ours and entry.kind in ("task_failed", "task_lost"):
            last = self._last.get((entry.n, entry.text("task")))
            if last is not None and (last.token == token or not token):
                found.append(self._superseded(last))
                del self._last[entry.n, entry.text("task")]
            self._over[token] = entry.n
        elif ours and (key := self._closed(entry)) is not None:
            lost, last = self.missing(entry), self._last.get(key)
            if last is not None and last.token != token:
                found.append(self._superseded(last))
            if lost:
                found.append(_gap(_of(entry, key), lost))
            self._over[token] = key[0]
        if entry.is_checkpoint:
            self._n = entry.n
            self._over = {token: n for token, n in self._over.items() if n >= entry.n}
            self._last = {key: said for key, said in self._last.items() if key[0] >= entry.n}
        return found

    def _closed(self, entry: e.Entry) -> tuple[int, str] | None:
        """The task that an entry says is done, or asks: its checkpoint's number, and its name."""
        task = entry.text("task")
        if entry.text("run") != self._run or task in ("", START_TASK, JOIN_TASK):
            return None
        if entry.is_checkpoint:
            return entry.n - 1, task
        return (entry.n, task) if entry.kind in ("task_done", "task_paused") else None

    def _superseded(self, said: Said) -> Notice:
        self._over[said.token] = said.n
        return Notice(SUPERSEDED, said, {"id": said.id, "name": said.node, "attempt": said.attempt})


def _gap(said: Said, lost: int) -> Notice:
    return Notice(GAP, said, {"id": said.id, "name": said.node, "attempt": said.attempt, "lost": lost})


def _of(entry: e.Entry, key: tuple[int, str]) -> Said:
    """Who would have said what never came."""
    return Said("", key[0], key[1], "", entry.text("node"), entry.number("attempt"), entry.text("token"), 0, b"")
