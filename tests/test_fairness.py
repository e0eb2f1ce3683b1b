"""Fairness: runs that say a key have the queue key by key, in turn; nothing is lost, and who says none pays nothing.

Cases move bare tasks: each thread is a chain whose node is always `n`, taken from the queue `g`.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fakeredis
import pytest
import redis
from rq import Queue

from everstep.bench.fair import jain
from everstep.cli import main
from everstep.places import look_at_places
from everstep.site import Site
from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import GraphError, InvalidInput
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_scheduler.client.client import connect, publish
from everstep_scheduler.client.inbox import InboxReader
from everstep_scheduler.client.waiting import waiting_for
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.fairness import fairness_key, turn_of
from everstep_scheduler.graph.limits import Limit
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.savers import InMemorySaver
from everstep_scheduler.moves.contract import Commit, Lease, Offer, Start
from everstep_scheduler.reading.derive import derive
from everstep_scheduler.recovery.recovery import audit, recover
from servers import wait_for
from test_moves import Stage, memory, on
from test_worker import State, running, says
from test_worker import graph as chain

KEYS = Keys(rq="rq")
FIELDS: e.Fields = {"kind_of_run": "input", "task": "start", "node": "__start__", "graph": "g", "queue": "g"}


@dataclass
class Fleet:
    """Threads with keys, and a worker that takes from the queue `g`. A thread `a3` has the key `a`, `-1` has none."""

    stage: Stage
    client: Any
    held: list[Lease] = field(default_factory=list[Lease])
    took: list[str] = field(default_factory=list[str])

    def offer(self, count: int = 1, proc: str = "") -> Offer:
        return Offer("w1", tuple(new_id() for _ in range(count)), ("g",), proc, lease_ms=60_000)

    def start(self, *threads: str, mode: Any = "enqueue", run: str = "") -> None:
        for thread in threads:
            key = thread[0].strip("-")
            name = run or f"r-{thread}"
            said: e.Fields = {**FIELDS, "run": name, **({"fairness_key": key} if key else {})}
            self.stage.moves.start(Start(thread, name, "input", "g", "g", "s", said, mode=mode))

    def _hold(self, leases: tuple[Lease, ...]) -> list[str]:
        self.held += leases
        self.took += [x.thread for x in leases]
        return [x.thread for x in leases]

    def claim(self, count: int = 1, **more: Any) -> list[str]:
        """The threads whose tasks it gets."""
        return self._hold(self.stage.moves.claim(self.offer(count), **more).leases)

    def pop(self, thread: str) -> Lease:
        lease = next(x for x in self.held if x.thread == thread)
        self.held.remove(lease)
        return lease

    def step(self, thread: str, *nodes: str, count: int = 1) -> list[str]:
        """Commit a step with these tasks next, and refill."""
        lease = self.pop(thread)
        rows = tuple((f"p{i}", node, "g", 0) for i, node in enumerate(nodes))
        made = e.checkpoint(
            lease.digest, lease.n + 1, source="loop", step=lease.n, graph="g@1", run=lease.run, task=lease.task,
            token=lease.token, next=json.dumps(rows), delta=e.wrap(b"\x80"),
        )  # fmt: skip
        head = (lease.n + 1, str(made["digest"]), lease.n)
        return self.commit(Commit(lease, "next", (made,), head, rows), count)

    def commit(self, commit: Commit, count: int = 1) -> list[str]:
        (answer,) = self.stage.moves.commit([(commit, self.offer(count))])
        assert answer.status == "ok"
        return self._hold(answer.leases)

    def done(self, thread: str, count: int = 1) -> list[str]:
        lease = self.pop(thread)
        said: e.Fields = {"task": lease.task, "token": lease.token, "node": lease.node}
        fact = e.summed(e.fact("task_done", lease.run, **said, writes=e.pack_writes([])))
        return self.commit(Commit(lease, "done", (fact,)), count)

    def fail(self, thread: str, delay_ms: int = 0) -> list[str]:
        lease = self.pop(thread)
        said: e.Fields = {"task": lease.task, "token": lease.token, "node": lease.node}
        fact = e.fact("task_failed", lease.run, **said, error='{"type":"E","text":"x"}')
        outcome: Any = "retry" if delay_ms else "failed"
        return self.commit(Commit(lease, outcome, (fact,), reason="E: x", delay_ms=delay_ms), 0)

    def queued(self) -> list[str]:
        """The threads whose jobs stand in RQ's list."""
        ids = self.client.lrange(KEYS.rq_queue("g"), 0, -1)
        return [json.loads(self.client.hget(KEYS.rq_job(x.decode()), "everstep"))["thread"] for x in ids]

    def deferred(self) -> int:
        return int(self.client.zcard(KEYS.rq_deferred("g")))


@pytest.fixture(params=["fake", "server"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    client = fakeredis.FakeRedis(version=(7,)) if request.param == "fake" else request.getfixturevalue("client")
    yield Fleet(on(client), client)


# turns


def test_each_key_has_its_turn_however_many_runs_one_has(fleet: Fleet) -> None:
    fleet.start("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    assert (fleet.queued(), fleet.deferred()) == (["a1", "b1", "c1"], 4)
    assert [fleet.claim()[0] for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    assert fleet.claim() == [] and fleet.deferred() == 0


def test_one_claim_for_many_slots_takes_them_in_turn_too_and_leaves_none_free(fleet: Fleet) -> None:
    fleet.start("a1", "a2", "a3", "b1")
    assert fleet.claim(3) == ["a1", "b1", "a2"]
    assert fleet.claim(3) == ["a3"]


def test_the_next_step_of_a_run_goes_behind_those_who_wait(fleet: Fleet) -> None:
    fleet.start("a1", "a2", "b1")
    assert fleet.claim() == ["a1"]
    assert fleet.step("a1", "n") == ["b1"], "the queue was b1, a2"
    assert fleet.step("b1", "n") == ["a2"]
    assert fleet.step("a2", "n") == ["b1"], "a1 waits for the turn of its key, which a2 had"
    assert fleet.step("b1") == ["a1"]
    assert fleet.step("a1", "n") == ["a2"]


def test_a_run_that_is_alone_goes_on_at_once(fleet: Fleet) -> None:
    fleet.start("a1")
    fleet.claim()
    for _ in range(3):
        assert fleet.step("a1", "n") == ["a1"]
    assert fleet.step("a1") == [] and fleet.queued() == []


def test_a_wide_step_of_one_key_lets_another_one_in_between(fleet: Fleet) -> None:
    fleet.start("a1")
    fleet.claim()
    assert fleet.step("a1", *["n"] * 6) == ["a1"]
    fleet.start("b1")
    assert [fleet.done("a1")[0] for _ in range(2)] == ["a1", "b1"], "one of a stood there before"
    fleet.step("b1", count=0)
    fleet.claim()
    while fleet.held[0].task != "join":
        fleet.done("a1")
    assert sum(x == "a1" for x in fleet.took) == 8, "its input, six tasks and the join"


def test_runs_without_a_key_stand_in_the_queue_each_by_itself(fleet: Fleet) -> None:
    fleet.start("a1", "-1", "-2", "a2", "-3", "b1")
    assert [fleet.claim()[0] for _ in range(6)] == ["a1", "-1", "-2", "-3", "b1", "a2"]


def test_a_step_that_goes_behind_runs_without_a_key_has_the_turn_of_its_key(fleet: Fleet) -> None:
    """What is taken here, the plain commit could take: it must leave what is put there to the general one."""
    fleet.start("a1")
    fleet.claim()
    fleet.start("-1", "-2")
    assert fleet.step("a1", "n") == ["-1"]
    fleet.start("a2")
    assert (fleet.queued(), fleet.deferred()) == (["-2", "a1"], 1)


def test_a_queue_that_comes_first_is_empty_before_the_next_one_is_looked_at(fleet: Fleet) -> None:
    fleet.start("a1", "a2", "a3")
    said: e.Fields = {**FIELDS, "run": "r", "queue": "low", "fairness_key": "b"}
    fleet.stage.moves.start(Start("b1", "r", "input", "g", "low", "s", said))
    offers = [Offer("w1", (new_id(),), ("g", "low"), lease_ms=60_000) for _ in range(4)]
    assert [fleet.stage.moves.claim(x).leases[0].thread for x in offers] == ["a1", "a2", "a3", "b1"]


# whatever ends a turn passes it on


@pytest.mark.parametrize("way", ["cancel", "interrupt", "stock worker", "its job is gone and swept"])
def test_whatever_takes_a_job_from_the_queue_passes_the_turn_on(fleet: Fleet, way: str) -> None:
    fleet.start("a1", "a2", "a3")
    moves: Any = fleet.stage.moves
    match way:
        case "cancel":
            assert moves.cancel("a1") == "cancelled"
        case "interrupt":
            fleet.start("a1", mode="interrupt", run="again")
        case "stock worker":
            (job,) = fleet.client.lrange(KEYS.rq_queue("g"), 0, -1)
            fleet.client.lpop(KEYS.rq_queue("g"))
            assert fleet.claim(take=job.decode()) == ["a1"]
        case _:
            fleet.client.delete(KEYS.open("a1"), KEYS.rq_queue("g"))
            moves.sweep("server")
    assert fleet.queued() == ["a2"]
    assert fleet.claim(5)[:2] == ["a2", "a3"]


def test_who_is_cancelled_in_line_is_in_nobodys_way(fleet: Fleet) -> None:
    fleet.start("a1", "a2", "a3")
    fleet.stage.moves.cancel("a2")
    assert fleet.deferred() == 1
    assert [fleet.claim()[0] for _ in range(2)] == ["a1", "a3"] and fleet.deferred() == 0


def test_a_wide_run_that_is_cancelled_and_deleted_leaves_nothing(fleet: Fleet) -> None:
    fleet.start("a1")
    fleet.claim()
    fleet.step("a1", *["n"] * 400, count=0)
    fleet.start("a2")
    assert (fleet.queued(), fleet.deferred()) == (["a1"], 250)
    assert fleet.stage.moves.cancel("a1") == "cancelled"
    assert fleet.stage.moves.delete("a1") == "deleted"
    assert fleet.claim(2) == ["a2"]
    assert fleet.deferred() == 0 and not fleet.client.keys(KEYS.line("*")) and not fleet.client.keys(KEYS.slots("*"))


def test_who_is_deleted_before_its_jobs_were_withdrawn_passes_the_turn_on(fleet: Fleet) -> None:
    fleet.start("a1", "a2")
    fleet.client.hset(KEYS.thread("a1"), "status", "cancelled")
    assert fleet.stage.moves.delete("a1") == "deleted"
    assert fleet.queued() == ["a2"]
    assert not fleet.client.exists(KEYS.thread("a1"))


def test_a_queue_that_can_not_be_pushed_to_keeps_no_turn(fleet: Fleet) -> None:
    moves: Any = fleet.stage.moves
    fleet.start("a1")
    fleet.claim()
    fleet.fail("a1", delay_ms=1)
    fleet.client.set(KEYS.rq_queue("g"), "no list")
    wait_for(lambda: moves.sweep("server")["woken"], 5, "the retry")
    fleet.client.delete(KEYS.rq_queue("g"))
    assert not fleet.client.keys(KEYS.slots("*"))
    fleet.start("a2")
    assert fleet.queued() == ["a2"]


@pytest.mark.parametrize("way", ["retry", "release", "lost"])
def test_who_is_given_back_goes_to_the_front_and_who_is_retried_to_the_back_of_its_key(fleet: Fleet, way: str) -> None:
    fleet.start("a1", "a2", "b1")
    assert fleet.claim() == ["a1"]
    if way == "retry":
        fleet.fail("a1", delay_ms=1)
        moves: Any = fleet.stage.moves
        wait_for(lambda: moves.sweep("server") and fleet.deferred(), 5, "the retry")
        assert [fleet.claim()[0] for _ in range(3)] == ["b1", "a2", "a1"]
    else:
        fleet.stage.moves.release("w1", [fleet.pop("a1").token], way)  # type: ignore[arg-type]
        queue = "g.suspect" if way == "lost" else "g"
        (lease,) = fleet.stage.moves.claim(fleet.offer()._replace(queues=(queue,))).leases
        assert lease.thread == "a1", "it had its turn"
        assert fleet.claim(2) == ["b1", "a2"]


def test_an_error_handler_takes_a_turn_of_its_own(fleet: Fleet) -> None:
    fleet.start("a1", "b1")
    assert fleet.claim() == ["a1"]
    assert fleet.step("a1", "n", count=2) == ["b1", "a1"]
    fleet.start("c1")
    lease = fleet.pop("a1")
    said: e.Fields = {"task": lease.task, "token": lease.token, "node": lease.node, "handler": "h"}
    failed = e.fact("task_failed", lease.run, **said, error='{"type":"E","text":"x"}')
    added = e.fact("task_added", lease.run, task=f"h_{lease.task}", node="h", queue="g", timeout_s="7")
    handled = Commit(lease, "handled", (failed, added), handler=("h", "g", 7))
    assert fleet.commit(handled, 2) == ["c1", "a1"]
    assert fleet.pop("a1").task == "h_p0"


def test_a_limit_that_is_full_keeps_no_turn(fleet: Fleet) -> None:
    fleet.stage.moves.limit("g", {"n": Limit(1)})
    fleet.start("a1", "a2", "b1")
    fleet.claim(3)
    assert fleet.step("a1", "n") == ["a1"]
    fleet.step("b1", "n", count=0)
    fleet.step("a2", "other", count=0)
    assert fleet.claim(2) == ["a2"], "b1 came up, and stands in line at the limit"
    assert fleet.step("a1") == ["b1"]
    assert not fleet.client.keys(KEYS.slots("|*"))


def test_at_a_limit_they_stand_as_their_turns_came_not_as_they_were_queued(fleet: Fleet) -> None:
    fleet.stage.moves.limit("g", {"n": Limit(1)})
    fleet.start("a1", "a2", "b1", "d1")
    fleet.claim(4)
    assert fleet.step("d1", "n") == ["d1"]
    for thread in ("a1", "a2", "b1"):
        fleet.step(thread, "n", count=0)
    assert fleet.claim() == []
    for thread, following in (("d1", "a1"), ("a1", "b1"), ("b1", "a2")):
        assert fleet.step(thread) == [following]


def test_an_inline_caller_takes_what_is_its_own_out_of_turn(fleet: Fleet) -> None:
    fleet.start("a1", "a2")
    own = fleet.offer()._replace(queues=(), thread="a2")
    assert [x.thread for x in fleet.stage.moves.claim(own).leases] == ["a2"]
    assert fleet.claim(2) == ["a1"] and fleet.deferred() == 0


def test_a_job_that_is_left_for_others_rings_and_one_that_the_same_call_takes_does_not(fleet: Fleet) -> None:
    for proc in ("p1", "p2"):
        fleet.stage.moves.claim(fleet.offer(1, proc))
    fleet.start("a1", "a2", "a3")
    assert fleet.client.exists(KEYS.bell("p1"), KEYS.bell("p2")) == 1, "one job stands there"
    assert fleet.claim(2) == ["a1", "a2"]
    assert fleet.client.exists(KEYS.bell("p1"), KEYS.bell("p2")) == 2, "a3 has its turn now"


# the log knows it


@pytest.mark.parametrize("where", ["memory", "fake", "server"])
def test_the_key_is_in_the_runs_fact_and_both_moves_write_the_same(where: str, request: pytest.FixtureRequest) -> None:
    stage = memory() if where == "memory" else None
    if stage is None:
        stage = on(fakeredis.FakeRedis(version=(7,)) if where == "fake" else request.getfixturevalue("client"))
    for run, key in (("r1", "a"), ("r2", "b"), ("r3", "")):
        said: e.Fields = {**FIELDS, "run": run, **({"fairness_key": key} if key else {})}
        stage.moves.start(Start("t", run, "input", "g", "g", run, said))
    assert [(x.kind, x.text("fairness_key")) for x in stage.log.read("t")] == [
        ("run_started", "a"), ("run_queued", "b"), ("run_queued", ""),
    ]  # fmt: skip
    told = derive(stage.log, "t")
    assert (told.fairness_key, [x.fairness_key for x in told.queued]) == ("a", ["b", ""])


def test_a_run_that_waited_on_its_thread_has_its_own_key_and_one_that_continues_keeps_it(fleet: Fleet) -> None:
    fleet.start("a1")
    said: e.Fields = {**FIELDS, "run": "second", "fairness_key": "b"}
    fleet.stage.moves.start(Start("a1", "second", "input", "g", "g", "s2", said))
    fleet.claim()
    fleet.start("b1")
    fleet.step("a1", count=0)
    assert fleet.client.hget(KEYS.thread("a1"), "fk") == b"b"
    assert (fleet.queued(), fleet.deferred()) == (["b1"], 1)
    fleet.stage.moves.cancel("a1")
    more: e.Fields = {**FIELDS, "run": "third", "kind_of_run": "continue"}
    fleet.stage.moves.start(Start("a1", "third", "continue", "g", "g", "continue", more))
    assert (fleet.queued(), fleet.deferred()) == (["b1"], 1)
    assert derive(fleet.stage.log, "a1").fairness_key == "b"


def test_a_rebuild_makes_the_turns_anew(client: redis.Redis) -> None:
    fleet = Fleet(on(client), client)
    fleet.start("a1", "a2", "a3", "b1", "-1")
    recover(client, KEYS, lease_ms=600)
    assert len(fleet.queued()) == 3 and fleet.deferred() == 2
    assert sorted(x[0] for x in fleet.claim(3)) == ["-", "a", "b"]
    assert {x[0] for x in fleet.claim(2)} == {"a"}


def test_a_queue_that_somebody_emptied_is_made_anew_with_its_turns(client: redis.Redis) -> None:
    fleet = Fleet(on(client), client)
    fleet.start("a1", "a2", "b1")
    assert Queue("g", connection=client).count == 2
    emptied: Any = Queue("g", connection=client)
    emptied.empty()
    audit(client, KEYS, ["g"], lease_ms=600)
    assert sorted(fleet.claim(3)) == ["a1", "a2", "b1"]


def test_what_a_node_calls_has_the_key_of_its_run() -> None:
    child = StateGraph(State).add_node("a", says("a")).add_edge(START, "a").add_edge("a", END)
    built = StateGraph(State).add_node("child", child.compile()).add_edge(START, "child").add_edge("child", END)
    saver = InMemorySaver()
    on: Any = {"configurable": {"thread_id": "t", "fairness_key": "a"}}
    built.compile(checkpointer=saver, name="g").invoke({"name": "x"}, on)
    found = [saver.log.read(x)[0].text("fairness_key") for x in saver.log.threads()]
    assert found == ["a", "a"]


# who says no key pays nothing


def sent(client: Any, do: Any) -> list[str]:
    """The commands that the server was given meanwhile, those within scripts, too."""
    with client.monitor() as monitor:
        do()
        client.echo("that is all")
        found = list[str]()
        for each in monitor.listen():
            if "that is all" in each["command"]:
                return found
            found.append(each["command"])
    raise AssertionError("the server went away")


def test_runs_without_a_key_cost_the_same_commands_beside_those_with_one_and_ask_for_no_turn(
    client: redis.Redis,
) -> None:
    fleet = Fleet(on(client), client)

    def one(thread: str) -> None:
        fleet.start(thread)
        assert fleet.claim() == [thread]
        for _ in range(3):
            assert fleet.step(thread, "n") == [thread]
        fleet.step(thread, *["n"] * 3)
        for _ in range(3):
            fleet.done(thread)
        fleet.step(thread, count=0)

    one("-0")  # loads the scripts
    alone = sent(client, lambda: one("-1"))
    for thread in ("a1", "a2"):
        said: e.Fields = {**FIELDS, "run": "r", "queue": "other", "fairness_key": "a"}
        fleet.stage.moves.start(Start(thread, "r", "input", "g", "other", "s", said))
    beside = sent(client, lambda: one("-2"))
    by_name = [Counter(name for x in found if (name := x.split()[0]) != "CLIENT") for found in (alone, beside)]
    assert by_name[0] == by_name[1]
    assert len(alone) > 100 and not [x for x in alone + beside if ":slots:" in x or ":line" in x]


# nothing is lost, and the counts are equal


def test_at_random_one_of_a_key_stands_in_the_queue_nothing_is_lost_and_doctor_finds_nothing(
    client: redis.Redis, redis_url: str
) -> None:
    seed = random.randrange(2**32)
    dice, fleet, site = random.Random(seed), Fleet(on(client), client), Site(redis_url)
    site.__dict__["keys"] = KEYS
    names, rested = [f"{key}{i}" for key in "aab-" for i in range(5)], set[str]()
    names = sorted(set(names))
    waiting = list(names)
    dice.shuffle(waiting)
    try:
        for turn in range(150):
            move = dice.choice(["start", "claim", "step", "step", "wide", "retry", "release", "cancel", "sweep"])
            lease = dice.choice(fleet.held) if fleet.held else None
            if move == "start" and waiting:
                fleet.start(waiting.pop())
            elif move == "claim":
                fleet.claim(dice.randrange(1, 4))
            elif move == "sweep":
                fleet.stage.moves.sweep("server")  # type: ignore[attr-defined]
            elif move == "cancel" and dice.random() < 0.2:
                name = dice.choice(names)
                if fleet.stage.moves.cancel(name) == "cancelled":
                    rested.add(name)
                fleet.held = [x for x in fleet.held if x.thread != name]
            elif lease is None:
                continue
            elif not lease.plans:
                fleet.done(lease.thread, dice.randrange(3))
            elif move in ("step", "wide"):
                width = 1 if move == "step" else dice.randrange(2, 5)
                fleet.step(lease.thread, *["n"] * width, count=dice.randrange(3))
            elif move == "retry":
                fleet.fail(lease.thread, 1)
            elif move == "release":
                fleet.stage.moves.release("w1", [fleet.pop(lease.thread).token], "job")
            if turn % 5 == 0:
                assert look_at_places(site).problems == []
        fleet.start(*waiting)
        for _ in range(3000):
            if not fleet.held and not fleet.claim(4) and all(_rests(fleet, x) for x in names):
                break
            for lease in list(fleet.held):
                if lease.plans:
                    fleet.step(lease.thread, count=0)
                else:
                    fleet.done(lease.thread, 0)
        assert all(_rests(fleet, x) for x in names), "they wait for ever"
        assert not client.keys(KEYS.line("*")) and not client.keys(KEYS.slots("*"))
    except AssertionError:
        print(f"seed {seed}")
        raise


def _rests(fleet: Fleet, thread: str) -> bool:
    return bool(fleet.client.hget(KEYS.thread(thread), "status") != b"running")


def test_nine_tenants_and_one_that_floods_get_equally_many_steps(client: redis.Redis) -> None:
    """Steps while all of them wait, as a count: four slots, nine with four runs each, one with forty."""
    fleet = Fleet(on(client), client)
    fleet.start(*(f"x{i}" for i in range(40)), *(f"{key}{i}" for i in range(4) for key in "abcdefghi"))
    fleet.claim(4)
    fleet.took.clear()
    while len(fleet.took) < 200:
        thread = fleet.held[0].thread
        fleet.step(thread, "n")
    steps = Counter(thread[0] for thread in fleet.took)
    assert len(steps) == 10 and jain(steps.values()) >= 0.999, steps


def test_on_a_worker_a_tenant_with_one_run_is_not_behind_one_that_floods(redis_url: str) -> None:
    order, lock = list[str](), threading.Lock()

    def node(state: State) -> State:
        with lock:
            order.append(state["name"])
        return {}

    spec = chain("fair", one=node, two=node, three=node)
    with connect(redis_url) as client:
        publish(client.redis, client.keys, [spec])
        runs = [client.submit("fair", {"name": "flood"}, fairness_key="flood") for _ in range(40)]
        with running(redis_url, spec, concurrency=2):
            wait_for(lambda: len(order) > 5, 10, "the flood")
            quiet = client.submit("fair", {"name": "quiet"}, fairness_key=7)
            quiet.result(timeout=10)
            ended = len(order)
            for run in runs:
                run.result(timeout=30)
    assert order.count("quiet") == 3 and len(order) == 123
    behind = order[order.index("quiet") : ended]
    assert len(behind) < 40, "each of its steps came next but a few"


# what people see, and say


def test_who_waits_is_told_for_whose_turn(fleet: Fleet) -> None:
    fleet.start("a1", "a2")
    said = waiting_for(fleet.client, KEYS, "a2", "r-a2")
    assert said == "node '__start__' waits for the turn of fairness_key 'a' in queue 'g'"
    assert turn_of("|a|g|h") == ("a", "g|h") and turn_of("g:n") is None


def test_a_key_is_plain_text_and_a_graphs_name_no_turn() -> None:
    assert fairness_key({"fairness_key": 7}) == "7" and fairness_key({}) == ""
    for given in (["a"], True, "a|b", "x" * 201, "a\n"):
        with pytest.raises(InvalidInput):
            fairness_key({"fairness_key": given})
    built = StateGraph(State).add_node("a", says("a")).add_edge(START, "a").add_edge("a", END)
    with pytest.raises(GraphError):
        built.compile(name="|g")


def test_a_key_comes_by_submit_by_config_by_the_inbox_and_from_a_shell(redis_url: str) -> None:
    with connect(redis_url) as client:
        publish(client.redis, client.keys, [chain("fair", one=says("one"))])
        given = {"configurable": {"fairness_key": "config"}}
        client.submit("fair", {"name": "x"}, thread_id="1", fairness_key="submit", config=given)
        client.submit("fair", {"name": "x"}, thread_id="2", config=given)
        message = {"graph": "fair", "thread": "3", "input": "{}", "fairness_key": "inbox"}
        client.redis.xadd(client.keys.inbox, message)
        InboxReader(redis_url, client.keys).turn()
        assert main(["--url", redis_url, "submit", "fair", "{}", "--thread", "4", "--fairness-key", "shell"]) == 0
        found = [client.log_store.read(x)[0].text("fairness_key") for x in "1234"]
        assert found == ["submit", "config", "inbox", "shell"]
        with pytest.raises(InvalidInput):
            client.submit("fair", {"name": "x"}, fairness_key="a|b")
