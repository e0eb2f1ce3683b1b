"""Snapshots: a thread as its user sees it, now or at any checkpoint, read from its log alone.

    snapshot(log, thread)        the live view: what comes next, what failed, finished tasks' writes applied
    snapshot(log, thread, 3)     the record of one checkpoint, with what its tasks came to
    snapshots(log, thread)       the history, newest first: records, also of the head

One implementation for graphs that run inline, for clients of a fleet and for the CLI. With a graph's `spec` values are
typed; without it they are plain data (`Tagged` for registered classes). Names and meaning are LangGraph's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.branching import run_fact
from everstep_checkpoint.codec import PLAIN, Codec
from everstep_checkpoint.errors import CorruptEntry, InvalidUpdateError, Trimmed
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import Channels, State, commanded, input_writes
from everstep_checkpoint.sound import clear, sound, sounds
from everstep_checkpoint.types import Untracked

from ..graph.channels import HIDDEN, apply
from ..graph.entry import is_entry
from ..graph.kinds import restored
from ..graph.placing import Place, called_spec
from ..graph.runtime import END
from ..graph.subgraphs import child_thread
from ..graph.untracked import without
from ..moves.contract import JOIN_TASK, START_NODE, START_TASK, UPDATE_TASK
from ..moves.record import RunRecord, checkpoint_number
from .addressed import another_checkpoint, id_standing_in, standing_in, unknown_checkpoint
from .children import caller_of, graph_at
from .derive import Task as Known
from .derive import Told
from .frames import Frame, frame_at, frames, until_new_input
from .joins import unmet_joins
from .overlay import overlaid
from .questions import asked, step_told

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec

UNMET = "unmet_joins"  # in the metadata of a checkpoint with nothing next: which joins were begun and can't fire
NESTED_MAX = 50
OWN = ("source", "step", "parents", UNMET)  # keys of the metadata that no run can set
Config = dict[str, Any]


class Task(NamedTuple):
    """One task of a checkpoint. `result`: what it wrote, None while it is not done. `error`: the last one, as text;
    `traceback`: its end, as its worker wrote it."""

    id: str
    name: str
    path: tuple[Any, ...]
    error: str | None = None
    interrupts: tuple[Any, ...] = ()
    state: Any = None
    result: Any = None
    traceback: str = ""


class StateSnapshot(NamedTuple):
    """A thread at one checkpoint. `values`: a dict, or what an entrypoint returned. `next`: the nodes that have yet to
    run. `created_at` None: nothing ran yet."""

    values: Any
    next: tuple[str, ...]
    config: Config
    metadata: dict[str, Any] | None
    created_at: str | None
    parent_config: Config | None
    tasks: tuple[Task, ...]
    interrupts: tuple[Any, ...]


@sound
def snapshot(
    log: Log,
    thread: str,
    n: int | str | None = None,
    codec: Codec = PLAIN,
    spec: GraphSpec | None = None,
    place: Place | None = None,
    subgraphs: bool = False,
) -> StateSnapshot:
    """A thread as it stands, or at checkpoint `n` (its number, or its id). Empty for a thread without a log.

    `place`: where it stands in the tree of what tasks called; None: it is a root. `subgraphs`: with the states of what
    its tasks called.

    Raises NotFound for a checkpoint that is not there, Trimmed, CorruptEntry, NewerVersion.
    """
    view = _View(log, thread, spec.codec if spec is not None else codec, spec, place, subgraphs)
    try:
        return view.at(n)
    except (Trimmed, CorruptEntry):  # it may have been deleted, and begun anew, between two reads of ours
        return view.at(n)


@sounds
def snapshots(
    log: Log,
    thread: str,
    limit: int | None = None,
    codec: Codec = PLAIN,
    spec: GraphSpec | None = None,
    before: int | None = None,
    filter: Mapping[str, Any] | None = None,
    only: str | None = None,
    place: Place | None = None,
) -> Iterator[StateSnapshot]:
    """The checkpoints of a thread, newest first, at most `limit`: those below number `before`, those whose metadata has
    the values of `filter`, the one with the id `only`."""
    head = log.head(thread)
    if head is None or head.n == 0:
        return
    if only is not None:
        only = id_standing_in(log, thread, only)
        limit = 1 if limit is None else min(limit, 1)
        before = min(checkpoint_number(only) + 1, before or head.n + 1)
    view = _View(log, thread, spec.codec if spec is not None else codec, spec, place)
    last = head.n if before is None else min(before - 1, head.n)
    first = 1 if limit is None or filter else max(last - limit, 1)
    kept = view.last(first, last, limit, filter)
    if limit is not None and len(kept) < limit and first > 1:  # some were replayed in place
        kept = view.last(1, last, limit, filter)
    while kept:
        frame = kept.pop()
        if only is None or frame.state.entry.checkpoint_id == only:
            yield view.of(frame)


class _View:
    """Turns frames into snapshots."""

    def __init__(
        self,
        log: Log,
        thread: str,
        codec: Codec,
        spec: GraphSpec | None,
        place: Place | None = None,
        subgraphs: bool = False,
    ) -> None:
        self.place = place or Place(thread)
        self.subgraphs = subgraphs
        self.log = log
        self.thread = thread
        self.codec = codec
        self.spec = spec
        self._records: dict[str, dict[str, Any]] = {}

    def at(self, n: int | str | None) -> StateSnapshot:
        """The thread as it stands, or at a checkpoint."""
        head = self.log.head(self.thread)
        if n is not None:
            number = checkpoint_number(n) if isinstance(n, str) else n
            if head is None or not 1 <= number <= head.n:
                raise unknown_checkpoint(self.thread, n)
            frame = frame_at(self.log, self.thread, number)
            if isinstance(n, str) and frame.state.entry.checkpoint_id != n:
                raise another_checkpoint(self.thread, n, frame.state.entry)
            now = standing_in(self.log, self.thread, number)
            return self.of(frame if now == number else frame_at(self.log, self.thread, now))
        if head is None:
            return self.empty(())
        if head.n == 0:
            return self.unborn(self.log.read(self.thread, "0-1", "0"))
        return self.live(frame_at(self.log, self.thread, head.n))

    def last(self, first: int, last: int, limit: int | None, filter: Mapping[str, Any] | None) -> deque[Frame]:
        """The last `limit` checkpoints among these, oldest first."""
        found = (x for x in frames(self.log, self.thread, first, last) if not x.replaced and self.fits(x, filter))
        return deque(found, None if limit is None else max(limit, 0))

    def empty(self, following: tuple[str, ...]) -> StateSnapshot:
        return StateSnapshot({}, following, _config(self.place), None, None, None, (), ())

    def fits(self, frame: Frame, filter: Mapping[str, Any] | None) -> bool:
        """Does the metadata of a checkpoint have these values?"""
        if not filter:
            return True
        metadata = self._metadata(frame.state.entry)
        return all(metadata.get(key) == value for key, value in filter.items())

    def unborn(self, facts: Sequence[e.Entry]) -> StateSnapshot:
        """A thread whose first input is still to be applied."""
        told = self._told(None, facts)
        tasks = tuple(self._task(told, task, {}, None, task, live=True) for task in told.tasks)
        questions = tuple(each for task in tasks for each in task.interrupts)
        return self.empty((START_NODE,))._replace(tasks=tasks, interrupts=questions)

    def live(self, frame: Frame) -> StateSnapshot:
        """The head: its open tasks, and finished siblings' writes applied, for nobody will take them back."""
        told = self._told(frame, frame.facts)
        done = _done(frame.facts)
        seen = self._seen(frame.state.channels, frame.facts)
        channels = self._with(seen, [done[task.task] for task in told.tasks if task.task in done])
        shown = _with_handlers(told.tasks)
        following = tuple(task.node for task, acting in shown if acting.place != "done")
        tasks = tuple(self._task(told, task, done, None, acting, live=True) for task, acting in shown)
        return self._snapshot(frame, channels, following, tasks)

    def of(self, frame: Frame) -> StateSnapshot:
        """The record of a checkpoint that others followed: all its tasks come next, with what they came to. Tasks
        that a Command added are shown, and are not what the checkpoint led to."""
        facts = list(until_new_input(frame.facts, self.log, self.thread))
        told = self._told(frame, facts)
        done = _done(facts)
        shown = _with_handlers([task for task in told.tasks if task.task != JOIN_TASK])
        tasks = tuple(self._task(told, task, done, frame.closing, acting) for task, acting in shown)
        following = tuple(task.node for task, _ in shown if not commanded(task.task))
        return self._snapshot(frame, self._seen(frame.state.channels, facts), following, tasks)

    # parts of a snapshot

    def _snapshot(
        self, frame: Frame, channels: Channels, following: tuple[str, ...], tasks: tuple[Task, ...]
    ) -> StateSnapshot:
        entry = frame.state.entry
        metadata = self._metadata(entry)
        if not entry.next and (unmet := unmet_joins(channels)):
            metadata[UNMET] = [each.document() for each in unmet]
        created = datetime.fromtimestamp(self._first(entry).number("at") / 1000, UTC).isoformat()
        config = self._config(entry.checkpoint_id)
        questions = tuple(each for task in tasks for each in task.interrupts)
        return StateSnapshot(
            self._values(channels), following, config, metadata, created, self._parent(frame), tasks, questions
        )

    def _metadata(self, entry: e.Entry) -> dict[str, Any]:
        said: dict[str, Any] = {"source": entry.text("source"), "step": entry.number("step")}
        first = self._first(entry)
        return {**said, "parents": self._parents(first), **self._told_by_run(first)}

    def _first(self, entry: e.Entry) -> e.Entry:
        """The checkpoint that stood first where this one does: a replay in place changes nothing that is said of it."""
        named = entry.instead_of
        found = self.log.read(self.thread, f"{named[0]}-0", f"{named[0]}-0") if named is not None else []
        return found[0] if found else entry

    def _parents(self, entry: e.Entry) -> dict[str, str]:
        """Checkpoints of those above whose tasks called this run: `checkpoint_ns` -> id."""
        found: dict[str, str] = {}
        place, thread = self.place, self.thread
        while place.ns and (caller := caller_of(self.log, thread, entry)) is not None:
            n, thread = caller.n, caller.thread
            place = Place(place.root, place.ns.rpartition("|")[0])
            above = self.log.read(thread, f"{n}-0", f"{n}-0")
            if not above:
                break
            entry = above[0]
            found[place.ns] = entry.checkpoint_id
        return dict(sorted(found.items()))

    def _values(self, channels: Channels) -> Any:
        if self.spec is not None:
            kept = {name: value for name, value in channels.items() if name not in self.spec.untracked}
            return self.spec.values(kept)
        return _plain(
            without(
                {
                    name: self.codec.decode(value, f"key {name!r}")
                    for name, value in channels.items()
                    if not name.startswith(HIDDEN)
                }
            )
        )

    def _config(self, checkpoint_id: str) -> Config:
        return _config(self.place, checkpoint_id)

    def _parent(self, frame: Frame) -> Config | None:
        """The checkpoint before, or the one that a branch names; for a fork that of the thread it came from."""
        named = frame.state.entry.branch_of
        if named is None:
            return self._config(frame.parent) if frame.parent else None
        if named.n == 0:
            return None
        config = self._config(e.checkpoint_id(named.n, named.digest))
        config["configurable"]["thread_id"] = named.thread
        return config

    def _seen(self, channels: Channels, facts: Iterable[e.Entry]) -> Channels:
        """The channels with the updates of Commands on top, where the reducers are at hand and take them."""
        try:
            return channels if self.spec is None else overlaid(self.spec, channels, facts)
        except InvalidUpdateError:
            return channels

    def _with(self, channels: Channels, facts: Sequence[e.Entry]) -> Channels:
        """Writes that exclude each other fail the run; they don't make its state unreadable."""
        writes = [(name, value) for fact in facts for name, value in fact.writes() if value is not None]
        if self.spec is None or not writes:
            return channels
        try:
            return apply(self.spec, channels, writes)
        except InvalidUpdateError:
            return channels

    def _told(self, frame: Frame | None, facts: Iterable[e.Entry]) -> Told:
        return step_told(self.log, self.thread, frame, facts)

    def _task(
        self,
        told: Told,
        task: Known,
        done: Mapping[str, e.Entry],
        closing: State | None,
        acting: Known,
        live: bool = False,
    ) -> Task:
        """A task. Live, it shows the question that it waits with; in the record of a step, the last one it asked.

        `acting`: its error handler, if there is one, else itself: that is who asks.
        """
        key = e.idempotency_key(told.birth, told.n, told.digest, task.task)
        error_type, text, traceback = task.error
        shown = f"{error_type.rpartition('.')[2]}({text!r})" if error_type else text or None
        there = () if live and acting.place != "asked" else tuple(asked(acting, self.codec))
        result = self._result(told, task, done, closing)
        return Task(key, task.node, _path(task), shown, there, self._state(task, key), result, traceback)

    def _state(self, task: Known, key: str) -> Any:
        """Of a task that is a graph, where its state is found, or that state; None for any other."""
        inner = self.spec.nested.get(task.node) if self.spec is not None else None
        node = self.spec.node(task.node) if self.spec is not None and inner is not None else None
        if not task.called and (node is None or not node.calls):
            return self._within(task.within) if task.within is not None else None
        thread = task.called.partition(" ")[2]
        keeps = node.keeps if node is not None else thread == child_thread(self.thread, task.node, key, True)
        place = self.place.below(task.node, "" if keeps else key)
        if not self.subgraphs:
            return _config(place)
        thread = thread or child_thread(self.thread, task.node, key, keeps)
        return self._nested(thread, inner, place)

    def _nested(self, thread: str, inner: GraphSpec | None, place: Place) -> StateSnapshot:
        """The state of what a task called. Raises CorruptEntry where logs say that they called each other."""
        if place.ns.count("|") >= NESTED_MAX:
            raise CorruptEntry(
                f"over {NESTED_MAX} graphs are said to have called each other here",
                thread=self.thread,
                fix="look at the thread without subgraphs; `everstep log` shows what it says it called",
            )
        codec = inner.codec if inner is not None else self.codec
        with clear(thread):
            return _View(self.log, thread, codec, inner, place, True).at(None)

    def _within(self, fact: e.Entry) -> Any:
        """The same of a task whose function called a graph: of the one that it called last."""
        place, thread = self.place.at(fact.text("ns")), fact.text("called").partition(" ")[2]
        if not self.subgraphs:
            return _config(place)
        inner = called_spec(self.spec, fact.text("node"), graph_at(self.log, thread))
        return self._nested(thread, inner, place)

    def _result(self, told: Told, task: Known, done: Mapping[str, e.Entry], closing: State | None) -> Any:
        """What a task wrote: in its own fact, in the checkpoint that it closed its step with, or in the run's input."""
        if task.task in done:
            return self._written(done[task.task].writes())
        if closing is None:
            return None
        if closing.entry.text("task") == UPDATE_TASK:
            return self._updated(told, task, closing)
        if closing.entry.text("task") != task.task:
            return None
        if task.task == START_TASK:
            return self._written(self._input(closing.entry.text("run"), closing.entry))
        return self._written(closing.resolved_writes())

    def _updated(self, told: Told, task: Known, closing: State) -> Any:
        """What an update wrote in a task's place: the i-th that stood for a node, for the i-th task of that node."""
        entry, writes = closing.entry, closing.resolved_writes()
        found = run_fact(self.log, self.thread, entry.text("run"), entry, with_input=True)
        stored: Any = found.json("tasks") if found is not None else None
        nodes: list[tuple[str, int]] = stored or [(entry.text("node"), len(writes))]
        place = [each.task for each in told.tasks if each.node == task.node].index(task.task)
        for node, count in nodes:
            own, writes = writes[:count], writes[count:]
            if node == task.node and place == 0:
                return self._written(own)
            place -= node == task.node
        return None

    def _written(self, writes: Iterable[tuple[str, bytes | None]]) -> Any:
        """key -> what was written; a key that was written several times has all of it, as {"$writes": [...]}."""
        found: dict[str, list[Any]] = {}
        for name, value in writes:
            if value is not None:
                written = self.codec.decode(value, f"key {name!r}")
                if not isinstance(written, Untracked):
                    found.setdefault(name, []).append(written if self.spec is None else restored(written))
        return _plain({name: each[0] if len(each) == 1 else {"$writes": each} for name, each in found.items()})

    # the run behind a checkpoint

    def _input(self, run: str, entry: e.Entry) -> list[tuple[str, bytes | None]]:
        found = run_fact(self.log, self.thread, run, entry, with_input=True)
        return [] if found is None else input_writes(found)

    def _told_by_run(self, entry: e.Entry) -> dict[str, Any]:
        """The scalars of the run's metadata and configurable, which LangGraph copies to every checkpoint."""
        run = entry.text("run")
        if run not in self._records:
            found = run_fact(self.log, self.thread, run, entry)
            stored = found.value("record") if found is not None else None
            record = RunRecord.decode(stored) if stored else RunRecord()
            said = {**record.configurable, **record.metadata}
            scalars = {key: value for key, value in said.items() if isinstance(value, str | int | float)}
            self._records[run] = {key: value for key, value in scalars.items() if key not in OWN}
        return self._records[run]


def _with_handlers(tasks: Iterable[Known]) -> list[tuple[Known, Known]]:
    """The tasks that a checkpoint names, each with who acts for it now: its error handler, or itself."""
    found: list[tuple[Known, Known]] = []
    for task in tasks:
        if task.handles:
            found[-1] = (found[-1][0], task)
        else:
            found.append((task, task))
    return found


def _config(place: Place, checkpoint_id: str = "") -> Config:
    said = {"thread_id": place.root, "checkpoint_ns": place.ns}
    return {"configurable": {**said, **({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}}


def _plain(values: dict[str, Any]) -> Any:
    """Keys and values; of an entrypoint's state what it returned."""
    return values.get(END) if is_entry(values) else values


def _path(task: Known) -> tuple[Any, ...]:
    if task.task.startswith("s") and "_" in task.task:
        return ("__pregel_push", int(task.task.partition("_")[2]), False)
    return ("__pregel_pull", task.node)


def _done(facts: Iterable[e.Entry]) -> dict[str, e.Entry]:
    """task -> its `task_done`, since the last input."""
    found: dict[str, e.Entry] = {}
    for fact in facts:
        if fact.kind == "task_done":
            found[fact.text("task")] = fact
    return found
