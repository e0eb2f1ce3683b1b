"""LangGraph's own loop in one process, `durability="sync"`, with its saver in memory, in SQLite or in PostgreSQL."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, TypedDict

import chain
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages


class State(TypedDict, total=False):
    count: int
    blob: bytes


class Chat(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]


def saver(store: str) -> AbstractContextManager[Any]:
    if store == "memory":
        from langgraph.checkpoint.memory import InMemorySaver

        return nullcontext(InMemorySaver())
    if store == "sqlite":
        from langgraph.checkpoint.sqlite import SqliteSaver

        return SqliteSaver.from_conn_string(os.path.join(tempfile.mkdtemp(dir=os.environ["TMPDIR"]), "saver.db"))
    from langgraph.checkpoint.postgres import PostgresSaver

    return PostgresSaver.from_conn_string(store)


def node(number: int) -> Callable[[State], State]:
    def step(state: State) -> State:
        chain.note(number)
        return {"count": state["count"] + 1, "blob": chain.blob()}

    return step


def compiled(saves: Any) -> Any:
    built: Any = StateGraph(State)
    built.add_sequence([(f"n{i}", node(i)) for i in range(chain.LENGTH)])
    built.add_edge(START, "n0")
    built.add_edge(f"n{chain.LENGTH - 1}", END)
    return built.compile(checkpointer=saves)


def runs(graph: Any, count: int, name: str) -> None:
    for i in range(count):
        config = {"configurable": {"thread_id": f"{name}{i}"}}
        graph.invoke({"count": 0, "blob": chain.blob()}, config, durability="sync")


def chat(saves: Any, turns: int) -> tuple[float, float]:
    """Milliseconds of a turn around the tenth and of one at the end, with `add_messages` on what langchain makes of
    dicts."""
    from langgraph.graph import END, START, StateGraph

    def said(role: str, number: int) -> dict[str, str]:
        return {"role": role, "content": os.urandom(chain.PAYLOAD // 2).hex(), "id": f"{role}-{number}"}

    def answer(state: Chat) -> Chat:
        return {"messages": [said("assistant", len(state["messages"]))]}

    built: Any = StateGraph(Chat)
    built.add_node("answer", answer)
    built.add_edge(START, "answer")
    built.add_edge("answer", END)
    graph, took = built.compile(checkpointer=saves), []
    for i in range(turns):
        began = time.perf_counter()
        config = {"configurable": {"thread_id": "chat"}}
        graph.invoke({"messages": [said("user", i)]}, config, durability="sync")
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took[5:15]), statistics.median(took[-10:])


def main() -> None:
    said = chain.order()
    with saver(said["store"]) as saves:
        if hasattr(saves, "setup"):
            saves.setup()
        graph = compiled(saves)
        runs(graph, 1, "warm")
        lone = chain.taken(lambda: runs(graph, said["runs"], "lone"))
        many = chain.taken(lambda: runs(graph, said["chains"], "many"))
        more: dict[str, float] = {}
        if said["turns"]:
            more["early_ms"], more["late_ms"] = chat(saves, said["turns"])
        chain.tell(step_us=chain.step_us(lone), steps_s=chain.steps_s(many, said["chains"]), **more)


if __name__ == "__main__":
    main()
