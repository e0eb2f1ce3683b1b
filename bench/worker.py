"""A worker process of the benchmark. At its end it leaves its nodes' journal in a file.

python -m bench.worker URL JOURNAL CONCURRENCY GRAPH...
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from everstep_workers.worker import Worker

from .graphs import GRAPHS, JOURNAL


def main(url: str, journal: str, concurrency: str, *names: str) -> None:
    gc.freeze()  # as each process of `everstep worker` does
    Worker(url, [GRAPHS[name]() for name in names], concurrency=int(concurrency), grace_s=1.0).run()
    Path(journal).write_text(json.dumps(JOURNAL))


if __name__ == "__main__":
    main(*sys.argv[1:])
