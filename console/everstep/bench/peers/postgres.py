"""A PostgreSQL of our own, for peers that need one: in a private folder, on a unix socket, gone at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

USUAL = "/usr/lib/postgresql"
SAYS_S = 60
NOBODY = "postgres"


def binaries() -> Path | None:
    """Where initdb and pg_ctl are; None if there are none."""
    usual = sorted(Path(USUAL).glob("*/bin"), key=lambda path: path.parent.name) if Path(USUAL).is_dir() else []
    on_path = shutil.which("initdb")
    for folder in [*reversed(usual), *([Path(on_path).resolve().parent] if on_path else [])]:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    return None


def why_not() -> str:
    """Why no server can be started here; empty if one can."""
    if binaries() is None:
        return "no PostgreSQL server found: apt install postgresql, brew install postgresql"
    if os.geteuid() == 0 and not _has(NOBODY):
        return f"PostgreSQL does not run as root, and there is no user {NOBODY}"
    return ""


@contextmanager
def running() -> Generator[str]:
    """Its URL, for a database with nothing in it; defaults, so fsync and synchronous_commit are on."""
    found = binaries()
    assert found is not None, why_not()
    place = Path(tempfile.mkdtemp(prefix="everstep-pg-"))
    if os.geteuid() == 0:
        shutil.chown(place, NOBODY)
    data = place / "data"
    try:
        _run(found / "initdb", "-D", data, "-U", "bench", "-A", "trust", "-N")
        options = f"-c listen_addresses= -c unix_socket_directories={place} -c max_connections=300"
        _run(found / "pg_ctl", "-D", data, "-w", "-l", place / "log", "-o", options, "start")
        try:
            yield f"postgresql://bench@/postgres?host={quote(str(place), safe='')}"
        finally:
            _run(found / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _has(user: str) -> bool:
    import pwd

    return any(each.pw_name == user for each in pwd.getpwall())


def _run(*words: object) -> None:
    """One of its programs, as another user where we are root: it refuses to run as root."""
    user = NOBODY if os.geteuid() == 0 else None
    subprocess.run(  # noqa: S603  # a program that was found where PostgreSQL puts it
        [str(word) for word in words], user=user, cwd="/", check=True, timeout=SAYS_S,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
