"""submit, result, resume, retry, cancel: what begins and ends runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from .. import show
from ..following import Following, follows
from ..site import Site

if TYPE_CHECKING:
    from everstep_checkpoint.errors import RunError
    from everstep_scheduler.client.client import Run
    from everstep_scheduler.moves.contract import Mode

as_json = click.option(
    "--json", "as_json", is_flag=True, help="For programs: one JSON document with thread, run, status, output, error."
)
waits = click.option("--wait", is_flag=True, help="Wait, and print what it came to.")
timeout_s = click.option(
    "--timeout", type=click.FloatRange(0), metavar="S", help="Wait so long at most (for ever); then exit code 5."
)


@click.command()
@click.argument("graph")
@click.argument("given", metavar="INPUT")
@click.option("--thread", "-t", metavar="T", help="On this thread (a new one, named after the run).")
@click.option("--run", "-r", metavar="R", help="Its id: the same again attaches to it, and starts nothing twice.")
@click.option(
    "--if-busy", type=click.Choice(["enqueue", "reject", "interrupt", "rollback"]), default="enqueue",
    help="If a run is under way: wait behind it, exit with code 4, stop it and begin, or undo it and begin (enqueue).",
)  # fmt: skip
@click.option(
    "--durability", metavar="WORD",
    help="What each step is promised: commit, fsync or replicas=N (what the graph says).",
)  # fmt: skip
@click.option("--fairness-key", metavar="K", help="Keys take turns in a queue, however many runs one has.")
@waits
@follows
@timeout_s
@as_json
@click.pass_obj
def submit(
    site: Site,
    graph: str,
    given: str,
    thread: str | None,
    run: str | None,
    if_busy: Mode,
    durability: str | None,
    fairness_key: str | None,
    wait: bool,
    follow: bool,
    mode: str | None,
    subgraphs: bool,
    timeout: float | None,
    as_json: bool,
) -> int | None:
    """Start a run of GRAPH. INPUT is JSON, @FILE, or - for stdin; it is checked before anything is written.

    With --mode custom or messages its nodes are heard by whoever follows, here or later.

    \b
    everstep submit counting '{"count": 0, "done": false}' --thread demo --wait
    everstep submit counting '{"count": 0, "done": false}' --follow --mode updates,custom
    """
    data, following = given_json(given), Following.of(follow, mode, subgraphs)
    with site.open():
        made = site.client.submit(
            graph,
            data,
            thread_id=thread,
            run_id=run,
            multitask_strategy=if_busy,
            actor="cli",
            durability=durability,
            fairness_key=fairness_key,
            **following.asked,
        )
        return _come_to(site, made, wait or timeout is not None, timeout, as_json, following=following)


def given_json(given: str, what: str = "INPUT") -> Any:
    """The input as the user gave it. Raises UsageError."""
    try:
        text = sys.stdin.read() if given == "-" else Path(given[1:]).read_text() if given.startswith("@") else given
    except OSError as error:
        raise click.UsageError(f"{what} can't be read: {given[1:] or 'stdin'}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{what} can't be read: {given.lstrip('@')} is no UTF-8 text: {error.reason}") from None
    try:
        return json.loads(text)
    except ValueError as error:
        example = "'\"yes\"', 'true'" if what == "ANSWER" else "'{\"count\": 0}'"
        raise click.UsageError(f"{what} is no JSON: {error}. Quote it for the shell: {example}") from None


@click.command()
@click.argument("thread")
@click.option("--run", "-r", metavar="R", help="This run (the last one).")
@follows
@click.option("--after", metavar="CURSOR", help="With --follow: behind this event; --json shows the cursors.")
@timeout_s
@click.option("--traceback", "trace", is_flag=True, help="If a node failed, show its whole traceback.")
@as_json
@click.pass_obj
def result(
    site: Site,
    thread: str,
    run: str | None,
    follow: bool,
    mode: str | None,
    subgraphs: bool,
    after: str | None,
    timeout: float | None,
    trace: bool,
    as_json: bool,
) -> int | None:
    """Wait for the last run on THREAD, and print its output as JSON; or where and why it failed. With --follow also
    what happens, from the run's beginning on; with --json then one document a line.

    \b
    everstep result demo --follow --mode updates,custom --subgraphs
    """
    if not follow and (mode or subgraphs or after):
        raise click.UsageError("--mode, --subgraphs and --after go with --follow")
    following = Following.of(follow, mode, subgraphs, after)
    with site.open():
        return _come_to(site, site.client.run(thread, run), True, timeout, as_json, trace, following)


@click.command()
@click.argument("thread")
@click.option("--run", "-r", metavar="R", help="Only if this is still the thread's last run.")
@waits
@follows
@timeout_s
@as_json
@click.pass_obj
def retry(
    site: Site,
    thread: str,
    run: str | None,
    wait: bool,
    follow: bool,
    mode: str | None,
    subgraphs: bool,
    timeout: float | None,
    as_json: bool,
) -> int | None:
    """Let THREAD go on where its last run failed or was cancelled. What is done is not done again."""
    following = Following.of(follow, mode, subgraphs)
    with site.open():
        made = site.client.retry(thread, run, **following.asked)
        return _come_to(site, made, wait or timeout is not None, timeout, as_json, following=following)


@click.command()
@click.argument("thread")
@click.argument("answer", metavar="[ANSWER]", required=False)
@click.option("--id", "question", metavar="ID", help="The question it answers, if several wait.")
@click.option("--update", "-u", metavar="JSON", help="Keys to write to the state as it stands, by their reducers.")
@click.option("--goto", "-g", metavar="NODE", multiple=True, help="A node to run beside what is open; several times.")
@click.option("--run", "-r", metavar="R", help="Id of the run that goes on: the same again attaches to it.")
@waits
@follows
@timeout_s
@as_json
@click.pass_obj
def resume(
    site: Site,
    thread: str,
    answer: str | None,
    question: str | None,
    update: str | None,
    goto: tuple[str, ...],
    run: str | None,
    wait: bool,
    follow: bool,
    mode: str | None,
    subgraphs: bool,
    timeout: float | None,
    as_json: bool,
) -> int | None:
    """Answer the question that THREAD waits with. ANSWER is JSON, @FILE, or - for stdin. With --update or --goto it
    can be left out, and the thread may be done: the state changes where it stands, and the nodes run there.

    \b
    everstep state demo                        shows the questions and their ids
    everstep resume demo '{"approved": true}' --wait
    everstep resume demo --update '{"amount": 3}' --goto review --wait
    """
    if answer is None and (question is not None or not (update or goto)):
        raise click.UsageError("give an ANSWER, or --update or --goto")
    data = given_json(answer, "ANSWER") if answer is not None else None
    changes, following = (
        given_json(update, "--update") if update is not None else None,
        Following.of(follow, mode, subgraphs),
    )
    with site.open():
        said = data if question is None else {question: data}
        made = site.client.resume(thread, said, update=changes, goto=goto, run_id=run, actor="cli", **following.asked)
        return _come_to(site, made, wait or timeout is not None, timeout, as_json, following=following)


@click.command()
@click.argument("thread")
@click.option("--run", "-r", metavar="R", help="This run, also a queued one (the one under way).")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document.")
@click.pass_obj
def cancel(site: Site, thread: str, run: str | None, as_json: bool) -> None:
    """Stop the run under way on THREAD. When this returns, nothing of it is committed any more."""
    with site.open():
        stopped = site.client.cancel(thread, run, actor="cli")
    if as_json:
        show.emit({"thread": thread, "cancelled": stopped})
    else:
        said = "cancelled; `everstep retry` lets it go on" if stopped else "nothing to cancel: it was at rest"
        site.say(f"thread {show.clean(thread)}: {said}")


@click.command()
@click.argument("thread")
@click.option("--cancel", "stop", is_flag=True, help="Also where a run is under way: cancel it first.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document.")
@click.pass_obj
def delete(site: Site, thread: str, stop: bool, yes: bool, as_json: bool) -> None:
    """Forget THREAD: its log, its indexes, and the threads that its tasks called. Nothing brings it back."""
    if not yes and (as_json or not sys.stdin.isatty()):
        raise click.UsageError("nobody can be asked here; say --yes")
    if not yes:
        click.confirm(f"Forget thread {show.clean(thread)} and its history for good?", abort=True, err=True)
    with site.open():
        site.client.delete(thread, cancel=stop)
    if as_json:
        show.emit({"thread": thread, "deleted": True})
    else:
        site.say(f"thread {show.clean(thread)}: deleted")


def _come_to(
    site: Site,
    run: Run,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    trace: bool = False,
    following: Following | None = None,
) -> int | None:
    """Say which run it is; wait for it, or follow it, if asked, and print what it came to."""
    from everstep_checkpoint.errors import RunError

    from ..cli import WAITING

    said = {"thread": run.thread_id, "run": run.run_id}
    follows_now = following is not None and following.follow
    if not wait and not follows_now:
        status = run.status()
        show.emit({**said, "status": status}) if as_json else click.echo(
            f"thread {show.clean(run.thread_id)}  run {run.run_id}  {status}"
        )
        return None
    try:
        if following is not None and follows_now:
            following.tell(site, run, timeout, as_json)
        output = run.result(timeout)
    except RunError as error:  # first: a node's own TimeoutError is both
        return _failed(said | {"status": run.status()}, error, as_json, trace)
    except TimeoutError as error:
        return _waiting(site, said | {"status": run.status()}, str(error), as_json)
    status = run.status()
    show.emit({**said, "status": status, "output": output} if as_json else output)
    if status == "interrupted":
        thread = show.clean(run.thread_id)
        asks = "__interrupt__" in output
        site.say(
            f"the run waits for an answer; `everstep resume {quote(thread)} ANSWER` gives one"
            if asks
            else f"the run stopped at a breakpoint; `everstep retry {quote(thread)}` lets it go on"
        )
        return WAITING
    return None


def _failed(said: dict[str, Any], error: RunError, as_json: bool, trace: bool) -> int:
    """Say why the run failed: the user's lines of the traceback, or all of it if asked; always all of it in JSON."""
    from .. import traces
    from ..cli import exit_code, tell

    stored = str(getattr(error, "traceback", ""))
    if as_json:
        kind = getattr(error, "error_type", "")
        told = {"error": error.what, "error_type": kind, "node": error.node, "fix": error.fix, "traceback": stored}
        show.emit(said | told)
        return exit_code(error)
    lines = traces.whole(stored) if trace else traces.excerpt(stored)
    if stored and not trace:
        error.fix += f"; `everstep result {quote(error.thread or '')} --traceback` shows all of it"
    tell(error, lines)
    return exit_code(error)


def _waiting(site: Site, said: dict[str, Any], why: str, as_json: bool) -> int:
    from ..cli import WAITING

    if as_json:
        show.emit({**said, "waiting_for": why})
    else:
        site.say(f"not yet: {show.clean(why)}")
        again = f"everstep result {quote(said['thread'])} --run {quote(said['run'])}"
        site.say(f"  fix: {again} goes on waiting; everstep doctor says whether workers are there")
    return WAITING
