"""Keys of kinds of their own, and Overwrite, against LangGraph as the oracle; what a node can ask from anywhere."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict

import langgraph.channels
import langgraph.config
import langgraph.runtime
import langgraph.types
import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.graph import StateGraph as OracleGraph

import everstep
from everstep_checkpoint.errors import GraphError, InvalidUpdateError, OutsideNode
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.current import get_config, get_runtime
from everstep_scheduler.graph.functional import task
from everstep_scheduler.graph.kinds import AnyValue, EphemeralValue, Overwrite, Topic
from everstep_scheduler.graph.runtime import START, Send
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver

CONFIG: dict[str, Any] = {"configurable": {"thread_id": "t"}}
OURS = SimpleNamespace(
    StateGraph=StateGraph, Send=Send, AnyValue=AnyValue, EphemeralValue=EphemeralValue, Topic=Topic,
    Overwrite=Overwrite, get_config=get_config, get_runtime=get_runtime,
)  # fmt: skip
THEIRS = SimpleNamespace(
    StateGraph=OracleGraph, Send=langgraph.types.Send, AnyValue=langgraph.channels.AnyValue,
    EphemeralValue=langgraph.channels.EphemeralValue, Topic=langgraph.channels.Topic,
    Overwrite=langgraph.types.Overwrite, get_config=langgraph.config.get_config,
    get_runtime=langgraph.runtime.get_runtime,
)  # fmt: skip


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


def schema(api: Any) -> Any:
    make: Any = TypedDict
    keys = {
        "log": Annotated[list[Any], operator.add],
        "once": Annotated[str, api.EphemeralValue],
        "loose": Annotated[str, api.EphemeralValue(str, guard=False)],
        "any": Annotated[str, api.AnyValue],
        "topic": Annotated[list[str], api.Topic(str)],
        "kept": Annotated[list[str], api.Topic(str, True)],
        "plain": str,
    }
    return make("State", keys, total=False)


def chain(api: Any, saver: Any, *updates: Any) -> Any:
    """Nodes n0, n1, ... that say what they see, and write these updates."""
    built = api.StateGraph(schema(api))
    for i, update in enumerate(updates):

        def node(state: dict[str, Any], i: int = i, update: Any = update) -> dict[str, Any]:
            seen = {key: value for key, value in state.items() if key != "log"}
            return {"log": [[i, seen]], **update}

        built.add_node(f"n{i}", node)
        built.add_edge(f"n{i - 1}" if i else START, f"n{i}")
    return built.compile(checkpointer=saver)


def wide(api: Any, saver: Any, *updates: Any) -> Any:
    """Nodes n0, n1, ... beside each other, then `end`, which says what it sees."""
    built = api.StateGraph(schema(api))
    for i, update in enumerate(updates):
        built.add_node(f"n{i}", lambda state, update=update: update)
        built.add_edge(START, f"n{i}")
    built.add_node("end", lambda state: {"log": [{k: v for k, v in state.items() if k != "log"}]})
    built.add_edge([f"n{i}" for i in range(len(updates))], "end")
    return built.compile(checkpointer=saver)


def told(graph: Any, data: Any, **more: Any) -> list[Any]:
    try:
        chunks: Any = list(graph.stream(data, CONFIG, stream_mode=["values", "updates"], **more))
        updates = [chunk for chunk in chunks if chunk[0] == "updates"]  # of siblings in any order
        chunks = [[chunk for chunk in chunks if chunk[0] == "values"], sorted(updates, key=repr)]
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        chunks = type(error).__name__
    history = [(x.metadata["source"], x.metadata["step"], x.next, x.values) for x in graph.get_state_history(CONFIG)]
    return [_plain(chunks), history]


def _plain(value: Any) -> Any:
    """An Overwrite of either library as a tuple."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return ("overwrite", value.value) if type(value).__name__ == "Overwrite" else value


ALL = {"once": "o", "loose": "l", "any": "a", "topic": "t", "kept": ["k1", "k2"], "plain": "p"}
STORIES: dict[str, Any] = {
    "written by the first": (chain, [ALL, {}, {}], {"log": []}),
    "written by an input": (chain, [{}, {}, {}], {"log": [], **ALL}),
    "written again and again": (chain, [ALL, {"topic": ["x", "y"], "kept": "z"}, {"once": "again", "any": "b"}], {}),
    "nothing in a topic": (chain, [{"topic": [], "kept": []}, {"topic": ["x"]}, {"topic": []}], {}),
    "several at once": (wide, [{"any": "1", "topic": "1", "kept": "1", "loose": "1"},
                               {"any": "2", "topic": ["2", "3"], "kept": "2", "loose": "2"}], {}),
    "two that exclude each other": (wide, [{"once": "1"}, {"once": "2"}], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", STORIES)
def test_kinds_of_keys_go_as_in_langgraph(saver: Saver, name: str) -> None:
    shape, updates, data = STORIES[name]
    ours, theirs = shape(OURS, saver, *updates), shape(THEIRS, OracleSaver(), *updates)
    for given in (data, {"plain": "second run"}):
        assert told(ours, given) == told(theirs, given, durability="sync")


def overwriting(api: Any, saver: Any, *writes: Any) -> Any:
    updates = [{"log": api.Overwrite(each[1])} if isinstance(each, tuple) else {"log": each} for each in writes]
    return wide(api, saver, *updates)


@pytest.mark.parametrize("writes", [
    [("over", ["new"])], [["a"], ("over", ["new"]), ["b"]], [("over", [])], [("over", ["x"]), ("over", ["y"])],
])  # fmt: skip
def test_an_overwrite_replaces_what_the_reducer_made(saver: Saver, writes: list[Any]) -> None:
    ours, theirs = overwriting(OURS, saver, *writes), overwriting(THEIRS, OracleSaver(), *writes)
    for data in ({"log": ["old"]}, {"log": ["older"]}):
        assert told(ours, data) == told(theirs, data, durability="sync")


def test_an_update_may_overwrite_too(saver: Saver) -> None:
    found = [wide(OURS, saver, {"log": ["a"]}), wide(THEIRS, OracleSaver(), {"log": ["a"]})]
    for graph, api in zip(found, (OURS, THEIRS), strict=True):
        graph.invoke({"log": ["old"]}, CONFIG)
        graph.update_state(CONFIG, {"log": api.Overwrite(["new"])}, as_node="end")
    assert found[0].get_state(CONFIG).values == found[1].get_state(CONFIG).values == {"log": ["new"]}


def test_an_overwrite_is_plain_data_in_json(saver: Saver) -> None:
    graph = wide(OURS, saver, {"log": ["a"]})
    graph.update_state(CONFIG, {"log": ["old"]}, as_node="end")
    graph.update_state(CONFIG, {"log": {"__overwrite__": ["new"]}}, as_node="end")
    assert graph.get_state(CONFIG).values == {"log": ["new"]}


def test_two_schemas_must_agree_on_a_kind() -> None:
    class One(TypedDict, total=False):
        key: Annotated[str, EphemeralValue]

    class Other(TypedDict, total=False):
        key: Annotated[str, AnyValue]

    with pytest.raises(GraphError, match="gives the key 'key' another reducer"):
        StateGraph(One, input_schema=Other)


def test_what_excludes_each_other_says_how_to_combine_it() -> None:
    graph = wide(OURS, InMemorySaver(), {"once": "1"}, {"once": "2"})
    with pytest.raises(InvalidUpdateError, match=r"'once': EphemeralValue\(guard=True\) can take only one value"):
        graph.invoke({}, CONFIG)


# what a node can ask


def test_a_node_and_its_tasks_can_ask_for_config_and_runtime(saver: Saver) -> None:
    class State(TypedDict, total=False):
        seen: list[Any]

    @task
    def ask() -> list[Any]:
        return [get_config()["configurable"]["thread_id"], get_runtime().context]

    def node(state: State) -> State:
        return {
            "seen": [get_config()["metadata"]["user"], ask().result(), get_runtime(dict).execution_info.node_attempt]
        }

    graph = StateGraph(State, dict).add_node("node", node).add_edge(START, "node").compile(saver)
    found = graph.invoke({}, {**CONFIG, "metadata": {"user": "kim"}}, context={"locale": "en"})
    assert found == {"seen": ["kim", ["t", {"locale": "en"}], 1]}


@pytest.mark.parametrize("ask", ["get_config", "get_runtime"])
def test_outside_a_node_there_is_nothing_to_ask(ask: str) -> None:
    with pytest.raises(OutsideNode):
        getattr(OURS, ask)()


def test_the_names_are_public() -> None:
    for name in ("AnyValue", "EphemeralValue", "Topic", "Overwrite", "get_config", "get_runtime"):
        assert getattr(everstep, name) is getattr(OURS, name)
