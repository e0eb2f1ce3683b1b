"""Streams with `subgraphs=True` tell what runs in graphs that functions call, as LangGraph's do: nodes, routers and
`@task`s, inline and on workers, from the logs. The stories of `test_called.py`; how they are compared stands in
`test_streams_nested.py`."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver

import test_functional as functional
from everstep_checkpoint.errors import NodeTimeoutError
from everstep_checkpoint.log import Log
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from everstep_scheduler.reading.children import children
from servers import run_seed
from test_called import STORIES, family
from test_called_edited import STORIES as EDITED
from test_called_edited import Edit
from test_events_nested import apart
from test_interrupts import IN, Answer, on, says, waiting, working
from test_streams import OURS, THEIRS
from test_streams_nested import MODES, by_graph, compared, joined, plain, told
from test_subgraphs import chain

EDIT_MODES = ["values", "updates", "tasks"]


def theirs(story: str, modes: Any = MODES) -> list[list[Any]]:
    build, steps = STORIES[story]
    return told(THEIRS, build(THEIRS).compile(checkpointer=OracleSaver()), steps, modes, durability="sync")


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_what_runs_in_graphs_that_functions_call_is_told_as_in_langgraph(
    story: str, kind: str, request: pytest.FixtureRequest
) -> None:
    build, steps = STORIES[story]
    saver = InMemorySaver() if kind == "memory" else RedisSaver(request.getfixturevalue("redis_url"))
    ours = build(OURS).compile(checkpointer=saver, name="g")
    compared(told(OURS, ours, steps, MODES), theirs(story))


def test_what_runs_in_graphs_that_functions_call_is_told_the_same_on_workers(redis_url: str) -> None:
    graphs = {story: build(OURS).compile(name=f"g{i}") for i, (story, (build, _)) in enumerate(STORIES.items())}
    with working(redis_url, *graphs.values(), concurrency=2), connect(redis_url) as client:
        for story, graph in graphs.items():
            for compiled in (graph,) if "fail" in story else (graph, None):  # it fails but once
                remote, thread = client.graph(graph.name, compiled), f"{story}, {'typed' if compiled else 'plain'}"
                modes = MODES if compiled is not None else ["updates"]
                compared(told(OURS, remote, STORIES[story][1], modes, thread, timeout=20), theirs(story, modes), thread)


@pytest.mark.parametrize("story", EDITED)
def test_what_was_edited_meanwhile_is_told_as_in_langgraph(story: str) -> None:
    """Where an answer comes behind an edit the graph goes on twice within one run of its caller, and is told once."""
    build, steps = EDITED[story]
    ours = build(OURS).compile(checkpointer=InMemorySaver(), name="g")
    his = build(THEIRS).compile(checkpointer=OracleSaver())
    for i, step in enumerate(steps):
        if isinstance(step, Edit):
            assert step(ours) == step(his)
            continue
        (got,) = told(OURS, ours, [step], EDIT_MODES)
        (wanted,) = told(THEIRS, his, [step], EDIT_MODES, durability="sync")
        assert by_graph(got) == by_graph(wanted), f"step {i}"


def test_an_answer_that_came_before_its_question_is_no_question_to_who_listens() -> None:
    steps, stops = [IN, Answer("early"), Answer("late")], {"interrupt_before": ["node"]}
    build = STORIES["questions in it"][0]
    ours = build(OURS).compile(checkpointer=InMemorySaver(), name="g", **stops)
    his = build(THEIRS).compile(checkpointer=OracleSaver(), **stops)
    modes = ["values", "updates", "tasks"]
    compared(told(OURS, ours, steps, modes), told(THEIRS, his, steps, modes, durability="sync"))


def test_random_graphs_that_call_graphs_are_told_as_in_langgraph() -> None:
    """Through answers and continues; LangGraph names joins by the order of their starts."""
    dice, modes = random.Random(run_seed()), ["values", "updates", "tasks"]
    for _ in range(3):
        seed = dice.randrange(2**31)
        mine = family(OURS, random.Random(seed)).compile(checkpointer=InMemorySaver(), name="g")
        his = family(THEIRS, random.Random(seed)).compile(checkpointer=OracleSaver())
        own = random.Random(seed)
        for turn in range(5):
            asked = waiting(mine.get_state(on("t")).interrupts)
            picked = {x: own.randint(0, 9) for x in own.sample(asked, own.randint(1, len(asked)))} if asked else {}
            step = IN if turn == 0 else Answer(to=picked) if asked else None
            (got,), (wanted,) = told(OURS, mine, [step], modes), told(THEIRS, his, [step], modes, durability="sync")
            assert joined(by_graph(got)) == joined(by_graph(wanted)), f"seed {seed}, turn {turn}: {step}"


# -- words, tasks, async


class Count(TypedDict, total=False):
    x: int


def leaf(lib: Any, sleep: float = 0.0) -> Any:
    def inc(state: Count) -> Count:
        for k in range(2):
            lib.get_stream_writer()(f"{state['x']}.{k}")
        return {"x": state["x"] + 1}

    async def ainc(state: Count) -> Count:
        await asyncio.sleep(sleep * state["x"])
        return inc(state)

    builder = lib.StateGraph(Count).add_node("inc", ainc if sleep else inc).add_edge(START, "inc")
    return builder.add_node("also", inc if not sleep else ainc).add_edge("inc", "also").compile()


def api(lib: Any) -> Any:
    return functional.OURS if lib is OURS else functional.THEIRS


def calls_everywhere(lib: Any, saver: Any) -> Any:
    """A graph called by an entrypoint, by its tasks, in a graph that a node calls, in one that is a node."""
    child = leaf(lib)

    @api(lib).task
    def once_or_twice(x: int, more: bool = False) -> int:
        found = child.invoke({"x": x})["x"]
        result: int = child.invoke({"x": found})["x"] if more else found
        return result

    def node(state: Count) -> Count:
        return {"x": child.invoke({"x": state["x"]})["x"]}

    middle = lib.StateGraph(Count).add_node("node", node).add_edge(START, "node").compile()
    outer = lib.StateGraph(Count).add_node("sub", middle).add_node("then", lambda s: middle.invoke(s))
    outer = outer.add_edge(START, "sub").add_edge("sub", "then").compile()

    @api(lib).entrypoint(checkpointer=saver)
    def g(x: int) -> Any:
        lib.get_stream_writer()("begun")
        first = once_or_twice(x).result()
        return [child.invoke({"x": first})["x"], once_or_twice(x, more=True).result(), outer.invoke({"x": x})["x"]]

    return g


def beside(lib: Any, saver: Any) -> Any:
    """Async: two calls at once, by a node."""
    child = leaf(lib, sleep=0.01)

    async def node(state: Count) -> Count:
        found = await asyncio.gather(child.ainvoke({"x": 1}), child.ainvoke({"x": 5}))
        return {"x": sum(each["x"] for each in found)}

    builder = lib.StateGraph(Count).add_node("node", node).add_edge(START, "node")
    return builder.compile(checkpointer=saver, **({"name": "g"} if lib is OURS else {}))


def in_modes(chunks: list[Any]) -> Any:
    """By graph, what nodes say for itself: words come while what the log says is read."""
    words = [each for each in chunks if each[1] == "custom"]
    return by_graph([each for each in chunks if each[1] != "custom"]), by_graph(words)


@pytest.mark.parametrize("kind", ["memory", "redis", "workers"])
def test_calls_by_tasks_and_entrypoints_and_what_is_said_there_have_langgraphs_namespaces(
    kind: str, request: pytest.FixtureRequest
) -> None:
    modes = ["tasks", "updates", "values", "custom"]

    def chunks(graph: Any, **more: Any) -> list[Any]:
        return list(graph.stream(1, on("t"), stream_mode=modes, subgraphs=True, **more))

    wanted = chunks(calls_everywhere(THEIRS, OracleSaver()), durability="sync")
    assert len(by_graph(wanted)) == 10
    url = request.getfixturevalue("redis_url") if kind != "memory" else ""
    graph = calls_everywhere(OURS, RedisSaver(url) if kind == "redis" else InMemorySaver())
    if kind != "workers":
        found = chunks(graph)
        assert in_modes(found) == in_modes(wanted)
        assert same_ids(found) == same_ids(wanted), "a namespace has the ids of the tasks above"
        return
    with working(url, served := graph.named("g")), connect(url) as client:
        assert in_modes(chunks(client.graph("g", served), timeout=20)) == in_modes(wanted)


def same_ids(chunks: list[Any]) -> set[Any]:
    """Of each namespace, which tasks are named there."""
    names = {chunk["id"]: chunk["name"] for _, mode, chunk in chunks if mode == "tasks" and "input" in chunk}
    return {tuple(names.get(each.partition(":")[2], each) for each in ns) for ns, _, _ in chunks}


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_async_calls_beside_each_other_are_told_as_in_langgraph(kind: str, request: pytest.FixtureRequest) -> None:
    async def chunks(graph: Any, **more: Any) -> Any:
        modes = ["tasks", "updates", "values", "custom"]
        return in_modes([x async for x in graph.astream({"x": 0}, on("t"), stream_mode=modes, subgraphs=True, **more)])

    saver = InMemorySaver() if kind == "memory" else RedisSaver(request.getfixturevalue("redis_url"))
    wanted = asyncio.run(chunks(beside(THEIRS, OracleSaver()), durability="sync"))
    assert asyncio.run(chunks(beside(OURS, saver))) == wanted


def test_without_subgraphs_nothing_is_told_of_what_functions_call() -> None:
    modes = ["tasks", "updates", "values", "custom"]
    mine = list(beside_sync(OURS, InMemorySaver()).stream({"x": 1}, on("t"), stream_mode=modes))
    his = list(beside_sync(THEIRS, OracleSaver()).stream({"x": 1}, on("t"), stream_mode=modes, durability="sync"))
    assert plain(mine) == plain(his)


def beside_sync(lib: Any, saver: Any) -> Any:
    child = leaf(lib)
    builder = lib.StateGraph(Count).add_node("node", lambda s: {"x": child.invoke(s)["x"]}).add_edge(START, "node")
    return builder.compile(checkpointer=saver)


def test_a_node_that_streams_what_it_calls_takes_nothing_from_who_listens_to_the_node() -> None:
    def made(lib: Any, saver: Any, seen: list[Any]) -> Any:
        child = leaf(lib)

        def node(state: Count) -> Count:
            seen.extend(child.stream({"x": state["x"]}, stream_mode=["custom", "updates"]))
            return {"x": 7}

        return lib.StateGraph(Count).add_node("node", node).add_edge(START, "node").compile(checkpointer=saver)

    def chunks(lib: Any, saver: Any, **more: Any) -> Any:
        seen: list[Any] = []
        graph = made(lib, saver, seen)
        found = list(graph.stream({"x": 1}, on("t"), stream_mode=["updates", "tasks"], subgraphs=True, **more))
        return by_graph(found), sorted(map(repr, plain(seen)))

    assert chunks(OURS, InMemorySaver()) == chunks(THEIRS, OracleSaver(), durability="sync")


@pytest.mark.parametrize("kind", ["memory", "redis", "workers"])
def test_chunks_of_what_a_node_calls_come_while_the_node_runs(kind: str, request: pytest.FixtureRequest) -> None:
    heard = threading.Event()
    child = leaf(OURS)

    def node(state: Count) -> Count:
        child.invoke({"x": 1})
        assert heard.wait(10), "what it called is told before it ends"
        return {"x": 1}

    def listen(graph: Any) -> list[Any]:
        found: list[Any] = []
        for ns, mode, chunk in graph.stream({"x": 0}, on("t"), stream_mode=["updates", "custom"], subgraphs=True):
            found.append((plain(ns), mode, chunk))
            if mode == "updates" and "also" in chunk:
                heard.set()
        return [each for each in found if each[1] == "updates"]

    url = request.getfixturevalue("redis_url") if kind != "memory" else ""
    saver = RedisSaver(url) if kind == "redis" else InMemorySaver()
    graph = OURS.StateGraph(Count).add_node("node", node).add_edge(START, "node").compile(checkpointer=saver, name="g")
    with contextlib.ExitStack() as stack:
        remote = graph
        if kind == "workers":
            stack.enter_context(working(url, graph))
            remote = stack.enter_context(connect(url)).graph("g", graph)
        assert listen(remote) == [
            (("node:id",), "updates", {"inc": {"x": 2}}),
            (("node:id",), "updates", {"also": {"x": 3}}),
            ((), "updates", {"node": {"x": 1}}),
        ]


# -- events


def test_a_reader_who_comes_back_to_any_cursor_gets_exactly_the_rest_of_what_functions_called(redis_url: str) -> None:
    graph = calls_everywhere(OURS, None).named("g")
    modes = ["tasks", "updates", "values", "custom"]
    with working(redis_url, graph), connect(redis_url) as client:
        run = client.submit("g", 1, thread_id="t", stream_mode=["tasks", "custom"], subgraphs=True)
        whole = list(run.events(modes, timeout=20, subgraphs=True))
        assert len({event.ns for event in whole}) == 10
        with connect(redis_url) as another:
            for i, event in enumerate(whole):
                rest = list(another.run("t").events(modes, after=event.cursor, timeout=10, subgraphs=True))
                assert apart(rest) == apart(whole[i + 1 :]), f"behind {event.cursor}"
        assert max(len(event.cursor) for event in whole) < 500, "what was told to its end is in no cursor"


def test_each_run_of_a_thread_tells_what_went_on_in_it_also_to_who_comes_late(redis_url: str) -> None:
    """A question in it, two graphs called by the node: the run that answers tells how the first one stands."""
    build, steps = STORIES["three calls"]
    asking, answers = STORIES["questions in it"]
    with (
        working(redis_url, build(OURS).compile(name="a"), asking(OURS).compile(name="b")),
        connect(redis_url) as client,
    ):
        for name, story, inputs in (("a", "three calls", steps), ("b", "questions in it", answers)):
            live = told(OURS, client.graph(name), inputs, ["updates", "values"], story, timeout=20)
            runs = [x.text("run") for x in client.log_store.read(story) if x.kind == "run_started"]
            assert len(runs) == len([each for each in inputs if each is not None])
            for run, chunks in zip(runs, live, strict=False):
                late = client.run(story, run).chunks(["updates"], 10, subgraphs=True)
                assert by_graph(list(late)) == by_graph([each for each in chunks if each[1] == "updates"])


def test_a_new_attempt_goes_on_in_the_same_namespace_and_tells_the_error_itself() -> None:
    """LangGraph begins what was called anew, on a namespace of its own."""
    tries: list[int] = []

    def flaky(state: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("once")
        return {"log": ["flaky"]}

    child = chain(OURS, ("before", says("before")), ("flaky", flaky)).compile()
    builder = chain(OURS)
    builder.add_node(
        "node",
        lambda state: child.invoke({"log": []}),
        retry_policy=RetryPolicy(initial_interval=0.001, jitter=False, retry_on=ValueError),
    )
    graph = builder.add_edge(START, "node").compile(checkpointer=InMemorySaver())
    found = list(graph.stream(IN, on("t"), stream_mode=["tasks", "updates"], subgraphs=True))
    below = [(mode, chunk) for ns, mode, chunk in found if ns]
    assert len({ns for ns, _, _ in found}) == 2
    names = [chunk["name"] if mode == "tasks" else next(iter(chunk)) for mode, chunk in below]
    assert names == ["before", "before", "before", "flaky", "flaky", "flaky", "flaky", "flaky"]
    (error,) = [chunk["error"] for mode, chunk in below if mode == "tasks" and chunk.get("error")]
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("kind", ["memory", "workers"])
def test_an_attempt_that_is_over_in_the_middle_of_a_called_graph_is_followed_by_the_next_one(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The same run of what was called goes on: each of its chunks is told once, to all readers."""
    over = threading.Event()

    def slow(state: Any) -> Any:
        if not over.is_set():
            over.wait(10)
        return {"log": ["slow"]}

    child = chain(OURS, ("before", says("before")), ("slow", slow), ("behind", says("behind"))).compile()
    tries: list[int] = []

    def node(state: Any) -> Any:
        tries.append(1)
        if len(tries) > 1:
            over.set()
        return child.invoke({"log": []})

    policy = RetryPolicy(initial_interval=0.001, jitter=False, retry_on=NodeTimeoutError)
    builder = chain(OURS).add_node("node", node, timeout=0.3, retry_policy=policy)
    graph = builder.add_edge(START, "node").compile(checkpointer=InMemorySaver(), name="g")
    with contextlib.ExitStack() as stack:
        remote: Any = graph
        if kind == "workers":
            url = request.getfixturevalue("redis_url")
            stack.enter_context(working(url, graph))
            client = stack.enter_context(connect(url))
            remote = client.graph("g", graph)
        modes = ["tasks", "updates", "values"]
        found = list(remote.stream(IN, on("t"), stream_mode=modes, subgraphs=True))
        if kind == "workers":
            late = list(client.run("t").chunks(["updates"], 10, subgraphs=True))
            assert by_graph(late) == by_graph([each for each in found if each[1] == "updates"])
    assert len(tries) == 2
    below = [(mode, chunk) for ns, mode, chunk in found if ns]
    assert [chunk["name"] for mode, chunk in below if mode == "tasks"] == [
        name for each in ("before", "slow", "behind") for name in (each, each)
    ]
    assert [chunk for mode, chunk in below if mode == "updates"] == [
        {each: {"log": [each]}} for each in ("before", "slow", "behind")
    ]


def kinds(log: Log, thread: str) -> list[str]:
    return [x.kind for x in log.read(thread)] + [kind for each in children(log, thread) for kind in kinds(log, each)]


def test_where_nobody_listens_the_logs_are_the_same(redis_url: str) -> None:
    build: Callable[[Any], Any] = STORIES["three calls"][0]
    logs: list[list[str]] = []
    for how in ("invoke", "stream"):
        saver = RedisSaver(redis_url)
        graph = build(OURS).compile(checkpointer=saver, name="g")
        if how == "invoke":
            graph.invoke(IN, on(how))
        else:
            list(graph.stream(IN, on(how), stream_mode=["updates", "values"], subgraphs=True))
        logs.append(kinds(saver.log, how))
    assert logs[0] == logs[1]


def test_what_was_said_in_called_graphs_goes_with_their_thread(redis_url: str) -> None:
    graph = calls_everywhere(OURS, None).named("g")
    with working(redis_url, graph), connect(redis_url) as client:
        run = client.submit("g", 1, thread_id="t", stream_mode="custom", subgraphs=True)
        assert len(list(run.events("custom", timeout=20, subgraphs=True))) > 10
        assert len(client.redis.keys("everstep:{0}:live:*")) > 5
        client.delete("t")
        assert client.redis.keys("everstep:{0}:live:*") == []
        assert client.redis.keys("everstep:{0}:within:*") == []
