"""Where outcomes of nodes are kept: in this process, or in Redis, where the whole fleet finds them.

InMemoryCache()            for graphs that run inline
RedisCache(url)            inline too; workers always use their own Redis, with the same keys
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from everstep_checkpoint.keys import Keys, rq_prefix
from everstep_checkpoint.signing import Signer, of_environment

from ..moves.connection import DEFAULT_URL, Client, connect

CACHE_BYTES = 64 * 2**20
AWAY_S = 5.0
PAGE = 500
T = TypeVar("T")


class InMemoryCache:
    """Keeps outcomes in this process's memory, at most `max_bytes`; the longest unused go first."""

    def __init__(self, *, max_bytes: int = CACHE_BYTES) -> None:
        self._kept: OrderedDict[tuple[str, str, str], tuple[bytes, float]] = OrderedDict()
        self._bytes, self._bytes_max = 0, max_bytes
        self._lock = threading.Lock()

    def get(self, graph: str, node: str, key: str) -> bytes | None:
        """What was kept; None if there is nothing any more."""
        with self._lock:
            value, until = self._kept.get((graph, node, key), (None, 0.0))
            if value is None or until <= time.monotonic():
                self._forget((graph, node, key))
                return None
            self._kept.move_to_end((graph, node, key))
            return value

    def put(self, graph: str, node: str, key: str, value: bytes, ttl: float | None) -> None:
        """Keep a value for `ttl` seconds; None: until there is no room."""
        with self._lock:
            self._forget((graph, node, key))
            self._kept[graph, node, key] = (value, time.monotonic() + ttl if ttl is not None else float("inf"))
            self._bytes += len(value)
            while self._bytes > self._bytes_max:
                self._forget(next(iter(self._kept)))

    def clear(self, graph: str, nodes: Sequence[str] | None = None) -> None:
        """Forget what was kept of these nodes; None: of all nodes of the graph."""
        with self._lock:
            for place in [each for each in self._kept if each[0] == graph and (nodes is None or each[1] in nodes)]:
                self._forget(place)

    def _forget(self, place: tuple[str, str, str]) -> None:
        value, _ = self._kept.pop(place, (b"", 0.0))
        self._bytes -= len(value)


class RedisCache:
    """Keeps outcomes in Redis, a string each, with its time to live.

    `redis`: a URL, or a client. A server that does not answer, or is full, is left alone for 5 s; the nodes run.
    """

    def __init__(
        self,
        redis: str | Client = DEFAULT_URL,
        *,
        namespace: str = "everstep",
        partition: str = "0",
        keys: Keys | None = None,
    ) -> None:
        self.client: Any = connect(redis) if isinstance(redis, str) else redis
        self.keys = keys or Keys(namespace, partition, rq_prefix(partition))
        self.signer: Signer | None = of_environment()
        self._away_until = 0.0

    def get(self, graph: str, node: str, key: str) -> bytes | None:
        """What was kept; None if there is nothing any more. Raises redis.RedisError the first time it fails.

        Where there are signing keys, what is not signed for this very place is nothing."""
        place = self.keys.cache(graph, node, key)
        found = self._try(lambda: self.client.get(place))
        return found if found is None or self.signer is None else self.signer.stamped(place, found)

    def put(self, graph: str, node: str, key: str, value: bytes, ttl: float | None) -> None:
        """Keep a value for `ttl` seconds; None: for good."""
        px, place = None if ttl is None else max(int(ttl * 1000), 1), self.keys.cache(graph, node, key)
        stored = value if self.signer is None else self.signer.stamp(place, value)
        self._try(lambda: self.client.set(place, stored, px=px))

    def clear(self, graph: str, nodes: Sequence[str] | None = None) -> None:
        """Forget what was kept of these nodes; None: of all nodes of the graph. Walks the keys, page by page."""
        for found in self._pages(_literal(self.keys.cache(graph, "", "").removesuffix("::")) + ":*"):
            mine = [key for key in found if self._is_of(key, graph, nodes)]
            if mine:
                self.client.unlink(*mine)

    def _pages(self, pattern: str) -> Iterator[list[bytes]]:
        cursor: Any = 0
        while True:
            cursor, found = self.client.scan(cursor, match=pattern, count=PAGE)
            yield found
            if not int(cursor):
                return

    def _is_of(self, key: bytes, graph: str, nodes: Sequence[str] | None) -> bool:
        """A graph's name may hold colons, a node's and a hash can't."""
        stem, node, _ = key.decode().rsplit(":", 2)
        return stem == self.keys.cache(graph, "", "").removesuffix("::") and (nodes is None or node in nodes)

    def _try(self, action: Callable[[], T]) -> T | None:
        if time.monotonic() < self._away_until:
            return None
        try:
            return action()
        except Exception:
            self._away_until = time.monotonic() + AWAY_S
            raise


def _literal(text: str) -> str:
    """A glob that matches this text only."""
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)
