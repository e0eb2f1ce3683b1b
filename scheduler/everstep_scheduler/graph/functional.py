"""`@task`: a function whose calls, in an entrypoint or a node, run beside each other and are recorded.

    @task
    def fetch(url): ...

    futures = [fetch(url) for url in urls]        pages = [each.result() for each in futures]

A task is no job: it runs within the attempt that calls it (`steps/calls.py`), and its result is recorded at once, so
that a run of the node again gets it instead of running it. Names and meaning are LangGraph's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import Future
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from everstep_checkpoint.errors import GraphError, OutsideNode

from .asking import CURRENT
from .builder import NAME_MAX
from .callables import carrier, hints, is_async
from .options import CachePolicy, Timeout, TimeoutPolicy
from .retry import RetryPolicy
from .runtime import seconds

P = ParamSpec("P")
T = TypeVar("T")
Policies = RetryPolicy | Sequence[RetryPolicy] | None


class TaskFuture(Future[T]):
    """What a call of a task gives: `.result()` in a plain function, `await` in an async one."""

    def __await__(self) -> Generator[Any, None, T]:
        raise TypeError("a task of a function that is not async is not awaited: use .result()")
        yield  # pyright: ignore[reportUnreachable] - it makes this a generator


class TaskFunction(Generic[P, T]):
    """A function that `@task` has wrapped. `retry`, `timeout_s`: of one call; `returns`: its annotation, or None."""

    def __init__(
        self,
        func: Callable[P, Any],
        name: str,
        retry: tuple[RetryPolicy, ...],
        timeout_s: float | None,
        cache: CachePolicy | None,
    ) -> None:
        self.func = func
        self.cache = cache
        self.retry = retry
        self.timeout_s = timeout_s
        self.is_async = is_async(func)
        self.returns = hints(func).get("return")
        update_wrapper(self, func)
        self.name = self.__name__ = name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Begin it. Raises OutsideNode where no entrypoint or node runs."""
        asking = CURRENT.get()
        if asking is None:
            raise OutsideNode(
                f"the task {self.name!r} was called where no node runs",
                fix=f"call it in an entrypoint or a node; {self.name}.func is the plain function",
            )
        return cast("TaskFuture[T]", asking.calls.call(self, args, kwargs))


class TaskMaker(Protocol):
    """What `@task(...)` is, before it meets its function."""

    @overload
    def __call__(self, func: Callable[P, Awaitable[T]], /) -> TaskFunction[P, T]: ...

    @overload
    def __call__(self, func: Callable[P, T], /) -> TaskFunction[P, T]: ...


@overload
def task(func: Callable[P, Awaitable[T]], /) -> TaskFunction[P, T]: ...


@overload
def task(func: Callable[P, T], /) -> TaskFunction[P, T]: ...


@overload
def task(
    func: None = None,
    /,
    *,
    name: str | None = None,
    retry_policy: Policies = None,
    cache_policy: CachePolicy | None = None,
    timeout: Timeout = None,
) -> TaskMaker: ...


def task(
    func: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry_policy: Policies = None,
    cache_policy: CachePolicy | None = None,
    timeout: Timeout = None,
) -> Any:
    """Make a function a task: calling it in an entrypoint or a node begins it, and gives a future.

    Its result is recorded when it is there; a run of the entrypoint or node again (a retry, a resume, another worker)
    gets it by the order of the calls and the name. So make the same calls in the same order each time. What raises is
    not recorded. Results are of types that a state may hold, or that its return annotation names.

    `name`: the function's if not given. `retry_policy`: the first that matches decides; the wait is within the attempt.
    `timeout`: seconds for one try, of an async task only, since nothing can stop a thread. `cache_policy`: where
    the graph has a cache, a result is reused for the same arguments, also by other runs. Raises GraphError.
    """
    if not isinstance(cache_policy, CachePolicy | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GraphError(f"{cache_policy!r} is no CachePolicy", fix="Use everstep's CachePolicy.")

    def made(function: Callable[..., Any]) -> TaskFunction[..., Any]:
        called = _task_name(function, name)
        limit = _limit(timeout, called)
        if limit is not None and not is_async(function):
            raise GraphError(
                f"the task {called!r} is not async: nothing can stop it after {limit:g} s",
                fix="make it `async def`, or leave out the timeout",
            )
        policies = (retry_policy,) if isinstance(retry_policy, RetryPolicy) else tuple(retry_policy or ())
        return TaskFunction(function, called, policies, limit, cache_policy)

    return made if func is None else made(func)


def _limit(timeout: Timeout, name: str) -> float | None:
    """Seconds for one try. Raises GraphError for an idle timeout: what a task does is not seen."""
    policy = timeout if isinstance(timeout, TimeoutPolicy) else TimeoutPolicy(timeout)
    if policy.idle_timeout is not None:
        raise GraphError(
            f"the task {name!r} can't have an idle timeout", fix="give it to the entrypoint, or run_timeout"
        )
    return seconds(policy.run_timeout, name)


def _task_name(function: Callable[..., Any], name: str | None) -> str:
    """Its name, which is a part of keys in the log."""
    plain = carrier(function)
    found = name if name is not None else str(getattr(plain, "__name__", type(plain).__name__))
    if not found or len(found) > NAME_MAX or not found.isprintable() or "/" in found or ":" in found:
        raise GraphError(
            f"{found!r} can't be a task's name", fix=f"1 to {NAME_MAX} printable characters without '/' and ':'."
        )
    return found
