"""The commit that nearly every step is, as `lone.lua` and `plain.lua` take it, and what they answer. Pure.

Several leave together: what is said of all of them stands once. What it says of a task is written here to the byte as
the script matches it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, TypeGuard

from everstep_checkpoint.entries import Field, Fields

from .contract import Answer, Commit, Lease, Offer

PLAIN = "plain"
NONE = ("", "", "", 0.0)  # of a run that is done no task is next
NO_HEAD = (0, "", 0)
RUNNING, DONE = Answer("ok", run_status="running"), Answer("ok", run_status="done")
USUAL = (
    "v", "kind", "source", "step", "graph", "run", "by", "node", "task", "attempt", "token", "queue", "started", "ms",
    "next", "delta", "writes", "digest",
)  # fmt: skip
_OWN = ("graph", "node", "attempt", "queue", "started", "ms", "next", "delta", "writes")
_own_values = itemgetter(*_OWN)
_json = json.JSONEncoder(separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring_ascii  # what `_json` does with text
_read = json.JSONDecoder().decode


def is_plain(commit: Commit) -> bool:
    """Has the commit no more to say than `plain.lua` takes?"""
    lease = commit.lease
    if commit.outcome != "next" or lease.width != 1 or len(commit.next) > 1 or commit.head is None or commit.stop:
        return False
    if commit.parts or commit.ahead or len(commit.entries) > 2:
        return False
    for entry in commit.entries:
        if entry["kind"] != "checkpoint":
            return False
    row = commit.next[0] if commit.next else NONE
    return len(row) == 4 and lease.thread.isascii() and row[1].isascii() and row[2].isascii()


def can_refill(offer: Offer) -> bool:
    """Can a plain commit bring what is offered for, if anything?"""
    return not offer.thread


def words(commits: Sequence[Commit], stem: str, rq: str, offer: Offer, salt: str, spare: str) -> list[Any]:
    """What the script takes of plain commits that leave together: what they have in common, then each one's part."""
    said = [
        PLAIN, rq, offer.owner, salt, offer.lease_ms, offer.process, spare, len(commits),
        len(offer.tokens), len(offer.queues), *offer.tokens, *offer.queues,
    ]  # fmt: skip
    for commit in commits:
        said += _packed(commit, stem, offer.owner)
    return said


def _packed(commit: Commit, stem: str, owner: str) -> list[Any]:
    """One commit's part of what the script takes."""
    lease, (n, digest, step) = commit.lease, commit.head or NO_HEAD
    row: Sequence[Any] = commit.next[0] if commit.next else NONE
    named = f'{{"keys":{_quoted(stem)},"n":{n},"task":"{row[0]}","thread":{_quoted(lease.thread)}}}'
    *first, last = commit.entries
    before = flattened(first[0]) if first else ()
    usual = is_usual(commit, last, owner)
    said = [*map(sent, _own_values(last))] if usual else flattened(last)
    return [
        lease.thread, lease.n, lease.digest, lease.task, lease.token, lease.run, n, digest, step, *row, named,
        _place(*row[1:]), len(before), 0 if usual else len(said), *before, *said,
    ]  # fmt: skip


def is_usual(commit: Commit, entry: Fields, owner: str) -> bool:
    """Does the checkpoint say what `plain.lua` makes of what it is told of the commit, and of `_OWN`?"""
    lease, (_, digest, step) = commit.lease, commit.head or NO_HEAD
    return (
        tuple(entry) == USUAL
        and entry["source"] == "loop"
        and entry["by"] == owner
        and entry["token"] == lease.token
        and entry["task"] == lease.task
        and entry["run"] == lease.run
        and entry["step"] == step
        and entry["digest"] == digest
    )


@lru_cache(1024)
def _place(node: str, queue: str, timeout_s: float) -> str:
    """Where a task's jobs go, as its record says it."""
    return f'"n":{_json(node)},"q":{_json(queue)},"w":{_json(timeout_s)}'


def is_answer(raw: object) -> TypeGuard[list[Any] | bytes]:
    """Is it an answer of `plain.lua`, or of `lone.lua`, which begins with the time? All others are JSON."""
    return isinstance(raw, list) or (isinstance(raw, bytes) and raw[:1].isdigit())


def answers(commits: Sequence[Commit], offer: Offer, raw: list[Any] | bytes) -> list[Answer | None]:
    """What `plain.lua` answers: the time and the first commit's token, the leases of tasks that waited, and for each
    commit the job of its next task if that is leased at once, and as which lease; -1 if nothing was done. The first one
    done has all the leases. `lone.lua` answers with a line: the time, the token, the job. Raises ValueError for an
    answer to other commits."""
    time_ms, token, *own = (raw if isinstance(raw, bytes) else raw[0]).split(b" ", 2)
    if token.decode() != commits[0].lease.token:  # whose answer it is: nobody has to trust the order of replies
        raise ValueError(f"an answer to other commits than that of {commits[0].lease.token}")
    at_ms = int(time_ms)
    if isinstance(raw, bytes):
        return [Answer("ok", (_own(commits[0], offer.tokens[0], own[0].decode(), at_ms),), (), RUNNING.run_status)]
    rows: list[list[Any]] = raw[1]
    told: list[Any] = raw[2:]
    leases, refused, found = dict[int, Lease](), list[str](), list[Answer | None]()
    for row in rows:
        place: int = row[0]
        try:
            leases[place] = _waited(offer.tokens[place - 1], at_ms, row)
        except UnicodeDecodeError:
            said = [each.decode("utf-8", "backslashreplace") for each in row[3:7]]
            refused.append(f"{said[3]}: its task, {said[1]} of thread {said[0]}, has bytes that are no text")
    for at, commit in enumerate(commits):
        job: bytes = told[2 * at]
        place = told[2 * at + 1]
        if job:
            leases[place] = _own(commit, offer.tokens[place - 1], job.decode(), at_ms)
        found.append(None if place < 0 else RUNNING if commit.next else DONE)
    for at, answer in enumerate(found):
        if answer is not None:
            in_turn = tuple(leases.values()) if len(leases) < 2 else tuple(leases[place] for place in sorted(leases))
            found[at] = Answer("ok", in_turn, tuple(refused), answer.run_status)
            break
    return found


def _waited(token: str, at_ms: int, row: list[Any]) -> Lease:
    """The lease of a task that waited: its attempt and where its jobs go, or 0 and its record; names, and what the hash
    of its thread says."""
    _, attempt, record, thread, task, queue, job, conf, over, n, digest, run, graph, birth, began, base = row
    rec = _placed(record) if attempt else _recorded(record)
    return Lease(
        token, _text(thread), int(n), _text(digest), _text(task), rec["n"], attempt or rec["a"], rec.get("l", 0),
        _text(queue), rec["w"], _text(run), _text(graph), 1, _text(job), _text(birth), _text(began), int(base), at_ms,
        0, _text(conf or began), rec.get("an", ""), rec.get("c", ""), rec.get("cl", ""), rec.get("ct", 0),
        _text(over or b""), rec.get("e", ""),
    )  # fmt: skip


def _recorded(record: bytes) -> dict[str, Any]:
    found: dict[str, Any] = _read(_text(record))
    return found


@lru_cache(1024)
def _placed(place: bytes) -> Mapping[str, Any]:
    """What `_place` wrote; most steps go where others went."""
    return _recorded(b"{%s}" % place)


def _text(said: bytes) -> str:
    return said.decode("utf-8", "surrogatepass")


def _own(commit: Commit, token: str, job: str, at_ms: int) -> Lease:
    """The lease of the task that a commit brought."""
    (n, digest, _), (task, node, queue, timeout_s), was = commit.head or NO_HEAD, commit.next[0], commit.lease
    return Lease(
        token, was.thread, n, digest, task, node, 1, 0, queue, timeout_s, was.run, was.graph, 1, job, was.birth,
        was.rec, was.base, at_ms, 0, was.conf,
    )  # fmt: skip


def flattened(fields: Fields) -> list[Any]:
    """Names and values in turn, as a script adds them behind `v` and `kind`."""
    found: list[Any] = []
    for name, value in fields.items():
        if name not in ("v", "kind"):
            found += (name, sent(value))
    return found


def sent(value: Field) -> Field:
    """A field as it is sent: hiredis takes no text with lone surrogates."""
    return value.encode("utf-8", "surrogatepass") if type(value) is str and not value.isascii() else value
