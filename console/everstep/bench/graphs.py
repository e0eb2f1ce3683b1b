"""The graphs of the benchmark, and the journal of their nodes: when each began, by the clock all processes share."""

from __future__ import annotations

import asyncio
import operator
import os
import time
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.messages import add_messages
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
        return {"count": state.get("count", 0) + 1, "blob": os.urandom(PAYLOAD)}

    return node


def add_chain(graph: Any, length: int) -> Any:
    """A chain of so many steps."""
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
    return [Send("work", {"i": i}) for i in range(state.get("width", 0))]


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


# W4: a chat, whose nodes sit in one queue, or in turn in two


class Chat(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]


def said(role: str, number: int) -> dict[str, str]:
    """A message of 1 KB that nothing can compress."""
    return {"role": role, "content": os.urandom(PAYLOAD // 2).hex(), "id": f"{role}-{number}"}


def chat() -> GraphSpec:
    """One node, which answers."""
    return _chat("chat", "chat.even")


def chat_in_turn() -> GraphSpec:
    """Two nodes in queues of their own, which answer in turn."""
    return _chat("chatinturn", "chat.odd")


def _chat(name: str, queue: str) -> GraphSpec:
    built = StateGraph(Chat)
    built.add_node("even", _answer, queue="chat.even")
    built.add_node("odd", _answer, queue=queue)
    built.add_conditional_edges(START, _whose, ["even", "odd"])
    built.add_edge("even", END)
    built.add_edge("odd", END)
    return built.spec(name)


def _whose(state: Chat) -> str:
    return "odd" if len(state.get("messages", [])) % 4 == 1 else "even"


def _answer(state: Chat) -> Chat:
    number = len(state.get("messages", []))
    JOURNAL.append((number, time.perf_counter_ns()))
    return {"messages": [said("assistant", number)]}


# W5, W6


class Waiting(TypedDict, total=False):
    seconds: float
    count: int


def waiting() -> GraphSpec:
    """Three async nodes that sleep, one after the other."""
    return _sleeps("waiting", 3)


def sleeping() -> GraphSpec:
    """One async node that sleeps."""
    return _sleeps("sleeping", 1)


def _sleeps(name: str, length: int) -> GraphSpec:
    built = StateGraph(Waiting)
    built.add_sequence([(f"n{i}", _sleep) for i in range(length)])
    built.add_edge(START, "n0")
    built.add_edge(f"n{length - 1}", END)
    return built.spec(name)


async def _sleep(state: Waiting) -> Waiting:
    await asyncio.sleep(state.get("seconds", 0.0))
    return {"count": state.get("count", 0) + 1}


class Working(TypedDict, total=False):
    spins: int
    count: int


def working() -> GraphSpec:
    """Ten nodes that keep a core busy for `spins` turns."""
    built = StateGraph(Working)
    built.add_sequence([(f"n{i}", _work_hard) for i in range(10)])
    built.add_edge(START, "n0")
    built.add_edge("n9", END)
    return built.spec("working")


def _work_hard(state: Working) -> Working:
    spin(state.get("spins", 0))
    return {"count": state.get("count", 0) + 1}


def spin(turns: int) -> int:
    """Work that needs a core and the GIL, and always the same."""
    found = 0
    for i in range(turns):
        found = (found * 31 + i) & 0xFFFF
    return found


GRAPHS: dict[str, Callable[[], GraphSpec]] = {
    "chain": chain,
    "fan": fan,
    "asking": asking,
    "chat": chat,
    "chatinturn": chat_in_turn,
    "waiting": waiting,
    "sleeping": sleeping,
    "working": working,
}
graph = add_chain(StateGraph(State), 10).compile(name="chain")
"""For `everstep worker everstep.bench.graphs:graph`."""
