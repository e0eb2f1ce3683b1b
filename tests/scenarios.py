"""Ten scenarios of questions, graphs in graphs and time travel: what a caller does, turn by turn.

Worker processes of tests import this module for its graphs, which bear the scenarios' names. Their nodes know nothing
but their input: each runs the same in whichever process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from drawn import OURS, Drawn, Node, built, stops
from everstep_scheduler.graph.runtime import START
from turns import Turn


def chain(*nodes: Node) -> Drawn:
    """One after the other."""
    names = [START, *(node.name for node in nodes)]
    return Drawn(0, nodes, tuple(((before,), after) for before, after in pairwise(names)))


def wide(*nodes: Node) -> Drawn:
    """Side by side, then `end`."""
    names = [node.name for node in nodes]
    edges = [*(((START,), name) for name in names), (tuple(names), "end")]
    return Drawn(0, (*nodes, Node("end")), tuple(edges))


@dataclass(frozen=True)
class Scenario:
    """`killed`: the turn in which a worker dies in CI, at its so manieth task. In soak it dies in each turn."""

    drawing: Drawn
    turns: tuple[Turn, ...]
    killed: int = 1
    task: int = 2


A, B, C = Node("a"), Node("b"), Node("c")
ASKS, TWICE = Node("q", asks=("?",)), Node("q", asks=("?", "??"))
CHILD, ASKING = Node("child", inner=chain(Node("x"), Node("y"))), Node("child", inner=chain(Node("x"), ASKS, Node("y")))
STOPPING = Node("child", inner=replace(chain(Node("x"), Node("y")), before=("y",)))
INPUT, GO_ON, ANSWER = Turn("input", {"log": ["first"]}), Turn("go on"), Turn("answer all")

THERE, UPDATE = Turn("input", {"log": ["there"]}, back=2), Turn("update", {"log": ["u"]}, back=2, node="a")
COMMAND = Turn("command all", {"log": ["U"]}, goto=("c",))

SCENARIOS = {
    "asked": Scenario(chain(A, TWICE, B), (INPUT, ANSWER, ANSWER), killed=2),
    "asked_side_by_side": Scenario(wide(A, ASKS, Node("r", asks=("!",))), (INPUT, ANSWER)),
    "stopped": Scenario(replace(chain(A, B, C), before=("b",), after=("b",)), (INPUT, GO_ON, GO_ON), task=1),
    "commanded": Scenario(chain(A, ASKS, B, C), (INPUT, COMMAND)),
    "nested": Scenario(chain(A, CHILD, B), (INPUT,), killed=0, task=4),
    "nested_asks": Scenario(chain(A, ASKING, B), (INPUT, ANSWER)),
    "nested_stops": Scenario(wide(STOPPING, ASKS), (INPUT, GO_ON, ANSWER), task=1),
    "replayed": Scenario(wide(A, B), (INPUT, Turn("replay", back=2))),
    "input_there": Scenario(chain(A, ASKS, B), (INPUT, ANSWER, THERE, ANSWER), killed=2),
    "updated_there": Scenario(chain(A, B, C), (INPUT, UPDATE, GO_ON), killed=2),
}
GRAPHS = {name: built(OURS, each.drawing).compile(name=name, **stops(each.drawing)) for name, each in SCENARIOS.items()}
globals().update(GRAPHS)  # a worker is told `scenarios:asked`
