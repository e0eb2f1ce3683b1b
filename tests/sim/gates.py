"""Limits in the model: what `limits.lua` does, on dicts.

gates.enter   ── room, and nobody in line ──► it takes a slot        ── else ──► it stands in line
gates.serve   ── what was let go is for those who wait: at the front of their queues, with their slots
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from everstep_scheduler.graph.limits import Limits

if TYPE_CHECKING:
    from .model import Call, Model, Place, Record, Thread

INF = float("inf")
POKED = 10


class Gates:
    """All limits of a store. A gate is a limit, or one key of it."""

    def __init__(self, model: Model, clock: Callable[[], int]) -> None:
        self.limits: dict[str, dict[str, dict[str, Any]]] = {}  # graph -> node -> numbers
        self.slots: dict[str, set[str]] = {}  # gate -> jobs
        self.starts: dict[str, dict[str, float]] = {}  # gate -> job -> when it began; inf: it was let in
        self.lines: dict[str, dict[Place, int]] = {}  # gate -> who waits -> since when
        self.wakes: dict[str, int] = {}  # gate -> when time lets somebody in
        self.named: set[str] = set()  # gates with a line, and some whose line has gone since
        self.freed: dict[str, None] = {}
        self._model = model
        self._clock = clock
        self._came = 0

    def limit(self, graph: str, limits: Limits) -> None:
        said = {node: each.stored(graph, node) for node, each in limits.items()}
        if said == self.limits.get(graph, {}):
            return
        self.limits[graph] = said
        self.wakes.update(dict.fromkeys(self.named, self._clock()))

    def of(self, t: Thread, rec: Record) -> tuple[str, dict[str, Any]] | None:
        """A task's gate, and its numbers; None for one without a limit."""
        said = self.limits.get(t.graph, {}).get(rec.node)
        if said is None:
            return None
        return (f"{said['id']}|{t.limit_key}" if said.get("k") else said["id"]), said

    def room(self, gate: str, said: dict[str, Any], more: int = 0) -> tuple[bool, int | None]:
        """Is there room for one more? If not, when there may be, where time tells."""
        if "c" in said and len(self.slots.get(gate, ())) + more >= said["c"]:
            return False, None
        if "n" not in said:
            return True, None
        starts = self._begun(gate, said)
        if len(starts) + more < said["n"]:
            return True, None
        first = min(starts.values(), default=INF)
        return False, None if first == INF else int(first) + said["ms"] + 1

    def _begun(self, gate: str, said: dict[str, Any]) -> dict[str, float]:
        since = self._clock() - said["ms"]
        starts = {job: at for job, at in self.starts.get(gate, {}).items() if at > since}
        self.starts.pop(gate, None)
        if starts:
            self.starts[gate] = starts
        return starts

    def lease(self, thread: str, t: Thread, task: str, rec: Record, call: Call) -> None:
        """Lease it under the first token, or have it stand in line."""
        if self.enter(thread, t, task, rec):
            self._model._lease(thread, t, task, rec, call)

    def enter(self, thread: str, t: Thread, task: str, rec: Record) -> bool:
        found = None if rec.gate else self.of(t, rec)
        if found is None:
            return True
        gate, said = found
        if gate in self.lines:
            self.freed[gate] = None  # there may be room for the first of the line
        else:
            free, due = self.room(gate, said)
            if free:
                rec.gate = gate
                return True
            if due is not None:
                self.wakes[gate] = due
        self._stand(thread, t, task, rec, gate)
        return False

    def _stand(self, thread: str, t: Thread, task: str, rec: Record, gate: str) -> None:
        if not rec.job:
            self._model._make_job(thread, t, task, rec)
        self._came += 1
        rec.place, rec.gate, rec.token, rec.owner = "line", gate, "", ""
        rec.since = rec.since or self._came
        self.lines.setdefault(gate, {})[t.n, task, thread] = rec.since
        self.named.add(gate)
        self._model._keep(t, task, rec)

    def begins(self, t: Thread, rec: Record) -> None:
        """It is leased: its slot is its job's."""
        self.slots.setdefault(rec.gate, set()).add(rec.job)
        found = self.of(t, rec)
        if found is None or "n" not in found[1]:
            return
        self._begun(rec.gate, found[1])
        self.starts.setdefault(rec.gate, {})[rec.job] = self._clock()
        self.freed[rec.gate] = None  # when the next may begin is known only now

    def let_go(self, rec: Record) -> None:
        _drop(self.slots, rec.gate, rec.job)
        if rec.place == "job" and rec.job in self.starts.get(rec.gate, {}):
            _drop(self.starts, rec.gate, rec.job)
        self.freed[rec.gate] = None
        rec.gate = ""

    def leaves_line(self, thread: str, t: Thread, task: str, rec: Record) -> None:
        _drop(self.lines, rec.gate, (t.n, task, thread))
        rec.gate = ""

    def serve(self) -> None:
        while self.freed:
            gate = next(iter(self.freed))
            del self.freed[gate]
            self._let_in(gate)

    def poke(self) -> None:
        self.freed.update(dict.fromkeys(sorted(self.named)[:POKED]))

    def _let_in(self, gate: str) -> None:
        found: list[tuple[str, Thread, str, Record, bool]] = []
        while line := self.lines.get(gate):
            place = min(line, key=lambda x: (line[x], x))
            at = self._model._at_place(place)
            if at is None or at[3].place != "line" or at[3].gate != gate or at[1].status != "running":
                _drop(self.lines, gate, place)
                continue
            of, free, due = self.of(at[1], at[3]), True, None
            its = of is not None and of[0] == gate
            if its and of is not None:
                free, due = self.room(gate, of[1], len(found))
            if due is not None:
                self.wakes[gate] = due
            if not free:
                break
            self.leaves_line(*at)
            found.append((*at, its))
        if gate not in self.lines:
            self.named.discard(gate)
        for thread, t, task, rec, its in reversed(found):
            rec.gate = gate if its else ""
            self._model._push(thread, t, task, rec, front=True)
            if its:
                self.slots.setdefault(gate, set()).add(rec.job)
                of = self.of(t, rec)
                if of is not None and "n" in of[1]:
                    self.starts.setdefault(gate, {})[rec.job] = INF


def _drop(held: dict[str, Any], gate: str, what: object) -> None:
    """Out of what a gate holds; nothing is kept that is empty."""
    found = held.get(gate)
    if found is None:
        return
    if isinstance(found, set):
        found.discard(what)
    else:
        found.pop(what, None)
    if not found:
        del held[gate]
