"""A worker that stalls past its lease and comes back, still sure of what it holds: fenced, and of use again.

Others sweep only once it has stalled: alone, it renews before it sweeps, so that however slow the machine is, a short
lease can't end before the stall and make another scenario of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everstep.embedded import EmbeddedServer
from faults import KEYS, SHORT_MS, Fleet, Process
from servers import wait_for

GRAPHS = pytest.mark.parametrize("graph", ["chain", "achain"])


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


def stalled_in_b(fleet: Fleet, graph: str, thread: str) -> tuple[Process, str]:
    """A worker that has been stopped while it runs node b, and the token that it holds."""
    zombie = fleet.worker(graph, lease_ms=SHORT_MS)
    fleet.began(thread, "b")
    zombie.stop()
    (token,) = fleet.redis.hkeys(KEYS.lease)
    return zombie, token.decode()


def tokens(fleet: Fleet, thread: str) -> dict[str, list[str]]:
    """token -> the kinds of the entries that it wrote."""
    found: dict[str, list[str]] = {}
    for entry in fleet.log.pages(thread):
        found.setdefault(entry.text("token"), []).append(entry.kind)
    return found


def learns_that_it_is_late(fleet: Fleet, zombie: Process) -> None:
    """Its renewal tells it, or its commit is fenced: whichever comes first."""
    fenced = KEYS.stats
    wait_for(
        lambda: fleet.redis.hget(fenced, "fenced") or "its lease is gone" in zombie.said,
        10,
        "the zombie to learn its fate",
    )


@GRAPHS
def test_a_zombie_s_result_is_refused_and_its_next_work_is_welcome(fleet: Fleet, graph: str) -> None:
    thread = fleet.submit(graph, gated="b")
    zombie, token = stalled_in_b(fleet, graph, thread)
    with fleet.sweeping():
        with fleet.heir(graph):
            fleet.began(thread, "b", 2)
            fleet.open_gate()
            fleet.settled(thread)
        before = fleet.log.read(thread)
        zombie.go_on()
        learns_that_it_is_late(fleet, zombie)
        following = fleet.submit(graph)
        fleet.settled(following)
    assert [x.id for x in fleet.log.read(thread)] == [x.id for x in before], "the zombie wrote nothing"
    assert tokens(fleet, thread)[token] == ["task_lost"]
    assert fleet.executions(thread) == {"a": 1, "b": 2, "c": 1}
    assert fleet.executions(following) == {"a": 1, "b": 1, "c": 1}
    assert {x.pid for x in fleet.lines() if x.thread == following} == {zombie.pid}


@GRAPHS
def test_a_zombie_that_ends_while_its_heir_still_works_changes_nothing(fleet: Fleet, graph: str) -> None:
    thread = fleet.submit(graph, gated="b")
    zombie, token = stalled_in_b(fleet, graph, thread)
    with fleet.sweeping(), fleet.heir(graph):
        fleet.began(thread, "b", 2)
        zombie.go_on()
        wait_for(lambda: "its lease is gone" in zombie.said, 10, "a renewal to tell")
        fleet.open_gate()
        fleet.settled(thread)
    assert tokens(fleet, thread)[token] == ["task_lost"]
    assert fleet.executions(thread) == {"a": 1, "b": 2, "c": 1}


@GRAPHS
def test_a_thread_made_again_under_a_zombie_knows_nothing_of_it(fleet: Fleet, graph: str) -> None:
    thread = fleet.submit(graph, gated="b", run="first")
    zombie, token = stalled_in_b(fleet, graph, thread)
    assert fleet.moves.cancel(thread) == "cancelled"
    assert fleet.moves.delete(thread) == "deleted"
    fleet.submit(graph, thread, run="second", gated="b")
    with fleet.heir(graph):
        fleet.began(thread, "b", 2)
        fleet.open_gate()
        zombie.go_on()
        fleet.settled(thread)
        learns_that_it_is_late(fleet, zombie)
    assert token not in tokens(fleet, thread)
    assert {entry.text("run") for entry in fleet.log.pages(thread)} == {"second"}
    assert fleet.executions(thread)["b"] == 2
    assert fleet.state(graph, thread)["seen"] == ["a", "b", "c"]


@GRAPHS
@pytest.mark.parametrize("point", ["called", "settled"])
def test_a_commit_from_before_the_stall_is_fenced_while_the_heir_holds_the_task(
    fleet: Fleet, graph: str, point: str
) -> None:
    thread = fleet.submit(graph, gated="b/2")
    zombie = fleet.worker(graph, lease_ms=SHORT_MS, failpoint=f"stop@{point}:3")
    zombie.stalls()
    (token,) = fleet.redis.hkeys(KEYS.lease)
    with fleet.sweeping(), fleet.heir(graph):
        fleet.began(thread, "b", 2)
        zombie.go_on()
        learns_that_it_is_late(fleet, zombie)
        assert fleet.redis.hget(KEYS.stats, "fenced") == b"1" or point == "called"
        fleet.open_gate()
        fleet.settled(thread)
    assert tokens(fleet, thread)[token.decode()] == ["task_lost"]
    assert fleet.executions(thread) == {"a": 1, "b": 2, "c": 1}
