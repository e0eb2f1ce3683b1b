"""Deleting: a thread is forgotten, and all that its tasks called, and that they called.

    thread at rest ──delete──► its log stands aside ──► its children's, and so on down ──► all that stands aside goes

The thread comes first, under its fence: where that is refused nothing is touched. Its log alone knows its children, so
it stands aside as `dying` until they are gone, the thread's own last of all. Until then nothing begins on the thread. A
deleter that is killed leaves just that, and the next `delete` goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from everstep_checkpoint.errors import ThreadBusy
from everstep_checkpoint.keys import Keys, is_within, thread_id_text
from everstep_checkpoint.log import unknown_thread
from everstep_checkpoint.replay import RUN_FACTS

from ..moves.connection import translated
from ..moves.contract import MOVE_MAX, check_thread
from ..moves.redismoves import RedisMoves
from ..reading.children import CALLING

QUEUED_MAX = 10_000
PAGE = 100


class Deleting:
    """The part of a `Client` that forgets threads."""

    url: str
    keys: Keys
    redis: Any
    moves: RedisMoves

    def delete(self, thread_id: object, cancel: bool = False) -> None:
        """Forget a thread and those that its tasks called, their logs included. Those are cancelled, where they run.

        Raises ThreadBusy unless `cancel`, and then nothing is touched; UnknownThread, InvalidInput for a thread that a
        node keeps. Where it was ended half way, the same again goes on; until then nothing begins on the thread.
        """
        thread = thread_id_text(thread_id)
        check_thread(thread)
        if self._put_aside(thread, cancel) == "unknown":
            raise unknown_thread(thread)
        self._bury(thread)

    def _put_aside(self, thread: str, cancel: bool, of: str = "") -> str:
        """A thread's log stands aside: deleted or unknown. Raises ThreadBusy."""
        for _ in range(QUEUED_MAX):
            with translated(self.url):
                runs = [run for run, _ in self.redis.hscan_iter(self.keys.runs(thread), count=MOVE_MAX)]
            status = self.moves.delete(thread, aside=True, of=of)
            if status != "busy":
                self._forget_said(thread, [run.decode("utf-8", "surrogatepass") for run in runs])
                return status
            if not cancel:
                raise ThreadBusy(
                    "a run is under way on the thread", thread=thread, fix="cancel it, or delete(cancel=True)"
                )
            self.moves.cancel(thread)  # a queued input may begin then: it is cancelled in the next round
        raise ThreadBusy("inputs come faster than they can be cancelled", thread=thread, fix="stop its producers first")

    def _bury(self, root: str) -> None:
        """All that was called from here down is put aside, and then goes, from below."""
        order, seen = [root], {root}
        for thread in order:
            for child in self._called_in(thread):
                if child not in seen:  # a log that others wrote may say that it called itself
                    seen.add(child)
                    self._put_aside(child, cancel=True, of=thread)
                    if is_within(child):  # nobody lists its runs
                        runs = {fields.get(b"run", b"") for kind, fields in self._facts(child) if kind in RUN_FACTS}
                        self._forget_said(child, [run.decode("utf-8", "surrogatepass") for run in runs])
                    order.append(child)
        with translated(self.url):
            for thread in reversed(order):  # one by one, for the one that is last knows where to go on
                self.redis.unlink(self.keys.dying(thread))

    def _called_in(self, thread: str) -> Iterator[str]:
        """The threads that the tasks of one called whose log stands aside."""
        for kind, fields in self._facts(thread):
            child = fields.get(b"called", b"").partition(b" ")[2].decode("utf-8", "replace") if kind in CALLING else ""
            if child:
                yield child

    def _facts(self, thread: str) -> Iterator[tuple[str, dict[bytes, bytes]]]:
        """The entries of a log that stands aside, with their kinds. Read as it is: also one that is broken."""
        begin = "-"
        while True:
            with translated(self.url):
                page = self.redis.xrange(self.keys.dying(thread), begin, "+", count=PAGE)
            for _, fields in page:
                yield fields.get(b"kind", b"").decode("utf-8", "replace"), fields
            if len(page) < PAGE:
                return
            begin = f"({page[-1][0].decode()}"

    def _forget_said(self, thread: str, runs: list[str]) -> None:
        """What the nodes of these runs said goes with their thread."""
        with translated(self.url):
            for i in range(0, len(runs), MOVE_MAX):
                self.redis.unlink(*(self.keys.live(thread, run) for run in runs[i : i + MOVE_MAX]))
