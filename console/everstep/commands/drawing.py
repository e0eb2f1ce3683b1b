"""graphs, draw: what graphs there are, and how they look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import show
from ..site import Site

if TYPE_CHECKING:
    from everstep_scheduler.client.manifest import Manifest
    from everstep_scheduler.graph.drawing.picture import Graph


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="For programs: one document a line, the JSON schema of the input included."
)
@click.pass_obj
def graphs(site: Site, as_json: bool) -> None:
    """The graphs that workers have published: names, queues, nodes, what they take."""
    with site.open():
        found = site.client.graphs()
    if as_json:
        for each in found:
            show.emit(each.model_dump())
    elif found:
        show.table(("graph", "version", "queues", "nodes", "input"), [_row(each) for each in found])
    else:
        site.say("no graph is published; everstep worker MODULE:GRAPH does it")


def _row(manifest: Manifest) -> list[str]:
    keys = "a value" if manifest.entry else ", ".join(manifest.input_schema.get("properties", {}))
    version = manifest.version.partition("@")[2]
    return [manifest.name, version, ", ".join(manifest.queues), ", ".join(manifest.nodes), keys]


FORMS = {".svg": "svg", ".mmd": "mermaid", ".txt": "ascii"}
BEGINS = {"svg": "<svg ", "mermaid": "flowchart ", "ascii": "+-"}
LOOK = 4096  # characters of a file that is there already


@click.command()
@click.argument("graph", metavar="[MODULE:GRAPH|GRAPH]", required=False)
@click.option("--mermaid", "form", flag_value="mermaid", help="As Mermaid text (so by default).")
@click.option("--svg", "form", flag_value="svg", help="As SVG.")
@click.option("--ascii", "form", flag_value="ascii", help="As boxes and lines of plain characters.")
@click.option("--thread", metavar="THREAD", help="With the path that THREAD took: what ran, when, and where it stands.")
@click.option("--all", "whole", is_flag=True, help="With --thread: since its beginning, not since its last input.")
@click.option("--xray", is_flag=True, help="With the graphs that are nodes drawn in their places.")
@click.option("--depth", type=click.IntRange(1, 100), metavar="N", help="With --xray: so many levels deep, not all.")
@click.option(
    "--output",
    "-o",
    "output",
    metavar="FILE",
    default="-",
    help="Into .svg, .mmd (Mermaid) or .txt; - is stdout.",
)
@click.pass_obj
def draw(
    site: Site,
    graph: str | None,
    form: str | None,
    thread: str | None,
    whole: bool,
    xray: bool,
    depth: int | None,
    output: str,
) -> None:
    """A graph as Mermaid text, SVG or characters: from its code (MODULE:GRAPH), or as a worker published it (GRAPH).

    \b
    everstep draw counting --ascii
    everstep draw counting -o counting.svg
    everstep draw --thread demo --xray -o demo.svg
    """
    wanted = _form(form, output)
    if (whole and thread is None) or (depth is not None and not xray):
        raise click.UsageError("--all goes with --thread, --depth with --xray")
    seen = _graph(site, graph, thread)
    if thread is not None:
        with site.open():
            seen = traced(seen, site, thread, whole)
    seen = seen.xray(depth or xray)
    text = {"svg": seen.draw_svg, "mermaid": seen.draw_mermaid, "ascii": seen.draw_ascii}[wanted]()
    if output == "-":
        click.echo(text, nl=False)
        return
    _write(Path(output), wanted, text)
    site.say(f"{output}: {wanted}, {len(text):,} characters")


def traced(graph: Graph, site: Site, thread: str, whole: bool) -> Graph:
    """The graph with the path of a thread."""
    from everstep_scheduler.reading import path

    return path.traced(graph, site.log, thread, whole=whole)


def _form(form: str | None, output: str) -> str:
    """Which form is wanted: the suffix says it, or an option. Raises UsageError if it can't be told, or they differ."""
    if output == "-":
        return form or "mermaid"
    by_suffix = FORMS.get(Path(output).suffix.lower())
    if by_suffix is None:
        raise click.UsageError(f"{output!r} is none of .svg, .mmd (Mermaid) or .txt (characters); - is stdout")
    if form not in (None, by_suffix):
        raise click.UsageError(f"{output!r} holds {by_suffix}, and --{form} was asked for")
    return by_suffix


def _graph(site: Site, graph: str | None, thread: str | None) -> Graph:
    """The graph that is named, or that of a thread. Raises UsageError, UnknownThread, UnknownGraph."""
    from everstep_workers.targets import load_target

    if graph is not None and ":" in graph:
        return load_target(graph).get_graph()
    if graph is None and thread is None:
        raise click.UsageError("name a graph, or a thread: everstep draw GRAPH, everstep draw --thread THREAD")
    with site.open():
        return _published(site, graph or _graph_of(site, str(thread)))


def _graph_of(site: Site, thread: str) -> str:
    """The graph of a thread, as its log names it."""
    from everstep_checkpoint.log import unknown_thread
    from everstep_scheduler.reading.questions import open_step

    told = open_step(site.log, thread)
    if told is None:
        raise unknown_thread(thread)
    return told.graph


def _published(site: Site, name: str) -> Graph:
    """A published graph; `shop.pay` is the one that is the node `pay` of `shop`, unless it is published itself."""
    from everstep_checkpoint.errors import UnknownGraph

    try:
        return site.client.manifest(name).get_graph()
    except UnknownGraph:
        outer, dot, node = name.rpartition(".")
        inner = _published(site, outer).inner.get(node) if dot else None
        if inner is None:
            raise
        return inner


def _write(path: Path, form: str, text: str) -> None:
    """Write a drawing; over an earlier drawing only. Raises UsageError."""
    try:
        if path.exists() and not _is_drawing(path, form):
            raise click.UsageError(f"{str(path)!r} is there and is no drawing; remove it, or choose another name")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{str(path)!r} can't be written: {error.strerror}") from None


def _is_drawing(path: Path, form: str) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        begin = file.read(LOOK).lstrip()
    return not begin or (begin.startswith(BEGINS[form]) and "START" in begin.upper())
