"""bench: how fast it is on this machine, beside a bare loop and its peers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import show
from ..site import Site
from .tours import end_in_order

if TYPE_CHECKING:
    from ..bench.drive import Outcome


def _parts(ctx: click.Context, option: click.Parameter, said: str | None) -> tuple[str, ...]:
    from ..bench.drive import PARTS

    chosen = tuple(each.strip() for each in (said or "").split(",") if each.strip())
    unknown = [each for each in chosen if each not in PARTS]
    if unknown or (said is not None and not chosen):
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'}: there are {', '.join(PARTS)}")
    return chosen


@click.command()
@click.option(
    "--only", metavar="A,B", callback=_parts, help="These: W1 to W8, W2a, cpu, counted, quiet, start, many, peers."
)
@click.option("--quick", is_flag=True, help="Smaller sizes and fewer rounds: minutes become seconds, and noise.")
@click.option(
    "--peers", "python", metavar="PYTHON", default=sys.executable, show_default=False,
    help="The interpreter that has the peers (this one).",
)  # fmt: skip
@click.option(
    "--results", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write JSON and a plot there."
)
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document.")
@click.pass_obj
def bench(
    site: Site, only: tuple[str, ...], quick: bool, python: str, results: Path | None, as_json: bool
) -> int:  # fmt: skip
    """How fast it is here: workloads beside a bare loop (the floor) and peers, in one run.

    Uses --url (or EVERSTEP_URL) if given, in a namespace of its own that is removed at the end, and changes no setting
    there; else a Redis of its own. Read the ratios. Exit code 1 if a target is missed.

    \b
    everstep bench --quick
    everstep --url redis://127.0.0.1:6379/0 bench --only W1,W2
    """
    from everstep_scheduler.moves.connection import translated

    from ..bench.drive import Order, run
    from ..bench.sizes import FULL, QUICK
    from ..cli import FAILURE, OK

    end_in_order()
    order = Order(site.url if site.given else "", only, QUICK if quick else FULL, python)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    site.say(f"everstep bench{' on ' + site.shown if order.url else ''}: {', '.join(order.parts)}")
    if load > cores / 4:
        site.say(f"   this machine is busy (load {load:.1f}): read the ratios only, or try again")
    with translated(site.shown):
        outcome = run(order, lambda text: site.say(f"   {text}"))
    if results is not None:
        site.say(f"   written: {outcome.write(results)}, and the plot beside it")
    if as_json:
        show.emit(outcome.document)
    else:
        _tell(outcome)
    return FAILURE if outcome.missed or outcome.failed else OK


def _tell(outcome: Outcome) -> None:
    """The table, for people."""
    from ..bench.rows import table

    click.echo(table(outcome.rows))
    judged = [each for each in outcome.rows if each.verdict]
    noisy = sum(each.noisy for each in outcome.rows)
    click.echo(
        f"\n{len(judged) - len(outcome.missed)} of {len(judged)} targets kept, "
        f"{noisy} of {len(outcome.rows)} rows noisy, "
        f"load {outcome.document['load']} to {outcome.document['load_after']}"
    )
