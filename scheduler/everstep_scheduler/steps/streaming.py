"""Stream chunks from commits: what a step gave, in LangGraph's modes `values` and `updates`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.delta import decode_delta
from everstep_checkpoint.errors import InvalidInput
from everstep_checkpoint.replay import carried

from ..graph.asking import Interrupt
from ..graph.spec import GraphSpec
from ..moves.contract import JOIN_TASK, START_TASK, UPDATE_TASK, Commit

if TYPE_CHECKING:
    from .perform import Attempt

Chunk = Any
MODES = ("values", "updates")
INTERRUPT = "__interrupt__"


def check_modes(mode: str | Sequence[str] | None) -> tuple[str, ...]:
    """The modes asked for. Raises InvalidInput for one that does not exist."""
    modes = () if mode is None else (mode,) if isinstance(mode, str) else tuple(mode)
    for one in modes:
        if one not in MODES:
            raise InvalidInput(f"no stream mode {one!r}", fix=f"choose among {', '.join(MODES)}")
    return modes


class Streams:
    """Turns the commits of a run into chunks."""

    def __init__(self, spec: GraphSpec, mode: str | Sequence[str] | None) -> None:
        self.spec = spec
        self.modes = check_modes(mode)
        self.tagged = mode is not None and not isinstance(mode, str)

    def before(self, values: Any) -> list[Chunk]:
        """What a run that continues tells first: the values as they stand."""
        return [self._tag("values", values)] if "values" in self.modes and values else []

    def asked(self, values: Any, asked: Sequence[Interrupt]) -> list[Chunk]:
        """What a question tells: itself among the updates, and beside the values as they stand."""
        found = [self._tag("updates", {INTERRUPT: tuple(asked)})] if "updates" in self.modes else []
        if "values" in self.modes and asked:
            found.append(self._tag("values", {**values, INTERRUPT: tuple(asked)}))
        return found

    def of(self, attempt: Attempt, commit: Commit) -> list[Chunk]:
        """The chunks of one commit, updates first, as LangGraph emits them."""
        found: list[Chunk] = []
        if "updates" in self.modes and (update := self._update(commit)) is not None:
            found.append(self._tag("updates", update))
        if "values" in self.modes and commit.outcome == "next" and self._wrote_output(commit):
            stand = attempt.loader.peek(commit.lease.thread)
            if stand is not None:
                found.append(self._tag("values", self.spec.output(stand.channels)))
        return found

    def _tag(self, mode: str, chunk: Any) -> Chunk:
        return (mode, chunk) if self.tagged else chunk

    def _update(self, commit: Commit) -> dict[str, Any] | None:
        task = commit.lease.task
        if task in (START_TASK, UPDATE_TASK, JOIN_TASK) or commit.outcome not in ("next", "done", "unplanned"):
            return None
        first = commit.entries[0]
        delta = decode_delta(_value(first, "delta"))
        written: dict[str, Any] = {}
        for name, value in e.Entry(0, 1, {"writes": bytes(first.get("writes", b"\x00\x90"))}).writes():  # type: ignore[arg-type]
            written[name] = carried(delta[name]) if value is None else value
        return {commit.lease.node: self.spec.decoded(written, written) or None}

    def _wrote_output(self, commit: Commit) -> bool:
        """LangGraph tells values only after a step that wrote to a key of the output."""
        return commit.lease.task == START_TASK or bool(commit.wrote & set(self.spec.output_schema.fields))


def _value(fields: e.Fields, name: str) -> bytes:
    stored = fields.get(name, b"\x00\x80")
    assert isinstance(stored, bytes)
    return stored[1:]
