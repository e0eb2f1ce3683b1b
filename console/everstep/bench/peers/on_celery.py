"""Celery: one solo worker, acks_late, tasks that call each other. They keep no state but their arguments.

The worker is a process of its own, as it always is with Celery; the last task of a chain says in Redis when it all was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import chain
from celery import Celery

SAID = chain.order()
URL = SAID["url"].replace("unix://", "redis+socket://", 1)
STAMPS = SAID["prefix"] + "celery-stamps"
app: Any = Celery("on_celery", broker=URL)
app.conf.update(
    task_acks_late=True, worker_prefetch_multiplier=1, task_ignore_result=True, broker_connection_retry_on_startup=True,
    broker_transport_options={"global_keyprefix": SAID["prefix"] + "celery:"}, task_default_queue="peer",
)  # fmt: skip
WAIT_S = 120


@app.task(name="step")
def step(number: int, blob: str, stamps: list[int]) -> None:
    stamps = [*stamps, time.perf_counter_ns()]
    if number + 1 < chain.LENGTH:
        step.delay(number + 1, os.urandom(chain.PAYLOAD // 2).hex(), stamps)
        return
    client().rpush(STAMPS, json.dumps(stamps))


_CLIENT: list[Any] = []


def client() -> Any:
    if not _CLIENT:
        import redis

        _CLIENT.append(redis.Redis.from_url(SAID["url"]))
    return _CLIENT[0]


def chains(count: int) -> list[tuple[int, int]]:
    """So many at once; the stamps of all their nodes."""
    client().delete(STAMPS)
    for _ in range(count):
        step.delay(0, os.urandom(chain.PAYLOAD // 2).hex(), [])
    end = time.monotonic() + WAIT_S
    while client().llen(STAMPS) < count:
        if time.monotonic() > end:
            raise SystemExit(f"{client().llen(STAMPS)} of {count} chains ended")
        time.sleep(0.002)
    found = [json.loads(each) for each in client().lrange(STAMPS, 0, -1)]
    return [(number, ns) for each in found for number, ns in enumerate(each)]


def main() -> None:
    words = ("-A", "on_celery", "worker", "-P", "solo", "--loglevel", "ERROR", "--without-gossip", "--without-mingle")
    here = os.path.dirname(os.path.abspath(__file__))
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", *words], cwd=here, env={**os.environ, "PYTHONPATH": here},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        chains(1)
        lone = [each for _ in range(SAID["runs"]) for each in chains(1)]
        many = chains(SAID["chains"])
        chain.tell(step_us=chain.step_us(lone), steps_s=chain.steps_s(many, SAID["chains"]))
    finally:
        worker.terminate()
        worker.wait(20)


if __name__ == "__main__":
    main()
