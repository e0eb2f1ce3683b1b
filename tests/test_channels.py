"""Promises of channels.py, with LangGraph's channels as the oracle: same writes, same values, same errors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import partial, reduce
from typing import Annotated, Any, NotRequired, Optional, Required, TypedDict
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage
from langgraph.channels.base import BaseChannel
from langgraph.errors import EmptyChannelError
from langgraph.errors import InvalidUpdateError as TheirInvalidUpdateError
from langgraph.graph import message as their_message
from langgraph.graph.state import _get_channels  # pyright: ignore[reportPrivateUsage]
from pydantic import BaseModel, Field

from everstep_checkpoint.errors import GraphError, InvalidUpdateError, TooLarge, UnknownType
from everstep_scheduler.graph import channels
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.channels import apply, channel_of
from everstep_scheduler.graph.messages import REMOVE_ALL_MESSAGES, MessagesState, add_messages
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.graph.schema import Schema
from everstep_scheduler.graph.spec import GraphSpec

their_add_messages: Any = their_message.add_messages
ABSENT = object()


class Point(BaseModel):
    x: int = 0


def newest(old: Any, new: Any) -> Any:
    return new


def joined(old: str, new: str, *, sep: str = "-") -> str:
    return f"{old}{sep}{new}"


def raises(old: Any, new: Any) -> Any:
    raise KeyError("odd")


def mutates(old: list[Any], new: list[Any]) -> list[Any]:
    old.extend(new)
    new.append("seen")
    return old


class Everything(TypedDict, total=False):
    last: int
    added: Annotated[list[int], operator.add]
    text: Annotated[str, joined]
    number: Annotated[int, operator.add]
    real: Annotated[float, operator.add]
    seq: Annotated[Sequence[int], newest]
    mutable: Annotated[MutableSequence[int], operator.add]
    kinds: Annotated[AbstractSet[int], operator.or_]
    table: Annotated[Mapping[str, int], operator.or_]
    moment: Annotated[datetime, max]
    maybe: Annotated[int | None, newest]
    old_maybe: Annotated[Optional[int], newest]  # noqa: UP045
    anything: Annotated[Any, newest]
    point: Annotated[Point, newest]
    wrapped: Required[Annotated[list[int], operator.add]]
    inside: Annotated[NotRequired[list[int]], operator.add]
    other_last: Annotated[int, operator.add, "the last metadata is no reducer"]
    changed: Annotated[list[Any], mutates]


NAMES = sorted(Everything.__annotations__)


def spec_of(schema: type[Any]) -> GraphSpec:
    graph = StateGraph(schema).add_node("n", lambda state: None).add_edge(START, "n")
    return graph.spec()


SPEC = spec_of(Everything)


def their_channels() -> dict[str, BaseChannel[Any, Any, Any]]:
    theirs = dict(Everything.__annotations__)
    theirs.pop("moment")  # LangGraph refuses `max`, which does not tell its parameters
    return _get_channels(TypedDict("Theirs", theirs, total=False))[0]  # type: ignore[operator]


def value_of(channel: BaseChannel[Any, Any, Any]) -> Any:
    try:
        return channel.get()
    except EmptyChannelError:
        return ABSENT


def our_value(channels: Mapping[str, bytes], name: str) -> Any:
    return SPEC.codec.decode(channels[name]) if name in channels else ABSENT


@pytest.mark.parametrize("name", [name for name in NAMES if name != "moment"])
def test_a_channel_starts_as_in_langgraph(name: str) -> None:
    assert our_value(SPEC.initial(), name) == value_of(their_channels()[name])


def test_a_reducer_channel_without_an_empty_value_takes_the_first_write_as_it_is() -> None:
    early, late = datetime(2024, 1, 1), datetime(2025, 1, 1)
    assert "moment" not in SPEC.initial()
    write = [("moment", SPEC.codec.encode(each)) for each in (early, late, early)]
    assert our_value(apply(SPEC, {}, write[:1]), "moment") == early
    assert our_value(apply(SPEC, {}, write), "moment") == late


CASES: list[tuple[str, list[list[Any]]]] = [
    ("last", [[1], [2]]),
    ("last", [[1, 2]]),
    ("last", [[1], [1, 1]]),
    ("added", [[[1], [2]], [[3]]]),
    ("text", [["a", "b", "c"], ["d"]]),
    ("number", [[1, 2, 3]]),
    ("real", [[0.1, 0.2], [0.3]]),
    ("seq", [[[1], [2, 3]]]),
    ("mutable", [[[1], [2]], [[3]]]),
    ("kinds", [[{1}, {2, 1}]]),
    ("table", [[{"a": 1}, {"a": 2, "b": 3}]]),
    ("maybe", [[1, None], [None]]),
    ("old_maybe", [[1]]),
    ("anything", [[{"a": (1, 2)}], [None]]),
    ("point", [[Point(x=1)], [Point(x=2), Point(x=3)]]),
    ("wrapped", [[[1]], [[2], [3]]]),
    ("inside", [[[1]], [[2], [3]]]),
    ("other_last", [[1], [2, 3]]),
    ("changed", [[[1], [2]], [[3]]]),
    ("last", [[]]),
]


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_writes_fold_as_in_langgraph(name: str, steps: list[list[Any]]) -> None:
    ours, theirs = SPEC.initial(), their_channels()[name]
    for values in steps:
        encoded = [(name, SPEC.codec.encode(value, name)) for value in values]
        our_error = their_error = ""
        try:
            ours = apply(SPEC, ours, encoded)
        except InvalidUpdateError as error:
            our_error = type(error).__name__
        try:
            theirs.update([SPEC.codec.decode(data) for _, data in encoded])
        except (InvalidUpdateError, TheirInvalidUpdateError) as error:
            their_error = type(error).__name__
        assert our_error == their_error
        assert our_value(ours, name) == value_of(theirs)


def test_what_nobody_wrote_stays_as_it_is_and_nothing_is_changed_in_place() -> None:
    before = {"last": b"\x01", "hidden": b"\x07"}
    after = apply(SPEC, before, [("last", b"\x02")])
    assert after == {"last": b"\x02", "hidden": b"\x07"}
    assert before == {"last": b"\x01", "hidden": b"\x07"}


def test_two_writes_to_a_last_value_name_the_key_and_the_remedy() -> None:
    with pytest.raises(InvalidUpdateError) as caught:
        apply(SPEC, {}, [("last", b"\x01"), ("last", b"\x02")])
    for part in ("'last'", "only one value per step", "got 2", "Annotated[list, operator.add]"):
        assert part in str(caught.value)


class Broken(TypedDict):
    odd: Annotated[int, raises]
    lost: Annotated[Any, lambda old, new: object()]


def test_a_reducer_that_raises_is_named_and_chained() -> None:
    spec = spec_of(Broken)
    with pytest.raises(InvalidUpdateError, match=r"'odd'.*raises raised KeyError: 'odd'") as caught:
        apply(spec, spec.initial(), [("odd", b"\x01")])
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_reducer_that_makes_what_can_not_be_stored_names_the_channel() -> None:
    with pytest.raises(UnknownType, match="channel 'lost'"):
        apply(spec_of(Broken), {"lost": b"\x01"}, [("lost", b"\x01")])


def test_a_write_to_a_key_that_the_graph_lacks_is_refused() -> None:
    with pytest.raises(InvalidUpdateError, match=r"no key 'lasst'\. Did you mean 'last'"):
        apply(SPEC, {}, [("lasst", b"\x01")])


class OneParameter(TypedDict):
    k: Annotated[int, lambda old: old]


class Bound(BaseModel):
    total: Annotated[int, operator.add] = Field(0, ge=0)
    limited: Annotated[int, Field(ge=0)] = 3
    partly: Annotated[str, partial(joined, sep="+")] = ""


def test_a_callable_that_does_not_take_two_values_is_refused() -> None:
    with pytest.raises(GraphError, match=r"reducer of 'k' must take two positional parameters"):
        StateGraph(OneParameter)


def test_reducers_of_a_model_are_found_beside_its_constraints() -> None:
    channels = {each.name: channel_of(each) for each in Schema(Bound).fields.values()}
    assert {name: each.reducer_name for name, each in channels.items()} == {
        "total": "add",
        "limited": "",
        "partly": "partial(joined)",
    }
    spec = spec_of(Bound)
    assert spec.values(spec.initial()) == {"total": 0, "partly": ""}


# -- lists that grow

SMALL = st.integers(-(2**40), 2**40)
ITEMS = st.one_of(SMALL, st.text(), st.none(), st.tuples(SMALL, st.text()), st.builds(Point, x=SMALL))
CHATS = st.lists(
    st.fixed_dictionaries(
        {"id": st.sampled_from("abcd"), "role": st.sampled_from(["user", "remove"]), "content": st.text()}
    ),
    max_size=4,
)


class Growing(TypedDict, total=False):
    items: Annotated[list[Any], operator.add]
    point: Point
    messages: Annotated[list[Any], add_messages]


def elsewhere(value: bytes) -> bytes:
    """The same, as another process has it."""
    return bytes(bytearray(value))


@settings(max_examples=60)
@given(items=st.lists(st.lists(ITEMS), min_size=1, max_size=3), chats=st.lists(CHATS, min_size=1, max_size=3))
def test_a_list_that_grows_is_stored_byte_for_byte_as_if_it_were_encoded_anew(
    items: list[list[Any]], chats: list[list[Any]]
) -> None:
    spec = spec_of(Growing)
    codec = spec.codec
    for name, reducer, writes in (("items", operator.add, items), ("messages", add_messages, chats)):
        before = codec.encode([])
        encoded = [(name, codec.encode(each)) for each in writes]
        try:
            wanted = codec.encode(reduce(reducer, writes, []))
        except ValueError:  # it removes what is not there
            with pytest.raises(InvalidUpdateError):
                apply(spec, {name: before}, encoded)
        else:
            assert apply(spec, {name: before}, encoded)[name] == wanted
            for noted_from in (channels.NOTED_FROM, 0):  # what this process made itself it need not read
                with patch.object(channels, "NOTED_FROM", noted_from):
                    step_by_step = before
                    for each in encoded:
                        step_by_step = apply(spec, {name: step_by_step}, [each])[name]
                    assert step_by_step == wanted
                    here = before  # two processes in turn: what the other one made is read on
                    for number, each in enumerate(encoded):
                        there = apply(spec, {name: here if number % 2 else elsewhere(here)}, [each])[name]
                        if number % 2 == 0:
                            there = elsewhere(there)
                            channels.read_on({name: here}, {name: there})
                        here = there
                    assert here == wanted


@pytest.mark.source
@pytest.mark.parametrize("name", ["items", "messages"])
def test_of_a_list_that_grows_only_what_is_new_is_encoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(Growing)
    said = [{"id": str(n), "role": "user", "content": "x" * 100} for n in range(50)]
    before, more = spec.codec.encode(said[:-1]), spec.codec.encode(said[-1:])
    encoded: list[int] = []
    encode = spec.codec.encode

    def counted(value: Any, where: str = "value") -> bytes:
        encoded.append(len(value))
        return encode(value, where)

    monkeypatch.setattr(spec.codec, "encode", counted)
    assert apply(spec, {name: before}, [(name, more)])[name] == encode(said)
    assert encoded == [1]


@pytest.mark.source
@pytest.mark.parametrize("name", ["items", "messages"])
def test_a_long_list_that_this_process_made_is_not_read_to_grow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(Growing)
    said = [{"id": str(n), "role": "user", "content": "x" * 100} for n in range(60)]
    decode, read = spec.codec.decode, list[int]()

    def counted(data: bytes, where: str = "value") -> object:
        read.append(len(data))
        return decode(data, where)

    monkeypatch.setattr(spec.codec, "decode", counted)
    grown = spec.codec.encode(said[:50])
    for each in said[50:]:
        grown = apply(spec, {name: grown}, [(name, spec.codec.encode([each]))])[name]
    assert grown == spec.codec.encode(said)
    assert len([size for size in read if size > channels.NOTED_FROM]) == 1, "the one that came from elsewhere"


@pytest.mark.source
@pytest.mark.parametrize("name", ["items", "messages"])
def test_a_long_list_that_another_process_made_longer_is_not_read_to_grow(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(Growing)
    said = [{"id": str(n), "role": "user", "content": "x" * 100} for n in range(60)]
    encode, decode, read = spec.codec.encode, spec.codec.decode, list[int]()

    def counted(data: bytes, where: str = "value") -> object:
        read.append(len(data))
        return decode(data, where)

    here = apply(spec, {name: encode(said[:50])}, [(name, encode(said[50:51]))])
    monkeypatch.setattr(spec.codec, "decode", counted)
    for end in (53, 56, 59):
        there = {name: elsewhere(encode(said[:end]))}
        channels.read_on(here, there)
        here = apply(spec, there, [(name, encode(said[end : end + 1]))])
    assert here[name] == encode(said)
    assert max(read) < channels.NOTED_FROM


SAID: tuple[tuple[str, Any], ...] = (
    ("one with a known id", [{"id": "7", "role": "user", "content": "another"}]),
    ("two with the same new id", [{"id": "new", "role": "user", "content": word} for word in "ab"]),
    ("one of a number's id", [{"id": 7, "role": "user", "content": "a"}]),
    ("one that goes", [{"id": "7", "role": "remove", "content": ""}]),
    ("all that go", [{"id": REMOVE_ALL_MESSAGES, "role": "remove", "content": ""}]),
    ("one without a list", {"id": "new", "role": "user", "content": "a"}),
    ("none", []),
)


@pytest.mark.parametrize("more", [case for _, case in SAID], ids=[name for name, _ in SAID])
def test_a_long_chat_that_this_process_made_takes_what_any_chat_takes(more: Any) -> None:
    spec = spec_of(Growing)
    said = [{"id": str(n), "role": "user", "content": "x" * 100} for n in range(60)]
    made = apply(spec, {"messages": spec.codec.encode(said[:-1])}, [("messages", spec.codec.encode(said[-1:]))])
    found = apply(spec, made, [("messages", spec.codec.encode(more))])["messages"]
    assert found == spec.codec.encode(add_messages(said, more))
    other = [{"id": "other", "role": "user", "content": "b"}]
    for each in (other, more, more, other):  # twice the same, as a router and the step's plan ask, and others
        assert apply(spec, made, [("messages", spec.codec.encode(each))])["messages"] == spec.codec.encode(
            add_messages(said, each)
        )
    again = apply(spec, {"messages": found}, [("messages", spec.codec.encode(said[:2]))])["messages"]
    assert again == spec.codec.encode(add_messages(spec.codec.decode(found), said[:2]))
    there = {"messages": elsewhere(found)}  # another process made it
    channels.read_on(made, there)
    assert apply(spec, there, [("messages", spec.codec.encode(said[:2]))])["messages"] == again


class Appended(TypedDict, total=False):
    items: Annotated[list[Any], add_messages]
    messages: Annotated[list[Any], operator.add]


def test_a_long_list_that_another_graph_made_here_is_looked_at() -> None:
    """Graphs may share a thread, and a process: what one of them knows of a list does not hold for the other's."""
    said = [{"id": str(n), "role": "user", "content": "x" * 100} for n in range(60)]
    others, spec = spec_of(Appended), spec_of(Growing)
    made = apply(others, {"messages": others.codec.encode(said[:-1])}, [("messages", others.codec.encode(said[-1:]))])
    again = [{"id": "7", "role": "user", "content": "another"}]
    found = apply(spec, made, [("messages", spec.codec.encode(again))])["messages"]
    assert found == spec.codec.encode(add_messages(said, again))


def test_a_list_that_grows_over_the_cap_is_refused() -> None:
    spec = spec_of(Growing)
    before = spec.codec.encode(["x" * 100])
    spec.codec.value_max = len(before) + 50
    with pytest.raises(TooLarge, match="channel 'items'"):
        apply(spec, {"items": before}, [("items", before)])


# -- add_messages

MESSAGES: list[tuple[Any, Any]] = [
    ([HumanMessage("a", id="1")], [AIMessage("b", id="2")]),
    ([HumanMessage("a", id="1")], [HumanMessage("again", id="1")]),
    ([HumanMessage("a", id="1"), AIMessage("b", id="2")], [RemoveMessage(id="1")]),
    ([HumanMessage("a", id="1")], [RemoveMessage(id="1"), HumanMessage("back", id="1")]),
    ([HumanMessage("a", id="1")], [RemoveMessage(id=REMOVE_ALL_MESSAGES), AIMessage("new", id="9")]),
    ([HumanMessage("a", id="1")], AIMessageChunk(content="one chunk", id="2")),
    ([HumanMessage("a", id="1")], {"role": "assistant", "content": "mixed", "id": "2"}),
    ([{"role": "user", "content": "old", "id": "1"}], [AIMessage("mixed", id="2")]),
    ([], [HumanMessage("x", id="1"), HumanMessage("twice", id="1")]),
]


@pytest.mark.parametrize(("left", "right"), MESSAGES)
def test_messages_are_merged_as_in_langgraph(left: Any, right: Any) -> None:
    assert add_messages(left, right) == their_add_messages(left, right)


@pytest.mark.parametrize("right", ["said", ("assistant", "said"), [("user", "a"), "b"]])
def test_short_forms_become_messages_as_in_langgraph(right: Any) -> None:
    found, known = add_messages([], right), their_add_messages([], right)
    assert [(type(m), m.content) for m in found] == [(type(m), m.content) for m in known]
    assert all(m.id for m in found)


def test_dict_messages_stay_dicts_and_get_ids() -> None:
    old: list[dict[str, Any]] = [{"role": "user", "content": "a", "id": "1"}]
    found = add_messages(old, {"role": "assistant", "content": "b"})
    assert found[0] == old[0]
    assert {k: v for k, v in found[1].items() if k != "id"} == {"role": "assistant", "content": "b"}
    assert len(found[1]["id"]) == 36
    replaced = add_messages(found, [{"role": "user", "content": "A", "id": "1"}])
    assert [m["content"] for m in replaced] == ["A", "b"]
    assert add_messages(replaced, [{"role": "remove", "id": "1"}]) == replaced[1:]
    cleared = [{"role": "remove", "id": REMOVE_ALL_MESSAGES}, {"role": "user", "content": "c", "id": "3"}]
    assert add_messages(replaced, cleared) == cleared[1:]


def test_short_forms_become_dicts_where_langchain_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "langchain_core.messages", None)
    found = add_messages([{"role": "user", "content": "a", "id": "1"}], ["b", ("assistant", "c")])
    assert [(m["role"], m["content"]) for m in found] == [("user", "a"), ("user", "b"), ("assistant", "c")]
    with pytest.raises(ValueError, match="type int is no message"):
        add_messages([], [3])


def test_a_message_is_never_given_an_id_in_place() -> None:
    plain, message = {"role": "user", "content": "a"}, HumanMessage("a")
    add_messages([plain], [])
    add_messages([message], [])
    assert "id" not in plain and message.id is None


@pytest.mark.parametrize("removal", [RemoveMessage(id="7"), {"role": "remove", "id": "7"}])
def test_a_removal_of_what_is_not_there_is_refused(removal: Any) -> None:
    with pytest.raises(ValueError, match="'7'"):
        add_messages([], [removal])


def test_messages_survive_the_log() -> None:
    spec = spec_of(MessagesState)
    first = apply(spec, spec.initial(), spec.node_writes("n", {"messages": [HumanMessage("a", id="1")]}))
    second = apply(spec, first, spec.node_writes("n", {"messages": AIMessage("b", id="2")}))
    assert spec.values(second) == {"messages": [HumanMessage("a", id="1"), AIMessage("b", id="2")]}
