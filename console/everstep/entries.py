"""The entries of a log, as people and programs read them. One that can't be read is shown too, with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN, array_header
from everstep_checkpoint.delta import decode_delta, decode_state
from everstep_checkpoint.errors import EverstepError
from everstep_checkpoint.replay import input_writes

from . import show

FIRST = (
    "source",
    "step",
    "node",
    "task",
    "effect",
    "attempt",
    "status",
    "error",
    "next",
    "goto",
    "parts",
    "actor",
    "ms",
)
LONG = ("token", "digest", "sum", "insum", "birth", "parent", "sig")
SHORT = {"by": "everstep."}
OPS = ("set", "append", "merge", "splice", "delete", "take", "take_append")
Raw = Mapping[Any, Any]


@dataclass(frozen=True)
class Shown:
    """One entry. `fields`: plain ones as text, binary ones as size or value. `problem`: why it is unreadable."""

    id: str
    kind: str
    at: int
    fields: dict[str, Any]
    problem: str = ""

    def document(self) -> dict[str, Any]:
        """For programs."""
        said = {"id": self.id, "kind": self.kind, "at_ms": self.at, "fields": self.fields}
        return {**said, "problem": self.problem} if self.problem else said

    def text(self) -> str:
        """For people: one line."""
        names = [*(name for name in FIRST if name in self.fields), *(name for name in self.fields if name not in FIRST)]
        words = [f"{name}={_said(name, self.fields[name])}" for name in names if self.fields[name] != ""]
        kind = show.paint(f"{show.clean(self.kind):<14}", _word(self.kind))
        said = f"{self.id:>8}  {show.moment(self.at)}  {kind}  {' '.join(words)}"
        return said + (f"  {show.paint('NOT READABLE: ' + self.problem, 'x')}" if self.problem else "")


def shown(entry_id: bytes, raw: Raw, *, values: bool, check: Callable[[e.Entry], object] = lambda entry: None) -> Shown:
    """An entry as it came from the stream, ours or not. `check` raises for one that is not to be believed."""
    fields = {_text(name): bytes(value) for name, value in raw.items()}
    try:
        entry = e.read_entry(entry_id, fields)
        check(entry)
        said = {name: _field(entry, name, values) for name in fields if name not in ("v", "kind", "at")}
        return Shown(entry.id, entry.kind, entry.number("at"), said)
    except (EverstepError, ValueError) as error:
        problem = error.what if isinstance(error, EverstepError) else str(error)
        plain = {name: _text(value[:80]) for name, value in fields.items()}
        return Shown(_text(entry_id), plain.get("kind", "?"), _number(fields.get("at", b"")), plain, problem)


def _field(entry: e.Entry, name: str, values: bool) -> Any:
    if name not in e.VALUES:
        return entry.text(name)
    if not values:
        return {"bytes": len(entry.raw[name])}
    try:
        return {"value": _decoded(entry, name)}
    except EverstepError as error:
        return {"bytes": len(entry.raw[name]), "problem": error.what}


def _decoded(entry: e.Entry, name: str) -> Any:
    """What a binary field holds, as plain data."""
    stored = entry.value(name) or b""
    match name:
        case "delta":
            return {channel: _op(op) for channel, op in decode_delta(stored).items()}
        case "state":
            # in a part it is a piece of one
            return dict(_each(decode_state(stored).items())) if entry.is_checkpoint else len(stored)
        case "writes":
            return dict(_each(entry.writes()))
        case "input":
            return dict(_each(input_writes(entry)))
        case "sends":
            return [{node: PLAIN.decode(value)} for node, value in entry.sends()]
        case "answer" if not stored:
            return "(none: look again at what was called)"
        case _:
            return PLAIN.decode(stored)


def _each(pairs: Any) -> Iterator[tuple[str, Any]]:
    for name, value in pairs:
        yield name, "(as in delta)" if value is None else PLAIN.decode(value)


def _op(op: list[Any]) -> list[Any]:
    """An op of a delta with its values decoded where they are values."""
    word = OPS[int(op[0])]
    if word == "set":
        return [word, PLAIN.decode(op[1])]
    if word == "append":
        return [word, PLAIN.decode(array_header(op[1]) + op[2])]
    if word == "merge":
        return [word, {str(key): _op(each) for key, each in op[1]}]
    if word == "splice":
        return [word, op[1], op[2], PLAIN.decode(array_header(op[3]) + op[4])]
    return [word, *op[1:]]


def _said(name: str, value: Any) -> str:
    if not isinstance(value, str):
        return show.size(value["bytes"]).replace(" ", "") if "bytes" in value else show.value(value["value"], 400)
    text = value.removeprefix(SHORT.get(name, ""))
    if name in LONG:
        return show.clean(text[:8])
    if name == "error" and text.startswith("{"):
        return show.clean(_error(text))
    return show.clean(text) if " " not in text else show.clean(json.dumps(text, ensure_ascii=False))


def _error(text: str) -> str:
    try:
        said = json.loads(text)
        return f"{said.get('type')}: {said.get('text')}"
    except (ValueError, AttributeError, RecursionError):
        return text


def _word(kind: str) -> str:
    return kind.partition("_")[2]


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _number(value: bytes) -> int:
    return int(value) if value.isdigit() and len(value) < 16 else 0
