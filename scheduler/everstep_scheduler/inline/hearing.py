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

from everstep_checkpoint.codec import Codec

from ..graph.placing import Place
from ..moves.contract import Lease
from ..moves.live import LiveWriter, Said
from ..moves.record import RunRecord
from ..reading.nested import Namespace, Nested, Where
from ..steps.voice import Listener, through


class Audience:
    """All who listen to what an inline driver runs: its caller to the own run, others through Redis."""

    def __init__(self, ear: Ear | None, writer: LiveWriter | None) -> None:
        self._ear = ear
        self._others = through(writer) if writer is not None else None

    def __call__(self, lease: Lease, record: RunRecord) -> Listener | None:
        other = self._others(lease, record) if self._others is not None else None
        if self._ear is None or lease.run not in self._ear.runs:
            return other
        return self._ear.beside(other, Where(Place(*record.parent)).ns if record.parent else ())


class Ear:
    """Listens to the tasks of one run, and of those that it called, as far as `runs` names them."""

    def __init__(self, run: str, codec: Codec, modes: Sequence[str]) -> None:
        self.bell: Future[None] = Future()
        self.runs = {run}
        self._codec = codec
        self._modes = modes
        self._said: deque[tuple[Namespace, Said]] = deque()
        self._lock = threading.Lock()

    def beside(self, other: Listener | None, ns: Namespace) -> Listener:
        """Listens to an attempt in the graph at this namespace, with whoever else does."""

        def hear(said: Said) -> None:
            self._hear(ns, said)
            if other is not None:
                other.hear(said)

        return Listener(self._modes, hear)

    def _hear(self, ns: Namespace, said: Said) -> None:
        with self._lock:
            self._said.append((ns, said))
            if not self.bell.done():
                self.bell.set_result(None)

    def heard(self) -> Iterator[Nested]:
        """What was said since the last call, and the bell is armed anew."""
        with self._lock:
            found, self._said = self._said, deque()
            if self.bell.done():
                self.bell = Future()
        for ns, said in found:
            yield ns, said.mode, self._codec.decode(said.data, f"what {said.node!r} told")
