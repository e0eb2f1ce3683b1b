"""The table of moves between two threads: a task calls a run elsewhere, and is opened again when that one rests."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest
import redis

from everstep_checkpoint import entries as e
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_scheduler.moves.contract import Answer, Answered, Call, Commit, Lease, Offer, RunKind, Start
from everstep_scheduler.moves.redismoves import RedisMoves
from everstep_scheduler.reading.derive import derive
from servers import wait_for
from test_moves import THREAD, Stage, memory, on

CHILD = "t|c"


@pytest.fixture(name="stage", params=["memory", "fake", "server"])
def made(request: pytest.FixtureRequest) -> Stage:
    if request.param == "memory":
        return memory()
    return on(fakeredis.FakeRedis(version=(7,)) if request.param == "fake" else request.getfixturevalue("client"))


class Two:
    """A stage with a second thread, that tasks of the first one call."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.moves = stage.moves

    def parent(self, *nodes: str) -> None:
        """A run whose step has these tasks, all leased."""
        self.stage.start()
        self.stage.close(self.stage.take("start"), *(nodes or ("a",)), count=len(nodes) or 1)

    def call(
        self,
        task: str = "p0",
        run: str = "c1",
        kind: RunKind = "input",
        answers: tuple[tuple[str, str], ...] = (),
        at: tuple[int, str] | None = None,
        waits: bool = False,
        count: int = 1,
        thread: str = CHILD,
    ) -> Answer:
        """The task calls a run, and gets what it offers for."""
        lease = self.stage.take(task)
        parent = f"{lease.n} {lease.task} {lease.thread}"
        fields: e.Fields = {
            "run": run, "kind_of_run": kind, "task": "start", "node": "__start__", "graph": "c", "queue": "c",
            "parent": parent,
        }  # fmt: skip
        given = tuple(Answered(name, question, e.wrap(b"\x01")) for name, question in answers)
        start = Start(thread, run, kind, "c", "c", run, fields, answers=given, at=at, parent=parent)
        said: e.Fields = {"task": lease.task, "attempt": lease.attempt, "token": lease.token, "node": lease.node}
        fact = e.fact("task_called", lease.run, **said, called=f"{run} {thread}")
        commit = Commit(lease, "called", (fact,), call=Call(thread, run, None if waits else start))
        answer = self.moves.commit([(commit, self.stage.offer(count))])[0]
        self.stage.held.extend(answer.leases)
        return answer

    def of_child(self, task: str) -> Lease:
        lease = next(x for x in self.stage.held if (x.thread, x.task) == (CHILD, task))
        self.stage.held.remove(lease)
        return lease

    def claim_child(self, count: int = 1) -> list[str]:
        answer = self.moves.claim(self.stage.offer(count)._replace(thread=CHILD))
        self.stage.held.extend(answer.leases)
        return [x.task for x in answer.leases]

    def pause(self, lease: Lease, questions: str, count: int = 1) -> tuple[str, list[str]]:
        """The task of the parent waits with the child's questions, or at its breakpoint."""
        said: e.Fields = {"task": lease.task, "attempt": lease.attempt, "token": lease.token, "called": lease.called}
        said |= {"question": questions} if questions else {}
        return self.stage.commit(
            Commit(lease, "paused", (e.fact("task_paused", lease.run, **said),), question=questions), count
        )

    def told(self) -> list[Any]:
        names = ("kind", "run", "task", "status", "of", "attempt", "called", "parent", "question", "next")
        return [
            (thread, x.id, *(f"{name}={x.text(name)}" for name in names if name in x.raw))
            for thread in (THREAD, CHILD)
            for x in self.stage.log.read(thread)
        ]


def test_a_task_calls_a_run_and_is_opened_again_at_its_rest(stage: Stage) -> None:
    two = Two(stage)
    two.parent("a", "b")
    assert [(x.thread, x.task) for x in two.call(count=2).leases] == [(CHILD, "start")]
    assert stage.log.read(CHILD)[0].text("parent") == "1 p0 t"
    assert stage.claim() == [], "it has no job, and keeps the run going"
    assert stage.done(stage.take("p1")) == ("ok", [])
    assert stage.log.read(THREAD)[-1].kind == "task_done"
    assert stage.close(two.of_child("start"), "x") == ("ok", ["p0"])
    assert stage.close(two.of_child("p0"), step=1) == ("ok", ["p0"]), "the child's rest leases the parent's task"
    again = stage.take("p0")
    assert (again.thread, again.attempt, again.called, again.told) == (THREAD, 1, f"c1 {CHILD}", 0)
    assert stage.done(again) == ("ok", ["join"])


def test_a_claim_of_the_parent_names_the_threads_it_called(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    two.call(count=0)
    assert stage.moves.claim(stage.offer()).children == (CHILD,)
    assert two.claim_child() == ["start"]


def test_a_call_sent_twice_is_told_already_and_begins_one_run(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    lease = stage.held[0]
    assert two.call().status == "ok"
    stage.held.append(lease)
    again = two.call()
    assert (again.status, again.leases) == ("already", ())
    assert len(stage.log.read(CHILD)) == 1


def test_a_call_of_a_zombie_begins_nothing(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    zombie = stage.held[0]
    stage.moves.release(stage.owner, [zombie.token], "lost")
    assert two.call().status == "fenced"
    assert stage.log.head(CHILD) is None


def test_a_failed_child_is_told_by_the_parents_task_and_goes_on_in_a_later_run(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    two.call()
    stage.close(two.of_child("start"), "x")
    assert stage.fail(two.of_child("p0")) == ("ok", ["p0"])
    assert stage.fail(stage.take("p0")) == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "failed"
    stage.start("r2", "continue")
    again = stage.held[0]
    assert (again.called, again.told, again.attempt) == (f"c1 {CHILD}", 1, 2)
    assert [(x.thread, x.task) for x in two.call(run="c2", kind="continue").leases] == [(CHILD, "p0")]
    assert stage.close(two.of_child("p0"), step=1) == ("ok", ["p0"])
    assert (stage.held[0].called, stage.held[0].told) == (f"c2 {CHILD}", 0)


def test_a_retry_has_told_how_the_child_failed(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    two.call()
    stage.fail(two.of_child("start"))
    stage.fail(stage.take("p0"), delay_ms=20)
    assert wait_for(stage.claim, 5, "the retry") == ["p0"]
    assert stage.take("p0").told == 1


def ask(two: Two) -> None:
    """The child has asked q0 and q1, and so has the parent's task."""
    stage = two.stage
    two.parent()
    two.call()
    stage.close(two.of_child("start"), "x", "y", count=2)
    assert stage.ask(two.of_child("p0"), "q0") == ("ok", [])
    assert stage.ask(two.of_child("p1"), "q1") == ("ok", ["p0"])
    assert two.pause(stage.take("p0"), "q0 q1") == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "interrupted"


def test_a_task_waits_with_all_questions_of_its_child_and_takes_any_of_their_answers(stage: Stage) -> None:
    two = Two(stage)
    ask(two)
    assert stage.start("r0", "continue").status == "asked"
    assert stage.start("r0", "resume", answers=(("p0", "q2"),)).status == "stale"
    assert stage.start("r2", "resume", answers=(("p0", "q0"), ("p0", "q1"))).status == "started"
    again = stage.held[0]
    assert (again.task, len(again.answers.split()), again.told) == ("p0", 2, 1)
    head = stage.log.head(CHILD)
    assert head is not None
    found = two.call(run="c2", kind="resume", answers=(("p0", "q0"), ("p1", "q1")), at=(head.n, head.digest), count=2)
    assert sorted(x.task for x in found.leases) == ["p0", "p1"]
    assert [len(x.answers.split()) for x in found.leases] == [1, 1]
    assert stage.done(two.of_child("p0")) == ("ok", [])
    assert stage.done(two.of_child("p1")) == ("ok", ["join"])


def test_a_breakpoint_of_a_child_interrupts_the_parent_and_any_run_goes_on(stage: Stage) -> None:
    two = Two(stage)
    two.parent("a", "b")
    two.call()
    assert stage.close(two.of_child("start"), "x", stop="interrupted") == ("ok", ["p0"])
    assert two.pause(stage.take("p0"), "") == ("ok", [])
    assert stage.done(stage.take("p1")) == ("ok", [])
    assert stage.log.read(THREAD)[-1].text("status") == "interrupted"
    assert stage.start("r2", "continue").status == "started"
    assert [(x.task, x.told) for x in stage.held] == [("p0", 1)]
    assert [x.task for x in two.call(run="c2", kind="continue").leases] == ["p0"]


def test_a_call_whose_thread_has_moved_writes_nothing_and_looks_again(stage: Stage) -> None:
    """The child was answered by somebody else meanwhile: nothing of the call is written, and it is not counted."""
    two = Two(stage)
    ask(two)
    stage.start("r2", "resume", answers=(("p0", "q0"),))
    before = two.told()
    head = stage.log.head(CHILD)
    assert head is not None
    found = two.call(run="c2", kind="resume", answers=(("p0", "q9"),), at=(head.n, head.digest))
    assert (found.status, found.leases) == ("ok", ())
    assert two.told() == before
    assert wait_for(stage.claim, 5, "another look") == ["p0"]
    assert (stage.held[0].attempt, len(stage.held[0].answers.split())) == (2, 1)


def test_a_call_that_waits_is_opened_at_once_if_there_is_nothing_to_wait_for(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    two.call()
    stage.close(two.of_child("start"), count=0)
    wait_for(stage.claim, 5, "the parent's task")
    two.call(waits=True)
    assert stage.held or wait_for(stage.claim, 5, "another look") == ["p0"]
    assert stage.held[0].attempt == 1


def test_a_run_that_waits_behind_another_on_the_childs_thread_is_waited_for(stage: Stage) -> None:
    """Two tasks call the same thread: the second run begins when the first has ended, and each wakes its own task."""
    two = Two(stage)
    two.parent("a", "b")
    two.call("p0", "c1")
    assert two.call("p1", "c2").leases == ()
    assert stage.close(two.of_child("start")) == ("ok", ["p0"])
    assert stage.held[0].called == f"c1 {CHILD}"
    assert two.claim_child() == ["start"]
    stage.take("p0")
    assert stage.close(two.of_child("start"), step=2) == ("ok", ["p1"])


def test_what_a_cancelled_run_called_is_cancelled_and_a_continue_run_finds_it(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    two.call()
    assert stage.moves.cancel(THREAD, actor="me") == "cancelled"
    assert [x.text("status") for x in stage.log.read(CHILD)][-1] == "cancelled"
    assert stage.close(two.of_child("start"), "x")[0] == "fenced"
    assert stage.claim() == [] == two.claim_child()
    stage.start("r2", "continue")
    assert (stage.held[0].called, stage.held[0].told) == (f"c1 {CHILD}", 1)


def test_a_child_that_is_cancelled_opens_the_parents_task(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    two.call()
    assert stage.moves.cancel(CHILD) == "cancelled"
    assert stage.claim() == ["p0"]
    assert stage.held[-1].told == 0


def test_a_queued_child_that_is_cancelled_opens_the_parents_task(stage: Stage) -> None:
    two = Two(stage)
    two.parent("a", "b")
    two.call("p0", "c1")
    two.call("p1", "c2")
    assert stage.moves.cancel(CHILD, "c2") == "cancelled"
    assert stage.claim() == ["p1"]


def test_a_child_whose_parent_went_on_without_it_wakes_nobody(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    two.call()
    stage.moves.cancel(THREAD)
    stage.start("r2", sum="new")
    stage.start("c9", sum="other")
    assert stage.claim() == []


def test_a_run_that_ends_with_a_command_stops_its_tasks_and_opens_the_parents(stage: Stage) -> None:
    two = Two(stage)
    two.parent()
    two.call()
    stage.close(two.of_child("start"), "x", "y", count=2)
    lease, sibling = two.of_child("p0"), two.of_child("p1")
    said: e.Fields = {"task": lease.task, "token": lease.token, "status": "done", "command": e.wrap(b"\x92\x90\x90")}
    commit = Commit(lease, "left", (e.fact("run_rested", lease.run, **said),))
    offer = stage.offer()
    first, second = (stage.moves.commit([(commit, offer)])[0] for _ in range(2))
    assert (first.status, first.run_status, [x.task for x in first.leases]) == ("ok", "done", ["p0"])
    assert second.status == "already"
    assert stage.done(sibling)[0] == "fenced"
    assert stage.start("r9", "continue", thread=CHILD).status == "nothing"
    assert derive(stage.log, CHILD).status == "done"
    assert stage.start("c9", sum="new", thread=CHILD).status == "started"


def _long_story(two: Two) -> None:
    stage = two.stage
    ask(two)
    stage.start("r2", "resume", answers=(("p0", "q1"),))
    head = stage.log.head(CHILD)
    assert head is not None
    two.call(run="c2", kind="resume", answers=(("p1", "q1"),), at=(head.n, head.digest))
    stage.done(two.of_child("p1"))
    two.pause(stage.take("p0"), "q0")
    stage.start("r3", "resume", answers=(("p0", "q0"),))
    head = stage.log.head(CHILD)
    assert head is not None
    two.call(run="c3", kind="resume", answers=(("p0", "q0"),), at=(head.n, head.digest))
    stage.fail(two.of_child("p0"))
    stage.fail(stage.take("p0"))
    stage.start("r4", "continue")
    two.call(run="c4", kind="continue")
    stage.done(two.of_child("p0"))
    stage.close(two.of_child("join"), step=1)
    stage.close(stage.take("p0"), step=1)


def test_both_implementations_write_the_same_logs(client: redis.Redis) -> None:
    found = [Two(memory()), Two(on(client)), Two(on(fakeredis.FakeRedis(version=(7,))))]
    for two in found:
        _long_story(two)
    first, *others = [two.told() for two in found]
    assert len(first) > 25
    for other in others:
        assert other == first


# --- workers, whose leases come from queues


def fleet(client: redis.Redis) -> Two:
    made = on(client)
    made.offer = lambda count=1: Offer("w1", tuple(new_id() for _ in range(count)), ("g", "c"), "w1")  # type: ignore[method-assign]
    return Two(made)


def test_on_workers_a_call_is_leased_at_once_where_nothing_waits_ahead(client: redis.Redis) -> None:
    two = fleet(client)
    stage = two.stage
    start = Start(THREAD, "r1", "input", "g", "g", "s", {"run": "r1", "task": "start", "node": "__start__"})
    stage.moves.start(start)
    assert stage.claim() == ["start"]
    assert stage.close(stage.take("start"), "a") == ("ok", ["p0"])
    assert [(x.thread, x.task) for x in two.call().leases] == [(CHILD, "start")]
    assert [(x.thread, x.task) for x in _closed(two, two.of_child("start")).leases] == [(THREAD, "p0")]
    assert not client.keys("rq:queue:*") and not client.exists(Keys(rq="rq").wakes)


def _closed(two: Two, lease: Lease) -> Answer:
    made = e.checkpoint(
        lease.digest, 1, source="loop", step=0, graph="c@1", run=lease.run, token=lease.token, next="[]"
    )
    commit = Commit(lease, "next", (made,), (1, str(made["digest"]), 0))
    answer = two.moves.commit([(commit, two.stage.offer())])[0]
    two.stage.held.extend(answer.leases)
    return answer


def test_the_sweep_cancels_what_a_dead_canceller_left(client: redis.Redis) -> None:
    stage = on(client)
    two = Two(stage)
    two.parent()
    two.call(count=0)
    assert isinstance(stage.moves, RedisMoves)
    stage.moves.scripts.run("cancel", {"thread": THREAD, "run": "r1", "actor": "", "salt": "abcd"})
    assert derive(stage.log, CHILD).status == "running"
    stage.moves.sweep("server")
    assert derive(stage.log, CHILD).status == "cancelled"
    assert not client.exists(Keys(rq="rq").revoked)


def test_a_child_whose_log_is_obstructed_keeps_the_call_waiting_and_nothing_is_written(client: redis.Redis) -> None:
    two = Two(on(client))
    two.parent()
    two.call(count=0)
    two.stage.moves.cancel(CHILD)
    assert two.stage.claim() == ["p0"]
    client.xadd(Keys(rq="rq").log(CHILD), {"x": "y"}, id="77-7")
    before = client.xlen(Keys(rq="rq").log(THREAD))
    assert two.call(run="c2", kind="continue").status == "ok"
    assert client.xlen(Keys(rq="rq").log(THREAD)) == before
    assert client.zcard(Keys(rq="rq").wakes) == 1
