"""state, history, log, threads: what is there. Nothing here changes anything; no graph's code is needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from .. import show
from ..site import Site

if TYPE_CHECKING:
    from ..entries import Shown
    from ..history import Line, Trouble

PAGE = 256
TROUBLES_MAX = 12
BY = 5  # the column
KEPT = "kept by the node that called its graph, and moves with that node's thread only"
STATUSES = ("running", "done", "failed", "interrupted", "cancelled")
as_json = click.option("--json", "as_json", is_flag=True, help="For programs: JSON with stable keys.")


@click.command()
@click.argument("thread")
@click.option("--checkpoint", metavar="ID", help="As it stood at this checkpoint (`everstep history` lists them).")
@as_json
@click.pass_obj
def state(site: Site, thread: str, checkpoint: str | None, as_json: bool) -> None:
    """Where THREAD stands: its values, what comes next, what failed."""
    from everstep_checkpoint.keys import is_within
    from everstep_checkpoint.log import unknown_thread
    from everstep_scheduler.reading.joins import UnmetJoin
    from everstep_scheduler.reading.snapshot import snapshot

    with site.open():
        if site.log.head(thread) is None:
            raise unknown_thread(thread)
        found = snapshot(site.log, thread, checkpoint)
        status = _status(site, thread)
    at = found.config["configurable"].get("checkpoint_id", "")
    step = (found.metadata or {}).get("step")
    errors = [{"node": x.name, "error": x.error, "traceback": x.traceback} for x in found.tasks if x.error]
    questions = [
        {"id": each.id, "node": task.name, "value": each.value, "response_schema": each.response_schema}
        for task in found.tasks
        for each in task.interrupts
    ]
    unmet: list[dict[str, Any]] = (found.metadata or {}).get("unmet_joins", [])
    if as_json:
        return show.emit(
            {
                "thread": thread, "status": status, "checkpoint_id": at, "step": step, "created_at": found.created_at,
                "values": found.values, "next": found.next, "errors": errors, "interrupts": questions,
                "metadata": found.metadata or {},
            }
        )  # fmt: skip
    from everstep_scheduler.graph.schema import as_dict

    from ..history import counted
    from ..traces import excerpt

    status = KEPT if is_within(thread) else status
    rows = [("status", status if checkpoint is None else "(an earlier checkpoint)"), ("checkpoint", at or "none yet")]
    rows += [("step", str(step)), ("next", ", ".join(counted(found.next)) or "nothing"), ("at", found.created_at or "")]
    for name, text in rows:
        click.echo(f"{name:<12}{show.paint(show.clean(text))}")
    for error in errors:
        click.echo(show.paint(f"{'failed':<12}{show.clean(error['node'])}: {show.clean(error['error'] or '')}", "x"))
        for line in excerpt(error["traceback"]):
            click.echo(f"{'':10}{line}")
    for each in questions:
        click.echo(show.paint(f"{'asks':<12}{show.clean(each['node'])}: {show.value(each['value'], 500)}", "!"))
        if not is_within(thread):
            click.echo(f"{'':<12}everstep resume {show.word(thread)} ANSWER --id {each['id']}")
    for join in unmet:
        said = UnmetJoin(join["target"], tuple(join["starts"]), tuple(join["missing"]))
        click.echo(show.paint(f"{'unmet join':<12}{show.clean(str(said))}", "!"))
    values = as_dict(found.values)
    for key, value in ({"returned": found.values} if values is None else values).items():
        click.echo(f"  {show.clean(key)} = {show.value(value, 2000)}")
    return None


def _status(site: Site, thread: str) -> str:
    """What the index says; empty where it was lost and nobody has rebuilt it yet."""
    found: Any = site.redis.hget(site.keys.thread(thread), "status")
    return found.decode() if found else ""


# --- history ---


@click.command()
@click.argument("thread")
@click.option(
    "-n", "most", type=click.IntRange(1, 10_000), default=50, metavar="N", help="The last N checkpoints (50)."
)
@click.option("--traceback", "trace", is_flag=True, help="Below it, the whole traceback of each attempt that failed.")
@as_json
@click.pass_obj
def history(site: Site, thread: str, most: int, trace: bool, as_json: bool) -> None:
    """What happened on THREAD, oldest first: each checkpoint, and each attempt that failed, was lost or parked."""
    from ..history import lines

    with site.open():
        found = lines(site.log, thread, most)
        status = _status(site, thread)
    *closed, now = found
    if as_json:
        return show.emit(
            {"thread": thread, "status": status, "checkpoints": [_document(x) for x in closed], "open": _document(now)}
        )
    heads = ("step", "checkpoint", "source", "node", "next", "by", "try", "took", "changed")
    rows = [row for line in closed for row in (*map(_trouble_row, line.troubles[-TROUBLES_MAX:]), _row(line))]
    rows += [*map(_trouble_row, now.troubles[-TROUBLES_MAX:])]
    rows += [_row(now)] if now.next and (status in ("running", "") or now.effects) else []
    show.table(heads, _without_host(rows), right=("step", "try", "took"))
    if trace:
        _show_traces([trouble for line in found for trouble in line.troubles[-TROUBLES_MAX:]])
    site.say(_summary(thread, status, now, trace))
    for join in closed[-1].unmet if closed and not now.next else ():
        site.say(show.paint(f"  {show.clean(str(join))}", "!"))
    return None


def _show_traces(troubles: list[Trouble]) -> None:
    from ..traces import whole

    for each in troubles:
        if each.traceback:
            click.echo(f"\n{show.clean(each.node)}, try {each.attempt}, {show.moment(each.at)}")
            click.echo("\n".join(whole(each.traceback)))


def _without_host(rows: list[list[str]]) -> list[list[str]]:
    """Workers named without their host where all are on one."""
    hosts = {row[BY].rpartition(".")[0].rpartition(".")[0] for row in rows if "." in row[BY]}
    if len(hosts) == 1:
        for row in rows:
            row[BY] = row[BY].removeprefix(f"{min(hosts)}.")
    return rows


def _row(line: Line) -> list[str]:
    by = worker(line.by[0]) if len(line.by) == 1 else f"{len(line.by)} workers" if line.by else ""
    took = show.span(line.ms) if line.attempt else ""
    step = "" if line.step is None else str(line.step)
    changed = (
        show.changes(line.before, line.values) if line.id else f"{', '.join(line.nodes)} done" if line.nodes else ""
    )
    tries = str(line.attempt) if line.attempt else ""
    if line.effects:
        changed = f"{changed}; did {', '.join(line.effects)}".removeprefix("; ")
    return [step, line.id, line.source, ", ".join(line.nodes), ", ".join(line.next), by, tries, took, changed]


def _trouble_row(trouble: Trouble) -> list[str]:
    tries = str(trouble.attempt) if trouble.attempt else ""
    took = show.span(trouble.ms) if trouble.ms else ""
    return ["", "", trouble.what, trouble.node, "", worker(trouble.by), tries, took, trouble.error]


def worker(name: str) -> str:
    """A worker's name without what all of them share."""
    return name.removeprefix("everstep.").removeprefix("everstep-")


def _document(line: Line) -> dict[str, Any]:
    return {
        "checkpoint_id": line.id or None, "step": line.step, "source": line.source, "run": line.run,
        "nodes": line.nodes, "next": line.next, "by": line.by, "attempt": line.attempt, "ms": line.ms,
        "at_ms": line.at or None,
        "changed": line.changed if line.id else {}, "values": line.values if line.id else None,
        "effects": line.effects,
        "attempts": [vars(trouble) for trouble in line.troubles],
        "unmet_joins": [join.document() for join in line.unmet],
    }  # fmt: skip


def _asks(now: Line) -> bool:
    """Does a question wait for its answer?"""
    told = [each.what for each in now.troubles]
    return told.count("asks") > told.count("answered")


def _summary(thread: str, status: str, now: Line, traced: bool) -> str:
    from everstep_checkpoint.keys import is_within

    word = status or (KEPT if is_within(thread) else "no index; a worker or `everstep recover` rebuilds it")
    said = f"thread {show.clean(thread)}: {show.paint(word, status)}"
    match status:
        case "failed":
            failed = [x for x in now.troubles if x.what == "failed" and x.node][-3:]
            errors = "".join(f"\n  {show.clean(x.node)}: {show.clean(x.error)}" for x in failed)
            more = "" if traced or not any(x.traceback for x in failed) else " (--traceback shows where it was raised)"
            return f"{said}{errors}\n  fix: mend the cause{more}, then: everstep retry {show.word(thread)}"
        case "interrupted" if _asks(now):
            name = show.word(thread)
            return f"{said}\n  fix: everstep resume {name} ANSWER; everstep state {name} shows what is asked"
        case "interrupted" | "cancelled":
            return f"{said}\n  fix: everstep retry {show.word(thread)} lets it go on"
        case _:
            return said


# --- log ---


@click.command()
@click.argument("thread")
@click.option("-n", "most", type=click.IntRange(1), metavar="N", help="The last N entries (all).")
@click.option("--follow", "-f", is_flag=True, help="Go on with each new entry, until Ctrl-C.")
@click.option("--values", is_flag=True, help="Show values, not their sizes.")
@click.option(
    "--verify", is_flag=True, help="Check each entry, sum and digest instead; exit code 7 if something is wrong."
)
@as_json
@click.pass_obj
def log(
    site: Site, thread: str, most: int | None, follow: bool, values: bool, verify: bool, as_json: bool
) -> int | None:
    """The entries of THREAD's log. With --json one document a line."""
    from everstep_checkpoint.log import unknown_thread

    with site.open():
        if not site.redis.exists(site.keys.log(thread)):
            raise unknown_thread(thread)
        if verify:
            return _verify(site, thread, as_json)
        for entry in _entries(site, thread, most, follow=follow, values=values):
            show.emit(entry.document()) if as_json else click.echo(entry.text())
    return None


def _entries(site: Site, thread: str, most: int | None, *, follow: bool, values: bool) -> Iterator[Shown]:
    from ..entries import shown

    key, last, signer = site.keys.log(thread), b"0-0", site.log.signer
    check = partial(signer.check, thread) if signer is not None else bool
    for last, raw in _tail(site, key, most) if most else _all(site, key):
        yield shown(last, raw, values=values, check=check)
    while follow:
        answer: Any = site.redis.xread({key: last}, count=PAGE, block=1000)
        for last, raw in answer[0][1] if answer else ():
            yield shown(last, raw, values=values, check=check)


def _tail(site: Site, key: str, most: int) -> list[Any]:
    found: Any = site.redis.xrevrange(key, count=most)
    return list(reversed(found))


def _all(site: Site, key: str) -> Iterator[Any]:
    start = "-"
    while page := site.redis.xrange(key, start, "+", PAGE):
        yield from page
        start = f"({page[-1][0].decode()}"


def _verify(site: Site, thread: str, as_json: bool) -> int:
    from everstep_checkpoint.replay import verify

    from ..cli import INTEGRITY, OK

    report = verify(site.log, thread)
    if as_json:
        show.emit(vars(report) | {"sound": report.sound})
        return OK if report.sound else INTEGRITY
    for problem in report.problems:
        click.echo(f"{show.paint('x')} {show.clean(problem)}")
    click.echo(
        f"{report.entries} entries, {report.checkpoints} checkpoints: {'sound' if report.sound else 'NOT SOUND'}"
    )
    if not report.sound:
        fix = site.again(f"everstep recover --thread {quote(thread)}")
        site.say(f"  fix: {fix} shows what can be done; the log was left as it is")
    return OK if report.sound else INTEGRITY


# --- threads ---


@click.command()
@click.option("--status", type=click.Choice(STATUSES), help="Only those.")
@click.option("-n", "most", type=click.IntRange(1, 100_000), default=50, metavar="N", help="At most N (50).")
@as_json
@click.pass_obj
def threads(site: Site, status: str | None, most: int, as_json: bool) -> None:
    """Threads, those that changed last come first. With --json one document a line."""
    with site.open():
        found = [info._asdict() for info in site.client.threads(status, most)]
    if as_json:
        for each in found:
            show.emit(each)
        return
    rows = [
        [x["thread_id"], x["status"], x["graph"], str(x["step"]), str(x["open_tasks"]), show.moment(x["since_ms"])]
        for x in found
    ]
    if rows:
        show.table(("thread", "status", "graph", "step", "open", "since"), rows, right=("step", "open"))
    else:
        site.say(f"no {status + ' ' if status else ''}threads; everstep submit GRAPH INPUT starts one")
