"""The chain of digests: what each checkpoint of a log builds on, as the log is read in order. Pure.

1-0 ◄── 2-0 ◄── 3-0 ◄── 4-0        usually the one before
         ▲
         └───────────── 5-0        a branch names an earlier one, which must be there
"""

from __future__ import annotations

from dataclasses import dataclass, field

from . import entries as e


@dataclass
class Chain:
    """Feeds on the good entries of a log. `last`: the last checkpoint's digest, or the birth; None if trimmed."""

    thread: str
    last: str | None = None
    seen: dict[int, str] = field(default_factory=dict[int, str])

    def fact(self, entry: e.Entry) -> None:
        """A fact may carry the birth, which stands before the first checkpoint."""
        if birth := entry.text("birth"):
            self.last = birth
            self.seen.setdefault(entry.n, birth)

    def parent(self, entry: e.Entry) -> str | None:
        """The digest that a checkpoint builds on; None where it was trimmed and can't be known."""
        named = entry.branch_of
        if named is None or entry.n == 1:  # the first one of a fork builds on its own birth
            return self.last or _named(entry)
        return named.digest

    def astray(self, entry: e.Entry) -> str:
        """Why the checkpoint that a branch names can't be its parent; empty if it can, or if it was trimmed."""
        named = entry.branch_of
        if named is None or entry.n == 1 or named.thread != self.thread:
            return ""
        trimmed = not self.seen or named.n < min(self.seen)
        if trimmed or self.seen.get(named.n) == named.digest:
            return ""
        return f"checkpoint {entry.n}: it branches from checkpoint {named.n}, which is another one here"

    def checkpoint(self, entry: e.Entry) -> None:
        """The checkpoint is good: what follows builds on it, or branches from it later."""
        self.last = self.seen[entry.n] = entry.digest


def _named(entry: e.Entry) -> str | None:
    """The parent's digest that a snapshot names in full: the first readable entry of a trimmed log."""
    named = entry.text("parent").split(" ")
    return named[-1] if "floor" in entry.raw and named != [""] else None
