"""A graph as it is shown: nodes and edges, with LangGraph's names for them, and the ways to draw them.

    compiled.get_graph() ──► Graph(nodes, edges) ──► draw_mermaid(), draw_ascii(), draw_svg(), to_json()

A node that nothing follows has an edge to END, where it in fact leads. A router that can say anything has one to
every other node, as in LangGraph. https://reference.langchain.com/python/langchain_core/runnables/#graph
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..runtime import END, START
from ..spec import GraphSpec
from .trace import Trace, plain

LABEL_MAX = 32  # characters of a name that are shown


class Node(NamedTuple):
    """A node. `data`: its function; None where the graph's code is not at hand, and for START and END."""

    id: str
    name: str
    data: Any = None
    metadata: dict[str, Any] | None = None


class Edge(NamedTuple):
    """One edge. `conditional`: only a router takes it. `data`: the router's words for it, if not the node's name."""

    source: str
    target: str
    data: str | None = None
    conditional: bool = False


@dataclass(frozen=True)
class Graph:
    """A graph's nodes by id, START and END among them, and its edges; each pair of nodes has one at most.

    `inner`: the graphs that are nodes of it, and have a log of their own. `trace`: the path of a thread, which is drawn
    into it. A notebook shows it as SVG, without a network.
    """

    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]
    name: str = "graph"
    version: str = ""
    inner: Mapping[str, Graph] = field(default_factory=dict[str, "Graph"])
    trace: Trace | None = None

    def xray(self, depth: int | bool = True) -> Graph:
        """The same with the graphs that are nodes of it drawn in their places, so many levels deep; True: all."""
        from .xray import opened

        return opened(self, depth)

    def first_node(self) -> Node | None:
        """START."""
        return self.nodes.get(START)

    def last_node(self) -> Node | None:
        """END; None where nothing leads there."""
        return self.nodes.get(END)

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Nodes and edges as JSON, in LangGraph's form."""
        return {
            "nodes": [_node_json(each) for each in self.nodes.values()],
            "edges": [_edge_json(each) for each in self.edges],
        }

    def draw_mermaid(self) -> str:
        """Mermaid text, to paste into Markdown."""
        from .mermaid import mermaid

        return mermaid(self)

    def draw_svg(self) -> str:
        """A self-contained SVG that follows the reader's light or dark scheme."""
        from .svg import svg

        return svg(self)

    def draw_ascii(self) -> str:
        """Boxes and lines of plain characters; `:` and `.` where a router decides."""
        from .characters import ascii_art

        return ascii_art(self)

    def print_ascii(self) -> None:
        """Print `draw_ascii()`."""
        print(self.draw_ascii())

    def _repr_svg_(self) -> str:
        return self.draw_svg()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"image/svg+xml": self.draw_svg(), "text/plain": self.draw_ascii()}


def graph_of(spec: GraphSpec) -> Graph:
    """A graph, from its code."""
    edges = _edges(spec)
    nodes = [Node(each.name, each.name, each.fn, dict(each.metadata) or None) for each in spec.nodes.values()]
    inner = {node: graph_of(each) for node, each in spec.nested.items() if spec.node(node).calls}
    return _graph(nodes, edges, spec.name, spec.version, inner)


def graph_from(
    name: str, version: str, nodes: Iterable[str], edges: Iterable[Edge], inner: Mapping[str, Graph] | None = None
) -> Graph:
    """A graph, from what it said of itself."""
    told = tuple(each._replace(data=_label(each.data)) for each in edges)
    return _graph([Node(each, each) for each in nodes], told, name, version, inner or {})


def _graph(
    nodes: Iterable[Node], edges: tuple[Edge, ...], name: str, version: str, inner: Mapping[str, Graph]
) -> Graph:
    last = [Node(END, END)] if any(each.target == END for each in edges) else []
    return Graph({each.id: each for each in (Node(START, START), *nodes, *last)}, edges, name, version, inner)


def _edges(spec: GraphSpec) -> tuple[Edge, ...]:
    """Every edge once, firm where one of its kinds is."""
    found: dict[tuple[str, str], Edge] = {}
    for edge in (*_firm(spec), *_maybe(spec)):
        known = found.get(edge[:2], edge)
        label = ", ".join(dict.fromkeys(each for each in (known.data, edge.data) if each))
        found[edge[:2]] = Edge(edge.source, edge.target, label or None, known.conditional and edge.conditional)
    going = {source for source, _ in found}
    return (*found.values(), *(Edge(name, END) for name in spec.nodes if name not in going))


def _firm(spec: GraphSpec) -> list[Edge]:
    joins = [(start, join.target) for join in spec.joins for start in join.starts]
    return [Edge(start, end) for start, end in (*spec.edges, *joins)]


def _maybe(spec: GraphSpec) -> list[Edge]:
    found: list[Edge] = []
    for branch in spec.branches:
        anything = {name: name for name in (*spec.nodes, END) if name != branch.source}
        for said, end in (branch.ends or anything).items():
            found.append(Edge(branch.source, end, None if str(said) == end else _label(str(said)), True))
    for node in spec.nodes.values():
        for end, label in (node.ends or {}).items():
            found.append(Edge(node.name, end, None if label == end else _label(label), True))
    return found


def _label(text: str | None) -> str | None:
    """A router's word on one line, which can drive no terminal."""
    return text and plain(text)


def _node_json(node: Node) -> dict[str, Any]:
    if node.id in (START, END):
        return {"id": node.id}
    home = [*str(getattr(node.data, "__module__", "")).split("."), getattr(node.data, "__qualname__", node.name)]
    said = {"id": node.id, "type": "runnable", "data": {"id": home if node.data else [node.name], "name": node.name}}
    return said | ({"metadata": node.metadata} if node.metadata else {})


def _edge_json(edge: Edge) -> dict[str, Any]:
    said: dict[str, Any] = {"source": edge.source, "target": edge.target}
    said |= {"data": edge.data} if edge.data else {}
    return said | ({"conditional": True} if edge.conditional else {})


def shown(name: str) -> str:
    """A name as a picture has room for it; of one in an inner graph rather its end than its beginning."""
    outer, colon, own = name.rpartition(":")
    plain = f"{outer}{colon}{ {START: 'START', END: 'END'}.get(own, own) }"
    if len(plain) <= LABEL_MAX:
        return plain
    return f"…{plain[1 - LABEL_MAX :]}" if outer else f"{plain[: LABEL_MAX - 1]}…"
