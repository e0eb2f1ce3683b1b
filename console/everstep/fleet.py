"""What `everstep doctor` looks at in the fleet: indexes, workers, queues, leases, logs. Reads only, and bounded."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime

from everstep_checkpoint.keys import is_within
from everstep_scheduler.moves.document import document

from . import show
from .finding import ACT, KNOW, NAMES_MAX, OK, Finding, Look

FAILED_MAX = 500
WORKERS_MAX = 1000
SAMPLE = 20
BEAT_LASTS_MS = 30_000  # as in everstep_workers.face, which would import rq
SILENT_MS = 12_000
OVERDUE_MAX = 200
SCAN, KEYS_MAX = 5000, 2_000_000
LATE_MS = 2000
STUCK_MS = 30_000
SWEEP_LATE_MS = 5000
REFUSED = "refused by everstep: "
FUNCTION = b'["everstep.run_node"'


def sentinels(look: Look) -> Iterator[Finding]:
    keys = look.site.keys
    ours, rq, rebuilding, suspended = look.redis.mget(keys.alive, keys.rq_alive, keys.recovery, keys.rq_suspended)
    if rebuilding:
        yield Finding(
            KNOW, "indexes", "a process is rebuilding them from the logs", "wait for it; runs go on by themselves"
        )
    elif ours and rq:
        yield Finding(OK, "indexes", "both sentinels stand: no key of ours or of RQ was lost")
    elif not ours and look.site.unused():
        yield _nothing_here(look)
    else:
        lost = " and ".join([*(["ours"] if not ours else []), *(["RQ's"] if not rq else [])])
        yield Finding(
            ACT, "indexes", f"{lost} were lost; the logs are whole", "everstep recover (a worker does it by itself)"
        )
    if suspended:
        fix = look.site.rq("resume")
        yield Finding(KNOW, "suspended", "RQ is suspended: nothing is claimed", fix)


def _nothing_here(look: Look) -> Finding:
    """Rightly so, or is it the wrong place?"""
    elsewhere = look.site.neighbours()
    if not elsewhere:
        return Finding(OK, "indexes", f"nothing has run in {look.site.place} yet")
    said = f"nothing has ever run in {look.site.place}; on this server there are: {', '.join(elsewhere)}"
    return Finding(KNOW, "indexes", said, "see whether --namespace and --partition are as you mean them")


def workers(look: Look) -> Iterator[Finding]:
    """RQ's worker keys: they expire 30 s after the last beat of a killed process. Ours beat every five seconds."""
    keys = look.site.keys
    names = sorted(look.redis.smembers(keys.rq_workers))[:WORKERS_MAX]
    with look.redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(name, "queues", "hostname", "state", "death")
            pipe.pttl(name)
        answers = pipe.execute()
    rows = zip(names, answers[::2], answers[1::2], strict=True)
    found = [row for row in rows if row[1][0] is not None and not row[1][3]]
    ours = [row for row in found if row[0].removeprefix(keys.rq_worker("").encode()).startswith(b"everstep.")]
    silent = [row for row in ours if 0 <= row[2] < BEAT_LASTS_MS - SILENT_MS]
    alive = [row for row in ours if row not in silent]
    look.workers = len(alive)
    look.served = {queue for row in found if row not in silent for queue in row[1][0].decode().split(",")}
    look.ours_served = {queue for row in alive for queue in row[1][0].decode().split(",")}
    for row in alive:
        for queue in row[1][0].decode().split(",") if row[1][2] == b"idle" else ():
            look.idle.setdefault(queue, []).append(row[0].removeprefix(keys.rq_worker("").encode()).decode())
    hosts = {row[1][1].decode() for row in alive if row[1][1]}
    others = f"; {len(found) - len(ours)} of stock RQ" if len(found) > len(ours) else ""
    if alive:
        busy = sum(row[1][2] == b"busy" for row in alive)
        on = f"{len(hosts)} {'host' if len(hosts) == 1 else 'hosts'}"
        yield Finding(OK, "workers", f"{len(alive)} alive on {on}, {busy} busy{others}")
    else:
        mark, full = ACT if _is_work(look) else KNOW, look.full
        fix = (
            "first see memory: while Redis is full they can't say that they live"
            if full
            else "everstep worker MODULE:GRAPH"
        )
        yield Finding(
            mark, "workers", f"none is alive{others}" if not full else f"none says that it is alive{others}", fix
        )
    if silent:
        named = _named([row[0].removeprefix(keys.rq_worker("").encode()).decode() for row in silent])
        longest = show.span(max(BEAT_LASTS_MS - row[2] for row in silent))
        said = f"{show.many(len(silent), 'worker')} silent for up to {longest}: {named}"
        fix = "dead, frozen (kill -CONT), or cut off from Redis: see their hosts; others take over what they held"
        yield Finding(KNOW, "workers", said, fix)


def _is_work(look: Look) -> bool:
    return bool(look.redis.zcard(look.site.keys.threads("running")))


def queues(look: Look) -> Iterator[Finding]:
    """Our queues, by our own count of the jobs in them. Those of other applications on this server are left alone."""
    keys = look.site.keys
    stem = keys.rq_queue("")
    look.queues = sorted(name.decode().removeprefix(stem) for name in look.redis.smembers(keys.rq_queues))
    with look.redis.pipeline(transaction=False) as pipe:
        for queue in look.queues:
            pipe.llen(keys.rq_queue(queue))
            pipe.hget(keys.counts, queue)
        found = pipe.execute()
    waiting = {queue: int(length) for queue, length in zip(look.queues, found[::2], strict=True) if length}
    ours = {queue for queue, count in zip(look.queues, found[1::2], strict=True) if int(count or 0) > 0}
    ours |= {queue for queue in waiting if queue not in ours and _has_ours(look, queue)}
    for queue in sorted(ours & set(waiting)):
        yield _waiting(look, queue, waiting[queue])
    others = {queue: n for queue, n in waiting.items() if queue not in ours}
    served = {queue for queue in others if queue in look.ours_served}
    for queue in sorted(served):
        said = f"{queue}: {show.many(others[queue], 'job')} of other applications where our workers take jobs"
        yield Finding(
            KNOW, "queues", said, "they are refused, and shown as failed: give those applications queues of their own"
        )
    if not ours & set(waiting):
        yield Finding(OK, "queues", f"{len(look.queues)} known, nothing of ours waits")
    if rest := sorted(set(others) - served):
        jobs = show.many(sum(others[queue] for queue in rest), "job")
        yield Finding(OK, "queues", f"{_named(rest)}: {jobs} of other applications, not ours to run")


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_MAX} more" if len(names) > NAMES_MAX else ""
    return ", ".join(names[:NAMES_MAX]) + more


def _has_ours(look: Look, queue: str) -> bool:
    """Is a job of ours among the first in a queue, pushed by hand and not in our count?"""
    keys = look.site.keys
    with look.redis.pipeline(transaction=False) as pipe:
        for job in look.redis.lrange(keys.rq_queue(queue), 0, SAMPLE - 1):
            pipe.hget(keys.rq_job(job.decode("utf-8", "replace")), "everstep")
        return any(document(named).get("keys") == keys.stem for named in pipe.execute())


def _waiting(look: Look, queue: str, n: int) -> Finding:
    if queue.endswith(".suspect"):
        said = f"{queue}: {show.many(n, 'task')} whose process died, waiting to be run alone"
        return Finding(KNOW, "suspects", said, "a pool does it: everstep worker; see `everstep history THREAD`")
    if queue in look.served:
        return _served(look, queue, n)
    fix = f"everstep worker MODULE:{queue}, or --queues {queue}"
    return Finding(ACT, "queues", f"{queue}: {n:,} waiting, and no worker listens", fix)


def _served(look: Look, queue: str, n: int) -> Finding:
    """Somebody listens. Does the first job stand there for long?"""
    waits = _first_waits(look, queue)
    if waits < STUCK_MS:
        return Finding(OK, "queues", f"{queue}: {n:,} waiting")
    said = f"{queue}: {n:,} waiting, the first for {show.span(waits)}"
    if idle := look.idle.get(queue):
        said = f"{said}, though {_named(idle)} shows nothing under way"
        fix = (
            "does its log say `its lease is gone`? Then nodes that were cancelled, or are over their timeout, keep its "
            "slots: kill -TERM that process, its pool begins another"
        )
        return Finding(KNOW, "queues", said, fix)
    return Finding(KNOW, "queues", f"{said}: those who listen are busy", "wait, or start more workers")


def _first_waits(look: Look, queue: str) -> int:
    """For how many ms the job that comes next has waited; 0 where that is not known, or nobody may take it."""
    keys = look.site.keys
    first = look.redis.lindex(keys.rq_queue(queue), 0)
    if first is None or look.redis.exists(keys.rq_suspended):
        return 0
    since = look.redis.hget(keys.rq_job(first.decode("utf-8", "replace")), "enqueued_at") or b""
    seconds, micros = look.redis.time()
    try:
        at = datetime.fromisoformat(since.decode("ascii", "replace"))
    except ValueError:
        return 0
    return int((seconds + micros / 1e6 - at.timestamp()) * 1000)


def parked(look: Look) -> Iterator[Finding]:
    found = look.redis.hgetall(look.site.keys.parked)
    for name, count in sorted(found.items()):
        graph, _, node = name.decode("utf-8", "replace").partition(":")
        said = f"{show.many(int(count), 'task')}: waiting for a worker that has node {node!r} of graph {graph!r}"
        start = f"start one with that version: everstep worker MODULE:{graph}"
        yield Finding(
            ACT, "parked", said, f"{start}; or if the node is gone: everstep migrate --all-parked MODULE:FUNCTION"
        )
    if not found:
        yield Finding(OK, "parked", "no task waits for code that is missing")


def leases(look: Look) -> Iterator[Finding]:
    """Leases past their end: a worker's sweep takes them back within a second or two, so why did none?"""
    keys = look.site.keys
    seconds, micros = look.redis.time()
    now = seconds * 1000 + micros // 1000
    held, late = int(look.redis.zcard(keys.leases)), int(look.redis.zcount(keys.leases, "-inf", now - LATE_MS))
    if not late:
        yield Finding(OK, "leases", f"{held:,} held, none past its end")
        return
    rows = look.redis.zrange(keys.leases, 0, OVERDUE_MAX - 1, withscores=True)
    owners = _owners(look, [token for token, end in rows if end <= now - LATE_MS])
    oldest = now - rows[0][1]
    said = f"{late:,} of {held:,} are past their end, the oldest for {show.span(oldest)}, held by {_named(owners)}"
    swept, hold = (int(x or 0) for x in look.redis.hmget(keys.sweep, "at", "hold"))
    if now - swept > SWEEP_LATE_MS:
        ago = f"the last sweep was {show.span(now - swept)} ago" if swept else "there was never a sweep"
        fix = f"everstep worker MODULE:GRAPH: any worker of {look.site.place} takes them back, {PATIENCE}"
        yield Finding(ACT, "leases", f"{said}: no worker sweeps, {ago}", fix)
    elif hold > now:
        why = f"nothing expires for another {show.span(hold - now)}, for nobody could renew for a while"
        yield Finding(KNOW, "leases", f"{said}: {why}", "wait: a holder that lives renews, the rest is taken back then")
    else:
        yield Finding(KNOW, "leases", f"{said}: workers sweep, 100 a second each", "wait; look again in a minute")


PATIENCE = "a lease and 2 s after it began"


def _owners(look: Look, tokens: Sequence[bytes]) -> list[str]:
    """Who holds these leases."""
    keys = look.site.keys
    named: list[bytes | None] = look.redis.hmget(keys.lease, tokens) if tokens else []
    with look.redis.pipeline(transaction=False) as pipe:
        for each in named:
            task, _, thread = (each or b"").partition(b" ")
            pipe.hget(keys.open("").encode() + thread, task)
        records = [document(raw) for raw in pipe.execute() if raw]
    return sorted({str(record.get("o", "?")) for record in records}) or ["nobody known"]


def failures(look: Look) -> Iterator[Finding]:
    """RQ's failed registries: dead letters, failed tasks, and jobs that are not ours."""
    dead: list[str] = []
    foreign: list[str] = []
    failed = 0
    for queue in look.queues:
        for job, data, reason in _failed_jobs(look, queue):
            if not data.startswith(FUNCTION) and not reason.startswith(REFUSED):
                pass  # a failed job of another application, in a queue of its own
            elif not data.startswith(FUNCTION):
                foreign.append(f"{job} on {queue}")
            elif reason.startswith("poison"):
                dead.append(job)
            else:
                failed += not reason.startswith(("graph ", "node "))
    threads = int(look.redis.zcard(look.site.keys.threads("failed")))
    if dead:
        fix = "everstep threads --status failed; mend the node; restart its workers; everstep retry THREAD"
        yield Finding(ACT, "dead letters", f"{show.many(len(dead), 'task')} killed every process that ran them", fix)
    if foreign:
        said = f"{show.many(len(foreign), 'job')} in our queues not ours, and refused: {_named(foreign)}"
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
            pipe.hmget(keys.rq_job(job.decode("utf-8", "replace")), "data", "exc_info")
        for job, (data, reason) in zip(ids, pipe.execute(), strict=True):
            if data is not None:
                yield job.decode(), data, (reason or b"").decode("utf-8", "replace")


def inbox(look: Look) -> Iterator[Finding]:
    keys = look.site.keys
    waiting = int(look.redis.xlen(keys.inbox)) + int(look.redis.xlen(keys.inbox_replaced))
    refused = int(look.redis.xlen(keys.inbox_rejected))
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
        fix = look.cli("XREVRANGE", keys.inbox_rejected, "+", "-", "COUNT", "5")
        yield Finding(KNOW, "inbox", f"{show.many(refused, 'message')} refused, the last one: {why}", fix)


def logs(look: Look) -> Iterator[Finding]:
    from .tails import look_at_tails

    report = look_at_tails(look.site)
    bad = [each for each in report.troubles if not each.lost]
    lost = [each for each in report.troubles if each.lost]
    bound = f" (looked at {report.threads:,}, there are more)" if report.cut else ""
    for each in bad[:NAMES_MAX]:
        fix = each.fix or f"everstep recover --thread {shlex.quote(each.thread)} shows what to cut off, and how"
        yield Finding(ACT, "logs", f"thread {each.thread}: {each.why}", fix)
    if len(bad) > NAMES_MAX:
        said = f"{len(bad) - NAMES_MAX:,} more can't be read, or take no entry{bound}"
        yield Finding(ACT, "logs", said, "mend those above; look again")
    if lost:
        said = f"{show.many(len(lost), 'thread')} with a log and no indexes, or the other way round, as"
        fix = "everstep recover; see `everstep recover --thread THREAD` for those that it leaves out"
        yield Finding(ACT, "logs", f"{said} {_named([each.thread for each in lost])}", fix)
    if not report.troubles:
        yield Finding(OK, "logs", f"{show.many(report.threads, 'log')} can be read to the end{bound}")


def dying(look: Look) -> Iterator[Finding]:
    """Logs of threads whose deletion is under way, or was ended half way: until it is over nothing begins on them."""
    stem = look.site.keys.dying("")
    named, cut = _some_keys(look, stem)
    threads = [thread for thread in named if not is_within(thread)]  # those go with the one whose node keeps them
    for thread in threads[:NAMES_MAX]:
        fix = f"wait for who deletes it; if nobody does any more: everstep delete {shlex.quote(thread)}"
        yield Finding(KNOW, "deleting", f"thread {show.clean(thread)} stands aside: its deletion is not over", fix)
    if len(threads) > NAMES_MAX or cut:
        said = "there are more" if len(threads) > NAMES_MAX else f"not all keys were looked at, but {KEYS_MAX:,}"
        yield Finding(KNOW, "deleting", said, "finish those above; look again" if threads else "")


def _some_keys(look: Look, stem: str) -> tuple[list[str], bool]:
    """What comes behind this stem in the names of keys that begin with it; and whether not all were looked at."""
    found: set[str] = set()
    cursor, pattern = 0, re.sub(r"([*?\[\]\\^])", r"\\\1", stem) + "*"
    for _ in range(KEYS_MAX // SCAN):
        cursor, keys = look.redis.scan(cursor, match=pattern, count=SCAN)
        found |= {key.decode("utf-8", "surrogateescape").removeprefix(stem) for key in keys}
        if cursor == 0 or len(found) > NAMES_MAX * 4:
            break
    return sorted(found), cursor != 0


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
