"""A worker process of the benchmark: `python -m everstep.bench.worker`, its order in the environment.

At its end it leaves its nodes' journal in a file.
"""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

from everstep_checkpoint.keys import Keys
from everstep_workers.worker import Worker

from .graphs import GRAPHS, JOURNAL


def main() -> None:
    order = json.loads(os.environ["EVERSTEP_BENCH_ORDER"])
    specs = [GRAPHS[name]() for name in order["graphs"]]
    gc.freeze()  # as each process of `everstep worker` does
    Worker(
        order["url"], specs, keys=Keys(*order["keys"]), concurrency=order["concurrency"],
        queues=order["queues"] or None, lease_ms=order["lease_ms"], grace_s=1.0,
    ).run()  # fmt: skip
    Path(order["journal"]).write_text(json.dumps(JOURNAL))


if __name__ == "__main__":
    main()
