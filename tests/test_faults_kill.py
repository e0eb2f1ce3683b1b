"""kill -9 at each named point between claim and commit: the run goes on, and nothing is done twice.

point        a dead process leaves           the node began   its commits
claimed      a lease                               1               1
loaded       a lease                               1               1
called       a result that nobody knows            2               1
settled      the same, hashed                      2               1
committed    a checkpoint, and the next lease      1               1
renewed      a node under way                      2               1

Around an effect (`once`), in a node that began twice:          the effect was done
effected     an effect that nobody knows of                     2: what can't be helped
recorded     a record                                           1
called       a record, and a result that nobody knows           1
settled      the same, hashed                                   1
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everstep.embedded import EmbeddedServer
from everstep_scheduler.graph.runtime import Command
from everstep_scheduler.steps.failpoints import NAMES, Failpoint
from faults import SHORT_MS, Fleet
from servers import wait_for
from test_faults_called import IN_CALLED

TABLE = {"claimed": 1, "loaded": 1, "called": 2, "settled": 2, "committed": 1, "renewed": 2}
EFFECTS = {"effected": 2, "recorded": 1, "called": 1, "settled": 1}
AT_B = 3  # start and `a` pass, `b` does not
SIXTH_RENEWAL = 6
MANY = 7


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


def test_the_table_names_every_failpoint() -> None:
    assert set(TABLE) | set(EFFECTS) | {point for point, _ in IN_CALLED} == set(NAMES)


def test_a_failpoint_that_does_not_exist_is_an_error() -> None:
    assert Failpoint.read("") is None
    with pytest.raises(ValueError, match="names no failpoint"):
        Failpoint.read("lunch:2")


@pytest.mark.parametrize("graph", ["chain", "achain"])
@pytest.mark.parametrize("point", TABLE)
def test_a_worker_killed_there_is_survived(fleet: Fleet, graph: str, point: str) -> None:
    gated = {"gated": "b"} if point == "renewed" else {}
    with fleet.sweeping():
        thread = fleet.submit(graph, **gated)
        count = SIXTH_RENEWAL if point == "renewed" else AT_B
        fleet.worker(graph, failpoint=f"{point}:{count}", lease_ms=SHORT_MS).dies()
        fleet.open_gate()
        with fleet.heir(graph):
            fleet.settled(thread)
    assert fleet.executions(thread) == {"a": 1, "b": TABLE[point], "c": 1}
    assert fleet.state(graph, thread)["seen"] == ["a", "b", "c"]
    assert fleet.kinds(thread)["task_lost"] == 1, "one attempt died, and the log says so"


@pytest.mark.parametrize("graph", ["paying", "apaying"])
@pytest.mark.parametrize("point", EFFECTS)
def test_an_effect_that_is_recorded_is_not_done_again(fleet: Fleet, graph: str, point: str) -> None:
    with fleet.sweeping():
        thread = fleet.submit(graph)
        count = 1 if point in ("effected", "recorded") else 2  # start is called and settled, too
        fleet.worker(graph, failpoint=f"{point}:{count}", lease_ms=SHORT_MS).dies()
        with fleet.heir(graph):
            fleet.settled(thread)
    assert fleet.executions(thread) == {"pay": 2, "charge": EFFECTS[point]}
    assert fleet.state(graph, thread)["seen"] == [f"receipt of attempt {EFFECTS[point]}"]
    assert fleet.kinds(thread)["effect_done"] == 1


@pytest.mark.parametrize(("point", "again"), [("effected:2", 2), ("recorded:2", 1), ("called:2", 1), ("settled:2", 1)])
def test_a_task_of_an_entrypoint_that_is_recorded_does_not_run_again(fleet: Fleet, point: str, again: int) -> None:
    with fleet.sweeping():
        thread = fleet.submit("shopping")
        fleet.worker("shopping", failpoint=point, lease_ms=SHORT_MS).dies()
        with fleet.heir("shopping"):
            fleet.settled(thread)
    assert fleet.executions(thread) == {"shopping": 2, "order/0": 1, "order/1": again}
    said: Any = fleet.state("shopping", thread)
    assert said == ["order 0 of attempt 1", f"order 1 of attempt {again}"]
    assert fleet.kinds(thread)["effect_done"] == 2


@pytest.mark.parametrize(
    ("failpoint", "died_with"),
    [
        ("settled:1", "parts that nothing names"),
        ("committed:4", "the lease of the join"),
        ("settled:5", "the join in hand"),
    ],
)
def test_a_worker_killed_in_a_wide_step_is_survived(fleet: Fleet, failpoint: str, died_with: str) -> None:
    with fleet.sweeping():
        thread = fleet.submit("wide", width=3)
        fleet.worker("wide", failpoint=failpoint, lease_ms=SHORT_MS).dies()
        with fleet.heir("wide"):
            fleet.settled(thread)
    assert fleet.executions(thread) == {"work/0": 1, "work/1": 1, "work/2": 1, "last": 1}, died_with
    assert fleet.state("wide", thread)["sum"] == 3


@pytest.mark.parametrize(("point", "began"), [("loaded:1", 2), ("called:1", 3), ("settled:1", 3), ("committed:1", 2)])
def test_an_answer_outlives_the_worker_that_took_it(fleet: Fleet, point: str, began: int) -> None:
    thread = fleet.submit("asking")
    with fleet.heir("asking"):
        fleet.rests(thread, status="interrupted")
    assert fleet.answer("asking", thread, "42") == "started"
    with fleet.sweeping():
        fleet.worker("asking", failpoint=point, lease_ms=SHORT_MS).dies()
        with fleet.heir("asking"):
            fleet.settled(thread)
    assert fleet.executions(thread) == {"ask": began, "tell": 1}
    assert fleet.state("asking", thread)["seen"] == ["42", "tell"]


AROUND_A_HANDLER = {
    "called:2": (2, 1),
    "settled:2": (2, 1),
    "committed:2": (1, 1),
    "loaded:3": (1, 1),
    "called:3": (1, 2),
    "committed:3": (1, 1),
}


@pytest.mark.parametrize("graph", ["handled", "handled_beside"])
@pytest.mark.parametrize("failpoint", AROUND_A_HANDLER)
def test_a_worker_killed_around_an_error_handler_runs_no_failed_node_again(
    fleet: Fleet, graph: str, failpoint: str
) -> None:
    """The failure and its handler are one commit: before it the node runs again, after it only the handler goes on."""
    with fleet.sweeping():
        thread = fleet.submit(graph)
        fleet.worker(graph, failpoint=failpoint, lease_ms=SHORT_MS).dies()
        with fleet.heir(graph):
            fleet.settled(thread)
    ran = fleet.executions(thread)
    assert (ran["a"], ran["handler"], ran["c"]) == (*AROUND_A_HANDLER[failpoint], 1)
    assert fleet.state(graph, thread)["seen"] == ["a: boom", *(["b"] if graph == "handled_beside" else []), "c"]


@pytest.mark.parametrize(("point", "kinds"), [("called:2", 1), ("settled:2", 1), ("committed:2", 1)])
def test_a_worker_killed_around_a_question_asks_it_once(fleet: Fleet, point: str, kinds: int) -> None:
    thread = fleet.submit("asking")
    with fleet.sweeping():
        fleet.worker("asking", failpoint=point, lease_ms=SHORT_MS).dies()
        with fleet.heir("asking"):
            fleet.rests(thread, status="interrupted")
            assert fleet.kinds(thread)["task_paused"] == kinds
            fleet.answer("asking", thread, "42")
            fleet.settled(thread)
    assert fleet.state("asking", thread)["seen"] == ["42", "tell"]


@pytest.mark.parametrize(("point", "began"), [("claimed:1", 0), ("called:1", 1), ("settled:1", 1), ("committed:1", 0)])
def test_a_worker_killed_in_a_task_that_a_command_added_is_survived(fleet: Fleet, point: str, began: int) -> None:
    thread = fleet.submit("chain")
    with fleet.heir("chain"):
        fleet.settled(thread)
    assert fleet.command("chain", thread, Command(update={"seen": ["U"]}, goto="b")) == "started"
    with fleet.sweeping():
        fleet.worker("chain", failpoint=point, lease_ms=SHORT_MS).dies()
        with fleet.heir("chain"):
            fleet.settled(thread)
    assert fleet.state("chain", thread)["seen"] == ["a", "b", "c", "U", "b", "c"]
    assert sum(fleet.executions(thread).values()) == 5 + began
    assert fleet.kinds(thread)["task_lost"] == 1


def test_all_that_dead_children_held_runs_again_at_once_however_long_it_takes(fleet: Fleet) -> None:
    """Each is a suspect and runs alone; none waits behind another one that runs long."""
    threads = [fleet.submit("chain", gated="b") for _ in range(MANY)]
    fleet.pool("chain", processes=2, concurrency=MANY, lease_ms=60_000)
    for thread in threads:
        fleet.began(thread, "b")
    for pid in {line.pid for line in fleet.lines() if line.node == "b"}:
        os.kill(pid, signal.SIGKILL)
    for thread in threads:
        fleet.began(thread, "b", times=2)
    fleet.open_gate()
    fleet.settled(*threads)


def test_a_suspect_does_not_wait_for_those_that_run_alone_already(fleet: Fleet) -> None:
    for round_ in (1, 2):
        threads = [fleet.submit("chain", thread=f"{round_}-{i}", gated="b") for i in range(3)]
        if round_ == 1:
            fleet.pool("chain", processes=1, concurrency=MANY, lease_ms=60_000)
        for thread in threads:
            fleet.began(thread, "b")
        os.kill(fleet.began(threads[0], "b").pid, signal.SIGKILL)
        for thread in threads:
            fleet.began(thread, "b", times=2)
    fleet.open_gate()
    fleet.settled(*(f"{round_}-{i}" for round_ in (1, 2) for i in range(3)))


@pytest.mark.parametrize("graph", ["chain", "achain"])
@pytest.mark.parametrize("point", ["loaded", "called", "committed"])
def test_a_pool_takes_back_at_once_what_its_dead_child_held(
    fleet: Fleet, graph: str, point: str, tmp_path: Path
) -> None:
    thread = fleet.submit(graph)
    fleet.pool(graph, processes=1, failpoint=f"{point}:{AT_B}:{tmp_path / 'fired'}", lease_ms=60_000)
    wait_for(lambda: (tmp_path / "fired").exists(), 20, "a child to die")
    fleet.settled(thread, timeout_s=10)
    assert fleet.executions(thread) == {"a": 1, "b": TABLE[point], "c": 1}
    assert fleet.kinds(thread)["task_lost"] == 1
