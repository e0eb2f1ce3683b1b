"""A thread's log as a story: its entries, its steps, the tasks that each step names, and the state at each checkpoint.

    0-1 run_started        Part(0): facts before the first checkpoint
    1-0 checkpoint         Part(1): the checkpoint, the facts that came while it was the last one, its tasks, its state
    1-1 task_done ...

What can't be read is told as `broken`, and the story ends there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from everstep_checkpoint.codec import MALFORMED
from everstep_checkpoint.entries import Entry, entry_id, read_entry
from everstep_checkpoint.errors import EverstepError

from .evidence import Stream
from .folding import Ref, delta_of, k_of, plain, refs, stepped, whole

OUTCOMES = ("task_done", "task_failed", "task_paused", "task_called")
GIVEN_UP = ("input", "update", "fork")
JOIN = "join"


class Named(NamedTuple):
    """A task that a step names. `arg`: what a Send brings, else None."""

    task: str
    node: str
    arg: Any = None


@dataclass
class Part:
    """A step: the checkpoint that opened it (none before the first), its tasks in task order, and its facts."""

    n: int
    checkpoint: Entry | None = None
    tasks: list[Named] = field(default_factory=list[Named])
    facts: list[Entry] = field(default_factory=list[Entry])
    state: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """Its tasks, with those that were added to it."""
        added = [fact for fact in self.facts if fact.kind == "task_added"]
        return [*(each.task for each in self.tasks), *(fact.text("task") for fact in added if "task" in fact.raw)]


@dataclass
class Story:
    """One thread."""

    thread: str
    stream: Stream
    entries: list[Entry] = field(default_factory=list[Entry])
    parts: list[Part] = field(default_factory=list[Part])
    birth: str = ""
    broken: str = ""

    @property
    def head(self) -> Part | None:
        return self.parts[-1] if self.parts else None

    def find(self, ref: Ref, closing: int) -> Entry:
        """The fact that checkpoint `closing` names: k of a step it closes, or a full id. Raises LookupError.

        A run begins with two checkpoints at once, and the second names facts from before the first.
        """
        wanted = [ref] if isinstance(ref, str) else [f"{closing - 1}-{ref}", f"{closing - 2}-{ref}"]
        for each in wanted:
            for entry in self.facts_of(entry_id(each)[0]):
                if entry.k == k_of(each):
                    return entry
        raise LookupError(f"there is no fact {ref} before checkpoint {closing}")

    def facts_of(self, n: int) -> Iterable[Entry]:
        """The facts of a step."""
        return next((part.facts for part in reversed(self.parts) if part.n == n), ())

    def sums_of(self, checkpoint: Entry) -> list[str]:
        """The sums that its digest covers."""
        named: list[Ref] = [*refs(delta_of(checkpoint)), *(row[0] for row in checkpoint.next if len(row) == 2)]
        named += checkpoint.json("parts") or []
        return [self.find(ref, checkpoint.n).text("sum") for ref in named]


def story_of(thread: str, stream: Stream) -> Story:
    """Read a log to its end, or to what can't be read."""
    story = Story(thread, stream, parts=[Part(0)])
    for row, fields in stream.rows:
        try:
            _take(story, read_entry(row, fields))
        except (EverstepError, *MALFORMED) as error:  # type: ignore[misc]
            story.broken = f"entry {row} can't be read: {error}"
            break
    return story


def _take(story: Story, entry: Entry) -> None:
    story.entries.append(entry)
    story.birth = entry.text("birth") or story.birth
    if not entry.is_checkpoint:
        story.parts[-1].facts.append(entry)
        return
    before = story.parts[-1].state

    def find(ref: Ref) -> Entry:
        return story.find(ref, entry.n)

    state = whole(entry, find)
    if state is None:  # a branch is a snapshot, so a delta always goes on from the one before
        state = stepped(before or {}, entry, find)
    story.parts.append(Part(entry.n, entry, _tasks(story, entry), state=state))


def _tasks(story: Story, checkpoint: Entry) -> list[Named]:
    found: list[Named] = []
    for row in checkpoint.next:
        if len(row) == 4:
            found.append(Named(str(row[0]), str(row[1])))
        else:
            found += sent(story.find(str(row[0]), checkpoint.n))
    return found


def sent(part: Entry) -> list[Named]:
    """The tasks of a part: its Sends, in order."""
    given = part.sends()
    return [Named(f"s{part.k}_{i}", node, plain(stored)) for i, (node, stored) in enumerate(given)]
