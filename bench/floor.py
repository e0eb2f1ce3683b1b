"""The floor: a bare loop that does per step what cannot be left out: pop, then one script with XADD of 1 KB and push.

One blocking client, and one asyncio process with many steps in flight; the better of the two is the floor.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import Any

import redis
import redis.asyncio

from .graphs import PAYLOAD

STEP = """
redis.call('XADD', KEYS[1], '*', 'd', ARGV[1])
if ARGV[2] ~= '' then redis.call('RPUSH', KEYS[2], ARGV[2]) end
return 1
"""
QUEUE, LOG = "floor:queue", "floor:log"
IN_FLIGHT = 50


def sync_chain(url: str, steps: int) -> list[float]:
    """A lone chain on one blocking client: microseconds of each step."""
    with redis.Redis.from_url(url, protocol=2) as typed:
        client: Any = typed
        script = client.script_load(STEP)
        client.rpush(QUEUE, "1")
        took: list[float] = []
        for _ in range(steps):
            began = time.perf_counter_ns()
            _, item = client.blpop([QUEUE])
            client.evalsha(script, 2, LOG, QUEUE, os.urandom(PAYLOAD), item)
            took.append((time.perf_counter_ns() - began) / 1000)
        client.delete(LOG, QUEUE)
    return took


def async_chain(url: str, steps: int) -> list[float]:
    """A lone chain on an asyncio client: microseconds of each step."""
    took, _ = asyncio.run(_chains(url, 1, steps))
    return took


def many_chains(url: str, steps: int) -> float:
    """Steps a second, of one blocking client or of 50 chains on one asyncio client, whichever is better."""
    one = 1e6 / statistics.fmean(sync_chain(url, steps))
    each = max(steps // IN_FLIGHT, 1)
    _, seconds = asyncio.run(_chains(url, IN_FLIGHT, each))
    return max(one, IN_FLIGHT * each / seconds)


async def _chains(url: str, count: int, steps: int) -> tuple[list[float], float]:
    """So many chains at once; the steps' times of one of them, and the seconds that all took."""
    client: Any = redis.asyncio.Redis.from_url(url, protocol=2, max_connections=count + 2)
    try:
        script = await client.script_load(STEP)
        await client.rpush(QUEUE, *("1" for _ in range(count)))
        began = time.perf_counter()
        found = await asyncio.gather(*(_chain(client, script, steps) for _ in range(count)))
        seconds = time.perf_counter() - began
        await client.delete(LOG, QUEUE)
    finally:
        await client.aclose()
    return found[0], seconds


async def _chain(client: Any, script: str, steps: int) -> list[float]:
    took: list[float] = []
    for _ in range(steps):
        began = time.perf_counter_ns()
        _, items = await client.blmpop(10, 1, QUEUE, direction="LEFT")
        await client.evalsha(script, 2, LOG, QUEUE, os.urandom(PAYLOAD), items[0])
        took.append((time.perf_counter_ns() - began) / 1000)
    return took
