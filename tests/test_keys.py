"""Keys are spelled once: scripts add the suffixes that `keys.py` adds, all of one partition in one slot."""

from __future__ import annotations

import re
import socket
from importlib.resources import files
from typing import Any, TypedDict

import pytest
import redis

from everstep_checkpoint.errors import InvalidThreadId, UnknownThread
from everstep_checkpoint.keys import Keys, rq_prefix, thread_id_text
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect, publish
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver
from servers import StartServer, wait_for

KEYS = Keys(rq="rq")


def spelled() -> set[str]:
    """The first part of every key that keys.py can make, behind its stem."""
    of_names = [
        KEYS.log,
        KEYS.thread,
        KEYS.open,
        KEYS.unmade,
        KEYS.queued,
        KEYS.runs,
        KEYS.mended,
        KEYS.dying,
        KEYS.held,
        KEYS.waiting,
        KEYS.bell,
    ]
    of_names += [KEYS.threads, KEYS.graph]
    whole = [
        KEYS.leases,
        KEYS.lease,
        KEYS.callers,
        KEYS.wakes,
        KEYS.parked,
        KEYS.limited,
        KEYS.limits("g"),
        KEYS.slots("g"),
        KEYS.starts("g"),
        KEYS.line("g"),
        KEYS.lines,
        KEYS.counts,
        KEYS.discards,
        KEYS.cleanings,
        KEYS.revoked,
        KEYS.discard("salt", "x"),
        KEYS.graphs,
        KEYS.inbox,
        KEYS.inbox_replaced,
        KEYS.inbox_tries,
        KEYS.sweep,
    ]
    whole += [KEYS.stats, KEYS.alive, KEYS.recovery, KEYS.announced, KEYS.parked_for("g", "n")]
    names = [make("x") for make in of_names] + whole
    return {name.removeprefix(KEYS.stem).split(":")[0] for name in names} | {"nothing"}


def rq_spelled() -> set[str]:
    names = [
        KEYS.rq_alive,
        KEYS.rq_suspended,
        KEYS.rq_queues,
        KEYS.rq_queue("q"),
        KEYS.rq_job("j"),
        KEYS.rq_started("q"),
    ]
    names += [KEYS.rq_scheduled("q"), KEYS.rq_deferred("q"), KEYS.rq_failed("q"), KEYS.rq_workers]
    return {name.removeprefix("rq:").split(":")[0] for name in names}


@pytest.mark.parametrize("script", sorted(p.name for p in (files("everstep_scheduler.moves") / "lua").iterdir()))
def test_scripts_spell_no_key_that_keys_py_does_not(script: str) -> None:
    text = (files("everstep_scheduler.moves") / "lua" / script).read_text()
    ours = set(re.findall(r"\bS \.\. '([a-z_]+)", text))
    theirs = set(re.findall(r"\bR \.\. '([a-z_]+)", text))
    assert ours <= spelled()
    assert theirs <= rq_spelled()


def test_rq_spells_its_keys_as_we_do() -> None:
    from rq import Queue
    from rq.job import Job
    from rq.registry import FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry
    from rq.suspension import WORKERS_SUSPENDED
    from rq.worker import Worker

    client = redis.Redis()
    queue: Any = Queue("q", connection=client)
    scheduled: Any = ScheduledJobRegistry  # untyped in RQ
    assert KEYS.rq_queue("q") == queue.key
    assert KEYS.rq_queues == Queue.redis_queues_keys
    assert KEYS.rq_job("j") == Job.redis_job_namespace_prefix + "j"
    assert KEYS.rq_started("q") == StartedJobRegistry(queue=queue).key
    assert KEYS.rq_scheduled("q") == scheduled(queue=queue).key
    assert KEYS.rq_failed("q") == FailedJobRegistry(queue=queue).key
    assert KEYS.rq_workers == Worker.redis_workers_keys
    assert KEYS.rq_worker("w") == Worker.redis_worker_namespace_prefix + "w"
    assert KEYS.rq_suspended == WORKERS_SUSPENDED


def test_every_partition_has_one_hash_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RQ_KEY_PREFIX", raising=False)
    assert Keys().log("a{b}c") == "everstep:{0}:log:a{b}c"
    assert (rq_prefix("0"), rq_prefix("3")) == ("rq", "{3}:rq")
    with pytest.raises(ValueError):
        Keys(namespace="a{b")


@pytest.mark.parametrize(("given", "text"), [("a", "a"), (7, "7"), ("é" * 256, "é" * 256)])
def test_thread_ids_become_text(given: object, text: str) -> None:
    assert thread_id_text(given) == text


@pytest.mark.parametrize("given", [None, True, 1.5, "", "é" * 257, "a\n", {"a": 1}, ("a",)])
def test_what_is_no_thread_id_is_refused(given: object) -> None:
    with pytest.raises(InvalidThreadId):
        thread_id_text(given)


@pytest.mark.parametrize("given", ["a|b", "|", "within"])
def test_nobody_begins_on_an_id_that_a_thread_of_ours_could_have(redis_url: str, given: str) -> None:
    """Nodes' graphs keep their state in `a|b`: it would be read and written from two threads."""
    made = StateGraph(Numbers).add_node("a", lambda state: {"n": 1}).add_edge(START, "a").add_edge("a", END)
    on: Any = {"configurable": {"thread_id": given}}
    with connect(redis_url) as client:
        publish(client.redis, client.keys, [made.spec("g")])
        graph = made.compile(checkpointer=RedisSaver(redis_url), name="g")
        graph.invoke({"n": 0}, {"configurable": {"thread_id": "fine"}})
        for begin in (
            lambda: client.submit("g", {"n": 0}, thread_id=given),
            lambda: client.graph("g").invoke({"n": 0}, on),
            lambda: client.fork("fine", given),
            lambda: graph.invoke({"n": 0}, on),
            lambda: next(iter(graph.stream({"n": 0}, on))),
            lambda: graph.update_state(on, {"n": 0}, as_node="a"),
            lambda: client.graph("g", graph).update_state(on, {"n": 0}, as_node="a"),
            lambda: made.compile(checkpointer=InMemorySaver()).invoke({"n": 0}, on),
        ):
            with pytest.raises(InvalidThreadId, match=r"reserved for threads of graphs"):
                begin()
        assert list(client.log_store.threads()) == ["fine"]
        with pytest.raises(UnknownThread):
            client.state(given)


class Numbers(TypedDict, total=False):
    n: int


def free_port() -> int:
    """A free port whose cluster port, 10,000 above, is one, too."""
    while True:
        with socket.socket() as found, socket.socket() as above:
            found.bind(("127.0.0.1", 0))
            port: int = found.getsockname()[1]
            try:
                above.bind(("127.0.0.1", port + 10_000))
            except (OverflowError, OSError):
                continue
            return port


def test_scripts_run_on_a_one_node_cluster(own_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    own = own_server(extra=["--cluster-enabled", "yes", "--port", str(port), "--bind", "127.0.0.1"])
    monkeypatch.setenv("RQ_KEY_PREFIX", "{0}:rq")
    with redis.Redis.from_url(own.url) as admin:
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_for(lambda: b"cluster_state:ok" in admin.execute_command("CLUSTER", "INFO"), 10, "the cluster")
        saver = RedisSaver(own.url)
        builder = StateGraph(Numbers)
        builder.add_node("a", lambda state: {"n": state["n"] + 1})
        builder.add_edge(START, "a")
        builder.add_conditional_edges("a", lambda state: "a" if state["n"] < 5 else END)
        graph = builder.compile(checkpointer=saver, name="g")
        assert graph.invoke({"n": 0}, {"configurable": {"thread_id": "t"}}) == {"n": 5}
        assert verify(RedisLog(saver.client, saver.keys), "t").sound
        slots = {admin.execute_command("CLUSTER", "KEYSLOT", key) for key in admin.keys("*")}
        assert len(slots) == 1
        saver.client.close()
