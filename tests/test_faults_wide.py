"""Wide steps under fire: a task that kills whoever runs it, and ten thousand tasks with a death in the middle."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from everstep.embedded import EmbeddedServer
from everstep_scheduler.moves.contract import MOVE_MAX
from everstep_workers.slots import OFFER_MAX
from faults import KEYS, LONG_MS, Fleet, assert_at_rest, left_over, our_indexes
from servers import plain_client, wait_for

KILLER = 77
MANY = 10_000
SLOTS = 16


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


def test_a_killer_among_200_tasks_is_one_dead_letter_and_is_revived_when_mended(fleet: Fleet, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    thread = fleet.submit("wide", width=200, killer=KILLER, mended=str(mended))
    fleet.pool("wide", processes=2, concurrency=10)
    fleet.rests(thread, status="failed", timeout_s=60)

    entries = list(fleet.log.pages(thread))
    failed = [entry for entry in entries if entry.kind == "task_failed"]
    lost = Counter(entry.text("task") for entry in entries if entry.kind == "task_lost")
    assert [json.loads(entry.text("error"))["type"] for entry in failed] == ["Poison"]
    culprit = failed[0].text("task")
    assert culprit.endswith(f"_{KILLER % 128}")
    assert {task: times for task, times in lost.items() if times > 1 and task != culprit} == {}
    assert len([x for x in entries if x.kind == "task_done"]) == 199
    assert fleet.redis.zcard(KEYS.rq_failed("wide")) == 1
    assert {key for key in left_over(fleet.redis) if ":queue:" in key or ":wip:" in key} == set()
    before = fleet.executions(thread)
    assert before[f"work/{KILLER}"] == lost[culprit] == 4, "once among others, three times alone"

    mended.touch()
    assert fleet.go_on("wide", thread) == "started"
    fleet.settled(thread)
    assert fleet.state("wide", thread)["sum"] == sum(range(200))
    after = fleet.executions(thread)
    assert after - before == {f"work/{KILLER}": 1, "last": 1}, "only the killer is run again"


@contextmanager
def longest_queue(fleet: Fleet) -> Generator[list[int]]:
    """Watch how long the queue gets, as often as Redis says so."""
    seen, ended = [0], threading.Event()

    def look() -> None:
        with plain_client(fleet.url) as client:
            while not ended.wait(0.005):
                seen[0] = max(seen[0], int(client.llen(KEYS.rq_queue("wide"))))

    thread = threading.Thread(target=look, name="queue-watch")
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_no_script_moves_more_than_250_tasks_whatever_befalls_a_wide_step(fleet: Fleet) -> None:
    with monitored(fleet) as calls:
        thread = fleet.submit("wide", width=1500, gated="work/1400")
        with fleet.heir("wide", concurrency=OFFER_MAX):
            fleet.began(thread, "work/700")
            assert fleet.moves.cancel(thread) == "cancelled"
            assert fleet.go_on("wide", thread) == "started"
            fleet.began(thread, "work/1400")
            lose_indexes(fleet)
            fleet.open_gate()
            fleet.settled(thread)
    assert fleet.state("wide", thread)["sum"] == sum(range(1500))
    moved = [len({command[2] for command in call if is_record(command)}) for call in calls]
    assert max(moved) <= MOVE_MAX, sorted(moved)[-5:]
    assert max(moved) > MOVE_MAX // 2, "the bound was reached"
    assert max(map(len, calls)) < 20 * MOVE_MAX, "commands of one script"


def is_record(command: list[str]) -> bool:
    """A task gets a new place: `HSET open:<thread> <task> <record>`."""
    return command[0].upper() == "HSET" and command[1].startswith(KEYS.open(""))


@contextmanager
def monitored(fleet: Fleet) -> Generator[list[list[list[str]]]]:
    """The commands of each script that ran meanwhile, as MONITOR tells them."""
    calls: list[list[list[str]]] = [[]]
    with plain_client(fleet.url) as client, client.monitor() as monitor:

        def listen() -> None:
            said: Any
            for said in monitor.listen():
                command: str = said["command"]
                if said["client_type"] != "lua":
                    calls.append([])
                else:
                    calls[-1].append(command.split(" ", 3))
                if "the-end-of-it" in command:
                    return

        thread = threading.Thread(target=listen, name="monitor")
        thread.start()
        try:
            yield calls
        finally:
            fleet.redis.echo("the-end-of-it")
            thread.join()


def lose_indexes(fleet: Fleet) -> None:
    fleet.redis.delete(*our_indexes(fleet.redis))


def test_ten_thousand_tasks_join_although_a_process_is_killed_among_them(fleet: Fleet) -> None:
    thread = fleet.submit("wide", width=MANY)
    with longest_queue(fleet) as longest, fleet.sweeping():
        victim = fleet.worker("wide", concurrency=SLOTS, lease_ms=1000)
        fleet.worker("wide", concurrency=SLOTS, lease_ms=LONG_MS)
        wait_for(lambda: fleet.line_count() > MANY, 60, "the middle")
        victim.kill()
        fleet.settled(thread, timeout_s=120)
    assert fleet.state("wide", thread)["sum"] == sum(range(MANY))
    assert 0 < longest[0] <= MOVE_MAX + SLOTS, "jobs are made 250 at a time; what a dead process held comes on top"
    executions = fleet.executions(thread)
    assert len(executions) == MANY + 1
    assert executions.total() - len(executions) <= SLOTS, "only what the dead process held may run again"
    assert fleet.kinds(thread)["task_lost"] <= SLOTS
    assert_at_rest(fleet.redis)
