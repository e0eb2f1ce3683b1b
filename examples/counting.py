"""The smallest graph that goes round: count to five.

inc ──► check ──(done?)──► END
 ▲        │
 └──(no)──┘

everstep dev examples.counting:graph
everstep submit counting '{"count": 0, "done": false}' --thread demo --wait
"""

from __future__ import annotations

from typing import TypedDict

from everstep import END, START, StateGraph


class Counter(TypedDict):
    """The state. What a node returns is written over the keys that it names."""

    count: int
    done: bool


def inc(state: Counter) -> dict[str, int]:
    return {"count": state["count"] + 1}


def check(state: Counter) -> dict[str, bool]:
    return {"done": state["count"] >= 5}


def again(state: Counter) -> str:
    """A router: it runs right after `check`, in the same task, and its answer is committed with it."""
    return END if state["done"] else "inc"


builder = StateGraph(Counter)
builder.add_node("inc", inc)
builder.add_node("check", check)
builder.add_edge(START, "inc")
builder.add_edge("inc", "check")
builder.add_conditional_edges("check", again, ["inc", END])
graph = builder.compile(name="counting")
