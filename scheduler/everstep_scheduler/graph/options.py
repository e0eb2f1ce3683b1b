"""Options of nodes: what `add_node` says of one node, and `set_node_defaults` of all. Pure.

    what a node says ──over──► the graph's defaults ──over──► nothing     at compile, option by option

Names and rules are LangGraph's (`StateGraph.set_node_defaults`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta

from everstep_checkpoint.errors import GraphError

from .retry import RetryPolicy
from .runtime import seconds

Timeout = float | timedelta | None


@dataclass(frozen=True)
class Options:
    """What somebody said; None: nothing."""

    retry: tuple[RetryPolicy, ...] | None = None
    timeout_s: float | None = None

    @classmethod
    def of(cls, who: str, retry: RetryPolicy | Sequence[RetryPolicy] | None, timeout: Timeout) -> Options:
        """From what `add_node` and `set_node_defaults` take. Raises GraphError."""
        return cls(_policies(who, retry), seconds(timeout, who))

    def over(self, others: Options) -> Options:
        """What is said here, and of the rest what the others say."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        return Options(**{name: getattr(others, name) if value is None else value for name, value in said.items()})


def _policies(who: str, given: RetryPolicy | Sequence[RetryPolicy] | None) -> tuple[RetryPolicy, ...] | None:
    if given is None:
        return None
    policies = (given,) if not isinstance(given, Sequence) else tuple(given)
    if wrong := [each for each in policies if not isinstance(each, RetryPolicy)]:  # pyright: ignore
        raise GraphError(f"{wrong[0]!r} is no RetryPolicy", node=who, fix="Use everstep's RetryPolicy.")
    return policies


def queue_name(who: str, queue: str | None) -> str | None:
    """A queue's name, checked."""
    if queue is not None and not (queue and queue.isprintable()):
        raise GraphError(f"{queue!r} can't be a queue's name", node=who, fix="Use a printable name.")
    return queue
