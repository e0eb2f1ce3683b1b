"""What a schema class says: its keys, their types and reducers, and how its values are built and checked.

A schema is a TypedDict, a dataclass or a pydantic v2 model. Types are LangGraph's to the letter where a graph
runs: a TypedDict or a dataclass coerces nothing, a pydantic model checks whenever it is built. Producers
without the graph's code send JSON; `from_json` gives it the types that the annotations name.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Literal, NotRequired, Required, TypeGuard, cast, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic import Field as ModelField
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo

from everstep_checkpoint.errors import GraphError, InvalidInput

from .managed import NO_STEPS, Steps, managed_in
from .theirs import refuse_theirs

# What pydantic raises for a type it has no schema for; such a field is taken as it comes.
NO_SCHEMA = (
    PydanticSchemaGenerationError,
    PydanticInvalidForJsonSchema,
    PydanticUserError,
    NameError,
    TypeError,
)


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """A sentence for `fix=`: the closest known name, and (at most 20 of) those that are known."""
    names = [str(each) for each in known]
    close = get_close_matches(str(name), names, 1)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}Known: {', '.join(names[:20]) or 'none'}."


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of a schema: its annotation as written (for the reducer) and the type of its value."""

    name: str
    annotation: Any
    typ: Any
    required: bool

    @cached_property
    def adapter(self) -> TypeAdapter[Any] | None:
        """pydantic's reader of the type; None where pydantic has none (then any value passes)."""
        if mentions(self.typ, _from_langchain) or _takes_messages(self.annotation):
            return None
        try:
            return TypeAdapter(self.typ)
        except NO_SCHEMA:
            return None


class Schema:
    """A schema class, read once. `kind` is 'typeddict', 'dataclass' or 'pydantic'. `managed`: keys not stored."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.kind = kind_of(cls)
        found = {each.name: each for each in _fields(cls, self.kind)}
        managed = {name: managed_in(each.annotation) for name, each in found.items()}
        self.managed = {name: manager for name, manager in managed.items() if manager is not None}
        self.fields = {name: each for name, each in found.items() if name not in self.managed}

    def __repr__(self) -> str:
        return f"Schema({self.cls.__name__})"

    def build(self, values: Mapping[str, Any], what: str = "The state") -> Any:
        """The state as this schema: a dict of what is there, or an instance (with all its required keys)."""
        if self.kind == "typeddict":
            return dict(values)
        if missing := self.missing(values):
            raise InvalidInput(
                f"{self.cls.__name__} needs {', '.join(map(repr, missing))}, which has no value yet",
                fix="Put it into the input, or give the field a default.",
            )
        try:
            return self._instance(values)
        except ValidationError as error:
            raise InvalidInput(f"{what} does not fit {self.cls.__name__}: {_first(error)}") from error

    def managed_at(self, steps: Steps) -> dict[str, Any]:
        """The managed values at a step."""
        return {name: manager.of(steps) for name, manager in self.managed.items()}

    def _instance(self, values: Mapping[str, Any]) -> Any:
        if issubclass(self.cls, BaseModel):
            return self.cls.model_validate(dict(values), by_alias=True, by_name=True)
        settable = {each.name for each in dataclasses.fields(self.cls) if each.init}
        return self.cls(**{name: value for name, value in values.items() if name in settable})

    def missing(self, names: Iterable[str]) -> list[str]:
        """Required fields of a dataclass or model that `names` lacks. A TypedDict requires nothing."""
        have = set(names)
        return [name for name, each in self.fields.items() if each.required and name not in have]

    def check(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The values with their real types: those of a model are validated, others stay as they are."""
        if not issubclass(self.cls, BaseModel):
            return dict(data)
        if not self.missing(data):
            self.build({**data, **self.managed_at(NO_STEPS)}, "The input")
        return {name: self._read(name, value, TypeAdapter[Any].validate_python) for name, value in data.items()}

    def from_json(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A producer's JSON form with the annotated types: datetimes from text, models from objects."""
        return {name: self._read(name, value, _validate_json) for name, value in data.items()}

    def _read(self, name: str, value: Any, validate: Callable[[TypeAdapter[Any], Any], Any]) -> Any:
        adapter = self.fields[name].adapter
        if adapter is None:
            return value
        try:
            return validate(adapter, value)
        except ValidationError as error:
            raise InvalidInput(
                f"The value of {name!r} does not fit its type: {_first(error)}",
                fix=f"{self.cls.__name__} declares it as {self.fields[name].typ}.",
            ) from error

    def json_schema(self, required: Iterable[str] = (), without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """JSON schema: known keys, `required` ones, none else; `{}` where JSON can't say the type."""
        fields = {name: each for name, each in self.fields.items() if name not in without}
        sayable = [(name, each.adapter) for name, each in fields.items() if _sayable(each.adapter)]
        found, shared = _schemas(cast("list[tuple[str, TypeAdapter[Any]]]", sayable))
        whole: dict[str, Any] = {"type": "object", "title": self.cls.__name__}
        whole["properties"] = {name: found.get(name, {}) for name in fields}
        whole["additionalProperties"] = False
        if needed := list(required):
            whole["required"] = needed
        return whole | ({"$defs": shared} if shared else {})


def updates_of(instance: object) -> dict[str, Any] | None:
    """A dataclass's or model's fields as an update; None for any other value.

    LangGraph's rule (`get_update_as_tuples`): all fields, except those of a model that were not set and whose
    default is None. Raises InvalidUpdateError for an instance of LangGraph's own classes.
    """
    refuse_theirs(instance, "what was given")
    if isinstance(instance, BaseModel):
        fields = type(instance).model_fields
        given = {name: getattr(instance, name) for name in fields}
        return {
            name: value
            for name, value in given.items()
            if value is not None or fields[name].default is not None or name in instance.model_fields_set
        }
    if dataclasses.is_dataclass(instance) and not isinstance(instance, type):
        names = [each.name for each in dataclasses.fields(instance)]
        return {name: getattr(instance, name) for name in names if hasattr(instance, name)}
    return None


def as_dict(value: object) -> dict[Any, Any] | None:
    """The value, if it is a dict."""
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]


def kind_of(cls: object) -> Literal["typeddict", "dataclass", "pydantic"]:
    """Which of the three kinds of schema a class is. Anything else is a GraphError."""
    if not is_schema(cls):
        raise GraphError(
            f"{getattr(cls, '__name__', cls)!r} can't be a schema",
            fix="Use a TypedDict, a dataclass or a pydantic model: each of its keys is a channel.",
        )
    if issubclass(cls, BaseModel):
        return "pydantic"
    return "dataclass" if dataclasses.is_dataclass(cls) else "typeddict"


def is_schema(cls: Any) -> TypeGuard[type[Any]]:
    """Whether a class can be a schema."""
    return is_a(cls, BaseModel) or dataclasses.is_dataclass(cls) or is_typeddict(cls)


def is_typeddict(cls: Any) -> bool:
    """Also for typing_extensions' TypedDict, which `typing.is_typeddict` does not know."""
    return is_a(cls, dict) and hasattr(cls, "__required_keys__")


def is_a(cls: Any, *bases: type[Any]) -> bool:
    """Whether it is a class, and a subclass of one of these."""
    return isinstance(cls, type) and get_origin(cls) is None and issubclass(cls, bases)


def hints_of(target: Any) -> dict[str, Any]:
    """Type hints with their metadata. A name that can't be resolved is a GraphError."""
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise GraphError(
            f"An annotation of {getattr(target, '__name__', target)!r} can't be read: {error}",
            fix="Define the types it names at the top level of their module.",
        ) from error


def _fields(cls: type[Any], kind: str) -> Iterator[Field]:
    hints = hints_of(cls)
    if issubclass(cls, BaseModel):
        for name, info in cls.model_fields.items():
            yield Field(name, hints.get(name, info.annotation), _field_type(info), info.is_required())
    elif kind == "dataclass":
        for each in dataclasses.fields(cls):
            yield Field(each.name, hints[each.name], bare(hints[each.name]), each.init and _lacks_default(each))
    else:
        for name, hint in hints.items():
            yield Field(name, hint, bare(hint), False)


def _lacks_default(each: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass's field must be given. pydantic's `Field(gt=0)` stands where a default would, and is none."""
    if isinstance(each.default, FieldInfo):
        return each.default.is_required()
    return each.default is each.default_factory is dataclasses.MISSING


def _field_type(info: FieldInfo) -> Any:
    """A model field's type with its constraints and texts, without its default and alias."""
    said = ModelField(title=info.title, description=info.description, discriminator=info.discriminator)
    return Annotated[(info.annotation, *info.metadata, said)]


def bare(typ: Any) -> Any:
    """A type without Annotated, Required, NotRequired and ReadOnly around it."""
    while (origin := get_origin(typ)) is not None:
        if origin is not Annotated and origin not in (Required, NotRequired) and "ReadOnly" not in str(origin):
            break
        typ = get_args(typ)[0]
    return typ


def classes_in(annotations: Iterable[Any]) -> list[type[Any]]:
    """Every model, dataclass, Enum and NamedTuple that the annotations can reach, in order of discovery."""
    found: dict[type[Any], None] = {}
    seen: dict[int, Any] = {}  # by identity, and held, so that no id is used twice
    waiting = list(annotations)
    while waiting:
        typ = waiting.pop(0)
        if id(typ) in seen:
            continue
        seen[id(typ)] = typ
        if _is_value_class(typ):
            found[typ] = None
        waiting.extend(_parts(typ))
    return list(found)


def mentions(typ: Any, wanted: Callable[[Any], bool]) -> bool:
    """Whether a type, or one of its arguments, is a class that is wanted. Fields are not looked into."""
    if isinstance(typ, type) and get_origin(typ) is None:
        return wanted(typ)
    return any(mentions(arg, wanted) for arg in get_args(typ))


def _parts(typ: Any) -> list[Any]:
    """The types directly inside a type: its fields, or its arguments."""
    if is_a(typ, BaseModel) and not _from_langchain(typ):
        return [info.annotation for info in typ.model_fields.values()]
    if _is_value_class(typ) or is_typeddict(typ):
        try:
            return list(typing.get_type_hints(typ, include_extras=True).values())
        except (NameError, TypeError, AttributeError):
            return []
    args = get_args(typ)
    if get_origin(typ) is Literal:
        return [type(arg) for arg in args]
    return [get_origin(typ), *args] if args else []


def _is_value_class(typ: Any) -> bool:
    """Whether values of the class need its name in the log: the kinds that a codec's registry takes."""
    if not isinstance(typ, type) or _from_langchain(typ) or typ in (BaseModel, Enum):
        return False
    named_tuple = is_a(typ, tuple) and hasattr(typ, "_fields")
    return named_tuple or is_a(typ, BaseModel, Enum) or dataclasses.is_dataclass(typ)


def _from_langchain(typ: Any) -> bool:
    return str(typ.__module__).partition(".")[0] == "langchain_core"


def _takes_messages(annotation: Any) -> bool:
    """Whether the key's reducer is add_messages (ours or LangGraph's), which reads many forms by itself."""
    last = get_args(annotation)[-1] if get_origin(annotation) is Annotated else None
    return getattr(last, "__name__", "") == "add_messages"


def _validate_json(adapter: TypeAdapter[Any], value: Any) -> Any:
    return adapter.validate_json(json.dumps(value))


def _sayable(adapter: TypeAdapter[Any] | None) -> bool:
    if adapter is None:
        return False
    try:
        adapter.json_schema()
    except NO_SCHEMA:
        return False
    return True


def _schemas(adapters: list[tuple[str, TypeAdapter[Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """One schema per field, with definitions that are shared and named without clashes."""
    found, shared = TypeAdapter.json_schemas([(name, "validation", adapter) for name, adapter in adapters])
    return {name: schema for (name, _), schema in found.items()}, shared.get("$defs", {})


def _first(error: ValidationError) -> str:
    """The first complaint with its place, without the value (it may be a secret)."""
    told = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, told["loc"]))
    return f"{where}: {told['msg']}" if where else told["msg"]
