"""An inline caller on Redis leases its own thread's tasks: the fleet leaves them alone, and takes over if it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import redis

from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import verify
from everstep_workers.targets import load_target
from everstep_workers.worker import Worker
from servers import wait_for

KEYS = Keys()
GRAPH = """
import os, time
from pathlib import Path
from typing import TypedDict
from everstep import END, START, RedisSaver, StateGraph

HERE = Path(__file__).parent

class State(TypedDict, total=False):
    n: int
    by: int

def first(state):
    with open(HERE / "journal", "a") as journal:
        journal.write(f"first {os.getpid()}\\n")
    return {"n": state["n"] + 1}

def second(state):
    with open(HERE / "journal", "a") as journal:
        journal.write(f"second {os.getpid()}\\n")
    while not (HERE / "go").exists():
        time.sleep(0.01)
    return {"n": state["n"] * 10, "by": os.getpid()}

def graph_on(saver):
    return (StateGraph(State).add_sequence([first, second]).add_edge(START, "first").add_edge("second", END)
            .compile(checkpointer=saver, name="takeover"))

graph = graph_on(None)

if __name__ == "__main__":
    import sys
    graph_on(RedisSaver(sys.argv[1], lease_ms=900)).invoke({"n": 1}, {"configurable": {"thread_id": "t"}})
"""


def test_the_fleet_waits_for_an_inline_caller_and_goes_on_when_it_is_killed(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    module = tmp_path / "takeover_graph.py"
    module.write_text(GRAPH)
    journal = tmp_path / "journal"
    caller = subprocess.Popen([sys.executable, str(module), redis_url], cwd=tmp_path)
    sys.path.insert(0, str(tmp_path))
    worker = Worker(redis_url, [load_target("takeover_graph:graph")], lease_ms=900)
    running = threading.Thread(target=worker.run)
    try:
        wait_for(lambda: journal.exists() and "second" in journal.read_text(), 20, "the caller's second node")
        running.start()
        wait_for(lambda: client.sismember(KEYS.rq_workers, KEYS.rq_worker(worker.name)), 10, "the worker")
        seen = client.hget(KEYS.sweep, "at")
        wait_for(lambda: client.hget(KEYS.sweep, "at") not in (None, seen), 10, "sweeps beside a live caller")
        assert journal.read_text().count("second") == 1
        os.kill(caller.pid, signal.SIGKILL)
        wait_for(lambda: journal.read_text().count("second") == 2, 20, "the takeover")
        (tmp_path / "go").touch()
        wait_for(lambda: client.hget(KEYS.thread("t"), "status") == b"done", 10, "the run's end")
    finally:
        caller.kill()
        caller.wait()
        worker.drain()
        running.join(20)
        sys.path.remove(str(tmp_path))
    lines = journal.read_text().split()
    assert lines == ["first", str(caller.pid), "second", str(caller.pid), "second", str(os.getpid())]
    assert verify(RedisLog(client, KEYS), "t").sound
