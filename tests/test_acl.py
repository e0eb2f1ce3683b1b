"""Redis users with the least rights: each role does all its work on each real server, and is refused all else."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TypedDict

import pytest
import redis
from redis.exceptions import NoPermissionError

from everstep.acl import PLACEHOLDER, ROLES, Role, commands, hashed, rules
from everstep.cli import main
from everstep.doctor import examine
from everstep.embedded import EmbeddedServer
from everstep.finding import ACT
from everstep.site import Site
from everstep_checkpoint.errors import RunFailed
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.client.client import Client, connect, publish
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.options import CachePolicy
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Send
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.inline.savers import RedisSaver
from everstep_scheduler.recovery.mending import look
from everstep_scheduler.recovery.recovery import audit, recover
from everstep_workers.targets import load_target
from everstep_workers.worker import Worker
from servers import plain_client, server_binaries, wait_for

PASSWORD = "swordfish"
ROOT = Path(__file__).parent.parent
KEYS = Keys(namespace="shop", partition="7", rq="{7}:rq")
Url = Callable[[Role], str]


class State(TypedDict, total=False):
    word: str
    seen: Annotated[list[str], lambda a, b: [*(a or []), *b]]


def flaky(state: State) -> State:
    if once("first", lambda: new_id()) and state["word"] == "fails" and not flaky_runs:
        flaky_runs.append(1)
        raise ConnectionError("later")
    return {"seen": ["flaky"]}


flaky_runs: list[int] = []


def graph() -> CompiledGraph:
    """A bit of everything: a retry, an effect, a cache, Sends, a question, a graph in a graph."""
    child = StateGraph(State)
    child.add_node("inner", lambda state: {"seen": ["inner"]})
    child.add_edge(START, "inner")
    made = StateGraph(State)
    made.add_node("flaky", flaky, retry_policy=RetryPolicy(initial_interval=0.05, jitter=False))
    made.add_node("cached", lambda state: {"seen": ["cached"]}, cache_policy=CachePolicy(ttl=60))
    made.add_node("wide", lambda state: {"seen": ["wide"]})
    made.add_node("nested", child.compile())
    made.add_node("asks", lambda state: {"seen": [str(interrupt("go on?"))]})
    made.add_edge(START, "flaky")
    made.add_edge("flaky", "cached")
    made.add_conditional_edges("cached", lambda state: [Send("wide", {"word": str(i)}) for i in range(3)], ["wide"])
    made.add_edge("wide", "nested")
    made.add_edge("nested", "asks")
    made.add_edge("asks", END)
    return made.compile(name="all")


@pytest.fixture(params=sorted(server_binaries()), scope="module")
def guarded(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """Each real server, with a user for each role."""
    with EmbeddedServer(binary=server_binaries()[request.param]) as server:
        with plain_client(server.url) as admin:
            for role in ROLES:
                admin.execute_command("ACL", "SETUSER", role, *rules(role, KEYS, password=PASSWORD))
            admin.execute_command("ACL", "SETUSER", "stock", *rules("worker", Keys(), password=PASSWORD, stock=True))
        yield server


@pytest.fixture
def url(guarded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Url:
    monkeypatch.setenv("RQ_KEY_PREFIX", KEYS.rq)
    monkeypatch.setattr("everstep_workers.worker.pin_rq_prefix", lambda keys: None)  # rq is imported by other tests
    with plain_client(guarded.url) as admin:
        admin.flushall()
    return lambda role: f"unix://{role}:{PASSWORD}@{guarded.socket}?db=0"


def client(url: str) -> Client:
    return connect(url, namespace=KEYS.namespace, partition=KEYS.partition)


@contextmanager
def working(url: str) -> Iterator[Worker]:
    worker = Worker(url, [graph()], keys=KEYS, lease_ms=600, grace_s=1.0)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.drain()
        thread.join(20)
        assert not thread.is_alive()


def test_worker_producer_inbox_and_reader_do_their_work(url: Url, caplog: pytest.LogCaptureFixture) -> None:
    with working(url("worker")), client(url("producer")) as producer, client(url("reader")) as reader:
        wait_for(lambda: reader.graphs())
        run = producer.submit("all", {"word": "fails"}, thread_id="t")
        wait_for(lambda: run.status() == "interrupted", 20)
        assert [each.value for each in reader.state("t").tasks[0].interrupts] == ["go on?"]
        assert producer.resume("t", "yes").result(timeout=20)["seen"][-1] == "yes"
        sent = plain_client(url("inbox"))
        sent.xadd(KEYS.inbox, {"graph": "all", "thread": "u", "input": '{"word": "a"}'})
        wait_for(lambda: reader.threads("interrupted"), 20)
        # whatever else a producer may do
        fork = producer.fork("t")
        history = list(producer.history("t"))
        producer.rollback("t", history[-2].config["configurable"]["checkpoint_id"])
        producer.cancel("u")
        producer.delete(fork, cancel=True)
        with suppress(RunFailed, TimeoutError):
            list(producer.run("t").events(timeout=0.2))
        remote = producer.graph("all")
        remote.clear_cache()
        # the indexes are lost, and made anew by the worker
        with client(url("worker")) as own:
            own.redis.delete(KEYS.alive)
        run = producer.submit("all", {"word": "b"}, thread_id="v")
        wait_for(lambda: run.status() == "interrupted", 20)
        # a reader reads all
        assert list(reader.history("t"))
        assert list(reader.log("t"))
        assert {each.thread_id for each in reader.threads()} >= {"t", "u", "v"}
        assert reader.run("v").status() == "interrupted"
    assert "NOPERM" not in caplog.text


def test_a_worker_rebuilds_audits_and_mends_and_an_inline_caller_runs(url: Url) -> None:
    with client(url("worker")) as own:
        saver = RedisSaver(url("worker"), namespace=KEYS.namespace, partition=KEYS.partition)
        made = graph()
        inline = type(made)(made.spec, saver)
        inline.invoke({"word": "a"}, {"configurable": {"thread_id": "inline"}})
        recover(own.redis, KEYS)
        audit(own.redis, KEYS, ["all"])
        assert look(own.redis, KEYS, "inline").sound
        log = RedisLog(own.redis, KEYS)
        log.fork("inline", 1, "copy")
        assert log.delete("copy")
        saver.client.close()


STOCK = """
from typing import Any, TypedDict
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START

class State(TypedDict, total=False):
    x: Any

shop = StateGraph(State).add_node("one", lambda state: {"x": 2}).add_edge(START, "one").add_edge("one", END).compile()
"""


def test_a_stock_rq_worker_does_its_work(
    guarded: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aclstock.py").write_text(STOCK)
    monkeypatch.syspath_prepend(tmp_path)
    url = f"unix://stock:{PASSWORD}@{guarded.socket}?db=0"
    with plain_client(guarded.url) as admin, connect(url) as producer:
        admin.flushall()
        publish(producer.redis, producer.keys, [load_target("aclstock:shop").spec])
        run = producer.submit("shop", {"x": 1})
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [Path(sys.executable).with_name("rq"), "worker", "-u", url, "-j", "everstep.RQJob", "--serializer", "json",
             "--burst", "shop"],
            env={**os.environ, "EVERSTEP_GRAPHS": "aclstock:shop", "PYTHONPATH": path}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert run.result(timeout=5) == {"x": 2}, done.stderr
        assert "NOPERM" not in done.stderr and "permission" not in done.stderr.lower()
    sys.modules.pop("aclstock", None)


def test_a_reader_s_doctor_says_all_but_the_fsync_policy(url: Url) -> None:
    with working(url("worker")):
        site = Site(url("reader"), KEYS.namespace, KEYS.partition)
        wait_for(lambda: site.client.graphs() and site.redis.exists(KEYS.alive))  # published first, then it claims
        found = examine(site)
        assert [each for each in found if "not known" in each.said and each.about not in ("fsync", "promise")] == []
        assert [each.said for each in found if each.mark == ACT] == []
        site.redis.close()


ADMIN = [
    ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "*"), ("CONFIG", "SET", "dir", "/tmp"), ("ACL", "LIST"),
    ("KEYS", "*"),
    ("ACL", "SETUSER", "x", "on"), ("SHUTDOWN", "NOSAVE"), ("DEBUG", "SLEEP", "0"), ("SAVE",), ("BGSAVE",),
    ("REPLICAOF", "127.0.0.1", "1"), ("SCRIPT", "FLUSH"), ("FUNCTION", "FLUSH"), ("CLIENT", "KILL", "ID", "1"),
    ("MODULE", "LIST"), ("MIGRATE", "127.0.0.1", "1", "k", "0", "1"), ("RESTORE", "{7}:rq:x", "0", "x"),
    ("SWAPDB", "0", "1"),
    ("FUNCTION", "LOAD", "#!lua name=x\n"), ("CLUSTER", "INFO"), ("LATENCY", "RESET"), ("SLOWLOG", "GET"),
]  # fmt: skip
FOREIGN = [
    ("GET", "secrets"), ("SET", "secrets", "x"), ("HGETALL", "rq:job:x"), ("XRANGE", "everstep:{0}:log:t", "-", "+"),
    ("XREAD", "STREAMS", "everstep:{0}:log:t", "0"), ("RENAME", KEYS.alive, "mine"), ("PUBLISH", "rq:pubsub:x", "x"),
    ("EVAL", "return redis.call('GET', 'secrets')", "0"), ("EVAL", "redis.call('SET', 'secrets', 1)", "0"),
    ("EVAL", "redis.call('FLUSHALL')", "0"), ("EVAL", "redis.call('CONFIG', 'GET', '*')", "0"),
]  # fmt: skip
WRITES = [
    ("SET", KEYS.alive, "x"), ("DEL", KEYS.alive), ("XADD", KEYS.log("t"), "*", "v", "1"),
    ("EXPIRE", KEYS.log("t"), "1"), ("EVAL", "return 1", "0"), ("EVALSHA", "x" * 40, "0"),
    ("SCRIPT", "LOAD", "return 1"), ("RPUSH", KEYS.rq_queue("q"), "x"), ("HSET", KEYS.graph("x"), "a", "b"),
    ("XADD", KEYS.inbox, "*", "graph", "x"), ("XTRIM", KEYS.log("t"), "MAXLEN", "0"),
]  # fmt: skip
READS = [
    ("GET", KEYS.alive), ("XRANGE", KEYS.log("t"), "-", "+"), ("XRANGE", KEYS.inbox, "-", "+"), ("XLEN", KEYS.inbox),
    ("XREAD", "STREAMS", KEYS.inbox, "0"), ("XDEL", KEYS.inbox, "1-1"), ("DEL", KEYS.inbox), ("SCAN", "0"), ("INFO",),
    ("HGETALL", KEYS.rq_job("x")), ("XADD", KEYS.log("t"), "*", "v", "1"),
]  # fmt: skip
REFUSED: list[tuple[Role, tuple[str, ...]]] = [
    *((role, each) for role in ROLES for each in (*ADMIN, *FOREIGN)),
    *(("reader", each) for each in WRITES),
    *(("inbox", each) for each in (*READS, *WRITES) if each[:2] != ("XADD", KEYS.inbox)),
    *(("producer", each) for each in (("SUBSCRIBE", KEYS.rq_commands("w")), ("PUBLISH", KEYS.rq_commands("w"), "x"))),
    *(("worker", each) for each in (("SUBSCRIBE", "another"), ("PUBLISH", KEYS.rq_commands("w"), "x"))),
]  # fmt: skip


def test_each_role_is_refused_all_else(url: Url) -> None:
    passed: list[tuple[Role, tuple[str, ...]]] = []
    for role, words in REFUSED:
        with plain_client(url(role)) as connection:
            try:
                connection.execute_command(*words)
            except NoPermissionError:
                continue
            except redis.ResponseError as error:  # from inside a script
                if re.search("ACL failure|can't|not allowed", str(error)):
                    continue
            passed.append((role, words))
    assert passed == []


def test_every_command_of_our_scripts_is_allowed_to_who_runs_them() -> None:
    sources = [*ROOT.glob("scheduler/**/lua/*.lua"), *ROOT.glob("checkpoint/**/lua/*.lua")]
    called = {word.lower() for path in sources for word in re.findall(r"(?:call|show)\('([A-Z]+)'", path.read_text())}
    assert called and called - set(commands("worker")) == set()
    assert called - set(commands("producer")) == set()


# -- the word


def test_acl_print_gives_a_line_with_a_hash_and_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THE_PASSWORD", PASSWORD)
    words = ["acl", "print", "--worker", "--user", "bob", "--namespace", "shop", "--rq-prefix", "jobs"]
    assert main([*words, "--password-env", "THE_PASSWORD"]) == 0
    said = capsys.readouterr().out
    assert PASSWORD not in said
    line = shlex.split(said)
    assert line[:4] == ["redis-cli", "ACL", "SETUSER", "bob"]
    assert line[4:] == rules("worker", Keys("shop", "0", "jobs"), password=PASSWORD)
    assert hashed(PASSWORD) in line and "~jobs:*" in line


def test_acl_print_without_a_password_is_refused_by_redis(
    guarded: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["acl", "print", "--reader"]) == 0
    line = shlex.split(capsys.readouterr().out)
    assert PLACEHOLDER in line
    with plain_client(guarded.url) as admin, pytest.raises(redis.ResponseError):
        admin.execute_command(*line[1:])


def test_acl_print_as_a_line_of_a_file_is_taken_by_a_server(
    server_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THE_PASSWORD", PASSWORD)
    lines = ["user default on nopass ~* &* +@all"]
    for role in ROLES:
        assert main(["acl", "print", f"--{role}", "--file", "--stock", "--password-env", "THE_PASSWORD"]) == 0
        lines.append(capsys.readouterr().out.strip())
    (tmp_path / "users.acl").write_text("\n".join(lines) + "\n")
    extra = ["--aclfile", str(tmp_path / "users.acl")]
    with (
        EmbeddedServer(binary=server_binaries()[server_name], extra=extra) as server,
        plain_client(server.url) as admin,
    ):
        assert set(map(str, admin.acl_users())) == {"default", *(f"everstep-{role}" for role in ROLES)}


def test_acl_print_wants_to_know_for_whom(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["acl", "print"]) == 2
    assert "--worker" in capsys.readouterr().err
