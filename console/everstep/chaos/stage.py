"""Where chaos happens: a Redis (its own, or a namespace of its own on the user's), pools of workers, a way to be cut.

Everything that is started here is ended here, and everything that was written is removed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from everstep_checkpoint.keys import Keys
from everstep_scheduler.client.client import Client
from everstep_scheduler.moves.connection import connect, translated

from ..crew import Crew, CrewFailed
from ..embedded import EmbeddedServer
from .checking.evidence import JOURNAL_ENV
from .cutter import Cutter, can_cut
from .gathering import PAGE
from .twins import Twins

READY_S = 30.0
LOOK_S = 0.02
BLOCK_S = 1.0
SAMPLE = "everstep.chaos.sample:graph"
NEWER = "everstep.chaos.sample:newer"


class Stage:
    """Server, pools and proxy for as long as the chaos goes on. `url` None: a Redis of its own, fsync always. `twin`:
    with a replica, that can take over. `targets`: versions of one graph, older ones first; pool by pool another one."""

    def __init__(
        self, url: str | None, targets: tuple[str, ...], folder: Path, *, name: str, graph: str, pools: int,
        processes: int, concurrency: int, lease_s: float, binary: Path | None = None, cuts: bool = True,
        twin: bool = False,
    ) -> None:  # fmt: skip
        self.keys = Keys(name, "0", f"{name}:rq")
        self.twins = Twins(binary) if url is None and twin else None
        self._server = EmbeddedServer(appendfsync="always", binary=binary) if url is None and not twin else None
        self.journal = folder / "journal.jsonl"
        self.pools: list[Crew] = []
        self._url, self._targets, self._folder = url, targets, folder
        self._pools, self._cuts, self._graph = pools, cuts, graph
        self._serves = [i % len(targets) for i in range(pools)]
        self._options = (
            *("--processes", str(processes), "--concurrency", str(concurrency)),
            *("--lease", str(lease_s), "--grace", "5", "--quiet"),
        )
        self._ending = ExitStack()
        self.cutter: Cutter | None = None
        self._near: Cutter | None = None  # where a replica may take over: leads to whoever is the master

    @property
    def server(self) -> EmbeddedServer | None:
        """Redis, where it is ours: the master."""
        return self.twins.master if self.twins is not None else self._server

    @property
    def url(self) -> str:
        """To Redis, by no way that is cut but when another one takes over."""
        if self._url is not None:
            return self._url
        if self._near is not None:
            return self._near.url
        assert self.server is not None
        return self.server.url

    @property
    def far_url(self) -> str:
        """By the way that can be cut, where there is one."""
        return self.cutter.url if self.cutter is not None else self.url

    def __enter__(self) -> Self:
        with ExitStack() as ending:
            if self.twins is not None:
                ending.enter_context(self.twins)
                self._near = ending.enter_context(Cutter(self.twins.master.url))
            elif self._server is not None:
                ending.enter_context(self._server)
            self.redis: Any = connect(self.url, block_s=BLOCK_S)
            ending.callback(self.redis.close)
            ending.callback(self._sweep_out)
            if self._cuts and can_cut(self.url):
                self.cutter = ending.enter_context(Cutter(self.server.url if self.server is not None else self.url))
            ending.callback(self._end_pools)
            for i in range(self._pools):
                self.open_pool(i)
            self.await_workers()
            self._ending = ending.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ending.close()

    def client(self) -> Client:
        """A client by the way that can be cut."""
        return Client(self.far_url, self.keys)

    def near_client(self) -> Client:
        """A client straight to Redis."""
        return Client(self.url, self.keys)

    # pools

    def open_pool(self, index: int) -> None:
        """Start a pool in this place. Every second one works by the way that can be cut."""
        url = self.far_url if index % 2 == 0 else self.url
        crew = Crew(
            url, (self._targets[self._serves[index]],), self._options, out=self._folder / f"workers-{index}.txt",
            env={JOURNAL_ENV: str(self.journal), "RQ_KEY_PREFIX": self.keys.rq},
            site=("--namespace", self.keys.namespace),
        )  # fmt: skip
        crew.start()
        if index < len(self.pools):
            self.pools[index] = crew
        else:
            self.pools.append(crew)

    def deploy(self, index: int) -> str:
        """End a pool in order, and start one with the next version in its place. Returns which graph that is."""
        self._end_pool(self.pools[index])
        self._serves[index] = (self._serves[index] + 1) % len(self._targets)
        self.open_pool(index)
        return self._targets[self._serves[index]]

    def outdated(self) -> list[int]:
        """The pools that serve another version than the newest. The next one of the two is that."""
        return [index for index, serves in enumerate(self._serves) if serves != len(self._targets) - 1]

    def take_over(self) -> None:
        """The replica, which has parted from its master, is the master; all ways lead to it."""
        assert self.twins is not None
        self.twins.take_over()
        for way in (self._near, self.cutter):
            if way is not None:
                way.aim(self.twins.master.url)
        self.twins.follow()

    def await_workers(self) -> None:
        """Wait until every pool has begun and the graph is published. Raises CrewFailed if one can't."""
        end = time.monotonic() + READY_S
        published = self.keys.graph(self._graph)
        while not (all(self.workers_of(crew) for crew in self.pools) and self.redis.exists(published)):
            ended = next((crew for crew in self.pools if crew.ended is not None), None)
            if ended is not None or time.monotonic() > end:
                raise CrewFailed(f"the workers did not begin: {ended.words if ended else 'they say nothing'}")
            time.sleep(LOOK_S)

    def workers_of(self, crew: Crew) -> list[int]:
        """The pids of a pool's processes that have shown themselves to Redis."""
        children = set(children_of(crew.pid))
        return sorted(children & set(self.shown_workers().values()))

    def shown_workers(self) -> dict[str, int]:
        """Name -> pid of every worker process that Redis knows."""
        found: dict[str, int] = {}
        for key in self.redis.smembers(self.keys.rq_workers):
            name = key.decode().removeprefix(self.keys.rq_worker(""))
            pid = name.split(".")[-2] if name.count(".") >= 2 else ""
            if pid.isdigit():
                found[name] = int(pid)
        return found

    def end_workers(self) -> None:
        """In good order: what is under way is finished or given back."""
        self._end_pools()

    def _end_pools(self) -> None:
        for crew in self.pools:
            _wake(crew)
        for crew in self.pools:
            crew.stop()

    def _end_pool(self, crew: Crew) -> None:
        _wake(crew)
        crew.stop()

    def _sweep_out(self) -> None:
        """Remove all that was written, on a Redis that is the user's."""
        if self._url is None:
            return
        with suppress(Exception), translated(self.url):
            names = list(self.redis.scan_iter(match=f"{self.keys.namespace}:*", count=PAGE))
            for i in range(0, len(names), PAGE):
                self.redis.unlink(*names[i : i + PAGE])


def _wake(crew: Crew) -> None:
    """A process that is stopped can't end in order."""
    for pid in children_of(crew.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    if sys.platform == "linux":
        try:
            return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []
    said = subprocess.run(["/usr/bin/pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603
    return [int(each) for each in said.stdout.split()]
