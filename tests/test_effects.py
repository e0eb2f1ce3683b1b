"""`once` and `aonce`: what a node did is recorded the moment it is done, and a run of it again gets the record."""

from __future__ import annotations

import asyncio
import contextvars
import operator
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import pytest
import redis

import everstep
from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import InvalidEffect, OutsideNode, ServerUnavailable, TooLarge, UnknownType
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import verify
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import aonce, once
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Command, Send
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.moves.contract import AWAY_S, LEASE_MS, PATIENCE_S, Lease
from everstep_scheduler.reading.derive import derive
from everstep_scheduler.steps import effects as recorded
from everstep_scheduler.steps.effects import Effects
from everstep_workers.work import Setup, Work
from hand import KEYS, Hand
from test_recovery import wipe

CONFIG: dict[str, Any] = {"configurable": {"thread_id": "t"}}
AGAIN = RetryPolicy(initial_interval=0.0, jitter=False, retry_on=ConnectionError)


@dataclass
class Point:
    x: int
    tags: list[str] = field(default_factory=list[str])


class State(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    point: Point


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


def alone(node: Callable[..., Any], saver: Saver | None = None, **more: Any) -> CompiledGraph:
    builder = StateGraph(State).add_node("work", node, **more).add_edge(START, "work").add_edge("work", END)
    return builder.compile(saver, name="g")


def recorded_in(log: Log) -> list[tuple[str, str]]:
    return [(x.text("effect"), x.text("task")) for x in log.read("t") if x.kind == "effect_done"]


class Did:
    """Counts what was done, and how often a node began."""

    def __init__(self) -> None:
        self.times = Counter[str]()

    def do(self, what: str, value: Any = None) -> Any:
        self.times[what] += 1
        return value if value is not None else f"{what} {self.times[what]}"

    async def ado(self, what: str) -> str:
        await asyncio.sleep(0)
        return str(self.do(what))


@pytest.mark.parametrize("sync", [True, False])
def test_a_retry_gets_what_is_recorded_and_does_what_is_not(saver: Saver, sync: bool) -> None:
    did = Did()

    def work(state: State) -> State:
        did.do("node")
        log = [once("a", lambda: did.do("a"))]
        if did.times["node"] == 1:
            raise ConnectionError
        return {"log": [*log, once("b", lambda: did.do("b"))]}

    async def awork(state: State) -> State:
        did.do("node")
        log = [await aonce("a", lambda: did.ado("a"))]
        if did.times["node"] == 1:
            raise ConnectionError
        return {"log": [*log, await aonce("b", lambda: did.do("b"))]}

    graph = alone(work if sync else awork, saver, retry_policy=AGAIN)
    assert graph.invoke({}, CONFIG) == {"log": ["a 1", "b 1"]}
    assert did.times == {"node": 2, "a": 1, "b": 1}
    assert recorded_in(saver.log) == [("a", "p0"), ("b", "p0")]
    assert verify(saver.log, "t").sound


def test_effects_hold_over_questions_and_failures_and_continued_runs(saver: Saver) -> None:
    did = Did()

    def work(state: State) -> State:
        did.do("node")
        first = once("first", lambda: did.do("first"))
        answer = interrupt("go on?")
        second = once("second", lambda: did.do("second"))
        if did.times["node"] < 4:
            raise ValueError
        return {"log": [first, answer, second]}

    graph = alone(work, saver)
    graph.invoke({}, CONFIG)
    both: list[Any] = [Command(resume="yes"), None]
    for data in both:
        with pytest.raises(ValueError):
            graph.invoke(data, CONFIG)
    assert graph.invoke(None, CONFIG) == {"log": ["first 1", "yes", "second 1"]}
    assert did.times == {"node": 4, "first": 1, "second": 1}


def test_the_same_key_is_another_effect_in_another_task_and_another_step(saver: Saver) -> None:
    did = Did()
    builder = StateGraph(State)
    for name in ("a", "b", "c"):
        builder.add_node(name, lambda state, name=name: {"log": [once("mail", lambda: did.do("mail"))]})
    builder.add_node("sent", lambda state: {"log": [once("mail", lambda: did.do("mail"))]})
    builder.add_edge(START, "a").add_edge("a", "b").add_edge("a", "c")
    builder.add_conditional_edges("b", lambda state: [Send("sent", {}), Send("sent", {})], ["sent"])
    builder.compile(saver, name="g").invoke({}, CONFIG)
    assert did.times["mail"] == 5
    assert [task for _, task in recorded_in(saver.log)][:3] == ["p0", "p0", "p1"]


def test_what_comes_back_is_a_value_of_its_own_as_it_is_stored(saver: Saver) -> None:
    given, got = Point(1, ["x"]), list[Any]()

    def work(state: State) -> State:
        point = once("point", lambda: given)
        got.append((point == Point(1, ["x"]), point is given))
        point.tags.append("mine")
        if len(got) == 1:
            raise ConnectionError
        return {"point": point}

    assert alone(work, saver, retry_policy=AGAIN).invoke({}, CONFIG)["point"] == Point(1, ["x", "mine"])
    assert got == [(True, False), (True, False)]
    assert given == Point(1, ["x"])


def test_none_is_a_value_like_any_other(saver: Saver) -> None:
    did = Did()

    def work(state: State) -> State:
        assert once("nothing", lambda: did.times.update(["done"])) is None
        if did.times["tried"] == 0:
            did.do("tried")
            raise ConnectionError
        return {}

    alone(work, saver, retry_policy=AGAIN).invoke({}, CONFIG)
    assert did.times["done"] == 1


def test_what_raises_is_not_recorded_and_may_be_tried_again_at_once(saver: Saver) -> None:
    did = Did()

    def flaky() -> str:
        if did.do("try") == "try 1":
            raise OSError("busy")
        return "done"

    def work(state: State) -> State:
        with pytest.raises(OSError, match="busy"):
            once("flaky", flaky)
        return {"log": [once("flaky", flaky)]}

    assert alone(work, saver).invoke({}, CONFIG) == {"log": ["done"]}
    assert recorded_in(saver.log) == [("flaky", "p0")]


@pytest.mark.parametrize("known", [False, True])
def test_a_key_used_twice_in_one_attempt_is_an_error(known: bool) -> None:
    tries: list[int] = []

    def work(state: State) -> State:
        once("mail", lambda: 1)
        tries.append(1)
        if known and len(tries) == 1:
            raise ConnectionError
        once("mail", lambda: 2)
        return {}

    with pytest.raises(InvalidEffect, match="'mail' comes twice in one attempt"):
        alone(work, retry_policy=AGAIN).invoke({})


def test_many_threads_of_one_node_record_each_its_own(saver: Saver) -> None:
    def work(state: State) -> State:
        got = [""] * 20

        def put(i: int) -> None:
            got[i] = once(f"n{i}", lambda: f"value {i}")

        threads = [threading.Thread(target=contextvars.copy_context().run, args=(put, i)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"log": got}

    assert alone(work, saver).invoke({}, CONFIG) == {"log": [f"value {i}" for i in range(20)]}
    assert len(recorded_in(saver.log)) == 20


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb", "task:0:x", 7])
def test_a_key_that_can_t_be_one_is_refused(key: Any) -> None:
    with pytest.raises(InvalidEffect):
        alone(lambda state: {"log": [once(key, lambda: 1)]}).invoke({})


def test_a_task_has_no_end_of_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "EFFECTS_MAX", 3)

    def work(state: State) -> State:
        return {"log": [once(f"n{i}", lambda: 1) for i in range(4)]}

    with pytest.raises(InvalidEffect, match="over 3 effects"):
        alone(work).invoke({})


def test_outside_a_node_there_is_nothing_to_record() -> None:
    with pytest.raises(OutsideNode, match=r"once\(\) was called where no node runs"):
        once("a", lambda: 1)
    with pytest.raises(OutsideNode, match=r"aonce\(\)"):
        asyncio.run(aonce("a", lambda: 1))


def test_a_value_that_can_t_be_stored_says_that_the_effect_is_done(saver: Saver) -> None:
    graph = alone(lambda state: {"log": [once("lock", threading.Lock)]}, saver)
    with pytest.raises(UnknownType, match="the effect 'lock'") as told:
        graph.invoke({}, CONFIG)
    assert "The effect is done, and not recorded" in told.value.fix
    with pytest.raises(TooLarge):
        alone(lambda state: {"log": [once("big", lambda: "x" * 9_000_000)]}, saver).invoke(
            {}, {"configurable": {"thread_id": "u"}}
        )


def test_a_router_may_use_it_too(saver: Saver) -> None:
    did = Did()

    def route(state: State) -> str:
        where = once("draw", lambda: did.do("draw", END))
        if did.times["route"] == 0:
            did.do("route")
            raise ConnectionError
        return str(where)

    builder = StateGraph(State).add_node("work", lambda state: {"log": ["x"]}, retry_policy=AGAIN)
    builder.add_edge(START, "work").add_conditional_edges("work", route, [END])
    assert builder.compile(saver, name="g").invoke({}, CONFIG) == {"log": ["x"]}
    assert did.times["draw"] == 1


# fenced


def lose(saver: Saver, lease: Lease) -> None:
    assert saver.moves.release(saver.owner, [lease.token], "lost") == 1


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_refused_record_ends_the_attempt_whatever_the_node_makes_of_it(saver: Saver, stubborn: bool) -> None:
    did, leases = Did(), list[Lease]()

    def work(state: State) -> State:
        if did.do("node") == "node 1":
            lose(saver, leases[0])
            try:
                once("late", lambda: did.do("late"))
            except BaseException:
                if not stubborn:
                    raise
            return {"log": ["a zombie's"]}
        return {"log": ["the heir's"]}

    graph = alone(work, saver)
    real = saver.moves.commit

    def commit(pairs: Any) -> Any:
        answers = real(pairs)
        leases.extend(lease for answer in answers for lease in answer.leases)
        return answers

    saver.moves.commit = commit  # type: ignore[method-assign, assignment]
    assert graph.invoke({}, CONFIG) == {"log": ["the heir's"]}
    assert did.times == {"node": 2, "late": 1}
    assert recorded_in(saver.log) == []


# what a log says of it


def test_effects_survive_a_rebuild(client: Any) -> None:
    did = Did()

    def work(state: Any) -> Any:
        did.do("node")
        once("mail", lambda: did.do("mail"))
        if did.times["node"] == 1:
            raise ValueError
        return {"count": 1}

    hand = Hand(client, _counting(work))
    hand.submit("r1")
    hand.drive()
    wipe(client, "all")
    hand.moves.start(hand.continued())
    hand.drive()
    assert did.times == {"node": 2, "mail": 1}
    told = derive(hand.log, "t")
    assert told.status == "done"


def _counting(work: Callable[..., Any]) -> StateGraph:
    class Count(TypedDict, total=False):
        count: int

    return StateGraph(Count).add_node("work", work).add_edge(START, "work")


def test_a_log_with_effects_is_read_by_who_does_not_know_them(saver: Saver) -> None:
    alone(lambda state: {"log": [once("a", lambda: 1)]}, saver).invoke({}, CONFIG)
    fact = next(x for x in saver.log.read("t") if x.kind == "effect_done")
    known = {"v", "kind", "at", "run", "by", "task", "attempt", "token", "node", "effect", "result"}
    assert set(fact.raw) == known
    assert fact.fields()["result"] == e.wrap(b"\x01")
    assert verify(saver.log, "t").problems == []


def test_a_task_without_effects_reads_nothing(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 10,000 tasks has as many facts: none of its tasks reads them all for nothing."""
    read: list[Effects] = []

    def _read(self: Effects) -> dict[str, bytes]:
        read.append(self)
        return {}

    monkeypatch.setattr(Effects, "_read", _read)
    alone(lambda state: {"log": [once("a", lambda: 1)]}, saver).invoke({}, CONFIG)
    assert read == []


def test_the_names_are_public() -> None:
    assert everstep.once is once
    assert everstep.aonce is aonce


# -- an absence of Redis


class Away:
    """Moves whose parts meet a Redis that is away, or refuses them, so many times."""

    def __init__(self, patience_s: float, times: int, cause: Exception) -> None:
        self.patience_s, self.left, self.cause = patience_s, times, cause
        self.wrote: list[Any] = []

    def part(self, lease: Lease, entries: Any) -> list[str]:
        if self.left:
            self.left -= 1
            raise self.cause
        self.wrote += entries
        return [f"0-{at}" for at in range(1, len(entries) + 1)]


LEASE = Lease("x", "t", 0, "", "k", "n", 1, 0, "g", 0, "r", "g", 1, "", "", "", -2, LEASE_MS, 0, "")


def test_a_record_is_written_once_redis_is_back_after_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a worker; after a minute the run failed for good, where a node without effects went on."""
    monkeypatch.setattr(recorded, "REFUSED_S", 0.0)
    moves: Any = Away(30.0, 3, redis.ConnectionError("away"))
    assert Effects(moves, InMemorySaver().log, LEASE, Codec(), "w").record("charge", 1) == 1
    assert len(moves.wrote) == 1


def test_a_record_that_is_refused_for_what_it_is_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "REFUSED_S", 0.0)
    moves: Any = Away(30.0, 1000, redis.ResponseError("WRONGTYPE no stream"))
    with pytest.raises(ServerUnavailable, match="WRONGTYPE"):
        Effects(moves, InMemorySaver().log, LEASE, Codec(), "w").record("charge", 1)
    assert moves.left == 999


def test_workers_have_more_patience_than_callers(redis_url: str) -> None:
    saver = RedisSaver(redis_url)
    with closing(saver.client):
        assert saver.moves.patience_s == PATIENCE_S == InMemorySaver().moves.patience_s
        setup = Setup(redis_url, "w", ("q",), KEYS)
        assert Work(setup, {}).moves.patience_s == AWAY_S > PATIENCE_S
