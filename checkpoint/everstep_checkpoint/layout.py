"""Layout: where the items of an encoded list, tuple, dict or registered object are, without decoding it.

    tuple of 2:   c7 05 02 | 92 | a1 61 | cd 01 2c        ext header, array header, item, item

Items are skipped over in C, never built. Pure. What is done with them is the business of `delta`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .codec import array_header, walker
from .types import OBJECT, TUPLE

Piece = bytes | memoryview


class Impossible(Exception):
    """An op that does not fit the value."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One encoded value. `kind`: list, tuple, map, object (of a registered class) or other."""

    data: bytes
    kind: str
    count: int = 0
    start: int = 0

    @classmethod
    def of(cls, data: bytes) -> Layout:
        head = data[:1]
        if b"\xc7" <= head <= b"\xc9" or b"\xd4" <= head <= b"\xd8":
            code, start = _ext_header(data)
            kind = {TUPLE: "tuple", OBJECT: "object"}.get(code, "other")
        else:
            start = 0
            kind = "map" if b"\x80" <= head <= b"\x8f" or head in (b"\xde", b"\xdf") else "list"
        found = _count(data, start, is_map=kind == "map") if kind != "other" else None
        return cls(data, "other") if found is None else cls(data, kind, *found)

    @classmethod
    def some(cls, data: bytes | None) -> Layout:
        if data is None:
            raise Impossible("there is no value to change")
        return cls.of(data)

    def sequence(self) -> Layout:
        """Itself, if it is a list or tuple."""
        if self.kind not in ("list", "tuple"):
            raise Impossible("not a list")
        return self

    def cuts(self, count: int) -> list[int]:
        """Where the first `count` items begin, and where the last of them ends."""
        unpacker = walker(memoryview(self.data)[self.start :])
        found = [self.start]
        for _ in range(count):
            unpacker.skip()
            found.append(self.start + unpacker.tell())
        return found

    def parts(self) -> list[bytes]:
        """The encodings of all items, or of all keys and values in turn."""
        cuts = self.cuts(self.count * 2 if self.kind == "map" else self.count)
        if cuts[-1] != len(self.data):
            raise Impossible("trailing bytes")
        return [self.data[a:b] for a, b in pairwise(cuts)]

    def pairs(self) -> dict[bytes, bytes] | None:
        """Encoded key -> encoded value, in order; None if a key is no string or comes twice."""
        parts = self.parts()
        found = dict(zip(parts[::2], parts[1::2], strict=True))
        return found if len(found) == self.count and all(map(_is_text, found)) else None

    def around(self, count: int, bodies: list[Piece]) -> list[Piece]:
        """This container's headers, for `count` items, and the items."""
        header = array_header(count)
        if self.kind == "list":
            return [header, *bodies]
        size = len(header) + sum(map(len, bodies))
        return [_ext_of(TUPLE if self.kind == "tuple" else OBJECT, size), header, *bodies]


def _ext_header(data: bytes) -> tuple[int, int]:
    """The code of an ext, and where its content begins."""
    head = data[0]
    at = 1 if head >= 0xD4 else 1 + (1 << (head - 0xC7))
    return data[at], at + 1


def _ext_of(code: int, size: int) -> bytes:
    """The shortest header of an ext, as msgpack writes it."""
    if size in (1, 2, 4, 8, 16):
        return bytes([0xD4 + size.bit_length() - 1, code])
    width = 0 if size < 2**8 else 1 if size < 2**16 else 2
    return bytes([0xC7 + width]) + size.to_bytes(1 << width, "big") + bytes([code])


def _count(data: bytes, start: int, *, is_map: bool) -> tuple[int, int] | None:
    """How many items an array or map has, and where the first begins; None if it is neither."""
    head = data[start] if start < len(data) else 0xC1
    small, wide = (0x80, 0xDE) if is_map else (0x90, 0xDC)
    if small <= head < small + 16:
        return head - small, start + 1
    if head not in (wide, wide + 1):
        return None
    width = 2 if head == wide else 4
    return int.from_bytes(data[start + 1 : start + 1 + width], "big"), start + 1 + width


def map_header(count: int) -> bytes:
    if count < 16:
        return bytes([0x80 | count])
    return b"\xde" + count.to_bytes(2, "big") if count < 2**16 else b"\xdf" + count.to_bytes(4, "big")


def _is_text(key: bytes) -> bool:
    return 0xA0 <= key[0] <= 0xBF or 0xD9 <= key[0] <= 0xDB
