"""A Command with the `checkpoint_id` of an earlier checkpoint, against LangGraph: the same history, on both engines.

An answer is refused there: LangGraph drops it, as the last test shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.types import interrupt as their_interrupt

from everstep_checkpoint.errors import InvalidInput, InvalidResume, InvalidUpdateError, RunConflict
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from test_interrupts import working
from test_plan import OURS, THEIRS
from test_travel import ON, Config, asking, at, begin, go_on, graph, same, sync, told, update

U = {"log": ["u"]}
Act = Callable[[Any], Any]


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


def is_theirs(graph: Any) -> bool:
    return type(graph).__module__.startswith("langgraph")


def more(graph: Any) -> Any:
    return {"durability": "sync"} if is_theirs(graph) else {}


def command(step: int | None, said: Any = None, *goto: Any, source: str = "", **resume: Any) -> Act:
    """At the newest checkpoint with this step; None: at the head without its id. Sends are (node, argument)."""

    def act(graph: Any) -> Any:
        lib = THEIRS if is_theirs(graph) else OURS
        goes = [lib.Send(*each) if isinstance(each, tuple) else each for each in goto]
        config = ON if step is None else at(graph, step, source)
        return graph.invoke(lib.Command(update=said, goto=goes, **resume), config, **more(graph))

    return act


CASES: dict[str, tuple[str, str, tuple[Act, ...]]] = {
    "an update": ("chain", "", (command(1, U),)),
    "a goto": ("chain", "", (command(1, None, "d"),)),
    "a goto that is open there": ("chain", "", (command(1, None, "b"),)),
    "a goto that goes before what is open": ("chain", "", (command(2, None, "a"),)),
    "both": ("chain", "", (command(1, U, "d"),)),
    "several, and one twice": ("chain", "", (command(1, U, "d", "a", "d"),)),
    "Sends": ("chain", "", (command(1, None, ("c", {"log": ["s"]}), ("c", {"log": ["s2"]})),)),
    "Sends and a node": ("chain", "", (command(0, U, "d", ("c", {"log": ["s"]})),)),
    "to the end": ("chain", "", (command(1, U, "__end__"),)),
    "at the end": ("chain", "", (command(4, U, "b"),)),
    "an update at the end": ("chain", "", (command(4, U),)),
    "twice": ("chain", "", (command(1, U, "d"), command(1, {"log": ["v"]}, source="loop"))),
    "at a branch": ("chain", "", (command(1, U), command(2, U, "a", source="fork"))),
    "at an update that is the head": ("chain", "", (update(1, U, "a"), command(2, {"log": ["v"]}))),
    "at an update that is old": ("chain", "", (update(1, U, "a"), go_on, command(2, U, "d", source="update"))),
    "a wide step": ("wide", "", (command(1, U, "d"),)),
    "a wide step, one of which is done": ("wide", "c", (command(1, U),)),
    "a failed node": ("chain", "b", (command(1, U, "d"),)),
    "where a Command was given before": ("chain", "b", (command(None, U), command(1, {"log": ["v"]}, "c"))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_command_at_an_earlier_checkpoint_leaves_langgraphs_history(saver: Saver, case: str) -> None:
    shape, fails, actions = CASES[case]
    same(graph(OURS, saver, shape, fails), graph(THEIRS, OracleSaver(), shape, fails), begin, *actions)
    assert verify(saver.log, "t").problems == []


@pytest.mark.parametrize("case", ["both", "Sends and a node", "at a branch", "at an update that is the head"])
def test_a_command_at_an_earlier_checkpoint_goes_the_same_on_workers(redis_url: str, case: str) -> None:
    shape, _, actions = CASES[case]
    ours = graph(OURS, None, shape)
    with working(redis_url, ours), connect(redis_url) as client:
        same(client.graph("g", ours), graph(THEIRS, OracleSaver(), shape), begin, *actions)


def test_a_question_that_was_answered_is_asked_again_beside_what_a_command_adds(saver: Saver) -> None:
    ours, theirs = asking(OURS, interrupt, saver), asking(THEIRS, their_interrupt, OracleSaver())
    acts = begin, command(None, resume="one"), command(1, U), command(None, resume="two")
    same(ours, theirs, *acts)
    assert ours.get_state(ON).values["log"] == ["x", "a", "u", "two", "c"]


def test_a_client_without_the_code_goes_to_nodes_there_but_updates_nothing(redis_url: str) -> None:
    ours = graph(OURS, None)
    with working(redis_url, ours), connect(redis_url) as client:
        bare = client.graph("g")
        begin(bare)
        assert command(1, None, "d")(bare)["log"] == ["x", "a", "b", "d", "c", "d"]
        before = told(bare)
        with pytest.raises(InvalidInput, match="takes the graph's reducers"):
            command(1, U)(bare)
        assert told(bare) == before


def test_a_command_there_is_begun_once_under_its_run_id(saver: Saver) -> None:
    ours = graph(OURS, saver)
    begin(ours)
    there, other = at(ours, 1), at(ours, 0)

    def give(said: Any, config: Config) -> Any:
        return ours.invoke(OURS.Command(update=said, goto="d"), config, run_id="once")

    first, before = give(U, there), told(ours)
    assert give(U, there) == first
    assert told(ours) == before
    for said, config in (({"log": ["v"]}, there), (U, other)):
        with pytest.raises(RunConflict):
            give(said, config)
    assert told(ours) == before


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (command(-1, U), InvalidResume, "input of that checkpoint is still to be applied"),
        (command(1, None, "nobody"), InvalidUpdateError, "no node of 'g'"),
        (command(1, {"lag": 1}), InvalidUpdateError, "no key of 'g'"),
        (command(1, {"log": 3}), InvalidUpdateError, "raised TypeError"),
        (command(1, U, "d", resume=1), InvalidResume, "last checkpoint"),
        (command(1, resume=1), InvalidResume, "last checkpoint"),
    ],
)
def test_a_command_that_fits_nothing_there_is_refused(saver: Saver, act: Act, error: Any, says: str) -> None:
    ours = graph(OURS, saver)
    begin(ours)
    before = saver.log.read("t")
    with pytest.raises(error, match=says):
        act(ours)
    assert saver.log.read("t") == before


def test_langgraph_drops_an_answer_at_an_earlier_checkpoint_and_we_refuse_it() -> None:
    ours, theirs = asking(OURS, interrupt, InMemorySaver()), asking(THEIRS, their_interrupt, OracleSaver())
    same(ours, theirs, begin, command(None, resume="one"))
    assert command(1, resume="two")(theirs)["log"] == ["x", "a", "one", "c"]  # the old answer once more
    found = command(0, resume="three")(theirs)
    assert [each.value for each in found["__interrupt__"]] == ["which?"]  # it was given for no question
    for step in (1, 0):
        with pytest.raises(InvalidResume, match="a question that waits at the last checkpoint"):
            command(step, resume="two")(ours)
    ours.invoke(None, at(ours, 1), **sync(ours))
    assert command(None, resume="two")(ours)["log"] == ["x", "a", "two", "c"]
    assert isinstance(ours, CompiledGraph)
