"""The page on reliability, made from what the last soak measured: `python -m bench.reliability`.

make soak ──► one JSON per server and kind of chaos in bench/results/soak ──► docs/RELIABILITY.md
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "soak"
PAGE = ROOT / "docs" / "RELIABILITY.md"
RESULTS_ENV = "EVERSTEP_SOAK_RESULTS"
Found = Mapping[str, Any]
TITLES = {
    "mixed": "every kind of fault",
    "failover": "a replica takes over; two versions; kill -9 of a process",
    "kill": "kill -9 of a process, its pool lives",
    "pool": "kill -9 of a pool with its parent",
}
COLUMNS = (
    "server", "chaos", "seed", "minutes", "lease", "faults", "runs", "steps", "attempts lost", "taken back",
    "violations", "recoveries", "p50", "p99", "longest", "bar at p99", "load average", "nice", "everstep", "on",
)  # fmt: skip
KILL_BAR_S = 0.5
POOL_BAR_S = 2.0  # beyond the lease
LOAD = "load"
LOAD_HEAD = """
## Under load

1,000 threads, each in a step of 1,000 tasks: 250,000 of the million have jobs in one queue, the others get theirs as
these are taken. Beside it one such thread alone. Then processes that hold 100,000 leases are lost, and one process
sweeps, batch by batch.

| server | a claim, one thread: p50, p99 | a claim, a million tasks: p50, p99 | a sweep: p50, p99 | all sweeps |
|---|---|---|---|---|
"""
HEAD = """# Reliability, measured

Made from the last `make soak` by `python -m bench.reliability`, not by hand. [Chaos](chaos.md) says what the faults
are, what the checker looks at, and how to run it yourself. A violation is a law of the checker that was broken; each
would be listed below the table. "Taken back" are acknowledged facts that a failover to a replica which was behind may
take; nothing else may be gone. A part that was not measured again is of the day that its line says.

"""
FOOT = """
A **recovery** lasts from the kill of a process until a task that it held runs again, by the journal that the nodes keep
and by the logs: a task whose attempt had ended before, or that asked and waits for an answer, or that nobody serves,
waits for something else. It is as long as the machine is busy: this one has {cpus} cores, shared by clients, workers,
Redis and other programs; the load average is that of the last five minutes of a run, `nice` its priority. The bars:
0.5 s at p99 for a process of a pool, with any lease; lease and 2 s for a whole pool. Where several kinds of faults
strike, a recovery may meet the next one before it is over: after a Redis that was away, or another that took over,
nothing expires for a lease and two seconds, and an attempt that a failover took back counts from that failover. These
have no bar, but each that is longer than two leases and two seconds is told above with what held it up, or as
unexplained. Sweeps that are more than half a lease apart are such a gap, too, as may be on a busy machine.
"""
LONG_HEAD = """
Recoveries that took longer than two leases and two seconds:

| chaos | server | took | after | whose | held up by | its log |
|---|---|---|---|---|---|---|
"""


def record(what: str, document: Found) -> Path | None:
    """Keep what a chaos came to, if the environment says where."""
    folder = os.environ.get(RESULTS_ENV)
    if not folder:
        return None
    path = Path(folder) / f"{str(document['server']).partition(' ')[0]}-{what}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "cpus": os.cpu_count(), "load": round(os.getloadavg()[1], 1), "nice": os.nice(0),
        "everstep": version("everstep"), "on": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip
    path.write_text(json.dumps({**document, **machine}, indent=1) + "\n")
    return path


def recovery(what: str, found: Found) -> Found:
    """How many recoveries there were, and how long they took: of the kind that struck, or of all."""
    by_kind: Mapping[str, Found] = found["recovery_by_kind"]
    if what in by_kind:
        return by_kind[what]
    longest = [each["max_s"] for each in by_kind.values() if each["max_s"] is not None]
    count = sum(each["count"] for each in by_kind.values())
    times = {"p50_s": found["recovery_p50_s"], "p99_s": found["recovery_p99_s"]}
    return {"count": count, "max_s": max(longest, default=None), **times}


def row(what: str, found: Found) -> list[str]:
    """One line of the table."""
    known = recovery(what, found)
    return [
        found["server"], TITLES[what], str(found["seed"]), f"{found['minutes']:g}", f"{found['lease_s']:g} s",
        *(f"{found.get(name, 0):,}" for name in ("faults", "runs", "steps", "losses", "rewound")),
        f"**{len(found['violations'])}**", f"{known['count']:,}",
        *(span(known[name]) for name in ("p50_s", "p99_s", "max_s")), kept(what, found, known["p99_s"]),
        f"{found['load']:g}", str(found["nice"]), found.get("everstep", "-"), found.get("on", "-"),
    ]  # fmt: skip


def kept(what: str, found: Found, p99_s: float | None) -> str:
    """The bar of a kind of chaos, if it has one, and whether it was kept."""
    bar_s = {"kill": KILL_BAR_S, "pool": found["lease_s"] + POOL_BAR_S}.get(what)
    if bar_s is None or p99_s is None:
        return "-"
    return f"{bar_s:g} s: {'kept' if p99_s <= bar_s else '**missed**'}"


def load_row(found: Found) -> list[str]:
    """One line of the table of load."""
    pairs = [(f"{name}_p50_ms", f"{name}_p99_ms") for name in ("claim_few", "claim", "sweep")]
    return [found["server"], *(f"{found[a]:g} ms, {found[b]:g} ms" for a, b in pairs), f"{found['sweeps_s']:g} s"]


def long_line(what: str, found: Found, each: Found) -> str:
    """A recovery that took long: whose, how long, and what it waited for."""
    whose = f"`{each['thread']}`, step {each['step']}, {each['node']}, key `{each['key'][:8]}`"
    whose += f", and {each['tasks'] - 1} more" if each["tasks"] > 1 else ""
    why = each["why"].removeprefix("held up by ") or f"**unexplained**; it saw {', '.join(each['struck']) or 'nothing'}"
    cells = (TITLES[what], found["server"], span(each["took_s"]), each["fault"], whose, why, ", ".join(each["log"]))
    return f"| {' | '.join(cells)} |\n"


def span(seconds: float | None) -> str:
    """A time for people."""
    return "-" if seconds is None else f"{seconds:.2f} s"


def page(found: Sequence[tuple[str, Found]]) -> str:
    """The whole page."""
    loads = "".join(f"| {' | '.join(load_row(each))} |\n" for what, each in found if what == LOAD)
    found = [(what, each) for what, each in found if what != LOAD]
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(row(what, each) for what, each in found)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    broken = "".join(
        f"- {each['server']}, {TITLES[what]}: {said['law']}, {said['thread'] or 'no thread'}: {said['said']}\n"
        for what, each in found
        for said in each["violations"]
    )
    longest = "".join(long_line(what, each, one) for what, each in found for one in each.get("recovery_long", ()))
    kinds = Counter[str]()
    for _, each in found:
        kinds.update(each["faults_by_kind"])
    counted = ", ".join(f"{kind} {times:,}" for kind, times in sorted(kinds.items()))
    cpus = max((int(each["cpus"]) for _, each in found), default=0)
    slow = f"{LONG_HEAD}{longest}" if longest else ""
    faults = f"\n{broken}All faults by kind: {counted or 'none'}.\n{slow}{FOOT.format(cpus=cpus)}"
    return f"{HEAD}{table}{faults}{LOAD_HEAD + loads if loads else ''}"


def results(folder: Path = RESULTS) -> list[tuple[str, Found]]:
    """What was kept, by server and kind of chaos."""
    kept = [(*path.stem.partition("-")[::2], path) for path in folder.glob("*.json")]
    kept.sort(key=lambda each: (each[0], (*TITLES, LOAD).index(each[1])))
    return [(what, json.loads(path.read_text())) for _, what, path in kept]


if __name__ == "__main__":
    PAGE.write_text(page(results()))
