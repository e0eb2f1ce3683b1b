"""The checker is checked: a correct run passes whatever befell it, and each of these bugs, put into the product by a
test, is caught. None of them is in the product: a test replaces a line of a script, or a function, for itself.

A story moves two workers by hand over the sample graph; each bug names the story that brings it to light.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from everstep.chaos.checking.checker import Verdict, check
from everstep.chaos.checking.crossing import SLACK_S
from everstep.chaos.checking.evidence import JOURNAL_ENV, Evidence, Said, Struck, read_journal
from everstep.chaos.gathering import dump
from everstep.chaos.sample import NAME, given, graph
from everstep_checkpoint.errors import EverstepError
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.replay import Step
from everstep_scheduler.client.client import Client, publish
from everstep_scheduler.moves import redismoves
from everstep_scheduler.moves.connection import server_run_id
from everstep_scheduler.moves.contract import Commit, Lease, Offer, Start, Started
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves
from everstep_scheduler.reading.questions import resume_of
from everstep_scheduler.steps.loading import Loader, Stand
from everstep_scheduler.steps.perform import Attempt
from faults import our_indexes
from hand import KEYS, LEASE_MS, Hand
from servers import wait_for

WIDTH = 3
MS_S = 1000


class Maker(Hand):
    """A worker by hand, for the sample graph: it knows async nodes, and may do its task and keep the outcome back."""

    def __init__(self, client: Any, owner: str) -> None:
        super().__init__(client, graph, owner, NAME)
        self.kept: list[Commit] = []

    def run(self, lease: Lease) -> Commit:
        """Run a held task; its commit is not sent."""
        self.held.remove(lease)
        attempt = self.performer.load(lease)
        result = asyncio.run(attempt.acall()) if _is_async(attempt) else attempt.call()
        return self.performer.settle(attempt, result)

    def send(self, commit: Commit) -> str:
        answer = self.moves.commit([(commit, Offer(self.owner, lease_ms=LEASE_MS))])[0]
        self.performer.committed(commit, answer)
        return answer.status

    def send_for_more(self, commit: Commit) -> None:
        """As a worker does: the slot that becomes free is offered with it, so this may be a plain commit."""
        with suppress(EverstepError):
            self.held += self.moves.commit([(commit, self.offer(1))])[0].leases

    def send_late(self, commit: Commit) -> None:
        """What a bug makes of it may be an error; the log tells."""
        with suppress(EverstepError):
            self.send(commit)

    def do(self, node: str = "") -> str:
        return self.send(self.run(next(x for x in self.held if not node or x.node == node)))


def _is_async(attempt: Attempt) -> bool:
    node = attempt.lease.node
    return node in graph.spec.nodes and inspect.iscoroutinefunction(graph.spec.node(node).fn)


@dataclass
class Rig:
    """A server, two workers by hand, a client that keeps a log, and faults that are written down."""

    client: redis.Redis
    journal: Path
    said: list[Said] = field(default_factory=list[Said])
    struck: list[Struck] = field(default_factory=list[Struck])

    def __post_init__(self) -> None:
        self.a, self.b = Maker(self.client, "a"), Maker(self.client, "b")
        self.user = Client("redis://rig", KEYS, self.client)
        publish(self.client, KEYS, [graph.spec])

    # what clients do

    def submit(self, thread: str = "t", **told: Any) -> str:
        run = new_id()
        self.given = given(1_000_000 * (1 + len(self.said)), told.pop("rounds", 1), told.pop("width", WIDTH), **told)
        self._say("submit", "ask", thread, run)
        self.a.moves.start(start_of(self.a.spec, thread, run, self.given, Config(), "input"))
        self._say("submit", "ok", thread, run)
        return run

    def _say(self, op: str, phase: str, thread: str, run: str, **told: Any) -> None:
        told = {"input": self.given} if op == "submit" else told
        self.said.append(Said(time.monotonic(), op, phase, thread, run, told))

    def cancel(self, run: str, thread: str = "t") -> None:
        self._say("cancel", "ask", thread, run)
        done = self.a.moves.cancel(thread, run) == "cancelled"
        self._say("cancel", "ok", thread, run, cancelled=done)

    def answer(self, value: int, thread: str = "t") -> None:
        run = new_id()
        start = resume_of(self.a.log, thread, run, value, Config(), graph=NAME, queue=NAME, codec=graph.spec.codec)
        assert self.a.moves.start(start).status == "started"
        self._say("answer", "ok", thread, run)

    def see(self, thread: str = "t") -> None:
        if (head := self.a.log.head(thread)) is not None:
            self._say("seen", "ok", thread, "", n=head.n, digest=head.digest)

    # what befalls Redis

    def aside(self) -> dict[Any, Any]:
        """All that a replica has that hears no more from now on."""
        return {key: self.client.dump(key) for key in self.client.scan_iter()}

    def fail_over(self, aside: dict[Any, Any], since: float) -> None:
        """The replica is the master."""
        self.strike("failover")
        self.struck[-1] = replace(self.struck[-1], since=since)
        self.client.flushall()
        for key, value in aside.items():
            self.client.restore(key, 0, value)

    # what befalls workers

    def strike(self, kind: str) -> None:
        seconds, micros = self.client.time()
        self.struck.append(Struck(time.monotonic(), seconds * MS_S + micros // MS_S, kind))

    def expire(self) -> None:
        """A worker has been away for longer than its lease, and somebody sweeps."""
        self.strike("stop")
        server, moves = server_run_id(self.client), self.b.moves
        moves.sweep(server, LEASE_MS)
        self.client.hset(KEYS.sweep, "hold", 0)
        wait_for(lambda: moves.sweep(server, LEASE_MS)["lost"], 5, "a lease to run out")

    def until(self, node: str) -> None:
        """Drive with b until this node's tasks are the next to be claimed."""
        while True:
            self.b.claim(8)
            if not self.b.held:
                time.sleep(0.01)
                continue
            if self.b.held[0].node == node:
                for lease in list(self.b.held):
                    self.b.held.remove(lease)
                self.b.moves.release("b", None, "job")
                return
            self.b.do()

    def finish(self) -> None:
        """Let b do all there is, wakes too; give up where nothing moves any more."""
        idle = 0
        while idle < 15:
            if not self.b.held and not self.b.claim(8):
                idle += 1
                time.sleep(0.02)
                continue
            idle = 0
            self.moves_on(self.b)

    def moves_on(self, hand: Maker) -> None:
        """A task of a worker that a bug may have broken: it forgets what it can't do."""
        lease = hand.held[0]
        try:
            hand.do()
        except EverstepError:
            hand.held = [each for each in hand.held if each is not lease]

    def verdict(self) -> Verdict:
        threads = {each.thread for each in self.said}
        journal = tuple(read_journal(self.journal))
        return check(Evidence(tuple(self.said), journal, tuple(self.struck), dump(self.user, threads), LEASE_MS))


@pytest.fixture
def rig(client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv(JOURNAL_ENV, str(tmp_path / "journal"))
    yield Rig(client, tmp_path / "journal")


# --- stories


def plain(rig: Rig) -> None:
    """Nothing happens but two runs."""
    rig.submit(rounds=2)
    rig.finish()
    rig.submit(rounds=1)
    rig.finish()
    rig.see()


def takeover(rig: Rig) -> None:
    """a does its task and is away; b takes it over; a comes back with its outcome, while the step is open."""
    rig.submit()
    rig.until("work")
    rig.a.claim(1)
    late = rig.a.run(rig.a.held[0])
    rig.expire()
    rig.b.claim(1)
    rig.b.do()
    rig.a.send_late(late)
    rig.finish()


def too_late(rig: Rig) -> None:
    """The same, but a comes back before anybody has taken its task."""
    rig.submit()
    rig.until("work")
    rig.a.claim(1)
    late = rig.a.run(rig.a.held[0])
    rig.expire()
    rig.a.send_late(late)
    rig.finish()


def taken_over_alone(rig: Rig) -> None:
    """A task alone in its step is taken over; its first worker comes back with an outcome, and asks for more."""
    rig.submit(rounds=2)
    rig.until("gather")
    rig.a.claim(1)
    late = rig.a.run(rig.a.held[0])
    rig.expire()
    rig.b.claim(1)
    rig.a.send_for_more(late)
    while rig.a.held:
        rig.moves_on(rig.a)
    rig.finish()


def resent(rig: Rig) -> None:
    """The reply of a commit is lost, and it is sent again."""
    rig.submit()
    rig.until("work")
    rig.a.claim(1)
    commit = rig.a.run(rig.a.held[0])
    rig.a.send(commit)
    rig.a.send_late(commit)
    rig.finish()


def watched(rig: Rig) -> None:
    """A worker is at a node for a while, and all is well; others sweep."""
    rig.submit()
    rig.until("work")
    rig.a.claim(1)
    server, moves = server_run_id(rig.client), rig.b.moves
    moves.sweep(server, LEASE_MS)
    rig.client.hset(KEYS.sweep, "hold", 0)
    moves.sweep(server, LEASE_MS)
    rig.a.do()
    rig.finish()


def alternating(rig: Rig) -> None:
    """Two workers take turns at one thread, so what each remembers is of a step before."""
    rig.submit(rounds=2)
    hands, idle = (rig.a, rig.b), 0
    for i in range(200):
        hand = hands[i % 2]
        if hand.claim(1):
            rig.moves_on(hand)
        elif (idle := idle + 1) > 20:
            return


def redelivered(rig: Rig) -> None:
    """The job of a task that a worker has is pushed again by hand, and another worker takes it."""
    rig.submit()
    rig.until("work")
    rig.a.claim(1)
    rig.client.lpush(KEYS.rq_queue(NAME), rig.a.held[0].job)
    rig.b.claim(1)
    if any(lease.task == rig.a.held[0].task for lease in rig.b.held):
        rig.b.do()
    rig.a.do()
    rig.finish()


def forgotten(rig: Rig) -> None:
    """All indexes are lost while a worker is at a node, and another one has them made anew."""
    rig.submit()
    rig.until("work")
    rig.a.claim(1)
    held = rig.a.held[0]
    late = rig.a.run(held)
    rig.a.held.append(held)
    rig.client.delete(*our_indexes(rig.client))
    rig.strike("index")
    rig.a.recovery()
    rig.a.held.remove(held)
    rig.b.claim(8)
    while any(lease.task == held.task for lease in rig.b.held):
        rig.b.do()
    rig.a.send_late(late)
    rig.finish()


def cancelled(rig: Rig) -> None:
    """A run is cancelled while a worker is at one of its nodes, which ends afterwards."""
    run = rig.submit()
    rig.until("draw")
    rig.a.claim(1)
    late = rig.a.run(rig.a.held[0])
    rig.cancel(run)
    rig.a.send_late(late)
    rig.finish()


def flaky(rig: Rig) -> None:
    """Attempts that fail, and are due again a moment later."""
    rig.submit(flaky=1)
    rig.finish()


def asking(rig: Rig) -> None:
    """A run asks, and is answered."""
    rig.submit(asks=True)
    rig.finish()
    rig.answer(7)
    rig.finish()


def failed_over(rig: Rig) -> None:
    """A run is lost with its master, and another one begins in its place, on a worker that remembers the first."""
    rig.submit(rounds=1)
    rig.finish()
    aside, since = rig.aside(), time.monotonic()
    rig.submit(rounds=2, width=2)
    rig.finish()
    rig.see()
    rig.fail_over(aside, since)
    rig.submit(rounds=1)
    rig.finish()


def half_failed_over(rig: Rig) -> None:
    """A worker has written Sends, the master dies, and the replica that takes over knows of the lease, not of them."""
    rig.submit()
    rig.until("draw")
    rig.a.claim(1)
    aside, since = rig.aside(), time.monotonic()
    late = rig.a.run(rig.a.held[0])
    rig.fail_over(aside, since)
    rig.a.send_late(late)
    rig.finish()


STORIES = (
    plain,
    alternating,
    watched,
    takeover,
    too_late,
    taken_over_alone,
    resent,
    redelivered,
    forgotten,
    cancelled,
    flaky,
    asking,
    failed_over,
    half_failed_over,
)


def test_a_correct_run_passes_whatever_befell_it(rig: Rig) -> None:
    for story in STORIES:
        rig.client.flushall()
        rig.said.clear()
        rig.struck.clear()
        rig.journal.unlink(missing_ok=True)
        publish(rig.client, KEYS, [graph.spec])
        story(rig)
        verdict = rig.verdict()
        assert verdict.violations == (), story.__name__
        assert verdict.runs and verdict.steps and verdict.executions


def test_a_failover_may_take_back_what_was_said_since_its_replica_parted_and_no_more(rig: Rig) -> None:
    failed_over(rig)
    allowed = rig.verdict()
    assert allowed.sound and allowed.rewound == 2, "the second run and what was seen of it"
    rig.struck[0] = replace(rig.struck[0], since=rig.struck[0].at)
    rig.said = [replace(each, at=each.at - SLACK_S) for each in rig.said]
    assert set(rig.verdict().by_law) >= {"I1", "I9"}, "as where the replica had all"


def test_the_verdict_does_not_hang_on_when_a_process_wrote_its_lines(rig: Rig) -> None:
    """One that stood still in between writes them later than they say."""
    rig.submit()
    rig.until("draw")
    rig.a.claim(1)
    late = rig.a.run(rig.a.held[0])  # begun, and the process stands still
    aside, since = rig.aside(), time.monotonic()
    rig.expire()
    rig.b.claim(1)
    rig.b.do("draw")
    rig.fail_over(aside, since)  # to a replica that knows nothing of that
    rig.a.send_late(late)
    rig.finish()
    assert rig.verdict().sound
    lines = rig.journal.read_text().splitlines(keepends=True)
    rig.journal.write_text("".join(reversed(lines)))
    assert rig.verdict().sound


def test_what_a_log_calls_done_and_no_node_did_is_found(rig: Rig) -> None:
    plain(rig)
    lines = rig.journal.read_text().splitlines(keepends=True)
    rig.journal.write_text("".join(line for line in lines if '"gather"' not in line or '"out"' not in line))
    assert set(rig.verdict().by_law) == {"I3"}


# --- bugs


@dataclass(frozen=True)
class Script:
    """Lines of scripts that are exchanged: what stands there, and what is put there."""

    names: str
    changes: Sequence[tuple[str, str]]

    def put(self, patch: pytest.MonkeyPatch) -> None:
        original, names = redismoves.source, self.names.split()
        for old, _ in self.changes:
            assert any(old in original(name) for name in names), f"the scripts have changed: {old!r} is in none of them"

        def source(name: str) -> str:
            text = original(name)
            for old, new in self.changes if name in names else ():
                text = text.replace(old, new)
            return text

        patch.setattr(redismoves, "source", source)
        patch.setattr(redismoves, "sha", lambda name: hashlib.sha1(source(name).encode()).hexdigest())


@dataclass(frozen=True)
class Python:
    """A function of the engine, wrapped."""

    owner: object
    name: str
    wrap: Callable[[Any], Any]

    def put(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(self.owner, self.name, self.wrap(inspect.getattr_static(self.owner, self.name)))


def changed(scripts: str, *changes: tuple[str, str]) -> Script:
    return Script(scripts, changes)


ALL = "start claim commit part renew release cancel sweep adopt"
FENCE = "if not holds then"
NO_FENCE = (FENCE, "if not rec then")


def _outcomes(change: Callable[[list[Any]], list[Any]]) -> Python:
    """What the join of a wide step folds."""
    return Python(Step, "outcomes", lambda known: property(lambda step: change(known.fget(step))))


def _unwritten(_: Any) -> Any:
    def start(moves: RedisMoves, start: Start, offer: Any = None, caller: Any = None) -> Started:
        return Started("started", "0-1")

    return start


def _stale(original: Any) -> Any:
    def stand(loader: Loader, lease: Lease) -> Stand:
        return loader.peek(lease.thread) or original(loader, lease)

    return stand


def _unlike(original: Any) -> Any:
    def entry(loader: Loader, lease: Lease, ref: str, of: str = "") -> Any:
        return original(loader, lease, ref, "the same")

    return entry


# what the bug is -> the story in which it shows, the change, the laws that it breaks
BUGS: dict[str, tuple[Callable[[Rig], None], Script | Python, set[str]]] = {
    "no fence": (takeover, changed("commit", NO_FENCE), {"I3", "I4"}),
    "commit before the check": (
        takeover,
        changed(
            "commit", (FENCE, f"local early = append(H.thread)\n{FENCE}"), ("ids = append(H.thread)", "ids = early")
        ),
        {"I3", "I4"},
    ),
    "a fence that asks for the task, not for the attempt": (
        too_late,
        changed(
            "commit", ("rec.p == 'lease' and rec.t == H.token and", "rec.p ~= 'done' and"), ("unlease(rec)\nend", "end")
        ),
        {"I4"},
    ),
    "no fence in the short way of a plain commit": (
        taken_over_alone,
        changed("commit", ("and t == token and o == me", "")),
        {"I4"},
    ),
    "successors queued outside the script, and the process dies between": (
        plain,
        changed(
            "commit",
            (
                "open_step(H.thread, T, H.next, H.stop == '' and not H.own)",
                "open_step(H.thread, T, H.next, false); call('DEL', S .. 'unmade:' .. H.thread)",
            ),
        ),
        {"I1", "I6"},
    ),
    "leases by the worker's clock, which is late": (
        watched,
        changed(
            ALL,
            ("call('ZADD', S .. 'leases', NOW + rec.L, token)", "call('ZADD', S .. 'leases', NOW - 3600000, token)"),
        ),
        {"I8"},
    ),
    "writes folded in the order of arrival backwards": (plain, _outcomes(lambda found: found[::-1]), {"I3"}),
    "a sibling's writes are lost": (plain, _outcomes(lambda found: found[:-1] or found), {"I3"}),
    "the attempt is not raised on a takeover": (
        takeover,
        changed(
            ALL,
            (
                "rec.p, rec.a, rec.t, rec.o, rec.L = 'lease', rec.a + 1,",
                "rec.p, rec.a, rec.t, rec.o, rec.L = 'lease', 1,",
            ),
        ),
        {"I4"},
    ),
    "a refill takes what another one holds": (
        redelivered,
        changed(ALL, ("elseif rec.p == 'lease' or rec.p == 'done' then", "elseif rec.p == 'done' then")),
        {"I8"},
    ),
    "a resend commits twice": (
        resent,
        changed(
            "commit",
            ("T, rec, rec and rec.p == 'lease' and rec.t == H.token", "T, rec, rec and rec.t == H.token"),
        ),
        {"I3"},
    ),
    "a rebuild does not ask who holds what": (
        forgotten,
        changed("adopt", ("return said and said.d == T.digest and said", "return false")),
        {"I8"},
    ),
    "a rebuild adopts twice": (
        forgotten,
        changed(
            "adopt",
            ("    push(H.thread, T, task, rec)\n", "    push(H.thread, T, task, rec); push(H.thread, T, task, rec)\n"),
        ),
        {"I16"},
    ),
    "a cancel that lets commits pass": (
        cancelled,
        changed(
            "cancel commit",
            ("  stop_all(thread, T)\n  local left = T.left", "  local left = T.left"),
            ("rec.t == H.token and T.status == 'running'", "rec.t == H.token"),
        ),
        {"I11"},
    ),
    "a retry is due at once": (flaky, changed("commit", ("sleep(H.delay_ms or 0)", "sleep(0)")), {"I12"}),
    "an answer is written twice": (
        asking,
        changed(
            "start",
            (
                "local id = fact(s.thread, T, 'task_answered'",
                "fact(s.thread, T, 'task_answered', 'task', task, 'answer', value, unpack(said))\n"
                "  local id = fact(s.thread, T, 'task_answered'",
            ),
        ),
        {"I10"},
    ),
    "a submit is acknowledged before it is written": (plain, Python(RedisMoves, "start", _unwritten), {"I1"}),
    "tasks that are done stay open": (
        plain,
        changed(
            "commit",
            ("  call('UNLINK', S .. 'open:' .. H.thread)\n", ""),
            ("    if #steps > 0 then call('UNLINK', unpack(steps)) end\n", ""),
        ),
        {"I16"},
    ),
    "a commit that names what a failover has taken back": (
        half_failed_over,
        changed("commit", ("not stands_ahead()", "false")),
        {"I7"},
    ),
    "an entry is taken for the one that had its id before a failover": (
        failed_over,
        Python(Loader, "entry", _unlike),
        {"I3"},
    ),
    "a worker goes on with a state that it remembers": (
        alternating,
        Python(Loader, "stand", _stale),
        {"I3", "I1", "I7"},
    ),
}


@pytest.mark.source
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_caught(bug: str, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    story, change, laws = BUGS[bug]
    change.put(monkeypatch)
    story(rig)
    found = rig.verdict()
    assert laws & set(found.by_law), f"{bug}: {found.violations}"
