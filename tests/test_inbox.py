"""The inbox: whoever can XADD can start a run; nothing bad that is sent harms the reader or the next message."""

from __future__ import annotations

import json
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import pytest
import redis

from everstep_checkpoint.errors import ServerUnavailable
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_scheduler.client.client import Client, connect, publish
from everstep_scheduler.client.inbox import InboxReader
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.moves.connection import connect as connected
from servers import wait_for

KEYS = Keys(rq="rq")


class State(TypedDict):
    count: int


@pytest.fixture
def fleet(redis_url: str, client: redis.Redis) -> Iterator[Client]:
    """A server that knows the graph `counter`; nobody works."""
    graph = StateGraph(State)
    graph.add_node("inc", lambda state: {"count": state["count"] + 1})
    graph.add_edge(START, "inc")
    publish(client, KEYS, [graph.spec("counter")])
    with connect(redis_url) as made:
        yield made


@contextmanager
def reading(url: str, said: Callable[[str], None] = print) -> Iterator[InboxReader]:
    stop = threading.Event()
    reader = InboxReader(url, KEYS, said)
    thread = threading.Thread(target=reader.run, args=(stop.is_set,))
    thread.start()
    try:
        yield reader
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def read_once(url: str) -> InboxReader:
    """One reader's turn over what is there; then it leaves."""
    reader = InboxReader(url, KEYS)
    assert reader.turn() > 0
    reader.run(lambda: True)
    return reader


def send(client: redis.Redis, **fields: Any) -> bytes:
    message = {"graph": "counter", "thread": "t", "input": '{"count": 0}', **fields}
    return client.xadd(KEYS.inbox, {name: value for name, value in message.items() if value is not None})  # type: ignore[return-value]


def rejected(client: Any) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in client.xrange(KEYS.inbox_rejected)]


def test_a_message_becomes_a_run_and_leaves_the_inbox(fleet: Client, client: redis.Redis, redis_url: str) -> None:
    entry_id = send(client, actor="ops").decode()
    with reading(redis_url):
        wait_for(lambda: client.xlen(KEYS.inbox) == 0)
    assert fleet.run("t").run_id == f"inbox-{entry_id}"
    assert fleet.run("t").status() == "running"
    assert next(fleet.log("t")).text("actor") == "ops"


def test_a_message_may_name_its_run_and_comes_twice_without_harm(
    fleet: Client, client: redis.Redis, redis_url: str
) -> None:
    send(client, run="r1")
    send(client, run="r1")
    read_once(redis_url)
    assert client.xlen(KEYS.inbox) == 0
    assert len(list(fleet.log("t"))) == 1
    assert rejected(client) == []


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no graph": ({"graph": None}, "lacks graph"),
    "nothing at all": ({"graph": None, "thread": None, "input": None, "x": "y"}, "lacks graph, thread, input"),
    "unknown graph": ({"graph": "countre"}, "Did you mean 'counter'"),
    "not JSON": ({"input": "{count: 0}"}, "not JSON"),
    "no JSON number": ({"input": '{"count": NaN}'}, "NaN is no JSON number"),
    "too deep": ({"input": "[" * 100_000}, "not JSON"),
    "not an object": ({"input": "[1]"}, "must be a dict"),
    "null": ({"input": "null"}, "no input"),
    "fails the schema": ({"input": '{"count": "three"}'}, "count: must be integer, not string"),
    "unknown key": ({"input": '{"cuont": 3}'}, "Did you mean 'count'"),
    "thread too long": ({"thread": "t" * 513}, "513"),
    "thread with control characters": ({"thread": "a\nb"}, "printable"),
    "run id with a space": ({"run": "a b"}, "run_id"),
    "not UTF-8": ({"input": b"\xff\xfe"}, "not UTF-8"),
    "too large": ({"input": json.dumps({"count": "x" * 2**20})}, "the cap is"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_message_is_put_aside_with_the_reason(
    fleet: Client, client: redis.Redis, redis_url: str, what: str
) -> None:
    fields, reason = BAD[what]
    send(client, **fields)
    send(client, thread="good")
    read_once(redis_url)
    assert client.xlen(KEYS.inbox) == 0
    [aside] = rejected(client)
    assert reason in aside[b"reason"].decode()
    assert all(len(value) <= 4096 for value in aside.values())
    assert [info.thread_id for info in fleet.threads()] == ["good"]


def test_a_field_name_that_is_no_text_is_put_aside_too(fleet: Client, client: redis.Redis, redis_url: str) -> None:
    client.xadd(KEYS.inbox, {b"\xff": b"1", b"graph": b"counter", b"thread": b"t", b"input": b"{}"})
    read_once(redis_url)
    assert client.xlen(KEYS.inbox) == 0
    assert b"not UTF-8" in rejected(client)[0][b"reason"]


def test_a_run_id_with_another_input_is_put_aside(fleet: Client, client: redis.Redis, redis_url: str) -> None:
    send(client, run="r1")
    send(client, run="r1", input='{"count": 7}')
    read_once(redis_url)
    assert client.xlen(KEYS.inbox) == 0
    assert b"another input" in rejected(client)[0][b"reason"]


def test_one_reads_at_a_time_and_another_takes_over(fleet: Client, client: redis.Redis, redis_url: str) -> None:
    first, second = InboxReader(redis_url, KEYS), InboxReader(redis_url, KEYS)
    send(client, thread="a")
    assert first.turn() == 1
    send(client, thread="b")
    assert second.turn(lambda: True) == 0
    assert client.xlen(KEYS.inbox) == 1
    client.delete(KEYS.inbox_reader)  # the first one died, and its key ended
    assert second.turn() == 1
    assert {info.thread_id for info in fleet.threads()} == {"a", "b"}
    for reader in (first, second):
        reader.run(lambda: True)


def test_a_reader_that_stops_gives_its_place_back(fleet: Client, client: redis.Redis, redis_url: str) -> None:
    with reading(redis_url):
        wait_for(lambda: client.exists(KEYS.inbox_reader))
    assert not client.exists(KEYS.inbox_reader)


def test_a_crash_between_submit_and_delete_submits_the_same_run_again(
    fleet: Client, client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(client)
    dying = InboxReader(redis_url, KEYS)
    monkeypatch.setattr(redis.Redis, "xdel", _dies)
    with pytest.raises(_Died):
        dying.turn()
    monkeypatch.undo()
    client.delete(KEYS.inbox_reader)
    assert InboxReader(redis_url, KEYS).turn() == 1
    assert len(list(fleet.log("t"))) == 1
    assert rejected(client) == [] and client.xlen(KEYS.inbox) == 0


class _Died(BaseException):
    pass


def _dies(*_: Any) -> None:
    raise _Died


def test_the_rejected_ones_are_bounded(
    fleet: Client, client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everstep_scheduler.client.inbox.REJECTED_MAX", 10)
    monkeypatch.setattr("everstep_scheduler.client.inbox.BATCH_MAX", 500)
    client.config_set("stream-node-max-entries", 5)
    for _ in range(60):
        send(client, graph="nobody")
    InboxReader(redis_url, KEYS).turn()
    client.config_set("stream-node-max-entries", 100)
    assert client.xlen(KEYS.inbox) == 0
    assert 10 <= client.xlen(KEYS.inbox_rejected) <= 20


def test_the_reader_may_be_given_a_way_to_make_clients(fleet: Client, client: redis.Redis, redis_url: str) -> None:
    send(client)
    reader = InboxReader(lambda block_s: connected(redis_url, block_s=block_s), KEYS)
    assert reader.turn() == 1


def test_a_message_is_a_run_within_fifty_milliseconds(fleet: Client, client: redis.Redis, redis_url: str) -> None:
    took: list[float] = []
    with reading(redis_url):
        wait_for(lambda: client.exists(KEYS.inbox_reader))
        for _ in range(15):
            thread, began = new_id(), time.perf_counter()
            send(client, thread=thread)
            while not client.exists(KEYS.log(thread)):
                time.sleep(0.001)
            took.append(time.perf_counter() - began)
    assert statistics.median(took) < 0.05


# what is planted beside the inbox


def with_schema(client: redis.Redis, schema: object) -> None:
    """The manifest of the graph `evil`."""
    stored: Any = client.get(KEYS.graph("counter"))
    client.set(KEYS.graph("evil"), json.dumps({**json.loads(stored), "name": "evil", "input_schema": schema}))


def twice_twice_twice(depth: int) -> object:
    """A schema of a few lines that is followed 2 ** depth times."""
    steps: dict[str, Any] = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(depth)}
    return {"$defs": {**steps, f"d{depth}": {}}, "$ref": "#/$defs/d0"}


SCHEMAS: dict[str, tuple[object, str]] = {
    "refers to itself": ({"$ref": "#"}, "{}"),
    "refers to itself ever so often": (twice_twice_twice(40), "{}"),
    "has a type that is none": ({"type": "evil"}, "{}"),
    "has rules of the wrong types": ({"required": 5, "properties": [1], "allOf": 7}, "{}"),
    "compares with a text": ({"properties": {"a": {"minimum": "x"}}}, '{"a": 5}'),
    "has a pattern without end": ({"properties": {"a": {"pattern": "^(a+)+$"}}}, json.dumps({"a": "a" * 60 + "!"})),
    "has keys of a pattern without end": (
        {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
        json.dumps({"a" * 60 + "!": 1}),
    ),
}


@pytest.mark.parametrize("which", SCHEMAS)
def test_a_manifest_can_not_stop_the_inbox(fleet: Client, client: redis.Redis, redis_url: str, which: str) -> None:
    schema, given = SCHEMAS[which]
    with_schema(client, schema)
    send(client, graph="evil", input=given)
    send(client, thread="good")
    read_once(redis_url)
    assert client.xlen(KEYS.inbox) == 0
    assert client.exists(KEYS.thread("good")), "the message behind it has become a run"
    assert len(rejected(client)) == 1


def test_patterns_of_a_schema_are_still_checked(fleet: Client, client: redis.Redis, redis_url: str) -> None:
    with_schema(
        client, {"properties": {"a": {"pattern": "^[a-z]+-[0-9]{2}$"}, "b": {"pattern": "(?=only Python knows this)"}}}
    )
    send(client, graph="evil", input='{"a": "order-17", "b": "x"}', thread="fits")
    send(client, graph="evil", input='{"a": "order-x"}', thread="does not")
    read_once(redis_url)
    assert client.exists(KEYS.thread("fits"))
    (refused,) = rejected(client)
    assert b"fails pattern" in refused[b"reason"]


def a_foreign_end(client: Any) -> None:
    with connect_like(client) as made:
        made.submit("counter", {"count": 0}, thread_id="bad")
    client.xadd(KEYS.log("bad"), {"a": "b"}, id="9999-0")


def connect_like(client: redis.Redis) -> Client:
    return Client("", KEYS, client)


def an_endless_next(client: Any) -> None:
    begun = {"v": "1", "kind": "run_started", "run": "x", "birth": "b", "graph": "counter", "at": "1", "step": "-2"}
    client.xadd(KEYS.log("bad"), begun, id="0-1")
    client.xadd(KEYS.log("bad"), {"v": "1", "kind": "checkpoint", "next": "[" * 100_000}, id="1-0")


@pytest.mark.parametrize(
    "plant",
    [
        a_foreign_end,
        an_endless_next,
        lambda client: client.lpush(KEYS.log("bad"), "x"),
        lambda client: client.lpush(KEYS.thread("bad"), "x"),
        lambda client: client.lpush(KEYS.runs("bad"), "x"),
        lambda client: client.set(KEYS.inbox_reader, "nobody, for ever"),
        lambda client: client.set(KEYS.inbox_tries, "junk"),
    ],
    ids=["a foreign end", "a next without end", "log", "thread", "runs", "reader", "tries"],
)
def test_a_broken_thread_can_not_stop_the_inbox(
    fleet: Client, client: redis.Redis, redis_url: str, plant: Callable[[Any], None]
) -> None:
    plant(client)
    send(client, thread="bad")
    send(client, thread="good")
    with reading(redis_url):
        wait_for(lambda: not client.xlen(KEYS.inbox), what="the inbox to be empty")
    assert client.exists(KEYS.thread("good"))


# what is large, what kills, and what ends the stream


class Several(TypedDict, total=False):
    many: list[int | str | float | None]
    tags: set[str]


@pytest.fixture
def several(redis_url: str, client: redis.Redis) -> Iterator[Client]:
    """A server that knows the graph `several`, whose input has a list of a union, and a set."""
    graph = StateGraph(Several).add_node("n", lambda state: {}).add_edge(START, "n")
    publish(client, KEYS, [graph.spec("several")])
    with connect(redis_url) as made:
        yield made


def test_a_message_that_is_wrong_in_a_hundred_thousand_places_takes_little(
    several: Client, client: redis.Redis, redis_url: str
) -> None:
    """A tree with an error for each item and form took gigabytes, in one worker after the other."""
    wrong = b'{"many": [' + b",".join([b"{}"] * 100_000) + b"]}"
    send(client, graph="several", input=wrong)
    tracemalloc.start()
    try:
        read_once(redis_url)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 50 * 2**20
    (refused,) = rejected(client)
    assert b"many[0]: fits none of its 4 forms, being object" in refused[b"reason"]
    assert b"(and more)" in refused[b"reason"]


def test_a_long_set_of_objects_is_compared_in_linear_time(several: Client, client: redis.Redis, redis_url: str) -> None:
    """Each with each took 0.1 s for a thousand, and a hundred times as long for ten thousand."""
    send(client, graph="several", input=json.dumps({"tags": [{"a": i} for i in range(10_000)] + ["x"]}))
    began = time.perf_counter()
    read_once(redis_url)
    assert time.perf_counter() - began < 5
    assert b"tags[0]: must be string, not object" in rejected(client)[0][b"reason"]


class _Killed(BaseException):
    """What ends a process ends the reader."""


def test_a_message_that_ends_its_readers_is_put_aside_after_three(
    fleet: Client, client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(reader: InboxReader, made: Client, entry_id: bytes, said: Any) -> None:
        if said["thread"] == "deadly":
            raise _Killed
        plain(reader, made, entry_id, said)

    plain: Any = InboxReader._submit
    monkeypatch.setattr(InboxReader, "_submit", submit)
    send(client, thread="deadly")
    send(client, thread="good")
    for _ in range(3):
        with pytest.raises(_Killed):
            InboxReader(redis_url, KEYS).turn()
        client.delete(KEYS.inbox_reader)  # what a dead one leaves ends by itself
    assert 0 < client.ttl(KEYS.inbox_tries) <= 86_400
    read_once(redis_url)
    assert client.xlen(KEYS.inbox) == 0 and not client.exists(KEYS.inbox_tries)
    assert b"3 processes have begun with the message" in rejected(client)[0][b"reason"]
    assert client.exists(KEYS.thread("good")), "the message behind it has become a run"


def test_an_outage_is_not_held_against_a_message(
    fleet: Client, client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise ServerUnavailable("Redis is away")

    send(client)
    reader = InboxReader(redis_url, KEYS)
    with monkeypatch.context() as patched:
        patched.setattr(InboxReader, "_submit", away)
        for _ in range(5):
            with pytest.raises(ServerUnavailable):
                reader.turn()
    reader.turn()
    assert client.exists(KEYS.thread("t")) and not rejected(client)


LAST_ID = "18446744073709551615-18446744073709551615"


@pytest.mark.parametrize("trimmed", [False, True], ids=["it stays", "it empties the stream"])
def test_the_last_possible_id_does_not_end_the_inbox(
    fleet: Client, client: Any, redis_url: str, trimmed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind it a stream takes nothing any more. What waits before it is kept."""
    monkeypatch.setattr("everstep_scheduler.client.inbox.BLOCK_MS", 10)
    if trimmed:
        client.execute_command("XADD", KEYS.inbox, "MAXLEN", "0", LAST_ID, "x", "y")
    else:
        send(client, thread="before")
        client.xadd(KEYS.inbox, {"x": "y"}, id=LAST_ID)
    with pytest.raises(redis.ResponseError):
        send(client, thread="refused")
    reader = InboxReader(redis_url, KEYS)
    reader.turn(lambda: not trimmed)
    reader.run(lambda: True)
    send(client, thread="behind")
    InboxReader(redis_url, KEYS).turn()
    assert client.exists(KEYS.thread("behind"))
    assert bool(client.exists(KEYS.thread("before"))) is not trimmed
    client.delete(KEYS.inbox_reader)
    InboxReader(redis_url, KEYS).turn()
    assert not client.exists(KEYS.inbox_replaced)
