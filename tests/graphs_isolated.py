"""Graphs with isolated nodes. Their process imports this module by its name."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from everstep_scheduler.graph.asking import get_stream_writer, interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.current import get_config
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.functional import task
from everstep_scheduler.graph.handling import NodeError
from everstep_scheduler.graph.kinds import Overwrite
from everstep_scheduler.graph.options import TimeoutPolicy
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Command, Runtime, Send


@dataclass
class Point:
    """`y`: the process that made it."""

    x: int
    y: int = 0


class State(TypedDict, total=False):
    """`pids`: a file of the processes that ran the node, one a line. `how`: what the node does."""

    pids: str
    how: str
    point: Point
    seen: Annotated[list[str], operator.add]
    total: Annotated[int, operator.add]


class Custom(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def note(state: State) -> None:
    with Path(state["pids"]).open("a") as file:
        file.write(f"{os.getpid()}\n")


def spins(state: State) -> State:
    """Never lets go, in its first attempt."""
    note(state)
    if len(Path(state["pids"]).read_text().split()) == 1:
        while True:
            pass
    return {"seen": ["went on"]}


def hangs(state: State) -> State:
    """Begins a process of its own, and hangs; SIGTERM does not move it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    began = subprocess.Popen(["sleep", "600"])
    with Path(state["pids"]).open("a") as file:
        file.write(f"{began.pid}\n{os.getpid()}\n")
    get_stream_writer()("hanging")
    while True:
        pass


def dies(state: State) -> State:
    match state["how"]:
        case "exit":
            os._exit(17)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "quit":
            raise SystemExit(3)
        case "holding":  # what it began has the pipes, too
            if not os.fork():
                time.sleep(600)
            os._exit(18)
        case _:
            raise Custom(1, 2)
    return {}


def speaks_on(state: State, runtime: Runtime[Any]) -> State:
    """Begins a daemon that has the pipes, and speaks in them for half a minute; then dies, or hangs."""
    end = time.monotonic() + 30
    if not os.fork():
        os.setsid()
        with suppress(BaseException):
            note(state)
            while time.monotonic() < end:
                runtime.heartbeat()
                runtime.stream_writer("still here")
        os._exit(0)
    while not Path(state["pids"]).exists():
        time.sleep(0.01)
    if state["how"] == "exit":
        os._exit(19)
    time.sleep(600)
    return {}


def works(state: State, config: Any, runtime: Runtime[Any]) -> Command[Any]:
    assert get_config()["configurable"]["thread_id"] == config["configurable"]["thread_id"]
    runtime.stream_writer({"halfway": state["point"]})
    get_stream_writer()("nearly")
    print("what a node prints is printed")
    point = Point(state["point"].x + 1, os.getpid())
    said = {"point": point, "seen": [f"{runtime.idempotency_key[:1] != ''} {runtime.context}"], "total": 2}
    return Command(update=said, goto=[Send("item", {"n": 4, "point": point}), "plain"])


def item(arg: dict[str, Any]) -> list[Any]:
    assert isinstance(arg["point"], Point)
    return [{"total": arg["n"]}, Command(update={"seen": ["item"]})]


def beats(state: State, runtime: Runtime[Any]) -> State:
    for _ in range(5):
        time.sleep(0.02)
        runtime.heartbeat()
    time.sleep(0.02)
    runtime.stream_writer("nobody listens")
    return {"seen": ["beaten"]}


@task
def work() -> int:
    return 1


def asks(state: State) -> State:
    match state["how"]:
        case "interrupt":
            interrupt("well?")
        case "once":
            once("key", lambda: 1)
        case "task":
            work()
        case "graph":
            plain_graph.invoke({"seen": []})
        case _:
            return {"seen": [object()]}  # type: ignore[list-item]
    return {}


def handled(state: State, error: NodeError) -> Command[Any]:
    return Command(update={"seen": [f"{error.node}: {error.error}"]})


async def routed(state: State) -> str:
    return END


def chain(name: str, fn: Any, **told: Any) -> Any:
    built = StateGraph(State)
    built.add_node("node", fn, isolate=True, **told)
    return built.add_edge(START, "node").add_edge("node", END).spec(name)


def of_works() -> StateGraph:
    built = StateGraph(State)
    built.add_node("works", works, isolate=True, destinations=["item", "plain"])
    built.add_node("item", item, isolate=True)
    built.add_node("plain", lambda state: {"seen": ["plain"], "total": Overwrite(state["total"])})
    return built.add_edge(START, "works")


AGAIN = RetryPolicy(initial_interval=0.0, jitter=False, max_attempts=2)
CUSTOM = RetryPolicy(initial_interval=0.0, jitter=False, max_attempts=2, retry_on=Custom)
plain_graph = StateGraph(State).add_node("plain", lambda state: {}).add_edge(START, "plain").compile()
hanging = StateGraph(State).add_node("node", hangs, isolate=True).add_edge(START, "node").compile()
spinning = chain("spinning", spins, timeout=4.0, retry_policy=AGAIN)
idling = chain("idling", spins, timeout=TimeoutPolicy(idle_timeout=4.0), error_handler=handled)
beating = chain("beating", beats, timeout=TimeoutPolicy(idle_timeout=30.0))
dying = chain("dying", dies)
asking = chain("asking", asks)


def of_calling(timeout: float | None = None) -> StateGraph:
    """Its node, a plain function, calls a graph that calls another one, whose node hangs in a process of its own."""
    deepest = StateGraph(State).add_node("node", hangs, isolate=True, timeout=timeout).add_edge(START, "node").compile()
    middle = (
        StateGraph(State).add_node("middle", lambda state: deepest.invoke(state)).add_edge(START, "middle").compile()
    )
    return StateGraph(State).add_node("calls", lambda state: middle.invoke(state)).add_edge(START, "calls")


def of_calling_async() -> StateGraph:
    """The same on an event loop."""

    async def calls(state: State) -> State:
        return await hanging.ainvoke(state)  # type: ignore[no-any-return]

    return StateGraph(State).add_node("calls", calls).add_edge(START, "calls")
