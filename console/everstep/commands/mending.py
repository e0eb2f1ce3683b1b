"""recover: every index anew from the logs, or one log rid of what is not its own."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .. import show
from ..site import Site

if TYPE_CHECKING:
    from everstep_scheduler.recovery.mending import Bad


@click.command()
@click.option("--thread", "-t", metavar="T", help="Look at this one log instead: what in it is not everstep's?")
@click.option("--cut", metavar="ENTRY", help="With --thread: take that out. ENTRY is the one that the look names.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document; with --thread one a line.")
@click.pass_obj
def recover(site: Site, thread: str | None, cut: str | None, as_json: bool) -> int:
    """Rebuild every index and job from the logs. Workers may go on meanwhile, and keep what they hold.

    A worker does this by itself when it finds keys gone; use it when `everstep doctor` says so.

    \b
    With --thread nothing is rebuilt: the log is read whole, and each entry that is not everstep's, or can't be
    read, is printed as JSON. --cut takes these out, and nothing else; keep what it prints, it is the only copy.
      everstep recover --thread order-17
      everstep recover --thread order-17 --cut 999-0
    """
    if cut and thread is None:
        raise click.UsageError("--cut needs --thread")
    with site.open():
        if thread is None:
            return _recover(site, as_json)
        return _cut(site, thread, cut) if cut else _look(site, thread)


def _recover(site: Site, as_json: bool) -> int:
    from everstep_checkpoint.errors import NotFound
    from everstep_scheduler.recovery.recovery import recover as rebuild

    from ..cli import OK

    if site.unused():
        there = ", ".join(site.neighbours()) or "none"
        what = f"nothing has ever run in {site.place} at {site.shown}: nothing was written"
        raise NotFound(what, fix=f"see --url, --namespace, --partition; on this server there are: {there}")
    report = rebuild(site.redis, site.keys, said=site.say)
    if as_json:
        show.emit(asdict(report))
    else:
        rows = [(name.replace("_", " "), str(value)) for name, value in asdict(report).items()]
        show.table(("rebuilt", ""), rows, right=("",))
    return OK


def _look(site: Site, thread: str) -> int:
    from everstep_scheduler.recovery.mending import look, raw

    from ..cli import INTEGRITY, OK

    found = look(site.redis, site.keys, thread)
    if found.sound:
        site.say(f"thread {show.clean(thread)}: all {found.entries:,} entries are its own; nothing to cut")
        return OK
    for bad, fields in raw(site.redis, site.keys, thread, found.bad):
        _emit(bad, fields)
    if found.bad:
        what = f"{len(found.bad):,} of {found.entries:,} entries are not its own; the last good one is {found.upto}"
    else:
        what = f"entries behind {found.upto} were removed, and the log takes none below {found.mark}"
    site.say(f"thread {show.clean(thread)}: {what}. Nothing was changed")
    site.say("  fix: " + site.again(f"everstep recover --thread {shlex.quote(thread)} --cut {found.mark}"))
    return INTEGRITY


def _cut(site: Site, thread: str, mark: str) -> int:
    from everstep_scheduler.recovery.mending import cut

    from ..cli import OK

    done = cut(site.redis, site.keys, thread, mark, _emit)
    indexes = "its indexes were made anew" if done.stray else "its indexes were right"
    gone = f"{done.removed:,} {'entry' if done.removed == 1 else 'entries'} taken out and printed"
    site.say(f"thread {show.clean(thread)}: {gone}; it stands at {done.upto}, {indexes}")
    return OK


def _emit(bad: Bad, fields: Mapping[bytes, bytes]) -> None:
    """An entry as it was stored, so that it can be added again: text, or base64 where it is none."""
    show.emit({"id": bad.id, "why": bad.why, "fields": [[_raw(name), _raw(value)] for name, value in fields.items()]})


def _raw(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
