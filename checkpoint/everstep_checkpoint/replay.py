"""Replay: the state of a thread at any checkpoint, read from its log alone, without a graph's code.

    log --pages--> Fold.feed(entry) --checkpoint--> State(n, digest, channels)

`Fold` keeps the facts of the open step, because a checkpoint's delta may say "what fact k wrote".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from . import entries as e
from .chain import Chain
from .codec import array_header
from .delta import APPEND, SET, Delta, decode_delta, decode_state, encode_state, fold, refs
from .errors import CorruptEntry, TooLarge, Trimmed
from .log import PAGE, Log, unknown_thread
from .signing import forged, placed
from .sound import clear, sound, sounds

Channels = dict[str, bytes]
RUN_FACTS = ("run_started", "run_queued")
HANDLER = "h_"  # before the name of a task: its error handler
NO_WRITES = e.pack_writes(())


@dataclass(frozen=True)
class State:
    """A thread at one checkpoint: channel -> canonical encoding of its value."""

    entry: e.Entry
    channels: Channels
    birth: str
    since_snapshot: int = 0
    delta_bytes: int = 0

    @property
    def n(self) -> int:
        return self.entry.n

    @property
    def digest(self) -> str:
        return self.entry.digest

    @property
    def size(self) -> int:
        return sum(len(name) + len(value) for name, value in self.channels.items())

    def snapshot_fields(self, birth: str) -> e.Fields:
        """The fields of a checkpoint that repeats this state whole."""
        copied = (
            "source",
            "step",
            "graph",
            "run",
            "node",
            "task",
            "attempt",
            "token",
            "next",
            "meta",
            "writes",
        )
        fields: e.Fields = {name: value for name, value in self.entry.fields().items() if name in copied}
        if "writes" in fields:
            fields["writes"] = e.pack_writes(self.resolved_writes())
        return {**fields, "state": e.wrap(encode_state(self.channels)), "birth": birth}

    def resolved_writes(self) -> list[tuple[str, bytes | None]]:
        """The writes of the task that made this checkpoint; a value the delta carries is filled in."""
        writes = self.entry.writes()
        if all(value is not None for _, value in writes):
            return writes
        delta = decode_delta(self.entry.value("delta") or b"\x80")
        return [(channel, self._carried(delta, channel) if value is None else value) for channel, value in writes]

    def _carried(self, delta: Delta, channel: str) -> bytes:
        if delta.get(channel, [None])[0] not in (SET, APPEND):
            raise self.entry.corrupt(f"its delta does not carry the write to channel {channel!r}")
        return carried(delta[channel])


def carried(op: list[Any]) -> bytes:
    """The write that a delta's op stands for: the value of a `set`, the list of items of an `append`."""
    value: bytes = op[1] if op[0] == SET else array_header(op[1]) + op[2]
    return value


@dataclass
class Fold:
    """Feeds on entries in order. `channels` is the state at the last checkpoint fed.

    `fetch` gives an entry by id that was not fed: an input that was queued before the snapshot where reading began.
    `chain`: where entries are signed, what was read so far; each digest is computed again then.
    """

    fetch: Callable[[str], Sequence[e.Entry]]

    channels: Channels = field(default_factory=dict[str, bytes])
    birth: str = ""
    facts: dict[int, e.Entry] = field(default_factory=dict[int, e.Entry])
    inputs: dict[str, e.Entry] = field(default_factory=dict[str, e.Entry])
    before: dict[int, e.Entry] = field(default_factory=dict[int, e.Entry])
    since_snapshot: int = 0
    delta_bytes: int = 0
    n: int = 0
    chain: Chain | None = None

    def feed(self, entry: e.Entry) -> State | None:
        """Take the next entry; the State if it is a checkpoint. Raises CorruptEntry."""
        if self.chain is not None:
            self._prove(entry, self.chain)
        if not entry.is_checkpoint:
            self._fact(entry)
            return None
        if stands_alone(entry):
            self._snapshot(entry)
        else:
            self._delta(entry)
        self.n, self.before, self.facts = entry.n, self.facts or self.before, {}
        return State(entry, self.channels, self.birth, self.since_snapshot, self.delta_bytes)

    def _prove(self, entry: e.Entry, chain: Chain) -> None:
        """Its signature says who wrote it; this, that it stands where it belongs. Raises Forged."""
        if not entry.is_checkpoint:
            _prove_fact(entry, self.n, chain)
            return
        parent = chain.parent(entry)
        if parent is not None and entry.digest_on(parent, sums_of(entry, self)) != entry.digest:
            raise forged(chain.thread, entry, "does not build on what stands before it here")
        if astray := chain.astray(entry):
            raise forged(chain.thread, entry, f"is out of its place: {astray}")
        chain.checkpoint(entry)

    def _fact(self, entry: e.Entry) -> None:
        self.facts[entry.k] = entry
        if entry.kind in RUN_FACTS:
            self.inputs[entry.id] = entry
        if "birth" in entry.raw:
            self.birth = entry.text("birth")

    def _snapshot(self, entry: e.Entry) -> None:
        stored = entry.value("state")
        if stored is None:
            found = [self._part(entry, ref) for ref in entry.pieces]
            stored = b"".join(part.value("state") or b"" for part in found)
        self.channels = decode_state(stored)
        self.birth = entry.text("birth") or self.birth
        self.since_snapshot = self.delta_bytes = 0

    def _part(self, entry: e.Entry, ref: str) -> e.Entry:
        found = self.facts.get(e.entry_id(ref)[1])
        if found is None or found.id != ref:
            raise entry.corrupt(f"its part {ref} is missing")
        return found

    def _delta(self, entry: e.Entry) -> None:
        stands = self.n or next((fact.n for fact in self.facts.values()), entry.n - 1)
        if entry.n != stands + 1:  # it would be applied to values that it was not made for
            raise entry.corrupt(f"it builds on checkpoint {entry.n - 1}, and before it stands {stands}")
        stored = entry.value("delta") or b"\x80"
        delta = decode_delta(stored)
        self.channels = fold(self.channels, delta, lambda ref, channel: self.written(entry, ref, channel))
        self.since_snapshot += 1
        self.delta_bytes += len(stored)
        for ref in refs(delta):
            self.inputs.pop(str(ref), None)

    def fact(self, entry: e.Entry, ref: int | str) -> e.Entry:
        """The fact that a checkpoint names: k of the step just closed, or a full id."""
        if isinstance(ref, int):
            found = self.facts.get(ref) or self.before.get(ref)
        else:
            k = e.entry_id(ref)[1]
            named = (self.inputs.get(ref), self.facts.get(k), self.before.get(k))
            found = next((x for x in named if x is not None and x.id == ref), None)
            if found is None:
                found = next(iter(self.fetch(ref)), None)
        if found is None:
            raise entry.corrupt(f"the fact {ref} that it takes is missing")
        return found

    def written(self, entry: e.Entry, ref: int | str, channel: str) -> bytes:
        """What the fact `ref` wrote to `channel`. Raises CorruptEntry if it wrote nothing."""
        source = self.fact(entry, ref)
        for name, value in reversed(_values(source)):
            if name == channel and value is not None:
                return value
        raise entry.corrupt(f"fact {ref} wrote nothing to channel {channel!r}")


def stands_alone(entry: e.Entry) -> bool:
    """Does a checkpoint hold the state whole?"""
    return "state" in entry.raw or ("parts" in entry.raw and "delta" not in entry.raw)


def _prove_fact(entry: e.Entry, n: int, chain: Chain) -> None:
    """A fact behind checkpoint n was signed for that one, if it is signed. Raises Forged."""
    chain.fact(entry)
    if chain.last is not None and entry.n == n:
        placed(chain.thread, entry, n, chain.last)


def _values(entry: e.Entry) -> list[tuple[str, bytes | None]]:
    """What a fact brings: a task's writes, or a run's input."""
    if entry.kind not in RUN_FACTS and "input" not in entry.raw:  # a fork's note repeats the input of its run
        return entry.writes()
    return e.Entry(entry.n, entry.k, {"writes": entry.raw.get("input", b"\x00\x90")}).writes()


def input_writes(entry: e.Entry) -> list[tuple[str, bytes | None]]:
    """The input of a run, (key, encoded value) in order."""
    return _values(entry)


def brings_update(fact: e.Entry) -> bool:
    """Is it the fact of a run whose Command updates the state of the checkpoint that it goes on from?"""
    commands = fact.kind == "run_started" and fact.text("kind_of_run") == "resume"
    return commands and fact.raw.get("input", NO_WRITES) != NO_WRITES


def snapshot_before(log: Log, thread: str, n: int) -> tuple[int, list[e.Entry]]:
    """Entries from the nearest snapshot at or before checkpoint n up to n; all from the beginning where there is none.

    The facts of the step that the snapshot closed come along, since its parts are among them.
    """
    found: list[e.Entry] = []
    at, end, more = 0, f"{n}-0", True
    while more:
        page = log.read(thread, "-", end, PAGE, reverse=True)
        for entry in page:
            if at and entry.is_checkpoint and entry.n < at:
                return at, found[::-1]
            found.append(entry)
            if not at and _is_snapshot(entry):
                at = entry.n
        more = len(page) == PAGE
        end = f"({page[-1].id}" if more else ""
    return at, found[::-1]


def _is_snapshot(entry: e.Entry) -> bool:
    return entry.is_checkpoint and "floor" in entry.raw


def folder_of(log: Log, thread: str) -> Fold:
    """A Fold for a thread's entries, from a snapshot or the first one on."""
    return Fold(fetch(log, thread), chain=Chain(thread) if log.signer is not None else None)


def fetch(log: Log, thread: str) -> Callable[[str], Sequence[e.Entry]]:
    """How a `Fold` gets an entry that it was not fed."""
    return lambda ref: log.read(thread, ref, ref)


@sound
def state_at(log: Log, thread: str, n: int | None = None) -> State:
    """The state at checkpoint n (default: the last one). Raises UnknownThread, Trimmed, CorruptEntry."""
    wanted = _last(log, thread) if n is None else n
    _, found = snapshot_before(log, thread, wanted)
    if not found:
        _last(log, thread)
    state: State | None = None
    folder = folder_of(log, thread)
    began = False
    for entry in found:
        began = began or not entry.is_checkpoint or _is_snapshot(entry) or entry.n == 1
        if not began:
            continue
        state = folder.feed(entry) or state
    if state is None or state.n != wanted or not (folder.birth or state.birth):
        raise _unreadable(thread, wanted)
    return state


def _last(log: Log, thread: str) -> int:
    """The number of a thread's last checkpoint. Raises UnknownThread."""
    head = log.head(thread)
    if head is None:
        raise unknown_thread(thread)
    return head.n


def _unreadable(thread: str, n: int) -> Trimmed:
    return Trimmed(f"checkpoint {n} can't be read", thread=thread, fix="`everstep history` lists what is there")


@sounds
def states(log: Log, thread: str) -> Iterator[tuple[State, Fold]]:
    """All states of a thread, oldest first, from the first checkpoint that can be read."""
    folder = folder_of(log, thread)
    readable = False
    for entry in log.pages(thread):
        readable = readable or entry.id == "0-1" or _is_snapshot(entry)
        if not readable and entry.is_checkpoint:
            continue
        state = folder.feed(entry)
        if state is not None:
            yield state, folder


@dataclass(frozen=True)
class TaskRef:
    """One task of a checkpoint, as its `next` names it: enough to rebuild its job without the graph."""

    task: str
    node: str
    queue: str
    timeout_s: float = 0
    part: str = ""
    index: int = 0


@dataclass
class Step:
    """The open step of a checkpoint: its tasks in task order, and what is known of each."""

    n: int
    tasks: list[TaskRef]
    parts: dict[str, e.Entry] = field(default_factory=dict[str, e.Entry])
    facts: list[e.Entry] = field(default_factory=list[e.Entry])

    @cached_property
    def done(self) -> dict[str, e.Entry]:
        """task -> its `task_done`."""
        return {x.text("task"): x for x in self.facts if x.kind == "task_done"}

    @property
    def outcomes(self) -> list[e.Entry]:
        """The `task_done`s in task order; that of an error handler stands where its task's would."""
        names = [name for task in self.tasks for name in (task.task, HANDLER + task.task)]
        return [self.done[name] for name in names if name in self.done]

    @cached_property
    def ended(self) -> dict[str, e.Entry]:
        """task -> the last outcome that is not `done`: failed for good, or to be tried again."""
        return {x.text("task"): x for x in self.facts if x.kind in ("task_failed", "task_lost", "task_parked")}


def tasks_of(checkpoint: e.Entry, parts: Mapping[str, e.Entry]) -> list[TaskRef]:
    """The tasks of a checkpoint in task order: PULL tasks by node name, then Sends by part and index.

    Raises CorruptEntry for rows that no writer of ours makes, KeyError for a part that is not among `parts`.
    """
    found: list[TaskRef] = []
    named: set[str] = set()
    for row in checkpoint.next:
        if len(row) == 4:
            found.append(_ref(checkpoint, row[0], row[1:]))
        elif row[0] in named:
            raise checkpoint.corrupt(f"field 'next' names the part {row[0]} twice")
        else:
            named.add(row[0])
            found.extend(part_tasks(parts[row[0]]))
    return found


def added_tasks(facts: Iterable[e.Entry], parts: Mapping[str, e.Entry]) -> list[TaskRef]:
    """The tasks that `task_added`s put beside those of their checkpoint: each one by name, or the Sends of parts.

    Raises CorruptEntry, also for a part that is named twice; KeyError for one that is not among `parts`.
    """
    found: list[TaskRef] = []
    named: set[str] = set()
    for fact in facts:
        if "parts" not in fact.raw:
            found.append(TaskRef(fact.text("task"), fact.text("node"), fact.text("queue"), timeout_of(fact)))
            continue
        for part in added_parts(fact):
            if part in named:
                raise fact.corrupt(f"field 'parts' names the part {part} a second time")
            named.add(part)
            found += [replace(ref, task=f"sg{ref.task[1:]}") for ref in part_tasks(parts[part])]
    return found


def added_parts(fact: e.Entry) -> list[str]:
    """The parts that a `task_added` names, by their ids. Raises CorruptEntry for one that it names twice."""
    found = [part for part, _ in fact.json("parts") or ()]
    if len(set(found)) != len(found):
        raise fact.corrupt("field 'parts' names a part twice")
    return found


def adds_handler(fact: e.Entry) -> bool:
    """Does a `task_added` tell of an error handler, which stands for its task, not beside it?"""
    return fact.text("task").startswith(HANDLER)


def commanded(task: str) -> bool:
    """Is it the name of a task that a Command as an input added to its step?"""
    return task.startswith(("g", "sg"))


def with_added(tasks: Sequence[TaskRef], added: Iterable[TaskRef]) -> list[TaskRef]:
    """A checkpoint's tasks and those added to them, in task order."""
    found = [*tasks, *added]
    pulls = [each for each in found if not each.part]
    return [*sorted(pulls, key=lambda each: each.node), *(each for each in found if each.part)]


def _ref(entry: e.Entry, task: Any, rest: Sequence[Any], part: str = "", index: int = 0) -> TaskRef:
    """A task as a stored row names it, if it is one that a queue can take."""
    node, queue, timeout_s = rest
    if not all(isinstance(each, str) for each in (task, node, queue)) or type(timeout_s) not in (int, float):
        raise entry.corrupt("a row of its tasks is not [task, node, queue, seconds]")
    if not 0 <= timeout_s < e.TIMEOUT_MAX_S:
        raise entry.corrupt(f"a task of it has a timeout of {timeout_s} seconds")
    return TaskRef(task, node, queue, timeout_s, part, index)


def timeout_of(entry: e.Entry) -> float:
    """The seconds that a task more may take, 0: no limit. Raises CorruptEntry."""
    try:
        found = float(entry.text("timeout_s") or 0)
    except ValueError:
        found = -1.0
    if not 0 <= found < e.TIMEOUT_MAX_S:
        raise entry.corrupt(f"a task of it has a timeout of {entry.text('timeout_s')[:40]!r} seconds")
    return found


def part_tasks(part: e.Entry) -> list[TaskRef]:
    """The tasks of one Send part. Its plain field `tasks` is run-length: `[node, queue, timeout_s, count]`.

    Raises CorruptEntry; a lying count costs nothing, since a part has a most.
    """
    found: list[TaskRef] = []
    for *rest, count in part.json("tasks"):
        if type(count) is not int or not 0 < count <= e.PART_TASKS_MAX - len(found):
            raise part.corrupt(f"a part has at most {e.PART_TASKS_MAX} tasks")
        found += [_ref(part, f"s{part.k}_{i}", rest, part.id, i) for i in range(len(found), len(found) + count)]
    return found


@sound
def step_of(log: Log, thread: str, n: int) -> Step:
    """The step that checkpoint n opened: its tasks and all facts about them. Raises Trimmed, CorruptEntry.

    Read from that step alone: what a join costs does not grow with what lies before it.
    """
    found = [*log.pages(thread, f"{n}-0", str(n))]
    if not found or not found[0].is_checkpoint:
        raise _unreadable(thread, n)
    checkpoint, *facts = found
    if log.signer is not None:
        for fact in facts:
            placed(thread, fact, n, checkpoint.digest)
    parts = {row[0]: _one(log, thread, row[0]) for row in checkpoint.next if len(row) == 2}
    tasks = tasks_of(checkpoint, parts)
    if added := [x for x in facts if x.kind == "task_added" and not adds_handler(x)]:
        parts |= {ref: _one(log, thread, ref) for fact in added for ref in added_parts(fact)}
        tasks = with_added(tasks, added_tasks(added, parts))
    return Step(n, tasks, parts, facts)


def commands_of(log: Log, thread: str, n: int) -> list[e.Entry]:
    """The facts of runs whose Commands updated the state of checkpoint n, in order."""
    return [x for x in log.pages(thread, f"{n}-1", str(n)) if brings_update(x)]


def _one(log: Log, thread: str, ref: str) -> e.Entry:
    found = log.read(thread, ref, ref)
    if not found:
        raise CorruptEntry(f"the part {ref} is missing", thread=thread, fix="fork from an earlier checkpoint")
    return found[0]


@dataclass
class Report:
    """What `verify` found: how much it read, and what is wrong, in words."""

    thread: str
    entries: int = 0
    checkpoints: int = 0
    problems: list[str] = field(default_factory=list[str])

    @property
    def sound(self) -> bool:
        return not self.problems


def verify(log: Log, thread: str) -> Report:
    """Read a whole log and check each entry, each fact's sum, each digest and the chain of parents."""
    report = Report(thread)
    folder, chain = Fold(fetch(log, thread)), Chain(thread)
    try:
        with clear(thread):
            for entry in log.pages(thread):
                report.entries += 1
                _check(entry, folder, chain, report)
        if report.entries and not folder.birth:
            report.problems.append("its beginning is gone: neither the first entry is there nor a snapshot")
    except (CorruptEntry, TooLarge) as error:
        report.problems.append(error.what)
    return report


def _check(entry: e.Entry, folder: Fold, chain: Chain, report: Report) -> None:
    _check_sum(entry, report)
    if not entry.is_checkpoint:
        folder.feed(entry)
        _prove_fact(entry, folder.n, chain)
        return
    report.checkpoints += 1
    parent = chain.parent(entry)
    if parent is None:
        return  # below the trim mark: nothing to check it against
    if astray := chain.astray(entry):
        report.problems.append(astray)
    _check_digest(entry, parent, folder, report)
    folder.feed(entry)
    chain.checkpoint(entry)


def _check_sum(entry: e.Entry, report: Report) -> None:
    if "sum" not in entry.raw:
        return
    if e.fact_sum(entry.fields()) != entry.text("sum"):
        report.problems.append(f"fact {entry.id}: its sum does not match what it stores")


def sums_of(entry: e.Entry, folder: Fold) -> list[str]:
    """The sums that a checkpoint's digest covers: facts its delta takes, parts its `next` and `parts` name."""
    delta = decode_delta(entry.value("delta") or b"\x80")
    named: list[int | str] = [
        *refs(delta),
        *(row[0] for row in entry.next if len(row) == 2),
        *entry.pieces,
    ]
    return [folder.fact(entry, ref).text("sum") for ref in named]


def _check_digest(entry: e.Entry, parent: str, folder: Fold, report: Report) -> None:
    if e.digest_of(parent, entry.n, entry.fields(), sums_of(entry, folder)) != entry.digest:
        report.problems.append(f"checkpoint {entry.n}: its digest does not match what it stores and builds on")
