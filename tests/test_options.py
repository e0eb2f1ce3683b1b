"""Options of nodes: what a node is given and when it runs, inline and on workers, equal to LangGraph's."""

import asyncio
import operator
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Annotated, Any, NotRequired, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph import managed as their_managed
from langgraph.checkpoint.memory import InMemorySaver as TheirSaver
from langgraph.graph import StateGraph as TheirStateGraph
from langgraph.types import Send as TheirSend
from pydantic import BaseModel

from everstep_checkpoint.errors import GraphError, NodeTimeoutError
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph import managed
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.managed import IsLastStep, RemainingSteps
from everstep_scheduler.graph.options import TimeoutPolicy
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Runtime, Send
from everstep_scheduler.inline.logmoves import LogMoves
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from everstep_scheduler.steps.timing import Pace
from test_worker import running

Config = dict[str, Any]
OURS = SimpleNamespace(StateGraph=StateGraph, Send=Send, Saver=InMemorySaver, managed=managed)
THEIRS = SimpleNamespace(StateGraph=TheirStateGraph, Send=TheirSend, Saver=TheirSaver, managed=their_managed)


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def says(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda state: {"log": [name]}


def on(thread: str, **more: Any) -> Config:
    return {"configurable": {"thread_id": thread}, **more}


# -- defer


def test_a_deferral_survives_a_failure_and_another_process() -> None:
    """While `d` waits, its longer branch fails; who only has the log goes on with both."""
    mended: list[bool] = []

    def failing(state: Log) -> dict[str, Any]:
        if not mended:
            raise RuntimeError("not yet")
        return {"log": ["b"]}

    builder = StateGraph(Log).add_node("a", says("a")).add_node("b", failing).add_node("d", says("d"), defer=True)
    builder.add_edge(START, "a").add_edge("a", "d").add_edge("a", "b").add_edge("b", "d")
    saver, other = InMemorySaver(), InMemorySaver()
    try:
        builder.compile(saver).invoke({"log": []}, on("t"))
    except RuntimeError:
        mended.append(True)
    other.log, other.moves = saver.log, LogMoves(saver.log)
    graph = builder.compile(other)
    assert graph.get_state(on("t")).next == ("b",)
    assert graph.get_state(on("t")).values == {"log": ["a"]}
    assert graph.invoke(None, on("t")) == {"log": ["a", "b", "d"]}


# -- defaults


def test_what_a_node_says_wins_over_the_defaults_and_the_order_of_calls_does_not_matter() -> None:
    mine, usual = RetryPolicy(max_attempts=7), RetryPolicy(max_attempts=2)
    builder = StateGraph(Log).add_node("plain", says("plain")).add_node("own", says("own"), retry_policy=mine)
    builder.set_node_defaults(retry_policy=usual, timeout=5).set_node_defaults(timeout=timedelta(seconds=9))
    builder.add_node("none", says("none"), retry_policy=(), timeout=1)
    builder.add_sequence([("first", says("first"))])
    for name in ("plain", "own", "none", "first"):
        builder.add_edge(START, name)
    found = {
        name: ([x.max_attempts for x in node.retry], node.timeout_s) for name, node in builder.spec().nodes.items()
    }
    assert found == {"plain": ([2], 9), "own": ([7], 9), "none": ([], 1), "first": ([2], 9)}


def test_a_default_that_is_no_policy_is_refused_at_once() -> None:
    with pytest.raises(GraphError, match="is no RetryPolicy"):
        StateGraph(Log).set_node_defaults(retry_policy=3)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="can't be kept"):
        StateGraph(Log).set_node_defaults(timeout=0)


# -- managed values


def managed_story(lib: Any, limit: int) -> list[Any]:
    """What nodes and routers see: in a loop up to the limit, on going on after it, at an update, in a Send's router."""
    seen: list[tuple[Any, ...]] = []
    ended: list[Any] = []

    class State(TypedDict):
        log: Annotated[list[str], operator.add]
        left: lib.managed.RemainingSteps
        last: NotRequired[lib.managed.IsLastStep]

    def sees(name: str, more: Callable[[Any], Any] = lambda state: ["a"]) -> Callable[[Any], Any]:
        def node(state: Any) -> Any:
            seen.append((name, state.get("left"), state.get("last"), len(state.get("log", []))))
            return more(state)

        return node

    builder = lib.StateGraph(State)
    builder.add_node("a", sees("a", lambda state: {"log": ["a"], "left": 77}))
    builder.add_node("b", sees("b", lambda state: {**state, "log": ["b"]}))
    builder.add_node("sent", sees("sent", lambda state: {"log": ["sent"]}))
    builder.add_conditional_edges(START, sees("start"), ["a"])
    ends = ["b", "sent", END]
    turn = sees("router", lambda state: END if state["last"] else ["b", lib.Send("sent", {"log": []})])
    builder.add_conditional_edges("a", turn, ends)
    builder.add_edge("b", "a")
    builder.add_conditional_edges("sent", sees("sent router", lambda state: []), ends)
    graph = builder.compile(checkpointer=lib.Saver())
    config = on("t", recursion_limit=limit)
    for data in ({"log": ["x"], "left": 5}, {"log": ["y"]}, None, "update", None):
        if data == "update":
            graph.update_state(config, {"log": ["u"]}, as_node="a")
            continue
        try:
            graph.invoke(data, config)
        except Exception as error:  # noqa: BLE001 - both must raise it
            ended.append(type(error).__name__ if graph.get_state(config).next else "done")
    return [*sorted(seen, key=str), ended, [snapshot.values for snapshot in graph.get_state_history(config)]]


@pytest.mark.parametrize("limit", [3, 4, 5, 6])
def test_managed_values_are_langgraphs_and_are_never_stored(limit: int) -> None:
    ours, theirs = (managed_story(lib, limit) for lib in (OURS, THEIRS))
    assert ours == theirs
    assert any(each[2] for each in ours if isinstance(each, tuple)), "some step was the last"


@pytest.mark.parametrize("kind", ["dataclass", "pydantic"])
def test_a_class_of_state_is_built_with_its_managed_values(kind: str) -> None:
    class Model(BaseModel):
        n: int
        left: RemainingSteps
        last: IsLastStep

    @dataclass
    class Data:
        n: int
        left: RemainingSteps
        last: IsLastStep = False

    schema: Any = Model if kind == "pydantic" else Data

    def node(state: Any) -> Any:
        return schema(n=state.n + state.left, left=0, last=True)

    builder = StateGraph(schema).add_node("a", node).add_edge(START, "a").add_node("b", node).add_edge("a", "b")
    assert builder.compile().invoke({"n": 1}, {"recursion_limit": 5}) == {"n": 1 + 4 + 3}
    assert list(builder.spec().input_schema_json()["properties"]) == ["n"]


def test_a_managed_value_goes_neither_in_nor_out_and_is_no_channel() -> None:
    class Narrow(TypedDict):
        left: RemainingSteps

    class Other(TypedDict):
        left: int

    with pytest.raises(GraphError, match="Narrow has the managed value 'left'"):
        StateGraph(Log, output_schema=Narrow)
    with pytest.raises(GraphError, match="managed value in one schema and stored in another"):
        StateGraph(Narrow).add_node("a", says("a"), input_schema=Other)


# -- metadata


def metadata_story(lib: Any) -> list[Any]:
    """The metadata that each node and router is told, without the ids of tasks."""
    seen: list[Any] = []

    def tells(who: str, more: Any = None) -> Callable[[Any, Any], Any]:
        def node(state: Any, config: RunnableConfig) -> Any:
            told: dict[str, Any] = dict(config["metadata"])
            name, _, key = str(told.pop("langgraph_checkpoint_ns", ":")).partition(":")
            seen.append((who, name, bool(key), told, tuple(config["configurable"]["thread_id"])))
            return more

        return node

    builder = lib.StateGraph(Log)
    builder.add_node("a", tells("a"), metadata={"own": 1, "k": "node", "langgraph_node": "mine"})
    for name in "bcd":
        builder.add_node(name, tells(name))
    builder.add_conditional_edges(START, tells("start", ["a", "b"]), ["a", "b"])
    builder.add_conditional_edges("a", tells("router", [lib.Send("c", i) for i in range(3)]), ["c"])
    builder.add_edge(["a", "b"], "d").add_edge("a", "b")
    graph = builder.compile(checkpointer=lib.Saver())
    graph.invoke({"log": []}, on("t", metadata={"k": "run", "r": [1]}))
    graph.update_state(on("t"), {"log": []}, as_node="a")
    return sorted(seen, key=str)


def test_the_metadata_of_a_config_says_where_the_task_stands_as_in_langgraph() -> None:
    assert metadata_story(OURS) == metadata_story(THEIRS)


def test_sends_of_several_parts_are_numbered_through() -> None:
    numbers: list[int] = []

    def node(state: Any, config: dict[str, Any]) -> None:
        numbers.append(config["metadata"]["langgraph_path"][1])

    builder = StateGraph(Log).add_node("a", node)
    builder.add_conditional_edges(START, lambda state: [Send("a", i) for i in range(300)], ["a"])
    builder.compile().invoke({"log": []})
    assert sorted(numbers) == list(range(300))


# -- timeouts


IDLE = TimeoutPolicy(run_timeout=60, idle_timeout=0.5)


def stuck(state: Log) -> dict[str, Any]:
    let_go.wait(20)
    return {"log": ["late"]}


def beats(state: Log, runtime: Runtime[Any]) -> dict[str, Any]:
    end = time.monotonic() + 0.8
    while time.monotonic() < end:
        time.sleep(0.01)
        runtime.heartbeat()
    return {"log": ["beats"]}


async def async_stuck(state: Log) -> dict[str, Any]:
    await asyncio.sleep(20)
    return {"log": ["late"]}


async def async_beats(state: Log, runtime: Runtime[Any]) -> dict[str, Any]:
    end = time.monotonic() + 0.8
    while time.monotonic() < end:
        await asyncio.sleep(0.01)
        runtime.heartbeat()
    return {"log": ["beats"]}


let_go = threading.Event()


@pytest.fixture
def freed() -> Iterator[None]:
    """Threads of nodes that are stuck end with the test."""
    let_go.clear()
    yield
    let_go.set()


@pytest.mark.parametrize(("idle", "alive"), [(stuck, beats), (async_stuck, async_beats)], ids=["sync", "async"])
@pytest.mark.parametrize("engine", ["memory", "redis", "workers"])
def test_a_node_without_progress_is_over_its_time_and_one_with_heartbeats_is_not(
    engine: str, idle: Any, alive: Any, request: pytest.FixtureRequest, freed: None
) -> None:
    graphs = {
        name: StateGraph(Log).add_node(name, node, timeout=IDLE) for name, node in (("idle", idle), ("ok", alive))
    }
    for name, builder in graphs.items():
        builder.add_edge(START, name)
    with ExitStack() as ending:
        if engine == "workers":
            url = request.getfixturevalue("redis_url")
            ending.enter_context(running(url, *(builder.spec(name) for name, builder in graphs.items()), grace_s=0.1))
            client = ending.enter_context(connect(url))
            made: dict[str, Any] = {name: client.graph(name, builder.compile()) for name, builder in graphs.items()}
        else:
            saver = InMemorySaver() if engine == "memory" else RedisSaver(request.getfixturevalue("redis_url"))
            made = {name: builder.compile(saver, name=name) for name, builder in graphs.items()}
        assert made["ok"].invoke({"log": []}, on("ok")) == {"log": ["beats"]}
        with pytest.raises(NodeTimeoutError, match=r"no progress for 0\.5 s"):
            made["idle"].invoke({"log": []}, on("idle"))
        let_go.set()


def test_an_idle_timeout_is_tried_again_by_a_policy() -> None:
    tried: list[int] = []

    async def node(state: Log) -> dict[str, Any]:
        tried.append(1)
        await asyncio.sleep(0 if len(tried) == 2 else 20)
        return {"log": ["at last"]}

    builder = StateGraph(Log).add_edge(START, "node")
    policy = RetryPolicy(initial_interval=0, jitter=False)
    builder.add_node(node, timeout=TimeoutPolicy(idle_timeout=0.05), retry_policy=policy)
    assert builder.compile().invoke({"log": []}) == {"log": ["at last"]}


def test_a_pace_is_due_at_what_comes_first_and_progress_moves_only_the_idle_limit() -> None:
    pace = Pace(run_s=10, idle_s=3)
    pace.begin()
    assert pace.limited and pace.due == pace.began + 3
    pace.seen = pace.began + 5
    assert pace.due == pace.began + 8
    pace.seen = pace.began + 9
    assert pace.due == pace.began + 10
    strict = Pace(idle_s=3, auto=False)
    strict.begin()
    before = strict.seen
    strict.progress()
    assert strict.seen == before
    strict.heartbeat()
    assert strict.seen >= before
    assert not Pace().limited and Pace().due == float("inf")


def test_a_streamed_value_is_progress_unless_heartbeats_alone_count() -> None:
    def talks(state: Log, runtime: Runtime[Any]) -> dict[str, Any]:
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            time.sleep(0.01)
            runtime.stream_writer("still here")
        return {"log": ["said"]}

    for refresh_on in ("auto", "heartbeat"):
        policy = TimeoutPolicy(idle_timeout=0.5, refresh_on=refresh_on)
        graph = StateGraph(Log).add_node(talks, timeout=policy).add_edge(START, "talks").compile()
        if refresh_on == "auto":
            assert graph.invoke({"log": []}) == {"log": ["said"]}
        else:
            with pytest.raises(NodeTimeoutError, match="no progress"):
                graph.invoke({"log": []})
