"""What one attempt's task has done already: its `effect_done` facts, read when they are first asked for.

    begin(key) ──► recorded by an earlier attempt? its value     record(key, value) ──part──► effect_done, or Fenced

A record is fenced as a commit is. One that is refused ends the attempt: its outcome could not be committed either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import InvalidEffect, ServerError, UnknownType
from everstep_checkpoint.log import Log

from ..graph.effects import raised_key
from ..moves.connection import is_hopeless, patiently, translated
from ..moves.contract import Lease, Moves
from .failpoints import reach

EFFECTS_MAX = 10_000
REFUSED_S = 60.0
T = TypeVar("T")

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec


class Fenced(BaseException):
    """Somebody else holds the task: the commit that follows will be refused, so it need not be made.

    No Exception, so that a node that catches those does not go on with what cannot be kept.
    """


def insist(action: Callable[[], T], patience_s: float, stopped: Callable[[], bool] = lambda: False) -> T:
    """Do `action` until Redis lets it pass, for at most `patience_s` while it is away, and `REFUSED_S` while it is
    there and refuses. Raises ServerError then."""
    began, refused = time.monotonic(), False

    def tried() -> T:
        nonlocal refused
        try:
            with translated():
                return action()
        except ServerError as error:
            refused = is_hopeless(error)
            raise

    return patiently(tried, lambda: stopped() or time.monotonic() - began > (REFUSED_S if refused else patience_s))


class Heeding(Protocol):
    """Who follows in this process what attempts write while they run. From any thread; none of it waits."""

    def called(self, run: str, spec: GraphSpec, by: str) -> None:
        """A function called a graph, in the run `by`: in this run of its own, or on with it."""
        ...

    def rang(self) -> None:
        """Something was written."""
        ...

    def failed(self, key: str, error: BaseException, *, below: bool = False) -> None:
        """The error itself, of what the log tells under this key only as text. `below`: in what a function called."""
        ...


class Effects:
    """The effects of one attempt, that of `lease`. Safe to use from several threads. `fenced`: the attempt has lost its
    task. `heeding`: who follows it here; None: nobody."""

    def __init__(self, moves: Moves, log: Log, lease: Lease, codec: Codec, by: str) -> None:
        self.fenced = False
        self.heeding: Heeding | None = None
        self.moves = moves
        self.log = log
        self.lease = lease
        self._codec = codec
        self.by = by
        self._used: set[str] = set()
        self._known: dict[str, bytes] | None = None
        self._lock = threading.Lock()

    def begin(self, key: str, codec: Codec | None = None) -> tuple[Any] | None:
        """The value that is recorded under a key, if one is. Raises InvalidEffect for a key used already."""
        with self._lock:
            if key in self._used:
                raise InvalidEffect(
                    f"the effect {key!r} comes twice in one attempt", node=self.lease.node,
                    fix="give each effect a key of its own, as in f'charge-{order_id}'",
                )  # fmt: skip
            if len(self._used) >= EFFECTS_MAX:
                raise InvalidEffect(
                    f"over {EFFECTS_MAX:,} effects in one task", node=self.lease.node, fix="spread them over Sends"
                )
            self._used.add(key)
            if self._known is None:
                self._known = self._insist(self._read) if self.lease.effects else {}
            found = self._known.get(key)
        return None if found is None else ((codec or self._codec).decode(found, f"the effect {key!r}"),)

    def undone(self, key: str) -> None:
        """It raised: the key may be used again."""
        with self._lock:
            self._used.discard(key)

    def record(
        self, key: str, value: Any, codec: Codec | None = None, *, cached: bool = False, called: str = "", ns: str = ""
    ) -> Any:
        """Record what was done; gives the value as it is stored. `cached`: a cache spoke for it, nothing was done.
        Of a graph that is called: the run that is about to begin, `<run> <thread>`, and the way to that thread.

        Raises Fenced, UnknownType, TooLarge, ServerError.
        """
        codec = codec or self._codec
        result = self._encoded(key, value, codec)
        reach("effected")
        fact = self.fact(
            "effect_done", key, result=e.wrap(result), cached=1 if cached else None, called=called or None,
            ns=ns or None,
        )  # fmt: skip
        self.tell([fact])
        reach("recorded")
        return codec.decode(result, f"the effect {key!r}")

    def fact(self, kind: str, key: str, **fields: e.Field | None) -> e.Fields:
        """A fact about the effect, or call, with this key."""
        lease = self.lease
        return e.fact(
            kind, lease.run, by=self.by, task=lease.task, attempt=lease.attempt, token=lease.token, node=lease.node,
            effect=key, **fields,
        )  # fmt: skip

    def tell(self, facts: Sequence[e.Fields]) -> None:
        """Write facts under the lease. Raises Fenced, ServerError."""
        if not self._insist(lambda: self.moves.part(self.lease, facts)):
            self.fenced = True
            raise Fenced
        self.rang()

    def rang(self) -> None:
        """Something was written, in the log of the task or in one that its attempt keeps."""
        if self.heeding is not None:
            self.heeding.rang()

    def raises(self, key: str, error: BaseException) -> None:
        """What is told as failed under this key raised this."""
        if self.heeding is not None:
            self.heeding.failed(raised_key(self.lease.token, key), error)

    def _encoded(self, key: str, value: Any, codec: Codec) -> bytes:
        try:
            return codec.encode(value, f"the value of the effect {key!r}")
        except UnknownType as error:
            error.node = self.lease.node
            error.fix = f"{error.fix.rstrip('.')}. The effect is done, and not recorded".lstrip(". ")
            raise

    def _insist(self, action: Callable[[], T]) -> T:
        """What is done outlives an absence of Redis. A fact that is sent twice says the same twice."""
        return insist(action, self.moves.patience_s, lambda: self.fenced)

    def _read(self) -> dict[str, bytes]:
        """The step's facts from this task's first effect on, a page at a time; the first record of a key counts."""
        lease, found = self.lease, dict[str, bytes]()
        for fact in self.log.pages(lease.thread, lease.effects, str(lease.n)):
            if fact.kind == "effect_done" and fact.text("task") == lease.task:
                found.setdefault(fact.text("effect"), fact.value("result") or b"\xc0")
        return found
