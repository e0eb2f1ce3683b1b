"""What stands for an object of a registered class where that class is not known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Tagged:
    """A registered object, read without its class: its name and its fields, by field name.

    For an Enum `fields` is the member's name, for a Flag the list of its members' names. Two are equal if
    they encode to the same bytes.
    """

    name: str
    fields: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tagged):
            return NotImplemented
        return _encoded(self) == _encoded(other)

    def __hash__(self) -> int:
        return hash(_encoded(self))


def _encoded(tagged: Tagged) -> bytes:
    from .codec import PLAIN  # which makes these

    return PLAIN.encode(tagged)
