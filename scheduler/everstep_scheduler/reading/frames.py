"""Frames: each checkpoint of a log with what its step came to, for those who show it.

log ──► Frame(state, parts, facts, closing)      one by number, or a range, oldest first
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import State, folder_of, snapshot_before, state_at, step_of


@dataclass
class Frame:
    """A checkpoint with all that the log says about its step: facts in order, and the checkpoint that closed it.

    `replaced`: the one behind it stands in its place, so it is no more in the history.
    """

    state: State
    parts: Sequence[e.Entry] = ()
    facts: list[e.Entry] = field(default_factory=list[e.Entry])
    closing: State | None = None
    parent: str = ""
    replaced: bool = False


def frame_at(log: Log, thread: str, n: int) -> Frame:
    """The frame of checkpoint n. Raises Trimmed, CorruptEntry."""
    state = state_at(log, thread, n)
    step = step_of(log, thread, n)
    above = log.read(thread, f"{n + 1}-0", f"{n + 1}-0")
    closing = None
    if above and follows(above[0], state.entry):
        closing = State(above[0], state.channels, state.birth)
    parent = log.read(thread, f"{n - 1}-0", f"{n - 1}-0") if n > 1 else []
    return Frame(state, tuple(step.parts.values()), step.facts, closing, parent[0].checkpoint_id if parent else "")


def follows(entry: e.Entry, before: e.Entry) -> bool:
    """Does a checkpoint build on the one that stands before it? A branch may build on an earlier one."""
    named = entry.branch_of
    return named is None or named[1:] == (before.n, before.digest)


def frames(log: Log, thread: str, first: int, last: int) -> Iterator[Frame]:
    """Frames from the first checkpoint at or below number `first` that can be read, to `last`, oldest first."""
    _, found = snapshot_before(log, thread, first)
    folder, frame, parts = folder_of(log, thread), None, _Parts()
    readable = False
    for entry in log.pages(thread, found[0].id if found else "-", f"{last + 1}-0"):
        parts.feed(entry)
        readable = readable or entry.id == "0-1" or "floor" in entry.raw
        if not entry.is_checkpoint:
            folder.feed(entry)
            if frame is not None:
                frame.facts.append(parts.light(entry))
        if not entry.is_checkpoint or not readable:
            continue
        state = folder.feed(entry)
        assert state is not None
        if frame is not None:
            frame.closing = state if follows(entry, frame.state.entry) else None
            frame.replaced = entry.instead_of is not None
            yield frame
        parent = frame.state.entry.checkpoint_id if frame is not None else ""
        frame = Frame(state, parts.of(entry), parent=parent)
    if frame is not None and frame.state.n <= last:
        yield frame


class _Parts:
    """Send parts as they pass, without what they send: enough to name a step's tasks."""

    def __init__(self) -> None:
        self._seen: dict[str, e.Entry] = {}

    def feed(self, entry: e.Entry) -> None:
        if entry.is_checkpoint:
            self._seen = {ref: part for ref, part in self._seen.items() if part.n >= entry.n - 2}
        elif entry.kind == "part" and "tasks" in entry.raw:
            self._seen[entry.id] = self.light(entry)

    @staticmethod
    def light(entry: e.Entry) -> e.Entry:
        if entry.kind != "part":
            return entry
        return e.Entry(
            entry.n, entry.k, {name: entry.raw[name] for name in ("v", "kind", "tasks") if name in entry.raw}
        )

    def of(self, entry: e.Entry) -> tuple[e.Entry, ...]:
        return tuple(self._seen[row[0]] for row in entry.next if len(row) == 2 and row[0] in self._seen)


def until_new_input(facts: Iterable[e.Entry], log: Log, thread: str) -> Iterator[e.Entry]:
    """The facts of a checkpoint's own tasks: those before a run that gave them up."""
    for fact in facts:
        if fact.kind == "run_started":
            of = fact.ref("of")
            named = log.read(thread, of, of) if of else []
            if not named or named[0].text("run") == fact.text("run"):
                return
        yield fact
