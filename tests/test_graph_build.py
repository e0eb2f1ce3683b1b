"""Promises of the builder: what it accepts, what it refuses and with which words, and the fingerprint."""

from __future__ import annotations

import asyncio
import functools
import operator
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Annotated, Any, TypedDict

import pytest
from pydantic import BaseModel

from everstep_checkpoint.errors import GraphError, UnknownNode
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.options import TimeoutPolicy
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Runtime, Send


class State(TypedDict):
    count: int
    log: Annotated[list[str], operator.add]


class Narrow(TypedDict):
    count: int
    private: str


def inc(state: State) -> dict[str, Any]:
    return {"count": state["count"] + 1}


async def later(state: State) -> None:
    await asyncio.sleep(0)


class Callable_:
    def __call__(self, state: Narrow, config: Any) -> None: ...


class AsyncCallable:
    async def __call__(self, state: State) -> None: ...


def graph() -> StateGraph:
    return StateGraph(State).add_node(inc).add_edge(START, "inc")


# -- what is accepted


def test_nodes_are_named_after_their_functions() -> None:
    built = StateGraph(State).add_node(inc).add_node("other", inc).add_node(Callable_()).add_node(later)
    assert list(built.set_conditional_entry_point(lambda s: END).spec().nodes) == [
        "inc",
        "other",
        "Callable_",
        "later",
    ]


@pytest.mark.parametrize(
    ("fn", "is_async"),
    [
        (inc, False),
        (later, True),
        (AsyncCallable(), True),
        (Callable_(), False),
        (functools.partial(later), True),
        (lambda s: None, False),
    ],
)
def test_async_nodes_are_recognised(fn: Any, is_async: bool) -> None:
    spec = StateGraph(State).add_node("n", fn).add_edge(START, "n").spec()
    assert spec.nodes["n"].is_async is is_async and spec.needs_loop("n") is is_async


def state_only(state: State) -> None: ...
def with_config(state: State, config: dict[str, Any]) -> None: ...
def with_runtime(state: State, *, runtime: Runtime[None]) -> None: ...
def with_both(state: State, config: Any, runtime: Any) -> None: ...
def with_default(state: State, runtime: Any, extra: int = 3, *rest: Any, **more: Any) -> None: ...
def named_otherwise(config: State, runtime: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("fn", "form"),
    [
        (state_only, ()),
        (with_config, ("config",)),
        (with_runtime, ("runtime",)),
        (with_both, ("config", "runtime")),
        (with_default, ("runtime",)),
        (named_otherwise, ("runtime",)),
        (Callable_(), ("config",)),
        (functools.partial(with_both, runtime=1), ("config", "runtime")),
        (operator.itemgetter("count"), ()),
    ],
)
def test_a_node_is_called_with_what_its_parameters_name(fn: Any, form: tuple[str, ...]) -> None:
    spec = StateGraph(State).add_node("n", fn).add_edge(START, "n").spec()
    args, kwargs = spec.call_args("n", {"count": 1}, "CONFIG", "RUNTIME")
    assert args == ({"count": 1},)
    assert kwargs == {name: name.upper() for name in form}


def test_policies_timeouts_queues_and_metadata_are_kept() -> None:
    policy = RetryPolicy(max_attempts=5)
    built = StateGraph(State).add_edge(START, "a").add_edge(START, "b").add_edge(START, "c")
    built.add_node("a", inc, retry_policy=policy, timeout=timedelta(minutes=1), queue="gpu", metadata={"k": 1})
    built.add_node("b", inc, retry_policy=[policy, RetryPolicy()], timeout=3)
    spec = built.add_node("c", inc, queue="cpu").spec("flow")
    a, b = spec.nodes["a"], spec.nodes["b"]
    assert (a.retry, a.timeout_s, a.metadata) == ((policy,), 60.0, {"k": 1})
    assert (b.retry, b.timeout_s) == ((policy, RetryPolicy()), 3.0)
    assert [spec.queue_of(name) for name in (START, "a", "b")] == ["flow", "gpu", "flow"]
    assert spec.queues == ("flow", "cpu", "gpu")
    assert spec.named("mine").queues == ("mine", "cpu", "gpu")


def test_a_sequence_is_a_chain() -> None:
    spec = StateGraph(State).add_sequence([inc, ("second", inc), later]).add_edge(START, "inc").spec()
    assert spec.edges == ((START, "inc"), ("inc", "second"), ("second", "later"))


def test_a_join_is_the_same_whatever_the_order_of_its_starts() -> None:
    built = graph().add_node("b", inc).add_node("c", inc).add_edge("inc", "b")
    spec = built.add_edge(["inc", "b"], "c").add_edge(["b", "inc"], "c").spec()
    assert [join.channel for join in spec.joins] == ["join:b+inc:c"]


def test_a_node_may_see_a_schema_of_its_own_whose_keys_become_channels() -> None:
    spec = graph().add_node("n", Callable_()).add_edge("inc", "n").spec()
    assert spec.nodes["n"].input_schema.cls is Narrow
    assert list(spec.channels) == ["count", "log", "private"]
    explicit = StateGraph(State).add_node("n", inc, input_schema=Narrow).add_edge(START, "n").spec()
    assert explicit.nodes["n"].input_schema.cls is Narrow


def test_a_router_without_path_map_reaches_every_node() -> None:
    built = StateGraph(State).add_node("a", inc).add_node("b", inc)
    assert built.set_conditional_entry_point(lambda s: [Send("a", 1), "b"]).spec().branches[0].ends is None


def test_a_node_without_a_way_out_just_ends() -> None:
    assert graph().spec().edges == ((START, "inc"),)


# -- what is refused


class OtherReducer(TypedDict):
    log: Annotated[list[str], operator.concat]


class LateReducer(TypedDict):
    count: Annotated[int, operator.add]


class Reserved(BaseModel):
    pass


@dataclass
class Bad:
    x: NoSuchType  # type: ignore[name-defined]  # noqa: F821


def first_two(state: State, second: int) -> None: ...
def wants_writer(state: State, writer: Any) -> None: ...
def no_state() -> None: ...
def only_keywords(*, state: State) -> None: ...


NO_FUNCTION: Any = 3
NO_POLICY: Any = "no"

REFUSED: list[tuple[Any, str]] = [
    (lambda: graph().add_node("a|b", inc), "'a|b' can't be a node's name"),
    (lambda: graph().add_node("a:b", inc), "without '|' and ':'"),
    (lambda: graph().add_node("", inc), "'' can't be a node's name"),
    (lambda: graph().add_node("a\n", inc), "can't be a node's name"),
    (lambda: graph().add_node(START, inc), "'__start__' is reserved"),
    (lambda: graph().add_node(END, inc), "'__end__' is reserved"),
    (lambda: graph().add_node(inc), "a node 'inc' already (node 'inc')"),
    (lambda: graph().add_sequence([inc]), "a node 'inc' already"),
    (lambda: graph().add_sequence([]), "needs at least one node"),
    (lambda: graph().add_node("x"), "'x' has no function"),
    (lambda: graph().add_node("x", NO_FUNCTION), "'x' has no function"),
    (lambda: graph().add_node(first_two), "a parameter 'second' that nobody gives it"),
    (lambda: graph().add_node(wants_writer), "'wants_writer' takes a parameter 'writer'"),
    (lambda: graph().add_node(no_state), "takes no state"),
    (lambda: graph().add_node(only_keywords), "takes no state"),
    (lambda: graph().add_node("x", inc, timeout=0), "timeout of 0 can't be kept (node 'x')"),
    (lambda: graph().add_node("x", inc, timeout=float("nan")), "can't be kept"),
    (lambda: graph().add_node("x", inc, timeout=1e16), "timeout of 1e+16 can't be kept"),
    (lambda: graph().add_node("x", inc, timeout=TimeoutPolicy(idle_timeout=-1)), "timeout of -1 can't be kept"),
    (lambda: graph().add_node("x", inc, timeout=TimeoutPolicy(1, refresh_on="never")), "refresh_on='never' is unknown"),  # type: ignore[arg-type]
    (lambda: graph().add_node("x", inc, queue=""), "'' can't be a queue's name"),
    (lambda: graph().add_node("x", inc, queue="work.suspect"), "stands for tasks whose process died"),
    (lambda: graph().compile(name="work.suspect"), "stands for tasks whose process died"),
    (lambda: graph().add_node("x", inc, retry_policy=[NO_POLICY]), "'no' is no RetryPolicy"),
    (
        lambda: graph().add_node("x", inc, input_schema=OtherReducer),
        "OtherReducer gives the key 'log' another",
    ),
    (
        lambda: graph().add_node("x", inc, input_schema=LateReducer),
        "LateReducer gives the key 'count' another",
    ),
    (lambda: graph().add_edge(END, "inc"), "END can't be the start"),
    (lambda: graph().add_edge(["inc", END], "inc"), "END can't be the start"),
    (lambda: graph().add_edge("inc", START), "START can't be the end"),
    (lambda: graph().add_edge([], "inc"), "waits for nodes"),
    (lambda: graph().add_edge([START, "inc"], "inc"), "waits for nodes"),
    (lambda: graph().add_edge("inc", "icn").spec(), "names 'icn', which is no node. Did you mean 'inc'?"),
    (lambda: graph().add_edge("nic", "inc").spec(), "names 'nic', which is no node"),
    (lambda: graph().add_edge(["inc", "gone"], END).spec(), "names 'gone', which is no node"),
    (lambda: graph().add_conditional_edges("gone", inc).spec(), "after 'gone' names 'gone'"),
    (lambda: graph().add_conditional_edges("inc", inc, ["imc"]).spec(), "after 'inc' names 'imc'"),
    (lambda: graph().add_conditional_edges("inc", inc, {1: START}).spec(), "names '__start__'"),
    (lambda: graph().add_conditional_edges("inc", NO_FUNCTION), "is no function"),
    (
        lambda: graph().add_conditional_edges("inc", inc).add_conditional_edges("inc", inc),
        "a router 'inc' already",
    ),
    (
        lambda: StateGraph(State).add_node(inc).spec(),
        "no entry: nothing follows START. add_edge(START, 'inc')",
    ),
    (lambda: StateGraph(State).spec(), "no entry"),
    (lambda: graph().add_node("lost", inc).spec(), "No path from START reaches the node 'lost'"),
    (
        lambda: graph().add_node("a", inc).add_node("b", inc).add_edge("a", "b").add_edge("b", "a").spec(),
        "'a'",
    ),
    (lambda: graph().spec(""), "'' can't be a graph's name"),
    (lambda: StateGraph(dict), "'dict' can't be a schema"),
    (lambda: StateGraph(list[int]), "can't be a schema"),
    (lambda: StateGraph(Bad), "An annotation of 'Bad' can't be read: name 'NoSuchType'"),
    (lambda: StateGraph(TypedDict("J", {"join:x": int})), "'join:x' is reserved"),  # type: ignore[operator]
    (lambda: StateGraph(TypedDict("D", {"defer:x": int})), "'defer:x' is reserved"),  # type: ignore[operator]
]


@pytest.mark.parametrize(("build", "told"), REFUSED, ids=[told[:40] for _, told in REFUSED])
def test_a_mistake_is_told_with_its_place_and_remedy(build: Any, told: str) -> None:
    with pytest.raises(GraphError) as caught:
        build()
    assert told in str(caught.value)
    assert caught.value.fix


def test_an_unknown_node_is_told_with_the_closest() -> None:
    with pytest.raises(UnknownNode, match="Did you mean 'inc'"):
        graph().spec().node("ink")


# -- the fingerprint


class Kind(Enum):
    ONE = 1


def variants() -> dict[str, StateGraph]:
    return {
        "base": graph(),
        "node": graph().add_node("b", inc).add_edge(START, "b"),
        "edge": graph().add_edge("inc", END),
        "branch": graph().add_conditional_edges("inc", lambda s: END),
        "map": graph().add_conditional_edges("inc", lambda s: END, [END]),
        "labels": graph().add_conditional_edges("inc", lambda s: 1, {Kind.ONE: END, None: "inc", object: "inc"}),
        "join": graph().add_edge(["inc"], END),
        "channel": StateGraph(Narrow).add_node("inc", lambda s: None).add_edge(START, "inc"),
    }


def test_every_change_of_shape_changes_the_fingerprint() -> None:
    prints = {name: each.spec().fingerprint for name, each in variants().items()}
    assert len(set(prints.values())) == len(prints)
    assert graph().spec("a").version == f"a@{prints['base']}"
    assert all(len(each) == 8 and int(each, 16) >= 0 for each in prints.values())


def test_the_order_of_building_does_not_matter() -> None:
    one = StateGraph(State).add_node("a", inc).add_node("b", inc).add_edge(START, "a").add_edge("a", "b")
    two = StateGraph(State).add_edge("a", "b").add_edge(START, "a").add_node("b", later).add_node("a", inc)
    assert one.spec().fingerprint == two.spec().fingerprint


SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
import test_graph_build as t
from everstep_scheduler.graph.drawing.picture import graph_of
for name, each in t.variants().items():
    spec = each.spec()
    seen = graph_of(spec)
    print(name, spec.fingerprint, spec.initial(), seen.draw_mermaid(), seen.draw_svg(), seen.draw_ascii())
"""


def test_fingerprints_are_the_same_in_every_process() -> None:
    told: set[str] = set()
    for seed in ("0", "1", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        here = os.path.dirname(os.path.abspath(__file__))
        run = subprocess.run([sys.executable, "-c", SCRIPT, here], env=env, capture_output=True, text=True, check=True)
        told.add(run.stdout)
    assert len(told) == 1 and "base" in told.pop()


def test_compile_hands_the_checked_graph_to_what_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    saver = types.SimpleNamespace(moves=None)
    inline = types.ModuleType("everstep_scheduler.inline.compiled")
    inline.CompiledGraph = lambda spec, checkpointer, *_: (spec.name, checkpointer)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "everstep_scheduler.inline.compiled", inline)
    found: list[Any] = [graph().compile(saver, name="counter"), graph().compile()]
    assert found == [("counter", saver), ("graph", None)]


def test_what_keeps_no_threads_is_no_checkpointer() -> None:
    graph = StateGraph(State)
    graph.add_node("a", lambda state: {})
    graph.add_edge(START, "a")
    for wrong in (17, "redis://127.0.0.1:6379/0"):
        with pytest.raises(GraphError, match="no checkpointer"):
            graph.compile(checkpointer=wrong)
