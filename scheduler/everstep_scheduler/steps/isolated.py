"""An isolated node, seen from its own process: read the order, import the function, call it, answer.

The order comes through a pipe from the process that has the attempt, and from nowhere else. Nothing here knows Redis.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NoReturn, cast

from everstep_checkpoint.codec import PLAIN, Codec
from everstep_checkpoint.errors import OutsideNode

from ..graph.asking import CURRENT, Calling, Doing
from ..graph.runtime import ExecutionInfo, Runtime
from ..graph.spec import form_args
from ..graph.writing import StreamWriter
from .isolating import BEAT, PROGRESS, RAISED, RETURNED, SAID, SIZE, codec_of, framed, write_all
from .outcome import raised

PR_SET_PDEATHSIG = 1
BEAT_S = 0.01


def main(orders: int, answers: int, parent: int) -> None:
    """Run one attempt. `orders`, `answers`: the pipes; `parent`: who made them, and whose death is ours."""
    _die_with(parent)
    for fd in (orders, answers):
        os.set_inheritable(fd, False)
    order: Any = PLAIN.decode(_read(orders, SIZE.unpack(_read(orders, SIZE.size))[0]), "the order")
    threading.Thread(target=_end_with, args=(orders,), name="everstep-parent", daemon=True).start()
    say = Saying(answers)
    try:
        said = RETURNED + _called(order, say)
    except BaseException as error:  # noqa: BLE001 - the door to the user's code
        said = RAISED + _told(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    say.tell(said)


def _called(order: Any, say: Saying) -> bytes:
    codec = codec_of({name: _imported(module, cls) for name, module, cls in order["types"]})
    fn, node = _imported(*order["address"]), order["node"]
    inside = Inside(node, order, codec, say)
    CURRENT.set(inside)
    state = codec.decode(order["state"], f"the input of {node!r}")
    inside.heartbeat()  # what came before was Python's start
    returned = fn(state, **form_args(tuple(order["form"]), inside.config(), inside.runtime()))
    return codec.encode(returned, f"what {node!r} returned")


def _imported(module: str, name: str) -> Any:
    return attrgetter(name)(importlib.import_module(module))


def _told(error: BaseException) -> bytes:
    kind, plain = type(error), raised(None, error, 1, 0.0)  # type: ignore[arg-type]
    return PLAIN.encode([kind.__module__, kind.__qualname__, plain.text, plain.traceback])


class Saying:
    """The way to the process that has the attempt. From any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._beat_at = 0.0

    def tell(self, data: bytes) -> None:
        with self._lock:
            write_all(self._fd, framed(data))

    def beat(self, kind: bytes) -> None:
        """A sign of life. One right after another is not worth a frame."""
        now = time.monotonic()
        if now - self._beat_at >= BEAT_S:
            self._beat_at = now
            self.tell(kind)


@dataclass
class Inside:
    """What the node can ask here. What needs the attempt itself, which is in another process, it can't."""

    node: str
    order: Any
    codec: Codec
    say: Saying
    slotted: bool = field(default=True, init=False)

    @property
    def writer(self) -> StreamWriter:
        return self._write

    def _write(self, said: Any) -> None:
        if self.order["hears"]:
            self.say.tell(SAID + self.codec.encode(said, f"what {self.node!r} told"))
        elif self.order["idle"]:
            self.say.beat(PROGRESS)

    def heartbeat(self) -> None:
        """For the idle timeout, if there is one."""
        if self.order["idle"]:
            self.say.beat(BEAT)

    def config(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.codec.decode(self.order["config"], "the config"))

    def runtime(self) -> Runtime[Any]:
        context = self.codec.decode(self.order["context"], "the context")
        info = ExecutionInfo(**self.order["info"])
        return Runtime(context, info, self.order["key"], self._write, self.heartbeat)

    def ask(self, value: Any, response_schema: Any) -> Any:
        self.refuse("interrupt()")

    @property
    def doing(self) -> Doing:
        self.refuse("once()")

    @property
    def calls(self) -> Calling:
        self.refuse("a @task")

    def is_own(self, thread: object) -> bool:
        """Does a config name no thread, or the node's own?"""
        return thread is None or bool(thread == self.config()["configurable"]["thread_id"])

    def refuse(self, what: str) -> NoReturn:
        raise OutsideNode(
            f"{what} was called in an isolated node, which runs in a process of its own",
            node=self.node,
            fix="do it in another node, or leave out isolate=True",
        )


# with the parent


def _die_with(parent: int) -> None:
    """On Linux the kernel ends us with the thread that began us, which waits for us; elsewhere the pipe tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _end_with(orders: int) -> None:
    """The pipe of orders ends with who holds it: nobody waits for the answer any more."""
    os.read(orders, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _read(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            os._exit(1)  # who began us is gone
        data += part
    return bytes(data)
