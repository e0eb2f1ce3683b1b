"""Part 2: a pipeline over real files, and a worker that gets kill -9 in the middle of it.

submit ──► tail the log ──40 %──► stop a worker, look what it holds, kill it ──► tail on ──► judge by log and journal
"""

from __future__ import annotations

import os
import signal
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN
from everstep_checkpoint.errors import InputError

from .. import show as shown
from .bar import Bar
from .graphs import reading
from .stage import Stage

THREAD = "reading"
KILL_AT = 0.4
FILES_MIN = 50
WAIT_S = 120.0
NAMED_MAX = 3


@dataclass
class Watched:
    """What the log said while we watched it."""

    total: int = 0
    done: dict[str, e.Entry] = field(default_factory=dict[str, e.Entry])
    done_twice: int = 0
    lost: list[e.Entry] = field(default_factory=list[e.Entry])
    parts: dict[int, e.Entry] = field(default_factory=dict[int, e.Entry])
    ended: bool = False

    def feed(self, entry: e.Entry) -> None:
        match entry.kind:
            case "part":
                self.parts[entry.k] = entry
            case "checkpoint":
                self.total = max([self.total, *(sum(int(row[1]) for row in entry.next if len(row) == 2),)])
                self.ended = not entry.next
            case "task_done" if entry.text("node") == "analyse":
                self.done_twice += entry.text("task") in self.done
                self.done[entry.text("task")] = entry
            case "task_lost":
                self.lost.append(entry)
            case "run_rested":
                self.ended = True
            case _:
                pass

    def file(self, task: str) -> str:
        """The file that a task is about: what its Send carries."""
        k, _, i = task.removeprefix("s").partition("_")
        arg: Any = PLAIN.decode(self.parts[int(k)].sends()[int(i)][1])
        return str(arg["file"])


@dataclass(frozen=True)
class Kill:
    """The worker that was killed, and when, by Redis' clock."""

    name: str
    pid: int
    at_ms: int


def default_folder() -> Path:
    """Python's own library: hundreds of files on every machine."""
    return Path(sysconfig.get_path("stdlib"))


def check(folder: Path) -> None:
    """Raises InputError for a folder with too little to read: the run would be over before a worker can be killed."""
    found = len(reading.spec.node("list").fn({"dir": str(folder)})["files"])
    if found < FILES_MIN:
        raise InputError(
            f"{folder} has {found} text files, the tour needs {FILES_MIN}",
            fix="leave out --dir to read Python's own library",
        )


def show(stage: Stage, folder: Path | None) -> bool:
    """Run it with a killing and without. Was every promise kept?"""
    folder = folder or default_folder()
    stage.part(2, "Reading many files, and losing a worker:  list -> analyse (one task a file) -> report")
    stage.line("it reads", f"what is text below {folder}")
    given = {"dir": str(folder.resolve())}
    began = time.perf_counter()
    run = stage.site.client.submit("reading", given, thread_id=THREAD)
    watched, kill = _watch(stage)
    report = run.result(timeout=WAIT_S)["report"]
    took = (time.perf_counter() - began) * 1000
    kept = _judge(stage, watched, kill)
    stage.line("the report", f"{report['files']:,} files, {report['lines']:,} lines, {report['words']:,} words, "
               f"{report['functions']:,} functions, {report['classes']:,} classes   {shown.span(took)}")  # fmt: skip
    began = time.perf_counter()
    alone = reading.invoke(given, {"max_concurrency": 1})["report"]
    took = (time.perf_counter() - began) * 1000
    said = f"the report equals an undisturbed run's, here in memory: digest {alone['digest']}   {shown.span(took)}"
    return stage.check(report == alone, said, f"the reports differ: {report} and {alone}") and kept


def _watch(stage: Stage) -> tuple[Watched, Kill | None]:
    """Follow the log to the end of the run; kill a worker on the way."""
    watched, kill = Watched(), None
    with Bar("files read") as bar:
        for entry in _tail(stage, watched):
            watched.feed(entry)
            bar.at(len(watched.done), watched.total)
            if kill is None and watched.total and len(watched.done) >= KILL_AT * watched.total:
                kill = _kill_one(stage)
                if kill is not None:
                    bar.say(f"   kill -9 {kill.pid}, the worker {kill.name.removeprefix('everstep.')}")
    return watched, kill


def _tail(stage: Stage, watched: Watched) -> Iterator[e.Entry]:
    key, last = stage.site.keys.log(THREAD), b"0-0"
    end = time.monotonic() + WAIT_S
    while not watched.ended and time.monotonic() < end:
        answer: Any = stage.site.redis.xread({key: last}, count=64, block=500)
        for last, raw in answer[0][1] if answer else ():
            yield e.read_entry(last, raw)


def _kill_one(stage: Stage) -> Kill | None:
    """Stop a worker, so that nothing moves; kill it if it holds a task, else let it go on and try the next."""
    redis, keys = stage.site.redis, stage.site.keys
    for key in sorted(redis.smembers(keys.rq_workers)):
        name, pid = key.decode().removeprefix(keys.rq_worker("")), int(redis.hget(key, "pid") or 0)
        if not pid:
            continue
        os.kill(pid, signal.SIGSTOP)
        if redis.hlen(keys.held(name)):
            seconds, micros = redis.time()
            os.kill(pid, signal.SIGKILL)
            return Kill(name, pid, seconds * 1000 + micros // 1000)
        os.kill(pid, signal.SIGCONT)
    return None


def _judge(stage: Stage, watched: Watched, kill: Kill | None) -> bool:
    """What the log and the journal say about the killing."""
    if kill is None:
        stage.line(
            "no worker was killed", "each time none held a task: the files are too small; give others with --dir"
        )
        return True
    lost = [entry for entry in watched.lost if entry.text("by") == kill.name]
    files = [watched.file(entry.text("task")) for entry in lost]
    again = [watched.done[entry.text("task")] for entry in lost if entry.text("task") in watched.done]
    noticed = max((entry.number("at") for entry in lost), default=kill.at_ms) - kill.at_ms
    claimed = max((entry.number("started") for entry in again), default=kill.at_ms) - kill.at_ms
    names = ", ".join(files[:NAMED_MAX]) + (" ..." if len(files) > NAMED_MAX else "")
    stage.line("it held", f"{len(lost)} {'task' if len(lost) == 1 else 'tasks'}: {names}")
    stage.line("its death was noticed", f"after {shown.span(noticed)}, and a new worker took its place")
    stage.line(
        "its work was taken over", f"after {shown.span(claimed)}, in a process of its own in case it was the killer"
    )
    return _nothing_twice(stage, watched, files)


def _nothing_twice(stage: Stage, watched: Watched, lost: list[str]) -> bool:
    """By the journal, each execution has a line; by the log, each task has one `task_done`."""
    ran = Counter(stage.journal.read_text().splitlines())
    twice = {file for file, times in ran.items() if times > 1}
    once = watched.done_twice == 0 and len(watched.done) == watched.total == len(ran)
    count = sum(ran.values())
    more = f"; what ran twice ({len(twice)}) was in the dead worker's hands" if twice else ""
    said = f"no committed task ran again: {watched.total:,} tasks, {count:,} executions{more}"
    return stage.check(
        once and twice <= set(lost),
        said,
        f"{len(watched.done):,} of {watched.total:,} done, run twice: {sorted(twice)}",
    )
