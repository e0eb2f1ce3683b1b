"""Telling: an inline run's chunks for its caller, from the log as it grows and from what nodes say meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from ..graph.spec import GraphSpec
from ..moves.record import CALLS
from ..reading.branches import Branch, Insist
from ..reading.chunks import LogStream
from ..reading.nested import Nested, shaped
from ..reading.shapes import LOG_MODES, Chunk, Reading, asked_modes, check_modes, live_modes
from ..steps.effects import Heeding
from .hearing import Audience, Ear, Words
from .savers import Saver


class Telling:
    """One run's chunks. Where nobody streams it reads nothing and costs nothing.

    `keys`: those that `values` and `updates` show; None: all. `checkpoints`: does the graph have a checkpointer?
    `nested`: is what its tasks call told, too?
    """

    def __init__(
        self,
        spec: GraphSpec,
        saver: Saver,
        thread: str,
        run: str,
        mode: str | Sequence[str] | None,
        keys: Sequence[str] | None = None,
        checkpoints: bool = True,
        nested: bool = False,
    ) -> None:
        self._spec, self._log, self._thread, self._run = spec, saver.log, thread, run
        self._keys, self._checkpoints = keys, checkpoints
        self._modes, self._tagged = check_modes(mode), not isinstance(mode, str)
        live = live_modes(self._modes)
        self.nested = nested and bool(self._modes)
        self._ear = Ear(run, spec.codec, live) if live else None
        self.audience = Audience(self._ear, saver.live)
        self.above: Heeding | None = None  # who follows the attempt whose function called this run
        self._words = Words(self._ear)
        self._specs: dict[str, GraphSpec] = {}
        self._errors: dict[str, BaseException] | None = None
        self._branch: Branch | None = None
        self._watches = self.nested or (bool(set(self._modes) & set(LOG_MODES)) and self._calls_news())
        self._news: Future[None] = Future()
        self._lock = threading.Lock()

    def _calls_news(self) -> bool:
        """Does the log tell something while a node runs? An entrypoint's calls, and those that somebody asked for."""
        return self._spec.direct or CALLS in asked_modes(self._modes)

    @property
    def waits_beside(self) -> bool:
        """Is there anything to tell while a node runs? Then not in its thread."""
        return self._watches

    def of(self, run: str) -> None:
        """It is another run that is told of: one that its caller takes up."""
        self._run = run
        if self._ear is not None:
            self._ear.runs = {run: self._ear.codec}

    def begin(self, entry: str) -> None:
        """The run began with this entry."""
        if not self.nested and not set(self._modes) - set(live_modes(self._modes)):
            return
        stream = LogStream(
            self._log, self._thread, self._run, entry, Reading(self._spec), self._modes,
            keys=self._keys, checkpoints=self._checkpoints,
        )  # fmt: skip
        self._errors, stream.specs = stream.errors, self._specs
        self._branch = Branch(stream, nested=self.nested, opened=self._opened, words=self._words.read)

    def _opened(self, run: str) -> None:
        if self._ear is not None:
            self._ear.runs.setdefault(run, self._ear.codec)

    def called(self, run: str, spec: GraphSpec, by: str) -> None:
        """A function called a graph, in the run `by`: in this run of its own, or on with it."""
        if self.nested:
            self._specs[run] = spec
            if self._ear is not None and by in self._ear.runs:
                self._ear.runs[run] = spec.codec
        if self.above is not None:
            self.above.called(run, spec, by)

    def calls(self, run: str, spec: GraphSpec | None, by: str) -> None:
        """A task of ours calls a run, which is about to begin: who follows from above is to hear it from then on."""
        if self.above is not None and spec is not None:
            self.above.called(run, spec, by)

    def failed(self, key: str, error: BaseException, *, below: bool = False) -> None:
        """An attempt, or a call of a `@task`, raised: the chunk that tells it has the error itself. `below`: in what a
        function called."""
        if self._errors is not None and (self.nested or not below):
            self._errors[key] = error
        if self.above is not None:
            self.above.failed(key, error, below=True)

    def rang(self) -> None:
        """An attempt wrote something that may be told at once."""
        with self._lock:
            if self._watches and not self._news.done():
                self._news.set_result(None)

    def shaped(self, told: Iterable[Nested]) -> Iterator[Chunk]:
        """As the caller gets it."""
        return shaped(told, nested=self.nested, tagged=self._tagged)

    def standing(self) -> Iterator[Nested]:
        """What is told where there is nothing to run."""
        if self._branch is not None:
            yield from self._branch.stream.asking()

    def logged(self, insist: Insist, thread: str = "") -> Iterator[Nested]:
        """What the logs have to tell since the last look, or that of one thread. `insist` outlives a short absence of
        Redis."""
        if self._branch is not None:
            yield from self._branch.look(insist, thread)
            yield from self._words.known()

    # what nodes say

    @property
    def bells(self) -> list[Future[Any]]:
        """What rings when a node says or writes something; empty where nobody listens."""
        heard = [self._ear.bell] if self._ear is not None else []
        return [*heard, self._news] if self._watches else [*heard]

    def said(self) -> Iterator[Nested]:
        """What nodes said since the last look; in a tree of graphs that which has its place already."""
        yield from self._words.known(last=not self._watches or self._branch is None)

    def meanwhile(self, insist: Insist) -> Iterator[Nested]:
        """What there is to tell while nodes run."""
        with self._lock:
            news, self._news = self._news, Future() if self._news.done() else self._news
        yield from self.said()
        if news.done() or self._words.waiting:
            yield from self.logged(insist)

    def rest(self) -> Iterator[Nested]:
        """What nodes said and nothing was read about: the run is over, or is left."""
        yield from self._words.known(last=True)
