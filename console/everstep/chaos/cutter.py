"""A way to Redis that can be cut: a small TCP proxy on 127.0.0.1, on a thread and an event loop of its own.

    worker ──TCP──► Cutter ──TCP or unix socket──► Redis

`cut` closes every connection at once, whatever is on its way: a request that never arrives, a reply that nobody reads.
It reads nothing of what passes.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from redis.connection import parse_url  # pyright: ignore[reportUnknownVariableType]

LOCAL = "127.0.0.1"
CHUNK = 65536
CALL_S = 10.0


def can_cut(url: str) -> bool:
    """TLS is between the client and the server by name; nobody can stand between."""
    return not url.startswith("rediss")


class Cutter:
    """Forwards to the Redis of a URL. Use it as a context manager."""

    def __init__(self, url: str) -> None:
        self._said: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        self._url = url
        self._links: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="everstep-cutter", daemon=True)
        self._port = 0

    @property
    def url(self) -> str:
        """The same user, password and database, by way of this proxy."""
        database = f"/{self._said.get('db', 0)}"
        user = urlsplit(self._url).netloc.rpartition("@")[0]
        return urlunsplit(("redis", f"{user}@" * bool(user) + f"{LOCAL}:{self._port}", database, "", ""))

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result(CALL_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CALL_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()

    def cut(self) -> int:
        """Close all connections. Returns how many clients lost theirs."""
        return asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(CALL_S)

    def aim(self, url: str) -> None:
        """From now on forward to another one; whoever is connected is cut."""
        self._said = parse_url(url)  # type: ignore[no-untyped-call]
        self.cut()

    async def _begin(self) -> None:
        self._listener = await asyncio.start_server(self._serve, LOCAL, 0)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _cut(self) -> int:
        links = list(self._links)
        for each in links:
            each.transport.abort()
        return len(links) // 2

    async def _end(self) -> None:
        self._listener.close()
        await self._cut()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            await asyncio.wait(rest, timeout=CALL_S / 2)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if "path" in self._said:
            return await asyncio.open_unix_connection(Path(self._said["path"]))
        return await asyncio.open_connection(self._said.get("host", LOCAL), self._said.get("port", 6379))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server, onward = await self._open()
        except OSError:
            writer.transport.abort()
            return
        both = {writer, onward}
        self._links |= both
        pumps = [asyncio.create_task(_pump(reader, onward)), asyncio.create_task(_pump(server, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links -= both
            for each in both:
                each.transport.abort()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
