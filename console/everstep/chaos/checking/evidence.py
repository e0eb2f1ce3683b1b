"""What a verdict is made from: what clients were told, what nodes say they did, what Redis holds. Plain records.

client log   one Said per request that was sent, and one for its answer
journal      one Ran when an attempt at a node begins, one when it ends; written by the nodes
faults       one Struck per fault
dump         each thread's Stream as it is stored, and what is left over beside the logs
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

JOURNAL_ENV = "EVERSTEP_CHAOS_JOURNAL"
Row = tuple[str, dict[str, bytes]]


def argument_sum(value: Any) -> str:
    """A digest of what a node was given: the same for equal values, whoever computes it."""
    said = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Said:
    """What a client asked, or was told. `op`: submit, cancel, answer, retry, seen, result. `phase`: ask, ok, no
    (refused, nothing happened), unknown (the answer never came). `at`: seconds of the monotonic clock."""

    at: float
    op: str
    phase: str
    thread: str
    run: str = ""
    told: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Ran(NamedTuple):
    """A line of the journal. `key`: the idempotency key. `seen`: the digest of the node's argument."""

    thread: str
    run: str
    n: int
    key: str
    node: str
    attempt: int
    pid: int
    phase: str
    at: float
    seen: str
    value: int


@dataclass(frozen=True)
class Struck:
    """A fault. `at`: seconds of the monotonic clock; `at_ms`: Redis' clock. `pids`: the processes that it befell.
    `since`: what was acknowledged from then on, until `at`, the fault may have taken back; None: nothing."""

    at: float
    at_ms: int
    kind: str
    pids: tuple[int, ...] = ()
    said: str = ""
    since: float | None = None


@dataclass(frozen=True)
class Stream:
    """A log as it is stored, and what XINFO says was ever added to it and taken out."""

    rows: tuple[Row, ...]
    added: int | None = None
    deleted: str = "0-0"


@dataclass(frozen=True)
class Dump:
    """What Redis holds. `left`: keys and counts that say that something is still under way. `open`: thread -> the
    places of its open tasks. `states`: thread -> what a client reads as its state."""

    streams: Mapping[str, Stream]
    left: tuple[str, ...] = ()
    open: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


@dataclass(frozen=True)
class Evidence:
    """All of it. `sample`: are the runs those of the sample graph, which leave a journal? `newer`: the name and
    fingerprint of its newer version, if there was one."""

    said: tuple[Said, ...]
    ran: tuple[Ran, ...]
    struck: tuple[Struck, ...]
    dump: Dump
    lease_ms: int
    sample: bool = True
    newer: str = ""


def read_journal(path: Path) -> Iterator[Ran]:
    """The lines of a journal. A process that is killed may leave half of one at most: each is one write."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield Ran(**json.loads(line))
        except (ValueError, TypeError):
            continue


def keep(evidence: Evidence, folder: Path) -> None:
    """Write all of it down, for whoever looks for the cause of a violation."""
    for name, lines in (("client", evidence.said), ("faults", evidence.struck)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(asdict(each), default=str) + "\n" for each in lines))
    streams = {
        thread: [[row, {name: value.decode("utf-8", "backslashreplace") for name, value in fields.items()}]
                 for row, fields in stream.rows]
        for thread, stream in evidence.dump.streams.items()
    }  # fmt: skip
    said = {"left": evidence.dump.left, "open": evidence.dump.open, "streams": streams}
    (folder / "dump.json").write_text(json.dumps(said, indent=1))
