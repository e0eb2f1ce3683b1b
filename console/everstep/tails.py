"""Can the logs be read to their ends, and do they take entries? What `everstep doctor` looks at while the fleet works.

A thread's hash says where its log ends. Something foreign at the end stands where the next entry belongs, so nothing is
written any more; a thread without a hash is one that no rebuild could read. Only the ends are looked at, of a bounded
number of threads, those that run first; `everstep log THREAD --verify` reads a whole log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from redis.exceptions import ResponseError

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import LogError
from everstep_scheduler.recovery.rebuild import STATUSES

from .site import Site

THREADS_MAX = 2000
KEYS_MAX = 20_000  # of all keys, in search of logs without indexes
BATCH = 20


@dataclass(frozen=True)
class Trouble:
    """A log that can't be read or takes no entry. `lost`: only its indexes are missing, or only they are there."""

    thread: str
    why: str
    lost: bool = False
    fix: str = ""


@dataclass
class Report:
    """What was looked at. `cut`: there is more than the bounds."""

    threads: int = 0
    cut: bool = False
    troubles: list[Trouble] = field(default_factory=list[Trouble])


def look_at_tails(site: Site) -> Report:
    """Look at the ends of at most 2,000 logs. Raises redis.RedisError."""
    report = Report()
    threads = islice(_threads(site, report), THREADS_MAX)
    while batch := list(islice(threads, BATCH)):
        report.threads += len(batch)
        for thread, answer in zip(batch, _ends(site, batch), strict=True):
            if trouble := _wrong(site, thread, answer):
                report.troubles.append(trouble)
    report.cut = report.cut or next(threads, None) is not None or report.threads == THREADS_MAX
    return report


def _threads(site: Site, report: Report) -> Iterator[str]:
    """Those that run, then the others that changed last, then logs without an index; each once."""
    client: Any = site.redis
    seen = set[str]()
    for status in STATUSES:
        for name in client.zrevrange(site.keys.threads(status), 0, THREADS_MAX):
            thread = _text(name)
            if thread and thread not in seen:
                seen.add(thread)
                yield thread
    yield from (thread for thread in _strays(site, report) if thread not in seen)


def _strays(site: Site, report: Report) -> Iterator[str]:
    client: Any = site.redis
    stem, cursor, seen = site.keys.log("").encode(), 0, 0
    while True:
        cursor, keys = client.scan(cursor, match=stem.decode() + "*", count=1000)
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.exists(site.keys.thread("").encode() + key[len(stem) :])
        for key, known in zip(keys, pipe.execute(), strict=True):
            if not known and (thread := _text(key[len(stem) :])):
                yield thread
        seen += 1000
        if not cursor:
            return
        if seen >= KEYS_MAX:
            report.cut = True
            return


def _text(name: bytes) -> str:
    """A thread's id; empty for a name that no thread of ours has."""
    try:
        return name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return ""


def _ends(site: Site, batch: list[str]) -> Iterator[list[Any]]:
    """For each thread where its hash says it stands, twice, and in between the end of its log."""
    with site.redis.pipeline(transaction=False) as pipe:  # no MULTI: a full server refuses what is queued in one
        for thread in batch:
            pipe.hmget(site.keys.thread(thread), "n", "digest")
            pipe.xinfo_stream(site.keys.log(thread))
            pipe.hmget(site.keys.thread(thread), "n", "digest")
        found: list[Any] = pipe.execute(raise_on_error=False)
    for i in range(0, len(found), 3):
        yield found[i : i + 3]


def _wrong(site: Site, thread: str, answer: list[Any]) -> Trouble | None:
    """None if all is well, or if the thread moved meanwhile: then its log takes entries."""
    before, info, after = answer
    if isinstance(info, ResponseError):
        if "no such key" in str(info):
            return Trouble(thread, "its log is gone", lost=True)
        return Trouble(thread, f"its log is no stream: {info}", fix=f"restore it; or DEL '{site.keys.log(thread)}'")
    if isinstance(info, Exception):
        raise info
    if before != after:
        return None
    try:
        last = e.read_entry(*info["last-entry"]) if info["last-entry"] else None
        if last is not None and site.log.signer is not None:
            site.log.signer.check(thread, last)
        given = e.entry_id(info["last-generated-id"].decode())
    except LogError as error:
        return Trouble(thread, error.what)
    if last is None or given > (last.n, last.k):
        return Trouble(
            thread, f"entries up to {given[0]}-{given[1]} were removed from its end, and it takes none below"
        )
    if before[0] is None:
        return Trouble(thread, "it has no indexes", lost=True)
    if last.n != int(before[0]) or (last.is_checkpoint and last.digest.encode() != before[1]):
        return Trouble(thread, f"it ends with entry {last.id}, but its index says checkpoint {before[0].decode()}")
    return None
