"""The lease keeper of inline callers: one thread that names what its process holds, so that nobody takes it.

It runs outside the nodes' threads; a node that sleeps, computes or waits never costs a lease. One keeper serves all
runs of a saver, because whoever renews must name all that its owner holds: what is not named is given to others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from .contract import Lease, Moves, Offer

REGISTRY_EVERY_S = 1200.0
_log = logging.getLogger("everstep")


class LeaseKeeper:
    """Renews every third of a lease, while anything is held. Safe to use from several threads."""

    def __init__(self, moves: Moves, owner: str, lease_ms: int) -> None:
        self._moves = moves
        self._owner = owner
        self._lease_ms = lease_ms
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._registry_at = time.monotonic() + REGISTRY_EVERY_S
        self.round = 0

    def hold(self, leases: Sequence[Lease]) -> None:
        """Begin to renew these."""
        with self._lock:
            self._held.update((lease.token, lease) for lease in leases)
            if self._held and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="everstep-leases", daemon=True)
                self._thread.start()

    def drop(self, token: str) -> None:
        """Its commit is settled, or it was given back."""
        with self._lock:
            self._held.pop(token, None)

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
                if not self._held:
                    self._thread = None
                    return
            try:
                self.renew()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next round names them again
                _log.warning("leases were not renewed, trying again: %s", error)

    def renew(self) -> None:
        """One round. A lease that is gone is found out by its commit, which is refused."""
        self.round += 1
        registry = time.monotonic() > self._registry_at
        tokens = tuple(lease.token for lease in self.held)
        self._moves.renew(Offer(self._owner, tokens, round=self.round, lease_ms=self._lease_ms), registry=registry)
        if registry:
            self._registry_at = time.monotonic() + REGISTRY_EVERY_S
