"""W8: the server's CPU for a step, with 1, 2 and 4 partitions on one server, each with a worker process of its own."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from .chains import LENGTH, SLOTS, new_run, one_by_one
from .graphs import chain
from .place import Place, held
from .rows import Row, ratios, row
from .sizes import Sizes

COUNTS = (1, 2, 4)


class Load(NamedTuple):
    """Microseconds of the server's CPU for a commit, and commits a second of all partitions."""

    server_us: float
    steps_s: float


def load(place: Place, partitions: int, chains: int) -> Load:
    """So many partitions share the chains, one worker process each."""
    place.clear()
    spec, each_runs = chain(LENGTH), chains // partitions
    with ExitStack() as ending:
        rooms = [ending.enter_context(place.partition(str(i + 1))) for i in range(partitions)]
        workers = [ending.enter_context(room.worker("chain", concurrency=SLOTS)) for room in rooms]
        for room in rooms:
            one_by_one(room, spec, 3)
        with held(workers):
            threads = [[new_run(room, spec) for _ in range(each_runs)] for room in rooms]
            before = place.cpu_s()
        for room, some in zip(rooms, threads, strict=True):
            room.finish(some, pause_s=0.02)
        took = place.cpu_s() - before
        span = max(room.span_ms(some) for room, some in zip(rooms, threads, strict=True))
    runs = each_runs * partitions
    return Load(took / (runs * (LENGTH + 1)) * 1e6, runs * LENGTH / span * 1000)


def rows_w8(place: Place, sizes: Sizes) -> list[Row]:
    rounds = [[load(place, count, sizes.partition_chains) for count in COUNTS] for _ in range(max(3, sizes.rounds))]
    by_count = list(zip(*rounds, strict=True))
    rows: list[Row] = []
    for count, found in zip(COUNTS, by_count, strict=True):
        name = f"W8 {count} partition{'s' if count > 1 else ''}"
        rows.append(row(f"{name}: Redis' CPU of a step", "us", [each.server_us for each in found], target=60))
        rows.append(row(f"{name}", "steps/s", [each.steps_s for each in found]))
    one, four = ([each.server_us for each in by_count[i]] for i in (0, -1))
    rows.append(row("W8 Redis' CPU of a step, 4 partitions / 1", "x", ratios(four, one), target=1.2))
    return rows
