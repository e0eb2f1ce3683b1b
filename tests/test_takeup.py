"""Inline runs whose caller died: who comes with the same input takes them up, and gets their result."""

from __future__ import annotations

import operator
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

import pytest
import redis

from everstep_checkpoint.errors import ThreadBusy
from everstep_checkpoint.replay import verify
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START, Command
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.moves.contract import Moves, Renewed
from everstep_scheduler.moves.keeper import LeaseKeeper
from everstep_scheduler.recovery.recovery import recover
from hand import KEYS, working
from servers import wait_for

ON: dict[str, Any] = {"configurable": {"thread_id": "t"}}
LEASE_MS = 300


class State(TypedDict, total=False):
    count: int
    log: Annotated[list[str], operator.add]


def steps(second: Callable[[State], None], *, asks: bool = False) -> StateGraph:
    """Two nodes; what the second one does besides is up to the test."""

    def two(state: State) -> State:
        answer = interrupt("go on?") if asks else ""
        second(state)
        return {"log": [f"two of {state['count']}{answer}"]}

    made = StateGraph(State)
    made.add_node("one", lambda state: {"log": [f"one of {state['count']}"]})
    made.add_node("two", two)
    made.add_edge(START, "one")
    made.add_edge("one", "two")
    return made


class Presses:
    """Ctrl-C while the node runs for the first time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, state: State) -> None:
        self.calls += 1
        if self.calls == 1:
            raise KeyboardInterrupt


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Iterator[Saver]:
    if request.param == "memory":
        yield InMemorySaver()
    else:
        made = RedisSaver(request.getfixturevalue("redis_url"), lease_ms=LEASE_MS)
        yield made
        made.client.close()


@pytest.fixture
def broken_off(saver: Saver) -> CompiledGraph:
    """A graph whose caller pressed Ctrl-C in the second node."""
    graph = steps(Presses()).compile(checkpointer=saver, name="g")
    with pytest.raises(KeyboardInterrupt):
        graph.invoke({"count": 1}, ON, run_id="r1")
    return graph


def began(saver: Saver) -> list[str]:
    return [x.text("run") for x in saver.log.read("t") if x.kind in ("run_started", "run_queued") and not x.text("of")]


DONE = ["one of 1", "two of 1"]


def test_the_same_input_goes_on_where_its_caller_died(broken_off: CompiledGraph, saver: Saver) -> None:
    assert broken_off.invoke({"count": 1}, ON)["log"] == DONE
    assert began(saver) == ["r1"], "it is not a second input"
    assert verify(saver.log, "t").sound
    assert broken_off.invoke({"count": 1}, ON)["log"] == DONE * 2, "once that run is done, it is"


def test_a_stream_of_the_same_input_tells_the_run_from_its_beginning(broken_off: CompiledGraph, saver: Saver) -> None:
    told = list(broken_off.stream({"count": 1}, ON))
    assert told == [{"one": {"log": ["one of 1"]}}, {"two": {"log": ["two of 1"]}}]
    assert began(saver) == ["r1"]


def test_another_input_waits_until_that_run_is_finished(broken_off: CompiledGraph, saver: Saver) -> None:
    assert broken_off.invoke({"count": 2}, ON)["log"] == [*DONE, "one of 2", "two of 2"]
    assert len(began(saver)) == 2


def test_none_goes_on_where_the_caller_died(broken_off: CompiledGraph, saver: Saver) -> None:
    assert broken_off.invoke(None, ON)["log"] == DONE
    assert began(saver) == ["r1"]


def test_the_same_run_id_goes_on_where_the_caller_died(broken_off: CompiledGraph, saver: Saver) -> None:
    assert broken_off.invoke({"count": 1}, ON, run_id="r1")["log"] == DONE
    assert began(saver) == ["r1"]


def test_an_input_that_was_queued_when_its_caller_died_is_taken_up_too(broken_off: CompiledGraph, saver: Saver) -> None:
    waiting: Any = broken_off.stream({"count": 2}, ON, run_id="r2")
    next(waiting)
    waiting.close()  # its caller left
    values = broken_off.invoke({"count": 2}, ON)
    assert values["log"] == [*DONE, "one of 2", "two of 2"]
    assert began(saver) == ["r1", "r2"]


def test_a_stream_that_was_left_is_taken_up_by_the_same_input(saver: Saver) -> None:
    graph = steps(lambda state: None).compile(checkpointer=saver, name="g")
    left: Any = graph.stream({"count": 1}, ON)
    next(left)
    left.close()
    assert graph.invoke({"count": 1}, ON)["log"] == DONE
    assert len(began(saver)) == 1


def test_an_answer_whose_caller_died_is_taken_up_by_the_same_answer(saver: Saver) -> None:
    graph = steps(Presses(), asks=True).compile(checkpointer=saver, name="g")
    graph.invoke({"count": 1}, ON)
    with pytest.raises(KeyboardInterrupt):
        graph.invoke(Command(resume="!"), ON)
    assert graph.invoke(Command(resume="!"), ON)["log"] == ["one of 1", "two of 1!"]
    assert len(began(saver)) == 1


def test_while_its_caller_is_alive_the_same_input_is_another_one(saver: Saver) -> None:
    inside, go = threading.Event(), threading.Event()

    def waits(state: State) -> None:
        inside.set()
        assert go.wait(20)

    graph = steps(waits).compile(checkpointer=saver, name="g")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(graph.invoke, {"count": 1}, ON)
        assert inside.wait(10)
        with pytest.raises(ThreadBusy):
            graph.invoke(None, ON)
        second = pool.submit(graph.invoke, {"count": 1}, ON)
        wait_for(lambda: len(began(saver)) == 2, 10, "the second input")
        go.set()
        assert first.result(10)["log"] == DONE
        assert second.result(10)["log"] == DONE * 2


# -- other processes

CHILD = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from everstep_scheduler.inline.savers import RedisSaver
from test_takeup import ON, steps

def second(state):
    with open({trace!r}, "a") as trace:
        trace.write("two\\n")
    {does}

graph = steps(second).compile(checkpointer=RedisSaver({url!r}, lease_ms={lease}), name="g")
print(graph.invoke({{"count": 1}}, ON, run_id="r1")["log"])
"""


class Child:
    """A caller in a process of its own. In its second node it sleeps until it is killed, or until a file is there."""

    def __init__(self, url: str, folder: Path, does: str = "time.sleep(60)") -> None:
        self.trace = folder / "trace"
        self.trace.touch()
        said = {"tests": str(Path(__file__).parent), "trace": str(self.trace), "url": url, "lease": LEASE_MS}
        code = CHILD.format(**said, does=does)
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        wait_for(lambda: self.runs or self.process.poll() is not None, 20, "the child's second node")
        assert self.process.poll() is None

    @property
    def runs(self) -> int:
        return self.trace.read_text().count("two")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def child(redis_url: str, tmp_path: Path) -> Iterator[Child]:
    made = Child(redis_url, tmp_path)
    yield made
    made.kill()
    assert made.process.stdout is not None
    made.process.stdout.close()


@pytest.fixture
def here(redis_url: str) -> Iterator[Callable[..., CompiledGraph]]:
    """The same graph in this process."""
    saver = RedisSaver(redis_url, lease_ms=LEASE_MS)
    yield lambda second=lambda state: None: steps(second).compile(checkpointer=saver, name="g")
    saver.client.close()


def kinds(graph: CompiledGraph) -> list[str]:
    assert graph.checkpointer is not None
    return [x.kind for x in graph.checkpointer.log.read("t") if not x.is_checkpoint]


def test_a_caller_that_was_killed_is_followed_by_one_with_its_input(child: Child, here: Any) -> None:
    child.kill()
    graph = here()
    assert graph.invoke({"count": 1}, ON)["log"] == DONE, "no worker is there: the caller itself sweeps"
    assert kinds(graph) == ["run_started", "task_lost"]


@pytest.mark.parametrize(("data", "more"), [(None, {}), ({"count": 1}, {"run_id": "r1"})], ids=["None", "its run id"])
def test_a_caller_that_was_killed_is_followed_by(child: Child, here: Any, data: Any, more: Any) -> None:
    child.kill()
    graph = here()
    assert graph.invoke(data, ON, **more)["log"] == DONE
    assert kinds(graph) == ["run_started", "task_lost"]


def test_a_caller_that_was_killed_is_finished_before_another_input(child: Child, here: Any) -> None:
    child.kill()
    assert here().invoke({"count": 2}, ON)["log"] == [*DONE, "one of 2", "two of 2"]


def test_who_waits_to_know_gets_the_result_that_workers_brought_about(child: Child, here: Any, redis_url: str) -> None:
    with ThreadPoolExecutor() as pool, working(redis_url, ("g", steps(lambda state: None))):
        graph = here()
        second = pool.submit(graph.invoke, {"count": 1}, ON)  # its first look: the child's word still holds
        child.kill()
        assert second.result(20)["log"] == DONE
        assert kinds(graph).count("run_started") == 1


def test_the_same_input_of_another_living_process_is_a_second_one(redis_url: str, tmp_path: Path, here: Any) -> None:
    go = tmp_path / "go"
    child = Child(redis_url, tmp_path, f"while not os.path.exists({str(go)!r}): time.sleep(0.01)")
    with ThreadPoolExecutor() as pool:
        graph = here()
        second = pool.submit(graph.invoke, {"count": 1}, ON)
        wait_for(lambda: "run_queued" in kinds(graph), 10, "the second input, after a sign of life of the first caller")
        go.touch()
        assert second.result(20)["log"] == DONE * 2
    out, _ = child.process.communicate(timeout=20)
    assert out.strip() == str(DONE)


def test_a_rebuild_keeps_in_mind_whose_run_it_is(child: Child, here: Any, redis_url: str) -> None:
    child.kill()
    graph = here()
    saver = graph.checkpointer
    saver.client.delete(KEYS.callers)
    recover(saver.client, KEYS, lease_ms=LEASE_MS)
    assert graph.invoke({"count": 1}, ON)["log"] == DONE
    assert kinds(graph).count("run_started") == 1


def test_callers_that_ended_leave_nothing_behind(saver: Saver) -> None:
    graph = steps(lambda state: None).compile(checkpointer=saver, name="g")
    for i in range(3):
        graph.invoke({"count": i}, ON)
    if isinstance(saver, RedisSaver):
        client, keeper = saver.client, saver.keeper
        assert keeper is not None and keeper.callers == ()
        wait_for(lambda: client.zcard(KEYS.callers) == 0, 10, "the end of a renewal that was on its way")


@pytest.mark.parametrize("ended", [True, False])
def test_a_word_that_a_late_renewal_gave_for_a_caller_is_taken_back(redis_url: str, ended: bool) -> None:
    saver = RedisSaver(redis_url, lease_ms=LEASE_MS)
    moves, client = saver.moves, saver.client
    named, left, renewed = threading.Event(), threading.Event(), threading.Event()

    class Late:
        """Its renewals leave late, with the words that were to be given."""

        def renew(self, *args: Any, callers: Sequence[str], **told: Any) -> Renewed:
            named.set()
            assert left.wait(10)
            answer = moves.renew(*args, callers=callers, **told)
            renewed.set()
            return answer

        def leave(self, caller: str, *, ended: bool) -> None:
            moves.leave(caller, ended=ended)

    keeper = LeaseKeeper(cast("Moves", Late()), "me", LEASE_MS)
    keeper.drive("me/1")
    assert named.wait(10)
    moves.leave("me/1", ended=ended)
    keeper.undrive("me/1", ended=ended)
    left.set()
    assert renewed.wait(10)
    wait_for(lambda: _is_left(client, ended), 10, "the word to be taken back")
    client.close()


def _is_left(client: redis.Redis, ended: bool) -> bool:
    word: Any = client.zscore(KEYS.callers, "me/1")
    return word is None if ended else word is not None and word < 0
