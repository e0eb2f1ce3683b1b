"""A schedule: a story, told once under the dice of a seed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from everstep_checkpoint.log import MemoryLog

from .graphs import NODES
from .judging import at_rest, holds, judged, outcome, poisoned
from .limiting import Limiting
from .model import Model
from .stories import SCHEDULED, Producer, Story
from .worker import Swarm
from .world import World, in_time_of


@dataclass(frozen=True)
class Told:
    """What a schedule came to. `gave_up`: some task was poison to all that took it; `done`: all that happened, a line
    each."""

    outcome: dict[str, Any]
    gave_up: bool
    done: Sequence[str]
    turns: int


class Failed(AssertionError):
    """A schedule after which something did not hold; how to see it again."""

    def __init__(self, seed: int, story: Story, done: Sequence[str]) -> None:
        super().__init__(f"schedule {seed} ({story.name}); from tests/, again with: python -m sim {seed}")
        self.seed = seed
        self.done = done


def run(seed: int, model: type[Model] = Model, *, tells: bool = False) -> Told:
    """Run the schedule of a seed. `tells`: also what happened in it. Raises Failed."""
    return _told(seed, SCHEDULED[seed % len(SCHEDULED)], model, None, tells)


def run_all(seeds: Iterable[int], model: type[Model] = Model) -> int:
    """The schedules of these seeds. Returns how many turns they took. Raises Failed for the first that fails.

    Each leaves a heap of circles; they are collected a hundred schedules at a time.
    """
    turns, collects = 0, gc.isenabled()
    gc.disable()
    try:
        for seed in seeds:
            turns += run(seed, model).turns
            if seed % 100 == 0:
                gc.collect(1)
    finally:
        if collects:
            gc.enable()
    return turns


def _told(seed: int, story: Story, model: type[Model], faults: int | None, tells: bool = False) -> Told:
    expected = _undisturbed(story) if faults is None and story.fixed else None
    log = MemoryLog()
    world = World(f"{seed}", _maker(model, log), faults, tells)
    try:
        with in_time_of(world):
            return Told(*_run(world, log, story, expected), world.done, world.turns)
    except BaseException as error:
        if not isinstance(error, Exception):
            raise
        raise Failed(seed, story, world.done) from error


def _maker(model: type[Model], log: MemoryLog) -> Callable[[World], Model]:
    return lambda world: model(log, lambda: int(world.now * 1000), world.new_id)


@cache
def _undisturbed(story: Story) -> dict[str, Any]:
    """What it comes to where nothing goes wrong: all runs are done."""
    found = _told(0, story, Model, 0).outcome
    assert all(status == "done" for status, _ in found.values()), f"{story.name} itself comes to {found}"
    return found


def _run(world: World, log: MemoryLog, story: Story, expected: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
    NODES.world = world
    world.judge = _judge(world.model, story)
    swarm = Swarm(world, log, story)
    producer = Producer(world, log, story)
    world.spawn(producer.run, producer)
    model = world.model
    if world.dice.random() < 0.7:
        model.swept = int(world.now * 1000), "server", 0  # else nobody has swept for long, and nothing expires at first
    world.run(
        lambda: producer.ends > 0 and all(at_rest(model, thread) for thread in model.threads), "the runs don't rest"
    )
    world.run(lambda: _is_quiet(world, swarm, producer), "it does not become quiet")
    judged(model, log, world.executed, world.disturbed)
    found, gave_up = outcome(model, log), poisoned(log)
    if expected is not None and found != expected and not gave_up:
        raise AssertionError(f"it came to {found}, undisturbed to {expected}")
    return found, gave_up


def _judge(model: Model, story: Story) -> Callable[[], None]:
    """What is looked at after each call. Limits are told to the store first, as workers do when they begin."""
    if not story.spec.limits:
        return lambda: holds(model)
    model.limit(story.spec.name, story.spec.limits)
    limiting = Limiting(model)

    def both() -> None:
        holds(model)
        limiting.look()

    return both


def _is_quiet(world: World, swarm: Swarm, producer: Producer) -> bool:
    """Nobody holds anything, nothing is under way any more, and whoever stopped goes on."""
    under_way = any(actor.process is None or actor.process is producer for actor in world.actors)
    model = world.model
    waits = any(model.queues.values()) or model.leases or model.held
    return not (under_way or swarm.stalled or swarm.holds or waits)
