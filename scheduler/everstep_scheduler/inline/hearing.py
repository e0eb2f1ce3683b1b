"""Who listens to an inline run: what its nodes say comes to the caller while they run, through a queue in this process.

    node's thread ──hear──► queue ──bell (a Future)──► the driver wakes and hands it on
                     └────► the run's live stream, where the threads are in Redis

What its nodes say in another process, where a worker took over a retry, stands in the live stream; it is not heard
here.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from everstep_checkpoint.codec import Codec

from ..graph.placing import Place
from ..moves.contract import Lease
from ..moves.live import LiveWriter, Said
from ..moves.record import RunRecord
from ..reading.nested import Namespace, Nested, Where
from ..steps.voice import Listener, Listening, through


class Audience:
    """All who listen to what an inline driver runs: its caller to the own run, others through Redis, or `above`: those
    who listen to the attempt whose function called the run."""

    def __init__(self, ear: Ear | None, writer: LiveWriter | None) -> None:
        self._ear = ear
        self._others = through(writer) if writer is not None else None
        self.above: Listening | None = None

    def __call__(self, lease: Lease, record: RunRecord) -> Listener | None:
        others = self._others or self.above
        other = others(lease, record) if others is not None else None
        if self._ear is None or lease.run not in self._ear.runs:
            return other
        return self._ear.beside(other, lease, Where(Place(*record.parent)).ns if record.parent else ())


class Heard(NamedTuple):
    """Something that was said, in the graph at this namespace."""

    thread: str
    run: str
    ns: Namespace
    said: Said


class Ear:
    """Listens to the tasks of one run, and of those that it called, as far as `runs` names them; with how each reads
    what it says."""

    def __init__(self, run: str, codec: Codec, modes: Sequence[str]) -> None:
        self.bell: Future[None] = Future()
        self.codec = codec
        self.runs = {run: codec}
        self._modes = modes
        self._heard: deque[Heard] = deque()
        self._lock = threading.Lock()

    def beside(self, other: Listener | None, lease: Lease, ns: Namespace) -> Listener:
        """Listens to the attempt of this lease, in the graph at this namespace, with whoever else does."""
        others = other.modes if other is not None else ()

        def hear(said: Said) -> None:
            if said.mode in self._modes:
                self._hear(Heard(lease.thread, lease.run, ns, said))
            if other is not None and said.mode in others:
                other.hear(said)

        return Listener([*self._modes, *(mode for mode in others if mode not in self._modes)], hear)

    def _hear(self, heard: Heard) -> None:
        with self._lock:
            self._heard.append(heard)
            if not self.bell.done():
                self.bell.set_result(None)

    def take(self) -> Sequence[Heard]:
        """What was said since the last call, and the bell is armed anew."""
        with self._lock:
            found, self._heard = self._heard, deque()
            if self.bell.done():
                self.bell = Future()
        return found

    def told(self, heard: Heard) -> Nested:
        """As a chunk."""
        said = heard.said
        codec = self.runs.get(heard.run, self.codec)
        return heard.ns, said.mode, codec.decode(said.data, f"what {said.node!r} told")


class Words:
    """What was said, in its place: behind the checkpoint at which it was said, before anything came of it."""

    def __init__(self, ear: Ear | None) -> None:
        self._ear = ear
        self._waiting: deque[Heard] = deque()
        self._read: dict[str, int] = {}

    def read(self, thread: str, n: int) -> Iterator[Nested]:
        """The thread's log was read up to checkpoint n: what was said until then."""
        if self._read.get(thread, -1) < n:
            self._read[thread] = n
        yield from self.known()

    def known(self, *, last: bool = False) -> Iterator[Nested]:
        """What was said at checkpoints that were read; with `last` all the rest, too."""
        if self._ear is None:
            return
        self._waiting.extend(self._ear.take())
        waiting, self._waiting = self._waiting, deque()
        for heard in waiting:
            if last or heard.said.n <= self._read.get(heard.thread, -1):
                yield self._ear.told(heard)
            else:
                self._waiting.append(heard)

    @property
    def waiting(self) -> bool:
        """Was something said at a checkpoint that was not read yet?"""
        return bool(self._waiting)
