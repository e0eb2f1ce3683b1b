"""Manifests: what a graph says of itself in Redis, so that producers and tools need none of its code.

    worker ──publish──► graph:<name> (JSON) ──read──► client ──check_input──► the input's JSON form

What does not fit is told whole: every place, what is wrong there, and what is known.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from everstep_checkpoint.errors import CorruptEntry, EmptyInputError, InvalidInput, TooLarge, UnknownGraph
from everstep_checkpoint.keys import Keys

from ..graph.drawing.picture import Edge, Graph, graph_from, graph_of
from ..graph.durability import COMMIT
from ..graph.runtime import END, START
from ..graph.schema import did_you_mean
from ..moves.redismoves import RedisMoves, Scripts
from ..reading.shapes import Reading

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError as Problem

    from ..graph.spec import GraphSpec

_log = logging.getLogger("everstep")
MANIFEST_MAX = 4 * 2**20
PROBLEMS_MAX = 20
TEXT_MAX = 200
JsonSchema = dict[str, Any]
Lacking = Callable[[list[str]], Iterable[str]]
_KINDS: dict[type, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object",
}  # fmt: skip


class NodeInfo(BaseModel):
    """A node, as far as one can say it without code. `timeout_s` 0: no limit."""

    queue: str
    timeout_s: float = 0


class Inner(BaseModel):
    """A graph that is a node, as far as its runs are read and drawn. `logged`: do they have a log of their own?"""

    logged: bool
    version: str = ""
    outputs: list[str]
    joins: list[str] = []
    nodes: list[str] = []
    edges: list[Edge] = []
    graphs: dict[str, Inner] = {}

    @property
    def reading(self) -> Reading:
        """How its values are read without its code."""
        return Reading(None, self.outputs, self.joins, _readings(self.graphs))


class Manifest(BaseModel):
    """A published graph. `channels`: key -> its reducer's name, empty for a last value. `joins`: its barriers.
    `graphs`: those that are nodes of it. `entry`: an entrypoint, whose input is one value; its schemas have it under
    `__start__`, and the output under `__end__`."""

    name: str
    version: str
    queue: str
    queues: list[str]
    nodes: dict[str, NodeInfo]
    input_schema: JsonSchema
    output_schema: JsonSchema
    channels: dict[str, str]
    entry: bool = False
    durability: str = COMMIT
    edges: list[Edge] = []
    joins: list[str] = []
    graphs: dict[str, Inner] = {}
    mermaid: str = ""
    published_at: str = ""
    everstep: str = ""

    @property
    def outputs(self) -> list[str]:
        """The keys of the output."""
        return list(self.output_schema.get("properties", {}))

    def keyed(self, data: object) -> object:
        """An input as keys and values: an entrypoint's one value under its key."""
        return {START: data} if self.entry and data is not None else data

    def get_graph(self) -> Graph:
        """Its nodes and edges, to be drawn. Raises CorruptEntry if it says no edges, or odd ones."""
        return _drawn(self.name, self.version, self)

    @property
    def reading(self) -> Reading:
        """How the graph's values are read without its code."""
        return Reading(None, self.outputs, self.joins, _readings(self.graphs), self.version, frozenset(self.channels))


def _drawn(name: str, version: str, said: Manifest | Inner) -> Graph:
    known = {START, END, *said.nodes}
    if not said.edges or not all(end in known and end.isprintable() for each in said.edges for end in each[:2]):
        what = f"the graph {name!r} was published {'with odd' if said.edges else 'without its'} edges"
        raise CorruptEntry(what, fix="start a worker of this version: it publishes the graph anew")
    inner = {node: _drawn(f"{name}.{node}", each.version, each) for node, each in said.graphs.items() if each.logged}
    return graph_from(name, version, said.nodes, said.edges, inner)


def _readings(graphs: dict[str, Inner]) -> dict[str, Reading]:
    return {node: inner.reading for node, inner in graphs.items() if inner.logged}


def _inner(spec: GraphSpec) -> dict[str, Inner]:
    """What is said of the graphs that are nodes."""
    return {
        node: Inner(
            logged=spec.node(node).calls,
            version=inner.version,
            outputs=list(inner.output_schema.fields),
            joins=[join.channel for join in inner.joins],
            nodes=list(inner.nodes),
            edges=list(graph_of(inner).edges),
            graphs=_inner(inner),
        )
        for node, inner in spec.nested.items()
    }


def manifest_of(spec: GraphSpec) -> Manifest:
    """What a graph says of itself."""
    seen = graph_of(spec)
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
        channels={name: each.reducer_name for name, each in spec.channels.items() if name not in spec.untracked},
        entry=spec.direct,
        durability=spec.durability,
        edges=list(seen.edges),
        joins=[join.channel for join in spec.joins],
        graphs=_inner(spec),
        mermaid=seen.draw_mermaid(),
        published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        everstep=_version(),
    )


def _version() -> str:
    try:
        return version("everstep")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0"


def publish(client: Any, keys: Keys, specs: Iterable[GraphSpec]) -> None:
    """Say in Redis what these graphs are, and their limits. A later version of a graph replaces the earlier one."""
    specs = list(specs)
    pipe = client.pipeline(transaction=True)
    for spec in specs:
        pipe.set(keys.graph(spec.name), _dumped(manifest_of(spec)))
        pipe.sadd(keys.graphs, spec.name)
    pipe.execute()
    listed: bytes = client.get(keys.limited) or b""
    moves = RedisMoves(Scripts(client, keys))
    for spec in (each for root in specs for each in root.family):
        if spec.limits or spec.name in listed.decode("utf-8", "replace").split("\n"):
            moves.limit(spec.name, spec.limits)


def _dumped(manifest: Manifest) -> str:
    """Raises TooLarge for what no reader takes."""
    said = manifest.model_dump_json()
    if len(said.encode()) > MANIFEST_MAX:
        what = f"the manifest of the graph {manifest.name!r} has {len(said):,} bytes, the cap is {MANIFEST_MAX:,}"
        raise TooLarge(what, fix="make its schemas smaller, or split the graph")
    return said


def names(client: Any, keys: Keys) -> list[str]:
    """The names of the published graphs."""
    return sorted(name.decode("utf-8", "replace") for name in client.smembers(keys.graphs))


def read(client: Any, keys: Keys, name: str) -> Manifest:
    """The manifest of a graph. Raises UnknownGraph with those that are known, CorruptEntry."""
    stored: bytes = client.getrange(keys.graph(name), 0, MANIFEST_MAX)  # no more than is taken, however large it is
    if not stored:
        there = names(client, keys)
        known = f"{did_you_mean(name, there)} " if there else ""
        fix = f"{known}`everstep worker MODULE:GRAPH` publishes the graphs that it serves"
        raise UnknownGraph(f"no graph {name!r} is published here", fix=fix)
    fix = "start a worker of this graph: it publishes the manifest anew"
    if len(stored) > MANIFEST_MAX:
        what = f"the manifest of the graph {name!r} has over {MANIFEST_MAX:,} bytes, the cap"
        raise CorruptEntry(what, fix=fix)
    try:
        return Manifest.model_validate_json(stored)
    except ValidationError as error:
        what = f"the manifest of the graph {name!r} is not readable: {error.error_count()} fields"
        raise CorruptEntry(what, fix=fix) from None


def readable(named: Iterable[str], read_one: Callable[[str], Manifest]) -> list[Manifest]:
    """Those of the named graphs whose manifests can be read; the others are logged, and hide none."""
    found: list[Manifest] = []
    for name in named:
        try:
            found.append(read_one(name))
        except (CorruptEntry, UnknownGraph) as error:
            _log.warning("left out: %s", error)
    return found


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


def check_input(manifest: Manifest, data: object, lacking: Lacking = list) -> dict[str, Any]:
    """The JSON form of an input that fits the graph's schema. Raises InvalidInput with all that is wrong.

    `lacking`: of the required keys that the input leaves out, those that its thread does not have either.
    """
    keys = _keys(manifest.input_schema)
    if data is None:
        raise EmptyInputError(f"no input for the graph {manifest.name!r}", fix=f"give a dict; its keys: {keys}")
    found = json_form(data)
    if not isinstance(found, dict):
        what = f"the input of {manifest.name!r} must be a dict, not {type(data).__name__}"
        raise InvalidInput(what, fix=f"its keys: {keys}")
    schema = manifest.input_schema
    left = [name for name in schema.get("required", ()) if name not in found]
    schema = schema | {"required": list(lacking(left)) if left else []}
    problems = list(dict.fromkeys(_said(problem) for problem in _problems(schema, found)))
    if problems:
        more = " (and more)" if len(problems) > PROBLEMS_MAX else ""
        what = f"the input does not fit the graph {manifest.name!r}: {'; '.join(problems[:PROBLEMS_MAX])}{more}"
        fix = f"its keys: {keys}"
        raise InvalidInput(what, fix="`everstep graphs --json` shows its schema" if manifest.entry else fix)
    return cast("dict[str, Any]", found)


def _keys(schema: JsonSchema) -> str:
    """The keys of an input, for `fix=`: `count (required), note`."""
    needed = schema.get("required", ())
    return ", ".join(f"{key} (required)" if key in needed else key for key in schema.get("properties", {})) or "none"


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

    from .checking import TooMuch, problems

    fix = "publish the graph anew: its schema has to hold all that it refers to"
    try:
        return sorted(problems(schema, data), key=lambda problem: [str(part) for part in problem.absolute_path])
    except (Unresolvable, TooMuch) as error:
        raise InvalidInput(f"the graph's input schema can't be followed: {error}", fix=fix) from None
    except Exception as error:  # noqa: BLE001 - what a schema that is none makes of its reader
        what = f"the graph's input schema can't be followed: {type(error).__name__}"
        raise InvalidInput(what, fix="a worker of this graph publishes it anew when it begins") from None


def _said(problem: Problem) -> str:
    """Where, what, and what is known; never a value, for it may be a secret."""
    path = [part for i, part in enumerate(problem.absolute_path) if i or part != START]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return f"{where.lstrip('.') or 'input'}: {_what(problem)}"


def _what(problem: Problem) -> str:
    rule, found = problem.validator, cast("Any", problem.instance)
    match rule:
        case "additionalProperties":
            known = cast("JsonSchema", problem.schema).get("properties", {})
            odd = [key for key in found if key not in known]
            return f"has no key {odd[0]!r}{_guess(odd[0], known)}" if odd else "has a key too many"
        case "required":
            lacking = [key for key in cast("list[str]", problem.validator_value) if key not in found]
            return f"lacks {', '.join(map(repr, lacking))}"
        case "type":
            return f"must be {problem.validator_value}, not {_kind(found)}"
        case "enum" | "const":
            return f"must be one of {json.dumps(problem.validator_value)[:TEXT_MAX]}"
        case "anyOf" | "oneOf":
            forms = cast("list[Any]", problem.validator_value)
            return f"fits {problem.message} of its {len(forms)} forms, being {_kind(found)}"
        case _:
            return f"fails {rule} {json.dumps(problem.validator_value)[:TEXT_MAX]}"


def _guess(name: object, known: Iterable[str]) -> str:
    """The closest known key. All of them are in the error's fix already."""
    close = get_close_matches(str(name), list(known), 1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")
