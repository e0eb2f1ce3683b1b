"""Branches: what a checkpoint brings along where it is repeated, at the head of its own log or in a new one.

    checkpoint ──► its state (pieces, if large), its tasks (copies of its Send parts), its run's record and input

A repeated checkpoint stands alone: nothing of it refers to what lies before. The fork into a new thread is here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import entries as e
from .delta import encode_state
from .errors import ThreadBusy, Trimmed
from .ids import new_id
from .log import PAGE, Head, Log
from .replay import RUN_FACTS, Channels, State, commanded, snapshot_before, state_at, step_of

START_TASK = "start"
_PART_FIELDS = ("task", "token", "tasks", "sends")


@dataclass(frozen=True)
class Copied:
    """What a checkpoint's `next` needs in another place: rows of its PULL tasks, and its Send parts as new facts."""

    pulls: tuple[tuple[Any, ...], ...]
    parts: tuple[e.Fields, ...]

    def rows(self, refs: Sequence[str]) -> list[list[Any]]:
        """`next`, once the copies of the parts have these entry ids."""
        counts = [len(e.Entry(0, 1, {"sends": _bytes(part["sends"])}).sends()) for part in self.parts]
        return [*map(list, self.pulls), *([ref, count] for ref, count in zip(refs, counts, strict=True))]


def _bytes(value: e.Field) -> bytes:
    assert isinstance(value, bytes)
    return value


def copied(log: Log, thread: str, state: State, run: str, *, added: bool = False) -> Copied:
    """The tasks of a checkpoint, to be opened again in `run`; `added`: with those that Commands added to them.

    Raises CorruptEntry if a part of it is gone.
    """
    step = step_of(log, thread, state.n)
    own = {str(row[0]) for row in state.entry.next}
    pulls = [t for t in step.tasks if not t.part and (t.task in own or (added and commanded(t.task)))]
    names = {t.task: f"p{i}" if added and t.task != START_TASK else t.task for i, t in enumerate(pulls)}
    parts: list[e.Fields] = []
    for part in (part for ref, part in step.parts.items() if added or ref in own):
        kept = {name: value for name, value in part.fields().items() if name in _PART_FIELDS}
        parts.append(e.summed(e.fact("part", run, **kept)))
    return Copied(tuple((names[t.task], t.node, t.queue, t.timeout_s) for t in pulls), tuple(parts))


def state_fields(channels: Channels, run: str) -> tuple[e.Fields, list[e.Fields]]:
    """A state whole: the field `state`; or, if it is large, its pieces, to be named by the field `parts`."""
    body, most = encode_state(channels), e.PART_BYTES_MAX
    if len(body) <= most:
        return {"state": e.wrap(body)}, []
    pieces = [e.summed(e.fact("part", run, state=e.wrap(body[i : i + most]))) for i in range(0, len(body), most)]
    return {}, pieces


def run_fact(log: Log, thread: str, run: str, entry: e.Entry, *, with_input: bool = False) -> e.Entry | None:
    """The entry with a run's record, looking back from one of its entries; None where it was trimmed.

    Snapshots repeat the record; `with_input` asks for the fact that has the input, too.
    """
    end = entry.id
    while found := log.read(thread, "-", end, PAGE, reverse=True):
        for each in found:
            if each.text("run") != run or not (each.kind in RUN_FACTS or "record" in each.raw):
                continue
            if "record" in each.raw and not with_input:
                return each
            if not each.is_checkpoint:
                of = each.ref("of")
                return next(iter(log.read(thread, of, of)), None) if of else each
        end = f"({found[-1].id}"
    return None


def told(log: Log, thread: str, state: State) -> dict[str, bytes]:
    """The stored `record` and `input` of the run that made a checkpoint; the input only if it is still to be applied.

    Raises Trimmed if the input is needed and gone.
    """
    waits = any(row[0] == START_TASK for row in state.entry.next)
    found = run_fact(log, thread, state.entry.text("run"), state.entry, with_input=waits)
    names = ("record", "input") if waits else ("record",)
    said = {} if found is None else {name: found.raw[name] for name in names if name in found.raw}
    if waits and "input" not in said:
        raise Trimmed(
            f"the input of checkpoint {state.n} was trimmed", thread=thread, fix="branch from a later checkpoint"
        )
    return said


def fork(log: Log, thread: str, n: int, target: str) -> Head:
    """Begin the new thread `target` with the state of checkpoint n of `thread`. See `Log.fork`."""
    if log.head(target) is not None:
        raise ThreadBusy("the target of a fork already has a log", thread=target, fix="give a new thread id")
    state = state_at(log, thread, n)
    birth, run = new_id(), state.entry.text("run")
    copy = copied(log, thread, state, run)
    parent = str(e.Address(thread, n, state.digest))
    first = e.summed(e.fact("note", run, birth=birth, of=parent, **told(log, thread, state)))
    refs = [f"0-{k}" for k in range(2, 2 + len(copy.parts))]
    body = state.snapshot_fields(birth)
    made = e.checkpoint(
        birth, 1, [str(part["sum"]) for part in copy.parts],
        **{**body, "source": "fork", "parent": parent, "next": json.dumps(copy.rows(refs)), "floor": "0-1"},
    )  # fmt: skip
    log.append(target, [first, *copy.parts, made], None)
    return Head(1, str(made["digest"]), "1-0")


def grounds(log: Log, thread: str) -> Iterator[str]:
    """The lowest entries that runs of the open step need because they build on an earlier checkpoint (`on`)."""
    head = log.head(thread)
    for fact in log.pages(thread, f"{head.n}-0", str(head.n)) if head is not None else ():
        n, _, digest = fact.text("on").partition(" ")
        if digest and fact.kind in RUN_FACTS:
            _, found = snapshot_before(log, thread, int(n))
            yield found[0].id if found else "0-1"
