"""The faults, done. Each is one method; what it did is noted as a Struck, with the time by both clocks.

Nothing here heals by itself but a stopped process, a killed pool and a killed Redis: these come back as the plan says.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import redis

from .checking.evidence import Struck
from .plan import Fault
from .stage import Stage, children_of

MS_S = 1000
JOBS_MAX = 5
SCAN = 1000
GROWN_S = 1.0
T = TypeVar("T")


class Striker:
    """Strikes on a stage, one fault at a time."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._redis: Any = stage.redis
        self._keys = stage.keys
        self._stopped: list[tuple[float, int]] = []
        self._born: dict[int, float] = {}
        self.struck: list[Struck] = []
        self._offset_s = 0.0
        self._doing: dict[str, Callable[[Fault], Struck | None]] = {
            "kill": self._kill, "pool": self._kill_pool, "stop": self._stop, "cut": self._cut, "twice": self._twice,
            "rq": self._lose_rq, "index": self._lose_indexes, "server": self._kill_server,
            "deploy": self._deploy, "failover": self._fail_over, "handover": self._hand_over,
        }  # fmt: skip
        self._read_clock()

    def strike(self, fault: Fault) -> Struck | None:
        """Do it; None if there was nothing that it could befall, or Redis was away."""
        try:
            done = self._doing[fault.kind](fault)
        except redis.RedisError:
            return None
        if done is not None:
            self.struck.append(done)
        return done

    def look(self, *, all_of_them: bool = False) -> None:
        """SIGCONT for whoever was stopped long enough, or for all; and see which processes there are."""
        now = time.monotonic()
        alive = [pid for crew in self._stage.pools for pid in children_of(crew.pid)]
        self._born = {pid: self._born.get(pid, now) for pid in alive}
        for due, pid in list(self._stopped):
            if all_of_them or due <= now:
                self._stopped.remove((due, pid))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    # clocks

    def _read_clock(self) -> None:
        seconds, micros = self._redis.time()
        self._offset_s = seconds + micros / 1e6 - time.monotonic()

    def _note(self, kind: str, said: str, pids: Sequence[int] = (), at: float | None = None) -> Struck:
        at = time.monotonic() if at is None else at
        return Struck(at, int((at + self._offset_s) * MS_S), kind, tuple(pids), said)

    # processes

    def _victims(self) -> list[int]:
        """Worker processes that have had the time to begin, and are not stopped. A spare is none: it holds nothing."""
        self.look()
        stopped, old = {pid for _, pid in self._stopped}, time.monotonic() - GROWN_S
        shown = set(self._stage.shown_workers().values())
        return [pid for pid, born in self._born.items() if born <= old and pid not in stopped and pid in shown]

    def _kill(self, fault: Fault) -> Struck | None:
        victims = self._victims()
        if not victims:
            return None
        pid = picked(victims, fault.pick)
        at = time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self._note("kill", f"process {pid}", [pid], at)

    def _kill_pool(self, fault: Fault) -> Struck | None:
        """All at once: its children are stopped first, so that none can give anything back."""
        index = int(fault.pick * len(self._stage.pools))
        crew = self._stage.pools[index]
        if not set(children_of(crew.pid)) & set(self._victims()):
            return None
        pids = [crew.pid, *children_of(crew.pid)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            at = time.monotonic()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        crew.stop()  # it is dead: this buries it
        self._stopped = [(due, pid) for due, pid in self._stopped if pid not in pids]
        self._stage.open_pool(index)
        return self._note("pool", f"pool {index}, {len(pids)} processes", pids, at)

    def _stop(self, fault: Fault) -> Struck | None:
        victims = self._victims()
        if len(victims) < 2:  # somebody must be left to go on
            return None
        pid = picked(victims, fault.pick)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        self._stopped.append((time.monotonic() + fault.length_s, pid))
        return self._note("stop", f"process {pid}, for {fault.length_s:.1f} s", [pid])

    def _deploy(self, fault: Fault) -> Struck:
        """A rolling restart, as far as one pool goes. What it was at ends, or is given back; nothing is excused."""
        return self._redeploy(int(fault.pick * len(self._stage.pools)))

    def finish_deploy(self) -> None:
        """Every pool serves the newest version: what others lack is parked for as long as nobody has it."""
        self.struck += [self._redeploy(index) for index in self._stage.outdated()]

    def _redeploy(self, index: int) -> Struck:
        """A pool that does not end in time is killed: only that is a fault that befalls its processes."""
        crew = self._stage.pools[index]
        pids = [crew.pid, *children_of(crew.pid)]
        self._stopped = [(due, pid) for due, pid in self._stopped if pid not in pids]
        at = time.monotonic()
        now = self._stage.deploy(index)
        killed = crew.ended == -signal.SIGKILL
        said = f"pool {index}, now {now}{', had to be killed' if killed else ''}"
        return self._note("deploy", said, pids if killed else (), at)

    # connections, jobs, keys

    def _cut(self, fault: Fault) -> Struck | None:
        cutter = self._stage.cutter
        return None if cutter is None else self._note("cut", f"{cutter.cut()} connections")

    def _twice(self, fault: Fault) -> Struck | None:
        """Job ids of tasks that are queued or leased already; that of one that waits would be a wish: to begin now."""
        pushed = 0
        for key in self._redis.scan_iter(match=f"{self._keys.stem}open:*", count=SCAN):
            for _, record in self._redis.hscan_iter(key):
                rec = json.loads(record)
                if rec.get("j") and rec["p"] in ("job", "lease") and pushed < JOBS_MAX:
                    self._redis.rpush(self._keys.rq_queue(rec["q"]), rec["j"])
                    pushed += 1
        return self._note("twice", f"{pushed} jobs") if pushed else None

    def _lose_rq(self, fault: Fault) -> Struck | None:
        return self._lose("rq", f"{self._keys.rq}:*", ())

    def _lose_indexes(self, fault: Fault) -> Struck | None:
        keys = self._keys
        return self._lose("index", f"{keys.stem}*", (keys.log(""), keys.graph(""), keys.graphs, keys.inbox))

    def _lose(self, kind: str, pattern: str, but: tuple[str, ...]) -> Struck | None:
        """In one command, as one accident."""
        names = [
            name for name in self._redis.scan_iter(match=pattern, count=SCAN)
            if not but or not name.decode("utf-8", "replace").startswith(but)
        ]  # fmt: skip
        if not names:
            return None
        self._redis.delete(*names)
        return self._note(kind, f"{len(names)} keys")

    # Redis

    def _kill_server(self, fault: Fault) -> Struck | None:
        server = self._stage.server
        if server is None:
            return None
        struck = self._note("server", f"for {fault.length_s:.1f} s")
        server.kill()
        time.sleep(fault.length_s)
        server.start()
        return struck

    def _fail_over(self, fault: Fault) -> Struck | None:
        """The replica falls behind for a while, and takes over then. What it had before that while, it has."""
        twins, since = self._stage.twins, time.monotonic()
        if twins is None or not twins.level():
            return None
        twins.part()
        time.sleep(fault.length_s)
        struck = self._note("failover", f"to a replica {fault.length_s:.1f} s behind")
        self._stage.take_over()
        return replace(struck, since=since)

    def _hand_over(self, fault: Fault) -> Struck | None:
        """The replica has all that was acknowledged, and takes over."""
        twins = self._stage.twins
        if twins is None or not twins.level():
            return None
        twins.pause()
        if not twins.level():
            twins.resume()
            return None
        twins.part()
        struck = self._note("handover", "to a replica that has all")
        self._stage.take_over()
        return struck


def picked(among: Sequence[T], fraction: float) -> T:
    """The one at a fraction of the way."""
    return among[min(int(fraction * len(among)), len(among) - 1)]
