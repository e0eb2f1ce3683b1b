"""Quick nodes: one thread runs them one behind the other, with its commits under way meanwhile. Nobody waits for a slow
one among them, and whatever breaks under way, each node runs once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import pytest
import redis

from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.contract import Offer
from everstep_workers.hands import UNDER_WAY_MAX, Hand, Hands
from everstep_workers.slots import Held
from everstep_workers.tempo import AHEAD_LEAST, AHEAD_MOST, MOMENT_S, STUCK_S, WAITS_S, Tempo
from everstep_workers.work import Posted
from hand import lease_of
from proxy import FaultProxy
from servers import wait_for
from test_worker import KEYS, Client, State, graph, running

STEPS = 5


@pytest.fixture
def at(redis_url: str, client: redis.Redis) -> Client:
    return Client(redis_url, client)


class Counting:
    """Quick nodes that count their runs by thread; those of runs named `gate` stay until they are let go."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, str]] = Counter()
        self.threads: Counter[str] = Counter()
        self.gate = threading.Event()

    def node(self, word: str) -> object:
        def run(state: State) -> State:
            name = state.get("name", "")
            self.runs[name, word] += 1
            self.threads[threading.current_thread().name] += 1
            if name.startswith("gate") and word == "n2":
                assert self.gate.wait(30)
            return {"seen": [word]}

        return run

    def spec(self) -> GraphSpec:
        return graph("quick", **{f"n{i}": self.node(f"n{i}") for i in range(STEPS)})  # type: ignore[arg-type]


def finished(at: Client) -> int:
    return int(at.redis.zcard(KEYS.threads("done")))


@pytest.mark.source
def test_quick_nodes_are_run_by_one_thread_which_has_its_commits_under_way(
    at: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, most = Counting(), 0
    spec = counting.spec()
    collected = Hand._collected  # pyright: ignore[reportPrivateUsage]

    def looked(hand: Hand) -> list[Held]:
        nonlocal most
        most = max(most, len(hand._posted))  # pyright: ignore[reportPrivateUsage]
        return collected(hand)

    monkeypatch.setattr(Hand, "_collected", looked)
    for i in range(150):
        at.submit(spec, name=f"run{i}")
    with running(at.url, spec):
        wait_for(lambda: finished(at) == 150, 60, "all runs to end")
    most_busy = sum(count for _, count in counting.threads.most_common(3))  # a leader gives way where it is held up
    assert most_busy > 0.6 * sum(counting.threads.values())
    assert most == UNDER_WAY_MAX
    assert set(counting.runs.values()) == {1}


def test_what_waits_behind_a_slow_node_goes_to_other_threads(at: Client) -> None:
    counting = Counting()
    spec = counting.spec()
    for i in range(60):
        at.submit(spec, name=f"gate{i}" if i % 20 == 7 else f"run{i}")
    with running(at.url, spec):
        wait_for(lambda: finished(at) == 57, 60, "all runs but the three that wait to end")
        counting.gate.set()
        wait_for(lambda: finished(at) == 60, 20, "the others to end")
    assert set(counting.runs.values()) == {1}


@pytest.mark.source
def test_inputs_stay_with_one_thread_of_a_worker_that_knows_no_node_yet(
    at: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are over in a moment, whatever its nodes are like: a thread each would only be in the way of the others."""
    threads = Counter[str]()
    stepped = Hand._step  # pyright: ignore[reportPrivateUsage]

    def counted(hand: Hand, held: Held) -> None:
        threads[hand.name] += 1
        stepped(hand, held)

    monkeypatch.setattr(Hand, "_step", counted)
    spec = graph("inputs", elsewhere=lambda state: {})
    spec = replace(spec, nodes={name: replace(node, queue="elsewhere") for name, node in spec.nodes.items()})
    for i in range(80):
        at.submit(spec, name=f"run{i}")
    with running(at.url, spec, queues=["inputs"]):
        wait_for(lambda: at.redis.llen(KEYS.rq_queue("elsewhere")) == 80, 30, "all inputs to be applied")
    assert threads.total() == 80
    assert max(threads.values()) > 60, "the front claims, too, where it has not for a second"


@pytest.mark.source
@pytest.mark.parametrize("tokens", [(), ("t",)])
def test_a_stuck_thread_is_relieved_of_a_commit_under_way_also_if_that_offers_nothing(tokens: tuple[str, ...]) -> None:
    """Its slot comes back with the answer alone: unread, it was gone for as long as the node ran."""
    nobody: Any = None
    hands, relieved = Hands(nobody), list[Hand]()
    hand = Hand(nobody, hands, "stuck")
    hands._all.append(hand)
    with mock.patch.object(Hand, "relieve", lambda each: relieved.append(each)), mock.patch.object(Hand, "stuck", True):
        hands.relieve()
        assert relieved == [], "nothing waits behind it"
        hand._posted.append(Posted((), Offer("me", tokens), 0, nobody))
        hands.relieve()
        hand._posted.clear()
        hand._ready.append(nobody)
        hands.relieve()
    assert relieved == [hand, hand]


@pytest.mark.source
def test_a_thread_is_stuck_only_if_it_was_at_its_attempt_when_somebody_looked_before() -> None:
    """After a pause of the whole process each attempt seems to take long: on busy cores others took a leader's work."""
    nobody: Any = None
    hand = Hand(nobody, Hands(nobody), "put aside")

    def looked(began: float, now: float) -> tuple[bool, bool]:
        hand._began = began
        with mock.patch.object(time, "monotonic", lambda: now):
            unsure = hand.look()
        return hand.stuck, unsure

    assert looked(10.0, 10.0 + STUCK_S / 2) == (False, False)
    assert looked(10.1, 10.5) == (False, True), "nobody looked meanwhile"
    assert looked(10.6, 11.0) == (False, True), "it got on"
    assert looked(10.6, 11.0 + STUCK_S / 4) == (False, True), "two looks at one moment"
    assert looked(10.6, 11.0 + STUCK_S) == (True, False)
    hand._began = 0.0
    assert not hand.stuck, "it is at none"
    assert [looked(0.0, 20.0), looked(0.0, 30.0)] == [(False, False)] * 2


def test_commits_under_way_when_the_connection_breaks_are_sent_again_and_no_node_is(
    at: Client, proxy: FaultProxy
) -> None:
    counting = Counting()
    spec = counting.spec()
    for i in range(120):
        at.submit(spec, name=f"run{i}")
    cuts = 0
    with running(proxy.url, spec):
        while finished(at) < 120:
            passed = 20 * (cuts + 1)
            wait_for(
                partial(lambda some: counting.runs.total() > some or finished(at) == 120, passed), 30, "steps to pass"
            )
            proxy.cut()
            cuts += 1
    assert cuts > 5
    assert set(counting.runs.values()) == {1}


def test_what_a_draining_thread_has_not_begun_goes_back(at: Client) -> None:
    counting = Counting()
    spec = counting.spec()
    for i in range(40):
        at.submit(spec, name=f"gate{i}" if i == 20 else f"run{i}")
    with running(at.url, spec, concurrency=3) as worker:
        wait_for(lambda: counting.runs["gate20", "n2"], 30, "the node that waits to begin")
        worker.drain()
        wait_for(lambda: at.redis.hlen(KEYS.held(worker.name)) == 1, 20, "all but the one that runs to be given back")
        counting.gate.set()
    assert max(counting.runs.values()) == 1
    with running(at.url, spec):
        wait_for(lambda: finished(at) == 40, 60, "another worker to go on")
    assert set(counting.runs.values()) == {1}


class Busy:
    """A thread that may lead."""

    def __init__(self, coming: int = 0, stuck: bool = False) -> None:
        self.coming = coming
        self.stuck = stuck


def held(node: str) -> Held:
    return Held(lease_of(graph="g", node=node))


HELD = held("n")


def quick() -> Tempo:
    tempo = Tempo()
    for _ in range(50):
        tempo.ended(HELD, 0.0001, 0.0001)
    assert tempo.quick
    return tempo


def test_only_the_leader_takes_more_and_no_more_than_it_can_use() -> None:
    tempo, first, other = quick(), Busy(), Busy()
    assert tempo.room() == AHEAD_MOST, "nobody leads: a claim may bring some"
    tempo.take_lead(first)
    tempo.take_lead(other)
    assert (tempo.leader, tempo.room(first), tempo.room(other), tempo.room()) == (first, AHEAD_MOST, 0, 0)
    first.coming = AHEAD_MOST - 1
    assert tempo.room(first) == 1


def test_the_longer_quick_nodes_take_the_fewer_wait_in_one_process() -> None:
    tempo, rooms = quick(), list[int]()
    for took in (0.0001, 0.0005, 0.001, 0.0019):
        for _ in range(100):
            tempo.ended(HELD, took, took)
        rooms.append(tempo.room())
    assert rooms == sorted(rooms, reverse=True)
    assert (rooms[0], rooms[-1]) == (AHEAD_MOST, AHEAD_LEAST)


def test_of_nodes_that_are_over_at_once_nobody_looks_how_much_they_compute() -> None:
    tempo = quick()
    assert not tempo.looks
    tempo.ended(HELD, 2 * WAITS_S, None)
    assert tempo.looks and tempo.quick, "one that was not looked at says nothing of how nodes wait"
    for _ in range(100):
        tempo.ended(HELD, WAITS_S, 0.0)
    tempo.ended(HELD, 2 * WAITS_S, 0.0)
    assert not tempo.quick
    for _ in range(100):
        tempo.ended(HELD, WAITS_S / 10, None)
    assert tempo.quick


def test_a_leader_that_is_stuck_gives_way() -> None:
    tempo, first, other = quick(), Busy(), Busy()
    tempo.take_lead(first)
    first.stuck = True
    assert tempo.room() > 0
    tempo.take_lead(other)
    assert tempo.leader is other


def test_a_node_that_took_long_the_last_time_is_not_expected_to_be_over_at_once() -> None:
    """So that what is ready is sent before it begins."""
    tempo, slow, other = quick(), held("slow"), held("other")
    tempo.ended(slow, 2 * MOMENT_S, 2 * MOMENT_S)
    assert tempo.quick
    assert (tempo.expects(slow), tempo.expects(HELD), tempo.expects(other)) == (False, True, True)
    tempo.ended(slow, MOMENT_S / 2, None)
    assert tempo.expects(slow)


@pytest.mark.parametrize("took", [(2 * MOMENT_S, 2 * MOMENT_S), (MOMENT_S / 2, 0.0)], ids=["computes", "waits"])
def test_nodes_that_take_their_time_or_wait_are_not_quick(took: tuple[float, float]) -> None:
    tempo = quick()
    for _ in range(100):
        tempo.ended(HELD, *took)
    assert not tempo.quick
