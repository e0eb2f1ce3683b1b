"""Travelling: what a client can do with an earlier checkpoint of a thread. Needs no graph's code.

fork        a new thread with its state             works at any time
rollback    at the head of its thread again         the thread must be at rest
diff        what is different at another one        reads only
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import NotFound
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys, begun_thread_text, thread_id_text
from everstep_checkpoint.log import unknown_thread
from everstep_checkpoint.replay import State, state_at

from ..moves.connection import translated
from ..moves.contract import check_thread
from ..moves.record import check_run_id
from ..reading.addressed import addressed
from ..reading.differing import Change, changes
from ..reading.questions import dying
from ..steps.branching import Branched, Wish, branch, forking

if TYPE_CHECKING:
    from everstep_checkpoint.log import Log

    from ..moves.promises import Promises
    from ..moves.redismoves import RedisMoves
    from ..recovery.recovery import Recovery


class Travelling:
    """The part of a `Client` that goes back in time."""

    url: str
    keys: Keys
    redis: Any
    log_store: Log
    moves: RedisMoves
    recovery: Recovery

    promises: Promises

    def _thread(self, thread: str, *names: str) -> list[str]:
        raise NotImplementedError

    def confirm(self, durability: str, thread: str, what: str) -> None:
        raise NotImplementedError

    def fork(self, thread_id: object, target: object = None, checkpoint_id: str | None = None) -> str:
        """Begin a new thread with the state of a checkpoint, by default the last one. Works at any time.

        Its open tasks wait for a run that continues: `invoke(None)`, or `retry`. Returns the new thread's id: `target`,
        or one that is drawn.

        Raises UnknownThread, NotFound, Trimmed, ThreadBusy if `target` has a log already.
        """
        thread = thread_id_text(thread_id)
        made = begun_thread_text(new_id() if target is None else target)
        check_thread(made)
        with translated(self.url):
            n = self._checkpoint(thread, checkpoint_id).n
            if self.redis.exists(self.keys.dying(made)):
                raise dying(made)
            self.log_store.fork(thread, n, made)
            self.recovery()
        return made

    def rollback(self, thread_id: object, checkpoint_id: str, *, run_id: str | None = None) -> str:
        """Put an earlier checkpoint at the head of its thread again, as a branch that rests there: the next run goes on
        from it. What came after it stays in the history. Returns the id of the new checkpoint.

        Raises ThreadBusy while a run is under way, UnknownThread, NotFound, Trimmed, Conflict.
        """
        thread = thread_id_text(thread_id)
        with translated(self.url):
            at = self._checkpoint(thread, checkpoint_id)
            graph, queue = self._thread(thread, "graph", "queue")
        run = check_run_id(run_id or new_id())
        start = forking(self.log_store, thread, at, None, run, graph, queue)
        put = self.branched(Wish(thread, start, at, rests=True))
        return e.checkpoint_id(put.n, put.digest)

    def diff(self, thread_id: object, a: str, b: str) -> list[Change]:
        """What is different at checkpoint `b` from checkpoint `a`, key by key, as plain data.

        Raises UnknownThread, NotFound, Trimmed.
        """
        thread = thread_id_text(thread_id)
        with translated(self.url):
            return changes(self._checkpoint(thread, a).channels, self._checkpoint(thread, b).channels)

    def _checkpoint(self, thread: str, checkpoint_id: str | None) -> State:
        """The state at a checkpoint, or at the last one. Raises UnknownThread, NotFound, Trimmed, InvalidInput."""
        if checkpoint_id is not None:
            return addressed(self.log_store, thread, checkpoint_id)
        head = self.log_store.head(thread)
        if head is None:
            raise unknown_thread(thread)
        if not head.n:
            raise NotFound("the thread has no checkpoint yet", thread=thread, fix="wait until its input is applied")
        return state_at(self.log_store, thread, head.n)

    def branched(self, wish: Wish) -> Branched:
        """Put a checkpoint at the head of a thread at rest. Raises ThreadBusy, RunConflict, Conflict, LogError."""
        if not wish.rests:
            self.promises.check(wish.start.durability)
        with translated(self.url):
            put = branch(self.log_store, self.moves, wish)
        self.confirm(wish.start.durability, wish.thread, f"checkpoint {put.n}")
        return put
