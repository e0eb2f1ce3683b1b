"""One schedule: a clock that jumps, dice, and coroutines of which one runs at a time, until it waits for the store.

    pick one that is ready ──► it runs to its next call of the store, or to a sleep ──► pick the next
          │ none is ready: the clock jumps to the first that will be

Whose turn it is, how long things take and what goes wrong follow from the seed alone.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import Any, Protocol

import greenlet  # type: ignore[import-untyped]

from everstep_scheduler.graph.asking import CURRENT
from everstep_scheduler.moves.contract import Answer, Started
from everstep_workers import slots, work

from .model import Model

_LOGGERS = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("everstep")]
TURNS_MAX = 60_000
LOOK_EVERY = 4
NEVER = float("inf")
LEASES_S = (4.0, 4.0, 10.0)  # short ones pass sooner, and leave fewer looks at nothing
BEGAN_S = 1_700_000_000.0
# What may go wrong at a call. Those that end attempts, or may, and those after which each node still ran once.
ENDING = ("crash", "crash after", "stall", "stall after", "slow", "slow reply", "expire", "kill all", "pool")
HARMLESS = ("lost", "reply lost", "late", "twice")
FAULTS = (*ENDING, *HARMLESS, *HARMLESS)


class Crashed(BaseException):
    """The process is dead. No `except Exception` of it sees this."""


class Astray(AssertionError):
    """What must hold does not."""


class Process(Protocol):
    """What coroutines belong to. `local(s)`: the time on its own clock."""

    name: str
    dead: bool
    stalled_until: float

    def local(self, now: float) -> float: ...
    def world_s(self, seconds: float) -> float: ...
    def ended(self) -> None: ...


class Actor:
    """A coroutine."""

    def __init__(self, world: World, body: Callable[[], object], process: Process | None) -> None:
        self.process = process
        self.wakes_at = world.now
        self.let: Any = greenlet.greenlet(self._run)
        self._body = body

    def _run(self) -> None:
        with suppress(Crashed):
            self._body()


class World:
    """The state of one schedule. `faults`: how many things may go wrong."""

    def __init__(
        self, seed: str, make_model: Callable[[World], Model], faults: int | None = None, tells: bool = False
    ) -> None:
        self.dice = random.Random(seed)
        self.now = BEGAN_S
        self.main: Any = greenlet.getcurrent()
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.turns = 0
        self.drawn = 0
        self.someone_died = self._burying = False
        self.failure: BaseException | None = None
        self.disturbed = False  # may a node have run more than once?
        self.tells = tells
        self.done: list[str] = []  # what happened, for those who look at a failure
        self.executed: Counter[tuple[str, int, str]] = Counter()
        self.faults_left = self.dice.choice((0, 1, 2, 4, 8)) if faults is None else faults
        self.fault_rate = self.dice.choice((0.01, 0.03, 0.1))
        self.lease_s = self.dice.choice(LEASES_S)
        self.haste = self.dice.choice((0.001, 0.01, 0.2))  # seconds that a call is on its way, about
        self.judge: Callable[[], None] = lambda: None
        self.model = make_model(self)

    def new_id(self) -> str:
        self.drawn += 1
        return f"{self.drawn:014d}{self.dice.getrandbits(32):08x}"

    # coroutines

    def spawn(self, body: Callable[[], object], process: Process | None = None, after_s: float = 0.0) -> Actor:
        actor = Actor(self, body, process)
        actor.let.parent = self.main
        actor.wakes_at = self.now + after_s
        self.actors.append(actor)
        return actor

    def pause(self, seconds: float) -> None:
        """The coroutine that runs waits; others go on. Raises Crashed if its process is dead."""
        actor = self.current
        assert actor is not None, "only coroutines wait"
        self.check(actor)
        actor.wakes_at = self.now + seconds
        self._give_way(actor)
        self.check(actor)

    def _give_way(self, actor: Actor) -> None:
        """The next turn, without a detour through `run`, unless that has something to look at."""
        if self.turns % LOOK_EVERY == 0 or self.someone_died or self.failure is not None or self._burying:
            self.main.switch()
            return
        self.turns += 1
        following = self.current = self._next()
        if following is not actor:
            following.let.switch()

    @staticmethod
    def check(actor: Actor) -> None:
        if actor.process is not None and actor.process.dead:
            raise Crashed

    def local_sleep(self, seconds: float) -> None:
        """Sleep by the clock of the process that runs."""
        process = self.current.process if self.current is not None else None
        self.pause(process.world_s(seconds) if process is not None else seconds)

    def local_now(self) -> float:
        process = self.current.process if self.current is not None else None
        return self.now if process is None else process.local(self.now)

    def run(self, until: Callable[[], bool], what: str) -> None:
        """Give turns until it is so. Raises Astray if it never comes to that."""
        while True:
            if self.turns % LOOK_EVERY == 0 and until():
                return
            self.turns += 1
            if self.turns > TURNS_MAX:
                raise Astray(f"{what}: not after {TURNS_MAX} turns, {self.now - BEGAN_S:.0f} s")
            self._turn()
            if self.failure is not None:
                raise self.failure

    def _turn(self) -> None:
        if self.someone_died:
            self.bury()
        self.current = self._next()
        self.current.let.switch()
        actor, self.current = self.current, None  # others may have had turns meanwhile; this one waits, or has ended
        if actor.let.dead:
            self.actors.remove(actor)

    def _next(self) -> Actor:
        """One of those that are ready; else the first that will be, and the clock jumps there."""
        ready: list[Actor] = []
        first, now = NEVER, self.now
        for actor in self.actors:
            at, process = actor.wakes_at, actor.process
            if process is not None and process.stalled_until > at:
                at = process.stalled_until
            if at <= now:
                ready.append(actor)
            elif at < first:
                first, soonest = at, actor
        if ready:
            return ready[0] if len(ready) == 1 else ready[int(self.dice.random() * len(ready))]
        if first == NEVER:
            raise Astray("nothing can go on")
        self.now = first
        return soonest

    def bury(self, everybody: bool = False) -> None:
        """End the coroutines of dead processes, where they stand."""
        self.someone_died, self._burying = False, True
        dead = [each for each in self.actors if everybody or (each.process is not None and each.process.dead)]
        self.actors = [each for each in self.actors if each not in dead]
        for actor in dead:
            self.current = actor
            if actor.let:
                actor.let.throw(Crashed)
        self.current, self._burying = None, False

    # what goes wrong

    def fault(self, weight: int) -> str:
        """What goes wrong at this call; mostly nothing."""
        if not self.faults_left or self.dice.random() >= self.fault_rate * weight:
            return ""
        self.faults_left -= 1
        fault = self.dice.choice(FAULTS)
        self.disturbed = self.disturbed or fault in ENDING
        return fault

    def about(self, leases: Sequence[float]) -> float:
        """One of these, which are in leases, in seconds."""
        return self.dice.choice(leases) * self.lease_s

    def transit_s(self) -> float:
        return self.dice.random() * self.haste

    def tell(self, text: str, said: object = "") -> None:
        if not self.tells:
            return
        process = self.current.process if self.current is not None else None
        self.done.append(
            f"{self.now - BEGAN_S:9.3f} {process.name if process is not None else '':8} {text}{_short(said)}"
        )

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error

    # nodes

    def executes(self) -> None:
        """A node runs: its process' coroutine may be interrupted here, too."""
        lease = CURRENT.get().lease  # type: ignore[union-attr]
        self.executed[lease.thread, lease.n, lease.task] += 1
        self.tell("runs", f"{lease.node} {lease.task}#{lease.n}@{lease.thread}, attempt {lease.attempt}")
        if self.dice.random() < 0.3:
            self.pause(self.dice.choice((0.001, 0.3, 2.0)))


@contextmanager
def in_time_of(world: World) -> Iterator[None]:
    """What asks for the time, for sleep, for dice or for an id gets this world's; and nobody is told of trouble.

    Other threads of the test process, which may be left from other tests, have their own as ever: one that slept in
    this world would end with an error, and turn a coroutine of it.
    """
    patched: list[tuple[Any, str, Callable[..., Any]]] = [
        (time, "monotonic", world.local_now), (time, "time", world.local_now), (time, "sleep", world.local_sleep),
        (time, "thread_time", lambda: 0.0), (random, "random", world.dice.random),
        (random, "uniform", world.dice.uniform), (slots, "new_id", world.new_id), (work, "new_id", world.new_id),
    ]  # fmt: skip
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patched]
    told = [log for log in _LOGGERS if not log.disabled]
    try:
        for (owner, name, ours), (*_, real) in zip(patched, before, strict=True):
            setattr(owner, name, _here(ours, real))
        for log in told:
            log.disabled = True
        yield
    finally:
        try:
            world.bury(everybody=True)
        finally:
            for owner, name, real in before:
                setattr(owner, name, real)
            for log in told:
                log.disabled = False


def _here(ours: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    """Ours in this thread, the real one in others."""
    me = get_ident()

    def either(*args: Any) -> Any:
        return ours(*args) if get_ident() == me else real(*args)

    return either


def _short(said: object) -> str:
    if isinstance(said, Answer | Started):
        named = " ".join(f"{x.task}#{x.n}@{x.thread}={x.token[-4:]}" for x in said.leases)
        return f" -> {said.status} {named}".rstrip()
    return f" -> {said}"[:80] if said != "" else ""
