"""Somebody writes into a thread's log: others don't suffer, it is named, and a cut takes out that and nothing else."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everstep.cli import main
from everstep.embedded import EmbeddedServer
from everstep_checkpoint.errors import Conflict, CorruptEntry, NewerVersion, ServerFull, UnknownThread
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at, states, verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.moves.connection import server_run_id
from everstep_scheduler.reading.derive import derive
from everstep_scheduler.recovery import mending, recovery
from everstep_scheduler.recovery.mending import Mending, cut, look
from everstep_scheduler.recovery.recovery import recover
from faults import KEYS as FLEET_KEYS
from faults import Fleet
from hand import KEYS, LEASE_MS, THREAD, Hand
from servers import StartServer, wait_for
from test_recovery import State, graph, picture, story, wake

LOG = KEYS.log(THREAD)
Rows = list[tuple[bytes, dict[bytes, bytes]]]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests have no other workers to wait for."""
    monkeypatch.setattr(recovery, "MARGIN_S", 0.0)


def chain() -> StateGraph:
    made = StateGraph(State)
    for name in "abc":
        made.add_node(name, lambda state: {"count": state["count"] + 1})
    for pair in ((START, "a"), ("a", "b"), ("b", "c"), ("c", END)):
        made.add_edge(*pair)
    return made


@pytest.fixture
def hand(client: Any) -> Hand:
    """A thread in the middle of a run: `b` is leased."""
    made = Hand(client, chain())
    recover(client, KEYS)
    made.submit("r1")
    for _ in range(2):
        made.claim()
        made.do()
    made.claim()
    return made


def rows(client: Any) -> Rows:
    found: Rows = client.xrange(LOG)
    return found


def unshown(bad: mending.Bad, fields: dict[bytes, bytes]) -> None:
    """Nobody reads it."""


def harmed(client: Any, harm: Callable[[Rows], Rows]) -> None:
    """The log as if it had been stored otherwise."""
    stored = harm(rows(client))
    client.delete(LOG)
    for entry_id, fields in stored:
        client.xadd(LOG, fields, id=entry_id)


JUNK: dict[str, tuple[str, dict[Any, Any]]] = {
    "foreign, numbered by the clock": ("*", {"some": "junk"}),
    "foreign, far ahead": ("999-0", {"some": "junk"}),
    "foreign, among the step's facts": ("3-1", {"some": "junk"}),
    "bytes that are no text": ("999-0", {b"\xff\xfe": b"\x00\xff"}),
    "a checkpoint in the right place with a broken field": ("4-0", {"v": 1, "kind": "checkpoint", "next": "[["}),
    "a checkpoint in the right place that builds on nothing": (
        "4-0", {"v": 1, "kind": "checkpoint", "digest": "x" * 43, "next": "[]", "step": 3, "run": "r1"},
    ),
    "a checkpoint far ahead": ("999-0", {"v": 1, "kind": "checkpoint", "digest": "x" * 43, "next": "[]"}),
    "a fact of no step": ("999-3", {"v": 1, "kind": "note", "run": "r1"}),
    "a fact with a broken number": ("3-1", {"v": 1, "kind": "run_rested", "run": "r1", "at": "noon"}),
    "a fact with a wrong sum": ("3-1", {"v": 1, "kind": "task_done", "task": "p0", "run": "r1", "sum": "x", "at": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", JUNK)
def test_a_cut_takes_out_the_foreign_entry_and_nothing_else(hand: Hand, kind: str) -> None:
    client: Any = hand.client
    before, indexes = rows(client), picture(client)
    entry_id, fields = JUNK[kind]
    written = client.xadd(LOG, fields, id=entry_id).decode()

    found = look(client, KEYS, THREAD)
    assert [bad.id for bad in found.bad] == [found.mark] == [written] and found.upto == "3-0"
    assert rows(client)[:-1] == before, "a look changes nothing"

    shown: list[dict[bytes, bytes]] = []
    done = cut(client, KEYS, THREAD, found.mark, lambda bad, raw: shown.append(raw))
    assert (done.removed, done.upto, done.stray) == (1, "3-0", False)
    assert shown == [{_bytes(name): _bytes(value) for name, value in fields.items()}]
    assert rows(client) == before and look(client, KEYS, THREAD).sound
    assert picture(client) == indexes, "the lease lives on, its indexes were right"
    hand.drive()
    assert derive(hand.log, THREAD).status == "done" and verify(hand.log, THREAD).sound
    assert not client.exists(KEYS.recovery, KEYS.mended(THREAD))


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def test_many_foreign_entries_go_at_once_each_shown_once(hand: Hand) -> None:
    for i in range(700):
        hand.client.xadd(LOG, {"i": i})
    shown: list[str] = []
    found = look(hand.client, KEYS, THREAD)
    assert cut(hand.client, KEYS, THREAD, found.mark, lambda bad, _: shown.append(bad.id)).removed == 700
    assert shown == [bad.id for bad in found.bad]
    hand.drive()
    assert verify(hand.log, THREAD).sound


def test_what_was_removed_by_hand_still_stands_in_the_numbering_until_a_cut(hand: Hand) -> None:
    """On newer servers XSETID does not go back behind an entry that was removed."""
    hand.client.xadd(LOG, {"some": "junk"}, id="999-0")
    hand.client.xdel(LOG, "999-0")
    found = look(hand.client, KEYS, THREAD)
    assert found.mark == "999-0" and found.bad == () and not found.sound
    assert cut(hand.client, KEYS, THREAD, "999-0", unshown).removed == 0
    hand.drive()
    assert derive(hand.log, THREAD).status == "done"


def test_a_look_at_a_thread_that_moves_takes_nothing_for_removed(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    read = mending.Walk.read

    def moving(self: mending.Walk, *told: Any) -> mending.Walk:
        walked = read(self, *told)
        hand.do()
        return walked

    monkeypatch.setattr(mending.Walk, "read", moving)
    assert look(hand.client, KEYS, THREAD).sound


def test_a_sound_log_loses_nothing_to_any_cut(hand: Hand) -> None:
    before = rows(hand.client)
    for mark in ("3-0", "2-0", "999-0"):
        with pytest.raises(Conflict, match="nothing is to be cut"):
            cut(hand.client, KEYS, THREAD, mark, unshown)
    hand.client.xadd(LOG, {"some": "junk"}, id="999-0")
    with pytest.raises(Conflict, match="the first entry to cut is 999-0, not 3-0"):
        cut(hand.client, KEYS, THREAD, "3-0", unshown)
    assert rows(hand.client)[:-1] == before
    with pytest.raises(UnknownThread):
        look(hand.client, KEYS, "nobody")


def test_everstep_s_own_checkpoints_behind_a_broken_one_are_never_cut(hand: Hand) -> None:
    hand.drive()

    def break_2(stored: Rows) -> Rows:
        return [(i, {**raw, b"delta": b"\x00\x80"} if i == b"2-0" else raw) for i, raw in stored]

    harmed(hand.client, break_2)
    before = rows(hand.client)
    with pytest.raises(CorruptEntry, match=r"checkpoint 2: its digest .* stand behind it, as 3-0") as said:
        look(hand.client, KEYS, THREAD)
    assert "nothing was cut; `everstep fork t --at 000000000001-" in said.value.fix
    with pytest.raises(CorruptEntry):
        cut(hand.client, KEYS, THREAD, "2-0", unshown)
    assert rows(hand.client) == before


@pytest.mark.parametrize("gone", [b"1-0", b"2-0"])
def test_values_are_never_read_over_a_checkpoint_that_is_gone(hand: Hand, gone: bytes) -> None:
    hand.drive()
    harmed(hand.client, lambda stored: [row for row in stored if row[0] != gone])
    log, behind = RedisLog(hand.client, KEYS), int(gone[:1]) + 1
    for read in (state_at, lambda log, thread: list(states(log, thread))):
        with pytest.raises(CorruptEntry, match=f"{behind}-0 .* builds on checkpoint {behind - 1}") as said:
            read(log, THREAD)
        assert said.value.thread == THREAD and "`everstep recover --thread t`" in said.value.fix
    assert not verify(log, THREAD).sound


def test_a_log_of_a_newer_format_and_one_of_nobody_are_left_alone(hand: Hand) -> None:
    hand.client.xadd(LOG, {"v": 2, "kind": "note"}, id="999-0")
    with pytest.raises(NewerVersion):
        look(hand.client, KEYS, THREAD)
    hand.client.xadd(KEYS.log("theirs"), {"some": "junk"})
    with pytest.raises(CorruptEntry, match="no entry of this log is everstep's") as said:
        look(hand.client, KEYS, "theirs")
    assert said.value.fix.endswith(f"redis-cli DEL '{KEYS.log('theirs')}'")


def test_a_log_whose_beginning_is_gone_is_not_sound_and_the_ways_out_end_at_its_key(hand: Hand) -> None:
    hand.drive()
    harmed(hand.client, lambda stored: stored[1:])
    log = RedisLog(hand.client, KEYS)
    assert verify(log, THREAD).problems[-1].startswith("its beginning is gone")
    assert verify(log, "nobody").sound
    with pytest.raises(CorruptEntry, match="names no birth") as left_out:
        derive(log, THREAD)
    assert left_out.value.fix.startswith("`everstep recover --thread t`")
    with pytest.raises(CorruptEntry) as said:
        look(hand.client, KEYS, THREAD)
    assert said.value.fix.endswith(f"redis-cli DEL '{LOG}'")


def test_a_last_checkpoint_that_came_to_harm_is_cut_and_the_run_goes_on_from_the_one_before(hand: Hand) -> None:
    """The indexes stood at 4: they are made anew, its jobs are gone, and who held a task of it commits nothing."""
    hand.do("b")
    hand.claim()
    harmed(hand.client, lambda stored: [*stored[:-1], (stored[-1][0], {**stored[-1][1], b"delta": b"\x00\x80"})])
    found = look(hand.client, KEYS, THREAD)
    assert found.mark == "4-0" and found.upto == "3-0"
    assert cut(hand.client, KEYS, THREAD, "4-0", unshown).stray
    assert hand.do("c") == "fenced"
    hand.drive()
    assert verify(hand.log, THREAD).sound and derive(hand.log, THREAD).status == "done"
    assert hand.client.zcard(KEYS.leases) == 0 and hand.client.hget(KEYS.counts, "g") in (None, b"0")


@pytest.mark.parametrize("moment", range(11))
def test_at_any_moment_of_a_wide_run_a_rebuild_leaves_the_log_out_and_the_cut_brings_it_back(
    client: Any, moment: int
) -> None:
    boom = [False]
    hand = Hand(client, graph(lambda: boom[0]))
    recover(client, KEYS)
    steps = story(hand, boom)
    for _ in range(moment + 2):
        next(steps)
    found = client.xadd(LOG, {"some": "junk"}).decode()
    assert [text.partition(":")[0] for text in recover(client, KEYS).skipped] == [THREAD]
    assert not client.exists(KEYS.thread(THREAD), KEYS.open(THREAD), KEYS.leases)
    assert cut(client, KEYS, THREAD, found, unshown).stray
    hand.held.clear()
    boom[0] = False
    for _ in range(3):
        wake(client)
        hand.drive()
    told = derive(hand.log, THREAD)
    assert told.status == "done" and verify(hand.log, THREAD).sound
    assert client.zcard(KEYS.leases) == client.zcard(KEYS.wakes) == 0


def test_entries_that_come_while_the_log_is_being_mended_are_kept(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign fact in the open step does not stop the thread: it moves between the copy and the exchange."""
    hand.client.xadd(LOG, {"some": "junk"}, id="3-1")
    copied: list[int] = []
    copy = Mending._copy

    def moving(self: Mending, walk: mending.Walk) -> None:
        copy(self, walk)
        copied.append(walk.length)
        if hand.held:
            hand.do()

    monkeypatch.setattr(Mending, "_copy", moving)
    assert cut(hand.client, KEYS, THREAD, "3-1", unshown).upto == "4-0"
    assert copied == [5, 6]
    hand.drive()
    assert verify(hand.log, THREAD).sound and derive(hand.log, THREAD).status == "done"


def test_a_thread_that_never_holds_still_is_said_so_and_is_left_whole(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.client.xadd(LOG, {"some": "junk"}, id="3-1")
    copy = Mending._copy

    def moving(self: Mending, walk: mending.Walk) -> None:
        copy(self, walk)
        hand.client.xadd(LOG, {"v": 1, "kind": "note", "run": "r1", "at": 1}, id="3-*")

    monkeypatch.setattr(Mending, "_copy", moving)
    with pytest.raises(Conflict, match="the thread moved 10 times"):
        cut(hand.client, KEYS, THREAD, "3-1", unshown)
    assert len(rows(hand.client)) == 5 + 10
    assert not hand.client.exists(KEYS.recovery, KEYS.mended(THREAD))


def test_a_cut_that_dies_before_the_exchange_leaves_the_log_as_it_was(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.client.xadd(LOG, {"some": "junk"}, id="999-0")
    before = rows(hand.client)

    class Dead(BaseException):
        pass

    def dies(self: Mending, walk: mending.Walk) -> None:
        raise Dead

    with monkeypatch.context() as patched:
        patched.setattr(Mending, "_take_its_place", dies)
        with pytest.raises(Dead):
            cut(hand.client, KEYS, THREAD, "999-0", unshown)
    assert rows(hand.client) == before
    assert cut(hand.client, KEYS, THREAD, "999-0", unshown).removed == 1


def test_a_cut_that_lost_the_lock_changes_nothing(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    hand.client.xadd(LOG, {"some": "junk"}, id="999-0")
    before = rows(hand.client)
    copy = Mending._copy

    def robbed(self: Mending, walk: mending.Walk) -> None:
        copy(self, walk)
        hand.client.set(KEYS.recovery, "another")

    monkeypatch.setattr(Mending, "_copy", robbed)
    with pytest.raises(Conflict, match="took the recovery lock"):
        cut(hand.client, KEYS, THREAD, "999-0", unshown)
    assert rows(hand.client) == before and hand.client.get(KEYS.recovery) == b"another"


def test_a_full_server_refuses_the_copy_and_keeps_the_log(own_server: StartServer) -> None:
    with connect(own_server().url) as made:
        client: Any = made.redis
        hand = Hand(client, chain())
        recover(client, KEYS)
        hand.submit("r1")
        client.xadd(LOG, {"some": "junk"}, id="999-0")
        before = rows(client)
        client.config_set("maxmemory", "100kb")
        assert look(client, KEYS, THREAD).mark == "999-0"
        with pytest.raises(ServerFull):
            cut(client, KEYS, THREAD, "999-0", unshown)
        assert rows(client) == before
        client.config_set("maxmemory", "0")
        cut(client, KEYS, THREAD, "999-0", unshown)
        hand.drive()
        assert derive(hand.log, THREAD).status == "done"


# --- the others meanwhile ---


def test_an_obstructed_log_holds_up_no_other_thread_s_lease_and_keeps_its_own_task_whole(hand: Hand) -> None:
    """The sweep, the pool's release and a parking go on; the task stays where it is until the log is mended."""
    client: Any = hand.client
    hand.submit("r2", "other")
    hand.claim()
    client.xadd(LOG, {"some": "junk"}, id="999-0")
    indexes = picture_of_open(client)
    obstructed, other = hand.held
    for token in (obstructed.token, other.token):
        client.zadd(KEYS.leases, {token: 1})
    server = server_run_id(client)
    hand.moves.sweep(server, LEASE_MS)
    client.hset(KEYS.sweep, "hold", 0)
    assert hand.moves.sweep(server, LEASE_MS)["lost"] == 1
    assert client.hget(KEYS.thread("other"), "status") == b"running" and client.llen(KEYS.rq_queue("g")) == 1
    assert hand.moves.release(hand.owner, None, "lost") == 0
    assert hand.moves.release(hand.owner, [obstructed.token], "parked", "no such node") == 0
    assert picture_of_open(client) == indexes and client.zscore(KEYS.leases, obstructed.token) > 1
    cut(client, KEYS, THREAD, "999-0", unshown)
    client.zadd(KEYS.leases, {obstructed.token: 1})
    assert hand.moves.sweep(server, LEASE_MS)["lost"] == 1
    hand.held.clear()
    hand.drive()
    assert derive(hand.log, THREAD).status == derive(hand.log, "other").status == "done"


def picture_of_open(client: Any) -> dict[bytes, dict[str, Any]]:
    return {task: json.loads(raw) for task, raw in client.hgetall(KEYS.open(THREAD)).items()}


def test_a_failed_task_that_is_requeued_by_hand_on_an_obstructed_log_stops_no_claim(client: Any) -> None:
    boom = [True]
    hand = Hand(client, graph(lambda: boom[0], 1))
    recover(client, KEYS)
    hand.submit("r1")
    for _ in range(3):
        wake(client)
        hand.drive()
    (failed,) = client.zrange(KEYS.rq_failed("g"), 0, -1)
    client.xadd(LOG, {"some": "junk"}, id="999-0")
    client.rpush(KEYS.rq_queue("g"), failed)
    hand.submit("r2", "other")
    offer = hand.offer(4)
    spared = hand.moves.claim(offer)
    assert [lease.thread for lease in spared.leases] == ["other"]
    assert client.zrange(KEYS.rq_failed("g"), 0, -1) == [failed]


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


@pytest.mark.parametrize("graph", ["chain", "achain"])
def test_beside_a_live_worker_the_log_is_mended_and_the_run_goes_on(fleet: Fleet, graph: str) -> None:
    """Its outcome is refused, and others are worked on; after the cut the attempt is lost and the task done again."""
    worker = fleet.worker(graph, concurrency=2, lease_ms=1500)
    bad = fleet.submit(graph, gated="b")
    fleet.began(bad, "b")
    written = fleet.redis.xadd(FLEET_KEYS.log(bad), {"some": "junk"}).decode()
    fleet.open_gate()
    wait_for(lambda: "takes no entry behind it" in worker.said, 10, "the outcome to be refused")
    fleet.rests(*(fleet.submit(graph) for _ in range(4)))
    with pytest.raises(CorruptEntry, match="is not readable"), connect(fleet.url) as client:
        client.cancel(bad)
    assert fleet.executions(bad)["b"] == 1, "it is not run again and again meanwhile"
    done = cut(fleet.redis, FLEET_KEYS, bad, written, unshown)
    assert not done.stray
    fleet.settled(bad)
    assert fleet.executions(bad) == {"a": 1, "b": 2, "c": 1}
    worker.signal(signal.SIGTERM)
    assert worker.popen.wait(10) == 0


def test_two_operators_at_once_cut_once(hand: Hand) -> None:
    hand.client.xadd(LOG, {"some": "junk"}, id="999-0")
    said: list[str] = []

    def one() -> None:
        try:
            said.append(str(cut(hand.client, KEYS, THREAD, "999-0", unshown).removed))
        except Conflict as error:
            said.append(error.what)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(said) == ["1", "nothing is to be cut, not 999-0"]


# --- the words ---


def test_the_command_line_names_shows_and_cuts(hand: Hand, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--url", redis_url]
    assert main([*at, "recover", "--thread", THREAD]) == 0
    hand.client.xadd(LOG, {"some": b"\xff"}, id="999-0")
    for words in (["cancel", THREAD], ["state", THREAD], ["result", THREAD, "--timeout", "1"]):
        assert main([*at, *words]) == 7
        error = capsys.readouterr().err
        assert "entry 999-0" in error and "everstep recover --thread t" in error
    assert main([*at, "recover", "--cut", "999-0"]) == 2
    assert main([*at, "recover", "--thread", THREAD]) == 7
    looked = capsys.readouterr()
    assert f"fix: everstep recover --url {redis_url} --thread t --cut 999-0" in looked.err
    assert json.loads(looked.out)["fields"] == [["some", {"base64": "/w=="}]]
    assert main([*at, "recover", "--thread", THREAD, "--cut", "999-0"]) == 0
    assert capsys.readouterr().out == looked.out
    assert main([*at, "cancel", THREAD]) == 0
