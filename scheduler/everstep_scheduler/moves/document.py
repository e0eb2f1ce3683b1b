"""JSON objects in keys and messages that anybody may have written: what is none is empty, and nobody stumbles. Pure."""

from __future__ import annotations

import json
from typing import Any, cast

DOCUMENT_MAX = 256 * 1024


def document(raw: bytes | str | None, most: int = DOCUMENT_MAX) -> dict[str, Any]:
    """The object that `raw` spells; empty for nothing, what is over `most` bytes, what is no JSON object."""
    if raw is None or len(raw) > most:
        return {}
    try:
        found: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
