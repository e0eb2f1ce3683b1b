"""A service that hands work to graphs whose code it does not have: only Redis is shared.

    python examples/producer.py 3          three threads for the graph `counting`, and what came of them

What it needs to know of the graph, its name and the JSON schema of its input, a worker has published in Redis. Input
that does not fit is refused here, before anything is written.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from everstep import Client, EverstepError, connect


def enqueue(client: Client, orders: int) -> list[Any]:
    """One run per order, each on a thread of its own. It is safe in Redis when `submit` returns.

    The run id makes it safe to call this twice: the second time attaches to what the first has begun.
    """
    return [
        client.submit("counting", {"count": 0, "done": False}, thread_id=f"order-{n}", run_id=f"order-{n}-first")
        for n in range(orders)
    ]


def main(orders: int) -> int:
    client = connect(os.environ.get("EVERSTEP_URL", "redis://127.0.0.1:6379/0"))
    try:
        for run in enqueue(client, orders):
            print(run.thread_id, run.result(timeout=30))
        return 0
    except EverstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
