"""The `@task` calls of one attempt: each runs in a thread or on the loop, and its result is recorded at once.

    add(1) ──call──► key task:0:add ── recorded? ── yes ──► a future that is done
                                          └─ no ──► run ─► retries ─► effect_done ─► the future

A call is known by its place: the order of the calls within the node, or within the task that makes it, and its name.
Calls are part of the attempt: it ends when they have ended.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from everstep_checkpoint.codec import Codec, Registry
from everstep_checkpoint.errors import InvalidEffect, InvalidInput, NodeTimeoutError

from ..graph.asking import PLACE, GraphBubbleUp
from ..graph.effects import CALL
from ..graph.functional import TaskFunction, TaskFuture
from ..graph.retry import next_delay
from ..graph.spec import registry_of
from .announcing import Announcer
from .caching import CallCache
from .effects import Effects

PARALLEL_MAX = 16  # threads for the calls of one node, and of each task that makes calls itself
PLACE_MAX = 2000
Task = TaskFunction[Any, Any]


class Driven(Protocol):
    """A run that somebody drives within the attempt."""

    def leave(self) -> None:
        """Stop driving it."""
        ...


class Calls:
    """The calls of one attempt, and the runs of graphs that it called."""

    def __init__(
        self,
        doing: Effects,
        registry: Registry,
        node: str,
        cache: CallCache | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        self._doing = doing
        self._announcer = announcer  # where somebody asked to hear of calls as they begin
        self._registry = registry
        self._node = node
        self._made = Counter[str]()
        self._graphs = Counter[str]()
        self._runs = set[Driven]()
        self._over = False
        self._crews: dict[str, Crew] = {}
        self._pending: list[concurrent.futures.Future[Any] | asyncio.Future[Any]] = []
        self.cache = cache
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def on_loop(self) -> None:
        """The attempt runs on this event loop."""
        self._loop = asyncio.get_running_loop()

    @contextmanager
    def driving(self, run: Driven) -> Generator[None]:
        """A run of a graph that was called is under way; it is left when the attempt is over, also before it begins."""
        self._runs.add(run)
        try:
            if self._over:
                run.leave()
            yield
        finally:
            self._runs.discard(run)

    def nth_graph(self) -> tuple[str, int]:
        """A graph is called: at which place, and how many were called there before."""
        place = PLACE.get()
        with self._lock:
            index, self._graphs[place] = self._graphs[place], self._graphs[place] + 1
        return place, index

    def call(self, task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskFuture[Any]:
        """Begin a call, or take its result from an earlier attempt. Raises InvalidEffect, InvalidInput, ServerError."""
        before = PLACE.get()
        with self._lock:
            index, self._made[before] = self._made[before], self._made[before] + 1
            crew = self._crews.setdefault(before, Crew())
        place = f"{before}/{index}:{task.name}".lstrip("/")
        if len(place) > PLACE_MAX:
            raise InvalidEffect("tasks call tasks too deep", node=self._node, fix="call them from the entrypoint")
        context = contextvars.copy_context()
        context.run(PLACE.set, place)
        one = _Call(task, args, kwargs, CALL + place, self._codec(task))
        if self._announcer is not None:
            self._announcer.begun(one.key, args, kwargs, one.codec)
        if self._is_on_loop():
            assert self._loop is not None
            made: Any = self._loop.create_task(self._arun(one, crew), name=task.name, context=context)
        elif task.is_async:
            raise InvalidInput(
                f"the async task {task.name!r} was called in a function that is not", node=self._node,
                fix="make the function `async def`, or the task a plain function",
            )  # fmt: skip
        else:
            made = crew.begin(lambda: context.run(self._run, one))
        with self._lock:
            self._pending.append(made)
        future: TaskFuture[Any] = made
        return future

    def _is_on_loop(self) -> bool:
        try:
            return self._loop is not None and asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _codec(self, task: Task) -> Codec:
        """The graph's types, and what the task says it returns."""
        if not task.returns:
            return Codec(self._registry)
        registry = registry_of([task.returns])
        for name, cls in self._registry.names().items():
            if registry.shape_of(cls) is None and registry.shape_named(name) is None:
                registry.add(cls, name)
        return Codec(registry)

    # in a thread

    def _run(self, one: _Call) -> Any:
        known = self._begin(one)
        if known is not None:
            return known[0]
        try:
            return self._end(one, one.repeatedly(time.sleep))
        except BaseException as error:
            self._undone(one, error)
            raise

    def _undone(self, one: _Call, error: BaseException) -> None:
        """It raised: so it runs again in the next attempt."""
        self._doing.undone(one.key)
        if self._announcer is not None and isinstance(error, Exception) and not isinstance(error, GraphBubbleUp):
            self._announcer.failed(one.key, error)

    def _begin(self, one: _Call) -> tuple[Any] | None:
        """What an earlier attempt, or a cache, knows of a call."""
        if self._announcer is not None:
            self._announcer.flush()
        known = self._doing.begin(one.key, one.codec)
        if known is not None or self.cache is None or not (kept := one.kept_under(self.cache)):
            return known
        found = self.cache.recall(one.task, kept, one.codec)
        return None if found is None else (self._doing.record(one.key, found[0], one.codec, cached=True),)

    def _end(self, one: _Call, value: Any) -> Any:
        """Record what a call came to."""
        stored = self._doing.record(one.key, value, one.codec)
        if self.cache is not None and (kept := one.kept_under(self.cache)):
            self.cache.remember(one.task, kept, stored, one.codec)
        return stored

    # on the loop

    async def _arun(self, one: _Call, crew: Crew) -> Any:
        known = await asyncio.to_thread(self._begin, one)
        if known is not None:
            return known[0]
        try:
            value = await self._value(one, crew)
            return await asyncio.to_thread(self._end, one, value)
        except Exception as error:
            await asyncio.to_thread(self._undone, one, error)
            raise
        except BaseException:
            self._doing.undone(one.key)
            raise

    async def _value(self, one: _Call, crew: Crew) -> Any:
        if not one.task.is_async:
            context = contextvars.copy_context()
            return await asyncio.wrap_future(crew.begin(lambda: context.run(one.repeatedly, time.sleep)))
        failures = 0
        while True:
            try:
                return await self._awaited(one)
            except Exception as error:  # noqa: BLE001 - the door to the user's code; `delay` raises what is final
                failures += 1
                await asyncio.sleep(one.delay(error, failures))

    async def _awaited(self, one: _Call) -> Any:
        limit = one.task.timeout_s
        waiting = asyncio.timeout(limit)
        try:
            async with waiting:
                return await one()
        except TimeoutError as error:
            if not waiting.expired():
                raise
            raise NodeTimeoutError(
                f"the task {one.task.name!r} was over its timeout of {limit:g} s", error_type="NodeTimeoutError",
                node=self._node, fix="raise @task(timeout=...), or give it a retry policy for NodeTimeoutError",
            ) from error  # fmt: skip

    # the end

    def end(self, *, failed: bool) -> None:
        """Wait for the calls that run; where the attempt failed, those that did not begin are dropped."""
        if failed:
            self._drop()
        for future in self._pending:
            assert isinstance(future, concurrent.futures.Future)
            concurrent.futures.wait([future])
        self.leave()

    async def aend(self, *, failed: bool) -> None:
        """The same on the loop; where the attempt failed, the calls that run are cancelled."""
        if failed:
            self.cancel()
        seen = 0
        while seen < len(self._pending):  # those that run may make more
            batch, seen = self._pending[seen:], len(self._pending)
            await asyncio.gather(*filter(None, (_on_loop(each, failed) for each in batch)), return_exceptions=True)
        self.leave()

    def cancel(self) -> None:
        """Cancel what runs on the loop, and what did not begin."""
        self._drop()
        for future in self._pending:
            future.cancel()

    def _drop(self) -> None:
        """What did not begin won't, and graphs that were called are driven no further."""
        for crew in tuple(self._crews.values()):
            crew.drop()
        self.leave()

    def leave(self) -> None:
        """Graphs whose caller is gone are driven no further. From any thread."""
        self._over = True
        for run in self._runs.copy():
            run.leave()


def _on_loop(future: concurrent.futures.Future[Any] | asyncio.Future[Any], failed: bool) -> asyncio.Future[Any] | None:
    """What the loop can wait for; no thread of an attempt that failed, for nothing can stop it."""
    if isinstance(future, asyncio.Future):
        return future
    return None if failed else asyncio.wrap_future(future)


class _Call:
    """One call: what to run, and under which key its result is kept."""

    def __init__(self, task: Task, args: Sequence[Any], kwargs: Mapping[str, Any], key: str, codec: Codec) -> None:
        self.task = task
        self.key = key
        self.codec = codec
        self._args = args
        self._kwargs = kwargs
        self._kept: str | None = None

    def kept_under(self, cache: CallCache) -> str:
        """Its key in a cache, made before the task can change its arguments; empty without a policy."""
        if self._kept is None:
            self._kept = cache.key_of(self.task, self._args, self._kwargs, self.codec)
        return self._kept

    def __call__(self) -> Any:
        return self.task.func(*self._args, **self._kwargs)

    def repeatedly(self, sleep: Callable[[float], object]) -> Any:
        """The value, after as many tries as the task's retry policy allows."""
        failures = 0
        while True:
            try:
                return self()
            except Exception as error:  # noqa: BLE001 - the door to the user's code; `delay` raises what is final
                failures += 1
                sleep(self.delay(error, failures))

    def delay(self, error: Exception, failures: int) -> float:
        """Seconds to the next try. Raises the error where there is none; what only passes through is no error."""
        dice = random.random()  # noqa: S311 - jitter, not a secret
        found = None if isinstance(error, GraphBubbleUp) else next_delay(self.task.retry, error, failures, dice)
        if found is None:
            raise error
        return found


class Crew:
    """A few threads that end when they have nothing to do. A stuck one does not keep the interpreter from ending."""

    def __init__(self, size: int = PARALLEL_MAX) -> None:
        self._free = size
        self._waiting: deque[tuple[Callable[[], Any], concurrent.futures.Future[Any]]] = deque()
        self._lock = threading.Lock()

    def begin(self, action: Callable[[], Any]) -> TaskFuture[Any]:
        """Run it in a thread, as soon as there is one."""
        future = TaskFuture[Any]()
        with self._lock:
            self._waiting.append((action, future))
            fresh = self._free > 0
            self._free -= fresh
        if fresh:
            threading.Thread(target=self._work, name="everstep-task", daemon=True).start()
        return future

    def drop(self) -> None:
        """Cancel what waits."""
        with self._lock:
            for _, future in self._waiting:
                future.cancel()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                action, future = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(action())
            except BaseException as error:  # noqa: BLE001 - the door to the user's code
                future.set_exception(error)
