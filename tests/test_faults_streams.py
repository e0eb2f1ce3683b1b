"""Workers die while they are listened to: what they said is void, and said to be; what their heirs say is heard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everstep.embedded import EmbeddedServer
from everstep_scheduler.client.client import connect
from everstep_scheduler.client.events import Event
from faults import SHORT_MS, Fleet


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


def words(events: list[Event]) -> list[str]:
    """What was said, and what was void."""
    live = [event for event in events if event.mode != "updates"]
    return [x.chunk if x.mode == "custom" else f"{x.mode} {x.chunk['name']} {x.chunk['attempt']}" for x in live]


def until(word: str, events: Iterator[Event]) -> list[Event]:
    """The next events, up to the one that says so."""
    heard: list[Event] = []
    while not heard or heard[-1].chunk != word:
        heard.append(next(events))
    return heard


@pytest.mark.parametrize("graph", ["chain", "achain"])
def test_what_a_killed_worker_said_is_superseded_before_its_heir_speaks(fleet: Fleet, graph: str) -> None:
    with fleet.sweeping(), connect(fleet.url) as client:
        worker = fleet.worker(graph, lease_ms=SHORT_MS)
        thread = fleet.submit(graph, live=["custom"], gated="b/1")
        events = client.run(thread).events(["updates", "custom"], timeout=60)
        heard = until("b 1 in", events)
        worker.kill()
        with fleet.heir(graph):
            heard += events
        late = list(client.run(thread).events(["updates", "custom"], timeout=10))
    assert words(heard) == [
        "a 1 in", "a 1 out", "b 1 in", "superseded b 1", "b 2 in", "b 2 out", "c 1 in", "c 1 out",
    ]  # fmt: skip
    assert words(late) == words(heard)
    assert [next(iter(x.chunk)) for x in heard if x.mode == "updates"] == ["a", "b", "c"]


def test_a_killed_worker_s_words_from_within_a_subgraph_are_superseded_and_its_heir_s_are_heard(fleet: Fleet) -> None:
    """The reader follows two logs; it is itself replaced by another one, which goes on behind the last event."""
    with fleet.sweeping(), connect(fleet.url) as client:
        worker = fleet.worker("nested", lease_ms=SHORT_MS)
        thread = fleet.submit("nested", live=["custom"], gated="y/1")
        modes = ["updates", "custom"]
        events = client.run(thread).events(modes, timeout=60, subgraphs=True)
        heard = until("y 1 in", events)
        worker.kill()
        with fleet.heir("nested"):
            heard += client.run(thread).events(modes, after=heard[-1].cursor, timeout=60, subgraphs=True)
        late = list(client.run(thread).events(modes, timeout=10, subgraphs=True))
    assert words(heard) == words(late) == [
        "a 1 in", "a 1 out", "x 1 in", "x 1 out", "y 1 in", "superseded y 1", "y 2 in", "y 2 out", "z 1 in", "z 1 out",
    ]  # fmt: skip
    told = [(len(x.ns), next(iter(x.chunk))) for x in heard if x.mode == "updates"]
    assert told == [(0, "a"), (1, "x"), (1, "y"), (0, "child"), (0, "z")]
    assert [(len(x.ns), x.chunk["name"]) for x in heard if x.mode == "superseded"] == [(1, "y")]


def test_a_killed_worker_s_words_from_within_a_called_graph_are_superseded_and_its_heir_goes_on_there(
    fleet: Fleet,
) -> None:
    """The graph's log goes on with the next attempt of the task that called it; what it had done is told once."""
    with fleet.sweeping(), connect(fleet.url) as client:
        worker = fleet.worker("calling", lease_ms=SHORT_MS)
        thread = fleet.submit("calling", live=["custom"], gated="y/1")
        modes = ["updates", "custom"]
        events = client.run(thread).events(modes, timeout=60, subgraphs=True)
        heard = until("y 1 in", events)
        worker.kill()
        fleet.open_gate()
        with fleet.heir("calling"):
            heard += client.run(thread).events(modes, after=heard[-1].cursor, timeout=60, subgraphs=True)
        late = list(client.run(thread).events(modes, timeout=10, subgraphs=True))
    for inside in (False, True):  # how two logs mix is anybody's, when one comes late
        assert words([x for x in heard if bool(x.ns) is inside]) == words([x for x in late if bool(x.ns) is inside])
    assert words([x for x in heard if x.ns]) == [
        "x 1 in", "x 1 out", "y 1 in", "superseded y 1", "y 1 in", "y 1 out",
    ]  # fmt: skip
    told = [(len(x.ns), next(iter(x.chunk))) for x in heard if x.mode == "updates"]
    assert told == [(0, "a"), (1, "x"), (1, "y"), (0, "call"), (0, "z")]
    assert [(len(x.ns), x.chunk["name"]) for x in heard if x.mode == "superseded"] == [(0, "call"), (1, "y")]


def test_what_the_children_of_a_pool_say_is_heard_whole(fleet: Fleet) -> None:
    with connect(fleet.url) as client:
        fleet.pool("wide", processes=2, concurrency=4)
        thread = fleet.submit("wide", live=["custom"], width=20)
        events = list(client.run(thread).events(["updates", "custom"], timeout=60))
    said = words(events)
    assert sorted(said) == sorted([f"work/{i} 1 {phase}" for i in range(20) for phase in ("in", "out")] + ["last 1 in"])
    assert said[-1] == "last 1 in"
