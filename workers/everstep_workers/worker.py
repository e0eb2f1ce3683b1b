"""One worker process: it claims tasks, runs their nodes, and commits what comes of them.

    main       signals, timeouts of sync nodes, the parent's death, the end
    front      claims when slots are free; blocks on the bell
    hands      sync nodes, up to `concurrency` threads; each commits and refills by itself
    loop       async nodes; the committer sends their outcomes
    keeper     renews leases, sweeps, shows the process to RQ's tools
    commands   RQ's shutdown, stop-job, kill-horse
    inbox      reads the inbox, in one process at a time

A first SIGTERM or SIGINT drains: claim nothing, let nodes end for `grace_s`, give the rest back, uncounted. A second
one gives back at once. A thread whose lease was given back can't commit: the right to settle was taken from it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

from everstep_checkpoint.errors import GraphError, ServerError
from everstep_checkpoint.keys import Keys
from everstep_scheduler.client.client import publish
from everstep_scheduler.client.inbox import InboxReader
from everstep_scheduler.graph.options import SUSPECT
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import answer_s, redacted, translated
from everstep_scheduler.moves.contract import LEASE_MS
from everstep_scheduler.steps.perform import Result

from .commands import Commands
from .face import Face, name_ending, pin_rq_prefix, worker_name
from .front import Front
from .hands import Hands
from .keeper import Keeper
from .loop import Committer, Loop
from .patience import Hopeless
from .pulse import DRAINING, MAIN, WORKING, Pulse
from .slots import Deadlines, Held
from .tempo import STUCK_S
from .work import Setup, Work, log

LOOK_EVERY_S = 0.25
END_LOOK_EVERY_S = 0.02
COMMITS_END_S = 2.0
THREADS_END_S = 2.0
INBOX_BLOCK_S = 1.0
INBOX_PAUSE_S = 1.0
TOLD_MAX = 5
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class HasSpec(Protocol):
    """A compiled graph."""

    @property
    def spec(self) -> GraphSpec: ...


def specs_of(graphs: Sequence[HasSpec | GraphSpec]) -> dict[str, GraphSpec]:
    """Graphs by name. Raises GraphError if two have one name, or there is none."""
    found: dict[str, GraphSpec] = {}
    names: set[str] = set()
    for graph in graphs:
        spec = graph if isinstance(graph, GraphSpec) else graph.spec
        for each in spec.family:
            if each.name in names:
                raise GraphError(
                    f"two graphs are named {each.name!r}", fix='give one another name: compile(name="...")'
                )
            names.add(each.name)
        found[spec.name] = spec
    if not found:
        raise GraphError("a worker needs at least one graph", fix="everstep worker MODULE:GRAPH")
    return found


def queues_of(specs: Mapping[str, GraphSpec]) -> tuple[str, ...]:
    """The queues of all graphs, default queues first in the order given."""
    return tuple(dict.fromkeys(queue for spec in specs.values() for queue in spec.queues))


class Worker:
    """One process. `concurrency` counts sync and async nodes together; `queues` are taken in their order."""

    def __init__(
        self,
        url: str,
        graphs: Sequence[HasSpec | GraphSpec],
        *,
        concurrency: int = 10,
        queues: Sequence[str] | None = None,
        grace_s: float = 30.0,
        lease_ms: int = LEASE_MS,
        keys: Keys | None = None,
        name: str | None = None,
        serves_parked: bool = True,
        idle_exit_s: float = 0.0,
        pooled: bool = False,
        on_change: Callable[[dict[str, Any]], None] = lambda change: None,
        pulse: Pulse | None = None,
    ) -> None:
        specs = specs_of(graphs)
        self.setup = Setup(
            url=url,
            name=name or worker_name(os.getpid(), name_ending()),
            queues=tuple(queues) if queues else queues_of(specs),
            keys=keys or Keys(),
            concurrency=concurrency,
            grace_s=grace_s,
            lease_ms=lease_ms,
            serves_parked=serves_parked,
            idle_exit_s=idle_exit_s,
            pooled=pooled,
        )
        pin_rq_prefix(self.setup.keys)
        self.work = Work(self.setup, specs, pulse)
        self._on_change = on_change
        self._woken = threading.Event()
        self._deadlines = Deadlines(concurrency)
        self._parent = os.getppid()
        self._busy_at = time.monotonic()
        self._told_claim = False
        self._assemble()

    @property
    def name(self) -> str:
        return self.setup.name

    def _assemble(self) -> None:
        work = self.work
        self._face = Face(
            work.client(answer_s=answer_s(self.setup.lease_ms)), self.setup.keys, self.name, self.setup.queues
        )
        self._committer = Committer(work)
        self._hands, self._loop = Hands(work), Loop(work)
        work.hands, work.loop = self._hands, self._loop
        work.committer, work.watch = self._committer.put, self._watch
        self._front = Front(work)
        self._keeper = Keeper(work, self._face)
        self._commands = Commands(work, self.drain)
        self._inbox_client = work.client(INBOX_BLOCK_S)
        self._inbox = threading.Thread(target=self._read_inbox, name="everstep-inbox", daemon=True)

    # from outside

    def run(self) -> None:
        """Work until drained. In the main thread SIGTERM and SIGINT drain; a second one ends at once."""
        kept = self._take_signals()
        self.work.pulse.beat(MAIN)
        try:
            self._open()
            while not self.work.draining.is_set():
                self._look()
            self._drain()
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def drain(self) -> None:
        """End in order: claim nothing more, let nodes end for `grace_s`. Safe from any thread."""
        self.work.draining.set()
        self._woken.set()

    def stop(self) -> None:
        """End at once: everything that is held goes back, uncounted."""
        self.work.cold.set()
        self.drain()

    def _take_signals(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._signalled) for number in SIGNALS}

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.stop() if self.work.draining.is_set() else self.drain()

    # the beginning

    def _open(self) -> None:
        """Show the process, publish its graphs, start its threads."""
        try:
            self.work.insist(self._face.born)
            if self.setup.serves_parked:  # a solo child has siblings that did, and somebody's task waits for it
                self.work.insist(self._publish)
        except Hopeless as error:
            log.error("Redis refuses to know this worker: %s", error)
        log.info("%s: %s, queues %s", self.name, redacted(self.setup.url), ", ".join(self.setup.queues))
        self._say_strange()
        self._on_change({"queues": self.setup.queues})
        for thread in (self._keeper, self._front, self._commands):
            thread.start()
        if self.setup.serves_parked:
            self._inbox.start()
        self.work.pulse.state(WORKING)

    def _say_strange(self) -> None:
        """Queues that no graph of ours uses: perhaps somebody mistyped them."""
        known = queues_of(self.work.roots)
        for queue in self.setup.queues:
            if queue.removesuffix(SUSPECT) not in known:
                log.warning("%s: no graph here uses the queue %r; theirs are: %s", self.name, queue, ", ".join(known))

    def _read_inbox(self) -> None:
        """The inbox thread. It ends when its connection is closed under it; other processes read on."""
        draining, say = self.work.draining, self.work.patience.say
        ended = draining.is_set
        reader = InboxReader(lambda _: self._inbox_client, self.setup.keys, say, draining.wait)
        while not ended():
            try:
                reader.run(ended)
            except Exception as error:  # noqa: BLE001 - the loop's door
                if ended():  # the connection was closed under it; redis-py's own parser raises a ValueError then
                    return
                log.error("everstep's own error in the inbox", exc_info=error)
                self.work.draining.wait(INBOX_PAUSE_S)

    def _publish(self) -> None:
        publish(self.work.moves.scripts.client, self.setup.keys, list(self.work.roots.values()))

    # while it works

    def _look(self) -> None:
        """One look of the main thread: deadlines, what waits behind a slow node, the parent, idleness."""
        self.work.pulse.beat(MAIN)
        unsure = self._hands.relieve()
        for held in self._deadlines.passed():
            if self.work.overrule(held, Result.timeout):
                log.warning("%s: %s", held, held.attempt.pace.why() if held.attempt is not None else "over its time")
        if os.getppid() != self._parent and not self.work.draining.is_set():
            log.warning("the parent process is gone; draining")
            self.drain()
        self._note_claims()
        pause_s = STUCK_S if unsure else END_LOOK_EVERY_S if self.work.draining.is_set() else LOOK_EVERY_S
        self._woken.wait(min(pause_s, self._deadlines.first_in_s()))
        self._woken.clear()

    def _watch(self, held: Held) -> None:
        if self._deadlines.add(held):
            self._woken.set()

    def _note_claims(self) -> None:
        if self.work.claims and not self._told_claim:
            self._told_claim = True
            self._on_change({"claimed": True})
        now = time.monotonic()
        if self.work.held:
            self._busy_at = now
        elif self.setup.idle_exit_s and now - self._busy_at > self.setup.idle_exit_s:
            log.info("nothing left to do")
            self.drain()

    # the end

    def _drain(self) -> None:
        """Claim nothing, let nodes end, give the rest back."""
        self.work.pulse.state(DRAINING)
        self._say_drain()
        self._try("waking the front", self._front.wake)
        self._inbox_client.close()
        self._front.join(THREADS_END_S)
        if not self._front.is_alive():
            self._try("leaving the waiting lists", self._front.leave)
        end = time.monotonic() + self.setup.grace_s
        while self.work.held and time.monotonic() < end and not self.work.cold.is_set():
            self._look()
        self._give_back()
        for part in (self._hands, self._loop, self._committer, self._keeper, self._commands):
            part.end()
        self._keeper.join(THREADS_END_S)  # it shows the process, and may close the connections of a silent server
        self._try("saying goodbye", self._face.died)
        if self._inbox.is_alive():
            self._inbox.join(THREADS_END_S)
        self.work.close()
        log.info("%s: ended", self.name)

    def _say_drain(self) -> None:
        held = [str(each) for each in list(self.work.held.values())]
        if self.work.cold.is_set() or not held:
            log.info("%s: ending, %s", self.name, "what it holds is given back" if held else "it holds nothing")
            return
        named = ", ".join(held[:TOLD_MAX]) + (f" and {len(held) - TOLD_MAX} more" if len(held) > TOLD_MAX else "")
        log.info(
            "%s: draining: it claims nothing more and waits up to %g s for %d %s; a second signal gives back at once "
            "what still runs: %s", self.name, self.setup.grace_s, len(held), "node" if len(held) == 1 else "nodes",
            named,
        )  # fmt: skip

    def _give_back(self) -> None:
        """Take the right to settle from all that runs, let commits that are under way arrive, release the rest."""
        self.work.cold.set()
        left = [held for held in list(self.work.held.values()) if held.take_right()]
        for held in left:
            self.work.drop(held)
            self._loop.cancel(held)
            log.info("%s: given back", held)
        end = time.monotonic() + COMMITS_END_S
        while self.work.held and time.monotonic() < end:
            self._hands.relieve()  # what nodes came to is ready behind one that still runs
            time.sleep(END_LOOK_EVERY_S)
        self._try("giving leases back", lambda: self.work.moves.release(self.name, None, "job"))

    def _try(self, what: str, action: Callable[[], object]) -> None:
        """Something that is good manners at the end; leases run out by themselves."""
        try:
            with translated(self.setup.url):
                action()
        except ServerError as error:
            log.warning("%s failed: %s", what, error.what)
