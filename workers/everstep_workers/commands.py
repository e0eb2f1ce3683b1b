"""Commands that operators send to a worker over RQ's pub/sub channel: shutdown, stop-job, stop-execution, kill-horse.

As in RQ they reach only a process that listens at that moment. What can't be understood is logged and ignored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import redis

from everstep_scheduler.moves.document import document
from everstep_scheduler.steps.perform import Attempt, Result

from .slots import Held
from .work import Work, log

WAIT_S = 0.5
PAUSE_S = 0.5
STOPPED = "stopped by an operator"


class Commands(threading.Thread):
    """Listens, and does what it is told."""

    def __init__(self, work: Work, shutdown: Callable[[], None]) -> None:
        super().__init__(name="everstep-commands", daemon=True)
        self._work = work
        self._shutdown = shutdown
        self._client: Any = work.client(WAIT_S)
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                self._listen()
            except (redis.RedisError, OSError):  # the keeper says that Redis is away
                self._ended.wait(PAUSE_S)
            except Exception as error:  # noqa: BLE001 - the loop's door
                if self._ended.is_set():
                    return  # its connection was closed
                log.error("everstep's own error over a command", exc_info=error)
                self._ended.wait(PAUSE_S)

    def end(self) -> None:
        self._ended.set()

    def _listen(self) -> None:
        with self._client.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(self._work.setup.keys.rq_commands(self._work.setup.name))
            while not self._ended.is_set():
                message = channel.get_message(timeout=WAIT_S)
                if message is not None:
                    self._obey(message["data"])

    def _obey(self, data: bytes) -> None:
        said = document(data)
        if "command" not in said:
            log.warning("ignored a command that is not RQ's: %r", data[:200])
            return
        match said["command"]:
            case "shutdown":
                log.info("told to shut down")
                self._shutdown()
            case "stop-job" | "stop-execution":
                self._stop_one(said)
            case "kill-horse":
                self._stop_all(list(self._work.held.values()))
            case other:
                log.warning("ignored an unknown command: %.200r", other)

    def _stop_one(self, said: dict[str, Any]) -> None:
        """Stop one job; RQ's `execution_id` is our token."""
        job, token = said.get("job_id"), said.get("execution_id")
        found = [
            held
            for held in list(self._work.held.values())
            if held.lease.job == job and (token is None or held.lease.token == token)
        ]
        if not found:
            log.warning("told to stop job %r, which does not run here", job)
        self._stop_all(found)

    def _stop_all(self, found: list[Held]) -> None:
        for held in found:
            if self._work.overrule(held, _stopped):
                log.info("%s: %s", held, STOPPED)


def _stopped(attempt: Attempt) -> Result:
    return Result.stopped(attempt, STOPPED)
