"""A client with one connection, for one thread: it connects when first used, and a broken connection is always seen.

redis-py's client spends a third of a command's time on its pool, retries and telemetry; a thread that does nothing but
run steps needs none of them. Replies are as they come; that is all that scripts need.
"""

from __future__ import annotations

from typing import Any

import redis

from everstep_scheduler.moves.connection import connect


class Line(redis.Redis):
    """Not for sharing. Use it for scripts, and for commands whose reply needs no making up."""

    def __init__(self, url: str) -> None:
        pool: Any = connect(url, connections=2).connection_pool
        super().__init__(connection_pool=pool)  # pyright: ignore[reportUnknownMemberType]
        self._one: Any = pool.make_connection()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send, and wait for the reply. Whatever goes wrong but an error reply ends the connection."""
        try:
            self._one.send_command(*args)
            return self._one.read_response()
        except redis.ResponseError:
            raise
        except BaseException:
            self._one.disconnect()
            raise

    def close(self) -> None:
        self._one.disconnect()
        self.connection_pool.disconnect()
