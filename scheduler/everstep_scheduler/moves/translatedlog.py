"""A log for those who read it for a user: errors of redis-py leave it as ours, with what to do.

The engine reads plain ones: it tells outages from answers itself, and waits them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Log
from everstep_checkpoint.redislog import RedisLog

from .connection import translated


class TranslatedLog(RedisLog):
    """What another one reads and writes. Raises ServerError."""

    def __init__(self, log: RedisLog, url: str = "") -> None:
        super().__init__(log.client, log.keys, log.signer)
        self._url = url

    def append(self, thread: str, new: Sequence[e.Fields], after: tuple[int, str] | None) -> list[str]:
        with translated(self._url):
            return super().append(thread, new, after)

    def rows(
        self, thread: str, start: str = "-", end: str = "+", count: int | None = None, *, reverse: bool = False
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        with translated(self._url):
            return super().rows(thread, start, end, count, reverse=reverse)

    def threads(self) -> Iterator[str]:
        with translated(self._url):
            yield from super().threads()

    def delete(self, thread: str) -> bool:
        with translated(self._url):
            return super().delete(thread)

    def _cut(self, thread: str, mark: str) -> int:
        with translated(self._url):
            return super()._cut(thread, mark)


def for_user(log: Log, url: str = "") -> Log:
    """The same log, whose errors a user can read."""
    return TranslatedLog(log, url) if type(log) is RedisLog else log
