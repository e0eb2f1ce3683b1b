"""Processes of the benchmark: started here, ended here, and gone with us. What they take of the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from everstep_checkpoint.errors import EverstepError

from ..crew import LAUNCHER

END_S = 120.0
_CPU_CLOCK = 2


class BenchFailed(EverstepError):
    """A measurement could not be made."""


class Spawned:
    """A Python process. `journal`: the file where it leaves (number, ns) of every node that it ran, at its end."""

    def __init__(
        self, words: Sequence[str], journal: Path, *, env: Mapping[str, str] | None = None, python: str = sys.executable
    ) -> None:
        self.path, self.words = journal, tuple(words)
        self._said = journal.with_suffix(".txt")
        command = [sys.executable, "-c", LAUNCHER, str(os.getpid()), python, *words]
        with self._said.open("wb") as out:
            self.process = subprocess.Popen(  # noqa: S603  # an interpreter and words of our own
                command, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        """All that it has said."""
        return self._said.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def rss_mb(self) -> float:
        """Resident memory; 0 where there is no /proc."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return 0.0
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU that all of its threads have taken; 0 where no kernel tells that of another process."""
        if sys.platform != "linux":
            return 0.0
        return time.clock_gettime((~self.pid << 3) | _CPU_CLOCK)  # what clock_getcpuclockid(3) makes of a pid

    @property
    def journal(self) -> list[tuple[int, int]]:
        return [(number, ns) for number, ns in json.loads(self.path.read_text())]

    @contextmanager
    def stopped(self) -> Generator[None]:
        """It stands still meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def wait(self, timeout_s: float) -> None:
        """Wait for its end. Raises BenchFailed if it failed or takes longer."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise BenchFailed(f"{self._named} did not end in {timeout_s:g} s: {self.last}") from None
        if self.process.returncode:
            raise BenchFailed(f"{self._named} ended with {self.process.returncode}: {self.last}")

    def end(self) -> None:
        """SIGTERM, if it has not ended, and wait."""
        if not self.ended:
            self.process.send_signal(signal.SIGTERM)
        self.wait(END_S)

    @property
    def last(self) -> str:
        """The last lines that it said."""
        return " | ".join(self.said.strip().splitlines()[-3:])[-600:] or "it says nothing"

    @property
    def _named(self) -> str:
        return f"`python {' '.join(Path(word).name if '/' in word else word for word in self.words)}`"
