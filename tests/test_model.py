"""The simulation's model of the store is held to the scripts: the same calls, with the same dice, on real servers.

After each move the answers are the same, each open task is in the same place, and so is what stands in queues, leases,
wakes and parked lists; and the logs say the same. Time passes where both are told that a lease or a wake is due.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from everstep.embedded import EmbeddedServer
from everstep_checkpoint import entries as e
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.log import MemoryLog
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.graph.limits import Limit, Limits
from everstep_scheduler.moves import redismoves
from everstep_scheduler.moves.contract import Answer, Answered, Commit, Lease, Offer, Renewed, Start, Started
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from servers import plain_client, server_binaries, soaked
from sim.model import Model, Record, Thread

KEYS = Keys(rq="rq")
THREADS = ("t0", "t1")
INF = float("inf")
GATED = ("slots:", "starts:", "line:")
QUEUES = ("g", "h", "g.suspect", "h.suspect")
OWNERS = ("w1", "w2")
LEASE_MS = 3_600_000
LONG_AGO = 10  # ms
HOUR_MS = 3_600_000
STORIES, PARTS = 1000, 10  # of the long test: each part is so much work, however long that takes
KEYED = ("one", "two")
# What nodes may be held to: at once, within an hour, both, for each key, and two nodes together.
LIMITS: tuple[Limits, ...] = (
    {"a": Limit(1)},
    {"a": Limit(2), "b": Limit(1)},
    {"a": Limit(rate=(2, 3600))},
    {"a": Limit(2, rate=(3, 3600)), "c": Limit(1)},
    {"a": Limit(1, per_key=True), "b": Limit(rate=(1, 3600), per_key=True)},
    {"a": Limit(2, name="both"), "b": Limit(2, name="both")},
)
# Records stay in the order in which they were written; else a page of them comes in an order of the server's own.
ORDERED = ("--hash-max-listpack-value", "65536", "--hash-max-listpack-entries", "1000")


class Both:
    """The same calls on the model and on a server."""

    def __init__(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = client
        client.flushdb()
        client.set(KEYS.alive, "1")
        client.set(KEYS.rq_alive, "1")
        self.calls = 0
        self.now = 1_000_000_000_000
        self.log = MemoryLog()
        self.model = Model(self.log, lambda: self.now, self._id)
        self.redis = RedisMoves(Scripts(client, KEYS))
        self.redislog = RedisLog(client, KEYS)
        monkeypatch.setattr(redismoves, "new_id", self._id)
        monkeypatch.setattr(redismoves, "salt", lambda: self._id()[-4:])

    def _id(self) -> str:
        return f"{self.calls:022d}"

    def __call__(self, move: str, *args: Any, **more: Any) -> Any:
        self.calls += 1
        told = getattr(self.model, move)(*args, **more)
        said = getattr(self.redis, move)(*args, **more)
        assert _told(told) == _told(said), move
        return told

    def expires(self, token: str, score: int) -> None:
        """A lease has run out; of several the one with the lower score did first."""
        self.model.leases[token] = score
        self.client.zadd(KEYS.stem + "leases", {token: score})

    def is_old(self, token: str) -> None:
        """It was made, and named last, before any renewal of today."""
        owner = next(owner for owner, tokens in self.model.held.items() if token in tokens)
        self.model.held[owner][token] = LONG_AGO - 1
        self.client.hset(KEYS.stem + "held:" + owner, token, LONG_AGO - 1)

    def is_due(self, place: tuple[int, str, str], score: int) -> None:
        self.model.wakes[place] = score
        self.client.zadd(KEYS.stem + "wakes", {" ".join(map(str, place)): score})

    def time_passes(self, gate: str, how_many: int) -> None:
        """So many of those that began at a gate did so long ago; and who stands there is to be looked at."""
        begun, key = self.model.gates.starts.get(gate, {}), KEYS.stem + "starts:" + gate
        names = {thread: _text(self.client.hmget(KEYS.thread(thread), "jid"))[0] for thread in self.model.threads}
        stored = {job.rpartition("-")[0]: job for job in _text(self.client.zrange(key, 0, -1))}
        first = sorted((at, job) for job, at in begun.items() if at < INF)[:how_many]
        for score, (_, job) in enumerate(first):
            thread, _, rest = job.rpartition("-")[0].partition("-")
            begun[job] = score
            self.client.zadd(key, {stored[f"{names[thread]}-{rest}"]: score})
        if gate in self.model.gates.wakes:
            self.model.gates.wakes[gate] = 1
            self.client.zadd(KEYS.stem + "wakes", {f"line {gate}": 1})

    def swept_lately(self) -> None:
        """Somebody has swept a moment ago, and nothing is held back."""
        self.model.swept = self.now, "server", 0
        at = sum(x * y for x, y in zip(self.client.time(), (1000, 0.001), strict=True))
        self.client.hset(KEYS.stem + "sweep", mapping={"at": int(at), "server": "server", "hold": 0})

    def pushes(self, queue: str) -> None:
        """Somebody pushes the first job of a queue once more."""
        jobs = self.model.queues.get(queue, [])
        if jobs:
            jobs.append(jobs[0])
            key = KEYS.rq_queue(queue)
            self.client.rpush(key, *self.client.lrange(key, 0, 0))

    def requeues(self, thread: str, task: str) -> None:
        """Somebody pushes the job of a failed task, as `rq requeue` does."""
        rec = self.model.threads[thread].open[task]
        self.model.queues.setdefault(rec.waits_in, []).append(rec.job)
        stored = json.loads(self.client.hget(KEYS.stem + "open:" + thread, task))
        self.client.rpush(KEYS.rq_queue(rec.waits_in), stored["j"])

    def agree(self) -> None:
        for thread in THREADS:
            t = self.model.threads.get(thread)
            assert (_modelled(t) if t else {}) == self._stored(thread), thread
            assert list(map(_said, self.log.read(thread))) == list(map(_said, self.redislog.read(thread)))
        model, stem = self.model, KEYS.stem
        assert sorted(model.leases) == sorted(_text(self.client.zrange(stem + "leases", 0, -1)))
        lease = {token.decode(): _text(x.split(b" ", 1)) for token, x in self.client.hgetall(stem + "lease").items()}
        assert {token: [task, thread] for token, (thread, task) in model.lease.items()} == lease
        for owner in OWNERS:
            held = {
                token.decode(): int(x) < LONG_AGO for token, x in self.client.hgetall(f"{stem}held:{owner}").items()
            }
            assert {token: x < LONG_AGO for token, x in model.held.get(owner, {}).items()} == held
        self._gates_agree()
        wakes = sorted([" ".join(map(str, place)) for place in model.wakes] + [f"line {x}" for x in model.gates.wakes])
        assert wakes == sorted(_text(self.client.zrange(stem + "wakes", 0, -1)))
        for queue in QUEUES:
            jobs = [_untold(job) for job in model.queues.get(queue, ())]
            assert jobs == [_untold(x.decode()) for x in self.client.lrange(KEYS.rq_queue(queue), 0, -1)], queue
        names = {name.decode() for name in self.client.hkeys(stem + "parked")}
        assert set(model.parked) == names
        for name in names:
            places = [" ".join(map(str, place)) for place in model.parked[name]]
            assert places == _text(self.client.lrange(f"{stem}parked:{name}", 0, -1))

    def _gates_agree(self) -> None:
        gates, stem = self.model.gates, KEYS.stem
        if not gates.limits:
            return  # there never were any
        found = _text(self.client.keys(stem.replace("{", "\\{") + "*"))
        names = {name.split(":", 1)[1] for name in (key.removeprefix(stem) for key in found) if name.startswith(GATED)}
        with self.client.pipeline(transaction=False) as pipe:
            pipe.smembers(stem + "lines")
            for gate in (named := sorted(names | {*gates.slots, *gates.starts, *gates.lines})):
                pipe.smembers(f"{stem}slots:{gate}").zrange(f"{stem}starts:{gate}", 0, -1, withscores=True)
                pipe.zrange(f"{stem}line:{gate}", 0, -1)
            lines, *stored = pipe.execute()
        assert gates.named == set(_text(lines))
        for gate, slots, starts, line in zip(named, stored[::3], stored[1::3], stored[2::3], strict=True):
            jobs = sorted(_untold(job.decode()) for job in slots)
            assert sorted(map(_untold, gates.slots.get(gate, ()))) == jobs, gate
            said = sorted((at == INF, _untold(job)) for job, at in gates.starts.get(gate, {}).items())
            assert said == sorted((at == INF, _untold(job.decode())) for job, at in starts), gate
            stands = gates.lines.get(gate, {})
            places = [" ".join(map(str, x)) for x in sorted(stands, key=lambda x: stands[x])]
            assert places == _text(line), gate

    def _stored(self, thread: str) -> dict[str, Any]:
        found = {name.decode(): value.decode() for name, value in self.client.hgetall(KEYS.thread(thread)).items()}
        if not found:
            return {}
        numbers = {name: int(found[name]) for name in ("n", "step", "base", "left", "width", "failed")}
        texts = {name: found[name] for name in ("digest", "birth", "status", "graph", "queue", "run", "rec", "conf")}
        texts["limit_key"] = found.get("lk", "")
        counted = {name: int(found.get(name, 0)) for name in ("asked", "halted")}
        open = {
            task.decode(): _recorded(json.loads(text))
            for task, text in self.client.hgetall(KEYS.stem + "open:" + thread).items()
        }
        runs = {
            run.decode(): tuple(x.decode().split(" "))
            for run, x in self.client.hgetall(KEYS.stem + "runs:" + thread).items()
        }
        queued = [json.loads(x)["run"] for x in self.client.lrange(KEYS.stem + "queued:" + thread, 0, -1)]
        unmade = self.client.llen(KEYS.stem + "unmade:" + thread)
        return {**numbers, **texts, **counted, "open": open, "runs": runs, "queued": queued, "unmade": unmade > 0}


def _modelled(t: Thread) -> dict[str, Any]:
    names = "n step base left width failed digest birth status graph queue run rec conf asked halted runs limit_key"
    open = {task: _record(rec) for task, rec in t.open.items()}
    queued = [start.run for start, _ in t.queued]
    return {x: getattr(t, x) for x in names.split()} | {"open": open, "queued": queued, "unmade": bool(t.unmade)}


def _record(rec: Record) -> dict[str, Any]:
    return {
        "p": rec.place, "a": rec.attempt, "l": rec.lost, "x": rec.expired, "k": rec.alone, "s": int(rec.suspect),
        "t": rec.token, "o": rec.owner, "n": rec.node, "q": rec.queue, "w": rec.timeout_s, "i": rec.asks,
        "an": rec.answers, "c": rec.cause, "e": rec.effects, "u": rec.parked_for, "g": rec.gate,
    }  # fmt: skip


def _recorded(rec: dict[str, Any]) -> dict[str, Any]:
    numbers, texts = ("a", "l", "x", "k", "s", "w"), ("p", "t", "o", "n", "q", "i", "an", "c", "e", "u", "g")
    return {name: rec.get(name, 0) for name in numbers} | {name: rec.get(name, "") for name in texts}


def _said(entry: e.Entry) -> tuple[str, dict[str, Any]]:
    """An entry; an error as what its JSON says, since Lua's tables have no order."""
    said = {name: value for name, value in entry.raw.items() if name != "at"}
    return entry.id, said | ({"error": json.loads(said["error"])} if said.get("error", b"")[:1] == b"{" else {})


def _text(found: Any) -> list[str]:
    return [each.decode() for each in found]


def _untold(job: str) -> str:
    """A job's id without what each side names in its own way: the thread before it, the salt behind it."""
    return "-".join(job.split("-")[1:4])


def _told(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_told(each) for each in answer]
    if isinstance(answer, Renewed):
        return answer.gone
    if isinstance(answer, Answer | Started):
        return answer._replace(leases=_rows(answer)) if isinstance(answer, Answer) else (answer, _rows(answer))
    if isinstance(answer, dict):
        return {name: answer[name] for name in ("status", "lost", "woken")} | {"held": "held" in answer}
    return answer


def _rows(answer: Answer | Started) -> tuple[Lease, ...]:
    return tuple(lease._replace(at_ms=0, job="") for lease in answer.leases)


@dataclass
class Story:
    """Random moves on both. What an outcome is follows from the attempt, so that a resend says the same."""

    dice: random.Random
    both: Both
    held: list[Lease] = field(default_factory=list[Lease])
    gone: list[Lease] = field(default_factory=list[Lease])
    sent: list[tuple[Commit, Offer]] = field(default_factory=list[tuple[Commit, Offer]])
    claimed: list[Offer] = field(default_factory=list[Offer])
    made: int = 0
    limited: bool = False

    def begin(self) -> None:
        """Half of the stories have limits."""
        self.limited = self.dice.random() < 0.5
        if self.limited:
            self.limit()

    def step(self) -> str:
        seldom = ["start", "start", "go_on", "cancel", "expire", "due", "sweep", "gap", "release", "renew", "again"]
        if self.limited:
            seldom += ["due", "pass_time", *(["limit"] if self.dice.random() < 0.3 else [])]
        move = self.dice.choice((*seldom, "reclaim", "part", "zombie", "resend", *["claim"] * 5, *["commit"] * 14))
        if self.dice.random() < 0.4:  # what is seldom gets its turn when it can
            move = "go_on" if self._asks() else "release" if any(lease.suspect for lease in self.held) else move
        getattr(self, move)()
        self.both.agree()
        return move

    def _asks(self) -> bool:
        threads = self.both.model.threads.values()
        return any(rec.asks for t in threads if t.status != "running" for rec in t.open.values())

    def limit(self) -> None:
        """Other limits hold from now on, or none."""
        self.both("limit", "g", self.dice.choice((*LIMITS, *LIMITS, {})))

    def pass_time(self) -> None:
        if gates := sorted({*self.both.model.gates.starts, *self.both.model.gates.wakes}):
            self.both.time_passes(self.dice.choice(gates), self.dice.randint(1, 3))

    def offer(self, least: int = 0) -> Offer:
        self.made += 1
        tokens = tuple(f"{self.made:018d}{i:04d}" for i in range(max(least, self.dice.choice((0, 1, 1, 1, 2, 3)))))
        queues = tuple(self.dice.sample(QUEUES, self.dice.choice((1, 2, 3, 4)))) if self.dice.random() < 0.9 else ()
        return Offer(self.dice.choice(OWNERS), tokens, queues, "", LEASE_MS)

    def start(self) -> None:
        self.made += 1
        thread = self.dice.choice(THREADS)
        t = self.both.model.threads.get(thread)
        run = self.dice.choice(sorted(t.runs)) if t is not None and self.dice.random() < 0.15 else f"r{self.made}"
        mode: Any = self.dice.choice(("enqueue", "enqueue", "enqueue", "reject", "interrupt"))
        self.both("start", self._start(thread, run, "input", mode=mode, sum=self.dice.choice("sssx")))

    def _start(self, thread: str, run: str, kind: Any, **more: Any) -> Start:
        fields: e.Fields = {"kind_of_run": kind, "task": "start", "node": "__start__", "graph": "g", "queue": "g"}
        if self.limited and self.dice.random() < 0.7:
            fields["limit_key"] = self.dice.choice(KEYED)
        sum = more.pop("sum", "s")
        return Start(thread, run, kind, "g", self.dice.choice(QUEUES[:2]), sum, fields, **more)

    def go_on(self) -> None:
        """Continue, or answer what is asked, or what is not."""
        self.made += 1
        known = self.both.model.threads
        rests = [x for x in known if known[x].status != "running" and known[x].open]
        rests = [x for x in rests if any(rec.asks for rec in known[x].open.values())] or rests
        thread = self.dice.choice(rests or THREADS)
        t = known.get(thread)
        asks = [(task, x) for task, rec in t.open.items() for x in rec.asks.split()] if t else []
        given = self.dice.sample(asks, self.dice.randint(0, len(asks)))
        if t is not None and t.open and self.dice.random() < 0.1:
            given.append((next(iter(t.open)), self.dice.choice(("", "q"))))
        answers = tuple(Answered(task, question, e.wrap(b"\x01")) for task, question in given)
        at = (t.n, t.digest if self.dice.random() < 0.9 else "another") if t is not None and answers else None
        kind = "resume" if answers else "continue"
        self.both("start", self._start(thread, f"r{self.made}", kind, answers=answers, at=at))

    def cancel(self) -> None:
        waits = [x for x, t in self.both.model.threads.items() if t.queued]
        thread = self.dice.choice(waits or THREADS)
        t = self.both.model.threads.get(thread)
        runs = [*([start.run for start, _ in t.queued] * 3 if t else ()), *(t.runs if t else ()), "unknown", ""]
        if self.dice.random() < 0.6:
            self.both("cancel", thread, self.dice.choice(runs), "somebody")

    def claim(self) -> None:
        offer = self.offer(1)
        self.claimed.append(offer)
        serves = ("g:a", "g:b", "g:__start__") if self.dice.random() < 0.5 else ()
        self._take(self.both("claim", offer._replace(queues=offer.queues or ("g",)), serves=serves))

    def reclaim(self) -> None:
        """The reply was lost: the same claim again."""
        if self.claimed:
            offer = self.dice.choice(self.claimed[-3:])
            self._take(self.both("claim", offer._replace(queues=offer.queues or ("g",))))

    def _take(self, answer: Answer) -> None:
        known = {lease.token for lease in self.held + self.gone}
        self.held += [lease for lease in answer.leases if lease.token not in known]

    def _pop(self, *, suspect: bool = False) -> Lease | None:
        """Something that is held; `suspect`: a suspect, if there is one."""
        first = next((i for i, lease in enumerate(self.held) if lease.suspect), None) if suspect else None
        at = first if first is not None else self.dice.randrange(max(len(self.held), 1))
        lease = self.held.pop(at) if self.held else None
        self.gone += [lease] if lease is not None else []
        return lease

    def commit(self) -> None:
        if (lease := self._pop()) is not None:
            self._commit(lease)

    def zombie(self) -> None:
        """A commit for an attempt that was settled or taken away."""
        if self.gone:
            self._commit(self.dice.choice(self.gone[-6:]))

    def resend(self) -> None:
        if self.sent:
            self._take(self.both("commit", [self.dice.choice(self.sent[-4:])])[0])

    def _commit(self, lease: Lease) -> None:
        t = self.both.model.threads[lease.thread]
        holds = lease.token in self.both.model.leases and (t.n, t.digest) == (lease.n, lease.digest)
        closes = lease.plans if not holds else t.left == 1 and lease.plans
        others = [self._failed, self._retry, self._asked, self._asked, self._handled]
        outcome = self._next if closes else self._done
        if self.dice.random() < 0.3 and lease.task != "join":
            outcome = self.dice.choice(others)
        elif lease.task == "start" and closes and self.dice.random() < 0.1:
            outcome = self._unplanned
        pair = outcome(lease), self.offer()
        self.sent.append(pair)
        self._take(self.both("commit", [pair])[0])

    def _fact(self, lease: Lease, kind: str, **more: e.Field) -> e.Fields:
        return e.fact(kind, lease.run, task=lease.task, token=lease.token, node=lease.node, **more)

    def _next(self, lease: Lease) -> Commit:
        rows: list[tuple[Any, ...]] = []
        for i in range(self.dice.choice((0, 1, 1, 1, 2, 3))):
            rows.append((f"p{i}", self.dice.choice("abc"), self.dice.choice(QUEUES[:2]), self.dice.choice((0, 2.5))))
        parts: dict[str, str] = {}
        if self.dice.random() < 0.3:
            tasks = json.dumps([["a", "g", 0, 2], ["b", "h", 0, 1]])
            if ids := self.both("part", lease, [self._fact(lease, "part", tasks=tasks, sends=e.pack_sends([]))]):
                rows, parts = [*rows, (ids[0], 3)], {ids[0]: tasks}
        made = e.checkpoint(
            lease.digest, lease.n + 1, source="loop", step=lease.n, graph="g@1", run=lease.run, task=lease.task,
            token=lease.token, next=json.dumps(rows), delta=e.wrap(b"\x80"),
        )  # fmt: skip
        stop: Any = self.dice.choice(("", "", "", "", "interrupted", "failed")) if rows else ""
        head = (lease.n + 1, str(made["digest"]), lease.n)
        return Commit(
            lease, "next", (made,), head, tuple(rows), parts, stop=stop, why="why" if stop == "failed" else ""
        )

    def _done(self, lease: Lease) -> Commit:
        return Commit(lease, "done", (self._fact(lease, "task_done", writes=e.pack_writes([])),))

    def _failed(self, lease: Lease) -> Commit:
        return Commit(lease, "failed", (self._fact(lease, "task_failed", error="{}"),), reason="x")

    def _retry(self, lease: Lease) -> Commit:
        return Commit(lease, "retry", (self._fact(lease, "task_failed", error="{}"),), reason="x", delay_ms=HOUR_MS)

    def _asked(self, lease: Lease) -> Commit:
        """A question, or a breakpoint of what it called."""
        question = f"q{self.made}" if self.dice.random() < 0.9 else ""
        said = self._fact(lease, "task_paused", asks=e.wrap(b"\x01"))
        return Commit(lease, "paused", (said,), question=question, kept=lease.answers)

    def _handled(self, lease: Lease) -> Commit:
        failed = self._fact(lease, "task_failed", error="{}")
        added = e.fact("task_added", lease.run, task=f"h_{lease.task}", node="c", queue="g")
        if lease.task.startswith("h_"):
            return self._failed(lease)
        return Commit(lease, "handled", (failed, added), handler=("c", "g", 0))

    def _unplanned(self, lease: Lease) -> Commit:
        join = e.fact("task_failed", lease.run, task="join", node="__join__", error="{}")
        return Commit(lease, "unplanned", (self._done(lease).entries[0], join), reason="x")

    def part(self) -> None:
        """An effect, by whoever holds its task, or held it."""
        if known := self.held + self.gone[-4:]:
            lease = self.dice.choice(known)
            self.both("part", lease, [self._fact(lease, "effect_done", effect="k", result=e.wrap(b"\x01"))])

    def renew(self) -> None:
        """Some of what is held is named. What is old and is not named is an orphan."""
        held = sorted(token for tokens in self.both.model.held.values() for token in tokens)
        for token in self.dice.sample(held, self.dice.randint(0, len(held))):
            self.both.is_old(token)
        owner = self.dice.choice(OWNERS)
        known = [lease.token for lease in self.held + self.gone[-3:]]
        tokens = tuple(self.dice.sample(known, self.dice.randint(0, len(known))))
        self.both("renew", Offer(owner, tokens, lease_ms=LEASE_MS), self.dice.choice((0, LONG_AGO)))

    def release(self) -> None:
        owner, to = self.dice.choice(OWNERS), self.dice.choice(("job", "parked", "lost"))
        if self.dice.random() < 0.2:
            self.both("release", owner, None, to, "why")
        elif (lease := self._pop(suspect=True)) is not None:
            to = "lost" if lease.suspect else to
            self.both("release", owner, [lease.token], to, "why", self.dice.choice(("", "", "b")))

    def expire(self) -> None:
        tokens = sorted(self.both.model.leases)
        for score, token in enumerate(self.dice.sample(tokens, self.dice.randint(0, min(len(tokens), 3)))):
            self.both.expires(token, score + 1)
        self.sweep()

    def due(self) -> None:
        places = sorted(self.both.model.wakes)
        for place in self.dice.sample(places, self.dice.randint(0, len(places))):
            self.both.is_due(place, self.dice.randrange(3))

    def sweep(self) -> None:
        self.both.swept_lately()
        self.both("sweep", "server", LEASE_MS)

    def gap(self) -> None:
        """Another server's id: nothing expires for a while."""
        self.both("sweep", self.dice.choice(("another", "server")), LEASE_MS)

    def again(self) -> None:
        """A job is pushed once more: of a task that failed, or that waits."""
        threads = self.both.model.threads.items()
        failed = [(x, task) for x, t in threads for task, rec in t.open.items() if rec.place == "failed"]
        if failed and self.dice.random() < 0.7:
            return self.both.requeues(*self.dice.choice(failed))
        self.both.pushes(self.dice.choice(QUEUES))


def told_alike(server: EmbeddedServer, seed: str, stories: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many stories, or the one that a failure names."""
    with plain_client(server.url) as client:
        for number in range(stories):
            story = Story(random.Random(f"{seed} {number}"), Both(client, monkeypatch))
            moves: list[str] = []
            story.begin()
            try:
                for _ in range(60):
                    moves.append(story.step())
            except AssertionError:
                print(f"seed {seed!r}, story {number}, after {moves}")
                raise


@pytest.mark.parametrize("name", sorted(server_binaries()))
def test_the_model_answers_as_the_scripts_do_and_leaves_the_same_behind(
    name: str, seed: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedServer(binary=server_binaries()[name], extra=ORDERED) as server:
        told_alike(server, str(seed.randrange(2**32)), 25, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(PARTS))
def test_the_model_answers_as_the_scripts_do_for_long(
    part: int, server_name: str, seed: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary: Callable[[str], Path] = server_binaries().__getitem__
    with EmbeddedServer(binary=binary(server_name), extra=ORDERED) as server:
        told_alike(server, str(seed.randrange(2**32)), round(soaked(STORIES // PARTS)), monkeypatch)
