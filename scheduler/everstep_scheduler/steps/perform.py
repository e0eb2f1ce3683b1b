"""One task against a log, in five named steps over one record, the Attempt.

    load      the state, the run's record, the node          Performer.load
    call      the node and its routers, one attempt           Attempt.call / acall
    judge     what it came to: done, retry, failed            settling.Settler
    plan      the step's end, if this was its last task       settling.Settler
    commit    outcome and next checkpoint, fenced             Moves.commit, by the driver

Drivers differ in who calls and where it waits; what happens is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import EverstepError, LogError, NodeTimeoutError, UnknownNode
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import input_writes

from ..graph.asking import CURRENT, PLACE, Answers, CalledCommand, GraphBubbleUp
from ..graph.entry import PREVIOUS
from ..graph.handling import NodeError, raised_again
from ..graph.managed import NO_STEPS, Steps
from ..graph.options import Cache
from ..graph.placing import Place
from ..graph.results import NodeResult, node_result
from ..graph.runtime import ExecutionInfo, Runtime
from ..graph.spec import GraphSpec, NodeSpec, form_args
from ..graph.untracked import SHELF, Shelf, on, taken
from ..graph.writing import StreamWriter, unheard
from ..moves.contract import HANDLER, JOIN_TASK, START_NODE, START_TASK, UPDATE_TASK, Answer, Commit, Lease, Moves
from ..moves.record import RunRecord
from ..reading.ending import error_of
from ..reading.overlay import overlaid
from ..reading.shapes import message_metadata
from .admitting import gate_of
from .announcing import announcer
from .caching import CallCache, key_of, recall, remember
from .calling import look
from .calls import Calls
from .effects import Effects, Fenced
from .isolating import Child
from .loading import FRESH_STEP, Loader, Stand
from .outcome import Stopped, Unserved
from .plan import Returned, adestinations, destinations, returned
from .settling import Settler
from .timing import Pace, kept
from .told import place_of
from .updating import aupdated, nodes_of, update_needs_loop, updated
from .voice import Listening, Voice, returned_by

_SILENCE = nullcontext()


class Result(NamedTuple):
    """What an attempt came to: `returned`, or the error it raised. Times in milliseconds. `cached`: nothing ran."""

    returned: Returned | None
    error: BaseException | None
    ms: int
    cached: bool = False

    @classmethod
    def timeout(cls, attempt: Attempt) -> Result:
        """The attempt was over its timeout."""
        return cls(None, _late(attempt), attempt.elapsed_ms)

    @classmethod
    def stopped(cls, attempt: Attempt, why: str) -> Result:
        """Somebody stopped the attempt; it is not retried by itself."""
        return cls(None, Stopped(why, thread=attempt.lease.thread, node=attempt.lease.node), attempt.elapsed_ms)


def _is_cancelled() -> bool:
    """Whether somebody cancels the task that we run in; a node may also raise CancelledError by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_failure(result: Result) -> bool:
    """Did it raise? A question is no failure."""
    return result.error is not None and not isinstance(result.error, GraphBubbleUp)


def _late(attempt: Attempt) -> NodeTimeoutError:
    return NodeTimeoutError(
        attempt.pace.why(),
        error_type="NodeTimeoutError",
        thread=attempt.lease.thread,
        node=attempt.lease.node,
        fix="raise add_node(timeout=...), call runtime.heartbeat(), or add a retry policy for NodeTimeoutError",
    )


class Given(NamedTuple):
    """What a task brings along besides the state: a Send's encoded argument, a run's input, answers to questions, the
    failure that it handles.

    `nodes`: the nodes that an update stands for, each with how many of the writes are its own.
    """

    arg: bytes | None = None
    input: tuple[tuple[str, bytes | None], ...] = ()
    answers: Sequence[tuple[str, bytes]] = ()
    nodes: tuple[tuple[str, int], ...] = ()
    error: NodeError | None = None


NOTHING_GIVEN = Given()


class Attempt:
    """One try at a task, with all that the node needs. `broken`: it could not be loaded, and will fail saying so.
    `known`: what it came to before, from a cache; its node is not called. `slotted`: it holds a worker's slot.
    `listening` says who listens to attempts here, also to those of graphs that it calls.
    """

    def __init__(
        self,
        lease: Lease,
        spec: GraphSpec,
        node: NodeSpec | None,
        stand: Stand,
        record: RunRecord,
        loader: Loader,
        doing: Effects,
        given: Given = NOTHING_GIVEN,
        broken: Exception | None = None,
        *,
        slotted: bool = False,
        cache: Cache | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.lease = lease
        self.spec = spec
        self.node = node
        self.stand = stand
        self.record = record
        self.loader = loader
        self.doing = doing
        self.given = given
        self.broken = broken
        self.slotted = slotted
        self.cache = cache
        self.shelf = shelf
        self.voice: Voice | None = None
        self.cache_key = ""
        self.known: Returned | None = None
        self.listening: Listening | None = None
        self.child = Child() if node is not None and node.isolate else None
        self.ahead: list[str] = []  # the parts that it has written
        self.killed = False
        self._calls: Calls | None = None
        self._answers: Answers | None = None
        idle, policy = (node.idle_s, node.timeout) if node is not None else (None, None)
        self.pace = Pace(lease.timeout_s, idle or 0.0, policy is None or policy.refresh_on == "auto")

    @property
    def calls(self) -> Calls:
        """The `@task` calls that it makes; most make none."""
        if self._calls is None:
            cache = CallCache(self.cache, self.spec.name) if self.cache is not None else None
            tells = announcer(self.doing, self.record.live)
            self._calls = Calls(self.doing, self.spec.registry, self.lease.node, cache, tells)
            if self.killed:  # meanwhile
                self._calls.leave()
        return self._calls

    @property
    def elapsed_ms(self) -> int:
        return int(self.pace.elapsed_s * 1000)

    @property
    def source(self) -> str:
        """Whose edges and routers follow: the node, or START for an input."""
        return self.lease.node

    @property
    def steps(self) -> Steps:
        """The number of the step under way, and that at which the run stops (LangGraph's, also for an update)."""
        base = max(self.lease.base, FRESH_STEP)
        if self.lease.task == UPDATE_TASK:
            return Steps(base + 1, base + 3)
        step = base + 2 if self.lease.task == START_TASK else self.stand.step + 1
        return Steps(step, base + self.record.recursion_limit + 2)

    @property
    def _managed(self) -> Steps:
        """The same for managed values; most graphs have none."""
        return self.steps if self.spec.managed else NO_STEPS

    @property
    def is_async(self) -> bool:
        """Whether it has to run on an event loop: an async node, or a router of one."""
        if self.given.nodes:
            return update_needs_loop(self)
        return self.lease.task != JOIN_TASK and self.spec.needs_loop(self.source)

    # call

    def call(self) -> Result:
        """Run a sync node and its routers. Raises nothing: what the user's code raises is the result."""
        result = self._call()
        if self._calls is not None:
            self._calls.end(failed=_is_failure(result))
        return result if not self.doing.fenced else Result(None, Fenced(), result.ms)

    def _call(self) -> Result:
        self.pace.begin()
        before, place, shelf = CURRENT.set(self), PLACE.set(""), SHELF.set(self.shelf)
        try:
            self._check()
            if self.lease.task == JOIN_TASK:
                return Result(None, None, 0)
            if self.known is not None:
                return Result(self.known, None, 0, cached=True)
            config, runtime = self._told()
            if self.given.nodes:
                return Result(updated(self, config, runtime), None, self.elapsed_ms)
            with self._speaking():
                gave = self._given() if self.node is None else self._gave(self._called(self.node, config, runtime))
                there = destinations(self.spec, self.source, self.stand.channels, gave, config, runtime, self._managed)
            return Result(returned(gave.writes, there), None, self.elapsed_ms)
        except BaseException as error:  # noqa: BLE001 - the door to the user's code
            return Result(None, error, self.elapsed_ms)
        finally:
            CURRENT.reset(before)
            PLACE.reset(place)
            SHELF.reset(shelf)

    async def acall(self) -> Result:
        """The same on an event loop, for async nodes and routers. Keeps the timeout by itself."""
        self.calls.on_loop()
        try:
            result = await self._paced()
        except asyncio.CancelledError:
            self.calls.cancel()
            raise
        await self.calls.aend(failed=_is_failure(result))
        return result if not self.doing.fenced else Result(None, Fenced(), result.ms)

    async def _paced(self) -> Result:
        self.pace.begin()
        CURRENT.set(self)  # of this task only: it runs in a context of its own
        PLACE.set("")
        SHELF.set(self.shelf)
        with kept(self.pace) as limit:
            return await self._acall(limit)

    async def _acall(self, limit: asyncio.Timeout) -> Result:
        try:
            self._check()
            if self.known is not None:
                return Result(self.known, None, 0, cached=True)
            async with limit:
                config, runtime = self._told()
                if self.given.nodes:
                    return Result(await aupdated(self, config, runtime), None, self.elapsed_ms)
                with self._speaking():
                    gave = self._given() if self.node is None else self._gave(await self._awaited(config, runtime))
                    there = await adestinations(
                        self.spec, self.source, self.stand.channels, gave, config, runtime, self._managed
                    )
            return Result(returned(gave.writes, there), None, self.elapsed_ms)
        except TimeoutError as error:
            return Result(None, _late(self) if limit.expired() else error, self.elapsed_ms)
        except BaseException as error:  # the door to the user's code
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            return Result(None, error, self.elapsed_ms)

    def kill(self) -> None:
        """The attempt is over: end the process of an isolated node, now, also in graphs that it called; they are
        driven no further. From any thread."""
        self.killed = True
        if self.child is not None:
            self.child.kill()
        if self._calls is not None:
            self._calls.leave()

    def ask(self, value: Any, response_schema: Any) -> Any:
        """The answer to the node's next question. Raises GraphInterrupt where there is none yet."""
        return self.answers.next(value, response_schema)

    @property
    def answers(self) -> Answers:
        """The answers that it brings along."""
        if self._answers is None:
            self._answers = Answers(self.key, self.given.answers, self.spec.codec)
        return self._answers

    def handler_of(self, error: BaseException) -> NodeSpec | None:
        """What handles the error: the handler of a node that was called and failed by itself."""
        if self.broken is not None or isinstance(error, Stopped) or self.node is None or self.node.handler is None:
            return None
        return self.spec.handlers[self.node.handler]

    @property
    def key(self) -> str:
        """The task's idempotency key."""
        return e.idempotency_key(self.lease.birth, self.lease.n, self.lease.digest, self.lease.task)

    @property
    def place(self) -> Place:
        """Where its thread stands in the tree of what tasks called."""
        return Place(*self.record.parent) if self.record.parent else Place(self.lease.thread)

    @property
    def ns(self) -> str:
        """The task's own place, as LangGraph names it."""
        return self.place.below(self.lease.node, self.key).ns

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _called(self, node: NodeSpec, config: dict[str, Any] | None, runtime: Runtime[Any] | None) -> Any:
        if self.child is not None:
            return self.child.run(self)
        try:
            return look(self) if node.calls else node.fn(*self.args(), **self._kwargs(config, runtime))
        except CalledCommand as said:
            return said.command

    async def _awaited(self, config: dict[str, Any] | None, runtime: Runtime[Any] | None) -> Any:
        assert self.node is not None
        if self.node.graph is not None:  # it reads logs, or runs as a whole: not on the loop
            return await asyncio.to_thread(self._called, self.node, config, runtime)
        if self.child is not None:
            try:
                return await asyncio.to_thread(self.child.run, self)
            finally:
                self.child.kill()
        answer = self._called(self.node, config, runtime)
        try:
            return await answer if self.node.is_async else answer
        except CalledCommand as said:
            return said.command

    def args(self) -> tuple[Any, ...]:
        """The node's input, freshly decoded."""
        if self.given.arg is not None:
            state = taken(self.spec.codec.decode(self.given.arg, "the Send's argument"))
        else:
            node = self.given.error.node if self.given.error is not None else self.lease.node
            state = self.spec.node_input(node, self.stand.channels, self._managed)
        if self.voice is not None:
            self.voice.given(state)
        return (state,)

    def _kwargs(self, config: dict[str, Any] | None, runtime: Runtime[Any] | None) -> dict[str, Any]:
        assert self.node is not None
        return form_args(self.node.form, config, runtime, self.given.error)

    def _gave(self, value: object) -> NodeResult:
        if self.voice is not None:
            returned_by(self, value)
        return node_result(self.spec, self.lease.node, value)

    def _given(self) -> NodeResult:
        """What an input gives: what its run's fact carries, checked with real types."""
        return NodeResult(self._given_writes(), [], [])

    def _given_writes(self) -> list[tuple[str, bytes]]:
        values = {
            key: self.spec.codec.decode(value or b"\xc0", f"input key {key!r}") for key, value in self.given.input
        }
        values = taken(values)
        if self.record.form == "json":
            values = self.spec.input_from_json(values)
        return self.spec.stored_writes(values, self.stand.channels)

    # what a node says

    @property
    def writer(self) -> StreamWriter:
        """What the node writes to, for mode `custom`."""
        tell = self.voice.write if self.voice is not None else unheard
        if not self.pace.idle_s:
            return tell

        def write(said: Any) -> None:
            self.pace.progress()
            tell(said)

        return write

    def _speaking(self) -> AbstractContextManager[None]:
        return _SILENCE if self.voice is None else self.voice.speaking()

    def listened(self, listening: Listening | None) -> None:
        """Give it a voice if somebody listens."""
        self.listening = listening
        listener = listening(self.lease, self.record) if listening is not None and self.node is not None else None
        if listener is not None:
            own = message_metadata(self.spec, self.lease, self.stand.step + 1, self.record)
            told = {**self.record.metadata, **self.spec.node(self.lease.node).metadata}
            self.voice = Voice(self.lease, self.spec.codec, listener, own, {**self.config(), "metadata": told})

    # what a node is told

    def _told(self) -> tuple[dict[str, Any] | None, Runtime[Any] | None]:
        """Config and runtime, each only where the node or a router of its asks for it. An input looks at the context,
        so that one which does not fit its schema fails the run at once."""
        if self.node is None:
            if self.lease.task == START_TASK and not self.spec.branches_of(START_NODE):
                self.spec.make_context(self.record.context)
                return None, None
            return self.config(), self.runtime()
        asked = self.spec.asked[self.node.name]
        if not asked:
            return None, None
        told = asked & {"runtime", "previous"}
        return self.config() if "config" in asked else None, self.runtime() if told else None

    def config(self) -> dict[str, Any]:
        """LangGraph's config, the same on any worker, any day later; `metadata` says where the task stands."""
        record = self.record
        place = {"thread_id": self.place.root, "checkpoint_ns": self.ns, "run_id": self.lease.run}
        config: dict[str, Any] = {
            "configurable": {**record.configurable, **place},
            "metadata": {"thread_id": self.place.root, **record.metadata, **self._place()},
            "tags": list(record.tags),
            "recursion_limit": record.recursion_limit,
        }
        if self.voice is not None and self.voice.chat is not None:
            config["callbacks"] = self.voice.chat.callbacks
        return config

    def _place(self) -> dict[str, Any]:
        if self.lease.task == UPDATE_TASK:
            return {}
        lease, parts = self.lease, self.stand.parts
        failed = self.given.error.node if self.given.error is not None else ""
        told = place_of(self.spec, lease.node, lease.task, parts, self.steps.step, self.key, failed)
        return {**told, "langgraph_checkpoint_ns": self.ns}

    def runtime(self) -> Runtime[Any]:
        lease, key = self.lease, self.key
        info = ExecutionInfo(
            checkpoint_id=e.checkpoint_id(lease.n, lease.digest) if lease.n else "",
            checkpoint_ns=self.ns,
            task_id=key,
            thread_id=self.place.root,
            run_id=lease.run,
            node_attempt=lease.attempt,
        )
        context = self.spec.make_context(self.record.context)
        before = self.spec.decoded([PREVIOUS], self.stand.channels).get(PREVIOUS) if self.spec.direct else None
        return Runtime(context, info, key, self.writer, self.pace.heartbeat, before)


class Performer:
    """Loads attempts and settles them. One per process; `by` is its name in the log; `listening` says who listens.
    `slotted`: attempts hold slots of a worker. `parks`: a worker of
    another version may be there for what this one lacks. `shelf`: of a run that is driven by who called it."""

    def __init__(
        self,
        moves: Moves,
        log: Log,
        graphs: Mapping[str, GraphSpec],
        *,
        by: str,
        loader: Loader | None = None,
        listening: Listening | None = None,
        cache: Cache | None = None,
        slotted: bool = False,
        parks: bool = False,
        shelf: Shelf | None = None,
    ) -> None:
        self.listening = listening
        self.shelf = shelf
        self.slotted = slotted
        self.graphs = graphs
        self.cache = cache
        self.loader = loader or Loader(log)
        self._gate = gate_of(self.loader)
        self._settler = Settler(moves, log, self.loader, by, parks)

    def load(self, lease: Lease) -> Attempt:
        """What the lease's task needs. Raises Unserved, and ServerError if Redis is away; bad data fails later."""
        spec = self.graphs.get(lease.graph)
        if spec is None:
            known = ", ".join(sorted(self.graphs)) or "none"
            raise Unserved(f"graph {self._wanted(lease)!r} is not registered here; registered: {known}")
        try:
            node = None if lease.node in (START_NODE, "__join__") else spec.node(lease.node)
        except UnknownNode as error:
            wanted = self._wanted(lease)
            raise Unserved(f"{wanted} wants node {lease.node!r}, which {spec.version} lacks. {error.fix}") from None
        node = None if lease.task == UPDATE_TASK else node
        doing = Effects(self._settler.moves, self.loader.log, lease, spec.codec, self._settler.by)
        try:
            if self._gate is not None:
                self._gate.admit(lease, node)
            stand, record = self.loader.ground(lease), self.loader.record(lease, spec.codec)
            given = self._given(lease, stand)
            given = given._replace(answers=self.loader.answers(lease)) if lease.answers else given
            if not spec.empty.keys() <= stand.channels.keys():
                stand = stand._replace(channels={**spec.empty, **stand.channels})
            commands = self.loader.commands(lease, stand) if lease.over or stand.on else ()
            seen = overlaid(spec, stand.channels, commands) if commands else stand.channels
            stand = stand._replace(channels=seen, stored=stand.channels) if commands else stand
        except EverstepError as error:
            if not _is_data(error):
                raise
            return Attempt(lease, spec, node, Stand({}, lease.base), RunRecord(), self.loader, doing, broken=error)
        attempt = Attempt(
            lease, spec, node, stand, record, self.loader, doing, given,
            slotted=self.slotted, cache=self.cache, shelf=self.shelf or (Shelf() if spec.untracked else None),
        )  # fmt: skip
        if node is not None:
            self._recall(attempt, node)
        attempt.listened(self.listening)
        return attempt

    def _recall(self, attempt: Attempt, node: NodeSpec) -> None:
        """Give it what the cache knows of it."""
        if self.cache is None or node.cache is None:
            return
        if key := key_of(attempt):
            attempt.cache_key, attempt.known = key, recall(self.cache, attempt, key)

    def _wanted(self, lease: Lease) -> str:
        """The graph's `name@fingerprint` that made the step; the name alone where nobody says it."""
        try:
            made = self.loader.entry(lease, f"{lease.n}-0", lease.digest).text("graph") if lease.n else ""
        except LogError:
            made = ""
        return made if made.startswith(f"{lease.graph}@") else lease.graph

    def _given(self, lease: Lease, stand: Stand) -> Given:
        if lease.task in (START_TASK, UPDATE_TASK):
            began = self.loader.entry(lease, lease.rec)
            writes = tuple(input_writes(began))
            return Given(input=writes, nodes=nodes_of(began, lease.node) if lease.task == UPDATE_TASK else ())
        error = _failure(self.loader.entry(lease, lease.cause, lease.token)) if lease.cause else None
        if lease.task.startswith("p") and error is None:
            return NOTHING_GIVEN
        lease = lease._replace(task=lease.task.removeprefix(HANDLER))
        return Given(self.loader.send(lease, stand) if lease.task.startswith("s") else None, error=error)

    def settle(self, attempt: Attempt, result: Result) -> Commit:
        """Judge and plan. May write parts. Raises ServerError if Redis is away."""
        if attempt.voice is not None:
            attempt.voice.hush()
        commit = self._shelved(attempt, result) if attempt.shelf is not None else self._settler.settle(attempt, result)
        fresh = result.returned is not None and not result.cached and commit.outcome in ("next", "done")
        if self.cache is not None and attempt.cache_key and fresh:
            assert result.returned is not None
            remember(self.cache, attempt, attempt.cache_key, result.returned)
        if attempt.voice is not None and attempt.voice.told and commit.entries:
            commit.entries[0]["told"] = attempt.voice.told  # so that readers know when they have heard all
        return commit

    def _shelved(self, attempt: Attempt, result: Result) -> Commit:
        """What an attempt on a worker put on a shelf of its own is gone with it."""
        assert attempt.shelf is not None
        commit = on(attempt.shelf, lambda: self._settler.settle(attempt, result))
        if attempt.shelf is not self.shelf:
            attempt.shelf.clear()
        return commit

    def committed(self, commit: Commit, answer: Answer) -> None:
        """A commit is settled: if it passed, remember where the thread stands now."""
        self._settler.keep(commit, passed=answer.status == "ok")
        if self._gate is not None and answer.status == "ok":
            self._gate.learn(commit)


def _failure(entry: e.Entry) -> NodeError:
    """What an error handler is told: the failure that its `task_failed` tells."""
    return NodeError(entry.text("node"), raised_again(*error_of(entry)))


def _is_data(error: EverstepError) -> bool:
    from everstep_checkpoint.errors import ServerError

    return not isinstance(error, ServerError)


__all__ = ["Attempt", "Commit", "Performer", "Result"]
