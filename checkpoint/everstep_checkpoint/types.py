"""The closed table: every type that a value may have, and how each looks in bytes.

    msgpack's own      None bool int float str bytes list dict
    leaves (here)      big int, bytearray, datetime, date, time, timedelta, UUID, Decimal, Untracked
    containers         tuple, set, frozenset: built by the codec
    a graph's own      pydantic model, dataclass, NamedTuple, Enum: a `Registry` of `Shape`s

A type travels as a msgpack ext code beside the data, never as a key inside it. The data names a graph's own
type, but only a class that the code has registered is ever built: nothing is imported because data says so.
The numbers below are written in every log: add to them, never change one.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from functools import cache, partial
from types import MappingProxyType
from typing import Any
from uuid import UUID
from zoneinfo import TZPATH, ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import BaseModel, RootModel
from pydantic_core import TzInfo

from .errors import GraphError, InputError, UnknownType

INT, TUPLE, SET, FROZENSET, BYTEARRAY, DATETIME, DATE, TIME, TIMEDELTA, UUID_, DECIMAL, OBJECT, ENUM = range(1, 14)
UNTRACKED = 14
UNTRACKED_MAX = 16  # bytes of the name of an untracked value


class Refused(Exception):
    """A value can't be encoded. The codec adds the path to it."""

    def __init__(self, what: str, fix: str, value: object = None, error: type[InputError] = UnknownType) -> None:
        super().__init__(what)
        self.what, self.fix, self.value, self.error = what, fix, value, error


class Unbuildable(Exception):
    """Sound data that this process can't build: an unknown type or time zone. The codec adds where."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


# -- leaves


class Carrier:
    """Stands for a bytearray while it is packed: msgpack would write it as bytes, without asking."""

    __slots__ = ("held",)

    def __init__(self, held: bytearray) -> None:
        self.held = bytes(held)


@dataclass(frozen=True)
class Untracked:
    """Stands in a log for a value that is never stored: `name` is what the process that has the value knows it by."""

    name: bytes

    def __str__(self) -> str:
        return "untracked"


_MOMENT = struct.Struct(">HBBBBBIB")
_DAY = struct.Struct(">HBB")
_CLOCK = struct.Struct(">BBBIB")
_SPAN = struct.Struct(">iii")
_OFFSET = struct.Struct(">q")
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,40}(/[A-Za-z0-9_+-]{1,40}){0,3}")
_MICROSECOND = timedelta(microseconds=1)


def _zone_bytes(t: datetime | time) -> bytes:
    """`z`, key: a ZoneInfo. `o`, microseconds: a fixed offset; `n`: one with a name. Empty: none."""
    zone = t.tzinfo
    if zone is None:
        return b""
    key = zone.key if type(zone) is ZoneInfo else None
    if key and _ZONE.fullmatch(key):
        return b"z" + key.encode()
    if type(zone) is timezone or type(zone) is TzInfo:
        offset = zone.utcoffset(None) or timedelta(0)
        stored = _OFFSET.pack(offset // _MICROSECOND)
        name = zone.tzname(None)
        if type(zone) is TzInfo or name == timezone(offset).tzname(None):
            return b"o" + stored
        return b"n" + stored + str(name).encode("utf-8", "surrogatepass")
    what = f"a time zone of type {_full_name(type(zone))} can't be stored"
    raise Refused(what, "Use datetime.timezone or zoneinfo.ZoneInfo", t)


def _zone(data: bytes) -> tzinfo | None:
    kind, rest = data[:1], data[1:]
    if kind == b"z":
        return _named_zone(rest.decode("ascii"))
    if kind == b"o":
        return timezone(timedelta(microseconds=_OFFSET.unpack(rest)[0]))
    if kind == b"n":
        offset = timedelta(microseconds=_OFFSET.unpack(rest[:8])[0])
        return timezone(offset, rest[8:].decode("utf-8", "surrogatepass"))
    if kind:
        raise ValueError("unknown kind of time zone")
    return None


def _named_zone(key: str) -> ZoneInfo:
    if not _ZONE.fullmatch(key):
        raise ValueError("not the name of a time zone")
    unknown = Unbuildable(f"time zone {key!r} is not known here", "Install the package tzdata")
    # zoneinfo imports `tzdata.zoneinfo.<key>` for one that has no file: only those that tzdata lists may come so far
    if not any(os.path.isfile(os.path.join(each, key)) for each in TZPATH) and key not in _zones():
        raise unknown
    try:
        return ZoneInfo(key)
    except (ZoneInfoNotFoundError, OSError) as error:
        raise unknown from error


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _datetime_bytes(t: datetime) -> bytes:
    head = _MOMENT.pack(t.year, t.month, t.day, t.hour, t.minute, t.second, t.microsecond, t.fold)
    return head + _zone_bytes(t)


def _datetime(data: bytes) -> datetime:
    year, month, day, hour, minute, second, micro, fold = _MOMENT.unpack(data[: _MOMENT.size])
    zone = _zone(data[_MOMENT.size :])
    return datetime(year, month, day, hour, minute, second, micro, tzinfo=zone, fold=fold)


def _time_bytes(t: time) -> bytes:
    return _CLOCK.pack(t.hour, t.minute, t.second, t.microsecond, t.fold) + _zone_bytes(t)


def _time(data: bytes) -> time:
    hour, minute, second, micro, fold = _CLOCK.unpack(data[: _CLOCK.size])
    return time(hour, minute, second, micro, tzinfo=_zone(data[_CLOCK.size :]), fold=fold)


def _int_bytes(n: int) -> bytes:
    return n.to_bytes(n.bit_length() // 8 + 1, "big", signed=True)


def _decimal_bytes(d: Decimal) -> bytes:
    return str(d).replace("e", "E").encode()  # the thread's decimal context may ask for a small e


def _decimal(data: bytes) -> Decimal:
    found = Decimal(data.decode("ascii"))
    if _decimal_bytes(found) != data:
        raise ValueError("not a canonical decimal")
    return found


def _untracked(data: bytes) -> Untracked:
    if len(data) > UNTRACKED_MAX:
        raise ValueError("not the name of an untracked value")
    return Untracked(data)


# type -> (ext code, its bytes). int is here for what does not fit in 64 bits.
LEAVES: Mapping[type, tuple[int, Callable[[Any], bytes]]] = MappingProxyType(
    {
        int: (INT, _int_bytes),
        Carrier: (BYTEARRAY, lambda c: c.held),
        datetime: (DATETIME, _datetime_bytes),
        date: (DATE, lambda d: _DAY.pack(d.year, d.month, d.day)),
        time: (TIME, _time_bytes),
        timedelta: (TIMEDELTA, lambda t: _SPAN.pack(t.days, t.seconds, t.microseconds)),
        UUID: (UUID_, lambda u: u.bytes),
        Decimal: (DECIMAL, _decimal_bytes),
        Untracked: (UNTRACKED, lambda u: u.name),
    }
)

# ext code -> the value. Raises ValueError, struct.error or ArithmeticError on what this table did not write.
READERS: Mapping[int, Callable[[bytes], object]] = MappingProxyType(
    {
        INT: lambda data: int.from_bytes(data, "big", signed=True),
        BYTEARRAY: bytearray,
        DATETIME: _datetime,
        DATE: lambda data: date(*_DAY.unpack(data)),
        TIME: _time,
        TIMEDELTA: lambda data: timedelta(*_SPAN.unpack(data)),
        UUID_: lambda data: UUID(bytes=data),
        DECIMAL: _decimal,
        UNTRACKED: _untracked,
    }
)


# -- a graph's own types


@dataclass(frozen=True)
class Shape:
    """How a registered class becomes plain fields and is built from them again."""

    name: str
    cls: type
    code: int
    fields: Callable[[Any], Any]
    build: Callable[[Any], object]


def shape_of_class(cls: Any, name: str) -> Shape:
    """The shape of a pydantic model, dataclass, NamedTuple or Enum. Raises GraphError for any other class."""
    if issubclass(cls, Enum):
        return _enum_shape(cls, name)
    if issubclass(cls, BaseModel):
        return Shape(name, cls, OBJECT, _model_fields, partial(_build_model, cls))
    if dataclasses.is_dataclass(cls):
        return _dataclass_shape(cls, name)
    if _is_named_tuple(cls):
        return Shape(name, cls, OBJECT, lambda value: value._asdict(), lambda fields: cls(**fields))
    fix = "Register a pydantic model, dataclass, NamedTuple or Enum; other values are stored as plain data"
    raise GraphError(f"{_full_name(cls)} can't be registered", fix=fix)


def _is_named_tuple(cls: Any) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields")  # pyright: ignore[reportUnknownArgumentType]


def _model_fields(model: BaseModel) -> dict[str, Any]:
    """The declared fields and the extras; nested models stay models. Private attributes are not stored."""
    held = model.__dict__
    return {name: held[name] for name in type(model).model_fields if name in held} | (model.model_extra or {})


def _build_model(cls: Any, fields: dict[str, Any]) -> object:
    if issubclass(cls, RootModel):
        return cls.model_validate(fields["root"])  # pyright: ignore[reportUnknownVariableType]
    return cls.model_validate(fields, by_name=True, by_alias=False)


def _dataclass_shape(cls: Any, name: str) -> Shape:
    declared = dataclasses.fields(cls)
    later = [f.name for f in declared if not f.init]
    fault = _init_fault(cls, [f.name for f in declared if f.init])

    def fields(value: Any) -> dict[str, Any]:
        if fault:
            raise Refused(f"a {_full_name(cls)} could not be rebuilt: {fault}", "Store its parts", value)
        return {f.name: getattr(value, f.name) for f in declared}

    def build(found: dict[str, Any]) -> object:
        value = cls(**{key: item for key, item in found.items() if key not in later})
        for key in later:
            if key in found:
                object.__setattr__(value, key, found[key])
        return value

    return Shape(name, cls, OBJECT, fields, build)


def _init_fault(cls: Any, init_fields: list[str]) -> str:
    """Why `cls(**fields)` could not work, or nothing."""
    parameters = inspect.signature(cls).parameters.values()
    taken = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    needed = {p.name for p in parameters if p.name in taken and p.default is p.empty}
    if missing := needed - set(init_fields):
        return f"its __init__ needs {sorted(missing)}, which it does not keep as fields"
    if any(p.kind is p.VAR_KEYWORD for p in parameters) or taken.issuperset(init_fields):
        return ""
    return f"its __init__ does not take {sorted(set(init_fields) - taken)}"


def _enum_shape(cls: type[Enum], name: str) -> Shape:
    """A member is its name; a Flag is the list of its members' names."""
    if issubclass(cls, Flag):
        return Shape(name, cls, ENUM, _flag_names, lambda names: _flag(cls, names))
    return Shape(name, cls, ENUM, lambda member: member.name, lambda text: cls[text])


def _flag_names(flag: Flag) -> list[str]:
    names = [str(member.name) for member in flag]
    if _flag(type(flag), names) != flag:
        what = f"a {_full_name(type(flag))} with bits that have no name can't be stored"
        raise Refused(what, "Give every bit a member", flag)
    return names


def _flag(cls: type[Flag], names: list[str]) -> Flag:
    found = cls(0)
    for name in names:
        found |= cls[name]
    return found


# -- langchain-core's messages: constants here, so that no name from data is ever imported

_LANGCHAIN = "langchain_core."
_MESSAGES_MODULE = "langchain_core.messages"
_MESSAGES = frozenset(
    f"{kind}Message{chunk}"
    for kind in ("Human", "AI", "System", "Tool", "Chat", "Function")
    for chunk in ("", "Chunk")
) | {"RemoveMessage"}  # fmt: skip


@cache
def _message_shapes() -> dict[str, Shape]:
    """Name -> shape. Raises ImportError where langchain-core is not installed."""
    module = importlib.import_module(_MESSAGES_MODULE)
    classes = {f"{_LANGCHAIN}{name}": getattr(module, name) for name in sorted(_MESSAGES)}
    return {name: shape_of_class(cls, name) for name, cls in classes.items()}


def _message_shape_of(cls: type) -> Shape | None:
    """Who holds a message has imported langchain-core; for everybody else it costs one look-up."""
    found = _message_shapes().get(_LANGCHAIN + cls.__name__) if _MESSAGES_MODULE in sys.modules else None
    return found if found is not None and found.cls is cls else None


def _message_shape_named(name: str) -> Shape | None:
    if not name.startswith(_LANGCHAIN) or name[len(_LANGCHAIN) :] not in _MESSAGES:
        return None
    try:
        return _message_shapes().get(name)
    except ImportError as error:
        raise Unbuildable(f"a stored value is a {name}", "Install langchain-core") from error


class Registry:
    """The types of a graph's own: class and name, one to one, and the older names that are still read."""

    def __init__(self) -> None:
        self._by_class: dict[type, Shape] = {}
        self._by_name: dict[str, Shape] = {}
        # Whether a class counts two equal objects as two, so that a set may hold the same encoding twice.
        self.compares_by_identity = False

    def add(self, cls: type, name: str | None = None, aliases: Sequence[str] = ()) -> None:
        """Register a pydantic model, dataclass, Enum or NamedTuple under `name` (default: the class's own).

        `aliases` are names under which older logs have it. Adding a class again is harmless. Raises
        GraphError if a name is taken by another class, the class has another name, or is none of these.
        """
        known = self.shape_of(cls)
        if known is None:
            known = shape_of_class(cls, name or cls.__name__)
        elif name is not None and name != known.name:
            raise GraphError(f"{_full_name(cls)} has the name {known.name!r} already", fix="Pass an alias")
        for each in (known.name, *aliases):
            self._check_free(each, cls)
        self._by_class[cls] = known
        self.compares_by_identity |= _by_identity(known)
        self._by_name.update(dict.fromkeys((known.name, *aliases), known))

    def _check_free(self, name: str, cls: type) -> None:
        holder = self._by_name.get(name)
        if holder is not None and holder.cls is not cls:
            taken = f"by {_full_name(holder.cls)}"
        elif name.startswith(_LANGCHAIN) and _message_shape_of(cls) is None:
            taken = "by langchain-core's messages"
        else:
            return
        raise GraphError(
            f"the name {name!r} for {_full_name(cls)} is taken {taken}",
            fix="Rename one of the classes, or register one with name=...",
        )

    def names(self) -> dict[str, type]:
        """Every name that can be read, aliases too, with its class."""
        return {name: shape.cls for name, shape in self._by_name.items()}

    def shape_of(self, cls: type) -> Shape | None:
        """The shape of exactly this class, never of a parent."""
        return self._by_class.get(cls) or _message_shape_of(cls)

    def shape_named(self, name: str) -> Shape | None:
        """The shape under a name found in data. Raises Unbuildable if its library is not installed."""
        return self._by_name.get(name) or _message_shape_named(name)


def _by_identity(shape: Shape) -> bool:
    cls: Any = shape.cls
    return shape.code == OBJECT and cls.__eq__ is object.__eq__


# -- words for errors


def _full_name(cls: Any) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def describe(value: object) -> Refused:
    """What to say about a value whose type is not in the table, and what to do about it."""
    cls: type[object] = type(value)
    return Refused(f"a {_full_name(cls)} can't be stored: its type is not in the table of types", _remedy(cls), value)


def _remedy(cls: Any) -> str:
    name = _full_name(cls).rpartition(".")[2]
    if issubclass(cls, (BaseModel, Enum)) or dataclasses.is_dataclass(cls) or _is_named_tuple(cls):
        return f"Name {name} in the state's annotations, or let the graph know it: add_type({name})"
    for base in (dict, list, str, bytes, int, float, tuple, set, frozenset, datetime, date, Decimal, UUID):
        if issubclass(cls, base):
            return f"A subclass is not stored as its parent: convert it with {base.__name__}(...)"
    if hasattr(cls, "tobytes"):
        return "Convert it with bytes(...) or .tolist()"
    return "Store plain data, or a pydantic model or dataclass that holds it"
