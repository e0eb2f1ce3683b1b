"""The live side channel: what nodes say while they run, in a bounded Redis Stream per run, beside the log.

    node ──tell──► buffer ──a thread, batches──► live:<run> <thread>     never waits for Redis, never makes a node wait

It is no truth: it may be cut and it expires. Each thing said has a number within its attempt, so that a reader knows of
every gap, and the log says how many there were (field `told`), so that a reader knows when it has heard all.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import CorruptEntry
from everstep_checkpoint.keys import Keys

from .connection import BACKOFF_MAX_S

LIVE_MODES = ("custom", "messages")
SAID_MAX = 256 * 1024  # bytes of one thing said
BUFFER_MAX = 8192  # things that wait for Redis in a process; the oldest go first
BUFFER_BYTES = 16 * 2**20
BATCH_MAX = 256
KEPT_MAX = 10_000  # things kept per run
KEPT_BYTES = 64 * 2**20
KEPT_S = 3600
CLOSE_S = 1.0

_log = logging.getLogger("everstep")


class Said(NamedTuple):
    """One thing that an attempt said: the i-th (from 1) of attempt `token` at a task of checkpoint n, encoded.

    `id`: the task's, the same over all its attempts.
    """

    mode: str
    n: int
    task: str
    id: str
    node: str
    attempt: int
    token: str
    i: int
    data: bytes

    def fields(self) -> dict[str, str | int | bytes]:
        """As the stream keeps it: plain text first, then the value behind its envelope."""
        return {**self._asdict(), "data": e.wrap(self.data)}

    @classmethod
    def read(cls, raw: Mapping[bytes, bytes]) -> Said:
        """From a stream's fields. Raises CorruptEntry."""
        try:
            text = {name.decode(): value for name, value in raw.items()}
            mode, task, key, node, token = (text[name].decode() for name in ("mode", "task", "id", "node", "token"))
            n, attempt, i = (int(text[name]) for name in ("n", "attempt", "i"))
        except (KeyError, ValueError) as error:
            raise CorruptEntry(
                f"something that is not everstep's stands in a live stream ({error!r})", fix="delete that key"
            ) from None
        return cls(mode, n, task, key, node, attempt, token, i, e.unwrap(text.get("data", b""), "a live stream's data"))


class LiveWriter:
    """Writes what is said to Redis, in a thread and over a connection of its own; both begin at the first use."""

    def __init__(self, connect: Callable[[], Any], keys: Keys) -> None:
        self._connect = connect
        self._keys = keys
        self._waiting: deque[tuple[str, Said]] = deque()
        self._bytes = 0
        self._there = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.dropped = 0

    def tell(self, thread: str, run: str, said: Said) -> None:
        """Take something to write. Returns at once; over the buffer's bound the oldest is dropped."""
        with self._there:
            self._waiting.append((self._keys.live(thread, run), said))
            self._bytes += len(said.data)
            while len(self._waiting) > BUFFER_MAX or (self._bytes > BUFFER_BYTES and len(self._waiting) > 1):
                self._bytes -= len(self._waiting.popleft()[1].data)
                self.dropped += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="everstep-live", daemon=True)
                self._thread.start()
            self._there.notify()

    def close(self) -> None:
        """Write what waits, for at most a second."""
        with self._there:
            self._closed = True
            self._there.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        client, delay = self._connect(), 0.02
        while batch := self._batch():
            while True:
                try:
                    self._write(client, batch)
                    delay = 0.02
                    break
                except redis.RedisError as error:
                    if self._closed:
                        return
                    _log.debug("live stream: %s; trying again", error)
                time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
                delay = min(delay * 2, BACKOFF_MAX_S)
        client.close()

    def _batch(self) -> Sequence[tuple[str, Said]]:
        """What waits, up to a batch; waits for the first. Empty: closed, and all is written."""
        with self._there:
            while not self._waiting and not self._closed:
                self._there.wait()
            found = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MAX))]
            self._bytes -= sum(len(said.data) for _, said in found)
            return found

    def _write(self, client: Any, batch: Sequence[tuple[str, Said]]) -> None:
        """One pipeline. Sent twice it is harmless: readers know each thing by its number. A full server's refusal, or
        that of a key which is not ours, costs what it refuses."""
        largest = max(len(said.data) for _, said in batch) + 200
        kept = max(min(KEPT_MAX, KEPT_BYTES // largest), 1)
        pipe = client.pipeline(transaction=False)
        for key, said in batch:
            pipe.xadd(key, said.fields(), maxlen=kept, approximate=True)
        for key in {key for key, _ in batch}:
            pipe.expire(key, KEPT_S)
        refused = [x for x in pipe.execute(raise_on_error=False) if isinstance(x, redis.RedisError)]
        away = [x for x in refused if isinstance(x, redis.ConnectionError | redis.TimeoutError)]
        if away:
            raise away[0]
        if refused:
            self.dropped += len(refused)
            _log.warning("%d things said were not written to the live stream: %s", len(refused), refused[0])
