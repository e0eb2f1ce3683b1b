"""What counts as a recovery: journal, faults and logs by hand, each a case that chaos has met."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everstep.chaos.checking.checker import case_of
from everstep.chaos.checking.evidence import Dump, Evidence, Ran, Stream, Struck
from everstep.chaos.takeovers import Recovery, long_ones, percentile, recoveries, times
from everstep_checkpoint.entries import idempotency_key

T, R, LEASE_S = "t", "r", 2.0
Told = tuple[float, str, dict[str, str]]
KEY = idempotency_key("born", 1, "d1", "p0")
KILL = Struck(10.0, 10_000, "kill", (7,))
POOL = replace(KILL, kind="pool")


def ran(at: float, pid: int = 7, phase: str = "in", key: str = KEY, attempt: int = 1) -> Ran:
    return Ran(T, R, 1, key, "gather", attempt, pid, phase, at, "", 0)


def fact(kind: str, at: float, **more: str) -> Told:
    """A fact of the task, at a time by the journal's clock, which is Redis' here."""
    of_task = {"task": "p0", "attempt": "1"} if kind.startswith("task") else {}
    return at, kind, {**of_task, **more}


def lost(at: float, pid: int = 7, error: str = "its process died") -> Told:
    return fact("task_lost", at, by=f"everstep.host.{pid}.abc", error=error)


def stream(facts: tuple[Told, ...], birth: str = "born") -> Stream:
    """A thread whose first step has one task."""
    said = [
        ("0-1", {"kind": "run_started", "at": "1", "birth": birth}),
        ("1-0", {"kind": "checkpoint", "at": "2", "digest": "d1", "next": '[["p0","gather","chaos",0]]'}),
        *((f"1-{k}", {"kind": kind, "at": str(int(at * 1000)), **more}) for k, (at, kind, more) in enumerate(facts, 1)),
    ]
    rows = tuple(
        (row, {name: value.encode() for name, value in {"v": "1", "run": R, **each}.items()}) for row, each in said
    )
    return Stream(rows)


def found(
    ran: list[Ran],
    struck: list[Struck],
    *facts: Told,
    others: dict[str, Stream] | None = None,
) -> list[Recovery]:
    dump = Dump({T: stream(facts), **(others or {})})
    case = case_of(Evidence((), tuple(ran), tuple(struck), dump, int(LEASE_S * 1000)))
    assert not any(story.broken for story in case.stories.values())
    return recoveries(case)


def took(some: list[Recovery]) -> dict[str, list[float]]:
    return {kind: [round(each, 3) for each in each_kind] for kind, each_kind in times(some).items()}


# --- what counts


def test_a_recovery_lasts_from_the_kill_until_the_task_begins_again() -> None:
    lines = [
        ran(1.0), ran(1.0, key="b"), ran(1.5, phase="out", key="b"), ran(1.0, 8, key="c"),
        ran(10.25, 8), ran(10.5, 8, "out"), ran(1.75, key="d"),
    ]  # fmt: skip
    some = found(lines, [KILL, Struck(11.0, 11_000, "cut")], lost(10.1))
    assert took(some) == {"kill": [0.25]}, "b had ended, c was another's, d never began again"
    assert some[0].log == ("task_lost +0.1 s",) and some[0].key == KEY


def test_of_a_task_that_no_log_knows_any_more_the_journal_alone_tells() -> None:
    assert took(found([ran(9.0, key="gone"), ran(10.5, 8, key="gone")], [KILL])) == {"kill": [0.5]}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((fact("task_paused", 9.1), fact("run_rested", 9.1, status="interrupted")), (fact("task_answered", 62.0),)),
        ((fact("task_failed", 9.1, retry_at="9150"),), ()),
        ((lost(9.1, error="its lease ran out"),), ()),
        ((fact("run_cancel_asked", 9.1), fact("run_rested", 9.1, status="cancelled")), ()),
        ((), (fact("run_cancel_asked", 11.0), fact("run_rested", 11.0, status="cancelled"))),
        ((), (fact("task_paused", 10.1),)),
    ],
    ids=["asked", "failed", "taken over", "cancelled", "cancelled later", "asked as it was killed"],
)
def test_what_the_killed_process_no_longer_held_is_no_recovery(
    before: tuple[Told, ...], after: tuple[Told, ...]
) -> None:
    """Nodes that ask, fail or are fenced leave no line at their end. A question that nobody answered for 52 seconds,
    for its asker had died meanwhile, was a recovery of 52 seconds once."""
    assert found([ran(9.0), ran(62.2, 8, attempt=2)], [KILL], *before, *after) == []


def test_an_attempt_that_left_no_line_yet_counts_if_the_log_calls_it_lost() -> None:
    facts = (fact("task_failed", 9.1, retry_at="9150"), lost(10.1))
    assert took(found([ran(9.0), ran(10.2, 8, attempt=3)], [KILL], *facts)) == {"kill": [0.2]}


def test_an_attempt_that_a_failover_took_back_counts_from_that_failover() -> None:
    failover = Struck(9.5, 9_500, "failover", since=8.8)
    lines = [ran(9.0), ran(12.0, 8)]
    assert took(found(lines, [failover, KILL])) == {"failover": [2.5]}
    assert took(found(lines, [failover, KILL], lost(11.9))) == {"kill": [2.0]}, "it held the task of the new master"
    assert took(found([ran(8.5), ran(12.0, 8)], [failover, KILL])) == {"kill": [2.0]}, "leased before that"
    assert took(found(lines, [KILL, replace(failover, at=10.5, since=10.2)])) == {"kill": [2.0]}, "a later one"


# --- the long ones


def test_a_long_one_says_what_befell_it_meanwhile() -> None:
    away = [Struck(7.5, 7_500, "index"), POOL, Struck(11.0, 11_000, "cut"), Struck(12.0, 12_000, "server")]
    some = found([ran(9.0), ran(17.0, 8)], away, lost(16.9, error="its lease ran out"))
    [said] = long_ones(some, LEASE_S)
    assert said["why"] == "held up by index -2.5 s, server +2.0 s"
    assert said["struck"] == ["index -2.5 s", "cut +1.0 s", "server +2.0 s"] and said["log"] == ["task_lost +6.9 s"]
    assert (said["took_s"], said["fault"], said["thread"], said["step"], said["key"]) == (7.0, "pool", T, 1, KEY)
    assert long_ones(some, 3.0) == [], "with a longer lease it is not long"


def test_one_that_nothing_held_up_is_unexplained() -> None:
    some = found([ran(9.0), ran(17.0, 8)], [POOL, Struck(11.0, 11_000, "cut")], lost(16.9))
    assert [each["why"] for each in long_ones(some, LEASE_S)] == [""]


def test_one_that_was_passed_over_is_unexplained_whatever_struck() -> None:
    other = stream((lost(14.0, 9, "its lease ran out"),), "another")
    some = found(
        [ran(9.0), ran(17.0, 8)], [POOL, Struck(10.5, 10_500, "server")], lost(16.9), others={"other": other}
    )  # fmt: skip
    assert [(each["passed"], each["why"]) for each in long_ones(some, LEASE_S)] == [(1, "")]


def test_what_is_parked_waits_for_its_version_and_is_in_no_percentile() -> None:
    some = found([ran(9.0), ran(34.0, 8)], [POOL], lost(12.0), fact("task_parked", 12.5))
    assert times(some) == {}
    [said] = long_ones(some, LEASE_S)
    assert said["why"] == "no worker served its node" and said["log"] == ["task_lost +2.0 s", "task_parked +2.5 s"]


def test_tasks_that_waited_alike_are_told_once() -> None:
    one = Recovery("pool", 10.0, 7.0, "a", T, 1, "work", struck=("server +1.0 s",))
    [said] = long_ones([one, one._replace(key="b", took_s=7.5)], LEASE_S)
    assert (said["tasks"], said["key"], said["took_s"]) == (2, "b", 7.5)


def test_percentiles_are_of_what_was_measured() -> None:
    some = [each / 100 for each in range(1, 101)]
    assert (percentile(some, 50), percentile(some, 99), percentile(some, 100)) == (0.5, 0.99, 1.0)
    assert percentile([3.0], 99) == 3.0 and percentile([], 50) is None
