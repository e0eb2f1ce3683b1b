"""Every key of everstep, spelled once. One function per key; nothing else in the tree writes a key by hand.

All keys of a partition share one hash tag, so that one script may touch them in a Cluster. Scripts get the two stems,
`Keys.stem` and `Keys.rq`, and add the same suffixes as the functions here; `tests/test_keys.py` holds the two together.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from uuid import UUID

from .errors import InvalidThreadId

THREAD_ID_MAX = 512
INNER = "|"  # in the ids of threads that tasks call, between a thread and a node of it
WITHIN = "within|"  # how the threads begin whose logs an attempt of another thread's task keeps
_NAME = re.compile(r"^[A-Za-z0-9_.-]+$")


def rq_prefix(partition: str = "0") -> str:
    """RQ's key prefix for a partition: RQ's own `RQ_KEY_PREFIX`, else `rq` for partition 0 and `{p}:rq` beside it."""
    given = os.environ.get("RQ_KEY_PREFIX")
    return given or ("rq" if partition == "0" else f"{{{partition}}}:rq")


def thread_id_text(thread_id: object) -> str:
    """The text of a thread id: a str, int or UUID of 1 to 512 bytes. Raises InvalidThreadId."""
    if isinstance(thread_id, bool) or not isinstance(thread_id, str | int | UUID):
        raise InvalidThreadId(
            f"a thread_id can't be {type(thread_id).__name__}",
            fix='give a str, int or UUID: config={"configurable": {"thread_id": "order-17"}}',
        )
    text = str(thread_id)
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > THREAD_ID_MAX:
        what = f"a thread_id has at most {THREAD_ID_MAX} bytes, this one has {size:,}"
        raise InvalidThreadId(what, fix="shorten it, or use a hash of it")
    if not text.isprintable():
        raise InvalidThreadId(
            "a thread_id is one line of printable text", fix="leave out control characters and line breaks"
        )
    if not text:
        raise InvalidThreadId("a thread_id can't be empty", fix="give a text, such as order-17")
    return text


def begun_thread_text(thread_id: object) -> str:
    """The text of the id of a thread on which somebody begins something: none that a thread of ours could have.

    What a task calls on thread `a` in node `b` has the id `a|b`, or `within|a|b`. Raises InvalidThreadId, but for the
    latter: those the moves refuse, and say whose they are.
    """
    text = thread_id_text(thread_id)
    if is_within(text):
        return text
    if INNER in text or text + INNER == WITHIN:
        what = f"has the character {INNER!r}" if INNER in text else f"is {text!r}"
        raise InvalidThreadId(
            f"the thread_id {text!r} {what}: that is reserved for threads of graphs that tasks call",
            fix="begin on another thread_id; what is there can be read, resumed, retried, forked and deleted",
        )
    return text


def is_within(thread: str) -> bool:
    """Is it a thread that an attempt of another one's task keeps: of a graph that a node called? It has a log and no
    indexes: nobody else drives it."""
    return thread.startswith(WITHIN)


@dataclass(frozen=True)
class Keys:
    """The keys of one partition of one namespace."""

    namespace: str = "everstep"
    partition: str = "0"
    rq: str = field(default_factory=rq_prefix)

    def __post_init__(self) -> None:
        if not _NAME.match(self.namespace) or not _NAME.match(self.partition):
            raise ValueError("namespace and partition are made of letters, digits, _ . -")

    @cached_property
    def stem(self) -> str:
        return f"{self.namespace}:{{{self.partition}}}:"

    # one thread
    def log(self, thread: str) -> str:
        """Stream: the log, the only truth. Those that attempts keep stand apart, where no rebuild looks for runs."""
        return f"{self.stem}{thread.replace('|', ':', 1)}" if is_within(thread) else f"{self.stem}log:{thread}"

    def thread(self, thread: str) -> str:
        """Hash: head, status, counters of the open step."""
        return f"{self.stem}thread:{thread}"

    def open(self, thread: str) -> str:
        """Hash: task -> its place, attempt, token (JSON)."""
        return f"{self.stem}open:{thread}"

    def unmade(self, thread: str) -> str:
        """List: tasks of a wide step that have no job yet (JSON, whole parts as one element)."""
        return f"{self.stem}unmade:{thread}"

    def queued(self, thread: str) -> str:
        """List: queued inputs of a busy thread: run, entry id, graph, queue, task, node (JSON)."""
        return f"{self.stem}queued:{thread}"

    def runs(self, thread: str) -> str:
        """Hash: run id -> `<status> <entry id> <sum of its input>`."""
        return f"{self.stem}runs:{thread}"

    def mended(self, thread: str) -> str:
        """Stream with expiry: the good entries of a log that is being mended, before they take its place."""
        return f"{self.stem}mended:{thread}"

    def dying(self, thread: str) -> str:
        """Stream: the log of a thread that was deleted, until what its tasks called is gone, too."""
        return f"{self.stem}dying:{thread}"

    def live(self, thread: str, run: str) -> str:
        """Stream, bounded, with expiry: what the nodes of a run say while they run. A run id has no spaces."""
        return f"{self.stem}live:{run} {thread}"

    # leases and places
    @property
    def leases(self) -> str:
        """Sorted set: token by lease end, ms of Redis' clock."""
        return f"{self.stem}leases"

    @property
    def lease(self) -> str:
        """Hash: token -> `<task> <thread>`."""
        return f"{self.stem}lease"

    def held(self, owner: str) -> str:
        """Hash: token -> the renewal round in which its owner last named it."""
        return f"{self.stem}held:{owner}"

    @property
    def callers(self) -> str:
        """Zset: inline callers that drive a run -> until when they say so; negative: since when they don't."""
        return f"{self.stem}callers"

    @property
    def wakes(self) -> str:
        """Sorted set: `<n> <task> <thread>` by due time, ms."""
        return f"{self.stem}wakes"

    @property
    def parked(self) -> str:
        """Hash: `<graph>:<node>` -> how many tasks are parked for it."""
        return f"{self.stem}parked"

    def parked_for(self, graph: str, node: str) -> str:
        """List: `<n> <task> <thread>` parked until a worker serves this node."""
        return f"{self.stem}parked:{graph}:{node}"

    # limits
    @property
    def limited(self) -> str:
        """String: the graphs that have limits, a line each; missing where nobody has any."""
        return f"{self.stem}limited"

    def limits(self, graph: str) -> str:
        """String: the limits of a graph's nodes, JSON."""
        return f"{self.stem}limits:{graph}"

    def slots(self, gate: str) -> str:
        """Set: jobs that hold a slot of a limit: leased, or let in."""
        return f"{self.stem}slots:{gate}"

    def starts(self, gate: str) -> str:
        """Sorted set: jobs by the time they began, ms; infinite for those that were let in and have not."""
        return f"{self.stem}starts:{gate}"

    def line(self, gate: str) -> str:
        """Sorted set: `<n> <task> <thread>` that a limit keeps waiting, by when they came, microseconds."""
        return f"{self.stem}line:{gate}"

    @property
    def lines(self) -> str:
        """Set: gates of limits with somebody in line."""
        return f"{self.stem}lines"

    @property
    def counts(self) -> str:
        """Hash: queue -> open tasks in place `job`; what the audit compares with RQ's list."""
        return f"{self.stem}counts"

    @property
    def discards(self) -> str:
        """List: `discard` hashes whose jobs the sweep still has to remove, each with its cursor (JSON)."""
        return f"{self.stem}discards"

    @property
    def revoked(self) -> str:
        """List: what cancelled runs had called, still to be cancelled: thread, run (JSON)."""
        return f"{self.stem}revoked"

    @property
    def cleanings(self) -> str:
        """List: cancelled threads whose tasks still have to leave their places."""
        return f"{self.stem}cleanings"

    def discard(self, salt: str, thread: str) -> str:
        """Hash: the open tasks of a step that was given up, until their jobs are gone."""
        return f"{self.stem}discard:{salt}:{thread}"

    def waiting(self, queue: str) -> str:
        """Sorted set: processes with free slots for a queue, longest waiting first."""
        return f"{self.stem}waiting:{queue}"

    def bell(self, process: str) -> str:
        """List: what an idle process blocks on. Expires after 5 s."""
        return f"{self.stem}bell:{process}"

    # the partition
    def threads(self, status: str) -> str:
        """Sorted set: threads of a status by the time they came to it, ms."""
        return f"{self.stem}threads:{status}"

    @property
    def graphs(self) -> str:
        """Set: names of the published graphs."""
        return f"{self.stem}graphs"

    def graph(self, name: str) -> str:
        """String: the manifest of a graph, JSON."""
        return f"{self.stem}graph:{name}"

    def cache(self, graph: str, node: str, key: str) -> str:
        """String, with expiry if its policy says so: a node's outcome for one input."""
        return f"{self.stem}cache:{graph}:{node}:{key}"

    @property
    def inbox(self) -> str:
        """Stream: messages from redis-cli and other producers without code."""
        return f"{self.stem}inbox"

    @property
    def inbox_rejected(self) -> str:
        """Stream, bounded: refused messages with their reason."""
        return f"{self.stem}inbox:rejected"

    @property
    def inbox_replaced(self) -> str:
        """Stream: an inbox whose ids had come to their end, until its messages are taken."""
        return f"{self.stem}inbox:replaced"

    @property
    def inbox_tries(self) -> str:
        """Hash with expiry: id of a message -> how many readers have begun with it."""
        return f"{self.stem}inbox:tries"

    @property
    def inbox_reader(self) -> str:
        """String with expiry: the one process that reads the inbox."""
        return f"{self.stem}inbox:reader"

    @property
    def sweep(self) -> str:
        """Hash: last sweep, server run id, time before which nothing expires."""
        return f"{self.stem}sweep"

    @property
    def stats(self) -> str:
        """Hash: counters for people: fenced, lost, parked, recovered."""
        return f"{self.stem}stats"

    @property
    def alive(self) -> str:
        """String: our sentinel. Missing means that our indexes were lost."""
        return f"{self.stem}alive"

    @property
    def mark(self) -> str:
        """String with expiry: written behind a commit, so that WAIT tells of all before it."""
        return f"{self.stem}mark"

    @property
    def recovery(self) -> str:
        """String with expiry: who rebuilds."""
        return f"{self.stem}recovery"

    @property
    def announced(self) -> str:
        """Hash with expiry: token -> the lease that a live worker says it holds, during a rebuild."""
        return f"{self.stem}announced"

    # RQ's keys, as RQ 3.0 spells them
    @property
    def rq_alive(self) -> str:
        """String: the sentinel beside RQ's keys. Missing means that RQ's keys were lost."""
        return f"{self.rq}:everstep:alive"

    @property
    def rq_suspended(self) -> str:
        return f"{self.rq}:suspended"

    @property
    def rq_queues(self) -> str:
        return f"{self.rq}:queues"

    def rq_queue(self, queue: str) -> str:
        return f"{self.rq}:queue:{queue}"

    def rq_job(self, job_id: str) -> str:
        return f"{self.rq}:job:{job_id}"

    def rq_started(self, queue: str) -> str:
        return f"{self.rq}:wip:{queue}"

    def rq_scheduled(self, queue: str) -> str:
        return f"{self.rq}:scheduled:{queue}"

    def rq_deferred(self, queue: str) -> str:
        return f"{self.rq}:deferred:{queue}"

    def rq_failed(self, queue: str) -> str:
        return f"{self.rq}:failed:{queue}"

    @property
    def rq_workers(self) -> str:
        return f"{self.rq}:workers"

    def rq_workers_of(self, queue: str) -> str:
        return f"{self.rq}:workers:{queue}"

    def rq_worker(self, name: str) -> str:
        return f"{self.rq}:worker:{name}"

    def rq_commands(self, name: str) -> str:
        """Pub/sub channel of a worker's commands."""
        return f"{self.rq}:pubsub:{name}"
