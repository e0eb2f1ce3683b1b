"""The state of a graph that a node's function called, edited while its caller rests: against LangGraph as the oracle.

The next attempt of the caller finds it as it was left; nobody edits what an attempt may be at work on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver

from everstep.entries import shown as shown_entry
from everstep.history import lines
from everstep_checkpoint.errors import Conflict, InvalidInput, InvalidUpdateError, ThreadBusy, UnknownNode
from everstep_checkpoint.replay import verify
from everstep_checkpoint.signing import KEY
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.runtime import END
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.reading.children import children
from everstep_scheduler.reading.questions import dropped
from servers import wait_for
from signed import ONE
from test_called import asks_and_lasts, calls, deep, failing, many, mixed, upward
from test_interrupts import IN, OURS, THEIRS, Answer, asks, call, history, on, shown, state_of, working
from test_subgraphs import chain
from test_subgraphs import deep_question as node_deep
from test_subgraphs_state import deepest, seen

U = {"log": ["edited"]}
ANSWER = Answer("here")


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


def asking(lib: Any) -> Any:
    inner = chain(lib, "x", ("q", asks(lib, "q", "?q")), "y").compile()
    return chain(lib, "a", ("node", calls(inner)), "b")


def deep_question(lib: Any) -> Any:
    return deep(lib, True)


class Edit:
    """An update of the lowest state that waits."""

    def __init__(self, node: str | None = None, values: Any = U, back: int = 0) -> None:
        self.node, self.values, self.back = node, values, back

    def __call__(self, graph: Any) -> str:
        there = deepest(graph, on("t"))
        if self.back:
            there = list(graph.get_state_history(there))[self.back].config
        try:
            graph.update_state(there, self.values, as_node=self.node)
        except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
            return type(error).__name__
        return "done"


CLEAR = Edit(END, None)
STORIES: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "whoever wrote last": (asking, [IN, Edit(), ANSWER]),
    "a node before": (asking, [IN, Edit("x"), ANSWER]),
    "twice": (asking, [IN, Edit("x"), Edit("x", {"log": ["more"]}), ANSWER]),
    "who asks": (asking, [IN, Edit("q"), None]),
    "who asks, and an answer comes all the same": (asking, [IN, Edit("q"), ANSWER]),
    "it asks again": (asking, [IN, Edit("x"), None, ANSWER]),
    "the last node": (asking, [IN, Edit("y"), None]),
    "its end": (asking, [IN, CLEAR, None]),
    "a copy": (asking, [IN, Edit("__copy__", None), ANSWER]),
    "an earlier checkpoint": (asking, [IN, Edit("x", back=1), ANSWER]),
    "of two that wait": (many, [IN, Edit("p"), None]),
    "it keeps its state": (asks_and_lasts, [IN, Edit("x"), ANSWER, IN, Edit("q"), None]),
    "far down": (deep_question, [IN, Edit("__start__"), ANSWER]),
    "far down, nobody asks any more": (deep_question, [IN, Edit("q"), None]),
    "through graphs that are nodes": (mixed, [IN, Edit("__start__"), ANSWER]),
    "through graphs that are nodes, nobody asks any more": (mixed, [IN, Edit("q"), None]),
    "in a graph that is a node, nobody asks any more": (node_deep, [IN, Edit("q"), None]),
}


def told(lib: Any, graph: Any, step: Any) -> Any:
    if isinstance(step, Edit):
        return step(graph)
    return call(lib, graph, on("t"), step, **({} if lib is OURS else {"durability": "sync"}))


def sound_all(saver: Saver, thread: str = "t") -> None:
    for each in (thread, *children(saver.log, thread)):
        assert verify(saver.log, each).problems == []
        if each != thread:
            sound_all(saver, each)


@pytest.mark.parametrize("story", STORIES)
def test_an_edit_of_what_a_node_called_goes_as_in_langgraph(story: str, saver: Saver) -> None:
    build, steps = STORIES[story]
    ours, theirs = build(OURS).compile(checkpointer=saver, name="g"), build(THEIRS).compile(checkpointer=OracleSaver())
    for i, step in enumerate(steps):
        assert told(OURS, ours, step) == told(THEIRS, theirs, step), f"step {i}"
        assert state_of(ours, on("t")) == state_of(theirs, on("t")), f"step {i}"
        mine, his = deepest(ours, on("t")), deepest(theirs, on("t"))
        assert seen(ours.get_state(mine)) == seen(theirs.get_state(his)), f"step {i}"
        # an answer to what was edited away is given to the next question once that is asked, which its record tells
        assert [x[:-1] for x in history(ours, mine)] == [x[:-1] for x in history(theirs, his)], f"step {i}"
    sound_all(saver)


def test_an_edit_leads_to_its_place(saver: Saver) -> None:
    graph = asking(OURS).compile(checkpointer=saver)
    graph.invoke(IN, on("t"))
    below = deepest(graph, on("t"))
    made = graph.update_state(below, U, as_node="x")
    assert made["configurable"]["checkpoint_ns"] == below["configurable"]["checkpoint_ns"]
    assert graph.get_state(made).values["log"][-1] == "edited"
    more = graph.bulk_update_state(made, [[({"log": ["1"]}, "x")], [({"log": ["2"]}, "x")]])
    assert graph.get_state(more).values["log"][-3:] == ["edited", "1", "2"]


def test_what_was_called_by_a_failed_node_is_mended_by_an_edit(saver: Saver) -> None:
    graph = failing(OURS, times=9).compile(checkpointer=saver)
    with pytest.raises(ValueError, match="not yet"):
        graph.invoke(IN, on("t"))
    (below,) = [task.state for task in graph.get_state(on("t")).tasks if task.state]
    graph.update_state(below, U, as_node="f")
    assert ["c", "x", "edited", "y"] in graph.invoke(None, on("t"))["log"]


def test_an_edit_while_the_caller_runs_is_refused(saver: Saver) -> None:
    refusals: list[ThreadBusy] = []
    inner = chain(OURS, "x").compile(checkpointer=True)

    def node(state: Any) -> Any:
        inner.invoke({"log": ["c"]})
        with pytest.raises(ThreadBusy, match="may be at work in what its node called") as caught:
            graph.update_state({"configurable": {"thread_id": "t", "checkpoint_ns": "node"}}, U, as_node="x")
        refusals.append(caught.value)
        return {"log": ["ran"]}

    graph = chain(OURS, ("node", node)).compile(checkpointer=saver, name="g")
    graph.invoke(IN, on("t"))
    assert len(refusals) == 1 and refusals[0].thread == "t" and "wait for it" in refusals[0].fix
    graph.update_state({"configurable": {"thread_id": "t", "checkpoint_ns": "node"}}, U, as_node="x")


def test_a_run_that_begins_while_an_edit_is_made_up_refuses_it(saver: Saver) -> None:
    """The router of the update answers the question: what it made up is not written."""
    late: list[Any] = []
    inner = chain(OURS, "x", ("q", asks(OURS, "q", "?q")))

    def route(state: Any) -> str:
        if late:
            late.pop()(OURS.Command(resume="first"), on("t"))
        return END

    inner.add_conditional_edges("q", route, [END])
    graph = chain(OURS, ("node", calls(inner.compile()))).compile(checkpointer=saver)
    graph.invoke(IN, on("t"))
    below = deepest(graph, on("t"))
    late.append(graph.invoke)
    with pytest.raises(Conflict, match="nothing was written"):
        graph.update_state(below, U, as_node="q")
    assert graph.get_state(on("t")).values["log"][-1] == ["c", "x", ["q", "first"]]
    assert [x.metadata["source"] for x in graph.get_state_history(below)].count("update") == 0


@pytest.mark.parametrize(
    ("values", "node", "error"), [(U, "nobody", UnknownNode), ({"nope": 1}, "x", InvalidUpdateError)]
)
def test_an_edit_that_can_not_be_writes_nothing(saver: Saver, values: Any, node: str, error: type[Exception]) -> None:
    graph = asking(OURS).compile(checkpointer=saver)
    graph.invoke(IN, on("t"))
    below = deepest(graph, on("t"))
    before = [x.id for thread in ("t", *children(saver.log, "t")) for x in saver.log.read(thread)]
    with pytest.raises(error):
        graph.update_state(below, values, as_node=node)
    assert [x.id for thread in ("t", *children(saver.log, "t")) for x in saver.log.read(thread)] == before


def test_an_answer_to_a_question_that_was_edited_away_is_given_once(saver: Saver) -> None:
    inner = chain(OURS, "x", ("p", asks(OURS, "p", "?p")), ("q", asks(OURS, "q", "?q"))).compile()
    graph = chain(OURS, ("node", calls(inner))).compile(checkpointer=saver)
    graph.invoke(IN, on("t"))
    (child,) = children(saver.log, "t")
    graph.update_state(deepest(graph, on("t")), U, as_node="x")
    assert len(dropped(saver.log, child)) == 1
    asked = graph.invoke(OURS.Command(resume="one"), on("t"))["__interrupt__"]
    assert [each.value for each in asked] == ["?q"]
    assert dropped(saver.log, child) == []
    done = graph.invoke(OURS.Command(resume="two"), on("t"))
    assert done["log"][-1] == ["c", "x", "edited", ["p", "one"], ["q", "two"]]


def test_the_same_go_on_again_begins_nothing(saver: Saver) -> None:
    graph = asking(OURS).compile(checkpointer=saver)
    graph.invoke(IN, on("t"))
    graph.update_state(deepest(graph, on("t")), U, as_node="q")
    done = graph.invoke(None, on("t"), run_id="again")
    entries = len(saver.log.read("t"))
    assert graph.invoke(None, on("t"), run_id="again") == done
    assert len(saver.log.read("t")) == entries


def test_people_see_that_a_task_looks_again(saver: Saver) -> None:
    graph = asking(OURS).compile(checkpointer=saver)
    graph.invoke(IN, on("t"))
    graph.update_state(deepest(graph, on("t")), U, as_node="q")
    graph.invoke(None, on("t"))
    assert [x.what for line in lines(saver.log, "t", 20) for x in line.troubles] == [
        "asks",
        "interrupted",
        "looks again",
    ]
    (answer,) = [x for x in saver.log.read("t") if x.kind == "task_answered"]
    raw = {name.encode(): value for name, value in answer.raw.items()}
    assert "look again at what was called" in str(shown_entry(answer.id.encode(), raw, values=True))


def test_a_thread_that_is_kept_is_not_edited_by_its_own_name(saver: Saver) -> None:
    graph = asking(OURS).compile(checkpointer=saver)
    graph.invoke(IN, on("t"))
    (child,) = children(saver.log, "t")
    with pytest.raises(InvalidInput, match="kept by the node that called its graph"):
        graph.update_state(on(child), U, as_node="a")


def test_where_nothing_was_called_nothing_is_edited(saver: Saver) -> None:
    graph = upward(OURS).compile(checkpointer=saver)
    graph.invoke(IN, on("t"))
    with pytest.raises(InvalidInput, match="no graph is known"):
        graph.update_state({"configurable": {"thread_id": "t", "checkpoint_ns": "up:nothing"}}, U)


@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
def test_a_client_edits_what_a_node_called_on_a_worker(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, signed: bool
) -> None:
    if signed:
        monkeypatch.setenv(KEY, f"k1:{ONE}")
    graph = asking(OURS).compile(name="g")
    with working(redis_url, graph), connect(redis_url) as client:
        typed, bare = client.graph("g", graph), client.graph("g")
        client.submit("g", IN, thread_id="t").result(20)
        with pytest.raises(InvalidInput, match="no graph is known"):
            bare.update_state(deepest(bare, on("t")), U, as_node="x")
        typed.update_state(deepest(typed, on("t")), U, as_node="x")
        assert client.resume("t", "here").result(20)["log"][-2] == ["c", "x", "edited", ["q", "here"], "y"]
        client.submit("g", IN, thread_id="t").result(20)
        typed.update_state(deepest(typed, on("t")), U, as_node="q")
        assert client.retry("t").result(20)["log"][-2] == ["c", "x", "edited", "y"]


def test_an_edit_is_refused_while_a_worker_is_at_work(redis_url: str) -> None:
    began, go = [False], [False]

    def slow(state: Any) -> Any:
        began[0] = True
        wait_for(lambda: go[0], 20, "the word to go on")
        return {"log": ["slow"]}

    graph = chain(OURS, ("node", calls(chain(OURS, ("slow", slow)).compile(checkpointer=True)))).compile(name="g")
    with working(redis_url, graph), connect(redis_url) as client:
        run = client.submit("g", IN, thread_id="t")
        wait_for(lambda: began[0], 20, "the called graph to run")
        place = {"configurable": {"thread_id": "t", "checkpoint_ns": "node"}}
        with pytest.raises(ThreadBusy):
            client.graph("g", graph).update_state(place, U, as_node="slow")
        go[0] = True
        assert shown(run.result(20))["log"][-1] == ["c", "slow"]


def test_what_was_left_in_the_middle_of_a_step_is_not_edited(redis_url: str) -> None:
    began, go = [0], [False]

    def slow(state: Any) -> Any:
        began[0] += 1
        wait_for(lambda: go[0], 20, "the word to go on")
        return {"log": ["slow"]}

    graph = chain(OURS, ("node", calls(chain(OURS, ("slow", slow)).compile()))).compile(name="g")
    with working(redis_url, graph), connect(redis_url) as client:
        client.submit("g", IN, thread_id="t")
        wait_for(lambda: began[0] == 1, 20, "the called graph to run")
        client.cancel("t")
        go[0] = True
        remote = client.graph("g", graph)
        (below,) = [task.state for task in remote.get_state(on("t")).tasks]
        with pytest.raises(ThreadBusy, match="left in the middle of a step"):
            remote.update_state(below, U, as_node="slow")
        assert shown(client.retry("t").result(20))["log"][-1] == ["c", "slow"]
