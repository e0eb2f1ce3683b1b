"""Stock RQ: a SimpleWorker, jobs that enqueue each other. They keep no state but their arguments."""

from __future__ import annotations

import os
from typing import Any

import chain

os.environ["RQ_KEY_PREFIX"] = chain.order()["prefix"] + "rq"  # before rq is imported
QUEUE = "peer"


def step(number: int, blob: bytes) -> None:
    """A job that enqueues the next one of its chain with new state."""
    from rq import Queue, get_current_job

    chain.note(number)
    job: Any = get_current_job()
    if number + 1 < chain.LENGTH:
        Queue(QUEUE, connection=job.connection).enqueue("on_rq.step", number + 1, chain.blob())


def work(url: str, chains: int) -> None:
    import redis
    from rq import Queue, SimpleWorker

    connection: Any = redis.Redis.from_url(url)
    queue = Queue(QUEUE, connection=connection)
    for _ in range(chains):
        queue.enqueue("on_rq.step", 0, chain.blob())
    SimpleWorker([queue], connection=connection).work(burst=True, logging_level="ERROR")


def main() -> None:
    said = chain.order()
    lone = chain.taken(lambda: [work(said["url"], 1) for _ in range(said["runs"])])
    many = chain.taken(lambda: work(said["url"], said["chains"]))
    chain.tell(step_us=chain.step_us(lone), steps_s=chain.steps_s(many, said["chains"]))


if __name__ == "__main__":
    main()
