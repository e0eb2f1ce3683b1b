"""Time travel and the state API against the oracle: each case leaves LangGraph's history, in memory and on Redis.

A history is compared whole: source, step, next, values, the parent by its place in the history, and each task's result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.types import StateUpdate as TheirUpdate
from langgraph.types import interrupt as their_interrupt

from everstep_checkpoint.replay import verify
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.steps.stateface import StateUpdate
from test_plan import OURS, THEIRS

Config = dict[str, Any]
THREAD = "t"
ON: Config = {"configurable": {"thread_id": THREAD}}
GRAPHS, TRIPS = 40, 4


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def graph(lib: Any, saver: Any, shape: str = "chain", fails: str = "") -> Any:
    """a, b, c, d in a chain; or b and c side by side behind a, joined at d. `fails`: nodes that raise, once."""
    made, left = lib.StateGraph(State), list(fails)

    def node(name: str) -> Callable[[Any], Any]:
        def run(state: Any) -> Any:
            if name in left:
                left.remove(name)
                raise ValueError(name)
            return {"log": [name]}

        return run

    for name in "abcd":
        made.add_node(name, node(name))
    made.add_edge(START, "a").add_edge("a", "b")
    if shape == "chain":
        made.add_edge("b", "c").add_edge("c", "d")
    elif shape == "wide":
        made.add_edge("a", "c").add_edge(["b", "c"], "d")
    else:  # Sends
        made.add_conditional_edges("a", lambda s: [lib.Send("c", {"log": [str(i)]}) for i in range(3)], ["c"])
        made.add_edge("c", "d")
    return made.compile(checkpointer=saver, **({"name": "g"} if lib is OURS else {}))


def told(graph: Any, thread: str = THREAD) -> list[tuple[Any, ...]]:
    """The history in words that both have, newest first."""
    found = list(graph.get_state_history({"configurable": {"thread_id": thread}}))
    ids = [each.config["configurable"]["checkpoint_id"] for each in found]

    def parent(snap: Any) -> int | None:
        named = (snap.parent_config or {"configurable": {}})["configurable"].get("checkpoint_id")
        return None if named is None else len(ids) - ids.index(named)

    return [
        (
            len(ids) - i, snap.metadata["source"], snap.metadata["step"], parent(snap), sorted(snap.next), snap.values,
            sorted((task.name, str(task.result)) for task in snap.tasks),
        )
        for i, snap in enumerate(found)
    ]  # fmt: skip


def at(graph: Any, step: int, source: str = "", thread: str = THREAD) -> Config:
    """The config of the newest checkpoint with this step."""
    found = graph.get_state_history({"configurable": {"thread_id": thread}})
    return next(dict(x.config) for x in found if x.metadata["step"] == step and source in ("", x.metadata["source"]))


def done(action: Callable[[Any], Any], graph: Any) -> str:
    """What an action came to, in one word."""
    try:
        action(graph)
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        return type(error).__name__
    return "done"


def same(ours: Any, theirs: Any, *actions: Callable[[Any], Any]) -> None:
    """Both do the same, and stand the same after each action."""
    for i, action in enumerate(actions):
        assert done(action, ours) == done(action, theirs), f"action {i}"
        mine, his = told(ours), told(theirs)
        assert mine == his, f"action {i}:\n" + "\n".join(
            f"{a}\n{b}\n" for a, b in zip(mine, his, strict=False) if a != b
        )
        mine_now, his_now = ours.get_state(ON), theirs.get_state(ON)
        assert (mine_now.values, sorted(mine_now.next)) == (his_now.values, sorted(his_now.next)), f"action {i}"


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


def begin(graph: Any) -> Any:
    return graph.invoke({"log": ["x"]}, ON, **sync(graph))


def go_on(graph: Any) -> Any:
    return graph.invoke(None, ON, **sync(graph))


def sync(graph: Any) -> Any:
    """LangGraph stores the barrier of a later step unless it is told to wait (its issue 8748)."""
    return {} if isinstance(graph, CompiledGraph) else {"durability": "sync"}


def replay(step: int, source: str = "") -> Callable[[Any], Any]:
    return lambda graph: graph.invoke(None, at(graph, step, source), **sync(graph))


def give(step: int) -> Callable[[Any], Any]:
    return lambda graph: graph.invoke({"log": ["y"]}, at(graph, step), **sync(graph))


def update(step: int | None, values: Any, as_node: str | None = None) -> Callable[[Any], Any]:
    return lambda graph: graph.update_state(ON if step is None else at(graph, step), values, as_node=as_node)


U = {"log": ["u"]}
CASES: dict[str, tuple[str, str, tuple[Callable[[Any], Any], ...]]] = {
    "replay": ("chain", "", (replay(1), replay(2))),
    "replay of the input": ("chain", "", (replay(-1),)),
    "replay of step 0": ("chain", "", (replay(0),)),
    "replay of the end": ("chain", "", (replay(4),)),
    "replay of a replay": ("chain", "", (replay(1), replay(2, "fork"))),
    "replay of what failed, at the head": ("chain", "c", (replay(2),)),
    "replay of a wide step that failed, at the head": ("wide", "c", (replay(1),)),
    "replay of a wide step": ("wide", "", (replay(1), replay(2))),
    "replay of Sends": ("sends", "", (replay(1), replay(2))),
    "replay that fails and is continued": ("chain", "", (replay(1), go_on)),
    "an input": ("chain", "", (give(1), give(2))),
    "an input at the input": ("chain", "", (give(-1),)),
    "an input at the head": ("chain", "", (give(4),)),
    "an input on a wide step": ("wide", "c", (give(1), give(0))),
    "an input on Sends": ("sends", "", (give(1), replay(1))),
    "an update": ("chain", "", (update(1, U, "b"), go_on, replay(2, "update"))),
    "an update of nothing": ("chain", "", (update(1, None, "b"), go_on)),
    "an update at the head": ("chain", "", (update(None, U, "a"), go_on)),
    "an update as START": ("chain", "", (update(1, U, START), go_on)),
    "an update with open siblings": ("wide", "c", (update(None, U, "a"), go_on)),
    "an update of what failed": ("wide", "c", (update(None, U, "c"), go_on)),
    "an update of what is done": ("wide", "c", (update(None, U, "b"), go_on)),
    "an update into Sends": ("sends", "", (update(1, U, "a"), go_on)),
    "inferred at the head": ("chain", "", (update(None, U), update(None, U), go_on)),
    "inferred at step 1": ("chain", "", (update(1, U), go_on)),
    "inferred at step 0": ("chain", "", (update(0, U), go_on)),
    "inferred at the input": ("chain", "", (update(-1, U), go_on)),
    "inferred, ambiguous": ("wide", "", (update(2, U), update(3, U), go_on)),
    "inferred behind Sends": ("sends", "", (update(2, U), update(3, U))),
    "inferred behind a replay": ("chain", "", (replay(1), update(2, U), update(3, U))),
    "cleared": ("chain", "c", (update(None, None, END), update(None, U), go_on)),
    "cleared in a wide step": ("wide", "c", (update(None, None, END), go_on)),
    "cleared in a wide step, inferred": ("wide", "c", (update(None, None, END), update(None, U))),
    "cleared earlier": ("chain", "", (update(1, None, END), update(None, U), go_on)),
    "cleared earlier, wide": ("wide", "", (update(1, None, END), go_on)),
    "cleared earlier, Sends": ("sends", "", (update(0, None, END), go_on)),
    "cleared at the input": ("chain", "", (update(-1, None, END), go_on)),
    "cleared at the end": ("chain", "", (update(None, None, END), go_on)),
    "END with values": ("chain", "", (update(1, U, END),)),
    "as input": ("chain", "", (update(None, U, "__input__"), go_on)),
    "as input, beside what is open": ("chain", "", (update(1, U, "__input__"), go_on)),
    "as input, at the input": ("chain", "", (update(-1, U, "__input__"), go_on)),
    "as input, beside a wide step": ("wide", "c", (update(None, U, "__input__"), go_on)),
    "as input, beside Sends": ("sends", "", (update(1, U, "__input__"), go_on)),
    "as input, then another": ("chain", "", (update(None, U, "__input__"), begin)),
    "a copy": ("chain", "", (update(1, None, "__copy__"), go_on)),
    "a copy of the input": ("chain", "", (update(-1, None, "__copy__"), go_on)),
    "a copy of a copy": ("chain", "", (update(1, None, "__copy__"), update(2, None, "__copy__"), go_on)),
    "a copy of Sends": ("sends", "", (update(1, None, "__copy__"), go_on)),
    "a copy, updated": ("chain", "", (update(1, None, "__copy__"), update(None, U), go_on)),
    "a copy of the first step, updated": ("chain", "", (update(0, None, "__copy__"), update(None, U), go_on)),
    "a copy of the input, updated": ("chain", "", (update(-1, None, "__copy__"), update(None, U), go_on)),
    "a copy of a copy, updated": (
        "chain",
        "",
        (update(1, None, "__copy__"), update(1, None, "__copy__"), update(None, U), go_on),
    ),
    "a copy of a wide step, updated": ("wide", "", (update(1, None, "__copy__"), update(None, U))),
    "a copy behind a wide step, updated": ("wide", "", (update(2, None, "__copy__"), update(None, U))),
    "a copy of an update, updated": (
        "chain",
        "",
        (update(1, U), update(None, None, "__copy__"), update(None, U), go_on),
    ),
    "a copy with updates": ("chain", "", (update(1, [(U, "b")], "__copy__"), go_on)),
    "a copy with updates, wide": ("wide", "", (update(1, [(U, "b"), (U, "c")], "__copy__"), go_on)),
}


@pytest.mark.parametrize("case", CASES)
def test_each_way_back_leaves_langgraphs_history(saver: Saver, case: str) -> None:
    shape, fails, actions = CASES[case]
    same(graph(OURS, saver, shape, fails), graph(THEIRS, OracleSaver(), shape, fails), begin, *actions)
    assert verify(saver.log, THREAD).problems == []


@pytest.mark.parametrize(
    "values_as", [(U, None), (U, "a"), (U, START), (None, END), (U, "__input__"), (None, "__copy__")], ids=str
)
def test_an_update_of_a_new_thread_is_langgraphs(saver: Saver, values_as: tuple[Any, str | None]) -> None:
    more = () if values_as == (None, END) else (go_on,)  # nothing is left to go on with: LangGraph raises, we do not
    same(graph(OURS, saver), graph(THEIRS, OracleSaver()), update(None, *values_as), *more)


def asking(lib: Any, interrupt: Any, saver: Any) -> Any:
    made = lib.StateGraph(State)
    made.add_node("a", lambda s: {"log": ["a"]}).add_node("b", lambda s: {"log": [interrupt("which?")]})
    made.add_node("c", lambda s: {"log": ["c"]})
    made.add_edge(START, "a").add_edge("a", "b").add_edge("b", "c")
    return made.compile(checkpointer=saver, **({"name": "g"} if lib is OURS else {}))


def test_a_replay_asks_again_what_was_answered(saver: Saver) -> None:
    def answer(word: str) -> Callable[[Any], Any]:
        return lambda graph: graph.invoke(
            (OURS if isinstance(graph, CompiledGraph) else THEIRS).Command(resume=word), ON, **sync(graph)
        )

    def again(graph: Any) -> Any:
        found = graph.invoke(None, at(graph, 1, "loop"), **sync(graph))
        assert [each.value for each in found["__interrupt__"]] == ["which?"]
        return found

    def answer_at_head(graph: Any) -> Any:
        command = (OURS if isinstance(graph, CompiledGraph) else THEIRS).Command(resume="head")
        return graph.invoke(command, graph.get_state(ON).config, **sync(graph))

    ours, theirs = asking(OURS, interrupt, saver), asking(THEIRS, their_interrupt, OracleSaver())
    same(ours, theirs, begin, answer("one"), again, answer("two"), again, answer_at_head)
    assert ours.get_state(ON).values["log"] == ["x", "a", "head", "c"]
    assert verify(saver.log, THREAD).problems == []


BULKS: dict[str, list[list[tuple[Any, ...]]]] = {
    "two at once, then one": [[(U, "b"), (U, "a")], [(U, "c")]],
    "one node twice": [[(U, "b"), ({"log": ["v"]}, "b")]],
    "a join": [[(U, "b"), (U, "c")]],
    "no node named": [[(U,), (U, "a")]],
    "nothing": [],
    "an empty superstep": [[]],
    "cleared with others": [[(None, END), (U, "a")]],
    "an unknown node behind a good one": [[(U, "b")], [(U, "nobody")]],
}


@pytest.mark.parametrize("shape", ["chain", "wide"])
@pytest.mark.parametrize("bulk", BULKS)
def test_supersteps_of_updates_are_langgraphs(saver: Saver, bulk: str, shape: str) -> None:
    def act(each: type[Any]) -> Callable[[Any], Any]:
        return lambda graph: graph.bulk_update_state(
            at(graph, 1), [[each(*one) for one in superstep] for superstep in BULKS[bulk]]
        )

    ours, theirs = graph(OURS, saver, shape), graph(THEIRS, OracleSaver(), shape)
    same(ours, theirs, begin)
    assert (done(act(StateUpdate), ours) == "done") is (done(act(TheirUpdate), theirs) == "done")
    same(ours, theirs, go_on)
