"""A worker process for fault tests: `python faults_worker.py '{"url": ..., "graphs": [...], ...}'`.

One bare Worker, which nobody reaps, or with `processes` a pool.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from everstep_workers.pool import Pool
from everstep_workers.targets import load_targets
from everstep_workers.worker import Worker


def main(told: dict[str, Any]) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(process)d %(threadName)s %(message)s")
    url, targets, processes = told.pop("url"), told.pop("graphs"), told.pop("processes", 0)
    if processes:
        return Pool(url, targets, processes=processes, **told).run()
    Worker(url, load_targets(targets), **told).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
