"""`Command(update=..., goto=...)` as an input, against LangGraph as the oracle: the same results, states, histories.

Where LangGraph drops what it can't place, or loses what it took before, we refuse or keep it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import (
    CorruptEntry,
    EmptyInputError,
    InvalidResume,
    InvalidUpdateError,
    RunConflict,
    ThreadBusy,
)
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.replay import step_of, verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START, Command, Send
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.moves.record import Config
from everstep_scheduler.reading.derive import derive
from sidebyside import patient_oracle
from test_interrupts import (
    OURS,
    THEIRS,
    Answer,
    State,
    asks,
    call,
    go_the_same,
    history,
    on,
    says,
    shown,
    waiting,
    working,
)
from test_recovery import wipe

GRAPHS = 60


@dataclass(frozen=True)
class Do:
    """`Command(...)` as an input. Sends are (node, argument); `to`: answers to the questions with these values."""

    update: Any = None
    goto: tuple[Any, ...] = ()
    resume: Any = None
    to: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def of(self, lib: Any, graph: Any, config: dict[str, Any]) -> Any:
        ids = {each.value: each.id for each in graph.get_state(config).interrupts} if self.to else {}
        resume = {ids[q]: a for q, a in self.to.items()} if self.to else self.resume
        goto = [lib.Send(*each) if isinstance(each, tuple) else each for each in self.goto]
        return lib.Command(update=self.update, goto=goto, resume=resume)


def do(lib: Any, graph: Any, config: dict[str, Any], step: Any, **more: Any) -> Any:
    return call(lib, graph, config, step.of(lib, graph, config) if isinstance(step, Do) else step, **more)


def values(graph: Any, config: dict[str, Any]) -> Any:
    return shown(graph.get_state(config).values)


def past(graph: Any, config: dict[str, Any]) -> list[Any]:
    return [each[:4] for each in history(graph, config)]


# --- graphs


def entry(graph: Any, first: str, *others: str) -> Any:
    """START leads to the first; to the others it could, so that all can be reached."""
    return graph.add_conditional_edges(START, lambda state: first, [first, *others])


def asking(lib: Any) -> Any:
    """a asks, then b; c and q, which asks, are reached by a goto only."""
    graph = lib.StateGraph(State).add_node("a", asks(lib, "a", "?a")).add_node("b", says("b"))
    graph.add_node("c", lambda state: {"log": [["c", state.get("n")]]}).add_node("q", asks(lib, "q", "?q"))
    return entry(graph, "a", "c", "q").add_edge("a", "b")


def looking(lib: Any) -> Any:
    """a asks only while it is not told n."""

    def node(state: State) -> Any:
        return {"log": [["a", state.get("n") or lib.interrupt("n?")]]}

    return lib.StateGraph(State).add_node("a", node).add_node("b", says("b")).add_edge(START, "a").add_edge("a", "b")


def beside(lib: Any) -> Any:
    graph = lib.StateGraph(State).add_node("z", says("z")).add_node("c", says("c"))
    graph.add_node("p", asks(lib, "p", "?p")).add_node("r", says("r")).add_node("w", lambda arg: {"log": [arg]})
    return entry(graph, "p", "c", "w").add_edge(START, "r").add_edge(["p", "r"], "z").add_edge("c", "z")


def failing(lib: Any) -> Any:
    def node(state: State) -> Any:
        if not state.get("n"):
            raise ValueError("no n")
        return {"log": [["f", state.get("n")]]}

    graph = lib.StateGraph(State).add_node("f", node).add_node("b", says("b")).add_node("c", says("c"))
    return entry(graph, "f", "c").add_edge("f", "b")


def routed(lib: Any) -> Any:
    """Where c leads is said by a router that sees the state."""
    graph = lib.StateGraph(State).add_node("a", says("a")).add_node("c", says("c")).add_node("d", says("d"))
    graph.add_conditional_edges("c", lambda state: "d" if state.get("n") == 7 else END, ["d", END])
    return entry(graph, "a", "c")


def nested(lib: Any) -> Any:
    """g is a graph whose node asks; what it gives is n."""
    child = lib.StateGraph(State).add_node("ask", lambda state: {"n": lib.interrupt("child?")}).add_edge(START, "ask")
    graph = lib.StateGraph(State).add_node("g", child.compile()).add_node("c", says("c")).add_node("a", says("a"))
    graph.add_node("b", lambda state: {"log": [["b", state.get("n")]]})
    return entry(graph, "a", "g", "c").add_edge("g", "b")


IN = {"log": ["in"]}
STORIES: dict[str, tuple[Callable[[Any], Any], dict[str, Any], list[Any]]] = {
    "an answer, an update and a goto": (asking, {}, [IN, Do({"log": ["U"], "n": 5}, ("c",), "R")]),
    "an update where a question waits": (asking, {}, [IN, Do({"log": ["U"], "n": 5}), Answer("R")]),
    "an update that makes the question needless": (looking, {}, [IN, Do({"n": 5})]),
    "updates add up": (asking, {}, [IN, Do({"log": ["U1"]}), Do([("log", ["U2"]), ("log", ["U3"])]), Answer(0)]),
    "an update on a thread that is done": (asking, {}, [IN, Answer(1), Do({"log": ["D"]}), None, IN, Answer(2)]),
    "a goto on a thread that is done": (asking, {}, [IN, Answer(1), Do(goto=("c",)), Do({"n": 3}, ("b", "c"))]),
    "Sends on a thread that is done": (asking, {}, [IN, Answer(1), Do({"n": 7}, (("c", {"n": 9}), "c", ("b", {})))]),
    "the same node twice": (asking, {}, [IN, Do(None, ("c", "c", "b"), "R")]),
    "a node that waits already": (asking, {}, [IN, Do(None, ("a",), "R")]),
    "a node that is done already": (beside, {}, [IN, Do(goto=("r",)), Do({"log": ["U"]}, (), "P")]),
    "beside a join": (beside, {}, [IN, Do(goto=("c",)), Answer("P")]),
    "a Send beside others": (beside, {}, [IN, Do({"n": 1}, (("w", "x"), "c", ("w", "y")), "P")]),
    "END goes nowhere": (asking, {}, [IN, Do(goto=(END,)), Answer("R"), Do(goto=(END,))]),
    "what failed sees the update": (failing, {}, [IN, Do({"n": 4}, ("c",))]),
    "what failed fails again": (failing, {}, [IN, Do({"log": ["U"]}, ("c",)), Do({"n": 2})]),
    "a router sees the update": (routed, {}, [IN, Do({"n": 7}, ("c",)), Do({"n": 8}, ("c",))]),
    "at a breakpoint": (asking, {"interrupt_before": ["b"]}, [IN, Answer("R"), Do({"log": ["U"]}, ("c",))]),
    "a breakpoint at what is added": (asking, {"interrupt_before": ["c"]}, [IN, Do(None, ("c",), "R")]),
    "an answer for what is added": (asking, {}, [IN, Answer("R"), Do(None, ("q",), "Q")]),
    "what is added asks": (asking, {}, [IN, Answer("R"), Do({"n": 1}, ("q",)), Do(resume="Q")]),
    "a graph is added": (nested, {}, [IN, Do({"log": ["U"]}, ("g",), 5)]),
    "an input after an update gives the step up": (asking, {}, [IN, Do({"log": ["U"]}, ("c",)), {"log": ["new"]}]),
}  # fmt: skip


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    if request.param == "memory":
        return InMemorySaver()
    return RedisSaver(request.getfixturevalue("redis_url"))


@pytest.mark.parametrize("story", STORIES)
def test_commands_go_as_in_langgraph(story: str, saver: Saver) -> None:
    build, stops, steps = STORIES[story]
    ours = build(OURS).compile(checkpointer=saver, name="g", **stops)
    theirs = build(THEIRS).compile(checkpointer=OracleSaver(), **stops)
    config = on("t")
    for i, step in enumerate(steps):
        mine, his = do(OURS, ours, config, step), do(THEIRS, theirs, config, step, durability="sync")
        assert mine == his, f"call {i}"
        # LangGraph's get_state leaves out what a Command added; what it returned did not
        assert not isinstance(his, tuple) or values(ours, config) == his[0], f"state after call {i}"
        assert past(ours, config) == past(theirs, config), f"history after call {i}"
    assert verify(saver.log, "t").sound


@pytest.mark.parametrize("story", STORIES)
def test_what_is_streamed_of_a_command_is_as_in_langgraph(story: str) -> None:
    """Tasks end in any order; the chunks of a step are compared as a set."""
    build, stops, steps = STORIES[story]
    graphs = [(OURS, compiled(OURS, build, **stops)), (THEIRS, compiled(THEIRS, build, **stops))]
    for i, step in enumerate(steps):
        with patient_oracle():
            mine, theirs = (streamed(lib, graph, step) for lib, graph in graphs)
        assert mine == theirs, f"call {i}: {step}"


def streamed(lib: Any, graph: Any, step: Any) -> list[str]:
    data = step.of(lib, graph, on("t")) if isinstance(step, Do) else step
    data = lib.Command(resume=step.value) if isinstance(step, Answer) else data
    found: list[str] = []
    try:
        for mode, chunk in graph.stream(data, on("t"), stream_mode=["updates", "values"]):
            asked = chunk.get("__interrupt__", ())
            found.append(repr((mode, shown(chunk), waiting(asked))))
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        return [type(error).__name__]  # what others told before depends on who was faster
    return sorted(found)


def test_the_questions_of_a_graph_in_a_graph_outlive_an_update(saver: Saver) -> None:
    graph = nested(OURS).compile(checkpointer=saver, name="g")
    do(OURS, graph, on("t"), IN)
    for step in (Do(goto=("g",)), Do({"log": ["U"]}), Do(goto=("c",))):
        assert do(OURS, graph, on("t"), step)[1] == ["child?"]
    assert do(OURS, graph, on("t"), Answer(7)) == ({"log": ["in", "a", "U", "c", "in", "a", ["b", 7]], "n": 7}, [])
    assert verify(saver.log, "t").sound


# --- where LangGraph loses something


def sending(lib: Any) -> Any:
    graph = lib.StateGraph(State).add_node("w", lambda arg: {"log": [[arg["n"], lib.interrupt(f"?{arg['n']}")]]})
    return graph.add_conditional_edges(START, lambda state: [lib.Send("w", {"n": i}) for i in range(2)], ["w"])


def compiled(lib: Any, build: Callable[[Any], Any], **more: Any) -> Any:
    return build(lib).compile(checkpointer=InMemorySaver() if lib is OURS else OracleSaver(), **more)


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_a_send_keeps_those_that_wait(lib: Any) -> None:
    graph = compiled(lib, sending)
    do(lib, graph, on("t"), IN)
    do(lib, graph, on("t"), Do(goto=(("w", {"n": 7}),)))
    asked = ["?0", "?1", "?7"] if lib is OURS else ["?1", "?7"]
    assert waiting(graph.get_state(on("t")).interrupts) == asked


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_one_key_can_be_updated_twice_before_the_next_checkpoint(lib: Any) -> None:
    graph = compiled(lib, asking)
    do(lib, graph, on("t"), IN)
    do(lib, graph, on("t"), Do({"n": 1}))
    again = do(lib, graph, on("t"), Do({"n": 2}))
    assert again == (({"log": ["in"], "n": 2}, ["?a"]) if lib is OURS else "InvalidUpdateError")


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_update_state_keeps_what_a_command_updated(lib: Any) -> None:
    graph = compiled(lib, asking)
    for step in (IN, Do({"log": ["U"]})):
        do(lib, graph, on("t"), step)
    graph.update_state(on("t"), {"log": ["S"]}, as_node="a")
    assert graph.get_state(on("t")).values["log"] == (["in", "U", "S"] if lib is OURS else ["in", "S"])


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_what_was_added_and_asks_can_be_seen_and_answered_by_id(lib: Any) -> None:
    graph = compiled(lib, asking)
    for step in (IN, Answer("R"), Do(goto=("q",))):
        do(lib, graph, on("t"), step)
    assert waiting(graph.get_state(on("t")).interrupts) == (["?q"] if lib is OURS else [])
    assert graph.get_state(on("t")).next == (("q",) if lib is OURS else ())


# --- time travel


def test_a_replay_has_what_commands_said_there_as_in_langgraph(saver: Saver) -> None:
    ours, theirs = asking(OURS).compile(checkpointer=saver, name="g"), compiled(THEIRS, asking)
    for lib, graph in ((OURS, ours), (THEIRS, theirs)):
        for step in (IN, Do({"log": ["U"]}, ("c",), "R")):
            do(lib, graph, on("t"), step)
        at = next(each for each in graph.get_state_history(on("t")) if each.next == ("a",))
        graph.invoke(None, at.config)
        graph.invoke({"log": ["new"]}, at.config)
        graph.update_state(at.config, {"log": ["S"]}, as_node="a")
        graph.invoke(lib.Command(goto="q"), at.config)
    assert past(ours, on("t")) == past(theirs, on("t"))
    assert verify(saver.log, "t").sound
    planned = next(each for each in ours.get_state_history(on("t")) if each.next == ("a",))
    with pytest.raises(InvalidResume, match="a question that waits at the last checkpoint"):
        ours.invoke(Command(goto="c", resume=1), planned.config)


# --- what makes no sense


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (Command(goto="x"), "goes to 'x', which is no node of 'g'"),
        (Command(goto=Send("x", 1)), "goes to 'x', which is no node of 'g'"),
        (Command(goto=Send(END, 1)), "goes to '__end__', which is no node of 'g'"),
        (Command(goto=[3]), "goes to 3"),  # type: ignore[list-item]
        (Command(update={"lag": 1}), "updates 'lag', which is no key of 'g'"),
        (Command(update=["log"]), "the Command's update is a list"),
        (Command(update=[("n", 1), ("n", 2)]), "can take only one value per step"),
        (Command(update={"log": 3}), "add raised TypeError"),
        (Command(graph=Command.PARENT, goto="b"), "there is no parent graph"),
    ],
)
def test_a_command_that_fits_nothing_is_refused_and_nothing_is_written(saver: Saver, command: Any, says: str) -> None:
    graph = asking(OURS).compile(checkpointer=saver, name="g")
    graph.invoke(IN, on("t"))
    before = saver.log.read("t")
    with pytest.raises(InvalidUpdateError, match=says):
        graph.invoke(command, on("t"))
    assert saver.log.read("t") == before


def test_a_new_thread_has_nothing_to_command(saver: Saver) -> None:
    graph = asking(OURS).compile(checkpointer=saver, name="g")
    with pytest.raises(EmptyInputError, match="a new thread has nothing that a Command could go on from"):
        graph.invoke(Command(goto="c"), on("t"))
    assert saver.log.head("t") is None


def test_an_input_that_is_still_to_be_applied_can_not_be_commanded(saver: Saver) -> None:
    builder = StateGraph(State).add_node("a", says("a")).add_conditional_edges(START, lambda s: interrupt("?"), ["a"])
    graph = builder.compile(checkpointer=saver, name="g")
    graph.invoke(IN, on("t"))
    with pytest.raises(InvalidResume, match="last input is still to be applied"):
        graph.invoke(Command(goto="a"), on("t"))
    assert graph.invoke(Command(resume="a"), on("t")) == {"log": ["in", "a"]}


# --- on workers


def test_commands_go_the_same_on_workers(redis_url: str) -> None:
    go_the_same(redis_url, STORIES, do, values)


def test_a_client_without_the_code_commands(redis_url: str) -> None:
    graph = asking(OURS).compile(name="g")
    with working(redis_url, graph), connect(redis_url) as client:
        client.submit("g", IN, thread_id="t").result(20)
        for wrong in ({"goto": "x"}, {"update": {"lag": 1}}):
            with pytest.raises(InvalidUpdateError, match="is no"):
                client.resume("t", **wrong)
        given: dict[str, Any] = {"update": {"log": ["U"], "n": 5}, "goto": ["c", Send("c", {"n": 9})]}
        run = client.resume("t", "R", **given, run_id="kim")
        assert run.result(20) == {"log": ["in", "U", ["a", "R"], ["c", 5], ["c", 9], "b"], "n": 5}
        assert client.resume("t", "R", **given, run_id="kim").result(20)["n"] == 5
        with pytest.raises(RunConflict):
            client.resume("t", "R", **{**given, "goto": "c"}, run_id="kim")
        assert client.resume("t", update={"n": 6}).result(20)["log"][-1] == "b"
        assert client.graph("g").invoke(Command(goto="c"), on("t"), timeout=20)["log"][-1] == ["c", 6]
        with pytest.raises(EmptyInputError, match="a new thread"):
            client.graph("g").invoke(Command(goto="c"), on("new"))


def test_a_busy_thread_takes_no_command(redis_url: str) -> None:
    graph = asking(OURS).compile(checkpointer=RedisSaver(redis_url), name="g")
    graph.invoke(IN, on("t"))
    with connect(redis_url) as client:  # nobody works: what is begun stays open
        client.begin("g", {"log": ["more"]}, Config.of({}), thread_id="t", spec=graph.spec)
        with pytest.raises(ThreadBusy):
            graph.invoke(Command(goto="c"), on("t"))


def test_what_commands_said_survives_the_loss_of_all_indexes(redis_url: str, client: redis.Redis) -> None:
    graph = beside(OURS).compile(checkpointer=RedisSaver(redis_url), name="g")
    inline = beside(OURS).compile(checkpointer=InMemorySaver(), name="g")
    steps = [
        IN,
        Do({"log": ["U"], "n": 1}),
        Do(None, ("c", ("w", "x"))),
        Answer("P"),
        Do({"log": ["V"]}),
        Do(goto=("c",)),
    ]
    for step in steps:
        wipe(client, "both")
        assert do(OURS, graph, on("t"), step) == do(OURS, inline, on("t"), step)
    assert history(graph, on("t")) == history(inline, on("t"))


def test_tasks_that_were_added_wait_through_the_loss_of_all_indexes(redis_url: str, client: redis.Redis) -> None:
    graph = beside(OURS).compile(name="g")
    with working(redis_url, graph), connect(redis_url) as fleet:
        fleet.submit("g", IN, thread_id="t").result(20)
    with connect(redis_url) as fleet:
        sends = [Send("w", f"{i:03}") for i in range(200)]
        run = fleet.resume("t", "P", update={"log": ["U"]}, goto=["c", *sends])
        wipe(client, "both")
        client.delete(Keys().graphs)  # whose manifests went, too: the worker publishes them anew
        with working(redis_url, graph):
            log = run.result(30)["log"]
    assert log == ["in", "U", "c", ["p", "P"], "r", *(f"{i:03}" for i in range(200)), "z"]


def test_an_update_opens_hundreds_that_asked_each_once(saver: Saver) -> None:
    def node(arg: dict[str, Any]) -> Any:
        return {"log": [interrupt(arg["i"])]}

    builder = StateGraph(State).add_node("w", node)
    builder.add_conditional_edges(START, lambda state: [Send("w", {"i": i}) for i in range(260)], ["w"])
    graph = builder.compile(checkpointer=saver, name="g")
    graph.invoke({"log": []}, on("t"))
    asked = graph.invoke(Command(update={"log": ["U"]}), on("t"))["__interrupt__"]
    assert [each.value for each in asked] == list(range(260))
    kinds = [x.kind for x in saver.log.read("t")]
    assert kinds.count("task_paused") == 520, "each asked again, once"
    for some in (asked[:250], asked[250:]):
        done = graph.invoke(Command(resume={each.id: each.value for each in some}), on("t"))
    assert done["log"] == ["U", *range(260)]


# --- random threads


# --- logs that others wrote


@pytest.mark.parametrize("facts", [1, 2])
def test_a_part_that_is_added_again_and_again_is_refused_before_its_tasks_are_made(facts: int) -> None:
    made = StateGraph(State)
    made.add_node("a", lambda state: {})
    made.add_node("w", lambda state: {"log": [interrupt("?")]})
    made.add_edge(START, "a")
    made.add_conditional_edges("a", lambda state: [Send("w", {"log": []}) for _ in range(128)], ["w"])
    saver = InMemorySaver()
    graph = made.compile(checkpointer=saver)
    graph.invoke({"log": []}, on("t"))
    head = saver.log.head("t")
    assert head is not None
    entries = list(saver.log.pages("t"))
    part = next(x.id for x in entries if x.kind == "part")
    for _ in range(facts):
        added = json.dumps([[part, 128]] * (1 if facts > 1 else 8000))
        saver.log.append("t", [e.fact("task_added", entries[0].text("run"), parts=added)], (head.n, head.digest))
    for read in (
        lambda: derive(saver.log, "t"),
        lambda: step_of(saver.log, "t", head.n),
        lambda: graph.get_state(on("t")),
    ):
        with pytest.raises(CorruptEntry, match=r"twice|second time"):
            read()
