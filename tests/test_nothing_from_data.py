"""Nothing that Redis holds is imported, executed or called: each way that reads it is walked, with a trap set.

`hostile` plants, `trap` watches. Each test ends with work that is well, so that nothing was merely not reached.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import pytest
from rq.serializers import DefaultSerializer
from rq.utils import import_attribute

import hostile
from everstep.cli import WORDS, main
from everstep.doctor import examine
from everstep.embedded import EmbeddedServer
from everstep.site import Site
from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import Codec
from everstep_checkpoint.delta import encode_delta
from everstep_checkpoint.errors import EverstepError
from everstep_checkpoint.ids import new_id
from everstep_scheduler.client.client import Client, connect, publish
from everstep_scheduler.client.migrating import plan
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.options import CachePolicy
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.moves.live import Said
from everstep_scheduler.moves.record import RunRecord, start_with
from everstep_scheduler.recovery import recovery
from everstep_scheduler.recovery.mending import look
from everstep_scheduler.recovery.recovery import recover
from everstep_workers.worker import Worker
from servers import wait_for
from trap import TRAP

CLI_MODULES = frozenset(f".commands.{module}" for module, _ in WORDS.values())
STOCK = """
from typing import Any, TypedDict
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START

class State(TypedDict, total=False):
    x: Any

shop = StateGraph(State).add_node("one", lambda state: {"x": 1}).add_edge(START, "one").add_edge("one", END).compile()
"""


class State(TypedDict, total=False):
    x: Any
    y: int


def builder() -> StateGraph:
    made = StateGraph(State)
    made.add_node("one", lambda state: {"y": 1}, cache_policy=CachePolicy())
    made.add_edge(START, "one")
    made.add_edge("one", END)
    return made


class Planted:
    """A server with the graph `shop`, and with all that is hostile once `plant` was called."""

    def __init__(self, server: EmbeddedServer, touched: Path) -> None:
        self.server = server
        self.touched = touched
        self.site = Site(server.url)
        self.keys = self.site.keys
        self.redis: Any = self.site.redis
        self.client: Client = connect(server.url)
        self.values = hostile.values(touched)
        self.spec = builder().spec("shop")
        publish(self.redis, self.keys, [self.spec])

    def close(self) -> None:
        self.client.close()
        self.redis.close()

    @contextmanager
    def trap(self) -> Iterator[None]:
        """Nothing springs it, nothing is touched."""
        with TRAP.set(str(self.server.socket), named=lambda name: name in CLI_MODULES) as sprung:
            yield
        assert sprung == []
        assert not self.touched.exists()
        assert "planted" not in sys.modules

    # what is planted

    def inputs(self) -> list[str]:
        """A run with each value as its input; their threads."""
        for i, value in enumerate(self.values.values()):
            record = RunRecord("input", "typed" if i % 2 else "json", context={"lc": 2, "id": ["os", "system"]})
            said = start_with(record, [("x", value)], thread=f"in-{i}", run=new_id(), graph="shop", queue="shop")
            assert self.client.moves.start(said).status == "started"
        return [f"in-{i}" for i in range(len(self.values))]

    def logs(self) -> list[str]:
        """A log with each value wherever an entry holds one; their threads."""
        for i, value in enumerate(self.values.values()):
            self._log(f"log-{i}", value)
        return [f"log-{i}" for i in range(len(self.values))]

    def _log(self, thread: str, value: bytes) -> None:
        birth, run, token = new_id(), new_id(), new_id()
        evil = json.dumps({"type": "planted.Fires", "text": "os.system", "traceback": "", "node": "os.system"})
        told = {"graph": "shop", "queue": "shop", "kind_of_run": "input", "task": "start", "node": "__start__"}
        begun = e.fact("run_started", run, birth=birth, step=-2, insum=new_id(), record=e.wrap(value),
                       input=e.pack_writes([("x", value)]), **told)  # fmt: skip
        made = e.checkpoint(birth, 1, source="loop", step=0, run=run, graph="shop@planted", node="one", task="start",
                            delta=e.wrap(encode_delta({"x": [0, value]})), writes=e.pack_writes([("x", None)]),
                            next=json.dumps([["p0", "one", "shop", 0], ["p1", "os.system", "shop", 0]]))  # fmt: skip
        of: dict[str, str | bytes | int] = {"task": "p0", "node": "one", "attempt": 1, "token": token}
        facts = [
            e.fact("effect_done", run, effect="os.system", result=e.wrap(value), **of),
            e.fact("task_paused", run, asks=e.wrap(value), question="0" * 32, schema='{"$ref":"file:///x"}', **of),
            e.fact("task_answered", run, answer=e.wrap(value), question="0" * 32, **of),
            e.fact("task_failed", run, error=evil, retry_at=1, **of),
            e.fact("task_failed", run, error=evil, **{**of, "task": "p1", "node": "os.system"}),
        ]
        self.site.log.append(thread, [e.summed(begun), made, *map(e.summed, facts)], None)

    def jobs(self) -> list[str]:
        found = hostile.jobs(self.touched)
        for name, fields in found.items():
            self.redis.hset(self.keys.rq_job(name), mapping=fields)
            self.redis.rpush(self.keys.rq_queue("shop"), name)
        self.redis.sadd(self.keys.rq_queues, self.keys.rq_queue("shop"))
        return list(found)

    def manifests(self) -> None:
        self.redis.set(self.keys.graph("evil"), hostile.manifest("evil"))
        self.redis.sadd(self.keys.graphs, "evil")

    def inbox(self) -> int:
        found = hostile.messages(self.touched)
        for fields in found.values():
            self.redis.xadd(self.keys.inbox, fields)
        return len(found)

    def live(self, thread: str, run: str) -> None:
        for i, value in enumerate(self.values.values()):
            said = Said("custom", 1, "p0", "id", "one", 1, "t" * 22, i + 1, value)
            self.redis.xadd(self.keys.live(run, thread), said.fields())

    def cached(self) -> None:
        """Whatever the cache is asked for, it has a hostile value."""
        for i, key in enumerate(self.redis.keys(f"{self.keys.stem}cache:*")):
            self.redis.set(key, e.wrap(list(self.values.values())[i % len(self.values)]))


@pytest.fixture
def planted(server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(recovery, "MARGIN_S", 0.0)
    made = Planted(server, tmp_path / "touched")
    yield made
    made.close()


@contextmanager
def working(planted: Planted) -> Iterator[Worker]:
    worker = Worker(planted.server.url, [planted.spec], lease_ms=600, grace_s=1.0)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_for(lambda: planted.redis.hget(planted.keys.rq_worker(worker.name), "state"))
        yield worker
    finally:
        worker.drain()
        thread.join(20)
        assert not thread.is_alive()


def _is_one_of(client: Any, key: str, statuses: tuple[bytes, ...]) -> bool:
    return client.hget(key, "status") in statuses


def good_run(planted: Planted) -> None:
    run = planted.client.submit("shop", {"x": [1]})
    assert run.result(timeout=20) == {"x": [1], "y": 1}


# -- the trap itself


@pytest.mark.parametrize(
    "act",
    [
        lambda touched: DefaultSerializer.loads(hostile.pickled(f"touch {touched}")),
        lambda touched: import_attribute("builtins.eval")("1 + 1"),
        lambda touched: import_attribute("builtins.exec")("pass"),
        lambda touched: os.system("true"),
        lambda touched: subprocess.run(["true"]),
        lambda touched: importlib.import_module("planted"),
        lambda touched: importlib.import_module("os"),
        lambda touched: __import__("planted"),
        lambda touched: Site("redis://127.0.0.1:1/0").redis.ping(),
    ],
)
def test_the_trap_springs(planted: Planted, act: Callable[[Path], object]) -> None:
    with TRAP.set() as sprung, suppress(Exception):
        act(planted.touched)
    assert sprung
    sys.modules.pop("planted", None)


def test_the_trap_lets_statements_pass(planted: Planted) -> None:
    with TRAP.set() as sprung:
        import planted as by_statement  # type: ignore[import-not-found]  # noqa: F401
    assert sprung == []
    sys.modules.pop("planted", None)


# -- the ways that read


def test_no_value_makes_its_reader_do_anything(planted: Planted) -> None:
    typed = planted.spec.codec
    with planted.trap():
        for value in planted.values.values():
            for codec in (typed, Codec()):
                with suppress(EverstepError):
                    codec.decode(value)


def test_a_worker_runs_nothing_that_its_jobs_and_logs_name(planted: Planted) -> None:
    with working(planted) as worker:
        good_run(planted)
        with planted.trap():
            planted.cached()
            threads, jobs = planted.inputs(), planted.jobs()
            for said in ("os.system", '{"command": "os.system", "args": ["x"]}', '{"command": ["planted"]}'):
                planted.redis.publish(planted.keys.rq_commands(worker.name), said)
            rested = (b"done", b"failed")
            for key in map(planted.keys.thread, threads):
                wait_for(partial(_is_one_of, planted.redis, key, rested), 30, key)
            wait_for(lambda: not planted.redis.llen(planted.keys.rq_queue("shop")))
            good_run(planted)
        failed = {name.decode() for name in planted.redis.zrange(planted.keys.rq_failed("shop"), 0, -1)}
        assert len(failed & set(jobs)) >= len(jobs) - 3, "those that are not ours are shown as failed"


def test_a_worker_runs_nothing_of_logs_that_were_rebuilt(planted: Planted) -> None:
    planted.logs()
    with planted.trap():
        recover(planted.redis, planted.keys, lease_ms=3)
    with working(planted):
        good_run(planted)
        with planted.trap():
            planted.redis.delete(planted.keys.alive)
            good_run(planted)


def test_the_inbox_runs_nothing_that_its_messages_name(planted: Planted) -> None:
    planted.manifests()
    with working(planted):
        good_run(planted)
        with planted.trap():
            sent = planted.inbox()
            wait_for(lambda: not planted.redis.xlen(planted.keys.inbox), 20)
            good_run(planted)
    assert planted.redis.xlen(planted.keys.inbox_rejected) == sent - 1, "one is data"


def tried(*actions: Callable[[], object]) -> None:
    """Do them all; errors are ours, or they are a failure."""
    for action in actions:
        with suppress(EverstepError):
            action()


def read_all(planted: Planted, thread: str) -> None:
    client = planted.client
    run = client.run(thread)
    planted.live(thread, run.run_id)
    graph = client.graph("shop")
    config = {"configurable": {"thread_id": thread}}
    tried(
        lambda: client.state(thread),
        lambda: list(client.history(thread)),
        lambda: list(client.log(thread)),
        lambda: run.result(timeout=0.01) if run.status() != "running" else None,
        lambda: run.ending(timeout=0.01) if run.status() != "running" else None,
        lambda: graph.get_state(config),
        lambda: list(graph.get_state_history(config)),
        lambda: client.diff(thread, "1", "1"),
        lambda: client.fork(thread, f"{thread}-fork"),
        lambda: plan(client, thread, lambda node, state: "one"),
        lambda: look(planted.redis, planted.keys, thread),
    )
    for events in (run.events(timeout=0.05), run.chunks("values", timeout=0.05), run.chunks("custom", timeout=0.05)):
        with suppress(EverstepError, TimeoutError):
            list(events)


def test_a_client_runs_nothing_of_what_it_reads(planted: Planted) -> None:
    threads = planted.logs()
    recover(planted.redis, planted.keys, lease_ms=3)
    read_all(planted, threads[0])
    with planted.trap():
        for thread in threads:
            read_all(planted, thread)


def test_a_client_runs_nothing_of_a_manifest(planted: Planted) -> None:
    planted.manifests()
    tried(lambda: planted.client.submit("evil", {"x": 1}))
    with planted.trap():
        evil = planted.client.graph("evil")
        tried(
            planted.client.graphs,
            lambda: planted.client.submit("evil", {"x": 1, "y": [{}]}),
            lambda: evil.invoke({"x": 1}),
            lambda: evil.get_graph().draw_mermaid(),
            lambda: evil.get_graph().draw_ascii(),
            lambda: planted.client.submit("planted:graph", {}),
        )


def test_doctor_and_recover_run_nothing(planted: Planted) -> None:
    planted.logs()
    planted.inputs()
    planted.jobs()
    planted.manifests()
    planted.inbox()
    examine(planted.site)
    with planted.trap():
        examine(planted.site)
        recover(planted.redis, planted.keys, lease_ms=3)
        examine(planted.site)


def test_the_command_line_runs_nothing(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    threads = planted.logs()
    planted.manifests()
    recover(planted.redis, planted.keys, lease_ms=3)
    tried(lambda: planted.client.submit("evil", {"x": 1}))
    words = [
        *([word, thread, *more] for thread in threads for word in ("state", "history", "log", "retry")
          for more in ((), ("--json",))),
        *(["result", thread, "--timeout", "0.01"] for thread in threads),
        *(["log", thread, "--values"] for thread in threads),
        *(["log", thread, "--verify"] for thread in threads),
        *(["recover", "--thread", thread] for thread in threads),
        ["threads"], ["graphs", "--json"], ["graphs"], ["draw", "evil"], ["draw", "evil", "--ascii"],
        ["submit", "evil", '{"x": {"lc": 1}}'], ["resume", threads[0], '{"lc": 1}'], ["doctor"], ["recover"],
        ["fork", threads[0]], ["cancel", threads[0]],
    ]  # fmt: skip
    for word in WORDS:
        main([word, "--help"])
    with planted.trap():
        for each in words:
            main(["--url", planted.server.url, *each])
    assert "Traceback" not in capsys.readouterr().err


# -- RQ's own programs


@pytest.fixture
def trapped(planted: Planted, tmp_path: Path) -> Callable[..., str]:
    """Run one of RQ's programs with the trap set; what it said."""
    (tmp_path / "stock.py").write_text(STOCK)

    def run(*program: str, knows: tuple[str, ...] = ()) -> str:
        report = tmp_path / "report"
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "EVERSTEP_GRAPHS": "stock:shop", "PYTHONPATH": path}
        environment["TRAP_KNOWS"] = os.pathsep.join([str(planted.server.socket), *knows])
        trap = str(Path(__file__).with_name("trap.py"))
        done = subprocess.run(
            [sys.executable, trap, str(report), "--", *program, "-u", planted.server.url],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert not report.exists(), report.read_text()
        assert not planted.touched.exists()
        assert done.returncode == 0, done.stderr
        print(done.stderr)
        return done.stdout + done.stderr

    return run


# What `rq worker` imports by name: what its command line, its defaults and the environment say.
OF_RQ_S_OWN = (
    "everstep_workers.rqjob", "rq.worker", "rq.worker_classes", "rq.queue", "rq.job", "rq.timeouts", "redis", "stock",
    "rq", "rq.job.Job", "rq.worker.worker_classes",
)  # fmt: skip


def test_a_stock_rq_worker_runs_nothing_but_our_nodes(planted: Planted, trapped: Callable[..., str]) -> None:
    jobs, threads = planted.jobs(), planted.inputs()
    thread = threads[0]
    (job,) = {json.loads(row)["j"] for row in planted.redis.hgetall(planted.keys.open(thread)).values()}
    evil = hostile.jobs(planted.touched)["called back"]
    planted.redis.hset(planted.keys.rq_job(job), mapping={k: v for k, v in evil.items() if k != "data"})
    for _ in range(2):
        trapped("rq", "worker", "-j", "everstep_workers.rqjob.RQJob", "--serializer", "json", "--burst", "shop",
                knows=OF_RQ_S_OWN)  # fmt: skip
    assert planted.redis.hget(planted.keys.thread(thread), "status") in (b"done", b"failed")
    assert not planted.redis.llen(planted.keys.rq_queue("shop")), f"each of {jobs} was dealt with"


def test_rq_info_runs_nothing_of_our_queues(planted: Planted, trapped: Callable[..., str]) -> None:
    planted.jobs()
    planted.inputs()
    with working(planted):
        for more in ((), ("-R",), ("-W",), ("-Q",), ("--raw",)):
            said = trapped("rq", "info", *more, knows=OF_RQ_S_OWN)
    assert "shop" in said
