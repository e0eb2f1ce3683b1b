"""A graph as an SVG: layered from top to bottom, conditional edges dashed, edges that go back around at the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from ..runtime import END, START
from .layout import Box, Layout, lay_out
from .picture import Edge, Graph, shown
from .trace import Mark, Trace

ROW, HEIGHT, GAP = 92.0, 36.0, 34.0  # pixels: between layers, of a node, between nodes
MARGIN, LANE, BEND = 24.0, 16.0, 10.0

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
TRACED = """
.caption{fill:#46546b;font:10px ui-sans-serif,system-ui,sans-serif;text-anchor:middle}.inverse.caption{fill:#dfe7f7}
.taken{stroke-width:3.2;stroke:#2f7d46}.done{fill:#e3f1e6;stroke:#2f7d46}.failed{fill:#fbe4e4;stroke:#b3261e;stroke-width:3}
.asks{fill:#fff1d6;stroke:#b06f00;stroke-width:3}.open{stroke-width:3}.stopped{fill:#ececec;stroke:#6b6b6b;stroke-width:3}
.none{opacity:.45}.point.done,.point.open{fill:#2f7d46;stroke:#2f7d46}
@media (prefers-color-scheme:dark){.caption{fill:#b4bfd2}.inverse.caption{fill:#1b2740}.taken{stroke:#6fbf87}
.done{fill:#1d3325;stroke:#6fbf87}.failed{fill:#431c1c;stroke:#f0857d}.asks{fill:#3d2d0e;stroke:#e0ac4e}
.stopped{fill:#2a2d33;stroke:#9a9a9a}.point.done,.point.open{fill:#6fbf87;stroke:#6fbf87}}
"""


def svg(graph: Graph) -> str:
    """The graph as a self-contained SVG that follows the reader's light or dark scheme."""
    trace = graph.trace
    layout = lay_out(graph, lambda name: _width(name, trace.caption(name) if trace is not None else ""), BEND, GAP)
    lanes, right = _lanes(layout)
    left, right = layout.left - MARGIN, right + MARGIN
    bottom = max(_y(box) for box in layout.boxes.values()) + HEIGHT / 2 + MARGIN
    top = -HEIGHT / 2 - MARGIN
    size = f"{left:.0f} {top:.0f} {right - left:.0f} {bottom - top:.0f}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" width="{right - left:.0f}" '
        f'height="{bottom - top:.0f}" role="img" aria-label="{escape(graph.name)}">',
        f"<title>{escape(_title(graph))}</title><style>{STYLE}{TRACED if trace is not None else ''}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="bg" x="{left:.0f}" y="{top:.0f}" width="100%" height="100%"/>',
        *(_edge(each, _curve(route), trace) for each, route in layout.routes),
        *(_edge(each, _around(layout.boxes, each, lane), trace) for each, lane in lanes.items()),
        *(_label(each, *_middle(route)) for each, route in layout.routes),
        *(_label(each, lane, _lane_middle(layout.boxes, each)) for each, lane in lanes.items()),
        *(_node(box, trace) for box in layout.boxes.values()),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _lanes(layout: Layout) -> tuple[dict[Edge, float], float]:
    """Where each edge that goes back goes up, short ones inside; and the right border."""
    lanes: dict[Edge, float] = {}
    border = layout.borders()
    for edge in sorted(layout.back, key=lambda each: _height(layout.boxes, each)):
        half = max(LANE, 6.5 * len(shown(edge.data or "")) + 10) / 2
        passed = range(layout.boxes[edge.target].layer, layout.boxes[edge.source].layer + 1)
        lanes[edge] = max(border[layer] for layer in passed) + half + LANE / 2
        border |= dict.fromkeys(passed, lanes[edge] + half)
    return lanes, max(border.values())


def _height(boxes: Mapping[str, Box], edge: Edge) -> float:
    return _y(boxes[edge.source]) - _y(boxes[edge.target])


def _title(graph: Graph) -> str:
    return "\n".join([graph.version, *(graph.trace.lines() if graph.trace is not None else ())])


def _node(box: Box, trace: Trace | None) -> str:
    point = box.name in (START, END)
    kind, text, radius = ("point", "name inverse", HEIGHT / 2) if point else ("node", "name", 8)
    title, caption, y = box.name, "", 4.5
    if trace is not None:
        mark, caption = trace.marks.get(box.name, Mark()), trace.caption(box.name)
        kind, title = f"{kind} {mark.state or 'none'}", f"{title}\n{mark.said}" if mark.said else title
        y = -1.5 if caption else y
    words, at = text.replace("name", "caption"), f'x="{box.x:.1f}" y="{_y(box) + 12:.1f}"'
    below = f'<text class="{words}" {at}>{escape(caption)}</text>' if caption else ""
    return (
        f'<g><title>{escape(title)}</title><rect class="{kind}" x="{box.x - box.width / 2:.1f}" '
        f'y="{_y(box) - HEIGHT / 2:.1f}" width="{box.width:.1f}" height="{HEIGHT:.0f}" rx="{radius:.0f}"/>'
        f'<text class="{text}" x="{box.x:.1f}" y="{_y(box) + y:.1f}">{escape(shown(box.name))}</text>{below}</g>'
    )


def _edge(edge: Edge, path: str, trace: Trace | None) -> str:
    kind = "edge maybe" if edge.conditional else "edge"
    if trace is not None:
        kind += " taken" if trace.taken.get(edge[:2]) else " none"
    return f'<path class="{kind}" marker-end="url(#head)" d="{path}"/>'


def _label(edge: Edge, x: float, y: float) -> str:
    if not edge.data:
        return ""
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}">{escape(shown(edge.data))}</text>'


def _curve(route: Sequence[Box]) -> str:
    """Downward through the bends: a curve between two layers, straight past the nodes of a layer."""
    path = f"M{route[0].x:.1f} {_y(route[0]) + HEIGHT / 2:.1f}"
    for upper, lower in pairwise(route):
        y0, y1 = _y(upper) + HEIGHT / 2, _y(lower) - HEIGHT / 2
        middle = (y0 + y1) / 2
        path += f"C{upper.x:.1f} {middle:.1f} {lower.x:.1f} {middle:.1f} {lower.x:.1f} {y1:.1f}"
        if not lower.name:
            path += f"V{_y(lower) + HEIGHT / 2:.1f}"
    return path


def _middle(route: Sequence[Box]) -> tuple[float, float]:
    return (route[0].x + route[1].x) / 2, (_y(route[0]) + _y(route[1])) / 2 + 4


def _around(boxes: Mapping[str, Box], edge: Edge, lane: float) -> str:
    """Back to an earlier layer: out below the source, up a lane at the right, in from above the target.

    Between two layers there are no nodes, so this never crosses one.
    """
    start, end = boxes[edge.source], boxes[edge.target]
    x0, y0 = start.x + start.width / 4, _y(start) + HEIGHT / 2
    x1, y1 = end.x + end.width / 4, _y(end) - HEIGHT / 2
    low, high, r = y0 + 14, y1 - 16, 8
    return (
        f"M{x0:.1f} {y0:.1f}V{low - r:.1f}q0 {r} {r} {r}H{lane - r:.1f}q{r} 0 {r} -{r}"
        f"V{high + r:.1f}q0 -{r} -{r} -{r}H{x1 + r:.1f}q-{r} 0 -{r} {r}V{y1:.1f}"
    )


def _lane_middle(boxes: Mapping[str, Box], edge: Edge) -> float:
    return (_y(boxes[edge.source]) + _y(boxes[edge.target])) / 2 + 4


def _y(box: Box) -> float:
    return box.layer * ROW


def _width(name: str, caption: str = "") -> float:
    wide = sum(1.0 if ord(each) < 0x2E80 else 1.8 for each in shown(name))
    return max(64.0, 28 + 7.4 * wide, 24 + 5.8 * len(caption))
