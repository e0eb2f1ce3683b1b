"""What a node or task can ask of the attempt that runs it, without a parameter for it. Names are LangGraph's."""

from __future__ import annotations

from typing import Any

from everstep_checkpoint.errors import OutsideNode

from .asking import CURRENT, Asking
from .runtime import Runtime


def get_config() -> dict[str, Any]:
    """The config of the run, as a node's parameter `config` has it. Raises OutsideNode where no node runs."""
    return _current("get_config()").config()


def get_runtime(context_schema: type[Any] | None = None) -> Runtime[Any]:
    """The runtime, as a node's parameter `runtime` has it. `context_schema` is taken for its type's sake and changes
    nothing. Raises OutsideNode where no node runs."""
    return _current("get_runtime()").runtime()


def _current(who: str) -> Asking:
    asking = CURRENT.get()
    if asking is None:
        raise OutsideNode(f"{who} was called where no node runs", fix="call it in a node, router or task")
    return asking
