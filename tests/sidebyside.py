"""One story in both: what a caller does with a drawn graph, turn by turn, and what each of the two shows of it.

KNOWN: where LangGraph does what it should not, or what it does is a matter of luck. Such shapes are left out of the
stories, or a story ends there; tests with both sides are in test_known.py and test_defects.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver as OracleSaver

from drawn import LIMIT, OURS, THEIRS, Drawn, built, shown, stops
from everstep_scheduler.graph.runtime import END

Config = dict[str, Any]
TURNS = 3


def on(thread: str) -> Config:
    return {"configurable": {"thread_id": thread}, "recursion_limit": LIMIT}


@dataclass(frozen=True)
class Turn:
    """What a caller does. `back`: so many checkpoints before the last one."""

    how: str
    data: Any = None
    to: dict[Any, Any] = field(default_factory=dict[Any, Any])  # answers to the questions with these values
    goto: tuple[str, ...] = ()
    back: int | None = None
    node: str | None = None

    def __str__(self) -> str:
        said = {key: value for key, value in vars(self).items() if key != "how" and value not in (None, {}, ())}
        return f"{self.how} {said or ''}"


# -- what is seen


def waiting(found: Any) -> list[Any]:
    """What is asked. LangGraph's order is that of the threads, ours that of the tasks."""
    return sorted((each.value for each in found), key=repr)


def told(mode: str, chunk: Any) -> str:
    """A chunk in words. KNOWN: of a handler LangGraph does not say that it was done, for it runs it again."""
    handled = any(key.startswith("__error_handler__") for key in chunk)
    said = {key: value for key, value in chunk.items() if not (handled and key == "__metadata__")}
    return repr((mode, shown(said), waiting(chunk.get("__interrupt__", ()))))


def history(graph: Any, config: Config) -> list[tuple[Any, ...]]:
    """(source, step, next, values, the place of what it builds on) of each checkpoint, newest first."""
    found = list(graph.get_state_history(config))
    ids = [each.config["configurable"]["checkpoint_id"] for each in found]
    rows: list[tuple[Any, ...]] = []
    for snap in found:
        named = (snap.parent_config or {"configurable": {}})["configurable"].get("checkpoint_id")
        parent = None if named is None else len(ids) - ids.index(named)
        rows.append((snap.metadata["source"], snap.metadata["step"], sorted(snap.next), shown(snap.values), parent))
    return rows


def state_of(graph: Any, config: Config) -> tuple[Any, ...]:
    found = graph.get_state(config)
    return shown(found.values), sorted(found.next), waiting(found.interrupts)


@dataclass(frozen=True)
class Seen:
    """How a turn ended, and what was streamed, a multiset a superstep. Of the one that failed nothing: what was told of
    it is a matter of luck."""

    end: str
    steps: tuple[tuple[str, ...], ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"    {self.end}", *(f"    - {chunk}" for step in self.steps for chunk in (*step, "."))])


# -- what is done


def take(lib: Any, graph: Any, config: Config, turn: Turn, **more: Any) -> Seen:
    """One turn, in one of the two."""
    steps: list[list[str]] = [[]]
    try:
        if turn.how == "update":
            graph.update_state(_at(graph, config, turn), turn.data, as_node=turn.node)
            return Seen("done")
        given = _given(lib, graph, config, turn)
        for mode, chunk in graph.stream(given, _at(graph, config, turn), stream_mode=["updates", "values"], **more):
            if list(chunk.values()) != [None]:  # so LangGraph tells a node that asked, failed, and was handled
                steps[-1].append(told(mode, chunk))
            if mode == "values" and "__interrupt__" not in chunk:
                steps.append([])
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        return Seen(name_of(error), tuple(tuple(sorted(step)) for step in steps[:-1]))
    return Seen("done", tuple(tuple(sorted(step)) for step in steps))


def name_of(error: Exception) -> str:
    """The type that was raised, wherever that was."""
    full: str = getattr(error, "error_type", "") or type(error).__name__
    return full.rpartition(".")[2]


def _given(lib: Any, graph: Any, config: Config, turn: Turn) -> Any:
    if turn.how == "resume":
        return lib.Command(resume=turn.data)
    if not turn.to and turn.how != "command":
        return turn.data
    ids = {each.value: each.id for each in graph.get_state(config).interrupts} if turn.to else {}
    resume = {ids[question]: answer for question, answer in turn.to.items()} or None
    return lib.Command(resume=resume, update=turn.data, goto=turn.goto)


def _at(graph: Any, config: Config, turn: Turn) -> Config:
    if turn.back is None:
        return config
    found = list(graph.get_state_history(config))
    return {**found[min(turn.back, len(found) - 1)].config, "recursion_limit": LIMIT}


class Teller:
    """Says what comes next, by dice and by what our graph asks; both are told the same."""

    def __init__(self, drawing: Drawn) -> None:
        self.dice = random.Random(f"turns of {drawing.seed}")
        mood = self.dice.random()
        handled, asks = drawing.has(lambda node: node.handled), drawing.has(lambda node: node.asks)
        self.commands = mood < 0.25 and not handled  # KNOWN: a handler runs again, and sees the update
        self.travels = mood > 0.75
        plain = [node.name for node in drawing.nodes if not (node.asks or node.inner or node.defer)]
        self.goes = plain  # KNOWN: what a Command adds and asks is not in LangGraph's state; it defers what is deferred
        self.names = [None, *(node.name for node in drawing.nodes)]
        ways = ["replay", "input", "update", "copy"]
        ways += [] if handled else ["clear"]  # KNOWN: a clear takes what handlers wrote
        self.ways = ways if asks or drawing.before or drawing.after else [*ways, "as input"]

    def turns(self, graph: Any, config: Config) -> Iterator[Turn]:
        yield Turn("input", {"log": ["first"]})
        for turn in range(1, TURNS):
            yield self._next(graph, config, turn)

    def _next(self, graph: Any, config: Config, turn: int) -> Turn:
        if self.dice.random() < 0.15:
            return Turn("input", {"log": [f"input {turn}"]})
        if self.travels and self.dice.random() < 0.6:
            return self._travel()
        asked = waiting(graph.get_state(config).interrupts)
        some = asked and self.dice.random() < 0.9
        picked = self.dice.sample(asked, self.dice.randint(1, len(asked))) if some else []
        to = {each: self.dice.randint(0, 9) for each in picked}
        if self.commands:
            return self._command(to, turn)
        return Turn("answer", to=to) if to else Turn("go on")

    def _command(self, to: dict[Any, Any], turn: int) -> Turn:
        update = self.dice.choice([None, {"log": [f"U{turn}"]}])
        goto = tuple(self.dice.sample(self.goes, min(len(self.goes), self.dice.choice([0, 0, 1, 2]))))
        return Turn("command", update, to, goto) if to or update or goto else Turn("go on")

    def _travel(self) -> Turn:
        back, way = self.dice.randrange(6), self.dice.choice(self.ways)
        match way:
            case "replay":
                return Turn("replay", back=back)
            case "input":
                return Turn("input", {"log": ["there"]}, back=back)
            case "update":
                # KNOWN: to LangGraph what an update wrote in a waiting task's name, on another branch, is that task's
                self.ways = [each for each in self.ways if each != "clear"]
                return Turn("update", {"log": ["u"]}, back=back, node=self.dice.choice(self.names))
            case "clear":
                return Turn("update", back=back, node=END)
            case "copy":
                return Turn("update", back=back, node="__copy__")
            case _:
                return Turn("update", {"log": ["i"]}, back=back, node="__input__")


# -- both


@dataclass
class Story:
    """A drawn graph in both, and what was done with it. `ours` is compiled, or a remote graph."""

    drawing: Drawn
    ours: Any
    config: Config
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    script: Sequence[Turn] = ()  # else what the dice say
    turns: list[Turn] = field(default_factory=list[Turn])

    def __post_init__(self) -> None:
        self.theirs: Any = built(THEIRS, self.drawing).compile(checkpointer=OracleSaver(), **stops(self.drawing))
        self.teller = Teller(self.drawing)

    def tell(self) -> None:
        """To its end, or to where LangGraph goes astray. Raises AssertionError, which shows graph and difference."""
        for turn in self.script or self.teller.turns(self.ours, self.config):
            self.turns.append(turn)
            mine = take(OURS, self.ours, self.config, turn, **self.more)
            his = take(THEIRS, self.theirs, self.config, turn, **({} if turn.how == "update" else SYNC))
            if self._astray(mine, his):
                return
            mine, his = self._likened(mine, his)
            self._same("what is told", mine, his)
            if not (self.teller.commands or self.teller.travels or self.drawing.has(lambda n: n.fails or n.inner)):
                # KNOWN: of what failed it shows the questions that were answered, and those of graphs that then stopped
                self._same("the state", state_of(self.ours, self.config), state_of(self.theirs, self.config))
        self._same("the history", history(self.ours, self.config), history(self.theirs, self.config))

    def _astray(self, mine: Seen, his: Seen) -> bool:
        """Is LangGraph's thread as ours can't be? KNOWN, each."""
        nested, failed = self.drawing.has(lambda node: node.inner), "done" not in (mine.end, his.end)
        if nested and failed and mine.end != his.end:
            return True  # two failed at once: which error is raised is a matter of luck
        if nested and his.end == "GraphRecursionError" and mine != his:
            # it raises where a run ends in the very step of its limit: here that of a graph in the graph
            return mine.steps[: len(his.steps)] == his.steps
        if his.end == "InvalidUpdateError":
            # it puts writes together although others still wait; and what ran for a join and an edge at once is to it
            # two nodes, for which an update can't speak
            ambiguous = self.turns[-1].how == "update"
            return mine.end == his.end or (mine.end == "done" and (ambiguous or not self._is_over()))
        return False

    def _likened(self, mine: Seen, his: Seen) -> tuple[Seen, Seen]:
        """Without what is not to be the same. KNOWN, each."""
        if any(turn.node == "__input__" for turn in self.turns):
            mine, his = Seen(mine.end), Seen(his.end)  # beside an input that waits it tells values in another order
        if (mine.end, his.end) == ("done", "GraphRecursionError") and self._is_over():
            mine, his = Seen("done", mine.steps[: len(his.steps)]), Seen("done", his.steps)
        if his.steps and his.steps[-1] == ("('updates', {}, [])",) and self._is_over():
            his = Seen(his.end, (*his.steps[:-1], ()))  # a breakpoint behind the last node
        return mine, his

    def _is_over(self) -> bool:
        return not self.ours.get_state(self.config).next

    def _same(self, what: str, mine: Any, his: Any) -> None:
        if mine == his:
            return
        turns = "\n".join(f"  {turn}" for turn in self.turns)
        if isinstance(mine, list):
            pairs = list(zip([*mine[::-1], *[None] * 99], [*his[::-1], *[None] * 99], strict=False))
            said = "\n".join(f"  ours   {a}\n  theirs {b}" for a, b in pairs if a != b)
        else:
            said = f"  ours\n{mine}\n  theirs\n{his}"
        raise AssertionError(f"{what} differs, turn {len(self.turns)}\n{self.drawing}\nturns\n{turns}\n{said}")


SYNC = {"durability": "sync"}
