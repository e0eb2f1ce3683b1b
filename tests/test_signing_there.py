"""Signed entries on workers and for people: answers, effects, caches, what has to go on working, mending.

The attacker of these tests may do to Redis what they like, and has seen all that was ever signed.
"""

from __future__ import annotations

from typing import Any

import pytest

from everstep.cli import main
from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN
from everstep_checkpoint.errors import Forged
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at, verify
from everstep_checkpoint.signing import KEY
from everstep_scheduler.client.client import Client, publish
from everstep_scheduler.client.inbox import InboxReader
from everstep_scheduler.client.migrating import apply, plan
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.options import CachePolicy
from everstep_scheduler.graph.runtime import START, Command, Send
from everstep_scheduler.recovery import mending
from everstep_scheduler.steps.caches import RedisCache
from everstep_workers.worker import Worker
from hand import KEYS, THREAD, Hand
from servers import wait_for
from signed import CONFIG, ONE, RAN, TWO, State, chain, edit, facts, keyring, node, plant, saver_at, wide
from test_worker import running


@pytest.fixture(autouse=True)
def _signed(monkeypatch: pytest.MonkeyPatch) -> None:
    RAN.clear()
    monkeypatch.setenv(KEY, f"k1:{ONE}")


@pytest.fixture
def hand(client: Any) -> Hand:
    return Hand(client, chain("one", "two", "three"))


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


def test_who_follows_a_run_is_told_of_an_entry_that_nobody_signed(client: Any) -> None:
    hand = Hand(client, chain("one"))
    hand.submit("r")
    hand.drive()
    with Client("redis://unused", KEYS, client) as user:
        assert [entry.kind for entry in user.run(THREAD, "r").entries(timeout=5)][-1] == e.CHECKPOINT
        rows = client.xrange(KEYS.log(THREAD))
        del rows[-1][1][b"sig"]
        client.delete(KEYS.log(THREAD))
        for row, raw in rows:
            client.xadd(KEYS.log(THREAD), raw, id=row)
        with pytest.raises(Forged):
            list(user.run(THREAD, "r").entries(timeout=5))
        with pytest.raises(Forged):
            user.run(THREAD, "r").result(timeout=5)


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
    hand.submit("r")
    for _ in range(2):
        hand.claim()
        hand.do()
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


def test_log_and_doctor_name_what_is_refused_and_the_keys(
    client: Any, redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = Hand(client, wide())
    hand.submit("r")
    hand.claim()
    hand.do()
    forged = damaged(client, THREAD)
    monkeypatch.setenv("EVERSTEP_URL", redis_url)
    why = f"entry {forged} (task_done) is not signed"
    assert main(["log", THREAD]) == 0
    assert [why in line for line in capsys.readouterr().out.splitlines()] == [False] * 3 + [True]
    assert main(["log", THREAD, "--verify"]) == 7
    assert why in capsys.readouterr().out
    assert main(["state", THREAD]) == 7
    main(["doctor"])
    said = capsys.readouterr().out
    assert "this process signs with the key 'k1'" in said
    assert f"thread {THREAD}: {why}" in said
    monkeypatch.delenv(KEY)
    assert main(["log", THREAD, "--verify"]) == 0
    main(["doctor"])
    assert "who may write to Redis can forge entries" in capsys.readouterr().out


def test_a_bad_key_ends_a_command_with_words(
    redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERSTEP_URL", redis_url)
    monkeypatch.setenv(KEY, f"k1:{ONE[:12]}")
    assert main(["state", THREAD]) == 2
    said = capsys.readouterr()
    assert "the signing key 'k1' has 9 bytes" in said.err
    assert ONE[:12] not in said.err + said.out
