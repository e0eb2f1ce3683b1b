"""How long an attempt may take, and how long it may show no progress.

    began ──────────────── run timeout ────────────────►│
      └─ idle ─►│ heartbeat() ─ idle ─►│ heartbeat() ...     due: what comes first

One `Pace` per attempt. Whoever waits for the attempt asks it when it is due, and asks again then: progress moves it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

NEVER = float("inf")


@dataclass
class Pace:
    """The clock of one attempt. Limits in seconds, 0: none. `auto`: signs of life other than heartbeats count too."""

    run_s: float = 0.0
    idle_s: float = 0.0
    auto: bool = True
    began: float = field(default_factory=time.monotonic)
    seen: float = 0.0  # when it last showed progress

    def begin(self) -> None:
        """The node is called now."""
        self.began = self.seen = time.monotonic()

    def heartbeat(self) -> None:
        """The node says that it gets on. From any thread."""
        self.seen = time.monotonic()

    def progress(self) -> None:
        """The node did something that shows it gets on, such as streaming a value. From any thread."""
        if self.auto:
            self.seen = time.monotonic()

    @property
    def limited(self) -> bool:
        """Is there a limit at all?"""
        return bool(self.run_s or self.idle_s)

    @property
    def due(self) -> float:
        """When the attempt is over its time, if nothing more is heard of it; by the monotonic clock."""
        run = self.began + self.run_s if self.run_s else NEVER
        return min(run, max(self.seen, self.began) + self.idle_s) if self.idle_s else run

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def why(self) -> str:
        """What an attempt that is over its time is told."""
        if self.run_s and self.elapsed_s >= self.run_s:
            return f"the node was over its timeout of {self.run_s:g} s"
        return f"the node showed no progress for {self.idle_s:g} s, its idle timeout"


@contextmanager
def kept(pace: Pace) -> Generator[asyncio.Timeout]:
    """Makes a timeout of asyncio expire when the attempt is due. Enter it on the attempt's loop, then the timeout."""
    loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)
    handle: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal handle
        left = pace.due - time.monotonic()
        if left <= 0:
            limit.reschedule(loop.time())
        else:
            handle = loop.call_later(left, look)

    if pace.limited:
        handle = loop.call_later(max(pace.due - time.monotonic(), 0), look)
    try:
        yield limit
    finally:
        if handle is not None:
            handle.cancel()
