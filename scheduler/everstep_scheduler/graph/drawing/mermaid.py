"""A graph in Mermaid's language."""

from __future__ import annotations

import re

from ..runtime import END, START
from .picture import Graph

SIMPLE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
WORDS = {
    "end", "graph", "subgraph", "class", "style", "click", "default", "flowchart", "call", "direction",
}  # fmt: skip


def mermaid(graph: Graph) -> str:
    """The graph as Mermaid text, to paste into Markdown."""
    names = [name for name in graph.nodes if name not in (START, END)]
    ids = {name: _id(name, place) for place, name in enumerate(names)} | {START: START, END: END}
    lines = ["flowchart TD", f"    {START}([START])", *(f'    {ids[name]}["{_text(name)}"]' for name in names)]
    if END in graph.nodes:
        lines.append(f"    {END}([END])")
    for each in graph.edges:
        line = "-.->" if each.conditional else "-->"
        label = f'|"{_text(each.data)}"|' if each.data else ""
        lines.append(f"    {ids[each.source]} {line}{label} {ids[each.target]}")
    return "\n".join(lines) + "\n"


def _id(name: str, place: int) -> str:
    simple = SIMPLE.fullmatch(name) and name.lower() not in WORDS
    return name if simple else f"_n{place}"


def _text(text: str) -> str:
    return re.sub(r'[#"<>&`|]', lambda found: f"#{ord(found[0])};", text)
