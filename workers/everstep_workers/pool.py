"""A pool: one parent, P worker processes. The parent keeps them alive, and tells Redis at once when one dies.

    fork P children ──► a child dies ──► its leases released as lost ──► a replacement
                  ├───► suspects wait ──► solo children, one suspect at a time each, gone when idle
                  └───► spares: solo children to be, graphs loaded, that wait to be called
    health process, if asked for ──► tells over HTTP and as a file how they are
    SIGTERM ──► passed on ──► grace ──► SIGKILL for who is left, leases given back

The parent imports no user code and runs no thread, so that it can fork at any time and outlives everything that a node
can do. A child gets its name from the parent, so the parent can release what it held.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from everstep_checkpoint.errors import GraphError, InputError, ServerError
from everstep_checkpoint.keys import Keys
from everstep_scheduler.graph.options import SUSPECT, queue_name
from everstep_scheduler.moves.connection import Client, connect, translated
from everstep_scheduler.moves.contract import LEASE_MS
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_scheduler.recovery.recovery import free_lock_of

from .child import EXIT_USAGE, Order, fork, preload
from .face import Face, name_ending, worker_name
from .health import WITHIN_S, HealthProcess
from .kin import Child, Debt
from .pulse import DRAINING, MAIN, PID, SINCE, SPARE, STARTING, STATE, WORKING, Board, Pulse

LOOK_EVERY_S = 1.0
QUICK_DEATH_S = 5.0
QUICK_DEATHS_MAX = 5
BACKOFF_S = (0.0, 0.1, 0.2, 0.5, 1.0)
SOLOS_MAX = 32
SOLOS_PER_CPU = 2
SOLO_BEGINS_S = 1.0
NO_FORK_S = 1.0
SPARES = 1
SPARE_PAUSE_S = 0.5  # after a death others are to begin first
SPARE_AGAIN_S = 30.0
KILL_MARGIN_S = 3.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("everstep.pool")


def _nothing(number: int, frame: object) -> None:
    """A handler, so that the signal wakes the parent."""


def _check(queues: Sequence[str]) -> None:
    try:
        for queue in queues:
            queue_name("", queue)
    except GraphError as error:
        raise InputError(error.what, fix=error.fix) from None


class Pool:
    """`processes` workers for `targets`, until SIGTERM or SIGINT. `run` returns the exit code.

    `spares`: processes beside them that have the graphs loaded, so that what a dead one ran is run again at once.
    `health`: `PORT` or `HOST:PORT` for /livez and /readyz. `health_file`: there while the pool is live.
    `health_within_s`: how old a process's last progress may be. Raises InputError if health can't be told there, and
    for a queue that can't be one.
    """

    def __init__(
        self,
        url: str,
        targets: Sequence[str],
        *,
        processes: int = 1,
        concurrency: int = 10,
        queues: Sequence[str] = (),
        grace_s: float = 30.0,
        lease_ms: int = LEASE_MS,
        keys: Keys | None = None,
        spares: int = SPARES,
        health: str = "",
        health_file: str = "",
        health_within_s: float = WITHIN_S,
    ) -> None:
        _check(queues)
        self._order = Order(url, tuple(targets), "", concurrency, tuple(queues), grace_s, lease_ms, keys or Keys())
        self._processes = processes
        self._spares = spares
        self._spare_at = 0.0
        self._children: dict[int, Child] = {}
        self._debts: list[Debt] = []
        self._queues: tuple[str, ...] = ()
        self._quick_deaths = 0
        self._fork_at: list[float] = [0.0] * processes  # when each missing child is due
        self._look_at = 0.0
        self._signals = 0
        self._failed = 0
        self._client: Client | None = None
        self._moves: RedisMoves | None = None
        self._board = Board(processes + SOLOS_MAX + spares)
        self._pulse = Pulse(self._board.rows[0])
        self._health: HealthProcess | None = None
        if health or health_file:
            self._health = HealthProcess(
                self._board, processes, file=health_file, address=health, within_s=health_within_s
            )

    @property
    def pids(self) -> tuple[int, ...]:
        """The children that live, solo ones and spares too."""
        return tuple(self._children)

    # the loop

    def run(self) -> int:
        """Keep the pool until a signal ends it. 0; 2 if the targets can't be loaded; 1 if children die at birth."""
        preload(self._order.keys)
        kept = {number: signal.signal(number, self._signalled) for number in SIGNALS}
        kept[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _nothing)
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._pulse.state(WORKING)
        try:
            while not (self._signals or self._failed):
                self._turn()
            self._end()
        finally:
            if self._health is not None:
                self._health.end()
            signal.set_wakeup_fd(-1)
            for number, handler in kept.items():
                signal.signal(number, handler)
            os.close(self._wake_read)
            os.close(self._wake_write)
        return self._failed

    def _signalled(self, number: int, frame: object) -> None:
        self._signals += 1

    def _turn(self) -> None:
        """One turn: bury the dead, fork what is due, look for suspects; then wait for a child or a second."""
        self._pulse.beat(MAIN)
        if self._reap():
            self._look_at = 0.0
        self._settle_debts()
        self._tell_health()
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_EVERY_S
            self._start_solos()  # before replacements: somebody's task waits for it
        self._fork_due()
        self._keep_spares()
        due = min([self._look_at, *self._fork_at]) - time.monotonic()
        self._listen(min(LOOK_EVERY_S, max(0.0, due)))

    def _listen(self, timeout_s: float) -> None:
        """Wait for a signal or for children's reports."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ, None)
            for child in self._children.values():
                if child.reports >= 0:
                    selector.register(child.reports, selectors.EVENT_READ, child)
            for key, _ in selector.select(timeout_s):
                if key.data is None:
                    os.read(self._wake_read, 4096)
                else:
                    self._hear(key.data)

    def _hear(self, child: Child) -> None:
        """What a child reports: its queues, and that it has claimed."""
        try:
            said = os.read(child.reports, 65536)
        except BlockingIOError:
            return
        if not said:
            os.close(child.reports)
            child.reports = -1
        *lines, child.heard = (child.heard + said).split(b"\n")
        for line in lines:
            report: dict[str, Any] = json.loads(line)
            child.queues = tuple(report.get("queues", child.queues))
            child.claimed = bool(report.get("claimed", child.claimed))
            if not child.solo:
                self._queues = child.queues or self._queues
            if child.claimed:
                self._quick_deaths = 0

    # births

    def _fork_due(self) -> None:
        now = time.monotonic()
        for due in [at for at in self._fork_at if at <= now]:
            self._fork_at.remove(due)
            self._fork(self._order)

    def _fork(self, order: Order) -> None:
        ending, rows = name_ending(), len(self._board.rows)
        row = self._board.take(*((self._processes + 1, rows) if order.solo else (1, self._processes + 1)))
        files = [*self._files(), *(self._health.files if self._health is not None else ())]
        self._hang_up()
        self._board.rows[row][STATE] = SPARE if order.spare else STARTING
        try:
            pid, reports, call = fork(replace(order, name_ending=ending, cells=self._board.rows[row]), files)
        except OSError as error:  # too many processes, or files, or no memory: for now
            log.error("no worker process can be started: %s; trying again", error)
            self._board.clear(row)
            if not order.solo:  # a suspect is looked for again anyway, and a spare
                self._fork_at.append(time.monotonic() + NO_FORK_S)
            return
        self._board.rows[row][PID] = pid
        self._children[pid] = Child(pid, worker_name(pid, ending), reports, order, row, call)
        log.info("%s %s", self._children[pid].name, "is spare" if order.spare else "began")

    def _files(self) -> list[int]:
        """The parent's own files, which nobody forked from it is to have."""
        children = [fd for child in self._children.values() for fd in (child.reports, child.call) if fd >= 0]
        return [self._wake_read, self._wake_write, *children]

    def _tell_health(self) -> None:
        if self._health is not None and self._health.due:
            self._hang_up()
            self._health.start(self._files())

    def _start_solos(self) -> None:
        """Suspects run alone, each in a child that holds nothing else; as many at once as a child had, so that none of
        those it died with waits behind another one."""
        queues = self._suspect_queues
        solos = [child for child in self._children.values() if child.solo]
        waiting, held = self._suspects(queues, [child.name for child in solos])
        busy = sum(held)
        # who is idle may be about to leave, and is not counted on; who has just been born will take one
        young = [not child.claimed and time.monotonic() - child.began < SOLO_BEGINS_S for child in solos]
        coming = sum(new and not has for new, has in zip(young, held, strict=True))
        most = max(self._order.concurrency, SOLOS_PER_CPU * (os.cpu_count() or 1))
        for _ in range(min(waiting - coming, most - busy - coming, SOLOS_MAX - len(solos))):
            if not self._call_spare():
                self._fork(replace(self._order, queues=queues, solo=True))

    @property
    def _suspect_queues(self) -> tuple[str, ...]:
        return tuple(queue + SUSPECT for queue in self._queues)

    def _keep_spares(self) -> None:
        """Fork a spare, if one lacks and nothing else is about to begin."""
        now = time.monotonic()
        if not self._queues or self._fork_at or now < self._spare_at:
            return
        if sum(child.spare for child in self._children.values()) < self._spares:
            self._spare_at = now + SPARE_PAUSE_S
            self._fork(replace(self._order, queues=self._suspect_queues, solo=True, spare=True))

    def _call_spare(self) -> bool:
        """Let a spare begin as a solo child, if there is one."""
        for child in [child for child in self._children.values() if child.spare]:
            call, child.call = child.call, -1
            row = self._board.rows[child.row]
            row[STATE], row[SINCE], child.began = STARTING, time.monotonic(), time.monotonic()
            try:
                os.write(call, b".")
            except BrokenPipeError:  # it is dead, and will be buried
                continue
            finally:
                os.close(call)
            log.info("%s was called", child.name)
            return True
        return False

    def _suspects(self, queues: Sequence[str], solos: Sequence[str]) -> tuple[int, list[bool]]:
        """How many suspects wait, and which of the solo children have one."""
        if not queues:
            return 0, [False] * len(solos)
        keys = self._order.keys
        try:
            with translated(self._order.url):
                client: Any = self._redis()
                pipe = client.pipeline(transaction=False)
                for queue in queues:
                    pipe.llen(keys.rq_queue(queue))
                for solo in solos:
                    pipe.hlen(keys.held(solo))
                found = pipe.execute()
        except ServerError as error:
            log.debug("no look at suspects: %s", error.what)
            return 0, [False] * len(solos)
        return sum(found[: len(queues)]), [count > 0 for count in found[len(queues) :]]

    # deaths

    def _reap(self) -> int:
        """Bury the children that have died. Returns how many."""
        dead = 0
        for child in list(self._children.values()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                dead += 1
                self._bury(child, os.waitstatus_to_exitcode(status))
        return dead

    def _bury(self, child: Child, code: int) -> None:
        """Forget a child, give back what it held, and decide on a replacement."""
        if child.reports >= 0:
            self._hear(child)
        del self._children[child.pid]
        self._board.clear(child.row)
        self._spare_at = time.monotonic() + (SPARE_AGAIN_S if child.spare and code > 0 else SPARE_PAUSE_S)
        for fd in (child.reports, child.call):
            if fd >= 0:
                os.close(fd)
        if child.spare:  # it held nothing
            return
        wanted = bool(self._signals or self._failed)
        unusable = code == EXIT_USAGE and not self._queues  # none ever began, so it held nothing
        if not unusable and not (code == 0 and wanted):  # a node may end its process with code 0, too
            self._debts.append(Debt(child.name, "job" if wanted else "lost", child.queues))
        if code:
            log.warning("%s ended by %s", child.name, f"signal {-code}" if code < 0 else f"exit code {code}")
        if unusable:  # nothing but a change of the order helps
            self._failed = EXIT_USAGE
        elif not wanted and not child.solo:
            self._replace(child)

    def _replace(self, child: Child) -> None:
        """A child died: the next one is due, later the more children in a row died at birth."""
        quick = not child.claimed and time.monotonic() - child.began < QUICK_DEATH_S
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        if self._quick_deaths >= QUICK_DEATHS_MAX:
            log.error("%d worker processes in a row died at birth; the pool gives up", self._quick_deaths)
            self._failed = 1
            return
        self._fork_at.append(time.monotonic() + BACKOFF_S[min(self._quick_deaths, len(BACKOFF_S) - 1)])

    def _settle_debts(self) -> None:
        """Release what dead children held. What Redis does not take now, or not before a rebuild, is tried again; so
        the lock of any of them goes first: behind one that waits for a rebuild there may be the one who did it."""
        for debt in list(self._debts):
            try:
                with translated(self._order.url):
                    free_lock_of(self._redis(), self._order.keys, [each.owner for each in self._debts])
                    released = self._redis_moves().release(debt.owner, None, debt.to, "its process died")
                    Face(self._redis(), self._order.keys, debt.owner, debt.queues).died()
            except ServerError as error:
                log.warning("leases of %s not released yet: %s", debt.owner, error.what)
                return
            self._debts.remove(debt)
            if released:
                log.warning("%s: %d tasks taken back", debt.owner, released)

    # the end

    def _end(self) -> None:
        """Pass the signal on, wait for the grace, kill who is left."""
        self._pulse.state(DRAINING)
        if self._signals:
            count = sum(not child.spare for child in self._children.values())
            said = "process drains" if count == 1 else "processes drain"
            log.info(
                "told to end: %d worker %s, for up to %g s; a second SIGTERM or Ctrl-C ends at once, and gives back",
                count, said, self._order.grace_s,
            )  # fmt: skip
        end = time.monotonic() + self._order.grace_s + KILL_MARGIN_S
        passed_on = 0
        while self._children and time.monotonic() < end:
            if passed_on < max(self._signals, 1):
                passed_on += 1
                self._signal_all(signal.SIGTERM)
            self._listen(0.1)
            self._reap()
        self._signal_all(signal.SIGKILL)
        for child in list(self._children.values()):
            _, status = os.waitpid(child.pid, 0)
            self._bury(child, os.waitstatus_to_exitcode(status))
        self._settle_debts()
        self._hang_up()

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._children:
            os.kill(pid, number)

    # Redis, opened when needed and closed before each fork

    def _redis(self) -> Client:
        if self._client is None:
            self._client = connect(self._order.url, connections=2)
            self._moves = RedisMoves(Scripts(self._client, self._order.keys, None, self._order.url))
        return self._client

    def _redis_moves(self) -> RedisMoves:
        self._redis()
        assert self._moves is not None
        return self._moves

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = self._moves = None
