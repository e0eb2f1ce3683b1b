"""What `everstep doctor` says: findings, and what its checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from everstep_scheduler.moves.connection import redis_cli

from .site import Site

OK, KNOW, ACT = "ok", "!", "x"
NAMES_MAX = 5


@dataclass(frozen=True)
class Finding:
    """One line of the report. `mark`: ok | ! (know this) | x (act on this)."""

    mark: str
    about: str
    said: str
    fix: str = ""


@dataclass
class Look:
    """What the checks share: the connection, and what Redis says of itself."""

    site: Site
    info: dict[str, Any]
    queues: list[str] = field(default_factory=list[str])
    served: set[str] = field(default_factory=set[str])
    ours_served: set[str] = field(default_factory=set[str])
    idle: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # queue -> workers that run nothing
    workers: int = 0
    full: bool = False  # maxmemory is reached

    @property
    def redis(self) -> Any:
        return self.site.redis

    def cli(self, *words: str) -> str:
        """A line of redis-cli that asks this very server."""
        return redis_cli(self.site.url, *words)


Check = Callable[[Look], Iterator[Finding]]
