"""Chaos, as its users start it: short runs with every kind of fault, on a server of its own and on the user's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

sys.path.append(str(Path(__file__).parent.parent))  # bench/ is a package of the checkout, and is not installed

from bench.reliability import PAGE, RESULTS_ENV, page, record, results

from everstep import cli
from everstep.chaos import drive, takeovers
from everstep.chaos.checking.checker import Verdict
from everstep.chaos.checking.evidence import Struck
from everstep.chaos.checking.laws import Violation
from everstep.chaos.cutter import Cutter, can_cut
from everstep.chaos.drive import Order, Outcome, run
from everstep.chaos.plan import KINDS, plan
from everstep.chaos.takeovers import Recovery
from everstep.embedded import EmbeddedServer
from servers import chosen_server, run_seed, server_binaries, soaked, wait_for

ROOT = Path(__file__).parent.parent
SEED = int("".join(filter(str.isdigit, run_seed())) or 0) % 10**9
PROMISED = {"runs", "steps", "faults", "lost", "duplicated", "recovery_p50_s", "recovery_p99_s", "recovery_long"}
# how long each chaos of a soak is, in seconds
MIXED_S, FAILOVER_S, KILL_S, POOL_S = 90.0, 45.0, 135.0, 80.0
KILLS = 250  # on each server: 500
BEGIN_S = 5.0  # until there is something to strike, also in a trial


def said(outcome: Outcome) -> str:
    """What a failing test shows: how to see it again."""
    return f"{outcome.order.name}, evidence in {outcome.kept}: {outcome.verdict.violations[:5]}"


# --- the whole of it


def test_a_short_chaos_on_a_server_of_its_own_loses_nothing_and_does_nothing_twice() -> None:
    outcome = run(Order(SEED, 9.0, binary=server_binaries()[chosen_server()]))
    assert outcome.verdict.sound, said(outcome)
    assert outcome.faults.total() and outcome.verdict.runs and outcome.verdict.steps
    assert outcome.kept is None


def test_pools_of_two_versions_finish_every_run_as_each_step_s_version_says(redis_url: str) -> None:
    order = Order(SEED, 3.5, redis_url, kinds=("deploy",), processes=1, producers=3, gap_s=(0.5, 0.8), lease_s=1.0)
    outcome = run(order)
    assert outcome.verdict.sound, said(outcome)
    assert outcome.faults["deploy"] and outcome.verdict.runs and not outcome.verdict.losses


def test_on_the_users_redis_it_keeps_to_a_namespace_and_removes_it(client: redis.Redis, redis_url: str) -> None:
    client.set("mine", "precious")
    client.rpush("rq:queue:mine", "job")
    words = ["--url", redis_url, "chaos", "--minutes", "0.06", "--seed", str(SEED), "--lease", "1", "--json"]
    done = subprocess.run([sys.executable, "-m", "everstep", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert set(document) >= PROMISED
    assert document["sound"] and document["lost"] == document["duplicated"] == 0 and document["runs"]
    assert "server" not in document["faults_by_kind"], "that is not ours to kill"
    assert sorted(client.keys()) == [b"mine", b"rq:queue:mine"]


def test_it_runs_a_graph_of_the_users(redis_url: str, client: redis.Redis) -> None:
    given = {"count": 0, "done": False}
    outcome = run(
        Order(SEED, 3.0, redis_url, "examples.counting:graph", "counting", given, ("kill", "cut"), lease_s=1.0)
    )
    assert outcome.verdict.sound, said(outcome)
    assert outcome.verdict.runs and outcome.verdict.steps
    assert client.dbsize() == 0


# --- the command


def test_a_broken_law_is_told_and_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(order: Order, told: Any = None) -> Outcome:
        verdict = Verdict((Violation("I3", "t1", "step 4: p0 is done 2 times"),))
        known = Recovery("kill", 1.0, 0.25, "k", "t1", 4, "work")
        recovered = (known, known._replace(kind="pool", took_s=52.0))
        return Outcome(order, "redis 7.0", verdict, (Struck(1.0, 1000, "kill", (7,)),), recovered, tmp_path)

    monkeypatch.setattr(drive, "run", broken)
    assert cli.main(["chaos", "--seed", "5"]) == cli.INTEGRITY
    shown = capsys.readouterr()
    assert "I3   t1: step 4: p0 is done 2 times" in shown.out
    assert "kill" in shown.out and "250 ms" in shown.out and str(tmp_path) in shown.out
    assert "52.0 s after pool: t1, step 4, work: unexplained" in shown.out
    assert "seed 5" in shown.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--faults", "kill,lunch"], "lunch"),
        (["--faults", ","], "nothing"),
        (["--input", "{}"], "MODULE:GRAPH"),
        (["examples.counting:graph", "--input", "{"], "no JSON"),
        (["nosuch.module:graph"], "nosuch"),
    ],
)
def test_wrong_words_are_refused(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chaos", *words]) != cli.OK
    assert why in capsys.readouterr().err


def test_a_namespace_that_is_taken_is_left_alone(redis_url: str, client: redis.Redis) -> None:
    client.set("chaos-5:mine", "precious")
    assert cli.main(["--url", redis_url, "chaos", "--seed", "5", "--minutes", "0.1"]) == cli.USAGE
    assert client.keys() == [b"chaos-5:mine"]


# --- the plan


def test_a_seed_repeats_its_plan() -> None:
    kinds = tuple(KINDS)
    assert plan(42, 60, kinds, 2) == plan(42, 60, kinds, 2) != plan(43, 60, kinds, 2)
    assert {fault.kind for fault in plan(1, 600, kinds, 2)} == set(KINDS)
    assert {fault.kind for fault in plan(1, 60, ("stop",), 2)} == {"stop"}
    assert all(fault.length_s > 2 for fault in plan(1, 60, ("stop",), 2)), "longer than the lease"
    assert plan(1, 60, (), 2) == []


def test_only_a_server_of_its_own_is_killed() -> None:
    assert "server" in {fault.kind for fault in Order(1, 600).faults}
    assert "server" not in {fault.kind for fault in Order(1, 600, "redis://somewhere").faults}


# --- the way that can be cut


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that says what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    line, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=repeat, args=(line,), daemon=True).start()

        def repeat(line: socket.socket) -> None:
            with line:
                while said := line.recv(1000):
                    line.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def ended(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except ConnectionError:
        return True


def test_a_cut_ends_every_connection_and_new_ones_are_welcome(echo: int) -> None:
    with Cutter(f"redis://user:pa%20ss@127.0.0.1:{echo}/3") as cutter:
        assert cutter.url.startswith("redis://user:pa%20ss@127.0.0.1:") and cutter.url.endswith("/3")
        port = int(cutter.url.rpartition(":")[2].partition("/")[0])
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(b"hello")
                assert line.recv(5) == b"hello"
                assert cutter.cut() == 1
                assert ended(line)


def test_a_unix_socket_is_reached_by_tcp(server: EmbeddedServer) -> None:
    with Cutter(server.url) as cutter, redis.Redis.from_url(cutter.url) as client:
        assert client.ping()
        wait_for(lambda: cutter.cut() >= 1)
    assert not can_cut("rediss://somewhere") and can_cut(server.url)


# --- for hours


@pytest.mark.soak
def test_chaos_of_every_kind_for_minutes(server_name: str, record_property: Any) -> None:
    outcome = run(Order(SEED, soaked(MIXED_S), binary=server_binaries()[server_name]))
    record("mixed", outcome.document)
    record_property("shown", f"mixed: {outcome.document}")
    assert outcome.verdict.sound, said(outcome)


@pytest.mark.soak
def test_replicas_take_over_from_masters_beside_two_versions_of_a_graph(server_name: str, record_property: Any) -> None:
    kinds = ("kill", "deploy", "failover", "handover")
    outcome = run(Order(SEED, soaked(FAILOVER_S), kinds=kinds, binary=server_binaries()[server_name]))
    record("failover", outcome.document)
    record_property("shown", f"failover: {outcome.document}")
    assert outcome.verdict.sound, said(outcome)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("kind", "lease_s", "gap_s", "seconds", "times"),
    [("kill", 60.0, (0.4, 0.6), KILL_S, KILLS), ("pool", 2.0, (4.5, 6.0), POOL_S, POOL_S / 6 - 1)],
    ids=["kill", "pool"],
)
def test_recoveries_are_measured_over_many_kills(
    kind: str,
    lease_s: float,
    gap_s: tuple[float, float],
    seconds: float,
    times: float,
    server_name: str,
    record_property: Any,
) -> None:
    """Nodes nap and few clients ask, so that times say something about us, and not about a busy machine. Pools keep
    as many spares as they do by default."""
    outcome = run(
        Order(
            SEED,
            soaked(seconds) + BEGIN_S,
            kinds=(kind,),
            lease_s=lease_s,
            gap_s=gap_s,
            producers=4,
            nap_ms=(100, 300),
            binary=server_binaries()[server_name],
        )
    )
    record(kind, outcome.document)
    record_property("shown", f"{kind}: {outcome.document}")
    assert outcome.verdict.sound, said(outcome)
    assert takeovers.times(outcome.recovered).get(kind), "something was recovered"
    assert outcome.faults[kind] >= soaked(times), "as often as was promised"


def test_results_are_only_kept_where_somebody_asked_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RESULTS_ENV, raising=False)
    assert record("kill", {"server": "redis 7.0"}) is None
    monkeypatch.setenv(RESULTS_ENV, str(tmp_path))
    kept = record("kill", {"server": "redis 7.0"})
    assert kept == tmp_path / "redis-kill.json"
    found = json.loads(kept.read_text())
    assert found["server"] == "redis 7.0" and found["cpus"] == os.cpu_count() and found["load"] >= 0


def test_the_page_on_reliability_says_what_the_last_soak_measured() -> None:
    found = results()
    assert PAGE.read_text() == page(found), "run `python -m bench.reliability`"
    assert {each["server"].partition(" ")[0] for _, each in found} == {"redis", "valkey"}
    assert {what for what, _ in found} >= {"mixed", "kill", "pool", "load"}


def test_the_page_on_reliability_tells_each_long_recovery_and_which_are_unexplained() -> None:
    said = {
        "fault": "pool", "took_s": 52.216, "tasks": 3, "why": "", "thread": "c1-2", "step": 9, "node": "work",
        "key": "0123456789", "log": ["task_lost +52.0 s"], "struck": ["cut +1.0 s"], "passed": 0,
    }  # fmt: skip
    what, known = next(each for each in results() if each[0] == "mixed")
    shown = page([(what, {**known, "recovery_long": [said, {**said, "why": "held up by server +3.0 s"}]})])
    assert "| 52.22 s | pool | `c1-2`, step 9, work, key `01234567`, and 2 more | **unexplained**" in shown
    assert "**unexplained**; it saw cut +1.0 s | task_lost +52.0 s |" in shown and "| server +3.0 s |" in shown


def test_the_page_on_reliability_is_made_of_what_there_is() -> None:
    for some in ([], results()[:1], [each for each in results() if each[0] == "load"]):
        assert sum(line.startswith(("| redis ", "| valkey ")) for line in page(some).splitlines()) == len(some)
