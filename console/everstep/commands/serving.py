"""worker, doctor: what keeps a fleet going."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TYPE_CHECKING

import click

from .. import show
from ..site import Site

if TYPE_CHECKING:
    from ..finding import Finding


MARGIN = 17


@click.command()
@click.argument("targets", metavar="MODULE:GRAPH...", nargs=-1, required=True)
@click.option("--processes", "-p", type=click.IntRange(1, 512), default=1, metavar="P", help="Worker processes (1).")
@click.option(
    "--concurrency",
    "-c",
    type=click.IntRange(1, 10_000),
    default=10,
    metavar="N",
    help="Nodes at once in a process (10).",
)
@click.option(
    "--spares",
    type=click.IntRange(0, 32),
    default=1,
    metavar="N",
    help="Processes in reserve, graphs loaded, for what a dead one ran (1).",
)
@click.option("--queues", "-q", metavar="A,B", help="Queues, first things first (those that the graphs name).")
@click.option(
    "--grace", type=click.FloatRange(0), default=30.0, metavar="S", help="After SIGTERM, let nodes go on so long (30)."
)
@click.option(
    "--lease",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    metavar="S",
    help="A silent host's tasks move on after this (10).",
)
@click.option(
    "--health", metavar="[HOST:]PORT", help="Answer GET /livez and /readyz there; HOST is 127.0.0.1 if left out."
)
@click.option("--health-file", metavar="PATH", help="A file that is there while all is live, touched once a second.")
@click.option(
    "--health-within",
    type=click.FloatRange(1, 3600),
    default=30.0,
    metavar="S",
    help="Without progress for so long, a process is not live (30).",
)
@click.option("--quiet", is_flag=True, help="Warnings only.")
@click.pass_obj
def worker(
    site: Site,
    targets: tuple[str, ...],
    processes: int,
    concurrency: int,
    spares: int,
    queues: str | None,
    grace: float,
    lease: float,
    health: str | None,
    health_file: str | None,
    health_within: float,
    quiet: bool,
) -> int:
    """Work on graphs until SIGTERM or Ctrl-C; then finish or hand back what is under way.

    \b
    everstep worker shop.orders:graph shop.mails:graph --processes 4 --concurrency 20
    """
    # rq reads its prefix when it is imported, which the user's modules may do
    os.environ.setdefault("RQ_KEY_PREFIX", site.keys.rq)
    _log_to_stderr(quiet)
    from everstep_workers.pool import Pool

    site.redis.close()  # a wrong URL is told before anything starts; no connection crosses a fork
    named = tuple(name.strip() for name in queues.split(",") if name.strip()) if queues else ()
    pool = Pool(
        site.url, targets, processes=processes, concurrency=concurrency, queues=named, grace_s=grace,
        lease_ms=int(lease * 1000), keys=site.keys, spares=spares, health=health or "", health_file=health_file or "",
        health_within_s=health_within,
    )  # fmt: skip
    return pool.run()


def _log_to_stderr(quiet: bool) -> None:
    import logging

    form = "%(asctime)s %(levelname)-7s %(message)s"
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format=form, datefmt="%H:%M:%S", stream=sys.stderr
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document.")
@click.pass_obj
def doctor(site: Site, as_json: bool) -> int:
    """Is all well? Each line says what is, and what to do if it is not. Exit code 1 if anything is marked x."""
    from ..cli import FAILURE, OK
    from ..doctor import examine
    from ..finding import ACT, KNOW

    with site.open():
        found = examine(site)
    bad = sum(each.mark == ACT for each in found)
    if as_json:
        show.emit({"ok": not bad, "findings": [vars(each) for each in found]})
        return FAILURE if bad else OK
    for each in found:
        _show(each)
    known = sum(each.mark == KNOW for each in found)
    click.echo(
        f"\n{f'{bad} to act on' if bad else 'nothing to act on'}, {known} to know of, {len(found) - bad - known} well"
    )
    return FAILURE if bad else OK


def _show(found: Finding) -> None:
    mark = show.paint(f"{found.mark:<2}", found.mark)
    click.echo(f"{mark} {found.about:<12}  {_wrapped(show.clean(found.said), '')}")
    if found.fix:
        click.echo(f"{'':{MARGIN}}{_wrapped(found.fix, '-> ')}")


def _wrapped(text: str, begin: str) -> str:
    """The text behind the margin, on as many lines as a terminal needs; on one where nobody watches."""
    if not show.watched():
        return begin + text
    room = max(show.width() - MARGIN, 40)
    return f"\n{'':{MARGIN}}".join(
        textwrap.wrap(begin + text, room, subsequent_indent=" " * len(begin), break_on_hyphens=False)
    )
