"""Places: where a thread stands in the tree that its root's tasks called, as LangGraph's `checkpoint_ns`. Pure.

root thread "t"      ──task of node `pay`──►  Place("t", "pay:<task id>")  ──► thread `t|pay:<22 characters>`
                                                 └─ of `low` ──► Place("t", "pay:<task id>|low:<task id>")
node `ask`, a function that calls a graph ──► the same places, on threads `within|t|ask:<22 characters>`
    its second call ──► `ask:<task id>|1`         a call in its @task `draft` ──► `ask:<task id>|draft:<call's id>`
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .subgraphs import child_thread, graphs_seen_by, nth_thread, within_thread

if TYPE_CHECKING:
    from .spec import GraphSpec


class Place(NamedTuple):
    """The root's thread, and the way from there: one `node:task_id` a level, `node` where the graph keeps its state."""

    root: str
    ns: str = ""

    def below(self, node: str, task_id: str) -> Place:
        """The place of what a task calls; without a task's id that of a graph that keeps its state."""
        return self.at(f"{node}:{task_id}" if task_id else node)

    def at(self, way: str) -> Place:
        """The place at the end of this way from here."""
        return Place(self.root, f"{self.ns}|{way}" if self.ns and way else self.ns or way)


class Placed(NamedTuple):
    """What stands at a place: its thread, and its graph where the root's code is at hand."""

    place: Place
    thread: str
    spec: GraphSpec | None


GraphAt = Callable[[str], str]  # thread -> `name@fingerprint` of the graph that its log is of; empty without a log


def placed(root: str, ns: str, spec: GraphSpec | None, graph_at: GraphAt) -> Placed:
    """Follow a `checkpoint_ns` down from the root. A node that is no graph is one whose function called one; where
    nobody has the code, that is so if there is no log where the node's graph would have its own."""
    found, above, node = Placed(Place(root), root, spec), spec, ""
    for each in ns.split("|") if ns else ():
        if each.isdigit() and node and not (found.spec is not None and each in found.spec.nested):
            thread = nth_thread(found.thread, int(each))
            found = Placed(found.place.at(each), thread, called_spec(above, node, graph_at(thread)))
        else:
            node, above = each.partition(":")[0], found.spec
            found = _below(found, each, graph_at)
    return found


def _below(at: Placed, way: str, graph_at: GraphAt) -> Placed:
    node, _, task_id = way.partition(":")
    inner = at.spec.nested.get(node) if at.spec is not None else None
    keeps = bool(not task_id or (at.spec is not None and inner is not None and at.spec.node(node).keeps))
    thread = child_thread(at.thread, node, task_id, keeps)
    if inner is None and (at.spec is not None or not graph_at(thread)):
        thread = child_thread(within_thread(at.thread), node, task_id, keeps)
        inner = called_spec(at.spec, node, graph_at(thread))
    return Placed(at.place.below(node, "" if keeps else task_id), thread, inner)


def called_spec(spec: GraphSpec | None, node: str, version: str) -> GraphSpec | None:
    """The graph with this `name@fingerprint` among those that the function of a node can see; None if there is none."""
    if spec is None or node not in spec.nodes or not version:
        return None
    found = [graph.spec for graph in graphs_seen_by(spec.nodes[node].fn)]
    named = [each for each in found if each.name == version.partition("@")[0]]
    return next((each for each in found if each.version == version), named[0] if len(named) == 1 else None)


class Spot(NamedTuple):
    """Where a graph that a node called is kept: its thread, and the way to it from the place of the node's thread."""

    thread: str
    way: str


def spot_of(thread: str, node: str, key: str, call: str, index: int, keeps: bool | None) -> Spot:
    """The `index`-th call of a graph by a task, from 0. `key`: the task's idempotency key; `call`: the place of the
    `@task` call that makes it, empty for the node itself. One that `keeps` its state is the node's, not the task's."""
    key = _hashed(key) if " " in key else key
    levels = [(node, "" if keeps else key)]
    if call:
        levels.append((call.rpartition(":")[2], "" if keeps else call_id(key, call)))
    found, way = within_thread(thread), list[str]()
    for name, task_id in levels:
        found = child_thread(found, name, task_id, keeps)
        way.append(f"{name}:{task_id}" if task_id else name)
    return Spot(nth_thread(found, index), "|".join([*way, *([str(index)] if index else [])]))


def call_id(key: str, call: str) -> str:
    """The id of a `@task` call, by its place, within the task with this idempotency key."""
    return _hashed(f"{key} {call}")


def _hashed(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()).decode()[:43]
