"""A crowd: many queued tasks, and many leases that run out at once. What is counted is asserted; times are shown, and
kept by `make soak`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent))  # bench/ is a package of the checkout, and is not installed

from bench.reliability import record

from everstep.chaos.sample import NAME, given, graph
from everstep.chaos.takeovers import percentile
from everstep_checkpoint.ids import new_id
from everstep_scheduler.moves.connection import server_run_id
from everstep_scheduler.moves.contract import MOVE_MAX, Offer
from everstep_scheduler.moves.record import Config, start_of
from everstep_workers.keeper import MORE_S, SWEEPS_MAX
from everstep_workers.worker import Worker
from hand import KEYS, Hand
from servers import StartServer, plain_client

LONG_MS, SHORT_MS = 3_600_000, 1000
AT_ONCE = 40  # leases that one claim takes, and one sweep takes back
CLAIMS, CLAIMS_FEW = 2000, 500


def crowd(client: Any, threads: int, width: int) -> Hand:
    """So many threads, each in a step of so many Sends that nobody has taken."""
    hand = Hand(client, graph, name=NAME)
    for i in range(threads):
        told = given(1_000_000, 1, width)
        hand.moves.start(start_of(hand.spec, f"c{i}", new_id(), told, Config(), "input"))
    for _ in range(2 * threads):  # first in, first out: each start, and then each draw
        hand.claim()
        assert hand.do() == "ok"
    return hand


def claimed(hand: Hand, owner: str, count: int, lease_ms: int) -> float:
    """Claim so many tasks at once; how long it took, in seconds."""
    offer = Offer(owner, tuple(new_id() for _ in range(count)), hand.spec.queues, lease_ms=lease_ms)
    began = time.perf_counter()
    found = hand.moves.claim(offer).leases
    took = time.perf_counter() - began
    assert len(found) == count
    return took


def swept(hand: Hand, count: int) -> list[float]:
    """All these leases have run out: sweep until none is left. Seconds of each call."""
    hand.moves.sweep("server", SHORT_MS)
    hand.client.hset(KEYS.sweep, "hold", 0)  # the fleet has been sweeping for long
    times: list[float] = []
    left = count
    while left:
        began = time.perf_counter()
        answer = hand.moves.sweep("server", SHORT_MS)
        times.append(time.perf_counter() - began)
        assert answer["lost"] == min(AT_ONCE, left), "a bounded batch, and a full one"
        assert bool(answer.get("more")) == (left >= AT_ONCE), "it says that there is more"
        left -= answer["lost"]
    return times


def lease_and_lose(hand: Hand, count: int) -> list[float]:
    """Claim so many tasks, for many processes, which all die; sweep. Then all wait again, each once."""
    waiting = hand.client.hget(KEYS.counts, NAME)
    for i in range(count // AT_ONCE):
        claimed(hand, f"dead-{i}", AT_ONCE, SHORT_MS)
    assert hand.client.zcard(KEYS.leases) == count
    hand.client.zadd(KEYS.leases, dict.fromkeys(hand.client.zrange(KEYS.leases, 0, -1), 1))
    times = swept(hand, count)
    assert hand.client.zcard(KEYS.leases) == 0
    assert int(hand.client.hget(KEYS.stats, "lost")) == count
    assert int(hand.client.hget(KEYS.counts, NAME)) == hand.client.llen(KEYS.rq_queue(NAME)) >= int(waiting)
    return times


def test_leases_of_a_lost_fleet_come_back_in_bounded_batches_until_none_is_left(client: Any) -> None:
    lease_and_lose(crowd(client, 4, 120), 400)


def test_a_worker_that_swept_for_long_enough_renews_and_sweeps_on_at_once(client: Any, redis_url: str) -> None:
    hand, count = crowd(client, 12, 120), (SWEEPS_MAX + 2) * AT_ONCE
    for i in range(count // AT_ONCE):
        claimed(hand, f"dead-{i}", AT_ONCE, SHORT_MS)
    client.zadd(KEYS.leases, dict.fromkeys(client.zrange(KEYS.leases, 0, -1), 1))
    worker = Worker(redis_url, [graph], keys=KEYS, lease_ms=SHORT_MS)
    keeper = worker._keeper
    worker.work.moves.sweep(server_run_id(client), SHORT_MS)
    client.hset(KEYS.sweep, "hold", 0)
    assert keeper._sweep() is True and client.zcard(KEYS.leases) == 2 * AT_ONCE
    duty = next(duty for duty in keeper._duties if duty.action == keeper._sweep)
    keeper._do(duty)
    assert client.zcard(KEYS.leases) == 0
    duty.later(0.0, True)
    assert duty.due == MORE_S
    worker.work.close()


@pytest.mark.soak
def test_a_million_queued_tasks_and_a_hundred_thousand_lost_leases(
    own_server: StartServer, server_name: str, record_property: Any
) -> None:
    with plain_client(own_server().url) as client:
        few = crowd(client, 1, 1000)
        alone = [claimed(few, "me", 1, LONG_MS) for _ in range(CLAIMS_FEW)]
        client.flushall()
        many = crowd(client, 1000, 1000)
        assert client.llen(KEYS.rq_queue(NAME)) == 1000 * MOVE_MAX, "of each step so many jobs, the others unmade"
        crowded = [claimed(many, "me", 1, LONG_MS) for _ in range(CLAIMS)]
        many.moves.release("me", None, "job")
        sweeps = lease_and_lose(many, 100_000)
        info = client.info("server")
    name = str(info.get("server_name") or "redis")
    document = {
        "server": f"{name} {info.get(f'{name}_version') or info.get('redis_version')}",
        "queued": 1_000_000, "claim_few_p50_ms": ms(alone, 50), "claim_few_p99_ms": ms(alone, 99),
        "claim_p50_ms": ms(crowded, 50), "claim_p99_ms": ms(crowded, 99), "lost": 100_000,
        "sweeps": len(sweeps), "sweep_p50_ms": ms(sweeps, 50), "sweep_p99_ms": ms(sweeps, 99),
        "sweeps_s": round(sum(sweeps), 1),
    }  # fmt: skip
    record("load", document)
    record_property("shown", f"load: {document}")


def ms(times: list[float], of_100: float) -> float:
    found = percentile(times, of_100)
    assert found is not None
    return round(found * 1000, 2)
