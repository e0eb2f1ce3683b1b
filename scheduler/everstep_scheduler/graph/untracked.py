"""Untracked values: what a log never has. A mark stands for each, and the process that runs the graph has the value.

    written ──marked──► Untracked(name) in the log          read ──taken──► the value, where the shelf still has it
                  └──► Shelf: name -> the value                      └────► nothing, anywhere else

A shelf lasts as long as the call of a graph that runs where it is called, or as one attempt on a worker: there any step
may be another process's, so none finds what the one before it wrote.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, TypeVar

from everstep_checkpoint.types import UNTRACKED_MAX, Untracked

from .schema import as_dict

T = TypeVar("T")
_VALUES: dict[bytes, Any] = {}  # what all shelves of this process hold; each takes its own away


class Shelf(AbstractContextManager["Shelf"]):
    """Holds untracked values, until `clear` or the end of its `with`."""

    def __init__(self) -> None:
        self._names: list[bytes] = []

    def put(self, value: object) -> Untracked:
        """Hold a value; the mark that stands for it."""
        name = os.urandom(UNTRACKED_MAX)
        self._names.append(name)
        _VALUES[name] = value
        return Untracked(name)

    def clear(self) -> None:
        """Hold nothing any more."""
        names, self._names = self._names, []
        for name in names:
            _VALUES.pop(name, None)

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __del__(self) -> None:
        self.clear()


SHELF: ContextVar[Shelf | None] = ContextVar("everstep_shelf", default=None)


def on(shelf: Shelf, action: Callable[[], T]) -> T:
    """What an action gives, which puts the untracked values that it writes on this shelf."""
    before = SHELF.set(shelf)
    try:
        return action()
    finally:
        SHELF.reset(before)


def mark(value: object) -> Untracked:
    """What stands for a value in a log. It is held where somebody runs the graph here; else it is gone."""
    if isinstance(value, Untracked):
        return value
    shelf = SHELF.get()
    return shelf.put(value) if shelf is not None else Untracked(b"")


def marked(value: Any, keys: frozenset[str]) -> Any:
    """A Send's argument with marks for what it has under untracked keys."""
    given = as_dict(value)
    if given is None or given.keys().isdisjoint(keys):
        return value
    return {key: mark(each) if key in keys else each for key, each in given.items()}


def taken(values: Any) -> Any:
    """Values with what their marks stand for; without those that nobody has. What is no dict is as it is."""
    given = as_dict(values)
    if given is None or not any(isinstance(each, Untracked) for each in given.values()):
        return values
    return dict(taken_pairs(given.items()))


def taken_pairs(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The same for what was written, key by key."""
    return [
        (key, _VALUES[each.name] if isinstance(each, Untracked) else each)
        for key, each in pairs
        if not isinstance(each, Untracked) or each.name in _VALUES
    ]


def without(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without marks: what was stored."""
    return {key: each for key, each in values.items() if not isinstance(each, Untracked)}
