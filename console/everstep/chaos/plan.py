"""Which faults strike when: decided beforehand, from the seed alone. Pure.

    plan(seed, seconds, kinds, ...) ──► Fault(at_s, kind, pick, length_s), ...

The same seed gives the same plan. What a fault meets depends on where the runs are by then, and that is not repeated.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

# kind -> what it does, and how often beside the others
KINDS: dict[str, tuple[str, int]] = {
    "kill": ("kill -9 of a worker process; its pool lives", 5),
    "pool": ("kill -9 of a pool, its parent first, children with it; another pool is started", 2),
    "stop": ("SIGSTOP of a worker process past its lease, then SIGCONT", 2),
    "cut": ("every connection through a proxy is cut: half of the workers, and the clients", 3),
    "twice": ("jobs of open tasks are pushed once more by hand", 2),
    "rq": ("all keys of RQ are lost", 1),
    "index": ("all our indexes are lost; the logs remain", 1),
    "server": ("kill -9 of Redis, which is started again", 1),
    "deploy": ("a pool is ended in order and started with the other version of the graph", 1),
    "failover": ("a replica that has fallen behind takes over from a Redis that is killed", 1),
    "handover": ("a replica that has all takes over from a Redis that is killed", 1),
}
OWN_SERVER = frozenset({"server", "failover", "handover"})
REPLICATED = frozenset({"failover", "handover"})
QUIET_S = 1.0  # at the beginning, so that there is something to strike
GAP_S = (0.4, 1.6)
DOWN_S = 1.5
BEHIND_S = 1.0


class Fault(NamedTuple):
    """At `at_s` seconds from the beginning. `pick`: which of those that it may befall, as a fraction of them."""

    at_s: float
    kind: str
    pick: float
    length_s: float = 0.0


def plan(
    seed: int, seconds: float, kinds: Sequence[str], lease_s: float, gap_s: tuple[float, float] = GAP_S
) -> list[Fault]:
    """Faults for so many seconds, each of a kind that is among `kinds`, `gap_s` apart, from and to."""
    dice = random.Random(f"everstep chaos {seed}")  # noqa: S311  # repeatable, not secret
    known = [kind for kind in KINDS if kind in kinds]
    weights = [KINDS[kind][1] for kind in known]
    found: list[Fault] = []
    at_s = QUIET_S
    while known and at_s < seconds:
        kind = dice.choices(known, weights)[0]
        found.append(Fault(round(at_s, 3), kind, dice.random(), round(_length(kind, dice, lease_s), 3)))
        at_s += dice.uniform(*gap_s)
    return found


def _length(kind: str, dice: random.Random, lease_s: float) -> float:
    if kind == "stop":
        return lease_s * dice.uniform(1.2, 2.0) + 1.0
    longest = {"server": DOWN_S, "failover": BEHIND_S}.get(kind)
    return 0.0 if longest is None else dice.uniform(0.0, longest)
