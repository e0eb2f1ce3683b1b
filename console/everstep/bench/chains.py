"""W1 and W2: chains of ten no-op nodes with 1 KB of new state a step, one at a time and many at once.

latency      one run at a time on one worker process, between slices of the floor
throughput   many runs at once on one or two worker processes; what CPU worker and server took
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from everstep_scheduler.graph.spec import GraphSpec

from .floor import Bare, async_chain, loop_chains, many_chains, sync_chain
from .graphs import PAYLOAD, chain
from .place import Place, held
from .rows import Row, ratios, row
from .sizes import Sizes

LENGTH = 10
LONE_COST = "CPU of one worker process and Redis, lone chain"
MANY_COST = "CPU of one worker process and Redis, many chains"
SLICES = 10
SLOTS = 32  # of a worker process under load: what `everstep worker --concurrency 32` has


class Latency(NamedTuple):
    """Microseconds from a node's start to the next one's; milliseconds from submit to the last checkpoint. The floor's
    are those of its better loop."""

    p50_us: float
    p99_us: float
    run_ms: float
    floor_p50_us: float
    floor_p99_us: float


class Throughput(NamedTuple):
    """Node steps a second. CPU seconds for a thousand commits (of nodes and inputs) of the workers and of the server;
    bytes that a commit adds to the append-only file."""

    steps_s: float
    worker_cpu_s: float
    server_cpu_s: float
    aof_bytes: float


def new_run(place: Place, spec: GraphSpec, thread: str = "") -> str:
    return place.submit(spec, thread=thread, count=0, blob=os.urandom(PAYLOAD))


def one_by_one(place: Place, spec: GraphSpec, runs: int) -> list[str]:
    """Runs one after the other, each on a new thread."""
    threads: list[str] = []
    for _ in range(runs):
        threads.append(new_run(place, spec))
        place.finish(threads[-1:])
    return threads


def latency(place: Place, runs: int, floor_steps: int) -> Latency:
    """One run at a time on one worker process, in slices between slices of the floor: both meet the same machine."""
    place.clear()
    spec, slices, stem = chain(LENGTH), min(SLICES, runs), place.keys.stem
    took: list[float] = []
    sync: list[float] = []
    loop: list[float] = []
    with place.worker("chain") as worker:
        one_by_one(place, spec, 3)
        for _ in range(slices):
            sync += sync_chain(place.url, stem, floor_steps // slices)
            loop += async_chain(place.url, stem, floor_steps // slices)
            for _ in range(runs // slices):
                began = time.perf_counter()
                one_by_one(place, spec, 1)
                took.append((time.perf_counter() - began) * 1000)
    gaps = gaps_us(worker.journal)
    floor = min(sync, loop, key=statistics.median)
    return Latency(*p50_p99(gaps), statistics.median(took), *p50_p99(floor))


def gaps_us(journal: Sequence[tuple[int, int]]) -> list[float]:
    """Microseconds from each node's start to that of the next one of its chain."""
    return [(b[1] - a[1]) / 1000 for a, b in pairwise(journal) if b[0] == a[0] + 1]


def p50_p99(took: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(took)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]


def throughput(place: Place, runs: int, processes: int = 1) -> Throughput:
    """Many runs at once, all submitted before the first one begins; their inputs' steps take time and don't count."""
    place.clear()
    spec, commits = chain(LENGTH), runs * (LENGTH + 1)
    with place.workers(processes, "chain", concurrency=SLOTS) as workers:
        one_by_one(place, spec, 3 * processes)
        with held(workers):
            threads = [new_run(place, spec) for _ in range(runs)]
            before = sum(each.cpu_s for each in workers), place.cpu_s(), place.aof_bytes()
        place.finish(threads, pause_s=0.02)
        after = sum(each.cpu_s for each in workers), place.cpu_s(), place.aof_bytes()
        worker, server, written = ((b - a) / commits for a, b in zip(before, after, strict=True))
    return Throughput(runs * LENGTH / place.span_ms(threads) * 1000, worker * 1000, server * 1000, written)


class Costs(NamedTuple):
    """CPU seconds of a thousand steps, of whoever takes them and of the server: ours, and those of the floor. A lone
    chain, and many at once. CPU says less than time, but a busy machine changes it little."""

    lone: float
    many: float
    floor_lone: float
    floor_many: float


def costs(place: Place, runs: int, chains: int, floor_steps: int) -> Costs:
    """Of one worker process. Steps: nodes and inputs."""
    place.clear()
    spec, url, stem = chain(LENGTH), place.url, place.keys.stem
    with place.worker("chain") as worker:
        one_by_one(place, spec, 3)

        def ours(call: Callable[[], object], commits: int) -> float:
            before = worker.cpu_s + place.cpu_s()
            call()
            return (worker.cpu_s + place.cpu_s() - before) / commits * 1000

        def floors(call: Callable[[], object]) -> float:
            before = time.process_time() + place.cpu_s()
            call()
            return (time.process_time() + place.cpu_s() - before) / floor_steps * 1000

        lone = ours(lambda: one_by_one(place, spec, runs), runs * (LENGTH + 1))
        bare = floors(lambda: sync_chain(url, stem, floor_steps))
        with held([worker]):
            threads = [new_run(place, spec) for _ in range(chains)]
        many = ours(lambda: place.finish(threads, pause_s=0.02), chains * (LENGTH + 1))
        bare_many = floors(lambda: loop_chains(url, stem, floor_steps))
    return Costs(lone, many, bare, bare_many)


def rows_costs(place: Place, sizes: Sizes) -> list[Row]:
    found = [costs(place, sizes.runs, sizes.chains, sizes.floor_steps) for _ in _rounds(sizes, "CPU")]
    rows: list[Row] = []
    for name, over, under in (
        (LONE_COST, [each.lone for each in found], [each.floor_lone for each in found]),
        (MANY_COST, [each.many for each in found], [each.floor_many for each in found]),
    ):
        rows.append(row(f"{name}, of 1,000 steps", "s", over))
        rows.append(row(f"{name} / floor's", "x", ratios(over, under)))
    return rows


def rows_w1(place: Place, sizes: Sizes) -> list[Row]:
    found = [latency(place, sizes.runs, sizes.floor_steps) for _ in _rounds(sizes, "W1")]
    step, bare = [each.p50_us for each in found], [each.floor_p50_us for each in found]
    return [
        row("W1 floor, a step", "us", bare),
        row("W1 step p50", "us", step),
        row("W1 step p50 / floor", "x", ratios(step, bare), target=1.2),
        row("W1 step p99 / floor's p50", "x", ratios([each.p99_us for each in found], bare), target=4),
        row("W1 floor's p99 / its p50", "x", ratios([each.floor_p99_us for each in found], bare)),
        row("W1 run of 10 nodes, submit to rest", "ms", [each.run_ms for each in found]),
    ]


def rows_w2(place: Place, sizes: Sizes) -> list[Row]:
    floors: list[Bare] = []
    ones: list[Throughput] = []
    twos: list[Throughput] = []
    for _ in _rounds(sizes, "W2"):
        place.clear()
        floors.append(many_chains(place.url, place.keys.stem, sizes.floor_steps))
        ones.append(throughput(place, sizes.chains))
        twos.append(throughput(place, sizes.chains, 2))
    bare = [each.steps_s for each in floors]
    one, two = [each.steps_s for each in ones], [each.steps_s for each in twos]
    return [
        row("W2 floor", "steps/s", bare),
        row("W2 one worker process", "steps/s", one),
        row("W2 one worker process / floor", "x", ratios(one, bare), target=0.6, keep="least"),
        row("W2 two worker processes", "steps/s", two),
        row("W2 two worker processes / floor", "x", ratios(two, bare), target=0.6, keep="least"),
        row("W2 floor, CPU of 1,000 steps", "s", [each.cpu_s for each in floors], note="its client's alone"),
        *_cpu("one process", ones),
        *_cpu("two processes", twos),
    ]


def _cpu(name: str, found: Sequence[Throughput]) -> list[Row]:
    rows = [
        row(f"W2 {name}: worker's CPU of 1,000 steps", "s", [each.worker_cpu_s for each in found]),
        row(f"W2 {name}: Redis' CPU of 1,000 steps", "s", [each.server_cpu_s for each in found]),
        row(f"W2 {name}: append-only file of a step", "B", [each.aof_bytes for each in found]),
    ]
    return [each for each in rows if any(each.values)]  # no /proc, no append-only file: nothing to say


def rows_w2a(place: Place, sizes: Sizes) -> list[Row]:
    """The same with appendfsync always, in turns with everysec: two servers of our own, whatever `place` is."""
    often: list[float] = []
    rare: list[float] = []
    often_2: list[float] = []
    rare_2: list[float] = []
    with Place() as usual, Place(appendfsync="always") as careful:
        for _ in _rounds(sizes, "W2a"):
            rare.append(throughput(usual, sizes.chains).steps_s)
            often.append(throughput(careful, sizes.chains).steps_s)
            rare_2.append(throughput(usual, sizes.chains, 2).steps_s)
            often_2.append(throughput(careful, sizes.chains, 2).steps_s)
    return [
        row("W2a appendfsync always, one worker process", "steps/s", often),
        row("W2a appendfsync always / everysec, one process", "x", ratios(often, rare), target=0.6, keep="least"),
        row("W2a appendfsync always, two worker processes", "steps/s", often_2),
        row("W2a appendfsync always / everysec, two processes", "x", ratios(often_2, rare_2), target=0.6, keep="least"),
    ]


def _rounds(sizes: Sizes, name: str) -> list[int]:
    print(f"  {name}: {sizes.rounds} rounds", file=sys.stderr)
    return list(range(sizes.rounds))
