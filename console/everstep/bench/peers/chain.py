"""What the peers' scripts share: the order they are given, the state of a chain, what they say at the end.

These scripts are run by their path, with whatever interpreter has the peers; they import nothing of everstep.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

LENGTH, PAYLOAD = 10, 1024
JOURNAL: list[tuple[int, int]] = []


def order() -> dict[str, Any]:
    """url, prefix, store, runs, chains, turns."""
    found: dict[str, Any] = json.loads(os.environ["EVERSTEP_BENCH_ORDER"])
    return found


def blob() -> bytes:
    """1 KB that nothing can compress."""
    return os.urandom(PAYLOAD)


def note(number: int) -> None:
    """The node begins."""
    JOURNAL.append((number, time.perf_counter_ns()))


def taken(call: Callable[[], Any]) -> list[tuple[int, int]]:
    """What the nodes noted meanwhile."""
    JOURNAL.clear()
    call()
    return list(JOURNAL)


def step_us(journal: Sequence[tuple[int, int]]) -> float:
    """Median from a node's start to that of the next one of its chain: for runs one at a time."""
    return statistics.median((b[1] - a[1]) / 1000 for a, b in pairwise(journal) if b[0] == a[0] + 1)


def steps_s(journal: Sequence[tuple[int, int]], chains: int) -> float:
    """Steps a second from the first node's start to the last one's: for many at once."""
    assert len(journal) == chains * LENGTH, f"{len(journal)} nodes ran, not {chains * LENGTH}"
    stamps = [ns for _, ns in journal]
    return (len(stamps) - 1) / (max(stamps) - min(stamps)) * 1e9


def tell(**found: Any) -> None:
    """Leave the result where it is looked for."""
    Path(sys.argv[1]).write_text(json.dumps(found))
