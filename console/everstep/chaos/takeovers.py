"""Recovery time, by journal and logs: from kill -9 of a process to the moment when what it held runs again. Pure.

journal   in (pid 7) ───────── kill 7 ─────────────── in (pid 9), same key
log                               │       task_lost
                                  └────── this ───────┘

Only what the killed process held counts: not an attempt that the log calls ended, lost or cancelled before, whose node
had merely left no line. A long one says what befell it meanwhile.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from everstep_checkpoint.entries import Entry

from .checking.crossing import Case, pid_of
from .checking.evidence import Ran, Struck
from .checking.laws import ENDS

DEADLY = ("kill", "pool")
# after these nothing expires for a while, or all is made anew
HOLDING = ("server", "failover", "handover", "pool", "index", "rq")
GIVEN_UP = ("run_cancel_asked", "run_rested")
LOST, PARKED = "task_lost", "task_parked"
RAN_OUT = "its lease ran out"
HOLD_S = 2.0  # beyond a lease: the rule of the gap
SWEEP_S = 1.0
MS_S = 1000


def long_s(lease_s: float) -> float:
    """A recovery above this is to be explained: a lease that runs out, and the lease and 2 s that a gap may add."""
    return 2 * lease_s + HOLD_S


class Recovery(NamedTuple):
    """One attempt that was interrupted, and its task begun again. `kind`, `at`: the fault that it is counted from.
    `log`: what its log says of the task in between. `struck`: other faults in between, and those shortly before; each
    with its seconds from the fault. `passed`: how many other leases ran out while this one should have, and did not.
    `parked`: nobody served its node."""

    kind: str
    at: float
    took_s: float
    key: str
    thread: str
    n: int
    node: str
    log: tuple[str, ...] = ()
    struck: tuple[str, ...] = ()
    passed: int = 0
    parked: bool = False

    @property
    def why(self) -> str:
        """What a long one waited for; empty: unexplained."""
        if self.parked:
            return "no worker served its node"
        held = [each for each in self.struck if each.partition(" ")[0] in HOLDING]
        return f"held up by {', '.join(held)}" if held and not self.passed else ""


def recoveries(case: Case) -> list[Recovery]:
    """One for each attempt that a killed process held, and that was begun again."""
    lines: dict[str, list[Ran]] = defaultdict(list)
    for line in case.evidence.ran:
        lines[line.key].append(line)
    struck, ran_out = [each for each in case.evidence.struck if each.kind in DEADLY], _ran_out(case)
    return [
        found
        for fault in struck
        for some in lines.values()
        if (found := _recovery(case, some, fault, ran_out)) is not None
    ]


def _recovery(case: Case, lines: Sequence[Ran], fault: Struck, ran_out: Sequence[int]) -> Recovery | None:
    """How one task was recovered, if this fault interrupted it."""
    before = [line for line in lines if line.at <= fault.at]
    if not before or before[-1].phase != "in" or before[-1].pid not in fault.pids:
        return None
    line, after = before[-1], [each.at for each in lines if each.at > fault.at and each.phase == "in"]
    if not after:
        return None
    begun_ms, again_ms = _by_redis(fault, line.at), _by_redis(fault, min(after))
    told = [each for each in _told(case, line.key) if begun_ms < each.number("at") <= again_ms]
    if not _held(told, fault.at_ms, line.pid):
        return None
    since = _taken_back(case, line, fault, told) or fault
    return Recovery(
        since.kind, since.at, min(after) - since.at, line.key, line.thread, line.n, line.node,
        tuple(f"{each.kind} {(each.number('at') - since.at_ms) / MS_S:+.1f} s" for each in told),
        tuple(_near(case, since, min(after))), _passed(case, fault, told, again_ms, ran_out),
        any(each.kind == PARKED for each in told),
    )  # fmt: skip


def _by_redis(fault: Struck, at: float) -> int:
    """A time of the journal by Redis' clock."""
    return int((at - fault.at) * MS_S) + fault.at_ms


def _told(case: Case, key: str) -> Iterator[Entry]:
    """What the log says of a task's attempts, and of the end of its run or step."""
    if key not in case.known:
        return
    story, n, task = case.known[key]
    for part in story.parts:
        if part.n == n + 1 and part.checkpoint is not None:
            yield part.checkpoint
        for fact in part.facts if part.n == n else ():
            if fact.kind in GIVEN_UP or (fact.kind in (*ENDS, PARKED) and fact.text("task") == task):
                yield fact


def _held(told: Sequence[Entry], killed_ms: int, pid: int) -> bool:
    """Did this process hold the task when it was killed, and was it this that the task waited for? It did if its
    attempt had not ended, or if the log calls one of its attempts lost later. Nothing but that, and that it is parked,
    is told of a task that waits for its recovery."""
    later = [each for each in told if each.number("at") > killed_ms]
    if any(each.kind not in (LOST, PARKED) for each in later):
        return False
    return len(later) == len(told) or any(_lost_by(each, pid) for each in later)


def _lost_by(entry: Entry, pid: int) -> bool:
    return entry.kind == LOST and pid_of(entry.text("by")) == pid


def _taken_back(case: Case, line: Ran, fault: Struck, told: Iterable[Entry]) -> Struck | None:
    """The failover that took back, before the kill, that this attempt was leased: its task waits since then. That the
    log calls it lost later says that it was not taken back."""
    if any(_lost_by(each, line.pid) for each in told):
        return None
    over = [each for each in case.evidence.struck if each.since is not None and each.at <= fault.at]
    return next((each for each in over if each.since is not None and each.since <= line.at <= each.at), None)


def _near(case: Case, fault: Struck, again: float) -> Iterator[str]:
    """The faults in between, and those before whose hold may have outlasted the lease."""
    begin = fault.at - HOLD_S - SWEEP_S
    for each in case.evidence.struck:
        if each is not fault and begin <= each.at < again and (each.at >= fault.at or each.kind in HOLDING):
            yield f"{each.kind} {each.at - fault.at:+.1f} s"


def _passed(case: Case, fault: Struck, told: Iterable[Entry], again_ms: int, ran_out: Iterable[int]) -> int:
    """Leases that ran out, and were taken, after this one's time and well before it was its turn."""
    turn_ms = min([each.number("at") for each in told if each.kind == LOST], default=again_ms)
    due_ms = fault.at_ms + case.evidence.lease_ms + SWEEP_S * MS_S
    return sum(due_ms < at < turn_ms - SWEEP_S * MS_S for at in ran_out)


def _ran_out(case: Case) -> list[int]:
    """When leases were found to have run out, by Redis' clock."""
    return [
        entry.number("at") for story in case.stories.values() for entry in story.entries
        if entry.kind == LOST and entry.text("error") == RAN_OUT
    ]  # fmt: skip


def times(found: Iterable[Recovery]) -> dict[str, list[float]]:
    """Kind of fault -> seconds. What was parked waited for a worker of its version, and not for its recovery."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for each in found:
        if not each.parked:
            by_kind[each.kind].append(each.took_s)
    return dict(by_kind)


def long_ones(found: Iterable[Recovery], lease_s: float) -> list[dict[str, Any]]:
    """Those that are to be explained, for programs: for each fault the longest one, and how many there were."""
    groups: dict[tuple[str, float, str], list[Recovery]] = defaultdict(list)
    for each in found:
        if each.took_s > long_s(lease_s):
            groups[each.kind, each.at, each.why].append(each)
    return [_said(some) for some in groups.values()]


def _said(some: Sequence[Recovery]) -> dict[str, Any]:
    longest = max(some, key=lambda each: each.took_s)
    return {
        "fault": longest.kind, "took_s": round(longest.took_s, 3), "tasks": len(some), "why": longest.why,
        "thread": longest.thread, "step": longest.n, "node": longest.node, "key": longest.key,
        "log": list(longest.log), "struck": list(longest.struck), "passed": longest.passed,
    }  # fmt: skip


def percentile(times: Sequence[float], of_100: float) -> float | None:
    """The time that so many of a hundred are not above; None of none."""
    if not times:
        return None
    return sorted(times)[max(0, math.ceil(len(times) * of_100 / 100) - 1)]
