"""Durability: what a run is promised beyond the reply to each of its commits. Pure.

    commit       each step is stored before the next one begins; what Redis may lose of it is up to its settings
    fsync        the same, and it is on disk: only on a server with `appendfsync always`
    replicas=N   the same, and N replicas have received it

LangGraph's `sync`, `async` and `exit` promise at most what `commit` does, so they mean it.
"""

from __future__ import annotations

import re

from everstep_checkpoint.errors import InvalidInput

COMMIT = "commit"
FSYNC = "fsync"
REPLICAS_MAX = 99
_LANGGRAPHS = ("sync", "async", "exit")
_REPLICAS = re.compile(r"replicas=([1-9][0-9]?)")


def durability_of(given: object) -> str:
    """A durability as it is stored; empty where None says nothing. Raises InvalidInput for a word that is none."""
    if given is None:
        return ""
    if isinstance(given, str):
        if given in _LANGGRAPHS:
            return COMMIT
        if given in (COMMIT, FSYNC) or _REPLICAS.fullmatch(given):
            return given
    raise InvalidInput(
        f"no durability {given!r}",
        fix=f"choose among commit, fsync and replicas=N with N from 1 to {REPLICAS_MAX}; LangGraph's words mean commit",
    )


def replicas_of(durability: str) -> int:
    """How many replicas are to have each step; 0 for every other word, also for one that only later versions know."""
    found = _REPLICAS.fullmatch(durability)
    return int(found[1]) if found else 0
