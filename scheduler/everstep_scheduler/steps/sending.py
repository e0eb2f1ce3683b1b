"""Sends as they are stored: parts of at most 128 tasks or 64 KB, each a fact that names its tasks run by run. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from everstep_checkpoint import entries as e

Packet = tuple[str, bytes]  # node, encoded argument
Place = tuple[str, str, float]  # node, queue, seconds


def chunks(sends: Sequence[Packet]) -> list[list[Packet]]:
    """Packets in the order given, as many a chunk as a part holds."""
    found: list[list[Packet]] = [[]]
    size = 0
    for send in sends:
        if found[-1] and (len(found[-1]) >= e.PART_TASKS_MAX or size + len(send[1]) > e.PART_BYTES_MAX):
            found.append([])
            size = 0
        found[-1].append(send)
        size += len(send[1])
    return found


def run_length(tasks: Sequence[Place]) -> list[list[Any]]:
    """`[node, queue, seconds, count]` for tasks that follow each other and are alike."""
    rows: list[list[Any]] = []
    for task in tasks:
        if rows and tuple(rows[-1][:3]) == task:
            rows[-1][3] += 1
        else:
            rows.append([*task, 1])
    return rows


def named(sends: Sequence[Packet], places: Sequence[Place]) -> list[tuple[str, list[Packet]]]:
    """What parts say: their tasks as JSON, and their packets. `places`: one for each packet."""
    rest = iter(places)
    return [(json.dumps(run_length([next(rest) for _ in chunk])), chunk) for chunk in chunks(sends)]
