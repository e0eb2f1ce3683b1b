"""How a worker process looks to RQ's tools: its birth, its beats, its death, as RQ 3.0 writes them.

Everything that shows it is written anew with each beat, so that it comes back after the loss of `rq:*`, and goes away
by itself soon after a kill -9. RQ's prefix is data of ours; a process that also imports rq must agree with it.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from everstep_checkpoint.errors import ServerUnsuitable
from everstep_checkpoint.keys import Keys
from everstep_scheduler.moves.connection import Client

from .slots import Tally

BEAT_EVERY_S = 5.0
BEAT_LASTS_S = 30
DEATH_LASTS_S = 60  # as in RQ
Fields = dict[str, Any]


def worker_name(pid: int, ending: str) -> str:
    """`everstep.<host>.<pid>.<ending>`, of the letters that RQ allows. The pool's parent makes the same name."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:60] or "host"
    return f"everstep.{host}.{pid}.{ending}"


def name_ending() -> str:
    """Six random characters."""
    return secrets.token_hex(3)


def pin_rq_prefix(keys: Keys) -> None:
    """Make rq, if anybody imports it here, use the prefix that our scripts write. Raises ServerUnsuitable."""
    loaded = sys.modules.get("rq.defaults")
    found = getattr(loaded, "RQ_KEY_PREFIX", None) or os.environ.setdefault("RQ_KEY_PREFIX", keys.rq)
    if found != keys.rq:
        raise ServerUnsuitable(
            f"rq in this process uses the key prefix {found!r}, partition {keys.partition!r} uses {keys.rq!r}",
            fix=f"set RQ_KEY_PREFIX={keys.rq} before anything imports rq",
        )


class Face:
    """One process as RQ's tools see it. Each method is one round trip and may raise RedisError."""

    def __init__(self, client: Client, keys: Keys, name: str, queues: Sequence[str]) -> None:
        self.client: Any = client
        self._keys = keys
        self._name = name
        self._queues = tuple(queues)
        self._key = keys.rq_worker(name)
        self._birth = _date()
        self._said: tuple[object, ...] = ()
        self._beaten = 0.0

    def born(self) -> None:
        """The worker is there."""
        self._beat({"state": "started"})

    def show(self, state: str, tally: Tally) -> None:
        """The worker lives. Written where something changed, and every five seconds."""
        said = (state, tally.successful, tally.failed)
        if said == self._said and time.monotonic() - self._beaten < BEAT_EVERY_S:
            return
        self._beat(
            {
                "state": state,
                "successful_job_count": tally.successful,
                "failed_job_count": tally.failed,
                "total_working_time": round(tally.working_s, 6),
            }
        )
        self._said = said

    def died(self) -> None:
        """The worker is gone, and a moment longer to be looked at."""
        with self.client.pipeline(transaction=True) as pipe:
            pipe.srem(self._keys.rq_workers, self._key)
            for queue in self._queues:
                pipe.srem(self._keys.rq_workers_of(queue), self._key)
            pipe.hset(self._key, "death", _date())
            pipe.expire(self._key, DEATH_LASTS_S)
            pipe.execute()

    def _beat(self, more: Fields) -> None:
        with self.client.pipeline(transaction=True) as pipe:
            pipe.hset(self._key, mapping={**self._fields(), **more})
            pipe.expire(self._key, BEAT_LASTS_S)
            pipe.sadd(self._keys.rq_workers, self._key)
            for queue in self._queues:
                pipe.sadd(self._keys.rq_workers_of(queue), self._key)
            pipe.execute()
        self._beaten = time.monotonic()

    def _fields(self) -> Fields:
        """RQ's `BaseWorker.serialize`."""
        return {
            "birth": self._birth,
            "last_heartbeat": _date(),
            "queues": ",".join(self._queues),
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "ip_address": "",
            "version": _rq_version(),
            "python_version": platform.python_version(),
        }


@cache
def _rq_version() -> str:
    return version("rq")


def _date() -> str:
    """Now, as RQ writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
