"""The dump: each thread's Stream as it is stored, and what stands beside the logs. Reads, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from everstep_checkpoint.errors import EverstepError
from everstep_checkpoint.keys import Keys
from everstep_scheduler.client.client import Client

from .checking.evidence import Dump, Stream

PAGE = 1000
KEPT = ("open", "unmade")
UNDER_WAY = (*KEPT, "queued", "discard", "held")


def dump(client: Client, threads: Iterable[str]) -> Dump:
    """What Redis holds of these threads, and what is still under way in the namespace."""
    redis, keys = client.redis, client.keys
    named = sorted(set(threads))
    streams = {thread: stream(redis, keys, thread) for thread in named if redis.exists(keys.log(thread))}
    return Dump(
        streams, tuple(left_over(redis, keys)), {thread: places(redis, keys, thread) for thread in named},
        {thread: state for thread in streams if (state := state_of(client, thread)) is not None},
    )  # fmt: skip


def stream(redis: Any, keys: Keys, thread: str) -> Stream:
    """A whole log, a page at a time."""
    rows: list[tuple[str, dict[str, bytes]]] = []
    start = "-"
    while page := redis.xrange(keys.log(thread), start, "+", PAGE):
        rows += [
            (row.decode(), {name.decode("utf-8", "surrogateescape"): value for name, value in fields.items()})
            for row, fields in page
        ]
        start = f"({page[-1][0].decode()}"
    told: Mapping[str, Any] = redis.xinfo_stream(keys.log(thread))
    added, deleted = told.get("entries-added"), told.get("max-deleted-entry-id", b"0-0")
    return Stream(tuple(rows), added, deleted.decode() if isinstance(deleted, bytes) else str(deleted))


def places(redis: Any, keys: Keys, thread: str) -> tuple[str, ...]:
    """`task place` of each open task."""
    found: list[str] = []
    for task, record in redis.hscan_iter(keys.open(thread), count=500):
        found.append(f"{task.decode()} {json.loads(record).get('p', '?')}")
    return tuple(sorted(found))


def state_of(client: Client, thread: str) -> Mapping[str, Any] | None:
    """A thread's state as a client reads it."""
    try:
        return dict(client.state(thread).values)
    except EverstepError:
        return None


def left_over(redis: Any, keys: Keys) -> list[str]:
    """What says that something is under way, at a time when nothing should be: keys of ours, jobs, counts.

    Tasks that rest as failed, stopped or asked are their run's to keep.
    """
    found: list[str] = []
    for word in UNDER_WAY:
        stem = f"{keys.stem}{word}:"
        for key in redis.scan_iter(match=f"{stem}*", count=PAGE):
            name = key.decode("utf-8", "surrogateescape")
            if word not in KEPT or not rests(redis, keys, name.removeprefix(stem)):
                found.append(name)
    for key in (keys.lease, keys.leases, keys.wakes, keys.discards, keys.cleanings, keys.revoked):
        if redis.exists(key):
            found.append(key)
    for pattern in (keys.rq_queue("*"), keys.rq_started("*"), keys.rq_scheduled("*")):
        found += [key.decode("utf-8", "replace") for key in redis.scan_iter(match=pattern, count=1000)]
    found += [f"count of {queue.decode()}: {int(n)}" for queue, n in redis.hgetall(keys.counts).items() if int(n)]
    running = int(redis.zcard(keys.threads("running")))
    return [*found, *([f"{running} threads are running"] if running else [])]


def rests(redis: Any, keys: Keys, thread: str) -> bool:
    """Does a thread rest, with tasks that a later run may take up?"""
    return redis.hget(keys.thread(thread), "status") in (b"failed", b"interrupted", b"cancelled")
