"""What an operator sees of a failure and of typed values: the user's lines, all on request, plain JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypedDict

import pytest
from pydantic import BaseModel

from everstep import traces
from everstep.cli import main
from everstep_checkpoint.errors import InvalidUpdateError, RunFailed
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.steps.outcome import raised
from hand import working


class Mood(Enum):
    GOOD = "good"


class Point(BaseModel):
    x: int
    mood: Mood = Mood.GOOD


@dataclass
class Tag:
    text: str
    at: Point


class State(TypedDict, total=False):
    why: str
    at: Point
    tags: list[Tag]


def deep(depth: int) -> None:
    if depth == 0:
        raise ValueError("no \x1b[31mline\x1b[0m\nand a second line")
    deep(depth - 1)


def fails(state: State) -> Any:
    match state["why"]:
        case "python":
            return json.loads("{")
        case "key":
            return {"no_such_key": 1}
        case "type":
            return 5
        case "late":
            raise TimeoutError("the bank does not answer")
        case "fine":
            return {"at": Point(x=1), "tags": [Tag("a", Point(x=2))]}
        case _:
            return deep(5)


def made() -> StateGraph:
    return StateGraph(State).add_node("node", fails).add_edge(START, "node")


class Cli:
    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = url
        self._capsys = capsys

    def __call__(self, *args: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main(["--url", self._url, *args])
        return code, *self._capsys.readouterr()

    def json(self, *args: str) -> Any:
        return json.loads(self(*args, "--json")[1])

    def run(self, why: str, *more: str) -> tuple[int, str, str]:
        return self("submit", "g", json.dumps({"why": why}), "--thread", why, "--wait", *more)


@pytest.fixture
def cli(redis_url: str, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with working(redis_url, ("g", made())):
        yield Cli(redis_url, capsys)


# -- failures


def test_a_failed_run_shows_the_users_last_lines_and_how_to_see_all(cli: Cli) -> None:
    code, out, err = cli.run("deep")
    assert (code, out) == (1, "")
    first, second, *frames, fix = err.splitlines()
    assert (
        first == "error: ValueError: no \\x1b[31mline\\x1b[0m"
        and second == "  and a second line (thread deep, node node)"
    )
    assert len(frames) == 2 * traces.FRAMES_MAX and all("test_traces.py" in line for line in frames[::2])
    assert frames[-1].strip().startswith("raise ValueError")
    assert fix.endswith("`everstep result deep --traceback` shows all of it")
    assert cli("result", "deep") == (code, out, err)


def test_the_library_that_raised_is_left_out_and_the_users_call_of_it_shown(cli: Cli) -> None:
    _, _, err = cli.run("python")
    assert 'return json.loads("{")' in err and "decoder.py" not in err
    _, _, whole = cli("result", "python", "--traceback")
    assert "decoder.py" in whole and "Traceback (most recent call last):" in whole
    assert "perform.py" not in whole  # what called the node is not the user's


def test_history_has_the_tracebacks_of_all_attempts_on_request(cli: Cli) -> None:
    cli.run("python")
    cli("retry", "python", "--wait")
    _, out, err = cli("history", "python")
    assert "Traceback" not in out + err and "--traceback shows where" in err
    _, out, err = cli("history", "python", "--traceback")
    assert out.count("Traceback (most recent call last):") == out.count("node, try ") == 2
    assert "--traceback" not in err


def test_json_has_the_whole_traceback_as_a_field(cli: Cli) -> None:
    cli.run("python")
    for args in (["result", "python"], ["submit", "g", '{"why": "python"}', "--thread", "other", "--wait"]):
        said = cli.json(*args)
        assert said["status"] == "failed" and said["error_type"] == "json.decoder.JSONDecodeError"
        assert said["traceback"].startswith("Traceback") and "decoder.py" in said["traceback"]
    (error,) = cli.json("state", "python")["errors"]
    (trouble, _) = cli.json("history", "python")["open"]["attempts"]
    assert error["traceback"] == trouble["traceback"] == said["traceback"]
    _, out, _ = cli("state", "python")
    assert 'return json.loads("{")' in out


def test_a_client_gets_it_with_the_error(cli: Cli, redis_url: str) -> None:
    with connect(redis_url) as client, pytest.raises(RunFailed) as caught:
        client.submit("g", {"why": "python"}).result(10)
    assert 'return json.loads("{")' in caught.value.traceback


def test_a_node_s_own_timeout_is_a_failure_and_no_wait_that_went_on(cli: Cli) -> None:
    code, _, err = cli.run("late")
    assert code == 1 and err.startswith("error: TimeoutError: the bank does not answer")


@pytest.mark.parametrize("why", ["key", "type"])
def test_a_mistake_that_we_tell_has_no_traceback_of_ours(cli: Cli, why: str) -> None:
    _, _, err = cli.run(why)
    assert err.startswith("error: InvalidUpdateError: The node 'node'")
    assert err.count("'node'") == 1 and err.count("(thread") == 1
    for words in (["result", why, "--traceback"], ["history", why, "--traceback"], ["state", why], ["log", why]):
        _, out, err = cli(*words)
        assert "everstep_scheduler/" not in out + err


def test_what_the_users_code_got_from_us_is_shown_from_its_line_on() -> None:
    with pytest.raises(InvalidUpdateError) as caught:
        raise InvalidUpdateError("odd", thread="t", fix="so")
    told = raised(None, caught.value, 1, 0.5)
    assert told.text == "odd. so"  # the place is the fact's
    assert "in test_what_the_users_code_got" in told.traceback


@pytest.mark.parametrize(
    ("traceback", "said"),
    [
        ("", []),
        ("no traceback at all", []),
        ('Traceback (most recent call last):\n  File "/x/everstep_scheduler/a.py", line 1, in f\n    x\nE: y\n', []),
        (
            '  File "/x/lib/python3.12/a.py", line 1, in f\n    x\n  File "/x/site-packages/b.py", line 2, in g\nE\n',
            ['  File "/x/site-packages/b.py", line 2, in g'],
        ),
        ('  File "a.py", line 1, in f\n    \x1b[2J\nE\n', ['  File "a.py", line 1, in f', "    \\x1b[2J"]),
        ('cut in the mid\n  File "a.py", line 1, in f', ['  File "a.py", line 1, in f']),
    ],
)
def test_an_excerpt_holds_for_any_text(traceback: str, said: list[str]) -> None:
    assert traces.excerpt(traceback) == said


# -- typed values


def test_values_of_models_are_plain_objects(cli: Cli) -> None:
    _, out, _ = cli.run("fine")
    values = json.loads(out)
    point = {"x": 1, "mood": "GOOD"}
    assert values["at"] == point
    assert values["tags"] == [{"text": "a", "at": {"x": 2, "mood": "GOOD"}}]
    assert cli.json("result", "fine")["output"] == values
    assert cli.json("state", "fine")["values"] == values
    assert cli.json("history", "fine")["checkpoints"][-1]["values"] == values
    _, out, _ = cli("state", "fine")
    assert 'at = Point {"x": 1, "mood": "GOOD"}' in out
    for words in (["state", "fine"], ["history", "fine"], ["log", "fine", "--values"]):
        assert "Tagged" not in "".join(map(str, cli(*words)))
