"""Questions and breakpoints, against LangGraph as the oracle: the same calls, the same results, states and histories.

Where LangGraph runs a node again although nobody answered it, we don't; what comes of it is the same.
"""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict

import langgraph.types
import pytest
import redis
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.graph import StateGraph as OracleGraph
from pydantic import AfterValidator, BaseModel

from everstep_checkpoint.errors import (
    EmptyInputError,
    GraphError,
    InvalidResume,
    OutsideNode,
    RunConflict,
    UnknownThread,
    UnknownType,
)
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START, Command, Send
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_workers.worker import Worker
from servers import wait_for
from test_recovery import wipe

OURS = SimpleNamespace(StateGraph=StateGraph, Command=Command, Send=Send, interrupt=interrupt)
THEIRS = SimpleNamespace(
    StateGraph=OracleGraph,
    Command=langgraph.types.Command,
    Send=langgraph.types.Send,
    interrupt=langgraph.types.interrupt,
)
GRAPHS = 40


class State(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    n: int


@dataclass(frozen=True)
class Answer:
    """`Command(resume=...)`: one value, or answers to the questions with these values."""

    value: Any = None
    to: dict[Any, Any] = field(default_factory=dict[Any, Any])


def says(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda state: {"log": [name]}


def asks(lib: Any, name: str, *questions: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda state: {"log": [[name, *(lib.interrupt(each) for each in questions)]]}


# --- graphs


def one(lib: Any, **more: Any) -> Any:
    graph = lib.StateGraph(State).add_node("a", asks(lib, "a", {"q": 1}, "q2")).add_node("b", says("b"))
    return graph.add_edge(START, "a").add_edge("a", "b")


def parallel(lib: Any) -> Any:
    graph = lib.StateGraph(State).add_node("z", says("z")).add_node("r", says("r"))
    for name in "pq":
        graph.add_node(name, asks(lib, name, f"?{name}"))
    for name in "pqr":
        graph.add_edge(START, name).add_edge(name, "z")
    return graph


def chain(lib: Any) -> Any:
    graph = lib.StateGraph(State)
    for name in "abc":
        graph.add_node(name, says(name))
    return graph.add_edge(START, "a").add_edge("a", "b").add_edge("b", "c")


def wide(lib: Any) -> Any:
    graph = lib.StateGraph(State).add_node("end", says("end"))
    graph.add_node("w", lambda state: {"log": [[state["n"], lib.interrupt(f"?{state['n']}")]]})
    graph.add_conditional_edges(START, lambda state: [lib.Send("w", {"n": i}) for i in range(3)], ["w"])
    return graph.add_edge("w", "end")


def in_a_router(lib: Any) -> Any:
    graph = lib.StateGraph(State).add_node("a", says("a")).add_node("b", says("b")).add_edge(START, "a")
    return graph.add_conditional_edges("a", lambda state: lib.interrupt("where?"), ["b", END])


def swallowed(lib: Any) -> Any:
    def node(state: State) -> Any:
        try:
            lib.interrupt("q")
        except Exception as error:  # noqa: BLE001 - what a careless user does
            return {"log": [type(error).__name__]}
        return {}

    return lib.StateGraph(State).add_node("a", node).add_edge(START, "a")


def commands(lib: Any) -> Any:
    def node(state: State) -> Any:
        return lib.Command(update={"log": ["a"]}, goto=lib.interrupt("where?"))

    graph = lib.StateGraph(State).add_node("a", node, destinations=("b", "c"))
    return graph.add_node("b", says("b")).add_node("c", says("c")).add_edge(START, "a")


IN = {"log": ["in"]}
Call = tuple[Any, dict[str, Any]]
STORIES: dict[str, tuple[Callable[[Any], Any], dict[str, Any], list[Any]]] = {
    "one after the other": (one, {}, [IN, Answer("A1"), Answer("A2")]),
    "asked again": (one, {}, [IN, None, Answer("A1"), Answer("A2"), None]),
    "a dict is an answer": (one, {}, [IN, Answer({"k": "v"}), Answer([])]),
    "a new input gives the question up": (one, {}, [IN, Answer("A1"), {"log": ["new"]}, Answer("B1"), Answer("B2")]),
    "answers on a thread that is done": (one, {}, [IN, Answer("A1"), Answer("A2"), Answer("A3")]),
    "parallel, by id": (parallel, {}, [IN, Answer(to={"?q": "Q"}), Answer("P")]),
    "parallel, both at once": (parallel, {}, [IN, Answer(to={"?q": "Q", "?p": "P"})]),
    "Sends that ask": (wide, {}, [IN, Answer(to={"?0": 0, "?2": 2}), Answer(1)]),
    "a Command goes where the answer says": (commands, {}, [IN, Answer("c")]),
    "before a node": (chain, {"interrupt_before": ["b"]}, [IN, None]),
    "after a node": (chain, {"interrupt_after": ["a"]}, [IN, None]),
    "after one, before the next": (chain, {"interrupt_after": ["a"], "interrupt_before": ["b"]}, [IN, None]),
    "before all": (chain, {"interrupt_before": "*"}, [IN, None, None, None, None]),
    "after all": (chain, {"interrupt_after": "*"}, [IN, None, None, None]),
    "per call": (chain, {}, [(IN, {"interrupt_after": "*"}), (None, {"interrupt_before": ["c"]}), (None, {})]),
    "per call it overrules": (chain, {"interrupt_before": ["b"]}, [(IN, {"interrupt_before": ["c"]}), None]),
    "before Sends": (wide, {"interrupt_before": ["w"]}, [IN, None, Answer(to={"?0": 0, "?1": 1, "?2": 2})]),
    "a new input at a breakpoint": (chain, {"interrupt_before": ["b"]}, [IN, {"log": ["more"]}, None]),
    "an early answer": (one, {"interrupt_before": ["a"]}, [IN, Answer("early"), Answer("late")]),
}


# --- seen in both


def shown(value: Any) -> Any:
    """Values as JSON has them: LangGraph gives what was just written with its tuples."""
    if isinstance(value, dict):
        return {key: shown(each) for key, each in value.items() if key != "__interrupt__"}
    return [shown(each) for each in value] if isinstance(value, list | tuple) else value


def waiting(found: Any) -> list[Any]:
    """What is asked. LangGraph's order is that of the threads, ours that of the tasks."""
    return sorted((each.value for each in found), key=repr)


def call(lib: Any, graph: Any, config: dict[str, Any], step: Any, **more: Any) -> Any:
    """One invoke, as what it gave, or the name of what it raised."""
    data, stops = step if isinstance(step, tuple) else (step, {})
    if isinstance(data, Answer):
        ids = {each.value: each.id for each in graph.get_state(config).interrupts} if data.to else {}
        data = lib.Command(resume={ids[q]: a for q, a in data.to.items()} if data.to else data.value)
    try:
        got = graph.invoke(data, config, **stops, **more)
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        return type(error).__name__
    return shown(got), waiting(got.get("__interrupt__", ()))


def state_of(graph: Any, config: dict[str, Any]) -> tuple[Any, ...]:
    found = graph.get_state(config)
    tasks = [(task.name, waiting(task.interrupts), shown(task.result)) for task in found.tasks]
    return shown(found.values), sorted(found.next), waiting(found.interrupts), sorted(tasks, key=repr)


def history(graph: Any, config: dict[str, Any]) -> list[Any]:
    return [
        (s.metadata["source"], s.metadata["step"], sorted(s.next), shown(s.values), waiting(s.interrupts))
        for s in graph.get_state_history(config)
    ]


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    if request.param == "memory":
        return InMemorySaver()
    return RedisSaver(request.getfixturevalue("redis_url"))


def on(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}}


@pytest.mark.parametrize("story", STORIES)
def test_questions_and_breakpoints_go_as_in_langgraph(story: str, saver: Saver) -> None:
    build, stops, steps = STORIES[story]
    ours = build(OURS).compile(checkpointer=saver, name="g", **stops)
    theirs = build(THEIRS).compile(checkpointer=OracleSaver(), **stops)
    config = on("t")
    for i, step in enumerate(steps):
        mine = call(OURS, ours, config, step)
        assert mine == call(THEIRS, theirs, config, step, durability="sync"), f"call {i}"
        assert state_of(ours, config) == state_of(theirs, config), f"state after call {i}"
        assert history(ours, config) == history(theirs, config), f"history after call {i}"
    assert verify(saver.log, "t").sound


# --- where LangGraph is wrong


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_an_old_answer_is_not_taken_for_a_new_question(lib: Any) -> None:
    graph = one(lib).compile(checkpointer=InMemorySaver() if lib is OURS else OracleSaver())
    for step in (IN, Answer("A1")):
        call(lib, graph, on("t"), step)
    asked_again: Any = ({"log": ["in"]}, ["q2"])
    answered_by_itself: Any = ({"log": ["in", ["a", "A1", "A1"], "b"]}, [])
    assert call(lib, graph, on("t"), None) == (asked_again if lib is OURS else answered_by_itself)


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_what_a_node_wrote_is_not_shown_while_its_router_asks(lib: Any) -> None:
    graph = in_a_router(lib).compile(checkpointer=InMemorySaver() if lib is OURS else OracleSaver())
    values = ["in"] if lib is OURS else ["in", "a"]
    assert call(lib, graph, on("t"), IN) == ({"log": values}, ["where?"])
    assert shown(graph.get_state(on("t")).values) == {"log": ["in"]}
    assert call(lib, graph, on("t"), Answer("b")) == ({"log": ["in", "a", "b"]}, [])


def test_a_question_beside_another_is_not_run_again_until_it_is_answered() -> None:
    ran: list[str] = []

    def node(name: str) -> Callable[[State], Any]:
        def ask(state: State) -> Any:
            ran.append(name)
            return {"log": [interrupt(name)]}

        return ask

    graph = (
        StateGraph(State).add_node("p", node("p")).add_node("q", node("q")).add_edge(START, "p").add_edge(START, "q")
    )
    compiled = graph.compile(checkpointer=InMemorySaver())
    call(OURS, compiled, on("t"), IN)
    call(OURS, compiled, on("t"), None)
    call(OURS, compiled, on("t"), Answer(to={"q": 1}))
    assert sorted(ran) == ["p", "q", "q"]


def test_a_failure_beside_a_question_keeps_the_question_and_its_answer(saver: Saver) -> None:
    mended: list[bool] = []

    def boom(state: State) -> Any:
        if not mended:
            raise ValueError("boom")
        return {"log": ["mended"]}

    builder = StateGraph(State).add_node("boom", boom).add_node("ask", asks(OURS, "ask", "q"))
    graph = builder.add_edge(START, "boom").add_edge(START, "ask").compile(checkpointer=saver, name="g")
    for step in (IN, None, Answer("v")):
        assert call(OURS, graph, on("t"), step) == "ValueError"
        assert waiting(graph.get_state(on("t")).interrupts) == ([] if step == Answer("v") else ["q"])
    mended.append(True)
    assert call(OURS, graph, on("t"), None) == ({"log": ["in", ["ask", "v"], "mended"]}, [])


# --- answers that make no sense


class Age(BaseModel):
    years: int


def with_schema(schema: Any) -> Any:
    def node(state: State) -> Any:
        answer = interrupt("how old?", response_schema=schema)
        return {"log": [repr(answer)]}

    return StateGraph(State).add_node("a", node).add_edge(START, "a")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("one for both", "2 questions wait, and the answer does not say which it is for"),
        ({"0" * 32: 1}, "no question 0{32} waits"),
        ({}, "an empty dict answers nothing"),
    ],
)
def test_an_answer_that_no_question_takes_is_refused_and_nothing_is_written(
    saver: Saver, answer: Any, says: str
) -> None:
    graph = parallel(OURS).compile(checkpointer=saver, name="g")
    graph.invoke(IN, on("t"))
    before = saver.log.head("t")
    with pytest.raises(InvalidResume, match=says) as error:
        graph.invoke(Command(resume=answer), on("t"))
    ids = {each.id for each in graph.get_state(on("t")).interrupts}
    assert all(each in str(error.value) for each in ids), "it says which questions wait"
    assert saver.log.head("t") == before


@pytest.mark.parametrize("schema", [Age, Age.model_json_schema()], ids=["a type", "a JSON schema"])
def test_an_answer_is_checked_before_anything_is_written(saver: Saver, schema: Any) -> None:
    graph = with_schema(schema).compile(checkpointer=saver, name="g")
    (asked,) = graph.invoke(IN, on("t"))["__interrupt__"]
    assert asked.response_schema == Age.model_json_schema()
    before = saver.log.head("t")
    with pytest.raises(InvalidResume, match="'x' is not of type 'integer'"):
        graph.invoke(Command(resume={"years": "x"}), on("t"))
    assert saver.log.head("t") == before
    answer = repr(Age(years=3)) if schema is Age else "{'years': 3}"
    assert graph.invoke(Command(resume={"years": 3}), on("t")) == {"log": ["in", answer]}


def test_an_answer_that_only_the_type_refuses_is_asked_for_again(saver: Saver) -> None:
    graph = with_schema(Annotated[int, AfterValidator(_even)]).compile(checkpointer=saver, name="g")
    graph.invoke(IN, on("t"))
    (again,) = graph.invoke(Command(resume=3), on("t"))["__interrupt__"]
    assert again.value == "how old?"
    assert "must be even" in saver.log.read("t", reverse=True, count=2)[-1].text("error")
    assert graph.invoke(Command(resume=4), on("t")) == {"log": ["in", "4"]}


def _even(n: int) -> int:
    if n % 2:
        raise ValueError("must be even")
    return n


def test_interrupt_outside_of_a_node_says_so() -> None:
    with pytest.raises(OutsideNode, match="where no node runs"):
        interrupt("anybody there?")


def test_a_question_that_can_t_be_stored_fails_its_node(saver: Saver) -> None:
    graph = one(OURS).compile(checkpointer=saver, name="g")
    bad = StateGraph(State).add_node("a", lambda state: interrupt(object())).add_edge(START, "a")
    with pytest.raises(UnknownType, match="the question of interrupt"):
        bad.compile(checkpointer=saver, name="bad").invoke(IN, on("bad"))
    graph.invoke(IN, on("t"))
    with pytest.raises(UnknownType, match="the answer"):
        graph.invoke(Command(resume=object()), on("t"))
    assert graph.invoke(Command(resume="A1"), on("t"))["__interrupt__"]


def test_a_breakpoint_at_no_node_is_an_error() -> None:
    with pytest.raises(GraphError, match="interrupt_before names 'd', which is no node"):
        chain(OURS).compile(interrupt_before=["d"])


def test_async_nodes_ask_as_sync_ones_do(saver: Saver) -> None:
    async def node(state: State) -> Any:
        first = interrupt("first")
        await asyncio.sleep(0)
        return {"log": [first, interrupt("second")]}

    graph = StateGraph(State).add_node("a", node).add_edge(START, "a").compile(checkpointer=saver, name="g")

    async def main() -> Any:
        await graph.ainvoke(IN, on("t"))
        await graph.ainvoke(Command(resume=1), on("t"))
        return await graph.ainvoke(Command(resume=2), on("t"))

    assert asyncio.run(main()) == {"log": ["in", 1, 2]}


def test_questions_are_streamed_as_in_langgraph(saver: Saver) -> None:
    def chunks(lib: Any, graph: Any, step: Any, **more: Any) -> list[Any]:
        data = lib.Command(resume=step.value) if isinstance(step, Answer) else step
        return [
            (mode, {**shown(chunk), "asked": waiting(chunk.get("__interrupt__", ()))})
            for mode, chunk in graph.stream(data, on("t"), stream_mode=["updates", "values"], **more)
        ]

    ours = one(OURS).compile(checkpointer=saver, name="g")
    theirs = one(THEIRS).compile(checkpointer=OracleSaver())
    for step in (IN, Answer("A1"), Answer("A2")):
        assert chunks(OURS, ours, step) == chunks(THEIRS, theirs, step, durability="sync")


# --- on workers


@contextmanager
def working(url: str, *graphs: Any, **told: Any) -> Iterator[Worker]:
    worker = Worker(url, graphs, grace_s=2.0, **told)
    thread = threading.Thread(target=worker.run, name="worker")
    thread.start()
    try:
        with connect(url) as client:
            wait_for(lambda: len(client.graphs()) == len(graphs), 10, "the graphs to be published")
        yield worker
    finally:
        worker.drain()
        thread.join(20)


def go_the_same(url: str, stories: Any, tell: Callable[..., Any], state: Callable[[Any, Any], Any]) -> None:
    """Each story, told on workers and inline: the same results, states and histories; at the end no slot is held."""
    graphs: dict[str, Any] = {}
    for story, (build, stops, _) in stories.items():
        graphs[story] = build(OURS).compile(name=f"g{len(graphs)}", **stops)
    memory = InMemorySaver()
    with working(url, *graphs.values()) as worker, connect(url) as client:
        for story, (build, stops, steps) in stories.items():
            remote, config = client.graph(graphs[story].name, graphs[story]), on(story)
            inline = build(OURS).compile(checkpointer=memory, name=graphs[story].name, **stops)
            for i, step in enumerate(steps):
                mine, theirs = tell(OURS, remote, config, step, timeout=20), tell(OURS, inline, config, step)
                assert mine == (theirs if isinstance(theirs, tuple) else "RunFailed"), f"{story}: call {i}"
                assert state(remote, config) == state(inline, config), f"{story}: state after call {i}"
                assert history(remote, config) == history(inline, config), f"{story}: history after call {i}"
            assert verify(client.log_store, story).sound
        assert not worker.work.held, "what waits holds no slot"


def test_questions_and_breakpoints_go_the_same_on_workers(redis_url: str) -> None:
    go_the_same(redis_url, STORIES, call, state_of)


def test_a_client_without_the_code_answers(redis_url: str) -> None:
    graph = parallel(OURS).compile(name="g")
    with working(redis_url, graph), connect(redis_url) as client:
        found = client.submit("g", IN, thread_id="t").result(20)
        assert waiting(found["__interrupt__"]) == ["?p", "?q"]
        ids = {each.value: each.id for each in client.state("t").interrupts}
        with pytest.raises(InvalidResume, match="2 questions wait"):
            client.resume("t", "for whom?")
        run = client.resume("t", {ids["?p"]: 1, ids["?q"]: 2}, run_id="answers")
        assert run.result(20) == {"log": ["in", ["p", 1], ["q", 2], "r", "z"]}
        assert client.resume("t", {ids["?p"]: 1, ids["?q"]: 2}, run_id="answers").result(20)["log"][-1] == "z"
        with pytest.raises(RunConflict):
            client.resume("t", {ids["?p"]: 9, ids["?q"]: 2}, run_id="answers")
        with pytest.raises(EmptyInputError, match="nothing to continue"):
            client.resume("t", 3)
        with pytest.raises(UnknownThread):
            client.resume("nobody", 3)


def test_questions_and_answers_survive_the_loss_of_all_indexes(redis_url: str, client: redis.Redis) -> None:
    graph = parallel(OURS).compile(checkpointer=RedisSaver(redis_url), name="g")
    graph.invoke(IN, on("t"))
    for step, left in ((Answer(to={"?q": "Q"}), ["?p"]), (Answer("P"), [])):
        wipe(client, "both")
        call(OURS, graph, on("t"), step)
        assert waiting(graph.get_state(on("t")).interrupts) == left
    assert graph.get_state(on("t")).values["log"] == ["in", ["p", "P"], ["q", "Q"], "r", "z"]


# --- random graphs
