"""Commanding: `Command(update=..., goto=..., resume=...)` as an input.

    Command ──checked──► writes, nodes, Sends ──what is open already──► moves.Start, whose script checks once more
                                          └────an earlier checkpoint──► a Wish: that checkpoint, changed, as a branch

LangGraph's rules (`map_command`, and the writes of no task): the update is for the state of that checkpoint, the nodes
join the tasks that are open there, also if there are none any more. What it drops silently is refused: unknown names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import EmptyInputError, InvalidInput, InvalidResume, InvalidUpdateError
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import State, state_at

from ..graph.channels import apply
from ..graph.runtime import END, Command, Send
from ..graph.schema import as_dict, did_you_mean, updates_of
from ..graph.untracked import marked
from ..moves.contract import HANDLER, MOVE_MAX, START_TASK, Answered, Commanded, Start
from ..moves.record import Config, Writes, input_sum, start_with
from ..reading.derive import Told
from ..reading.overlay import overlaid_state
from ..reading.questions import answers_of, open_step
from .branching import Wish, first_of, forking, replaying
from .sending import Place, named

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec

SEND = "s"


class Lore(ABC):
    """What must be known of a graph to command it."""

    name: str
    queue: str

    @property
    @abstractmethod
    def nodes(self) -> Iterable[str]: ...

    @property
    @abstractmethod
    def keys(self) -> Iterable[str]: ...

    @abstractmethod
    def place(self, node: str) -> tuple[str, float]:
        """A node's queue, and its timeout in seconds; 0: none."""

    @abstractmethod
    def encode(self, value: Any, what: str) -> bytes:
        """A value as it is stored. Raises UnknownType, InvalidInput, TooLarge."""

    def marked(self, values: Any) -> Any:
        """An argument, or keys and values, with marks for what is never stored."""
        return values

    @abstractmethod
    def check(self, log: Log, thread: str, writes: Writes) -> None:
        """Would the reducers take it, where they are at hand? Raises InvalidUpdateError."""


class SpecLore(Lore):
    """A graph whose code is at hand."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec, self.name, self.queue = spec, spec.name, spec.default_queue

    @property
    def nodes(self) -> Iterable[str]:
        return self.spec.nodes

    @property
    def keys(self) -> Iterable[str]:
        return self.spec.channels

    def place(self, node: str) -> tuple[str, float]:
        return self.spec.queue_of(node), self.spec.node(node).timeout_s or 0

    def encode(self, value: Any, what: str) -> bytes:
        return self.spec.codec.encode(value, what)

    def marked(self, values: Any) -> Any:
        return marked(values, self.spec.untracked)

    def check(self, log: Log, thread: str, writes: Writes) -> None:
        at = state_at(log, thread)
        seen = overlaid_state(self.spec, log, thread, at)
        apply(self.spec, {**self.spec.initial(), **(at.channels if seen is None else seen)}, writes)


class _Goes(NamedTuple):
    names: list[str]
    sends: list[tuple[Send, bytes]]


def command_of(
    log: Log,
    thread: str,
    run: str,
    command: Command[Any],
    config: Config,
    lore: Lore,
    *,
    codec: Codec,
    again: bool = False,
) -> Start:
    """The run that a Command begins. `again`: it was begun before, perhaps; the moves only tell whether it is the same.

    Raises InvalidUpdateError, InvalidResume, EmptyInputError for a new thread, InvalidInput, UnknownType, TooLarge.
    """
    writes = _writes(lore, command.update)
    goes = _goes(lore, command.goes, thread)
    told = None if again else open_step(log, thread)
    if told is None and not again:
        raise EmptyInputError(
            "a new thread has nothing that a Command could go on from", thread=thread, fix="pass an input first"
        )
    if told is not None and told.begins and not told.running:
        raise InvalidResume(
            "the thread's last input is still to be applied, so there is no step to command",
            thread=thread,
            fix="invoke(None) to go on with it, or give a new input; then the Command",
        )
    if told is not None and not told.running and writes:
        lore.check(log, thread, writes)
    extra = _commanded(lore, told, run, writes, goes)
    answers = () if told is None or command.resume is None else _answers(told, command.resume, extra, codec, thread)
    start = start_with(
        config.record("resume"), writes, thread=thread, run=run, graph=lore.name, queue=lore.queue, codec=codec,
        answers=answers, at=(told.n, told.digest) if told is not None else None,
        insum=_sum(lore, command, writes, goes, codec),
    )  # fmt: skip
    return replace(start, command=extra)


def commanding_at(
    log: Log,
    thread: str,
    run: str,
    command: Command[Any],
    config: Config,
    lore: Lore,
    at: State,
    spec: GraphSpec | None,
    *,
    codec: Codec,
    again: bool = False,
) -> Wish:
    """The branch that a Command without an answer begins at a checkpoint: its state with the update, its tasks and
    those that the Command adds, all of them from the beginning. `spec` None: the graph's code is not at hand. `again`:
    in the place of that checkpoint, which is the head.

    Raises InvalidUpdateError, InvalidResume, InvalidInput, UnknownType, TooLarge, LogError.
    """
    writes, goes = _writes(lore, command.update), _goes(lore, command.goes, thread)
    if any(row[0] == START_TASK for row in at.entry.next):
        raise InvalidResume(
            "the input of that checkpoint is still to be applied, so there is no step to command",
            thread=thread,
            checkpoint=at.entry.checkpoint_id,
            fix="name the checkpoint after it, or replay it, invoke(None, config)",
        )
    insum = _sum(lore, command, writes, goes, codec, at)
    start = forking(log, thread, at, config.record("fork"), run, lore.name, lore.queue, codec, insum)
    wish = replaying(log, thread, start, at, spec, again=again)
    wish = replace(wish, more=_commanded(lore, None, run, writes, goes))
    return replace(wish, channels=_updated(wish, at, spec, writes)) if writes else wish


def _updated(wish: Wish, at: State, spec: GraphSpec | None, writes: Writes) -> dict[str, bytes]:
    """The state of the branch. Raises InvalidUpdateError, InvalidInput where the reducers are not at hand."""
    if spec is None:
        raise InvalidInput(
            "an update at an earlier checkpoint takes the graph's reducers",
            thread=wish.thread,
            checkpoint=at.entry.checkpoint_id,
            fix="give it where the graph's code is: client.graph(name, compiled); or update_state(config, ...) there",
        )
    seen = at.channels if wish.channels is None else wish.channels
    return dict(apply(spec, {**spec.initial(), **seen}, writes))


def _writes(lore: Lore, update: Any) -> list[tuple[str, bytes]]:
    """The update as writes: a dict, an instance of a schema, or (key, value) pairs."""
    pairs = _pairs(update) if update else []
    for key, _ in pairs:
        if key not in lore.keys:
            raise InvalidUpdateError(
                f"the Command updates {key!r}, which is no key of {lore.name!r}", fix=did_you_mean(key, lore.keys)
            )
    return [(key, lore.encode(lore.marked({key: value})[key], f"key {key!r}")) for key, value in pairs]


def _pairs(update: Any) -> list[tuple[Any, Any]]:
    fields = as_dict(update) or updates_of(update)
    if fields is not None:
        return list(fields.items())
    kind = type(update).__name__
    given: list[Any] = list(cast("Sequence[Any]", update)) if isinstance(update, list | tuple) else [update]
    if not all(isinstance(each, tuple) and len(each) == 2 for each in given):  # pyright: ignore
        raise InvalidUpdateError(
            f"the Command's update is a {kind}",
            fix="give a dict with keys of the state, an instance of its schema, or a list of (key, value) pairs",
        )
    return given


def _goes(lore: Lore, given: Sequence[Any], thread: str) -> _Goes:
    """The nodes to add, each once and by name, and the Sends in the order given. END adds nothing."""
    for each in given:
        if not isinstance(each, Send | str):
            raise InvalidUpdateError(f"the Command goes to {each!r}", fix="goto takes nodes' names, and Sends")
        name = each.node if isinstance(each, Send) else each
        if name not in lore.nodes and each != END:
            raise InvalidUpdateError(
                f"the Command goes to {name!r}, which is no node of {lore.name!r}", fix=did_you_mean(name, lore.nodes)
            )
    if len(given) > MOVE_MAX:
        raise InvalidInput(
            f"a Command that goes to {len(given)} tasks at once", thread=thread,
            fix=f"at most {MOVE_MAX}; a node may return as many Sends as you like",
        )  # fmt: skip
    names = sorted({each for each in given if isinstance(each, str) and each != END})
    sends = [each for each in given if isinstance(each, Send)]
    args = [lore.encode(lore.marked(each.arg), f"the argument of Send({each.node!r})") for each in sends]
    return _Goes(names, list(zip(sends, args, strict=True)))


def _commanded(lore: Lore, told: Told | None, run: str, writes: Writes, goes: _Goes) -> Commanded | None:
    """What is to be added to the step as it stands: no node that is there already. None if that is nothing."""
    there = {x.node for x in told.tasks if _is_pull(x.task)} if told is not None else set[str]()
    tasks = tuple((node, *lore.place(node)) for node in goes.names if node not in there)
    places: list[Place] = []
    for send, _ in goes.sends:
        queue, seconds = lore.place(send.node)
        places.append((send.node, queue, send.timeout_s or seconds))
    packets = [(send.node, arg) for send, arg in goes.sends]
    pieces = named(packets, places) if packets else []
    parts = tuple(
        (e.summed(e.fact("part", run, tasks=said, sends=e.pack_sends(chunk))), len(chunk)) for said, chunk in pieces
    )
    if not (writes or tasks or parts):
        return None
    return Commanded(bool(writes), tasks, parts, told.run if told is not None else "")


def _is_pull(task: str) -> bool:
    """Is it a task that edges or a goto led to, no Send and no error handler?"""
    return not task.startswith(HANDLER) and not (task.startswith(SEND) and "_" in task)


def _answers(told: Told, resume: object, extra: Commanded | None, codec: Codec, thread: str) -> Sequence[Answered]:
    """Which task gets what; where nothing was open, the first that is added gets it before it asks."""
    found = answers_of(told, resume, codec, thread)
    adds = extra is not None and bool(extra.tasks or extra.parts)
    return found or ([Answered("", "", e.wrap(codec.encode(resume, "the answer")))] if adds else ())


def _sum(lore: Lore, command: Command[Any], writes: Writes, goes: _Goes, codec: Codec, at: State | None = None) -> str:
    """It tells this Command from any other under the same run id; an answer alone as `resume_of` does."""
    said = [("resume", codec.encode(command.resume, "the answer"))] if command.resume is not None else []
    said += [(f" update {i} {key}", value) for i, (key, value) in enumerate(writes)]
    said += [(f" goto {name}", b"") for name in goes.names]
    said += [(f" send {i} {send.node} {send.timeout_s or 0}", arg) for i, (send, arg) in enumerate(goes.sends)]
    said += [first_of(at).said] if at is not None else []
    return input_sum(lore.name, "resume", said)
