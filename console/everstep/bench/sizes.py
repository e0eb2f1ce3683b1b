"""How much of everything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """`rounds` of each measurement; runs, chains and turns are counted per round."""

    rounds: int = 5
    floor_steps: int = 3000
    runs: int = 60
    chains: int = 200
    peer_rounds: int = 3
    peer_runs: int = 10
    peer_chains: int = 40
    widths: tuple[int, int] = (100, 10_000)
    moved: int = 10_000
    turns: int = 1000
    waiting: int = 500
    sleeping: int = 2000
    cpu_chains: int = 40
    flooded: int = 4000  # threads, with 250 jobs each
    paused: int = 100_000
    expired: int = 100_000
    partition_chains: int = 200
    tenant_runs: int = 20
    starts: int = 5


FULL = Sizes()
QUICK = Sizes(
    rounds=3,
    floor_steps=1000,
    runs=20,
    chains=60,
    peer_rounds=1,
    peer_runs=5,
    peer_chains=10,
    widths=(100, 1000),
    moved=2000,
    turns=100,
    waiting=100,
    sleeping=300,
    cpu_chains=10,
    flooded=40,
    paused=1000,
    expired=2000,
    partition_chains=40,
    tenant_runs=12,
    starts=3,
)
