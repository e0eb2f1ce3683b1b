"""The benchmark: its counts are asserted; of its times only that none has doubled beside the floor; and what it does to
a server that is somebody else's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from everstep import COMPILED
from everstep.bench import chains, counting, graphs, quiet, wide
from everstep.bench.drive import PARTS, Order, Outcome, run
from everstep.bench.peers import PEERS, Company
from everstep.bench.place import Place
from everstep.bench.plot import plot
from everstep.bench.rows import row, skipped, table
from everstep.bench.sizes import QUICK
from everstep.cli import USAGE, main
from everstep_workers.work import TOGETHER_MAX
from servers import plain_client

# What steps, claims, renewals, sweeps, the process's entry in RQ's registry and our own questions ask of the server.
EXPECTED = {
    *("evalsha", "eval", "time", "mget", "get", "set", "del", "unlink", "exists", "expire", "pexpire", "multi", "exec"),
    *("hget", "hgetall", "hmget", "hset", "hdel", "hincrby", "zadd", "zrem", "zscore", "zpopmin", "zrangebyscore"),
    *("hkeys", "hstrlen", "llen", "lrange", "zremrangebyscore"),
    *(
        "lpop",
        "rpush",
        "lindex",
        "blpop",
        "sadd",
        "srandmember",
        "xadd",
        "xrange",
        "xrevrange",
        "xread",
        "info",
        "client|setinfo",
    ),
}
RESULTS = Path(__file__).parent.parent / "bench" / "results"
REGRESSED, REGRESSED_LONE = 2.0, 3.0  # on a busy machine a lone chain wakes three processes into cold caches
FIRST = {f"{chains.LONE_COST} / floor's": 2.7, f"{chains.MANY_COST} / floor's": 2.2}
TINY = replace(
    QUICK, rounds=1, floor_steps=200, runs=10, chains=10, peer_runs=1, peer_chains=2, widths=(20, 300), moved=300,
    turns=30, waiting=20, sleeping=30, cpu_chains=2, flooded=12, paused=50, expired=300, partition_chains=4,
    tenant_runs=6, starts=1,
)  # fmt: skip
BACKGROUND_S = 8
"""Scripts a second that an idle worker may send: a claim, a sweep, a renewal, and those once more."""


@pytest.fixture
def place(redis_url: str) -> Iterator[Place]:
    with Place(redis_url) as made:
        yield made


def background(trips: counting.Trips) -> float:
    return BACKGROUND_S * (trips.seconds + 1)


def test_a_lone_chain_costs_one_script_a_step(place: Place) -> None:
    runs = 40
    trips = counting.round_trips(place, runs, load=False)
    starts_and_claims = 2 * runs
    assert trips.steps + runs <= trips.counts.scripts <= trips.steps + starts_and_claims + background(trips)
    assert set(trips.counts) <= EXPECTED


def test_under_load_several_steps_cost_one_script(place: Place) -> None:
    runs = 100
    trips = counting.round_trips(place, runs, load=True)
    commits = trips.steps + runs
    assert commits / TOGETHER_MAX <= trips.counts.scripts <= commits / 2 + background(trips)
    assert set(trips.counts) <= EXPECTED


def test_no_call_moves_more_than_250_tasks_of_a_step_of_10_000(place: Place) -> None:
    calls = wide.moved(place, 10_000, 10)
    assert max(each.made for each in calls) == 250, "the fan-out makes the first 250 jobs"
    assert max(each.leased for each in calls) == 64, "a claim takes what it has slots for"
    assert {each.leased for each in calls if each.script == "claim"} == {64}


def test_a_step_adds_at_most_400_bytes_to_its_payload(place: Place) -> None:
    fields = counting.step_bytes(place)
    assert sum(fields.values()) <= 400, fields


def test_a_message_in_the_inbox_begins_a_run(place: Place) -> None:
    assert len(quiet.inbox(place, 2)) == 2


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


def test_what_was_not_measured_is_a_row_that_says_why() -> None:
    rows = [skipped("W2 pydocket", "not installed: pip install pydocket")]
    assert "pip install pydocket" in table(rows)
    assert (rows[0].median, rows[0].verdict, rows[0].document()["note"]) == (None, "", rows[0].note)
    assert ElementTree.fromstring(plot(rows, "bench")) is not None


# --- the guard


def recorded() -> dict[str, float]:
    """The medians of the last release's result, made as this package is, and those from before it had these rows."""
    made = "-compiled" if COMPILED else ""
    whole = [path for path in RESULTS.glob("*.json") if re.fullmatch(rf"[\d.]+{made}", path.stem)]
    newest = max(whole, key=lambda path: [int(part) for part in path.stem.removesuffix(made).split(".")])
    return FIRST | {each["name"]: each["median"] for each in json.loads(newest.read_text())["rows"]}


def test_a_step_takes_less_than_twice_the_cpu_beside_the_floor_that_it_took_at_the_last_release(place: Place) -> None:
    """The small W1 and W2, judged by CPU: on a busy machine time says how busy it is. One good try is enough."""
    known, tries = recorded(), list[tuple[float, float]]()
    lone, many = (known[f"{name} / floor's"] for name in (chains.LONE_COST, chains.MANY_COST))
    while len(tries) < 3:
        found = chains.costs(place, 10, 20, 300)
        tries.append((found.lone / found.floor_lone / lone, found.many / found.floor_many / many))
        if tries[-1][0] < REGRESSED_LONE and tries[-1][1] < REGRESSED:
            return
    pytest.fail(f"multiples of what was recorded, {lone:.3g} and {many:.3g} times the floor: {tries}")


# --- whose server


def test_on_a_users_redis_it_keeps_to_a_namespace_of_its_own_and_removes_it(redis_url: str) -> None:
    with plain_client(redis_url) as client:
        client.set("mine", "1")
        settings = {name: client.config_get(name) for name in ("slowlog-*", "append*")}
        heard: list[str] = []
        outcome = run(Order(redis_url, ("W1",), TINY), heard.append)
        assert [each.note for each in outcome.rows if each.median is None] == []
        assert client.keys("*") == [b"mine"]
        assert {name: client.config_get(name) for name in settings} == settings
        with Place(redis_url) as place, place.scripts() as found:
            place.submit(graphs.chain(), count=0)
        assert (found, client.config_get("slowlog-*")) == ([], settings["slowlog-*"]), "the slow log is its owner's"
    assert any("namespace 'bench-" in each and "removed" in each for each in heard)


def test_what_needs_a_server_of_ones_own_or_a_gigabyte_is_left_out_on_a_users_redis() -> None:
    assert set(PARTS) - set(Order("redis://somewhere").parts) == {"W2a", "W7", "many"}
    assert Order("redis://somewhere", ("W7", "W1")).parts == ["W1", "W7"]
    assert Order().parts == list(PARTS)


def test_only_a_whole_run_at_full_size_takes_a_releases_name(tmp_path: Path) -> None:
    document = {"versions": {"everstep": "7.1.0"}, "compiled": False, "rows": []}
    for order, name in ((Order(), "7.1.0"), (Order(sizes=QUICK), "7.1.0-part"), (Order(only=("W1",)), "7.1.0-part")):
        assert Outcome(order, (), document).write(tmp_path).stem == name
    assert Outcome(Order(), (), document, failed=("W1",)).write(tmp_path).stem == "7.1.0-part"
    assert Outcome(Order(), (), {**document, "compiled": True}).write(tmp_path).stem == "7.1.0-compiled"
    assert (tmp_path / "7.1.0.svg").exists()


def test_an_unknown_workload_is_told_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "W1,W99"]) == USAGE
    assert "W99: there are W1, W2" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_told_with_the_line_that_installs_it(place: Place) -> None:
    docket = next(each for each in PEERS if each.name == "pydocket")
    assert (
        Company(place, sys.executable, "").why_not(docket) == f"not installed: {sys.executable} -m pip install pydocket"
    )


@pytest.mark.soak
def test_every_workload_runs_at_its_smallest_size() -> None:
    outcome = run(Order(sizes=TINY))
    assert outcome.failed == ()
    assert {name for name in PARTS if name.startswith("W")} <= {each.name.split()[0] for each in outcome.rows}
