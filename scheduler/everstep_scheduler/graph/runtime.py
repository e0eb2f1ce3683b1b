"""The small public types that a graph's code meets: START, END, Send, Runtime.

Names and meaning are LangGraph's (`langgraph.types`, `langgraph.runtime`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

ContextT = TypeVar("ContextT")

START = "__start__"
END = "__end__"
RESERVED = (START, END)


@dataclass(frozen=True)
class Send:
    """A packet for one node in the next superstep: the node runs with `arg` instead of the state.

    One task per packet, never merged with another. `arg` reaches the node as it is (a dict stays a dict).
    """

    node: str
    arg: Any


@dataclass(frozen=True, slots=True)
class ExecutionInfo:
    """Where an attempt stands. `task_id` is the same over all attempts; attempts are counted from 1."""

    checkpoint_id: str = ""
    checkpoint_ns: str = ""
    task_id: str = ""
    thread_id: str | None = None
    run_id: str | None = None
    node_attempt: int = 1
    node_first_attempt_time: float | None = None


@dataclass(frozen=True, slots=True)
class Runtime(Generic[ContextT]):
    """What a node gets as its `runtime` parameter.

    `context` is the run's own data (`context_schema` says its type). `idempotency_key` is the same over all
    attempts of this task and differs for every other: hand it to services whose calls must not be doubled.
    """

    context: ContextT = None  # type: ignore[assignment]
    execution_info: ExecutionInfo = field(default_factory=ExecutionInfo)
    idempotency_key: str = ""

    def override(self, **changes: Any) -> Runtime[ContextT]:
        """A copy with some fields replaced."""
        return replace(self, **changes)
