"""Branching in place: an earlier checkpoint is put at the head of its thread again; a run goes on from it, or rests.

    Wish ──► ask: would it pass? ──► parts ahead (Sends, a large state) ──► the checkpoint, hashed ──► Moves.branch
      ▲                                                                                                    │
      └──────────────────────────────── the head moved meanwhile ──────────────────────────────────────────┘

No user code runs here, so anybody can branch: an inline caller, a client of the fleet, the command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from everstep_checkpoint import entries as e
from everstep_checkpoint.branching import Copied, copied, state_fields, told
from everstep_checkpoint.codec import PLAIN, Codec
from everstep_checkpoint.errors import Conflict, InvalidInput, InvalidResume, RunConflict, ThreadBusy, Trimmed
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.log import Head, Log
from everstep_checkpoint.replay import State, commands_of, input_writes, state_at

from ..moves.contract import START_NODE, START_TASK, Branch, Commanded, Moves, Offer, Start, Started
from ..moves.record import On, RunRecord, commands, input_sum, kind_of, start_with
from ..reading.addressed import addressed
from ..reading.overlay import overlaid_state
from ..reading.questions import open_step, refused

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec

TRIES = 5
PIECES_A_CALL = 8
FRESH_STEP = -2


@dataclass(frozen=True)
class Wish:
    """What is to stand at the head. `at`: the checkpoint whose state it repeats, None on a new thread.

    `start`: the run, its record and input. `parent`: what it builds on, `at` by default. `input`: the run's own input
    is to be applied next, beside the tasks that are open at `at` (LangGraph: as_node="__input__"). `channels`: the
    state of a new thread, or that of `at` with what Commands updated. `rests`: the run ends here, and whoever continues
    goes on. `added`: with the tasks that Commands added at `at`. `more`: with those that a Command adds now. `again`:
    it takes the place of `at`, which is the head.
    """

    thread: str
    start: Start
    at: State | None
    source: str = "fork"
    parent: e.Address | None = None
    input: bool = False
    channels: dict[str, bytes] | None = None
    rests: bool = False
    added: bool = False
    more: Commanded | None = None
    again: bool = False


@dataclass(frozen=True)
class Branched:
    """The answer of the move, and (n, digest) of the checkpoint that it put at the head."""

    started: Started
    n: int
    digest: str


@dataclass(frozen=True)
class Travel:
    """Where a run begins that names a checkpoint. `how`: replay it, as it is or as a Command changes it, apply an input
    to it, or go on as usual (plain). `again`: a replay in place, without a checkpoint more to be seen."""

    how: Literal["replay", "command", "input", "plain"]
    at: State
    again: bool = False


def travel(log: Log, thread: str, checkpoint_id: str, data: object) -> Travel:
    """What a `checkpoint_id` means for a run, with an input or without (LangGraph: `_loop._first`).

    An input or an answer at the last checkpoint is one as any other; an answer elsewhere finds no question that waits.
    A replay, and a Command that answers nothing, always begin a branch, also at the last checkpoint, unless that one is
    an update or a fork: then all its tasks run in place, again if they did before (LangGraph: `is_replaying` without
    `forks`).

    Raises InvalidInput, NotFound, Trimmed, InvalidResume.
    """
    at, head = addressed(log, thread, checkpoint_id), log.head(thread)
    last = head is not None and head.n == at.n
    kind = kind_of(data)
    told = commands(data) and getattr(data, "resume", None) is None
    if kind == "resume" and not told and not last:
        raise InvalidResume(
            "an answer is for a question that waits at the last checkpoint",
            thread=thread,
            checkpoint=checkpoint_id,
            fix="replay that checkpoint, invoke(None, config): it asks again, on a branch; then give the answer without"
            " a checkpoint_id. Command(update=..., goto=...) without `resume` is taken here",
        )
    if kind != "continue" and not told:
        return Travel("plain" if last else "input", at)
    again = last and at.entry.text("source") in ("update", "fork")
    if again and at.entry.checkpoint_id == checkpoint_id and not _was_begun(log, thread):
        return Travel("plain", at)
    return Travel("command" if told else "replay", at, again)


def _was_begun(log: Log, thread: str) -> bool:
    """Is there anything in the open step that a replay must forget? While a run is under way nothing is decided here:
    it is refused, or taken up, as any run that goes on."""
    told = open_step(log, thread)
    return told is not None and not told.running and any(task.touched for task in told.tasks)


def replaying(log: Log, thread: str, start: Start, at: State, spec: GraphSpec | None, *, again: bool = False) -> Wish:
    """The replay of a checkpoint, with what Commands said there: their tasks, and their updates of its state. `again`:
    in its place.

    Raises InvalidInput where that takes reducers that are not at hand; Trimmed.
    """
    if spec is None and commands_of(log, thread, at.n):
        raise InvalidInput(
            "a Command updated the state at this checkpoint, and only the graph's code can apply that",
            thread=thread,
            checkpoint=at.entry.checkpoint_id,
            fix="replay it where the graph's code is: client.graph(name, compiled)",
        )
    channels = overlaid_state(spec, log, thread, at) if spec is not None else None
    wish = Wish(thread, start, at, channels=channels, added=True)
    return _in_place(log, wish, at) if again else wish


def _in_place(log: Log, wish: Wish, at: State) -> Wish:
    """The replay of the head without a fork: what stands in its place builds on what it builds on. Its tasks are new
    ones, so nothing that the log says of those before is theirs."""
    return replace(wish, source=at.entry.text("source"), parent=copy_of(log, wish.thread, at), again=True)


def on(state: State) -> On:
    """A checkpoint as a run's fact names what the run builds on."""
    return On(state.n, state.digest, state.entry.number("step"))


def first_of(state: State) -> On:
    """The same; of one that was replayed in place the first, so that the same call sent again is known as the same."""
    return On(*(state.entry.instead_of or (state.n, state.digest)), state.entry.number("step"))


def forking(
    log: Log,
    thread: str,
    at: State,
    record: RunRecord | None,
    run: str,
    graph: str,
    queue: str,
    codec: Codec = PLAIN,
    insum: str = "",
) -> Start:
    """The run of a replay of checkpoint `at`, or of a copy that rests. If the input of `at` is still to be applied, it
    comes along. `record` None: as the run was told that made `at`. `insum` tells it from others, if `at` does not."""
    said = told(log, thread, at)
    stored = said.get("record")
    known = RunRecord.decode(e.unwrap(stored, "the run's record")) if stored else RunRecord()
    mine = known if record is None else replace(record, form=known.form)
    writes = input_writes(e.Entry(0, 1, {"kind": b"run_started", **said}))
    given = _filled(writes)
    if at.entry.instead_of is not None and not insum:
        insum = input_sum(graph, "fork", [*given, first_of(at).said])
    return start_with(
        replace(mine, kind="fork"), given, thread=thread, run=run, graph=graph, queue=queue, codec=codec,
        on=on(at), insum=insum,
    )  # fmt: skip


def _filled(writes: Sequence[tuple[str, bytes | None]]) -> list[tuple[str, bytes]]:
    return [(name, value) for name, value in writes if value is not None]


def copy_of(log: Log, thread: str, at: State) -> e.Address:
    """What a copy of `at` builds on: what `at` itself builds on, so that both are siblings (LangGraph: `__copy__`)."""
    if named := at.entry.branch_of:
        return named
    before = log.read(thread, f"{at.n - 1}-0", f"{at.n - 1}-0") if at.n > 1 else []
    if at.n > 1 and not before:
        raise Trimmed(f"what checkpoint {at.n} builds on was trimmed", thread=thread, fix="copy a later checkpoint")
    return e.Address(thread, at.n - 1, before[0].digest if before else at.birth)


def branch(
    log: Log,
    moves: Moves,
    wish: Wish,
    offer: Callable[[], Offer] | None = None,
    insist: Callable[[Callable[[], Started]], Started] = lambda action: action(),
) -> Branched:
    """Put what is wished at the head. Raises ThreadBusy, RunConflict, Conflict, Trimmed, CorruptEntry, ServerError."""
    for _ in range(TRIES):
        head = log.head(wish.thread)
        asked = insist(partial(moves.branch, _question(wish, head), ask=True))
        made = _made(log, wish, head) if asked.status == "ready" else None
        if made is not None:
            asked = insist(partial(moves.branch, made, offer() if offer is not None else None))
            if asked.status == "started":
                return Branched(asked, *made.head[:2])
        if error := refused(asked.status, wish.thread):
            raise error
        if asked.status in ("attached", "conflict", "busy"):
            return Branched(_settled(asked, wish), *_known(log, wish, asked))
    raise Conflict("the thread moves on while it is branched", thread=wish.thread, fix="stop its producers first")


def _settled(started: Started, wish: Wish) -> Started:
    if started.status == "busy":
        raise ThreadBusy("a run is under way on the thread", thread=wish.thread, fix="wait for it, or cancel it")
    if started.status == "conflict":
        raise RunConflict(
            f"run {wish.start.run!r} was used with another input", thread=wish.thread, fix="give a new run_id"
        )
    return started


def _known(log: Log, wish: Wish, started: Started) -> tuple[int, str]:
    """The checkpoint that this very run has put at the head before."""
    n = e.entry_id(started.entry)[0] + 1
    found = log.read(wish.thread, f"{n}-0", f"{n}-0")
    return n, found[0].digest if found else ""


def _after(head: Head | None) -> tuple[int, str]:
    return (head.n, head.digest) if head is not None else (0, new_id())


def _question(wish: Wish, head: Head | None) -> Branch:
    return Branch(wish.start, _after(head), {}, (0, "", 0))


def _made(log: Log, wish: Wish, head: Head | None) -> Branch | None:
    """The checkpoint with all that it names; what it names is written. None if the head moved meanwhile."""
    n, digest = after = _after(head)
    run, at, birth = wish.start.run, wish.at, _birth(log, wish.thread, head, digest)
    tasks = _with(copied(log, wish.thread, at, run, added=wish.added) if at is not None else Copied((), ()), wish.more)
    whole, pieces = _state(wish, run)
    try:
        refs = _written(log, wish.thread, [*tasks.parts, *pieces], after)
    except Conflict:
        return None
    rows = _rows(wish, tasks, refs[: len(tasks.parts)])
    parent = wish.parent or (e.Address(wish.thread, at.n, at.digest) if at is not None else None)
    step = (at.entry.number("step") if at is not None else FRESH_STEP) + (not wish.again)
    said: e.Fields = {
        "source": wish.source, "step": step, "graph": _graph(wish), "run": run, "next": json.dumps(rows),
        "birth": birth, "record": wish.start.fields["record"], "floor": f"{n}-1", **whole,
    }  # fmt: skip
    said |= {"parent": str(parent)} if parent is not None else {}
    said |= {"parts": json.dumps(refs[len(tasks.parts) :])} if pieces else {}
    said |= _place_of(at) if at is not None and wish.again else {}
    sums = [str(part["sum"]) for part in (*tasks.parts, *pieces)]
    made = e.checkpoint(parent.digest if parent is not None else birth, n + 1, sums, **said)
    start = _start(wish, at, birth if head is None else "")
    named = {ref: str(part["tasks"]) for ref, part in zip(refs, tasks.parts, strict=False)}
    put = Branch(start, after, made, (n + 1, str(made["digest"]), step), tuple(map(tuple, rows)), named)
    return replace(put, stop="interrupted") if wish.rests and rows else put


def _with(tasks: Copied, more: Commanded | None) -> Copied:
    """With what a Command adds: no node that is there already, all by node as a plan has them, then the Sends."""
    if more is None:
        return tasks
    there = {row[1] for row in tasks.pulls}
    pulls = [*(row[1:] for row in tasks.pulls), *(each for each in more.tasks if each[0] not in there)]
    named = ((f"p{i}", *row) for i, row in enumerate(sorted(pulls, key=lambda row: str(row[0]))))
    return Copied(tuple(named), (*tasks.parts, *(fields for fields, _ in more.parts)))


def _place_of(at: State) -> e.Fields:
    """What says whose place a checkpoint takes; an update as END says which it is by its node."""
    node, first = at.entry.text("node"), first_of(at)
    return {"instead": f"{first.n} {first.digest}", **({"node": node} if node else {})}


def _birth(log: Log, thread: str, head: Head | None, fresh: str) -> str:
    if head is None:
        return fresh
    return state_at(log, thread, head.n).birth if head.n else head.digest


def _state(wish: Wish, run: str) -> tuple[e.Fields, list[e.Fields]]:
    if wish.channels is None and wish.at is not None:
        return state_fields(wish.at.channels, run)
    return state_fields(wish.channels or {}, run)


def _written(log: Log, thread: str, parts: Sequence[e.Fields], after: tuple[int, str]) -> list[str]:
    """Parts go ahead of the checkpoint that names them, a few a call; until then they mean nothing."""
    refs: list[str] = []
    for i in range(0, len(parts), PIECES_A_CALL):
        refs += log.append(thread, parts[i : i + PIECES_A_CALL], after)
    return refs


def _rows(wish: Wish, tasks: Copied, refs: Sequence[str]) -> list[list[Any]]:
    rows = tasks.rows(refs)
    if not wish.input:
        return rows
    start = [START_TASK, START_NODE, wish.start.queue, 0]
    pulls = [row for row in rows if len(row) == 4 and row[0] != START_TASK]
    return [*sorted([*pulls, start], key=lambda row: str(row[1])), *(row for row in rows if len(row) == 2)]


def _graph(wish: Wish) -> str:
    """`name@fingerprint` of the graph that made the checkpoint, or the name alone."""
    return wish.at.entry.text("graph") if wish.at is not None else wish.start.graph


def _start(wish: Wish, at: State | None, birth: str) -> Start:
    base = at.entry.number("step") if at is not None else FRESH_STEP
    more: e.Fields = {"step": base, **({"birth": birth} if birth else {})}
    return replace(wish.start, fields={**wish.start.fields, **more}, base=base)
