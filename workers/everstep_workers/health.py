"""Whether a pool is well, told by a process of its own: over HTTP, and as a file.

    parent ──fork──► health: reads the board of pulses ──► GET /livez, /readyz; a file, touched once a second
                       └─ its parent is gone, or SIGTERM ──► the file is removed

live    every process's claim loop, main thread and lease thread made progress lately; to restart helps if not
ready   live, all processes there and claiming: none starts, drains, rebuilds indexes, or waits for Redis for long

While Redis is away a pool is live and not ready: a restart would not bring Redis back, and would lose what runs. The
process touches neither Redis nor user code and forks nothing, so its answer waits for nobody.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from everstep_checkpoint.errors import InputError

from .child import die_with, flush
from .pulse import AWAY, DRAINING, MAIN, PARTS, PID, REBUILDS, SINCE, SPARE, STARTING, STATE, WORKING, Board

WITHIN_S = 30.0
PARENT_WITHIN_S = 60.0  # it may wait for a Redis that swallows everything
START_S = 300.0  # the user's modules are imported meanwhile
AWAY_S = 5.0
FILE_EVERY_S = 1.0
RESTART_S = 1.0
CLIENT_S = 5.0
CLIENTS_MAX = 16
PATHS = ("/livez", "/readyz")
STATES = {STARTING: "starting", WORKING: "working", DRAINING: "draining"}
SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("everstep.pool")


@dataclass
class Health:
    """What there is to say. `why`: all that speaks against being live or ready."""

    live: bool = True
    ready: bool = True
    why: list[str] = field(default_factory=list[str])
    workers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def hangs(self, why: str) -> None:
        self.live = False
        self.waits(why)

    def waits(self, why: str) -> None:
        self.ready = False
        self.why.append(why)

    def text(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def judge(board: Board, processes: int, within_s: float = WITHIN_S) -> Health:
    """The pool's health, by its pulses. `processes`: how many there are to be, beside those for suspects."""
    now, health = time.monotonic(), Health()
    parent, *children = board.rows
    if parent[STATE] == DRAINING:
        health.waits("the pool drains")
    elif now - parent[MAIN] > max(within_s, PARENT_WITHIN_S):
        health.hangs(f"the pool's parent: no progress for {now - parent[MAIN]:.0f} s")
    for row in children:
        if row[SINCE] and row[STATE] != SPARE:
            _judge_one(health, row, within_s, now)
    there = sum(bool(row[SINCE]) for row in children[:processes])
    if there < processes:
        health.waits(f"{there} of {processes} worker processes are there")
    return health


def _judge_one(health: Health, row: memoryview[float], within_s: float, now: float) -> None:
    state, name = row[STATE], f"process {int(row[PID])}"
    ages = {part: now - row[part] for part in PARTS if row[part]}
    told: dict[str, Any] = {"pid": int(row[PID]), "state": STATES[state]}
    told |= {PARTS[part].replace(" ", "_") + "_s": round(age, 1) for part, age in ages.items()}
    health.workers.append(told)
    if state == DRAINING:  # the parent ends it in time, whatever it does
        health.waits(f"{name} drains")
        return
    if state == STARTING:
        health.waits(f"{name} is starting")
        if not ages and now - row[SINCE] > max(within_s, START_S):
            health.hangs(f"{name}: still starting after {now - row[SINCE]:.0f} s")
    for part, age in ages.items():
        if age > within_s:
            health.hangs(f"{name}: its {PARTS[part]} made no progress for {age:.0f} s")
    if row[REBUILDS]:
        health.waits(f"{name} rebuilds indexes, or waits for who does")
    if row[AWAY] and now - row[AWAY] > AWAY_S:
        health.waits(f"{name}: Redis is away for {now - row[AWAY]:.0f} s")


def listening(address: str) -> socket.socket:
    """A socket for `PORT`, which is loopback's, `HOST:PORT` or `[HOST]:PORT`. Raises InputError."""
    host, _, port = address.rpartition(":")
    try:
        where = (host.strip("[]") or "127.0.0.1", int(port))
        family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        return socket.create_server(where, family=family, backlog=CLIENTS_MAX)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"health can't be told at {address!r}: {error}", fix="--health PORT or HOST:PORT, one that is free"
        ) from None


class HealthProcess:
    """The process that tells, as its parent sees it. `file` or `address`, or both."""

    def __init__(self, board: Board, processes: int, *, file: str = "", address: str = "", within_s: float) -> None:
        self._board = board
        self._processes = processes
        self._within_s = within_s
        self._file = Path(file).absolute() if file else None
        if self._file is not None and not os.access(self._file.parent, os.W_OK):
            raise InputError(
                f"the health file {file} can't be written", fix="make its folder, and let this user write there"
            )
        self._socket = listening(address) if address else None
        self._pid = 0
        self._due = 0.0
        if self._socket is not None:
            log.info("health: http://%s:%d/livez and /readyz", *self._socket.getsockname()[:2])

    @property
    def due(self) -> bool:
        """Is one to be started? It has ended, or was never there."""
        if self._pid and os.waitpid(self._pid, os.WNOHANG)[0]:
            log.warning("the process that tells our health is gone; another one begins")
            self._pid, self._due = 0, time.monotonic() + RESTART_S
        return not self._pid and time.monotonic() >= self._due

    @property
    def files(self) -> tuple[int, ...]:
        """The files that no worker process is to have."""
        return () if self._socket is None else (self._socket.fileno(),)

    def start(self, close: Iterable[int]) -> None:
        """Fork it. `close`: files that are not its own."""
        parent = os.getpid()
        flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            log.error("no process that tells our health can be started: %s; trying again", error)
            self._due = time.monotonic() + RESTART_S
            return
        if self._pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return
        code = 1
        try:
            for fd in close:
                os.close(fd)
            self._main(parent)
            code = 0
        except BaseException:
            log.exception("everstep's own error in the process that tells our health")
        finally:
            logging.shutdown()
            os._exit(code)

    def end(self) -> None:
        """End it, and see it gone: its file, too."""
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)
            os.waitpid(self._pid, 0)
            self._pid = 0
        if self._socket is not None:
            self._socket.close()

    # in the process itself

    def _main(self, parent: int) -> None:
        os.setpgrp()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _leave)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            die_with(parent)
            if self._socket is not None:
                threading.Thread(target=self._serve, args=(self._socket,), daemon=True).start()
            while os.getppid() == parent:
                self._write()
                time.sleep(FILE_EVERY_S)
        except SystemExit:
            pass
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if self._file is not None:
                self._file.unlink(missing_ok=True)

    def health(self) -> Health:
        return judge(self._board, self._processes, self._within_s)

    def _write(self) -> None:
        """The file is there while the pool is live; whoever reads it sees it whole."""
        if self._file is None:
            return
        health = self.health()
        try:
            if not health.live:
                self._file.unlink(missing_ok=True)
                return
            fresh = self._file.with_name(f".{self._file.name}.{os.getpid()}")
            try:
                fresh.write_text(health.text())
                fresh.replace(self._file)
            finally:
                fresh.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the health file can't be written: %s", error)

    def _serve(self, listener: socket.socket) -> None:
        server = _Server(listener)
        server.asked = self.health
        server.serve_forever()


def _leave(number: int, frame: object) -> None:
    raise SystemExit


class _Server(ThreadingHTTPServer):
    """Answers from a socket that listens already, at most `CLIENTS_MAX` clients at once, each for `CLIENT_S` seconds in
    all; others are hung up on."""

    daemon_threads = True
    asked: Any

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._room = threading.BoundedSemaphore(CLIENTS_MAX)
        self._until: dict[socket.socket, float] = {}

    def service_actions(self) -> None:
        """Twice a second: hang up on clients whose time is over, however often they sent a byte."""
        now = time.monotonic()
        for client, until in list(self._until.items()):
            if now > until:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)  # who reads from it, or writes, comes to its end

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            self._until[request] = time.monotonic() + CLIENT_S
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._until.pop(request, None)
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of our health went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of /livez and /readyz: 200 or 503, with the health as JSON."""

    timeout = CLIENT_S
    server_version = "everstep"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path not in PATHS:
            self.send_error(404, explain=f"there is {' and '.join(PATHS)}")
            return
        server: Any = self.server
        health: Health = server.asked()
        body = health.text().encode()
        self.send_response(200 if (health.live if self.path == "/livez" else health.ready) else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """A probe a second is no news."""
