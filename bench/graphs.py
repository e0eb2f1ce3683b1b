"""The graphs of the benchmark, and the journal of their nodes: when each began, by the clock all processes share."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START, Send
from everstep_scheduler.graph.spec import GraphSpec

PAYLOAD = 1024
JOURNAL: list[tuple[int, int]] = []
"""(number of the node in its chain, perf_counter_ns) of every node that ran in this process."""


class State(TypedDict, total=False):
    count: int
    blob: bytes


def step(number: int) -> Callable[[State], State]:
    """A node that only makes a new state: a counter, and 1 KB that nothing can compress."""

    def node(state: State) -> State:
        JOURNAL.append((number, time.perf_counter_ns()))
        return {"count": state["count"] + 1, "blob": os.urandom(PAYLOAD)}

    return node


def add_chain(graph: Any, length: int) -> Any:
    """The same chain for our StateGraph and for LangGraph's."""
    graph.add_sequence([(f"n{i}", step(i)) for i in range(length)])
    graph.add_edge(START, "n0")
    graph.add_edge(f"n{length - 1}", END)
    return graph


def chain(length: int = 10) -> GraphSpec:
    """START -> n0 -> ... -> END."""
    spec: GraphSpec = add_chain(StateGraph(State), length).spec("chain")
    return spec


class Wide(TypedDict, total=False):
    width: int
    ran: Annotated[int, operator.add]


def fan() -> GraphSpec:
    """1 -> `width` Sends -> 1."""
    built = StateGraph(Wide)
    built.add_node("spread", _spread)
    built.add_node("work", _work)
    built.add_node("gather", _gather)
    built.add_edge(START, "spread")
    built.add_conditional_edges("spread", _each, ["work"])
    built.add_edge("work", "gather")
    built.add_edge("gather", END)
    return built.spec("fan")


def _spread(state: Wide) -> Wide:
    return {}


def _each(state: Wide) -> list[Send]:
    return [Send("work", {"i": i}) for i in range(state["width"])]


def _work(state: dict[str, int]) -> Wide:
    return {"ran": 1}


def _gather(state: Wide) -> Wide:
    return {}


def flood() -> GraphSpec:
    """`width` Sends, whose jobs have a queue of their own: filling one claims nothing of the other."""
    built = StateGraph(Wide)
    built.add_node("spread", _spread)
    built.add_node("work", _work, queue="flood.work")
    built.add_edge(START, "spread")
    built.add_conditional_edges("spread", _each, ["work"])
    return built.spec("flood")


class Asking(TypedDict, total=False):
    answer: str


def asking() -> GraphSpec:
    """One node, which asks."""
    built = StateGraph(Asking)
    built.add_node("ask", _ask)
    built.add_edge(START, "ask")
    return built.spec("asking")


def _ask(state: Asking) -> Asking:
    return {"answer": interrupt("which?")}


GRAPHS: dict[str, Callable[[], GraphSpec]] = {"chain": chain, "fan": fan, "asking": asking}
