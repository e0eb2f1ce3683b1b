"""What comes after a node, and after a superstep. Pure: no Redis, no clock, no dice.

    destinations / adestinations   one attempt: where a node's static edges and routers lead
    returned                       one attempt: its writes, and where it leads
    plan                           one superstep: all writes applied, joins counted, the next step's nodes; deferred
                                   ones when there is no other

A router sees the state at the start of the step with its own task's writes applied, not its siblings'
(LangGraph: `local_read(fresh=True)`). It is part of the attempt, so the update and where it leads are
committed together. Sends are kept by the caller; a plan knows the nodes that edges lead to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from everstep_checkpoint.errors import InvalidUpdateError, caused

from ..graph.channels import DEFERRED, Write, apply
from ..graph.managed import NO_STEPS, Steps
from ..graph.results import NodeResult
from ..graph.runtime import END, START, Send
from ..graph.schema import Schema, did_you_mean
from ..graph.spec import Branch, GraphSpec, Join, form_args
from ..graph.theirs import refuse_theirs

Destinations = tuple[list[str], list[Send]]
Asking = Generator[Callable[[], Any], Any, Destinations]
_WAITS, _NEXT = b"\xc2", b"\xc3"  # what a hidden channel of a deferral holds: false, true


class Returned(NamedTuple):
    """The attempt came to its end. `goto` and `sends` are what edges and routers answered."""

    writes: tuple[Write, ...]
    goto: tuple[str, ...]
    sends: tuple[Send, ...]


class Done(NamedTuple):
    """A task that is done: what it wrote, and the nodes that its edges and routers lead to.

    `node` is START for the task of an input, whose `writes` are the input's.
    """

    task: str
    node: str
    writes: tuple[Write, ...]
    goto: tuple[str, ...]


class Planned(NamedTuple):
    """All channels after the superstep, hidden ones too; the next step's nodes by name, each once; those that ran."""

    channels: dict[str, bytes]
    pulls: tuple[str, ...]
    ran: frozenset[str] = frozenset()


def plan(spec: GraphSpec, channels: Mapping[str, bytes], done: Sequence[Done], *, edits: bool = False) -> Planned:
    """The superstep's end. `done` comes in task order: nodes by name, then Sends by number.

    `edits`: it is an update, in which no task ran. What led to a node before then still leads to it.
    Raises InvalidUpdateError for writes that exclude each other, or a reducer that raises.
    """
    if not spec.has_hidden and channels.keys() <= spec.channels.keys():
        return _planned_plainly(spec, channels, done)
    led = _over(spec, channels) if edits else frozenset[str]()
    writes = [write for each in done for write in each.writes]
    after = apply(spec, channels if edits else armed(spec, channels), writes, partial(_wrote, done))
    for name in spec.ephemeral.difference(name for name, _ in writes):
        after.pop(name, None)
    ran = {each.node for each in done}
    leads = {DEFERRED + node: node for each in done for node in each.goto if node != END}
    for join in spec.joins:
        if not _is_complete(spec, join, after) and _count(spec, join, ran, after) and join.target != END:
            leads[DEFERRED + join.channel] = join.target
    pulls = _now(spec, leads, after) | {join.target for join in spec.joins if join.channel in led}
    for node in pulls:
        _known(spec, node, "An edge")
    return Planned(after, tuple(sorted(pulls)), frozenset(ran))


def _planned_plainly(spec: GraphSpec, channels: Mapping[str, bytes], done: Sequence[Done]) -> Planned:
    """The same for a graph without joins, deferred nodes and channels of one step: what most are."""
    after = apply(spec, channels, [write for each in done for write in each.writes], partial(_wrote, done))
    pulls = {node for each in done for node in each.goto if node != END}
    for node in pulls:
        _known(spec, node, "An edge")
    return Planned(after, tuple(sorted(pulls)), frozenset([each.node for each in done]))


def _wrote(done: Sequence[Done], name: str) -> list[str]:
    """The nodes that wrote to a key."""
    return [each.node for each in done if any(key == name for key, _ in each.writes)]


def _now(spec: GraphSpec, leads: Mapping[str, str], after: dict[str, bytes]) -> set[str]:
    """The nodes that run now. A deferred one waits, in a hidden channel of its own or of its join's, until no other
    would run; then all do that wait. Sends keep none of them waiting.

    (LangGraph: `apply_writes` and the `finish` of `LastValueAfterFinish`, `NamedBarrierValueAfterFinish`.)
    """
    waits = {name for name, node in leads.items() if node in spec.nodes and spec.nodes[node].defer}
    after.update((name, _WAITS) for name in sorted(waits))
    now = {node for name, node in leads.items() if name not in waits}
    if not now:
        after.update((name, _NEXT) for name in [*after] if name.startswith(DEFERRED))
    return now | {
        name.rpartition(":")[2] for name, value in after.items() if name.startswith(DEFERRED) and value == _NEXT
    }


def armed(spec: GraphSpec, channels: Mapping[str, bytes]) -> dict[str, bytes]:
    """The channels once the tasks of their step are over, done or given up: what led to one begins anew."""
    over = _over(spec, channels)
    return {name: value for name, value in channels.items() if name not in over}


def _over(spec: GraphSpec, channels: Mapping[str, bytes]) -> frozenset[str]:
    """The hidden channels that led to tasks of this step: complete joins, and deferrals, but for those that wait."""
    nexts = {name for name, value in channels.items() if name.startswith(DEFERRED) and value == _NEXT}
    joins = {join.channel for join in spec.joins if _is_complete(spec, join, channels)}
    return frozenset(nexts | {name for name in joins if channels.get(DEFERRED + name) != _WAITS})


def _is_complete(spec: GraphSpec, join: Join, channels: Mapping[str, bytes]) -> bool:
    return _arrived(spec, join, channels) >= set(join.starts)


def _arrived(spec: GraphSpec, join: Join, channels: Mapping[str, bytes]) -> set[str]:
    """The names that a join's barrier has seen. A complete one stands until the step of its node is closed."""
    stored = channels.get(join.channel)
    return set(cast("list[str]", spec.codec.decode(stored, join.channel))) if stored is not None else set()


def _count(spec: GraphSpec, join: Join, ran: set[str], after: dict[str, bytes]) -> bool:
    """Adds the names that ran to a join's barrier in `after`. Is it complete now? One that leads to END begins anew."""
    arrived = ran & set(join.starts)
    if not arrived:
        return False
    seen = arrived | _arrived(spec, join, after)
    complete = seen >= set(join.starts)
    if complete and join.target == END:
        after.pop(join.channel, None)
    else:
        after[join.channel] = spec.codec.encode(sorted(seen), join.channel)
    return complete


def destinations(
    spec: GraphSpec,
    node: str,
    channels: Mapping[str, bytes],
    gave: NodeResult,
    config: object,
    runtime: object,
    steps: Steps = NO_STEPS,
) -> Destinations:
    """Where a node's attempt leads: names (END left out) and Sends, in the order of edges, Commands, routers.

    `channels` are those at the start of the step, `gave` is the attempt's own. `node` may be START. What a
    router raises passes through. For routers that are async (`GraphSpec.needs_loop`) use `adestinations`.
    """
    if not spec.branches_of(node):
        return [*spec.led_to(node), *gave.goto], list(gave.sends)
    asking = _ask(spec, node, channels, gave, config, runtime, steps)
    try:
        call = next(asking)
        while True:
            call = asking.send(call())
    except StopIteration as end:
        return cast("Destinations", end.value)


def returned(writes: Iterable[Write], destinations: Destinations) -> Returned:
    """The outcome of an attempt that came to its end."""
    names, sends = destinations
    return Returned(tuple(writes), tuple(dict.fromkeys(names)), tuple(sends))


async def adestinations(
    spec: GraphSpec,
    node: str,
    channels: Mapping[str, bytes],
    gave: NodeResult,
    config: object,
    runtime: object,
    steps: Steps = NO_STEPS,
) -> Destinations:
    """`destinations` on an event loop: awaits the routers that are async."""
    asking = _ask(spec, node, channels, gave, config, runtime, steps)
    try:
        call = next(asking)
        while True:
            answer = call()
            call = asking.send(await answer if inspect.isawaitable(answer) else answer)
    except StopIteration as end:
        return cast("Destinations", end.value)


def _ask(
    spec: GraphSpec,
    node: str,
    channels: Mapping[str, bytes],
    gave: NodeResult,
    config: object,
    runtime: object,
    steps: Steps = NO_STEPS,
) -> Asking:
    """Yields each router's call, takes its answer, returns the destinations. Drivers only make the calls."""
    own = gave.writes
    names = [*spec.led_to(node), *gave.goto]
    sends = list(gave.sends)
    branches = spec.branches_of(node)
    view = apply(spec, channels, own) if branches else {}
    for branch in branches:
        state = _seen(spec, branch, view, own, steps)
        answer = yield partial(branch.fn, state, **form_args(branch.form, config, runtime))
        _sort_out(spec, branch, answer, names, sends)
    return names, sends


def _seen(spec: GraphSpec, branch: Branch, view: Mapping[str, bytes], own: Sequence[Write], steps: Steps) -> Any:
    """The router's state: its own schema, else its node's. Without a schema of its own it also sees what the
    node returned under keys that the node's schema lacks (LangGraph: `BranchSpec._route`)."""
    schema = branch.input_schema or _schema_of(spec, branch.source)
    state = spec.seen_as(schema, view, steps)
    if branch.input_schema is None and schema.kind == "typeddict":
        beyond = {name: value for name, value in own if name not in schema.fields}
        return {**spec.decoded(beyond, beyond), **state}
    return state


def _schema_of(spec: GraphSpec, source: str) -> Schema:
    return spec.state_schema if source == START else spec.node(source).input_schema


def _sort_out(spec: GraphSpec, branch: Branch, answer: Any, names: list[str], sends: list[Send]) -> None:
    """Puts a router's answer, checked, where it belongs."""
    for each in answer if isinstance(answer, (list, tuple)) else [answer]:  # pyright: ignore[reportUnknownVariableType]
        if isinstance(each, Send):
            _known(spec, each.node, _router(branch))
            sends.append(each)
        elif (name := _mapped(branch, each)) != END:
            _known(spec, name, _router(branch))
            names.append(name)


def _mapped(branch: Branch, said: Any) -> str:
    """The node that a router's word stands for."""
    refuse_theirs(said, f"what {_router(branch)} said")
    try:
        name = said if branch.ends is None else branch.ends[said]
    except (KeyError, TypeError):
        assert branch.ends is not None
        unknown = InvalidUpdateError(
            f"{_router(branch)} said {said!r}, which its path_map does not hold",
            fix=did_you_mean(said, branch.ends),
        )
        raise caused(unknown, None) from None
    if not isinstance(name, str):
        raise InvalidUpdateError(
            f"{_router(branch)} returned {said!r}",
            fix="A router returns a node's name, END, a Send, or a list of these; else give a path_map.",
        )
    return name


def _known(spec: GraphSpec, node: str, who: str) -> None:
    if node not in spec.nodes:
        raise InvalidUpdateError(f"{who} leads to {node!r}, which is no node", fix=did_you_mean(node, spec.nodes))


def _router(branch: Branch) -> str:
    return f"The router {branch.name!r} after {branch.source!r}"
