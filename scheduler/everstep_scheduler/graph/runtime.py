"""The small public types that a graph's code meets: START, END, Send, Command, Runtime.

Names and meaning are LangGraph's (`langgraph.types`, `langgraph.runtime`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar

from everstep_checkpoint.entries import TIMEOUT_MAX_S
from everstep_checkpoint.errors import GraphError

from .writing import StreamWriter, unheard

ContextT = TypeVar("ContextT")
NodeT = TypeVar("NodeT")

START = "__start__"
END = "__end__"
RESERVED = (START, END)


@dataclass(frozen=True)
class Send:
    """A packet for one node in the next superstep: the node runs with `arg` instead of the state.

    One task per packet, never merged with another. `arg` reaches the node as it is (a dict stays a dict). `timeout`:
    seconds for one attempt at this packet, instead of the node's.
    """

    node: str
    arg: Any
    timeout: float | timedelta | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        seconds(self.timeout, self.node)

    @property
    def timeout_s(self) -> float | None:
        """Seconds, as a number."""
        return seconds(self.timeout, self.node)


@dataclass(frozen=True)
class Command(Generic[NodeT]):
    """What a node returns to update the state and say where to go next, in one (LangGraph's `Command`).

    `update`: what a node may return otherwise, or (key, value) pairs. `goto`: a node's name, a Send, or a list of
    these, in addition to the node's edges. Annotate the node with `-> Command[Literal["a", "b"]]`, so that drawings
    and checks know where it may go.
    """

    PARENT: ClassVar[str] = "__parent__"

    graph: str | None = None
    update: Any = None
    resume: Any = None
    goto: Send | str | Sequence[Send | str] = ()

    @property
    def goes(self) -> tuple[Send | str, ...]:
        """`goto` as a tuple."""
        return (self.goto,) if isinstance(self.goto, (str, Send)) else tuple(self.goto)


def seconds(timeout: float | timedelta | None, node: str) -> float | None:
    """A timeout as seconds. Raises GraphError unless it is more than 0 and less than `TIMEOUT_MAX_S`."""
    if timeout is None:
        return None
    found = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if not 0 < found < TIMEOUT_MAX_S:
        raise GraphError(f"A timeout of {timeout} can't be kept", node=node, fix="Seconds, more than 0; None for none.")
    return found


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


def _nothing() -> None:
    """What a heartbeat does outside an attempt."""


@dataclass(frozen=True, slots=True)
class Runtime(Generic[ContextT]):
    """What a node gets as its `runtime` parameter.

    `context` is the run's own data (`context_schema` says its type). `idempotency_key` is the same over all
    attempts of this task and differs for every other: hand it to services whose calls must not be doubled.
    `stream_writer(x)` tells `x` to those who stream in mode `custom`; it never waits for them.
    `heartbeat()` says that the node gets on, for its idle timeout (`TimeoutPolicy`); from any thread.
    `previous`: what an entrypoint saved in its last run on this thread; None in other graphs.
    """

    context: ContextT = None  # type: ignore[assignment]
    execution_info: ExecutionInfo = field(default_factory=ExecutionInfo)
    idempotency_key: str = ""
    stream_writer: StreamWriter = unheard
    heartbeat: Callable[[], None] = _nothing
    previous: Any = None

    def override(self, **changes: Any) -> Runtime[ContextT]:
        """A copy with some fields replaced."""
        return replace(self, **changes)
