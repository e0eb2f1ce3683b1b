"""Where it is measured: one embedded server, its counters, a producer, and worker processes.

with Place() as place, place.worker("chain") as worker:
    before = place.counts()
    place.finish([place.submit(spec, count=0)])
    place.counts() - before
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import redis

from everstep.embedded import EmbeddedServer
from everstep_checkpoint.entries import Entry
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.log import new_id
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import connect
from everstep_scheduler.moves.contract import Offer
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts, sha
from everstep_scheduler.recovery.recovery import Recovery

ROOT = Path(__file__).parent.parent
KEYS = Keys()
SCRIPTS = ("start", "claim", "commit", "part", "renew", "release", "sweep")
WAIT_S = 120.0
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


class Spawned:
    """A process that was started here, and is ended here. Its journal is there once it has ended."""

    def __init__(self, command: Sequence[str], journal: Path) -> None:
        self.path = journal
        self.process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def rss_mb(self) -> float:
        """Resident memory, from /proc."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    @property
    def journal(self) -> list[tuple[int, int]]:
        return [(number, ns) for number, ns in json.loads(self.path.read_text())]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=WAIT_S)
        if self.process.returncode:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.returncode}: {said.decode()[-2000:]}")


class Place:
    """The server of a run, empty at the beginning of each measurement."""

    def __init__(self, url: str = "") -> None:
        self._ending = ExitStack()
        self.url = url

    def __enter__(self) -> Self:
        self.url = self.url or self._ending.enter_context(EmbeddedServer(appendfsync="everysec")).url
        self.redis: Any = redis.Redis.from_url(self.url, protocol=2)
        self.folder = Path(self._ending.enter_context(tempfile.TemporaryDirectory(prefix="everstep-bench-")))
        self._own = connect(self.url)
        self.moves = RedisMoves(Scripts(self._own, KEYS, Recovery(self._own, KEYS), self.url))
        self.log = RedisLog(self._own, KEYS)
        self._settle()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.redis.close()
        self._own.close()
        self._ending.close()

    def clear(self) -> None:
        self.redis.flushall()
        self._settle()

    def _settle(self) -> None:
        """Have the sentinels set now: else the first to come rebuilds an empty server while it is measured."""
        self.moves.claim(Offer("bench"))

    # what the server counts

    def counts(self) -> Counts:
        found = self.redis.info("commandstats")
        return Counts({name.removeprefix("cmdstat_"): (said["calls"], said["usec"]) for name, said in found.items()})

    @contextmanager
    def scripts(self, threshold_us: int = 0) -> Generator[list[Script]]:
        """The scripts that took longer than the threshold; filled in at the end."""
        names = {sha(name): name for name in SCRIPTS}
        found: list[Script] = []
        self.redis.config_set("slowlog-max-len", 20_000)
        self.redis.config_set("slowlog-log-slower-than", threshold_us)
        self.redis.slowlog_reset()
        try:
            yield found
        finally:
            self.redis.config_set("slowlog-log-slower-than", -1)
            for each in self.redis.slowlog_get(20_000):
                words = each["command"].split()
                if words[0].upper() == b"EVALSHA":
                    found.append(Script(names.get(words[1].decode(), "another"), each["duration"]))

    # runs

    def submit(self, spec: GraphSpec, **values: Any) -> str:
        """Start a run on a new thread; its id."""
        thread = new_id()
        self.moves.start(start_of(spec, thread, new_id(), values, Config(), "input"))
        return thread

    def finish(self, threads: Iterable[str], pause_s: float = 0.002) -> None:
        """Wait until all these threads have come to rest, done."""
        end = time.monotonic() + WAIT_S
        for thread in threads:
            while (status := self.redis.hget(KEYS.thread(thread), "status")) != b"done":
                if status != b"running" or time.monotonic() > end:
                    raise RuntimeError(f"thread {thread} is {status!r}, not done")
                time.sleep(pause_s)

    def span_ms(self, threads: Sequence[str]) -> int:
        """From the first claim of these threads' runs to their last checkpoint, by Redis' clock."""
        logs = [self.log.read(thread) for thread in threads]
        began = min(_claimed(log) for log in logs)
        return max(log[-1].number("at") for log in logs) - began

    # processes

    @contextmanager
    def spawned(self, *command: str) -> Generator[Spawned]:
        """A Python process; the name of its journal's file is put for `JOURNAL` in its command."""
        journal = self.folder / f"{new_id()}.json"
        started = Spawned([str(journal) if word == "JOURNAL" else word for word in command], journal)
        try:
            yield started
        finally:
            started.end()

    @contextmanager
    def worker(self, *graphs: str, concurrency: int = 10) -> Generator[Spawned]:
        """An idle worker process that serves these graphs."""
        with self.spawned("-m", "bench.worker", self.url, "JOURNAL", str(concurrency), *graphs) as started:
            self.until(lambda: bool(self.redis.exists(*(KEYS.waiting(name) for name in graphs))), started)
            yield started

    def until(self, condition: Any, started: Spawned) -> None:
        """Wait for a condition that a process is to bring about."""
        end = time.monotonic() + WAIT_S
        while not condition():
            if started.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{started.process.args!r} did not get ready")
            time.sleep(0.005)

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Workers claim nothing meanwhile: so that all of a workload is there before its first step."""
        self.redis.set(KEYS.rq_suspended, 1)
        time.sleep(1.2)  # a worker looks once a second
        yield
        self.redis.delete(KEYS.rq_suspended)


def _claimed(log: Sequence[Entry]) -> int:
    return min(entry.number("started") for entry in log if "started" in entry.raw)


def cpu_count() -> int:
    return os.cpu_count() or 1
