"""A trap for data that reaches code: while it is set, each import by name, exec, compile, unpickling, process or
connection that no statement of a program asks for is written down.

    with TRAP.set(socket) as sprung:                       in this process, for all threads
    python tests/trap.py REPORT -- rq worker ...           another program, from its first line, and what it forks

An `import` statement names a constant, so it is no harm; `import_module` and `__import__` take names. Hooks of
`sys.addaudithook` can't be taken away, so one is put in place once, and asleep unless the trap is set.
"""

from __future__ import annotations

import builtins
import importlib
import opcode
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# What code from data would have to do. The first group is also what an import statement does to a module's body.
EXECUTES = frozenset({"exec", "compile", "marshal.loads", "code.__new__", "import"})
SPAWNS = frozenset(
    {
        "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn", "subprocess.Popen",
        "pickle.find_class", "ctypes.dlopen", "shutil.rmtree", "webbrowser.open", "urllib.Request",
        "socket.connect", "socket.getaddrinfo", "socket.sendto", "ftplib.connect", "smtplib.connect",
    }
)  # fmt: skip
IMPORT_NAME = opcode.opmap["IMPORT_NAME"]
# Imported by C code of the standard library under constant names, when they are first needed.
# Constants, too: what importlib.resources is asked for.
CONSTANTS = frozenset({"tzdata", "everstep_scheduler.moves", "everstep_checkpoint"})
OF_THE_LIBRARY = ("_strptime", "resource", "encodings.", "_bootlocale", "unicodedata", "_datetime", "_pydatetime")
IMPORTLIB = ("<frozen importlib", "importlib/__init__.py")

Names = Callable[[str], bool]


def _is_importlib(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name == __file__ or name.startswith(IMPORTLIB[0]) or name.endswith(IMPORTLIB[1])


def _by_statement(frame: FrameType | None) -> bool:
    """Does an import statement, in this frame or further out, cause what happens here?"""
    inside = True  # the event's own frame may be the statement's
    while frame is not None:
        if inside and frame.f_code.co_code[frame.f_lasti] == IMPORT_NAME:
            return True
        inside = _is_importlib(frame)
        frame = frame.f_back
    return False


def _parses(event: str, frame: FrameType) -> bool:
    """Is it `traceback`, which parses (and does not run) a line of our own source to underline what raised?"""
    outer = frame.f_back
    return event == "compile" and outer is not None and outer.f_code.co_filename == traceback.__file__


class Trap:
    """Asleep until it is set. `named`: the modules that the program may import by name."""

    def __init__(self) -> None:
        self._set = False
        self._placed = False
        self._allowed = threading.local()
        self._addresses: frozenset[object] = frozenset()
        self._named: Names = lambda name: False
        self._wrote: Callable[[str], None] = lambda what: None

    def place(self, wrote: Callable[[str], None], addresses: frozenset[object], named: Names) -> None:
        """Set it. `wrote` is told what springs it."""
        if not self._placed:
            self._placed = True
            sys.addaudithook(self._heard)
            self._stock = importlib.import_module
            importlib.import_module = self._import_module
            self._stock_import = builtins.__import__
            builtins.__import__ = self._import
        self._wrote, self._addresses, self._named, self._set = wrote, addresses, named, True

    @contextmanager
    def set(self, *addresses: object, named: Names = lambda name: False) -> Iterator[list[str]]:
        """Set it for a while. Yields the list of what sprang it."""
        sprung: list[str] = []
        self.place(sprung.append, frozenset(addresses), named)
        try:
            yield sprung
        finally:
            self._set = False

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._set or (event not in EXECUTES and event not in SPAWNS) or self._by_permission():
            return
        if event == "socket.connect" and self._is_known(args[1]):
            return
        if event == "import" and str(args[0]).startswith(OF_THE_LIBRARY):
            return
        frame = sys._getframe(1)
        if event in EXECUTES and (_by_statement(frame) or _parses(event, frame)):
            return
        self._write(f"{event} {args!r:.300}", frame)

    def _by_permission(self) -> int:
        """How many imports by name that are permitted are under way in this thread."""
        depth: int = getattr(self._allowed, "depth", 0)
        return depth

    def _is_known(self, address: object) -> bool:
        return (os.fsdecode(address) if isinstance(address, bytes | str) else address) in self._addresses

    def _write(self, what: str, frame: FrameType | None) -> None:
        where: list[str] = []
        while frame is not None and len(where) < 8:
            where.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}")
            frame = frame.f_back
        self._wrote(f"{what} at {' < '.join(where)}")

    def _import_module(self, name: str, package: str | None = None) -> Any:
        return self._by_name(name, lambda: self._stock(name, package))

    def _import(self, name: str, *args: Any, **named: Any) -> Any:
        """Code in C comes here, too, with names of its own: those of modules that are there do nothing."""
        caller = sys._getframe(1)
        if not self._set or name in sys.modules or caller.f_code.co_code[caller.f_lasti] == IMPORT_NAME:
            return self._stock_import(name, *args, **named)
        return self._by_name(name, lambda: self._stock_import(name, *args, **named))

    def _by_name(self, name: str, imported: Callable[[], Any]) -> Any:
        if not self._set or _by_statement(sys._getframe(2)):
            return imported()
        if not (name in CONSTANTS or name.startswith(OF_THE_LIBRARY) or self._named(name)):
            self._write(f"import by name of {name!r}", sys._getframe(2))
            return imported()
        self._allowed.depth = self._by_permission() + 1
        try:
            return imported()
        finally:
            self._allowed.depth -= 1


TRAP = Trap()


def main(report: str, program: list[str]) -> None:
    """Run a console script of this environment with the trap set, and write what springs it into a file."""
    from importlib.metadata import entry_points

    socket, *allowed = os.environ.get("TRAP_KNOWS", "").split(os.pathsep)
    (script,) = entry_points(group="console_scripts", name=program[0])
    begin = script.load()

    def wrote(what: str) -> None:
        with open(report, "a") as file:
            file.write(what + "\n")

    TRAP.place(wrote, frozenset({socket}), lambda name: name in allowed)
    sys.argv = program
    sys.exit(begin())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3:])
