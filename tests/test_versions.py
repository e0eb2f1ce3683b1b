"""Two versions of one graph at work at once, and runs whose nodes were renamed under them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import pytest

from everstep.cli import main
from everstep.crew import Crew
from everstep.site import Site
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import Client, connect, publish
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.recovery.recovery import recover
from everstep_scheduler.steps.perform import Performer
from hand import KEYS, Hand
from servers import wait_for

TEXT = """
import operator
from typing import Annotated, TypedDict
from everstep import START, StateGraph

class State(TypedDict, total=False):
    count: int
    log: Annotated[list[str], operator.add]
{keys}

def say(name):
    return lambda state: {{"log": [name], **({{"extra": "b was here"}} if name == "b" else {{}})}}

builder = StateGraph(State)
for name in "axc{nodes}":
    builder.add_node(name, say(name))
for start, end in {edges}:
    builder.add_edge(start, end)
graph = builder.compile(name="g")
"""
EDGES = [("__start__", "a"), ("__start__", "x"), ("x", "c")]
OLD = TEXT.format(keys="", nodes="", edges=[*EDGES, ("a", "c")])
# b comes between a and c, beside the c that x leads to, and writes a key of its own
NEW = TEXT.format(keys="    extra: str", nodes="b", edges=[*EDGES, ("a", "b"), ("b", "c")])


class Deploy:
    """Workers of a version or the other, on one server."""

    def __init__(self, url: str, folder: Path, ending: ExitStack) -> None:
        self.site, self.folder, self._ending = Site(url), folder, ending
        for name, text in (("oldgraph", OLD), ("newgraph", NEW)):
            (folder / f"{name}.py").write_text(text)
        self.workers = 0

    def worker(self, version: str) -> Crew:
        out = self.folder / f"{version}-{self.workers}.out"
        crew = Crew(
            self.site.url, (f"{version}graph:graph",), ("--grace", "1"), out=out, env={"PYTHONPATH": str(self.folder)}
        )
        crew.start()
        self._ending.callback(crew.stop)
        self.workers += 1
        crew.await_ready(self.site, self.workers, 1)
        return crew


@pytest.fixture
def deploy(redis_url: str, tmp_path: Path) -> Iterator[Deploy]:
    with ExitStack() as ending:
        yield Deploy(redis_url, tmp_path, ending)


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Client]:
    with connect(redis_url) as made:
        yield made


def versions(client: Client, thread: str) -> set[str]:
    return {x.text("graph") for x in client.log(thread) if x.is_checkpoint}


def test_a_rolling_deploy_with_half_the_workers_on_the_old_graph_finishes_all_runs(
    deploy: Deploy, fleet: Client
) -> None:
    deploy.worker("old")
    deploy.worker("new")
    runs = [fleet.submit("g", {"count": i}, thread_id=f"t{i}") for i in range(30)]
    results = [run.result(timeout=60) for run in runs]
    assert {tuple(each["log"][:2]) for each in results} == {("a", "x")}
    assert all(each["log"][-1] == "c" and each["count"] == i for i, each in enumerate(results))
    assert len(set().union(*(versions(fleet, f"t{i}") for i in range(30)))) == 2, "both versions took part"
    assert all(verify(fleet.log_store, f"t{i}").sound for i in range(30))


def parked(client: Client) -> dict[str, int]:
    found: Any = client.redis.hgetall(KEYS.parked)
    return {name.decode(): int(count) for name, count in found.items()}


def test_a_node_that_only_one_version_has_waits_for_it_and_says_which(
    deploy: Deploy, fleet: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = deploy.worker("new")
    fleet.submit("g", {"count": 1}, thread_id="t0").result(timeout=60)
    (wanted,) = versions(fleet, "t0")
    new.stop()
    hand_over(fleet, deploy.folder, monkeypatch)
    deploy.workers = 0
    wait_for(lambda: fleet.redis.scard(KEYS.rq_workers) == 0, 40, "the new worker's end")
    old = deploy.worker("old")
    wait_for(lambda: parked(fleet) == {"g:b": 1}, 40, "the parked task")
    reason = next(x.text("error") for x in fleet.log("t1") if x.kind == "task_parked")
    assert wanted in reason and "'b'" in reason and "@" in reason
    assert fleet.run("t1").status() == "running"
    old.stop()
    deploy.workers = 0
    wait_for(lambda: fleet.redis.scard(KEYS.rq_workers) == 0, 40, "the old worker's end")
    deploy.worker("new")
    values = fleet.run("t1").result(timeout=60)
    assert values["extra"] == "b was here" and "b" in values["log"]


def hand_over(fleet: Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on thread t1 whose next node is b, made by the new version, while no worker is there."""
    monkeypatch.syspath_prepend(str(folder))
    fleet.submit("g", {"count": 1}, thread_id="t1")
    hand = Hand(fleet.redis, import_module("newgraph").builder, name="g")
    while not any(lease.node == "b" for lease in hand.held):
        if not hand.claim(2):
            assert hand.do() == "ok"
    hand.moves.release(hand.owner, [lease.token for lease in hand.held], "job")


def test_a_join_of_what_a_newer_version_did_is_left_to_that_one(
    deploy: Deploy, fleet: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(deploy.folder))
    old, new = (Hand(fleet.redis, import_module(f"{name}graph").builder, name, "g") for name in ("old", "new"))
    for hand in (old, new):
        hand.performer = Performer(hand.moves, hand.log, {"g": hand.spec}, by=hand.owner, parks=True)
    assert new.submit("r1") == "started"
    new.claim()
    new.do("__start__")
    new.claim(2)
    new.do("a")
    new.moves.release("new", [new.held.pop().token], "job")
    old.claim()
    old.do("x")
    assert old.claim() == ["join"]
    assert old.do() == "fenced"
    assert parked(fleet) == {"g:b": 1}
    assert [x.text("error") for x in old.log.read("t") if x.kind == "task_parked"] == [
        f"a step leads to node 'b', which {old.spec.version} lacks"
    ]
    new.held += new.moves.claim(new.offer(1), serves=["g:b"]).leases
    assert new.do("__join__") == "ok"
    assert parked(fleet) == {}
    new.drive()
    assert fleet.run("t").result(5)["extra"] == "b was here"


def inside(*more: tuple[str, type]) -> StateGraph:
    """A graph whose output lacks `notes`, which its state has. `more`: keys that a version has besides."""
    state: Any = TypedDict("State", {"count": int, "notes": str, **dict(more)}, total=False)  # type: ignore[misc]
    output: Any = TypedDict("Output", {"count": int, **dict(more)}, total=False)  # type: ignore[misc]

    def writing(_: Any) -> dict[str, Any]:
        return {"count": 2, "notes": "inside", **{name: "was here" for name, _ in more}}

    graph = StateGraph(state, output_schema=output)
    graph.add_node("a", writing)
    graph.add_edge(START, "a")
    return graph


def test_a_result_keeps_the_keys_of_the_version_that_made_it_whichever_was_published_last(fleet: Client) -> None:
    old = Hand(fleet.redis, inside(), "old", "g")
    new = Hand(fleet.redis, inside(("extra", str)), "new", "g")
    publish(fleet.redis, KEYS, [old.spec])
    assert "extra" not in fleet.manifest("g").channels  # and so this client will know it for some seconds
    new.submit("r1")
    new.drive()
    assert fleet.run("t", "r1").result(5) == {"count": 2, "extra": "was here"}
    publish(fleet.redis, KEYS, [new.spec])
    old.submit("r2", "t2")
    old.drive()
    with connect(fleet.url) as later:
        assert later.run("t2", "r2").result(5) == {"count": 2}
        assert later.run("t", "r1").result(5) == {"count": 2, "extra": "was here"}
        assert later.graph("g").invoke(None, {"configurable": {"thread_id": "t"}}) == {"count": 2, "extra": "was here"}


# -- migrate

MOVES = """
from everstep import END

def renamed(node, state):
    return {"b": "b2", "x": None}.get(node)

def ended(node, state):
    return END if node == "b" and state["count"] == 1 else None

def odd(node, state):
    return 7

def unknown(node, state):
    return "b3"
"""
RENAMED = TEXT.format(keys="    extra: str", nodes="", edges=[*EDGES, ("a", "b2"), ("b2", "c")]).replace(
    "builder = StateGraph(State)\n", 'builder = StateGraph(State)\nbuilder.add_node("b2", say("b"))\n'
)


@pytest.fixture
def gone(fleet: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hand:
    """A thread whose step has c, done, and b, parked, which the published graph does not have any more."""
    names = {"newgraph": NEW, "renamedgraph": RENAMED, "shopmoves": MOVES}
    for name, text in names.items():
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    new = Hand(fleet.redis, import_module("newgraph").builder, "new", "g")
    new.submit("r1")
    while not any(lease.node == "b" for lease in new.held):
        if not new.claim(2):
            new.do()
    new.do("c")
    now = Hand(fleet.redis, import_module("renamedgraph").builder, "now", "g")
    publish(fleet.redis, KEYS, [now.spec])
    new.moves.release("new", [new.held.pop().token], "parked", "nobody has it")
    return now


def cli(fleet: Client, *words: str) -> int:
    return main(["--url", fleet.url, "migrate", *words])


def test_parked_tasks_go_on_as_a_function_says(gone: Hand, fleet: Client, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(list(fleet.log("t")))
    assert cli(fleet, "t", "shopmoves:renamed") == 0
    said = capsys.readouterr()
    assert "b -> b2  would be" in said.out and "nothing was changed" in said.err
    assert len(list(fleet.log("t"))) == before and parked(fleet) == {"g:b": 1}
    assert cli(fleet, "--all-parked", "shopmoves:renamed", "--yes", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"thread": "t", "changes": [{"task": "p0", "node": "b", "to": "b2"}], "done": ["p0"]}
    assert parked(fleet) == {}
    assert fleet.state("t").next == ("b2",)
    gone.drive()
    values = fleet.run("t", "r1").result(5)
    assert values["extra"] == "b was here" and values["log"].count("c") == 2
    assert verify(fleet.log_store, "t").sound
    assert cli(fleet, "t", "shopmoves:renamed") == 0
    assert capsys.readouterr().err == "thread t: nothing to migrate\n"
    assert cli(fleet, "--all-parked", "shopmoves:renamed") == 0
    assert capsys.readouterr().err == "no task is parked: nothing to migrate\n"


def test_a_task_that_ends_leads_nowhere(gone: Hand, fleet: Client) -> None:
    assert cli(fleet, "t", "shopmoves:ended", "--yes") == 0
    gone.drive()
    assert "extra" not in fleet.run("t", "r1").result(5)
    assert verify(fleet.log_store, "t").sound


def test_a_rebuild_knows_what_was_migrated(gone: Hand, fleet: Client) -> None:
    assert cli(fleet, "t", "shopmoves:renamed", "--yes") == 0
    recover(fleet.redis, KEYS, lease_ms=300)
    assert fleet.state("t").next == ("b2",)
    gone.drive()
    assert fleet.run("t", "r1").result(5)["extra"] == "b was here"


def test_a_failed_task_is_migrated_for_its_retry(fleet: Client, gone: Hand) -> None:
    fleet.cancel("t")
    assert cli(fleet, "t", "shopmoves:renamed", "--yes") == 0
    again = fleet.retry("t")
    gone.drive()
    assert again.result(5)["extra"] == "b was here"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["t", "shopmoves:odd"], 2),
        (["t", "shopmoves:unknown"], 3),
        (["t", "shopmoves:nothing"], 2),
        (["t", "nowhere:renamed"], 2),
        (["t", "shopmoves"], 2),
        (["shopmoves:renamed"], 2),
        (["nobody", "shopmoves:renamed"], 3),
    ],
)
def test_what_can_not_be_migrated_is_said_and_changes_nothing(
    gone: Hand, fleet: Client, words: list[str], code: int
) -> None:
    assert cli(fleet, *words, "--yes") == code
    assert parked(fleet) == {"g:b": 1}
