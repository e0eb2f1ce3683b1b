"""Options of nodes: what a node is given and when it runs, inline and on workers, equal to LangGraph's."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.inline.logmoves import LogMoves
from everstep_scheduler.inline.savers import InMemorySaver

Config = dict[str, Any]


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def says(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda state: {"log": [name]}


def on(thread: str, **more: Any) -> Config:
    return {"configurable": {"thread_id": thread}, **more}


# -- defer


def test_a_deferral_survives_a_failure_and_another_process() -> None:
    """While `d` waits, its longer branch fails; who only has the log goes on with both."""
    mended: list[bool] = []

    def failing(state: Log) -> dict[str, Any]:
        if not mended:
            raise RuntimeError("not yet")
        return {"log": ["b"]}

    builder = StateGraph(Log).add_node("a", says("a")).add_node("b", failing).add_node("d", says("d"), defer=True)
    builder.add_edge(START, "a").add_edge("a", "d").add_edge("a", "b").add_edge("b", "d")
    saver, other = InMemorySaver(), InMemorySaver()
    try:
        builder.compile(saver).invoke({"log": []}, on("t"))
    except RuntimeError:
        mended.append(True)
    other.log, other.moves = saver.log, LogMoves(saver.log)
    graph = builder.compile(other)
    assert graph.get_state(on("t")).next == ("b",)
    assert graph.get_state(on("t")).values == {"log": ["a"]}
    assert graph.invoke(None, on("t")) == {"log": ["a", "b", "d"]}
