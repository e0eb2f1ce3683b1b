"""everstep: durable graphs on the Redis you already have.

    from everstep import StateGraph, START, END, InMemorySaver, connect

Names are imported when they are first used, so that `everstep --help` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everstep_checkpoint.errors import DurabilityWarning as DurabilityWarning
    from everstep_checkpoint.errors import EverstepError as EverstepError
    from everstep_checkpoint.errors import GraphRecursionError as GraphRecursionError
    from everstep_checkpoint.errors import InvalidUpdateError as InvalidUpdateError
    from everstep_checkpoint.errors import NodeDied as NodeDied
    from everstep_checkpoint.errors import NodeTimeoutError as NodeTimeoutError
    from everstep_checkpoint.errors import RunCancelled as RunCancelled
    from everstep_checkpoint.errors import RunFailed as RunFailed
    from everstep_scheduler.client.client import Client as Client
    from everstep_scheduler.client.client import connect as connect
    from everstep_scheduler.client.events import Event as Event
    from everstep_scheduler.graph.asking import Interrupt as Interrupt
    from everstep_scheduler.graph.asking import get_stream_writer as get_stream_writer
    from everstep_scheduler.graph.asking import interrupt as interrupt
    from everstep_scheduler.graph.builder import StateGraph as StateGraph
    from everstep_scheduler.graph.current import get_config as get_config
    from everstep_scheduler.graph.current import get_runtime as get_runtime
    from everstep_scheduler.graph.effects import aonce as aonce
    from everstep_scheduler.graph.effects import once as once
    from everstep_scheduler.graph.functional import task as task
    from everstep_scheduler.graph.handling import NodeError as NodeError
    from everstep_scheduler.graph.kinds import AnyValue as AnyValue
    from everstep_scheduler.graph.kinds import EphemeralValue as EphemeralValue
    from everstep_scheduler.graph.kinds import Overwrite as Overwrite
    from everstep_scheduler.graph.kinds import Topic as Topic
    from everstep_scheduler.graph.kinds import UntrackedValue as UntrackedValue
    from everstep_scheduler.graph.limits import Limit as Limit
    from everstep_scheduler.graph.managed import IsLastStep as IsLastStep
    from everstep_scheduler.graph.managed import RemainingSteps as RemainingSteps
    from everstep_scheduler.graph.messages import MessagesState as MessagesState
    from everstep_scheduler.graph.messages import add_messages as add_messages
    from everstep_scheduler.graph.options import CachePolicy as CachePolicy
    from everstep_scheduler.graph.options import TimeoutPolicy as TimeoutPolicy
    from everstep_scheduler.graph.retry import RetryPolicy as RetryPolicy
    from everstep_scheduler.graph.runtime import END as END
    from everstep_scheduler.graph.runtime import START as START
    from everstep_scheduler.graph.runtime import Command as Command
    from everstep_scheduler.graph.runtime import Runtime as Runtime
    from everstep_scheduler.graph.runtime import Send as Send
    from everstep_scheduler.inline.compiled import CompiledGraph as CompiledGraph
    from everstep_scheduler.inline.entrypoint import entrypoint as entrypoint
    from everstep_scheduler.inline.savers import InMemorySaver as InMemorySaver
    from everstep_scheduler.inline.savers import MemorySaver as MemorySaver
    from everstep_scheduler.inline.savers import RedisSaver as RedisSaver
    from everstep_scheduler.reading.snapshot import StateSnapshot as StateSnapshot
    from everstep_scheduler.steps.caches import InMemoryCache as InMemoryCache
    from everstep_scheduler.steps.caches import RedisCache as RedisCache
    from everstep_scheduler.steps.stateface import StateUpdate as StateUpdate
    from everstep_workers.rqjob import RQJob as RQJob

_HOMES = {
    "everstep_checkpoint.errors": (
        "DurabilityWarning", "EverstepError", "GraphRecursionError", "InvalidUpdateError",
        "NodeDied", "NodeTimeoutError", "RunCancelled", "RunFailed",
    ),
    "everstep_scheduler.client.client": ("Client", "connect"),
    "everstep_scheduler.graph.asking": ("Interrupt", "get_stream_writer", "interrupt"),
    "everstep_scheduler.client.events": ("Event",),
    "everstep_scheduler.graph.builder": ("StateGraph",),
    "everstep_scheduler.graph.current": ("get_config", "get_runtime"),
    "everstep_scheduler.graph.effects": ("aonce", "once"),
    "everstep_scheduler.inline.compiled": ("CompiledGraph",),
    "everstep_scheduler.graph.functional": ("task",),
    "everstep_scheduler.graph.kinds": ("AnyValue", "EphemeralValue", "Overwrite", "Topic", "UntrackedValue"),
    "everstep_scheduler.inline.entrypoint": ("entrypoint",),
    "everstep_scheduler.graph.handling": ("NodeError",),
    "everstep_scheduler.graph.limits": ("Limit",),
    "everstep_scheduler.graph.managed": ("IsLastStep", "RemainingSteps"),
    "everstep_scheduler.graph.messages": ("MessagesState", "add_messages"),
    "everstep_scheduler.graph.options": ("CachePolicy", "TimeoutPolicy"),
    "everstep_scheduler.graph.retry": ("RetryPolicy",),
    "everstep_scheduler.graph.runtime": ("END", "START", "Command", "Runtime", "Send"),
    "everstep_scheduler.inline.savers": ("InMemorySaver", "MemorySaver", "RedisSaver"),
    "everstep_scheduler.reading.snapshot": ("StateSnapshot",),
    "everstep_scheduler.steps.caches": ("InMemoryCache", "RedisCache"),
    "everstep_scheduler.steps.stateface": ("StateUpdate",),
    "everstep_workers.rqjob": ("RQJob",),
}  # fmt: skip
COMPILED = find_spec("everstep__mypyc") is not None  # hatch_build.py
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("everstep")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'everstep' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
