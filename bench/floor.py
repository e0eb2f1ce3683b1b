"""The floor: a bare loop that does per step what cannot be left out: pop, then one script with XADD of 1 KB and push.

One blocking client, and one asyncio process with many steps in flight; the better of the two is the floor.
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
QUEUE = "floor:queue"
IN_FLIGHT = 50


class Floor(NamedTuple):
    """Microseconds per step of a lone chain, and steps per second of many."""

    step_us: float
    steps_s: float


def sync_floor(url: str, steps: int) -> Floor:
    with redis.Redis.from_url(url, protocol=2) as typed:
        client: Any = typed
        script = client.script_load(STEP)
        client.rpush(QUEUE, "1")
        took: list[float] = []
        for _ in range(steps):
            began = time.perf_counter_ns()
            _, item = client.blpop([QUEUE])
            client.evalsha(script, 2, "floor:log", QUEUE, os.urandom(PAYLOAD), item)
            took.append((time.perf_counter_ns() - began) / 1000)
        client.delete("floor:log", QUEUE)
    return Floor(statistics.median(took), 1e6 / statistics.fmean(took))


async def _chain(client: Any, script: str, steps: int) -> list[float]:
    took: list[float] = []
    for _ in range(steps):
        began = time.perf_counter_ns()
        _, items = await client.blmpop(10, 1, QUEUE, direction="LEFT")
        await client.evalsha(script, 2, "floor:log", QUEUE, os.urandom(PAYLOAD), items[0])
        took.append((time.perf_counter_ns() - began) / 1000)
    return took


async def _async_floor(url: str, steps: int) -> Floor:
    client: Any = redis.asyncio.Redis.from_url(url, protocol=2, max_connections=IN_FLIGHT + 2)
    try:
        script = await client.script_load(STEP)
        await client.rpush(QUEUE, "1")
        alone = await _chain(client, script, steps)
        await client.rpush(QUEUE, *("1" for _ in range(IN_FLIGHT - 1)))
        each = max(steps // 10, 1)
        began = time.perf_counter()
        await asyncio.gather(*(_chain(client, script, each) for _ in range(IN_FLIGHT)))
        took = time.perf_counter() - began
        await client.delete("floor:log", QUEUE)
    finally:
        await client.aclose()
    return Floor(statistics.median(alone), IN_FLIGHT * each / took)


def async_floor(url: str, steps: int) -> Floor:
    return asyncio.run(_async_floor(url, steps))


def floor(url: str, steps: int) -> Floor:
    """The better of both, in latency and in throughput."""
    sync, loop = sync_floor(url, steps), async_floor(url, steps)
    return Floor(min(sync.step_us, loop.step_us), max(sync.steps_s, loop.steps_s))
