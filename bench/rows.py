"""Rows of the result: what was measured, against what, and whether it is good enough."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.sax.saxutils import escape

NOISY = 1.5  # a row whose rounds are further apart than this factor is marked


@dataclass(frozen=True)
class Row:
    """One number in several rounds. `target` with `keep`: the median must be at most, or at least, that."""

    name: str
    unit: str
    values: tuple[float, ...]
    target: float | None = None
    keep: Literal["most", "least"] = "most"
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{_number(low)} to {_number(high)}" if len(self.values) > 1 else ""

    @property
    def noisy(self) -> bool:
        return len(self.values) > 1 and max(self.values) > NOISY * min(self.values) > 0

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        good = self.median <= self.target if self.keep == "most" else self.median >= self.target
        return "ok" if good else "MISS"

    @property
    def wanted(self) -> str:
        sign = "<=" if self.keep == "most" else ">="
        return "" if self.target is None else f"{sign} {_number(self.target)}"

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name, "unit": self.unit, "median": self.median, "values": list(self.values),
            "target": self.target, "keep": self.keep, "verdict": self.verdict, "noisy": self.noisy,
            "note": self.note, **self.details,
        }  # fmt: skip


def row(name: str, unit: str, values: Iterable[float] | float, **said: Any) -> Row:
    """A row of one or several values."""
    given = (float(values),) if isinstance(values, int | float) else tuple(map(float, values))
    return Row(name, unit, given, **said)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round, so that what slowed a whole round slows both."""
    return [a / b for a, b in zip(over, under, strict=True)]


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [("", "median", "", "spread", "target", "", "")]
    for each in rows:
        verdict = (
            f"{each.verdict} (noisy)" if each.noisy and each.verdict else "(noisy)" if each.noisy else each.verdict
        )
        lines.append((each.name, _number(each.median), each.unit, each.spread, each.wanted, verdict, each.note))
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def plot(rows: Sequence[Row], title: str) -> str:
    """A small SVG: each row with a target as a bar, the target as a line at half the width; left of it is better
    where less is wanted, right of it where more is."""
    judged = [each for each in rows if each.target]
    bar, gap, left, width = 18, 10, 330, 420
    height, middle = len(judged) * (bar + gap) + 50, left + width / 2
    size = f'width="{left + width + 130}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>',
        f'<path d="M {middle} 30 V {height - 8}" stroke="#888" stroke-dasharray="3"/>',
    ]
    for i, each in enumerate(judged):
        assert each.target is not None
        y = 36 + i * (bar + gap)
        length = min(each.median / each.target * width / 2, width)
        colour = "#2c7a4b" if each.verdict == "ok" else "#b3392f"
        parts += [
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(f"{each.name} ({each.wanted})")}</text>',
            f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{bar}" fill="{colour}"/>',
            f'<text x="{left + length + 6:.0f}" y="{y + 13}">{escape(f"{_number(each.median)} {each.unit}")}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
