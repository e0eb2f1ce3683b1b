"""Signed entries: what somebody without a key writes, changes or moves is refused where it is read.

The attacker of these tests may do to Redis what they like, and has seen all that was ever signed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import Forged, SigningKeyError
from everstep_checkpoint.log import MemoryLog
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at, states, step_of, verify
from everstep_checkpoint.signing import FIELD, KEY, KEY_FILE, UNSIGNED, Keyring, of_environment
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.runtime import START, Command, Send
from everstep_scheduler.inline.logmoves import LogMoves
from everstep_scheduler.inline.savers import InMemorySaver
from hand import KEYS, THREAD, Hand
from signed import CONFIG, ONE, RAN, TWO, State, chain, keyring, node, raw, says


@pytest.fixture(autouse=True)
def _signed(monkeypatch: pytest.MonkeyPatch) -> None:
    RAN.clear()
    monkeypatch.setenv(KEY, f"k1:{ONE}")


@pytest.fixture
def hand(client: Any) -> Hand:
    return Hand(client, chain("one", "two", "three"))


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
        copy.copy(keyring())


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
