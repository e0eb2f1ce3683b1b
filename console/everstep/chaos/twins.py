"""A master and a replica of our own, one of which takes over from the other; a new replica follows it then.

level ──► REPLICAOF NO ONE on the replica ──► (the master goes on alone) ──► kill -9 ──► the replica is the master
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from ..embedded import EmbeddedServer

LOCAL = "127.0.0.1"
LEVEL_MS = 3000
PAUSE_MS = 30_000
LOOK_S = 0.02
READY_S = 15.0
QUICK = ("--bind", LOCAL, "--repl-diskless-sync-delay", "0", "--shutdown-timeout", "0")


class Twins:
    """Both sync each write to disk before they answer. Use it as a context manager."""

    def __init__(self, binary: Path | None = None) -> None:
        self._binary = binary
        self._ports: dict[EmbeddedServer, int] = {}
        self.master = self._made()
        self._replica: EmbeddedServer | None = None

    def __enter__(self) -> Self:
        try:
            self.master.start()
            self._follow()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def level(self) -> bool:
        """Has the replica all that was acknowledged until this call, and could it be killed and started again? Asks for
        some seconds at most. Raises RedisError."""
        replica = self._replica
        assert replica is not None
        end = time.monotonic() + LEVEL_MS / 1000
        with _asking(replica) as there, _asking(self.master) as here:
            while not _follows(there.info()):
                if time.monotonic() > end:
                    return False
                time.sleep(LOOK_S)
            return bool(here.wait(1, LEVEL_MS) >= 1)

    def pause(self) -> None:
        """The master takes no more writes."""
        with _asking(self.master) as here:
            here.execute_command("CLIENT", "PAUSE", PAUSE_MS, "WRITE")

    def resume(self) -> None:
        """It takes writes again."""
        with _asking(self.master) as here:
            here.execute_command("CLIENT", "UNPAUSE")

    def part(self) -> None:
        """The replica hears no more."""
        assert self._replica is not None
        with _asking(self._replica) as there:
            there.execute_command("REPLICAOF", "NO", "ONE")

    def take_over(self) -> None:
        """The master dies, and the replica, which has parted, is the master. `follow` brings another replica."""
        assert self._replica is not None
        old, self.master, self._replica = self.master, self._replica, None
        old.kill()
        old.stop()
        self.master.extra = self._extra(self.master)  # started again it follows nobody

    def follow(self) -> None:
        """A new replica, from nothing. Returns when it answers; `level` says when it has all."""
        self._follow()

    def _follow(self) -> None:
        self._replica = self._made("--replicaof", LOCAL, str(self._ports[self.master]))
        self._replica.start()

    def _made(self, *more: str) -> EmbeddedServer:
        server = EmbeddedServer(appendfsync="always", binary=self._binary)
        with socket.socket() as free:
            free.bind((LOCAL, 0))
            self._ports[server] = free.getsockname()[1]
        server.extra = (*self._extra(server), *more)
        return server

    def _extra(self, server: EmbeddedServer) -> tuple[str, ...]:
        return ("--port", str(self._ports[server]), *QUICK)

    def _end(self) -> None:
        for server in (self._replica, self.master):
            if server is not None:
                with suppress(AssertionError):
                    server.kill()  # one that writes its first file refuses to end
                server.stop()


def _asking(server: EmbeddedServer) -> Any:
    untyped: Any = redis.Redis  # its keyword arguments have no types
    return untyped.from_url(server.url, socket_timeout=READY_S)


def _follows(said: dict[str, Any]) -> bool:
    """Is it linked, and is its file whole? Until its first rewrite is done, after a sync, what it has is on no disk."""
    writing = said.get("aof_rewrite_in_progress") or said.get("aof_rewrite_scheduled") or said.get("loading")
    return said.get("master_link_status") == "up" and not writing
