"""Fixtures that all tests share. What a test run starts, it ends; what it did not start, it leaves alone."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis

from everstep import COMPILED
from everstep.embedded import EmbeddedServer
from proxy import FaultProxy
from servers import StartServer, chosen_server, described, plain_client, run_seed, server_binaries

# Machines that run tests are busy: how long an example took says nothing.
hypothesis.settings.register_profile("everstep", deadline=None, print_blob=True, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("everstep")


def pytest_configure() -> None:
    """All processes of a run have one seed."""
    os.environ["EVERSTEP_TEST_SEED"] = run_seed()


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Processes side by side begin at different files: so each finds what others have compiled, instead of working
    through the asserts of the same tests at the same time."""
    config = session.config
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        files = [str(path) for path in sorted(Path(__file__).parent.rglob("test_*.py"))]
        first = first_of(config, len(files))
        config.args = files[first:] + files[:first]


def first_of(config: pytest.Config, files: int) -> int:
    """With which file this process begins."""
    worker: dict[str, Any] = getattr(config, "workerinput", {"workerid": "gw0", "workercount": 1})
    return files * int(worker["workerid"].removeprefix("gw")) // int(worker["workercount"])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All processes have the tests in one order. A compiled package is not tested by what needs its source."""
    items.sort(key=lambda item: item.path)
    fixed = [item for item in items if COMPILED and item.get_closest_marker("source")]
    if fixed:
        items[:] = [item for item in items if item not in fixed]
        config.hook.pytest_deselected(items=fixed)


def pytest_report_header() -> str:
    made = "compiled" if COMPILED else "not compiled"
    if not server_binaries():
        return f"everstep: {made}; EVERSTEP_TEST_SEED={run_seed()}, no server found"
    others = [described(name) for name in server_binaries() if name != chosen_server()]
    also = ", ".join(others) or "none"
    return f"everstep: {made}; EVERSTEP_TEST_SEED={run_seed()} chose {described(chosen_server())}; also found: {also}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Soak runs on every server found; all else on the one that the seed chose."""
    if "server_name" in metafunc.fixturenames and metafunc.definition.get_closest_marker("soak"):
        metafunc.parametrize("server_name", sorted(server_binaries()), indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test says how to run it again."""
    report = yield
    if report.failed:
        report.sections.append(("run it again", f"EVERSTEP_TEST_SEED={run_seed()} pytest '{item.nodeid}'"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have to show. And: in CI a skipped test is a promise that nobody kept."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "shown":
                terminalreporter.write_line(str(value))
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and os.environ.get("CI"):
        terminalreporter.section("skipped tests fail the run in CI")
        for report in skipped:
            terminalreporter.line(f"{report.nodeid}: {report.longreprtext}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and isinstance(reporter, pytest.TerminalReporter) and reporter.stats.get("skipped"):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def server_name(request: pytest.FixtureRequest) -> str:
    """Which server: the parameter in soak, else the seed's choice."""
    name: str = getattr(request, "param", None) or chosen_server()
    return name


@pytest.fixture(scope="session")
def shared_server(server_name: str) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(binary=server_binaries()[server_name]) as running:
        yield running


@pytest.fixture
def server(shared_server: EmbeddedServer) -> EmbeddedServer:
    """The run's server, empty. A test that kills or configures one takes `own_server`."""
    assert shared_server.running, "an earlier test ended the shared server"
    with plain_client(shared_server.url) as connection:
        connection.flushall()
    return shared_server


@pytest.fixture
def redis_url(server: EmbeddedServer) -> str:
    return server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with plain_client(redis_url) as connection:
        yield connection


@pytest.fixture
def own_server(server_name: str) -> Iterator[StartServer]:
    """Starts servers that belong to this test alone."""
    with ExitStack() as ending:

        def start(
            *, appendfsync: str = "everysec", extra: Sequence[str] = (), folder: Path | None = None
        ) -> EmbeddedServer:
            binary = server_binaries()[server_name]
            made = EmbeddedServer(binary=binary, appendfsync=appendfsync, extra=extra, folder=folder)
            return ending.enter_context(made)

        yield start


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[FaultProxy]:
    """A way to the shared server that can be broken."""
    with FaultProxy(server.socket) as between:
        yield between


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> random.Random:
    """The test's own dice: the same again for the same EVERSTEP_TEST_SEED."""
    return random.Random(f"{run_seed()} {request.node.nodeid}")
