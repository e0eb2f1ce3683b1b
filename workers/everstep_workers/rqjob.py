"""Our tasks under a stock RQ worker:

    EVERSTEP_GRAPHS=shop.orders:graph rq worker -j everstep.RQJob --serializer json orders

The class takes the place of RQ's Job, so that nothing that Redis says is imported, called or unpickled: functions come
from the graphs named in the environment, data is JSON, and of a job's hash only a few bounded fields are read: no
callbacks, webhooks, results, repeats. An id that is none is passed over; under RQ's own class it ends the worker. The
worker pops the job; we claim its task, run it, and commit. A job's hash and registries are the scripts' business; RQ's
writes to them are left out, so that they can't bring back what a commit removed. Slower than `everstep worker`, which
RQ's loop allows for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq.defaults import RQ_KEY_PREFIX
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.utils import str_to_date

from everstep_checkpoint.errors import GraphError, ServerError
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.graph.durability import COMMIT
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import patiently, server_run_id, translated
from everstep_scheduler.moves.contract import LEASE_MS, Lease, Offer
from everstep_scheduler.moves.live import LiveWriter
from everstep_scheduler.moves.promises import Promises
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_scheduler.recovery.recovery import Recovery
from everstep_scheduler.steps.caches import RedisCache
from everstep_scheduler.steps.outcome import Unserved
from everstep_scheduler.steps.perform import Attempt, Performer, Result
from everstep_scheduler.steps.timing import NEVER
from everstep_scheduler.steps.voice import through

from .targets import load_targets
from .work import with_nested
from .worker import specs_of

FUNCTION = "everstep.run_node"
GRAPHS_ENV = "EVERSTEP_GRAPHS"
STOPPED_BY_USER = "Job stopped by user"  # how RQ begins the reason
PATIENCE_S = 60.0
# The fields of a job's hash that are read, and the most bytes that each may have.
READ = {
    "data": 8192, "origin": 512, "description": 1024, "status": 32, "created_at": 40, "enqueued_at": 40,
    "started_at": 40, "ended_at": 40,
}  # fmt: skip

log = logging.getLogger("everstep.rqjob")
T = TypeVar("T")


class Refused(Exception):
    """A job that is not ours. Nothing of it was run."""


def graphs() -> dict[str, GraphSpec]:
    """The graphs that EVERSTEP_GRAPHS names, and those nested in them, loaded once."""
    if not _graphs:
        named = [each.strip() for each in os.environ.get(GRAPHS_ENV, "").split(",") if each.strip()]
        if not named:
            raise GraphError(
                f"{GRAPHS_ENV} names no graph", fix=f"{GRAPHS_ENV}=pkg.module:graph rq worker -j everstep.RQJob ..."
            )
        _graphs.update(with_nested(specs_of(load_targets(named))))
    return _graphs


_graphs: dict[str, GraphSpec] = {}
if os.environ.get(GRAPHS_ENV):
    graphs()  # in the worker itself: its work horses inherit them


class RQJob(Job):
    """RQ's job class for our tasks. Foreign jobs fail in RQ's failed registry, with the reason."""

    def __init__(self, id: str | None = None, connection: redis.Redis | None = None, serializer: Any = None) -> None:
        super().__init__(id, connection, JSONSerializer)  # pyright: ignore[reportUnknownMemberType]

    @property
    def ours(self) -> bool:
        """Does the job name our function? Anything else is never looked at."""
        try:
            return self.func_name == FUNCTION
        except DeserializationError:
            return False

    @property
    def func(self) -> Callable[..., None]:
        """What RQ calls: our function, whatever the job says."""
        if not self.ours:
            raise Refused(f"refused by everstep: job {self.id} is not one of ours; its function must be {FUNCTION}")
        return self._run_node

    def _run_node(self, **named: object) -> None:
        Turn(self.connection, self.id).run()

    @property
    def instance(self) -> None:
        return None

    @instance.setter
    def instance(self, value: object) -> None:
        """RQ makes jobs that are to be enqueued this way; ours are made by scripts."""

    @property
    def success_callback(self) -> None:
        return None

    @property
    def failure_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None

    @classmethod
    def fetch(cls, id: str, connection: redis.Redis | None = None, serializer: Any = None) -> RQJob:
        """The job. Raises NoSuchJobError, which RQ passes over, also for an id or a key that is none."""
        try:
            made = cls(id, connection)
            made.refresh()
        except (ValueError, redis.ResponseError) as error:
            log.warning("passed over job %.80r: %s", id, error)
            raise NoSuchJobError(f"job {id[:80]!r} can't be read") from error
        return made

    def refresh(self) -> None:
        """Read the few fields that are needed, those of a decent size."""
        client: Any = self.connection
        pipe = client.pipeline(transaction=False)
        for name in READ:
            pipe.hstrlen(self.key, name)
        names = [name for name, size in zip(READ, pipe.execute(), strict=True) if 0 < size <= READ[name]]
        found = dict(zip(names, client.hmget(self.key, names) if names else (), strict=True))
        if not found and not client.exists(self.key):
            raise NoSuchJobError(f"No such job: {self.key}")
        self.restore(found)

    def restore(self, raw_data: dict[Any, Any]) -> None:
        super().restore(_readable(raw_data))  # pyright: ignore[reportUnknownMemberType]
        if self.ours:
            self.timeout = -1  # attempts keep their own timeouts, and settle them
            self.result_ttl = 0

    # what RQ would write to a job's hash and registries

    def heartbeat(self, timestamp: datetime, ttl: int, pipeline: Any = None, xx: bool = False) -> None:
        if not self.ours:
            super().heartbeat(timestamp, ttl, pipeline, xx)
        elif pipeline is not None:
            pipeline.exists(self.key)  # RQ counts the answers

    def cleanup(self, ttl: int | None = None, pipeline: Any = None, remove_from_queue: bool = True) -> None:
        if not self.ours:
            super().cleanup(ttl, pipeline, remove_from_queue)

    def set_status(self, status: JobStatus, pipeline: Any = None) -> None:
        if self.ours:
            self._status = status
        else:
            super().set_status(status, pipeline)

    def _handle_failure(self, exc_string: str, pipeline: Any, *args: Any, **named: Any) -> None:
        """The work horse died, was stopped by an operator, or could not reach Redis."""
        if not self.ours:
            super()._handle_failure(exc_string, pipeline, *args, **named)
            return
        try:
            Turn(self.connection, self.id).died(exc_string.startswith(STOPPED_BY_USER))
        except ServerError as error:
            log.warning("job %s: left to its lease: %s", self.id, error.what)


def _readable(raw: dict[Any, Any]) -> dict[str, bytes]:
    """What RQ may read of a job's hash. Where its data is too large, or can't be ours, there is none: it is refused."""
    found: dict[str, bytes] = {}
    for name, most in READ.items():
        value = raw.get(name) or raw.get(name.encode())
        if isinstance(value, bytes) and len(value) <= most and _fits(name, value):
            found[name] = value
    return {**found, "data": _unpacked(found.get("data", b""))}


def _fits(name: str, value: bytes) -> bool:
    """Can RQ read a field without an error?"""
    try:
        if name == "status":
            JobStatus(value.decode())
        elif name.endswith("_at"):
            str_to_date(value)
        elif name != "data":
            value.decode()
    except ValueError:
        return False
    return True


def _unpacked(data: bytes) -> bytes:
    """JSON text as it is, or as RQ packed it when it saved the job; a few bytes may unpack to very many."""
    if not data.startswith(b"["):
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(data, READ["data"])
        except zlib.error:
            return b"null"
        if unpacker.unconsumed_tail:
            return b"null"
    return data if data.startswith(b"[") else b"null"


class Turn:
    """One task under a stock worker. Its owner is named after the job, so that any process of the worker can end it."""

    def __init__(self, connection: redis.Redis, job: str) -> None:
        self._job = job
        self._client: Any = _client_like(connection)
        self._keys = Keys(rq=RQ_KEY_PREFIX)
        self._lease: Lease | None = None
        recovery = Recovery(self._client, self._keys, self._leases, log.warning, LEASE_MS, f"rq.{job}")
        self._moves = RedisMoves(Scripts(self._client, self._keys, recovery))
        self._owner = f"rq.{job}"
        self._live = LiveWriter(lambda: _client_like(connection), self._keys)
        cache = RedisCache(self._client, keys=self._keys)
        kept = RedisLog(self._client, self._keys)
        hears = through(self._live)
        self._performer = Performer(
            self._moves, kept, graphs(), by=self._owner, listening=hears, cache=cache, slotted=True, parks=True
        )

    def run(self) -> None:
        """Claim, load, call, settle, commit. Quiet if the job is stale or its task leased already."""
        lease = self._lease = self._claim()
        if lease is None:
            log.info("job %s: nothing to do, its task is done or under way elsewhere", self._job)
            self._client.delete(self._keys.rq_job(self._job)) if not self._has_data() else None
            return
        beat = Beat(self._moves, self._client, Offer(self._owner, (lease.token,)))
        beat.start()
        try:
            self._perform(lease)
        finally:
            beat.end()
            self._live.close()
            self._client.close()

    def died(self, stopped: bool) -> None:
        """The task's process is dead: lost, or failed if an operator stopped it."""
        tokens = [token.decode() for token in self._client.hkeys(self._keys.held(self._owner))]
        if not tokens:
            return
        if stopped:
            found = self._moves.claim(Offer(self._owner, tuple(tokens)), take=self._job).leases
            for lease in found:
                attempt = self._performer.load(lease)
                self._commit(attempt, Result.stopped(attempt, "stopped by an operator"))
        self._moves.release(self._owner, None, "lost", "its process died")

    def _leases(self) -> list[Lease]:
        return [self._lease] if self._lease else []

    def _claim(self) -> Lease | None:
        offer = Offer(self._owner, (new_id(),))
        while True:
            answer = _insist(lambda: self._moves.claim(offer, take=self._job))
            for text in answer.refused:
                log.warning("refused job %s", text)
            if answer.status != "suspended":
                return answer.leases[0] if answer.leases else None
            time.sleep(1.0)  # RQ popped it just before it was suspended: it waits here

    def _has_data(self) -> bool:
        return bool(self._client.hexists(self._keys.rq_job(self._job), "data"))

    def _perform(self, lease: Lease) -> None:
        try:
            attempt = _insist(lambda: self._performer.load(lease))
        except Unserved as error:
            reason = error.reason
            log.warning("job %s: parked: %s", self._job, reason)
            _insist(lambda: self._moves.release(self._owner, [lease.token], "parked", reason))
            return
        self._commit(attempt, _called(attempt))

    def _commit(self, attempt: Attempt, result: Result) -> None:
        commit = _insist(lambda: self._performer.settle(attempt, result))
        answer = _insist(lambda: self._moves.commit([(commit, Offer(self._owner))]))[0]
        if answer.status != "ok":
            log.info("job %s: its outcome came too late (%s)", self._job, answer.status)
        if (durability := attempt.record.durability) != COMMIT:
            Promises(self._client, self._keys).report((durability,), f"job {self._job}", log)


class Beat(threading.Thread):
    """Renews the lease of one task, and sweeps, while it runs."""

    def __init__(self, moves: RedisMoves, client: redis.Redis, offer: Offer) -> None:
        super().__init__(name="everstep-leases", daemon=True)
        self._moves = moves
        self._client = client
        self._offer = offer
        self._ended = threading.Event()

    def run(self) -> None:
        renew_every_s = LEASE_MS / 3000
        due = time.monotonic() + renew_every_s
        while not self._ended.wait(1.0):
            try:
                with translated():
                    self._moves.sweep(server_run_id(self._client))
                    if time.monotonic() >= due:
                        self._moves.renew(self._offer, 0)
                        due += renew_every_s
            except ServerError as error:
                log.warning("%s; trying again", error.what)

    def end(self) -> None:
        self._ended.set()
        self.join(2.0)


def _called(attempt: Attempt) -> Result:
    """Run the node in a thread of its own, so that its timeout needs no signal."""
    found: list[Result] = []

    def call() -> None:
        found.append(asyncio.run(attempt.acall()) if attempt.is_async else attempt.call())

    thread = threading.Thread(target=call, name="everstep-node", daemon=True)
    thread.start()
    while not attempt.is_async and thread.is_alive() and (left := attempt.pace.due - time.monotonic()) > 0:
        thread.join(None if left == NEVER else left)
    if attempt.is_async:
        thread.join()
    if found:
        return found[0]
    attempt.kill()
    return Result.timeout(attempt)


def _insist(action: Callable[[], T]) -> T:
    """Do it until Redis lets it pass, for a minute at most."""
    end = time.monotonic() + PATIENCE_S

    def once() -> T:
        with translated():
            return action()

    return patiently(once, lambda: time.monotonic() > end, log.warning)


# Where a connection leads, and as whom. Other settings of RQ's pool are its own, and some need another protocol.
WHERE = frozenset({"host", "port", "path", "db", "username", "password", "credential_provider"})


def _client_like(connection: redis.Redis) -> redis.Redis:
    """A client to the server that RQ is connected to, with our settings: nothing is resent, replies are RESP2."""
    pool = connection.connection_pool
    if type(pool) is not redis.ConnectionPool:
        return connection  # Sentinel and the like; our scripts bear RQ's resends
    given: dict[str, Any] = pool.connection_kwargs
    settings: dict[str, Any] = {
        **{name: value for name, value in given.items() if name in WHERE or name.startswith("ssl_")},
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
    }
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **settings))
