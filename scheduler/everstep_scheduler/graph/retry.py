"""Whether a failed attempt is tried again, and when. Pure: the caller brings the dice and keeps the time.

Defaults and rules are LangGraph's (`langgraph.types.RetryPolicy`, `langgraph._internal._retry`), with one
repair: LangGraph looks at the truth value of a `requests` response, which is false for every error, and so
retries 4xx too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from everstep_checkpoint.errors import GraphError

NOT_RETRIED = (
    ValueError,
    TypeError,
    ArithmeticError,
    ImportError,
    LookupError,
    NameError,
    SyntaxError,
    RuntimeError,
    ReferenceError,
    StopIteration,
    StopAsyncIteration,
    OSError,
)


def default_retry_on(error: BaseException) -> bool:
    """Connection errors, HTTP 5xx: yes. Errors of the program itself, and OSError: no. All else: yes."""
    if isinstance(error, ConnectionError):
        return True
    status = _http_status(error)
    if status is not None:
        return 500 <= status < 600
    return _is(error, "requests", "HTTPError") or not isinstance(error, NOT_RETRIED)


def _http_status(error: BaseException) -> int | None:
    """The status of an httpx or requests error, without importing either: who raised one has imported it."""
    if not (_is(error, "httpx", "HTTPStatusError") or _is(error, "requests", "HTTPError")):
        return None
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is(error: BaseException, module: str, name: str) -> bool:
    cls: Any = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(error, cls)


RetryOn = type[Exception] | Sequence[type[Exception]] | Callable[[Exception], bool]


@dataclass(frozen=True)
class RetryPolicy:
    """When and how often a node is tried again. Intervals in seconds; `max_attempts` includes the first.

    `retry_on`: an exception class, several, or a function that says yes or no.
    """

    initial_interval: float = 0.5
    backoff_factor: float = 2.0
    max_interval: float = 128.0
    max_attempts: int = 3
    jitter: bool = True
    retry_on: RetryOn = default_retry_on

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or min(self.initial_interval, self.backoff_factor, self.max_interval) < 0:
            raise GraphError(
                f"{self} can't be kept",
                fix="max_attempts is at least 1; intervals and factor are not negative.",
            )
        if not _is_condition(self.retry_on):
            raise GraphError(
                "retry_on must be an exception class, a list of them, or a function",
                fix=f"Got {self.retry_on!r}.",
            )

    def matches(self, error: Exception) -> bool:
        """Whether this policy is about such an error."""
        if isinstance(self.retry_on, type):
            return isinstance(error, self.retry_on)
        if callable(self.retry_on):
            return bool(self.retry_on(error))
        return isinstance(error, tuple(self.retry_on))

    def interval(self, failures: int) -> float:
        """Seconds before the next attempt, without jitter."""
        try:
            grown = self.initial_interval * self.backoff_factor ** (failures - 1)
        except OverflowError:
            return self.max_interval
        return min(self.max_interval, grown)


def next_delay(policies: Sequence[RetryPolicy], error: Exception, failures: int, rand: float) -> float | None:
    """Seconds until the next attempt, or None: don't retry. The first policy that matches decides.

    `failures` counts this failure; `rand` is a number in [0, 1) for the jitter.
    """
    assert failures >= 1
    policy = next((each for each in policies if each.matches(error)), None)
    if policy is None or failures >= policy.max_attempts:
        return None
    return policy.interval(failures) + (rand if policy.jitter else 0.0)


def _is_condition(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_exception(each) for each in value)  # pyright: ignore[reportUnknownVariableType]
    return _is_exception(value) if isinstance(value, type) else callable(value)


def _is_exception(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)
