"""Fairness: nine tenants with equally much to do, and one that floods the queue before them. Who got how many steps
while all of them had work that waited? As a count, and what it costs beside runs without a key."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from everstep_checkpoint.entries import CHECKPOINT, Entry
from everstep_checkpoint.ids import new_id
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.record import Config, start_of

from .chains import LENGTH
from .graphs import PAYLOAD, chain
from .place import Place, held
from .rows import Row, ratios, row
from .sizes import Sizes

TENANTS = 9
FLOOD = "flood"
MORE = 10
CONCURRENCY = 4


@dataclass(frozen=True)
class Shared:
    """Steps by tenant while all waited; steps a second of all, to the last one of the nine."""

    steps: Counter[str]
    steps_s: float


def jain(counts: Iterable[float]) -> float:
    """Jain's index of fairness: 1 if all got the same, 1/n if one got everything."""
    got = list(counts)
    squares = sum(each * each for each in got)
    return sum(got) ** 2 / (len(got) * squares) if squares else 0.0


def shared(place: Place, runs: int, *, keyed: bool) -> Shared:
    """Nine tenants with so many runs each, and one with ten times as many, which are there first."""
    place.clear()
    spec, tenants = chain(LENGTH), [FLOOD, *(f"tenant-{i}" for i in range(TENANTS))]
    with place.worker("chain", concurrency=CONCURRENCY) as worker:
        with held([worker]):
            threads = {
                _submit(place, spec, tenant if keyed else ""): tenant
                for tenant in tenants
                for _ in range(runs * (MORE if tenant == FLOOD else 1))
            }
        place.finish([thread for thread, tenant in threads.items() if tenant != FLOOD], pause_s=0.02)
    return _counted(place, threads)


def _submit(place: Place, spec: GraphSpec, key: str) -> str:
    thread, values = new_id(), {"count": 0, "blob": os.urandom(PAYLOAD)}
    place.moves.start(start_of(spec, thread, new_id(), values, Config.of(None, fairness_key=key), "input"))
    return thread


def _counted(place: Place, threads: dict[str, str]) -> Shared:
    """Each step by when it was committed, until a tenant has no more runs to do than there are slots."""
    left, got = Counter(threads.values()), Counter[str]()
    logs = {thread: place.log.read(thread) for thread in threads}
    steps = sorted((x.number("at"), thread, not x.next) for thread, log in logs.items() for x in log if _is_step(x))
    ends = [at for at, thread, last in steps if last and threads[thread] != FLOOD]
    for _, thread, last in steps:
        tenant = threads[thread]
        got[tenant] += 1
        left[tenant] -= last
        if left[tenant] <= CONCURRENCY:
            break
    within = [at for at, _, _ in steps if at <= max(ends)]
    return Shared(got, len(within) / max(max(ends) - within[0], 1) * 1000)


def _is_step(entry: Entry) -> bool:
    """Is it the checkpoint of a commit of its own? That of an input comes with the next one."""
    return entry.kind == CHECKPOINT and entry.text("source") != "input"


def rows_fair(place: Place, sizes: Sizes) -> list[Row]:
    rounds = [[shared(place, sizes.tenant_runs, keyed=keyed) for keyed in (True, False)] for _ in range(3)]
    with_keys, without = zip(*rounds, strict=True)
    fastest, plain = [each.steps_s for each in with_keys], [each.steps_s for each in without]
    name = f"fair {TENANTS} tenants and one that floods"
    return [
        row(f"{name}: Jain's index of their steps", "", [jain(each.steps.values()) for each in with_keys],
            target=0.99, keep="least", details={"steps": dict(with_keys[0].steps)}),
        row(f"{name}: the same without keys", "", [jain(each.steps.values()) for each in without],
            details={"steps": dict(without[0].steps)}),
        row(f"{name}: one process", "steps/s", fastest),
        row(f"{name}: with keys / without", "x", ratios(fastest, plain)),
    ]  # fmt: skip
