"""Following: a run seen in its log as it goes, chunk by chunk, by who does not run it.

    entries ──feed──► "updates": {node: what it wrote}     "values": the output after each step

Names and order are LangGraph's: updates as tasks end, then the values of a step that wrote to the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN, Codec
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import Channels, Fold, State, fetch, state_at

from ..moves.contract import JOIN_TASK, START_TASK, UPDATE_TASK
from ..reading.questions import interrupts, open_step, question
from ..reading.snapshot import HIDDEN, snapshot
from ..steps.streaming import INTERRUPT

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec

Chunk = Any


@dataclass(frozen=True)
class Reading:
    """How values are read: by a graph's types, or as plain data. `outputs`: the keys of the output; None: all."""

    spec: GraphSpec | None = None
    keys: Sequence[str] | None = None

    @property
    def codec(self) -> Codec:
        return self.spec.codec if self.spec is not None else PLAIN

    @property
    def outputs(self) -> Sequence[str] | None:
        return list(self.spec.output_schema.fields) if self.spec is not None else self.keys

    def output(self, channels: Channels) -> dict[str, Any]:
        """The output values of a state."""
        keys = self.outputs
        if keys is None:
            keys = [name for name in channels if not name.startswith(HIDDEN)]
        return {name: self.codec.decode(channels[name], f"key {name!r}") for name in keys if name in channels}

    def update(self, writes: Iterable[tuple[str, bytes | None]]) -> dict[str, Any] | None:
        """What a task wrote; None for nothing."""
        found = {name: self.codec.decode(value, f"key {name!r}") for name, value in writes if value is not None}
        return found or None


def standing(log: Log, thread: str, reading: Reading) -> dict[str, Any]:
    """The output values of a thread at rest, as far as they can be read here, and with the questions that wait."""
    told = open_step(log, thread)
    found = interrupts(told, reading.codec) if told is not None else []
    if reading.spec is not None:
        values = snapshot(log, thread, spec=reading.spec).values
        known = {name: values[name] for name in reading.spec.output_schema.fields if name in values}
    else:  # without the reducers, what siblings of an open task wrote is not shown yet
        known = reading.output(state_at(log, thread).channels) if told is not None and told.n else {}
    return {**known, INTERRUPT: found} if found else known


class RunStream:
    """Feeds on a thread's entries from its run's first one on, and gives the run's chunks."""

    def __init__(self, log: Log, thread: str, run: str, reading: Reading, modes: Sequence[str], tagged: bool) -> None:
        self.log = log
        self.thread = thread
        self.run = run
        self.reading = reading
        self.modes = modes
        self.tagged = tagged
        self._fold: Fold | None = None
        self._written: set[str] = set()

    def feed(self, entry: e.Entry) -> list[Chunk]:
        """The chunks that an entry brings. Raises CorruptEntry."""
        ours = entry.text("run") == self.run
        if not entry.is_checkpoint:
            if self._fold is not None:
                self._fold.feed(entry)
            if ours and entry.kind == "task_paused":
                return self._asked(entry)
            return self._fact(entry) if ours and entry.kind == "task_done" else []
        state = self._state(entry) if self._fold is not None or (ours and entry.text("source") != "input") else None
        if state is None or not ours or entry.text("source") == "input":
            return []
        return self._checkpoint(state)

    def _state(self, entry: e.Entry) -> State | None:
        """The state at a checkpoint: loaded for the first one, folded for those behind it."""
        if self._fold is not None:
            return self._fold.feed(entry)
        if "values" not in self.modes:
            return State(entry, {}, "")
        state = state_at(self.log, self.thread, entry.n)
        self._fold = Fold(fetch(self.log, self.thread), dict(state.channels), state.birth, n=state.n)
        return state

    def _fact(self, entry: e.Entry) -> list[Chunk]:
        writes = entry.writes()
        self._written |= {name for name, _ in writes}
        return self._updates(entry, writes)

    def _asked(self, entry: e.Entry) -> list[Chunk]:
        found = (question(entry, self.reading.codec),)
        chunks = [self._tag("updates", {INTERRUPT: found})] if "updates" in self.modes else []
        if "values" in self.modes:
            values = self.reading.output(state_at(self.log, self.thread, entry.n).channels) if entry.n else {}
            chunks.append(self._tag("values", {**values, INTERRUPT: found}))
        return chunks

    def _checkpoint(self, state: State) -> list[Chunk]:
        entry, task = state.entry, state.entry.text("task")
        writes = [] if task in (START_TASK, JOIN_TASK) else state.resolved_writes()
        found = self._updates(entry, writes) if task != JOIN_TASK else []
        written = self._written | {name for name, _ in writes}
        self._written = set()
        keys = self.reading.outputs
        begins = task == START_TASK or entry.text("source") == "fork"
        told = begins or keys is None or bool(written & set(keys))
        if "values" in self.modes and told:
            found.append(self._tag("values", self.reading.output(state.channels)))
        return found

    def _updates(self, entry: e.Entry, writes: Sequence[tuple[str, bytes | None]]) -> list[Chunk]:
        if "updates" not in self.modes or entry.text("task") in (
            START_TASK,
            UPDATE_TASK,
            "",
        ):  # "": a fork's checkpoint
            return []
        return [self._tag("updates", {entry.text("node"): self.reading.update(writes)})]

    def _tag(self, mode: str, chunk: Any) -> Chunk:
        return (mode, chunk) if self.tagged else chunk
