"""The whole of it: which workloads, on which server, and what is written down.

run(order) ──► Outcome: rows for people and the document for programs
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from everstep_checkpoint.errors import EverstepError
from everstep_scheduler.moves.connection import redacted, translated

from .. import COMPILED
from . import backlog, chains, chat, counting, fair, mixed, partitions, quiet, waiting, wide
from .beside import rows_peers
from .peers import company
from .place import Place
from .plot import plot
from .rows import Row, skipped
from .sizes import FULL, Sizes

Told = Callable[[str], None]
OURS = ("everstep", "redis", "hiredis", "rq", "msgpack", "pydantic")


@dataclass(frozen=True)
class Part:
    """A workload. `own`: it needs servers of our own. `heavy`: on a user's Redis only if it is named."""

    what: str
    rows: Callable[[Place, Sizes], list[Row]] | None
    own: bool = False
    heavy: bool = False


PARTS = {
    "W1": Part("latency of a lone chain of ten nodes", chains.rows_w1),
    "W2": Part("throughput of many chains, one and two worker processes", chains.rows_w2),
    "W2a": Part("the same with appendfsync always", chains.rows_w2a, own=True),
    "cpu": Part("what CPU a step takes, beside the floor", chains.rows_costs),
    "W3": Part("a fan-out and its join", wide.rows_w3),
    "W4": Part("a long chat on one thread, on one worker and on two in turn", chat.rows_w4),
    "W5": Part("nodes that wait", waiting.rows_w5),
    "W6": Part("nodes that need a core", mixed.rows_w6),
    "W7": Part("beside a million queued jobs", backlog.rows_w7, heavy=True),
    "W8": Part("the server's CPU for a step, 1 to 4 partitions", partitions.rows_w8),
    "fair": Part("ten tenants in one queue, one of which floods it", fair.rows_fair),
    "counted": Part("round trips and bytes of a step", counting.rows_counted),
    "quiet": Part("an idle worker, the inbox", quiet.rows_quiet),
    "start": Part("how long it takes to begin", quiet.rows_start),
    "many": Part("100,000 paused threads, and as many leases that ran out", backlog.rows_many, heavy=True),
    "peers": Part("W1, W2 and W4 of the peers that are installed", None),
}


@dataclass(frozen=True)
class Order:
    """What to do. `url` empty: a Redis of its own. `only`: these workloads. `python`: the interpreter of the peers."""

    url: str = ""
    only: tuple[str, ...] = ()
    sizes: Sizes = FULL
    python: str = sys.executable

    @property
    def whole(self) -> bool:
        """All workloads at full size, on a server that nobody else uses: a result of a release."""
        return not self.url and self.sizes is FULL and set(self.parts) == set(PARTS)

    @property
    def parts(self) -> list[str]:
        """In the order in which they are run."""
        return [name for name, part in PARTS.items() if name in self.only or (not self.only and self._usual(part))]

    def _usual(self, part: Part) -> bool:
        return not (self.url and (part.own or part.heavy))


@dataclass(frozen=True)
class Outcome:
    """What it came to."""

    order: Order
    rows: tuple[Row, ...]
    document: dict[str, Any]
    failed: tuple[str, ...] = ()

    @property
    def missed(self) -> list[Row]:
        return [each for each in self.rows if each.verdict == "MISS"]

    def write(self, folder: Path) -> Path:
        """JSON and plot, named after the version, and whether that is compiled; a run of parts, or a quick one, never
        takes a release's name."""
        release = self.document["versions"]["everstep"] + ("-compiled" if self.document["compiled"] else "")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{release if self.order.whole and not self.failed else f'{release}-part'}.json"
        path.write_text(json.dumps(self.document, indent=1) + "\n")
        path.with_suffix(".svg").write_text(plot(self.rows, f"everstep {release}: targets at the dashed line"))
        return path


def run(order: Order, told: Told = lambda _: None) -> Outcome:
    """All of it. `told` hears what is under way. Raises ServerError if there is no server; a workload that fails is a
    row that says so."""
    rows: list[Row] = []
    failed: list[str] = []
    with Place(order.url) as place:
        document = about(place, order)
        told(_where(place, order))
        for name in order.parts:
            part, began = PARTS[name], time.monotonic()
            told(f"{name}: {part.what}")
            try:
                with translated(place.url):
                    rows += _measured(place, part, order, document)
            except (EverstepError, AssertionError) as error:
                failed.append(name)
                rows.append(skipped(name, f"it failed: {error}"))
            document["seconds"][name] = round(time.monotonic() - began, 1)
            place.clear()
    document["load_after"] = round(os.getloadavg()[0], 1)
    document["rows"] = [each.document() for each in rows]
    return Outcome(order, tuple(rows), document, tuple(failed))


def _measured(place: Place, part: Part, order: Order, document: dict[str, Any]) -> list[Row]:
    if part.rows is not None:
        return part.rows(place, order.sizes)
    with company(place, order.python) as found:
        document["peers"] = found.versions()
        return rows_peers(place, order.sizes, found)


def _where(place: Place, order: Order) -> str:
    if place.own:
        return "on a server of its own, which ends with it"
    left = [name for name, part in PARTS.items() if name not in order.parts and (part.own or part.heavy)]
    return (
        f"on your server, in the namespace {place.keys.namespace!r}, which is removed at the end; no setting is changed"
        + (f"; left out: {', '.join(left)}" if left and not order.only else "")
    )


def about(place: Place, order: Order) -> dict[str, Any]:
    """What is measured, on what."""
    info = place.redis.info("server")
    name = str(info.get("server_name") or "redis")
    fsync = "everysec" if place.own else "as you have set it"
    return {
        "at": time.strftime("%Y-%m-%d"),
        "command": ["everstep", *map(redacted, sys.argv[1:])],
        "versions": {"python": platform.python_version(), **_versions(OURS)},
        "compiled": COMPILED,
        "python_build": " ".join([*platform.python_build(), platform.python_compiler()]),
        "server": f"{name} {info.get(f'{name}_version') or info['redis_version']}, appendfsync {fsync}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "load": round(os.getloadavg()[0], 1),
        "full": order.sizes is FULL,
        "sizes": asdict(order.sizes),
        "seconds": {},
    }


def _versions(names: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
