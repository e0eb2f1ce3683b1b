"""Promises of the picture of a thread: the way it went, how often, where it stands; and of graphs drawn into graphs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from everstep.cli import cli
from everstep_checkpoint.errors import UnknownThread
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.drawing import trace
from everstep_scheduler.graph.drawing.picture import Graph
from everstep_scheduler.graph.drawing.trace import Mark, Trace
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.reading.children import children
from test_interrupts import IN, OURS, THEIRS, Answer, call, on, working
from test_streams import counting
from test_subgraphs import STORIES, Wide, asking, chain, deep, failing, plain, sent, stopping

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


def path_of(build: Any, saver: Saver, *steps: Any, **how: Any) -> Graph:
    graph = build(OURS).compile(checkpointer=saver, name="g")
    for step in steps:
        call(OURS, graph, on("t"), step)
    found: Graph = graph.get_path(on("t"), **how)
    return found


def seen(graph: Graph) -> dict[str, tuple[int, tuple[int, ...], str]]:
    assert graph.trace is not None
    return {name: mark[:3] for name, mark in graph.trace.marks.items()}


def taken(graph: Graph) -> dict[tuple[str, str], int]:
    assert graph.trace is not None
    return dict(graph.trace.taken)


# -- graphs in graphs


def edges(graph: Any) -> set[tuple[Any, ...]]:
    return {tuple(each) for each in graph.edges}


# Left out: of an edge that is firm and conditional LangGraph keeps either, and one router it can't draw (it raises).
@pytest.mark.parametrize("depth", [False, 0, 1, 2, True, -1])
@pytest.mark.parametrize("story", sorted({*STORIES} - {"beside an edge", "beside a router"}))
def test_an_xray_has_langgraphs_nodes_and_edges(story: str, depth: Any) -> None:
    build, _ = STORIES[story]
    ours = build(OURS).compile(name="g").get_graph(xray=depth)
    theirs = build(THEIRS).compile().get_graph(xray=depth)
    assert set(ours.nodes) == set(theirs.nodes)
    assert edges(ours) == edges(theirs)


def only_child(lib: Any) -> Any:
    return chain(lib, ("child", chain(lib, ("only", chain(lib, "x").compile())).compile()))


def routed_ends(lib: Any) -> Any:
    """Inner graphs whose START or END can't be left out: several edges leave or reach them."""
    first = lib.StateGraph(Wide).add_node("i", lambda s: {}).add_node("j", lambda s: {})
    first.add_conditional_edges(START, lambda s: "j", ["i", "j"])
    second = lib.StateGraph(Wide).add_node("i", lambda s: {}).add_node("j", lambda s: {}).add_edge(START, "i")
    second.add_conditional_edges("i", lambda s: "j", ["j", END])
    return chain(lib, ("a", first.compile()), ("b", second.compile()))


@pytest.mark.parametrize("build", [only_child, routed_ends])
def test_an_inner_start_or_end_stays_where_it_is_needed_as_in_langgraph(build: Any) -> None:
    ours, theirs = build(OURS).compile(name="g").get_graph(xray=True), build(THEIRS).compile().get_graph(xray=True)
    assert set(ours.nodes) == set(theirs.nodes)
    assert edges(ours) == edges(theirs)
    for draw in (ours.draw_ascii, ours.draw_mermaid, ours.draw_svg):
        assert "START" in draw()


def test_mermaid_puts_a_box_around_each_graph() -> None:
    text = deep(OURS, 2).compile(name="g").get_graph(xray=True).draw_mermaid()
    assert re.sub(r"_g?_?n\d+(_\d)?", "ID", text).splitlines()[:12] == [
        "flowchart TD",
        "    __start__([START])",
        '    before1["before1"]',
        '    subgraph ID["g1"]',
        '        ID["before0"]',
        '        subgraph ID["g0"]',
        '            ID["deepest"]',
        "        end",
        '        ID["after0"]',
        "    end",
        '    after1["after1"]',
        "    __end__([END])",
    ]


def test_a_published_graph_is_opened_without_its_code(redis_url: str) -> None:
    graph = deep(OURS, 2).compile(name="g")
    with working(redis_url, graph), connect(redis_url) as client:
        for depth in (False, 1, True):
            told = client.graph("g").get_graph(xray=depth)
            assert told.draw_mermaid() == graph.get_graph(xray=depth).draw_mermaid()


# -- a thread's path


def test_a_path_says_what_ran_how_often_and_when(saver: Saver) -> None:
    path = path_of(counting, saver, {"count": 1})
    assert seen(path) == {
        START: (1, (), "done"), "inc": (2, (1, 3), "done"), "check": (2, (2, 4), "done"), END: (1, (), "done"),
    }  # fmt: skip
    assert taken(path) == {(START, "inc"): 1, ("inc", "check"): 2, ("check", "inc"): 1, ("check", END): 1}
    assert path.draw_ascii().endswith("\nt: done\npath: inc > check > inc > check\n")


def test_what_asks_failed_stopped_or_is_open_is_shown_with_what_it_says(saver: Saver) -> None:
    path = path_of(asking, saver, IN, xray=True)
    assert seen(path)["child:q"] == (0, (), "asks") and seen(path)["a"] == (1, (1,), "done")
    assert "child:y" not in seen(path) and "b" not in seen(path)
    assert "child:q: asks, q1" in path.draw_ascii() and "q1</title>" in path.draw_svg()
    assert seen(path_of(asking, InMemorySaver(), IN))["child"] == (0, (), "asks"), "without x-ray its node asks"
    path = path_of(failing, InMemorySaver(), IN, xray=True)
    assert seen(path)["child:f"] == (0, (), "failed") and seen(path)["s"] == (1, (1,), "done")
    assert "child:f: failed, ValueError: not yet" in path.draw_ascii()
    path = path_of(failing, InMemorySaver(), IN, None, None, xray=True)
    assert (seen(path)["child:f"], seen(path)["z"]) == ((1, (2,), "done"), (1, (2,), "done"))
    assert seen(path_of(stopping, InMemorySaver(), IN, xray=True))["child:y"] == (0, (), "stopped")


def test_a_path_begins_with_the_last_input_or_with_the_thread(saver: Saver) -> None:
    assert seen(path_of(counting, saver, {"count": 1}, {"count": 2}))["inc"] == (1, (1,), "done")
    assert seen(path_of(counting, saver, whole=True))["inc"] == (3, (1, 3, 5), "done")


def test_a_path_goes_on_through_answers_and_counts_the_calls_of_a_graph(saver: Saver) -> None:
    path = path_of(asking, saver, IN, Answer("A1"), Answer("A2"), xray=True)
    assert {name: mark[:2] for name, mark in seen(path).items() if ":" in name} == {
        "child:x": (1, (1,)), "child:q": (1, (2,)), "child:y": (1, (3,)),
    }  # fmt: skip
    many = path_of(sent, InMemorySaver(), IN, xray=True)
    assert seen(many)["child:i"] == (3, (), "done"), "three calls, each with steps of its own"
    assert taken(many)[START, "child:i"] == 1 and "child:i x3" in many.draw_ascii()


def test_a_branch_drops_the_steps_behind_where_it_began() -> None:
    graph = counting(OURS).compile(checkpointer=InMemorySaver(), name="g")
    graph.invoke({"count": 0}, on("t"))
    old = next(x for x in graph.get_state_history(on("t")) if x.next == ("check",) and x.values["count"] == 2)
    graph.update_state(old.config, {"count": 9}, as_node="inc")
    path = graph.get_path(on("t"))
    assert seen(path)["inc"] == (2, (1, 3), "done") and seen(path)["check"] == (1, (2,), "stopped")


def test_edges_of_a_join_are_taken_when_it_fires(saver: Saver) -> None:
    def joined(lib: Any) -> Any:
        graph = lib.StateGraph(Wide)
        for name in ("a", "b", "z", "j"):
            graph.add_node(name, lambda s, name=name: {"log": [name]})
        graph.add_edge(START, "a").add_edge(START, "z").add_edge("a", "b").add_edge(["b", "z"], "j")
        return graph

    path = path_of(joined, saver, IN)
    assert taken(path) == {
        (START, "a"): 1, (START, "z"): 1, ("a", "b"): 1, ("b", "j"): 1, ("z", "j"): 1, ("j", END): 1,
    }  # fmt: skip


def test_the_svg_of_a_path_marks_nodes_and_edges_and_needs_nothing_from_outside(saver: Saver) -> None:
    text = path_of(asking, saver, IN, xray=True).draw_svg()
    root = ET.fromstring(text)
    kinds = {
        str(group.findtext(f"{SVG}title")).splitlines()[0]: group.find(f"{SVG}rect").attrib["class"]  # type: ignore[union-attr]
        for group in root.iter(f"{SVG}g")
    }
    assert kinds["child:q"] == "node asks" and kinds["a"] == "node done" and kinds["b"] == "node none"
    drawn = [each.attrib["class"] for each in root.iter(f"{SVG}path") if "marker-end" in each.attrib]
    assert sum("taken" in each for each in drawn) == 3
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "<script" not in text


def test_mermaid_colours_a_path() -> None:
    text = path_of(failing, InMemorySaver(), IN).draw_mermaid()
    assert 'child["child<br/>failed"]' in text
    assert re.search(r"^    class __start__,s done$", text, re.MULTILINE)
    assert "    class child failed" in text and "    linkStyle 0,1 stroke-width:3px" in text


def test_a_notebook_shows_graphs_and_paths_without_a_network(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = plain(OURS).compile(checkpointer=InMemorySaver(), name="g")
    graph.invoke(IN, on("t"))
    with working(redis_url, graph), connect(redis_url) as client:
        remote = client.graph("g")
        assert remote._repr_mimebundle_() == graph._repr_mimebundle_()
    monkeypatch.setattr("socket.socket", None)
    for shown in (graph.get_graph(xray=True), graph.get_path(on("t"), xray=True)):
        bundle = shown._repr_mimebundle_(include=None, exclude=None)
        assert bundle == {"image/svg+xml": shown._repr_svg_(), "text/plain": shown.draw_ascii()}
        ET.fromstring(bundle["image/svg+xml"])


def test_a_thread_that_nobody_knows_has_no_path(saver: Saver) -> None:
    with pytest.raises(UnknownThread):
        path_of(counting, saver)


def test_long_paths_and_long_words_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "STEPS_MAX", 3)
    long = Trace("t", "done", tuple(("n",) for _ in range(9)), {"n": Mark(9, tuple(range(1, 10)), "done")}, {})
    assert long.lines() == ["t: done", "path: … > n > n > n"]
    assert long.caption("n") == "x9 #… 4 5 6 7 8 9"


def test_what_a_thread_says_can_drive_no_terminal_and_breaks_no_svg() -> None:
    graph = chain(OURS, ("q", lambda s: {"log": [OURS.interrupt("\x1b[2J\x00 <b>")]})).compile(
        checkpointer=InMemorySaver()
    )
    graph.invoke(IN, on("t"))
    path = graph.get_path(on("t"))
    assert not re.search(r"[\x00\x1b]", path.draw_ascii() + path.draw_svg() + path.draw_mermaid())
    assert "<b>" in str(ET.fromstring(path.draw_svg()).findtext(f"{SVG}title"))


# -- the command


def drawn(*words: str) -> Any:
    return CliRunner().invoke(cli, ["draw", *words], catch_exceptions=False)


def test_the_command_draws_a_thread_s_path_from_what_is_in_redis(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERSTEP_URL", redis_url)
    graph = asking(OURS).compile(checkpointer=RedisSaver(redis_url), name="g")
    graph.invoke(IN, on("t"))
    with working(redis_url, asking(OURS).compile(name="g")):
        pass
    path = graph.get_path(on("t"))
    assert drawn("--thread", "t", "--ascii").output == path.draw_ascii()
    assert drawn("--thread", "t", "--xray").output == path.xray().draw_mermaid()
    assert drawn("g", "--xray", "--depth", "1", "--ascii").output == graph.get_graph(xray=1).draw_ascii()
    where = str(tmp_path / "t.svg")
    assert drawn("--thread", "t", "-o", where).exit_code == 0 and ET.parse(where)
    (child,) = children(RedisSaver(redis_url).log, "t")
    inner = drawn("--thread", child, "--ascii").output
    assert "| q asks |" in inner.replace("  |", " |") and "x #1" in inner


def test_the_command_says_what_is_missing(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_URL", redis_url)
    assert "name a graph, or a thread" in drawn().output
    assert "--depth with --xray" in drawn("g", "--depth", "2").output
    with pytest.raises(UnknownThread, match="nobody"):
        drawn("--thread", "nobody")


def test_a_graph_without_graphs_is_the_same_opened() -> None:
    graph = StateGraph(Wide).add_node("a", lambda s: {}).add_edge(START, "a").compile()
    assert graph.get_graph(xray=True) == graph.get_graph()
