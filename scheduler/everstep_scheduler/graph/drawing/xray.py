"""X-ray: a graph with the graphs that are its nodes drawn in their places, as LangGraph's `get_graph(xray=...)`. Pure.

    a ──► child ──► b   ──►   a ──► child:x ──► child:y ──► b

An inner graph's START and END stay where several edges leave or reach them. One without a single way in and out stays
the node that it is. The rule is langchain-core's (`Graph.trim_first_node`, `trim_last_node`, `extend`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

from .picture import Edge, Graph, Node
from .trace import Trace


def opened(graph: Graph, depth: int | bool) -> Graph:
    """The graph with those in it opened, so many levels deep; True: all. 0 and False leave it as it is."""
    if not depth:
        return graph
    below = depth if isinstance(depth, bool) or depth <= 0 else depth - 1
    found = graph
    for node, inner in graph.inner.items():
        found = _with(found, node, opened(inner, below))
    return found


def _with(graph: Graph, node: str, inner: Graph) -> Graph:
    """One node replaced by its graph."""
    if len(inner.nodes) < 2 or not _ends(inner, "target") or not _ends(inner, "source"):
        return graph
    inner = _trimmed(_trimmed(inner, "target"), "source")
    first, last = (f"{node}:{_ends(inner, end)}" for end in ("target", "source"))
    names = {name: f"{node}:{name}" for name in inner.nodes}
    own = {names[name]: each._replace(id=names[name], name=names[name]) for name, each in inner.nodes.items()}
    nodes = dict[str, Node]()
    for name, each in graph.nodes.items():
        nodes |= own if name == node else {name: each}
    moved = {
        each: each._replace(
            source=last if each.source == node else each.source, target=first if each.target == node else each.target
        )
        for each in graph.edges
    }
    within = tuple(each._replace(source=names[each.source], target=names[each.target]) for each in inner.edges)
    trace = _traced(graph.trace, node, inner.trace, {each[:2]: to[:2] for each, to in moved.items()}, nodes)
    return replace(graph, nodes=nodes, edges=(*moved.values(), *within), trace=trace)


def _traced(
    trace: Trace | None,
    node: str,
    inner: Trace | None,
    moved: Mapping[tuple[str, str], tuple[str, str]],
    nodes: Container[str],
) -> Trace | None:
    """What the thread did, in the opened graph: of the node itself its graph tells."""
    if trace is None:
        return None
    marks = {name: mark for name, mark in trace.marks.items() if name != node}
    taken = {moved.get(edge, edge): count for edge, count in trace.taken.items()}
    if inner is not None:
        marks |= inner.within(node).marks
        taken |= inner.within(node).taken
    return replace(trace, marks={name: mark for name, mark in marks.items() if name in nodes}, taken=taken)


def _ends(graph: Graph, end: str, without: str = "") -> str:
    """The one node that no edge leads to (`target`), or leaves (`source`); empty where there is none, or several."""
    other = "source" if end == "target" else "target"
    met = {getattr(each, end) for each in graph.edges if getattr(each, other) != without}
    found = [name for name in graph.nodes if name not in met and name != without]
    return found[0] if len(found) == 1 else ""


def _trimmed(graph: Graph, end: str) -> Graph:
    """Without its START (`target`) or END (`source`), if one edge leaves or reaches it and one node takes its place."""
    outer, other = _ends(graph, end), "source" if end == "target" else "target"
    if not outer or not _ends(graph, end, outer) or sum(getattr(each, other) == outer for each in graph.edges) != 1:
        return graph
    edges: tuple[Edge, ...] = tuple(each for each in graph.edges if outer not in each[:2])
    return replace(graph, nodes={name: each for name, each in graph.nodes.items() if name != outer}, edges=edges)
