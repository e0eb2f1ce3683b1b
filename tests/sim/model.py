"""The store in plain Python: what the scripts of the moves do, without what is only there for people, speed or size.

Not modelled: RQ's registries, bells, steps of more than 250 tasks, inline callers, branches, subgraphs, Commands as
inputs, recovery. All else answers as the scripts do: `tests/test_model.py` holds it to them on real servers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Log
from everstep_scheduler.graph.limits import Limits
from everstep_scheduler.moves.contract import (
    HANDLER,
    JOIN_NODE,
    JOIN_TASK,
    LEASE_MS,
    Answer,
    Caller,
    Commit,
    Lease,
    Offer,
    Renewed,
    Start,
    Started,
)

from .gates import Gates

LOSSES_ALONE_MAX = 3
AFTER_GAP_MS = 2000
WITHDRAWN = ("unmade", "job", "lease", "wake", "parked", "line")


@dataclass
class Record:
    """An open task. `expired`: leases of it that ran out; `alone`: losses while it ran alone; `gate`: of its
    limit, where it stands in line or has a slot; `since`: when it came there first."""

    node: str
    queue: str
    timeout_s: float = 0
    place: str = "unmade"
    attempt: int = 0
    lost: int = 0
    expired: int = 0
    alone: int = 0
    suspect: bool = False
    token: str = ""
    owner: str = ""
    job: str = ""
    asks: str = ""
    answers: str = ""
    cause: str = ""
    parked_for: str = ""
    effects: str = ""
    gate: str = ""
    since: int = 0

    @property
    def waits_in(self) -> str:
        return f"{self.queue}.suspect" if self.suspect else self.queue


@dataclass
class Thread:
    """What `thread:<thread>` and the keys beside it say."""

    birth: str
    n: int = 0
    digest: str = ""
    step: int = -2
    status: str = ""
    run: str = ""
    rec: str = ""
    conf: str = ""
    base: int = -2
    graph: str = ""
    queue: str = ""
    left: int = 0
    width: int = 0
    failed: int = 0
    asked: int = 0
    halted: int = 0
    early: str = ""
    early_task: str = ""
    limit_key: str = ""
    open: dict[str, Record] = field(default_factory=dict[str, Record])
    unmade: list[Any] = field(default_factory=list[Any])  # (task, Record) each; None: what failed or was stopped
    queued: list[tuple[Start, str]] = field(default_factory=list[tuple[Start, str]])
    runs: dict[str, tuple[str, str, str]] = field(default_factory=dict[str, tuple[str, str, str]])


@dataclass
class Call:
    """One script under way: what it was asked, and what it will answer."""

    offer: Offer
    spare: bool = False  # may it begin a run, for a failed task whose job was pushed again?
    tokens: list[str] = field(default_factory=list[str])
    coming: list[tuple[str, Thread, str, Record]] = field(default_factory=list[tuple[str, Thread, str, Record]])
    leases: list[Lease] = field(default_factory=list[Lease])


Place = tuple[int, str, str]  # n, task, thread


class Model:
    """`Moves` on dicts. `clock` gives milliseconds, `ids` what Redis' callers draw: births and run ids."""

    gates_as: type[Gates] = Gates

    def __init__(self, log: Log, clock: Callable[[], int], ids: Callable[[], str]) -> None:
        self.log = log
        self.clock = clock
        self.ids = ids
        self.threads: dict[str, Thread] = {}
        self.queues: dict[str, list[str]] = {}
        self.jobs: dict[str, tuple[str, str]] = {}  # job id -> thread, task
        self.leases: dict[str, int] = {}  # token -> until when
        self.lease: dict[str, tuple[str, str]] = {}  # token -> thread, task
        self.held: dict[str, dict[str, int]] = {}  # owner -> token -> when it was made, or named last
        self.wakes: dict[Place, int] = {}
        self.parked: dict[str, list[Place]] = {}
        self.swept: tuple[int, str, int] | None = None  # when, by which server's id, nothing expires until
        self.gates = self.gates_as(self, clock)
        self._made = 0

    # start

    def start(self, start: Start, offer: Offer | None = None, caller: Caller | None = None) -> Started:
        assert offer is None and caller is None, "inline callers are not modelled"
        t, birth = self.threads.get(start.thread), self.ids()
        if t is not None and start.run in t.runs:
            word, entry, known = t.runs[start.run]
            return Started("attached" if known == start.sum else "conflict", entry, word)
        if refused := _refused(start, t):
            return Started(refused)
        busy = t is not None and t.status == "running"
        if start.mode == "rollback" and (t.run if t is not None and busy else "") != start.over:
            return Started("moved", run=t.run if t is not None and busy else "")
        if not self._grounded(start, t):
            return Started("gone")
        if t is not None and busy and start.mode in ("interrupt", "rollback"):
            self._stop_run(start.thread, t, start.stopper)
            busy = False
        begun = self._begin_run(start, t, busy, birth)
        self.gates.serve()
        return begun

    def _grounded(self, start: Start, t: Thread | None) -> bool:
        if start.on is None or t is None:
            return start.on is None
        n, digest = start.on
        found = self.log.read(start.thread, f"{n}-0", f"{n}-0") if n else ()
        return bool(found and found[0].digest == digest) if n else t.birth == digest

    def _stop_run(self, thread: str, t: Thread, actor: str) -> None:
        self._fact(thread, t, "run_cancel_asked", actor=actor)
        self._fact(thread, t, "run_rested", status="cancelled", actor=actor)
        self._run_is(t, t.run, "cancelled")
        t.status = "cancelled"

    def _begin_run(self, start: Start, t: Thread | None, busy: bool, birth: str) -> Started:
        fields = {name: value for name, value in start.fields.items() if name != "run"}
        after = None if t is None else (t.n, t.digest)
        if t is None:
            t = Thread(birth, digest=birth)
            fields["birth"] = birth
        if not busy:
            fields["step"] = t.step if start.base is None else start.base
        if start.goes_on:
            fields["of"] = t.rec
        said = e.fact("run_queued" if busy else "run_started", start.run, **fields)
        entry = self.log.append(start.thread, [said], after)[0]
        self.threads[start.thread] = t
        t.runs[start.run] = ("queued" if busy else "running", entry, start.sum)
        if busy:
            t.queued.append((start, entry))
            return Started("queued", entry)
        if start.goes_on:
            self._go_on(start, t, entry)
        else:
            self._push(start.thread, t, start.task, self._begin(start.thread, t, start, entry))
        return Started("started", entry)

    def _begin(self, thread: str, t: Thread, start: Start, entry: str) -> Record:
        self._discard(thread, t)
        t.graph, t.queue, t.run, t.rec, t.conf = start.graph, start.queue, start.run, entry, entry
        t.base = t.step if start.base is None else start.base
        t.limit_key = start.limit_key
        t.width, t.left, t.failed, t.asked, t.halted, t.early = 1, 1, 0, 0, 0, ""
        t.status = "running"
        self._run_is(t, start.run, "running")
        return Record(start.node, start.queue)

    def _go_on(self, start: Start, t: Thread, entry: str) -> None:
        t.run, t.base, t.conf, t.status = start.run, t.step, entry, "running"
        t.left, t.failed, t.halted = t.left + t.failed + t.halted, 0, 0
        for each in start.answers:
            said: e.Fields = {"task": each.task, "answer": each.value}
            said |= {"question": each.question} if each.question else {}
            fact = self._fact(start.thread, t, "task_answered", **said)
            if not each.question:
                t.early, t.early_task = fact, each.task
                continue
            rec = t.open[each.task]
            if rec.place == "asked":
                t.asked, t.left = t.asked - 1, t.left + 1
            rec.answers, rec.asks, rec.place = f"{rec.answers} {fact}".strip(), "", "stopped"
        t.unmade.insert(0, None)
        t.limit_key = start.limit_key or t.limit_key
        self._make_jobs(start.thread, t)

    def _discard(self, thread: str, t: Thread) -> None:
        """The step under way is given up."""
        for task, rec in t.open.items():
            if rec.job:
                self._leave(thread, t, task, rec, listed=True)
                self._forget_job(rec)
        t.open, t.unmade = {}, []

    # jobs and leases

    def _keep(self, t: Thread, task: str, rec: Record) -> None:
        t.open[task] = rec

    def _make_job(self, thread: str, t: Thread, task: str, rec: Record) -> None:
        self._made += 1
        if rec.job:
            self.jobs.pop(rec.job, None)
        rec.job = f"{thread}-{t.n}-{task}-{rec.attempt + 1}-{self._made}"
        self.jobs[rec.job] = thread, task

    def _push(self, thread: str, t: Thread, task: str, rec: Record, front: bool = False) -> None:
        rec.place, rec.token, rec.owner = "job", "", ""
        self._make_job(thread, t, task, rec)
        queue = self.queues.setdefault(rec.waits_in, [])
        queue.insert(0 if front else len(queue), rec.job)
        self._keep(t, task, rec)

    def _make_jobs(self, thread: str, t: Thread) -> None:
        """What stands in `unmade` gets records and jobs."""
        elements, t.unmade = t.unmade, []
        for element in elements:
            for task, rec in [element] if element is not None else list(t.open.items()):
                if element is not None or rec.place in ("failed", "stopped"):
                    rec.asks = ""
                    self._push(thread, t, task, rec)

    def _lease(self, thread: str, t: Thread, task: str, rec: Record, call: Call) -> None:
        token, offer = call.tokens.pop(0), call.offer
        assert token not in self.lease, "two tasks are leased under one token"
        if not rec.job:
            self._make_job(thread, t, task, rec)
        rec.place, rec.attempt, rec.token, rec.owner = "lease", rec.attempt + 1, token, offer.owner
        if rec.gate:
            self.gates.begins(t, rec)
        self._keep(t, task, rec)
        self.leases[token] = self.clock() + offer.lease_ms
        self.lease[token] = thread, task
        self.held.setdefault(offer.owner, {})[token] = self.clock()
        call.leases.append(self._row(thread, t, task, rec))

    def _unlease(self, rec: Record) -> None:
        self.leases.pop(rec.token, None)
        self.lease.pop(rec.token, None)
        self._drop_held(rec.owner, rec.token)
        if rec.gate:
            self.gates.let_go(rec)

    def _drop_held(self, owner: str, token: str) -> None:
        held = self.held.get(owner, {})
        held.pop(token, None)
        if not held:
            self.held.pop(owner, None)

    def _row(self, thread: str, t: Thread, task: str, rec: Record) -> Lease:
        early = t.early if t.early_task == task else ""
        return Lease(
            rec.token, thread, t.n, t.digest, task, rec.node, rec.attempt, rec.lost, rec.queue, rec.timeout_s, t.run,
            t.graph, t.width, rec.job, t.birth, t.rec, t.base, self.clock(), int(rec.suspect), t.conf,
            f"{early} {rec.answers}".strip(), rec.cause, effects=rec.effects,
        )  # fmt: skip

    def _leave(self, thread: str, t: Thread, task: str, rec: Record, listed: bool = False) -> None:
        """Take a task out of its place. `listed`: its id goes from the queue, too; else it was popped."""
        if rec.place == "lease":
            self._unlease(rec)
        elif rec.place == "wake":
            self.wakes.pop((t.n, task, thread), None)
        elif rec.place == "parked":
            self._unpark(thread, t, task, rec)
        elif rec.place == "line":
            self.gates.leaves_line(thread, t, task, rec)
        elif rec.place == "job" and listed and rec.job in self.queues.get(rec.waits_in, ()):
            self.queues[rec.waits_in].remove(rec.job)

    def _unpark(self, thread: str, t: Thread, task: str, rec: Record) -> None:
        name = f"{t.graph}:{rec.parked_for or rec.node}"
        rec.parked_for = ""
        if (t.n, task, thread) in self.parked.get(name, ()):
            self.parked[name].remove((t.n, task, thread))
            if not self.parked[name]:
                del self.parked[name]

    def _forget_job(self, rec: Record) -> None:
        if rec.gate:
            self.gates.let_go(rec)
        self.jobs.pop(rec.job, None)
        rec.job = ""

    def _by_token(self, token: str) -> tuple[str, Thread, str, Record] | None:
        named = self.lease.get(token)
        t = self.threads.get(named[0]) if named else None
        rec = t.open.get(named[1]) if t is not None and named else None
        if named is None or t is None or rec is None or rec.token != token:
            return None
        return named[0], t, named[1], rec

    def _at_place(self, place: Place) -> tuple[str, Thread, str, Record] | None:
        n, task, thread = place
        t = self.threads.get(thread)
        rec = t.open.get(task) if t is not None and t.n == n else None
        return None if t is None or rec is None else (thread, t, task, rec)

    # claim

    def claim(self, offer: Offer, *, take: str = "", serves: Sequence[str] = ()) -> Answer:
        assert not take and not offer.thread, "not modelled"
        call = Call(offer, True, list(offer.tokens))
        if self._resent(call):
            return Answer("ok", tuple(call.leases))
        self._wake_due()
        self.gates.serve()
        for name in [x for x in self.parked if x in serves]:
            while call.tokens and self.parked.get(name):
                found = self._at_place(self.parked[name][0])
                if found is not None and found[3].place == "parked" and found[1].status == "running":
                    self._unpark(*found)
                    self.gates.lease(*found, call)
                    continue
                self.parked[name].pop(0)
                if not self.parked[name]:
                    del self.parked[name]
        self._refill(call)
        self.gates.serve()
        return Answer("ok", tuple(call.leases))

    def _resent(self, call: Call) -> bool:
        """Offered tokens that are leased already: this is a resend, and they are the answer."""
        known = [token for token in call.tokens if token in self.lease]
        call.leases += [self._row(*found) for token in known if (found := self._by_token(token))]
        return bool(call.leases)

    def _wake_due(self) -> int:
        if not (self.wakes or self.gates.wakes):
            return 0
        now, due = self.clock(), list[tuple[int, str, Place | None]]()
        due += [(at, " ".join(map(str, place)), place) for place, at in self.wakes.items() if at <= now]
        due += [(at, f"line {gate}", None) for gate, at in self.gates.wakes.items() if at <= now]
        for _, said, place in sorted(due, key=lambda each: each[:2]):
            if place is None:
                self.gates.freed[said[5:]] = None
                del self.gates.wakes[said[5:]]
                continue
            found = self._at_place(place)
            del self.wakes[place]
            if found is not None and found[3].place == "wake":
                self._push(*found)
        return len(due)

    def _refill(self, call: Call) -> None:
        self.gates.serve()
        for name in call.offer.queues:
            queue, some = self.queues.setdefault(name, []), True
            while some and call.tokens:
                some = bool(queue)
                if some:
                    self._accept(queue.pop(0), call)
            if not some:
                self._take_coming(name, call)

    def _take_coming(self, queue: str, call: Call) -> None:
        """Nothing waits there: a task that would now be its first is leased without having been in the list."""
        for each in list(call.coming):
            if call.tokens and each[3].waits_in == queue:
                call.coming.remove(each)
                self.gates.lease(*each, call)

    def _accept(self, job: str, call: Call) -> None:
        """A job id from a list: its task is leased if it is open and unleased and this is its job."""
        thread, task = self.jobs.get(job, ("", ""))
        t = self.threads.get(thread)
        rec = t.open.get(task) if t is not None else None
        if t is None or rec is None or rec.job != job:
            self.jobs.pop(job, None)
            return
        more = t.width > 1
        if rec.place == "failed" and t.status != "running" and call.spare:
            self._continue_run(thread, t, self.ids())
            call.spare, rec.place, more = False, "moving", True
            t.unmade.append(None)
        elif t.status != "running":
            if rec.place == "job":
                self._forget_job(rec)
                rec.place = "stopped"
            return
        elif rec.place in ("lease", "done"):
            return
        else:
            self._leave(thread, t, task, rec)
            if rec.place == "failed":
                t.failed, t.left = t.failed - 1, t.left + 1
        self.gates.lease(thread, t, task, rec, call)
        if more:
            self._make_jobs(thread, t)

    def _continue_run(self, thread: str, t: Thread, run: str) -> None:
        """A failed task of a rested run whose job was pushed again."""
        said = e.fact("run_started", run, of=t.rec, step=t.step)
        t.runs[run] = ("running", self.log.append(thread, [said], (t.n, t.digest))[0], "continue")
        t.run, t.base, t.status = run, t.step, "running"
        t.left, t.failed, t.halted = t.left + t.failed + t.halted, 0, 0

    # commit

    def commit(self, commits: Sequence[tuple[Commit, Offer]]) -> list[Answer]:
        return [self._commit(commit, offer) for commit, offer in commits]

    def _commit(self, commit: Commit, offer: Offer) -> Answer:
        lease, call = commit.lease, Call(offer, bool(offer.queues), list(offer.tokens))
        t = self.threads.get(lease.thread)
        rec = t.open.get(lease.task) if t is not None else None
        if t is None or rec is None or not self._holds(t, rec, lease):
            self._resent(call)
            return Answer("already" if self._passed(rec, lease) else "fenced", tuple(call.leases))
        assert commit.outcome != "next" or t.left == 1, "a step was closed with open tasks"
        assert commit.call is None and commit.outcome != "left", "subgraphs are not modelled"
        ids = self.log.append(lease.thread, commit.entries, (t.n, t.digest)) if commit.entries else []
        self._unlease(rec)
        self._pass(t, rec, commit, ids, call)
        if call.offer.tokens:
            if t.width > 1 and t.status == "running":
                self._make_jobs(lease.thread, t)
            self._refill(call)
        self.gates.serve()
        for each in call.coming:
            self._push(*each)
        return Answer("ok", tuple(call.leases), (), t.status if t.run == lease.run else "rested")

    def still_holds(self, lease: Lease) -> bool:
        """Would a commit of this attempt pass now?"""
        t = self.threads.get(lease.thread)
        rec = t.open.get(lease.task) if t is not None else None
        return t is not None and rec is not None and self._holds(t, rec, lease)

    def _holds(self, t: Thread, rec: Record, lease: Lease) -> bool:
        held = rec.place == "lease" and rec.token == lease.token and t.status == "running"
        return held and (t.n, t.digest) == (lease.n, lease.digest)

    def _passed(self, rec: Record | None, lease: Lease) -> bool:
        """Did it pass before?"""
        if rec is not None and rec.place != "lease" and rec.token == lease.token:
            return True
        ids = [f"{n}-0" for n in (lease.n + 1, lease.n + 2)]
        return any(x.text("token") == lease.token for id in ids for x in self.log.read(lease.thread, id, id))

    def _pass(self, t: Thread, rec: Record, commit: Commit, ids: list[str], call: Call) -> None:
        thread, task = commit.lease.thread, commit.lease.task
        match commit.outcome:
            case "next":
                self._next(thread, t, rec, commit, call)
            case "done":
                self._is_done(t, task, rec)
                self._resolved(thread, t, call)
            case "failed":
                rec.suspect, rec.alone = False, 0
                self._fail(thread, t, task, rec, call)
            case "unplanned":
                self._is_done(t, task, rec)
                self._fail(thread, t, JOIN_TASK, Record(JOIN_NODE, t.queue), call)
            case "paused":
                self._paused(thread, t, task, rec, commit, call)
            case "handled":
                assert commit.handler is not None
                self._is_done(t, task, rec)
                handler = Record(*commit.handler, cause=ids[0])
                self._lease_or_push(thread, t, HANDLER + task, handler, call)
            case "retry":
                rec.place, rec.owner, rec.suspect, rec.alone = "wake", "", False, 0
                self.wakes[t.n, task, thread] = self.clock() + commit.delay_ms
            case _:
                raise AssertionError(commit.outcome)

    def _is_done(self, t: Thread, task: str, rec: Record) -> None:
        self._forget_job(rec)
        self._keep(t, task, Record(rec.node, rec.queue, rec.timeout_s, "done", rec.attempt, token=rec.token))

    def _lease_or_push(self, thread: str, t: Thread, task: str, rec: Record, call: Call) -> None:
        if call.tokens:
            self._lease(thread, t, task, rec, call)
        else:
            self._push(thread, t, task, rec, front=True)

    def _next(self, thread: str, t: Thread, rec: Record, commit: Commit, call: Call) -> None:
        assert commit.head is not None
        self._forget_job(rec)
        t.open = {}
        t.n, t.digest, t.step = commit.head
        t.failed = t.asked = t.halted = 0
        t.early = ""
        self._open_step(thread, t, commit, call)
        if t.width == 0:
            self._rest(thread, t, "done")
        elif commit.stop:
            self._rest(thread, t, commit.stop, **({"error": commit.why} if commit.why else {}))

    def _open_step(self, thread: str, t: Thread, commit: Commit, call: Call) -> None:
        new: list[tuple[str, Record]] = []
        for row in commit.next:
            new += _part_records(row[0], commit.parts) if len(row) == 2 else [(row[0], Record(*row[1:]))]
        t.width = t.left = len(new)
        if commit.stop:
            t.unmade += new
        elif commit.parts:
            t.unmade += new
            self._make_jobs(thread, t)
        else:
            call.coming += [(thread, t, task, rec) for task, rec in new]

    def _paused(self, thread: str, t: Thread, task: str, rec: Record, commit: Commit, call: Call) -> None:
        self._forget_job(rec)
        if t.early_task == task:
            t.early = ""
        place = "asked" if commit.question else "stopped"
        asked = Record(rec.node, rec.queue, rec.timeout_s, place, rec.attempt, rec.lost, token=rec.token)
        asked.asks, asked.answers, asked.cause, asked.effects = commit.question, commit.kept, rec.cause, rec.effects
        self._keep(t, task, asked)
        t.asked, t.halted = t.asked + bool(commit.question), t.halted + (not commit.question)
        self._resolved(thread, t, call)

    def _fail(self, thread: str, t: Thread, task: str, rec: Record, call: Call) -> None:
        if not rec.job:
            self._make_job(thread, t, task, rec)
        rec.place, rec.owner = "failed", ""
        self._keep(t, task, rec)
        t.failed += 1
        self._resolved(thread, t, call)

    def _resolved(self, thread: str, t: Thread, call: Call) -> None:
        """A task of the open step has ended for good and no longer keeps the run going."""
        t.left -= 1
        if t.left > 0:
            return
        if t.failed:
            self._rest(thread, t, "failed")
        elif t.asked + t.halted:
            self._rest(thread, t, "interrupted")
        else:
            t.left = 1
            self._lease_or_push(thread, t, JOIN_TASK, Record(JOIN_NODE, t.queue), call)

    def _rest(self, thread: str, t: Thread, status: str, **more: str) -> None:
        """A run ends; then the next queued input starts."""
        if status != "done":
            self._fact(thread, t, "run_rested", status=status, **more)
        self._run_is(t, t.run, status)
        t.status = status
        if t.queued:
            start, entry = t.queued.pop(0)
            t.run = start.run
            self._fact(thread, t, "run_started", of=entry, step=t.step)
            self._push(thread, t, start.task, self._begin(thread, t, start, entry))

    def _run_is(self, t: Thread, run: str, word: str) -> None:
        t.runs[run] = (word, *t.runs[run][1:])

    def _fact(self, thread: str, t: Thread, kind: str, **fields: e.Field) -> str:
        return self.log.append(thread, [e.fact(kind, t.run, **fields)], (t.n, t.digest))[0]

    # the rest

    def part(self, lease: Lease, pieces: Sequence[e.Fields]) -> list[str]:
        ids: list[str] = []
        for piece in pieces:
            t = self.threads.get(lease.thread)
            rec = t.open.get(lease.task) if t is not None else None
            if t is None or rec is None or not self._holds(t, rec, lease):
                return []
            ids += self.log.append(lease.thread, [piece], (t.n, t.digest))
            if not rec.effects and piece["kind"] == "effect_done":
                rec.effects = ids[-1]
        return ids

    def renew(self, offer: Offer, before: int, *, registry: bool = False, callers: Sequence[str] = ()) -> Renewed:
        gone = [token for token in offer.tokens if token not in self.leases]
        for token in offer.tokens:
            if token in self.leases:
                self.leases[token] = self.clock() + offer.lease_ms
                self.held.setdefault(offer.owner, {})[token] = self.clock()
        held = self.held.get(offer.owner, {})
        if len(held) == len(offer.tokens):  # it named all
            return Renewed(gone, self.clock())
        for token, named in list(held.items()):
            if named < before <= self.clock():
                self._release_orphan(offer.owner, token)
        self.gates.serve()
        return Renewed(gone, self.clock())

    def _release_orphan(self, owner: str, token: str) -> None:
        found = self._by_token(token)
        if found is not None and found[1].status == "running":
            self._unlease(found[3])
            found[3].attempt -= 1
            self._push(*found, front=True)
        else:
            self._drop_held(owner, token)

    def release(
        self,
        owner: str,
        tokens: Sequence[str] | None,
        to: Literal["job", "parked", "lost"],
        why: str = "",
        node: str = "",
    ) -> int:
        released = 0
        for token in list(self.held.get(owner, {})) if tokens is None else tokens:
            found = self._by_token(token)
            if found is not None and found[3].place == "lease" and found[1].status == "running":
                self._give_back(*found, owner, to, why, node)
                released += 1
            else:
                self._drop_held(owner, token)
                self.lease.pop(token, None)
                self.leases.pop(token, None)
        if tokens is None:
            self.held.pop(owner, None)  # also what it named of others' leases
        self.gates.serve()
        return released

    def _give_back(
        self, thread: str, t: Thread, task: str, rec: Record, owner: str, to: str, why: str, node: str
    ) -> None:
        if to == "lost":
            return self._lost(thread, t, task, rec, reaped=True)
        if to == "parked":
            self._fact(thread, t, "task_parked", task=task, node=rec.node, by=owner, error=why)
        self._unlease(rec)
        rec.attempt -= 1
        if to != "parked":
            return self._push(thread, t, task, rec, front=True)
        rec.place, rec.token, rec.owner, rec.parked_for = "parked", "", "", node
        self.parked.setdefault(f"{t.graph}:{node or rec.node}", []).append((t.n, task, thread))

    def _lost(self, thread: str, t: Thread, task: str, rec: Record, *, reaped: bool) -> None:
        """An attempt's process died, or its lease ran out. After that the task may be a suspect."""
        alone = rec.suspect
        self._fact(
            thread, t, "task_lost", task=task, attempt=rec.attempt, token=rec.token, by=rec.owner, node=rec.node,
            error="its process died" if reaped else "its lease ran out",
        )  # fmt: skip
        self._unlease(rec)
        rec.lost, rec.expired, rec.alone = rec.lost + 1, rec.expired + (not reaped), rec.alone + alone
        if rec.alone >= LOSSES_ALONE_MAX:
            text = f"its process died {rec.lost} times, {rec.alone} of them while it ran alone"
            said = json.dumps({"type": "Poison", "text": text})
            self._fact(thread, t, "task_failed", task=task, attempt=rec.attempt, node=rec.node, error=said)
            rec.alone, rec.suspect = 0, False
            return self._fail(thread, t, task, rec, Call(Offer("")))
        rec.suspect = rec.suspect or reaped or rec.expired >= 2
        self._push(thread, t, task, rec, front=True)

    def cancel(self, thread: str, run: str = "", actor: str = "") -> str:
        t = self.threads.get(thread)
        if t is None:
            return "unknown"
        if run and run != t.run:
            return self._cancel_queued(thread, t, run, actor)
        if t.status != "running":
            return "rested"
        self._fact(thread, t, "run_cancel_asked", actor=actor)
        self._withdraw(thread, t)
        left = t.left + t.failed + t.halted
        t.failed = t.halted = 0
        self._rest(thread, t, "cancelled", actor=actor)
        if t.status == "cancelled":
            t.left = left
        self.gates.serve()
        return "cancelled"

    def _withdraw(self, thread: str, t: Thread) -> None:
        for task, rec in t.open.items():
            if rec.place in WITHDRAWN:
                self._leave(thread, t, task, rec, listed=True)
                self._forget_job(rec)
                rec.place, rec.token, rec.owner = "stopped", "", ""

    def _cancel_queued(self, thread: str, t: Thread, run: str, actor: str) -> str:
        found = next((each for each in t.queued if each[0].run == run), None)
        if found is None:
            return "rested" if run in t.runs else "unknown"
        t.queued.remove(found)
        said = e.fact("run_rested", run, status="cancelled", actor=actor)
        self.log.append(thread, [said], (t.n, t.digest))
        self._run_is(t, run, "cancelled")
        return "cancelled"

    def sweep(self, server: str, lease_ms: int = LEASE_MS) -> dict[str, Any]:
        now, seen = self.clock(), self.swept
        hold = seen[2] if seen is not None else 0
        if seen is None or now - seen[0] > max(lease_ms / 2, 500) or seen[1] != server:
            hold = now + lease_ms + AFTER_GAP_MS
        self.swept = now, server, hold
        out: dict[str, Any] = {"status": "ok", "lost": 0, "woken": self._wake_due()}
        if hold > now:
            self._sweep_ends()
            return {**out, "held": hold - now}
        for token in [token for end, token in sorted((end, x) for x, end in self.leases.items()) if end <= now]:
            found = self._by_token(token)
            if found is not None and found[3].place == "lease" and found[1].status == "running":
                self._lost(*found, reaped=False)
                out["lost"] += 1
            else:
                self.leases.pop(token, None)
                self.lease.pop(token, None)
        self._sweep_ends()
        return out

    def _sweep_ends(self) -> None:
        self.gates.poke()
        self.gates.serve()

    def limit(self, graph: str, limits: Limits) -> None:
        self.gates.limit(graph, limits)


def _part_records(ref: str, parts: Mapping[str, str]) -> list[tuple[str, Record]]:
    """The tasks of a Send part."""
    k, found = ref.rpartition("-")[2], list[tuple[str, Record]]()
    for node, queue, timeout_s, count in json.loads(parts[ref]):
        found += [(f"s{k}_{len(found) + i}", Record(node, queue, timeout_s)) for i in range(count)]
    return found


def _refused(start: Start, t: Thread | None) -> str:
    """Why a run can't begin now; empty if it can."""
    assert start.command is None, "Commands as inputs are not modelled"
    if t is not None and t.status == "running" and (start.mode == "reject" or start.goes_on):
        return "busy"
    if not start.goes_on:
        return ""
    if t is None or t.left + t.failed + t.asked + t.halted == 0 or t.status == "done":
        return "nothing"
    if t.left + t.failed + t.halted + len(start.answers) == 0:
        return "asked"
    if start.at is not None and tuple(start.at) != (t.n, t.digest):
        return "stale"
    for each in start.answers:
        rec = t.open.get(each.task)
        asks = rec is not None and rec.place == "asked" and each.question in rec.asks.split()
        if each.question and not asks:
            return "stale"
    opens = t.left + t.failed + t.halted > 0 or any(each.question for each in start.answers)
    return "" if opens else "stale"
