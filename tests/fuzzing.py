"""Fuzzing of all that reads from outside: a case is drawn from dice, and its reader gives a value or an error of ours.

    TARGETS[name](dice)        one case; raises whatever the reader raises that is no EverstepError

`test_fuzz` runs each with hypothesis, shortly; `make soak` for minutes. What was found is kept there, as cases.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, TypedDict

import redis

from everstep import entries as shown
from everstep.history import lines
from everstep.show import value
from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN, Codec
from everstep_checkpoint.delta import decode_delta, decode_state, fold
from everstep_checkpoint.errors import EverstepError
from everstep_checkpoint.replay import state_at, states, step_of, verify
from everstep_scheduler.client import inbox, manifest
from everstep_scheduler.client.intake import take
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.messages import add_messages
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.moves.document import document
from everstep_scheduler.moves.live import Said
from everstep_scheduler.moves.record import RunRecord, strategy
from everstep_scheduler.reading.derive import derive
from everstep_scheduler.reading.ending import ending
from everstep_scheduler.reading.questions import interrupts, open_step
from everstep_scheduler.reading.snapshot import snapshot, snapshots
from everstep_workers import rqjob
from golden.dump import FOLDER, DumpLog

FIELDS = (
    "delta", "state", "writes", "next", "parts", "parent", "floor", "on", "handler", "called", "question", "schema",
    "kept", "timeout_s", "tasks", "sends", "goto", "of", "retry_at", "input", "record", "asks", "answer", "error",
    "command", "result", "at", "step", "task", "token", "digest", "birth", "run", "kind", "v", "attempt", "source",
)  # fmt: skip
JUNK: tuple[bytes, ...] = (
    b"", b"\x00", b"\x01x\x9c", b"\x02", b"\x03", b"[", b"[]", b"{}", b"[1]", b"[[1,2]]", b"[null]", b"null", b"true",
    b"9" * 5000, b"-1", b"1e999", b"NaN", b"\xff\xfe", "\u00b2".encode(), "\ud800".encode("utf-8", "surrogatepass"),
    b"0-1", b"9-9", b"99999999999999999999999-1", b"x y z", b"a 9 " + b"x" * 43, b"a " + b"9" * 5000 + b" b",
    b'[["p0","a","g",0]]', b'[["0-1",5]]', b'[["p0","a","g",1e999]]', b'{"type":1,"text":[]}', b'[[[1,2]]]',
    b"[" * 5000, b'{"a":' * 5000, b"\x00" + b"\x91" * 3000 + b"\xc0", b"\x00" + b"\x81\xa1a" * 3000 + b"\xc0",
    b"\x00\xdd\xff\xff\xff\xff", b"\x00\xdf\xff\xff\xff\xff", b"\x00\xc6\xff\xff\xff\xff",
    b"\x00\xc9\xff\xff\xff\xff\x02",
    b"\x00\x80", b"\x00\x90", b"\x00\xc0", b"\x00\x93\x01\x02\x03", b"\x00\x91\x92\xa1x\xc4\x01\xc1",
    b"\x00\x91\x92\xa1x\xc0", b"\x00\x91\x92\x01\x02", b"\x00\x81\xa1x\x92\x00\xc4\x01\x05", b"\x00\x81\xa1x\x91\x04",
    b"\x00\x81\xa1x\x94\x05\x01\xa1y\x90", b"\x00\x81\xa1x\x93\x06\x91\xa30-1\xa1x",
    b"\x00\x81\xa1x\xc4\x05\xd6\xff\0\0\0",
    b"\x00\xd6\xff\x00\x00\x00\x00", b"\x00\xc7\x80\x01" + b"\x7f" * 128, b"\x01" + zlib.compress(b"\0" * 2**20),
)  # fmt: skip


class State(TypedDict, total=False):
    count: int
    words: list[str]
    nested: dict[str, list[int]]
    messages: Annotated[list[Any], add_messages]


@cache
def _published() -> manifest.Manifest:
    made = StateGraph(State)
    made.add_node("one", lambda state: {})
    made.add_edge(START, "one")
    return manifest.manifest_of(made.spec("fuzzed"))


@cache
def _logs() -> list[DumpLog]:
    found: list[DumpLog] = []
    for path in sorted(FOLDER.glob("v*.jsonl")):
        thread = json.loads(path.with_suffix("").with_suffix(".expected.json").read_text())["thread"]
        found.append(DumpLog.of(path, thread))
    return found


def mutated(dice: random.Random, data: bytes) -> bytes:
    """Other bytes: a few changed, cut off, something put in, or junk."""
    way = dice.randrange(4) if data else 0
    changed = bytearray(data)
    if way == 0:
        return dice.choice(JUNK)
    if way == 1:
        for _ in range(dice.randrange(1, 4)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
    elif way == 2:
        del changed[dice.randrange(len(changed)) :]
    else:
        at = dice.randrange(len(changed) + 1)
        changed[at:at] = dice.choice(JUNK)[:40]
    return bytes(changed)


def some_bytes(dice: random.Random) -> bytes:
    """Encoded values of golden logs, mutated, and junk without an envelope."""
    entry = dice.choice(dice.choice(_logs()).entries)
    found = [raw[1:] for name, raw in entry.raw.items() if name in e.VALUES]
    return mutated(dice, dice.choice([*found, dice.choice(JUNK)[1:], dice.randbytes(dice.randrange(40))]))


# -- the readers


def read_value(data: bytes) -> None:
    for codec in (Codec(), PLAIN):
        with suppress(EverstepError):
            found = codec.decode(data)
            value(found)
            assert codec.decode(codec.encode(found)) is not NotImplemented


def read_delta(data: bytes, before: bytes) -> None:
    with suppress(EverstepError):
        decode_state(data)
    with suppress(EverstepError):
        fold({"x": before, "count": before}, decode_delta(data), lambda ref, channel: before)


def read_record(data: bytes) -> None:
    with suppress(EverstepError):
        record = RunRecord.decode(data)
        RunRecord.decode(record.encode())


def read_log(log: DumpLog) -> None:
    """All that is made of one log."""
    thread = log.thread
    readers: list[Callable[[], object]] = [
        lambda: list(states(log, thread)),
        lambda: step_of(log, thread, state_at(log, thread).n),
        lambda: verify(log, thread),
        lambda: derive(log, thread),
        lambda: snapshot(log, thread),
        lambda: list(snapshots(log, thread)),
        lambda: [interrupts(told) for told in [open_step(log, thread)] if told is not None],
        lambda: [ending(log, thread, run, "0-1") for run in {x.text("run") for x in log.entries}],
        lambda: [line.text() if hasattr(line, "text") else line for line in lines(log, thread, 50)],
        lambda: [RunRecord.decode(x.value("record") or b"") for x in log.entries if "record" in x.raw],
        lambda: list(log.pages(thread)),
    ]
    for read in readers:
        with suppress(EverstepError):
            read()


def read_entry(entry_id: str, raw: dict[str, bytes]) -> e.Entry | None:
    for values in (False, True):
        found = shown.shown(entry_id.encode(), raw, values=values)
        found.text()
        found.document()
    with suppress(EverstepError):
        return e.read_entry(entry_id, raw)
    return None


def read_message(fields: dict[bytes, bytes]) -> None:
    with suppress(EverstepError):
        said = inbox._read(fields)  # pyright: ignore[reportPrivateUsage]
        strategy(said.get("if_busy", "enqueue"))
        take(_published(), inbox._json(said["input"]))  # pyright: ignore[reportPrivateUsage]


class OneKey:
    """A Redis that has one thing to give."""

    def __init__(self, stored: bytes) -> None:
        self._stored = stored

    def getrange(self, key: str, start: int, end: int) -> bytes:
        return self._stored[start : end + 1]

    def smembers(self, key: str) -> set[bytes]:
        return set()


def read_manifest(stored: bytes) -> None:
    from everstep_checkpoint.keys import Keys

    with suppress(EverstepError):
        found = manifest.read(OneKey(stored), Keys(), "fuzzed")
        with suppress(EverstepError):
            found.get_graph().draw_mermaid()
        take(found, {"count": 1, "words": ["a"]})


# -- the cases


def _value(dice: random.Random) -> None:
    read_value(some_bytes(dice))


def _delta(dice: random.Random) -> None:
    read_delta(some_bytes(dice), some_bytes(dice))


def _record(dice: random.Random) -> None:
    said = dice.choice([RunRecord(), RunRecord("resume", tags=("a",), metadata={"a": 1}, interrupt_before=("x",))])
    read_record(mutated(dice, said.encode()))


def _log(dice: random.Random) -> None:
    base = dice.choice(_logs())
    entries = list(base.entries)
    at = dice.randrange(len(entries))
    raw = dict(entries[at].raw)
    name = dice.choice([*raw, dice.choice(FIELDS)])
    raw[name] = mutated(dice, raw.get(name, b""))
    if dice.random() < 0.1:
        del raw[name]
    entry = read_entry(entries[at].id, raw)
    if entry is not None:
        entries[at] = entry
        read_log(DumpLog(base.thread, entries))


def _message(dice: random.Random) -> None:
    good: dict[str, Any] = {
        "count": 1,
        "words": ["a"],
        "nested": {"a": [1]},
        "messages": [{"role": "user", "content": "x"}],
    }
    fields = {b"graph": b"fuzzed", b"thread": b"t", b"input": json.dumps(good).encode()}
    for _ in range(dice.randrange(1, 3)):
        name = dice.choice([*fields, b"run", b"actor", b"if_busy", dice.choice(JUNK)])
        fields[name] = mutated(dice, fields.get(name, b"x"))
    read_message(fields)


def _manifest(dice: random.Random) -> None:
    read_manifest(mutated(dice, _published().model_dump_json().encode()))


def _job(dice: random.Random) -> None:
    data = b'["everstep.run_node",null,[],{"n":8,"task":"s1_2","thread":"wide"}]'
    raw: dict[Any, Any] = {
        b"data": data,
        b"created_at": b"2026-11-24T00:01:28.096000Z",
        b"status": b"queued",
        b"origin": b"q",
    }
    for _ in range(dice.randrange(1, 3)):
        name = dice.choice([*raw, b"ttl", b"meta", b"webhooks", b"exc_info"])
        raw[name] = mutated(dice, raw.get(name, b"") if dice.random() < 0.5 else zlib.compress(data))
    job = rqjob.RQJob("fuzzed", connection=redis.Redis())  # never connected
    job.restore(raw)
    assert job.ours in (True, False)


def _live(dice: random.Random) -> None:
    said = Said("custom", 1, "p0", "id", "one", 1, "t" * 22, 1, some_bytes(dice))
    raw = {name.encode(): v if isinstance(v, bytes) else str(v).encode() for name, v in said.fields().items()}
    name = dice.choice(list(raw))
    raw[name] = mutated(dice, raw[name])
    with suppress(EverstepError):
        PLAIN.decode(Said.read(raw).data)


def _document(dice: random.Random) -> None:
    document(mutated(dice, b'{"p":"lease","a":1,"t":"x","o":"y","L":10}'))


TARGETS: dict[str, Callable[[random.Random], None]] = {
    "value": _value, "delta": _delta, "record": _record, "log": _log, "message": _message, "manifest": _manifest,
    "job": _job, "live": _live, "document": _document,
}  # fmt: skip


def cases(seed: str) -> Iterator[tuple[str, str]]:
    """Endless names of targets with seeds of their dice."""
    dice = random.Random(seed)
    while True:
        yield dice.choice([*TARGETS, "log", "log"]), f"{seed}-{dice.randrange(2**40)}"
