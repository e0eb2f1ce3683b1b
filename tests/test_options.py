"""Options of nodes: what a node is given and when it runs, inline and on workers, equal to LangGraph's."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, TypedDict

import pytest

from everstep_checkpoint.errors import GraphError
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.retry import RetryPolicy
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


# -- defaults


def test_what_a_node_says_wins_over_the_defaults_and_the_order_of_calls_does_not_matter() -> None:
    mine, usual = RetryPolicy(max_attempts=7), RetryPolicy(max_attempts=2)
    builder = StateGraph(Log).add_node("plain", says("plain")).add_node("own", says("own"), retry_policy=mine)
    builder.set_node_defaults(retry_policy=usual, timeout=5).set_node_defaults(timeout=timedelta(seconds=9))
    builder.add_node("none", says("none"), retry_policy=(), timeout=1)
    builder.add_sequence([("first", says("first"))])
    for name in ("plain", "own", "none", "first"):
        builder.add_edge(START, name)
    found = {
        name: ([x.max_attempts for x in node.retry], node.timeout_s) for name, node in builder.spec().nodes.items()
    }
    assert found == {"plain": ([2], 9), "own": ([7], 9), "none": ([], 1), "first": ([2], 9)}


def test_a_default_that_is_no_policy_is_refused_at_once() -> None:
    with pytest.raises(GraphError, match="is no RetryPolicy"):
        StateGraph(Log).set_node_defaults(retry_policy=3)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="can't be kept"):
        StateGraph(Log).set_node_defaults(timeout=0)
