"""Worker processes that a command of ours starts beside itself: they end with it, however it ends.

Crew(url, targets) ──► everstep worker ... ──fork──► its children
   └─ what they say goes to a file; `words` is its end, for when something is wrong
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from everstep_checkpoint.errors import EverstepError

from .site import Site

START_S = 30.0
STOP_S = 10.0
LOOK_S = 0.02

# On Linux the kernel tells the pool when we die; elsewhere its children notice that Redis has gone.
LAUNCHER = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""


class CrewFailed(EverstepError):
    """The workers did not begin, or have ended."""


class Crew:
    """One `everstep worker` beside us. `out`: where its messages go; None: to our stderr. `site`: global options."""

    def __init__(
        self,
        url: str,
        targets: Sequence[str],
        options: Sequence[str] = (),
        *,
        out: Path | None = None,
        env: Mapping[str, str] | None = None,
        site: Sequence[str] = (),
    ) -> None:
        self._out = out
        # the URL travels in the environment: a password on a command line is everybody's to read
        self._env = {**os.environ, **(env or {}), "EVERSTEP_URL": url}
        said = [sys.executable, "-m", "everstep", *site, "worker", *targets, *options]
        self._command = [sys.executable, "-c", LAUNCHER, str(os.getpid()), *said]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the pool. It works as soon as its children are there."""
        out: IO[bytes] | None = self._out.open("ab") if self._out is not None else None
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and words that the user gave
                self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        finally:
            if out is not None:
                out.close()

    @property
    def ended(self) -> int | None:
        """Its exit code, once it has ended."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        """The pool's parent."""
        assert self._process is not None, "the crew has not been started"
        return self._process.pid

    @property
    def words(self) -> str:
        """The last that it said."""
        text = self._out.read_text(errors="replace") if self._out is not None and self._out.exists() else ""
        return " | ".join(text.splitlines()[-3:])

    def await_ready(self, site: Site, workers: int, graphs: int) -> None:
        """Wait until so many workers have shown themselves and so many graphs are published. Raises CrewFailed."""
        end = time.monotonic() + START_S
        redis, keys = site.redis, site.keys
        while redis.scard(keys.rq_workers) < workers or redis.scard(keys.graphs) < graphs:
            if self.ended is not None or time.monotonic() > end:
                said = self.words or "they say nothing"
                raise CrewFailed(f"the workers did not begin: {said}", fix="everstep worker MODULE:GRAPH says more")
            time.sleep(LOOK_S)

    def stop(self) -> None:
        """SIGTERM, wait, and SIGKILL for what does not end. Harmless if it has ended."""
        if self._process is None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            self._process.send_signal(how)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                continue
