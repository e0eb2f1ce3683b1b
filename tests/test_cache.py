"""Cache policies: a node with the same input is not run again, inline and on workers; a cache breaks no step."""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict

import pytest
import redis
from langgraph.cache.memory import InMemoryCache as TheirCache
from langgraph.checkpoint.memory import InMemorySaver as TheirSaver
from langgraph.graph import StateGraph as TheirStateGraph
from langgraph.types import CachePolicy as TheirPolicy
from langgraph.types import Send as TheirSend

from everstep_checkpoint.errors import GraphError
from everstep_checkpoint.keys import Keys
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.options import CachePolicy
from everstep_scheduler.graph.runtime import END, START, Send
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from everstep_scheduler.steps import caching
from everstep_scheduler.steps.caches import InMemoryCache, RedisCache
from servers import StartServer, wait_for
from test_worker import running

OURS = SimpleNamespace(StateGraph=StateGraph, Send=Send, Saver=InMemorySaver, Cache=InMemoryCache, Policy=CachePolicy)
THEIRS = SimpleNamespace(
    StateGraph=TheirStateGraph, Send=TheirSend, Saver=TheirSaver, Cache=TheirCache, Policy=TheirPolicy
)
KEYS = Keys(rq="rq")


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    n: int


def on(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}}


class Counted:
    """A node that counts its calls."""

    def __init__(self, word: str = "a", does: Callable[[Any], Any] | None = None) -> None:
        self.word = word
        self.does = does
        self.runs = 0

    def __call__(self, state: State) -> Any:
        self.runs += 1
        return self.does(state) if self.does is not None else {"log": [f"{self.word} {state.get('n')}"]}


def story(lib: Any) -> list[Any]:
    """A cached node with a router that sends, on several threads and inputs; updates as they are streamed."""
    node, router = Counted(), Counted("router", lambda state: [lib.Send("sent", {"n": 5}), "b"])
    sent = Counted("sent")
    builder = lib.StateGraph(State)
    builder.add_node("a", node, cache_policy=lib.Policy())
    builder.add_node("sent", sent, cache_policy=lib.Policy(key_func=lambda given: str(given["n"])))
    builder.add_node("b", lambda state: {"log": ["b"]})
    builder.add_edge(START, "a").add_conditional_edges("a", router, ["sent", "b"])
    graph = builder.compile(checkpointer=lib.Saver(), cache=lib.Cache())
    found: list[Any] = []
    for thread, n in (("t1", 1), ("t2", 1), ("t3", 2)):
        chunks = list(graph.stream({"log": [], "n": n}, on(thread), stream_mode="updates"))
        found += [
            thread,
            sorted(chunks, key=str),
            graph.get_state(on(thread)).values,
            node.runs,
            router.runs,
            sent.runs,
        ]
    graph.clear_cache(["a"])
    found += [graph.invoke({"log": [], "n": 1}, on("t4")), node.runs, router.runs, sent.runs]
    graph.clear_cache()
    return [*found, graph.invoke({"log": [], "n": 1}, on("t5")), node.runs, sent.runs]


def test_hits_misses_and_what_streams_tell_are_langgraphs() -> None:
    assert story(OURS) == story(THEIRS)


def chain(node: Any, policy: CachePolicy | None = None) -> StateGraph:
    builder = StateGraph(State).add_node("a", node, cache_policy=policy or CachePolicy())
    return builder.add_node("b", lambda state: {"log": ["b"]}).add_edge(START, "a").add_edge("a", "b")


def test_without_a_cache_a_policy_does_nothing_inline() -> None:
    node = Counted()
    graph = chain(node).compile()
    assert graph.invoke({"n": 1}) == graph.invoke({"n": 1})
    assert node.runs == 2
    graph.clear_cache()


def test_errors_are_never_cached() -> None:
    def fails_first(state: State) -> dict[str, Any]:
        if node.runs == 1:
            raise ValueError("once")
        return {"log": ["done"]}

    node = Counted(does=fails_first)
    graph = chain(node).compile(InMemorySaver(), cache=InMemoryCache())
    with pytest.raises(ValueError):
        graph.invoke({"n": 1}, on("t"))
    assert graph.invoke(None, on("t"))["log"] == ["done", "b"]
    assert graph.invoke({"n": 1}, on("other"))["log"] == ["done", "b"] and node.runs == 2


def test_an_async_node_is_cached_too() -> None:
    runs: list[int] = []

    async def node(state: State) -> dict[str, Any]:
        runs.append(1)
        return {"log": ["a"]}

    graph = chain(node).compile(cache=InMemoryCache())
    assert asyncio.run(graph.ainvoke({"n": 1})) == graph.invoke({"n": 1})
    asyncio.run(graph.aclear_cache())
    graph.invoke({"n": 1})
    assert len(runs) == 2


def test_a_time_to_live_is_kept_in_both_places(client: redis.Redis, redis_url: str) -> None:
    """In memory by the process' clock, in Redis by a key that expires."""
    memory = InMemoryCache()
    memory.put("g", "a", "k", b"v", 0.001)
    memory.put("g", "a", "l", b"v", 100)
    time.sleep(0.002)
    assert (memory.get("g", "a", "k"), memory.get("g", "a", "l")) == (None, b"v")
    graph = chain(Counted(), CachePolicy(ttl=120)).compile(cache=RedisCache(redis_url), name="g")
    graph.invoke({"n": 1})
    [key] = client.keys(f"{KEYS.stem}cache:*")
    assert 0 < client.pttl(key) <= 120_000


def test_memory_is_bounded_and_the_longest_unused_goes_first() -> None:
    cache = InMemoryCache(max_bytes=100)
    for key in "abc":
        cache.put("g", "n", key, b"x" * 40, None)
        cache.get("g", "n", "a")
    assert [cache.get("g", "n", key) is not None for key in "abc"] == [True, False, True]
    cache.put("g", "n", "big", b"x" * 101, None)
    assert cache.get("g", "n", "big") is None and cache._bytes == 0


def test_the_fleet_keeps_outcomes_in_redis_and_an_inline_caller_shares_them(redis_url: str) -> None:
    node = Counted()
    inline = chain(node).compile(RedisSaver(redis_url), cache=RedisCache(redis_url), name="g")
    with running(redis_url, chain(node).spec("g")), connect(redis_url) as fleet:
        wait_for(lambda: any(each.name == "g" for each in fleet.graphs()), 10, "the worker's graph")
        remote = fleet.graph("g")
        first = remote.invoke({"n": 1}, on("t1"), timeout=10)
        chunks = list(remote.stream({"n": 1}, on("t2"), timeout=10))
        assert chunks[0] == {"a": {"log": ["a 1"]}, "__metadata__": {"cached": True}}
        assert remote.get_state(on("t2")).values == first == inline.invoke({"n": 1}, on("t3"))
        assert node.runs == 1
        remote.clear_cache(["b"])
        assert inline.invoke({"n": 1}, on("t4")) == first and node.runs == 1
        remote.clear_cache()
        assert remote.invoke({"n": 1}, on("t5"), timeout=10) == first and node.runs == 2


def test_clearing_one_graph_leaves_others_whose_names_look_alike(redis_url: str) -> None:
    cache = RedisCache(redis_url)
    for graph in ("a", "a:b", "a*", "ab", "a?"):
        cache.put(graph, "n", "k", b"v", None)
        cache.put(graph, "m", "k", b"v", None)
    cache.clear("a*", ["n"])
    assert (cache.get("a*", "n", "k"), cache.get("a*", "m", "k")) == (None, b"v")
    cache.clear("a")
    left = [graph for graph in ("a", "a:b", "a*", "ab", "a?") if cache.get(graph, "m", "k")]
    assert left == ["a:b", "a*", "ab", "a?"]


def test_a_cache_that_is_away_full_or_damaged_breaks_no_step(own_server: StartServer) -> None:
    gone = chain(Counted()).compile(cache=RedisCache("redis://127.0.0.1:1/0"))
    assert gone.invoke({"n": 1})["log"] == ["a 1", "b"]
    own = own_server()
    node = Counted()
    graph = chain(node).compile(cache=RedisCache(own.url), name="g")
    with redis.Redis.from_url(own.url) as admin:
        admin.config_set("maxmemory", 1)
        assert graph.invoke({"n": 1})["log"] == ["a 1", "b"]
        admin.config_set("maxmemory", 0)
        graph.cache = RedisCache(own.url)
        assert graph.invoke({"n": 1})["log"] == ["a 1", "b"] and node.runs == 2
        [key] = admin.keys(f"{KEYS.stem}cache:*")
        for damaged in (b"", b"\xc1", b"\x93\x01", b"\x94\x02\x90\x90\x90", b"\x80"):
            admin.set(key, damaged)
            graph.cache = RedisCache(own.url)
            assert graph.invoke({"n": 1})["log"] == ["a 1", "b"]
    assert node.runs == 7


def test_a_large_outcome_is_not_kept(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "ENTRY_BYTES_MAX", 100)
    node = Counted(does=lambda state: {"log": ["x" * 100]})
    graph = chain(node).compile(cache=RedisCache(redis_url))
    assert graph.invoke({"n": 1}) == graph.invoke({"n": 1}) and node.runs == 2


def test_a_changed_graph_finds_nothing_of_the_old_one() -> None:
    cache, node = InMemoryCache(), Counted()
    chain(node).compile(cache=cache).invoke({"n": 1})
    changed = chain(node)
    changed.add_edge("b", END).add_edge("a", END)
    changed.compile(cache=cache).invoke({"n": 1})
    assert node.runs == 2


def test_a_key_function_that_raises_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    node = Counted()
    graph = chain(node, CachePolicy(key_func=lambda given: given["no"])).compile(cache=InMemoryCache())
    assert graph.invoke({"n": 1}) == graph.invoke({"n": 1}) and node.runs == 2
    assert "its key can't be made" in caplog.text


def test_a_policy_that_is_none_is_refused_while_building() -> None:
    with pytest.raises(GraphError, match="can't be kept for 0 seconds"):
        CachePolicy(ttl=0)
    with pytest.raises(GraphError, match="is no CachePolicy"):
        StateGraph(State).add_node("a", Counted(), cache_policy=7)  # type: ignore[arg-type]
