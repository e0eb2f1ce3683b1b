"""JSON Schema over an input, for schemas that may come from anybody who can write to Redis.

What could hold up a process for ever is bounded: patterns run on an engine that takes linear time (Python's `re` may
take for ever, and holds the GIL meanwhile), and references are followed as often as the input's size allows. What this
leaves unchecked is checked with the graph's real types when the run starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache, lru_cache, partial
from typing import Any, cast

from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

REFS_MIN = 10_000
REFS_PER_BYTE = 4
Keyword = Callable[[Any, Any, Any, Any], Iterator[Any]]


class TooMuch(Exception):
    """A schema that refers to so much that following it has no end."""


def problems(schema: dict[str, Any], data: Any) -> list[Any]:
    """What is wrong with an input. It fetches nothing. Raises TooMuch, and whatever an odd schema causes."""
    from referencing import Registry

    registry: Any = Registry  # a registry of our own: a schema can't make us fetch what it refers to
    token = _steps.set(_Steps(data))
    try:
        return list(_class()(schema, registry=registry()).iter_errors(data))
    finally:
        _steps.reset(token)


@cache
def _class() -> Any:
    """Our validator. Made once: jsonschema writes and compiles code for each class."""
    from jsonschema import validators

    untyped: Any = validators
    followed = {name: partial(_followed, _stock()[name]) for name in ("$ref", "$dynamicRef")}
    return untyped.extend(_stock_class(), {**followed, **_PATTERNS})


def _stock_class() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator


def _stock() -> dict[str, Keyword]:
    found: dict[str, Keyword] = _stock_class().VALIDATORS
    return found


class _Steps:
    """How many references one check follows."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._left, self._told = REFS_MIN, False

    def count(self) -> None:
        """One more. Raises TooMuch."""
        self._left -= 1
        if self._left < 0 and not self._told:
            self._told = True
            self._left = REFS_PER_BYTE * len(json.dumps(self._data))
        if self._left < 0:
            raise TooMuch("it refers to too much")


_steps: ContextVar[_Steps] = ContextVar("steps")


def _followed(stock: Keyword, *given: Any) -> Iterator[Any]:
    """The stock keyword, counted. Raises TooMuch."""
    _steps.get().count()
    yield from stock(*given)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> SchemaValidator | None:
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern))
    except SchemaError:  # one for Python's engine alone, too large, or none at all
        return None


def _is_found(pattern: str, text: str) -> bool:
    """Is there a match in the text? True for a pattern that can't be told in linear time."""
    compiled = _compiled(pattern)
    try:
        if compiled is not None:
            compiled.validate_python(text)
    except ValidationError as error:
        return all(each["type"] != "string_pattern_mismatch" for each in error.errors())
    return True


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError as Problem

    if isinstance(instance, str) and isinstance(pattern, str) and not _is_found(pattern, instance):
        problem: Any = Problem
        yield problem(f"does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Any]:
    named = cast("dict[str, Any]", instance if isinstance(instance, dict) else {})
    for pattern, subschema in patterns.items():
        for key, value in named.items():
            if _is_found(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if "patternProperties" in schema and isinstance(instance, dict):
        patterns, named = schema["patternProperties"], cast("dict[str, Any]", instance)
        instance = {key: value for key, value in named.items() if not any(_is_found(each, key) for each in patterns)}
        schema = {name: value for name, value in schema.items() if name != "patternProperties"}
    yield from _stock()["additionalProperties"](validator, rule, instance, schema)


def _unchecked(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """No graph of ours says it, and the stock one runs patterns."""
    yield from ()


_PATTERNS: dict[str, Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional,
    "unevaluatedProperties": _unchecked,
}
