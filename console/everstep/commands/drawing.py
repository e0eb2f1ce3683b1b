"""graphs, draw: what graphs there are, and how they look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import show
from ..site import Site

if TYPE_CHECKING:
    from everstep_scheduler.client.manifest import Manifest


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
    keys = ", ".join(manifest.input_schema.get("properties", {}))
    version = manifest.version.partition("@")[2]
    return [manifest.name, version, ", ".join(manifest.queues), ", ".join(manifest.nodes), keys]


@click.command()
@click.argument("graph", metavar="MODULE:GRAPH|GRAPH")
@click.option("--svg", "form", flag_value="svg", help="As SVG, drawn here.")
@click.option("--mermaid", "form", flag_value="mermaid", default="mermaid", help="As Mermaid text (so by default).")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Into this file; .svg means SVG.")
@click.pass_obj
def draw(site: Site, graph: str, form: str, output: Path | None) -> None:
    """A graph as Mermaid text or SVG: from its code (MODULE:GRAPH), or as a worker has published it (GRAPH)."""
    if output is not None and output.suffix == ".svg":
        form = "svg"
    text = _from_code(graph, form) if ":" in graph else _published(site, graph, form)
    if output is None:
        click.echo(text)
        return
    output.write_text(text)
    site.say(f"{output}: {form}, {len(text):,} characters")


def _from_code(target: str, form: str) -> str:
    from everstep_workers.targets import load_target

    graph = load_target(target)
    return graph.draw_svg() if form == "svg" else graph.draw_mermaid()


def _published(site: Site, name: str, form: str) -> str:
    if form == "svg":
        raise click.UsageError(
            f"an SVG is drawn from the code: everstep draw MODULE:{name} --svg; a published graph has Mermaid text"
        )
    with site.open():
        return site.client.manifest(name).mermaid
