"""Promises of the pictures: complete, escaped, deterministic, and laid out without overlap."""

from __future__ import annotations

import itertools
import random
import re
import xml.etree.ElementTree as ET
from typing import Any, TypedDict

import pytest

from everstep_checkpoint.errors import CorruptEntry
from everstep_scheduler.client.manifest import Manifest, manifest_of
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.drawing.picture import Edge, Graph, graph_from, graph_of
from everstep_scheduler.graph.runtime import END, START
from everstep_scheduler.graph.spec import GraphSpec

SVG = "{http://www.w3.org/2000/svg}"


class State(TypedDict):
    n: int


def noop(state: State) -> None: ...


def built(*names: str) -> StateGraph:
    graph = StateGraph(State)
    for name in names:
        graph.add_node(name, noop)
    return graph


def counter() -> GraphSpec:
    graph = built("inc", "check").add_edge(START, "inc").add_edge("inc", "check")
    return graph.add_conditional_edges("check", lambda s: END, {True: END, "inc": "inc"}).spec("counter")


def research() -> GraphSpec:
    """Long edges, two cycles, a self-loop, a join, odd names."""
    odd = 'read <b> & "co"'
    graph = built("plan", "search", odd, "critic", "write", "publish", "a very long name " * 4, "end")
    graph.add_edge(START, "plan").add_edge("search", odd).add_edge([odd, "end"], "critic")
    graph.add_conditional_edges("plan", lambda s: "search", ["search", "write", "end"])
    graph.add_conditional_edges("critic", lambda s: 1, {1: "write", 2: "plan", 3: "critic"})
    graph.add_edge("write", "publish").add_edge("write", "a very long name " * 4)
    return graph.add_conditional_edges("publish", lambda s: END, {"redo": "search", "ok": END}).spec("research")


def wide() -> GraphSpec:
    graph = built(*(f"worker {n}" for n in range(12)), "report")
    for n in range(12):
        graph.add_edge(START, f"worker {n}")
    return graph.add_edge([f"worker {n}" for n in range(12)], "report").spec()


SPECS = [counter, research, wide]


def test_mermaid_draws_every_node_and_edge() -> None:
    assert graph_of(counter()).draw_mermaid().splitlines() == [
        "flowchart TD",
        "    __start__([START])",
        '    inc["inc"]',
        '    check["check"]',
        "    __end__([END])",
        "    __start__ --> inc",
        "    inc --> check",
        '    check -.->|"True"| __end__',
        "    check -.-> inc",
    ]


def test_mermaid_escapes_names_and_avoids_its_own_words() -> None:
    text = graph_of(research()).draw_mermaid()
    assert '_n2["read #60;b#62; #38; #34;co#34;"]' in text
    assert '_n7["end"]' in text and not re.search(r"^    end\b", text, re.MULTILINE)


def test_a_router_that_can_say_anything_is_drawn_to_all_other_nodes() -> None:
    spec = built("a", "b").add_edge(START, "a").add_conditional_edges("a", lambda s: "b").spec()
    drawn = {(each.source, each.target, each.conditional) for each in graph_of(spec).edges}
    assert drawn == {(START, "a", False), ("a", "b", True), ("a", END, True), ("b", END, False)}


def test_an_edge_that_is_both_firm_and_conditional_is_drawn_once() -> None:
    graph = built("a", "b").add_edge(START, "a").add_edge("a", "b")
    spec = graph.add_conditional_edges("a", lambda s: 1, {1: "b", 2: "b"}).spec()
    assert [each for each in graph_of(spec).edges if each.target == "b"] == [Edge("a", "b", "1, 2", False)]


def boxes(text: str) -> list[tuple[str, float, float, float, float]]:
    root = ET.fromstring(text)
    found: list[tuple[str, float, float, float, float]] = []
    for group in root.iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        assert title is not None and rect is not None
        x, y, w, h = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        found.append((title.text or "", x, y, w, h))
    return found


@pytest.mark.parametrize("spec", [each() for each in SPECS], ids=lambda spec: spec.name)
def test_the_svg_shows_every_node_once_without_overlap_inside_its_frame(spec: GraphSpec) -> None:
    text = graph_of(spec).draw_svg()
    found = boxes(text)
    assert sorted(name for name, *_ in found) == sorted([START, *spec.nodes, END])
    for (_, x, y, w, h), (_, x2, y2, w2, h2) in itertools.combinations(found, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    left, top, width, height = map(float, ET.fromstring(text).attrib["viewBox"].split())
    for _, x, y, w, h in found:
        assert left <= x and x + w <= left + width and top <= y and y + h <= top + height


@pytest.mark.parametrize("spec", [each() for each in SPECS], ids=lambda spec: spec.name)
def test_the_svg_shows_every_edge_dashed_if_a_router_decides(spec: GraphSpec) -> None:
    paths = [
        each.attrib["class"]
        for each in ET.fromstring(graph_of(spec).draw_svg()).iter(f"{SVG}path")
        if "marker-end" in each.attrib
    ]
    assert len(paths) == len(graph_of(spec).edges)
    assert sum("maybe" in each for each in paths) == sum(each.conditional for each in graph_of(spec).edges)


def test_the_svg_goes_down_and_needs_nothing_from_outside() -> None:
    text = graph_of(research()).draw_svg()
    tops = {name: y for name, _, y, _, _ in boxes(text)}
    assert tops[START] < tops["plan"] < tops["search"] < tops["critic"] < tops["write"] < tops["publish"] < tops[END]
    assert "prefers-color-scheme:dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "<script" not in text
    assert "…" in text and ("a very long name " * 4).strip() in text  # shown short, whole in its title
    assert graph_of(research()).draw_svg() == text


def test_a_label_is_escaped_and_shown() -> None:
    spec: Any = built("a").add_edge(START, "a").add_conditional_edges("a", lambda s: 1, {"<x>": END}).spec("<g>")
    text = graph_of(spec).draw_svg()
    assert "&lt;x&gt;</text>" in text and 'aria-label="&lt;g&gt;"' in text
    ET.fromstring(text)


# -- characters


def test_characters_show_a_small_graph_like_this() -> None:
    assert (
        graph_of(counter()).draw_ascii()
        == """\
+-------+
| START |
+-------+
    |
    | +....+
    v v    :
+-------+  :
|  inc  |  :
+-------+  :
    |      :
    v      :
+-------+  :
| check |  :
+-------+  :
    : :    :
    : +....+
    v
 +-----+
 | END |
 +-----+

check -> END: True
"""
    )


def followed(text: str) -> dict[tuple[str, str], set[str]]:
    """What a reader finds who follows each wire from below a box to an arrow: (from, to) -> what leads down there."""
    grid = text.split("\n\n")[0].split("\n")
    at = {(row, col): char for row, line in enumerate(grid) for col, char in enumerate(line)}
    names: dict[tuple[int, int], str] = {}
    for row in range(1, len(grid) - 1):
        for found in re.finditer(r"(?<=\+)(-+)(?=\+)", grid[row - 1]):
            inside, (first, end) = grid[row][found.start() : found.end()], found.span()
            sides = at.get((row, first - 1)), at.get((row, end)), grid[row + 1][first - 1 : end + 1]
            if sides == ("|", "|", f"+{found[1]}+") and inside.strip():
                names |= {(row, col): inside.strip() for col in range(first - 1, end + 1)}
    edges: dict[tuple[str, str], set[str]] = {}
    for (row, col), name in names.items():
        if at.get((row + 2, col)) in ("|", ":") and at[row + 1, col] == "-":
            for target, seen in reached(at, names, row + 2, col):
                edges.setdefault((name, target), set()).update(seen)
    return edges


def reached(at: dict[Any, str], names: dict[Any, str], row: int, col: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    stack, seen = [(row, col, 1, 0, "")], set[tuple[int, int, int, int]]()
    while stack:
        row, col, down, right, way = stack.pop()
        char = at.get((row, col), " ")
        if (row, col, down, right) in seen or char == " " or (row, col) in names:
            continue
        seen.add((row, col, down, right))
        if char == "v" and down == 1:
            found.append((names[row + 2, col], way))
        elif char == "+":
            for go in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                next_char = at.get((row + go[0], col + go[1]), " ")
                fits = next_char in "|:v+" if go[0] else next_char in "-.+|:"
                if go != (-down, -right) and fits:
                    stack.append((row + go[0], col + go[1], *go, way))
        elif (char in "|:") == bool(down) or char in "|:":  # a wire that is met crosswise is passed
            stack.append((row + down, col + right, down, right, way + (char if down else "")))
    return found


def says(graph: Graph) -> dict[tuple[str, str], set[str]]:
    shown = {START: "START", END: "END"}
    return {
        (shown.get(x.source, x.source), shown.get(x.target, x.target)): {":" if x.conditional else "|"}
        for x in graph.edges
    }


def random_graph(dice: random.Random) -> Graph:
    names = [f"n{i}" + "x" * dice.choice((0, 0, 5, 12)) for i in range(dice.randint(1, 12))]
    builder = built(*names).add_edge(START, names[0])
    for i, name in enumerate(names):
        if i:
            builder.add_edge(dice.choice(names[:i]), name)
        ends = dice.sample([*names, END], dice.randint(1, min(4, len(names))))
        if dice.random() < 0.3:
            builder.add_conditional_edges(name, lambda s: END, ends)
        elif dice.random() < 0.2:
            for end in ends[:2]:
                builder.add_edge(name, end)
    return graph_of(builder.spec())


@pytest.mark.parametrize("number", range(8))
def test_who_follows_the_wires_finds_the_edges_of_the_graph_and_no_other(number: int) -> None:
    for i in range(25):
        graph = random_graph(random.Random(f"{number} {i}"))
        assert followed(graph.draw_ascii()) == says(graph), graph.draw_ascii()


def test_fifteen_nodes_fit_a_terminal() -> None:
    builder = built(*(f"step_{i}" for i in range(15))).add_edge(START, "step_0")
    for i in range(14):
        builder.add_edge(f"step_{i}", f"step_{i + 1}") if i % 4 else builder.add_conditional_edges(
            f"step_{i}", lambda s: END, [f"step_{i + 1}", f"step_{(i + 3) % 15}", END]
        )
    assert max(map(len, graph_of(builder.spec()).draw_ascii().splitlines())) <= 80


def test_names_in_characters_can_not_drive_a_terminal_and_wide_ones_keep_the_frame() -> None:
    seen = graph_from("g", "g@1", ["日本", "\x1b[2J"], [Edge(START, "日本"), Edge("日本", "\x1b[2J", "\x1b[2J")])
    text = seen.draw_ascii()
    assert "\x1b" not in text and "| 日本  |" in text


# -- LangGraph's object


def test_get_graph_has_langgraphs_nodes_and_edges() -> None:
    from langgraph.graph import StateGraph as LangGraph

    ours = built("inc", "check").add_edge(START, "inc").add_edge("inc", "check")
    theirs: Any = LangGraph(State).add_node("inc", noop).add_node("check", noop)
    theirs.add_edge(START, "inc").add_edge("inc", "check")
    for each in (ours, theirs):
        each.add_conditional_edges("check", lambda s: END, {True: END, "inc": "inc"})
    one, two = ours.compile().get_graph(), theirs.compile().get_graph()
    assert list(one.nodes) == list(two.nodes)
    assert [(x.id, x.name) for x in one.nodes.values()] == [(x.id, x.name) for x in two.nodes.values()]
    assert {*map(tuple, one.edges)} == {*map(tuple, two.edges)}
    first, last = one.first_node(), one.last_node()
    assert first is not None and last is not None and (first.id, last.id) == (START, END)
    key = str
    assert sorted(one.to_json()["edges"], key=key) == sorted(two.to_json()["edges"], key=key)
    assert [x["id"] for x in one.to_json()["nodes"]] == [x["id"] for x in two.to_json()["nodes"]]
    assert one.nodes["inc"].data is noop


def test_a_notebook_gets_the_svg_without_a_network() -> None:
    graph = built("a").add_edge(START, "a").compile()
    seen = graph.get_graph()
    assert seen._repr_svg_() == graph.draw_svg()
    assert graph._repr_mimebundle_() == seen._repr_mimebundle_(include=None, exclude=None)
    assert set(seen._repr_mimebundle_()) == {"image/svg+xml", "text/plain"}


def test_a_published_graph_is_drawn_as_from_its_code() -> None:
    spec = research()
    manifest = Manifest.model_validate_json(manifest_of(spec).model_dump_json())
    ours, theirs = graph_of(spec), manifest.get_graph()
    for draw in ("draw_mermaid", "draw_svg", "draw_ascii"):
        assert getattr(ours, draw)() == getattr(theirs, draw)()
    with pytest.raises(CorruptEntry, match="without its edges"):
        manifest.model_copy(update={"edges": []}).get_graph()
    for odd in (Edge(START, "nobody"), Edge(START, "\x1b[2J")):
        with pytest.raises(CorruptEntry, match="odd edges"):
            manifest.model_copy(update={"edges": [odd], "nodes": {"\x1b[2J": manifest.nodes["plan"]}}).get_graph()
