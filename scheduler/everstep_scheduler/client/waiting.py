"""Waiting: what a run waits for, in words, for who waits for the run. Reads the indexes only."""

from __future__ import annotations

from typing import Any

import redis

from everstep_checkpoint.errors import InvalidInput
from everstep_checkpoint.keys import Keys

from ..graph.asking import CURRENT
from ..graph.fairness import turn_of
from ..moves.document import document

SHOWN_MAX = 3


def may_wait(what: str) -> None:
    """Raises InvalidInput in a node that runs on a worker: as many of them as slots would wait for ever."""
    asking = CURRENT.get()
    if asking is not None and asking.slotted:
        raise InvalidInput(
            f"a node on a worker can't wait for {what}: it would hold its slot meanwhile",
            fix="add the graph as a node, add_node(name, compiled), which holds none; or submit() and don't wait",
        )


def waiting_for(client: Any, keys: Keys, thread: str, run: str) -> str:
    """`node 'inc' waits in queue 'counter', where no worker listens`. Never raises."""
    try:
        return _told(client, keys, thread, run)
    except redis.RedisError as error:
        return f"Redis does not answer ({error})"
    except (ValueError, AttributeError, RecursionError):
        return "its indexes are not readable: `everstep recover` makes them anew"


def _told(client: Any, keys: Keys, thread: str, run: str) -> str:
    current, left = (x.decode() if x else "" for x in client.hmget(keys.thread(thread), "run", "left"))
    if not current:
        return "its indexes are being rebuilt"
    if current != run:
        return f"it is queued behind run {current!r}"
    _, records = client.hscan(keys.open(thread), 0, count=100)
    open_now = [document(stored) for stored in records.values()]
    shown = [rec for rec in open_now if rec.get("p") not in ("done", "stopped")]
    said = [_place(client, keys, rec) for rec in shown[:SHOWN_MAX]]
    more = int(left or 0) - len(said)
    return "; ".join(said or ["nothing that can be seen"]) + (f"; and {more} more" if more > 0 else "")


def _place(client: Any, keys: Keys, rec: dict[str, Any]) -> str:
    node, queue = f"node {rec.get('n')!r}", rec.get("q", "")
    match rec.get("p"):
        case "job":
            listens = client.scard(keys.rq_workers_of(queue))
            return f"{node} waits in queue {queue!r}" + ("" if listens else ", where no worker listens")
        case "lease":
            return f"{node} runs on {rec.get('o')} (attempt {rec.get('a')})"
        case "wake":
            return f"{node} waits for its next attempt"
        case "child":
            return f"{node} waits for its run on thread {str(rec.get('cl')).partition(' ')[2]!r}"
        case "line":
            if (turn := turn_of(str(rec.get("g")))) is not None:
                return f"{node} waits for the turn of fairness_key {turn[0]!r} in queue {turn[1]!r}"
            return f"{node} waits in line at the limit {rec.get('g')!r}"
        case "parked":
            return f"{node} is parked until a worker serves it"
        case place:
            return f"{node} is {place}"
