"""Telling: an inline run's chunks for its caller, from the log as it grows and from what nodes say meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from everstep_checkpoint import entries as e

from ..graph.spec import GraphSpec
from ..reading.chunks import LogStream
from ..reading.shapes import Chunk, Reading, Told, check_modes, live_modes
from .hearing import Audience, Ear
from .savers import Saver


class Telling:
    """One run's chunks. Where nobody streams it reads nothing and costs nothing.

    `keys`: those that `values` and `updates` show; None: all. `checkpoints`: does the graph have a checkpointer?
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
    ) -> None:
        self._modes, self._tagged = check_modes(mode), not isinstance(mode, str)
        live = live_modes(self._modes)
        self._ear = Ear(run, spec.codec, live) if live else None
        self.audience = Audience(self._ear, saver.live)
        self._spec, self._log, self._thread, self._run = spec, saver.log, thread, run
        self._keys, self._checkpoints = keys, checkpoints
        self._stream: LogStream | None = None
        self._since = ""

    def of(self, run: str) -> None:
        """It is another run that is told of: one that its caller takes up."""
        self._run = run
        if self._ear is not None:
            self._ear.run = run

    def begin(self, entry: str) -> None:
        """The run began with this entry."""
        self._since = entry
        if set(self._modes) - set(live_modes(self._modes)):
            self._stream = LogStream(
                self._log, self._thread, self._run, entry, Reading(self._spec), self._modes,
                keys=self._keys, checkpoints=self._checkpoints,
            )  # fmt: skip

    def failed(self, token: str, error: BaseException) -> None:
        """An attempt raised: the chunk that tells it has the error itself."""
        if self._stream is not None:
            self._stream.errors[token] = error

    def tagged(self, told: Iterable[Told]) -> Iterator[Chunk]:
        """As the caller gets it: of several modes with its mode."""
        for mode, chunk in told:
            yield (mode, chunk) if self._tagged else chunk

    def standing(self) -> Iterator[Told]:
        """What is told where there is nothing to run."""
        yield from self._stream.asking() if self._stream is not None else ()

    def logged(self, insist: Callable[[Callable[[], list[e.Entry]]], list[e.Entry]]) -> Iterator[Told]:
        """What the log has to tell since the last look. `insist` outlives a short absence of Redis."""
        if self._stream is None:
            return
        for entry in insist(lambda: list(self._log.pages(self._thread, self._since))):
            self._since = f"({entry.id}"
            yield from self._stream.before(entry)
            yield from self._stream.feed(entry)
        yield from self._stream.flush()

    # what nodes say

    @property
    def bells(self) -> list[Future[Any]]:
        """What rings when a node says something; empty where nobody listens."""
        return [self._ear.bell] if self._ear is not None else []

    def said(self) -> Iterator[Told]:
        """What nodes said since the last look."""
        yield from self._ear.heard() if self._ear is not None else ()
