"""Moves of wide steps on a real server: every script has its bound, and what it leaves behind is finished by others."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.moves.contract import MOVE_MAX, Commit, Offer, Start
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_scheduler.recovery.recovery import recover
from test_moves import THREAD, Stage, on

KEYS = Keys(rq="rq")
PART = 100


@pytest.fixture
def stage(client: redis.Redis) -> Stage:
    return on(client)


def open_wide(stage: Stage, width: int, run: str = "r1", stop: Any = "", tokens: int = 0) -> None:
    """A run whose first step has `width` Sends; their jobs are in the queue, unless the run rests there."""
    stage.start(run, sum=run)
    lease = stage.take("start")
    tasks = json.dumps([["w", "g", 0, PART]])
    piece = e.summed(e.fact("part", run, task="start", token=lease.token, tasks=tasks, sends=e.pack_sends([])))
    refs = stage.moves.part(lease, [piece] * (width // PART))
    rows = tuple((ref, PART) for ref in refs)
    said: e.Fields = {
        "source": "loop",
        "step": 0,
        "graph": "g@1",
        "run": run,
        "token": lease.token,
        "next": json.dumps(rows),
    }
    made = e.checkpoint(lease.digest, lease.n + 1, [], **said)
    head = (lease.n + 1, str(made["digest"]), 0)
    commit = Commit(lease, "next", (made,), head, rows, dict.fromkeys(refs, tasks), stop)
    assert stage.moves.commit([(commit, pops(stage, tokens) if tokens else Offer(stage.owner))])[0].status == "ok"


def pops(stage: Stage, count: int) -> Offer:
    """The offer of a worker with so many free slots."""
    return Offer(stage.owner, tuple(new_id() for _ in range(count)), ("g",), lease_ms=60_000)


def pop(stage: Stage, count: int = 1) -> list[str]:
    """Claim as a worker does, from the queue."""
    answer = stage.moves.claim(pops(stage, count))
    stage.held.extend(answer.leases)
    return [lease.task for lease in answer.leases]


def sweep(stage: Stage) -> None:
    moves = stage.moves
    assert isinstance(moves, RedisMoves)
    moves.sweep("server", 60_000)


@pytest.mark.parametrize("width", [600, 3000, 12_000])
def test_a_step_given_up_is_cleaned_in_bounded_calls(stage: Stage, client: redis.Redis, width: int) -> None:
    open_wide(stage, width)
    while pop(stage, 64):
        for lease in list(stage.held):
            stage.held.remove(lease)
            stage.fail(lease)
    assert client.hlen(KEYS.open(THREAD)) == width
    assert stage.start("r2", sum="s2").status == "started"
    for _ in range(3 * width // 50 + 5):
        sweep(stage)
    assert client.keys(f"{KEYS.stem}discard*") == []
    assert client.zcard(KEYS.rq_failed("g")) == 0
    assert len(client.keys(KEYS.rq_job("*"))) == 1


def test_a_cancelled_wide_run_whose_canceller_died_is_cleaned_by_sweeps(stage: Stage, client: redis.Redis) -> None:
    open_wide(stage, 1000)
    for _ in range(10):
        for lease in [stage.held.pop() for _ in pop(stage, 64)]:
            stage.done(lease, 0)
    moves = stage.moves
    assert isinstance(moves, RedisMoves)
    first = moves.scripts.run("cancel", {"thread": THREAD, "run": "r1", "actor": "", "salt": "abcd"})
    assert (first["status"], first["more"]) == ("cancelled", 1)
    for _ in range(30):
        sweep(stage)
    assert client.llen(KEYS.cleanings) == 0
    assert client.llen(KEYS.rq_queue("g")) == 0
    assert stage.start("r2", "continue").status == "started"


def test_cancelling_again_never_meets_the_run_that_came_after(stage: Stage, client: redis.Redis) -> None:
    open_wide(stage, 1000)
    while client.llen(KEYS.rq_queue("g")) and len(stage.held) < 400:
        pop(stage, 64)
    stage.start("q1", sum="q1", tokens=0)
    assert stage.moves.cancel(THREAD, "r1") == "cancelled"
    assert stage.moves.cancel(THREAD, "r1") == "rested"
    assert client.hget(KEYS.thread(THREAD), "run") == b"q1"
    assert client.hget(KEYS.thread(THREAD), "status") == b"running"


def test_a_failed_task_requeued_beside_a_running_sibling_keeps_the_run_going(stage: Stage, client: redis.Redis) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    failed = stage.take("p0")
    stage.fail(failed)
    client.rpush(KEYS.rq_queue("g"), failed.job)
    assert pop(stage) == ["p0"]
    assert stage.done(stage.take("p0")) == ("ok", [])
    assert client.hget(KEYS.thread(THREAD), "status") == b"running"
    assert stage.done(stage.take("p1")) == ("ok", ["join"])


def test_wakes_of_a_step_given_up_leave_those_of_the_next_alone(stage: Stage, client: redis.Redis) -> None:
    for run in ("r1", "r2"):
        open_wide(stage, 300, run)
        for lease in [stage.held.pop() for _ in pop(stage, 64)]:
            stage.fail(lease, delay_ms=60_000)
        if run == "r1":
            stage.moves.cancel(THREAD, run)
    for _ in range(20):
        sweep(stage)
    waiting = [x for x in client.hvals(KEYS.open(THREAD)) if json.loads(x)["p"] == "wake"]
    assert len(waiting) == client.zcard(KEYS.wakes) == 64


@pytest.mark.parametrize("stop", ["interrupted", "failed"])
def test_a_wide_step_at_which_its_run_rests_has_no_jobs_until_it_goes_on(
    stage: Stage, client: redis.Redis, stop: str
) -> None:
    open_wide(stage, 600, stop=stop, tokens=4)
    assert client.hget(KEYS.thread(THREAD), "status") == stop.encode()
    assert (client.llen(KEYS.rq_queue("g")), client.hlen(KEYS.open(THREAD))) == (0, 0)
    assert client.keys(KEYS.rq_job("*")) == [] and pop(stage, 4) == []
    fields: e.Fields = {"run": "r2", "kind_of_run": "continue", "graph": "g", "queue": "g"}
    assert stage.moves.start(Start(THREAD, "r2", "continue", "g", "g", "", fields)).status == "started"
    assert client.llen(KEYS.rq_queue("g")) == MOVE_MAX
    assert [task.partition("_")[2] for task in pop(stage, 4)] == ["0", "1", "2", "3"]


def test_stale_ids_are_looked_through_in_bounded_calls(stage: Stage, client: redis.Redis) -> None:
    client.rpush(KEYS.rq_queue("g"), *[f"ghost-{i}" for i in range(4 * MOVE_MAX)])
    assert pop(stage) == []
    assert client.llen(KEYS.rq_queue("g")) == 3 * MOVE_MAX


def test_a_rebuild_leaves_the_jobs_of_another_namespace_alone(stage: Stage, client: redis.Redis) -> None:
    other = Keys("other", rq="rq")
    client.set(other.alive, "1")
    theirs = Stage(RedisMoves(Scripts(client, other)), RedisLog(client, other))
    fields: e.Fields = {
        "run": "r",
        "kind_of_run": "input",
        "task": "start",
        "node": "__start__",
        "graph": "g",
        "queue": "g",
    }
    theirs.moves.start(Start(THREAD, "r", "input", "g", "g", "s", fields))
    recover(client, KEYS, lease_ms=300)
    assert client.llen(KEYS.rq_queue("g")) == 1
    offer = Offer("w", (new_id(),), ("g",), lease_ms=60_000)
    assert [x.task for x in theirs.moves.claim(offer).leases] == ["start"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_of_one_send_gets_its_job_too(stage: Stage, count: int) -> None:
    stage.start()
    lease = stage.take("start")
    tasks = '[["w","g",0,1]]'
    piece = e.summed(e.fact("part", "r1", task="start", token=lease.token, tasks=tasks, sends=e.pack_sends([])))
    refs = stage.moves.part(lease, [piece] * count)
    rows = tuple((ref, 1) for ref in refs)
    said: e.Fields = {"source": "loop", "step": 0, "graph": "g@1", "run": "r1", "token": lease.token}
    made = e.checkpoint(lease.digest, 1, [], **said, next=json.dumps(rows))
    commit = Commit(lease, "next", (made,), (1, str(made["digest"]), 0), rows, dict.fromkeys(refs, tasks))
    assert stage.moves.commit([(commit, Offer(stage.owner))])[0].status == "ok"
    assert len(pop(stage, 4)) == count
