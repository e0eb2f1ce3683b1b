"""Leases where entries are signed: an index or a job that somebody changed runs nothing that is not due.

The attacker of these tests may do to Redis what they like, and has seen all that was ever signed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import EverstepError
from everstep_checkpoint.replay import state_at
from everstep_checkpoint.signing import KEY
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START
from hand import KEYS, THREAD, Hand
from signed import CONFIG, ONE, RAN, State, chain, edit, facts, node, plant, raw, refused, saver_at, wide


@pytest.fixture(autouse=True)
def _signed(monkeypatch: pytest.MonkeyPatch) -> None:
    RAN.clear()
    monkeypatch.setenv(KEY, f"k1:{ONE}")


@pytest.fixture
def hand(client: Any) -> Hand:
    return Hand(client, chain("one", "two", "three"))


def in_the_middle(hand: Hand) -> None:
    """`one` is done, the job of `two` waits."""
    hand.submit("r")
    for _ in range(2):
        hand.claim()
        hand.do()
    assert RAN == ["one"]


def a_record_with_another_node(hand: Hand) -> str:
    edit(hand.client, "p0", n="danger")
    return "its index says node 'danger', and what is signed says 'two'"


def a_task_that_nobody_named(hand: Hand) -> str:
    record = json.loads(hand.client.hget(KEYS.open(THREAD), "p0"))
    hand.client.hdel(KEYS.open(THREAD), "p0")
    hand.client.hset(KEYS.open(THREAD), "p7", json.dumps({**record, "n": "danger"}))
    named = json.dumps({"thread": THREAD, "n": 3, "task": "p7", "keys": KEYS.stem})
    hand.client.hset(KEYS.rq_job(record["j"]), mapping={"everstep": named})
    return "no task of that name"


def an_older_checkpoint(hand: Hand) -> str:
    hand.client.hset(KEYS.thread(THREAD), mapping={"n": 2, "digest": raw(hand.client, "2-0")[b"digest"]})
    return ""


def another_graph(hand: Hand) -> str:
    hand.client.hset(KEYS.thread(THREAD), "graph", "h")
    hand.performer.graphs = {**hand.performer.graphs, "h": chain("two").spec("h")}
    return "its graph is 'g' by what is signed, and not 'h'"


def another_birth(hand: Hand) -> str:
    hand.client.hset(KEYS.thread(THREAD), "birth", "x" * 22)
    return "the log has another checkpoint here than the index says"


def a_record_of_another_run(hand: Hand) -> str:
    fact = {**raw(hand.client, "0-1"), b"run": b"other"}
    hand.client.xadd(KEYS.log(THREAD), fact, id="3-1")
    hand.client.hset(KEYS.thread(THREAD), mapping={"conf": "3-1"})
    return "was not signed as it stands here"


def a_run_that_nobody_signed(hand: Hand) -> str:
    hand.client.hset(KEYS.thread(THREAD), "run", "other")
    return "no signed entry says that the run 'other' begins here"


def a_forged_checkpoint(hand: Hand) -> str:
    """At the head, with a digest that fits: who may read knows how to make one."""
    says = json.dumps([["p0", "danger", "g", 0]])
    last = raw(hand.client, "3-0")
    said: e.Fields = {"source": "loop", "step": 2, "graph": last[b"graph"].decode(), "run": "r", "next": says}
    made = e.checkpoint(last[b"digest"].decode(), 4, (), **said, delta=e.wrap(b"\x80"))
    hand.client.xadd(KEYS.log(THREAD), {**made, "at": 1}, id="4-0")
    hand.client.hset(KEYS.thread(THREAD), mapping={"n": 4, "digest": str(made["digest"])})
    edit(hand.client, "p0", n="danger")
    return "entry 4-0 (checkpoint) is not signed"


def a_checkpoint_of_another_thread(hand: Hand) -> str:
    found = raw(hand.client, "4-0", "u")
    hand.client.xadd(KEYS.log(THREAD), found, id="4-0")
    hand.client.hset(KEYS.thread(THREAD), mapping={"n": 4, "digest": found[b"digest"]})
    return "entry 4-0 (checkpoint) was not signed as it stands here"


def junk_for_an_entry(hand: Hand) -> str:
    hand.client.hset(KEYS.thread(THREAD), "rec", "nonsense")
    return "the index names 'nonsense', which is no entry"


CHANGES = [
    a_record_with_another_node, a_task_that_nobody_named, an_older_checkpoint, another_graph, another_birth,
    a_record_of_another_run, a_run_that_nobody_signed, a_forged_checkpoint, a_checkpoint_of_another_thread,
    junk_for_an_entry,
]  # fmt: skip


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_index_that_was_changed_runs_nothing_that_was_not_due(
    hand: Hand, change: Callable[[Hand], str], warm: bool
) -> None:
    hand.submit("r", "u")
    hand.drive()
    RAN.clear()
    in_the_middle(hand)
    why = change(hand)
    other = hand if warm else Hand(hand.client, chain("one", "two", "three"), "other")
    other.performer.graphs = hand.performer.graphs
    RAN.clear()
    for _ in range(4):
        other.claim(8)
        while other.held:
            lease = other.held[0]
            try:
                attempt = other.performer.load(lease)
                assert attempt.broken is not None, (change, lease)
                assert why in str(attempt.broken)
                other.do()
            except EverstepError as error:  # the log takes no entry there: it is put aside as any that is damaged
                other.held.clear()
                assert "end of a thread's log" in str(error) or why in str(error)
    assert not RAN


def test_a_forged_job_runs_what_is_due_or_nothing(hand: Hand) -> None:
    """A job is a pointer: it names an open task, and all else is taken from the indexes and the log."""
    in_the_middle(hand)
    hand.client.delete(KEYS.rq_queue("g"))
    for i, named in enumerate(
        [
            {"thread": THREAD, "n": 3, "task": "p0", "node": "danger"},
            {"thread": THREAD, "n": 2, "task": "p0"},
            {"thread": THREAD, "n": 3, "task": "p1"},
            {"thread": "u", "n": 3, "task": "p0"},
        ]
    ):
        hand.client.hset(
            KEYS.rq_job(f"f{i}"), mapping={"everstep": json.dumps({**named, "keys": KEYS.stem}), "origin": "g"}
        )
        hand.client.rpush(KEYS.rq_queue("g"), f"f{i}")
    while hand.held or hand.claim(1):
        hand.do()
    assert "danger" not in RAN
    assert RAN.count("one") == 1


def test_the_task_of_an_input_is_no_other_node(hand: Hand) -> None:
    hand.submit("r")
    edit(hand.client, "start", n="danger")
    refused(hand, "entry 0-1 asks for no 'start' of node 'danger'")


def test_the_input_of_a_branch_is_no_other_node(client: Any) -> None:
    """The checkpoint of an input is replayed: it names `start` itself."""
    graph = chain("one").compile(checkpointer=saver_at(client)).named("g")
    graph.invoke({"count": 1}, CONFIG)
    hand = Hand(client, graph)
    [before] = [x for x in graph.get_state_history(CONFIG) if x.next == ("__start__",)]
    graph.update_state(before.config, None, as_node="__copy__")
    graph.invoke(None, CONFIG)
    ran = list(RAN)
    graph.update_state(before.config, None, as_node="__copy__")
    assert hand.moves.start(hand.continued()).status == "started"
    for lie in ({"n": "danger"}, {"n": "__start__"}):
        if hand.client.hget(KEYS.thread(THREAD), "status") == b"failed":
            assert hand.moves.start(hand.continued()).status == "started"
        edit(client, "start", **lie)
        while hand.held or hand.claim(8):
            hand.do()
    assert [*ran, "one"] == RAN


def test_a_sibling_can_not_be_made_to_close_its_step_alone(client: Any) -> None:
    hand = Hand(client, wide())
    hand.submit("r")
    hand.claim()
    hand.do()
    client.hset(KEYS.thread(THREAD), "width", 1)
    refused(hand, "leads to 2 tasks, and the index says it is one alone")


def test_a_join_before_its_time_is_refused(client: Any) -> None:
    hand = Hand(client, wide())
    hand.submit("r")
    hand.claim()
    hand.do()
    hand.claim(1)
    hand.do()
    job = json.loads(client.hget(KEYS.open(THREAD), "p1"))
    client.hset(KEYS.open(THREAD), "join", json.dumps({**job, "n": "__join__"}))
    client.hset(
        KEYS.rq_job(job["j"]), "everstep", json.dumps({"thread": THREAD, "n": 2, "task": "join", "keys": KEYS.stem})
    )
    refused(hand, "the step is not to be joined yet: p1 is not done")


def test_an_input_is_not_applied_a_second_time(hand: Hand) -> None:
    """By its old entry, by a copy of it, and by a copy of the whole first run's entries."""
    hand.submit("r")
    hand.drive()
    ran = len(RAN)
    hand.submit("s")
    hand.client.hset(KEYS.thread(THREAD), mapping={"run": "r", "rec": "0-1", "conf": "0-1"})
    refused(hand, "checkpoint 1 has applied the input of entry 0-1 already")
    hand.client.xadd(KEYS.log(THREAD), raw(hand.client, "0-1"), id="5-*")
    copy = hand.log.read(THREAD)[-1].id
    hand.moves.start(hand.continued())
    hand.client.hset(KEYS.thread(THREAD), mapping={"run": "r", "rec": copy, "conf": copy})
    refused(hand, f"entry {copy} is a copy of 0-1")
    assert len(RAN) == ran


def test_nobody_without_the_key_passes_a_breakpoint(client: Any) -> None:
    built = chain("one", "danger")
    graph = built.compile(checkpointer=saver_at(client), interrupt_before=["danger"]).named("g")
    graph.invoke({"count": 1}, CONFIG)
    hand = Hand(client, graph)
    client.hset(KEYS.thread(THREAD), mapping={"status": "running", "left": 1, "halted": 0})
    plant(client, 3, {"a": 0, "n": "danger", "q": "g", "w": 0})
    refused(hand, "the run rests at checkpoint 3 (interrupted), and no signed entry lets it go on")
    assert graph.invoke(None, CONFIG)["seen"] == ["one", "danger"]


def test_what_let_a_run_go_on_once_lets_it_go_on_nowhere_else(client: Any) -> None:
    """A signed `continue` is copied behind the next breakpoint."""
    built = chain("one", "two", "danger")
    graph = built.compile(checkpointer=saver_at(client), interrupt_before=["two", "danger"]).named("g")
    for given in ({"count": 1}, None):
        graph.invoke(given, CONFIG)
    hand = Hand(client, graph)
    [old] = [x for x in facts(hand.log, "run_started") if x.text("kind_of_run") == "continue"]
    copy = str(client.xadd(KEYS.log(THREAD), raw(client, old.id), id="4-*"), "ascii")
    client.hset(KEYS.thread(THREAD), mapping={"status": "running", "left": 1, "halted": 0, "conf": copy})
    plant(client, 4, {"a": 0, "n": "danger", "q": "g", "w": 0})
    refused(hand, "the run rests at checkpoint 4 (interrupted), and no signed entry lets it go on")


def test_a_requeue_by_hand_is_refused_and_a_retry_is_not(client: Any) -> None:
    """`rq requeue` begins a run that nobody can have signed."""
    fails = [True]

    def one(state: State) -> State:
        if fails:
            raise ValueError("no")
        return {"seen": ["one"]}

    built = StateGraph(State)
    built.add_node("one", one)
    built.add_edge(START, "one")
    hand = Hand(client, built)
    hand.submit("r")
    hand.drive()
    fails.clear()
    [job] = client.zrange(KEYS.rq_failed("g"), 0, -1)
    client.rpush(KEYS.rq_queue("g"), job)
    refused(hand, "`rq requeue` can't sign; go on with `everstep retry`")
    assert hand.moves.start(hand.continued()).status == "started"
    hand.drive()
    assert hand.spec.values(state_at(hand.log, THREAD).channels)["seen"] == ["one"]


@pytest.mark.parametrize("keeps", [False, True])
def test_a_task_takes_no_outcome_of_what_it_did_not_call(client: Any, keeps: bool) -> None:
    """Both runs that are named are genuine: one of another thread, and an older one of the thread that it keeps."""
    inner, built = StateGraph(State), StateGraph(State)
    inner.add_node("deep", node("deep"))
    inner.add_edge(START, "deep")
    built.add_node("child", inner.compile(checkpointer=keeps or None))
    built.add_edge(START, "child")
    hand = Hand(client, built)
    hand.submit("r", "u")
    hand.drive()
    hand.submit("r")
    hand.drive()
    hand.submit("s")
    for _ in range(2):
        hand.claim()
        hand.do()
    other = facts(hand.log, "task_called", THREAD if keeps else "u")[0].text("called")
    while (record := json.loads(client.hget(KEYS.open(THREAD), "p0")))["p"] != "job":
        hand.claim(1)
        hand.do()
    client.hset(KEYS.open(THREAD), "p0", json.dumps({**record, "cl": other}))
    refused(hand, "no entry says that the task called" if keeps else "the task can't have called the thread")
