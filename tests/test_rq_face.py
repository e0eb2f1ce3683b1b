"""RQ's own tools tell the truth about our workers and tasks, and do to them what an operator expects."""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
import redis
import rq
from rq.command import (
    send_command,
    send_kill_horse_command,
    send_shutdown_command,
    send_stop_job_command,
)
from rq.job import Job
from rq.registry import FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from everstep_checkpoint.errors import ServerUnsuitable
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import connect
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_scheduler.recovery.recovery import Recovery
from everstep_workers.face import pin_rq_prefix
from everstep_workers.targets import load_target
from everstep_workers.worker import Worker
from servers import lives, wait_for

KEYS = Keys()
STOCK = """
import asyncio, operator, os, signal, time
from pathlib import Path
from typing import Annotated, TypedDict
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.options import TimeoutPolicy
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START

HERE = Path(__file__).parent

class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]

def one(state):
    return {"seen": ["one"]}

async def two(state):
    await asyncio.sleep(0.01)
    return {"seen": ["two"]}

def breaks(state):
    raise ValueError("no")

def dies(state):
    (HERE / "died").open("a").write(f"{os.getpid()}\\n")
    if len((HERE / "died").read_text().split()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"seen": ["survived"]}

def slow(state):
    (HERE / "slow").touch()
    time.sleep(20)

def late(state):
    time.sleep(20)

def spins(state):
    (HERE / "spun").write_text(str(os.getpid()))
    while True:
        pass

def built(*nodes, **told):
    graph = StateGraph(State)
    for node in nodes:
        graph.add_node(node, **told)
    for before, after in zip(nodes, nodes[1:]):
        graph.add_edge(before.__name__, after.__name__)
    graph.add_edge(START, nodes[0].__name__)
    graph.add_edge(nodes[-1].__name__, END)
    return graph.compile()

chain = built(one, two)
nesting = StateGraph(State).add_node("child", chain).add_edge(START, "child").compile()
failing = built(breaks)
dying = built(dies)
stopping = built(slow)
timing = built(late, timeout=0.3)
spinning = built(spins, timeout=3.0, isolate=True)

def handles(state, error):
    return {"seen": [str(error.error)]}

idling = built(late, timeout=TimeoutPolicy(idle_timeout=0.3), error_handler=handles)
"""


Stock = Callable[..., subprocess.Popen[str]]


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]


def graph(name: str, node: Callable[..., Any], **told: Any) -> GraphSpec:
    built = StateGraph(State)
    built.add_node("one", node, **told)
    built.add_edge(START, "one")
    built.add_edge("one", END)
    return built.spec(name)


class Gate:
    """A node that runs until it is let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.open = threading.Event()

    def __call__(self, state: State) -> State:
        self.runs += 1
        assert self.open.wait(20)
        return {"seen": ["gate"]}


class Shop:
    """A producer, and RQ's view of the server."""

    def __init__(self, url: str, client: redis.Redis) -> None:
        self.url = url
        self.redis: Any = client
        own = connect(url)
        self.moves = RedisMoves(Scripts(own, KEYS, Recovery(own, KEYS), url))
        self.log = RedisLog(own, KEYS)

    def submit(self, spec: GraphSpec) -> str:
        thread = new_id()
        self.moves.start(start_of(spec, thread, new_id(), {}, Config(), "input"))
        return thread

    def rests(self, thread: str, status: bytes = b"done", timeout_s: float = 15.0) -> None:
        wanted = f"{thread} to be {status!r}"
        wait_for(lambda: self.redis.hget(KEYS.thread(thread), "status") == status, timeout_s, wanted)

    def heard_by(self, worker: Worker) -> None:
        """Wait until the worker listens: RQ says a command to who is there, once."""
        wait_for(lambda: self.redis.pubsub_numsub(KEYS.rq_commands(worker.name))[0][1])

    def counts(self, queue: str) -> tuple[int, int, int, int]:
        """queued, started, scheduled, failed: as RQ counts them."""
        kinds = (StartedJobRegistry, ScheduledJobRegistry, FailedJobRegistry)
        where: dict[str, Any] = {"connection": self.redis, "serializer": JSONSerializer}
        started, scheduled, failed = (kind(queue, **where).get_job_count(cleanup=True) for kind in kinds)
        return rq.Queue(queue, **where).count, started, scheduled, failed

    def places(self, thread: str) -> list[str]:
        rows: dict[bytes, bytes] = self.redis.hgetall(KEYS.open(thread))
        return sorted(json.loads(row)["p"] for row in rows.values())

    def job(self, queue: str, kind: type[Any] = StartedJobRegistry) -> str:
        """The one job of a registry."""
        (job_id,) = wait_for(lambda: kind(queue, connection=self.redis).get_job_ids(cleanup=False))
        return str(job_id)

    def error(self, thread: str) -> str:
        (failed,) = [x for x in self.log.read(thread) if x.kind == "task_failed"]
        return failed.text("error")

    def rq_keys(self) -> set[bytes]:
        """RQ's keys but those of queues and workers."""
        keep = (b"rq:queues", b"rq:worker", b"rq:everstep:", b"rq:clean_", b"rq:scheduler")
        return {key for key in self.redis.keys("rq:*") if not key.startswith(keep)}


@pytest.fixture
def shop(redis_url: str, client: redis.Redis) -> Shop:
    return Shop(redis_url, client)


@contextmanager
def running(shop: Shop, *graphs: GraphSpec, **told: Any) -> Iterator[Worker]:
    worker = Worker(shop.url, graphs, **{"lease_ms": 3000, "grace_s": 2.0, **told})
    thread = threading.Thread(target=worker.run, name="worker")
    thread.start()
    try:
        yield worker
    finally:
        worker.drain()
        thread.join(20)
        assert not thread.is_alive(), "the worker did not end"


# --- what RQ's tools show


def test_rq_sees_the_worker_its_state_and_its_counters(shop: Shop) -> None:
    gate = Gate()
    good, bad = graph("good", gate), graph("bad", lambda state: 1 / 0)
    with running(shop, good, bad) as worker:
        found = wait_for(lambda: rq.Worker.all(connection=shop.redis))
        assert [each.name for each in found] == [worker.name]
        assert found[0].queue_names() == ["good", "bad"]
        assert (found[0].pid, found[0].version) == (os.getpid(), version("rq"))
        thread = shop.submit(good)
        wait_for(lambda: rq.Worker.all(connection=shop.redis)[0].get_state() == "busy")
        gate.open.set()
        shop.rests(thread)
        shop.rests(shop.submit(bad), b"failed")
        wait_for(lambda: rq.Worker.all(connection=shop.redis)[0].get_state() == "idle")
        wait_for(lambda: rq.Worker.all(connection=shop.redis)[0].failed_job_count == 1)
        assert rq.Worker.all(connection=shop.redis)[0].successful_job_count == 3
    assert rq.Worker.all(connection=shop.redis) == []
    assert rq.Worker.all(queue=rq.Queue("good", connection=shop.redis)) == []


def test_the_worker_is_shown_again_after_the_loss_of_its_keys(shop: Shop) -> None:
    with running(shop, graph("good", Gate())) as worker:
        wait_for(lambda: shop.redis.hget(KEYS.rq_worker(worker.name), "state") == b"idle")
        shop.redis.delete(KEYS.rq_worker(worker.name), KEYS.rq_workers)
        worker._face._beaten = 0.0  # pyright: ignore[reportPrivateUsage]
        wait_for(lambda: rq.Worker.all(connection=shop.redis))


def test_counts_of_rq_equal_our_open_tasks_by_place(shop: Shop) -> None:
    gate = Gate()
    policy = RetryPolicy(initial_interval=30, jitter=False)

    def fails(state: State) -> State:
        raise ConnectionError("later")

    spec, later = graph("gate", gate), graph("later", fails, retry_policy=policy)
    broken, stranger = graph("broken", lambda state: 1 / 0), graph("stranger", gate)
    with running(shop, spec, later, broken, concurrency=2):
        woken, failed = shop.submit(later), shop.submit(broken)
        wait_for(lambda: shop.places(woken) == ["wake"])
        shop.rests(failed, b"failed")
        threads = [shop.submit(spec) for _ in range(5)]
        wait_for(lambda: gate.runs == 2)
        waiting = shop.submit(stranger)
        assert sorted(place for thread in threads for place in shop.places(thread)) == ["job"] * 3 + ["lease"] * 2
        assert shop.counts("gate") == (3, 2, 0, 0)
        assert (shop.places(woken), shop.counts("later")) == (["wake"], (0, 0, 1, 0))
        assert (shop.places(failed), shop.counts("broken")) == (["failed"], (0, 0, 0, 1))
        assert (shop.places(waiting), shop.counts("stranger")) == (["job"], (1, 0, 0, 0))
        gate.open.set()
        for thread in threads:
            shop.rests(thread)
        assert shop.counts("gate") == (0, 0, 0, 0)


def test_rq_info_prints_our_queues_and_workers(shop: Shop) -> None:
    gate = Gate()
    spec = graph("gate", gate)
    with running(shop, spec, concurrency=1) as worker:
        threads = [shop.submit(spec) for _ in range(2)]
        wait_for(lambda: gate.runs)
        info: list[str | Path] = [Path(sys.executable).with_name("rq"), "info", "--raw", "-u", shop.url]
        said = subprocess.run(info, capture_output=True, text=True, check=True, timeout=20).stdout
        assert "queue gate 1, 1 executing, 0 finished, 0 failed" in said
        assert worker.name in said
        gate.open.set()
        for thread in threads:
            shop.rests(thread)


# --- what operators do


def test_a_suspended_worker_takes_nothing_until_resumed(shop: Shop) -> None:
    gate = Gate()
    gate.open.set()
    spec = graph("gate", gate)
    with running(shop, spec) as worker:
        suspend(shop.redis)
        wait_for(lambda: worker.work.suspended, what="the worker to see it")
        thread = shop.submit(spec)
        wait_for(lambda: rq.Worker.all(connection=shop.redis)[0].get_state() == "suspended")
        assert gate.runs == 0
        resume(shop.redis)
        shop.rests(thread)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stopped_job_fails_with_the_reason_and_the_worker_goes_on(shop: Shop, is_async: bool) -> None:
    gate = Gate()

    async def waits(state: State) -> State:
        import asyncio

        gate.runs += 1
        await asyncio.sleep(20)
        return {}

    spec, other = graph("gate", waits if is_async else gate), graph("other", lambda state: {})
    with running(shop, spec, other) as worker:
        shop.heard_by(worker)
        thread = shop.submit(spec)
        wait_for(lambda: gate.runs)
        send_stop_job_command(shop.redis, shop.job("gate"), serializer=JSONSerializer)
        shop.rests(thread, b"failed")
        shop.rests(shop.submit(other))
        gate.open.set()
    assert "stopped by an operator" in shop.error(thread)
    assert shop.counts("gate") == (0, 0, 0, 1)


def test_kill_horse_stops_all_that_runs(shop: Shop) -> None:
    gate = Gate()
    spec = graph("gate", gate)
    with running(shop, spec) as worker:
        shop.heard_by(worker)
        threads = [shop.submit(spec) for _ in range(3)]
        wait_for(lambda: gate.runs == 3)
        send_kill_horse_command(shop.redis, worker.name)
        for thread in threads:
            shop.rests(thread, b"failed")
        gate.open.set()


def test_the_shutdown_command_drains(shop: Shop) -> None:
    with running(shop, graph("gate", Gate())) as worker:
        shop.heard_by(worker)
        send_shutdown_command(shop.redis, worker.name)
        wait_for(worker.work.draining.is_set)


def test_commands_that_mean_nothing_are_ignored(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    with running(shop, graph("gate", Gate())) as worker:
        channel = KEYS.rq_commands(worker.name)
        shop.heard_by(worker)
        for said in ("", "[", "7", "[]", "{}", '{"command": {}}', "\x00\xff"):
            shop.redis.publish(channel, said)
        send_command(shop.redis, worker.name, "stop-job", job_id="nosuch")
        send_command(shop.redis, worker.name, "stop-job")
        wait_for(lambda: len([x for x in caplog.records if "ignored" in x.message or "told to stop" in x.message]) >= 9)
        send_shutdown_command(shop.redis, worker.name)
        wait_for(worker.work.draining.is_set, what="the worker to listen still")


def test_a_requeued_failed_job_goes_on_as_a_new_run(shop: Shop) -> None:
    runs: list[int] = []

    def fails_once(state: State) -> State:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("no")
        return {"seen": ["one"]}

    spec = graph("once", fails_once)
    with running(shop, spec):
        thread = shop.submit(spec)
        shop.rests(thread, b"failed")
        registry = FailedJobRegistry("once", connection=shop.redis, serializer=JSONSerializer)
        registry.requeue(shop.job("once", FailedJobRegistry))
        shop.rests(thread, timeout_s=3.0)
    assert shop.counts("once") == (0, 0, 0, 0)


def test_jobs_that_an_operator_emptied_from_a_queue_come_back(shop: Shop) -> None:
    gate = Gate()
    gate.open.set()
    spec = graph("gate", gate)
    with running(shop, spec, lease_ms=600) as worker:
        suspend(shop.redis)
        wait_for(lambda: worker.work.suspended, what="the worker to see it")
        threads = [shop.submit(spec) for _ in range(3)]
        queue: Any = rq.Queue("gate", connection=shop.redis, serializer=JSONSerializer)
        assert queue.empty() == 3
        shop.redis.rpush(KEYS.rq_queue("gate"), "a-ghost")
        wait_for(lambda: shop.counts("gate") == (3, 0, 0, 0), what="the audit")
        resume(shop.redis)
        for thread in threads:
            shop.rests(thread)
    assert gate.runs == 3


def test_a_prefix_that_disagrees_with_rq_is_refused() -> None:
    with pytest.raises(ServerUnsuitable, match="key prefix"):
        pin_rq_prefix(Keys(partition="7", rq="{7}:rq"))


# --- a stock rq worker


@pytest.fixture
def stock(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stock]:
    """Starts stock rq workers on graphs of the module `stock`."""
    (tmp_path / "stock.py").write_text(STOCK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    begun: list[subprocess.Popen[str]] = []

    def start(name: str, *more: str) -> subprocess.Popen[str]:
        rq_tool = Path(sys.executable).with_name("rq")
        how = ["-u", shop.url, "-j", "everstep_workers.rqjob.RQJob", "--serializer", "json", *more, name]
        environment = {**os.environ, "EVERSTEP_GRAPHS": f"stock:{name}", "PYTHONPATH": pythonpath(tmp_path)}
        process = subprocess.Popen([rq_tool, "worker", *how], env=environment, stderr=subprocess.PIPE, text=True)
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()
    sys.modules.pop("stock", None)


def pythonpath(first: Path) -> str:
    return os.pathsep.join(filter(None, [str(first), os.environ.get("PYTHONPATH", "")]))


def spec_of(name: str) -> GraphSpec:
    return load_target(f"stock:{name}").spec


def test_a_stock_rq_worker_runs_a_chain_and_leaves_nothing(shop: Shop, stock: Stock) -> None:
    thread = shop.submit(spec_of("chain"))
    _, said = stock("chain", "--burst").communicate(timeout=30)
    shop.rests(thread)
    assert shop.rq_keys() == set(), said
    assert shop.redis.zcard(KEYS.leases) == 0


def test_a_stock_rq_worker_runs_a_graph_in_a_graph(shop: Shop, stock: Stock) -> None:
    thread = shop.submit(spec_of("nesting"))
    _, said = stock("nesting", "--burst").communicate(timeout=30)
    shop.rests(thread)
    assert shop.rq_keys() == set(), said
    assert [x.kind for x in shop.log.read(thread)].count("task_called") == 1


def test_under_a_stock_worker_a_failed_node_is_in_the_failed_registry(shop: Shop, stock: Stock) -> None:
    thread = shop.submit(spec_of("failing"))
    stock("failing", "--burst").communicate(timeout=30)
    shop.rests(thread, b"failed")
    assert shop.counts("failing") == (0, 0, 0, 1)
    job = Job.fetch(shop.job("failing", FailedJobRegistry), shop.redis, serializer=JSONSerializer)
    assert job.exc_info == "breaks: ValueError: no"
    assert shop.redis.exists(KEYS.rq_job(job.id))


def test_under_a_stock_worker_a_dead_work_horse_loses_one_attempt_at_once(shop: Shop, stock: Stock) -> None:
    thread = shop.submit(spec_of("dying"))
    stock("dying", "--burst").communicate(timeout=30)
    assert [x.kind for x in shop.log.read(thread)].count("task_lost") == 1
    assert shop.counts("dying") == (0, 0, 0, 0)
    assert shop.counts("dying.suspect") == (1, 0, 0, 0), "its next attempt is to run alone"
    stock("dying", "dying.suspect", "--burst").communicate(timeout=30)
    shop.rests(thread)


def test_under_a_stock_worker_stop_job_and_timeouts_fail_the_task(shop: Shop, stock: Stock, tmp_path: Path) -> None:
    thread, late = shop.submit(spec_of("stopping")), shop.submit(spec_of("timing"))
    stock("stopping")
    wait_for((tmp_path / "slow").exists, 20)
    send_stop_job_command(shop.redis, shop.job("stopping"), serializer=JSONSerializer)
    shop.rests(thread, b"failed")
    assert "stopped by an operator" in shop.error(thread)
    stock("timing", "--burst").communicate(timeout=30)
    assert "NodeTimeoutError" in shop.error(late)


def test_under_a_stock_worker_an_idle_node_is_over_its_time_and_handled(shop: Shop, stock: Stock) -> None:
    thread = shop.submit(spec_of("idling"))
    stock("idling", "--burst").communicate(timeout=30)
    shop.rests(thread)
    assert [x.text("task") for x in shop.log.read(thread) if x.kind == "task_added"] == ["h_p0"]
    assert shop.rq_keys() == set()


def test_under_a_stock_worker_that_lives_on_an_isolated_node_is_killed_at_its_timeout(
    shop: Shop, stock: Stock, tmp_path: Path
) -> None:
    thread = shop.submit(spec_of("spinning"))
    worker = stock("spinning", "--worker-class", "rq.worker.SimpleWorker")
    shop.rests(thread, b"failed", 20)
    assert "NodeTimeoutError" in shop.error(thread)
    wait_for(lambda: not lives(int((tmp_path / "spun").read_text())), 5, "the node's process to be gone")
    assert worker.poll() is None


def test_under_a_stock_worker_a_foreign_job_is_refused(shop: Shop, stock: Stock, tmp_path: Path) -> None:
    bad = tmp_path / "was-here"
    queue = rq.Queue("chain", connection=shop.redis, serializer=JSONSerializer)
    job = queue.enqueue("os.system", f"touch {bad}", on_failure=None)
    thread = shop.submit(spec_of("chain"))
    stock("chain", "--burst").communicate(timeout=30)
    shop.rests(thread)
    assert not bad.exists()
    assert job.get_status() == "failed"
    result = job.latest_result()
    assert result is not None and "refused by everstep" in (result.exc_string or "")


def junk(client: Any) -> None:
    """Jobs that RQ's own class would end the worker over, or swell over."""
    base: dict[str, Any] = {"data": json.dumps(["os.system", None, ["true"], {}]), "status": "queued"}
    bomb = zlib.compress(b"[" * 50_000_000, 9)
    jobs: dict[str, dict[str, Any]] = {
        "an id that is none": base, "date": {**base, "created_at": "soon"}, "status": {**base, "status": "\xff"},
        "number": {**base, "ttl": "many", "retries_left": "nan", "repeat_intervals": "x"}, "bomb": {"data": bomb},
        "nested": {**base, "data": zlib.compress(bomb)}, "long": {**base, "data": "[" * 9000},
        "deep": {**base, "data": "[" * 8000}, "text": {**base, "origin": b"\xff", "description": b"\xff"},
        "traceback": {**base, "exc_info": bomb, "meta": bomb, "result": bomb}, "empty": {"x": "y"},
    }  # fmt: skip
    for name, fields in jobs.items():
        client.hset(KEYS.rq_job(name), mapping=fields)
        client.rpush(KEYS.rq_queue("chain"), name)
    client.lpush(KEYS.rq_job("list"), "x")
    client.rpush(KEYS.rq_queue("chain"), "list", "nobody", "x" * 10_000)


def test_junk_in_a_queue_ends_no_stock_worker(shop: Shop, stock: Stock) -> None:
    junk(shop.redis)
    thread = shop.submit(spec_of("chain"))
    process = stock("chain", "--burst")
    _, said = process.communicate(timeout=60)
    shop.rests(thread)
    assert process.returncode == 0, said
    assert not shop.redis.llen(KEYS.rq_queue("chain"))


def test_a_stale_job_under_a_stock_worker_ends_quietly(shop: Shop, stock: Stock) -> None:
    thread = shop.submit(spec_of("chain"))
    (job,) = shop.redis.lrange(KEYS.rq_queue("chain"), 0, -1)
    copy: dict[bytes, bytes] = shop.redis.hgetall(KEYS.rq_job(job.decode()))
    stock("chain", "--burst").communicate(timeout=30)
    shop.rests(thread)
    shop.redis.hset(KEYS.rq_job(job.decode()), mapping=copy)
    shop.redis.rpush(KEYS.rq_queue("chain"), job)
    stock("chain", "--burst").communicate(timeout=30)
    assert shop.rq_keys() == set()
