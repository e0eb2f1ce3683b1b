"""What attempts that came together will ask of the log, read for all of them in one request.

    leases ──spans──► Log.read_all, one round trip ──► pages ──each once──► whoever loads the attempt

A page that nobody asked for goes when others come. What could not be read is no page: who asks for it is told why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Head, Log, Span

KEPT_BYTES = 16 * 2**20


class ReadAhead(Log):
    """Another log, some pages of which are here already. Each is given once. Safe to use from several threads."""

    def __init__(self, log: Log) -> None:
        self._log, self.signer = log, log.signer
        self._pages: OrderedDict[Span, tuple[list[e.Entry], int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def fetch(self, spans: Sequence[Span]) -> None:
        """Read what is not here, if that is more than one request would be without."""
        with self._lock:
            asked = [span for span in dict.fromkeys(spans) if span not in self._pages]
        if len(asked) < 2:
            return
        found = self._log.read_all(asked)
        for span, page in zip(asked, found, strict=True):
            if page is not None:
                self._keep(span, page)

    def _keep(self, span: Span, page: list[e.Entry]) -> None:
        """Keep a page within the byte budget; the oldest goes first. An entry counts for more bytes than it has."""
        size = 512 + sum(512 + sum(map(len, entry.raw.values())) for entry in page)
        with self._lock:
            self._bytes += size - self._pages.pop(span, ((), 0))[1]
            self._pages[span] = page, size
            while self._bytes > KEPT_BYTES:
                self._bytes -= self._pages.popitem(last=False)[1][1]

    def read(
        self,
        thread: str,
        start: str = "-",
        end: str = "+",
        count: int | None = None,
        *,
        reverse: bool = False,
    ) -> list[e.Entry]:
        if self._pages:
            with self._lock:
                page, size = self._pages.pop(Span(thread, start, end, count, reverse), (None, 0))
                self._bytes -= size
            if page is not None:
                return page
        return self._log.read(thread, start, end, count, reverse=reverse)

    def append(self, thread: str, new: Sequence[e.Fields], after: tuple[int, str] | None) -> list[str]:
        return self._log.append(thread, new, after)

    def head(self, thread: str) -> Head | None:
        return self._log.head(thread)

    def threads(self) -> Iterator[str]:
        return self._log.threads()

    def delete(self, thread: str) -> bool:
        return self._log.delete(thread)

    def _cut(self, thread: str, mark: str) -> int:
        return self._log.trim(thread, mark)
