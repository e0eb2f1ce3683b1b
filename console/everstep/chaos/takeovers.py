"""Recovery time, by the journal: from kill -9 of a process to the moment when what it ran runs again. Pure.

journal   in (pid 7) ───────── kill 7 ─────────────── in (pid 9), same key
                                  └────── this ───────┘
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .checking.evidence import Ran, Struck

DEADLY = ("kill", "pool")


def recoveries(ran: Sequence[Ran], struck: Iterable[Struck]) -> dict[str, list[float]]:
    """Kind of fault -> seconds, one for each attempt that was under way in a process which was killed and that was
    begun again by another."""
    lines: dict[str, list[Ran]] = defaultdict(list)
    for line in ran:
        lines[line.key].append(line)
    found: dict[str, list[float]] = defaultdict(list)
    for fault in struck:
        if fault.kind in DEADLY:
            found[fault.kind] += [took for each in lines.values() if (took := _took(each, fault)) is not None]
    return dict(found)


def _took(lines: Sequence[Ran], fault: Struck) -> float | None:
    """How long one task waited, if this fault interrupted it."""
    before = [line for line in lines if line.at <= fault.at]
    if not before or before[-1].phase != "in" or before[-1].pid not in fault.pids:
        return None
    after = [line.at for line in lines if line.at > fault.at and line.phase == "in"]
    return min(after) - fault.at if after else None


def percentile(times: Sequence[float], of_100: float) -> float | None:
    """The time that so many of a hundred are not above; None of none."""
    if not times:
        return None
    return sorted(times)[max(0, math.ceil(len(times) * of_100 / 100) - 1)]
