"""Judge and plan: from what an attempt came to, to the commit that says so.

error ──► retry | failed
question ──► paused
a graph as a node ──► called, until that graph's run rests
a Command for the parent ──► left: the run ends here
value ──► a task among several ──► task_done
      └─► the last one, or the join ──► plan ──► the next checkpoint and its tasks
                                         └──► unplanned: the writes exclude each other
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.delta import (
    APPEND,
    DELETE,
    SET,
    TAKE,
    TAKE_APPEND,
    Delta,
    diff,
    encode_delta,
    encode_state,
    fold,
    refs,
)
from everstep_checkpoint.errors import EverstepError, InvalidUpdateError, TooLarge
from everstep_checkpoint.log import Log
from everstep_checkpoint.replay import Channels, carried, input_writes, step_of

from ..graph.asking import CalledAsked, GraphInterrupt, Interrupt, Question
from ..graph.results import ForParent
from ..graph.retry import next_delay
from ..graph.runtime import END, START, Send
from ..graph.spec import NodeSpec, Row
from ..graph.untracked import marked
from ..moves.contract import HANDLER, JOIN_TASK, START_NODE, START_TASK, UPDATE_TASK, Commit, Lease, Moves
from ..moves.record import stops_at
from ..reading.questions import interrupts
from .calling import Called, ChildAsked, ChildFailed
from .clearing import cleared
from .effects import Fenced
from .loading import FRESH_STEP, Loader, Stand, size_of
from .outcome import Raised, raised
from .plan import Done, Planned, Returned, armed, plan
from .sending import named
from .updating import clears, dones, nodes_of, shown_node
from .versions import lacks

if TYPE_CHECKING:
    from .perform import Attempt, Result

STATE_MAX = 8 * 2**20
SNAPSHOT_EVERY = 256
SNAPSHOT_EVERY_LARGE = 4096
LARGE_STATE = 64 * 1024
DELTAS_MIN = 32 * 1024
TAKE_FROM_BYTES = 24
_json = json.JSONEncoder(separators=(",", ":")).encode
Parts = list[tuple[str, str, int, str]]  # entry id, run-length tasks JSON, count, sum


class Settler:
    """Makes commits. Holds what a commit's success will put into the cache, until it succeeds."""

    def __init__(self, moves: Moves, log: Log, loader: Loader, by: str, parks: bool = False) -> None:
        self.parks = parks
        self.moves = moves
        self.log = log
        self.loader = loader
        self.by = by
        self._coming: dict[str, tuple[int, str, Stand, int]] = {}  # n, digest, stand, its size

    def settle(self, attempt: Attempt, result: Result) -> Commit:
        commit = self._settled(attempt, result)
        return commit._replace(ahead=tuple(attempt.ahead)) if attempt.ahead else commit

    def _settled(self, attempt: Attempt, result: Result) -> Commit:
        if result.error is not None:
            return self._stopped(attempt, result, result.error)
        try:
            if attempt.lease.task == JOIN_TASK:
                return self._join(attempt)
            assert result.returned is not None
            return self._done(attempt, result, result.returned)
        except Fenced:
            return Commit(attempt.lease, "done")
        except EverstepError as error:
            from everstep_checkpoint.errors import ServerError

            if isinstance(error, ServerError):
                raise
            return self._failed(attempt, result, raised(None, error, 1, 0.0))

    def _stopped(self, attempt: Attempt, result: Result, error: BaseException) -> Commit:
        """What was raised, by the node or by us to leave it."""
        match error:
            case Fenced():
                return Commit(attempt.lease, "done")
            case GraphInterrupt() as asked:
                return self._paused(attempt, result, asked.question)
            case Called() as called:
                return self._called(attempt, result, called)
            case ChildAsked() as waits:
                return self._child_paused(attempt, result, waits)
            case CalledAsked() as waits:
                answers = attempt.lease.answers.split()
                kept = [answers[at] for at in waits.kept]
                return self._paused_with(attempt, result, waits.questions, waits.called, kept)
            case ForParent() as command if attempt.record.parent:
                return self._left(attempt, result, command)
            case raised_error:
                return self._raised(attempt, result, raised_error)

    def keep(self, commit: Commit, *, passed: bool) -> None:
        """The commit is settled. If it passed, its checkpoint is where the thread stands."""
        coming = self._coming.pop(commit.lease.token, None)
        if passed and coming is not None:
            self.loader.keep(commit.lease.thread, *coming)

    # judge

    def _task_fact(self, kind: str, lease: Lease, ms: int, **more: e.Field | None) -> e.Fields:
        return e.fact(
            kind, lease.run, by=self.by, task=lease.task, attempt=lease.attempt, token=lease.token, node=lease.node,
            queue=lease.queue, started=lease.at_ms, ms=ms, **more,
        )  # fmt: skip

    def _raised(self, attempt: Attempt, result: Result, raised_error: BaseException) -> Commit:
        error = _error_of(self.log, attempt, _plain(raised_error))
        handler = attempt.handler_of(raised_error) if error.retry_s is None else None
        if handler is not None:
            return self._handled(attempt, result, error, handler)
        return self._failed(attempt, result, error)

    def _failed(self, attempt: Attempt, result: Result, error: Raised) -> Commit:
        lease = attempt.lease
        told = {"type": error.error_type, "text": error.text, "traceback": error.traceback}
        where = lease.node
        if isinstance(result.error, ChildFailed) and result.error.node:
            told["node"] = result.error.node
            where = f"{where}/{result.error.node}"
        said = json.dumps(told)
        reason = f"{where}: {error.error_type}: {error.text}"[:2000]
        if error.retry_s is None:
            return Commit(
                lease, "failed", (self._task_fact("task_failed", lease, result.ms, error=said),), reason=reason
            )
        delay_ms = int(error.retry_s * 1000)
        due = lease.at_ms + result.ms + delay_ms
        fact = self._task_fact("task_failed", lease, result.ms, error=said, retry_at=due)
        return Commit(lease, "retry", (fact,), reason=reason, delay_ms=delay_ms)

    def _handled(self, attempt: Attempt, result: Result, error: Raised, handler: NodeSpec) -> Commit:
        """The node failed for good, and its handler speaks for it: a task of its own in the same step."""
        lease, timeout_s = attempt.lease, handler.timeout_s or 0
        said = json.dumps({"type": error.error_type, "text": error.text, "traceback": error.traceback})
        failed = self._task_fact("task_failed", lease, result.ms, error=said, handler=handler.name)
        added = e.fact(
            "task_added", lease.run, task=HANDLER + lease.task, node=handler.name, queue=lease.queue,
            timeout_s=str(timeout_s) if timeout_s else None,
        )  # fmt: skip
        return Commit(lease, "handled", (failed, added), handler=(handler.name, lease.queue, timeout_s))

    def _paused(self, attempt: Attempt, result: Result, question: Question) -> Commit:
        """The attempt asks something: its task waits for the answer, without a job."""
        lease = attempt.lease
        answers = lease.answers.split()
        kept = " ".join(answers[at] for at in question.kept)
        wrong = json.dumps({"type": "InvalidResume", "text": question.error[:2000]}) if question.error else None
        fact = self._task_fact(
            "task_paused", lease, result.ms, question=question.id, kept=kept or None, error=wrong,
            schema=json.dumps(question.schema) if question.schema is not None else None, asks=e.wrap(question.value),
        )  # fmt: skip
        return Commit(lease, "paused", (fact,), question=question.id, kept=kept)

    def _called(self, attempt: Attempt, result: Result, called: Called) -> Commit:
        """The attempt called a run on another thread: its task waits for that one's rest, without a job."""
        lease, call, kept = attempt.lease, called.call, " ".join(called.kept)
        fact = self._task_fact("task_called", lease, result.ms, called=f"{call.run} {call.thread}", kept=kept or None)
        return Commit(lease, "called", (fact,), kept=kept, call=call)

    def _left(self, attempt: Attempt, result: Result, command: ForParent) -> Commit:
        """The attempt ends its run with a Command for the parent: nothing of the step is applied here."""
        said = e.wrap(command.command)
        fact = self._task_fact("run_rested", attempt.lease, result.ms, status="done", command=said)
        return Commit(attempt.lease, "left", (fact,))

    def _child_paused(self, attempt: Attempt, result: Result, waits: ChildAsked) -> Commit:
        """What the task called waits."""
        found = interrupts(waits.told, attempt.spec.codec)
        return self._paused_with(attempt, result, found, attempt.lease.called, waits.kept)

    def _paused_with(
        self, attempt: Attempt, result: Result, found: Sequence[Interrupt], called: str, answers: Sequence[str]
    ) -> Commit:
        """What the attempt called waits: its questions, if it has any, are the task's. `answers`: those it keeps."""
        lease, kept = attempt.lease, " ".join(answers)
        ids = " ".join(each.id for each in found)
        said: e.Fields = {"called": called}
        if kept:
            said["kept"] = kept
        if found:
            asks = attempt.spec.codec.encode([each.value for each in found], "the questions")
            schemas = json.dumps([each.response_schema for each in found])
            said |= {"question": ids, "schema": schemas, "asks": e.wrap(asks)}
        fact = self._task_fact("task_paused", lease, result.ms, **said)
        return Commit(lease, "paused", (fact,), question=ids, kept=kept)

    def _done(self, attempt: Attempt, result: Result, value: Returned) -> Commit:
        parts = self._parts(attempt, value.sends)
        if attempt.lease.plans:
            return self._close_alone(attempt, result, value, parts)
        fact = self._done_fact(attempt.lease, result, value, parts)
        return Commit(attempt.lease, "done", (fact,))

    def _done_fact(self, lease: Lease, result: Result, value: Returned, parts: Parts) -> e.Fields:
        refs = json.dumps([[ref, count] for ref, _, count, _ in parts]) if parts else None
        goto = json.dumps(value.goto) if value.goto else None
        fact = self._task_fact(
            "task_done", lease, result.ms, goto=goto, parts=refs, writes=e.pack_writes(value.writes),
            cached=1 if result.cached else None,
        )  # fmt: skip
        return e.summed(fact)

    def _parts(self, attempt: Attempt, sends: Sequence[Send]) -> Parts:
        """Write Sends as parts, at most 128 tasks or 64 KB each, before anything names them."""
        if not sends:
            return []
        spec = attempt.spec
        encoded = [
            (s.node, spec.codec.encode(marked(s.arg, spec.untracked), f"the argument of Send({s.node!r})"))
            for s in sends
        ]
        places = [(s.node, spec.queue_of(s.node), s.timeout_s or spec.node(s.node).timeout_s or 0) for s in sends]
        return self._write_parts(attempt, named(encoded, places))

    def _write_parts(self, attempt: Attempt, chunks: Sequence[tuple[str, Sequence[tuple[str, bytes]]]]) -> Parts:
        """Parts of Sends, each with its tasks as JSON, under the attempt's token. Raises Fenced."""
        lease = attempt.lease
        pieces = [
            e.summed(
                e.fact("part", lease.run, task=lease.task, token=lease.token, tasks=tasks, sends=e.pack_sends(chunk))
            )
            for tasks, chunk in chunks
        ]
        ids = self.moves.part(lease, pieces) if pieces else []
        if len(ids) < len(pieces):
            raise Fenced
        attempt.ahead += ids
        return [
            (ref, tasks, len(chunk), str(piece["sum"]))
            for ref, piece, (tasks, chunk) in zip(ids, pieces, chunks, strict=True)
        ]

    # plan

    def _close_alone(self, attempt: Attempt, result: Result, value: Returned, parts: Parts) -> Commit:
        lease, nodes = attempt.lease, attempt.given.nodes
        if nodes and clears(nodes):
            return self._clear(attempt, result)
        done = dones(lease.task, nodes, value) if nodes else [Done(lease.task, lease.node, value.writes, value.goto)]
        try:
            planned = plan(attempt.spec, attempt.stand.channels, done, edits=bool(nodes))
        except InvalidUpdateError as error:
            return self._unplanned(attempt, result, value, parts, error)
        if lease.task == START_TASK:
            return self._begin(attempt, result, planned, parts, value)
        source = "update" if lease.task == UPDATE_TASK else "loop"
        step = max(lease.base, -1) + 1 if lease.task == UPDATE_TASK else attempt.stand.step + 1
        said = _said(lease, result.ms, shown_node(nodes) if nodes else lease.node)
        if result.cached:
            said["cached"] = 1
        return self._checkpoint(attempt, planned, parts, source, step, said, value.writes)

    def _clear(self, attempt: Attempt, result: Result) -> Commit:
        """An update as END: a checkpoint without what was open. Send parts that still come next are written again."""
        lease, loader = attempt.lease, self.loader
        planned, refs = cleared(self.log, attempt.spec, lease, attempt.stand)
        entries = [loader.entry(lease, ref, lease.digest) for ref in refs]
        parts = self._write_parts(attempt, [(part.text("tasks"), part.sends()) for part in entries])
        step = max(lease.base, -1) + 1
        said = _said(lease, result.ms, END)
        return self._checkpoint(attempt, planned, parts, "update", step, said, ())

    def _unplanned(
        self, attempt: Attempt, result: Result, value: Returned, parts: Parts, error: InvalidUpdateError
    ) -> Commit:
        """The writes exclude each other, or a reducer raised: the outcome is kept, the step stays open at its join."""
        lease = attempt.lease
        why = raised(None, error, 1, 0.0)
        said = json.dumps({"type": why.error_type, "text": why.text, "traceback": why.traceback})
        join = e.fact("task_failed", lease.run, by=self.by, task=JOIN_TASK, attempt=1, node="__join__", error=said)
        done = self._done_fact(lease, result, value, parts)
        return Commit(lease, "unplanned", (done, join), reason=f"{why.error_type}: {why.text}"[:2000])

    def _join(self, attempt: Attempt) -> Commit:
        """The join of a wide step: all outcomes in task order, applied at once."""
        lease, spec = attempt.lease, attempt.spec
        facts = _done_facts(self.log, lease)
        self._leave_to_others(attempt, facts)
        done = [Done(f.text("task"), f.text("node"), _filled(f), tuple(f.json("goto") or ())) for f in facts]
        if lease.width == 1 and done and done[0].task == UPDATE_TASK:
            nodes = nodes_of(self.loader.entry(lease, lease.rec), done[0].node)
            done = dones(UPDATE_TASK, nodes, Returned(done[0].writes, done[0].goto, ()))
        planned = plan(spec, attempt.stand.channels, done, edits=bool(done) and done[0].task == UPDATE_TASK)
        parts: Parts = []
        for fact in facts:
            for ref, count in fact.json("parts") or ():
                part = self.loader.entry(lease, ref, fact.text("token") or lease.token)
                parts.append((ref, part.text("tasks"), count, part.text("sum")))
        said: e.Fields = {"task": JOIN_TASK, "attempt": lease.attempt, "token": lease.token, "started": lease.at_ms}
        if lease.width == 1 and done and done[0].task == START_TASK:
            return self._begin(attempt, None, planned, parts, Returned(done[0].writes, done[0].goto, ()))
        if lease.width == 1 and done and done[0].task == UPDATE_TASK:
            return self._checkpoint(attempt, planned, parts, "update", max(lease.base, -1) + 1, said, None, facts)
        return self._checkpoint(attempt, planned, parts, "loop", attempt.stand.step + 1, said, None, facts)

    def _leave_to_others(self, attempt: Attempt, facts: Sequence[e.Entry]) -> None:
        """A sibling that a worker of another version ran leads to what this version lacks: whoever serves that joins.
        Raises Fenced then."""
        lease, spec = attempt.lease, attempt.spec
        if not self.parks or (lacking := lacks(spec, facts)) is None:
            return
        node, what = lacking
        self.moves.release(
            self.by, [lease.token], "parked", f"a step leads to {what}, which {spec.version} lacks", node
        )
        raise Fenced

    def _begin(
        self, attempt: Attempt, result: Result | None, planned: Planned, parts: Parts, value: Returned
    ) -> Commit:
        """The commit of `start`: LangGraph's two checkpoints, the input at step -1 and what it led to at step 0. An
        entrypoint's input leads to its node at once: it is one."""
        lease, stand = attempt.lease, attempt.stand
        payload = self.loader.entry(lease, lease.rec)
        said = _said(lease, result.ms if result else 0, START_NODE)
        waits = START_TASK in stand.order and payload.text("run") == stand.run
        before = stand.channels if waits else armed(attempt.spec, stand.channels)
        delta = self._input_delta(attempt, stand.logged if waits else before, planned.channels, value, payload)
        taken = [payload.text("sum")] if refs(delta) else []
        if waits:  # the checkpoint of this very input is there
            return self._checkpoint(
                attempt, planned, parts, "loop", stand.step + 1, said, None, delta=delta, taken=taken
            )
        base = max(lease.base, FRESH_STEP)
        if attempt.spec.direct:
            return self._checkpoint(attempt, planned, parts, "input", base + 1, said, None, delta=delta, taken=taken)
        first, grown = self._input_checkpoint(attempt, before, base + 1)
        return self._checkpoint(
            attempt,
            planned,
            parts,
            "loop",
            base + 2,
            said,
            None,
            parent=(str(first["digest"]), lease.n + 1),
            first=first,
            delta=delta,
            taken=taken,
            since=grown,
        )

    def _input_checkpoint(self, attempt: Attempt, channels: Channels, step: int) -> tuple[e.Fields, tuple[int, int]]:
        """The checkpoint of an input, and (checkpoints, bytes) since the last snapshot; a branch is one itself."""
        lease, stand = attempt.lease, attempt.stand
        said: e.Fields = {
            **e.BEGINS, "source": "input", "step": step, "graph": attempt.spec.version, "run": lease.run, "by": self.by,
            "next": _start_next(lease.queue),
        }  # fmt: skip
        if stand.on is not None:
            whole, pieces = self._snapshot(attempt, channels, stand.on[1], None)
            return e.digested(stand.on[1], lease.n + 1, pieces, said | whole), (0, 0)
        before = {} if stand.step == FRESH_STEP or lease.n == 0 else stand.logged
        said["delta"] = e.wrap(encode_delta(_delta(before, channels)))
        return e.digested(lease.digest, lease.n + 1, (), said), (stand.since_snapshot, stand.delta_bytes)

    def _input_delta(
        self, attempt: Attempt, before: Channels, after: Channels, value: Returned, payload: e.Entry
    ) -> Delta:
        """The delta of an input: a value that stands in the run's own fact is taken from there."""
        delta = _delta(before, after)
        if "sum" not in payload.raw:
            return delta
        stored = dict(attempt.given.input or input_writes(payload))
        for name in delta:
            given = stored.get(name)
            if given is None or len(given) < TAKE_FROM_BYTES:
                continue
            adds: list[Any] = [TAKE_APPEND, [payload.id], name]
            if given == after[name]:
                delta[name] = [TAKE, payload.id, name, []]
            elif _gives(before, name, adds, {payload.id: given}, after[name]):
                delta[name] = adds
        return delta

    def _checkpoint(
        self,
        attempt: Attempt,
        planned: Planned,
        parts: Parts,
        source: str,
        step: int,
        said: e.Fields,
        writes: Sequence[tuple[str, bytes]] | None,
        facts: Sequence[e.Entry] = (),
        *,
        parent: tuple[str, int] | None = None,
        first: e.Fields | None = None,
        delta: Delta | None = None,
        taken: Sequence[str] = (),
        since: tuple[int, int] | None = None,
    ) -> Commit:
        lease, stand = attempt.lease, attempt.stand
        on, n = parent or (stand.on[1] if stand.on else lease.digest, lease.n)
        if delta is None:
            before = {} if lease.n == 0 and first is None else stand.logged
            delta = _delta(before, planned.channels)
            if facts:
                _take(delta, stand.logged, planned.channels, facts)
        size = size_of(planned.channels)
        _check_size(attempt, size)
        pulls, rows, said_next = attempt.spec.placed(planned.pulls)
        sums, sent = [*taken, *(_sums(delta, facts, taken) if facts else ())], tuple[tuple[str, int], ...]()
        if parts:
            sent = tuple((ref, count) for ref, _, count, _ in parts)
            sums += [s for *_, s in parts]
            rows = (*rows, *sent)
            said_next = _json(rows)
        body = encode_delta(delta)
        fields: e.Fields = {
            **e.BEGINS, "source": source, "step": step, "graph": attempt.spec.version, "run": lease.run, "by": self.by,
            **said, "next": said_next,
        }  # fmt: skip
        count, grown = since or (stand.since_snapshot, stand.delta_bytes)
        count, grown = count + 1, grown + len(body)
        branches = first is None and stand.on is not None
        if branches or (first is None and _snapshot_due(size, count, grown)):  # parts must lie in the step just closed
            whole, pieces = self._snapshot(attempt, planned.channels, on, writes)
            fields |= whole
            sums = [*(s for *_, s in parts), *pieces]
            count = grown = 0
        else:
            fields["delta"] = e.wrap(body)
            if writes is not None:
                fields["writes"] = e.pack_writes(_referred(writes, delta))
        digest = str(e.digested(on, n + 1, sums, fields)["digest"])
        stop, why = self._stop(attempt, step, rows, planned, parts, facts)
        new = Stand(planned.channels, step, sent, pulls, count, grown, lease.run)
        self._coming[lease.token] = (n + 1, digest, new, size)
        entries, sends = (fields,) if first is None else (first, fields), {ref: tasks for ref, tasks, *_ in parts}
        return Commit(lease, "next", entries, (n + 1, digest, step), rows, sends, stop, why)

    def _stop(
        self,
        attempt: Attempt,
        step: int,
        rows: Sequence[Row],
        planned: Planned,
        parts: Parts,
        facts: Sequence[e.Entry],
    ) -> tuple[Any, str]:
        """Does the run rest here although tasks come next: at a breakpoint, its recursion limit, or after an update?

        In LangGraph's order: after a node, the limit, before a node.
        """
        if rows and attempt.lease.task == UPDATE_TASK:
            return "interrupted", ""
        before, after = _breakpoints(attempt)
        if rows and after:
            handled = _handled_nodes(self.log, attempt.lease, facts)
            if stops_at(planned.ran - {START} | handled, after):
                return "interrupted", ""
        limit = attempt.record.recursion_limit
        if rows and step >= attempt.lease.base + limit + 2:
            text = f"Recursion limit of {limit} reached without hitting a stop condition"
            return "failed", json.dumps({"type": "GraphRecursionError", "text": text})
        if not before:
            return "", ""
        sent = (row[0] for _, tasks, *_ in parts for row in json.loads(tasks))
        return ("interrupted" if stops_at((*planned.pulls, *sent), before) else ""), ""

    def _snapshot(
        self, attempt: Attempt, channels: Channels, parent: str, writes: Sequence[tuple[str, bytes]] | None
    ) -> tuple[e.Fields, list[str]]:
        """A checkpoint that stands alone; a large one's state goes ahead of it in parts, whose sums it covers."""
        lease, on = attempt.lease, attempt.stand.on
        payload = self.loader.entry(lease, lease.rec)
        told = payload if lease.conf == lease.rec else self.loader.entry(lease, lease.conf)
        record = told.raw.get("record", b"")
        builds_on = str(e.Address(lease.thread, *on)) if on else parent
        fields: e.Fields = {"birth": lease.birth, "record": record, "parent": builds_on, "floor": lease.rec}
        if writes is not None:
            fields["writes"] = e.pack_writes(writes)
        body = encode_state(channels)
        if len(body) <= e.PART_BYTES_MAX:
            return {**fields, "state": e.wrap(body)}, []
        pieces = [
            e.summed(
                e.fact(
                    "part", lease.run, task=lease.task, token=lease.token, state=e.wrap(body[i : i + e.PART_BYTES_MAX])
                )
            )
            for i in range(0, len(body), e.PART_BYTES_MAX)
        ]
        ids = self.moves.part(lease, pieces)
        if not ids:
            raise Fenced
        attempt.ahead += ids
        return {**fields, "parts": json.dumps(ids)}, [str(piece["sum"]) for piece in pieces]


def _said(lease: Lease, ms: int, node: str | None) -> e.Fields:
    """What a checkpoint says of the attempt that made it, and of its node, if one is told."""
    said: e.Fields = {"node": node} if node else {}
    return said | {
        "task": lease.task, "attempt": lease.attempt, "token": lease.token, "queue": lease.queue,
        "started": lease.at_ms, "ms": ms,
    }  # fmt: skip


@lru_cache(1024)
def _start_next(queue: str) -> str:
    """What comes next at the checkpoint of an input: a step with the task that applies it."""
    return json.dumps([[START_TASK, START_NODE, queue, 0]])


def _breakpoints(attempt: Attempt) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where the run stops, before and after: as it was told, else as the graph was compiled."""
    told, spec = attempt.record, attempt.spec
    before = spec.interrupt_before if told.interrupt_before is None else told.interrupt_before
    return before, spec.interrupt_after if told.interrupt_after is None else told.interrupt_after


def _error_of(log: Log, attempt: Attempt, error: Exception) -> Raised:
    """The outcome of an attempt that raised, or whose child failed: then the error is the child's."""
    failures, dice = _failures(log, attempt.lease) if attempt.broken is None else 1, random.random()  # noqa: S311 - jitter, not a secret
    if not isinstance(error, ChildFailed):
        return raised(attempt.node, error, failures, dice)
    policies = attempt.node.retry if attempt.node is not None else ()
    delay = next_delay(policies, error.likeness(policies), failures, dice)
    return Raised(error.said.error_type, error.said.text, error.said.traceback, delay)


def _plain(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(f"the node called {type(error).__name__}: {error}")


def _failures(log: Log, lease: Lease) -> int:
    """Attempts that raised in this run since the task last asked, this one included: those whose process died don't
    count, and a question is no failure. With an answer, or when somebody says to go on, LangGraph, too, counts anew."""
    if max(lease.attempt - lease.lost, 1) == 1:
        return 1
    facts = log.pages(lease.thread, f"{lease.n}-1", str(lease.n))
    kinds = [fact.kind for fact in facts if fact.text("task") == lease.task and fact.text("run") == lease.run]
    asked = len(kinds) - kinds[::-1].index("task_paused") if "task_paused" in kinds else 0
    return 1 + kinds[asked:].count("task_failed")


def _check_size(attempt: Attempt, size: int) -> None:
    if size > STATE_MAX:
        raise TooLarge(
            f"the state would have {size} bytes, the cap is {STATE_MAX}",
            thread=attempt.lease.thread,
            node=attempt.lease.node,
            fix="keep large values elsewhere and a reference in the state",
        )


def _snapshot_due(size: int, since: int, grown: int) -> bool:
    every = SNAPSHOT_EVERY_LARGE if size > LARGE_STATE else SNAPSHOT_EVERY
    return since >= every or grown > max(2 * size, DELTAS_MIN)


def _delta(before: Channels, after: Channels) -> Delta:
    """What changed, per channel."""
    delta: Delta = {}
    for name, value in after.items():
        op = diff(before.get(name), value)
        if op is not None:
            delta[name] = op
    if not before.keys() <= after.keys():
        delta.update((name, [DELETE]) for name in before if name not in after)
    return delta


def _gives(before: Channels, name: str, op: list[Any], values: Mapping[Any, bytes], after: bytes) -> bool:
    """Does the op, with these values for what it refers to, come to what is there after it?"""
    try:
        return fold(before, {name: op}, lambda ref, _channel: values[ref])[name] == after
    except EverstepError:
        return False


def _take(delta: Delta, before: Channels, after: Channels, facts: Sequence[e.Entry]) -> None:
    """Each value once: where a fact's write is the change, the delta names the fact."""
    written: dict[str, list[tuple[int, bytes]]] = {}
    for fact in facts:
        for name, value in _filled(fact):
            written.setdefault(name, []).append((fact.k, value))
    for name in delta:
        found = written.get(name, [])
        if not found or name not in after or sum(len(value) for _, value in found) < TAKE_FROM_BYTES:
            continue
        values = dict(found)
        op: list[Any] = [TAKE_APPEND, [k for k, _ in found], name]
        if len(found) == 1 and found[0][1] == after[name]:
            delta[name] = [TAKE, found[0][0], name, []]
        elif len(values) == len(found) and _gives(before, name, op, values, after[name]):
            delta[name] = op


def _sums(delta: Delta, facts: Sequence[e.Entry], taken: Sequence[str]) -> list[str]:
    by_k = {fact.k: fact for fact in facts}
    return [] if taken else [by_k[int(ref)].text("sum") for ref in refs(delta)]


def _filled(fact: e.Entry) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value) for name, value in fact.writes() if value is not None)


def _referred(writes: Sequence[tuple[str, bytes]], delta: Delta) -> list[tuple[str, bytes | None]]:
    """Writes whose value the delta carries are only named."""
    names = [name for name, _ in writes]
    found: list[tuple[str, bytes | None]] = []
    for name, value in writes:
        op = delta.get(name)
        same = op is not None and op[0] in (SET, APPEND) and carried(op) == value and names.count(name) == 1
        found.append((name, None if same else value))
    return found


def _handled_nodes(log: Log, lease: Lease, facts: Sequence[e.Entry]) -> set[str]:
    """The nodes for which their handlers spoke in this step: a stop after them counts, too (LangGraph)."""
    tasks = {lease.task, *(fact.text("task") for fact in facts)}
    spoken = {task.removeprefix(HANDLER) for task in tasks if task.startswith(HANDLER)}
    if not spoken:
        return set()
    step = step_of(log, lease.thread, lease.n)
    return {task.node for task in step.tasks if task.task in spoken}


def _done_facts(log: Log, lease: Lease) -> list[e.Entry]:
    """`task_done`s of the step in task order."""
    if not lease.n:
        step_facts = log.read(lease.thread, "0-1", "0")
        return [x for x in step_facts if x.kind == "task_done" and x.text("run")]
    step = step_of(log, lease.thread, lease.n)
    own = [x for x in step.facts if x.kind == "task_done" and x.text("task") in (START_TASK, UPDATE_TASK)]
    return own[-1:] if lease.width == 1 and own else step.outcomes
