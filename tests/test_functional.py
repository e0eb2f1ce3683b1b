"""The functional API, against LangGraph as the oracle: the same workflows, the same results, streams and histories.

Where LangGraph runs a workflow again although nobody answered it, or its tasks again because it is retried, we don't.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import operator
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict, cast

import langgraph.func
import langgraph.types
import pytest
from langgraph.cache.memory import InMemoryCache as OracleCache
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver
from langgraph.graph import StateGraph as OracleGraph
from pydantic import BaseModel

import everstep
from everstep_checkpoint.errors import (
    EmptyInputError,
    GraphError,
    InvalidInput,
    NodeTimeoutError,
    OutsideNode,
    UnknownType,
)
from everstep_checkpoint.replay import verify
from everstep_scheduler.client.client import connect
from everstep_scheduler.graph.asking import interrupt
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.effects import once
from everstep_scheduler.graph.entry import Final
from everstep_scheduler.graph.functional import task
from everstep_scheduler.graph.options import CachePolicy, TimeoutPolicy
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import START, Command, Runtime
from everstep_scheduler.inline.entrypoint import entrypoint
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from everstep_scheduler.steps.caches import InMemoryCache
from everstep_workers.worker import Worker
from servers import wait_for
from test_recovery import wipe

CONFIG: dict[str, Any] = {"configurable": {"thread_id": "t"}}
OURS = SimpleNamespace(
    entrypoint=entrypoint,
    task=task,
    interrupt=interrupt,
    Command=Command,
    StateGraph=StateGraph,
    RetryPolicy=RetryPolicy,
    CachePolicy=CachePolicy,
    InMemoryCache=InMemoryCache,
)
THEIRS = SimpleNamespace(
    entrypoint=langgraph.func.entrypoint, task=langgraph.func.task, interrupt=langgraph.types.interrupt,
    Command=langgraph.types.Command, StateGraph=OracleGraph, RetryPolicy=langgraph.types.RetryPolicy,
    CachePolicy=langgraph.types.CachePolicy, InMemoryCache=OracleCache,
)  # fmt: skip


@pytest.fixture(params=["memory", "redis"])
def saver(request: pytest.FixtureRequest) -> Saver:
    return InMemorySaver() if request.param == "memory" else RedisSaver(request.getfixturevalue("redis_url"))


# the workflows


class Story:
    """Counts what runs."""

    def __init__(self, api: Any, saver: Any) -> None:
        self.api = api
        self.saver = saver
        self.ran = Counter[str]()

    def did(self, what: str) -> int:
        self.ran[what] += 1
        return self.ran[what]


def adding(s: Story) -> Any:
    @s.api.task
    def add(a: int, b: int = 1) -> int:
        s.did("add")
        return a + b

    @s.api.entrypoint(checkpointer=s.saver)
    def flow(numbers: list[int]) -> list[int]:
        s.did("flow")
        return [each.result() for each in [add(n) for n in numbers]] + [add(1, b=2).result()]

    return flow


def remembering(s: Story) -> Any:
    @s.api.entrypoint(checkpointer=s.saver)
    def flow(n: int, *, previous: Any = None) -> Any:
        s.did(f"previous {previous}")
        return s.api.entrypoint.final(value=previous, save=2 * n)

    return flow


def keeping(s: Story) -> Any:
    @s.api.entrypoint(checkpointer=s.saver)
    def flow(n: int, previous: Any) -> Any:
        return {"sum": n + (previous or {"sum": 0})["sum"]}

    return flow


def asking(s: Story) -> Any:
    @s.api.task
    def ask(n: int) -> list[Any]:
        s.did(f"ask {n}")
        return [n, s.api.interrupt(f"a{n}"), s.api.interrupt(f"b{n}")]

    @s.api.entrypoint(checkpointer=s.saver)
    def flow(n: int) -> list[Any]:
        s.did("flow")
        first = ask(1).result()
        between = s.api.interrupt({"between": first})
        return [first, between, ask(2).result(), s.api.interrupt("last")]

    return flow


def nested(s: Story) -> Any:
    @s.api.task
    def inner(n: int) -> int:
        s.did("inner")
        return n * 2

    @s.api.task
    def outer(n: int) -> Any:
        s.did("outer")
        first = inner(n).result()
        return [first, s.api.interrupt("go on?"), inner(n + 1).result()]

    @s.api.entrypoint(checkpointer=s.saver)
    def flow(n: int) -> Any:
        s.did("flow")
        return [outer(n).result(), inner(7).result()]

    return flow


def failing(s: Story) -> Any:
    @s.api.task
    def good(n: int) -> int:
        return s.did("good")

    @s.api.task
    def bad(n: int) -> int:
        if s.did("bad") < n:
            raise ValueError("not yet")
        return n

    @s.api.entrypoint(checkpointer=s.saver)
    def flow(n: int) -> Any:
        s.did("flow")
        return [good(n).result(), bad(n).result()]

    return flow


def catching(s: Story) -> Any:
    @s.api.task
    def bad(n: int) -> int:
        s.did("bad")
        raise KeyError(n)

    @s.api.entrypoint(checkpointer=s.saver)
    def flow(n: int) -> Any:
        try:
            bad(n).result()
        except KeyError as error:
            return f"caught {error}"

    return flow


def retrying(s: Story) -> Any:
    policy = s.api.RetryPolicy(initial_interval=0.01, jitter=False, retry_on=ValueError)

    @s.api.task(retry_policy=policy, name="other")
    def flaky(n: int) -> int:
        if s.did("flaky") < 3:
            raise ValueError("not yet")
        return n

    @s.api.entrypoint(checkpointer=s.saver)
    def flow(n: int) -> int:
        s.did("flow")
        return int(flaky(n).result())

    return flow


def none(s: Story) -> Any:
    @s.api.entrypoint(checkpointer=s.saver)
    def flow(n: int, *, previous: Any = "never") -> None:
        s.did(f"previous {previous}")

    return flow


def in_a_node(s: Story) -> Any:
    class State(TypedDict, total=False):
        log: Annotated[list[Any], operator.add]

    @s.api.task
    def double(n: int) -> int:
        s.did("double")
        return n * 2

    def work(state: State) -> Any:
        s.did("work")
        found = [each.result() for each in [double(n) for n in range(3)]]
        return {"log": [found, s.api.interrupt("go on?")]}

    return s.api.StateGraph(State).add_node("work", work).add_edge(START, "work").compile(checkpointer=s.saver)


def asynchronous(s: Story) -> Any:
    @s.api.task
    async def slowly(n: int) -> int:
        s.did("slowly")
        await asyncio.sleep(0.001 * n)
        return n + 1

    @s.api.task
    def plain(n: int) -> int:
        s.did("plain")
        return n + 10

    @s.api.entrypoint(checkpointer=s.saver)
    async def flow(n: int) -> Any:
        s.did("flow")
        found = await asyncio.gather(*[slowly(i) for i in range(n)])
        found.append(await plain(n))
        return [found, s.api.interrupt("go on?")]

    return flow


Steps = list[tuple[Any, Any]]  # (input, resume)
STORIES: dict[str, tuple[Callable[[Story], Any], Steps]] = {
    "tasks": (adding, [([1, 2, 3], None), ([], None)]),
    "previous": (remembering, [(3, None), (1, None), (5, None)]),
    "previous of what was returned": (keeping, [(3, None), (1, None)]),
    "questions": (asking, [(0, None), *((None, f"answer {i}") for i in range(6)), (1, None), (None, "again")]),
    "nested tasks": (nested, [(1, None), (None, "yes")]),
    "failures": (failing, [(3, None), (None, None), (None, None), (2, None)]),
    "a failure that is caught": (catching, [(3, None)]),
    "retries of a task": (retrying, [(3, None)]),
    "nothing returned": (none, [(1, None), (2, None)]),
    "tasks in a node": (in_a_node, [({"log": []}, None), (None, "yes")]),
}


def played(story: Story, flow: Any, steps: Steps, mode: Any, **more: Any) -> list[Any]:
    """What each step of a story comes to: chunks or values, what ran, where the thread stands."""
    found: list[Any] = []
    for given, answer in steps:
        data = given if answer is None else story.api.Command(resume=answer)
        try:
            came = (
                list(flow.stream(data, CONFIG, stream_mode=mode, **more)) if mode else flow.invoke(data, CONFIG, **more)
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
            came = repr(error)
        if mode == "updates":  # tasks that run beside each other end in any order
            came = sorted(came, key=repr)
        found.append((_plain(came), dict(story.ran), *standing(flow)))
    return found


def standing(flow: Any) -> tuple[Any, ...]:
    state = flow.get_state(CONFIG)
    tasks = [(x.name, x.error, [i.value for i in x.interrupts], x.result) for x in state.tasks]
    return state.values, state.next, tasks, state.metadata["source"], state.metadata["step"]


def history(flow: Any) -> list[Any]:
    return [
        (s.metadata["source"], s.metadata["step"], s.next, s.values, [(x.name, x.result) for x in s.tasks])
        for s in flow.get_state_history(CONFIG)
    ]


def _plain(came: Any) -> Any:
    """Questions by what they ask: their ids are each library's own."""
    if isinstance(came, dict):
        return {key: _plain(value) for key, value in came.items()}
    if isinstance(came, (list, tuple)):
        return [_plain(each) for each in came]
    return came.value if hasattr(came, "response_schema") else came


@pytest.mark.parametrize("mode", [None, "updates", "values"])
@pytest.mark.parametrize("name", STORIES)
def test_workflows_go_as_in_langgraph(saver: Saver, name: str, mode: Any) -> None:
    made, steps = STORIES[name]
    mine, his = Story(OURS, saver), Story(THEIRS, OracleSaver())
    ours, theirs = made(mine), made(his)
    assert played(mine, ours, steps, mode) == played(his, theirs, steps, mode, durability="sync")
    assert history(ours) == history(theirs)
    assert verify(saver.log, "t").sound


def test_an_async_workflow_goes_as_in_langgraph(saver: Saver) -> None:
    mine, his = Story(OURS, saver), Story(THEIRS, OracleSaver())
    ours, theirs = asynchronous(mine), asynchronous(his)

    async def both(flow: Any, api: Any, **more: Any) -> list[Any]:
        found: list[Any] = []
        for data in (3, api.Command(resume="yes")):
            chunks = [_plain(chunk) async for chunk in flow.astream(data, CONFIG, **more)]
            found.append(sorted(chunks, key=repr))
        return [found, await flow.ainvoke(2, CONFIG, **more), await flow.ainvoke(api.Command(resume=1), CONFIG, **more)]

    assert _plain(asyncio.run(both(ours, OURS))) == _plain(asyncio.run(both(theirs, THEIRS, durability="sync")))
    assert mine.ran == his.ran == {"flow": 4, "slowly": 5, "plain": 2}
    assert history(ours) == history(theirs)


def test_an_async_workflow_can_be_invoked_from_plain_code(saver: Saver) -> None:
    flow = asynchronous(Story(OURS, saver))
    flow.invoke(2, CONFIG)
    assert flow.invoke(Command(resume="yes"), CONFIG) == [[1, 2, 12], "yes"]


# where we differ


def test_a_workflow_that_is_retried_does_not_repeat_its_tasks(saver: Saver) -> None:
    ran = Counter[str]()

    @task
    def same(n: int) -> int:
        ran["task"] += 1
        return n

    @entrypoint(saver, retry_policy=RetryPolicy(initial_interval=0.01, jitter=False, retry_on=ValueError))
    def flow(n: int) -> int:
        ran["flow"] += 1
        found = same(n).result()
        if ran["flow"] < 3:
            raise ValueError
        return found

    assert flow.invoke(4, CONFIG) == 4
    assert ran == {"flow": 3, "task": 1}


def test_a_new_input_is_asked_anew_whatever_was_answered_before(saver: Saver) -> None:
    """LangGraph hands the last answer of the run that was given up to the first question of the new one."""
    flow = asking(Story(OURS, saver))
    flow.invoke(0, CONFIG)
    for data, asks in ((Command(resume="x"), "b1"), (1, "a1"), (Command(resume="y"), "b1")):
        (question,) = flow.invoke(data, CONFIG)["__interrupt__"]
        assert question.value == asks
    (question,) = flow.invoke(Command(resume="z"), CONFIG)["__interrupt__"]
    assert question.value == {"between": [1, "y", "z"]}


def test_tasks_that_ask_at_once_are_asked_one_after_the_other(saver: Saver) -> None:
    @task
    def ask(n: int) -> Any:
        return interrupt(n)

    @entrypoint(saver)
    def flow(n: int) -> list[Any]:
        return [each.result() for each in [ask(i) for i in range(n)]]

    found = flow.invoke(2, CONFIG)
    assert [each.value for each in found["__interrupt__"]] == [0]
    found = flow.invoke(Command(resume="zero"), CONFIG)
    assert [each.value for each in found["__interrupt__"]] == [1]
    assert flow.invoke(Command(resume="one"), CONFIG) == ["zero", "one"]


def as_a_node(s: Story) -> Any:
    class State(TypedDict, total=False):
        a: int
        b: int

    @s.api.task
    def add(n: int) -> int:
        s.did("add")
        return n + 1

    @s.api.entrypoint()
    def flow(state: State) -> Any:
        s.did("flow")
        return {"b": add(state["a"]).result() + s.api.interrupt("how many?")}

    built = s.api.StateGraph(State).add_node("flow", flow).add_edge(START, "flow")
    return built.compile(checkpointer=s.saver)


def test_as_a_node_it_gets_the_state_and_gives_an_update_as_in_langgraph(saver: Saver) -> None:
    mine, his = Story(OURS, saver), Story(THEIRS, OracleSaver())
    steps: Steps = [({"a": 1}, None), (None, 10)]
    ours, theirs = as_a_node(mine), as_a_node(his)
    came = [[(x[0], x[1]) for x in played(mine, ours, steps, None)]]
    came.append([(x[0], x[1]) for x in played(his, theirs, steps, None, durability="sync")])
    assert came[0] == came[1]
    assert [x[:4] for x in history(ours)] == [x[:4] for x in history(theirs)]


# tasks


def test_tasks_run_beside_each_other(saver: Saver) -> None:
    meet = threading.Barrier(3)

    @task
    def wait(n: int) -> int:
        meet.wait(10)
        return n

    @entrypoint(saver)
    def flow(n: int) -> list[int]:
        return [each.result() for each in [wait(i) for i in range(3)]]

    assert flow.invoke(0, CONFIG) == [0, 1, 2]


def test_more_tasks_than_threads_all_run_also_nested(saver: Saver) -> None:
    @task
    def leaf(n: int) -> int:
        return n

    @task
    def branch(n: int) -> int:
        return sum(each.result() for each in [leaf(i) for i in range(20)])

    @entrypoint(saver)
    def flow(n: int) -> int:
        return sum(each.result() for each in [branch(i) for i in range(40)])

    assert flow.invoke(0, CONFIG) == 40 * sum(range(20))


def test_a_workflow_ends_when_its_tasks_have(saver: Saver) -> None:
    ran: list[str] = []

    @task
    def late() -> str:
        time.sleep(0.1)
        ran.append("late")
        return "done"

    @entrypoint(saver)
    def flow(fails: bool) -> str:
        late()
        if fails:
            raise KeyError
        return "flow"

    assert list(flow.stream(False, CONFIG)) == [{"late": "done"}, {"flow": "flow"}]
    with pytest.raises(KeyError):
        flow.invoke(True, CONFIG)
    assert ran == ["late", "late"]


def test_a_task_over_its_timeout_is_cancelled_and_tried_again(saver: Saver) -> None:
    ran: list[str] = []

    @task(
        timeout=TimeoutPolicy(0.05),
        retry_policy=RetryPolicy(initial_interval=0.01, max_attempts=2, retry_on=NodeTimeoutError),
    )
    async def slow(n: int) -> int:
        ran.append("in")
        await asyncio.sleep(10 if len(ran) <= n else 0)
        return n

    @entrypoint(saver)
    async def flow(n: int) -> int:
        return int(await slow(n))

    assert flow.invoke(1, CONFIG) == 1
    ran.clear()
    with pytest.raises(NodeTimeoutError, match="the task 'slow' was over its timeout"):
        flow.invoke(2, CONFIG)


def test_a_workflow_over_its_timeout_cancels_its_async_tasks(saver: Saver) -> None:
    cancelled = threading.Event()

    @task
    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    @entrypoint(saver, timeout=0.05)
    async def flow(n: int) -> None:
        await slow()

    with pytest.raises(NodeTimeoutError):
        flow.invoke(1, CONFIG)
    assert cancelled.wait(5)


def caching(s: Story) -> Any:
    @s.api.task(cache_policy=s.api.CachePolicy())
    def add(a: int, b: int = 1) -> int:
        s.did("add")
        return a + b

    @s.api.task(cache_policy=s.api.CachePolicy(key_func=lambda n, *, odd: str(n)))
    def named(n: int, *, odd: Any) -> int:
        s.did("named")
        return n

    @s.api.entrypoint(checkpointer=s.saver, cache=s.api.InMemoryCache())
    def flow(n: int) -> list[int]:
        return [add(n).result(), add(n).result(), add(n, b=2).result(), named(n, odd=object()).result()]

    return flow


def cached_whole(s: Story) -> Any:
    @s.api.entrypoint(checkpointer=s.saver, cache=s.api.InMemoryCache(), cache_policy=s.api.CachePolicy())
    def flow(n: int, *, previous: Any = None) -> list[Any]:
        s.did("flow")
        return [n, previous]

    return flow


@pytest.mark.parametrize("mode", ["updates", None])
@pytest.mark.parametrize("made", [caching, cached_whole])
def test_caches_go_as_in_langgraph(saver: Saver, made: Callable[[Story], Any], mode: Any) -> None:
    steps: Steps = [(1, None), (1, None), (2, None), (1, None)]
    mine, his = Story(OURS, saver), Story(THEIRS, OracleSaver())
    assert played(mine, made(mine), steps, mode) == played(his, made(his), steps, mode, durability="sync")


def test_a_cached_result_of_an_async_task_is_told_as_such(saver: Saver) -> None:
    ran: list[int] = []

    @task(cache_policy=CachePolicy())
    async def double(n: int) -> int:
        ran.append(n)
        return n * 2

    @entrypoint(saver, cache=InMemoryCache())
    async def flow(n: int) -> int:
        return int(await double(n))

    cached = {"__metadata__": {"cached": True}}
    assert list(flow.stream(1, CONFIG)) == [{"double": 2}, {"flow": 2}]
    assert list(flow.stream(1, CONFIG)) == [{"double": 2, **cached}, {"flow": 2}]
    flow.clear_cache(["task:double"])
    assert list(flow.stream(1, CONFIG)) == [{"double": 2}, {"flow": 2}]
    assert ran == [1, 1]


@dataclass
class Page:
    url: str
    words: int


class Order(BaseModel):
    item: str
    count: int = 1


def test_results_and_inputs_keep_the_types_that_annotations_name(saver: Saver) -> None:
    seen: list[Any] = []

    @task
    def fetch(url: str) -> Page:
        return Page(url, len(url))

    @entrypoint(saver)
    def flow(order: Order, *, previous: Order | None = None) -> Final[str, Order]:
        page = fetch(order.item).result()
        seen.append((order, previous, page, interrupt("go on?")))
        return entrypoint.final(value=page.url, save=order)

    for item in ("a", "bb"):
        flow.invoke(Order(item=item), CONFIG)
        assert flow.invoke(Command(resume=1), CONFIG) == item
    assert seen == [
        (Order(item="a"), None, Page("a", 1), 1),
        (Order(item="bb"), Order(item="a"), Page("bb", 2), 1),
    ]


def test_a_result_of_a_type_that_nobody_names_is_told(saver: Saver) -> None:
    @task
    def fetch(url: str) -> Any:
        return Page(url, 1)

    @entrypoint(saver)
    def flow(url: str) -> str:
        return str(fetch(url).result().url)

    with pytest.raises(UnknownType, match="Page can't be stored"):
        flow.invoke("x", CONFIG)


def test_effects_within_tasks_are_each_calls_own(saver: Saver) -> None:
    sent: list[int] = []

    @task
    def send(n: int) -> str:
        def mail() -> str:
            sent.append(n)
            return f"mail {n}"

        mailed = once("mail", mail)
        return f"{mailed} {interrupt('sure?') if n == 1 else 'sure'}"

    @entrypoint(saver)
    def flow(n: int) -> list[str]:
        return [each.result() for each in [send(i) for i in range(n)]]

    flow.invoke(2, CONFIG)
    assert flow.invoke(Command(resume="yes"), CONFIG) == ["mail 0 sure", "mail 1 yes"]
    assert sorted(sent) == [0, 1]
    keys = {x.text("effect") for x in saver.log.read("t") if x.kind == "effect_done"}
    assert keys == {"in:0:send/mail", "in:1:send/mail", "task:0:send", "task:1:send"}


def test_an_async_workflow_waits_for_what_its_tasks_began(saver: Saver) -> None:
    ran: list[str] = []

    @task
    async def leaf() -> None:
        await asyncio.sleep(0.05)
        ran.append("leaf")

    @task
    def thread() -> None:
        time.sleep(0.05)
        ran.append("thread")

    @task
    async def branch() -> None:
        leaf()

    @entrypoint(saver)
    async def flow(n: int) -> int:
        branch()
        thread()
        return n

    assert flow.invoke(1, CONFIG) == 1
    assert sorted(ran) == ["leaf", "thread"]


# what is refused


def test_a_task_outside_says_where_it_belongs() -> None:
    @task
    def add(n: int) -> int:
        return n + 1

    with pytest.raises(OutsideNode, match="the task 'add' was called where no node runs"):
        add(1)
    assert add.func(1) == 2
    assert add.__name__ == "add"


def test_an_async_task_in_a_plain_function_is_refused() -> None:
    @task
    async def add(n: int) -> int:
        return n + 1

    @entrypoint()
    def flow(n: int) -> Any:
        return add(n)

    with pytest.raises(InvalidInput, match="the async task 'add' was called in a function that is not"):
        flow.invoke(1)


def test_what_can_t_be_built_is_told_while_it_is_built() -> None:
    def plain(n: int) -> int:
        return n

    with pytest.raises(GraphError, match="is not async: nothing can stop it"):
        task(timeout=1)(plain)
    with pytest.raises(GraphError, match="can't have an idle timeout"):
        task(timeout=TimeoutPolicy(idle_timeout=1))(plain)
    with pytest.raises(GraphError, match="is no CachePolicy"):
        task(cache_policy=cast("Any", object()))(plain)
    with pytest.raises(GraphError, match="can't be a task's name"):
        task(name="a/b")(plain)
    with pytest.raises(GraphError, match="takes no input"):
        entrypoint()(lambda: 1)
    with pytest.raises(GraphError, match="is a generator"):

        @entrypoint()
        def flow(n: int) -> Any:
            yield n

    with pytest.raises(GraphError, match="a parameter 'other' that nobody gives it"):

        @entrypoint()
        def more(n: int, other: int) -> int:
            return n


def test_no_input_is_told() -> None:
    flow = adding(Story(OURS, InMemorySaver()))
    with pytest.raises(EmptyInputError):
        flow.invoke(None, CONFIG)


# what it is told


def test_it_gets_config_and_runtime_by_name(saver: Saver) -> None:
    @dataclass
    class Context:
        user: str

    @entrypoint(saver, context_schema=Context)
    def flow(n: int, config: Any, runtime: Runtime[Context]) -> list[Any]:
        return [
            config["configurable"]["thread_id"],
            runtime.context.user,
            runtime.previous,
            len(runtime.idempotency_key),
        ]

    assert flow.invoke(1, CONFIG, context={"user": "kim"}) == ["t", "kim", None, 43]
    assert flow.invoke(1, CONFIG, context={"user": "kim"})[2] == ["t", "kim", None, 43]


def test_an_update_is_what_it_would_have_returned(saver: Saver) -> None:
    mine, his = Story(OURS, saver), Story(THEIRS, OracleSaver())
    found: list[Any] = []
    for story in (mine, his):
        flow = keeping(story)
        flow.invoke(1, CONFIG)
        flow.update_state(CONFIG, {"sum": 100})
        found.append([standing(flow)[:2], flow.invoke(1, CONFIG), history(flow)])
    assert found[0] == found[1]


def test_time_travel_goes_as_in_langgraph(saver: Saver) -> None:
    found: list[Any] = []
    for story in (Story(OURS, saver), Story(THEIRS, OracleSaver())):
        flow = keeping(story)
        for n in (1, 10, 100):
            flow.invoke(n, CONFIG)
        seen = list(flow.get_state_history(CONFIG))
        begun = [each for each in seen if each.metadata["source"] == "input"][1]
        ended = [each for each in seen if each.metadata["source"] == "loop"][1]
        came = [flow.invoke(None, begun.config), flow.invoke(7, ended.config), flow.invoke(8, CONFIG)]
        found.append([came, history(flow)])
    assert found[0] == found[1]
    assert found[0][0] == [{"sum": 11}, {"sum": 18}, {"sum": 26}]


def test_a_replay_runs_its_tasks_again(saver: Saver) -> None:
    story = Story(OURS, saver)
    flow = adding(story)
    flow.invoke([1], CONFIG)
    begun = list(flow.get_state_history(CONFIG))[-1]
    assert flow.invoke(None, begun.config) == [2, 3]
    assert story.ran == {"flow": 2, "add": 4}


def test_breakpoints_stop_before_it(saver: Saver) -> None:
    story = Story(OURS, saver)
    flow = adding(story)
    assert flow.invoke([1], CONFIG, interrupt_before=["flow"]) is None
    assert flow.get_state(CONFIG).next == ("flow",)
    assert not story.ran
    assert flow.invoke(None, CONFIG) == [2, 3]


def test_its_drawing_has_one_node() -> None:
    drawn = adding(Story(OURS, InMemorySaver())).draw_mermaid()
    assert "__start__ --> flow" in drawn
    assert "flow --> __end__" in drawn


def test_the_input_is_not_kept_once_it_is_done(saver: Saver) -> None:
    flow = adding(Story(OURS, saver))
    flow.invoke([1, 2], CONFIG)
    stand = flow._loader.peek("t")
    assert stand is not None
    assert set(stand.channels) == {"__end__", "__previous__"}


# on workers


def test_a_fleet_serves_it_by_name(redis_url: str, client: Any) -> None:
    @task
    def double(n: int) -> int:
        return n * 2

    @entrypoint(name="doubling")
    def doubling(order: Order, *, previous: int | None = None) -> int:
        found = double(order.count).result() + (previous or 0)
        return found if order.item != "ask" else int(interrupt("how many?"))

    worker = Worker(redis_url, [doubling], concurrency=2)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with connect(redis_url) as fleet:
            wait_for(lambda: [each.name for each in fleet.graphs()] == ["doubling"], 20)
            assert fleet.submit("doubling", {"item": "x", "count": 2}, thread_id="t").result(20) == 4
            assert fleet.submit("doubling", Order(item="x", count=3), thread_id="t").result(20) == 10
            with pytest.raises(InvalidInput, match=r"count: must be integer, not string"):
                fleet.submit("doubling", {"item": "x", "count": "many"})
            with pytest.raises(EmptyInputError):
                fleet.submit("doubling", None)
            graph = fleet.graph("doubling")
            assert list(graph.stream({"item": "x"}, CONFIG)) == [{"double": 2}, {"doubling": 12}]
            (question,) = graph.invoke({"item": "ask"}, CONFIG, timeout=20)["__interrupt__"]
            assert question.value == "how many?"
            assert graph.invoke(Command(resume=7), CONFIG, timeout=20) == 7
            assert graph.get_state(CONFIG).values == 7
            typed = fleet.graph("doubling", doubling)
            assert typed.invoke(Order(item="x"), CONFIG, timeout=20) == 9
            graph.update_state(CONFIG, 100, timeout=20)
            assert typed.invoke(Order(item="x"), CONFIG, timeout=20) == 102
            assert history(graph) == history(typed)
    finally:
        worker.drain()
        thread.join(20)


def test_recorded_tasks_survive_a_rebuild(redis_url: str, client: Any) -> None:
    story = Story(OURS, RedisSaver(redis_url))
    flow = nested(story)
    flow.invoke(1, CONFIG)
    wipe(client, "all")
    fresh = Story(OURS, RedisSaver(redis_url))
    assert nested(fresh).invoke(Command(resume="yes"), CONFIG) == [[2, "yes", 4], 14]
    assert fresh.ran == {"flow": 1, "outer": 1, "inner": 2}


def test_the_names_are_public() -> None:
    assert everstep.task is task
    assert everstep.entrypoint is entrypoint
