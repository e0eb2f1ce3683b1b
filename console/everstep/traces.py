"""A traceback of a worker's, as people want it: the user's lines of it at once, the whole of it on request.

It comes from the log as text, perhaps of another machine: nothing is looked up, and control characters are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import show

FRAMES_MAX = 3
BEGIN = "Traceback (most recent call last):"
_FRAME = re.compile(r'  File "(?P<path>.*)", line \d+, in ')
_OURS = re.compile(r"[/\\]everstep_(?:scheduler|workers|checkpoint)[/\\]")
_OTHERS = re.compile(r"[/\\](?:site-packages|dist-packages)[/\\]|[/\\]lib[/\\]python3[^/\\]*[/\\]|^<frozen ")


def excerpt(traceback: str) -> list[str]:
    """The last places in the user's code, each with its line: at most three. Empty where none of them is the user's."""
    frames = list(_frames(traceback.rpartition(BEGIN)[2]))
    theirs = [lines for path, lines in frames if not _OURS.search(path)]
    own = [lines for path, lines in frames if not _OURS.search(path) and not _OTHERS.search(path)]
    found = own or theirs[-1:]  # an installed package may be the user's own
    return [line for lines in found[-FRAMES_MAX:] for line in lines]


def whole(traceback: str) -> list[str]:
    """All its lines."""
    return [show.clean(line) for line in traceback.rstrip("\n").split("\n")] if traceback else []


def _frames(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each place: its path; the place, and the line of code if the traceback has it."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if (found := _FRAME.match(line)) is None:
            continue
        code = lines[i + 1] if i + 1 < len(lines) else ""
        told = [line, code] if code.startswith("    ") else [line]
        yield found["path"], [show.clean(each) for each in told]
