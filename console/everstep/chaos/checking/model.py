"""The sample graph again, as a page of arithmetic: what each step of it must come to. Knows nothing of graphs.

    state, tasks ──► state after, what comes next

Promise: after a commit that was lost, doubled, or folded in another order, the two differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from .evidence import argument_sum
from .folding import plain, written
from .laws import Violation
from .stories import GIVEN_UP, Named, Part, Story


def chained(before: str, values: Sequence[int]) -> str:
    """The digest that order matters to."""
    for each in values:
        before = hashlib.sha256(f"{before} {each}".encode()).hexdigest()
    return before


def first_of(state: Mapping[str, Any]) -> int:
    """The first number of the round under way."""
    return int(state["base"]) + (int(state["rounds"]) - int(state["left"])) * 1000


def values_of(task: Named, state: Mapping[str, Any], answers: Sequence[int]) -> list[int]:
    """The numbers that a task adds."""
    match task.node:
        case "draw":
            return [first_of(state)]
        case "work":
            return [int(task.arg["value"])]
        case "audit":
            return [first_of(state) - 2]
        case _:
            return [first_of(state) + 999, *answers]


def next_of(part: Part, state: Mapping[str, Any], *, audits: bool) -> list[tuple[str, Any]]:
    """The nodes that come after a step, with what each Send brings. `state`: after the step. `audits`: was it closed
    by the newer version, which has a node more? Either may close any step whose nodes it knows."""
    node = part.tasks[0].node
    if node == "draw":
        value = first_of(state)
        return [
            ("work", {"value": value + 1 + i, "nap_ms": state["nap_ms"], "flaky": state["flaky"]})
            for i in range(state["width"])
        ]
    if node == "work":
        return [("gather", None)]
    if node == "gather" and audits:
        return [("audit", None)]
    return [("draw", None)] if state["left"] > 0 else []


def whole_run(given: Mapping[str, Any], answers: Sequence[int] = (), audited: Collection[int] = ()) -> list[int]:
    """All numbers that a run adds which comes to its end. `audited`: the first numbers of rounds that were audited."""
    found: list[int] = []
    for i in range(given["rounds"]):
        first = given["base"] + i * 1000
        more = [first + 998] if first in audited else []
        found += [first, *(first + 1 + j for j in range(given["width"])), first + 999, *more]
    return [*found, *answers]


def audited(story: Story) -> set[int]:
    """The first numbers of the rounds that have an audit, by the steps that name one."""
    return {
        first_of(part.state) - 1000 for part in story.parts
        if part.state is not None and any(task.node == "audit" for task in part.tasks)
    }  # fmt: skip


def astray(newer: str, story: Story) -> Iterator[Violation]:
    """Where a log is not what the model says. `newer`: how the newer version stamps its checkpoints."""
    for part, after in zip(story.parts, story.parts[1:], strict=False):
        if part.checkpoint is None or after.checkpoint is None or after.checkpoint.text("source") in GIVEN_UP:
            continue
        if part.state is None or after.state is None or not part.tasks:
            continue
        if part.tasks[0].task == "start":
            wanted, coming = _begun(story, part), [("draw", None)]
        else:
            wanted = _stepped(part, story)
            coming = next_of(part, wanted, audits=after.checkpoint.text("graph") == newer)
        for name in ("values", "chain", "left", *(("audits",) if wanted.get("audits") else ())):
            if after.state.get(name) != wanted.get(name):
                is_, should = _short(after.state.get(name)), _short(wanted.get(name))
                yield Violation("I3", story.thread, f"checkpoint {after.n}: {name} is {is_}, not {should}")
        named = [(task.node, task.arg) for task in after.tasks]
        if named != coming:
            said = f"checkpoint {after.n}: what comes next is {_short(named)}, not {_short(coming)}"
            yield Violation("I5", story.thread, said)


def _begun(story: Story, part: Part) -> dict[str, Any]:
    """The state after an input: what the run's fact brings, over what was there."""
    state: dict[str, Any] = {"values": [], "chain": "", **(part.state or {})}
    assert part.checkpoint is not None
    run = part.checkpoint.text("run")
    facts = [entry for entry in story.entries if entry.text("run") == run and "input" in entry.raw]
    if facts:
        state["left"] = written(facts[0], "left")
    return state


def _stepped(part: Part, story: Story) -> dict[str, Any]:
    state = dict(part.state or {})
    values: list[int] = []
    for task in part.tasks:
        values += values_of(task, state, _answers(part, task.task))
    if part.tasks[0].node == "audit":
        state["audits"] = state.get("audits", 0) + 1
    left = state["left"] - (part.tasks[0].node == "gather")
    return {
        **state, "left": left, "values": [*state.get("values", []), *values],
        "chain": chained(state.get("chain", ""), values),
    }  # fmt: skip


def _answers(part: Part, task: str) -> list[int]:
    """What a task was answered, in order."""
    facts = [each for each in part.facts if each.kind == "task_answered" and each.text("task") == task]
    return [plain(each.value("answer") or b"\xc0") for each in facts]


def seen_by(part: Part, node: str) -> set[str]:
    """The digests of the arguments that the tasks of a step may be given."""
    if node == "work":
        return {argument_sum(task.arg) for task in part.tasks}
    state = part.state or {}
    if node == "audit":
        return {argument_sum({"audits": 0, **state})}  # empty until somebody writes it
    return {argument_sum({name: value for name, value in state.items() if name != "audits"})}  # which they don't know


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:20]}...{text[-35:]}"
