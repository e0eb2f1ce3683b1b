"""The command line: what people and programs read, and which exit code goes with what."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypedDict

import pytest
import redis

from everstep import START, RedisSaver, StateGraph, show
from everstep.cli import WORDS, main
from everstep.crew import Crew
from everstep.embedded import EmbeddedServer
from everstep.site import Site
from everstep_checkpoint.tagged import Tagged
from servers import server_binaries, wait_for

GRAPHS = """
import os, time
from typing import TypedDict
from everstep import END, START, StateGraph, interrupt

class State(TypedDict):
    word: str
    done: bool

def waits(state):
    while not os.path.exists(state["word"]):
        time.sleep(0.01)
    return {"done": True}

def breaks(state):
    if not os.path.exists(state["word"]):
        raise ValueError("no \\x1b[31mfile\\x1b[0m yet")
    return {"done": True}

def one(name, node):
    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile(name=name)

def asks(state):
    return {"word": interrupt({"approve": state["word"]}, response_schema={"type": "string"}), "done": True}

asking = one("asking", asks)
waiting = one("waiting", waits)
breaking = one("breaking", breaks)
"""
COUNTING = (Path(__file__).parent.parent / "examples" / "counting.py").read_text()
FIVE = '{"count": 0, "done": false}'


class Nothing(TypedDict):
    word: str


def nothing(state: Nothing) -> None:
    """A node that writes nothing."""


class Cli:
    """The command line in this process, against one server."""

    def __init__(self, site: Site, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.site = site
        self.folder = folder
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *args: str) -> int:
        self._capsys.readouterr()
        code = main(["--url", self.site.url, *args])
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *args: str) -> Any:
        code = self(*args, "--json")
        assert code == 0, self.err
        return json.loads(self.out)


@pytest.fixture(scope="module")
def fleet(server_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Path]]:
    """A server and one worker process, with graphs that count, wait for a file, and break without one."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "cligraphs.py").write_text(GRAPHS)
    (folder / "clicounting.py").write_text(COUNTING)
    with EmbeddedServer(binary=server_binaries()[server_name]) as server:
        site = Site(server.url)
        targets = ("clicounting:graph", "cligraphs:waiting", "cligraphs:breaking", "cligraphs:asking")
        crew = Crew(site.url, targets, ("--grace", "1"), out=folder / "worker", env={"PYTHONPATH": str(folder)})
        crew.start()
        try:
            crew.await_ready(site, 1, len(targets))
            yield site, folder
        finally:
            crew.stop()


@pytest.fixture
def cli(fleet: tuple[Site, Path], capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(*fleet, capsys)


# --- the door ---


def test_help_lists_every_word_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert [word for word in WORDS if not re.search(rf"^  {word} ", said, re.MULTILINE)] == []
    for code in range(8):
        assert re.search(rf"\b{code}  \w", said)


def test_help_imports_neither_redis_nor_rq_nor_pydantic() -> None:
    heavy = "{'redis', 'rq', 'pydantic', 'rich', 'everstep_scheduler', 'everstep_workers'}"
    code = f"import sys; from everstep.cli import main; main(['--help']); sys.exit(str(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


def test_help_costs_less_than_a_fifth_of_a_second() -> None:
    spent: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "everstep", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.2


@pytest.mark.parametrize("word", WORDS)
def test_every_word_explains_itself(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word, "--help"]) == 0
    assert f"Usage: everstep {word}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["submitt", "counting", "{}"], 2, "Did you mean 'submit'?"),
        (["submit", "counting", "{count: 0}"], 2, "INPUT is no JSON"),
        (
            ["resume", "t", "yes"],
            2,
            "ANSWER is no JSON: Expecting value: line 1 column 1 (char 0). Quote it for the shell: '\"yes\"'",
        ),
        (["graphs", "--partition", "{1}"], 2, "--partition"),
        (["submit", "counting", "@/nowhere"], 2, "INPUT can't be read"),
        (["submit", "counting", '{"count": "many"}'], 2, "must be integer"),
        (["submit", "countin", "{}"], 3, "Did you mean 'counting'?"),
        (["submit", "counting", "{}", "--thread", "x" * 513], 2, "512 bytes"),
        (["state", "nobody"], 3, "everstep threads"),
        (["history", "nobody"], 3, "everstep threads"),
        (["log", "nobody"], 3, "everstep threads"),
        (["result", "nobody"], 3, "everstep threads"),
        (["cancel", "nobody"], 3, "everstep threads"),
        (["retry", "nobody"], 3, "everstep threads"),
        (["draw", "nobody"], 3, "no graph 'nobody'"),
        (["draw", "no.module:graph"], 1, "there is no module 'no'"),
        (["threads", "--namespace", "a b"], 2, "--namespace"),
        (["threads", "--url", "nonsense"], 2, "no URL of a Redis"),
        (["doctor", "--url", "localhost:6379"], 2, "no URL of a Redis"),
        (["threads", "--url", "redis://:hush@127.0.0.1:1/0"], 6, "does not answer"),
    ],
)
def test_a_mistake_gets_its_exit_code_and_says_the_way_out(cli: Cli, args: list[str], code: int, said: str) -> None:
    assert cli(*args) == code
    assert said in cli.err
    assert "Traceback" not in cli.err and "hush" not in cli.err + cli.out
    assert cli.out == ""


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://me:hush@h:1/0", "redis://me:***@h:1/0"),
        ("redis://:hu@sh@h", "redis://:***@h"),
        ("rediss://h/0?password=hush", "rediss://h/0"),
        ("unix://me:hush@/run/s", "unix://me:***@/run/s"),
        ("redis://h/0", "redis://h/0"),
    ],
)
def test_a_password_is_never_shown_wherever_it_stands(url: str, said: str) -> None:
    assert Site(url).shown == said


def test_who_reads_us_may_stop_reading(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "pipe", "--wait")
    command = [sys.executable, "-m", "everstep", "--url", cli.site.url, "log", "pipe"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""


def test_ctrl_c_ends_quietly(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "follow", "--wait")
    command = [sys.executable, "-m", "everstep", "--url", cli.site.url, "log", "follow", "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "run_started" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read().strip() == "interrupted"


# --- runs ---


def test_submit_says_the_run_and_result_gives_its_output(cli: Cli) -> None:
    begun = cli.json("submit", "counting", FIVE, "--thread", "t1", "--run", "r1")
    assert begun["thread"] == "t1" and begun["run"] == "r1"
    assert cli.json("result", "t1")["output"] == {"count": 5, "done": True}
    assert cli("result", "t1") == 0
    assert json.loads(cli.out) == {"count": 5, "done": True}


def test_the_same_run_twice_starts_nothing_and_another_input_conflicts(cli: Cli) -> None:
    assert cli("submit", "counting", FIVE, "--thread", "t2", "--run", "once", "--wait") == 0
    assert cli("submit", "counting", FIVE, "--thread", "t2", "--run", "once", "--wait") == 0
    assert len(cli.json("history", "t2")["checkpoints"]) == 12
    assert cli("submit", "counting", '{"count": 1}', "--thread", "t2", "--run", "once") == 4


def test_input_comes_from_a_file_or_stdin(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input").write_text('{"count": 3, "done": false}')
    assert cli("submit", "counting", f"@{tmp_path / 'input'}", "--wait") == 0
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"count": 4, "done": false}'))
    assert cli("submit", "counting", "-", "--wait") == 0
    assert json.loads(cli.out) == {"count": 5, "done": True}


def test_a_run_that_has_not_ended_is_code_5_and_says_what_it_waits_for(cli: Cli, tmp_path: Path) -> None:
    given = json.dumps({"word": str(tmp_path / "go"), "done": False})
    assert cli("submit", "waiting", given, "--thread", "t5", "--timeout", "0.3") == 5
    assert re.search(r"'node' runs on \S+ \(attempt 1, for \d+ s\)", cli.err) and "everstep result t5 --run " in cli.err
    cli("submit", "waiting", given, "--thread", "t5", "--run", "next")
    assert cli("result", "t5", "--run", "next", "--timeout", "0") == 5
    assert "of which node 'node' runs on" in cli.err and "everstep result t5 --run next goes on waiting" in cli.err
    cli("cancel", "t5", "--run", "next")
    assert cli("result", "t5", "--timeout", "0.1", "--json") == 5
    assert json.loads(cli.out)["waiting_for"]
    (tmp_path / "go").touch()
    assert cli("result", "t5") == 0


def test_cancel_stops_a_run_and_is_harmless_twice(cli: Cli, tmp_path: Path) -> None:
    cli("submit", "waiting", json.dumps({"word": str(tmp_path / "go"), "done": False}), "--thread", "t6")
    assert cli.json("cancel", "t6")["cancelled"] is True
    assert cli.json("cancel", "t6")["cancelled"] is False
    assert cli("result", "t6") == 1
    assert "cancelled" in cli.err
    (tmp_path / "go").touch()


def test_delete_forgets_a_thread_once_it_was_said_twice(cli: Cli, tmp_path: Path) -> None:
    cli("submit", "waiting", json.dumps({"word": str(tmp_path / "go"), "done": False}), "--thread", "t61")
    assert cli("delete", "t61") == 2, "nobody said yes"
    assert cli("delete", "t61", "--json") == 2
    assert cli("delete", "t61", "--yes") == 4
    assert "--cancel" in cli.err or "cancel" in cli.err
    assert cli.json("delete", "t61", "--yes", "--cancel")["deleted"] is True
    assert cli("state", "t61") == 3
    assert cli("delete", "t61", "--yes") == 3
    (tmp_path / "go").touch()


def test_a_failed_run_says_why_shows_it_in_its_history_and_can_be_retried(cli: Cli, tmp_path: Path) -> None:
    given = json.dumps({"word": str(tmp_path / "mended"), "done": False})
    assert cli("submit", "breaking", given, "--thread", "t7", "--wait") == 1
    assert "ValueError: no" in cli.err and "everstep retry" in cli.err
    assert cli("history", "t7") == 0
    assert re.search(r"failed +node .*ValueError: no \\x1b\[31mfile", cli.out), cli.out
    assert "everstep retry t7" in cli.err
    now = cli.json("history", "t7")["open"]
    first = now["attempts"][0]
    assert (first["what"], first["node"], first["attempt"]) == ("failed", "node", 1)
    assert cli.json("state", "t7")["errors"][0]["node"] == "node"
    (tmp_path / "mended").touch()
    assert cli("retry", "t7", "--wait") == 0
    assert json.loads(cli.out)["done"] is True
    assert cli("retry", "t7") == 2


def test_logs_can_not_drive_a_terminal(cli: Cli, tmp_path: Path) -> None:
    cli("submit", "breaking", json.dumps({"word": str(tmp_path / "no"), "done": False}), "--thread", "t8", "--wait")
    for args in (("history", "t8"), ("log", "t8"), ("log", "t8", "--values"), ("state", "t8"), ("result", "t8")):
        cli(*args)
        assert "\x1b" not in cli.out + cli.err, args


# --- reading ---


def test_history_tells_the_steps_oldest_first_and_what_changed(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "h1", "--wait")
    found = cli.json("history", "h1")
    steps = found["checkpoints"]
    assert [x["step"] for x in steps] == list(range(-1, 11))
    assert steps[1]["changed"] == {"count": 0, "done": False}
    assert [x["changed"] for x in steps[2:4]] == [{"count": 1}, {}]
    assert steps[2]["nodes"] == ["inc"] and steps[2]["next"] == ["check"]
    assert steps[-1]["values"] == {"count": 5, "done": True} and steps[-1]["next"] == []
    assert found["status"] == "done" and found["open"]["attempts"] == []
    last = cli.json("history", "h1", "-n", "2")["checkpoints"]
    assert last == steps[-2:]


def test_a_join_that_can_not_fire_is_told_where_the_run_rests(cli: Cli) -> None:
    builder = StateGraph(Nothing)
    for name in ("left", "right", "both"):
        builder.add_node(name, nothing)
    builder.add_conditional_edges(START, lambda state: state["word"].split(), ["left", "right"])
    builder.add_edge(["left", "right"], "both")
    graph = builder.compile(RedisSaver(cli.site.url), name="joining")
    graph.invoke({"word": "left"}, {"configurable": {"thread_id": "j1"}})
    unmet = [{"target": "both", "starts": ["left", "right"], "missing": ["right"]}]
    told = "both did not run: its join of left, right waits for right"
    assert cli.json("state", "j1")["metadata"]["unmet_joins"] == unmet
    assert [x["unmet_joins"] for x in cli.json("history", "j1")["checkpoints"]] == [[], [], unmet]
    assert cli("state", "j1") == 0 and told in cli.out
    assert cli("history", "j1") == 0 and told in cli.err
    graph.invoke({"word": "left right"}, {"configurable": {"thread_id": "j2"}})
    assert "unmet_joins" not in cli.json("state", "j2")["metadata"]
    assert cli("history", "j2") == 0 and "did not run" not in cli.err


def test_history_as_a_table_has_one_line_a_step(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "h2", "--wait")
    assert cli("history", "h2") == 0
    head, *rows = cli.out.splitlines()
    assert head.split()[:4] == ["step", "checkpoint", "source", "node"]
    assert len(rows) == 12 and rows[-1].endswith("done=true")
    assert cli.err == "thread h2: done\n"


def test_state_at_a_checkpoint_is_as_it_was_then(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "s1", "--wait")
    third = cli.json("history", "s1")["checkpoints"][2]
    then = cli.json("state", "s1", "--checkpoint", third["checkpoint_id"])
    assert then["values"] == third["values"] and then["next"] == ["check"]
    assert cli.json("state", "s1")["values"] == {"count": 5, "done": True}
    assert cli("state", "s1", "--checkpoint", "000000000002-00000000") == 3
    assert cli("state", "s1", "--checkpoint", "last") == 2


def test_log_shows_each_entry_with_sizes_or_values(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "l1", "--wait")
    assert cli("log", "l1", "-n", "1") == 0
    assert "delta=12B" in cli.out
    assert cli("log", "l1", "-n", "1", "--values", "--json") == 0
    (last,) = map(json.loads, cli.out.splitlines())
    assert last["fields"]["delta"] == {"value": {"done": ["set", True]}}
    assert cli("log", "l1", "--json") == 0
    assert [json.loads(line)["kind"] for line in cli.out.splitlines()] == ["run_started"] + ["checkpoint"] * 12


def test_a_sound_log_verifies_and_a_changed_one_is_code_7(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "v1", "--wait")
    assert cli("log", "v1", "--verify") == 0
    assert "sound" in cli.out
    client: Any = cli.site.redis
    for entry, fields in client.xrange(cli.site.keys.log("v1")):
        forged = {**fields, b"node": b"inc"} if entry == b"4-0" else fields
        client.xadd(cli.site.keys.log("v2"), forged, id=entry)
    assert cli("log", "v2", "--verify") == 7
    assert "checkpoint 4" in cli.out


def test_what_something_else_wrote_is_shown_as_unreadable(cli: Cli) -> None:
    cli.site.redis.xadd(cli.site.keys.log("foreign"), {"hello": "\x1bworld"}, id="1-0")
    assert cli("log", "foreign") == 0
    assert "NOT READABLE" in cli.out and "hello=\\x1bworld" in cli.out
    assert cli("history", "foreign") == 7
    assert "Traceback" not in cli.err


def test_threads_are_listed_by_status(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "list-me", "--wait")
    assert cli("threads", "--status", "done", "--json") == 0
    found = [json.loads(line) for line in cli.out.splitlines()]
    assert found[0]["thread_id"] == "list-me" and found[0]["graph"] == "counting"
    assert {x["status"] for x in found} == {"done"}
    assert cli("threads", "-n", "1") == 0
    assert "list-me" in cli.out


def test_graphs_are_listed_and_drawn(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("graphs") == 0
    assert re.search(r"counting +\w{8} +counting +inc, check +count, done", cli.out), cli.out
    assert cli("draw", "counting") == 0
    assert "flowchart" in cli.out and "inc" in cli.out
    assert cli("draw", "counting", "--svg") == 0
    published = cli.out
    monkeypatch.syspath_prepend(str(cli.folder))
    assert cli("draw", "clicounting:graph", "--svg", "-o", "-") == 0
    assert cli.out == published and published.startswith("<svg")


def test_a_drawing_goes_into_a_file_by_its_suffix_and_over_nothing_but_a_drawing(cli: Cli, tmp_path: Path) -> None:
    for suffix, begin in (("svg", "<svg"), ("mmd", "flowchart TD"), ("txt", "+-------+\n| START |")):
        file = tmp_path / f"graph.{suffix}"
        for _ in range(2):
            assert cli("draw", "counting", "-o", str(file)) == 0
        assert cli.out == "" and str(file) in cli.err
        assert file.read_text().lstrip(" ").startswith(begin)
        file.write_text("START: my notes")
        assert cli("draw", "counting", "-o", str(file)) == 2
        assert "is no drawing" in cli.err and file.read_text() == "START: my notes"
    assert cli("draw", "counting", "--ascii") == 0
    assert "| START |" in cli.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-o", "graph.png"], ".svg, .mmd (Mermaid) or .txt"),
        (["-o", "graph"], ".svg, .mmd (Mermaid) or .txt"),
        (["--ascii", "-o", "graph.svg"], "holds svg, and --ascii was asked for"),
        (["-o", "no/such/folder/graph.svg"], "can't be written: No such file"),
    ],
)
def test_a_drawing_that_can_not_be_written_is_told(cli: Cli, args: list[str], said: str) -> None:
    assert cli("draw", "counting", *args) == 2
    assert said in cli.err and "Traceback" not in cli.err


# --- serving ---


def test_a_worker_whose_graph_can_not_be_loaded_says_so_in_a_line_and_ends(server: EmbeddedServer) -> None:
    command = [sys.executable, "-m", "everstep", "--url", server.url, "worker", "no_such_module:graph", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "there is no module 'no_such_module'" in done.stderr and "Traceback" not in done.stderr


def test_recover_rebuilds_what_was_lost(
    server: EmbeddedServer, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:

    builder = StateGraph(Nothing)
    builder.add_node("node", nothing)
    builder.set_entry_point("node")
    graph = builder.compile(checkpointer=RedisSaver(server.url), name="g")
    graph.invoke({}, {"configurable": {"thread_id": "kept"}})
    client.delete(*[key for key in client.keys("*") if b":log:" not in key])
    assert main(["--url", server.url, "recover", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threads"] == 1
    assert main(["--url", server.url, "threads"]) == 0
    assert "kept" in capsys.readouterr().out


def test_a_partition_has_keys_of_its_own(server: EmbeddedServer, client: redis.Redis) -> None:
    assert Site(server.url, "shop", "7").keys.stem == "shop:{7}:"
    assert main(["--url", server.url, "--partition", "7", "threads"]) == 0
    assert client.dbsize() == 0


def test_dev_restarts_on_a_change_shows_steps_and_takes_everything_with_it(tmp_path: Path) -> None:
    (tmp_path / "devgraph.py").write_text(COUNTING)
    errors = tmp_path / "err"
    env = {name: value for name, value in os.environ.items() if name not in ("EVERSTEP_URL", "REDIS_URL")}
    command = [sys.executable, "-m", "everstep", "dev", "devgraph:graph"]
    with (tmp_path / "out").open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=err, start_new_session=True)
    try:
        wait_for(lambda: "everstep submit counting" in errors.read_text(), 20, "dev says how to submit")
        url = re.findall(r"EVERSTEP_URL=(\S+)", errors.read_text())[0]
        client = Site(url).client
        first = client.submit("counting", json.loads(FIVE), thread_id="dev").result(20)
        old: Any = client.redis.smembers(client.keys.rq_workers)
        (tmp_path / "devgraph.py").write_text(COUNTING.replace(">= 5", ">= 2"))
        wait_for(lambda: "devgraph.py changed" in errors.read_text(), what="the change is seen")
        wait_for(lambda: client.redis.smembers(client.keys.rq_workers) - old, what="the new worker is there")
        wait_for(lambda: not client.redis.smembers(client.keys.rq_workers) & old, what="the old one is gone")
        second = client.submit("counting", json.loads(FIVE), thread_id="dev").result(20)
        assert (first["count"], second["count"]) == (5, 2)
        wait_for(lambda: "done=true" in (tmp_path / "out").read_text().splitlines()[-1], what="the last step is shown")
        server = client.redis.info("server")["process_id"]
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0
    wait_for(lambda: not Path(f"/proc/{server}").exists() or sys.platform != "linux", what="the server has ended")
    assert "inc -> check" in (tmp_path / "out").read_text()


# --- show ---


def test_every_value_of_a_log_has_a_json_form() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    values = {
        "a": float("nan"),
        "b": b"\x00",
        "c": {3, 1},
        "d": moment,
        "e": Decimal("1.5"),
        "f": Tagged("User", {"x": (1,)}),
        5: "\ud800",
    }
    plain = json.loads(json.dumps(show.jsonable(values), allow_nan=False))
    assert plain["a"] == "nan" and plain["b"] == "AA==" and plain["c"] == [1, 3]
    assert plain["d"].startswith("2026-01-02T") and plain["e"] == "1.5"
    assert plain["f"] == {"x": [1]} and plain["5"] == "\ud800"


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "watched", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert show.paint("done") != "done"
    monkeypatch.setenv("NO_COLOR", "1")
    assert show.paint("done") == "done"


def test_tables_are_plain_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("name", "n"), [["a", "1"], ["long name", "20"]], right=("n",))
    assert capsys.readouterr().out == "name        n\na           1\nlong name  20\n"


@pytest.mark.parametrize(
    ("ms", "said"), [(0.2, "<1 ms"), (12, "12 ms"), (1500, "1.5 s"), (180_000, "3 min"), (8.64e8, "10 d")]
)
def test_spans_of_time_are_short(ms: float, said: str) -> None:
    assert show.span(ms) == said


def test_commands_behind_dash_dash_json_print_only_json(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "j1", "--wait")
    for args in (
        ["state", "j1"],
        ["history", "j1"],
        ["threads"],
        ["graphs"],
        ["log", "j1"],
        ["doctor"],
        ["result", "j1"],
    ):
        cli(*args, "--json")
        assert [json.loads(line) for line in cli.out.splitlines()], args


# --- texts ---


@pytest.mark.parametrize("word", WORDS)
def test_the_help_of_every_word_lists_the_exit_codes(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word, "--help"]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"\b{code}  \w", said) for code in range(8))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["submit", "counting", "{}", "--thread", ""], "can't be empty"),
        (["submit", "counting", "{}", "--thread", "a\nb"], "leave out control characters"),
        (["submit", "counting", '{"cuont": 1, "done": 5}'], "no key 'cuont'. Did you mean 'count'?; done: must be"),
        (["submit", "counting", "@nofile"], "nofile: No such file or directory"),
        (["draw", "shop/orders.py:graph"], "name the module, not its file: shop.orders:GRAPH"),
        (["draw", "nobody"], "`everstep worker MODULE:GRAPH` publishes"),
        (["threads", "--url", "redis://127.0.0.1:1/0"], "Connection refused\n  fix: check that it runs"),
    ],
)
def test_a_text_says_once_what_is_wrong_and_what_to_do(cli: Cli, args: list[str], said: str) -> None:
    assert cli(*args) != 0
    assert said in cli.err
    assert "[Errno" not in cli.err and ".;" not in cli.err and ".." not in cli.err


@pytest.mark.parametrize("target", ["no_such_module:graph", "no_colon"])
def test_a_worker_that_can_not_begin_says_why_and_nothing_of_leases(target: str, redis_url: str) -> None:
    command = [sys.executable, "-m", "everstep", "--url", redis_url, "worker", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert re.search(r"^error: .*\n  fix: ", done.stderr, re.MULTILINE) and "leases" not in done.stderr


def test_a_worker_without_the_fast_parser_ends_without_a_word_of_its_own_errors(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "hiredis.py").write_text("raise ImportError('not here')")
    (tmp_path / "plaincounting.py").write_text(COUNTING)
    for number in range(3):
        out = tmp_path / f"out{number}"
        crew = Crew(redis_url, ("plaincounting:graph",), out=out, env={"PYTHONPATH": str(tmp_path)})
        crew.start()
        reader = Site(redis_url)
        crew.await_ready(reader, 1, 1)
        wait_for(lambda site=reader: site.redis.exists(site.keys.inbox_reader), what="it reads the inbox")  # type: ignore[misc]
        crew.stop()
        assert "Traceback" not in out.read_text() and crew.ended == 0


# --- questions ---


def test_a_question_is_shown_and_answered(cli: Cli) -> None:
    given = json.dumps({"word": "order 17", "done": False})
    assert cli("submit", "asking", given, "--thread", "t20", "--wait") == 5
    assert "everstep resume t20 ANSWER" in cli.err
    state = cli.json("state", "t20")
    (question,) = state["interrupts"]
    assert (state["status"], question["node"], question["value"]) == ("interrupted", "node", {"approve": "order 17"})
    assert cli("state", "t20") == 0
    assert f"everstep resume t20 ANSWER --id {question['id']}" in cli.out
    assert cli("resume", "t20", "17") == 2
    assert "17 is not of type 'string'" in cli.err and "Traceback" not in cli.err
    assert cli("resume", "t20", '"yes"', "--id", "0" * 32) == 2
    assert question["id"] in cli.err
    answered = cli.json("resume", "t20", '"yes"', "--id", question["id"], "--run", "answer-1", "--wait")
    assert answered["output"] == {"word": "yes", "done": True}
    assert cli.json("resume", "t20", '"yes"', "--id", question["id"], "--run", "answer-1", "--wait") == answered
    assert cli("resume", "t20", '"again"') == 2
    assert cli("resume", "nobody", "1") == 3


def test_a_thread_is_updated_and_sent_to_a_node(cli: Cli) -> None:
    cli("submit", "asking", json.dumps({"word": "order 19", "done": False}), "--thread", "t22", "--wait")
    assert cli("resume", "t22") == 2 and "give an ANSWER, or --update or --goto" in cli.err
    assert cli("resume", "t22", "--goto", "nod") == 2 and "Did you mean 'node'?" in cli.err
    assert cli("resume", "t22", "--update", '{"words": 1}') == 2 and "Did you mean 'word'?" in cli.err
    assert cli("resume", "t22", "--update", '{"word": "order 20"}', "--wait") == 5
    assert cli.json("state", "t22")["interrupts"][0]["value"] == {"approve": "order 20"}
    answered = cli.json("resume", "t22", '"yes"', "--wait")
    assert answered["output"] == {"word": "yes", "done": True}
    assert cli("resume", "t22", "--goto", "node", "--wait") == 5
    assert cli.json("history", "t22")["open"]["next"] == ["node"]
    assert cli.json("resume", "t22", '"again"', "--wait")["output"]["word"] == "again"


def test_the_history_tells_what_was_asked_and_answered(cli: Cli) -> None:
    cli("submit", "asking", json.dumps({"word": "order 18", "done": False}), "--thread", "t21", "--wait")
    assert cli("history", "t21") == 0
    assert re.search(r'asks +node .*\{"approve": "order 18"\}', cli.out)
    assert "everstep resume t21 ANSWER" in cli.err and "retry" not in cli.err
    assert cli("threads", "--status", "interrupted", "--json") == 0
    found = [json.loads(line) for line in cli.out.splitlines()]
    assert [x["open_tasks"] for x in found if x["thread_id"] == "t21"] == [1]
    cli("resume", "t21", '"yes"', "--wait")
    assert cli("history", "t21") == 0 and re.search(r'answered .*"yes"', cli.out)


def test_fork_rollback_and_diff_go_back_in_time(cli: Cli) -> None:
    cli("submit", "counting", FIVE, "--thread", "back", "--wait")
    steps = [each["checkpoint_id"] for each in cli.json("history", "back")["checkpoints"]]
    assert cli("fork", "back", "--at", steps[2], "--to", "what-if") == 0
    assert cli.out == "what-if\n" and "everstep retry what-if" in cli.err
    assert cli.json("retry", "what-if", "--wait")["output"] == {"count": 5, "done": True}
    drawn = cli.json("fork", "back")
    assert drawn["values"] == {"count": 5, "done": True} and drawn["next"] == []
    assert cli("fork", "back", "--to", "what-if") == 4

    assert cli("diff", "back", steps[0], steps[-1]) == 0
    assert cli.out.splitlines() == ["+ count = 5", "+ done = true"]
    assert cli("diff", "back", steps[2], steps[-1]) == 0
    assert cli.out.splitlines() == ["- count = 1", "+ count = 5", "- done = false", "+ done = true"]
    assert cli.json("diff", "back", steps[3], steps[4])["changes"] == [
        {"key": "count", "how": "changed", "before": 1, "after": 2}
    ]
    assert cli("diff", "back", steps[2], steps[2]) == 0
    assert (cli.out, cli.err) == ("", "no difference\n")

    assert cli("rollback", "back", steps[2]) == 0
    made = cli.out.strip()
    assert cli.json("state", "back")["checkpoint_id"] == made
    last = cli.json("history", "back", "-n", "1")["checkpoints"][0]
    assert (last["source"], last["changed"], last["next"]) == ("fork", {}, ["check"])
    assert cli.json("retry", "back", "--wait")["output"] == {"count": 5, "done": True}
    assert cli("log", "back", "--verify") == 0
    assert cli("rollback", "back", "000000000099-00000000") == 3
    assert cli("rollback", "back", "yesterday") == 2
    assert cli("rollback", "nobody", steps[2]) == 3


def test_lines_to_paste_quote_a_thread_that_a_shell_would_take_apart(cli: Cli) -> None:
    """As the threads of subgraphs are."""
    given = json.dumps({"word": "order 19", "done": False})
    assert cli("submit", "asking", given, "--thread", "a;b c", "--wait") == 5
    assert "everstep resume 'a;b c' ANSWER" in cli.err
    cli("state", "a;b c")
    assert "everstep resume 'a;b c' ANSWER --id" in cli.out
