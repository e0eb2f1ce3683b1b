"""Standing: the output values of a thread at rest, with the questions that wait on it."""

from __future__ import annotations

from typing import Any

from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import state_at

from .questions import interrupts, open_step
from .shapes import Reading, beside
from .snapshot import snapshot


def standing(log: Log, thread: str, reading: Reading) -> Any:
    """The output values of a thread at rest, as far as they can be read here, and with the questions that wait."""
    told = open_step(log, thread)
    found = interrupts(told, reading.codec) if told is not None else []
    if reading.spec is not None:
        known = reading.spec.shown(snapshot(log, thread, spec=reading.spec).values)
    else:  # without the reducers, what siblings of an open task wrote is not shown yet
        known = reading.output(state_at(log, thread) if told is not None and told.n else None)
    return beside(known, found) if found else known
