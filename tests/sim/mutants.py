"""Defects, put into the model or into real code for a test: the simulation must find each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from everstep_scheduler.moves.contract import Answer, Commit, Lease, Offer, Renewed
from everstep_scheduler.steps import effects, settling
from everstep_workers.slots import Held
from everstep_workers.work import Posted, Work

from .gates import Gates
from .model import Call, Model, Record, Thread


class NoFence(Model):
    """Whoever commits a task that somebody has leased is taken to be that one."""

    def _holds(self, t: Thread, rec: Record, lease: Lease) -> bool:
        return rec.place == "lease"


class TwiceOnResend(Model):
    """A sibling's outcome that is sent again is written again."""

    def _holds(self, t: Thread, rec: Record, lease: Lease) -> bool:
        again = rec.place == "done" and rec.token == lease.token and t.n == lease.n and t.left > 1
        return again or super()._holds(t, rec, lease)


class AttemptNotRaised(Model):
    """A task that failed begins again as the same attempt."""

    def _lease(self, thread: str, t: Thread, task: str, rec: Record, call: Call) -> None:
        before = rec.attempt
        super()._lease(thread, t, task, rec, call)
        rec.attempt = max(before, 1)
        call.leases[-1] = call.leases[-1]._replace(attempt=rec.attempt)


class RefillDoubled(Model):
    """A task that a commit leases is also left in its queue, and whoever finds it there gets it, too."""

    def _accept(self, job: str, call: Call) -> None:
        thread, task = self.jobs.get(job, ("", ""))
        t = self.threads.get(thread)
        if t is not None and task in t.open and t.open[task].place == "lease":
            t.open[task].place = "job"
        super()._accept(job, call)
        if t is not None and task in t.open and t.width > 1:
            self.queues.setdefault(t.open[task].waits_in, []).append(job)


class ClaimForgets(Model):
    """A claim that is sent again is a new one: its tokens are leased once more."""

    def _resent(self, call: Call) -> bool:
        return False


class LostIsForgotten(Model):
    """A lease that ran out is dropped, and its task is not queued again."""

    def _lost(self, thread: str, t: Thread, task: str, rec: Record, *, reaped: bool) -> None:
        super()._lost(thread, t, task, rec, reaped=reaped)
        self.queues[rec.waits_in].remove(rec.job)


class LostKeepsToken(Model):
    """A lease that ran out can still commit: the task is queued again under the same token."""

    def _lost(self, thread: str, t: Thread, task: str, rec: Record, *, reaped: bool) -> None:
        token = rec.token
        super()._lost(thread, t, task, rec, reaped=reaped)
        rec.token = token

    def _holds(self, t: Thread, rec: Record, lease: Lease) -> bool:
        again = rec.place == "job" and rec.token == lease.token and (t.n, t.digest) == (lease.n, lease.digest)
        return again or super()._holds(t, rec, lease)


class WakeForgotten(Model):
    """A retry waits for a wake that never comes, where a sibling is still at work."""

    def _pass(self, t: Thread, rec: Record, commit: Commit, ids: list[str], call: Call) -> None:
        super()._pass(t, rec, commit, ids, call)
        if commit.outcome == "retry" and t.left > 1:
            self.wakes.clear()


class NextInputForgotten(Model):
    """Inputs that wait do not begin when the run before them rests."""

    def _rest(self, thread: str, t: Thread, status: str, **more: str) -> None:
        queued, t.queued = t.queued, []
        super()._rest(thread, t, status, **more)
        t.queued = queued


class CancelLeavesLeases(Model):
    """A cancel lets those that hold a lease go on."""

    def _withdraw(self, thread: str, t: Thread) -> None:
        leased = {task: rec for task, rec in t.open.items() if rec.place == "lease"}
        t.open = {task: rec for task, rec in t.open.items() if task not in leased}
        super()._withdraw(thread, t)
        t.open |= leased


class SiblingOvertaken(Model):
    """The last but one sibling already makes the join."""

    def _resolved(self, thread: str, t: Thread, call: Call) -> None:
        t.left -= t.left == 2 and t.width > 2
        super()._resolved(thread, t, call)


class RenewRevives(Model):
    """A renewal makes a lease of what holds nothing any more."""

    def renew(self, offer: Offer, before: int, **more: Any) -> Renewed:
        for token in offer.tokens:
            self.leases.setdefault(token, 0)
        return super().renew(offer, before, **more)


class UnheardOfIsOrphan(Model):
    """A renewal takes back what its owner could not have heard of when it was sent."""

    def renew(self, offer: Offer, before: int, **more: Any) -> Renewed:
        return super().renew(offer, self.clock(), **more)


class StartTwice(Model):
    """A run id that is known begins again."""

    def start(self, start: Any, offer: Any = None, caller: Any = None) -> Any:
        t = self.threads.get(start.thread)
        if t is not None and t.runs.get(start.run, ("",))[0] == "done":
            del t.runs[start.run]
        return super().start(start, offer, caller)


class SlotOfTheDead(Model):
    """Whose lease runs out keeps the slot of its limit."""

    def _lost(self, thread: str, t: Thread, task: str, rec: Record, *, reaped: bool) -> None:
        rec.gate = ""
        super()._lost(thread, t, task, rec, reaped=reaped)


class NobodyLetsIn(Gates):
    """Slots that are let go are for whoever comes, not for those who stand in line."""

    def serve(self) -> None:
        self.freed.clear()


class OneTooMany(Gates):
    """A limit of two lets three in."""

    def room(self, gate: str, said: dict[str, Any], more: int = 0) -> tuple[bool, int | None]:
        return super().room(gate, said, more - 1)


class LinePassed(Gates):
    """Who comes while there is room does not look whether others stand in line."""

    def enter(self, thread: str, t: Thread, task: str, rec: Record) -> bool:
        found = None if rec.gate else self.of(t, rec)
        if found is not None and self.room(*found)[0]:
            rec.gate = found[0]
        return super().enter(thread, t, task, rec)

    def let_go(self, rec: Record) -> None:
        super().let_go(rec)
        self.freed.clear()


class RateUncounted(Gates):
    """What begins is not counted within its time."""

    def begins(self, t: Thread, rec: Record) -> None:
        super().begins(t, rec)
        self.starts.clear()


class TimeLetsNobodyIn(Gates):
    """Nobody looks at a line when its time has come."""

    def serve(self) -> None:
        super().serve()
        self.wakes.clear()


def with_gates(gates: type[Gates]) -> type[Model]:
    return type(gates.__name__, (Model,), {"gates_as": gates})


@contextmanager
def as_they_came() -> Iterator[None]:
    """A join applies what siblings wrote in the order in which they were done."""
    real = settling._done_facts

    def unsorted(*args: Any) -> Any:
        return sorted(real(*args), key=lambda fact: fact.k)

    with mock.patch.object(settling, "_done_facts", unsorted):
        yield


@contextmanager
def sibling_lost() -> Iterator[None]:
    """A join that comes again leaves out what the last sibling wrote."""
    real = settling._done_facts

    def fewer(log: Any, lease: Lease) -> Any:
        facts = real(log, lease)
        return facts[:-1] if lease.attempt > 1 else facts

    with mock.patch.object(settling, "_done_facts", fewer):
        yield


@contextmanager
def effects_unread() -> Iterator[None]:
    """An attempt does not look what one before it recorded."""
    with mock.patch.object(effects.Effects, "_read", lambda self: {}):
        yield


@contextmanager
def lost_reply_is_settled() -> Iterator[None]:
    """A worker whose commit is not answered takes it as done."""
    real = Work._answered

    def answered(self: Work, done: Any, commit: Commit, answer: Answer | None, offer: Offer) -> Answer:
        return real(self, done, commit, answer or Answer("ok"), offer)

    with mock.patch.object(Work, "_answered", answered):
        yield


@contextmanager
def offer_goes_with_each() -> Iterator[None]:
    """Where no answer came to commits that had left together, each is sent alone with the tokens of all."""
    real = Work.came

    def came(self: Work, posted: Posted, raw: object) -> list[Held]:
        if raw is not None:
            return real(self, posted, raw)
        with mock.patch.object(self, "offer", lambda *_: posted.offer):
            return real(self, posted, raw)

    with mock.patch.object(Work, "came", came):
        yield


MODELS: tuple[type[Model], ...] = (
    NoFence, TwiceOnResend, AttemptNotRaised, RefillDoubled, ClaimForgets, LostIsForgotten, LostKeepsToken,
    WakeForgotten, NextInputForgotten, CancelLeavesLeases, SiblingOvertaken, RenewRevives, UnheardOfIsOrphan,
    StartTwice, SlotOfTheDead,
    *map(with_gates, (NobodyLetsIn, OneTooMany, LinePassed, RateUncounted, TimeLetsNobodyIn)),
)  # fmt: skip
PATCHES = (as_they_came, sibling_lost, effects_unread, lost_reply_is_settled, offer_goes_with_each)
