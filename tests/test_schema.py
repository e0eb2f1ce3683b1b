"""Promises about schemas: input with real types, JSON for producers without code, what a node sees."""

from __future__ import annotations

import collections
import dataclasses
import json
import operator
import typing
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict
from uuid import UUID

import jsonschema
import pytest
from langchain_core.messages import AnyMessage, HumanMessage
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from everstep_checkpoint.errors import EmptyInputError, InvalidInput, InvalidUpdateError, UnknownType
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.messages import add_messages
from everstep_scheduler.graph.runtime import START
from everstep_scheduler.graph.spec import GraphSpec


class Colour(Enum):
    RED = "red"


class Pair(NamedTuple):
    left: int
    right: Decimal


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    when: datetime
    more: list[Leaf] = []


@dataclass
class Item:
    name: str
    colour: Colour = Colour.RED


class Inner(TypedDict):
    items: list[Item]


class Opaque:
    pass


class Plain(TypedDict):
    count: int
    when: datetime
    id: NotRequired[UUID]
    price: Annotated[Decimal, max]
    leaves: Annotated[list[Leaf], operator.add]
    inner: Inner
    pairs: dict[str, Pair | None]
    mode: Literal["a", "b"]
    anything: Any
    opaque: Opaque
    call: typing.Callable[[int], int]
    messages: Annotated[list[AnyMessage], add_messages]


def odd_only(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


class Model(BaseModel):
    count: int = Field(gt=0, description="how many")
    when: datetime | None = None
    odd: Annotated[int, AfterValidator(odd_only)] = 1
    log: Annotated[list[str], operator.add] = []
    nick: str = Field("n", alias="nickName")

    @field_validator("count")
    @classmethod
    def not_thirteen(cls, value: int) -> int:
        if value == 13:
            raise ValueError("unlucky")
        return value


@dataclass
class Data:
    count: int
    log: Annotated[list[str], operator.add] = field(default_factory=list)
    derived: int = field(init=False, default=3)


@checked_dataclass
class CheckedData:
    count: int = Field(gt=0)


class Output(TypedDict):
    count: int


def spec_of(schema: type[Any], **more: Any) -> GraphSpec:
    return StateGraph(schema, **more).add_node("n", lambda state: None).add_edge(START, "n").spec("g")


def read(spec: GraphSpec, writes: list[tuple[str, bytes]]) -> dict[str, Any]:
    return {name: spec.codec.decode(value) for name, value in writes}


PLAIN = spec_of(Plain)
MODEL = spec_of(Model)
DATA = spec_of(Data)

# -- input


def test_a_typed_dict_input_may_be_partial_and_is_not_coerced() -> None:
    assert read(PLAIN, PLAIN.input_writes({"count": "7"})) == {"count": "7"}
    assert PLAIN.input_writes({}) == []


def test_a_models_input_is_checked_and_gets_its_types() -> None:
    found = read(MODEL, MODEL.input_writes({"count": "7", "when": "2024-05-06T07:08:09"}))
    assert found == {"count": 7, "when": datetime(2024, 5, 6, 7, 8, 9)}
    assert read(MODEL, MODEL.input_writes({"log": ["partial"]})) == {"log": ["partial"]}


def test_an_instance_is_an_input() -> None:
    assert read(MODEL, MODEL.input_writes(Model.model_validate({"count": 2}))) == {
        "count": 2,
        "odd": 1,
        "log": [],
        "nick": "n",
    }
    assert read(DATA, DATA.input_writes(Data(3, ["x"]))) == {"count": 3, "log": ["x"], "derived": 3}
    assert read(PLAIN, PLAIN.input_writes(Data(3, ["x"]))) == {"count": 3}


@pytest.mark.parametrize(
    ("spec", "data", "told"),
    [
        (
            PLAIN,
            {"cuont": 1},
            "The input of 'g' has no key 'cuont'. Did you mean 'count'? Known: count, when",
        ),
        (PLAIN, {1: 1}, "has no key 1"),
        (PLAIN, [1], "must be a dict, not a list"),
        (PLAIN, "text", "must be a dict, not a str"),
        (MODEL, {"count": "x"}, "count: Input should be a valid integer"),
        (MODEL, {"count": 0}, "count: Input should be greater than 0"),
        (MODEL, {"count": 13}, "count: Value error, unlucky"),
        (MODEL, {"odd": 2}, "The value of 'odd' does not fit its type: Value error, must be odd"),
        (MODEL, {"nickName": "x"}, "has no key 'nickName'"),
    ],
)
def test_an_input_that_does_not_fit_is_told(spec: GraphSpec, data: Any, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec.input_writes(data)
    assert told in str(caught.value)


def test_no_input_is_told() -> None:
    with pytest.raises(EmptyInputError):
        PLAIN.input_writes(None)


def test_required_fields_may_come_from_the_thread() -> None:
    with pytest.raises(InvalidInput, match="lacks 'count'"):
        MODEL.input_writes({"log": ["x"]}, {})
    assert MODEL.input_writes({"log": ["x"]}, {"count": b"\x01"})
    assert PLAIN.input_writes({}, {}) == []


def test_an_input_that_can_not_be_stored_names_channel_and_node() -> None:
    with pytest.raises(UnknownType, match=r"channel 'anything', key 'k'.*Opaque.*node '__start__'"):
        PLAIN.input_writes({"anything": {"k": Opaque()}})


def test_a_lone_surrogate_passes_a_typed_dict() -> None:
    assert read(PLAIN, PLAIN.input_writes({"anything": "\ud800"})) == {"anything": "\ud800"}


# -- JSON

JSON = {
    "count": 3,
    "when": "2024-05-06T07:08:09Z",
    "id": "12345678-1234-5678-1234-567812345678",
    "price": "1.50",
    "leaves": [{"when": "2024-01-01T00:00:00", "more": [{"when": "2025-01-01T00:00:00"}]}],
    "pairs": {"k": [1, "2.5"], "none": None},
    "mode": "a",
    "anything": {"free": [1, None]},
    "messages": {"role": "user", "content": "hi"},
}


def test_a_producers_json_gets_the_annotated_types() -> None:
    found = PLAIN.input_from_json(JSON)
    assert found["when"].isoformat() == "2024-05-06T07:08:09+00:00"
    assert found["id"] == UUID(JSON["id"]) and found["price"] == Decimal("1.50")  # type: ignore[arg-type]
    assert found["leaves"][0].more[0].when.year == 2025
    assert found["pairs"] == {"k": Pair(1, Decimal("2.5")), "none": None}
    assert {k: found[k] for k in ("count", "mode", "anything", "messages")} == {
        k: JSON[k] for k in ("count", "mode", "anything", "messages")
    }
    assert read(PLAIN, PLAIN.input_writes(found)) == found


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"when": "soon"}, "'when' does not fit its type: Input should be a valid datetime"),
        ({"leaves": [{"when": "2024-01-01T00:00:00", "x": 1}]}, "0.x: Extra inputs are not permitted"),
        ({"whn": 1}, "Did you mean 'when'?"),
    ],
)
def test_json_that_does_not_fit_is_told_without_its_values(data: Any, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        PLAIN.input_from_json(data)
    assert told in str(caught.value) and "soon" not in str(caught.value)


@pytest.mark.parametrize("spec", [PLAIN, MODEL, DATA, spec_of(CheckedData)], ids=lambda s: s.state_schema.kind)
def test_the_json_schema_holds_for_input_with_the_required_keys_and_no_other_key(spec: GraphSpec) -> None:
    schema = json.loads(json.dumps(spec.input_schema_json()))
    jsonschema.Draft202012Validator.check_schema(schema)
    needed = [] if spec is PLAIN else ["count"]
    assert schema["additionalProperties"] is False and schema.get("required", []) == needed
    assert set(schema["properties"]) == set(spec.input_schema.fields)
    assert "required" not in spec.output_schema_json()
    jsonschema.validate({"count": 3}, schema)
    refused: list[Any] = [{"count": "x"}, {"count": 3, "other": 1}, [], *([{}] if needed else [])]
    for wrong in refused:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_what_json_can_not_say_is_let_through() -> None:
    properties = PLAIN.input_schema_json()["properties"]
    free = {name for name, each in properties.items() if each == {}}
    assert free - {"inner"} == {
        "anything",
        "opaque",
        "call",
        "messages",
    }  # before 3.12 pydantic has no TypedDict
    jsonschema.validate(JSON, PLAIN.input_schema_json())


def test_texts_and_constraints_of_a_model_reach_the_json_schema() -> None:
    count = MODEL.input_schema_json()["properties"]["count"]
    assert (count["description"], count["exclusiveMinimum"]) == ("how many", 0)
    assert MODEL.output_schema_json()["properties"].keys() == Model.model_fields.keys()


def test_models_of_one_name_keep_apart_in_schema_and_log() -> None:
    other = dataclasses.make_dataclass("Item", [("size", int)])
    other.__module__ = "elsewhere"  # from 3.12 on it would be ours
    spec = spec_of(dataclasses.make_dataclass("Both", [("one", Item), ("two", list[other])]))  # type: ignore[valid-type]
    schema = spec.input_schema_json()
    jsonschema.validate({"one": {"name": "x"}, "two": [{"size": 1}]}, schema)
    values = {"one": Item("x"), "two": [other(1)]}
    assert read(spec, spec.input_writes(values)) == values
    assert set(spec.registry.names()) == {f"{__name__}.Item", f"{other.__module__}.Item", "Colour", "Both"}


# -- what the log can hold


def test_every_class_that_the_schemas_reach_is_registered() -> None:
    assert set(PLAIN.registry.names()) == {"Leaf", "Item", "Colour", "Pair"}
    assert set(MODEL.registry.names()) == {"Model"}
    context = StateGraph(Output, Data).add_node("n", lambda s: None).add_edge(START, "n").spec()
    assert set(context.registry.names()) == {"Data"}


def test_values_of_registered_classes_round_trip() -> None:
    values = {
        "leaves": [Leaf(when=datetime(2024, 1, 1), more=[Leaf(when=datetime(2025, 1, 1))])],
        "inner": {"items": [Item("x")]},
        "pairs": {"k": Pair(1, Decimal(2))},
        "messages": [HumanMessage("hi", id="1")],
    }
    assert read(PLAIN, PLAIN.node_writes("n", values)) == values


# -- what a node sees and returns


def test_a_node_sees_only_what_is_there_freshly_each_time() -> None:
    channels = {**PLAIN.initial(), **dict(PLAIN.input_writes({"anything": [1]}))}
    seen = PLAIN.node_input("n", channels)
    assert seen == {"leaves": [], "price": Decimal(0), "anything": [1], "messages": []}
    seen["anything"].append(2)
    assert PLAIN.node_input("n", channels)["anything"] == [1]
    assert PLAIN.values(channels) == PLAIN.node_input("n", channels)


def test_a_node_sees_an_instance_of_its_schema() -> None:
    channels = {**DATA.initial(), **dict(DATA.input_writes({"count": 1}))}
    assert DATA.node_input("n", channels) == Data(1, [])
    model = MODEL.node_input("n", {**MODEL.initial(), **dict(MODEL.input_writes({"count": 1, "nick": "z"}))})
    assert (model.count, model.nick, model.odd) == (1, "z", 1)


@pytest.mark.parametrize("spec", [MODEL, DATA, spec_of(CheckedData)])
def test_a_state_that_lacks_what_a_node_needs_is_told(spec: GraphSpec) -> None:
    with pytest.raises(InvalidInput, match=r"count.*"):
        spec.node_input("n", spec.initial())


def test_a_state_that_does_not_fit_a_model_is_told() -> None:
    with pytest.raises(InvalidInput, match="The state does not fit Model: count: Input should be greater than 0"):
        MODEL.node_input("n", dict(MODEL.node_writes("n", {"count": -1})))


def test_output_and_input_schemas_narrow() -> None:
    spec = spec_of(Plain, output_schema=Output, input_schema=Data)
    channels = dict(spec.node_writes("n", {"count": 1, "mode": "a"}))
    assert spec.output(channels) == {"count": 1}
    assert spec.values(channels) == {"count": 1, "mode": "a"}
    with pytest.raises(InvalidInput, match="no key 'mode'"):
        spec.input_writes({"mode": "a"})


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ([1], "The node 'n' returned a list"),
        ("text", "The node 'n' returned a str"),
        (Data, "The node 'n' returned a type"),
        (collections.Counter, "returned a type"),
        (
            {"cuont": 1},
            "The node 'n' wrote 'cuont', which is no key of the state (node 'n'). Did you mean 'count'?",
        ),
        ({1: 2}, "wrote 1, which is no key"),
        ({None: 2}, "wrote None, which is no key"),
        (Item("x"), "wrote 'name'"),
    ],
)
def test_a_return_value_that_is_no_update_is_told(returned: Any, told: str) -> None:
    with pytest.raises(InvalidUpdateError) as caught:
        MODEL.node_writes("n", returned)
    assert told in str(caught.value)


def test_none_and_an_empty_dict_write_nothing() -> None:
    assert MODEL.node_writes("n", None) == MODEL.node_writes("n", {}) == []


def test_a_returned_value_that_can_not_be_stored_names_channel_and_node() -> None:
    with pytest.raises(UnknownType, match=r"channel 'opaque'.*Opaque.*node 'n'"):
        PLAIN.node_writes("n", {"opaque": Opaque()})


def test_a_context_becomes_its_schema() -> None:
    spec = StateGraph(Output, Data).add_node("n", lambda s: None).add_edge(START, "n").spec()
    assert spec.make_context({"count": 1}) == Data(1)
    assert spec.make_context(Data(2)) == Data(2)
    assert spec.make_context(None) is None
    with pytest.raises(InvalidInput, match="The context does not fit Data"):
        spec.make_context({"size": 1})
    assert PLAIN.make_context({"free": 1}) == {"free": 1}
