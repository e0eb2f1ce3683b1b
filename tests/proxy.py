"""A way to Redis that breaks on command: the faults of a network, one at a time and in full view.

    client --TCP--> FaultProxy --unix socket--> server

It reads both directions as Redis does, so it knows which reply belongs to which request. It runs on a thread
and event loop of its own; each method returns when its change is in force.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import hiredis

T = TypeVar("T")

_CHUNK = 65536
_CALL_S = 10.0


@dataclass(eq=False)
class Fault:
    """A loss that waits for its request. `fired` is set when it has struck."""

    match: bytes
    reply: bool
    fired: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class Link:
    """One client's connection and its twin to the server."""

    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    asks: hiredis.Reader = field(default_factory=hiredis.Reader)
    answers: hiredis.Reader = field(default_factory=hiredis.Reader)
    asked: int = 0
    answered: int = 0
    losing: Fault | None = None
    abandoned: bool = False

    def close(self) -> None:
        for _, writer in (self.client, self.server):
            writer.close()


class FaultProxy:
    """Listens on 127.0.0.1 and forwards to the server at `upstream`, a unix socket.

    Counters: `connections` accepted; `commands` by name (b"EVALSHA"); `round_trips`: how often a client that
    had all its answers asked again.
    """

    def __init__(self, upstream: Path) -> None:
        self.upstream = upstream
        self.connections = 0
        self.round_trips = 0
        self.commands: Counter[bytes] = Counter()
        self._links: set[Link] = set()
        self._faults: list[Fault] = []
        # Holds the port while nobody listens on it, so that accept() finds it free. Never listens itself.
        self._placeholder = _bound(0)
        self.port: int = self._placeholder.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._begin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)
        self._loop.close()
        self._placeholder.close()

    def drop_next_reply(self, match: bytes) -> threading.Event:
        """Let the next request that contains `match` reach the server, but none of the replies from then on
        reach the client; close the connection when the server has answered all. Then the event is set."""
        return self._arm(Fault(match, reply=True))

    def drop_next_request(self, match: bytes) -> threading.Event:
        """Close the connection instead of forwarding what holds the next request that contains `match`."""
        return self._arm(Fault(match, reply=False))

    def black_hole(self) -> None:
        """Forward nothing in either direction, close nothing. New connections are taken and hear nothing."""
        self._do(self._soon(self._flowing.clear))

    def heal(self) -> None:
        """Forward again, beginning with what was held back."""
        self._do(self._soon(self._flowing.set))

    def abandon(self) -> int:
        """Half-open: forward nothing over the connections that there are, and close none, for good. New ones are
        served. Returns how many were left so."""
        return self._do(self._abandon())

    def cut(self) -> None:
        """Close all connections; new ones are welcome."""
        self._do(self._soon(self._cut))

    def refuse(self) -> None:
        """Close all connections and refuse new ones, as if the server were down."""
        self._do(self._stop_listening())

    def accept(self) -> None:
        """Take connections again, on the same port."""
        self._do(self._listen())

    @property
    def open_links(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)

    async def _soon(self, change: Callable[[], None]) -> None:
        change()

    def _arm(self, fault: Fault) -> threading.Event:
        self._do(self._soon(lambda: self._faults.append(fault)))
        return fault.fired

    async def _begin(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: asyncio.Server | None = None
        await self._listen()

    async def _listen(self) -> None:
        self._refuses = False
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, sock=_bound(self.port))

    async def _stop_listening(self) -> None:
        self._refuses = True  # also who was taken, and is still on the way to the server
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._cut()

    async def _end(self) -> None:
        await self._stop_listening()
        self._flowing.set()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:  # closed links end by themselves; Python 3.11 prints a traceback for a cancelled one
            await asyncio.wait(rest, timeout=_CALL_S / 2)

    async def _abandon(self) -> int:
        for link in self._links:
            link.abandoned = True
        return len(self._links)

    def _cut(self) -> None:
        for link in self._links:
            link.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            server = await asyncio.open_unix_connection(self.upstream)
        except OSError:
            writer.close()
            return
        link = Link((reader, writer), server)
        if self._refuses:
            link.close()
            return
        self._links.add(link)
        pumps = [asyncio.create_task(self._requests(link)), asyncio.create_task(self._replies(link))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links.discard(link)
            link.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _requests(self, link: Link) -> None:
        while data := await link.client[0].read(_CHUNK):
            await self._flowing.wait()
            if link.abandoned:
                continue
            self.round_trips += link.asked == link.answered
            self._note(link, data)
            if link.losing is not None and not link.losing.reply:
                link.losing.fired.set()
                return
            link.server[1].write(data)
            await link.server[1].drain()

    async def _replies(self, link: Link) -> None:
        while data := await link.server[0].read(_CHUNK):
            if link.abandoned:
                continue
            link.answers.feed(data)
            link.answered += sum(not isinstance(each, hiredis.PushNotification) for each in _whole(link.answers))
            if link.losing is None:
                await self._flowing.wait()
                link.client[1].write(data)
                await link.client[1].drain()
            elif link.answered >= link.asked:
                link.losing.fired.set()
                return

    def _note(self, link: Link, data: bytes) -> None:
        """Count the requests that are now complete, and see whether one of them is to be lost."""
        link.asks.feed(data)
        for request in _whole(link.asks):
            link.asked += 1
            self.commands[request[0].upper()] += 1
            text = b" ".join(request)
            hit = next((fault for fault in self._faults if fault.match in text), None)
            if hit is not None and link.losing is None:
                self._faults.remove(hit)
                link.losing = hit


def _whole(reader: hiredis.Reader) -> list[Any]:
    """What the reader has in full by now. `False` is how it says "unfinished"; no RESP2 message is."""
    whole: list[Any] = []
    while (message := reader.gets()) is not False:
        whole.append(message)
    return whole


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound
