"""What a node returned: writes, and where its Commands lead. Pure.

    {"a": 1} ─► writes      Command(update={"a": 1}, goto=["x", Send("y", 2)]) ─► writes, names, Sends
    [Command(...), {"b": 2}, ...] ─► all of it, in order

LangGraph's rules (`langgraph.graph.state._get_updates`, `_control_branch`), but what it drops silently is refused: an
unknown node, an unknown key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import getclosurevars
from types import FunctionType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from everstep_checkpoint.errors import InvalidUpdateError

from .channels import Write
from .runtime import END, Command, Send
from .schema import as_dict, did_you_mean, updates_of
from .spec import GraphSpec


class NodeResult(NamedTuple):
    """What one attempt gave. `goto` and `sends` are those of its Commands; END is left out."""

    writes: list[Write]
    goto: list[str]
    sends: list[Send]


def node_result(spec: GraphSpec, node: str, returned: object) -> NodeResult:
    """A node's return value, sorted out. Raises InvalidUpdateError, UnknownType."""
    if spec.direct or not _has_commands(returned):
        return NodeResult(spec.node_writes(node, returned), [], [])
    result = NodeResult([], [], [])
    for each in _flat(returned):
        if isinstance(each, Command):
            _obey(spec, node, each, result)  # pyright: ignore[reportUnknownArgumentType]
        else:
            result.writes.extend(spec.node_writes(node, each))
    return result


def _has_commands(returned: object) -> bool:
    return type(returned) is not dict and any(isinstance(each, Command) for each in _flat(returned))


def _flat(returned: Any) -> list[Any]:
    return list(returned) if isinstance(returned, (list, tuple)) else [returned]  # pyright: ignore


class ForParent(Exception):
    """Ends an attempt, and the run of its graph: a Command for the graph that it is a node of, encoded."""

    def __init__(self, command: bytes) -> None:
        super().__init__("a Command for the parent")
        self.command = command


def _up(spec: GraphSpec, node: str, command: Command[Any]) -> ForParent:
    """The command as plain values: the update as pairs, Sends as [node, argument, seconds]. Raises UnknownType."""
    update = command.update
    fields = as_dict(update)
    fields = updates_of(update) if fields is None else fields
    pairs: Any = [] if update is None else list(fields.items()) if fields is not None else update
    goto = [[each.node, each.arg, each.timeout_s] if isinstance(each, Send) else each for each in command.goes]
    said = [[list(pair) for pair in _pairs(node, pairs)], goto]
    return ForParent(spec.codec.encode(said, f"the Command of {node!r} for the parent"))


def _obey(spec: GraphSpec, node: str, command: Command[Any], result: NodeResult) -> None:
    if command.graph == Command.PARENT and spec.home:
        raise _up(spec, node, command)
    if command.graph is not None:
        raise InvalidUpdateError(
            f"The node {node!r} returned a Command for the graph {command.graph!r}, but {spec.name!r} has no parent",
            node=node,
            fix="Leave out `graph`: the Command is then for the node's own graph.",
        )
    result.writes.extend(_update(spec, node, command.update))
    for each in command.goes:
        name: Any = each.node if isinstance(each, Send) else each  # whatever was said, until it is one of the nodes
        if name == END and not isinstance(each, Send):
            continue
        if name not in spec.nodes:
            raise InvalidUpdateError(
                f"The node {node!r} goes to {name!r}, which is no node", node=node, fix=did_you_mean(name, spec.nodes)
            )
        result.sends.append(each) if isinstance(each, Send) else result.goto.append(name)


def _update(spec: GraphSpec, node: str, update: object) -> list[Write]:
    """A Command's update: what a node may return, or (key, value) pairs."""
    if not isinstance(update, (list, tuple)):
        return spec.node_writes(node, update)
    return spec.key_writes(node, _pairs(node, update))  # pyright: ignore[reportUnknownArgumentType]


def _pairs(node: str, update: object) -> list[tuple[str, Any]]:
    """(key, value) pairs, checked."""
    pairs = _flat(update)
    if not all(isinstance(each, tuple) and len(each) == 2 for each in pairs):  # pyright: ignore
        raise InvalidUpdateError(
            f"The node {node!r} returned a Command whose update is a list, but not one of pairs",
            node=node,
            fix="Give a dict, an instance of a schema, or a list of (key, value) pairs.",
        )
    return pairs


def command_ends(
    function: Any, hints: Mapping[str, Any], given: Mapping[str, str] | Sequence[str] | None
) -> dict[str, str] | None:
    """Where a node's Commands may go -> label. Empty: it returns none, as far as its code tells. None: anywhere.

    By `destinations`, else by its annotation. Without one, a function that can see `Command` may go anywhere.
    """
    if given is not None:
        names: Any = given  # whatever was said, until the graph is checked
        return dict(given) if isinstance(given, Mapping) else {name: name for name in names}
    if "return" not in hints:
        return None if _sees_commands(function) else {}
    found = dict[str, str]()
    for said in _alternatives(hints["return"]):
        if said is Command:
            return None
        if get_origin(said) is Command:
            literals = [name for literal in _alternatives(get_args(said)[0]) for name in get_args(literal)]
            if get_origin(get_args(said)[0]) is not Literal and not literals:
                return None
            found.update({str(name): str(name) for name in literals})
    return found


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or of a list's element; the hint itself otherwise."""
    if get_origin(hint) in (Literal, Command) or not get_args(hint):
        return (hint,)
    return tuple(each for arg in get_args(hint) for each in _alternatives(arg))


def _sees_commands(function: Any) -> bool:
    """Could the function return a Command? The names in its code are looked at; nothing is run."""
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return False
    names = function.__code__.co_names
    seen = [*(function.__globals__.get(name) for name in names), *getclosurevars(function).nonlocals.values()]
    return "Command" in names or any(each is Command or _names_command(each) for each in seen)


def _names_command(each: object) -> bool:
    return isinstance(each, Command) or (isinstance(each, FunctionType) and "Command" in each.__code__.co_names)
