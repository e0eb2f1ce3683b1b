"""A reading pipeline: many files at once, each a task of its own, on whichever worker is free.

    START ──► list ──(one Send per file)──► analyse ×N ──► report ──► END

    everstep worker examples.reading:graph --processes 3
    everstep submit reading '{"dir": "/usr/lib/python3.11", "limit": 100}' --wait

The results are small; the texts stay in their files. The report is the same on every run over the same files, in
whatever order they were read: its digest says so in one word.
"""

from __future__ import annotations

import ast
import hashlib
import json
import operator
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from everstep import END, START, Send, StateGraph
from everstep import CompiledGraph as Graph

SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
SUFFIXES = (".py", ".md", ".rst", ".txt")
LARGEST_SHOWN = 5

Found = dict[str, Any]
# A worker runs sync nodes in threads, and Python 3.11's ast.parse counts the depth of all threads in one number.
_parsing = threading.Lock()


class Reading(TypedDict):
    """The state. `found` has a reducer: the findings of all files are appended to it, in the order of the files."""

    dir: str
    limit: NotRequired[int]
    files: NotRequired[list[str]]
    found: Annotated[list[Found], operator.add]
    report: NotRequired[dict[str, Any]]


def list_files(state: Reading) -> dict[str, list[str]]:
    """The text files below `dir` by their relative paths, in a fixed order."""
    root, names = Path(state["dir"]), list[str]()
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in SKIPPED]  # os.walk does not enter what is taken out here
        names += [Path(folder, name).relative_to(root).as_posix() for name in files if name.endswith(SUFFIXES)]
    return {"files": sorted(names)[: state.get("limit")]}


def each_file(state: Reading) -> list[Send] | str:
    """A router: one task per file. Each gets what it needs and nothing else."""
    root = state["dir"]
    return [Send("analyse", {"dir": root, "file": name}) for name in state.get("files", [])] or "report"


def analyse(task: dict[str, str]) -> dict[str, list[Found]]:
    """Read one file."""
    text = Path(task["dir"], task["file"]).read_text(errors="replace")
    found: Found = {"file": task["file"], "lines": text.count("\n"), "words": len(text.split())}
    if task["file"].endswith(".py"):
        found |= _code(text)
    return {"found": [found]}


def _code(text: str) -> dict[str, int]:
    """Functions and classes of a Python source; none where it does not parse."""
    try:
        with _parsing:
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return {"functions": 0, "classes": 0}
    nodes = [type(node) for node in ast.walk(tree)]
    return {
        "functions": nodes.count(ast.FunctionDef) + nodes.count(ast.AsyncFunctionDef),
        "classes": nodes.count(ast.ClassDef),
    }


def report(state: Reading) -> dict[str, Any]:
    """The sums over all files, the largest ones, and a digest over every finding."""
    found = sorted(state["found"], key=lambda each: str(each["file"]))
    sums = {name: sum(each.get(name, 0) for each in found) for name in ("lines", "words", "functions", "classes")}
    largest = sorted(found, key=lambda each: (-each["lines"], each["file"]))[:LARGEST_SHOWN]
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    return {"report": {"files": len(found), **sums, "largest": [each["file"] for each in largest], "digest": digest}}


def build(analyse: Callable[[dict[str, str]], dict[str, Any]] = analyse) -> Graph:
    """The graph, if you like with another way to analyse a file."""
    builder = StateGraph(Reading)
    builder.add_node("list", list_files)
    builder.add_node("analyse", analyse)
    builder.add_node("report", report)
    builder.add_edge(START, "list")
    builder.add_conditional_edges("list", each_file, ["analyse", "report"])
    builder.add_edge("analyse", "report")
    builder.add_edge("report", END)
    return builder.compile(name="reading")


graph = build()
