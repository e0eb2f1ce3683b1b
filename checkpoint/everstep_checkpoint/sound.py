"""What a log says that no writer of ours writes is a CorruptEntry, however it shows itself to who reads it.

    @sound                                     of functions whose first arguments are the log and the thread
    def state_at(log, thread, n=None): ...

Readers check what they know to be wrong, and name the entry. This is the net below them: a field of another kind
than its reader takes for granted ends in one error that says which thread, not in a KeyError.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from .codec import MALFORMED
from .errors import CorruptEntry, EverstepError
from .log import Log

P = ParamSpec("P")
T = TypeVar("T")
_ODD: tuple[type[Exception], ...] = (AttributeError, *MALFORMED)


def sound(read: Callable[Concatenate[Log, str, P], T]) -> Callable[Concatenate[Log, str, P], T]:
    """A function that reads a thread's log and raises nothing but errors of ours over what it finds there."""

    @wraps(read)
    def reads(log: Log, thread: str, /, *args: P.args, **named: P.kwargs) -> T:
        try:
            return read(log, thread, *args, **named)
        except Exception as error:
            _told(thread, error)
            raise

    return reads


def sounds(read: Callable[Concatenate[Log, str, P], Iterator[T]]) -> Callable[Concatenate[Log, str, P], Iterator[T]]:
    """The same for one that yields."""

    @wraps(read)
    def reads(log: Log, thread: str, /, *args: P.args, **named: P.kwargs) -> Iterator[T]:
        with clear(thread):
            yield from read(log, thread, *args, **named)

    return reads


@contextmanager
def clear(thread: str) -> Generator[None]:
    """Whatever an odd field causes leaves as CorruptEntry; errors of ours as they are, with the thread."""
    try:
        yield
    except Exception as error:
        _told(thread, error)
        raise


def _told(thread: str, error: Exception) -> None:
    """Raises CorruptEntry in place of an error that isn't ours; puts the thread into one that is."""
    if isinstance(error, CorruptEntry) and not error.thread:
        error.of(thread)
    if isinstance(error, _ODD) and not isinstance(error, EverstepError):
        why = str(error) or type(error).__name__
        raise CorruptEntry(
            f"its log says what no entry of ours says ({why})",
            thread=thread,
            fix="the log was left as it is; `everstep log` shows it; fork from an earlier checkpoint",
        ) from error
