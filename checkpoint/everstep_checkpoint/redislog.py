"""Logs in Redis Streams, one stream a thread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import redis

from . import entries as e
from .errors import Conflict, LogError, TooLarge
from .keys import Keys
from .log import Head, Log, Span, conflict
from .signing import Signer, checked, of_environment, sealed


@cache
def _append_script() -> str:
    return (files("everstep_checkpoint") / "lua" / "append.lua").read_text()


def entries_of(
    rows: Iterable[tuple[bytes, Mapping[bytes, bytes] | list[bytes]]], thread: str, signer: Signer | None = None
) -> list[e.Entry]:
    """Rows of a thread's log as entries, checked where there is a signer. Raises LogError, which names the thread."""
    try:
        found = [e.read_entry(*row) for row in rows]
    except LogError as error:
        error.of(thread)
        raise
    return checked(signer, thread, found)


class RedisLog(Log):
    """The logs of one partition. `client` must not decode responses and must not resend commands by itself.

    `signer`: whose signatures entries get and must have; "environment": the keys that the environment names, if any.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys | None = None,
        signer: Signer | Literal["environment"] | None = "environment",
    ) -> None:
        self.signer = of_environment() if isinstance(signer, str) else signer
        self.client = client
        self.keys = keys or Keys()
        self._append = client.register_script(_append_script())

    def append(self, thread: str, new: Sequence[e.Fields], after: tuple[int, str] | None) -> list[str]:
        n, digest = after if after is not None else ("", "")
        args: list[Any] = [n, digest]
        for fields in sealed(self.signer, thread, new, after):
            flat = [x for pair in e.stored(fields).items() if pair[0] not in ("v", "kind", "at") for x in pair]
            if sum(len(x) for x in flat) > e.ENTRY_MAX:
                raise TooLarge(
                    f"an entry is over {e.ENTRY_MAX} bytes", thread=thread, fix="keep large values elsewhere"
                )
            args += [fields["kind"], len(flat), *flat]
        try:
            ids: Any = self._append(keys=[self.keys.log(thread), self.keys.thread(thread)], args=args)
        except redis.ResponseError as error:
            raise _conflict_of(thread, error, after) from error
        return [x.decode() for x in ids]

    def read(
        self,
        thread: str,
        start: str = "-",
        end: str = "+",
        count: int | None = None,
        *,
        reverse: bool = False,
    ) -> list[e.Entry]:
        return entries_of(self.rows(thread, start, end, count, reverse=reverse), thread, self.signer)

    def rows(
        self, thread: str, start: str = "-", end: str = "+", count: int | None = None, *, reverse: bool = False
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Entries as they are stored, whoever wrote them."""
        key = self.keys.log(thread)
        found: Any
        found = self.client.xrevrange(key, end, start, count) if reverse else self.client.xrange(key, start, end, count)
        return found  # type: ignore[no-any-return]

    def read_all(self, spans: Sequence[Span]) -> list[list[e.Entry] | None]:
        """In one round trip."""
        client: Any = self.client
        with client.pipeline(transaction=False) as pipe:
            for thread, start, end, most, reverse in spans:
                key = self.keys.log(thread)
                if reverse:
                    pipe.xrevrange(key, end, start, most)
                else:
                    pipe.xrange(key, start, end, most)
            answers: list[Any] = pipe.execute(raise_on_error=False)
        return [self.page(span.thread, rows) for span, rows in zip(spans, answers, strict=True)]

    def page(self, thread: str, rows: Any) -> list[e.Entry] | None:
        """A reply as entries; None for one that is an error, or can't be read."""
        try:
            return None if isinstance(rows, Exception) else entries_of(rows, thread, self.signer)
        except LogError:
            return None

    def head(self, thread: str) -> Head | None:
        last = self.read(thread, count=1, reverse=True)
        if not last:
            return None
        n = last[0].n
        if n == 0:
            first = self.read(thread, count=1)[0]
            return Head(0, first.text("birth"), last[0].id)
        opened = last[0] if last[0].is_checkpoint else self.read(thread, f"{n}-0", f"{n}-0")[0]
        return Head(n, opened.digest, last[0].id)

    def threads(self) -> Iterator[str]:
        stem = self.keys.log("")
        pattern = re.sub(r"([\[\]*?\\])", r"\\\1", stem) + "*"
        client: Any = self.client
        for key in client.scan_iter(match=pattern, count=1000):
            try:
                yield key[len(stem.encode()) :].decode("utf-8")
            except UnicodeDecodeError:
                continue  # no thread of ours has such an id

    def delete(self, thread: str) -> bool:
        return bool(self.client.unlink(self.keys.log(thread)))

    def _cut(self, thread: str, mark: str) -> int:
        return int(self.client.xtrim(self.keys.log(thread), minid=mark, approximate=False))


def _conflict_of(
    thread: str, error: redis.ResponseError, after: tuple[int, str] | None
) -> Conflict | redis.ResponseError:
    words = str(error).split(" ")
    if words[:2] != ["EVERSTEP", "conflict"]:
        return error
    found = None if words[2] == "-" else (int(words[2]), words[3] if len(words) > 3 else "")
    return conflict(thread, found, after)
