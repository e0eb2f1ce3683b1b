"""Shapes that are known to differ from LangGraph, drawn apart: what it does, and what everstep does instead.

Each is a drawn graph with something beside it. Where LangGraph mends one of them, its test here says so.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.errors import InvalidUpdateError as OracleInvalid

from drawn import CHANCES, OURS, Drawn, Node, built, drawn, stops
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.savers import InMemorySaver
from servers import run_seed
from sidebyside import SYNC, THEIRS, patient_oracle
from turns import Seen, Turn, history, on, take, told, waiting

SEEDS = [random.Random(f"{run_seed()} known {i}").randrange(2**31) for i in range(20)]
ON = on("t")
FIRST = Turn("input", {"log": ["first"]})


@pytest.fixture(autouse=True)
def oracle() -> Iterator[None]:
    with patient_oracle():
        yield


@pytest.fixture(params=range(len(SEEDS)))
def drawing(request: pytest.FixtureRequest) -> Drawn:
    """A graph with edges, joins, routers and Sends, and no more."""
    return drawn(SEEDS[request.param], *(set(CHANCES) - {"sends"}))


def beside(drawing: Drawn, *nodes: Node) -> Drawn:
    """The graph, with more nodes behind START."""
    edges = tuple(((START,), node.name) for node in nodes)
    return replace(drawing, nodes=(*drawing.nodes, *nodes), edges=(*drawing.edges, *edges))


def both(drawing: Drawn) -> tuple[Any, Any]:
    made = stops(drawing)
    return built(OURS, drawing).compile(InMemorySaver(), **made), built(THEIRS, drawing).compile(OracleSaver(), **made)


def ours_and_theirs(graphs: tuple[Any, Any], turn: Turn) -> tuple[Seen, Seen]:
    mine = take(OURS, graphs[0], ON, turn)
    return mine, take(THEIRS, graphs[1], ON, turn, **({} if turn.how == "update" else SYNC))


def logs(graphs: tuple[Any, Any]) -> tuple[list[Any], list[Any]]:
    mine, his = (graph.get_state(ON).values["log"] for graph in graphs)
    return mine, his


def asked(graph: Any) -> list[Any]:
    return waiting(graph.get_state(ON).interrupts)


def test_a_handler_that_is_done_does_not_run_again(drawing: Drawn) -> None:
    """In LangGraph it does, with the run that goes on, and sees what was said meanwhile."""
    graphs = both(beside(drawing, Node("x", fails=1, handled=(END,)), Node("y", fails=1)))
    mine, his = ours_and_theirs(graphs, FIRST)
    assert mine == his and mine.end == "ValueError"
    for turn in (Turn("command", {"log": ["U"]}), Turn("go on")):
        ours_and_theirs(graphs, turn)
    mine_log, his_log = logs(graphs)
    assert "x is handled at 1" in mine_log and "x is handled at 2" not in mine_log
    assert "x is handled at 2" in his_log and "x is handled at 1" not in his_log


def test_what_a_handler_wrote_outlives_a_clear(drawing: Drawn) -> None:
    graphs = both(beside(drawing, Node("x", fails=1, handled=(END,)), Node("y", fails=1)))
    ours_and_theirs(graphs, FIRST)
    mine, his = ours_and_theirs(graphs, Turn("update", node=END))
    assert mine == his and mine.end == "done"
    mine_log, his_log = logs(graphs)
    assert "x is handled at 1" in mine_log and "x is handled at 1" not in his_log


def test_writes_that_exclude_each_other_leave_a_thread_that_can_be_read(drawing: Drawn) -> None:
    ours, theirs = graphs = both(beside(drawing, Node("x", counts=True), Node("y", counts=True)))
    mine, his = ours_and_theirs(graphs, FIRST)
    assert mine == his and mine.end == "InvalidUpdateError"
    assert ours.get_state(ON).values["log"][0] == "first"
    with pytest.raises(OracleInvalid):
        theirs.get_state(ON)


def test_writes_are_put_together_once_all_questions_are_answered(drawing: Drawn) -> None:
    """LangGraph does it while one waits, and raises."""
    graphs = both(beside(drawing, Node("x", counts=True), Node("y", counts=True), Node("z", asks=("?",))))
    mine, his = ours_and_theirs(graphs, FIRST)
    assert (mine.end, his.end) == ("done", "InvalidUpdateError")
    [question] = asked(graphs[0])
    assert take(OURS, graphs[0], ON, Turn("answer", to={question: 1})).end == "InvalidUpdateError"


def test_an_old_answer_is_not_taken_for_a_new_question(drawing: Drawn) -> None:
    """One that does not name its question. By ids LangGraph does the same as everstep."""
    graphs = both(beside(drawing, Node("x", asks=("p", "q"))))
    for turn in (FIRST, Turn("resume", "P"), Turn("go on")):
        ours_and_theirs(graphs, turn)
    assert [[each[0] for each in asked(graph)] for graph in graphs] == [["q"], []]
    mine_log, his_log = logs(graphs)
    assert ["x", "P", "P"] in his_log and ["x", "P", "P"] not in mine_log


def test_a_command_from_without_begins_a_deferred_node_at_once(drawing: Drawn) -> None:
    """In LangGraph it waits, as if an edge had led to it."""
    made = beside(drawing, Node("x", asks=("?",)))
    made = replace(made, nodes=(*made.nodes, Node("z", defer=True)), edges=(*made.edges, (("x",), "z")))
    graphs = both(made)
    ours_and_theirs(graphs, FIRST)
    [question] = asked(graphs[0])
    ours_and_theirs(graphs, Turn("command", to={question: 1}, goto=("z",)))
    first = [next(row[3]["log"] for row in history(graph, ON) if row[1] == 1) for graph in graphs]
    assert "z" in first[0] and "z" not in first[1]


def test_nothing_is_told_of_a_breakpoint_behind_the_last_node() -> None:
    """There is nothing to stop before. LangGraph's stream says it stopped; its state says that it is done."""
    graphs = both(Drawn(0, (Node("x"),), (((START,), "x"),), after=("x",)))
    mine, his = ours_and_theirs(graphs, FIRST)
    assert [graph.get_state(ON).next for graph in graphs] == [(), ()]
    assert mine.steps[-1] == () and his.steps[-1] == (told("updates", {"__interrupt__": ()}),)


def test_an_update_can_speak_for_a_node_that_ran_for_a_join_and_an_edge_at_once() -> None:
    """To LangGraph those were two nodes: who it speaks for is ambiguous."""
    edges = (((START,), "a"), ((START,), "b"), (("a", "b"), "a"), (("b",), "a"))
    graphs = both(Drawn(0, (Node("a"), Node("b")), edges))
    ours_and_theirs(graphs, FIRST)
    mine, his = ours_and_theirs(graphs, Turn("update", {"log": ["u"]}))
    assert (mine.end, his.end) == ("done", "InvalidUpdateError")
