"""The table of moves: each case runs on `LogMoves` and on `RedisMoves`, and the logs must be equal.

A case moves bare tasks, without a graph: what is decided is who may do what, and what the log then says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fakeredis
import pytest
import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.log import Head, Log, MemoryLog
from everstep_checkpoint.redislog import RedisLog
from everstep_scheduler.inline.logmoves import LogMoves
from everstep_scheduler.moves.contract import (
    Answered,
    Branch,
    Caller,
    Commanded,
    Commit,
    Lease,
    Moves,
    Offer,
    RunKind,
    Start,
    Started,
)
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from servers import wait_for

THREAD = "t"
BIRTH = "b" * 22


@dataclass
class Stage:
    """One thread, and a worker with a hand for every move."""

    moves: Moves
    log: Log
    owner: str = "w1"
    held: list[Lease] = field(default_factory=list[Lease])
    run_status: str = ""

    def offer(self, count: int = 1) -> Offer:
        return Offer(self.owner, tuple(new_id() for _ in range(count)), lease_ms=60_000, thread=THREAD)

    def start(
        self,
        run: str = "r1",
        kind: RunKind = "input",
        sum: str = "s",
        tokens: int = 1,
        mode: Any = "enqueue",
        answers: tuple[tuple[str, str], ...] = (),
        at: tuple[int, str] | None = None,
        thread: str = THREAD,
        command: Commanded | None = None,
        over: str = "",
        caller: Caller | None = None,
    ) -> Started:
        fields: e.Fields = {
            "run": run,
            "kind_of_run": kind,
            "task": "start",
            "node": "__start__",
            "graph": "g",
            "queue": "g",
        }
        if command is not None:
            fields["input"] = e.pack_writes([("n", b"\x01")] if command.updates else [])
        task = "update" if kind == "update" else "start"
        started = self.moves.start(
            Start(
                thread,
                run,
                kind,
                "g",
                "g",
                sum,
                fields,
                task=task,
                mode=mode,
                at=at,
                command=command,
                over=over,
                answers=tuple(Answered(name, question, e.wrap(b"\x01")) for name, question in answers),
            ),
            self.offer(tokens),
            caller,
        )
        self.held.extend(started.leases)
        return started

    def take(self, task: str) -> Lease:
        lease = next(x for x in self.held if x.task == task)
        self.held.remove(lease)
        return lease

    def claim(self, count: int = 1) -> list[str]:
        answer = self.moves.claim(self.offer(count))
        self.held.extend(answer.leases)
        return [x.task for x in answer.leases]

    def close(self, lease: Lease, *tasks: str, step: int = 0, stop: Any = "", count: int = 1) -> tuple[str, list[str]]:
        """Commit the next checkpoint with these PULL tasks."""
        rows = tuple((f"p{i}", node, "g", 0) for i, node in enumerate(tasks))
        made = e.checkpoint(
            lease.digest, lease.n + 1, source="loop", step=step, graph="g@1", run=lease.run, task=lease.task,
            token=lease.token, next=json.dumps(rows), delta=e.wrap(b"\x80"),
        )  # fmt: skip
        return self.commit(
            Commit(lease, "next", (made,), (lease.n + 1, str(made["digest"]), step), rows, stop=stop), count
        )

    def done(self, lease: Lease, count: int = 1) -> tuple[str, list[str]]:
        fact = e.summed(
            e.fact(
                "task_done", lease.run, task=lease.task, token=lease.token, node=lease.node, writes=e.pack_writes([])
            )
        )
        return self.commit(Commit(lease, "done", (fact,)), count)

    def fail(self, lease: Lease, delay_ms: int = 0) -> tuple[str, list[str]]:
        fact = e.fact(
            "task_failed",
            lease.run,
            task=lease.task,
            token=lease.token,
            node=lease.node,
            error='{"type":"E","text":"x"}',
        )
        outcome: Any = "retry" if delay_ms else "failed"
        return self.commit(Commit(lease, outcome, (fact,), reason="E: x", delay_ms=delay_ms), 1)

    def handle(self, lease: Lease, count: int = 1) -> tuple[str, list[str]]:
        """Fail for good, with a handler that goes on."""
        said: e.Fields = {"task": lease.task, "token": lease.token, "node": lease.node, "handler": "h"}
        failed = e.fact("task_failed", lease.run, **said, error='{"type":"E","text":"x"}')
        added = e.fact("task_added", lease.run, task=f"h_{lease.task}", node="h", queue="g", timeout_s="7")
        return self.commit(Commit(lease, "handled", (failed, added), handler=("h", "g", 7)), count)

    def ask(self, lease: Lease, question: str, count: int = 1) -> tuple[str, list[str]]:
        """Pause with a question; all answers so far hold good."""
        said: e.Fields = {"task": lease.task, "token": lease.token, "node": lease.node, "question": question}
        fact = e.fact("task_paused", lease.run, **said, kept=lease.answers or None, asks=e.wrap(b"\x01"))
        return self.commit(Commit(lease, "paused", (fact,), question=question, kept=lease.answers), count)

    def effect(self, lease: Lease, key: str) -> str:
        """Record an effect; its entry, empty if it was refused."""
        said: e.Fields = {"task": lease.task, "token": lease.token, "node": lease.node, "effect": key}
        ids = self.moves.part(lease, [e.fact("effect_done", lease.run, **said, result=e.wrap(b"\x01"))])
        return ids[0] if ids else ""

    def commit(self, commit: Commit, count: int) -> tuple[str, list[str]]:
        answer = self.moves.commit([(commit, self.offer(count))])[0]
        self.run_status = answer.run_status
        self.held.extend(answer.leases)
        return answer.status, [x.task for x in answer.leases]

    def branch(
        self, run: str = "b1", *tasks: str, at: tuple[int, str] | None = None, stop: Any = "", tokens: int = 1
    ) -> Started:
        """Put a checkpoint with these PULL tasks behind the head, or behind what the caller takes for it."""
        head = self.log.head(THREAD)
        n, digest = at or ((head.n, head.digest) if head is not None else (0, BIRTH))
        rows = tuple((f"p{i}", node, "g", 0) for i, node in enumerate(tasks))
        said: e.Fields = {"source": "fork", "step": 7, "graph": "g@1", "run": run, "next": json.dumps(rows)}
        parent = f"{THREAD} 1 {'p' * 43}"
        made = e.checkpoint("p" * 43, n + 1, **said, parent=parent, floor=f"{n}-1", birth=BIRTH, state=e.wrap(b"\x80"))
        fields: e.Fields = {"run": run, "kind_of_run": "fork", "task": "start", "node": "__start__", "graph": "g"}
        fields |= {"queue": "g", "step": 6}
        fields |= {"birth": BIRTH} if head is None else {"on": f"{head.n} {head.digest}"}
        start = Start(THREAD, run, "fork", "g", "g", "s", fields, mode="reject", base=6)
        put = Branch(start, (n, digest), made, (n + 1, str(made["digest"]), 7), rows, stop=stop)
        started = self.moves.branch(put, self.offer(tokens))
        self.held.extend(started.leases)
        return started

    def told(self) -> list[tuple[str, ...]]:
        """The log in words that do not depend on dice and clocks."""
        names = (
            "kind", "run", "task", "status", "of", "step", "node", "attempt", "error", "actor", "next", "question",
            "kept", "answer", "queue", "timeout_s", "parts", "tasks", "effect", "result",
        )  # fmt: skip
        return [(x.id, *(f"{name}={x.text(name)}" for name in names if name in x.raw)) for x in self.log.read(THREAD)]


def memory() -> Stage:
    log = MemoryLog()
    return Stage(LogMoves(log), log)


def on(client: redis.Redis) -> Stage:
    keys = Keys(rq="rq")
    client.set(keys.alive, "1")
    client.set(keys.rq_alive, "1")
    return Stage(RedisMoves(Scripts(client, keys)), RedisLog(client, keys))


@pytest.fixture(params=["memory", "fake", "server"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "memory":
        yield memory()
    elif request.param == "fake":
        yield on(fakeredis.FakeRedis(version=(7,)))
    else:
        yield on(request.getfixturevalue("client"))


def test_a_run_begins_with_its_start_task_and_ends_with_an_empty_next(stage: Stage) -> None:
    assert stage.start().status == "started"
    assert stage.close(stage.take("start"), "a") == ("ok", ["p0"])
    assert stage.close(stage.take("p0"), step=1) == ("ok", [])
    assert stage.log.read(THREAD)[-1].next == []
    assert stage.start("r1").run_status == "done"


def test_the_join_is_leased_to_the_last_sibling(stage: Stage) -> None:
    stage.start()
    assert stage.close(stage.take("start"), "a", "b", count=2) == ("ok", ["p0", "p1"])
    assert stage.done(stage.take("p1")) == ("ok", [])
    assert stage.done(stage.take("p0")) == ("ok", ["join"])
    assert stage.close(stage.take("join"), step=1) == ("ok", [])


def test_a_commit_sent_twice_is_told_already_and_gets_the_same_leases(stage: Stage) -> None:
    stage.start()
    lease, offer = stage.take("start"), stage.offer()
    rows = (("p0", "a", "g", 0),)
    made = e.checkpoint(
        lease.digest, 1, source="loop", step=0, graph="g@1", run="r1", token=lease.token, next=json.dumps(rows)
    )
    commit = Commit(lease, "next", (made,), (1, str(made["digest"]), 0), rows)
    first, second = (stage.moves.commit([(commit, offer)])[0] for _ in range(2))
    assert (first.status, second.status) == ("ok", "already")
    assert [x.token for x in first.leases] == [x.token for x in second.leases] == list(offer.tokens)
    assert len(stage.log.read(THREAD)) == 2


def test_a_zombie_is_fenced_and_leaves_no_trace(stage: Stage) -> None:
    stage.start()
    zombie = stage.take("start")
    stage.moves.release(stage.owner, [zombie.token], "lost")
    before = stage.told()
    assert stage.close(zombie, "a", count=0)[0] == "fenced"
    assert stage.told() == before
    assert stage.claim() == ["start"]
    assert stage.take("start").attempt == 2


def test_a_late_result_of_a_closed_step_is_refused(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    late = stage.held[0]
    stage.close(stage.take("p0"), "b", step=1)
    assert stage.close(late._replace(token=new_id()), "c", step=1)[0] == "fenced"


def test_a_released_attempt_is_not_counted(stage: Stage) -> None:
    stage.start()
    stage.moves.release(stage.owner, [stage.take("start").token], "job")
    assert stage.claim() == ["start"]
    assert stage.take("start").attempt == 1


def test_a_failed_task_rests_the_run_when_its_siblings_are_done(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    assert stage.fail(stage.take("p0")) == ("ok", [])
    assert stage.log.read(THREAD)[-1].kind == "task_failed"
    assert stage.done(stage.take("p1")) == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "failed"


def test_a_continue_run_repeats_only_what_failed(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    stage.done(stage.take("p1"))
    stage.fail(stage.take("p0"))
    assert stage.start("r2", "continue").status == "started"
    assert [x.task for x in stage.held] == ["p0"]
    assert stage.held[0].rec == "0-1"
    assert stage.done(stage.take("p0")) == ("ok", ["join"])


def test_a_retry_comes_back_when_it_is_due(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    assert stage.fail(stage.take("p0"), delay_ms=30) == ("ok", [])
    from servers import wait_for

    assert wait_for(stage.claim, 5, "the retry") == ["p0"]
    assert stage.take("p0").attempt == 2


def test_a_retry_without_a_delay_comes_back_at_once(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    lease = stage.take("p0")
    fact = e.fact("task_failed", lease.run, task=lease.task, token=lease.token, node=lease.node, retry_at=1)
    assert stage.commit(Commit(lease, "retry", (fact,), reason="E: x"), 1)[0] == "ok"
    wait_for(lambda: stage.held or stage.claim())
    assert stage.take("p0").attempt == 2


def test_a_commit_is_told_how_its_run_stands(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    assert stage.done(stage.take("p0"), 0) == ("ok", [])
    assert stage.run_status == "running", "a step that is still open is no end to look for"
    stage.start("r2", sum="s2")
    stage.done(stage.take("p1"))
    stage.close(stage.take("join"))
    assert stage.run_status == "rested", "another one has begun"
    stage.claim()
    stage.close(stage.take("start"))
    assert stage.run_status == "done"


def test_an_input_on_a_busy_thread_waits_and_starts_at_the_rest(stage: Stage) -> None:
    stage.start()
    assert stage.start("r2", sum="s2").status == "queued"
    assert stage.start("r3", sum="s3", mode="reject").status == "busy"
    stage.close(stage.take("start"))
    assert stage.log.read(THREAD)[-1].kind == "run_started"
    assert stage.claim() == ["start"] or [x.task for x in stage.held] == ["start"]
    lease = stage.take("start")
    assert (lease.run, lease.rec) == ("r2", "0-2")


def test_an_interrupting_input_stops_the_run_under_way_and_begins_at_once(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    stage.done(stage.take("p0"))
    zombie = stage.take("p1")
    assert stage.start("r2", sum="s2", mode="interrupt").status == "started"
    assert [(x[1], x[2], x[3:]) for x in stage.told()[-3:]] == [
        ("kind=run_cancel_asked", "run=r1", ("actor=run r2",)),
        ("kind=run_rested", "run=r1", ("status=cancelled", "actor=run r2")),
        ("kind=run_started", "run=r2", ("task=start", "step=0", "node=__start__", "queue=g")),
    ]
    assert stage.done(zombie, count=0)[0] == "fenced"
    assert stage.claim(5) == []  # nothing of the step that was given up comes back
    assert stage.close(stage.take("start"), step=1) == ("ok", [])
    assert [stage.start(run, sum=sum).run_status for run, sum in (("r1", "s"), ("r2", "s2"))] == ["cancelled", "done"]


def test_inputs_that_wait_keep_their_order_behind_one_that_interrupts(stage: Stage) -> None:
    stage.start()
    for run in ("r2", "r3"):
        assert stage.start(run, sum=run).status == "queued"
    assert stage.start("now", sum="now", mode="interrupt").status == "started"
    began: list[str] = []
    stage.take("start")  # of the run that was stopped
    while stage.held or stage.claim():
        lease = stage.take("start")
        began.append(lease.run)
        stage.close(lease, step=1)
    assert began == ["now", "r2", "r3"]


def test_an_interrupting_input_sent_twice_attaches_and_stops_nothing_more(stage: Stage) -> None:
    stage.start()
    assert stage.start("r2", sum="s2", mode="interrupt").status == "started"
    assert stage.start("r2", sum="s2", mode="interrupt").status == "attached"
    assert stage.start("r1", mode="interrupt").status == "attached"
    assert [x[1] for x in stage.told()].count("kind=run_rested") == 1


def test_a_run_whose_caller_left_is_taken_up_by_who_brings_its_input(stage: Stage) -> None:
    stage.start(caller=Caller("c1"))
    stage.moves.release(stage.owner, [stage.take("start").token], "job")
    stage.moves.leave("c1", ended=False)
    taken = stage.start("r2", caller=Caller("c2"))
    assert (taken.status, taken.run, taken.entry) == ("resumed", "r1", "0-1")
    assert stage.start("r2", caller=Caller("c2")).status == "resumed", "the same again"
    assert stage.start("r3", caller=Caller("c3", here=("c2",))).status == "queued", "now somebody drives it"
    assert stage.claim() == ["start"]


def test_another_input_or_a_client_s_takes_no_run_up(stage: Stage) -> None:
    stage.start(caller=Caller("c1"))
    stage.moves.leave("c1", ended=False)
    assert stage.start("r2", sum="other", caller=Caller("c2")).status == "queued"
    assert stage.start("r3").status == "queued"
    assert stage.start("r4", "continue", sum="c", caller=Caller("c4")).run == "r1"


def test_a_run_that_no_caller_began_is_never_taken_up(stage: Stage) -> None:
    stage.start()
    assert stage.start("r2", caller=Caller("c2")).status == "queued"
    assert stage.start("r3", "continue", caller=Caller("c3")).status == "busy"


def test_only_to_take_up_begins_nothing(stage: Stage) -> None:
    assert stage.start(caller=Caller("c1", only=True)).status == "nothing"
    assert stage.told() == []


def test_a_rollback_stops_the_run_that_was_looked_at_and_no_other(stage: Stage) -> None:
    assert stage.start("r1", mode="rollback", over="another").status == "moved"
    assert stage.start("r1", mode="rollback").status == "started"
    stage.close(stage.take("start"), "a")
    moved = stage.start("r2", sum="s2", mode="rollback")
    assert (moved.status, moved.run) == ("moved", "r1")
    assert stage.start("r2", sum="s2", mode="rollback", over="r1", at=(0, "")).status == "moved"
    before = stage.told()
    assert stage.start("r2", sum="s2", mode="rollback", over="r1").status == "started"
    assert [x[1] for x in stage.told()[len(before) :]] == [
        "kind=run_cancel_asked",
        "kind=run_rested",
        "kind=run_started",
    ]
    assert stage.start("r2", sum="s2", mode="rollback", over="r1").status == "attached"


def test_an_interrupting_input_on_a_thread_at_rest_is_an_input(stage: Stage) -> None:
    assert stage.start("r1", mode="interrupt").status == "started"
    stage.close(stage.take("start"))
    assert stage.start("r2", sum="s2", mode="interrupt").status == "started"
    assert not {"kind=run_cancel_asked", "kind=run_rested"} & {x[1] for x in stage.told()}


def test_the_same_run_id_attaches_and_another_input_conflicts(stage: Stage) -> None:
    stage.start()
    assert stage.start("r1").status == "attached"
    assert stage.start("r1", sum="other").status == "conflict"
    assert len(stage.log.read(THREAD)) == 1


def test_a_cancelled_run_takes_no_commit_and_can_be_continued(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    stage.done(stage.take("p0"))
    assert stage.moves.cancel(THREAD, actor="me") == "cancelled"
    assert stage.done(stage.take("p1"))[0] == "fenced"
    assert stage.moves.cancel(THREAD) == "rested"
    assert stage.start("r2", "continue", tokens=2).status == "started"
    assert [x.task for x in stage.held] == ["p1"]


def test_a_stopped_step_keeps_its_tasks_for_a_continue_run(stage: Stage) -> None:
    stage.start()
    assert stage.close(stage.take("start"), "a", stop="failed") == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "failed"
    assert stage.start("r2", "continue").status == "started"
    assert [x.task for x in stage.held] == ["p0"]


def test_a_new_input_discards_a_failed_step(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    zombie = stage.held[0]
    stage.fail(stage.take("p0"))
    assert stage.start("r2", sum="s2").status == "started"
    assert stage.close(stage.take("start"), "b", step=2) == ("ok", ["p0"])
    assert stage.close(zombie, step=9, count=0)[0] in ("fenced", "already")


def test_nothing_to_continue_is_said(stage: Stage) -> None:
    assert stage.start("r0", "continue").status == "nothing"
    stage.start()
    stage.close(stage.take("start"))
    assert stage.start("r2", "continue").status == "nothing"


def test_sends_are_named_before_they_mean_anything(stage: Stage) -> None:
    stage.start()
    lease = stage.take("start")
    part = e.summed(
        e.fact(
            "part",
            "r1",
            task="start",
            token=lease.token,
            tasks='[["w","g",0,3]]',
            sends=e.pack_sends([("w", b"\xc0")] * 3),
        )
    )
    [ref] = stage.moves.part(lease, [part])
    assert ref == "0-2"
    made = e.checkpoint(
        lease.digest,
        1,
        [str(part["sum"])],
        source="loop",
        step=0,
        graph="g@1",
        run="r1",
        token=lease.token,
        next=f'[["{ref}",3]]',
    )
    commit = Commit(lease, "next", (made,), (1, str(made["digest"]), 0), ((ref, 3),), {ref: '[["w","g",0,3]]'})
    assert stage.commit(commit, 2) == ("ok", ["s2_0", "s2_1"])
    assert stage.done(stage.take("s2_1")) == ("ok", ["s2_2"])
    assert stage.done(stage.take("s2_0")) == ("ok", [])
    assert stage.done(stage.take("s2_2")) == ("ok", ["join"])


def test_a_part_of_a_fenced_attempt_is_refused(stage: Stage) -> None:
    stage.start()
    lease = stage.take("start")
    part = e.fact("part", "r1", task="start", token="other", tasks="[]")
    assert stage.moves.part(lease._replace(token="other"), [part]) == []


def test_a_thread_can_be_deleted_at_rest_only(stage: Stage) -> None:
    stage.start()
    assert stage.moves.delete(THREAD) == "busy"
    stage.close(stage.take("start"))
    assert stage.moves.delete(THREAD) == "deleted"
    assert stage.moves.delete(THREAD) == "unknown"
    assert stage.log.head(THREAD) is None


def at_rest(stage: Stage, *tasks: str) -> None:
    """A run that came to its first checkpoint, and rests there with these tasks open."""
    stage.start()
    stage.close(stage.take("start"), *tasks, stop="failed" if tasks else "")


def test_a_branch_opens_its_tasks_behind_the_head_and_gives_up_what_was_open(stage: Stage) -> None:
    at_rest(stage, "a")
    started = stage.branch("b1", "x", "y", tokens=2)
    assert (started.status, [x.task for x in started.leases]) == ("started", ["p0", "p1"])
    lease = stage.held[0]
    assert (lease.n, lease.run, lease.node, lease.base, lease.width) == (2, "b1", "x", 6, 2)
    assert [x.id for x in stage.log.read(THREAD)][-2:] == ["1-2", "2-0"]
    assert stage.done(stage.take("p1")) == ("ok", [])
    assert stage.done(stage.take("p0")) == ("ok", ["join"])
    assert stage.close(stage.take("join"), step=8) == ("ok", [])


def test_a_branch_of_a_busy_thread_is_refused(stage: Stage) -> None:
    stage.start()
    before = stage.told()
    assert stage.branch("b1", "x").status == "busy"
    assert stage.told() == before


def test_a_branch_is_fenced_by_the_exact_head(stage: Stage) -> None:
    at_rest(stage)
    head = stage.log.head(THREAD)
    assert head is not None
    before = stage.told()
    for wrong in ((0, head.digest), (head.n, "q" * 43), (head.n + 1, head.digest)):
        assert stage.branch("b1", "x", at=wrong).status == "moved"
    assert stage.told() == before


def test_a_branch_that_rests_is_continued_from_there(stage: Stage) -> None:
    at_rest(stage)
    started = stage.branch("b1", "x", stop="interrupted")
    assert (started.status, started.run_status, started.leases) == ("started", "interrupted", ())
    assert stage.log.read(THREAD)[-1].text("status") == "interrupted"
    assert stage.start("r2", "continue").status == "started"
    lease = stage.take("p0")
    assert (lease.node, lease.n, lease.rec, lease.base) == ("x", 2, "1-1", 7)


def test_a_branch_with_nothing_to_do_is_done(stage: Stage) -> None:
    at_rest(stage, "a")
    assert stage.branch("b1").run_status == "done"
    assert stage.start("r2", "continue").status == "nothing"


def test_a_branch_sent_twice_is_there_once(stage: Stage) -> None:
    at_rest(stage)
    head = stage.log.head(THREAD)
    assert head is not None
    assert stage.branch("b1", "x").status == "started"
    length = len(stage.log.read(THREAD))
    again = stage.branch("b1", "x", at=(head.n, head.digest))
    assert (again.status, again.entry) == ("attached", "1-1")
    assert len(stage.log.read(THREAD)) == length


def test_a_branch_may_begin_a_thread(stage: Stage) -> None:
    assert stage.branch("b1", "x").status == "started"
    assert [x.id for x in stage.log.read(THREAD)] == ["0-1", "1-0"]
    lease = stage.take("p0")
    assert (lease.birth, lease.n) == (BIRTH, 1)
    assert stage.close(lease, step=8) == ("ok", [])


def test_whether_a_branch_would_pass_can_be_asked_without_a_trace(stage: Stage) -> None:
    at_rest(stage)
    head = stage.log.head(THREAD)
    assert head is not None
    start = Start(THREAD, "b1", "fork", "g", "g", "s", {}, base=6)
    before = stage.told()
    for after, status in (((head.n, head.digest), "ready"), ((9, head.digest), "moved")):
        assert stage.moves.branch(Branch(start, after, {}, (0, "", 0)), ask=True).status == status
    assert stage.told() == before


def test_a_run_says_which_step_it_builds_on(stage: Stage) -> None:
    at_rest(stage)
    fields: e.Fields = {"kind_of_run": "input", "task": "start", "node": "__start__", "graph": "g", "queue": "g"}
    start = Start(THREAD, "r2", "input", "g", "g", "s", fields, mode="reject", base=-1)
    [lease] = stage.moves.start(start, stage.offer()).leases
    assert lease.base == -1
    assert stage.log.read(THREAD)[-1].number("step") == -1


# --- error handlers


def test_a_run_on_a_checkpoint_of_a_thread_that_was_deleted_writes_nothing(stage: Stage) -> None:
    def late(run: str, n: int, digest: str) -> Start:
        fields: e.Fields = {"run": run, "task": "start", "node": "__start__", "graph": "g", "queue": "g"}
        return Start(THREAD, run, "input", "g", "g", "s", {**fields, "on": f"{n} {digest}"}, base=0)

    def asked(start: Start) -> list[str]:
        head = stage.log.head(THREAD)
        after = (head.n, head.digest) if head is not None else (0, BIRTH)
        put = Branch(start, after, {}, (0, "", 0))
        return [stage.moves.branch(put, ask=True).status, stage.moves.start(start, stage.offer()).status]

    def begun(run: str) -> Head:
        stage.start(run)
        stage.close(stage.take("start"))
        head = stage.log.head(THREAD)
        assert head is not None
        return head

    old = begun("r1")
    first = (0, next(iter(stage.log.pages(THREAD))).text("birth"))
    assert stage.moves.delete(THREAD) == "deleted"
    assert asked(late("x", old.n, old.digest)) == asked(late("x", *first)) == ["gone", "gone"]
    assert stage.log.head(THREAD) is None
    head = begun("r2")
    assert asked(late("x", old.n, old.digest)) == ["gone", "gone"]
    assert head is not None and stage.log.head(THREAD) == head
    assert asked(late("x", head.n, head.digest)) == ["ready", "started"]


def test_a_handler_takes_the_place_of_its_task_and_closes_a_step_alone(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    failed = stage.take("p0")
    assert stage.handle(failed) == ("ok", ["h_p0"])
    handler = stage.take("h_p0")
    assert (handler.node, handler.attempt, handler.timeout_s, handler.width, handler.plans) == ("h", 1, 7, 1, True)
    cause = stage.log.read(THREAD, handler.cause, handler.cause)[0]
    assert (cause.kind, cause.text("token")) == ("task_failed", failed.token)
    assert stage.handle(failed)[0] == "already"
    assert stage.close(handler, step=1) == ("ok", [])
    assert stage.start("r1").run_status == "done"


def test_a_join_waits_for_handlers_and_is_there_when_the_last_one_is_done(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    assert stage.handle(stage.take("p1"), 0) == ("ok", [])
    assert stage.done(stage.take("p0"), 0) == ("ok", [])
    assert stage.claim(4) == ["h_p1"]
    assert stage.done(stage.take("h_p1")) == ("ok", ["join"])


def test_a_handler_that_fails_rests_the_run_and_only_it_is_repeated(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    stage.handle(stage.take("p0"))
    stage.done(stage.take("p1"))
    cause = stage.held[0].cause
    assert stage.fail(stage.take("h_p0")) == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "failed"
    assert stage.start("r2", "continue", tokens=4).status == "started"
    assert [(x.task, x.cause) for x in stage.held] == [("h_p0", cause)]
    assert stage.ask(stage.take("h_p0"), "q") == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "interrupted"
    stage.start("r3", "resume", answers=(("h_p0", "q"),))
    again = stage.take("h_p0")
    assert (again.attempt, again.cause, len(again.answers.split())) == (3, cause, 1)
    assert stage.done(again) == ("ok", ["join"])


def test_a_handler_goes_through_losses_retries_cancels_and_new_inputs(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    stage.handle(stage.take("p0"))
    cause = stage.held[0].cause
    stage.moves.release(stage.owner, [stage.take("h_p0").token], "lost")
    assert stage.claim(2) == ["h_p0"]
    assert stage.moves.cancel(THREAD) == "cancelled"
    assert stage.done(stage.take("h_p0"))[0] == "fenced"
    stage.start("r2", "continue", tokens=4)
    assert [(x.task, x.cause) for x in stage.held] == [("h_p0", cause)]
    stage.fail(stage.take("h_p0"))
    assert stage.start("r3", sum="s3").status == "started"
    assert stage.close(stage.take("start"), "a", step=4) == ("ok", ["p0"])


def _handled_story(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    stage.handle(stage.take("p0"))
    stage.fail(stage.take("h_p0"))
    stage.handle(stage.take("p1"), 0)
    stage.claim(2)
    stage.done(stage.take("h_p1"))
    stage.start("r2", "continue")
    stage.done(stage.take("h_p0"))
    stage.close(stage.take("join"), step=1)


Script = Callable[[Stage], None]


def _long_story(stage: Stage) -> None:
    stage.start()
    stage.start("q1", sum="q")
    stage.close(stage.take("start"), "a", "b", count=2)
    stage.moves.release(stage.owner, [stage.take("p0").token], "lost")
    stage.fail(stage.take("p1"))
    stage.claim()
    stage.done(stage.take("p0"))
    stage.claim()
    stage.close(stage.take("start"), "c", step=4)
    stage.moves.cancel(THREAD, actor="op")
    stage.start("r9", "continue")
    stage.branch("b0", "x")
    stage.close(stage.take("p0"), step=5)  # the cancelled run's, fenced
    stage.close(stage.take("p0"), step=5)
    assert stage.branch("b1", "x", "y", tokens=2).status == "started"
    stage.fail(stage.take("p0"))
    stage.done(stage.take("p1"))
    stage.branch("b2", "z", stop="interrupted")
    stage.start("r10", "continue")
    stage.close(stage.take("p0"), step=8)
    commanded(stage, "c1", "b", "c", sends=2, tokens=4)
    stage.ask(stage.take("sg4_1"), "q")
    stage.fail(stage.take("g1_0"))
    stage.done(stage.take("g1_1"))
    stage.done(stage.take("sg4_0"))
    commanded(stage, "c2", updates=True, tokens=2)
    stage.done(stage.take("g1_0"))
    stage.done(stage.take("sg4_1"))
    stage.close(stage.take("join"), step=9)
    commanded(stage, "c3", updates=True)


@pytest.mark.parametrize("story", [_long_story, _handled_story], ids=lambda story: story.__name__)
def test_both_implementations_write_the_same_log(story: Script, client: redis.Redis) -> None:
    stages = [memory(), on(client), on(fakeredis.FakeRedis(version=(7,)))]
    for stage in stages:
        story(stage)
    first, *others = [stage.told() for stage in stages]
    assert len(first) > 10
    for other in others:
        assert other == first


# --- questions


def two_ask(stage: Stage) -> None:
    """p0 and p1 have asked q0 and q1, p2 is done: the run rests with two questions."""
    stage.start()
    stage.close(stage.take("start"), "a", "b", "c", count=3)
    assert stage.ask(stage.take("p0"), "q0", 0) == ("ok", [])
    assert stage.done(stage.take("p2"), 0) == ("ok", [])
    assert stage.ask(stage.take("p1"), "q1", 0) == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "interrupted"


def test_a_run_rests_with_its_questions_and_each_answer_opens_its_own_task(stage: Stage) -> None:
    two_ask(stage)
    assert stage.claim(3) == []
    assert stage.start("r2", "resume", answers=(("p1", "q1"),)).status == "started"
    asked = stage.take("p1")
    assert (asked.attempt, len(asked.answers.split()), stage.held) == (2, 1, [])
    assert stage.done(asked) == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "interrupted", "the other question still waits"
    stage.start("r3", "resume", answers=(("p0", "q0"),))
    assert stage.done(stage.take("p0")) == ("ok", ["join"])
    assert stage.close(stage.take("join"), step=1) == ("ok", [])
    assert stage.start("r3").run_status == "done"


def test_answers_stay_with_their_task_through_questions_failures_and_losses(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    stage.ask(stage.take("p0"), "q0")
    stage.start("r2", "resume", answers=(("p0", "q0"),))
    first = stage.take("p0")
    stage.ask(first, "q1")
    stage.start("r3", "resume", answers=(("p0", "q1"),))
    second = stage.take("p0")
    assert second.answers.split()[:-1] == first.answers.split()
    stage.moves.release(stage.owner, [second.token], "lost")
    assert stage.claim() == ["p0"]
    third = stage.take("p0")
    assert third.answers == second.answers
    stage.fail(third)
    stage.start("r4", "continue")
    assert stage.take("p0").answers == second.answers


def test_an_answer_that_does_not_hold_good_is_dropped_with_the_next_question(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    stage.ask(stage.take("p0"), "q0")
    stage.start("r2", "resume", answers=(("p0", "q0"),))
    stage.ask(stage.take("p0")._replace(answers=""), "q0")
    stage.start("r3", "resume", answers=(("p0", "q0"),))
    assert len(stage.take("p0").answers.split()) == 1


@pytest.mark.parametrize("answers", [(("p0", "q9"),), (("p2", "q0"),), (("p0", "q0"), ("p9", "q1"))])
def test_an_answer_to_what_is_not_asked_is_stale_and_writes_nothing(stage: Stage, answers: Any) -> None:
    two_ask(stage)
    before = stage.told()
    assert stage.start("r2", "resume", answers=answers).status == "stale"
    assert stage.start("r2", "resume", answers=(("p0", "q0"),), at=(1, "another digest")).status == "stale"
    assert stage.told() == before
    assert stage.start("r2", "resume", answers=(("p0", "q0"),)).status == "started"


def test_an_answer_before_its_question_is_stale_once_all_that_is_open_has_asked(stage: Stage) -> None:
    two_ask(stage)
    before = stage.told()
    assert stage.start("r2", "resume", answers=(("p0", ""),)).status == "stale"
    assert stage.told() == before
    assert stage.start("r2", "resume", answers=(("p0", "q0"),)).status == "started"


def test_where_only_questions_are_open_there_is_nothing_to_continue(stage: Stage) -> None:
    two_ask(stage)
    before = stage.told()
    assert stage.start("r2", "continue").status == "asked"
    assert stage.told() == before


def test_an_answer_sent_twice_is_one_run(stage: Stage) -> None:
    two_ask(stage)
    assert stage.start("r2", "resume", answers=(("p0", "q0"),)).status == "started"
    before = stage.told()
    assert stage.start("r2", "resume", answers=(("p0", "q0"),)).status == "attached"
    assert stage.start("r2", "resume", sum="other", answers=(("p0", "q0"),)).status == "conflict"
    assert stage.start("r3", "resume", answers=(("p1", "q1"),)).status == "busy"
    assert stage.told() == before


def test_a_question_sent_twice_is_told_already(stage: Stage) -> None:
    stage.start()
    lease = stage.take("start")
    assert stage.ask(lease, "q0") == ("ok", [])
    assert stage.ask(lease, "q0") == ("already", [])
    assert len(stage.log.read(THREAD)) == 3


def test_a_failure_beside_a_question_fails_the_run_and_the_question_stays(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    stage.ask(stage.take("p0"), "q0", 0)
    assert stage.fail(stage.take("p1"))[0] == "ok"
    assert stage.log.read(THREAD)[-1].text("status") == "failed"
    stage.start("r2", "continue", tokens=2)
    assert [x.task for x in stage.held] == ["p1"]
    stage.done(stage.take("p1"))
    assert stage.log.read(THREAD)[-1].text("status") == "interrupted"


def test_an_early_answer_goes_to_the_task_that_may_ask_next(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", stop="interrupted", count=0)
    stage.start("r2", "resume", answers=(("p1", ""),), tokens=2)
    first, second = stage.take("p0"), stage.take("p1")
    assert first.answers == "" and len(second.answers.split()) == 1
    stage.ask(second, "q1", 0)
    stage.done(first)
    stage.start("r3", "resume", answers=(("p1", "q1"),))
    assert len(stage.take("p1").answers.split()) == 2


def test_a_cancelled_run_keeps_its_question(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    stage.ask(stage.take("p0"), "q0", 0)
    assert stage.moves.cancel(THREAD) == "cancelled"
    assert stage.start("r2", "resume", answers=(("p0", "q0"),), tokens=2).status == "started"
    assert sorted(x.task for x in stage.held if x.run == "r2") == ["p0", "p1"]


def test_a_new_input_gives_questions_up(stage: Stage) -> None:
    two_ask(stage)
    assert stage.start("r2", sum="new").status == "started"
    stage.close(stage.take("start"), step=2)
    assert stage.start("r3", "resume", answers=(("p0", "q0"),)).status == "nothing"


# --- Commands


def commanded(
    stage: Stage,
    run: str,
    *nodes: str,
    updates: bool = False,
    sends: int = 0,
    tokens: int = 1,
    after: str | None = None,
    answers: tuple[tuple[str, str], ...] = (),
) -> Started:
    """A Command that adds these nodes, and as many Sends to `w`, behind the thread's last run."""
    last = next(x for x in stage.log.read(THREAD, reverse=True) if x.kind == "run_started").text("run")
    said: e.Fields = {"tasks": json.dumps([["w", "q", 0, sends]]), "sends": e.pack_sends([("w", b"\x01")] * sends)}
    parts = ((e.summed(e.fact("part", run, **said)), sends),) if sends else ()
    tasks = tuple((node, "g", 1.5) for node in nodes)
    command = Commanded(updates, tasks, parts, last if after is None else after)
    return stage.start(run, "resume", tokens=tokens, answers=answers, command=command)


def ended(stage: Stage) -> None:
    """A run that is done, at checkpoint 1."""
    stage.start()
    stage.close(stage.take("start"))


def test_a_command_opens_tasks_on_a_thread_that_is_done(stage: Stage) -> None:
    ended(stage)
    assert commanded(stage, "r2", "a", "b", sends=2, tokens=4).status == "started"
    assert [(x.task, x.node, x.queue, x.timeout_s, x.width, x.n) for x in stage.held] == [
        ("g1_0", "a", "g", 1.5, 4, 1), ("g1_1", "b", "g", 1.5, 4, 1),
        ("sg4_0", "w", "q", 0, 4, 1), ("sg4_1", "w", "q", 0, 4, 1),
    ]  # fmt: skip
    for task in ("g1_0", "sg4_1", "g1_1"):
        assert stage.done(stage.take(task)) == ("ok", [])
    assert stage.done(stage.take("sg4_0")) == ("ok", ["join"])
    assert stage.close(stage.take("join"), step=1) == ("ok", [])


def test_one_task_that_is_added_alone_closes_the_step(stage: Stage) -> None:
    ended(stage)
    commanded(stage, "r2", "a")
    assert stage.held[0].plans
    assert stage.close(stage.take("g1_0"), step=1) == ("ok", [])


def test_an_update_rests_at_once_where_nothing_is_to_be_run(stage: Stage) -> None:
    ended(stage)
    assert commanded(stage, "r2", updates=True).leases == ()
    assert stage.told()[-1][:3] == ("1-2", "kind=run_rested", "run=r2")
    assert commanded(stage, "r3", updates=True).status == "started"
    stage.start("r4")
    assert stage.held[0].over == "1-1 1-3", "an input is applied to what Commands updated"
    stage.close(stage.take("start"), "a", step=1)
    assert stage.held[0].over == "", "the next checkpoint has it"


def test_a_command_goes_beside_what_is_open_and_keeps_what_is_done(stage: Stage) -> None:
    two_ask(stage)
    assert commanded(stage, "r2", "x", tokens=3, answers=(("p1", "q1"),)).status == "started"
    assert sorted(x.task for x in stage.held) == ["g5_0", "p1"], "nobody answered p0, and nothing that it saw changed"
    assert stage.done(stage.take("p1")) == ("ok", [])
    assert stage.done(stage.take("g5_0")) == ("ok", [])
    assert stage.start("r3", "resume", answers=(("p0", "q0"),)).status == "started"
    assert stage.held[0].width == 4
    assert stage.done(stage.take("p0")) == ("ok", ["join"])


def test_what_asked_runs_again_where_the_state_was_updated(stage: Stage) -> None:
    two_ask(stage)
    commanded(stage, "r2", updates=True, tokens=3)
    assert sorted((x.task, x.over) for x in stage.held) == [("p0", "1-5"), ("p1", "1-5")]
    stage.ask(stage.take("p0"), "q0")
    assert stage.done(stage.take("p1")) == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "interrupted"
    stage.start("r3", "resume", answers=(("p0", "q0"),))
    assert (stage.held[0].task, stage.held[0].over) == ("p0", "1-5")


def test_an_answer_may_be_for_the_first_task_that_is_added(stage: Stage) -> None:
    ended(stage)
    commanded(stage, "r2", "a", "b", tokens=2, answers=(("", ""),))
    assert [len(x.answers.split()) for x in stage.held] == [1, 0]


def test_a_join_that_failed_waits_for_what_is_added(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    stage.done(stage.take("p0"))
    stage.done(stage.take("p1"))
    stage.fail(stage.take("join"))
    commanded(stage, "r2", "c", tokens=3)
    assert [x.task for x in stage.held] == ["g5_0"]
    assert stage.done(stage.take("g5_0")) == ("ok", ["join"])
    assert stage.held[0].attempt == 1


@pytest.mark.parametrize("change", ["another run", "another checkpoint"])
def test_a_command_is_for_the_thread_as_it_was_seen(stage: Stage, change: str) -> None:
    ended(stage)
    if change == "another run":
        commanded(stage, "r2", updates=True)
        told = stage.told()
        assert commanded(stage, "r3", "a", after="r1").status == "stale"
    else:
        told = stage.told()
        command = Commanded(True, (), (), "r1")
        assert stage.start("r3", "resume", at=(1, "another digest"), command=command).status == "stale"
    assert stage.told() == told


def test_a_command_sent_twice_is_one_run(stage: Stage) -> None:
    ended(stage)
    command = Commanded(False, (("a", "g", 0),), (), "r1")
    assert stage.start("r2", "resume", command=command).status == "started"
    assert stage.start("r2", "resume", command=command).status == "attached"
    assert commanded(stage, "r3", "b").status == "busy"
    assert stage.moves.start(Start("new", "r1", "resume", "g", "g", "s", {}, command=command)).status == "nothing"


def test_a_cancelled_command_keeps_its_tasks_and_a_new_input_gives_them_up(stage: Stage) -> None:
    ended(stage)
    commanded(stage, "r2", "a", updates=True)
    stage.moves.cancel(THREAD)
    stage.start("r3", "continue")
    assert (stage.held[-1].task, stage.held[-1].over) == ("g1_0", "1-1")
    stage.moves.cancel(THREAD)
    stage.held.clear()
    stage.start("r4")
    assert [(x.task, x.over, x.width) for x in stage.held] == [("start", "1-1", 1)]


# effects


def test_an_effect_counts_at_once_and_the_next_attempt_is_told_of_it(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    first, other = stage.take("p0"), stage.take("p1")
    assert (first.effects, other.effects) == ("", "")
    ids = [stage.effect(first, "mail"), stage.effect(first, "charge")]
    assert [stage.moves.release(stage.owner, [lease.token], "lost") for lease in (first, other)] == [1, 1]
    assert sorted(stage.claim(2)) == ["p0", "p1"]
    again = stage.take("p0")
    assert (again.effects, stage.take("p1").effects) == (ids[0], ""), "of this task only, from its first one on"
    assert [(x.id, x.text("effect"), x.value("result")) for x in stage.log.read(THREAD) if x.kind == "effect_done"] == [
        (ids[0], "mail", b"\x01"), (ids[1], "charge", b"\x01"),
    ]  # fmt: skip


def test_what_tells_of_calls_is_in_the_log_and_counts_for_nothing(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    first = stage.take("p0")
    said: e.Fields = {"task": "p0", "token": first.token, "node": first.node, "effect": "task:0:add"}
    begun = [e.fact("call_begun", first.run, **said, args=e.wrap(b"\x92\x90\x80")) for _ in range(2)]
    assert len(stage.moves.part(first, begun)) == 2
    assert len(stage.moves.part(first, [e.fact("call_failed", first.run, **said, error="no")])) == 1
    stage.moves.release(stage.owner, [first.token], "lost")
    stage.claim()
    assert stage.take("p0").effects == "", "there is nothing that the next attempt has to know"
    assert stage.moves.part(first, begun) == [], "and it is fenced as an effect is"
    assert [x.kind for x in stage.log.read(THREAD, f"({first.n}-0")][:3] == ["call_begun", "call_begun", "call_failed"]


def test_an_effect_of_a_fenced_attempt_is_refused_and_leaves_no_trace(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    zombie = stage.take("p0")
    stage.moves.release(stage.owner, [zombie.token], "lost")
    stage.claim()
    before = stage.told()
    assert stage.effect(zombie, "mail") == ""
    now = stage.take("p0")
    assert stage.effect(now._replace(n=now.n - 1), "mail") == "", "another checkpoint"
    assert stage.effect(now._replace(digest="x"), "mail") == "", "another thread of this name"
    stage.close(now)
    assert stage.effect(now, "mail") == "", "its task is done"
    assert stage.told()[: len(before)] == before
    assert not [entry for entry in stage.log.read(THREAD) if entry.kind == "effect_done"]


@pytest.mark.parametrize("way", ["lost", "given back", "retried", "failed", "cancelled", "asked"])
def test_effects_stay_with_their_task_whatever_ends_its_attempt(stage: Stage, way: str) -> None:
    stage.start()
    stage.close(stage.take("start"), "a")
    lease = stage.take("p0")
    first = stage.effect(lease, "mail")
    if way in ("lost", "given back"):
        stage.moves.release(stage.owner, [lease.token], "lost" if way == "lost" else "job")
    elif way in ("retried", "failed"):
        stage.fail(lease, delay_ms=1 if way == "retried" else 0)
    elif way == "cancelled":
        stage.moves.cancel(THREAD)
    else:
        stage.ask(lease, "q0")
    if way in ("failed", "cancelled"):
        stage.start("r2", "continue")
    elif way == "asked":
        stage.start("r2", "resume", answers=(("p0", "q0"),))
    else:
        wait_for(stage.claim)
    assert stage.take("p0").effects == first


def test_a_task_of_another_input_has_no_effects_of_the_one_before(stage: Stage) -> None:
    stage.start()
    lease = stage.take("start")
    stage.effect(lease, "mail")
    stage.start("r2", sum="s2")
    stage.fail(lease)
    stage.claim()
    assert stage.take("start").effects == ""


def _story_of_effects(stage: Stage) -> None:
    stage.start()
    stage.close(stage.take("start"), "a", "b", count=2)
    lease = stage.take("p0")
    stage.effect(lease, "mail")
    stage.effect(stage.take("p1"), "mail")
    stage.ask(lease, "q0")


def test_both_implementations_write_the_same_effects(client: redis.Redis) -> None:
    ours, theirs = memory(), on(client)
    _story_of_effects(ours)
    _story_of_effects(theirs)
    assert ours.told() == theirs.told()
