"""Between a process and the store. Every call may be lost, late, or come twice; its process may die or stall at it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import ServerUnavailable
from everstep_checkpoint.log import Head, MemoryLog
from everstep_scheduler.graph.limits import Limits
from everstep_scheduler.moves.contract import PATIENCE_S, Answer, Commit, Lease, Offer, Renewed, Start, Started
from everstep_workers.line import LOST

from .world import NEVER, Crashed, Process, World

T = TypeVar("T")
Answers = list[Answer | None]
LOOKS = ("read", "head", "llen")  # they change nothing; what comes between them and the next call makes them old
IDLE = ("claim", "sweep", "renew")  # where these bring nothing, nothing hangs on when that is known
OFTEN = (*LOOKS, "claim", "sweep", "renew")
SELDOM = 4  # how much sooner something goes wrong at the other calls
STALLS = (0.1, 0.8, 1.5, 4.0)  # in leases
LATE = (0.001, 0.05, 0.5, 2.0)


class Wire:
    """One process' way to the store."""

    def __init__(self, world: World, process: Process, kill_all: Callable[[], None] = lambda: None) -> None:
        self.world = world
        self.process = process
        self._kill_all = kill_all
        self._dice = world.dice

    def call(self, what: str, action: Callable[[], T]) -> T:
        """One call: on its way, carried out, its answer on its way. Raises ServerUnavailable, Crashed."""
        world, fault = self.world, self.world.fault(1 if what in OFTEN else SELDOM)
        if fault:
            world.tell(what, fault)
            self._before(fault)
        world.pause(world.transit_s())
        if fault == "lost":
            raise ServerUnavailable("the request is lost")
        if fault == "late":
            world.spawn(lambda: self.carry_out(f"{what}, late", action), None, world.about(LATE))
            raise ServerUnavailable("the request is late")
        answer = self.carry_out(what, action)
        if fault == "twice":
            world.spawn(lambda: self.carry_out(f"{what}, twice", action), None, world.about(LATE))
        elif fault:
            self._after(fault)
        if what not in LOOKS and not (what in IDLE and says_nothing(answer)):
            world.pause(world.transit_s())
        if fault == "reply lost":
            raise ServerUnavailable("the reply is lost")
        return answer

    def carry_out(self, what: str, action: Callable[[], T]) -> T:
        """What the server does; nothing may come between. Then what must always hold is looked at."""
        try:
            answer = action()
            self.world.tell(what, answer)
            if what not in LOOKS:
                self.world.judge()
        except BaseException as error:
            self.world.fail(error)
            raise
        return answer

    def _before(self, fault: str) -> None:
        match fault:
            case "crash" | "pool":
                self.die(seen=fault == "pool")
            case "kill all":
                self._kill_all()
                self.die()
            case "stall":
                self.stall()
            case "slow":
                self.world.pause(self.world.about(STALLS))
            case "expire":
                self._expire()

    def _after(self, fault: str) -> None:
        match fault:
            case "crash after":
                self.die()
            case "stall after":
                self.stall()
            case "slow reply":
                self.world.pause(self.world.about(STALLS))

    def die(self, *, seen: bool = False) -> None:
        """The process is dead from here on; `seen`: by its pool."""
        if seen:
            self.world.spawn(self._reap, None, self.world.transit_s())
        self.process.ended()
        raise Crashed

    def _reap(self) -> int:
        return self.carry_out("reaped", lambda: self.world.model.release(self.process.name, None, "lost"))

    def stall(self) -> None:
        """All of the process stops for a while, and goes on as if nothing had been."""
        self.process.stalled_until = self.world.now + self.world.about(STALLS)
        self.world.pause(0)

    def _expire(self) -> None:
        """Some lease runs out now, whoever holds it."""
        leases = self.world.model.leases
        if leases:
            leases[self._dice.choice(sorted(leases))] = 0


def says_nothing(answer: object) -> bool:
    if isinstance(answer, Answer):
        return not answer.leases
    if isinstance(answer, Renewed):
        return not answer.gone
    return not (answer["lost"] or answer["woken"]) if isinstance(answer, dict) else not answer


class Together(NamedTuple):
    """Commits that leave together, with one offer."""

    commits: tuple[Commit, ...]
    offer: Offer

    def __str__(self) -> str:
        return " & ".join(map(said, self.commits))


class FarMoves:
    """The moves over a wire."""

    def __init__(self, wire: Wire) -> None:
        self.patience_s = PATIENCE_S
        self._wire = wire
        self._model = wire.world.model

    def start(self, start: Start) -> Started:
        return self._wire.call("start", lambda: self._model.start(start))

    def claim(self, offer: Offer, *, serves: Sequence[str] = ()) -> Answer:
        return self._wire.call("claim", lambda: self._model.claim(offer, serves=serves))

    def commit(self, commits: Sequence[tuple[Commit, Offer]]) -> list[Answer]:
        """Several in one pipeline: each stands alone, and any of them may be the last that the server sees."""
        return [self._wire.call(said(pair[0]), partial(self._one, pair)) for pair in commits]

    def _one(self, pair: tuple[Commit, Offer]) -> Answer:
        return self._model.commit([pair])[0]

    def part(self, lease: Lease, pieces: Sequence[e.Fields]) -> list[str]:
        return self._wire.call("part", lambda: self._model.part(lease, pieces))

    def renew(self, offer: Offer, before: int, *, registry: bool = False) -> Renewed:
        return self._wire.call("renew", lambda: self._model.renew(offer, before))

    def release(self, owner: str, tokens: Sequence[str] | None, to: Any, why: str = "", node: str = "") -> int:
        return self._wire.call(f"release {to}", lambda: self._model.release(owner, tokens, to, why, node))

    def cancel(self, thread: str, run: str, actor: str) -> str:
        return self._wire.call("cancel", lambda: self._model.cancel(thread, run, actor))

    def limit(self, graph: str, limits: Limits) -> None:
        return self._wire.call("limit", lambda: self._model.limit(graph, limits))

    def sweep(self, server: str, lease_ms: int) -> dict[str, Any]:
        return self._wire.call("sweep", lambda: self._model.sweep(server, lease_ms))

    def command(self, commits: Sequence[Commit], offer: Offer) -> Together:
        return Together(tuple(commits), offer)

    def answers_to(self, commits: Sequence[Commit], offer: Offer, raw: Answers | None) -> Answers:
        return raw if raw is not None else [None] * len(commits)


def said(commit: Commit) -> str:
    lease = commit.lease
    return f"commit {commit.outcome} {lease.task}#{lease.n}@{lease.thread}={lease.token[-4:]}"


class FarLog(MemoryLog):
    """A log over a wire: what is read is on its way, too."""

    def __init__(self, wire: Wire, log: MemoryLog) -> None:
        self._wire = wire
        self._log = log

    def read(
        self, thread: str, start: str = "-", end: str = "+", count: int | None = None, *, reverse: bool = False
    ) -> list[e.Entry]:
        return self._wire.call("read", lambda: self._log.read(thread, start, end, count, reverse=reverse))

    def head(self, thread: str) -> Head | None:
        return self._wire.call("head", lambda: self._log.head(thread))


class FarLine:
    """A connection over which commits are posted. They arrive in the order sent, or not at all."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._world = wire.world
        self._epoch = 0
        self._sent: deque[tuple[Together, int]] = deque()
        self._replies: deque[Answers] = deque()
        self._waits: Any = None

    def post(self, together: Together) -> int:
        fault = self._world.fault(SELDOM)
        if fault:
            self._world.tell("post", fault)
        self._wire._before(fault)
        self._world.pause(0)
        if fault in ("lost", "late"):
            self._end(together if fault == "late" else None)
            return LOST
        epoch = self._epoch
        self._sent.append((together, epoch))
        late = self._world.about(LATE) if fault == "slow reply" else self._world.transit_s()
        self._world.spawn(self._deliver, None, late)
        if fault == "reply lost":
            self._epoch += 1  # the command arrives, and nobody reads what is answered
            self._replies.clear()
        if fault != "slow reply":
            self._wire._after(fault)
        return epoch

    def _deliver(self) -> None:
        if self._sent:
            self._arrives(*self._sent.popleft())

    def _arrives(self, together: Together, epoch: int = LOST) -> None:
        answers = self._wire.carry_out(f"posted {together}", lambda: self._commit(*together))
        if epoch == self._epoch:
            self._replies.append(answers)
            if self._waits is not None:
                self._waits.wakes_at = self._world.now + self._world.transit_s()

    def _commit(self, commits: Sequence[Commit], offer: Offer) -> Answers:
        """Any of several may be none for such company, as one that has lost its lease is: it is answered with nothing,
        and nothing was done. The others use the offer."""
        answers: Answers = []
        for commit in commits:
            fits = self._wire._dice.random() > 0.1 and self._world.model.still_holds(commit.lease)
            if len(commits) > 1 and not fits:
                answers.append(None)
                continue
            answers += self._world.model.commit([(commit, offer)])
            offer = offer._replace(tokens=())
        return answers

    def collect(self, posted: int) -> Answers | None:
        if self._replies:
            self._world.pause(self._world.transit_s())
        while posted == self._epoch and not self._replies:
            self._waits = self._world.current
            self._world.pause(NEVER)
        self._waits = None
        return self._replies.popleft() if posted == self._epoch else None

    def lost(self, posted: int) -> bool:
        return posted != self._epoch

    def has_reply(self, posted: int) -> bool:
        return self.lost(posted) or bool(self._replies)

    def _end(self, late: Together | None) -> None:
        """The connection breaks. What was sent and did not arrive is lost, or comes when nobody waits for it."""
        dice = self._wire._dice
        behind = [*(together for together, _ in self._sent), *([late] if late is not None else [])]
        self._epoch += 1
        self._replies.clear()
        self._sent.clear()
        for together in behind:
            if together is late or dice.random() < 0.5:
                self._world.spawn(partial(self._arrives, together), None, self._world.about(LATE))


class FarClient:
    """What the real threads ask of a plain client."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._asked: list[Any] = []

    def register_script(self, text: str) -> None:
        """Of a log on Redis, which is made and not used."""

    def info(self, section: str) -> dict[str, str]:
        return {"run_id": "server"}

    def blpop(self, keys: Sequence[str], timeout: float) -> None:
        """The bell may ring at any time, and does most where something waits; nothing may depend on it."""
        rings = 0.5 if any(self._wire.world.model.queues.values()) else 0.05
        self._wire.world.local_sleep(0.05 if self._wire._dice.random() < rings else timeout)

    def pipeline(self, transaction: bool = True) -> FarClient:
        return self

    def __enter__(self) -> FarClient:
        self._asked = []
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def llen(self, key: str) -> None:
        self._asked.append(key.rpartition(":")[2])

    def execute(self) -> list[int]:
        queues, asked = self._wire.world.model.queues, self._asked
        return self._wire.call("llen", lambda: [len(queues.get(name, ())) for name in asked])


class Inbox:
    """What a thread waits for work at."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._items: deque[Any] = deque()
        self._waits: Any = None

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waits is not None:
            self._waits.wakes_at = self._world.now

    def get(self) -> Any:
        while not self._items:
            self._waits = self._world.current
            self._world.pause(NEVER)
        self._waits = None
        return self._items.popleft()


class Event:
    """An event that nobody sets: waiting for it is sleep."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def wait(self, timeout: float) -> bool:
        self._world.local_sleep(timeout)
        return self._set


class Lock:
    """A lock that coroutines wait for. One that a dead process held is held for ever, by nobody that matters."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._locked = False

    def acquire(self, blocking: bool = True) -> bool:
        while self._locked:
            if not blocking:
                return False
            self._world.pause(0.001)
        self._locked = True
        return True

    def release(self) -> None:
        self._locked = False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()
