"""Migrating: open tasks of nodes that were renamed or taken away go on as other nodes, as a user's function says.

    plan(thread, says) ──► [Change(task, node ─► to), ...]     looks, writes nothing
    apply(plan)        ──► `task_moved` facts, or `task_done` for END; the run is the same, and goes on

The function is code that the caller brings; nothing of it is in Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import Conflict, InvalidInput, UnknownNode
from everstep_checkpoint.log import unknown_thread
from everstep_checkpoint.signing import FIELD, Signer, sealed

from ..graph.runtime import END, START
from ..graph.schema import did_you_mean
from ..moves.connection import translated
from ..moves.contract import JOIN_NODE, MOVE_MAX, START_NODE
from ..moves.redismoves import salt
from ..reading.questions import open_step
from ..reading.snapshot import snapshot

if TYPE_CHECKING:
    from ..reading.derive import Told
    from .client import Client
    from .manifest import Manifest

PAGE = 500
Says = Callable[[str, dict[str, Any]], str | None]
_OWN = (START_NODE, JOIN_NODE, START)


@dataclass(frozen=True)
class Change:
    """One open task: the node it has, and the one that it gets; END: it is done, and leads nowhere."""

    thread: str
    task: str
    node: str
    to: str


@dataclass(frozen=True)
class Plan:
    """What would be changed on a thread, at the checkpoint that was looked at."""

    thread: str
    n: int
    digest: str
    run: str
    graph: str
    changes: tuple[Change, ...]


def plan(client: Client, thread: str, says: Says) -> Plan:
    """What `says(node, state)` makes of each open task: another node's name, END, or None and its own: as it is.

    `state`: the thread's values as plain data. Raises UnknownThread, UnknownNode for a node that the published graph
    lacks, InvalidInput for an answer that is none, and what the function raises.
    """
    with translated(client.url):
        told = open_step(client.log_store, thread)
        if told is None:
            raise unknown_thread(thread)
        known = client.manifest(told.graph)
        values = snapshot(client.log_store, thread).values
        changes = tuple(_changes(told, thread, known, says, values))
    return Plan(thread, told.n, told.digest, told.run, told.graph, changes)


def _changes(told: Told, thread: str, known: Manifest, says: Says, values: dict[str, Any]) -> Iterator[Change]:
    for task in told.tasks:
        if task.place == "done" or task.node in _OWN:
            continue
        to = says(task.node, dict(values))
        if to is None or to == task.node:
            continue
        if not isinstance(to, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(
                f"the function said {to!r} for node {task.node!r}", fix="return a node's name, END or None"
            )
        if to != END and to not in known.nodes:
            what = f"the function said {to!r} for node {task.node!r}, and {known.name!r} as published has no such node"
            raise UnknownNode(what, thread=thread, fix=did_you_mean(to, known.nodes))
        yield Change(thread, task.task, task.node, to)


def apply(client: Client, made: Plan, actor: str = "") -> list[str]:
    """Do what was planned. Returns the tasks that were changed: what somebody holds meanwhile is left as it is.

    Raises Conflict if the thread has gone on since.
    """
    known = client.manifest(made.graph)
    done: list[str] = []
    for i in range(0, len(made.changes), MOVE_MAX):
        changes = made.changes[i : i + MOVE_MAX]
        moved = [_row(known, each, made, actor, client.log_store.signer) for each in changes if each.to != END]
        ended = [each for each in changes if each.to == END]
        heads, flat = _facts(made, ended, actor, client.log_store.signer)
        header = {
            "thread": made.thread, "n": made.n, "digest": made.digest, "actor": actor, "salt": salt(), "tasks": moved,
            "ended": [[each.task, each.node] for each in ended], "entries": heads,
        }  # fmt: skip
        header |= {"run": made.run} if client.log_store.signer is not None else {}
        answer = client.moves.scripts.run("migrate", header, flat)
        if answer["status"] == "moved":
            what = "the thread has gone on since it was looked at"
            raise Conflict(what, thread=made.thread, fix="look again: what is still open is still to be migrated")
        done += answer.get("moved", ())
    return done


def _row(known: Manifest, change: Change, made: Plan, actor: str, signer: Signer | None) -> list[Any]:
    node = known.nodes[change.to]
    row: list[Any] = [change.task, change.node, change.to, node.queue, node.timeout_s]
    if signer is None:
        return row
    fact = e.fact("task_moved", made.run, task=change.task, node=change.to, queue=node.queue, actor=actor)
    return [*row, signer.seal(made.thread, made.n, made.digest, fact)[FIELD]]


def _facts(made: Plan, ended: list[Change], actor: str, signer: Signer | None) -> tuple[list[list[Any]], list[Any]]:
    """A `task_done` without writes for each task that ends, as the script takes entries."""
    heads: list[list[Any]] = []
    flat: list[Any] = []
    for each in ended:
        said_by: e.Fields = {"actor": actor} if actor else {}
        empty = e.fact("task_done", made.run, task=each.task, node=each.node, writes=e.pack_writes([]), **said_by)
        (fact,) = sealed(signer, made.thread, [e.summed(empty)], (made.n, made.digest))
        said = [x for name, value in fact.items() if name not in ("v", "kind", "run") for x in (name, value)]
        heads.append([f"{made.n}-*", "task_done", len(said)])
        flat += said
    return heads, flat


def parked_threads(client: Client) -> list[str]:
    """The threads that have a parked task, each once."""
    found: dict[str, None] = {}
    keys = client.keys
    with translated(client.url):
        for name in client.redis.hkeys(keys.parked):
            graph, _, node = name.decode().partition(":")
            key, at = keys.parked_for(graph, node), 0
            while page := client.redis.lrange(key, at, at + PAGE - 1):
                found |= {member.decode("utf-8", "surrogatepass").split(" ", 2)[2]: None for member in page}
                at += PAGE
    return list(found)
