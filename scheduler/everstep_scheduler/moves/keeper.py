"""The lease keeper of inline callers: one thread that names what its process holds, so that nobody takes it.

It runs outside the nodes' threads; a node that sleeps, computes or waits never costs a lease. One keeper serves all
runs of a saver, because whoever renews must name all that its owner holds: what is not named is given to others.

It also gives the word of the callers that drive a run, and sweeps, for there may be no worker that does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from everstep_checkpoint.errors import ServerError

from .contract import Lease, Moves, Offer

SWEEP_EVERY_S = 1.0
REGISTRY_EVERY_S = 1200.0
_log = logging.getLogger("everstep")


class LeaseKeeper:
    """Renews every third of a lease, while anything is held or driven. Safe to use from several threads."""

    def __init__(self, moves: Moves, owner: str, lease_ms: int, sweep: Callable[[], object] = lambda: None) -> None:
        self._moves = moves
        self._sweep = sweep
        self._swept = float("-inf")
        self._callers: set[str] = set()
        self._named: tuple[str, ...] = ()  # whose word the last renewal gave, or gives now
        self._over: dict[str, bool] = {}  # who drives no more, and had the word given: has it ended?
        self._owner = owner
        self._lease_ms = lease_ms
        self._held: dict[str, Lease] = {}
        self._watched: dict[str, Callable[[], object]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._registry_at = time.monotonic() + REGISTRY_EVERY_S
        self._renewed = deque([0, 0], maxlen=2)  # when, by the server's clock

    def hold(self, leases: Sequence[Lease]) -> None:
        """Begin to renew these."""
        with self._lock:
            self._held.update((lease.token, lease) for lease in leases)
            self._wake()

    def watch(self, token: str, gone: Callable[[], object]) -> None:
        """Call `gone`, once and from the keeper's thread, when a renewal says that a held lease is gone: its run was
        cancelled, or it was lost. It must not raise, nor wait."""
        with self._lock:
            self._watched[token] = gone

    def drive(self, caller: str) -> None:
        """Begin to give this caller's word."""
        with self._lock:
            self._callers.add(caller)
            self._over.pop(caller, None)
            self._wake()

    def undrive(self, caller: str, *, ended: bool) -> None:
        """It drives no run any more, as `Moves.leave` says. A renewal that is on its way may give its word once more:
        that is taken back behind it."""
        with self._lock:
            self._callers.discard(caller)
            if caller in self._named:
                self._over[caller] = ended

    @property
    def callers(self) -> tuple[str, ...]:
        """Who drives a run in this process."""
        with self._lock:
            return tuple(self._callers)

    def _wake(self) -> None:
        if (self._held or self._callers) and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="everstep-leases", daemon=True)
            self._thread.start()

    def drop(self, token: str) -> None:
        """Its commit is settled, or it was given back."""
        with self._lock:
            self._held.pop(token, None)
            self._watched.pop(token, None)

    @property
    def held(self) -> tuple[Lease, ...]:
        """What this process holds."""
        with self._lock:
            return tuple(self._held.values())

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self._lease_ms / 3000)
            with self._lock:
                if not self._held and not self._callers and not self._over:
                    self._thread = None
                    return
            try:
                self.renew()
                self._leave()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next round names them again
                _log.warning("leases were not renewed, trying again: %s", error)
            self.sweep()

    def sweep(self) -> None:
        """Sweep, if this process has not done so a moment ago. Where Redis is away, the next one does it."""
        with self._lock:
            if time.monotonic() - self._swept < min(SWEEP_EVERY_S, self._lease_ms / 3000):
                return
            self._swept = time.monotonic()
        try:
            self._sweep()
        except ServerError as error:
            _log.warning("no sweep, trying again: %s", error)

    def renew(self) -> None:
        """One round. A lease that is gone is found out by its commit, which is refused; who watches it hears now."""
        registry = time.monotonic() > self._registry_at
        tokens = tuple(lease.token for lease in self.held)
        offer = Offer(self._owner, tokens, lease_ms=self._lease_ms)
        with self._lock:
            self._named = tuple(self._callers)
        lost, at_ms = self._moves.renew(offer, self._renewed[0], registry=registry, callers=self._named)
        self._renewed.append(at_ms)
        self._tell(lost)
        if registry:
            self._registry_at = time.monotonic() + REGISTRY_EVERY_S

    def _leave(self) -> None:
        """Take back the word of those who drive no more. Where Redis is away, the next round does it."""
        with self._lock:
            over = dict(self._over)
        for caller, ended in over.items():
            self._moves.leave(caller, ended=ended)
            with self._lock:
                self._over.pop(caller, None)

    def _tell(self, lost: Sequence[str]) -> None:
        with self._lock:
            told = [gone for token in lost if (gone := self._watched.pop(token, None)) is not None]
        for gone in told:
            gone()
