"""What a log says about its thread: the truth that every index is made from. Pure but for reading the log.

    log ──pages──► Reader.feed(entry) ──told()──► Told      derive(log, thread) does both

Only plain fields are looked at; no value is decoded. A run ends in a checkpoint with empty `next`, or in `run_rested`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import CorruptEntry, LogError
from everstep_checkpoint.log import Log, unknown_thread
from everstep_checkpoint.replay import (
    TaskRef,
    added_tasks,
    adds_handler,
    brings_update,
    tasks_of,
    timeout_of,
    with_added,
)
from everstep_checkpoint.sound import sound

from ..moves.contract import HANDLER, JOIN_NODE, JOIN_TASK, START_NODE, START_TASK
from .ending import NO_ERROR, Said, error_of

Place = Literal["unmade", "wake", "child", "asked", "failed", "stopped", "done"]
REAPED = "its process died"
EXPIRED_SUSPECT = 2
FRESH_STEP = -2
GOING = ("unmade", "wake", "child")  # places that keep the run going, as far as a log tells them
CONTINUE_SUM = "continue"


@dataclass(frozen=True)
class Task:
    """A task of the open step. `unmade`: it waits for a job, whatever place it had; leases are not in the log.

    `called`: the run it called last, `<run> <thread>`; `told`: it has told since how that rested. `within`: the fact of
    the graph that its function called last, which is kept within its attempts.
    """

    task: str
    node: str
    queue: str
    timeout_s: float = 0
    place: Place = "unmade"
    attempt: int = 0
    lost: int = 0
    expired: int = 0
    alone: int = 0
    suspect: bool = False
    token: str = ""
    due_ms: int = 0
    error: Said = NO_ERROR
    question: str = ""
    asks: e.Entry | None = None
    answers: tuple[str, ...] = ()
    cause: str = ""
    called: str = ""
    told: bool = False
    effects: str = ""
    moved: bool = False
    within: e.Entry | None = None

    @property
    def handles(self) -> bool:
        """Is it an error handler, which the step's checkpoint does not name?"""
        return self.task.startswith(HANDLER)

    @property
    def touched(self) -> bool:
        """Does the log say anything of it beyond that it is open?"""
        said = self.attempt or self.lost or self.answers or self.cause or self.called or self.effects or self.moved
        return bool(said or self.place not in ("unmade", "stopped"))


@dataclass(frozen=True)
class Queued:
    """An input that waits for the run under way. `entry`: the fact that holds it; `own`: the inline caller that waits
    for it, if one does."""

    run: str
    entry: str
    graph: str
    queue: str
    task: str
    node: str
    parent: str = ""
    own: str = ""
    limit_key: str = ""
    fairness_key: str = ""


@dataclass(frozen=True)
class Told:
    """Where a thread stands. `left`, `failed`, `asked` and `halted` count as the scripts do: what keeps the run going,
    what failed, what waits for an answer, what called a run that stopped at a breakpoint. `parent`: the task that
    called the run, `<n> <task> <thread>`. `rec`: the fact with the run's input, `conf`: the one with the record that
    holds. `over`: the facts of runs whose Commands updated the state since the checkpoint. `begins`: what is open is no
    step yet, but a run's first task.
    """

    birth: str
    n: int
    digest: str
    step: int
    status: str
    run: str
    rec: str
    base: int
    graph: str
    queue: str
    width: int
    left: int
    failed: int
    asked: int
    conf: str
    tasks: tuple[Task, ...]
    runs: Mapping[str, tuple[str, str, str]]
    queued: tuple[Queued, ...]
    since_ms: int
    halted: int = 0
    parent: str = ""
    over: tuple[str, ...] = ()
    begins: bool = False
    own: str = ""
    limit_key: str = ""
    fairness_key: str = ""

    @property
    def running(self) -> bool:
        return self.status == "running"


@dataclass
class Reader:
    """Feeds on a thread's entries in order; `told()` is where it stands then."""

    birth: str = ""
    n: int = 0
    digest: str = ""
    step: int = FRESH_STEP
    status: str = ""
    run: str = ""
    rec: str = ""
    conf: str = ""
    base: int = FRESH_STEP
    graph: str = ""
    queue: str = ""
    parent: str = ""
    since_ms: int = 0
    own: str = ""
    limit_key: str = ""
    fairness_key: str = ""
    runs: dict[str, tuple[str, str, str]] = field(default_factory=dict[str, tuple[str, str, str]])
    queued: dict[str, Queued] = field(default_factory=dict[str, Queued])
    _head: e.Entry | None = None
    _begun: tuple[TaskRef, ...] = ()
    _facts: dict[str, Task] = field(default_factory=dict[str, Task])
    _parts: dict[str, e.Entry] = field(default_factory=dict[str, e.Entry])
    _over: tuple[str, ...] = ()
    _more: list[e.Entry] = field(default_factory=list[e.Entry])

    def feed(self, entry: e.Entry) -> None:
        """Take the next entry. Kinds that say nothing about where the thread stands are passed over."""
        self.birth = entry.text("birth") or self.birth
        match entry.kind:
            case e.CHECKPOINT:
                self._checkpoint(entry)
            case "run_started":
                self._started(entry)
            case "run_queued":
                self.runs[entry.text("run")] = ("queued", entry.id, entry.text("insum"))
                self.queued[entry.id] = _queued(entry)
            case "run_rested":
                self._rested(entry)
            case "part":
                self._part(entry)
            case "task_done" | "task_failed" | "task_lost" | "task_paused" | "task_called":
                self._task(entry)
            case "task_answered":
                self._answered(entry)
            case "task_added":
                self._added(entry)
            case "effect_done":
                self._effect(entry)
            case "task_moved":
                self._moved(entry)
            case _:
                pass

    # runs

    def _started(self, entry: e.Entry) -> None:
        run, of = entry.text("run"), entry.ref("of")
        waiting = self.queued.get(of)
        self.run, self.base, self.rec = run, entry.number("step"), of or entry.id
        self.parent = waiting.parent if waiting is not None and waiting.run == run else entry.text("parent")
        self._status("running", entry)
        self.own = waiting.own if waiting is not None else entry.text("by")
        if of and (waiting is None or waiting.run != run):
            self.runs[run] = ("running", entry.id, entry.text("insum") or CONTINUE_SUM)
            self.conf = entry.id if "record" in entry.raw else self.conf
            self.limit_key = entry.text("limit_key") or self.limit_key
            self.fairness_key = entry.text("fairness_key") or self.fairness_key
            updates = brings_update(entry)
            self._over += (entry.id,) if updates else ()
            self._facts = {name: _reopened(task, asked=updates) for name, task in self._facts.items()}
            return
        if waiting is None:
            self.runs[run] = ("running", entry.id, entry.text("insum"))
        else:
            del self.queued[of]
            self._ends(run, "running")
        self._begin(waiting or _queued(entry))

    def _begin(self, new: Queued) -> None:
        self.graph, self.queue, self.conf = new.graph, new.queue, self.rec
        self.limit_key, self.fairness_key = new.limit_key, new.fairness_key
        self._begun = (TaskRef(new.task, new.node, new.queue),)
        self._facts, self._more = {}, []

    def _rested(self, entry: e.Entry) -> None:
        run, status = entry.text("run"), entry.text("status")
        self._ends(run, status)
        self.queued = {key: each for key, each in self.queued.items() if each.run != run}
        if run == self.run:
            self._status(status, entry)

    def _ends(self, run: str, status: str) -> None:
        if run in self.runs:
            self.runs[run] = (status, *self.runs[run][1:])

    def _status(self, status: str, entry: e.Entry) -> None:
        self.status, self.since_ms = status, entry.number("at")

    # steps

    def _checkpoint(self, entry: e.Entry) -> None:
        self.n, self.digest, self.step = entry.n, entry.digest, entry.number("step")
        self._head, self._begun, self._facts = entry, (), {}
        self._over, self._more = (), []
        # the two checkpoints of an input are written at once: parts of the step before both may be named
        self._parts = {ref: part for ref, part in self._parts.items() if part.n >= entry.n - 2}
        self.run = entry.text("run") or self.run
        self.rec = self.rec or entry.text("floor")
        self.conf = self.conf or self.rec
        self.graph = self.graph or entry.text("graph").partition("@")[0]
        if not entry.next:
            self._ends(self.run, "done")
            self._status("done", entry)
        elif not self.status:
            # a fork, or a log whose beginning was trimmed: what comes next is there, who wanted it is not
            self._status("interrupted" if entry.text("source") == "fork" else "running", entry)

    def _part(self, entry: e.Entry) -> None:
        if "tasks" in entry.raw:
            light = {name: entry.raw[name] for name in ("v", "kind", "tasks")}
            self._parts[entry.id] = e.Entry(entry.n, entry.k, light)

    def _task(self, entry: e.Entry) -> None:
        name = entry.text("task")
        task = self._facts.get(name) or Task(name, entry.text("node"), entry.text("queue"))
        counted = entry.number("attempt") - (entry.kind == "task_called")  # who calls has not ended an attempt
        task = replace(task, attempt=max(task.attempt, counted), token=entry.text("token"))
        match entry.kind:
            case "task_done":
                self._facts[name] = replace(task, place="done")
            case "task_failed":
                self._facts[name] = _failed(task, entry)
            case "task_paused":
                self._facts[name] = _paused(task, entry)
            case "task_called":
                self._facts[name] = _called(task, entry)
            case _:
                self._facts[name] = _lost(task, reaped=entry.text("error") == REAPED)

    def _answered(self, entry: e.Entry) -> None:
        """An answer: its task is open again. One that came early says nothing about its task but that it is there."""
        name = entry.text("task")
        task = self._facts.get(name) or Task(name, "", "")
        place = "unmade" if task.place == "asked" else task.place
        self._facts[name] = replace(task, place=place, question="", answers=(*task.answers, entry.id))

    def _effect(self, entry: e.Entry) -> None:
        """Something that a task did. It says nothing about how its attempt ends."""
        name = entry.text("task")
        task = self._facts.get(name) or Task(name, entry.text("node"), "")
        within = entry if "called" in entry.raw else task.within
        self._facts[name] = replace(task, effects=task.effects or entry.id, within=within)

    def _added(self, entry: e.Entry) -> None:
        """A task beside those of the checkpoint; or an error handler, which stands for one that failed for good."""
        if not adds_handler(entry):
            self._more.append(entry)
            self._facts.pop(JOIN_TASK, None)  # it waits for the new one
            return
        name = entry.text("task")
        failed = self._facts.get(name.removeprefix(HANDLER))
        cause = failed.cause if failed is not None else ""
        self._facts[name] = Task(name, entry.text("node"), entry.text("queue"), timeout_of(entry), cause=cause)

    def _with_handler(self, ref: TaskRef) -> list[Task]:
        handler = self._facts.get(HANDLER + ref.task)
        return [self._known(ref), *([handler] if handler is not None else [])]

    def _moved(self, entry: e.Entry) -> None:
        """An open task goes on as another node than the checkpoint names."""
        name = entry.text("task")
        task = self._facts.get(name) or Task(name, "", "")
        self._facts[name] = replace(
            task, node=entry.text("node"), queue=entry.text("queue"), timeout_s=timeout_of(entry), moved=True
        )

    # where it stands

    def told(self) -> Told:
        """Raises CorruptEntry if the last checkpoint names a part that is not there."""
        refs = self._begun or (tuple(self._refs()) if self._head is not None else ())
        tasks = [task for ref in refs for task in self._with_handler(ref)]
        if tasks and all(task.place == "done" for task in tasks):
            tasks.append(self._known(TaskRef(JOIN_TASK, JOIN_NODE, self.queue)))
        failed = sum(task.place == "failed" for task in tasks)
        left = sum(task.place in GOING for task in tasks)
        asked = sum(task.place == "asked" for task in tasks)
        halted = sum(task.place == "stopped" for task in tasks)
        if self.status != "running":
            tasks = [replace(task, place="stopped") if task.place in GOING else task for task in tasks]
        if self.status == "cancelled":
            left, failed, halted = left + failed + halted, 0, 0
        queue = self.queue or (refs[0].queue if refs else self.graph)
        return Told(
            self.birth, self.n, self.digest or self.birth, self.step, self.status, self.run, self.rec, self.base,
            self.graph, queue, len(refs), left, failed, asked, self.conf or self.rec, tuple(tasks), dict(self.runs),
            tuple(self.queued.values()), self.since_ms, halted, self.parent, self._over, bool(self._begun), self.own,
            self.limit_key, self.fairness_key,
        )  # fmt: skip

    def _refs(self) -> list[TaskRef]:
        assert self._head is not None
        try:
            tasks = tasks_of(self._head, self._parts)
            added = added_tasks(self._more, self._parts)
            return with_added(tasks, added) if added else tasks
        except (KeyError, TypeError, ValueError) as error:
            raise self._head.corrupt(f"its field 'next' can't be followed ({error!r})") from None

    def _known(self, ref: TaskRef) -> Task:
        known = self._facts.get(ref.task) or Task(ref.task, ref.node, ref.queue)
        if known.moved:
            return known
        return replace(known, node=ref.node, queue=ref.queue, timeout_s=float(ref.timeout_s))


def _queued(entry: e.Entry) -> Queued:
    graph = entry.text("graph")
    task, node = entry.text("task") or START_TASK, entry.text("node") or START_NODE
    parent = entry.text("parent")
    return Queued(
        entry.text("run"), entry.id, graph, entry.text("queue") or graph, task, node, parent, entry.text("by"),
        entry.text("limit_key"), entry.text("fairness_key"),
    )  # fmt: skip


def _reopened(task: Task, *, asked: bool) -> Task:
    """What failed, was halted, or waited, is open again in a run that continues, and shows no stale error.

    `asked`: so is what waits for an answer, for it sees another state now.
    """
    if task.place == "asked" and asked:
        return replace(task, place="unmade", question="")
    if task.place not in ("failed", "wake", "child", "stopped"):
        return task
    return replace(task, place="unmade", error=NO_ERROR, due_ms=0, told=task.told or task.place == "child")


def _failed(task: Task, entry: e.Entry) -> Task:
    """A failure clears a suspect. With `retry_at` another attempt is due; one that is handled leaves nothing to do."""
    cleared = replace(task, suspect=False, alone=0, error=error_of(entry), told=bool(task.called))
    if "retry_at" in entry.raw:
        return replace(cleared, place="wake", due_ms=entry.number("retry_at"))
    if "handler" in entry.raw:
        return replace(cleared, place="done", cause=entry.id)
    return replace(cleared, place="failed")


def _paused(task: Task, entry: e.Entry) -> Task:
    """A question clears a suspect. Of the answers so far those are kept that hold good. Without a question what it
    called stopped at a breakpoint."""
    cleared = replace(task, suspect=False, alone=0, error=NO_ERROR, told=bool(task.called))
    kept = tuple(entry.text("kept").split())
    question = entry.text("question")
    if not question:
        return replace(cleared, place="stopped", answers=kept)
    return replace(cleared, place="asked", question=question, asks=entry, answers=kept)


def _called(task: Task, entry: e.Entry) -> Task:
    """It waits for the run that it called on another thread, which has taken the answers that are not kept."""
    kept = tuple(entry.text("kept").split())
    return replace(
        task, place="child", called=entry.text("called"), told=False, answers=kept, suspect=False, alone=0,
        error=NO_ERROR, due_ms=0,
    )  # fmt: skip


def _lost(task: Task, *, reaped: bool) -> Task:
    """As the scripts count: a death that the pool saw makes a suspect, and the second expired lease does."""
    expired = task.expired + (not reaped)
    suspect = task.suspect or reaped or expired >= EXPIRED_SUSPECT
    lost, alone = task.lost + 1, task.alone + task.suspect
    return replace(task, place="unmade", lost=lost, expired=expired, alone=alone, suspect=suspect, token="", due_ms=0)


@sound
def derive(log: Log, thread: str, tick: Callable[[], object] = lambda: None) -> Told:
    """Where a thread stands, by its log alone. `tick` is called at each entry.

    Raises UnknownThread, CorruptEntry, NewerVersion.
    """
    reader = Reader()
    last = None
    try:
        for last in log.pages(thread):
            reader.feed(last)
            tick()
    except LogError as error:
        error.of(thread)
        raise
    if last is None:
        raise unknown_thread(thread)
    if not reader.birth:
        fix = f"`everstep recover --thread {shlex.quote(thread)}` says what can be done"
        raise CorruptEntry("the log names no birth: its beginning is gone", thread=thread, fix=fix)
    return reader.told()
