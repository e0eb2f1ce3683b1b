"""The graphs that fault tests run. Each execution of a node leaves two lines in a journal, so it can be counted.

chain, achain    a -> b -> c, sync and async; a node may wait for a gate (a file) or sleep
wide             Sends to `work`, then `last`; one item may kill its process until a file says that it is mended
frail            one node that fails until a file says that it is mended
flock            `nap` alone, async, for a hundred threads at once
asking           `ask` asks, `tell` says the answer
handled          `a` fails, and its error handler goes on to `c`, beside `b`
nested           a -> child (x -> y) -> z
handing          child (x -> up) -> z, where `up` has a Command for the parent
calling, acalling  a -> call -> z, where the function `call` calls a graph (x -> y)
paying, apaying  `pay` does `charge` once, and says what came of it
shopping         an entrypoint whose task `order` leaves a line, as it does
"""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import aonce, once
from everstep_scheduler.graph.functional import task
from everstep_scheduler.graph.handling import NodeError
from everstep_scheduler.graph.runtime import END, START, Command, Runtime, Send
from everstep_scheduler.inline.entrypoint import entrypoint

LOOK_S = 0.01


class State(TypedDict, total=False):
    """`journal`: the file of lines. `gated`: nodes (`b`, or `b/2`: its second attempt) that wait for the file `gate`,
    or for `gate-<node>`. `naps`: node -> seconds. Each node marks what it wrote, and says whose mark it saw."""

    journal: str
    gate: str
    gated: str
    naps: dict[str, float]
    seen: Annotated[list[str], operator.add]
    mark: str
    marks: Annotated[list[str], operator.add]
    saw: Annotated[list[str], operator.add]
    width: int
    item: int
    killer: int
    mended: str
    results: Annotated[list[int], operator.add]
    sum: int


def note(state: State, runtime: Runtime[Any], node: str, phase: str) -> None:
    """One line, in one write: `thread n node attempt pid phase`. Those who listen to the run are told, too."""
    info = runtime.execution_info
    runtime.stream_writer(f"{node} {info.node_attempt} {phase}")
    n = int((info.checkpoint_id or "0").partition("-")[0])
    line = f"{info.thread_id} {n} {node} {info.node_attempt} {os.getpid()} {phase}\n"
    journal = os.open(state["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(journal, line.encode())
    finally:
        os.close(journal)


def _nap(state: State, node: str) -> float:
    return state.get("naps", {}).get(node, 0.0)


def _closed(state: State, runtime: Runtime[Any], node: str) -> bool:
    gated = state.get("gated", "").split()
    named = node in gated or f"{node}/{runtime.execution_info.node_attempt}" in gated
    return named and not (Path(state["gate"]).exists() or Path(f"{state['gate']}-{node}").exists())


def _wrote(state: State, node: str) -> State:
    mark = f"{node} {os.getpid()} {time.monotonic_ns()}"
    return {"seen": [node], "mark": mark, "marks": [mark], "saw": [state.get("mark", "")]}


def step(node: str) -> Callable[..., State]:
    def work(state: State, runtime: Runtime[Any]) -> State:
        note(state, runtime, node, "in")
        time.sleep(_nap(state, node))
        while _closed(state, runtime, node):
            time.sleep(LOOK_S)
        note(state, runtime, node, "out")
        return _wrote(state, node)

    return work


def astep(node: str) -> Callable[..., Any]:
    async def work(state: State, runtime: Runtime[Any]) -> State:
        note(state, runtime, node, "in")
        await asyncio.sleep(_nap(state, node))
        while _closed(state, runtime, node):
            await asyncio.sleep(LOOK_S)
        note(state, runtime, node, "out")
        return _wrote(state, node)

    return work


def _chain(made: Callable[[str], Callable[..., Any]]) -> StateGraph:
    graph = StateGraph(State)
    graph.add_sequence([(node, made(node)) for node in ("a", "b", "c")])
    graph.add_edge(START, "a")
    graph.add_edge("c", END)
    return graph


def _spread(state: State) -> list[Send]:
    own = {key: value for key, value in state.items() if key not in ("seen", "results", "width", "marks", "saw")}
    return [Send("work", {**own, "item": i}) for i in range(state["width"])]


def _work(state: State, runtime: Runtime[Any]) -> State:
    note(state, runtime, f"work/{state['item']}", "in")
    if state["item"] == state.get("killer") and not Path(state["mended"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(_nap(state, "work"))
    while _closed(state, runtime, f"work/{state['item']}"):
        time.sleep(LOOK_S)
    note(state, runtime, f"work/{state['item']}", "out")
    return {"results": [state["item"]]}


def _last(state: State, runtime: Runtime[Any]) -> State:
    note(state, runtime, "last", "in")
    assert state["results"] == list(range(state["width"])), "results are in task order, none is missing or double"
    return {"sum": sum(state["results"])}


def _wide() -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("work", _work)
    graph.add_node("last", _last)
    graph.add_conditional_edges(START, _spread, ["work"])
    graph.add_edge("work", "last")
    graph.add_edge("last", END)
    return graph


def _frail(state: State, runtime: Runtime[Any]) -> State:
    note(state, runtime, "frail", "in")
    if not Path(state["mended"]).exists():
        raise ValueError("not yet")
    return {"seen": ["frail"]}


def _alone(name: str, node: Callable[..., Any]) -> StateGraph:
    graph = StateGraph(State)
    graph.add_node(name, node)
    graph.add_edge(START, name)
    graph.add_edge(name, END)
    return graph


def _ask(state: State, runtime: Runtime[Any]) -> State:
    note(state, runtime, "ask", "in")
    return {"seen": [interrupt("what?")]}


def _asking() -> StateGraph:
    graph = StateGraph(State).add_node("ask", _ask).add_node("tell", step("tell"))
    return graph.add_edge(START, "ask").add_edge("ask", "tell").add_edge("tell", END)


def _fails(state: State, runtime: Runtime[Any]) -> State:
    note(state, runtime, "a", "in")
    raise ValueError("boom")


def _handles(state: State, runtime: Runtime[Any], error: NodeError) -> Command[Any]:
    note(state, runtime, "handler", "in")
    return Command(update={"seen": [f"{error.node}: {error.error}"]}, goto="c")


def _handled(beside: bool) -> StateGraph:
    graph = StateGraph(State).add_node("a", _fails, error_handler=_handles).add_node("c", step("c"))
    if beside:
        graph.add_node("b", step("b")).add_edge(START, "b")
    return graph.add_edge(START, "a")


handled = _handled(beside=False).compile(name="handled")
handled_beside = _handled(beside=True).compile(name="handled_beside")


def _nested() -> StateGraph:
    inner = StateGraph(State).add_node("x", step("x")).add_node("y", step("y"))
    inner.add_edge(START, "x").add_edge("x", "y")
    graph = StateGraph(State).add_node("a", step("a")).add_node("child", inner.compile()).add_node("z", step("z"))
    return graph.add_edge(START, "a").add_edge("a", "child").add_edge("child", "z").add_edge("z", END)


def _up(state: State, runtime: Runtime[Any]) -> Any:
    note(state, runtime, "up", "in")
    return Command(graph=Command.PARENT, update={"seen": ["up"]}, goto="z")


def _handing() -> StateGraph:
    inner = StateGraph(State).add_node("x", step("x")).add_node("up", _up).add_edge(START, "x").add_edge("x", "up")
    graph = StateGraph(State).add_node("child", inner.compile(), destinations=("z",)).add_node("z", step("z"))
    return graph.add_edge(START, "child")


_called = StateGraph(State).add_node("x", step("x")).add_node("y", step("y")).add_edge(START, "x").add_edge("x", "y")
_acalled = StateGraph(State).add_node("x", astep("x")).add_node("y", astep("y")).add_edge(START, "x")
called, acalled = _called.compile(), _acalled.add_edge("x", "y").compile()
_PASSED = ("journal", "gate", "gated", "naps")


def _call(state: State, runtime: Runtime[Any]) -> State:
    note(state, runtime, "call", "in")
    given: Any = {key: value for key, value in state.items() if key in _PASSED}
    return {"seen": called.invoke(given)["seen"]}


async def _acall(state: State, runtime: Runtime[Any]) -> State:
    note(state, runtime, "call", "in")
    given: Any = {key: value for key, value in state.items() if key in _PASSED}
    return {"seen": (await acalled.ainvoke(given))["seen"]}


def _calling(node: Callable[..., Any]) -> StateGraph:
    graph = StateGraph(State).add_node("a", step("a")).add_node("call", node).add_node("z", step("z"))
    return graph.add_edge(START, "a").add_edge("a", "call").add_edge("call", "z").add_edge("z", END)


def _charge(state: State, runtime: Runtime[Any]) -> str:
    note(state, runtime, "charge", "in")
    return f"receipt of attempt {runtime.execution_info.node_attempt}"


def _pay(state: State, runtime: Runtime[Any]) -> State:
    note(state, runtime, "pay", "in")
    return {"seen": [once("charge", lambda: _charge(state, runtime))]}


async def _apay(state: State, runtime: Runtime[Any]) -> State:
    note(state, runtime, "pay", "in")
    return {"seen": [await aonce("charge", lambda: _charge(state, runtime))]}


calling = _calling(_call).compile(name="calling")
acalling = _calling(_acall).compile(name="acalling")
asking = _asking().compile(name="asking")
chain = _chain(step).compile(name="chain")
achain = _chain(astep).compile(name="achain")
wide = _wide().compile(name="wide")
frail = _alone("frail", _frail).compile(name="frail")
paying = _alone("pay", _pay).compile(name="paying")
apaying = _alone("pay", _apay).compile(name="apaying")


@task
def order(state: State, runtime: Runtime[Any], item: int) -> str:
    note(state, runtime, f"order/{item}", "in")
    return f"order {item} of attempt {runtime.execution_info.node_attempt}"


@entrypoint(name="shopping")
def shopping(state: State, runtime: Runtime[Any]) -> list[str]:
    note(state, runtime, "shopping", "in")
    return [order(state, runtime, item).result() for item in range(2)]


flock = _alone("nap", astep("nap")).compile(name="flock")
handing = _handing().compile(name="handing")
nested = _nested().compile(name="nested")
