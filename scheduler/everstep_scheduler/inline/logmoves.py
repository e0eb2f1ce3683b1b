"""The moves over any `Log` in one process: the rules of the scripts, without queues and without leases that expire.

Whoever asks for work of a thread gets it; tokens and (n, digest) fence all the same. One table of cases
(`tests/test_moves.py`) runs on this and on `RedisMoves`, and the logs must be equal.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from everstep_checkpoint import entries as e
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.log import Head, Log, conflict
from everstep_checkpoint.replay import added_tasks

from ..graph.limits import Limits
from ..moves.contract import (
    HANDLER,
    JOIN_NODE,
    JOIN_TASK,
    PATIENCE_S,
    Answer,
    Branch,
    Call,
    Caller,
    Commanded,
    Commit,
    Lease,
    Offer,
    Renewed,
    Start,
    Started,
    Within,
    check_thread,
)
from ..reading.derive import Task as DerivedTask
from ..reading.derive import derive
from .gates import Gates

CALL_AGAIN_S = 0.5


@dataclass
class Task:
    """An open task: the record that the scripts keep in `open:<thread>`."""

    node: str
    queue: str
    timeout_s: float = 0
    place: str = "unmade"
    attempt: int = 0
    lost: int = 0
    token: str = ""
    owner: str = ""
    due: float = 0.0
    question: str = ""
    answers: tuple[str, ...] = ()
    cause: str = ""
    called: str = ""
    told: bool = False
    effects: str = ""
    let_in: bool = False  # it has waited at a limit, and has a slot now


@dataclass
class Thread:
    """What the scripts keep in `thread:<thread>` and the keys beside it."""

    birth: str
    n: int = 0
    digest: str = ""
    step: int = -2
    status: str = ""
    run: str = ""
    rec: str = ""
    base: int = -2
    graph: str = ""
    queue: str = ""
    left: int = 0
    width: int = 0
    failed: int = 0
    asked: int = 0
    halted: int = 0
    conf: str = ""
    parent: str = ""
    own: str = ""  # the inline caller that drives its run
    early: tuple[str, str] = ("", "")  # an answer that came before its question: its task, its fact
    over: tuple[str, ...] = ()
    limit_key: str = ""
    open: dict[str, Task] = field(default_factory=dict[str, Task])
    queued: deque[tuple[Start, str]] = field(default_factory=deque[tuple[Start, str]])
    callers: dict[str, str] = field(default_factory=dict[str, str])  # of queued runs
    runs: dict[str, tuple[str, str, str]] = field(default_factory=dict[str, tuple[str, str, str]])

    @property
    def after(self) -> tuple[int, str]:
        return self.n, self.digest


class LogMoves:
    """`Moves` for one process. Holds its lock while it decides; never while a node runs."""

    def __init__(self, log: Log) -> None:
        self.patience_s = PATIENCE_S
        self.log = log
        self._threads: dict[str, Thread] = {}
        self._handed: list[str] = []  # other threads with a task that a commit opened
        self._driving: set[str] = set()
        self._watched: dict[str, Callable[[], object]] = {}
        self._kept: dict[str, str] = {}  # a log that an attempt keeps -> the last writing into it
        self._lock = threading.RLock()
        self.gates = Gates(self._standing)

    def watch(self, token: str, gone: Callable[[], object]) -> None:
        """Call `gone`, once and from the thread that does it, when a lease is taken away: its run was cancelled, or a
        task beside it failed. It must not raise, wait, nor call these moves."""
        with self._lock:
            self._watched[token] = gone

    def unwatch(self, token: str) -> None:
        """It was settled, or given back."""
        with self._lock:
            self._watched.pop(token, None)

    def limit(self, graph: str, limits: Limits) -> None:
        with self._lock:
            if limits:
                self.gates.limits[graph] = limits
            else:
                self.gates.limits.pop(graph, None)
            self.gates.settle()

    def _standing(self, thread: str, name: str, task: Task) -> Thread | None:
        """The thread of a task, if it is still open there and its run goes on."""
        t = self._threads.get(thread)
        return t if t is not None and t.status == "running" and t.open.get(name) is task else None

    # start

    def start(self, start: Start, offer: Offer | None = None, caller: Caller | None = None) -> Started:
        self._check(start.thread)
        with self._lock:
            t = self._load(start.thread)
            if t is not None and start.run in t.runs:
                status, entry, known = t.runs[start.run]
                mine = caller is not None and known == start.sum and (start.run, status) == (t.run, "running")
                if mine and caller is not None and t.own and t.own not in self._driving:
                    t.own = caller.name
                    self._driving.add(caller.name)
                    return Started("resumed", entry, status, run=start.run)
                return Started("attached" if known == start.sum else "conflict", entry, status)
            busy = t is not None and t.status == "running"
            if t is not None and busy and caller is not None and (taken := self._take_up(t, start, caller.name)):
                return taken
            if caller is not None and caller.only:
                return Started("nothing")
            if refused := _refused(start, t):
                return Started(refused)
            if start.mode == "rollback" and _moved(start, t, busy):
                return Started("moved", run=t.run if t is not None and busy else "")
            if not self._grounded(start, t):
                return Started("gone")
            if t is not None and busy and start.mode in ("interrupt", "rollback"):
                self._stop(start.thread, t, start.stopper)
            begun = self._begin_or_queue(start, t, offer)
            self._word(start, caller.name if caller is not None else "", begun)
            self.gates.settle()
            return begun

    def _grounded(self, start: Start, t: Thread | None) -> bool:
        """Is the checkpoint there that a run builds on?"""
        if start.on is None or t is None:
            return start.on is None
        n, digest = start.on
        found = self.log.read(start.thread, f"{n}-0", f"{n}-0") if n else ()
        return bool(found and found[0].digest == digest) if n else t.birth == digest

    def _take_up(self, t: Thread, start: Start, caller: str) -> Started | None:
        """A run of this very input whose caller is gone goes on with this one."""
        if start.kind == "update" or start.mode in ("interrupt", "rollback"):
            return None
        own = {t.run: t.own} | (t.callers if start.kind == "input" else {})
        for run, name in own.items():
            equal = start.kind == "continue" or t.runs[run][2] == start.sum
            if name and equal and (name == caller or name not in self._driving):
                self._driving.add(caller)
                if run == t.run:
                    t.own = caller
                else:
                    t.callers[run] = caller
                return Started("resumed", t.runs[run][1], run=run)
        return None

    def _word(self, start: Start, caller: str, begun: Started) -> None:
        """A caller drives the run that it began, or that waits."""
        if not caller:
            return
        self._driving.add(caller)
        t = self._threads[start.thread]
        if begun.status == "queued":
            t.callers[start.run] = caller
        else:
            t.own = caller

    def leave(self, caller: str, *, ended: bool) -> None:
        with self._lock:
            self._driving.discard(caller)

    def _begin_or_queue(self, start: Start, t: Thread | None, offer: Offer | None) -> Started:
        busy = t is not None and t.status == "running"
        fields = {name: value for name, value in start.fields.items() if name != "run"}
        after = None if t is None else t.after
        if t is None:
            birth = new_id()
            t = Thread(birth, digest=birth)
            fields["birth"] = birth
        if not busy:
            fields["step"] = t.step if start.base is None else start.base
        if start.goes_on:
            fields["of"] = t.rec
        entry = self._append(
            start.thread, [e.fact("run_queued" if busy else "run_started", start.run, **fields)], after
        )[0]
        self._threads[start.thread] = t
        t.runs[start.run] = ("queued" if busy else "running", entry, start.sum)
        if busy:
            t.queued.append((start, entry))
            return Started("queued", entry)
        t.parent = start.parent
        if start.goes_on:
            self._reopen(t, start, entry)
        else:
            t.graph, t.queue = start.graph, start.queue
            self._begin(t, start, entry)
        return Started("started", entry, "", self._give(start.thread, t, offer) if offer else ())

    def branch(self, branch: Branch, offer: Offer | None = None, *, ask: bool = False) -> Started:
        start = branch.start
        self._check(start.thread)
        with self._lock:
            t = self._load(start.thread)
            if t is not None and start.run in t.runs:
                status, entry, known = t.runs[start.run]
                return Started("attached" if known == start.sum else "conflict", entry, status)
            if t is not None and t.status == "running":
                return Started("busy")
            if not self._grounded(start, t):
                return Started("gone")
            if branch.after != (t.after if t is not None else (0, branch.after[1])):
                return Started("moved")
            return Started("ready") if ask else self._branch(start.thread, t, branch, offer)

    def _branch(self, thread: str, t: Thread | None, branch: Branch, offer: Offer | None) -> Started:
        start = branch.start
        fields = {name: value for name, value in start.fields.items() if name != "run"}
        begun = e.fact("run_started", start.run, **fields)
        entry = self._append(thread, [begun, branch.made], None if t is None else t.after)[0]
        t = self._threads.setdefault(thread, t or Thread(branch.after[1]))
        t.runs[start.run] = ("running", entry, start.sum)
        t.graph, t.queue, t.parent = start.graph, start.queue, ""
        self._begin(t, start, entry)
        self._open(thread, t, branch.head, branch.next)
        if not t.open:
            self._rest(thread, t, "done")
        elif branch.stop:
            self._rest(thread, t, branch.stop)
        self._word(start, offer.caller if offer is not None else "", Started("started"))
        given = self._give(thread, t, offer) if offer else ()
        return Started("started", entry, "" if t.status == "running" else t.status, given)

    def _stop(self, thread: str, t: Thread, actor: str) -> None:
        """The run under way gives its place to another; inputs that wait stay behind that."""
        run, parent, called = t.run, t.parent, self._stop_all(t)
        rested = e.fact("run_rested", run, status="cancelled", actor=actor)
        self._append(thread, [e.fact("run_cancel_asked", run, actor=actor), rested], t.after)
        t.runs[run] = ("cancelled", *t.runs[run][1:])
        t.status = "cancelled"
        self._revoke(called, actor)
        self._handed.clear()
        self._wake_caller(thread, run, parent)

    def _begin(self, t: Thread, start: Start, entry: str) -> None:
        t.run, t.rec, t.conf, t.status = start.run, entry, entry, "running"
        t.own = t.callers.pop(start.run, "")
        t.base = t.step if start.base is None else start.base
        t.limit_key = start.limit_key
        t.width, t.left, t.failed, t.asked, t.halted, t.early = 1, 1, 0, 0, 0, ("", "")
        t.open = {start.task: Task(start.node, t.queue)}
        t.runs[start.run] = ("running", t.runs[start.run][1], start.sum)

    def _reopen(self, t: Thread, start: Start, entry: str) -> None:
        t.run, t.base, t.conf, t.status, t.own = start.run, t.step, entry, "running", ""
        t.limit_key = start.limit_key or t.limit_key
        t.left, t.failed, t.halted = t.left + t.failed + t.halted, 0, 0
        first = self._add(start.thread, t, start.command, entry) if start.command is not None else ""
        self._answer(t, start, first)
        updates = start.command is not None and start.command.updates
        if updates:
            t.over = (*t.over, entry)
            t.left, t.asked = t.left + t.asked, 0
        for task in t.open.values():
            if task.place in ("failed", "stopped") or (updates and task.place == "asked"):
                task.place, task.question = "unmade", ""
        if not t.left:  # a Command without a goto, on a thread that is done
            self._append(start.thread, [e.fact("run_rested", t.run, status="done")], t.after)
            self._rest(start.thread, t, "done")

    def _add(self, thread: str, t: Thread, command: Commanded, entry: str) -> str:
        """Add the tasks of a Command to the open step. The answer is the first one's name."""
        new: dict[str, Task] = {}
        for i, (node, queue, seconds) in enumerate(command.tasks):
            name = f"g{e.entry_id(entry)[1]}_{i}"
            said: e.Fields = {"task": name, "node": node, "queue": queue, "timeout_s": json.dumps(seconds)}
            self._append(thread, [e.fact("task_added", t.run, **said)], t.after)
            new[name] = Task(node, queue, seconds)
        for piece, count in command.parts:
            (part,) = self._append(thread, [piece], t.after)
            (fact,) = self._append(thread, [e.fact("task_added", t.run, parts=json.dumps([[part, count]]))], t.after)
            found = {part: self.log.read(thread, part, part)[0]}
            for x in added_tasks(self.log.read(thread, fact, fact), found):
                new[x.task] = Task(x.node, x.queue, x.timeout_s)
        if new and t.open.pop(JOIN_TASK, None) is not None:
            t.left -= 1  # a join that failed waits again, for what is added
        t.open.update(new)
        t.width, t.left = t.width + len(new), t.left + len(new)
        return next(iter(new), "")

    def _answer(self, t: Thread, start: Start, first: str) -> None:
        for each in start.answers:
            named = each.task or first
            said: e.Fields = {"task": named, "answer": each.value}
            said |= {"question": each.question} if each.question else {}
            (fact,) = self._append(start.thread, [e.fact("task_answered", t.run, **said)], t.after)
            if not each.question:
                t.early = (named, fact)
                continue
            task = t.open[each.task]
            if task.place == "asked":
                t.asked, t.left = t.asked - 1, t.left + 1
            task.place, task.question, task.answers = "stopped", "", (*task.answers, fact)

    # claim

    def claim(self, offer: Offer, *, take: str = "", serves: Sequence[str] = ()) -> Answer:
        with self._lock:
            t = self._load(offer.thread)
            if t is None:
                return Answer("ok")
            self.gates.settle()  # time may have let somebody in
            known = [
                self._row(offer.thread, t, name, x)
                for name, x in t.open.items()
                if x.token in offer.tokens and x.place == "lease"
            ]
            children = tuple(x.called.partition(" ")[2] for x in t.open.values() if x.place == "child")
            return Answer("ok", tuple(known) or self._give(offer.thread, t, offer), (), t.status, children)

    def _give(self, thread: str, t: Thread, offer: Offer) -> tuple[Lease, ...]:
        """Lease what can run, in task order, as far as the tokens go."""
        tokens = deque(offer.tokens)
        given: list[Lease] = []
        if t.status != "running":
            return ()
        for name, task in t.open.items():
            if not tokens:
                break
            ready = task.place == "unmade" or (task.place == "wake" and task.due <= time.monotonic())
            if ready and self.gates.enter(thread, t, name, task):
                task.place, task.token, task.owner = "lease", tokens.popleft(), offer.owner
                task.attempt += 1
                given.append(self._row(thread, t, name, task))
        return tuple(given)

    def _row(self, thread: str, t: Thread, name: str, x: Task) -> Lease:
        at = int(time.time() * 1000)
        return Lease(
            x.token, thread, t.n, t.digest, name, x.node, x.attempt, x.lost, x.queue, x.timeout_s, t.run, t.graph,
            t.width, "", t.birth, t.rec, t.base, at, 0, t.conf, _answers(t, name, x), x.cause, x.called, int(x.told),
            " ".join(t.over), x.effects,
        )  # fmt: skip

    def due_in(self, thread: str) -> float | None:
        """Seconds until the next wake of a thread; None if it has none."""
        with self._lock:
            t = self._load(thread)
            dues = [x.due - time.monotonic() for x in t.open.values() if x.place == "wake"] if t else []
            let_in = self.gates.due_in(thread)
            dues += [let_in] if let_in is not None else []
            return max(min(dues), 0.0) if dues else None

    # commit

    def commit(self, commits: Sequence[tuple[Commit, Offer]]) -> list[Answer]:
        return [self._commit(commit, offer) for commit, offer in commits]

    def _commit(self, commit: Commit, offer: Offer) -> Answer:
        lease = commit.lease
        with self._lock:
            t = self._load(lease.thread)
            task = t.open.get(lease.task) if t else None
            if t is None or task is None or not self._holds(t, task, lease):
                return self._settled(t, task, lease, offer)
            assert commit.outcome != "next" or t.left == 1, "a step was closed with open tasks"
            if commit.call is not None and not self._can_call(commit.call):
                self._again(task, commit.call)
            else:
                self._pass(lease.thread, t, lease.task, task, commit)
            self.gates.settle()
            leases = self._given(lease.thread, t, offer)
            if t.run != lease.run or t.status != "running":
                self._driving.discard(offer.caller)
            return Answer("ok", leases, (), t.status if t.run == lease.run else "rested")

    def _pass(self, thread: str, t: Thread, name: str, task: Task, commit: Commit) -> None:
        ids = self._append(thread, commit.entries, t.after)
        if commit.outcome == "handled":
            self._handled(t, name, task, commit, ids[0])
        else:
            getattr(self, f"_{commit.outcome}")(thread, t, name, task, commit)

    def _given(self, thread: str, t: Thread, offer: Offer) -> tuple[Lease, ...]:
        """Leases of the threads whose tasks were opened by a commit on another one, then of its own."""
        handed, self._handed = self._handed, []
        found: list[Lease] = []
        for name, each in [*((x, self._threads[x]) for x in handed), (thread, t)]:
            found += self._give(name, each, offer._replace(tokens=offer.tokens[len(found) :]))
        return tuple(found)

    def _can_call(self, call: Call) -> bool:
        t = self._load(call.thread)
        if call.start is not None:
            return not _refused(call.start, t)
        return t is not None and t.runs.get(call.run, ("",))[0] in ("running", "queued")

    def _again(self, task: Task, call: Call) -> None:
        """The thread that is called has moved since it was looked at: the task looks again, uncounted."""
        task.attempt -= 1
        task.place, task.token = "wake", ""
        task.due = time.monotonic() + (CALL_AGAIN_S if call.start is not None else 0)

    def _called(self, thread: str, t: Thread, name: str, task: Task, commit: Commit) -> None:
        call = commit.call
        assert call is not None
        task.place, task.attempt = "child", task.attempt - 1
        task.called, task.told, task.answers = f"{call.run} {call.thread}", False, tuple(commit.kept.split())
        t.early = ("", "") if t.early[0] == name else t.early
        if call.start is not None:
            self._begin_or_queue(call.start, self._load(call.thread), None)
            self._handed.append(call.thread)

    def _holds(self, t: Thread, task: Task, lease: Lease) -> bool:
        return (
            task.place == "lease"
            and task.token == lease.token
            and t.after == (lease.n, lease.digest)
            and t.status == "running"
        )

    def _settled(self, t: Thread | None, task: Task | None, lease: Lease, offer: Offer) -> Answer:
        """A commit that holds nothing: did it pass before? A resend gets its leases again."""
        passed = task is not None and task.token == lease.token and task.place != "lease"
        for entry in self.log.read(lease.thread, f"{lease.n + 1}-0", f"{lease.n + 2}-0") if t else ():
            passed = passed or entry.text("token") == lease.token
        if t is None:
            return Answer("fenced")
        again = [
            self._row(lease.thread, t, n, x)
            for n, x in t.open.items()
            if x.token in offer.tokens and x.place == "lease"
        ]
        return Answer("already" if passed else "fenced", tuple(again))

    def _next(self, thread: str, t: Thread, name: str, task: Task, commit: Commit) -> None:
        assert commit.head is not None
        self._open(thread, t, commit.head, commit.next)
        if not t.open:
            self._rest(thread, t, "done")
        elif commit.stop:
            self._rest(thread, t, commit.stop, **({"error": commit.why} if commit.why else {}))

    def _open(self, thread: str, t: Thread, head: tuple[int, str, int], rows: Sequence[tuple[Any, ...]]) -> None:
        t.n, t.digest, t.step = head
        t.open = {}
        for row in rows:
            if len(row) == 4:
                t.open[row[0]] = Task(row[1], row[2], row[3])
            else:
                t.open.update(_part_tasks(self.log, thread, row[0]))
        t.width = t.left = len(t.open)
        t.failed = t.asked = t.halted = 0
        t.early, t.over = ("", ""), ()

    def _done(self, thread: str, t: Thread, name: str, task: Task, commit: Commit) -> None:
        task.place = "done"
        self._resolved(thread, t)

    def _failed(self, thread: str, t: Thread, name: str, task: Task, commit: Commit) -> None:
        task.place, task.told = "failed", bool(task.called)
        t.failed += 1
        self._resolved(thread, t)

    def _left(self, thread: str, t: Thread, name: str, task: Task, commit: Commit) -> None:
        """The run ends here, and what it says is for its caller: the entry was its rest."""
        called = self._stop_all(t)
        task.token = commit.lease.token
        self._revoke(called)
        self._rest(thread, t, "done")

    def _unplanned(self, thread: str, t: Thread, name: str, task: Task, commit: Commit) -> None:
        task.place = "done"
        t.open[JOIN_TASK] = Task(JOIN_NODE, t.queue, place="failed")
        t.failed += 1
        self._resolved(thread, t)

    def _paused(self, thread: str, t: Thread, name: str, task: Task, commit: Commit) -> None:
        task.place = "asked" if commit.question else "stopped"
        task.question, task.answers, task.told = commit.question, tuple(commit.kept.split()), bool(task.called)
        t.early = ("", "") if t.early[0] == name else t.early
        t.asked, t.halted = t.asked + bool(commit.question), t.halted + (not commit.question)
        self._resolved(thread, t)

    def _handled(self, t: Thread, name: str, task: Task, commit: Commit, cause: str) -> None:
        """The step waits for the handler instead: what keeps the run going is as many as before."""
        assert commit.handler is not None
        task.place = "done"
        t.open[HANDLER + name] = Task(*commit.handler, cause=cause)

    def _retry(self, thread: str, t: Thread, name: str, task: Task, commit: Commit) -> None:
        task.place, task.due, task.told = "wake", time.monotonic() + commit.delay_ms / 1000, bool(task.called)

    def _resolved(self, thread: str, t: Thread) -> None:
        t.left -= 1
        if t.left:
            return
        if t.failed:
            self._rest(thread, t, "failed")
        elif t.asked or t.halted:
            self._rest(thread, t, "interrupted")
        else:
            t.left = 1
            t.open[JOIN_TASK] = Task(JOIN_NODE, t.queue)

    def _rest(self, thread: str, t: Thread, status: str, **more: str) -> None:
        if status != "done":
            said = {"status": status, **more}
            self._append(thread, [e.fact("run_rested", t.run, **said)], t.after)
        t.runs[t.run] = (status, *t.runs[t.run][1:])
        t.status = status
        self._wake_caller(thread, t.run, t.parent)
        if t.queued:
            start, entry = t.queued.popleft()
            t.parent = start.parent
            t.graph, t.queue = start.graph, start.queue
            self._append(thread, [e.fact("run_started", start.run, of=entry, step=t.step)], t.after)
            self._begin(t, start, entry)

    def _wake_caller(self, thread: str, run: str, parent: str) -> None:
        """A run that a task of another thread called has come to its rest: that task is to look."""
        n, task, caller = [*parent.split(" ", 2), "", "", ""][:3]
        t = self._load(caller) if caller and caller != thread else None
        waiting = t.open.get(task) if t is not None and t.status == "running" and str(t.n) == n else None
        if waiting is not None and waiting.place == "child" and waiting.called == f"{run} {thread}":
            waiting.place = "unmade"
            self._handed.append(caller)

    # the rest

    def part(self, lease: Lease, pieces: Sequence[e.Fields]) -> list[str]:
        with self._lock:
            t = self._load(lease.thread)
            task = t.open.get(lease.task) if t else None
            if t is None or task is None or not self._holds(t, task, lease):
                return []
            ids = self._append(lease.thread, pieces, t.after)
            if not task.effects and pieces[0]["kind"] == "effect_done":
                task.effects = ids[0]
            return ids

    def within(self, lease: Lease, logs: Sequence[Within]) -> bool:
        with self._lock:
            t = self._load(lease.thread)
            task = t.open.get(lease.task) if t else None
            if t is None or task is None or not self._holds(t, task, lease):
                return False
            if moved := self._keep(logs):
                head = self.log.head(moved)
                raise conflict(moved, head and (head.n, head.digest), None)
            return True

    def edit(self, thread: str, log: Within) -> str:
        with self._lock:
            t = self._load(thread)
            if t is None or t.status == "running":
                return "unknown" if t is None else "busy"
            return "moved" if self._keep([log]) else "ok"

    def _keep(self, logs: Sequence[Within]) -> str:
        """Write all of it, or nothing: then the answer is the log that ends elsewhere."""
        fresh = [log for log in logs if self._kept.get(log.thread) != log.key]
        heads = [self.log.head(log.thread) for log in fresh]
        for log, head in zip(fresh, heads, strict=True):
            if (head.last if head else "") != log.last:
                return log.thread
        for log, head in zip(fresh, heads, strict=True):
            self._append(log.thread, [x for _, x in log.entries], (head.n, head.digest) if head else None)
            self._kept[log.thread] = log.key
        return ""

    def renew(self, offer: Offer, before: int, *, registry: bool = False, callers: Sequence[str] = ()) -> Renewed:
        with self._lock:
            held = {x.token for t in self._threads.values() for x in t.open.values() if x.place == "lease"}
            return Renewed([token for token in offer.tokens if token not in held], 0)

    def release(
        self,
        owner: str,
        tokens: Sequence[str] | None,
        to: Literal["job", "parked", "lost"],
        why: str = "",
        node: str = "",
    ) -> int:
        released = 0
        with self._lock:
            for thread, t in self._threads.items():
                for name, task in t.open.items():
                    mine = task.owner == owner if tokens is None else task.token in tokens
                    if task.place == "lease" and mine:
                        self._give_back(thread, t, name, task, to, why)
                        released += 1
            self.gates.settle()
        return released

    def _give_back(self, thread: str, t: Thread, name: str, task: Task, to: str, why: str) -> None:
        token, task.token = task.token, ""
        task.place = "unmade"
        if to == "lost":
            said: e.Fields = {
                "task": name,
                "attempt": task.attempt,
                "token": token,
                "by": task.owner,
                "node": task.node,
            }
            self._append(thread, [e.fact("task_lost", t.run, **said, error="its process died")], t.after)
            task.lost += 1
            return
        task.attempt -= 1
        if to == "parked":
            said = {"task": name, "node": task.node, "by": task.owner, "error": why}
            self._append(thread, [e.fact("task_parked", t.run, **said)], t.after)
            task.place = "parked"

    def cancel(self, thread: str, run: str = "", actor: str = "") -> str:
        with self._lock:
            t = self._load(thread)
            if t is None:
                return "unknown"
            if run and run != t.run:
                return self._cancel_queued(thread, t, run, actor)
            if t.status != "running":
                return "rested"
            self._append(thread, [e.fact("run_cancel_asked", t.run, actor=actor)], t.after)
            called = self._stop_all(t)
            left, was = t.left + t.failed + t.halted, t.run
            t.failed = t.halted = 0
            self._rest(thread, t, "cancelled", actor=actor)
            t.left = left if t.run == was else t.left
            self._revoke(called, actor)
            self._handed.clear()
            self.gates.settle()
            return "cancelled"

    def _stop_all(self, t: Thread) -> list[str]:
        """All open tasks leave their places; what they called."""
        called = [task.called for task in t.open.values() if task.place == "child"]
        for task in t.open.values():
            if task.place not in ("done", "failed", "asked"):
                task.told = task.told or task.place == "child"
                gone = self._watched.pop(task.token, None)
                task.place, task.token = "stopped", ""
                if gone is not None:
                    gone()
        return called

    def _revoke(self, called: Sequence[str], actor: str = "") -> None:
        for each in called:
            run, _, child = each.partition(" ")
            self.cancel(child, run, actor)

    def _cancel_queued(self, thread: str, t: Thread, run: str, actor: str) -> str:
        found = next((x for x in t.queued if x[0].run == run), None)
        if found is None:
            return "rested" if run in t.runs else "unknown"
        t.queued.remove(found)
        t.callers.pop(run, None)
        self._append(thread, [e.fact("run_rested", run, status="cancelled", actor=actor)], t.after)
        t.runs[run] = ("cancelled", *t.runs[run][1:])
        self._wake_caller(thread, run, found[0].parent)
        return "cancelled"

    def delete(self, thread: str) -> str:
        with self._lock:
            t = self._load(thread)
            if t is None:
                return "unknown"
            if t.status == "running":
                return "busy"
            del self._threads[thread]
            self.log.delete(thread)
            return "deleted"

    def _check(self, thread: str) -> None:
        """Raises InvalidInput for a thread whose runs don't begin here."""
        check_thread(thread)

    def _append(self, thread: str, new: Sequence[Any], after: tuple[int, str] | None) -> list[str]:
        return self.log.append(thread, new, after)

    def _load(self, thread: str) -> Thread | None:
        """A thread this object has not met, as its log says: forked, or written by another process before."""
        found = self._threads.get(thread)
        if found is None and (head := self.log.head(thread)) is not None:
            found = self._threads[thread] = _from_log(self.log, thread, head)
        return found


def _moved(start: Start, t: Thread | None, busy: bool) -> bool:
    """Is another run under way than the one whose place is to be taken, or has it gone on?"""
    under_way = t.run if t is not None and busy else ""
    return under_way != start.over or (start.at is not None and t is not None and t.n != start.at[0])


def _refused(start: Start, t: Thread | None) -> str:
    """Why a run can't begin now, or can't take up what is open; empty if it can."""
    if t is not None and t.status == "running" and (start.mode == "reject" or start.goes_on):
        return "busy"
    if not start.goes_on:
        return ""
    command = start.command
    if t is None or (command and t.n == 0):
        return "nothing"
    if not command and (t.left + t.failed + t.asked + t.halted == 0 or t.status == "done"):
        return "nothing"
    if not command and t.left + t.failed + t.halted + len(start.answers) == 0:
        return "asked"
    if command and command.after != t.run:
        return "stale"
    asked = {name: task.question.split() for name, task in t.open.items() if task.place == "asked"}
    known = all(each.question in asked.get(each.task, ()) for each in start.answers if each.question)
    # An answer that came before its question is too late where all that is open has asked meanwhile: it opens nothing.
    known = known and bool(command or t.left + t.failed + t.halted or any(each.question for each in start.answers))
    return "" if known and start.at in (None, t.after) else "stale"


def _answers(t: Thread, name: str, task: Task) -> str:
    early = t.early[1] if t.early[0] == name else ""
    return " ".join([*([early] if early else []), *task.answers])


def _part_tasks(log: Log, thread: str, ref: str) -> dict[str, Task]:
    from everstep_checkpoint.replay import part_tasks

    part = log.read(thread, ref, ref)[0]
    return {x.task: Task(x.node, x.queue, x.timeout_s) for x in part_tasks(part)}


def _from_log(log: Log, thread: str, head: Head) -> Thread:
    told = derive(log, thread)
    t = Thread(
        told.birth, head.n, head.digest, told.step, told.status, told.run, told.rec, told.base, told.graph, told.queue
    )
    t.width, t.left, t.failed, t.asked, t.conf = told.width, told.left, told.failed, told.asked, told.conf
    t.halted, t.parent = told.halted, told.parent
    t.over = told.over
    t.own = told.own
    t.limit_key = told.limit_key
    t.open = {x.task: _task(x) for x in told.tasks}
    t.runs = {run: (word, entry, insum) for run, (word, entry, insum) in told.runs.items()}
    for x in told.queued:
        start = Start(
            thread, x.run, "input", x.graph, x.queue, told.runs[x.run][2],
            {"limit_key": x.limit_key, "fairness_key": x.fairness_key}, x.task, x.node, parent=x.parent,
        )  # fmt: skip
        t.queued.append((start, x.entry))
        t.callers |= {x.run: x.own} if x.own else {}
    return t


def _task(x: DerivedTask) -> Task:
    return Task(
        x.node,
        x.queue,
        x.timeout_s,
        x.place,
        x.attempt,
        x.lost,
        due=_due(x.due_ms),
        question=x.question,
        answers=x.answers,
        cause=x.cause,
        called=x.called,
        told=x.told,
        effects=x.effects,
    )


def _due(due_ms: int) -> float:
    """A time of the log's clock on ours."""
    return time.monotonic() + due_ms / 1000 - time.time() if due_ms else 0.0
