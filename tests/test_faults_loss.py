"""Redis loses what is not the truth, mid-run, under live workers: every key of RQ's, every index of ours, or both.

The logs bring it all back: who works goes on working, what waited still waits, and nothing is run a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everstep.embedded import EmbeddedServer
from faults import KEYS, LONG_MS, Fleet, our_indexes
from servers import wait_for

SECOND = {"b": 1.0}
CHAINS = 14
SLOTS = 6
WIDTH = 300


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


def lose(fleet: Fleet, what: str) -> None:
    """In one transaction, as one accident."""
    gone = list(fleet.redis.scan_iter(match=f"{KEYS.rq}:*", count=1000)) if what != "ours" else []
    gone += our_indexes(fleet.redis) if what != "rq" else []
    assert gone
    fleet.redis.delete(*gone)


@pytest.mark.parametrize("what", ["rq", "ours", "both"])
def test_keys_lost_mid_run_come_back_and_no_live_node_is_run_again(fleet: Fleet, what: str) -> None:
    threads = [fleet.submit(graph, naps=SECOND) for _ in range(CHAINS // 2) for graph in ("chain", "achain")]
    for _ in range(2):
        fleet.worker("chain", "achain", "wide", concurrency=SLOTS, lease_ms=LONG_MS)
    wait_for(lambda: sum(x.node == "b" for x in fleet.lines()) >= SLOTS, 20, "nodes in flight")
    wide = fleet.submit("wide", width=WIDTH)
    lose(fleet, what)
    fleet.settled(*threads, wide)
    assert set(fleet.executions().values()) == {1}
    assert fleet.executions().total() == 3 * len(threads) + WIDTH + 1
    assert not any(fleet.kinds(thread)["task_lost"] for thread in (*threads, wide))
    assert fleet.redis.hget(KEYS.stats, "fenced") is None


def test_keys_lost_again_while_they_are_rebuilt(fleet: Fleet) -> None:
    threads = [fleet.submit("chain", naps=SECOND) for _ in range(SLOTS)]
    fleet.worker("chain", concurrency=SLOTS, lease_ms=LONG_MS)
    wait_for(lambda: sum(x.node == "b" for x in fleet.lines()) == SLOTS, 20, "nodes in flight")
    for what in ("rq", "ours", "both"):
        lose(fleet, what)
        wait_for(lambda: begun(fleet), 10, "a rebuild to begin")
    fleet.settled(*threads)
    assert set(fleet.executions().values()) == {1}


def begun(fleet: Fleet) -> bool:
    """A rebuild is under way, or was over before anybody looked."""
    return bool(fleet.redis.exists(KEYS.recovery)) or fleet.redis.exists(KEYS.alive, KEYS.rq_alive) == 2


def test_keys_lost_with_nobody_alive_come_back_with_the_next_worker(fleet: Fleet) -> None:
    threads = [fleet.submit("chain", gated="b") for _ in range(3)]
    dead = fleet.worker("chain", concurrency=3)
    for thread in threads:
        fleet.began(thread, "b")
    dead.kill()
    lose(fleet, "both")
    fleet.open_gate()
    with fleet.heir("chain", lease_ms=600, concurrency=3):
        fleet.settled(*threads)
    assert all(fleet.executions(thread) == {"a": 1, "b": 2, "c": 1} for thread in threads)
