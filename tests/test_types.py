"""Promises of the types that a graph knows without an annotation."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from pydantic import BaseModel

from everstep_checkpoint.errors import GraphError, UnknownType
from everstep_checkpoint.replay import state_at
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.inline.savers import InMemorySaver


class Note(BaseModel):
    text: str


class Renamed(BaseModel):
    text: str


class Anything(TypedDict, total=False):
    notes: Annotated[list[Any], operator.add]


def noting(cls: type[Any]) -> StateGraph:
    return StateGraph(Anything).add_node("note", lambda state: {"notes": [cls(text="x")]}).add_edge(START, "note")


def test_values_may_be_of_a_class_that_the_graph_was_told_of_and_of_one_that_was_renamed() -> None:
    saver, config = InMemorySaver(), {"configurable": {"thread_id": "t"}}
    with pytest.raises(UnknownType, match=r"add_type\(Note\)"):
        noting(Note).compile(name="notes").invoke({})
    noting(Note).add_type(Note).compile(saver, name="notes").invoke({}, config)
    with pytest.raises(UnknownType, match="'Note', which the graph here does not know"):
        noting(Renamed).add_type(Renamed).compile(saver, name="notes").invoke({}, config)
    later = noting(Renamed).add_type(Renamed, aliases=["Note"]).compile(saver, name="notes")
    assert later.invoke(None, config) == {"notes": [Renamed(text="x"), Renamed(text="x")]}


def test_a_graph_knows_the_types_that_a_nested_one_was_told_of_by_the_same_names() -> None:
    saver, config = InMemorySaver(), {"configurable": {"thread_id": "t"}}
    inner = noting(Note).add_type(Note, name="note.v1").compile(name="inner")
    outer = StateGraph(Anything).add_node("inner", inner).add_edge(START, "inner").compile(saver, name="outer")
    assert outer.invoke({}, config) == {"notes": [Note(text="x")]}
    stored = state_at(saver.log, "t").channels["notes"]
    assert b"note.v1" in stored


@pytest.mark.parametrize("cls", [int, Anything, object])
def test_a_class_that_no_value_can_be_of_is_refused_at_once(cls: type[Any]) -> None:
    with pytest.raises(GraphError, match="can't be registered"):
        StateGraph(Anything).add_type(cls)
    with pytest.raises(GraphError, match="is taken"):
        StateGraph(Anything).add_type(Note).add_type(Renamed, name="Note")
