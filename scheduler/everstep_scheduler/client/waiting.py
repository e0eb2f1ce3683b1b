"""Waiting: what a run waits for, in words, for who waits for the run. Reads the indexes only."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import redis

from everstep_checkpoint.errors import InvalidInput
from everstep_checkpoint.keys import Keys

from ..graph.asking import CURRENT
from ..graph.fairness import turn_of
from ..moves.document import document

SHOWN_MAX = 3
ALIKE = ("n", "p", "q", "g", "o", "a", "cl")  # of tasks of which all these are the same one is told


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
        return f"it is queued behind run {current!r}, of which {waiting_for(client, keys, thread, current)}"
    _, records = client.hscan(keys.open(thread), 0, count=100)
    open_now = [document(stored) for stored in records.values()]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for rec in open_now:
        if rec.get("p") not in ("done", "stopped"):
            groups.setdefault(tuple(str(rec.get(field)) for field in ALIKE), []).append(rec)
    shown = list(groups.values())[:SHOWN_MAX]
    said = [_place(client, keys, alike[0], len(alike)) for alike in shown]
    more = int(left or 0) - sum(map(len, shown))
    return "; ".join(said or ["nothing that can be seen"]) + (f"; and {more} more" if more > 0 else "")


def _place(client: Any, keys: Keys, rec: dict[str, Any], n: int) -> str:
    node, queue = f"node {rec.get('n')!r}" + (f" ×{n}" if n > 1 else ""), rec.get("q", "")
    match rec.get("p"):
        case "job":
            return f"{node} waits in queue {queue!r}{_nobody(client, keys, queue)}"
        case "lease":
            return f"{node} runs on {rec.get('o')} (attempt {rec.get('a')}{_since(client, keys, rec)})"
        case "wake":
            return f"{node} waits for its next attempt"
        case "child":
            return f"{node} waits for its run on thread {str(rec.get('cl')).partition(' ')[2]!r}"
        case "line":
            if (turn := turn_of(str(rec.get("g")))) is not None:
                return f"{node} waits for the turn of fairness_key {turn[0]!r} in queue {turn[1]!r}"
            return f"{node} waits in line at the limit {rec.get('g')!r}{_holders(client, keys, str(rec.get('g')))}"
        case "parked":
            return f"{node} is parked until a worker serves it"
        case place:
            return f"{node} is {place}"


def _nobody(client: Any, keys: Keys, queue: str) -> str:
    """Why nobody will take it."""
    if client.exists(keys.rq_suspended):
        return ", and RQ is suspended: `rq resume`"
    names = client.smembers(keys.rq_workers_of(queue))  # those who died stay in it for a while; their keys expire
    return "" if names and client.exists(*names) else ", where no worker listens"


def _since(client: Any, keys: Keys, rec: dict[str, Any]) -> str:
    """For how long it runs, by RQ's record of the job."""
    begun = client.hget(keys.rq_job(str(rec.get("j"))), "started_at") or b""
    seconds, micros = client.time()
    try:
        at = datetime.fromisoformat(begun.decode("ascii", "replace"))
    except ValueError:  # it is gone, or what stands there is none of ours
        return ""
    return f", for {max(0.0, seconds + micros / 1e6 - at.timestamp()):.0f} s"


def _holders(client: Any, keys: Keys, gate: str) -> str:
    """Who holds its slots. Of a limit that is only a rate there is nobody."""
    jobs = client.srandmember(keys.slots(gate), SHOWN_MAX)
    said = [client.hget(keys.rq_job(job.decode()), "description") for job in jobs]
    held = sorted(each.decode("utf-8", "replace") for each in said if each)
    more = client.scard(keys.slots(gate)) - len(held)
    return (f", held by {', '.join(held)}" + (f" and {more} more" if more > 0 else "")) if held else ""
