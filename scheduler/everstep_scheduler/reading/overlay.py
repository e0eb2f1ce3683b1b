"""Overlay: what Commands as an input said about the state since its checkpoint. It takes the graph's reducers.

    checkpoint's channels ──apply, run by run──► what tasks, routers and people see

The log keeps both apart until the next checkpoint, which has all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import Channels, State, brings_update, commands_of, input_writes

from ..graph.channels import Write, apply

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec


def overlaid(spec: GraphSpec, channels: Channels, facts: Iterable[e.Entry]) -> Channels:
    """The channels with the updates of Commands among these facts, run by run. Raises InvalidUpdateError."""
    for fact in facts:
        if brings_update(fact):
            writes: list[Write] = [(name, value) for name, value in input_writes(fact) if value is not None]
            channels = apply(spec, {**spec.initial(), **channels}, writes)
    return channels


def overlaid_state(spec: GraphSpec, log: Log, thread: str, at: State) -> Channels | None:
    """A checkpoint's state as its tasks saw it; None if no Command updated it. Raises InvalidUpdateError."""
    facts = commands_of(log, thread, at.n)
    return overlaid(spec, at.channels, facts) if facts else None
