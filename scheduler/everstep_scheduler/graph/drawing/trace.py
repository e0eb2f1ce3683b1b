"""A trace: what a picture of a graph shows of a thread: which nodes ran, how often and when, and how each stands. Pure.

inc  x3 #1 3 5        it ran three times, in these steps of the path
check  asks           it waits for an answer
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..runtime import END, START

PLACES_MAX = 6  # steps that are named beside a node
STEPS_MAX = 40  # steps of a path that are written out
STATES = ("failed", "asks", "stopped", "open", "done")  # what matters more comes first


class Mark(NamedTuple):
    """A node on the path. `runs`: how often it ran; `at`: in which steps, from 1 on. `said`: its error, or question.

    `state`: failed, asks, stopped (its run rests before it), open (it runs, or is to run), done; empty: it is not on
    the path."""

    runs: int = 0
    at: tuple[int, ...] = ()
    state: str = ""
    said: str = ""

    def also(self, other: Mark) -> Mark:
        """Both in one, as of a graph that was called several times."""
        first, second = sorted((self, other), key=lambda each: (*STATES, "").index(each.state))
        return Mark(self.runs + other.runs, (), first.state, first.said or second.said)


@dataclass(frozen=True)
class Trace:
    """A thread's path. `steps`: the nodes of each; `marks`: by node; `taken`: how often each edge was."""

    thread: str
    status: str
    steps: tuple[tuple[str, ...], ...]
    marks: Mapping[str, Mark]
    taken: Mapping[tuple[str, str], int]

    def state(self, name: str) -> str:
        """How a node stands; empty where the path does not touch it."""
        return self.marks.get(name, Mark()).state

    def caption(self, name: str) -> str:
        """What is written beside a node: how often it ran, when, how it stands."""
        mark = self.marks.get(name, Mark())
        places = " ".join(map(str, mark.at[-PLACES_MAX:]))
        more = "… " if len(mark.at) > PLACES_MAX else ""
        words = (
            f"x{mark.runs}" if mark.runs > 1 or (mark.runs and not mark.at and name not in (START, END)) else "",
            f"#{more}{places}" if places else "",
            mark.state if mark.state not in ("", "done") else "",
        )
        return " ".join(each for each in words if each)

    def lines(self) -> list[str]:
        """The path in words, and what each node says that it waits for or failed with."""
        kept = self.steps[-STEPS_MAX:]
        path = [" + ".join(counted(step)) for step in kept if step]
        more = ["…"] if len(self.steps) > STEPS_MAX else []
        found = [f"{self.thread}: {self.status or 'under way'}"]
        found += [f"path: {' > '.join([*more, *path])}"] if path else []
        told = ((name, mark) for name, mark in self.marks.items() if mark.state not in ("", "done"))
        found += [f"{name}: {mark.state}{f', {mark.said}' if mark.said else ''}" for name, mark in told]
        return [plain(each) for each in found]

    def within(self, node: str) -> Trace:
        """The same for a graph whose nodes are shown as `node:name`."""
        marks = {f"{node}:{name}": mark for name, mark in self.marks.items()}
        taken = {(f"{node}:{a}", f"{node}:{b}"): count for (a, b), count in self.taken.items()}
        return Trace(self.thread, self.status, self.steps, marks, taken)


def plain(text: str) -> str:
    """On one line, and able to drive no terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def counted(names: Iterable[str]) -> list[str]:
    """`part x3` for what is there more than once."""
    return [name if count == 1 else f"{name} x{count}" for name, count in Counter(names).items()]


def together(traces: Sequence[Trace]) -> Trace | None:
    """Several calls of one graph as one trace; None for none."""
    if len(traces) < 2:
        return traces[0] if traces else None
    marks = dict[str, Mark]()
    taken = Counter[tuple[str, str]]()
    for trace in traces:
        for name, mark in trace.marks.items():
            marks[name] = marks[name].also(mark) if name in marks else mark
        taken.update(trace.taken)
    return Trace(traces[0].thread, traces[0].status, (), marks, dict(taken))
