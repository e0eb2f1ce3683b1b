"""What many do to one: many queued jobs, paused threads, expired leases. As in `workloads`: named numbers, no verdict.

queued    claims beside few and beside very many real jobs in one queue; what they take of the server's memory
paused    threads that wait with a question: what each takes, and what they hold of leases, jobs and slots
expired   leases that ran out all at once: how they are swept
"""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

from everstep_checkpoint.log import new_id
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import server_run_id
from everstep_scheduler.moves.contract import LEASE_MS, Commit, Lease, Offer
from everstep_scheduler.steps.perform import Performer

from .graphs import asking, chain, flood
from .place import KEYS, Place
from .workloads import LENGTH, one_by_one

WIDTH = 250  # a thread has at most so many jobs in queues at a time; what is more of a step stays unmade
FEW = 4
CLAIMS = 300
ROUNDS = 5
SLOTS = 64
LEASE_SHORT_MS = 1000
SLOW_US = 1000
OWNER = "bench.gone"


class Claims(NamedTuple):
    """Claims of one job each from a queue so long. Microseconds of the quietest round; of the server's clock, too."""

    queued: int
    p50_us: float
    p99_us: float
    server_p50_us: float
    server_p99_us: float
    longest_us: float
    memory_mb: float


class Paused(NamedTuple):
    """So many threads that wait. `held`: leases and jobs that are there. `others_done`: runs that went on beside."""

    threads: int
    bytes_each: float
    held: int
    others_done: int


class Swept(NamedTuple):
    """A sweep of so many leases that had run out."""

    leases: int
    calls: int
    most_of_a_call: int
    longest_ms: float
    over_10_ms: int
    seconds: float


def memory(place: Place) -> int:
    return int(place.redis.info("memory")["used_memory"])


def offer(queue: str, slots: int = 1, owner: str = "bench", lease_ms: int = LEASE_MS) -> Offer:
    return Offer(owner, tuple(new_id() for _ in range(slots)), (queue,), owner, 0, lease_ms)


def done(performer: Performer, lease: Lease) -> Commit:
    attempt = performer.load(lease)
    return performer.settle(attempt, attempt.call())


# queued


def queued(place: Place, threads: int) -> tuple[Claims, Claims]:
    """Claims beside the jobs of a few threads, then of all."""
    place.clear()
    before, spec = memory(place), flood()
    fill(place, spec, FEW)
    few = claims(place, before)
    fill(place, spec, threads)
    return few, claims(place, before)


def fill(place: Place, spec: GraphSpec, threads: int) -> None:
    """Make threads whose step is `WIDTH` wide, all of its tasks in the queue `flood.work`."""
    performer = Performer(place.moves, place.log, {spec.name: spec}, by="bench")
    for i in range(threads):
        place.submit(spec, width=WIDTH)
        leases = place.moves.claim(offer("flood")).leases
        while leases:
            leases = place.moves.commit([(done(performer, leases[0]), offer("flood"))])[0].leases
        _say(i + 1, threads, "threads filled")


def claims(place: Place, memory_before: int) -> Claims:
    """`ROUNDS` times `CLAIMS` claims. What they took is given back in between, so that each round finds the same."""
    length, used = int(place.redis.llen(KEYS.rq_queue("flood.work"))), memory(place)
    rounds: list[tuple[float, float]] = []
    server: list[tuple[float, float]] = []
    longest = 0.0
    for _ in range(ROUNDS):
        took: list[float] = []
        with place.scripts() as found:
            for _ in range(CLAIMS):
                asked = offer("flood.work")
                began = time.perf_counter()
                (_,) = place.moves.claim(asked).leases
                took.append((time.perf_counter() - began) * 1e6)
        place.moves.release("bench", None, "job")
        inside = sorted(each.us for each in found if each.name == "claim")
        assert len(inside) == CLAIMS, "the slow log has kept all of them"
        rounds.append(_p50_p99(sorted(took)))
        server.append(_p50_p99(inside))
        longest = max(longest, *inside)
    (p50, p99), (own, own99) = min(rounds, key=lambda each: each[1]), min(server, key=lambda each: each[1])
    return Claims(length, p50, p99, own, own99, longest, (used - memory_before) / 2**20)


def _p50_p99(ordered: list[Any]) -> tuple[float, float]:
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]


# paused


def paused(place: Place, threads: int) -> Paused:
    """A worker with one slot brings so many threads to their question, and does other runs then."""
    place.clear()
    spec, other = asking(), chain(LENGTH)
    with place.worker("asking", "chain", concurrency=1):
        one_by_one(place, other, 1)
        before = memory(place)
        waiting = place.redis.zcard
        for i in range(threads):
            place.submit(spec)
            _say(i + 1, threads, "threads submitted")
        while waiting(KEYS.threads("interrupted")) < threads:
            time.sleep(0.05)
        each = (memory(place) - before) / threads
        held = place.redis.zcard(KEYS.leases) + place.redis.llen(KEYS.rq_queue("asking"))
        ran = one_by_one(place, other, 3)
    return Paused(threads, each, held, len(ran))


# expired


def expired(place: Place, leases: int) -> Swept:
    """Somebody takes so many tasks and is gone; one process sweeps, as its lease thread would."""
    place.clear()
    fill(place, flood(), -(-leases // WIDTH))
    taken = 0
    while taken < leases:
        asked = offer("flood.work", min(SLOTS, leases - taken), OWNER, LEASE_SHORT_MS)
        taken += len(place.moves.claim(asked).leases)
    return sweep(place, leases)


def sweep(place: Place, leases: int) -> Swept:
    server, lost = server_run_id(place.redis), [0]
    time.sleep(LEASE_SHORT_MS / 1000)
    place.moves.sweep(server, LEASE_SHORT_MS)
    place.redis.hset(KEYS.sweep, "hold", 0)  # as after a lease without a gap
    began = time.monotonic()
    with place.scripts(SLOW_US) as found:  # at 0 it would log what scripts call, too, and keep the last few only
        while place.redis.zcard(KEYS.leases):
            lost.append(place.moves.sweep(server, LEASE_SHORT_MS)["lost"])
            _say(sum(lost), leases, "leases swept")
    took = [each.us / 1000 for each in found if each.name == "sweep"]
    assert sum(lost) == leases, f"{sum(lost)} of {leases} leases were lost"
    longest = max(took, default=SLOW_US / 1000)
    return Swept(leases, len(lost) - 1, max(lost), longest, sum(ms > 10 for ms in took), time.monotonic() - began)


def _say(done: int, of: int, what: str) -> None:
    if of >= 1000 and done % (of // 10) == 0:
        print(f"    {done:,} of {of:,} {what}", file=sys.stderr)
