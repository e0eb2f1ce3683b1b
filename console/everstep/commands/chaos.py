"""chaos: faults at random under a load, and a verdict."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import click

from .. import show
from ..chaos.plan import KINDS
from ..site import Site
from .running import given_json
from .tours import end_in_order

if TYPE_CHECKING:
    from ..chaos.drive import Order, Outcome

SHOWN_MAX = 20
UNEXPLAINED = "unexplained; see `struck` and `log` in --json"
SEEDS = 1_000_000


def _kinds(ctx: click.Context, option: click.Parameter, said: str | None) -> tuple[str, ...]:
    chosen = tuple(KINDS) if said is None else tuple(each.strip() for each in said.split(",") if each.strip())
    unknown = [each for each in chosen if each not in KINDS]
    if unknown or not chosen:
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'}: there are {', '.join(KINDS)}")
    return chosen


@click.command()
@click.argument("target", metavar="[MODULE:GRAPH]", required=False)
@click.option("--input", "given", metavar="JSON", help="Every input of your graph: JSON, @FILE, or - for stdin ({}).")
@click.option("--minutes", "-m", type=click.FloatRange(0.05, 10_000), default=1.0, metavar="M", help="So long (1).")
@click.option("--seed", type=click.IntRange(0), metavar="S", help="The same plan of faults again (another each time).")
@click.option("--faults", "kinds", metavar="A,B", callback=_kinds, help=f"Which: {', '.join(KINDS)} (all).")
@click.option("--pools", type=click.IntRange(1, 16), default=2, metavar="N", help="Pools of workers (2).")
@click.option("--processes", "-p", type=click.IntRange(1, 64), default=2, metavar="P", help="Processes in each (2).")
@click.option("--concurrency", "-c", type=click.IntRange(1, 1000), default=4, metavar="N", help="Nodes at once (4).")
@click.option("--lease", type=click.FloatRange(0.2, 3600), default=2.0, metavar="S", help="Seconds of a lease (2).")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document.")
@click.pass_obj
def chaos(
    site: Site,
    target: str | None,
    given: str | None,
    minutes: float,
    seed: int | None,
    kinds: tuple[str, ...],
    pools: int,
    processes: int,
    concurrency: int,
    lease: float,
    as_json: bool,
) -> int:
    """Kill, stop and cut real workers under a load; then a checker says whether anything was lost or done twice.

    Uses --url (or EVERSTEP_URL) if given, in a namespace of its own that is removed at the end; else a Redis of its
    own, which is killed, too. Runs a sample graph, or yours. Exit code 0: every law was kept; 7: one was broken.

    \b
    everstep chaos --minutes 5 --seed 42
    everstep chaos shop.orders:graph --input '{"order": 17}' --faults kill,pool
    """
    from ..chaos.drive import Order, run
    from ..cli import INTEGRITY, OK

    end_in_order()
    order = Order(
        seed=random.randrange(SEEDS) if seed is None else seed,  # noqa: S311  # to be repeated, not secret
        seconds=minutes * 60,
        url=site.url if site.given else None,
        kinds=kinds,
        pools=pools,
        processes=processes,
        concurrency=concurrency,
        lease_s=lease,
        **_of_the_user(target, given),
    )
    _greet(site, order)
    outcome = run(order, lambda word, said: site.say(f"   {word:<8}{said}"))
    if as_json:
        show.emit(outcome.document)
    else:
        _tell(outcome)
    return OK if outcome.verdict.sound else INTEGRITY


def _of_the_user(target: str | None, given: str | None) -> dict[str, Any]:
    """The user's graph and its input. Raises GraphError, UsageError."""
    if target is None:
        if given is not None:
            raise click.UsageError("--input is for a graph of yours: name it as MODULE:GRAPH")
        return {}
    from everstep_workers.targets import load_target

    return {"target": target, "graph": load_target(target).name, "given": given_json(given or "{}", "--input")}


def _greet(site: Site, order: Order) -> None:
    where = f"{site.shown}, in a namespace of its own" if order.url else "a Redis of its own, appendfsync always"
    what = order.target or "a sample graph"
    site.say(f"everstep chaos: seed {order.seed}, {order.seconds / 60:g} min, {what}, on {where}")
    site.say(f"   {order.pools} pools of {order.processes} processes, lease {order.lease_s:g} s")


def _tell(outcome: Outcome) -> None:
    """The table and the verdict, for people."""
    said, verdict = outcome.document, outcome.verdict
    rows = [(kind, KINDS[kind][0], f"{times:,}", *_times(said, kind)) for kind, times in sorted(outcome.faults.items())]
    show.table(("fault", "what it is", "times", "recovery p50", "p99"), rows, right=("times", "recovery p50", "p99"))
    click.echo(
        f"\nruns {verdict.runs:,}   steps {verdict.steps:,}   faults {said['faults']:,}   lost {verdict.lost}   "
        f"duplicated {verdict.duplicated}   recovery p50 {_s(said['recovery_p50_s'])}, p99 {_s(said['recovery_p99_s'])}"
    )
    for each in said["recovery_long"][:SHOWN_MAX]:
        where = f"{each['thread']}, step {each['step']}, {each['node']}"
        said_why = f"   long: {_s(each['took_s'])} after {each['fault']}: {where}: {each['why'] or UNEXPLAINED}"
        click.echo(show.clean(said_why))
    for each in verdict.violations[:SHOWN_MAX]:
        click.echo(f"{show.paint('x'):<2} {each.law:<4} {show.clean(f'{each.thread}: {each.said}')}")
    if verdict.sound:
        click.echo(f"{show.paint('ok'):<2} every law was kept; the same plan again: --seed {outcome.order.seed}")
        return
    click.echo(f"{len(verdict.violations)} violations; the evidence is in {outcome.kept}")


def _times(said: dict[str, Any], kind: str) -> tuple[str, str]:
    known = said["recovery_by_kind"].get(kind, {})
    return _s(known.get("p50_s")), _s(known.get("p99_s"))


def _s(value: float | None) -> str:
    return "-" if value is None else show.span(value * 1000)
