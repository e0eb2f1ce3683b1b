"""A node's outcome, kept for the next task with the same input: `add_node(cache_policy=CachePolicy())`.

    load ──► key ──► cache ── hit: writes and destinations as they were, the node is not called
                        └── miss: the node runs; what its commit passes is kept

A cache is a hint. Whatever goes wrong with it, away, full, unreadable, the node runs. Errors are never kept.
Names are LangGraph's; values are in our codec, so that reading one runs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from typing import TYPE_CHECKING, Any

from everstep_checkpoint.codec import Codec, pack, unpack

from ..graph.effects import CALL
from ..graph.options import Cache
from ..graph.runtime import Send
from .plan import Returned

if TYPE_CHECKING:
    from ..graph.functional import TaskFunction
    from ..graph.spec import GraphSpec, NodeSpec
    from .perform import Attempt

FORM = 1
ENTRY_BYTES_MAX = 2**20
_log = logging.getLogger("everstep")


def key_of(attempt: Attempt) -> str:
    """What an attempt's outcome is kept under; empty if its node has no policy, or the policy can't say."""
    node = attempt.node
    if node is None or node.cache is None:
        return ""
    try:
        said = node.cache.key_func(*attempt.args()) if node.cache.key_func is not None else None
        given: Any = _input(attempt) if said is None else said if isinstance(said, bytes) else str(said)
        return _sha([attempt.spec.fingerprint, _identity(node), given])
    except Exception as error:  # noqa: BLE001 - the user's code, or an input that can't be built: the node will say so
        _log.warning("the cache of node %r is passed over: its key can't be made: %r", node.name, error)
        return ""


def _input(attempt: Attempt) -> Any:
    """The node's input in its canonical encoding."""
    if attempt.given.arg is not None:
        return ["send", attempt.given.arg]
    assert attempt.node is not None
    schema, channels = attempt.node.input_schema, attempt.stand.channels
    untracked = attempt.spec.untracked
    stored = [[name, channels[name]] for name in sorted(schema.fields) if name in channels and name not in untracked]
    if untracked:
        there = attempt.spec.decoded(sorted(untracked.intersection(schema.fields)), channels)
        stored += [[name, attempt.spec.codec.encode(value, name)] for name, value in there.items()]
    return ["state", stored, sorted(schema.managed_at(attempt.steps).items())]


def _identity(node: NodeSpec) -> list[str]:
    """The node, and the function that it is: two graphs without a name may look alike."""
    return [node.name, str(getattr(node.fn, "__module__", "")), str(getattr(node.fn, "__qualname__", type(node.fn)))]


def _sha(value: Any) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(pack(value)).digest())[:43].decode()


def recall(cache: Cache, attempt: Attempt, key: str) -> Returned | None:
    """What the task came to before; None if nobody knows."""
    try:
        stored = cache.get(attempt.spec.name, attempt.lease.node, key)
        return None if stored is None else _read(attempt.spec, stored)
    except Exception as error:  # noqa: BLE001 - a cache never breaks a step
        _log.warning("the cache of node %r is passed over: %r", attempt.lease.node, error)
        return None


def remember(cache: Cache, attempt: Attempt, key: str, value: Returned) -> None:
    """Keep what a task came to, unless it is large, or what it wrote is never stored."""
    if not attempt.spec.untracked.isdisjoint(name for name, _ in value.writes):
        return
    assert attempt.node is not None and attempt.node.cache is not None
    try:
        stored = _written(attempt.spec, value)
        if len(stored) <= ENTRY_BYTES_MAX:
            cache.put(attempt.spec.name, attempt.lease.node, key, stored, attempt.node.cache.ttl)
    except Exception as error:  # noqa: BLE001 - a cache never breaks a step
        _log.warning("what node %r returned is not cached: %r", attempt.lease.node, error)


class CallCache:
    """Results of `@task` calls with a cache policy, for the calls of one graph."""

    def __init__(self, cache: Cache, graph: str) -> None:
        self._cache = cache
        self._graph = graph

    def key_of(self, task: TaskFunction[Any, Any], args: Any, kwargs: Any, codec: Codec) -> str:
        """What a call's result is kept under; empty if its task has no policy, or the policy can't say."""
        if task.cache is None:
            return ""
        try:
            given: Any = (
                codec.encode([list(args), dict(kwargs)], f"the arguments of {task.name!r}")
                if task.cache.key_func is None
                else task.cache.key_func(*args, **kwargs)  # LangGraph's form for calls
            )
            named = [str(getattr(task.func, name, "")) for name in ("__module__", "__qualname__")]
            return _sha([task.name, *named, given])
        except Exception as error:  # noqa: BLE001 - the user's code, or arguments that can't be stored: the task runs
            _log.warning("the cache of task %r is passed over: its key can't be made: %r", task.name, error)
            return ""

    def recall(self, task: TaskFunction[Any, Any], key: str, codec: Codec) -> tuple[Any] | None:
        """What the call came to before; None if nobody knows."""
        try:
            stored = self._cache.get(self._graph, f"{CALL}{task.name}", key)
            form, value = unpack(stored, _no_ext) if stored is not None else (0, b"")
            return (codec.decode(value, "a cached result"),) if form == FORM else None
        except Exception as error:  # noqa: BLE001 - a cache never breaks a step
            _log.warning("the cache of task %r is passed over: %r", task.name, error)
            return None

    def remember(self, task: TaskFunction[Any, Any], key: str, value: Any, codec: Codec) -> None:
        """Keep what a call came to, unless it is large."""
        assert task.cache is not None
        try:
            stored = pack([FORM, codec.encode(value, "a result")])
            if len(stored) <= ENTRY_BYTES_MAX:
                self._cache.put(self._graph, f"{CALL}{task.name}", key, stored, task.cache.ttl)
        except Exception as error:  # noqa: BLE001 - a cache never breaks a step
            _log.warning("what task %r returned is not cached: %r", task.name, error)


def _written(spec: GraphSpec, value: Returned) -> bytes:
    sends = [[each.node, spec.codec.encode(each.arg, "the Send's argument"), each.timeout_s] for each in value.sends]
    return pack([FORM, [list(write) for write in value.writes], list(value.goto), sends])


def _read(spec: GraphSpec, stored: bytes) -> Returned | None:
    """None for a value of another form: of an older everstep, or of a newer one."""
    form, *rest = unpack(stored, _no_ext)
    if form != FORM:
        return None
    writes, goto, sends = rest
    return Returned(
        tuple((str(name), bytes(value)) for name, value in writes),
        tuple(str(name) for name in goto),
        tuple(Send(node, spec.codec.decode(arg, "the Send's argument"), timeout=after) for node, arg, after in sends),
    )


def _no_ext(code: int, _data: bytes) -> object:
    raise ValueError(f"ext code {code} where none can be")
