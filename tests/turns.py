"""What a caller does with a graph, turn by turn, and what is then seen of it: the same words for both libraries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from drawn import LIMIT, shown

Config = dict[str, Any]


def on(thread: str) -> Config:
    return {"configurable": {"thread_id": thread}, "recursion_limit": LIMIT}


@dataclass(frozen=True)
class Turn:
    """What a caller does. `back`: so many checkpoints before the last one."""

    how: str
    data: Any = None
    to: dict[Any, Any] = field(default_factory=dict[Any, Any])  # answers to all questions with these values
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
    if turn.how.endswith(" all"):
        turn = replace(turn, to={each.value: index for index, each in enumerate(graph.get_state(config).interrupts)})
    if turn.how == "resume":
        return lib.Command(resume=turn.data)
    if not turn.to and not turn.how.startswith("command"):
        return turn.data
    asked = graph.get_state(config).interrupts if turn.to else ()
    resume = {each.id: turn.to[each.value] for each in asked if each.value in turn.to} or None
    return lib.Command(resume=resume, update=turn.data, goto=turn.goto)


def _at(graph: Any, config: Config, turn: Turn) -> Config:
    if turn.back is None:
        return config
    found = list(graph.get_state_history(config))
    return {**found[min(turn.back, len(found) - 1)].config, "recursion_limit": LIMIT}
