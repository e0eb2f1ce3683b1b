"""Error handlers: what speaks for a node that failed for good, inline and on workers, as in LangGraph."""

import asyncio
import copy
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver as TheirSaver
from langgraph.errors import NodeError as TheirNodeError
from langgraph.graph import StateGraph as TheirStateGraph
from langgraph.types import Command as TheirCommand
from langgraph.types import RetryPolicy as TheirRetryPolicy
from langgraph.types import Send as TheirSend

from everstep_checkpoint.entries import Entry
from everstep_checkpoint.errors import CorruptEntry, GraphError, NodeTimeoutError, RunFailed
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.handling import NodeError, RaisedError, raised_again
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Command, Send
from everstep_scheduler.inline.logmoves import LogMoves
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from everstep_scheduler.reading.derive import Reader
from test_worker import running

OURS = SimpleNamespace(
    StateGraph=StateGraph, Send=Send, Command=Command, Saver=InMemorySaver, Retry=RetryPolicy, Error=NodeError
)
THEIRS = SimpleNamespace(
    StateGraph=TheirStateGraph,
    Send=TheirSend,
    Command=TheirCommand,
    Saver=TheirSaver,
    Retry=TheirRetryPolicy,
    Error=TheirNodeError,
)


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    x: int


def on(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}}


def says(word: str) -> Callable[[Any], dict[str, Any]]:
    return lambda state: {"log": [word]}


def boom(state: State) -> dict[str, Any]:
    raise ValueError("boom")


# -- as in LangGraph


def told(lib: Any, more: Any = None) -> Callable[..., Any]:
    """A handler that says what it was told."""

    def handler(state: State, error: lib.Error) -> Any:
        update = {"log": [f"handled {error.node} {error.error} {isinstance(error.error, ValueError)} {state}"]}
        return update if more is None else lib.Command(update=update, goto=more)

    return handler


def alone(lib: Any) -> Any:
    """The failed node's edge is not followed."""
    builder = lib.StateGraph(State).add_node("a", boom, error_handler=told(lib)).add_node("b", says("b"))
    return builder.add_edge(START, "a").add_edge("a", "b")


def goes_on(lib: Any) -> Any:
    builder = lib.StateGraph(State).add_node("a", boom, error_handler=told(lib, ["e", lib.Send("s", {"x": 3})]))
    for name in "bes":
        builder.add_node(name, says(name))
    builder.add_conditional_edges("b", lambda s: END, ["e", "s", END])
    return builder.add_edge(START, "a").add_edge("a", "b").add_edge("e", "b")


def among_siblings(lib: Any) -> Any:
    """Its writes stand where those of its node would; no join counts the node."""
    builder = lib.StateGraph(State).add_node("b", boom, error_handler=told(lib))
    for name in ("a", "c", "j"):
        builder.add_node(name, says(name))
    for name in "abc":
        builder.add_edge(START, name)
    return builder.add_edge(["a", "b"], "j")


def of_sends(lib: Any) -> Any:
    builder = lib.StateGraph(State).add_node("w", boom, error_handler=told(lib)).add_node("a", says("a"))
    return builder.add_conditional_edges(START, lambda s: [*(lib.Send("w", {"x": i}) for i in range(3)), "a"])


def by_default(lib: Any) -> Any:
    """The default speaks for every node that has none of its own."""
    builder = lib.StateGraph(State).set_node_defaults(error_handler=told(lib))
    builder.add_node("a", boom).add_node("b", boom, error_handler=says("own"))
    return builder.add_edge(START, "a").add_edge(START, "b")


def after_retries(lib: Any) -> Any:
    policy = lib.Retry(initial_interval=0, jitter=False, max_attempts=3, retry_on=ValueError)
    tries: list[int] = []

    def node(state: State) -> Any:
        tries.append(1)
        raise ValueError(f"try {len(tries)}")

    builder = lib.StateGraph(State).add_node("a", node, error_handler=told(lib), retry_policy=policy)
    return builder.add_edge(START, "a")


def handler_is_tried_again(lib: Any) -> Any:
    tries: list[int] = []

    def handler(state: State, error: lib.Error) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return {"log": [f"handled at {len(tries)}"]}

    policy = lib.Retry(initial_interval=0, jitter=False, retry_on=ValueError)
    builder = lib.StateGraph(State).set_node_defaults(retry_policy=policy)
    return builder.add_node("a", boom, error_handler=handler, retry_policy=()).add_edge(START, "a")


def history(graph: Any, thread: str) -> list[Any]:
    """Without retried attempts' errors of tasks, which LangGraph keeps and ours tells otherwise."""
    return [
        (
            s.metadata["step"],
            sorted(s.next),
            s.values,
            sorted((t.name, t.path, t.error, str(t.result)) for t in s.tasks),
        )
        for s in graph.get_state_history(on(thread))
    ]


TABLE = [alone, goes_on, among_siblings, of_sends, by_default, after_retries, handler_is_tried_again]


@pytest.mark.parametrize("build", TABLE, ids=lambda build: build.__name__)
def test_handlers_go_as_in_langgraph(build: Callable[[Any], Any]) -> None:
    ours, theirs = build(OURS).compile(checkpointer=InMemorySaver()), build(THEIRS).compile(checkpointer=TheirSaver())
    chunks = [sorted(each.stream({"log": []}, on("t"), stream_mode="updates"), key=str) for each in (ours, theirs)]
    assert chunks[0] == chunks[1]
    assert history(ours, "t") == history(theirs, "t")
    assert verify(ours.checkpointer.log, "t").sound


@pytest.mark.parametrize("build", TABLE[:5], ids=lambda build: build.__name__)
def test_handlers_go_the_same_on_workers_and_on_redis(build: Callable[[Any], Any], redis_url: str) -> None:
    memory = build(OURS).compile(InMemorySaver())
    expected = memory.invoke({"log": []}, on("t"))
    inline = build(OURS).compile(RedisSaver(redis_url), name="g")
    assert inline.invoke({"log": []}, on("inline")) == expected
    with running(redis_url, build(OURS).spec("g")), connect(redis_url) as fleet:
        remote = fleet.graph("g", build(OURS).compile(name="g"))
        assert remote.invoke({"log": []}, on("remote"), timeout=10) == expected
        assert history(inline, "inline") == history(remote, "remote") == history(memory, "t")
        for thread in ("inline", "remote"):
            assert verify(fleet.log_store, thread).sound


# -- a handler that fails, and what then goes on


class Mending:
    """A handler that fails until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.seen: list[str] = []

    def __call__(self, state: State, error: NodeError) -> dict[str, Any]:
        self.seen.append(repr(error.error))
        if not self.mended:
            raise RuntimeError("the handler broke")
        return {"log": ["handled"]}


def counted(calls: list[int]) -> Callable[[Any], Any]:
    def node(state: State) -> Any:
        calls.append(1)
        raise ValueError("boom")

    return node


@contextmanager
def failing(saver: Any) -> Iterator[tuple[Any, Mending, list[int]]]:
    """A run that rests because its handler failed, beside a sibling."""
    handler, calls = Mending(), list[int]()
    builder = StateGraph(State).add_node("a", counted(calls), error_handler=handler).add_node("b", says("b"))
    graph = builder.add_edge(START, "a").add_edge(START, "b").compile(saver, name="g")
    with pytest.raises((RuntimeError, RunFailed), match="the handler broke"):
        graph.invoke({"log": []}, on("t"))
    yield graph, handler, calls


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_a_handler_that_fails_fails_the_run_and_only_it_is_repeated(kind: str, request: pytest.FixtureRequest) -> None:
    saver = InMemorySaver() if kind == "memory" else RedisSaver(request.getfixturevalue("redis_url"))
    with failing(saver) as (graph, handler, calls):
        state = graph.get_state(on("t"))
        assert state.next == ("a",) and state.values == {"log": ["b"]}
        assert [(task.name, task.error) for task in state.tasks] == [("a", "ValueError('boom')"), ("b", None)]
        handler.mended = True
        assert graph.invoke(None, on("t")) == {"log": ["handled", "b"]}
        assert calls == [1] and handler.seen == ["ValueError('boom')"] * 2
        assert verify(saver.log, "t").sound


def test_who_has_only_the_log_goes_on_with_the_handler() -> None:
    with failing(InMemorySaver()) as (graph, handler, calls):
        handler.mended = True
        other = InMemorySaver()
        other.log, other.moves = graph.checkpointer.log, LogMoves(graph.checkpointer.log)
        graph.checkpointer = other
        assert graph.invoke(None, on("t")) == {"log": ["handled", "b"]} and calls == [1]


def test_a_new_input_gives_up_a_handler_that_failed() -> None:
    with failing(InMemorySaver()) as (graph, handler, calls):
        handler.mended = True
        assert graph.invoke({"log": ["new"]}, on("t")) == {"log": ["new", "handled", "b"]} and calls == [1, 1]


# -- what is handled, and what is not


@pytest.mark.parametrize("timeout", [0.05, None])
def test_a_timeout_is_handled_and_an_async_handler_is_awaited(timeout: float | None) -> None:
    async def slow(state: State) -> dict[str, Any]:
        await asyncio.sleep(20 if timeout else 0)
        raise KeyError("k")

    async def handler(state: State, *, error: NodeError, config: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        kind = "timeout" if isinstance(error.error, NodeTimeoutError) else f"key {isinstance(error.error, KeyError)}"
        return {"log": [kind, config["metadata"]["langgraph_path"]]}

    builder = StateGraph(State).add_node("slow", slow, error_handler=handler, timeout=timeout).add_edge(START, "slow")
    path = ["__pregel_pull", "slow", "node_error_handler", False]
    told = "timeout" if timeout else "key True"
    assert asyncio.run(builder.compile().ainvoke({"log": []})) == {"log": [told, tuple(path)]}


def test_a_router_that_raises_is_handled_and_its_nodes_update_is_not_written() -> None:
    """LangGraph writes the update, and runs the handler beside it (its issue 8834)."""
    builder = StateGraph(State).add_node("a", says("a"), error_handler=told(OURS)).add_edge(START, "a")
    builder.add_conditional_edges("a", lambda state: boom(state), [END])
    assert builder.compile().invoke({"log": []}) == {"log": ["handled a boom True {'log': []}"]}


def test_writes_that_exclude_each_other_are_nobodys_to_handle() -> None:
    builder = StateGraph(State)
    for name in "ab":
        builder.add_node(name, lambda state: {"x": 1}, error_handler=says("handled")).add_edge(START, name)
    with pytest.raises(Exception, match="can take only one value per step"):
        builder.compile(InMemorySaver()).invoke({"log": []}, on("t"))


def test_a_handler_has_the_defaults_that_make_sense_for_it() -> None:
    builder = StateGraph(State).set_node_defaults(retry_policy=RetryPolicy(), timeout=7, error_handler=says("all"))
    builder.add_node("a", boom, error_handler=says("own"), queue="gpu").add_node("b", boom)
    spec = builder.add_edge(START, "a").add_edge(START, "b").spec()
    assert {name: (node.handler, node.cache) for name, node in spec.nodes.items()} == {
        "a": ("__error_handler__a", None),
        "b": ("__default_error_handler__", None),
    }
    assert {(each.timeout_s, len(each.retry), each.handler) for each in spec.handlers.values()} == {(7, 1, None)}
    assert spec.queue_of("__error_handler__a") == "gpu"


def test_a_node_that_only_a_handler_leads_to_is_reached() -> None:
    def handler(state: State, error: NodeError) -> Command[Literal["b"]]:
        return Command(goto="b")

    builder = StateGraph(State).add_node("a", boom, error_handler=handler).add_node("b", says("b"))
    assert builder.add_edge(START, "a").compile().invoke({"log": []}) == {"log": ["b"]}
    with pytest.raises(GraphError, match="No path from START reaches the node 'b'"):
        StateGraph(State).add_node("a", boom).add_node("b", boom).add_edge(START, "a").compile()


@pytest.mark.parametrize(
    ("add", "told"),
    [
        (lambda graph: graph.add_node("__error_handler__x", boom), "is reserved"),
        (lambda graph: graph.add_node("x", boom, error_handler=7), "is no function"),
        (lambda graph: graph.add_node("x", boom, error_handler=lambda state, other: None), "'other' that nobody gives"),
        (lambda graph: graph.add_node("x", lambda state, error: None), "'error' that nobody gives"),
    ],
)
def test_a_mistake_is_told_while_building(add: Callable[[StateGraph], Any], told: str) -> None:
    with pytest.raises(GraphError, match=told):
        add(StateGraph(State))


# -- the error that a handler gets


def test_an_error_from_the_log_is_of_its_type_where_that_is_known_and_says_the_same() -> None:
    known = raised_again("ValueError", "boom", "Traceback ...")
    assert isinstance(known, ValueError) and isinstance(known, RaisedError)
    assert (str(known), repr(known), known.traceback) == ("boom", "ValueError('boom')", "Traceback ...")
    assert isinstance(raised_again("everstep_checkpoint.errors.NodeTimeoutError", "late"), NodeTimeoutError)
    foreign = raised_again("os.system", "x")
    assert type(foreign) is RaisedError and foreign.error_type == "os.system" and repr(foreign) == "system('x')"
    for error in (known, foreign):
        again = copy.copy(error)
        assert (type(again), str(again)) == (type(error), str(error))


def test_every_known_type_can_be_made() -> None:
    from everstep_scheduler.graph import handling

    for name in handling._KNOWN:
        assert isinstance(raised_again(name, "text"), handling._KNOWN[name])


@pytest.mark.parametrize("timeout", ["soon", "nan", "-1", "1e99"])
def test_a_handlers_timeout_that_is_junk_makes_the_log_corrupt_and_nothing_else(timeout: str) -> None:
    reader = Reader()
    fields = {"v": b"1", "kind": b"task_added", "task": b"h_p0", "timeout_s": timeout.encode()}
    with pytest.raises(CorruptEntry, match="has a timeout of"):
        reader.feed(Entry(1, 2, fields))
