"""A graph that a node, router or `@task` calls: it runs within that attempt, in a log of its own.

    child.invoke(input) ──► effect `graph:0:child` recorded? ── no ──► recorded: its run and thread; the run begins
                                  └─ yes ──► where does its log stand?
        done ──► its output again     under way, failed ──► it goes on     asks ──► with answers that the attempt has
    it rests with questions ──► the attempt ends with them     a Command for its parent ──► that is what the node gives

A new attempt calls it again, and finds what it has done. What it is given then says nothing any more. Calls are known
by their order, as those of tasks are. The log is written under the lease of the attempt (`fencedlog.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import InvalidEffect, InvalidInput, InvalidUpdateError, ThreadBusy
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.types import Registry

from ..graph.asking import CURRENT, CalledAsked, CalledCommand
from ..graph.effects import GRAPH
from ..graph.placing import spot_of
from ..graph.runtime import Command
from ..moves.contract import START_NODE, START_TASK, UPDATE_TASK, Answered, RunKind, Start, Started
from ..moves.record import CALLS, Config, Form, RunRecord, start_with
from ..reading.children import Caller, called_by
from ..reading.derive import Told
from ..reading.ending import Ending
from ..reading.nested import Nested
from ..reading.questions import dropped, interrupts, open_step, waits_with
from ..reading.shapes import Chunk
from ..steps.calling import command_of_child, stopped_after
from ..steps.effects import Fenced
from ..steps.isolated import Inside
from ..steps.loading import Loader
from ..steps.perform import Attempt
from .driver import Inline, Opening
from .fencedlog import KeptSaver
from .logmoves import Thread
from .savers import InMemorySaver, Saver

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec
    from .compiled import CompiledGraph

_OF_THE_TASK = ("langgraph_", "thread_id")


class Wanted(NamedTuple):
    """What is asked of a called graph's run. `config`: as it was given, for what it says beside its thread."""

    data: object
    said: Config
    config: Mapping[str, Any] | None
    mode: str | Sequence[str]
    keys: Sequence[str] | None
    run: str
    subgraphs: bool


def calling(said: Config) -> Attempt | None:
    """The attempt in which a graph is called; None where no node runs, or the config names a thread of its own."""
    attempt = CURRENT.get()
    if isinstance(attempt, Inside) and attempt.is_own(said.thread_id):
        attempt.refuse("a graph without a thread of its own")
    if not isinstance(attempt, Attempt):
        return None
    own = said.thread_id == attempt.place.root and said.checkpoint_ns == attempt.ns
    return attempt if own or not said.has_thread else None


def called(graph: CompiledGraph, attempt: Attempt, wanted: Wanted) -> Inline:
    """The run of a graph that the attempt's node calls. Raises InvalidInput."""
    if wanted.data is None or isinstance(wanted.data, Command):
        raise InvalidInput(
            f"the graph {graph.name!r} was called in a node without an input",
            node=attempt.lease.node,
            fix="give it one: whether it begins or goes on is seen in its log. Answer the graph whose node calls it",
        )
    if limited := [each.name for each in graph.spec.family if each.limits]:
        raise InvalidInput(
            f"the graph {limited[0]!r} has limits, and what it runs within a node can't be counted over the fleet",
            node=attempt.lease.node,
            fix="add the graph as a node, add_node(name, compiled), or submit() its runs",
        )
    return Unkept(graph, attempt, wanted) if graph.keeps is False else CalledRun(graph, attempt, wanted)


class _Run(Inline):
    """A run within an attempt, which it stops with."""

    def __init__(
        self,
        graph: CompiledGraph,
        attempt: Attempt,
        spec: GraphSpec,
        saver: Saver,
        thread: str,
        wanted: Wanted,
        opening: Opening | None = None,
    ) -> None:
        self.attempt = attempt
        told = inherited(attempt.record, wanted.said, wanted.config)
        super().__init__(
            spec, saver, thread, wanted.run, wanted.data, told, "input", START_NODE, wanted.mode, Loader(saver.log),
            opening, keys=wanted.keys, checkpoints=graph.keeps is not False, cache=graph.cache,
            nested=wanted.subgraphs,
        )  # fmt: skip
        self.performer.slotted = attempt.slotted

    def events(self, loop: asyncio.AbstractEventLoop | None) -> Iterator[Chunk]:
        with self.attempt.calls.driving(self):
            yield from super().events(loop)
        if self.ended is None:
            raise Fenced  # the attempt is over: whoever called has nobody to tell
        self._up(self.ended)

    def _up(self, ended: Ending) -> None:
        """What the end of the run is for the attempt."""
        raise NotImplementedError


class Unkept(_Run):
    """A run that is kept nowhere: of a graph with checkpointer=False."""

    def __init__(self, graph: CompiledGraph, attempt: Attempt, wanted: Wanted) -> None:
        super().__init__(graph, attempt, graph.spec, InMemorySaver(), new_id(), wanted)

    def _up(self, ended: Ending) -> None:
        if ended.status == "interrupted":
            raise InvalidInput(
                "a graph with checkpointer=False asked something, and nobody keeps its question",
                node=self.attempt.lease.node,
                fix="compile() it without checkpointer=False",
            )


class CalledRun(_Run):
    """A run in a log of its own, which the attempts of the task share."""

    def __init__(self, graph: CompiledGraph, attempt: Attempt, wanted: Wanted) -> None:
        lease = attempt.lease
        call, index = attempt.calls.nth_graph()
        self.spot = spot_of(lease.thread, lease.node, _key(attempt), call, index, graph.keeps)
        self.effect = GRAPH + f"{call}/{index}:{graph.name}".lstrip("/")
        self.keeps = graph.keeps
        saver = KeptSaver(attempt.doing, self._lost)
        spec = graph.within(attempt.spec)
        super().__init__(graph, attempt, spec, saver, self.spot.thread, wanted, lambda _: self._open())
        self.telling.above = attempt.doing.heeding
        self.telling.audience.above = attempt.listening if attempt.record.subgraphs else None
        self.kept = saver.moves
        self.place = attempt.place.at(self.spot.way)

    def _lost(self) -> None:
        self.attempt.doing.fenced = True

    # how it begins, or goes on

    def _open(self) -> Started:
        """Recorded first, so that whoever deletes the thread of the task knows of this one."""
        doing, run = self.attempt.doing, self.run
        known = doing.begin(self.effect)
        if known is None:
            doing.record(self.effect, run, called=f"{run} {self.thread}", ns=self.spot.way)
        else:
            run = str(known[0])
        self._heed(run)
        t = self._insist(lambda: self.kept.standing(self.thread))
        if t is None or run not in t.runs:
            return self._begin_call(t, run)
        last = self._last(t, run)
        if last != t.run:
            return self._attached(t, last)
        if t.status in ("running", "done"):
            return self._attached(t, last)
        return self._goes_on(t, last)

    def _heed(self, run: str) -> None:
        """Who follows the attempt here may tell of this run, too; as in LangGraph not of what routers of START call."""
        heeding, lease = self.attempt.doing.heeding, self.attempt.lease
        if heeding is not None and lease.task not in (START_TASK, UPDATE_TASK):
            heeding.called(run, self.spec, lease.run)

    def _attached(self, t: Thread, run: str) -> Started:
        """It is under way, or has ended: it is driven from where its log stands, and heard from its beginning."""
        return Started("resumed", t.runs[run][1], run=run)

    def _begin_call(self, t: Thread | None, run: str) -> Started:
        if t is not None:
            self._check_free(t)
        start = self._new("input", run, self.spec.input_writes(self.data))
        return self._begun_here(replace(start, mode="interrupt"))

    def _check_free(self, t: Thread) -> None:
        """What a task of an earlier step left open there is given up; one of this step may still go on with it."""
        lease = self.attempt.lease
        if not self.keeps:
            raise InvalidEffect(
                f"another graph than {self.spec.name!r} was called at this place before", node=lease.node,
                fix="make the same calls in the same order in each run of the node",
            )  # fmt: skip
        caller = self._caller(t.conf) if t.status != "done" else None
        if caller is not None and (caller.thread, caller.n) == (lease.thread, lease.n) and caller.task != lease.task:
            raise ThreadBusy(
                f"the graph {self.spec.name!r} keeps its state, and another task of this step has called it",
                thread=self.thread, node=lease.node,
                fix="compile() it without checkpointer=True, or call it in one task a step",
            )  # fmt: skip

    def _goes_on(self, t: Thread, last: str) -> Started:
        """It rests. With what it is answered it goes on; else where something is open beside questions, once the task
        has told of them."""
        caller, lease = self._caller(t.conf), self.attempt.lease
        seen = caller is None or caller.run != lease.run
        if (answered := self._answered()) is not None:
            return answered
        if t.status == "interrupted" and not (seen and t.left + t.failed + t.halted):
            return self._attached(t, last)
        return self._begun_here(self._new("continue", new_id(), ()))

    def _answered(self) -> Started | None:
        """It goes on with those answers of the attempt that are for its questions; None if there are none."""
        told = self._told()
        waiting = waits_with(told) if told is not None else {}
        answers = self.attempt.answers
        if any(question not in waiting for question in answers.left):
            answers.free(self._insist(lambda: dropped(self.saver.log, self.thread)))
        given = answers.passed(list(waiting))
        if told is None or not given:
            return None
        said = [Answered(waiting[question].task, question, e.wrap(value)) for question, value in given]
        return self._begun_here(self._new("resume", new_id(), (), said, (told.n, told.digest)))

    def _drive(self, started: Started) -> Iterator[Nested]:
        """To its rest; and on, where what it asks was answered before it was asked."""
        yield from super()._drive(started)
        while self.ended is not None and self.ended.status == "interrupted":
            again = self._answered()
            if again is None:
                return
            self.ended = None
            self._held(again.leases)
            self._driven(again)
            self.telling.begin(again.entry)
            self._ready.extend(again.leases)
            yield from super()._drive(again)

    def _begun_here(self, start: Start) -> Started:
        begun = self.begin(start)
        done = begun.status in ("started", "attached")
        return replace(begun, status="resumed", run=start.run) if done else begun

    def _new(
        self,
        kind: RunKind,
        run: str,
        writes: Sequence[tuple[str, bytes]],
        answers: Sequence[Answered] = (),
        at: tuple[int, str] | None = None,
    ) -> Start:
        lease, form = self.attempt.lease, _TYPED
        above, own = self.attempt.record, self.config.record(kind, form)
        live = (*(above.live if above.subgraphs else ()), *((CALLS,) if CALLS in own.live else ()))
        record = replace(own, parent=self.place, live=tuple(dict.fromkeys(live)), subgraphs=above.subgraphs)
        self._heed(run)
        start = start_with(
            record, writes, thread=self.thread, run=run, graph=self.spec.name, queue=self.spec.default_queue,
            codec=self.spec.codec, answers=answers, at=at,
        )  # fmt: skip
        caller = Caller(lease.n, lease.task, lease.thread, lease.run)
        return replace(start, fields={**start.fields, "caller": caller.text})

    def _told(self) -> Told | None:
        return self._insist(lambda: open_step(self.saver.log, self.thread))

    def _entries(self, ref: str) -> list[e.Entry]:
        return self._insist(lambda: self.saver.log.read(self.thread, ref, ref))

    def _caller(self, fact: str) -> Caller | None:
        """Which task began the run that holds."""
        found = self._entries(fact)
        return called_by(found[0]) if found else None

    def _last(self, t: Thread, run: str) -> str:
        """The last of the runs that go on from this one: of those behind it, up to the next input."""
        names = list(t.runs)
        last = run
        for each in names[names.index(run) + 1 :]:
            (fact,) = self._entries(t.runs[each][1])
            if fact.text("kind_of_run") == "input":
                break
            last = each
        return last

    # how it ends

    def _up(self, ended: Ending) -> None:
        if ended.status == "interrupted" or (ended.status == "done" and self._stops_there(ended)):
            self._asks()
        if ended.status == "done" and not ended.digest:
            self._commands(ended)

    def _stops_there(self, ended: Ending) -> bool:
        """Did it end with a node that it is to stop after? Then so does who called it, until that goes on."""
        marked = self.config.interrupt_after
        marked = self.spec.interrupt_after if marked is None else marked
        if not self._insist(lambda: stopped_after(self.saver.log, self.thread, ended, marked)):
            return False
        t = self.kept.standing(self.thread)
        caller = self._caller(t.conf) if t is not None and t.run == self.run else None
        return caller is not None and caller.run == self.attempt.lease.run

    def _asks(self) -> None:
        told = self._told()
        found = interrupts(told, self.spec.codec) if told is not None else []
        codec = self.attempt.spec.codec
        codec.encode([each.value for each in found], f"the questions of the graph {self.spec.name!r}")
        raise CalledAsked(f"{self.run} {self.thread}", found, self.attempt.answers.kept)

    def _commands(self, ended: Ending) -> None:
        (left,) = self._entries(ended.entry)
        said = left.value("command")
        if said is None:
            return
        if self.attempt.spec.direct:
            raise InvalidUpdateError(
                "an entrypoint has no state and no nodes, so a graph that it calls can't command it",
                node=self.attempt.lease.node,
                fix="return a value to it",
            )
        raise CalledCommand(command_of_child(self.spec.codec, said))


_TYPED: Form = "typed"


def _key(attempt: Attempt) -> str:
    """The task's idempotency key. Two inputs, or updates, of the same step have one; what they call is not the same."""
    lease = attempt.lease
    return f"{attempt.key} {lease.rec}" if lease.task in (START_TASK, UPDATE_TASK) else attempt.key


def inherited(record: RunRecord, said: Config, config: Mapping[str, Any] | None) -> Config:
    """What a called graph's run is told: what the caller's is, with what the call's own config says on top."""
    given = config or {}
    metadata = {key: value for key, value in said.metadata.items() if not key.startswith(_OF_THE_TASK)}
    return replace(
        said,
        run_id="",
        configurable={**record.configurable, **said.configurable},
        metadata={**record.metadata, **metadata},
        tags=tuple(dict.fromkeys((*record.tags, *said.tags))),
        recursion_limit=said.recursion_limit if "recursion_limit" in given else record.recursion_limit,
        context=record.context if said.context is None else said.context,
        actor=record.actor,
        trace=record.trace,
    )


def spec_within(spec: GraphSpec, parent: GraphSpec) -> GraphSpec:
    """A graph as one of `parent`'s nodes calls it: it may command it, and knows its types besides its own."""
    return replace(
        spec, home=parent.default_queue, registry=_together(spec.registry, parent.registry),
        context_schema=spec.context_schema or parent.context_schema,
    )  # fmt: skip


def _together(own: Registry, more: Registry) -> Registry:
    """The types of both; where a name means two, its own."""
    known, made = own.names(), Registry()
    for registry in (own, more):
        names = {name: cls for name, cls in registry.names().items() if registry is own or name not in known}
        for name, cls in names.items():
            shape = registry.shape_of(cls)
            if made.shape_of(cls) is None and shape is not None and (registry is own or shape.name == name):
                made.add(cls, shape.name, [each for each, same in names.items() if same is cls and each != shape.name])
    return made
