"""Effects: `once` and `aonce`, side effects that are recorded the moment they are done.

    charge ──once("charge", pay)──► recorded? ── yes ──► the value from the log; `pay` is not called
                                        └─ no ──► pay() ──► effect_done in the log ──► its value

The record belongs to one task of one checkpoint, over all its attempts: a retry, a resume behind a question, another
worker after a crash. What lies between `pay` and its record is not covered: a process that dies there calls it again.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from everstep_checkpoint.errors import InvalidEffect, OutsideNode

from .asking import CURRENT, PLACE

if TYPE_CHECKING:
    from .asking import Doing

T = TypeVar("T")

EFFECT_KEY_MAX = 200
CALL = "task:"  # how the keys of `@task` calls begin
WITHIN = "in:"  # and those of effects within such a call
GRAPH = "graph:"  # and those of calls of graphs
RESERVED = (CALL, WITHIN, GRAPH)


def once(key: str, fn: Callable[[], T]) -> T:
    """What `fn()` returned the first time a node of this task came here; `fn` is called where there is no record yet.

    `key`: names the effect within the node, or within the `@task` call; 1 to 200 printable characters, each used once
    an attempt. The value is of
    any type that a state may hold; it comes back as it is stored. What `fn` raises passes through and is not recorded.

    A process that dies between `fn`'s effect and its record calls `fn` again: give it `runtime.idempotency_key + key`
    where that must not double. In an async node use `aonce`.

    Raises InvalidEffect for a key that is none or was used already, UnknownType for a value that can't be stored (the
    effect is done then, and not recorded), OutsideNode.
    """
    doing, key = _doing("once()"), _placed(key)
    known = doing.begin(key)
    if known is not None:
        return cast("T", known[0])
    try:
        value = fn()
    except BaseException:
        doing.undone(key)
        raise
    return cast("T", doing.record(key, value))


@overload
async def aonce(key: str, fn: Callable[[], Awaitable[T]]) -> T: ...


@overload
async def aonce(key: str, fn: Callable[[], T]) -> T: ...


async def aonce(key: str, fn: Callable[[], Any]) -> Any:
    """`once` for async nodes: `fn` may be async, and the record is made without holding up the loop."""
    doing, key = _doing("aonce()"), _placed(key)
    known = await asyncio.to_thread(doing.begin, key)
    if known is not None:
        return known[0]
    try:
        value = fn()
        value = await value if inspect.isawaitable(value) else value
    except BaseException:
        doing.undone(key)
        raise
    return await asyncio.to_thread(doing.record, key, value)


def called(key: str) -> str:
    """The name of the `@task` that an effect's key belongs to; empty for an effect of `once`."""
    return key.rpartition("/")[2].rpartition(":")[2] if key.startswith(CALL) else ""


def place_of_call(key: str) -> str:
    """The place of the `@task` call that an effect's key belongs to."""
    return key.removeprefix(CALL)


def raised_key(token: str, key: str) -> str:
    """By what the error of a call is known beside those of attempts, which have their tokens."""
    return f"{token} {key}"


def _doing(who: str) -> Doing:
    asking = CURRENT.get()
    if asking is None:
        raise OutsideNode(
            f"{who} was called where no node runs",
            fix="call it in a node or router; a thread of your own needs contextvars.copy_context().run",
        )
    return asking.doing


def _placed(key: Any) -> str:
    """The key as it is stored: within a `@task` call it is the call's own."""
    if not isinstance(key, str) or not 0 < len(key) <= EFFECT_KEY_MAX or not key.isprintable():
        raise InvalidEffect(
            f"{str(key)[:40]!r} can't be the key of an effect", fix=f"give 1 to {EFFECT_KEY_MAX} printable characters"
        )
    if key.startswith(RESERVED):
        fix = f"begin it with anything but {', '.join(map(repr, RESERVED))}"
        raise InvalidEffect(f"the key {key[:40]!r} is reserved", fix=fix)
    return f"{WITHIN}{place}/{key}" if (place := PLACE.get()) else key
