"""What is known of a long encoding, kept beside it while there is room: reading it again would cost more.

By identity: the very same `bytes` object, which nobody can change, and which is held here as long as its note is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

BYTES_MAX = 8 * 2**20
T = TypeVar("T")


class Beside(Generic[T]):
    """Notes beside encodings, so many bytes of these at most; the longest unused goes first. For all threads."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[int, tuple[bytes, T, int]] = OrderedDict()  # and how many bytes that is
        self._lock = threading.Lock()

    def get(self, data: bytes) -> T | None:
        """The note beside it, if there is one."""
        with self._lock:
            found = self._kept.get(id(data))
            if found is None:
                return None
            self._kept.move_to_end(id(data))
            return found[1]

    def put(self, data: bytes, note: T, held: int = 0) -> None:
        """Note something, if that is not too long for all of them. `held`: how many bytes the note itself holds."""
        size = len(data) + held
        if size > self._bytes_max:
            return
        with self._lock:
            if (old := self._kept.pop(id(data), None)) is not None:
                self._bytes -= old[2]
            self._bytes += size
            self._kept[id(data)] = data, note, size
            while self._bytes > self._bytes_max:
                _, (_, _, gone) = self._kept.popitem(last=False)
                self._bytes -= gone
