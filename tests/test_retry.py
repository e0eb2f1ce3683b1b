"""Promises of retry.py, with LangGraph's default rule as the oracle."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import requests
from langgraph.types import RetryPolicy as TheirRetryPolicy

from everstep_checkpoint.errors import GraphError, InvalidUpdateError, NodeTimeoutError
from everstep_scheduler.graph.retry import RetryPolicy, default_retry_on, next_delay

their_default_retry_on: Any = TheirRetryPolicy().retry_on


class Custom(Exception):
    pass


def http(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://there")
    return httpx.HTTPStatusError("odd", request=request, response=httpx.Response(status, request=request))


def old_http(status: int | None) -> requests.HTTPError:
    response = None
    if status is not None:
        response = requests.Response()
        response.status_code = status
    return requests.HTTPError("odd", response=response)


ERRORS: list[Exception] = [
    ConnectionError(),
    ConnectionResetError(),
    http(500),
    http(503),
    http(404),
    old_http(502),
    old_http(None),
    ValueError(),
    TypeError(),
    ZeroDivisionError(),
    ImportError(),
    KeyError(),
    NameError(),
    SyntaxError(),
    RuntimeError(),
    NotImplementedError(),
    ReferenceError(),
    StopIteration(),
    OSError(),
    TimeoutError(),
    asyncio.QueueEmpty(),
    Custom(),
    EOFError(),
    AssertionError(),
    Exception(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: repr(error)[:30])
def test_errors_are_retried_by_default_as_in_langgraph(error: Exception) -> None:
    assert default_retry_on(error) is their_default_retry_on(error)


def test_a_4xx_of_requests_is_not_retried_where_langgraph_is_wrong() -> None:
    assert their_default_retry_on(old_http(404)) is True
    assert default_retry_on(old_http(404)) is False


def test_a_timeout_is_retried_and_a_wrong_update_is_not() -> None:
    assert default_retry_on(NodeTimeoutError("over")) is True
    assert default_retry_on(InvalidUpdateError("odd")) is False


def test_the_defaults_are_langgraphs() -> None:
    ours, theirs = RetryPolicy(), TheirRetryPolicy()
    for name in ("initial_interval", "backoff_factor", "max_interval", "max_attempts", "jitter"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize(
    ("policy", "failures", "rand", "delay"),
    [
        (RetryPolicy(), 1, 0.25, 0.75),
        (RetryPolicy(), 2, 0.0, 1.0),
        (RetryPolicy(), 3, 0.0, None),
        (RetryPolicy(jitter=False), 2, 0.9, 1.0),
        (RetryPolicy(max_attempts=1), 1, 0.0, None),
        (RetryPolicy(max_attempts=20, jitter=False), 8, 0.0, 64.0),
        (RetryPolicy(max_attempts=20, jitter=False), 10, 0.0, 128.0),
        (RetryPolicy(max_attempts=10_000), 5_000, 0.5, 128.5),
        (RetryPolicy(initial_interval=0, jitter=False), 2, 0.5, 0.0),
        (RetryPolicy(retry_on=KeyError), 1, 0.0, None),
        (RetryPolicy(retry_on=[KeyError, Custom]), 1, 0.0, 0.5),
        (RetryPolicy(retry_on=(KeyError,)), 1, 0.0, None),
        (RetryPolicy(retry_on=lambda error: isinstance(error, Custom)), 1, 0.0, 0.5),
        (RetryPolicy(retry_on=lambda error: False), 1, 0.0, None),
    ],
)
def test_the_next_attempt_is_due(policy: RetryPolicy, failures: int, rand: float, delay: float | None) -> None:
    assert next_delay([policy], Custom(), failures, rand) == delay


def test_the_first_policy_that_matches_decides() -> None:
    strict = RetryPolicy(retry_on=Custom, max_attempts=1)
    patient = RetryPolicy(retry_on=Exception, max_attempts=9, jitter=False)
    assert next_delay([strict, patient], Custom(), 1, 0.0) is None
    assert next_delay([strict, patient], KeyError(), 1, 0.0) == 0.5
    assert next_delay([], KeyError(), 1, 0.0) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"initial_interval": -1.0},
        {"retry_on": ["KeyError"]},
        {"retry_on": int},
        {"retry_on": 3},
    ],
)
def test_a_policy_that_can_not_be_kept_is_refused(wrong: Any) -> None:
    with pytest.raises(GraphError):
        RetryPolicy(**wrong)
