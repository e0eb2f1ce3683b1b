"""The logs are the truth: whatever index is lost, it comes back as it was, and every run goes on."""

from __future__ import annotations

import json
import operator
import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
import redis

from everstep_checkpoint.errors import ServerError
from everstep_checkpoint.keys import WITHIN
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at, verify
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.handling import NodeError
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Send
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.reading.derive import derive
from everstep_scheduler.recovery import recovery
from everstep_scheduler.recovery.rebuild import LockLost, Rebuild
from everstep_scheduler.recovery.recovery import audit, recover
from hand import KEYS, LEASE_MS, THREAD, Hand


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests have no other workers to wait for."""
    monkeypatch.setattr(recovery, "MARGIN_S", 0.0)


class State(TypedDict):
    count: int
    seen: Annotated[list[int], operator.add]


def graph(boom: Callable[[], bool] = lambda: False, width: int = 3) -> StateGraph:
    """begin -> some Sends to `part` and the node `flaky` -> close."""

    def flaky(state: State) -> dict[str, Any]:
        if boom():
            raise ConnectionError("not yet")
        return {}

    made = StateGraph(State)
    made.add_node("begin", lambda state: {"count": state["count"] + 1})
    made.add_node("part", lambda state: {"seen": [state["count"]]}, queue="wide")
    made.add_node("flaky", flaky, retry_policy=RetryPolicy(initial_interval=60, jitter=False, max_attempts=2))
    made.add_node("close", lambda state: {"count": -state["count"]})
    made.add_edge(START, "begin")
    made.add_conditional_edges("begin", lambda s: [Send("part", {"count": i}) for i in range(width)] + ["flaky"])
    made.add_edge(["flaky", "part"], "close")
    made.add_edge("close", END)
    return made


def story(hand: Hand, boom: list[bool]) -> Iterator[str]:
    """A run with everything in it; each yield is a moment at which the world may end."""
    yield "nothing there yet"
    hand.submit("r1")
    yield "start waits in the queue"
    hand.claim()
    yield "start is leased"
    hand.do()
    hand.submit("r2", count=5)
    yield "another input waits behind the run"
    hand.claim()
    hand.do("begin")
    yield "a wide step is open"
    hand.claim(2)
    yield "two of it are leased"
    hand.do("part")
    yield "one of it is done"
    hand.claim(4)
    boom[0] = True
    hand.do("flaky")
    yield "a retry is due later"
    hand.moves.release(hand.owner, [hand.held.pop(0).token], "lost")
    yield "a process died with its task"
    hand.moves.release(hand.owner, [hand.held.pop(0).token], "job")
    yield "a task was handed back"
    wake(hand.client)
    hand.claim(4)
    yield "all of it are leased"
    while any(lease.node == "part" for lease in hand.held):
        hand.do("part")
    yield "only the retried one is left"
    hand.do("flaky")
    yield "the run failed and the next one began"
    boom[0] = False
    hand.drive()
    yield "all is done"


def wake(client: Any) -> None:
    """Make all retries due now."""
    for member in client.zrange(KEYS.wakes, 0, -1):
        client.zadd(KEYS.wakes, {member: 1})


def wipe(client: Any, what: str) -> None:
    kept = (KEYS.log("").encode(), KEYS.log(WITHIN).encode(), KEYS.graphs.encode(), KEYS.inbox.encode())
    for key in client.scan_iter(count=1000):
        rq = key.startswith(b"rq:")
        if (rq and what in ("rq", "both")) or (not rq and what in ("ours", "both") and not key.startswith(kept)):
            client.delete(key)


def picture(client: Any) -> dict[str, Any]:
    """All indexes in words that do not depend on job ids, clocks and the order of making."""
    found: dict[str, Any] = {}
    for thread in sorted(RedisLog(client, KEYS).threads()):
        found[thread] = thread_picture(client, thread)
    found["leases"] = sorted(client.zrange(KEYS.leases, 0, -1))
    found["lease"] = client.hgetall(KEYS.lease)
    found["held"] = sorted(client.hkeys(KEYS.held("hand")))
    found["wakes"] = sorted(client.zrange(KEYS.wakes, 0, -1))
    found["counts"] = {queue: int(n) for queue, n in client.hgetall(KEYS.counts).items() if int(n)}
    for status in ("running", "done", "failed", "interrupted", "cancelled"):
        found[f"threads:{status}"] = sorted(client.zrange(KEYS.threads(status), 0, -1))
    for queue in ("g", "wide", "g.suspect", "wide.suspect"):
        found[f"queue {queue}"] = sorted(job(client, j) for j in client.lrange(KEYS.rq_queue(queue), 0, -1))
        for name, of in (("wip", KEYS.rq_started), ("scheduled", KEYS.rq_scheduled), ("failed", KEYS.rq_failed)):
            members = client.zrange(of(queue), 0, -1)
            found[f"{name} {queue}"] = sorted(job(client, member.split(b":")[0]) for member in members)
    return found


def job(client: Any, job_id: bytes) -> str:
    data = client.hget(KEYS.rq_job(job_id.decode()), "data")
    assert data is not None, f"the job {job_id!r} is listed and not there"
    named = json.loads(data)[3]
    rec = json.loads(client.hget(KEYS.open(named["thread"]), named["task"]) or b"{}")
    assert rec.get("j") == job_id.decode(), "a job that its task does not know"
    return f"{named['thread']} {named['n']} {named['task']}"


def thread_picture(client: Any, thread: str) -> dict[str, Any]:
    fields = {k.decode(): v.decode() for k, v in client.hgetall(KEYS.thread(thread)).items()}
    for name in ("updated", "cleaning", *(("jobs",) if fields.get("width") == "1" else ())):
        fields.pop(name, None)  # `jobs` paces wide steps: a plain commit leaves it as it is
    open_now: dict[str, Any] = {}
    for task, stored in client.hgetall(KEYS.open(thread)).items():
        rec = json.loads(stored)
        seen = {name: rec.get(name) or 0 for name in ("a", "l", "x", "k", "s")} if rec["p"] != "done" else {}
        seen |= {name: rec[name] for name in ("p", "n", "q", "w")}
        seen |= {name: rec[name] for name in ("c", "cl", "ct", "i", "an") if rec.get(name)}
        seen |= {name: rec[name] for name in ("o", "L", "t") if rec["p"] == "lease"}
        seen |= {"t": rec["t"]} if rec["p"] in ("done", "wake", "failed") else {}
        seen |= {"c": rec["c"]} if rec.get("c") else {}
        open_now[task.decode()] = seen
    for element in client.lrange(KEYS.unmade(thread), 0, -1):
        open_now |= {task: {"p": "unmade"} for task in unmade(json.loads(element))}
    at_rest = fields["status"] != "running"
    for task, seen in open_now.items():
        if at_rest and (seen["p"] == "stopped" and not seen["a"]):
            open_now[task] = {"p": "unmade"}
    return {
        "fields": fields,
        "open": open_now,
        "queued": [json.loads(x) for x in client.lrange(KEYS.queued(thread), 0, -1)],
        "runs": client.hgetall(KEYS.runs(thread)),
    }


def forget_places(seen: dict[str, Any], *places: str) -> None:
    """Leave nothing of the tasks in these places but that they are open."""
    found = seen[THREAD]["open"]
    seen[THREAD]["open"] = {task: {} if rec["p"] in places else rec for task, rec in found.items()}


def unmade(element: dict[str, Any]) -> list[str]:
    if "reopen" in element:
        return []
    if "part" in element:
        count = sum(row[3] for row in json.loads(element["tasks"]))
        return [f"s{element['k']}_{i}" for i in range(element["from"], count)]
    return [element["task"]]


def moments() -> list[str]:
    """The names of all moments; the story is told once without a server's help to know them."""
    return [
        "nothing there yet", "start waits in the queue", "start is leased", "another input waits behind the run",
        "a wide step is open", "two of it are leased", "one of it is done", "a retry is due later",
        "a process died with its task", "a task was handed back", "all of it are leased",
        "only the retried one is left", "the run failed and the next one began", "all is done",
    ]  # fmt: skip


@pytest.mark.parametrize("moment", moments())
@pytest.mark.parametrize("what", ["rq", "ours", "both"])
def test_whatever_is_lost_at_any_moment_comes_back_and_the_run_goes_on(client: Any, moment: str, what: str) -> None:
    boom = [False]
    hand = Hand(client, graph(lambda: boom[0]))
    telling = story(hand, boom)
    recover(client, KEYS, lease_ms=LEASE_MS)
    while next(telling) != moment:
        pass
    before = picture(client)
    wipe(client, what)
    hand.recovery()
    assert picture(client) == before
    for _ in telling:
        pass
    assert hand.claim(8) == []
    assert not verify(hand.log, THREAD).problems
    done = [x.text("task") + str(x.n) for x in hand.log.read(THREAD) if x.kind == "task_done"]
    assert len(done) == len(set(done))
    assert state_at(hand.log, THREAD).entry.next == []
    assert sum(x.kind == "run_rested" for x in hand.log.read(THREAD)) == 1


def handled(width: int, broken: list[bool], calls: list[int]) -> StateGraph:
    """`a` fails and is handled, beside siblings."""

    def fails(state: State) -> dict[str, Any]:
        calls.append(1)
        raise ValueError("boom")

    def handler(state: State, error: NodeError) -> dict[str, Any]:
        if broken[0]:
            raise RuntimeError("not yet")
        return {"seen": [len(str(error.error))]}

    made = StateGraph(State).add_node("a", fails, error_handler=handler, timeout=60).add_edge(START, "a")
    made.set_node_defaults(timeout=30)
    for name in "bc"[: width - 1]:
        made.add_node(name, lambda state: {"seen": [0]}).add_edge(START, name)
    return made


def handled_story(hand: Hand, broken: list[bool]) -> Iterator[str]:
    hand.submit("r1")
    hand.claim()
    hand.do()
    hand.claim(8)
    hand.do("a")
    yield "the handler waits in the queue"
    hand.claim(8)
    yield "the handler is leased"
    hand.moves.release(hand.owner, [x.token for x in hand.held if x.task == "h_p0"], "lost")
    hand.held = [x for x in hand.held if x.task != "h_p0"]
    yield "its process died"
    hand.claim(8)
    broken[0] = True
    hand.do("__error_handler__a")
    hand.drive()
    yield "the handler failed"
    broken[0] = False
    hand.moves.start(start_of(hand.spec, THREAD, "r2", None, Config(), "continue"))
    yield "a run goes on with it"
    hand.drive()
    yield "all is done"


HANDLED = [
    "the handler waits in the queue", "the handler is leased", "its process died", "the handler failed",
    "a run goes on with it", "all is done",
]  # fmt: skip


@pytest.mark.parametrize("moment", HANDLED)
@pytest.mark.parametrize("what", ["rq", "ours", "both"])
@pytest.mark.parametrize("width", [1, 3])
def test_an_error_handler_comes_back_and_its_node_is_not_run_again(
    client: Any, moment: str, what: str, width: int
) -> None:
    broken, calls = [False], list[int]()
    hand = Hand(client, handled(width, broken, calls))
    telling = handled_story(hand, broken)
    recover(client, KEYS, lease_ms=LEASE_MS)
    while next(telling) != moment:
        pass
    before = picture(client)
    wipe(client, what)
    hand.recovery()
    assert picture(client) == before
    for _ in telling:
        pass
    assert calls == [1]
    assert not verify(hand.log, THREAD).problems
    found = hand.spec.values(state_at(hand.log, THREAD).channels)
    assert found == {"count": 1, "seen": [4, 0, 0][:width]} and state_at(hand.log, THREAD).entry.next == []


def test_the_moments_are_those_of_the_story(client: Any) -> None:
    boom = [False]
    recover(client, KEYS)
    assert list(story(Hand(client, graph(lambda: boom[0])), boom)) == moments()


def test_a_lease_that_nobody_announces_is_given_to_another(client: Any) -> None:
    zombie, hand = Hand(client, graph(), "zombie"), Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    zombie.claim()
    wipe(client, "both")
    hand.recovery()
    assert hand.claim() == ["start"]
    assert zombie.do() == "fenced"
    assert hand.do() == "ok"


def test_an_announcement_for_another_checkpoint_keeps_nothing(client: Any) -> None:
    """A thread was deleted and made again, or its log went back: the numbers are the same, the digest is not."""
    zombie, hand = Hand(client, graph(), "zombie"), Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    zombie.claim()
    client.delete(KEYS.log(THREAD), KEYS.thread(THREAD), KEYS.runs(THREAD), KEYS.open(THREAD))
    hand.submit("r1")
    wipe(client, "both")
    zombie.recovery()
    assert hand.claim() == ["start"]
    assert zombie.do() == "fenced"


def test_the_holder_waits_for_the_announcements_of_live_workers(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "MARGIN_S", 0.5)
    worker, other = Hand(client, graph(), "worker"), Hand(client, graph(), "other")
    recover(client, KEYS)
    worker.submit("r1")
    worker.claim()
    wipe(client, "both")
    rebuilding = threading.Thread(target=other.recovery)
    rebuilding.start()
    while not client.exists(KEYS.recovery):
        time.sleep(0.005)
    worker.recovery()
    rebuilding.join()
    assert other.claim() == []
    assert worker.do() == "ok"


def test_a_new_server_is_ready_at_once(client: Any) -> None:
    hand = Hand(client, graph())
    hand.recovery.lease_ms = 60_000
    began = time.monotonic()
    assert hand.submit("r1") == "started"
    assert time.monotonic() - began < 2


def test_a_rebuild_that_died_is_done_again(client: Any) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    hand.claim()
    before = picture(client)
    wipe(client, "both")
    client.set(KEYS.recovery, "somebody who died", px=150)
    hand.recovery()
    assert picture(client) == before


def test_a_rebuild_that_ended_with_its_connection_is_done_again_at_once(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    wipe(client, "both")
    with monkeypatch.context() as away:

        def cut(*_: Any, **__: Any) -> Any:
            away.setattr(client, "get", cut)  # nor is the lock freed
            raise redis.ConnectionError("cut")

        away.setattr(Rebuild, "run", cut)
        with pytest.raises(ServerError):
            hand.recovery()
    assert client.pttl(KEYS.recovery) > 0
    client.pexpire(KEYS.recovery, 60_000)
    began = time.monotonic()
    hand.recovery()
    assert time.monotonic() - began < 30, "its own lock is in nobody's way"
    assert client.exists(KEYS.alive)


def test_a_rebuilder_that_lost_the_lock_writes_nothing(client: Any) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    told = derive(hand.log, THREAD)
    client.set(KEYS.recovery, "another")
    before = picture(client)
    slow = Rebuild(client, KEYS, "slow", print, 0)
    with pytest.raises(LockLost):
        slow.adopt(told, THREAD, set())
    with pytest.raises(LockLost):
        slow.run()
    assert picture(client) == before


def test_a_corrupt_log_is_left_out_and_the_others_are_rebuilt(client: Any) -> None:
    hand, lines = Hand(client, graph()), list[str]()
    recover(client, KEYS)
    hand.submit("r1")
    hand.submit("r1", "spoilt")
    client.xadd(KEYS.log("spoilt"), {"something": "else"}, id="0-9")
    client.xadd(KEYS.log("newer"), {"v": "2", "kind": "note"}, id="0-1")
    client.set(KEYS.log("no stream"), "x")
    wipe(client, "both")
    report = recover(client, KEYS, said=lines.append, lease_ms=LEASE_MS)
    assert report.threads == 1
    assert sorted(line.split(":")[0] for line in report.skipped) == ["newer", "no stream", "spoilt"]
    assert any("spoilt" in line for line in lines)
    hand.drive()
    assert derive(hand.log, THREAD).status == "done"


def test_jobs_of_others_stay_where_they_are(client: Any) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    client.hset(KEYS.rq_job("foreign"), mapping={"data": '["other.function",null,[],{}]'})
    client.rpush(KEYS.rq_queue("g"), "foreign")
    recover(client, KEYS, lease_ms=LEASE_MS)
    jobs = [x.decode() for x in client.lrange(KEYS.rq_queue("g"), 0, -1)]
    assert "foreign" in jobs and len(jobs) == 2
    assert client.exists(KEYS.rq_job("foreign"))


def test_a_log_without_indexes_is_adopted_where_it_is_wanted(client: Any) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    hand.drive()
    hand.log.fork(THREAD, 3, "twin")
    assert hand.submit("r9", "twin") == "started"
    hand.drive()
    assert derive(hand.log, "twin").status == "done"
    assert client.hget(KEYS.stats, "recovered") == b"1"


def test_a_step_wider_than_a_call_is_rebuilt_in_batches(client: Any) -> None:
    hand = Hand(client, graph(width=700))
    recover(client, KEYS)
    hand.submit("r1")
    hand.claim()
    hand.do()
    hand.claim()
    hand.do("begin")
    hand.claim(150)
    hand.claim(150)
    for _ in range(280):
        hand.do("part")
    before = picture(client)
    wipe(client, "both")
    hand.recovery()
    after = picture(client)
    for each in (before, after):
        forget_places(each, "unmade", "job")
        for name in ("counts", "queue wide", "queue g"):
            del each[name]
        del each[THREAD]["fields"]["jobs"]
    assert after == before
    assert client.llen(KEYS.rq_queue("wide")) + client.llen(KEYS.rq_queue("g")) == 250
    hand.drive()
    assert derive(hand.log, THREAD).status == "done"


def test_a_cancelled_run_can_be_continued_after_a_rebuild(client: Any) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    hand.claim()
    hand.do()
    hand.claim()
    hand.do("begin")
    hand.claim(2)
    hand.do("part")
    hand.moves.cancel(THREAD)
    hand.held.clear()
    before = picture(client)
    wipe(client, "both")
    hand.recovery()
    after = picture(client)
    for each in (before, after):  # the log does not count attempts that cancel took back
        forget_places(each, "stopped", "unmade")
    assert after == before
    start = start_of(hand.spec, THREAD, "r2", None, Config(), "continue")
    assert hand.moves.start(start).status == "started"
    hand.drive()
    assert derive(hand.log, THREAD).runs["r2"][0] == "done"


def test_indexes_of_threads_without_a_log_go(client: Any) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    hand.submit("r1", "gone")
    client.delete(KEYS.log("gone"))
    recover(client, KEYS, lease_ms=LEASE_MS)
    assert not client.keys("*gone*")
    assert client.zrange(KEYS.threads("running"), 0, -1) == [b"t"]


def test_after_a_rebuild_nothing_is_left_of_it(client: Any) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    hand.claim()
    wipe(client, "both")
    hand.recovery()
    assert not client.exists(KEYS.recovery, KEYS.announced)


def test_the_audit_takes_out_what_does_not_belong_in_a_queue(client: Any) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    ours = client.lindex(KEYS.rq_queue("g"), 0)
    hand.claim()
    client.rpush(KEYS.rq_queue("g"), ours or b"", b"never-was")
    assert audit(client, KEYS, ["g", "wide"]) == {"g": 2}
    assert client.llen(KEYS.rq_queue("g")) == 0
    assert audit(client, KEYS, ["g", "wide"]) == {}
    assert client.hget(KEYS.stats, "recovered") == b"1"


def test_the_audit_makes_missing_jobs_anew(client: Any) -> None:
    hand = Hand(client, graph())
    recover(client, KEYS)
    hand.submit("r1")
    client.delete(KEYS.rq_queue("g"))
    audit(client, KEYS, ["g"], lease_ms=LEASE_MS)
    hand.drive()
    assert derive(hand.log, THREAD).status == "done"
