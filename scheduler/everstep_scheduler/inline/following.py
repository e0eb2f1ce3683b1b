"""Following a run in its thread's log: each look reads only what came since the last one."""

from __future__ import annotations

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import RunCancelled
from everstep_checkpoint.log import Log

from ..reading.ending import Ending, EndingFinder


class Follower:
    """Tells how a run ended, once it has. `since`: the run's first entry."""

    def __init__(self, log: Log, thread: str, run: str, since: str) -> None:
        self._log = log
        self._thread = thread
        self._finder = EndingFinder(run)
        self._since = since or "-"
        self._last: e.Entry | None = None

    def look(self) -> Ending | None:
        """The run's ending; None while it has not ended. Raises RunCancelled if the thread was deleted meanwhile."""
        found = list(self._log.pages(self._thread, self._since))
        if not found or self._is_another(found[0]):
            raise RunCancelled("the thread was deleted while the run waited", thread=self._thread)
        if self._last is not None and found[0].id == self._last.id:
            del found[0]
        for entry in found:
            self._last, self._since = entry, entry.id
            ended = self._finder.feed(entry)
            if ended is not None:
                return ended
        return None

    def _is_another(self, first: e.Entry) -> bool:
        """Whether another log stands where ours did: the entry that we read last is not what it was."""
        return self._last is not None and first.id == self._last.id and first.raw != self._last.raw
