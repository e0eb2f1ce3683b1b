"""What tests of signed entries share: graphs, keys, and the hand of somebody who may write to Redis."""

from __future__ import annotations

import base64
import json
import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from everstep_checkpoint import entries as e
from everstep_checkpoint.log import Log
from everstep_checkpoint.signing import Keyring
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.savers import RedisSaver
from hand import KEYS, THREAD, Hand

ONE, TWO = base64.b64encode(b"1" * 32).decode(), base64.b64encode(b"2" * 32).decode()
CONFIG: Any = {"configurable": {"thread_id": THREAD}}


class State(TypedDict, total=False):
    count: int
    seen: Annotated[list[str], operator.add]


RAN: list[str] = []


def node(name: str) -> Callable[[State], State]:
    def runs(state: State) -> State:
        RAN.append(name)
        return {"seen": [name]}

    return runs


def says(word: str) -> Callable[[State], State]:
    return lambda state: {"seen": [word]}


def chain(*names: str) -> StateGraph:
    """Nodes one behind the other, and `danger`, to which nothing leads here."""
    built = StateGraph(State)
    for name in dict.fromkeys([*names, "danger"]):
        built.add_node(name, node(name))
    for one, two in zip([START, *names[:-1]], names, strict=True):
        built.add_edge(one, two)
    built.add_conditional_edges(names[-1], lambda state: END, ["danger", END])
    return built


def wide() -> StateGraph:
    built = StateGraph(State)
    for name in ("left", "right", "last", "danger"):
        built.add_node(name, node(name))
    built.add_edge(START, "left")
    built.add_edge(START, "right")
    built.add_edge(["left", "right"], "last")
    built.add_conditional_edges("last", lambda state: END, ["danger", END])
    return built


def keyring(**keys: str) -> Keyring:
    return Keyring({name: base64.b64decode(key) for name, key in (keys or {"k1": ONE}).items()})


def facts(log: Log, kind: str, thread: str = THREAD) -> list[e.Entry]:
    return [x for x in log.read(thread) if x.kind == kind]


def raw(client: Any, at: str, thread: str = THREAD) -> dict[bytes, bytes]:
    [(_, fields)] = client.xrange(KEYS.log(thread), at, at)
    return dict(fields)


def edit(client: Any, task: str, thread: str = THREAD, **changes: Any) -> None:
    """Change the record of an open task."""
    record = json.loads(client.hget(KEYS.open(thread), task))
    client.hset(KEYS.open(thread), task, json.dumps({**record, **changes}))


def refused(hand: Hand, why: str, thread: str = THREAD) -> None:
    """All that is handed out now ends with that reason, in the log and for who looks; the run rests as failed."""
    while hand.held or hand.claim(8):
        hand.do()
    failed = facts(hand.log, "task_failed", thread)
    assert failed, hand.log.read(thread)
    assert why in json.loads(failed[-1].text("error"))["text"]
    assert "Forged" in json.loads(failed[-1].text("error"))["type"]
    assert hand.client.hget(KEYS.thread(thread), "status") == b"failed"
    assert "danger" not in RAN


def saver_at(client: Any) -> Any:
    """A saver at the server of a client, under the names of a hand."""
    kwargs = client.connection_pool.connection_kwargs
    saver = RedisSaver(f"unix://{kwargs['path']}" if "path" in kwargs else "redis://127.0.0.1:6379/0")
    return saver


def plant(client: Any, n: int, record: dict[str, Any]) -> None:
    """A job for a task that is due no more, or not yet, and all that leads to it."""
    job = f"j-{n}-p0-1-abcd"
    client.hset(KEYS.open(THREAD), "p0", json.dumps({**record, "p": "job", "j": job}))
    named = json.dumps({"thread": THREAD, "n": n, "task": "p0", "keys": KEYS.stem})
    client.hset(KEYS.rq_job(job), mapping={"everstep": named, "origin": "g"})
    client.rpush(KEYS.rq_queue("g"), job)
