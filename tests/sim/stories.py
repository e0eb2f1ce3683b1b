"""What is run: which graphs, and what their producers do meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from everstep_checkpoint.errors import InvalidResume, ServerError
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.limits import Limit, Limits
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.contract import Start
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.reading.questions import resume_of

from .graphs import (
    asking,
    chain,
    diamond,
    fan,
    flaky,
    handled,
    limited,
    loop,
    pair,
    paying,
    shaky_and_limited,
)
from .wire import FarLog, FarMoves, Wire
from .world import World

T = TypeVar("T")
NOBODY = Config.of(None)


class Producer:
    """Whoever submits, answers and cancels. It asks again, with the same ids, until it has an answer."""

    def __init__(self, world: World, store: Any, story: Story) -> None:
        self.world, self.store, self.story = world, store, story
        self.name, self.dead, self.stalled_until = "producer", False, 0.0
        self.ends = 0
        self.one = world.dice.randrange(3)  # of several threads; the same for who follows one that died
        self._wire = Wire(world, self)
        self.moves, self.log = FarMoves(self._wire), FarLog(self._wire, store)

    def local(self, now: float) -> float:
        return now

    def world_s(self, seconds: float) -> float:
        return seconds

    def ended(self) -> None:
        """A producer that dies is followed by one that sends the same again."""
        self.world.spawn(self.run, self)

    def run(self) -> None:
        self.story.tale(self)
        self.ends += 1

    def insist(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except ServerError:
                self.world.pause(0.3)

    def begin(self, thread: str, run: str, kind: Any = "input", limit_key: str = "", **config: Any) -> str:
        """A run; and what came of it."""
        said = {"configurable": {"limit_key": limit_key}} if limit_key else None
        data = {"seen": [run], "digest": run} if kind == "input" else None
        config = {"multitask_strategy": "enqueue", **config}
        start = start_of(self.story.spec, thread, run, data, Config.of(said, **config), kind)
        return self._sent(start)

    def _sent(self, start: Start) -> str:
        return self.insist(lambda: self.moves.start(start)).status

    def rested(self, thread: str) -> str:
        """Wait until a thread is at rest; how its run ended. Seen by other means than the store's calls."""
        while (t := self.world.model.threads[thread]).status == "running":
            self.world.pause(1.0)
        return t.status

    def cancels(self, thread: str, run: str) -> None:
        self.insist(lambda: self.moves.cancel(thread, run, "somebody"))

    def limits(self, limits: Limits) -> None:
        """Other limits hold from now on."""
        self.insist(lambda: self.moves.limit(self.story.spec.name, limits))

    def answers(self, thread: str) -> None:
        """Answer what is asked until nothing is."""
        for i in range(20):
            if self.rested(thread) != "interrupted":
                return
            self.insist(partial(self._answer, thread, f"answer-{i}"))

    def _answer(self, thread: str, run: str) -> None:
        t = self.world.model.threads[thread]
        asked = {x: rec.node for rec in t.open.values() for x in rec.asks.split()}
        if t.status == "running" or not asked:
            return
        question = self.world.dice.choice(sorted(asked))
        given = {question: f"for {asked[question]}"}
        told: Any = self.story.spec
        try:
            start = resume_of(
                self.log, thread, run, given, NOBODY, graph=told.name, queue=told.default_queue, codec=told.codec
            )
        except InvalidResume:
            return  # somebody else has answered it meanwhile: an earlier call of ours
        self.moves.start(start)


def one_run(producer: Producer) -> None:
    producer.begin("t", "r1")


def same_run_twice(producer: Producer) -> None:
    """A run that is submitted again, while it runs and when it is over, is the same one."""
    producer.begin("t", "r1")
    producer.world.pause(producer.world.dice.choice((0.01, 2.0)))
    producer.begin("t", "r1")
    producer.rested("t")
    if (again := producer.begin("t", "r1")) != "attached":
        raise AssertionError(f"a known run was {again}")


def several_threads(producer: Producer) -> None:
    for i in range(3):
        producer.begin(f"t{i}", f"r{i}")


def two_threads(producer: Producer) -> None:
    producer.begin("t0", "r0")
    producer.begin("t1", "r1")


def keyed_threads(producer: Producer) -> None:
    """Two of three are counted together."""
    for i, key in enumerate(("x", "y", "x")):
        producer.begin(f"t{i}", f"r{i}", limit_key=key)


def limits_change(producer: Producer) -> None:
    """Limits get narrower and wider under those who hold slots and those who wait, and go."""
    several_threads(producer)
    for limit in (1, 3, None):
        producer.world.pause(producer.world.dice.choice((0.0, 0.1, 1.0, 5.0)))
        producer.limits({"api": Limit(limit)} if limit is not None else {})


def cancelled_in_line(producer: Producer) -> None:
    """One of those who hold a slot or wait is cancelled and continued."""
    several_threads(producer)
    producer.world.pause(producer.world.dice.choice((0.0, 0.05, 0.3)))
    producer.world.disturbed = True
    producer.cancels(f"t{producer.one}", f"r{producer.one}")
    producer.begin(f"t{producer.one}", "again", "continue")


def inputs_in_turn(producer: Producer) -> None:
    """Inputs on a busy thread wait for their turn."""
    for i in range(3):
        producer.begin("t", f"r{i}")
        producer.world.pause(producer.world.dice.choice((0.0, 0.1, 1.0)))


def answered(producer: Producer) -> None:
    producer.begin("t", "r1")
    producer.answers("t")


def cancelled_and_continued(producer: Producer) -> None:
    """Cancelled somewhere on its way, and continued, twice; in the end it gets there."""
    producer.begin("t", "r0")
    for i in range(2):
        producer.world.pause(producer.world.dice.choice((0.0, 0.05, 0.3, 3.0)))
        producer.world.disturbed = True
        producer.cancels("t", f"r{i}")
        producer.begin("t", f"r{i + 1}", "continue")


def taken_over(producer: Producer) -> None:
    """A second input stops the first one's run, wherever that is. Which of it stays depends on when."""
    producer.begin("t", "r0")
    producer.world.pause(producer.world.dice.choice((0.0, 0.05, 0.3)))
    producer.world.disturbed = True
    producer.begin("t", "r1", multitask_strategy="interrupt")


def stepped(producer: Producer) -> None:
    """Stops at breakpoints, and goes on each time."""
    producer.begin("t", "r0", interrupt_before="*")
    for i in range(1, 20):
        if producer.rested("t") != "interrupted":
            return
        producer.begin("t", f"r{i}", "continue", interrupt_before="*")


@dataclass(frozen=True)
class Story:
    """A graph and what is done with it. `fixed`: its outcome is the same whatever happens on the way.
    `small`: few processes do."""

    name: str
    graph: Callable[[], StateGraph]
    tale: Callable[[Producer], None]
    fixed: bool = True
    small: bool = False
    old: Callable[[], StateGraph] | None = None  # an earlier version, which lacks a node

    @cached_property
    def spec(self) -> GraphSpec:
        return self.graph().compile(name="g").spec

    @cached_property
    def graphs(self) -> Mapping[str, GraphSpec]:
        return {"g": self.spec}

    @cached_property
    def old_graphs(self) -> Mapping[str, GraphSpec]:
        return {"g": self.old().compile(name="g").spec} if self.old is not None else {}


def small(name: str, graph: Callable[[], StateGraph], tale: Callable[[Producer], None]) -> Story:
    return Story(name, graph, tale, small=True)


LARGE = (
    Story("chain", partial(chain, "a", "b", "c"), same_run_twice),
    Story("threads", partial(chain, "a", "b"), several_threads),
    Story("versions", partial(chain, "a", "b", "c"), one_run, fixed=False, old=partial(chain, "a", "b")),
    Story("turns", partial(chain, "a", "b"), inputs_in_turn),
    Story("fan", fan, one_run),
    Story("loop", loop, one_run),
    Story("diamond", diamond, one_run),
    Story("flaky", flaky, one_run),
    Story("asking", asking, answered),
    Story("handled", handled, one_run),
    Story("paying", paying, one_run),
    Story("cancelled", fan, cancelled_and_continued),
    Story("taken over", fan, taken_over, fixed=False),
    Story("stepped", diamond, stepped),
    Story("limited", partial(limited, 2, "api", "b"), several_threads),
    Story("limited siblings", partial(fan, 2), one_run),
    Story("limits change", partial(limited, 2, "api", "b"), limits_change),
    Story("cancelled in line", partial(limited, 1, "api"), cancelled_in_line),
    Story("limited by key", partial(limited, Limit(1, per_key=True), "api"), keyed_threads),
)
SMALL = (
    small("one", partial(chain, "a"), one_run),
    small("two", partial(chain, "a", "b"), one_run),
    small("pair", pair, one_run),
    small("twice", partial(chain, "a"), same_run_twice),
    small("one limited", partial(limited, 1, "api"), two_threads),
    small("one shaky", shaky_and_limited, two_threads),
    small("rate", partial(limited, Limit(rate=(1, 1.5)), "api"), two_threads),
)
SMALL_TURNS = 12
STORIES = LARGE + SMALL
# Which story a schedule is of, by its number: most are small, where the same faults come at fewer steps.
SCHEDULED = (*LARGE, *SMALL * SMALL_TURNS)
