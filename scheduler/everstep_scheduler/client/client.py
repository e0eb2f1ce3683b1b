"""Client: a fleet as its users see it: submit runs, wait for them, look at threads, stop them. Needs no graph's code.

    client = connect("redis://...")            client.submit("counter", {"count": 0}).result(timeout=10)
    client.graph("counter").invoke({...})      client.threads(), client.state("t"), client.cancel("t")

It writes by the same scripts as the workers, and reads logs and indexes. Safe to use from several threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import (
    CorruptEntry,
    EmptyInputError,
    EverstepError,
    InvalidResume,
    InvalidUpdateError,
    RunConflict,
    ServerUnavailable,
    Superseded,
    ThreadBusy,
    UnknownRun,
)
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys, begun_thread_text, rq_prefix, thread_id_text
from everstep_checkpoint.log import Log, unknown_thread
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at

from ..graph.durability import COMMIT
from ..graph.runtime import Command, Send
from ..moves.connection import DEFAULT_URL, translated
from ..moves.connection import connect as connected
from ..moves.contract import Mode, Start, check_thread
from ..moves.promises import Promises, warn
from ..moves.record import Config, On, check_run_id, check_text, commands, start_of, start_with
from ..moves.redismoves import RedisMoves, Scripts
from ..moves.translatedlog import for_user
from ..reading.carried import Errors
from ..reading.questions import looking_of, refused, resume_of
from ..reading.shapes import Reading, asked_modes, check_modes
from ..reading.snapshot import StateSnapshot, snapshot, snapshots
from ..recovery.rebuild import STATUSES
from ..recovery.recovery import Recovery
from ..steps.commanding import Lore, command_of
from ..steps.replacing import begun
from . import manifest as manifests
from .deleting import Deleting
from .intake import ManifestLore, take
from .manifest import Manifest, publish
from .runhandle import Run
from .tail import BLOCK_MS
from .travelling import Travelling

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec
    from ..inline.compiled import CompiledGraph
    from .remote import RemoteGraph

MANIFEST_KEPT_S = 5.0

__all__ = ["Client", "Run", "ThreadInfo", "connect", "publish"]


class ThreadInfo(NamedTuple):
    """A thread in a list. `since_ms`: when it came to its status; `n`, `step`: its last checkpoint."""

    thread_id: str
    status: str
    run_id: str
    graph: str
    n: int
    step: int
    open_tasks: int
    since_ms: int


def connect(
    url: str | None = None,
    *,
    namespace: str = "everstep",
    partition: str = "0",
    errors: Iterable[type[Exception]] = (),
) -> Client:
    """A client of the fleet at `url` (default: the environment's EVERSTEP_URL or REDIS_URL, else redis://127.0.0.1:6379/0).

    `errors`: exception classes of your own, as for `Client.register_errors`. Nothing is sent before the first use; that
    raises ServerUnavailable if nobody answers.
    """
    where = url or os.environ.get("EVERSTEP_URL") or os.environ.get("REDIS_URL") or DEFAULT_URL
    return Client(where, Keys(namespace, partition, rq_prefix(partition)), errors=errors)


class Client(Travelling, Deleting):
    """One connection pool, and what one can ask a fleet. Use it as a context manager, or `close()` it."""

    def __init__(self, url: str, keys: Keys, redis: Any = None, errors: Iterable[type[Exception]] = ()) -> None:
        self.url = url
        self.errors = Errors(errors)
        self.keys = keys
        self._own = redis is None
        self.redis: Any = connected(url, block_s=BLOCK_MS / 1000) if redis is None else redis
        self.log_store: Log = RedisLog(self.redis, keys)
        self.recovery = Recovery(self.redis, keys)
        self.moves = RedisMoves(Scripts(self.redis, keys, self.recovery, url))
        self.promises = Promises(self.redis, keys, url)
        self._manifests: dict[str, tuple[float, Manifest]] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        if self._own:
            self.redis.close()

    def register_errors(self, *classes: type[Exception]) -> None:
        """What nodes raise of these classes is raised here as these, too.

        They are told by module and name, and made from the message alone: what their constructor takes beside it is
        not there. Raises InvalidInput for what can't be made so.
        """
        self.errors.register(*classes)

    # graphs

    def graphs(self) -> list[Manifest]:
        """The published graphs, by name. One whose manifest can't be read is left out, and logged."""
        with translated(self.url):
            return manifests.readable(manifests.names(self.redis, self.keys), self.manifest)

    def manifest(self, name: str) -> Manifest:
        """What a graph says of itself, at most five seconds old. Raises UnknownGraph."""
        known = self._manifests.get(name)
        if known is not None and time.monotonic() - known[0] < MANIFEST_KEPT_S:
            return known[1]
        with translated(self.url):
            found = manifests.read(self.redis, self.keys, name)
        self._manifests[name] = (time.monotonic(), found)
        return found

    def graph(self, name: str, compiled: CompiledGraph | None = None) -> RemoteGraph:
        """A graph whose runs the workers do. With the `compiled` graph at hand, values are typed."""
        from .remote import RemoteGraph

        return RemoteGraph(self, name, compiled.spec.named(name) if compiled is not None else None)

    # runs

    def submit(
        self,
        graph: str,
        input: object,
        *,
        thread_id: object = None,
        run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        context: Any = None,
        tags: Sequence[str] = (),
        multitask_strategy: Mode = "enqueue",
        actor: str = "",
        stream_mode: str | Sequence[str] = (),
        subgraphs: bool = False,
        durability: str | None = None,
        fairness_key: str | int | None = None,
    ) -> Run:
        """Record a run, for the workers to do. When this returns, no death of any process loses it.

        `input`: a dict that fits the graph's input schema. `thread_id`: str, int or UUID; without one the thread's id
        is the run's. `run_id`: makes it idempotent: the same input attaches to the known run. `multitask_strategy` says
        what happens on a busy thread: "enqueue" (it waits behind the run under way and those that wait already),
        "reject" (ThreadBusy), "interrupt" (the run under way is stopped, what it finished stays, and this one begins),
        "rollback" (the same, but the thread is set back to where it was before that run). `stream_mode`: "custom" and
        "messages", if somebody is to hear what nodes say while they run, and with `subgraphs` also the nodes of graphs
        that are nodes; "tasks" or "debug", if they are to tell of calls of `@task`. All else that modes tell needs no
        asking. `durability`: what each step is promised, and this call for the
        run's beginning: "commit", "fsync" (it is on disk; needs `appendfsync always`) or "replicas=N" (N replicas have
        it); by default what the graph says. What is written and not kept so is told by a DurabilityWarning.
        `fairness_key`: whose turns the run's tasks take where many wait in a queue: each key has one in turn, however
        many runs it has; it is the `fairness_key` of the config's `configurable`.

        Raises UnknownGraph, InvalidInput, EmptyInputError, InvalidThreadId, RunConflict, ThreadBusy, TooLarge;
        ServerUnsuitable for a durability that the server can't keep.
        """
        said = Config.of(
            config, context=context, metadata=metadata, tags=tags, actor=actor, multitask_strategy=multitask_strategy,
            live=asked_modes(check_modes(stream_mode)), subgraphs=subgraphs, durability=durability,
            fairness_key=fairness_key,
        )  # fmt: skip
        return self.begin(graph, input, said, thread_id=thread_id, run_id=run_id)

    def begin(
        self,
        graph: str,
        input: object,
        said: Config,
        *,
        thread_id: object = None,
        run_id: str | None = None,
        spec: GraphSpec | None = None,
        on: On | None = None,
    ) -> Run:
        """`submit` with a config that is read already, and with the graph's types where they are known.

        `on`: the earlier checkpoint that the input is applied to; ThreadBusy then, if a run is under way.
        """
        run = _run_id(run_id, said)
        given = said.thread_id if thread_id is None else thread_id
        thread = begun_thread_text(run if given is None else given)
        if spec is not None:
            said = said.promised(spec.durability)
            if missing := self._lacking(thread, spec.lacking(input), on):
                raise spec.lacks(missing)
            return self.started(start_of(spec, thread, run, input, said, "input", on=on), Reading(spec))
        known = self.manifest(graph)
        said = said.promised(known.durability)
        form, writes = take(known, known.keyed(input), lambda names: self._lacking(thread, names, on))
        start = start_with(
            said.record("input", form), writes, thread=thread, run=run, graph=known.name, queue=known.queue,
            mode=said.multitask_strategy, on=on,
        )  # fmt: skip
        return self.started(start, known.reading)

    def _lacking(self, thread: str, names: Sequence[str], on: On | None = None) -> Sequence[str]:
        """Which of these keys have no value on a thread. None while a run is under way, for it may write them: the
        input waits behind it, and is looked at again when its turn comes."""
        if not names:
            return ()
        with translated(self.url):
            if self.redis.hget(self.keys.thread(thread), "status") == b"running":
                return ()
            head = self.log_store.head(thread)
            have = state_at(self.log_store, thread, on and on.n).channels if head is not None and head.n else {}
        return [name for name in names if name not in have]

    def started(self, start: Start, reading: Reading) -> Run:
        """Record a run that is made already. Raises RunConflict, ThreadBusy, EmptyInputError, LogError, ServerError."""
        thread = start.thread
        self.promises.check(start.durability)
        try:
            answer = begun(self.log_store, start, self.moves.start)
        except CorruptEntry as error:
            raise self._unreadable(thread, error) from error
        match answer.status:
            case "started" | "queued" | "attached":
                self.confirm(start.durability, thread, f"the beginning of run {start.run!r}")
                return Run(self, thread, start.run, answer.entry, reading, start.durability)
            case "conflict":
                what = f"the run id {start.run!r} was used with another input"
                raise RunConflict(what, thread=thread, fix="give a new run_id, or leave it out")
            case "busy":
                raise ThreadBusy("a run is under way on the thread", thread=thread, fix="wait for it, or cancel it")
            case "nothing" if start.answers:
                what = "no question waits on the thread: it was answered already, or its run was given up"
                raise InvalidResume(what, thread=thread, fix="`everstep state THREAD` shows where it stands")
            case "nothing":
                raise EmptyInputError("nothing to continue on the thread", thread=thread, fix="submit an input")
            case "asked":
                what = "all that is open on the thread waits for answers"
                raise EmptyInputError(what, thread=thread, fix="`everstep state` shows the questions, resume answers")
            case status:
                raise refused(status, thread) or self._unreadable(thread)

    def confirm(self, durability: str, thread: str, what: str) -> None:
        """Wait until all that was committed before this call is kept as a run was promised; else warn."""
        if durability != COMMIT:
            warn(self.promises.kept((durability,)), f"thread {thread!r}: {what}")

    def _unreadable(self, thread: str, error: EverstepError | None = None) -> Exception:
        """A thread that takes no entry (`error`), or that no rebuild could adopt: reading it says which entry it is."""
        from ..reading.derive import derive

        with translated(self.url):
            derive(self.log_store, thread)
        if error is not None:
            return error
        return ServerUnavailable("the indexes could not be rebuilt", thread=thread, fix="see `everstep doctor`")

    def run(self, thread_id: object, run_id: str | None = None) -> Run:
        """A run that is known already; without a `run_id` the thread's last one. Raises UnknownThread, UnknownRun."""
        thread = thread_id_text(thread_id)
        with translated(self.url):
            run, graph = self._thread(thread, "run", "graph")
            wanted = run_id or run
            _, entry = self.run_status(thread, wanted)
            return Run(self, thread, wanted, entry, self.reading(graph))

    def run_status(self, thread: str, run: str) -> tuple[str, str]:
        """(status, entry it began with) of a run. Raises UnknownThread, UnknownRun."""
        with translated(self.url):
            found = self.redis.hget(self.keys.runs(thread), run)
            if found is None:
                self._thread(thread, "run")
                found = self.redis.hget(self.keys.runs(thread), run)
        if found is None:
            raise UnknownRun(f"no run {run!r}", thread=thread, fix=f"`everstep log {quote(thread)}` shows its runs")
        status, entry, *_ = found.decode().split(" ")
        return status, entry

    def _durability(self, graph: str) -> str:
        """What a graph says of the durability of its runs, where it is published."""
        return self.manifest(graph).durability if self.redis.exists(self.keys.graph(graph)) else COMMIT

    def reading(self, graph: str) -> Reading:
        """How the values of a graph's threads are read without its code."""
        known = self.redis.exists(self.keys.graph(graph))
        return self.manifest(graph).reading if known else Reading()

    def retry(
        self,
        thread_id: object,
        run_id: str | None = None,
        *,
        stream_mode: str | Sequence[str] = (),
        subgraphs: bool = False,
        durability: str | None = None,
    ) -> Run:
        """Continue what failed, was cancelled or reached its limit, as a new run; done tasks are not done again.

        `run_id`: the run that is meant; Superseded if the thread has gone on with another one since. `stream_mode`,
        `subgraphs`, `durability`: as in `submit`. Raises
        ThreadBusy while a run is under way, EmptyInputError if nothing is left to do, UnknownThread.
        """
        thread = thread_id_text(thread_id)
        with translated(self.url):
            last, graph, queue, status = self._thread(thread, "run", "graph", "queue", "status")
            if run_id is not None and run_id != last:
                self.run_status(thread, run_id)
                what = f"the run {run_id!r} has been replaced by {last!r}"
                raise Superseded(what, thread=thread, fix="submit its input again, or retry without a run id")
            if status == "done":
                raise EmptyInputError("nothing to retry: the last run is done", thread=thread, fix="submit an input")
            live = asked_modes(check_modes(stream_mode))
            heard = Config.of(None, live=live, subgraphs=subgraphs, durability=durability)
            return self.proceed(thread, graph, queue, heard.promised(self._durability(graph)))

    def resume(
        self,
        thread_id: object,
        answer: Any = None,
        *,
        update: Any = None,
        goto: Send | str | Sequence[Send | str] = (),
        run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        context: Any = None,
        actor: str = "",
        stream_mode: str | Sequence[str] = (),
        subgraphs: bool = False,
        durability: str | None = None,
    ) -> Run:
        """Answer what a run asked with `interrupt()`, as a new run that goes on there; durable when it returns.

        `answer`: a value, if one question waits; else `{question id: value, ...}`. The ids are in
        `state(thread_id).interrupts`. With a `run_id` it may be sent again: the same answer attaches.

        `update`: keys to write to the state as it stands, through their reducers; `goto`: nodes or Sends to run beside
        what is open. With either the thread may be done, and `answer` None says that nothing is answered.
        `stream_mode`, `subgraphs`, `durability`: as in `submit`.

        Raises InvalidResume (several questions and no id, an unknown id, an answer that does not fit its schema),
        ThreadBusy, EmptyInputError (the thread is done), UnknownThread, RunConflict; InvalidUpdateError for a key or a
        node that the graph does not have, UnknownGraph.
        """
        thread = thread_id_text(thread_id)
        with translated(self.url):
            graph, queue = self._thread(thread, "graph", "queue")
            live = asked_modes(check_modes(stream_mode))
            said = Config.of(
                config, context=context, actor=actor, live=live, subgraphs=subgraphs, durability=durability
            ).promised(self._durability(graph))
            command: Command[Any] = Command(update=update, goto=goto, resume=answer)
            if commands(command):
                lore = ManifestLore(self.manifest(graph))
                return self.command(thread, lore, command, said, run_id, self.reading(graph))
            return self.answer(thread, graph, queue, answer, said, run_id, self.reading(graph))

    def command(
        self, thread: str, lore: Lore, command: Command[Any], said: Config, run_id: str | None, reading: Reading
    ) -> Run:
        """A run that begins with a Command: an update, nodes to go to, perhaps an answer. Raises as `resume`."""
        run, log = _run_id(run_id, said), for_user(self.log_store, self.url)
        try:
            start = command_of(log, thread, run, command, said, lore, codec=reading.codec)
        except (InvalidResume, InvalidUpdateError):
            if not self._knows(thread, run):
                raise
            start = command_of(log, thread, run, command, said, lore, codec=reading.codec, again=True)
        return self.started(start, reading)

    def answer(
        self, thread: str, graph: str, queue: str, answer: Any, said: Config, run_id: str | None, reading: Reading
    ) -> Run:
        """`resume` with a config that is read already, and with the graph's types where they are known."""
        run, log = _run_id(run_id, said), for_user(self.log_store, self.url)
        told: dict[str, Any] = {"graph": graph, "queue": queue, "codec": reading.codec}
        try:
            start = resume_of(log, thread, run, answer, said, **told)
        except InvalidResume:
            if not self._knows(thread, run):
                raise
            start = resume_of(log, thread, run, answer, said, again=True, **told)
        return self.started(start, reading)

    def _knows(self, thread: str, run: str) -> bool:
        with translated(self.url):
            return bool(self.redis.hexists(self.keys.runs(thread), run))

    def proceed(
        self,
        thread: str,
        graph: str,
        queue: str,
        said: Config,
        run_id: str | None = None,
        reading: Reading | None = None,
    ) -> Run:
        """A run that continues what is open on a thread at rest."""
        run = _run_id(run_id, said)
        with translated(self.url):
            looking = looking_of(self.log_store, thread, run, said, graph=graph, queue=queue)
        plain = start_with(said.record("continue"), (), thread=thread, run=run, graph=graph, queue=queue)
        return self.started(looking or plain, reading or self.reading(graph))

    def cancel(self, thread_id: object, run_id: str | None = None, *, actor: str = "") -> bool:
        """Revoke a run, by default the one under way; nothing of it is committed after this. False: it was at rest.

        Raises UnknownThread, UnknownRun.
        """
        thread = thread_id_text(thread_id)
        with translated(self.url):
            if not self.redis.exists(self.keys.log(thread)):  # nor is anything made in a namespace that nobody uses
                raise unknown_thread(thread)
        try:
            status = self.moves.cancel(thread, run_id or "", check_text(actor, "actor"))
        except CorruptEntry as error:
            raise self._unreadable(thread, error) from error
        if status == "unknown":
            with translated(self.url):
                self._thread(thread, "run")
            raise UnknownRun(f"no run {run_id!r}", thread=thread, fix=f"`everstep log {quote(thread)}` shows its runs")
        return status == "cancelled"

    # threads

    def threads(self, status: str | None = None, limit: int = 50) -> list[ThreadInfo]:
        """Threads of one status, or of all: those that changed last come first."""
        found: list[tuple[float, str, str]] = []
        with translated(self.url):
            for word in (status,) if status else STATUSES:
                rows = self.redis.zrevrange(self.keys.threads(word), 0, limit - 1, withscores=True)
                found += [(score, member.decode("utf-8", "surrogatepass"), word) for member, score in rows]
            return self._infos(sorted(found, reverse=True)[:limit])

    def _infos(self, found: Sequence[tuple[float, str, str]]) -> list[ThreadInfo]:
        pipe = self.redis.pipeline(transaction=False)
        for _, thread, _ in found:
            pipe.hmget(self.keys.thread(thread), "run", "graph", "n", "step", "left", "failed", "asked")
        infos: list[ThreadInfo] = []
        for (score, thread, status), row in zip(found, pipe.execute(), strict=True):
            run, graph, *numbers = ((x or b"").decode() for x in row)
            n, step, *open_now = (int(x or 0) for x in numbers)
            infos.append(ThreadInfo(thread, status, run, graph, n, step, sum(open_now), int(score)))
        return infos

    def _thread(self, thread: str, *names: str) -> list[str]:
        """Fields of a thread's hash. If our indexes were lost they are rebuilt first. Raises UnknownThread, and
        InvalidInput for a thread that a node keeps, which has none."""
        check_thread(thread)
        values = self.redis.hmget(self.keys.thread(thread), *names)
        if values[0] is None and self.redis.exists(self.keys.log(thread)):
            self.recovery()
            values = self.redis.hmget(self.keys.thread(thread), *names)
            if values[0] is None:
                raise self._unreadable(thread)
        if values[0] is None:
            raise unknown_thread(thread)
        return [(value or b"").decode() for value in values]

    def state(self, thread_id: object, checkpoint_id: str | None = None, *, subgraphs: bool = False) -> StateSnapshot:
        """A thread as it stands, or at a checkpoint, as plain data; with `subgraphs` the states of what its tasks
        called are in `tasks[i].state`. Raises UnknownThread, NotFound."""
        thread = thread_id_text(thread_id)
        with translated(self.url):
            if not self.redis.exists(self.keys.log(thread)):
                raise unknown_thread(thread)
            found = snapshot(self.log_store, thread, checkpoint_id, subgraphs=subgraphs)
            if found.created_at is None and not self.redis.exists(self.keys.log(thread)):  # deleted meanwhile
                raise unknown_thread(thread)
            return found

    def history(self, thread_id: object, limit: int | None = None) -> Iterator[StateSnapshot]:
        """The checkpoints of a thread, newest first, as plain data. Raises UnknownThread."""
        thread = thread_id_text(thread_id)
        with translated(self.url):
            if not self.redis.exists(self.keys.log(thread)):
                raise unknown_thread(thread)
        return snapshots(self.log_store, thread, limit)

    def log(self, thread_id: object) -> Iterator[e.Entry]:
        """All entries of a thread's log, oldest first. Raises UnknownThread."""
        thread = thread_id_text(thread_id)
        with translated(self.url):
            if not self.redis.exists(self.keys.log(thread)):
                raise unknown_thread(thread)
        return self.log_store.pages(thread)


def _run_id(given: str | None, said: Config) -> str:
    """The run id that was given, or a new one. Raises InvalidInput."""
    return check_run_id(given if given is not None else said.run_id or new_id())
