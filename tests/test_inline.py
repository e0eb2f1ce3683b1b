"""Graphs that run where they are called, against LangGraph as the oracle and on both stores."""

from __future__ import annotations

import asyncio
import operator
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.graph import StateGraph as OracleGraph
from langgraph.types import Send as OracleSend

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import (
    EmptyInputError,
    GraphRecursionError,
    InvalidInput,
    InvalidThreadId,
    InvalidUpdateError,
    NodeTimeoutError,
    RunCancelled,
    RunConflict,
    RunFailed,
    ServerUnavailable,
    TooLarge,
    UnknownNode,
    UnknownType,
)
from everstep_checkpoint.replay import verify
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Runtime, Send
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.inline.following import Follower
from everstep_scheduler.inline.logmoves import LogMoves
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.moves.contract import LEASE_MS, Lease, Offer, Renewed
from everstep_scheduler.moves.keeper import LeaseKeeper
from everstep_scheduler.steps.perform import Performer
from servers import wait_for


@dataclass
class Tenant:
    name: str


class State(TypedDict, total=False):
    count: int
    done: bool
    note: bytes
    log: Annotated[list[Any], operator.add]


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Iterator[Saver]:
    if request.param == "memory":
        yield InMemorySaver()
    else:
        made = RedisSaver(request.getfixturevalue("redis_url"))
        yield made
        made.client.close()


def on(thread: str = "t", **more: Any) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}, **more}


def counting(builder: Any) -> Any:
    def inc(state: State) -> State:
        return {"count": state["count"] + 1, "log": [f"inc {state['count']}"]}

    def check(state: State) -> State:
        return {"done": state["count"] >= 5}

    def again(state: State) -> str:
        return END if state["done"] else "inc"

    builder.add_node("inc", inc)
    builder.add_node("check", check)
    builder.add_edge(START, "inc")
    builder.add_edge("inc", "check")
    builder.add_conditional_edges("check", again, ["inc", END])
    return builder


def diamond(builder: Any) -> Any:
    def say(name: str) -> Callable[[State], State]:
        return lambda state: {"log": [name, len(state.get("log", []))]}

    for name in ("a", "b", "c", "d"):
        builder.add_node(name, say(name))
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    builder.add_edge("a", "c")
    builder.add_edge(["b", "c"], "d")
    return builder


def fan(send: Any) -> Callable[[Any], Any]:
    def build(builder: Any) -> Any:
        def out(state: State) -> list[Any]:
            return [send("work", {"count": i}) for i in range(state["count"])]

        builder.add_node("list", lambda state: {"log": ["list"]})
        builder.add_node("work", lambda state: {"log": [state["count"] * 10]})
        builder.add_node("report", lambda state: {"done": True})
        builder.add_edge(START, "list")
        builder.add_conditional_edges("list", out, ["work"])
        builder.add_edge("work", "report")
        return builder

    return build


def told(history: Any) -> list[tuple[Any, ...]]:
    return [(s.metadata["source"], s.metadata["step"], tuple(s.next), s.values) for s in history]


CASES: list[tuple[str, Any, Any, Any]] = [
    ("counting", counting, counting, {"count": 0, "done": False}),
    ("diamond", diamond, diamond, {"count": 1}),
    ("fan", fan(Send), fan(OracleSend), {"count": 7}),
    ("empty fan", fan(Send), fan(OracleSend), {"count": 0}),
]


@pytest.mark.parametrize(("name", "ours", "theirs", "given"), CASES, ids=[case[0] for case in CASES])
def test_history_and_result_are_langgraphs(name: str, ours: Any, theirs: Any, given: Any, saver: Saver) -> None:
    graph = ours(StateGraph(State)).compile(checkpointer=saver, name="g")
    oracle = theirs(OracleGraph(State)).compile(checkpointer=OracleSaver())
    for _ in range(2):
        assert graph.invoke(given, on()) == oracle.invoke(given, on(), durability="sync")
        assert told(graph.get_state_history(on())) == told(oracle.get_state_history(on()))
    assert verify(saver.log, "t").sound


@pytest.mark.parametrize(("name", "ours", "theirs", "given"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("mode", ["values", "updates"])
def test_streams_are_langgraphs(name: str, ours: Any, theirs: Any, given: Any, mode: str, saver: Saver) -> None:
    graph = ours(StateGraph(State)).compile(checkpointer=saver, name="g")
    oracle = theirs(OracleGraph(State)).compile(checkpointer=OracleSaver())
    mine = list(graph.stream(given, on(), stream_mode=mode))
    his = list(oracle.stream(given, on(), stream_mode=mode, durability="sync"))
    assert sorted(map(repr, mine)) == sorted(map(repr, his)) if mode == "updates" else mine == his


def chain(*nodes: Any, **options: Any) -> StateGraph:
    builder = StateGraph(State)
    names = [f"n{i}" for i in range(len(nodes))]
    for name, node in zip(names, nodes, strict=True):
        builder.add_node(name, node, **options)
    builder.add_edge(START, names[0])
    for a, b in pairwise(names):
        builder.add_edge(a, b)
    return builder


def test_async_nodes_run_inline_and_on_the_callers_loop(saver: Saver) -> None:
    loops: list[Any] = []

    async def node(state: State) -> State:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return {"count": state["count"] + 1}

    graph = chain(node, lambda state: {"count": state["count"] * 10}).compile(checkpointer=saver, name="g")
    assert graph.invoke({"count": 1}, on("a"))["count"] == 20

    async def main() -> None:
        assert (await graph.ainvoke({"count": 2}, on("b")))["count"] == 30
        chunks = [chunk async for chunk in graph.astream({"count": 3}, on("c"), stream_mode=["updates", "values"])]
        assert chunks[-1] == ("values", {"count": 40, "log": []})
        assert loops[-1] is loops[-2] is asyncio.get_running_loop()

    asyncio.run(main())


def test_an_ainvoke_that_is_cancelled_drives_on_no_further_and_can_be_continued(saver: Saver) -> None:
    began, ran = asyncio.Event(), list[str]()

    async def waits(state: State) -> State:
        ran.append("waits")
        began.set()
        await asyncio.sleep(30 if len(ran) == 1 else 0)
        return {"count": 1}

    def after(state: State) -> State:
        ran.append("after")
        return {"count": state["count"] + 1}

    graph = chain(waits, after).compile(checkpointer=saver, name="g")

    async def main() -> None:
        running = asyncio.ensure_future(graph.ainvoke({"count": 0}, on()))
        await began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert ran == ["waits"]
    assert graph.get_state(on()).next != ()
    assert graph.invoke({"count": 5}, on())["count"] == 2, "what was begun is finished before the next input"
    assert ran == ["waits", "waits", "after", "waits", "after"]


def test_an_astream_that_is_left_early_gives_its_leases_back(saver: Saver) -> None:
    graph = chain(lambda state: {"count": 1}, lambda state: {"count": 2}).compile(checkpointer=saver, name="g")

    async def main() -> None:
        async for _ in graph.astream({"count": 0}, on()):
            break

    asyncio.run(main())
    assert graph.invoke({"count": 5}, on())["count"] == 2


def test_a_task_s_id_in_the_state_is_the_one_its_node_is_told(saver: Saver) -> None:
    told: list[str] = []

    def node(state: State, runtime: Runtime[Any]) -> State:
        told.append(runtime.execution_info.task_id)
        if len(told) == 2:
            raise ValueError("boom")
        return {}

    graph = chain(node, node).compile(checkpointer=saver, name="g")
    with pytest.raises(ValueError, match="boom"):
        graph.invoke({"count": 0}, on())
    assert [task.id for task in graph.get_state(on()).tasks] == told[1:]
    past = [task.id for state in graph.get_state_history(on()) for task in state.tasks]
    assert set(told) <= set(past)


def test_parallel_branches_run_at_the_same_time(saver: Saver) -> None:
    meet = threading.Barrier(2, timeout=10)

    def node(state: State) -> State:
        meet.wait()
        return {"log": [1]}

    builder = StateGraph(State)
    builder.add_node("a", node)
    builder.add_node("b", node)
    builder.add_edge(START, "a")
    builder.add_edge(START, "b")
    assert builder.compile(checkpointer=saver, name="g").invoke({}, on())["log"] == [1, 1]


def test_a_failed_run_raises_the_nodes_error_and_continues_where_it_failed(saver: Saver) -> None:
    calls: list[str] = []

    def first(state: State) -> State:
        calls.append("first")
        return {"count": 1}

    def second(state: State) -> State:
        calls.append("second")
        if len(calls) < 3:
            raise ValueError("not yet")
        return {"done": True}

    graph = chain(first, second).compile(checkpointer=saver, name="g")
    with pytest.raises(ValueError, match="not yet"):
        graph.invoke({"count": 0}, on())
    state = graph.get_state(on())
    assert state.next == ("n1",)
    assert "not yet" in (state.tasks[0].error or "")
    assert graph.invoke(None, on()) == {"count": 1, "done": True, "log": []}
    assert calls == ["first", "second", "second"]
    assert graph.get_state(on()).next == ()


def test_a_sibling_of_a_failed_task_is_not_run_again(saver: Saver) -> None:
    calls: list[str] = []

    def bad(state: State) -> State:
        calls.append("bad")
        if calls.count("bad") == 1:
            raise KeyError("x")
        return {"log": ["bad"]}

    def good(state: State) -> State:
        calls.append("good")
        return {"log": ["good"]}

    builder = StateGraph(State)
    builder.add_node("bad", bad)
    builder.add_node("good", good)
    builder.add_edge(START, "bad")
    builder.add_edge(START, "good")
    graph = builder.compile(checkpointer=saver, name="g")
    with pytest.raises(KeyError):
        graph.invoke({}, on())
    assert graph.get_state(on()).next == ("bad",)
    assert graph.get_state(on()).values["log"] == ["good"]
    assert graph.invoke(None, on())["log"] == ["bad", "good"]
    assert sorted(calls) == ["bad", "bad", "good"]


def test_a_retry_policy_is_kept_and_attempts_are_counted(saver: Saver) -> None:
    attempts: list[int] = []

    def node(state: State, runtime: Runtime[Any]) -> State:
        attempts.append(runtime.execution_info.node_attempt)
        if len(attempts) < 3:
            raise ConnectionError("away")
        return {"count": 9}

    policy = RetryPolicy(initial_interval=0.01, jitter=False)
    graph = chain(node, retry_policy=policy).compile(checkpointer=saver, name="g")
    assert graph.invoke({"count": 0}, on())["count"] == 9
    assert attempts == [1, 2, 3]


def test_who_says_go_on_gives_the_policy_all_its_attempts_again(saver: Saver) -> None:
    """As in LangGraph, where three attempts are followed by three more."""
    attempts: list[int] = []

    def node(state: State, runtime: Runtime[Any]) -> State:
        attempts.append(runtime.execution_info.node_attempt)
        raise ConnectionError("away")

    policy = RetryPolicy(initial_interval=0.01, jitter=False, max_attempts=3)
    graph = chain(node, retry_policy=policy).compile(checkpointer=saver, name="g")
    for rounds in (1, 2):
        with pytest.raises(ConnectionError, match="away"):
            graph.invoke({"count": 0} if rounds == 1 else None, on())
        assert attempts == list(range(1, 3 * rounds + 1)), "the number of an attempt goes on"


def test_a_timeout_ends_sync_and_async_nodes(saver: Saver) -> None:
    release = threading.Event()

    def slow(state: State) -> State:
        release.wait(10)
        return {"count": 1}

    async def aslow(state: State) -> State:
        await asyncio.sleep(10)
        return {"count": 1}

    for i, node in enumerate((slow, aslow)):
        graph = chain(node, timeout=0.05).compile(checkpointer=saver, name="g")
        with pytest.raises(NodeTimeoutError, match=r"0\.05 s"):
            graph.invoke({"count": 0}, on(f"t{i}"))
    release.set()


def test_conflicting_writes_fail_the_run_and_never_the_thread(saver: Saver) -> None:
    builder = StateGraph(State)
    builder.add_node("a", lambda state: {"count": 1})
    builder.add_node("b", lambda state: {"count": 2})
    builder.add_edge(START, "a")
    builder.add_edge(START, "b")
    graph = builder.compile(checkpointer=saver, name="g")
    with pytest.raises(InvalidUpdateError, match="one value"):
        graph.invoke({}, on())
    assert graph.get_state(on()).values == {"log": []}
    with pytest.raises(InvalidUpdateError):
        graph.invoke({"count": 5}, on())


def test_a_reducer_that_raises_on_one_task_leaves_the_thread_usable(saver: Saver) -> None:
    graph = chain(lambda state: {"log": state["count"]}).compile(checkpointer=saver, name="g")
    with pytest.raises(InvalidUpdateError, match="log"):
        graph.invoke({"count": 3}, on())
    graph.update_state(on(), {"count": 1}, as_node="n0")
    assert graph.get_state(on()).values["count"] == 1


def test_the_recursion_limit_saves_the_last_checkpoint_and_can_go_on(saver: Saver) -> None:
    builder = StateGraph(State)
    builder.add_node("a", lambda state: {"count": state["count"] + 1})
    builder.add_edge(START, "a")
    builder.add_conditional_edges("a", lambda state: "a" if state["count"] < 6 else END)
    graph = builder.compile(checkpointer=saver, name="g")
    with pytest.raises(GraphRecursionError, match="4"):
        graph.invoke({"count": 0}, on(recursion_limit=4))
    assert graph.get_state(on()).values["count"] == 4
    assert graph.invoke(None, on(recursion_limit=4))["count"] == 6


def test_update_state_acts_as_a_node_and_waits(saver: Saver) -> None:
    graph = chain(*[lambda state: {"count": state["count"] + 1}] * 3).compile(checkpointer=saver, name="g")
    graph.update_state(on(), {"count": 10}, as_node="n0")
    state = graph.get_state(on())
    assert (state.values["count"], state.next, state.metadata) == (
        10,
        ("n1",),
        {"source": "update", "step": 0, "parents": {}},
    )
    assert graph.invoke(None, on())["count"] == 12


def test_what_a_node_mutates_never_reaches_the_state(saver: Saver) -> None:
    kept: list[Any] = ["mine"]

    def first(state: State) -> State:
        state["log"].append("stray")
        return {"log": kept}

    def second(state: State) -> State:
        kept.append("late")
        return {"count": len(state["log"])}

    graph = chain(first, second).compile(checkpointer=saver, name="g")
    assert graph.invoke({"count": 0}, on()) == {"count": 1, "log": ["mine"]}


def test_a_run_id_makes_an_invoke_idempotent(saver: Saver) -> None:
    calls: list[int] = []

    def node(state: State) -> State:
        calls.append(1)
        return {"count": state["count"] + 1}

    graph = chain(node).compile(checkpointer=saver, name="g")
    assert graph.invoke({"count": 1}, on(), run_id="r1")["count"] == 2
    assert graph.invoke({"count": 1}, on(), run_id="r1")["count"] == 2
    assert calls == [1]
    with pytest.raises(RunConflict):
        graph.invoke({"count": 7}, on(), run_id="r1")


def test_two_invokes_on_one_thread_lose_nothing(saver: Saver) -> None:
    def node(state: State) -> State:
        time.sleep(0.01)
        return {"log": [state["count"]]}

    graph = chain(node).compile(checkpointer=saver, name="g")
    threads = [threading.Thread(target=graph.invoke, args=({"count": i}, on())) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(graph.get_state(on()).values["log"]) == [0, 1, 2, 3]
    assert verify(saver.log, "t").sound


@pytest.mark.parametrize("bad", [True, {"a": 1}, [1], b"x", "", "x" * 513, "a\nb", 1.5])
def test_a_thread_id_that_is_none_is_refused(bad: Any, saver: Saver) -> None:
    graph = chain(lambda state: {}).compile(checkpointer=saver, name="g")
    with pytest.raises(InvalidThreadId):
        graph.invoke({"count": 1}, on(bad))
    assert list(saver.log.threads()) == []


def test_bad_input_is_refused_before_anything_is_written(saver: Saver) -> None:
    graph = chain(lambda state: {}).compile(checkpointer=saver, name="g")
    for bad, error in [({"cuont": 1}, InvalidInput), ([1], InvalidInput), ({"count": object()}, UnknownType)]:
        with pytest.raises(error):
            graph.invoke(bad, on())
    with pytest.raises(EmptyInputError):
        graph.invoke(None, on())
    with pytest.raises(InvalidInput):
        graph.invoke({"count": 1}, {})
    assert list(saver.log.threads()) == []


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        ([1], InvalidUpdateError),
        ({"cuont": 1}, InvalidUpdateError),
        ({"count": object()}, UnknownType),
        ({"count": "x" * 9_000_000}, TooLarge),
    ],
)
def test_what_a_node_may_not_return_fails_with_its_name_and_the_thread_stays_usable(
    returned: Any, error: Any, saver: Saver
) -> None:
    answers = [returned, {"count": 3}]
    graph = chain(lambda state: answers.pop(0)).compile(checkpointer=saver, name="g")
    with pytest.raises(error) as raised:
        graph.invoke({"count": 1}, on())
    assert "n0" in str(raised.value) or "count" in str(raised.value)
    assert graph.invoke({"count": 1}, on())["count"] == 3


def test_a_graph_without_checkpointer_keeps_nothing() -> None:
    graph = chain(lambda state: {"count": state["count"] + 1}).compile()
    assert graph.invoke({"count": 1})["count"] == 2
    with pytest.raises(InvalidInput, match="checkpointer"):
        graph.get_state(on())


def test_the_idempotency_key_is_the_same_over_attempts_and_differs_between_tasks(saver: Saver) -> None:
    keys: list[str] = []

    def node(state: State, runtime: Runtime[Any]) -> State:
        keys.append(runtime.idempotency_key)
        if len(keys) == 1:
            raise ConnectionError
        return {"count": 1}

    policy = RetryPolicy(initial_interval=0.01, jitter=False)
    chain(node, node, retry_policy=policy).compile(checkpointer=saver, name="g").invoke({"count": 0}, on())
    assert keys[0] == keys[1] != keys[2]


def test_a_snapshot_comes_by_size_and_large_ones_in_parts(saver: Saver) -> None:
    graph: CompiledGraph = chain(lambda state: {"log": [os.urandom(40_000)]}).compile(checkpointer=saver, name="g")
    small = chain(lambda state: {"count": int.from_bytes(os.urandom(4))}).compile(checkpointer=saver, name="g")
    for i in range(260):
        small.invoke({"count": i}, on("small"))
    for i in range(5):
        graph.invoke({"count": i}, on())
        graph.update_state(on(), {"log": [os.urandom(1000)] * 4, "done": True}, as_node="n0")
    for _ in range(6):
        graph.update_state(on(), {"note": os.urandom(200_000)}, as_node="n0")
    for thread in ("small", "t"):
        found = [x for x in saver.log.read(thread) if x.is_checkpoint and "floor" in x.raw]
        assert found, thread
        assert ("parts" in found[-1].raw) == (thread == "t")
        assert verify(saver.log, thread).sound
    assert len(graph.get_state(on()).values["log"]) == 25
    cold = CompiledGraph(graph.spec, saver)
    assert cold.get_state(on()).values == graph.get_state(on()).values
    assert cold.invoke({"count": 1}, on())["count"] == 1


def test_a_snapshot_between_queue_and_start_of_an_input_loses_nothing(saver: Saver) -> None:
    begun, go = threading.Event(), threading.Event()

    def node(state: State) -> State:
        begun.set()
        go.wait(10)
        return {"note": os.urandom(50_000), "count": state["count"] + 1}

    graph = chain(node).compile(checkpointer=saver, name="g")
    graph.update_state(on(), {"note": os.urandom(50_000)}, as_node="n0")
    first = threading.Thread(target=graph.invoke, args=({"count": 1}, on()))
    first.start()
    begun.wait(10)
    second = threading.Thread(target=graph.invoke, args=({"count": 7, "log": ["x" * 100]}, on()))
    second.start()
    wait_for(lambda: any(x.kind == "run_queued" for x in saver.log.read("t")), 10, "the queued input")
    go.set()
    first.join(30)
    second.join(30)
    kinds = [x.kind if not x.is_checkpoint else "snapshot" if "floor" in x.raw else "step" for x in saver.log.read("t")]
    assert kinds.index("run_queued") < kinds.index("snapshot"), "the shape under test"
    assert CompiledGraph(graph.spec, saver).get_state(on()).values["log"] == ["x" * 100]
    assert graph.get_state(on()).values["count"] == 8
    assert verify(saver.log, "t").sound


def test_the_context_reaches_nodes_with_its_type(saver: Saver) -> None:
    seen: list[Any] = []

    def node(state: State, runtime: Runtime[Any]) -> State:
        seen.append(runtime.context)
        return {"count": 1}

    builder = StateGraph(State, Tenant)
    builder.add_node("n", node)
    builder.add_edge(START, "n")
    graph = builder.compile(checkpointer=saver, name="g")
    graph.invoke({"count": 0}, on("a"), context=Tenant("acme"))
    graph.invoke({"count": 0}, on("b"), context={"name": "acme"})
    assert seen == [Tenant("acme"), Tenant("acme")]


def test_a_context_that_does_not_fit_fails_the_run_before_any_node(saver: Saver) -> None:
    """Also where no node and no router asks for it."""
    ran: list[State] = []
    builder = StateGraph(State, Tenant).add_node("n", ran.append).add_edge(START, "n")
    with pytest.raises(InvalidInput, match="The context does not fit Tenant"):
        builder.compile(checkpointer=saver, name="g").invoke({"count": 0}, on(), context={"size": 1})
    assert not ran


# leaving, waiting and giving back


class Caller(threading.Thread):
    """Calls something in a thread that holds up nobody. `ended()` gives what it returned or raised."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self.call, self.args = call, args
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call(*self.args)
        except BaseException as error:  # noqa: BLE001 - what it raised is asked for
            self.result = error

    def ended(self) -> Any:
        self.join(20)
        assert not self.is_alive(), "the caller hangs"
        return self.result


def free(saver: Saver) -> tuple[Lease, ...]:
    """What another caller would be given of the thread."""
    leases = saver.moves.claim(Offer("other", tuple(f"token{i}" for i in range(9)), thread="t")).leases
    saver.moves.release("other", [lease.token for lease in leases], "job")
    return leases


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, SystemExit])
@pytest.mark.parametrize("form", ["alone", "in a thread", "async"])
def test_whatever_a_node_raises_fails_the_node_and_nothing_else(error: Any, form: str, saver: Saver) -> None:
    calls: list[int] = []

    def node(state: State) -> State:
        calls.append(1)
        if len(calls) == 1:
            raise error("enough")
        return {"count": 3}

    async def anode(state: State) -> State:
        return node(state)

    options = {"timeout": 20} if form == "in a thread" else {}
    graph = chain(anode if form == "async" else node, **options).compile(checkpointer=saver, name="g")
    assert isinstance(Caller(graph.invoke, {"count": 0}, on()).ended(), RunFailed)
    assert graph.get_state(on()).next == ("n0",)
    assert Caller(graph.invoke, None, on()).ended()["count"] == 3


def test_ctrl_c_reaches_the_caller_and_the_task_is_given_back(saver: Saver) -> None:
    calls: list[int] = []

    def node(state: State) -> State:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"log": [state["count"]]}

    graph = chain(node).compile(checkpointer=saver, name="g")
    with pytest.raises(KeyboardInterrupt):
        graph.invoke({"count": 1}, on())
    assert [(lease.node, lease.attempt) for lease in free(saver)] == [("n0", 1)]
    assert saver.keeper is None or saver.keeper.held == ()
    assert Caller(graph.invoke, {"count": 2}, on()).ended()["log"] == [1, 2]


def test_a_caller_that_leaves_by_an_error_gives_its_leases_back(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = diamond(StateGraph(State)).compile(checkpointer=saver, name="g")
    load = Performer.load

    def broken(self: Performer, lease: Lease) -> Any:
        if lease.node == "b":
            raise ZeroDivisionError
        return load(self, lease)

    with monkeypatch.context() as patch:
        patch.setattr(Performer, "load", broken)
        with pytest.raises(ZeroDivisionError):
            graph.invoke({"count": 1}, on())
    assert sorted(lease.node for lease in free(saver)) == ["b", "c"]
    assert saver.keeper is None or saver.keeper.held == ()


def test_leases_are_no_longer_renewed_when_giving_them_back_fails(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node(state: State) -> State:
        raise KeyboardInterrupt

    def away(*args: Any) -> int:
        raise ServerUnavailable("away")

    monkeypatch.setattr(saver.moves, "release", away)
    with pytest.raises(KeyboardInterrupt):
        chain(node).compile(checkpointer=saver, name="g").invoke({"count": 1}, on())
    assert saver.keeper is None or saver.keeper.held == ()


def test_two_graphs_on_one_thread_wait_for_each_other(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, released = threading.Event(), threading.Event(), threading.Event()

    def node(state: State) -> State:
        begun.set()
        go.wait(20)
        return {"log": ["first"]}

    builder = StateGraph(State)
    for name in ("a", "b"):
        builder.add_node(name, node)
        builder.add_edge(START, name)
    first = builder.compile(checkpointer=saver, name="first")
    second = chain(lambda state: {"log": ["second"]}).compile(checkpointer=saver, name="second")
    release = saver.moves.release

    def noted(*args: Any) -> int:
        released.set()
        return release(*args)

    monkeypatch.setattr(saver.moves, "release", noted)
    one = Caller(first.invoke, {}, on(max_concurrency=1))
    assert begun.wait(20)
    two = Caller(second.invoke, {}, on())
    assert released.wait(20), "the second caller met a task of the first one's"
    go.set()
    assert one.ended()["log"] == ["first", "first"]
    assert two.ended()["log"] == ["first", "first", "second"]
    assert not any(x.kind == "task_parked" for x in saver.log.read("t"))


def test_in_one_process_a_run_that_nobody_serves_is_refused_at_once() -> None:
    saver = InMemorySaver()

    def bad(state: State) -> State:
        raise ValueError

    with pytest.raises(ValueError):
        chain(bad).compile(checkpointer=saver, name="first").invoke({"count": 1}, on())
    second = chain(bad).compile(checkpointer=saver, name="second")
    assert isinstance(Caller(second.invoke, None, on()).ended(), UnknownNode)


def test_a_caller_whose_thread_was_deleted_is_told(saver: Saver) -> None:
    def node(state: State) -> State:
        raise ConnectionError

    policy = RetryPolicy(initial_interval=60, jitter=False)
    caller = Caller(chain(node, retry_policy=policy).compile(checkpointer=saver, name="g").invoke, {"count": 0}, on())
    wait_for(lambda: any(x.kind == "task_failed" for x in saver.log.read("t")), 10, "the wait for the retry")
    saver.log.delete("t")
    ended = caller.ended()
    assert isinstance(ended, RunCancelled)
    assert "deleted" in str(ended)


def test_a_thread_that_was_made_anew_is_not_the_one_that_was_followed(saver: Saver) -> None:
    begin = e.fact("note", "r", birth="one")
    saver.log.append("t", [begin, e.fact("note", "r")], None)
    follower = Follower(saver.log, "t", "r", "0-1")
    assert follower.look() is None
    saver.log.delete("t")
    if isinstance(saver, RedisSaver):
        saver.client.delete(saver.keys.thread("t"))
    saver.log.append("t", [e.fact("note", "s", birth="two"), e.fact("note", "s")], None)
    with pytest.raises(RunCancelled):
        follower.look()


def test_a_stuck_attempt_does_not_keep_its_retry_from_running(saver: Saver) -> None:
    release, calls = threading.Event(), list[int]()

    def node(state: State) -> State:
        calls.append(1)
        if len(calls) < 3:
            release.wait(30)
        return {"count": 7}

    policy = RetryPolicy(initial_interval=0.01, jitter=False, retry_on=NodeTimeoutError)
    graph = chain(node, timeout=0.1, retry_policy=policy).compile(checkpointer=saver, name="g")
    try:
        assert Caller(graph.invoke, {"count": 0}, on(max_concurrency=1)).ended()["count"] == 7
        assert len(calls) == 3
    finally:
        release.set()


STUCK = """
import threading
from everstep import START, InMemorySaver, StateGraph

builder = StateGraph(dict)
builder.add_node("n", lambda state: threading.Event().wait(), timeout=0.1)
builder.add_edge(START, "n")
try:
    builder.compile().invoke({})
except Exception as error:
    print(type(error).__name__)
"""

FORKED = """
import os, sys
from typing import TypedDict
from everstep import START, RedisSaver, StateGraph

class State(TypedDict, total=False):
    n: int

saver = RedisSaver(sys.argv[1])
before = saver.owner, saver.keeper
graph = StateGraph(State).add_node("n", lambda state: {"n": state["n"] + 1}).add_edge(START, "n")
graph = graph.compile(checkpointer=saver, name="g")
graph.invoke({"n": 1}, {"configurable": {"thread_id": "t"}})
child = os.fork()
if child == 0:
    assert saver.owner != before[0] and saver.keeper is not before[1]
    assert graph.invoke({"n": 5}, {"configurable": {"thread_id": "t"}})["n"] == 6
    os._exit(7)
assert saver.owner == before[0]
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def script(text: str, *args: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", text, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


def test_a_stuck_node_does_not_keep_the_interpreter_from_ending() -> None:
    assert script(STUCK.replace("StateGraph(dict)", "StateGraph(__import__('typing').TypedDict('S', {'n': int}))")) == (
        "NodeTimeoutError"
    )


def test_a_forked_child_has_a_name_and_a_keeper_of_its_own(redis_url: str) -> None:
    assert script(FORKED, redis_url) == "7"


def test_the_keeper_outlives_an_unexpected_error() -> None:
    rounds: list[tuple[str, ...]] = []

    class Moves(LogMoves):
        def renew(self, offer: Offer, before: int, *, registry: bool = False, callers: Sequence[str] = ()) -> Renewed:
            rounds.append(offer.tokens)
            if len(rounds) == 1:
                raise KeyError("unexpected")
            return Renewed([], 0)

    saver = InMemorySaver()
    keeper = LeaseKeeper(Moves(saver.log), "me", 30)
    lease = Lease("token", "t", 0, "", "n", "n", 1, 0, "g", 0, "r", "g", 1, "", "", "", -2, LEASE_MS, 0, "")
    keeper.hold([lease])
    wait_for(lambda: len(rounds) >= 2, 10, "a second round")
    keeper.drop("token")
    assert rounds[1] == ("token",)


def test_a_cold_process_knows_queued_inputs_and_when_a_retry_is_due() -> None:
    saver = InMemorySaver()
    calls: list[int] = []

    def node(state: State) -> State:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError
        return {"log": [state["count"]]}

    policy = RetryPolicy(initial_interval=60, jitter=False)
    graph = chain(node, retry_policy=policy).compile(checkpointer=saver, name="g")
    Caller(graph.invoke, {"count": 1}, on())
    wait_for(lambda: any(x.kind == "task_failed" for x in saver.log.read("t")), 10, "the wait for the retry")
    Caller(graph.invoke, {"count": 2}, on())
    wait_for(lambda: any(x.kind == "run_queued" for x in saver.log.read("t")), 10, "the queued input")
    saver.moves = cold = LogMoves(saver.log)
    assert 40 < (cold.due_in("t") or 0) <= 60
    cold.cancel("t")
    wait_for(lambda: graph.get_state(on()).values.get("log") == [2], 10, "the queued input's run")


def test_writes_that_exclude_each_other_are_told_with_the_nodes_that_wrote_them() -> None:
    built = StateGraph(Shared)
    for name, said in (("a", 1), ("b", 2)):
        built.add_node(name, lambda state, said=said: {"x": said}).add_edge(START, name)
    with pytest.raises(InvalidUpdateError) as told:
        built.compile(name="clash").invoke({"x": 0})
    assert told.value.what.startswith("At key 'x': can take only one value per step, and got 2 from the nodes 'a', 'b'")


class Shared(TypedDict):
    x: int
