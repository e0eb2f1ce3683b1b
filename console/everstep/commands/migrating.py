"""migrate: runs whose nodes were renamed or taken away go on as a function of yours says."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from .. import show
from ..site import Site

if TYPE_CHECKING:
    from everstep_scheduler.client.migrating import Says


@click.command()
@click.argument("words", nargs=-1, metavar="[THREAD] MODULE:FUNCTION", required=True)
@click.option("--all-parked", is_flag=True, help="Instead of one THREAD: all that have a parked task.")
@click.option("--yes", is_flag=True, help="Do it. Without this it is only shown.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document per thread.")
@click.pass_obj
def migrate(site: Site, words: tuple[str, ...], all_parked: bool, yes: bool, as_json: bool) -> None:
    """Let open tasks go on as other nodes. FUNCTION takes (node, state) and returns a node's name, END, or None.

    It is asked for each open task; None leaves it as it is. The run is the same, and goes on. First look, then --yes.

    \b
    everstep migrate order-17 shop.moves:renamed
    everstep migrate --all-parked shop.moves:renamed --yes
    """
    from everstep_scheduler.client import migrating

    if len(words) != (1 if all_parked else 2):
        raise click.UsageError("give THREAD MODULE:FUNCTION, or --all-parked MODULE:FUNCTION")
    says = _function(words[-1])
    found = 0
    with site.open():
        threads = migrating.parked_threads(site.client) if all_parked else [words[0]]
        for thread in threads:
            made = migrating.plan(site.client, thread, says)
            done = migrating.apply(site.client, made, "cli") if yes and made.changes else []
            found += len(made.changes)
            changes = [{"task": each.task, "node": each.node, "to": each.to} for each in made.changes]
            if as_json:
                show.emit({"thread": thread, "changes": changes, "done": done})
                continue
            for each in made.changes:
                said = "done" if each.task in done else "held by a worker, left as it is" if yes else "would be"
                click.echo(show.clean(f"{thread}  {each.task}  {each.node} -> {each.to}  {said}"))
            if not changes:
                site.say(f"thread {show.clean(thread)}: nothing to migrate")
    if not threads and not as_json:
        site.say("no task is parked: nothing to migrate")
    if not yes and found:
        site.say("nothing was changed; --yes does it")


def _function(target: str) -> Says:
    """The user's function, named on the command line. Raises UsageError."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise click.UsageError(f"{target!r} names no function; write MODULE:FUNCTION, as in shop.moves:renamed")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(import_module(module), name)
    except Exception as error:
        raise click.UsageError(f"{target}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise click.UsageError(f"{target} is of type {type(found).__name__}, not a function of (node, state)")
    return found  # type: ignore[no-any-return]
