"""The fault proxy breaks what it is told to break, and nothing else."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
import redis

from proxy import FaultProxy
from servers import StartServer, plain_client, wait_for


@pytest.fixture
def through(proxy: FaultProxy) -> Iterator[redis.Redis]:
    """A client that reaches the server through the proxy."""
    with plain_client(proxy.url) as connection:
        yield connection


def test_what_passes_is_not_changed(through: redis.Redis, client: redis.Redis, seed: random.Random) -> None:
    value = seed.randbytes(300_000)
    through.set("big", value)
    assert client.get("big") == value
    assert through.get("big") == value


def test_a_dropped_reply_leaves_the_command_done(through: redis.Redis, proxy: FaultProxy) -> None:
    through.ping()
    dropped = proxy.drop_next_reply(b"INCR")
    with pytest.raises(redis.ConnectionError):
        through.incr("n")
    assert dropped.wait(5)
    assert through.get("n") == b"1"
    assert through.incr("n") == 2, "one fault strikes once"


def test_a_dropped_reply_finds_its_request_by_any_part_of_it(
    through: redis.Redis, proxy: FaultProxy, seed: random.Random
) -> None:
    value = seed.randbytes(200_000) + b"needle" + seed.randbytes(100_000)
    dropped = proxy.drop_next_reply(b"needle")
    through.set("other", b"hay")
    assert not dropped.is_set()
    with pytest.raises(redis.ConnectionError):
        through.set("big", value)
    assert dropped.is_set()
    assert through.get("big") == value


def test_a_dropped_reply_waits_until_a_pipeline_is_done(through: redis.Redis, proxy: FaultProxy) -> None:
    through.ping()
    dropped = proxy.drop_next_reply(b"two")
    pipeline = through.pipeline(transaction=True)
    for key in ("one", "two", "three"):
        pipeline.set(key, 1)
    with pytest.raises(redis.ConnectionError):
        pipeline.execute()
    assert dropped.wait(5)
    assert through.mget("one", "two", "three") == [b"1", b"1", b"1"]


def test_a_dropped_request_never_arrives(through: redis.Redis, proxy: FaultProxy) -> None:
    through.ping()
    dropped = proxy.drop_next_request(b"INCR")
    with pytest.raises(redis.ConnectionError):
        through.incr("n")
    assert dropped.wait(5)
    assert through.get("n") is None


def test_a_fault_strikes_only_the_connection_that_asked(proxy: FaultProxy) -> None:
    with plain_client(proxy.url) as unlucky, plain_client(proxy.url) as other:
        assert unlucky.ping() and other.ping()
        proxy.drop_next_reply(b"INCR")
        with pytest.raises(redis.ConnectionError):
            unlucky.incr("n")
        connections = proxy.connections
        assert other.incr("n") == 2
        assert proxy.connections == connections, "the other one did not have to reconnect"


def test_a_black_hole_holds_everything_and_heals(through: redis.Redis, proxy: FaultProxy, client: redis.Redis) -> None:
    through.ping()
    proxy.black_hole()
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(through.incr("n")))
    asking.start()
    with plain_client(proxy.url, socket_timeout=0.2) as hurried, pytest.raises(redis.TimeoutError):
        hurried.ping()
    assert answers == [] and client.get("n") is None
    proxy.heal()
    asking.join(5)
    assert answers == [1]


def test_an_abandoned_connection_is_silent_for_good_and_new_ones_are_served(
    proxy: FaultProxy, client: redis.Redis
) -> None:
    with plain_client(proxy.url, socket_timeout=0.2) as old, plain_client(proxy.url) as new:
        assert old.ping()
        assert proxy.abandon() == 1
        with pytest.raises(redis.TimeoutError):
            old.incr("n")
        assert new.ping() and client.get("n") is None
    wait_for(lambda: proxy.open_links == 0, what="both to be let go")


def test_refusing_looks_like_no_server_and_the_port_stays(through: redis.Redis, proxy: FaultProxy) -> None:
    through.set("k", 1)
    proxy.refuse()
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            through.get("k")
    proxy.accept()
    assert through.get("k") == b"1"


def test_cut_closes_what_is_open_and_welcomes_what_is_new(through: redis.Redis, proxy: FaultProxy) -> None:
    through.ping()
    proxy.cut()
    wait_for(lambda: proxy.open_links == 0, what="the connection to be closed")
    assert through.ping()
    assert (proxy.connections, proxy.open_links) == (2, 1)


def test_a_dead_server_is_passed_on_and_a_new_one_found(own_server: StartServer) -> None:
    server = own_server(appendfsync="always")
    with FaultProxy(server.socket) as proxy, plain_client(proxy.url) as through:
        through.set("k", 1)
        server.kill()
        with pytest.raises(redis.ConnectionError):
            through.get("k")
        server.start()
        assert through.get("k") == b"1"


def test_it_counts_connections_commands_and_round_trips(through: redis.Redis, proxy: FaultProxy) -> None:
    through.ping()
    before = proxy.round_trips
    pipeline = through.pipeline(transaction=False)
    for _ in range(5):
        pipeline.incrby("n", 1)
    pipeline.execute()
    through.get("n")
    assert proxy.round_trips - before == 2
    assert proxy.commands[b"INCRBY"] == 5
    assert proxy.commands[b"GET"] == 1
    assert proxy.connections == 1


def test_no_connection_outlives_its_client(proxy: FaultProxy, client: redis.Redis) -> None:
    with plain_client(proxy.url) as brief:
        brief.client_setname("brief")
        assert proxy.open_links == 1
    wait_for(lambda: proxy.open_links == 0, what="the proxy to let go of the client")
    names = wait_for(
        lambda: [entry["name"] for entry in client.client_list() if entry["name"] != "brief"],
        what="the server to let go of the client",
    )
    assert "brief" not in names
