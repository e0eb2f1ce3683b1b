"""A run's record: what a run is told when it begins, as it is stored in the run's first fact. Pure.

    config, context, ... ──Config.of──► Config ──record──► RunRecord ──encode──► field `record`
    input ───────────────────────────────writes──────────────────────────────► field `input`
                                                        both ──start_of / start_with──► moves.Start

Nodes get exactly these on any worker, any day later. What looks like a secret is not stored.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN, Codec, pack
from everstep_checkpoint.errors import CorruptEntry, InvalidInput, InvalidUpdateError, TooLarge

from ..graph.durability import COMMIT, durability_of
from ..graph.fairness import FAIRNESS_KEY, fairness_key
from ..graph.limits import limit_key
from ..graph.runtime import Command
from .contract import MOVE_MAX, START_NODE, START_TASK, UPDATE_TASK, Answered, Mode, RunKind, Start

if TYPE_CHECKING:
    from ..graph.spec import GraphSpec

RECURSION_LIMIT = 10_007  # LangGraph's default
RUN_ID_MAX = 128
_RUN_ID = re.compile(rf"[!-~]{{1,{RUN_ID_MAX}}}")
_CHECKPOINT_ID = re.compile(r"(\d{12,})-[0-9a-f]{8}")
_PLACES = frozenset({"thread_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map", "run_id"})
_SECRETS = frozenset(
    {"password", "passwd", "pwd", "passphrase", "secret", "secrets", "token", "apikey", "credential", "credentials"}
    | {"authorization", "bearer", "cookie"}
)
_SECRET_KEYS = frozenset({"api", "private", "access", "signing", "encryption"})

ALL = "*"
CALLS = "tasks"  # among `live`: the calls of `@task` are told as they begin (`steps/announcing.py`)
_NAMES = frozenset({"tags", "interrupt_before", "interrupt_after", "parent", "live"})

Writes = Sequence[tuple[str, bytes]]
Nodes = Sequence[str] | Literal["*"] | None
Form = Literal["json", "typed"]
STRATEGIES: dict[str, Mode] = {
    "enqueue": "enqueue",
    "reject": "reject",
    "interrupt": "interrupt",
    "rollback": "rollback",
}


def looks_secret(key: str) -> bool:
    """Do a key's words say that its value is a secret? `api_key`, `dbPassword`, `access-token` do; `max_tokens` not."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", key).lower()
    found = re.split(r"[^a-z0-9]+", words)
    pairs = pairwise(found)
    return bool(_SECRETS & set(found)) or any(a in _SECRET_KEYS and b == "key" for a, b in pairs)


def check_run_id(run_id: object) -> str:
    """A run id as it is given: 1 to 128 printable ASCII characters without spaces. Raises InvalidInput."""
    if isinstance(run_id, str) and _RUN_ID.fullmatch(run_id):
        return run_id
    raise InvalidInput(
        f"a run_id has 1 to {RUN_ID_MAX} printable ASCII characters without spaces",
        fix="shorten it, use a hash of it, or leave it out",
    )


def check_text(value: object, what: str) -> str:
    """What is text, or nothing at all. Raises InvalidInput, before anything is written."""
    if isinstance(value, str):
        return value
    raise InvalidInput(
        f"{what} is text, not the {type(value).__name__} {value!r:.100}", fix=f"give {what}=str(...), or leave it out"
    )


def checkpoint_number(checkpoint_id: str) -> int:
    """The number that a checkpoint id begins with. Raises InvalidInput."""
    found = _CHECKPOINT_ID.fullmatch(checkpoint_id)
    if found is None:
        raise InvalidInput(
            f"{checkpoint_id!r} is no checkpoint_id", fix="`everstep history` lists them: 000000000003-5f1c02aa"
        )
    return int(found[1])


class On(NamedTuple):
    """The checkpoint that a run builds on, where that is not the last one of the thread."""

    n: int
    digest: str
    step: int

    @property
    def said(self) -> tuple[str, bytes]:
        """As what tells inputs apart has it, beside the input's own keys."""
        return f" on {self.n}", self.digest.encode()


@dataclass(frozen=True)
class RunRecord:
    """What a run was told. `form`: is its input JSON, to be read by the graph's types, or are its values typed?

    `parent`: of a run that a task called, the root's thread and the way from there (`graph.placing.Place`).
    `interrupt_before`, `interrupt_after`: the nodes at which it is to stop, `*` for all; None: the graph's own.
    `durability`: what each of its steps is promised (`graph.durability`).
    `live`: the stream modes, `custom` and `messages`, that its nodes are listened to in, and `tasks` if calls of
    `@task` are told as they begin; with `subgraphs` also those of the graphs that its tasks call.
    """

    kind: RunKind = "input"
    form: Form = "typed"
    configurable: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: tuple[str, ...] = ()
    context: Any = None
    recursion_limit: int = RECURSION_LIMIT
    durability: str = COMMIT
    actor: str = ""
    trace: str = ""
    deadline: int = 0
    parent: tuple[str, ...] = ()
    interrupt_before: tuple[str, ...] | None = None
    interrupt_after: tuple[str, ...] | None = None
    live: tuple[str, ...] = ()
    subgraphs: bool = False

    def encode(self, codec: Codec = PLAIN) -> bytes:
        """The canonical encoding, without envelope. Fields that say what everybody says are left out. Raises
        InvalidInput for one of another kind than is read."""
        said: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value != getattr(_USUAL, each.name) or each.name == "kind":
                if not isinstance(value, _WRITTEN[each.name]):  # who reads it would call it corrupt
                    raise InvalidInput(f"{each.name} can't be {value!r:.100}", fix="see the signature for what it is")
                said[each.name] = list(cast("tuple[str, ...]", value)) if each.name in _NAMES else value
        return codec.encode(said, "the run's config, metadata and context")

    @classmethod
    def decode(cls, data: bytes, codec: Codec = PLAIN) -> RunRecord:
        """A record from its encoding. Fields of later versions are passed over. Raises CorruptEntry."""
        said = codec.decode(data, "the run's record")
        if not isinstance(said, dict):
            raise CorruptEntry(
                "the run's record is not a mapping", fix="the log was left as it is; look at it with `everstep log`"
            )
        given = cast("dict[str, Any]", said)
        known = {name: given[name] for name in _KINDS if name in given}
        if odd := [name for name, value in known.items() if not isinstance(value, _KINDS[name])]:
            raise CorruptEntry(
                f"the run's record has a {odd[0]!r} of another kind than is written",
                fix="the log was left as it is; look at it with `everstep log`",
            )
        known |= {name: tuple(known[name]) for name in _NAMES & known.keys() if known[name] is not None}
        return cls(**known)


_USUAL = RunRecord()
# What each field of a record may be as it is read.
_KINDS: dict[str, type | tuple[type, ...]] = {
    each.name: (list, type(None))
    if each.name in _NAMES
    else object
    if each.name == "context"
    else dict
    if isinstance(getattr(_USUAL, each.name), dict)
    else type(getattr(_USUAL, each.name))
    for each in fields(RunRecord)
}
_WRITTEN = {name: (tuple, type(None)) if name in _NAMES else kind for name, kind in _KINDS.items()}


@dataclass(frozen=True)
class Config:
    """LangGraph's config, read once: which thread, and what the run is told."""

    thread_id: object = None
    checkpoint_id: str = ""
    checkpoint_ns: str = ""
    run_id: str = ""
    configurable: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: tuple[str, ...] = ()
    recursion_limit: int = RECURSION_LIMIT
    max_concurrency: int | None = None
    context: Any = None
    actor: str = ""
    trace: str = ""
    interrupt_before: tuple[str, ...] | None = None
    interrupt_after: tuple[str, ...] | None = None
    live: tuple[str, ...] = ()
    subgraphs: bool = False
    multitask_strategy: Mode = "enqueue"
    durability: str = ""

    @property
    def has_thread(self) -> bool:
        """Was a thread_id given? None counts as none."""
        return self.thread_id is not None

    @property
    def checkpoint_n(self) -> int | None:
        """The number of the checkpoint it addresses; None: the last one."""
        return checkpoint_number(self.checkpoint_id) if self.checkpoint_id else None

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any] | None,
        *,
        context: Any = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        actor: str = "",
        trace: str = "",
        interrupt_before: Nodes = None,
        interrupt_after: Nodes = None,
        live: Sequence[str] = (),
        subgraphs: bool = False,
        multitask_strategy: str = "enqueue",
        durability: str | None = None,
        fairness_key: str | int | None = None,
    ) -> Config:
        """From `{"configurable": {"thread_id": ...}, "recursion_limit": ..., "metadata": ..., "tags": ...}`.

        Keyword arguments are added to what the config says. Raises InvalidInput.
        """
        said = _mapping(config, "config")
        configurable = _mapping(said.get("configurable"), "config['configurable']")
        configurable |= {FAIRNESS_KEY: fairness_key} if fairness_key is not None else {}
        told = {**_mapping(said.get("metadata"), "config['metadata']"), **_mapping(metadata, "metadata")}
        return cls(
            thread_id=configurable.get("thread_id"),
            checkpoint_id=str(configurable.get("checkpoint_id") or ""),
            checkpoint_ns=str(configurable.get("checkpoint_ns") or ""),
            run_id=str(said.get("run_id") or configurable.get("run_id") or ""),
            configurable=_public(configurable),
            metadata=_public(told),
            tags=_tags([*(said.get("tags") or ()), *tags]),
            recursion_limit=_positive(said.get("recursion_limit", RECURSION_LIMIT), "recursion_limit"),
            max_concurrency=_positive(said["max_concurrency"], "max_concurrency")
            if said.get("max_concurrency")
            else None,
            context=context,
            actor=check_text(actor, "actor"),
            trace=check_text(trace, "trace"),
            interrupt_before=breakpoints(interrupt_before),
            interrupt_after=breakpoints(interrupt_after),
            live=tuple(live),
            subgraphs=subgraphs and bool(live),
            multitask_strategy=strategy(multitask_strategy),
            durability=durability_of(durability),
        )

    def promised(self, by_default: str) -> Config:
        """With the graph's durability, where the call says none."""
        return self if self.durability else replace(self, durability=by_default)

    def record(self, kind: RunKind, form: Form = "typed") -> RunRecord:
        """The record of a run with this config."""
        return RunRecord(
            kind,
            form,
            self.configurable,
            self.metadata,
            self.tags,
            self.context,
            self.recursion_limit,
            self.durability or COMMIT,
            actor=self.actor,
            trace=self.trace,
            interrupt_before=self.interrupt_before,
            interrupt_after=self.interrupt_after,
            live=self.live,
            subgraphs=self.subgraphs,
        )


def strategy(given: str) -> Mode:
    """What an input on a busy thread does. Raises InvalidInput for a word that is none."""
    if given not in STRATEGIES:
        raise InvalidInput(f"no multitask_strategy {given!r}", fix=f"choose among {', '.join(STRATEGIES)}")
    return STRATEGIES[given]


def breakpoints(given: Nodes) -> tuple[str, ...] | None:
    """Nodes to stop at, as they are stored. None says nothing, an empty list says: at none."""
    return None if given is None else (ALL,) if given == ALL else tuple(given)


def stops_at(nodes: Iterable[str], marked: tuple[str, ...]) -> bool:
    """Is one of the nodes marked?"""
    return bool(marked) and any(ALL in marked or node in marked for node in nodes)


def kind_of(data: object) -> RunKind:
    """The kind of run that an input asks for. Raises InvalidUpdateError for a Command that is for another graph."""
    if not isinstance(data, Command):
        return "continue" if data is None else "input"
    if data.graph is not None:
        raise InvalidUpdateError(
            f"the Command is for the graph {data.graph!r}, and there is no parent graph",
            fix="leave out `graph`: it is then for the graph that is invoked",
        )
    return "resume" if data.resume is not None or data.update or data.goes else "continue"


def commands(data: object) -> bool:
    """Is it a Command that does more than answer?"""
    return isinstance(data, Command) and bool(data.update or data.goes)


def input_sum(graph: str, kind: str, writes: Writes) -> str:
    """22 characters that tell a run's input from any other; the order of its keys says nothing."""
    packed = pack([graph, kind, sorted(map(list, writes))])
    return base64.urlsafe_b64encode(hashlib.sha256(packed).digest())[:22].decode()


def start_with(
    record: RunRecord,
    writes: Writes,
    *,
    thread: str,
    run: str,
    graph: str,
    queue: str,
    task: str = START_TASK,
    node: str = START_NODE,
    mode: Mode = "enqueue",
    codec: Codec = PLAIN,
    answers: Sequence[Answered] = (),
    at: tuple[int, str] | None = None,
    insum: str = "",
    on: On | None = None,
    nodes: Sequence[tuple[str, int]] = (),
) -> Start:
    """The run to begin, from its record and its encoded input. Raises TooLarge, UnknownType, InvalidInput.

    `answers` are those of a run that resumes, at most 250; `insum` then tells them from others. `on`: the checkpoint
    it builds on, where that is not the last one; the thread must be at rest then. `nodes`: the nodes that an update
    stands for, each with how many of the writes are its own; only where `node` does not say it all.
    """
    if len(answers) > MOVE_MAX:
        raise InvalidInput(
            f"{len(answers)} answers at once", thread=thread, fix=f"resume with at most {MOVE_MAX}, then with the rest"
        )
    told = [
        *writes,
        *([on.said] if on else []),
        *((f" as {x}", str(n).encode()) for x, n in nodes),
    ]
    insum = insum or input_sum(graph, record.kind, told)
    said: e.Fields = {
        "run": check_run_id(run), "kind_of_run": record.kind, "task": task, "node": node, "graph": graph,
        "queue": queue, "record": e.wrap(record.encode(codec)), "input": e.pack_writes(writes), "insum": insum,
    }  # fmt: skip
    said |= {"tasks": json.dumps(nodes)} if nodes else {}
    said["sum"] = e.fact_sum(said)
    said |= {"on": f"{on.n} {on.digest}"} if on else {}
    said |= {"actor": record.actor} if record.actor else {}
    said |= {"trace": record.trace} if record.trace else {}
    said |= {"limit_key": key} if (key := limit_key(record.configurable)) else {}
    said |= {FAIRNESS_KEY: key} if (key := fairness_key(record.configurable)) else {}
    _check_size(thread, said, answers)
    how: Mode = "reject" if on and mode == "enqueue" else mode
    base = on.step if on else None
    return Start(
        thread, run, record.kind, graph, queue, insum, said, task, node, how, tuple(answers), at, base,
        durability=record.durability,
    )  # fmt: skip


def start_of(
    spec: GraphSpec,
    thread: str,
    run: str,
    data: object,
    config: Config,
    kind: RunKind,
    node: str = START_NODE,
    *,
    on: On | None = None,
) -> Start:
    """The run to begin where the graph's code is at hand: the input is checked by its types.

    Raises InvalidInput, EmptyInputError, InvalidUpdateError, UnknownType, TooLarge.
    """
    match kind:
        case "continue" | "resume" | "fork":
            task, writes = START_TASK, []
        case "update":
            task, writes = UPDATE_TASK, spec.node_writes(node, data)
        case "input":
            task, writes = START_TASK, spec.input_writes(data)
    return start_with(
        config.record(kind), writes, thread=thread, run=run, graph=spec.name, queue=spec.default_queue,
        task=task, node=node, mode=config.multitask_strategy, codec=spec.codec, on=on,
    )  # fmt: skip


def _check_size(thread: str, said: e.Fields, answers: Sequence[Answered] = ()) -> None:
    size = sum(len(value) for value in (*said.values(), *(x.value for x in answers)) if isinstance(value, str | bytes))
    if size > e.ENTRY_MAX:
        raise TooLarge(
            f"the input and the record of the run have {size:,} bytes, the cap is {e.ENTRY_MAX:,}",
            thread=thread,
            fix="keep large values elsewhere and a reference in the input",
        )


def _mapping(value: object, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(
            f"{what} must be a dict, not {type(value).__name__}", fix='give {"configurable": {"thread_id": ...}}'
        )
    found: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    if odd := [key for key in found if not isinstance(key, str)]:
        raise InvalidInput(f"{what} has a key {odd[0]!r} that is no text", fix="use text keys")
    return dict(found)


def _public(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored: no addresses, no internals, nothing that looks like a secret."""
    return {
        key: value
        for key, value in given.items()
        if key not in _PLACES and not key.startswith("__") and not looks_secret(key)
    }


def _tags(given: Sequence[object]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(tag) for tag in given))


def _positive(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(
            f"{what} must be a whole number of at least 1, not {value!r}", fix="leave it out for the default"
        )
    return value
