"""The page on reliability, made from what the last soak measured: `python -m bench.reliability`.

make soak ──► one JSON per server and kind of chaos in bench/results/soak ──► docs/RELIABILITY.md
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "soak"
PAGE = ROOT / "docs" / "RELIABILITY.md"
RESULTS_ENV = "EVERSTEP_SOAK_RESULTS"
Found = Mapping[str, Any]
TITLES = {
    "mixed": "every kind of fault",
    "kill": "kill -9 of a process, its pool lives",
    "pool": "kill -9 of a pool with its parent",
}
COLUMNS = (
    "server", "chaos", "seed", "minutes", "lease", "faults", "runs", "steps", "attempts lost", "violations",
    "recoveries", "p50", "p99", "longest", "load average", "nice",
)  # fmt: skip
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
would be listed below the table.

"""
FOOT = """
A **recovery** lasts from the kill of a process until a task that it was running runs again, by the journal that the
nodes keep. It is as long as the machine is busy: this one has {cpus} cores, shared by clients, workers, Redis and other
programs; the load average is that of the last five minutes of a run, `nice` its priority. The bars: 0.5 s at p99 for
a process of a pool, with any lease; lease and 2 s for a whole pool. Where every kind of fault strikes, a recovery may
meet the next one before it is over: after a Redis that was away nothing expires for a lease and two seconds.
"""


def record(what: str, document: Found) -> Path | None:
    """Keep what a chaos came to, if the environment says where."""
    folder = os.environ.get(RESULTS_ENV)
    if not folder:
        return None
    path = Path(folder) / f"{str(document['server']).partition(' ')[0]}-{what}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpus": os.cpu_count(), "load": round(os.getloadavg()[1], 1), "nice": os.nice(0)}
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
        *(f"{found[name]:,}" for name in ("faults", "runs", "steps", "losses")), f"**{len(found['violations'])}**",
        f"{known['count']:,}", *(span(known[name]) for name in ("p50_s", "p99_s", "max_s")),
        f"{found['load']:g}", str(found["nice"]),
    ]  # fmt: skip


def load_row(found: Found) -> list[str]:
    """One line of the table of load."""
    pairs = [(f"{name}_p50_ms", f"{name}_p99_ms") for name in ("claim_few", "claim", "sweep")]
    return [found["server"], *(f"{found[a]:g} ms, {found[b]:g} ms" for a, b in pairs), f"{found['sweeps_s']:g} s"]


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
    kinds = Counter[str]()
    for _, each in found:
        kinds.update(each["faults_by_kind"])
    counted = ", ".join(f"{kind} {times:,}" for kind, times in sorted(kinds.items()))
    cpus = max((int(each["cpus"]) for _, each in found), default=0)
    return f"{HEAD}{table}\n{broken}All faults by kind: {counted}.\n{FOOT.format(cpus=cpus)}{LOAD_HEAD}{loads}"


def results(folder: Path = RESULTS) -> list[tuple[str, Found]]:
    """What was kept, by server and kind of chaos."""
    kept = [(*path.stem.partition("-")[::2], path) for path in folder.glob("*.json")]
    kept.sort(key=lambda each: (each[0], (*TITLES, LOAD).index(each[1])))
    return [(what, json.loads(path.read_text())) for _, what, path in kept]


if __name__ == "__main__":
    PAGE.write_text(page(results()))
