"""Tail: streams of Redis read as they grow, a page at a time, over outages of up to a minute."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

import redis

from ..moves.connection import BACKOFF_MAX_S, server_error

BLOCK_MS = 1000
PAGE = 256
OUTAGE_S = 60.0
Row = tuple[bytes, Mapping[bytes, bytes]]


class Tail:
    """Reads what comes behind given ids. `url` is for errors."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self._url = url
        self._away_since = 0.0
        self._delay = 0.02

    def read(self, places: Mapping[str, str], block_s: float = BLOCK_MS / 1000) -> dict[str, list[Row]]:
        """Rows by key, as soon as there are some; empty after `block_s`. Raises RedisError: see `absent`."""
        block = int(min(max(block_s * 1000, 1), BLOCK_MS))
        answer = self._client.xread(dict(places), count=PAGE, block=block)
        self._away_since, self._delay = 0.0, 0.02
        return {key.decode("utf-8", "surrogatepass"): rows for key, rows in answer or ()}

    def absent(self, error: redis.RedisError) -> None:
        """Redis did not answer: wait a little. Raises ServerError for a refusal, and after a minute."""
        self._away_since = self._away_since or time.monotonic()
        if not _passes(error) or time.monotonic() - self._away_since > OUTAGE_S:
            raise server_error(error, self._url) from error
        time.sleep(self._delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
        self._delay = min(self._delay * 2, BACKOFF_MAX_S)


def _passes(error: redis.RedisError) -> bool:
    """Is it an outage, and no refusal?"""
    away = isinstance(error, redis.ConnectionError | redis.TimeoutError)
    return away and not isinstance(error, redis.AuthenticationError)
