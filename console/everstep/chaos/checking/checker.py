"""The verdict: the laws I1 to I16, as far as a client log, a journal and the streams can show them.

    check(evidence) ──► Verdict(violations, runs, steps, lost, duplicated)

It imports nothing of the engine but how an entry's fields are read and hashed (see `everstep.chaos`). Not seen from
here: I14, recovery times, which are measured and are no law; I15, archives, which there are none of yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from everstep_checkpoint.codec import MALFORMED
from everstep_checkpoint.errors import EverstepError

from . import model
from .crossing import ALWAYS, OF_THE_SAMPLE, Case, missing
from .evidence import Evidence
from .laws import Violation, broken_in
from .stories import story_of


@dataclass(frozen=True)
class Verdict:
    """`runs`: acknowledged. `steps`: checkpoints. `executions`: of nodes, by the journal. `lost`: runs or acknowledged
    facts that are gone. `duplicated`: tasks that were done twice, or ran without need. `rewound`: acknowledged facts
    that a failover to a replica which was behind took back, as it may."""

    violations: tuple[Violation, ...]
    runs: int = 0
    steps: int = 0
    executions: int = 0
    losses: int = 0
    rewound: int = 0
    by_law: Counter[str] = field(default_factory=Counter[str])

    @property
    def sound(self) -> bool:
        return not self.violations

    @property
    def lost(self) -> int:
        return self.by_law["I1"] + self.by_law["I6"] + self.by_law["I9"]

    @property
    def duplicated(self) -> int:
        return self.by_law["I3"] + self.by_law["I4"] + self.by_law["I8"]


def case_of(evidence: Evidence) -> Case:
    """The evidence with every log read."""
    return Case(evidence, {thread: story_of(thread, stream) for thread, stream in evidence.dump.streams.items()})


def check(evidence: Evidence) -> Verdict:
    """Judge. Never raises for what a log holds: what can't be read is a violation."""
    return judge(case_of(evidence))


def judge(case: Case) -> Verdict:
    """`check`, where the logs are read already."""
    evidence, stories = case.evidence, case.stories
    found: list[Violation] = []
    for story in stories.values():
        found += _judged(partial(broken_in, story), story.thread)
        if evidence.sample:
            found += _judged(partial(model.astray, evidence.newer, story), story.thread)
    for law in (*ALWAYS, *(OF_THE_SAMPLE if evidence.sample else ())):
        found += _judged(partial(law, case), "")
    return Verdict(
        tuple(dict.fromkeys(found)),
        runs=len({(each.thread, each.run) for each in case.answered("submit")}),
        steps=sum(part.checkpoint is not None for story in stories.values() for part in story.parts),
        executions=sum(line.phase == "in" for line in evidence.ran),
        losses=sum(entry.kind == "task_lost" for story in stories.values() for entry in story.entries),
        rewound=sum(case.rewound(said.at) for _, said in missing(case)),
        by_law=Counter(each.law for each in dict.fromkeys(found)),
    )


def _judged(law: Callable[[], Iterator[Violation]], thread: str) -> list[Violation]:
    """What a law finds, and that it could not be asked, if it could not."""
    found: list[Violation] = []
    try:
        for each in law():
            found.append(each)
    except (EverstepError, AttributeError, *MALFORMED) as error:  # type: ignore[misc]
        found.append(Violation("I7", thread, f"the log says what nothing can be made of: {error}"))
    return found
