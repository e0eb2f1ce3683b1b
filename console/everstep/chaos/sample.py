"""The sample graph: what its runs come to is known beforehand, and tells of any commit lost, doubled or out of order.

    older   draw ──► work, `width` times ──► gather ────────────► draw, as often as `rounds` says ──► END
    newer   draw ──► work, `width` times ──► gather ──► audit ──► draw, ...; `audits` counts the new node

Each task appends one number of its own to `values`, and `chain` takes it in so that order counts. Nodes leave a line
when they begin and when they end, in one write each, if the environment names a journal. Some attempts at `work` fail
on purpose, and a run may ask at its end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import operator
import os
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Runtime, Send

from .checking.evidence import JOURNAL_ENV, argument_sum

NAME = "chaos"
RETRY_S = 0.05


def chained(before: str, more: str) -> str:
    """A reducer that order matters to: `more` is one or several numbers, taken in one by one."""
    for each in more.split():
        before = hashlib.sha256(f"{before} {each}".encode()).hexdigest()
    return before


class Sample(TypedDict, total=False):
    """`base`: the first number of this input. `left`: rounds to go. `nap_ms`: how long a node takes. `flaky`: each
    so-manieth `work` fails at its first attempt, 0: none. `asks`: does the run ask at its end?"""

    base: int
    rounds: int
    left: int
    width: int
    nap_ms: int
    flaky: int
    asks: bool
    values: Annotated[list[int], operator.add]
    chain: Annotated[str, chained]


class Audited(Sample, total=False):
    """What the newer version keeps: a key that nodes of the older one do not see."""

    audits: Annotated[int, operator.add]


class Work(TypedDict):
    """What a Send brings."""

    value: int
    nap_ms: int
    flaky: int


class Flaky(Exception):
    """An attempt that fails on purpose."""


def _note(runtime: Runtime[Any], node: str, phase: str, seen: str, value: int) -> None:
    path = os.environ.get(JOURNAL_ENV)
    if not path:
        return
    info = runtime.execution_info
    line = {
        "thread": info.thread_id, "run": info.run_id, "n": int((info.checkpoint_id or "0").partition("-")[0]),
        "key": runtime.idempotency_key, "node": node, "attempt": info.node_attempt, "pid": os.getpid(), "phase": phase,
        "at": time.monotonic(), "seen": seen, "value": value,
    }  # fmt: skip
    journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(journal, json.dumps(line).encode() + b"\n")
    finally:
        os.close(journal)


def _wrote(*values: int) -> Sample:
    return {"values": list(values), "chain": " ".join(map(str, values))}


def number_of(state: Mapping[str, Any]) -> int:
    """The first number of the round that a state is in, by its input."""
    return int(state["base"]) + (int(state["rounds"]) - int(state["left"])) * 1000


def draw(state: Sample, runtime: Runtime[Any]) -> Sample:
    value, seen = number_of(state), argument_sum(state)
    _note(runtime, "draw", "in", seen, value)
    time.sleep(state.get("nap_ms", 0) / 1000)
    _note(runtime, "draw", "out", seen, value)
    return _wrote(value)


def hand_out(state: Sample) -> list[Send]:
    value = number_of(state)
    nap_ms, flaky = state.get("nap_ms", 0), state.get("flaky", 0)
    given = [Work(value=value + 1 + i, nap_ms=nap_ms, flaky=flaky) for i in range(state.get("width", 0))]
    return [Send("work", each) for each in given]


def work(item: Work, runtime: Runtime[Any]) -> Sample:
    value, seen = item["value"], argument_sum(item)
    _note(runtime, "work", "in", seen, value)
    time.sleep(item["nap_ms"] / 1000)
    if item["flaky"] and value % item["flaky"] == 0 and runtime.execution_info.node_attempt == 1:
        raise Flaky(f"{value} fails at first")
    _note(runtime, "work", "out", seen, value)
    return _wrote(value)


async def gather(state: Sample, runtime: Runtime[Any]) -> Sample:
    value, seen = number_of(state) + 999, argument_sum(state)
    _note(runtime, "gather", "in", seen, value)
    await asyncio.sleep(state.get("nap_ms", 0) / 1000)
    left = state.get("left", 0)
    asks = state.get("asks", False) and left == 1
    answered: Sequence[int] = [interrupt({"for": value})] if asks else []
    _note(runtime, "gather", "out", seen, value)
    return {"left": left - 1, **_wrote(value, *answered)}


def audit(state: Audited, runtime: Runtime[Any]) -> Audited:
    value, seen = number_of(state) - 2, argument_sum(state)
    _note(runtime, "audit", "in", seen, value)
    time.sleep(state.get("nap_ms", 0) / 1000)
    _note(runtime, "audit", "out", seen, value)
    return {"audits": 1, "values": [value], "chain": str(value)}


def again(state: Sample) -> str:
    return "draw" if state.get("left", 0) > 0 else END


def given(base: int, rounds: int, width: int, *, nap_ms: int = 0, flaky: int = 0, asks: bool = False) -> dict[str, Any]:
    """An input."""
    return {
        "base": base, "rounds": rounds, "left": rounds, "width": width, "nap_ms": nap_ms, "flaky": flaky, "asks": asks,
    }  # fmt: skip


def _built(builder: StateGraph, last: str) -> Any:
    """A version of the graph; `last`: the node that ends a round."""
    patient = RetryPolicy(initial_interval=RETRY_S, jitter=False, max_attempts=100, retry_on=Flaky)
    builder.add_node("draw", draw)
    builder.add_node("work", work, retry_policy=patient)
    builder.add_node("gather", gather)
    builder.add_edge(START, "draw")
    builder.add_conditional_edges("draw", hand_out, ["work"])
    builder.add_edge("work", "gather")
    builder.add_conditional_edges(last, again, ["draw", END])
    return builder.compile(name=NAME)


_newer = StateGraph(Audited)
_newer.add_node("audit", audit)
_newer.add_edge("gather", "audit")
graph = _built(StateGraph(Sample), "gather")
newer = _built(_newer, "audit")
