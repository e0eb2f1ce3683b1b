"""What workers of several versions of one graph owe each other, in a rolling deploy. Pure.

A node that this version lacks is parked as it is loaded. A join is every version's: what its siblings came to may be
of a version that knows more.
"""

from __future__ import annotations

from collections.abc import Sequence

from everstep_checkpoint import entries as e

from ..graph.runtime import END
from ..graph.spec import GraphSpec


def lacks(spec: GraphSpec, facts: Sequence[e.Entry]) -> tuple[str, str] | None:
    """The node whose servers can join these outcomes, empty for the join's own, and what is lacking here."""
    for fact in facts:
        for node in fact.json("goto") or ():
            if node not in spec.nodes and node != END:
                return node, f"node {node!r}"
        for name, _ in fact.writes():
            if name not in spec.channels:
                own = fact.text("node")
                return ("" if own in spec.nodes else own), f"key {name!r}"
    return None
