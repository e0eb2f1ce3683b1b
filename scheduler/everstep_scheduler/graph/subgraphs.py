"""Graphs in graphs: a compiled graph as a node, its name within the whole, and where its runs are kept. Pure.

add_node("child", compiled) ──► NodeSpec(graph=its spec, keeps=None | True | False)
spec.nested["child"]        ──► the same graph as `parent.child`, on the parent's queue
child_thread(...)           ──► `<thread>|child:<22 characters>`, or `<thread>|child` where it keeps its state
                                `within|<thread>|node:<22 characters>` of a graph that a node's function calls
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from inspect import getclosurevars
from types import FunctionType
from typing import TYPE_CHECKING, Any

from everstep_checkpoint.errors import GraphError
from everstep_checkpoint.keys import THREAD_ID_MAX, WITHIN, is_within

from .callables import carrier

if TYPE_CHECKING:
    from .spec import GraphSpec

KEY_CHARACTERS = 22
SEEN_DEPTH = 3  # tasks that call tasks are followed so far


def compiled_spec(action: object) -> tuple[GraphSpec, bool | None] | None:
    """The spec of a compiled graph, and how it keeps its state; None for anything else. Raises GraphError for one that
    only stands for a graph elsewhere."""
    from .spec import GraphSpec

    spec: Any = getattr(action, "spec", None)
    if hasattr(type(action), "manifest"):  # a RemoteGraph
        raise GraphError(
            "a client's graph can't be a node: its worker would wait for another one", fix="pass the compiled graph"
        )
    return (spec, getattr(action, "keeps", None)) if isinstance(spec, GraphSpec) else None


def graphs_seen_by(function: Any, depth: int = SEEN_DEPTH) -> list[Any]:
    """The compiled graphs that a function, or a `@task` that it calls, can call: as far as the names in its code tell.
    Nothing is run; those with checkpointer=False are left out, for nothing is kept of them."""
    from .spec import GraphSpec

    function = getattr(function, "__wrapped__", function)
    function = carrier(function)
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return []
    names, found = getclosurevars(function), list[Any]()
    for each in [*names.nonlocals.values(), *names.globals.values()]:
        if isinstance(getattr(each, "spec", None), GraphSpec) and getattr(each, "keeps", False) is not False:
            found.append(each)
        elif depth and isinstance(getattr(each, "func", None), FunctionType) and hasattr(each, "__wrapped__"):
            found += graphs_seen_by(each, depth - 1)
    return found


def nested_in(parent: GraphSpec, node: str, child: GraphSpec) -> GraphSpec:
    """A node's graph as it runs within another: under its own name there, on the parent's queue, with its context. All
    have the types of the outermost one, which knows them all: a type has one name throughout."""
    return replace(
        child, name=f"{parent.name}.{node}", home=parent.default_queue, registry=parent.registry,
        context_schema=child.context_schema or parent.context_schema,
    )  # fmt: skip


def types_in(graphs: Iterable[GraphSpec | None]) -> list[type]:
    """The registered types of these graphs."""
    return [cls for graph in graphs if graph is not None for cls in graph.registry.names().values()]


def child_thread(thread: str, node: str, key: str, keeps: bool | None) -> str:
    """The thread of what a task calls. `key`: the task's idempotency key. Hashed where it would be too long."""
    return _fitting(f"{thread}|{node}" if keeps else f"{thread}|{node}:{key[:KEY_CHARACTERS]}")


def within_thread(thread: str) -> str:
    """Where the threads begin that attempts at this thread's tasks keep."""
    return thread if is_within(thread) else _fitting(WITHIN + thread)


def nth_thread(thread: str, index: int) -> str:
    """The thread of a task's call of a graph: the first one's is the task's own, those behind it are numbered."""
    return _fitting(f"{thread}#{index}") if index else thread


def _fitting(name: str) -> str:
    raw = name.encode("utf-8", "surrogatepass")
    if len(raw) <= THREAD_ID_MAX:
        return name
    hashed = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
    return f"{WITHIN if is_within(name) else ''}|{hashed}"
