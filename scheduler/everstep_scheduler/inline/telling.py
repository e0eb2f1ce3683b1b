"""Telling: an inline run's chunks for its caller, from the log as it grows and from what nodes say meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from ..graph.spec import GraphSpec
from ..reading.branches import Branch, Insist
from ..reading.chunks import LogStream
from ..reading.nested import Nested, shaped
from ..reading.shapes import Chunk, Reading, check_modes, live_modes
from .hearing import Audience, Ear
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
        self._modes, self._tagged = check_modes(mode), not isinstance(mode, str)
        live = live_modes(self._modes)
        self.nested = nested and bool(self._modes)
        self._ear = Ear(run, spec.codec, live) if live else None
        self.audience = Audience(self._ear, saver.live)
        self._spec, self._log, self._thread, self._run = spec, saver.log, thread, run
        self._keys, self._checkpoints = keys, checkpoints
        self._errors: dict[str, BaseException] | None = None
        self._branch: Branch | None = None

    def of(self, run: str) -> None:
        """It is another run that is told of: one that its caller takes up."""
        self._run = run
        if self._ear is not None:
            self._ear.runs = {run}

    def begin(self, entry: str) -> None:
        """The run began with this entry."""
        if not self.nested and not set(self._modes) - set(live_modes(self._modes)):
            return
        stream = LogStream(
            self._log, self._thread, self._run, entry, Reading(self._spec), self._modes,
            keys=self._keys, checkpoints=self._checkpoints,
        )  # fmt: skip
        self._errors = stream.errors
        self._branch = Branch(stream, nested=self.nested, opened=self._opened)

    def _opened(self, run: str) -> None:
        if self._ear is not None:
            self._ear.runs.add(run)

    def failed(self, token: str, error: BaseException) -> None:
        """An attempt raised: the chunk that tells it has the error itself."""
        if self._errors is not None:
            self._errors[token] = error

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

    # what nodes say

    @property
    def bells(self) -> list[Future[Any]]:
        """What rings when a node says something; empty where nobody listens."""
        return [self._ear.bell] if self._ear is not None else []

    def said(self) -> Iterator[Nested]:
        """What nodes said since the last look."""
        yield from self._ear.heard() if self._ear is not None else ()
