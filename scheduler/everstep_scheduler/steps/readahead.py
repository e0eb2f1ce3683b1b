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

PAGES_KEPT = 256


class ReadAhead(Log):
    """Another log, some pages of which are here already. Each is given once. Safe to use from several threads."""

    def __init__(self, log: Log) -> None:
        self._log, self.signer = log, log.signer
        self._pages: OrderedDict[Span, list[e.Entry]] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, spans: Sequence[Span]) -> None:
        """Read what is not here, if that is more than one request would be without."""
        with self._lock:
            asked = [span for span in dict.fromkeys(spans) if span not in self._pages]
        if len(asked) < 2:
            return
        found = self._log.read_all(asked)
        with self._lock:
            self._pages.update((span, page) for span, page in zip(asked, found, strict=True) if page is not None)
            while len(self._pages) > PAGES_KEPT:
                self._pages.popitem(last=False)

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
                page = self._pages.pop(Span(thread, start, end, count, reverse), None)
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
