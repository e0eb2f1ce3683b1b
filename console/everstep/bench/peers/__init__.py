"""Peers in the same run, on the same server and workload. Each is a script that is run by its path, with an interpreter
that has the peer: ours, or that of an environment which is only for them.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install rq celery[redis] pydocket dbos langgraph ...
    everstep bench --peers /tmp/peers/bin/python

What is not installed is told with the line that installs it, and skipped.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..place import Place
from ..processes import BenchFailed, Spawned
from . import postgres

HERE = Path(__file__).parent
PEER_S = 240.0
POSTGRES = "postgres"


class Peer(NamedTuple):
    """A script and how it is told. `modules` must be there; `wheels` bring them. `store`: where it keeps its state."""

    name: str
    script: str
    modules: tuple[str, ...]
    wheels: str
    store: str = ""
    durable: bool = False


PEERS = (
    Peer("stock RQ SimpleWorker", "on_rq.py", ("rq",), "rq"),
    Peer("LangGraph in memory", "on_langgraph.py", ("langgraph",), "langgraph", "memory"),
    Peer("LangGraph, SQLite saver", "on_langgraph.py", ("langgraph.checkpoint.sqlite",),
         "langgraph langgraph-checkpoint-sqlite", "sqlite", True),
    Peer("LangGraph, Postgres saver", "on_langgraph.py", ("langgraph.checkpoint.postgres", "psycopg"),
         "langgraph langgraph-checkpoint-postgres 'psycopg[binary]'", POSTGRES, True),
    Peer("Celery, solo, acks_late", "on_celery.py", ("celery",), "'celery[redis]'"),
    Peer("pydocket", "on_docket.py", ("docket",), "pydocket"),
    Peer("DBOS, SQLite", "on_dbos.py", ("dbos",), "dbos", "sqlite"),
    Peer("DBOS, Postgres", "on_dbos.py", ("dbos", "psycopg"), "dbos 'psycopg[binary]'", POSTGRES),
)  # fmt: skip
RQ, IN_MEMORY = PEERS[0], PEERS[1]


class Measured(NamedTuple):
    """Microseconds a step of a lone chain, steps a second of many; milliseconds of a turn of a chat, early and late."""

    step_us: float
    steps_s: float
    early_ms: float = 0.0
    late_ms: float = 0.0


class Company:
    """The peers that are here. `python`: the interpreter that has them."""

    def __init__(self, place: Place, python: str, database: str) -> None:
        self._place, self._python, self._database = place, python, database

    def why_not(self, peer: Peer) -> str:
        """Why it can't be measured; empty if it can."""
        if peer.store == POSTGRES and not self._database:
            return postgres.why_not()
        looks = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {list(peer.modules)!r})))"
        found = subprocess.run([self._python, "-c", looks], capture_output=True, check=False)  # noqa: S603  # as asked
        return f"not installed: {self._python} -m pip install {peer.wheels}" if found.returncode else ""

    def measure(self, peer: Peer, runs: int, chains: int, turns: int = 0) -> Measured:
        """One round. Raises BenchFailed."""
        result = self._place.temporary()
        order: dict[str, Any] = {
            "url": self._place.url, "prefix": f"{self._place.keys.stem}peer:", "runs": runs, "chains": chains,
            "turns": turns, "store": self._database if peer.store == POSTGRES else peer.store,
        }  # fmt: skip
        env = {"EVERSTEP_BENCH_ORDER": json.dumps(order), "TMPDIR": str(self._place.folder)}
        started = Spawned((str(HERE / peer.script), str(result)), result, env=env, python=self._python)
        started.wait(PEER_S)
        if not result.exists():
            raise BenchFailed(f"{peer.name} left no result: {started.last}")
        return Measured(**json.loads(result.read_text()))

    def versions(self) -> dict[str, str]:
        """What the interpreter has of them."""
        names = ["rq", "celery", "pydocket", "dbos", "langgraph", "langgraph-checkpoint-sqlite",
                 "langgraph-checkpoint-postgres", "psycopg"]  # fmt: skip
        looks = (
            "import json, importlib.metadata as m\nfound = {}\n"
            f"for name in {names!r}:\n"
            "    try: found[name] = m.version(name)\n    except m.PackageNotFoundError: pass\n"
            "print(json.dumps(found))"
        )
        said = subprocess.run([self._python, "-c", looks], capture_output=True, text=True, check=False)  # noqa: S603
        found: dict[str, str] = json.loads(said.stdout) if not said.returncode else {}
        return found


@contextmanager
def company(place: Place, python: str) -> Generator[Company]:
    """The peers, with a PostgreSQL of our own where one can be started."""
    if postgres.why_not():
        yield Company(place, python, "")
        return
    with postgres.running() as database:
        yield Company(place, python, database)
