"""Keys whose values are never stored, against LangGraph as the oracle: there in the call that wrote them, gone behind
it, and on workers gone with each step."""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict

import langgraph.channels
import langgraph.types
import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.graph import StateGraph as OracleGraph

import everstep
from everstep_checkpoint.errors import EverstepError, InvalidInput, InvalidUpdateError
from everstep_scheduler.client.client import connect
from everstep_scheduler.client.manifest import manifest_of
from everstep_scheduler.graph import untracked
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.kinds import UntrackedValue
from everstep_scheduler.graph.options import CachePolicy
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import START, Command, Send
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.steps.caches import InMemoryCache
from hand import working

CONFIG: dict[str, Any] = {"configurable": {"thread_id": "t"}}
OURS = SimpleNamespace(
    StateGraph=StateGraph, Send=Send, Command=Command, interrupt=interrupt, Untracked=UntrackedValue,
    RetryPolicy=RetryPolicy,
)  # fmt: skip
THEIRS = SimpleNamespace(
    StateGraph=OracleGraph, Send=langgraph.types.Send, Command=langgraph.types.Command,
    interrupt=langgraph.types.interrupt, Untracked=langgraph.channels.UntrackedValue,
    RetryPolicy=langgraph.types.RetryPolicy,
)  # fmt: skip


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


def schema(api: Any) -> Any:
    make: Any = TypedDict
    keys = {
        "log": Annotated[list[Any], operator.add],
        "held": Annotated[Any, api.Untracked],
        "loose": Annotated[str, api.Untracked(str, guard=False)],
    }
    return make("State", keys, total=False)


def says(name: str, **update: Any) -> Callable[[Any], Any]:
    """A node that logs what it sees."""
    return lambda state: {"log": [f"{name} {state.get('held')} {state.get('loose')}"], **update}


def chain(api: Any, *updates: dict[str, Any]) -> Any:
    built = api.StateGraph(schema(api))
    for i, update in enumerate(updates):
        built.add_node(f"n{i}", says(f"n{i}", **update))
        built.add_edge(f"n{i - 1}" if i else START, f"n{i}")
    return built


def wide(api: Any, *updates: dict[str, Any]) -> Any:
    built = api.StateGraph(schema(api))
    for i, update in enumerate(updates):
        built.add_node(f"n{i}", says(f"n{i}", **update))
        built.add_edge(START, f"n{i}")
    built.add_node("end", says("end"))
    built.add_edge([f"n{i}" for i in range(len(updates))], "end")
    return built


def asks(api: Any, *, beside: bool) -> Any:
    """`a` writes, `b` asks, behind it or beside it; `c` sees."""
    built = api.StateGraph(schema(api))
    built.add_node("a", says("a", held="H"))
    built.add_node("b", lambda state: {"log": [f"b {state.get('held')} {api.interrupt('which?')}"]})
    built.add_node("c", says("c"))
    built.add_edge(START, "a")
    built.add_edge(START if beside else "a", "b")
    built.add_edge(["a", "b"] if beside else "b", "c")
    return built


def sends(api: Any) -> Any:
    """A router that hands on what its node wrote."""
    built = api.StateGraph(schema(api))
    built.add_node("a", says("a", held="H"))
    built.add_node("w", lambda state: {"log": [f"w {sorted(state.items())}"]})
    built.add_edge(START, "a")
    built.add_conditional_edges("a", lambda state: [api.Send("w", {"held": state.get("held"), "z": 1})], ["w"])
    return built


def routed(api: Any) -> Any:
    """A router that looks at what its node wrote."""
    built = api.StateGraph(schema(api))
    built.add_node("a", says("a", held="yes"))
    built.add_node("yes", says("yes"))
    built.add_node("no", says("no"))
    built.add_edge(START, "a")
    built.add_conditional_edges("a", lambda state: state.get("held", "no"), ["yes", "no"])
    return built


def retried(api: Any) -> Any:
    """A node whose second attempt succeeds."""
    tries: list[Any] = []

    def fails_once(state: Any) -> Any:
        tries.append(state.get("held"))
        if len(tries) == 1:
            raise ConnectionError
        return {"log": [list(tries)]}

    built = api.StateGraph(schema(api))
    built.add_node("a", says("a", held="H"))
    built.add_node("b", fails_once, retry_policy=api.RetryPolicy(initial_interval=0.001, jitter=False))
    built.add_edge(START, "a")
    built.add_edge("a", "b")
    return built


def nested(api: Any) -> Any:
    """A graph in a graph is handed it, and what it writes stays its own."""
    inner = chain(api, {}, {"held": "inner"}, {}).compile()
    built = api.StateGraph(schema(api))
    built.add_node("a", says("a", held="H"))
    built.add_node("child", inner)
    built.add_node("z", says("z"))
    built.add_edge(START, "a")
    built.add_edge("a", "child")
    built.add_edge("child", "z")
    return built


Inputs = Callable[[Any], list[Any]]
STORIES: dict[str, tuple[Callable[[Any], Any], Inputs, dict[str, Any]]] = {
    "written by a node": (lambda api: chain(api, {"held": "H"}, {}, {}), lambda _: [{}, {"log": ["again"]}], {}),
    "written by an input": (lambda api: chain(api, {}, {}), lambda _: [{"held": "in"}, {"log": ["again"]}], {}),
    "written again": (lambda api: chain(api, {"held": "H"}, {"held": "I"}, {}), lambda _: [{}], {}),
    "of several the last": (lambda api: wide(api, {"loose": "1"}, {"loose": "2"}), lambda _: [{}], {}),
    "two that exclude each other": (lambda api: wide(api, {"held": "1"}, {"held": "2"}), lambda _: [{}], {}),
    "a question behind": (lambda api: asks(api, beside=False), lambda api: [{}, api.Command(resume="this")], {}),
    "a question beside": (lambda api: asks(api, beside=True), lambda api: [{}, api.Command(resume="this")], {}),
    "a breakpoint": (lambda api: chain(api, {"held": "H"}, {}), lambda _: [{}, None], {"interrupt_before": ["n1"]}),
    "a Send": (sends, lambda _: [{}], {}),
    "a Send behind a breakpoint": (sends, lambda _: [{}, None], {"interrupt_before": ["w"]}),
    "a router": (routed, lambda _: [{}], {}),
    "another attempt": (retried, lambda _: [{}], {}),
    "a graph in the graph": (nested, lambda _: [{}], {}),
    "a Command": (
        lambda api: chain(api, {}, {}),
        lambda api: [{}, api.Command(update={"held": "C"}, goto=["n1"])], {}),
}  # fmt: skip


def told(api: Any, build: Callable[[Any], Any], saver: Any, inputs: Inputs, how: dict[str, Any], **more: Any) -> Any:
    """All that a caller of `stream` and `invoke` hears, and the history behind."""
    graph = build(api).compile(checkpointer=saver, **how)
    chunks: list[Any] = []
    for data in inputs(api):
        try:
            for mode, chunk in graph.stream(data, CONFIG, stream_mode=["values", "updates", "tasks"], **more):
                chunks.append((mode, _shown(chunk)))
        except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
            chunks.append(("error", type(error).__name__))
    history = [(x.metadata["source"], x.metadata["step"], x.next, x.values) for x in graph.get_state_history(CONFIG)]
    return sorted(chunks, key=repr), [(mode, chunk) for mode, chunk in chunks if mode == "values"], history


def _shown(chunk: Any) -> Any:
    chunk = {key: value for key, value in chunk.items() if key not in ("id", "interrupts", "metadata")}
    return {key: "asked" if key == "__interrupt__" else value for key, value in chunk.items()}


@pytest.mark.parametrize("name", STORIES)
def test_untracked_values_go_as_in_langgraph(saver: Saver, name: str) -> None:
    build, inputs, how = STORIES[name]
    ours = told(OURS, build, saver, inputs, how)
    assert ours == told(THEIRS, build, OracleSaver(), inputs, how, durability="sync")


def test_an_output_has_it_in_the_call_that_wrote_it(saver: Saver) -> None:
    for more in ({}, {"interrupt_before": ["n1"]}):
        found = [
            chain(api, {"held": "H"}, {}).compile(checkpointer=kept, **more).invoke({}, CONFIG | thread(repr(more)))
            for api, kept in ((OURS, saver), (THEIRS, OracleSaver()))
        ]
        assert found[0]["held"] == "H"
        assert found[0] == found[1]


def thread(name: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": name}}


def test_async_callers_have_it_too(saver: Saver) -> None:
    graph = chain(OURS, {"held": "H"}, {}).compile(checkpointer=saver)
    assert asyncio.run(graph.ainvoke({}, CONFIG)) == {"log": ["n0 None None", "n1 H None"], "held": "H"}


def test_it_may_be_what_nothing_could_store(saver: Saver) -> None:
    lock = threading.Lock()
    seen: list[Any] = []
    built = StateGraph(schema(OURS)).add_node("a", lambda state: {"held": lock})
    built.add_node("b", lambda state: seen.append(state["held"])).add_edge(START, "a").add_edge("a", "b")
    assert built.compile(checkpointer=saver).invoke({}, CONFIG)["held"] is lock
    assert seen == [lock]


def test_no_log_has_it_and_nobody_holds_it_behind_the_call(saver: Saver) -> None:
    built = StateGraph(schema(OURS)).add_node("a", lambda state: {"held": "a secret written"})
    built.add_node("w", lambda state: {"log": [len(state.get("held", ""))]}).add_edge(START, "a")
    built.add_conditional_edges("a", lambda state: [Send("w", {"held": state["held"]})], ["w"])
    graph = built.compile(checkpointer=saver)
    graph.invoke({"held": "a secret in the input"}, CONFIG)
    graph.update_state(CONFIG, {"held": "a secret in an update"}, as_node="a")
    assert graph.get_state(CONFIG).next == ("w",)
    graph.invoke(Command(update={"held": "a secret in a Command"}, goto=[Send("w", {"held": "a secret sent"})]), CONFIG)
    stored = b"".join(value for x in saver.log.read("t") for value in x.raw.values())
    assert stored.count(b"held") > 4
    assert b"a secret" not in stored
    assert "held" not in graph.get_state(CONFIG).values
    assert untracked._VALUES == {}


def test_get_state_never_has_it(saver: Saver) -> None:
    graph = chain(OURS, {"held": "H"}, {}).compile(checkpointer=saver)
    for _ in graph.stream({}, CONFIG):
        assert "held" not in graph.get_state(CONFIG).values


def test_an_outcome_with_it_is_not_kept_in_a_cache() -> None:
    runs: list[Any] = []

    def writes(state: Any) -> Any:
        runs.append(1)
        return {"held": "H"}

    built = StateGraph(schema(OURS)).add_node("a", writes, cache_policy=CachePolicy())
    built.add_node("b", says("b"), cache_policy=CachePolicy()).add_edge(START, "a").add_edge("a", "b")
    graph = built.compile(checkpointer=InMemorySaver(), cache=InMemoryCache())
    for name in ("one", "two"):
        chunks = list(graph.stream({}, thread(name)))
    assert runs == [1, 1]
    assert chunks == [{"a": {"held": "H"}}, {"b": {"log": ["b H None"]}, "__metadata__": {"cached": True}}]


def test_what_excludes_each_other_says_how_to_combine_it() -> None:
    with pytest.raises(InvalidUpdateError, match=r"'held': UntrackedValue\(guard=True\) can take only one value"):
        wide(OURS, {"held": "1"}, {"held": "2"}).compile(checkpointer=InMemorySaver()).invoke({}, CONFIG)


def test_the_name_is_public() -> None:
    assert everstep.UntrackedValue is UntrackedValue


# on workers


def test_on_workers_a_step_does_not_find_it_and_its_own_router_does(redis_url: str) -> None:
    with working(redis_url, ("routed", routed(OURS)), ("sends", sends(OURS))), connect(redis_url) as client:
        assert client.graph("routed").invoke({}, thread("r")) == {"log": ["a None None", "yes None None"]}
        assert client.graph("sends").invoke({}, thread("s")) == {"log": ["a None None", "w [('z', 1)]"]}
    assert untracked._VALUES == {}


def test_a_producer_can_not_give_it_to_workers(redis_url: str) -> None:
    manifest = manifest_of(chain(OURS, {}).spec("chain"))
    assert "held" not in {**manifest.channels, **manifest.input_schema["properties"]}
    with working(redis_url, ("chain", chain(OURS, {}))), connect(redis_url) as client:
        with pytest.raises(InvalidInput, match="held"):
            client.submit("chain", {"held": "H"})
        with pytest.raises(EverstepError, match="held"):
            client.graph("chain").update_state(thread("u"), {"held": "H"}, as_node="n0")
