"""What must hold of limits, after each call: counted by what is leased, not by what the gates say."""

from __future__ import annotations

from collections import Counter, defaultdict

from .gates import INF
from .model import Model, Place
from .world import Astray


class Limiting:
    """Looks at the gates of a schedule. `most`: the widest limit a gate has had; whoever had a slot keeps it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._most: dict[str, int] = {}
        self._begun: dict[str, list[int]] = defaultdict(list)
        self._seen: set[str] = set()
        self._stood: dict[str, dict[Place, int]] = {}
        self._held: set[tuple[str, str]] = set()  # gate, job

    def look(self) -> None:
        """Raises Astray."""
        leased: Counter[str] = Counter()
        slots: dict[str, set[str]] = defaultdict(set)
        came: list[tuple[str, str, float]] = []
        gates = self._model.gates
        for thread, t in self._model.threads.items():
            for task, rec in t.open.items():
                if rec.place == "line":
                    if (t.n, task, thread) not in gates.lines.get(rec.gate, ()):
                        raise Astray(f"{task} of {thread} stands in no line")
                    continue
                if rec.gate:
                    slots[rec.gate].add(rec.job)
                    came.append((rec.gate, rec.job, rec.since or INF))
                if rec.place == "lease" and (found := gates.of(t, rec)) is not None:
                    leased[found[0]] += 1
                    self._begins(found[0], found[1], rec.token)
        if slots != gates.slots:
            raise Astray(f"slots are held by {dict(slots)}, and counted are {gates.slots}")
        self._never_too_many(leased)
        self._nobody_passes(came)
        self._all_are_woken()

    def _begins(self, gate: str, said: dict[str, int], token: str) -> None:
        if "c" in said:
            self._most[gate] = max(self._most.get(gate, 0), said["c"])
        if token in self._seen:
            return
        self._seen.add(token)
        begun, now = self._begun[gate], self._model.clock()
        begun.append(now)
        if "n" in said and len(begun) > said["n"] and now - begun[-1 - said["n"]] < said["ms"]:
            raise Astray(f"{said['n'] + 1} began at {gate} within {now - begun[-1 - said['n']]} ms")

    def _never_too_many(self, leased: Counter[str]) -> None:
        for gate, count in leased.items():
            if gate in self._most and count > self._most[gate]:
                raise Astray(f"{count} are leased at {gate}, where at most {self._most[gate]} may be")

    def _nobody_passes(self, came: list[tuple[str, str, float]]) -> None:
        """Who has a slot now, and had none, came before all who stood there and still stand."""
        lines = self._model.gates.lines
        for gate, job, since in came:
            waited = [at for place, at in self._stood.get(gate, {}).items() if place in lines.get(gate, ())]
            if (gate, job) not in self._held and waited and since > min(waited):
                raise Astray(f"{job} passed who stood at {gate} before it")
        self._held = {(gate, job) for gate, job, _ in came}
        self._stood = {gate: dict(line) for gate, line in lines.items()}

    def _all_are_woken(self) -> None:
        """Whoever stands waits for one that holds a slot, or for a time at which the gate is looked at."""
        gates = self._model.gates
        for gate, line in gates.lines.items():
            n, task, thread = min(line, key=lambda place: (line[place], place))
            t = self._model.threads[thread]
            found = gates.of(t, t.open[task]) if t.n == n and task in t.open else None
            due: int | None = self._model.clock()
            if found is not None and found[0] == gate:
                free, at = gates.room(gate, found[1])
                due = due if free else at
            if due is None and not gates.slots.get(gate):
                raise Astray(f"nobody holds a slot of {gate}, and {task} of {thread} stands there")
            if due is not None and gates.wakes.get(gate, INF) > due + 1:
                raise Astray(f"{gate} may open at {due}, and nobody looks; {task} of {thread} stands there")
