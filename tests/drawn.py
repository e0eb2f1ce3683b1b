"""Random graphs as plain data: drawn from a seed, built in LangGraph and in everstep alike, shown in words.

One graph mixes what there is: branches, loops, joins, deferred nodes, Sends, Commands, reducers, nodes that fail and
are tried again, handled or continued, questions, breakpoints, graphs in graphs. What a node does hangs on its input
alone, so both engines do the same. No LangGraph is imported here: worker processes of tests import this.
"""

from __future__ import annotations

import operator
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict

from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.handling import NodeError
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Command, Send

OURS = SimpleNamespace(
    StateGraph=StateGraph, Command=Command, Send=Send, interrupt=interrupt, Retry=RetryPolicy, Error=NodeError
)
LIMIT = 5  # supersteps; loops end there
SENDS_UNTIL = 15  # so long a log
DEPTH = 2  # of graphs in graphs


class State(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    best: Annotated[int, lambda a, b: max(a, b)]
    n: int


class OnlyBest(TypedDict, total=False):
    best: Annotated[int, lambda a, b: max(a, b)]


@dataclass(frozen=True)
class Node:
    """What a node does, in this order: asks, fails its first calls on an input, writes, goes somewhere."""

    name: str
    asks: tuple[str, ...] = ()
    fails: int = 0
    tries: int = 1
    handled: tuple[str, ...] = ()  # where its handler goes, by the length of the log; none: it has no handler
    counts: bool = False  # writes n, which takes one value a step
    goes: tuple[str, ...] = ()  # where its Command goes, by the length of the log; none: it returns an update
    sends: bool = False
    defer: bool = False
    inner: Drawn | None = None


@dataclass(frozen=True)
class Drawn:
    seed: int
    nodes: tuple[Node, ...]
    edges: tuple[tuple[tuple[str, ...], str], ...]
    routers: tuple[tuple[str, tuple[str, ...], bool], ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def stops(self) -> bool:
        return bool(self.before or self.after)

    def has(self, what: Callable[[Node], Any]) -> bool:
        """Is there such a node, here or in a graph in it?"""
        return any(bool(what(node)) or (node.inner is not None and node.inner.has(what)) for node in self.nodes)

    def __str__(self) -> str:
        """The graph in words, one node a line; what is as usual is left out."""
        lines = [f"graph of seed {self.seed}"]
        for node in self.nodes:
            told = {key: value for key, value in vars(node).items() if key not in ("name", "inner") and value}
            told = {key: value for key, value in told.items() if (key, value) != ("tries", 1)}
            lines.append(f"  {node.name} {told or ''}")
            lines += [f"    {line}" for line in str(node.inner).splitlines()[1:] if node.inner]
        lines += [f"  {' + '.join(sources)} -> {target}" for sources, target in self.edges]
        lines += [f"  {source} -> one of {ends}{' and Sends' * sends}" for source, ends, sends in self.routers]
        lines += [f"  stops before {name}" for name in self.before] + [f"  stops after {name}" for name in self.after]
        return "\n".join(lines)


# -- drawing

CHANCES = {
    "asks": 0.35, "fails": 0.3, "sends": 0.5, "goes": 0.3, "counts": 0.7, "stops": 0.4, "inner": 0.25, "defer": 0.3,
}  # fmt: skip


def drawn(seed: int, *never: str) -> Drawn:
    """The graph of a seed. `never`: which of CHANCES it must not have."""
    dice = random.Random(seed)
    return _drawn(dice, list("abcde")[: dice.randint(2, 5)], seed, DEPTH, frozenset(never))


def _drawn(dice: random.Random, names: list[str], seed: int, depth: int, never: frozenset[str]) -> Drawn:
    moods = {kind: dice.choice([0.0, 0.0, chance]) for kind, chance in CHANCES.items()}
    moods |= dict.fromkeys(never, 0.0)
    counts = dice.choice(names)
    nodes = tuple(_node(dice, name, names, moods, depth, never, counts == name) for name in names)
    edges: list[tuple[tuple[str, ...], str]] = [
        ((dice.choice([START, *names[:place]]),), name) for place, name in enumerate(names)
    ]
    for _ in range(dice.randint(0, 2)):
        edges.append((tuple(dice.sample(names, dice.randint(1, min(3, len(names))))), dice.choice([*names, END])))
    routers = [
        (source, (*dice.sample(names, min(2, len(names))), END), dice.random() < moods["sends"])
        for source in dice.sample([START, *names], dice.choice([0, 1, 2]))
    ]
    stops = [tuple(dice.sample(names, 1)) if dice.random() < moods["stops"] else () for _ in range(2)]
    return Drawn(seed, nodes, tuple(edges), tuple(routers), *stops)


def _node(
    dice: random.Random,
    name: str,
    names: list[str],
    moods: dict[str, float],
    depth: int,
    never: frozenset[str],
    counts: bool,
) -> Node:
    def comes(kind: str) -> bool:
        return dice.random() < moods[kind]

    ends = (*dice.sample(names, min(2, len(names))), END)
    made = Node(name, defer=comes("defer"))
    if comes("inner") and depth:
        deeper = never | {"defer"} | ({"stops"} if depth < DEPTH else set())  # LangGraph passes those: KNOWN
        inside = _drawn(dice, [f"{name}_{i}" for i in "abc"[: dice.randint(1, 3)]], 0, depth - 1, deeper)
        return replace(made, inner=inside)
    if comes("asks"):
        made = replace(made, asks=tuple(f"{name}{i}" for i in range(dice.choice([1, 1, 2]))))
    if comes("fails"):
        handled = ends if dice.random() < 0.4 else ()
        made = replace(made, fails=dice.choice([1, 1, 2]), tries=dice.choice([1, 1, 3]), handled=handled)
    made = replace(made, counts=counts and comes("counts"))
    return replace(made, goes=ends, sends=comes("sends")) if comes("goes") else made


# -- building


def built(lib: Any, drawing: Drawn, inside: bool = False) -> Any:
    """The builder of a graph, in one of the two libraries."""
    graph = lib.StateGraph(State, input_schema=OnlyBest, output_schema=State) if inside else lib.StateGraph(State)
    for node in drawing.nodes:
        options: dict[str, Any] = {"defer": True} if node.defer else {}
        if node.tries > 1:
            options["retry_policy"] = lib.Retry(
                initial_interval=0.0, jitter=False, max_attempts=node.tries, retry_on=ValueError
            )
        if node.handled:
            options["error_handler"] = _handler(lib, node)
        action = built(lib, node.inner, True).compile(**stops(node.inner)) if node.inner else _action(lib, node)
        graph.add_node(node.name, action, **options)
    for sources, target in drawing.edges:
        graph.add_edge(sources[0] if len(sources) == 1 else list(sources), target)
    for source, ends, sends in drawing.routers:
        graph.add_conditional_edges(source, _router(lib, source, ends, sends))
    return graph


def stops(drawing: Drawn) -> dict[str, Any]:
    """The breakpoints, as `compile` takes them."""
    return {"interrupt_before": list(drawing.before), "interrupt_after": list(drawing.after)}


def size_of(state: Any) -> int:
    return len(state.get("log", [])) if isinstance(state, dict) else 0


def mark_of(state: Any) -> int:
    return zlib.crc32(repr(shown(state)).encode()) % 10_000


def shown(value: Any) -> Any:
    """Values as JSON has them: LangGraph gives what was just written with its tuples."""
    if isinstance(value, dict):
        return {key: shown(each) for key, each in value.items() if key != "__interrupt__"}
    return [shown(each) for each in value] if isinstance(value, list | tuple) else value


def packets(lib: Any, name: str, state: Any, ends: tuple[str, ...], count: int) -> list[Any]:
    """Sends that differ from all others, also in `best`, all that a graph in the graph is given: which of two equal
    calls fails first is a matter of luck. Who was sent sends nothing, nor who has a long log: they would grow without
    end."""
    if "." in str(state.get("log", [""])[:1]) or size_of(state) > SENDS_UNTIL:
        return []
    names = [f"{name}{i}.{mark_of(state)}" for i in range(count)]
    return [
        lib.Send(end, {"log": [each], "best": mark_of(each)})
        for each, end in zip(names, ends, strict=False)
        if end != END
    ]


def _action(lib: Any, node: Node) -> Callable[[Any], Any]:
    failed: Counter[str] = Counter()

    def run(state: Any) -> Any:
        mark = mark_of(state)  # two tasks of a node ask two questions
        said = [node.name, *(lib.interrupt(f"{each} {mark}") for each in node.asks)] if node.asks else node.name
        size = size_of(state)
        if failed[repr(state)] < node.fails:
            failed[repr(state)] += 1
            raise ValueError(node.name)
        update = {"log": [said], "best": size, **({"n": size} if node.counts else {})}
        if not node.goes:
            return update
        more = packets(lib, node.name, state, node.goes, size % 3) if node.sends else []
        command = lib.Command(update=update, goto=[node.goes[size % 3 % len(node.goes)], *more])
        return [command, lib.Command(update={"log": ["again"]})] if size % 5 == 4 else command

    return run


def _handler(lib: Any, node: Node) -> Any:
    def handler(state: Any, error: Any) -> Any:
        goto = node.handled[size_of(state) % len(node.handled)]
        return lib.Command(update={"log": [f"{error.node} is handled at {size_of(state)}"]}, goto=goto)

    handler.__annotations__["error"] = lib.Error  # LangGraph looks at the annotation as it stands
    return handler


def _router(lib: Any, source: str, ends: tuple[str, ...], sends: bool) -> Callable[[Any], Any]:
    def route(state: Any) -> Any:
        size = size_of(state)
        more = packets(lib, source, state, ends, size % 3) if sends else []
        return [ends[size % len(ends)], ends[size % 2 % len(ends)], *more]

    return route
