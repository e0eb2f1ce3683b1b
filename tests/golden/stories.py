"""The stories that the golden logs tell: each is run once, in memory or on a server, and gives its log.

Host and process are pinned by `make.py`; bounds of snapshots and parts are lowered here, so that the files stay small.
"""

from __future__ import annotations

import contextlib
import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, TypedDict
from unittest.mock import patch
from uuid import UUID

import redis
from pydantic import AfterValidator

from everstep.embedded import EmbeddedServer
from everstep_checkpoint import entries as e
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.log import Log, MemoryLog
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.client.client import Client, publish
from everstep_scheduler.client.migrating import Change, Plan, apply
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.functional import task
from everstep_scheduler.graph.handling import NodeError
from everstep_scheduler.graph.options import CachePolicy
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Command, Send
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.inline.entrypoint import entrypoint
from everstep_scheduler.inline.savers import InMemorySaver
from everstep_scheduler.moves.contract import Lease, Offer, RunKind
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_scheduler.reading.children import children
from everstep_scheduler.steps import settling
from everstep_scheduler.steps.caches import InMemoryCache
from everstep_scheduler.steps.perform import Performer
from everstep_scheduler.steps.stateface import StateUpdate

THREAD = "golden"
WORKER = "everstep.host-1234.56789.0a1b2c"
CONFIG = {"configurable": {"thread_id": THREAD}}
Story = Callable[[], tuple[Log, str]]


class Hand:
    """A worker whose every move is made by hand, on Redis."""

    def __init__(self, spec: GraphSpec, client: redis.Redis) -> None:
        keys = Keys(rq="rq")
        client.flushall()
        client.set(keys.alive, "1")
        client.set(keys.rq_alive, "1")
        self.spec = spec
        self.log = RedisLog(client, keys)
        self.scripts = Scripts(client, keys)
        self.moves = RedisMoves(self.scripts)
        self.performer = Performer(self.moves, self.log, {spec.name: spec}, by=WORKER)

    def start(self, data: object, kind: RunKind = "input", **config: Any) -> str:
        run = new_id()
        start = start_of(self.spec, THREAD, run, data, Config.of({**CONFIG, **config}), kind)
        assert self.moves.start(start).status in ("started", "queued")
        return run

    def claim(self, count: int = 1, queue: str = "") -> list[Lease]:
        """Wait for so many leases: a retry may have to come due."""
        found: list[Lease] = []
        end = time.monotonic() + 10
        serves = [f"{self.spec.name}:{node}" for node in ("__start__", "__join__", *self.spec.nodes)]
        while len(found) < count:
            assert time.monotonic() < end, f"no {count} leases"
            found += self.moves.claim(self.offer(count - len(found), queue), serves=serves).leases
        return found

    def offer(self, count: int, queue: str = "") -> Offer:
        name = queue or self.spec.name
        return Offer(WORKER, tuple(new_id() for _ in range(count)), (name,), lease_ms=60_000)

    def do(self, lease: Lease) -> None:
        """Run a task and commit it; take nothing new."""
        attempt = self.performer.load(lease)
        commit = self.performer.settle(attempt, attempt.call())
        answer = self.moves.commit([(commit, self.offer(0))])[0]
        assert answer.status == "ok", answer
        self.performer.committed(commit, answer)

    def drain(self) -> None:
        """Do what is in the queue until nothing is."""
        while leases := self.moves.claim(self.offer(4)).leases:
            for lease in leases:
                self.do(lease)


class _hand:
    """A Hand with a server of its own."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec, self.ending = spec, ExitStack()

    def __enter__(self) -> Hand:
        server = self.ending.enter_context(EmbeddedServer())
        return Hand(self.spec, self.ending.enter_context(redis.Redis.from_url(server.url, protocol=2)))

    def __exit__(self, *_: object) -> None:
        self.ending.close()


class _Copy(MemoryLog):
    """Entries as they were read, for when their server is gone."""

    def __init__(self, entries: list[e.Entry]) -> None:
        super().__init__()
        head = next(x for x in reversed(entries) if x.is_checkpoint)
        self._logs[THREAD], self._heads[THREAD] = entries, (head.n, head.digest)


def _copied(log: Log) -> Log:
    return _Copy(log.read(THREAD))


# -- stories


class Counting(TypedDict):
    count: int
    done: bool


def chain() -> tuple[Log, str]:
    """Input, one-task steps, a router, an end; run again on the same thread."""
    saver = InMemorySaver()
    built = StateGraph(Counting)
    built.add_node("inc", lambda s: {"count": s["count"] + 1})
    built.add_node("check", lambda s: {"done": s["count"] >= 2})
    built.add_edge(START, "inc").add_edge("inc", "check")
    built.add_conditional_edges("check", lambda s: END if s["done"] else "inc", ["inc", END])
    graph = built.compile(checkpointer=saver, name="counter")
    for _ in range(2):
        graph.invoke({"count": 0, "done": False}, {**CONFIG, "metadata": {"who": "golden"}, "tags": ["a"]})
    return saver.log, THREAD


class Payload(TypedDict):
    data: bytes


def payload() -> tuple[Log, str]:
    """Ten no-op nodes, each with 1 KB of fresh random state, by a worker: what a step costs."""
    built = StateGraph(Payload)
    built.add_sequence([(f"n{i}", lambda s: {"data": os.urandom(1024)}) for i in range(10)])
    built.add_edge(START, "n0")
    with _hand(built.spec("chain")) as hand:
        hand.start({"data": b""})
        hand.drain()
        return _copied(hand.log), THREAD


class Wide(TypedDict):
    said: Annotated[list[str], operator.add]
    best: str
    n: int


def _wide() -> StateGraph:
    built: StateGraph = StateGraph(Wide)
    built.add_node("a", lambda s: {"said": ["a said something that is long enough to be taken"], "n": 1})
    built.add_node("b", lambda s: {"said": ["b said something that is long enough to be taken, too"]})
    built.add_node("c", lambda s: {"best": "c found what is best, and it is long enough to be taken"})
    built.add_node("end", lambda s: {"n": s["n"] + len(s["said"])})
    for node in "abc":
        built.add_edge(START, node)
    return built.add_edge(["a", "b", "c"], "end")


def wide() -> tuple[Log, str]:
    """Parallel branches, a list join, deltas that take what facts wrote."""
    saver = InMemorySaver()
    _wide().compile(checkpointer=saver, name="wide").invoke({"said": ["begin"], "n": 0}, CONFIG)
    return saver.log, THREAD


class Map(TypedDict):
    items: list[int]
    squares: Annotated[list[int], operator.add]


def _map() -> StateGraph:
    built: StateGraph = StateGraph(Map)
    built.add_node("list", lambda s: {"items": list(range(6))})
    built.add_node("square", lambda arg: {"squares": [arg["i"] ** 2]})
    built.add_node("report", lambda s: {"items": sorted(s["squares"], reverse=True)})
    built.add_edge(START, "list").add_edge("square", "report")
    fan: Any = lambda s: [Send("square", {"i": i}) for i in s["items"]]  # noqa: E731
    return built.add_conditional_edges("list", fan, ["square"])


def sends() -> tuple[Log, str]:
    """Six Sends in two parts, and the join behind them."""
    saver = InMemorySaver()
    with patch.object(e, "PART_TASKS_MAX", 4):
        _map().compile(checkpointer=saver, name="map").invoke({"items": []}, CONFIG)
    return saver.log, THREAD


def fork() -> tuple[Log, str]:
    """A thread forked from a checkpoint with open Sends, and run on from there."""
    saver = InMemorySaver()
    graph = _map().compile(checkpointer=saver, name="map")
    with patch.object(e, "PART_TASKS_MAX", 4):
        graph.invoke({"items": []}, CONFIG)
    opened = next(x.n for x in saver.log.read(THREAD) if x.is_checkpoint and any(len(row) == 2 for row in x.next))
    saver.log.fork(THREAD, opened, "forked")
    graph.invoke(None, {"configurable": {"thread_id": "forked"}})
    return saver.log, "forked"


def branch() -> tuple[Log, str]:
    """Branches in place: a replay of open Sends, an input and an update at earlier checkpoints, a copy that waits."""
    saver = InMemorySaver()
    graph = _map().compile(checkpointer=saver, name="map")
    with patch.object(e, "PART_TASKS_MAX", 4):
        graph.invoke({"items": []}, CONFIG)
        at = {
            x.n: {"configurable": {"thread_id": THREAD, "checkpoint_id": x.checkpoint_id}} for x in _opened(saver.log)
        }
        graph.invoke(None, at[3])
        graph.invoke({"items": [7]}, at[2])
        graph.bulk_update_state(at[4], [[StateUpdate({"items": [9]}, "list"), StateUpdate({"squares": [8]}, "square")]])
    with patch.object(e, "PART_BYTES_MAX", 40):
        graph.update_state(at[3], None, as_node=END)
        graph.update_state(at[1], None, as_node="__copy__")
    return saver.log, THREAD


def _opened(log: Log) -> list[e.Entry]:
    return [x for x in log.read(THREAD) if x.is_checkpoint]


class Talk(TypedDict):
    lines: Annotated[list[str], operator.add]
    turn: int


def _talk() -> InMemorySaver:
    saver = InMemorySaver()
    built = StateGraph(Talk)
    built.add_node("say", lambda s: {"lines": [f"turn {s['turn']}: " + "word " * 20], "turn": s["turn"] + 1})
    built.add_edge(START, "say")
    built.add_conditional_edges("say", lambda s: END if s["turn"] % 12 == 0 else "say", ["say", END])
    graph = built.compile(checkpointer=saver, name="talk")
    with patch.object(settling, "SNAPSHOT_EVERY", 5), patch.object(e, "PART_BYTES_MAX", 900):
        graph.invoke({"lines": [], "turn": 0}, CONFIG)
        graph.invoke({"lines": ["again"], "turn": 0}, CONFIG)
    return saver


def snapshot() -> tuple[Log, str]:
    """Snapshots every fifth checkpoint; the later ones go ahead in parts."""
    return _talk().log, THREAD


def trimmed() -> tuple[Log, str]:
    """The same, cut at the last snapshot's floor."""
    log = _talk().log
    floor = [x.text("floor") for x in log.read(THREAD) if x.text("floor")][-1]
    assert log.trim(THREAD, floor) > 10
    return log, THREAD


class Colour(Enum):
    RED = 1


@dataclass
class Point:
    x: int
    y: float


class Types(TypedDict):
    atoms: list[Any]
    leaves: dict[str, Any]
    colour: Colour
    points: tuple[Point, ...]
    nested: dict[str, Any]


def types() -> tuple[Log, str]:
    """One value of every type in the table, and deltas that merge, splice, append and delete."""
    saver = InMemorySaver()
    built = StateGraph(Types)
    built.add_node("first", lambda s: _values())
    built.add_node("second", lambda s: {"nested": _edited(s["nested"]), "points": (*s["points"], Point(3, 4.5))})
    built.add_sequence([("third", lambda s: {"atoms": [*s["atoms"][:3], "spliced", *s["atoms"][4:]]})])
    built.add_edge(START, "first").add_edge("first", "second").add_edge("second", "third")
    built.compile(checkpointer=saver, name="types").invoke({}, CONFIG)
    return saver.log, THREAD


def _values() -> dict[str, Any]:
    leaves = {
        "big": 2**80, "bytearray": bytearray(b"ab"), "datetime": datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        "date": date(2026, 1, 2), "timedelta": timedelta(days=1, microseconds=2), "uuid": UUID(int=5),
        "decimal": Decimal("1.50"), "set": {"b", "a"}, "frozenset": frozenset([1, 2]), "tuple": (1, "two"),
    }  # fmt: skip
    atoms = [None, True, -1, 1.5, "text \ud800", b"bytes", float("inf"), {}, [], *range(40)]
    nested = {"kept": "k" * 40, "gone": 1, "changed": {"deep": [1, 2], "other": "o" * 40}}
    return {"leaves": leaves, "atoms": atoms, "colour": Colour.RED, "points": (Point(1, 2.0),) * 6, "nested": nested}


def _edited(nested: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in nested.items() if key != "gone"}
    return {**kept, "changed": {**nested["changed"], "deep": [1, 2, 3]}, "new": True}


class Work(TypedDict):
    seen: Annotated[list[str], operator.add]


FAILS: dict[str, Sequence[Exception | None]] = {}


def _node(name: str) -> Callable[[Any], Any]:
    left: Iterator[Exception | None] = iter(FAILS.get(name, ()))

    def node(state: Any) -> Any:
        error = next(left, None)
        if error is not None:
            raise error
        return {"seen": [f"{name} was here, and this is long enough to be taken"]}

    return node


def faults() -> tuple[Log, str]:
    """A retry, a dead process, a parked task, a failure that rests the run, a continue run, a poisonous task."""
    FAILS.update(flaky=[ConnectionError("no line")], fatal=[ValueError("not today")])
    built = StateGraph(Work)
    built.add_node("flaky", _node("flaky"), retry_policy=RetryPolicy(initial_interval=0.05, jitter=False))
    built.add_node("steady", _node("steady")).add_node("fatal", _node("fatal"))
    built.add_edge(START, "flaky").add_edge(START, "steady").add_edge(["flaky", "steady"], "fatal")
    with _hand(built.spec("faults")) as hand:
        hand.start({"seen": []})
        hand.do(*hand.claim())
        flaky, steady = sorted(hand.claim(2), key=lambda lease: lease.node)
        hand.moves.release(WORKER, [steady.token], "parked", "graph 'faults' is not registered here; registered: none")
        hand.do(flaky)
        again = {lease.node: lease for lease in hand.claim(2)}
        hand.do(again["steady"])
        hand.moves.release(WORKER, [again["flaky"].token], "lost")
        hand.do(*hand.claim(queue="faults.suspect"))
        hand.do(*hand.claim())
        hand.drain()
        hand.start(None, "continue")
        _poison(hand)
        return _copied(hand.log), THREAD


def _poison(hand: Hand) -> None:
    for alone in range(4):
        [lease] = hand.claim(queue="faults.suspect" if alone else "")
        hand.moves.release(WORKER, [lease.token], "lost")


def queue_cancel() -> tuple[Log, str]:
    """Two inputs that wait, one of them cancelled while it waits; a run cancelled under way, continued to its end."""
    built = StateGraph(Work)
    built.add_sequence([("one", _node("one")), ("two", _node("two"))]).add_edge(START, "one")
    with _hand(built.spec("waiting")) as hand:
        hand.start({"seen": ["first"]}, metadata={"order": 1})
        dropped = hand.start({"seen": ["second"]}, metadata={"order": 2})
        hand.start({"seen": ["third, and long enough to be taken from its fact"]}, metadata={"order": 3})
        assert hand.moves.cancel(THREAD, dropped, "operator") == "cancelled"
        for _ in range(5):
            hand.do(*hand.claim())
        assert hand.moves.cancel(THREAD, actor="operator") == "cancelled"
        hand.start(None, "continue")
        hand.drain()
        return _copied(hand.log), THREAD


def unplanned() -> tuple[Log, str]:
    """Writes that exclude each other: outcomes are kept, the join fails, the run rests."""
    saver = InMemorySaver()
    built = StateGraph(Counting)
    built.add_node("x", lambda s: {"count": 1}).add_node("y", lambda s: {"count": 2})
    built.add_edge(START, "x").add_edge(START, "y")
    try:
        built.compile(checkpointer=saver, name="conflict").invoke({"count": 0}, CONFIG)
    except ValueError:
        return saver.log, THREAD
    raise AssertionError("a conflict passed")


def update() -> tuple[Log, str]:
    """A run that meets its recursion limit, an update in a node's place, and a run that goes on from it."""
    saver = InMemorySaver()
    built = StateGraph(Counting)
    built.add_node("inc", lambda s: {"count": s["count"] + 1})
    built.add_edge(START, "inc")
    built.add_conditional_edges("inc", lambda s: END if s["count"] >= 10 else "inc", ["inc", END])
    graph = built.compile(checkpointer=saver, name="limited")
    try:
        graph.invoke({"count": 0}, {**CONFIG, "recursion_limit": 2})
    except RecursionError:
        graph.update_state(CONFIG, {"count": 8}, as_node="inc")
        graph.invoke(None, CONFIG)
        return saver.log, THREAD
    raise AssertionError("no limit")


def questions() -> tuple[Log, str]:
    """A breakpoint passed with an early answer; two tasks that ask, one with a schema, answered by two runs; an answer
    that the asker's type refuses, so that it asks again."""
    saver = InMemorySaver()
    built = StateGraph(Work)
    built.add_node("early", lambda s: {"seen": [interrupt("which way?")]})
    built.add_node("plain", lambda s: {"seen": [interrupt({"sure?": ["yes", "no"]})]})
    built.add_node("typed", lambda s: {"seen": [str(interrupt("how many?", response_schema=Even))]})
    built.add_edge(START, "early").add_edge("early", "plain").add_edge("early", "typed")
    graph = built.compile(checkpointer=saver, name="asking", interrupt_before=["early"])
    graph.invoke({"seen": []}, CONFIG)
    asked = graph.invoke(Command(resume="left"), CONFIG)["__interrupt__"]
    ids = {each.value if isinstance(each.value, str) else "plain": each.id for each in asked}
    graph.invoke(Command(resume={ids["plain"]: "yes"}), CONFIG)
    graph.invoke(Command(resume=3), CONFIG)
    graph.invoke(Command(resume=4), CONFIG)
    return saver.log, THREAD


def options() -> tuple[Log, str]:
    """Options of nodes: a deferred one and a join that wait, an outcome from a cache, error handlers alone and beside
    siblings, one of which fails and is repeated."""
    saver, broken = InMemorySaver(), [True]

    def fails(state: Work) -> dict[str, Any]:
        raise ValueError("boom")

    def handler(state: Work, error: NodeError) -> dict[str, Any]:
        if broken[0]:
            raise RuntimeError("the handler broke")
        return {"seen": [f"handled {error.node}"]}

    built = StateGraph(Work)
    built.add_node("plain", lambda s: {"seen": ["plain"]}, cache_policy=CachePolicy(key_func=lambda state: "same"))
    built.add_node("beside", fails, error_handler=handler).add_node("alone", fails, error_handler=handler)
    built.add_node("end", lambda s: {"seen": ["end"]}, defer=True).set_node_defaults(timeout=5)
    for name in ("plain", "beside", "end"):
        built.add_edge(START, name)
    built.add_edge("plain", "alone").add_edge(["alone", "plain"], "end")
    graph = built.compile(checkpointer=saver, cache=InMemoryCache(), name="options")
    inputs: tuple[Any, ...] = ({"seen": []}, None, {"seen": ["again"]})
    for given in inputs:
        broken[0] = given == {"seen": []}
        with contextlib.suppress(RuntimeError):
            graph.invoke(given, CONFIG)
    return saver.log, THREAD


def commands() -> tuple[Log, str]:
    """A Command where a question waits: an update, a node and a Send beside it. On a thread that is done: an update
    alone, one that goes to a node, and an input behind another update."""
    saver = InMemorySaver()
    built = StateGraph(Work)
    built.add_node("ask", lambda s: {"seen": [interrupt("sure?")]})
    built.add_node("look", lambda s: {"seen": [f"saw {len(s['seen'])}"]})
    built.add_conditional_edges(START, lambda s: "ask", ["ask", "look"])
    graph = built.compile(checkpointer=saver, name="commanded")
    graph.invoke({"seen": []}, CONFIG)
    graph.invoke(Command(update={"seen": ["told"]}, goto=["look", Send("look", {"seen": []})], resume="yes"), CONFIG)
    graph.invoke(Command(update={"seen": ["more"]}), CONFIG)
    graph.invoke(Command(goto="look"), CONFIG)
    graph.invoke(Command(update={"seen": ["last"]}), CONFIG)
    graph.invoke({"seen": ["new"]}, CONFIG)
    graph.invoke(Command(goto="look"), CONFIG)
    return saver.log, THREAD


def migrated() -> tuple[Log, str]:
    """A node that was renamed: its parked task goes on as another one, and its sibling's is done without a word."""
    built = StateGraph(Work)
    built.add_node("steady", _node("steady")).add_node("other", _node("other"))
    built.add_edge(START, "steady").add_edge(START, "other")
    with _hand(built.spec("migrated")) as hand:
        run = hand.start({"seen": []})
        hand.do(*hand.claim())
        other, steady = sorted(hand.claim(2), key=lambda lease: lease.node)
        hand.moves.release(WORKER, [other.token, steady.token], "parked", "graph 'migrated' is not registered here")
        says = {"steady": "other", "other": END}
        changes = tuple(Change(THREAD, lease.task, lease.node, says[lease.node]) for lease in (other, steady))
        with Client("", Keys(rq="rq"), hand.scripts.client) as client:
            publish(client.redis, client.keys, [hand.spec])
            assert apply(client, Plan(THREAD, other.n, other.digest, run, "migrated", changes), "kim") == ["p1", "p0"]
        hand.drain()
        return _copied(hand.log), THREAD


def _even(n: int) -> int:
    if n % 2:
        raise ValueError("an even number, please")
    return n


Even = Annotated[int, AfterValidator(_even)]


def _family() -> Log:
    """A run whose child asks two questions at once, is answered by two runs, and ends with a Command for its parent."""
    saver, child = InMemorySaver(), StateGraph(Work)
    child.add_node("one", lambda s: {"seen": [interrupt("one?", response_schema={"type": "string"})]})
    child.add_node("two", lambda s: {"seen": [interrupt("two?")]})
    up: Command[str] = Command(graph=Command.PARENT, update={"seen": ["up"]}, goto=["end", Send("end", {"seen": []})])
    child.add_node("up", lambda s: up)
    child.add_edge(START, "one").add_edge(START, "two").add_edge(["one", "two"], "up")
    built = StateGraph(Work).add_node("child", child.compile(), destinations=("end",))
    built.add_node("end", lambda s: {"seen": ["end"]}).add_edge(START, "child")
    graph = built.compile(checkpointer=saver, name="family")
    asked = graph.invoke({"seen": []}, CONFIG)["__interrupt__"]
    ids = {each.value: each.id for each in asked}
    graph.invoke(Command(resume={ids["two?"]: 2}), CONFIG)
    graph.invoke(Command(resume="1"), CONFIG)
    return saver.log


def calls() -> tuple[Log, str]:
    """The parent's side of a graph in a graph: it calls, waits with the child's questions, and takes its Command."""
    return _family(), THREAD


def called() -> tuple[Log, str]:
    """The child's side of it: runs that name their caller, and a rest with a Command for it."""
    log = _family()
    return log, next(children(log, THREAD))


def within() -> tuple[Log, str]:
    """A graph that a node calls, in a log that its attempts keep: it asks, and the next attempt goes on there."""
    saver, inner = InMemorySaver(), StateGraph(Work)
    inner.add_node("look", _node("look")).add_node("ask", lambda s: {"seen": [interrupt("which?")]})
    callee = inner.add_edge(START, "look").add_edge("look", "ask").compile(name="callee")
    built = StateGraph(Work).add_node("caller", lambda s: {"seen": callee.invoke({"seen": ["called"]})["seen"]})
    graph = built.add_edge(START, "caller").compile(checkpointer=saver, name="caller")
    graph.invoke({"seen": []}, CONFIG)
    graph.invoke(Command(resume="this"), CONFIG)
    return saver.log, next(children(saver.log, THREAD))


def in_place() -> tuple[Log, str]:
    """A replay, and one in place at its fork; then the graph that a node called is edited so that it asks no more, and
    an answer that says nothing has the node look again."""
    saver, inner = InMemorySaver(), StateGraph(Work)
    inner.add_node("look", _node("look")).add_node("ask", lambda s: {"seen": [interrupt("which?")]})
    callee = inner.add_edge(START, "look").add_edge("look", "ask").compile(name="callee")
    built = StateGraph(Work).add_node("caller", lambda s: {"seen": callee.invoke({"seen": ["called"]})["seen"]})
    built.add_node("beside", _node("beside")).add_edge(START, "caller").add_edge(START, "beside")
    graph = built.compile(checkpointer=saver, name="caller")
    graph.invoke({"seen": []}, CONFIG)
    for _ in range(2):
        graph.invoke(None, graph.get_state(CONFIG).config)
    below = next(x.state for x in graph.get_state(CONFIG).tasks if x.state)
    graph.update_state(below, {"seen": ["told"]}, as_node="ask")
    graph.invoke(None, CONFIG)
    return saver.log, THREAD


@task
def _double(n: int) -> int:
    return n * 2


def effects() -> tuple[Log, str]:
    """An entrypoint with calls of a task, one within another, and an effect in each; it asks, runs again with what is
    recorded, and runs once more with what it saved."""
    saver = InMemorySaver()

    @task
    def outer(n: int) -> int:
        return once("count", lambda: int(_double(n).result()) + 1)

    @entrypoint(saver, name="flow")
    def flow(n: int, *, previous: int | None = None) -> entrypoint.final[list[Any], int]:
        found = [_double(n).result(), outer(n).result(), once("mail", lambda: f"sent {n}")]
        return entrypoint.final(value=[*found, interrupt("go on?"), previous], save=n)

    for n in (1, 2):
        flow.invoke(n, CONFIG)
        flow.invoke(Command(resume="yes"), CONFIG)
    return saver.log, THREAD


def announced() -> tuple[Log, str]:
    """An entrypoint whose calls somebody follows: one that fails, one that asks and begins again, one whose argument no
    log can have."""
    saver = InMemorySaver()

    @task
    def tried(n: int) -> int:
        raise ValueError(f"no {n}")

    @task
    def asks(what: Any) -> Any:
        return interrupt("go on?")

    @entrypoint(saver, name="flow")
    def flow(n: int) -> list[Any]:
        with contextlib.suppress(ValueError):
            tried(n).result()
        return [_double(n).result(), asks(object()).result()]

    flow.invoke(1, CONFIG, stream_mode="tasks")
    flow.invoke(Command(resume="yes"), CONFIG, stream_mode="tasks")
    return saver.log, THREAD


STORIES: tuple[Story, ...] = (
    chain, payload, wide, sends, fork, branch, snapshot, trimmed, types, faults, queue_cancel, unplanned, update,
    questions, options, calls, called, within, in_place, commands, effects, announced, migrated,
)  # fmt: skip
