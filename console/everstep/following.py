"""Following a run from the command line: what happens, a line each, as it happens; for programs a document a line.

everstep result demo --follow --mode updates,custom      everstep submit ... --follow
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from . import show
from .site import Site

if TYPE_CHECKING:
    from everstep_scheduler.client.client import Run
    from everstep_scheduler.client.events import Event

USUAL = ("updates",)
TOLD_MAX = 2000  # characters of a chunk that people see
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Following:
    """What somebody wants to be told of a run. `follow`: here and now; else its nodes are to be heard in these modes by
    whoever follows later."""

    follow: bool = False
    modes: Sequence[str] = ()
    subgraphs: bool = False
    after: str = ""

    @classmethod
    def of(cls, follow: bool, mode: str | None, subgraphs: bool, after: str | None = None) -> Following:
        """From the options. Raises InvalidInput for a mode that does not exist."""
        from everstep_scheduler.reading.shapes import check_modes

        modes = check_modes([each.strip() for each in mode.split(",") if each.strip()]) if mode else ()
        return cls(follow, modes or (USUAL if follow else ()), subgraphs, after or "")

    @property
    def asked(self) -> dict[str, Any]:
        """What is said of it when a run begins."""
        return {"stream_mode": self.modes, "subgraphs": self.subgraphs}

    def tell(self, site: Site, run: Run, timeout: float | None, as_json: bool) -> None:
        """Tell what happens, to the run's end. Raises as `Run.events` does; who stops it is told how to go on."""
        printer, cursor = Printer(as_json), self.after
        try:
            for event in run.events(self.modes, after=self.after, timeout=timeout, subgraphs=self.subgraphs):
                printer.tell(event)
                cursor = event.cursor
        except KeyboardInterrupt:
            printer.end()
            site.say(f"the run goes on; to follow it from here: {self._again(run, cursor)}")
            raise
        finally:
            printer.end()

    def _again(self, run: Run, cursor: str) -> str:
        words = ["everstep", "result", show.clean(run.thread_id), "--run", run.run_id, "--follow"]
        words += ["--mode", ",".join(self.modes), *(["--subgraphs"] if self.subgraphs else [])]
        return " ".join(map(quote, [*words, *(["--after", cursor] if cursor else [])]))


@dataclass
class Printer:
    """Prints events; the tokens of one message on one line."""

    as_json: bool
    _speaking: tuple[Any, ...] = field(default=())

    def tell(self, event: Event) -> None:
        """Print one event."""
        if self.as_json:
            return show.emit(event._asdict())
        token = _token(event) if event.mode == "messages" else None
        if token is None:
            self.end()
            head = f"{' '.join(event.ns)}  " if event.ns else ""
            word = "x" if event.mode in ("superseded", "gap", "rewound", "trimmed") else event.mode
            return click.echo(f"{show.clean(head)}{show.paint(event.mode, word)}  {show.value(event.chunk, TOLD_MAX)}")
        who, text = (event.ns, event.task, event.attempt, token[0]), token[2]
        if who != self._speaking:
            self.end()
            click.echo(f"{show.clean(' '.join((*event.ns, token[1])))}: ", nl=False)
            self._speaking = who
        return click.echo(show.clean(text), nl=False)

    def end(self) -> None:
        """No more of the message that is under way."""
        if self._speaking:
            click.echo()
        self._speaking = ()


def _token(event: Event) -> tuple[str, str, str] | None:
    """(id, node, text) of a message, or a piece of one; None for what has no text."""
    message, metadata = event.chunk
    said = getattr(message, "fields", message)  # one of a class that is not at hand is plain data
    found = cast("dict[str, Any]", said if isinstance(said, dict) else vars(message))
    text = found.get("content")
    if not isinstance(text, str):
        return None
    return str(found.get("id")), str(metadata.get("langgraph_node", "")), text


def follows(command: Command) -> Command:
    """The options `--follow`, `--mode`, `--subgraphs` for a command."""
    for option in (
        click.option("--subgraphs", is_flag=True, help="Also what happens in graphs that are nodes, at any depth."),
        click.option(
            "--mode", "-m", metavar="MODES",
            help="What is told, with commas between (updates): values, updates, checkpoints, tasks, debug, custom, "
            "messages. The last two are heard of runs that were begun with them.",
        ),
        click.option("--follow", "-f", is_flag=True, help="Tell what happens, as it happens, to the run's end."),
    ):  # fmt: skip
        command = option(command)
    return command


__all__ = ["Following", "follows"]
