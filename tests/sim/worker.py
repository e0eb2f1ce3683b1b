"""A worker process in the simulation: the code of its real threads (front, hands, keeper), each a coroutine.

Not real are: the connections, the clock, how quick its nodes are said to be, threads. Async nodes and timeouts are left
out: their loop and their deadlines wait for the time of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from everstep_checkpoint.keys import Keys
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.steps.perform import Performer
from everstep_workers.front import Front
from everstep_workers.hands import Hand, Hands
from everstep_workers.keeper import Keeper
from everstep_workers.slots import OFFER_MAX, Held, Slots
from everstep_workers.work import Setup, Work

from .stories import Story
from .wire import Event, FarClient, FarLine, FarLog, FarMoves, Inbox, Lock, Wire
from .world import Actor, Crashed, World

KEYS = Keys(rq="rq")
BEGIN_AGAIN = (0.01, 0.3, 1.2)  # when one that died is followed by another, in leases


class SimSlots(Slots):
    """Slots whose waiter sleeps."""

    def __init__(self, count: int, world: World) -> None:
        super().__init__(count)
        self._world = world

    def wait(self, timeout_s: float) -> None:
        self._world.local_sleep(timeout_s)


class Whim:
    """How quick nodes seem to be: the dice say. Whatever a process makes of that must be right."""

    def __init__(self, world: World) -> None:
        self._dice = world.dice
        self.leader: object = None

    def begins(self, held: Held) -> None:
        pass

    def ended(self, held: Held, seconds: float, computed_s: float | None) -> None:
        pass

    def expects(self, held: Held) -> bool:
        return self.quick

    @property
    def looks(self) -> bool:
        return False

    def waits(self, since: float, nodes_s: float) -> bool:
        return self._dice.random() < 0.7

    @property
    def quick(self) -> bool:
        return self._dice.random() < 0.6

    def take_lead(self, hand: object) -> None:
        pass

    def room(self, hand: object = None) -> int:
        return self._dice.choice((0, 1, 1, 2, OFFER_MAX, OFFER_MAX))


class NoLoop:
    """No async nodes here."""

    def start(self, held: Sequence[Held]) -> None:
        raise AssertionError("an async node in the simulation")

    def cancel(self, held: Held) -> None:
        pass


class SimHands(Hands):
    """Threads that are coroutines."""

    def _begun(self) -> Hand:
        sim: Any = self._work
        hand = Hand(self._work, self, f"hand-{len(self._all) + 1}")
        hand.inbox, hand._wire = Inbox(sim.world), Lock(sim.world)  # type: ignore[assignment]
        sim.world.spawn(hand.run, sim.process)
        self._all.append(hand)
        return hand


class SimWork(Work):
    """The real `Work` over wires."""

    def __init__(self, process: WorkerProcess, setup: Setup, graphs: Mapping[str, GraphSpec]) -> None:
        self.process, self.world, self.wire = process, process.world, process.wire
        self.log = FarLog(self.wire, process.store)
        super().__init__(setup, graphs)
        self.slots = SimSlots(setup.concurrency, self.world)
        self.draining = Event(self.world)  # type: ignore[assignment]
        self.tempo = Whim(self.world)  # type: ignore[assignment]
        self.performer = Performer(self.moves, self.log, self.graphs, by=setup.name, slotted=True, parks=True)
        self.hands = SimHands(self)
        self.loop = NoLoop()

    def client(self, block_s: float = 0.0, answer_s: float | None = None) -> Any:
        return FarClient(self.wire)

    def own_line(self, answer_s: float | None = None) -> Any:
        return FarLine(self.wire)

    def _moves(self, client: Any) -> Any:
        return FarMoves(self.wire)

    def hang_up(self, moves: Any, *clients: Any) -> None:
        """There are no connections."""

    def stumbled(self, held: Held, error: BaseException) -> None:
        """The product gives the task back then. Here it is a failure."""
        if not isinstance(error, Crashed):
            self.world.fail(error)
        raise error

    def unreadable(self, held: Held, error: BaseException) -> None:
        self.stumbled(held, error)


class WorkerProcess:
    """A process with its clock: `rate` of its seconds pass in one of the store's, `skew_s` is what it is off."""

    def __init__(self, world: World, name: str, store: Any, graphs: Mapping[str, GraphSpec], swarm: Swarm) -> None:
        dice = world.dice
        self.world, self.name, self.store = world, name, store
        self.dead = False
        self.stalled_until = 0.0
        self._began = world.now
        self._rate = dice.choice((0.7, 1.0, 1.0, 1.0, 1.4))
        self._skew_s = dice.choice((0.0, 0.0, -3600.0, 86400.0))
        self.swarm = swarm
        self.wire = Wire(world, self, swarm.kill_all)
        queues = tuple(dict.fromkeys(queue for spec in graphs.values() for queue in spec.queues))
        setup = Setup(
            "redis://simulated", name, queues, KEYS, dice.choice((1, 1, 2, 3)), lease_ms=round(world.lease_s * 1000)
        )
        before, world.current = world.current, Actor(world, lambda: None, self)  # so that it is born in its own time
        self.work = SimWork(self, setup, graphs)
        front, face = Front(self.work), SimpleNamespace(client=None)
        keeper: Any = Keeper(self.work, face)  # type: ignore[arg-type]
        world.current = before
        keeper._ended, keeper._duties = Event(world), keeper._duties[:2]  # it renews and sweeps
        world.spawn(front.run, self)
        world.spawn(keeper.run, self)

    def local(self, now: float) -> float:
        return self._began + (now - self._began) * self._rate + self._skew_s

    def world_s(self, seconds: float) -> float:
        return seconds / self._rate

    def ended(self) -> None:
        self.dead = self.world.someone_died = True
        self.swarm.died(self)


class Swarm:
    """All worker processes of a schedule. One that dies is followed by another one after a while."""

    def __init__(self, world: World, store: Any, story: Story) -> None:
        self._world, self._store, self._graphs = world, store, story.graphs
        self._all: list[WorkerProcess] = []
        self._begun = 0
        if story.old_graphs and world.dice.random() < 0.5:
            world.disturbed = True
            self.begin(story.old_graphs)
        for _ in range(world.dice.choice((1, 1, 2) if story.small else (1, 2, 2, 3))):
            self.begin(story.graphs)

    def begin(self, graphs: Mapping[str, GraphSpec]) -> None:
        self._begun += 1
        self._all.append(WorkerProcess(self._world, f"w{self._begun}", self._store, graphs, self))

    def died(self, process: WorkerProcess) -> None:
        if process in self._all:
            self._all.remove(process)
            self._world.spawn(lambda: self.begin(self._graphs), None, self._world.about(BEGIN_AGAIN))

    def kill_all(self) -> None:
        for process in list(self._all):
            process.ended()

    @property
    def stalled(self) -> bool:
        return any(process.stalled_until > self._world.now for process in self._all)

    @property
    def holds(self) -> bool:
        return any(process.work.held for process in self._all)
