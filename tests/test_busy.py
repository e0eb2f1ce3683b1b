"""An input on a thread where a run is under way: it waits, is refused, or takes its place. From every door."""

from __future__ import annotations

import asyncio
import json
import operator
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest

from everstep.cli import CONFLICT, main
from everstep_checkpoint.errors import InvalidInput, RunCancelled, ThreadBusy
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import Client, connect, publish
from everstep_scheduler.client.inbox import InboxReader
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.reading.children import children
from hand import KEYS, working
from servers import wait_for
from test_moves import Stage
from test_moves import on as staged
from test_moves_wide import open_wide, pop, sweep

ON: dict[str, Any] = {"configurable": {"thread_id": "t"}}


class State(TypedDict, total=False):
    count: int
    log: Annotated[list[Any], operator.add]


class Gate:
    """A node that says it is in, and waits until it may go on."""

    def __init__(self) -> None:
        self.inside, self.open = threading.Event(), threading.Event()

    def __call__(self, state: State) -> State:
        if state["count"] == 0:
            self.inside.set()
            assert self.open.wait(20)
        return {"log": [f"second of {state['count']}"]}


def gated(gate: Gate) -> StateGraph:
    made = StateGraph(State)
    made.add_node("first", lambda state: {"log": [f"first of {state['count']}"]})
    made.add_node("second", gate)
    made.add_edge(START, "first")
    made.add_edge("first", "second")
    made.add_edge("second", END)
    return made


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Iterator[Saver]:
    if request.param == "memory":
        yield InMemorySaver()
    else:
        made = RedisSaver(request.getfixturevalue("redis_url"))
        yield made
        made.client.close()


def held_at(gate: Gate, call: Callable[[], Any], pool: ThreadPoolExecutor) -> Any:
    """Somebody's run, which waits in the gate."""
    first = pool.submit(call)
    assert gate.inside.wait(10)
    return first


AFTER = ["first of 0", "first of 7", "second of 7"]


def test_inline_an_input_takes_the_place_of_the_run_under_way(saver: Saver, gate: Gate) -> None:
    graph = gated(gate).compile(checkpointer=saver, name="g")
    with ThreadPoolExecutor() as pool:
        first = held_at(gate, lambda: graph.invoke({"count": 0}, ON), pool)
        values = graph.invoke({"count": 7}, ON, multitask_strategy="interrupt")
        gate.open.set()
        with pytest.raises(RunCancelled, match="by run "):
            first.result(10)
    assert values["log"] == AFTER, "what was finished stays, what was under way is given up"
    assert graph.get_state(ON).next == ()
    assert verify(saver.log, "t").sound


def test_inline_on_a_loop_and_streaming_the_same(saver: Saver, gate: Gate) -> None:
    graph = gated(gate).compile(checkpointer=saver, name="g")

    async def both() -> tuple[Any, list[Any]]:
        values = await graph.ainvoke({"count": 7}, ON, multitask_strategy="interrupt")
        return values, [chunk async for chunk in graph.astream({"count": 8}, ON, multitask_strategy="reject")]

    with ThreadPoolExecutor() as pool:
        first = held_at(gate, lambda: graph.invoke({"count": 0}, ON), pool)
        with pytest.raises(ThreadBusy):
            list(graph.stream({"count": 1}, ON, multitask_strategy="reject"))
        values, chunks = asyncio.run(both())
        gate.open.set()
        assert isinstance(first.exception(10), RunCancelled)
    assert values["log"] == AFTER
    assert [next(iter(chunk)) for chunk in chunks] == ["first", "second"]


def test_what_the_stopped_run_called_is_stopped_with_it(saver: Saver, gate: Gate) -> None:
    parent = StateGraph(State).add_node("child", gated(gate).compile(name="child")).add_edge(START, "child")
    graph = parent.compile(checkpointer=saver, name="g")
    with ThreadPoolExecutor() as pool:
        first = held_at(gate, lambda: graph.invoke({"count": 0}, ON), pool)
        (child,) = children(saver.log, "t")
        assert graph.invoke({"count": 7}, ON, multitask_strategy="interrupt")["count"] == 7
        if isinstance(saver, RedisSaver) and saver.keeper is not None:
            wait_for(
                lambda: "run_rested" in [x.kind for x in saver.log.read(child)] or swept(saver), 10, "its child's end"
            )
        gate.open.set()
        assert isinstance(first.exception(10), RunCancelled)
    rested = [x for x in saver.log.read(child) if x.kind == "run_rested"]
    assert [x.text("status") for x in rested] == ["cancelled"]


def swept(saver: Saver) -> Saver:
    if saver.keeper is not None:
        saver.keeper.sweep()
    return saver


def test_inline_a_rejected_input_leaves_no_trace(saver: Saver, gate: Gate) -> None:
    graph = gated(gate).compile(checkpointer=saver, name="g")
    with ThreadPoolExecutor() as pool:
        first = held_at(gate, lambda: graph.invoke({"count": 0}, ON), pool)
        with pytest.raises(ThreadBusy):
            graph.invoke({"count": 7}, ON, multitask_strategy="reject")
        gate.open.set()
        assert first.result(10)["log"] == ["first of 0", "second of 0"]


def test_inline_the_default_waits_its_turn(saver: Saver, gate: Gate) -> None:
    graph = gated(gate).compile(checkpointer=saver, name="g")
    with ThreadPoolExecutor() as pool:
        first = held_at(gate, lambda: graph.invoke({"count": 0}, ON), pool)
        second = pool.submit(lambda: graph.invoke({"count": 7}, ON))
        wait_for(lambda: any(x.kind == "run_queued" for x in saver.log.read("t")), 10, "the queued input")
        gate.open.set()
        assert first.result(10)["log"] == ["first of 0", "second of 0"]
        assert second.result(10)["log"][-1] == "second of 7"


def test_inline_a_rollback_undoes_the_run_under_way_and_begins(saver: Saver, gate: Gate) -> None:
    graph = gated(gate).compile(checkpointer=saver, name="g")
    graph.invoke({"count": 5}, ON)
    before = graph.get_state(ON)
    with ThreadPoolExecutor() as pool:
        first = held_at(gate, lambda: graph.invoke({"count": 0}, ON), pool)
        assert "first of 0" in graph.get_state(ON).values["log"]
        values = graph.invoke({"count": 7}, ON, multitask_strategy="rollback")
        gate.open.set()
        with pytest.raises(RunCancelled):
            first.result(10)
    assert values["log"] == ["first of 5", "second of 5", "first of 7", "second of 7"]
    history = list(graph.get_state_history(ON))
    assert any("first of 0" in each.values["log"] for each in history), "the log is never rewritten"
    begun = next(each for each in history if (each.metadata or {})["source"] == "input")
    assert begun.parent_config == before.config and begun.values == before.values
    assert verify(saver.log, "t").sound


def test_inline_a_rollback_of_a_thread_s_first_run_begins_from_nothing(saver: Saver, gate: Gate) -> None:
    graph = gated(gate).compile(checkpointer=saver, name="g")
    with ThreadPoolExecutor() as pool:
        first = held_at(gate, lambda: graph.invoke({"count": 0}, ON), pool)
        values = graph.invoke({"count": 7}, ON, multitask_strategy="rollback")
        gate.open.set()
        assert isinstance(first.exception(10), RunCancelled)
    assert values == {"count": 7, "log": ["first of 7", "second of 7"]}
    assert (graph.get_state(ON).metadata or {})["step"] == 2
    assert verify(saver.log, "t").sound
    assert graph.invoke({"count": 8}, ON, multitask_strategy="rollback")["log"][-1] == "second of 8", (
        "at rest: an input"
    )


def test_a_word_that_is_no_strategy_is_refused_before_anything_is_written(saver: Saver, gate: Gate) -> None:
    graph = gated(gate).compile(checkpointer=saver, name="g")
    with pytest.raises(InvalidInput, match="enqueue, reject, interrupt, rollback"):
        graph.invoke({"count": 7}, ON, multitask_strategy="replace")  # type: ignore[arg-type]
    assert saver.log.head("t") is None


def test_on_workers_an_input_takes_the_place_of_the_run_under_way(redis_url: str, gate: Gate) -> None:
    with working(redis_url, ("g", gated(gate))), working(redis_url, ("g", gated(gate))), connect(redis_url) as client:
        first = client.submit("g", {"count": 0}, thread_id="t")
        assert gate.inside.wait(10)
        waits = client.submit("g", {"count": 9}, thread_id="t")
        values = client.graph("g").invoke({"count": 7}, ON, multitask_strategy="interrupt", timeout=10)
        assert values["log"] == AFTER
        with pytest.raises(RunCancelled):
            first.result(10)
        assert waits.result(10)["log"] == [*AFTER, "first of 9", "second of 9"], "who waited goes behind"
        gate.open.set()


def test_on_workers_a_rollback_undoes_the_run_under_way_and_those_that_wait_go_behind(
    redis_url: str, gate: Gate
) -> None:
    with working(redis_url, ("g", gated(gate))), working(redis_url, ("g", gated(gate))), connect(redis_url) as client:
        client.submit("g", {"count": 5}, thread_id="t").result(10)
        first = client.submit("g", {"count": 0}, thread_id="t")
        assert gate.inside.wait(10)
        waits = client.submit("g", {"count": 9}, thread_id="t")
        run = client.submit("g", {"count": 7}, thread_id="t", run_id="r7", multitask_strategy="rollback")
        again = client.submit("g", {"count": 7}, thread_id="t", run_id="r7", multitask_strategy="rollback")
        assert (
            run.result(10)["log"]
            == again.result(10)["log"]
            == [f"{x} of {i}" for i in (5, 7) for x in ("first", "second")]
        )
        assert waits.result(10)["log"][-2:] == ["first of 9", "second of 9"]
        with pytest.raises(RunCancelled, match="by run r7"):
            first.result(10)
        gate.open.set()
        assert verify(client.log_store, "t").sound


def test_a_rollback_before_the_first_checkpoint_leaves_nothing_of_the_run(idle: Client) -> None:
    idle.submit("g", {"count": 0}, thread_id="t")
    idle.submit("g", {"count": 7}, thread_id="t", multitask_strategy="rollback")
    with working(idle.url, ("g", gated(Gate()))):
        assert idle.run("t").result(10) == {"count": 7, "log": ["first of 7", "second of 7"]}


@pytest.fixture
def idle(redis_url: str, client: Any, gate: Gate) -> Iterator[Client]:
    publish(client, KEYS, [gated(gate).spec("g")])
    with connect(redis_url) as made:
        yield made


def stopped(client: Client) -> list[tuple[str, str]]:
    return [(x.text("run"), x.text("actor")) for x in client.log("t") if x.kind == "run_rested"]


def test_the_command_line_asks_with_if_busy(idle: Client, capsys: pytest.CaptureFixture[str]) -> None:
    idle.submit("g", {"count": 0}, thread_id="t", run_id="r1")
    submit = ["--url", idle.url, "submit", "g", '{"count": 7}', "--thread", "t"]
    assert main([*submit, "--if-busy", "reject"]) == CONFLICT
    assert main([*submit, "--run", "r2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "queued"
    assert main([*submit, "--run", "r3", "--if-busy", "interrupt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "running"
    assert stopped(idle) == [("r1", "cli")]
    assert main([*submit, "--if-busy", "no such"]) == 2


def test_a_message_in_the_inbox_asks_with_if_busy(idle: Client, client: Any) -> None:
    idle.submit("g", {"count": 0}, thread_id="t", run_id="r1")
    message = {"graph": "g", "thread": "t", "input": '{"count": 7}'}
    for more in (
        {"run": "r2", "if_busy": "interrupt"},
        {"run": "r2", "if_busy": "interrupt"},
        {"if_busy": "reject"},
        {"if_busy": "x"},
    ):
        client.xadd(KEYS.inbox, {**message, **more})
    InboxReader(idle.url, KEYS).turn()
    assert stopped(idle) == [("r1", "run r2")]
    assert idle.run("t").run_id == "r2"
    rejected: Any = client.xrange(KEYS.inbox_rejected)
    reasons = [fields[b"reason"].decode() for _, fields in rejected]
    assert len(reasons) == 2 and "under way" in reasons[0] and "no multitask_strategy 'x'" in reasons[1]


@pytest.mark.parametrize("how", ["interrupt", "rollback"])
def test_of_many_that_interrupt_at_once_each_is_stopped_by_the_next_and_the_last_is_done(
    how: Any, redis_url: str, gate: Gate
) -> None:
    gate.open.set()
    with working(redis_url, ("g", gated(gate))), connect(redis_url) as client:
        with ThreadPoolExecutor(8) as pool:
            runs = list(
                pool.map(lambda i: client.submit("g", {"count": i}, thread_id="t", multitask_strategy=how), range(40))
            )
        wait_for(lambda: client.run("t").status() == "done", 10, "the last run's end")
        ends = [run.ending(5).status for run in runs]
    assert set(ends) <= {"done", "cancelled"}
    under_way = ""
    for entry in client.log_store.read("t"):
        if entry.kind == "run_started":
            assert not under_way, "a run began while another one was under way"
            under_way = entry.text("run")
        elif entry.kind == "run_rested" or (entry.is_checkpoint and not entry.next):
            assert entry.text("run") == under_way
            under_way = ""
    assert not under_way
    assert verify(client.log_store, "t").sound


def test_nothing_of_a_wide_step_that_was_interrupted_stays_behind(client: Any) -> None:
    stage: Stage = staged(client)
    open_wide(stage, 600)
    pop(stage, 64)
    for lease in stage.held[:10]:
        stage.fail(lease, delay_ms=60_000)
    stage.moves.release(stage.owner, [lease.token for lease in stage.held[10:20]], "parked", "not here")
    assert stage.start("r2", sum="s2", mode="interrupt").status == "started"
    for _ in range(40):
        sweep(stage)
    assert client.keys(f"{KEYS.stem}discard*") == []
    zsets = {"leases": KEYS.leases, "wakes": KEYS.wakes, "failed": KEYS.rq_failed("g"), "started": KEYS.rq_started("g")}
    left = {name: int(client.zcard(key)) for name, key in zsets.items()}
    assert left == {"leases": 1, "wakes": 0, "failed": 0, "started": 1}
    assert (client.llen(KEYS.rq_queue("g")), client.hlen(KEYS.parked), len(client.keys(KEYS.rq_job("*")))) == (0, 0, 1)
    assert int(client.hget(KEYS.counts, "g") or 0) == 0
