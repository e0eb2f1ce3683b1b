"""JSON Schema over an input, for schemas that may come from anybody who can write to Redis.

What could hold up a process for ever, or take its memory, is bounded: patterns run on an engine that takes linear time
(Python's `re` may take for ever, and holds the GIL meanwhile), references are followed as often as the input's size
allows, values are compared by sums, each made once, and of what is wrong the first few are looked for, none of which
holds what was wrong below it. What this leaves unchecked is checked with the graph's real types when the run starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import cache, lru_cache, partial
from hashlib import blake2b
from itertools import islice
from typing import Any, cast

from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

REFS_MIN = 10_000
REFS_PER_BYTE = 4
PROBLEMS_MAX = 100
PLAIN = frozenset({"type", "title", "description", "default", "examples"})  # beside `type` none that checks anything
Keyword = Callable[[Any, Any, Any, Any], Iterator[Any]]


class TooMuch(Exception):
    """A schema that refers to so much that following it has no end."""


def problems(schema: dict[str, Any], data: Any) -> list[Any]:
    """What is wrong with an input, the first `PROBLEMS_MAX`. It fetches nothing. Raises TooMuch, and whatever an odd
    schema causes."""
    from referencing import Registry

    registry: Any = Registry  # a registry of our own: a schema can't make us fetch what it refers to
    token = _steps.set(_Steps(data))
    try:
        return list(islice(_class()(schema, registry=registry()).iter_errors(data), PROBLEMS_MAX))
    finally:
        _steps.reset(token)


@cache
def _class() -> Any:
    """Our validator. Made once: jsonschema writes and compiles code for each class."""
    from jsonschema import validators

    untyped: Any = validators
    followed = {name: partial(_followed, _stock()[name]) for name in ("$ref", "$dynamicRef")}
    return untyped.extend(_stock_class(), {**followed, **_OURS})


def _stock_class() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator


def _stock() -> dict[str, Keyword]:
    found: dict[str, Keyword] = _stock_class().VALIDATORS
    return found


class _Steps:
    """How many references one check follows. `sums`: of the lists and objects that it has compared, by their ids."""

    def __init__(self, data: Any) -> None:
        self.sums: dict[int, bytes] = {}
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


def _problem(said: str) -> Any:
    """A problem of our own making. The stock ones show the value, as text: of a large one again at each level."""
    from jsonschema.exceptions import ValidationError as Problem

    problem: Any = Problem
    return problem(said)


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and isinstance(pattern, str) and not _is_found(pattern, instance):
        yield _problem(f"does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Any]:
    named = cast("dict[str, Any]", instance if isinstance(instance, dict) else {})
    for pattern, subschema in patterns.items():
        for key, value in named.items():
            if _is_found(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    named, patterns = cast("dict[str, Any]", instance), schema.get("patternProperties", {})
    known = schema.get("properties", {})
    more = {
        key: value for key, value in named.items() if key not in known and not any(_is_found(p, key) for p in patterns)
    }
    if rule is False and more:
        yield _problem("has a key too many")
    elif isinstance(rule, dict):
        yield from _each(validator, more.items(), rule)


def _unchecked(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """No graph of ours says it, and the stock one runs patterns."""
    yield from ()


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind)


def _sum(value: Any) -> bytes:
    """What is the same for values that JSON Schema calls equal, and for no others: 1 and 1.0 are, true and 1 are not.
    Of a list or an object a hash, which is made once in a check; both are alive as long as their ids stand for them."""
    if _is(value, dict) or _is(value, list):
        known = _steps.get().sums
        if id(value) not in known:
            known[id(value)] = _hashed(value)
        return known[id(value)]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%x" % value  # a number may have more digits than Python writes
    return json.dumps(value).encode()


def _hashed(value: dict[str, Any] | list[Any]) -> bytes:
    items = sorted(value.items()) if isinstance(value, dict) else enumerate(value)
    found = blake2b(b"{" if isinstance(value, dict) else b"[", digest_size=16)
    for key, item in items:
        for part in (b"" if isinstance(key, int) else json.dumps(key).encode(), _sum(item)):
            found.update(b"%d:%s" % (len(part), part))
    return b"#" + found.digest()


def _unique(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """The stock one compares each with each."""
    if rule and _is(instance, list):
        items: list[Any] = instance
        if len({_sum(item) for item in items}) < len(items):
            yield _problem("has the same twice")


def _enum(validator: Any, values: Iterable[Any], instance: Any, schema: Any) -> Iterator[Any]:
    found = _sum(instance)
    if all(_sum(value) != found for value in values):
        yield _problem("is none of these")


def _const(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    yield from _enum(validator, (value,), instance, schema)


def _type(validator: Any, types: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not _is_of(validator, instance, types):
        yield _problem("is of another type")


def _is_of(validator: Any, instance: Any, types: Any) -> bool:
    named: list[Any] = types if _is(types, list) else [types]
    return any(validator.is_type(instance, each) for each in named)


def _is_plainly(validator: Any, instance: Any, schema: Any) -> bool:
    """Does it fit, as far as types alone tell?"""
    if not isinstance(schema, dict):
        return schema is True
    said = cast("dict[str, Any]", schema)
    if "type" in said and said.keys() <= PLAIN:
        return _is_of(validator, instance, said["type"])
    return said.keys() == {"anyOf"} and any(_is_plainly(validator, instance, each) for each in said["anyOf"])


def _fits(validator: Any, instance: Any, schema: Any) -> bool:
    """Does it fit? Nothing is kept of what is wrong."""
    return _is_plainly(validator, instance, schema) or next(validator.descend(instance, schema), None) is None


def _any_of(validator: Any, forms: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """The stock one keeps all that is wrong in each form, of each item in it."""
    if not any(_fits(validator, instance, form) for form in forms):
        yield _problem("none")


def _one_of(validator: Any, forms: Any, instance: Any, schema: Any) -> Iterator[Any]:
    fit = list(islice((form for form in forms if _fits(validator, instance, form)), 2))
    if len(fit) != 1:
        yield _problem("several" if fit else "none")


def _items(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if "prefixItems" in schema or not _is(instance, list):
        yield from _stock()["items"](validator, rule, instance, schema)
        return
    items: list[Any] = instance
    yield from _each(validator, enumerate(items), rule)


def _each(validator: Any, items: Iterable[tuple[Any, Any]], schema: Any) -> Iterator[Any]:
    """What is wrong with items under their keys. What is plain is told for all values of a kind at once; a float may be
    a whole number, or none."""
    plainly: dict[Any, bool] = {}
    for key, item in items:
        kind = type(item)  # pyright: ignore[reportUnknownVariableType]
        if kind is float or kind not in plainly:
            plainly[kind] = _is_plainly(validator, item, schema)
        if not plainly[kind]:
            yield from validator.descend(item, schema, path=key)


_OURS: dict[str, Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional,
    "unevaluatedProperties": _unchecked,
    "unevaluatedItems": _unchecked,
    "uniqueItems": _unique,
    "enum": _enum,
    "const": _const,
    "type": _type,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "items": _items,
}
