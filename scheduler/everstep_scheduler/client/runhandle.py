"""Run: one run on a thread, held by who submitted it or looks at it. It reads; nothing here moves anything.

run.status()      what the index says          run.entries()     its log as it grows
run.result(5)     its output, or what ended it  run.chunks(...)   LangGraph's stream chunks
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import (
    GraphRecursionError,
    LogError,
    NodeTimeoutError,
    RunCancelled,
    RunFailed,
    UnknownRun,
)
from everstep_checkpoint.replay import state_at

from ..moves.connection import BACKOFF_MAX_S, server_error
from ..reading.ending import Ending, EndingFinder
from ..steps.streaming import check_modes
from .following import Chunk, Reading, RunStream, standing
from .waiting import waiting_for

if TYPE_CHECKING:
    from .client import Client

BLOCK_MS = 1000
PAGE = 256
OUTAGE_S = 60.0


class Run:
    """A run by its id. `entry`: the fact in the log with which it began."""

    def __init__(self, client: Client, thread_id: str, run_id: str, entry: str, reading: Reading) -> None:
        self.thread_id = thread_id
        self.run_id = run_id
        self._client = client
        self._entry = entry
        self._reading = reading

    def __repr__(self) -> str:
        return f"Run(thread_id={self.thread_id!r}, run_id={self.run_id!r})"

    def status(self) -> str:
        """queued, running, done, failed, interrupted or cancelled. Raises UnknownRun."""
        return self._client.run_status(self.thread_id, self.run_id)[0]

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """The output values once the run is done, or rests with questions, which are then its `__interrupt__`.

        Without a timeout (seconds) it waits for as long as it takes.

        Raises RunFailed, NodeTimeoutError, GraphRecursionError, RunCancelled; TimeoutError saying what it waits for.
        """
        ended = self.ending(timeout)
        if ended.status not in ("done", "interrupted"):
            self._raise(ended)
        log, head = self._client.log_store, self._client.log_store.head(self.thread_id)
        if ended.status == "interrupted" and head is not None and head.n == ended.n:
            return standing(log, self.thread_id, self._reading)
        return self._reading.output(state_at(log, self.thread_id, ended.n).channels) if ended.n else {}

    def settled(self, timeout: float | None = None) -> Ending:
        """The ending of a run that went well. Raises as `result` does."""
        ended = self.ending(timeout)
        if ended.status not in ("done", "interrupted"):
            self._raise(ended)
        return ended

    def ending(self, timeout: float | None = None) -> Ending:
        """How the run ended, as soon as it has. Raises TimeoutError."""
        finder = EndingFinder(self.run_id)
        for entry in self._follow(timeout):
            if (ended := finder.feed(entry)) is not None:
                return ended
        raise AssertionError("a followed run ends, or raises")

    def entries(self, timeout: float | None = None) -> Iterator[e.Entry]:
        """The thread's entries from the run's first one on, as they come, up to the one that ends the run."""
        finder = EndingFinder(self.run_id)
        for entry in self._follow(timeout):
            yield entry
            if finder.feed(entry) is not None:
                return

    def chunks(self, mode: str | Sequence[str] = "updates", timeout: float | None = None) -> Iterator[Chunk]:
        """LangGraph's stream chunks, `values` and `updates`, as the run goes. Raises as `result` does."""
        modes, tagged = check_modes(mode), not isinstance(mode, str)
        stream = RunStream(self._client.log_store, self.thread_id, self.run_id, self._reading, modes, tagged)
        finder = EndingFinder(self.run_id)
        for entry in self._follow(timeout):
            yield from stream.feed(entry)
            if (ended := finder.feed(entry)) is None:
                continue
            if ended.status not in ("done", "interrupted"):
                self._raise(ended)
            return

    # following

    def _follow(self, timeout: float | None) -> Iterator[e.Entry]:
        """Entries from the run's first one on, for ever. Outages of up to a minute are waited for."""
        end = None if timeout is None else time.monotonic() + timeout
        cursor, away_since, delay = _before(self._entry), 0.0, 0.02
        while True:
            try:
                found = self._read(cursor, end)
                away_since, delay = 0.0, 0.02
            except redis.RedisError as error:
                away_since = away_since or time.monotonic()
                if not _passes(error) or time.monotonic() - away_since > OUTAGE_S:
                    raise server_error(error, self._client.url) from error
                time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
                delay, found = min(delay * 2, BACKOFF_MAX_S), []
            yield from found
            cursor = found[-1].id if found else cursor
            if not found and not away_since:
                cursor = self._checked(cursor)
            if end is not None and time.monotonic() >= end:
                self._timed_out(timeout or 0.0)

    def _read(self, cursor: str, end: float | None) -> list[e.Entry]:
        left = BLOCK_MS if end is None else int(max(min((end - time.monotonic()) * 1000, BLOCK_MS), 1))
        client: Any = self._client.redis
        answer = client.xread({self._client.keys.log(self.thread_id): cursor}, count=PAGE, block=left)
        try:
            return [e.read_entry(entry_id, fields) for _, rows in answer or () for entry_id, fields in rows]
        except LogError as error:
            error.of(self.thread_id)
            raise

    def _checked(self, cursor: str) -> str:
        """Nothing came for a while: is the log still the one we follow? After a rewind we begin anew."""
        head = self._client.log_store.read(self.thread_id, count=1, reverse=True)
        if head and e.entry_id(head[0].id) >= e.entry_id(cursor):
            return cursor
        if not self._client.log_store.read(self.thread_id, self._entry, self._entry):
            raise self._unknown()
        return _before(self._entry)

    def _unknown(self) -> UnknownRun:
        what = f"the run {self.run_id!r} is not in the log any more"
        return UnknownRun(what, thread=self.thread_id, fix="the thread was deleted, or Redis lost its last second")

    def _timed_out(self, timeout: float) -> NoReturn:
        said = waiting_for(self._client.redis, self._client.keys, self.thread_id, self.run_id)
        raise TimeoutError(
            f"run {self.run_id!r} on thread {self.thread_id!r} did not rest within {timeout:g} s: {said}"
        )

    def _raise(self, ended: Ending) -> NoReturn:
        thread = self.thread_id
        if ended.status == "cancelled":
            raise RunCancelled(
                f"the run {self.run_id!r} was cancelled", thread=thread, fix=f"`everstep retry {thread}` lets it go on"
            )
        kind = ended.error_type.rpartition(".")[2]
        if kind == "GraphRecursionError":
            raise GraphRecursionError(
                ended.text, thread=thread, fix="raise config['recursion_limit'], or retry to go on"
            )
        what = ended.error.words or "the run failed"
        error = NodeTimeoutError if kind == "NodeTimeoutError" else RunFailed
        fix = f"mend the cause, then `everstep retry {thread}`"
        raise error(
            what,
            error_type=ended.error_type,
            traceback=ended.error.traceback,
            thread=thread,
            node=ended.node,
            fix=fix,
        )


def _passes(error: redis.RedisError) -> bool:
    """Is it an outage, and no refusal?"""
    away = isinstance(error, redis.ConnectionError | redis.TimeoutError)
    return away and not isinstance(error, redis.AuthenticationError)


def _before(entry: str) -> str:
    """The id just below a fact's."""
    n, k = e.entry_id(entry)
    return f"{n}-{k - 1}" if k else f"{max(n - 1, 0)}-{2**63 - 1}"
