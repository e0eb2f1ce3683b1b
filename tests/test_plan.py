"""Promises of plan.py, with LangGraph as the oracle: the same graph in both, equal states and next nodes."""

from __future__ import annotations

import asyncio
import contextlib
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.errors import InvalidUpdateError as TheirInvalidUpdateError
from langgraph.graph import StateGraph as TheirStateGraph
from langgraph.types import Command as TheirCommand
from langgraph.types import Send as TheirSend
from pydantic import BaseModel

from everstep_checkpoint.errors import InvalidUpdateError
from everstep_scheduler.graph import runtime
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.results import NodeResult, node_result
from everstep_scheduler.graph.runtime import END, START, Send
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.steps.outcome import raised
from everstep_scheduler.steps.plan import Done, adestinations, destinations, plan, returned

OURS = SimpleNamespace(StateGraph=StateGraph, Send=Send, Command=runtime.Command)
THEIRS = SimpleNamespace(StateGraph=TheirStateGraph, Send=TheirSend, Command=TheirCommand)
STEPS_MAX = 12

Step = tuple[dict[str, Any], list[str]]
Builder = Callable[[Any], Any]


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    n: int
    best: Annotated[int, lambda a, b: max(a, b)]


class Private(TypedDict):
    secret: str


class Model(BaseModel):
    n: int
    log: Annotated[list[str], operator.add] = []
    note: str | None = None
    label: str = "default"


NOTHING = NodeResult([], [], [])

# -- the two runs


def ours(spec: GraphSpec, data: Any) -> list[Step]:
    """Our run: what a driver does, in a loop. Each step's state and the nodes that come next."""
    channels = spec.initial()
    writes = spec.input_writes(data)
    names, sends = destinations(spec, START, channels, NodeResult(writes, [], []), {}, None)
    planned = plan(spec, channels, [Done("start", START, tuple(writes), tuple(names))])
    steps = [(spec.values(planned.channels), sorted([*planned.pulls, *(s.node for s in sends)]))]
    while (planned.pulls or sends) and len(steps) <= STEPS_MAX:
        tasks = [(node, spec.node_input(node, planned.channels)) for node in planned.pulls]
        tasks += [(send.node, send.arg) for send in sends]
        done, sends = [], []
        for number, (node, state) in enumerate(tasks):
            args, kwargs = spec.call_args(node, state, {}, None)
            own = node_result(spec, node, spec.nodes[node].fn(*args, **kwargs))
            names, more = destinations(spec, node, planned.channels, own, {}, None)
            sends += more
            done.append(Done(str(number), node, tuple(own.writes), tuple(names)))
        planned = plan(spec, planned.channels, done)
        steps.append((spec.values(planned.channels), sorted([*planned.pulls, *(s.node for s in sends)])))
    return steps


def theirs(builder: Any, data: Any) -> list[Step]:
    """LangGraph's history from its step 0 on, in the same form.

    With durability "sync": by default it may store a join's barrier of a later step (its issue 8748).
    """
    graph = builder.compile(InMemorySaver())
    config = {"configurable": {"thread_id": "t"}, "recursion_limit": STEPS_MAX}
    with contextlib.suppress(GraphRecursionError):
        graph.invoke(data, config, durability="sync")
    history = reversed(list(graph.get_state_history(config)))
    return [(dict(each.values), sorted(each.next)) for each in history if each.metadata["step"] >= 0]


def says(name: str, **more: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda state: {"log": [name], **more}


def with_nodes(lib: Any, *names: str) -> Any:
    graph = lib.StateGraph(State)
    for name in names:
        graph.add_node(name, says(name))
    return graph


# -- graphs


def chain(lib: Any) -> Any:
    graph = with_nodes(lib)
    return graph.add_sequence([("a", says("a")), ("b", says("b", n=7))]).add_edge(START, "a")


def fan_out_and_in(lib: Any) -> Any:
    """Three siblings in the order of their names, then `d` once."""
    graph = with_nodes(lib, "c", "a", "b", "d")
    for name in "cab":
        graph.add_edge(START, name).add_edge(name, "d")
    return graph


def uneven_branches(lib: Any) -> Any:
    """`d` runs twice: its edges fire in different supersteps."""
    graph = with_nodes(lib, "a", "b", "c", "d")
    graph.add_edge(START, "a").add_edge("a", "d").add_edge("a", "b").add_edge("b", "c")
    return graph.add_edge("c", "d")


def uneven_join(lib: Any) -> Any:
    graph = with_nodes(lib, "a", "b", "c", "d")
    return graph.add_edge(START, "a").add_edge(START, "b").add_edge("b", "c").add_edge(["a", "c"], "d")


def join_in_a_loop(lib: Any) -> Any:
    """The join fires in each round, so it is armed anew."""
    graph = with_nodes(lib, "a", "b", "c", "d")
    graph.add_edge(START, "a").add_edge(START, "b").add_edge("b", "c").add_edge(["a", "c"], "d")

    def again(state: State) -> list[str]:
        return ["a", "b"] if len(state["log"]) < 12 else [END]

    return graph.add_conditional_edges("d", again, ["a", "b", END])


def join_whose_start_never_runs(lib: Any) -> Any:
    graph = with_nodes(lib, "a", "b", "c")
    graph.add_conditional_edges(START, lambda state: "a", ["a", "b"])
    return graph.add_edge(["a", "b"], "c")


def start_of_a_join_in_the_step_of_its_target(lib: Any) -> Any:
    """`a` runs again while `c` does: the new round counts it."""
    graph = with_nodes(lib, "a", "b", "c")
    graph.add_edge(START, "a").add_edge(START, "b").add_edge(["a", "b"], "c")
    graph.add_conditional_edges("a", lambda s: "a" if len(s["log"]) < 9 else END, ["a", END])
    return graph.add_conditional_edges("c", lambda s: "b" if len(s["log"]) < 9 else END, ["b", END])


def router_sees_its_own_writes_not_its_siblings(lib: Any) -> Any:
    graph = lib.StateGraph(State)
    graph.add_node("a", lambda s: {"log": ["a"], "best": 5})
    graph.add_node("b", lambda s: {"log": ["b"]})
    graph.add_node("seen", says("seen"))
    graph.add_node("unseen", says("unseen"))
    graph.add_edge(START, "a").add_edge(START, "b")
    graph.add_conditional_edges("a", lambda s: ["seen"] if s["best"] == 5 and s["log"] == ["in", "a"] else [])
    return graph.add_conditional_edges("b", lambda s: "unseen" if "a" not in s["log"] else END)


def router_sees_returned_keys_beyond_its_schema(lib: Any) -> Any:
    def narrow(state: Private) -> dict[str, Any]:
        return {"n": 3, "log": ["narrow"]}

    graph = with_nodes(lib, "yes", "no")
    graph.add_node("open", lambda s: {"secret": "x"}).add_node("narrow", narrow)
    graph.add_edge(START, "open").add_edge("open", "narrow")
    raw = ["narrow"]  # the written value, without what was there before
    return graph.add_conditional_edges("narrow", lambda s: "yes" if (s["n"], s["log"]) == (3, raw) else "no")


def path_map_with_booleans_and_lists(lib: Any) -> Any:
    graph = with_nodes(lib, "a", "b", "c")
    graph.add_conditional_edges(START, lambda s: [True, False, True], {True: "b", False: "a"})
    return graph.add_conditional_edges("b", lambda s: "out", {"out": "c"})


def literal_hint(lib: Any) -> Any:
    def route(state: State) -> Literal["b", "__end__"]:
        return "b" if state.get("n") else "__end__"

    return with_nodes(lib, "a", "b").add_edge(START, "a").add_conditional_edges("a", route)


def map_reduce(lib: Any) -> Any:
    def work(arg: Any) -> dict[str, Any]:
        return {"log": [f"work {arg['item']}"], "best": arg["item"]}

    graph = with_nodes(lib, "z", "report")
    graph.add_node("work", work)
    graph.add_conditional_edges(START, lambda s: [lib.Send("work", {"item": i}) for i in (3, 1, 2)] + ["z"])
    return graph.add_edge(["work", "z"], "report")


def sends_of_two_tasks(lib: Any) -> Any:
    """Sends follow in task order, after the nodes that edges trigger."""
    graph = lib.StateGraph(State)
    for name in "ba":
        graph.add_node(name, says(name))
        graph.add_conditional_edges(name, lambda s, n=name: [lib.Send("w", n), lib.Send("w", n * 2), "m"])
        graph.add_edge(START, name)
    graph.add_node("w", lambda arg: {"log": [f"w {arg}"]})
    return graph.add_node("m", says("m"))


def conditional_entry(lib: Any) -> Any:
    graph = with_nodes(lib, "a", "b")
    return graph.set_conditional_entry_point(lambda s: "b" if s.get("n") else "a").set_finish_point("b")


def router_leads_nowhere(lib: Any) -> Any:
    return with_nodes(lib, "a").add_edge(START, "a").add_conditional_edges("a", lambda s: [])


def counting(lib: Any) -> Any:
    graph = lib.StateGraph(State)
    graph.add_node("inc", lambda s: {"n": s.get("n", 0) + 1}).add_node("check", lambda s: None)
    graph.add_edge(START, "inc").add_edge("inc", "check")
    return graph.add_conditional_edges("check", lambda s: END if s["n"] >= 3 else "inc", ["inc", END])


def commands(lib: Any) -> Any:
    """Update and goto in one, beside edges and a router; several Commands in one return; END is nowhere."""
    graph = with_nodes(lib, "b", "c", "d", "e")

    def both(state: State) -> Any:
        first = lib.Command(update={"log": ["both"], "n": 1}, goto=["c", lib.Send("d", {"log": []}), "b", "c"])
        return [first, {"log": ["more"]}, lib.Command(update=[("log", ["pairs"])], goto=END), lib.Command(goto="e")]

    graph.add_node("a", both)
    graph.add_node("f", lambda s: lib.Command(goto=lib.Send("e", {"log": ["f"]})))
    graph.add_edge(START, "a").add_edge("a", "f")
    return graph.add_conditional_edges("a", lambda s: [lib.Send("e", s), "b"] if s["n"] == 1 else END)


def deferred_after_uneven_branches(lib: Any) -> Any:
    """`d` waits for the longer branch, and runs once."""
    graph = with_nodes(lib, "a", "b", "c")
    graph.add_node("d", says("d"), defer=True)
    graph.add_edge(START, "a").add_edge("a", "d").add_edge("a", "b").add_edge("b", "c")
    return graph.add_edge("c", "d")


def deferred_nodes_run_together_and_again(lib: Any) -> Any:
    graph = with_nodes(lib, "a", "b", "e")
    graph.add_node("c", says("c"), defer=True).add_node("d", says("d"), defer=True)
    graph.add_edge(START, "a").add_edge(START, "c").add_edge("a", "b").add_edge("b", "d").add_edge("c", "e")
    return graph.add_conditional_edges("e", lambda s: ["a", "c"] if len(s["log"]) < 9 else END, ["a", "c", END])


def deferred_join(lib: Any) -> Any:
    """Complete early, its starts run again before it fires; then it is armed anew."""
    graph = with_nodes(lib, "a", "b", "c")
    graph.add_node("d", says("d"), defer=True)
    graph.add_edge(START, "a").add_edge(START, "b").add_edge(["a", "b"], "d").add_edge("b", "c")
    graph.add_conditional_edges("c", lambda s: "a" if len(s["log"]) < 7 else END, ["a", END])
    return graph.add_conditional_edges("d", lambda s: ["a", "b"] if len(s["log"]) < 12 else END, ["a", "b", END])


def deferred_join_that_lacks_a_start(lib: Any) -> Any:
    graph = with_nodes(lib, "a", "b", "c")
    graph.add_node("d", says("d"), defer=True)
    graph.add_conditional_edges(START, lambda s: "a", ["a", "b"])
    return graph.add_edge(["a", "b"], "d").add_edge("a", "c")


def sends_keep_no_deferred_node_waiting(lib: Any) -> Any:
    graph = with_nodes(lib, "a", "b", "w")
    graph.add_node("d", says("d"), defer=True)
    graph.add_edge(START, "a").add_edge("a", "d").add_edge("w", "b")
    return graph.add_conditional_edges("a", lambda s: [lib.Send("w", {}), lib.Send("d", {})], ["w", "d"])


TABLE: list[Builder] = [
    deferred_after_uneven_branches,
    deferred_nodes_run_together_and_again,
    deferred_join,
    deferred_join_that_lacks_a_start,
    sends_keep_no_deferred_node_waiting,
    chain,
    fan_out_and_in,
    uneven_branches,
    uneven_join,
    join_in_a_loop,
    join_whose_start_never_runs,
    start_of_a_join_in_the_step_of_its_target,
    router_sees_its_own_writes_not_its_siblings,
    router_sees_returned_keys_beyond_its_schema,
    path_map_with_booleans_and_lists,
    literal_hint,
    map_reduce,
    sends_of_two_tasks,
    conditional_entry,
    router_leads_nowhere,
    counting,
    commands,
]


@pytest.mark.parametrize("build", TABLE, ids=lambda build: build.__name__)
@pytest.mark.parametrize("data", [{"log": ["in"], "n": 1, "best": 2}, {"n": 0}, {}])
def test_states_and_next_nodes_are_langgraphs(build: Builder, data: dict[str, Any]) -> None:
    assert ours(build(OURS).spec(), data) == theirs(build(THEIRS), data)


def test_a_model_state_goes_as_in_langgraph() -> None:
    def build(lib: Any) -> Any:
        def first(state: Model) -> Model:
            return Model(n=state.n + 1, log=["first"])

        def second(state: Model) -> dict[str, Any]:
            return {"log": [f"{state.label} {state.note} {state.n}"]}

        return lib.StateGraph(Model).add_sequence([first, second]).add_edge(START, "first")

    assert ours(build(OURS).spec(), {"n": 3}) == theirs(build(THEIRS), {"n": 3})
    data = {"n": 3, "label": "own", "note": "there"}
    assert ours(build(OURS).spec(), data) == theirs(build(THEIRS), data)


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_a_send_to_the_end_is_refused(lib: Any) -> None:
    graph = with_nodes(lib, "a").add_edge(START, "a").add_conditional_edges("a", lambda s: lib.Send(END, 1))
    with pytest.raises((InvalidUpdateError, TheirInvalidUpdateError)) as caught:
        ours(graph.spec(), {}) if lib is OURS else theirs(graph, {})
    assert type(caught.value).__name__ == "InvalidUpdateError"


@pytest.mark.parametrize(
    ("said", "path_map", "told"),
    [
        ("nod", None, "Did you mean 'node'?"),
        (Send("nod", 1), None, "Did you mean 'node'?"),
        (START, None, "'__start__', which is no node"),
        (None, None, "returned None"),
        ({"node"}, None, "returned {'node'}"),
        ("other", ["node"], "'other', which its path_map does not hold"),
        (["node", []], {"node": "node"}, "which its path_map does not hold"),
    ],
)
def test_a_router_that_leads_to_no_node_is_named(said: Any, path_map: Any, told: str) -> None:
    def lost(state: State) -> Any:
        return said

    graph = with_nodes(OURS, "a", "node").add_edge(START, "a").add_edge("a", "node")
    with pytest.raises(InvalidUpdateError) as caught:
        ours(graph.add_conditional_edges("a", lost, path_map).spec(), {})
    assert told in str(caught.value)
    assert "The router 'lost' after 'a'" in str(caught.value)


def test_an_async_router_is_awaited_and_a_sync_one_beside_it_called() -> None:
    async def later(state: State) -> str:
        await asyncio.sleep(0)
        return "b"

    graph = with_nodes(OURS, "a", "b", "c").add_edge(START, "a")
    graph.add_conditional_edges("a", later, ["b"]).add_conditional_edges("a", lambda s: Send("c", 1), ["c"])
    spec = graph.spec()
    assert spec.needs_loop("a") and not spec.needs_loop("b") and not spec.needs_loop(START)
    found = asyncio.run(adestinations(spec, "a", {}, NOTHING, {}, None))
    assert found == (["b"], [Send("c", 1)])


def test_routers_get_config_and_runtime_by_name() -> None:
    seen: list[Any] = []

    def route(state: State, runtime: runtime.Runtime[str], *, config: dict[str, Any]) -> str:
        seen.append((runtime.context, config))
        return END

    spec = with_nodes(OURS, "a").add_edge(START, "a").add_conditional_edges("a", route, [END]).spec()
    assert destinations(spec, "a", {}, NOTHING, {"k": 1}, runtime.Runtime("ctx")) == ([], [])
    assert seen == [("ctx", {"k": 1})]


def test_what_a_router_raises_passes_through() -> None:
    spec = with_nodes(OURS, "a").add_edge(START, "a").add_conditional_edges("a", lambda s: s["no"]).spec()
    with pytest.raises(KeyError):
        destinations(spec, "a", {}, NOTHING, {}, None)


def test_a_router_can_not_change_what_is_written() -> None:
    def route(state: Any) -> str:
        state["log"].append("smuggled")
        return END

    graph = with_nodes(OURS, "a", "b").add_edge(START, "a").add_edge("a", "b")
    steps = ours(graph.add_conditional_edges("a", route, [END]).spec(), {"log": []})
    assert steps[-1][0]["log"] == ["a", "b"]


def test_a_join_is_a_hidden_channel_that_goes_when_its_node_has_run() -> None:
    spec = uneven_join(OURS).spec()
    [join] = spec.joins
    first = plan(spec, {}, [Done("p0", "a", (), ()), Done("p1", "b", (), ("c",))])
    assert first.pulls == ("c",)
    assert spec.codec.decode(first.channels[join.channel]) == ["a"]
    assert spec.values(first.channels) == {}
    second = plan(spec, first.channels, [Done("p0", "c", (), ())])
    assert second.pulls == ("d",) and spec.codec.decode(second.channels[join.channel]) == ["a", "c"]
    third = plan(spec, second.channels, [Done("p0", "d", (), ())])
    assert third.pulls == () and third.channels == {}


def test_an_update_does_not_take_away_what_a_complete_join_leads_to() -> None:
    spec = uneven_join(OURS).spec()
    [join] = spec.joins
    whole = {join.channel: spec.codec.encode(["a", "c"])}
    edited = plan(spec, whole, [Done("update", "a", (), ())], edits=True)
    assert edited.pulls == ("d",) and edited.channels == whole


def test_a_deferral_is_a_hidden_channel_that_outlives_the_mark_on_its_node() -> None:
    spec = deferred_after_uneven_branches(OURS).spec()
    first = plan(spec, {}, [Done("p0", "a", (), ("b", "d"))])
    assert first.pulls == ("b",) and first.channels == {"defer:d": b"\xc2"}
    assert spec.values(first.channels) == {}
    plain = with_nodes(OURS, "a", "b", "d").add_edge(START, "a").add_edge("a", "b").add_edge("b", "d").spec()
    for graph in (spec, plain):  # somebody took the mark away while a thread was under way
        then = plan(graph, first.channels, [Done("p0", "b", (), ())])
        assert (then.channels, then.pulls) == ({"defer:d": b"\xc3"}, ("d",))
        after = plan(graph, then.channels, [Done("p0", "d", (), ())])
        assert (after.channels, after.pulls) == ({}, ())
    assert spec.version != plain.version


def test_an_update_neither_takes_away_nor_hurries_what_is_deferred() -> None:
    spec = deferred_join(OURS).spec()
    [join] = spec.joins
    waits = plan(spec, {}, [Done("p0", "a", (), ()), Done("p1", "b", (), ("c",))])
    assert waits.pulls == ("c",) and waits.channels[f"defer:{join.channel}"] == b"\xc2"
    assert plan(spec, waits.channels, [Done("update", "a", (), ("b",))], edits=True).pulls == ("b",)
    released = plan(spec, waits.channels, [Done("p0", "c", (), ())])
    assert released.pulls == ("d",)
    assert plan(spec, released.channels, [Done("update", "c", (), ("a",))], edits=True).pulls == ("a", "d")
    assert plan(spec, released.channels, [Done("p0", "d", (), ("a",))]).channels == {}


def test_a_destination_of_an_older_graph_is_refused_by_name() -> None:
    with pytest.raises(InvalidUpdateError, match="'gone', which is no node"):
        plan(chain(OURS).spec(), {}, [Done("p0", "a", (), ("gone",))])


def test_outcomes_say_what_happened_in_plain_values() -> None:
    spec = with_nodes(OURS, "a").add_edge(START, "a").spec()
    done = returned([("n", b"\x01")], (["b", "b", "a"], [Send("b", 1)]))
    assert done.goto == ("b", "a") and done.sends == (Send("b", 1),) and done.writes == (("n", b"\x01"),)

    class Evil(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    for error, kind, text in [
        (ValueError("x" * 9_000), "ValueError", "x" * 4_000),
        (InvalidUpdateError("odd"), "everstep_checkpoint.errors.InvalidUpdateError", "odd"),
        (Evil(), f"{__name__}.{Evil.__qualname__}", "<exception str() failed>"),
    ]:
        found = raised(spec.nodes["a"], error, 1, 0.5)
        assert (found.error_type, found.text, found.retry_s) == (kind, text, None)
        assert kind.rpartition(".")[2] in found.traceback
