"""W3: a fan-out and its join, and how many tasks one script call moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from everstep_checkpoint.ids import new_id
from everstep_scheduler.moves.contract import Commit, Lease, Offer
from everstep_scheduler.steps.perform import Performer

from .graphs import fan
from .place import Place
from .rows import Row, ratios, row
from .sizes import Sizes


class Wide(NamedTuple):
    """A step of `width` Sends: milliseconds per task, its whole, and the longest call of a script."""

    width: int
    ms_per_task: float
    ms: float
    longest_ms: float
    longest: str


def wide(place: Place, width: int) -> Wide:
    """1 -> width -> 1 on one worker process."""
    place.clear()
    spec = fan()
    with place.worker("fan", concurrency=50):
        place.finish([place.submit(spec, width=5, ran=0)])
        with place.scripts(threshold_us=500) as found:
            thread = place.submit(spec, width=width, ran=0)
            place.finish([thread], pause_s=0.01)
    ms = place.span_ms([thread])
    longest = max(found, key=lambda each: each.us, default=None)
    return Wide(width, ms / width, ms, longest.us / 1000 if longest else 0.5, longest.name if longest else "all")


class Moved(NamedTuple):
    """One script call in a wide step: tasks that became jobs, and tasks that were leased."""

    script: str
    made: int
    leased: int


def moved(place: Place, width: int, calls: int) -> list[Moved]:
    """Drives a wide step by hand: its fan-out, then `calls` claims of 64 slots with a commit after each."""
    place.clear()
    spec = fan()
    performer = Performer(place.moves, place.log, {spec.name: spec}, by="bench")
    place.submit(spec, width=width, ran=0)
    found: list[Moved] = []
    leases = list(place.moves.claim(_offer(1)).leases)
    while len(found) < 2 * calls:
        commit = done(performer, leases.pop())
        leases += _observed(place, "commit", found, lambda commit=commit: place.moves.commit([(commit, _offer(1))])[0])
        if commit.lease.node == "work":
            leases += _observed(place, "claim", found, lambda: place.moves.claim(_offer(64)))
    return found


def _observed(place: Place, name: str, found: list[Moved], call: Any) -> Sequence[Lease]:
    queue = place.keys.rq_queue("fan")
    before = int(place.redis.llen(queue))
    leases: Sequence[Lease] = call().leases
    found.append(Moved(name, int(place.redis.llen(queue)) - before + len(leases), len(leases)))
    return leases


def done(performer: Performer, lease: Lease) -> Commit:
    """The attempt at a task, ready to be committed."""
    attempt = performer.load(lease)
    return performer.settle(attempt, attempt.call())


def _offer(slots: int) -> Offer:
    return Offer("bench", tuple(new_id() for _ in range(slots)), ("fan",), "bench")


def rows_w3(place: Place, sizes: Sizes) -> list[Row]:
    few, many = ([wide(place, width) for _ in range(3)] for width in sizes.widths)
    rows: list[Row] = []
    for each in (few, many):
        name = f"W3 1 -> {each[0].width:,} -> 1"
        rows.append(row(f"{name}, a task", "ms", [one.ms_per_task for one in each]))
        if not place.own:
            continue
        # The server's clock counts on while other processes have its core: the quietest round is the script's own time.
        best = min(each, key=lambda one: one.longest_ms)
        every = {"rounds": [one.longest_ms for one in each]}
        rows.append(row(f"{name}, longest script", "ms", best.longest_ms, target=10, note=best.longest, details=every))
    flat = ratios([each.ms_per_task for each in many], [each.ms_per_task for each in few])
    rows.append(row(f"W3 a task of {many[0].width:,} / of {few[0].width:,}", "x", flat, target=1.3))
    calls = moved(place, sizes.moved, 20)
    for what, most in (
        ("jobs made", max(each.made for each in calls)),
        ("tasks leased", max(each.leased for each in calls)),
    ):
        rows.append(row(f"W3 {sizes.moved:,} wide, most {what} by a call", "tasks", most, target=250))
    return rows
