"""What the documentation says is so: its samples run, its tables are whole, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from everstep.cli import WORDS, cli
from everstep.embedded import EmbeddedServer
from everstep_checkpoint import codec, delta, errors
from everstep_checkpoint import entries as e
from everstep_checkpoint.keys import Keys
from golden.dump import FOLDER, from_line
from servers import chosen_server, plain_client, server_binaries, wait_for

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md")])
REDIS = "redis://127.0.0.1:6379/0"
SAMPLED = (ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("quickstart", "streaming", "effects", "functional")))
SERVED = "examples.counting:graph"


def page(name: str) -> str:
    return (DOCS / name).read_text()


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def rows(text: str) -> set[str]:
    """Everything in backticks in the cells of tables."""
    cells = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    return set(re.findall(r"`([^`]+)`", cells))


def samples() -> list[tuple[str, str]]:
    found = [(path, code) for path in SAMPLED for code in blocks(path, "python")]
    found.append((DOCS / "nodes.md", "\n".join(blocks(DOCS / "nodes.md", "python"))))  # one program, piece by piece
    return [(f"{path.name}-{i}", code) for i, (path, code) in enumerate(found)]


# -- what runs


@pytest.fixture(scope="module")
def fleet() -> Iterator[str]:
    """A server, and a worker for the graph that the samples submit to."""
    with EmbeddedServer(binary=server_binaries()[chosen_server()]) as server:
        command = [sys.executable, "-m", "everstep", "--url", server.url, "worker", SERVED, "--quiet"]
        worker = subprocess.Popen(command, cwd=ROOT)
        try:
            with plain_client(server.url) as client:
                wait_for(lambda: client.exists(Keys(rq="rq").graph("counting")), 20, "the worker's graph")
            yield server.url
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(20)


@pytest.mark.parametrize(("name", "code"), samples(), ids=[name for name, _ in samples()])
def test_a_sample_runs_as_it_stands(name: str, code: str, fleet: str) -> None:
    changed = code.replace(REDIS, fleet)
    done = subprocess.run([sys.executable, "-c", changed], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"print\(.*\)  # (.+)", code)
    for line in said:
        promised = line.partition(" checkpoints")[0].partition(": it")[0]
        assert promised in done.stdout, f"{promised!r} is not in {done.stdout!r}"


def test_the_samples_of_time_travel_run_one_after_the_other() -> None:
    code = "\n".join(blocks(DOCS / "time-travel.md", "python"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr


def words_in_docs() -> list[str]:
    found: list[str] = []
    for path in PAGES:
        lines = [line for block in blocks(path, "sh") for line in block.splitlines()]
        lines += re.findall(r"`(everstep [a-z][^`]*)`", path.read_text())
        found += [line.partition(" # ")[0] for line in lines if line.startswith("everstep ")]
    return sorted(set(found))


@pytest.mark.parametrize("line", words_in_docs())
def test_a_command_in_the_docs_is_one_that_the_command_line_knows(line: str) -> None:
    _, word, *rest = shlex.split(line)
    assert word in WORDS
    command = cli.get_command(click.Context(cli), word)
    assert command is not None
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
    assert {each for each in rest if each.startswith("-")} <= known


def test_the_commands_of_the_readme_do_what_they_say(fleet: str) -> None:
    lines = [line for line in "\n".join(blocks(ROOT / "README.md", "sh")).splitlines() if line.startswith("everstep ")]
    for line in [each for each in lines if not each.startswith("everstep worker")]:
        environment = {**os.environ, "EVERSTEP_URL": fleet}
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(line)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            env=environment,
        )
        assert done.returncode == 0, f"{line}: {done.stdout} {done.stderr}"


# -- what is whole


def test_every_kind_and_every_field_stands_in_the_contract_of_the_log() -> None:
    said = rows(page("log-format.md"))
    text = page("log-format.md")
    assert {kind for kind in e.FACTS | {e.CHECKPOINT} if f"`{kind}`" not in text} == set()
    named = {*e._DIGESTED, *e._DIGESTED_VALUES, *e._SUMMED, "digest", "sum", "v", "kind", "at", "run"}
    for path in FOLDER.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            named |= set(from_line(line).raw)
    code = "".join(path.read_text() for path in (ROOT / "checkpoint" / "everstep_checkpoint").glob("*.py"))
    named |= set(re.findall(r"""(?:\.text|\.number|\.json|\.value|raw\.get)\("([a-z_]+)"[,)]""", code))
    assert named - said == set()


def test_every_envelope_delta_op_and_bound_stands_in_the_contract_of_the_log() -> None:
    text = page("log-format.md")
    for number, name in e._ENVELOPES.items():
        assert f"| `{number}` | {name}" in text
    for name in ("SET", "APPEND", "MERGE", "SPLICE", "DELETE", "TAKE", "TAKE_APPEND"):
        form = text.partition(f"| {name} | `[")[2].partition("`")[0]
        assert form[:1] == str(getattr(delta, name))
    assert "## Deltas\n\nA delta is a msgpack map" in text
    assert f"{e.PART_TASKS_MAX} Sends or {e.PART_BYTES_MAX // 1024} KB" in text
    assert f"| an entry | {e.ENTRY_MAX // 2**20} MB |" in text
    assert f"| a value of a channel | {codec.VALUE_MAX // 2**20} MB |" in text


def test_every_key_stands_in_the_page_on_redis_cli() -> None:
    made = {name for name in vars(Keys) if not name.startswith("_")} - {"stem", "namespace", "partition", "rq"}
    assert made - rows(page("redis-cli.md")) == set()


def test_every_script_stands_in_the_page_on_moves() -> None:
    scripts = {path.stem for package in ("everstep_scheduler.moves", "everstep_checkpoint") for path in _lua(package)}
    text = page("moves.md")
    pieces = {
        "common", "date", "header", "limits", "lone", "opening", "plain", "resting", "starting", "taking", "turns",
    }  # fmt: skip
    assert {name for name in pieces if f"`{name}.lua`" not in text} == set()
    assert {name for name in scripts - pieces if f"| `{name}` |" not in text} == set()


def _lua(package: str) -> list[Path]:
    return [Path(str(each)) for each in (files(package) / "lua").iterdir() if each.name.endswith(".lua")]


def test_every_place_of_a_task_stands_in_the_page_on_moves() -> None:
    text = "".join(path.read_text() for path in _lua("everstep_scheduler.moves"))
    places = set(re.findall(r"\bp = '([a-z]+)'", text)) | set(re.findall(r"\.p = '([a-z]+)'", text)) | {"unmade"}
    places |= set(re.findall(r"rec\.p, [^=]*= '([a-z]+)'", text))
    assert len(places) >= 8
    assert {place for place in places - {"moving"} if f"| `{place}` |" not in page("moves.md")} == set()


def test_every_error_stands_in_the_page_on_errors() -> None:
    kinds = {
        name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, errors.EverstepError)
    }
    leaves = {name for name in kinds if not getattr(errors, name).__subclasses__()} | {"RunFailed"}
    assert leaves - rows(page("errors.md")) == set()


def test_every_word_of_the_command_line_stands_in_the_docs() -> None:
    text = "\n".join(path.read_text() for path in PAGES)
    assert {word for word in WORDS if not re.search(rf"(everstep|make) {word}\b", text)} == set()


def test_every_test_that_the_guarantees_name_is_there() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", "\n".join(path.read_text() for path in DOCS.glob("*.md"))))
    assert len(named) > 20
    assert {name for name in named if not re.search(rf"def {name}\(", code)} == set()


# -- where it leads


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name) if name else path
        assert found.exists(), target
        assert not anchor or anchor in _anchors(found), target


def _anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_decision_is_in_the_list_and_says_what_was_not_chosen() -> None:
    text = page("architecture.md")
    for path in sorted((DOCS / "decisions").glob("*.md")):
        assert f"(decisions/{path.name})" in text
        for word in ("**Chosen.**", "**Not chosen.**", "**Why.**"):
            assert word in path.read_text()


def test_the_drawing_is_well_formed_and_has_a_dark_side() -> None:
    drawing = DOCS / "architecture.svg"
    assert ElementTree.parse(drawing).getroot().tag.endswith("svg")
    assert "prefers-color-scheme: dark" in drawing.read_text()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_has_one_title_and_lines_that_fit(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    long = [line for line in text.splitlines() if len(line) > 160 and not line.startswith("|")]
    assert long == []
