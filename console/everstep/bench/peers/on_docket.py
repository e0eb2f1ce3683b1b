"""pydocket: one worker in one asyncio process, tasks that add each other. They keep no state but their arguments."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import chain
from docket import CurrentDocket, Docket, Worker

CONCURRENCY = 50  # at its default of 10 it sleeps whenever all of its slots are taken
HERE: Any = CurrentDocket()


async def step(number: int, blob: bytes, docket: Docket = HERE) -> None:
    chain.note(number)
    if number + 1 < chain.LENGTH:
        await docket.add(step)(number + 1, chain.blob())


async def chains(docket: Docket, count: int) -> None:
    """So many at once, until all have ended."""
    for _ in range(count):
        await docket.add(step)(0, chain.blob())
    async with Worker(docket, concurrency=CONCURRENCY, minimum_check_interval=timedelta(milliseconds=5)) as worker:
        await worker.run_until_finished()


async def main() -> None:
    said = chain.order()
    async with Docket(name=said["prefix"] + "docket", url=said["url"]) as docket:
        docket.register(step)
        await chains(docket, 1)
        chain.JOURNAL.clear()
        for _ in range(said["runs"]):
            await chains(docket, 1)
        lone = list(chain.JOURNAL)
        chain.JOURNAL.clear()
        await chains(docket, said["chains"])
        many = list(chain.JOURNAL)
    chain.tell(step_us=chain.step_us(lone), steps_s=chain.steps_s(many, said["chains"]))


if __name__ == "__main__":
    asyncio.run(main())
