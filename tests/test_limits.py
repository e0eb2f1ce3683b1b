"""Limits: never more at once or in a time than a node's limit says, and nobody waits for ever. One table on both moves.

Each case opens threads with one task each, `p0` at node `api`, and looks at who may hold it.
"""

from __future__ import annotations

import json
import operator
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import fakeredis
import pytest
import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import GraphError, InvalidInput
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_scheduler.client.waiting import waiting_for
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.limits import Limit, limit_key
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.inline.savers import InMemorySaver
from everstep_scheduler.moves.contract import Commit, Lease, Offer, Start
from everstep_scheduler.recovery.recovery import recover
from everstep_workers.worker import Worker
from servers import wait_for
from test_moves import Stage, memory, on
from test_worker import KEYS, LEASE_MS, Client, running
from test_worker import at as at

FIELDS: e.Fields = {"kind_of_run": "input", "task": "start", "node": "__start__", "graph": "g", "queue": "g"}


@dataclass
class Fleet:
    """Threads with one limited task each, and hands for all of them."""

    stage: Stage
    held: dict[str, Lease] = field(default_factory=dict[str, Lease])

    def offer(self, thread: str, count: int = 1) -> Offer:
        return Offer("w1", tuple(new_id() for _ in range(count)), lease_ms=60_000, thread=thread)

    def open(self, thread: str, *nodes: str, key: str = "", tokens: int = 1) -> bool:
        """A thread whose next step has a task at each node. True if the first one is leased at once."""
        said: e.Fields = {**FIELDS, "run": f"r-{thread}", **({"limit_key": key} if key else {})}
        start = Start(thread, f"r-{thread}", "input", "g", "g", "s", said)
        (lease,) = self.stage.moves.start(start, self.offer(thread)).leases
        self.close(lease, *(nodes or ("api",)), tokens=tokens)
        return thread in self.held

    def close(self, lease: Lease, *nodes: str, tokens: int = 1) -> None:
        rows = tuple((f"p{i}", node, "g", 0) for i, node in enumerate(nodes))
        made = e.checkpoint(
            lease.digest, lease.n + 1, source="loop", step=lease.n, graph="g@1", run=lease.run, task=lease.task,
            token=lease.token, next=json.dumps(rows), delta=e.wrap(b"\x80"),
        )  # fmt: skip
        head = (lease.n + 1, str(made["digest"]), lease.n)
        self._commit(Commit(lease, "next", (made,), head, rows), tokens)

    def _commit(self, commit: Commit, tokens: int) -> None:
        offer = self.offer(commit.lease.thread, tokens)
        self._hold(self.stage.moves.commit([(commit, offer)])[0].leases)

    def _hold(self, leases: tuple[Lease, ...]) -> None:
        self.held.update((x.thread if x.task == "p0" else f"{x.thread}/{x.task}", x) for x in leases)

    def end(self, thread: str) -> None:
        self.close(self.held.pop(thread))

    def fail(self, thread: str, delay_ms: int = 0) -> None:
        lease = self.held.pop(thread)
        said: e.Fields = {"task": lease.task, "token": lease.token, "node": lease.node}
        fact = e.fact("task_failed", lease.run, **said, error='{"type":"E","text":"x"}')
        outcome: Any = "retry" if delay_ms else "failed"
        self._commit(Commit(lease, outcome, (fact,), reason="E: x", delay_ms=delay_ms), 1)

    def claim(self, thread: str, count: int = 1) -> bool:
        before = len(self.held)
        self._hold(self.stage.moves.claim(self.offer(thread, count)).leases)
        return len(self.held) > before

    def release(self, thread: str, to: Any = "job") -> None:
        self.stage.moves.release("w1", [self.held.pop(thread).token], to)


@pytest.fixture(params=["memory", "fake", "server"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    if request.param == "memory":
        yield Fleet(memory())
    elif request.param == "fake":
        yield Fleet(on(fakeredis.FakeRedis(version=(7,))))
    else:
        yield Fleet(on(request.getfixturevalue("client")))


def limited(fleet: Fleet, limit: Limit, **more: Limit) -> None:
    fleet.stage.moves.limit("g", {"api": limit, **more})


# who may hold a slot


def test_no_more_than_the_limit_are_leased_and_who_ends_lets_the_next_in(fleet: Fleet) -> None:
    limited(fleet, Limit(2))
    assert [fleet.open(x) for x in "abcd"] == [True, True, False, False]
    assert not fleet.claim("c") and not fleet.claim("d")
    fleet.end("b")
    assert not fleet.claim("d"), "it came after c"
    assert fleet.claim("c") and not fleet.claim("d")
    fleet.end("a")
    assert fleet.claim("d")


def test_a_place_in_line_is_kept_to_the_microsecond(client: redis.Redis) -> None:
    """Who is given back stands where it came first; those of one script came microseconds apart."""
    fleet = Fleet(on(client))
    limited(fleet, Limit(1))
    fleet.open("a", *["api"] * 3, tokens=3)
    plain: Any = client
    for task in ("p1", "p2"):
        stored = json.loads(plain.hget(KEYS.open("a"), task))
        assert int(stored["z"]) == plain.zscore(KEYS.line("g:api"), f"1 {task} a")


def test_a_graph_without_limits_is_not_counted(fleet: Fleet) -> None:
    fleet.stage.moves.limit("other", {"api": Limit(1)})
    assert fleet.open("a") and fleet.open("b")


def test_a_node_beside_a_limited_one_is_free(fleet: Fleet) -> None:
    limited(fleet, Limit(1))
    assert fleet.open("a")
    assert fleet.open("b", "free") and fleet.open("c", "free")


@pytest.mark.parametrize("way", ["fail", "retry", "release", "lost", "cancel"])
def test_whatever_ends_an_attempt_lets_its_slot_go(fleet: Fleet, way: str) -> None:
    limited(fleet, Limit(1))
    assert fleet.open("a") and not fleet.open("b")
    if way == "cancel":
        assert fleet.stage.moves.cancel("a") == "cancelled"
    elif way in ("release", "lost"):
        fleet.release("a", "job" if way == "release" else "lost")
    else:
        fleet.fail("a", 60_000 if way == "retry" else 0)
    assert fleet.claim("b")


def test_who_is_cancelled_in_line_or_let_in_is_in_nobodys_way(fleet: Fleet) -> None:
    limited(fleet, Limit(1))
    fleet.open("a")
    for thread in "bcd":
        assert not fleet.open(thread)
    fleet.stage.moves.cancel("b")
    fleet.end("a")  # c is let in
    fleet.stage.moves.cancel("c")
    assert fleet.claim("d")


def test_a_run_that_is_continued_stands_in_line_again(fleet: Fleet) -> None:
    limited(fleet, Limit(1))
    fleet.open("a")
    assert not fleet.open("b")
    fleet.stage.moves.cancel("b")
    start = Start("b", "again", "continue", "g", "g", "continue", {**FIELDS, "run": "again", "kind_of_run": "continue"})
    assert not fleet.stage.moves.start(start, fleet.offer("b")).leases
    fleet.end("a")
    assert fleet.claim("b")


def test_siblings_of_one_step_share_the_limit_and_all_get_their_turn(fleet: Fleet) -> None:
    limited(fleet, Limit(2))
    fleet.open("a", *["api"] * 5, tokens=5)
    seen = set[str]()
    while fleet.held:
        assert len(fleet.held) <= 2
        name, lease = next(iter(fleet.held.items()))
        if lease.task == "join":
            break
        seen.add(lease.task)
        del fleet.held[name]
        said: e.Fields = {"task": lease.task, "token": lease.token, "node": lease.node}
        fact = e.summed(e.fact("task_done", lease.run, **said, writes=e.pack_writes([])))
        fleet._commit(Commit(lease, "done", (fact,)), 5)
        fleet.claim("a", 5)
    assert seen == {f"p{i}" for i in range(5)}


# keys and names


def test_a_limit_per_key_counts_each_key_by_itself(fleet: Fleet) -> None:
    limited(fleet, Limit(1, per_key=True))
    assert fleet.open("a1", key="a") and fleet.open("b1", key="b") and fleet.open("none")
    assert not fleet.open("a2", key="a") and not fleet.open("b2", key="b") and not fleet.open("none2")
    fleet.end("b1")
    assert not fleet.claim("a2") and fleet.claim("b2")


def test_limits_of_one_name_are_counted_together(fleet: Fleet) -> None:
    shared = Limit(1, name="openai")
    limited(fleet, shared, draw=shared)
    assert fleet.open("a") and not fleet.open("b", "draw")
    fleet.end("a")
    assert fleet.claim("b")


# rates


def test_no_more_begin_within_the_time_and_then_the_next_do(fleet: Fleet) -> None:
    limited(fleet, Limit(rate=(2, 0.4)))
    began = time.monotonic()
    assert [fleet.open(x) for x in "abc"] == [True, True, False]
    fleet.end("a")
    fleet.end("b")
    while not fleet.claim("c"):
        assert time.monotonic() < began + 10
        time.sleep(0.01)
    assert time.monotonic() - began >= 0.38


# changes


def test_other_numbers_hold_at_once_also_for_who_waits(fleet: Fleet) -> None:
    limited(fleet, Limit(1))
    assert [fleet.open(x) for x in "abc"] == [True, False, False]
    limited(fleet, Limit(2))
    assert fleet.claim("b") and not fleet.claim("c")
    fleet.stage.moves.limit("g", {})
    assert fleet.claim("c") and fleet.open("d")


# nothing is lost, nobody starves: at random


def test_at_random_never_too_many_nothing_lost_nobody_starves(fleet: Fleet) -> None:
    dice = random.Random(f"limits {fleet.stage.moves}")
    limited(fleet, Limit(3), other=Limit(1, per_key=True))
    names, gone, done = [f"t{i}" for i in range(12)], set[str](), set[str]()
    node = {name: dice.choice(["api", "other"]) for name in names}
    key = {name: dice.choice("xy") for name in names}
    waiting, lost = list(names), Counter[str]()
    for _ in range(400):
        move = dice.choice(["open", "claim", "claim", "end", "retry", "release", "lost", "cancel"])
        thread = dice.choice(names)
        if waiting and move == "open":
            name = waiting.pop()
            fleet.open(name, node[name], key=key[name])
        elif thread in waiting or thread in gone or thread in done:
            continue
        elif move == "cancel" and dice.random() < 0.1:
            fleet.stage.moves.cancel(thread)
            fleet.held.pop(thread, None)
            gone.add(thread)
        elif move == "claim":
            fleet.claim(thread)
        elif thread in fleet.held and move == "end":
            fleet.end(thread)
            done.add(thread)
        elif thread in fleet.held and move == "retry":
            fleet.fail(thread, 1)
        elif thread in fleet.held and move in ("release", "lost"):
            lost[thread] += move == "lost"
            fleet.release(thread, move if move == "lost" and lost[thread] < 4 else "job")  # the fourth is poison
        at_api = [x for x in fleet.held if node[x] == "api"]
        assert len(at_api) <= 3
        for each in "xy":
            assert len([x for x in fleet.held if node[x] == "other" and key[x] == each]) <= 1
    while waiting:
        name = waiting.pop()
        fleet.open(name, node[name], key=key[name])
    end = time.monotonic() + 60
    while left := [x for x in names if x not in gone | done]:
        assert time.monotonic() < end, f"they wait for ever: {left}"
        for name in left:
            if name in fleet.held or fleet.claim(name):
                fleet.end(name)
                done.add(name)


# real workers


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    name: str


def counting(url: str) -> GraphSpec:
    """One node, at most two at once, which notes how many there are; the one named `stuck` holds on."""
    at = redis.Redis.from_url(url)

    def api(state: State) -> State:
        at.rpush("most", int(at.incr("now")))
        if state["name"] == "stuck" and at.incr("stuck") == 1:
            at.decr("now")
            time.sleep(60)
        time.sleep(0.02)
        at.decr("now")
        return {"seen": [state["name"]]}

    built = StateGraph(State).add_node("api", api, limit=2).add_edge(START, "api").add_edge("api", END)
    return built.spec("counting")


def hold(url: str) -> None:
    Worker(url, [counting(url)], lease_ms=LEASE_MS, concurrency=4).run()


def test_a_slot_comes_back_when_its_holder_is_killed_and_never_are_there_too_many(at: Client, redis_url: str) -> None:
    spec = counting(redis_url)
    holder = subprocess.Popen([sys.executable, __file__, redis_url])
    stuck = at.submit(spec, name="stuck")
    wait_for(lambda: at.redis.get("stuck"), 30, "the holder")
    threads = [at.submit(spec, name=str(i)) for i in range(12)]
    holder.kill()
    holder.wait(10)
    at.redis.delete("now")  # it may have died with one counted, and nobody runs now
    with running(redis_url, spec, concurrency=8):
        for thread in [*threads, stuck]:
            at.rests(thread, timeout_s=30)
    assert max(map(int, at.redis.lrange("most", 0, -1))) <= 2
    assert not at.redis.keys(KEYS.slots("*")) and not at.redis.keys(KEYS.line("*"))


def test_inline_runs_obey_the_limit_and_wake_each_other() -> None:
    now, most, lock = 0, 0, threading.Lock()

    def api(state: State) -> State:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return {"seen": ["x"]}

    built = StateGraph(State).add_node("api", api, limit=2).add_edge(START, "api").add_edge("api", END)
    graph = built.compile(checkpointer=InMemorySaver())
    with ThreadPoolExecutor(8) as pool:
        threads = [{"configurable": {"thread_id": str(i)}} for i in range(16)]
        assert all(x["seen"] == ["x"] for x in pool.map(lambda c: graph.invoke({"name": "n"}, c), threads))
    assert most == 2


def test_what_waits_is_shown_as_deferred_and_survives_a_rebuild(client: redis.Redis) -> None:
    fleet, keys = Fleet(on(client)), Keys(rq="rq")
    limited(fleet, Limit(1))
    assert [fleet.open(x) for x in "abc"] == [True, False, False]
    assert client.zcard(keys.rq_deferred("g")) == 2 and client.llen(keys.rq_queue("g")) == 0
    run = str(client.hget(keys.thread("b"), "run").decode())  # type: ignore[union-attr]
    assert waiting_for(client, keys, "b", run) == "node 'api' waits in line at the limit 'g:api', held by g/a#1 api"
    recover(client, keys, lease_ms=600)
    assert client.zcard(keys.rq_deferred("g")) == 0 and client.llen(keys.rq_queue("g")) == 2
    assert client.scard(keys.slots("g:api")) == 1, "the lease lives on, and holds its slot"
    assert not fleet.claim("b") and not fleet.claim("c")
    fleet.end("a")
    assert fleet.claim("b") or fleet.claim("c")


# refusals


@pytest.mark.parametrize(
    "make",
    [
        lambda: Limit(),
        lambda: Limit(0),
        lambda: Limit(rate=(5, 0)),
        lambda: Limit(rate=5),  # type: ignore[arg-type]
        lambda: Limit(1, name="a|b"),
        lambda: StateGraph(State).add_node("a", str, limit="many"),  # type: ignore[arg-type]
    ],
)
def test_a_limit_that_is_none_is_refused_while_building(make: Callable[[], object]) -> None:
    with pytest.raises(GraphError):
        make()


def test_a_key_is_plain_text() -> None:
    assert limit_key({"limit_key": 7}) == "7"
    with pytest.raises(InvalidInput):
        limit_key({"limit_key": ["a"]})


if __name__ == "__main__":
    hold(sys.argv[1])
