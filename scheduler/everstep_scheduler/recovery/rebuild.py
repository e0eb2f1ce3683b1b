"""Rebuild: what the holder of the recovery lock does. Every index, and RQ's lists, made anew from the logs.

    leases of our own records ──► announced      clear      purge RQ's keys of our jobs
    wait for the announcements of live workers   adopt each log      set both sentinels, free the lock

Nothing else moves meanwhile, for every script refuses while a sentinel is missing. It may die anywhere: who takes the
lock next begins anew, and what our own records knew of leases is in `announced` by then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import redis

from everstep_checkpoint.codec import MALFORMED
from everstep_checkpoint.errors import LogError, ServerError
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog

from ..moves.connection import Client, error_code, is_hopeless
from ..moves.redismoves import Scripts, salt
from ..reading.children import with_rested_children
from ..reading.derive import Told, derive
from .adoption import adoption

LOCK_MS = 5000
ANNOUNCED_MS = 120_000
MARGIN_S = 1.0
PAGE = 500
_OF_THREADS = ("thread", "open", "unmade", "queued", "runs")
STATUSES = ("running", "done", "failed", "interrupted", "cancelled")


class LockLost(Exception):
    """Another process rebuilds now: this one has been away for too long."""


@dataclass
class Report:
    """What a rebuild did. `kept`: leases that live on; `skipped`: logs that can't be read, and why."""

    threads: int = 0
    open_tasks: int = 0
    kept: int = 0
    skipped: list[str] = field(default_factory=list[str])


class Rebuild:
    """One rebuild, under the lock `mine`. `waits`: seconds that live workers get to announce their leases."""

    def __init__(self, client: Client, keys: Keys, mine: str, said: Callable[[str], None], waits: float) -> None:
        self.client: Any = client  # redis-py types answers for decoding and asynchronous clients too
        self.keys = keys
        self.mine = mine
        self.said = said
        self.waits = waits
        self.log = RedisLog(client, keys)
        self.scripts = Scripts(client, keys)
        self.report = Report()
        self._extend_at = 0.0

    def run(self) -> Report:
        """Raises LockLost, ServerError."""
        _as_hash(self.client, self.keys.announced)
        self._announce_own()
        if self.waits and self._any_running():
            self._wait()
        self._clear()
        self._purge()
        announced = {key.decode("utf-8", "replace") for key in self.client.hkeys(self.keys.announced)}
        for thread in self.log.threads():
            if (told := self.read(thread)) is not None:
                self.adopt(told, thread, announced)
            else:  # its jobs and leases are gone: what is left of its indexes would lie, also once its log is mended
                self._unindex([thread.encode("utf-8", "surrogatepass")])
        self._finish()
        return self.report

    # one log

    def read(self, thread: str) -> Told | None:
        """Where a thread stands; None, and a line, for a log that can't be read."""
        self._extend()
        try:
            return with_rested_children(self.log, derive(self.log, thread, self._extend))
        except redis.ResponseError as error:
            if not _is_of_another_type(error):
                raise
            self._left_out(thread, error)
        except (LogError, AttributeError, *MALFORMED) as error:  # type: ignore[misc]
            self._left_out(thread, error)
        return None

    def _left_out(self, thread: str, error: Exception) -> None:
        why = str(error) or type(error).__name__
        self.report.skipped.append(f"{thread}: {why}")
        self.said(f"left out of the rebuild: thread {thread!r}: {why}")

    def adopt(self, told: Told, thread: str, announced: set[str], *, fresh: bool = False) -> bool:
        """Make a thread's indexes. With `fresh` only in one call, and only if it has none; False if that can't be."""
        calls = adoption(told, thread, announced)
        if fresh and len(calls) > 1:
            return False
        for call in calls:
            more = {"lock": self.mine, "lock_ms": LOCK_MS, "salt": salt(), **({"fresh": 1} if fresh else {})}
            try:
                answer = self.scripts.run("adopt", {**call, **more})
            except ServerError as error:
                if not is_hopeless(error):
                    raise
                self._left_out(thread, error)  # one log that says what can't be must not keep all others waiting
                return True
            if answer["status"] == "lost":
                raise LockLost
            self.report.kept += answer.get("kept", 0)
        self.report.threads += 1
        self.report.open_tasks += sum(task.place != "done" for task in told.tasks) if told.status != "done" else 0
        return True

    # leases that live on

    def _announce_own(self) -> None:
        """Our own records of leases, as far as they are still there, are as good as their holders' word."""
        stem = self.keys.open("").encode()
        for key in self._scan(self.keys.open("*")):
            try:
                found = self._leases(key[len(stem) :].decode("utf-8"))
            except redis.ResponseError as error:
                if not _is_of_another_type(error):
                    raise
            except MALFORMED:
                self.said(f"unreadable, and made anew from its log: {key!r}")
            else:
                announce(self.client, self.keys, found)

    def _leases(self, thread: str) -> dict[str, str]:
        found: dict[str, str] = {}
        n, digest = self.client.hmget(self.keys.thread(thread), "n", "digest")
        if n is None or digest is None:
            return found
        for task, stored in self.client.hscan_iter(self.keys.open(thread), count=PAGE):
            rec: dict[str, Any] = json.loads(stored)
            if rec.get("p") == "lease":
                said = {"a": rec["a"], "t": rec["t"], "o": rec["o"], "L": rec["L"], "d": digest.decode()}
                found[f"{int(n)} {task.decode()} {thread}"] = json.dumps(said)
        return found

    def _any_running(self) -> bool:
        """Is there a task that a live worker might hold?"""
        for thread in self.log.threads():
            told = self.read(thread)
            if told is not None and told.running:
                return True
        self.report.skipped.clear()
        return False

    def _wait(self) -> None:
        self.report.skipped.clear()
        end = time.monotonic() + self.waits
        while (left := end - time.monotonic()) > 0:
            self._extend()
            time.sleep(min(left, 0.2))

    # what goes

    def _clear(self) -> None:
        """Indexes that no adoption overwrites: those over all threads, and those of threads without a log."""
        keys = self.keys
        gone = [
            keys.counts,
            keys.lease,
            keys.leases,
            keys.wakes,
            keys.parked,
            keys.lines,
            keys.discards,
            keys.cleanings,
            keys.revoked,
            keys.sweep,
        ]
        self._guarded(lambda pipe: pipe.delete(*gone))
        for word in ("held", "parked", "discard", "line", "slots"):
            for chunk in _chunks(self._scan(f"{keys.stem}{word}:*")):
                self._guarded(partial(_unlink, chunk))
        for word in _OF_THREADS:
            stem = f"{keys.stem}{word}:"
            for chunk in _chunks(self._scan(f"{stem}*")):
                self._forget([key[len(stem.encode()) :] for key in chunk])
        for status in STATUSES:
            if self.client.type(keys.threads(status)) not in (b"zset", b"none"):
                self._guarded(partial(_unlink, [keys.threads(status).encode()]))
            for chunk in _chunks(member for member, _ in self.client.zscan_iter(keys.threads(status), count=PAGE)):
                self._forget(list(chunk))

    def _forget(self, threads: Sequence[bytes]) -> None:
        """Take out the indexes of those threads that have no log."""
        pipe = self.client.pipeline(transaction=False)
        for thread in threads:
            pipe.exists(self.keys.log("").encode() + thread)
        gone = [thread for thread, there in zip(threads, pipe.execute(), strict=True) if not there]
        if gone:
            self._unindex(gone)

    def _unindex(self, threads: Sequence[bytes]) -> None:
        def unindex(pipe: Any) -> None:
            for thread in threads:
                pipe.unlink(*(f"{self.keys.stem}{word}:".encode() + thread for word in _OF_THREADS))
                for status in STATUSES:
                    pipe.zrem(self.keys.threads(status), thread)

        self._guarded(unindex)

    def _purge(self) -> None:
        """Our jobs leave RQ's keys; jobs of others stay where they are."""
        stem = self.keys.rq_job("")
        for chunk in _chunks(self._scan(f"{stem}*")):
            ids = [key.decode("utf-8", "replace")[len(stem) :] for key in chunk]
            self._purged({"kind": "jobs", "ids": [each for each in ids if ":" not in each]})
        for of, kind in ((self.keys.rq_queue, "list"), (self.keys.rq_started, "zset"), (self.keys.rq_scheduled, "zset"),
                         (self.keys.rq_deferred, "zset"), (self.keys.rq_failed, "zset")):  # fmt: skip
            for key in list(self._scan(of("*"))):
                try:
                    name, cursor = key.decode(), ""
                except UnicodeDecodeError:
                    continue  # no queue of ours has such a name
                while (answer := self._purged({"kind": kind, "key": name, "cursor": cursor}))["cursor"]:
                    cursor = answer["cursor"]

    def _purged(self, header: dict[str, Any]) -> dict[str, Any]:
        self._extend()
        answer = self.scripts.run("purge", {**header, "all": 1, "lock": self.mine})
        if answer["status"] == "lost":
            raise LockLost
        return answer

    # the lock

    def _finish(self) -> None:
        keys, mark = self.keys, new_id()

        def finish(pipe: Any) -> None:
            pipe.set(keys.alive, mark)
            pipe.set(keys.rq_alive, mark)
            pipe.hincrby(keys.stats, "recovered", 1)
            pipe.delete(keys.announced)

        self._guarded(finish)

    def _extend(self) -> None:
        if time.monotonic() > self._extend_at:
            self._guarded(lambda pipe: None)

    def _guarded(self, act: Callable[[Any], object]) -> None:
        """Do what `act` puts into a transaction, if the lock is still ours, and extend the lock. Raises LockLost."""
        self._extend_at = time.monotonic() + LOCK_MS / 5000
        with self.client.pipeline(transaction=True) as pipe:
            pipe.watch(self.keys.recovery)
            if pipe.get(self.keys.recovery) != self.mine.encode():
                raise LockLost
            pipe.multi()
            act(pipe)
            pipe.pexpire(self.keys.recovery, LOCK_MS)
            try:
                pipe.execute()
            except redis.WatchError:
                raise LockLost from None

    def _scan(self, pattern: str) -> Iterator[bytes]:
        # names of ours have no character that a pattern takes for more than itself (keys.py checks them)
        for key in self.client.scan_iter(match=pattern, count=1000):
            self._extend()
            yield key


def _is_of_another_type(error: redis.ResponseError) -> bool:
    return error_code(error) == "WRONGTYPE"


def _as_hash(client: Any, key: str) -> None:
    """A key of ours that is of another type is nothing that we wrote."""
    if client.type(key) not in (b"hash", b"none"):
        client.delete(key)


def _unlink(chunk: Sequence[bytes], pipe: Any) -> None:
    pipe.unlink(*chunk)


def announce(client: Any, keys: Keys, leases: dict[str, str]) -> None:
    """Say which leases live: `<n> <task> <thread>` -> attempt, token, owner, lease ms and digest, as JSON."""
    if not leases:
        return
    _as_hash(client, keys.announced)
    pipe = client.pipeline(transaction=True)
    pipe.hset(keys.announced, mapping=leases)
    pipe.pexpire(keys.announced, ANNOUNCED_MS)
    pipe.execute()


def _chunks(items: Iterator[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == PAGE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
