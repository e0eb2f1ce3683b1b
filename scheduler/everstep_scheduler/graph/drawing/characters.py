"""A graph in plain characters, from top to bottom: boxes, `|` and `-` for edges, `:` and `.` where a router decides.

+-------+        Edges that mean the same share a wire: all of one source, or, if each source has but one, all to
| START |        one target. Between two layers a wire goes down, along a track of its own, and down again. Only
+-------+        where two wires cross does one pass over another; a `+` is always a corner or a fork of one wire.
    |            Edges that go back leave below, go up a lane at the right, and come in from above.
    v
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise

from .layout import Box, Layout, arrange, lay_out
from .picture import Edge, Graph, shown

GAP, BEND, BOX_ROWS = 3, 1, 3
LANE = 3  # columns between lanes
BESIDE = 3  # columns that an arrow goes aside rather than be drawn beside another wire
APART = 3  # columns between two wires on one track
REACH = 4  # columns that a box is moved so that an edge is straight
_RANK = {" ": 0, "-": 1, ".": 1, "|": 2, ":": 2, "+": 3, "v": 4}


@dataclass(eq=False)
class _Wire:
    """What is drawn as one: between two layers, or (`lane`) between a layer and a lane at the right."""

    conditional: bool
    sources: list[Box] = field(default_factory=list["Box"])
    targets: list[Box] = field(default_factory=list["Box"])
    lane: int = -1  # its number
    tops: dict[Box, int] = field(default_factory=dict[Box, int])  # the columns where it leaves its sources
    bottoms: dict[Box, int] = field(default_factory=dict[Box, int])  # and where it enters its targets
    track: int = 0

    @property
    def cols(self) -> list[int]:
        return [*self.tops.values(), *self.bottoms.values()]

    @property
    def is_straight(self) -> bool:
        return self.lane < 0 and [*self.tops.values()] == [*self.bottoms.values()] and len(self.tops) == 1

    def span(self, lanes_at: int) -> tuple[int, int]:
        return _ends([*self.cols, *([lanes_at + self.lane * LANE] if self.lane >= 0 else [])])


def ascii_art(graph: Graph) -> str:
    """The graph as text. Below it the words of its routers, and the path of a thread in words."""
    texts = {name: _text(graph, name) for name in graph.nodes}
    layout = lay_out(graph, lambda name: _width(texts[name]), BEND, GAP)
    gaps = _gaps(layout)
    rows = _columns(layout, gaps)
    _ports(rows, gaps)
    ends = [round(box.x + box.width / 2) for row in rows for box in row]
    lanes_at = max([*ends, *(col for gap in gaps for wire in gap for col in wire.cols)]) + LANE
    canvas = _Canvas()
    _draw(canvas, rows, gaps, lanes_at, texts)
    told = ["", *graph.trace.lines()] if graph.trace is not None else []
    return "\n".join([*canvas.lines(), *_legend(graph.edges), *told]) + "\n"


def _text(graph: Graph, name: str) -> str:
    """What stands in a node's box."""
    caption = graph.trace.caption(name) if graph.trace is not None else ""
    return _plain(shown(name)) + (f" {_plain(caption)}" if caption else "")


def _legend(edges: Iterable[Edge]) -> list[str]:
    said = [(shown(x.source), shown(x.target), shown(x.data)) for x in edges if x.data]
    named = [f"{_plain(a)} -> {_plain(b)}: {_plain(words)}" for a, b, words in said]
    return ["", *named] if named else []


# -- wires


def _gaps(layout: Layout) -> list[list[_Wire]]:
    """The wires above the first layer (none but lanes lead there), between each two, and below the last."""
    count = len(layout.rows()) + 1
    gaps: list[dict[object, _Wire]] = [{} for _ in range(count)]
    pairs = [(each.conditional, a, b) for each, route in layout.routes for a, b in pairwise(route)]
    for maybe, a, b in pairs:
        # a bend never shares: who follows a wire to the right and up must come to a lane, or to the box of a sibling
        alone = bool(a.name) and sum(kind == maybe and source is a for kind, source, _ in pairs) == 1
        wire = gaps[b.layer].setdefault((maybe, alone, id(b if alone else a)), _Wire(maybe))
        wire.sources += [] if a in wire.sources else [a]
        wire.targets += [] if b in wire.targets else [b]
    for lane, edge in _lanes(layout):
        start, end = layout.boxes[edge.source], layout.boxes[edge.target]
        gaps[start.layer + 1][edge, "out"] = _Wire(edge.conditional, sources=[start], lane=lane)
        gaps[end.layer][edge, "in"] = _Wire(edge.conditional, targets=[end], lane=lane)
    return [list(each.values()) for each in gaps]


def _lanes(layout: Layout) -> list[tuple[int, Edge]]:
    """A lane for each edge that goes back, short ones inside; one lane has several that do not meet."""
    taken: list[set[int]] = []
    found: list[tuple[int, Edge]] = []
    for edge in sorted(layout.back, key=lambda x: layout.boxes[x.source].layer - layout.boxes[x.target].layer):
        passed = {*range(layout.boxes[edge.target].layer, layout.boxes[edge.source].layer + 2)}
        lane = next((i for i, each in enumerate(taken) if not each & passed), len(taken))
        taken += [set()] if lane == len(taken) else []
        taken[lane] |= passed
        found.append((lane, edge))
    return found


# -- columns


def _columns(layout: Layout, gaps: Sequence[Sequence[_Wire]]) -> list[list[Box]]:
    """The layers, with each box wide enough for its wires, in whole columns from 0 on, edges straight where one can."""
    for box in layout.boxes.values():
        ports = max(sum(box in x.targets for x in gaps[box.layer]), sum(box in x.sources for x in gaps[box.layer + 1]))
        box.width = max(box.width, 4 * ports + 1)
    arrange(layout.rows(), GAP)
    rows = layout.rows()
    left = min(box.x - box.width // 2 for row in rows for box in row)
    for row in rows:
        edge = 0
        for box in row:
            half = int(box.width) // 2
            box.x = max(2 * round((box.x - left) / 2), edge + half + (edge + half) % 2)
            edge = int(box.x) + half + GAP
    for row in rows:
        _straighten(row)
    return rows


def _straighten(row: Sequence[Box]) -> None:
    """Move a box that has one edge from above below where that comes from, if it is near and there is room."""
    for i, box in enumerate(row):
        above = [x for x in box.near if x.layer < box.layer]
        if len(above) != 1 or sum(x.layer == box.layer for x in above[0].near) != 1:
            continue
        want, half = above[0].x, box.width // 2
        low = row[i - 1].x + row[i - 1].width // 2 + GAP if i else 0
        high = row[i + 1].x - row[i + 1].width // 2 - GAP if i + 1 < len(row) else float("inf")
        if abs(want - box.x) <= REACH and low <= want - half and want + half <= high:
            box.x = want


def _ports(rows: Sequence[Sequence[Box]], gaps: Sequence[Sequence[_Wire]]) -> None:
    """Where each wire leaves and enters. What comes from above and what goes down never share a column, unless they
    are one wire: so no two wires are drawn over each other."""
    for number, gap in enumerate(gaps):
        leaving: dict[int, _Wire] = {}
        for box in rows[number - 1] if number else ():
            wires = sorted((x for x in gap if box in x.sources), key=lambda x: (x.lane, _middle(x.targets)))
            for wire, col in zip(wires, _wanted(box, wires), strict=True):
                wire.tops[box] = col
                leaving[col] = wire
        used = set[int]()
        for box in rows[number] if number < len(rows) else ():
            wires = sorted((x for x in gap if box in x.targets), key=lambda x: (x.lane, _middle(x.sources)))
            _enter(box, wires, leaving, used)


def _wanted(box: Box, wires: Sequence[_Wire]) -> list[int]:
    """Columns of a box: what goes on in the middle, what goes by a lane at the right of it."""
    onward = sum(wire.lane < 0 for wire in wires)
    return [int(box.x) + 2 * i - max(onward - 1, 0) for i in range(len(wires))]


def _enter(box: Box, wires: Sequence[_Wire], leaving: dict[int, _Wire], used: set[int]) -> None:
    """Choose the columns where wires enter a box: first for those that can come straight down. Adds them to `used`."""
    half = int(box.width) // 2
    cols = dict(zip(wires, _wanted(box, wires), strict=True))
    alone = {x: min(x.tops.values()) for x in wires if len(x.tops) == len(x.targets) == 1}
    straight = {wire: col for wire, col in alone.items() if abs(col - box.x) < half}
    for wire in sorted(cols, key=lambda x: x not in straight):
        want = straight.get(wire, cols[wire])
        reach = range(int(box.x) - half + 1, int(box.x) + half) if box.name else range(want - 2, want + 3)
        others = {col for col, other in leaving.items() if other is not wire}
        beside = used | {near for col in others for near in (col - 1, col + 1)}
        free = [col for col in reach if col not in used | others] or [want]
        col = _nearest(free, want, beside)
        used |= {col - 1, col, col + 1}
        wire.bottoms[box] = col
        if not box.name:
            box.x = col  # a bend is where it is entered


def _nearest(free: Sequence[int], want: int, beside: Set[int]) -> int:
    """The nearest column; beside another wire only if all else is far."""
    return min(free, key=lambda col: abs(col - want) + (BESIDE if col in beside else 0))


def _middle(boxes: Sequence[Box]) -> float:
    return sum(box.x for box in boxes) / len(boxes) if boxes else 0.0


def _width(text: str) -> float:
    wide = _cells(text)
    return wide + 4 + (wide + 1) % 2  # odd, so that it has a middle


# -- drawing


class _Canvas:
    """Characters by row and column; what matters more is on top."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], str] = {}

    def put(self, row: int, col: int, char: str) -> None:
        old = self._cells.get((row, col), " ")
        if _RANK.get(char, 5) >= _RANK.get(old, 5):
            self._cells[row, col] = char

    def down(self, first: int, last: int, col: int, conditional: bool) -> None:
        for row in range(first, last + 1):
            self.put(row, col, ":" if conditional else "|")

    def along(self, row: int, first: int, last: int, conditional: bool) -> None:
        for col in range(first, last + 1):
            self.put(row, col, "." if conditional else "-")

    def write(self, row: int, col: int, text: str) -> None:
        for char in text:
            self._cells[row, col] = char
            col += 1
            if _cells(char) == 2:
                self._cells[row, col] = ""
                col += 1

    def lines(self) -> list[str]:
        height, first, last = max(row for row, _ in self._cells), *_ends(col for _, col in self._cells)
        whole = (
            "".join(self._cells.get((row, col), " ") for col in range(first, last + 1)) for row in range(height + 1)
        )
        return [line.rstrip() for line in whole]


def _ends(cols: Iterable[int]) -> tuple[int, int]:
    found = list(cols)
    return min(found), max(found)


def _draw(
    canvas: _Canvas,
    rows: Sequence[Sequence[Box]],
    gaps: Sequence[Sequence[_Wire]],
    lanes_at: int,
    texts: Mapping[str, str],
) -> None:
    top = 0
    lanes: dict[int, list[tuple[int, bool]]] = {}  # lane -> the rows where it is turned into, from above
    for number, gap in enumerate(gaps):
        tracks = _tracks(gap, lanes_at)
        bottom = top + (tracks + 1 if gap else -1)
        for wire in gap:
            _wire(canvas, wire, top, bottom, lanes_at)
            if wire.lane >= 0:
                lanes.setdefault(wire.lane, []).append((top + 1 + wire.track, wire.conditional))
        top = bottom + 1
        if number < len(rows):
            for box in rows[number]:
                _box(canvas, box, top, _maybe(box, gap), texts)
            top += BOX_ROWS
    for lane, turns in lanes.items():
        for (first, maybe), (last, _) in zip(turns[::2], turns[1::2], strict=True):
            canvas.down(first + 1, last - 1, lanes_at + lane * LANE, maybe)


def _tracks(gap: Iterable[_Wire], lanes_at: int) -> int:
    """Give each wire that is not straight a track; two share one if they do not meet. Returns how many there are."""
    taken: list[list[tuple[int, int]]] = []
    for wire in sorted((x for x in gap if not x.is_straight), key=_turn):
        low, high = wire.span(lanes_at)
        meets = [i for i, spans in enumerate(taken) if any(low - APART <= b and a <= high + APART for a, b in spans)]
        wire.track = meets[-1] + 1 if meets else 0
        taken += [[]] if wire.track == len(taken) else []
        taken[wire.track].append((low, high))
    return len(taken)


def _turn(wire: _Wire) -> tuple[int, float]:
    """Wires that go back turn off last where they leave, and first where they come in; of those that go right the
    rightmost turns first, of those that go left the leftmost: then they don't cross."""
    if wire.lane >= 0:
        return (2, wire.lane) if wire.tops else (0, -wire.lane)
    start, end = (sum(cols.values()) / len(cols) for cols in (wire.tops, wire.bottoms))
    return 1, -start if end >= start else start


def _wire(canvas: _Canvas, wire: _Wire, top: int, bottom: int, lanes_at: int) -> None:
    turn = top + 1 + wire.track
    for col in wire.tops.values():
        canvas.down(top, bottom if wire.is_straight else turn - 1, col, wire.conditional)
    for box, col in wire.bottoms.items():
        canvas.down(bottom if wire.is_straight else turn + 1, bottom, col, wire.conditional)
        if box.name:
            canvas.put(bottom, col, "v")
    if wire.is_straight:
        return
    low, high = wire.span(lanes_at)
    canvas.along(turn, low, high, wire.conditional)
    for col in [*wire.cols, *([high] if wire.lane >= 0 else [])]:
        canvas.put(turn, col, "+")


def _maybe(box: Box, gap: Iterable[_Wire]) -> bool:
    return any(box in wire.targets and wire.conditional for wire in gap)


def _box(canvas: _Canvas, box: Box, top: int, conditional: bool, texts: Mapping[str, str]) -> None:
    if not box.name:
        canvas.down(top, top + BOX_ROWS - 1, int(box.x), conditional)
        return
    name, inner = texts[box.name], int(box.width) - 2
    left = int(box.x) - int(box.width) // 2
    space = inner - _cells(name)
    canvas.write(top, left, f"+{'-' * inner}+")
    canvas.write(top + 1, left, f"|{' ' * (space // 2)}{name}{' ' * (space - space // 2)}|")
    canvas.write(top + 2, left, f"+{'-' * inner}+")


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() and not unicodedata.combining(char) else "?" for char in text)


def _cells(text: str) -> int:
    """Columns that a terminal takes for it."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
