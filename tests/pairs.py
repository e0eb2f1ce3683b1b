"""A primary and its replica, for tests of what replicas have."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any, NamedTuple

from everstep.embedded import EmbeddedServer
from servers import StartServer, plain_client, wait_for


class Pair(NamedTuple):
    """A primary and its replica."""

    primary: EmbeddedServer
    replica: EmbeddedServer

    def stalls(self) -> None:
        os.kill(self.replica.pid, signal.SIGSTOP)

    def goes_on(self) -> None:
        os.kill(self.replica.pid, signal.SIGCONT)

    @property
    def waited_for(self) -> bool:
        """Does somebody wait for the replica?"""
        with plain_client(self.primary.url) as admin:
            rows: Any = admin.client_list()
            return any(each["cmd"] == "wait" and "b" in each["flags"] for each in rows)

    def keeps_up(self) -> None:
        """Wait until the replica answers. After a sync its first answer takes a second."""
        with plain_client(self.primary.url) as admin:
            wait_for(lambda: admin.set("k", 1) and admin.wait(1, 2000) == 1, 20, "the replica to be up")
            admin.flushall()
            wait_for(lambda: admin.wait(1, 2000) == 1, 20, "the replica to be empty")


def paired(start: StartServer) -> Pair:
    """Both from `start`; the replica has all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    quick = ("--repl-diskless-sync-delay", "0", "--shutdown-timeout", "0")
    primary = start(extra=("--port", port, "--bind", "127.0.0.1", *quick))
    # without a file: a Redis 7.0 that writes its first one, as after each sync, refuses to end
    made = Pair(primary, start(extra=("--replicaof", "127.0.0.1", port, "--appendonly", "no")))
    made.keeps_up()
    return made
