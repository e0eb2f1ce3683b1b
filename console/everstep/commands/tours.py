"""demo, dev: everstep on a Redis of its own."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from ..site import Site


def end_in_order() -> None:
    """SIGTERM, and a Ctrl-C that a shell made us ignore, end as Ctrl-C does: server and workers go first."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Text files to read (Python's own library).",
)
@click.option("--workers", type=click.IntRange(2, 32), default=3, metavar="N", help="Worker processes (3).")
@click.option("--keep", is_flag=True, help="Leave server and workers running at the end, until Ctrl-C.")
def demo(folder: Path | None, workers: int, keep: bool) -> int:
    """The tour: a graph that counts, a pipeline that loses a worker and goes on, and where to look afterwards.

    Needs nothing: it starts a Redis of its own in a private folder and removes it at the end.
    """
    from ..demo import run

    end_in_order()
    return run(folder, workers, keep)


@click.command()
@click.argument("targets", metavar="MODULE:GRAPH...", nargs=-1, required=True)
@click.option(
    "--concurrency", "-c", type=click.IntRange(1, 10_000), default=10, metavar="N", help="Nodes at once (10)."
)
@click.pass_obj
def dev(site: Site, targets: tuple[str, ...], concurrency: int) -> int:
    """Work on graphs while you write them: restarts when a .py file changes, shows each step as it is committed.

    Uses --url (or EVERSTEP_URL) if given, else a Redis of its own that ends with this command.
    """
    from ..dev import run

    end_in_order()
    return run(site, targets, concurrency)
