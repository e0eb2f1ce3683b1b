"""One worker process on a real server: it runs chains, keeps its leases, ends in order, and outlives bad jobs."""

from __future__ import annotations

import asyncio
import json
import logging
import operator
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
import redis

from everstep_checkpoint.errors import GraphError
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Send
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import connect
from everstep_scheduler.moves.contract import Lease, Offer
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts, sha
from everstep_scheduler.recovery.recovery import Recovery
from everstep_scheduler.steps.perform import Attempt, Performer
from everstep_workers.hands import Hand
from everstep_workers.slots import Done, Held
from everstep_workers.work import Posted, Settled
from everstep_workers.worker import Worker
from hand import lease_of
from proxy import FaultProxy
from servers import StartServer, wait_for

LEASE_MS = 3000
KEYS = Keys()


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    name: str


def graph(name: str = "chain", **nodes: Callable[..., Any]) -> GraphSpec:
    """A chain of nodes, in the order given."""
    built = StateGraph(State)
    built.add_sequence(list(nodes.items()))
    built.add_edge(START, next(iter(nodes)))
    built.add_edge(list(nodes)[-1], END)
    return built.spec(name)


def says(word: str) -> Callable[[State], State]:
    return lambda state: {"seen": [word]}


@dataclass
class Client:
    """What a producer does, and what a test looks at."""

    url: str
    redis: Any

    def __post_init__(self) -> None:
        own = connect(self.url)
        self.moves = RedisMoves(Scripts(own, KEYS, Recovery(own, KEYS), self.url))
        self.log = RedisLog(own, KEYS)

    def submit(self, spec: GraphSpec, **values: Any) -> str:
        """Start a run on a new thread; its id."""
        thread = new_id()
        self.moves.start(start_of(spec, thread, new_id(), values, Config(), "input"))
        return thread

    def status(self, thread: str) -> str:
        return str(self.redis.hget(KEYS.thread(thread), "status"), "ascii")

    def seen(self, spec: GraphSpec, thread: str) -> list[str]:
        head = self.log.head(thread)
        assert head is not None
        found: list[str] = spec.values(state_at(self.log, thread, head.n).channels).get("seen", [])
        return found

    def kinds(self, thread: str) -> list[str]:
        return [entry.kind for entry in self.log.read(thread)]

    def rests(self, thread: str, status: str = "done", timeout_s: float = 10.0) -> None:
        wait_for(lambda: self.status(thread) == status, timeout_s, f"thread to be {status}")


@pytest.fixture
def at(redis_url: str, client: redis.Redis) -> Client:
    return Client(redis_url, client)


@contextmanager
def running(url: str, *graphs: GraphSpec, **told: Any) -> Iterator[Worker]:
    """A worker in a thread of this process."""
    worker = Worker(url, graphs, **{"lease_ms": LEASE_MS, "grace_s": 2.0, **told})
    thread = threading.Thread(target=worker.run, name="worker")
    thread.start()
    try:
        yield worker
    finally:
        worker.drain()
        thread.join(20)
        assert not thread.is_alive(), "the worker did not end"


def sleeps(state: State) -> State:
    time.sleep(0.05)
    return {}


class Gate:
    """A node that tells when it runs, and ends when it is let."""

    def __init__(self, word: str = "gate") -> None:
        self.word = word
        self.runs = 0
        self.open = threading.Event()

    def __call__(self, state: State) -> State:
        self.runs += 1
        assert self.open.wait(20)
        return {"seen": [self.word]}


# --- runs


def test_a_chain_of_sync_nodes_runs_to_its_end(at: Client) -> None:
    spec = graph(one=says("one"), two=says("two"), three=says("three"))
    with running(at.url, spec):
        thread = at.submit(spec)
        at.rests(thread)
    assert at.seen(spec, thread) == ["one", "two", "three"]
    assert at.kinds(thread) == ["run_started", *["checkpoint"] * 5]


def test_sync_and_async_nodes_follow_each_other(at: Client) -> None:
    async def waits(state: State) -> State:
        await asyncio.sleep(0.01)
        return {"seen": ["async"]}

    spec = graph(one=says("one"), two=waits, three=says("three"), four=waits)
    with running(at.url, spec):
        threads = [at.submit(spec) for _ in range(10)]
        for thread in threads:
            at.rests(thread)
    assert at.seen(spec, threads[0]) == ["one", "async", "three", "async"]


def test_sends_run_side_by_side_and_join(at: Client) -> None:
    built = StateGraph(State)
    built.add_node("one", lambda state: {"seen": [state["name"]]})
    built.add_node("last", says("last"))
    built.add_conditional_edges(START, lambda state: [Send("one", {"name": str(i)}) for i in range(30)], ["one"])
    built.add_edge("one", "last")
    built.add_edge("last", END)
    spec = built.spec("wide")
    with running(at.url, spec, concurrency=4):
        thread = at.submit(spec)
        at.rests(thread)
    assert at.seen(spec, thread) == [*map(str, range(30)), "last"]


def test_a_hundred_async_nodes_wait_together(at: Client) -> None:
    most = 0
    now = 0

    async def waits(state: State) -> State:
        nonlocal most, now
        now += 1
        most = max(most, now)
        while most < 100:
            await asyncio.sleep(0.01)
        now -= 1
        return {}

    spec = graph(one=waits)
    with running(at.url, spec, concurrency=100):
        threads = [at.submit(spec) for _ in range(100)]
        for thread in threads:
            at.rests(thread)


def test_two_workers_share_the_threads_and_each_task_is_done_once(at: Client) -> None:
    spec = graph(one=says("one"), two=says("two"))
    with running(at.url, spec, concurrency=2), running(at.url, spec, concurrency=2):
        threads = [at.submit(spec) for _ in range(60)]
        for thread in threads:
            at.rests(thread)
    assert all(at.seen(spec, thread) == ["one", "two"] for thread in threads)
    assert at.redis.hget(KEYS.stats, "fenced") is None


def test_a_failed_node_fails_the_run_and_the_worker_goes_on(at: Client) -> None:
    def breaks(state: State) -> State:
        raise ValueError("no")

    bad, good = graph("bad", one=breaks), graph("good", one=says("one"))
    with running(at.url, bad, good, concurrency=1):
        failed, done = at.submit(bad), at.submit(good)
        at.rests(failed, "failed")
        at.rests(done)


def test_a_retry_is_a_wake_and_no_sleeping_slot(at: Client) -> None:
    tries: list[float] = []

    def breaks_once(state: State) -> State:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise ConnectionError("not yet")
        return {"seen": ["late"]}

    built = StateGraph(State)
    built.add_node("one", breaks_once, retry_policy=RetryPolicy(initial_interval=0.5, jitter=False))
    built.add_edge(START, "one")
    built.add_edge("one", END)
    spec, other = built.spec("retried"), graph("other", one=says("one"))
    with running(at.url, spec, other, concurrency=1):
        late = at.submit(spec)
        wait_for(lambda: at.redis.zcard(KEYS.wakes) == 1)
        at.rests(at.submit(other))
        at.rests(late)
    assert tries[1] - tries[0] >= 0.5


# --- leases and timeouts


def test_a_node_longer_than_its_lease_is_run_once(at: Client) -> None:
    gate = Gate()
    spec = graph(one=gate)
    with running(at.url, spec, lease_ms=600):
        thread = at.submit(spec)
        wait_for(lambda: gate.runs)
        time.sleep(1.5)
        gate.open.set()
        at.rests(thread)
    assert gate.runs == 1
    assert "task_lost" not in at.kinds(thread)


def test_a_sync_node_over_its_timeout_is_fenced_and_its_slot_is_busy_until_it_ends(at: Client) -> None:
    gate = Gate()
    built = StateGraph(State)
    built.add_node("one", gate, timeout=0.3)
    built.add_edge(START, "one")
    built.add_edge("one", END)
    spec = built.spec("late")
    with running(at.url, spec, concurrency=2) as worker:
        thread = at.submit(spec)
        at.rests(thread, "failed")
        assert not gate.open.is_set()
        wait_for(lambda: len(worker.work.slots) == 1)
        gate.open.set()
        wait_for(lambda: len(worker.work.slots) == 2, what="the slot to be free again")
    assert at.status(thread) == "failed"
    (failed,) = [x for x in at.log.read(thread) if x.kind == "task_failed"]
    assert "NodeTimeoutError" in failed.text("error")


def test_a_cancelled_run_stops_its_async_node_at_the_next_renewal(at: Client) -> None:
    began, ended = threading.Event(), threading.Event()

    async def waits(state: State) -> State:
        began.set()
        try:
            await asyncio.sleep(20)
        finally:
            ended.set()
        return {}

    spec = graph(one=waits)
    with running(at.url, spec, lease_ms=600) as worker:
        thread = at.submit(spec)
        assert began.wait(10)
        assert at.moves.cancel(thread) == "cancelled"
        assert ended.wait(2)
        wait_for(lambda: len(worker.work.slots) == 10)


# --- the end


def test_a_drained_worker_lets_its_node_end_and_commits_it(at: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "everstep.worker")
    gate = Gate()
    spec = graph(one=gate, two=says("two"))
    with running(at.url, spec) as worker:
        thread = at.submit(spec)
        wait_for(lambda: gate.runs)
        worker.drain()
        wait_for(lambda: not at.redis.exists(KEYS.waiting("chain")))
        gate.open.set()
    assert (
        f"for 1 node; a second signal gives back at once what still runs: chain/{thread}#2 one attempt 1" in caplog.text
    )
    assert at.seen(spec, thread) == ["gate"]
    assert at.redis.llen(KEYS.rq_queue("chain")) == 1
    assert at.redis.zcard(KEYS.leases) == 0


@pytest.mark.parametrize("cold", [False, True])
def test_what_a_drained_worker_can_t_finish_goes_back_uncounted(at: Client, cold: bool) -> None:
    gate = Gate()
    spec = graph(one=gate)
    with running(at.url, spec, grace_s=20.0 if cold else 0.2) as worker:
        thread = at.submit(spec)
        wait_for(lambda: gate.runs)
        worker.stop() if cold else worker.drain()
        wait_for(lambda: at.redis.llen(KEYS.rq_queue("chain")) == 1, 5)
    gate.open.set()
    with running(at.url, spec):
        at.rests(thread)
    assert gate.runs == 2
    assert at.kinds(thread) == ["run_started", *["checkpoint"] * 3], "nothing was lost, nothing failed"
    (record,) = [x for x in at.log.read(thread) if x.is_checkpoint and x.text("node") == "one"]
    assert record.text("attempt") in ("", "1")


def test_an_idle_worker_ends_at_once(at: Client) -> None:
    with running(at.url, graph(one=says("one")), grace_s=30) as worker:
        wait_for(lambda: at.redis.exists(KEYS.waiting("chain")))
        began = time.monotonic()
        worker.drain()
        wait_for(lambda: not at.redis.zscore(KEYS.waiting("chain"), worker.name))
    assert time.monotonic() - began < 2


# --- what is not ours


def foreign(client: Any, queue: str, data: str) -> str:
    job = new_id()
    fields = {"data": data, "origin": queue, "status": "queued", "created_at": "2026-01-01T00:00:00.0Z"}
    client.hset(KEYS.rq_job(job), mapping=fields)
    client.rpush(KEYS.rq_queue(queue), job)
    return job


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(["os.system", None, ["touch /tmp/everstep-was-here"], {}]),
        json.dumps(["everstep.run_node", None, [], {"thread": 7}]),
        "\x80\x04pickle",
        "7",
    ],
)
def test_a_job_that_is_not_ours_is_refused_and_the_worker_lives(at: Client, data: str) -> None:
    spec = graph(one=says("one"))
    with running(at.url, spec):
        job = foreign(at.redis, "chain", data)
        at.rests(at.submit(spec))
        wait_for(lambda: at.redis.zscore(KEYS.rq_failed("chain"), job))
    assert b"refused by everstep" in (at.redis.hget(KEYS.rq_job(job), "exc_info") or b"")


def test_an_unknown_node_is_parked_and_taken_by_a_worker_that_serves_it(at: Client) -> None:
    old, new = graph(one=says("one")), graph(one=says("one"), two=says("two"))
    with running(at.url, new, queues=["elsewhere"]):
        pass
    with running(at.url, old) as worker:
        thread = at.submit(new)
        parked = at.submit(graph("stranger", one=says("one")))
        at.redis.lmove(KEYS.rq_queue("stranger"), KEYS.rq_queue("chain"))
        wait_for(lambda: at.redis.hget(KEYS.parked, "stranger:__start__") == b"1")
        at.rests(thread)
        assert worker.work.slots
    assert at.redis.zcard(KEYS.rq_failed("stranger")) == 1
    stranger = graph("stranger", one=says("one"))
    with running(at.url, stranger):
        at.rests(parked)
    assert at.kinds(parked).count("task_parked") == 1
    assert at.redis.zcard(KEYS.rq_failed("stranger")) == 0


def test_parked_work_is_taken_under_load_too(at: Client) -> None:
    stranger = graph("stranger", one=says("one"))
    busy = graph("busy", **{f"n{i}": sleeps for i in range(100)})
    with running(at.url, busy) as worker:
        parked = at.submit(stranger)
        at.redis.lmove(KEYS.rq_queue("stranger"), KEYS.rq_queue("busy"))
        wait_for(lambda: at.redis.hget(KEYS.parked, "stranger:__start__") == b"1")
        worker.stop()
    with running(at.url, busy, stranger, concurrency=2, queues=["stranger", "busy"]):
        for _ in range(4):
            at.submit(busy)
        at.rests(parked, timeout_s=5)


# --- Redis goes away


def test_redis_away_for_five_seconds_runs_nothing_twice(own_server: StartServer) -> None:
    server = own_server()
    at = Client(server.url, connect(server.url))
    gates = [Gate(str(i)) for i in range(5)]
    async_runs: list[int] = []

    async def waits(state: State) -> State:
        async_runs.append(1)
        while not gates[0].open.is_set():
            await asyncio.sleep(0.05)
        return {"seen": ["async"]}

    specs = [*(graph(f"g{i}", one=gate) for i, gate in enumerate(gates)), graph("loop", one=waits)]
    with FaultProxy(server.socket) as proxy, running(proxy.url, *specs, lease_ms=1000):
        threads = [at.submit(spec) for spec in specs]
        wait_for(lambda: all(gate.runs for gate in gates) and async_runs)
        proxy.refuse()
        for gate in gates[:3]:
            gate.open.set()
        time.sleep(4.0)
        proxy.accept()
        time.sleep(0.5)
        for gate in gates:
            gate.open.set()
        for thread in threads:
            at.rests(thread)
    assert [gate.runs for gate in gates] == [1] * 5
    assert async_runs == [1]


@pytest.mark.parametrize("script", ["claim", "commit", "renew", "sweep"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_lost_reply_loses_and_doubles_nothing(at: Client, proxy: FaultProxy, script: str, is_async: bool) -> None:
    runs: list[str] = []

    def sync_node(state: State) -> State:
        runs.append(state["name"])
        return {"seen": [state["name"]]}

    async def async_node(state: State) -> State:
        return sync_node(state)

    node = async_node if is_async else sync_node
    spec = graph(one=node, two=node)
    with running(proxy.url, spec, lease_ms=600) as worker:
        wait_for(lambda: at.redis.zscore(KEYS.waiting("chain"), worker.name))
        lost = proxy.drop_next_reply(sha(script).encode())
        threads = [at.submit(spec, name=f"t{i}") for i in range(5)]
        for thread in threads:
            at.rests(thread)
        assert lost.wait(5)
    assert sorted(runs) == sorted(f"t{i}" for i in range(5) for _ in "12")
    assert not any("task_lost" in at.kinds(thread) for thread in threads)


# --- construction


def test_two_graphs_of_one_name_are_an_error(redis_url: str) -> None:
    with pytest.raises(GraphError, match="two graphs are named 'chain'"):
        Worker(redis_url, [graph(one=says("one")), graph(two=says("two"))])


def test_a_worker_listens_to_all_queues_of_its_graphs(redis_url: str) -> None:
    built = StateGraph(State)
    built.add_node("one", says("one"), queue="gpu")
    built.add_edge(START, "one")
    built.add_edge("one", END)
    worker = Worker(redis_url, [built.spec("a"), graph("b", one=says("one"))])
    assert worker.setup.queues == ("a", "gpu", "b")
    assert worker.name.startswith("everstep.")


def test_a_queue_that_no_graph_here_uses_is_said(at: Client, caplog: pytest.LogCaptureFixture) -> None:
    with running(at.url, graph(one=says("one")), queues=("chain.suspect", "chains")):
        wait_for(lambda: "uses the queue" in caplog.text)
    assert "no graph here uses the queue 'chains'; theirs are: chain" in caplog.text
    assert "'chain.suspect'" not in caplog.text, "where a pool has tasks run alone"


# --- nothing ends a thread, nothing is held for ever


class Dire(BaseException):
    """Neither an Exception nor one that Python knows."""


@pytest.mark.parametrize("raised", [KeyboardInterrupt, asyncio.CancelledError, SystemExit, Dire])
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_a_node_raises_fails_its_run_and_frees_its_slot(
    at: Client, raised: type[BaseException], is_async: bool
) -> None:
    def raises(state: State) -> State:
        raise raised("dire")

    async def araises(state: State) -> State:
        raise raised("dire")

    spec, other = graph(one=araises if is_async else raises), graph("other", one=says("one"))
    with running(at.url, spec, other, concurrency=1) as worker:
        at.rests(at.submit(spec), "failed")
        at.rests(at.submit(other))
        wait_for(lambda: not worker.work.held, 5, "nothing to be held")


def test_a_task_of_a_node_can_t_end_the_event_loop(at: Client) -> None:
    async def exits() -> None:
        raise SystemExit(3)

    async def begins(state: State) -> State:
        task = asyncio.create_task(exits())
        await asyncio.wait([task])
        return {"seen": ["lives"]}

    spec = graph(one=begins)
    with running(at.url, spec):
        thread = at.submit(spec)
        at.rests(thread)
    assert at.seen(spec, thread) == ["lives"]


def test_work_for_which_no_thread_can_be_begun_goes_back_uncounted(at: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    fails, start = [True] * 3, threading.Thread.start

    def wanting(thread: threading.Thread) -> None:
        if fails and thread.name.startswith("everstep-hand"):
            fails.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", wanting)
    spec = graph(one=says("one"))
    threads = [at.submit(spec) for _ in range(5)]
    with running(at.url, spec, concurrency=4) as worker:
        for thread in threads:
            at.rests(thread)
        assert not fails
        wait_for(lambda: not worker.work.held, 5, "nothing to be held")
        wait_for(lambda: len(worker.work.slots) == 4, 5, "all slots to be free")
    assert all(at.kinds(thread) == ["run_started", "checkpoint", "checkpoint", "checkpoint"] for thread in threads)


@pytest.mark.source
def test_a_commit_that_can_t_be_made_up_or_sent_keeps_no_slot(at: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Worker(at.url, [graph(one=says("one"))], concurrency=4).work
    nothing: Any = object()
    held = Held(nothing)
    held.attempt = nothing

    def refuses(*told: object) -> Any:
        raise AttributeError("no commit")

    monkeypatch.setattr(work.performer, "settle", refuses)
    with pytest.raises(AttributeError):
        work.settle(Done(held, nothing))
    assert len(work.slots) == 4
    work.slots.take(2)  # their own
    offer, failed = work.refill(2, 4), list[BaseException]()
    assert len(offer.tokens) == 3 and len(work.slots) == 1
    monkeypatch.setattr(work, "came_to_nothing", lambda held, error: failed.append(error))
    posted = Posted([Settled(Done(held, nothing), nothing)] * 2, offer, 0, work.own_line())
    assert work.came(posted, None) == []  # no answer came, and they can't be sent again
    assert [type(error) for error in failed] == [AttributeError] * 2
    assert len(work.slots) == 4
    work.close()


def test_a_commit_offers_for_more_idle_slots_the_more_work_there_was(redis_url: str) -> None:
    """A lone chain would offer all of them with each step, for nothing."""
    work = Worker(redis_url, [graph(one=says("one"))], concurrency=40).work
    work.slots.take(1)  # its own

    def offered(brings: int) -> int:
        offer = work.refill(1, 64)
        leases = [lease_of(token=token) for token in offer.tokens[:brings]]
        for held in work.admit(offer, leases):
            work.drop(held)
        work.slots.give(offer.tokens[1:brings])
        work.slots.take(len(work.slots) - 39)
        return len(offer.tokens) - 1

    assert [offered(64) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 39, 39]
    assert [offered(2), offered(1), offered(0), offered(64)] == [39, 1, 1, 1]
    assert work.admit(work.offer(), []) == [], "what was sent without an offer says nothing of how much there is"
    assert offered(64) == 2
    assert len(work.slots) == 39
    work.close()


def test_at_a_cold_stop_what_is_ready_behind_a_node_that_still_runs_is_told(at: Client) -> None:
    """It was given back, and its node ran again."""
    spec = graph(one=says("one"))
    worker, thread = Worker(at.url, [spec]), at.submit(spec)
    work, hands = worker.work, worker._hands
    offer = work.offer(work.slots.take(1))
    (held,) = work.admit(offer, work.moves.claim(offer).leases)
    worker.drain()
    assert work.load(held) and held.attempt is not None and held.take_right()
    done = Done(held, held.attempt.call())
    busy = Hand(work, hands, "busy")
    busy._ready, busy._began = [Settled(done, work.settle(done))], time.monotonic() - 1  # at another node since then
    hands._all.append(busy)
    worker._give_back()
    assert at.kinds(thread).count("checkpoint") == 2, "its input is applied"
    assert at.redis.hlen(KEYS.lease) == 0
    work.close()


def suspected(at: Client, spec: GraphSpec) -> str:
    """A thread whose first task a process died of."""
    thread = at.submit(spec)
    offer = Offer("dying", (new_id(),), spec.queues, "dying")
    assert [lease.thread for lease in at.moves.claim(offer).leases] == [thread]
    assert at.moves.release("dying", None, "lost") == 1
    return thread


def test_a_worker_without_a_pool_runs_a_suspect_alone(at: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = graph(one=says("one"))
    suspect = suspected(at, spec)
    other, beside = at.submit(spec), list[set[str]]()
    load = Performer.load

    def looks(performer: Performer, lease: Lease) -> Attempt:
        time.sleep(0.05)
        beside.append({held.lease.thread for held in list(worker.work.held.values())})
        return load(performer, lease)

    monkeypatch.setattr(Performer, "load", looks)
    with running(at.url, spec, concurrency=4) as worker:
        at.rests(suspect)
        at.rests(other)
    assert beside[0] == {suspect}
    assert at.seen(spec, suspect) == ["one"]


def test_a_worker_that_is_always_busy_makes_room_for_a_suspect(at: Client) -> None:
    ended, spec = threading.Event(), graph("g", one=says("one"))

    def again(state: State) -> State:
        time.sleep(0.01)
        return {}

    loop = StateGraph(State)
    loop.add_node("again", again)
    loop.add_edge(START, "again")
    loop.add_conditional_edges("again", lambda state: END if ended.is_set() else "again", ["again", END])
    busy = loop.spec("busy")
    suspect = suspected(at, spec)
    threads = [at.submit(busy) for _ in range(4)]
    with running(at.url, spec, busy, concurrency=2):
        at.rests(suspect)
        ended.set()
        for thread in threads:
            at.rests(thread)
    assert at.seen(spec, suspect) == ["one"]


def test_a_worker_of_a_pool_leaves_suspects_to_it(at: Client) -> None:
    spec = graph(one=says("one"))
    suspect = suspected(at, spec)
    with running(at.url, spec, pooled=True):
        at.rests(at.submit(spec))
    assert at.status(suspect) == "running"
    assert at.redis.llen(KEYS.rq_queue(f"{spec.queues[0]}.suspect")) == 1
