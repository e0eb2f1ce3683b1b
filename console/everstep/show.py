"""What people and programs read: tables, values, times; JSON. Rich where it is installed and somebody watches.

Text that comes from logs is shown with its control characters escaped: a log must not drive a terminal.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from datetime import time as clock_time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import click

if TYPE_CHECKING:
    from everstep_checkpoint.tagged import Tagged

INT_BITS_MAX = 14_000
COLOURS = {
    "running": "cyan", "queued": "cyan", "done": "green", "failed": "red", "lost": "yellow", "parked": "yellow",
    "interrupted": "yellow", "cancelled": "magenta", "ok": "green", "!": "yellow", "x": "red",
}  # fmt: skip
GAP = "  "
Row = Sequence[str]


# --- for programs ---


def emit(document: Any) -> None:
    """One JSON document on stdout; on one line, so that a series of them is NDJSON."""
    click.echo(json.dumps(jsonable(document), allow_nan=False, separators=(", ", ": ")))


def jsonable(value: Any) -> Any:
    """Any value that a log can hold as JSON: times as ISO text, bytes as base64, sets as lists, NaN as text; a model or
    dataclass as the object of its fields, a member of an Enum as its name."""
    match value:
        case None | bool() | str():
            return value
        case int():  # of more digits than Python turns into text: their own limit, against numbers that cost minutes
            return value if value.bit_length() <= INT_BITS_MAX else hex(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): jsonable(each) for key, each in _items(value)}
        case list() | tuple():
            return [jsonable(each) for each in cast("Sequence[Any]", value)]
        case set() | frozenset():
            return sorted((jsonable(each) for each in cast("set[Any]", value)), key=repr)
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case _:
            return _scalar(value)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items()  # type: ignore[no-any-return]


def _scalar(value: Any) -> Any:
    if isinstance(value, date | clock_time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID | Decimal):
        return str(value)
    if (tagged := _tagged(value)) is not None:
        return jsonable(tagged.fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # records of ours
        return {each.name: jsonable(getattr(value, each.name)) for each in dataclasses.fields(value)}
    return str(value)


def _tagged(value: object) -> Tagged | None:
    """A model, dataclass or Enum, read without its class. Imports its type only where values are: for no `--help`."""
    if not dataclasses.is_dataclass(value):
        return None
    from everstep_checkpoint.tagged import Tagged

    return value if isinstance(value, Tagged) else None


# --- for people ---


def table(headers: Row, rows: Iterable[Row], right: Iterable[str] = ()) -> None:
    """A table on stdout. `right`: headers of numbers. The last column takes what is left of the line."""
    lines = [list(map(clean, row)) for row in rows]
    numbers = {headers.index(name) for name in right}
    if watched() and importlib.util.find_spec("rich") is not None:
        _rich_table(headers, lines, numbers)
    else:
        _plain_table(headers, lines, numbers)


def _rich_table(headers: Row, rows: Sequence[Row], numbers: set[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, name in enumerate(headers):
        made.add_column(name, justify="right" if i in numbers else "left", no_wrap=i < len(headers) - 1)
    for row in rows:
        # cells never wrap: a row is a line, and what the last column has no room for is cut
        made.add_row(*(Text(cell, COLOURS.get(cell, ""), no_wrap=True, overflow="ellipsis") for cell in row))
    Console(highlight=False).print(made)


def _plain_table(headers: Row, rows: Sequence[Row], numbers: set[int]) -> None:
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        cells = [
            cell.rjust(w) if i in numbers else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo(fitted(GAP.join(cells).rstrip()))


def fitted(line: str) -> str:
    """The line as it fits a terminal; whole where nobody watches."""
    return line if not watched() or len(line) <= width() else line[: width() - 1] + "…"


def width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size().columns


def watched() -> bool:
    """Is stdout somebody's terminal?"""
    return sys.stdout.isatty()


def paint(text: str, word: str = "") -> str:
    """The text in the colour of a status word, where colours are wanted."""
    colour = COLOURS.get(word or text)
    plain = colour is None or not watched() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else click.style(text, fg=colour)


def clean(text: str) -> str:
    """One line of text that can't drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def word(text: str) -> str:
    """The same as one word of a line that is to be pasted into a shell."""
    return shlex.quote(clean(text))


def value(found: Any, most: int = 60) -> str:
    """A value in a few words: `[1, 2]`, `User {"name": "Ann"}`."""
    said = json.dumps(jsonable(found), ensure_ascii=False, allow_nan=False)
    tagged = _tagged(found)
    said = f"{tagged.name} {said}" if tagged is not None else said
    return clean(said if len(said) <= most else f"{said[: most - 1]}…")


def values(found: Mapping[str, Any], most: int = 60) -> str:
    """`count=5 done=true`."""
    return "  ".join(f"{clean(key)}={value(each, most)}" for key, each in found.items())


def changes(before: Mapping[str, Any], after: Mapping[str, Any], most: int = 60) -> str:
    """What is different, in a few words: `count=5  files +3  old gone`."""
    said: list[str] = []
    for key, new in after.items():
        old = before.get(key)
        if key in before and old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and old and new[: len(old)] == old:  # pyright: ignore
            said.append(f"{clean(key)} +{len(new) - len(old)}")  # pyright: ignore[reportUnknownArgumentType]
        else:
            said.append(f"{clean(key)}={value(new, most)}")
    return "  ".join([*said, *(f"{clean(key)} gone" for key in before if key not in after)])


def size(count: int) -> str:
    """Bytes for people."""
    return (
        f"{count:,} B"
        if count < 10_000
        else f"{count / 1024:,.0f} KB"
        if count < 10 * 2**20
        else f"{count / 2**20:,.0f} MB"
    )


def many(count: int, thing: str) -> str:
    """`1 task`, `2,000 tasks`."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def span(ms: float) -> str:
    """A length of time for people."""
    if ms < 1000:
        return f"{ms:.0f} ms" if ms >= 1 else "<1 ms"
    s = ms / 1000
    return (
        f"{s:.1f} s"
        if s < 100
        else f"{s / 60:.0f} min"
        if s < 6000
        else f"{s / 3600:.0f} h"
        if s < 360_000
        else f"{s / 86400:.0f} d"
    )


def moment(ms: int) -> str:
    """A moment of Redis' clock in local time; the day only if it was not today."""
    then = time.localtime(ms / 1000)
    form = "%H:%M:%S" if then[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M:%S"
    return f"{time.strftime(form, then)}.{ms % 1000:03d}"
