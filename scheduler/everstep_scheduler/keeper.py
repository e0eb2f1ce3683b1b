"""The lease keeper: one thread that names what its process holds, so that nobody takes it.

It runs outside the nodes' threads; a node that sleeps, computes or waits never costs a lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from everstep_checkpoint.errors import ServerError

from .moves import Moves, Offer

REGISTRY_EVERY_S = 1200.0


class LeaseKeeper:
    """Renews every third of a lease. `lost` is called with the tokens that hold nothing any more.

    Tokens whose commit is in flight stay named; that they are gone is then no news and is not told.
    """

    def __init__(self, moves: Moves, owner: str, lease_ms: int, lost: Callable[[Sequence[str]], None] = lambda _: None) -> None:
        self._moves = moves
        self._owner = owner
        self._lease_ms = lease_ms
        self._lost = lost
        self._held: dict[str, bool] = {}  # token -> is its commit in flight?
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self.round = 0
        self._registry_at = time.monotonic() + REGISTRY_EVERY_S

    def hold(self, tokens: Sequence[str]) -> None:
        """Begin to renew these; starts the thread with the first one."""
        with self._lock:
            self._held.update(dict.fromkeys(tokens, False))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="everstep-leases", daemon=True)
            self._thread.start()

    def settling(self, token: str) -> None:
        """Its commit is on the way."""
        with self._lock:
            if token in self._held:
                self._held[token] = True

    def drop(self, token: str) -> None:
        """Its commit is settled, or it was given back."""
        with self._lock:
            self._held.pop(token, None)

    @property
    def held(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._held)

    def stop(self) -> None:
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._wake.wait(self._lease_ms / 3000):
            try:
                self.renew()
            except ServerError:
                continue  # Redis is away: the next round names them again

    def renew(self) -> None:
        """One round."""
        self.round += 1
        registry = time.monotonic() > self._registry_at
        offer = Offer(self._owner, self.held, round=self.round, lease_ms=self._lease_ms)
        gone = self._moves.renew(offer, registry=registry)
        if registry:
            self._registry_at = time.monotonic() + REGISTRY_EVERY_S
        with self._lock:
            news = [token for token in gone if self._held.get(token) is False]
            for token in news:
                del self._held[token]
        if news:
            self._lost(news)
