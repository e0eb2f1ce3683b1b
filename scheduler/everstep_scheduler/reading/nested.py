"""Nested: a run and the runs that its tasks called, as a tree of streams. Where each stands, and when it is over.

    task_called ──opens──► Branch of the called run ──closed by──► what came of the task: its chunks come behind all of
                                                                   the branch's

LangGraph's `subgraphs=True`: a chunk carries its namespace, `()` for the outermost graph, else one `node:task_id` a
level (only `node` where the graph keeps its state).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import RUN_FACTS

from ..graph.placing import Place
from ..moves.record import RunRecord
from .shapes import Chunk, Reading, Told

PAGE = 100
CALLS = ("effect_done", "call_begun", "call_failed")
OUTCOMES = ("task_done", "task_failed", "task_paused")
Namespace = tuple[str, ...]
Nested = tuple[Namespace, str, Chunk]
Key = tuple[int, str, str]  # a task, by its checkpoint's number and its name; and what it called, by its effect if any


@dataclass(frozen=True)
class Where:
    """Where a run's thread stands in the tree of what tasks called. `parents`: `checkpoint_ns` -> id of the checkpoints
    above, whose tasks called it."""

    place: Place
    parents: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def ns(self) -> Namespace:
        """As streams tell it."""
        return tuple(self.place.ns.split("|")) if self.place.ns else ()

    def config(self, configurable: Mapping[str, Any], checkpoint_id: str) -> dict[str, Any]:
        """The config of a checkpoint, as LangGraph's mode `checkpoints` has it."""
        root, ns = self.place
        above = {"checkpoint_map": {**self.parents, ns: checkpoint_id}} if ns else {}
        place = {"thread_id": root, "checkpoint_ns": ns, **above, "checkpoint_id": checkpoint_id}
        return {"configurable": {**configurable, **place}}

    def state(self, reading: Reading, node: str, key: str) -> dict[str, Any] | None:
        """The config of the state of a task that is a graph; None for any other."""
        if reading.below(node) is None and not reading.calls(node):
            return None
        return {"configurable": {"thread_id": self.place.root, "checkpoint_ns": self.place.below(node, key).ns}}


def key_of(call: e.Entry) -> Key:
    """By what a call is known among those of its run."""
    return call.n, call.text("task"), call.text("effect")


def is_call(fact: e.Entry) -> bool:
    """Does it say that a function called a graph?"""
    return fact.kind == "effect_done" and "called" in fact.raw


def named_call(entry: e.Entry) -> tuple[str, str] | None:
    """(run, thread) that a task called, where an entry tells so."""
    run, _, thread = entry.text("called").partition(" ")
    return (run, thread) if thread else None


def beginning(log: Log, thread: str, run: str) -> e.Entry | None:
    """The fact with which a run began; None if it is not there (any more). It is the first one of most threads that
    tasks called; else it is looked for from the end."""
    first = log.read(thread, count=1)
    if first and first[0].text("run") == run and first[0].kind in RUN_FACTS:
        return first[0]
    end = "+"
    while found := log.read(thread, "-", end, PAGE, reverse=True):
        for entry in found:
            if entry.text("run") == run and entry.kind in RUN_FACTS:
                of = entry.text("of")
                queued = log.read(thread, of, of) if of else []
                return queued[0] if queued and queued[0].text("run") == run else entry
        end = f"({found[-1].id}"
    return None


def where_below(log: Log, where: Where, thread: str, call: e.Entry, begun: e.Entry) -> Where:
    """Where a run stands that a task of this thread called."""
    stored = begun.value("record")
    parent = RunRecord.decode(stored).parent if stored else ()
    place = Place(*parent) if parent else where.place.below(call.text("node"), "")
    above = log.read(thread, f"{call.n}-0", f"{call.n}-0")
    said = {where.place.ns: above[0].checkpoint_id} if above else {}
    return Where(place, dict(sorted({**where.parents, **said}.items())))


def spoken_for(entry: e.Entry, run: str, called: Iterable[Key]) -> list[Key]:
    """Of tasks that called something, those that an entry of their run tells the outcome of: what they called is over,
    and is to be told before."""
    if entry.text("run") == run and entry.kind == "run_rested":
        return list(called)
    if entry.is_checkpoint:
        return [key for key in called if key[0] < entry.n]
    here = [key for key in called if key[:2] == (entry.n, entry.text("task"))]
    if entry.kind in CALLS:  # what functions called before is told before what they do next
        return [key for key in here if key[2]]
    return here if entry.kind in OUTCOMES else []


def goes_on(entry: e.Entry, key: Key) -> bool:
    """Of a call that an entry speaks for: may it still go on in this run? What a function called does in the task's
    next attempt."""
    return bool(key[2]) and (entry.kind in CALLS or "retry_at" in entry.raw)


def outermost(told: Iterable[Told], ns: Namespace = ()) -> Iterator[Nested]:
    """Chunks with the namespace of their graph."""
    for mode, chunk in told:
        yield ns, mode, chunk


def shaped(told: Iterable[Nested], *, nested: bool, tagged: bool) -> Iterator[Chunk]:
    """As callers get chunks: with the namespace for `subgraphs=True`, with the mode if there are several."""
    for ns, mode, chunk in told:
        said = (*((ns,) if nested else ()), *((mode,) if tagged else ()), chunk)
        yield said if len(said) > 1 else chunk
