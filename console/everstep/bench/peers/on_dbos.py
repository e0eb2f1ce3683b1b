"""DBOS: one process, a workflow of ten steps, each step's result kept; its system database in SQLite or PostgreSQL."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import chain
from dbos import DBOS

SAID = chain.order()


@DBOS.step()
def step(number: int) -> str:
    chain.note(number)
    return os.urandom(chain.PAYLOAD // 2).hex()


@DBOS.workflow()
def flow() -> None:
    for number in range(chain.LENGTH):
        step(number)


def many(count: int) -> None:
    started: list[Any] = [DBOS.start_workflow(flow) for _ in range(count)]
    for each in started:
        each.get_result()


def main() -> None:
    store = SAID["store"]
    if store == "sqlite":
        store = f"sqlite:///{tempfile.mkdtemp(dir=os.environ['TMPDIR'])}/dbos.sqlite"
    DBOS(config={"name": "bench", "system_database_url": store, "run_admin_server": False, "log_level": "ERROR"})
    DBOS.launch()
    flow()
    lone = chain.taken(lambda: [flow() for _ in range(SAID["runs"])])
    at_once = chain.taken(lambda: many(SAID["chains"]))
    chain.tell(step_us=chain.step_us(lone), steps_s=chain.steps_s(at_once, SAID["chains"]))
    DBOS.destroy()


if __name__ == "__main__":
    main()
