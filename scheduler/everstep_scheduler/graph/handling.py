"""Error handlers: what runs once a node has failed for good, in the same superstep. Names are LangGraph's.

    node p0 ──fails for good──► task h_p0: handler(state, error: NodeError) ──► an update, a Command, or a failed run

The handler's error comes out of the log, on whatever worker it runs: types travel as names, and nothing is imported by
one. So it is an error of ours that says the same; where the type is Python's own or everstep's, it is one of that, too.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from everstep_checkpoint import errors

PREFIX = "__error_handler__"
DEFAULT = "__default_error_handler__"


def handler_name(node: str) -> str:
    """The name under which a node's own handler runs."""
    return PREFIX + node


@dataclass(frozen=True, slots=True)
class NodeError:
    """What an error handler gets as its `error` parameter: which node failed, and with what."""

    node: str
    error: Exception


class RaisedError(Exception):
    """What a node raised, as the log tells it. `error_type`: its full name; `str()`: what it said."""

    def __init__(self, error_type: str, text: str, traceback: str = "") -> None:
        super().__init__(text)
        self.error_type = error_type
        self.text = text
        self.traceback = traceback

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"{self.error_type.rpartition('.')[2]}({self.text!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return raised_again, (self.error_type, self.text, self.traceback)


def raised_again(error_type: str, text: str, traceback: str = "") -> RaisedError:
    """An error that says the same as one in the log; if its type is known, `except` catches it as that."""
    known = _KNOWN.get(error_type)
    cls = RaisedError if known is None else _combined(error_type, known)
    return cls(error_type, text, traceback)


def _combined(error_type: str, known: type[Exception]) -> type[RaisedError]:
    if error_type not in _MADE:
        _MADE[error_type] = type(known.__name__, (RaisedError, known), {"__doc__": known.__doc__})
    return _MADE[error_type]


def _found(module: ModuleType, prefix: str) -> dict[str, type[Exception]]:
    """The exceptions that a module defines. Not those that several are raised as (groups), nor warnings."""
    found = {prefix + name: getattr(module, name) for name in dir(module)}
    return {name: cls for name, cls in found.items() if isinstance(cls, type) and _combines(cls)}


def _combines(cls: type[Any]) -> bool:
    odd = cls in (Exception, StopIteration) or issubclass(cls, Warning | BaseExceptionGroup)
    if odd or not issubclass(cls, Exception):
        return False
    try:
        cls("text")
    except TypeError:  # it wants to know more than the log tells
        return False
    return True


_KNOWN = _found(builtins, "") | _found(errors, f"{errors.__name__}.")
_MADE: dict[str, type[RaisedError]] = {}
