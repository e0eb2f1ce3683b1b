"""Places: where a thread stands in the tree that its root's tasks called, as LangGraph's `checkpoint_ns`. Pure.

root thread "t"      ──task of node `pay`──►  Place("t", "pay:<task id>")  ──► thread `t|pay:<22 characters>`
                                                 └─ of `low` ──► Place("t", "pay:<task id>|low:<task id>")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .subgraphs import child_thread

if TYPE_CHECKING:
    from .spec import GraphSpec


class Place(NamedTuple):
    """The root's thread, and the way from there: one `node:task_id` a level, `node` where the graph keeps its state."""

    root: str
    ns: str = ""

    def below(self, node: str, task_id: str) -> Place:
        """The place of what a task calls; without a task's id that of a graph that keeps its state."""
        own = f"{node}:{task_id}" if task_id else node
        return Place(self.root, f"{self.ns}|{own}" if self.ns else own)


class Placed(NamedTuple):
    """What stands at a place: its thread, and its graph where the root's code is at hand."""

    place: Place
    thread: str
    spec: GraphSpec | None


def placed(root: str, ns: str, spec: GraphSpec | None) -> Placed:
    """Follow a `checkpoint_ns` down from the root. A node that is no graph has no thread: nothing stands there."""
    found = Placed(Place(root), root, spec)
    for each in ns.split("|") if ns else ():
        node, _, task_id = each.partition(":")
        found = _below(found, node, task_id)
    return found


def _below(at: Placed, node: str, task_id: str) -> Placed:
    inner = at.spec.nested.get(node) if at.spec is not None else None
    keeps = bool(not task_id or (at.spec is not None and inner is not None and at.spec.node(node).keeps))
    thread = child_thread(at.thread, node, task_id, keeps)
    return Placed(at.place.below(node, "" if keeps else task_id), thread, inner)
