"""Calls of `@task` in the stream modes `tasks` and `debug` are LangGraph's: their begin with their arguments, and what
came of them. From the log, so for any reader at any time; written only where somebody asked when the run began."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver

from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.functional import task
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.inline.entrypoint import entrypoint
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from everstep_scheduler.steps.announcing import ARGS_MAX
from test_functional import OURS, THEIRS
from test_interrupts import on, working
from test_streams_nested import _ID, plain

MODES = ["tasks", "updates", "values", "debug"]
CALLS = ["call_begun", "call_failed"]


class State(TypedDict, total=False):
    x: int


def adding(lib: Any) -> Any:
    return lib.task(lambda x, y=1: x + y, name="add")


def one_by_one(lib: Any, saver: Any) -> Any:
    add = adding(lib)

    @lib.entrypoint(checkpointer=saver)
    def g(x: int) -> int:
        first = add(x, y=2).result()
        result: int = add(first).result()
        return result

    return g


def failing(lib: Any, saver: Any) -> Any:
    """One that is caught, one that is not."""

    @lib.task
    def bad(x: int) -> int:
        raise ValueError(f"bad {x}")

    @lib.entrypoint(checkpointer=saver)
    def g(x: int) -> int:
        with contextlib.suppress(ValueError):
            bad(x).result()
        result: int = bad(x + 1).result()
        return result

    return g


def retried(lib: Any, saver: Any) -> Any:
    """Its tries are not told, only its end."""
    tries: list[int] = []

    @lib.task(retry_policy=lib.RetryPolicy(initial_interval=0.001, jitter=False, retry_on=ValueError))
    def flaky(x: int) -> int:
        tries.append(x)
        if len(tries) % 3:
            raise ValueError("no")
        return x

    @lib.entrypoint(checkpointer=saver)
    def g(x: int) -> int:
        result: int = flaky(x).result()
        return result

    return g


def asking(lib: Any, saver: Any) -> Any:
    """What asks has begun, and came to nothing; what is recorded begins again when the function runs again."""
    add = adding(lib)

    @lib.task
    def asks(x: int) -> Any:
        deeper = add(x).result()
        return [deeper, lib.interrupt(f"q{x}")]

    @lib.entrypoint(checkpointer=saver)
    def g(x: int) -> Any:
        first = add(x).result()
        return [asks(first).result(), lib.interrupt("and")]

    return g


def cached(lib: Any, saver: Any) -> Any:
    """What a cache knows has begun, and no end."""

    @lib.task(cache_policy=lib.CachePolicy())
    def twice(x: int) -> int:
        return 2 * x

    @lib.entrypoint(checkpointer=saver, cache=lib.InMemoryCache())
    def g(x: int) -> int:
        result: int = twice(x).result()
        return result

    return g


def nested(lib: Any, saver: Any) -> Any:
    add = adding(lib)

    @lib.task(name="outer")
    def calls(x: int, *more: int, **named: Any) -> int:
        result: int = add(x).result() + add(*more).result()
        return result

    @lib.entrypoint(checkpointer=saver)
    def g(x: int) -> int:
        result: int = calls(x, x, 7, named="so").result()
        return result

    return g


def in_a_node(lib: Any, saver: Any) -> Any:
    add = adding(lib)
    builder = lib.StateGraph(State).add_node("node", lambda s: {"x": add(s["x"]).result()}, metadata={"of": "node"})
    return builder.add_edge(START, "node").compile(checkpointer=saver, **({"name": "g"} if lib is OURS else {}))


Step = Any  # an input, or ("answer", what)
STORIES: dict[str, tuple[Callable[[Any, Any], Any], list[Step]]] = {
    "one by one": (one_by_one, [1, 2]),
    "a failure": (failing, [1, None]),
    "retries": (retried, [1]),
    "questions": (asking, [1, ("answer", "yes"), ("answer", "no")]),
    "a cache": (cached, [1, 1]),
    "tasks in tasks": (nested, [1]),
    "in a node": (in_a_node, [{"x": 1}]),
}


def told(lib: Any, graph: Any, steps: list[Step], modes: Any = MODES, thread: str = "t", **more: Any) -> list[Any]:
    found: list[Any] = []
    config = {**on(thread), "metadata": {"who": "me"}, "tags": ["tagged"]}
    for step in steps:
        given = lib.Command(resume=step[1]) if isinstance(step, tuple) else step
        try:
            for chunk in graph.stream(given, config, stream_mode=modes, **more):
                found.append(chunk)
        except Exception:  # noqa: BLE001 - both must end alike
            found.append("raised")
    return numbered(found)


def numbered(chunks: list[Any]) -> list[Any]:
    """Chunks with their ids in the order in which they come, so that the same one is the same."""
    known: dict[str, str] = {}
    said = [re.sub(r"'timestamp': '[^']*'", "", repr(_dated(each))) for each in chunks]
    return [_ID.sub(lambda found: known.setdefault(found[0], f"<{len(known)}>"), each) for each in said]


def _dated(value: Any) -> Any:
    """With dicts in one order, without what `debug` says of checkpoints, and errors as their text."""
    if isinstance(value, dict):
        if value.get("type") == "checkpoint":
            return "a checkpoint"
        return {key: _dated(each) for key, each in sorted(value.items())}
    if isinstance(value, tuple | list):
        return type(value)(_dated(each) for each in value)
    return plain(value) if isinstance(value, Exception) or hasattr(value, "response_schema") else value


def theirs(story: str, modes: Any = MODES) -> list[Any]:
    build, steps = STORIES[story]
    return told(THEIRS, build(THEIRS, OracleSaver()), steps, modes, durability="sync")


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_calls_of_tasks_are_told_as_in_langgraph(story: str, kind: str, request: pytest.FixtureRequest) -> None:
    build, steps = STORIES[story]
    saver = InMemorySaver() if kind == "memory" else RedisSaver(request.getfixturevalue("redis_url"))
    ours = build(OURS, saver)
    assert told(OURS, ours, steps) == theirs(story)
    assert not verify(saver.log, "t").problems


def test_calls_of_tasks_are_told_the_same_on_workers(redis_url: str) -> None:
    """With the code, and without it."""
    graphs = {story: build(OURS, None).named(f"g{i}") for i, (story, (build, _)) in enumerate(STORIES.items())}
    with working(redis_url, *graphs.values(), concurrency=2), connect(redis_url) as client:
        for story, graph in graphs.items():
            if story == "a cache":
                continue  # the fleet's is its own
            for known in (graph, None):
                remote, thread = client.graph(graph.name, known), f"{story}, {'typed' if known else 'plain'}"
                modes = ["tasks", "updates"]
                found = told(OURS, remote, STORIES[story][1], modes, thread, timeout=20)
                wanted = theirs(story, modes)
                if known is None:  # of its node nobody knows more than the log
                    wanted = [each.replace("'of': 'node', ", "") for each in wanted]
                assert found == wanted, thread


def test_async_calls_that_run_beside_each_other_are_told_as_in_langgraph() -> None:
    def made(lib: Any, saver: Any) -> Any:
        @lib.task
        async def slow(x: int) -> int:
            await asyncio.sleep(0.02 * x)
            if x == 3:
                raise ValueError("three")
            return x

        @lib.entrypoint(checkpointer=saver)
        async def g(x: int) -> Any:
            return repr(await asyncio.gather(*(slow(each) for each in (2, 3, 1)), return_exceptions=True))

        return g

    async def chunks(graph: Any, **more: Any) -> list[Any]:
        return numbered([x async for x in graph.astream(1, on("t"), stream_mode=["tasks", "updates"], **more)])

    ours = asyncio.run(chunks(made(OURS, InMemorySaver())))
    assert ours == asyncio.run(chunks(made(THEIRS, OracleSaver()), durability="sync"))


@pytest.mark.parametrize("kind", ["memory", "redis", "workers"])
def test_a_call_is_told_while_it_runs(kind: str, request: pytest.FixtureRequest) -> None:
    heard = threading.Event()

    @task
    def waits(x: int) -> int:
        assert heard.wait(10), "its begin reaches the caller before its end"
        return x

    @entrypoint(checkpointer=InMemorySaver() if kind == "memory" else RedisSaver(request.getfixturevalue("redis_url")))
    def g(x: int) -> int:
        return waits(x).result()

    def listen(graph: Any) -> list[Any]:
        found: list[Any] = []
        for chunk in graph.stream(1, on("t"), stream_mode="tasks"):
            found.append(chunk["name"])
            if chunk["name"] == "waits":
                heard.set()
        return found

    if kind != "workers":
        assert listen(g) == ["g", "waits", "waits", "g"]
        return
    with working(url := request.getfixturevalue("redis_url"), g.named("g")), connect(url) as client:
        assert listen(client.graph("g")) == ["g", "waits", "waits", "g"]


def test_any_process_reads_the_calls_of_a_run_and_goes_on_behind_any_of_them(redis_url: str) -> None:
    graph = nested(OURS, None).named("g")
    with working(redis_url, graph), connect(redis_url) as client:
        run = client.submit("g", 1, thread_id="t", stream_mode=["debug"])
        whole = list(run.events(["tasks", "updates"], timeout=20))
        assert len([event for event in whole if event.mode == "tasks"]) == 8
        for i, event in enumerate(whole):
            with connect(redis_url) as another:
                rest = list(another.run("t").events(["tasks", "updates"], after=event.cursor, timeout=10))
            assert [(x.mode, x.chunk) for x in rest] == [(x.mode, x.chunk) for x in whole[i + 1 :]]


def test_where_nobody_asked_calls_cost_what_they_did_and_are_told_in_updates(redis_url: str) -> None:
    graph = one_by_one(OURS, None).named("g")
    with working(redis_url, graph), connect(redis_url) as client:
        found = list(client.graph("g").stream(1, on("t"), stream_mode=["updates", "values"], timeout=20))
        assert found[:2] == [("updates", {"add": 3}), ("updates", {"add": 4})]
        assert [x.kind for x in client.log_store.read("t") if x.kind in CALLS] == []
        late = [event.chunk["name"] for event in client.run("t").events("tasks", timeout=10)]
    assert late == ["g", "g"], "no begin without its end, no end without its begin"


class Odd:
    """No log can have it."""


def test_arguments_that_cannot_be_stored_or_are_long_fail_nothing_and_are_named(redis_url: str) -> None:
    @task
    def takes(*args: Any, **kwargs: Any) -> int:
        return len(args) + len(kwargs)

    @entrypoint(checkpointer=RedisSaver(redis_url))
    def g(x: int) -> int:
        return takes(1, Odd(), "long" * ARGS_MAX, odd=[Odd()], fine={"a": (1, b"2")}).result()

    begun = list(g.stream(1, on("t"), stream_mode="tasks"))[1]
    long = f"<str, {4 * ARGS_MAX + 5:,} bytes>"
    args = (1, f"<{__name__}.Odd>", long)
    assert begun["input"] == (args, {"odd": "<list>", "fine": {"a": (1, b"2")}})
    assert g.invoke(1, on("u")) == 5


def test_what_a_call_began_with_is_told_as_it_was_then() -> None:
    @task
    def empties(given: list[int]) -> int:
        given.clear()
        return 0

    @entrypoint(checkpointer=InMemorySaver())
    def g(x: int) -> int:
        return empties([x, x]).result()

    assert next(x for x in g.stream(1, on("t"), stream_mode="tasks") if x["name"] == "empties")["input"] == (
        ([1, 1],),
        {},
    )


def test_an_attempt_that_comes_after_another_tells_its_calls_again_with_the_same_ids() -> None:
    tries: list[int] = []
    add = adding(OURS)

    def node(state: State) -> State:
        tries.append(1)
        found = add(state["x"]).result()
        if len(tries) == 1:
            raise ValueError("once")
        return {"x": found}

    graph = StateGraph(State).add_node("node", node).add_edge(START, "node").compile(checkpointer=InMemorySaver())
    with pytest.raises(ValueError, match="once"):
        graph.invoke({"x": 1}, on("t"), stream_mode="tasks")
    again = [each for each in graph.stream(None, on("t"), stream_mode="tasks") if each["name"] == "add"]
    assert [sorted(each) for each in again] == [["id", "input", "name", "triggers"]], "its record spoke for it"
