"""Liveness: a pool says whether its processes make progress, over HTTP and as a file, and what keeps it from work."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from everstep.cli import main
from everstep.embedded import EmbeddedServer
from everstep_checkpoint.errors import InputError
from everstep_workers.health import AWAY_S, CLIENTS_MAX, START_S, Health, judge, listening
from everstep_workers.health import _Server as Server
from everstep_workers.pulse import (
    AWAY,
    DRAINING,
    FRONT,
    KEEPER,
    MAIN,
    PID,
    REBUILDS,
    SINCE,
    STATE,
    WORKING,
    Board,
    Pulse,
)
from everstep_workers.worker import Worker
from faults import Fleet, Process
from graphs_for_faults import chain
from proxy import FaultProxy
from servers import wait_for


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


class Told:
    """What a pool tells of its health."""

    def __init__(self, fleet: Fleet, *graphs: str, **told: Any) -> None:
        self.file = fleet.folder / "health"
        self.pool: Process = fleet.pool(*graphs, health="127.0.0.1:0", health_file=str(self.file), **told)
        found: Any = wait_for(lambda: re.search(r"health: (http://\S+)/livez", self.pool.said), 20, "its address")
        self.url: str = found[1]

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def written(self) -> bool | None:
        """What the file says of being ready; None if there is none."""
        try:
            return bool(json.loads(self.file.read_text())["ready"])
        except FileNotFoundError:
            return None

    def says(self, live: bool, ready: bool, why: str = "") -> None:
        """Wait until it says so, everywhere."""

        def look() -> bool:
            (livez, health), (readyz, _) = self.ask("/livez"), self.ask("/readyz")
            same = (livez == 200, readyz == 200, health["live"], health["ready"]) == (live, ready, live, ready)
            return same and self.written() == (ready if live else None) and why in " ".join(health["why"])

        wait_for(look, 30, f"live {live}, ready {ready}, {why!r}")


def test_a_pool_is_ready_when_it_claims_and_live_while_it_drains_and_then_all_is_gone(fleet: Fleet) -> None:
    told = Told(fleet, "chain", grace_s=20.0)
    told.says(live=True, ready=True)
    written = json.loads(told.file.read_text())
    assert (written["live"], written["ready"], written["why"]) == (True, True, [])
    assert len(written["workers"]) == 2, "a spare is none"
    assert all(each["state"] == "working" for each in written["workers"])
    thread = fleet.submit("chain", gated="b")
    fleet.began(thread, "b")
    told.pool.signal(signal.SIGTERM)
    told.says(live=True, ready=False, why="drains")
    fleet.open_gate()
    assert told.pool.popen.wait(30) == 0, told.pool.said
    assert not told.file.exists()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(told.url + "/livez", timeout=5)
    assert list(fleet.folder.glob(".health*")) == []


def test_a_process_that_hangs_is_told_by_name_until_it_goes_on(fleet: Fleet) -> None:
    told = Told(fleet, "chain", health_within_s=2.0)
    told.says(live=True, ready=True)
    pid = told.ask("/livez")[1]["workers"][0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    told.says(live=False, ready=False, why=f"process {pid}: its claim loop made no progress")
    os.kill(pid, signal.SIGCONT)
    told.says(live=True, ready=True)


def test_while_redis_is_away_a_pool_is_live_and_not_ready(fleet: Fleet, proxy: FaultProxy) -> None:
    told = Told(fleet, "chain", via=proxy.url, processes=1, health_within_s=3.0, health_away_s=1.0)
    told.says(live=True, ready=True)
    proxy.refuse()
    told.says(live=True, ready=False, why="Redis is away for")
    proxy.accept()
    told.says(live=True, ready=True)


def test_the_process_that_tells_is_replaced_and_a_killed_one_of_the_pool_is_seen(fleet: Fleet) -> None:
    told = Told(fleet, "chain", processes=1, spares=0)
    told.says(live=True, ready=True)
    worker = told.ask("/livez")[1]["workers"][0]["pid"]
    children = Path(f"/proc/{told.pool.pid}/task/{told.pool.pid}/children").read_text().split()
    (teller,) = {int(pid) for pid in children} - {worker}
    os.kill(teller, signal.SIGKILL)
    wait_for(lambda: "another one begins" in told.pool.said, 10)
    told.says(live=True, ready=True)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: worker not in [x["pid"] for x in told.ask("/livez")[1]["workers"]], 10, "it to be forgotten")
    told.says(live=True, ready=True)


def test_what_else_is_asked_gets_404_and_a_client_that_says_nothing_delays_no_other(fleet: Fleet) -> None:
    told = Told(fleet, "chain", processes=1)
    told.says(live=True, ready=True)
    host, _, port = told.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))):
        assert told.ask("/livez")[0] == 200
        head = urllib.request.Request(told.url + "/livez", method="HEAD")
        with urllib.request.urlopen(head, timeout=10) as answer:
            assert (answer.status, answer.read()) == (200, b"")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(told.url + "/", timeout=10)


def test_clients_that_send_a_byte_now_and_then_hold_no_place_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte began their time anew: sixteen of them kept all probes out."""
    monkeypatch.setattr("everstep_workers.health.CLIENT_S", 0.3)
    server = Server(listening("0"))
    server.asked = Health
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    address = server.server_address[:2]
    slow = [socket.create_connection(cast("tuple[str, int]", address)) for _ in range(CLIENTS_MAX)]

    def answered() -> bool:
        for each in slow:
            with suppress(OSError):
                each.send(b"G")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/livez", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_for(answered, 20, "an answer")
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
        for each in slow:
            each.close()


# --- judged ---


def row_of(board: Board, **cells: float) -> None:
    """A process that works, all fresh but for what is given: seconds ago, or a state or count."""
    now = time.monotonic()
    row = board.rows[board.take(1, 2)]
    for part in (SINCE, MAIN, FRONT, KEEPER):
        row[part] = now
    row[PID], row[STATE] = 7, WORKING
    names = {"since": SINCE, "main": MAIN, "front": FRONT, "keeper": KEEPER, "away": AWAY}
    for name, value in cells.items():
        if name in names:
            row[names[name]] = now - value if value >= 0 else 0.0
        else:
            row[{"state": STATE, "rebuilds": REBUILDS}[name]] = value


NEVER = -1


@pytest.mark.parametrize(
    ("cells", "live", "ready", "why"),
    [
        ({}, True, True, ""),
        ({"front": 31}, False, False, "process 7: its claim loop made no progress for 31 s"),
        ({"main": 31}, False, False, "main thread"),
        ({"keeper": 31}, False, False, "lease thread"),
        ({"front": 31, "state": DRAINING}, True, False, "process 7 drains"),
        ({"front": NEVER, "rebuilds": 1}, True, False, "rebuilds indexes"),
        ({"away": AWAY_S - 1}, True, True, ""),
        ({"away": AWAY_S + 1}, True, False, "Redis is away"),
        ({"state": 0, "main": NEVER, "front": NEVER, "keeper": NEVER}, True, False, "is starting"),
        (
            {"state": 0, "main": NEVER, "front": NEVER, "keeper": NEVER, "since": START_S + 1},
            False,
            False,
            "still starting after 301 s",
        ),
        ({"state": 0, "front": NEVER, "keeper": NEVER, "since": START_S + 1}, True, False, "is starting"),
    ],
)
def test_what_a_process_shows_is_judged(cells: dict[str, float], live: bool, ready: bool, why: str) -> None:
    board = Board(2)
    Pulse(board.rows[0]).beat(MAIN)
    row_of(board, **cells)
    health = judge(board, 1, 30.0)
    assert (health.live, health.ready) == (live, ready)
    assert why in " ".join(health.why)
    assert bool(health.why) == (not ready)


def test_a_pool_that_lacks_a_process_is_not_ready_and_one_whose_parent_hangs_is_not_live() -> None:
    board = Board(2)
    Pulse(board.rows[0]).beat(MAIN)
    row_of(board)
    assert judge(board, 2).why == ["1 of 2 worker processes are there"] and judge(board, 2).live
    board.rows[0][MAIN] -= 61
    assert not judge(board, 1).live


def test_a_claim_loop_that_hangs_alone_is_told(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(1)
    Pulse(board.rows[0]).beat(MAIN)
    worker = Worker(redis_url, [chain], grace_s=1.0, pulse=Pulse(board.rows[board.take(1, 2)]))
    hangs = threading.Event()
    monkeypatch.setattr(worker._front, "_turn", hangs.wait)  # pyright: ignore[reportPrivateUsage]
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_for(lambda: judge(board, 1, 3.0).live and judge(board, 1, 3.0).ready, 10, "it to be well at first")
        wait_for(lambda: not judge(board, 1, 3.0).live, 20, "the hang to be seen")
        assert "its claim loop made no progress" in judge(board, 1, 3.0).why[0]
        assert len(judge(board, 1, 3.0).why) == 1, "its other threads are well"
    finally:
        hangs.set()
        worker.drain()
        thread.join(20)


# --- asked for ---


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", "127.0.0.1:99999", "203.0.113.1:80"])
def test_an_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(InputError, match="health can't be told at"):
        listening(address)


def test_a_port_alone_is_loopback_s() -> None:
    with listening("0") as found:
        assert found.getsockname()[0] == "127.0.0.1"


def test_a_worker_whose_health_can_t_be_told_or_whose_queue_is_for_suspects_does_not_begin(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--url", redis_url, "worker", "graphs_for_faults:chain"]
    assert main([*asked, "--queues", "chain,chain.suspect"]) == 2
    assert "'chain.suspect' can't be a queue's name" in capsys.readouterr().err
    assert main([*asked, "--health-file", str(tmp_path / "none" / "health")]) == 2
    assert "can't be written" in capsys.readouterr().err
    with listening("0") as taken:
        assert main([*asked, "--health", str(taken.getsockname()[1])]) == 2
    assert "health can't be told at" in capsys.readouterr().err
