"""Laws that one log must keep by itself, whoever died while it was written.

I2 no gap · I3 each task done once · I4 fences · I5 one line of digests · I10 answers · I11 cancels
· I13 losses are bounded
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from everstep_checkpoint.entries import Entry, digest_of, fact_sum

from .stories import GIVEN_UP, JOIN, OUTCOMES, Part, Story

LOSSES_MAX = 5  # two expired leases make a suspect, three losses alone a dead letter
ENDS = ("task_lost", *OUTCOMES)


class Violation(NamedTuple):
    """A law that was broken, where, and how."""

    law: str
    thread: str
    said: str


def broken_in(story: Story) -> Iterator[Violation]:
    """All that is wrong with one log."""
    if story.broken:
        yield Violation("I7", story.thread, story.broken)
    for law, check in LAWS:
        for said in check(story):
            yield Violation(law, story.thread, said)


# I2


def no_gap(story: Story) -> Iterator[str]:
    """Checkpoints are 1, 2, 3, ...; facts of each step 1, 2, 3, ...; nothing was ever taken out."""
    n, k = 0, 0
    for entry in story.entries:
        wanted = (n + 1, 0) if entry.is_checkpoint else (n, k + 1)
        if (entry.n, entry.k) != wanted:
            yield f"{entry.id} stands where {wanted[0]}-{wanted[1]} belongs"
        n, k = entry.n, entry.k
    rows = len(story.stream.rows)
    if story.stream.added is not None and story.stream.added != rows:
        yield f"{story.stream.added} entries were added, {rows} are there"


# I3


def done_once(story: Story) -> Iterator[str]:
    """Each task of a step that was closed is done exactly once, by a fact or by the checkpoint that closed the step."""
    for i, part in enumerate(story.parts):
        closing = story.parts[i + 1].checkpoint if i + 1 < len(story.parts) else None
        done = Counter(fact.text("task") for fact in part.facts if fact.kind == "task_done")
        done.update(fact.text("task") for fact in part.facts if "handler" in fact.raw)
        by = closing.text("task") if closing is not None else ""
        if by and by != JOIN and by in part.names:
            done[by] += 1
        yield from (f"step {part.n}: {task} is done {times} times" for task, times in done.items() if times > 1)
        if closing is not None and part.checkpoint is not None:
            yield from _closed(part, closing, done)


def _closed(part: Part, closing: Entry, done: Counter[str]) -> Iterator[str]:
    by = closing.text("task")
    if closing.text("source") in GIVEN_UP:
        return
    if by != JOIN and by not in part.names:
        yield f"checkpoint {closing.n} was written by {by or 'nobody'}, which step {part.n} does not name"
    missing = [task for task in part.names if not done[task] and not task.startswith("h_")]
    if missing:
        yield f"step {part.n} was closed without {', '.join(missing[:3])}"


def settled_once(story: Story) -> Iterator[str]:
    """One attempt has one outcome: a token settles its task once."""
    settled = Counter((each.text("token"), each.text("task")) for each in _settlements(story))
    for (token, task), times in settled.items():
        if token and times > 1:
            yield f"the attempt {token} at {task} has {times} outcomes"


def _settlements(story: Story) -> Iterator[Entry]:
    """Entries that say how an attempt ended, checkpoints too."""
    for entry in story.entries:
        if entry.kind in OUTCOMES or (entry.is_checkpoint and entry.text("token")):
            yield entry


# I4


def fenced(story: Story) -> Iterator[str]:
    """Who lost a task settles nothing; each taker's attempt is a later one."""
    for part, closing in with_closing(story):
        lost: dict[str, str] = {}
        last: dict[str, int] = {}
        for entry in [*part.facts, *closing]:
            task, token, attempt = entry.text("task"), entry.text("token"), entry.number("attempt")
            if entry.kind not in ENDS and not entry.is_checkpoint:
                continue
            if token and token in lost:
                yield f"{entry.id}: the attempt {token} at {task} was lost in {lost[token]}, and settles"
            if attempt and attempt <= last.get(task, 0):
                yield f"{entry.id}: attempt {attempt} at {task} comes after attempt {last[task]}"
            if entry.kind == "task_lost":
                lost[token] = entry.id
            if entry.kind == "task_lost" or (entry.kind == "task_failed" and attempt):
                last[task] = attempt


def with_closing(story: Story) -> Iterator[tuple[Part, list[Entry]]]:
    """Each step, and the checkpoint that closed it, if it is closed."""
    for i, part in enumerate(story.parts):
        closing = story.parts[i + 1].checkpoint if i + 1 < len(story.parts) else None
        yield part, [] if closing is None else [closing]


# I5


def one_line(story: Story) -> Iterator[str]:
    """Each checkpoint's digest covers what it stores and what it builds on; each fact's sum what it stores."""
    before, seen = "", set[str]()
    for entry in story.entries:
        if "sum" in entry.raw and fact_sum(entry.fields()) != entry.text("sum"):
            yield f"fact {entry.id} does not hold what its sum says"
        if not entry.is_checkpoint:
            before = entry.text("birth") or before
            continue
        named = entry.branch_of
        parent = named.digest if named is not None and entry.n > 1 else before
        if named is not None and named.thread == story.thread and entry.n > 1 and parent not in seen:
            yield f"checkpoint {entry.n} branches from one that is not there"
        if digest_of(parent, entry.n, entry.fields(), story.sums_of(entry)) != entry.digest:
            yield f"checkpoint {entry.n} does not build on what stands before it"
        before = entry.digest
        seen.add(before)


def runs_in_turn(story: Story) -> Iterator[str]:
    """A run begins once and ends once; nothing is written for one that is not under way."""
    now, begun, ended = "", set[str](), set[str]()
    for entry in story.entries:
        run = entry.text("run")
        if entry.kind == "run_started":
            if run in begun:
                yield f"{entry.id}: the run {run} begins again"
            if now and now not in ended:
                yield f"{entry.id}: the run {run} begins while {now} is under way"
            now = run
            begun.add(run)
        elif entry.kind == "run_rested" or (entry.is_checkpoint and not entry.next):
            if run in ended:
                yield f"{entry.id}: the run {run} ends again"
            ended.add(run)


# I10


def answered_once(story: Story) -> Iterator[str]:
    """A question is answered once, and only one that was asked."""
    for part in story.parts:
        asked, answered = set[str](), Counter[str]()
        for fact in part.facts:
            if fact.kind == "task_paused":
                asked |= set(fact.text("question").split())
            elif fact.kind == "task_answered" and (question := fact.text("question")):
                answered[question] += 1
                if question not in asked:
                    yield f"{fact.id} answers what nobody asked"
        yield from (f"step {part.n}: a question has {n} answers" for n in answered.values() if n > 1)


# I11


def cancelled_for_good(story: Story) -> Iterator[str]:
    """Nothing of a run is committed once it is revoked."""
    revoked: dict[str, str] = {}
    for entry in story.entries:
        run = entry.text("run")
        if entry.kind == "run_cancel_asked":
            revoked[run] = entry.id
        elif run in revoked and entry.kind not in ("run_rested", "run_cancel_asked"):
            yield f"{entry.id}: {entry.kind} of the run {run}, which was revoked in {revoked[run]}"


# I13


def bounded_losses(story: Story) -> Iterator[str]:
    """A task whose processes die becomes a dead letter."""
    for part in story.parts:
        losses = Counter[str]()
        for fact in part.facts:
            task = fact.text("task")
            if fact.kind == "task_lost":
                losses[task] += 1
                if losses[task] > LOSSES_MAX:
                    yield f"{fact.id}: {task} was lost {losses[task]} times and is no dead letter"
            elif fact.kind in OUTCOMES:
                losses[task] = 0


LAWS = (
    ("I2", no_gap),
    ("I3", done_once),
    ("I3", settled_once),
    ("I4", fenced),
    ("I5", one_line),
    ("I5", runs_in_turn),
    ("I10", answered_once),
    ("I11", cancelled_for_good),
    ("I13", bounded_losses),
)
