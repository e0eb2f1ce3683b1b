"""What a node's or router's function tells of itself: its parameters, its hints, whether it is async. Pure."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from everstep_checkpoint.errors import GraphError

from .schema import is_schema

INJECTED = ("config", "runtime", "previous")
INJECTED_INTO_HANDLERS = (*INJECTED, "error")


def carrier(fn: Any) -> Any:
    """What carries the hints: the function itself, under partials, or an object's `__call__`."""
    while isinstance(fn, partial):
        fn = fn.func
    return fn if inspect.isroutine(fn) or isinstance(fn, type) else fn.__call__


def is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(carrier(fn))


def hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """The callable's type hints; none if they can't be read, for they are only a convenience here."""
    try:
        return typing.get_type_hints(carrier(fn))
    except (NameError, TypeError, AttributeError):
        return {}


def parameters(fn: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """The parameters, without self; None for a builtin that does not tell."""
    try:
        return list(inspect.signature(fn).parameters.values())
    except ValueError:
        return None


def first_schema(fn: Callable[..., Any]) -> type[Any] | None:
    """The schema that annotates the first parameter, if it is one (LangGraph's inference)."""
    found = parameters(fn)
    hint = hints(fn).get(found[0].name) if found else None
    return hint if is_schema(hint) else None


def form_of(fn: Callable[..., Any], who: str, injected: Sequence[str] = INJECTED) -> tuple[str, ...]:
    """Which of what is injected it takes, by parameter name as LangGraph does. Others need a default."""
    found = parameters(fn)
    if found is None:
        return ()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not found or found[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise GraphError(f"{who} takes no state", fix="Its first parameter is the state.")
    for each in found[1:]:
        by_name = each.name in injected and each.kind is not inspect.Parameter.POSITIONAL_ONLY
        if not by_name and each.default is inspect.Parameter.empty and each.kind not in variable:
            raise GraphError(
                f"{who} takes a parameter {each.name!r} that nobody gives it",
                fix="After the state it may take `config` and `runtime`; give others a default.",
            )
    return tuple(each.name for each in found[1:] if each.name in injected and each.kind not in variable)
