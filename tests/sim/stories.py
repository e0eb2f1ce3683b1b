"""What is run: graphs whose result tells the order of their steps, and what their producers do meanwhile.

`digest` is folded over all that is written, so another order, a write that is lost or one too many gives another value.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, TypedDict, TypeVar

from everstep_checkpoint.errors import InvalidResume, ServerError
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.handling import NodeError
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Runtime, Send
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.contract import Start
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.reading.questions import resume_of

from .wire import FarLog, FarMoves, Wire
from .world import World

T = TypeVar("T")
NOBODY = Config.of(None)


def folded(before: str, new: str) -> str:
    return hashlib.sha1(f"{before}{new}".encode(), usedforsecurity=False).hexdigest()[:8] if new else before


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    digest: Annotated[str, folded]
    turns: int
    item: int


class Nodes:
    """The nodes of one schedule's graphs. They tell the world that they run."""

    def __init__(self) -> None:
        self.world: World | None = None

    def __call__(self, name: str, **more: Any) -> Callable[[State], State]:
        def node(state: State) -> State:
            self.runs()
            return wrote(name, **more)

        return node

    def runs(self) -> None:
        assert self.world is not None
        self.world.executes()


NODES = Nodes()
QUICK = RetryPolicy(initial_interval=0.5, max_attempts=50, jitter=False)


def wrote(name: str, **more: Any) -> State:
    return {"seen": [name], "digest": name, **more}  # type: ignore[typeddict-item]


def chain(*nodes: str) -> StateGraph:
    graph = StateGraph(State)
    for before, node in zip((START, *nodes), nodes, strict=False):
        graph.add_node(node, NODES(node))
        graph.add_edge(before, node)
    graph.add_edge(nodes[-1], END)
    return graph


def fan() -> StateGraph:
    graph = StateGraph(State)

    def work(state: State) -> State:
        NODES.runs()
        return wrote(f"work {state['item']}")

    graph.add_node("split", NODES("split"))
    graph.add_node("work", work)
    graph.add_node("last", NODES("last"))
    graph.add_edge(START, "split")
    graph.add_conditional_edges("split", lambda state: [Send("work", {"item": i}) for i in range(4)], ["work"])
    graph.add_edge("work", "last")
    return graph


def pair() -> StateGraph:
    graph = StateGraph(State)
    for node in "ab":
        graph.add_node(node, NODES(node))
        graph.add_edge(START, node)
    return graph


def loop() -> StateGraph:
    graph = StateGraph(State)

    def turn(state: State) -> State:
        NODES.runs()
        turns = state.get("turns", 0) + 1
        return wrote(f"turn {turns}", turns=turns)

    graph.add_node("turn", turn)
    graph.add_edge(START, "turn")
    graph.add_conditional_edges("turn", lambda state: "turn" if state["turns"] < 4 else END, ["turn", END])
    return graph


def diamond() -> StateGraph:
    graph = chain("a")
    for node in "bcd":
        graph.add_node(node, NODES(node))
    for node in "bc":
        graph.add_edge("a", node)
    graph.add_edge(["b", "c"], "d")
    return graph


def flaky() -> StateGraph:
    """`shaky` raises at its first two attempts, beside a sibling."""
    graph = chain("a")

    def shaky(state: State, runtime: Runtime[Any]) -> State:
        NODES.runs()
        if runtime.execution_info.node_attempt < 3:
            raise ConnectionError("not yet")
        return wrote("shaky")

    graph.add_node("shaky", shaky, retry_policy=QUICK)
    graph.add_node("b", NODES("b"))
    graph.add_node("last", NODES("last"))
    for node in ("shaky", "b"):
        graph.add_edge("a", node)
    graph.add_edge(["shaky", "b"], "last")
    return graph


def asking() -> StateGraph:
    """Two siblings ask, one of them twice."""
    graph = chain("a")

    def ask(name: str, times: int, state: State) -> State:
        NODES.runs()
        return wrote(" ".join([name, *(str(interrupt(f"{name} {i}?")) for i in range(times))]))

    for name, times in (("once", 1), ("twice", 2)):
        graph.add_node(name, partial(ask, name, times))
        graph.add_edge("a", name)
    graph.add_node("last", NODES("last"))
    graph.add_edge(["once", "twice"], "last")
    return graph


def handled() -> StateGraph:
    graph = chain("a")

    def bad(state: State) -> State:
        NODES.runs()
        raise ValueError("bad")

    def mend(state: State, error: NodeError) -> State:
        NODES.runs()
        return wrote(f"mended {error.node}")

    graph.add_node("bad", bad, error_handler=mend)
    graph.add_node("b", NODES("b"))
    for node in ("bad", "b"):
        graph.add_edge("a", node)
    return graph


def paying() -> StateGraph:
    """An effect before a failure: the retry must not do it again once it is recorded."""
    graph = StateGraph(State)

    def pay(state: State, runtime: Runtime[Any]) -> State:
        NODES.runs()
        receipt = once("charge", lambda: "paid")
        if runtime.execution_info.node_attempt < 2:
            raise ConnectionError("after it was paid")
        return wrote(str(receipt))

    graph.add_node("pay", pay, retry_policy=QUICK)
    graph.add_edge(START, "pay")
    return graph


class Producer:
    """Whoever submits, answers and cancels. It asks again, with the same ids, until it has an answer."""

    def __init__(self, world: World, store: Any, story: Story) -> None:
        self.world, self.store, self.story = world, store, story
        self.name, self.dead, self.stalled_until = "producer", False, 0.0
        self.ends = 0
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

    def begin(self, thread: str, run: str, kind: Any = "input", **config: Any) -> str:
        """A run; and what came of it."""
        data = {"seen": [run], "digest": run} if kind == "input" else None
        config = {"multitask_strategy": "enqueue", **config}
        start = start_of(self.story.spec, thread, run, data, Config.of(None, **config), kind)
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
    """A graph and what is done with it. `fixed`: its outcome is the same whatever happens on the way."""

    name: str
    graph: Callable[[], StateGraph]
    tale: Callable[[Producer], None]
    fixed: bool = True
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


SMALL = (
    Story("one", partial(chain, "a"), one_run),
    Story("two", partial(chain, "a", "b"), one_run),
    Story("pair", pair, one_run),
)
STORIES = (
    *SMALL,
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
)
