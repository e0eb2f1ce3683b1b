"""Adoption: from where a thread stands to the scripts' own records of it. Pure; `lua/adopt.lua` writes them.

The log names no leases: whether a task that is open here stays leased is decided by the script, which looks at what
live workers announce.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from itertools import zip_longest
from typing import Any

from ..moves.contract import MOVE_MAX
from ..moves.redismoves import job_prefix
from ..reading.derive import Queued, Task, Told

TEXTS_MAX = 500
Header = dict[str, Any]


def adoption(told: Told, thread: str, announced: Container[str] = ()) -> list[Header]:
    """The calls that make a thread's indexes and jobs: at most 250 tasks each, usually one.

    `announced`: `<n> <task> <thread>` of the leases that live workers say they hold.
    """
    records, unmade = _placed(told, thread, announced)
    runs = [[run, f"{status} {entry} {insum}"] for run, (status, entry, insum) in told.runs.items()]
    queued = [json.dumps(_element(each)) for each in told.queued]
    chunks = zip_longest(
        _chunked(records, MOVE_MAX), _chunked(runs, TEXTS_MAX), _chunked(queued, TEXTS_MAX), _chunked(unmade, TEXTS_MAX)
    )
    calls: list[Header] = []
    for tasks, pairs, waiting, later in chunks:
        flat = [text for pair in pairs or () for text in pair]
        calls.append(
            {"thread": thread, "tasks": tasks or [], "runs": flat, "queued": waiting or [], "unmade": later or []}
        )
    first: Header = {"first": 1, "fields": _fields(told, thread), "since": told.since_ms}
    return [{**call, **(first if i == 0 else {})} for i, call in enumerate(calls or [{"thread": thread, **_NOTHING}])]


_NOTHING: Header = {"tasks": [], "runs": [], "queued": [], "unmade": []}


def _chunked(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _fields(told: Told, thread: str) -> Header:
    """The thread's hash."""
    return {
        "birth": told.birth, "n": told.n, "digest": told.digest, "step": told.step, "status": told.status,
        "run": told.run, "rec": told.rec, "base": told.base, "graph": told.graph, "queue": told.queue,
        "width": told.width, "left": told.left, "failed": told.failed, "asked": told.asked, "halted": told.halted,
        "conf": told.conf, "early": "", "parent": told.parent, "own": told.own,
        "jobs": 0, "updated": told.since_ms, "jid": job_prefix(thread, told.birth),
        **({"over": " ".join(told.over)} if told.over else {}), **_keyed(told),
    }  # fmt: skip


def _element(each: Queued) -> Header:
    return {
        "run": each.run, "entry": each.entry, "graph": each.graph, "queue": each.queue, "task": each.task,
        "node": each.node, **({"parent": each.parent} if each.parent else {}),
        **({"own": each.own} if each.own else {}), **_keyed(each),
    }  # fmt: skip


def _keyed(each: Told | Queued) -> Header:
    """What limits count by, and whose turns its tasks take."""
    said = {"lk": each.limit_key, "fk": each.fairness_key}
    return {name: key for name, key in said.items() if key}


def _placed(told: Told, thread: str, announced: Container[str]) -> tuple[list[list[Any]], list[str]]:
    """Tasks with a record of their own, and those of a wide step that get theirs later."""
    records: list[list[Any]] = []
    unmade: list[str] = []
    jobs = 0
    for task in told.tasks:
        open_now = task.place == "unmade"
        held = f"{told.n} {task.task} {thread}" in announced
        if task.touched or held or (open_now and jobs < MOVE_MAX):
            records.append(_record(task))
            jobs += open_now and not held
        else:
            later = {"task": task.task, "node": task.node, "queue": task.queue, "timeout_s": task.timeout_s}
            unmade.append(json.dumps(later))
    return records, unmade


def _record(task: Task) -> list[Any]:
    """[task, the script's record of it, why it failed or when it is due]."""
    place = "job" if task.place == "unmade" else task.place
    rec: Header = {"p": place, "a": task.attempt, "n": task.node, "q": task.queue, "w": task.timeout_s}
    counted = {"l": task.lost, "x": task.expired, "k": task.alone, "s": int(task.suspect), "t": task.token}
    if place == "done":
        counted = {"t": task.token}
    elif place == "job":
        del counted["t"]
    elif place == "child":
        counted = {"t": task.token, "l": task.lost}
    elif place == "asked":
        counted = {"t": task.token, "l": task.lost, "i": task.question}
    if place != "done":
        cause = task.cause if task.handles else ""
        counted |= {
            "an": " ".join(task.answers),
            "c": cause,
            "cl": task.called,
            "ct": int(task.told),
            "e": task.effects,
        }
    rec |= {name: value for name, value in counted.items() if value}
    return [task.task, rec, task.due_ms if place == "wake" else _reason(task)]


def _reason(task: Task) -> str:
    error_type, text, _ = task.error
    return f"{task.node}: {error_type}: {text}"[:2000] if error_type else text[:2000]
