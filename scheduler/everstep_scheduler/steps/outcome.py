"""How an attempt failed, as a value: the error as text, and when to try again. Pure. How one ended well says `plan`."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from everstep_checkpoint.errors import EverstepError, type_name

from ..graph.isolation import Relayed
from ..graph.retry import next_delay
from ..graph.spec import NodeSpec

TEXT_MAX = 4_000
TRACEBACK_MAX = 16_000
CHAIN_MAX = 20
# The package's folder: what calls the user's code is in it. A compiled module says where it lay when it was compiled.
HERE = (__file__.rpartition("steps")[0], "scheduler/everstep_scheduler/")


class Unserved(Exception):
    """This process does not serve the lease's graph or node: the lease goes back, uncounted, and is parked."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Stopped(EverstepError):
    """An operator stopped the attempt."""


@dataclass(frozen=True)
class Raised:
    """The attempt raised. Types travel as names only: nothing is rebuilt from them. `retry_s`: when the next attempt is
    due; None: there is none."""

    error_type: str
    text: str
    traceback: str
    retry_s: float | None


def raised(node: NodeSpec | None, error: Exception, failures: int, rand: float) -> Raised:
    """The outcome of an attempt that raised. `failures` counts this one; a node of None is never retried."""
    policies = node.retry if node is not None else ()
    delay = next_delay(policies, error, failures, rand)
    return Raised(type_name(type(error)), _text(error), _trace(error), delay)


def _text(error: BaseException) -> str:
    """What the error says. Safe for one whose `str` raises, as traceback is. Of ours without the place: it is known."""
    if isinstance(error, EverstepError):
        return (f"{error.what.rstrip('.')}. {error.fix}" if error.fix else error.what)[:TEXT_MAX]
    whole = "".join(traceback.format_exception_only(error)).strip()
    for prefix in (type_name(type(error)), type(error).__qualname__):
        whole = whole.removeprefix(prefix).removeprefix(": ")
    return whole[:TEXT_MAX]


def _trace(error: BaseException) -> str:
    """The end of the traceback, where the line is that raised, from the user's code on. An error that we raise about
    what the user's code did has no line of it to show."""
    if isinstance(error, Relayed):
        return error.traceback
    told = traceback.TracebackException.from_exception(error)
    if isinstance(error, EverstepError) and all(map(_is_ours, told.stack)):
        return "".join(told.format_exception_only())[-TRACEBACK_MAX:]
    _begin_with_theirs(told)
    return "".join(told.format())[-TRACEBACK_MAX:]


def _begin_with_theirs(told: traceback.TracebackException, depth: int = 0) -> None:
    """Drop our own frames before the user's first one, also in the errors behind it. One with ours alone keeps them."""
    theirs = next((i for i, frame in enumerate(told.stack) if not _is_ours(frame)), 0)
    del told.stack[:theirs]
    for behind in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if behind is not None and depth < CHAIN_MAX:
            _begin_with_theirs(behind, depth + 1)


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(HERE)
