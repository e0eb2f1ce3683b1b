"""Commits that left together, and then something breaks: no task is leased twice, and no lease is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import redis

from everstep_checkpoint import entries as e
from everstep_scheduler.moves.contract import Commit, Offer, Start
from everstep_scheduler.steps.perform import Result
from everstep_workers.hands import Hand, Hands
from everstep_workers.line import LOST
from everstep_workers.loop import Committer
from everstep_workers.slots import OFFER_MAX, Done, Held
from everstep_workers.work import Posted, Settled, Setup, Work
from servers import wait_for
from test_loading import NOBODY
from test_plain import KEYS, LEASE_MS, Side, plain_commit
from test_worker import graph


class Company:
    """Three threads that a process holds, a fourth one that waits, and the process's work."""

    def __init__(self, url: str, client: Any, waiting: int = 1, idle: int = 0) -> None:
        self.client = client
        self.side = Side(True, client)
        for i in range(3 + waiting):
            self.start(i)
        self.work = Work(Setup(url, "w1", ("g",), KEYS, concurrency=3 + idle, lease_ms=LEASE_MS), {})
        first = self.work.offer(self.work.slots.take(3))
        self.held = self.work.admit(first, self.work.moves.claim(first).leases)
        self.commits = [plain_commit(each.lease) for each in self.held]

    def start(self, i: int) -> None:
        fields: e.Fields = {"run": f"r{i}", "kind_of_run": "input", "task": "start", "node": "a", "graph": "g"}
        self.side.moves.start(Start(f"t{i}", f"r{i}", "input", "g", "g", f"r{i}", {**fields, "queue": "g"}))

    def posted(self, commits: Sequence[Commit]) -> Posted:
        each = [
            Settled(Done(held, Result(None, None, 0)), commit) for held, commit in zip(self.held, commits, strict=True)
        ]
        return Posted(each, self.work.refill(len(each), 8), 0, self.work.own_line())

    def arrives(self, posted: Posted) -> Any:
        return self.client.execute_command(*self.work.moves.command([x for _, x in posted.each], posted.offer))

    def leased(self) -> dict[str, list[tuple[str, str]]]:
        """The tasks in the place `lease`, by their tokens."""
        found: dict[str, list[tuple[str, str]]] = {}
        for key in self.client.scan_iter(KEYS.open("*")):
            for task, text in self.client.hgetall(key).items():
                record = json.loads(text)
                if record["p"] == "lease":
                    thread = key.decode().removeprefix(KEYS.open(""))
                    found.setdefault(record["t"], []).append((thread, task.decode()))
        return found

    def check(self, fresh: Sequence[Held]) -> None:
        """What is leased is held here, each under a token of its own; and no slot is lost."""
        held = {lease.token: [(lease.thread, lease.task)] for lease in (each.lease for each in fresh)}
        assert self.leased() == held
        assert set(self.work.held) == {*held}
        named: Any = self.client.hkeys(KEYS.held("w1"))
        assert {token.decode() for token in named} == {*held}
        assert len(self.work.slots) == 3 - len(fresh)
        self.work.close()


@pytest.fixture(params=[0, 1, 3], ids=lambda count: f"{count} waiting")
def company(request: pytest.FixtureRequest, redis_url: str, client: redis.Redis) -> Company:
    return Company(redis_url, client, request.param)


def test_a_lost_reply_to_a_company_of_which_only_some_were_done_leases_nothing_twice(company: Company) -> None:
    """The run of one ends, and another one is queued behind it: that is none for company."""
    fields: e.Fields = {"run": "q0", "kind_of_run": "input", "task": "start", "node": "a", "graph": "g", "queue": "g"}
    started = company.side.moves.start(Start(company.commits[0].lease.thread, "q0", "input", "g", "g", "q0", fields))
    assert started.status == "queued"
    posted = company.posted([company.commits[0]._replace(next=()), *company.commits[1:]])
    assert company.arrives(posted)[3] == -1
    company.check(company.work.came(posted, None))


def test_a_lost_reply_to_a_company_that_was_done_loses_no_lease(company: Company) -> None:
    posted = company.posted(company.commits)
    company.arrives(posted)
    fresh = company.work.came(posted, None)
    assert len(fresh) == 3
    company.check(fresh)


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_company_that_comes_late_between_its_commits_leases_nothing_twice(
    company: Company, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is gone, and it arrives all the same, when some of its commits have been sent alone."""
    posted, moves, sent = company.posted(company.commits), company.work.moves, list[Commit]()
    alone = moves.commit

    def commit(commits: Sequence[tuple[Commit, Offer]]) -> Any:
        if len(sent) == when:
            company.arrives(posted)
        sent.append(commits[0][0])
        return alone(commits)

    monkeypatch.setattr(moves, "commit", commit)
    company.check(company.work.came(posted, None))


@pytest.mark.source
def test_a_commit_that_stumbles_takes_no_lease_with_it(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer tells of all leases."""
    posted = company.posted(company.commits)
    settled = company.work._settled  # pyright: ignore[reportPrivateUsage]

    def stumbles(done: Done, *more: Any) -> None:
        if done.held is posted.each[0].done.held:
            raise RuntimeError("stumbled")
        settled(done, *more)

    monkeypatch.setattr(company.work, "_settled", stumbles)
    fresh = company.work.came(posted, company.arrives(posted))
    assert len(fresh) == 3
    company.check(fresh)


def test_a_company_that_leaves_more_jobs_than_it_takes_rings_for_the_others(
    redis_url: str, client: redis.Redis
) -> None:
    """It offered fewer slots than it had commits; who waits at a bell must hear of the rest."""
    company = Company(redis_url, client, 1)
    for number, process in enumerate(("w2", "w3", "w4")):
        client.zadd(KEYS.waiting("g"), {process: number})
    posted = company.posted(company.commits)
    posted = posted._replace(offer=posted.offer._replace(tokens=posted.offer.tokens[:1]))
    company.work.came(posted, company.arrives(posted))
    assert client.llen(KEYS.rq_queue("g")) == 3
    rung = [process for process in ("w2", "w3", "w4") if client.llen(KEYS.bell(process))]
    assert rung == ["w2", "w3"]
    company.work.close()


def test_one_that_cannot_be_read_ahead_keeps_no_other_one_from_its_run(redis_url: str, client: redis.Redis) -> None:
    """Whoever writes our keys by hand can name a thread that no command can name."""
    work = Work(Setup(redis_url, "w1", ("g",), KEYS), {"g": graph("g", a=lambda _: {})})
    begun = list[Held]()
    work.hands = mock.Mock(start=begun.extend)
    held = [Held(NOBODY._replace(token=name, thread=name, graph="g", conf="0-1")) for name in ("t", "t\ud800")]
    assert work.spread(held) == []
    assert begun == held
    work.close()


def test_a_committer_that_posts_several_at_once_stops_at_its_bound() -> None:
    nobody: Any = None
    committer = Committer(nobody)
    committer._ready.put(Done(Held(NOBODY), Result(None, None, 0)))  # pyright: ignore[reportPrivateUsage]
    committer._posted.extend([Posted((), Offer("w1"), 0, nobody)] * (OFFER_MAX + 1))  # pyright: ignore[reportPrivateUsage]
    assert committer._next() is None  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("error", [ValueError("I/O operation on closed file"), AttributeError("no parser")])
def test_a_reply_that_breaks_in_an_odd_way_is_lost_like_any_other(
    company: Company, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was posted is known to nobody but whoever collects: raised there, commits and their slots were gone."""
    posted = company.posted(company.commits)
    line = posted.line
    at = line.post(company.work.moves.command([commit for _, commit in posted.each], posted.offer))
    with monkeypatch.context() as patched:
        patched.setattr(line._one, "read_response", mock.Mock(side_effect=error))  # pyright: ignore[reportPrivateUsage]
        fresh = company.work.came(posted, line.collect(at))
    assert len(fresh) == 3
    company.check(fresh)


def test_an_answer_to_other_commits_than_these_ends_the_connection(company: Company) -> None:
    """One reply unread, and each later one would be taken for the answer to the commits before it."""
    posted = company.posted(company.commits)
    line = posted.line
    at = line.post(company.work.moves.command([commit for _, commit in posted.each], posted.offer), ("PING",))
    stamp, *rest = line.collect(at)
    fresh = company.work.came(posted._replace(at=at), [stamp + b"x", *rest])
    assert line.collect(at) is None, "nobody knows what it answers"
    assert len(fresh) == 3
    company.check(fresh)


def test_answers_that_are_shifted_by_one_that_nobody_read_are_believed_by_nobody(company: Company) -> None:
    """All of the same size, and all read from the socket before the first is looked at."""
    committer = Committer(company.work)
    line = committer._line  # pyright: ignore[reportPrivateUsage]
    line.post(("PING",))
    for held, commit in zip(company.held, company.commits, strict=True):
        settled = Settled(Done(held, Result(None, None, 0)), commit)
        committer._posted += company.work.posted(line, [settled], 1)  # pyright: ignore[reportPrivateUsage]
    fresh = list[Held]()
    while committer._posted:  # pyright: ignore[reportPrivateUsage]
        fresh += committer._collected()  # pyright: ignore[reportPrivateUsage]
    company.check(fresh)


def broken(company: Company) -> Hand:
    """A thread whose connection the server has ended."""
    company.work.hands = mock.Mock()
    hand = Hand(company.work, Hands(company.work), "stuck")
    line = hand._line  # pyright: ignore[reportPrivateUsage]
    line.collect(line.post(("PING",)))
    return hand


@pytest.mark.parametrize("lost", [1, 2])
def test_what_a_stuck_thread_posted_over_a_connection_that_broke_is_sent_again(
    company: Company, client: redis.Redis, lost: int
) -> None:
    """redis-py connects where it is asked whether there is a reply: over the new connection none was under way."""
    hand = broken(company)
    untyped: Any = client
    with mock.patch.object(hand._line._one, "send_packed_command"):  # pyright: ignore[reportPrivateUsage]
        for held, commit in [*zip(company.held, company.commits, strict=True)][:lost]:
            hand._ready = [Settled(Done(held, Result(None, None, 0)), commit)]  # pyright: ignore[reportPrivateUsage]
            hand._send()  # pyright: ignore[reportPrivateUsage]
    untyped.client_kill_filter(_type="normal", skipme=True)

    def sent() -> bool:
        hand.relieve()
        return not hand._posted  # pyright: ignore[reportPrivateUsage]

    wait_for(sent, 10, "both to be sent again")
    assert [held.lease.token in company.work.held for held in company.held[:lost]] == [False] * lost


@pytest.mark.parametrize("error", [redis.ConnectionError("gone"), ValueError("odd")])
def test_what_goes_wrong_while_a_command_leaves_loses_what_left_before(
    company: Company, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = company.work.own_line()
    at = line.post(("PING",))
    with monkeypatch.context() as patched:
        patched.setattr(line._one, "send_packed_command", mock.Mock(side_effect=error))  # pyright: ignore[reportPrivateUsage]
        if isinstance(error, redis.RedisError):
            assert line.post(("PING",)) == LOST
        else:
            with pytest.raises(ValueError, match="odd"):
                line.post(("PING",))
    assert line.collect(at) is None
    assert line.collect(line.post(("ECHO", "new"))) == b"new"


def test_a_claim_that_comes_twice_has_leased_under_no_token_that_a_commit_offers(
    redis_url: str, client: redis.Redis
) -> None:
    company = Company(redis_url, client, waiting=0, idle=1)
    work = company.work
    claim = work.offer(work.slots.take())
    assert claim.tokens and not work.admit(claim, work.moves.claim(claim).leases), "there is nothing"
    company.start(3)
    company.start(4)
    work.moves.claim(claim)  # the same command, which a network held up
    posted = company.posted(company.commits)
    assert len(posted.offer.tokens) == 4
    work.came(posted, company.arrives(posted))
    assert [len(tasks) for tasks in company.leased().values()] == [1] * 5


def test_a_company_that_was_refused_whole_offers_with_its_first_commit(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something at the front of the queue is out of the ordinary, as jobs of fairness keys are. It is known that
    nothing was done: no claim is needed to learn what came of the offer."""
    company.client.lpush(KEYS.rq_queue("g"), "odd")
    company.client.hset(KEYS.rq_job("odd"), "everstep", "odd")
    posted, claim = company.posted(company.commits), mock.Mock(side_effect=AssertionError("a claim"))
    raw = company.arrives(posted)
    assert raw[3::2] == [-1, -1, -1]
    monkeypatch.setattr(company.work.moves, "claim", claim)
    fresh = company.work.came(posted, raw)
    assert fresh
    company.check(fresh)


@pytest.mark.source
def test_what_runs_were_promised_is_waited_for_once_for_all_replies_that_are_there(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that stalls would hold up each of them in turn."""
    for held in company.held:
        held.attempt = mock.Mock(record=mock.Mock(durability="replicas=1"))
    monkeypatch.setattr(company.work.performer, "committed", lambda *_: None)
    monkeypatch.setattr(company.work.promises, "report", report := mock.Mock())
    committer = Committer(company.work)
    line = committer._line  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(line, "has_reply", lambda posted: True)
    for posted in company.posted(company.commits).each:
        (alone,) = company.work.posted(line, [posted], 0)
        committer._posted.append(alone)  # pyright: ignore[reportPrivateUsage]
    assert committer._collected() == []  # pyright: ignore[reportPrivateUsage]
    assert report.call_count == 1
    company.work.close()
