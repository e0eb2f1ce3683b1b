"""W7, what many do to one: many queued jobs, paused threads, expired leases.

queued    claims and commits beside few and beside very many real jobs in one queue; what those take of memory
paused    threads that wait with a question: what each takes, and what they hold of leases, jobs and slots
expired   leases that ran out all at once: how they are swept
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

from everstep_checkpoint.ids import new_id
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import server_run_id
from everstep_scheduler.moves.contract import LEASE_MS, Offer
from everstep_scheduler.steps.perform import Performer

from .chains import LENGTH, one_by_one, p50_p99
from .graphs import asking, chain, flood
from .place import Place, until
from .rows import Row, row
from .sizes import Sizes
from .wide import done

WIDTH = 250  # a thread has at most so many jobs in queues at a time; what is more of a step stays unmade
FEW = 8
CLAIMS = 300
ROUNDS = 5
COMMIT_ROUNDS = 3
SLOTS = 64
LEASE_SHORT_MS = 1000
SLOW_US = 1000
OWNER = "bench.gone"


class Claims(NamedTuple):
    """Claims of one job each from a queue so long, and commits of what was claimed. Microseconds of the quietest round;
    the claims by the server's clock, too: 0 where its slow log is not ours."""

    queued: int
    p50_us: float
    p99_us: float
    commit_p50_us: float
    commit_p99_us: float
    server_p50_us: float
    server_p99_us: float
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
    return Offer(owner, tuple(new_id() for _ in range(slots)), (queue,), owner, lease_ms)


# queued


def queued(place: Place, threads: int, calls: int = CLAIMS) -> tuple[Claims, Claims]:
    """Claims beside the jobs of a few threads, then of all."""
    place.clear()
    before, spec = memory(place), flood()
    fill(place, spec, FEW)
    few = claims(place, before, calls)
    fill(place, spec, threads)
    return few, claims(place, before, calls)


def fill(place: Place, spec: GraphSpec, threads: int) -> None:
    """Make threads whose step is `WIDTH` wide, all of its tasks in the queue `flood.work`."""
    performer = Performer(place.moves, place.log, {spec.name: spec}, by="bench")
    for i in range(threads):
        place.submit(spec, width=WIDTH)
        leases = place.moves.claim(offer("flood")).leases
        while leases:
            leases = place.moves.commit([(done(performer, leases[0]), offer("flood"))])[0].leases
        _say(i + 1, threads, "threads filled")


def claims(place: Place, memory_before: int, calls: int) -> Claims:
    """`ROUNDS` times so many claims, each round given back so that the next one finds the same; then rounds of as many
    claims that are committed."""
    length, used = int(place.redis.llen(place.keys.rq_queue("flood.work"))), memory(place)
    rounds: list[tuple[float, float]] = []
    server: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        took: list[float] = []
        with place.scripts() as found:
            for _ in range(calls):
                asked = offer("flood.work")
                began = time.perf_counter()
                (_,) = place.moves.claim(asked).leases
                took.append((time.perf_counter() - began) * 1e6)
        place.moves.release("bench", None, "job")
        inside = sorted(each.us for each in found if each.name == "claim")
        assert len(inside) == (calls if place.own else 0), "the slow log has kept all of them"
        rounds.append(p50_p99(took))
        server.append(p50_p99(inside) if inside else (0.0, 0.0))
    (p50, p99), (own, own99) = (min(each, key=lambda pair: pair[1]) for each in (rounds, server))
    committed = min((commits(place, calls) for _ in range(COMMIT_ROUNDS)), key=lambda pair: pair[1])
    return Claims(length, p50, p99, *committed, own, own99, (used - memory_before) / 2**20)


def commits(place: Place, calls: int) -> tuple[float, float]:
    """p50 and p99 of commits that take nothing new: microseconds."""
    spec = flood()
    performer = Performer(place.moves, place.log, {spec.name: spec}, by="bench")
    took: list[float] = []
    for _ in range(calls):
        (lease,) = place.moves.claim(offer("flood.work")).leases
        commit = done(performer, lease)
        began = time.perf_counter()
        place.moves.commit([(commit, Offer("bench"))])
        took.append((time.perf_counter() - began) * 1e6)
    return p50_p99(took)


# paused


def paused(place: Place, threads: int) -> Paused:
    """A worker with one slot brings so many threads to their question, and does other runs then."""
    place.clear()
    spec, other = asking(), chain(LENGTH)
    with place.worker("asking", "chain", concurrency=1) as worker:
        one_by_one(place, other, 1)
        before = memory(place)
        for i in range(threads):
            place.submit(spec)
            _say(i + 1, threads, "threads submitted")
        asked = place.keys.threads("interrupted")
        until(lambda: int(place.redis.zcard(asked)) == threads, "all threads to ask", worker, pause_s=0.05)
        each = (memory(place) - before) / threads
        held = place.redis.zcard(place.keys.leases) + place.redis.llen(place.keys.rq_queue("asking"))
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
    until(lambda: _latest_end(place) < _now_ms(place), "the leases' ends")
    place.moves.sweep(server, LEASE_SHORT_MS)
    place.redis.hset(place.keys.sweep, "hold", 0)  # as after a lease without a gap
    began = time.monotonic()
    with place.scripts(SLOW_US) as found:  # at 0 it would log what scripts call, too, and keep the last few only
        while place.redis.zcard(place.keys.leases):
            lost.append(place.moves.sweep(server, LEASE_SHORT_MS)["lost"])
            _say(sum(lost), leases, "leases swept")
    took = [each.us / 1000 for each in found if each.name == "sweep"]
    assert sum(lost) == leases, f"{sum(lost)} of {leases} leases were lost"
    longest = max(took, default=SLOW_US / 1000)
    return Swept(leases, len(lost) - 1, max(lost), longest, sum(ms > 10 for ms in took), time.monotonic() - began)


def _latest_end(place: Place) -> float:
    """When the last of the leases ends, ms of Redis' clock."""
    ((_, end),) = place.redis.zrange(place.keys.leases, -1, -1, withscores=True)
    return float(end)


def _now_ms(place: Place) -> float:
    seconds, us = place.redis.time()
    return int(seconds) * 1000 + int(us) / 1000


def _say(count: int, of: int, what: str) -> None:
    if of >= 1000 and count % (of // 10) == 0:
        print(f"    {count:,} of {of:,} {what}", file=sys.stderr)


def rows_w7(place: Place, sizes: Sizes) -> list[Row]:
    """Beside a million queued jobs of four thousand threads: a thread has at most 250 jobs in queues at a time."""
    few, many = queued(place, sizes.flooded)
    name = f"{many.queued:,} queued jobs"
    rows = [
        row(f"W7 claim p99 beside {few.queued:,} queued jobs", "us", few.p99_us, details=few._asdict()),
        row(f"W7 claim p99 beside {name}", "us", many.p99_us, details=many._asdict()),
        row("W7 claim p99, many / few", "x", many.p99_us / few.p99_us, target=1.5),
        row("W7 commit p99, many / few", "x", many.commit_p99_us / few.commit_p99_us, target=1.5),
        row("W7 memory of a queued job and its log", "B", many.memory_mb * 2**20 / many.queued, note=name),
    ]
    if place.own:
        inside = many.server_p99_us / few.server_p99_us
        rows.insert(4, row("W7 claim p99 on the server, many / few", "x", inside, target=1.5))
    return rows


def rows_many(place: Place, sizes: Sizes) -> list[Row]:
    """A hundred thousand paused threads, and as many leases that ran out."""
    still = paused(place, sizes.paused)
    rows = [
        row(f"a paused thread, of {still.threads:,}", "B", still.bytes_each),
        row("leases and jobs that paused threads hold", "", still.held, target=0),
    ]
    swept = expired(place, sizes.expired)
    name = f"sweep of {swept.leases:,} leases"
    rows += [
        row(f"{name}, calls", "calls", swept.calls, note=f"{swept.seconds:.1f} s"),
        row(f"{name}, most of a call", "leases", swept.most_of_a_call, target=40),
    ]
    if place.own:
        over = f"{swept.over_10_ms} over 10 ms"
        rows.append(row(f"{name}, longest call", "ms", swept.longest_ms, target=10, note=over))
    return rows
