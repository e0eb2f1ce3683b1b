"""A graph in Mermaid's language."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..runtime import END, START
from .picture import Graph

SIMPLE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
WORDS = {
    "end", "graph", "subgraph", "class", "style", "click", "default", "flowchart", "call", "direction",
}  # fmt: skip


COLOURS = {
    "done": "fill:#e3f1e6,stroke:#2f7d46", "failed": "fill:#fbe4e4,stroke:#b3261e,stroke-width:3px",
    "asks": "fill:#fff1d6,stroke:#b06f00,stroke-width:3px", "open": "fill:#e2ecff,stroke:#3565c4,stroke-width:3px",
    "stopped": "fill:#ececec,stroke:#6b6b6b,stroke-width:3px",
}  # fmt: skip


def mermaid(graph: Graph) -> str:
    """The graph as Mermaid text, to paste into Markdown; graphs in it are boxes around their nodes."""
    names = [name for name in graph.nodes if name not in (START, END)]
    ids = {name: _id(name, place) for place, name in enumerate(names)} | {START: START, END: END}
    lines = ["flowchart TD", f"    {START}([{_start(graph, START)}])", *_grouped(graph, names, ids)]
    if END in graph.nodes:
        lines.append(f"    {END}([{_start(graph, END)}])")
    for each in graph.edges:
        line = "-.->" if each.conditional else "-->"
        label = f'|"{_text(each.data)}"|' if each.data else ""
        lines.append(f"    {ids[each.source]} {line}{label} {ids[each.target]}")
    return "\n".join([*lines, *_traced(graph, ids)]) + "\n"


def _start(graph: Graph, name: str) -> str:
    words = {START: "START", END: "END"}[name]
    caption = graph.trace.caption(name) if graph.trace is not None else ""
    return f'"{words}<br/>{_text(caption)}"' if caption else words


def _grouped(graph: Graph, names: Sequence[str], ids: Mapping[str, str], path: str = "", depth: int = 1) -> list[str]:
    """The nodes below a path, those of each inner graph in a box of their own."""
    lines, seen, pad = list[str](), set[str](), "    " * depth
    for name in names:
        own, colon, _ = name[len(path) :].partition(":")
        if not colon:
            caption = graph.trace.caption(name) if graph.trace is not None else ""
            own = {START: "START", END: "END"}.get(own, own)
            lines.append(f'{pad}{ids[name]}["{_text(own)}{f"<br/>{_text(caption)}" if caption else ""}"]')
        elif own not in seen:
            seen.add(own)
            within = [each for each in names if each.startswith(f"{path}{own}:")]
            lines.append(f'{pad}subgraph _g{ids[within[0]]}_{depth}["{_text(own)}"]')
            lines += [*_grouped(graph, within, ids, f"{path}{own}:", depth + 1), f"{pad}end"]
    return lines


def _traced(graph: Graph, ids: Mapping[str, str]) -> list[str]:
    """Colours of nodes by how they stand, and the edges that were taken in bold."""
    if graph.trace is None:
        return []
    states: dict[str, list[str]] = {}
    for name in graph.nodes:
        states.setdefault(graph.trace.state(name), []).append(ids[name])
    lines = [f"    classDef {state} {COLOURS[state]}" for state in states if state]
    lines += [f"    class {','.join(found)} {state}" for state, found in states.items() if state]
    taken = [str(i) for i, each in enumerate(graph.edges) if graph.trace.taken.get(each[:2])]
    return lines + ([f"    linkStyle {','.join(taken)} stroke-width:3px"] if taken else [])


def _id(name: str, place: int) -> str:
    simple = SIMPLE.fullmatch(name) and name.lower() not in WORDS
    return name if simple else f"_n{place}"


def _text(text: str) -> str:
    return re.sub(r'[#"<>&`|]', lambda found: f"#{ord(found[0])};", text)
