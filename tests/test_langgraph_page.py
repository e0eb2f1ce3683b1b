"""The page beside LangGraph, held to both: it leaves out no public name there, and what it calls the same is here."""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import StateGraph as OracleGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime as OracleRuntime

import everstep
from everstep_checkpoint import errors
from everstep_scheduler.graph import runtime as ours_runtime
from everstep_scheduler.reading.shapes import MODES
from everstep_scheduler.reading.snapshot import Task

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "langgraph.md").read_text()
STATUSES = ("same", "better", "not", "in progress")
MODULES = ("types", "errors", "channels", "managed", "func", "runtime", "graph", "config")
OURS: Any = {
    "StateGraph": everstep.StateGraph, "CompiledStateGraph": everstep.CompiledGraph, "Runtime": everstep.Runtime,
}  # fmt: skip
# Named in code and never imported by users, or by another way than a name of the package.
ELSEWHERE = {
    "types.PregelTask": Task, "runtime.ExecutionInfo": ours_runtime.ExecutionInfo,
    "errors.EmptyInputError": errors.EmptyInputError,
}  # fmt: skip
BY_ANNOTATION = {"LastValue", "BinaryOperatorAggregate", "DeltaChannel"}
SET_BY_INIT = {"checkpointer"}
HIDDEN = {"NamedBarrierValue", "NamedBarrierValueAfterFinish", "LastValueAfterFinish"}


def rows() -> list[tuple[list[str], str, str, list[str]]]:
    found: list[tuple[list[str], str, str, list[str]]] = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| `") else []
        if cells:
            names, status, why, tests = (*cells, "", "")[:4]
            found.append((re.findall(r"`([^`]+)`", names), status, why, re.findall(r"`(test_\w+)`", tests)))
    return found


def public(cls: Any) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def theirs() -> set[str]:
    """Every public name of LangGraph's, as the page spells it."""
    found = {f"StateGraph.{name}" for name in public(OracleGraph)}
    found |= {f"CompiledStateGraph.{name}" for name in public(CompiledStateGraph)}
    found |= {f"BaseCheckpointSaver.{name}" for name in public(BaseCheckpointSaver)}
    found |= {f"Runtime.{each.name}" for each in dataclasses.fields(OracleRuntime)}
    for name in MODULES:
        module = import_module(f"langgraph.{name}")
        found |= {f"{name}.{each}" for each in getattr(module, "__all__", None) or _own(module)}
    for method in ("add_node", "compile", "set_node_defaults"):
        known = set(inspect.signature(getattr(OracleGraph, method)).parameters) - {"self", "kwargs"}
        found |= {f"{method}({each})" for each in known}
    return found


def _own(module: Any) -> set[str]:
    return {name for name in public(module) if getattr(getattr(module, name), "__module__", "") == module.__name__}


def is_here(name: str) -> bool:
    """Does a name that the page calls the same exist in everstep?"""
    head, _, rest = name.partition(".")
    if mode := re.fullmatch(r'stream_mode="(\w+)"', name):
        return mode[1] in MODES
    if name in ELSEWHERE or rest in BY_ANNOTATION | HIDDEN or name.startswith(("config[", "BaseCheckpointSaver.")):
        return True
    if given := re.fullmatch(r"(\w+)\((\w+)\)", name):
        method = getattr(everstep.StateGraph, given[1], None) or getattr(everstep.CompiledGraph, given[1], None)
        method = everstep.StateGraph if given[1] == "StateGraph" else method
        return method is not None and given[2] in inspect.signature(method).parameters
    if head in OURS:
        fields = {each.name for each in dataclasses.fields(everstep.Runtime)}
        return hasattr(OURS[head], rest) or rest in fields | SET_BY_INIT
    if name == "multitask_strategy":
        return name in inspect.signature(everstep.CompiledGraph.invoke).parameters
    return rest in everstep.__all__


def test_the_page_leaves_out_no_public_name_of_langgraphs() -> None:
    said = {name for names, *_ in rows() for name in names}
    assert theirs() - said == set()


@pytest.mark.parametrize("status", ["same", "better"])
def test_what_the_page_calls_the_same_is_here(status: str) -> None:
    named = [name for names, word, *_ in rows() if word == status for name in names]
    assert len(named) > 10
    assert [name for name in named if not is_here(name)] == []


def test_a_row_has_a_status_and_says_what_shows_it_or_why_not() -> None:
    for names, status, why, tests in rows():
        assert status in STATUSES, names
        assert bool(tests) == (status in ("same", "better")), names
        assert why or tests, names


def test_a_name_stands_in_one_row() -> None:
    named = [name for names, *_ in rows() for name in names]
    assert sorted(named) == sorted(set(named))
