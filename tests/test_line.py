"""Promises of line.py: logs that are read over connections of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.log import Span
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.moves.connection import connect
from everstep_workers.line import Line, LineLog

KEYS = Keys(rq="rq")


class Lines:
    """Makes lines, and knows them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.made: list[Line] = []

    def __call__(self) -> Line:
        self.made.append(Line(self.url))
        return self.made[-1]


@pytest.fixture
def lines(redis_url: str) -> Iterator[Lines]:
    lines = Lines(redis_url)
    yield lines
    for line in lines.made:
        line.close()


@pytest.fixture
def log(redis_url: str, client: redis.Redis, lines: Lines) -> LineLog:
    plain = RedisLog(client, KEYS)
    for i in range(20):
        plain.append(f"t{i}", [e.fact("run_started", f"r{i}", birth=f"birth {i}", record=e.wrap(b"\x80"))], None)
    return LineLog(connect(redis_url), lines, KEYS)


def test_what_is_read_over_a_line_is_what_the_log_says(log: LineLog, client: redis.Redis) -> None:
    plain = RedisLog(client, KEYS)
    client.rpush(KEYS.log("odd"), "no stream")
    client.xadd(KEYS.log("junk"), {"v": "1"}, "0-1")
    spans = [Span("t0"), Span("t1", "-", "0-9", 5, True), Span("nobody"), Span("odd"), Span("junk")]
    assert log.read_all(spans) == plain.read_all(spans) == [plain.read("t0"), plain.read("t1"), [], None, None]
    assert log.read("t2") == plain.read("t2")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        log.read("odd")


def test_each_reader_gets_its_own_pages_and_lines_are_used_again(log: LineLog, lines: Lines) -> None:
    failed = list[str]()

    def reads(i: int) -> None:
        for _ in range(50):
            read = [*(log.read_all([Span(f"t{i}"), Span(f"t{i + 1}")])), log.read(f"t{i}")]
            if [page[0].text("run") for page in read if page] != [f"r{i}", f"r{i + 1}", f"r{i}"]:
                failed.append(f"t{i}: {read}")

    threads = [threading.Thread(target=reads, args=(i,)) for i in range(0, 16, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(lines.made) <= len(threads)


def test_a_line_that_broke_is_told_and_connects_anew(log: LineLog, client: redis.Redis, lines: Lines) -> None:
    log.read("t0")
    untyped: Any = client
    untyped.client_kill_filter(_type="normal", skipme=True)
    assert log.read_all([Span("t0"), Span("t1")]) == [None, None], "each is read alone then, and says why"
    assert [page and page[0].text("run") for page in log.read_all([Span("t0"), Span("t1")])] == ["r0", "r1"]
    untyped.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(redis.RedisError):
        log.read("t0")
    assert [entry.text("run") for entry in log.read("t0")] == ["r0"]
    assert len(lines.made) == 1


def test_pages_come_when_they_are_needed_and_a_request_that_nobody_waits_for_keeps_no_line(
    log: LineLog, lines: Lines
) -> None:
    first, second = log.ask([Span("t0"), Span("t1")]), log.ask([Span("t2"), Span("t3")])
    assert len(lines.made) == 2, "each request under way has a line"
    assert [page and page[0].text("run") for page in second()] == ["r2", "r3"]
    assert (
        [page and page[0].text("run") for page in first()]
        == ["r0", "r1"]
        == [page and page[0].text("run") for page in first()]
    )
    dropped = log.ask([Span("t4"), Span("t5")])
    del dropped
    assert [page and page[0].text("run") for page in log.read_all([Span("t6"), Span("t7")])] == ["r6", "r7"]
    assert len(lines.made) == 2
