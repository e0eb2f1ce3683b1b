"""The codec: a value to its one canonical encoding, and back.

    Codec    value <-> msgpack with ext codes     typed: builds the classes that a graph registered
    PLAIN    value <-> the same bytes             plain: needs no classes, registered objects become `Tagged`

Promises: what encodes also decodes, to an equal value of the same types. The same value has the same bytes in
every process: sets are sorted by encoding, dicts keep their order. Data can't make a reader import, call or
allocate what the table and the code do not. Pure. The table is in `types`; what changed is for `delta`.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]

from .beside import Beside
from .errors import CorruptEntry, EverstepError, TooLarge, UnknownType, caused
from .tagged import Tagged
from .types import (
    ENUM,
    FROZENSET,
    LEAVES,
    OBJECT,
    READERS,
    SET,
    TUPLE,
    Carrier,
    Refused,
    Registry,
    Shape,
    Unbuildable,
    describe,
)

__all__ = ["DEPTH_MAX", "PLAIN", "PLAIN_MAX", "VALUE_MAX", "Codec", "PlainCodec", "Registry", "Tagged"]

VALUE_MAX = 8 * 2**20
PLAIN_MAX = 64 * 2**20
# Levels of lists, dicts and typed values inside each other. msgpack bears 1,024 of the first; a level of the
# second costs far more stack, and that of a thread may be small.
DEPTH_MAX = 256
_TYPED_DEPTH_MAX = DEPTH_MAX // 2  # each typed level counts two or more
_PRECHECK_FROM = 4096
_walked: Beside[bool] = Beside()  # encodings whose headers were found to be true
_BUFFER = 2048

_wire: Any = msgpack  # has no type hints
_Packer = _wire.Packer
_Unpacker = _wire.Unpacker
_unpackb = _wire.unpackb
_ExtType = _wire.ExtType
_Timestamp = _wire.Timestamp
Hook = Callable[[int, bytes], object]

# What a hostile entry can make msgpack and the table's readers raise. OutOfData is no ValueError.
MALFORMED: tuple[type[Exception], ...] = (
    ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError, struct.error,
    _wire.UnpackException,
)  # fmt: skip
# What the constructor of a registered class may raise when the stored fields don't suit it.
_MISFIT = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
# msgpack writes these without asking: as plain bytes, or as any ext code that their owner likes.
_UNASKED = frozenset({bytearray, memoryview, _ExtType, _Timestamp})


def pack(value: object, default: Callable[[Any], object] | None = None) -> bytes:
    """Strict msgpack of a value whose types are known. A packer costs nothing to make, so none is shared."""
    try:
        packed: bytes = _Packer(default=default, strict_types=True, buf_size=_BUFFER).pack(value)
    except UnicodeEncodeError:  # lone surrogates: the slower way
        slower = _Packer(default=default, strict_types=True, buf_size=_BUFFER, unicode_errors="surrogatepass")
        packed = slower.pack(value)
    return packed


def unpack(data: bytes, ext_hook: Hook) -> Any:
    """Strict msgpack back. Raises one of MALFORMED, before it allocates what a lying header asks for."""
    if len(data) > _PRECHECK_FROM and not _walked.get(data):
        walker(data).skip()
        if type(data) is bytes:  # nothing else stays what it is
            _walked.put(data, True)
    value = _unpackb(data, ext_hook=ext_hook, strict_map_key=False, unicode_errors="surrogatepass")
    _refuse_timestamps(value, data)
    return value


def _unpack_list(data: bytes, ext_hook: Hook) -> list[Any]:
    """`unpack` for the list inside an ext: on the heap, since unpackb puts 40 KB a level on the C stack."""
    if len(data) > _PRECHECK_FROM:
        walker(data).skip()
    unpacker = walker(data, ext_hook)
    items: list[Any] = unpacker.unpack()
    if type(items) is not list or unpacker.tell() != len(data):
        raise ValueError("an ext that does not hold one list")
    _refuse_timestamps(items, data)
    return items


def walker(data: bytes | memoryview, ext_hook: Hook = _ExtType) -> Any:
    """An unpacker over `data`, to walk with skip() and tell()."""
    unpacker = _Unpacker(
        ext_hook=ext_hook,
        strict_map_key=False,
        unicode_errors="surrogatepass",
        max_buffer_size=len(data) or 1,
    )
    unpacker.feed(data)
    return unpacker


def array_header(count: int) -> bytes:
    """The msgpack header of an array of `count` items."""
    header: bytes = _Packer(buf_size=16).pack_array_header(count)
    return header


def _refuse_timestamps(value: object, data: bytes) -> None:
    """msgpack builds its own timestamps (ext code -1, a rare byte) without asking the table."""
    if type(value) not in _ATOMS and b"\xff" in data and _Timestamp in _survey(value, len(data))[0]:
        raise ValueError("a msgpack timestamp, which is not in the table of types")


def _survey(value: object, nodes_max: int) -> tuple[set[type], int]:
    """The types in nested lists and dicts, and how deep they go. Raises Refused: too deep, or too many.

    By level, so that `map` does most of the work and a list that contains itself ends at a bound.
    """
    found: set[type] = set()
    level: list[Any] = [value]
    nodes = 0
    for height in range(DEPTH_MAX + 1):
        kinds = set(map(type, level))
        found |= kinds
        if list not in kinds and dict not in kinds:
            return found, height
        deeper: list[Any] = []
        for item in level:
            if type(item) is list:
                deeper += item
            elif type(item) is dict:
                deeper += item
                deeper += item.values()
            if nodes + len(deeper) > nodes_max:  # each takes a byte at least
                raise _too_large(nodes_max)
        nodes += len(deeper)
        level = deeper
    raise _too_deep()


def _too_large(value_max: int) -> Refused:
    fix = "Keep large things elsewhere and store where they are, or raise the cap"
    return Refused(f"it takes more than {value_max:,} bytes", fix, error=TooLarge)


def _too_deep() -> Refused:
    what = f"it is nested deeper than {DEPTH_MAX} levels, or contains itself"
    return Refused(what, "Store it as a flat list of nodes", error=TooLarge)


def _kind(value: object) -> type:
    return type(value)


def _carried(value: Any) -> Any:
    """A copy in which carriers stand for bytearrays. Refuses what else msgpack would let by."""
    kind = _kind(value)
    if kind is list:
        return [_carried(item) for item in value]
    if kind is dict:
        return {_carried(key): _carried(item) for key, item in value.items()}
    if kind is bytearray:
        return Carrier(value)
    if kind in _UNASKED:
        raise describe(value)
    return value


class Codec:
    """The typed codec of one graph. Holds no state between calls; may be shared by threads."""

    def __init__(self, registry: Registry | None = None, *, value_max: int = VALUE_MAX) -> None:
        self._registry = registry if registry is not None else Registry()
        self.value_max = value_max
        self._top_hook = partial(self._read, 0)
        self._top_ext = partial(self._ext, 0)

    def encode(self, value: object, where: str = "value") -> bytes:
        """The canonical encoding. Raises UnknownType with the path to what has none, TooLarge over a cap."""
        try:
            data = self._pack(value, 0)
        except Refused as refused:
            raise caused(self._explained(refused, value, where), refused.__cause__) from refused.__cause__
        except RecursionError as error:
            raise caused(self._explained(_too_deep(), value, where), error) from error
        if self._registry.compares_by_identity:
            self._check_plain_reading(data, where)
        return data

    def decode(self, data: bytes, where: str = "value") -> object:
        """The value. Raises TooLarge before anything is read, CorruptEntry, UnknownType if not registered."""
        if len(data) > self.value_max:
            what = f"{where}: its encoding has {len(data):,} bytes, the cap is {self.value_max:,}"
            raise TooLarge(what, fix="Raise the cap (value_max) of who reads it")
        try:
            value: object = unpack(data, self._top_hook)
        except Unbuildable as error:
            raise caused(UnknownType(f"{where}: {error.what}", fix=error.fix), error.__cause__) from error.__cause__
        except (Refused, *MALFORMED) as error:  # type: ignore[misc]
            what = f"{where}: its encoding can't be read: {str(error) or type(error).__name__}"
            corrupt = CorruptEntry(what, fix="`everstep log` shows it; fork from an earlier checkpoint")
            raise caused(corrupt, error) from error
        return value

    # -- to bytes

    def _pack(self, value: Any, depth: int) -> bytes:
        """Encode a value that is `depth` levels inside. Raises Refused."""
        if type(value) in _ATOMS:
            data = pack(value, self._top_ext)  # large numbers are an ext
        else:
            kinds, height = _survey(value, self.value_max)
            value = value if kinds.isdisjoint(_UNASKED) else _carried(value)
            data = pack(value, partial(self._ext, depth + height))
        if len(data) > self.value_max:
            raise _too_large(self.value_max)
        return data

    def _ext(self, depth: int, value: Any) -> object:
        """What msgpack does not know by itself, as an ext."""
        kind = _kind(value)
        leaf = LEAVES.get(kind)
        if leaf is not None:
            return _ExtType(leaf[0], leaf[1](value))
        if depth + 2 > DEPTH_MAX:
            raise _too_deep()
        if kind is tuple:
            return _ExtType(TUPLE, self._pack(list(value), depth + 1))
        if kind is set or kind is frozenset:
            items = sorted(self._pack(item, depth + 2) for item in value)
            return _ExtType(SET if kind is set else FROZENSET, array_header(len(items)) + b"".join(items))
        code, name, fields = self._shaped(value)
        return _ExtType(code, self._pack([name, fields], depth + 1))

    def _shaped(self, value: Any) -> tuple[int, str, Any]:
        """The ext code, name and fields of a registered object. Raises Refused."""
        if isinstance(value, Tagged):
            return _tagged(value)
        shape = self._registry.shape_of(_kind(value))
        if shape is None:
            raise describe(value)
        try:
            return shape.code, shape.name, shape.fields(value)
        except (AttributeError, LookupError) as error:
            refused = Refused(f"a {shape.name} that lacks a field ({error})", "Set all its fields", value)
            raise caused(refused, error) from error

    def _check_plain_reading(self, data: bytes, where: str) -> None:
        """Two items of a set that differ by identity alone would be one for a reader without their class."""
        plain = PlainCodec(value_max=self.value_max)
        try:
            same = plain.encode(plain.decode(data)) == data
        except EverstepError:
            same = False
        if not same:
            what = f"{where}: keys of a dict, or items of a set, that differ as objects but hold the same"
            raise UnknownType(what, fix="Give their class an __eq__ and __hash__ over its fields")

    # -- from bytes

    def _read(self, depth: int, code: int, data: bytes) -> object:
        """The value of an ext. Raises one of MALFORMED, or Unbuildable."""
        leaf = READERS.get(code)
        if leaf is not None:
            return leaf(data)
        if depth >= _TYPED_DEPTH_MAX:
            raise ValueError("nested too deep")
        items = _unpack_list(data, partial(self._read, depth + 1))
        if code == TUPLE:
            return tuple(items)
        if code in (SET, FROZENSET):
            return _set_of(items, code)
        if code not in (OBJECT, ENUM):
            raise ValueError(f"unknown ext code {code}")
        name, fields = items
        if type(name) is not str or not _is_fields(code, fields):
            raise ValueError(f"ext {code} without a name and fields")
        return self._built(code, name, fields)

    def _built(self, code: int, name: str, fields: Any) -> object:
        shape = self._registry.shape_named(name)
        if shape is None:
            fix = f"Let the graph know its class: add_type(cls, name={name!r}); if it was renamed, aliases=[{name!r}]"
            raise Unbuildable(f"a stored value has the type {name!r}, which the graph here does not know", fix)
        if shape.code != code:
            what = f"{name!r} was stored as another kind of type than is registered now"
            raise Unbuildable(what, "Give the new class another name")
        try:
            return shape.build(fields)
        except _MISFIT as error:
            fix = "Keep the names of fields and members, and give new fields a default"
            what = f"a stored {name!r} does not suit the class registered now: {error}"
            raise caused(Unbuildable(what, fix), error) from error

    # -- the path to what was refused

    def _explained(self, refused: Refused, value: object, where: str) -> EverstepError:
        path = None if refused.value is None else self._path(value, refused.value, 0)
        return refused.error(f"{', '.join([where, *(path or [])])}: {refused.what}", fix=refused.fix)

    def _path(self, value: object, wanted: object, depth: int) -> list[str] | None:
        """The labels that lead from `value` to the very object `wanted`."""
        if value is wanted:
            return []
        for label, child in self._children(value) if depth < DEPTH_MAX else ():
            path = self._path(child, wanted, depth + 1)
            if path is not None:
                return [label, *path]
        return None

    def _children(self, value: Any) -> Iterator[tuple[str, object]]:
        kind = _kind(value)
        if kind is list or kind is tuple:
            yield from ((f"item {i}", item) for i, item in enumerate(value))
        elif kind is dict:
            for key, item in value.items():
                yield f"the key {reprlib.repr(key)} itself", key
                yield f"key {reprlib.repr(key)}", item
        elif kind is set or kind is frozenset:
            yield from (("an item of the set", item) for item in value)
        elif kind is Tagged or _is_object(self._registry.shape_of(kind)):
            code, name, fields = self._shaped(value)
            if code == OBJECT:
                yield from ((f"field {key!r} of {name}", item) for key, item in fields.items())


def _tagged(value: Tagged) -> tuple[int, str, Any]:
    code = OBJECT if _kind(value.fields) is dict else ENUM
    if not _is_fields(code, value.fields):
        raise Refused(
            "a Tagged with fields that no reader makes can't be stored",
            "Change only values that were read",
            value,
        )
    return code, value.name, value.fields


def _is_object(shape: Shape | None) -> bool:
    return shape is not None and shape.code == OBJECT


def _is_fields(code: int, fields: Any) -> bool:
    """Whether these are the fields of a registered object (by name) or Enum (a name, or a Flag's names)."""
    kind = _kind(fields)
    if code == OBJECT:
        return kind is dict and set(map(type, fields)) <= {str}
    return kind is str or (kind is list and set(map(type, fields)) <= {str})


def _set_of(items: list[Any], code: int) -> object:
    found: set[Any] | frozenset[Any] = set(items) if code == SET else frozenset(items)
    if len(found) != len(items):
        raise ValueError("a set with an item twice")
    return found


class PlainCodec(Codec):
    """The codec of who has no registry: registered objects become Tagged, which encode to the same bytes."""

    def __init__(self, *, value_max: int = PLAIN_MAX) -> None:
        super().__init__(value_max=value_max)

    def _built(self, code: int, name: str, fields: Any) -> object:
        return Tagged(name, fields)


PLAIN = PlainCodec()
