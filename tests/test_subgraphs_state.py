"""The state of graphs in graphs, as it is read and edited, against LangGraph as the oracle."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver

from everstep_checkpoint.errors import InvalidInput
from everstep_scheduler.client.client import connect
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from sidebyside import wait_for_siblings
from test_interrupts import IN, OURS, THEIRS, Answer, call, history, on, shown, waiting, working
from test_subgraphs import STORIES, all_ask, asking, chain, deep_question, keeping, plain

NAMED = {"asks": asking, "asks at many places": all_ask, "asks far down": deep_question}


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    if request.param == "memory":
        return InMemorySaver()
    return RedisSaver(request.getfixturevalue("redis_url"))


def steps_of(ns: str) -> list[str]:
    """A namespace without the ids of tasks: the nodes that it names."""
    return [each.partition(":")[0] for each in ns.split("|")] if ns else []


def seen(snapshot: Any) -> Any:
    """A snapshot with all below it, without ids. A task's state is a config, or a snapshot."""
    if snapshot is None or isinstance(snapshot, dict):
        return snapshot and (snapshot["configurable"]["thread_id"], steps_of(snapshot["configurable"]["checkpoint_ns"]))
    tasks = [(task.name, waiting(task.interrupts), seen(task.state)) for task in snapshot.tasks]
    metadata = {key: (snapshot.metadata or {}).get(key) for key in ("source", "step")}
    above = sorted(map(steps_of, (snapshot.metadata or {}).get("parents", {})))
    parent = snapshot.parent_config and steps_of(snapshot.parent_config["configurable"]["checkpoint_ns"])
    place = steps_of(snapshot.config["configurable"]["checkpoint_ns"])
    return shown(snapshot.values), sorted(snapshot.next), metadata, above, parent, place, sorted(tasks, key=repr)


def deepest(graph: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The config of the lowest state that waits."""
    while True:
        tasks = sorted(graph.get_state(config).tasks, key=lambda task: task.name)
        below = [task.state for task in tasks if task.state and task.interrupts]
        if not below:
            return config
        config = below[0]


@pytest.mark.parametrize("story", STORIES)
def test_states_and_histories_are_langgraphs_at_every_depth(
    story: str, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_siblings(monkeypatch)
    build, steps = STORIES[story]
    ours = build(OURS).compile(checkpointer=saver, name="g")
    theirs = build(THEIRS).compile(checkpointer=OracleSaver())
    for i, step in enumerate(steps):
        call(OURS, ours, on("t"), step)
        call(THEIRS, theirs, on("t"), step, durability="sync")
        for more in ({}, {"subgraphs": True}):
            mine, his = (seen(graph.get_state(on("t"), **more)) for graph in (ours, theirs))
            assert mine == his, f"after call {i}, {more}"
        mine, his = ([seen(each) for each in graph.get_state_history(on("t"))] for graph in (ours, theirs))
        assert mine == his, f"after call {i}"


@pytest.mark.parametrize("build", NAMED.values(), ids=NAMED)
def test_the_config_of_a_child_is_taken_wherever_a_config_is(build: Any, saver: Saver) -> None:
    found: list[Any] = []
    for lib, mine in ((OURS, saver), (THEIRS, OracleSaver())):
        graph = build(lib).compile(checkpointer=mine)
        call(lib, graph, on("t"), IN)
        low = deepest(graph, on("t"))
        told: list[Any] = [seen(graph.get_state(low)), [seen(each) for each in graph.get_state_history(low)]]
        written = graph.update_state(low, {"log": ["edited"]})
        told += [steps_of(written["configurable"]["checkpoint_ns"]), seen(graph.get_state(written))]
        told += [seen(graph.get_state(low)), shown(graph.get_state(on("t"), subgraphs=True).values)]
        found.append(told)
    assert found[0] == found[1]


def test_an_edited_child_goes_on_with_the_answer_as_in_langgraph(saver: Saver) -> None:
    found: list[Any] = []
    for lib, mine in ((OURS, saver), (THEIRS, OracleSaver())):
        graph = deep_question(lib).compile(checkpointer=mine)
        call(lib, graph, on("t"), IN)
        graph.update_state(deepest(graph, on("t")), {"log": ["edited"]}, as_node="__start__")
        found.append(call(lib, graph, on("t"), Answer("here")))
    assert found[0] == found[1]
    assert "edited" in found[0][0]["log"]


@pytest.mark.parametrize("lib", [OURS, THEIRS], ids=["ours", "theirs"])
def test_the_graphs_in_a_graph_are_named(lib: Any) -> None:
    low = chain(lib, "x").compile()
    mid = chain(lib, ("low", low), ("low2", low)).compile()
    graph = chain(lib, ("child", mid), "b", ("other", low)).compile()

    def names(**more: Any) -> list[str]:
        return [name for name, _ in graph.get_subgraphs(**more)]

    assert names() == ["child", "other"]
    assert names(recurse=True) == ["child", "child|low", "child|low2", "other"]
    assert names(namespace="child") == ["child"]
    assert names(namespace="child|low2", recurse=True) == ["child|low2"]
    assert names(namespace="nobody", recurse=True) == []


def placed_node() -> tuple[list[Any], Any]:
    """A node, and what it is told of its place."""
    told: list[Any] = []

    def node(state: Any, config: RunnableConfig, runtime: Any) -> Any:
        place, info = config["configurable"], runtime.execution_info
        assert place["checkpoint_ns"] == info.checkpoint_ns
        assert info.checkpoint_ns.endswith(f":{info.task_id}")
        told.append((place["thread_id"], info.thread_id, steps_of(info.checkpoint_ns)))
        return {}

    return told, node


def test_nodes_are_told_their_place_as_in_langgraph(saver: Saver) -> None:
    found: list[Any] = []
    for lib, mine in ((OURS, saver), (THEIRS, OracleSaver())):
        told, node = placed_node()
        low = chain(lib, ("low", chain(lib, ("deep", node)).compile()), ("n", node))
        graph = chain(lib, ("top", node), ("child", low.compile()), ("kept", low.compile(checkpointer=True)))
        graph.compile(checkpointer=mine).invoke(IN, on("t"))
        found.append(told)
    assert found[0] == found[1]
    assert found[0][1] == ("t", "t", ["child", "low", "deep"])


@pytest.mark.parametrize("build", [plain, asking], ids=["plain", "asks"])
def test_a_replay_calls_children_anew_as_in_langgraph(build: Any, saver: Saver) -> None:
    found: list[Any] = []
    for lib, mine in ((OURS, saver), (THEIRS, OracleSaver())):
        graph = build(lib).compile(checkpointer=mine)
        for step in (IN, Answer("A1"), Answer("A2")) if build is asking else (IN,):
            call(lib, graph, on("t"), step)
        told: list[Any] = []
        for each in list(graph.get_state_history(on("t"))):
            if any(task.state for task in each.tasks) or each.metadata["source"] == "input":
                got = graph.invoke(None, each.config)
                told.append((shown(got), waiting(got.get("__interrupt__", ()))))
        found.append((told, history(graph, on("t"))))
    assert found[0] == found[1]


def test_the_state_of_a_graph_that_keeps_it_is_read_by_its_name_alone(saver: Saver) -> None:
    graph = keeping(OURS).compile(checkpointer=saver)
    for _ in range(2):
        graph.invoke(IN, on("t"))
    place = {"configurable": {"thread_id": "t", "checkpoint_ns": "child"}}
    assert graph.get_state(place).values["x"] == 2
    assert len(list(graph.get_state_history(place))) == 8


def test_a_place_where_nothing_stands_is_empty(saver: Saver) -> None:
    graph = asking(OURS).compile(checkpointer=saver)
    graph.invoke(IN, on("t"))
    place = {"configurable": {"thread_id": "t", "checkpoint_ns": "nobody:1"}}
    assert graph.get_state(place).values == {}
    with pytest.raises(InvalidInput, match="no graph is known at 'nobody:1'"):
        graph.update_state(place, {"log": ["x"]})


def test_clients_see_and_edit_the_state_of_children(redis_url: str) -> None:
    graph = deep_question(OURS).compile(name="g")
    with working(redis_url, graph), connect(redis_url) as client:
        client.submit("g", IN, thread_id="t").result(20)
        plain, typed = client.graph("g"), client.graph("g", graph)
        bare = client.state("t", subgraphs=True)
        mine, his = seen(bare), seen(typed.get_state(on("t"), subgraphs=True))
        assert mine == his
        low = deepest(plain, on("t"))
        assert low == deepest(typed, on("t"))
        assert plain.get_state(low).next == typed.get_state(low).next == ("q",)
        typed.update_state(low, {"log": ["edited"]}, as_node="__start__", timeout=20)
        with pytest.raises(InvalidInput, match="no graph is known"):
            plain.update_state(low, {"log": ["edited"]})
        log = client.resume("t", "here").result(20)["log"]
        assert "edited" in log and ["q", "here"] in log
