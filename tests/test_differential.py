"""The engine against its oracle: random graphs go in everstep as in LangGraph, inline and on workers.

Each graph is drawn anew in each run. A test that finds a difference shows the graph, what was done with it, and the
seed. What LangGraph gets wrong, or leaves to luck, is left out of the stories, marked KNOWN there, and has tests of its
own: test_known.py, test_defects.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from drawn import CHANCES, OURS, Drawn, Node, built, drawn, stops
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.logmoves import LogMoves
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.reading.derive import derive
from servers import run_seed, soaked
from sidebyside import Story, patient_oracle
from test_interrupts import working
from test_subgraphs import sound
from turns import Turn, on

BATCHES, BATCH = 20, 100  # inline: 2,000 in each run of the tests
REDIS = 40
WORKERS, FLEET = 4, 50  # on workers: 200
TELLERS = 8
SOAK = 1000  # on each server


def seeds(what: str, count: int) -> Iterator[int]:
    dice = random.Random(f"{run_seed()} {what}")
    return (dice.randrange(2**31) for _ in range(count))


@pytest.fixture(autouse=True)
def oracle() -> Iterator[None]:
    with patient_oracle():
        yield


# -- as in LangGraph


@pytest.mark.parametrize("batch", range(BATCHES))
def test_drawn_graphs_go_as_in_langgraph(batch: int) -> None:
    for seed in seeds(f"inline {batch}", BATCH):
        told_inline(drawn(seed), InMemorySaver(), f"t{seed}")


def test_drawn_graphs_go_as_in_langgraph_on_redis(redis_url: str) -> None:
    saver = RedisSaver(redis_url)
    for seed in seeds("redis", REDIS):
        told_inline(drawn(seed), saver, f"t{seed}")


@pytest.mark.parametrize("batch", range(WORKERS))
def test_drawn_graphs_go_as_in_langgraph_on_workers(batch: int, redis_url: str) -> None:
    told_on_workers(redis_url, [drawn(seed) for seed in seeds(f"workers {batch}", FLEET)])


@pytest.mark.soak
def test_thousands_of_drawn_graphs_go_as_in_langgraph_on_workers(redis_url: str) -> None:
    every = [drawn(seed) for seed in seeds("soak", round(soaked(SOAK)))]
    for i in range(0, len(every), FLEET):
        told_on_workers(redis_url, every[i : i + FLEET])


def told_inline(drawing: Drawn, saver: Saver, thread: str, script: Sequence[Turn] = ()) -> None:
    ours = built(OURS, drawing).compile(checkpointer=saver, name="g", **stops(drawing))
    Story(drawing, ours, on(thread), script=script).tell()
    assert sound(saver.log, thread), f"the log is not sound\n{drawing}"
    if isinstance(saver.moves, LogMoves):
        indexes_are_what_the_log_says(saver, thread)


def told_on_workers(url: str, drawings: list[Drawn]) -> None:
    """One worker for all; several stories at once, for a retry waits for the next sweep. At the end nothing that waits
    holds a slot."""
    graphs = [built(OURS, each).compile(name=f"g{i}", **stops(each)) for i, each in enumerate(drawings)]
    with working(url, *graphs) as worker, connect(url) as client, ThreadPoolExecutor(TELLERS) as tellers:

        def tell(drawing: Drawn, graph: Any) -> None:
            thread = f"t{drawing.seed}"
            Story(drawing, client.graph(graph.name, graph), on(thread), {"timeout": 60}).tell()
            assert sound(client.log_store, thread), f"the log is not sound\n{drawing}"

        for each in [tellers.submit(tell, *pair) for pair in zip(drawings, graphs, strict=True)]:
            each.result()
        assert not worker.work.held


def indexes_are_what_the_log_says(saver: Saver, thread: str) -> None:
    moves = saver.moves
    assert isinstance(moves, LogMoves)
    kept, told = moves._threads[thread], derive(saver.log, thread)  # pyright: ignore[reportPrivateUsage]
    assert (kept.n, kept.digest, kept.step, kept.status, kept.run, kept.rec, kept.base) == (
        told.n, told.digest, told.step, told.status, told.run, told.rec, told.base
    )  # fmt: skip
    assert (kept.width, kept.left, kept.failed, sorted(kept.open)) == (
        told.width, told.left, told.failed, sorted(task.task for task in told.tasks)
    )  # fmt: skip


def graph(*nodes: Node, after: tuple[str, ...] = (), wide: bool = True) -> Drawn:
    """These nodes behind START, side by side or one after the other."""
    names = [START, *(node.name for node in nodes)]
    edges = tuple(((START if wide else names[i],), name) for i, name in enumerate(names[1:]))
    return Drawn(0, nodes, edges, after=after)


STOPS = replace(graph(Node("x"), Node("y"), wide=False), before=("y",))
HANDLED = Node("x", fails=1, handled=("y", "y", "y"))
INPUT, GO_ON = Turn("input", {"log": ["first"]}), Turn("go on")
ONCE: dict[str, tuple[Drawn, list[Turn]]] = {
    "a copy of an input goes on": (graph(Node("a")), [INPUT, Turn("update", back=2, node="__copy__"), GO_ON]),
    "an update of a copy of an input": (
        graph(Node("a"), Node("b")), [INPUT, Turn("update", back=2, node="__copy__"), Turn("update", {"log": ["u"]})],
    ),
    "an update after an input that waits beside an open task": (
        graph(Node("a"), Node("b"), wide=False),
        [INPUT, Turn("update", {"log": ["i"]}, back=2, node="__input__"), Turn("update", {"log": ["u"]})],
    ),
    "a replay of an input tells its values": (graph(Node("a")), [INPUT, Turn("replay", back=2)]),
    "a child stops, alone": (graph(Node("c", inner=STOPS)), [INPUT, GO_ON]),
    "two children stop": (graph(Node("c", inner=STOPS), Node("d", inner=STOPS)), [INPUT, GO_ON]),
    "a child stops beside what is done": (graph(Node("c", inner=STOPS), Node("s")), [INPUT, GO_ON]),
    "a child stops beside a question": (graph(Node("c", inner=STOPS), Node("q", asks=("?",))), [INPUT, GO_ON]),
    "a question beside a handler": (graph(HANDLED, Node("y"), Node("q", asks=("?",))), [INPUT]),
    "a stop after a node that was handled": (graph(HANDLED, Node("y"), after=("x",)), [INPUT, GO_ON]),
    "the same, alone": (graph(HANDLED, Node("y"), wide=False, after=("x",)), [INPUT, GO_ON]),
    "retries are counted from the last answer on": (
        graph(Node("x", asks=("?", "??"), fails=2, tries=3)), [INPUT, Turn("answer all"), Turn("answer all")],
    ),
    "the same, in a child": (
        graph(Node("c", inner=graph(Node("x", fails=1, handled=(END,)), after=("x",))), Node("s")), [INPUT, GO_ON],
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", ONCE)
def test_what_once_differed_goes_as_in_langgraph(shape: str) -> None:
    drawing, script = ONCE[shape]
    told_inline(drawing, InMemorySaver(), "t", script)


def test_a_difference_shows_the_graph_the_turns_and_the_seed() -> None:
    drawing = drawn(next(seeds("shown", 1)), *CHANCES)
    story = Story(drawing, built(OURS, graph(Node("odd"))).compile(InMemorySaver()), on("t"))
    with pytest.raises(AssertionError) as caught:
        story.tell()
    said = str(caught.value)
    assert f"graph of seed {drawing.seed}" in said and "__start__ -> a" in said
    assert "input {'data': {'log': ['first']}}" in said and "'odd': {'log': ['odd']" in said


@pytest.mark.parametrize("what", CHANCES)
def test_drawn_graphs_have_all_that_there_is(what: str) -> None:
    """And none of what they must not have."""

    def found(made: Drawn) -> bool:
        if what == "sends" and any(sends for *_, sends in made.routers):
            return True
        if what == "stops":
            return made.stops or any(node.inner is not None and found(node.inner) for node in made.nodes)
        return made.has(lambda node: getattr(node, what))

    some = list(seeds("shapes", 100))
    assert 5 < sum(found(drawn(seed)) for seed in some) < 95
    assert not any(found(drawn(seed, what)) for seed in some)
