"""What a node is told of its place: the metadata of its config, as LangGraph gives it (`prepare_single_task`). Pure.

the run's metadata ─► langgraph_step, _node, _triggers, _path, _checkpoint_ns ─► the node's own metadata, which wins
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..graph.runtime import START
from ..graph.spec import GraphSpec
from ..moves.contract import HANDLER

PULL, PUSH = "__pregel_pull", "__pregel_push"


def place_of(
    spec: GraphSpec, node: str, task: str, parts: Sequence[tuple[str, int]], step: int, task_id: str, failed: str = ""
) -> dict[str, Any]:
    """Where a task stands, and what its node adds. `parts`: the (id, count)s of its step's Sends. `failed`: the node
    whose failure it handles."""
    sent = _sent_number(task.removeprefix(HANDLER), parts)
    path = (PULL, failed or node) if sent is None else (PUSH, sent, False)
    place = {
        "langgraph_step": step,
        "langgraph_node": node,
        "langgraph_triggers": (PUSH,) if failed or sent is not None else triggers_of(spec, node),
        "langgraph_path": (*path, "node_error_handler", False) if failed else path,
        "langgraph_checkpoint_ns": f"{node}:{task_id}",
    }
    return place | (dict(spec.node(node).metadata) if node in spec.nodes else {})


def triggers_of(spec: GraphSpec, node: str) -> tuple[str, ...]:
    """LangGraph's names of what may trigger a node: its edges, and the joins that lead to it."""
    if node == START:
        return (START,)
    return tuple(sorted([f"branch:to:{node}", *(join.channel for join in spec.joins if join.target == node)]))


def _sent_number(task: str, parts: Sequence[tuple[str, int]]) -> int | None:
    """Which Send of its step a task is, counted from 0; None if it is none."""
    k, found, i = task.removeprefix("s").partition("_")
    if not (task.startswith("s") and found and k.isdigit() and i.isdigit()):
        return None
    before = 0
    for ref, count in parts:
        if ref.rpartition("-")[2] == k:
            break
        before += count
    return before + int(i)
