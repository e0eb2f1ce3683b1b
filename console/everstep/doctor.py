"""`everstep doctor`: is all well? Each finding says what is, and if it is not well, what to do.

    examine(site) ──► Finding(mark, about, said, fix), ...       mark: ok | ! (know this) | x (act on this)

Reads only, bounded, and works for a user who may not run CONFIG. What open tasks' places are is looked at in `places`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from . import show
from .site import Site

OK, KNOW, ACT = "ok", "!", "x"
OLDEST = (7, 0)
# The first version of a series without a known remote hole that our use of scripts and blocking reads would touch.
FLOORS: dict[str, dict[tuple[int, ...], int]] = {
    "redis": {(7, 2): 11, (7, 4): 11, (8, 0): 4, (8, 2): 9, (8, 4): 6, (8, 6): 6, (8, 8): 2, (8, 10): 1},
    "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
PINGS = 20
SLOW_MS = 5.0
FULL = 0.9
NAMES_MAX = 5
FAILED_MAX = 500
WORKERS_MAX = 1000
HEARTBEAT_MS = 30_000
FUNCTION = b'["everstep.run_node"'


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    mark: str
    about: str
    said: str
    fix: str = ""


@dataclass
class Look:
    """What the checks share: the connection, and what Redis says of itself."""

    site: Site
    info: dict[str, Any]
    queues: list[str] = field(default_factory=list[str])
    served: set[str] = field(default_factory=set[str])
    workers: int = 0

    @property
    def redis(self) -> Any:
        return self.site.redis


Check = Callable[[Look], Iterator[Finding]]


def examine(site: Site) -> list[Finding]:
    """All findings, in an order that puts causes before effects. Raises ServerUnavailable."""
    look = Look(site, {})
    found: list[Finding] = []
    for about, check in CHECKS:
        try:
            found += check(look)
        except NoPermissionError as error:
            found.append(
                Finding(KNOW, about, f"not known: {error}", "give this Redis user the command, or ask as another one")
            )
    return found


def _told(look: Look) -> Iterator[Finding]:
    """What Redis says of itself; all that hangs on it is left out where this user may not ask."""
    look.info = look.redis.info("all")
    for check in (server, durability, memory, clients):
        yield from check(look)


# --- the server ---


def server(look: Look) -> Iterator[Finding]:
    kind = str(look.info.get("server_name") or "redis")
    text = str(look.info.get(f"{kind}_version") or look.info.get("redis_version"))
    version = tuple(int(part) for part in text.split(".") if part.isdigit())
    said = f"{kind} {text} at {look.site.shown}"
    least = FLOORS.get(kind, {}).get(version[:2])
    if version < OLDEST:
        yield Finding(ACT, "server", f"{said}: too old", "everstep needs 7.0 or newer")
    elif least is not None and version[2] < least:
        yield Finding(
            KNOW, "server", f"{said}: has known security holes", f"upgrade to {version[0]}.{version[1]}.{least}"
        )
    elif kind == "redis" and version[:2] == (7, 0):
        fix = "7.0 is only mended by distributions (Debian 12: 7.0.15-1~deb12u10 or newer); a newer series is safer"
        yield Finding(KNOW, "server", said, fix)
    else:
        yield Finding(OK, "server", said)
    if look.info.get("role") not in (None, "master"):
        yield Finding(ACT, "server", "it is a read-only replica", "use the URL of the primary")
    if look.info.get("cluster_enabled"):
        yield Finding(
            KNOW,
            "server",
            "it is a Cluster node",
            "RQ can't follow slots: give each partition the URL of the node that owns it",
        )


FSYNC = {
    "always": (OK, "appendfsync always: what was shown is on disk; a power loss takes nothing back", ""),
    "everysec": (OK, "appendfsync everysec: a crash of Redis loses nothing; a power loss takes back about the last "
                 "second, even steps already shown, and runs go on from an earlier whole step", ""),
    "no": (KNOW, "appendfsync no: a power loss takes back what the system had not written, often 30 s",
           "redis-cli CONFIG SET appendfsync everysec; then CONFIG REWRITE"),
}  # fmt: skip


UNKNOWN_FSYNC = (
    KNOW,
    "append-only file is on; its fsync policy is not known: this user may not run CONFIG GET",
    "ACL SETUSER <user> +config|get, or look into redis.conf",
)


def _fsync_policy(look: Look) -> str:
    """Empty where it can't be asked for: no rights, or a hosted Redis without CONFIG."""
    try:
        return str(look.redis.config_get("appendfsync").get("appendfsync", ""))
    except ResponseError:
        return ""


def durability(look: Look) -> Iterator[Finding]:
    if not look.info.get("aof_enabled"):
        fix = "redis-cli CONFIG SET appendonly yes; then CONFIG REWRITE"
        yield Finding(ACT, "fsync", "appendonly is off: a restart of Redis loses every run since its last dump", fix)
        return
    if look.info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(
            ACT, "fsync", "the last write to the append-only file failed", "look at Redis' disk: df -h, and its log"
        )
    mark, said, fix = FSYNC.get(_fsync_policy(look), UNKNOWN_FSYNC)
    yield Finding(mark, "fsync", said, fix)
    if look.info.get("connected_slaves"):
        said = "replicas are asynchronous: a failover takes back what they had not received yet"
        yield Finding(OK, "failover", said)


def memory(look: Look) -> Iterator[Finding]:
    used, limit = int(look.info.get("used_memory", 0)), int(look.info.get("maxmemory", 0))
    policy = str(look.info.get("maxmemory_policy", ""))
    said = (
        f"{show.size(used)} used"
        + (f" of {show.size(limit)}" if limit else ", no limit set")
        + f", {policy or 'policy unknown'}"
    )
    if policy != "noeviction" and policy:
        fix = "redis-cli CONFIG SET maxmemory-policy noeviction; then CONFIG REWRITE"
        yield Finding(ACT, "memory", f"{said}: Redis may throw logs away", fix)
    elif limit and used >= limit:
        yield Finding(
            ACT, "memory", f"{said}: full, runs stand still and lose nothing", "delete old threads, or raise maxmemory"
        )
    elif limit and used > limit * FULL:
        yield Finding(KNOW, "memory", f"{said}: nearly full", "delete old threads, or raise maxmemory")
    else:
        yield Finding(OK, "memory", said)


def speed(look: Look) -> Iterator[Finding]:
    times: list[float] = []
    for _ in range(PINGS):
        began = time.perf_counter()
        look.redis.ping()
        times.append((time.perf_counter() - began) * 1000)
    median = statistics.median(times)
    said = f"{median:.2f} ms a round trip (median of {PINGS}); a step costs about one"
    yield Finding(
        OK if median < SLOW_MS else KNOW, "speed", said, "" if median < SLOW_MS else "bring the workers nearer to Redis"
    )


def clients(look: Look) -> Iterator[Finding]:
    now, most = int(look.info.get("connected_clients", 0)), int(look.info.get("maxclients", 0))
    tight = bool(most) and now > most * FULL
    said = f"{now} connections" + (f" of {most:,}" if most else "")
    yield Finding(KNOW if tight else OK, "clients", said, "raise maxclients, or run fewer processes" if tight else "")


# --- the fleet ---


def sentinels(look: Look) -> Iterator[Finding]:
    keys = look.site.keys
    ours, rq, rebuilding, suspended = look.redis.mget(keys.alive, keys.rq_alive, keys.recovery, keys.rq_suspended)
    if rebuilding:
        yield Finding(
            KNOW, "indexes", "a process is rebuilding them from the logs", "wait for it; runs go on by themselves"
        )
    elif ours and rq:
        yield Finding(OK, "indexes", "both sentinels stand: no key of ours or of RQ was lost")
    elif not ours and not rq and next(look.site.log.threads(), None) is None:
        yield Finding(OK, "indexes", "nothing has run here yet")
    else:
        lost = " and ".join([*(["ours"] if not ours else []), *(["RQ's"] if not rq else [])])
        yield Finding(
            ACT, "indexes", f"{lost} were lost; the logs are whole", "everstep recover (a worker does it by itself)"
        )
    if suspended:
        yield Finding(KNOW, "suspended", "RQ is suspended: nothing is claimed", "rq resume")


def workers(look: Look) -> Iterator[Finding]:
    """RQ's worker keys: they expire 30 s after the last beat of a killed process."""
    keys = look.site.keys
    names = sorted(look.redis.smembers(keys.rq_workers))[:WORKERS_MAX]
    with look.redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(name, "queues", "hostname", "state", "death")
        found = [row for row in zip(names, pipe.execute(), strict=True) if row[1][0] is not None and not row[1][3]]
    ours = [row for row in found if row[0].removeprefix(keys.rq_worker("").encode()).startswith(b"everstep.")]
    look.workers = len(ours)
    look.served = {queue for _, row in found for queue in row[0].decode().split(",")}
    hosts = {row[1].decode() for _, row in ours if row[1]}
    others = f"; {len(found) - len(ours)} of stock RQ" if len(found) > len(ours) else ""
    if ours:
        busy = sum(row[2] == b"busy" for _, row in ours)
        yield Finding(
            OK,
            "workers",
            f"{len(ours)} alive on {len(hosts)} {'host' if len(hosts) == 1 else 'hosts'}, {busy} busy{others}",
        )
    else:
        yield Finding(
            ACT if _is_work(look) else KNOW, "workers", f"none is alive{others}", "everstep worker MODULE:GRAPH"
        )


def _is_work(look: Look) -> bool:
    return bool(look.redis.zcard(look.site.keys.threads("running")))


def queues(look: Look) -> Iterator[Finding]:
    keys = look.site.keys
    stem = keys.rq_queue("")
    look.queues = sorted(name.decode().removeprefix(stem) for name in look.redis.smembers(keys.rq_queues))
    depth = {queue: int(look.redis.llen(keys.rq_queue(queue))) for queue in look.queues}
    waiting = {queue: n for queue, n in depth.items() if n}
    if not waiting:
        yield Finding(OK, "queues", f"{len(depth)} known, nothing waits")
    for queue, n in waiting.items():
        if queue.endswith(".suspect"):
            said = f"{show.many(n, 'task')} whose process died, waiting to be run alone"
            yield Finding(
                KNOW, "suspects", f"{queue}: {said}", "a pool does it: everstep worker; see `everstep history THREAD`"
            )
        elif queue in look.served:
            yield Finding(OK, "queues", f"{queue}: {n:,} waiting")
        else:
            fix = f"everstep worker MODULE:{queue}, or --queues {queue}"
            yield Finding(ACT, "queues", f"{queue}: {n:,} waiting, and no worker listens", fix)


def parked(look: Look) -> Iterator[Finding]:
    found = look.redis.hgetall(look.site.keys.parked)
    for name, count in sorted(found.items()):
        graph, _, node = name.decode().partition(":")
        said = f"{show.many(int(count), 'task')}: waiting for a worker that has node {node!r} of graph {graph!r}"
        yield Finding(ACT, "parked", said, f"start one with that version: everstep worker MODULE:{graph}")
    if not found:
        yield Finding(OK, "parked", "no task waits for code that is missing")


def failures(look: Look) -> Iterator[Finding]:
    """RQ's failed registries: dead letters, failed tasks, and jobs that are not ours."""
    dead: list[str] = []
    foreign: list[str] = []
    failed = 0
    for queue in look.queues:
        for job, data, reason in _failed_jobs(look, queue):
            if not data.startswith(FUNCTION):
                foreign.append(f"{job} on {queue}")
            elif reason.startswith("poison"):
                dead.append(job)
            else:
                failed += not reason.startswith(("graph ", "node "))
    threads = int(look.redis.zcard(look.site.keys.threads("failed")))
    if dead:
        fix = "everstep threads --status failed; mend the node; everstep retry THREAD"
        yield Finding(ACT, "dead letters", f"{show.many(len(dead), 'task')} killed every process that ran them", fix)
    if foreign:
        said = f"{show.many(len(foreign), 'job')} in our queues not ours, and refused: {', '.join(foreign[:NAMES_MAX])}"
        yield Finding(
            KNOW,
            "foreign jobs",
            said,
            "see who enqueues them; remove one: ZREM rq:failed:QUEUE ID, DEL rq:job:ID, as in docs/redis-cli.md",
        )
    if threads:
        yield Finding(
            KNOW,
            "failed",
            f"{show.many(threads, 'thread')} at rest after a failure",
            "everstep threads --status failed; everstep retry THREAD",
        )
    if not (dead or foreign or threads):
        yield Finding(OK, "failed", "no failed threads, dead letters or foreign jobs")


def _failed_jobs(look: Look, queue: str) -> Iterator[tuple[str, bytes, str]]:
    keys = look.site.keys
    ids = look.redis.zrevrange(keys.rq_failed(queue), 0, FAILED_MAX - 1)
    with look.redis.pipeline(transaction=False) as pipe:
        for job in ids:
            pipe.hmget(keys.rq_job(job.decode()), "data", "exc_info")
        for job, (data, reason) in zip(ids, pipe.execute(), strict=True):
            if data is not None:
                yield job.decode(), data, (reason or b"").decode("utf-8", "replace")


def inbox(look: Look) -> Iterator[Finding]:
    keys = look.site.keys
    waiting, refused = int(look.redis.xlen(keys.inbox)), int(look.redis.xlen(keys.inbox_rejected))
    if waiting and not look.redis.exists(keys.inbox_reader):
        yield Finding(
            ACT,
            "inbox",
            f"{show.many(waiting, 'message')} waiting, and nobody reads them",
            "everstep worker MODULE:GRAPH",
        )
    else:
        yield Finding(OK, "inbox", f"{show.many(waiting, 'message')} waiting" if waiting else "empty")
    if refused:
        last: dict[bytes, bytes] = look.redis.xrevrange(keys.inbox_rejected, count=1)[0][1]
        why = show.clean(last.get(b"reason", b"").decode("utf-8", "replace"))[:120]
        fix = f"redis-cli XREVRANGE '{keys.inbox_rejected}' + - COUNT 5"
        yield Finding(KNOW, "inbox", f"{show.many(refused, 'message')} refused, the last one: {why}", fix)


def places(look: Look) -> Iterator[Finding]:
    from .places import look_at_places

    report = look_at_places(look.site)
    if report.problems:
        named = "; ".join(report.problems[:NAMES_MAX])
        said = f"{len(report.problems)} of {report.tasks:,} open tasks are not in exactly one place: {named}"
        yield Finding(ACT, "places", said, "everstep recover")
    else:
        more = f" (the first {report.tasks:,})" if report.cut else ""
        found = f"{show.many(report.tasks, 'open task')} of {show.many(report.threads, 'running thread')}"
        said = f"{found}, each in exactly one place{more}"
        yield Finding(OK, "places", said)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("server", _told), ("speed", speed),
    ("indexes", sentinels), ("workers", workers), ("queues", queues), ("parked", parked), ("failed", failures),
    ("inbox", inbox), ("places", places),
)  # fmt: skip
