"""Laws between what clients were told, what nodes say they did, and what is stored.

I1 no run is lost · I3 once, by the journal · I6 nothing waits for nobody · I7 what is read is what is stored
· I8 no node runs without need · I9 what was acknowledged is there · I12 timers · I16 nothing is left over
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from everstep_checkpoint.entries import idempotency_key

from . import model
from .evidence import Evidence, Ran, Said, Struck
from .laws import Violation, with_closing
from .stories import OUTCOMES, Story

SLACK_S = 3.0  # how much later than its lease a fault may show: the rule of the gap, and a busy machine
DEADLY = ("kill", "pool", "stop")
FORGETTING = ("index",)
REWINDING = "failover"
PUSHING = "twice"
PUSHED_MS = 3000
EARLY_MS = 5  # clocks are read in whole ms, and not at the same moment


@dataclass(frozen=True)
class Case:
    """The evidence and the stories made from it."""

    evidence: Evidence
    stories: Mapping[str, Story]

    @cached_property
    def ended(self) -> dict[tuple[str, str], str]:
        """(thread, run) -> how it ended."""
        found: dict[tuple[str, str], str] = {}
        for thread, story in self.stories.items():
            for entry in story.entries:
                if entry.kind == "run_rested":
                    found[thread, entry.text("run")] = entry.text("status")
                elif entry.is_checkpoint and not entry.next:
                    found[thread, entry.text("run")] = "done"
        return found

    @cached_property
    def known(self) -> dict[str, tuple[Story, int, str]]:
        """Idempotency key -> story, step, task, for every task that a log names."""
        found: dict[str, tuple[Story, int, str]] = {}
        for story in self.stories.values():
            for part in story.parts:
                if part.checkpoint is not None:
                    for task in part.names:
                        key = idempotency_key(story.birth, part.n, part.checkpoint.digest, task)
                        found[key] = (story, part.n, task)
        return found

    def answered(self, op: str) -> list[Said]:
        """What was acknowledged."""
        return [each for each in self.evidence.said if each.op == op and each.phase == "ok"]

    def struck_near(self, at: float, kinds: tuple[str, ...]) -> list[Struck]:
        """Faults of these kinds that may still have shown at this time."""
        reach = self.evidence.lease_ms / 1000 * 2 + SLACK_S
        return [each for each in self.evidence.struck if each.kind in kinds and each.at <= at <= each.at + reach]

    def rewound(self, at: float) -> bool:
        """May what was acknowledged at this time be gone: was it said by a master after the replica that took over
        had parted from it? A client may note it a moment later."""
        return any(begin <= at <= end + SLACK_S for begin, end in self.rewinds)

    def after_rewind(self, at: float) -> bool:
        """May a node that began at this time have done so for a step that was taken back? A worker that holds such a
        task begins it until its leases are renewed, and not."""
        reach = self.evidence.lease_ms / 1000 * 2 + SLACK_S
        return any(begin <= at <= end + reach for begin, end in self.rewinds)

    @cached_property
    def rewinds(self) -> list[tuple[float, float]]:
        """The spans of which a failover may have taken back what was acknowledged in them."""
        struck = [each for each in self.evidence.struck if each.kind == REWINDING]
        return [(each.since, each.at) for each in struck if each.since is not None]


# I1, I6, I9: what was acknowledged is there


def missing(case: Case) -> Iterator[tuple[Violation, Said]]:
    """What was acknowledged and is gone, also where a failover may take it back."""
    for said in [*case.answered("submit"), *case.answered("answer"), *case.answered("retry")]:
        story = case.stories.get(said.thread)
        runs = {entry.text("run") for entry in story.entries} if story is not None else set[str]()
        if said.run not in runs:
            yield Violation("I1", said.thread, f"the run {said.run} was acknowledged, and no log has it"), said
    for said in case.answered("seen"):
        story = case.stories.get(said.thread)
        parts = story.parts if story is not None else []
        heads = {(part.n, part.checkpoint.digest) for part in parts if part.checkpoint}
        if (said.told["n"], said.told["digest"]) not in heads:
            yield Violation("I9", said.thread, f"checkpoint {said.told['n']} was seen, and is not in the log"), said
    for said in case.answered("cancel"):
        if said.told.get("cancelled") and case.ended.get((said.thread, said.run)) != "cancelled":
            text = f"the cancel of {said.run} was acknowledged, and did not happen"
            yield Violation("I9", said.thread, text), said
    for said in case.answered("answer"):
        story = case.stories.get(said.thread)
        facts = [each for each in story.entries if each.kind == "task_answered"] if story is not None else []
        if not any(each.text("run") == said.run for each in facts):
            yield Violation("I9", said.thread, f"the answer {said.run} was acknowledged, and is not in the log"), said


def acknowledged(case: Case) -> Iterator[Violation]:
    """What a client was shown or told stays so, but for what a replica that took over had not got yet."""
    yield from (each for each, said in missing(case) if not case.rewound(said.at))


def unended(case: Case) -> Iterator[Violation]:
    """What begins comes to its end."""
    for thread, story in case.stories.items():
        for entry in story.entries:
            begins = entry.kind in ("run_started", "run_queued") and "of" not in entry.raw
            if begins and (thread, entry.text("run")) not in case.ended:
                where = ", ".join(case.evidence.dump.open.get(thread, ())) or "no task is open"
                yield Violation("I1", thread, f"the run {entry.text('run')} never came to its end; {where}")


def stranded(case: Case) -> Iterator[Violation]:
    """A run under way has a task that somebody will take."""
    for thread, places in case.evidence.dump.open.items():
        live = [each for each in places if each.split(" ")[-1] in ("job", "lease", "wake", "child", "unmade", "parked")]
        story = case.stories.get(thread)
        runs = [entry.text("run") for entry in story.entries if entry.kind == "run_started"] if story else []
        if runs and (thread, runs[-1]) not in case.ended and not live:
            yield Violation("I6", thread, f"the run {runs[-1]} is under way, and no task of it waits for anybody")


def ends_as_told(case: Case) -> Iterator[Violation]:
    """A sample run that nobody cancelled is done, with all of its numbers in their order."""
    meant = {(each.thread, each.run) for each in case.evidence.said if each.op == "cancel" and each.phase != "no"}
    for said in [each for each in case.evidence.said if each.op == "submit" and each.phase != "no"]:
        story = case.stories.get(said.thread)
        word = case.ended.get((said.thread, said.run))
        if story is None or word is None or (said.thread, said.run) in meant:
            continue
        poisoned = any(each.kind == "task_failed" and b"Poison" in each.raw["error"] for each in story.entries)
        if word == "failed" and not poisoned:
            yield Violation("I1", said.thread, f"the run {said.run} failed, although nothing in it fails for good")
        if word == "done" and (wrong := _numbers(story, said)):
            yield Violation("I3", said.thread, wrong)


def _numbers(story: Story, said: Said) -> str:
    """What is wrong with the numbers of a run that is done: none missing, none twice, in their order."""
    given = said.told["input"]
    base = int(given["base"])
    parts = [part for part in story.parts if part.state and "values" in part.state]
    found = (
        [each for each in parts[-1].state["values"] if base <= each < base + 1_000_000]
        if parts and parts[-1].state
        else []
    )
    wanted = model.whole_run(given, audited=model.audited(story))
    if found == wanted:
        return ""
    return f"the run {said.run} should have added {len(wanted)} numbers once each in order, and has {len(found)}"


def founded(case: Case) -> Iterator[Violation]:
    """What a log calls done was done: the node has said that it came to its end."""
    said = {line.key for line in case.evidence.ran if line.phase == "out"}
    keys = {(story.thread, n, task): key for key, (story, n, task) in case.known.items()}
    for story in case.stories.values():
        for entry in story.entries:
            if entry.kind != "task_done" and not (entry.is_checkpoint and entry.text("task")):
                continue
            task, n = entry.text("task"), entry.n - entry.is_checkpoint
            key = keys.get((story.thread, n, task))
            if key is not None and key not in said and task != "start":
                yield Violation("I3", story.thread, f"step {n}: {task} is done, and no node says that it did it")


# I7


def read_as_stored(case: Case) -> Iterator[Violation]:
    """What a client reads is what the log adds up to."""
    for thread, read in case.evidence.dump.states.items():
        story = case.stories.get(thread)
        head = story.head if story is not None else None
        state = head.state if head is not None and head.state is not None else {}
        for name in {*read, *state}:
            if not name.startswith(("join:", "defer:", "__")) and read.get(name) != state.get(name):
                yield Violation(
                    "I7", thread, f"{name} is read as {read.get(name)!r:.60}, the log has {state.get(name)!r:.60}"
                )


def saw_the_past(case: Case) -> Iterator[Violation]:
    """Each node was given what the log says was before it."""
    for line in case.evidence.ran:
        known = case.known.get(line.key)
        if line.phase != "in" or known is None:
            continue
        story, n, _ = known
        part = next(each for each in story.parts if each.n == n)
        if line.seen not in model.seen_by(part, line.node):
            yield Violation("I7", line.thread, f"step {n}: {line.node} was given something else than the log says")


# I8


def needless(case: Case) -> Iterator[Violation]:
    """A node runs again only if its attempt was lost, failed or asked, and only for a task that there is."""
    begun = Counter(line.key for line in case.evidence.ran if line.phase == "in")
    due = _due(case)
    lines = _by_key(case)
    for key, times in begun.items():
        known, first = case.known.get(key), lines[key][0]
        if known is None:
            if not case.struck_near(lines[key][-1].at, FORGETTING) and not case.after_rewind(lines[key][-1].at):
                yield Violation("I8", first.thread, f"{first.node} of step {first.n} ran, and no log names it")
            continue
        more = times - max(due.get(key, 0), 1)
        if more > 0 and not _excused(case, lines[key]):
            story, n, task = known
            yield Violation("I8", story.thread, f"step {n}: {task} ran {times} times, {more} more than its attempts")


def _due(case: Case) -> Counter[str]:
    """Idempotency key -> how often the log says that an attempt at it was made."""
    keys = {(story.thread, n, task): key for key, (story, n, task) in case.known.items()}
    due = Counter[str]()
    for story in case.stories.values():
        for entry in story.entries:
            if entry.kind == "task_lost" or entry.kind in OUTCOMES:
                due[keys.get((story.thread, entry.n, entry.text("task")), "")] += 1
            elif entry.is_checkpoint and entry.text("task"):
                due[keys.get((story.thread, entry.n - 1, entry.text("task")), "")] += 1
    return due


def _by_key(case: Case) -> dict[str, list[Ran]]:
    """Executions in the order of their time: a process that stood still writes its line later than it says."""
    found: dict[str, list[Ran]] = defaultdict(list)
    for line in sorted(case.evidence.ran, key=lambda each: each.at):
        if line.phase == "in":
            found[line.key].append(line)
    return found


def _excused(case: Case, lines: list[Ran]) -> bool:
    """Was each attempt but the last forgotten together with the indexes, while its process was not there to speak for
    it? Or was the thread cancelled, and taken up by another run?"""
    if any(said.thread == lines[-1].thread for said in case.evidence.said if said.op in ("cancel", "retry")):
        return True
    return any(_forgotten(case, *pair) or _taken_back(case, *pair) for pair in pairwise(lines))


def _forgotten(case: Case, before: Ran, after: Ran) -> bool:
    """Between two executions: did indexes go, and did something befall the process of the first one?"""
    reach = case.evidence.lease_ms / 1000 + SLACK_S
    struck = [each for each in case.evidence.struck if before.at - reach <= each.at <= after.at]
    forgot = any(each.kind in FORGETTING for each in struck)
    return forgot and any(each.kind in DEADLY and before.pid in each.pids for each in struck)


def _taken_back(case: Case, before: Ran, after: Ran) -> bool:
    """Between two executions: did a failover take back what the first one came to, or that it was leased?"""
    reach = case.evidence.lease_ms / 1000 * 2 + SLACK_S
    return any(begin - reach <= before.at <= end + reach and after.at >= begin for begin, end in case.rewinds)


def causeless(case: Case) -> Iterator[Violation]:
    """No attempt is lost while nothing has befallen its process: leases are renewed, and end by Redis' clock."""
    for story in case.stories.values():
        for entry in story.entries:
            if entry.kind == "task_lost" and not _cause(case, entry.number("at"), pid_of(entry.text("by"))):
                said = f"{entry.id}: {entry.text('task')} was lost, and nothing had happened"
                yield Violation("I8", story.thread, said)


def _cause(case: Case, at_ms: int, pid: int) -> bool:
    """Did something befall this very process, or anything a moment ago?"""
    reach_ms = case.evidence.lease_ms * 2 + SLACK_S * 1000
    before = [each for each in case.evidence.struck if each.at_ms - SLACK_S * 1000 <= at_ms]
    return any(pid in each.pids or at_ms <= each.at_ms + reach_ms for each in before)


def pid_of(worker: str) -> int:
    """The process of a worker's name, `everstep.<host>.<pid>.<letters>`; 0 if it says none."""
    words = worker.split(".")
    return int(words[-2]) if len(words) > 2 and words[-2].isdigit() else 0


# I12


def never_early(case: Case) -> Iterator[Violation]:
    """A retry is not taken before it is due; but to push its job by hand is to say: now."""
    pushed = [each.at_ms for each in case.evidence.struck if each.kind == PUSHING]
    for story in case.stories.values():
        for part, closing in with_closing(story):
            due: dict[str, tuple[int, int]] = {}
            for entry in [*part.facts, *closing]:
                task, started = entry.text("task"), entry.number("started")
                since, until = due.get(task, (0, 0))
                early = started and started + EARLY_MS < until
                if early and not any(since - PUSHED_MS <= at <= started + PUSHED_MS for at in pushed):
                    said = f"{entry.id}: {task} was taken {until - started} ms before it was due"
                    yield Violation("I12", story.thread, said)
                if entry.kind == "task_failed" and "retry_at" in entry.raw:
                    due[task] = (entry.number("at"), entry.number("retry_at"))


# I16


def nothing_left(case: Case) -> Iterator[Violation]:
    """At the end nothing is queued, leased, or waiting."""
    for each in case.evidence.dump.left:
        yield Violation("I16", "", f"left over: {each}")


ALWAYS = (acknowledged, unended, stranded, read_as_stored, causeless, never_early, nothing_left)
OF_THE_SAMPLE = (ends_as_told, founded, saw_the_past, needless)
