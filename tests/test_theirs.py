"""LangGraph's own classes in a graph of everstep's are told for what they are, and nothing is written of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph import types as theirs
from langgraph.checkpoint.memory import InMemorySaver as TheirSaver
from langgraph.graph import StateGraph as TheirGraph

from everstep import END, START, InMemorySaver, StateGraph, interrupt
from everstep_checkpoint.errors import GraphError, InvalidUpdateError
from everstep_scheduler.graph.builder import StateGraph as Builder
from everstep_workers.targets import load_target

HERE: dict[str, Any] = {"configurable": {"thread_id": "t"}}


class State(TypedDict, total=False):
    a: int


def built(node: Any, route: Any = None) -> Builder:
    graph = StateGraph(State)
    graph.add_node("n", node)
    graph.add_edge(START, "n")
    graph.add_conditional_edges("n", route or (lambda state: END), ["n", END])
    return graph


def test_an_answer_in_their_command_leaves_the_question_where_it_was() -> None:
    graph = built(lambda state: {"a": interrupt("how many?")}).compile(checkpointer=InMemorySaver())
    asked = graph.invoke({"a": 1}, HERE)["__interrupt__"]
    before = list(graph.get_state_history(HERE))
    answer: Any = theirs.Command(resume=5)
    with pytest.raises(InvalidUpdateError, match="is LangGraph's Command") as told:
        graph.invoke(answer, HERE)
    assert told.value.fix == "from everstep import Command"
    assert list(graph.get_state_history(HERE)) == before
    assert list(graph.get_state(HERE).interrupts) == list(asked)


def test_their_command_from_a_node_is_no_update() -> None:
    graph = built(lambda state: theirs.Command(update={"a": 2})).compile()
    with pytest.raises(InvalidUpdateError, match="is LangGraph's Command"):
        graph.invoke({"a": 1})


def test_their_send_from_a_router_is_named() -> None:
    graph = built(lambda state: {"a": 2}, lambda state: [theirs.Send("n", {"a": 1})]).compile()
    with pytest.raises(InvalidUpdateError, match=r"router .* said is LangGraph's Send"):
        graph.invoke({"a": 1})


def test_their_policies_and_savers_are_refused_when_the_graph_is_built() -> None:
    policy: Any = theirs.RetryPolicy(max_attempts=2)
    saver: Any = TheirSaver()
    with pytest.raises(GraphError, match="the retry policy is LangGraph's RetryPolicy"):
        StateGraph(State).add_node("n", lambda state: {}, retry_policy=policy)
    with pytest.raises(GraphError, match="LangGraph's InMemorySaver is no checkpointer of everstep"):
        built(lambda state: {}).compile(checkpointer=saver)


def test_a_worker_is_told_that_a_graph_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_changed.py").write_text(
        "from typing import TypedDict\n"
        f"from {TheirGraph.__module__} import StateGraph\n"
        "class S(TypedDict):\n    a: int\n"
        "graph = StateGraph(S).add_node('n', lambda s: {}).set_entry_point('n').compile()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(GraphError, match="half_changed:graph is LangGraph's CompiledStateGraph"):
        load_target("half_changed:graph")
