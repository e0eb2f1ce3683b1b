"""`everstep doctor` finds each thing that is wrong, says what to do, and says so of nothing else."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import click
import pytest
import redis

from everstep import END, START, RedisSaver, StateGraph, doctor, fleet, places, promised, tails
from everstep import cli as command_line
from everstep.cli import main
from everstep.doctor import examine, server
from everstep.embedded import EmbeddedServer
from everstep.finding import ACT, KNOW, Finding, Look
from everstep.places import look_at_places
from everstep.site import Site
from everstep.tails import look_at_tails
from everstep_checkpoint.ids import new_id
from everstep_scheduler.client.client import publish
from everstep_scheduler.moves.connection import redis_cli
from everstep_scheduler.moves.contract import Offer
from servers import StartServer


class State(TypedDict):
    word: str


def nothing(state: State) -> None:
    """A node that writes nothing."""


def graph(name: str = "shop") -> Any:
    builder = StateGraph(State)
    builder.add_node("node", nothing)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile(name=name)


@pytest.fixture
def site(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A partition in which the graph `shop` is published and one run is done. The environment says where it is."""
    monkeypatch.setenv("EVERSTEP_URL", redis_url)
    made = Site(redis_url)
    saver = RedisSaver(redis_url)
    type(graph())(graph().spec, saver).invoke({"word": "a"}, {"configurable": {"thread_id": "done"}})
    publish(made.redis, made.keys, [graph().spec])
    yield made
    made.redis.close()
    saver.client.close()


def found(site: Site, about: str) -> list[Finding]:
    return [each for each in examine(site) if each.about == about]


def one(site: Site, about: str) -> Finding:
    (only,) = found(site, about)
    return only


def marks(site: Site) -> dict[str, str]:
    return {each.about: each.mark for each in examine(site) if each.mark != "ok" and each.about != "server"}


def submit(site: Site, thread: str = "t") -> None:
    site.client.submit("shop", {"word": "a"}, thread_id=thread)


def lease(site: Site) -> None:
    """As a worker claims one task."""
    site.client.moves.claim(Offer("everstep.h.1.x", (new_id(),), ("shop",), lease_ms=60_000))


# --- the whole ---


def test_a_healthy_server_without_work_has_nothing_to_act_on(site: Site) -> None:
    assert marks(site) == {"workers": KNOW}
    assert main(["--url", site.url, "doctor"]) == 0


def test_a_server_that_nobody_has_used_is_well(redis_url: str) -> None:
    assert marks(Site(redis_url)) == {"workers": KNOW}


def test_each_thing_to_act_on_has_its_fix_and_exit_code_1(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    submit(site)
    assert main(["--url", site.url, "doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(lines[i + 1].strip().startswith("-> ") for i, line in enumerate(lines) if line.startswith("x "))
    assert lines[-1].startswith("2 to act on")


def test_a_user_who_may_not_even_ask_info_sees_the_fleet(server: EmbeddedServer, site: Site) -> None:
    site.redis.execute_command("ACL", "SETUSER", "small", "on", ">hush", "~*", "&*", "+@all", "-@dangerous")
    try:
        small = Site(server.url.replace("unix://", "unix://small:hush@"))
        assert one(small, "server").mark == KNOW and one(small, "places").mark == "ok"
        assert found(small, "fsync") == []
    finally:
        site.redis.execute_command("ACL", "DELUSER", "small")


def test_programs_get_one_document(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", site.url, "doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    assert {tuple(sorted(each)) for each in said["findings"]} == {("about", "fix", "mark", "said")}


# --- the server ---


@pytest.mark.parametrize(
    ("info", "mark"),
    [
        ({"redis_version": "6.2.20"}, ACT),
        ({"redis_version": "7.0.15"}, KNOW),
        ({"redis_version": "7.4.1"}, KNOW),
        ({"redis_version": "8.4.6"}, "ok"),
        ({"server_name": "valkey", "valkey_version": "8.1.3", "redis_version": "7.2.4"}, KNOW),
        ({"server_name": "valkey", "valkey_version": "9.1.2", "redis_version": "7.2.4"}, "ok"),
    ],
)
def test_versions_with_known_holes_are_named(info: dict[str, Any], mark: str) -> None:
    assert next(server(Look(Site("redis://h"), info))).mark == mark


def test_a_replica_is_no_place_to_work() -> None:
    look = Look(Site("redis://h"), {"redis_version": "8.4.6", "role": "slave"})
    assert [each.mark for each in server(look)] == ["ok", ACT]


def test_settings_that_would_lose_data_are_found(own_server: StartServer) -> None:
    bad = own_server(extra=("--appendonly", "no", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"))
    site = Site(bad.url)
    assert "loses every run" in one(site, "fsync").said and one(site, "fsync").mark == ACT
    assert "throw logs away" in one(site, "memory").said and one(site, "memory").mark == ACT


def test_what_redis_may_lose_is_said_in_words(own_server: StartServer) -> None:
    always, everysec = Site(own_server(appendfsync="always").url), Site(own_server().url)
    assert "takes nothing back" in one(always, "fsync").said
    assert "about the last second" in one(everysec, "fsync").said


def test_a_full_server_is_found(own_server: StartServer) -> None:
    full = Site(own_server(extra=("--maxmemory", "100kb")).url)
    assert one(full, "memory").mark == ACT and "full" in one(full, "memory").said
    assert "everstep delete" in one(full, "memory").fix and "raise maxmemory" in one(full, "memory").fix
    assert one(full, "workers").fix.startswith("first see memory")  # for nobody can write there that he lives


def test_the_doctor_reports_in_full_under_a_full_server(own_server: StartServer) -> None:
    """It sends nothing that a full server refuses: no write, and no MULTI, which queues."""
    full = Site(own_server().url)
    publish(full.redis, full.keys, [graph().spec])
    submit(full)
    full.redis.xadd(full.keys.log("t"), {"some": "junk"})
    before = [(each.about, each.mark) for each in examine(full)]
    full.redis.config_set("maxmemory", "100kb")
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        full.redis.set("k", "v")
    after = [(each.about, each.mark) for each in examine(full)]
    assert after == [(about, ACT if about == "memory" else mark) for about, mark in before]
    assert ("logs", ACT) in after and ("places", "ok") in after


def test_a_user_without_config_rights_is_told_so_and_sees_the_rest(server: EmbeddedServer, site: Site) -> None:
    site.redis.execute_command("ACL", "SETUSER", "looker", "on", ">hush", "~*", "&*", "+@all", "-config")
    try:
        limited = Site(server.url.replace("unix://", "unix://looker:hush@"))
        assert one(limited, "fsync").mark == KNOW and "may not run CONFIG" in one(limited, "fsync").said
        assert one(limited, "memory").mark == "ok" and one(limited, "places").mark == "ok"
        assert "hush" not in json.dumps([vars(each) for each in examine(limited)])
    finally:
        site.redis.execute_command("ACL", "DELUSER", "looker")


# --- the fleet ---


def test_work_that_nobody_listens_to_is_found(site: Site) -> None:
    submit(site)
    assert marks(site) == {"workers": ACT, "queues": ACT}
    assert "everstep worker MODULE:shop" in one(site, "queues").fix


def test_a_worker_that_beats_is_alive_and_one_that_died_is_not(site: Site) -> None:
    client: Any = site.redis
    name = site.keys.rq_worker("everstep.h.1.x")
    client.sadd(site.keys.rq_workers, name, site.keys.rq_worker("everstep.h.2.gone"))
    client.hset(name, mapping={"queues": "shop", "hostname": "h", "state": "busy"})
    submit(site)
    assert one(site, "workers").said == "1 alive on 1 host, 1 busy"
    assert one(site, "queues").said == "shop: 1 waiting"
    client.pexpire(name, 10_000)
    none, silent = found(site, "workers")
    assert (none.mark, silent.mark) == (ACT, KNOW)
    assert silent.said == "1 worker silent for up to 20.0 s: everstep.h.1.x"
    assert one(site, "queues").mark == ACT
    client.persist(name)
    client.hset(name, "death", "2026-01-01T00:00:00Z")
    assert one(site, "workers").mark == ACT


def test_a_job_that_waits_for_long_where_a_worker_listens_is_said_with_who_does_not_take_it(site: Site) -> None:
    client: Any = site.redis
    name = site.keys.rq_worker("everstep.h.1.x")
    client.sadd(site.keys.rq_workers, name)
    client.hset(name, mapping={"queues": "shop", "hostname": "h", "state": "idle"})
    submit(site)
    assert one(site, "queues").mark == "ok"
    (job,) = client.lrange(site.keys.rq_queue("shop"), 0, -1)
    client.hset(site.keys.rq_job(job.decode()), "enqueued_at", "2026-01-01T00:00:00.000000Z")
    full = one(site, "queues")
    assert full.mark == KNOW and "though everstep.h.1.x shows nothing under way" in full.said
    assert "kill -TERM" in full.fix
    client.hset(name, "state", "busy")
    assert one(site, "queues").said.endswith("those who listen are busy")
    client.set(site.keys.rq_suspended, 1)
    assert one(site, "queues").mark == "ok"  # why nobody takes it is said elsewhere
    client.delete(site.keys.rq_suspended)
    client.hset(site.keys.rq_job(job.decode()), "enqueued_at", "some time")
    assert one(site, "queues").mark == "ok"


def test_lost_keys_are_found_and_recover_mends_them(site: Site) -> None:
    client: Any = site.redis
    client.delete(site.keys.rq_alive)
    assert "RQ's were lost" in one(site, "indexes").said and "everstep recover" in one(site, "indexes").fix
    client.delete(*[key for key in client.keys("*") if b":log:" not in key])
    assert "ours and RQ's were lost" in one(site, "indexes").said
    assert main(["--url", site.url, "recover"]) == 0
    assert one(site, "indexes").mark == "ok"


def test_a_suspended_fleet_is_said(site: Site) -> None:
    site.redis.set(site.keys.rq_suspended, 1)
    assert one(site, "suspended").fix == f"rq resume --url {site.url}"


def test_parked_tasks_name_the_code_that_they_wait_for(site: Site) -> None:
    submit(site)
    offer = Offer("everstep.h.1.x", (new_id(),), ("shop",), lease_ms=60_000)
    (leased,) = site.client.moves.claim(offer).leases
    site.client.moves.release(offer.owner, [leased.token], "parked", "node 'node' is not here")
    assert "node '__start__' of graph 'shop'" in one(site, "parked").said
    assert "everstep migrate" in one(site, "parked").fix
    assert one(site, "places").mark == "ok"


def test_dead_letters_foreign_jobs_and_failures_are_told_apart(site: Site) -> None:
    client: Any = site.redis
    client.sadd(site.keys.rq_queues, site.keys.rq_queue("shop"))
    jobs = {"theirs": '["os.system", null, ["true"], {}]', "poisoned": '["everstep.run_node",null,[],{}]'}
    why = {"theirs": "refused by everstep: its function is os.system", "poisoned": "poison: its process died 4 times"}
    for job, data in jobs.items():
        client.hset(site.keys.rq_job(job), mapping={"data": data, "exc_info": why[job]})
        client.zadd(site.keys.rq_failed("shop"), {job: 9e9})
    client.zadd(site.keys.threads("failed"), {"t": 1})
    assert one(site, "foreign jobs").said.endswith("theirs on shop")
    assert one(site, "dead letters").said.startswith("1 task killed") and one(site, "dead letters").mark == ACT
    assert one(site, "failed").said == "1 thread at rest after a failure"


def test_queues_of_other_applications_are_told_from_ours(site: Site) -> None:
    client: Any = site.redis
    for queue, job in (("mails", "m1"), ("shop", "s1")):
        client.sadd(site.keys.rq_queues, site.keys.rq_queue(queue))
        client.rpush(site.keys.rq_queue(queue), job)
        client.hset(site.keys.rq_job(job), mapping={"data": b"x\x9c\x00", "origin": queue})
    client.hset(site.keys.rq_job("m0"), mapping={"data": b"x\x9c\x00", "exc_info": "Traceback: ..."})
    client.zadd(site.keys.rq_failed("mails"), {"m0": 9e9})
    assert marks(site) == {"workers": KNOW}
    assert [each.said for each in found(site, "queues")][
        -1
    ] == "mails, shop: 2 jobs of other applications, not ours to run"
    submit(site)
    ours, theirs = found(site, "queues")
    assert (ours.mark, ours.said) == (ACT, "shop: 2 waiting, and no worker listens")
    assert (theirs.mark, theirs.said) == ("ok", "mails: 1 job of other applications, not ours to run")


def test_a_job_of_ours_that_was_pushed_by_hand_makes_a_queue_ours(site: Site) -> None:
    client: Any = site.redis
    submit(site)
    job = client.lindex(site.keys.rq_queue("shop"), 0)
    client.hset(site.keys.counts, "shop", 0)
    assert one(site, "queues").mark == ACT
    client.hset(site.keys.rq_job(job.decode()), "everstep", '{"keys": "another:{0}:"}')
    assert [each.mark for each in found(site, "queues")] == ["ok", "ok"]


def test_leases_past_their_end_name_their_holder_and_who_should_take_them_back(site: Site) -> None:
    client: Any = site.redis
    submit(site)
    lease(site)
    assert one(site, "leases").said == "1 held, none past its end"
    (token,) = client.zrange(site.keys.leases, 0, -1)
    seconds, _ = client.time()
    client.zadd(site.keys.leases, {token: (seconds - 60) * 1000})
    dead = one(site, "leases")
    assert dead.mark == ACT and "held by everstep.h.1.x: no worker sweeps, there was never a sweep" in dead.said
    assert dead.fix.startswith("everstep worker MODULE:GRAPH")
    site.client.moves.sweep("server", 10_000)
    held = one(site, "leases")
    assert held.mark == KNOW and "nothing expires for another 12" in held.said and held.fix.startswith("wait")
    client.hset(site.keys.sweep, "hold", 0)
    assert "workers sweep" in one(site, "leases").said
    client.hset(site.keys.sweep, "at", (seconds - 300) * 1000)
    assert "the last sweep was 5 min ago" in one(site, "leases").said
    client.delete(site.keys.sweep)
    site.client.moves.sweep("server", 10_000)
    client.hset(site.keys.sweep, mapping={"hold": 0})
    assert site.client.moves.sweep("server", 10_000)["lost"] == 1
    assert one(site, "leases").mark == "ok"


def test_the_inbox_tells_of_refused_and_of_unread_messages(site: Site) -> None:
    site.redis.xadd(site.keys.inbox_rejected, {"reason": "no graph 'x'\x1b[31m"})
    site.redis.xadd(site.keys.inbox, {"graph": "shop"})
    unread, refused = found(site, "inbox")
    assert unread.mark == ACT and "nobody reads them" in unread.said
    assert "no graph 'x'\\x1b" in refused.said and "XREVRANGE" in refused.fix


# --- logs ---


def test_a_deletion_that_was_ended_half_way_is_named_and_its_fix_finishes_it(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(site, "deleting") == []
    assert site.client.moves.delete("done", aside=True) == "deleted"
    half = one(site, "deleting")
    assert half.mark == KNOW and half.said.startswith("thread done stands aside") and half.fix.endswith("delete done")
    assert main(["--url", site.url, *half.fix.partition("everstep ")[2].split(), "--yes"]) == 0
    assert found(site, "deleting") == [] and not site.redis.exists(site.keys.dying("done"))


def test_each_command_in_what_the_doctor_advises_is_there() -> None:
    sources = [Path(inspect.getfile(each)) for each in (doctor, fleet, places, promised, tails)]
    named = {word for path in sources for word in re.findall(r"\beverstep ([a-z][a-z-]*)", path.read_text())}
    assert (
        {"worker", "recover", "delete", "retry"}
        <= named
        <= set(command_line.cli.list_commands(click.Context(command_line.cli)))
    )


def test_a_log_that_takes_no_entry_is_named_with_its_entry_and_its_fix(site: Site) -> None:
    submit(site, "it's")
    site.redis.xadd(site.keys.log("it's"), {"some": "junk"}, id="999-0")
    bad = one(site, "logs")
    assert bad.mark == ACT and bad.said.startswith("thread it's: entry 999-0 is not readable")
    assert bad.fix.startswith("""everstep recover --thread 'it'"'"'s'""")


def test_logs_are_looked_at_with_those_that_run_first_and_a_cut_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(site, "bad")
    site.redis.xadd(site.keys.log("bad"), {"some": "junk"}, id="999-0")
    monkeypatch.setattr("everstep.tails.THREADS_MAX", 1)
    report = look_at_tails(site)
    assert [trouble.thread for trouble in report.troubles] == ["bad"] and report.cut
    monkeypatch.setattr("everstep.tails.THREADS_MAX", 2)
    assert len(look_at_tails(site).troubles) == 1


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        ("XADD {log} 0-5 v 1 kind checkpoint", "can't have the id"),
        ("XADD {log} 7-0 v 1 kind checkpoint digest x next []", "ends with entry 7-0, but its index says checkpoint 0"),
        ("XDEL {log} 0-1", "entries up to 0-1 were removed from its end"),
        ("DEL {log}", "1 thread with a log and no indexes, or the other way round, as t"),
        ("DEL {thread}", "1 thread with a log and no indexes, or the other way round, as t"),
        ("RENAME {runs} {log}", "its log is no stream"),
    ],
)
def test_whatever_is_wrong_with_the_end_of_a_log_is_found(site: Site, harm: str, why: str) -> None:
    import shlex

    submit(site)
    keys = site.keys
    assert one(site, "logs").mark == "ok"
    site.redis.execute_command(
        *shlex.split(harm.format(log=keys.log("t"), thread=keys.thread("t"), runs=keys.runs("t")))
    )
    assert one(site, "logs").mark == ACT and why in one(site, "logs").said


# --- elsewhere ---


def test_a_namespace_where_nothing_has_run_stays_empty_and_is_said(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(site.redis.keys("*"))
    typo = ["--url", site.url, "--namespace", "typo"]
    assert main([*typo, "recover"]) == 3
    assert "nothing has ever run in namespace 'typo'" in (said := capsys.readouterr().err)
    assert "nothing was written" in said and "everstep (partition 0)" in said
    assert main([*typo, "recover", "--thread", "done"]) == 3
    assert main([*typo, "cancel", "done"]) == 3 and main([*typo, "retry", "done"]) == 3
    assert main([*typo, "doctor"]) == 0
    assert "nothing has ever run in namespace 'typo'" in capsys.readouterr().out
    assert sorted(site.redis.keys("*")) == before


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis://127.0.0.1:6379/0", "redis-cli PING"),
        ("redis://h:6390/2", "redis-cli -h h -p 6390 -n 2 PING"),
        ("rediss://me:hush@h/0", "redis-cli -h h --tls --user me --askpass PING"),
        ("redis://:hush@127.0.0.1", "redis-cli --askpass PING"),
        ("unix:///tmp/a b/s?db=3", "redis-cli -s '/tmp/a b/s' -n 3 PING"),
    ],
)
def test_a_line_of_redis_cli_works_when_it_is_pasted_and_holds_no_password(url: str, line: str) -> None:
    assert redis_cli(url, "PING") == line


def test_the_doctor_s_own_lines_reach_its_server(own_server: StartServer) -> None:
    bad = own_server(extra=("--appendonly", "no"))
    fix = one(Site(bad.url), "fsync").fix
    assert fix.startswith(f"redis-cli -s {bad.socket} CONFIG SET appendonly yes; then redis-cli -s")


def test_our_own_lines_name_what_the_shell_s_environment_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERSTEP_URL", "REDIS_URL", "EVERSTEP_NAMESPACE", "EVERSTEP_PARTITION"):
        monkeypatch.delenv(name, raising=False)
    line = "everstep recover (a worker does it by itself)"
    assert Site("redis://127.0.0.1:6379/0").again(line) == line
    there = Site("redis://h:1/2", "shop", "3")
    assert there.again("everstep recover") == "everstep recover --url redis://h:1/2 --namespace shop --partition 3"
    assert there.again("everstep.run_node") == "everstep.run_node"
    assert Site("redis://:hush@h/0").again("everstep recover") == "everstep recover --url URL"
    monkeypatch.setenv("EVERSTEP_URL", "redis://:hush@h/0")
    assert Site("redis://:hush@h/0").again("everstep recover") == "everstep recover"


# --- places ---


def test_open_tasks_in_every_place_are_found_where_they_belong(site: Site) -> None:
    for n in range(3):
        submit(site, f"t{n}")
    lease(site)
    report = look_at_places(site)
    assert (report.threads, report.tasks, report.problems) == (3, 3, [])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("DEL {rq}:queue:shop", "its record says job, which does not have it"),
        ("ZADD {stem}wakes 1 '0 start t'", "in job and also in wake"),
    ],
)
def test_a_queued_task_that_is_nowhere_or_twice_is_found(site: Site, harm: str, said: str) -> None:
    import shlex

    submit(site)
    site.redis.execute_command(*shlex.split(harm.format(stem=site.keys.stem, rq=site.keys.rq)))
    assert look_at_places(site).problems == [f"t start: {said}"]
    assert one(site, "places").fix == "everstep recover"


def test_recover_brings_back_what_is_in_no_place(site: Site) -> None:
    submit(site)
    site.redis.delete(site.keys.rq_queue("shop"))
    assert main(["--url", site.url, "recover"]) == 0
    assert look_at_places(site).problems == []
    assert site.redis.llen(site.keys.rq_queue("shop")) == 1


def test_a_lease_that_is_nobody_s_or_unseen_by_rq_is_found(site: Site) -> None:
    submit(site)
    lease(site)
    client: Any = site.redis
    client.delete(site.keys.rq_started("shop"))
    assert look_at_places(site).problems == ["t start: in lease, but RQ's registry does not show it"]
    client.delete(site.keys.leases)
    assert look_at_places(site).problems == ["t start: its record says lease, which does not have it"]


def test_a_running_thread_without_any_open_task_is_found_and_mended(site: Site) -> None:
    client: Any = site.redis
    submit(site)
    lease(site)
    client.delete(site.keys.open("t"))
    assert look_at_places(site).problems == ["t: it is running, and none of its tasks is in any place"]
    assert one(site, "places").fix == "everstep recover"
    assert main(["--url", site.url, "recover"]) == 0
    assert look_at_places(site).problems == []


def test_a_record_that_is_junk_is_found(site: Site) -> None:
    client: Any = site.redis
    submit(site)
    client.hset(site.keys.open("t"), "start", "{junk")
    (said, *_) = look_at_places(site).problems
    assert "is not readable" in said
