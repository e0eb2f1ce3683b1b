"""A graph that a node calls, when its worker dies or stalls: what its log has is not done again, and only who holds the
node's task writes into it.

point        count   a dead process leaves, of the called graph (x -> y)      call began   x   y
keeping      1       nothing but its name                                        2         1   1
kept         1       its beginning                                               2         1   1
keeping      3       a result of x that nobody knows                             2         2   1
kept         3       x                                                           2         1   1
keeping      4       x, and a result of y that nobody knows                      2         1   2
kept         4       all of it                                                   2         1   1
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from everstep.embedded import EmbeddedServer
from everstep_checkpoint.errors import InvalidInput
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import verify
from everstep_scheduler.reading.children import children
from everstep_scheduler.reading.derive import derive
from everstep_scheduler.recovery.recovery import Recovery, recover
from everstep_workers.targets import load_target
from everstep_workers.worker import Worker
from faults import KEYS, SHORT_MS, Fleet, Process
from servers import wait_for
from test_recovery import wipe

REBUILD_MS = 900  # a rebuild waits a third of it for those that hold leases
GRAPHS = pytest.mark.parametrize("graph", ["calling", "acalling"])
IN_CALLED = {
    ("keeping", 1): (1, 1), ("kept", 1): (1, 1), ("keeping", 3): (2, 1), ("kept", 3): (1, 1), ("keeping", 4): (1, 2),
    ("kept", 4): (1, 1), ("recorded", 1): (1, 1), ("called", 3): (1, 1), ("settled", 3): (1, 1),
}  # fmt: skip
DONE = ["a", "x", "y", "z"]


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


def kept(fleet: Fleet, thread: str) -> str:
    """The thread of the graph that was called; its log is sound, and nothing else is known of it."""
    (found,) = children(fleet.log, thread)
    assert verify(fleet.log, found).sound
    for key in (KEYS.thread(found), KEYS.open(found), KEYS.runs(found)):
        assert not fleet.redis.exists(key)
    assert not [key for key in fleet.redis.scan_iter(f"{KEYS.stem}threads:*") if fleet.redis.zscore(key, found)]
    return found


def done_once(fleet: Fleet, graph: str, thread: str) -> list[str]:
    """The run is done, and so is what it called, once; the ids of the entries in that log."""
    fleet.settled(thread)
    assert fleet.state(graph, thread)["seen"] == DONE
    log = fleet.log.read(kept(fleet, thread))
    assert [x.text("source") for x in log if x.is_checkpoint] == ["input", "loop", "loop", "loop"]
    assert derive(fleet.log, kept(fleet, thread)).status == "done"
    return [x.id for x in log]


@GRAPHS
@pytest.mark.parametrize(("point", "count"), IN_CALLED, ids=lambda each: str(each))
def test_what_a_called_graph_has_done_outlives_the_worker(fleet: Fleet, graph: str, point: str, count: int) -> None:
    with fleet.sweeping():
        thread = fleet.submit(graph)
        fleet.worker(graph, failpoint=f"{point}:{count}", lease_ms=SHORT_MS).dies()
        with fleet.heir(graph):
            done_once(fleet, graph, thread)
    x, y = IN_CALLED[point, count]
    assert fleet.executions(thread) == {"a": 1, "call": 2, "x": x, "y": y, "z": 1}


@GRAPHS
def test_a_worker_killed_between_two_steps_of_a_called_graph_is_survived(fleet: Fleet, graph: str) -> None:
    thread = fleet.submit(graph, gated="y")
    with fleet.sweeping():
        worker = fleet.worker(graph, lease_ms=SHORT_MS)
        fleet.began(thread, "y")
        worker.kill()
        fleet.open_gate()
        with fleet.heir(graph):
            done_once(fleet, graph, thread)
    assert fleet.executions(thread) == {"a": 1, "call": 2, "x": 1, "y": 2, "z": 1}


def stalled_in_y(fleet: Fleet, graph: str, thread: str) -> Process:
    """A worker that is stopped in the second node of what its node called."""
    zombie = fleet.worker(graph, lease_ms=SHORT_MS)
    fleet.began(thread, "y")
    zombie.stop()
    return zombie


def learns_that_it_is_late(fleet: Fleet, zombie: Process) -> None:
    """Its renewal tells it, or what it writes is refused: whichever comes first."""
    late = ("its lease is gone", "came too late")
    wait_for(lambda: any(each in zombie.said for each in late), 10, "the zombie to learn its fate")


def is_fenced(fleet: Fleet, zombie: Process) -> None:
    """And goes on with other work."""
    learns_that_it_is_late(fleet, zombie)
    fleet.rests(fleet.submit("chain"))


@GRAPHS
@pytest.mark.parametrize("heir", ["works", "is done"])
def test_a_zombie_writes_nothing_into_the_log_of_what_it_called(fleet: Fleet, graph: str, heir: str) -> None:
    thread = fleet.submit(graph, gated="y")
    zombie = fleet.worker(graph, "chain", lease_ms=SHORT_MS)
    fleet.began(thread, "y")
    zombie.stop()
    with fleet.sweeping():
        with fleet.heir(graph):
            fleet.began(thread, "y", 2)
            if heir == "works":
                zombie.go_on()
                learns_that_it_is_late(fleet, zombie)
            fleet.open_gate()
            before = done_once(fleet, graph, thread)
        zombie.go_on()
        is_fenced(fleet, zombie)
    assert [x.id for x in fleet.log.read(kept(fleet, thread))] == before
    assert fleet.executions(thread) == {"a": 1, "call": 2, "x": 1, "y": 2, "z": 1}


@GRAPHS
@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_writing_from_before_the_stall_is_refused_after_it(fleet: Fleet, graph: str, count: int) -> None:
    """The heir holds the task meanwhile, in the very graph that was called."""
    thread = fleet.submit(graph)
    zombie = fleet.worker(graph, "chain", lease_ms=SHORT_MS, failpoint=f"stop@keeping:{count}")
    zombie.stalls()
    with fleet.sweeping():
        with fleet.heir(graph):
            before = done_once(fleet, graph, thread)
        zombie.go_on()
        is_fenced(fleet, zombie)
    assert [x.id for x in fleet.log.read(kept(fleet, thread))] == before


@GRAPHS
def test_a_thread_made_again_under_a_zombie_has_nothing_of_what_that_called(fleet: Fleet, graph: str) -> None:
    thread = fleet.submit(graph, gated="y", run="first")
    zombie = stalled_in_y(fleet, graph, thread)
    old = kept(fleet, thread)
    with fleet.sweeping():
        assert fleet.moves.cancel(thread) == "cancelled"
        assert fleet.moves.delete(thread) == "deleted"
        fleet.log.delete(old)
        fleet.submit(graph, thread, run="second", gated="y")
        with fleet.heir(graph):
            fleet.began(thread, "y", 2)
            fleet.open_gate()
            zombie.go_on()
            done_once(fleet, graph, thread)
        learns_that_it_is_late(fleet, zombie)
        zombie.end()
    assert fleet.log.head(old) is None
    assert kept(fleet, thread) != old


@GRAPHS
@pytest.mark.parametrize("what", ["rq", "ours", "both", "forced"])
def test_a_rebuild_leaves_the_logs_of_called_graphs_alone(fleet: Fleet, graph: str, what: str) -> None:
    """Its worker lives and keeps its lease; nothing of what it called becomes a run for others."""
    thread = fleet.submit(graph, gated="y")
    with fleet.heir(graph, lease_ms=REBUILD_MS):
        fleet.began(thread, "y")
        before = [x.id for x in fleet.log.read(kept(fleet, thread))]
        if what != "forced":
            wipe(fleet.redis, what)
        report = recover(fleet.moves.scripts.client, KEYS, lease_ms=REBUILD_MS)
        assert (report.threads, report.skipped) in ((1, []), (0, []))  # 0: the worker was faster
        assert [x.id for x in fleet.log.read(kept(fleet, thread))] == before
        assert Recovery(fleet.redis, KEYS, lease_ms=REBUILD_MS).run().threads == 0, (
            "nor is it a log that lacks its indexes"
        )
        fleet.open_gate()
        done_once(fleet, graph, thread)
    assert fleet.executions(thread) == {"a": 1, "call": 1, "x": 1, "y": 1, "z": 1}


def test_a_rebuild_after_the_death_of_the_worker_goes_on_in_the_called_graph(fleet: Fleet) -> None:
    thread = fleet.submit("calling", gated="y")
    worker = fleet.worker("calling", lease_ms=SHORT_MS)
    fleet.began(thread, "y")
    worker.kill()
    wipe(fleet.redis, "both")
    fleet.open_gate()
    with fleet.sweeping(), fleet.heir("calling"):
        done_once(fleet, "calling", thread)
    assert fleet.executions(thread) == {"a": 1, "call": 2, "x": 1, "y": 2, "z": 1}


def test_a_start_on_the_thread_of_a_called_graph_is_refused_by_the_moves(fleet: Fleet) -> None:
    thread = fleet.submit("calling")
    with fleet.heir("calling"):
        done_once(fleet, "calling", thread)
    with pytest.raises(InvalidInput, match="kept by the node that called its graph"):
        fleet.submit("calling", kept(fleet, thread))


# --- an inline caller

CALLER = """
import os, signal
from pathlib import Path
from typing import TypedDict
from everstep import END, START, RedisSaver, StateGraph

HERE = Path(__file__).parent

class State(TypedDict, total=False):
    n: int

def notes(name, value):
    def node(state):
        with open(HERE / "journal", "a") as journal:
            journal.write(f"{name} {os.getpid()}\\n")
        if name == "second" and not (HERE / "go").exists():
            (HERE / "go").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"n": value(state["n"])}
    return node

low = (StateGraph(State).add_node("first", notes("first", lambda n: n + 1))
       .add_node("second", notes("second", lambda n: n * 10))
       .add_edge(START, "first").add_edge("first", "second").compile())

def call(state):
    return low.invoke({"n": state["n"]})

def graph_on(saver):
    return StateGraph(State).add_node("call", call).add_edge(START, "call").compile(checkpointer=saver, name="calls")

graph = graph_on(None)

if __name__ == "__main__":
    import sys
    graph_on(RedisSaver(sys.argv[1], lease_ms=900)).invoke({"n": 1}, {"configurable": {"thread_id": "t"}})
"""


@pytest.mark.parametrize("who", ["the fleet", "another caller"])
def test_when_an_inline_caller_is_killed_in_a_called_graph_it_is_gone_on_with(
    redis_url: str, client: redis.Redis, tmp_path: Path, who: str
) -> None:
    module = tmp_path / "called_graph.py"
    module.write_text(CALLER)
    command = [sys.executable, str(module), redis_url]
    first = subprocess.Popen(command, cwd=tmp_path)
    assert first.wait(30) == -signal.SIGKILL
    pid: Any = os.getpid()
    if who == "another caller":
        second = subprocess.Popen(command, cwd=tmp_path)
        assert second.wait(30) == 0
        pid = second.pid
    else:
        sys.path.insert(0, str(tmp_path))
        worker = Worker(redis_url, [load_target("called_graph:graph")], lease_ms=900)
        running = threading.Thread(target=worker.run)
        running.start()
        try:
            wait_for(lambda: client.hget(KEYS.thread("t"), "status") == b"done", 20, "the run's end")
        finally:
            worker.drain()
            running.join(20)
            sys.path.remove(str(tmp_path))
    lines = (tmp_path / "journal").read_text().split()
    assert lines == ["first", str(first.pid), "second", str(first.pid), "second", str(pid)]
    log = RedisLog(client, KEYS)
    assert verify(log, "t").sound and all(verify(log, each).sound for each in children(log, "t"))
