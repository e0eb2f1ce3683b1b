"""Between parent and child: whatever is lost or dies at any moment, the run goes on, and each node works once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from everstep.embedded import EmbeddedServer
from everstep.places import look_at_places
from everstep.site import Site
from everstep_checkpoint.errors import ServerFull, ThreadBusy, UnknownThread
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import Client
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START, Command
from everstep_scheduler.moves.contract import Lease
from everstep_scheduler.moves.record import Config
from everstep_scheduler.reading.children import children
from everstep_scheduler.reading.derive import derive
from everstep_scheduler.reading.questions import resume_of
from everstep_scheduler.recovery import recovery
from everstep_scheduler.recovery.recovery import recover
from faults import SHORT_MS, Fleet, assert_at_rest
from hand import KEYS, LEASE_MS, THREAD, Hand, lease_of
from servers import StartServer, plain_client, wait_for
from test_interrupts import State
from test_recovery import picture, wipe


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests have no other workers to wait for."""
    monkeypatch.setattr(recovery, "MARGIN_S", 0.0)


class Counted(State, total=False):
    count: int


def graph(boom: list[bool]) -> StateGraph:
    """a -> child (x -> asks -> y) beside `side` -> z. `y` fails while `boom`."""

    def y(state: Any) -> Any:
        if boom[0]:
            raise ValueError("not yet")
        return {"log": ["y"]}

    inner = StateGraph(Counted).add_node("x", lambda s: {"log": ["x"]}).add_node("y", y)
    inner.add_node("asks", lambda s: {"log": [interrupt("what?")]})
    inner.add_edge(START, "x").add_edge("x", "asks").add_edge("asks", "y")
    made = StateGraph(Counted).add_node("a", lambda s: {"log": ["a"]}).add_node("side", lambda s: {"log": ["s"]})
    made.add_node("child", inner.compile()).add_node("z", lambda s: {"log": ["z"]})
    made.add_edge(START, "a").add_edge("a", "child").add_edge("a", "side").add_edge("child", "z").add_edge("side", "z")
    return made


def story(hand: Hand, boom: list[bool]) -> Iterator[str]:
    """A run whose child asks, is answered, fails, and goes on; each yield is a moment at which the world may end."""
    hand.submit("r1")
    for node in ("__start__", "a"):
        hand.claim()
        hand.do(node)
    hand.claim(2)
    yield "the child is not called yet"
    hand.do("child")
    yield "the child is called, and waits in the queue"
    hand.claim()
    hand.do("side")
    hand.do("__start__")
    hand.claim()
    yield "the child runs"
    hand.do("x")
    hand.claim()
    hand.do("asks")
    yield "the child asks, and the parent is to look"
    hand.claim()
    yield "the parent looks"
    hand.do("child")
    yield "the question waits"
    told: dict[str, Any] = {"graph": "g", "queue": "g"}
    assert hand.moves.start(resume_of(hand.log, THREAD, "r2", "42", Config(), **told)).status == "started"
    yield "the answer is there"
    hand.claim()
    hand.do("child")
    yield "the answer is passed on"
    boom[0] = True
    hand.claim()
    hand.do("asks")
    hand.claim()
    hand.do("y")
    yield "the child has failed"
    hand.claim()
    hand.do("child")
    yield "the parent has failed"
    boom[0] = False
    assert hand.moves.start(hand.continued()).status == "started"
    hand.claim()
    hand.do("child")
    yield "the child is to go on"
    hand.claim()
    hand.do("y")
    yield "the child is done"
    hand.drive()
    yield "all is done"


def moments() -> list[str]:
    return [
        "the child is not called yet", "the child is called, and waits in the queue", "the child runs",
        "the child asks, and the parent is to look", "the parent looks", "the question waits", "the answer is there",
        "the answer is passed on", "the child has failed", "the parent has failed", "the child is to go on",
        "the child is done", "all is done",
    ]  # fmt: skip


@pytest.mark.parametrize("moment", moments())
@pytest.mark.parametrize("what", ["rq", "ours", "both"])
def test_whatever_is_lost_between_parent_and_child_comes_back(client: Any, moment: str, what: str) -> None:
    boom = [False]
    hand = Hand(client, graph(boom))
    recover(client, KEYS, lease_ms=LEASE_MS)
    telling = story(hand, boom)
    while next(telling) != moment:
        pass
    before = picture(client)
    wipe(client, what)
    hand.recovery()
    assert picture(client) == before
    for _ in telling:
        pass
    hand.drive()
    assert hand.claim(8) == []
    assert derive(hand.log, THREAD).status == "done"
    (child,) = children(hand.log, THREAD)
    assert not verify(hand.log, THREAD).problems and not verify(hand.log, child).problems
    values = hand.spec.values(hand.performer.loader.stand(_at(hand, THREAD)).channels)
    assert values["log"] == ["a", "a", "x", "42", "y", "s", "z"]


def _at(hand: Hand, thread: str) -> Lease:
    told = derive(hand.log, thread)
    return lease_of(thread=thread, n=told.n, digest=told.digest)


def test_the_moments_are_those_of_the_story(client: Any) -> None:
    boom = [False]
    recover(client, KEYS)
    assert list(story(Hand(client, graph(boom)), boom)) == moments()


def upward() -> StateGraph:
    """child (n -> up beside sib) -> z, where `up` has a Command for the parent."""
    up: Command[str] = Command(graph=Command.PARENT, update={"log": ["up"]}, goto="z")
    inner = StateGraph(Counted).add_node("n", lambda s: {"log": ["n"]}).add_node("up", lambda s: up)
    inner.add_node("sib", lambda s: {"log": ["sib"]}).add_edge(START, "n").add_edge("n", "up").add_edge("n", "sib")
    made = StateGraph(Counted).add_node("child", inner.compile(), destinations=("z",)).add_edge(START, "child")
    return made.add_node("z", lambda s: {"log": ["z"]})


@pytest.mark.parametrize("what", ["rq", "ours", "both"])
def test_a_command_for_the_parent_outlives_the_loss_of_all_indexes(client: Any, what: str) -> None:
    hand = Hand(client, upward())
    recover(client, KEYS, lease_ms=LEASE_MS)
    hand.submit("r1")
    for node in ("__start__", "child", "__start__", "n", "up"):
        while all(lease.node != node for lease in hand.held):
            assert hand.claim()
        hand.do(node)
    before = picture(client)
    wipe(client, what)
    hand.held.clear()
    hand.recovery()
    after = picture(client)
    for each in (before, after):  # the log does not count attempts that were withdrawn
        each[next(children(hand.log, THREAD))].pop("open")
    assert after == before
    hand.drive()
    assert derive(hand.log, THREAD).status == "done"
    values = hand.spec.values(hand.performer.loader.stand(_at(hand, THREAD)).channels)
    assert values["log"] == ["up", "z"]


def test_a_rebuild_gives_a_parent_whose_child_is_at_rest_its_job(client: Any) -> None:
    """As if the child's rest had not reached the parent's task: doctor finds it, and recover mends it."""
    boom = [False]
    hand = Hand(client, graph(boom))
    recover(client, KEYS, lease_ms=LEASE_MS)
    telling = story(hand, boom)
    while next(telling) != "the child runs":
        pass
    (child,) = children(hand.log, THREAD)
    record = client.hget(KEYS.open(THREAD), "p0")
    client.hset(KEYS.thread(child), "parent", "")
    hand.moves.cancel(child)
    hand.held.clear()
    assert client.hget(KEYS.open(THREAD), "p0") == record
    url = f"unix://{client.connection_pool.connection_kwargs['path']}"
    (problem,) = look_at_places(Site(url)).problems
    assert problem.startswith("t p0: it waits for a run that does not go on any more")
    recover(client, KEYS, lease_ms=LEASE_MS)
    assert look_at_places(Site(url)).problems == []
    assert hand.claim() == ["p0"]


def test_doctor_finds_nothing_wrong_with_a_task_that_waits_for_its_child(client: Any, redis_url: str) -> None:
    boom = [False]
    hand = Hand(client, graph(boom))
    recover(client, KEYS, lease_ms=LEASE_MS)
    for moment in story(hand, boom):
        assert look_at_places(Site(redis_url)).problems == [], moment


# --- keys that others wrote


@pytest.mark.parametrize("said", ["x", "1 p0 nobody", "7 p0 t", "1 p9 t", "1 p0", ""])
def test_a_child_whose_caller_can_not_be_found_comes_to_its_rest_all_the_same(client: Any, said: str) -> None:
    boom = [False]
    hand = Hand(client, graph(boom))
    child = called(hand, boom, "the child runs")
    client.hset(KEYS.thread(child), "parent", said)
    for node in ("x", "asks"):
        assert hand.do(node) == "ok"
        hand.claim()
    assert derive(hand.log, child).status == "interrupted"


@pytest.mark.parametrize("record", ['{"p":"child","a":1,"n":"child","q":"g","w":0,"cl":{}}', "junk", "[]"])
def test_a_caller_whose_record_is_junk_keeps_its_child_from_nothing(client: Any, record: str) -> None:
    boom = [False]
    hand = Hand(client, graph(boom))
    child = called(hand, boom, "the child runs")
    client.hset(KEYS.open(THREAD), "p0", record)
    hand.do("x")
    hand.claim()
    assert hand.do("asks") == "ok"
    assert derive(hand.log, child).status == "interrupted"
    assert hand.moves.cancel(THREAD) == "cancelled"


def test_a_caller_that_can_not_be_queued_waits_until_it_is_mended(client: Any) -> None:
    boom = [False]
    made = graph(boom)
    made._nodes["child"] = replace(made._nodes["child"], queue="apart")  # pyright: ignore[reportPrivateUsage]
    hand = Hand(client, made)
    child = called(hand, boom, "the child runs")
    client.set(KEYS.rq_queue("apart"), "of another type")
    hand.do("x")
    hand.claim()
    assert hand.do("asks") == "ok"
    assert derive(hand.log, child).status == "interrupted"
    client.delete(KEYS.rq_queue("apart"))
    recover(client, KEYS, lease_ms=LEASE_MS)
    assert hand.claim() == ["p0"]


def test_junk_among_what_is_revoked_holds_up_no_sweep(client: Any) -> None:
    hand = Hand(client, graph([False]))
    recover(client, KEYS, lease_ms=LEASE_MS)
    client.rpush(KEYS.revoked, "{", "[]", '{"thread":7}', '{"thread":"nobody","run":"r"}')
    for _ in range(4):
        assert hand.moves.sweep("server")["status"] == "ok"
    assert not client.exists(KEYS.revoked)
    client.set(KEYS.revoked, "of another type")
    assert hand.moves.sweep("server")["status"] == "ok"


def test_a_full_server_refuses_a_call_whole(own_server: StartServer) -> None:
    with plain_client(own_server().url) as client:
        boom = [False]
        hand = Hand(client, graph(boom))
        recover(client, KEYS, lease_ms=LEASE_MS)
        assert next(story(hand, boom)) == "the child is not called yet"
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        before = client.xlen(KEYS.log(THREAD)), len(list(hand.log.threads()))
        with pytest.raises(ServerFull):
            hand.do("child")
        assert (client.xlen(KEYS.log(THREAD)), len(list(hand.log.threads()))) == before
        client.config_set("maxmemory", 0)
        hand.moves.release(hand.owner, None, "job")
        hand.held.clear()
        hand.drive()
        assert derive(hand.log, THREAD).status == "interrupted"


# --- cancel, delete


def called(hand: Hand, boom: list[bool], until: str) -> str:
    recover(hand.client, KEYS, lease_ms=LEASE_MS)
    for moment in story(hand, boom):
        if moment == until:
            return next(children(hand.log, THREAD))
    raise AssertionError(until)


def test_cancelling_a_parent_cancels_its_child_and_a_retry_goes_on_with_it(client: Any) -> None:
    boom = [False]
    hand = Hand(client, graph(boom))
    child = called(hand, boom, "the child runs")
    assert hand.moves.cancel(THREAD, actor="me") == "cancelled"
    assert hand.do("x") == "fenced"
    assert derive(hand.log, child).status == derive(hand.log, THREAD).status == "cancelled"
    assert hand.moves.start(hand.continued()).status == "started"
    hand.drive()
    assert derive(hand.log, child).status == "interrupted", "it went on to its question"
    assert len(list(children(hand.log, THREAD))) == 1


def test_cancelling_reaches_children_of_children(redis_url: str, client: Any) -> None:
    made = StateGraph(Counted).add_node("deep", lambda s: {"log": ["deep"]}).add_edge(START, "deep")
    for _ in range(3):
        made = StateGraph(Counted).add_node("g", made.compile()).add_edge(START, "g")
    hand = Hand(client, made)
    recover(client, KEYS, lease_ms=LEASE_MS)
    hand.submit("r1")
    while hand.held or hand.claim():
        if hand.held[0].node == "deep":
            break
        hand.do()
    threads = sorted(hand.log.threads())
    assert len(threads) == 4
    hand.moves.cancel(THREAD)
    assert {derive(hand.log, each).status for each in threads} == {"cancelled"}
    with Client(redis_url, KEYS) as other:
        other.delete(THREAD)
    assert list(hand.log.threads()) == []


def test_deleting_a_parent_deletes_its_children(redis_url: str, client: Any) -> None:
    boom = [False]
    hand = Hand(client, graph(boom))
    child = called(hand, boom, "the child runs")
    with Client(redis_url, KEYS) as other:
        with pytest.raises(ThreadBusy):
            other.delete(THREAD)
        assert set(hand.log.threads()) == {THREAD, child}
        other.delete(THREAD, cancel=True)
        assert list(hand.log.threads()) == []
        with pytest.raises(UnknownThread):
            other.state(child)
    assert_at_rest(client)


def test_a_child_that_was_deleted_fails_its_parent_and_a_retry_begins_it_anew(client: Any) -> None:
    boom = [False]
    hand = Hand(client, graph(boom))
    child = called(hand, boom, "the child asks, and the parent is to look")
    assert hand.moves.delete(child) == "deleted"
    hand.claim()
    hand.do("child")
    assert derive(hand.log, THREAD).status == "failed"
    assert hand.moves.start(hand.continued()).status == "started"
    hand.drive()
    assert derive(hand.log, child).status == derive(hand.log, THREAD).status == "interrupted"


def test_a_new_input_gives_up_a_child_for_good(client: Any) -> None:
    boom = [False]
    hand = Hand(client, graph(boom))
    called(hand, boom, "the question waits")
    hand.submit("r9")
    hand.drive()
    first, second = children(hand.log, THREAD)
    assert first != second
    assert derive(hand.log, THREAD).asked == 1


# --- kill -9

AT = {"start": 1, "a": 2, "calls": 3, "the child's start": 4, "x": 5, "y": 6, "looks": 7, "z": 8}


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


@pytest.mark.parametrize("at", ["calls", "the child's start", "y", "looks"])
@pytest.mark.parametrize("point", ["claimed", "loaded", "called", "settled", "committed"])
def test_a_worker_killed_between_parent_and_child_is_survived(fleet: Fleet, point: str, at: str) -> None:
    with fleet.sweeping():
        thread = fleet.submit("nested")
        fleet.worker("nested", failpoint=f"{point}:{AT[at]}", lease_ms=SHORT_MS).dies()
        with fleet.heir("nested"):
            fleet.rests(thread)
            (child,) = children(fleet.log, thread)
            fleet.settled(thread, child)
    ran = fleet.executions(thread)  # nodes of the child are told the root's thread, as in LangGraph
    again = {"y"} if at == "y" and point in ("called", "settled") else set()
    assert ran == {node: 1 + (node in again) for node in ("a", "x", "y", "z")}
    lost = fleet.kinds(thread)["task_lost"] + fleet.kinds(child)["task_lost"]
    assert lost == 1, "one attempt died, and the logs say so"
    assert fleet.kinds(thread)["task_called"] == 1
    assert fleet.state("nested", thread)["seen"] == ["a", "a", "x", "y", "z"]


@pytest.mark.parametrize(("point", "ran"), [("loaded", 1), ("called", 2), ("settled", 2), ("committed", 1)])
def test_a_worker_killed_around_a_command_for_the_parent_is_survived(fleet: Fleet, point: str, ran: int) -> None:
    with fleet.sweeping():
        thread = fleet.submit("handing")
        fleet.worker("handing", failpoint=f"{point}:5", lease_ms=SHORT_MS).dies()
        with fleet.heir("handing"):
            fleet.rests(thread)
    assert fleet.executions(thread) == {"x": 1, "up": ran, "z": 1}
    assert fleet.state("handing", thread)["seen"] == ["up", "z"]


def test_a_pool_whose_child_dies_in_a_subgraph_goes_on_at_once(fleet: Fleet, tmp_path: Path) -> None:
    thread = fleet.submit("nested")
    fleet.pool("nested", processes=1, failpoint=f"called:{AT['y']}:{tmp_path / 'fired'}", lease_ms=60_000)
    wait_for(lambda: (tmp_path / "fired").exists(), 20, "a child to die")
    fleet.rests(thread, timeout_s=10)
    assert fleet.state("nested", thread)["seen"] == ["a", "a", "x", "y", "z"]


def test_subgraphs_outlive_the_server(fleet: Fleet, client: redis.Redis) -> None:
    """All indexes are gone while a child runs; workers make them anew and go on."""
    thread = fleet.submit("nested", gated="y")
    with fleet.heir("nested"):
        wait_for(lambda: any(line.node == "y" for line in fleet.lines()), 20, "y to begin")
        wipe(client, "both")
        fleet.open_gate()
        fleet.rests(thread)
    assert fleet.state("nested", thread)["seen"] == ["a", "a", "x", "y", "z"]
    assert max(fleet.executions().values()) == 1
