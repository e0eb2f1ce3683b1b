"""Graphs as nodes of graphs, against LangGraph as the oracle: the same calls, the same results, states and histories.

On the same stories: inline in memory, inline on Redis, and on workers, where a child's nodes are jobs like any others.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict

import pytest
import redis
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.errors import NodeError as OracleNodeError
from langgraph.types import RetryPolicy as OracleRetry

from everstep_checkpoint.errors import GraphError, InvalidInput, InvalidUpdateError, RunFailed
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.handling import NodeError
from everstep_scheduler.graph.options import CachePolicy
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import START, Runtime
from everstep_scheduler.graph.subgraphs import child_thread
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.reading.children import children
from everstep_scheduler.steps.caches import InMemoryCache
from everstep_workers.worker import specs_of
from servers import wait_for
from sidebyside import wait_for_siblings
from test_interrupts import (
    IN,
    OURS,
    THEIRS,
    Answer,
    State,
    asks,
    call,
    history,
    on,
    says,
    shown,
    state_of,
    waiting,
    working,
)

DEPTH = 5
FAMILIES = 45


class Wide(State, total=False):
    x: int
    own: str


class Private(TypedDict, total=False):
    x: int
    own: str
    secret: str


class Calls(State, total=False):
    calls: int


class OnlyX(TypedDict, total=False):
    x: int


# --- graphs


def chain(lib: Any, *nodes: Any, schema: Any = Wide, **more: Any) -> Any:
    """A graph of these nodes, one after the other: names that say themselves, or (name, node)."""
    pairs = [(each, says(each)) if isinstance(each, str) else each for each in nodes]
    graph = lib.StateGraph(schema, **more)
    for name, node in pairs:
        graph.add_node(name, node)
    for before, (after, _) in zip([START, *(name for name, _ in pairs)], pairs, strict=False):
        graph.add_edge(before, after)
    return graph


def beside(lib: Any, *nodes: tuple[str, Any], end: str = "z") -> Any:
    graph = lib.StateGraph(Wide).add_node(end, says(end))
    for name, node in nodes:
        graph.add_node(name, node).add_edge(START, name).add_edge(name, end)
    return graph


def plain(lib: Any) -> Any:
    return chain(lib, "a", ("child", chain(lib, "x", "y").compile()), "b")


def deep(lib: Any, depth: int = DEPTH) -> Any:
    graph = chain(lib, "deepest")
    for level in range(depth):
        graph = chain(lib, f"before{level}", (f"g{level}", graph.compile()), f"after{level}")
    return graph


def parallel(lib: Any) -> Any:
    return beside(lib, *((f"c{i}", chain(lib, f"x{i}", f"y{i}").compile()) for i in range(3)), ("s", says("s")))


def private(lib: Any) -> Any:
    """Only shared keys go in and come out."""
    inner = chain(
        lib, ("i", lambda s: {"secret": f"{s.get('own')}{s.get('secret')}"}), ("j", lambda s: {"x": len(s["secret"])}),
        schema=Private,
    )  # fmt: skip
    return chain(lib, ("set", lambda s: {"own": "abc", "x": 1}), ("child", inner.compile()))


def narrow(lib: Any) -> Any:
    """The child's input and output schemas narrow what it sees and gives."""
    inner = chain(
        lib, ("i", lambda s: {"x": s["x"] + 1, "own": "the child's"}), input_schema=OnlyX, output_schema=OnlyX,
    )  # fmt: skip
    return chain(lib, ("set", lambda s: {"own": "mine", "x": 1}), ("child", inner.compile()))


def routed(lib: Any) -> Any:
    graph = chain(lib, ("child", chain(lib, ("i", lambda s: {"x": 3})).compile()), schema=Wide)
    graph.add_node("three", says("three")).add_node("other", says("other"))
    return graph.add_conditional_edges("child", lambda s: "three" if s["x"] == 3 else "other", ["three", "other"])


def sent(lib: Any) -> Any:
    inner = chain(lib, ("i", lambda s: {"log": [s["x"] * 10]}), output_schema=State)
    graph = lib.StateGraph(Wide).add_node("child", inner.compile()).add_node("end", says("end"))
    graph.add_conditional_edges(START, lambda s: [lib.Send("child", {"x": i}) for i in range(3)], ["child"])
    return graph.add_edge("child", "end")


def asking(lib: Any) -> Any:
    return chain(lib, "a", ("child", chain(lib, "x", ("q", asks(lib, "q", "q1", "q2")), "y").compile()), "b")


def all_ask(lib: Any) -> Any:
    """One child that asks twice at once, one that asks once, a sibling that asks, and one that is done."""
    two = beside(lib, ("p", asks(lib, "p", "?p")), ("q", asks(lib, "q", "?q")), end="e")
    one = chain(lib, ("r", asks(lib, "r", "?r")))
    return beside(lib, ("two", two.compile()), ("one", one.compile()), ("s", asks(lib, "s", "?s")), ("d", says("d")))


def deep_question(lib: Any) -> Any:
    graph = chain(lib, ("q", asks(lib, "q", "far down")))
    for level in range(3):
        graph = chain(lib, f"b{level}", (f"g{level}", graph.compile()))
    return graph


def stopping(lib: Any) -> Any:
    inner = chain(lib, "x", "y", "w")
    return beside(lib, ("child", inner.compile(interrupt_before=["y"], interrupt_after=["y"])), ("s", says("s")))


def stopping_last(lib: Any) -> Any:
    """A child that stops after its last node, one that stops after its last step of two."""
    one = chain(lib, "x").compile(interrupt_after=["x"])
    two = (
        lib.StateGraph(Wide).add_node("y", says("y")).add_node("w", says("w")).add_edge(START, "y").add_edge(START, "w")
    )
    return beside(lib, ("one", one), ("two", two.compile(interrupt_after=["w"])), ("s", says("s")))


def keeping(lib: Any) -> Any:
    return chain(
        lib, ("child", chain(lib, "x", ("count", lambda s: {"x": s.get("x", 0) + 1})).compile(checkpointer=True))
    )


def counting(lib: Any) -> Any:
    """The parent's input does not reach the child, which counts its own calls."""

    class Own(TypedDict, total=False):
        calls: int
        x: int

    inner = chain(lib, ("i", lambda s: {"calls": s.get("calls", 0) + 1, "x": s.get("calls", 0) + 1}), schema=Own)
    return chain(lib, ("child", inner.compile(checkpointer=True)))


def unkept(lib: Any) -> Any:
    return chain(lib, "a", ("child", chain(lib, "x", "y").compile(checkpointer=False)), "b")


def upward(
    lib: Any,
    update: Any = None,
    goto: Any = "up",
    wire: Callable[[Any], Any] = lambda graph: None,
    sibling: bool = False,
) -> Any:
    """The child's second node has a Command for the parent, which has nodes a, up, b."""
    command = lib.Command(graph=lib.Command.PARENT, update=update, goto=goto)
    inner = chain(lib, "n", ("go", lambda s: command), "after")
    if sibling:
        inner.add_node("sib", says("sib")).add_edge("n", "sib")
    graph = (
        lib.StateGraph(Wide).add_node("child", inner.compile(), destinations=("a", "up", "b")).add_edge(START, "child")
    )
    for name in ("a", "up", "b"):
        graph.add_node(name, says(name))
    wire(graph)
    return graph


def twice_upward(lib: Any) -> Any:
    def up(goto: str, word: str) -> Any:
        return lambda s: lib.Command(graph=lib.Command.PARENT, update={"log": [word]}, goto=goto)

    low = chain(lib, ("go", up("m", "low")), "never")
    mid = lib.StateGraph(Wide).add_node("low", low.compile(), destinations=("m",)).add_node("m", up("z", "mid"))
    mid.add_edge(START, "low")
    graph = lib.StateGraph(Wide).add_node("child", mid.compile(), destinations=("z",)).add_node("z", says("z"))
    return graph.add_edge(START, "child")


def asked_upward(lib: Any) -> Any:
    def go(state: Any) -> Any:
        return lib.Command(graph=lib.Command.PARENT, update=[("log", ["up"]), ("x", 3)], goto=lib.interrupt("where?"))

    inner = chain(lib, "n", ("go", go))
    graph = lib.StateGraph(Wide).add_node("child", inner.compile(), destinations=("z",)).add_node("z", says("z"))
    return graph.add_edge(START, "child")


def kept_upward(lib: Any) -> Any:
    def go(state: Any) -> Any:
        up = lib.Command(graph=lib.Command.PARENT, update={"log": [state.get("calls", 0)]}, goto="z")
        return up if state.get("calls", 0) == 2 else {"calls": state.get("calls", 0) + 1, "log": [1]}

    inner = chain(lib, ("count", lambda s: {"calls": s.get("calls", 0) + 1}), ("go", go), schema=Calls)
    graph = lib.StateGraph(State).add_node("child", inner.compile(checkpointer=True), destinations=("z",))
    return graph.add_node("z", says("z")).add_edge(START, "child")


class Fails:
    """A node that fails so many times."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error = times, error

    def __call__(self, state: Any) -> dict[str, Any]:
        if self.left:
            self.left -= 1
            raise self.error
        return {"log": ["mended"]}


def failing(lib: Any, times: int = 1) -> Any:
    inner = chain(lib, "x", ("f", Fails(times, ValueError("not yet"))), "y")
    return beside(lib, ("child", inner.compile()), ("s", says("s")))


def recursive(lib: Any) -> Any:
    inner = chain(lib, "x", "y", "w")
    return chain(lib, ("child", inner.compile()))


STORIES: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "one in another": (plain, [IN, {"log": ["more"]}]),
    "five deep": (deep, [IN]),
    "three beside a node": (parallel, [IN]),
    "shared keys": (private, [{"log": []}]),
    "narrow schemas": (narrow, [{"log": []}]),
    "a router behind it": (routed, [IN]),
    "Sends to it": (sent, [IN]),
    "questions, one after the other": (asking, [IN, None, Answer("A1"), Answer("A2"), None]),
    "questions, given up": (asking, [IN, {"log": ["again"]}, Answer("A1"), Answer("A2")]),
    "many questions, one by one": (
        all_ask, [IN, Answer(to={"?q": 1}), Answer(to={"?s": 2}), Answer(to={"?p": 3}), Answer(to={"?r": 4})],
    ),
    "many questions at once": (all_ask, [IN, Answer(to={"?p": 1, "?q": 2, "?r": 3, "?s": 4})]),
    "a question far down": (deep_question, [IN, Answer("here")]),
    "breakpoints in it": (stopping, [IN, None, None]),
    "a breakpoint behind it": (stopping_last, [IN, None]),
    "a breakpoint, given up": (stopping, [IN, {"log": ["again"]}, None, None]),
    "its state lasts": (keeping, [IN, {"log": ["more"]}]),
    "it counts its calls": (counting, [IN, IN, IN]),
    "a Command for the parent": (partial(upward, update={"log": ["!"]}), [IN]),
    "beside an edge": (partial(upward, update={"log": ["!"]}, wire=lambda g: g.add_edge("child", "b")), [IN]),
    "beside a router": (
        partial(
            upward, update={"x": 5},
            wire=lambda g: g.add_conditional_edges("child", lambda s: "b" if s.get("x") == 5 else "a", ["a", "b"]),
        ), [IN],
    ),
    "a Command beside a sibling": (partial(upward, update={"log": ["!"]}, sibling=True), [IN, {"log": ["more"]}]),
    "a Command without an update": (partial(upward, goto=["a", "b"]), [IN]),
    "a Command from two levels": (twice_upward, [IN]),
    "a Command that asks first": (asked_upward, [IN, Answer("z")]),
    "a Command from where state lasts": (kept_upward, [IN, IN, IN]),
    "it fails": (failing, [IN, None, None]),
    "it fails, given up": (failing, [IN, {"log": ["again"]}]),
}  # fmt: skip


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    if request.param == "memory":
        return InMemorySaver()
    return RedisSaver(request.getfixturevalue("redis_url"))


def sound(log: Log, thread: str) -> bool:
    """Are the logs of a thread and of all that it called as they should be?"""
    return verify(log, thread).sound and all(sound(log, each) for each in children(log, thread))


@pytest.mark.parametrize("story", STORIES)
def test_graphs_in_graphs_go_as_in_langgraph(story: str, saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_siblings(monkeypatch)
    build, steps = STORIES[story]
    ours = build(OURS).compile(checkpointer=saver, name="g")
    theirs = build(THEIRS).compile(checkpointer=OracleSaver())
    for i, step in enumerate(steps):
        mine = call(OURS, ours, on("t"), step)
        assert mine == call(THEIRS, theirs, on("t"), step, durability="sync"), f"call {i}"
        assert state_of(ours, on("t")) == state_of(theirs, on("t")), f"state after call {i}"
        assert history(ours, on("t")) == history(theirs, on("t")), f"history after call {i}"
    assert sound(saver.log, "t")


def test_graphs_in_graphs_go_the_same_on_workers(redis_url: str) -> None:
    """One slot: a parent that held it while it waits for its child would stand still for ever."""
    graphs = {story: build(OURS).compile(name=f"g{i}") for i, (story, (build, _)) in enumerate(STORIES.items())}
    memory = InMemorySaver()
    with working(redis_url, *graphs.values(), concurrency=1) as worker, connect(redis_url) as client:
        for story, (build, steps) in STORIES.items():
            remote, config = client.graph(graphs[story].name, graphs[story]), on(story)
            inline = build(OURS).compile(checkpointer=memory, name=graphs[story].name)
            for i, step in enumerate(steps):
                mine, theirs = call(OURS, remote, config, step, timeout=20), call(OURS, inline, config, step)
                assert mine == (theirs if isinstance(theirs, tuple) else "RunFailed"), f"{story}: call {i}"
                assert state_of(remote, config) == state_of(inline, config), f"{story}: state after call {i}"
                assert history(remote, config) == history(inline, config), f"{story}: history after call {i}"
            assert sound(client.log_store, story)
        wait_for(lambda: not worker.work.held, 5, "the slot to be free")


def test_without_a_checkpointer_a_graph_in_a_graph_runs_too() -> None:
    assert plain(OURS).compile().invoke(IN)["log"] == ["in", "a", "in", "a", "x", "y", "b"]


def test_a_child_that_is_kept_nowhere_runs_within_the_attempt(saver: Saver) -> None:
    ours, theirs = unkept(OURS).compile(checkpointer=saver), unkept(THEIRS).compile(checkpointer=OracleSaver())
    for step in (IN, {"log": ["more"]}):
        assert call(OURS, ours, on("t"), step) == call(THEIRS, theirs, on("t"), step)
    assert list(children(saver.log, "t")) == []
    asks_there = chain(OURS, ("child", chain(OURS, ("q", asks(OURS, "q", "?"))).compile(checkpointer=False)))
    with pytest.raises(InvalidInput, match="nobody keeps its question"):
        asks_there.compile(checkpointer=saver).invoke(IN, on("u"))


def test_on_an_event_loop_a_graph_in_a_graph_runs_its_async_nodes_there(saver: Saver) -> None:
    loops: list[Any] = []

    async def node(state: State) -> Any:
        loops.append(asyncio.get_running_loop())
        return {"log": ["async"]}

    async def route(state: State) -> str:
        return "b"

    outer = chain(OURS, ("child", chain(OURS, ("i", node)).compile()))
    outer.add_node("b", says("b")).add_conditional_edges("child", route, ["b"])

    async def main() -> Any:
        return await outer.compile(checkpointer=saver).ainvoke(IN, on("t")), asyncio.get_running_loop()

    got, loop = asyncio.run(main())
    assert got["log"] == ["in", "in", "async", "b"]
    assert loops == [loop]


def test_children_run_beside_each_other(saver: Saver) -> None:
    meet = threading.Barrier(3, timeout=10)

    def node(state: State) -> Any:
        meet.wait()
        return {}

    graph = beside(OURS, *((name, chain(OURS, ("i", node)).compile()) for name in "abc"))
    assert graph.compile(checkpointer=saver).invoke(IN, on("t"))["log"]


# --- failures


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_the_error_of_a_child_is_raised_as_it_was(lib: Any) -> None:
    error = ValueError("not yet")
    inner = chain(lib, ("f", Fails(1, error)))
    graph = chain(lib, ("g", chain(lib, ("child", inner.compile())).compile()))
    with pytest.raises(ValueError, match="not yet") as raised:
        graph.compile(checkpointer=InMemorySaver() if lib is OURS else OracleSaver()).invoke(IN, on("t"))
    assert raised.value is error


@pytest.mark.parametrize(
    ("error", "retry_on", "calls"),
    [
        (ConnectionError("away"), None, 3), (ValueError("no"), None, 1), (ValueError("no"), ValueError, 3),
        (InvalidUpdateError("odd"), (KeyError, InvalidUpdateError), 3),
    ],
)  # fmt: skip
def test_a_childs_failure_is_under_the_retry_policy_of_its_node(error: Exception, retry_on: Any, calls: int) -> None:
    """The child is not begun anew: it goes on where it failed, in the same thread."""
    policy: dict[str, Any] = {"initial_interval": 0.01, "jitter": False, "max_attempts": 3}
    policy |= {"retry_on": retry_on} if retry_on is not None else {}
    ran: list[str] = []

    def first(state: State) -> Any:
        ran.append("first")
        return {"log": ["first"]}

    def then(state: State) -> Any:
        ran.append("then")
        if ran.count("then") < 3:
            raise error
        return {"log": ["then"]}

    inner = chain(OURS, ("first", first), ("then", then))
    graph = OURS.StateGraph(Wide).add_node("child", inner.compile(), retry_policy=RetryPolicy(**policy))
    saver = InMemorySaver()
    compiled = graph.add_edge(START, "child").compile(checkpointer=saver)
    if calls == 3:
        assert compiled.invoke(IN, on("t"))["log"] == ["in", "in", "first", "then"]
    else:
        with pytest.raises(type(error)):
            compiled.invoke(IN, on("t"))
    assert ran == ["first", *["then"] * calls]
    assert len(list(children(saver.log, "t"))) == 1


def test_langgraph_retries_a_failed_child_in_the_same_way() -> None:
    inner = chain(THEIRS, "first", ("then", Fails(2, ConnectionError("away"))))
    graph = THEIRS.StateGraph(Wide)
    graph.add_node("child", inner.compile(), retry_policy=OracleRetry(initial_interval=0.01, max_attempts=3))
    assert graph.add_edge(START, "child").compile().invoke(IN)["log"] == ["in", "in", "first", "mended"]


def test_a_failed_child_names_its_node_and_shows_its_own_error(redis_url: str) -> None:
    graph = failing(OURS, times=9).compile(name="g")
    with working(redis_url, graph), connect(redis_url) as client:
        with pytest.raises(RunFailed, match="ValueError: not yet") as raised:
            client.submit("g", IN, thread_id="t").result(20)
        assert "raise self.error" in raised.value.traceback
        (failed,) = [task for task in client.state("t").tasks if task.error]
        assert (failed.name, failed.error) == ("child", "ValueError('not yet')")
        fact = next(x for x in client.log("t") if x.kind == "task_failed")
        assert fact.json("error")["node"] == "f"


def test_an_input_that_does_not_fit_the_child_fails_the_node(saver: Saver) -> None:
    graph = OURS.StateGraph(Wide).add_node("child", chain(OURS, "x").compile())
    graph.add_conditional_edges(START, lambda s: [OURS.Send("child", 5)], ["child"])
    with pytest.raises(InvalidInput, match="must be a dict, not an int"):
        graph.compile(checkpointer=saver).invoke(IN, on("t"))


def test_the_recursion_limit_counts_in_each_graph_by_itself(saver: Saver) -> None:
    config = {**on("t"), "recursion_limit": 2}
    ours = recursive(OURS).compile(checkpointer=saver)
    theirs = recursive(THEIRS).compile(checkpointer=OracleSaver())
    assert call(OURS, ours, config, IN) == call(THEIRS, theirs, config, IN) == "GraphRecursionError"
    config = {**on("u"), "recursion_limit": 4}  # LangGraph raises at 3, when the third step was the last one, too
    assert call(OURS, ours, config, IN) == call(THEIRS, theirs, config, IN)


# --- Commands for the parent


def test_sends_of_a_command_for_the_parent_are_its_sends(saver: Saver) -> None:
    found: list[Any] = []
    for lib, mine in ((OURS, saver), (THEIRS, OracleSaver())):
        graph = upward(lib, update={"x": 1}, goto=[lib.Send("up", {"x": 2}), "b", lib.Send("a", {})])
        found.append(call(lib, graph.compile(checkpointer=mine), on("t"), IN))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"goto": "nobody"}, "goes to 'nobody', which is no node"), ({"update": {"zzz": 1}}, "wrote 'zzz'"),
        ({"update": [("log", 1, 2)]}, "not one of pairs"), ({"update": {"log": [object()]}}, "the Command"),
    ],
)  # fmt: skip
def test_a_command_that_does_not_fit_the_parent_fails_and_says_why(more: Any, said: str, saver: Saver) -> None:
    with pytest.raises(Exception, match=said):
        upward(OURS, **more).compile(checkpointer=saver).invoke(IN, on("t"))
    assert saver.log.read("t")[-1].text("status") == "failed"


def test_a_command_for_a_parent_needs_one(saver: Saver) -> None:
    graph = chain(OURS, ("go", lambda s: OURS.Command(graph=OURS.Command.PARENT, goto="a")))
    with pytest.raises(InvalidUpdateError, match="has no parent"):
        graph.compile(checkpointer=saver).invoke(IN, on("t"))


# --- what nodes are told


def test_a_child_is_told_what_its_parent_was(saver: Saver) -> None:
    found: list[Any] = []

    def node(state: State, config: Any, runtime: Runtime[Any]) -> Any:
        found.append((config["configurable"]["who"], config["metadata"], config["tags"], runtime.context))
        return {}

    class Context(TypedDict):
        lang: str

    outer = OURS.StateGraph(Wide, context_schema=Context).add_node("child", chain(OURS, ("i", node)).compile())
    outer.add_edge(START, "child")
    config = {"configurable": {"thread_id": "t", "who": "me"}, "metadata": {"m": 1}, "tags": ["x"]}
    outer.compile(checkpointer=saver).invoke(IN, config, context={"lang": "en"})
    assert [(who, said["m"], tags, context) for who, said, tags, context in found] == [("me", 1, ["x"], {"lang": "en"})]


# --- options of the node


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_an_error_handler_speaks_for_a_child_that_failed_for_good(lib: Any, request: pytest.FixtureRequest) -> None:
    savers: list[Any] = [InMemorySaver(), RedisSaver(request.getfixturevalue("redis_url"))]
    for mine in savers if lib is OURS else [OracleSaver()]:
        graph = lib.StateGraph(Wide).add_node("end", says("end"))
        inner = chain(lib, "x", ("f", Fails(9, ValueError("not yet"))))
        graph.add_node("child", inner.compile(), error_handler=HANDLERS[lib is OURS])
        graph.add_edge(START, "child").add_edge("child", "end")
        assert call(lib, graph.compile(checkpointer=mine), on("t"), IN) == ({"log": ["in", "child: not yet"]}, [])


def handles(state: Any, error: NodeError) -> Any:
    return {"log": [f"{error.node}: {error.error}"]}


def handles_theirs(state: Any, error: OracleNodeError) -> Any:
    return {"log": [f"{error.node}: {error.error}"]}


handles_theirs.__annotations__["error"] = OracleNodeError  # it looks at the annotation as it stands
HANDLERS = {True: handles, False: handles_theirs}


def test_a_child_waits_until_nothing_else_runs_where_it_is_deferred(saver: Saver) -> None:
    found: list[Any] = []
    for lib, mine in ((OURS, saver), (THEIRS, OracleSaver())):
        graph = chain(lib, "a", "b", "c")
        graph.add_node("child", chain(lib, ("x", says("x")), output_schema=State).compile(), defer=True)
        compiled = graph.add_edge("a", "child").compile(checkpointer=mine)
        found.append((call(lib, compiled, on("t"), {"n": 1}), history(compiled, on("t"))))
    assert found[0] == found[1]


def test_what_a_child_gave_is_kept_in_a_cache() -> None:
    ran: list[Any] = []
    inner = chain(OURS, ("x", lambda s: ran.append(s) or {"log": ["x"]}), output_schema=State)  # type: ignore[func-returns-value]
    graph = (
        OURS.StateGraph(Wide).add_node("child", inner.compile(), cache_policy=CachePolicy()).add_edge(START, "child")
    )
    compiled = graph.compile(checkpointer=InMemorySaver(), cache=InMemoryCache())
    first, second = (compiled.invoke({"n": 1}, on(thread)) for thread in ("t", "u"))
    assert first == second and len(ran) == 1


def test_the_stream_of_a_parent_tells_its_childs_update_and_questions(saver: Saver) -> None:
    found: list[Any] = []
    for lib, mine in ((OURS, saver), (THEIRS, OracleSaver())):
        graph = asking(lib).compile(checkpointer=mine)
        told: list[Any] = []
        for data in (IN, lib.Command(resume="A1"), lib.Command(resume="A2")):
            for mode, chunk in graph.stream(data, on("t"), stream_mode=["updates", "values"]):
                told.append((mode, {**shown(chunk), "asked": waiting(chunk.get("__interrupt__", ()))}))
        found.append(told)
    assert found[0] == found[1]


# --- calls within a node


def test_a_node_on_a_worker_may_not_wait_for_a_run_on_workers(redis_url: str) -> None:
    """As many such nodes as slots would wait for ever. Nothing is begun; submitting without waiting is fine."""

    def waits(state: Any) -> Any:
        with connect(redis_url) as client:
            run = client.submit("plain", IN, thread_id="begun")
            for wait in (lambda: client.graph("plain").invoke(IN, on("t")), run.result, lambda: list(run.chunks())):
                with pytest.raises(InvalidInput, match="can't wait for") as refused:
                    wait()
                assert "add_node" in refused.value.fix
            return {"log": [client.log_store.head("t") is None]}

    graphs = chain(OURS, ("waits", waits)).compile(name="g"), chain(OURS, "x").compile(name="plain")
    with working(redis_url, *graphs, concurrency=1), connect(redis_url) as client:
        assert client.submit("g", IN, thread_id="p").result(20)["log"] == ["in", True]
        assert client.run("begun").result(20)["log"] == ["in", "x"]


def test_a_node_of_an_inline_run_may_wait_for_workers(redis_url: str) -> None:
    plainly = chain(OURS, "x").compile(name="plain")

    def waits(state: Any) -> Any:
        with connect(redis_url) as client:
            return {"log": client.graph("plain").invoke({"n": 1}, timeout=20)["log"]}

    with working(redis_url, plainly):
        assert chain(OURS, ("waits", waits)).compile(checkpointer=InMemorySaver()).invoke(IN, on("t"))["log"] == [
            "in",
            "x",
        ]


# --- how they are built


def test_a_graph_in_a_graph_has_a_name_a_queue_and_a_part_in_the_fingerprint() -> None:
    def made(*inner: str) -> Any:
        child = OURS.StateGraph(Wide).add_node("i", says("i"), queue="gpu").add_edge(START, "i")
        middle = chain(OURS, ("low", child.compile()), *inner)
        return chain(OURS, ("mid", middle.compile())).compile(name="shop").spec

    spec = made("a")
    assert [each.name for each in spec.family] == ["shop", "shop.mid", "shop.mid.low"]
    assert {each.default_queue for each in spec.family} == {"shop"}
    assert spec.queues == ("shop", "gpu")
    assert [each.name for each in spec.named("mine").family] == ["mine", "mine.mid", "mine.mid.low"]
    assert spec.fingerprint == made("a").fingerprint != made("b").fingerprint


def test_a_graphs_own_name_is_the_nodes_where_none_is_given() -> None:
    graph = OURS.StateGraph(Wide).add_node(chain(OURS, "x").compile(name="inner")).add_edge(START, "inner")
    assert graph.compile(checkpointer=InMemorySaver()).invoke(IN, on("t"))["log"] == ["in", "in", "x"]


def test_what_can_not_be_a_node_is_refused(redis_url: str) -> None:
    graph, inner = OURS.StateGraph(Wide), chain(OURS, "x")
    with pytest.raises(GraphError, match="no timeout"):
        graph.add_node("child", inner.compile(), timeout=3)
    with pytest.raises(GraphError, match="has no function"):
        graph.add_node("child", inner)
    with connect(redis_url) as client, pytest.raises(GraphError, match="a client's graph"):
        graph.add_node("child", client.graph("g"))
    with pytest.raises(GraphError, match=r"two graphs are named 'g\.child'"):
        specs_of([plain(OURS).compile(name="g"), inner.compile(name="g.child")])
    with pytest.raises(InvalidInput, match="checkpointer=True"):
        inner.compile(checkpointer=True).invoke(IN, on("t"))


def test_a_childs_thread_has_a_name_of_at_most_512_bytes() -> None:
    assert child_thread("t", "node", "k" * 43, None) == "t|node:" + "k" * 22
    assert child_thread("t", "node", "k" * 43, True) == "t|node"
    long = {child_thread("t" * 512, "node", key * 43, None) for key in "kl"}
    assert len(long) == 2 and all(len(each) < 60 for each in long)


# --- on a fleet


def test_a_hundred_parents_don_t_wait_for_each_others_slots(redis_url: str) -> None:
    graph = deep(OURS, 2).compile(name="g")
    with working(redis_url, graph, concurrency=2), connect(redis_url) as client:
        runs = [client.submit("g", IN, thread_id=f"t{i}") for i in range(100)]
        assert {len(run.result(60)["log"]) for run in runs} == {len(deep(OURS, 2).compile().invoke(IN)["log"])}


def test_the_fleet_takes_over_what_an_inline_callers_child_was_at(redis_url: str, client: redis.Redis) -> None:
    """The caller dies in a node of the child: its lease runs out, and workers do the rest, the parent's node too."""
    graph = plain(OURS).compile(checkpointer=RedisSaver(redis_url, lease_ms=300), name="g")
    died = threading.Event()

    def die(state: State) -> Any:
        if not died.is_set():
            died.set()
            raise KeyboardInterrupt
        return {"log": ["x"]}

    graph = chain(OURS, "a", ("child", chain(OURS, ("x", die)).compile()), "b").compile(
        checkpointer=RedisSaver(redis_url, lease_ms=300), name="g"
    )
    with pytest.raises(KeyboardInterrupt):
        graph.invoke(IN, on("t"))
    with working(redis_url, graph), connect(redis_url) as other:
        assert other.run("t").result(20)["log"] == ["in", "a", "in", "a", "x", "b"]


def test_another_caller_drives_a_child_that_its_caller_left(redis_url: str) -> None:
    """It attaches to the run, and finds the child by the parent's task that waits for it."""
    left = threading.Event()

    def leave(state: State) -> Any:
        if not left.is_set():
            left.set()
            raise KeyboardInterrupt
        return {"log": ["x"]}

    def made() -> Any:
        return chain(OURS, ("child", chain(OURS, ("x", leave)).compile())).compile(
            checkpointer=RedisSaver(redis_url), name="g"
        )

    with pytest.raises(KeyboardInterrupt):
        made().invoke(IN, on("t"), run_id="r")
    assert made().invoke(IN, on("t"), run_id="r")["log"] == ["in", "in", "x"]


def test_two_calls_of_a_graph_that_keeps_its_state_take_turns(redis_url: str) -> None:
    def count(state: Any) -> Any:
        return {"calls": state.get("calls", 0) + 1, "log": [state.get("calls", 0) + 1]}

    inner = chain(OURS, ("count", count), schema=Calls, output_schema=State)
    made = OURS.StateGraph(State).add_node("child", inner.compile(checkpointer=True)).add_node("end", says("end"))
    made.add_conditional_edges(START, lambda s: [OURS.Send("child", {"x": i}) for i in range(3)], ["child"])
    compiled = made.add_edge("child", "end").compile(name="g")
    with working(redis_url, compiled), connect(redis_url) as client:
        found = client.submit("g", IN, thread_id="t").result(20)["log"]
        # each gives the child's whole list as it was then, as LangGraph's add would
        assert sorted(map(repr, found)) == sorted(map(repr, ["in", 1, 1, 2, 1, 2, 3, "end"]))
        assert list(children(client.log_store, "t")) == ["t|child"]
