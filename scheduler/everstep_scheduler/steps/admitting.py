"""Admitting: before a task runs where entries are signed, what its lease says is held against signed entries.

    lease (from indexes, which anybody who may write can change) ──► thread, n, digest, task, node, run, ids of entries
    signed entries ──► the checkpoint at the head names this task; the run's fact, an answer, a part: of this step

Indexes decide what is handed out, never what is due: a lease that leads to anything else is Forged, and its task fails
saying so. What is due may be handed out again, as after a crash. Where nothing is signed nothing of this runs.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import Forged
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import HANDLER, commanded, step_of
from everstep_checkpoint.signing import ANYWHERE, BEHIND, FIELD, RUNS, place_of, placed

from ..graph.spec import NodeSpec
from ..graph.subgraphs import child_thread
from ..moves.contract import JOIN_NODE, JOIN_TASK, START_TASK, UPDATE_TASK, Commit, Lease
from ..moves.sealing import ADDS, RESTS
from .loading import Loader

KNOWN_MAX = 4096
FIRST = (START_TASK, UPDATE_TASK)
GOES_ON = ("continue", "resume")
_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)


class Known(NamedTuple):
    """The head of a thread, as a signed checkpoint says it. `rests`: how its run rested, though tasks come next."""

    n: int
    digest: str
    birth: str
    run: str
    graph: str
    rows: tuple[Sequence[Any], ...]
    rests: str

    @property
    def width(self) -> int:
        return sum(1 if len(row) == 4 else row[1] for row in self.rows)


class Gate:
    """Admits leases. Remembers the heads that its own process wrote or read, so that a warm step asks nothing."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def log(self) -> Log:
        return self.loader.log

    def learn(self, commit: Commit) -> None:
        """A commit of this process passed: the next checkpoint is the head."""
        if commit.head is None:
            return
        lease, (n, digest, _) = commit.lease, commit.head
        graph = str(commit.entries[-1].get("graph", ""))
        self._keep(lease.thread, Known(n, digest, lease.birth, lease.run, graph, commit.next, commit.stop))

    def admit(self, lease: Lease, node: NodeSpec | None) -> None:
        """Raises Forged for a lease that no signed entry stands for; LogError, ServerError. `node`: the one to run."""
        at = self._head(lease)
        began, told = self._run_of(lease, at)
        if lease.task in FIRST:
            self._input(lease, at, began)
        elif lease.task == JOIN_TASK:
            self._join(lease)
        else:
            self._task(lease, at, told)
        for ref in lease.answers.split():
            answer = self._of_step(lease, ref)
            if answer.text("question") and answer.text("task") != lease.task:
                raise _forged(lease, f"entry {ref} answers another task")
        for ref in lease.over.split():
            self._of_step(lease, ref)
        if lease.called:
            self._called(lease, node)

    # the head

    def _head(self, lease: Lease) -> Known:
        with self._lock:
            found = self._known.get(lease.thread)
        if found is not None and found[:3] == (lease.n, lease.digest, lease.birth):
            return found
        head = self.log.head(lease.thread)
        if head is None or (head.n, head.digest) != (lease.n, lease.digest):
            raise _forged(lease, f"the index says checkpoint {lease.n}, and another one is the last of the log")
        if not lease.n:
            if lease.birth != lease.digest:
                raise _forged(lease, "the index names another birth of the thread than the log")
            return self._keep(lease.thread, Known(0, lease.digest, lease.birth, "", "", (), ""))
        self.loader.prove(lease)
        (entry,) = self.log.read(lease.thread, f"{lease.n}-0", f"{lease.n}-0")
        made = Known(
            lease.n, entry.digest, lease.birth, entry.text("run"), entry.text("graph"), tuple(entry.next),
            entry.text(RESTS),
        )  # fmt: skip
        return self._keep(lease.thread, made)

    def _keep(self, thread: str, known: Known) -> Known:
        with self._lock:
            self._known[thread] = known
            self._known.move_to_end(thread)
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        return known

    # the run

    def _run_of(self, lease: Lease, at: Known) -> tuple[e.Entry, e.Entry]:
        """The facts with the run's input and with its record: signed ones of this thread, of the run under way."""
        began, told = self._entry(lease, lease.rec), self._entry(lease, lease.conf or lease.rec)
        if told.text("run") != lease.run or "record" not in told.raw:
            what = f"no signed entry says that the run {lease.run!r} begins here"
            raise _forged(lease, what, "`rq requeue` can't sign; go on with `everstep retry`")
        goes_on = told.n == lease.n and told.text("kind_of_run") in GOES_ON and _stands(told, lease)
        if lease.task not in FIRST and not goes_on and told.text("run") != at.run:
            raise _forged(lease, f"checkpoint {lease.n} is of another run than {lease.run!r}")
        if lease.task not in FIRST and at.rests and not goes_on:
            what = f"the run rests at checkpoint {lease.n} ({at.rests}), and no signed entry lets it go on"
            raise _forged(lease, what, "go on with `everstep retry`, or invoke(None)")
        graph = at.graph if lease.task not in FIRST else began.text("graph")
        if graph and graph.partition("@")[0] != lease.graph:
            raise _forged(lease, f"its graph is {graph.partition('@')[0]!r} by what is signed, and not {lease.graph!r}")
        return began, told

    def _input(self, lease: Lease, at: Known, began: e.Entry) -> None:
        """The task of an input is due behind what its fact was signed for, until a checkpoint has applied it."""
        waits = any(row[:2] == (lease.task, lease.node) for row in map(tuple, at.rows))
        if waits and began.text("run") == at.run:
            return  # the checkpoint itself names it
        asks = began.kind in RUNS and began.text("kind_of_run") not in GOES_ON
        if not asks or (began.text("task"), began.text("node")) != (lease.task, lease.node):
            raise _forged(lease, f"entry {began.id} asks for no {lease.task!r} of node {lease.node!r}")
        place = place_of(began)
        since = place.n if place is not None else began.n
        for entry in self.log.pages(lease.thread, f"{since}-0", str(lease.n)):
            if entry.n == since and place is not None and entry.is_checkpoint:
                placed(lease.thread, began, since, entry.digest)
            before = entry.id != began.id and e.entry_id(entry.id) < e.entry_id(began.id)
            if before and entry.raw.get(FIELD) == began.raw.get(FIELD):
                raise _forged(lease, f"entry {began.id} is a copy of {entry.id}: that input stands here already")
            applied = entry.is_checkpoint and entry.n > began.n and entry.text("run") == began.text("run")
            if applied:
                raise _forged(lease, f"checkpoint {entry.n} has applied the input of entry {began.id} already")

    # tasks

    def _task(self, lease: Lease, at: Known, told: e.Entry) -> None:
        """A task by name: is it one of the step's, of this node?"""
        task = lease.task.removeprefix(HANDLER)
        adds = commanded(task)
        if lease.width == 1 and at.width != (0 if adds else 1):
            raise _forged(lease, f"checkpoint {lease.n} leads to {at.width} tasks, and the index says it is one alone")
        node = self._added(lease, task) if adds else self._named(lease, at, task)
        if task != lease.task:
            cause = self._of_step(lease, lease.cause)
            if cause.text("task") != task:
                raise _forged(lease, f"entry {cause.id} is no failure of {task!r}")
            node = cause.text("handler")
        if node != lease.node and lease.node not in self._moved(lease):
            named = repr(node) if node else "no task of that name"
            raise _forged(lease, f"its index says node {lease.node!r}, and what is signed says {named}")

    def _named(self, lease: Lease, at: Known, task: str) -> str:
        """The node of a task that the checkpoint names; empty if it names none."""
        for row in at.rows:
            if len(row) == 4 and row[0] == task:
                return str(row[1])
            if len(row) == 2 and task.startswith(f"s{e.entry_id(row[0])[1]}_"):
                return _of_part(self._entry(lease, row[0], lease.digest), task)
        return ""

    def _added(self, lease: Lease, task: str) -> str:
        """The node of a task that a Command added, as its run's fact says; empty if none added it."""
        k, _, i = task.removeprefix("s").removeprefix("g").partition("_")
        entry = self._of_step(lease, f"{lease.n}-{k}")
        if not task.startswith("sg"):
            rows: Any = entry.json(ADDS) or ()
            if entry.kind in RUNS and i.isdigit() and int(i) < len(rows) and len(rows[int(i)]) == 2:
                return str(rows[int(i)][0])
            return self._said_added(lease, task)
        return _of_part(entry, task) if any(_brings(x, entry) for x in self._facts(lease)) else ""

    def _said_added(self, lease: Lease, task: str) -> str:
        """The node that a signed `task_added` gives a task: moves in a process sign those."""
        signed = (x for x in self._facts(lease) if x.kind == "task_added" and FIELD in x.raw)
        return next((x.text("node") for x in signed if x.text("task") == task), "")

    def _moved(self, lease: Lease) -> set[str]:
        """The nodes that a task was given by a migration."""
        return {x.text("node") for x in self._facts(lease) if x.kind == "task_moved" and x.text("task") == lease.task}

    def _join(self, lease: Lease) -> None:
        """The join is due when all tasks of the step are done; that of an input, when it is."""
        if lease.node != JOIN_NODE:
            raise _forged(lease, f"the join is no task of node {lease.node!r}")
        facts = self._facts(lease)
        first = {x.text("run") for x in facts if x.kind == "task_done" and x.text("task") in FIRST}
        if lease.width == 1 and first:
            return
        tasks = step_of(self.log, lease.thread, lease.n).tasks if lease.n else ()
        done = {x.text("task") for x in facts if x.kind == "task_done"}
        open_ones = [x.task for x in tasks if x.task not in done and HANDLER + x.task not in done]
        if open_ones or not tasks:
            open_one = open_ones[0] if open_ones else "its first task"
            raise _forged(lease, f"the step is not to be joined yet: {open_one} is not done")

    def _called(self, lease: Lease, node: NodeSpec | None) -> None:
        """What a task called lies where its calls lie; where the node keeps a state, a fact of this step names it."""
        run, _, thread = lease.called.partition(" ")
        key = e.idempotency_key(lease.birth, lease.n, lease.digest, lease.task)
        if node is None or not node.calls or thread != child_thread(lease.thread, node.name, key, node.keeps):
            raise _forged(lease, f"the task can't have called the thread {thread!r}")
        if node.keeps and not any(x.text("called") == lease.called for x in self._facts(lease)):
            raise _forged(lease, f"no entry says that the task called the run {run!r}")

    # entries

    def _entry(self, lease: Lease, ref: str, of: str = "") -> e.Entry:
        """An entry that the lease names: signed, of this thread, and no later than its checkpoint's step."""
        if not _ID.fullmatch(ref):
            raise _forged(lease, f"the index names {ref[:40]!r}, which is no entry")
        found = self.loader.entry(lease, ref, of)
        if found.n > lease.n:
            raise _forged(lease, f"entry {ref} came later than checkpoint {lease.n}")
        return found

    def _of_step(self, lease: Lease, ref: str) -> e.Entry:
        """The same of one that belongs to the open step."""
        found = self._entry(lease, ref, lease.token)
        if found.n != lease.n or found.is_checkpoint or not _stands(found, lease):
            raise _forged(lease, f"entry {ref} was not signed for the step of checkpoint {lease.n}")
        return found

    def _facts(self, lease: Lease) -> list[e.Entry]:
        found = list(self.log.pages(lease.thread, f"{lease.n}-1", str(lease.n)))
        for fact in found:
            placed(lease.thread, fact, lease.n, lease.digest)
        return found


def _stands(fact: e.Entry, lease: Lease) -> bool:
    """Was a fact signed for exactly the checkpoint of a lease? A run's may have been signed for an earlier one."""
    place = place_of(fact)
    return place is not None and place == (lease.n, lease.digest[:BEHIND] or ANYWHERE)


def _brings(fact: e.Entry, part: e.Entry) -> bool:
    """Does a fact say that a Command brought this part of Sends?"""
    if fact.kind == "task_added":
        return FIELD in fact.raw and any(row[0] == part.id for row in fact.json("parts") or ())
    rows = fact.json(ADDS) if fact.kind == "run_started" and fact.text("run") == part.text("run") else None
    return [part.text("sum")] in (rows or ())


def _of_part(part: e.Entry, task: str) -> str:
    """The node of the task `..._<i>` of a part of Sends, which names them by run lengths; empty if it has none."""
    index = task.partition("_")[2]
    i = int(index) if index.isdecimal() else e.PART_TASKS_MAX
    for named, _, _, count in part.json("tasks"):
        if i < count:
            return str(named)
        i -= count
    return ""


def _forged(lease: Lease, why: str, fix: str = "") -> Forged:
    """The error for a lease that says what no signed entry does."""
    return Forged(
        f"task {lease.task!r} is not run: {why}", thread=lease.thread, checkpoint=str(lease.n), node=lease.node,
        fix=fix or "somebody without the key changed the indexes; `everstep recover` makes them anew from the log",
    )  # fmt: skip


def gate_of(loader: Loader) -> Gate | None:
    """The gate where entries have to be signed; None, and nothing to do, where they need not."""
    signer = loader.log.signer
    if loader.gate is None and signer is not None and signer.strict:
        loader.gate = Gate(loader)
    found: Gate | None = loader.gate
    return found


__all__ = ["Gate", "gate_of"]
