"""Clearing: `update_state(values=None, as_node=END)`. What is open at a checkpoint is given up; what those of its tasks
wrote that are done stays, and leads where it led (LangGraph: `bulk_update_state`, "no values as END").

    the step was closed by the next checkpoint ──► that one's state and tasks, again
    it is open                                  ──► a plan from the `task_done` facts that are there
"""

from __future__ import annotations

from collections.abc import Sequence

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import state_at, step_of

from ..graph.spec import GraphSpec
from ..moves.contract import Lease
from ..reading.frames import follows
from .loading import Stand
from .plan import Done, Planned, plan


def cleared(log: Log, spec: GraphSpec, lease: Lease, stand: Stand) -> tuple[Planned, Sequence[str]]:
    """The state and nodes that remain, and the Send parts (ids) that still come next. Raises InvalidUpdateError."""
    n = stand.on[0] if stand.on else lease.n
    if not n:
        return Planned(dict(stand.channels), ()), ()
    state = state_at(log, lease.thread, n)
    above = log.read(lease.thread, f"{n + 1}-0", f"{n + 1}-0")
    if above and above[0].text("source") == "loop" and follows(above[0], state.entry):
        after = state_at(log, lease.thread, n + 1)
        pulls = tuple(str(row[1]) for row in after.entry.next if len(row) == 4)
        return Planned(after.channels, pulls), [row[0] for row in after.entry.next if len(row) == 2]
    step = step_of(log, lease.thread, n)
    if not stand.on and any(fact.text("kind_of_run") == "input" for fact in step.facts):
        return Planned(dict(stand.channels), ()), ()  # an input has given the step up already
    done = step.outcomes
    planned = plan(spec, stand.channels, [_done(fact) for fact in done])
    return planned, [ref for fact in done for ref, _ in fact.json("parts") or ()]


def _done(fact: e.Entry) -> Done:
    writes = tuple((name, value) for name, value in fact.writes() if value is not None)
    return Done(fact.text("task"), fact.text("node"), writes, tuple(fact.json("goto") or ()))
