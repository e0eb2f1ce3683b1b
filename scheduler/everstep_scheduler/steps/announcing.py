"""The `@task` calls of an attempt as they begin and fail, in the log, for who streams in the modes `tasks` and `debug`.

    call ──begun──► waits ──flush, before any of them runs──part──► call_begun      raised ──► call_failed
                                                                    what it came to: effect_done, as always

Only where the run's record says that somebody asked; else a call costs its one record. They say nothing about where
the thread stands, and no attempt reads them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import type_name

from ..moves.record import CALLS
from .effects import Effects
from .outcome import raised

ARGS_MAX = 64 * 1024  # bytes of one call's arguments; over it the longest of them are named, not told
BATCH_MAX = 100  # facts of one writing


class Announcer:
    """Tells the calls of one attempt. Safe to use from several threads."""

    def __init__(self, doing: Effects) -> None:
        self._doing = doing
        self._waiting: list[e.Fields] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def begun(self, key: str, args: Sequence[Any], kwargs: Mapping[str, Any], codec: Codec) -> None:
        """A call was made. Its arguments are taken as they are now; nothing is written yet."""
        fact = self._doing.fact("call_begun", key, args=e.wrap(told_args(args, kwargs, codec)))
        with self._lock:
            self._waiting.append(fact)

    def flush(self) -> None:
        """Write what began, in the order of the calls. Raises Fenced, ServerError."""
        with self._writing:  # who comes second waits until its own is written
            with self._lock:
                facts, self._waiting = self._waiting, []
            for i in range(0, len(facts), BATCH_MAX):
                self._doing.tell(facts[i : i + BATCH_MAX])

    def failed(self, key: str, error: Exception) -> None:
        """A call raised, for good. Raises Fenced, ServerError."""
        said = raised(None, error, 1, 0.0)
        text = json.dumps({"type": said.error_type, "text": said.text, "traceback": said.traceback})
        fact = self._doing.fact("call_failed", key, error=text)
        self._doing.raises(key, error)
        self._doing.tell([fact])


def announcer(doing: Effects, live: Sequence[str]) -> Announcer | None:
    """Who tells the calls of an attempt, where the run's record says that somebody asked."""
    return Announcer(doing) if CALLS in live else None


def told_args(args: Sequence[Any], kwargs: Mapping[str, Any], codec: Codec) -> bytes:
    """A call's arguments, encoded as ((args), {kwargs}). What can't be stored, or is too long, is named by its type:
    arguments are told here, not used, so they fail nothing."""
    told: list[object] = [*args, *kwargs.values()]
    sizes, room = [_size(each, codec) for each in told], ARGS_MAX
    for i in sorted(range(len(told)), key=lambda i: sizes[i]):
        room -= max(sizes[i], 0)
        if sizes[i] < 0:
            told[i] = f"<{type_name(type(told[i]))}>"
        elif room < 0:
            told[i] = f"<{type_name(type(told[i]))}, {sizes[i]:,} bytes>"
    named = dict(zip(kwargs, told[len(args) :], strict=True))
    return codec.encode((tuple(told[: len(args)]), named), "the arguments of a task")


def _size(value: object, codec: Codec) -> int:
    """Bytes of its encoding; -1: it can't be stored."""
    try:
        return len(codec.encode(value, "an argument of a task"))
    except Exception:  # noqa: BLE001 - the door to the user's values: whatever they raise, the call goes on
        return -1
