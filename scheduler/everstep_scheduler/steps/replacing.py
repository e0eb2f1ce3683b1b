"""Replacing: an input that sets its thread back to where it was before the run under way, and begins there.

    run under way: 4-1 run_started  5-0  6-0  7-0 (stopped)
    the new one:                                  7-3 run_started, on 4  ──start──► 8-0 input, a branch of 4

Nothing is rewritten: what the stopped run did stays in the history. The script stops the very run that was looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import Conflict, Trimmed
from everstep_checkpoint.log import PAGE, Log

from ..moves.contract import Start, Started
from ..moves.record import On
from .loading import FRESH_STEP

TRIES = 100


def begun(log: Log, start: Start, move: Callable[[Start], Started]) -> Started:
    """Begin a run; one that rolls back looks first which run is under way. Raises Conflict, Trimmed."""
    if start.mode != "rollback":
        return move(start)
    asked = start
    for _ in range(TRIES):
        answer = move(asked)
        if answer.status != "moved":
            return answer
        asked = _instead_of(log, start, answer.run) if answer.run else start
    raise Conflict(
        "runs begin and end faster than one can be rolled back", thread=start.thread, fix="stop its producers"
    )


def _instead_of(log: Log, start: Start, run: str) -> Start:
    """The start as it takes the place of this run: on the checkpoint that was the last one when that began."""
    thread = start.thread
    began = _began(log, thread, run)
    if began is None:
        return start  # it ended, and another one is under way
    if began.n:
        found = log.read(thread, f"{began.n}-0", f"{began.n}-0")
        if not found:
            raise Trimmed("where the run began was trimmed", thread=thread, fix="use 'interrupt'")
        on = On(began.n, found[0].digest, found[0].number("step"))
    else:
        head = log.head(thread)
        if head is None or not head.n:  # it has no checkpoint yet: there is nothing to go back from
            return replace(start, over=run, at=(0, head.digest) if head is not None else None)
        on = On(0, log.read(thread, "0-1", "0-1")[0].text("birth"), FRESH_STEP)
    return replace(start, over=run, base=on.step, fields={**start.fields, "on": f"{on.n} {on.digest}"})


def _began(log: Log, thread: str, run: str) -> e.Entry | None:
    """The fact with which a run began, looking back from the end."""
    end = "+"
    while found := log.read(thread, "-", end, PAGE, reverse=True):
        for entry in found:
            if entry.kind == "run_started":
                return entry if entry.text("run") == run else None
        end = f"({found[-1].id}"
    return None
