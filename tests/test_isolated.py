"""Isolated nodes: each attempt is a process of its own, on both engines, and none outlives what it was begun for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import make_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import pytest
import redis

import graphs_isolated as graphs
from everstep_checkpoint.errors import GraphError, NodeDied, NodeTimeoutError, OutsideNode, RunCancelled, UnknownType
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.options import TimeoutPolicy
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from everstep_scheduler.reading.ending import error_of
from everstep_scheduler.steps.timing import Pace
from graphs_isolated import Point, State
from servers import lives, wait_for
from test_worker import KEYS, Client, running

TESTS = Path(__file__).parent


@pytest.fixture
def at(redis_url: str, client: redis.Redis) -> Client:
    return Client(redis_url, client)


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    return tmp_path / "pids"


def noted(pids: Path) -> list[int]:
    return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []


def gone(pids: Path) -> None:
    wait_for(lambda: not any(map(lives, noted(pids))), 10, "all processes to be gone")


def invoked(graph: GraphSpec | CompiledGraph, **values: Any) -> Any:
    compiled = CompiledGraph(graph, None, None, None) if isinstance(graph, GraphSpec) else graph
    return compiled.invoke(values)


# -- what goes in and comes out


def test_state_context_and_config_go_in_and_writes_commands_and_sends_come_out() -> None:
    graph = graphs.of_works().compile(InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    chunks = list(graph.stream({"point": Point(1), "total": 1}, config, context={"who": "me"}, stream_mode="custom"))
    assert chunks == [{"halfway": Point(1)}, "nearly"]
    values = graph.get_state(config).values
    assert values["point"].x == 2 and values["point"].y != os.getpid()
    assert sorted(values["seen"]) == ["True {'who': 'me'}", "item", "plain"]
    assert values["total"] == 3


def test_it_is_the_same_on_workers(redis_url: str, at: Client) -> None:
    spec = graphs.of_works().spec("works")
    with running(redis_url, spec):
        thread = at.submit(spec, point=Point(1), total=1)
        at.rests(thread, timeout_s=20)
    assert sorted(at.seen(spec, thread)) == ["True None", "item", "plain"]


def test_an_async_router_may_follow() -> None:
    built = StateGraph(State).add_node("node", graphs.beats, isolate=True).add_edge(START, "node")
    built.add_conditional_edges("node", graphs.routed, [END])
    assert built.compile().invoke({"seen": []})["seen"] == ["beaten"]


def test_heartbeats_and_what_it_tells_are_heard_as_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    for name in ("heartbeat", "progress"):
        monkeypatch.setattr(Pace, name, lambda self, name=name: heard.append(name))
    assert invoked(graphs.beating, seen=[])["seen"] == ["beaten"]
    assert heard.count("heartbeat") > 2
    assert "progress" in heard


# -- what goes wrong


@pytest.mark.parametrize(
    ("how", "says"),
    [("exit", "exit code 17"), ("crash", "SIGSEGV"), ("holding", "exit code 18")],
)
def test_a_process_that_dies_fails_its_attempt_and_the_error_says_how(how: str, says: str) -> None:
    with pytest.raises(NodeDied, match=says):
        invoked(graphs.dying, how=how)


def test_what_it_raises_is_of_its_type_where_that_is_loaded() -> None:
    with pytest.raises(graphs.Custom, match="1 and 2") as caught:
        invoked(graphs.dying, how="raise")
    assert "in dies" in str(caught.value.__cause__)
    with pytest.raises(Exception, match="3") as quit_:
        invoked(graphs.dying, how="quit")
    assert type(quit_.value).__name__ == "SystemExit"


def test_retry_policies_know_what_it_raised(redis_url: str, at: Client) -> None:
    spec = graphs.chain("custom", graphs.dies, retry_policy=graphs.CUSTOM)
    with running(redis_url, spec):
        thread = at.submit(spec, how="raise")
        at.rests(thread, "failed", timeout_s=20)
    ended = [entry for entry in at.log.read(thread) if entry.kind in ("task_retried", "task_failed")]
    told = [error_of(entry) for entry in ended]
    assert len(told) == 2
    assert [each.error_type for each in told] == ["graphs_isolated.Custom"] * 2
    assert all("in dies" in each.traceback for each in told)


def test_the_worker_lives_when_a_node_takes_its_process_down(redis_url: str, at: Client) -> None:
    with running(redis_url, graphs.dying, concurrency=1) as worker:
        thread = at.submit(graphs.dying, how="crash")
        at.rests(thread, "failed", timeout_s=20)
        again = at.submit(graphs.dying, how="exit")
        at.rests(again, "failed", timeout_s=20)
        wait_for(lambda: not worker.work.held, 5, "nothing to be held")


@pytest.mark.parametrize(
    ("how", "says"),
    [("interrupt", "interrupt"), ("once", "once"), ("task", "@task"), ("graph", "a graph")],
)
def test_what_needs_the_attempt_itself_says_that_it_does_not_work_there(how: str, says: str) -> None:
    with pytest.raises(OutsideNode, match=f"{says}.* in an isolated node"):
        invoked(graphs.asking, how=how)


def test_a_value_that_cant_be_stored_is_refused_as_elsewhere() -> None:
    with pytest.raises(UnknownType, match="object"):
        invoked(graphs.asking, how="object")


# -- what is killed


def test_a_busy_loop_is_killed_at_its_timeout_and_tried_again(redis_url: str, at: Client, pids: Path) -> None:
    with running(redis_url, graphs.spinning, concurrency=1):
        thread = at.submit(graphs.spinning, pids=str(pids))
        at.rests(thread, timeout_s=20)
    assert at.seen(graphs.spinning, thread) == ["went on"]
    assert len(noted(pids)) == 2
    gone(pids)


def test_inline_a_busy_loop_is_killed_at_its_timeout_too(pids: Path) -> None:
    assert invoked(graphs.spinning, pids=str(pids))["seen"] == ["went on"]
    gone(pids)


def test_an_idle_one_is_killed_and_its_handler_runs(redis_url: str, at: Client, pids: Path) -> None:
    with running(redis_url, graphs.idling):
        thread = at.submit(graphs.idling, pids=str(pids))
        at.rests(thread, timeout_s=20)
        gone(pids)
    (said,) = at.seen(graphs.idling, thread)
    assert "no progress for 4 s" in said


def test_at_a_timeout_the_slot_is_free_at_once(redis_url: str, at: Client, pids: Path) -> None:
    late = graphs.chain("late", graphs.hangs, timeout=2.0)
    plain = graphs.plain_graph.spec.named("plain")
    with running(redis_url, late, plain, concurrency=1):
        thread = at.submit(late, pids=str(pids))
        at.rests(thread, "failed", timeout_s=20)
        at.rests(at.submit(plain), timeout_s=10)
        gone(pids)


@pytest.mark.parametrize(("how", "says"), [("exit", "exit code 19"), ("hang", "was over its timeout")])
def test_a_daemon_that_it_leaves_behind_holds_nothing(
    redis_url: str, at: Client, pids: Path, how: str, says: str
) -> None:
    """It speaks in the pipe without end, from a group that is not killed: the slot was taken until it ended."""
    patience = TimeoutPolicy(run_timeout=2.0 if how == "hang" else 20.0, idle_timeout=15.0)
    graph = graphs.chain("leaves", graphs.speaks_on, timeout=patience)
    try:
        with running(redis_url, graph, concurrency=1) as worker:
            thread = at.submit(graph, pids=str(pids), how=how)
            at.rests(thread, "failed", timeout_s=8)
            wait_for(lambda: worker.work.slots, 5, "the slot to be free")
        assert says in next(e.text("error") for e in at.log.read(thread) if e.kind == "task_failed")
    finally:
        for pid in filter(lives, noted(pids)):  # it may have ended with its pipe
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


HANGING: dict[str, Callable[[], GraphSpec]] = {
    "alone": lambda: graphs.chain("hanging", graphs.hangs),  # in an inline caller's own thread
    "beside": lambda: graphs.chain("hanging", graphs.hangs, timeout=60.0),  # in one beside it
    "called": lambda: graphs.of_calling().spec("hanging"),
    "called beside": lambda: graphs.of_calling(60.0).spec("hanging"),
    "called async": lambda: graphs.of_calling_async().spec("hanging"),
}


def hangs_now(pids: Path) -> None:
    wait_for(lambda: len(noted(pids)) == 2, 20, "the node to run")


@pytest.mark.parametrize("how", ["alone", "called", "called async"])
def test_a_cancel_kills(redis_url: str, at: Client, pids: Path, how: str) -> None:
    hanging = HANGING[how]()
    with running(redis_url, hanging, lease_ms=900) as worker:
        thread = at.submit(hanging, pids=str(pids))
        hangs_now(pids)
        at.moves.cancel(thread, str(at.redis.hget(KEYS.thread(thread), "run"), "ascii"))
        gone(pids)
        wait_for(lambda: not worker.work.held, 5, "the slot to be free")


@pytest.mark.parametrize(
    ("how", "durable"),
    [("alone", True), ("alone", False), ("beside", True), ("called", True), ("called beside", False),
     ("called async", True)],
)  # fmt: skip
def test_a_cancel_by_somebody_else_kills_what_an_inline_caller_runs(
    redis_url: str, pids: Path, how: str, durable: bool
) -> None:
    saver = RedisSaver(redis_url, lease_ms=600) if durable else InMemorySaver()
    graph = CompiledGraph(HANGING[how](), saver, None, None)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(graph.invoke, {"pids": str(pids)}, {"configurable": {"thread_id": "t"}})
        hangs_now(pids)
        saver.moves.cancel("t", "", "kim")
        with pytest.raises(RunCancelled, match="by kim"):
            running.result(20)
    gone(pids)


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
def test_an_input_that_does_not_wait_kills_what_it_overtakes(
    pids: Path, strategy: Literal["interrupt", "rollback"]
) -> None:
    saver = InMemorySaver()
    graph = CompiledGraph(HANGING["called"](), saver, None, None)
    config: dict[str, Any] = {"configurable": {"thread_id": "t"}}
    plain = CompiledGraph(graphs.plain_graph.spec.named("hanging"), saver, None, None)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(graph.invoke, {"pids": str(pids)}, config)
        hangs_now(pids)
        plain.invoke({"seen": ["after"]}, config, multitask_strategy=strategy)
        with pytest.raises(RunCancelled):
            running.result(20)
    gone(pids)


def test_a_timeout_of_who_called_kills_what_it_called(pids: Path) -> None:
    calling = HANGING["called"]().node("calls")
    built = StateGraph(State).add_node("calls", calling.fn, timeout=4.0).add_edge(START, "calls")
    with pytest.raises(NodeTimeoutError):
        invoked(built.spec("late"), pids=str(pids))
    gone(pids)


def test_nothing_runs_on_when_a_worker_ends_in_order(redis_url: str, at: Client, pids: Path) -> None:
    hanging = graphs.chain("hanging", graphs.hangs)
    with running(redis_url, hanging, grace_s=0.2):
        at.submit(hanging, pids=str(pids))
        wait_for(lambda: len(noted(pids)) == 2, 10, "the node to run")
    gone(pids)


@pytest.fixture
def process(redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, without a pool."""
    code = (
        "import sys; from everstep_workers.worker import Worker; import graphs_isolated as g;"
        "Worker(sys.argv[1], [g.chain('hanging', g.hangs)]).run()"
    )
    found = subprocess.Popen([sys.executable, "-c", code, redis_url], cwd=TESTS)
    yield found
    found.kill()
    found.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when the node lets a thread of its process run")
def test_when_a_worker_is_killed_the_node_dies_with_it(
    process: subprocess.Popen[bytes], at: Client, pids: Path
) -> None:
    at.submit(graphs.chain("hanging", graphs.hangs), pids=str(pids))
    wait_for(lambda: len(noted(pids)) == 2, 20, "the node to run")
    process.send_signal(signal.SIGKILL)
    sleeper, node = noted(pids)
    wait_for(lambda: not lives(node), 10, "the node to be gone")
    if lives(sleeper):
        os.kill(sleeper, signal.SIGKILL)


def test_a_caller_who_leaves_a_stream_ends_the_node(pids: Path) -> None:
    with closing(cast("Generator[Any]", graphs.hanging.stream({"pids": str(pids)}, stream_mode="custom"))) as stream:
        assert next(stream) == "hanging"
        assert all(map(lives, noted(pids)))
    gone(pids)


def test_a_late_one_says_so_inline(pids: Path) -> None:
    with pytest.raises(NodeTimeoutError, match="over its timeout of 1 s"):
        invoked(graphs.chain("late", graphs.hangs, timeout=1.0), pids=str(pids))
    gone(pids)


# -- what can't be isolated


def test_what_no_other_process_can_import_is_refused_while_building() -> None:
    def closure(state: State) -> State:
        return {}

    async def coroutine(state: State) -> State:
        return {}

    unknown: list[Callable[..., Any]] = [closure, lambda state: {}, partial(graphs.dies), Path().joinpath]
    for fn in unknown:
        with pytest.raises(GraphError, match="can't be isolated: no other process"):
            StateGraph(State).add_node("node", fn, isolate=True)
    with pytest.raises(GraphError, match="An async node can't be isolated"):
        StateGraph(State).add_node("node", coroutine, isolate=True)
    with pytest.raises(GraphError, match="A graph as a node can't be isolated"):
        StateGraph(State).add_node("node", graphs.plain_graph, isolate=True)


def test_a_state_whose_types_no_other_process_can_import_is_refused() -> None:
    local = make_dataclass("Local", ["x"])
    schema: Any = TypedDict("schema", {"x": local})  # type: ignore[valid-type]
    built = StateGraph(schema).add_node("node", graphs.dies, isolate=True, input_schema=schema).add_edge(START, "node")
    with pytest.raises(GraphError, match="'Local', a type that the process"):
        built.compile()


def test_a_function_of_the_program_itself_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from typing import TypedDict\nfrom everstep import StateGraph\nclass S(TypedDict):\n  x: int\n"
        "def f(state): return {}\nStateGraph(S).add_node(f, isolate=True)\n"
    )
    said = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert "can't be isolated" in said.stderr
    found = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
