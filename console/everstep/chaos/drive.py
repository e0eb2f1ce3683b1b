"""The whole of it: a stage, a load, the plan's faults; then heal, wait until all rests, gather, judge.

run(order) ──► Outcome: what befell it, the verdict, how long recoveries took
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from everstep_checkpoint.codec import MALFORMED
from everstep_checkpoint.errors import EverstepError, InputError
from everstep_scheduler.moves.connection import connect, server_run_id, translated

from . import sample
from .checking.checker import Verdict, case_of, judge
from .checking.crossing import Case
from .checking.evidence import Evidence, Struck, keep, read_journal
from .gathering import dump
from .ledger import Ledger
from .load import Load
from .plan import GAP_S, KINDS, OWN_SERVER, REPLICATED, Fault, plan
from .stage import NEWER, SAMPLE, Stage
from .strikes import Striker
from .takeovers import Recovery, long_ones, percentile, recoveries, times

LOOK_S = 0.1
HEAL_S = 60.0
HEAL_LEASES = 4
MS_S = 1000
Told = Callable[[str, str], None]


@dataclass(frozen=True)
class Order:
    """What to do. `url` None: a Redis of its own. `target`: a graph of the user's, with `given` as every input."""

    seed: int
    seconds: float
    url: str | None = None
    target: str = ""
    graph: str = sample.NAME
    given: Mapping[str, Any] | None = None
    kinds: tuple[str, ...] = tuple(KINDS)
    pools: int = 2
    processes: int = 2
    concurrency: int = 4
    producers: int = 6
    lease_s: float = 2.0
    nap_ms: tuple[int, int] = (5, 80)
    gap_s: tuple[float, float] = GAP_S
    binary: Path | None = None
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The namespace."""
        return f"chaos-{self.seed}"

    @property
    def versions(self) -> tuple[str, ...]:
        """What pools serve: the sample graph in two versions where there are deploys, else one."""
        if self.target:
            return (self.target,)
        return (SAMPLE, NEWER) if "deploy" in self.kinds else (SAMPLE,)

    @property
    def faults(self) -> list[Fault]:
        """The plan."""
        mine = [kind for kind in self.kinds if self.url is None or kind not in OWN_SERVER]
        return plan(self.seed, self.seconds, mine, self.lease_s, self.gap_s)


@dataclass(frozen=True)
class Outcome:
    """What it came to. `server`: its name and version. `kept`: the folder with the evidence, if it was kept."""

    order: Order
    server: str
    verdict: Verdict
    struck: tuple[Struck, ...]
    recovered: tuple[Recovery, ...] = ()
    kept: Path | None = None

    @property
    def faults(self) -> Counter[str]:
        """How often each kind struck."""
        return Counter(each.kind for each in self.struck)

    @property
    def document(self) -> dict[str, Any]:
        """For programs."""
        took = times(self.recovered)
        all_of_them = [each for some in took.values() for each in some]
        by_kind = {
            kind: {
                "count": len(some),
                "p50_s": seconds(some, 50),
                "p99_s": seconds(some, 99),
                "max_s": seconds(some, 100),
            }
            for kind, some in took.items()
        }
        said, order = self.verdict, self.order
        return {
            "sound": said.sound,
            "seed": order.seed,
            "minutes": round(order.seconds / 60, 3),
            "server": self.server,
            "lease_s": order.lease_s,
            "runs": said.runs,
            "steps": said.steps,
            "executions": said.executions,
            "losses": said.losses,
            "rewound": said.rewound,
            "faults": self.faults.total(),
            "faults_by_kind": dict(self.faults),
            "lost": said.lost,
            "duplicated": said.duplicated,
            "recovery_p50_s": seconds(all_of_them, 50),
            "recovery_p99_s": seconds(all_of_them, 99),
            "recovery_by_kind": by_kind,
            "recovery_long": long_ones(self.recovered, order.lease_s),
            "violations": [each._asdict() for each in said.violations],
        }


def seconds(times: list[float], of_100: float) -> float | None:
    """A percentile in seconds, to the ms."""
    found = percentile(times, of_100)
    return None if found is None else round(found, 3)


def silent(_: str, __: str) -> None:
    """Nobody listens."""


def run(order: Order, told: Told = silent) -> Outcome:
    """All of it. `told(word, text)` hears what happens. Raises ServerError, CrewFailed; InputError if the namespace
    is taken or the input does not fit."""
    with ExitStack() as ending:
        folder = order.folder or Path(tempfile.mkdtemp(prefix="everstep-chaos-"))
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_taken(order)
        stage = ending.enter_context(_stage(order, folder))
        server = _described(stage.redis)
        told("begin", f"{server}, namespace {order.name}")
        ledger = Ledger()
        load = Load(
            stage.client, ledger, order.seed, producers=order.producers, graph=order.graph, given=order.given,
            nap_ms=order.nap_ms, rewinds=stage.twins is not None,
        )  # fmt: skip
        striker = Striker(stage)
        load.start()
        try:
            _strike(order, striker, load, told)
        finally:
            striker.look(all_of_them=True)
            load.stop()
        evidence = _healed(order, stage, ledger, load, striker, told)
    return _judged(order, server, evidence, folder)


def _stage(order: Order, folder: Path) -> Stage:
    return Stage(
        order.url, order.versions, folder, name=order.name, graph=order.graph, pools=order.pools,
        processes=order.processes, concurrency=order.concurrency, lease_s=order.lease_s, binary=order.binary,
        cuts="cut" in order.kinds, twin=not REPLICATED.isdisjoint(order.kinds),
    )  # fmt: skip


def _refuse_taken(order: Order) -> None:
    """Never in a namespace where something is already: it is removed at the end."""
    if order.url is None:
        return
    with translated(order.url), connect(order.url) as client:
        untyped: Any = client
        if next(untyped.scan_iter(match=f"{order.name}:*", count=MS_S), None) is not None:
            raise InputError(
                f"there are keys of the namespace {order.name!r} already",
                fix="another chaos with this seed may be under way; else remove them, or give another --seed",
            )


def _described(client: Any) -> str:
    info = client.info("server")
    name = str(info.get("server_name") or "redis")
    return f"{name} {info.get(f'{name}_version') or info.get('redis_version')}"


def _strike(order: Order, striker: Striker, load: Load, told: Told) -> None:
    """The plan, each fault at its time or as soon as the one before it is over. Raises what refused an input."""
    began = time.monotonic()
    for fault in order.faults:
        _wait(striker, load, began + fault.at_s)
        done = striker.strike(fault)
        told(fault.kind, f"{time.monotonic() - began:6.1f} s  {done.said if done else 'met nothing'}")
    _wait(striker, load, began + order.seconds)


def _wait(striker: Striker, load: Load, until: float) -> None:
    while (left := until - time.monotonic()) > 0:
        if load.refused is not None:
            raise load.refused
        striker.look()
        time.sleep(min(left, LOOK_S))


def _healed(order: Order, stage: Stage, ledger: Ledger, load: Load, striker: Striker, told: Told) -> Evidence:
    """No more faults: wait until every run rests, end the workers, and take down what is there."""
    told("heal", "no more faults; waiting until all runs rest")
    striker.finish_deploy()
    with stage.near_client() as client:
        end = time.monotonic() + HEAL_S + HEAL_LEASES * order.lease_s
        threads = ledger.threads()
        while time.monotonic() < end and not _all_rest(client, load, threads):
            time.sleep(LOOK_S)
        stage.end_workers()
        for _ in range(20):  # what the sweep still had to tidy up, now that no worker does
            if not client.moves.sweep(server_run_id(client.redis)).get("more"):
                break
        found = dump(client, threads)
    journal = tuple(read_journal(stage.journal))
    lease_ms = int(order.lease_s * MS_S)
    return Evidence(
        ledger.said, journal, tuple(striker.struck), found, lease_ms, sample=not order.target,
        newer=sample.newer.spec.version,
    )  # fmt: skip


def _all_rest(client: Any, load: Load, threads: set[str]) -> bool:
    try:
        resting = [load.rests(client, thread) for thread in sorted(threads)]  # each is looked at, and answered
        return all(resting)
    except (EverstepError, redis.RedisError):
        return False


def _judged(order: Order, server: str, evidence: Evidence, folder: Path) -> Outcome:
    case = case_of(evidence)
    verdict = judge(case)
    kept = folder if order.folder is not None or not verdict.sound else None
    if kept is not None:
        keep(evidence, folder)
        (folder / "violations.txt").write_text("".join(f"{each}\n" for each in verdict.violations))
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(order, server, verdict, evidence.struck, _recovered(case), kept)


def _recovered(case: Case) -> tuple[Recovery, ...]:
    """How long recoveries took. Of logs that nothing can be made of there is no telling: the verdict says so."""
    try:
        return tuple(recoveries(case))
    except (EverstepError, AttributeError, *MALFORMED):  # type: ignore[misc]
        return ()
