"""Errors carried between processes as data: what a node raised elsewhere, raised again by who waits for its run.

    log: type, text, traceback ──Errors.failed──► RunFailed          of a type that nobody here knows
                                              ├─► RunFailed and ValueError   a builtin, by the table below
                                              └─► RunFailed and MyError      a class that the caller registered

A name in the log picks among classes that are here already; it imports and calls nothing.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from typing import Any

from everstep_checkpoint.errors import EverstepError, InputError, InvalidInput, NodeTimeoutError, RunFailed, type_name

from .ending import OWN_ERRORS, Ending

# Generators and futures take StopIteration for their own end; a group can't be made from its message, and Python makes
# no MemoryError that is something else, too.
_NEVER = (StopIteration, StopAsyncIteration, BaseExceptionGroup, MemoryError)


def _is_usable(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Exception) and not issubclass(cls, _NEVER)


def _own(cls: type[InputError]) -> dict[str, type[Exception]]:
    """An error of ours and those below it, by full name."""
    return {type_name(cls): cls} | {name: each for sub in cls.__subclasses__() for name, each in _own(sub).items()}


BUILTINS: dict[str, type[Exception]] = {
    name: cls
    for name, cls in vars(builtins).items()
    if _is_usable(cls) and cls.__name__ == name and cls is not Exception
}


class Errors:
    """Which classes a caller knows: builtins, everstep's own about values, and those it registered."""

    def __init__(self, classes: Iterable[type[Exception]] = ()) -> None:
        self._known = BUILTINS | _own(InputError)
        self.register(*classes)

    def register(self, *classes: type[Exception]) -> None:
        """What runs raise of these comes back as these. Raises InvalidInput for what can't be raised anew."""
        for cls in classes:
            if not _is_usable(cls):
                raise InvalidInput(f"{cls!r} can't be carried", fix="register subclasses of Exception, no groups")
            try:
                _again(cls, "", RunFailed("").__dict__)
            except Exception as error:  # noqa: BLE001 - Python can't lay out both, or the class is made by its own rules
                raise InvalidInput(f"{type_name(cls)} can't be carried: {error}", fix="leave it out") from None
            self._known[type_name(cls)] = cls

    def failed(self, ended: Ending, thread: str, fix: str = "") -> RunFailed:
        """The error of a run that failed: a RunFailed, and what the node raised where that is known."""
        said = ended.error
        told = {"error_type": said.error_type, "message": said.text, "traceback": said.traceback, "task": ended.task}
        where = {"thread": thread, "node": ended.node, "fix": fix}
        what = said.words or "the run failed"
        if said.error_type.removeprefix(OWN_ERRORS) == "NodeTimeoutError":
            return NodeTimeoutError(what, **told, **where)
        known = self._known.get(said.error_type)
        plain = RunFailed(what, **told, **where)
        return plain if known is None else _again(known, what, plain.__dict__)


def _both(cls: type[Exception]) -> type[RunFailed]:
    """RunFailed and an exception's class in one. Raises TypeError where Python can't lay out both."""
    if cls not in _MADE:
        said = {"__module__": __name__, "__doc__": cls.__doc__, "__reduce__": _reduced(cls)}
        _MADE[cls] = type("RunFailed", (RunFailed, cls), said)
    return _MADE[cls]


def _reduced(cls: type[Exception]) -> Callable[[RunFailed], tuple[Any, ...]]:
    return lambda error: (_again, (cls, error.what, error.__dict__))


_MADE: dict[type[Exception], type[RunFailed]] = {}


def _again(cls: type[Exception], what: str, state: dict[str, Any]) -> RunFailed:
    """The error from its message. The class' constructor may set more; one that takes no message is passed by."""
    made = _both(cls)
    message = str(state["message"])
    error = made.__new__(made)
    if cls.__module__ != "builtins" and not issubclass(cls, EverstepError):
        try:
            cls.__init__(error, message)
        except Exception:  # noqa: BLE001 - the user's constructor: without what it would set, it is still that error
            error.__dict__.clear()
    error.__dict__.update(state)
    error.args = (message,)
    return error
