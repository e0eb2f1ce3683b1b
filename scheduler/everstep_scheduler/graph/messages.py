"""`add_messages`: the reducer for a list of chat messages, appended to and replaced by id.

LangGraph's semantics (`langgraph.graph.message`) on two kinds of messages: plain dicts `{"role", "content"}`
with an optional `"id"`, and langchain-core's classes where that is installed. One documented difference:
LangGraph turns dicts into message objects; here a list of dicts stays one, so that a log can be read without
langchain. As soon as one message is an object, a string or a `(role, text)` pair, all become objects (without
langchain-core: dicts).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict, cast

REMOVE_ALL_MESSAGES = "__remove_all__"
NO_IDS = frozenset[str]()


def add_messages(left: Any, right: Any) -> list[Any]:
    """`left` with the messages of `right` appended, or put in the place of the one with the same id.

    Both are a message or a list. Messages without an id get one. A removal (langchain's RemoveMessage, or a
    dict with role "remove") takes the message of its id away, with the id REMOVE_ALL_MESSAGES everything
    before it. Raises ValueError for a removal of an id that is not there, and for what is no message.
    """
    old, new = _same_kind(listed(left), listed(right))
    new = [_with_id(each) for each in new]
    cleared = [n for n, each in enumerate(new) if _removes(each) and _id(each) == REMOVE_ALL_MESSAGES]
    return new[cleared[-1] + 1 :] if cleared else _merged(old, new)


class MessagesState(TypedDict):
    """A state that is a list of messages; extend it with keys of your own."""

    messages: Annotated[list[Any], add_messages]


def _merged(old: list[Any], new: list[Any]) -> list[Any]:
    """A chat is long, and most of what is done with it is this: no call a message where none is needed."""
    ids = _ids(old)
    if None in ids:
        old = [_with_id(each) for each in old]
        ids = _ids(old)
    merged = list(old)
    places = dict(zip(ids, range(len(ids)), strict=True))
    removed: set[Any] = set()
    for each in new:
        place = places.get(_id(each))
        if _removes(each):
            if place is None:
                raise ValueError(f"There is no message with the id {_id(each)!r} to remove")
            removed.add(_id(each))
        elif place is None:
            places[_id(each)] = len(merged)
            merged.append(each)
        else:
            removed.discard(_id(each))
            merged[place] = each
    return [each for each in merged if _id(each) not in removed] if removed else merged


def ids_of(messages: Sequence[Any]) -> frozenset[str] | None:
    """The ids of dicts that all have one; None for other messages."""
    if {*map(type, messages)} != {dict}:
        return None
    ids = _ids(messages)
    return frozenset(ids) if {*map(type, ids)} == {str} else None


def new_ids(known: frozenset[str], right: Any) -> frozenset[str] | None:
    """The ids of messages that `add_messages` only puts behind those with the known ids; None where it does more."""
    messages = listed(right)
    ids = ids_of(messages)
    if ids is None or len(ids) != len(messages) or not known.isdisjoint(ids) or any(map(_removes, messages)):
        return None
    return ids


def listed(messages: Any) -> list[Any]:
    """Messages, of which one may stand without a list."""
    return [*messages] if isinstance(messages, list) else [messages]  # pyright: ignore


def _same_kind(left: Sequence[Any], right: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Both sides as dicts if all are, else as langchain's messages."""
    if {*map(type, left), *map(type, right)} <= {dict} or all(isinstance(each, dict) for each in (*left, *right)):
        return list(left), list(right)
    try:
        from langchain_core.messages import BaseMessageChunk, convert_to_messages, message_chunk_to_message
    except ImportError:
        return [_as_dict(each) for each in left], [_as_dict(each) for each in right]

    def convert(messages: Sequence[Any]) -> list[Any]:
        found = convert_to_messages(messages)
        return [message_chunk_to_message(m) if isinstance(m, BaseMessageChunk) else m for m in found]

    return convert(left), convert(right)


def _as_dict(message: Any) -> dict[str, Any]:
    """The plain form of a text (said by the user) or of a `(role, text)` pair."""
    match message:
        case dict():
            return cast("dict[str, Any]", message)
        case str():
            return {"role": "user", "content": message}
        case (str() as role, content):
            return {"role": role, "content": content}
        case _:
            raise ValueError(
                f"A value of type {type(message).__name__} is no message: use a dict with 'role' and 'content'"
            )


def _ids(messages: Sequence[Any]) -> list[Any]:
    if {*map(type, messages)} == {dict}:
        return [each.get("id") for each in messages]
    return [_id(each) for each in messages]


def _id(message: Any) -> Any:
    return cast("dict[str, Any]", message).get("id") if isinstance(message, dict) else message.id


def _with_id(message: Any) -> Any:
    """The message with an id; a copy if it had none."""
    if _id(message) is not None:
        return message
    fresh = {"id": str(uuid.uuid4())}
    if isinstance(message, dict):
        return cast("dict[str, Any]", message) | fresh
    return message.model_copy(update=fresh)


def _removes(message: Any) -> bool:
    if isinstance(message, Mapping):
        plain = cast("Mapping[str, Any]", message)
        return bool(plain.get("role", plain.get("type")) == "remove")
    return bool(message.type == "remove")
