"""A progress bar: rich's where it is installed and somebody watches, a plain one on a terminal, else a few lines."""

from __future__ import annotations

import importlib.util
from types import TracebackType
from typing import Any, Self

import click

from .. import show

WIDTH = 30
QUARTERS = 4


class Bar:
    """Counts to a total that is known later."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._rich: Any = _rich_bar(what) if show.watched() and importlib.util.find_spec("rich") is not None else None
        self._quarter = -1
        self._drawn = False

    def __enter__(self) -> Self:
        if self._rich is not None:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        elif self._drawn:
            click.echo()

    def at(self, done: int, total: int) -> None:
        """So many are done."""
        if self._rich is not None:
            self._rich.update(self._rich.task_ids[0], completed=done, total=total or None)
        elif show.watched():
            filled = WIDTH * done // total if total else 0
            click.echo(f"\r   [{'#' * filled}{'.' * (WIDTH - filled)}] {done:,}/{total:,} {self.what}", nl=False)
            self._drawn = True
        elif total and done * QUARTERS // total > self._quarter:
            self._quarter = done * QUARTERS // total
            click.echo(f"   {done:,}/{total:,} {self.what}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._rich is not None:
            self._rich.console.print(text, highlight=False, markup=False)
            return
        click.echo(f"\r{text:<{WIDTH + 40}}" if self._drawn else text)


def _rich_bar(what: str) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("  "), BarColumn(WIDTH), MofNCompleteColumn(), TextColumn(what), TimeElapsedColumn())
    made = Progress(*columns)
    made.add_task(what, total=None)
    return made
