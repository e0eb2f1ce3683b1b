"""Promises of reading on from a checkpoint that is known: whatever happened to the log since, it comes to what reading
all of it comes to, a state or an error. Each on a log that is not signed, and on one that is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint import readingon, replay
from everstep_checkpoint.codec import pack
from everstep_checkpoint.delta import SET, TAKE, encode_state
from everstep_checkpoint.errors import EverstepError
from everstep_checkpoint.log import MemoryLog
from everstep_scheduler.moves.contract import LEASE_MS, Lease
from everstep_scheduler.steps.loading import Loader, Stand
from signed import keyring

NOBODY = Lease("token", "t", 0, "", "n", "n", 1, 0, "g", 0, "r", "g", 1, "", "", "", -2, LEASE_MS, 0, "")
SAID: dict[str, Any] = {"source": "loop", "step": 0, "graph": "g@1", "run": "r", "next": '[["p0","n","g",0]]'}
KNOWN = 3


class Story(MemoryLog):
    """The log of the thread `t`, and who may write into Redis. Counts reads from the end on, as `state_at` reads."""

    anew = 0
    birth = ""
    index = (0, "")

    def read(self, *args: Any, reverse: bool = False, **named: Any) -> list[e.Entry]:
        self.anew += reverse
        return super().read(*args, reverse=reverse, **named)

    @property
    def at(self) -> tuple[int, str]:
        return self._heads["t"]

    @property
    def lease(self) -> Lease:
        """Of the last checkpoint, as the index has it, whatever became of the log."""
        return NOBODY._replace(n=self.index[0], digest=self.index[1], birth=self.birth)

    @property
    def kept(self) -> list[e.Entry]:
        return self._logs["t"]

    def begins(self, birth: str) -> None:
        self.birth = birth
        self.append("t", [e.fact("run_started", "r", kind_of_run="invoke", birth=birth, record=e.wrap(b"\x80"))], None)

    def adds(self, word: str, count: int = 1, sums: tuple[str, ...] = (), **fields: Any) -> None:
        """Checkpoints that set `x`, or say what `fields` do."""
        for i in range(count):
            n, digest = self.at
            said = fields or {"delta": e.wrap(pack({"x": [SET, pack(f"{word} {i}")]}))}
            self.append("t", [e.checkpoint(digest, n + 1, sums, **SAID, **said)], self.at)
            self.index = self.at

    def joins(self, word: str) -> None:
        """A step of two tasks, whose writes the next checkpoint takes."""
        done = [
            e.summed(e.fact("task_done", "r", task=f"p{i}", writes=e.pack_writes([(name, pack(word))])))
            for i, name in enumerate("xy")
        ]
        first, second = [e.entry_id(at)[1] for at in self.append("t", done, self.at)]
        delta = e.wrap(pack({"x": [TAKE, first, "x", []], "y": [TAKE, second, "y", []]}))
        self.adds(word, sums=tuple(str(fact["sum"]) for fact in done), delta=delta)

    def whole(self, word: str, **fields: Any) -> None:
        """A snapshot; with a `parent` a branch."""
        n, digest = self.at
        state = e.wrap(encode_state({"x": pack(word)}))
        said = {"state": state, "birth": self.birth, "floor": f"{n + 1}-0", "parent": digest, **fields}
        made = e.checkpoint(said["parent"].split(" ")[-1], n + 1, **SAID, **said)
        self.append("t", [made], self.at)
        self.index = self.at

    def rewinds(self, n: int) -> None:
        """As a failover, or a file cut short, leaves it."""
        self._logs["t"] = [x for x in self.kept if (x.n, x.k) <= (n, 0)]
        self._heads["t"] = (n, self.kept[-1].digest)

    def loses(self, at: str) -> None:
        self._logs["t"] = [x for x in self.kept if x.id != at]

    def changed(self, entry: str, /, **fields: bytes) -> None:
        """By hand: an entry says something else."""
        self._logs["t"] = [e.Entry(x.n, x.k, {**x.raw, **fields}) if x.id == entry else x for x in self.kept]


OTHER = e.wrap(pack({"x": [SET, pack("by hand")]}))


def nothing_else(log: Story) -> None:
    log.adds("more")


def several(log: Story) -> None:
    log.adds("more", 4)


def a_join(log: Story) -> None:
    log.joins("more")


def joins_and_others(log: Story) -> None:
    log.joins("more")
    log.adds("more", 2)
    log.joins("most")


def facts_that_nothing_takes(log: Story) -> None:
    log.append("t", [e.fact("note", "r", text="by hand")], log.at)
    log.adds("more")


def a_snapshot(log: Story) -> None:
    log.whole("more")
    log.adds("most")


def a_snapshot_further_on(log: Story) -> None:
    log.adds("more")
    log.whole("most")


def a_branch(log: Story) -> None:
    log.whole("branch", parent=f"t 1 {log.kept[1].digest}")
    log.adds("more")


def trimmed(log: Story, more: int = 1) -> None:
    """The snapshot is the third one behind the known checkpoint."""
    log.adds("more", 2)
    log.whole("whole")
    log.trim("t", f"{KNOWN + more}-0")
    log.adds("more")


def trimmed_past_the_next_one(log: Story) -> None:
    trimmed(log, 2)


def trimmed_up_to_a_snapshot(log: Story) -> None:
    trimmed(log, 3)


def another_way(log: Story) -> None:
    log.rewinds(KNOWN - 1)
    log.adds("another way", 2)


def another_way_by_a_join(log: Story) -> None:
    log.rewinds(KNOWN - 1)
    log.adds("another way")
    log.joins("another way")


def another_way_and_a_snapshot(log: Story) -> None:
    log.rewinds(KNOWN - 1)
    log.adds("another way")
    log.whole("another way")
    log.adds("more")


def back_and_the_same_way(log: Story) -> None:
    log.adds("lost", 2)
    log.rewinds(KNOWN)
    log.adds("more", 2)


def begun_anew(log: Story) -> None:
    log.delete("t")
    log.begins("another birth")
    log.adds("another thread", KNOWN + 1)


def begun_anew_in_the_same_words(log: Story) -> None:
    log.delete("t")
    log.begins("another birth")
    log.adds("one", KNOWN)
    log.adds("more")


def the_next_one_changed(log: Story) -> None:
    log.adds("more", 2)
    log.changed(f"{KNOWN + 1}-0", delta=OTHER)


def the_next_one_with_another_digest(log: Story) -> None:
    log.adds("more")
    log.changed(f"{KNOWN + 1}-0", digest=b"another" * 6)


def the_next_one_with_words_that_are_none(log: Story) -> None:
    log.adds("more", 2)
    log.changed(f"{KNOWN + 1}-0", token=b"\xff\xfe")


def a_later_one_changed(log: Story) -> None:
    log.adds("more", 3)
    log.changed(f"{KNOWN + 2}-0", delta=OTHER)


def of_a_lost_way(log: Story, at: str) -> None:
    """By hand: what stood there before a rewind, as it was signed, is put in place of what stands there now."""
    log.adds("lost", 3)
    lost = {x.id: dict(x.raw) for x in log.kept}
    log.rewinds(KNOWN)
    log.adds("more", 3)
    log.changed(at, **lost[at])


def the_next_one_of_a_lost_way(log: Story) -> None:
    of_a_lost_way(log, f"{KNOWN + 1}-0")


def a_later_one_of_a_lost_way(log: Story) -> None:
    of_a_lost_way(log, f"{KNOWN + 2}-0")


def a_later_one_that_is_no_delta(log: Story) -> None:
    log.adds("more", 3)
    log.changed(f"{KNOWN + 2}-0", delta=e.wrap(b"\x93"))


def the_last_one_without_tasks(log: Story) -> None:
    log.adds("more", 2)
    log.changed(f"{KNOWN + 2}-0", next=b"7")


def a_later_one_missing(log: Story) -> None:
    log.adds("more", 3)
    log.loses(f"{KNOWN + 2}-0")


def the_next_one_missing(log: Story) -> None:
    log.adds("more", 2)
    log.loses(f"{KNOWN + 1}-0")


def a_fact_missing(log: Story) -> None:
    log.joins("more")
    log.loses(f"{KNOWN}-1")


def a_fact_changed(log: Story) -> None:
    log.joins("more")
    log.changed(f"{KNOWN}-1", writes=e.pack_writes([("x", pack("by hand"))]))


def a_snapshot_of_another_birth(log: Story) -> None:
    log.whole("more")
    log.changed(f"{KNOWN + 1}-0", birth=b"another")


def gone(log: Story) -> None:
    log.adds("more")
    log.delete("t")


ON, ANEW, FORGED = "read on", "read anew", "read on; where entries are signed, read anew"
TALES: list[tuple[Callable[[Story], None], str]] = [
    (nothing_else, ON),
    (several, ON),
    (a_join, ON),
    (joins_and_others, ON),
    (facts_that_nothing_takes, ON),
    (a_snapshot, ON),
    (a_snapshot_further_on, ON),
    (a_branch, ON),
    (trimmed, ON),
    (trimmed_past_the_next_one, ANEW),
    (trimmed_up_to_a_snapshot, FORGED),
    (another_way, ANEW),
    (another_way_by_a_join, ANEW),
    (another_way_and_a_snapshot, FORGED),
    (back_and_the_same_way, ON),
    (begun_anew, ANEW),
    (begun_anew_in_the_same_words, ANEW),
    (the_next_one_changed, ANEW),
    (the_next_one_with_another_digest, ANEW),
    (the_next_one_with_words_that_are_none, ANEW),
    (a_later_one_changed, FORGED),
    (the_next_one_of_a_lost_way, FORGED),
    (a_later_one_of_a_lost_way, FORGED),
    (a_later_one_that_is_no_delta, ANEW),
    (the_last_one_without_tasks, FORGED),
    (a_later_one_missing, ANEW),
    (the_next_one_missing, ANEW),
    (a_fact_missing, ANEW),
    (a_fact_changed, FORGED),
    (a_snapshot_of_another_birth, ANEW),
    (gone, ANEW),
]


def come_to(loader: Loader, lease: Lease) -> Stand | str:
    try:
        return loader.stand(lease)
    except EverstepError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("page", [256, 2], ids=["a page", "several pages"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("tale", "how"), TALES, ids=[tale.__name__ for tale, _ in TALES])
def test_reading_on_comes_to_what_reading_all_of_it_does(
    tale: Callable[[Story], None], how: str, signed: bool, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "PAGE", page)
    monkeypatch.setattr(readingon, "PAGE", page)
    log = Story(keyring() if signed else None)
    log.begins("birth")
    log.adds("one", KNOWN)
    loader = Loader(log)
    loader.stand(log.lease)
    tale(log)
    log.anew = 0
    came_to = come_to(loader, log.lease)
    assert ("read anew" if log.anew else "read on") == (how if how != FORGED else ANEW if signed else ON)
    assert came_to == come_to(Loader(log), log.lease)
