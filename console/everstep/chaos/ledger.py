"""The client log: what was asked and what was told, in order, from several threads."""

from __future__ import annotations

import threading
import time
from typing import Any

from .checking.evidence import Said


class Ledger:
    """Grows only. Safe from several threads."""

    def __init__(self) -> None:
        self._said: list[Said] = []
        self._lock = threading.Lock()

    def say(
        self, op: str, phase: str, thread: str, run: str = "", *, at: float | None = None, **told: Any
    ) -> None:  # fmt: skip
        """Note it, with the time: now, or `at`."""
        with self._lock:
            self._said.append(Said(time.monotonic() if at is None else at, op, phase, thread, run, told))

    @property
    def said(self) -> tuple[Said, ...]:
        """All of it, so far."""
        with self._lock:
            return tuple(self._said)

    def threads(self) -> set[str]:
        """Every thread that was named."""
        return {each.thread for each in self.said}
