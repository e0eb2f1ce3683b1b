"""The processes of fault tests.

python faults_worker.py '{"url": ..., "graphs": [...], ...}'            one bare Worker, or with `processes` a pool
python faults_worker.py produce '{"url": ..., "runs": [...], ...}'      waits for the gate, then starts runs
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everstep_scheduler.steps import failpoints
from everstep_workers import health
from everstep_workers.pool import Pool
from everstep_workers.targets import load_targets
from everstep_workers.worker import Worker

FORM = "%(asctime)s %(process)d %(threadName)s %(message)s"


def work(told: dict[str, Any]) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=FORM)
    url, targets, processes = told.pop("url"), told.pop("graphs"), told.pop("processes", 0)
    if skews := told.pop("skews_s", None):
        _skew(*skews)
    if away_s := told.pop("health_away_s", None):
        health.AWAY_S = away_s
    if processes:
        return Pool(url, targets, processes=processes, **told).run()
    Worker(url, load_targets(targets), **told).run()
    return 0


def _skew(at_first: float, later: float) -> None:
    """This process's wall clock is wrong by so many seconds, and after two seconds by others."""
    now, began = time.time, time.monotonic()
    time.time = lambda: now() + (at_first if time.monotonic() - began < 2 else later)


def produce(told: dict[str, Any]) -> int:
    """Start runs, each on a thread of its own name, as soon as the gate opens; print what each start was told."""
    from faults import Fleet
    from servers import wait_for

    fleet, gate = Fleet(told["url"], Path(told["journal"]).parent), Path(told["gate"])
    print("ready", flush=True)
    wait_for(gate.exists, 30)
    print(*[fleet.start(told["graph"], run, run) for run in told["runs"]])
    return 0


def main(words: Sequence[str]) -> int:
    failpoints.arm()
    return produce(json.loads(words[1])) if words[0] == "produce" else work(json.loads(words[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
