"""Branches: the chunks of a run and of all that its tasks called, each with its namespace, from logs read as they grow.

    Branch.look ──► own entries in order; where one tells what came of a task that called something, first the rest of
                    that branch ──► then those that are still under way

For who reads in the process that runs the graph. Readers elsewhere, with cursors: `client/events.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from everstep_checkpoint import entries as e

from .chunks import LogStream
from .nested import Key, Nested, beginning, named_call, spoken_for, where_below
from .shapes import Reading

Insist = Callable[[Callable[[], list[e.Entry]]], list[e.Entry]]


def below(stream: LogStream, call: e.Entry, run: str | None = None) -> LogStream | None:
    """The stream of what an entry says was called; None where its beginning is not there any more. `run` "": as the
    thread stands, whoever ran last."""
    named = named_call(call)
    begun = beginning(stream.log, named[1], named[0]) if named is not None else None
    if named is None or begun is None:
        return None
    reading = stream.reading.below(call.text("node")) or Reading()
    found = LogStream(
        stream.log,
        named[1],
        named[0] if run is None else run,
        begun.id if run is None else "",
        reading,
        tuple(stream.modes),
        keys=reading.outputs,
        checkpoints=stream.checkpoints,
        where=where_below(stream.log, stream.where, stream.thread, call, begun),
    )
    found.errors = stream.errors
    return found


def nesting(stream: LogStream) -> LogStream:
    """The same stream, which also tells how those stand that its tasks called and that wait on."""

    def standing(waits: e.Entry) -> Iterator[Nested]:
        inner = below(stream, waits, run="")
        if inner is not None:
            yield from nesting(inner).asking()

    stream.standing = standing
    return stream


class Branch:
    """A run that is read here, and what its tasks called. `nested`: is that told, too? `opened` hears of each run."""

    def __init__(self, stream: LogStream, *, nested: bool, opened: Callable[[str], None]) -> None:
        self.stream = nesting(stream) if nested else stream
        self._nested = nested
        self._opened = opened
        self._called: dict[Key, Branch] = {}
        self._since = stream.since

    def look(self, insist: Insist, thread: str = "") -> Iterator[Nested]:
        """What the logs have to tell since the last look; with a `thread` only that one's log. `insist` outlives a
        short absence of the log."""
        if thread in ("", self.stream.thread):
            yield from self._own(insist)
        for branch in tuple(self._called.values()):
            yield from branch.look(insist, thread)

    def _own(self, insist: Insist) -> Iterator[Nested]:
        stream = self.stream
        for entry in insist(lambda: list(stream.log.pages(stream.thread, self._since))):
            self._since = f"({entry.id}"
            yield from stream.before(entry)
            for key in spoken_for(entry, stream.run, self._called):
                yield from self._called.pop(key).look(insist)
            yield from stream.feed(entry)
            if self._nested and entry.kind == "task_called" and entry.text("run") == stream.run:
                self._open(entry)
        yield from stream.flush()

    def _open(self, call: e.Entry) -> None:
        key, named = (call.n, call.text("task")), named_call(call)
        before = self._called.get(key)
        if before is not None and named is not None and before.stream.run == named[0]:
            return  # it is waited for once more
        inner = below(self.stream, call)
        if inner is not None:
            self._called[key] = Branch(inner, nested=True, opened=self._opened)
            self._opened(inner.run)
