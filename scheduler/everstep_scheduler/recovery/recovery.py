"""Recovery: a process that finds our or RQ's keys gone makes them anew from the logs, or waits for who does.

    sentinel missing ─► announce own leases ─► lock free? ─yes─► Rebuild ─► both sentinels stand
                              ▲                    └─no──► wait ─┘
                              └─────────────────────────────┘

`Recovery` is given to `Scripts(on_rebuild=...)`; `recover` does the same on demand; `audit` finds what is missing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys

from ..moves.connection import Client, error_code, translated
from ..moves.contract import LEASE_MS, Lease
from ..moves.redismoves import Scripts
from .rebuild import LOCK_MS, MARGIN_S, LockLost, Rebuild, Report, announce

WAIT_S = 0.1
NO_EXPIRY = -1

__all__ = ["Recovery", "Report", "audit", "free_lock_of", "recover"]


def _silent(_: str) -> None:
    """Nobody listens."""


class Recovery:
    """What to do when a script finds our or RQ's keys gone. `held`: the leases that this process holds."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        held: Callable[[], Sequence[Lease]] = tuple,
        said: Callable[[str], None] = _silent,
        lease_ms: int = LEASE_MS,
        owner: str = "",
    ) -> None:
        self.client: Any = client
        self.keys = keys
        self.held = held
        self.said = said
        self.lease_ms = lease_ms
        self.owner = owner
        self._unfreed: set[str] = set()

    def __call__(self) -> None:
        """Return when both sentinels stand and every readable log has its indexes. Raises ServerError."""
        with translated():
            self.run()

    def run(self, *, force: bool = False) -> Report:
        """The report of the rebuild, empty if another process did it. `force`: rebuild although nothing is missing."""
        for left in list(self._unfreed):
            self._free(left)
        mine = f"{self.owner} {new_id()}"
        while True:
            self._announce()
            missing = self._missing()
            if not force and not missing and not self._strays():
                return Report()
            if self.client.set(self.keys.recovery, mine, nx=True, px=LOCK_MS):
                try:
                    return self._rebuild(mine, force)
                except LockLost:
                    self.said("the rebuild was taken over by another process")
                finally:
                    self._free(mine)
            if self.client.pttl(self.keys.recovery) == NO_EXPIRY:
                self.client.delete(
                    self.keys.recovery
                )  # ours all expire: this one is nobody's, and would stand for ever
            time.sleep(WAIT_S)

    def _missing(self) -> list[str]:
        names = (self.keys.alive, self.keys.rq_alive)
        found = self.client.mget(names)
        return [name for name, value in zip(names, found, strict=True) if value is None]

    def _rebuild(self, mine: str, force: bool) -> Report:
        missing = self._missing()
        if not missing and not force:
            return self._adopt_strays(mine)
        if force:
            self.client.delete(self.keys.alive, self.keys.rq_alive)
        # with our sentinel standing our own records are whole, and nobody needs to be asked for them
        known = not force and self.keys.alive not in missing
        waits = 0.0 if known else self.lease_ms / 3000 + MARGIN_S
        report = Rebuild(self.client, self.keys, mine, self.said, waits).run()
        if report.threads:  # on a server that is new there was nothing to rebuild
            self.said(f"rebuilt {report.threads} threads, {report.open_tasks} open tasks, {report.kept} leases live on")
        return report

    # logs that came without indexes

    def _strays(self) -> list[str]:
        """Threads with a log and no hash: forked, restored, or unreadable."""
        rebuild = Rebuild(self.client, self.keys, "", _silent, 0)
        found: list[str] = []
        chunk: list[str] = []
        for thread in rebuild.log.threads():
            chunk.append(thread)
            if len(chunk) == 500:
                found += self._without_hash(chunk)
                chunk = []
        return found + self._without_hash(chunk)

    def _without_hash(self, threads: Sequence[str]) -> list[str]:
        pipe = self.client.pipeline(transaction=False)
        for thread in threads:
            pipe.exists(self.keys.thread(thread))
        return [thread for thread, there in zip(threads, pipe.execute(), strict=True) if not there]

    def _adopt_strays(self, mine: str) -> Report:
        rebuild = Rebuild(self.client, self.keys, mine, self.said, 0)
        for thread in self._strays():
            told = rebuild.read(thread)
            if told is not None and not rebuild.adopt(told, thread, set(), fresh=True):
                return self._rebuild(mine, True)
        return rebuild.report

    # leases

    def _announce(self) -> None:
        leases = {f"{x.n} {x.task} {x.thread}": json.dumps(self._said(x)) for x in self.held()}
        if leases and self._missing():
            announce(self.client, self.keys, leases)

    def _said(self, lease: Lease) -> dict[str, object]:
        return {"a": lease.attempt, "t": lease.token, "o": self.owner, "L": self.lease_ms, "d": lease.digest}

    def _free(self, mine: str) -> None:
        """Remembered until Redis has taken it: a rebuild that ended with the connection left its lock standing."""
        self._unfreed.add(mine)
        if self.client.get(self.keys.recovery) == mine.encode():
            self.client.delete(self.keys.recovery)
        self._unfreed.discard(mine)


def free_lock_of(client: Client, keys: Keys, owners: Sequence[str]) -> None:
    """The rebuild of processes that are seen to be dead is anybody's at once, instead of when its lock runs out."""
    untyped: Any = client
    held: bytes = untyped.get(keys.recovery) or b""
    if any(held.startswith(f"{owner} ".encode()) for owner in owners):  # nobody but the dead one could renew it
        untyped.delete(keys.recovery)


def recover(
    client: Client,
    keys: Keys,
    *,
    force: bool = True,
    said: Callable[[str], None] = _silent,
    lease_ms: int = LEASE_MS,
) -> Report:
    """Rebuild every index and RQ's lists from the logs. Live workers keep their leases. Raises ServerError."""
    with translated():
        return Recovery(client, keys, said=said, lease_ms=lease_ms).run(force=force)


def audit(
    client: Client,
    keys: Keys,
    queues: Sequence[str],
    *,
    said: Callable[[str], None] = _silent,
    lease_ms: int = LEASE_MS,
) -> dict[str, int]:
    """Compare each queue's length with our count; where they differ, take out what does not belong there.

    Jobs that are missing even so are made anew by a rebuild. Returns queue -> ids removed, for queues that differed.
    Call it for queues that have differed for a while: while jobs of others wait in a queue, it differs rightly.
    """
    scripts = Scripts(client, keys)
    walked: dict[str, int] = {}
    with translated():
        for queue in differing(client, keys, queues):
            walked[queue] = _walk(scripts, keys.rq_queue(queue))
        short = [queue for queue, (length, count) in _lengths(client, keys, list(walked)).items() if count > length]
    if short:
        said(f"jobs are missing from the queues {', '.join(short)}; rebuilding from the logs")
        recover(client, keys, said=said, lease_ms=lease_ms)
    return walked


def _lengths(client: Any, keys: Keys, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
    """queue -> (length of RQ's list, our count), both of one moment."""
    if not queues:
        return {}
    pipe = client.pipeline(transaction=True)
    pipe.hmget(keys.counts, list(queues))
    for queue in queues:
        pipe.llen(keys.rq_queue(queue))
    counts, *lengths = pipe.execute(raise_on_error=False)
    if isinstance(counts, redis.ResponseError) and error_code(counts) == "WRONGTYPE":
        counts = [b"of another type"] * len(queues)
    if isinstance(counts, Exception):
        raise counts
    said = {queue: _number(count) for queue, count in zip(queues, counts, strict=True)}
    # a key of another type is nothing that could be counted, and must not keep the other queues from it
    return {
        queue: (said[queue] if isinstance(length, redis.ResponseError) else int(length), said[queue])
        for queue, length in zip(queues, lengths, strict=True)
    }


def _number(count: bytes | None) -> int:
    """A count. What is no number is more than any list has: a rebuild counts anew."""
    try:
        return int(count or 0)
    except ValueError:
        return sys.maxsize


def differing(client: Client, keys: Keys, queues: Sequence[str]) -> list[str]:
    """The queues whose length is not our count just now: what the audit looks at if it lasts."""
    return [queue for queue, (length, count) in _lengths(client, keys, queues).items() if length != count]


def _walk(scripts: Scripts, key: str) -> int:
    """Take job ids out of a list whose tasks are not there. 500 ids a call."""
    removed, cursor = 0, ""
    while True:
        answer = scripts.run("purge", {"kind": "list", "key": key, "place": "job", "cursor": cursor})
        removed += answer["removed"]
        cursor = answer["cursor"]
        if not cursor:
            return int(removed)
