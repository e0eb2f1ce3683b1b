"""The examples run as their own first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from everstep import InMemorySaver
from everstep.crew import Crew
from everstep.demo.graphs import PLACES, example
from everstep.embedded import EmbeddedServer
from everstep.site import Site
from servers import wait_for

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def reading() -> ModuleType:
    return example("reading")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("class A:\n    def f(self): ...\n\nasync def g(): ...\n")
    (tmp_path / "sub" / "b.txt").write_text("one two\nthree\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "left_out.py").write_text("x = 1\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    return tmp_path


@pytest.mark.source
def test_the_demo_shows_these_very_files() -> None:
    assert EXAMPLES in PLACES
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"__init__", "counting", "reading", "producer"}


def test_counting_counts_to_five_by_steps_of_two_nodes() -> None:
    graph = example("counting").graph
    found = list(graph.stream({"count": 0, "done": False}))
    assert [next(iter(chunk)) for chunk in found] == ["inc", "check"] * 5
    assert graph.invoke({"count": 3, "done": False}) == {"count": 5, "done": True}


def test_reading_reads_what_is_text_and_reports_sums(reading: ModuleType, texts: Path) -> None:
    report = reading.graph.invoke({"dir": str(texts)})["report"]
    assert report["files"] == 3 and report["largest"][0] == "a.py"
    assert (report["functions"], report["classes"]) == (2, 1)
    assert report["words"] == 14


def test_reading_gives_one_digest_for_one_folder_however_it_is_read(reading: ModuleType, texts: Path) -> None:
    graphs: list[Any] = [reading.graph, reading.build(), type(reading.graph)(reading.graph.spec, InMemorySaver())]
    config = [{"max_concurrency": 1}, {"max_concurrency": 8}, {"configurable": {"thread_id": "t"}}]
    digests = {
        graph.invoke({"dir": str(texts)}, said)["report"]["digest"] for graph, said in zip(graphs, config, strict=True)
    }
    assert len(digests) == 1
    (texts / "a.py").write_text("x = 1\n")
    assert reading.graph.invoke({"dir": str(texts)})["report"]["digest"] not in digests


def test_reading_takes_a_limit_and_an_empty_folder(reading: ModuleType, texts: Path, tmp_path: Path) -> None:
    assert reading.graph.invoke({"dir": str(texts), "limit": 1})["report"]["files"] == 1
    (tmp_path / "none").mkdir()
    assert reading.graph.invoke({"dir": str(tmp_path / "none")})["report"]["files"] == 0


def test_the_producer_enqueues_for_workers_whose_code_it_does_not_have(server: EmbeddedServer, tmp_path: Path) -> None:
    site = Site(server.url)
    crew = Crew(
        server.url, ["examples.counting:graph"], ("--grace", "1"), out=tmp_path / "out", env={"PYTHONPATH": str(ROOT)}
    )
    crew.start()
    try:
        wait_for(lambda: site.redis.sismember(site.keys.graphs, "counting"), 20, "the graph is published")
        assert (
            "import" in (EXAMPLES / "producer.py").read_text()
            and "counting import" not in (EXAMPLES / "producer.py").read_text()
        )
        command = [sys.executable, str(EXAMPLES / "producer.py"), "2"]
        for _ in range(2):  # the second time attaches to the same runs
            done = subprocess.run(
                command, cwd=tmp_path, env={"EVERSTEP_URL": server.url}, capture_output=True, text=True, timeout=60
            )
            assert done.stdout == "order-0 {'count': 5, 'done': True}\norder-1 {'count': 5, 'done': True}\n", (
                done.stderr
            )
        assert site.redis.zcard(site.keys.threads("done")) == 2
    finally:
        crew.stop()


def test_the_producer_says_what_is_missing(server: EmbeddedServer, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "producer.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env={"EVERSTEP_URL": server.url}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "no graph 'counting' is published" in done.stderr and "Traceback" not in done.stderr
