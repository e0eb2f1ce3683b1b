"""The front: the thread that claims when slots are free.

It registers nothing by itself: a claim that leaves slots free says so in its script, and so does a commit. Then the
front blocks on this process's bell, at most a second, and claims again. Under load commits bring the work; but parked
tasks and due wakes are only seen by claims, so once a second the next free slot is the front's.

Where no pool sees to suspects, the front does when the process holds nothing: it takes one, and nothing beside it. A
process that is always busy begins nothing for a while to get there, at most `CLEAR_S` a minute: nodes may be long.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import redis

from everstep_checkpoint.errors import ServerError

from .pulse import FRONT
from .slots import OFFER_MAX
from .work import Work, log

BLOCK_S = 1
LOOK_S = 0.01
CLAIM_EVERY_S = 1.0
PAUSE_S = 0.1
BELL_LASTS_MS = 5000
ANSWER_S = 3.0  # a network that has lost the connection says nothing; a claim, or a wait, may be sent again
CLEAR_S = 10.0
CLEAR_EVERY_S = 60.0


class Front(threading.Thread):
    """Claims, and waits for the bell."""

    def __init__(self, work: Work) -> None:
        super().__init__(name="everstep-front", daemon=True)
        self._work = work
        self._keys = work.setup.keys
        self._bell = self._keys.bell(work.setup.name)
        self._serves = work.serves
        self._moves = work.line(ANSWER_S)
        self._client: Any = work.client(BLOCK_S, ANSWER_S)  # redis-py types answers for asynchronous clients too
        self._claimed = time.monotonic()
        self._suspects = work.suspects
        self._alone = ""  # the token of a suspect that runs here
        self._look_at = 0.0
        self._clear_until = 0.0  # nothing is begun until then, so that a suspect can run alone
        self._clear_at = 0.0

    def run(self) -> None:
        while not self._work.draining.is_set():
            self._work.pulse.beat(FRONT)
            try:
                self._turn()
            except ServerError as error:
                log.warning("no claim, the process ends: %s", error.what)
            except redis.RedisError as error:
                self._work.patience.say(f"the bell is out of reach: {error}; trying again")
                self._work.draining.wait(PAUSE_S)
            except Exception as error:  # noqa: BLE001 - the loop's door
                log.error("everstep's own error while claiming", exc_info=error)
                self._work.draining.wait(CLAIM_EVERY_S)
        self._work.pulse.rest()

    def _turn(self) -> None:
        work = self._work
        work.hands.relieve()
        if self._alone in work.held or self._took_suspect():
            work.draining.wait(PAUSE_S)
            return
        if time.monotonic() < self._clear_until:
            work.hungry = True  # commits take nothing either
            work.draining.wait(PAUSE_S)
            return
        overdue = time.monotonic() - self._claimed > CLAIM_EVERY_S
        if not (room := work.tempo.room() or int(overdue)):
            work.draining.wait(LOOK_S)
            return
        wanting = work.patience.troubled or work.resting  # Redis, or a thread
        tokens = () if wanting else work.slots.take(min(OFFER_MAX, room))
        if not tokens:
            work.hungry = overdue
            work.draining.wait(PAUSE_S) if wanting else work.slots.wait(CLAIM_EVERY_S / 4)
            return
        if self._claim(tokens) < len(tokens):
            self._wait_for_bell()

    def _took_suspect(self) -> bool:
        """Take a suspect, if all slots are free and one waits. Looked for once a second."""
        work, now = self._work, time.monotonic()
        if not self._suspects or now <= self._look_at or work.patience.troubled or work.resting:
            return False
        self._look_at = now + CLAIM_EVERY_S
        if len(work.slots) < work.setup.concurrency or work.held:
            self._clear(now)
            return False
        self._clear_until = 0.0
        (self._alone,) = tokens = work.slots.take(1)
        return bool(self._claim(tokens, self._suspects))

    def _clear(self, now: float) -> None:
        """Begin nothing for a while, if a suspect waits."""
        if now < self._clear_at:
            return
        with self._client.pipeline(transaction=False) as pipe:
            for queue in self._suspects:
                pipe.llen(self._keys.rq_queue(queue))
            if any(pipe.execute()):
                self._clear_until, self._clear_at, self._look_at = now + CLEAR_S, now + CLEAR_EVERY_S, now

    def _claim(self, tokens: tuple[str, ...], suspects: tuple[str, ...] = ()) -> int:
        """Claim for all free slots. A claim whose reply is lost goes out again with the same tokens."""
        work = self._work
        offer, serves = work.offer(tokens, suspects), () if suspects else self._serves
        try:
            answer = work.insist(lambda: self._moves.claim(offer, serves=serves))
        except BaseException:
            work.slots.give_new(len(tokens))
            raise
        self._claimed = time.monotonic()
        work.hungry = False
        work.suspended = answer.status == "suspended"
        work.tell_refused(answer)
        work.spread(work.admit(offer, answer.leases))
        return len(answer.leases)

    def _wait_for_bell(self) -> None:
        rung = self._client.blpop([self._bell], BLOCK_S)
        if rung and (self._work.draining.is_set() or not len(self._work.slots)):
            self._pass_on(rung[1].decode("utf-8", "replace"))

    # the end

    def leave(self) -> None:
        """Wait for no more work, and pass on the rings that nobody answers. Called once the thread has ended."""
        with self._client.pipeline(transaction=False) as pipe:
            for queue in (*self._work.setup.queues, *self._suspects):
                pipe.zrem(self._keys.waiting(queue), self._work.setup.name)
            pipe.lrange(self._bell, 0, -1)
            pipe.delete(self._bell)
            rings = pipe.execute()[-2]
        for queue in rings:
            self._pass_on(queue.decode("utf-8", "replace"))

    def wake(self) -> None:
        """Ring our own bell, so that the thread sees that it is to end."""
        client: Any = self._work.client()
        with client.pipeline() as pipe:
            pipe.rpush(self._bell, "")
            pipe.pexpire(self._bell, BELL_LASTS_MS)
            pipe.execute()

    def _pass_on(self, queue: str) -> None:
        """The next process that waits for this queue gets the ring."""
        if not queue:
            return
        for process, _ in self._client.zpopmin(self._keys.waiting(queue)):
            bell = self._keys.bell(process.decode())
            self._client.rpush(bell, queue)
            self._client.pexpire(bell, BELL_LASTS_MS)
