"""The tour keeps its promises, and does so again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from servers import wait_for


def demo(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "everstep", "demo", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many files, and so large, that a worker has some in its hands when it is killed."""
    folder = tmp_path_factory.mktemp("texts")
    for n in range(90):
        lines = [f"def f{n}_{i}(a, b):\n    return [a + {i}, b * {n}, (a, b)]\n" for i in range(120)]
        (folder / f"file{n}.py").write_text("\n".join(lines))
    (folder / "notes.txt").write_text("one two three\n")
    return folder


def test_the_tour_shows_equal_history_a_takeover_and_where_to_look_next(texts: Path) -> None:
    done = demo("--dir", str(texts))
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert said.count('{"count": 5, "done": true}') == 2
    assert "ok equal history: 12 checkpoints" in said
    assert re.search(r"kill -9 \d+, the worker", said)
    assert re.search(r"it held +\d+ tasks?: file\d+\.py", said)
    assert re.search(r"its work was taken over +after [\d.]+ m?s", said)
    assert "ok no committed task ran again: 91 tasks" in said
    assert "ok the report equals an undisturbed run's" in said
    assert re.search(r"lost +analyse", said), "the history shows the attempt that was lost"
    assert re.search(r"\$ redis-cli -s \S+ XLEN", said)
    assert re.search(r"counting +\| 0, 0 executing", said), "rq info was run"
    assert "Traceback" not in said + done.stderr


def test_the_tour_works_again_and_leaves_nothing_behind(texts: Path) -> None:
    done = demo("--dir", str(texts), "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 worker processes" in done.stdout and "\nx " not in done.stdout
    (socket,) = set(re.findall(r"redis-cli -s (\S+)/s ", done.stdout))
    wait_for(lambda: not Path(socket).exists(), what="the private folder is removed")


def test_a_folder_with_too_little_to_read_is_a_mistake_in_one_line(tmp_path: Path) -> None:
    for folder, said in ((tmp_path, "has 0 text files"), (tmp_path / "gone", "does not exist")):
        done = demo("--dir", str(folder))
        assert done.returncode == 2
        assert said in done.stderr and "Traceback" not in done.stderr
