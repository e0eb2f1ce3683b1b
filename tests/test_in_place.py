"""A replay in place: of the head by its id, where that is an update or a fork. All its tasks run again, and the history
shows no checkpoint more. Beside LangGraph, and what the log must still tell of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.types import interrupt as oracle_interrupt

from everstep_checkpoint.errors import InvalidUpdateError, RunConflict
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from sidebyside import patient_oracle
from test_interrupts import working
from test_plan import OURS, THEIRS
from test_subgraphs import sound
from test_travel import told

Config = dict[str, Any]
ON: Config = {"configurable": {"thread_id": "t"}}
ran: list[str] = []
failing: list[str] = []


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def graph(lib: Any, saver: Any, ask: Any = interrupt) -> Any:
    """a; then b, c (fails while it is in `failing`) and q (asks) side by side; then d."""
    made = lib.StateGraph(State)

    def node(name: str) -> Callable[[Any], Any]:
        def run(state: Any) -> Any:
            answers = [ask("which?")] if name == "q" else []  # to go on runs one that waits again there, and not here
            ran.append(name)
            if name in failing:
                raise ValueError(name)
            return {"log": [name, *answers]}

        return run

    for name in "abcqd":
        made.add_node(name, node(name))
    made.add_edge(START, "a").add_edge("a", "b").add_edge("a", "c").add_edge("a", "q").add_edge(["b", "c", "q"], "d")
    return made.compile(checkpointer=saver, **({"name": "g"} if lib is OURS else {}))


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    ran.clear()
    failing.clear()
    with patient_oracle():
        yield


def there(graph: Any) -> Config:
    """The config of the head, with its id."""
    return dict(graph.get_state(ON).config)


def go(graph: Any, given: Any, config: Config = ON) -> str:
    """Run it; the nodes that ran, and how it ended."""
    ran.clear()
    try:
        found = graph.invoke(given, config, **({} if hasattr(graph, "spec") else {"durability": "sync"}))
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        return f"{sorted(ran)} {type(error).__name__}"
    return f"{sorted(ran)} {[each.value for each in found.get('__interrupt__', ())]}"


def begin(graph: Any) -> str:
    return go(graph, {"log": ["x"]})


def go_on(graph: Any) -> str:
    return go(graph, None)


def replay(graph: Any) -> str:
    return go(graph, None, there(graph))


def answer(graph: Any) -> str:
    lib = OURS if isinstance(graph, CompiledGraph) else THEIRS
    return go(graph, lib.Command(resume="this"))


def command(graph: Any) -> str:
    lib = OURS if isinstance(graph, CompiledGraph) else THEIRS
    return go(graph, lib.Command(update={"log": ["u"]}), there(graph))


def breaks(graph: Any) -> str:
    failing[:] = ["c"]
    return ""


def mends(graph: Any) -> str:
    failing.clear()
    return ""


def update(as_node: str, values: Any = None) -> Callable[[Any], str]:
    def run(graph: Any) -> str:
        graph.update_state(ON, values, as_node=as_node)
        return ""

    return run


U = {"log": ["u"]}
CASES: dict[str, list[Callable[[Any], Any]]] = {
    "a replay's own checkpoint": [begin, replay, replay, answer],
    "twice": [begin, replay, replay, replay, answer],
    "going on with it takes what is done": [begin, replay, go_on, answer],
    "with a failure": [breaks, begin, replay, replay, mends, go_on, answer],
    "what failed is mended by then": [breaks, begin, replay, mends, replay, answer],
    "an update": [begin, update("a", U), go_on, replay, answer],
    "an update, untouched": [begin, update("a", U), replay, answer],
    "a copy": [begin, update("__copy__"), go_on, replay, answer],
    "cleared": [begin, update(END), replay],
    "a Command": [begin, replay, command, answer],
    "then another input": [begin, replay, replay, begin, answer],
    "then an update": [begin, replay, replay, update("q", U), go_on],
    "one that the thread has moved past": [begin, replay, replay, answer, replay, replay],
}


@pytest.mark.parametrize("case", CASES)
def test_a_replay_in_place_goes_as_in_langgraph(saver: Saver, case: str) -> None:
    """The same nodes run, and the history is the same."""
    ours, theirs = graph(OURS, saver), graph(THEIRS, OracleSaver(), oracle_interrupt)
    for i, act in enumerate(CASES[case]):
        mine, his = act(ours), act(theirs)
        assert mine == his, f"action {i}"
        assert told(ours) == told(theirs), f"action {i}"
        now, then = ours.get_state(ON), theirs.get_state(ON)
        assert (now.values, sorted(now.next)) == (then.values, sorted(then.next)), f"action {i}"
        assert len(now.interrupts) == len(then.interrupts)
    assert verify(saver.log, "t").problems == []
    assert sound(saver.log, "t")


def replayed(saver: Saver) -> tuple[Any, Config]:
    """A thread whose head was replayed in place, and the config of that head before."""
    made = graph(OURS, saver)
    begin(made)
    replay(made)
    before = there(made)
    assert replay(made) == "['b', 'c'] ['which?']"
    return made, before


def test_what_was_replayed_in_place_is_found_by_its_first_id(saver: Saver) -> None:
    made, before = replayed(saver)
    assert there(made) != before
    assert made.get_state(before).config == there(made)
    assert [each.config for each in made.get_state_history(before)] == [there(made)]
    assert made.get_state(before).parent_config == made.get_state(there(made)).parent_config
    assert go(made, None, before) == "['b', 'c'] ['which?']"
    assert len(told(made)) == 4
    assert len([x for x in saver.log.read("t") if x.is_checkpoint]) == 6


def test_the_history_shows_it_once_however_it_is_narrowed_down(saver: Saver) -> None:
    made, before = replayed(saver)
    replay(made)
    every = [each.config for each in made.get_state_history(ON)]
    assert len(every) == 4
    for limit in range(1, 5):
        assert [each.config for each in made.get_state_history(ON, limit=limit)] == every[:limit]
    assert [x.config for x in made.get_state_history(ON, before=there(made))] == every[1:]
    assert [x.config for x in made.get_state_history(ON, before=before, limit=2)] == every[1:3]
    assert [x.config for x in made.get_state_history(ON, filter={"source": "fork"})] == every[:1]


def test_what_is_said_of_a_checkpoint_does_not_change_by_a_replay_in_place(saver: Saver) -> None:
    made = graph(OURS, saver)
    made.invoke({"log": ["x"]}, {**ON, "metadata": {"who": "first"}})
    made.invoke(None, {**there(made), "metadata": {"who": "second"}})
    before = made.get_state(ON)
    made.invoke(None, {**there(made), "metadata": {"who": "third"}})
    after = made.get_state(ON)
    assert (after.metadata, after.created_at) == (before.metadata, before.created_at)
    assert after.metadata["who"] == "second"


def test_the_same_replay_in_place_again_begins_nothing(saver: Saver) -> None:
    made = graph(OURS, saver)
    begin(made)
    replay(made)
    before = there(made)
    made.invoke(None, before, run_id="again")
    entries = len(saver.log.read("t"))
    ran.clear()
    assert made.invoke(None, before, run_id="again")["__interrupt__"][0].value == "which?"
    assert ran == [] and len(saver.log.read("t")) == entries
    made.invoke(OURS.Command(resume="this"), ON)
    ran.clear()
    made.invoke(None, before, run_id="again")
    assert ran == []
    with pytest.raises(RunConflict):
        made.invoke(None, there(made), run_id="again")


def test_a_replay_in_place_does_its_effects_again(saver: Saver) -> None:
    did: list[str] = []

    def does() -> str:
        did.append("e")
        return "e"

    made = OURS.StateGraph(State).add_node("a", lambda s: {"log": [once("e", does)]})
    made.add_node("q", lambda s: {"log": [interrupt("which?")]})
    compiled = made.add_edge(START, "a").add_edge(START, "q").compile(checkpointer=saver, name="g")
    compiled.invoke({"log": []}, ON)
    compiled.invoke(None, there(compiled))
    compiled.invoke(None, ON)
    assert did == ["e"] * 2
    compiled.invoke(None, there(compiled))
    assert did == ["e"] * 3


def test_a_trimmed_original_is_not_missed(saver: Saver) -> None:
    made, _ = replayed(saver)
    head = saver.log.head("t")
    assert head is not None
    saver.log.trim("t", f"{head.n - 1}-1")
    assert made.get_state(ON).next == ("q",)
    assert replay(made) == "['b', 'c'] ['which?']"
    assert answer(made) == "['d', 'q'] []"


def test_an_update_behind_a_replay_in_place_is_as_ambiguous_as_before(saver: Saver) -> None:
    made, _ = replayed(saver)
    answer(made)
    with pytest.raises(InvalidUpdateError, match="Ambiguous"):
        made.update_state(made.get_state_history(ON, limit=2).__next__().parent_config, U)


def test_a_path_passes_a_checkpoint_once_that_was_replayed_in_place(saver: Saver) -> None:
    made, _ = replayed(saver)
    answer(made)
    trace = made.get_path(ON).trace
    assert trace is not None and {
        name: mark.runs for name, mark in trace.marks.items() if name in "abcqd"
    } == dict.fromkeys("abcqd", 1)


def test_what_langgraph_stored_before_a_replay_in_place_comes_back_there_and_not_here() -> None:
    """An answer that was given before is what the question gets there, whatever is answered when it is asked anew."""
    logs: list[Any] = []
    for lib, kept, ask in ((OURS, InMemorySaver(), interrupt), (THEIRS, OracleSaver(), oracle_interrupt)):
        made = graph(lib, kept, ask)
        failing[:] = ["c"]
        begin(made)
        replay(made)
        go(made, lib.Command(resume="old"))
        assert replay(made) == "['b', 'c'] ValueError"
        failing.clear()
        go(made, lib.Command(resume="new"))
        logs.append(made.get_state(ON).values["log"])
    assert "new" in logs[0] and "old" not in logs[0]
    assert "old" in logs[1] and "new" not in logs[1]


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "plain"])
def test_a_client_replays_in_place(redis_url: str, typed: bool) -> None:
    made = graph(OURS, InMemorySaver())
    with working(redis_url, made), connect(redis_url) as client:
        remote: Any = client.graph("g", made if typed else None)
        remote.invoke({"log": ["x"]}, ON, timeout=10)
        remote.invoke(None, there(remote), timeout=10)
        ran.clear()
        remote.invoke(None, there(remote), timeout=10)
        assert sorted(ran) == ["b", "c"]
        ran.clear()
        remote.invoke(None, ON, timeout=10)
        assert ran == []
        assert remote.invoke(OURS.Command(resume="this"), ON, timeout=10)["log"][-1] == "d"
        assert [x[1] for x in told(remote)] == ["loop", "loop", "fork", "loop", "loop", "input"][-len(told(remote)) :]
        assert verify(client.log_store, "t").problems == []
