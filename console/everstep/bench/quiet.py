"""The quiet things: a worker without work, the inbox; and how long it takes to begin."""

from __future__ import annotations

import compileall
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import everstep
import everstep_checkpoint
import everstep_scheduler
import everstep_workers
from everstep_checkpoint import entries as e

from ..crew import Crew
from .chains import LENGTH, new_run, one_by_one
from .graphs import chain
from .place import Place, until
from .rows import Row, row
from .sizes import Sizes

TARGET = "everstep.bench.graphs:graph"
COLD_THREADS = 20
WARM = 10  # runs after which a process has its code and connections warm


class Idle(NamedTuple):
    """A worker process with nothing to do."""

    rss_mb: float
    commands_s: float


def idle(place: Place, seconds: float) -> Idle:
    """A process that has worked and rests now, looked at for so long."""
    place.clear()
    with place.worker("chain") as worker:
        one_by_one(place, chain(LENGTH), 1)
        until(lambda: bool(place.redis.exists(place.keys.waiting("chain"))), "a worker that waits", worker)
        before, began = place.counts(), time.monotonic()
        time.sleep(seconds)  # the span that is looked at
        asked = (place.counts() - before).commands / (time.monotonic() - began)
        return Idle(worker.rss_mb, asked)


def inbox(place: Place, messages: int) -> list[float]:
    """Milliseconds from a message in the inbox to its run's first entry, both by Redis' clock."""
    place.clear()
    took: list[float] = []
    with place.worker("fan"):
        for i in range(messages):
            said = {"graph": "fan", "thread": f"inbox-{i}", "input": '{"width": 1, "ran": 0}'}
            sent = place.redis.xadd(place.keys.inbox, said).decode()
            end = time.monotonic() + 10
            while not (found := place.log.read(f"inbox-{i}", count=1)) and time.monotonic() < end:
                time.sleep(0.002)
            took.append(found[0].number("at") - e.entry_id(sent)[0])
    return took


def keep_bytecode() -> None:
    """As pip leaves an installed package. A tree that is edited, or PYTHONDONTWRITEBYTECODE, would add the compiler."""
    for package in (everstep_checkpoint, everstep_scheduler, everstep_workers, everstep):
        for folder in package.__path__:
            compileall.compile_dir(folder, quiet=1)


def help_ms(times: int) -> list[float]:
    """Wall time of `everstep --help`."""
    took: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "everstep", "--help"], stdout=subprocess.DEVNULL, check=True)
        took.append((time.perf_counter() - began) * 1000)
    return took


def bare_ms(times: int) -> list[float]:
    """Wall time of an interpreter that does nothing: what no program of Python's can do without."""
    took: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        took.append((time.perf_counter() - began) * 1000)
    return took


def worker_ready_ms(place: Place, times: int) -> list[float]:
    """From the start of `everstep worker` to its process waiting for work."""
    took: list[float] = []
    for _ in range(times):
        place.clear()
        keys = place.keys
        crew = Crew(
            place.url, (TARGET,), ("--quiet",), out=place.folder / "worker.txt",
            env={"RQ_KEY_PREFIX": keys.rq}, site=("--namespace", keys.namespace, "--partition", keys.partition),
        )  # fmt: skip
        began = time.perf_counter()
        crew.start()
        try:
            until(lambda: bool(place.redis.exists(place.keys.waiting("chain"))), "a worker that is ready",
                  pause_s=0.001)  # fmt: skip
            took.append((time.perf_counter() - began) * 1000)
        finally:
            crew.stop()
    return took


class Cold(NamedTuple):
    """Milliseconds from submit to a run's first node, on threads that the process never saw, and on them again."""

    cold_ms: float
    warm_ms: float


def cold(place: Place, threads: int) -> Cold:
    """A run on threads that another process made: their first step has to read the log."""
    place.clear()
    spec = chain(LENGTH)
    with place.worker("chain"):
        made = one_by_one(place, spec, threads)
    submitted: list[int] = []
    with place.worker("chain") as worker:
        one_by_one(place, spec, WARM)
        for thread in made:
            for _ in range(2):
                submitted.append(time.perf_counter_ns())
                new_run(place, spec, thread)
                place.finish([thread])
    starts = [ns for number, ns in worker.journal if number == 0][WARM:]
    gaps = [(ns - began) / 1e6 for ns, began in zip(starts, submitted, strict=True)]
    return Cold(statistics.median(gaps[::2]), statistics.median(gaps[1::2]))


def rows_quiet(place: Place, sizes: Sizes) -> list[Row]:
    found = [idle(place, 2.0) for _ in range(3)]
    return [
        row("idle worker, memory", "MB", [each.rss_mb for each in found], target=80),
        row("idle worker, commands", "1/s", [each.commands_s for each in found]),
        row("inbox, message to run", "ms", inbox(place, 21), target=50),
    ]


def rows_start(place: Place, sizes: Sizes) -> list[Row]:
    some = [cold(place, COLD_THREADS) for _ in range(3)]
    keep_bytecode()
    return [
        row("start: python -c pass", "ms", bare_ms(sizes.starts)),
        row("start: everstep --help", "ms", help_ms(sizes.starts), target=150),
        row("start: everstep worker, until it waits for work", "ms", worker_ready_ms(place, sizes.starts), target=400),
        row("start: submit to first node, warm thread", "ms", [each.warm_ms for each in some]),
        row("start: submit to first node, cold / warm thread", "x", [each.cold_ms / each.warm_ms for each in some],
            target=3),
    ]  # fmt: skip
