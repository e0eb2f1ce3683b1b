"""What a node says while it runs: the writer that `runtime.stream_writer` is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

StreamWriter = Callable[[Any], None]


def unheard(_said: Any) -> None:
    """The writer of a node that nobody listens to."""
