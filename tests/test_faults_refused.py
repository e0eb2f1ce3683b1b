"""Redis answers, but not what we asked for: it is a replica now, a script keeps it busy, rights are missing, its disk
is full, it stands still. Nodes that end meanwhile wait with their outcome: nothing fails for it, or runs twice."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from everstep.embedded import EmbeddedServer
from faults import Fleet
from servers import StartServer, plain_client, wait_for

GRAPHS = ("chain", "achain")
LEASE_MS = 1500
TIMES = 4
ROOM = 16  # bytes that the append-only file may still grow by
Refusing = Callable[[Any], Any]


@contextmanager
def replica(admin: Any) -> Iterator[None]:
    """Somebody made it a replica of nobody: READONLY."""
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    yield
    admin.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def cut_off_replica(admin: Any) -> Iterator[None]:
    """The same, and it says nothing without its primary: MASTERDOWN."""
    admin.config_set("replica-serve-stale-data", "no")
    with replica(admin):
        yield


@contextmanager
def without_rights(admin: Any) -> Iterator[None]:
    """NOPERM."""
    admin.execute_command("ACL", "SETUSER", "default", "-evalsha")
    yield
    admin.execute_command("ACL", "SETUSER", "default", "+evalsha")


@contextmanager
def busy(admin: Any) -> Iterator[None]:
    """A script of somebody else's does not end: BUSY."""
    admin.config_set("busy-reply-threshold", 50)

    def run() -> None:
        path = admin.connection_pool.connection_kwargs["path"]
        with plain_client(f"unix://{path}", 60) as other, suppress(redis.ResponseError):
            other.eval("while true do end", 0)

    running = threading.Thread(target=run)
    running.start()
    yield
    admin.script_kill()
    running.join(10)


@contextmanager
def still(admin: Any) -> Iterator[None]:
    """It stands still for longer than a lease, and takes no connection: not a word from it."""
    pid = admin.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    yield
    time.sleep(LEASE_MS / 1000 + 0.5)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("refusing", "codes"),
    [
        (replica, ("READONLY",)),
        (cut_off_replica, ("READONLY", "MASTERDOWN")),
        (without_rights, ("NOPERM",)),
        (busy, ()),
        (still, ()),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_redis_refuses_for_now_is_waited_out(
    own_server: StartServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    refusing: Refusing,
    codes: tuple[str, ...],
) -> None:
    with Fleet(own_server().url, tmp_path) as fleet:
        threads = [fleet.submit(graph, gated="b") for graph in GRAPHS]
        with fleet.heir(*GRAPHS, lease_ms=LEASE_MS):
            for thread in threads:
                fleet.began(thread, "b")
            with refusing(fleet.redis):
                fleet.open_gate()
                if codes:
                    wait_for(lambda: refused(fleet.redis, codes) >= TIMES, 10, f"{codes} to be said")
                elif refusing is busy:
                    wait_for(lambda: "trying again" in caplog.text, 10, "the worker to be refused")
            fleet.settled(*threads)
        for thread in threads:
            assert fleet.executions(thread) == {"a": 1, "b": 1, "c": 1}
            assert fleet.kinds(thread) == {"run_started": 1, "checkpoint": 5}
        assert "everstep's own error" not in caplog.text


def refused(admin: Any, codes: Sequence[str]) -> int:
    """How often the server has said so."""
    said = admin.info("errorstats")
    return sum(int(said.get(f"errorstat_{code}", {}).get("count", 0)) for code in codes)


@contextmanager
def full_disk(server: EmbeddedServer) -> Iterator[None]:
    """Its append-only file can't grow any more, as on a full disk, but for some bytes: a write is cut in the middle."""
    (tail,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (tail.stat().st_size + ROOM, before[1]))
    yield
    if server.running:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_commits_wait_until_there_is_room(
    own_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_server(appendfsync="everysec", folder=tmp_path / "data")
    with Fleet(server.url, tmp_path) as fleet:
        threads = [fleet.submit(graph, gated="b") for graph in GRAPHS]
        with fleet.heir(*GRAPHS):
            for thread in threads:
                fleet.began(thread, "b")
            with full_disk(server):
                fleet.open_gate()
                wait_for(
                    lambda: "MISCONF" in caplog.text or "Errors writing to the AOF" in caplog.text, 10, "a refusal"
                )
            fleet.settled(*threads)
        assert all(fleet.executions(thread) == {"a": 1, "b": 1, "c": 1} for thread in threads)
        assert not any(fleet.kinds(thread)["task_failed"] for thread in threads)


def test_a_server_that_ends_over_its_full_disk_has_all_that_it_acknowledged(
    own_server: StartServer, tmp_path: Path
) -> None:
    """Under `always` Redis ends when it can't write. What it said yes to is there when it is back, and no half step."""
    server = own_server(appendfsync="always", folder=tmp_path / "data")
    with Fleet(server.url, tmp_path) as fleet:
        threads = [fleet.submit(graph, gated="b") for graph in GRAPHS]
        with fleet.heir(*GRAPHS):
            for thread in threads:
                fleet.began(thread, "b")
            acknowledged = {thread: [x.id for x in fleet.log.pages(thread)] for thread in threads}
            with full_disk(server):
                fleet.open_gate()
                wait_for(lambda: not server.running, 10, "Redis to end")
            server.start()
            fleet.redis.connection_pool.disconnect()
            fleet.moves.scripts.client.connection_pool.disconnect()
            for thread, entries in acknowledged.items():
                assert [x.id for x in fleet.log.pages(thread)][: len(entries)] == entries
            fleet.settled(*threads)
        assert all(fleet.executions(thread) == {"a": 1, "b": 1, "c": 1} for thread in threads)


def test_a_server_that_reloads_its_data_under_workers_has_it_all(own_server: StartServer, tmp_path: Path) -> None:
    server = own_server(extra=("--enable-debug-command", "yes"))
    with Fleet(server.url, tmp_path) as fleet:
        threads = [fleet.submit(graph, naps={"b": 0.05}) for graph in GRAPHS for _ in range(10)]
        with fleet.heir(*GRAPHS, concurrency=4):
            for command, lines in (("RELOAD", 10), ("LOADAOF", 40), ("RELOAD", 70)):
                wait_for(lambda lines=lines: fleet.line_count() > lines, 20, "work under way")  # type: ignore[misc]
                assert fleet.redis.execute_command("DEBUG", command)
            fleet.settled(*threads)
        assert set(fleet.executions().values()) == {1}


def test_workers_whose_clocks_are_off_and_jump_fence_nobody_and_hurry_nothing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    with Fleet(server.url, tmp_path) as fleet:
        threads = [fleet.submit(graph, naps={"b": 2.0}) for graph in GRAPHS for _ in range(2)]
        for skews_s in ((3600, -3600), (-86400, 0)):
            fleet.worker(*GRAPHS, lease_ms=1200, concurrency=2, skews_s=skews_s)
        fleet.settled(*threads)
        assert set(fleet.executions().values()) == {1}
        assert not any(fleet.kinds(thread)["task_lost"] for thread in threads)
