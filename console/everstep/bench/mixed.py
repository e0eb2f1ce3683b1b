"""W6: nodes that keep a core busy for 5 ms, on two worker processes, beside two bare processes with the same work.

python -m everstep.bench.mixed SPINS TIMES     the bare process: waits for a line, works, says the seconds
"""

from __future__ import annotations

import subprocess
import sys
import time

from .graphs import GRAPHS, spin
from .place import Place, held
from .rows import Row, ratios, row
from .sizes import Sizes

NODE_S = 0.005
LENGTH = 10
PROCESSES = 2


def spins_of(seconds: float) -> int:
    """How many turns of `spin` take so long on a core of this machine."""
    turns, best = 20_000, float("inf")
    for _ in range(20):
        began = time.perf_counter()
        spin(turns)
        best = min(best, time.perf_counter() - began)
    return int(turns * seconds / best)


def bare(spins: int, nodes: int) -> float:
    """Seconds of two processes that only do the nodes' work, half of it each, at the same time."""
    command = [sys.executable, "-m", "everstep.bench.mixed", str(spins), str(nodes // PROCESSES)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  # ourselves
        for _ in range(PROCESSES)
    ]
    for each in started:
        assert each.stdout is not None
        each.stdout.readline()  # it is there
    began = time.perf_counter()
    for each in started:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in started:
        assert each.stdout is not None
        each.stdout.readline()  # it has done its share
    took = time.perf_counter() - began
    for each in started:
        each.communicate()
    return took


def working(place: Place, spins: int, chains: int) -> float:
    """Seconds of two worker processes."""
    place.clear()
    spec = GRAPHS["working"]()
    with place.workers(PROCESSES, "working", concurrency=2) as workers:
        place.finish([place.submit(spec, spins=10) for _ in range(4)])
        with held(workers):
            threads = [place.submit(spec, spins=spins) for _ in range(chains)]
        place.finish(threads, pause_s=0.02)
    return place.span_ms(threads) / 1000


def rows_w6(place: Place, sizes: Sizes) -> list[Row]:
    spins, nodes = spins_of(NODE_S), sizes.cpu_chains * LENGTH
    ours: list[float] = []
    floor: list[float] = []
    for _ in range(max(3, sizes.rounds)):
        floor.append(bare(spins, nodes))
        ours.append(working(place, spins, sizes.cpu_chains))
    return [
        row("W6 two bare processes, a node of 5 ms", "ms", [each / nodes * 1000 for each in floor]),
        row("W6 two worker processes, a node of 5 ms", "ms", [each / nodes * 1000 for each in ours]),
        row("W6 bare / worker processes", "x", ratios(floor, ours), target=0.9, keep="least"),
    ]


def _bare(spins: str, times: str) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(times)):
        spin(int(spins))
    print("done", flush=True)


if __name__ == "__main__":
    _bare(*sys.argv[1:])
