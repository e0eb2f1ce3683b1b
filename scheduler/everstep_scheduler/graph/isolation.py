"""What an isolated node's function, and what it raises, is known by in another process: the names of its module and of
itself there. They are taken from the function as it is loaded here, never from data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from everstep_checkpoint.codec import Registry
from everstep_checkpoint.errors import GraphError, type_name

from .handling import RaisedError

OURS = __name__.partition(".")[0]


class Address(NamedTuple):
    """Where a function or class is found: `import module`, then its qualified name."""

    module: str
    name: str


def address_of(node: str, fn: Any) -> Address:
    """Where another process finds a node's function. Raises GraphError for one that none can find."""
    found = known_as(fn)
    if found is None:
        raise GraphError(
            f"{fn!r} can't be isolated: no other process can import it",
            node=node,
            fix="Make it a function (def) at the top of a module that can be imported, not of the program itself.",
        )
    return found


def check_types(nodes: Sequence[str], registry: Registry) -> None:
    """A graph with isolated nodes has values of types that another process can import, too. Raises GraphError."""
    lost = [name for name, cls in registry.names().items() if known_as(cls) is None] if nodes else []
    if lost:
        raise GraphError(
            f"The state holds {lost[0]!r}, a type that the process of an isolated node can't import",
            node=nodes[0],
            fix="Define it at the top of a module that can be imported, not of the program itself.",
        )


def known_as(thing: Any) -> Address | None:
    """Where a function or class is found; None for closures, lambdas, partials, methods, and what the program itself
    defines, unless that was begun as `python -m module`."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or loaded(module, name) is not thing:
        return None
    if module != "__main__":
        return Address(module, name)
    spec = getattr(sys.modules[module], "__spec__", None)
    return Address(spec.name, name) if spec is not None else None


def loaded(module: str, name: str) -> Any:
    """What a module that is loaded has under a qualified name; None for nothing. Imports nothing."""
    try:
        return attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):
        return None


class Relayed(RaisedError):
    """What a node raised in its own process: its type's name, its text, its traceback there. It is of that type, too,
    where the type is loaded here, so that retry policies know it; what else it held did not come along."""

    def __init__(self, error_type: str, text: str, traceback: str = "") -> None:
        Exception.__init__(self, text)  # the type's own may want more than the text
        self.error_type, self.text, self.traceback = error_type, text, traceback
        self.what, self.fix, self.thread, self.checkpoint, self.node = text, "", "", "", ""


class _There(Exception):
    """The traceback in the other process, as text: it is printed as the cause."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def relayed(module: str, name: str, text: str, traceback: str) -> Relayed:
    """The error that another process told of."""
    cls = loaded(module, name)
    told = f"{module}.{name}" if module != "builtins" else name
    error: Relayed
    try:
        error = _made(module, name, cls if _stands(cls) else None)(told, text, traceback)
    except Exception:  # noqa: BLE001 - Python can't lay out both, or the class is made by its own rules
        error = _made(module, name, None)(told, text, traceback)
    error.__cause__ = _There(traceback)
    return error


def _made(module: str, name: str, cls: type[Exception] | None) -> type[Relayed]:
    bases = (Relayed,) if cls is None else (Relayed, cls)
    return type(name.rpartition(".")[2], bases, {"__module__": module, "__qualname__": name})


def _stands(cls: Any) -> bool:
    """May an error be of this class here? What the engine raises for itself means something else in this process."""
    return isinstance(cls, type) and issubclass(cls, Exception) and not type_name(cls).startswith(f"{OURS}.")
