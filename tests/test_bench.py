"""The benchmark's counts, asserted; its times are shown by `make bench` and asserted nowhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.append(str(Path(__file__).parent.parent))  # bench/ is a package of the checkout, and is not installed

from bench import workloads
from bench.place import Place
from bench.rows import plot, row, table

# What steps, claims, renewals, sweeps, the process's entry in RQ's registry and our own questions ask of the server.
EXPECTED = {
    *("evalsha", "eval", "time", "mget", "get", "set", "del", "unlink", "exists", "expire", "pexpire", "multi", "exec"),
    *("hget", "hgetall", "hmget", "hset", "hdel", "hincrby", "zadd", "zrem", "zscore", "zpopmin", "zrangebyscore"),
    *("hkeys", "hstrlen", "llen", "lrange", "zremrangebyscore"),
    *("lpop", "rpush", "lindex", "blpop", "sadd", "xadd", "xrange", "xrevrange", "xread", "info", "client|setinfo"),
}
BACKGROUND_S = 8
"""Scripts a second that an idle worker may send: a claim, a sweep, a renewal, and those once more."""


@pytest.fixture
def place(redis_url: str) -> Iterator[Place]:
    with Place(redis_url) as made:
        yield made


def background(trips: workloads.Trips) -> float:
    return BACKGROUND_S * (trips.seconds + 1)


def test_a_lone_chain_costs_one_script_a_step(place: Place) -> None:
    runs = 40
    trips = workloads.round_trips(place, runs, load=False)
    starts_and_claims = 2 * runs
    assert trips.steps + runs <= trips.counts.scripts <= trips.steps + starts_and_claims + background(trips)
    assert set(trips.counts) <= EXPECTED


def test_chains_under_load_cost_one_script_a_step(place: Place) -> None:
    runs = 40
    trips = workloads.round_trips(place, runs, load=True)
    assert trips.steps + runs <= trips.counts.scripts <= trips.steps + runs + background(trips)
    assert set(trips.counts) <= EXPECTED


def test_no_call_moves_more_than_250_tasks_of_a_step_of_10_000(place: Place) -> None:
    calls = workloads.moved(place, 10_000, 10)
    assert max(each.made for each in calls) == 250, "the fan-out makes the first 250 jobs"
    assert max(each.leased for each in calls) == 64, "a claim takes what it has slots for"
    assert {each.leased for each in calls if each.script == "claim"} == {64}


def test_a_step_adds_at_most_400_bytes_to_its_payload(place: Place) -> None:
    fields = workloads.step_bytes(place)
    assert sum(fields.values()) <= 400, fields


def test_a_message_in_the_inbox_begins_a_run(place: Place) -> None:
    assert len(workloads.inbox(place, 2)) == 2


def test_a_row_judges_its_median_and_marks_noise() -> None:
    assert row("a", "us", [1, 2, 9], target=2).verdict == "ok"
    assert row("a", "us", [1, 3, 9], target=2).verdict == "MISS"
    assert row("a", "x", [1, 3, 9], target=2, keep="least").verdict == "ok"
    assert row("a", "us", [1, 2, 9]).noisy
    assert not row("a", "us", [10, 11, 12]).noisy


def test_table_and_plot_show_each_judged_row() -> None:
    rows = [row("latency <p50>", "x", [2.0, 2.1], target=2.5), row("floor", "us", 100.0)]
    assert "latency <p50>" in table(rows)
    assert "ok" in table(rows)
    drawn = ElementTree.fromstring(plot(rows, "bench"))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}rect")) == 1
