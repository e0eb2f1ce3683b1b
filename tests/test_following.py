"""Following a run from the command line: what is told while it goes, for people and programs, and where one goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
import redis
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from everstep.cli import main
from everstep_scheduler.client.client import connect
from everstep_scheduler.client.inbox import InboxReader
from everstep_scheduler.graph.asking import get_stream_writer, interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.messages import add_messages
from everstep_scheduler.graph.runtime import START
from hand import KEYS, working


class State(TypedDict, total=False):
    count: int
    messages: Annotated[list[Any], add_messages]


def says(state: State) -> State:
    get_stream_writer()({"word": "hi\x1b[2J"})
    return {"count": state.get("count", 0) + 1}


def talks(state: State) -> State:
    model = GenericFakeChatModel(messages=iter([AIMessage("one two three")]))
    model.invoke("say something")
    return {"count": state.get("count", 0) + 1}


def asks(state: State) -> State:
    get_stream_writer()("asking")
    return {"count": interrupt("how many?")}


def one(name: str, node: Callable[[State], State]) -> StateGraph:
    return StateGraph(State).add_node(name, node).add_edge(START, name)


def fails(tries: list[int]) -> Callable[[State], State]:
    def node(state: State) -> State:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not yet")
        get_stream_writer()("now")
        return {"count": 9}

    return node


@pytest.fixture
def url(redis_url: str) -> Iterator[str]:
    within = StateGraph(State).add_node("child", one("says", says).compile()).add_edge(START, "child")
    graphs = {
        "saying": one("says", says), "talking": one("talks", talks), "asking": one("asks", asks),
        "failing": one("fails", fails([])), "within": within,
    }  # fmt: skip
    with working(redis_url, *graphs.items()):
        yield redis_url


@pytest.fixture
def cli(url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["--url", url, *words])
        return (code, *capsys.readouterr())

    return call


def documents(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_run_is_followed_from_its_beginning_while_it_goes_and_later(cli: Any) -> None:
    code, out, _ = cli("submit", "saying", "{}", "-t", "t", "--follow", "--mode", "updates,custom")
    assert code == 0
    assert out.splitlines() == [
        'custom  {"word": "hi\\u001b[2J"}', 'updates  {"says": {"count": 1}}', '{"count": 1, "messages": []}',
    ]  # fmt: skip
    assert cli("result", "t", "--follow", "--mode", "updates,custom")[1] == out, "later, and from elsewhere"
    assert cli("result", "t", "--follow")[1].splitlines()[0] == 'updates  {"says": {"count": 1}}'


def test_who_follows_later_hears_what_nodes_said_if_the_run_was_begun_so(cli: Any) -> None:
    assert cli("submit", "saying", "{}", "-t", "t", "--mode", "custom")[0] == 0
    assert "custom  " in cli("result", "t", "-f", "-m", "custom")[1]
    assert cli("submit", "saying", "{}", "-t", "u", "--wait")[0] == 0
    code, _, err = cli("result", "u", "-f", "-m", "custom")
    assert code != 0 and "nobody listens" in err and "stream_mode" in err


def test_programs_get_a_document_a_line_and_go_on_behind_any_of_them(cli: Any) -> None:
    words = ("--follow", "-m", "tasks,updates,custom", "--json")
    _, out, _ = cli("submit", "saying", "{}", "-t", "t", *words)
    *events, last = documents(out)
    assert [x["mode"] for x in events] == ["tasks", "custom", "updates", "tasks"]
    assert (last["status"], last["output"]["count"]) == ("done", 1)
    for i, event in enumerate(events):
        _, rest, _ = cli("result", "t", *words, "--after", event["cursor"])
        assert documents(rest) == [*events[i + 1 :], last]


def test_graphs_within_are_followed_with_their_namespace(cli: Any) -> None:
    _, out, _ = cli("submit", "within", "{}", "-t", "t", "-f", "-m", "updates,custom", "--subgraphs")
    said = [line.partition("  ") for line in out.splitlines()]
    assert [name.partition(":")[0] for name, _, _ in said[:3]] == ["child", "child", "updates"]
    assert said[0][2].startswith("custom  ") and said[1][2] == 'updates  {"says": {"count": 1}}'
    _, out, _ = cli("result", "t", "-f", "--subgraphs", "--json")
    assert [x["ns"] for x in documents(out)[:-1]] == [[said[0][0]], []]


def test_the_tokens_of_a_message_stand_on_one_line(cli: Any) -> None:
    _, out, _ = cli("submit", "talking", "{}", "-t", "t", "-f", "-m", "messages,updates")
    assert out.splitlines()[:2] == ["talks: one two three", 'updates  {"talks": {"count": 1}}']
    _, out, _ = cli("result", "t", "-f", "-m", "messages", "--json")
    assert [x["chunk"][0]["content"] for x in documents(out)[:-1]] == ["one", " ", "two", " ", "three"]


def test_answers_and_retries_are_followed_too_and_end_with_their_code(cli: Any) -> None:
    code, out, _ = cli("submit", "asking", "{}", "-t", "q", "-f", "-m", "updates,custom")
    assert code == 5 and out.splitlines()[:2] == [
        'custom  "asking"', 'updates  {"__interrupt__": [' + out.splitlines()[1].partition("[")[2],
    ]  # fmt: skip
    code, out, _ = cli("resume", "q", "7", "-f", "-m", "updates,custom")
    assert code == 0 and out.splitlines()[:2] == ['custom  "asking"', 'updates  {"asks": {"count": 7}}']
    code, out, err = cli("submit", "failing", "{}", "-t", "f", "-f", "-m", "tasks")
    assert code == 1 and "not yet" in out and "not yet" in err
    code, out, _ = cli("retry", "f", "-f", "-m", "updates,custom")
    assert code == 0 and out.splitlines()[:2] == ['custom  "now"', 'updates  {"fails": {"count": 9}}']


def test_what_makes_no_sense_is_refused(cli: Any) -> None:
    assert cli("result", "t", "-m", "custom")[0] == 2
    code, _, err = cli("submit", "saying", "{}", "-m", "vlaues")
    assert code == 2 and "no stream mode 'vlaues'" in err


def test_ctrl_c_says_how_to_go_on(redis_url: str) -> None:
    stop = threading.Event()

    def waits(state: State) -> State:
        get_stream_writer()("begun")
        assert stop.wait(20)
        return {"count": 1}

    with working(redis_url, ("slow", one("waits", waits))):
        command = [sys.executable, "-m", "everstep", "--url", redis_url, "submit", "slow", "{}", "-t", "t"]
        with subprocess.Popen(
            [*command, "-f", "-m", "custom"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == 'custom  "begun"\n'
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
            said = process.stderr.read()
        stop.set()
        words = said.partition("follow it from here: ")[2].splitlines()[0].split()
        assert words[:3] == ["everstep", "result", "t"] and main(["--url", redis_url, *words[1:]]) == 0


# -- the inbox


def test_a_message_in_the_inbox_may_ask_that_its_nodes_are_heard(
    url: str, client: redis.Redis, cli: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[Any, Any] = {"graph": "within", "thread": "t", "input": "{}"}
    client.xadd(KEYS.inbox, {**given, "stream_mode": "custom, messages", "subgraphs": "true"})
    client.xadd(KEYS.inbox, {**given, "thread": "bad", "stream_mode": "vlaues"})
    client.xadd(KEYS.inbox, {**given, "thread": "bad", "subgraphs": "perhaps"})
    reader = InboxReader(url, KEYS)
    assert reader.turn() == 3
    reader.run(lambda: True)
    assert 'custom  {"word"' in cli("result", "t", "-f", "-m", "custom", "--subgraphs")[1]
    rows: Any = client.xrange(KEYS.inbox_rejected)
    reasons = [fields[b"reason"].decode() for _, fields in rows]
    assert "no stream mode 'vlaues'" in reasons[0] and "subgraphs is 'perhaps'" in reasons[1]
    with connect(url) as made:
        assert made.run("t").result(10)["count"] == 1
