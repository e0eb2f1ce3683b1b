"""What attempts that came together will ask of the log, asked for all of them in one request.

    leases ──spans──► Log.ask, one round trip ──► pages ──each once──► whoever loads the attempt

Nobody waits for the reply before somebody needs a page of it. A page that nobody asked for goes when others come. What
could not be read is no page: who asks for it is told why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Asked, Head, Log, Span

PAGES_KEPT = 128  # twice what an offer brings


class ReadAhead(Log):
    """Another log, some pages of which are here already, or on their way. Each is given once. For several threads."""

    def __init__(self, log: Log) -> None:
        self._log, self.signer = log, log.signer
        self._pages: OrderedDict[Span, tuple[Asked, int]] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, spans: Sequence[Span]) -> None:
        """Ask for what is not here, if that would be more than one request."""
        with self._lock:
            wanted = [span for span in dict.fromkeys(spans) if span not in self._pages]
        if len(wanted) < 2:
            return
        asked = self._log.ask(wanted)
        with self._lock:
            self._pages.update((span, (asked, at)) for at, span in enumerate(wanted))
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
        if self._pages and (page := self._page(Span(thread, start, end, count, reverse))) is not None:
            return page
        return self._log.read(thread, start, end, count, reverse=reverse)

    def _page(self, span: Span) -> list[e.Entry] | None:
        with self._lock:
            found = self._pages.pop(span, None)
        if found is None:
            return None
        asked, at = found
        try:
            return asked()[at]
        except Exception:  # noqa: BLE001 - whatever it was: read alone, it says so, or is over
            return None

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
