"""A state's values to their encodings and back: what each attempt does with its input and with what it returned. Pure.

seen      channels ──decode──► the state as a schema shows it
written   what a node returned ──check──► keys and values ──encode──► writes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import InvalidUpdateError, UnknownType

from .channels import Write
from .kinds import stored
from .managed import Steps
from .schema import Schema, as_dict, did_you_mean, updates_of
from .untracked import mark, taken

if TYPE_CHECKING:
    from .spec import GraphSpec

NAMES_KEPT = 256


def seen(spec: GraphSpec, schema: Schema, channels: Mapping[str, bytes], steps: Steps) -> Any:
    """The state as a schema shows it, freshly decoded, with its managed values."""
    values = decoded(spec.codec, schema.fields, channels, spec.untracked)
    if schema.managed:
        values.update(schema.managed_at(steps))
    return values if schema.kind == "typeddict" else schema.build(values)


def decoded(
    codec: Codec, names: Iterable[str], channels: Mapping[str, bytes], untracked: frozenset[str]
) -> dict[str, Any]:
    """The available channels among `names`, freshly decoded."""
    values: dict[str, Any] = {}
    for name in names:
        data = channels.get(name)
        if data is not None:
            values[name] = codec.decode(data, where(name))
    if untracked:
        values = taken(values)
    return values


def written(spec: GraphSpec, node: str, returned: object) -> list[Write]:
    """What a node returned, as writes. Unknown keys are refused (LangGraph drops them silently)."""
    if returned is None:
        return []
    fields = as_dict(returned)
    fields = updates_of(returned) if fields is None else fields
    if fields is None:
        raise InvalidUpdateError(
            f"The node {node!r} returned {a(returned)}",
            node=node,
            fix="A node returns a dict with the keys to update, an instance of a schema, a Command, or None.",
        )
    return pairs_written(spec, node, fields.items())


def pairs_written(spec: GraphSpec, node: str, pairs: Iterable[Any]) -> list[Write]:
    """Keys and values as writes; a key may come several times. Managed keys are passed over, as in LangGraph."""
    found: list[tuple[Any, Any]] = []  # a key is whatever a node returned, until it is one of the channels
    for pair in pairs:
        key, value = pair
        if key in spec.managed:
            continue
        if key not in spec.channels:
            raise InvalidUpdateError(
                f"The node {node!r} wrote {key!r}, which is no key of the state",
                node=node,
                fix=did_you_mean(key, spec.channels),
            )
        found.append((key, value))
    return encoded(spec.codec, found, node, spec.untracked)


def encoded(codec: Codec, pairs: Iterable[tuple[str, Any]], node: str, untracked: frozenset[str]) -> list[Write]:
    """Keys and values as writes of a node. Raises UnknownType, naming it."""
    writes: list[Write] = []
    try:
        for name, value in pairs:
            kept = mark(value) if name in untracked else stored(value)
            writes.append((name, codec.encode(kept, where(name))))
    except UnknownType as error:
        error.node = node
        raise
    return writes


@lru_cache(NAMES_KEPT)
def where(name: str) -> str:
    """A channel, as errors name it."""
    return f"channel {name!r}"


def a(value: object) -> str:
    """A value's type, with its article."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
