"""The picture of a result: an SVG that is small enough to be kept for each release."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape  # it only writes

from .rows import Row, number

LETTER = 7  # pixels that one takes at most, on average


def plot(rows: Sequence[Row], title: str) -> str:
    """A small SVG: each row with a target as a bar, the target as a line at half the width; left of it is better
    where less is wanted, right of it where more is."""
    judged = [each for each in rows if each.target and each.median is not None]
    names = [f"{each.name} ({each.wanted})" for each in judged]
    bar, gap, left, width = 18, 10, 20 + LETTER * max(map(len, names), default=0), 420
    height, middle = len(judged) * (bar + gap) + 50, left + width / 2
    size = f'width="{left + width + 130}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>',
        f'<path d="M {middle} 30 V {height - 8}" stroke="#888" stroke-dasharray="3"/>',
    ]
    for i, each in enumerate(judged):
        assert each.target is not None and each.median is not None
        y = 36 + i * (bar + gap)
        length = min(each.median / each.target * width / 2, width)
        colour = "#2c7a4b" if each.verdict == "ok" else "#b3392f"
        parts += [
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(names[i])}</text>',
            f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{bar}" fill="{colour}"/>',
            f'<text x="{left + length + 6:.0f}" y="{y + 13}">{escape(f"{number(each.median)} {each.unit}")}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
