"""Chunks: what a log's entries tell about one run, in LangGraph's stream modes, with its names, shapes and order.

    entry ──LogStream.feed──► (namespace, mode, chunk)

    values        the state after each step that wrote to it        updates      {node: what it wrote}
    checkpoints   each checkpoint, as `get_state` shows it          tasks        each task: its begin, what came of it
    debug         checkpoints and tasks, with step and time

One implementation for graphs that run inline and for those on workers. The modes `custom` and `messages` are not in the
log: nodes tell them while they run (`moves/live.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import InvalidUpdateError, Trimmed
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import (
    HANDLER,
    Channels,
    Fold,
    State,
    TaskRef,
    added_parts,
    added_tasks,
    adds_handler,
    brings_update,
    fetch,
    input_writes,
    state_at,
    tasks_of,
    with_added,
)

from ..graph.channels import apply
from ..graph.effects import called, place_of_call, raised_key
from ..graph.placing import Place, call_id
from ..graph.untracked import taken
from ..moves.contract import JOIN_TASK, START_NODE, START_TASK, UPDATE_TASK
from ..moves.record import CALLS, RunRecord
from .ending import error_of
from .frames import frame_at, until_new_input
from .nested import OUTCOMES, Key, Nested, Where, is_call, key_of, outermost
from .overlay import overlaid
from .questions import questions, step_told
from .shapes import INTERRUPT, LOG_MODES, PUSH, Reading, Told, Writes, beside, result_of, update_of

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec

RETURN = "__return__"  # what a `@task` returned, in `tasks`
CACHED = {"__metadata__": {"cached": True}}  # beside the update of a task that did not run now


class LogStream:
    """Feeds on a thread's entries from its run's first one on, and gives the run's chunks: `before`, `feed`, `flush`.

    Each with the namespace of its graph. What a task calls has a stream of its own; but where a run goes on, and what a
    task called waits on, `standing` tells how that stands, given the fact that says so.

    `since`: the id of the run's first entry. `keys`: those that `values` and `updates` show; None: all. `errors`: what
    tasks raised, by token, where the process knows it; elsewhere an error is its text. `where`: the place of a run
    that a task called.
    """

    def __init__(
        self,
        log: Log,
        thread: str,
        run: str,
        since: str,
        reading: Reading,
        modes: Sequence[str],
        *,
        keys: Sequence[str] | None = None,
        checkpoints: bool = True,
        where: Where | None = None,
    ) -> None:
        self.log, self.thread, self.run, self.since = log, thread, run, since
        self.where = where or Where(Place(thread))
        self.checkpoints = checkpoints
        self.reading, self.keys = reading, reading.told(keys)
        self.modes = frozenset(modes) & set(LOG_MODES)
        self.errors: dict[str, BaseException] = {}
        self.standing: Callable[[e.Entry], Iterator[Nested]] | None = None
        self.still: list[e.Entry] = []  # calls of graphs by functions that may go on since this run goes on
        self.specs: dict[str, GraphSpec] = {}  # of graphs that functions called, by their runs, where they are known
        self._waiting: list[e.Entry] = []  # what tasks called before this run, and nothing was told of since
        self._telling = {*self.modes, *(("checkpoints", "tasks") if "debug" in self.modes else ())}
        if not checkpoints:
            self._telling.discard("checkpoints")
        self._folds = bool(self._telling - {"updates"})
        self._fold: Fold | None = None
        self._record: RunRecord | None = None
        self._written: set[str] = set()
        self._opened = _Opened("", 0, "", 0)
        self._parent = ""
        self._begins: Iterator[Told] = iter(())
        self._over: list[e.Entry] = []  # what Commands updated since the last checkpoint
        self._ground: State | None = None

    def anew(self) -> LogStream:
        """The same from its beginning; it tells the keys of the output, as what tasks call does."""
        return LogStream(
            self.log, self.thread, self.run, self.since, self.reading, tuple(self.modes), keys=self.reading.outputs,
            checkpoints=self.checkpoints, where=self.where,
        )  # fmt: skip

    # feeding

    def before(self, entry: e.Entry) -> Iterator[Nested]:
        """The chunks that the entry before this one still had: to be asked for first."""
        if entry.kind == "run_rested" and entry.text("run") == self.run and "command" not in entry.raw:
            self._begins = iter(())  # the run rests where it stands: what comes next has not begun
        yield from self.flush()

    def feed(self, entry: e.Entry) -> Iterator[Nested]:
        """The chunks that an entry brings; to be taken whole before the next one. Raises CorruptEntry."""
        if entry.kind == "task_called":
            self._waiting = [x for x in self._waiting if is_call(x) or x.text("task") != entry.text("task")]
        if self.standing is not None and self._waiting:
            for fact in self._come_to(entry):
                self._waiting.remove(fact)
                yield from self.standing(fact)
        yield from outermost(self._feed(entry), self.where.ns)

    def heard(self, call: e.Entry) -> None:
        """What this call says goes on in this run, and is told."""
        self._waiting = [fact for fact in self._waiting if fact.id != call.id]

    def _come_to(self, entry: e.Entry) -> list[e.Entry]:
        """Of what waits since before this run, that of the tasks that an entry tells the outcome of."""
        if entry.is_checkpoint or (entry.kind == "run_rested" and entry.text("run") == self.run):
            return list(self._waiting)
        return [x for x in self._waiting if entry.kind in OUTCOMES and entry.text("task") == x.text("task")]

    def _feed(self, entry: e.Entry) -> Iterator[Told]:
        ours = entry.text("run") == self.run
        if entry.is_checkpoint:
            yield from self._checkpoint(entry, ours)
            return
        if self._fold is not None:
            self._fold.feed(entry)
        if brings_update(entry):
            self._over.append(entry)
        if ours:
            yield from self._fact(entry)

    def flush(self) -> Iterator[Nested]:
        """The tasks that begin at the last checkpoint: to be asked for when no entry stands behind it (yet)."""
        begins, self._begins = self._begins, iter(())
        yield from outermost(begins, self.where.ns)

    def closing(self) -> Iterator[Nested]:
        """What is left to tell when the task that called it has come to something."""
        yield from ()

    def enter(self, n: int) -> None:
        """Begin in the middle: behind checkpoint n, whose facts are to be fed next and their chunks passed over."""
        found = self._one(f"{n}-0")
        if found and self._folds:
            for _ in self._checkpoint(found[0], False, load=True):
                pass

    def _fact(self, entry: e.Entry) -> Iterator[Told]:
        match entry.kind:
            case "run_started" | "run_queued":
                if entry.text("kind_of_run") in ("continue", "resume"):
                    yield from self._goes_on(entry)
                elif "input" in entry.raw:
                    self._written = {name for name, _ in input_writes(entry)}
            case "task_done":
                writes = entry.writes()
                if entry.text("task") not in (START_TASK, UPDATE_TASK):
                    self._written |= {name for name, _ in writes}
                    yield from self._result(entry, writes)
            case "task_failed":
                if "retry_at" not in entry.raw and entry.text("task") not in (START_TASK, UPDATE_TASK, JOIN_TASK):
                    yield from self._failure(entry)
            case "task_paused":
                yield from self._asked(entry)
            case "effect_done" | "call_begun" | "call_failed":
                yield from self._called(entry)
            case "run_rested":
                yield from self._rests(entry)
            case "task_added":
                self._begins = self._more(entry)
            case _:
                pass

    def _checkpoint(self, entry: e.Entry, ours: bool, load: bool = False) -> Iterator[Told]:
        state = self._state(entry) if ours or load or self._fold is not None else None
        task, source = entry.text("task"), entry.text("source") if entry.instead_of is None else "fork"
        self._over = []
        if ours and source not in ("input", "fork") and task not in ("", START_TASK, JOIN_TASK, UPDATE_TASK):
            writes = _writes(state, entry)
            self._written |= {name for name, _ in writes}
            yield from self._result(entry, writes)
        parent, self._parent = _builds_on(entry, self._parent), entry.checkpoint_id
        if state is not None and self._fold is not None:
            self._opened = _Opened(state.birth, entry.n, entry.digest, entry.number("step"))
        if not ours or state is None:
            return
        if source == "input" and not self.reading.direct:
            start = TaskRef(START_TASK, START_NODE, "")
            yield from self._emit("checkpoints", entry, self._shown(state, [start], parent))
            return
        later = task == START_TASK and not self._written and self.record.kind != "input"  # an earlier run's input
        if "values" in self._telling and (source == "fork" or later or self._shows(self._written)):
            yield "values", self.reading.values(state.channels, self.keys)
        self._written = set()
        refs = self._refs(entry)
        yield from self._emit("checkpoints", entry, self._shown(state, refs, parent))
        if source != "update":
            self._begins = self._begun(state, refs)

    # loading

    def _state(self, entry: e.Entry) -> State | None:
        """The state at a checkpoint: loaded for the first one, folded for those behind it; None if it was trimmed."""
        if self._fold is not None:
            return self._fold.feed(entry)
        if not self._folds:
            return None
        try:
            state = state_at(self.log, self.thread, entry.n)
        except Trimmed:
            return None
        self._fold = Fold(fetch(self.log, self.thread), dict(state.channels), state.birth, n=state.n)
        if entry.n > 1 and not self._parent:
            self._parent = next((x.checkpoint_id for x in self._one(f"{entry.n - 1}-0")), "")
        return state

    def _one(self, ref: str) -> list[e.Entry]:
        return self.log.read(self.thread, ref, ref)

    def _refs(self, entry: e.Entry, facts: Iterable[e.Entry] = ()) -> list[TaskRef]:
        """The tasks of a checkpoint and those that Commands added by these facts; Sends first, as in LangGraph."""
        if not self._folds:
            return []
        parts = {row[0]: part for row in entry.next if len(row) == 2 for part in self._one(row[0])}
        refs = with_added(tasks_of(entry, parts), self._commanded(facts))
        return sorted(refs, key=lambda ref: not ref.part)

    def _commanded(self, facts: Iterable[e.Entry]) -> list[TaskRef]:
        """The tasks that facts add for Commands."""
        added = [fact for fact in facts if fact.kind == "task_added" and not adds_handler(fact)]
        return added_tasks(added, {ref: part for fact in added for ref in added_parts(fact) for part in self._one(ref)})

    def _more(self, fact: e.Entry) -> Iterator[Told]:
        """Tasks begin that a Command added."""
        if self._ground is not None and self._folds:
            yield from self._begun(self._ground, self._commanded((fact,)))

    def _seen(self, channels: Channels) -> Channels:
        """The channels with what Commands updated, where the reducers are at hand and take it."""
        try:
            return overlaid(self.reading.spec, channels, self._over) if self.reading.spec is not None else channels
        except InvalidUpdateError:
            return channels

    @property
    def record(self) -> RunRecord:
        """What the run was told; nothing where that was trimmed."""
        if self._record is None:
            stored = next((x.value("record") for x in self._one(self.since)), None) if self.since else None
            self._record = RunRecord.decode(stored) if stored else RunRecord()
        return self._record

    # a run that continues

    def asking(self) -> Iterator[Nested]:
        """How things stand where a run has nothing to run: what is done, and the questions that wait, are told anew."""
        head, ns = self.log.head(self.thread), self.where.ns
        if head is None or not head.n:
            return
        step = self._step(head.n)
        yield from outermost(self._stands(step), ns)
        if not step.waiting:
            return
        yield from outermost(self._resumed(step), ns)
        for fact in step.waiting:
            if self.standing is not None:
                for each in step.behind(fact):
                    yield from self.standing(each)
            yield from outermost(self._asked(fact), ns)
        yield from outermost(self._beside(step), ns)

    def _goes_on(self, entry: e.Entry) -> Iterator[Told]:
        """A run continues, or answers, at `entry`."""
        if entry.n:
            step = self._step(entry.n, e.entry_id(entry.id))
            yield from self._stands(step)
            self._begins = self._resumed(step)
            self.still = step.calls()
            open_still = [fact for task, fact in step.paused.items() if task not in step.done]
            nodes = [fact for fact in open_still if fact.text("called") and not step.calls(fact.text("task"))]
            self._waiting = [*nodes, *self.still]

    def _rests(self, entry: e.Entry) -> Iterator[Told]:
        """The run rests: at a breakpoint, or with questions; those that wait from earlier runs are told again."""
        if entry.text("status") != "interrupted" or self.record.kind == "update" or not entry.n:
            return
        step = self._step(entry.n, e.entry_id(entry.id))
        for fact in step.waiting:
            if fact.text("run") != self.run:
                yield from self._asked(fact)
        yield from self._beside(step)
        if not any(fact.text("question") for fact in step.waiting) and not self.where.ns and "updates" in self._telling:
            yield "updates", {INTERRUPT: ()}  # a breakpoint, perhaps within what a task called

    def _step(self, n: int, before: tuple[int, int] | None = None) -> _Step:
        """The step of checkpoint n, with its facts before an entry."""
        frame = frame_at(self.log, self.thread, n)
        facts = [x for x in frame.facts if before is None or (x.n, x.k) < before]
        told = step_told(self.log, self.thread, frame, facts)
        waiting = [task.asks for task in told.tasks if task.place == "asked" and task.asks is not None]
        kinds: dict[str, dict[str, e.Entry]] = {"task_done": {}, "task_failed": {}, "task_paused": {}}
        for fact in until_new_input(facts, self.log, self.thread) if before is None else facts:
            if fact.kind in kinds and fact.text("task") not in (START_TASK, UPDATE_TASK, JOIN_TASK):
                kinds[fact.kind][fact.text("task")] = fact
        refs = self._refs(frame.state.entry, facts)
        parent = _builds_on(frame.state.entry, frame.parent)
        return _Step(frame.state, parent, facts, refs, waiting, *kinds.values())

    def _stands(self, step: _Step) -> Iterator[Told]:
        state, entry = step.state, step.state.entry
        own = [fact for fact in self._over if not any(fact.id == each.id for each in step.facts)]
        self._over = [*filter(brings_update, step.facts), *own]
        self._ground = state
        self._written = {name for fact in step.done.values() for name, _ in fact.writes()}
        if self._folds:
            self._fold = Fold(fetch(self.log, self.thread), dict(state.channels), state.birth, n=state.n)
            for fact in step.facts:
                self._fold.feed(fact)
        self._opened = _Opened(state.birth, state.n, entry.digest, entry.number("step"))
        self._parent = entry.checkpoint_id
        if "values" in self._telling:
            yield "values", self.reading.values(self._seen(state.channels), self.keys)
        yield from self._emit("checkpoints", entry, self._shown(state, step.refs, step.parent, step))

    def _resumed(self, step: _Step) -> Iterator[Told]:
        yield from self._begun(step.state, step.refs)
        for fact in step.done.values() if "updates" in self._telling else ():
            yield "updates", {**self._update(fact, fact.writes()), **CACHED}

    def _beside(self, step: _Step) -> Iterator[Told]:
        """The values with what is done beside what waits, of the outermost graph: where its reducers are at hand."""
        refs = sorted(step.refs, key=lambda ref: bool(ref.part))
        order = [task for ref in refs for task in (ref.task, HANDLER + ref.task)]
        done = [step.done[task] for task in order if task in step.done]
        writes = [(name, value) for fact in done for name, value in fact.writes() if value is not None]
        told = "values" in self._telling and not self.where.ns
        if not told or self.reading.spec is None or not self._shows(name for name, _ in writes):
            return
        try:
            yield (
                "values",
                self.reading.values(apply(self.reading.spec, self._seen(step.state.channels), writes), self.keys),
            )
        except InvalidUpdateError:
            return  # they exclude each other: the run will fail when its questions are answered

    # chunks

    @property
    def _kept(self) -> Sequence[str] | None:
        """Of a task's result, what is told: all, but of an entrypoint what it returned."""
        return self.keys if self.reading.direct else None

    def _shows(self, written: Iterable[str]) -> bool:
        """LangGraph tells values only after a step that wrote to a key of theirs."""
        return bool(set(written) if self.keys is None else set(written) & set(self.keys))

    def _asked(self, entry: e.Entry) -> Iterator[Told]:
        """A question: among the updates, beside the values as they stand, and as what came of its task. Nothing of a
        graph in the graph that stopped at a breakpoint of its own: the rest tells it, once for all."""
        asked = tuple(questions(entry, self.reading.codec))
        if not asked:
            return  # a breakpoint within what it called
        if "updates" in self._telling:
            yield "updates", {INTERRUPT: asked}
        if "values" in self._telling:
            channels = self._seen(self._fold.channels) if self._fold is not None else {}
            yield "values", beside(self.reading.values(channels, self.keys), asked)
        if "tasks" in self._telling:
            said = [asdict(each) for each in asked]
            yield from self._emit("tasks", entry, {**self._came(entry, None, {}), "interrupts": said})

    def _called(self, entry: e.Entry) -> Iterator[Told]:
        """A call of a `@task` begins, or came to something. Effects of other kinds are no news."""
        name = called(entry.text("effect"))
        if not name:
            return
        if entry.kind == "effect_done" and "updates" in self._telling:
            update = {name: self.reading.result(entry.value("result") or b"\xc0")}
            yield "updates", {**update, **CACHED} if "cached" in entry.raw else update
        if "tasks" in self._telling and CALLS in self.record.live and "cached" not in entry.raw:
            yield from self._emit("tasks", entry, self._call(entry, name))

    def _call(self, entry: e.Entry, name: str) -> dict[str, Any]:
        """What `tasks` tells of a call."""
        effect = entry.text("effect")
        shown = {"id": call_id(self._opened.id_of(entry.text("task")), place_of_call(effect)), "name": name}
        if entry.kind == "call_begun":
            given = self.reading.result(entry.value("args") or b"\xc0")
            return {**shown, "input": given, "triggers": (PUSH,), **self._labelled(entry.text("node"))}
        if entry.kind == "call_failed":
            error = self.errors.pop(raised_key(entry.text("token"), effect), None) or _said(entry)
            return {**shown, "error": error, "result": {}, "interrupts": []}
        came = {RETURN: self.reading.result(entry.value("result") or b"\xc0")}
        return {**shown, "error": None, "result": came, "interrupts": []}

    def _emit(self, mode: str, entry: e.Entry, payload: dict[str, Any]) -> Iterator[Told]:
        """A chunk of `checkpoints` or `tasks`, and the same in `debug`."""
        if mode not in self._telling:
            return
        if mode in self.modes:
            yield mode, payload
        if "debug" in self.modes:
            kind = "checkpoint" if mode == "checkpoints" else "task_result" if "result" in payload else "task"
            step = entry.number("step") if mode == "checkpoints" else self._opened.step + 1
            at = datetime.fromtimestamp(entry.number("at") / 1000, UTC).isoformat()
            yield "debug", {"step": step, "timestamp": at, "type": kind, "payload": payload}

    def _update(self, entry: e.Entry, writes: Writes) -> dict[str, Any]:
        return {entry.text("node"): update_of(self.reading.decoded(writes), self.keys)}

    def _result(self, entry: e.Entry, writes: Writes) -> Iterator[Told]:
        if "updates" in self._telling:
            update = self._update(entry, writes)
            yield "updates", {**update, **CACHED} if "cached" in entry.raw else update
        if "tasks" in self._telling:
            yield from self._emit(
                "tasks", entry, self._came(entry, None, result_of(self.reading.decoded(writes), self._kept))
            )

    def _failure(self, entry: e.Entry) -> Iterator[Told]:
        if "tasks" in self._telling:
            error = self.errors.pop(entry.text("token"), None) or _said(entry)
            yield from self._emit("tasks", entry, self._came(entry, error, {}))

    def _came(self, entry: e.Entry, error: Any, result: dict[str, Any]) -> dict[str, Any]:
        """What came of a task."""
        key = self._opened.id_of(entry.text("task"))
        return {"id": key, "name": entry.text("node"), "error": error, "result": result, "interrupts": []}

    def _begun(self, state: State, refs: Sequence[TaskRef]) -> Iterator[Told]:
        if "tasks" not in self._telling:
            return
        opened = _Opened(state.birth, state.n, state.digest, state.entry.number("step"))
        channels, parts = self._seen(state.channels), dict[str, list[tuple[str, bytes]]]()
        for ref in refs:
            if ref.part and ref.part not in parts:
                parts = {ref.part: self._one(ref.part)[0].sends()}
            arg = parts[ref.part][ref.index][1] if ref.part else None
            payload: dict[str, Any] = {
                "id": opened.id_of(ref.task),
                "name": ref.node,
                "input": self.reading.input(ref.node, channels)
                if arg is None
                else taken(self.reading.codec.decode(arg, "the Send's argument")),
                "triggers": (PUSH,) if ref.part else self.reading.triggers(ref.node),
            }
            yield from self._emit("tasks", state.entry, {**payload, **self._labelled(ref.node)})

    def _labelled(self, node: str) -> dict[str, Any]:
        """The metadata of a task that begins, where there is any."""
        told = {**self.record.metadata, **self.reading.metadata(node)}
        told |= {"tags": list(self.record.tags)} if self.record.tags else {}
        return {"metadata": told} if told else {}

    def _shown(self, state: State, refs: Sequence[TaskRef], parent: str, step: _Step | None = None) -> dict[str, Any]:
        """A checkpoint as LangGraph's mode `checkpoints` shows it, with what its tasks came to before."""
        if "checkpoints" not in self._telling:
            return {}
        entry = state.entry
        opened = _Opened(state.birth, entry.n, entry.digest, 0)
        return {
            "config": self._config(entry.checkpoint_id),
            "parent_config": self._config(parent) if parent else None,
            "values": self.reading.values(state.channels),
            "metadata": {
                "source": entry.text("source"),
                "step": entry.number("step"),
                "parents": dict(self.where.parents),
            },
            "next": [ref.node for ref in refs],
            "tasks": [self._task(opened.id_of(ref.task), ref, step) for ref in refs],
        }

    def _task(self, key: str, ref: TaskRef, step: _Step | None) -> dict[str, Any]:
        done, failed, paused = (
            (None, None, None) if step is None else (x.get(ref.task) for x in (step.done, step.failed, step.paused))
        )
        state = self.where.state(self.reading, ref.node, key)
        if done is None and failed is not None:
            return {"id": key, "name": ref.node, "error": _said(failed), "state": state}
        asked = () if paused is None else tuple(asdict(each) for each in questions(paused, self.reading.codec))
        shown: dict[str, Any] = {"id": key, "name": ref.node, "interrupts": asked, "state": state}
        result = result_of(self.reading.decoded(done.writes()), self.keys) if done is not None else None
        return {**shown, "result": result} if result else shown

    def _config(self, checkpoint_id: str) -> dict[str, Any]:
        return self.where.config(self.record.configurable, checkpoint_id)


@dataclass(frozen=True)
class _Step:
    """A step that is under way: its checkpoint, its facts and tasks, its questions, and the last outcomes by task."""

    state: State
    parent: str
    facts: Sequence[e.Entry]
    refs: Sequence[TaskRef]
    waiting: Sequence[e.Entry]
    done: Mapping[str, e.Entry]
    failed: Mapping[str, e.Entry]
    paused: Mapping[str, e.Entry]

    def calls(self, task: str = "") -> list[e.Entry]:
        """The graphs that functions called, of this task or of all that are not done; the first record of each."""
        found: dict[Key, e.Entry] = {}
        for fact in self.facts:
            of = fact.text("task")
            if is_call(fact) and (of == task if task else of not in (*self.done, START_TASK, UPDATE_TASK)):
                found.setdefault(key_of(fact), fact)
        return list(found.values())

    def behind(self, asks: e.Entry) -> list[e.Entry]:
        """What the task of a question called: its node's graph, or those that its function called."""
        return self.calls(asks.text("task")) or ([asks] if asks.text("called") else [])


@dataclass(frozen=True)
class _Opened:
    """The checkpoint whose tasks are under way."""

    birth: str
    n: int
    digest: str
    step: int

    def id_of(self, task: str) -> str:
        return e.idempotency_key(self.birth, self.n, self.digest, task)


def _builds_on(entry: e.Entry, before: str) -> str:
    """The id of the checkpoint that one builds on: the one before, or another where it is a branch; empty if none."""
    named = entry.branch_of
    if named is None:
        return before
    return e.checkpoint_id(named.n, named.digest) if named.n else ""


def _writes(state: State | None, entry: e.Entry) -> Writes:
    return (state or State(entry, {}, "")).resolved_writes()


def _said(entry: e.Entry) -> str:
    """An error as text, as Python shows it."""
    error = error_of(entry)
    return f"{error.error_type.rpartition('.')[2]}({error.text!r})" if error.error_type else error.text
