"""Limits within one process: the rules of `limits.lua`, for the moves over any log.

    gates.enter(task) ── room, and nobody in line ──► it holds a slot        ── else ──► it stands in line
    gates.settle()    ── who holds no more is forgotten; the first in line are let in, with their slots

Nothing here is told when a task leaves a place: each move ends with `settle`, which looks at those that hold or wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..graph.limits import Limit, Limits

if TYPE_CHECKING:
    from .logmoves import Task, Thread

Standing = Callable[[str, str, "Task"], "Thread | None"]


@dataclass
class Gate:
    """One limit, or one key of it. Slots and line: (thread, task's name, task)."""

    slots: list[tuple[str, str, Task]] = field(default_factory=list[tuple[str, str, "Task"]])
    line: deque[tuple[str, str, Task]] = field(default_factory=deque[tuple[str, str, "Task"]])
    starts: deque[float] = field(default_factory=deque[float])

    def room(self, limit: Limit, now: float) -> bool:
        """May one more be let in?"""
        if limit.concurrency is not None and len(self.slots) >= limit.concurrency:
            return False
        if limit.rate is None:
            return True
        count, seconds = limit.rate
        while self.starts and self.starts[0] <= now - seconds:
            self.starts.popleft()
        return len(self.starts) + sum(task.place == "unmade" for _, _, task in self.slots) < count


class Gates:
    """All limits that this process knows. `standing`: the thread of a task that is still open there, while it runs."""

    def __init__(self, standing: Standing) -> None:
        self.limits: dict[str, Limits] = {}
        self.rings: list[Callable[[], object]] = []  # who waits for a task to be let in
        self._standing = standing
        self._gates: dict[str, Gate] = {}

    def __bool__(self) -> bool:
        return bool(self.limits or self._gates)

    def enter(self, thread: str, t: Thread, name: str, task: Task) -> bool:
        """May the task be leased now? Then it holds a slot; else it stands in line."""
        found = self._gate(t, task)
        if found is None:
            return True
        gate, limit = found
        now = time.monotonic()
        held = any(each is task for _, _, each in gate.slots)
        if not held and (gate.line or not gate.room(limit, now)):
            task.place = "line"
            gate.line.append((thread, name, task))
            return False
        if not held:
            gate.slots.append((thread, name, task))
        task.let_in = False
        if limit.rate is not None:
            gate.starts.append(now)
        return True

    def settle(self) -> None:
        """Forget who holds a slot no more, and let the first in line in."""
        let_in = [self._let_in(gate) for gate in self._gates.values()]
        self._gates = {name: gate for name, gate in self._gates.items() if gate.slots or gate.line or gate.starts}
        if any(let_in):
            for ring in self.rings:
                ring()

    def due_in(self, thread: str) -> float | None:
        """Seconds until time lets somebody of the thread in; None if that hangs on nothing but others."""
        now = time.monotonic()
        dues: list[float] = []
        for gate in self._gates.values():
            for each, name, task in gate.line:
                t = self._standing(each, name, task) if each == thread else None
                found = self._gate(t, task) if t is not None else None
                if found is not None and (rate := found[1].rate) is not None and gate.starts:
                    dues.append(gate.starts[0] + rate[1] - now)
        return max(min(dues), 0.0) if dues else None

    def _gate(self, t: Thread, task: Task) -> tuple[Gate, Limit] | None:
        limit = self.limits.get(t.graph, {}).get(task.node)
        if limit is None:
            return None
        key = f"{limit.gate(t.graph, task.node)}|{t.limit_key if limit.per_key else ''}"
        return self._gates.setdefault(key, Gate()), limit

    def _let_in(self, gate: Gate) -> bool:
        now, before = time.monotonic(), len(gate.line)
        gate.slots = [x for x in gate.slots if _holds(x[2]) and self._standing(*x) is not None]
        while gate.line:
            thread, name, task = gate.line[0]
            t = self._standing(thread, name, task)
            if t is not None and task.place == "line":
                found = self._gate(t, task)
                if found is not None and found[0] is gate and not gate.room(found[1], now):
                    break
                task.place = "unmade"
                task.let_in = found is not None and found[0] is gate
                if task.let_in:
                    gate.slots.append((thread, name, task))
            gate.line.popleft()
        return len(gate.line) < before


def _holds(task: Task) -> bool:
    return task.place == "lease" or (task.place == "unmade" and task.let_in)
