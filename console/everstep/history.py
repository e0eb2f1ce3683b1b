"""The history of a thread, as an operator reads it: each checkpoint, what led to it, and what went wrong on the way.

    frames of the log ──► lines(log, thread, most) ──► Line(checkpoint, nodes, next, changes, troubles)

Oldest first, so that the last line is where the thread stands. Needs no graph's code: values are plain data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN
from everstep_checkpoint.errors import Trimmed
from everstep_checkpoint.log import Log, unknown_thread
from everstep_checkpoint.replay import state_at
from everstep_checkpoint.sound import sound
from everstep_scheduler.graph.channels import HIDDEN
from everstep_scheduler.reading.ending import error_of
from everstep_scheduler.reading.frames import Frame, frames
from everstep_scheduler.reading.joins import UnmetJoin, unmet_joins

from . import show

TROUBLES = {
    "task_failed": "failed", "task_lost": "lost", "task_parked": "parked", "task_paused": "asks",
    "task_answered": "answered",
}  # fmt: skip
SAID = {"task_paused": "asks", "task_answered": "answer"}  # the value that a fact is about
SAID_MAX = 500
Values = dict[str, Any]


@dataclass(frozen=True)
class Trouble:
    """An attempt that did not come to its end, or how a run rested: failed, handled, retrying, lost, parked, asks,
    cancelled."""

    what: str
    node: str
    task: str
    attempt: int
    by: str
    ms: int
    at: int
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class Line:
    """One checkpoint; or, with `id` empty, the step that is open now. Times in ms; `ms` is the slowest attempt's.
    `effects`: what its tasks have recorded of themselves, by their keys.

    `unmet`: where nothing comes next, the joins that were begun and can't fire.
    """

    id: str
    step: int | None
    source: str
    run: str
    nodes: tuple[str, ...]
    next: tuple[str, ...]
    by: tuple[str, ...] = ()
    attempt: int = 0
    ms: int = 0
    at: int = 0
    before: Values = field(default_factory=dict[str, Any])
    values: Values = field(default_factory=dict[str, Any])
    troubles: tuple[Trouble, ...] = ()
    unmet: tuple[UnmetJoin, ...] = ()
    effects: tuple[str, ...] = ()

    @property
    def changed(self) -> Values:
        """The keys whose values are not what they were; those that went are None."""
        new = {key: value for key, value in self.values.items() if key not in self.before or self.before[key] != value}
        return {**new, **{key: None for key in self.before if key not in self.values}}


@sound
def lines(log: Log, thread: str, most: int) -> list[Line]:
    """The last `most` checkpoints and the open step, oldest first. Raises UnknownThread, CorruptEntry."""
    head = log.head(thread)
    if head is None:
        raise unknown_thread(thread)
    found: list[Line] = []
    before: Values = {}
    facts: Sequence[e.Entry] = log.read(thread, "0-1", "0")
    last: Frame | None = None
    for last in frames(log, thread, max(head.n - most, 1), head.n) if head.n else ():
        if last.state.n > head.n - most:
            found.append(_line(last, facts, _branched(log, thread, last.state.entry, before)))
        before, facts = _values(last.state.channels), last.facts
    found.append(_open(last, facts))
    return found


def _branched(log: Log, thread: str, entry: e.Entry, before: Values) -> Values:
    """What a checkpoint changed the values of: those of the one before, or of the one that a branch builds on."""
    named = entry.branch_of
    if named is None or named.thread != thread:
        return before
    try:
        return _values(state_at(log, thread, named.n).channels)
    except Trimmed:
        return {}


def _line(frame: Frame, facts: Sequence[e.Entry], before: Values) -> Line:
    entry = frame.state.entry
    done = [fact for fact in facts if fact.kind == "task_done"]
    wide = entry.text("task") == "join" and done
    ended = done if wide else [entry]
    named = [fact.text("node") for fact in done] if wide else [entry.text("node")]
    return Line(
        id=entry.checkpoint_id, step=entry.number("step"), source=entry.text("source"), run=entry.text("run"),
        nodes=counted(named), next=_next(frame), by=tuple(sorted({x.text("by") for x in ended} - {""})),
        attempt=max(x.number("attempt") for x in ended), ms=max(x.number("ms") for x in ended), at=entry.number("at"),
        before=before, values=_values(frame.state.channels), troubles=_troubles(facts),
        unmet=() if entry.next else unmet_joins(frame.state.channels),
        effects=_effects(facts),
    )  # fmt: skip


def _open(last: Frame | None, facts: Sequence[e.Entry]) -> Line:
    """What is known of the step that no checkpoint has closed yet."""
    run = next((fact.text("run") for fact in reversed(facts) if fact.kind == "run_started"), "")
    begun = [fact for fact in facts if fact.kind == "run_started" and not _goes_on(fact, facts)]
    done = Counter(fact.text("node") for fact in facts if fact.kind == "task_done")
    wanted = Counter(["__start__"]) if begun or last is None else Counter(_next_nodes(last))
    wanted += Counter(node for fact in facts if fact.kind == "task_added" for node in _added(fact, facts))
    handled = Counter(fact.text("node") for fact in facts if fact.kind == "task_failed" and "handler" in fact.raw)
    left = (wanted - done - handled).elements()
    return Line(
        "", None, "open", run, counted(done.elements()), counted(left), troubles=_troubles(facts),
        effects=_effects(facts),
    )  # fmt: skip


def _goes_on(fact: e.Entry, facts: Sequence[e.Entry]) -> bool:
    """Does the run continue a rested one, instead of bringing an input?"""
    return bool(fact.text("of")) and not any(x.id == fact.text("of") and x.kind == "run_queued" for x in facts)


def _next(frame: Frame) -> tuple[str, ...]:
    return counted(_next_nodes(frame))


def _next_nodes(frame: Frame) -> list[str]:
    nodes = [str(row[1]) for row in frame.state.entry.next if len(row) == 4]
    return [*nodes, *(node for part in frame.parts for node in _sent(part))]


def _added(fact: e.Entry, facts: Sequence[e.Entry]) -> list[str]:
    """The nodes that a task more, or the Sends of a Command, are for."""
    refs = [ref for ref, _ in fact.json("parts") or ()]
    return [node for x in facts if x.id in refs for node in _sent(x)] if refs else [fact.text("node")]


def _sent(part: e.Entry) -> list[str]:
    return [str(node) for node, _, _, count in part.json("tasks") for _ in range(int(count))]


def counted(nodes: Iterable[str]) -> tuple[str, ...]:
    """`analyse ×312` for what is there more than once."""
    found = Counter(node for node in nodes if node)
    return tuple(node if count == 1 else f"{node} ×{count}" for node, count in found.items())


def _troubles(facts: Sequence[e.Entry]) -> tuple[Trouble, ...]:
    found = [_trouble(fact) for fact in facts if fact.kind in TROUBLES or fact.kind == "run_rested"]
    return tuple(found)


def _effects(facts: Sequence[e.Entry]) -> tuple[str, ...]:
    return counted(fact.text("effect") for fact in facts if fact.kind == "effect_done")


def _trouble(fact: e.Entry) -> Trouble:
    what = TROUBLES.get(fact.kind) or fact.text("status")
    if fact.kind == "task_failed" and "retry_at" in fact.raw:
        what = "retrying"
    if fact.kind == "task_failed" and "handler" in fact.raw:
        what = "handled"
    error = error_of(fact)
    said = error.words
    if fact.kind == "task_answered" and fact.value("answer") == b"":
        what = "looks again"
    elif fact.kind in SAID:
        said = show.value(PLAIN.decode(fact.value(SAID[fact.kind]) or b"\xc0", fact.kind), SAID_MAX)
    if fact.kind == "run_rested":
        said = f"the run rests: {what}" + (f" ({said})" if said else "")
    return Trouble(
        what,
        fact.text("node"),
        fact.text("task"),
        fact.number("attempt"),
        fact.text("by"),
        fact.number("ms"),
        fact.number("at"),
        said,
        error.traceback,
    )


def _values(channels: Mapping[str, bytes]) -> Values:
    return {
        name: PLAIN.decode(value, f"key {name!r}") for name, value in channels.items() if not name.startswith(HIDDEN)
    }
