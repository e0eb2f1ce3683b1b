"""Rows of the result: what was measured, against what, and whether it is good enough."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
    def median(self) -> float | None:
        """None: it was not measured."""
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self) -> str:
        if len(self.values) < 2:
            return ""
        return f"{number(min(self.values))} to {number(max(self.values))}"

    @property
    def noisy(self) -> bool:
        return len(self.values) > 1 and max(self.values) > NOISY * min(self.values) > 0

    @property
    def verdict(self) -> str:
        if self.target is None or self.median is None:
            return ""
        good = self.median <= self.target if self.keep == "most" else self.median >= self.target
        return "ok" if good else "MISS"

    @property
    def wanted(self) -> str:
        sign = "<=" if self.keep == "most" else ">="
        return "" if self.target is None else f"{sign} {number(self.target)}"

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


def skipped(name: str, why: str) -> Row:
    """A row without a number: what was not measured, and why."""
    return Row(name, "", (), note=why)


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
        middle = "-" if each.median is None else number(each.median)
        lines.append((each.name, middle, each.unit, each.spread, each.wanted, verdict, each.note))
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
