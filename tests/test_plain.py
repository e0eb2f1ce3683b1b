"""The plain commit stands beside the general one in the same script, for speed. They must leave the same behind.

Two databases see the same moves with the same dice; on one of them every commit is a general one, and those that leave
together on the other go one behind the other there. After each move all their keys say the same, but for the time, and
so does what the caller was told.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import CorruptEntry
from everstep_checkpoint.keys import Keys
from everstep_scheduler.moves import plain, redismoves
from everstep_scheduler.moves.contract import Answer, Commit, Lease, Offer, Start
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts

KEYS = Keys(rq="rq")
THREADS = ("t0", 't"1', "t\\2", "t 3", "{t4}", "t%5/")
NODES = ("a", "b", "c", 'a"b', "a\\", 'n","q":"h","w":0,"j":"x', "/%d+[^", "\u00e4")  # told as they are
TIMEOUTS = (0, 0, 2.5, 30, 10**12, 1e-5)
QUEUES = ("g", "h", "g.suspect")
LEASE_MS = 60_000
MOVES = (
    "start", "claim", *["commit"] * 12, *["together"] * 12, "done", "fail", "retry", "resend", "lose", "again", "odd",
)  # fmt: skip
QUIET = ("start", "claim", *["commit"] * 40, "resend", "lose")
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
    in_company: int = 0
    alone: int = 0
    usual: int = 0

    def __post_init__(self) -> None:
        self.client.flushdb()
        self.client.set(KEYS.alive, "1")
        self.client.set(KEYS.rq_alive, "1")
        self.client.script_load(redismoves.source("commit"))
        self.moves = RedisMoves(Scripts(self.client, KEYS))

    def answered(self, commits: Sequence[Commit], offer: Offer, raw: Any) -> list[Answer | None]:
        """Commits that were plain ones in the script, too."""
        answers = PLAIN_ANSWERS(commits, offer, raw)
        done = len(commits) - answers.count(None)
        self.plainly += done
        self.in_company += done if len(commits) > 1 else 0
        self.alone += isinstance(raw, bytes)
        pairs = zip(commits, answers, strict=True)
        self.usual += sum(IS_USUAL(each, each.entries[-1], offer.owner) for each, answer in pairs if answer is not None)
        return answers

    def together(self, commits: Sequence[Commit], offer: Offer) -> list[Answer | None]:
        return self.moves.answers_to(commits, offer, self.client.execute_command(*self.moves.command(commits, offer)))

    def one_by_one(self, commits: Sequence[Commit], offer: Offer) -> list[Answer]:
        """The same, each on its own: with a token each, and the last one with what tokens are left."""
        last, tokens = len(commits) - 1, offer.tokens
        shares = [tokens[i : i + 1] if i < last else tokens[i:] for i in range(len(commits))]
        pairs = zip(commits, shares, strict=True)
        return [self.moves.commit([(each, offer._replace(tokens=share))])[0] for each, share in pairs]

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
        if b":bell:" in key:
            return sorted(found)  # rings of one call for several queues have no order
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
    threads: Sequence[str] = THREADS
    moves: Sequence[str] = MOVES
    held: list[Lease] = field(default_factory=list[Lease])
    last: Pair | None = None
    made: int = 0

    def both(self, move: str, *args: Any, **more: Any) -> Any:
        """The move on both sides. Returns what both were told."""
        told: list[Any] = []
        for side in self.sides:
            self._turn_to(side, side.dice)
            told.append(getattr(side.moves, move)(*args, **more))
        assert _told(told[0]) == _told(told[1]), move
        return told[0]

    def _turn_to(self, side: Side, dice: Callable[[], str]) -> None:
        self.monkeypatch.setattr(redismoves, "new_id", dice)
        self.monkeypatch.setattr(redismoves, "salt", lambda: dice()[-4:])
        self.monkeypatch.setattr(redismoves, "is_plain", IS_PLAIN if side.plain else lambda _: False)
        self.monkeypatch.setattr(redismoves, "plain_answers", side.answered)

    def offer(self, bare: float = 0.05) -> Offer:
        self.made += 1
        if self.dice.random() < bare:  # who runs one task and no more, as under RQ's own worker
            return Offer("w1")
        count = self.dice.choice((0, 1, 1, 1, 1, 2, 3))
        tokens = tuple(f"{self.made:018d}{i:04d}" for i in range(count))
        named = tuple(self.dice.sample(QUEUES[:2], self.dice.choice((1, 2))))
        return Offer("w1", tokens, named, self.dice.choice(("", "w1")), LEASE_MS)

    def step(self) -> None:
        move = self.dice.choice(self.moves if self.held else ("start", "claim", "claim"))
        getattr(self, move)()
        first, second = (side.keys() for side in self.sides)
        assert first == second, move

    def start(self) -> None:
        run, thread = f"r{self.made}", self.dice.choice(self.threads)
        fields: e.Fields = {"run": run, "kind_of_run": "input", "task": "start", "node": "__start__", "graph": "g"}
        self.made += 1
        self.both(
            "start", Start(thread, run, "input", "g", self.dice.choice(QUEUES[:2]), run, {**fields, "queue": "g"})
        )

    def claim(self) -> None:
        for side in self.sides:
            side.client.delete("rq:suspended")
        tokens = tuple(f"{self.made:018d}{name}" for name in ("abcd", "efgh", "ijkl"))
        self._take(self.both("claim", self.offer(bare=0)._replace(tokens=tokens)))

    def _take(self, answer: Answer) -> None:
        known = {lease.token for lease in self.held}
        self.held += [lease for lease in answer.leases if lease.token not in known]

    def _pop(self) -> Lease | None:
        return self.held.pop(self.dice.randrange(len(self.held))) if self.held else None

    def commit(self) -> None:
        """The next checkpoint."""
        if (lease := self._pop()) is None:
            return
        if lease.plans:
            self._commit((self._next(lease), self.offer()))
        else:
            self.held.append(lease)
            self.done()

    def together(self) -> None:
        """Several that leave together. What is not done in company goes alone then. What leads to another queue comes
        late, and runs that end come last: alone, one that comes before leaves its token idle."""
        found = {lease.thread: lease for lease in self.held if lease.plans}
        commits = [commit for lease in found.values() if IS_PLAIN(commit := self._next(lease))]
        if len(commits) < 2:
            return
        self.made += 1
        tokens = tuple(f"{self.made:018d}{i:04d}" for i in range(self.dice.randint(0, len(commits))))
        queue = self.dice.choice(QUEUES[:2])
        commits.sort(key=lambda each: 2 if not each.next else int(each.next[0][2] != queue))
        offer = Offer("w1", tokens, (queue,), self.dice.choice(("", "w1")), LEASE_MS)
        plain, general = self.sides
        self._turn_to(plain, lambda: "drawn once for all")
        answers = plain.together(commits, offer)
        done = [each for each, answer in zip(commits, answers, strict=True) if answer is not None]
        self._turn_to(general, lambda: "drawn once for all")
        told = general.one_by_one(done, offer) if done else []
        leases = [lease for answer in answers if answer is not None for lease in answer.leases]
        assert [x._replace(at_ms=0) for x in leases] == [x._replace(at_ms=0) for answer in told for x in answer.leases]
        assert [x.run_status for x in answers if x is not None] == [x.run_status for x in told]
        self.held = [lease for lease in self.held if lease.token not in {each.lease.token for each in commits}]
        self._take(Answer("ok", tuple(leases)))
        for each, answer in zip(commits, answers, strict=True):
            if answer is None:
                self._commit((each, offer if not done else offer._replace(tokens=())))
                done.append(each)

    def _next(self, lease: Lease) -> Commit:
        """The next checkpoint: mostly with one task next."""
        nodes = [self.dice.choice(NODES) for _ in range(self.dice.choice((*[1] * 20, 0, 2)))]
        rows = tuple(
            (f"p{i}", node, self.dice.choice(QUEUES[:2]), self.dice.choice(TIMEOUTS)) for i, node in enumerate(nodes)
        )
        made = list[e.Fields]()
        digest = lease.digest
        for i in range(2 if lease.task == "start" and self.dice.random() < 0.8 else 1):  # behind START there are two
            shown: e.Fields = {"source": "loop", "step": lease.n + i, "graph": "g@1", "run": lease.run, "by": "w1"}
            shown |= {"node": self.dice.choice(("a", "\u00e4")), "task": lease.task, "attempt": lease.attempt}
            shown |= {"token": lease.token, "queue": lease.queue, "started": lease.at_ms, "ms": 7}
            shown["next"] = json.dumps(rows)
            usual = self.dice.random() < 0.8
            shown |= {"delta": e.wrap(b"\x80"), "writes": e.pack_writes([])} if usual else {"delta": e.wrap(b"\x80")}
            said = e.checkpoint(digest, lease.n + i + 1, **shown)
            digest = str(said["digest"])
            made.append(said)
        head = (lease.n + len(made), digest, lease.n + len(made) - 1)
        stop: Any = self.dice.choice((*[""] * 12, "interrupted"))
        return Commit(lease, "next", tuple(made), head, rows, stop=stop if rows else "")

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


IS_PLAIN, PLAIN_ANSWERS, IS_USUAL = plain.is_plain, plain.answers, plain.is_usual


@pytest.mark.parametrize(("part", "quiet"), [(0, False), (1, False), (2, True)])
def test_a_plain_commit_leaves_behind_what_a_general_one_does(
    part: int, quiet: bool, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one thread most commits are alone with empty queues; of many some wait, and some leave together."""
    seed = f"{random.randrange(2**32)} {part}"
    pool: Any = client.connection_pool
    other = redis.Redis(
        connection_pool=redis.ConnectionPool(pool.connection_class, **{**pool.connection_kwargs, "db": 1})
    )
    plainly = in_company = alone = usual = 0
    for number in range(25):
        sides, dice = (Side(True, client), Side(False, other)), random.Random(f"{seed} {number}")
        lone = (THREADS[number % len(THREADS)],)
        story = Story(dice, sides, monkeypatch, lone, QUIET) if quiet else Story(dice, sides, monkeypatch)
        try:
            for _ in range(40):
                story.step()
        except AssertionError:
            print(f"seed {seed}, story {number}")
            raise
        plainly += story.sides[0].plainly
        in_company += story.sides[0].in_company
        alone += story.sides[0].alone
        usual += story.sides[0].usual
    print(f"{plainly} plain commits, {in_company} in company, {alone} alone")
    assert plainly > 70 and (alone > 10 if quiet else in_company > 15), "the stories must be about these"
    assert 20 < usual < plainly, "most with a usual checkpoint"


def plain_commit(lease: Lease) -> Commit:
    row = ("p0", "a", "g", 0)
    said = e.checkpoint(
        lease.digest, lease.n + 1, source="loop", step=lease.n, graph="g@1", run=lease.run, task=lease.task,
        token=lease.token, next=json.dumps([row]), delta=e.wrap(b"\x80"),
    )  # fmt: skip
    return Commit(lease, "next", (said,), (lease.n + 1, str(said["digest"]), lease.n), (row,))


def test_in_company_each_commit_stands_for_itself(client: redis.Redis) -> None:
    """One whose log takes no such entry, one that lost its lease, and one whose record is gone: the others go on."""
    side = Side(True, client)
    for i in range(5):
        fields: e.Fields = {"run": f"r{i}", "kind_of_run": "input", "task": "start", "node": "a", "graph": "g"}
        side.moves.start(Start(f"t{i}", f"r{i}", "input", "g", "g", f"r{i}", {**fields, "queue": "g"}))
    tokens = tuple(f"{i:022d}" for i in range(10))
    leases = side.moves.claim(Offer("w1", tokens[:5], ("g",), "w1", LEASE_MS)).leases
    commits = [plain_commit(lease) for lease in leases]
    client.xadd(KEYS.log("t1"), {"v": 1}, "9-0")
    side.moves.release("w1", [leases[2].token], "lost")
    client.delete(KEYS.open("t3"))
    client.delete(KEYS.rq_queue("g"))  # the lost one's next attempt: nothing waits ahead of what comes
    answers = side.together(commits, Offer("w1", tokens[5:], ("g",), "w1", LEASE_MS))
    assert [answer is not None and answer.status for answer in answers] == ["ok", False, False, False, "ok"]
    came = [lease for answer in answers if answer is not None for lease in answer.leases]
    assert [(lease.thread, lease.n, lease.task) for lease in came] == [("t0", 1, "p0"), ("t4", 1, "p0")]
    held = {lease.token for lease in came} | {leases[1].token, leases[3].token}
    found: Any = client.hkeys(KEYS.held("w1"))
    assert {token.decode() for token in found} == held
    assert client.llen(KEYS.rq_queue("g")) == 0
    assert client.hget(KEYS.thread("t1"), "n") == b"0"
    with pytest.raises(CorruptEntry, match="t1"):
        side.moves.commit([(commits[1], Offer("w1"))])
    assert side.moves.commit([(commits[2], Offer("w1"))])[0].status == "fenced"
    assert side.moves.commit([(commits[0], Offer("w1"))])[0].status == "already"


@pytest.mark.parametrize("queue", ["g", "team/g", "team g"])
def test_what_a_plain_commit_queued_is_taken_by_the_next_one(queue: str, client: redis.Redis) -> None:
    """Whatever the queue's name: its record is read as it was written."""
    side = Side(True, client)
    for i in range(2):
        fields: e.Fields = {"run": f"r{i}", "kind_of_run": "input", "task": "start", "node": "a", "graph": "g"}
        side.moves.start(Start(f"t{i}", f"r{i}", "input", "g", queue, f"r{i}", {**fields, "queue": queue}))
    tokens = tuple(f"{i:022d}" for i in range(4))
    leases = side.moves.claim(Offer("w1", tokens[:2], (queue,), "w1", LEASE_MS)).leases
    first, second = [plain_commit(lease)._replace(next=(("p0", "a", queue, 0),)) for lease in leases]
    for commit, token, where in ((first, tokens[2], "other"), (second, tokens[3], queue)):
        raw = side.client.execute_command(
            *side.moves.command([commit], Offer("w1", (token,), (where,), "w1", LEASE_MS))
        )
        assert isinstance(raw, list), "it was plain in the script, too"
    assert [row[3:6] for row in raw[1]] == [[b"t0", b"p0", queue.encode()]]


@pytest.mark.parametrize("raw", [b"garbage", b"", b"OK", b'"x"', b'{"status":"ok"}', None, 1])
def test_what_neither_of_the_two_answers_is_no_answer_of_theirs(raw: object) -> None:
    assert not plain.is_answer(raw)


@pytest.mark.parametrize("name", ["graph", "jid"])
def test_a_thread_s_hash_that_lacks_a_field_is_left_to_the_general_commit(name: str, client: redis.Redis) -> None:
    """A commit that is alone writes nothing before it knows all that it will say."""
    side = Side(True, client)
    fields: e.Fields = {"run": "r", "kind_of_run": "input", "task": "start", "node": "a", "graph": "g", "queue": "g"}
    side.moves.start(Start("t", "r", "input", "g", "g", "r", fields))
    (first,) = side.moves.claim(Offer("w1", ("1" * 22,), ("g",), "w1", LEASE_MS)).leases
    (lease,) = side.moves.commit([(plain_commit(first), Offer("w1", ("2" * 22,), ("g",), "w1", LEASE_MS))])[0].leases
    commit = plain_commit(lease)
    said = {**commit.entries[0], "source": "loop", "by": "w1", "node": "a", "attempt": 1, "queue": "g", "started": 0}
    told: e.Fields = {each: said.get(each, 7) for each in plain.USUAL}
    commit = commit._replace(entries=(told,))
    assert plain.is_usual(commit, told, "w1")
    client.hdel(KEYS.thread("t"), name)
    text = client.hget(KEYS.open("t"), lease.task)
    lone = client.register_script(redismoves.source("commit").partition("-- plain:")[0] + "return 'left'")
    words = plain.words([commit], KEYS.stem, KEYS.rq, Offer("w1", ("3" * 22,), ("g",), "w1", LEASE_MS), "salt", "spare")
    assert lone([KEYS.stem], words) == b"left"
    assert client.hget(KEYS.open("t"), lease.task) == text
    client.hset(KEYS.thread("t"), name, "g")
    assert plain.is_answer(lone([KEYS.stem], words))
