"""Sealing: what is signed before it goes into a script, where there is a key. Nothing of it runs where there is none.

    start   the run's fact, the answers, the parts of a Command ──► script ──► the log, as they are
    commit  the outcome, the checkpoints, the run that is called
    part, branch, migrate  their entries                            a log that an attempt keeps signs by itself

A run's fact is signed for the head that its caller saw: it may be queued, and lands there or later. All else is fenced
by (n, digest), so its place is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from everstep_checkpoint import entries as e
from everstep_checkpoint.signing import FIELD, Signer, adds, sealed

from .contract import Answered, Branch, Commanded, Commit, Lease, Start

ADDS = "adds"  # in the fact of a run: what its Command adds to the step
RESTS = "rests"  # in a checkpoint: the run rests here, though tasks come next
Head = Callable[[str], tuple[int, str] | None]


class Sealer:
    """Signs what moves write. `head`: where a thread stands, for runs that begin; unverified, for a signature for a
    place that is none is refused."""

    def __init__(self, signer: Signer, head: Head) -> None:
        self.signer = signer
        self._head = head

    def start(self, start: Start, place: tuple[int, str] | None = None) -> Start:
        """A run with the signature of its fact, of its answers and of what its Command brings."""
        n, digest = place or start.seen or start.at or self._head(start.thread) or (0, "")
        fields: e.Fields = {**start.fields, "run": start.run}
        if start.command is not None:
            sums = (str(part["sum"]) for part, _ in start.command.parts)
            fields[ADDS] = adds(start.command.tasks, sums)
        fields = self.signer.seal(start.thread, n, digest, fields)
        at = start.at or (n, digest)
        answers = tuple(self._answer(start, each, at) for each in start.answers)
        command = self._command(start, start.command, at) if start.command is not None else None
        return replace(start, fields=fields, answers=answers, command=command)

    def _answer(self, start: Start, given: Answered, at: tuple[int, str]) -> Answered:
        said: e.Fields = {"kind": "task_answered", "run": start.run, "task": given.task, "answer": given.value}
        said |= {"question": given.question} if given.question else {}
        return given._replace(sig=str(self.signer.seal(start.thread, *at, said)[FIELD]))

    def _command(self, start: Start, given: Commanded, at: tuple[int, str]) -> Commanded:
        parts = tuple((self.signer.seal(start.thread, *at, part), count) for part, count in given.parts)
        return replace(given, parts=parts)

    def branch(self, branch: Branch) -> Branch:
        """A branch with the signatures of its run's fact and its checkpoint."""
        made: e.Fields = {**branch.made, **({RESTS: branch.stop} if branch.stop else {})}
        (made,) = sealed(self.signer, branch.start.thread, [made], branch.after)
        return replace(branch, start=self.start(branch.start, branch.after), made=made)

    def commit(self, commit: Commit) -> Commit:
        """An outcome with the signatures of its entries, and of the run that it calls."""
        lease, entries = commit.lease, list(commit.entries)
        if commit.stop and commit.head is not None:
            entries[-1] = {**entries[-1], RESTS: commit.stop}
        call = commit.call
        if call is not None and call.start is not None:
            call = call._replace(start=self.start(call.start))
        return commit._replace(entries=tuple(sealed(self.signer, lease.thread, entries, _after(lease))), call=call)

    def part(self, lease: Lease, pieces: Sequence[e.Fields]) -> Sequence[e.Fields]:
        """Pieces and effects with their signatures."""
        return sealed(self.signer, lease.thread, pieces, _after(lease))


def _after(lease: Lease) -> tuple[int, str]:
    return lease.n, lease.digest
