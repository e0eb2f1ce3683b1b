"""Differing: what changed from one state to another, key by key, as plain data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

from everstep_checkpoint.codec import PLAIN
from everstep_checkpoint.replay import Channels

from ..graph.channels import HIDDEN


class Change(NamedTuple):
    """One key. `how`: added, removed, changed, or grown: a list that has more items; `after` are those alone."""

    key: str
    how: Literal["added", "removed", "grown", "changed"]
    before: Any
    after: Any


def changes(before: Channels, after: Channels) -> list[Change]:
    """The keys whose values are not the same, those of `after` first, in its order. Raises CorruptEntry."""
    old, new = _shown(before), _shown(after)
    found = [_change(key, old, new) for key in new if old.get(key) != new[key]]
    return [*found, *(Change(key, "removed", _plain(key, old[key]), None) for key in old if key not in new)]


def _shown(channels: Channels) -> dict[str, bytes]:
    return {name: value for name, value in channels.items() if not name.startswith(HIDDEN)}


def _change(key: str, old: Mapping[str, bytes], new: Mapping[str, bytes]) -> Change:
    now = _plain(key, new[key])
    if key not in old:
        return Change(key, "added", None, now)
    was = _plain(key, old[key])
    if isinstance(was, list) and isinstance(now, list):
        earlier, later = cast("list[Any]", was), cast("list[Any]", now)  # type: ignore[redundant-cast]
        if len(later) > len(earlier) and later[: len(earlier)] == earlier:
            return Change(key, "grown", earlier, later[len(earlier) :])
    return Change(key, "changed", was, now)


def _plain(key: str, value: bytes) -> Any:
    return PLAIN.decode(value, f"key {key!r}")
