"""How a run ended, read from its log: the one entry that ends it, and the error that goes with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Log


@dataclass(frozen=True)
class Ending:
    """done, failed, interrupted or cancelled, at checkpoint n; for a failed run the first error, as text."""

    status: str
    n: int
    entry: str
    node: str = ""
    error_type: str = ""
    text: str = ""
    digest: str = ""


class EndingFinder:
    """Feeds on a thread's entries in order and tells the ending of one run when it comes."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._error: tuple[str, str, str] = ("", "", "")

    def feed(self, entry: e.Entry) -> Ending | None:
        if entry.text("run") != self.run:
            return None
        if entry.is_checkpoint:
            done = entry.text("source") != "input" and not entry.next
            return Ending("done", entry.n, entry.id, digest=entry.digest) if done else None
        if entry.kind == "task_failed" and "retry_at" not in entry.raw and not self._error[1]:
            self._error = (entry.text("node"), *error_of(entry))
        if entry.kind != "run_rested":
            return None
        own = error_of(entry)
        node, error_type, text = ("", *own) if own[0] else self._error
        return Ending(entry.text("status"), entry.n, entry.id, node, error_type, text)


def error_of(entry: e.Entry) -> tuple[str, str]:
    """(type name, text) of an entry's error; both empty where it has none."""
    raw = entry.text("error")
    if not raw:
        return "", ""
    try:
        said: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return "", raw
    return (str(said.get("type", "")), str(said.get("text", ""))) if isinstance(said, dict) else ("", raw)  # pyright: ignore


def ending(log: Log, thread: str, run: str, since: str) -> Ending | None:
    """How the run ended, looking from entry `since` on; None while it has not."""
    finder = EndingFinder(run)
    for entry in log.pages(thread, since):
        found = finder.feed(entry)
        if found is not None:
            return found
    return None
