"""What nodes return: Commands, sorted out and refused where they make no sense. Their way is in `test_plan`."""

from __future__ import annotations

import operator
from datetime import timedelta
from typing import Annotated, Any, Literal, TypedDict

import pytest

from everstep_checkpoint.errors import GraphError, InvalidUpdateError, NodeTimeoutError
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.results import node_result
from everstep_scheduler.graph.runtime import END, START, Command, Send
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.inline.savers import InMemorySaver


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    n: int


def spec(node: Any = lambda state: None, **more: Any) -> GraphSpec:
    graph = StateGraph(State)
    graph.add_node("a", node, **more).add_node("b", lambda state: {"log": ["b"]}).add_node("c", lambda state: None)
    return graph.add_edge(START, "a").add_edge(START, "c").spec()


def anywhere(state: State) -> Command[Any]:
    return Command(goto="b")


def to_b(state: State) -> Command[Literal["b", "__end__"]] | None:
    return Command(goto="b")


def unannotated(state):  # type: ignore[no-untyped-def]
    return Command(goto="b")


FIVE: Any = 5


def test_a_command_is_writes_and_destinations_in_order() -> None:
    send = Send("c", 1)
    told = [Command(update={"n": 1}, goto=["b", send, END]), {"log": ["x"]}, Command(update=[("log", ["y"])], goto="c")]
    found = node_result(spec(anywhere), "a", told)
    assert [name for name, _ in found.writes] == ["n", "log", "log"]
    assert (found.goto, found.sends) == (["b", "c"], [send])


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (Command(goto="d"), "goes to 'd', which is no node"),
        (Command(goto=Send("d", 1)), "goes to 'd', which is no node"),
        (Command(goto=Send(END, 1)), "goes to '__end__', which is no node"),
        (Command(goto=START), "goes to '__start__', which is no node"),
        (Command(goto=["b", FIVE]), "goes to 5, which is no node"),
        (Command(update={1: 2}), "wrote 1, which is no key"),
        (Command(update=[(b"n", 2)]), "wrote b'n', which is no key"),
        (Command(update={"m": 1}), "wrote 'm', which is no key"),
        (Command(update=[("n", 1), "n"]), "a list, but not one of pairs"),
        (Command(update=3), "returned an int"),
        (Command(graph=Command.PARENT, goto="b"), "has no parent"),
        ([Command(goto="b"), 3], "returned an int"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(told: Any, says: str) -> None:
    with pytest.raises(InvalidUpdateError, match=says) as error:
        node_result(spec(anywhere), "a", told)
    assert error.value.node == "a" and error.value.fix


@pytest.mark.parametrize("node", [anywhere, to_b, unannotated, lambda state: Command(goto="b")])
def test_a_node_that_only_a_command_reaches_is_no_lost_node(node: Any) -> None:
    assert spec(node).nodes["b"]


def test_destinations_tell_where_a_node_may_go() -> None:
    def by_hand(state: State) -> Any:
        return None

    assert spec(by_hand, destinations=("b",)).nodes["a"].ends == {"b": "b"}
    assert spec(by_hand, destinations={"b": "if it must"}).nodes["a"].ends == {"b": "if it must"}
    with pytest.raises(GraphError, match="names 'd', which is no node"):
        spec(by_hand, destinations=("d",))


def test_a_node_that_returns_no_command_reaches_nothing_by_itself() -> None:
    def plain(state: State) -> State:
        return {}

    with pytest.raises(GraphError, match="No path from START reaches the node 'b'"):
        spec(plain)


def test_a_command_to_the_parent_fails_the_run_and_says_so() -> None:
    graph = StateGraph(State).add_node("a", lambda state: Command(graph=Command.PARENT, goto="x")).add_edge(START, "a")
    with pytest.raises(InvalidUpdateError, match="has no parent"):
        graph.compile(checkpointer=InMemorySaver()).invoke({"n": 1}, {"configurable": {"thread_id": "t"}})


def test_a_send_brings_its_own_timeout() -> None:
    import time

    def work(state: State) -> State:
        time.sleep(0.3 if state["n"] else 0)
        return {"log": ["work"]}

    graph = StateGraph(State).add_node("work", work, timeout=10)
    graph.add_conditional_edges(START, lambda state: [Send("work", {"n": i}, timeout=0.05 + i / 50) for i in (0, 1)])
    compiled = graph.compile(checkpointer=InMemorySaver())
    with pytest.raises(NodeTimeoutError, match=r"0\.07 s"):
        compiled.invoke({"n": 1}, {"configurable": {"thread_id": "t"}})


@pytest.mark.parametrize("timeout", [0, -1, timedelta(0), float("inf")])
def test_a_send_s_timeout_must_be_a_time(timeout: Any) -> None:
    with pytest.raises(GraphError, match="can't be kept"):
        Send("a", 1, timeout=timeout)
