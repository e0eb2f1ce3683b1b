"""What must hold: after each call of the store, and when all is at rest."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import part_tasks, state_at, verify

from .model import LOSSES_ALONE_MAX, WITHDRAWN, Model
from .world import Astray

ENDS = ("task_done", "task_failed", "task_lost", "task_paused")
RESTS = ("done", "failed", "interrupted", "cancelled")


def holds(model: Model) -> None:
    """After each call: counters, leases, queues and wakes tell the same as the records of the open tasks."""
    leased = 0
    for thread, t in model.threads.items():
        going, failed, asked = len(t.unmade), 0, 0
        for task, rec in t.open.items():
            place = rec.place
            going += place in WITHDRAWN
            failed += place == "failed"
            asked += place == "asked"
            if place == "lease":
                leased += 1
                if model.lease.get(rec.token) != (thread, task) or rec.token not in model.leases:
                    raise Astray(f"{task} of {thread} has a token of {model.lease.get(rec.token)}")
            elif place == "job" and rec.job not in model.queues.get(rec.waits_in, ()):
                raise Astray(f"{task} of {thread} waits in no queue")
            elif place == "wake" and (t.n, task, thread) not in model.wakes:
                raise Astray(f"{task} of {thread} is never woken")
        if t.status == "running" and ((t.left, t.failed, t.asked) != (going, failed, asked) or not going):
            said = f"{t.left} left, {t.failed} failed, {t.asked} asked"
            raise Astray(f"{thread} says {said}; its tasks say {going}, {failed}, {asked}")
        if t.status != "running" and going > len(t.unmade):
            raise Astray(f"{thread} is {t.status}, and tasks of it wait for workers or are at one")
    if leased != len(model.leases):
        raise Astray(f"{len(model.leases)} leases of {leased} tasks")


def at_rest(model: Model, thread: str) -> bool:
    t = model.threads[thread]
    return t.status in RESTS and not t.queued


def judged(model: Model, log: Log, executed: Counter[tuple[str, int, str]], disturbed: bool) -> None:
    """When all is at rest: nothing is left over, and each log tells of each task what it must."""
    left = {
        "queues": [jobs for jobs in model.queues.values() if jobs], "leases": model.leases, "tokens": model.lease,
        "held": model.held, "wakes": model.wakes, "parked": model.parked, "lines": model.gates.lines,
        "slots": model.gates.slots,
    }  # fmt: skip
    if some := {name: found for name, found in left.items() if found}:
        raise Astray(f"left over: {some}")
    for thread in log.threads():
        report = verify(log, thread)
        if not report.sound:
            raise Astray(f"{thread}: {report.problems}")
        _told(list(log.read(thread)), thread, executed, disturbed)


def poisoned(log: Log) -> bool:
    """Was a task given up because process after process died over it? It was, if several faults struck it alone.

    Raises Astray where it was given up too soon."""
    found = False
    for thread in log.threads():
        lost: Counter[tuple[int, str]] = Counter()
        for entry in log.read(thread):
            at = entry.n, entry.text("task")
            lost[at] += entry.kind == "task_lost"
            if entry.kind == "task_failed" and '"Poison"' in entry.text("error"):
                found = True
                if lost[at] <= LOSSES_ALONE_MAX:
                    raise Astray(f"{thread}: {at[1]} of step {at[0]} was given up after {lost[at]} losses")
    return found


def _told(entries: list[e.Entry], thread: str, executed: Counter[tuple[str, int, str]], disturbed: bool) -> None:
    """Each task that a checkpoint opened is done once before the next one; attempts rise; executions are counted."""
    done: Counter[tuple[int, str]] = Counter()
    never: Counter[tuple[int, str]] = Counter()  # ended, and perhaps nobody knew that it had begun
    ends: dict[tuple[int, str], list[int]] = defaultdict(list)
    tokens: Counter[str] = Counter()
    for entry in entries:
        n, task = entry.n - entry.is_checkpoint, entry.text("task")
        if entry.is_checkpoint and entry.text("source") == "input":
            continue  # the start's first checkpoint: the second one names it
        if entry.is_checkpoint and entry.text("node") == "__start__":
            n -= 1
        if not (entry.is_checkpoint or entry.kind in ENDS) or not entry.text("token"):
            continue
        # A claim that comes twice may lease a second task under its token, long after the first. It is lost, and nobody
        # knows of it.
        tokens[entry.text("token")] += entry.kind != "task_lost"
        never[n, task] += entry.kind == "task_lost"
        done[n, task] += entry.is_checkpoint or entry.kind == "task_done"
        ends[n, task].append(entry.number("attempt"))
    if twice := [token for token, count in tokens.items() if count > 1]:
        raise Astray(f"{thread}: told twice under one token: {twice}")
    # A run that stopped may begin again at its checkpoint, with the same names: an input over a step that was given up.
    for (n, task), attempts in ends.items():
        if task != "start" and attempts != sorted(set(attempts)):
            raise Astray(f"{thread}: attempts at {task} of step {n} are {attempts}")
        if task != "start" and done[n, task] > 1:
            raise Astray(f"{thread}: {task} of step {n} is done {done[n, task]} times")
        runs, lost = executed[thread, n, task], never[n, task]
        if not disturbed and task not in ("start", "join") and not len(attempts) - lost <= runs <= len(attempts):
            raise Astray(f"{thread}: {task} of step {n} ended {len(attempts)} times and ran {runs} times")
    _effects(entries, thread)
    _whole(entries, thread, done)


def _effects(entries: list[e.Entry], thread: str) -> None:
    """What one attempt recorded, no later one does again."""
    by: dict[tuple[int, str, str], set[str]] = defaultdict(set)
    for entry in entries:
        if entry.kind == "effect_done":
            by[entry.n, entry.text("task"), entry.text("effect")].add(entry.text("token"))
    if again := [effect for effect, tokens in by.items() if len(tokens) > 1]:
        raise Astray(f"{thread}: done again though it was recorded: {again}")


def _whole(entries: list[e.Entry], thread: str, done: Counter[tuple[int, str]]) -> None:
    """A checkpoint that follows a step has all tasks of it done."""
    by_id = {entry.id: entry for entry in entries}
    made = [entry for entry in entries if entry.is_checkpoint]
    handled = {(x.n, x.text("task").removeprefix("h_")) for x in entries if x.kind == "task_added"}
    for checkpoint, after in pairwise(made):
        if after.text("source") != "loop" or after.text("node") == "__start__":
            continue  # an input gives up what was open
        for row in checkpoint.next:
            for task in [row[0]] if len(row) == 4 else [x.task for x in part_tasks(by_id[row[0]])]:
                if done[checkpoint.n, task] != 1 and (checkpoint.n, task) not in handled:
                    raise Astray(f"{thread}: {task} of step {checkpoint.n} is done {done[checkpoint.n, task]} times")


def outcome(model: Model, log: Log) -> dict[str, Any]:
    """What a schedule came to: how its threads rest, and their states."""
    return {thread: (model.threads[thread].status, _state(log, thread)) for thread in sorted(model.threads)}


def _state(log: Log, thread: str) -> list[tuple[str, bytes]]:
    """Nothing where a run was given up, or stopped, before its first checkpoint."""
    head = log.head(thread)
    return sorted(state_at(log, thread).channels.items()) if head is not None and head.n else []
