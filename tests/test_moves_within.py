"""The table of moves for logs that an attempt keeps itself: written under its task's lease, all or nothing, once."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import Conflict, InvalidInput, ServerFull, ServerUnavailable
from everstep_checkpoint.ids import new_id
from everstep_scheduler.inline.fencedlog import FencedLog, KeptMoves
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from everstep_scheduler.moves.contract import Lease, Within
from everstep_scheduler.moves.redismoves import RedisMoves
from everstep_scheduler.steps.effects import Fenced
from test_called import calls
from test_interrupts import IN, OURS, on
from test_moves import Stage, memory
from test_moves import on as on_redis
from test_subgraphs import chain

KEPT, OTHER = "within|t|a:k", "within|t|b:k"


@pytest.fixture(name="stage", params=["memory", "fake", "server"])
def made(request: pytest.FixtureRequest) -> Stage:
    if request.param == "memory":
        return memory()
    return on_redis(fakeredis.FakeRedis(version=(7,)) if request.param == "fake" else request.getfixturevalue("client"))


def leased(stage: Stage) -> Lease:
    """A run whose only task is leased."""
    stage.start()
    stage.close(stage.take("start"), "a")
    return stage.take("p0")


def begins(thread: str = KEPT, run: str = "c1") -> Within:
    """The first entries of a log: a run, and its first checkpoint."""
    fact = e.fact("run_started", run, birth="b" * 22, task="start", node="__start__", graph="c")
    first = e.checkpoint("b" * 22, 1, source="input", step=-1, graph="c@1", run=run, next="[]", delta=e.wrap(b"\x80"))
    return Within(thread, "", (("0-1", fact), ("1-0", first)), new_id())


def more(last: str, *ids: str, thread: str = KEPT) -> Within:
    facts = [e.fact("effect_done", "c1", task="p0", effect=each, result=e.wrap(b"\x01")) for each in ids]
    return Within(thread, last, tuple(zip(ids, facts, strict=True)), new_id())


def told(stage: Stage, thread: str = KEPT) -> list[tuple[str, str]]:
    return [(x.id, x.kind) for x in stage.log.read(thread)]


BEGUN = [("0-1", "run_started"), ("1-0", "checkpoint")]


def test_what_a_lease_stands_for_is_written(stage: Stage) -> None:
    lease = leased(stage)
    assert stage.moves.within(lease, [begins()])
    assert stage.moves.within(lease, [more("1-0", "1-1", "1-2")])
    assert told(stage) == [*BEGUN, ("1-1", "effect_done"), ("1-2", "effect_done")]
    head = stage.log.head(KEPT)
    assert head is not None and (head.n, head.last) == (1, "1-2")
    assert stage.close(lease, step=1)[0] == "ok", "the thread of the task knows nothing of it"


@pytest.mark.parametrize("ends", ["given back", "lost", "done", "cancelled", "taken anew"])
def test_once_its_lease_is_gone_an_attempt_writes_nothing(stage: Stage, ends: str) -> None:
    lease = leased(stage)
    stage.moves.within(lease, [begins()])
    match ends:
        case "given back" | "taken anew":
            stage.moves.release(stage.owner, [lease.token], "job")
        case "lost":
            stage.moves.release(stage.owner, [lease.token], "lost")
        case "done":
            stage.close(lease, step=1)
        case _:
            stage.moves.cancel("t")
    if ends == "taken anew":
        assert stage.claim() == ["p0"]
        assert stage.moves.within(stage.take("p0"), [more("1-0", "1-1")])
    before = told(stage)
    assert not stage.moves.within(lease, [more(before[-1][0], "1-2")])
    assert not stage.moves.within(lease, [begins(OTHER)])
    assert told(stage) == before
    assert told(stage, OTHER) == []


def test_a_writing_sent_twice_is_written_once(stage: Stage) -> None:
    lease = leased(stage)
    first, second = begins(), more("1-0", "1-1")
    for each in (first, first, second, second):
        assert stage.moves.within(lease, [each])
    assert told(stage) == [*BEGUN, ("1-1", "effect_done")]


def test_several_logs_are_written_whole_or_not_at_all(stage: Stage) -> None:
    lease = leased(stage)
    assert stage.moves.within(lease, [begins(), begins(OTHER)])
    with pytest.raises(Conflict):
        stage.moves.within(lease, [more("1-0", "1-1"), more("0-1", "0-2", thread=OTHER)])
    assert told(stage) == told(stage, OTHER) == BEGUN
    half = more("1-0", "1-1")
    assert stage.moves.within(lease, [half])
    assert stage.moves.within(lease, [half, more("1-0", "1-1", thread=OTHER)]), "what stands is not written again"
    assert told(stage) == told(stage, OTHER) == [*BEGUN, ("1-1", "effect_done")]


def test_entries_of_somebody_else_at_the_same_place_are_no_resend(stage: Stage) -> None:
    lease = leased(stage)
    stage.moves.within(lease, [begins(run="c1")])
    with pytest.raises(Conflict):
        stage.moves.within(lease, [begins(run="c2")])
    assert told(stage) == BEGUN


def test_a_log_that_an_attempt_keeps_takes_no_run_of_others(stage: Stage) -> None:
    stage.moves.within(leased(stage), [begins()])
    with pytest.raises(InvalidInput, match="kept by the node that called its graph"):
        stage.start("r9", thread=KEPT)
    assert told(stage) == BEGUN
    assert stage.moves.delete(KEPT) in ("unknown", "busy", "deleted")


def test_a_full_server_refuses_the_whole_writing(client: Any) -> None:
    stage = on_redis(client)
    lease = leased(stage)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(ServerFull):
            stage.moves.within(lease, [begins()])
    finally:
        client.config_set("maxmemory", 0)
    assert told(stage) == []
    assert stage.moves.within(lease, [begins()])


# --- edited, while the thread is at rest


def rested(stage: Stage) -> Lease:
    """A run that rests with a failure, and has kept a log."""
    lease = leased(stage)
    stage.moves.within(lease, [begins()])
    stage.fail(lease)
    return lease


def test_a_log_that_is_kept_is_edited_while_its_thread_is_at_rest(stage: Stage) -> None:
    rested(stage)
    edit = more("1-0", "1-1", "1-2")
    assert [stage.moves.edit("t", edit) for _ in range(2)] == ["ok", "ok"], "a resend is written once"
    assert told(stage) == [*BEGUN, ("1-1", "effect_done"), ("1-2", "effect_done")]
    stage.start("r2", kind="continue")
    lease = stage.take("p0")
    assert stage.moves.within(lease, [more("1-2", "1-3")])


def test_a_log_that_is_kept_is_not_edited_while_a_run_is_under_way(stage: Stage) -> None:
    lease = leased(stage)
    stage.moves.within(lease, [begins()])
    assert stage.moves.edit("t", more("1-0", "1-1")) == "busy"
    stage.moves.release(stage.owner, [lease.token], "job")
    assert stage.moves.edit("t", more("1-0", "1-1")) == "busy", "anybody may take it at any time"
    assert stage.moves.edit("nobody", more("1-0", "1-1")) == "unknown"
    assert told(stage) == BEGUN


def test_an_edit_of_what_has_moved_meanwhile_is_refused(stage: Stage) -> None:
    rested(stage)
    assert stage.moves.edit("t", more("0-1", "1-1")) == "moved"
    assert stage.moves.edit("t", more("1-0", "1-1")) == "ok"
    assert stage.moves.edit("t", begins(OTHER)) == "ok"
    assert told(stage) == [*BEGUN, ("1-1", "effect_done")]


def test_a_full_server_refuses_the_whole_edit(client: Any) -> None:
    stage = on_redis(client)
    rested(stage)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(ServerFull):
            stage.moves.edit("t", more("1-0", "1-1"))
    finally:
        client.config_set("maxmemory", 0)
    assert told(stage) == BEGUN
    assert stage.moves.edit("t", more("1-0", "1-1")) == "ok"


# --- the moves over such a log


def test_moves_over_a_kept_log_are_fenced_by_the_lease_above(stage: Stage) -> None:
    lease, lost = leased(stage), list[bool]()
    kept = KeptMoves(FencedLog(stage.log, stage.moves, lease, lambda: lost.append(True), lambda: None))
    inner = Stage(kept, stage.log)
    inner_offer = inner.start(thread=KEPT)
    assert inner_offer.status == "started"
    stage.moves.release(stage.owner, [lease.token], "lost")
    before = told(stage)
    for _ in range(2):
        with pytest.raises(Fenced):
            kept.cancel(KEPT)
    assert lost
    assert told(stage) == before == [("0-1", "run_started")]


@pytest.mark.parametrize("times", [1, 2])
def test_replies_that_are_lost_cost_nothing(redis_url: str, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Each writing is sent again until somebody says that it stands."""
    real, seen = RedisMoves.within, dict[str, int]()

    def within(self: RedisMoves, lease: Lease, logs: Any) -> bool:
        passed = real(self, lease, logs)
        seen[logs[0].key] = seen.get(logs[0].key, 0) + 1
        if seen[logs[0].key] <= times:
            raise ServerUnavailable("the reply was lost")
        return passed

    monkeypatch.setattr(RedisMoves, "within", within)
    inner = chain(OURS, "x", ("child", chain(OURS, "y", "z").compile()), "w").compile()
    there, here = RedisSaver(redis_url), InMemorySaver()
    build = chain(OURS, ("node", calls(inner)))
    got = build.compile(checkpointer=there).invoke(IN, on("t"))
    assert got == build.compile(checkpointer=here).invoke(IN, on("t"))
    assert set(seen.values()) == {times + 1}
