"""Durability: what a run is promised is kept, or refused before anything is written, or what lacks is said."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypedDict, cast

import pytest

from everstep import (
    END,
    START,
    Client,
    CompiledGraph,
    DurabilityWarning,
    InMemorySaver,
    RedisSaver,
    StateGraph,
    connect,
)
from everstep.acl import rules
from everstep.cli import main
from everstep.doctor import examine
from everstep.embedded import EmbeddedServer
from everstep.site import Site
from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import InvalidInput, ServerUnsuitable
from everstep_checkpoint.keys import Keys
from everstep_scheduler.client.client import publish
from everstep_scheduler.client.inbox import InboxReader
from everstep_scheduler.graph.durability import durability_of, replicas_of
from everstep_scheduler.moves.promises import Promises
from everstep_scheduler.moves.record import RunRecord
from everstep_scheduler.reading.children import children
from everstep_workers.worker import Worker
from pairs import Pair, paired
from servers import StartServer, plain_client, server_binaries, wait_for

REPLICATED = "replicas=1"
NAMES = ("one", "two", "three")


class State(TypedDict, total=False):
    x: int


def graph(durability: str = "commit", saver: Any = None, **nodes: Callable[[State], Any]) -> CompiledGraph:
    builder = StateGraph(State)
    builder.add_sequence([(name, nodes.get(name, _counts)) for name in NAMES])
    builder.add_edge(START, "one")
    builder.add_edge("three", END)
    return builder.compile(saver, name="shop", durability=durability)


def _counts(state: State) -> State:
    return {"x": state.get("x", 0) + 1}


def on(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}}


@pytest.fixture(scope="module")
def shared_pair(server_name: str) -> Iterator[Pair]:
    with ExitStack() as ending:
        yield paired(lambda **told: ending.enter_context(EmbeddedServer(binary=server_binaries()[server_name], **told)))


@pytest.fixture
def pair(shared_pair: Pair) -> Iterator[Pair]:
    """Both up to date and empty. A test that kills one takes a pair of its own."""
    shared_pair.keeps_up()
    yield shared_pair
    shared_pair.goes_on()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that stall are waited for a moment only."""
    monkeypatch.setattr("everstep_scheduler.moves.promises.WAIT_MS", 300)
    monkeypatch.setattr("everstep_scheduler.moves.promises.SHORT_MS", 20)


@pytest.fixture
def strict() -> Iterator[None]:
    """A DurabilityWarning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DurabilityWarning)
        yield


@contextmanager
def working(url: str, made: CompiledGraph) -> Generator[Client]:
    """A worker of the graph in a thread, and a client."""
    worker = Worker(url, [made], grace_s=1.0)
    thread = threading.Thread(target=worker.run)
    with connect(url) as client:
        publish(client.redis, client.keys, [made.spec])
        thread.start()
        try:
            yield client
        finally:
            worker.drain()
            thread.join(20)
            assert not thread.is_alive()


# --- words ---


@pytest.mark.parametrize("word", ["sync", "async", "exit"])
def test_langgraphs_words_mean_commit(word: str) -> None:
    made = graph(saver=InMemorySaver())
    assert made.invoke({"x": 0}, on("t"), durability=word) == {"x": 3}
    assert [*made.stream({"x": 0}, on("t"), durability=word)][-1] == {"three": {"x": 3}}
    assert graph(word).spec.durability == durability_of(word) == "commit"


@pytest.mark.parametrize(
    "word", ["", "always", "replicas", "replicas=0", "replicas=100", "replicas=-1", "FSYNC", 1, True]
)
def test_other_words_are_refused_where_they_are_said(word: Any) -> None:
    with pytest.raises(InvalidInput, match="no durability"):
        graph(saver=InMemorySaver()).invoke({"x": 0}, on("t"), durability=word)
    with pytest.raises(InvalidInput, match="replicas=N"):
        graph(word)


@pytest.mark.parametrize("word", ["replicas=0", "quorum", "replicas=1000000", "sync", ""])
def test_a_record_with_a_word_that_only_others_know_promises_a_commit(word: str) -> None:
    record = RunRecord.decode(RunRecord(durability=word).encode())
    assert record.durability == word and replicas_of(word) == 0


def test_what_ends_with_the_process_promises_a_commit_at_most() -> None:
    for made in (graph(saver=InMemorySaver()), graph()):
        with pytest.raises(InvalidInput, match="memory alone"):
            made.invoke({"x": 0}, on("t"), durability="fsync")
    assert graph("fsync").invoke({"x": 0}) == {"x": 3}  # kept nowhere, as everybody knows


def test_a_node_asks_for_no_durability_of_its_own() -> None:
    inner = graph()

    def calls(state: State) -> State:
        inner.invoke({"x": 0}, durability="fsync")
        return {}

    with pytest.raises(InvalidInput, match="outermost"):
        graph(saver=InMemorySaver(), one=calls).invoke({"x": 0}, on("t"))


# --- refused before anything is written ---


@pytest.mark.parametrize(
    ("word", "lacks"), [("fsync", "appendfsync is everysec"), (REPLICATED, "no replica connected")]
)
def test_what_the_server_cant_keep_is_refused_and_nothing_is_written(redis_url: str, word: str, lacks: str) -> None:
    saver = RedisSaver(redis_url)
    made = graph(saver=saver)
    with connect(redis_url) as client:
        publish(client.redis, client.keys, [graph(word).spec])  # the graph says it, for producers
        before = set(client.redis.keys("*"))
        for call in (
            lambda: made.invoke({"x": 0}, on("t"), durability=word),
            lambda: graph(word, saver).invoke({"x": 0}, on("t")),
            lambda: client.submit("shop", {"x": 0}, thread_id="t"),
            lambda: client.submit("shop", {"x": 0}, thread_id="t", durability=word),
            lambda: client.graph("shop").invoke({"x": 0}, on("t")),
            lambda: client.graph("shop", made).invoke({"x": 0}, on("t"), durability=word),
        ):
            with pytest.raises(ServerUnsuitable, match=lacks):
                call()
        assert set(client.redis.keys("*")) == before
        assert client.submit("shop", {"x": 0}, thread_id="t", durability="commit").status() == "running"
    saver.client.close()


def test_a_message_whose_durability_cant_be_kept_is_put_aside(redis_url: str) -> None:
    with connect(redis_url) as client:
        publish(client.redis, client.keys, [graph().spec])
        said = {"graph": "shop", "thread": "t", "input": "{}", "durability": REPLICATED}
        client.redis.xadd(client.keys.inbox, said)
        client.redis.xadd(client.keys.inbox, {**said, "thread": "u", "durability": "commit"})
        inbox = InboxReader(redis_url, client.keys)
        wait_for(lambda: inbox.turn() or client.redis.xlen(client.keys.inbox) == 0, 20)
        ((_, put),) = client.redis.xrange(client.keys.inbox_rejected)
        assert b"no replica connected" in put[b"reason"]
        assert [each.thread_id for each in client.threads()] == ["u"]


def test_a_user_who_may_not_ask_for_the_fsync_policy_is_told(own_server: StartServer) -> None:
    server = own_server(appendfsync="always")
    with plain_client(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "small", "on", ">hush", "~*", "&*", "+@all", "-config")
    with connect(server.url.replace("unix://", "unix://small:hush@")) as client:
        publish(client.redis, client.keys, [graph().spec])
        with pytest.raises(ServerUnsuitable, match="may not run CONFIG GET"):
            client.submit("shop", {"x": 0}, durability="fsync")


def test_the_command_line_asks_for_a_durability(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVERSTEP_URL", redis_url)
    with connect(redis_url) as client:
        publish(client.redis, client.keys, [graph().spec])
    assert main(["submit", "shop", '{"x": 0}', "--durability", REPLICATED]) != 0
    assert "no replica connected" in capsys.readouterr().err
    assert main(["submit", "shop", '{"x": 0}', "--durability", "commit"]) == 0


# --- fsync ---


@pytest.mark.usefixtures("strict")
def test_fsync_is_kept_where_each_write_is_synced_before_its_reply(own_server: StartServer) -> None:
    server = own_server(appendfsync="always")
    saver = RedisSaver(server.url)
    assert graph("fsync", saver).invoke({"x": 0}, on("inline")) == {"x": 3}
    with working(server.url, graph("fsync")) as client:
        assert client.submit("shop", {"x": 0}, thread_id="t").result(timeout=20) == {"x": 3}
        assert client.graph("shop").invoke({"x": 1}, on("t")) == {"x": 4}
        for thread in ("inline", "t"):
            first = next(client.log(thread))
            assert RunRecord.decode(e.unwrap(first.raw["record"], "")).durability == "fsync"
    saver.client.close()


def test_fsync_is_refused_until_the_file_that_is_loaded_is_made(
    own_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 before the end of that rewrite took all that had been promised."""
    monkeypatch.setattr("everstep_scheduler.moves.promises.REWRITE_MS", 20)
    server = own_server(appendfsync="always", extra=("--appendonly", "no"))
    with plain_client(server.url) as admin:
        promises, untyped = Promises(admin, Keys(rq="rq")), cast("Any", admin)
        admin.mset({f"some {i}": i for i in range(10)})
        admin.config_set("rdb-key-save-delay", 60_000)  # microseconds a key
        knows_again = untyped.info("server")["redis_version"] >= "7.2"  # WAITAOF is there
        for _ in range(1 + knows_again):
            admin.config_set("appendonly", "yes")
            with pytest.raises(ServerUnsuitable, match="its first rewrite has not ended"):
                promises.check("fsync")
            wait_for(lambda: not untyped.info("persistence")["aof_rewrite_in_progress"])
            promises.check("fsync")
            admin.bgrewriteaof()
            promises.check("fsync")  # a later one takes nothing
            wait_for(lambda: not untyped.info("persistence")["aof_rewrite_in_progress"])
            admin.config_set("appendonly", "no")


def test_a_setting_that_is_changed_under_a_run_is_said(
    own_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everstep_scheduler.moves.promises.LOOK_S", 0)
    server = own_server(appendfsync="always")
    saver = RedisSaver(server.url)

    def changes(state: State) -> State:
        saver.client.config_set("appendfsync", "everysec")
        return {}

    made = graph("fsync", saver, one=changes)
    with pytest.warns(DurabilityWarning, match="appendfsync is everysec"):
        assert made.invoke({"x": 0}, on("t")) == {"x": 2}
    saver.client.close()


# --- replicas ---


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("where", ["inline", "on a worker"])
def test_the_next_step_waits_until_the_replica_has_the_last_one(pair: Pair, where: str) -> None:
    stalled, began = threading.Event(), threading.Event()

    def stalls(state: State) -> State:
        pair.stalls()
        stalled.set()
        return _counts(state)

    def begins(state: State) -> State:
        began.set()
        return _counts(state)

    saver = RedisSaver(pair.primary.url)
    made, ended = graph(REPLICATED, saver, one=stalls, two=begins), list[Any]()

    def runs() -> None:
        ended.append(made.invoke({"x": 0}, on("t")))

    def looks() -> None:
        assert stalled.wait(20)  # who begins a run waits, too
        wait_for(lambda: pair.waited_for, 20, "somebody to wait for the replica")
        assert not began.is_set()
        pair.goes_on()

    if where == "inline":
        thread = threading.Thread(target=runs)
        thread.start()
        looks()
        thread.join(20)
        assert ended == [{"x": 3}]
    else:
        with working(pair.primary.url, made) as client:
            run = client.submit("shop", {"x": 0}, thread_id="t")
            looks()
            assert run.result(timeout=20) == {"x": 3}
    saver.client.close()


@pytest.mark.usefixtures("impatient")
def test_a_run_whose_replica_stalls_goes_on_and_says_so_inline(pair: Pair) -> None:
    def stalls(state: State) -> State:
        pair.stalls()
        return _counts(state)

    saver = RedisSaver(pair.primary.url)
    with pytest.warns(DurabilityWarning, match="thread 't': a step of run .* no replica had it within"):
        assert graph(REPLICATED, saver, one=stalls).invoke({"x": 0}, on("t")) == {"x": 3}
    saver.client.close()


@pytest.mark.usefixtures("impatient")
def test_a_run_whose_replica_stalls_goes_on_and_says_so_on_a_worker(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    def stalls(state: State) -> State:
        pair.stalls()
        return _counts(state)

    with working(pair.primary.url, graph(one=stalls)) as client, caplog.at_level(logging.WARNING):
        run = client.submit("shop", {"x": 0}, thread_id="t", durability=REPLICATED)
        with pytest.warns(DurabilityWarning, match="the end of run"):
            assert run.result(timeout=20) == {"x": 3}
        pair.goes_on()
        with warnings.catch_warnings():  # what lacked is made good by who asks later: replicas receive all in order
            warnings.simplefilter("error", DurabilityWarning)
            wait_for(lambda: client.promises.kept((REPLICATED,)) == "", 20)
            assert run.result(timeout=20) == {"x": 3}
    assert "committed, but not as durable as was asked for: no replica had it" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_a_submit_whose_replica_stalls_is_written_and_warns(pair: Pair) -> None:
    with connect(pair.primary.url) as client:
        publish(client.redis, client.keys, [graph().spec])
        pair.stalls()
        with pytest.warns(DurabilityWarning, match="thread 't': the beginning of run 'r' is written"):
            run = client.submit("shop", {"x": 0}, thread_id="t", run_id="r", durability=REPLICATED)
        assert run.status() == "running"


@pytest.mark.usefixtures("impatient")
def test_the_command_line_says_what_lacks_on_a_line_of_its_own(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVERSTEP_URL", pair.primary.url)
    with connect(pair.primary.url) as client:
        publish(client.redis, client.keys, [graph(REPLICATED).spec])
    pair.stalls()
    assert main(["submit", "shop", '{"x": 0}', "--thread", "t"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "durable" in line]
    assert len(said) == 1 and said[0].startswith("warning: thread 't': the beginning of run")


@pytest.mark.usefixtures("strict")
def test_a_graph_that_is_a_node_is_promised_what_its_caller_was(pair: Pair) -> None:
    outer = StateGraph(State).add_node("child", graph()).add_edge(START, "child").add_edge("child", END)
    made = outer.compile(name="outer", durability=REPLICATED)
    with working(pair.primary.url, made) as client:
        assert client.submit("outer", {"x": 0}, thread_id="t").result(timeout=20) == {"x": 3}
        (child,) = children(client.log_store, "t")
        first = next(client.log(child))
        assert RunRecord.decode(e.unwrap(first.raw["record"], "")).durability == REPLICATED


@pytest.mark.usefixtures("strict")
def test_a_submit_that_the_replica_has_outlives_the_primary(
    own_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = paired(own_server)
    with connect(pair.primary.url) as client:
        publish(client.redis, client.keys, [graph().spec])
        for i in range(5):
            client.submit("shop", {"x": 0}, thread_id=f"t{i}", durability=REPLICATED)
    pair.primary.kill()
    for name in ("WAIT_MS", "SHORT_MS"):  # there is no replica any more, and what goes on says so
        monkeypatch.setattr(f"everstep_scheduler.moves.promises.{name}", 20)
    with plain_client(pair.replica.url) as admin:
        admin.execute_command("REPLICAOF", "NO", "ONE")
    with working(pair.replica.url, graph()) as client:
        for i in range(5):
            assert client.run(f"t{i}").result(timeout=30) == {"x": 3}


@pytest.mark.usefixtures("strict")
def test_workers_and_producers_with_the_least_rights_may_wait(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    with plain_client(pair.primary.url) as admin:
        for role in ("worker", "producer"):
            admin.execute_command("ACL", "SETUSER", role, *rules(role, Keys(), password="hush"))
    worker, producer = (pair.primary.url.replace("unix://", f"unix://{role}:hush@") for role in ("worker", "producer"))
    with working(worker, graph()), connect(producer) as client:
        assert client.submit("shop", {"x": 0}, durability=REPLICATED).result(timeout=20) == {"x": 3}
    assert "not as durable" not in caplog.text


@pytest.mark.usefixtures("strict")
def test_what_continues_a_run_is_promised_what_the_graph_says(pair: Pair) -> None:
    def asks(state: State) -> State:
        from everstep import interrupt

        return {"x": interrupt("how many?")}

    with working(pair.primary.url, graph(REPLICATED, two=asks)) as client:
        assert client.submit("shop", {"x": 0}, thread_id="t").result(timeout=20)["__interrupt__"]
        assert client.resume("t", 5).result(timeout=20) == {"x": 6}
        client.graph("shop").update_state(on("t"), {"x": 0}, as_node="three")
        history = list(client.history("t"))
        client.rollback("t", history[-2].config["configurable"]["checkpoint_id"])
        records = [entry.raw["record"] for entry in client.log("t") if entry.kind in ("run_started", "run_queued")]
        assert {RunRecord.decode(e.unwrap(each, "")).durability for each in records} == {REPLICATED}


def test_a_stock_rq_worker_keeps_it_too(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "promisedshop.py").write_text("from test_promises import graph\nshop = graph()\n")
    with connect(pair.primary.url) as client:
        publish(client.redis, client.keys, [graph().spec])
        run = client.submit("shop", {"x": 0}, durability=REPLICATED)
        client.redis.delete(client.keys.mark)
        path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
        done = subprocess.run(
            [Path(sys.executable).with_name("rq"), "worker", "-u", pair.primary.url, "-j", "everstep.RQJob",
             "--serializer", "json", "--burst", "shop"],
            env={**os.environ, "EVERSTEP_GRAPHS": "promisedshop:shop", "PYTHONPATH": path}, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert client.redis.exists(client.keys.mark), done.stderr
        assert run.result(timeout=5) == {"x": 3}, done.stderr


# --- the doctor ---


def test_the_doctor_says_what_can_be_promised_here(own_server: StartServer, pair: Pair) -> None:
    def said(server: EmbeddedServer) -> list[str]:
        return [each.said for each in examine(Site(server.url)) if each.about == "promise"]

    commit, fsync, replicas = said(own_server(appendfsync="always"))
    assert "a power cut takes nothing" in commit and fsync.startswith("fsync: kept")
    assert "refused here: no replica" in replicas
    commit, fsync, replicas = said(pair.primary)
    assert "may take back the last moments" in commit and "refused here: appendfsync is everysec" in fsync
    assert "up to 1, 1 replica connected" in replicas
    commit, *_ = said(own_server(extra=("--appendonly", "no")))
    assert "all since its last dump" in commit


def test_a_sync_that_rewrites_suspend_is_no_promise(own_server: StartServer) -> None:
    server = own_server(appendfsync="always", extra=("--no-appendfsync-on-rewrite", "yes"))
    with connect(server.url) as client:
        publish(client.redis, client.keys, [graph().spec])
        with pytest.raises(ServerUnsuitable, match="while the file is rewritten"):
            client.submit("shop", {"x": 0}, durability="fsync")
