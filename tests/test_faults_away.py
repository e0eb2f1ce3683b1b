"""Redis is there, but not for us: out of reach, refusing the login, or full. Workers wait and say so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest

import graphs_for_faults
from everstep.embedded import EmbeddedServer
from everstep_checkpoint.errors import ServerUnavailable
from everstep_checkpoint.ids import new_id
from everstep_scheduler.moves.connection import server_run_id
from everstep_scheduler.moves.contract import Moves, Offer, Renewed
from everstep_scheduler.moves.keeper import LeaseKeeper
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_workers.worker import Worker
from faults import KEYS, LONG_MS, Fleet, assert_at_rest
from proxy import FaultProxy
from servers import StartServer, plain_client, wait_for

FLOCK = 100


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


# --- out of reach


def outage(fleet: Fleet, proxy: FaultProxy, away_s: float, nap_s: float) -> None:
    """A hundred async nodes in one worker; Redis goes away under them and is back before they end."""
    threads = [fleet.submit("flock", naps={"nap": nap_s}) for _ in range(FLOCK)]
    fleet.worker("flock", via=proxy.url, concurrency=FLOCK, lease_ms=LONG_MS)
    wait_for(lambda: len(fleet.lines()) == FLOCK, 20, "all nodes to run")
    proxy.refuse()
    time.sleep(away_s)
    first = fleet.moves.sweep(server_run_id(fleet.redis), LONG_MS)  # whoever is back first sweeps at once
    assert (first["lost"], first["held"] > LONG_MS) == (0, True), "after a gap nothing expires for a while"
    proxy.accept()
    fleet.settled(*threads, timeout_s=nap_s + 10)
    assert fleet.executions().total() == FLOCK, "none was run a second time"
    assert not any(fleet.kinds(thread)["task_lost"] for thread in threads)


def test_redis_away_for_five_seconds_runs_none_of_a_hundred_live_nodes_again(fleet: Fleet, proxy: FaultProxy) -> None:
    outage(fleet, proxy, away_s=5, nap_s=7)


@pytest.mark.soak
def test_redis_away_for_a_minute_runs_none_of_a_hundred_live_nodes_again(fleet: Fleet, proxy: FaultProxy) -> None:
    outage(fleet, proxy, away_s=60, nap_s=63)


def test_results_that_came_while_redis_was_away_are_committed_when_it_is_back(fleet: Fleet, proxy: FaultProxy) -> None:
    threads = [fleet.submit(graph, gated="b") for graph in ("chain", "achain") for _ in range(3)]
    fleet.worker("chain", "achain", via=proxy.url, concurrency=6, lease_ms=LONG_MS)
    for thread in threads:
        fleet.began(thread, "b")
    proxy.refuse()
    fleet.open_gate()
    wait_for(lambda: sum((x.node, x.phase) == ("b", "out") for x in fleet.lines()) == len(threads), 10, "nodes to end")
    proxy.accept()
    fleet.settled(*threads)
    assert set(fleet.executions().values()) == {1}


def test_a_network_that_swallows_everything_is_waited_out(fleet: Fleet, proxy: FaultProxy) -> None:
    threads = [fleet.submit("achain", gated="b") for _ in range(3)]
    fleet.worker("achain", via=proxy.url, concurrency=3, lease_ms=LONG_MS)
    for thread in threads:
        fleet.began(thread, "b")
    proxy.black_hole()
    fleet.open_gate()
    wait_for(lambda: sum((x.node, x.phase) == ("b", "out") for x in fleet.lines()) == len(threads), 10, "nodes to end")
    proxy.cut()
    proxy.heal()
    fleet.settled(*threads)
    assert set(fleet.executions().values()) == {1}


# --- refused


def guarded(server: EmbeddedServer, password: str) -> str:
    return f"unix://:{password}@{quote(str(server.socket))}"


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_refused_login_is_told_without_a_traceback_and_mended_without_a_restart(
    own_server: StartServer, tmp_path: Path, password: str
) -> None:
    server = own_server(extra=("--requirepass", "right"))
    with Fleet(guarded(server, "right"), tmp_path) as fleet:
        thread = fleet.submit("chain")
        via = guarded(server, password) if password else server.url
        worker = fleet.worker("chain", via=via)
        wait_for(lambda: "refuses the login" in worker.said, 10, "the worker to say so")
        assert "check user and password" in worker.said or "trying again" in worker.said
        assert "Traceback" not in worker.said
        assert password == "" or password not in worker.said
        assert worker.popen.poll() is None, "it keeps trying"
        fleet.redis.config_set("requirepass", password)
        with plain_client(via) as plain:
            client: Any = plain
            client.config_set("requirepass", password)
        fleet.url = via
        wait_for(lambda: fleet.status(thread) == "done", 10, "the run to be done")


@pytest.mark.parametrize("away", [True, False], ids=["renewals never arrived", "a full server let renewals pass"])
def test_a_lease_that_comes_with_a_commit_held_up_for_long_is_no_orphan(
    fleet: Fleet, proxy: FaultProxy, away: bool
) -> None:
    """Else the next renewal takes it away from who is about to learn of it, and its node runs twice."""
    thread = fleet.submit("chain")
    worker = Worker(proxy.url, [graphs_for_faults.chain], lease_ms=LONG_MS)
    work, keeper = worker.work, worker._keeper
    for _ in range(2):
        keeper._renew()
    offer = work.offer((new_id(),))  # what is to be refilled, as it was first sent
    if away:
        proxy.refuse()
    for _ in range(5):
        with pytest.raises(ServerUnavailable) if away else nullcontext():
            keeper._renew()
    proxy.accept()
    (lease,) = work.moves.claim(offer).leases
    for _ in range(2):
        keeper._renew()  # it does not know yet of what the late answer brings
        assert fleet.redis.zscore(KEYS.leases, lease.token) is not None
    assert lease.thread == thread and not fleet.lines()

    def taken_back() -> bool:
        keeper._renew()  # now it should: what it holds without knowing is an orphan, once it is a millisecond old
        return fleet.redis.zscore(KEYS.leases, lease.token) is None

    wait_for(taken_back, 10, "the orphan to be taken back")
    work.moves.release(offer.owner, None, "job")
    work.close()


def test_a_renewal_that_comes_late_or_twice_makes_no_orphan_of_what_came_after_it(fleet: Fleet) -> None:
    """It judges by what its owner knew when it sent it."""
    fleet.submit("chain")
    moves, offer = RedisMoves(Scripts(fleet.redis, KEYS)), Offer("me", (new_id(),), ("chain",), lease_ms=LONG_MS)
    before = [moves.renew(Offer("me"), 0).at_ms for _ in range(3)]
    (lease,) = moves.claim(offer).leases
    for at_ms in (*before, *before):
        moves.renew(Offer("me"), at_ms)
    assert fleet.redis.zscore(KEYS.leases, lease.token) is not None
    moves.release("me", None, "job")


def test_an_inline_caller_counts_only_renewals_that_arrived() -> None:
    told: list[int] = []

    class SometimesAway:
        def renew(self, _: object, before: int, **__: object) -> Renewed:
            told.append(before)
            if len(told) % 2:
                raise ServerUnavailable("Redis is away")
            return Renewed([], len(told))

    keeper = LeaseKeeper(cast("Moves", SometimesAway()), "me", LONG_MS)
    for i in range(8):
        with pytest.raises(ServerUnavailable) if i % 2 == 0 else nullcontext():
            keeper.renew()
    assert told == [0, 0, 0, 0, 2, 2, 4, 4]


# --- full


def fill(fleet: Fleet) -> None:
    """Redis is at its limit: whatever may grow it is refused."""
    fleet.redis.config_set("maxmemory", 1)


def test_a_full_server_renews_leases_and_cancels_and_lets_commits_wait(own_server: StartServer, tmp_path: Path) -> None:
    with Fleet(own_server().url, tmp_path) as fleet:
        threads = [fleet.submit(graph, gated="b") for graph in ("chain", "achain") for _ in range(2)]
        doomed = fleet.submit("achain", naps={"b": 60})
        worker = fleet.worker("chain", "achain", concurrency=6, lease_ms=1000)
        for thread in (*threads, doomed):
            fleet.began(thread, "b")
        fill(fleet)
        assert fleet.moves.cancel(doomed) == "cancelled"
        wait_for(lambda: "its lease is gone" in worker.said, 10, "the worker to learn of it")
        fleet.open_gate()
        wait_for(lambda: "reached maxmemory" in worker.said, 10, "the worker to say so")
        time.sleep(2.0)  # two leases long: they are renewed all the while
        assert fleet.redis.zcard(KEYS.leases) == len(threads)
        assert all(fleet.status(thread) == "running" for thread in threads)
        fleet.redis.config_set("maxmemory", 0)
        fleet.rests(*threads)
        assert all(fleet.executions(thread) == {"a": 1, "b": 1, "c": 1} for thread in threads)
        assert fleet.executions(doomed)["b"] == 1
        assert "Traceback" not in worker.said
        assert fleet.redis.hget(KEYS.stats, "lost") is None
        assert fleet.moves.delete(doomed) == "deleted"
        fleet.settled(*threads)
        assert_at_rest(fleet.redis)
