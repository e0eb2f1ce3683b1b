"""Limits: how many tasks of a node may run at once, and how many may begin within a time, over the whole fleet. Pure.

    add_node("call_api", fn, limit=Limit(5, rate=(100, 60)))      at most 5 at once, and 100 begun in any 60 seconds
    add_node("sync", fn, limit=Limit(1, per_key=True))            one at once for each limit_key

What a limit keeps waiting holds no slot of a worker: it stands in a line, and who lets go lets the next one in. What a
key is, a run says as plain data, `config={"configurable": {"limit_key": "tenant-7"}}`: scripts can count by it, and no
code of a user is asked. It goes down to the runs that the run's nodes call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from everstep_checkpoint.errors import GraphError, InvalidInput

LIMIT_KEY = "limit_key"
KEY_MAX = 200
COUNT_MAX = 10_000
PER_MAX_S = 86_400.0


@dataclass(frozen=True)
class Limit:
    """What a node's tasks are held to, counted over all workers and inline callers of a namespace.

    `concurrency`: how many may run at once, 1 to 10,000; None: any number. An attempt counts from its lease to its
    outcome; if its process dies, until its lease is swept.
    `rate`: (count, seconds): so many attempts may begin within any so many seconds, retries included: 1 to 10,000 in
    at most a day; None: any number.
    `per_key`: counted for each `limit_key` by itself; runs that say none share one.
    `name`: nodes whose limits have the same name, in whatever graphs, are counted together; by default a limit is its
    node's own. Raises GraphError.
    """

    concurrency: int | None = None
    rate: tuple[int, float] | None = None
    per_key: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        if self.concurrency is None and self.rate is None:
            raise GraphError("A Limit says no number", fix="Limit(5), Limit(rate=(100, 60)), or both.")
        if self.concurrency is not None:
            _count(self.concurrency, "concurrency")
        if self.rate is not None:
            _rate(self.rate)
        if self.name is not None and not _is_name(self.name):
            raise GraphError(f"{self.name!r} can't be a limit's name", fix=f"1 to {KEY_MAX} printable ones, no '|'.")

    def gate(self, graph: str, node: str) -> str:
        """What is counted together, but for keys."""
        return self.name or f"{graph}:{node}"

    def stored(self, graph: str, node: str) -> dict[str, Any]:
        """As the scripts read it: `id`, `c` at once, `n` within `ms`, `k` 1 if per key."""
        said: dict[str, Any] = {"id": self.gate(graph, node)}
        said |= {"c": self.concurrency} if self.concurrency is not None else {}
        said |= {"n": self.rate[0], "ms": max(round(self.rate[1] * 1000), 1)} if self.rate is not None else {}
        return said | ({"k": 1} if self.per_key else {})


Limits = Mapping[str, Limit]


def limit_of(node: str, given: int | Limit | None) -> Limit | None:
    """What `add_node(limit=...)` takes: a plain number is how many at once. Raises GraphError."""
    if given is None or isinstance(given, Limit):
        return given
    if isinstance(given, bool) or not isinstance(given, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GraphError(f"{given!r} is no limit", node=node, fix="A number, at once; or a Limit.")
    return Limit(given)


def limit_key(configurable: Mapping[str, Any]) -> str:
    """What a run is counted by where limits are per key, as its config says it; empty: nothing. Raises InvalidInput."""
    given = configurable.get(LIMIT_KEY)
    if given is None:
        return ""
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise InvalidInput(f"a {LIMIT_KEY} can't be {type(given).__name__}", fix="give a text, or a whole number")
    text = str(given)
    if len(text) > KEY_MAX or not text.isprintable():
        raise InvalidInput(f"a {LIMIT_KEY} has at most {KEY_MAX} printable characters", fix="use a hash of it")
    return text


def check_named(name: str, limits: Mapping[tuple[str, str], Limit]) -> None:
    """Limits of a graph that share a name must be the same limit. `limits`: (graph, node) -> its limit. Raises
    GraphError."""
    known: dict[str, Limit] = {}
    for (_, node), each in limits.items():
        if each.name is not None and known.setdefault(each.name, each) != each:
            raise GraphError(
                f"Two limits of {name!r} have the name {each.name!r} and other numbers", node=node, fix="Use one Limit."
            )


def _is_name(name: str) -> bool:
    return 0 < len(name) <= KEY_MAX and name.isprintable() and "|" not in name


def _count(given: object, what: str) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= COUNT_MAX:
        raise GraphError(f"A limit's {what} can't be {given!r}", fix=f"A whole number, 1 to {COUNT_MAX:,}.")


def _rate(given: object) -> None:
    pair = given if isinstance(given, tuple) and len(given) == 2 else (None, None)  # pyright: ignore
    count, seconds = pair[0], pair[1]  # pyright: ignore
    good = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds <= PER_MAX_S
    if not good:
        raise GraphError(f"A limit's rate can't be {given!r}", fix="(count, seconds), at most a day: (100, 60).")
    _count(count, "rate")  # pyright: ignore
