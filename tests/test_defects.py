"""Eight things that LangGraph gets wrong and everstep does not, each with both sides. What is a race there is made
certain by construction: no side of a test hangs on luck.
"""

from __future__ import annotations

import gc
import operator
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels.named_barrier_value import NamedBarrierValue
from langgraph.checkpoint.base import id as theirs_id
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.errors import InvalidUpdateError as OracleInvalid
from langgraph.graph import StateGraph as OracleGraph
from langgraph.pregel._runner import PregelRunner
from langgraph.types import RetryPolicy as OracleRetry
from langgraph.types import interrupt as oracle_interrupt

from everstep_checkpoint.errors import InvalidUpdateError
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Runtime
from everstep_scheduler.inline.savers import InMemorySaver
from servers import wait_for

ON: Any = {"configurable": {"thread_id": "t"}}
THEIRS: Any = {"durability": "sync"}


class State(TypedDict, total=False):
    bad: bool
    best: int
    log: Annotated[list[str], operator.add]


def theirs(build: Any, **more: Any) -> Any:
    builder: Any = OracleGraph(State)
    build(builder, **more)
    return builder.compile(checkpointer=OracleSaver())


def ours(build: Any, **more: Any) -> Any:
    builder: Any = StateGraph(State)
    build(builder, **more)
    return builder.compile(checkpointer=InMemorySaver(), name="g")


# -- a router that failed


def routed(builder: Any) -> None:
    failures = [RuntimeError("the router broke")]

    def router(state: State) -> str:
        if failures:
            raise failures.pop()
        return "b"

    builder.add_node("a", lambda state: {"log": ["a"]})
    builder.add_node("b", lambda state: {"log": ["b"]})
    builder.add_edge(START, "a")
    builder.add_conditional_edges("a", router, ["b", END])


def test_a_router_that_failed_is_asked_again() -> None:
    """LangGraph (#8834) has stored the update already, takes the task for done, and ends without ever routing."""
    graph = theirs(routed)
    with pytest.raises(RuntimeError):
        graph.invoke({"log": []}, ON, **THEIRS)
    assert graph.get_state(ON).next == ()
    assert graph.invoke(None, ON, **THEIRS)["log"] == ["a"]

    graph = ours(routed)
    with pytest.raises(RuntimeError):
        graph.invoke({"log": []}, ON)
    assert graph.get_state(ON).next == ("a",)
    assert graph.invoke(None, ON)["log"] == ["a", "b"]


# -- a join that is stored torn


def joined(builder: Any) -> None:
    for name in ("a", "b", "late", "end"):
        builder.add_node(name, lambda state, name=name: {"log": [name]})
    builder.add_edge(START, "a")
    builder.add_edge(START, "b")
    builder.add_edge("b", "late")
    builder.add_edge(["a", "late"], "end")


def test_what_is_stored_of_a_join_is_of_its_own_step() -> None:
    """LangGraph (#8748) hands its live set to whoever stores it: what comes a step later is in it, if that is slow."""
    channel: Any = NamedBarrierValue(str, {"a", "late"}).from_checkpoint(set())
    channel.update(["a"])
    stored = channel.checkpoint()
    channel.update(["late"])
    assert stored == {"a", "late"}, "the checkpoint of the step before, as the background would store it"

    graph = ours(joined)
    graph.invoke({"log": []}, ON)
    nexts = [each.next for each in graph.get_state_history(ON)]
    assert nexts == [(), ("end",), ("late",), ("a", "b"), ("__start__",)]
    half = next(each for each in graph.get_state_history(ON) if each.next == ("late",))
    assert graph.invoke(None, half.config)["log"][-1] == "end", "a replay from there joins as it did"


# -- two invokes at once


def meeting(builder: Any, meet: Any) -> None:
    def node(state: State) -> State:
        meet()
        return {"log": ["node"]}

    builder.add_node("node", node)
    builder.add_edge(START, "node")


def both(graph: Any, **more: Any) -> list[str]:
    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(graph.invoke, {"log": [word]}, ON, **more) for word in ("x", "y")]:
            one.result(30)
    found: list[str] = graph.get_state(ON).values["log"]
    return found


def test_two_invokes_at_once_lose_no_input() -> None:
    """LangGraph (#8796) runs both on the same checkpoint: the history forks, and one input is gone."""
    assert sorted(both(theirs(meeting, meet=threading.Barrier(2).wait), **THEIRS)) in (["node", "x"], ["node", "y"])
    assert sorted(both(ours(meeting, meet=lambda: None))) == ["node", "node", "x", "y"]


# -- writes that exclude each other


def clashing(builder: Any) -> None:
    for i, name in enumerate(("a", "b")):
        builder.add_node(name, lambda state, i=i: {"best": i} if i == 0 or state.get("bad") else {"log": ["fine"]})
        builder.add_edge(START, name)


def test_writes_that_exclude_each_other_fail_their_run_and_no_other() -> None:
    """In LangGraph the thread is poisoned: until a new input comes, not even its state can be looked at."""
    graph = theirs(clashing)
    for data in ({"bad": True}, None):
        with pytest.raises(OracleInvalid):
            graph.invoke(data, ON, **THEIRS)
    with pytest.raises(OracleInvalid):
        graph.get_state(ON)

    graph = ours(clashing)
    with pytest.raises(InvalidUpdateError):
        graph.invoke({"bad": True}, ON)
    assert graph.get_state(ON).values["bad"] is True
    assert graph.invoke({"bad": False}, ON) == {"bad": False, "best": 0, "log": ["fine"]}


# -- a sibling that ends after the failure


def is_shut_down() -> bool:
    """Does the pool that this thread belongs to take nothing new?"""
    me = threading.current_thread()
    pools = [x for x in gc.get_objects() if isinstance(x, ThreadPoolExecutor) and me in x._threads]
    return any(pool._shutdown for pool in pools)


def late(builder: Any, calls: list[str]) -> None:
    def fails(state: State) -> State:
        calls.append("fails")
        if calls.count("fails") == 1:
            raise ValueError("no")
        return {}

    def slow(state: State) -> State:
        calls.append("slow")
        wait_for(lambda: "fails" in calls, 10, "the failure")
        return {"log": ["slow"]}

    builder.add_node("fails", fails)
    builder.add_node("slow", slow)
    builder.add_edge(START, "fails")
    builder.add_edge(START, "slow")


def test_what_a_sibling_of_a_failed_node_wrote_late_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In LangGraph's sync runner the pool may shut down between a sibling's end and the commit of what it wrote, as it
    does here: the write has nowhere to go, and the node runs again."""
    commit = PregelRunner.commit

    def later(self: Any, task: Any, exception: Any) -> Any:
        if task.name == "slow" and calls.count("slow") == 1:
            wait_for(is_shut_down, 10, "the end of the pool")
        return commit(self, task, exception)

    calls: list[str] = []
    graph = theirs(late, calls=calls)
    with monkeypatch.context() as patch, pytest.raises(ValueError):
        patch.setattr(PregelRunner, "commit", later)
        graph.invoke({"log": []}, ON, **THEIRS)
    assert graph.invoke(None, ON, **THEIRS)["log"] == ["slow"]
    assert calls.count("slow") == 2

    calls = []
    graph = ours(late, calls=calls)
    with pytest.raises(ValueError):
        graph.invoke({"log": []}, ON)
    assert graph.invoke(None, ON)["log"] == ["slow"]
    assert calls.count("slow") == 1


# -- an error that is over


def mended(builder: Any, ask: Any) -> None:
    failures = [ValueError("not yet")]

    def flaky(state: State) -> State:
        if failures:
            raise failures.pop()
        return {"log": ["flaky"]}

    builder.add_node("flaky", flaky)
    builder.add_node("waits", lambda state: {"log": [ask("sure?")]})
    builder.add_edge(START, "flaky")
    builder.add_edge(START, "waits")


def errors(graph: Any, **more: Any) -> dict[str, Any]:
    with pytest.raises(ValueError):
        graph.invoke({"log": []}, ON, **more)
    graph.invoke(None, ON, **more)
    return {task.name: task.error for task in graph.get_state(ON).tasks}


def test_a_task_that_succeeded_shows_no_stale_error() -> None:
    """LangGraph keeps the error of the first try beside the result of the second."""
    assert "not yet" in str(errors(theirs(mended, ask=oracle_interrupt), **THEIRS)["flaky"])
    assert errors(ours(mended, ask=interrupt))["flaky"] is None


# -- attempts


def counted(builder: Any, policy: Any, attempts: list[int], runtime: Any) -> None:
    def node(state: State, runtime: Any) -> State:
        attempts.append(runtime.execution_info.node_attempt)
        if len(attempts) == 2:
            raise KeyboardInterrupt  # the process dies
        raise ConnectionError

    node.__annotations__["runtime"] = runtime
    builder.add_node("node", node, retry_policy=policy)
    builder.add_edge(START, "node")


def test_attempts_are_counted_over_a_crash() -> None:
    """LangGraph counts in the process: after a crash a policy of two attempts begins anew."""
    from langgraph.runtime import Runtime as OracleRuntime

    found: list[list[int]] = []
    quick = {"initial_interval": 0.001, "jitter": False, "max_attempts": 2}
    sides = [(theirs, OracleRetry(**quick), OracleRuntime, THEIRS), (ours, RetryPolicy(**quick), Runtime, {})]  # type: ignore[arg-type]
    for side, policy, runtime, more in sides:
        attempts: list[int] = []
        graph = side(counted, policy=policy, attempts=attempts, runtime=runtime)
        with pytest.raises(KeyboardInterrupt):
            graph.invoke({"log": []}, ON, **more)
        with pytest.raises(ConnectionError):
            graph.invoke(None, ON, **more)
        found.append(attempts)
    assert found == [[1, 2, 1, 2], [1, 2, 2]]


# -- a clock that is behind


def test_the_head_is_what_was_written_last_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangGraph takes the highest id for the head, and ids begin with the time of the host that made them."""
    graphs = [theirs(meeting, meet=lambda: None), ours(meeting, meet=lambda: None)]
    for graph, more in zip(graphs, (THEIRS, {}), strict=True):
        graph.invoke({"log": ["first"]}, ON, **more)
    real, real_ns, hour = time.time, time.time_ns, 3600
    monkeypatch.setattr(time, "time", lambda: real() - hour)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() - hour * 10**9)
    monkeypatch.setattr(theirs_id, "_last_v6_timestamp", None)  # another host, whose clock is an hour behind
    for graph, more in zip(graphs, (THEIRS, {}), strict=True):
        graph.invoke({"log": ["second"]}, ON, **more)
    their, our = (graph.get_state(ON).values["log"] for graph in graphs)
    assert their == ["first", "node"], "the second invoke is as if it had never been"
    assert our == ["first", "node", "second", "node"]
