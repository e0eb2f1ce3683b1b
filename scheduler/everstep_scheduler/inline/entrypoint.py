"""`@entrypoint`: a workflow that is one function. Names and meaning are LangGraph's.

    @entrypoint(checkpointer=InMemorySaver())
    def flow(urls, *, previous=None):
        return [each.result() for each in map(fetch, urls)]

    flow.invoke(["https://example.org"], {"configurable": {"thread_id": "t"}})

It becomes a graph of one node (`graph/entry.py`), and has what any compiled graph has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, get_args, get_origin

from everstep_checkpoint.errors import GraphError

from ..graph.builder import Breakpoints, StateGraph
from ..graph.callables import hints
from ..graph.durability import COMMIT
from ..graph.entry import PREVIOUS, EntrySpec, Final, Kept, R, S, entry_of
from ..graph.options import Cache, CachePolicy, Timeout
from ..graph.retry import RetryPolicy
from ..graph.runtime import END, START
from ..graph.schema import bare
from .compiled import CompiledGraph


class entrypoint:
    """Make a function of one input a workflow that can be invoked, as a compiled graph is.

    The function takes its input, and by name what it asks for of `config`, `runtime` and `previous`: what it returned,
    or saved with `entrypoint.final`, in the last run on this thread; None in the first. Where it asks something with
    `interrupt()`, or fails, it runs again from its top, and its tasks give what is recorded.

    `checkpointer` keeps its threads, `cache` outcomes of what has a cache policy. `context_schema`: the type of
    `runtime.context`. `retry_policy`, `cache_policy`, `timeout` and `queue`: of its node, as in `add_node`. `name`:
    under which workers serve it, else its attribute's.
    Raises GraphError.
    """

    class final(Final[R, S]):
        """What an entrypoint returns to keep one thing and give another: `value` is its output, `save` its `previous`.

        As an annotation, `-> entrypoint.final[str, int]`, it says the types of both.
        """

    def __init__(
        self,
        checkpointer: Any = None,
        *,
        context_schema: type[Any] | None = None,
        retry_policy: RetryPolicy | Sequence[RetryPolicy] | None = None,
        cache: Cache | None = None,
        cache_policy: CachePolicy | None = None,
        timeout: Timeout = None,
        name: str | None = None,
        queue: str | None = None,
        durability: str = COMMIT,
    ) -> None:
        self._checkpointer = checkpointer
        self._context_schema = context_schema
        self._name = name
        self._cache = cache
        self._durability = durability
        self._node: dict[str, Any] = {
            "retry_policy": retry_policy, "cache_policy": cache_policy, "timeout": timeout, "queue": queue,
        }  # fmt: skip

    def __call__(self, func: Callable[..., Any]) -> CompiledGraph:
        """The workflow."""
        name = str(getattr(func, "__name__", type(func).__name__))
        _check(func, name)
        types = _types(func)
        make: Any = TypedDict
        keys = {START: types.given, END: types.value, PREVIOUS: types.save}
        state, given, value = (
            make(name, {key: keys[key] for key in chosen}, total=False) for chosen in (keys, [START], [END])
        )
        builder = _Entry(state, self._context_schema, input_schema=given, output_schema=value)
        builder.add_node(name, func, input_schema=given, destinations=[], **self._node)
        builder.add_edge(START, name).add_edge(name, END)
        return builder.compile(self._checkpointer, cache=self._cache, name=self._name, durability=self._durability)


class _Entry(StateGraph):
    """The builder of an entrypoint."""

    def spec(
        self, name: str | None = None, interrupt_before: Breakpoints = None, interrupt_after: Breakpoints = None
    ) -> EntrySpec:
        return entry_of(super().spec(name, interrupt_before, interrupt_after))


def _check(func: Callable[..., Any], name: str) -> None:
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise GraphError(
            f"the entrypoint {name!r} is a generator", fix="return its result, and stream what comes before"
        )
    if not inspect.signature(func).parameters:
        raise GraphError(f"the entrypoint {name!r} takes no input", fix="its first parameter is the input")


def _types(func: Callable[..., Any]) -> Kept:
    """What the annotations say of input, output and what is saved; Any where they say nothing."""
    said = hints(func)
    first = next(iter(inspect.signature(func).parameters))
    given, gives = bare(said.get(first, Any)), bare(said.get("return", Any))
    kind = get_origin(gives) or gives
    if isinstance(kind, type) and issubclass(kind, Final):
        value, save = get_args(gives) or (Any, Any)
        return Kept(given, bare(value), bare(save))
    return Kept(given, gives, gives)
