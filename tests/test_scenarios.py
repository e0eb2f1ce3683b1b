"""Ten scenarios of questions, graphs in graphs and time travel, in each of which a worker is killed in the middle.

They go on as if nothing had been: the same results, streams and histories as inline, where nobody died, and those are
LangGraph's. In CI each sees one death, at a point that the run's seed chooses; in soak one in each turn at each point,
on each server.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drawn import OURS, built, stops
from everstep.embedded import EmbeddedServer
from everstep_checkpoint.log import Log
from everstep_scheduler.client.client import connect
from everstep_scheduler.inline.savers import InMemorySaver
from everstep_scheduler.reading.children import children
from faults import SHORT_MS, Fleet, assert_at_rest
from scenarios import GRAPHS, SCENARIOS, Scenario
from sidebyside import Story, patient_oracle
from test_interrupts import working
from test_subgraphs import sound
from turns import history, on, take

POINTS = ("claimed", "loaded", "called", "settled", "committed")  # test_faults_kill.py says what each leaves behind
WAIT = {"timeout": 60}


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.url, tmp_path) as made:
        yield made


@pytest.mark.scenario
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_in_which_a_worker_is_killed_goes_as_if_it_lived(
    name: str, fleet: Fleet, seed: random.Random
) -> None:
    scenario = SCENARIOS[name]
    survives(fleet, name, scenario.killed, f"{seed.choice(POINTS)}:{scenario.task}")


@pytest.mark.soak
@pytest.mark.scenario
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_survives_a_death_in_each_turn_at_each_point(name: str, point: str, fleet: Fleet) -> None:
    for killed in range(len(SCENARIOS[name].turns)):
        fleet.redis.flushall()
        survives(fleet, name, killed, f"{point}:1")


@pytest.mark.scenario
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_as_in_langgraph(name: str) -> None:
    scenario = SCENARIOS[name]
    with patient_oracle():
        Story(scenario.drawing, inline(name, scenario), on("t"), script=scenario.turns).tell()


def test_there_are_ten_scenarios_of_each_kind_some() -> None:
    assert len(SCENARIOS) == 10
    assert sum(each.drawing.has(lambda node: node.asks) for each in SCENARIOS.values()) > 4
    assert sum(each.drawing.has(lambda node: node.inner) for each in SCENARIOS.values()) > 2
    assert sum(any(turn.back is not None for turn in each.turns) for each in SCENARIOS.values()) > 2


def inline(name: str, scenario: Scenario) -> object:
    return built(OURS, scenario.drawing).compile(InMemorySaver(), name=name, **stops(scenario.drawing))


def survives(fleet: Fleet, name: str, killed: int, failpoint: str) -> None:
    """One worker dies in that turn, by SIGKILL; another one does the rest."""
    graph, alone = GRAPHS[name], inline(name, SCENARIOS[name])
    with connect(fleet.url) as client, fleet.sweeping(), ThreadPoolExecutor(1) as callers:
        remote = client.graph(name, graph)
        for i, turn in enumerate(SCENARIOS[name].turns):
            doomed = fleet.worker(f"scenarios:{name}", failpoint=failpoint, lease_ms=SHORT_MS) if i == killed else None
            telling = callers.submit(take, OURS, remote, on("t"), turn, **WAIT)
            if doomed is not None:
                doomed.dies()
            with working(fleet.url, graph):
                seen = telling.result()
            assert seen == take(OURS, alone, on("t"), turn), f"turn {i}: {turn}"
            assert history(remote, on("t")) == history(alone, on("t")), f"turn {i}: {turn}"
        held = 0 if failpoint.startswith("committed") else 1  # behind a commit it may have died with nothing in hand
        assert held <= lost(client.log_store, "t") <= 1, "one attempt died, and the log says so"
        assert sound(client.log_store, "t")
        assert_at_rest(fleet.redis)


def lost(log: Log, thread: str) -> int:
    own = sum(entry.kind == "task_lost" for entry in log.read(thread))
    return own + sum(lost(log, each) for each in children(log, thread))
