"""The moves of a run: start, claim, commit, renew, release, cancel, sweep. The written contract is `docs/moves.md`.

    start ──► job ──claim──► lease ──commit──► done ──(last of its step)──► next checkpoint, its jobs
               ▲               │ ├──retry──► wake ──due──► job
               └──release──────┘ └──failed─► failed ──(nothing keeps the run going)──► run_rested

`RedisMoves` is the scripts; `LogMoves` the same rules over any `Log` in one process. One table of cases runs on both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from everstep_checkpoint.entries import Fields
from everstep_checkpoint.errors import InvalidInput
from everstep_checkpoint.keys import is_within
from everstep_checkpoint.replay import HANDLER as HANDLER

from ..graph.durability import COMMIT
from ..graph.limits import Limits

START_TASK = "start"
UPDATE_TASK = "update"
JOIN_TASK = "join"
START_NODE = "__start__"
JOIN_NODE = "__join__"
LEASE_MS = 10_000
MOVE_MAX = 250
RENEW_MAX = 2000  # named in one call, which moves none of them
PATIENCE_S = 60.0  # of a caller, as for a commit
AWAY_S = 86_400.0  # of a worker, which also keeps the outcomes of other tasks until Redis is back

Mode = Literal["enqueue", "reject", "interrupt", "rollback"]
RunKind = Literal["input", "update", "continue", "resume", "fork"]
Outcome = Literal["next", "done", "failed", "retry", "unplanned", "paused", "handled", "called", "left"]


class Lease(NamedTuple):
    """One attempt at a task: who it is, what it stands on, and the token that fences it.

    `rec`: the fact with the run's input, `conf`: the one with the record that holds; in a run that continues they are
    two. `answers`: the facts with answers to the task's questions, in order, by their ids, with spaces between.
    `cause`: of an error handler, the fact that tells the failure.
    `called`: what an attempt before called, `<run> <thread>`; `told`: 1 once the task has told how that rested.
    `over`: the facts of runs whose Commands updated the state of the checkpoint since, as `answers`.
    `effects`: the task's first effect, by its id; empty if it has none yet.
    """

    token: str
    thread: str
    n: int
    digest: str
    task: str
    node: str
    attempt: int
    lost: int
    queue: str
    timeout_s: float
    run: str
    graph: str
    width: int
    job: str
    birth: str
    rec: str
    base: int
    at_ms: int
    suspect: int
    conf: str
    answers: str = ""
    cause: str = ""
    called: str = ""
    told: int = 0
    over: str = ""
    effects: str = ""

    @property
    def plans(self) -> bool:
        """Closing this task closes its step: it is alone, or it is the join."""
        return self.width == 1 or self.task == JOIN_TASK


class Offer(NamedTuple):
    """What a process offers for: one fresh token per free slot, the queues it listens to, how long it leases.

    `thread`: an inline caller, which takes tasks of its own thread only and through no list. `caller`: its name there.
    """

    owner: str
    tokens: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    process: str = ""
    lease_ms: int = LEASE_MS
    thread: str = ""
    caller: str = ""


@dataclass(frozen=True)
class Caller:
    """An inline caller that begins a run, or takes one up whose own caller is gone: where the thread's run has the same
    input, and nobody drives it any more, it is that one.

    `here`: callers that this process knows to be alive. `seen`: of others, until when they had given their word when
    this one looked first; whoever has given it anew since is alive. `only`: take up, begin nothing.
    """

    name: str
    here: tuple[str, ...] = ()
    seen: Mapping[str, int] = field(default_factory=dict[str, int])
    only: bool = False


class Answered(NamedTuple):
    """An answer for a task of the open step; without a `task` for the first one that the run adds to it.

    `question`: the id it answers; empty: it comes before it is asked. `sig`: the signature of its fact, if it has one.
    """

    task: str
    question: str
    value: bytes
    sig: str = ""


@dataclass(frozen=True)
class Commanded:
    """What a Command as an input brings beside answers. `updates`: the `input` of the run's fact is for the state.

    `tasks`: (node, queue, seconds) of those to add, by node; `parts`: the Sends to add, as facts, each with how many
    they are. `after`: the thread's last run when this was chosen; if another one began since, nothing is written.
    """

    updates: bool
    tasks: tuple[tuple[str, str, float], ...] = ()
    parts: tuple[tuple[Fields, int], ...] = ()
    after: str = ""


@dataclass(frozen=True)
class Start:
    """A run to begin. `fields` are those of its fact (record, input, actor, trace); `sum` tells inputs apart.

    A run that resumes brings `answers`, for the checkpoint `at` (n, digest) whose questions it has seen. `base`: the
    step it builds on, where that is not the last checkpoint's (`on` in its fields says which it is).
    `parent`: the task that called it, `<n> <task> <thread>`; at its rest that task is opened again.
    A run that brings a `command` updates the state of `at` and adds tasks to those that are open there.

    `mode`: on a busy thread it waits (enqueue), is told busy (reject), or the run under way is stopped and it begins
    (interrupt). rollback: the same, if that run is `over`, and it builds on what was before that; else told moved.
    `durability`: what its caller sees to, before and behind the move (`promises`). `seen`: the head that its caller
    saw, for its signature; None: the moves look.
    Limits that are per key count it by `limit_key` in its fields; its tasks take the turns of its `fairness_key`.
    """

    thread: str
    run: str
    kind: RunKind
    graph: str
    queue: str
    sum: str
    fields: Fields
    task: str = START_TASK
    node: str = START_NODE
    mode: Mode = "enqueue"
    answers: tuple[Answered, ...] = ()
    at: tuple[int, str] | None = None
    base: int | None = None
    parent: str = ""
    command: Commanded | None = None
    over: str = ""
    durability: str = COMMIT
    seen: tuple[int, str] | None = None

    @property
    def limit_key(self) -> str:
        """What limits of its nodes are counted by, if they are per key."""
        return str(self.fields.get("limit_key") or "")

    @property
    def fairness_key(self) -> str:
        """Whose turns its tasks take in their queues; empty: nobody's."""
        return str(self.fields.get("fairness_key") or "")

    @property
    def stopper(self) -> str:
        """Who stops the run under way, if this one takes its place."""
        return str(self.fields.get("actor") or f"run {self.run}")

    @property
    def on(self) -> tuple[int, str] | None:
        """(n, digest) of the earlier checkpoint that it builds on, if it does; that must be there when it begins."""
        n, _, digest = str(self.fields.get("on", "")).partition(" ")
        return (int(n), digest) if digest else None

    @property
    def goes_on(self) -> bool:
        """Does it take up what is open, instead of beginning something?"""
        return self.kind in ("continue", "resume")


@dataclass(frozen=True)
class Branch:
    """A checkpoint, hashed by the caller, that is put behind the head of a thread at rest, whatever it builds on.

    `start`: the run that it belongs to, of kind fork or update. `after`: the head's (n, digest). `head`: (n, digest,
    step) of the checkpoint `made`, `next` and `parts` as in a Commit. `stop`: the run rests there, as `interrupted`.
    """

    start: Start
    after: tuple[int, str]
    made: Fields
    head: tuple[int, str, int]
    next: tuple[tuple[Any, ...], ...] = ()
    parts: dict[str, str] = field(default_factory=dict[str, str])
    stop: Literal["", "interrupted"] = ""


@dataclass(frozen=True)
class Started:
    """started, queued, attached (known run id, same input), conflict, busy, nothing (to continue), asked (all that is
    open waits for answers), stale (a question that is answered is not the one that is asked), gone (the checkpoint that
    it builds on is not there: the thread was deleted meanwhile), dying (the thread is being deleted).

    Of a branch also moved (the head is another one) and ready (to a question). Of a run that rolls back moved: `run` is
    the one under way.

    Of an inline caller also resumed (it has taken up `run`, whose caller is gone) and equal: the run under way has this
    input, and nobody knows yet whether its `caller` is alive, who gave its word until `till` (ms). Ask again.
    """

    status: str
    entry: str = ""
    run_status: str = ""
    leases: tuple[Lease, ...] = ()
    run: str = ""
    caller: str = ""
    till: int = 0


class Call(NamedTuple):
    """The run that a task calls on another thread. `start` None: it is under way already, and only waited for."""

    thread: str
    run: str
    start: Start | None


class Within(NamedTuple):
    """Entries for a log that an attempt keeps itself, of a graph that its node called: each with its id, in order,
    behind `last`, the id at that log's end; empty for a new one. `key`: tells a resend from other entries."""

    thread: str
    last: str
    entries: tuple[tuple[str, Fields], ...]
    key: str


class Commit(NamedTuple):
    """An attempt's outcome, hashed by the caller. `head` is (n, digest, step) of the last checkpoint among `entries`.

    `question`: what a paused task asks, several with spaces between, none at a breakpoint of what it called; `kept`:
    its answers that hold good (as in `Lease.answers`). `call`: the run that it called, begun by the same move.
    `handler`: node, queue and timeout of the task that handles a failure; its facts are the entries, failure first.
    `ahead`: the parts that the attempt wrote before; where one is gone, as after a failover, nothing is committed, and
    the task is open again, uncounted.
    """

    lease: Lease
    outcome: Outcome
    entries: tuple[Fields, ...] = ()
    head: tuple[int, str, int] | None = None
    next: tuple[tuple[Any, ...], ...] = ()
    parts: Mapping[str, str] = MappingProxyType({})
    stop: Literal["", "failed", "interrupted"] = ""
    why: str = ""
    reason: str = ""
    delay_ms: int = 0
    question: str = ""
    kept: str = ""
    handler: tuple[str, str, float] | None = None
    call: Call | None = None
    ahead: tuple[str, ...] = ()


class Renewed(NamedTuple):
    """`gone`: named tokens that hold nothing any more. `at_ms`: when it was carried out, by the server's clock."""

    gone: Sequence[str]
    at_ms: int


class Answer(NamedTuple):
    """ok; already and fenced settle a commit too; suspended. `run_status`: the run's, `rested` if another began.
    `children`: threads that open tasks of this one called, in the answer to a claim for one thread."""

    status: str
    leases: tuple[Lease, ...] = ()
    refused: tuple[str, ...] = ()
    run_status: str = ""
    children: tuple[str, ...] = ()


def check_thread(thread: str) -> None:
    """Raises InvalidInput for a thread that an attempt keeps: nobody else may move it."""
    if is_within(thread):
        raise InvalidInput(
            "the thread is kept by the node that called its graph: it can be read, and moves with that node only",
            thread=thread,
            fix="answer or retry the thread whose node called it; update it by its config, get_state().tasks[i].state",
        )


class Moves(Protocol):
    """What `perform`, the drivers and the client speak to. `patience_s`: how long an attempt that has something in hand
    (an effect that is done, what a called graph has come to) waits for a Redis that is away."""

    patience_s: float

    def start(self, start: Start, offer: Offer | None = None, caller: Caller | None = None) -> Started:
        """Record a run and open its first task, in one step. With an inline offer its task is leased at once; with a
        caller a run may be taken up instead."""
        ...

    def limit(self, graph: str, limits: Limits) -> None:
        """The graph's nodes have these limits from now on, also for what is open already; empty: none."""
        ...

    def leave(self, caller: str, *, ended: bool) -> None:
        """An inline caller drives its run no more. Not `ended`: whoever brings the same input takes the run up."""
        ...

    def branch(self, branch: Branch, offer: Offer | None = None, *, ask: bool = False) -> Started:
        """Put a checkpoint at the head of a thread at rest, and go on from it, or rest there. `ask`: would it pass?"""
        ...

    def claim(self, offer: Offer, *, take: str = "", serves: Sequence[str] = ()) -> Answer:
        """Lease work: from the queues, of one thread (inline), or one RQ job by id. `serves`: `graph:node` names."""
        ...

    def commit(self, commits: Sequence[tuple[Commit, Offer]]) -> list[Answer]:
        """Commit outcomes, and refill from each one's offer. Several leave in one pipeline, each stands alone."""
        ...

    def part(self, lease: Lease, pieces: Sequence[Fields]) -> list[str]:
        """Write pieces that the coming commit will name, or effects of the task. Empty if fenced.

        Raises ServerError, also while indexes are being rebuilt: then nothing was written.
        """
        ...

    def within(self, lease: Lease, logs: Sequence[Within]) -> bool:
        """Write into logs that the attempt keeps itself, all or nothing; False if fenced. A resend is written once.

        Raises Conflict where one of them ends elsewhere, ServerError (then nothing was written, or all of it).
        """
        ...

    def edit(self, thread: str, log: Within) -> str:
        """Write into a log that attempts at tasks of this thread keep, while it is at rest: ok, busy, unknown, or moved
        where that log ends elsewhere. A resend is written once. Raises ServerError."""
        ...

    def renew(self, offer: Offer, before: int, *, registry: bool = False, callers: Sequence[str] = ()) -> Renewed:
        """Name the tokens that are held. `callers` give their word.

        `before`: `at_ms` of the last renewal but one that the owner has an answer to, 0 if there was none. A lease of
        its that is older, and was not named since, is an orphan.
        """
        ...

    def release(
        self,
        owner: str,
        tokens: Sequence[str] | None,
        to: Literal["job", "parked", "lost"],
        why: str = "",
        node: str = "",
    ) -> int:
        """Give leases back: uncounted, parked, or lost with their process. None: all that the owner holds.

        `node`: whose servers may take what is parked, if not those of the task's own.
        """
        ...

    def cancel(self, thread: str, run: str = "", actor: str = "") -> str:
        """Revoke a run, and what its tasks called: cancelled, rested (nothing to cancel) or unknown."""
        ...

    def delete(self, thread: str) -> str:
        """Forget a thread at rest: deleted, busy or unknown."""
        ...
