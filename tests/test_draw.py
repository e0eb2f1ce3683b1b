"""Promises of the pictures: complete, escaped, deterministic, and laid out without overlap."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from typing import Any, TypedDict

import pytest

from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.draw import arrows, mermaid, svg
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
    assert mermaid(counter()).splitlines() == [
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
    text = mermaid(research())
    assert '_n2["read #60;b#62; #38; #34;co#34;"]' in text
    assert '_n7["end"]' in text and not re.search(r"^    end\b", text, re.MULTILINE)


def test_a_router_that_can_say_anything_is_drawn_to_all_other_nodes() -> None:
    spec = built("a", "b").add_edge(START, "a").add_conditional_edges("a", lambda s: "b").spec()
    drawn = {(each.start, each.end, each.maybe) for each in arrows(spec)}
    assert drawn == {(START, "a", False), ("a", "b", True), ("a", END, True), ("b", END, False)}


def test_an_edge_that_is_both_firm_and_conditional_is_drawn_once() -> None:
    graph = built("a", "b").add_edge(START, "a").add_edge("a", "b")
    spec = graph.add_conditional_edges("a", lambda s: 1, {1: "b", 2: "b"}).spec()
    assert [each for each in arrows(spec) if each.end == "b"] == [type(arrows(spec)[0])("a", "b", False, "1, 2")]


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
    text = svg(spec)
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
        each.attrib["class"] for each in ET.fromstring(svg(spec)).iter(f"{SVG}path") if "marker-end" in each.attrib
    ]
    assert len(paths) == len(arrows(spec))
    assert sum("maybe" in each for each in paths) == sum(each.maybe for each in arrows(spec))


def test_the_svg_goes_down_and_needs_nothing_from_outside() -> None:
    text = svg(research())
    tops = {name: y for name, _, y, _, _ in boxes(text)}
    assert tops[START] < tops["plan"] < tops["search"] < tops["critic"] < tops["write"] < tops["publish"] < tops[END]
    assert "prefers-color-scheme:dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "<script" not in text
    assert "…" in text and ("a very long name " * 4).strip() in text  # shown short, whole in its title
    assert svg(research()) == text


def test_a_label_is_escaped_and_shown() -> None:
    spec: Any = built("a").add_edge(START, "a").add_conditional_edges("a", lambda s: 1, {"<x>": END}).spec("<g>")
    text = svg(spec)
    assert "&lt;x&gt;</text>" in text and 'aria-label="&lt;g&gt;"' in text
    ET.fromstring(text)
