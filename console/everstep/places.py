"""Is each open task in exactly one place? What `everstep doctor` looks at while the fleet goes on working.

A record says the place; the place must have the task, and no other place may. Each task's record is read before and
after its places, so that one that moves meanwhile is passed over: a MULTI would not do, a full server refuses what is
queued in one. Bounded in threads, tasks and the length of lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from everstep_scheduler.graph.fairness import turn_of
from everstep_scheduler.moves.document import document

from . import show
from .site import Site

THREADS_MAX = 1000
TASKS_MAX = 5000
BATCH = 50
LOOKS = 17
LIST_MAX = 20_000
OPEN = ("job", "lease", "wake", "line", "child", "parked")

Record = dict[str, Any]


@dataclass
class Report:
    """What was looked at. `cut`: there is more than the bounds."""

    threads: int = 0
    tasks: int = 0
    cut: bool = False
    problems: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Open:
    """An open task as its record says it."""

    thread: str
    graph: str
    n: str
    task: str
    raw: bytes
    record: Record

    @property
    def queue(self) -> str:
        return f"{self.record['q']}.suspect" if self.record.get("s") else str(self.record["q"])


def look_at_places(site: Site) -> Report:
    """Look at the open tasks of running threads, at most 5,000. Raises redis.RedisError."""
    report = Report()
    tasks = islice(_open_tasks(site, report), TASKS_MAX)
    while batch := list(islice(tasks, BATCH)):
        report.tasks += len(batch)
        for task, answer in zip(batch, _answers(site, batch), strict=True):
            if said := _wrong(task, answer):
                report.problems.append(f"{show.clean(task.thread)} {task.task}: {said}")
    report.cut = report.cut or report.tasks == TASKS_MAX
    return report


def _open_tasks(site: Site, report: Report) -> Iterator[Open]:
    client: Any = site.redis
    threads = client.zrange(site.keys.threads("running"), 0, THREADS_MAX)
    report.cut = len(threads) > THREADS_MAX
    for name in threads[:THREADS_MAX]:
        thread = name.decode("utf-8", "surrogatepass")
        report.threads += 1
        head = client.hmget(site.keys.thread(thread), "graph", "n", "run", "status")
        graph, n = ((found or b"").decode() for found in head[:2])
        looked = going = 0
        for task, raw in client.hscan_iter(site.keys.open(thread), count=100):
            looked += 1
            record = _record(raw)
            if record is None:
                report.problems.append(f"{show.clean(thread)}: a record in {site.keys.open(thread)} is not readable")
            elif record.get("p") in OPEN:
                going += 1
                yield Open(thread, graph, n, task.decode(), raw, record)
        if not going and _stands_still(site, thread, head, looked):
            report.problems.append(f"{show.clean(thread)}: it is running, and none of its tasks is in any place")


def _stands_still(site: Site, thread: str, head: list[Any], looked: int) -> bool:
    """Is the thread as it was when none of its tasks was found, so that none had only moved meanwhile?"""
    keys = site.keys
    with site.redis.pipeline(transaction=True) as pipe:
        pipe.hmget(keys.thread(thread), "graph", "n", "run", "status")
        pipe.hlen(keys.open(thread))
        pipe.exists(keys.unmade(thread))
        now, tasks, unmade = pipe.execute()
    return now == head and now[3] == b"running" and tasks == looked and not unmade


def _record(raw: bytes) -> Record | None:
    """A task's record; None for what no script of ours wrote."""
    found = document(raw)
    return found if {"q", "n"} <= found.keys() else None


def _answers(site: Site, batch: list[Open]) -> Iterator[list[Any]]:
    """For each task its record again, whether each place has it, and the record once more."""
    keys = site.keys
    with site.redis.pipeline(transaction=False) as pipe:
        for each in batch:
            job, token, member = (
                each.record.get("j") or "-",
                each.record.get("t") or "-",
                f"{each.n} {each.task} {each.thread}",
            )
            gate = str(each.record.get("g") or "-")
            run, _, called = str(each.record.get("cl") or "- -").partition(" ")
            pipe.hget(keys.open(each.thread), each.task)
            pipe.llen(keys.rq_queue(each.queue))
            pipe.lpos(keys.rq_queue(each.queue), job, maxlen=LIST_MAX)
            pipe.zscore(keys.leases, token)
            pipe.hget(keys.lease, token)
            pipe.zscore(keys.rq_started(each.queue), f"{job}:{token}")
            pipe.zscore(keys.wakes, member)
            pipe.zscore(keys.rq_scheduled(each.queue), job)
            pipe.lpos(keys.parked_for(each.graph, str(each.record["n"])), member, maxlen=LIST_MAX)
            pipe.zscore(keys.rq_failed(each.queue), job)
            pipe.zscore(keys.line(gate), member)
            pipe.zscore(keys.rq_deferred(each.queue), job)
            pipe.sismember(keys.slots(gate), job)
            pipe.sismember(keys.lines, gate)
            pipe.scard(keys.slots(gate))
            pipe.hget(keys.runs(called), run)
            pipe.hget(keys.open(each.thread), each.task)
        found: list[Any] = pipe.execute()
    for i in range(0, len(found), LOOKS):
        yield found[i : i + LOOKS]


def _wrong(task: Open, answer: list[Any]) -> str:
    """What is wrong with a task's place; empty if nothing, or if it has moved since its record was read."""
    raw, length, listed, lease, named, started, wake, scheduled, parked, failed = answer[:10]
    line, deferred, slot, lined, holders, called, again = answer[10:]
    if raw != task.raw or again != task.raw:
        return ""
    place = str(task.record["p"])
    going = called is not None and called.split(b" ")[0] in (b"running", b"queued")
    if place == "child" and not going:
        return f"it waits for a run that does not go on any more: {show.clean(str(task.record.get('cl')))}"
    beyond = place == "job" and listed is None and length > LIST_MAX
    there = {
        "job": listed is not None or beyond,
        "lease": lease is not None,
        "wake": wake is not None,
        "line": line is not None,
        "child": place == "child" and going,
        "parked": parked is not None,
    }
    stock = not str(task.record.get("o", "")).startswith("everstep")  # RQ's own worker keeps its registry itself
    shown = {
        "job": there["job"],
        "lease": started is not None or stock,
        "wake": scheduled is not None,
        "line": deferred is not None,
        "child": True,
        "parked": failed is not None,
    }
    if not there[place]:
        return f"its record says {place}, which does not have it"
    if place == "lease" and named is None:
        return "its lease names no task"
    gate = str(task.record.get("g") or "")
    turn = turn_of(gate)
    named = f"the limit {show.clean(gate)!r}" if turn is None else f"the turn of the key {show.clean(turn[0])!r}"
    if place == "line" and not lined:
        return f"it waits in line for {named}, which nobody looks at"
    if place == "line" and turn is not None and not holders:
        return f"it waits for {named}, which nobody has"
    if gate and place in ("job", "lease") and not slot:
        return f"it holds no slot of {named}, though its record says so"
    if others := [name for name, found in there.items() if found and name != place]:
        return f"in {place} and also in {', '.join(others)}"
    if task.record.get("j") and not shown[place]:
        return f"in {place}, but RQ's registry does not show it"
    return ""
