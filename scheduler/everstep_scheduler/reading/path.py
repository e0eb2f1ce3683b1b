"""Path: what a thread did in its graph since its last input, to be drawn into it. Reads the log; runs no user code.

    frames of the log ──► Step(nodes that ran, nodes that come next) ──► Trace(steps, marks, taken)

Time travel drops the steps behind where a branch was begun. Of a node that is a graph the calls on the path are traced
in their own logs, for x-ray pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN
from everstep_checkpoint.log import Log, unknown_thread

from ..graph.drawing.picture import Edge, Graph
from ..graph.drawing.trace import Mark, Trace, plain, together
from ..graph.runtime import END, START
from ..moves.contract import JOIN_TASK, START_TASK, UPDATE_TASK
from .derive import Task, Told
from .frames import Frame, frames, until_new_input
from .nested import named_call
from .questions import questions, step_told

SAID_MAX = 120
CALLS_MAX = 100  # calls of one node that are traced
PLACES = {"failed": "failed", "asked": "asks", "stopped": "stopped", "done": "done"}


@dataclass(frozen=True)
class Step:
    """A checkpoint on the path: what ran before it, what comes next, and what its tasks called."""

    n: int
    ran: Counter[str]
    next: Counter[str]
    by_hand: bool = False
    calls: tuple[tuple[str, str], ...] = ()  # (node, thread)


def traced(graph: Graph, log: Log, thread: str, *, whole: bool = False) -> Graph:
    """The graph with a thread's path: since its last input, or with `whole` since its beginning.

    Raises UnknownThread, CorruptEntry.
    """
    if log.head(thread) is None:
        raise unknown_thread(thread)
    steps, told, open_calls = _read(log, thread, whole)
    calls = [*(call for step in steps for call in step.calls), *open_calls]
    inner = {node: _inner(each, node, calls, log, whole) for node, each in graph.inner.items()}
    return replace(graph, inner=inner, trace=_trace(graph, thread, steps, told))


def _inner(graph: Graph, node: str, calls: Iterable[tuple[str, str]], log: Log, whole: bool) -> Graph:
    """An inner graph with the paths of its calls."""
    threads = [thread for each, thread in dict.fromkeys(calls) if each == node and log.head(thread) is not None]
    found = [traced(graph, log, thread, whole=whole) for thread in threads[-CALLS_MAX:]]
    return _merged(graph, found)


def _merged(graph: Graph, found: Sequence[Graph]) -> Graph:
    """The paths of several calls in one picture."""
    inner = {name: _merged(each, [x.inner[name] for x in found]) for name, each in graph.inner.items()}
    return replace(graph, inner=inner, trace=together([x.trace for x in found if x.trace is not None]))


# -- reading


def _read(log: Log, thread: str, whole: bool) -> tuple[list[Step], Told, list[tuple[str, str]]]:
    """The steps of the path, the open one as it stands, and what is called in it."""
    head = log.head(thread)
    steps, facts, last = list[Step](), list(log.read(thread, "0-1", "0")), None
    for last in frames(log, thread, 1, head.n) if head is not None and head.n else ():
        entry = last.state.entry
        if entry.instead_of is not None and steps:  # a replay in place: nothing else led here
            steps[-1], facts = replace(steps[-1], n=entry.n), last.facts
            continue
        named = entry.branch_of
        if named is not None and named.thread == thread:
            steps = [step for step in steps if step.n <= named.n]
        if entry.text("source") == "input" and not whole:
            steps = []
        steps.append(_step(last, list(until_new_input(facts, log, thread)) if named is None else []))
        facts = last.facts
    told = step_told(log, thread, last, facts)
    if told.begins and not whole:  # a new input, which no checkpoint has yet
        steps = []
    return steps, told, list(_calls(facts))


def _step(frame: Frame, facts: Sequence[e.Entry]) -> Step:
    entry = frame.state.entry
    task, node = entry.text("task"), entry.text("node")
    done = [fact.text("node") for fact in facts if _has_run(fact)]
    if task == START_TASK:
        ran = [START]
    elif task == JOIN_TASK:
        ran = done
    else:
        ran = [node, *done] if task and entry.text("source") not in ("input", "fork") else []
    return Step(entry.n, Counter(ran), Counter(_following(frame)), task == UPDATE_TASK, tuple(_calls(facts)))


def _has_run(fact: e.Entry) -> bool:
    handled = fact.kind == "task_failed" and "handler" in fact.raw  # its handler speaks for it
    return handled or (fact.kind == "task_done" and fact.text("task") not in (START_TASK, UPDATE_TASK))


def _following(frame: Frame) -> Iterator[str]:
    yield from (str(row[1]) for row in frame.state.entry.next if len(row) == 4)
    for part in frame.parts:
        for node, _, _, count in part.json("tasks"):
            yield from [str(node)] * int(count)


def _calls(facts: Iterable[e.Entry]) -> Iterator[tuple[str, str]]:
    for fact in facts:
        named = named_call(fact) if fact.kind == "task_called" else None
        if named is not None:
            yield fact.text("node"), named[1]


# -- tracing


def _trace(graph: Graph, thread: str, steps: Sequence[Step], told: Told) -> Trace:
    at: dict[str, list[int]] = {}
    runs = Counter[str]()
    walked = [step for step in steps if set(step.ran) - {START}]
    for number, step in enumerate(walked, 1):
        for name, count in step.ran.items() if not step.by_hand else ():
            at.setdefault(name, []).append(number)
            runs[name] += count
    marks = {name: Mark(runs[name], tuple(at[name]), "done") for name in at}
    marks |= {START: Mark(1, (), "done")} if any(START in step.ran for step in steps) else {}
    for name, mark in _open(told).items():
        known, now = marks.get(name, Mark()), (len(walked) + 1,) if mark.runs else ()
        marks[name] = Mark(known.runs + mark.runs, (*known.at, *now), mark.state, mark.said)
    taken = _taken(graph.edges, steps)
    if told.status == "done" and any(end == END for _, end in taken):
        marks[END] = Mark(1, (), "done")
    shown = {name: mark for name, mark in marks.items() if name in graph.nodes}
    return Trace(thread, told.status, tuple(tuple(x.ran.elements()) for x in walked), shown, taken)


def _open(told: Told) -> Mapping[str, Mark]:
    """How the nodes of the open step stand: of several tasks of one node what matters most."""
    found = dict[str, Mark]()
    for task in told.tasks:
        node = START if task.task == START_TASK else task.node
        mark = Mark(int(task.place == "done"), (), PLACES.get(task.place, "open"), _said(task))
        found[node] = found[node].also(mark) if node in found else mark
    return found


def _said(task: Task) -> str:
    said = task.error.words if task.place in ("failed", "wake") else ""
    if task.place == "asked" and task.asks is not None:
        said = ", ".join(str(each.value) for each in questions(task.asks, PLAIN))
    return plain(said if len(said) <= SAID_MAX else f"{said[: SAID_MAX - 1]}…")


def _taken(edges: Sequence[Edge], steps: Sequence[Step]) -> dict[tuple[str, str], int]:
    """How often each edge was taken: what ran at its source led to its target, at once, or by a join later."""
    taken, waits = Counter[tuple[str, str]](), set[tuple[str, str]]()
    for step in steps:
        for source in step.ran:
            out = [each for each in edges if each.source == source]
            led = [each[:2] for each in out if each.target in step.next]
            waits |= {each[:2] for each in out if not each.conditional and each.target not in (*step.next, END)}
            ends = [each[:2] for each in out if each.target == END]
            taken.update(led or (ends if not any(wait[0] == source for wait in waits) else []))
        joined = {wait for wait in waits if wait[1] in step.next}
        taken.update(joined)
        waits -= joined
    return dict(taken)
