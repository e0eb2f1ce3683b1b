"""The moves on Redis: each is one script, sent as its hash, its source in the package.

Nothing here is resent unless the script answers a resend as it answered the first time; all of them do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeVar

import redis
from redis.exceptions import NoScriptError

from everstep_checkpoint.entries import Fields
from everstep_checkpoint.errors import Conflict, CorruptEntry, EverstepError, LogError, ServerUnavailable
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys, is_within
from everstep_checkpoint.redislog import RedisLog
from everstep_checkpoint.signing import FIELD, Signer, of_environment

from ..graph.limits import Limits
from .connection import Client, server_error, translated
from .contract import (
    LEASE_MS,
    MOVE_MAX,
    PATIENCE_S,
    RENEW_MAX,
    Answer,
    Branch,
    Call,
    Caller,
    Commanded,
    Commit,
    Lease,
    Offer,
    Renewed,
    Start,
    Started,
    Within,
    check_thread,
)
from .plain import PLAIN, can_refill, flattened, is_answer, is_plain, words
from .plain import answers as plain_answers
from .sealing import Sealer

STARTING = ("start", "commit")  # the scripts that begin runs
T = TypeVar("T")
_ODD = re.compile(r"\\udc[89a-f]|[\udc80-\udcff]")  # a byte that is no text, as it is decoded, and as `repr` shows that
Header = dict[str, Any]
_PLAIN: Header = {PLAIN: 1}  # the arguments behind it say all
_json = json.JSONEncoder(separators=(",", ":")).encode
_read = json.JSONDecoder().decode


@cache
def source(name: str) -> str:
    """The text of a script, what all of them share included."""
    lua = files("everstep_scheduler.moves") / "lua"
    asked = ("lone", "plain") if name == "commit" else ("header",)
    shared = (
        "date",
        *asked,
        "common",
        "limits",
        "opening",
        "resting",
        "taking",
        "turns",
        *(("starting",) if name in STARTING else ()),
    )
    return "".join((lua / f"{each}.lua").read_text() for each in (*shared, name))


@cache
def sha(name: str) -> str:
    """The name under which Redis knows a script; it names, it does not protect."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


def salt() -> str:
    """Four random characters of A-Z a-z 0-9 _ - that make a job id new."""
    return new_id()[:4]


def job_prefix(thread: str, birth: str) -> str:
    """The first part of a thread's job ids: base32 of 80 bits of SHA-256(thread, birth)."""
    digest = hashlib.sha256(f"{thread}\0{birth}".encode("utf-8", "surrogatepass")).digest()
    return base64.b32encode(digest[:10]).decode().lower()


class Scripts:
    """Sends scripts and reads their answers. `on_rebuild` is called when a script finds our or RQ's keys gone."""

    def __init__(self, client: Client, keys: Keys, on_rebuild: Callable[[], None] | None = None, url: str = "") -> None:
        self.client = client
        self.keys = keys
        self.url = url
        self.on_rebuild = on_rebuild

    def run(self, name: str, header: Header, args: Sequence[Any] = ()) -> Header:
        """One script, one round trip. Raises ServerError, and CorruptEntry if the log takes no entry."""
        return self.run_all([(name, header, args)])[0]

    def run_all(self, calls: Sequence[tuple[str, Header, Sequence[Any]]]) -> list[Header]:
        """Several scripts in one pipeline, each on its own; those that found a rebuild due are sent again behind it."""
        answers = self._send(calls)
        again = [i for i, answer in enumerate(answers) if answer.get("status") == "rebuild"]
        if again and self.on_rebuild is not None:
            self.on_rebuild()
            for i, answer in zip(again, self._send([calls[i] for i in again]), strict=True):
                answers[i] = answer
        return answers

    def _send(self, calls: Sequence[tuple[str, Header, Sequence[Any]]]) -> list[Header]:
        packed = [(name, (*self._first(header), *args)) for name, header, args in calls]
        try:
            if len(packed) == 1:
                return [_answered(self._one(*packed[0]))]
            return [_answered(raw) for raw in self._many(packed)]
        except redis.RedisError as error:
            raise self._said(error, calls) from error

    def _said(self, error: redis.RedisError, calls: Sequence[tuple[str, Header, Sequence[Any]]]) -> EverstepError:
        """The error in our words; where a log refused an entry, with the thread, if only one can be meant."""
        said = server_error(error, self.url)
        threads = {str(header.get("thread", "")) for _, header, _ in calls}
        if isinstance(said, CorruptEntry) and len(threads) == 1:
            said.of(threads.pop())
        return said

    def _first(self, header: Header) -> tuple[str, ...]:
        """A script's first argument; a plain commit's is the first of its words."""
        return () if PLAIN in header else (_json({"rq": self.keys.rq, **header}),)

    def command(self, name: str, header: Header, args: Sequence[Any]) -> tuple[Any, ...]:
        """The command that runs a script."""
        return ("EVALSHA", sha(name), 1, self.keys.stem, *self._first(header), *args)

    def _one(self, name: str, args: Sequence[Any]) -> Any:
        try:
            return self.client.evalsha(sha(name), 1, self.keys.stem, *args)
        except NoScriptError:
            return self.client.eval(source(name), 1, self.keys.stem, *args)

    def _many(self, packed: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        untyped: Any = self.client
        pipe = untyped.pipeline(transaction=False)
        for name, args in packed:
            pipe.execute_command("EVALSHA", sha(name), 1, self.keys.stem, *args)
        raws = list(pipe.execute(raise_on_error=False))
        for i, raw in enumerate(raws):
            if isinstance(raw, NoScriptError):
                raws[i] = self._one(*packed[i])
            elif isinstance(raw, Exception):
                raise raw
        return raws


def _entries(new: Sequence[Fields], n: int) -> tuple[list[list[Any]], list[Any]]:
    """Entries as a script takes them: [id, kind, number of arguments] each, and all arguments flat."""
    heads: list[list[Any]] = []
    flat: list[Any] = []
    for fields in new:
        kind = str(fields["kind"])
        n = n + 1 if kind == "checkpoint" else n
        said = flattened(fields)
        heads.append([f"{n}-0" if kind == "checkpoint" else f"{n}-*", kind, len(said)])
        flat += said
    return heads, flat


def _answered(raw: Any) -> Header:
    return {"status": "ok", PLAIN: raw} if is_answer(raw) else _told(raw)


def _told(raw: bytes) -> Header:
    """What a script says. Where one byte of it is no text, what that is in is left out, with a line, and the rest holds
    good: a lease that nobody can read must not take those with it that came in the same answer."""
    try:
        found: Header = _read(raw.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        found = _read(raw.decode("utf-8", "surrogateescape"))
        spoilt = [row for row in found.get("leases", ()) if _ODD.search(str(row))]
        found["leases"] = [row for row in found.get("leases", ()) if row not in spoilt]
        lines = [f"{row[13]}: its task, {row[4]} of thread {row[1]}, has bytes that are no text" for row in spoilt]
        said = [*found.get("refused", ()), *lines]
        found["refused"] = [line.encode("utf-8", "backslashreplace").decode() for line in said]
    return found


def _one_answer(commit: Commit, offer: Offer, answer: Header) -> Answer:
    if PLAIN not in answer:
        return _answer(_standing(answer))
    (told,) = plain_answers([commit], offer, answer[PLAIN])
    assert told is not None, "a commit that is alone is done, or the general one decides"
    return told


def _standing(answer: Header) -> Header:
    """An answer that settles something. Raises ServerUnavailable while indexes are being rebuilt: nothing was done."""
    if answer.get("status") == "rebuild":
        raise ServerUnavailable("the indexes are being rebuilt from the logs", fix="it passes by itself; try again")
    return answer


def _leases(answer: Header) -> tuple[Lease, ...]:
    return tuple(Lease(*row) for row in answer.get("leases", ()))


def _started(answer: Header) -> Started:
    return Started(
        answer["status"],
        str(answer.get("entry", "")),
        str(answer.get("run", "")),
        _leases(answer),
        str(answer.get("under_way", "")),
        str(answer.get("caller", "")),
        int(answer.get("till", 0)),
    )


def _answer(answer: Header) -> Answer:
    return Answer(
        answer["status"], _leases(answer), tuple(answer.get("refused", ())), str(answer.get("run_status", "")),
        tuple(answer.get("children", ())),
    )  # fmt: skip


def _begun(start: Start) -> tuple[Header, list[Any]]:
    """A run to begin as the scripts take it, and its arguments. Raises InvalidInput for a thread without indexes."""
    check_thread(start.thread)
    birth = new_id()
    flat = flattened({name: value for name, value in start.fields.items() if name != "run"})
    header: Header = {
        "thread": start.thread, "run": start.run, "sum": start.sum, "kind": start.kind, "graph": start.graph,
        "queue": start.queue, "task": start.task, "node": start.node, "mode": start.mode, "birth": birth,
        "jid": job_prefix(start.thread, birth), "count": len(flat),
    }  # fmt: skip
    if start.goes_on:
        header["answers"] = [[each.task, each.question, *filter(None, [each.sig])] for each in start.answers]
        flat += [each.value for each in start.answers]
    if start.command is not None:
        header["command"], pieces = _commanded(start.command)
        flat += pieces
    if start.at is not None:
        header["at"] = start.at
    if start.base is not None:
        header["base"] = start.base
    if start.on is not None:
        header["on"] = start.on
    if start.parent:
        header["parent"] = start.parent
    if start.limit_key:
        header["lk"] = start.limit_key
    if start.fairness_key:
        header["fk"] = start.fairness_key
    return header, flat


def _called(call: Call) -> tuple[Header, list[Any]]:
    if call.start is None:
        return {"thread": call.thread, "run": call.run, "waits": 1}, []
    return _begun(call.start)


def _commanded(command: Commanded) -> tuple[Header, list[Any]]:
    """A Command as the script takes it, and the values of its parts, flat."""
    tasks = [[node, queue, _json(seconds)] for node, queue, seconds in command.tasks]
    said: Header = {"after": command.after, "tasks": tasks, "parts": [count for _, count in command.parts]}
    said |= {"updates": 1} if command.updates else {}
    sigs = [part[FIELD] for part, _ in command.parts if FIELD in part]
    said |= {"sigs": sigs} if sigs else {}
    return said, [part[name] for part, _ in command.parts for name in ("tasks", "sends", "sum")]


class RedisMoves:
    """`Moves` on Redis. `signer`: who signs what is written, as of a `RedisLog`."""

    def __init__(
        self,
        scripts: Scripts,
        signer: Signer | Literal["environment"] | None = "environment",
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.scripts = scripts
        self.patience_s = patience_s
        signer = of_environment() if isinstance(signer, str) else signer
        self.sealer = Sealer(signer, self._head) if signer is not None else None

    def _head(self, thread: str) -> tuple[int, str] | None:
        """Where a thread stands by what its log says; the beginning where that can't be read."""
        try:
            with translated(self.scripts.url):
                head = RedisLog(self.scripts.client, self.scripts.keys, None).head(thread)
        except LogError:
            return None
        return (head.n, head.digest) if head is not None else None

    def start(self, start: Start, offer: Offer | None = None, caller: Caller | None = None) -> Started:
        start = self.sealer.start(start) if self.sealer is not None else start
        header, flat = _begun(start)
        header["salt"] = salt()
        if start.mode in ("interrupt", "rollback"):
            header |= {"actor": start.stopper, "over": start.over}
        if offer is not None:
            header |= {"own": 1, **self._offer(offer)}
        if caller is not None:
            header |= {"caller": caller.name, "here": dict.fromkeys(caller.here, 1), "seen": dict(caller.seen)}
            header |= {"only": 1} if caller.only else {}
        return _started(self.scripts.run("start", header, flat))

    def limit(self, graph: str, limits: Limits) -> None:
        said = _json({node: each.stored(graph, node) for node, each in limits.items()}) if limits else ""
        self.scripts.run("limit", {"graph": graph, "limits": said})

    def leave(self, caller: str, *, ended: bool) -> None:
        said: Header = {"owner": "", "tokens": [], "to": "job", "caller": caller, "salt": salt()}
        self.scripts.run("release", said | ({"ended": 1} if ended else {}))

    def branch(self, branch: Branch, offer: Offer | None = None, *, ask: bool = False) -> Started:
        check_thread(branch.start.thread)
        branch = self.sealer.branch(branch) if self.sealer is not None and not ask else branch
        start, (n, digest) = branch.start, branch.after
        facts = {"kind": "run_started", **start.fields}
        heads, flat = ([], []) if ask else _entries([facts, branch.made], n)
        header: Header = {
            "thread": start.thread, "n": n, "digest": digest, "run": start.run, "sum": start.sum, "graph": start.graph,
            "queue": start.queue, "jid": job_prefix(start.thread, digest), "salt": salt(), "entries": heads,
            "head": branch.head, "next": branch.next, "base": start.base, "stop": branch.stop,
        }  # fmt: skip
        header |= {"parts": branch.parts} if branch.parts else {}
        header |= {"on": start.on} if start.on is not None else {}
        header |= {"ask": 1} if ask else {}
        header |= {"lk": start.limit_key} if start.limit_key else {}
        header |= {"fk": start.fairness_key} if start.fairness_key else {}
        if offer is not None:
            header |= {"own": 1, "caller": offer.caller, **self._offer(offer)}
        return _started(_standing(self.scripts.run("branch", header, flat)))

    def _offer(self, offer: Offer) -> Header:
        said: Header = {"owner": offer.owner, "tokens": offer.tokens, "lease_ms": offer.lease_ms}
        if offer.queues:
            said["queues"] = offer.queues
        if offer.process:
            said["proc"] = offer.process
        return said

    def claim(self, offer: Offer, *, take: str = "", serves: Sequence[str] = ()) -> Answer:
        header: Header = {"salt": salt(), "spare": new_id(), **self._offer(offer)}
        if take:
            header["take"] = take
        if offer.thread:
            header["thread"] = offer.thread
        if serves:
            header["serves"] = list(serves)
        answer = self.scripts.run("claim", header)
        children = list(answer.get("children", ()))
        while offer.thread and not answer.get("leases") and answer.get("cursor", "0") != "0":
            answer = self.scripts.run("claim", {**header, "cursor": answer["cursor"], "salt": salt()})
            children += answer.get("children", ())
        return _answer({**answer, "children": children})

    def commit(self, commits: Sequence[tuple[Commit, Offer]]) -> list[Answer]:
        answers = self.scripts.run_all([self._commit(commit, offer) for commit, offer in commits])
        return [_one_answer(*pair, answer) for pair, answer in zip(commits, answers, strict=True)]

    def command(self, commits: Sequence[Commit], offer: Offer) -> tuple[Any, ...]:
        """The command that commits, for a caller that sends it over a connection of its own. Several go together if
        each of them `is_plain` and the offer `can_refill`."""
        if len(commits) == 1:
            return self.scripts.command(*self._commit(commits[0], offer))
        return self.scripts.command("commit", _PLAIN, self._words(commits, offer))

    def _words(self, commits: Sequence[Commit], offer: Offer) -> list[Any]:
        if self.sealer is not None:
            commits = [self.sealer.commit(each) for each in commits]
        keys = self.scripts.keys
        return words(commits, keys.stem, keys.rq, offer, salt(), new_id() if offer.queues else "")

    def answers_to(self, commits: Sequence[Commit], offer: Offer, raw: object) -> list[Answer | None]:
        """What a reply to such a command means, for each commit; the leases are told with the first one that has an
        answer. None if it settles nothing: no reply came, an error did, or a rebuild is due, or it was none for such
        company; then `commit` is to be called, which sends it again and sees to that."""
        if is_answer(raw):
            return plain_answers(commits, offer, raw)
        if isinstance(raw, bytes) and (answer := _told(raw)).get("status") != "rebuild":
            return [_answer(answer)]
        return [None] * len(commits)

    def _commit(self, commit: Commit, offer: Offer) -> tuple[str, Header, list[Any]]:
        if is_plain(commit) and can_refill(offer):
            return "commit", {"thread": commit.lease.thread, **_PLAIN}, self._words([commit], offer)
        commit = self.sealer.commit(commit) if self.sealer is not None else commit
        lease = commit.lease
        heads, flat = _entries(commit.entries, lease.n)
        header: Header = {
            "thread": lease.thread, "n": lease.n, "digest": lease.digest, "task": lease.task, "token": lease.token,
            "run": lease.run, "salt": salt(), "outcome": commit.outcome, "entries": heads, **self._offer(offer),
        }  # fmt: skip
        if commit.head is not None:
            header |= {"head": commit.head, "next": commit.next, "stop": commit.stop}
        if commit.parts:
            header["parts"] = commit.parts
        for name in ("why", "reason", "delay_ms", "question", "kept", "handler", "ahead"):
            if value := getattr(commit, name):
                header[name] = value
        if commit.call is not None:
            header["call"], called = _called(commit.call)
            flat += called
        if offer.thread:
            header |= {"own": 1, "caller": offer.caller}
        elif offer.queues:
            header["spare"] = new_id()
        if not offer.tokens:
            del header["tokens"]
        return "commit", header, flat

    def part(self, lease: Lease, pieces: Sequence[Fields]) -> list[str]:
        calls: list[tuple[str, Header, Sequence[Any]]] = []
        for piece in self.sealer.part(lease, pieces) if self.sealer is not None else pieces:
            heads, flat = _entries([piece], lease.n)
            said = {
                "thread": lease.thread,
                "n": lease.n,
                "digest": lease.digest,
                "task": lease.task,
                "token": lease.token,
            }
            calls.append(("part", {**said, "entries": heads}, flat))
        answers = [_standing(x) for x in self.scripts.run_all(calls)]
        return [str(x["ids"][0]) for x in answers] if all(x["status"] == "ok" for x in answers) else []

    def within(self, lease: Lease, logs: Sequence[Within]) -> bool:
        said, flat = self._kept(logs)
        header: Header = {
            "thread": lease.thread, "n": lease.n, "digest": lease.digest, "task": lease.task, "token": lease.token,
            "logs": said,
        }  # fmt: skip
        answer = _standing(self.scripts.run("within", header, flat))
        if answer["status"] == "moved":
            raise Conflict(
                f"the log {answer['key']!r} ends at {answer['last'] or 'nothing'}: another task wrote into it",
                thread=lease.thread, node=lease.node, fix="let one task at a time call a graph that keeps its state",
            )  # fmt: skip
        return bool(answer["status"] == "ok")

    def edit(self, thread: str, log: Within) -> str:
        said, flat = self._kept([log])
        return str(_standing(self.scripts.run("within", {"thread": thread, "logs": said, "rests": 1}, flat))["status"])

    def _kept(self, logs: Sequence[Within]) -> tuple[list[list[Any]], list[Any]]:
        """Entries of logs that attempts keep, as the script takes them."""
        keys, flat = self.scripts.keys, list[Any]()
        said: list[list[Any]] = []
        for log in logs:
            heads: list[list[Any]] = []
            for entry, fields in log.entries:
                args = flattened(fields)
                heads.append([entry, str(fields["kind"]), len(args)])
                flat += args
            said.append([keys.log(log.thread).removeprefix(keys.stem), log.last, heads])
        return said, flat

    def renew(self, offer: Offer, before: int, *, registry: bool = False, callers: Sequence[str] = ()) -> Renewed:
        most = MOVE_MAX if registry else RENEW_MAX
        chunks = [offer.tokens[i : i + most] for i in range(0, len(offer.tokens), most)] or [()]
        calls: list[tuple[str, Header, Sequence[Any]]] = []
        for i, tokens in enumerate(chunks):
            header: Header = {
                "owner": offer.owner, "lease_ms": offer.lease_ms, "before": before, "tokens": tokens,
                "salt": salt(),
            }  # fmt: skip
            header |= {"wip": 1} if registry else {}
            header |= {"last": len(offer.tokens), "callers": list(callers)} if i == len(chunks) - 1 else {}
            calls.append(("renew", header, ()))
        answers = self.scripts.run_all(calls)
        return Renewed([token for answer in answers for token in answer.get("gone", ())], answers[0].get("at", 0))

    def release(
        self,
        owner: str,
        tokens: Sequence[str] | None,
        to: Literal["job", "parked", "lost"],
        why: str = "",
        node: str = "",
    ) -> int:
        chunks = [None] if tokens is None else [tokens[i : i + MOVE_MAX] for i in range(0, len(tokens), MOVE_MAX)]
        released = 0
        for chunk in chunks:
            header: Header = {"owner": owner, "to": to, "reason": why}
            header |= {} if chunk is None else {"tokens": list(chunk)}
            header |= {"node": node} if node else {}
            more = True
            while more:
                answer = _standing(self.scripts.run("release", {**header, "salt": salt()}))
                released += len(answer.get("released", ()))
                more = bool(answer.get("more"))
        return released

    def cancel(self, thread: str, run: str = "", actor: str = "") -> str:
        run = run or self._run_of(thread)  # named, so that a resend can't meet the run that comes after it
        asked = {"thread": thread, "run": run, "actor": actor}
        first = answer = self.scripts.run("cancel", {**asked, "salt": salt()})
        while answer["status"] == "looking":
            first = answer = self.scripts.run("cancel", {**asked, "seen": answer["seen"], "salt": salt()})
        children = list(answer.get("children", ()))
        while answer.get("more"):
            answer = self.scripts.run("cancel", {"thread": thread, "run": run, "clean": 1, "salt": salt()})
            children += answer.get("children", ())
        for called, its_run in children:
            self.cancel(called, its_run, actor)
        return str(first["status"])

    def _run_of(self, thread: str) -> str:
        """The run under way, or the last one."""
        with translated(self.scripts.url):
            found: Any = self.scripts.client.hget(self.scripts.keys.thread(thread), "run")
        return found.decode() if found else ""

    def delete(self, thread: str, *, aside: bool = False, of: str = "") -> str:
        """`aside`: its log stays as `dying`, and nothing begins on the thread, until its deleter has seen to what it
        called. `of`: only while the log of this thread, which called it, stands aside."""
        said: Header = {"thread": thread, "salt": salt()}
        said |= {"aside": 1} if aside else {}
        said |= {"of": of} if of else {}
        if is_within(thread):
            keys = self.scripts.keys
            said["kept"] = keys.log(thread).removeprefix(keys.stem)
        return str(_standing(self.scripts.run("delete", said))["status"])

    def sweep(self, server: str, lease_ms: int = LEASE_MS) -> Header:
        """Expired leases, due wakes, steps given up: lost, woken, held (ms until leases may expire again), more."""
        return self.scripts.run("sweep", {"server": server, "lease_ms": lease_ms, "salt": salt()})
