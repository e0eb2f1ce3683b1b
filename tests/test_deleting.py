"""Deleting a thread: refused, it touches nothing; done, it leaves nothing; ended half way, the same again goes on."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict
from unittest.mock import patch

import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import CorruptEntry, ThreadBusy, UnknownThread
from everstep_checkpoint.keys import Keys
from everstep_scheduler.client.client import Client, connect
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.inline.savers import RedisSaver
from everstep_scheduler.moves.redismoves import RedisMoves

KEYS = Keys(rq="rq")
ON: dict[str, Any] = {"configurable": {"thread_id": "t"}}
IN: dict[str, Any] = {"log": ["in"]}


class State(TypedDict):
    log: Annotated[list[str], operator.add]


def kept(low: bool = True) -> CompiledGraph:
    """A graph that keeps its state, and calls another one that does."""
    inner = kept(False) if low else None
    made = StateGraph(State).add_node(
        "keep", lambda s: {"log": inner.invoke({"log": ["low"]})["log"] if inner else ["x"]}
    )
    return made.add_edge(START, "keep").add_edge("keep", END).compile(checkpointer=True)


def asks(state: State) -> State:
    return {"log": [interrupt("ok?")]}


def family(url: str, ran: list[str]) -> CompiledGraph:
    """Nodes that call graphs, and a node that is a graph, which asks."""

    def pays(state: State) -> State:
        ran.append("paid")
        return {"log": ["paid"]}

    asking = StateGraph(State).add_node("pays", pays).add_node("asks", asks).add_edge(START, "pays")
    asking.add_edge("pays", "asks").add_edge("asks", END)
    child, own = asking.compile(), kept()
    made = StateGraph(State).add_node("own", lambda s: {"log": own.invoke({"log": []})["log"]}).add_node("sub", child)
    made.add_node("calls", lambda s: {"log": child.invoke({"log": []})["log"]})
    made.add_edge(START, "own").add_edge("own", "sub").add_edge("own", "calls").add_edge("sub", END)
    return made.compile(checkpointer=RedisSaver(url), name="g")


@pytest.fixture
def idle(redis_url: str) -> Iterator[Client]:
    with connect(redis_url) as made:
        yield made


def logs(client: Any) -> set[bytes]:
    return {key for word in ("log", "within", "dying") for key in client.scan_iter(f"{KEYS.stem}{word}:*")}


def test_a_delete_that_is_refused_has_touched_nothing(redis_url: str, idle: Client) -> None:
    ran: list[str] = []
    graph, real = family(redis_url, ran), RedisMoves.delete
    graph.invoke(IN, ON)
    before = logs(idle.redis)
    assert len(before) == 5 and len(ran) == 2

    def late(moves: RedisMoves, thread: str, **more: Any) -> str:
        """A resume comes between the look at the thread and the script, and is under way there."""
        idle.resume("t", {each.id: "yes" for each in graph.get_state(ON).interrupts})
        return real(moves, thread, **more)

    with patch.object(RedisMoves, "delete", late), pytest.raises(ThreadBusy):
        idle.delete("t")
    assert logs(idle.redis) == before
    idle.cancel("t")
    assert graph.invoke(None, ON)["log"].count("yes") == 2
    assert len(ran) == 2, "what was done is not done again"


@pytest.mark.parametrize("dies_at", range(1, 9))
def test_a_deleter_that_is_killed_leaves_what_the_next_one_finishes(redis_url: str, idle: Client, dies_at: int) -> None:
    graph, left = family(redis_url, []), [dies_at]
    graph.invoke(IN, ON)

    def dies(real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return real(*args, **more)

        return call

    killed = patch.multiple(RedisMoves, delete=dies(RedisMoves.delete))
    with killed, patch.object(idle.redis, "unlink", dies(idle.redis.unlink)), pytest.raises(KeyboardInterrupt):
        idle.delete("t")
    if dies_at > 1:
        with pytest.raises(ThreadBusy, match="being deleted"):
            graph.invoke(IN, ON)
    idle.delete("t")
    assert logs(idle.redis) == set()
    with pytest.raises(UnknownThread):
        idle.delete("t")
    assert graph.invoke(IN, ON)["log"] == ["in", "low", "x"]


def test_what_runs_that_waited_have_called_goes_with_their_thread(redis_url: str, idle: Client) -> None:
    """Each cancel may begin a run that waited; what that calls before its own cancel goes, too."""
    graph, real, more = family(redis_url, []), RedisMoves.cancel, [2]

    def cancel(moves: RedisMoves, thread: str, *args: Any) -> str:
        said = real(moves, thread, *args)
        if more[0] and thread == "t":
            more[0] -= 1
            graph.invoke({"log": ["next"]}, ON)
            idle.resume("t", {each.id: "yes" for each in graph.get_state(ON).interrupts})
        return said

    graph.invoke(IN, ON)
    idle.resume("t", {each.id: "yes" for each in graph.get_state(ON).interrupts})
    with patch.object(RedisMoves, "cancel", cancel):
        idle.delete("t", cancel=True)
    assert more == [0]
    assert logs(idle.redis) == set()
    assert graph.invoke(IN, ON)["log"] == ["in", "low", "x"]


def test_logs_that_say_they_called_each_other_in_a_circle_are_deleted_and_no_state_of_them_is_shown(
    redis_url: str, idle: Client
) -> None:
    made = StateGraph(State).add_node("a", asks).add_edge(START, "a").add_edge("a", END)
    graph, log = made.compile(checkpointer=RedisSaver(redis_url), name="g"), idle.log_store
    for thread, other in (("t", "u"), ("u", "t")):
        graph.invoke(IN, {"configurable": {"thread_id": thread}})
        head = log.head(thread)
        assert head is not None
        log.append(thread, [e.fact("task_called", "r", task="p0", called=f"r {other}")], (head.n, head.digest))
    with pytest.raises(CorruptEntry, match="called each other"):
        idle.state("t", subgraphs=True)
    assert idle.state("t").next == ("a",)
    idle.delete("t")
    assert logs(idle.redis) == set()


@pytest.mark.parametrize("again", [False, True], ids=["gone", "begun anew"])
def test_a_state_that_is_read_while_its_thread_is_deleted_is_no_broken_log(
    redis_url: str, idle: Client, again: bool
) -> None:
    made = StateGraph(State).add_node("a", lambda s: {"log": ["a"]}).add_node("b", lambda s: {"log": ["b"]})
    made.add_edge(START, "a").add_edge("a", "b").add_edge("b", END)
    short = StateGraph(State).add_node("a", asks).add_edge(START, "a").add_edge("a", END)
    saver = RedisSaver(redis_url)
    made.compile(checkpointer=saver, name="g").invoke(IN, ON)
    real, left = type(idle.log_store).head, [1]

    def head(log: Any, thread: str) -> Any:
        """The thread is deleted behind the look at its head."""
        found = real(log, thread)
        if left:
            left.pop()
            with connect(redis_url) as other:
                other.delete(thread)
            if again:
                short.compile(checkpointer=saver, name="g").invoke({"log": ["new"]}, ON)
        return found

    with patch.object(type(idle.log_store), "head", head):
        if again:
            assert idle.state("t").values["log"] == ["new"]
        else:
            with pytest.raises(UnknownThread):
                idle.state("t")
