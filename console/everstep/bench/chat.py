"""W4: a chat of a thousand turns on one thread, `add_messages` on dicts: at each turn 1 KB is asked, 1 KB answered."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from everstep_checkpoint.ids import new_id

from .graphs import GRAPHS, said
from .place import Place
from .rows import Row, row
from .sizes import Sizes

EARLY = 10
AROUND = 5
AT_END = 10
LIMIT_S = 60.0


class Chat(NamedTuple):
    """Milliseconds of a turn around the tenth and at the end; of the first turn on a process that never saw the thread;
    bytes of the thread in Redis, and of what was said. `turns`: how many there were time for."""

    turns: int
    early_ms: float
    late_ms: float
    cold_ms: float
    stored: int
    said: int

    @property
    def grown(self) -> float:
        return self.late_ms / self.early_ms


def chat(place: Place, turns: int, *, in_turn: bool = False) -> Chat:
    """All turns on one worker process, or each on the other one of two; as many as `LIMIT_S` lets there be."""
    place.clear()
    graph, thread = "chatinturn" if in_turn else "chat", new_id()
    spec, asked = GRAPHS[graph](), [[said("user", 2 * i)] for i in range(turns + 1)]
    with ExitStack() as ending:
        ending.enter_context(place.worker(graph, queues=(graph, "chat.even")))
        if in_turn:
            ending.enter_context(place.worker(graph, queues=("chat.odd",)))
        for _ in range(EARLY):  # code and connections warm; another thread
            warm = place.submit(spec, messages=[said("user", 0)])
            place.finish([warm])
        before = place.stored_bytes()
        took, end = list[float](), time.monotonic() + LIMIT_S
        while len(took) < turns and (len(took) < EARLY + AROUND or time.monotonic() < end):
            took.append(_turn(place, graph, thread, asked[len(took)]))
        stored = place.stored_bytes() - before
    with place.worker(graph, queues=(graph, "chat.even", "chat.odd")):
        place.finish([place.submit(spec, messages=[said("user", 0)])])
        cold = _turn(place, graph, thread, asked[turns])
    at_end = statistics.median(took[-AT_END:])
    early = took[EARLY - AROUND : EARLY + AROUND]
    words = 2 * sum(len(json.dumps(each[0])) for each in asked[: len(took)])
    return Chat(len(took), statistics.median(early), at_end, cold, stored, words)


def _turn(place: Place, graph: str, thread: str, messages: Sequence[object]) -> float:
    began = time.perf_counter()
    place.submit(GRAPHS[graph](), thread=thread, messages=messages)
    place.finish([thread], pause_s=0.0005)
    return (time.perf_counter() - began) * 1000


def rows_w4(place: Place, sizes: Sizes) -> list[Row]:
    one = [chat(place, sizes.turns) for _ in range(3)]
    two = [chat(place, sizes.turns, in_turn=True) for _ in range(3)]
    rows: list[Row] = []
    for name, found in (("one worker", one), ("two in turn", two)):
        head, least = f"W4 {sizes.turns:,} turns, {name}", min(each.turns for each in found)
        note = "" if least == sizes.turns else f"the last turn was the {least:,}th: {LIMIT_S:g} s were over"
        rows += [
            row(f"{head}: a turn around the 10th", "ms", [each.early_ms for each in found]),
            row(f"{head}: a turn at the end", "ms", [each.late_ms for each in found]),
            row(f"{head}: at the end / around the 10th", "x", [each.grown for each in found], target=4, note=note),
        ]
    return [
        *rows,
        row("W4 a turn after all of them on a process that never saw the thread", "ms", [each.cold_ms for each in one]),
        row("W4 stored bytes / bytes said", "x", [each.stored / each.said for each in one], target=3),
    ]
