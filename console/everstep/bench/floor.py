"""The floor: a bare loop that does per step what cannot be left out: pop, then one script with XADD of 1 KB and push.

One process: a blocking client, and an asyncio one with many steps in flight; the better of the two is the floor.
`stem`: what its keys begin with.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import Any, NamedTuple

import redis
import redis.asyncio

from .graphs import PAYLOAD

STEP = """
redis.call('XADD', KEYS[1], '*', 'd', ARGV[1])
if ARGV[2] ~= '' then redis.call('RPUSH', KEYS[2], ARGV[2]) end
return 1
"""
IN_FLIGHT = 50


class Bare(NamedTuple):
    """Steps a second, and seconds of our CPU for a thousand of them."""

    steps_s: float
    cpu_s: float


def sync_chain(url: str, stem: str, steps: int) -> list[float]:
    """A lone chain on one blocking client: microseconds of each step."""
    queue, log = f"{stem}floor:queue", f"{stem}floor:log"
    typed: Any = redis.Redis  # its keyword arguments have no types
    client: Any = typed.from_url(url, protocol=2)
    try:
        script = client.script_load(STEP)
        client.rpush(queue, "1")
        took: list[float] = []
        for _ in range(steps):
            began = time.perf_counter_ns()
            _, item = client.blpop([queue])
            client.evalsha(script, 2, log, queue, os.urandom(PAYLOAD), item)
            took.append((time.perf_counter_ns() - began) / 1000)
        client.delete(log, queue)
    finally:
        client.close()
    return took


def async_chain(url: str, stem: str, steps: int) -> list[float]:
    """A lone chain on an asyncio client: microseconds of each step."""
    took, _ = asyncio.run(_chains(url, stem, 1, steps))
    return took


def many_chains(url: str, stem: str, steps: int) -> Bare:
    """One blocking client or 50 chains on one asyncio client, whichever is better."""
    cpu = time.process_time()
    one = 1e6 / statistics.fmean(sync_chain(url, stem, steps))
    between = time.process_time()
    many = loop_chains(url, stem, steps)
    return max(Bare(one, (between - cpu) / steps * 1000), Bare(many, (time.process_time() - between) / steps * 1000))


def loop_chains(url: str, stem: str, steps: int) -> float:
    """Steps a second of 50 chains on one asyncio client; `steps` is a multiple of 50."""
    _, seconds = asyncio.run(_chains(url, stem, IN_FLIGHT, steps // IN_FLIGHT))
    return steps / seconds


async def _chains(url: str, stem: str, count: int, steps: int) -> tuple[list[float], float]:
    """So many chains at once; the steps' times of one of them, and the seconds that all took."""
    typed: Any = redis.asyncio.Redis
    client: Any = typed.from_url(url, protocol=2, max_connections=count + 2)
    queue, log = f"{stem}floor:queue", f"{stem}floor:log"
    try:
        script = await client.script_load(STEP)
        await client.rpush(queue, *("1" for _ in range(count)))
        began = time.perf_counter()
        found = await asyncio.gather(*(_chain(client, script, log, queue, steps) for _ in range(count)))
        seconds = time.perf_counter() - began
        await client.delete(log, queue)
    finally:
        await client.aclose()
    return found[0], seconds


async def _chain(client: Any, script: str, log: str, queue: str, steps: int) -> list[float]:
    took: list[float] = []
    for _ in range(steps):
        began = time.perf_counter_ns()
        _, items = await client.blmpop(10, 1, queue, direction="LEFT")
        await client.evalsha(script, 2, log, queue, os.urandom(PAYLOAD), items[0])
        took.append((time.perf_counter_ns() - began) / 1000)
    return took
