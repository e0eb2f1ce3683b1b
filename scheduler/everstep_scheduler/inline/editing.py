"""Editing: updates of a graph that a node's function called. Its log is kept by the attempts of that node's task.

    its log ──read──► Draft, in memory ──► the update, its reducers and routers ──► new entries ──Moves.edit──► its log

No attempt may be at work there meanwhile: the entries are written whole or not at all, behind the very entry that was
read, and only while the thread whose task keeps the log is at rest. The task's next attempt finds the log as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import Conflict, ThreadBusy
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.log import Log, MemoryLog, unknown_thread

from ..moves.contract import LEASE_MS, Branch, Caller, Moves, Offer, Start, Started, Within
from ..moves.keeper import LeaseKeeper
from ..moves.live import LiveWriter
from ..moves.promises import Keeper, NoPromises
from ..reading.children import caller_of, kept_for
from ..reading.questions import open_step
from ..steps.stateface import Given, StateFace, StateUpdate
from .logmoves import LogMoves
from .savers import Saver, owner_name


class Draft(MemoryLog):
    """One thread's log, copied, and what is added to the copy."""

    def __init__(self, base: Log, thread: str) -> None:
        super().__init__(base.signer)
        found = list(base.pages(thread))
        if not found:
            raise unknown_thread(thread)
        last = next((x for x in reversed(found) if x.is_checkpoint), None)
        self._logs[thread] = found
        self._heads[thread] = (last.n, last.digest) if last is not None else (0, found[0].text("birth"))
        self.thread, self._read = thread, len(found)

    def added(self) -> Within:
        """What is to be written, and behind which entry."""
        log = self._logs[self.thread]
        new = ((x.id, {name: value for name, value in x.fields().items() if name != "at"}) for x in log[self._read :])
        return Within(self.thread, log[self._read - 1].id, tuple(new), new_id())


class DraftMoves(LogMoves):
    """The moves over a draft. Runs that begin there name the task that called the graph, as the others in its log."""

    def __init__(self, draft: Draft, caller: str) -> None:
        super().__init__(draft)
        self._said: e.Fields = {"caller": caller} if caller else {}

    def start(self, start: Start, offer: Offer | None = None, caller: Caller | None = None) -> Started:
        return super().start(self._by_caller(start), offer, caller)

    def branch(self, branch: Branch, offer: Offer | None = None, *, ask: bool = False) -> Started:
        return super().branch(replace(branch, start=self._by_caller(branch.start)), offer, ask=ask)

    def _by_caller(self, start: Start) -> Start:
        return replace(start, fields={**start.fields, **self._said})

    def _check(self, thread: str) -> None:
        """These are the threads that are edited here."""


class DraftSaver:
    """Where an update is made up."""

    lease_ms = LEASE_MS
    keeper: LeaseKeeper | None = None
    live: LiveWriter | None = None
    promises: Keeper = NoPromises()

    def __init__(self, draft: Draft, caller: str) -> None:
        self.owner = owner_name()
        self.draft = draft
        self.log: Log = draft
        self.moves: Moves = DraftMoves(draft, caller)


def edited(
    log: Log,
    moves: Moves,
    thread: str,
    graph: Callable[[Saver], StateFace],
    config: Given,
    supersteps: Sequence[Sequence[StateUpdate]],
) -> dict[str, Any]:
    """Updates of a thread that a task's attempts keep, each superstep by itself. `graph`: what was called, on a saver;
    its routers run here. Returns the last checkpoint's config.

    Raises ThreadBusy, Conflict, UnknownThread, ServerError; else as `bulk_update_state`, with nothing written then.
    """
    place = dict(config)
    for updates in supersteps:
        place = _superstep(log, moves, thread, graph, place, updates)
    return place


def _superstep(
    log: Log,
    moves: Moves,
    thread: str,
    graph: Callable[[Saver], StateFace],
    place: Given,
    updates: Sequence[StateUpdate],
) -> dict[str, Any]:
    keeper = kept_for(log, thread)
    told = open_step(log, keeper)
    if told is None:
        raise unknown_thread(keeper)
    if told.running:
        raise _busy(keeper)
    draft = Draft(log, thread)
    below = open_step(draft, thread)
    if below is not None and below.running:
        raise _halfway(keeper)
    (last,) = log.read(thread, count=1, reverse=True)
    caller = caller_of(log, thread, last)
    saver = DraftSaver(draft, caller.text if caller is not None and caller.run else "")
    made = graph(saver).bulk_update_state(place, [updates])
    _write(moves, keeper, draft.added())
    return made


def _write(moves: Moves, keeper: str, new: Within) -> None:
    match moves.edit(keeper, new):
        case "ok":
            return
        case "busy":
            raise _busy(keeper)
        case "unknown":
            raise unknown_thread(keeper)
        case _:
            raise Conflict(
                "somebody else wrote into what the node called while its update was made up, and nothing was written",
                thread=keeper,
                fix="look at get_state(config, subgraphs=True), and update it again",
            )


def _busy(keeper: str) -> ThreadBusy:
    return ThreadBusy(
        "a run is under way on the thread, and may be at work in what its node called",
        thread=keeper,
        fix="update that when the run rests: wait for it, or cancel it",
    )


def _halfway(keeper: str) -> ThreadBusy:
    return ThreadBusy(
        "what the node called was left in the middle of a step, and only the node can go on with that",
        thread=keeper,
        fix="go on with this thread, invoke(None) or `everstep retry`; update it when the run rests",
    )
