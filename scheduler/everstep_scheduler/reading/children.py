"""Children: threads that the tasks of another one called, as both logs tell of them.

task_called (in the parent) ──► `<run> <thread>` ──► ended(log, thread, run): how the child's run came to its rest
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import CorruptEntry
from everstep_checkpoint.keys import is_within
from everstep_checkpoint.log import Log, unknown_thread
from everstep_checkpoint.replay import RUN_FACTS

from .derive import Task, Told
from .ending import Ending, ending

PAGE = 10
DEPTH_MAX = 50
CALLING = ("task_called", "effect_done")  # a graph that is a node, and one that a function called


def ended(log: Log, thread: str, run: str) -> Ending | None:
    """How a run ended; None while it has not, or where the log does not know it. Looks from the end of the log, where
    the run of a child usually is."""
    end = "+"
    while found := log.read(thread, "-", end, PAGE, reverse=True):
        for entry in found:
            if entry.text("run") == run:
                return ending(log, thread, run, entry.id if entry.is_checkpoint else f"{entry.n}-1")
        end = f"({found[-1].id}"
    return None


class Caller(NamedTuple):
    """The task that called a run: at checkpoint n of a thread. `run`: its own, where its function called a graph."""

    n: int
    task: str
    thread: str
    run: str = ""

    @property
    def text(self) -> str:
        """As the fact `caller` of the run that it called has it."""
        return f"{self.n} {self.task} {self.run} {self.thread}"


def called_by(fact: e.Entry) -> Caller | None:
    """Whom the first fact of a run names as its caller; None if nobody called it."""
    named = fact.text("parent").split(" ", 2)
    if len(named) == 3 and named[0].isdigit():
        return Caller(int(named[0]), named[1], named[2])
    named = fact.text("caller").split(" ", 3)
    if len(named) == 4 and named[0].isdigit():
        return Caller(int(named[0]), named[1], named[3], named[2])
    return None


def caller_of(log: Log, thread: str, entry: e.Entry) -> Caller | None:
    """The task that called what an entry belongs to; None if none did, or that was trimmed."""
    end = entry.id
    while found := log.read(thread, "-", end, PAGE, reverse=True):
        for each in found:
            if each.kind in RUN_FACTS and (caller := called_by(each)) is not None:
                return caller
        end = f"({found[-1].id}"
    return None


def kept_for(log: Log, thread: str) -> str:
    """The thread whose task's attempts keep this one, however deep it is called; itself where none does.

    Raises UnknownThread, CorruptEntry.
    """
    for _ in range(DEPTH_MAX):
        if not is_within(thread):
            return thread
        last = log.read(thread, count=1, reverse=True)
        if not last:
            raise unknown_thread(thread)
        caller = caller_of(log, thread, last[0])
        if caller is None:
            raise CorruptEntry("the log does not say who keeps it", thread=thread, fix="`everstep log` shows it")
        thread = caller.thread
    raise CorruptEntry(
        f"over {DEPTH_MAX} graphs are said to have called each other", thread=thread, fix="`everstep log`"
    )


def graph_at(log: Log, thread: str) -> str:
    """`name@fingerprint` of the graph that a log is of, by its last checkpoint; the name alone before the first one;
    empty where there is no log."""
    head = log.head(thread)
    if head is None:
        return ""
    (entry,) = log.read(thread, f"{head.n}-0" if head.n else "0-1", count=1)
    return entry.text("graph")


def children(log: Log, thread: str) -> Iterator[str]:
    """The threads that the tasks of a thread called, each once."""
    seen: set[str] = set()
    for entry in log.pages(thread):
        child = entry.text("called").partition(" ")[2] if entry.kind in CALLING else ""
        if child and child not in seen:
            seen.add(child)
            yield child


def with_rested_children(log: Log, told: Told) -> Told:
    """The same, but a task whose child has come to its rest, or is gone, waits for a job: it is to look."""
    if all(task.place != "child" for task in told.tasks):
        return told
    return replace(told, tasks=tuple(_looks(log, task) if task.place == "child" else task for task in told.tasks))


def _looks(log: Log, task: Task) -> Task:
    run, _, thread = task.called.partition(" ")
    going = log.head(thread) is not None and ended(log, thread, run) is None
    return task if going else replace(task, place="unmade")
