"""The load: clients that submit, cancel, answer and look, and note what they were told, while things break around them.

    producer, several ─► submit on one of its threads ─► wait until it rests, a while at most ─► the next
                            └─ sometimes: cancel, a second input behind the first, a question to answer

A request whose answer is lost is `unknown`, and is sent again with the same run id: what was done is attached to.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from everstep_checkpoint.errors import EverstepError, ServerError
from everstep_checkpoint.ids import new_id
from everstep_scheduler.client.client import Client

from . import sample
from .ledger import Ledger

LOOK_S = 0.05
AGAIN_S = 0.1
RUNS_A_THREAD = 6
PATIENCE_S = 20.0
BASE = 1_000_000
CANCELS, ASKS, BEHIND = 0.05, 0.1, 0.15
CANCEL_WITHIN_S = 0.3


class Load:
    """`producers` clients on threads of their own, until `stop`. `given`: the input for a graph of the user's.
    `rewinds`: may a thread be gone, as after a failover?"""

    def __init__(
        self,
        connect: Callable[[], Client],
        ledger: Ledger,
        seed: int,
        *,
        producers: int = 6,
        graph: str = sample.NAME,
        given: Mapping[str, Any] | None = None,
        nap_ms: tuple[int, int] = (5, 80),
        rewinds: bool = False,
    ) -> None:
        self._connect = connect
        self._ledger = ledger
        self._graph = graph
        self._given = given
        self._nap_ms = nap_ms
        self._rewinds = rewinds
        self._stopped = threading.Event()
        self.refused: EverstepError | None = None
        self._threads = [
            threading.Thread(target=self._produce, args=(i, random.Random(f"load {seed} {i}")), name=f"producer-{i}")  # noqa: S311
            for i in range(producers)
        ]

    def start(self) -> None:
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        """Submit no more; what was submitted goes on."""
        self._stopped.set()
        for each in self._threads:
            each.join()

    # one producer

    def _produce(self, number: int, dice: random.Random) -> None:
        with self._connect() as client:
            count, made = 0, 0
            while not self._stopped.is_set():
                count, made = (count + 1, 0) if made >= RUNS_A_THREAD else (count, made)
                thread = f"c{number}-{count}"
                made = self._turn(client, thread, made, dice)
                self._await_rest(client, thread)

    def _turn(self, client: Client, thread: str, made: int, dice: random.Random) -> int:
        """Submit an input, or two, one behind the other; perhaps cancel. Returns how many the thread has had."""
        if self._given is not None:
            self._submit(client, thread, made, dice)
            return made + 1
        if dice.random() < BEHIND:
            self._submit(client, thread, made, dice)
            made += 1
        run = self._submit(client, thread, made, dice)
        if dice.random() < CANCELS:
            self._stopped.wait(dice.random() * CANCEL_WITHIN_S)
            self._cancel(client, thread, run)
        return made + 1

    def _submit(self, client: Client, thread: str, number: int, dice: random.Random) -> str:
        run = new_id()
        told = self._given if self._given is not None else self._made(number, dice)
        self._ledger.say("submit", "ask", thread, run, input=told)
        self._insist(
            "submit", thread, run, lambda: client.submit(self._graph, told, thread_id=thread, run_id=run), told
        )
        return run

    def _made(self, number: int, dice: random.Random) -> dict[str, Any]:
        return sample.given(
            BASE * (number + 1), dice.randint(1, 3), dice.choice((1, 2, 3, 5, 8)), nap_ms=dice.randint(*self._nap_ms),
            flaky=dice.choice((0, 0, 3, 7)), asks=dice.random() < ASKS,
        )  # fmt: skip

    def _insist(
        self, op: str, thread: str, run: str, action: Callable[[], Any], told: Mapping[str, Any] | None = None
    ) -> Any:
        """Send it until an answer comes. None if it was refused."""
        more: dict[str, Any] = {} if told is None else {"input": told}
        while True:
            try:
                done = action()
            except ServerError as error:
                self._ledger.say(op, "unknown", thread, run, why=error.what, **more)
                time.sleep(AGAIN_S)
            except EverstepError as error:
                self._ledger.say(op, "no", thread, run, why=error.what, **more)
                if op == "submit":  # an input that does not fit: there is nothing to wait for
                    self.refused = error
                    self._stopped.set()
                return None
            else:
                more |= {"cancelled": done} if op == "cancel" else {}
                self._ledger.say(op, "ok", thread, run, **more)
                return done

    def _cancel(self, client: Client, thread: str, run: str) -> None:
        self._ledger.say("cancel", "ask", thread, run)
        self._insist("cancel", thread, run, lambda: client.cancel(thread, run, actor="chaos"))

    # looking

    def _await_rest(self, client: Client, thread: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not self._stopped.is_set() and time.monotonic() < end and not self.rests(client, thread):
            self._stopped.wait(LOOK_S)

    def rests(self, client: Client, thread: str) -> bool:
        """Look at a thread, note its head, answer what it asks. Does it rest, with nothing left to do for us?"""
        try:
            head, at = client.log_store.head(thread), time.monotonic()
            there = client.redis.exists(client.keys.log(thread))
            status = (client.redis.hget(client.keys.thread(thread), "status") or b"").decode()
        except Exception:  # noqa: BLE001  # Redis is away: looked at again
            return False
        if head is not None and head.n:
            self._ledger.say("seen", "ok", thread, at=at, n=head.n, digest=head.digest)
        if self._rewinds and not there:
            return True  # nobody knows of it any more: the checker says whether that may be
        if self._given is not None:
            return status in ("done", "failed", "interrupted", "cancelled")
        if status == "interrupted":
            self._answer(client, thread)
        elif status == "failed":
            self._retry(client, thread)
        return status in ("done", "cancelled")

    def _answer(self, client: Client, thread: str) -> None:
        run, value = new_id(), -int(time.monotonic() * 1000) % BASE
        self._ledger.say("answer", "ask", thread, run)
        self._insist("answer", thread, run, lambda: client.resume(thread, value, run_id=run))

    def _retry(self, client: Client, thread: str) -> None:
        """A dead letter: so many deaths that the task seemed to be their cause. A person would let it go on."""
        try:
            run = client.retry(thread)
        except EverstepError as error:
            self._ledger.say("retry", "no", thread, why=error.what)
        else:
            self._ledger.say("retry", "ok", thread, run.run_id)
