"""An isolated node, seen from the process that has its attempt: the node runs in a process that can be killed.

    order (state, config, runtime) ──pipe──► child: import, call         a new Python, not a fork: we have threads
    heartbeats, streamed values    ◄──pipe── child
    what it returned, or raised    ◄──pipe── child

What crosses the pipes is the codec's bytes. The function is named as it is loaded here. The child is the leader of a
process group, which is killed as a whole: at the end, at a timeout, when the attempt is stopped. It dies with us.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from everstep_checkpoint.codec import PLAIN, PLAIN_MAX, Codec, Registry
from everstep_checkpoint.errors import NodeDied

from ..graph.isolation import address_of, known_as, relayed
from ..graph.kinds import Overwrite
from ..graph.runtime import Command, Send

if TYPE_CHECKING:
    from .perform import Attempt

BEAT, PROGRESS, SAID, RETURNED, RAISED = b"b", b"p", b"s", b"r", b"e"
RETURNS = (Command, Send, Overwrite)
LOOK_MS = 500
EXIT_S = 5.0
READ_MAX = 1 << 16
SIZE = struct.Struct(">I")
BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from everstep_scheduler.steps.isolated import main; main(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))"
)


def codec_of(types: dict[str, type]) -> Codec:
    """The codec of both sides: that of the graph, which also knows what a node may return."""
    registry = Registry()
    for name, cls in types.items():
        registry.add(cls, name)
    for cls in RETURNS:
        registry.add(cls, f"{cls.__module__}.{cls.__qualname__}")
    return Codec(registry, value_max=PLAIN_MAX)


def framed(data: bytes) -> bytes:
    """Bytes, and before them how many."""
    return SIZE.pack(len(data)) + data


class Child:
    """The process of one attempt. `kill` may come from any thread, at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._reaped = False

    def kill(self) -> None:
        """End it, and what it began, now. One that has not begun never will."""
        with self._lock:
            self._killed = True
            self._end()

    def run(self, attempt: Attempt) -> Any:
        """Call the attempt's node there; what it returned. Raises what it raised, and NodeDied."""
        codec = codec_of(attempt.spec.registry.names())
        order = _order(attempt, codec)
        (theirs, orders), (answers, theirs_too) = os.pipe(), os.pipe()
        try:
            self._begin(attempt, theirs, theirs_too)
            with suppress(BrokenPipeError):  # it is gone already; how, is seen below
                write_all(orders, framed(order))
            return self._heard(attempt, codec, answers)
        finally:
            self.kill()
            self._reap()
            os.close(orders)
            os.close(answers)

    def _begin(self, attempt: Attempt, orders: int, answers: int) -> None:
        path = json.dumps([str(each) for each in sys.path])
        command = [sys.executable, "-P", "-c", BEGIN, path, *map(str, (orders, answers, os.getpid()))]
        try:
            with self._lock:
                if self._killed:
                    raise _died(attempt, "was stopped before it began")
                self._process = subprocess.Popen(  # noqa: S603 - our own command, with our own path
                    command, stdin=subprocess.DEVNULL, pass_fds=(orders, answers), process_group=0
                )
        except OSError as error:
            raise _died(attempt, f"can't be begun: {error}") from error
        finally:
            os.close(orders)
            os.close(answers)

    def _heard(self, attempt: Attempt, codec: Codec, answers: int) -> Any:
        for frame in self._frames(answers):
            kind, data = frame[:1], frame[1:]
            if kind == BEAT:
                attempt.pace.heartbeat()
            elif kind == PROGRESS:
                attempt.pace.progress()
            elif kind == SAID:
                attempt.writer(codec.decode(data, "what an isolated node told"))
            elif kind == RETURNED:
                return codec.decode(data, "what an isolated node returned")
            else:
                said: Any = PLAIN.decode(data, "what an isolated node raised")
                raise relayed(*said)
        raise _died(attempt, _how(self._exit_code()))

    def _frames(self, fd: int) -> Iterator[bytes]:
        """What it says, whole frames, until it is gone or killed; then what is in the pipe at that moment, and no more:
        what it began may have left its group, hold the pipe open, and speak in it for as long as it likes."""
        buffer, poll = bytearray(), select.poll()
        poll.register(fd, select.POLLIN)
        look_at, left = 0.0, -1  # bytes that may still be read; negative: as many as come
        while left:
            if left < 0 and time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_MS / 1000
                if self._killed or self._is_gone(wait=False):
                    left = _waiting(fd)
                    continue
            if not poll.poll(LOOK_MS):
                continue
            data = os.read(fd, READ_MAX if left < 0 else min(READ_MAX, left))
            if not data:
                return
            left -= len(data) if left > 0 else 0
            buffer += data
            yield from _whole(buffer)

    # the process; its id is ours until it is reaped, which happens last and under the lock

    def _is_gone(self, *, wait: bool) -> bool:
        assert self._process is not None
        if not hasattr(os, "waitid"):
            with self._lock, suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_S if wait else 0)
            return self._process.returncode is not None
        flags = os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)
        try:
            return os.waitid(os.P_PID, self._process.pid, flags) is not None
        except ChildProcessError:  # somebody waits for all children of this process
            return True

    def _exit_code(self) -> int:
        """How it ended. It closed its pipe: one that lives on is ended."""
        assert self._process is not None
        timer = threading.Timer(EXIT_S, self.kill)
        timer.start()
        try:
            self._is_gone(wait=True)
        finally:
            timer.cancel()
        self.kill()
        return self._reap()

    def _end(self) -> None:
        process = self._process
        if process is not None and not self._reaped and process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def _reap(self) -> int:
        if self._process is None:
            return 0
        if not self._reaped:
            self._is_gone(wait=True)
        with self._lock:
            self._reaped = True
            return self._process.wait()


def _order(attempt: Attempt, codec: Codec) -> bytes:
    node, spec = attempt.node, attempt.spec
    assert node is not None
    config, runtime = attempt.config(), attempt.runtime()
    config.pop("callbacks", None)
    told = {
        "address": list(address_of(node.name, node.fn)),
        "node": node.name,
        "form": list(node.form),
        "types": [[name, *where] for name, cls in spec.registry.names().items() if (where := known_as(cls))],
        "state": codec.encode(attempt.args()[0], f"the input of {node.name!r}"),
        "config": codec.encode(config, f"the config of the isolated node {node.name!r}"),
        "context": codec.encode(runtime.context, f"the context of the isolated node {node.name!r}"),
        "info": asdict(runtime.execution_info),
        "key": runtime.idempotency_key,
        "hears": attempt.voice is not None and "custom" in attempt.voice.modes,
        "idle": bool(attempt.pace.idle_s),
    }
    return PLAIN.encode(told, f"the order for the isolated node {node.name!r}")


def write_all(fd: int, data: bytes) -> None:
    """Write to a pipe, however much it takes at once."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _waiting(fd: int) -> int:
    """How many bytes are in a pipe."""
    found = array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, found)
    return found[0]


def _whole(buffer: bytearray) -> Iterator[bytes]:
    """The frames that are whole; they leave the buffer."""
    while len(buffer) >= SIZE.size:
        end = SIZE.size + SIZE.unpack_from(buffer)[0]
        if len(buffer) < end:
            return
        frame = bytes(buffer[SIZE.size : end])
        del buffer[:end]
        yield frame


def _how(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code} before it answered"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name} before it answered"


def _died(attempt: Attempt, how: str) -> NodeDied:
    return NodeDied(f"the process of the isolated node {how}", thread=attempt.lease.thread, node=attempt.lease.node)
