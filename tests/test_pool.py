"""A pool on a real server: children die in every way, and the work goes on; the parent ends what it began."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import redis

from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.replay import state_at
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import connect
from everstep_scheduler.moves.record import Config, start_of
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_scheduler.recovery.recovery import Recovery
from everstep_workers.child import Order
from everstep_workers.kin import Child, Debt
from everstep_workers.pool import Pool
from everstep_workers.targets import load_target
from servers import wait_for

KEYS = Keys()
SHOP = """
import operator, os, signal, time
from pathlib import Path
from typing import Any
from typing import Annotated, TypedDict
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START

HERE = Path(__file__).parent

class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    name: str

def ran(node, state):
    with (HERE / "ran").open("a") as file:
        file.write(f"{node} {state.get('name', '')} {os.getpid()}\\n")

def first(state):
    ran("first", state)
    return {"seen": ["first"]}

def waits(state):
    ran("waits", state)
    while not (HERE / "go").exists():
        time.sleep(0.01)
    return {"seen": ["waits"]}

def last(state):
    return {"seen": ["last"]}

def kills(state):
    ran("kills", state)
    if state["name"] == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return {"seen": [state["name"]]}

def built(*nodes):
    graph = StateGraph(State)
    graph.add_sequence(list(nodes))
    graph.add_edge(START, nodes[0].__name__)
    graph.add_edge(nodes[-1].__name__, END)
    return graph

waiting = built(first, waits, last).compile()
killing = built(kills).compile()
uncompiled = built(first)
"""
START_POOL = "import sys, logging; logging.basicConfig(level='INFO'); from everstep_workers.pool import Pool"


class Shop:
    """The user's project, and a producer for it."""

    def __init__(self, folder: Path, url: str, client: redis.Redis) -> None:
        self.folder = folder
        self.url = url
        self.redis: Any = client
        (folder / "shop.py").write_text(SHOP)
        own = connect(url)
        self.moves = RedisMoves(Scripts(own, KEYS, Recovery(own, KEYS), url))
        self.log = RedisLog(own, KEYS)
        self.pools: list[subprocess.Popen[str]] = []

    def pool(self, *targets: str, **told: object) -> subprocess.Popen[str]:
        """A pool's parent, as a process of its own."""
        given = {"lease_ms": 3000, "grace_s": 2.0, **told}
        code = f"{START_POOL}; sys.exit(Pool({self.url!r}, {targets!r}, **{given!r}).run())"
        begun = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pools.append(begun)
        return begun

    def spec(self, name: str) -> GraphSpec:
        return load_target(f"shop:{name}").spec

    def submit(self, spec: GraphSpec, name: str = "") -> str:
        thread = name or new_id()
        self.moves.start(start_of(spec, thread, new_id(), {"name": name}, Config(), "input"))
        return thread

    def status(self, thread: str) -> bytes | None:
        found: bytes | None = self.redis.hget(KEYS.thread(thread), "status")
        return found

    def rests(self, *threads: str, timeout_s: float = 15.0) -> None:
        for thread in threads:
            wait_for(partial(self.is_done, thread), timeout_s, f"{thread} to be done")

    def is_done(self, thread: str) -> bool:
        return self.status(thread) == b"done"

    def ran(self, node: str) -> list[str]:
        """The pids that ran a node, in order."""
        file = self.folder / "ran"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split()[-1] for line in lines if line.startswith(f"{node} ")]

    def kinds(self, thread: str) -> list[str]:
        return [entry.kind for entry in self.log.read(thread)]

    def go(self) -> None:
        (self.folder / "go").touch()

    def end(self) -> None:
        for pool in self.pools:
            if pool.poll() is None:
                pool.kill()
            pool.communicate()


@pytest.fixture
def shop(tmp_path: Path, redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    made = Shop(tmp_path, redis_url, client)
    yield made
    made.end()
    sys.modules.pop("shop", None)


def ended(pool: subprocess.Popen[str], timeout_s: float = 15.0) -> tuple[int, str]:
    """Exit code and what it said since `until`; -9 if it came to no end. `communicate` loses what is read ahead."""
    assert pool.stderr is not None
    late = Timer(timeout_s, pool.kill)
    late.start()
    said = pool.stderr.read()
    late.cancel()
    return pool.wait(), said


def until(pool: subprocess.Popen[str], word: str) -> str:
    """What it says up to the line with this word."""
    assert pool.stderr is not None
    said = ""
    while word not in said and (line := pool.stderr.readline()):
        said += line
    return said


def alive(pid: int) -> bool:
    """Does the process run? One that only waits to be buried does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def workers(client: Any) -> list[str]:
    return sorted(name.decode() for name in client.smembers(KEYS.rq_workers))


def test_a_pool_runs_chains_and_ends_on_sigterm(shop: Shop) -> None:
    spec = shop.spec("killing")
    pool = shop.pool("shop:killing", processes=2)
    wait_for(lambda: len(workers(shop.redis)) == 2)
    threads = [shop.submit(spec) for _ in range(20)]
    shop.rests(*threads)
    pool.send_signal(signal.SIGTERM)
    code, said = ended(pool)
    assert (code, workers(shop.redis)) == (0, []), said


def test_kill_9_of_a_child_costs_one_attempt_of_what_ran(shop: Shop) -> None:
    spec = shop.spec("waiting")
    pool = shop.pool("shop:waiting", processes=2, concurrency=1)
    thread = shop.submit(spec)
    (pid,) = wait_for(lambda: shop.ran("waits"))
    os.kill(int(pid), signal.SIGKILL)
    wait_for(lambda: len(shop.ran("waits")) == 2, 2.5, "the takeover, long before the lease is over")
    shop.go()
    shop.rests(thread)
    assert len(shop.ran("first")) == 1, "what was committed is not run again"
    assert shop.kinds(thread).count("task_lost") == 1
    (closed,) = [x for x in shop.log.read(thread) if x.is_checkpoint and x.text("node") == "waits"]
    assert closed.text("attempt") == "2"
    wait_for(lambda: len([name for name in workers(shop.redis) if f".{pid}." not in name]) >= 2, what="a replacement")
    pool.send_signal(signal.SIGTERM)
    assert ended(pool)[0] == 0


def test_a_killer_among_200_tasks_is_the_one_dead_letter(shop: Shop) -> None:
    spec = shop.spec("killing")
    threads = [shop.submit(spec, "killer" if i == 60 else f"t{i}") for i in range(200)]
    pool = shop.pool("shop:killing", processes=2)
    wait_for(lambda: shop.status("killer") == b"failed", 30, "the killer to be put away")
    shop.rests(*(thread for thread in threads if thread != "killer"))
    failed = shop.redis.zrange(KEYS.rq_failed("killing"), 0, -1)
    assert len(failed) == 1
    reason: bytes = shop.redis.hget(KEYS.rq_job(failed[0].decode()), "exc_info")
    assert reason.startswith(b"poison")
    lost = {thread: shop.kinds(thread).count("task_lost") for thread in threads}
    assert max(count for thread, count in lost.items() if thread != "killer") <= 1
    assert lost["killer"] == 4
    pool.send_signal(signal.SIGTERM)
    assert ended(pool)[0] == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_under_load_hands_back_uncounted(shop: Shop, signals: int) -> None:
    spec, grace = shop.spec("waiting"), 0.3 if signals == 1 else 30.0
    pool = shop.pool("shop:waiting", concurrency=4, grace_s=grace)
    threads = [shop.submit(spec) for _ in range(8)]
    wait_for(lambda: len(shop.ran("waits")) == 4)
    pool.send_signal(signal.SIGTERM)
    begun = until(pool, "draining: ")
    if signals == 2:
        pool.send_signal(signal.SIGTERM)
    code, rest = ended(pool, 20)
    said = begun + rest
    assert code == 0, said
    assert f"told to end: 1 worker process drains, for up to {grace:g} s; a second SIGTERM or Ctrl-C" in said
    assert f"waits up to {grace:g} s for 4 nodes; a second signal gives back at once what still runs" in said
    assert shop.redis.zcard(KEYS.leases) == 0
    assert sum(shop.kinds(thread).count("task_lost") for thread in threads) == 0
    assert shop.redis.llen(KEYS.rq_queue("waiting")) == 8
    assert shop.redis.zcard(KEYS.rq_started("waiting")) == 0


def test_children_drain_when_their_parent_is_killed(shop: Shop) -> None:
    pool = shop.pool("shop:killing", processes=2)
    wait_for(lambda: len(workers(shop.redis)) == 2)
    pids = [int(name.split(".")[-2]) for name in workers(shop.redis)]
    pool.kill()
    wait_for(lambda: not any(map(alive, pids)), what="the children to end")
    assert workers(shop.redis) == []


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nosuch:graph", "there is no module 'nosuch'"),
        ("shop:killin", "did you mean 'killing'?"),
        ("shop:uncompiled", "uncompiled = uncompiled.compile()"),
        ("shop:HERE", "not a compiled graph"),
        ("shop", "write MODULE:GRAPH"),
        ("broken:graph", "importing 'broken' raised RuntimeError: no config"),
        ("needs:graph", "needs 'nosuch_library', which is missing"),
    ],
)
def test_a_target_that_can_t_be_loaded_ends_the_pool_and_says_the_way_out(shop: Shop, target: str, said: str) -> None:
    (shop.folder / "broken.py").write_text("raise RuntimeError('no config')")
    (shop.folder / "needs.py").write_text("import nosuch_library")
    code, told = ended(shop.pool(target))
    lines = [line for line in told.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert code == 2
    assert [line.partition(": ")[0].strip() for line in lines] == ["error", "fix"] and said in "".join(lines), told


def test_a_pool_whose_children_die_at_birth_gives_up(shop: Shop) -> None:
    (shop.folder / "dies.py").write_text("import os; os._exit(3)")
    code, told = ended(shop.pool("dies:graph"), 20)
    assert code == 1
    assert "5 worker processes in a row died at birth" in told


def test_the_parent_imports_no_code_of_the_user(shop: Shop) -> None:
    (shop.folder / "tells.py").write_text(
        "import os; open('pid', 'w').write(str(os.getpid())); from shop import killing"
    )
    pool = shop.pool("tells:killing")
    wait_for(lambda: workers(shop.redis))
    assert (shop.folder / "pid").read_text() != str(pool.pid)


def test_the_name_of_a_worker_is_one_that_rq_allows(shop: Shop) -> None:
    shop.pool("shop:killing")
    wait_for(lambda: workers(shop.redis))
    assert re.fullmatch(r"rq:worker:everstep\.[A-Za-z0-9_-]+\.\d+\.[0-9a-f]{6}", workers(shop.redis)[0])


def test_state_is_whole_after_all(shop: Shop) -> None:
    spec = shop.spec("waiting")
    shop.pool("shop:waiting")
    thread = shop.submit(spec)
    shop.go()
    shop.rests(thread)
    head = shop.log.head(thread)
    assert head is not None
    assert spec.values(state_at(shop.log, thread, head.n).channels)["seen"] == ["first", "waits", "last"]


def test_a_solo_child_that_has_a_suspect_is_not_counted_on_for_the_next(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(redis_url, ["shop:killing"])
    pool._queues = ("shop",)  # pyright: ignore[reportPrivateUsage]
    order = replace(pool._order, solo=True)  # pyright: ignore[reportPrivateUsage]
    pool._children = {1: Child(1, "solo", -1, order, 0)}  # pyright: ignore[reportPrivateUsage]
    client.rpush(KEYS.rq_queue("shop.suspect"), "job")
    forked: list[Order] = []
    monkeypatch.setattr(pool, "_fork", forked.append)
    pool._start_solos()  # pyright: ignore[reportPrivateUsage]
    assert not forked, "it has just been born, and will take it"
    client.hset(KEYS.held("solo"), "token", 1)
    pool._start_solos()  # pyright: ignore[reportPrivateUsage]
    assert len(forked) == 1, "it has one, whether it has said so or not"
    pool._hang_up()  # pyright: ignore[reportPrivateUsage]


def spares_of(said: str) -> list[str]:
    """The pids of the processes that were told to be spare."""
    return re.findall(r"\.(\d+)\.[0-9a-f]{6} is spare", said)


def test_what_a_dead_process_ran_is_run_again_by_one_that_has_the_graphs_loaded(shop: Shop) -> None:
    spec = shop.spec("waiting")
    pool = shop.pool("shop:waiting", concurrency=1)
    thread = shop.submit(spec)
    (spare,) = spares_of(until(pool, "is spare"))
    (pid,) = wait_for(lambda: shop.ran("waits"))
    os.kill(int(pid), signal.SIGKILL)
    assert f".{spare}." in until(pool, "was called"), "nobody waits for an import"
    wait_for(lambda: shop.ran("waits") == [pid, spare])
    (other,) = spares_of(until(pool, "is spare"))
    assert other not in (pid, spare), "there is one again"
    shop.go()
    shop.rests(thread)
    pool.send_signal(signal.SIGTERM)
    assert ended(pool)[0] == 0 and not alive(int(other))


def test_a_spare_that_dies_owes_nothing_and_is_replaced(shop: Shop) -> None:
    pool = shop.pool("shop:killing")
    (spare,) = spares_of(until(pool, "is spare"))
    os.kill(int(spare), signal.SIGKILL)
    assert spares_of(until(pool, "is spare"))
    thread = shop.submit(shop.spec("killing"), "killer")
    wait_for(lambda: shop.status(thread) == b"failed", 30, "the killer to be put away, by dead spares, too")
    pool.send_signal(signal.SIGTERM)
    code, said = ended(pool)
    assert code == 0 and f".{spare}." not in said


def test_a_module_that_can_be_imported_once_only_costs_no_more_than_the_spare(shop: Shop) -> None:
    (shop.folder / "once.py").write_text(
        "from pathlib import Path\nPath('taken').touch(exist_ok=False)\nfrom shop import killing\n"
    )
    pool = shop.pool("once:killing")
    said = until(pool, "importing 'once' raised FileExistsError")  # the spare's own words may be before the parent's
    shop.rests(shop.submit(shop.spec("killing"), "t"))
    pool.send_signal(signal.SIGTERM)
    code, rest = ended(pool)
    assert code == 0 and len(spares_of(said + rest)) == 1, "it isn't tried again at once"


def test_a_pool_that_can_start_no_process_for_now_lives_and_tries_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    pool = Pool(redis_url, ["shop:killing"])
    pool._wake_read, pool._wake_write = os.pipe()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(os, "fork", fails)
    before = len(os.listdir("/proc/self/fd"))
    pool._fork_due()  # pyright: ignore[reportPrivateUsage]
    assert "no worker process can be started" in caplog.text
    assert len(os.listdir("/proc/self/fd")) == before, "no file is left open"
    assert not pool.pids and len(pool._fork_at) == 1  # pyright: ignore[reportPrivateUsage]
    for fd in (pool._wake_read, pool._wake_write):  # pyright: ignore[reportPrivateUsage]
        os.close(fd)


def test_a_pool_whose_words_nobody_can_keep_works_on(shop: Shop) -> None:
    code = f"{START_POOL}; sys.exit(Pool({shop.url!r}, ['shop:killing']).run())"
    with Path("/dev/full").open("wb") as full:  # as a log on a full disk
        pool = subprocess.Popen([sys.executable, "-c", code], cwd=shop.folder, stdout=full, stderr=full)
    try:
        shop.rests(shop.submit(shop.spec("killing"), "t"))
        (pid,) = shop.ran("kills")
        os.kill(int(pid), signal.SIGKILL)
        shop.rests(shop.submit(shop.spec("killing"), "u"))
        pool.send_signal(signal.SIGTERM)
        assert pool.wait(15) == 0
    finally:
        pool.kill()
        pool.wait()


def test_a_rebuild_whose_process_died_is_anybody_s_at_once(redis_url: str, client: redis.Redis) -> None:
    pool = Pool(redis_url, ["shop:killing"])
    for holder, left in (("dead", 0), ("dead2", 1)):
        client.set(KEYS.recovery, f"{holder} {new_id()}", px=60_000)
        pool._debts[:] = [Debt("dead", "lost", ())]  # pyright: ignore[reportPrivateUsage]
        pool._settle_debts()  # pyright: ignore[reportPrivateUsage]
        assert client.exists(KEYS.recovery) == left, "that of a living process stays"
    pool._hang_up()  # pyright: ignore[reportPrivateUsage]


def test_who_died_while_it_rebuilt_holds_nobody_up_though_another_dead_one_waits_for_the_rebuild(
    redis_url: str, client: redis.Redis
) -> None:
    client.flushall()  # pyright: ignore[reportUnknownMemberType]
    client.set(KEYS.recovery, f"dead2 {new_id()}", px=60_000)
    pool = Pool(redis_url, ["shop:killing"])
    debts = pool._debts = [Debt("dead", "lost", ()), Debt("dead2", "lost", ())]  # pyright: ignore[reportPrivateUsage]
    pool._settle_debts()  # pyright: ignore[reportPrivateUsage]
    assert len(debts) == 2, "neither can be released before the rebuild"
    assert not client.exists(KEYS.recovery)
    pool._hang_up()  # pyright: ignore[reportPrivateUsage]


def test_a_debt_that_redis_can_t_take_before_a_rebuild_is_kept(redis_url: str, client: redis.Redis) -> None:
    client.flushall()  # pyright: ignore[reportUnknownMemberType]
    pool = Pool(redis_url, ["shop:killing"])
    debts = pool._debts = [Debt("dead", "lost", ())]  # pyright: ignore[reportPrivateUsage]
    pool._settle_debts()  # pyright: ignore[reportPrivateUsage]
    assert len(debts) == 1
    own = connect(redis_url)
    Recovery(own, KEYS)()
    pool._settle_debts()  # pyright: ignore[reportPrivateUsage]
    assert not debts
    pool._hang_up()  # pyright: ignore[reportPrivateUsage]
    own.close()
