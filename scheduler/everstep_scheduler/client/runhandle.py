"""Run: one run on a thread, held by who submitted it or looks at it. It reads; nothing here moves anything.

run.status()      what the index says          run.entries()     its log as it grows
run.result(5)     its output, or what ended it  run.chunks(...)   LangGraph's stream chunks
                                                run.events(...)   the same, resumable, and what befell them
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any, NoReturn

import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import (
    GraphRecursionError,
    LogError,
    Rewound,
    RunCancelled,
    Trimmed,
    UnknownRun,
)
from everstep_checkpoint.redislog import entries_of
from everstep_checkpoint.replay import state_at

from ..graph.durability import COMMIT
from ..reading.ending import OWN_ERRORS, Ending, EndingFinder
from ..reading.nested import shaped
from ..reading.shapes import Chunk, Reading, check_modes
from ..reading.standing import standing
from .events import REWOUND, TRIMMED, Event, EventStream, before
from .tail import BLOCK_MS, Tail
from .waiting import may_wait, waiting_for

if TYPE_CHECKING:
    from .client import Client


class Run:
    """A run by its id. `entry`: the fact in the log with which it began."""

    def __init__(
        self, client: Client, thread_id: str, run_id: str, entry: str, reading: Reading, durability: str = COMMIT
    ) -> None:
        self.thread_id = thread_id
        self.run_id = run_id
        self._client = client
        self._entry = entry
        self._reading = reading
        self._durability = durability  # as far as this client was told

    def __repr__(self) -> str:
        return f"Run(thread_id={self.thread_id!r}, run_id={self.run_id!r})"

    def status(self) -> str:
        """queued, running, done, failed, interrupted or cancelled. Raises UnknownRun."""
        return self._client.run_status(self.thread_id, self.run_id)[0]

    def result(self, timeout: float | None = None) -> Any:
        """The output once the run is done: its values, or what an entrypoint returned. Where it rests with questions
        they are its `__interrupt__`.

        Without a timeout (seconds) it waits for as long as it takes. A node that runs on a worker may not wait.

        A durability that `submit` was told is seen to for the end, too, and so for all of the run; a DurabilityWarning
        says where it is not kept.

        Raises RunFailed, which is also what the node raised where that is a builtin or registered class;
        NodeTimeoutError, GraphRecursionError, RunCancelled; Forged; TimeoutError saying what it waits for.
        InvalidInput in such a node.
        """
        ended = self.ending(timeout)
        if ended.status not in ("done", "interrupted"):
            self._raise(ended)
        log, head = self._client.log_store, self._client.log_store.head(self.thread_id)
        rests = ended.status == "interrupted" or not ended.digest  # and there is no checkpoint of its own
        if rests and head is not None and head.n == ended.n:
            return standing(log, self.thread_id, self._reading)
        return self._reading.output(state_at(log, self.thread_id, ended.n) if ended.n else None)

    def settled(self, timeout: float | None = None) -> Ending:
        """The ending of a run that went well. Raises as `result` does."""
        ended = self.ending(timeout)
        if ended.status not in ("done", "interrupted"):
            self._raise(ended)
        return ended

    def ending(self, timeout: float | None = None) -> Ending:
        """How the run ended, as soon as it has. Raises TimeoutError."""
        may_wait(f"run {self.run_id!r}")
        finder = EndingFinder(self.run_id)
        for entry in self._follow(timeout):
            if (ended := finder.feed(entry)) is not None:
                self._confirm()
                return ended
        raise AssertionError("a followed run ends, or raises")

    def entries(self, timeout: float | None = None) -> Iterator[e.Entry]:
        """The thread's entries from the run's first one on, as they come, up to the one that ends the run. Raises
        TimeoutError; Forged for one that is not signed as it should be, where this process has a key."""
        may_wait(f"run {self.run_id!r}")
        finder = EndingFinder(self.run_id)
        for entry in self._follow(timeout):
            yield entry
            if finder.feed(entry) is not None:
                return

    def chunks(
        self,
        mode: str | Sequence[str] = "updates",
        timeout: float | None = None,
        *,
        keys: Sequence[str] | None = None,
        subgraphs: bool = False,
    ) -> Iterator[Chunk]:
        """LangGraph's stream chunks as the run goes, from its beginning; of several modes as (mode, chunk).

        `subgraphs`: also those of graphs that are nodes; each chunk then begins with its namespace.

        `keys`: those of the state that `values` and `updates` show; None: all. `custom` and `messages` must have been
        asked for when the run began. Raises as `result` does; Rewound, Trimmed if the log is not what it was, which
        `events` survives; InvalidInput.
        """
        modes, tagged = check_modes(mode), not isinstance(mode, str)
        for event in self._events(modes, "", timeout, keys, subgraphs):
            if event.mode in modes:
                yield from shaped([(event.ns, event.mode, event.chunk)], nested=subgraphs, tagged=tagged)
            elif event.mode in (REWOUND, TRIMMED):
                raise self._not_as_it_was(event)

    def events(
        self,
        mode: str | Sequence[str] = "updates",
        *,
        after: str = "",
        timeout: float | None = None,
        subgraphs: bool = False,
    ) -> Iterator[Event]:
        """What happens, each with a cursor: hand the last one seen to `after`, in any process, to go on behind it.

        Chunks are LangGraph's. Beside the modes asked for come `superseded` and `gap` about what was said live, and
        `rewound` (read what follows as the run's beginning) and `trimmed` if the log is not what it was. With
        `subgraphs` they come from graphs that are nodes, too: `event.ns` says which. To go on within an entry's chunks,
        ask for the same modes. Raises as `result` does, and InvalidInput.
        """
        return self._events(check_modes(mode), after, timeout, None, subgraphs)

    def _events(
        self,
        modes: Sequence[str],
        after: str,
        timeout: float | None,
        keys: Sequence[str] | None,
        subgraphs: bool,
    ) -> Iterator[Event]:
        may_wait(f"run {self.run_id!r}")
        stream = EventStream(self._client, self, self._entry, self._reading, modes, keys, timeout, nested=subgraphs)
        yield from stream.read(after)
        if stream.ended is not None:
            self._confirm()
        if stream.ended is not None and stream.ended.status not in ("done", "interrupted"):
            self._raise(stream.ended)

    def _confirm(self) -> None:
        """The end was seen; a replica that has what is written now has all of the run."""
        self._client.confirm(self._durability, self.thread_id, f"the end of run {self.run_id!r}")

    def _not_as_it_was(self, event: Event) -> LogError:
        again = "`run.events()` goes on; `run.chunks()` begins anew"
        if event.mode == TRIMMED:
            return Trimmed("the beginning of the run is not kept any more", thread=self.thread_id, fix=again)
        return Rewound("Redis lost the end of the log that was being read", thread=self.thread_id, fix=again)

    # following

    def _follow(self, timeout: float | None) -> Iterator[e.Entry]:
        """Entries from the run's first one on, for ever. Outages of up to a minute are waited for."""
        end = None if timeout is None else time.monotonic() + timeout
        key, tail = self._client.keys.log(self.thread_id), Tail(self._client.redis, self._client.url)
        cursor = before(self._entry)
        while True:
            try:
                rows = tail.read({key: cursor}, BLOCK_MS / 1000 if end is None else end - time.monotonic()).get(key, ())
                found = entries_of(rows, self.thread_id, self._client.log_store.signer)
                cursor = found[-1].id if found else self._checked(cursor)
            except redis.RedisError as error:
                tail.absent(error)
                found = []
            yield from found
            if end is not None and time.monotonic() >= end:
                self.timed_out(timeout or 0.0)

    def _checked(self, cursor: str) -> str:
        """Nothing came for a while: is the log still the one we follow? After a rewind we begin anew."""
        head = self._client.log_store.read(self.thread_id, count=1, reverse=True)
        if head and e.entry_id(head[0].id) >= e.entry_id(cursor):
            return cursor
        if not self._client.log_store.read(self.thread_id, self._entry, self._entry):
            raise self.unknown()
        return before(self._entry)

    def unknown(self) -> UnknownRun:
        """The error that says that the run is gone."""
        what = f"the run {self.run_id!r} is not in the log any more"
        return UnknownRun(what, thread=self.thread_id, fix="the thread was deleted, or Redis lost its last second")

    def timed_out(self, timeout: float) -> NoReturn:
        """Raise the TimeoutError that says what the run waits for."""
        said = waiting_for(self._client.redis, self._client.keys, self.thread_id, self.run_id)
        raise TimeoutError(
            f"run {self.run_id!r} on thread {self.thread_id!r} did not rest within {timeout:g} s: {said}"
        )

    def _raise(self, ended: Ending) -> NoReturn:
        thread = self.thread_id
        if ended.status == "cancelled":
            by = f" by {ended.actor}" if ended.actor else ""
            fix = f"`everstep retry {quote(thread)}` lets it go on, unless another run has begun"
            raise RunCancelled(f"the run {self.run_id!r} was cancelled{by}", thread=thread, fix=fix)
        if ended.error_type.removeprefix(OWN_ERRORS) == "GraphRecursionError":
            raise GraphRecursionError(
                ended.text, thread=thread, fix="raise config['recursion_limit'], or retry to go on"
            )
        raise self._client.errors.failed(ended, thread, f"mend the cause, then `everstep retry {quote(thread)}`")
