"""The command line: its words, its options for all of them, its exit codes. What a word does is in `commands`.

    everstep [--url ...] WORD ...
      └─ Words finds WORD's module and imports it; `--help` imports none of them
      └─ main() turns an error into one line with its fix, and into an exit code; a warning into a line

Data goes to stdout, messages to stderr. A user's mistake never shows a traceback.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import click

from everstep_checkpoint import errors as x
from everstep_checkpoint.errors import DurabilityWarning, EverstepError

from . import COMPILED
from .site import DEFAULT_URL, Site

# word -> (its module under `commands`, what it does in a few words)
WORDS = {
    "demo": ("tours", "The tour: two graphs on three workers, one of which gets killed."),
    "dev": ("tours", "Workers that restart when you save, and every step as it happens."),
    "worker": ("serving", "Work on graphs until told to stop."),
    "submit": ("running", "Start a run; it is kept by Redis when this returns."),
    "result": ("running", "Wait for a run and print what it came to."),
    "state": ("reading", "Where a thread stands, or stood."),
    "history": ("reading", "What happened on a thread, step by step."),
    "log": ("reading", "The entries of a thread's log; --verify checks them."),
    "threads": ("reading", "Threads by status, the newest first."),
    "graphs": ("drawing", "The graphs that workers have published."),
    "draw": ("drawing", "A graph as Mermaid text, SVG or characters, drawn here."),
    "cancel": ("running", "Stop a run now; no step of it is committed after this."),
    "delete": ("running", "Forget a thread: its log, and those of the graphs that it called."),
    "resume": ("running", "Answer the question that a thread waits with."),
    "retry": ("running", "Let a failed run go on from its last step."),
    "fork": ("travelling", "A new thread with the state of another, as it was then or is now."),
    "rollback": ("travelling", "Go back to an earlier checkpoint; what came after stays in the history."),
    "diff": ("travelling", "What is different between two checkpoints."),
    "migrate": ("migrating", "Let runs go on whose nodes were renamed or taken away."),
    "recover": ("mending", "Rebuild every index and job from the logs; or mend one log."),
    "acl": ("guarding", "Redis users with the least rights, to be pasted."),
    "chaos": ("chaos", "Faults at random under a load, and a verdict: was anything lost?"),
    "bench": ("bench", "How fast it is here, beside a bare loop and its peers."),
    "doctor": ("serving", "Is all well? Each line says what to do if not."),
}

OK, FAILURE, USAGE, NOT_FOUND, CONFLICT, WAITING, UNREACHABLE, INTEGRITY = range(8)
INTERRUPTED = 130
EXITS: tuple[tuple[tuple[type[EverstepError], ...], int], ...] = (
    ((x.RunFailed,), FAILURE),  # first: it is what the node raised, too
    ((x.NotFound,), NOT_FOUND),
    ((x.Conflict, x.ThreadBusy, x.RunConflict, x.Superseded), CONFLICT),
    ((x.LogError,), INTEGRITY),
    ((x.ServerError,), UNREACHABLE),
    ((x.InputError,), USAGE),
)

GLOBAL = ("url", "namespace", "partition")
EXIT_CODES = """\b
Exit codes:
  0  ok                         4  conflict, or the thread is busy
  1  failure: a run failed      5  waiting: the run has not ended yet
  2  wrong usage or bad input   6  Redis is away, full or unsuitable
  3  no such thing              7  a log is not what it should be
"""
EPILOG = (
    f"{EXIT_CODES}\n"
    + """\b
First steps:
  everstep demo                                        see it work, nothing needed
  everstep dev MODULE:GRAPH                            your graph, live, on a Redis of its own
  everstep submit counting '{"count": 0}' --thread t1 --wait
"""
)


def _again(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    """The options for all words are understood behind the word, too."""
    if value is not None:
        site: Site = ctx.obj
        said = {"url": site.url, "namespace": site.namespace, "partition": site.partition} | {str(option.name): value}
        ctx.obj = Site(**said, given=site.given or option.name == "url")


class Words(click.Group):
    """The words in the order above. A word's module is imported when the word is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(WORDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in WORDS:
            return None
        found = getattr(import_module(f".commands.{WORDS[cmd_name][0]}", __package__), cmd_name)
        assert isinstance(found, click.Command)
        if not any(each.name == "url" for each in found.params):
            found.epilog = EXIT_CODES
            found.params += [
                click.Option([f"--{name}"], expose_value=False, hidden=True, callback=_again) for name in GLOBAL
            ]
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in WORDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], WORDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else " `everstep --help` lists the words."
            raise click.UsageError(f"there is no word {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Words"):
            formatter.write_dl([(word, what) for word, (_, what) in WORDS.items()])


@click.group(
    cls=Words,
    epilog=EPILOG,
    subcommand_metavar="WORD ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--url", envvar=["EVERSTEP_URL", "REDIS_URL"], default=DEFAULT_URL, metavar="URL",
    help=f"Redis. From EVERSTEP_URL, else REDIS_URL, else {DEFAULT_URL}.",
)  # fmt: skip
@click.option(
    "--namespace",
    envvar="EVERSTEP_NAMESPACE",
    default="everstep",
    metavar="NAME",
    help="What our keys begin with (everstep).",
)
@click.option("--partition", envvar="EVERSTEP_PARTITION", default="0", metavar="P", help="Which partition (0).")
@click.version_option(
    package_name="everstep",
    prog_name="everstep",
    message="%(prog)s, version %(version)s" + (", compiled" if COMPILED else ""),
)
@click.pass_context
def cli(ctx: click.Context, url: str, namespace: str, partition: str) -> None:
    """Durable graphs on the Redis you already have."""
    given = ctx.get_parameter_source("url") is not click.core.ParameterSource.DEFAULT
    ctx.obj = Site(url, namespace, partition, given=given)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line. Returns its exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_warned, warnings.showwarning)
            done = cli.main(args=args, prog_name="everstep", standalone_mode=False)
        sys.stdout.flush()
        return done if isinstance(done, int) else OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # who read us has gone; nothing is written any more, not even at exit. Click does the same inside a command
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except EverstepError as error:
        tell(error)
        return exit_code(error)


def _warned(
    others: Callable[..., None], said: Warning | str, category: type[Warning], *where: Any, **more: Any
) -> None:
    """What is not as durable as was asked for, on stderr, without a line of our source."""
    if issubclass(category, DurabilityWarning):
        click.echo(f"warning: {said}", err=True)
    else:
        others(said, category, *where, **more)


def tell(error: EverstepError, trace: Sequence[str] = ()) -> None:
    """What went wrong, where, in which lines of the user's code, and what to do: on stderr."""
    from . import show

    named = {"thread": error.thread, "checkpoint": error.checkpoint, "node": error.node}
    where = ", ".join(f"{name} {value}" for name, value in named.items() if value)
    what = "\n  ".join(show.clean(line) for line in error.what.rstrip(".").splitlines())
    click.echo(f"error: {what}" + (f" ({show.clean(where)})" if where else ""), err=True)
    for line in trace:
        click.echo(line, err=True)
    if error.fix:
        click.echo(f"  fix: {show.clean(error.fix)}", err=True)


def exit_code(error: EverstepError) -> int:
    """The exit code that goes with an error, as `--help` lists them."""
    return next((code for kinds, code in EXITS if isinstance(error, kinds)), FAILURE)
