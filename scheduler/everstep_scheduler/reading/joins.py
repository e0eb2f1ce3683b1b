"""Joins that were begun and can't fire: a list edge of which one start never ran. Pure.

LangGraph ends such a run without a word, and so do we; but the barrier is in the state, so whoever reads a thread at
rest is told which join waits for whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from everstep_checkpoint.codec import PLAIN

from ..graph.channels import JOINS
from ..graph.runtime import END


@dataclass(frozen=True)
class UnmetJoin:
    """`target` did not run: of `starts`, those `missing` have not run since it last did."""

    target: str
    starts: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        lacking = ", ".join(self.missing)
        return f"{self.target} did not run: its join of {', '.join(self.starts)} waits for {lacking}"

    def document(self) -> dict[str, str | list[str]]:
        """As JSON and metadata carry it."""
        return {"target": self.target, "starts": list(self.starts), "missing": list(self.missing)}


def unmet_joins(channels: Mapping[str, bytes]) -> tuple[UnmetJoin, ...]:
    """The joins that somebody has arrived at, and not all. At a checkpoint with nothing next they can't fire."""
    found: list[UnmetJoin] = []
    for name in sorted(name for name in channels if name.startswith(JOINS)):
        starts, _, target = name.removeprefix(JOINS).partition(":")
        seen = cast("list[str]", PLAIN.decode(channels[name], f"channel {name!r}"))
        missing = tuple(start for start in starts.split("+") if start not in seen)
        if missing and target != END:
            found.append(UnmetJoin(target, tuple(starts.split("+")), missing))
    return tuple(found)
