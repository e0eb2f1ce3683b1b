"""Part 1: the counting graph in memory and on workers gives the same result by the same steps."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from everstep_scheduler.inline.savers import InMemorySaver
from everstep_scheduler.reading.snapshot import StateSnapshot, snapshots

from .. import show as shown
from .graphs import counting
from .stage import Stage

THREAD = "demo"
INPUT = {"count": 0, "done": False}
WAIT_S = 30.0


def show(stage: Stage) -> bool:
    """Run it twice. Were result and history equal?"""
    stage.part(1, "A graph that counts to five:  START -> inc -> check -> inc again, or END")
    began = time.perf_counter()
    graph = type(counting)(counting.spec, InMemorySaver())
    config = {"configurable": {"thread_id": THREAD}}
    here = graph.invoke(INPUT, config)
    between = time.perf_counter()
    there = stage.site.client.submit("counting", INPUT, thread_id=THREAD).result(timeout=WAIT_S)
    after = time.perf_counter()
    stage.line("here, in memory", f"{shown.value(here)}   {shown.span((between - began) * 1000)}")
    stage.line("on the workers", f"{shown.value(there)}   {shown.span((after - between) * 1000)}")
    first, second = story(graph.get_state_history(config)), story(snapshots(stage.site.log, THREAD))
    said = f"equal history: {len(first)} checkpoints, the same source, step, values and next in each"
    return stage.check(here == there and first == second, said, f"the histories differ: {first} and {second}")


def story(history: Iterable[StateSnapshot]) -> list[tuple[Any, ...]]:
    """What a history says, without the ids and times that are its own."""
    return [((x.metadata or {}).get("source"), (x.metadata or {}).get("step"), x.next, x.values) for x in history]
