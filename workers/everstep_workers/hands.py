"""The threads that run sync nodes.

Each thread drives itself: it runs an attempt, commits it over its own connection, and goes on with the lease that the
same reply brought. So a chain of steps costs one round trip a step and no hand-over between threads. Threads begin when
they are first needed; there are never more than slots.

    backlog ──► run ──► ready ──post──► posted ──collect──► the next leases ──► backlog
                  ▲       │        │
                  └───────┴────────┴── while nodes are quick, the next one runs before

What a few quick nodes came to leaves in one command. One that is stuck in a node is relieved of what waits behind it:
other threads go on with that.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue

from everstep_scheduler.steps.failpoints import reach
from everstep_scheduler.steps.perform import Attempt, Result

from .line import Line
from .slots import Done, Held
from .tempo import STUCK_S
from .work import TOGETHER_MAX, Posted, Settled, Work

UNDER_WAY_MAX = 2
LITTLE = 4


class Hands:
    """All sync threads of a process."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._all: list[Hand] = []
        self._idle: list[Hand] = []
        self._lock = threading.Lock()
        self._ended = False

    def start(self, held: Sequence[Held]) -> None:
        """Run attempts, one behind the other, on the idle thread that was busy last, or on a new one; RuntimeError if
        none can begin."""
        with self._lock:
            hand = self._idle.pop() if self._idle else self._begun()
        hand.inbox.put(held)

    def _begun(self) -> Hand:
        hand = Hand(self._work, self, f"everstep-hand-{len(self._all) + 1}")
        threading.Thread(target=hand.run, name=hand.name, daemon=True).start()
        self._all.append(hand)
        return hand

    def idle(self, hand: Hand) -> bool:
        """A thread has nothing to do. False: it is to end."""
        with self._lock:
            if not self._ended:
                self._idle.append(hand)
            return not self._ended

    def relieve(self) -> bool:
        """Let other threads have what waits behind a node that takes its time. True: of one, another look will tell."""
        unsure = False
        for hand in list(self._all):
            unsure = hand.look() or unsure
            if hand.stuck and hand.burdened:
                hand.relieve()
        return unsure

    def end(self) -> None:
        """Idle threads end now, busy ones when their node returns."""
        with self._lock:
            self._ended = True
            idle, self._idle = self._idle, []
        for hand in idle:
            hand.inbox.put(None)


class Hand:
    """What one thread for sync nodes does."""

    def __init__(self, work: Work, hands: Hands, name: str) -> None:
        self.name = name
        self.inbox: SimpleQueue[Sequence[Held] | None] = SimpleQueue()
        self._work = work
        self._hands = hands
        self._backlog: deque[Held] = deque()
        self._own_line: Line | None = None
        self._ready: list[Settled] = []  # what leaves together
        self._ready_since = 0.0  # since when something is,
        self._ready_nodes_s = 0.0  # and how long nodes ran meanwhile
        self._posted: deque[Posted] = deque()
        self._wire = threading.Lock()  # the connection, what is ready for it, and the order of what is posted
        self._began: float = 0.0  # when it took up the attempt that it is at; 0: none
        self._seen: tuple[float, float] = (0.0, 0.0)  # which one somebody saw it at, and when first
        self._stuck = 0.0  # the one that takes long

    @property
    def _line(self) -> Line:
        if self._own_line is None:
            self._own_line = self._work.own_line()
        return self._own_line

    @property
    def coming(self) -> int:
        offered = sum([len(each.offer.tokens) for each in tuple(self._posted)]) if self._posted else 0
        return len(self._backlog) + offered

    @property
    def burdened(self) -> bool:
        """Does anything wait behind its attempt? A commit under way, too: its answer may free a slot, if it brings no
        lease."""
        return bool(self._backlog or self._ready or self._posted)

    @property
    def stuck(self) -> bool:
        return self._stuck == self._began > 0

    def look(self) -> bool:
        """See whether its attempt takes long. One look says nothing: the process may have been put aside until now.
        True: it seems so, and another look will tell."""
        began, now = self._began, time.monotonic()
        seen, seen_at = self._seen
        if began != seen:
            seen_at = now
            self._seen = (began, now)
        if not began or now - began <= STUCK_S:
            return False
        if now - seen_at > STUCK_S / 2:
            self._stuck = began
        return self._stuck != began

    def run(self) -> None:
        """The thread, until it is told to end."""
        while (held := self.inbox.get()) is not None:
            self._backlog.extend(held)
            while self._backlog or self._ready or self._posted:
                self._turn()
            tempo = self._work.tempo
            if tempo.leader is self:
                tempo.leader = None
            if not self._hands.idle(self):
                return

    def _turn(self) -> None:
        """Run the next attempt, if there is one. Send what is ready, unless more comes in a moment; await an answer,
        unless something quick can be run meanwhile."""
        if self._work.draining.is_set():
            self._work.pass_on(_emptied(self._backlog))
        held = _popped(self._backlog)
        if held is not None:
            self._began = time.monotonic()
            self._guarded(held)
            self._began = 0.0
        goes_on = self._goes_on()
        with self._wire:
            waits = goes_on and self._awaits_more()
            if not waits:
                self._send()
            if (waits or (goes_on and len(self._posted) < UNDER_WAY_MAX)) and not self._is_answered():
                return
            fresh = self._collected()
        self._take(fresh)

    def _awaits_more(self) -> bool:
        """Should more leave with what is ready? At most half of all that this thread has: while Redis is at the one, it
        is at the other."""
        if len(self._ready) >= min(self.coming, TOGETHER_MAX):
            return False
        return self._work.tempo.waits(self._ready_since, self._ready_nodes_s)

    def _is_answered(self) -> bool:
        """Is an answer here, while a little is left to run? What its leases need comes meanwhile, once asked for."""
        return bool(self._posted) and len(self._backlog) <= LITTLE and self._line.has_reply(self._posted[0].at)

    def _goes_on(self) -> bool:
        """Is what comes next over in a moment, so that no answer need be awaited before?"""
        try:
            coming = self._backlog[0]
        except IndexError:  # nothing is, or another thread has just taken it
            return False
        return self._work.tempo.expects(coming) or self._work.is_input(coming.lease)

    def _take(self, fresh: list[Held]) -> None:
        """Leases that came: quick ones stay with this thread. Else inputs do, as long as it has nothing slower, or one
        node; other threads have the others."""
        if fresh:
            work, has = self._work, tuple(self._backlog)
            if work.tempo.quick:
                self._backlog.extend(work.spread(fresh, len(fresh)))
            else:
                inputs = all(work.is_input(held.lease) for held in has)
                self._backlog.extend(work.spread(fresh, 1 - len(has), inputs=inputs))

    def relieve(self) -> None:
        """By another thread: what waits here goes to others, also what came in answers that nobody reads now."""
        fresh: list[Held] = []
        if self._wire.acquire(blocking=False):
            try:
                self._send()
                while self._posted and self._line.has_reply(self._posted[0].at):
                    fresh += self._collected()
            finally:
                self._wire.release()
        self._work.pass_on([*_emptied(self._backlog), *fresh])

    def _guarded(self, held: Held) -> None:
        """The loop's door: nothing that is raised ends the thread."""
        try:
            self._step(held)
        except BaseException as error:  # noqa: BLE001
            self._work.came_to_nothing(held, error)
            self._work.slots.give_new()

    def _step(self, held: Held) -> None:
        """Run one attempt to its commit, and have that ready."""
        work = self._work
        if not work.load(held):
            return
        attempt = held.attempt
        assert attempt is not None
        if attempt.is_async:
            work.loop.start([held])
            return
        if attempt.pace.limited:
            work.watch(held)
        work.tempo.begins(held)
        computed_s = time.thread_time() if work.tempo.looks else None
        result, seconds = _called(attempt), 0.0
        if not work.is_input(held.lease):  # it says nothing of how quick nodes are
            seconds = time.monotonic() - held.began
            work.tempo.ended(held, seconds, None if computed_s is None else time.thread_time() - computed_s)
        reach("called")
        if not held.take_right():
            work.slots.give_new()
            return
        done = Done(held, result)
        commit = work.settle(done)
        work.tempo.take_lead(self)
        with self._wire:
            if self._ready:
                self._ready_nodes_s += seconds
            else:
                self._ready_since, self._ready_nodes_s = time.monotonic(), 0.0
            self._ready.append(Settled(done, commit))

    def _send(self) -> None:
        """Post what is ready."""
        ready, self._ready = self._ready, []
        if ready:
            self._posted += self._work.posted(self._line, ready, self._work.tempo.room(self))

    def _collected(self) -> list[Held]:
        """The leases that the oldest answer under way brought. Commits whose answer is lost are sent again."""
        if not self._posted:
            return []
        posted = self._posted.popleft()
        return self._work.came(posted, self._line.collect(posted.at))


def _popped(backlog: deque[Held]) -> Held | None:
    try:
        return backlog.popleft()
    except IndexError:
        return None


def _emptied(backlog: deque[Held]) -> list[Held]:
    found: list[Held] = []
    while (held := _popped(backlog)) is not None:
        found.append(held)
    return found


def _called(attempt: Attempt) -> Result:
    """What the attempt came to; whatever a node raises fails the node, not the thread."""
    try:
        return attempt.call()
    except BaseException as error:  # noqa: BLE001 - the last door to the user's code
        return Result(None, error, attempt.elapsed_ms)
