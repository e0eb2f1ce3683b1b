"""What runs are promised beyond a commit, asked of the server: before a run begins, and behind each of its commits.

    check ──► refused (ServerUnsuitable), and nothing is written     the server can't keep it now
    commit ──► kept ──► ""                                           the server says that it is kept
                    └─► what lacks, in words                         the commit stands, and the run goes on

Replicas receive one stream, in order. So a write of ours behind a commit's reply, and WAIT for that write, tell of the
commit as well, over any connection; and what lacked at one step is made good by a later one that was kept.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Collection
from typing import Any, Protocol

import redis

from everstep_checkpoint.errors import DurabilityWarning, InvalidInput, ServerUnsuitable
from everstep_checkpoint.keys import Keys

from ..graph.durability import COMMIT, FSYNC, replicas_of
from .connection import server_error, translated

WAIT_MS = 2000  # how long a step waits for replicas; one that was synced just now takes a second to answer
SHORT_MS = 100  # the same while they don't keep up, so that a run without its replicas goes on, if slowly
REWRITE_MS = 300  # how long a write may take to be confirmed while the append-only file is rewritten
MARK_S = 60
LOOK_S = 5.0
SAID_S = 5.0


class Keeper(Protocol):
    """What drivers ask."""

    def check(self, durability: str) -> None:
        """Raises where a run can't be promised this."""
        ...

    def kept(self, durabilities: Collection[str]) -> str:
        """Wait until what was committed before this call is kept as the words say. What lacks, in words, else empty.
        Raises nothing: what is committed stays so."""
        ...


class NoPromises:
    """Where nothing outlives the process, or another one's commit covers it."""

    def check(self, durability: str) -> None:
        if durability != COMMIT:
            raise InvalidInput(
                f"durability {durability!r} can't be promised: the run is kept in this process's memory alone",
                fix="compile(checkpointer=RedisSaver(...)), or leave it out",
            )

    def kept(self, durabilities: Collection[str]) -> str:
        return ""


class Promises:
    """On one Redis. Safe to use from several threads; `client` must be, too."""

    def __init__(self, client: Any, keys: Keys, url: str = "") -> None:
        self._client, self._keys, self._url = client, keys, url
        self._keeps_up = True
        self._looked = float("-inf")
        self._said, self._unsaid = float("-inf"), 0

    def check(self, durability: str) -> None:
        """Raises ServerUnsuitable if the server can't keep this now; ServerUnavailable."""
        if durability == COMMIT:
            return
        with translated(self._url):
            if durability == FSYNC and (lacks := fsync_lacks(self._client, self._keys.mark)):
                raise ServerUnsuitable(
                    f"durability 'fsync' can't be promised: {lacks}",
                    fix="set appendonly yes, appendfsync always and no-appendfsync-on-rewrite no, and wait for the "
                    "rewrite that begins then; or ask for 'commit'",
                )
            if (wanted := replicas_of(durability)) and (have := replicas_in(self._client.info("replication"))) < wanted:
                raise ServerUnsuitable(
                    f"durability {durability!r} can't be promised: {counted(have)} connected now",
                    fix="bring the replicas up, or ask for fewer",
                )

    def kept(self, durabilities: Collection[str]) -> str:
        wanted = max(map(replicas_of, durabilities), default=0)
        try:
            return (self._wait(wanted) if wanted else "") or (self._synced() if FSYNC in durabilities else "")
        except redis.RedisError as error:
            return f"nobody knows whether it is kept: {server_error(error, self._url).what}"

    def _wait(self, wanted: int) -> str:
        wait_ms = WAIT_MS if self._keeps_up else SHORT_MS
        pipe = self._client.pipeline(transaction=False)
        pipe.set(self._keys.mark, 1, ex=MARK_S)
        pipe.execute_command("WAIT", wanted, wait_ms)
        have = int(pipe.execute()[1])  # WAIT answers after its time, too: only the number says whether it is kept
        self._keeps_up = have >= wanted
        return "" if self._keeps_up else f"{counted(have)} had it within {wait_ms} ms, {wanted} asked for"

    def _synced(self) -> str:
        """Under `always` a commit's reply says it all; but somebody may have changed that since the run began."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return ""
        self._looked = now
        return fsync_lacks(self._client, self._keys.mark)

    def report(self, durabilities: Collection[str], what: object, log: logging.Logger) -> None:
        """Behind a commit: wait, and log what lacks, every few seconds at most."""
        if not (lacks := self.kept(durabilities)):
            return
        now = time.monotonic()
        if now - self._said < SAID_S:
            self._unsaid += 1
            return
        others, self._unsaid, self._said = self._unsaid, 0, now
        more = f"; {others} more since the last time this was said" if others else ""
        log.warning("%s: committed, but not as durable as was asked for: %s%s", what, lacks, more)


def warn(lacks: str, what: str) -> None:
    """Tell a caller that what was written is not as durable as was asked for."""
    if lacks:
        told = f"{what} is written, but not as durable as was asked for: {lacks}"
        warnings.warn(told, DurabilityWarning, stacklevel=2)


def fsync_lacks(client: Any, mark: str = "") -> str:
    """Why a reply of this server does not say that the write is on disk, in words; empty if it does. `mark`: a key that
    may be written, for more certainty.

    Not by WAITAOF alone: Valkey 8.0, 8.1 and 9.1 were seen to answer it before they had synced.
    """
    try:
        said: dict[str, str] = client.config_get("appendonly", "appendfsync", "no-appendfsync-on-rewrite")
    except redis.ResponseError:
        return "its fsync policy is not known: this user may not run CONFIG GET"
    if said.get("appendonly") != "yes":
        return "appendonly is off"
    if (policy := said.get("appendfsync", "")) != "always":
        return f"appendfsync is {policy or 'not known'}"
    if said.get("no-appendfsync-on-rewrite") != "no":
        return "no-appendfsync-on-rewrite is on: nothing is synced while the file is rewritten"
    info: dict[str, Any] = client.info("persistence")
    if info.get("aof_last_write_status", "ok") != "ok":
        return "the server could not write to its append-only file"
    if _is_first_rewrite(client, info, mark):
        return "the append-only file was switched on a while ago, and its first rewrite has not ended"
    return ""


def _is_first_rewrite(client: Any, info: dict[str, Any], mark: str) -> bool:
    """Is the file being made that a restart would load? After `CONFIG SET appendonly yes` nothing is in it before that.

    INFO does not tell it from a later rewrite for sure, but WAITAOF does (Redis 7.2, Valkey): it confirms no write
    then. Without it, one that has no file to build on counts as the first; it may be that of a server that began empty.
    """
    if not (info.get("aof_rewrite_in_progress") or info.get("aof_rewrite_scheduled")):
        return False
    if mark:
        pipe = client.pipeline(transaction=False)
        pipe.set(mark, 1, ex=MARK_S)
        pipe.execute_command("WAITAOF", 1, 0, REWRITE_MS)
        said: Any = pipe.execute(raise_on_error=False)[1]
        if isinstance(said, list):  # else an error: this server, or this user, has no WAITAOF
            return not said[0]
    return not info.get("aof_base_size")


def replicas_in(info: dict[str, Any]) -> int:
    """How many replicas are connected and up to date, by INFO's section `replication`."""
    count = int(info.get("connected_slaves", 0))
    found = [info.get(f"slave{i}") for i in range(count)]
    return sum(isinstance(each, dict) and each.get("state") == "online" for each in found)  # pyright: ignore


def counted(replicas: int) -> str:
    """The number in words, for people."""
    return f"{replicas or 'no'} replica{'s' if replicas > 1 else ''}"
