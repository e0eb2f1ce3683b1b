"""Keys that we did not write, or that are broken: they cost the thread they stand for, never another one's work."""

from __future__ import annotations

import json
import operator
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict
from unittest.mock import patch

import pytest
import redis

from everstep.doctor import examine
from everstep.site import Site
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START, Send
from everstep_scheduler.moves import redismoves
from everstep_scheduler.moves.connection import server_run_id
from everstep_scheduler.moves.contract import Answer, Offer
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_scheduler.recovery import recovery
from everstep_scheduler.recovery.recovery import audit, differing, recover
from everstep_workers.work import Posted, Settled, Setup, Work
from hand import KEYS, LEASE_MS, THREAD, Hand
from servers import wait_for

COMMANDS_MAX = 250 * 20
ROWS = {"birth": "b", "n": 1, "digest": "d", "step": 0, "status": "running", "run": "r", "rec": "0-1", "base": -2,
        "graph": "g", "queue": "g", "width": 1, "left": 1, "failed": 0, "jobs": 0, "jid": "j"}  # fmt: skip


STALE = '["everstep.run_node",null,[],{"thread":"x","task":"y"}]'


class State(TypedDict):
    count: int


class Counted(TypedDict):
    count: Annotated[int, operator.add]


def two_steps() -> StateGraph:
    made = StateGraph(State)
    made.add_node("a", lambda state: {"count": state["count"] + 1})
    made.add_node("b", lambda state: {"count": state["count"] * 10})
    made.add_edge(START, "a")
    made.add_edge("a", "b")
    made.add_edge("b", END)
    return made


@pytest.fixture
def hand(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Hand:
    monkeypatch.setattr(recovery, "MARGIN_S", 0.0)
    made = Hand(client, two_steps())
    assert made.submit("first", "another") == "started"
    made.drive()
    return made


def refill(hand: Hand) -> str:
    """Do what is held, with a commit that asks for more work, as a worker's does."""
    (lease,) = hand.held
    attempt = hand.performer.load(lease)
    offer = Offer(hand.owner, (new_id(), new_id()), hand.spec.queues, "process", lease_ms=LEASE_MS)
    answer = hand.moves.commit([(hand.performer.settle(attempt, attempt.call()), offer)])[0]
    hand.held = list(answer.leases)
    return answer.status


def run_is_done(hand: Hand) -> bool:
    return bool(hand.client.hget(KEYS.thread(THREAD), "status") == b"done")


def a_job_that_is_a_list(client: Any) -> None:
    client.lpush(KEYS.rq_job("evil"), "x")
    client.rpush(KEYS.rq_queue("g"), "evil")


def a_job_of_a_thread_that_is_a_list(client: Any) -> None:
    told = json.dumps({"thread": "bad", "task": "p0", "keys": KEYS.stem})
    client.lpush(KEYS.thread("bad"), "x")
    client.hset(KEYS.rq_job("evil"), mapping={"everstep": told, "data": "x"})
    client.rpush(KEYS.rq_queue("g"), "evil")


def a_job_of_a_task_that_is_junk(client: Any) -> None:
    told = json.dumps({"thread": "bad", "task": "p0", "keys": KEYS.stem})
    client.hset(KEYS.thread("bad"), mapping=ROWS)
    client.hset(KEYS.open("bad"), "p0", "{junk")
    client.hset(KEYS.rq_job("evil"), mapping={"everstep": told, "data": "x"})
    client.rpush(KEYS.rq_queue("g"), "evil")


def a_job_of_a_thread_with_bytes_that_are_no_text(client: Any, where: str = "graph", byte: bytes = b"\xff") -> None:
    rec = json.dumps({"p": "job", "a": 0, "n": "a", "q": "g", "w": 0, "j": "evil"}).encode()
    rows: dict[str, Any] = {**ROWS, "asked": 0, "halted": 0}
    if where == "record":
        rec = rec.replace(b'"a",', b'"a' + byte + b'",')
    else:
        rows[where] = byte
    client.hset(KEYS.thread("bad"), mapping=rows)
    client.hset(KEYS.open("bad"), "p0", rec)
    told = json.dumps({"thread": "bad", "n": 1, "task": "p0", "keys": KEYS.stem})
    client.hset(KEYS.rq_job("evil"), mapping={"everstep": told, "data": "x", "origin": "g"})
    client.rpush(KEYS.rq_queue("g"), "evil")


def waiting_processes_that_are_a_text(client: Any) -> None:
    client.set(KEYS.waiting("g"), "x")


def registries_that_are_texts(client: Any) -> None:
    for key in (KEYS.rq_started("g"), KEYS.rq_failed("g"), KEYS.rq_scheduled("g"), KEYS.rq_queues):
        client.delete(key)
        client.set(key, "x")


def counters_that_are_texts(client: Any) -> None:
    for key in (KEYS.stats, KEYS.sweep, KEYS.threads("running"), KEYS.threads("done")):
        client.delete(key)
        client.set(key, "x")


@pytest.mark.parametrize(
    "plant",
    [
        a_job_that_is_a_list,
        a_job_of_a_thread_that_is_a_list,
        a_job_of_a_task_that_is_junk,
        a_job_of_a_thread_with_bytes_that_are_no_text,
        waiting_processes_that_are_a_text,
        registries_that_are_texts,
        counters_that_are_texts,
    ],
)
def test_a_commit_is_whole_whatever_its_refill_meets(hand: Hand, plant: Callable[[Any], None]) -> None:
    hand.submit("r1")
    hand.claim()
    plant(hand.client)
    while hand.held:
        assert refill(hand) == "ok"
        assert int(hand.client.hget(KEYS.thread(THREAD), "n")) == hand.log.head(THREAD).n  # type: ignore[union-attr]
    assert run_is_done(hand)


def test_an_input_that_can_not_be_queued_is_not_written(hand: Hand) -> None:
    hand.client.set(KEYS.rq_queue("g"), "x")
    with pytest.raises(Exception, match="WRONGTYPE"):
        hand.submit("r1")
    assert hand.log.head(THREAD) is None


def junk_in_a_record(client: Any) -> None:
    client.hset(KEYS.thread("bad"), mapping=ROWS)
    client.hset(KEYS.open("bad"), mapping={"p0": "{junk", "p1": "7", "p2": '{"p":"wake"}'})


def a_list_for_a_thread(client: Any) -> None:
    client.lpush(KEYS.thread("bad"), "x")


def a_text_for_its_tasks(client: Any) -> None:
    client.hset(KEYS.thread("bad"), mapping=ROWS)
    client.set(KEYS.open("bad"), "x")


def half_a_thread(client: Any) -> None:
    client.hset(KEYS.thread("bad"), mapping={"n": 1, "status": "running"})
    client.hset(KEYS.open("bad"), "p0", '{"p":"wake","a":1,"n":"a","q":"g","w":0}')


def numbers_without_end(client: Any) -> None:
    client.hset(KEYS.thread("bad"), mapping={**ROWS, "width": "inf", "left": "nan"})
    for task in ("p0", "p1", "p2"):
        rec = {"p": "wake", "a": 1, "n": "a", "q": "g", "w": 0}
        client.hset(KEYS.open("bad"), task, json.dumps(rec))


def records_without_end(client: Any) -> None:
    client.hset(KEYS.thread("bad"), mapping=ROWS)
    client.hset(KEYS.open("bad"), "p0", '{"p":"wake","a":1e999,"n":"a","q":"g","w":0}')
    client.hset(KEYS.open("bad"), "p1", '{"p":"parked","a":1,"n":"a","q":"g","w":1e999}')
    client.hset(KEYS.open("bad"), "p2", '{"p":"lease","a":1,"n":"a","q":"g","w":0,"t":"token-p2"}')


@pytest.mark.parametrize(
    "plant",
    [
        junk_in_a_record,
        a_list_for_a_thread,
        a_text_for_its_tasks,
        half_a_thread,
        numbers_without_end,
        records_without_end,
    ],
)
def test_a_broken_thread_keeps_no_other_from_its_claims_and_sweeps(hand: Hand, plant: Callable[[Any], None]) -> None:
    client = hand.client
    plant(client)
    for task in ("p0", "p1", "p2"):
        client.zadd(KEYS.wakes, {f"1 {task} bad": 1})
        client.zadd(KEYS.leases, {f"token-{task}": 1})
        client.hset(KEYS.lease, f"token-{task}", f"{task} bad")
        client.rpush(KEYS.parked_for("g", "a"), f"1 {task} bad")
    client.hset(KEYS.parked, "g:a", 3)
    client.hset(KEYS.lease, "nonsense", "nospace")
    client.zadd(KEYS.leases, {"nonsense": 1})
    client.rpush(KEYS.discards, "{junk", json.dumps({"key": KEYS.log("another"), "cursor": "0"}))
    client.rpush(KEYS.cleanings, "bad", "nobody")
    hand.submit("r1")
    assert hand.claim() == ["start"], "the job of another thread is to be had"
    time.sleep(LEASE_MS / 1000)
    hand.moves.sweep("server", LEASE_MS)
    client.hset(KEYS.sweep, "hold", 0)
    assert hand.moves.sweep("server", LEASE_MS)["lost"] == 1, "the lease of another thread has run out"
    hand.held.clear()
    hand.drive()
    assert run_is_done(hand)
    for _ in range(3):
        hand.moves.sweep("server", LEASE_MS)
    assert not any(client.exists(key) for key in (KEYS.wakes, KEYS.leases, KEYS.discards, KEYS.cleanings))
    assert client.exists(KEYS.log("another")), "a discard can name nothing but a discard"


def test_a_dead_process_s_leases_are_taken_back_beside_one_that_can_not_be(hand: Hand) -> None:
    hand.submit("r1")
    hand.submit("r2", "bad")
    assert hand.claim(2) == ["start", "start"]
    record = json.loads(hand.client.hget(KEYS.open("bad"), "start"))
    hand.client.hset(KEYS.open("bad"), "start", json.dumps({**record, "l": "many"}))
    assert hand.moves.release(hand.owner, None, "lost") == 1
    hand.held.clear()
    hand.drive()
    assert run_is_done(hand)


def test_junk_among_the_queued_inputs_does_not_end_the_next_one(hand: Hand) -> None:
    hand.submit("r1")
    hand.client.rpush(KEYS.queued(THREAD), "junk", '{"run": "r0"}', "[]")
    assert hand.submit("r2") == "queued"
    hand.drive()
    assert hand.client.hget(KEYS.runs(THREAD), "r2").startswith(b"done ")


def test_an_audit_looks_at_all_queues_beside_one_of_another_type(hand: Hand) -> None:
    hand.client.rpush(KEYS.rq_queue("wrong"), "stale")
    hand.client.hset(
        KEYS.rq_job("stale"), "data", f'["everstep.run_node",null,[],{json.dumps({"thread": "x", "task": "y"})}]'
    )
    hand.client.set(KEYS.rq_queue("text"), "x")
    assert audit(hand.client, KEYS, ["text", "wrong"]) == {"wrong": 1}


@pytest.mark.parametrize("plant", ["field", "key"])
def test_counts_that_are_junk_are_counted_anew(hand: Hand, plant: str) -> None:
    client = hand.client
    hand.submit("r1")
    client.delete(KEYS.counts)
    _ = client.hset(KEYS.counts, "g", "many") if plant == "field" else client.lpush(KEYS.counts, "x")
    assert audit(client, KEYS, ["g"]) == {"g": 0}
    assert client.hgetall(KEYS.counts) == {b"g": b"1"}
    hand.drive()
    assert run_is_done(hand)


# bounds


@contextmanager
def bounded(hand: Hand) -> Iterator[None]:
    """No script that is sent meanwhile calls more commands than 250 moves need: a count, for time is the machine's."""
    client, send, most = hand.client, hand.scripts.client.evalsha, list[int]()

    def counted(*args: Any) -> Any:
        before = commands(client)
        answer = send(*args)
        most.append(commands(client) - before)
        return answer

    with patch.object(hand.scripts.client, "evalsha", counted):
        yield
    assert max(most) < COMMANDS_MAX


def commands(client: Any) -> int:
    return sum(int(each["calls"]) for each in client.info("commandstats").values())


def test_huge_data_of_foreign_jobs_is_not_read(hand: Hand) -> None:
    client = hand.client
    for i in range(20):
        client.hset(KEYS.rq_job(f"evil{i}"), "data", "[" + "1," * 200_000 + "1]")
        client.rpush(KEYS.rq_queue("g"), f"evil{i}")
    with bounded(hand):
        answer = hand.moves.claim(hand.offer(1))
    assert "over 8192 bytes" in answer.refused[0]
    assert client.zcard(KEYS.rq_failed("g")) == 20, "operators see them"


def test_a_queued_run_behind_very_many_is_cancelled_in_bounded_calls(hand: Hand) -> None:
    client, count, odd = hand.client, 30_000, 'r"/\\'
    hand.submit("r1")
    element = {"entry": "0-9", "graph": "g", "queue": "g", "task": "start", "node": "__start__"}
    rows = [json.dumps({"run": f"q{i}", **element}) for i in range(count)]
    for i in range(0, count, 1000):
        client.rpush(KEYS.queued(THREAD), *rows[i : i + 1000])
    client.lset(KEYS.queued(THREAD), 7, json.dumps({"run": odd, **element}))
    client.hset(KEYS.runs(THREAD), mapping={"q3": "queued 0-9 x", odd: "queued 0-9 x", "gone": "done 0-9 x"})
    with bounded(hand):
        assert hand.moves.cancel(THREAD, "q3") == "cancelled"
        assert hand.moves.cancel(THREAD, odd) == "cancelled"
        assert hand.moves.cancel(THREAD, "gone") == "rested"
        assert hand.moves.cancel(THREAD, "nobody") == "unknown"
    assert client.llen(KEYS.queued(THREAD)) == count - 2


def test_a_continue_finds_the_one_failed_task_of_a_very_wide_step_in_bounded_calls(hand: Hand) -> None:
    client, width = hand.client, 40_000
    done = json.dumps({"p": "done", "t": "t" * 22, "a": 1, "n": "a", "q": "g", "w": 0})
    failed = json.dumps({"p": "failed", "a": 1, "n": "a", "q": "g", "w": 0})
    for i in range(0, width, 1000):
        client.hset(KEYS.open(THREAD), mapping={f"s1_{k}": done for k in range(i, i + 1000)})
    client.hset(KEYS.open(THREAD), "s9_9", failed)
    client.hset(KEYS.thread(THREAD), mapping={**ROWS, "status": "failed", "width": width + 1, "left": 0, "failed": 1})
    client.xadd(KEYS.log(THREAD), {"v": "1", "kind": "checkpoint"}, id="1-0")
    with bounded(hand):
        assert hand.moves.start(hand.continued(THREAD)).status == "started"
        calls = 0
        while hand.moves.sweep("server", LEASE_MS).get("more"):
            calls += 1
            assert calls < width / 1000
    assert hand.claim() == ["s9_9"]


def test_elements_of_no_use_among_the_unmade_are_passed_in_bounded_calls(hand: Hand) -> None:
    client = hand.client
    hand.submit("r1")
    junk = ["junk", '{"part":"1-1","k":"1","from":0,"tasks":"[]"}', "{}", '{"part":"1-1","tasks":"junk","from":0}']
    for _ in range(50):
        client.rpush(KEYS.unmade(THREAD), *junk * 250)
    client.hset(KEYS.thread(THREAD), mapping={"width": 2, "left": 2})
    with bounded(hand):
        assert hand.claim() == ["start"]


# a rebuild


def entries(client: Any, *told: tuple[str, dict[str, Any]]) -> None:
    """A log of strange entries on the thread `bad`."""
    begun = {"kind": "run_started", "run": "x", "birth": "b", "graph": "g", "at": "1", "step": "-2"}
    for entry_id, fields in (("0-1", begun), *told):
        client.xadd(KEYS.log("bad"), {"v": "1", **fields}, id=entry_id)


def a_head(client: Any, following: str, *before: tuple[str, dict[str, Any]]) -> None:
    entries(client, *before, ("1-0", {"kind": "checkpoint", "digest": "d", "step": "-1", "next": following}))


def lease_without_fields(client: Any) -> None:
    client.hset(KEYS.thread("bad"), mapping=ROWS)
    client.hset(KEYS.open("bad"), "p0", '{"p":"lease"}')


def thread_of_letters(client: Any) -> None:
    client.hset(KEYS.thread("bad"), mapping={**ROWS, "n": "x"})
    client.hset(KEYS.open("bad"), "p0", '{"p":"lease"}')


def part_with_count(count: int | str) -> Callable[[Any], None]:
    def plant(client: Any) -> None:
        a_head(
            client, '[["0-2",5]]', ("0-2", {"kind": "part", "run": "x", "tasks": json.dumps([["a", "g", 0, count]])})
        )

    return plant


def a_part_named_nine_times(client: Any) -> None:
    a_head(client, json.dumps([["0-2", 5]] * 9), ("0-2", {"kind": "part", "tasks": '[["a","g",0,5]]'}))


def an_endless_error(client: Any) -> None:
    entries(client, ("0-2", {"kind": "task_failed", "task": "start", "error": "[" * 100_000}))


STRANGE: dict[str, Callable[[Any], object]] = {
    "next is nested without end": lambda c: a_head(c, "[" * 100_000),
    "next names things": lambda c: a_head(c, '[["p0",{"x":1},["y"],0]]'),
    "a timeout is a list": lambda c: a_head(c, '[["p0","a","g",[]]]'),
    "a timeout is infinite": lambda c: a_head(c, '[["p0","a","g",1e999]]'),
    "next is numbers": lambda c: a_head(c, "[1,2]"),
    "a part is named over and over": a_part_named_nine_times,
    "a part's count lies": part_with_count(10**12),
    "a part's count is a text": part_with_count("many"),
    "an error is nested without end": an_endless_error,
    "a log is a list": lambda c: c.lpush(KEYS.log("bad"), "x"),
    "a log has no text for a name": lambda c: c.xadd(KEYS.log("").encode() + b"\xff", {"v": "1", "kind": "note"}),
    "a record is junk": junk_in_a_record,
    "a lease says nothing": lease_without_fields,
    "a thread's number is a letter": thread_of_letters,
    "a thread is a list": a_list_for_a_thread,
    "tasks are a text": a_text_for_its_tasks,
    "threads are a list": lambda c: (c.delete(KEYS.threads("done")), c.lpush(KEYS.threads("done"), "x")),
    "announced is a list": lambda c: c.lpush(KEYS.announced, "x"),
    "a job is a list": lambda c: c.lpush(KEYS.rq_job("evil"), "x"),
    "a queue is a text": lambda c: c.set(KEYS.rq_queue("evil"), "x"),
    "a queue has no text for a name": lambda c: c.rpush(KEYS.rq_queue("").encode() + b"\xff", "x"),
    "a registry is a text": lambda c: c.set(KEYS.rq_started("evil"), "x"),
    "the lock has no end": lambda c: c.set(KEYS.recovery, "nobody"),
}  # fmt: skip


@pytest.mark.parametrize("lost", ["alive", "rq_alive"])
@pytest.mark.parametrize("strange", STRANGE)
def test_a_rebuild_comes_to_its_end_whatever_stands_in_redis(hand: Hand, strange: str, lost: str) -> None:
    hand.submit("r1")
    hand.claim()
    hand.do()
    hand.claim()
    STRANGE[strange](hand.client)
    hand.client.delete(getattr(KEYS, lost))
    assert hand.do("a") == "ok", "the lease lives on, and the rebuild is done"
    hand.drive()
    assert run_is_done(hand)
    assert hand.client.exists(KEYS.alive, KEYS.rq_alive) == 2


def test_a_recover_on_demand_makes_a_broken_thread_anew(hand: Hand) -> None:
    hand.submit("r1")
    hand.client.hset(KEYS.open(THREAD), "start", "{junk")
    hand.client.delete(KEYS.runs(THREAD))
    hand.client.lpush(KEYS.runs(THREAD), "x")
    recover(hand.client, KEYS)
    hand.drive()
    assert run_is_done(hand)


def a_manifest_that_is_junk(client: Any) -> None:
    client.sadd(KEYS.graphs, b"\xff", "junk", "gone")
    client.set(KEYS.graph("junk"), "[" * 1000)


ODD: dict[str, Callable[[Any], object]] = {
    **STRANGE,
    "a manifest is junk": a_manifest_that_is_junk,
    "parked is junk": lambda c: c.hset(KEYS.parked, b"\xff", "many"),
    "a lease is nobody's": lambda c: (c.zadd(KEYS.leases, {"x": 1}), c.hset(KEYS.lease, "x", "y z")),
    "a failed job has no text for a name": lambda c: c.zadd(KEYS.rq_failed("g"), {b"\xff": 1}),
    "a job's name for us is junk": lambda c: (c.hset(KEYS.rq_job("j"), "everstep", "[" * 9000),
                                              c.rpush(KEYS.rq_queue("other"), "j"),
                                              c.sadd(KEYS.rq_queues, KEYS.rq_queue("other"))),
    "a worker is a text": lambda c: (c.sadd(KEYS.rq_workers, "w"), c.set("w", "x")),
    "the inbox is a text": lambda c: c.set(KEYS.inbox, "x"),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_doctor_comes_to_its_end_whatever_stands_in_redis(hand: Hand, redis_url: str, odd: str) -> None:
    hand.submit("r1")
    hand.claim()
    ODD[odd](hand.client)
    site = Site(redis_url)
    with site.open():
        assert examine(site)
    site.redis.close()


# --- a queue whose key is of another type for a while: what can't be queued is in a place all the same


def _sweep(hand: Hand) -> None:
    hand.moves.sweep(server_run_id(hand.client), LEASE_MS)


def _runs_out(hand: Hand) -> None:
    def lost() -> bool:
        _sweep(hand)
        return not hand.client.zcard(KEYS.leases)

    wait_for(lost)


def _is_an_orphan(hand: Hand) -> None:
    def gone() -> bool:
        _, at_ms = hand.moves.renew(Offer(hand.owner, lease_ms=LEASE_MS), 0)
        hand.moves.renew(Offer(hand.owner, lease_ms=LEASE_MS), at_ms)
        return not hand.client.zcard(KEYS.leases)

    wait_for(gone)  # once it is a millisecond old


GIVEN_UP: dict[str, Callable[[Hand], object]] = {
    "runs out": _runs_out,
    "is an orphan": _is_an_orphan,
    "is given back": lambda hand: hand.moves.release(hand.owner, None, "job"),
    "its process died": lambda hand: hand.moves.release(hand.owner, None, "lost"),
}


@pytest.mark.parametrize("way", GIVEN_UP)
def test_a_task_that_is_given_up_while_its_queue_is_of_another_type_comes_back(hand: Hand, way: str) -> None:
    hand.submit("r1")
    assert hand.claim() == ["start"]
    hand.held.clear()
    for queue in ("g", "g.suspect"):
        hand.client.set(KEYS.rq_queue(queue), "x")
    GIVEN_UP[way](hand)
    place = json.loads(hand.client.hget(KEYS.open(THREAD), "start"))["p"]
    assert (place, hand.client.zcard(KEYS.wakes)) == ("wake", 1)
    _due(hand)
    _sweep(hand)
    assert hand.client.zcard(KEYS.wakes) == 1, "not yet mended: it waits for another second"
    hand.client.delete(KEYS.rq_queue("g"), KEYS.rq_queue("g.suspect"))
    _due(hand)
    _sweep(hand)
    hand.drive()
    assert run_is_done(hand)


def _due(hand: Hand) -> None:
    for member in hand.client.zrange(KEYS.wakes, 0, -1):
        hand.client.zadd(KEYS.wakes, {member: 1})


def test_a_wake_whose_queue_is_of_another_type_waits_and_keeps_nobody_from_work(hand: Hand) -> None:
    hand.submit("r1")
    rec = json.dumps({"p": "wake", "a": 0, "n": "b", "q": "apart", "w": 0, "j": "j"})
    hand.client.hset(KEYS.thread("w"), mapping={**ROWS, "asked": 0, "halted": 0})
    hand.client.hset(KEYS.open("w"), "p0", rec)
    hand.client.zadd(KEYS.wakes, {"1 p0 w": 1})
    hand.client.set(KEYS.rq_queue("apart"), "x")
    assert hand.claim() == ["start"]
    assert hand.client.zcard(KEYS.wakes) == 1
    hand.client.delete(KEYS.rq_queue("apart"))
    _due(hand)
    _sweep(hand)
    assert (hand.client.zcard(KEYS.wakes), hand.client.llen(KEYS.rq_queue("apart"))) == (0, 1)


def test_what_can_not_be_parked_keeps_its_lease_until_it_runs_out(hand: Hand) -> None:
    hand.submit("r1")
    hand.claim()
    (lease,) = hand.held
    hand.client.set(KEYS.parked_for("g", "__start__"), "x")
    assert hand.moves.release(hand.owner, None, "parked", "no such node") == 0
    assert hand.client.zscore(KEYS.leases, lease.token) is not None


def test_a_commit_is_whole_where_a_queue_that_it_refills_from_is_of_another_type(hand: Hand) -> None:
    hand.submit("r1")
    hand.claim()
    hand.client.set(KEYS.rq_queue("apart"), "x")
    (lease,) = hand.held
    attempt = hand.performer.load(lease)
    offer = Offer(hand.owner, (new_id(), new_id()), ("apart", "g"), "process", lease_ms=LEASE_MS)
    answer = hand.moves.commit([(hand.performer.settle(attempt, attempt.call()), offer)])[0]
    assert (answer.status, [each.node for each in answer.leases]) == ("ok", ["a"])


# --- the count of jobs


def test_a_wide_step_that_is_given_up_while_workers_claim_leaves_the_count_right(client: redis.Redis) -> None:
    made = StateGraph(Counted)
    made.add_node("a", lambda state: {"count": 1}).add_node("w", lambda state: {"count": 1})
    made.add_edge(START, "a").add_edge("w", END)
    sends = [Send("w", {"count": 0}) for _ in range(400)]
    made.add_conditional_edges("a", lambda state: sends if state["count"] < 5 else END, ["w", END])
    hand = Hand(client, made)
    hand.submit("r1")
    for _ in range(2):
        hand.claim()
        hand.do()
    hand.claim(60)
    start = start_of(hand.spec, THREAD, "r2", {"count": 10}, Config(), "input")
    assert hand.moves.start(replace(start, mode="interrupt")).status == "started"
    hand.held.clear()
    for _ in range(6):  # jobs of the step come up before the sweep has come to it
        hand.claim(5)
        while hand.held:
            hand.do()
    while client.llen(KEYS.discards):
        _sweep(hand)
    hand.drive()
    assert run_is_done(hand)
    assert (int(client.hget(KEYS.counts, "g") or 0), client.llen(KEYS.rq_queue("g"))) == (0, 0)
    assert differing(client, KEYS, ["g"]) == []


# --- bytes that are no text


@pytest.mark.parametrize("byte", [b"\xff", b"a\x80", b"\xc3", b"\xe0\x80\x80", b"\xf4\x90\x80\x80"])
@pytest.mark.parametrize("where", ["graph", "run", "digest", "conf", "record"])
def test_a_task_with_bytes_that_are_no_text_is_refused_alone(hand: Hand, where: str, byte: bytes) -> None:
    for i in range(2):
        hand.submit(f"r{i}", f"t{i}")
        if not i:
            a_job_of_a_thread_with_bytes_that_are_no_text(hand.client, where, byte)
    answer = hand.moves.claim(hand.offer(5))
    assert [lease.thread for lease in answer.leases] == ["t0", "t1"]
    assert len(answer.refused) == 1
    assert "bytes that are no text" in answer.refused[0]
    assert b"no text" in hand.client.hget(KEYS.rq_job("evil"), "exc_info")
    assert hand.client.llen(KEYS.rq_queue("g")) == 0


@pytest.mark.parametrize("name", ["\u00e9", "\u20ac", "\U0001f600", "\u07ff\u0800\uffff"])
def test_names_of_all_lengths_are_text(hand: Hand, name: str) -> None:
    hand.submit("r1", name)
    assert [lease.thread for lease in hand.moves.claim(hand.offer(1)).leases] == [name]


def test_of_an_answer_with_such_bytes_the_other_leases_hold_good(hand: Hand) -> None:
    """A hash that is spoilt while its task is leased: nothing looked at it, and a script tells what stands there."""
    for i in range(2):
        hand.submit(f"r{i}", f"t{i}")
    rows = [json.dumps([*lease]).encode() for lease in hand.moves.claim(hand.offer(2)).leases]
    said = b'{"status":"ok","leases":[' + rows[0] + b"," + rows[1].replace(b'"g"', b'"\xff"') + b"]}"
    found = redismoves._answered(said)  # pyright: ignore[reportPrivateUsage]
    assert [row[1] for row in found["leases"]] == ["t0"]
    assert len(found["refused"]) == 1 and "start of thread t1" in found["refused"][0]


@pytest.mark.source
def test_an_answer_that_can_not_be_read_costs_no_slot() -> None:
    work = Work(Setup("redis://127.0.0.1:1", "w", ("g",), KEYS, concurrency=4), {})
    offer, asked = work.offer(tuple(work.slots.take(3))), list[Offer | None]()
    done: Any = SimpleNamespace(own=False, held=SimpleNamespace(attempt=None))

    def answers(done: Any, commit: Any, answer: None, offer: Offer | None) -> Answer:
        asked.append(offer)
        return Answer("already")

    nothing: Any = None
    settled = [Settled(done, nothing)] * 2
    claims = patch.object(work.moves, "claim", lambda offer: answers(None, None, None, offer))
    unread = patch.object(work.moves, "answers_to", side_effect=ValueError)
    with unread, claims, patch.object(work, "_answered", answers):
        assert work.came(Posted(settled, offer, 0, work.own_line()), b"junk") == []
    assert asked == [None, None, offer], "each is asked for alone, and tokens come last"
    assert len(work.slots) == 4
    work.close()


# --- namespaces with the same prefix for RQ


def test_a_job_of_another_namespace_is_left_to_its_own_workers(hand: Hand, client: redis.Redis) -> None:
    theirs = Keys("other", rq="rq")
    for key in (theirs.alive, theirs.rq_alive):
        client.set(key, "1")
    other = RedisMoves(Scripts(client, theirs))
    for i in range(3):
        other.start(start_of(hand.spec, f"u{i}", f"s{i}", {"count": 1}, Config(), "input"))
    hand.submit("r1")
    assert client.llen(KEYS.rq_queue("g")) == 4
    for _ in range(2):
        answer = hand.moves.claim(hand.offer(5))
        assert answer.refused == ()
        hand.held += answer.leases
    assert [lease.thread for lease in hand.held] == [THREAD]
    assert (client.llen(KEYS.rq_queue("g")), client.zcard(KEYS.rq_failed("g"))) == (3, 0)
    hand.drive()
    assert run_is_done(hand)
    assert sorted(lease.thread for lease in other.claim(hand.offer(5)).leases) == ["u0", "u1", "u2"]
