"""Graphs whose result tells the order of their steps.

`digest` is folded over all that is written, so another order, a write that is lost or one too many gives another value.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypedDict

from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.handling import NodeError
from everstep_scheduler.graph.limits import Limit
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Runtime, Send

from .world import World


def folded(before: str, new: str) -> str:
    return hashlib.sha1(f"{before}{new}".encode(), usedforsecurity=False).hexdigest()[:8] if new else before


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    digest: Annotated[str, folded]
    turns: int
    item: int


class Nodes:
    """The nodes of one schedule's graphs. They tell the world that they run."""

    def __init__(self) -> None:
        self.world: World | None = None

    def __call__(self, name: str, **more: Any) -> Callable[[State], State]:
        def node(state: State) -> State:
            self.runs()
            return wrote(name, **more)

        return node

    def runs(self) -> None:
        assert self.world is not None
        self.world.executes()


NODES = Nodes()
QUICK = RetryPolicy(initial_interval=0.5, max_attempts=50, jitter=False)


def wrote(name: str, **more: Any) -> State:
    return {"seen": [name], "digest": name, **more}  # type: ignore[typeddict-item]


def chain(*nodes: str) -> StateGraph:
    graph = StateGraph(State)
    for before, node in zip((START, *nodes), nodes, strict=False):
        graph.add_node(node, NODES(node))
        graph.add_edge(before, node)
    graph.add_edge(nodes[-1], END)
    return graph


def fan(limit: int | None = None) -> StateGraph:
    graph = StateGraph(State)

    def work(state: State) -> State:
        NODES.runs()
        return wrote(f"work {state['item']}")

    graph.add_node("split", NODES("split"))
    graph.add_node("work", work, limit=limit)
    graph.add_node("last", NODES("last"))
    graph.add_edge(START, "split")
    graph.add_conditional_edges("split", lambda state: [Send("work", {"item": i}) for i in range(4)], ["work"])
    graph.add_edge("work", "last")
    return graph


def pair() -> StateGraph:
    graph = StateGraph(State)
    for node in "ab":
        graph.add_node(node, NODES(node))
        graph.add_edge(START, node)
    return graph


def loop() -> StateGraph:
    graph = StateGraph(State)

    def turn(state: State) -> State:
        NODES.runs()
        turns = state.get("turns", 0) + 1
        return wrote(f"turn {turns}", turns=turns)

    graph.add_node("turn", turn)
    graph.add_edge(START, "turn")
    graph.add_conditional_edges("turn", lambda state: "turn" if state["turns"] < 4 else END, ["turn", END])
    return graph


def diamond() -> StateGraph:
    graph = chain("a")
    for node in "bcd":
        graph.add_node(node, NODES(node))
    for node in "bc":
        graph.add_edge("a", node)
    graph.add_edge(["b", "c"], "d")
    return graph


def flaky() -> StateGraph:
    """`shaky` raises at its first two attempts, beside a sibling."""
    graph = chain("a")

    def shaky(state: State, runtime: Runtime[Any]) -> State:
        NODES.runs()
        if runtime.execution_info.node_attempt < 3:
            raise ConnectionError("not yet")
        return wrote("shaky")

    graph.add_node("shaky", shaky, retry_policy=QUICK)
    graph.add_node("b", NODES("b"))
    graph.add_node("last", NODES("last"))
    for node in ("shaky", "b"):
        graph.add_edge("a", node)
    graph.add_edge(["shaky", "b"], "last")
    return graph


def asking() -> StateGraph:
    """Two siblings ask, one of them twice."""
    graph = chain("a")

    def ask(name: str, times: int, state: State) -> State:
        NODES.runs()
        return wrote(" ".join([name, *(str(interrupt(f"{name} {i}?")) for i in range(times))]))

    for name, times in (("once", 1), ("twice", 2)):
        graph.add_node(name, partial(ask, name, times))
        graph.add_edge("a", name)
    graph.add_node("last", NODES("last"))
    graph.add_edge(["once", "twice"], "last")
    return graph


def handled() -> StateGraph:
    graph = chain("a")

    def bad(state: State) -> State:
        NODES.runs()
        raise ValueError("bad")

    def mend(state: State, error: NodeError) -> State:
        NODES.runs()
        return wrote(f"mended {error.node}")

    graph.add_node("bad", bad, error_handler=mend)
    graph.add_node("b", NODES("b"))
    for node in ("bad", "b"):
        graph.add_edge("a", node)
    return graph


def paying() -> StateGraph:
    """An effect before a failure: the retry must not do it again once it is recorded."""
    graph = StateGraph(State)

    def pay(state: State, runtime: Runtime[Any]) -> State:
        NODES.runs()
        receipt = once("charge", lambda: "paid")
        if runtime.execution_info.node_attempt < 2:
            raise ConnectionError("after it was paid")
        return wrote(str(receipt))

    graph.add_node("pay", pay, retry_policy=QUICK)
    graph.add_edge(START, "pay")
    return graph


def limited(limit: int | Limit, *nodes: str) -> StateGraph:
    """A chain whose first node has a limit."""
    graph = StateGraph(State)
    for before, node in zip((START, *nodes), nodes, strict=False):
        graph.add_node(node, NODES(node), limit=limit if before == START else None)
        graph.add_edge(before, node)
    graph.add_edge(nodes[-1], END)
    return graph


def shaky_and_limited() -> StateGraph:
    """A node that fails at first, and lets its slot go until it is tried again."""
    graph = StateGraph(State)

    def shaky(state: State, runtime: Runtime[Any]) -> State:
        NODES.runs()
        if runtime.execution_info.node_attempt < 2:
            raise ConnectionError("not yet")
        return wrote("shaky")

    graph.add_node("shaky", shaky, retry_policy=QUICK, limit=1)
    graph.add_edge(START, "shaky")
    return graph
