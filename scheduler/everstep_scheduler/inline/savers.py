"""Where an inline graph keeps its threads. Names and constructors as in LangGraph.

`InMemorySaver` ends with the process. `RedisSaver` shares its threads with the workers: an inline caller leases its own
thread's tasks, and if it dies, the fleet takes over.
"""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys, rq_prefix
from everstep_checkpoint.log import Log, MemoryLog
from everstep_checkpoint.redislog import RedisLog

from ..moves.connection import DEFAULT_URL, answer_s, connect, server_run_id, translated
from ..moves.contract import LEASE_MS, Lease, Moves
from ..moves.keeper import LeaseKeeper
from ..moves.live import LiveWriter
from ..moves.promises import Keeper, NoPromises, Promises
from ..moves.redismoves import RedisMoves, Scripts
from ..moves.translatedlog import for_user
from ..recovery.recovery import Recovery
from .logmoves import LogMoves


def owner_name() -> str:
    """The name under which this process's inline runs hold their leases."""
    return f"everstep-inline.{socket.gethostname()}.{os.getpid()}.{new_id()[:6]}"


class Saver(Protocol):
    """What `compile(checkpointer=...)` takes. `keeper` is None where nothing can take a task away.

    `live` writes what nodes say for readers elsewhere; None where there is no elsewhere. `promises` sees to durability.
    """

    @property
    def log(self) -> Log: ...
    @property
    def moves(self) -> Moves: ...
    @property
    def owner(self) -> str: ...
    @property
    def lease_ms(self) -> int: ...
    @property
    def keeper(self) -> LeaseKeeper | None: ...
    @property
    def live(self) -> LiveWriter | None: ...
    @property
    def promises(self) -> Keeper: ...


class InMemorySaver:
    """Keeps threads in this process's memory."""

    lease_ms = LEASE_MS
    keeper: LeaseKeeper | None = None
    live: LiveWriter | None = None

    def __init__(self) -> None:
        self.owner = owner_name()
        self.log: Log = MemoryLog()
        self.moves: Moves = LogMoves(self.log)
        self.promises: Keeper = NoPromises()


MemorySaver = InMemorySaver


class RedisSaver:
    """Keeps threads in Redis, where workers, clients and the CLI see them.

    `redis_url` defaults to redis://127.0.0.1:6379/0. Raises ServerUnavailable at the first use if nobody answers.
    """

    def __init__(
        self,
        redis_url: str = DEFAULT_URL,
        *,
        namespace: str = "everstep",
        partition: str = "0",
        lease_ms: int = LEASE_MS,
    ) -> None:
        self.url = redis_url
        self.keys = Keys(namespace, partition, rq_prefix(partition))
        self.lease_ms = lease_ms
        self._open()
        _redis_savers.add(self)

    def _open(self) -> None:
        """Everything that belongs to one process: its name, its connections, its keeper. A forked child opens anew."""
        self.client = connect(self.url)
        self.log: Log = RedisLog(self.client, self.keys)
        self.owner = owner_name()
        recovery = Recovery(self.client, self.keys, self._held, lease_ms=self.lease_ms, owner=self.owner)
        moves = RedisMoves(Scripts(self.client, self.keys, recovery, self.url))
        self.moves: Moves = moves
        self.promises: Keeper = Promises(self.client, self.keys, self.url)
        # of its own: an answer that never comes must not cost a lease, and a commit may wait for its own longer
        patient = RedisMoves(
            Scripts(connect(self.url, answer_s=answer_s(self.lease_ms)), self.keys, recovery, self.url)
        )
        self.keeper: LeaseKeeper | None = LeaseKeeper(patient, self.owner, self.lease_ms, lambda: self._sweep(patient))
        self.live: LiveWriter | None = LiveWriter(lambda: connect(self.url, connections=2), self.keys)

    def _sweep(self, moves: RedisMoves) -> None:
        with translated(self.url):
            moves.sweep(server_run_id(moves.scripts.client), self.lease_ms)

    def _held(self) -> Sequence[Lease]:
        return self.keeper.held if self.keeper is not None else ()

    @classmethod
    @contextmanager
    def from_conn_string(cls, conn_string: str) -> Generator[RedisSaver]:
        """A saver that is closed at the end of the block."""
        saver = cls(conn_string)
        try:
            yield saver
        finally:
            saver.client.close()

    def setup(self) -> None:
        """Nothing to set up: no modules, no indexes. There for LangGraph's users."""


def log_for_user(saver: Saver) -> Log:
    """A saver's log, whose errors are ours."""
    return for_user(saver.log, saver.url if isinstance(saver, RedisSaver) else "")


_redis_savers: weakref.WeakSet[RedisSaver] = weakref.WeakSet()


def _reopen() -> None:
    for saver in tuple(_redis_savers):
        saver._open()  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_reopen)
