"""What this server lets a run be promised: the part of `everstep doctor` that says it word by word.

INFO, CONFIG GET ──► one line each for `commit`, `fsync` and `replicas=N`       docs/guarantees.md has them all
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from everstep_scheduler.moves.promises import counted, fsync_lacks, replicas_in

from .finding import OK, Finding, Look

SURVIVES = "commit: lives through the death of every worker and caller"


def promised(look: Look) -> Iterator[Finding]:
    """The table for this server. None of it is a fault: who asks for what can't be kept is refused."""
    lacks = fsync_lacks(look.redis)
    for line in (_commit(look.info, lacks), _fsync(lacks), _replicas(replicas_in(look.info))):
        yield Finding(OK, "promise", line)


def _commit(info: dict[str, Any], lacks: str) -> str:
    if not info.get("aof_enabled"):
        return f"{SURVIVES}; the death of Redis, a power cut or a failover takes back all since its last dump"
    cut = "a power cut takes nothing" if not lacks else f"a power cut may take back the last moments ({lacks})"
    return f"{SURVIVES} and of Redis; {cut}; a failover takes back what replicas had not received"


def _fsync(lacks: str) -> str:
    return f"fsync: refused here: {lacks}" if lacks else "fsync: kept; a power cut takes nothing"


def _replicas(have: int) -> str:
    if not have:
        return "replicas=N: refused here: no replica is connected"
    return f"replicas=N: up to {have}, {counted(have)} connected; a failover to one that has it takes nothing"
