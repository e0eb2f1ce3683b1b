"""Options of nodes: what `add_node` says of one node, and `set_node_defaults` of all. Pure.

    what a node says ──over──► the graph's defaults ──over──► nothing     at compile, option by option

Names and rules are LangGraph's (`StateGraph.set_node_defaults`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Literal, Protocol

from everstep_checkpoint.errors import GraphError

from .retry import RetryPolicy
from .runtime import seconds
from .theirs import imports, theirs

SUSPECT = ".suspect"  # what the scripts add to the queue of a task whose process died


@dataclass(frozen=True)
class TimeoutPolicy:
    """How long one attempt at a node may take, and how long it may show no progress (LangGraph's `TimeoutPolicy`).

    `run_timeout`, `idle_timeout`: seconds; None: no limit. What counts as progress is `runtime.heartbeat()`, and,
    unless `refresh_on` is "heartbeat", a value that the node streams.
    """

    run_timeout: float | timedelta | None = None
    idle_timeout: float | timedelta | None = None
    refresh_on: Literal["auto", "heartbeat"] = "auto"


Timeout = float | timedelta | TimeoutPolicy | None


@dataclass(frozen=True)
class CachePolicy:
    """A node's outcome is kept, and reused for a task with the same input (LangGraph's `CachePolicy`).

    `key_func`: what tells two inputs apart, from the node's input to text or bytes; by default all of the input.
    `ttl`: seconds for which it is kept; None: for good.
    """

    key_func: Callable[[Any], str | bytes] | None = None
    ttl: float | None = None

    def __post_init__(self) -> None:
        if self.ttl is not None and not 0 < self.ttl < float("inf"):
            raise GraphError(f"A cache can't be kept for {self.ttl} seconds", fix="More than 0; None: for good.")


class Cache(Protocol):
    """What `compile(cache=...)` takes. Keys are text of 43 characters; a time to live is in seconds, None: for good."""

    def get(self, graph: str, node: str, key: str) -> bytes | None:
        """What was kept; None if there is nothing any more."""
        ...

    def put(self, graph: str, node: str, key: str, value: bytes, ttl: float | None) -> None:
        """Keep a value, if there is room."""
        ...

    def clear(self, graph: str, nodes: Sequence[str] | None = None) -> None:
        """Forget what was kept of these nodes; None: of all nodes of the graph."""
        ...


@dataclass(frozen=True)
class Options:
    """What somebody said; None: nothing. `handler`: the name under which its error handler runs."""

    retry: tuple[RetryPolicy, ...] | None = None
    timeout: TimeoutPolicy | None = None
    cache: CachePolicy | None = None
    handler: str | None = None

    @classmethod
    def of(
        cls,
        who: str,
        retry: RetryPolicy | Sequence[RetryPolicy] | None,
        timeout: Timeout,
        cache: CachePolicy | None,
        handler: str | None = None,
    ) -> Options:
        """From what `add_node` and `set_node_defaults` take. Raises GraphError."""
        if not isinstance(cache, CachePolicy | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GraphError(f"{cache!r} is no CachePolicy", node=who, fix="Use everstep's CachePolicy.")
        return cls(_policies(who, retry), _timeout(who, timeout), cache, handler)

    def over(self, others: Options) -> Options:
        """What is said here, and of the rest what the others say."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        return Options(**{name: getattr(others, name) if value is None else value for name, value in said.items()})


def _timeout(who: str, given: Timeout) -> TimeoutPolicy | None:
    """A policy whose times are seconds; None for one that limits nothing. Raises GraphError."""
    policy = given if isinstance(given, TimeoutPolicy) else TimeoutPolicy(given)
    if policy.refresh_on not in ("auto", "heartbeat"):
        raise GraphError(f"refresh_on={policy.refresh_on!r} is unknown", node=who, fix="Use 'auto' or 'heartbeat'.")
    run, idle = seconds(policy.run_timeout, who), seconds(policy.idle_timeout, who)
    return TimeoutPolicy(run, idle, policy.refresh_on) if run or idle else None


def _policies(who: str, given: RetryPolicy | Sequence[RetryPolicy] | None) -> tuple[RetryPolicy, ...] | None:
    if given is None:
        return None
    if whose := theirs(given):
        raise GraphError(f"the retry policy is {whose}", node=who, fix=imports(given))
    policies = (given,) if not isinstance(given, Sequence) else tuple(given)
    if wrong := [each for each in policies if not isinstance(each, RetryPolicy)]:  # pyright: ignore
        raise GraphError(f"{wrong[0]!r} is no RetryPolicy", node=who, fix="Use everstep's RetryPolicy.")
    return policies


def queue_name(who: str, queue: str | None) -> str | None:
    """A queue's name, checked: printable, and not one of those to which the tasks of others go. Raises GraphError."""
    if queue is not None and not (queue and queue.isprintable()):
        raise GraphError(f"{queue!r} can't be a queue's name", node=who, fix="Use a printable name.")
    if queue is not None and queue.endswith(SUSPECT):
        raise GraphError(
            f"{queue!r} can't be a queue's name: {SUSPECT} stands for tasks whose process died, which run alone",
            node=who,
            fix="Use another name; a pool sees to those tasks by itself.",
        )
    return queue
