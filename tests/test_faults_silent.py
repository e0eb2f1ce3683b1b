"""Half-open connections: the other end is gone and nobody says so. Whoever waits for it notices by itself, in time.

What is silent is each connection that there is at that moment; new ones are served at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everstep import RedisSaver, connect
from everstep.embedded import EmbeddedServer
from everstep_checkpoint.errors import ServerUnavailable
from everstep_scheduler.client.client import publish
from everstep_scheduler.moves import connection
from everstep_workers import front
from faults import KEYS, Fleet
from graphs_for_faults import chain
from proxy import FaultProxy
from servers import wait_for

GRAPHS = pytest.mark.parametrize("graph", ["chain", "achain"])
LEASE_MS = 4500


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and clients of this process take silence for an end after a second, so that a test needn't wait ten."""
    monkeypatch.setattr(connection, "ANSWER_S", 1.0)
    monkeypatch.setattr(front, "ANSWER_S", 0.5)


@pytest.mark.usefixtures("soon")
def test_a_worker_whose_bell_is_silent_takes_what_comes_all_the_same(fleet: Fleet, proxy: FaultProxy) -> None:
    with fleet.heir("chain", via=proxy.url) as worker:
        wait_for(lambda: fleet.redis.zscore(KEYS.waiting("chain"), worker.name), 10, "the worker to wait for its bell")
        assert proxy.abandon() >= 2
        thread = fleet.submit("chain")
        fleet.settled(thread, timeout_s=10)
    assert set(fleet.executions(thread).values()) == {1}


@GRAPHS
@pytest.mark.usefixtures("soon")
def test_a_commit_into_silence_is_sent_again_and_written_once(fleet: Fleet, proxy: FaultProxy, graph: str) -> None:
    thread = fleet.submit(graph, gated="b")
    with fleet.heir(graph, via=proxy.url):
        fleet.began(thread, "b")
        proxy.abandon()
        fleet.open_gate()
        fleet.settled(thread, timeout_s=10)
    assert fleet.executions(thread) == {"a": 1, "b": 1, "c": 1}
    assert fleet.kinds(thread) == {"run_started": 1, "checkpoint": 5}


def test_a_lease_is_renewed_in_time_although_its_connection_fell_silent(fleet: Fleet, proxy: FaultProxy) -> None:
    """Answers are waited for no longer than a third of the lease: what is lost leaves time for the next."""
    thread = fleet.submit("chain", gated="b")
    with fleet.heir("chain", via=proxy.url, lease_ms=LEASE_MS), fleet.sweeping(LEASE_MS):
        fleet.began(thread, "b")
        (token,) = fleet.redis.hkeys(KEYS.lease)
        proxy.abandon()
        first = fleet.redis.zscore(KEYS.leases, token)
        wait_for(
            lambda: (fleet.redis.zscore(KEYS.leases, token) or 0) > first + LEASE_MS / 4, LEASE_MS / 1000, "a renewal"
        )
        proxy.cut()  # the rest needn't wait for ten seconds
        fleet.open_gate()
        fleet.settled(thread)
    assert fleet.executions(thread)["b"] == 1 and not fleet.kinds(thread)["task_lost"]


def test_an_inline_caller_renews_in_time_although_its_connection_fell_silent(fleet: Fleet, proxy: FaultProxy) -> None:
    saver = RedisSaver(proxy.url, lease_ms=LEASE_MS)
    graph = type(chain)(chain.spec, saver)
    given = {"journal": str(fleet.journal), "gate": str(fleet.folder / "gate"), "gated": "b"}
    caller = threading.Thread(target=graph.invoke, args=(given, {"configurable": {"thread_id": "t"}}), daemon=True)
    with fleet.sweeping(LEASE_MS):
        caller.start()
        fleet.began("t", "b")
        (token,) = fleet.redis.hkeys(KEYS.lease)
        proxy.abandon()
        first = fleet.redis.zscore(KEYS.leases, token)
        wait_for(
            lambda: (fleet.redis.zscore(KEYS.leases, token) or 0) > first + LEASE_MS / 4, LEASE_MS / 1000, "a renewal"
        )
        proxy.cut()
        fleet.open_gate()
        fleet.settled("t")
        caller.join(10)
    assert fleet.executions("t")["b"] == 1 and not fleet.kinds("t")["task_lost"]


@pytest.mark.usefixtures("soon")
def test_a_submit_into_silence_is_an_error_and_sent_again_it_is_the_same_run(fleet: Fleet, proxy: FaultProxy) -> None:
    with connect(proxy.url) as client:
        publish(client.redis, client.keys, [chain.spec])
        given = {"journal": str(fleet.journal), "gate": ""}
        assert proxy.abandon() == 1
        began = time.monotonic()
        with pytest.raises(ServerUnavailable, match="does not answer"):
            client.submit("chain", given, thread_id="t", run_id="r")
        assert time.monotonic() - began < 5
        for _ in range(2):
            assert client.submit("chain", given, thread_id="t", run_id="r").run_id == "r"
        waited: list[object] = []
        waiting = threading.Thread(target=lambda: waited.append(client.run("t").result(timeout=20)))
        waiting.start()
        with fleet.heir("chain"):
            fleet.settled("t")
        waiting.join(20)
    assert fleet.kinds("t")["run_started"] == 1 and len(waited) == 1
