"""SIGTERM under load: workers end in order, and what they leave is done by others as if nothing had been."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from everstep.embedded import EmbeddedServer
from faults import KEYS, Fleet
from servers import wait_for

CHAINS = 200
GRAPHS = ("chain", "achain")


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


def terminated(fleet: Fleet, threads: list[str], processes: int = 0) -> None:
    """Start a worker or pool, let it work a while, end it by SIGTERM: exit code 0, nothing held."""
    done = len(fleet.lines())
    made = fleet.worker(*GRAPHS, concurrency=10, processes=processes)
    wait_for(lambda: len(fleet.lines()) > done + CHAINS // 2, 20, "work under way")
    made.signal(signal.SIGTERM)
    assert made.popen.wait(30) == 0, made.said
    assert fleet.redis.zcard(KEYS.leases) == 0
    assert any(fleet.status(thread) == "running" for thread in threads), "there was more to do"


def test_workers_that_are_told_to_end_under_load_lose_and_repeat_nothing(fleet: Fleet) -> None:
    threads = [fleet.submit(graph, naps={"b": 0.005}) for graph in GRAPHS for _ in range(CHAINS // 2)]
    terminated(fleet, threads)
    terminated(fleet, threads, processes=2)
    with fleet.heir(*GRAPHS, concurrency=10):
        fleet.settled(*threads)
    assert fleet.executions().total() == 3 * CHAINS
    assert set(fleet.executions().values()) == {1}
    assert all(fleet.kinds(thread) == {"run_started": 1, "checkpoint": 5} for thread in threads), (
        "nothing lost, nothing failed"
    )


def test_a_second_sigterm_gives_back_at_once_what_runs_uncounted(fleet: Fleet) -> None:
    threads = [fleet.submit(graph, gated="b") for graph in GRAPHS]
    worker = fleet.worker(*GRAPHS, concurrency=2)
    for thread in threads:
        fleet.began(thread, "b")
    worker.signal(signal.SIGTERM)
    wait_for(lambda: "draining" in worker.said, 10, "the first signal to be taken: two at once are one")
    worker.signal(signal.SIGTERM)
    assert worker.popen.wait(10) == 0, worker.said
    fleet.open_gate()
    with fleet.heir(*GRAPHS):
        fleet.settled(*threads)
    assert all(fleet.executions(thread) == {"a": 1, "b": 2, "c": 1} for thread in threads)
    assert {x.attempt for x in fleet.lines()} == {1}
    assert all(fleet.kinds(thread) == {"run_started": 1, "checkpoint": 5} for thread in threads)


def test_a_pool_whose_parent_is_killed_ends_in_order_and_leaves_its_work_to_others(fleet: Fleet) -> None:
    threads = [fleet.submit(graph, naps={"b": 0.005}) for graph in GRAPHS for _ in range(CHAINS // 2)]
    orphaned = fleet.pool(*GRAPHS, processes=2, concurrency=10)
    wait_for(lambda: len(fleet.lines()) > CHAINS // 2, 20, "work under way")
    wait_for(lambda: orphaned.said.count(", queues ") == 2, 20, "both children to have begun")
    orphaned.kill()
    wait_for(lambda: orphaned.said.count(": ended") == 2, 10, "both children to end")
    assert fleet.redis.zcard(KEYS.leases) == 0
    with fleet.heir(*GRAPHS, concurrency=10):
        fleet.settled(*threads)
    assert set(fleet.executions().values()) == {1}
    assert not any(fleet.kinds(thread)["task_lost"] for thread in threads)
