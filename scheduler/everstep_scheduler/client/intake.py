"""Intake: a producer's input, checked against a graph's manifest and encoded for the log. Pure.

data ──check_input──► fits ──┬─ JSON as it is            ──► form "json": the graph reads it by its types
                             ├─ dates, sets, bytes, ...  ──► form "typed": values keep the types they have
                             └─ models, dataclasses      ──► form "json": their JSON form travels
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import InvalidInput, UnknownType
from everstep_checkpoint.log import Log

from ..graph.entry import PREVIOUS
from ..graph.runtime import END
from ..graph.schema import updates_of
from ..moves.record import Form, Writes
from ..steps.commanding import Lore
from .manifest import Lacking, Manifest, check_input, check_keys, is_json, json_form

_CODEC = Codec()  # no registered types; capped like the workers' own


def take(manifest: Manifest, data: object, lacking: Lacking = list) -> tuple[Form, Writes]:
    """An input as it travels. Raises InvalidInput, EmptyInputError, TooLarge; nothing was written then.

    `lacking`: of the required keys that the input leaves out, those that its thread does not have either.
    """
    fields = updates_of(data)
    given: object = data if fields is None else fields
    typed = _typed(given)  # first: what is too large is not worth a check
    checked = check_input(manifest, given, lacking)
    if typed is None:
        return "json", _encoded(checked)
    return ("json" if is_json(given) else "typed"), typed


def _typed(given: object) -> Writes | None:
    """The values with the types that they have; None if the codec alone does not know all of them."""
    try:
        return _encoded(cast("Mapping[str, Any]", given)) if isinstance(given, Mapping) else None
    except UnknownType:
        return None


def take_update(manifest: Manifest, values: Any) -> Writes:
    """The values of an update as they travel. Raises InvalidInput, TooLarge."""
    given = {END: values, PREVIOUS: values} if manifest.entry else dict(values or {})
    check_keys(manifest, given, "the update")
    try:
        return _encoded(given)
    except UnknownType:
        return _encoded(cast("Mapping[str, Any]", json_form(given)))


class ManifestLore(Lore):
    """A graph that is known by its manifest alone."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.name, self.queue = manifest, manifest.name, manifest.queue

    @property
    def nodes(self) -> Iterable[str]:
        return self.manifest.nodes

    @property
    def keys(self) -> Iterable[str]:
        return self.manifest.channels

    def place(self, node: str) -> tuple[str, float]:
        known = self.manifest.nodes[node]
        return known.queue, known.timeout_s

    def check(self, log: Log, thread: str, writes: Writes) -> None:
        """Only the graph's code can tell."""

    def encode(self, value: Any, what: str) -> bytes:
        try:
            return _CODEC.encode(value, what)
        except UnknownType:
            return _CODEC.encode(json_form(value), what)


def node_of(manifest: Manifest, as_node: str, thread: str) -> str:
    """The node that an update stands for. Raises InvalidInput if there is none of this name."""
    if as_node in (*manifest.nodes, "__start__", "__end__"):
        return as_node
    known = ", ".join(manifest.nodes)
    raise InvalidInput(f"{manifest.name!r} has no node {as_node!r}", thread=thread, fix=f"as_node is one of {known}")


def _encoded(data: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    return [(name, _CODEC.encode(value, f"input key {name!r}")) for name, value in data.items()]
