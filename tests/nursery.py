"""Worker processes without the half second of imports that each costs: forked from one process that has them behind it.

python nursery.py FD      reads from the socket FD, one JSON object a message: argv, env, out. Answers with the pid, and
                          later with how that one ended. What is forked runs `faults_worker.main(argv)`, as a process of
                          its own in every other way: it is killed, stopped and reaped like one that was started.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from time import monotonic

HERE = Path(__file__).parent
MESSAGE_MAX = 2**17


class Born:
    """A process from the nursery, as `subprocess.Popen` shows its own."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    def poll(self) -> int | None:
        """How it ended, negative: by which signal; None while it runs."""
        return self._nursery.ended(self.pid, 0)

    def wait(self, timeout: float) -> int:
        """The same, when it has. Raises TimeoutExpired."""
        code = self._nursery.ended(self.pid, timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Nursery:
    """The process that has imported everything, seen from the tests' side. It ends when its socket is closed."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, str(HERE / "nursery.py"), str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=HERE, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        self._codes: dict[int, int] = {}

    def born(self, argv: Sequence[str], env: Mapping[str, str], out: Path) -> Born:
        """A new process that writes both its outputs to the file `out`."""
        self._ours.send(json.dumps({"argv": list(argv), "env": dict(env), "out": str(out)}).encode())
        while True:
            said = self._heard(60.0)
            assert said is not None, "the nursery does not answer"
            if "pid" in said:
                return Born(self, said["pid"])

    def ended(self, pid: int, timeout: float) -> int | None:
        """How a process ended, once it has."""
        until = monotonic() + timeout
        while pid not in self._codes and self._heard(max(until - monotonic(), 0)) is not None:
            pass
        return self._codes.get(pid)

    def _heard(self, timeout: float) -> dict[str, int] | None:
        if not select.select([self._ours], [], [], timeout)[0]:
            return None
        said: dict[str, int] = json.loads(self._ours.recv(MESSAGE_MAX))
        if "ended" in said:
            self._codes[said["ended"]] = said["code"]
        return said

    def end(self) -> None:
        self._ours.close()
        self._process.wait(10)


@cache
def nursery() -> Nursery:
    """The one of this test process, begun when it is first needed."""
    made = Nursery()
    atexit.register(made.end)
    return made


def keep(line: socket.socket) -> None:
    """Fork what is asked for, and tell what has ended."""
    import faults_worker
    import graphs_for_faults  # noqa: F401 - imported for those who come

    bell, ring = os.pipe()
    os.set_blocking(ring, False)
    signal.set_wakeup_fd(ring)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([line.fileno(), bell], [], [])
        if bell in ready:
            os.read(bell, 4096)
            for pid, code in _reaped():
                line.send(json.dumps({"ended": pid, "code": code}).encode())
        if line.fileno() in ready:
            asked = line.recv(MESSAGE_MAX)
            if not asked:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(bell)
                os.close(ring)
                line.close()
                _live(faults_worker.main, **json.loads(asked))
            line.send(json.dumps({"pid": pid}).encode())


def _reaped() -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, os.waitstatus_to_exitcode(status)))


def _live(main: object, argv: list[str], env: dict[str, str], out: str) -> None:
    """The new process: as if it had been started with these words, this environment, and its outputs there."""
    assert callable(main)
    code = 1
    try:
        os.environ.clear()
        os.environ.update(env)
        written = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        os.dup2(written, 1)
        os.dup2(written, 2)
        os.close(written)
        code = int(main(argv))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    keep(socket.socket(fileno=int(sys.argv[1])))
