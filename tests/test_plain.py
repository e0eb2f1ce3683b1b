"""The plain commit stands beside the general one in the same script, for speed. They must leave the same behind.

Two databases see the same moves with the same dice; on one of them every commit is a general one. After each move all
their keys say the same, but for the time, and so does what the caller was told.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.keys import Keys
from everstep_scheduler.moves import redismoves
from everstep_scheduler.moves.contract import Answer, Commit, Lease, Offer, Start
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts

KEYS = Keys(rq="rq")
THREADS = ("t0", "t1", "t2", "t3")
QUEUES = ("g", "h", "g.suspect")
LEASE_MS = 60_000
Pair = tuple[Commit, Offer]
READ: dict[bytes, Any] = {
    b"hash": lambda pipe, name: pipe.hgetall(name),
    b"list": lambda pipe, name: pipe.lrange(name, 0, -1),
    b"set": lambda pipe, name: pipe.smembers(name),
    b"zset": lambda pipe, name: pipe.zrange(name, 0, -1, withscores=True),
    b"stream": lambda pipe, name: pipe.xrevrange(name, count=3),
    b"string": lambda pipe, name: pipe.get(name),
}


class Dice:
    """Ids that are the same on both sides."""

    def __init__(self) -> None:
        self.thrown = 0

    def __call__(self) -> str:
        self.thrown += 1
        return f"{self.thrown:022d}"


@dataclass
class Side:
    """One Redis with its dice. `plain`: commits may be plain there."""

    plain: bool
    client: Any
    dice: Dice = field(default_factory=Dice)
    plainly: int = 0

    def __post_init__(self) -> None:
        self.client.flushdb()
        self.client.set(KEYS.alive, "1")
        self.client.set(KEYS.rq_alive, "1")
        self.moves = RedisMoves(Scripts(self.client, KEYS))

    def answered(self, commit: Commit, offer: Offer, raw: Any) -> Answer:
        """A commit that was a plain one in the script, too."""
        self.plainly += 1
        return PLAIN_ANSWER(commit, offer, raw)

    def keys(self) -> dict[str, Any]:
        """All there is in this database."""
        names = sorted(self.client.keys("*"))
        with self.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.type(name)
            kinds = pipe.execute()
            for name, kind in zip(names, kinds, strict=True):
                READ[kind](pipe, name)
            return {
                name: self._said(name, kind, found)
                for name, kind, found in zip(names, kinds, pipe.execute(), strict=True)
            }

    def _said(self, key: bytes, kind: bytes, found: Any) -> Any:
        if kind == b"hash":
            return self._fields(key, found)
        if kind == b"zset":
            return sorted((name, _about(score)) for name, score in found)
        if kind == b"stream":
            return [(id, {name: _untimed(value) for name, value in said.items()}) for id, said in found]
        return found

    def _fields(self, key: bytes, fields: dict[bytes, Any]) -> dict[bytes, Any]:
        """A hash; JSON in it as what it says, since Lua's tables have no order. `jobs` of a thread is for wide steps: a
        plain commit leaves it as it is."""
        if b":thread:" in key and fields.get(b"width") == b"1":
            fields.pop(b"jobs", None)
        return {name: _read(value) for name, value in fields.items()}


def _read(value: bytes) -> Any:
    if value[:1] in (b"{", b"["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return _untimed(value)


def _untimed(value: bytes) -> bytes:
    """Without the time: milliseconds and dates."""
    return re.sub(rb"\b\d{13}\b|\d{4}-\d\d-\d\dT[\d:.]+Z", b"<time>", value)


def _about(score: float) -> str:
    """A score, if it is a time only in what unit: the two sides are moments apart."""
    return "ms" if score > 1e12 else "s" if score > 1e9 else str(score)


@dataclass
class Story:
    """Random moves, made on both sides."""

    dice: random.Random
    sides: tuple[Side, Side]
    monkeypatch: pytest.MonkeyPatch
    held: list[Lease] = field(default_factory=list[Lease])
    last: Pair | None = None
    made: int = 0

    def both(self, move: str, *args: Any, **more: Any) -> Any:
        """The move on both sides. Returns what both were told."""
        told: list[Any] = []
        for side in self.sides:
            self.monkeypatch.setattr(redismoves, "new_id", side.dice)
            self.monkeypatch.setattr(redismoves, "salt", lambda dice=side.dice: dice()[-4:])
            self.monkeypatch.setattr(redismoves, "_plain", PLAIN if side.plain else _general)
            self.monkeypatch.setattr(redismoves, "_plain_answer", side.answered)
            told.append(getattr(side.moves, move)(*args, **more))
        assert _told(told[0]) == _told(told[1]), move
        return told[0]

    def offer(self, queues: bool = True) -> Offer:
        self.made += 1
        count = self.dice.choice((0, 1, 1, 1, 1, 2, 3))
        tokens = tuple(f"{self.made:018d}{i:04d}" for i in range(count))
        named = tuple(self.dice.sample(QUEUES[:2], self.dice.choice((1, 2)))) if queues else ()
        return Offer("w1", tokens, named, self.dice.choice(("", "w1")), LEASE_MS)

    def step(self) -> None:
        moves = ("start", "claim", *["commit"] * 24, "done", "fail", "retry", "resend", "lose", "again", "odd")
        move = self.dice.choice(moves if self.held else ("start", "claim", "claim"))
        getattr(self, move)()
        first, second = (side.keys() for side in self.sides)
        assert first == second, move

    def start(self) -> None:
        run, thread = f"r{self.made}", self.dice.choice(THREADS)
        fields: e.Fields = {"run": run, "kind_of_run": "input", "task": "start", "node": "__start__", "graph": "g"}
        self.made += 1
        self.both(
            "start", Start(thread, run, "input", "g", self.dice.choice(QUEUES[:2]), run, {**fields, "queue": "g"})
        )

    def claim(self) -> None:
        for side in self.sides:
            side.client.delete("rq:suspended")
        tokens = (f"{self.made:018d}abcd", f"{self.made:018d}efgh")
        self._take(self.both("claim", self.offer()._replace(tokens=tokens)))

    def _take(self, answer: Answer) -> None:
        known = {lease.token for lease in self.held}
        self.held += [lease for lease in answer.leases if lease.token not in known]

    def _pop(self) -> Lease | None:
        return self.held.pop(self.dice.randrange(len(self.held))) if self.held else None

    def commit(self) -> None:
        """The next checkpoint: mostly with one task next."""
        if (lease := self._pop()) is None:
            return
        nodes = [self.dice.choice("abc") for _ in range(self.dice.choice((*[1] * 20, 0, 2)))]
        rows = tuple(
            (f"p{i}", node, self.dice.choice(QUEUES[:2]), self.dice.choice((0, 0, 2.5, 30)))
            for i, node in enumerate(nodes)
        )
        made = list[e.Fields]()
        digest = lease.digest
        for i in range(2 if lease.task == "start" and self.dice.random() < 0.8 else 1):  # behind START there are two
            said = e.checkpoint(
                digest, lease.n + i + 1, source="loop", step=lease.n + i, graph="g@1", run=lease.run, task=lease.task,
                token=lease.token, next=json.dumps(rows), delta=e.wrap(b"\x80"),
            )  # fmt: skip
            digest = str(said["digest"])
            made.append(said)
        head = (lease.n + len(made), digest, lease.n + len(made) - 1)
        stop: Any = self.dice.choice((*[""] * 12, "interrupted"))
        if lease.plans:
            commit = Commit(lease, "next", tuple(made), head, rows, stop=stop if rows else "")
            self._commit((commit, self.offer()))
        else:
            self.held.append(lease)
            self.done()

    def _commit(self, pair: Pair) -> None:
        self.last = pair
        self._take(self.both("commit", [pair])[0])

    def done(self) -> None:
        lease = self._pop()
        if lease is None or lease.plans:
            return
        fact = e.summed(e.fact("task_done", lease.run, task=lease.task, token=lease.token, writes=e.pack_writes([])))
        self._commit((Commit(lease, "done", (fact,)), self.offer()))

    def fail(self, delay_ms: int = 0) -> None:
        if (lease := self._pop()) is None:
            return
        outcome: Any = "retry" if delay_ms else "failed"
        fact = e.fact("task_failed", lease.run, task=lease.task, token=lease.token, error="{}")
        self._commit((Commit(lease, outcome, (fact,), reason="x", delay_ms=delay_ms), self.offer()))

    def retry(self) -> None:
        self.fail(3_600_000)

    def resend(self) -> None:
        """The reply was lost: the same commit again."""
        if self.last is not None:
            self._take(self.both("commit", [self.last])[0])

    def lose(self) -> None:
        if (lease := self._pop()) is not None:
            self.both("release", "w1", [lease.token], self.dice.choice(("job", "lost")))

    def again(self) -> None:
        """Somebody pushes a job once more."""
        queue = KEYS.rq_queue(self.dice.choice(QUEUES[:2]))
        for side in self.sides:
            if ids := side.client.lrange(queue, 0, 0):
                side.client.rpush(queue, ids[0])

    def odd(self) -> None:
        """Something that is none of ours, or is gone."""
        what, queue = self.dice.randrange(5), KEYS.rq_queue(self.dice.choice(QUEUES[:2]))
        for side in self.sides:
            ids: list[bytes] = side.client.lrange(queue, 0, 0)
            if what == 0:
                side.client.lpush(queue, "stranger")
                side.client.hset("rq:job:stranger", mapping={"data": "junk", "origin": "g"})
            elif what == 1 and ids:
                side.client.delete(b"rq:job:" + ids[0])
            elif what == 2 and ids:
                side.client.hset(b"rq:job:" + ids[0], "everstep", "not JSON")
            elif what == 3:
                side.client.set("rq:suspended", "1")
            elif what == 4 and ids:
                side.client.hset(
                    b"rq:job:" + ids[0], "everstep", json.dumps({"thread": "t0", "task": 7, "keys": KEYS.stem})
                )


def _told(answer: Any) -> Any:
    """An answer without the time of its leases."""
    if isinstance(answer, list):
        return [_told(each) for each in answer]
    if not hasattr(answer, "leases"):
        return answer
    untimed = tuple(lease._replace(at_ms=0) for lease in answer.leases)
    return answer._replace(leases=untimed) if isinstance(answer, Answer) else (answer.status, untimed)


def _general(commit: Commit, offer: Offer, stem: str) -> None:
    """No commit is a plain one."""


PLAIN, PLAIN_ANSWER = redismoves._plain, redismoves._plain_answer  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("part", range(2))
def test_a_plain_commit_leaves_behind_what_a_general_one_does(
    part: int, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = f"{random.randrange(2**32)} {part}"
    pool: Any = client.connection_pool
    other = redis.Redis(
        connection_pool=redis.ConnectionPool(pool.connection_class, **{**pool.connection_kwargs, "db": 1})
    )
    plainly = 0
    for number in range(25):
        story = Story(random.Random(f"{seed} {number}"), (Side(True, client), Side(False, other)), monkeypatch)
        try:
            for _ in range(40):
                story.step()
        except AssertionError:
            print(f"seed {seed}, story {number}")
            raise
        plainly += story.sides[0].plainly
    assert plainly > 80, "the stories must be about plain commits"
