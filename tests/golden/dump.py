"""How a golden log lies in a file: one entry a line, text as text, other bytes in base64. Needs the log's package only.

{"id": "0-1", "fields": {"kind": "run_started", "record": {"b64": "AIGka2luZKVpbnB1dA=="}}}
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Head, Log

FOLDER = Path(__file__).parent


def to_line(entry: e.Entry) -> str:
    """One entry as a line of a dump."""
    return json.dumps({"id": entry.id, "fields": {name: _to_json(value) for name, value in entry.raw.items()}})


def _to_json(value: bytes) -> Any:
    """Text stays readable; what begins with an envelope byte, or is no text, becomes base64."""
    if value[:1] > b"\x1f" and value.isascii():
        return value.decode()
    return {"b64": base64.b64encode(value).decode()} if value else ""


def from_line(line: str) -> e.Entry:
    """The entry of a line, bytes as they were."""
    said: dict[str, Any] = json.loads(line)
    fields = {name: _from_json(value) for name, value in said["fields"].items()}
    return e.read_entry(said["id"], fields)


def _from_json(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["b64"])


class DumpLog(Log):
    """A log that was read from a file; it can't be written to."""

    def __init__(self, thread: str, entries: Sequence[e.Entry]) -> None:
        self.thread = thread
        self.entries = list(entries)

    @classmethod
    def of(cls, path: Path, thread: str) -> DumpLog:
        return cls(thread, [from_line(line) for line in path.read_text().splitlines()])

    def read(
        self,
        thread: str,
        start: str = "-",
        end: str = "+",
        count: int | None = None,
        *,
        reverse: bool = False,
    ) -> list[e.Entry]:
        low, high = _bound(start, 0), _bound(end, 2**62)
        found = [x for x in self.entries if thread == self.thread and low <= (x.n, x.k) <= high]
        found = found[::-1] if reverse else found
        return found if count is None else found[:count]

    def head(self, thread: str) -> Head | None:
        opened = [x for x in self.entries if x.is_checkpoint]
        if thread != self.thread or not self.entries:
            return None
        first, last = self.entries[0], self.entries[-1].id
        return Head(opened[-1].n, opened[-1].digest, last) if opened else Head(0, first.text("birth"), last)

    def threads(self) -> Iterator[str]:
        return iter([self.thread])

    def append(self, thread: str, new: Sequence[e.Fields], after: tuple[int, str] | None) -> list[str]:
        raise NotImplementedError("a golden log is never written to")

    def delete(self, thread: str) -> bool:
        raise NotImplementedError("a golden log is never deleted")

    def _cut(self, thread: str, mark: str) -> int:
        raise NotImplementedError("a golden log is never trimmed")


def _bound(text: str, last_k: int) -> tuple[int, float]:
    """A bound as XRANGE takes it; for an end without `-k`, all facts of the step."""
    if text in ("-", "+"):
        return (-1, 0) if text == "-" else (2**62, 0)
    if text.startswith("("):
        n, k = e.entry_id(text[1:])
        return n, k - 0.5 if last_k else k + 0.5
    return e.entry_id(text) if "-" in text else (int(text), last_k)
