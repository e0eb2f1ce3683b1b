"""How a run ended, read from its log: the one entry that ends it, and the error that goes with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import EverstepError
from everstep_checkpoint.log import Log
from everstep_checkpoint.sound import sound

OWN_ERRORS = f"{EverstepError.__module__}."


class Said(NamedTuple):
    """An error as the log has it. `traceback` begins with the user's code; empty where none was kept."""

    error_type: str = ""
    text: str = ""
    traceback: str = ""

    @property
    def words(self) -> str:
        """`ValueError: no such item`, as Python would say it; errors of ours go by their short name."""
        kind = self.error_type.removeprefix(OWN_ERRORS)
        return f"{kind}: {self.text}" if kind and self.text else kind or self.text


NO_ERROR = Said()


@dataclass(frozen=True)
class Ending:
    """done, failed, interrupted or cancelled, at checkpoint n; for a failed run the first error, as text. `actor`: who
    cancelled it, where somebody said so."""

    status: str
    n: int
    entry: str
    node: str = ""
    error: Said = NO_ERROR
    digest: str = ""
    task: str = ""
    actor: str = ""

    @property
    def error_type(self) -> str:
        return self.error.error_type

    @property
    def text(self) -> str:
        return self.error.text


class EndingFinder:
    """Feeds on a thread's entries in order and tells the ending of one run when it comes."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._node, self._task, self._error = "", "", NO_ERROR

    def feed(self, entry: e.Entry) -> Ending | None:
        if entry.text("run") != self.run:
            return None
        if entry.is_checkpoint:
            done = entry.text("source") != "input" and not entry.next
            return Ending("done", entry.n, entry.id, digest=entry.digest) if done else None
        if (
            entry.kind == "task_failed"
            and not {"retry_at", "handler"} & entry.raw.keys()
            and not self._error.error_type
        ):
            self._node, self._task, self._error = entry.text("node"), entry.text("task"), error_of(entry)
        if entry.kind != "run_rested":
            return None
        own = error_of(entry)
        node, task, error = ("", "", own) if own.error_type else (self._node, self._task, self._error)
        return Ending(entry.text("status"), entry.n, entry.id, node, error, task=task, actor=entry.text("actor"))


def error_of(entry: e.Entry) -> Said:
    """An entry's error; all empty where it has none."""
    raw = entry.text("error")
    if not raw:
        return NO_ERROR
    try:
        said: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return Said(text=raw)
    if not isinstance(said, dict):
        return Said(text=raw)
    return Said(*(str(said.get(name, "")) for name in ("type", "text", "traceback")))  # pyright: ignore


@sound
def ending(log: Log, thread: str, run: str, since: str) -> Ending | None:
    """How the run ended, looking from entry `since` on; None while it has not."""
    finder = EndingFinder(run)
    for entry in log.pages(thread, since):
        found = finder.feed(entry)
        if found is not None:
            return found
    return None
