"""Where nodes and edges go, for SVG and for characters: layers from top to bottom, then places within them.

A node's layer is its longest path from START. An edge over several layers has a bend in each between; one that goes
back has none: it runs around at the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .picture import Edge, Graph

SWEEPS = 6  # rounds of ordering and of straightening


@dataclass(eq=False)
class Box:
    """A place in the picture: a node, or (`name` empty) a bend of an edge that passes a layer."""

    name: str
    layer: int
    width: float
    x: float = 0.0
    near: list[Box] = field(default_factory=list["Box"])

    def meets(self, step: int) -> list[float]:
        """Where its neighbours of the layer above (-1) or below (1) are."""
        return [each.x for each in self.near if each.layer == self.layer + step]


@dataclass
class Layout:
    boxes: dict[str, Box]
    routes: list[tuple[Edge, list[Box]]]  # forward edges, each through its bends
    back: list[Edge]

    def _all(self) -> list[Box]:
        return _unique([*self.boxes.values(), *(box for _, route in self.routes for box in route)])

    def rows(self) -> list[list[Box]]:
        """The boxes of each layer, from left to right."""
        found: dict[int, list[Box]] = {}
        for box in self._all():
            found.setdefault(box.layer, []).append(box)
        return [sorted(found[layer], key=lambda box: box.x) for layer in sorted(found)]

    @property
    def left(self) -> float:
        return min(box.x - box.width / 2 for box in self._all())

    def borders(self) -> dict[int, float]:
        """The right end of each layer."""
        found: dict[int, float] = {}
        for box in self._all():
            found[box.layer] = max(found.get(box.layer, float("-inf")), box.x + box.width / 2)
        return found


def lay_out(graph: Graph, width: Callable[[str], float], bend: float, gap: float) -> Layout:
    """Layers, and places within them. `width`: of a node's box; `bend`: what an edge that passes takes."""
    names = list(graph.nodes)
    back = _back_edges(names, graph.edges)
    forward = [each for each in graph.edges if each not in back]
    layers = _layers(names, forward)
    boxes = {name: Box(name, layers[name], width(name)) for name in names}
    routes = [(each, _route(boxes[each.source], boxes[each.target], bend)) for each in forward]
    layout = Layout(boxes, routes, [each for each in graph.edges if each in back])
    arrange(layout.rows(), gap)
    return layout


def _unique(boxes: Iterable[Box]) -> list[Box]:
    return list({id(box): box for box in boxes}.values())


def _back_edges(names: Sequence[str], drawn: Sequence[Edge]) -> set[Edge]:
    """The edges that close a cycle, found depth first from START in the order of definition."""
    out: dict[str, list[Edge]] = {name: [] for name in names}
    for each in drawn:
        out[each.source].append(each)
    open_, closed, back = set[str](), set[str](), set[Edge]()
    for first in names:
        stack = [(first, iter(out[first]))] if first not in closed else []
        open_.update(name for name, _ in stack)
        while stack:
            name, rest = stack[-1]
            edge = next(rest, None)
            if edge is None:
                stack.pop()
                open_.discard(name)
                closed.add(name)
            elif edge.target in open_:
                back.add(edge)
            elif edge.target not in closed:
                open_.add(edge.target)
                stack.append((edge.target, iter(out[edge.target])))
    return back


def _layers(names: Sequence[str], forward: Sequence[Edge]) -> dict[str, int]:
    """Longest path from a source; `forward` has no cycle."""
    layers = dict.fromkeys(names, 0)
    for _ in names:
        before = dict(layers)
        for each in forward:
            layers[each.target] = max(layers[each.target], layers[each.source] + 1)
        if layers == before:
            break
    return layers


def _route(start: Box, end: Box, bend: float) -> list[Box]:
    """Start, a bend in each layer between, end; each linked to the next."""
    bends = [Box("", layer, bend) for layer in range(start.layer + 1, end.layer)]
    route = [start, *bends, end]
    for upper, lower in pairwise(route):
        upper.near.append(lower)
        lower.near.append(upper)
    return route


def arrange(rows: list[list[Box]], gap: float) -> None:
    """Orders each row by its neighbours' middle to avoid crossings, then straightens the edges."""
    for row in rows:
        _spread(row, [0.0] * len(row), gap)
    for sweep in range(SWEEPS):
        step = -1 if sweep % 2 == 0 else 1
        for row in rows if step < 0 else reversed(rows):
            row.sort(key=lambda box: _mean(box.meets(step), box.x))
            _spread(row, [0.0] * len(row), gap)
    for _ in range(SWEEPS):
        for row in (*rows, *reversed(rows)):
            _spread(row, [_mean([*box.meets(-1), *box.meets(1)], box.x) for box in row], gap)


def _spread(row: list[Box], wanted: Sequence[float], gap: float) -> None:
    """Puts a row's boxes as near to where they are wanted as their widths and order allow."""
    edge = float("-inf")
    for box, want in zip(row, wanted, strict=True):
        box.x = max(want, edge + box.width / 2)
        edge = box.x + box.width / 2 + gap
    shift = _mean([want - box.x for box, want in zip(row, wanted, strict=True)], 0.0)
    for box in row:
        box.x += shift


def _mean(numbers: Sequence[float], default: float) -> float:
    return sum(numbers) / len(numbers) if numbers else default
