"""The same thing twice: lost replies and resends, a job delivered or pushed again, one run from two producers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from everstep.embedded import EmbeddedServer
from everstep_checkpoint.errors import ServerUnavailable
from everstep_scheduler.moves.redismoves import sha
from everstep_scheduler.recovery.recovery import Recovery
from faults import HERE, KEYS, LONG_MS, Fleet, assert_at_rest
from proxy import FaultProxy
from servers import wait_for

ONCE = {"a": 1, "b": 1, "c": 1}
HOUR_MS = 3_600_000  # nothing is found again by a renewal or a sweep
GRAPHS = pytest.mark.parametrize("graph", ["chain", "achain"])


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


def once(fleet: Fleet, graph: str, thread: str) -> None:
    """The run is done, nothing ran twice, nothing was refused or lost."""
    fleet.settled(thread)
    assert fleet.executions(thread) == ONCE
    assert fleet.state(graph, thread)["seen"] == ["a", "b", "c"]
    assert fleet.kinds(thread) == {"run_started": 1, "checkpoint": 5}
    assert fleet.redis.hget(KEYS.stats, "lost") is None


def job_of(fleet: Fleet, thread: str, task: str) -> str:
    """The RQ job of an open task."""
    record = json.loads(fleet.redis.hget(KEYS.open(thread), task))
    return str(record["j"])


def push_again(fleet: Fleet, graph: str, job: str, times: int = 1) -> None:
    for _ in range(times):
        fleet.redis.rpush(KEYS.rq_queue(graph), job)


def queue_is_empty(fleet: Fleet, graph: str) -> None:
    wait_for(lambda: fleet.redis.llen(KEYS.rq_queue(graph)) == 0, 10, "the queue to be empty")


# --- a reply is lost


@GRAPHS
def test_a_claim_whose_reply_is_lost_gets_the_same_leases_again(fleet: Fleet, proxy: FaultProxy, graph: str) -> None:
    threads = [fleet.submit(graph) for _ in range(8)]
    lost = proxy.drop_next_reply(sha("claim").encode())
    with fleet.heir(graph, via=proxy.url, concurrency=4, lease_ms=HOUR_MS):
        assert lost.wait(10)
        for thread in threads:
            once(fleet, graph, thread)


@GRAPHS
@pytest.mark.parametrize("node", ["a", "c"])
def test_a_commit_whose_reply_is_lost_is_told_already_and_goes_on(
    fleet: Fleet, proxy: FaultProxy, graph: str, node: str
) -> None:
    thread = fleet.submit(graph, gated=node)
    with fleet.heir(graph, via=proxy.url, lease_ms=HOUR_MS):
        fleet.began(thread, node)
        lost = proxy.drop_next_reply(sha("commit").encode())
        fleet.open_gate()
        assert lost.wait(10)
        once(fleet, graph, thread)


@GRAPHS
def test_a_commit_that_never_arrives_is_sent_again(fleet: Fleet, proxy: FaultProxy, graph: str) -> None:
    thread = fleet.submit(graph, gated="b")
    with fleet.heir(graph, via=proxy.url, lease_ms=HOUR_MS):
        fleet.began(thread, "b")
        lost = proxy.drop_next_request(sha("commit").encode())
        fleet.open_gate()
        assert lost.wait(10)
        once(fleet, graph, thread)


@GRAPHS
def test_a_renewal_whose_reply_is_lost_costs_nothing(fleet: Fleet, proxy: FaultProxy, graph: str) -> None:
    thread = fleet.submit(graph, gated="b")
    with fleet.sweeping(), fleet.heir(graph, via=proxy.url, lease_ms=LONG_MS):
        fleet.began(thread, "b")
        for _ in range(2):
            assert proxy.drop_next_reply(sha("renew").encode()).wait(10)
        fleet.open_gate()
        once(fleet, graph, thread)


def test_a_wide_step_survives_a_lost_reply_of_each_kind(fleet: Fleet, proxy: FaultProxy) -> None:
    thread = fleet.submit("wide", width=40, gated="work/7")
    lost = [proxy.drop_next_reply(sha(name).encode()) for name in ("claim", "part", "commit", "commit", "renew")]
    with fleet.heir("wide", via=proxy.url, concurrency=8):
        fleet.began(thread, "work/7")
        assert all(each.wait(10) for each in lost)
        fleet.open_gate()
        fleet.settled(thread)
    assert set(fleet.executions(thread).values()) == {1}
    assert fleet.state("wide", thread)["sum"] == sum(range(40))


def test_a_submit_whose_reply_is_lost_can_be_sent_again(fleet: Fleet, proxy: FaultProxy, tmp_path: Path) -> None:
    far = Fleet(proxy.url, tmp_path)
    Recovery(fleet.redis, KEYS)()  # both sentinels stand
    lost = proxy.drop_next_reply(sha("start").encode())
    with pytest.raises(ServerUnavailable, match="does not answer"):
        far.start("chain", "order-7", "order-7")
    assert lost.wait(10)
    assert far.start("chain", "order-7", "order-7") == "attached"
    with fleet.heir("chain"):
        once(fleet, "chain", "order-7")


# --- a job comes twice


@GRAPHS
def test_a_job_delivered_to_two_workers_at_once_runs_once(fleet: Fleet, graph: str) -> None:
    threads = [fleet.submit(graph) for _ in range(10)]
    for thread in threads:
        push_again(fleet, graph, job_of(fleet, thread, "start"), times=2)
    fleet.worker(graph, concurrency=2)
    with fleet.heir(graph, concurrency=2):
        for thread in threads:
            once(fleet, graph, thread)


@GRAPHS
def test_a_job_pushed_again_by_hand_is_dropped_while_leased_when_done_and_after_the_rest(
    fleet: Fleet, graph: str
) -> None:
    thread = fleet.submit(graph, gated="b")
    start = job_of(fleet, thread, "start")
    with fleet.heir(graph, concurrency=2):
        fleet.began(thread, "b")
        leased = job_of(fleet, thread, "p0")
        push_again(fleet, graph, leased)
        push_again(fleet, graph, start)
        queue_is_empty(fleet, graph)
        fleet.open_gate()
        fleet.rests(thread)
        push_again(fleet, graph, leased)
        push_again(fleet, graph, start)
        queue_is_empty(fleet, graph)
        once(fleet, graph, thread)


def test_rq_requeue_of_a_failed_job_begins_a_run_that_continues(fleet: Fleet, tmp_path: Path) -> None:
    thread = fleet.submit("frail", mended=str(tmp_path / "mended"))
    with fleet.heir("frail"):
        fleet.rests(thread, status="failed")
        job = job_of(fleet, thread, "p0")
        (tmp_path / "mended").touch()
        rq = [sys.executable, "-m", "rq.cli", "requeue", "--queue", "frail", "-S", "json", "-u", fleet.url, job]
        said = subprocess.run(rq, capture_output=True, text=True, timeout=60, check=False)
        assert said.returncode == 0, said.stderr
        fleet.settled(thread)
    assert fleet.executions(thread) == {"frail": 2}
    assert fleet.kinds(thread)["run_started"] == 2
    assert fleet.redis.zcard(KEYS.rq_failed("frail")) == 0


# --- a run is started twice


def test_two_producers_with_one_run_id_make_one_run(fleet: Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "go"
    runs = [f"order-{i}" for i in range(20)]
    told = {"url": fleet.url, "graph": "chain", "gate": str(gate), "journal": str(fleet.journal), "runs": runs}
    command = [sys.executable, "faults_worker.py", "produce", json.dumps(told)]
    producers = [subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for producer in producers:
        assert producer.stdout is not None
        assert producer.stdout.readline() == "ready\n"
    gate.touch()
    answers = [producer.communicate(timeout=30)[0].split() for producer in producers]
    assert [sorted(pair) for pair in zip(*answers, strict=True)] == [["attached", "started"]] * len(runs)
    with fleet.heir("chain"):
        for run in runs:
            once(fleet, "chain", run)
    assert_at_rest(fleet.redis)
