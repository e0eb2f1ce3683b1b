"""Required keys: what a new thread can't begin without is refused before anything is written, and nothing else is."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import StateGraph as LangGraph
from pydantic import BaseModel

from everstep.cli import main
from everstep_checkpoint.errors import EmptyInputError, InvalidInput, RunFailed
from everstep_scheduler.client.client import Client, connect, publish
from everstep_scheduler.client.inbox import InboxReader
from everstep_scheduler.graph.builder import StateGraph
from everstep_scheduler.graph.runtime import START
from hand import KEYS, working


class Line(BaseModel):
    sku: str
    count: int = 1


class Order(BaseModel):
    customer: str
    lines: list[Line]
    log: Annotated[list[str], operator.add]
    note: str = ""


@dataclass
class Call:
    number: str
    tries: int = 0
    log: Annotated[list[str], operator.add] = field(default_factory=list)


class Loose(TypedDict):
    customer: str


class Given(TypedDict, total=False):
    customer: str


WHOLE = {"customer": "ann", "lines": [{"sku": "tea"}]}


def made(schema: type[Any], **more: Any) -> StateGraph:
    builder = StateGraph(schema, **more)
    builder.add_node("n", lambda state: {})
    builder.add_edge(START, "n")
    return builder


@pytest.fixture
def idle(redis_url: str, client: Any) -> Iterator[Client]:
    """The graph is published, nobody works."""
    publish(client, KEYS, [made(Order).spec("order")])
    with connect(redis_url) as connected:
        yield connected


@pytest.mark.parametrize(
    ("schema", "more", "needed"),
    [
        (Order, {}, ["customer", "lines"]),
        (Call, {}, ["number"]),
        (Loose, {}, []),
        (Order, {"input_schema": Given}, []),
    ],
)
def test_exactly_those_keys_are_required_without_which_langgraph_can_not_begin(
    schema: type[Any], more: dict[str, Any], needed: list[str]
) -> None:
    spec = made(schema, **more).spec("g")
    assert spec.input_schema_json().get("required", []) == needed
    assert list(spec.required) == needed
    whole: dict[str, Any] = {"customer": "ann", "lines": [], "number": "1"}
    whole = {key: value for key, value in whole.items() if key in spec.input_schema.fields}
    theirs: Any = LangGraph(schema).add_node("n", lambda state: {}).add_edge(START, "n").compile()
    if not more:
        theirs.invoke(whole)
        for key in needed:
            with pytest.raises((ValueError, TypeError)):
                theirs.invoke({name: value for name, value in whole.items() if name != key})


def test_an_input_that_lacks_required_keys_is_refused_before_anything_is_written(idle: Client, client: Any) -> None:
    before = client.dbsize()
    with pytest.raises(InvalidInput) as caught:
        idle.submit("order", {"note": "x"}, thread_id="t")
    assert caught.value.what == "the input does not fit the graph 'order': input: lacks 'customer', 'lines'"
    assert caught.value.fix == "its keys: customer (required), lines (required), log, note"
    with pytest.raises(InvalidInput, match=r"lines\[0\]: lacks 'sku'"):
        idle.submit("order", {"customer": "ann", "lines": [{}]})
    assert client.dbsize() == before


def test_with_the_graph_at_hand_it_is_refused_as_well(idle: Client, client: Any) -> None:
    graph = idle.graph("order", made(Order).compile(name="order"))
    config = {"configurable": {"thread_id": "t"}}
    with pytest.raises(InvalidInput, match="lacks 'customer', 'lines'"):
        graph.invoke({"note": "x"}, config)
    with pytest.raises(EmptyInputError):
        graph.invoke(None, config)
    assert not client.exists(KEYS.log("t"))


def test_the_inbox_puts_it_aside_with_the_reason(idle: Client, redis_url: str, client: Any) -> None:
    client.xadd(KEYS.inbox, {"graph": "order", "thread": "t", "input": '{"customer": "ann"}'})
    assert InboxReader(redis_url, KEYS).turn() == 1
    ((_, fields),) = client.xrange(KEYS.inbox_rejected)
    assert b"lacks 'lines'" in fields[b"reason"]
    assert not client.exists(KEYS.log("t"))


def test_the_command_line_names_the_field_and_the_way_out(
    idle: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = json.dumps({"customer": "ann"})
    assert main(["--url", redis_url, "submit", "order", given, "--thread", "t"]) == 2
    said = capsys.readouterr().err
    assert "lacks 'lines'" in said and "lines (required)" in said


def test_a_thread_that_has_the_values_takes_partial_input(redis_url: str) -> None:
    with working(redis_url, ("order", made(Order))), connect(redis_url) as fleet:
        fleet.submit("order", WHOLE, thread_id="t").result(10)
        again = fleet.submit("order", {"note": "more"}, thread_id="t").result(10)
        assert (again["customer"], again["note"]) == ("ann", "more")
        with pytest.raises(InvalidInput, match="lacks 'customer', 'lines'"):
            fleet.submit("order", {"note": "more"}, thread_id="another")


def test_an_input_that_waits_for_its_turn_may_count_on_the_one_before(idle: Client, redis_url: str) -> None:
    first = idle.submit("order", WHOLE, thread_id="t")
    second = idle.submit("order", {"note": "more"}, thread_id="t")
    assert second.status() == "queued"
    with working(redis_url, ("order", made(Order))):
        assert "note" not in first.result(10)
        assert second.result(10)["note"] == "more"


def test_a_thread_whose_first_run_failed_has_no_values(redis_url: str) -> None:
    def breaks(state: Order) -> None:
        raise ValueError("no")

    builder = StateGraph(Order)
    builder.add_node("n", lambda state: {})
    builder.add_conditional_edges(START, breaks, ["n"])
    with working(redis_url, ("order", builder)), connect(redis_url) as fleet:
        with pytest.raises(RunFailed):
            fleet.submit("order", WHOLE, thread_id="t").result(10)
        with pytest.raises(InvalidInput, match="lacks 'lines'"):
            fleet.submit("order", {"customer": "ann"}, thread_id="t")
