"""fork, rollback, diff: going back to an earlier checkpoint, in a copy or in place, and what is different there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .. import show
from ..site import Site

if TYPE_CHECKING:
    from everstep_scheduler.reading.differing import Change

SHOWN = 400
as_json = click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document.")


@click.command()
@click.argument("thread")
@click.option("--at", metavar="CHECKPOINT", help="From this checkpoint (the last one); `everstep history` lists them.")
@click.option("--to", metavar="NEW", help="The new thread's id (one is drawn).")
@as_json
@click.pass_obj
def fork(site: Site, thread: str, at: str | None, to: str | None, as_json: bool) -> None:
    """Begin a new thread with the state of THREAD. Works at any time; THREAD stays as it is.

    \b
    everstep fork demo --at 000000000003-5f1c02aa --to what-if
    """
    with site.open():
        made = site.client.fork(thread, to, at)
        found = site.client.state(made)
    if as_json:
        return show.emit({"thread": made, "of": thread, "next": found.next, "values": found.values})
    click.echo(made)
    return site.say(_what_next(made, found.next))


@click.command()
@click.argument("thread")
@click.argument("checkpoint")
@as_json
@click.pass_obj
def rollback(site: Site, thread: str, checkpoint: str, as_json: bool) -> None:
    """Put CHECKPOINT at the head of THREAD again. What came after it stays in the history; no run may be under way.

    \b
    everstep rollback demo 000000000003-5f1c02aa
    """
    with site.open():
        made = site.client.rollback(thread, checkpoint)
        found = site.client.state(thread)
    if as_json:
        return show.emit({"thread": thread, "of": checkpoint, "checkpoint_id": made, "next": found.next})
    click.echo(made)
    return site.say(_what_next(thread, found.next))


def _what_next(thread: str, following: tuple[str, ...]) -> str:
    named = show.word(thread)
    if not following:
        return f"thread {named}: nothing comes next; everstep submit GRAPH INPUT --thread {named} goes on from there"
    return f"thread {named}: next {show.clean(', '.join(following))}; everstep retry {named} lets it go on"


@click.command()
@click.argument("thread")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@as_json
@click.pass_obj
def diff(site: Site, thread: str, a: str, b: str, as_json: bool) -> None:
    """What is different at checkpoint B of THREAD from checkpoint A, key by key.

    \b
    everstep diff demo 000000000003-5f1c02aa 000000000007-90cc1b2e
    """
    with site.open():
        found = site.client.diff(thread, a, b)
    if as_json:
        return show.emit({"thread": thread, "a": a, "b": b, "changes": [_document(each) for each in found]})
    for each in found:
        for line in _lines(each):
            click.echo(line)
    return None if found else site.say("no difference")


def _document(each: Change) -> dict[str, Any]:
    return {"key": each.key, "how": each.how, "before": each.before, "after": each.after}


def _lines(each: Change) -> list[str]:
    """As in other diffs: `-` what was, `+` what is; a list that has grown shows what is new in it."""
    key = show.clean(each.key)
    if each.how == "grown":
        return [f"+ {key}[{len(each.before)}:] = {show.value(each.after, SHOWN)}"]
    was = [] if each.how == "added" else [f"- {key} = {show.value(each.before, SHOWN)}"]
    now = [] if each.how == "removed" else [f"+ {key} = {show.value(each.after, SHOWN)}"]
    return [*was, *now]
