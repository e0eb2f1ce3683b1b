"""Calling: an attempt at a node that is a graph. Each is short: it looks at the child's log and does the next thing.

    no child yet ──► Called (it begins)           child under way ──► Called (it is waited for)
    child done ──► its output, or its Command     child failed ──► ChildFailed, under the node's own retry policy
    child asks, or stopped at a breakpoint ──► ChildAsked; with answers, or at a retry ──► Called (it goes on)

The child's log is the truth about it: nothing here remembers anything between attempts but its thread and its run.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import RunFailed, UnknownType, type_name
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import HANDLER, Channels, state_at, step_of

from ..graph.retry import RetryPolicy
from ..graph.runtime import Command, Send
from ..graph.schema import as_dict, updates_of
from ..graph.spec import GraphSpec, NodeSpec
from ..graph.subgraphs import child_thread
from ..graph.untracked import taken
from ..moves.contract import JOIN_TASK, Answered, Call, RunKind, Start
from ..moves.record import looks_secret, start_with, stops_at
from ..reading.children import ended
from ..reading.derive import Told
from ..reading.ending import Ending, Said
from ..reading.questions import open_step

if TYPE_CHECKING:
    from .perform import Attempt

GONE = Said("RunCancelled", "the thread of the subgraph was deleted")
CANCELLED = Said("RunCancelled", "the run of the subgraph was cancelled")


class Called(Exception):
    """Ends an attempt: its task waits for the run that it called. `kept`: answers that were not passed on."""

    def __init__(self, call: Call, kept: Sequence[str] = ()) -> None:
        super().__init__(f"run {call.run} on thread {call.thread}")
        self.call = call
        self.kept = tuple(kept)


class ChildAsked(Exception):
    """Ends an attempt: the child waits for answers, or at a breakpoint. `told`: where it stands."""

    def __init__(self, thread: str, told: Told, kept: Sequence[str] = ()) -> None:
        super().__init__(f"thread {thread} waits")
        self.thread = thread
        self.told = told
        self.kept = tuple(kept)


class ChildFailed(RunFailed):
    """The child's run failed, with this error in this node of it."""

    run: str = ""
    said: Said = CANCELLED

    @classmethod
    def of(cls, thread: str, run: str, said: Said, node: str = "") -> ChildFailed:
        what = said.words or "the run of the subgraph failed"
        made = cls(what, error_type=said.error_type, traceback=said.traceback, thread=thread, node=node)
        made.run, made.said = run, said
        return made

    def likeness(self, policies: Sequence[RetryPolicy]) -> Exception:
        """What a retry policy is asked about: an error of the same class, where it is a builtin one or the policy
        itself names it. Nothing is built from its name: only known classes are compared with it."""
        found: Any = getattr(builtins, self.said.error_type, None)
        named = [found, *(cls for policy in policies for cls in _classes(policy.retry_on))]
        for cls in named:
            if isinstance(cls, type) and issubclass(cls, Exception) and _is_named(cls, self.said.error_type):
                return cls.__new__(cls)
        return self


def _classes(retry_on: Any) -> tuple[Any, ...]:
    return tuple(retry_on) if isinstance(retry_on, (list, tuple)) else (retry_on,)  # pyright: ignore


def _is_named(cls: type[Exception], name: str) -> bool:
    return type_name(cls) == name


def look(attempt: Attempt) -> Any:
    """What the graph of the attempt's node gave: the keys of its output that the parent has, too, or the Command that a
    node of it had for its parent. Raises Called, ChildAsked, ChildFailed."""
    node = attempt.node
    assert node is not None and node.graph is not None
    return _Look(attempt, node, attempt.spec.nested[node.name]).values()


def stopped_after(log: Log, thread: str, ending: Ending, marked: tuple[str, ...]) -> bool:
    """Did a run end with a node that it was to stop after? Then who called it stops there (LangGraph)."""
    if not marked or not ending.digest:
        return False
    (last,) = log.read(thread, f"{ending.n}-0", f"{ending.n}-0")
    if last.text("task") != JOIN_TASK and not last.text("task").startswith(HANDLER):
        return stops_at([last.text("node")], marked)
    before = step_of(log, thread, ending.n - 1)
    return stops_at((task.node for task in before.tasks), marked)


def command_of_child(codec: Codec, said: bytes) -> Command[Any]:
    """The Command that a run ended with, for the graph that called it."""
    told: Any = codec.decode(said, "the Command of a subgraph")
    update, goto = told
    return Command(
        update=[tuple(pair) for pair in update],
        goto=[each if isinstance(each, str) else Send(each[0], each[1], timeout=each[2]) for each in goto],
    )


class _Look:
    """One look at the child."""

    def __init__(self, attempt: Attempt, node: NodeSpec, child: GraphSpec) -> None:
        self.attempt = attempt
        self.node = node
        self.child = child
        self.log = attempt.loader.log
        self.run, _, self.thread = attempt.lease.called.partition(" ")
        self.seen = bool(attempt.lease.told)
        self.head: tuple[int, str] | None = None
        self.thread = self.thread or child_thread(attempt.lease.thread, node.name, attempt.key, node.keeps)
        self.place = attempt.place.below(node.name, "" if node.keeps else attempt.key)

    def values(self) -> Any:
        told = open_step(self.log, self.thread)
        self.head = (told.n, told.digest) if told is not None else None
        if not self.run and told is not None and not self.node.keeps:
            self.run = told.run  # it was begun by this very task, whose log has lost that
        if not self.run or (told is None and self.seen):
            raise Called(self._input(), self._unused(()))
        if told is None:
            raise ChildFailed.of(self.thread, self.run, GONE)
        return self._again(told) if self.seen else self._first(told)

    def _first(self, told: Told) -> Any:
        """How the run that was called has ended."""
        ending = ended(self.log, self.thread, self.run)
        match ending:
            case None:
                raise Called(Call(self.thread, self.run, None), self._unused(()))
            case Ending(status="done"):
                if stopped_after(self.log, self.thread, ending, self.child.interrupt_after):
                    raise ChildAsked(self.thread, told, self._unused(()))
                return self._gave(ending)
            case Ending(status="interrupted"):
                return self._asked(told)
            case Ending(status="cancelled"):
                raise ChildFailed.of(self.thread, self.run, CANCELLED)
            case _:
                raise ChildFailed.of(self.thread, self.run, ending.error, ending.node)

    def _again(self, told: Told) -> Any:
        """The task has told how it ended, and is to go on: so is the child, wherever it stands by now."""
        if told.status == "done":
            return self._gave(ended(self.log, self.thread, told.run) or Ending("done", told.n, "", digest=told.digest))
        return self._asked(told) if told.asked else self._on(told)

    def _asked(self, told: Told) -> Any:
        """It waits. It goes on with what it is answered, or, once that was told, where something else is open."""
        open_else = told.left + told.failed + told.halted
        if self._answers(told)[0] or (self.seen and open_else):
            return self._on(told)
        raise ChildAsked(self.thread, told, self._unused(()))

    def _on(self, told: Told) -> Any:
        answers, used = self._answers(told)
        kind: RunKind = "resume" if answers else "continue"
        start = self._start(kind, (), answers, (told.n, told.digest) if answers else None)
        raise Called(Call(self.thread, start.run, start), self._unused(used))

    # answers

    def _given(self) -> list[tuple[str, str, bytes]]:
        """(entry, question, value) of the answers that the task has; no value where it is only to look again."""
        lease, loader = self.attempt.lease, self.attempt.loader
        return [(ref, *said) for ref, said in zip(lease.answers.split(), loader.answers(lease), strict=True)]

    def _answers(self, told: Told) -> tuple[list[Answered], list[str]]:
        """What is passed on to the child, and the entries that it is from. One that came before its question goes to
        the only question there is, or to the first task that may ask; so does one whose question is gone, where none
        waits: the child's state was edited since."""
        waiting = {question: task.task for task in told.tasks for question in task.question.split()}
        first = next((task.task for task in told.tasks if task.place != "done"), "")
        found: list[Answered] = []
        used: list[str] = []
        for ref, question, value in self._given():
            if not value and question not in waiting:
                continue
            asked = question if waiting else ""
            asked = asked or (next(iter(waiting)) if len(waiting) == 1 else "")
            task = waiting.get(asked, "" if waiting else first)
            if task and all(each.question != asked for each in found):
                found.append(Answered(task, asked, e.wrap(value)))
                used.append(ref)
        return found, used

    def _unused(self, used: Sequence[str]) -> list[str]:
        """Answers without a question that wait for one. Those to questions that are gone are dropped."""
        return [ref for ref, question, _ in self._given() if not question and ref not in used]

    # in and out

    def _input(self) -> Call:
        """The node's state, as far as the child's input has its keys; an entrypoint gets it whole."""
        spec, attempt = self.attempt.spec, self.attempt
        known = self.child.input_schema.fields
        if self.child.direct:
            (given,) = attempt.args()
        elif attempt.given.arg is None:
            fields = self.node.input_schema.fields
            given = spec.decoded([name for name in fields if name in known], attempt.stand.channels)
        else:
            given = taken(spec.codec.decode(attempt.given.arg, "the Send's argument"))
            said = as_dict(given)
            said = updates_of(given) if said is None else said
            given = given if said is None else {name: value for name, value in said.items() if name in known}
        start = self._start("input", self.child.input_writes(given))
        return Call(self.thread, start.run, start)

    def _gave(self, ending: Ending) -> Any:
        left = self.log.read(self.thread, ending.entry, ending.entry) if ending.entry and not ending.digest else []
        said = left[0].value("command") if left else None
        if said is None:
            return self._output(ending.n, ending.digest)
        return command_of_child(self.attempt.spec.codec, said)

    def _output(self, n: int, digest: str) -> Any:
        warm = self.attempt.loader.peek(self.thread, digest)
        channels: Channels = warm.channels if warm is not None else state_at(self.log, self.thread, n).channels
        known, gave = self.attempt.spec.channels, self.child.output(channels)
        return gave if self.child.direct else {name: value for name, value in gave.items() if name in known}

    def _node_says(self) -> dict[str, Any]:
        """The node's metadata, which LangGraph hands down; what can't be stored, or is not to be, stays here."""
        found = dict[str, Any]()
        for key, value in self.node.metadata.items():
            with suppress(UnknownType):
                if not looks_secret(key) and self.child.codec.encode(value, f"the metadata {key!r}"):
                    found[key] = value
        return found

    def _start(
        self,
        kind: RunKind,
        writes: Sequence[tuple[str, bytes]],
        answers: Sequence[Answered] = (),
        at: tuple[int, str] | None = None,
    ) -> Start:
        lease, child = self.attempt.lease, self.child
        record = replace(
            self.attempt.record,
            kind=kind,
            form="typed",
            parent=self.place,
            metadata={**self.attempt.record.metadata, **self._node_says()},
            interrupt_before=None,
            interrupt_after=None,
            live=self.attempt.record.live if self.attempt.record.subgraphs else (),
        )
        start = start_with(
            record, writes, thread=self.thread, run=new_id(), graph=child.name, queue=child.default_queue,
            codec=child.codec, answers=answers, at=at,
        )  # fmt: skip
        parent = f"{lease.n} {lease.task} {lease.thread}"
        return replace(start, parent=parent, fields={**start.fields, "parent": parent}, seen=self.head or (0, ""))
