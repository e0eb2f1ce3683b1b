"""What fault tests share: a fleet of real worker processes, the journal of what ran, and what must be true at the end.

fleet.worker("chain", failpoint="called:3")   a process that dies there; fleet.pool(...) has a parent that reaps
fleet.heir("chain")                           a worker in a thread of the test, to take over
fleet.sweeping()                              the rest of the fleet: somebody sweeps, whoever dies
fleet.settled(*threads)                       all rest, each task is done once, logs are sound, no key is strange
"""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import redis

import graphs_for_faults
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import WITHIN, Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at, step_of, verify
from everstep_scheduler.graph.runtime import Command
from everstep_scheduler.inline.compiled import CompiledGraph
from everstep_scheduler.moves.connection import connect, server_run_id
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts, source
from everstep_scheduler.reading.questions import resume_of
from everstep_scheduler.recovery.rebuild import STATUSES
from everstep_scheduler.recovery.recovery import Recovery
from everstep_scheduler.steps.commanding import SpecLore, command_of
from everstep_workers.worker import Worker
from nursery import nursery
from servers import plain_client, wait_for

KEYS = Keys()
HERE = Path(__file__).parent
SHORT_MS = 500  # a lease whose end is the event
LONG_MS = 3000  # a lease that must not end
SCRIPTS = (
    "start",
    "claim",
    "commit",
    "part",
    "renew",
    "release",
    "cancel",
    "sweep",
    "delete",
    "adopt",
    "purge",
    "branch",
    "within",
)
ENDS_S = 10.0


class Line(NamedTuple):
    """One line of the journal."""

    thread: str
    n: int
    node: str
    attempt: int
    pid: int
    phase: str


class Process:
    """A worker process of a test, and what it said."""

    def __init__(self, told: dict[str, Any], said: Path, env: dict[str, str]) -> None:
        self._said = said
        self.popen = nursery().born([json.dumps(told)], env, said)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def said(self) -> str:
        """Empty until it has begun."""
        return self._said.read_text(errors="replace") if self._said.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def stop(self) -> None:
        """SIGSTOP: a process that has stalled."""
        self.signal(signal.SIGSTOP)
        self.stalls()

    def stalls(self) -> None:
        """Wait until it is stopped: a signal takes its time."""
        wait_for(lambda: Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T", what="a stop")

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and see it dead."""
        self.signal(signal.SIGKILL)
        self.popen.wait(ENDS_S)

    def dies(self, timeout_s: float = 20.0) -> None:
        """Wait for its death by SIGKILL."""
        assert self.popen.wait(timeout_s) == -signal.SIGKILL, self.said

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        if self.popen.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.popen.wait(ENDS_S)
            except subprocess.TimeoutExpired:
                self.kill()


class Fleet:
    """Producers and workers on one server. `folder` holds the journal and what processes said."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.redis: Any = plain_client(url)
        own = connect(url)
        self.moves = RedisMoves(Scripts(own, KEYS, Recovery(own, KEYS), url))
        self.log = RedisLog(own, KEYS)
        self.processes: list[Process] = []
        self._gate = folder / "gate"

    def __enter__(self) -> Self:
        for name in SCRIPTS:
            self.redis.script_load(source(name))  # so that a lost reply is a real one, never a NOSCRIPT
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.end()
        if kind is not None:
            for process in self.processes:
                sys.stderr.write(f"--- process {process.pid} said:\n{process.said[-4000:]}\n")
            for pid in sorted({line.pid for line in self.lines()} - {process.pid for process in self.processes}):
                sys.stderr.write(f"--- process {pid} is not of this fleet:\n{_looked_at(pid)}\n")

    # who works

    def worker(self, *graphs: str, failpoint: str = "", via: str = "", **told: Any) -> Process:
        """A process with one bare worker; nobody reaps it, so its leases have to run out. A graph of another module
        than `graphs_for_faults` is named with it: `scenarios:asked`."""
        targets = [name if ":" in name else f"graphs_for_faults:{name}" for name in graphs]
        said = self.folder / f"said-{len(self.processes)}"
        env = {**os.environ, "EVERSTEP_FAILPOINT": failpoint, "RQ_KEY_PREFIX": KEYS.rq}
        settings = {"url": via or self.url, "graphs": targets, "lease_ms": LONG_MS, "concurrency": 1, **told}
        made = Process(settings, said, env)
        self.processes.append(made)
        return made

    def pool(self, *graphs: str, processes: int = 2, **told: Any) -> Process:
        """A pool: its parent takes back at once what a dead child held."""
        return self.worker(*graphs, processes=processes, **told)

    @contextmanager
    def heir(self, *graphs: str, via: str = "", **told: Any) -> Generator[Worker]:
        """A worker in a thread of this process, which outlives what befalls the others."""
        compiled: list[CompiledGraph] = [getattr(graphs_for_faults, name) for name in graphs]
        settings: dict[str, Any] = {"lease_ms": LONG_MS, "grace_s": 2.0, **told}
        worker = Worker(via or self.url, compiled, **settings)
        thread = threading.Thread(target=worker.run, name="heir")
        thread.start()
        try:
            yield worker
        finally:
            worker.drain()
            thread.join(20)
            assert not thread.is_alive(), "the worker did not end"

    @contextmanager
    def sweeping(self, lease_ms: int = SHORT_MS) -> Generator[None]:
        """The rest of the fleet, which has been sweeping for long: leases that run out are found at once."""
        ended = threading.Event()

        def sweep() -> None:
            server = server_run_id(self.redis)
            self.moves.sweep(server, lease_ms)
            self.redis.hset(KEYS.sweep, "hold", 0)
            while not ended.wait(0.05):
                self.moves.sweep(server, lease_ms)

        thread = threading.Thread(target=sweep, name="rest-of-the-fleet")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    # what they are given

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def submit(self, graph: str, thread: str = "", run: str = "", live: Sequence[str] = (), **state: Any) -> str:
        """Start a run, listened to in these modes; the id of its thread."""
        name = thread or f"t-{new_id()}"
        self.start(graph, name, run or new_id(), live, **state)
        return name

    def start(self, graph: str, thread: str, run: str, live: Sequence[str] = (), **state: Any) -> str:
        """Start a run; what the script answered."""
        spec = getattr(graphs_for_faults, graph).spec
        given = {"journal": str(self.journal), "gate": str(self._gate), **state}
        return self.moves.start(
            start_of(spec, thread, run, given, Config.of({}, live=live, subgraphs=True), "input")
        ).status

    def go_on(self, graph: str, thread: str) -> str:
        """Continue a run that has failed."""
        spec = getattr(graphs_for_faults, graph).spec
        return self.moves.start(start_of(spec, thread, new_id(), None, Config.of({}), "continue")).status

    def answer(self, graph: str, thread: str, answer: object) -> str:
        """Answer the question that a thread waits with."""
        spec = getattr(graphs_for_faults, graph).spec
        told = {"graph": spec.name, "queue": spec.default_queue}
        return self.moves.start(resume_of(self.log, thread, new_id(), answer, Config.of({}), **told)).status

    def command(self, graph: str, thread: str, command: Command[Any]) -> str:
        """Update the state of a thread and add nodes to what is open there."""
        spec = getattr(graphs_for_faults, graph).spec
        made = command_of(self.log, thread, new_id(), command, Config.of({}), SpecLore(spec), codec=spec.codec)
        return self.moves.start(made).status

    def open_gate(self, node: str = "") -> None:
        """Let all gated nodes end, or all executions of one."""
        (self.folder / f"gate-{node}" if node else self._gate).touch()

    # what ran

    def lines(self) -> list[Line]:
        text = self.journal.read_text().rpartition("\n")[0] if self.journal.exists() else ""  # one may be half there
        return [
            Line(a, int(n), node, int(x), int(pid), phase)
            for a, n, node, x, pid, phase in map(str.split, text.splitlines())
        ]

    def line_count(self) -> int:
        """How long the journal is; cheaper than reading it."""
        return self.journal.read_bytes().count(b"\n") if self.journal.exists() else 0

    def executions(self, thread: str = "") -> Counter[str]:
        """How often each node began: `node` of one thread, or `thread node` of all."""
        begun = [line for line in self.lines() if line.phase == "in" and thread in ("", line.thread)]
        return Counter(line.node if thread else f"{line.thread} {line.node}" for line in begun)

    def began(self, thread: str, node: str, times: int = 1) -> Line:
        """Wait until a node has begun so many times; its last beginning."""
        found: list[Line] = []

        def look() -> bool:
            found[:] = [x for x in self.lines() if (x.thread, x.node, x.phase) == (thread, node, "in")]
            return len(found) >= times

        wait_for(look, 20, f"{node} to begin {times} times")
        return found[-1]

    # how it ended

    def status(self, thread: str) -> str:
        return (self.redis.hget(KEYS.thread(thread), "status") or b"").decode()

    def rests(self, *threads: str, status: str = "done", timeout_s: float = 30.0) -> None:
        for thread in threads:
            wait_for(lambda thread=thread: self.status(thread) == status, timeout_s, f"{thread} to be {status}")  # type: ignore[misc]

    def state(self, graph: str, thread: str) -> dict[str, Any]:
        values: dict[str, Any] = getattr(graphs_for_faults, graph).spec.values(state_at(self.log, thread).channels)
        return values

    def kinds(self, thread: str) -> Counter[str]:
        return Counter(entry.kind for entry in self.log.pages(thread))

    def settled(self, *threads: str, timeout_s: float = 30.0) -> None:
        """All these runs are done; their logs say each task once and are sound; nothing of them is left anywhere."""
        self.rests(*threads, timeout_s=timeout_s)
        for thread in threads:
            assert verify(self.log, thread).problems == []
            done = done_tasks(self.log, thread)
            assert done and set(done.values()) == {1}, f"{thread}: a task is done exactly once, but {done}"
            self.saw_the_past(thread)
        assert_at_rest(self.redis)

    def saw_the_past(self, thread: str) -> None:
        """Each node of a chain saw what the log says was before it, and nothing that a worker only remembered."""
        graph = (self.redis.hget(KEYS.thread(thread), "graph") or b"").decode()
        if graph in ("chain", "achain"):
            state = self.state(graph, thread)
            assert state["saw"] == ["", *state["marks"][:-1]]


def _looked_at(pid: int) -> str:
    """Which process that is: its parent, its command, its threads where it is ours."""
    if pid == os.getpid():
        return f"our own, with the threads {[thread.name for thread in threading.enumerate()]}"
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return f"of {parent}: {Path(f'/proc/{pid}/cmdline').read_text()!r}"
    except OSError as error:
        return f"it is gone: {error}"


def done_tasks(log: RedisLog, thread: str) -> Counter[str]:
    """`n task` of every task that the log names -> how often it is done: by a fact, or in the next checkpoint. One that
    failed is done if its error handler took over."""
    found: Counter[str] = Counter()
    heads = [entry for entry in log.pages(thread) if entry.is_checkpoint]
    for i, head in enumerate(heads):
        step = step_of(log, thread, head.n)
        done = Counter(fact.text("task") for fact in step.facts if fact.kind == "task_done" or "handler" in fact.raw)
        if len(step.tasks) == 1 and i + 1 < len(heads):
            done[heads[i + 1].text("task")] += 1
        found.update({f"{head.n} {task}": done[task] for task in {*done, *(ref.task for ref in step.tasks)}})
    return found


def _patterns(keys: Keys) -> list[re.Pattern[str]]:
    """What `keys.py` can spell: each of its properties, and each of its functions with anything for its arguments."""
    spelled: list[str] = []
    for name, member in inspect.getmembers(Keys):
        if name.startswith("_") or name in ("stem", "rq", "namespace", "partition"):
            continue
        if isinstance(member, property):
            spelled.append(getattr(keys, name))
        elif name == "log":  # a key of its own for those that nodes keep
            spelled += [keys.log("\0"), keys.log(WITHIN + "\0")]
        elif inspect.isfunction(member):
            spelled.append(getattr(keys, name)(*["\0"] * (len(inspect.signature(member).parameters) - 1)))
    return [
        re.compile(re.escape(each).replace("\0", ".+").replace(re.escape("\0"), ".+"), re.DOTALL) for each in spelled
    ]


def unknown_keys(client: Any, keys: Keys = KEYS) -> list[str]:
    """The keys on the server that `keys.py` does not know."""
    patterns = _patterns(keys)
    names = [key.decode("utf-8", "surrogateescape") for key in client.scan_iter(count=1000)]
    return sorted(name for name in names if not any(pattern.fullmatch(name) for pattern in patterns))


def left_over(client: Any, keys: Keys = KEYS) -> list[str]:
    """Keys that say that something is under way, on a server where nothing should be."""
    words = ("open", "unmade", "queued", "discard", "held", "parked")
    found = [key for word in words for key in client.scan_iter(match=f"{keys.stem}{word}:*", count=1000)]
    for pattern in (
        keys.rq_job("*"),
        keys.rq_queue("*"),
        keys.rq_started("*"),
        keys.rq_scheduled("*"),
        keys.rq_failed("*"),
    ):
        found += list(client.scan_iter(match=pattern, count=1000))
    found += [key for key in (keys.lease, keys.leases, keys.wakes, keys.parked, keys.discards) if client.exists(key)]
    named = [key.decode() if isinstance(key, bytes) else key for key in found]
    wrong = [f"{queue.decode()}={count.decode()}" for queue, count in client.hgetall(keys.counts).items() if int(count)]
    return [*named, *wrong]


def assert_at_rest(client: Any, keys: Keys = KEYS, but: Sequence[str] = ()) -> None:
    """Nothing is under way, and no key is there that `keys.py` does not know."""
    wait_for(
        lambda: not (set(left_over(client, keys)) - set(but)), 5, f"nothing to be left over: {left_over(client, keys)}"
    )
    assert unknown_keys(client, keys) == []
    running = client.zcard(keys.threads("running"))
    assert running == 0 and STATUSES[0] == "running"


def our_indexes(client: redis.Redis, keys: Keys = KEYS) -> list[bytes]:
    """All that is derived from the logs: everything of ours but logs, manifests and the inbox."""
    truth = (keys.log(""), keys.log(WITHIN), keys.graph(""), keys.graphs, keys.inbox)
    untyped: Any = client
    return [key for key in untyped.scan_iter(match=f"{keys.stem}*", count=1000) if not key.decode().startswith(truth)]
