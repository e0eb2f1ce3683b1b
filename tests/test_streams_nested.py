"""Streams with `subgraphs=True` are LangGraph's: what runs in graphs that are nodes is told, each chunk with its
namespace. The stories of `test_subgraphs.py`, inline, on Redis and on workers; resumed from any event, by anybody.

Chunks of one namespace are compared in their order, those of one superstep as a multiset; over namespaces what
LangGraph promises: all of a graph's chunks come between the begin of its task and what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
from collections import defaultdict
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver

from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.asking import get_stream_writer
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from servers import run_seed
from test_interrupts import IN, Answer, State, asks, on, says, waiting, working
from test_streams import LOG_MODES, OURS, THEIRS, Chat, TheirChat
from test_subgraphs import STORIES, chain

_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[A-Za-z0-9_-]{43}|\d{12}-[0-9a-f]{8}|[0-9a-f]{32}"
)
OURS_ALONE = {"task_id", "attempt", "lc_versions"}


def plain(value: Any, key: str = "") -> Any:
    """A chunk with its ids and times made the same."""
    if key == "timestamp":
        return "time"
    if key in ("id", "thread_id"):
        return key
    if isinstance(value, dict):
        kept = {plain(k): plain(v, k) for k, v in value.items() if k not in OURS_ALONE}
        return dict(sorted(kept.items()))
    if isinstance(value, (list, tuple)):
        found = [plain(each) for each in value]
        # questions of one graph stand in the order of LangGraph's threads
        return type(value)(sorted(found, key=repr) if key in ("interrupts", "__interrupt__") else found)
    if isinstance(value, Exception):
        return repr(value)  # as its text, which is all that a worker's error is elsewhere
    if hasattr(value, "response_schema"):
        return f"Interrupt({value.value!r})"
    if hasattr(value, "model_copy") and hasattr(value, "content"):
        return f"{type(value).__name__}({value.content!r})"
    return _ID.sub("id", value) if isinstance(value, str) else value


def in_order(told: list[Any]) -> list[Any]:
    """Chunks with those of a superstep sorted; values beside a question are no end of one."""
    steps: list[list[Any]] = [[]]
    for mode, chunk in told:
        steps[-1].append(f"{mode} {chunk}")
        if mode == "checkpoints" or (mode == "values" and "__interrupt__" not in chunk):
            steps.append([])
    return [sorted(step) for step in steps]


def by_graph(chunks: list[Any]) -> list[Any]:
    """The chunks of each namespace, in order, with those of a superstep sorted."""
    found: dict[Any, list[Any]] = defaultdict(list)
    for ns, mode, chunk in chunks:
        found[ns].append((mode, plain(chunk)))
    return sorted((plain(ns), in_order(told)) for ns, told in found.items())


def nested_within(chunks: list[Any]) -> bool:
    """Does each graph speak only while its task is under way?"""
    under_way: set[str] = set()
    for ns, mode, chunk in chunks:
        task = ns[-1].partition(":")[2] if ns else ""
        if task and task not in under_way:
            return False
        if mode == "tasks":
            (under_way.discard if "result" in chunk else under_way.add)(chunk["id"])
    return True


def told(lib: Any, graph: Any, steps: list[Any], modes: Any, thread: str = "t", **more: Any) -> list[list[Any]]:
    """The chunks of each call, and how it ended."""
    found: list[list[Any]] = []
    for step in steps:
        given = answered(lib, graph, step, thread) if isinstance(step, Answer) else step
        chunks: list[Any] = []
        try:
            chunks += graph.stream(given, on(thread), stream_mode=modes, subgraphs=True, **more)
        except Exception:  # noqa: BLE001 - both must end alike
            chunks.append(((), "ended", "raised"))
        found.append(chunks)
    return found


def answered(lib: Any, graph: Any, step: Answer, thread: str) -> Any:
    ids = {each.value: each.id for each in graph.get_state(on(thread)).interrupts} if step.to else {}
    return lib.Command(resume={ids[q]: a for q, a in step.to.items()} if step.to else step.value)


def compared(mine: list[list[Any]], theirs: list[list[Any]], story: str = "") -> None:
    for i, (our, their) in enumerate(zip(mine, theirs, strict=True)):
        assert by_graph(our) == by_graph(their), f"{story}: call {i}"
        assert nested_within(our) or not any(mode == "tasks" for _, mode, _ in our), f"call {i}"


MODES = [*LOG_MODES, "custom"]


# LangGraph lets a sibling of a node end that has a Command for the parent; here it is given up.
TOLD = {name: story for name, story in STORIES.items() if name != "a Command beside a sibling"}


def theirs(story: str, modes: Any = MODES) -> list[list[Any]]:
    build, steps = STORIES[story]
    return told(THEIRS, build(THEIRS).compile(checkpointer=OracleSaver()), steps, modes, durability="sync")


@pytest.mark.parametrize("story", TOLD)
@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_what_runs_in_graphs_in_graphs_is_told_as_in_langgraph(
    story: str, kind: str, request: pytest.FixtureRequest
) -> None:
    build, steps = TOLD[story]
    saver = InMemorySaver() if kind == "memory" else RedisSaver(request.getfixturevalue("redis_url"))
    ours = build(OURS).compile(checkpointer=saver, name="g")
    compared(told(OURS, ours, steps, MODES), theirs(story))


def test_what_runs_in_graphs_in_graphs_is_told_the_same_on_workers(redis_url: str) -> None:
    graphs = {story: build(OURS).compile(name=f"g{i}") for i, (story, (build, _)) in enumerate(TOLD.items())}
    with working(redis_url, *graphs.values(), concurrency=2), connect(redis_url) as client:
        for story, graph in graphs.items():
            for compiled in (graph,) if story.startswith("it fails") else (graph, None):  # it fails but once
                remote, thread = client.graph(graph.name, compiled), f"{story}, {'typed' if compiled else 'plain'}"
                modes = MODES if compiled is not None else ["updates"]
                compared(told(OURS, remote, TOLD[story][1], modes, thread, timeout=20), theirs(story, modes), thread)


def family(lib: Any, dice: random.Random, depth: int = 2, prefix: str = "") -> Any:
    """A random graph: nodes that say, ask, or are such graphs, some of which stop at a node; joins."""
    names = [f"{prefix}{letter}" for letter in "abcd"[: dice.randint(1, 4)]]
    graph = lib.StateGraph(State)
    for name in names:
        kind = dice.random()
        if depth and kind < 0.5:
            inner, stops = family(lib, dice, depth - 1, f"{name}_"), {}
            if depth == 2 and dice.random() < 0.5:  # deeper down, LangGraph passes one when a sibling is answered
                stops = {dice.choice(["interrupt_before", "interrupt_after"]): [f"{name}_a"]}
            graph.add_node(name, inner.compile(**stops))
        else:
            questions = [f"{name}{i}" for i in range(dice.choice([1, 1, 2]))]
            graph.add_node(name, asks(lib, name, *questions) if kind < 0.75 else says(name))
    for place, name in enumerate(names):
        graph.add_edge(dice.choice([START, *names[:place]]), name)
    if len(names) > 2 and dice.random() < 0.5:
        graph.add_edge(dice.sample(names[:2], 2), dice.choice([*names[2:], END]))
    return graph


def test_random_graphs_in_graphs_are_told_as_in_langgraph() -> None:
    """Through answers and continues. Of a child that stopped LangGraph's checkpoints go on to show what it once asked,
    and it names joins by the order of their starts."""
    dice, modes = random.Random(run_seed()), ["values", "updates", "tasks"]
    for _ in range(15):
        seed = dice.randrange(2**31)
        mine = family(OURS, random.Random(seed)).compile(checkpointer=InMemorySaver(), name="g")
        his = family(THEIRS, random.Random(seed)).compile(checkpointer=OracleSaver())
        own = random.Random(seed)
        for turn in range(6):
            asked = waiting(mine.get_state(on("t")).interrupts)
            picked = {x: own.randint(0, 9) for x in own.sample(asked, own.randint(1, len(asked)))} if asked else {}
            step = IN if turn == 0 else Answer(to=picked) if asked else None
            (got,), (wanted,) = told(OURS, mine, [step], modes), told(THEIRS, his, [step], modes, durability="sync")
            assert joined(by_graph(got)) == joined(by_graph(wanted)), f"seed {seed}, turn {turn}: {step}"
            assert nested_within(got), f"seed {seed}, turn {turn}: {step}"


def joined(value: Any) -> str:
    return re.sub(r"join:([^:]*):", lambda found: f"join:{'+'.join(sorted(found[1].split('+')))}:", repr(value))


# -- shapes


@pytest.mark.parametrize("mode", [*MODES, "messages"])
def test_one_mode_alone_gives_pairs(mode: str) -> None:
    def shapes(lib: Any, **more: Any) -> Any:
        graph = talking(lib).compile(checkpointer=(OracleSaver if lib is THEIRS else InMemorySaver)(), name="g")
        return by_graph([(ns, mode, chunk) for ns, chunk in graph.stream(
            {"messages": [HumanMessage("hi", id="h")]}, on("t"), stream_mode=mode, subgraphs=True, **more
        )])  # fmt: skip

    assert shapes(OURS) == shapes(THEIRS, durability="sync")


def talking(lib: Any, depth: int = 2) -> Any:
    """A node that writes and talks, in a graph in a graph in a graph; each has a node of its own, too."""

    def says(state: Any, config: RunnableConfig) -> Any:
        lib.get_stream_writer()({"depth": depth})
        model = GenericFakeChatModel(messages=iter([AIMessage(f"hello from {depth}")]))
        return {"messages": [model.invoke(state["messages"], config)]}

    builder = lib.StateGraph(Chat if lib is OURS else TheirChat).add_node("says", says, metadata={"of": f"says{depth}"})
    builder.add_node("also", lambda state: {"messages": [AIMessage(f"also {depth}")]}).add_edge(START, "says")
    if not depth:
        return builder.add_edge("says", "also")
    builder.add_node("below", talking(lib, depth - 1).compile(), metadata={"of": "below"})
    return builder.add_edge("says", "below").add_edge("below", "also")


@pytest.mark.parametrize("kind", ["memory", "redis", "workers"])
@pytest.mark.parametrize("nested", [True, False])
def test_what_nodes_say_is_told_with_the_namespace_of_their_graph(
    kind: str, nested: bool, request: pytest.FixtureRequest
) -> None:
    """Without `subgraphs` the outermost graph's alone, and the messages that come out of a graph in it."""
    modes, data = ["custom", "messages", "updates"], {"messages": [HumanMessage("hi", id="h")]}
    config = {**on("t"), "metadata": {"who": "me"}}

    def chunks(lib: Any, graph: Any, **more: Any) -> Any:
        found = list(graph.stream(data, config, stream_mode=modes, subgraphs=nested, **more))
        return by_graph(found if nested else [((), *each) for each in found])

    wanted = chunks(THEIRS, talking(THEIRS).compile(checkpointer=OracleSaver()), durability="sync")
    if kind == "memory":
        assert chunks(OURS, talking(OURS).compile(checkpointer=InMemorySaver(), name="g")) == wanted
        return
    url = request.getfixturevalue("redis_url")
    compiled = talking(OURS).compile(checkpointer=RedisSaver(url), name="g")
    if kind == "redis":
        assert chunks(OURS, compiled) == wanted
        return
    with working(url, compiled), connect(url) as client:
        assert chunks(OURS, client.graph("g", compiled), timeout=20) == wanted


def test_async_callers_are_told_the_same() -> None:
    async def chunks(graph: Any, **more: Any) -> Any:
        given: Any = {"messages": [HumanMessage("hi", id="h")]}
        modes = ["custom", "messages", "updates", "values"]
        return by_graph([x async for x in graph.astream(given, on("t"), stream_mode=modes, subgraphs=True, **more)])

    ours = asyncio.run(chunks(talking(OURS).compile(checkpointer=InMemorySaver(), name="g")))
    assert ours == asyncio.run(chunks(talking(THEIRS).compile(checkpointer=OracleSaver()), durability="sync"))


@pytest.mark.parametrize("kind", ["memory", "workers"])
def test_invoke_tells_it_too(kind: str, request: pytest.FixtureRequest) -> None:
    build, _ = TOLD["one in another"]
    graph = build(THEIRS).compile(checkpointer=OracleSaver())
    wanted = by_graph(graph.invoke(IN, on("t"), stream_mode=["updates", "tasks"], subgraphs=True, durability="sync"))
    ours = build(OURS).compile(checkpointer=InMemorySaver(), name="g")
    if kind == "memory":
        assert by_graph(ours.invoke(IN, on("t"), stream_mode=["updates", "tasks"], subgraphs=True)) == wanted
        assert ours.invoke(IN, on("u"), subgraphs=True) == ours.invoke(IN, on("v"))
        return
    url = request.getfixturevalue("redis_url")
    with working(url, ours), connect(url) as client:
        remote = client.graph("g", ours)
        found = remote.invoke(IN, on("t"), stream_mode=["updates", "tasks"], subgraphs=True, timeout=20)
        assert by_graph(found) == wanted


def test_a_graph_without_a_checkpointer_tells_no_checkpoints_of_those_in_it() -> None:
    build, _ = TOLD["one in another"]
    modes = ["checkpoints", "updates"]
    mine = list(build(OURS).compile(name="g").stream(IN, stream_mode=modes, subgraphs=True))
    his = list(build(THEIRS).compile().stream(IN, stream_mode=modes, subgraphs=True))
    assert by_graph(mine) == by_graph(his)


def test_chunks_of_a_graph_in_a_graph_come_while_its_node_still_runs(redis_url: str) -> None:
    for kind in ("memory", "workers"):
        heard = threading.Event()

        def slow(state: Any, heard: threading.Event = heard) -> Any:
            get_stream_writer()("begun")
            assert heard.wait(10), "what was told reaches the caller before the node ends"
            return {"log": ["slow"]}

        graph = chain(OURS, ("child", chain(OURS, ("slow", slow)).compile())).compile(name="g")
        with contextlib.ExitStack() as stack:
            remote: Any = graph
            if kind == "workers":
                stack.enter_context(working(redis_url, graph))
                remote = stack.enter_context(connect(redis_url)).graph("g")
            found: list[Any] = []
            for chunk in remote.stream(IN, stream_mode="custom", subgraphs=True):
                found.append(chunk)
                heard.set()
        assert plain(found) == [(("child:id",), "begun")]
