"""Many at once: what is counted stays bounded, however many jobs, paused threads, leases or waiting runs there are.

`everstep bench --only W7,many` does the same at full size, and shows times.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from everstep.bench import backlog
from everstep.bench.place import Place
from everstep.embedded import EmbeddedServer
from faults import LONG_MS, Fleet
from proxy import FaultProxy
from servers import wait_for

RUNS = 10_000
CLAIMS = 20
THREADS_MAX = 40  # of a worker process with ten slots, each with a connection of its own
TRIES_S = 2.5  # a second and thread: from 20 ms on the pauses double up to one second, with jitter


@pytest.fixture
def place(redis_url: str) -> Iterator[Place]:
    with Place(redis_url) as made:
        yield made


def test_a_thread_has_at_most_250_jobs_in_queues_and_all_of_them_are_real(place: Place) -> None:
    few, many = backlog.queued(place, 12, CLAIMS)
    committed = backlog.COMMIT_ROUNDS * CLAIMS
    assert few.queued == backlog.FEW * backlog.WIDTH
    assert many.queued == (backlog.FEW + 12) * backlog.WIDTH - committed
    assert place.redis.exists(place.keys.rq_job(place.redis.lindex(place.keys.rq_queue("flood.work"), -1).decode()))


def test_paused_threads_hold_no_lease_no_job_and_no_slot(place: Place) -> None:
    found = backlog.paused(place, 100)
    assert (found.held, found.others_done) == (0, 3)


def test_expired_leases_are_swept_forty_a_call(place: Place) -> None:
    found = backlog.expired(place, 1000)
    assert (found.most_of_a_call, found.calls) == (40, 25)


# --- Redis is away


@contextmanager
def counted(port: int) -> Generator[list[float]]:
    """Who knocks at a port where nobody answers: when, each time. Each is hung up on at once."""
    knocks: list[float] = []
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:

        def answer() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                knocks.append(time.monotonic())
                client.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield knocks
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def away(fleet: Fleet, proxy: FaultProxy, runs: int, away_s: float) -> None:
    """So many runs wait; Redis goes away under two workers that work on them, and comes back."""
    threads = [fleet.submit("chain") for _ in range(runs)]
    workers = [fleet.worker("chain", via=proxy.url, concurrency=10, lease_ms=LONG_MS) for _ in range(2)]
    wait_for(lambda: fleet.line_count() > 100, 180, "work under way")  # first in, first out: behind all the starts
    port = int(proxy.url.rsplit(":", 1)[1].partition("/")[0])
    proxy.refuse()
    with counted(port) as knocks:
        time.sleep(away_s)
        before = len(knocks)
    assert 0 < before <= len(workers) * THREADS_MAX * TRIES_S * (away_s + 3), "no reconnect storm while it is away"
    proxy.accept()
    known = proxy.connections
    fleet.rests(*threads, timeout_s=600)
    assert proxy.connections - known <= 2 * len(workers) * THREADS_MAX, "and none when it is back"
    assert all("Traceback" not in worker.said for worker in workers)
    assert not any(fleet.kinds(thread)["task_lost"] for thread in threads[:: runs // 100])
    print(f"{before} tries in {away_s:g} s, {proxy.connections - known} connections when it was back")


def test_redis_away_under_many_waiting_runs_brings_no_reconnect_storm(fleet: Fleet, proxy: FaultProxy) -> None:
    away(fleet, proxy, 200, 3)


@pytest.mark.soak
def test_redis_away_for_30_s_under_10_000_waiting_runs_brings_no_reconnect_storm(
    fleet: Fleet, proxy: FaultProxy
) -> None:
    away(fleet, proxy, RUNS, 30)


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made
