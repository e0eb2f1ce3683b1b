"""W5: nodes that wait. 500 runs of three async nodes that sleep 200 ms in one process; 2,000 that sleep at once."""

from __future__ import annotations

import time
from typing import NamedTuple

from .graphs import GRAPHS
from .place import Place, held, until
from .rows import Row, row
from .sizes import Sizes

NAP_S = 0.2
FEW = 20
LEASE_MS = 3000
LOOKED_S = 4.0
LONG_S = 600.0
INPUT_ENTRIES = 1  # what the log has of a run whose input waits


class Upkeep(NamedTuple):
    """What a process that holds so many sleeping nodes asks of the server, a second: requests, and commands with those
    inside of scripts; and the seconds from the first input to the last node asleep."""

    sleeping: int
    requests_s: float
    commands_s: float
    begun_s: float


def waiting(place: Place, runs: int) -> float:
    """Seconds from the first claim to the last checkpoint."""
    place.clear()
    spec = GRAPHS["waiting"]()
    with place.worker("waiting", concurrency=runs) as worker:
        place.finish([place.submit(spec, seconds=0.0) for _ in range(10)])
        with held([worker]):
            threads = [place.submit(spec, seconds=NAP_S) for _ in range(runs)]
        place.finish(threads, pause_s=0.02)
    return place.span_ms(threads) / 1000


def upkeep(place: Place, count: int) -> Upkeep:
    """One process with so many nodes asleep, looked at for some lease renewals."""
    place.clear()
    spec = GRAPHS["sleeping"]()
    with place.worker("sleeping", concurrency=count, lease_ms=LEASE_MS) as worker:
        began = time.monotonic()
        threads = [place.submit(spec, seconds=LONG_S) for _ in range(count)]
        until(lambda: _asleep(place, threads) == count == int(place.redis.zcard(place.keys.leases)), "sleep", worker)
        begun, before, at = time.monotonic() - began, place.counts(), time.monotonic()
        time.sleep(LOOKED_S)  # the span that is looked at
        asked, seconds = place.counts() - before, time.monotonic() - at
        lost = int(place.redis.hget(place.keys.stats, "lost") or 0)
    assert not lost, f"{lost} of {count} sleeping nodes lost their lease"
    return Upkeep(count, asked.scripts / seconds, asked.commands / seconds, begun)


def _asleep(place: Place, threads: list[str]) -> int:
    """How many are beyond their input: that is a task of its own, which ends with two checkpoints."""
    with place.redis.pipeline(transaction=False) as pipe:
        for thread in threads:
            pipe.xlen(place.keys.log(thread))
        return sum(length > INPUT_ENTRIES for length in pipe.execute())


def rows_w5(place: Place, sizes: Sizes) -> list[Row]:
    took = [waiting(place, sizes.waiting) for _ in range(3)]
    few, many = upkeep(place, FEW), upkeep(place, sizes.sleeping)
    return [
        row(f"W5 {sizes.waiting} runs x 3 async nodes of 200 ms, one process", "s", took, target=0.9),
        row(f"W5 {few.sleeping} sleeping nodes: requests of their process", "1/s", few.requests_s),
        row(f"W5 {many.sleeping:,} sleeping nodes: requests of their process", "1/s", many.requests_s),
        row(f"W5 requests with {many.sleeping:,} asleep / with {few.sleeping}", "x",
            many.requests_s / few.requests_s, target=1.5, details={"few": few._asdict(), "many": many._asdict()}),
        row(f"W5 commands with {many.sleeping:,} asleep, within scripts too", "1/s", many.commands_s),
        row(f"W5 {many.sleeping:,} inputs to all asleep", "s", many.begun_s),
    ]  # fmt: skip
