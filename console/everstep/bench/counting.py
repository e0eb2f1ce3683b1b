"""What is counted, and therefore the same on every machine: what a step asks of the server, and what it stores."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

from everstep_checkpoint.entries import Entry

from .chains import LENGTH, new_run, one_by_one
from .graphs import PAYLOAD, chain
from .place import Counts, Place, held
from .rows import Row, row
from .sizes import Sizes


class Trips(NamedTuple):
    """What the server was asked, for so many steps."""

    steps: int
    counts: Counts
    seconds: float

    @property
    def scripts(self) -> float:
        return self.counts.scripts / self.steps

    @property
    def commands(self) -> float:
        return self.counts.commands / self.steps


def round_trips(place: Place, runs: int, *, load: bool) -> Trips:
    """The server's counters over some runs, one at a time or all at once. Steps: nodes and inputs."""
    spec = chain(LENGTH)
    with place.worker("chain") as worker:
        one_by_one(place, spec, 1)
        before, began = place.counts(), time.monotonic()
        if load:
            with held([worker]):
                threads = [new_run(place, spec) for _ in range(runs)]
            place.finish(threads, pause_s=0.02)
        else:
            one_by_one(place, spec, runs)
        return Trips(runs * (LENGTH + 1), place.counts() - before, time.monotonic() - began)


def script_us(place: Place, runs: int) -> dict[str, float]:
    """Median server time of each script in lone chains, by the slow log."""
    spec = chain(LENGTH)
    with place.worker("chain"):
        one_by_one(place, spec, 3)
        with place.scripts() as found:
            one_by_one(place, spec, runs)
    names = sorted({each.name for each in found})
    return {name: statistics.median(each.us for each in found if each.name == name) for name in names}


def step_bytes(place: Place) -> dict[str, float]:
    """Bytes of a step's entries by field, ids and names included, for the median step of a chain."""
    place.clear()
    with place.worker("chain"):
        (thread,) = one_by_one(place, chain(LENGTH), 1)
    sizes = [_sizes(entry) for entry in place.log.read(thread) if entry.text("node").startswith("n")]
    sizes.sort(key=lambda found: sum(found.values()))
    return sizes[len(sizes) // 2]


def _sizes(entry: Entry) -> dict[str, float]:
    found: dict[str, float] = {name: len(name) + len(value) for name, value in entry.raw.items()}
    found["delta"] -= PAYLOAD
    return {"id": len(entry.id), **found}


def rows_counted(place: Place, sizes: Sizes) -> list[Row]:
    rows: list[Row] = []
    for name, load in (("lone chain", False), ("under load", True)):
        place.clear()
        trips = round_trips(place, sizes.chains if load else sizes.runs, load=load)
        by_command = {command: round(n / trips.steps, 2) for command, (n, _) in sorted(trips.counts.items())}
        also = "sweeps and renewals included" if load else "start, claim, sweeps and renewals included"
        rows += [
            row(f"scripts a step, {name}", "calls", trips.scripts, details={"commands": by_command}, note=also),
            row(f"other commands a step, {name}", "calls", trips.commands - trips.scripts,
                note="those within scripts, and the bench's own polling"),
        ]  # fmt: skip
    place.clear()
    for name, us in script_us(place, sizes.runs).items():
        if name in ("start", "claim", "commit"):
            rows.append(row(f"server time of {name}", "us", us))
    fields = step_bytes(place)
    rows.append(
        row("bytes a step adds to its payload", "B", sum(fields.values()), target=400, details={"fields": fields})
    )
    return rows
