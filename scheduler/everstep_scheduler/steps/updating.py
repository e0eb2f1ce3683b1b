"""Updates: what `update_state` says that nodes returned, and where their edges and routers lead. No node is called.

run's fact ──► [(node, its writes), ...] ──destinations──► Returned, as if all of them were one task
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from everstep_checkpoint import entries as e

from ..graph.results import NodeResult
from ..graph.runtime import END, Send
from .plan import Done, Returned, adestinations, destinations, returned

if TYPE_CHECKING:
    from .perform import Attempt

Nodes = tuple[tuple[str, int], ...]


def nodes_of(began: e.Entry, node: str) -> Nodes:
    """The nodes that an update stands for, each with how many writes are its own; by its run's first fact."""
    named = began.json("tasks")
    return tuple((str(name), int(count)) for name, count in named) if named else ((node, -1),)


def clears(nodes: Nodes) -> bool:
    """Is it an update as END: what is open is given up, and nothing written?"""
    return any(node == END for node, _ in nodes)


def update_needs_loop(attempt: Attempt) -> bool:
    """Whether a router after one of the nodes must run on an event loop."""
    named = [node for node, _ in attempt.given.nodes if node != END]
    return any(branch.is_async for node in named for branch in attempt.spec.branches_of(node))


def updated(attempt: Attempt, config: Any, runtime: Any) -> Returned:
    """What the nodes are said to have written, and where that leads."""
    stand, found = attempt.stand.channels, _Sum()
    for node, gave in _gave(attempt):
        found.add(gave, destinations(attempt.spec, node, stand, gave, config, runtime, attempt.steps))
    return found.returned()


async def aupdated(attempt: Attempt, config: Any, runtime: Any) -> Returned:
    """`updated` on an event loop, for routers that are async."""
    stand, found = attempt.stand.channels, _Sum()
    for node, gave in _gave(attempt):
        found.add(gave, await adestinations(attempt.spec, node, stand, gave, config, runtime, attempt.steps))
    return found.returned()


class _Sum:
    def __init__(self) -> None:
        self.writes: list[tuple[str, bytes]] = []
        self.names: list[str] = []
        self.sends: list[Send] = []

    def add(self, gave: NodeResult, there: tuple[list[str], list[Send]]) -> None:
        self.writes += gave.writes
        self.names += there[0]
        self.sends += there[1]

    def returned(self) -> Returned:
        return returned(self.writes, (self.names, self.sends))


def _gave(attempt: Attempt) -> Iterator[tuple[str, NodeResult]]:
    """Each node with its share of the writes, checked with real types."""
    spec, left = attempt.spec, list(attempt.given.input)
    for node, count in attempt.given.nodes:
        own, left = (left, []) if count < 0 else (left[:count], left[count:])
        if node != END:
            pairs = [(key, spec.codec.decode(value or b"\xc0", f"input key {key!r}")) for key, value in own]
            yield node, NodeResult(spec.key_writes(node, pairs), [], [])


def dones(task: str, nodes: Nodes, value: Returned) -> list[Done]:
    """An update as a plan takes it: all that was written, and each node as one that ran, for the joins to count."""
    (first, _), *others = nodes
    return [Done(task, first, value.writes, value.goto), *(Done(task, node, (), ()) for node, _ in others)]


def shown_node(nodes: Mapping[str, int] | Nodes) -> str | None:
    """The node that the checkpoint names: the one that the update stood for, None where it stood for several."""
    named = list(dict(nodes))
    return named[0] if len(named) == 1 else None
