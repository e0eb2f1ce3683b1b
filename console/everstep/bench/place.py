"""Where it is measured: a server of our own, or a namespace of our own on the user's, which is removed at the end.

    with Place() as place, place.worker("chain") as worker:
        before = place.counts()
        place.finish([place.submit(spec, count=0)])
        place.counts() - before

What needs to change the server (its slow log, appendfsync) is only done to our own: `place.own`.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from everstep_checkpoint.entries import Entry
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import connect
from everstep_scheduler.moves.contract import LEASE_MS, Offer
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts, sha
from everstep_scheduler.recovery.recovery import Recovery

from ..embedded import EmbeddedServer
from .processes import BenchFailed, Spawned

SCRIPTS = ("start", "claim", "commit", "part", "renew", "release", "sweep")
WAIT_S = 300.0
PAGE = 1000
LOOK_S = 0.002
SLOW_LOG = 20_000
WORKER = "everstep.bench.worker"
# What we ask ourselves is not what is measured.
OURS = frozenset({"info", "config|set", "config|resetstat", "slowlog|get", "slowlog|reset", "client|setinfo"})


class Counts(dict[str, tuple[int, int]]):
    """Calls and server microseconds by command."""

    def __sub__(self, before: Counts) -> Counts:
        found = {
            name: (n - before.get(name, (0, 0))[0], us - before.get(name, (0, 0))[1]) for name, (n, us) in self.items()
        }
        return Counts({name: each for name, each in found.items() if each[0]})

    @property
    def scripts(self) -> int:
        return sum(self.get(name, (0, 0))[0] for name in ("evalsha", "eval"))

    @property
    def commands(self) -> int:
        return sum(n for name, (n, _) in self.items() if name not in OURS)


class Script(NamedTuple):
    """One call of a script that the slow log has seen."""

    name: str
    us: int


class Place:
    """The server of a run, empty at the beginning of each measurement. `url` empty: one of our own."""

    def __init__(self, url: str = "", *, appendfsync: str = "everysec", keys: Keys | None = None) -> None:
        self.own = not url
        self.keys = keys or (Keys() if self.own else _free_keys(url))
        self.url = url
        self._fsync = appendfsync
        self._ending = ExitStack()
        self._threads: list[str] = []

    def __enter__(self) -> Self:
        with ExitStack() as ending:
            if self.own:
                self.url = ending.enter_context(EmbeddedServer(appendfsync=self._fsync)).url
            self.redis: Any = connect(self.url, block_s=WAIT_S)  # to forget a million jobs takes a server seconds
            self._client = connect(self.url)
            ending.callback(self.redis.close)
            ending.callback(self._client.close)
            if not self.own:
                ending.callback(self._remove)
            self.folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="everstep-bench-")))
            scripts = Scripts(self._client, self.keys, Recovery(self._client, self.keys), self.url)
            self.moves, self.log = RedisMoves(scripts), RedisLog(self._client, self.keys)
            self._settle()
            self._ending = ending.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ending.close()

    def clear(self) -> None:
        """Nothing of ours is there any more."""
        if self.own:
            self.redis.flushall()
        else:
            self._remove()
        self._settle()

    def _remove(self) -> None:
        for names in _pages(self.redis.scan_iter(match=f"{self.keys.namespace}:*", count=PAGE)):
            self.redis.unlink(*names)

    def _settle(self) -> None:
        """Have the sentinels set now: else the first to come rebuilds an empty server while it is measured."""
        self.moves.claim(Offer("bench"))

    def partition(self, name: str) -> Place:
        """The same server and namespace, another partition. Cleared with this place."""
        rq = f"{{{name}}}:rq" if self.own else f"{self.keys.namespace}:{{{name}}}:rq"
        return Place(self.url, keys=Keys(self.keys.namespace, name, rq))

    # what the server counts

    def counts(self) -> Counts:
        found = self.redis.info("commandstats")
        return Counts({name.removeprefix("cmdstat_"): (said["calls"], said["usec"]) for name, said in found.items()})

    def cpu_s(self) -> float:
        """Seconds of CPU that the server has taken, all of its threads."""
        found = self.redis.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])

    def aof_bytes(self) -> int:
        """Size of the append-only file; 0 without one."""
        return int(self.redis.info("persistence").get("aof_current_size", 0))

    def stored_bytes(self) -> int:
        """Memory of all keys of the namespace, by MEMORY USAGE."""
        found = 0
        for names in _pages(self.redis.scan_iter(match=f"{self.keys.stem}*", count=PAGE)):
            asked = self.redis.pipeline(transaction=False)
            for name in names:
                asked.memory_usage(name, samples=0)
            found += sum(size or 0 for size in asked.execute())
        return found

    @contextmanager
    def scripts(self, threshold_us: int = 0) -> Generator[list[Script]]:
        """The scripts that took longer than the threshold, filled in at the end; none on a server that is not ours."""
        found: list[Script] = []
        if not self.own:
            yield found
            return
        names = {sha(name): name for name in SCRIPTS}
        self.redis.config_set("slowlog-max-len", SLOW_LOG)
        self.redis.config_set("slowlog-log-slower-than", threshold_us)
        self.redis.slowlog_reset()
        try:
            yield found
        finally:
            self.redis.config_set("slowlog-log-slower-than", -1)
            for each in self.redis.slowlog_get(SLOW_LOG):
                words = each["command"].split()
                if words[0].upper() == b"EVALSHA":
                    found.append(Script(names.get(words[1].decode(), "another"), each["duration"]))

    # runs

    def submit(self, spec: GraphSpec, *, thread: str = "", **values: Any) -> str:
        """Start a run, on a new thread if none is named; the thread."""
        thread = thread or new_id()
        self.moves.start(start_of(spec, thread, new_id(), values, Config(), "input"))
        return thread

    def status(self, thread: str) -> str:
        """`running`, `done`, ...; empty for a thread that is not there."""
        found: bytes | None = self.redis.hget(self.keys.thread(thread), "status")
        return (found or b"").decode()

    def statuses(self, threads: Sequence[str]) -> list[str]:
        """The same of several, in one request."""
        with self.redis.pipeline(transaction=False) as pipe:
            for thread in threads:
                pipe.hget(self.keys.thread(thread), "status")
            return [(found or b"").decode() for found in pipe.execute()]

    def finish(self, threads: Iterable[str], pause_s: float = LOOK_S) -> None:
        """Wait until all these threads have come to rest, done. The last one is looked at until it is, then all that
        are left, at once: who waits should not be what the server is busy with."""
        end, left = time.monotonic() + WAIT_S, list(threads)
        while left:
            while not self._is_done(left[-1], self.status(left[-1]), end):
                time.sleep(pause_s)
            found = zip(left, self.statuses(left), strict=True)
            left = [thread for thread, status in found if not self._is_done(thread, status, end)]

    def _is_done(self, thread: str, status: str, end: float) -> bool:
        if status == "done" or (status == "running" and time.monotonic() < end):
            return status == "done"
        raise BenchFailed(f"thread {thread} is {status or 'not there'}, not done")

    def span_ms(self, threads: Sequence[str]) -> int:
        """From the first claim of these threads' runs to their last checkpoint, by Redis' clock."""
        logs = [self.log.read(thread) for thread in threads]
        began = min(_claimed(log) for log in logs)
        return max(log[-1].number("at") for log in logs) - began

    # processes

    @contextmanager
    def worker(
        self, *graphs: str, concurrency: int = 10, queues: Sequence[str] = (), lease_ms: int = LEASE_MS
    ) -> Generator[Spawned]:
        """An idle worker process that serves these graphs."""
        journal = self.folder / f"{new_id()}.json"
        order = {
            "url": self.url, "keys": [self.keys.namespace, self.keys.partition, self.keys.rq], "graphs": graphs,
            "concurrency": concurrency, "queues": queues, "lease_ms": lease_ms, "journal": str(journal),
        }  # fmt: skip
        # the URL travels in the environment: a password on a command line is everybody's to read
        env = {"EVERSTEP_BENCH_ORDER": json.dumps(order), "RQ_KEY_PREFIX": self.keys.rq}  # not what we were pinned to
        started = Spawned(("-m", WORKER), journal, env=env)
        waits = [self.keys.waiting(name) for name in queues or graphs]
        try:
            until(lambda: self._waits(waits, started.pid), "a worker that is ready", started)
            yield started
        finally:
            started.end()

    def _waits(self, queues: Sequence[str], pid: int) -> bool:
        """Does this process wait for work on all these queues?"""
        names = [self.redis.zrange(queue, 0, -1) for queue in queues]
        return all(any(f".{pid}.".encode() in name for name in each) for each in names)

    @contextmanager
    def workers(self, count: int, *graphs: str, concurrency: int = 10) -> Generator[list[Spawned]]:
        """So many worker processes."""
        with ExitStack() as ending:
            yield [ending.enter_context(self.worker(*graphs, concurrency=concurrency)) for _ in range(count)]

    def temporary(self) -> Path:
        """A file of this place that is not there yet."""
        return self.folder / f"{new_id()}.json"


@contextmanager
def held(workers: Iterable[Spawned]) -> Generator[None]:
    """The workers stand still meanwhile, so that all of a workload is there before its first step."""
    with ExitStack() as ending:
        for each in workers:
            ending.enter_context(each.stopped())
        yield


def until(condition: Callable[[], bool], what: str, *started: Spawned, pause_s: float = 0.005) -> None:
    """Wait for a condition. Raises BenchFailed if it does not come, or one of the processes has ended."""
    end = time.monotonic() + WAIT_S
    while not condition():
        ended = next((each for each in started if each.ended), None)
        if ended is not None or time.monotonic() > end:
            raise BenchFailed(f"waited in vain for {what}" + (f": {ended.last}" if ended else ""))
        time.sleep(pause_s)


def _free_keys(url: str) -> Keys:
    """A namespace of the user's Redis in which nothing is. Its keys for RQ lie in it, too."""
    name = f"bench-{secrets.token_hex(4)}"
    with suppress(ValueError), connect(url) as client:
        untyped: Any = client
        if next(untyped.scan_iter(match=f"{name}:*", count=PAGE), None) is not None:
            return _free_keys(url)
    return Keys(name, "0", f"{name}:rq")


def _pages(names: Iterable[bytes]) -> Generator[list[bytes]]:
    page: list[bytes] = []
    for name in names:
        page.append(name)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


def _claimed(log: Sequence[Entry]) -> int:
    return min(entry.number("started") for entry in log if "started" in entry.raw)
