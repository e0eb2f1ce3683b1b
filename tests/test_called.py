"""Graphs that nodes call, against LangGraph as the oracle: the same calls, the same results, states and histories.

On the same stories: inline in memory, inline on Redis, and on workers, where a called graph runs within its node's attempt.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.func import entrypoint as oracle_entrypoint
from langgraph.func import task as oracle_task
from pydantic import BaseModel

from everstep_checkpoint.errors import InvalidInput, ThreadBusy, UnknownType
from everstep_checkpoint.keys import is_within
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.functional import task
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import START, Runtime
from everstep_scheduler.inline.entrypoint import entrypoint
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.reading.children import children
from test_interrupts import IN, OURS, THEIRS, Answer, State, asks, call, history, on, says, shown, state_of, working
from test_subgraphs import Fails, beside, chain
from test_subgraphs_state import seen

DEPTH = 5


class Counted(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    calls: int


# --- graphs


def calls(*graphs: Any, given: Any = "c") -> Callable[[Any], dict[str, Any]]:
    """A node that calls these graphs, one after the other, and keeps what each of them said."""
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
