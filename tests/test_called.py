"""Graphs that nodes call, against LangGraph as the oracle: the same calls, the same results, states and histories.

On the same stories: inline in memory, inline on Redis, and on workers. A called graph runs within its node's attempt.
"""

from __future__ import annotations

import asyncio
import operator
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.func import entrypoint as oracle_entrypoint
from langgraph.func import task as oracle_task
from pydantic import BaseModel

from everstep_checkpoint.errors import (
    InvalidEffect,
    InvalidInput,
    NodeTimeoutError,
    RunFailed,
    ThreadBusy,
    UnknownType,
)
from everstep_checkpoint.keys import is_within
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect, publish
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.functional import task
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Runtime
from everstep_scheduler.inline.entrypoint import entrypoint
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.reading.children import children
from everstep_scheduler.steps.effects import Fenced
from servers import run_seed, wait_for
from test_interrupts import (
    IN,
    OURS,
    THEIRS,
    Answer,
    State,
    asks,
    call,
    history,
    on,
    says,
    state_of,
    waiting,
    working,
)
from test_subgraphs import Fails, beside, chain
from test_subgraphs_state import seen

DEPTH = 5
FAMILIES = 30


class Counted(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    calls: int


def noting(ran: list[str], name: str) -> Callable[[Any], dict[str, Any]]:
    """A node that notes that it ran."""

    def node(state: Any) -> dict[str, Any]:
        ran.append(name)
        return {"log": [name]}

    return node


# --- graphs


def calls(*graphs: Any, given: Any = "c") -> Callable[[Any], dict[str, Any]]:
    """A node that calls these graphs, one after the other, and keeps what each of them said. LangGraph finds a graph in
    the code of a node only by a name of its own."""
    if len(graphs) == 1:
        (only,) = graphs
        return lambda state: {"log": [only.invoke({"log": [given]})["log"]]}
    return lambda state: {"log": [graph.invoke({"log": [given]})["log"] for graph in graphs]}


def plain(lib: Any) -> Any:
    return chain(lib, "a", ("node", calls(chain(lib, "x", "y").compile())), "b")


def twice(lib: Any) -> Any:
    one, two = chain(lib, "x", "y").compile(), chain(lib, "z").compile()
    return chain(lib, ("node", calls(one, one, two)))


def deep(lib: Any, question: bool = False) -> Any:
    graph = chain(lib, ("q", asks(lib, "q", "far down")) if question else "deepest")
    for level in range(DEPTH):
        graph = chain(lib, f"before{level}", (f"n{level}", calls(graph.compile())), f"after{level}")
    return graph


def asking(lib: Any) -> Any:
    return chain(lib, "a", ("node", calls(chain(lib, "x", ("q", asks(lib, "q", "q1", "q2")), "y").compile())), "b")


def between(lib: Any) -> Any:
    """A question of the node's own, one of the graph that it calls, and one of its own again."""
    inner = chain(lib, "x", ("q", asks(lib, "q", "?q")), "y").compile()

    def node(state: Any) -> Any:
        first = lib.interrupt("before")
        said = inner.invoke({"log": [first]})["log"]
        return {"log": [first, said, lib.interrupt("after")]}

    return chain(lib, ("node", node))


def both_ask(lib: Any) -> Any:
    one, two = (chain(lib, "x", (name, asks(lib, name, f"?{name}"))).compile() for name in "pq")
    return chain(lib, ("node", calls(one, two)))


def many(lib: Any) -> Any:
    """Two questions at once in a graph that is called, one beside it."""
    inner = beside(lib, ("p", asks(lib, "p", "?p")), ("q", asks(lib, "q", "?q")), end="e").compile()
    return beside(lib, ("node", calls(inner)), ("s", asks(lib, "s", "?s")))


def stopping(lib: Any) -> Any:
    inner = chain(lib, "x", "y", "w").compile(interrupt_before=["y"], interrupt_after=["y"])
    return beside(lib, ("node", calls(inner)), ("s", says("s")))


def stopping_last(lib: Any) -> Any:
    return chain(lib, ("node", calls(chain(lib, "x").compile(interrupt_after=["x"]))), "b")


def failing(lib: Any, times: int = 1) -> Any:
    inner = chain(lib, "x", ("f", Fails(times, ValueError("not yet"))), "y").compile()
    return beside(lib, ("node", calls(inner)), ("s", says("s")))


def forgiving(lib: Any) -> Any:
    """The node catches the failure of what it calls, then asks; it is run again, and so is what failed."""
    inner = chain(lib, "x", ("f", Fails(1, ValueError("not yet"))), "y").compile()

    def node(state: Any) -> Any:
        try:
            said = inner.invoke({"log": ["c"]})["log"]
        except ValueError as error:
            said = str(error)
        return {"log": [said, lib.interrupt("go on?")]}

    return chain(lib, ("node", node))


def counting(lib: Any) -> Any:
    """What is called counts its own calls: its state lasts."""
    inner = chain(lib, ("i", lambda s: {"calls": s.get("calls", 0) + 1}), schema=Counted).compile(checkpointer=True)
    return chain(lib, ("node", lambda s: {"log": [inner.invoke({"log": ["c"]})]}))


def counting_twice(lib: Any) -> Any:
    inner = chain(lib, ("i", lambda s: {"calls": s.get("calls", 0) + 1}), schema=Counted).compile(checkpointer=True)
    return chain(lib, ("node", lambda s: {"log": [inner.invoke({"log": [each]}) for each in "cd"]}))


def asks_and_lasts(lib: Any) -> Any:
    inner = chain(lib, "x", ("q", asks(lib, "q", "?"))).compile(checkpointer=True)
    return chain(lib, ("node", calls(inner)))


def unkept(lib: Any) -> Any:
    return chain(lib, "a", ("node", calls(chain(lib, "x", "y").compile(checkpointer=False))), "b")


def upward(lib: Any, wire: Callable[[Any], Any] = lambda graph: None) -> Any:
    command = lib.Command(graph=lib.Command.PARENT, update={"log": ["!"]}, goto="up")
    inner = chain(lib, "n", ("go", lambda s: command), "after").compile()
    graph = lib.StateGraph(State).add_node("node", calls(inner), destinations=("up", "b")).add_edge(START, "node")
    for name in ("up", "b"):
        graph.add_node(name, says(name))
    wire(graph)
    return graph


def asked_upward(lib: Any) -> Any:
    def go(state: Any) -> Any:
        return lib.Command(graph=lib.Command.PARENT, update=[("log", ["up"])], goto=lib.interrupt("where?"))

    inner = chain(lib, "n", ("go", go)).compile()
    graph = lib.StateGraph(State).add_node("node", calls(inner), destinations=("z",)).add_node("z", says("z"))
    return graph.add_edge(START, "node")


def mixed(lib: Any) -> Any:
    """A graph that is a node calls one that has a graph as a node, which calls one that asks."""
    low = chain(lib, ("q", asks(lib, "q", "deep?"))).compile()
    third = chain(lib, "c1", ("n3", calls(low)))
    second = chain(lib, "b1", ("child", third.compile()), "b2").compile()
    first = chain(lib, "a1", ("n1", calls(second)), "a2")
    return chain(lib, ("top", first.compile()), "end")


def sent(lib: Any) -> Any:
    inner = chain(lib, "x", "y").compile()
    node: Any = lambda s: {"log": [[s["n"], inner.invoke({"log": [s["n"]]})["log"]]]}  # noqa: E731
    graph = lib.StateGraph(State).add_node("w", node).add_node("end", says("end")).add_edge("w", "end")
    return graph.add_conditional_edges(START, lambda s: [lib.Send("w", {"n": i}) for i in range(3)], ["w"])


def sent_asking(lib: Any) -> Any:
    inner = chain(lib, ("q", lambda s: {"log": [lib.interrupt(f"?{s['log'][0]}")]})).compile()
    node: Any = lambda s: {"log": [[s["n"], inner.invoke({"log": [s["n"]]})["log"]]]}  # noqa: E731
    graph = lib.StateGraph(State).add_node("w", node).add_node("end", says("end")).add_edge("w", "end")
    return graph.add_conditional_edges(START, lambda s: [lib.Send("w", {"n": i}) for i in range(3)], ["w"])


def routed(lib: Any) -> Any:
    inner = chain(lib, "x").compile()
    graph = lib.StateGraph(State).add_node("a", says("a")).add_node("x", says("went")).add_edge(START, "a")
    return graph.add_conditional_edges("a", lambda s: inner.invoke({"log": ["c"]})["log"][-1], ["x"])


def configured(lib: Any) -> Any:
    """The node hands its own config on."""
    inner = chain(lib, "x", ("q", asks(lib, "q", "?"))).compile()

    def node(state: State, config: RunnableConfig) -> Any:
        return {"log": [inner.invoke({"log": ["c"]}, config)["log"]]}

    return chain(lib, ("node", node))


STORIES: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "one call": (plain, [IN, {"log": ["more"]}]),
    "three calls": (twice, [IN]),
    "five deep": (deep, [IN]),
    "a question five deep": (partial(deep, question=True), [IN, None, Answer("here")]),
    "questions in it": (asking, [IN, Answer("A1"), Answer("A2"), None]),
    "questions in it, given up": (asking, [IN, {"log": ["again"]}, Answer("A1"), Answer("A2")]),
    "questions of both": (between, [IN, Answer(1), Answer(2), Answer(3)]),
    "two that ask": (both_ask, [IN, Answer("P"), Answer("Q")]),
    "many questions at once": (many, [IN, Answer(to={"?p": 1, "?q": 2, "?s": 3})]),
    "many questions, one by one": (many, [IN, Answer(to={"?q": 1}), Answer(to={"?s": 2}), Answer(to={"?p": 3})]),
    "breakpoints in it": (stopping, [IN, None, None]),
    "a breakpoint behind it": (stopping_last, [IN, None]),
    "it fails": (failing, [IN, None, None]),
    "it fails, given up": (failing, [IN, {"log": ["again"]}]),
    "its failure is caught": (forgiving, [IN, Answer("yes")]),
    "its state lasts": (counting, [IN, IN, IN]),
    "two whose state lasts": (counting_twice, [IN, IN]),
    "it asks, and its state lasts": (asks_and_lasts, [IN, Answer(1), IN, Answer(2)]),
    "a Command for the node": (upward, [IN]),
    "beside an edge": (partial(upward, wire=lambda g: g.add_edge("node", "b")), [IN]),
    "a Command that asks first": (asked_upward, [IN, Answer("z")]),
    "nodes and calls": (mixed, [IN, Answer("here")]),
    "Sends that call": (sent, [IN]),
    "Sends whose graphs ask": (sent_asking, [IN, Answer(to={"?0": 0, "?2": 2}), Answer(1)]),
    "a router calls": (routed, [IN]),
    "with the node's config": (configured, [IN, Answer("yes")]),
}  # fmt: skip


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    if request.param == "memory":
        return InMemorySaver()
    return RedisSaver(request.getfixturevalue("redis_url"))


def sound(log: Log, thread: str) -> bool:
    """Are the logs of a thread and of all that was called there as they should be?"""
    return verify(log, thread).sound and all(sound(log, each) for each in children(log, thread))


@pytest.mark.parametrize("story", STORIES)
def test_graphs_that_nodes_call_go_as_in_langgraph(story: str, saver: Saver) -> None:
    build, steps = STORIES[story]
    ours = build(OURS).compile(checkpointer=saver, name="g")
    theirs = build(THEIRS).compile(checkpointer=OracleSaver())
    for i, step in enumerate(steps):
        mine = call(OURS, ours, on("t"), step)
        assert mine == call(THEIRS, theirs, on("t"), step, durability="sync"), f"call {i}"
        assert state_of(ours, on("t")) == state_of(theirs, on("t")), f"state after call {i}"
        assert history(ours, on("t")) == history(theirs, on("t")), f"history after call {i}"
    assert sound(saver.log, "t")


def test_graphs_that_nodes_call_go_the_same_on_workers(redis_url: str) -> None:
    """One slot: nothing that is called needs a second one."""
    graphs = {story: build(OURS).compile(name=f"g{i}") for i, (story, (build, _)) in enumerate(STORIES.items())}
    memory = InMemorySaver()
    with working(redis_url, *graphs.values(), concurrency=1), connect(redis_url) as client:
        for story, (build, steps) in STORIES.items():
            remote, config = client.graph(graphs[story].name, graphs[story]), on(story)
            inline = build(OURS).compile(checkpointer=memory, name=graphs[story].name)
            for i, step in enumerate(steps):
                mine, theirs = call(OURS, remote, config, step, timeout=20), call(OURS, inline, config, step)
                assert mine == (theirs if isinstance(theirs, tuple) else "RunFailed"), f"{story}: call {i}"
                assert state_of(remote, config) == state_of(inline, config), f"{story}: state after call {i}"
                assert history(remote, config) == history(inline, config), f"{story}: history after call {i}"
            assert sound(client.log_store, story)


def family(lib: Any, dice: random.Random, depth: int = 2, prefix: str = "") -> Any:
    """A random graph: nodes that say, ask, call such graphs, or are such graphs; joins."""
    names = [f"{prefix}{letter}" for letter in "abcd"[: dice.randint(1, 4)]]
    graph = lib.StateGraph(State)
    for name in names:
        kind = dice.random()
        if depth and kind < 0.6:
            inner = family(lib, dice, depth - 1, f"{name}_").compile()
            graph.add_node(name, calls(inner) if kind < 0.4 else inner)
        else:
            questions = [f"{name}{i}" for i in range(dice.choice([1, 1, 2]))]
            graph.add_node(name, asks(lib, name, *questions) if kind < 0.8 else says(name))
    for place, name in enumerate(names):
        graph.add_edge(dice.choice([START, *names[:place]]), name)
    if len(names) > 2 and dice.random() < 0.5:
        graph.add_edge(dice.sample(names[:2], 2), dice.choice([*names[2:], END]))
    return graph


def test_random_graphs_that_call_graphs_go_as_in_langgraph(saver: Saver) -> None:
    """Results, values and what is next, through answers and continues."""
    dice = random.Random(run_seed())
    for _ in range(FAMILIES if isinstance(saver, InMemorySaver) else FAMILIES // 3):
        seed = dice.randrange(2**31)
        ours = family(OURS, random.Random(seed)).compile(checkpointer=saver, name="g")
        theirs = family(THEIRS, random.Random(seed)).compile(checkpointer=OracleSaver())
        own, config = random.Random(seed), on(f"t{seed}")
        for turn in range(7):
            asked = waiting(ours.get_state(config).interrupts)
            picked = (
                {each: own.randint(0, 9) for each in own.sample(asked, own.randint(1, len(asked)))} if asked else {}
            )
            step = IN if turn == 0 else Answer(to=picked) if asked else None
            mine, his = call(OURS, ours, config, step), call(THEIRS, theirs, config, step, durability="sync")
            assert mine == his, f"seed {seed}, turn {turn}: {step}"
            assert state_of(ours, config)[:2] == state_of(theirs, config)[:2], f"seed {seed}, turn {turn}: {step}"
        assert sound(saver.log, f"t{seed}"), f"seed {seed}"


def test_an_early_answer_goes_to_the_first_who_asks(saver: Saver) -> None:
    """Before the node has called anything."""
    ours = asking(OURS).compile(checkpointer=saver, interrupt_before=["node"])
    theirs = asking(THEIRS).compile(checkpointer=OracleSaver(), interrupt_before=["node"])
    for step in (IN, Answer("early"), Answer("late")):
        assert call(OURS, ours, on("t"), step) == call(THEIRS, theirs, on("t"), step, durability="sync")
        assert state_of(ours, on("t")) == state_of(theirs, on("t"))
    assert sound(saver.log, "t")


# Stories in which a task calls several graphs, or none yet.
ELSEWHERE = {"three calls", "two that ask", "two whose state lasts", "questions of both"}


# --- state


@pytest.mark.parametrize("story", [story for story in STORIES if story not in ELSEWHERE])
def test_states_of_called_graphs_are_langgraphs_at_every_depth(story: str, saver: Saver) -> None:
    """But where LangGraph shows the graph that the node's code names, here it is the one that the task called last."""
    build, steps = STORIES[story]
    ours = build(OURS).compile(checkpointer=saver, name="g")
    theirs = build(THEIRS).compile(checkpointer=OracleSaver())
    for i, step in enumerate(steps):
        call(OURS, ours, on("t"), step)
        call(THEIRS, theirs, on("t"), step, durability="sync")
        mine, his = (seen(graph.get_state(on("t"), subgraphs=True)) for graph in (ours, theirs))
        assert mine == his, f"after call {i}"
    for mine, his in zip(ours.get_state_history(on("t")), theirs.get_state_history(on("t")), strict=True):
        below = [(x.state, y.state) for x, y in zip(mine.tasks, his.tasks, strict=True) if x.state and y.state]
        for own, other in below:
            told = [seen(each) for each in ours.get_state_history(own)]
            assert told == [seen(each) for each in theirs.get_state_history(other)], "the history of what was called"


class Money(BaseModel):
    cents: int


class Paid(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    paid: Money


def paying(saver: Any) -> Any:
    inner = chain(OURS, ("pay", lambda s: {"paid": Money(cents=7)}), ("q", asks(OURS, "q", "?")), schema=Paid).compile()

    def node(state: State) -> Any:
        return {"log": [inner.invoke({"log": ["c"]})["paid"].cents]}

    return chain(OURS, ("node", node)).compile(checkpointer=saver, name="g")


def test_where_the_code_is_at_hand_the_state_of_a_called_graph_has_its_types(redis_url: str) -> None:
    graph = paying(RedisSaver(redis_url))
    graph.invoke(IN, on("t"))
    (found,) = graph.get_state(on("t"), subgraphs=True).tasks
    assert found.state.values["paid"] == Money(cents=7)
    place = graph.get_state(on("t")).tasks[0].state
    assert graph.get_state(place).values["paid"] == Money(cents=7)
    assert [x.next for x in graph.get_state_history(place)] == [("q",), ("pay",), ("__start__",)]
    assert [name for name, _ in graph.get_subgraphs()] == ["node"]
    with connect(redis_url) as client:  # without the code it is plain data
        there = client.graph("g").get_state(place)
        assert (there.values["paid"].fields, there.next) == ({"cents": 7}, ("q",))
        assert client.graph("g").get_state(on("t"), subgraphs=True).tasks[0].state.next == ("q",)


def test_the_second_call_of_a_task_has_a_place_of_its_own(saver: Saver) -> None:
    graph = both_ask(OURS).compile(checkpointer=saver)
    for step in (IN, Answer("P")):
        call(OURS, graph, on("t"), step)
    place = graph.get_state(on("t")).tasks[0].state["configurable"]["checkpoint_ns"]
    assert place.startswith("node:") and place.endswith("|1")
    assert graph.get_state({"configurable": {"thread_id": "t", "checkpoint_ns": place}}).next == ("q",)
    first = {"configurable": {"thread_id": "t", "checkpoint_ns": place.removesuffix("|1")}}
    assert graph.get_state(first).values == {"log": ["c", "x", ["p", "P"]]}


# --- what it is given, and what is refused


def test_a_called_graph_is_told_what_its_caller_was_and_what_the_call_says(saver: Saver) -> None:
    told: list[Any] = []

    def low(state: State, config: RunnableConfig, runtime: Runtime[Any]) -> Any:
        metadata = {key: config["metadata"].get(key) for key in ("who", "why")}
        told.append((config["configurable"].get("user"), metadata, config["tags"], config["recursion_limit"]))
        told.append((runtime.context, runtime.execution_info.thread_id, runtime.execution_info.checkpoint_ns))
        return {}

    inner = OURS.StateGraph(State, context_schema=dict).add_node("low", low).add_edge(START, "low").compile()

    def node(state: State, config: RunnableConfig) -> Any:
        inner.invoke({"log": []}, {"metadata": {"why": "because"}, "tags": ["inner"], "recursion_limit": 7})
        inner.invoke({"log": []}, config)
        return {}

    graph = OURS.StateGraph(State, context_schema=dict).add_node("node", node).add_edge(START, "node")
    config = {"configurable": {"thread_id": "t", "user": "eve"}, "metadata": {"who": "me"}, "tags": ["outer"]}
    graph.compile(checkpointer=saver).invoke(IN, {**config, "recursion_limit": 9}, context={"k": 1})
    assert told[0] == ("eve", {"who": "me", "why": "because"}, ["outer", "inner"], 7)
    assert told[2] == ("eve", {"who": "me", "why": None}, ["outer"], 9)
    assert [(context, thread) for context, thread, _ in told[1::2]] == [({"k": 1}, "t")] * 2
    assert [[each.partition(":")[0] for each in ns.split("|")] for _, _, ns in told[1::2]] == [
        ["node", "low"], ["node", "1", "low"],
    ]  # fmt: skip


@pytest.mark.parametrize("data", [None, OURS.Command(resume=1), OURS.Command(goto="x")])
def test_a_graph_is_called_with_an_input(saver: Saver, data: Any) -> None:
    inner = chain(OURS, "x").compile()
    graph = chain(OURS, ("node", lambda s: inner.invoke(data))).compile(checkpointer=saver)
    with pytest.raises(InvalidInput, match="was called in a node without an input"):
        graph.invoke(IN, on("t"))


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_with_a_thread_of_its_own_it_is_a_run_of_its_own(lib: Any) -> None:
    """Its question comes back to the node."""
    mine = InMemorySaver if lib is OURS else OracleSaver
    inner = chain(lib, ("q", asks(lib, "q", "?"))).compile(checkpointer=mine())
    node: Any = lambda s: {"log": [len(inner.invoke({"log": []}, on("other"))["__interrupt__"])]}  # noqa: E731
    graph = chain(lib, ("node", node)).compile(checkpointer=mine())
    assert graph.invoke(IN, on("t"))["log"] == ["in", 1]
    assert inner.get_state(on("other")).next == ("q",)


def test_what_is_kept_nowhere_runs_again_and_can_t_ask(saver: Saver) -> None:
    ours, theirs = (unkept(lib).compile(checkpointer=s) for lib, s in ((OURS, saver), (THEIRS, OracleSaver())))
    assert call(OURS, ours, on("t"), IN) == call(THEIRS, theirs, on("t"), IN)
    assert list(children(saver.log, "t")) == []
    inner = chain(OURS, ("q", asks(OURS, "q", "?"))).compile(checkpointer=False)
    graph = chain(OURS, ("node", lambda s: inner.invoke({"log": []}))).compile(checkpointer=saver)
    with pytest.raises(InvalidInput, match="nobody keeps its question"):
        graph.invoke(IN, on("u"))


def test_a_graph_that_keeps_its_state_is_one_tasks_at_a_time(saver: Saver) -> None:
    inner = chain(OURS, "x", ("q", asks(OURS, "q", "?"))).compile(checkpointer=True)
    graph = OURS.StateGraph(State).add_node("w", calls(inner))
    graph.add_conditional_edges(START, lambda s: [OURS.Send("w", {"n": i}) for i in range(2)], ["w"])
    with pytest.raises(ThreadBusy, match="another task of this step has called it"):
        graph.compile(checkpointer=saver).invoke(IN, {**on("t"), "max_concurrency": 1})


def test_a_question_whose_type_the_caller_does_not_know_fails_its_node(saver: Saver) -> None:
    inner = chain(OURS, ("q", lambda s: {"log": [OURS.interrupt(Money(cents=1))]}), schema=Paid).compile()
    graph = chain(OURS, ("node", calls(inner))).compile(checkpointer=saver)
    with pytest.raises(UnknownType, match="the questions of the graph"):
        graph.invoke(IN, on("t"))


def test_nobody_but_its_node_moves_what_is_kept_there(redis_url: str) -> None:
    saver = RedisSaver(redis_url)
    graph = paying(saver)
    publish(saver.client, saver.keys, [graph.spec])
    graph.invoke(IN, on("t"))
    (kept,) = children(saver.log, "t")
    assert is_within(kept)
    before = saver.log.head(kept)
    with connect(redis_url) as client:
        assert client.state(kept).next == ("q",)
        assert [x.next for x in client.history(kept)] == [("q",), ("pay",), ("__start__",)]
        assert {x.text("caller").split()[0] for x in client.log(kept) if x.kind == "run_started"} == {"2"}
        moves: list[Callable[[], Any]] = [
            lambda: graph.update_state(on(kept), IN, "node"), lambda: graph.invoke(IN, on(kept)),
            lambda: client.submit("g", IN, thread_id=kept), lambda: client.delete(kept),
            lambda: client.resume(kept, "no"), lambda: client.graph("g", graph).update_state(on(kept), IN, "node"),
        ]  # fmt: skip
        for move in moves:
            with pytest.raises(InvalidInput, match="kept by the node that called its graph"):
                move()
    assert saver.log.head(kept) == before
    assert call(OURS, graph, on("t"), Answer("yes")) == ({"log": ["in", 7]}, [])


def test_deleting_a_thread_deletes_what_its_nodes_called(redis_url: str) -> None:
    saver = RedisSaver(redis_url)
    graph = mixed(OURS).compile(checkpointer=saver, name="g")
    graph.invoke(IN, on("t"))
    assert len(list(saver.client.scan_iter("everstep:{0}:within:*"))) == 3
    with connect(redis_url) as client:
        client.delete("t")
    assert list(saver.client.scan_iter("everstep:{0}:*t*|*")) == []
    assert call(OURS, graph, on("t"), IN) == (({"log": ["in"]}), ["deep?"])


# --- attempts


def test_a_new_attempt_begins_nothing_anew(saver: Saver) -> None:
    """Under the retry policy of the node that calls: what is done in the called graph is done."""
    ran: list[str] = []

    def notes(name: str) -> Any:
        def node(state: State) -> Any:
            ran.append(name)
            if name == "then" and ran.count("then") < 3:
                raise ConnectionError("away")
            return {"log": [name]}

        return node

    inner = chain(OURS, ("first", notes("first")), ("then", notes("then"))).compile()

    def node(state: State) -> Any:
        said = inner.invoke({"log": ["c"]})["log"]
        ran.append("node")
        if ran.count("node") < 2:
            raise ConnectionError("away, too")
        return {"log": [said]}

    policy = RetryPolicy(initial_interval=0.01, jitter=False, max_attempts=9)
    graph = OURS.StateGraph(State).add_node("node", node, retry_policy=policy).add_edge(START, "node")
    assert graph.compile(checkpointer=saver).invoke(IN, on("t"))["log"] == ["in", ["c", "first", "then"]]
    assert ran == ["first", "then", "then", "then", "node", "node"]
    assert len(list(children(saver.log, "t"))) == 1


def test_the_retry_policies_within_a_called_graph_are_its_own(saver: Saver) -> None:
    policy = RetryPolicy(initial_interval=0.01, jitter=False)
    inner = OURS.StateGraph(State).add_node("f", Fails(2, ConnectionError("away")), retry_policy=policy)
    graph = chain(OURS, ("node", calls(inner.add_edge(START, "f").compile()))).compile(checkpointer=saver)
    assert graph.invoke(IN, on("t"))["log"] == ["in", ["c", "mended"]]


def test_the_chunks_of_a_stream_come_again_on_a_new_attempt(saver: Saver) -> None:
    got: list[Any] = []
    inner = chain(OURS, "x", "y").compile()

    def node(state: State) -> Any:
        got.append(list(inner.stream({"log": ["c"]})))
        return {"log": [OURS.interrupt("?")]}

    graph = chain(OURS, ("node", node)).compile(checkpointer=saver)
    for step in (IN, Answer("yes")):
        call(OURS, graph, on("t"), step)
    assert got == [[{"x": {"log": ["x"]}}, {"y": {"log": ["y"]}}]] * 2


def test_a_stream_that_is_left_goes_on_in_the_next_attempt(saver: Saver) -> None:
    ran: list[str] = []

    def notes(name: str) -> Any:
        return noting(ran, name)

    inner = chain(OURS, ("x", notes("x")), ("y", notes("y")), ("z", notes("z"))).compile()

    def node(state: State) -> Any:
        for _ in inner.stream({"log": ["c"]}):
            if ran.count("x") == 1 and "z" not in ran:
                break
        return {"log": [len(ran), OURS.interrupt("?")]}

    graph = chain(OURS, ("node", node)).compile(checkpointer=saver)
    call(OURS, graph, on("t"), IN)
    assert ran == ["x"]
    ran.append("x")
    assert call(OURS, graph, on("t"), Answer("yes"))[0]["log"][-1] == "yes"
    assert ran == ["x", "x", "y", "z"]


def test_another_graph_at_the_place_of_a_call_is_refused(saver: Saver) -> None:
    one, two = chain(OURS, "x").compile(name="one"), chain(OURS, "y").compile(name="two")
    turns = iter((one, two))

    def node(state: State) -> Any:
        next(turns).invoke({"log": []})
        return {"log": [OURS.interrupt("?")]}

    graph = chain(OURS, ("node", node)).compile(checkpointer=saver)
    call(OURS, graph, on("t"), IN)
    with pytest.raises(InvalidEffect, match="another graph than 'two' was called at this place before"):
        graph.invoke(OURS.Command(resume="yes"), on("t"))


# --- async nodes, tasks, entrypoints


def test_on_an_event_loop_its_async_nodes_run_there_beside_each_other(saver: Saver) -> None:
    loops: list[Any] = []

    async def main() -> Any:
        meet = asyncio.Barrier(2)

        async def low(state: State) -> Any:
            loops.append(asyncio.get_running_loop())
            async with asyncio.timeout(10):
                await meet.wait()
            return {"log": ["low"]}

        inner = chain(OURS, "x", ("low", low), ("q", asks(OURS, "q", "?"))).compile()

        async def node(state: State) -> Any:
            both = await asyncio.gather(*(inner.ainvoke({"log": [i]}) for i in range(2)), return_exceptions=True)
            return {"log": [_log_of(each) for each in both]}

        graph = chain(OURS, ("node", node)).compile(checkpointer=saver)
        asked = await graph.ainvoke(IN, on("t"))
        assert len(asked["__interrupt__"]) == 1, "the one that raises first ends the attempt"
        asked = await graph.ainvoke(OURS.Command(resume="a"), on("t"))
        done = await graph.ainvoke(OURS.Command(resume="b"), on("t"))
        assert len(asked["__interrupt__"]) == 1
        return done, asyncio.get_running_loop()

    got, loop = asyncio.run(main())
    assert got["log"] == ["in", [0, "x", "low", ["q", "a"]], [1, "x", "low", ["q", "b"]]]
    assert loops == [loop] * 2


def _log_of(got: Any) -> Any:
    if isinstance(got, BaseException):
        raise got
    return got["log"]


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_tasks_and_entrypoints_call_graphs(lib: Any) -> None:
    """Each @task has calls of its own; what is done does not run again."""
    ran: list[str] = []
    inner = chain(lib, ("x", noting(ran, "x")), ("q", lambda s: {"log": [lib.interrupt(s["log"][0])]})).compile()
    both: Any = (task, entrypoint) if lib is OURS else (oracle_task, oracle_entrypoint)
    tasks, entry = both

    @tasks  # type: ignore[untyped-decorator]
    def draft(word: str) -> list[str]:
        return inner.invoke({"log": [word]})["log"]  # type: ignore[no-any-return]

    @entry(checkpointer=InMemorySaver() if lib is OURS else OracleSaver())  # type: ignore[untyped-decorator]
    def flow(words: list[str]) -> list[Any]:
        own = inner.invoke({"log": ["own"]})["log"]
        return [own, *(draft(each).result() for each in words)]

    def waits(got: Any) -> list[Any]:
        return [each.value for each in got["__interrupt__"]]

    assert waits(flow.invoke(["a", "b"], on("t"))) == ["own"]
    assert waits(flow.invoke(lib.Command(resume=1), on("t"))) == ["a"]
    assert waits(flow.invoke(lib.Command(resume=2), on("t"))) == ["b"]
    assert flow.invoke(lib.Command(resume=3), on("t")) == [["own", "x", 1], ["a", "x", 2], ["b", "x", 3]]
    assert ran == ["x"] * 3


def test_an_entrypoint_is_called_in_a_node(saver: Saver) -> None:
    @entrypoint()
    def ask(word: str) -> str:
        return f"{word} {OURS.interrupt('?')}"

    graph = chain(OURS, ("node", lambda s: {"log": [ask.invoke("you")]})).compile(checkpointer=saver)
    assert call(OURS, graph, on("t"), IN) == ({"log": ["in"]}, ["?"])
    assert call(OURS, graph, on("t"), Answer("me"))[0]["log"] == ["in", "you me"]


def test_a_node_on_a_worker_can_t_wait_for_workers_not_even_in_what_it_calls(redis_url: str) -> None:
    with connect(redis_url) as client:
        inner = chain(OURS, ("low", lambda s: client.graph("g").invoke({"log": []}))).compile()
        graph = chain(OURS, ("node", calls(inner))).compile(name="g")
        with working(redis_url, graph), pytest.raises(RunFailed, match=r"can't wait for .* hold its slot"):
            client.submit("g", IN, thread_id="t").result(20)


def test_effects_within_a_called_graph_are_done_once(saver: Saver) -> None:
    ran: list[str] = []

    def low(state: State) -> Any:
        once("charge", lambda: ran.append("charged"))
        return {"log": [OURS.interrupt("?")]}

    graph = chain(OURS, ("node", calls(chain(OURS, ("low", low)).compile()))).compile(checkpointer=saver)
    for step in (IN, Answer("yes")):
        got = call(OURS, graph, on("t"), step)
    assert got[0]["log"][-1] == ["c", "yes"]
    assert ran == ["charged"]


def test_a_router_of_start_calls_anew_for_each_input(saver: Saver) -> None:
    inner = chain(OURS, "x", ("q", asks(OURS, "q", "?"))).compile()

    def route(state: State) -> Any:
        inner.invoke({"log": ["c"]})
        return "a"

    graph = OURS.StateGraph(State).add_node("a", says("a")).add_conditional_edges(START, route, ["a"])
    compiled = graph.compile(checkpointer=saver)
    for _ in range(2):
        assert call(OURS, compiled, on("t"), IN)[1] == ["?"]
    assert call(OURS, compiled, on("t"), Answer("yes"))[1] == []
    assert len(list(children(saver.log, "t"))) == 2


def test_a_graph_called_by_a_node_over_its_time_is_stopped_with_it(saver: Saver) -> None:
    """The attempt that comes after it goes on in the same log, and the late one writes nothing more."""
    ran: list[str] = []

    async def main() -> Any:
        async def slow(state: State) -> Any:
            ran.append("slow")
            await asyncio.sleep(30 if len(ran) == 1 else 0)
            return {"log": ["slow"]}

        inner = chain(OURS, "x", ("slow", slow)).compile()

        async def node(state: State) -> Any:
            return {"log": [(await inner.ainvoke({"log": ["c"]}))["log"]]}

        policy = RetryPolicy(initial_interval=0.01, jitter=False, retry_on=NodeTimeoutError)
        graph = OURS.StateGraph(State).add_node("node", node, retry_policy=policy, timeout=0.5)
        return await graph.add_edge(START, "node").compile(checkpointer=saver).ainvoke(IN, on("t"))

    assert asyncio.run(main())["log"] == ["in", ["c", "x", "slow"]]
    assert ran == ["slow", "slow"]
    assert sound(saver.log, "t")


def test_a_thread_of_a_late_node_writes_nothing_into_what_it_called(saver: Saver) -> None:
    """A sync node over its time can't be stopped: its thread runs on, fenced."""
    late, go, seen = threading.Event(), threading.Event(), list[BaseException]()

    def slow(state: State) -> Any:
        if not late.is_set():
            late.set()
            assert go.wait(20)
        return {"log": ["slow"]}

    inner = chain(OURS, "x", ("slow", slow)).compile()

    def node(state: State) -> Any:
        try:
            return {"log": [inner.invoke({"log": ["c"]})["log"]]}
        except BaseException as error:
            seen.append(error)
            raise

    policy = RetryPolicy(initial_interval=0.01, jitter=False, retry_on=NodeTimeoutError)
    graph = OURS.StateGraph(State).add_node("node", node, retry_policy=policy, timeout=0.3).add_edge(START, "node")
    assert graph.compile(checkpointer=saver).invoke(IN, on("t"))["log"] == ["in", ["c", "x", "slow"]]
    (kept,) = children(saver.log, "t")
    before = saver.log.head(kept)
    go.set()
    wait_for(lambda: seen, 10, "the late thread to learn that it is late")
    assert isinstance(seen[0], Fenced)
    assert saver.log.head(kept) == before


def test_the_command_line_shows_what_a_node_keeps_and_offers_no_way_to_move_it(redis_url: str) -> None:
    graph = paying(RedisSaver(redis_url))
    graph.invoke(IN, on("t"))
    (kept,) = children(RedisSaver(redis_url).log, "t")
    for word in ("state", "history", "log"):
        command = [sys.executable, "-m", "everstep", word, kept, "--url", redis_url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said = done.stdout + done.stderr
        assert ("kept by the node that called its graph" in said) == (word != "log")
        assert "everstep resume" not in said
        assert "recover" not in said
