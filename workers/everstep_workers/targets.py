"""`module:attribute` -> a compiled graph. The words come from the command line or the environment, never from Redis."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from everstep_checkpoint.errors import GraphError
from everstep_scheduler.graph.theirs import theirs

if TYPE_CHECKING:
    from everstep_scheduler.inline.compiled import CompiledGraph


def load_targets(targets: Iterable[str]) -> list[CompiledGraph]:
    """All graphs. Raises GraphError with one clear line."""
    return [load_target(each) for each in targets]


def load_target(target: str) -> CompiledGraph:
    """The graph that `module:attribute` names; one compiled without a name gets the attribute's.

    Raises GraphError: not of this form, no such module, an error while it is imported, no such attribute, not compiled.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise GraphError(f"{target!r} names no graph", fix="write MODULE:GRAPH, as in shop.orders:graph")
    return _compiled(target, getattr(_module(target, module_name), "__dict__", {}), attribute)


def _module(target: str, name: str) -> ModuleType:
    """Import a module of the user's, also from the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise GraphError(f"{target}: there is no module {error.name!r}", fix=_instead(name)) from None
        raise GraphError(
            f"{target}: importing {name!r} needs {error.name!r}, which is missing", fix="install it"
        ) from None
    except (Exception, SystemExit) as error:
        raise GraphError(
            f"{target}: importing {name!r} raised {type(error).__name__}: {error}",
            fix=f"try: python -c 'import {name}'",
        ) from error


def _instead(name: str) -> str:
    """What to write instead of a module that is not there."""
    if name.endswith(".py") or "/" in name:
        dotted = name.removesuffix(".py").strip("./").replace("/", ".")
        return f"name the module, not its file: {dotted}:GRAPH"
    if name.startswith("examples.") and find_spec("everstep.examples") is not None:
        return f"where everstep was installed without its checkout, it is everstep.{name}:GRAPH"
    return f"run it where {name!r} can be imported, or install it"


def _compiled(target: str, found: dict[str, object], attribute: str) -> CompiledGraph:
    from everstep_scheduler.graph.builder import StateGraph
    from everstep_scheduler.graph.spec import UNNAMED
    from everstep_scheduler.inline.compiled import CompiledGraph

    if attribute not in found:
        near = get_close_matches(attribute, found, 1)
        graphs = [name for name, value in found.items() if isinstance(value, CompiledGraph)]
        known = f"did you mean {near[0]!r}?" if near else f"its graphs: {', '.join(graphs) or 'none'}"
        raise GraphError(f"{target}: the module has no {attribute!r}", fix=known)
    graph = found[attribute]
    if isinstance(graph, StateGraph):
        raise GraphError(f"{target} is a graph that is not compiled", fix=f"{attribute} = {attribute}.compile()")
    if not isinstance(graph, CompiledGraph):
        whose = theirs(graph)
        raise GraphError(
            f"{target} is {whose}" if whose else f"{target} is of type {type(graph).__name__}, not a compiled graph",
            fix="build it with `from everstep import StateGraph`" if whose else "name what .compile() returned",
        )
    return graph.named(attribute) if graph.name == UNNAMED else graph
