"""Branches: the chunks of a run and of all that its tasks called, each with its namespace, from logs read as they grow.

    Branch.look ──► own entries in order; where one tells what came of a task that called something, first the rest of
                    that branch ──► then those that are still under way

For who reads in the process that runs the graph. Readers elsewhere, with cursors: `client/events.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from everstep_checkpoint import entries as e

from ..moves.contract import START_TASK, UPDATE_TASK
from .calledstream import CalledStream
from .chunks import LogStream
from .nested import Key, Nested, beginning, goes_on, is_call, key_of, named_call, spoken_for, where_below
from .shapes import Reading

Insist = Callable[[Callable[[], list[e.Entry]]], list[e.Entry]]
Words = Callable[[str, int], Iterator[Nested]]


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
    found.errors, found.specs = stream.errors, stream.specs
    return found


def nesting(stream: LogStream) -> LogStream:
    """The same stream, which also tells how those stand that its tasks called and that wait on."""

    def standing(waits: e.Entry) -> Iterator[Nested]:
        inner = CalledStream(stream, waits) if is_call(waits) else below(stream, waits, run="")
        if inner is not None:
            yield from nesting(inner).asking()

    stream.standing = standing
    return stream


def calls_in(stream: LogStream, entry: e.Entry) -> Sequence[e.Entry]:
    """What the tasks of a run call, or go on with, as an entry that it was fed with tells."""
    if entry.text("run") != stream.run:
        return ()
    if entry.kind == "run_started":
        return stream.still
    called = is_call(entry) and entry.text("task") not in (START_TASK, UPDATE_TASK)  # LangGraph tells those of no input
    return (entry,) if called or entry.kind == "task_called" else ()


def still_over(opened: set[Key], entry: e.Entry) -> set[Key]:
    """Of calls that were opened, those that are not to be opened again: a record may stand there twice. Where their run
    goes on, they may go on."""
    if entry.kind == "run_started":
        return set()
    return {key for key in opened if key[0] >= entry.n} if entry.is_checkpoint else opened


def stands(stream: LogStream, entry: e.Entry, key: Key) -> bool:
    """Is it to be left alone until its task comes to something? So is what was called in an earlier run."""
    return isinstance(stream, CalledStream) and stream.stands and goes_on(entry, key)


def is_done(stream: LogStream) -> bool:
    """Is it what a function called, and nothing more comes of that?"""
    return isinstance(stream, CalledStream) and stream.ended is not None


def under(stream: LogStream, call: e.Entry) -> LogStream | None:
    """The stream of what was called."""
    return CalledStream(stream, call) if is_call(call) else below(stream, call)


class Branch:
    """A run that is read here, and what its tasks called. `nested`: is that told, too? `opened` hears of each run.
    `words`: what was said in a thread that was read up to a checkpoint."""

    def __init__(self, stream: LogStream, *, nested: bool, opened: Callable[[str], None], words: Words) -> None:
        self.stream = nesting(stream) if nested else stream
        self._words = words
        self._nested = nested
        self._opened = opened
        self._called: dict[Key, Branch] = {}
        self._since, self._n = stream.since, 0
        self._over: set[Key] = set()  # calls of graphs that were opened

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
            self._since, self._n = f"({entry.id}", entry.n
            yield from stream.before(entry)
            yield from self._words(stream.thread, entry.n - entry.is_checkpoint)
            for key in spoken_for(entry, stream.run, self._called):
                branch = self._called[key]
                if not stands(branch.stream, entry, key):
                    yield from branch.look(insist)
                if not goes_on(entry, key):
                    yield from branch.stream.closing()
                if not goes_on(entry, key) or is_done(branch.stream):
                    del self._called[key]
            yield from stream.feed(entry)
            self._over = still_over(self._over, entry)
            for call in calls_in(stream, entry) if self._nested else ():
                self._open(call)
        yield from stream.flush()
        yield from self._words(stream.thread, self._n)

    def _open(self, call: e.Entry) -> None:
        key, named = key_of(call), named_call(call)
        before = self._called.get(key)
        if key in self._over or (before is not None and named is not None and before.stream.run == named[0]):
            return  # it is waited for once more, or was recorded twice
        self._over |= {key} if key[2] else set()
        inner = under(self.stream, call)
        if inner is not None:
            self._called[key] = Branch(inner, nested=True, opened=self._opened, words=self._words)
            self._opened(inner.run)
