"""Events of a run and of all that its tasks called: resumable from any process, whole however late one comes, and what
is not there any more is said. On workers; `tests/test_events.py` has the same for one graph."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import pytest
import redis

from everstep_checkpoint.errors import InvalidInput, Rewound
from everstep_scheduler.client import events as reading
from everstep_scheduler.client.client import Client, connect, publish
from everstep_scheduler.client.events import Event
from everstep_scheduler.graph.asking import get_stream_writer
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START, Send
from everstep_scheduler.reading.children import children
from hand import KEYS, Hand, working

LOG = ["values", "updates", "checkpoints", "tasks", "debug"]
ALL = [*LOG, "custom"]


class State(TypedDict, total=False):
    count: int
    xs: Annotated[list[Any], operator.add]


def leaf(name: str) -> StateGraph:
    def says(state: State) -> State:
        for k in range(2):
            get_stream_writer()(f"{name}.{k}")
        return {"xs": [name]}

    return StateGraph(State).add_node("says", says).add_edge(START, "says")


def tree(width: int = 3, **kept: Any) -> StateGraph:
    """Sends to one graph, another one beside it that has a graph in it, and a node behind them."""
    inner = leaf("deep").add_node("below", leaf("deepest").compile()).add_edge("says", "below")
    builder = StateGraph(State).add_node("first", lambda state: {"count": width})
    builder.add_node("part", leaf("part").compile(**kept)).add_node("deep", inner.compile())
    builder.add_node("last", lambda state: {"count": 9}).add_edge(START, "first").add_edge("first", "deep")
    builder.add_conditional_edges("first", lambda state: [Send("part", {}) for _ in range(state["count"])], ["part"])
    return builder.add_edge("deep", "last").add_edge("part", "last")


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with connect(redis_url) as made:
        yield made


def done(client: Client, url: str, made: StateGraph, thread: str = "t", **more: Any) -> list[Event]:
    """All events of a run that the workers do, read while they do it."""
    with working(url, ("g", made)):
        run = client.submit("g", {"count": 0}, thread_id=thread, stream_mode="custom", subgraphs=True, **more)
        return list(run.events(ALL, timeout=20, subgraphs=True))


def apart(events: list[Event]) -> dict[Any, list[Any]]:
    """What each graph's log says, and what each task said: how these mix is anybody's."""
    found: dict[Any, list[Any]] = defaultdict(list)
    for event in events:
        if event.mode != "superseded":
            found[event.ns, event.task].append((event.mode, event.chunk))
    return found


def test_a_reader_of_a_tree_who_comes_back_to_any_cursor_gets_exactly_the_rest(client: Client, redis_url: str) -> None:
    whole = done(client, redis_url, tree())
    assert len({event.ns for event in whole}) == 6, "the run, three parts, one beside them, one in that"
    assert len({event.cursor for event in whole}) == len(whole)
    with connect(redis_url) as another:
        for i, event in enumerate(whole):
            rest = list(another.run("t").events(ALL, after=event.cursor, timeout=10, subgraphs=True))
            assert apart(rest) == apart(whole[i + 1 :]), f"behind {event.cursor}"


def test_a_reader_who_comes_back_again_and_again_gets_all_of_it_once(client: Client, redis_url: str) -> None:
    """Each event is read by somebody else: so each cursor is one of a reader that came back itself."""
    whole, got, cursor = done(client, redis_url, tree()), list[Event](), ""
    while True:
        event = next(client.run("t").events(ALL, after=cursor, timeout=10, subgraphs=True), None)
        if event is None:
            break
        got.append(event)
        cursor = event.cursor
    assert apart(got) == apart(whole)


def test_a_late_reader_of_a_tree_misses_nothing_though_nobody_listened(client: Client, redis_url: str) -> None:
    whole = [event for event in done(client, redis_url, tree()) if event.mode != "custom"]
    late = list(client.run("t").events(LOG, timeout=10, subgraphs=True))
    assert apart(late) == apart(whole)
    for mode in LOG:
        one = list(client.run("t").events(mode, timeout=10, subgraphs=True))
        assert apart(one) == apart([event for event in whole if event.mode == mode]) or mode == "debug"
    with working(redis_url, ("g", tree())):
        client.submit("g", {"count": 0}, thread_id="u").result(20)
    unheard = list(client.run("u").events(LOG, timeout=10, subgraphs=True))
    assert [len(x) for x in sorted(apart(unheard).values(), key=len)] == [
        len(x) for x in sorted(apart(late).values(), key=len)
    ]


def test_a_reader_of_a_tree_lives_through_outages(
    client: Client, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its commands gets no answer: it goes on where it was, and nothing is told twice."""
    whole = done(client, redis_url, tree(width=2))
    with connect(redis_url) as frail:
        run, asked, dead, send = frail.run("t"), 0, 0, frail.redis.execute_command

        def once(*args: Any, **more: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == dead:
                raise redis.ConnectionError("no answer")
            return send(*args, **more)

        monkeypatch.setattr(frail.redis, "execute_command", once)
        while dead <= asked:
            asked, dead = 0, dead + 1
            got = apart(list(run.events(ALL, timeout=30, subgraphs=True)))
            assert got == apart(whole), f"command {dead} got no answer"
    assert dead > 20


def test_who_reads_the_graph_alone_and_comes_back_for_its_tree_misses_nothing(client: Client, redis_url: str) -> None:
    whole = done(client, redis_url, tree())
    alone = list(client.run("t").events("updates", timeout=10))
    for i, event in enumerate(alone):
        rest = list(client.run("t").events(["updates"], after=event.cursor, timeout=10, subgraphs=True))
        own = [x.chunk for x in rest if not x.ns]
        assert own[-len(alone) + i + 1 :] == [x.chunk for x in alone[i + 1 :]] or i == len(alone) - 1
    first = next(event for event in alone if "first" in event.chunk)
    rest = list(client.run("t").events(["updates"], after=first.cursor, timeout=10, subgraphs=True))
    assert {event.ns for event in rest} == {event.ns for event in whole}, "all that was called behind it is told"
    for event in (whole[len(whole) // 2], whole[-1]):
        rest = list(client.run("t").events("updates", after=event.cursor, timeout=10))
        assert not any(x.ns for x in rest), "and the other way round"


def test_calls_that_share_a_thread_are_told_apart(client: Client, redis_url: str) -> None:
    """A graph that keeps its state takes its callers one after the other: three runs in one log."""
    whole = done(client, redis_url, tree(checkpointer=True))
    said = [event.chunk for event in whole if event.ns == ("part",) and event.mode == "updates"]
    assert said == [{"says": {"xs": ["part"]}}] * 3
    assert [event.chunk for event in whole if event.ns == ("part",) and event.mode == "custom"] == [
        "part.0", "part.1",
    ] * 3  # fmt: skip
    for event in whole[:: len(whole) // 20]:
        rest = list(client.run("t").events(ALL, after=event.cursor, timeout=10, subgraphs=True))
        assert sorted(map(str, apart(rest))) == sorted(map(str, apart(whole[whole.index(event) + 1 :])))


def test_of_very_many_graphs_some_are_followed_and_all_are_told(
    client: Client, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "OPEN_MAX", 3)
    whole = done(client, redis_url, tree(width=12))
    monkeypatch.undo()
    assert apart(whole) == apart(list(client.run("t").events(ALL, timeout=10, subgraphs=True)))
    assert len({event.ns for event in whole}) == 15


def test_who_listens_within_must_say_so_when_the_run_begins(client: Client, redis_url: str) -> None:
    with working(redis_url, ("g", tree())):
        run = client.submit("g", {"count": 0}, thread_id="t", run_id="r", stream_mode="custom")
        with pytest.raises(InvalidInput, match="nobody listens to the run 'r' in mode 'custom' within subgraphs"):
            list(run.events(["custom"], timeout=10, subgraphs=True))
        assert run.result(20)["count"] == 9
    for child in children(client.log_store, "t"):
        assert not any("told" in entry.raw for entry in client.log(child)), "and nothing is written for nobody"


# -- what is not there any more


def half(client: Client, url: str) -> tuple[Hand, Any, str, str]:
    """A run whose graph within has done one node of two; its thread, and its log as it was before."""
    inner = leaf("inner").add_node("more", lambda state: {"xs": ["more"]}).add_edge("says", "more")
    made = StateGraph(State).add_node("child", inner.compile()).add_edge(START, "child")
    publish(client.redis, KEYS, [made.spec("g")])
    hand = Hand(client.redis, made)
    run = client.submit("g", {"count": 1}, thread_id="t", run_id="r")
    for _ in range(3):  # the start, the call, the start of what was called
        assert hand.claim(1) and hand.do() == "ok"
    (child,) = children(client.log_store, "t")
    old = client.redis.dump(KEYS.log(child))
    assert hand.claim(1) and hand.do() == "ok"
    return hand, run, child, old


def test_what_redis_lost_of_a_graph_within_is_told_with_its_namespace(client: Client, redis_url: str) -> None:
    _hand, run, child, old = half(client, redis_url)
    events = run.events(["updates"], timeout=20, subgraphs=True)
    got = next(events)
    assert (got.ns[0].partition(":")[0], got.chunk) == ("child", {"says": {"xs": ["inner"]}})
    client.redis.restore(KEYS.log(child), 0, old, replace=True)
    for fresh in (events, run.events(["updates"], after=got.cursor, timeout=20, subgraphs=True)):
        event = next(fresh)
        assert (event.mode, event.ns, event.chunk) == ("rewound", got.ns, {"to": "0-1"})
    client.redis.delete(KEYS.alive)  # the indexes know more than the log: as after a restart they are made anew
    inner = leaf("inner").add_node("more", lambda state: {"xs": ["more"]}).add_edge("says", "more")
    with working(redis_url, ("g", StateGraph(State).add_node("child", inner.compile()).add_edge(START, "child"))):
        after = list(fresh)
    assert [x.chunk for x in after if x.ns] == [{"says": {"xs": ["inner"]}}, {"more": {"xs": ["more"]}}]
    assert after[-1].ns == ()


def test_chunks_of_a_tree_do_not_go_on_over_a_rewind_as_if_nothing_was(client: Client, redis_url: str) -> None:
    _hand, run, child, old = half(client, redis_url)
    chunks = run.chunks("updates", timeout=20, subgraphs=True)
    next(chunks)
    client.redis.restore(KEYS.log(child), 0, old, replace=True)
    with pytest.raises(Rewound, match="events"):
        next(chunks)


def test_a_graph_within_that_was_deleted_is_told_and_its_run_goes_to_its_end(client: Client, redis_url: str) -> None:
    hand, run, child, _old = half(client, redis_url)
    events = run.events(["updates", "tasks"], timeout=20, subgraphs=True)
    got = [next(events) for _ in range(5)]
    assert got[-1].ns
    client.delete(child, cancel=True)
    event = next(events)
    assert (event.mode, event.ns, event.chunk) == ("rewound", got[-1].ns, {"to": ""})
    client.redis.delete(KEYS.alive)
    hand.drive()
    with pytest.raises(Exception, match=r"deleted|cancelled"):
        list(events)
    with pytest.raises(Exception, match=r"deleted|cancelled"):
        assert not any(x.ns for x in run.events(["updates"], timeout=10, subgraphs=True)), "a late reader finds none"
