"""How a worker process stands an absent Redis: it keeps what it has and asks again, and claims nothing meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import redis

from everstep_checkpoint.errors import ServerError, caused
from everstep_scheduler.moves.connection import is_hopeless, patiently, server_error, translated

from .pulse import Pulse

SAY_EVERY_S = 5.0
TRIES_MAX = 3

log = logging.getLogger("everstep.worker")
T = TypeVar("T")


class Hopeless(Exception):
    """Redis refuses a command for what it is, and would refuse it for ever."""


class Patience:
    """Shared by all threads of a process. `given_up` says when to stop insisting."""

    def __init__(self, url: str, given_up: Callable[[], bool], pulse: Pulse) -> None:
        self._url = url
        self._pulse = pulse
        self._given_up = given_up
        self._troubles = 0
        self._told = 0.0
        self._lock = threading.Lock()

    @property
    def troubled(self) -> bool:
        """Does a thread of this process wait for Redis?"""
        return self._troubles > 0

    def say(self, text: str) -> None:
        """Trouble, told once in a while, however many threads have it."""
        now = time.monotonic()
        if now - self._told > SAY_EVERY_S:
            self._told = now
            log.warning("%s", text)

    def insist(self, action: Callable[..., T], *args: object) -> T:
        """Do it until Redis lets it pass. Raises ServerError once given up, and Hopeless."""
        try:
            return action(*args)
        except ServerError as error:
            self.say(f"{error.what}; trying again")
        except redis.RedisError as error:
            self.say(f"{server_error(error, self._url).what}; trying again")
        with self._lock:
            self._troubles += 1
            self._pulse.away(True)
        try:
            return patiently(self._counted(partial(action, *args)), self._given_up)
        finally:
            with self._lock:
                self._troubles -= 1
                self._pulse.away(self.troubled)

    def _counted(self, action: Callable[[], T]) -> Callable[[], T]:
        tries = 0

        def once() -> T:
            nonlocal tries
            self._pulse.again()
            try:
                with translated(self._url):
                    return action()
            except ServerError as error:
                self.say(f"{error.what}; trying again")
                tries += is_hopeless(error)
                if tries >= TRIES_MAX:
                    raise caused(Hopeless(error.what), error) from error
                raise

        return once
