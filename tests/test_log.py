"""One set of contract tests for both stores of logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint.delta import encode_delta
from everstep_checkpoint.errors import Conflict, CorruptEntry, NewerVersion, ThreadBusy, Trimmed, UnknownThread
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.log import Log, MemoryLog, Span
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at, verify


@pytest.fixture(params=["memory", "redis"])
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    if request.param == "memory":
        yield MemoryLog()
    else:
        yield RedisLog(request.getfixturevalue("client"), Keys(rq="rq"))


BIRTH = "b" * 22


def begin(log: Log, thread: str = "t") -> None:
    log.append(thread, [e.fact("run_started", "r", birth=BIRTH)], None)


def step(parent: str, n: int, value: bytes = b"\x01", next: str = "[]", **more: e.Field) -> e.Fields:
    delta = e.wrap(encode_delta({"x": [0, value]}))
    return e.checkpoint(parent, n, source="loop", step=n, graph="g@1", run="r", next=next, delta=delta, **more)


def chain(log: Log, count: int, thread: str = "t") -> str:
    begin(log, thread)
    digest = BIRTH
    for n in range(1, count + 1):
        made = step(digest, n, bytes([n]))
        log.append(thread, [made], (n - 1, digest))
        digest = str(made["digest"])
    return digest


def test_ids_say_the_order_of_checkpoints_and_facts(log: Log) -> None:
    begin(log)
    made = step(BIRTH, 1)
    facts = [e.fact("note", "r"), made, e.fact("note", "r"), e.fact("note", "r")]
    assert log.append("t", facts, (0, BIRTH)) == ["0-2", "1-0", "1-1", "1-2"]
    assert log.head("t") == (1, made["digest"], "1-2")


def test_a_fresh_thread_stands_at_its_birth(log: Log) -> None:
    assert log.head("t") is None
    begin(log)
    assert log.head("t") == (0, BIRTH, "0-1")


def test_a_wrong_predecessor_is_refused_and_nothing_is_written(log: Log) -> None:
    digest = chain(log, 3)
    for after in [None, (2, digest), (3, "x" * 43), (4, digest)]:
        with pytest.raises(Conflict):
            log.append("t", [e.fact("note", "r"), step(digest, 4)], after)
    assert log.head("t") == (3, digest, "3-0")


def test_a_second_birth_is_refused(log: Log) -> None:
    begin(log)
    with pytest.raises(Conflict):
        begin(log)


def test_facts_that_arrived_meanwhile_are_no_hindrance(log: Log) -> None:
    digest = chain(log, 1)
    log.append("t", [e.fact("note", "r")], (1, digest))
    assert log.append("t", [e.fact("note", "r")], (1, digest)) == ["1-2"]
    assert log.append("t", [step(digest, 2)], (1, digest)) == ["2-0"]


def test_reading_gives_ranges_pages_and_both_directions(log: Log) -> None:
    chain(log, 5)
    assert [x.id for x in log.read("t")] == ["0-1", "1-0", "2-0", "3-0", "4-0", "5-0"]
    assert [x.id for x in log.read("t", "2-0", "4-0")] == ["2-0", "3-0", "4-0"]
    assert [x.id for x in log.read("t", "(2-0", "+", 2)] == ["3-0", "4-0"]
    assert [x.id for x in log.read("t", "-", "(3-0", 2, reverse=True)] == ["2-0", "1-0"]
    assert [x.id for x in log.pages("t", page=2)] == [x.id for x in log.read("t")]


def test_several_logs_are_read_at_once(log: Log) -> None:
    """What can't be read is told by who reads it alone: the others are to be had."""
    chain(log, 2, "t")
    chain(log, 1, "u")
    spans = [Span("t", "1-0", "2-0"), Span("u", "-", "1-0", 1, True), Span("t", "7-0", "7-0"), Span("nobody")]
    odd = list[Span]()
    if isinstance(log, RedisLog):
        client: Any = log.client
        client.rpush(log.keys.log("odd"), "no stream")
        client.xadd(log.keys.log("junk"), {"v": "1"}, "0-1")
        odd = [Span("odd"), Span("junk")]
    read = [log.read(*span[:4], reverse=span.reverse) for span in spans]
    assert [len(each) for each in read] == [len(log.read("t", "1-0", "2-0")), 1, 0, 0]
    assert log.read_all([*odd, *spans]) == [*([None] * len(odd)), *read]
    assert log.read_all([]) == []


def test_a_step_and_its_facts_are_one_range(log: Log) -> None:
    digest = chain(log, 2)
    log.append("t", [e.fact("note", "r")], (2, digest))
    assert [x.id for x in log.read("t", "2-1", "2")] == ["2-1"]


def test_threads_are_listed_whatever_their_names(log: Log) -> None:
    names = {"t", "a:b", "x*[y]?", "thread/1 é"}
    for name in names:
        begin(log, name)
    assert set(log.threads()) == names


def test_a_deleted_log_is_gone_and_can_begin_again(log: Log) -> None:
    chain(log, 2)
    assert log.delete("t")
    assert not log.delete("t")
    assert log.head("t") is None
    begin(log)


def test_state_is_read_from_the_log_alone(log: Log) -> None:
    chain(log, 4)
    assert state_at(log, "t").channels == {"x": b"\x04"}
    assert state_at(log, "t", 2).channels == {"x": b"\x02"}
    with pytest.raises(UnknownThread):
        state_at(log, "nope")


def test_a_fork_begins_with_a_snapshot_that_names_its_parent(log: Log) -> None:
    chain(log, 4)
    head = log.fork("t", 2, "copy")
    assert (head.n, state_at(log, "copy").channels) == (1, {"x": b"\x02"})
    source = log.read("t", "2-0", "2-0")[0]
    assert log.read("copy", "1-0", "1-0")[0].text("parent") == f"t 2 {source.digest}"
    assert verify(log, "copy").sound
    with pytest.raises(ThreadBusy):
        log.fork("t", 1, "copy")


def test_a_fork_takes_the_sends_of_its_step_along(log: Log) -> None:
    begin(log)
    part = e.summed(
        e.fact(
            "part",
            "r",
            task="start",
            token="k",
            tasks='[["w","g",0,2]]',
            sends=e.pack_sends([("w", b"\x01"), ("w", b"\x02")]),
        )
    )
    made = e.checkpoint(
        BIRTH,
        1,
        [str(part["sum"])],
        source="loop",
        step=0,
        graph="g",
        run="r",
        next='[["0-2",2]]',
        delta=e.wrap(b"\x80"),
    )
    log.append("t", [part, made], (0, BIRTH))
    log.fork("t", 1, "copy")
    opened = log.read("copy", "1-0", "1-0")[0]
    ref = opened.next[0][0]
    assert log.read("copy", ref, ref)[0].sends() == [("w", b"\x01"), ("w", b"\x02")]
    assert verify(log, "copy").sound


def test_only_what_nothing_needs_can_be_trimmed(log: Log) -> None:
    digest = chain(log, 3)
    with pytest.raises(Trimmed):
        log.trim("t", "2-0")
    whole = state_at(log, "t").snapshot_fields(BIRTH)
    made = e.checkpoint(digest, 4, **{**whole, "parent": digest, "floor": "3-0"})
    log.append("t", [made], (3, digest))
    assert log.trim("t", "3-0") == 3
    assert [x.id for x in log.read("t")] == ["3-0", "4-0"]
    assert state_at(log, "t").channels == {"x": b"\x03"}
    assert verify(log, "t").sound
    with pytest.raises(Trimmed):
        state_at(log, "t", 3)


def test_verify_names_what_was_changed(log: Log) -> None:
    chain(log, 3)
    assert verify(log, "t").sound
    broken = MemoryLog()
    broken.append("t", [e.fact("run_started", "r", birth=BIRTH)], None)
    first = step(BIRTH, 1)
    broken.append("t", [{**first, "delta": e.wrap(encode_delta({"x": [0, b"\x09"]}))}], (0, BIRTH))
    assert "digest does not match" in verify(broken, "t").problems[0]


def test_a_newer_format_and_a_foreign_entry_are_told_apart() -> None:
    with pytest.raises(NewerVersion, match="format 2"):
        e.read_entry("1-0", {b"v": b"2", b"kind": b"checkpoint"})
    with pytest.raises(CorruptEntry, match="something else wrote"):
        e.read_entry("1-1", {b"hello": b"world"})
    with pytest.raises(CorruptEntry, match="encrypted"):
        e.unwrap(b"\x02abc", "field 'delta'")


def test_a_newer_kind_of_fact_is_skipped_by_readers(log: Log) -> None:
    digest = chain(log, 1)
    log.append("t", [{"v": 1, "kind": "something_new", "run": "r"}, step(digest, 2, b"\x07")], (1, digest))
    assert state_at(log, "t").channels == {"x": b"\x07"}
    assert verify(log, "t").sound
