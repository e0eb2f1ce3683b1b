"""`python -m bench`: all workloads, the table, the JSON and the plot. Exit code 1 if a target is missed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import peers, workloads
from .floor import many_chains
from .load import expired, paused, queued
from .place import Place, cpu_count
from .rows import Row, plot, ratios, row, table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rounds: int = 5
    floor_steps: int = 1500
    runs: int = 60
    chains: int = 200
    peer_chains: int = 40
    widths: tuple[int, ...] = (100, 10_000)
    moved: int = 10_000
    flooded: int = 4000  # threads, with 250 jobs each
    paused: int = 100_000
    expired: int = 100_000


FULL = Sizes()
QUICK = Sizes(
    rounds=3,
    floor_steps=600,
    runs=25,
    chains=60,
    peer_chains=10,
    widths=(100, 1000),
    moved=2000,
    flooded=80,
    paused=1000,
    expired=5000,
)


def speed(place: Place, sizes: Sizes) -> list[Row]:
    """W1 and W2 beside the floor and the peers, in alternated rounds."""
    lone, many, bare_many, rqs, graphs = [], [], [], [], []
    for i in range(sizes.rounds):
        print(f"  round {i + 1} of {sizes.rounds}", file=sys.stderr)
        lone.append(workloads.latency(place, sizes.runs, sizes.floor_steps))
        place.clear()
        bare_many.append(many_chains(place.url, sizes.floor_steps))
        many.append(workloads.throughput(place, sizes.chains))
        place.clear()
        rqs.append(peers.rq(place, sizes.peer_chains))
        graphs.append(peers.langgraph(sizes.peer_chains))
    step, bare = [each.p50_us for each in lone], [each.floor_p50_us for each in lone]
    rq_step, rq_many = [each.step_us for each in rqs], [each.steps_s for each in rqs]
    graph_step, graph_many = [each.step_us for each in graphs], [each.steps_s for each in graphs]
    return [
        row("W1 floor, a step", "us", bare),
        row("W1 step p50", "us", step),
        row("W1 step p50 / floor", "x", ratios(step, bare), target=2.5),
        row("W1 step p99 / floor's p50", "x", ratios([each.p99_us for each in lone], bare)),
        row("W1 floor's p99 / its p50", "x", ratios([each.floor_p99_us for each in lone], bare)),
        row("W1 run of 10 nodes, submit to rest", "ms", [each.run_ms for each in lone]),
        row("W1 stock RQ SimpleWorker, a step", "us", rq_step),
        row("W1 LangGraph in memory, a step", "us", graph_step),
        row("W2 floor", "steps/s", bare_many),
        row("W2 one worker process", "steps/s", many),
        row("W2 one worker process / stock RQ", "x", ratios(many, rq_many), target=10, keep="least"),
        row("W2 one worker process / floor", "x", ratios(many, bare_many)),
        row("W2 stock RQ SimpleWorker", "steps/s", rq_many),
        row("W2 LangGraph in memory", "steps/s", graph_many),
    ]


def wide(place: Place, sizes: Sizes) -> list[Row]:
    """W3: a fan-out and its join."""
    found = [[workloads.wide(place, width) for _ in range(3)] for width in sizes.widths]
    rows: list[Row] = []
    for each in found:
        name = f"W3 1 -> {each[0].width:,} -> 1"
        best = min(each, key=lambda one: one.longest_ms)
        rows.append(row(f"{name}, a task", "ms", [one.ms_per_task for one in each]))
        # The server's clock counts on while other processes have its core: the quietest round is the script's own time.
        every = {"rounds": [one.longest_ms for one in each]}
        rows.append(row(f"{name}, longest script", "ms", best.longest_ms, target=10, note=best.longest, details=every))
    calls = workloads.moved(place, sizes.moved, 20)
    rows.append(
        row(f"W3 {sizes.moved:,} wide, most jobs made by a call", "tasks", max(each.made for each in calls), target=250)
    )
    rows.append(
        row(
            f"W3 {sizes.moved:,} wide, most tasks leased by a call",
            "tasks",
            max(each.leased for each in calls),
            target=250,
        )
    )
    return rows


def counted(place: Place, sizes: Sizes) -> list[Row]:
    """Round trips, commands, server time and bytes of a step."""
    rows: list[Row] = []
    for name, load in (("lone chain", False), ("under load", True)):
        place.clear()
        trips = workloads.round_trips(place, sizes.chains if load else sizes.runs, load=load)
        by_command = {command: round(n / trips.steps, 2) for command, (n, _) in sorted(trips.counts.items())}
        rows.append(
            row(
                f"scripts a step, {name}",
                "calls",
                trips.scripts,
                details={"commands": by_command},
                note=_background(load),
            )
        )
        rows.append(
            row(
                f"other commands a step, {name}",
                "calls",
                trips.commands - trips.scripts,
                note="start, claim and the bench's own polling included",
            )
        )
    place.clear()
    for name, us in workloads.script_us(place, sizes.runs).items():
        if name in ("start", "claim", "commit"):
            rows.append(row(f"server time of {name}", "us", us))
    fields = workloads.step_bytes(place)
    rows.append(
        row("bytes a step adds to its payload", "B", sum(fields.values()), target=400, details={"fields": fields})
    )
    return rows


def _background(load: bool) -> str:
    return "sweeps and renewals included" if load else "start, claim, sweeps and renewals included"


def quiet(place: Place, sizes: Sizes) -> list[Row]:
    """A worker without work, the inbox, the command line."""
    idle = [workloads.idle(place, 2.0) for _ in range(3)]
    return [
        row("idle worker, memory", "MB", [each.rss_mb for each in idle], target=80),
        row("idle worker, commands", "1/s", [each.commands_s for each in idle]),
        row("inbox, message to run", "ms", workloads.inbox(place, 21), target=50),
        row("everstep --help", "ms", workloads.help_ms(5), target=200),
    ]


def heavy(place: Place, sizes: Sizes) -> list[Row]:
    """A million queued jobs, a hundred thousand paused threads, as many leases that ran out. Minutes long."""
    few, many = queued(place, sizes.flooded)
    name = f"{many.queued:,} queued jobs"
    rows = [
        row(f"claim p99 beside {few.queued:,} queued jobs", "us", few.p99_us, details=few._asdict()),
        row(f"claim p99 beside {name}", "us", many.p99_us, details=many._asdict()),
        row("claim p99, many / few", "x", many.p99_us / few.p99_us, target=1.5),
        row("claim p99 on the server, many / few", "x", many.server_p99_us / few.server_p99_us, target=1.5),
        row(f"memory of {name} and their logs", "MB", many.memory_mb),
        row("memory of a queued job", "B", many.memory_mb * 2**20 / many.queued),
    ]
    still = paused(place, sizes.paused)
    rows += [
        row(f"a paused thread, of {still.threads:,}", "B", still.bytes_each),
        row("leases and jobs that paused threads hold", "", still.held, target=0),
    ]
    swept = expired(place, sizes.expired)
    name = f"sweep of {swept.leases:,} leases"
    rows += [
        row(f"{name}, calls", "calls", swept.calls, note=f"{swept.seconds:.1f} s"),
        row(f"{name}, most of a call", "leases", swept.most_of_a_call, target=40),
        row(f"{name}, longest call", "ms", swept.longest_ms, target=10, note=f"{swept.over_10_ms} over 10 ms"),
    ]
    return rows


PARTS: dict[str, Callable[[Place, Sizes], list[Row]]] = {
    "speed": speed,
    "wide": wide,
    "counted": counted,
    "quiet": quiet,
}
LOAD = {"load": heavy}


def about(place: Place) -> dict[str, Any]:
    """What was measured, on what."""
    server = place.redis.info("server")
    names = ("everstep", "redis", "hiredis", "rq", "msgpack", "pydantic", "langgraph")
    return {
        "at": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "server": f"{server.get('server_name', 'redis')} {server['redis_version']}, appendfsync everysec",
        "machine": f"{platform.system()} {platform.machine()}, {cpu_count()} CPUs",
        "load": round(os.getloadavg()[0], 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="everstep's speed, beside a bare loop and its peers"
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes, three rounds; writes no result of a version"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--only", action="append", choices=tuple(PARTS), help="this part; may be repeated")
    parser.add_argument(
        "--load", action="store_true", help="instead: a million queued jobs, 100,000 paused threads and expired leases"
    )
    said = parser.parse_args(argv)
    parts = LOAD if said.load else {name: PARTS[name] for name in said.only or PARTS}
    rows: list[Row] = []
    with Place() as place:
        document = about(place)
        if document["load"] > cpu_count() / 4:
            print(f"the machine is busy (load {document['load']}): read ratios only, or try again", file=sys.stderr)
        for name, part in parts.items():
            print(f"{name} ...", file=sys.stderr)
            rows += part(place, QUICK if said.quick else FULL)
    print(table(rows))
    document["load_after"] = round(os.getloadavg()[0], 1)
    document["rows"] = [each.document() for each in rows]
    title = f"everstep {document['versions']['everstep']}: targets at the dashed line"
    if parts == PARTS and not said.quick:
        RESULTS.mkdir(exist_ok=True)
        _write(RESULTS / f"{document['versions']['everstep']}.json", document)
        (RESULTS / f"{document['versions']['everstep']}.svg").write_text(plot(rows, title))
    if said.json:
        _write(said.json, document)
    return int(any(each.verdict == "MISS" for each in rows))


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
