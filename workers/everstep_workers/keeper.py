"""The lease thread: it renews what this process holds, sweeps, and shows the process to RQ's tools.

It runs outside the nodes' threads and over its own connection, so that no node and no commit can delay a renewal more
than the GIL does. When Redis is away it asks again within a second; leases that ran out then are not swept at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from everstep_checkpoint.errors import ServerError
from everstep_scheduler.client.manifest import publish
from everstep_scheduler.moves.connection import BACKOFF_MAX_S, answer_s, server_run_id, translated
from everstep_scheduler.recovery.recovery import audit, differing
from everstep_scheduler.steps.failpoints import reach

from .face import Face
from .pulse import KEEPER
from .work import Work, log

SWEEP_EVERY_S = 1.0
SWEEPS_MAX = 10
MORE_S = 0.05
SHOW_EVERY_S = 1.0
REGISTRY_EVERY_S = 20 * 60.0


@dataclass
class Duty:
    """Something to do again and again. Times of the monotonic clock. `action` is true if it did not come to its end."""

    action: Callable[[], bool | None]
    every_s: float
    due: float
    failures: int = 0

    def later(self, now: float, more: bool | None) -> None:
        self.failures = 0
        self.due = now + (min(MORE_S, self.every_s) if more else self.every_s)

    def soon(self, now: float) -> None:
        """It failed: again soon, at most a second from now."""
        self.failures += 1
        self.due = now + min(BACKOFF_MAX_S, self.every_s, 0.05 * 2 ** min(self.failures, 10))


class Keeper(threading.Thread):
    """Renews, sweeps, shows."""

    def __init__(self, work: Work, face: Face) -> None:
        super().__init__(name="everstep-keeper", daemon=True)
        self._work = work
        self._face = face
        patience_s = answer_s(work.setup.lease_ms)
        self._client = work.client(answer_s=patience_s)
        self._moves = work.line(patience_s)
        self._ended = threading.Event()
        self._renewed = deque([0, 0], maxlen=2)  # when, by the server's clock
        self._differed: frozenset[str] = frozenset()
        now, lease_s = time.monotonic(), work.setup.lease_ms / 1000
        self._registry_due = now + REGISTRY_EVERY_S
        self._duties = [
            Duty(self._renew, lease_s / 3, now + lease_s / 3),
            Duty(self._sweep, min(SWEEP_EVERY_S, lease_s / 3), now),
            Duty(self._show, SHOW_EVERY_S, now + SHOW_EVERY_S),
            Duty(self._audit, lease_s, now + lease_s),
        ]

    def run(self) -> None:
        while not self._ended.wait(max(0.0, min(duty.due for duty in self._duties) - time.monotonic())):
            self._work.pulse.beat(KEEPER)
            for duty in self._duties:
                if duty.due <= time.monotonic() and not self._ended.is_set():
                    self._do(duty)
        self._work.pulse.rest()

    def end(self) -> None:
        """Renew nothing any more."""
        self._ended.set()

    def _do(self, duty: Duty) -> None:
        self._work.pulse.again()
        try:
            with translated(self._work.setup.url):
                more = duty.action()
            duty.later(time.monotonic(), more)
        except ServerError as error:
            self._work.patience.say(f"{error.what}; trying again")
            self._work.hang_up(self._moves, self._client, self._face.client)  # where one was silent, all may be
            duty.soon(time.monotonic())
        except Exception as error:  # noqa: BLE001 - the loop's door: leases must be renewed whatever happens
            log.error("everstep's own error in the lease thread", exc_info=error)
            duty.soon(time.monotonic())

    def _renew(self) -> None:
        work = self._work
        tokens = tuple(held.lease.token for held in list(work.held.values()))
        registry = time.monotonic() >= self._registry_due
        gone, at_ms = self._moves.renew(work.offer(tokens), self._renewed[0], registry=registry)
        self._renewed.append(at_ms)
        reach("renewed")
        for token in gone:
            held = work.held.get(token)
            if held is not None:  # one whose commit is in flight is settled already: nothing is revoked
                work.revoke(held)
        if registry:
            self._registry_due = time.monotonic() + REGISTRY_EVERY_S

    def _sweep(self) -> bool:
        """Sweep. True if there is more: after a fleet was lost there may be a hundred thousand leases to take back."""
        server = server_run_id(self._client)  # each time: a client may reconnect unseen
        lease_ms = self._work.setup.lease_ms
        # what is left is for the next sweep, so that renewals never wait long
        return all(self._moves.sweep(server, lease_ms).get("more") for _ in range(SWEEPS_MAX))

    def _audit(self) -> None:
        """A queue that differs from our count for a whole lease: ids that are wrong there go, lost jobs come back.

        Manifests that are gone are published again.
        """
        setup, client = self._work.setup, self._client
        graphs = self._work.roots
        said = [
            *map(setup.keys.graph, graphs),
            *(setup.keys.limits(x.name) for g in graphs.values() for x in g.family if x.limits),
        ]
        if client.exists(*said) < len(said):  # manifests and limits are no indexes: no log has them
            publish(client, setup.keys, list(graphs.values()))
        differ = frozenset(differing(client, setup.keys, setup.queues))
        lasting, self._differed = differ & self._differed, differ
        if lasting:
            audit(client, setup.keys, sorted(lasting), said=self._work.patience.say, lease_ms=setup.lease_ms)

    def _show(self) -> None:
        work = self._work
        busy = "busy" if work.held else "idle"
        self._face.show("suspended" if work.suspended and not work.held else busy, work.tally)
