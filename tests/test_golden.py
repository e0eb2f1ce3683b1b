"""Golden logs: what every released format wrote, read by what is here now, with the log's package alone.

`tests/golden/make.py` made the files, once per format; they are never made again.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN
from everstep_checkpoint.delta import decode_delta
from everstep_checkpoint.errors import CorruptEntry
from everstep_checkpoint.readingon import Known, state_on
from everstep_checkpoint.replay import state_at, states, step_of, verify
from everstep_checkpoint.tagged import Tagged
from golden.dump import FOLDER, DumpLog, from_line, to_line

STORIES = sorted(path.stem for path in FOLDER.glob("v*.jsonl"))
STEP_BYTES_MAX = 400
RESERVED: set[str] = set()  # kinds that nobody writes yet


def expected(story: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{story}.expected.json").read_text())
    return found


def golden(story: str) -> DumpLog:
    return DumpLog.of(FOLDER / f"{story}.jsonl", expected(story)["thread"])


def test_there_are_golden_logs_of_every_format_so_far() -> None:
    assert {story.split("-")[0] for story in STORIES} == {f"v{n}" for n in range(1, e.VERSION + 1)}
    assert len(STORIES) >= 12


def test_the_golden_logs_hold_every_kind_and_every_delta_op_that_is_written() -> None:
    kinds: set[str] = set()
    ops: set[int] = set()
    for story in STORIES:
        for entry in golden(story).entries:
            kinds.add(entry.kind)
            ops |= {op[0] for op in decode_delta(entry.value("delta") or b"\x80").values()}
    assert kinds == {e.CHECKPOINT} | e.FACTS - RESERVED
    assert ops >= {0, 1, 2, 3, 5, 6}


@pytest.mark.parametrize("story", STORIES)
def test_a_golden_log_keeps_its_ids_and_kinds(story: str) -> None:
    log = golden(story)
    assert [[x.id, x.kind] for x in log.entries] == expected(story)["entries"]
    assert [json.loads(to_line(from_line(to_line(x)))) for x in log.entries] == [
        json.loads(to_line(x)) for x in log.entries
    ]


@pytest.mark.parametrize("story", STORIES)
def test_every_sum_digest_and_parent_of_a_golden_log_is_sound(story: str) -> None:
    log = golden(story)
    report = verify(log, log.thread)
    assert report.problems == []
    assert report.entries == len(log.entries)


@pytest.mark.parametrize("story", STORIES)
def test_every_state_of_a_golden_log_is_read_as_it_was_written(story: str) -> None:
    log, said = golden(story), expected(story)
    found = {str(state.n): state for state, _ in states(log, log.thread)}
    assert set(found) == set(said["states"])
    for n, wanted in said["states"].items():
        for state in (found[n], state_at(log, log.thread, int(n))):
            assert state.entry.checkpoint_id == wanted["checkpoint_id"]
            assert state.digest == wanted["digest"]
            stored = {name: base64.b64decode(value) for name, value in wanted["channels"].items()}
            assert state.channels == stored
            assert {name: ascii(PLAIN.decode(value))[:200] for name, value in stored.items()} == wanted["shown"]


@pytest.mark.parametrize("story", STORIES)
def test_a_state_is_read_on_from_any_that_is_known_as_from_the_beginning(story: str) -> None:
    """From a state that lies before a fact that is taken later there is no way on; the whole log is read then."""
    log = golden(story)
    found = [state for state, _ in states(log, log.thread)]
    went_on = 0
    for at, of in ((a, b) for i, a in enumerate(found) for b in found[i + 1 :]):
        known = Known(at.n, at.digest, at.channels, at.birth, at.since_snapshot, at.delta_bytes)
        try:
            state = state_on(log, log.thread, known, of.n)
        except CorruptEntry as error:
            assert "is missing" in error.what
            continue
        assert state == state_at(log, log.thread, of.n)
        went_on += 1
    pairs = len(found) * (len(found) - 1) // 2
    assert went_on == pairs or 2 * went_on > pairs, "nearly always"


def test_from_a_state_that_the_log_has_no_more_there_is_no_way_on() -> None:
    log = golden("v1-chain")
    first, *_, last = [state for state, _ in states(log, log.thread)]
    known = Known(first.n, first.digest, first.channels, first.birth, 0, 0)
    assert state_on(log, log.thread, known, last.n) is not None
    assert state_on(log, log.thread, known._replace(digest="another" * 6), last.n) is None, "begun anew"
    assert state_on(log, log.thread, known, last.n + 1) is None, "rewound"
    kept = DumpLog(log.thread, [x for x in log.entries if x.n > first.n])
    assert state_on(kept, log.thread, known, last.n) is not None, "what follows says that it stood there"
    kept = DumpLog(log.thread, [x for x in log.entries if x.n > first.n + 1])
    assert state_on(kept, log.thread, known, last.n) is None, "trimmed"


@pytest.mark.parametrize("story", STORIES)
def test_a_state_is_read_a_page_at_a_time_and_nothing_twice(story: str) -> None:
    log, read = golden(story), list[str]()
    real = log.read

    def counted(*args: Any, **named: Any) -> list[e.Entry]:
        found = real(*args, **named)
        read.extend(entry.id for entry in found or [e.Entry(0, 0, {})])
        return found

    last = state_at(log, log.thread).n
    with mock.patch.object(log, "read", counted):
        state_at(log, log.thread, last)
    assert len(read) == len(set(read)) <= len(log.entries)


@pytest.mark.parametrize("story", STORIES)
def test_the_open_tasks_of_a_golden_log_need_no_graph(story: str) -> None:
    log = golden(story)
    step = step_of(log, log.thread, state_at(log, log.thread).n)
    assert [[task.task, task.node, task.queue] for task in step.tasks] == expected(story)["open"]


def test_values_of_a_graphs_own_types_are_read_without_their_classes() -> None:
    log = golden("v1-types")
    channels = state_at(log, log.thread).channels
    points = PLAIN.decode(channels["points"])
    assert isinstance(points, tuple)
    assert points[-1] == Tagged("Point", {"x": 3, "y": 4.5})
    assert PLAIN.decode(channels["colour"]) == Tagged("Colour", "RED")
    assert {name: PLAIN.encode(PLAIN.decode(value)) for name, value in channels.items()} == channels


def test_a_changed_byte_in_a_golden_log_is_found() -> None:
    log = golden("v1-wide")
    for at, entry in enumerate(log.entries):
        field = "writes" if entry.kind == "task_done" else "delta" if entry.is_checkpoint else "input"
        broken = bytearray(entry.raw[field])
        broken[-1] ^= 1
        changed = e.Entry(entry.n, entry.k, {**entry.raw, field: bytes(broken)})
        mended = DumpLog(log.thread, [*log.entries[:at], changed, *log.entries[at + 1 :]])
        assert verify(mended, log.thread).problems, f"{entry.id} {field}"


def test_reading_a_golden_log_imports_nothing_but_the_logs_package() -> None:
    code = (
        "import sys; from golden.dump import FOLDER, DumpLog; from everstep_checkpoint.replay import state_at, verify\n"
        "log = DumpLog.of(FOLDER / 'v1-sends.jsonl', 'golden'); state_at(log, 'golden'); verify(log, 'golden')\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'everstep', 'everstep_scheduler', "
        "'everstep_workers', 'redis', 'rq', 'fakeredis'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert done.stdout.strip() == ""


def test_a_chain_step_costs_its_payload_and_at_most_400_bytes(record_property: Callable[[str, object], None]) -> None:
    steps = [_sizes(x) for x in golden("v1-payload").entries if x.is_checkpoint and x.n > 2]
    assert len(steps) == 10
    payload, sizes = max(steps, key=lambda step: sum(step[1].values()))
    by_field = ", ".join(f"{name} {size}" for name, size in sorted(sizes.items(), key=lambda pair: -pair[1]))
    beside = f"{sum(sizes.values())} of {STEP_BYTES_MAX} bytes"
    record_property("shown", f"one chain step, payload {payload} bytes, and beside it {beside}: {by_field}")
    assert payload >= 1024
    assert sum(sizes.values()) <= STEP_BYTES_MAX


def _sizes(entry: e.Entry) -> tuple[int, dict[str, int]]:
    """The bytes of the value that the node wrote, and of all else, by field."""
    payload = len(decode_delta(entry.value("delta") or b"\x80")["data"][1])
    sizes = {"id": len(entry.id)} | {name: len(name) + len(value) for name, value in entry.raw.items()}
    return payload, {**sizes, "delta": sizes["delta"] - payload}
