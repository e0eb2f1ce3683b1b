"""Addressed: the checkpoint that a `checkpoint_id` names, and who wrote last before it. Read from the log alone."""

from __future__ import annotations

from collections.abc import Iterator

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import InvalidUpdateError, NotFound
from everstep_checkpoint.log import Log, unknown_thread
from everstep_checkpoint.replay import State, commanded, state_at

from ..graph.runtime import END, START
from ..moves.record import checkpoint_number

WALK_MAX = 1000


def addressed(log: Log, thread: str, checkpoint_id: str) -> State:
    """The state at a checkpoint of the thread, by its id; of one that was replayed in place, at what stands there now.

    Raises InvalidInput for what is no id, NotFound for one that this thread does not have, Trimmed, UnknownThread.
    """
    number = checkpoint_number(checkpoint_id)
    head = log.head(thread)
    if head is None:
        raise unknown_thread(thread)
    if not 1 <= number <= head.n:
        raise unknown_checkpoint(thread, checkpoint_id)
    state = state_at(log, thread, number)
    if state.entry.checkpoint_id != checkpoint_id:
        raise another_checkpoint(thread, checkpoint_id, state.entry)
    now = standing_in(log, thread, number)
    return state if now == number else state_at(log, thread, now)


def standing_in(log: Log, thread: str, n: int) -> int:
    """The number of what stands in the place of checkpoint n: itself, unless it was replayed in place."""
    while (after := log.read(thread, f"{n + 1}-0", f"{n + 1}-0")) and after[0].instead_of is not None:
        n += 1
    return n


def id_standing_in(log: Log, thread: str, checkpoint_id: str) -> str:
    """The id of what stands in the place of a checkpoint; one that nobody knows as it is."""
    n = checkpoint_number(checkpoint_id)
    found = log.read(thread, f"{n}-0", f"{n}-0")
    if not found or found[0].checkpoint_id != checkpoint_id or (now := standing_in(log, thread, n)) == n:
        return checkpoint_id
    return log.read(thread, f"{now}-0", f"{now}-0")[0].checkpoint_id


def unknown_checkpoint(thread: str, named: object) -> NotFound:
    return NotFound(f"no checkpoint {named}", thread=thread, fix="`everstep history` lists those that are there")


def another_checkpoint(thread: str, named: str, found: e.Entry) -> NotFound:
    return NotFound(
        f"no checkpoint {named}: number {found.n} of this thread is {found.checkpoint_id}",
        thread=thread,
        fix="the id is of another thread, or of one that was deleted since; `everstep history` lists those of this one",
    )


def last_writer(log: Log, thread: str, at: e.Entry | None) -> str:
    """The node that an update of checkpoint `at` stands for where nobody says one: the one that ran last.

    START where none has run yet (LangGraph: `_infer_as_node`). Updates and Sends do not count; a step that was given up
    does. Raises InvalidUpdateError if several ran at once.
    """
    if at is None:
        return START
    for entry in _back(log, thread, at):
        ran = _ran(log, thread, entry)
        if len(ran) > 1:
            break
        if ran:
            return ran[0]
        on = entry.branch_of
        if (entry.n == 1) if on is None else (on.n == 0):  # nothing is before it: also a copy of such a checkpoint
            return START
    raise InvalidUpdateError("Ambiguous update, specify as_node", thread=thread, fix="update_state(..., as_node='...')")


def _back(log: Log, thread: str, at: e.Entry) -> Iterator[e.Entry]:
    """A checkpoint and those before it, along its branch. Before a copy is what it repeats, though it stands beside
    that one: who wrote last there wrote last here."""
    entry: e.Entry | None = at
    for _ in range(WALK_MAX):
        if entry is None:
            return
        yield entry
        entry = _repeated(log, thread, entry) or _before(log, thread, entry)


def _repeated(log: Log, thread: str, entry: e.Entry) -> e.Entry | None:
    """The checkpoint of this thread that a copy repeats, as its run's fact says; None for what is no copy of one."""
    if entry.text("source") != "fork":
        return None
    facts, run = log.pages(thread, f"{entry.n - 1}-1", str(entry.n - 1)), entry.text("run")
    named = next((x.text("on") for x in facts if x.kind == "run_started" and x.text("run") == run), "")
    n, _, digest = named.partition(" ")
    found = log.read(thread, f"{n}-0", f"{n}-0") if n.isdecimal() and 0 < int(n) < entry.n else []
    return found[0] if found and found[0].digest == digest else None


def _before(log: Log, thread: str, entry: e.Entry) -> e.Entry | None:
    """The checkpoint that an entry builds on, in whichever thread it is; None if there is none, or it was trimmed."""
    named = entry.branch_of or e.Address(thread, entry.n - 1, "")
    found = log.read(named.thread, f"{named.n}-0", f"{named.n}-0") if named.n else []
    return found[0] if found and named.digest in ("", found[0].digest) else None


def _ran(log: Log, thread: str, entry: e.Entry) -> list[str]:
    """The nodes that edges led to and that were done, or given up, by the step that a checkpoint closed."""
    source = entry.text("source")
    if source == "fork" or (source == "update" and entry.text("node") != END):
        return []
    if source == "input" and len(entry.next) > 1:  # it waits beside what is open, and gave up nothing
        return []
    if entry.text("task") == "start":
        return [START]
    before = _before(log, thread, entry)
    if before is None:
        return []
    added = [x.text("node") for x in log.pages(thread, f"{before.n}-1", str(before.n)) if _commanded(x)]
    return [*(str(row[1]) for row in before.next if len(row) == 4), *added]


def _commanded(fact: e.Entry) -> bool:
    """Does it add a node that a Command went to?"""
    return fact.kind == "task_added" and commanded(fact.text("task"))
