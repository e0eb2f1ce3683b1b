"""The stage of the tour: a Redis of its own, workers beside us, and a calm way to print."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from .. import show
from ..crew import Crew
from ..embedded import EmbeddedServer
from ..site import Site
from .graphs import JOURNAL_ENV

TARGETS = ("everstep.demo.graphs:counting", "everstep.demo.graphs:reading")
CONCURRENCY = 2  # the files are read by Python code: more at once would not be faster
LABEL = 24


class Stage:
    """Server and workers for as long as the tour goes on."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.server = EmbeddedServer()
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        began = time.monotonic()
        with ExitStack() as ending:
            ending.enter_context(self.server)
            self.site = Site(self.server.url)
            self.journal = self.server.folder / "journal"
            options = ("--processes", str(self.workers), "--concurrency", str(CONCURRENCY), "--grace", "2", "--quiet")
            self.crew = Crew(
                self.server.url,
                TARGETS,
                options,
                out=self.server.folder / "workers",
                env={JOURNAL_ENV: str(self.journal)},
            )
            self.crew.start()
            ending.callback(self.crew.stop)
            self.crew.await_ready(self.site, self.workers, len(TARGETS))
            self._ending = ending.pop_all()
        info = self.site.redis.info("server")
        name = info.get("server_name", "redis")
        self.head(f"everstep demo: {name} {info[f'{name}_version']} of its own, {self.workers} worker processes")
        self.line("ready after", show.span((time.monotonic() - began) * 1000))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    @property
    def shown_socket(self) -> Path:
        return self.server.socket

    # what is printed

    def say(self, text: str = "") -> None:
        click.echo(text)

    def head(self, text: str) -> None:
        click.echo(click.style(text, bold=True) if show.watched() else text)

    def part(self, number: int, text: str) -> None:
        click.echo()
        self.head(f"{number}. {text}")

    def line(self, label: str, text: str) -> None:
        click.echo(f"   {label:<{LABEL}}{text}")

    def check(self, kept: bool, said: str, otherwise: str) -> bool:
        """A promise, and whether it was kept."""
        click.echo(f"   {show.paint('ok' if kept else 'x'):<2} {said if kept else otherwise}")
        return kept

    def stay(self) -> None:
        """Until Ctrl-C."""
        self.say(f"\nServer and workers stay up until Ctrl-C:  export EVERSTEP_URL={self.server.url}")
        try:
            while self.crew.ended is None and self.server.running:
                time.sleep(0.5)
        except KeyboardInterrupt:
            self.say("\nended")
