"""Streams are LangGraph's: the same graph in both gives the same chunks, inline, on Redis and on workers.

Ids and times are made the same; chunks of one superstep are compared as a multiset, for tasks end in any order.
"""

from __future__ import annotations

import asyncio
import operator
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.config import get_stream_writer as oracle_writer
from langgraph.graph import StateGraph as OracleGraph
from langgraph.graph.message import add_messages as oracle_messages
from langgraph.runtime import Runtime as OracleRuntime
from langgraph.types import Command as OracleCommand
from langgraph.types import RetryPolicy as OracleRetry
from langgraph.types import Send as OracleSend
from langgraph.types import interrupt as oracle_interrupt
from pydantic import BaseModel

from everstep_checkpoint.errors import InvalidInput, OutsideNode
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.asking import get_stream_writer, interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.messages import add_messages
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Command, Runtime, Send
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from hand import working

OURS = SimpleNamespace(
    StateGraph=StateGraph, Send=Send, Command=Command, Runtime=Runtime, RetryPolicy=RetryPolicy,
    get_stream_writer=get_stream_writer, add_messages=add_messages, interrupt=interrupt,
)  # fmt: skip
THEIRS = SimpleNamespace(
    StateGraph=OracleGraph, Send=OracleSend, Command=OracleCommand, Runtime=OracleRuntime, RetryPolicy=OracleRetry,
    get_stream_writer=oracle_writer, add_messages=oracle_messages, interrupt=oracle_interrupt,
)  # fmt: skip
LOG_MODES = ["values", "updates", "checkpoints", "tasks", "debug"]
ALL_MODES = [*LOG_MODES, "custom", "messages"]


class State(TypedDict, total=False):
    count: int
    xs: Annotated[list[Any], operator.add]


class Model(BaseModel):
    count: int = 0
    xs: Annotated[list[Any], operator.add] = []


class Output(TypedDict, total=False):
    xs: Annotated[list[Any], operator.add]


class Chat(TypedDict):
    messages: Annotated[list[Any], add_messages]


class TheirChat(TypedDict):
    messages: Annotated[list[Any], oracle_messages]


class Private(TypedDict, total=False):
    secret: int


# -- the graphs, each in both


def counting(lib: Any) -> Any:
    def check(state: State) -> dict[str, Any]:
        return {"xs": [state["count"]]}

    builder = lib.StateGraph(State)
    builder.add_node("inc", lambda state: {"count": state["count"] + 1}, metadata={"team": "red"})
    builder.add_node("check", check)
    builder.add_edge(START, "inc")
    builder.add_edge("inc", "check")
    builder.add_conditional_edges("check", lambda state: END if state["count"] >= 3 else "inc", ["inc", END])
    return builder


def joined(lib: Any) -> Any:
    builder = lib.StateGraph(State)
    for name in "abz":
        builder.add_node(name, lambda state, name=name: {"xs": [name]})
    builder.add_node("j", lambda state: None)
    builder.add_edge(START, "z")
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    builder.add_edge(["b", "z"], "j")
    return builder


def commanding(lib: Any) -> Any:
    Command = lib.Command

    def several(state: State) -> Any:
        return [Command(update={"xs": [1]}, goto="quiet"), Command(update={"xs": [2]}), {"count": 5}]

    builder = lib.StateGraph(State)
    builder.add_node("several", several, **({"destinations": ("quiet",)} if lib is OURS else {}))
    builder.add_node("quiet", lambda state: None)
    builder.add_edge(START, "several")
    return builder


def sending(lib: Any, bad: bool = False) -> Any:
    def also(state: State) -> dict[str, Any]:
        if bad:
            raise ZeroDivisionError("division by zero")
        return {"xs": ["also"]}

    builder = lib.StateGraph(State)
    builder.add_node("split", lambda state: {"count": 1})
    builder.add_node("part", lambda arg: {"xs": [arg]})
    builder.add_node("also", also)
    builder.add_edge(START, "split")
    builder.add_edge("split", "also")
    args = [1, [2, 3], {"x": 4}]
    builder.add_conditional_edges("split", lambda state: [lib.Send("part", arg) for arg in args], ["part"])
    return builder


def failing(lib: Any) -> Any:
    return sending(lib, bad=True)


def modelled(lib: Any) -> Any:
    builder = lib.StateGraph(Model, output_schema=Output)

    def writes(state: Model) -> dict[str, Any]:
        return {"count": state.count + 1, "secret": 3}

    def reads(state: Private) -> dict[str, Any]:
        return {"xs": [state["secret"]]}

    builder.add_node("writes", writes)
    builder.add_node("reads", reads, input_schema=Private)
    builder.add_node("hides", lambda state: {"secret": 4})
    builder.add_edge(START, "writes")
    builder.add_edge("writes", "reads")
    builder.add_edge("reads", "hides")
    return builder


def excluding(lib: Any) -> Any:
    builder = lib.StateGraph(State)
    builder.add_node("a", lambda state: {"count": 1})
    builder.add_node("b", lambda state: {"count": 2})
    builder.add_edge(START, "a")
    builder.add_edge(START, "b")
    return builder


def retried(lib: Any) -> Any:
    tries: list[int] = []

    def flaky(state: State) -> dict[str, Any]:
        tries.append(1)
        if len(tries) % 2:
            raise ValueError("once more")
        return {"count": 9}

    policy = lib.RetryPolicy(initial_interval=0.01, retry_on=ValueError, jitter=False)
    builder = lib.StateGraph(State)
    builder.add_node("flaky", flaky, retry_policy=policy)
    builder.add_edge(START, "flaky")
    return builder


def asking(lib: Any) -> Any:
    def ask(state: State) -> dict[str, Any]:
        first = lib.interrupt("the first")
        return {"xs": [first, lib.interrupt("the second")]}

    builder = lib.StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_node("beside", lambda state: {"xs": ["beside"]})
    builder.add_node("last", lambda state: {"count": 9})
    builder.add_edge(START, "ask")
    builder.add_edge(START, "beside")
    builder.add_edge("ask", "last")
    return builder


def answer(value: Any) -> Callable[[Any], Any]:
    return lambda lib: lib.Command(resume=value)


def talking(lib: Any) -> Any:
    """Chat models found by themselves, and given the config; messages returned; writers."""

    def tokens(state: Any) -> dict[str, Any]:
        lib.get_stream_writer()({"told": (1, 2)})
        model = GenericFakeChatModel(messages=iter([AIMessage("hello big world")]))
        return {"messages": [model.invoke(state["messages"])]}

    def handed(state: Any, config: RunnableConfig) -> dict[str, Any]:
        model = FakeListChatModel(responses=["abc"]).with_config(tags=["mine"])
        return {"messages": model.invoke(state["messages"], config)}

    def silent(state: Any) -> None:
        FakeListChatModel(responses=["xyz"]).with_config(tags=["nostream"]).invoke(state["messages"])

    def static(state: Any, runtime: Any) -> dict[str, Any]:
        runtime.stream_writer("plain text")
        return {"messages": [AIMessage("static"), state["messages"][0]]}

    def commands(state: Any) -> Any:
        return [lib.Command(update={"messages": [AIMessage("by command")]}), {"messages": AIMessage("beside it")}]

    static.__annotations__["runtime"] = lib.Runtime
    nodes = (tokens, handed, silent, static)
    builder = lib.StateGraph(Chat if lib is OURS else TheirChat)
    for node in (*nodes, commands):
        builder.add_node(node.__name__, node, metadata={"of": node.__name__})
    builder.add_edge(START, "tokens")
    for a, b in pairwise(nodes):
        builder.add_edge(a.__name__, b.__name__)
    builder.add_conditional_edges("static", lambda state: [lib.Send("commands", {"messages": []})], ["commands"])
    return builder


@dataclass(frozen=True)
class Case:
    """A graph, how it is compiled, and the inputs of its runs on one thread, each with its config."""

    build: Callable[[Any], Any]
    inputs: tuple[Any, ...] = ({"count": 0},)
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    configurable: dict[str, Any] = field(default_factory=dict[str, Any])
    compiled: dict[str, Any] = field(default_factory=dict[str, Any])


# LangGraph gives up siblings of a node that failed; here they always end. One after the other they do in both.
ASKED = 3
ONE_BY_ONE = {"max_concurrency": 1}
CASES = {
    "counting, twice": Case(counting, ({"count": 0}, {"count": 2})),
    "told by its config": Case(
        counting, config={"metadata": {"who": "me"}, "tags": ["t1"]}, configurable={"user": "u", "n": 3}
    ),
    "nothing to continue": Case(counting, ({"count": 0}, None)),
    "a join": Case(joined),
    "commands": Case(commanding),
    "sends": Case(sending),
    "a node that fails, and goes on": Case(failing, ({"count": 0}, None, {"count": 7}), ONE_BY_ONE),
    "a pydantic state, private keys, an output": Case(modelled),
    "writes that exclude each other": Case(excluding),
    "a retry": Case(retried),
    "the limit, and on from there": Case(counting, ({"count": 0}, None), config={"recursion_limit": 4}),
    "an empty input": Case(joined, ({},)),
    "questions": Case(asking, ({"count": 0}, None, answer(1), answer(2))),
    "a breakpoint before": Case(joined, ({"count": 0}, None), compiled={"interrupt_before": ["b", "j"]}),
    "a breakpoint after": Case(joined, ({"count": 0}, None, None), compiled={"interrupt_after": ["a", "b"]}),
    "chat": Case(
        talking,
        ({"messages": [HumanMessage("hi", id="h1")]},),
        config={"metadata": {"who": "me"}},
        configurable={"user": "u"},
    ),
}

KNOWN = {"task_id", "attempt", "lc_versions"}  # ours beyond LangGraph's, and what another order of imports changes
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[A-Za-z0-9_-]{43}")


class Names:
    """Ids by the order in which they are met."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def same(self, value: Any, key: str = "") -> Any:
        """The value with its ids and times made comparable."""
        if key == "timestamp":
            return "time"
        if key in ("id", "checkpoint_id") and value is not None:
            return self._seen.setdefault(str(value), f"id{len(self._seen)}")
        if isinstance(value, dict):
            return {k: self.same(v, k) for k, v in sorted(value.items()) if k not in KNOWN}
        if isinstance(value, (list, tuple)):
            kept = [self.same(v, key if key == "tags" else "") for v in value]
            return kept if isinstance(value, list) else tuple(kept)
        if isinstance(value, Exception):
            return repr(value)
        if hasattr(value, "response_schema"):
            return f"Interrupt({value.value!r})"
        if hasattr(value, "model_copy") and hasattr(value, "content"):
            return f"{type(value).__name__}({value.content!r})"
        if isinstance(value, str):
            return _UUID.sub("id", value)
        return value


def in_order(chunks: list[Any]) -> list[Any]:
    """Chunks with those between two checkpoints sorted; what a checkpoint lists stays as it is."""
    steps: list[list[Any]] = [[]]
    for mode, chunk in chunks:
        steps[-1].append((mode, chunk))
        if mode in ("checkpoints", "values"):
            steps.append([])
    return [sorted(map(repr, step)) for step in steps]


def streamed(lib: Any, graph: Any, case: Case, modes: Any, **more: Any) -> list[Any]:
    """The chunks of all runs of a case, and how each ended."""
    found: list[Any] = []
    for data in case.inputs:
        config = {**case.config, "configurable": {"thread_id": "t", **case.configurable}}
        try:
            given = data(lib) if callable(data) else data
            for chunk in graph.stream(given, config, stream_mode=modes, **more):
                found.append(chunk if isinstance(modes, list) else (modes, chunk))
        except Exception as error:  # noqa: BLE001 - both must end alike
            found.append(("ended", "Recursion" if "Recursion" in type(error).__name__ else "raised"))
    names = Names()
    return in_order([(mode, names.same(without_ids(chunk))) for mode, chunk in found])


def without_ids(chunk: Any) -> Any:
    """Ids within one step come in the order of its tasks, which is anybody's: only that they are there is compared."""
    if isinstance(chunk, dict):
        return {k: ("an id" if k in ("id", "checkpoint_id") and v else without_ids(v)) for k, v in chunk.items()}
    if isinstance(chunk, list):
        return [without_ids(each) for each in chunk]
    return chunk


def oracle(case: Case, modes: Any) -> list[Any]:
    if case.config == ONE_BY_ONE and {"custom", "messages"} & {*([modes] if isinstance(modes, str) else modes)}:
        case = replace(case, config={"max_concurrency": 2})  # its stream waits in one of them
    graph = case.build(THEIRS).compile(checkpointer=OracleSaver(), **case.compiled)
    return streamed(THEIRS, graph, case, modes, durability="sync")


def assert_langgraphs(ours: list[Any], case: Case, modes: Any) -> None:
    """On a busy machine it may be that LangGraph tells what a task did before its sibling failed, or not: asked again,
    it must tell what we do."""
    if not any(ours == oracle(case, modes) for _ in range(ASKED)):
        assert ours == oracle(case, modes)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["memory", "redis", "workers"])
def test_all_modes_at_once_are_langgraphs(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    assert_langgraphs(streamed_on(kind, case, ALL_MODES, request), case, ALL_MODES)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize(
    "name", ["counting, twice", "a node that fails, and goes on", "questions", "a breakpoint before", "chat"]
)
def test_each_mode_alone_is_langgraphs(name: str, mode: str, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    assert_langgraphs(streamed_on("memory", case, mode, request), case, mode)
    assert_langgraphs(streamed_on("workers", case, mode, request), case, mode)


def streamed_on(kind: str, case: Case, modes: Any, request: pytest.FixtureRequest) -> list[Any]:
    made = case.build(OURS)
    if kind == "memory":
        return streamed(OURS, made.compile(checkpointer=InMemorySaver(), name="g", **case.compiled), case, modes)
    url = request.getfixturevalue("redis_url")
    compiled = made.compile(checkpointer=RedisSaver(url), name="g", **case.compiled)
    if kind == "redis":
        return streamed(OURS, compiled, case, modes)
    with working(url, ("g", compiled)), connect(url) as client:
        return streamed(OURS, client.graph("g", compiled), case, modes, timeout=20)


@pytest.mark.parametrize("kind", ["memory", "workers"])
@pytest.mark.parametrize("given", [None, {"count": 7}], ids=["a replay", "an input"])
def test_a_run_at_an_earlier_checkpoint_streams_as_langgraphs_does(
    kind: str, given: Any, request: pytest.FixtureRequest
) -> None:
    def again(lib: Any, graph: Any, **more: Any) -> list[Any]:
        thread = {"configurable": {"thread_id": "t"}}
        graph.invoke({"count": 1}, thread, **more)
        old = next(x for x in graph.get_state_history(thread) if x.next == ("check",) and x.values["count"] == 2)
        names = Names()
        found = graph.stream(given, old.config, stream_mode=ALL_MODES, **more)
        return in_order([(mode, names.same(without_ids(chunk))) for mode, chunk in found])

    wanted = again(THEIRS, counting(THEIRS).compile(checkpointer=OracleSaver()), durability="sync")
    if kind == "memory":
        assert again(OURS, counting(OURS).compile(checkpointer=InMemorySaver(), name="g")) == wanted
        return
    url, compiled = request.getfixturevalue("redis_url"), counting(OURS).compile(name="g")
    with working(url, ("g", compiled)), connect(url) as client:
        assert again(OURS, client.graph("g", compiled), timeout=20) == wanted


@pytest.mark.parametrize("modes", [["values", "updates"], "updates", ["tasks", "checkpoints"]])
def test_invoke_shows_the_keys_of_the_output(modes: Any, redis_url: str) -> None:
    config = {"configurable": {"thread_id": "t"}}
    theirs = modelled(THEIRS).compile(checkpointer=OracleSaver())
    wanted = [without_ids(x) for x in theirs.invoke({"count": 0}, config, stream_mode=modes, durability="sync")]
    ours = modelled(OURS).compile(checkpointer=InMemorySaver(), name="g")
    names = Names()
    told = ours.invoke({"count": 0}, config, stream_mode=modes)
    assert [names.same(untagged(x)) for x in told] == [names.same(untagged(x)) for x in wanted]
    with working(redis_url, ("g", modelled(OURS))), connect(redis_url) as client:
        told = client.graph("g", ours).invoke({"count": 0}, config, stream_mode=modes, timeout=10)
        assert [names.same(untagged(x)) for x in told] == [names.same(untagged(x)) for x in wanted]


def untagged(chunk: Any) -> Any:
    return (chunk[0], without_ids(chunk[1])) if isinstance(chunk, tuple) else without_ids(chunk)


def test_async_nodes_and_callers_stream_what_sync_ones_do() -> None:
    def build(lib: Any) -> Any:
        async def tells(state: State) -> dict[str, Any]:
            for i in range(3):
                await asyncio.sleep(0)
                lib.get_stream_writer()(i)
            model = GenericFakeChatModel(messages=iter([AIMessage("one two")]))
            answer = await model.ainvoke([HumanMessage("hi", id="h")])
            return {"xs": [answer.content]}

        builder = lib.StateGraph(State)
        builder.add_node("tells", tells)
        builder.add_edge(START, "tells")
        return builder

    async def told(graph: Any, **more: Any) -> list[Any]:
        config = {"configurable": {"thread_id": "t"}}
        stream = graph.astream({"count": 0}, config, stream_mode=["custom", "messages", "updates"], **more)
        names = Names()
        return [(mode, names.same(chunk)) async for mode, chunk in stream]

    ours = asyncio.run(told(build(OURS).compile(checkpointer=InMemorySaver(), name="g")))
    theirs = asyncio.run(told(build(THEIRS).compile(checkpointer=OracleSaver()), durability="sync"))
    assert ours == theirs


def test_chunks_come_while_the_node_still_runs() -> None:
    import threading

    heard = threading.Event()

    def slow(state: State) -> State:
        get_stream_writer()("begun")
        assert heard.wait(10), "what was told reaches the caller before the node ends"
        return {"count": 1}

    builder = StateGraph(State)
    builder.add_node("slow", slow)
    builder.add_edge(START, "slow")
    chunks: list[Any] = []
    for chunk in builder.compile(name="g").stream({"count": 0}, stream_mode="custom"):
        chunks.append(chunk)
        heard.set()
    assert chunks == ["begun"]


def test_plain_messages_that_nodes_return_are_told() -> None:
    """LangGraph tells message objects only; here dicts stay dicts, so they are told too."""

    builder = StateGraph(Chat)
    builder.add_node("say", lambda state: {"messages": [{"role": "assistant", "content": "hi", "id": "1"}]})
    builder.add_node("again", lambda state: {"messages": [state["messages"][0], {"role": "user", "content": "so"}]})
    builder.add_edge(START, "say")
    builder.add_edge("say", "again")
    told = list(builder.compile(name="g").stream({"messages": []}, stream_mode="messages"))
    assert [(message["content"], metadata["langgraph_node"]) for message, metadata in told] == [
        ("hi", "say"),
        ("so", "again"),
    ]


def test_messages_need_no_langchain() -> None:
    code = """
import sys
sys.modules["langchain_core"] = None
from everstep import MessagesState, START, StateGraph, get_stream_writer
def say(state):
    get_stream_writer()("words")
    return {"messages": [{"role": "assistant", "content": "hi"}]}
builder = StateGraph(MessagesState).add_node("say", say).add_edge(START, "say")
for mode, chunk in builder.compile(name="g").stream({"messages": []}, stream_mode=["messages", "custom"]):
    print(mode, chunk[0]["content"] if mode == "messages" else chunk)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["custom words", "messages hi"]


def test_langchain_is_not_loaded_for_those_who_do_not_stream_messages() -> None:
    code = """
import sys
from everstep import START, MessagesState, StateGraph
builder = StateGraph(MessagesState).add_node("say", lambda s: {"messages": [{"role": "user", "content": "hi"}]})
list(builder.add_edge(START, "say").compile(name="g").stream({"messages": []}, stream_mode=["values", "custom"]))
print(sorted(name for name in sys.modules if name.startswith("langchain")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_graph_without_a_checkpointer_tells_no_checkpoints() -> None:
    modes = ["checkpoints", "debug"]
    mine = list(counting(OURS).compile(name="g").stream({"count": 2}, stream_mode=modes))
    his = list(counting(THEIRS).compile().stream({"count": 2}, stream_mode=modes))
    assert [(mode, chunk["type"]) for mode, chunk in mine] == [(mode, chunk["type"]) for mode, chunk in his]


def test_what_can_not_be_streamed_is_refused_at_once() -> None:
    graph = counting(OURS).compile(checkpointer=InMemorySaver(), name="g")
    config = {"configurable": {"thread_id": "t"}}
    for call in (graph.invoke, lambda *args, **more: list(graph.stream(*args, **more))):
        with pytest.raises(InvalidInput, match="no stream mode 'vlaues'"):
            call({"count": 0}, config, stream_mode=["updates", "vlaues"])
    assert graph.get_state(config).values == {}, "nothing was begun"


def test_a_writer_outside_a_node_is_refused_and_unheard_within_one_is_harmless() -> None:
    with pytest.raises(OutsideNode, match="no node runs"):
        get_stream_writer()

    def tells(state: State, runtime: Runtime[Any]) -> State:
        get_stream_writer()("nobody")
        runtime.stream_writer(object())
        return {"count": 1}

    builder = StateGraph(State)
    builder.add_node("tells", tells)
    builder.add_edge(START, "tells")
    assert builder.compile(name="g").invoke({"count": 0})["count"] == 1


@pytest.fixture(autouse=True)
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    yield
