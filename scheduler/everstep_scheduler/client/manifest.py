"""Manifests: what a graph says of itself in Redis, so that producers and tools need none of its code.

    worker ──publish──► graph:<name> (JSON) ──read──► client ──check_input──► the input's JSON form

What does not fit is told whole: every place, what is wrong there, and what is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from everstep_checkpoint.errors import CorruptEntry, EmptyInputError, InvalidInput, UnknownGraph
from everstep_checkpoint.keys import Keys

from ..graph.draw import mermaid
from ..graph.schema import did_you_mean

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError as Problem

    from ..graph.spec import GraphSpec

PROBLEMS_MAX = 20
TEXT_MAX = 200
JsonSchema = dict[str, Any]
_KINDS: dict[type, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object",
}  # fmt: skip


class NodeInfo(BaseModel):
    """A node, as far as one can say it without code. `timeout_s` 0: no limit."""

    queue: str
    timeout_s: float = 0


class Manifest(BaseModel):
    """A published graph. `channels`: key -> its reducer's name, empty for a last value."""

    name: str
    version: str
    queue: str
    queues: list[str]
    nodes: dict[str, NodeInfo]
    input_schema: JsonSchema
    output_schema: JsonSchema
    channels: dict[str, str]
    mermaid: str = ""
    published_at: str = ""
    everstep: str = ""

    @property
    def outputs(self) -> list[str]:
        """The keys of the output."""
        return list(self.output_schema.get("properties", {}))


def manifest_of(spec: GraphSpec) -> Manifest:
    """What a graph says of itself."""
    return Manifest(
        name=spec.name,
        version=spec.version,
        queue=spec.default_queue,
        queues=list(spec.queues),
        nodes={
            name: NodeInfo(queue=spec.queue_of(name), timeout_s=spec.node(name).timeout_s or 0) for name in spec.nodes
        },
        input_schema=spec.input_schema_json(),
        output_schema=spec.output_schema_json(),
        channels={name: channel.reducer_name for name, channel in spec.channels.items()},
        mermaid=mermaid(spec),
        published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        everstep=_version(),
    )


def _version() -> str:
    try:
        return version("everstep")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0"


def publish(client: Any, keys: Keys, specs: Iterable[GraphSpec]) -> None:
    """Say in Redis what these graphs are. A later version of a graph replaces the earlier one."""
    pipe = client.pipeline(transaction=True)
    for spec in specs:
        pipe.set(keys.graph(spec.name), manifest_of(spec).model_dump_json())
        pipe.sadd(keys.graphs, spec.name)
    pipe.execute()


def names(client: Any, keys: Keys) -> list[str]:
    """The names of the published graphs."""
    return sorted(name.decode() for name in client.smembers(keys.graphs))


def read(client: Any, keys: Keys, name: str) -> Manifest:
    """The manifest of a graph. Raises UnknownGraph with those that are known, CorruptEntry."""
    stored = client.get(keys.graph(name))
    if stored is None:
        known = did_you_mean(name, names(client, keys))
        raise UnknownGraph(
            f"no graph {name!r} is published here", fix=f"{known} A worker publishes those that it serves"
        )
    try:
        return Manifest.model_validate_json(stored)
    except ValidationError as error:
        what = f"the manifest of the graph {name!r} is not readable: {error.error_count()} fields"
        raise CorruptEntry(what, fix="start a worker of this graph: it publishes the manifest anew") from None


# -- the input


def json_form(data: object) -> Any:
    """A value's JSON form: datetimes as text, sets as lists, models and dataclasses as objects. Raises InvalidInput."""
    try:
        return to_jsonable_python(data, bytes_mode="base64", inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError) as error:
        raise InvalidInput(
            f"the input has no JSON form: {error}", fix="give text, numbers, lists, dicts, dates or pydantic models"
        ) from None


def is_json(value: object) -> bool:
    """Is it what JSON gives back as it was: text keys, lists, plain scalars?"""
    if value is None or type(value) in (bool, int, float, str):
        return True
    if type(value) is list:
        return all(is_json(item) for item in cast("list[object]", value))
    if type(value) is dict:
        return all(type(key) is str and is_json(item) for key, item in cast("dict[object, object]", value).items())
    return False


def check_input(manifest: Manifest, data: object) -> dict[str, Any]:
    """The JSON form of an input that fits the graph's schema. Raises InvalidInput with all that is wrong."""
    keys = ", ".join(manifest.input_schema.get("properties", {})) or "none"
    if data is None:
        raise EmptyInputError(f"no input for the graph {manifest.name!r}", fix=f"give a dict; its keys: {keys}")
    found = json_form(data)
    if not isinstance(found, dict):
        what = f"the input of {manifest.name!r} must be a dict, not {type(data).__name__}"
        raise InvalidInput(what, fix=f"its keys: {keys}")
    problems = [_said(problem) for problem in _problems(manifest.input_schema, found)]
    if problems:
        more = f" (and {len(problems) - PROBLEMS_MAX} more)" if len(problems) > PROBLEMS_MAX else ""
        what = f"the input does not fit the graph {manifest.name!r}: {'; '.join(problems[:PROBLEMS_MAX])}{more}"
        raise InvalidInput(what, fix=f"keys of the input: {keys}")
    return cast("dict[str, Any]", found)


def check_keys(manifest: Manifest, data: Iterable[str], what: str) -> None:
    """Are these keys of the graph's state? Raises InvalidInput."""
    for key in data:
        if key not in manifest.channels:
            raise InvalidInput(
                f"{what} names {key!r}, no key of {manifest.name!r}", fix=did_you_mean(key, manifest.channels)
            )


def _problems(schema: JsonSchema, data: Any) -> Sequence[Problem]:
    """What is wrong with an input. A schema is data: whatever it says, it must not hold up or end who reads it."""
    from referencing.exceptions import Unresolvable

    from .checking import TooMuch, validator

    fix = "publish the graph anew: its schema has to hold all that it refers to"
    try:
        found = validator(schema, data).iter_errors(data)
        return sorted(found, key=lambda problem: [str(part) for part in problem.absolute_path])
    except (Unresolvable, TooMuch) as error:
        raise InvalidInput(f"the graph's input schema can't be followed: {error}", fix=fix) from None
    except Exception as error:  # noqa: BLE001 - what a schema that is none makes of its reader
        what = f"the graph's input schema can't be followed: {type(error).__name__}"
        raise InvalidInput(what, fix="a worker of this graph publishes it anew when it begins") from None


def _said(problem: Problem) -> str:
    """Where, what, and what is known; never a value, for it may be a secret."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.absolute_path)
    return f"{where.lstrip('.') or 'input'}: {_what(problem)}"


def _what(problem: Problem) -> str:
    rule, found = problem.validator, cast("Any", problem.instance)
    match rule:
        case "additionalProperties":
            known = cast("JsonSchema", problem.schema).get("properties", {})
            odd = [key for key in found if key not in known]
            return f"has no key {odd[0]!r}. {did_you_mean(odd[0], known)}" if odd else "has a key too many"
        case "required":
            lacking = [key for key in cast("list[str]", problem.validator_value) if key not in found]
            return f"lacks {', '.join(map(repr, lacking))}"
        case "type":
            return f"must be {problem.validator_value}, not {_kind(found)}"
        case "enum" | "const":
            return f"must be one of {json.dumps(problem.validator_value)[:TEXT_MAX]}"
        case "anyOf" | "oneOf":
            return f"fits none of its {len(problem.context or [])} forms, being {_kind(found)}"
        case _:
            return f"fails {rule} {json.dumps(problem.validator_value)[:TEXT_MAX]}"


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")
