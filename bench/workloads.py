"""The workloads: each measures something on a place and gives named numbers; none judges.

latency, throughput   W1 and W2: chains of ten no-op nodes with 1 KB of new state a step
wide                  W3: one step of many Sends and its join
round_trips           what a step asks of the server, by INFO commandstats
moved                 how many tasks one script call moves in a step of 10,000
step_bytes            what a step adds to the log beside its payload
idle, inbox, help_ms  what a worker costs that has nothing to do; how long a message and a word of help take
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.entries import Entry
from everstep_checkpoint.log import new_id
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.contract import Commit, Lease, Offer
from everstep_scheduler.steps.perform import Performer

from .floor import async_chain, sync_chain
from .graphs import PAYLOAD, chain, fan
from .place import KEYS, Counts, Place

LENGTH = 10
SLICES = 10


class Latency(NamedTuple):
    """Microseconds from a node's start to the next one's; milliseconds from submit to the last checkpoint. The floor's
    are those of its better loop."""

    p50_us: float
    p99_us: float
    run_ms: float
    floor_p50_us: float
    floor_p99_us: float


class Trips(NamedTuple):
    """What the server was asked, for so many steps."""

    steps: int
    counts: Counts
    seconds: float

    @property
    def scripts(self) -> float:
        return self.counts.scripts / self.steps

    @property
    def commands(self) -> float:
        return self.counts.commands / self.steps


def new_run(place: Place, spec: GraphSpec) -> str:
    return place.submit(spec, count=0, blob=os.urandom(PAYLOAD))


def one_by_one(place: Place, spec: GraphSpec, runs: int) -> list[str]:
    """Runs one after the other, each on a new thread."""
    threads: list[str] = []
    for _ in range(runs):
        threads.append(new_run(place, spec))
        place.finish(threads[-1:])
    return threads


def at_once(place: Place, spec: GraphSpec, runs: int) -> list[str]:
    """All of them submitted before the first one begins."""
    with place.suspended():
        threads = [new_run(place, spec) for _ in range(runs)]
    place.finish(threads, pause_s=0.02)
    return threads


# W1, W2


def latency(place: Place, runs: int, floor_steps: int) -> Latency:
    """One run at a time on one worker process, in slices between slices of the floor: both meet the same machine."""
    place.clear()
    spec, slices = chain(LENGTH), min(SLICES, runs)
    took: list[float] = []
    sync: list[float] = []
    loop: list[float] = []
    with place.worker("chain") as worker:
        one_by_one(place, spec, 3)
        for _ in range(slices):
            sync += sync_chain(place.url, floor_steps // slices)
            loop += async_chain(place.url, floor_steps // slices)
            for _ in range(runs // slices):
                began = time.perf_counter()
                one_by_one(place, spec, 1)
                took.append((time.perf_counter() - began) * 1000)
    gaps = [(b[1] - a[1]) / 1000 for a, b in pairwise(worker.journal) if b[0] == a[0] + 1]
    floor = min(sync, loop, key=statistics.median)
    return Latency(*_p50_p99(gaps), statistics.median(took), *_p50_p99(floor))


def _p50_p99(took: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(took)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]


def throughput(place: Place, runs: int, concurrency: int = 10) -> float:
    """Steps a second of one worker process with many runs at once; their inputs' steps take time and don't count."""
    place.clear()
    spec = chain(LENGTH)
    with place.worker("chain", concurrency=concurrency):
        one_by_one(place, spec, 1)
        threads = at_once(place, spec, runs)
    return runs * LENGTH / place.span_ms(threads) * 1000


# what is counted


def round_trips(place: Place, runs: int, *, load: bool) -> Trips:
    """The server's counters over some runs, one at a time or all at once. Steps: nodes and inputs."""
    spec = chain(LENGTH)
    with place.worker("chain"):
        one_by_one(place, spec, 1)
        before, began = place.counts(), time.monotonic()
        at_once(place, spec, runs) if load else one_by_one(place, spec, runs)
        return Trips(runs * (LENGTH + 1), place.counts() - before, time.monotonic() - began)


def script_us(place: Place, runs: int) -> dict[str, float]:
    """Median server time of each script in lone chains, by the slow log."""
    spec = chain(LENGTH)
    with place.worker("chain"):
        one_by_one(place, spec, 3)
        with place.scripts() as found:
            one_by_one(place, spec, runs)
    names = sorted({each.name for each in found})
    return {name: statistics.median(each.us for each in found if each.name == name) for name in names}


def step_bytes(place: Place) -> dict[str, float]:
    """Bytes of a step's entries by field, ids and names included, for the median step of a chain."""
    place.clear()
    with place.worker("chain"):
        (thread,) = one_by_one(place, chain(LENGTH), 1)
    sizes = [_sizes(entry) for entry in place.log.read(thread) if entry.text("node").startswith("n")]
    sizes.sort(key=lambda found: sum(found.values()))
    return sizes[len(sizes) // 2]


def _sizes(entry: Entry) -> dict[str, float]:
    found: dict[str, float] = {name: len(name) + len(value) for name, value in entry.raw.items()}
    found["delta"] -= PAYLOAD
    return {"id": len(entry.id), **found}


# W3


class Wide(NamedTuple):
    """A step of `width` Sends: milliseconds per task, its whole, and the longest call of a script."""

    width: int
    ms_per_task: float
    ms: float
    longest_ms: float
    longest: str


def wide(place: Place, width: int) -> Wide:
    """1 -> width -> 1 on one worker process."""
    place.clear()
    spec = fan()
    with place.worker("fan", concurrency=50):
        place.finish([place.submit(spec, width=5, ran=0)])
        with place.scripts(threshold_us=500) as found:
            thread = place.submit(spec, width=width, ran=0)
            place.finish([thread], pause_s=0.01)
    ms = place.span_ms([thread])
    longest = max(found, key=lambda each: each.us, default=None)
    return Wide(width, ms / width, ms, longest.us / 1000 if longest else 0.5, longest.name if longest else "all")


class Moved(NamedTuple):
    """One script call in a wide step: tasks that became jobs, and tasks that were leased."""

    script: str
    made: int
    leased: int


def moved(place: Place, width: int, calls: int) -> list[Moved]:
    """Drives a wide step by hand: its fan-out, then `calls` claims of 64 slots with a commit after each."""
    place.clear()
    spec = fan()
    performer = Performer(place.moves, place.log, {spec.name: spec}, by="bench")
    place.submit(spec, width=width, ran=0)
    found: list[Moved] = []
    leases = list(place.moves.claim(_offer(1)).leases)
    while len(found) < 2 * calls:
        commit = _done(performer, leases.pop())
        leases += _observed(place, "commit", found, lambda commit=commit: place.moves.commit([(commit, _offer(1))])[0])
        if commit.lease.node == "work":
            leases += _observed(place, "claim", found, lambda: place.moves.claim(_offer(64)))
    return found


def _observed(place: Place, name: str, found: list[Moved], call: Any) -> Sequence[Lease]:
    queue = KEYS.rq_queue("fan")
    before = int(place.redis.llen(queue))
    leases: Sequence[Lease] = call().leases
    found.append(Moved(name, int(place.redis.llen(queue)) - before + len(leases), len(leases)))
    return leases


def _done(performer: Performer, lease: Lease) -> Commit:
    attempt = performer.load(lease)
    return performer.settle(attempt, attempt.call())


def _offer(slots: int) -> Offer:
    return Offer("bench", tuple(new_id() for _ in range(slots)), ("fan",), "bench")


# the quiet things


class Idle(NamedTuple):
    """A worker process with nothing to do."""

    rss_mb: float
    commands_s: float


def idle(place: Place, seconds: float) -> Idle:
    place.clear()
    with place.worker("chain") as worker:
        one_by_one(place, chain(LENGTH), 1)
        time.sleep(1.0)
        before, began = place.counts(), time.monotonic()
        time.sleep(seconds)
        asked = (place.counts() - before).commands / (time.monotonic() - began)
        return Idle(worker.rss_mb, asked)


def inbox(place: Place, messages: int) -> list[float]:
    """Milliseconds from a message in the inbox to its run's first entry, both by Redis' clock."""
    place.clear()
    took: list[float] = []
    with place.worker("fan"):
        for i in range(messages):
            said = {"graph": "fan", "thread": f"inbox-{i}", "input": '{"width": 1, "ran": 0}'}
            sent = place.redis.xadd(KEYS.inbox, said).decode()
            end = time.monotonic() + 10
            while not (found := place.log.read(f"inbox-{i}", count=1)) and time.monotonic() < end:
                time.sleep(0.002)
            took.append(found[0].number("at") - e.entry_id(sent)[0])
    return took


def help_ms(times: int) -> list[float]:
    """Wall time of `everstep --help`."""
    took: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "everstep", "--help"], stdout=subprocess.DEVNULL, check=True)
        took.append((time.perf_counter() - began) * 1000)
    return took
