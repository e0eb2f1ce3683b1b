"""Fairness: runs that say a key share a queue key by key, in turn, however many one key has. Pure.

    config={"configurable": {"fairness_key": "tenant-7"}}        or submit(..., fairness_key="tenant-7")

Of each key one job stands in the queue, the others wait for their key's turn (`lua/turns.lua`). It goes down to the
runs that the run's nodes call. Runs without a key stand in the queue each by itself, as if nobody had one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everstep_checkpoint.errors import InvalidInput

from .limits import KEY_MAX

FAIRNESS_KEY = "fairness_key"
BAR = "|"  # how a turn's gate begins, `|<key>|<queue>`


def fairness_key(configurable: Mapping[str, Any]) -> str:
    """Whose turn a run's tasks take, as its config says it: 1 to 200 printable characters without '|', or a whole
    number; empty: nobody's. Raises InvalidInput."""
    given = configurable.get(FAIRNESS_KEY)
    if given is None:
        return ""
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise InvalidInput(f"a {FAIRNESS_KEY} can't be {type(given).__name__}", fix="give a text, or a whole number")
    text = str(given)
    if len(text) > KEY_MAX or not text.isprintable() or BAR in text:
        raise InvalidInput(
            f"a {FAIRNESS_KEY} has at most {KEY_MAX} printable characters, none of them '|'", fix="use a hash of it"
        )
    return text


def turn_of(gate: str) -> tuple[str, str] | None:
    """The key and the queue of a turn's gate; None for a limit's."""
    if not gate.startswith(BAR):
        return None
    key, _, queue = gate[1:].partition(BAR)
    return key, queue
