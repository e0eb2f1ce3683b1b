"""Random ids: run ids, tokens, births."""

from __future__ import annotations

import base64
import os

_DRAWN = 256
_ids: list[str] = []
os.register_at_fork(after_in_child=_ids.clear)  # a child must never draw its parent's ids


def new_id() -> str:
    """A random id of 22 characters. Drawn 256 at a time: each draw lets go of the GIL."""
    try:
        return _ids.pop()
    except IndexError:
        drawn = base64.urlsafe_b64encode(os.urandom(18 * _DRAWN)).decode()  # 24 characters each, without a rest
        first, *others = [drawn[i : i + 22] for i in range(0, len(drawn), 24)]
        _ids.extend(others)
        return first
