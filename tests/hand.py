"""A worker in a test's hand: it does one move at a time, when it is told to, or all there is in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.client.client import publish
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.moves.connection import connect
from everstep_scheduler.moves.contract import Lease, Offer, Start
from everstep_scheduler.moves.live import LiveWriter
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_scheduler.recovery.recovery import Recovery
from everstep_scheduler.steps.caches import RedisCache
from everstep_scheduler.steps.perform import Performer
from everstep_scheduler.steps.voice import through

KEYS = Keys(rq="rq")
LEASE_MS = 300
THREAD = "t"


Made = StateGraph | CompiledGraph
BLANK = Lease("", THREAD, 0, "", "p0", "", 1, 0, "g", 0, "", "g", 1, "", "", "0-1", -2, 0, 0, "0-1")


def lease_of(**fields: Any) -> Lease:
    """A lease of which only these fields are looked at."""
    return BLANK._replace(**fields)


def spec_of(made: Made, name: str) -> GraphSpec:
    """The spec of a graph, as it was compiled if it was."""
    return made.named(name).spec if isinstance(made, CompiledGraph) else made.spec(name)


class Hand:
    """A worker that does what it is told, one move at a time."""

    def __init__(self, client: Any, made: Made, owner: str = "hand", name: str = "g") -> None:
        self.client = client
        self.log = RedisLog(client, KEYS)
        self.recovery = Recovery(client, KEYS, lambda: self.held, lease_ms=LEASE_MS, owner=owner)
        self.scripts = Scripts(client, KEYS, self.recovery)
        self.moves = RedisMoves(self.scripts)
        self.spec = spec_of(made, name)
        pool = client.connection_pool
        self.live = LiveWriter(lambda: redis.Redis(connection_pool=pool), KEYS)
        cache = RedisCache(client, keys=KEYS)
        graphs = {each.name: each for each in self.spec.family}
        self.performer = Performer(self.moves, self.log, graphs, by=owner, listening=through(self.live), cache=cache)
        self.owner = owner
        self.held: list[Lease] = []

    def submit(self, run: str, thread: str = THREAD, count: int = 1) -> str:
        start = start_of(self.spec, thread, run, {"count": count}, Config(), "input")
        return self.moves.start(start).status

    def continued(self, thread: str = THREAD) -> Start:
        """What starts a run that goes on with what failed."""
        return start_of(self.spec, thread, new_id(), None, Config(), "continue")

    def offer(self, count: int) -> Offer:
        tokens = tuple(new_id() for _ in range(count))
        queues = [*self.spec.queues, *(f"{queue}.suspect" for queue in self.spec.queues)]
        return Offer(self.owner, tokens, tuple(queues), lease_ms=LEASE_MS)

    def claim(self, count: int = 1) -> list[str]:
        answer = self.moves.claim(self.offer(count))
        self.held += answer.leases
        return [lease.task for lease in answer.leases]

    def do(self, node: str = "") -> str:
        """Run the first held task (of this node) and commit it; the commit asks for no more work."""
        lease = next(x for x in self.held if not node or x.node == node)
        self.held.remove(lease)
        attempt = self.performer.load(lease)
        commit = self.performer.settle(attempt, attempt.call())
        answer = self.moves.commit([(commit, Offer(self.owner, lease_ms=LEASE_MS))])[0]
        self.performer.committed(commit, answer)
        return answer.status

    def drive(self) -> None:
        """Do all that can be done now."""
        while self.held or self.claim(8):
            assert self.do() == "ok"


@contextmanager
def working(url: str, *graphs: tuple[str, Made]) -> Iterator[None]:
    """A fleet of one thread per graph, which are published. It polls: tests of real workers are elsewhere."""
    client, stop = connect(url), threading.Event()
    publish(client, KEYS, [spec_of(made, name) for name, made in graphs])
    threads = [threading.Thread(target=_work, args=(client, made, name, stop)) for name, made in graphs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
        client.close()


def _work(client: Any, made: Made, name: str, stop: threading.Event) -> None:
    hand = Hand(client, made, f"hand of {name}", name)
    while not stop.wait(0.005):
        while hand.held or hand.claim(8):
            hand.do()  # fenced, if somebody stopped the run meanwhile
    hand.live.close()  # before the connections go: what waits for an answer then is said a second time
