"""The server dies, or comes back with less than it had: nothing acknowledged is lost under `always`, and after a rewind
every run goes on from an earlier whole step, whatever a worker remembers of the future that never was."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from everstep.embedded import EmbeddedServer
from everstep_checkpoint.replay import verify
from faults import KEYS, LONG_MS, SHORT_MS, Fleet
from servers import StartServer, soaked, wait_for

CHAINS = 30
SLOTS = 4
AOF = "appendonlydir"
Logs = dict[str, list[tuple[str, str]]]
CUTS, EDGE = 100, 20


@pytest.fixture
def durable(own_server: StartServer, tmp_path: Path) -> EmbeddedServer:
    return own_server(appendfsync="always", folder=tmp_path / "data")


@pytest.fixture
def fleet(durable: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(durable.url, tmp_path) as made:
        yield made


def logs(fleet: Fleet) -> Logs:
    """Each thread's log as (id, digest or kind)."""
    return {thread: [(x.id, x.digest or x.kind) for x in fleet.log.pages(thread)] for thread in fleet.log.threads()}


def reconnected(fleet: Fleet) -> None:
    """The connections of the test itself are gone, too."""
    fleet.redis.connection_pool.disconnect()
    fleet.moves.scripts.client.connection_pool.disconnect()


def test_a_server_killed_under_always_loses_nothing_and_nothing_runs_twice(
    fleet: Fleet, durable: EmbeddedServer
) -> None:
    naps = {"a": 0.02, "b": 0.05}
    threads = [fleet.submit(graph, naps=naps) for _ in range(CHAINS // 2) for graph in ("chain", "achain")]
    fleet.worker("chain", "achain", concurrency=SLOTS, lease_ms=LONG_MS)
    for times in (CHAINS, 2 * CHAINS):
        wait_for(lambda times=times: len(fleet.lines()) > times, 20, "the run to be under way")  # type: ignore[misc]
        durable.kill()
        durable.start()
        reconnected(fleet)
    following = fleet.submit("chain")
    fleet.settled(*threads, following)
    assert set(fleet.executions().values()) == {1}
    assert not any(fleet.kinds(thread)["task_lost"] for thread in threads)


def test_a_submit_that_was_acknowledged_outlives_the_server(fleet: Fleet, durable: EmbeddedServer) -> None:
    threads = [fleet.submit("chain") for _ in range(3)]
    durable.kill()
    durable.start()
    reconnected(fleet)
    with fleet.heir("chain"):
        fleet.settled(*threads)


def rewind(fleet: Fleet, server: EmbeddedServer, to: Path) -> None:
    """The server dies and comes back with the files that were put aside."""
    server.kill()
    shutil.rmtree(server.folder / AOF)
    shutil.copytree(to, server.folder / AOF)
    server.start()
    reconnected(fleet)


def put_aside(server: EmbeddedServer, folder: Path) -> Path:
    """A copy of the append-only file as it is: some whole commands, perhaps half of one more."""
    return Path(shutil.copytree(server.folder / AOF, folder / "aside"))


@pytest.mark.parametrize("graph", ["chain", "achain"])
def test_after_a_rewind_runs_go_on_from_whole_steps_under_workers_that_remember_more(
    fleet: Fleet, durable: EmbeddedServer, tmp_path: Path, graph: str
) -> None:
    threads = [fleet.submit(graph, naps={"b": 0.1, "c": 0.1}) for _ in range(CHAINS)]
    zombie = fleet.worker(graph, concurrency=SLOTS, lease_ms=LONG_MS)
    wait_for(lambda: sum(x.phase == "out" for x in fleet.lines()) > CHAINS, 20, "the first half")
    aside = put_aside(durable, tmp_path)
    wait_for(lambda: sum(x.node == "c" for x in fleet.lines()) > CHAINS // 2, 20, "the worker to be ahead")
    zombie.stop()
    rewind(fleet, durable, aside)
    rewound = logs(fleet)
    assert set(rewound) == set(threads), "what was acknowledged before the copy is there"
    assert all(verify(fleet.log, thread).sound for thread in threads)
    ahead = fleet.executions()
    zombie.go_on()
    fleet.settled(*threads)
    after = logs(fleet)
    for thread in threads:
        kept = len(rewound[thread])
        assert after[thread][:kept] == rewound[thread], "the past stays as the server came back with it"
        assert fleet.state(graph, thread)["seen"] == ["a", "b", "c"]
    again = fleet.executions() - ahead
    assert max(fleet.executions().values()) <= 2 and again, "what was rewound runs once more, and no more than that"
    assert not any(fleet.kinds(thread)["task_lost"] for thread in threads), "leases that nobody knows go back uncounted"


@pytest.mark.parametrize("graph", ["chain", "achain"])
def test_a_step_that_was_done_again_after_a_rewind_is_not_mistaken_for_the_one_remembered(
    fleet: Fleet, durable: EmbeddedServer, tmp_path: Path, graph: str
) -> None:
    """The worker has checkpoint 4 in its cache; the server comes back at 3, and another worker makes another 4."""
    thread = fleet.submit(graph, gated="b c")
    zombie = fleet.worker(graph, concurrency=2, lease_ms=SHORT_MS)
    fleet.began(thread, "b")
    aside = put_aside(durable, tmp_path)
    fleet.open_gate("b")
    fleet.began(thread, "c")
    zombie.stop()
    remembered = logs(fleet)[thread]
    rewind(fleet, durable, aside)
    with fleet.sweeping():
        fleet.worker(graph, lease_ms=SHORT_MS, failpoint="committed:1").dies()
        zombie.go_on()
        fleet.began(thread, "c", 2)
        fleet.open_gate()
        fleet.settled(thread)
    (ours,), (theirs,) = ([said for at, said in told if at == "4-0"] for told in (logs(fleet)[thread], remembered))
    assert ours != theirs
    assert fleet.executions(thread) == {"a": 1, "b": 2, "c": 2}


def test_a_log_cut_anywhere_in_its_last_bytes_is_read_up_to_a_whole_step(
    fleet: Fleet, durable: EmbeddedServer, tmp_path: Path
) -> None:
    threads = [fleet.submit("chain") for _ in range(3)]
    with fleet.heir("chain", concurrency=3, lease_ms=SHORT_MS):
        fleet.settled(*threads)
    full = logs(fleet)
    durable.kill()
    aside = put_aside(durable, tmp_path)
    for cut in (1, 400, 1700, 4000):
        rewind(fleet, durable, _cut(aside, tmp_path / f"cut-{cut}", cut))
        for thread, entries in logs(fleet).items():
            assert entries == full[thread][: len(entries)], f"{cut} bytes less: a prefix"
            assert verify(fleet.log, thread).problems == []
    with fleet.heir("chain", concurrency=3, lease_ms=SHORT_MS):
        fleet.settled(*[thread for thread in threads if fleet.redis.exists(KEYS.log(thread))])


@pytest.mark.soak
def test_a_log_cut_at_any_byte_of_the_last_commit_has_all_before_it_and_nothing_of_it(
    fleet: Fleet, durable: EmbeddedServer, tmp_path: Path, seed: random.Random
) -> None:
    """Each byte near its begin and its end; between them some that are drawn, for each is a server that starts."""
    thread = fleet.submit("chain")
    fleet.worker("chain", failpoint="committed:3").dies()
    full = logs(fleet)[thread]
    durable.kill()
    aside = put_aside(durable, tmp_path)
    (tail,) = aside.glob("*.incr.aof")
    end = tail.read_bytes()
    begun = [at for at in (end.rfind(b"$5\r\nMULTI", 0, upto) for upto in _backwards(end)) if at >= 0]
    commit = next(at for at in begun if b"XADD" in end[at : end.find(b"$4\r\nEXEC", at)]) - len(b"*1\r\n")
    sizes = range(commit, len(end) + 1)
    drawn = seed.sample(sizes, round(soaked(min(CUTS, len(sizes)))))
    for size in sorted({*drawn, *sizes[:EDGE], *sizes[-EDGE:]}):
        cut = _cut(aside, tmp_path / "cut", len(end) - size)
        rewind(fleet, durable, cut)
        shutil.rmtree(cut)
        entries = logs(fleet)[thread]
        assert entries in (full, full[:-1]), f"{size - commit} bytes of the last commit"
        assert verify(fleet.log, thread).problems == []
    with fleet.heir("chain", lease_ms=SHORT_MS):
        fleet.settled(thread)


def _backwards(text: bytes) -> Iterator[int]:
    """Where each transaction begins, the last one first."""
    at = len(text)
    while (at := text.rfind(b"$5\r\nMULTI", 0, at)) >= 0:
        yield at + len(b"$5\r\nMULTI")


def _cut(source: Path, target: Path, count: int) -> Path:
    """The same append-only files without the last bytes."""
    shutil.copytree(source, target)
    (tail,) = target.glob("*.incr.aof")
    with tail.open("r+b") as file:
        file.truncate(max(0, tail.stat().st_size - count))
    return target
