"""Peers in the same run: stock RQ, whose jobs enqueue each other, and LangGraph with its saver in memory.

python -m bench.peers rq URL JOURNAL      a SimpleWorker until its queue is empty
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from .graphs import JOURNAL, PAYLOAD, State, add_chain
from .place import Place

QUEUE = "bench-peer"
LENGTH = 10


class Peer(NamedTuple):
    """Microseconds per step of a lone chain, and steps per second of many."""

    step_us: float
    steps_s: float


def rq_step(number: int, blob: bytes) -> None:
    """A job that enqueues the next one of its chain with new state."""
    from rq import Queue, get_current_job

    JOURNAL.append((number, time.perf_counter_ns()))
    job: Any = get_current_job()
    if number + 1 < LENGTH:
        Queue(QUEUE, connection=job.connection).enqueue(rq_step, number + 1, os.urandom(PAYLOAD))


def rq_worker(url: str, journal: str) -> None:
    import redis
    from rq import Queue, SimpleWorker

    connection = redis.Redis.from_url(url)
    SimpleWorker([Queue(QUEUE, connection=connection)], connection=connection).work(burst=True, logging_level="ERROR")
    Path(journal).write_text(json.dumps(JOURNAL))


def rq(place: Place, chains: int) -> Peer:
    """Chains of ten jobs, all enqueued before the worker starts: first one alone, then many."""
    return Peer(_rq(place, 1), 1e6 / _rq(place, chains))


def _rq(place: Place, chains: int) -> float:
    from rq import Queue

    queue = Queue(QUEUE, connection=place.redis)
    for _ in range(chains):
        queue.enqueue("bench.peers.rq_step", 0, os.urandom(PAYLOAD))
    with place.spawned("-m", "bench.peers", "rq", place.url, "JOURNAL") as worker:
        worker.process.wait()
    stamps = [ns for _, ns in worker.journal]
    assert len(stamps) == chains * LENGTH, "each job ran once"
    return (stamps[-1] - stamps[0]) / 1000 / (len(stamps) - 1)


def langgraph(chains: int) -> Peer:
    """LangGraph's own loop in this process, saver in memory, `durability="sync"`."""
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import StateGraph

    compiled = add_chain(StateGraph(State), LENGTH).compile(checkpointer=InMemorySaver())
    JOURNAL.clear()
    began = time.perf_counter()
    for i in range(chains):
        config: Any = {"configurable": {"thread_id": str(i)}}
        compiled.invoke({"count": 0, "blob": os.urandom(PAYLOAD)}, config, durability="sync")
    took = time.perf_counter() - began
    gaps = sorted((b[1] - a[1]) / 1000 for a, b in pairwise(JOURNAL) if b[0] == a[0] + 1)
    JOURNAL.clear()
    return Peer(gaps[len(gaps) // 2], chains * LENGTH / took)


if __name__ == "__main__":
    # The job's own module, not __main__: its journal is the one that the jobs fill.
    from bench import peers

    peers.rq_worker(*sys.argv[2:])
