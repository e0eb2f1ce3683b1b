"""The client: what a producer and an operator can ask a fleet, without the graph's code."""

from __future__ import annotations

import asyncio
import copy
import json
import operator
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, TypedDict
from uuid import UUID

import pytest
from pydantic import BaseModel

from everstep_checkpoint.errors import (
    CorruptEntry,
    EmptyInputError,
    GraphRecursionError,
    InvalidInput,
    InvalidThreadId,
    InvalidUpdateError,
    NotFound,
    RunCancelled,
    RunConflict,
    RunFailed,
    ServerUnavailable,
    Superseded,
    ThreadBusy,
    TooLarge,
    UnknownGraph,
    UnknownRun,
    UnknownThread,
)
from everstep_scheduler.client.client import Client, connect, publish
from everstep_scheduler.client.manifest import Manifest, check_input
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START, Command, Send
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from everstep_scheduler.moves.record import Config, RunRecord, looks_secret
from everstep_scheduler.reading.carried import BUILTINS, Errors
from everstep_scheduler.reading.ending import Ending, Said
from hand import KEYS, Hand, working
from servers import wait_for


class Point(BaseModel):
    x: int


class State(TypedDict, total=False):
    count: int
    done: bool
    xs: Annotated[list[int], operator.add]
    when: datetime
    at: Point
    config: dict[str, Any]


broken = threading.Event()


def inc(state: State) -> State:
    return {"count": state["count"] + 1, "xs": [state["count"]]}


def check(state: State, config: dict[str, Any]) -> State:
    if broken.is_set():
        raise ValueError("boom")
    told = {key: value for key, value in config["metadata"].items() if not key.startswith("langgraph_")}
    return {"done": state["count"] >= 3, "config": {"metadata": told, "user": config["configurable"].get("user")}}


def counter() -> StateGraph:
    made = StateGraph(State)
    made.add_node(inc)
    made.add_node(check)
    made.add_edge(START, "inc")
    made.add_edge("inc", "check")
    made.add_conditional_edges("check", lambda state: END if state["done"] else "inc", ["inc", END])
    return made


def fan() -> StateGraph:
    made = StateGraph(State)
    made.add_node("part", lambda state: {"xs": [state["count"]]})
    made.add_conditional_edges(START, lambda state: [Send("part", {"count": i}) for i in range(3)], ["part"])
    return made


@pytest.fixture(autouse=True)
def mended() -> Iterator[None]:
    broken.clear()
    yield
    broken.clear()


@pytest.fixture
def idle(redis_url: str, client: Any) -> Iterator[Client]:
    """The graphs are published, nobody works."""
    publish(client, KEYS, [counter().spec("counter"), fan().spec("fan")])
    with connect(redis_url) as made:
        yield made


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Client]:
    with working(redis_url, ("counter", counter()), ("fan", fan())), connect(redis_url) as made:
        yield made


ZERO = {"count": 0, "done": False}


# -- submitting


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:99999"])
def test_what_is_no_url_is_told_as_such_without_the_password(url: str) -> None:
    with pytest.raises(InvalidInput, match="no URL of a Redis"):
        connect(url)
    with pytest.raises(InvalidInput) as told:
        connect("http://:hush@localhost")
    assert "hush" not in str(told.value)


def test_a_run_is_done_by_the_workers(fleet: Client) -> None:
    run = fleet.submit("counter", ZERO, thread_id="demo")
    values = run.result(timeout=10)
    assert (values["count"], values["done"], values["xs"]) == (3, True, [0, 1, 2])
    assert run.status() == "done"
    assert fleet.run("demo").result(1) == values


def test_without_a_thread_id_the_thread_is_the_run(fleet: Client) -> None:
    run = fleet.submit("counter", ZERO)
    assert run.thread_id == run.run_id
    assert run.result(10)["done"]


def test_the_same_run_id_with_the_same_input_attaches(fleet: Client) -> None:
    first = fleet.submit("counter", ZERO, thread_id="t", run_id="r1")
    again = fleet.submit("counter", {"done": False, "count": 0}, thread_id="t", run_id="r1")
    assert first.result(10) == again.result(10)
    assert sum(x.kind == "run_started" for x in fleet.log("t")) == 1
    assert fleet.submit("counter", ZERO, thread_id="t", run_id="r1").result(1)["count"] == 3


def test_the_same_run_id_with_another_input_is_a_conflict(idle: Client) -> None:
    idle.submit("counter", ZERO, thread_id="t", run_id="r1")
    with pytest.raises(RunConflict, match="r1"):
        idle.submit("counter", {"count": 5}, thread_id="t", run_id="r1")
    with pytest.raises(RunConflict):
        idle.submit("fan", ZERO, thread_id="t", run_id="r1")


def test_a_second_input_waits_or_is_rejected_as_asked(idle: Client) -> None:
    idle.submit("counter", ZERO, thread_id="t")
    second = idle.submit("counter", ZERO, thread_id="t")
    assert second.status() == "queued"
    with pytest.raises(ThreadBusy):
        idle.submit("counter", ZERO, thread_id="t", multitask_strategy="reject")


def test_an_input_is_checked_before_anything_is_written(idle: Client, client: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        idle.submit("counter", {"count": "three", "at": {"x": "y"}, "cuont": 1}, thread_id="t")
    said = str(caught.value)
    assert "count: must be integer, not string" in said
    assert "at.x: must be integer" in said
    assert "no key 'cuont'. Did you mean 'count'" in said
    assert not client.exists(KEYS.log("t"))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, EmptyInputError),
        ([1], InvalidInput),
        ({"count": object()}, InvalidInput),
        ({"config": {"text": "x" * 9_000_000}}, TooLarge),
    ],
    ids=["None", "a list", "no JSON form", "too large"],
)
def test_what_can_be_no_input_is_said(idle: Client, data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        idle.submit("counter", data, thread_id="t")
    assert idle.threads() == []


def test_a_secret_value_is_not_repeated_in_the_error(idle: Client) -> None:
    with pytest.raises(InvalidInput) as caught:
        idle.submit("counter", {"count": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_an_unknown_graph_lists_those_that_are_known(idle: Client) -> None:
    with pytest.raises(UnknownGraph, match="Did you mean 'counter'"):
        idle.submit("countre", ZERO)


@pytest.mark.parametrize("thread_id", [True, ["t"], "", "t" * 513, "a\nb", 1.5])
def test_a_thread_id_is_a_str_int_or_uuid(idle: Client, thread_id: Any) -> None:
    with pytest.raises(InvalidThreadId):
        idle.submit("counter", ZERO, thread_id=thread_id)
    with pytest.raises(InvalidThreadId):
        idle.graph("counter").invoke(ZERO, {"configurable": {"thread_id": thread_id}})


def test_a_thread_id_that_is_given_as_none_is_refused(idle: Client) -> None:
    with pytest.raises(InvalidThreadId):
        idle.graph("counter").invoke(ZERO, {"configurable": {"thread_id": None}})


def test_ints_and_uuids_are_thread_ids(idle: Client) -> None:
    assert idle.submit("counter", ZERO, thread_id=17).thread_id == "17"
    assert idle.submit("counter", ZERO, thread_id=UUID(int=5)).thread_id == str(UUID(int=5))


@pytest.mark.parametrize("run_id", ["", "a b", "ä", "x" * 129, "a\n"])
def test_a_run_id_is_printable_ascii_without_spaces(idle: Client, run_id: str) -> None:
    with pytest.raises(InvalidInput, match="run_id"):
        idle.submit("counter", ZERO, thread_id="t", run_id=run_id)


def test_values_that_json_lacks_travel_with_their_types(fleet: Client) -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    assert fleet.submit("counter", {**ZERO, "when": when}).result(10)["when"] == when
    assert fleet.submit("counter", {**ZERO, "when": "2026-01-02T00:00:00Z"}).result(10)["when"] == when


def test_a_model_is_read_by_the_graphs_types(fleet: Client) -> None:
    plain = fleet.submit("counter", {**ZERO, "at": Point(x=3)}).result(10)["at"]
    assert plain.fields == {"x": 3}
    typed = fleet.graph("counter", counter().compile(InMemorySaver(), name="counter"))
    assert typed.invoke({**ZERO, "at": Point(x=3)}, timeout=10)["at"] == Point(x=3)


def test_nodes_get_the_config_without_its_secrets(fleet: Client, client: Any) -> None:
    config = {
        "configurable": {"thread_id": "t", "user": "ann", "api_key": "hunter2"},
        "metadata": {"a": 1},
        "tags": ["x"],
    }
    values = fleet.submit("counter", ZERO, config=config, metadata={"b": 2, "dbPassword": "hunter2"}).result(10)
    assert values["config"] == {"metadata": {"thread_id": "t", "a": 1, "b": 2}, "user": "ann"}
    assert b"hunter2" not in repr(client.xrange(KEYS.log("t"))).encode()
    metadata = fleet.state("t").metadata or {}
    assert metadata["a"] == 1 and metadata["user"] == "ann" and metadata["source"] == "loop"


def test_keys_that_look_secret_are_known_by_their_words() -> None:
    assert all(
        map(looks_secret, ["password", "api_key", "OPENAI_API_KEY", "accessToken", "client-secret", "privateKey"])
    )
    assert not any(map(looks_secret, ["user", "max_tokens", "key", "tokenizer", "secretary", "model"]))


def test_a_record_reads_back_as_it_was_written() -> None:
    config = Config.of(
        {"configurable": {"user": "ann"}, "tags": ["a"], "recursion_limit": 7}, context={"k": [1]}, actor="ops"
    )
    record = config.record("input", "json")
    assert RunRecord.decode(record.encode()) == record
    assert RunRecord.decode(b"\x80") == RunRecord()


# -- how runs end


def test_a_failed_run_says_node_type_and_text(fleet: Client) -> None:
    broken.set()
    run = fleet.submit("counter", ZERO, thread_id="t")
    with pytest.raises(RunFailed, match="ValueError: boom") as caught:
        run.result(10)
    assert (caught.value.node, caught.value.error_type, caught.value.thread) == ("check", "ValueError", "t")
    assert run.status() == "failed"
    snap = fleet.state("t")
    assert snap.next == ("check",) and snap.tasks[0].error == "ValueError('boom')"


class Refused(Exception):
    """One of the user's own, made from more than its message."""

    def __init__(self, said: str, code: int = 0) -> None:
        super().__init__(said)
        self.code = code


class Odd(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code + 0}")


def raises(error: Exception) -> StateGraph:
    def node(state: State) -> State:
        raise error

    made = StateGraph(State)
    made.add_node("node", node)
    made.add_edge(START, "node")
    return made


def came_back(url: str, error: Exception, *known: type[Exception]) -> RunFailed:
    """What a caller elsewhere is told of an error that a node raises, from both doors, and after pickling."""
    with working(url, ("raises", raises(error))), connect(url, errors=known) as made:
        run = made.submit("raises", {"count": 0})
        with pytest.raises(RunFailed) as caught:
            run.result(10)
        with pytest.raises(type(caught.value)):
            made.graph("raises").invoke({"count": 0}, timeout=10)
    again = copy.copy(caught.value)
    assert (
        type(again) is type(caught.value)
        and again.__dict__ == caught.value.__dict__
        and again.args == caught.value.args
    )
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        ValueError("boom"),
        KeyError("boom"),
        FileNotFoundError(2, "boom"),
        ZeroDivisionError("boom"),
        TimeoutError("boom"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_builtin_exception_comes_back_as_itself(redis_url: str, error: Exception) -> None:
    found = came_back(redis_url, error)
    assert isinstance(found, type(error)) and isinstance(found, RunFailed)
    assert "boom" in found.message and found.args == (found.message,)
    assert (found.error_type, found.node, found.task) == (type(error).__name__, "node", "p0")
    assert "raise error" in found.traceback and found.traceback.rstrip().endswith(found.message)


def test_an_exception_of_a_class_that_nobody_registered_is_a_run_failed_that_says_all(redis_url: str) -> None:
    found = came_back(redis_url, Refused("no", 7))
    assert type(found) is RunFailed
    assert found.error_type.endswith("test_client.Refused") and found.message == "no" and found.node == "node"


def test_a_registered_exception_comes_back_as_its_class_made_from_its_message_alone(redis_url: str) -> None:
    found = came_back(redis_url, Refused("no", 7), Refused)
    assert isinstance(found, Refused) and isinstance(found, RunFailed)
    assert (found.message, found.args, found.code) == ("no", ("no",), 0)
    odd = came_back(redis_url, Odd(7), Odd)
    assert isinstance(odd, Odd) and odd.message == "code 7"  # its constructor takes no message: it is passed by


def test_a_registered_base_class_takes_nothing_below_it(redis_url: str) -> None:
    assert not isinstance(came_back(redis_url, json.JSONDecodeError("no", "x", 0), ValueError), json.JSONDecodeError)


def test_an_error_of_ours_about_a_value_comes_back_as_itself(redis_url: str) -> None:
    found = came_back(redis_url, InvalidUpdateError("not so"))
    assert isinstance(found, InvalidUpdateError) and found.message == "not so"


class Strange(Exception):
    def __new__(cls, first: int, second: int) -> Strange:
        return super().__new__(cls)


@pytest.mark.parametrize("cls", [KeyboardInterrupt, ExceptionGroup, StopIteration, MemoryError, Strange, "ValueError"])
def test_what_can_t_be_raised_anew_can_t_be_registered(idle: Client, cls: Any) -> None:
    with pytest.raises(InvalidInput, match="can't be carried"):
        idle.register_errors(cls)


def test_every_builtin_in_the_table_can_be_made_and_copied() -> None:
    assert {"ValueError", "OSError", "KeyError", "UnicodeDecodeError"} <= BUILTINS.keys()
    for name, cls in BUILTINS.items():
        ended = Ending("failed", 1, "1-1", "node", Said(name, "boom", "tb"), task="p0")
        found = copy.copy(Errors().failed(ended, "t", "mend it"))
        assert isinstance(found, cls) and isinstance(found, RunFailed)
        assert (str(found), found.traceback) == (f"{name}: boom (thread 't', node 'node'). mend it", "tb")


def test_a_retry_goes_on_from_what_failed(fleet: Client) -> None:
    broken.set()
    run = fleet.submit("counter", ZERO, thread_id="t", run_id="r1")
    with pytest.raises(RunFailed):
        run.result(10)
    broken.clear()
    again = fleet.retry("t", "r1")
    assert again.result(10)["xs"] == [0, 1, 2]
    assert again.run_id != "r1"
    with pytest.raises(EmptyInputError, match="nothing to retry"):
        fleet.retry("t")
    with pytest.raises(Superseded):
        fleet.retry("t", "r1")


def test_a_retry_of_what_was_replaced_is_superseded(fleet: Client) -> None:
    broken.set()
    for run_id in ("r1", "r2"):
        with pytest.raises(RunFailed):
            fleet.submit("counter", ZERO, thread_id="t", run_id=run_id).result(10)
    with pytest.raises(Superseded, match="r2"):
        fleet.retry("t", "r1")


def test_a_retry_of_a_busy_thread_is_refused(idle: Client) -> None:
    idle.submit("counter", ZERO, thread_id="t")
    with pytest.raises(ThreadBusy):
        idle.retry("t")


def test_the_recursion_limit_ends_a_run_that_can_go_on(fleet: Client) -> None:
    config = {"configurable": {"thread_id": "t"}, "recursion_limit": 2}
    with pytest.raises(GraphRecursionError, match="limit of 2"):
        fleet.graph("counter").invoke(ZERO, config, timeout=10)
    assert fleet.graph("counter").get_state(config).next == ("inc",)


def test_a_cancelled_run_says_so(idle: Client) -> None:
    run = idle.submit("counter", ZERO, thread_id="t")
    assert idle.cancel("t") is True
    assert idle.cancel("t") is False
    with pytest.raises(RunCancelled):
        run.result(5)
    assert run.status() == "cancelled"


def test_a_queued_run_can_be_cancelled_alone(idle: Client) -> None:
    first = idle.submit("counter", ZERO, thread_id="t")
    second = idle.submit("counter", {"count": 1}, thread_id="t")
    assert idle.cancel("t", second.run_id)
    with pytest.raises(RunCancelled):
        second.result(5)
    assert first.status() == "running"
    with pytest.raises(UnknownRun):
        idle.cancel("t", "never")


def test_a_timeout_says_what_the_run_waits_for(idle: Client) -> None:
    run = idle.submit("counter", ZERO, thread_id="t")
    with pytest.raises(TimeoutError, match="node '__start__' waits in queue 'counter', where no worker listens"):
        run.result(0.05)
    second = idle.submit("counter", ZERO, thread_id="t")
    with pytest.raises(TimeoutError, match=r"queued behind run '.*', of which node '__start__' waits in queue"):
        second.result(0.05)
    idle.redis.sadd(idle.keys.rq_workers_of("counter"), idle.keys.rq_worker("dead"))  # in the set for a while still
    with pytest.raises(TimeoutError, match="where no worker listens"):
        run.result(0.05)
    idle.redis.set(idle.keys.rq_suspended, 1)
    with pytest.raises(TimeoutError, match="waits in queue 'counter', and RQ is suspended: `rq resume`"):
        run.result(0.05)


def test_result_ends_when_the_thread_is_deleted(idle: Client) -> None:
    run = idle.submit("counter", ZERO, thread_id="t")
    idle.delete("t", cancel=True)
    with pytest.raises(UnknownRun):
        run.result(10)


def test_a_result_survives_an_outage(idle: Client, redis_url: str, proxy: Any) -> None:
    with connect(proxy.url) as through:
        run = through.submit("counter", ZERO, thread_id="t")
        found: list[Any] = []
        waiting = threading.Thread(target=lambda: found.append(run.result(20)))
        waiting.start()
        wait_for(lambda: proxy.commands[b"XREAD"])
        proxy.refuse()
        with working(redis_url, ("counter", counter())):
            wait_for(lambda: idle.run("t").status() == "done")
        proxy.accept()
        waiting.join(20)
    assert [values["count"] for values in found] == [3]


# -- looking


def test_threads_are_listed_newest_first(idle: Client) -> None:
    for name in ("a", "b", "c"):
        idle.submit("counter", ZERO, thread_id=name)
        time.sleep(0.002)
    idle.cancel("b")
    assert [info.thread_id for info in idle.threads("running")] == ["c", "a"]
    assert [info.thread_id for info in idle.threads("cancelled")] == ["b"]
    assert len(idle.threads(limit=2)) == 2
    info = idle.threads("running")[0]
    assert (info.graph, info.status, info.open_tasks) == ("counter", "running", 1)


def test_a_thread_that_nobody_knows_is_an_error(idle: Client) -> None:
    for ask in (idle.state, idle.history, idle.log, idle.run, idle.cancel, idle.retry, idle.delete):
        with pytest.raises(UnknownThread):
            ask("nobody")
    idle.submit("counter", ZERO, thread_id="t")
    with pytest.raises(UnknownRun):
        idle.run("t", "never")


def test_before_anything_ran_start_comes_next(idle: Client) -> None:
    idle.submit("counter", ZERO, thread_id="t")
    assert idle.state("t").next == ("__start__",)
    assert list(idle.history("t")) == []


def test_a_busy_thread_is_deleted_only_with_cancel(idle: Client, client: Any) -> None:
    for count in range(3):
        idle.submit("counter", {"count": count}, thread_id="t")
    with pytest.raises(ThreadBusy):
        idle.delete("t")
    idle.delete("t", cancel=True)
    assert not client.exists(KEYS.log("t"))
    with pytest.raises(UnknownThread):
        idle.state("t")


def test_a_checkpoint_is_found_by_its_id_and_no_other(fleet: Client) -> None:
    fleet.submit("counter", ZERO, thread_id="t").result(10)
    ids = [snap.config["configurable"]["checkpoint_id"] for snap in fleet.history("t")]
    assert [fleet.state("t", each).config["configurable"]["checkpoint_id"] for each in ids] == ids
    with pytest.raises(NotFound):
        fleet.state("t", ids[0][:-1] + ("0" if ids[0][-1] != "0" else "1"))
    with pytest.raises(InvalidInput):
        fleet.state("t", "3")


def test_a_log_that_cannot_be_read_is_said_and_others_are_served(idle: Client, client: Any) -> None:
    client.xadd(KEYS.log("spoilt"), {"something": "else"}, id="0-1")
    with pytest.raises(CorruptEntry):
        idle.submit("counter", ZERO, thread_id="spoilt")
    assert idle.submit("counter", ZERO, thread_id="good").status() == "running"


def test_entries_come_as_they_are_written(fleet: Client) -> None:
    kinds = [entry.kind for entry in fleet.submit("counter", ZERO).entries(timeout=10)]
    assert kinds == ["run_started", *["checkpoint"] * 8]


def test_the_published_graphs_can_be_listed(idle: Client) -> None:
    assert [each.name for each in idle.graphs()] == ["counter", "fan"]
    manifest = idle.manifest("counter")
    assert manifest.nodes["inc"].queue == "counter" and manifest.channels["xs"] == "add"
    assert "inc" in manifest.mermaid


def test_a_schema_cannot_make_us_fetch_anything() -> None:
    bare: dict[str, Any] = {
        "name": "g",
        "version": "g@1",
        "queue": "g",
        "queues": [],
        "nodes": {},
        "output_schema": {},
        "channels": {},
    }
    manifest = Manifest(**bare, input_schema={"properties": {"x": {"$ref": "http://127.0.0.1:9/schema"}}})
    with pytest.raises(InvalidInput):
        check_input(manifest, {"x": 1})


def test_nobody_there_is_said_with_the_way_out() -> None:
    with connect("redis://127.0.0.1:1/0") as nowhere, pytest.raises(ServerUnavailable, match="redis-cli -p 1 ping"):
        nowhere.submit("counter", ZERO)


# -- the graph's methods


def both(fleet: Client, name: str, made: StateGraph) -> tuple[Any, Any]:
    return made.compile(InMemorySaver(), name=name), fleet.graph(name)


def test_a_remote_graph_streams_what_an_inline_one_does(fleet: Client) -> None:
    inline, remote = both(fleet, "counter", counter())
    config = {"configurable": {"thread_id": "t"}}
    for mode in ("values", "updates", ["updates", "values"]):
        assert list(remote.stream(ZERO, config, stream_mode=mode, timeout=10)) == list(
            inline.stream(ZERO, config, stream_mode=mode)
        )


def test_a_remote_graphs_history_is_an_inline_ones(fleet: Client) -> None:
    inline, remote = both(fleet, "counter", counter())
    config = {"configurable": {"thread_id": "t"}}
    assert remote.invoke(ZERO, config, timeout=10) == inline.invoke(ZERO, config)

    def told(graph: Any) -> list[Any]:
        history = graph.get_state_history(config)
        return [(s.values, s.next, s.metadata, [(t.name, t.path, t.error, t.result) for t in s.tasks]) for s in history]

    assert told(remote) == told(inline)
    assert remote.get_state(config).values == inline.get_state(config).values
    assert remote.get_state({"configurable": {"thread_id": "nobody"}}).values == {}


def test_sends_are_joined(fleet: Client) -> None:
    graph = fleet.graph("fan")
    chunks = list(graph.stream({"count": 0}, stream_mode=["updates", "values"], timeout=10))
    assert chunks[-1] == ("values", {"count": 0, "xs": [0, 1, 2]})
    assert sorted(chunk["part"]["xs"][0] for mode, chunk in chunks if mode == "updates") == [0, 1, 2]


def test_async_callers_wait_without_blocking_their_loop(fleet: Client) -> None:
    async def both() -> tuple[Any, list[Any]]:
        graph = fleet.graph("counter")
        chunks = [chunk async for chunk in graph.astream(ZERO, timeout=10)]
        return await graph.ainvoke(ZERO, timeout=10), chunks

    values, chunks = asyncio.run(both())
    assert values["count"] == 3
    assert [next(iter(chunk)) for chunk in chunks] == ["inc", "check"] * 3


def test_none_continues_what_failed_and_shows_what_is_done(fleet: Client) -> None:
    graph, config = fleet.graph("counter"), {"configurable": {"thread_id": "t"}}
    broken.set()
    with pytest.raises(RunFailed):
        graph.invoke(ZERO, config, timeout=10)
    broken.clear()
    values = graph.invoke(None, config, timeout=10)
    assert values["xs"] == [0, 1, 2]
    assert graph.invoke(None, config, timeout=10) == values
    with pytest.raises(EmptyInputError):
        graph.invoke(None, {"configurable": {"thread_id": "nobody"}})
    with pytest.raises(EmptyInputError):
        graph.invoke(None)


def test_an_update_is_applied_by_a_worker_through_the_reducers(fleet: Client) -> None:
    graph, config = fleet.graph("counter"), {"configurable": {"thread_id": "t"}}
    graph.invoke(ZERO, config, timeout=10)
    place = graph.update_state(config, {"xs": [99], "done": False}, as_node="check", timeout=10)
    snap = graph.get_state(config)
    assert snap.config == place
    assert snap.values["xs"] == [0, 1, 2, 99] and snap.next == ("inc",)
    assert (snap.metadata or {})["source"] == "update"
    assert graph.update_state(config, {"done": True}, timeout=10) != place  # check wrote last
    with pytest.raises(InvalidInput, match="no node"):
        graph.update_state(config, {}, as_node="nobody")
    with pytest.raises(InvalidInput, match="Did you mean 'count'"):
        graph.update_state(config, {"cuont": 1}, as_node="inc")
    fresh: Any = {"configurable": {"thread_id": "fresh"}}
    graph.update_state(fresh, {"count": 1}, timeout=10)  # as START: nothing ran yet
    assert graph.get_state(fresh).next == ("inc",)


def test_a_typed_graph_needs_no_manifest(redis_url: str, client: Any) -> None:
    with connect(redis_url) as made:
        graph = made.graph("counter", counter().compile(InMemorySaver()))
        with pytest.raises(TimeoutError):
            graph.invoke({**ZERO, "at": Point(x=1)}, {"configurable": {"thread_id": "t"}}, timeout=0.05)
        hand = Hand(client, counter(), name="counter")
        hand.drive()
        assert graph.get_state({"configurable": {"thread_id": "t"}}).values["at"] == Point(x=1)


# -- at the door


@pytest.mark.parametrize("actor", [42, None, b"ops"])
def test_an_actor_that_is_no_text_is_refused_before_anything_is_written(idle: Client, actor: Any) -> None:
    """It was written, and whoever read it called the record corrupt."""
    with pytest.raises(InvalidInput, match=rf"actor is text, not the {type(actor).__name__} .*actor=str\("):
        idle.submit("counter", {"count": 1, "done": False}, thread_id="t", actor=actor)
    assert not idle.redis.exists(KEYS.log("t"))
    idle.submit("counter", {"count": 1, "done": False}, thread_id="t")
    with pytest.raises(InvalidInput, match="actor is text"):
        idle.cancel("t", actor=actor)
    assert idle.run("t").status() == "running"


def test_a_record_that_nobody_could_read_is_not_written() -> None:
    with pytest.raises(InvalidInput, match=r"recursion_limit can't be '5'"):
        RunRecord(recursion_limit="5").encode()  # type: ignore[arg-type]


NOWHERE = "redis://127.0.0.1:1/0"
ON: dict[str, Any] = {"configurable": {"thread_id": "t"}}
AT: dict[str, Any] = {"configurable": {"thread_id": "t", "checkpoint_id": "000000000003-5f1c02aa"}}
DATA = {"count": 1, "done": False}
ASKED: dict[str, Any] = {
    "get_state": lambda x: x.get_state(ON),
    "get_state at": lambda x: x.get_state(AT),
    "get_state_history": lambda x: list(x.get_state_history(ON)),
    "get_path": lambda x: x.get_path(ON),
    "update_state": lambda x: x.update_state(ON, {"count": 1}, as_node="inc"),
    "update_state without a node": lambda x: x.update_state(ON, {"count": 1}),
    "update_state there": lambda x: x.update_state(AT, {"count": 1}, as_node="inc"),
    "an input": lambda x: x.update_state(ON, DATA, as_node="__input__"),
    "a copy": lambda x: x.update_state(ON, None, as_node="__copy__"),
    "invoke": lambda x: x.invoke(DATA, ON),
    "invoke None": lambda x: x.invoke(None, ON),
    "invoke there": lambda x: x.invoke(None, AT),
    "a Command": lambda x: x.invoke(Command(resume=1), ON),
    "a Command with an update": lambda x: x.invoke(Command(update={"count": 1}), ON),
    "stream": lambda x: list(x.stream(DATA, ON)),
}


@pytest.mark.parametrize("engine", ["inline", "remote"])
def test_without_a_server_all_methods_of_graphs_say_what_to_do(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of redis-py came through, without a word of where and what."""
    monkeypatch.setattr("everstep_scheduler.inline.driver.START_PATIENCE_S", 0)
    graph = counter().compile(RedisSaver(NOWHERE), name="counter")
    with connect(NOWHERE) as client:
        asked = graph if engine == "inline" else client.graph("counter", graph)
        for what, ask in ASKED.items():
            with pytest.raises(ServerUnavailable, match=r"does not answer.*redis-cli -p 1 ping"):
                ask(asked)
            assert what
