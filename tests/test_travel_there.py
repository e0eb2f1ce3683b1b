"""Time travel on workers, and what it must survive: lost indexes, trimmed logs, warm caches, bad ids."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict
from unittest.mock import patch

import pytest

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import (
    Conflict,
    InvalidInput,
    InvalidResume,
    NotFound,
    RunConflict,
    RunFailed,
    ThreadBusy,
    Trimmed,
    UnknownThread,
)
from everstep_checkpoint.log import Log
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at, verify
from everstep_scheduler.client import travelling
from everstep_scheduler.client.client import Client, connect
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START, Command, Send
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.reading.derive import derive
from everstep_scheduler.recovery.mending import look
from everstep_scheduler.recovery.recovery import recover
from everstep_scheduler.steps.branching import branch
from everstep_scheduler.steps.stateface import StateUpdate
from hand import KEYS, Hand, working

Config = dict[str, Any]


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    big: str


def wide() -> StateGraph:
    """a, then b and three Sends to c, then d; `broken` nodes raise."""
    made = StateGraph(State)
    for name in "abd":
        made.add_node(name, lambda s, name=name: works(name))
    made.add_node("c", lambda arg: {"log": [f"c{arg['i']}"]})
    made.add_edge(START, "a").add_edge("a", "b").add_edge(["b", "c"], "d")
    return made.add_conditional_edges("a", lambda s: [Send("c", {"i": i}) for i in range(3)], ["c"])


broken: set[str] = set()


def works(name: str) -> State:
    if name in broken:
        raise ValueError(name)
    return {"log": [name]}


@pytest.fixture(autouse=True)
def _mended() -> Iterator[None]:
    broken.clear()
    yield
    broken.clear()


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Client]:
    with working(redis_url, ("g", wide())), connect(redis_url) as made:
        yield made


def on(thread: str = "t", checkpoint_id: str = "") -> Config:
    place = {"thread_id": thread, **({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}
    return {"configurable": place}


def ids(log: Log, thread: str = "t") -> list[str]:
    """checkpoint ids by number, from 1."""
    return ["", *(x.checkpoint_id for x in log.read(thread) if x.is_checkpoint)]


def steps(graph: Any, thread: str = "t") -> list[tuple[Any, ...]]:
    """(source, step, next), oldest first."""
    found = [(s.metadata["source"], s.metadata["step"], sorted(s.next)) for s in graph.get_state_history(on(thread))]
    return found[::-1]


# -- on workers, with and without the graph's code


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "plain"])
def test_a_client_travels_as_an_inline_caller_does(fleet: Client, redis_url: str, typed: bool) -> None:
    there = fleet.graph("g", wide().compile(InMemorySaver()) if typed else None)
    here = wide().compile(checkpointer=InMemorySaver(), name="g")
    more: dict[str, Any] = {"timeout": 10}
    supersteps = [
        [StateUpdate({"log": ["1"]}, "b"), StateUpdate({"log": ["2"]}, "c")],
        [StateUpdate({"log": ["3"]}, "d")],
    ]
    for graph, told in ((there, more), (here, {})):
        log = graph._log  # pyright: ignore[reportPrivateUsage]
        graph.invoke({"log": ["x"]}, on(), **told)
        graph.invoke(None, on("t", ids(log)[3]), **told)
        graph.invoke({"log": ["y"]}, on("t", ids(log)[2]), **told)
        graph.update_state(on("t", ids(log)[3]), {"log": ["u"]}, as_node="a")
        graph.invoke(None, on(), **told)
        graph.update_state(on("t", ids(log)[3]), None, as_node=END)
        graph.update_state(on("t", ids(log)[2]), None, as_node="__copy__")
        graph.update_state(on("t", ids(log)[3]), {"log": ["i"]}, as_node="__input__")
        graph.invoke(None, on(), **told)
        graph.bulk_update_state(on(), supersteps)
    assert steps(there) == steps(here)
    states = [[s.values for s in graph.get_state_history(on())] for graph in (there, here)]
    assert states[0] == states[1]
    assert verify(fleet.log_store, "t").problems == []
    assert look(fleet.redis, KEYS, "t").sound


def test_a_replay_streams_the_values_it_begins_with_and_can_be_attached_to(fleet: Client) -> None:
    graph = fleet.graph("g")
    graph.invoke({"log": ["x"]}, on(), timeout=10)
    back = on("t", ids(fleet.log_store)[4])
    chunks = list(graph.stream(None, back, stream_mode=["updates", "values"], run_id="again", timeout=10))
    was = ["x", "a", "b", "c0", "c1", "c2"]
    assert chunks == [
        ("values", {"log": was}), ("updates", {"d": {"log": ["d"]}}), ("values", {"log": [*was, "d"]})
    ]  # fmt: skip
    length = len(ids(fleet.log_store))
    assert graph.invoke(None, back, run_id="again", timeout=10)["log"][-1] == "d"
    assert len(ids(fleet.log_store)) == length
    with pytest.raises(RunConflict):
        graph.invoke(None, on("t", ids(fleet.log_store)[3]), run_id="again", timeout=10)


def test_a_replay_that_failed_is_continued_on_its_branch(fleet: Client) -> None:
    graph = fleet.graph("g")
    graph.invoke({"log": ["x"]}, on(), timeout=10)
    broken.add("b")
    with pytest.raises(RunFailed):
        graph.invoke(None, on("t", ids(fleet.log_store)[3]), timeout=10)
    broken.clear()
    assert graph.invoke(None, on(), timeout=10)["log"] == ["x", "a", "b", "c0", "c1", "c2", "d"]


# -- copies


def test_a_fork_is_a_thread_like_any_other(fleet: Client) -> None:
    graph = fleet.graph("g")
    graph.invoke({"log": ["x"]}, {**on(), "metadata": {"who": "me"}}, timeout=10)
    before = fleet.log_store.read("t")
    for n, thread in ((1, "of input"), (3, "of sends"), (5, "of the end")):
        assert fleet.fork("t", thread, ids(fleet.log_store)[n]) == thread
        values = graph.invoke(None, on(thread), timeout=10)
        assert values["log"] == ["x", "a", "b", "c0", "c1", "c2", "d"]
        first = list(graph.get_state_history(on(thread)))[-1]
        assert first.parent_config == on("t", ids(fleet.log_store)[n]) | {
            "configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": ids(fleet.log_store)[n]}
        }
        assert (first.metadata or {})["who"] == "me"
        assert graph.invoke({"log": ["z"]}, on(thread), timeout=10)["log"][7:9] == ["z", "a"]
        assert verify(fleet.log_store, thread).sound
    drawn = fleet.fork("t")
    assert fleet.state(drawn).values == fleet.state("t").values
    assert drawn in [info.thread_id for info in fleet.threads()]
    assert fleet.log_store.read("t") == before
    with pytest.raises(ThreadBusy, match="already has a log"):
        fleet.fork("t", "of sends")
    with pytest.raises(UnknownThread):
        fleet.fork("nobody")


def test_a_busy_thread_can_be_forked_and_not_branched(redis_url: str, client: Any) -> None:
    hand = Hand(client, wide())
    with connect(redis_url) as made:
        graph = made.graph("g", wide().compile(InMemorySaver()))
        hand.moves.start(_start(hand))
        with pytest.raises(NotFound, match="no checkpoint yet"):
            made.fork("t")
        hand.claim()
        hand.do()
        one = ids(made.log_store)[1]
        for act in (
            lambda: made.rollback("t", one),
            lambda: graph.invoke(None, on("t", one)),
            lambda: graph.invoke({"log": []}, on("t", one)),
            lambda: graph.update_state(on("t", one), {"log": []}, as_node="a", timeout=1),
            lambda: graph.update_state(on("t", one), None, as_node="__copy__"),
            lambda: graph.update_state(
                on("t"), {"log": []}, as_node="a", timeout=1
            ),  # queued, it would meet another step
        ):
            length = len(made.log_store.read("t"))
            with pytest.raises(ThreadBusy, match="under way"):
                act()
            assert len(made.log_store.read("t")) == length
        assert made.fork("t", "copy") == "copy"
        hand.drive()
        assert made.run("t").status() == "done"


def _start(hand: Hand) -> Any:
    from everstep_scheduler.moves.record import Config as Told
    from everstep_scheduler.moves.record import start_of

    return start_of(hand.spec, "t", "r1", {"log": ["x"]}, Told(), "input")


def test_a_rollback_rests_at_the_earlier_checkpoint_and_retry_goes_on(fleet: Client) -> None:
    graph = fleet.graph("g")
    graph.invoke({"log": ["x"]}, on(), timeout=10)
    made = fleet.rollback("t", ids(fleet.log_store)[3])
    snap = graph.get_state(on())
    assert snap.config["configurable"]["checkpoint_id"] == made
    assert (sorted(snap.next), snap.values["log"]) == (["b", "c", "c", "c"], ["x", "a"])
    assert fleet.retry("t").result(10)["log"] == ["x", "a", "b", "c0", "c1", "c2", "d"]
    assert fleet.rollback("t", ids(fleet.log_store)[5]) == ids(fleet.log_store)[-1]
    assert fleet.run("t").status() == "done"


def test_a_diff_says_what_was_added_grown_and_changed(fleet: Client) -> None:
    fleet.graph("g").invoke({"log": ["x"], "big": "1"}, on(), timeout=10)
    fleet.graph("g").invoke({"big": "2"}, on(), timeout=10)
    every = ids(fleet.log_store)
    found = fleet.diff("t", every[1], every[4])
    assert [(x.key, x.how) for x in found] == [("log", "grown"), ("big", "added")]
    assert found[0].after == ["x", "a", "b", "c0", "c1", "c2"]
    back = fleet.diff("t", every[-1], every[1])
    assert [(x.key, x.how) for x in back] == [("log", "changed"), ("big", "removed")]
    assert fleet.diff("t", every[2], every[2]) == []


# -- what it must survive


def test_indexes_lost_at_a_branch_are_made_from_the_log(redis_url: str, client: Any) -> None:
    hand = Hand(client, wide())
    with connect(redis_url) as made:
        graph = made.graph("g", wide().compile(InMemorySaver()))
        hand.moves.start(_start(hand))
        hand.drive()
        for begin in (
            lambda: made.rollback("t", ids(made.log_store)[3]),
            lambda: graph._begin(None, on("t"), *_said(on("t", ids(made.log_store)[3]))),  # pyright: ignore
            lambda: graph._begin({"log": ["y"]}, on("t"), *_said(on("t", ids(made.log_store)[2]))),  # pyright: ignore
        ):
            begin()
            kept = client.hgetall(KEYS.thread("t"))
            recover(client, KEYS, lease_ms=300)
            again = client.hgetall(KEYS.thread("t"))
            for name in (b"n", b"digest", b"step", b"base", b"status", b"run", b"rec", b"left", b"width"):
                assert again[name] == kept[name], name
            if again[b"status"] == b"interrupted":
                made.retry("t")
            hand.drive()
            assert made.run("t").status() == "done"
        assert verify(made.log_store, "t").sound


def _said(config: Config) -> tuple[Any, Any]:
    from everstep_scheduler.moves.record import Config as Told

    return Told.of(config), None


def test_a_warm_worker_builds_on_the_branch_and_not_on_what_it_remembers(redis_url: str, client: Any) -> None:
    hand = Hand(client, wide())
    with connect(redis_url) as made:
        graph = made.graph("g", wide().compile(InMemorySaver()))
        hand.moves.start(_start(hand))
        hand.drive()
        run = graph._begin({"log": ["y"]}, on("t"), *_said(on("t", ids(made.log_store)[2])))  # pyright: ignore
        hand.drive()
        assert run is not None and run.result(5)["log"] == ["x", "y", "a", "b", "c0", "c1", "c2", "d"]


def test_an_input_waits_behind_a_branch_and_builds_on_it(redis_url: str, client: Any) -> None:
    hand = Hand(client, wide())
    with connect(redis_url) as made:
        graph = made.graph("g", wide().compile(InMemorySaver()))
        hand.moves.start(_start(hand))
        hand.drive()
        graph._begin(None, on("t"), *_said(on("t", ids(made.log_store)[4])))  # pyright: ignore
        later = made.begin("g", {"log": ["q"]}, *_said(on("t"))[:1], spec=hand.spec)
        assert later.status() == "queued"
        hand.drive()
        assert later.result(5)["log"] == ["x", "a", "b", "c0", "c1", "c2", "d", "q", "a", "b", "c0", "c1", "c2", "d"]


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


def test_a_large_state_and_many_sends_go_ahead_in_parts(saver: Saver) -> None:
    graph = wide().compile(checkpointer=saver, name="g")
    graph.invoke({"log": ["x"], "big": "b" * 30_000}, on())
    with patch.object(e, "PART_BYTES_MAX", 4_000):
        for n in (2, 3, 4):
            graph.invoke(None, on("t", ids(saver.log)[n]))
            graph.invoke({"log": ["y"]}, on("t", ids(saver.log)[n]))
            graph.update_state(on("t", ids(saver.log)[n]), {"log": ["u"]}, as_node="b")
    branches = [x for x in saver.log.read("t") if x.is_checkpoint and x.branch_of]
    assert len(branches) == 9 and all(len(x.json("parts")) > 5 for x in branches)
    assert verify(saver.log, "t").problems == []
    for entry in branches:
        assert len(state_at(saver.log, "t", entry.n).channels["big"]) > 30_000


def test_a_log_can_be_trimmed_at_a_branch_and_goes_on(saver: Saver) -> None:
    graph = wide().compile(checkpointer=saver, name="g")
    graph.invoke({"log": ["x"]}, on())
    gone = ids(saver.log)[3]
    graph.invoke(None, on("t", gone))
    floor = next(x for x in saver.log.read("t") if x.is_checkpoint and x.branch_of).text("floor")
    assert saver.log.trim("t", floor) > 5
    assert verify(saver.log, "t").problems == []
    assert derive(saver.log, "t").status == "done"
    fork = [x for x in graph.get_state_history(on()) if (x.metadata or {})["source"] == "fork"]
    assert fork[0].parent_config is not None  # its address stays, though it can't be read
    for act in (
        lambda: graph.get_state(on("t", gone)),
        lambda: graph.invoke(None, on("t", gone)),
        lambda: graph.invoke({"log": []}, on("t", gone)),
        lambda: graph.update_state(on("t", gone), {"log": []}, as_node="a"),
    ):
        with pytest.raises(Trimmed) as caught:
            act()
        assert "history" in caught.value.fix
    assert graph.invoke({"log": ["y"]}, on())["log"][-1] == "d"


def test_what_a_run_builds_on_is_not_trimmed_under_it(redis_url: str, client: Any) -> None:
    hand = Hand(client, wide())
    log = RedisLog(client, KEYS)
    with connect(redis_url) as made:
        graph = made.graph("g", wide().compile(InMemorySaver()))
        hand.moves.start(_start(hand))
        hand.drive()
        made.rollback("t", ids(log)[5])
        floor = log.read("t", "6-0", "6-0")[0].text("floor")
        graph._begin({"log": ["y"]}, on("t"), *_said(on("t", ids(log)[2])))  # pyright: ignore
        with pytest.raises(Trimmed, match="still needed"):
            log.trim("t", floor)
        hand.drive()
        assert made.run("t").status() == "done"
        assert log.trim("t", log.read("t", "7-0", "7-0")[0].text("floor")) > 0


def test_a_branch_of_a_checkpoint_that_is_another_one_is_found(saver: Saver) -> None:
    from golden.dump import DumpLog

    graph = wide().compile(checkpointer=saver, name="g")
    graph.invoke({"log": ["x"]}, on())
    graph.invoke(None, on("t", ids(saver.log)[3]))
    entries = saver.log.read("t")
    i = next(i for i, x in enumerate(entries) if x.is_checkpoint and x.branch_of)
    named = str(e.Address("t", 2, entries[i].branch_of.digest))  # type: ignore[union-attr]
    entries[i] = e.Entry(entries[i].n, 0, {**entries[i].raw, "parent": named.encode()})
    assert any("branches from checkpoint 2" in problem for problem in verify(DumpLog("t", entries), "t").problems)


# -- bad input


def test_a_checkpoint_id_that_leads_nowhere_says_what_to_do(saver: Saver) -> None:
    graph = wide().compile(checkpointer=saver, name="g")
    graph.invoke({"log": ["x"]}, on())
    graph.invoke({"log": ["x"]}, on("other"))
    acts = (
        lambda config: graph.get_state(config),
        lambda config: graph.invoke(None, config),
        lambda config: graph.invoke({"log": []}, config),
        lambda config: graph.update_state(config, {"log": []}, as_node="a"),
        lambda config: graph.update_state(config, None, as_node="__copy__"),
    )
    length = len(saver.log.read("t"))
    for named, error, said in (
        ("the third", InvalidInput, "is no checkpoint_id"),
        ("000000000099-00000000", NotFound, "no checkpoint 000000000099-00000000"),
        (ids(saver.log, "other")[3], NotFound, "number 3 of this thread is"),
    ):
        for act in acts:
            with pytest.raises(error, match=said) as caught:
                act(on("t", named))
            assert "everstep history" in caught.value.fix
    assert len(saver.log.read("t")) == length
    with pytest.raises((UnknownThread, NotFound)):
        graph.invoke(None, on("nobody", "000000000001-00000000"))
    with pytest.raises(InvalidResume, match="last checkpoint"):
        graph.invoke(Command(resume=1), on("t", ids(saver.log)[2]))


def test_a_thread_that_never_rests_is_a_conflict_in_the_end(saver: Saver) -> None:
    graph = wide().compile(checkpointer=saver, name="g")
    graph.invoke({"log": ["x"]}, on())
    with patch("everstep_scheduler.steps.branching._after", lambda head: (head.n, "q" * 43)), pytest.raises(Conflict):
        graph.invoke(None, on("t", ids(saver.log)[2]))


@pytest.mark.parametrize("again", [False, True], ids=["gone", "begun anew"])
def test_a_rollback_in_a_thread_that_is_deleted_meanwhile_is_a_conflict(redis_url: str, again: bool) -> None:
    graph = wide().compile(checkpointer=RedisSaver(redis_url), name="g")
    graph.invoke({"log": ["x"]}, on())

    def late(*args: Any) -> Any:
        client.delete("t")
        if again:
            graph.invoke({"log": ["new"]}, on())
        return branch(*args)

    with connect(redis_url) as client, patch.object(travelling, "branch", late):
        with pytest.raises(Conflict, match="deleted, or begun anew"):
            client.rollback("t", ids(client.log_store)[3])
        if again:
            assert client.state("t").values["log"] == ["new", "a", "b", "c0", "c1", "c2", "d"]
            assert verify(client.log_store, "t").sound
        else:
            assert client.log_store.head("t") is None


# -- history


def test_the_history_is_filtered_bounded_and_cut(saver: Saver) -> None:
    graph = wide().compile(checkpointer=saver, name="g")
    graph.invoke({"log": ["x"]}, {**on(), "metadata": {"who": "me"}})
    graph.invoke(None, {**on("t", ids(saver.log)[3]), "metadata": {"who": "you"}})

    def numbers(config: Config | None = None, **more: Any) -> list[int]:
        found = graph.get_state_history(config or on(), **more)
        return [int(x.config["configurable"]["checkpoint_id"].split("-")[0]) for x in found]

    assert numbers() == [8, 7, 6, 5, 4, 3, 2, 1]
    assert numbers(limit=2) == [8, 7]
    assert numbers(limit=0) == []
    assert numbers(before=on("t", ids(saver.log)[4])) == [3, 2, 1]
    assert numbers(before=on("t", ids(saver.log)[4]), limit=1) == [3]
    assert numbers(filter={"source": "fork"}) == [6]
    assert numbers(filter={"who": "me"}, limit=2) == [5, 4]
    assert numbers(filter={"who": "me", "step": 0}) == [2]
    assert numbers(filter={"who": "nobody"}) == []
    assert numbers(on("t", ids(saver.log)[4])) == [4]
