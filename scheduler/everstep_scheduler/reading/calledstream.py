"""The stream of a graph that a function called, as long as the run that called it is told.

    effect_done, with `called` ──► its log: run_started by our run ──► that run's chunks ──► by our run again, in the
                                                                       task's next attempt ──► that one's, too

Its log goes on over the attempts of the task, and over the runs of who calls: each run in it names the run that called
(`caller`). Runs of others are passed over. The record of the call stands before the log's first entry.
"""

from __future__ import annotations

from collections.abc import Iterator

from everstep_checkpoint import entries as e
from everstep_checkpoint.replay import RUN_FACTS

from ..graph.placing import called_spec
from .children import called_by
from .chunks import LogStream
from .ending import Ending, EndingFinder
from .nested import Nested, Where, beginning, named_call
from .shapes import Reading

NOBODY = "\n"  # no run has this id


class CalledStream(LogStream):
    """`above`: the stream of who calls; `call`: the fact that says so. `ended`: how it ended, once there is
    nothing more to come."""

    def __init__(self, above: LogStream, call: e.Entry) -> None:
        named = named_call(call)
        assert named is not None, "a call names what it called"
        self.first, thread = named
        self.above, self.call, self.by = above, call, above.run
        self.ended: Ending | None = None
        self._finder = EndingFinder(NOBODY)
        self._held: list[Nested] = []  # questions, until it is clear that the attempt has no answers for them
        self._others = False  # another call's runs stand in this log
        super().__init__(
            above.log, thread, NOBODY, self._since(thread), Reading(), tuple(above.modes),
            checkpoints=above.checkpoints, where=_where(above, call),
        )  # fmt: skip
        self.errors, self.specs = above.errors, above.specs

    def _since(self, thread: str) -> str:
        """Where to read from: its first run, or behind all that is there now."""
        head = self.above.log.head(thread)  # asked for first: meanwhile it may begin
        begun = beginning(self.above.log, thread, self.first)
        if begun is not None:
            return begun.id
        if head is None:
            return "0-1"
        n, k = e.entry_id(head.last)
        return f"{n}-{k + 1}"

    @property
    def stands(self) -> bool:
        """Was it called in an earlier run, and has not gone on in this one? Most will not."""
        return self.run == NOBODY and self.call.text("run") != self.by

    def anew(self) -> CalledStream:
        return CalledStream(self.above, self.call)

    def feed(self, entry: e.Entry) -> Iterator[Nested]:
        before = self.run
        if entry.kind in RUN_FACTS and not self._others:
            self._run(entry)
        told = super().feed(entry)
        if entry.kind in ("task_paused", "run_rested") and entry.text("run") == self.run:
            self._held.extend(told)
        elif before not in (NOBODY, self.run) and entry.text("kind_of_run") == "resume":
            self._held = []  # the attempt had the answers: to who listens nothing was asked, and all goes on
            for _ in told:
                pass
            self._begins = iter(())
        else:
            yield from told
        ended = self._finder.feed(entry)
        if ended is not None and ended.status == "done":
            self.ended = ended

    def closing(self) -> Iterator[Nested]:
        held, self._held = self._held, []
        yield from held

    def _run(self, fact: e.Entry) -> None:
        """A run begins in the log. Is it of the call, and by the run that is told?"""
        if fact.text("kind_of_run") == "input" and fact.text("run") != self.first:
            self._others = True
            return
        caller = called_by(fact)
        if caller is not None and caller.run == self.by:
            self.run, self.since, self._record = fact.text("run"), fact.id, None
            self.ended, self._finder = None, EndingFinder(self.run)
            self._known(fact)
            self.above.heard(self.call)

    def _known(self, fact: e.Entry) -> None:
        """How its values are read: by its graph, where that is at hand."""
        spec = self.specs.get(self.first)
        if spec is None and self.above.reading.spec is not None:
            spec = called_spec(self.above.reading.spec, self.call.text("node"), fact.text("graph"))
        self.reading = Reading(spec)
        self.keys = self.reading.told(self.reading.outputs)

    def asking(self) -> Iterator[Nested]:
        begun = self.log.read(self.thread, self.since, self.since)
        if begun:
            self._known(begun[0])
        yield from super().asking()


def _where(above: LogStream, call: e.Entry) -> Where:
    found = above.log.read(above.thread, f"{call.n}-0", f"{call.n}-0")
    said = {above.where.place.ns: found[0].checkpoint_id} if found else {}
    return Where(above.where.place.at(call.text("ns")), dict(sorted({**above.where.parents, **said}.items())))
