"""The entries of a log: kinds, fields, ids, digests. The written contract is `docs/log-format.md`.

Pure: an entry is made from values and read from a stream's fields; who stores it and when is somebody else's.

    0-1 run_started          1-0 checkpoint -1     1-1 task_done p0     2-0 checkpoint
        birth, record            source=input          writes               delta, next
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .codec import MALFORMED, pack, unpack
from .errors import CorruptEntry, NewerVersion, caused

VERSION = 1
ENTRY_MAX = 16 * 2**20
# What a reader takes of one stored value, or of one field of JSON; no writer of ours comes near.
FIELD_MAX = 64 * 2**20
JSON_MAX = 16 * 2**20
NUMBER_MAX = 2**53
TIMEOUT_MAX_S = NUMBER_MAX  # of a task, this one no more: the scripts take it for none that we wrote
TIME_MAX = 253_402_300_799_999  # ms: the last one of the year 9999
PART_BYTES_MAX = 64 * 1024
PART_TASKS_MAX = 128

CHECKPOINT = "checkpoint"
BEGINS: Mapping[str, Field] = {"v": VERSION, "kind": CHECKPOINT}  # the fields of every checkpoint
FACTS = frozenset(
    {
        "run_started", "run_queued", "run_rested", "run_cancel_asked", "part", "task_added", "task_called",
        "task_done", "task_failed", "task_paused", "task_lost", "task_parked", "task_answered", "task_moved",
        "effect_done", "call_begun", "call_failed", "note",
    }
)  # fmt: skip
VALUES = frozenset(
    {"delta", "state", "writes", "meta", "sends", "input", "record", "asks", "answer", "command", "result", "args"}
)
PLAIN = b"\x00"
NAMES_KEPT = 128
_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)
_ENVELOPES = {0: "plain", 1: "compressed", 2: "encrypted", 3: "elsewhere"}

Field = str | bytes | int
Fields = dict[str, Field]


class Address(NamedTuple):
    """A checkpoint of any thread. `n` 0 and the thread's birth: what stands before its first one."""

    thread: str
    n: int
    digest: str

    def __str__(self) -> str:
        return f"{self.thread} {self.n} {self.digest}"


def entry_id(text: str) -> tuple[int, int]:
    """`13-2` -> (13, 2)."""
    n, _, k = text.partition("-")
    return int(n), int(k)


def checkpoint_id(n: int, digest: str) -> str:
    """What users see: 12 digits of n, `-`, 8 hex of the digest's first four bytes."""
    return f"{n:012d}-{base64.urlsafe_b64decode(digest + '=')[:4].hex()}"


def wrap(value: bytes) -> bytes:
    """Put a stored value behind its envelope byte."""
    return PLAIN + value


def unwrap(value: bytes, where: str) -> bytes:
    """Take a stored value out of its envelope. Raises CorruptEntry, naming the envelope that can't be opened."""
    if value[:1] == PLAIN:
        return value[1:]
    kind = _ENVELOPES.get(value[0], f"unknown ({value[0]})") if value else "empty"
    raise CorruptEntry(
        f"{where} has a {kind} envelope, which this reader can't open", fix="read it with a newer everstep"
    )


_SENT: frozenset[type] = frozenset({bytes})
_KEPT: frozenset[type] = frozenset({bytes, type(None)})


def _no_ext(code: int, _data: bytes) -> object:
    raise ValueError(f"ext code {code} where none can be")


def _sha(value: Any) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(pack(value)).digest())[:43].decode()


_SUMMED = ("goto", "parts", "writes", "sends", "tasks", "input", "record", "state", "error")


def fact_sum(fields: Mapping[str, Field]) -> str:
    """SHA-256 over a fact's kind, task, token and stored values; kept in the fact, covered by the digest that takes it.

    A run's fact says `kind_of_run` instead: whether it is `run_started` or `run_queued` is decided when it is written.
    """
    said = [fields.get("kind_of_run") or fields["kind"], fields.get("task", ""), fields.get("token", "")]
    return _sha([*said, [fields.get(name) for name in _SUMMED]])


def stored(fields: Fields) -> dict[str, bytes]:
    """Fields as a stream keeps them."""
    return {
        name: value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        for name, value in fields.items()
    }


_DIGESTED = ("source", "step", "graph", "run", "node", "task", "attempt", "token", "next", "parts")
_DIGESTED_VALUES = ("delta", "state", "writes", "meta")


def digest_of(parent: str, n: int, fields: Mapping[str, Field], sums: Iterable[str]) -> str:
    """The identity of checkpoint n. `parent` is the parent's digest, or the thread's birth for the first one."""
    said = [str(fields.get(name, "")) for name in _DIGESTED]
    return _digest(parent, n, said, [fields.get(name, b"") for name in _DIGESTED_VALUES], sums)


def _digest(parent: str, n: int, said: list[str], values: list[Field], sums: Iterable[str]) -> str:
    return _sha([parent, n, said, values, list(sums)])


def idempotency_key(birth: str, n: int, digest: str, task: str) -> str:
    """The same over all attempts of a task, different for any other task: 43 characters."""
    return _sha([birth, n, digest, task])


@dataclass(frozen=True)
class Entry:
    """One fact of a log as it is stored. Reading a field never builds anything but text, numbers and bytes."""

    n: int
    k: int
    raw: Mapping[str, bytes]

    @property
    def id(self) -> str:
        return f"{self.n}-{self.k}"

    @property
    def kind(self) -> str:
        return self.text("kind")

    @property
    def is_checkpoint(self) -> bool:
        return self.k == 0

    def fields(self) -> Fields:
        """The fields as they were given to the log: text, and bytes for values."""
        return {name: value if name in VALUES else self.text(name) for name, value in self.raw.items()}

    def text(self, name: str) -> str:
        try:
            return self.raw.get(name, b"").decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise self.corrupt(f"field {name!r} is no text") from None

    def number(self, name: str) -> int:
        value = self.raw.get(name, b"0")
        try:
            found = int(value)
        except ValueError:
            raise self.corrupt(f"field {name!r} is not a number") from None
        if abs(found) > (TIME_MAX if name == "at" else NUMBER_MAX):
            raise self.corrupt(f"field {name!r} is no number that we write")
        return found

    def ref(self, name: str) -> str:
        """The entry id that a field holds; empty where it has none."""
        found = self.text(name)
        if found and not _ID.fullmatch(found):
            raise self.corrupt(f"field {name!r} is no entry id")
        return found

    def json(self, name: str) -> Any:
        raw = self.raw.get(name, b"null")
        if len(raw) > JSON_MAX:
            raise self.corrupt(f"field {name!r} has {len(raw):,} bytes, the cap is {JSON_MAX:,}")
        try:
            return json.loads(raw.decode("utf-8", "surrogatepass"))  # of bytes it would guess the encoding first
        except (ValueError, RecursionError):
            raise self.corrupt(f"field {name!r} is not JSON") from None

    def value(self, name: str) -> bytes | None:
        """A stored value out of its envelope; None where the entry has none."""
        found = self.raw.get(name)
        if found is None:
            return None
        if len(found) > FIELD_MAX:
            raise self.corrupt(f"field {name!r} has {len(found):,} bytes, the cap is {FIELD_MAX:,}")
        return found[1:] if found[:1] == PLAIN else unwrap(found, f"field {name!r} of entry {self.id}")

    def writes(self) -> list[tuple[str, bytes | None]]:
        """(channel, encoded value) in order; None stands for the value that the entry's own delta carries."""
        stored = self.value("writes")
        if stored is None:
            return []
        return self._pairs("writes", stored, _KEPT)

    def _pairs(self, name: str, stored: bytes, kinds: frozenset[type]) -> list[tuple[str, Any]]:
        try:
            found = [(first, second) for first, second in unpack(stored, _no_ext)]
        except MALFORMED:
            raise self.corrupt(f"field {name!r} is malformed") from None
        if not all(type(first) is str and type(second) in kinds for first, second in found):
            raise self.corrupt(f"field {name!r} does not hold names and values")
        return found

    def sends(self) -> list[tuple[str, bytes]]:
        """(node, encoded argument) of each Send in a part."""
        return self._pairs("sends", self.value("sends") or b"\x90", _SENT)

    @property
    def digest(self) -> str:
        return self.text("digest")

    def digest_on(self, parent: str, sums: Iterable[str] = ()) -> str:
        """The digest of a checkpoint that says the same, builds on `parent`, and takes facts of these sums."""
        raw = self.raw
        try:
            said = [raw[name].decode("utf-8", "surrogatepass") if name in raw else "" for name in _DIGESTED]
        except UnicodeDecodeError:
            raise self.corrupt("one of its fields is no text") from None
        return _digest(parent, self.n, said, [raw.get(name, b"") for name in _DIGESTED_VALUES], sums)

    @property
    def next(self) -> list[list[Any]]:
        """`[task, node, queue, timeout_s]` per PULL task, `[part entry id, count]` per Send part."""
        return self._rows("next")

    def _rows(self, name: str) -> list[list[Any]]:
        found = self._list(name)
        if not all(map(_is_row, found)):
            raise self.corrupt(f"field {name!r} is not a list of tasks and parts")
        return found

    def _list(self, name: str) -> list[Any]:
        found = self.json(name)
        if not isinstance(found, list):
            raise self.corrupt(f"field {name!r} is not a list")
        return found  # pyright: ignore[reportUnknownVariableType]

    @property
    def checkpoint_id(self) -> str:
        try:
            return checkpoint_id(self.n, self.digest)
        except ValueError:
            raise self.corrupt("its digest is none") from None

    @property
    def pieces(self) -> list[str]:
        """The parts that a snapshot's state lies in."""
        found = self._list("parts") if "parts" in self.raw else []
        if not all(type(ref) is str and _ID.fullmatch(ref) for ref in found):
            raise self.corrupt("field 'parts' is not a list of entry ids")
        return found

    @property
    def branch_of(self) -> Address | None:
        """The checkpoint that a branch or a fork builds on; None if it is the one before, as usual."""
        named = self.text("parent").rsplit(" ", 2)
        is_one = len(named) == 3 and re.fullmatch(r"\d{1,20}", named[1], re.ASCII)
        return Address(named[0], int(named[1]), named[2]) if is_one else None

    @property
    def instead_of(self) -> tuple[int, str] | None:
        """(n, digest) of the checkpoint whose place this one has taken, and is shown in: a replay at it, in place."""
        n, _, digest = self.text("instead").partition(" ")
        return (int(n), digest) if digest and re.fullmatch(r"\d{1,20}", n, re.ASCII) else None

    def corrupt(self, why: str) -> CorruptEntry:
        error = CorruptEntry(
            f"entry {self.id} is not readable: {why}",
            checkpoint=str(self.n),
            fix="the log was left as it is; `everstep recover --thread THREAD` shows what can be cut off",
        )
        return caused(error, None)


_NAMES: dict[Any, str] = {}  # of fields, as they are stored: those that were seen first


def _named(name: str | bytes) -> str:
    if isinstance(name, str):
        return name
    decoded = name.decode("utf-8", "surrogateescape")
    if len(_NAMES) < NAMES_KEPT and len(name) < NAMES_KEPT:
        _NAMES[name] = decoded
    return decoded


def read_entry(entry_id_text: str | bytes, raw: Mapping[Any, Any] | list[Any]) -> Entry:
    """An entry from a stream. `raw`: values by name, or in a list, each behind its name. Raises CorruptEntry for a
    foreign one and NewerVersion for a later format."""
    text = entry_id_text.decode() if isinstance(entry_id_text, bytes) else entry_id_text
    n, k = entry_id(text)
    pairs = zip(raw[::2], raw[1::2], strict=True) if isinstance(raw, list) else raw.items()
    fields = {_NAMES.get(name) or _named(name): value for name, value in pairs}
    entry = Entry(n, k, fields)
    version = fields.get("v", b"")
    if version != b"1":
        _refuse_version(entry, version)
    if k or fields.get("kind") != b"checkpoint":
        _check_kind(entry)
    return entry


def _check_kind(entry: Entry) -> None:
    if not entry.kind:
        raise entry.corrupt("it has no kind")
    if (entry.kind == CHECKPOINT) != entry.is_checkpoint:
        raise entry.corrupt(f"kind {entry.kind!r} can't have the id {entry.id}")


def _refuse_version(entry: Entry, version: bytes) -> None:
    if version.isdigit() and len(version) < 10 and int(version) > VERSION:
        raise NewerVersion(
            f"entry {entry.id} has format {version.decode()}, this everstep reads up to {VERSION}",
            checkpoint=str(entry.n),
            fix="upgrade everstep here before it reads this thread",
        )
    raise entry.corrupt("it has no format version: something else wrote to this stream")


def _is_row(row: Any) -> bool:
    """A task by name, or a part and how many Sends it has."""
    return isinstance(row, list) and len(row) in (2, 4) and type(row[0]) is str  # pyright: ignore


def pack_writes(writes: Sequence[tuple[str, bytes | None]]) -> bytes:
    """The stored form of a task's writes, in order."""
    return wrap(pack([[channel, value] for channel, value in writes]))


def pack_sends(sends: Sequence[tuple[str, bytes]]) -> bytes:
    """The stored form of a Send chunk: (node, encoded argument) in order."""
    return wrap(pack([[node, arg] for node, arg in sends]))


def fact(kind: str, run: str, /, **fields: Field | None) -> Fields:
    """The fields of a fact. Fields that say nothing (None) are left out; `at` is added by whoever appends it."""
    assert kind in FACTS, kind
    made: Fields = {"v": VERSION, "kind": kind, "run": run}
    made.update({name: value for name, value in fields.items() if value is not None})
    return made


def summed(fields: Fields) -> Fields:
    """The same fact with its `sum`."""
    fields["sum"] = fact_sum(fields)
    return fields


def checkpoint(on: str, n: int, sums: Iterable[str] = (), /, **fields: Field | None) -> Fields:
    """The fields of checkpoint n, digest included. `parent`: the digest (or birth) it builds on."""
    return digested(on, n, sums, {**BEGINS, **{k: v for k, v in fields.items() if v is not None}})


def digested(parent: str, n: int, sums: Iterable[str], made: Fields) -> Fields:
    """The same from fields that begin with BEGINS: what is given gets its digest."""
    made["digest"] = digest_of(parent, n, made, sums)
    return made
