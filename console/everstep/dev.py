"""`everstep dev`: workers that restart when a file changes, and each step as it is committed.

every half second:  files changed? ──► stop the crew, start it anew
                    threads that moved ──► their new entries, a line each
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN
from everstep_checkpoint.delta import APPEND, SET, decode_delta
from everstep_checkpoint.errors import EverstepError
from everstep_scheduler.graph.channels import HIDDEN
from everstep_scheduler.reading.ending import error_of
from everstep_scheduler.recovery.rebuild import STATUSES

from . import show
from .crew import Crew
from .site import Site
from .traces import excerpt

LOOK_MS = 500
GRACE_S = "5"
FILES_MAX = 5000
THREADS_MAX = 200
RECENT = 64
GRAPHS_SHOWN_MAX = 5
DONE_SHOWN_MAX = 8
OVERLAP_MS = 2000
SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})


def run(site: Site, targets: Sequence[str], concurrency: int) -> int:
    """Until Ctrl-C."""
    with ExitStack() as ending:
        if not site.given:
            site = _own_server(site, ending)
        options = ("--concurrency", str(concurrency), "--spares", "0", "--grace", GRACE_S, "--quiet")
        where = ("--namespace", site.namespace, "--partition", site.partition)
        crew = Crew(site.url, targets, options, site=where)
        ending.callback(crew.stop)
        with site.open():
            _greet(site, targets)
            crew.start()
            try:
                _watch(site, crew, Files.of(targets))
            except KeyboardInterrupt:
                site.say("\nending: workers finish or hand back what they hold")
    return 0


def _own_server(site: Site, ending: ExitStack) -> Site:
    from .embedded import EmbeddedServer

    server = ending.enter_context(EmbeddedServer())
    return Site(server.url, site.namespace, site.partition)


def _greet(site: Site, targets: Sequence[str]) -> None:
    site.redis.ping()
    site.say(f"everstep dev: {', '.join(targets)} on {site.shown}")
    site.say("it restarts when a .py file changes; Ctrl-C ends everything")


def _how_to_submit(site: Site) -> bool:
    """Say it as soon as a graph is published; the worker does that when it begins."""
    found = site.client.graphs()
    if found:
        site.say("\nin another terminal:")
        site.say(f"  export EVERSTEP_URL={site.shown}")
        for manifest in found[:GRAPHS_SHOWN_MAX]:
            keys = {key: _example(rule) for key, rule in manifest.input_schema.get("properties", {}).items()}
            given = next(iter(keys.values()), None) if manifest.entry else keys
            site.say(f"  everstep submit {manifest.name} '{json.dumps(given)}' --wait")
        site.say("")
    return bool(found)


def _example(rule: Any) -> Any:
    """A value of the kind that a JSON schema asks for, to begin with."""
    kinds: dict[str, Any] = {"integer": 0, "number": 0, "boolean": False, "string": "", "array": [], "object": {}}
    return rule.get("default", kinds.get(str(rule.get("type")))) if isinstance(rule, dict) else None  # pyright: ignore


def _watch(site: Site, crew: Crew, files: Files) -> None:
    seconds, micros = site.redis.time()
    tail = Tail(site, seconds * 1000 + micros // 1000)
    told = greeted = False
    while True:
        greeted = greeted or _how_to_submit(site)
        for line in tail.lines():
            click.echo(show.fitted(line))
        changed = files.changed()
        if changed:
            site.say(f"-- {changed} changed: workers restart")
            crew.stop()
            crew.start()
            told = False
        elif crew.ended is not None and not told:
            told = True
            site.say(f"-- the workers have ended (exit code {crew.ended}); they start again when a file changes")


# --- files ---


@dataclass
class Files:
    """The .py files under some folders, and when each was changed."""

    folders: tuple[Path, ...]
    seen: dict[Path, int] = field(default_factory=dict[Path, int])

    @classmethod
    def of(cls, targets: Sequence[str]) -> Files:
        """The files of the targets' top packages; for a lone module, those beside it. Nothing is imported."""
        folders = tuple(dict.fromkeys(_folder(target.partition(":")[0]) for target in targets))
        made = cls(folders)
        made.seen = made.now()
        return made

    def changed(self) -> str:
        """The name of a file that is new, gone or other than before; empty if none is."""
        now = self.now()
        if now == self.seen:
            return ""
        odd = {path for path, _ in set(now.items()) ^ set(self.seen.items())}
        self.seen = now
        return min(odd).name

    def now(self) -> dict[Path, int]:
        found: dict[Path, int] = {}
        for path in self._paths():
            try:
                found[path] = path.stat().st_mtime_ns
            except OSError:  # gone since it was listed
                continue
            if len(found) == FILES_MAX:
                break
        return found

    def _paths(self) -> Iterator[Path]:
        for top in self.folders:
            for folder, inner, names in os.walk(top):
                inner[:] = [name for name in inner if not name.startswith(".") and name not in SKIPPED]
                yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _folder(module: str) -> Path:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return Path.cwd()
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]) if places else Path(spec.origin or ".").parent


# --- steps ---


class Tail:
    """The new entries of all threads that move, a line each."""

    def __init__(self, site: Site, began_ms: int) -> None:
        self.site = site
        self._redis = site.redis
        self._began = self._since = began_ms
        self._cursor: dict[str, bytes] = {}
        self._live: dict[str, None] = {}

    def lines(self) -> Iterator[str]:
        """What came since the last look; waits half a second at most."""
        for thread in self._moved():
            yield from self._join(thread)
        by_key = {
            self.site.keys.log(thread).encode("utf-8", "surrogatepass"): thread
            for thread in list(self._live)[:THREADS_MAX]
        }
        if not by_key:
            self._redis.blpop([f"{self.site.keys.stem}nothing"], timeout=LOOK_MS / 1000)
            return
        answer = self._redis.xread(
            {key: self._cursor[thread] for key, thread in by_key.items()}, count=RECENT, block=LOOK_MS
        )
        for key, rows in answer or ():
            yield from self._shown(by_key[key], rows)

    def _moved(self) -> list[str]:
        """Threads whose status changed since the last look, that are not followed yet."""
        found: dict[str, None] = {}
        for status in STATUSES:
            names = self._redis.zrevrangebyscore(self.site.keys.threads(status), "+inf", self._since, 0, THREADS_MAX)
            found.update(dict.fromkeys(name.decode("utf-8", "surrogatepass") for name in names))
        seconds, _ = self._redis.time()
        self._since = max(seconds * 1000 - OVERLAP_MS, self._began)
        return [thread for thread in found if thread not in self._live]

    def _join(self, thread: str) -> Iterator[str]:
        """Begin to follow a thread: its entries since we began, or since we left it."""
        key = self.site.keys.log(thread)
        if thread in self._cursor:
            rows = self._redis.xrange(key, b"(" + self._cursor[thread], "+", RECENT)
        else:
            rows = [
                row
                for row in reversed(self._redis.xrevrange(key, count=RECENT))
                if int(row[1].get(b"at", 0)) >= self._began
            ]
        if rows:
            self._live[thread] = None
            yield from self._shown(thread, rows)

    def _shown(self, thread: str, rows: Sequence[Any]) -> Iterator[str]:
        done = 0
        for entry_id, raw in rows:
            self._cursor[thread] = entry_id
            try:
                entry = e.read_entry(entry_id, raw)
                said = _said(entry)
            except EverstepError as error:
                said, entry = f"not readable: {error.what}", None
            if entry is not None and _ends(entry):
                self._live.pop(thread, None)
            done += entry is not None and entry.kind == "task_done"
            if said and not (entry is not None and entry.kind == "task_done" and done > DONE_SHOWN_MAX):
                at = show.moment(int(raw.get(b"at", 0)))
                yield f"{at}  {show.clean(thread):<20}  {said}"
        if done > DONE_SHOWN_MAX:
            yield f"{'':12}  {show.clean(thread):<20}  ... and {done - DONE_SHOWN_MAX} more done"


def _ends(entry: e.Entry) -> bool:
    return entry.kind == "run_rested" or (entry.is_checkpoint and not entry.next)


def _said(entry: e.Entry) -> str:
    """One entry in a few words; empty for one that says nothing to who develops."""
    node, took = show.clean(entry.text("node")), show.span(entry.number("ms"))
    told = error_of(entry)
    error = show.clean(told.words)
    match entry.kind:
        case e.CHECKPOINT if entry.text("source") == "input":
            return f"step {entry.text('step'):>3}  input"
        case e.CHECKPOINT:
            nexts = ", ".join(_nexts(entry)) or show.paint("done")
            return f"step {entry.text('step'):>3}  {node or 'join'} -> {nexts}  ({took})  {_changed(entry)}"
        case "task_done":
            return f"          {node} done  ({took})"
        case "task_failed":
            again = "; tries again" if "retry_at" in entry.raw else "; handled" if "handler" in entry.raw else ""
            said = show.paint(f"          {node} failed (try {entry.text('attempt')}{again}): {error}", "x")
            return "\n".join([said, *(f"{'':16}{line}" for line in excerpt(told.traceback))])
        case "task_lost" | "task_parked":
            return show.paint(f"          {node} {entry.kind[5:]}: {error}", "!")
        case "run_rested":
            return f"          the run rests: {show.paint(entry.text('status'))}"
        case _:
            return ""


def _nexts(entry: e.Entry) -> Iterator[str]:
    for row in entry.next:
        yield show.clean(str(row[1])) if len(row) == 4 else f"{row[1]} tasks"


def _changed(entry: e.Entry) -> str:
    """What the step wrote, as far as its own entry says."""
    stored = entry.value("delta")
    said: list[str] = []
    for channel, op in decode_delta(stored).items() if stored else ():
        if channel.startswith(HIDDEN):
            continue
        if op[0] == SET:
            said.append(f"{show.clean(channel)}={show.value(PLAIN.decode(op[1]), 40)}")
        else:
            said.append(f"{show.clean(channel)} {f'+{op[1]}' if op[0] == APPEND else 'changed'}")
    return "  ".join(said)
