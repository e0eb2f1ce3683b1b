"""Promises of loading.py: what a process that was here before reads of what others have added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import Codec, pack
from everstep_checkpoint.delta import SET, diff, encode_delta
from everstep_checkpoint.entries import Entry
from everstep_checkpoint.errors import CorruptEntry
from everstep_checkpoint.log import Asked, MemoryLog, Span
from everstep_checkpoint.replay import state_at, states
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.channels import apply
from everstep_scheduler.graph.messages import MessagesState
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.moves.contract import LEASE_MS, Lease
from everstep_scheduler.steps import loading, readahead
from everstep_scheduler.steps.loading import Loader, Stand
from golden.dump import FOLDER, DumpLog

STORIES = sorted(path.stem for path in FOLDER.glob("v*.jsonl"))
NOBODY = Lease("token", "t", 0, "", "n", "n", 1, 0, "g", 0, "r", "g", 1, "", "", "", -2, LEASE_MS, 0, "")


class Counted(DumpLog):
    """Counts the entries that are read of it."""

    count = 0

    def read(
        self, thread: str, start: str = "-", end: str = "+", count: int | None = None, *, reverse: bool = False
    ) -> list[Entry]:
        found = super().read(thread, start, end, count, reverse=reverse)
        self.count += len(found)
        return found


def log_of(story: str) -> Counted:
    path = FOLDER / f"{story}.jsonl"
    entries = DumpLog.of(path, "").entries
    return Counted("t", entries)


def lease_at(log: DumpLog, n: int) -> Lease:
    state = state_at(log, "t", n)
    return NOBODY._replace(thread="t", n=n, digest=state.digest, birth=state.birth)


@pytest.mark.parametrize("story", STORIES)
def test_a_process_that_was_here_before_stands_where_a_new_one_would(story: str) -> None:
    log = log_of(story)
    loader = Loader(log)
    for n in [state.n for state, _ in states(log, "t")]:
        lease = lease_at(log, n)
        assert loader.stand(lease) == Loader(log).stand(lease)


def test_it_reads_only_what_others_have_added() -> None:
    log = log_of("v1-chain")
    loader = Loader(log)
    numbers = [state.n for state, _ in states(log, "t")]
    leases = [lease_at(log, n) for n in numbers]
    loader.stand(leases[-3])
    log.count = 0
    loader.stand(leases[-1])
    added = [x for x in log.entries if (leases[-3].n, 0) < (x.n, x.k) <= (leases[-1].n, 0)]
    assert log.count == len(added) < len(log.entries)


def test_what_inputs_say_that_come_together_is_read_at_once_and_once() -> None:
    class Together(MemoryLog):
        asked = 0

        def read_all(self, spans: Sequence[Span]) -> list[list[Entry] | None]:
            self.asked += 1
            return super().read_all(spans)

    log = Together()
    leases = [
        NOBODY._replace(token=f"token {i}", thread=f"t{i}", birth=f"birth {i}", run="r", rec="0-1", task="start")
        for i in range(3)
    ]
    for lease in leases[:2]:
        log.append(lease.thread, [e.fact("run_started", "r", birth=lease.birth, record=e.wrap(b"\x80"))], None)
    loader = Loader(log)
    loader.ahead(leases)
    for lease in leases[:2]:
        log.delete(lease.thread)  # from here on there is only what was read
    assert [loader.entry(lease, "0-1").text("birth") for lease in leases[:2]] == ["birth 0", "birth 1"]
    with pytest.raises(CorruptEntry, match="the entry 0-1 is missing"):
        loader.entry(leases[2], "0-1")
    loader.ahead(leases)  # one alone is read when it is needed
    assert log.asked == 1


def test_what_others_added_to_several_threads_is_read_at_once_and_each_stands_where_a_new_process_would() -> None:
    class Together(MemoryLog):
        asked: tuple[int, ...] = ()
        alone = 0

        def read_all(self, spans: Sequence[Span]) -> list[list[Entry] | None]:
            self.asked = (*self.asked, len(spans))
            found = super().read_all(spans)
            self.alone = 0
            return found

        def read(self, *args: Any, **named: Any) -> list[Entry]:
            self.alone += 1
            return super().read(*args, **named)

    log, made = Together(), dict[str, list[Lease]]()
    for thread in ("known", "behind", "new"):
        birth = f"birth of {thread}"
        log.append(thread, [e.fact("run_started", "r", birth=birth, record=e.wrap(b"\x80"))], None)
        made[thread], digest = [], birth
        for n in range(1, 5):
            delta = e.wrap(pack({"x": [SET, pack(n)]}))
            said = e.checkpoint(digest, n, source="loop", step=n - 2, graph="g@1", run="r", next="[]", delta=delta)
            log.append(thread, [said], (n - 1, digest) if n > 1 else (0, birth))
            digest = str(said["digest"])
            made[thread].append(
                NOBODY._replace(token=thread, thread=thread, n=n, digest=digest, birth=birth, conf="0-1")
            )
    loader, codec = Loader(log), Codec()
    for thread, n in (("known", 3), ("behind", 1)):
        loader.stand(made[thread][n])
        loader.record(made[thread][n], codec)
    last = [leases[3] for leases in made.values()]
    loader.ahead(last)
    loader.ahead(last)  # what is here already is not asked for again
    assert log.asked == (3,), "the rest of one log, and of another one all, with its run's record"
    stands = [loader.stand(lease) for lease in last]
    for lease in last:
        loader.record(lease, codec)
    assert log.alone == 0
    assert stands == [Loader(log).stand(lease) for lease in last]


@pytest.mark.source
def test_of_a_long_list_that_grew_elsewhere_only_what_is_new_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes in turn on a chat: each has made the list that the other one went on from."""
    spec = StateGraph(MessagesState).add_node("n", lambda state: None).add_edge(START, "n").spec("g")
    log, digest, states = MemoryLog(), "birth", list[dict[str, bytes]]()
    log.append("t", [e.fact("run_started", "r", birth="birth", record=e.wrap(b"\x80"))], None)
    said = [{"id": str(n), "role": "user", "content": "x" * 9000} for n in range(4)]
    loader, leases = Loader(log), list[Lease]()
    for n, each in enumerate(said, 1):
        before = states[-1] if states else {}
        states.append(apply(spec, before, [("messages", spec.codec.encode([each]))]))
        delta = e.wrap(encode_delta({"messages": diff(before.get("messages"), states[-1]["messages"]) or []}))
        fields = e.checkpoint(digest, n, source="loop", step=n - 2, graph="g@1", run="r", next="[]", delta=delta)
        log.append("t", [fields], (n - 1, digest))
        digest = str(fields["digest"])
        leases.append(NOBODY._replace(thread="t", n=n, digest=digest, birth="birth"))
    here = apply(spec, loader.stand(leases[0]).channels, [("messages", spec.codec.encode(said[1:2]))])
    loader.keep("t", 2, leases[1].digest, Stand(here, 0, run="r"))
    there = loader.stand(leases[3]).channels
    assert there == states[3]
    decode, read = Codec.decode, list[int]()

    def counted(self: Codec, data: bytes, where: str = "value") -> object:
        read.append(len(data))
        return decode(self, data, where)

    monkeypatch.setattr(Codec, "decode", counted)
    apply(spec, there, [("messages", spec.codec.encode([said[0] | {"id": "new"}]))])
    assert len(read) == 1 and read[0] < 10_000


def test_a_thread_that_was_begun_anew_is_not_taken_for_the_old_one() -> None:
    log = log_of("v1-chain")
    loader = Loader(log)
    first, *_, last = [lease_at(log, state.n) for state, _ in states(log, "t")]
    loader.keep("t", first.n, "another" * 6, loader.stand(first)._replace(channels={"count": b"\x07"}))
    assert loader.stand(last) == Loader(log).stand(last)


def test_a_log_that_says_something_else_than_the_index_is_told() -> None:
    log = log_of("v1-chain")
    loader = Loader(log)
    first, *_, last = [lease_at(log, state.n) for state, _ in states(log, "t")]
    loader.stand(first)
    with pytest.raises(CorruptEntry, match="another checkpoint here than the index says"):
        loader.stand(last._replace(digest="another" * 6))


def test_from_far_behind_it_begins_at_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BEHIND_MAX", 3)
    log = log_of("v1-snapshot")
    loader = Loader(log)
    first, *_, last = [lease_at(log, state.n) for state, _ in states(log, "t")]
    loader.stand(first)
    log.count = 0
    Loader(log).stand(last)
    anew, log.count = log.count, 0
    assert loader.stand(last) == Loader(log_of("v1-snapshot")).stand(last)
    assert log.count == anew


def test_of_pages_that_nobody_asks_for_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    log, spans = MemoryLog(), [Span(f"t{i}") for i in range(12)]
    for span in spans:
        birth = f"birth of {span.thread}"
        log.append(span.thread, [e.fact("run_started", "r", birth=birth, record=e.wrap(b"\x80"))], None)
    monkeypatch.setattr(readahead, "LEASES_KEPT", 5)
    ahead = readahead.ReadAhead(log)
    ahead.fetch({span.thread: [span] for span in spans[:7]})
    ahead.fetch({span.thread: [span] for span in spans[7:9]})
    for span in spans:
        log.delete(span.thread)
    assert [span.thread for span in spans if ahead.of(span.thread).read(span.thread)] == ["t4", "t5", "t6", "t7", "t8"]
    assert not any(ahead.of(span.thread).read(span.thread) for span in spans), "each page is given once"


def test_what_fails_on_its_way_is_asked_for_again_alone() -> None:
    class Broken(MemoryLog):
        def ask(self, spans: Sequence[Span]) -> Asked:
            def fails() -> list[list[Entry] | None]:
                raise ConnectionError

            return fails

    log = Broken()
    for thread in "ab":
        log.append(thread, [e.fact("run_started", "r", birth=thread, record=e.wrap(b"\x80"))], None)
    ahead = readahead.ReadAhead(log)
    ahead.fetch({"a": [Span("a")], "b": [Span("b")]})
    assert [ahead.of(thread).read(thread) for thread in "ab"] == [log.read(thread) for thread in "ab"]


def test_what_was_read_ahead_for_an_attempt_that_was_never_loaded_is_for_no_other_one() -> None:
    """Its thread is deleted and begun anew: the new run's input has the id of the old one, its checkpoint another's."""

    def begun(birth: str, value: int) -> Lease:
        record = e.fact("run_started", f"run of {birth}", birth=birth, record=e.wrap(b"\x80"))
        log.append("t", [record], None)
        delta = e.wrap(pack({"x": [SET, pack(value)]}))
        said = e.checkpoint(
            birth, 1, source="loop", step=-1, graph="g@1", run=f"run of {birth}", next="[]", delta=delta
        )
        log.append("t", [said], (0, birth))
        digest = str(said["digest"])
        lease = NOBODY._replace(token=birth, n=1, digest=digest, birth=birth, run=f"run of {birth}", conf="0-1")
        return lease._replace(rec="0-1")

    log = MemoryLog()
    loader = Loader(log)
    old = begun("old", 1)
    loader.ahead([old])
    log.delete("t")
    new = begun("new", 2)
    loader.ahead([new])
    assert loader.entry(new, "0-1").text("birth") == "new"
    assert loader.stand(new).channels == {"x": pack(2)}
    loader.forget(old)
    loader.forget(new)
    assert not loader._ahead._pages  # pyright: ignore[reportPrivateUsage]


def test_rows_of_next_are_remembered_so_many_and_so_long_and_without_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = dict[bytes, Any]()
    monkeypatch.setattr(loading, "_rows_seen", seen)
    monkeypatch.setattr(loading, "NEXTS_KEPT", 2)
    names = ["a", "b" * loading.NEXT_BYTES, "c", "d"]
    told = [b'[["1-1",3]]', *(f'[["p0","{name}","q",0]]'.encode() for name in names)]
    for raw in (*told, *told):
        entry = Entry(2, 0, {"next": raw})
        assert loading._rows(entry) == loading.rows_of(entry.next)  # pyright: ignore[reportPrivateUsage]
    assert [*seen] == [told[1], told[3]]
