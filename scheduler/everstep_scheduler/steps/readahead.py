"""What attempts that came together will ask of the log, asked for all of them in one request.

    leases ──spans──► Log.ask, one round trip ──► pages by lease, each once ──► whoever loads that attempt

Nobody waits for the reply before somebody needs a page of it. A page belongs to the lease that it was asked for, and no
other one sees it: its thread may be deleted and begun anew meanwhile. What could not be read is no page: who asks for
it is told why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Asked, Head, Log, Span

LEASES_KEPT = 128  # twice what an offer brings
Pages = dict[Span, tuple[Asked, int]]


class ReadAhead:
    """Pages of a log, here or on their way, by the tokens of the leases they were asked for. For several threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._pages: OrderedDict[str, Pages] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, wanted: Mapping[str, Sequence[Span]]) -> None:
        """Ask for what leases want, by their tokens, if that would be more than one request."""
        with self._lock:
            fresh = {token: spans for token, spans in wanted.items() if token not in self._pages}
        places = dict[Span, int]()
        for each in fresh.values():
            for span in each:
                places.setdefault(span, len(places))
        if len(places) < 2:
            return
        asked = self._log.ask([*places])
        with self._lock:
            for token, each in fresh.items():
                self._pages[token] = {span: (asked, places[span]) for span in each}
            while len(self._pages) > LEASES_KEPT:
                self._pages.popitem(last=False)

    def of(self, token: str) -> Log:
        """The log as the attempt with this lease reads it."""
        pages = self._pages.get(token) if self._pages else None
        return Near(self._log, pages) if pages else self._log

    def forget(self, token: str) -> None:
        """The attempt is over, or was never begun."""
        if self._pages:
            with self._lock:
                self._pages.pop(token, None)


class Near(Log):
    """Another log, some pages of which are here already, or on their way. Each is given once."""

    def __init__(self, log: Log, pages: Pages) -> None:
        self._log, self._pages, self.signer = log, pages, log.signer

    def read(
        self,
        thread: str,
        start: str = "-",
        end: str = "+",
        count: int | None = None,
        *,
        reverse: bool = False,
    ) -> list[e.Entry]:
        page = self._page(Span(thread, start, end, count, reverse))
        return page if page is not None else self._log.read(thread, start, end, count, reverse=reverse)

    def _page(self, span: Span) -> list[e.Entry] | None:
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
