"""A client with one connection, for one thread: it connects when first used, and a broken connection is always seen.

redis-py's client spends a third of a command's time on its pool, retries and telemetry; a thread that does nothing but
run steps needs none of them. Replies are as they come; that is all that scripts need. A command may be posted, and its
reply collected later, while the thread does something else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.log import Asked, Span
from everstep_checkpoint.redislog import RedisLog, entries_of
from everstep_scheduler.moves.connection import Client, connect

try:  # the extra `fast`: redis-py would look at each argument before it calls this
    import hiredis

    _pack: Any = getattr(hiredis, "pack_command")  # noqa: B009 - it has no types
except ImportError:
    _pack = None

LOST = -1


class Line(redis.Redis):
    """Not for sharing. Use it for scripts, and for commands whose reply needs no making up."""

    def __init__(self, url: str, answer_s: float | None = None) -> None:
        pool: Any = connect(url, connections=2, answer_s=answer_s).connection_pool
        super().__init__(connection_pool=pool)  # pyright: ignore[reportUnknownMemberType]
        self._one: Any = pool.make_connection()
        self._epoch = 0  # of the connection: replies that were to come over an older one are lost

    def _packed(self, *commands: tuple[Any, ...]) -> list[bytes]:
        """In one packet."""
        if _pack is not None:
            return [b"".join([_pack(args) for args in commands])]
        return [b"".join([piece for args in commands for piece in self._one.pack_command(*args)])]

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send, and wait for the reply. Whatever goes wrong but an error reply ends the connection."""
        packed = self._packed(args)
        try:
            self._one.send_packed_command(packed, False)
            return self._one.read_response()
        except redis.ResponseError:
            raise
        except BaseException:
            self.end()
            raise

    def post(self, *commands: tuple[Any, ...]) -> int:
        """Send commands in one packet. Each has a reply for `collect`; LOST if they could not be sent. Whatever goes
        wrong ends the connection: a new one has no replies to what is under way over this one."""
        packed, at = self._packed(*commands), self._epoch
        try:
            self._one.send_packed_command(packed, False)
        except redis.RedisError:
            self.end()
            return LOST
        except BaseException:
            self.end()
            raise
        return at

    def collect(self, posted: int) -> Any:
        """The reply to the oldest command posted and not collected. None if its connection has ended since, or ends
        now, for whatever reason; an error reply is returned, not raised."""
        if self.lost(posted):
            return None
        try:
            return self._reply()
        except Exception:  # noqa: BLE001 - a socket closed by another thread makes the parser raise errors of its own
            self.end()
            return None
        except BaseException:
            self.end()
            raise

    def _reply(self) -> Any:
        try:
            return self._one.read_response()
        except redis.ResponseError as error:
            return error

    def lost(self, posted: int) -> bool:
        """Has the connection ended over which something was posted?"""
        return posted != self._epoch

    def has_reply(self, posted: int) -> bool:
        """Can `collect` go on without waiting? Where nothing will come, too: asked for a socket that is not there,
        redis-py makes one, over which nothing is under way."""
        if self.lost(posted):
            return True
        try:
            return bool(self._one.can_read(0))
        except redis.RedisError:
            self.end()
            return True

    def end(self) -> None:
        """End the connection; what is under way is lost. The next command has a new one."""
        self._epoch += 1
        self._one.disconnect()

    def close(self) -> None:
        self.end()
        self.connection_pool.disconnect()


class Pages:
    """Reads under way over a line, which is theirs until all replies are here. One that nobody waits for ends it."""

    def __init__(self, log: LineLog, line: Line, spans: Sequence[Span], at: int) -> None:
        self._log, self._spans, self._at = log, spans, at
        self._line: Line | None = line
        self._found: list[list[e.Entry] | None] = []
        self._lock = threading.Lock()

    def __call__(self) -> list[list[e.Entry] | None]:
        with self._lock:
            if self._line is not None:
                line, self._line = self._line, None
                answers = [line.collect(self._at) for _ in self._spans]
                self._log.give(line)
                self._found = [
                    self._log.page(span.thread, answer) if answer is not None else None
                    for span, answer in zip(self._spans, answers, strict=True)
                ]
            return self._found

    def __del__(self) -> None:
        if self._line is not None:
            self._line.close()
            self._log.give(self._line)


class LineLog(RedisLog):
    """Logs that are read over lines: as many as there are readers at a time, and requests that nobody has waited for.
    Several reads leave at once."""

    def __init__(self, client: Client, lines: Callable[[], Line], keys: Keys) -> None:
        super().__init__(client, keys)
        self._made = lines
        self._idle: list[Line] = []

    def read(
        self, thread: str, start: str = "-", end: str = "+", count: int | None = None, *, reverse: bool = False
    ) -> list[e.Entry]:
        line = self._line()
        try:
            found = line.execute_command(*self._command(Span(thread, start, end, count, reverse)))
        finally:
            self.give(line)
        return entries_of(found, thread, self.signer)

    def read_all(self, spans: Sequence[Span]) -> list[list[e.Entry] | None]:
        return self.ask(spans)()

    def ask(self, spans: Sequence[Span]) -> Asked:
        line = self._line()
        try:
            at = line.post(*map(self._command, spans))
        except BaseException:
            self.give(line)
            raise
        return Pages(self, line, spans, at)

    def _line(self) -> Line:
        try:
            return self._idle.pop()
        except IndexError:
            return self._made()

    def give(self, line: Line) -> None:
        """A line that is used no more."""
        self._idle.append(line)

    def _command(self, span: Span) -> tuple[Any, ...]:
        key, count = self.keys.log(span.thread), ("COUNT", span.most) if span.most is not None else ()
        if span.reverse:
            return ("XREVRANGE", key, span.end, span.start, *count)
        return ("XRANGE", key, span.start, span.end, *count)
