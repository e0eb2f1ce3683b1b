"""What a pool's parent knows of its children, and what it owes to those that died."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from .child import Order


@dataclass
class Child:
    """One child, as its parent knows it."""

    pid: int
    name: str
    reports: int
    order: Order
    row: int
    call: int = -1
    began: float = field(default_factory=time.monotonic)
    queues: tuple[str, ...] = ()
    claimed: bool = False
    heard: bytes = b""

    @property
    def solo(self) -> bool:
        """Does it run suspects?"""
        return self.order.solo and not self.spare

    @property
    def spare(self) -> bool:
        """Does it wait to be called?"""
        return self.call >= 0


@dataclass(frozen=True)
class Debt:
    """A release that is still to be made: Redis was away, or it is about to be."""

    owner: str
    to: Literal["job", "lost"]
    queues: tuple[str, ...]
