"""Events: a run as it goes, resumable from any process, on workers; what is void or lost is said, never silence."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import pytest
import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import InvalidInput, Rewound, TooLarge, Trimmed, UnknownRun, UnknownType
from everstep_scheduler.client.client import Client, connect, publish
from everstep_scheduler.client.events import Event
from everstep_scheduler.graph.asking import get_stream_writer
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.retry import RetryPolicy
from everstep_scheduler.graph.runtime import END, START, Send
from everstep_scheduler.inline.savers import RedisSaver
from everstep_scheduler.moves import live
from everstep_scheduler.moves.live import LiveWriter, Said
from everstep_scheduler.reading.ledger import Ledger
from hand import KEYS, Hand, working
from servers import wait_for

ALL = ["values", "updates", "checkpoints", "tasks", "debug", "custom", "messages"]
LIVE = ("custom", "messages")


class State(TypedDict, total=False):
    count: int
    xs: Annotated[list[int], operator.add]


def telling(fails: int = 0) -> StateGraph:
    """A chain that splits and joins; each part tells three things, and fails after them the first `fails` times."""
    tries: list[int] = []

    def part(i: int) -> State:
        for k in range(3):
            get_stream_writer()(f"{i}.{k}")
        tries.append(i)
        if len(tries) <= fails:
            raise ValueError("once more")
        return {"xs": [i]}

    policy = RetryPolicy(initial_interval=0.01, retry_on=ValueError, jitter=False, max_attempts=5)
    builder = StateGraph(State)
    builder.add_node("first", lambda state: {"count": state["count"] + 1})
    builder.add_node("part", part, retry_policy=policy)
    builder.add_node("last", lambda state: {"messages": []} and {"count": 9})
    builder.add_edge(START, "first")
    builder.add_conditional_edges("first", lambda state: [Send("part", i) for i in range(state["count"])], ["part"])
    builder.add_edge("part", "last")
    builder.add_edge("last", END)
    return builder


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with connect(redis_url) as made:
        yield made


def told(events: list[Event], mode: str) -> list[Any]:
    return [event.chunk for event in events if event.mode == mode]


def seen(events: list[Event]) -> list[tuple[str, Any]]:
    return [(event.mode, event.chunk) for event in events]


def apart(events: list[Event]) -> tuple[list[Any], dict[str, list[Any]]]:
    """The log's chunks, and what each task said: how the two mix is anybody's."""
    tasks: dict[str, list[Any]] = {}
    for event in events:
        if event.mode == "custom":
            tasks.setdefault(event.task, []).append(event.chunk)
    return [x for x in seen(events) if x[0] not in ("custom", "superseded")], tasks


def done(client: Client, url: str, made: StateGraph, count: int = 2, thread: str = "t", **more: Any) -> list[Event]:
    """All events of a run that the workers do."""
    with working(url, ("g", made)):
        run = client.submit("g", {"count": count}, thread_id=thread, stream_mode=LIVE, **more)
        return list(run.events(ALL, timeout=20))


# -- one reader after another


def test_a_reader_who_comes_back_to_any_cursor_gets_exactly_the_rest(client: Client, redis_url: str) -> None:
    whole = done(client, redis_url, telling())
    assert {event.mode for event in whole} == {*ALL} - {"messages"}
    assert len({event.cursor for event in whole}) == len(whole)
    with connect(redis_url) as another:
        for i, event in enumerate(whole):
            rest = list(another.run("t").events(ALL, after=event.cursor, timeout=10))
            assert apart(rest) == apart(whole[i + 1 :]), f"behind {event.cursor}"


def test_a_late_reader_misses_nothing_and_one_of_other_modes_neither(client: Client, redis_url: str) -> None:
    whole = done(client, redis_url, telling())
    assert apart(list(client.run("t").events(ALL, timeout=10))) == apart(whole)
    for mode in ALL:
        assert sorted(map(repr, told(list(client.run("t").events(mode, timeout=10)), mode))) == sorted(
            map(repr, told(whole, mode))
        )
    middle = whole[len(whole) // 2]
    other = list(client.run("t").events("updates", after=middle.cursor, timeout=10))
    rest = told(whole[len(whole) // 2 + 1 :], "updates")
    assert told(other, "updates")[-len(rest) :] == rest, "other modes: perhaps a chunk twice, none too few"


def test_a_reader_lives_through_outages(client: Client, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its commands gets no answer: it goes on where it was, and nothing is told twice."""
    whole = done(client, redis_url, telling(fails=1))
    with connect(redis_url) as frail:
        run, asked, dead, send = frail.run("t"), 0, 0, frail.redis.execute_command

        def once(*args: Any, **more: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == dead:
                raise redis.ConnectionError("no answer")
            return send(*args, **more)

        monkeypatch.setattr(frail.redis, "execute_command", once)
        while dead <= asked:
            asked, dead = 0, dead + 1
            assert apart(list(run.events(ALL, timeout=30))) == apart(whole), f"command {dead} got no answer"
    assert dead > 5


def test_a_second_run_on_the_thread_has_its_own_events(client: Client, redis_url: str) -> None:
    first = done(client, redis_url, telling())
    second = done(client, redis_url, telling(), count=1)
    assert sorted(told(first, "custom")) == sorted(f"{i}.{k}" for i in range(3) for k in range(3))
    assert sorted(told(second, "custom")) == sorted(f"{i}.{k}" for i in range(2) for k in range(3))


def test_what_a_task_says_comes_before_what_came_of_it(client: Client, redis_url: str) -> None:
    whole = done(client, redis_url, telling(), count=4)
    ids = {event.task for event in whole if event.mode == "custom"}
    assert len(ids) == 5
    for key in ids:
        said = [i for i, event in enumerate(whole) if event.mode == "custom" and event.task == key]
        about = [(i, x) for i, x in enumerate(whole) if x.mode == "tasks" and x.chunk["id"] == key]
        (begun, first), (ended, last) = about
        assert "input" in first.chunk and "result" in last.chunk
        assert begun < said[0] and said[-1] < ended and len(said) == 3


def test_chunks_arrive_while_the_node_runs_on_a_worker(client: Client, redis_url: str) -> None:
    heard = threading.Event()

    def slow(state: State) -> State:
        get_stream_writer()("begun")
        assert heard.wait(10), "what was told reaches the reader before the node ends"
        return {"count": 1}

    made = StateGraph(State).add_node("slow", slow).add_edge(START, "slow")
    with working(redis_url, ("g", made)):
        for chunk in client.graph("g").stream({"count": 0}, stream_mode="custom", timeout=10):
            assert chunk == "begun"
            heard.set()
    assert heard.is_set()


def test_a_run_that_nobody_listens_to_is_refused_and_writes_nothing(client: Client, redis_url: str) -> None:
    with working(redis_url, ("g", telling())):
        run = client.submit("g", {"count": 2}, thread_id="t", run_id="r")
        with pytest.raises(InvalidInput, match="nobody listens to the run 'r' in mode 'custom'"):
            list(run.events(["custom", "updates"], timeout=10))
        assert run.result(10)["count"] == 9
    assert not client.redis.exists(KEYS.live("t", "r"))
    assert not any("told" in entry.raw for entry in client.log("t"))


# -- attempts


def test_what_a_failed_attempt_said_is_superseded_before_its_successor_speaks(client: Client, redis_url: str) -> None:
    whole = done(client, redis_url, telling(fails=2), count=0)
    assert [(x.mode, x.chunk if x.mode == "custom" else x.chunk["attempt"], x.attempt) for x in live_only(whole)] == [
        ("custom", "0.0", 1), ("custom", "0.1", 1), ("custom", "0.2", 1), ("superseded", 1, 1),
        ("custom", "0.0", 2), ("custom", "0.1", 2), ("custom", "0.2", 2), ("superseded", 2, 2),
        ("custom", "0.0", 3), ("custom", "0.1", 3), ("custom", "0.2", 3),
    ]  # fmt: skip
    for i, event in enumerate(whole):
        rest = list(client.run("t").events(ALL, after=event.cursor, timeout=10))
        assert apart(rest) == apart(whole[i + 1 :]), "a notice may come twice, no more"


def live_only(events: list[Event]) -> list[Event]:
    return [event for event in events if event.mode in ("custom", "superseded", "gap")]


def test_what_a_lost_attempt_says_is_never_mixed_with_its_successors(client: Client, redis_url: str) -> None:
    """It was taken for dead and lives: what it says then comes too late."""
    goes_on, both = threading.Event(), threading.Event()
    spoken: list[str] = []

    def node(state: State) -> State:
        me = f"attempt {len(spoken) + 1}"
        spoken.append(me)
        get_stream_writer()(f"{me} begins")
        if me == "attempt 1":
            both.set()
            assert goes_on.wait(10)
        get_stream_writer()(f"{me} ends")
        return {"count": 1}

    made = StateGraph(State).add_node("node", node).add_edge(START, "node")
    publish(client.redis, KEYS, [made.spec("g")])
    run = client.submit("g", {"count": 0}, thread_id="t", stream_mode="custom")
    one, two = Hand(client.redis, made, "one"), Hand(client.redis, made, "two")
    assert one.claim() == ["start"] and one.do() == "ok"
    assert one.claim() == ["p0"]
    zombie = threading.Thread(target=one.do)
    zombie.start()
    assert both.wait(10)
    wait_for(lambda: client.redis.xlen(KEYS.live("t", run.run_id)) == 1, 10, "the first attempt's word is written")
    one.moves.release("one", None, "lost", "its process died")
    assert two.claim() == ["p0"]
    assert two.do() == "ok"
    wait_for(lambda: client.redis.xlen(KEYS.live("t", run.run_id)) == 3, 10, "the second attempt's words are written")
    goes_on.set()
    zombie.join(10)
    wait_for(lambda: client.redis.xlen(KEYS.live("t", run.run_id)) == 4, 10, "all is written")
    events = live_only(list(run.events(["custom", "updates"], timeout=10)))
    assert [(x.mode, x.chunk if x.mode == "custom" else x.chunk["attempt"]) for x in events] == [
        ("custom", "attempt 1 begins"), ("superseded", 1), ("custom", "attempt 2 begins"), ("custom", "attempt 2 ends"),
    ]  # fmt: skip


def test_messages_carry_their_task_and_attempt(client: Client, redis_url: str) -> None:
    made = StateGraph(State)
    made.add_node("say", lambda state: {"xs": [{"role": "assistant", "content": "hi"}]})
    made.add_edge(START, "say")
    with working(redis_url, ("g", made)):
        run = client.submit("g", {"count": 0}, stream_mode="messages")
        (event,) = [x for x in run.events(["messages", "tasks"], timeout=10) if x.mode == "messages"]
        (again,) = run.chunks("messages", timeout=10)
    message, metadata = event.chunk
    assert message == {"role": "assistant", "content": "hi"}
    assert (metadata["task_id"], metadata["attempt"]) == (event.task, 1) == (again[1]["task_id"], again[1]["attempt"])


# -- what was lost


def test_a_gap_is_told_with_its_size(client: Client, redis_url: str) -> None:
    done(client, redis_url, telling(), count=0, run_id="r")
    key = KEYS.live("t", "r")
    first, second, _third = (row for row, _ in client.redis.xrange(key))
    client.redis.xdel(key, first, second)
    events = live_only(list(client.run("t").events(["custom"], timeout=10)))
    assert [(x.mode, x.chunk if x.mode == "custom" else x.chunk["lost"]) for x in events] == [
        ("gap", 2),
        ("custom", "0.2"),
    ]
    client.redis.delete(key)
    began = time.monotonic()
    client.redis.xadd(key, {"x": "y"}, "1-1")
    client.redis.delete(key)
    age_everything(client)
    events = live_only(list(client.run("t").events(["custom", "updates"], timeout=10)))
    assert [(x.mode, x.chunk["lost"]) for x in events] == [("gap", 3)]
    assert time.monotonic() - began < 10


def age_everything(client: Client) -> None:
    """Wait until the log is too old for words to be still under way."""
    last = list(client.log("t"))[-1]
    wait_for(lambda: client.redis.time()[0] * 1000 > last.number("at") + 3000, 10, "the log is old")


def test_after_a_rewind_the_reader_is_told_and_gets_the_new_past(client: Client, redis_url: str) -> None:
    made = telling()
    publish(client.redis, KEYS, [made.spec("g")])
    hand = Hand(client.redis, made, name="g")
    run = client.submit("g", {"count": 1}, thread_id="t", run_id="r", stream_mode=LIVE)
    old = client.redis.dump(KEYS.log("t"))
    for _ in range(2):
        assert hand.claim(1) and hand.do() == "ok"
    events = run.events(["updates", "checkpoints"], timeout=20)
    got = [next(events) for _ in range(4)]
    assert {x.mode for x in got} == {"updates", "checkpoints"}
    client.redis.restore(KEYS.log("t"), 0, old, replace=True)
    for cursor in ("", got[-1].cursor):
        fresh = events if not cursor else run.events(["updates", "checkpoints"], after=cursor, timeout=20)
        event = next(fresh)
        assert (event.mode, event.chunk) == ("rewound", {"to": "0-1"}), cursor
    client.redis.delete(KEYS.alive)  # the indexes know more than the log: as after a restart they are made anew
    with working(redis_url, ("g", telling())):
        after = list(fresh)
    assert [x.mode for x in after].count("updates") == 4
    assert seen(after) == seen(list(run.events(["updates", "checkpoints"], timeout=10)))


def test_chunks_do_not_go_on_over_a_rewind_as_if_nothing_was(client: Client, redis_url: str) -> None:
    made = telling()
    publish(client.redis, KEYS, [made.spec("g")])
    hand = Hand(client.redis, made, name="g")
    run = client.submit("g", {"count": 1}, thread_id="t")
    old = client.redis.dump(KEYS.log("t"))
    for _ in range(2):
        assert hand.claim(1) and hand.do() == "ok"
    chunks = run.chunks("updates", timeout=20)
    next(chunks)
    client.redis.restore(KEYS.log("t"), 0, old, replace=True)
    with pytest.raises(Rewound, match="events"):
        next(chunks)


def test_a_thread_that_was_deleted_or_made_anew_is_told(client: Client, redis_url: str) -> None:
    events = done(client, redis_url, telling(), run_id="r")
    run = client.run("t")
    client.delete("t")
    assert not client.redis.exists(KEYS.live("t", "r")), "what was said goes with the thread"
    for again in (False, True):
        if again:
            done(client, redis_url, telling(), run_id="other")
        for after in ("", events[3].cursor, events[-1].cursor):
            back = run.events(ALL, after=after, timeout=10)
            event = next(back)
            assert (event.mode, event.chunk) == ("rewound", {"to": ""})
            with pytest.raises(UnknownRun):
                next(back)


def test_a_trim_is_told_and_what_is_left_is_read(
    client: Client, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everstep_scheduler.steps.settling.SNAPSHOT_EVERY", 2)
    events = done(client, redis_url, telling(), run_id="r1")
    for i in (2, 3):
        done(client, redis_url, telling(), run_id=f"r{i}")
    run = client.run("t", "r1")
    log = client.log_store
    whole = [entry.id for entry in client.log("t")]
    ours = [entry.id for entry in client.log("t") if entry.text("run") == "r1"]
    mark = log._floor("t")  # pyright: ignore[reportPrivateUsage]
    middle = min((x for x in whole if e.entry_id(x) >= e.entry_id(ours[len(ours) // 2])), key=e.entry_id)
    client.redis.xtrim(
        KEYS.log("t"), minid=middle, approximate=False
    )  # in the midst of the run: its end is still there
    back = list(run.events("updates", timeout=10))
    assert back[0].mode == "trimmed" and back[0].chunk == {"below": middle}
    assert told(back, "updates")[-1] == {"last": {"count": 9}}
    with pytest.raises(Trimmed):
        list(run.chunks("updates", timeout=10))
    assert seen(list(run.events(ALL, after=events[-2].cursor, timeout=10)))[-1] == seen(events)[-1], "not concerned"
    log.trim("t", mark)
    back = list(run.events("updates", timeout=10))
    assert [x.mode for x in back] == ["trimmed"], "its end is gone as well"


# -- the writer


def said(i: int, size: int = 1, token: str = "T", attempt: int = 1, n: int = 1, task: str = "p0") -> Said:
    return Said("custom", n, task, f"id of {task}", "node", attempt, token, i, b"x" * size)


class Away:
    """A Redis that does not answer until it is let."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.answers = threading.Event()
        self.asked = threading.Event()

    def pipeline(self, **more: Any) -> Any:
        self.asked.set()
        if not self.answers.is_set():
            raise redis.ConnectionError("away")
        return self.real.pipeline(**more)

    def close(self) -> None: ...


def test_a_full_buffer_drops_the_oldest_and_never_waits(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BUFFER_MAX", 10)
    away = Away(client.redis)
    writer = LiveWriter(lambda: away, KEYS)
    writer.tell("t", "r", said(1))
    assert away.asked.wait(10)
    for i in range(2, 101):
        writer.tell("t", "r", said(i))  # returns though nobody answers
    assert writer.dropped == 89
    away.answers.set()
    writer.close()
    rows = [Said.read(fields) for _, fields in client.redis.xrange(KEYS.live("t", "r"))]
    assert [x.i for x in rows] == [1, *range(91, 101)]
    ledger = Ledger("r")
    notices = [notice for row in rows for notice in ledger.hear(row)]
    assert [(x.mode, x.chunk["lost"]) for x in notices if x.chunk] == [("gap", 89)]


def test_a_live_stream_is_bounded_by_count_and_by_bytes_and_expires(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "KEPT_MAX", 500)
    writer = LiveWriter(lambda: client.redis, KEYS)
    key = KEYS.live("t", "r")
    for i in range(1, 2001):
        writer.tell("t", "r", said(i))
    wait_for(lambda: any(f[b"i"] == b"2000" for _, f in client.redis.xrevrange(key, count=1)), 10, "all is written")
    assert 500 <= client.redis.xlen(key) <= 700
    assert 0 < client.redis.ttl(key) <= live.KEPT_S
    monkeypatch.setattr(live, "KEPT_BYTES", 100_000)
    for i in range(2001, 2401):
        writer.tell("t", "r", said(i, 10_000))
    writer.close()
    assert client.redis.xlen(key) <= 200


def test_bytes_that_wait_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BUFFER_BYTES", 100_000)
    away = Away(client.redis)
    writer = LiveWriter(lambda: away, KEYS)
    for i in range(1, 101):
        writer.tell("t", "r", said(i, 10_000))
    assert writer.dropped >= 80
    away.answers.set()
    writer.close()


@pytest.mark.parametrize("kind", ["inline", "workers"])
def test_what_can_not_be_told_fails_the_node_on_both_engines(kind: str, client: Client, redis_url: str) -> None:
    for value, error in ((object(), UnknownType), ("x" * 300_000, TooLarge)):

        def node(state: State, value: Any = value, error: Any = error) -> State:
            with pytest.raises(error):
                get_stream_writer()(value)
            get_stream_writer()("fine")
            return {"count": 1}

        made = StateGraph(State).add_node("node", lambda state, node=node: node(state)).add_edge(START, "node")
        if kind == "inline":
            assert list(made.compile(name="g").stream({"count": 0}, stream_mode="custom")) == ["fine"]
        else:
            with working(redis_url, ("g", made)):
                assert list(client.graph("g").stream({"count": 0}, stream_mode="custom", timeout=10)) == ["fine"]


def test_an_inline_run_on_redis_is_heard_elsewhere_too(client: Client, redis_url: str) -> None:
    graph = telling(fails=1).compile(checkpointer=RedisSaver(redis_url), name="g")
    config = {"configurable": {"thread_id": "t"}}
    inline = list(graph.stream({"count": 0}, config, stream_mode=["custom", "updates"]))
    elsewhere = list(client.run("t").events(["custom", "updates"], timeout=10))
    assert [x for x in seen(elsewhere) if x[0] != "superseded"] == inline
    assert [x.mode for x in elsewhere].count("superseded") == 1


def test_what_an_attempt_says_after_its_timeout_is_not_told() -> None:
    late = threading.Event()

    def stuck(state: State) -> State:
        writer = get_stream_writer()
        writer("in time")
        late.wait(10)
        writer("too late")
        return {"count": 1}

    builder = StateGraph(State)
    builder.add_node("stuck", stuck, timeout=0.1)
    builder.add_edge(START, "stuck")
    chunks: list[Any] = []
    with pytest.raises(Exception, match="timeout"):
        for chunk in builder.compile(name="g").stream({"count": 0}, stream_mode="custom"):
            chunks.append(chunk)
    late.set()
    assert chunks == ["in time"]


# -- the ledger


def entry(n: int, k: int, kind: str, task: str = "p0", token: str = "T", told: int = 0, run: str = "r") -> e.Entry:
    raw = {"v": b"1", "kind": kind.encode(), "run": run.encode(), "task": task.encode(), "token": token.encode()}
    raw |= {"node": b"node", "attempt": b"1"} | ({"told": str(told).encode()} if told else {})
    return e.Entry(n, k, raw)


LEDGER: dict[str, tuple[list[Any], list[Any]]] = {
    "in order": ([said(1), said(2), entry(2, 0, "checkpoint", told=2)], ["T1", "T2"]),
    "twice, as after a lost reply": ([said(1), said(1), said(2), said(1)], ["T1", "T2"]),
    "a hole": ([said(1), said(4)], ["T1", "gap 2", "T4"]),
    "the beginning is gone": ([said(3)], ["gap 2", "T3"]),
    "the end never came": ([said(1), entry(1, 1, "task_done", told=3), said(2)], ["T1", "gap 2"]),
    "none of it came": ([entry(1, 1, "task_done", told=3)], ["gap 3"]),
    "another attempt": ([said(1), said(1, token="U", attempt=2)], ["T1", "superseded 1", "U1"]),
    "an earlier attempt speaks late": ([said(1, token="U", attempt=2), said(1)], ["U1"]),
    "given back and taken again, uncounted": ([said(1), said(1, token="U"), said(2)], ["T1", "superseded 1", "U1"]),
    "it failed": ([said(1), entry(1, 1, "task_failed"), said(2)], ["T1", "superseded 1"]),
    "it was lost": ([said(1), entry(1, 1, "task_lost"), said(2)], ["T1", "superseded 1"]),
    "another one is done": ([said(1), entry(1, 1, "task_done", token="U")], ["T1", "superseded 1"]),
    "two tasks": ([said(1), said(1, token="U", task="p1"), said(2)], ["T1", "U1", "T2"]),
    "the step is over": ([said(1), entry(2, 0, "checkpoint", task="join"), said(2)], ["T1"]),
    "another run's failure": ([said(1), entry(1, 1, "task_failed", run="x"), said(2)], ["T1", "T2"]),
}


@pytest.mark.parametrize("name", LEDGER)
def test_the_ledger_keeps_attempts_apart(name: str) -> None:
    given, wanted = LEDGER[name]
    ledger = Ledger("r")
    found: list[str] = []
    for each in given:
        for notice in ledger.hear(each) if isinstance(each, Said) else ledger.close(each):
            chunk = notice.chunk
            if chunk is None:
                found.append(f"{notice.said.token}{notice.said.i}")
            else:
                found.append(f"{notice.mode} {chunk.get('lost', chunk['attempt'])}")
    assert found == wanted


def test_what_is_no_cursor_is_refused(client: Client, redis_url: str) -> None:
    done(client, redis_url, telling())
    for bad in ("17", "1-1/x/0//0-0", "a/b/c/d/e"):
        with pytest.raises(InvalidInput, match="no cursor"):
            list(client.run("t").events("updates", after=bad))
