"""A graph as a picture: Mermaid text, and an SVG laid out here, without any tool or network.

The SVG is layered from top to bottom: a node's layer is its longest path from START; edges that go back run
around at the right. Conditional edges are dashed. A router that can say anything is drawn to every node, as
in LangGraph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from .runtime import END, START
from .spec import GraphSpec

SIMPLE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
MERMAID_WORDS = {
    "end",
    "graph",
    "subgraph",
    "class",
    "style",
    "click",
    "default",
    "flowchart",
    "call",
    "direction",
}

ROW, HEIGHT, GAP = 92.0, 36.0, 34.0  # pixels: between layers, of a node, between nodes
MARGIN, LANE = 24.0, 16.0
LABEL_MAX = 32  # characters of a name that are shown
SWEEPS = 6  # rounds of ordering and of straightening

STYLE = """
.bg{fill:#fff}.node{fill:#eef4ff;stroke:#3565c4;stroke-width:1.5}.point{fill:#3565c4;stroke:#3565c4}
.name{fill:#14213d;font:13px ui-sans-serif,system-ui,sans-serif;text-anchor:middle}
.inverse{fill:#fff}.edge{fill:none;stroke:#5b6b85;stroke-width:1.4}.maybe{stroke-dasharray:5 4}
.head{fill:#5b6b85}.label{fill:#46546b;font:11px ui-sans-serif,system-ui,sans-serif;text-anchor:middle;
stroke:#fff;stroke-width:4px;paint-order:stroke;stroke-linejoin:round}
@media (prefers-color-scheme:dark){.bg{fill:#11151c}.node{fill:#1b2740;stroke:#7da2ec}.name{fill:#e6ecf8}
.point{fill:#7da2ec;stroke:#7da2ec}.inverse{fill:#11151c}.edge{stroke:#8d9bb3}.head{fill:#8d9bb3}
.label{fill:#b4bfd2;stroke:#11151c}}
"""


@dataclass(frozen=True)
class Arrow:
    """One drawn edge. `maybe`: only a router takes it. `label`: its word, if not the node's name."""

    start: str
    end: str
    maybe: bool
    label: str


def arrows(spec: GraphSpec) -> list[Arrow]:
    """Every drawn edge once. A node that nothing follows is drawn to END, where it in fact leads."""
    found: dict[tuple[str, str], Arrow] = {}
    for arrow in (*_firm(spec), *_maybe(spec)):
        known = found.get((arrow.start, arrow.end), arrow)
        label = ", ".join(dict.fromkeys(each for each in (known.label, arrow.label) if each))
        found[arrow.start, arrow.end] = Arrow(arrow.start, arrow.end, known.maybe and arrow.maybe, label)
    going = {start for start, _ in found}
    return [*found.values(), *(Arrow(name, END, False, "") for name in spec.nodes if name not in going)]


def _firm(spec: GraphSpec) -> list[Arrow]:
    joins = [(start, join.target) for join in spec.joins for start in join.starts]
    return [Arrow(start, end, False, "") for start, end in (*spec.edges, *joins)]


def _maybe(spec: GraphSpec) -> list[Arrow]:
    found: list[Arrow] = []
    for branch in spec.branches:
        anything = {name: name for name in (*spec.nodes, END) if name != branch.source}
        for said, end in (branch.ends or anything).items():
            label = "" if str(said) == end else str(said)
            found.append(Arrow(branch.source, end, True, label))
    for node in spec.nodes.values():
        for end, label in (node.ends or {}).items():
            found.append(Arrow(node.name, end, True, "" if label == end else label))
    return found


# -- Mermaid


def mermaid(spec: GraphSpec) -> str:
    """The graph in Mermaid's language, to paste into Markdown."""
    ids = {name: _mermaid_id(name, place) for place, name in enumerate(spec.nodes)}
    ids |= {START: START, END: END}
    lines = ["flowchart TD", f"    {START}([START])"]
    lines += [f'    {ids[name]}["{_mermaid_text(name)}"]' for name in spec.nodes]
    drawn = arrows(spec)
    if any(each.end == END for each in drawn):
        lines.append(f"    {END}([END])")
    for each in drawn:
        line = "-.->" if each.maybe else "-->"
        label = f'|"{_mermaid_text(each.label)}"|' if each.label else ""
        lines.append(f"    {ids[each.start]} {line}{label} {ids[each.end]}")
    return "\n".join(lines) + "\n"


def _mermaid_id(name: str, place: int) -> str:
    simple = SIMPLE.fullmatch(name) and name.lower() not in MERMAID_WORDS
    return name if simple else f"_n{place}"


def _mermaid_text(text: str) -> str:
    return re.sub(r'[#"<>&`|]', lambda found: f"#{ord(found[0])};", text)


# -- layout


@dataclass
class _Box:
    """A place in the picture: a node, or (`name` empty) a bend of an edge that passes a layer."""

    name: str
    layer: int
    width: float
    x: float = 0.0
    near: list[_Box] = field(default_factory=list["_Box"])

    @property
    def y(self) -> float:
        return self.layer * ROW

    def meets(self, step: int) -> list[float]:
        """Where its neighbours of the layer above (-1) or below (1) are."""
        return [each.x for each in self.near if each.layer == self.layer + step]


@dataclass
class _Layout:
    boxes: dict[str, _Box]
    routes: list[tuple[Arrow, list[_Box]]]  # forward edges, each through its bends
    back: list[Arrow]

    def _all(self) -> list[_Box]:
        return [*self.boxes.values(), *(box for _, route in self.routes for box in route)]

    @property
    def left(self) -> float:
        return min(box.x - box.width / 2 for box in self._all())

    def borders(self) -> dict[int, float]:
        """The right end of each layer."""
        found: dict[int, float] = {}
        for box in self._all():
            found[box.layer] = max(found.get(box.layer, float("-inf")), box.x + box.width / 2)
        return found


def _lay_out(spec: GraphSpec) -> _Layout:
    drawn = arrows(spec)
    names = [START, *spec.nodes] + ([END] if any(each.end == END for each in drawn) else [])
    back = _back_edges(names, drawn)
    forward = [each for each in drawn if each not in back]
    layers = _layers(names, forward)
    boxes = {name: _Box(name, layers[name], _width(name)) for name in names}
    routes = [(each, _route(boxes[each.start], boxes[each.end])) for each in forward]
    rows: dict[int, list[_Box]] = {}
    for box in _unique([*boxes.values(), *(bend for _, route in routes for bend in route)]):
        rows.setdefault(box.layer, []).append(box)
    _arrange([rows[layer] for layer in sorted(rows)])
    return _Layout(boxes, routes, [each for each in drawn if each in back])


def _unique(boxes: Iterable[_Box]) -> list[_Box]:
    return list({id(box): box for box in boxes}.values())


def _back_edges(names: Sequence[str], drawn: Sequence[Arrow]) -> set[Arrow]:
    """The edges that close a cycle, found depth first from START in the order of definition."""
    out: dict[str, list[Arrow]] = {name: [] for name in names}
    for each in drawn:
        out[each.start].append(each)
    open_, closed, back = set[str](), set[str](), set[Arrow]()
    for first in names:
        stack = [(first, iter(out[first]))] if first not in closed else []
        open_.update(name for name, _ in stack)
        while stack:
            name, rest = stack[-1]
            arrow = next(rest, None)
            if arrow is None:
                stack.pop()
                open_.discard(name)
                closed.add(name)
            elif arrow.end in open_:
                back.add(arrow)
            elif arrow.end not in closed:
                open_.add(arrow.end)
                stack.append((arrow.end, iter(out[arrow.end])))
    return back


def _layers(names: Sequence[str], forward: Sequence[Arrow]) -> dict[str, int]:
    """Longest path from a source; `forward` has no cycle."""
    layers = dict.fromkeys(names, 0)
    for _ in names:
        before = dict(layers)
        for each in forward:
            layers[each.end] = max(layers[each.end], layers[each.start] + 1)
        if layers == before:
            break
    return layers


def _route(start: _Box, end: _Box) -> list[_Box]:
    """Start, a bend in each layer between, end; each linked to the next."""
    bends = [_Box("", layer, 10.0) for layer in range(start.layer + 1, end.layer)]
    route = [start, *bends, end]
    for upper, lower in pairwise(route):
        upper.near.append(lower)
        lower.near.append(upper)
    return route


def _arrange(rows: list[list[_Box]]) -> None:
    """Orders each row by its neighbours' middle to avoid crossings, then straightens the edges."""
    for row in rows:
        _spread(row, [0.0] * len(row))
    for sweep in range(SWEEPS):
        step = -1 if sweep % 2 == 0 else 1
        for row in rows if step < 0 else reversed(rows):
            row.sort(key=lambda box: _mean(box.meets(step), box.x))
            _spread(row, [0.0] * len(row))
    for _ in range(SWEEPS):
        for row in (*rows, *reversed(rows)):
            _spread(row, [_mean([*box.meets(-1), *box.meets(1)], box.x) for box in row])


def _spread(row: list[_Box], wanted: Sequence[float]) -> None:
    """Puts a row's boxes as near to where they are wanted as their widths and order allow."""
    edge = float("-inf")
    for box, want in zip(row, wanted, strict=True):
        box.x = max(want, edge + box.width / 2)
        edge = box.x + box.width / 2 + GAP
    shift = _mean([want - box.x for box, want in zip(row, wanted, strict=True)], 0.0)
    for box in row:
        box.x += shift


def _mean(numbers: Sequence[float], default: float) -> float:
    return sum(numbers) / len(numbers) if numbers else default


def _width(name: str) -> float:
    return max(64.0, 28 + 7.4 * sum(1.0 if ord(each) < 0x2E80 else 1.8 for each in _shown(name)))


def _shown(name: str) -> str:
    plain = {START: "START", END: "END"}.get(name, name)
    return plain if len(plain) <= LABEL_MAX else f"{plain[: LABEL_MAX - 1]}…"


# -- SVG


def svg(spec: GraphSpec) -> str:
    """The graph as a self-contained SVG that follows the reader's light or dark scheme."""
    layout = _lay_out(spec)
    lanes, right = _lanes(layout)
    left, right = layout.left - MARGIN, right + MARGIN
    bottom = max(box.y for box in layout.boxes.values()) + HEIGHT / 2 + MARGIN
    top = -HEIGHT / 2 - MARGIN
    size = f"{left:.0f} {top:.0f} {right - left:.0f} {bottom - top:.0f}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" width="{right - left:.0f}" '
        f'height="{bottom - top:.0f}" role="img" aria-label="{escape(spec.name)}">',
        f"<title>{escape(spec.version)}</title><style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="bg" x="{left:.0f}" y="{top:.0f}" width="100%" height="100%"/>',
        *(_edge(each, _curve(route)) for each, route in layout.routes),
        *(_edge(each, _around(layout.boxes, each, lane)) for each, lane in lanes.items()),
        *(_label(each, *_middle(route)) for each, route in layout.routes),
        *(_label(each, lane, _lane_middle(layout.boxes, each)) for each, lane in lanes.items()),
        *(_node(box) for box in layout.boxes.values()),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _lanes(layout: _Layout) -> tuple[dict[Arrow, float], float]:
    """Where each edge that goes back goes up, short ones inside; and the right border."""
    lanes: dict[Arrow, float] = {}
    border = layout.borders()
    for arrow in sorted(layout.back, key=lambda each: _height(layout.boxes, each)):
        half = max(LANE, 6.5 * len(_shown(arrow.label)) + 10) / 2
        passed = range(layout.boxes[arrow.end].layer, layout.boxes[arrow.start].layer + 1)
        lanes[arrow] = max(border[layer] for layer in passed) + half + LANE / 2
        border |= dict.fromkeys(passed, lanes[arrow] + half)
    return lanes, max(border.values())


def _height(boxes: Mapping[str, _Box], arrow: Arrow) -> float:
    return boxes[arrow.start].y - boxes[arrow.end].y


def _node(box: _Box) -> str:
    point = box.name in (START, END)
    kind, text, radius = ("point", "name inverse", HEIGHT / 2) if point else ("node", "name", 8)
    return (
        f'<g><title>{escape(box.name)}</title><rect class="{kind}" x="{box.x - box.width / 2:.1f}" '
        f'y="{box.y - HEIGHT / 2:.1f}" width="{box.width:.1f}" height="{HEIGHT:.0f}" rx="{radius:.0f}"/>'
        f'<text class="{text}" x="{box.x:.1f}" y="{box.y + 4.5:.1f}">{escape(_shown(box.name))}</text></g>'
    )


def _edge(arrow: Arrow, path: str) -> str:
    kind = "edge maybe" if arrow.maybe else "edge"
    return f'<path class="{kind}" marker-end="url(#head)" d="{path}"/>'


def _label(arrow: Arrow, x: float, y: float) -> str:
    if not arrow.label:
        return ""
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}">{escape(_shown(arrow.label))}</text>'


def _curve(route: Sequence[_Box]) -> str:
    """Downward through the bends: a curve between two layers, straight past the nodes of a layer."""
    path = f"M{route[0].x:.1f} {route[0].y + HEIGHT / 2:.1f}"
    for upper, lower in pairwise(route):
        y0, y1 = upper.y + HEIGHT / 2, lower.y - HEIGHT / 2
        middle = (y0 + y1) / 2
        path += f"C{upper.x:.1f} {middle:.1f} {lower.x:.1f} {middle:.1f} {lower.x:.1f} {y1:.1f}"
        if not lower.name:
            path += f"V{lower.y + HEIGHT / 2:.1f}"
    return path


def _middle(route: Sequence[_Box]) -> tuple[float, float]:
    return (route[0].x + route[1].x) / 2, (route[0].y + route[1].y) / 2 + 4


def _around(boxes: Mapping[str, _Box], arrow: Arrow, lane: float) -> str:
    """Back to an earlier layer: out below the source, up a lane at the right, in from above the target.

    Between two layers there are no nodes, so this never crosses one.
    """
    start, end = boxes[arrow.start], boxes[arrow.end]
    x0, y0 = start.x + start.width / 4, start.y + HEIGHT / 2
    x1, y1 = end.x + end.width / 4, end.y - HEIGHT / 2
    low, high, r = y0 + 14, y1 - 16, 8
    return (
        f"M{x0:.1f} {y0:.1f}V{low - r:.1f}q0 {r} {r} {r}H{lane - r:.1f}q{r} 0 {r} -{r}"
        f"V{high + r:.1f}q0 -{r} -{r} -{r}H{x1 + r:.1f}q-{r} 0 -{r} {r}V{y1:.1f}"
    )


def _lane_middle(boxes: Mapping[str, _Box], arrow: Arrow) -> float:
    return (boxes[arrow.start].y + boxes[arrow.end].y) / 2 + 4
