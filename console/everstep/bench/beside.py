"""W1, W2 and W4 of the peers, and ours beside each of them, in alternated rounds."""

from __future__ import annotations

import sys

from everstep_checkpoint.errors import EverstepError

from .chains import throughput
from .peers import IN_MEMORY, PEERS, RQ, Company, Measured, Peer
from .place import Place
from .rows import Row, ratios, row, skipped
from .sizes import Sizes

BEST = "LangGraph's best durable saver"


def rows_peers(place: Place, sizes: Sizes, company: Company) -> list[Row]:
    """Ours is measured before each peer, so both meet one machine. One that is not here is a row that says why."""
    rows: list[Row] = []
    measured: dict[Peer, tuple[list[float], list[Measured]]] = {}
    for peer in PEERS:
        print(f"  {peer.name}", file=sys.stderr)
        if why := company.why_not(peer):
            rows.append(skipped(f"W2 {peer.name}", why))
            continue
        try:
            measured[peer] = _rounds(place, sizes, company, peer)
        except EverstepError as error:
            rows.append(skipped(f"W2 {peer.name}", f"it failed: {error.what}"))
    for peer, (ours, theirs) in measured.items():
        many = [each.steps_s for each in theirs]
        target = {"target": 25, "keep": "least"} if peer is RQ else {}
        rows += [
            row(f"W1 {peer.name}, a step", "us", [each.step_us for each in theirs]),
            row(f"W2 {peer.name}", "steps/s", many),
            row(f"W2 one worker process / {peer.name}", "x", ratios(ours, many), **target),
        ]
    return [*rows, *_best(measured), *_chat(measured)]


def _rounds(place: Place, sizes: Sizes, company: Company, peer: Peer) -> tuple[list[float], list[Measured]]:
    ours: list[float] = []
    theirs: list[Measured] = []
    for i in range(sizes.peer_rounds):
        ours.append(throughput(place, sizes.chains).steps_s)
        place.clear()
        turns = sizes.turns if peer is IN_MEMORY and not i else 0  # minutes long: once
        theirs.append(company.measure(peer, sizes.peer_runs, sizes.peer_chains, turns))
    return ours, theirs


def _best(measured: dict[Peer, tuple[list[float], list[Measured]]]) -> list[Row]:
    """Beside the better of LangGraph's durable savers, if one is here."""
    durable = [each for peer, each in measured.items() if peer.durable]
    if not durable:
        return []
    ours, theirs = max(durable, key=lambda each: sum(found.steps_s for found in each[1]))
    found = ratios(ours, [each.steps_s for each in theirs])
    return [row(f"W2 one worker process / {BEST}", "x", found, target=10, keep="least")]


def _chat(measured: dict[Peer, tuple[list[float], list[Measured]]]) -> list[Row]:
    if IN_MEMORY not in measured:
        return []
    first = measured[IN_MEMORY][1][0]
    return [
        row("W4 LangGraph in memory: a turn around the 10th", "ms", first.early_ms),
        row("W4 LangGraph in memory: a turn at the end", "ms", first.late_ms),
        row("W4 LangGraph in memory: at the end / around the 10th", "x", first.late_ms / first.early_ms),
    ]
