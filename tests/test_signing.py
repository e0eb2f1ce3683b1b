"""Signed entries: what somebody writes into Redis who has no key is refused, and runs nothing.

The attacker of these tests may do to Redis what they like, and has seen all that was ever signed.
"""

from __future__ import annotations

import base64
import json
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN
from everstep_checkpoint.errors import EverstepError, Forged, SigningKeyError
from everstep_checkpoint.log import Log, MemoryLog, new_id
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at, states, step_of, verify
from everstep_checkpoint.signing import FIELD, KEY, KEY_FILE, UNSIGNED, Keyring, of_environment
from everstep_scheduler.client.client import Client, publish
from everstep_scheduler.client.inbox import InboxReader
from everstep_scheduler.client.migrating import apply, plan
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.options import CachePolicy
from everstep_scheduler.graph.runtime import END, START, Command, Send
from everstep_scheduler.inline.logmoves import LogMoves
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from everstep_scheduler.recovery import mending
from everstep_scheduler.steps.caches import RedisCache
from everstep_workers.worker import Worker
from hand import KEYS, THREAD, Hand
from servers import wait_for
from test_worker import running

ONE, TWO = base64.b64encode(b"1" * 32).decode(), base64.b64encode(b"2" * 32).decode()
CONFIG: Any = {"configurable": {"thread_id": THREAD}}


class State(TypedDict, total=False):
    count: int
    seen: Annotated[list[str], operator.add]


RAN: list[str] = []


def node(name: str) -> Callable[[State], State]:
    def runs(state: State) -> State:
        RAN.append(name)
        return {"seen": [name]}

    return runs


def says(word: str) -> Callable[[State], State]:
    return lambda state: {"seen": [word]}


def chain(*names: str) -> StateGraph:
    """Nodes one behind the other, and `danger`, to which nothing leads here."""
    built = StateGraph(State)
    for name in dict.fromkeys([*names, "danger"]):
        built.add_node(name, node(name))
    for one, two in zip([START, *names[:-1]], names, strict=True):
        built.add_edge(one, two)
    built.add_conditional_edges(names[-1], lambda state: END, ["danger", END])
    return built


def wide() -> StateGraph:
    built = StateGraph(State)
    for name in ("left", "right", "last", "danger"):
        built.add_node(name, node(name))
    built.add_edge(START, "left")
    built.add_edge(START, "right")
    built.add_edge(["left", "right"], "last")
    built.add_conditional_edges("last", lambda state: END, ["danger", END])
    return built


def keyring(**keys: str) -> Keyring:
    return Keyring({name: base64.b64decode(key) for name, key in (keys or {"k1": ONE}).items()})


@pytest.fixture(autouse=True)
def _signed(monkeypatch: pytest.MonkeyPatch) -> None:
    RAN.clear()
    monkeypatch.setenv(KEY, f"k1:{ONE}")


@pytest.fixture
def hand(client: Any) -> Hand:
    return Hand(client, chain("one", "two", "three"))


def facts(log: Log, kind: str, thread: str = THREAD) -> list[e.Entry]:
    return [x for x in log.read(thread) if x.kind == kind]


def raw(client: Any, at: str, thread: str = THREAD) -> dict[bytes, bytes]:
    [(_, fields)] = client.xrange(KEYS.log(thread), at, at)
    return dict(fields)


def edit(client: Any, task: str, thread: str = THREAD, **changes: Any) -> None:
    """Change the record of an open task."""
    record = json.loads(client.hget(KEYS.open(thread), task))
    client.hset(KEYS.open(thread), task, json.dumps({**record, **changes}))


def refused(hand: Hand, why: str, thread: str = THREAD) -> None:
    """All that is handed out now ends with that reason, in the log and for who looks; the run rests as failed."""
    while hand.held or hand.claim(8):
        hand.do()
    failed = facts(hand.log, "task_failed", thread)
    assert failed, hand.log.read(thread)
    assert why in json.loads(failed[-1].text("error"))["text"]
    assert "Forged" in json.loads(failed[-1].text("error"))["type"]
    assert hand.client.hget(KEYS.thread(thread), "status") == b"failed"
    assert "danger" not in RAN


# --- keys


def test_keys_come_from_the_environment_and_the_first_one_signs() -> None:
    ring = of_environment({KEY: f"new:{TWO} old:{ONE}"})
    assert ring is not None
    assert ring.ids == ("new", "old")
    assert of_environment({}) is None


def test_keys_come_from_a_file_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# rotated in spring\nnew:{TWO}\n\nold:{ONE}\n")
    path.chmod(0o600)
    ring = of_environment({KEY_FILE: str(path)})
    assert ring is not None
    assert ring.ids == ("new", "old")


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"k1:{ONE}\n")
    path.chmod(0o644)
    with pytest.raises(SigningKeyError, match="open to others"):
        of_environment({KEY_FILE: str(path)})


@pytest.mark.parametrize(
    "said",
    [
        {KEY: f"k1{ONE}"},
        {KEY: f"k1:{ONE[:20]}"},
        {KEY: f"k1:!{ONE}"},
        {KEY: f"k 1:{ONE}"},
        {KEY: f"k1:{ONE} k1:{TWO}"},
        {KEY: f"k1:{ONE}", KEY_FILE: "/keys"},
        {KEY: f"k1:{ONE}", UNSIGNED: "yes"},
        {KEY_FILE: "/no/such/file"},
        {KEY_FILE: "/"},
        {KEY: "# nothing"},
    ],
)
def test_keys_that_are_none_are_refused_and_never_shown(said: dict[str, str]) -> None:
    with pytest.raises(SigningKeyError) as caught:
        of_environment(said)
    assert ONE[:10] not in f"{caught.value}{caught.value!r}{caught.value.__dict__}"


def test_a_keyring_shows_no_key_and_is_not_sent() -> None:
    assert repr(keyring()) == "Keyring(k1)"
    assert b"1111" not in repr(keyring().__dict__.keys()).encode()
    with pytest.raises(TypeError):
        pickle.dumps(keyring())


# --- entries


def remembered(*, signer: Keyring | None = None) -> MemoryLog:
    """The log of a graph with a wide step, an answer, an effect and a Command; each entry signed."""

    def asks(state: State) -> State:
        once("paid", lambda: 1)
        return {"seen": [interrupt("well?")]}

    built = StateGraph(State)
    built.add_node("asks", asks)
    built.add_node("sent", node("sent"))
    built.add_node("more", node("more"))
    built.add_edge(START, "asks")
    built.add_conditional_edges("asks", lambda state: [Send("sent", state)] * 2, ["sent", "more"])
    answer: Command[Any] = Command(resume="yes")
    command: Command[Any] = Command(goto=["more", Send("sent", {})], update={"count": 2})
    return in_memory(built, {"count": 1}, answer, command, signer=signer)


def in_memory(built: StateGraph, *inputs: Any, signer: Keyring | None = None) -> MemoryLog:
    """The log of a thread that ran inline with these inputs, over a log that signs."""
    saver, log = InMemorySaver(), MemoryLog(signer or keyring())
    saver.log, saver.moves = log, LogMoves(log)
    graph = built.compile(checkpointer=saver)
    for each in inputs:
        graph.invoke(each, CONFIG)
    return log


def kept(log: MemoryLog) -> list[e.Entry]:
    return log._logs[THREAD]  # pyright: ignore[reportPrivateUsage] - the attacker's hand


def test_no_field_of_an_entry_can_be_changed_added_or_taken_away() -> None:
    log = remembered()
    assert {"effect_done", "part", "task_added", "task_answered", "task_done"} <= {x.kind for x in kept(log)}
    for i, entry in enumerate(list(kept(log))):
        for name in entry.raw:
            for changed in (
                {**entry.raw, name: entry.raw[name] + b"0"},
                {k: v for k, v in entry.raw.items() if k != name},
            ):
                if name in ("v", "kind", "at") or (entry.kind.startswith("run_") and name in ("step", "of", "birth")):
                    continue
                kept(log)[i] = e.Entry(entry.n, entry.k, changed)
                if name == FIELD and entry.kind in ("run_rested", "task_added"):
                    continue  # a script would not have signed them; what was added is looked at when it is to run
                with pytest.raises(Forged, match=f"entry {entry.id} "):
                    log.read(THREAD)
        kept(log)[i] = e.Entry(entry.n, entry.k, {**entry.raw, "state": b"\x00\x80"})
        with pytest.raises(Forged):
            log.read(THREAD)
        kept(log)[i] = entry
    assert verify(log, THREAD).sound
    assert len(list(states(log, THREAD)))


def test_an_entry_of_another_thread_is_refused() -> None:
    log = remembered()
    log._logs["other"], log._heads["other"] = kept(log), (1, "")  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(Forged, match=r"was not signed as it stands here.*thread 'other'"):
        state_at(log, "other")


def test_an_entry_at_another_number_is_refused() -> None:
    log = remembered()
    for entry in kept(log):
        kept(log)[-1] = e.Entry(99, entry.k, entry.raw)
        if entry.kind in ("run_started", "run_rested"):
            continue  # one may have waited: it is looked at when its task runs; the other is a plain one
        with pytest.raises(Forged):
            log.read(THREAD, "99")


def test_facts_of_an_older_life_of_the_thread_are_refused() -> None:
    """The same thread, number and key; another chain of checkpoints."""
    old, new = remembered(), remembered()
    done = next(i for i, x in enumerate(kept(old)) if x.kind == "task_done")
    kept(new)[done] = kept(old)[done]
    with pytest.raises(Forged, match="another checkpoint"):
        step_of(new, THREAD, kept(old)[done].n)
    with pytest.raises(Forged):
        state_at(new, THREAD)
    assert not verify(new, THREAD).sound


def test_a_checkpoint_of_an_older_life_of_the_thread_is_refused() -> None:
    old, new = remembered(), remembered()
    last = next(i for i, x in reversed(list(enumerate(kept(old)))) if x.is_checkpoint)
    kept(new)[last] = kept(old)[last]
    with pytest.raises(Forged, match="does not build on"):
        state_at(new, THREAD)


def test_facts_of_a_step_can_not_change_places() -> None:
    """A delta takes what a fact wrote by its place: each of the two is genuine, and signed for this very step."""
    built = StateGraph(State)
    for name in ("left", "right"):
        built.add_node(name, says(name * 10))
        built.add_edge(START, name)
    log = in_memory(built, {"count": 1})
    one, two = [i for i, x in enumerate(kept(log)) if x.kind == "task_done"]
    a, b = kept(log)[one], kept(log)[two]
    kept(log)[one], kept(log)[two] = e.Entry(a.n, a.k, b.raw), e.Entry(b.n, b.k, a.raw)
    assert len(log.read(THREAD)) == len(kept(log))
    with pytest.raises(Forged, match="does not build on what stands before it here"):
        state_at(log, THREAD)


# --- rotation


def test_old_entries_verify_and_new_ones_are_signed_by_the_first_key() -> None:
    log = remembered(signer=keyring(k1=ONE))
    log.signer = keyring(k2=TWO, k1=ONE)
    log.append(THREAD, [e.fact("note", "r")], (kept(log)[-1].n, state_at(log, THREAD).digest))
    assert {x.text(FIELD).split(" ")[0] for x in log.read(THREAD)} == {"k1", "k2"}
    assert state_at(log, THREAD).n
    log.signer = keyring(k2=TWO)
    with pytest.raises(Forged, match=r"key 'k1', which is not among the keys here \(k2\)"):
        log.read(THREAD)


def test_a_key_of_the_same_name_is_no_key() -> None:
    log = remembered()
    log.signer = keyring(k1=TWO)
    with pytest.raises(Forged, match="was not signed as it stands here with the key 'k1'"):
        log.read(THREAD)


# --- with and without a key


def test_who_has_no_key_reads_what_is_signed(hand: Hand) -> None:
    hand.submit("r")
    hand.drive()
    reader = RedisLog(hand.client, KEYS, None)
    assert FIELD in reader.read(THREAD)[0].raw
    assert state_at(reader, THREAD).n == 5
    assert verify(reader, THREAD).sound


def test_where_signing_is_off_nothing_is_signed_and_nothing_is_asked(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY)
    hand = Hand(client, chain("one"))
    assert (hand.moves.sealer, hand.log.signer, hand.performer._gate) == (None, None, None)  # pyright: ignore
    hand.submit("r")
    hand.drive()
    assert not any(FIELD in x.raw for x in hand.log.read(THREAD))


def test_what_a_producer_without_the_key_starts_is_refused(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY)
    Hand(hand.client, chain("one")).submit("r")
    reader = RedisLog(hand.client, KEYS, None)
    while hand.claim():
        hand.do()
    [failed] = [x for x in reader.read(THREAD) if x.kind == "task_failed"]
    assert "entry 0-1 (run_started) is not signed" in failed.text("error")
    assert not RAN


def test_while_a_fleet_gets_its_keys_unsigned_entries_may_be_taken(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY)
    Hand(client, chain("one")).submit("r")
    monkeypatch.setenv(KEY, f"k1:{ONE}")
    monkeypatch.setenv(UNSIGNED, "accept")
    hand = Hand(client, chain("one"))
    hand.drive()
    assert RAN == ["one"]
    assert [FIELD in x.raw for x in hand.log.read(THREAD)] == [False, True, True, True]
    client.xadd(KEYS.log(THREAD), {**raw(client, "3-0"), b"run": b"other"}, id="4-0")
    with pytest.raises(Forged):
        hand.log.read(THREAD)


# --- what decides what runs: an index, or a job, that was changed leads to nothing


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


def plant(client: Any, n: int, record: dict[str, Any]) -> None:
    """A job for a task that is due no more, or not yet, and all that leads to it."""
    job = f"j-{n}-p0-1-abcd"
    client.hset(KEYS.open(THREAD), "p0", json.dumps({**record, "p": "job", "j": job}))
    named = json.dumps({"thread": THREAD, "n": n, "task": "p0", "keys": KEYS.stem})
    client.hset(KEYS.rq_job(job), mapping={"everstep": named, "origin": "g"})
    client.rpush(KEYS.rq_queue("g"), job)


def saver_at(client: Any) -> Any:
    """A saver at the server of a client, under the names of a hand."""
    kwargs = client.connection_pool.connection_kwargs
    saver = RedisSaver(f"unix://{kwargs['path']}" if "path" in kwargs else "redis://127.0.0.1:6379/0")
    return saver


# --- answers, effects, caches


def pays() -> str:
    RAN.append("paid")
    return "paid"


def asking() -> StateGraph:
    def asks(state: State) -> State:
        paid = once("paid", pays)
        return {"seen": [str(paid), interrupt("well?")]}

    built = StateGraph(State)
    built.add_node("asks", asks)
    built.add_edge(START, "asks")
    return built


def test_an_answer_that_nobody_signed_is_refused(client: Any) -> None:
    hand = Hand(client, asking())
    hand.submit("r")
    hand.drive()
    [asked] = facts(hand.log, "task_paused")
    forged: dict[str, Any] = {"v": 1, "kind": "task_answered", "at": 1, "run": "r", "task": "p0"}
    answer = {"question": asked.text("question"), "answer": e.wrap(PLAIN.encode("yes"))}
    ref = client.xadd(KEYS.log(THREAD), {**forged, **answer}, id=f"{asked.n}-*")
    client.hset(KEYS.thread(THREAD), mapping={"status": "running", "left": 1, "asked": 0})
    plant(client, 2, {"a": 1, "n": "asks", "q": "g", "w": 0, "an": str(ref, "ascii")})
    hand.claim()
    attempt = hand.performer.load(hand.held[0])
    assert "(task_answered) is not signed" in str(attempt.broken)
    hand.do()


def test_an_effect_that_nobody_signed_is_refused(client: Any) -> None:
    hand = Hand(client, asking())
    hand.submit("r")
    hand.claim()
    hand.do()
    forged: dict[str, Any] = {"v": 1, "kind": "effect_done", "at": 1, "run": "r", "task": "p0", "effect": "paid"}
    ref = client.xadd(KEYS.log(THREAD), {**forged, "result": e.wrap(PLAIN.encode("free"))}, id="2-*")
    edit(client, "p0", e=str(ref, "ascii"))
    hand.claim()
    hand.do()
    reader = RedisLog(client, KEYS, None)
    assert "(effect_done) is not signed" in reader.read(THREAD)[-2].text("error")
    assert not RAN


def test_an_outcome_in_the_cache_that_nobody_signed_is_not_taken(client: Any) -> None:
    built = StateGraph(State)
    built.add_node("one", node("one"), cache_policy=CachePolicy())
    built.add_edge(START, "one")
    hand = Hand(client, built)
    for run in ("r", "s"):
        hand.submit(run, run)
        hand.drive()
    assert RAN == ["one"]
    [name] = client.keys(KEYS.cache("g", "*", "*").replace("{", "[{]").replace("}", "[}]"))
    stored = bytes(client.get(name))
    client.set(name, stored.split(b" ", 2)[2])
    hand.submit("t", "t")
    hand.drive()
    assert RAN == ["one", "one"]
    cache = RedisCache(client, keys=KEYS)
    cache.put("g", "one", "a", b"value", None)
    client.set(KEYS.cache("g", "one", "b"), bytes(client.get(KEYS.cache("g", "one", "a"))))
    assert (cache.get("g", "one", "a"), cache.get("g", "one", "b")) == (b"value", None)


# --- what has to go on working


def test_what_needs_scripts_that_write_facts_works_where_entries_are_signed(client: Any) -> None:
    """Sends, a question, a Command with update, goto and Send, a subgraph, a handler, a migration, a fork, a replay."""

    def asks(state: State) -> State:
        return {"seen": [interrupt("well?")]}

    def fails(state: State) -> State:
        raise ValueError("no")

    inner = StateGraph(State)
    inner.add_node("asks", asks)
    inner.add_edge(START, "asks")
    built = StateGraph(State)
    built.add_node("child", inner.compile())
    built.add_node("fails", fails, error_handler=lambda state: {"seen": ["handled"]})
    built.add_node("sent", node("sent"))
    built.add_edge(START, "child")
    built.add_conditional_edges("child", lambda state: ["fails", Send("sent", {}), Send("sent", {})], ["fails", "sent"])
    graph = built.compile(checkpointer=saver_at(client))
    assert graph.invoke({"count": 1}, CONFIG)["__interrupt__"]
    gave = graph.invoke(Command(resume="yes"), CONFIG)
    assert gave["seen"] == ["yes", "handled", "sent", "sent"]
    gave = graph.invoke(Command(update={"seen": ["u"]}, goto=["fails", Send("sent", {})]), CONFIG)
    assert gave["seen"][4:] == ["u", "handled", "sent"]
    before = [x for x in graph.get_state_history(CONFIG) if "fails" in x.next][-1]
    assert graph.invoke(None, before.config)["seen"][:4] == ["yes", "handled", "sent", "sent"]
    graph.update_state(CONFIG, {"count": 9}, as_node="sent")
    assert graph.get_state(CONFIG).values["count"] == 9
    log = RedisLog(client, KEYS)
    assert all(verify(log, thread).sound for thread in log.threads())


def test_a_migrated_task_runs_as_its_new_node(client: Any, redis_url: str) -> None:
    hand = Hand(client, chain("one", "two"))
    in_the_middle(hand)
    publish(client, KEYS, [hand.spec])
    with Client(redis_url, KEYS, client) as at:
        made = plan(at, THREAD, lambda name, state: "danger")
        assert apply(at, made, "me") == ["p0"]
    hand.drive()
    assert RAN == ["one", "danger"]


def test_a_fork_of_a_signed_thread_is_signed_for_itself(hand: Hand) -> None:
    hand.submit("r")
    hand.drive()
    hand.log.fork(THREAD, 3, "copy")
    assert state_at(hand.log, "copy").n == 1
    assert verify(hand.log, "copy").sound
    reader = RedisLog(hand.client, KEYS, keyring(k2=TWO))
    with pytest.raises(Forged, match="key 'k1'"):
        state_at(reader, "copy")


def test_the_inbox_is_refused_unless_it_is_allowed(
    client: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = Hand(client, chain("one"))
    publish(client, KEYS, [hand.spec])
    message: Any = {"graph": "g", "thread": THREAD, "input": '{"count": 1}'}
    client.xadd(KEYS.inbox, message)
    reader = InboxReader(redis_url, KEYS)
    reader.turn()
    [(_, put_aside)] = client.xrange(KEYS.inbox_rejected)
    assert b"nobody can sign a message of the inbox" in put_aside[b"reason"]
    assert not client.exists(KEYS.log(THREAD))
    monkeypatch.setenv("EVERSTEP_SIGNING_INBOX", "allow")
    client.xadd(KEYS.inbox, message)
    reader.turn()
    hand.drive()
    assert RAN == ["one"]


# --- a real worker


def damaged(client: Any, spec_thread: str) -> str:
    """A sibling's outcome that nobody signed, in the open step of a thread."""
    forged: dict[str, Any] = {
        "v": 1,
        "kind": "task_done",
        "at": 1,
        "run": "r",
        "task": "p1",
        "node": "right",
        "token": new_id(),
    }
    writes = e.pack_writes([("seen", PLAIN.encode(["forged"]))])
    return str(client.xadd(KEYS.log(spec_thread), {**forged, "writes": writes}, id="2-*"), "ascii")


def test_a_worker_refuses_a_forged_entry_says_so_and_goes_on_once_it_is_cut_out(
    client: Any, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    hand = Hand(client, wide())
    hand.submit("r")
    hand.claim()
    hand.do()
    forged = damaged(client, THREAD)
    with running(redis_url, hand.spec) as worker:
        assert isinstance(worker, Worker)
        wait_for(lambda: client.hget(KEYS.thread(THREAD), "status") == b"failed")
        reader = RedisLog(client, KEYS, None)
        failed = [x for x in reader.read(THREAD) if x.kind == "task_failed"]
        assert all(f"entry {forged} (task_done) is not signed" in x.text("error") for x in failed)
        assert failed
        assert "last" not in RAN  # `left` and `right` are due: where the log's end can be read, they may run
        assert f"entry {forged} (task_done) is not signed" in caplog.text
        assert ONE not in caplog.text
        found = mending.look(client, KEYS, THREAD)
        assert (found.mark, found.bad[0].why) == (forged, f"entry {forged} (task_done) is not signed")
        mending.cut(client, KEYS, THREAD, forged, lambda bad, fields: None)
        with Client(redis_url, KEYS, client) as at:
            at.retry(THREAD)
        wait_for(lambda: client.hget(KEYS.thread(THREAD), "status") == b"done")
    assert hand.spec.values(state_at(hand.log, THREAD).channels)["seen"] == ["left", "right", "last"]
