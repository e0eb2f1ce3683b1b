"""What runs in a pool's child, from the fork to its exit code. User code is imported here, never in the parent."""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from everstep_checkpoint.errors import EverstepError, ServerUnavailable
from everstep_checkpoint.keys import Keys
from everstep_scheduler.moves.contract import LEASE_MS

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STARTING = 70
SOLO_IDLE_S = 2.0
PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("everstep.worker")


@dataclass(frozen=True)
class Order:
    """What a child is to do. `solo`: run suspects alone, from these queues, and end when there are none. `spare`: load
    the graphs, and wait to be called before anything else. `cells`: where its pulse is told."""

    url: str
    targets: tuple[str, ...]
    name_ending: str
    concurrency: int = 10
    queues: tuple[str, ...] = ()
    grace_s: float = 30.0
    lease_ms: int = LEASE_MS
    keys: Keys = field(default_factory=Keys)
    solo: bool = False
    spare: bool = False
    cells: memoryview[float] | None = None


def preload(keys: Keys) -> None:
    """Import in the parent what every child needs and no user wrote: who takes a dead child's place, or its tasks,
    begins a third of a second sooner, and shares the pages. It opens nothing and starts no thread."""
    from .face import pin_rq_prefix

    pin_rq_prefix(keys)
    from everstep_scheduler.inline import compiled as compiled

    from . import targets as targets
    from . import worker as worker
    from .line import Line

    Line("redis://127.0.0.1:1").close()  # it does not connect; what a first client imports is imported


class Forked(NamedTuple):
    """A child: its pid, the file that its reports come from, and the one by which a spare is called (-1: no spare)."""

    pid: int
    reports: int
    call: int


def child_main(order: Order, parent: int, report_fd: int, call_fd: int = -1) -> int:
    """Run a worker to its end. Returns the exit code: 2 if it can't begin for a reason that stays, which is told."""
    os.setpgrp()  # a terminal's Ctrl-C is the parent's to handle; it tells us once
    signal.set_wakeup_fd(-1)
    for number in (*SIGNALS, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    die_with(parent)
    try:
        _run(order, report_fd, call_fd)
    except EverstepError as error:
        sys.stderr.write(f"error: {error.what}\n" + (f"  fix: {error.fix}\n" if error.fix else ""))
        return EXIT_FAILED if isinstance(error, ServerUnavailable) else EXIT_USAGE
    return 0


def _run(order: Order, report_fd: int, call_fd: int) -> None:
    from .face import pin_rq_prefix, worker_name

    pin_rq_prefix(order.keys)
    from .pulse import Pulse
    from .targets import load_targets
    from .worker import Worker

    graphs = load_targets(order.targets)
    gc.freeze()  # what is there now stays: modules and graphs, which no collection need look at
    if call_fd >= 0 and not os.read(call_fd, 1):
        return
    worker = Worker(
        order.url,
        graphs,
        concurrency=1 if order.solo else order.concurrency,
        queues=order.queues or None,
        grace_s=order.grace_s,
        lease_ms=order.lease_ms,
        keys=order.keys,
        name=worker_name(os.getpid(), order.name_ending),
        serves_parked=not order.solo,
        idle_exit_s=SOLO_IDLE_S if order.solo else 0.0,
        pooled=True,
        on_change=lambda change: _report(report_fd, change),
        pulse=Pulse(order.cells),
    )
    worker.run()


def _report(fd: int, change: dict[str, Any]) -> None:
    """One line to the parent: {"queues": [...]} when it begins, {"claimed": true} after its first claim."""
    try:
        os.write(fd, json.dumps(change).encode() + b"\n")
    except OSError:  # the parent is gone; the worker notices by itself
        log.debug("nobody reads our reports")


def die_with(parent: int) -> None:
    """On Linux the kernel tells us when the parent dies; elsewhere the worker looks for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(0)


def flush() -> None:
    """Nothing that was said is said again by a child. Where nobody listens, or the disk is full, it goes unsaid."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def fork(order: Order, close: Sequence[int] = ()) -> Forked:
    """Start a child. `close`: files that are not the child's. Raises OSError where no process can be made."""
    reports, report_fd = os.pipe()
    call_fd, call = os.pipe() if order.spare else (-1, -1)
    os.set_blocking(reports, False)
    parent = os.getpid()
    flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # none may get lost between the fork and the child's own handlers
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for fd in (reports, report_fd, call_fd, call):
            if fd >= 0:
                os.close(fd)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for fd in (report_fd, call_fd):
            if fd >= 0:
                os.close(fd)
        return Forked(pid, reports, call)
    code = EXIT_STARTING
    try:
        for fd in (reports, call, *close):
            if fd >= 0:
                os.close(fd)
        code = child_main(order, parent, report_fd, call_fd)
    except BaseException:
        log.exception("everstep's own error in a worker process")
    finally:
        logging.shutdown()
        flush()
        os._exit(code)
