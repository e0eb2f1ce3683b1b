"""Deltas: what `diff` finds, `fold` gives back, byte for byte; and a log can't ask for the impossible."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep_checkpoint import delta as d
from everstep_checkpoint.codec import PLAIN, walker
from everstep_checkpoint.delta import decode_delta, decode_state, diff, encode_delta, encode_state, fold, merged, refs
from everstep_checkpoint.errors import CorruptEntry
from everstep_checkpoint.tagged import Tagged

E = PLAIN.encode


def changed(before: object, after: object) -> Any:
    """The op that `diff` finds, after it has been stored, read and applied."""
    op = diff(E(before), E(after))
    if op is not None:
        stored = decode_delta(encode_delta({"c": op}))
        assert stored == {"c": op}
        assert fold({"c": E(before), "other": b"\x01"}, stored) == {"c": E(after), "other": b"\x01"}
    return op


# -- any two values

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.binary(max_size=40)
keys = st.sampled_from(["a", "b", "c", "\ud800", "", "k" * 40]) | st.text(st.characters(codec=None), max_size=3)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(keys, inner, max_size=20)
        | st.dictionaries(keys | st.integers(), inner, max_size=3)
        | st.lists(inner, max_size=20).map(tuple)
        | st.dictionaries(keys, inner, max_size=3).map(lambda fields: Tagged("Doc", fields))
    ),
    max_leaves=20,
)


@settings(max_examples=300)
@given(values, values)
def test_folding_what_differs_gives_back_exactly_what_was_meant(before: object, after: object) -> None:
    op = changed(before, after)
    assert (op is None) == (E(before) == E(after))


@st.composite
def edited(draw: st.DrawFn) -> tuple[object, object]:
    """A value, and the same value after a few edits in place, as nodes make them."""
    before = draw(values)
    after = copy.deepcopy(before)
    for _ in range(draw(st.integers(1, 3))):
        after = edit(draw, after)
    return before, after


def edit(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(edit(draw, list(value)))
    if isinstance(value, dict) and draw(st.booleans()) and value:
        key = draw(st.sampled_from(list(value)))
        if draw(st.booleans()):
            value[key] = edit(draw, value[key])
        else:
            del value[key]
    elif isinstance(value, dict):
        value[draw(keys)] = draw(values)
    elif isinstance(value, list):
        start = draw(st.integers(0, len(value)))
        value[start : draw(st.integers(start, len(value)))] = draw(st.lists(leaves, max_size=3))
    else:
        return draw(leaves)
    return value


@settings(max_examples=300)
@given(edited())
def test_small_edits_fold_to_exactly_what_was_meant_and_never_cost_more_than_the_value(
    pair: tuple[object, object],
) -> None:
    op = changed(*pair)
    if op is not None:
        assert len(encode_delta({"c": op})) <= len(encode_delta({"c": [d.SET, E(pair[1])]}))


# -- the forms

LONG = "x" * 50


@pytest.mark.parametrize(
    ("before", "after", "op"),
    [
        (1, 1, None),
        (1, 2, [d.SET, E(2)]),
        ([LONG], [LONG, 1, 2], [d.APPEND, 2, E(1) + E(2)]),
        ((LONG,), (LONG, 1), [d.APPEND, 1, E(1)]),
        ([0] * 15, [0] * 16, [d.APPEND, 1, E(0)]),
        ((0,) * 300, (0,) * 70_000, None),
        ([LONG, 1, LONG], [LONG, 2, 3, LONG], [d.SPLICE, 1, 1, 2, E(2) + E(3)]),
        ([LONG, LONG, 5, 6], [LONG, LONG], [d.SPLICE, 2, 2, 0, b""]),
        ((LONG, 1), (LONG, 2), [d.SPLICE, 1, 1, 1, E(2)]),
        ({"a": LONG, "b": 1}, {"a": LONG, "b": 2}, [d.MERGE, [["b", [d.SET, E(2)]]]]),
        ({"a": LONG, "b": 1}, {"a": LONG, "c": 2}, [d.MERGE, [["b", [d.DELETE]], ["c", [d.SET, E(2)]]]]),
        ({"a": {"b": [LONG]}}, {"a": {"b": [LONG, 1]}}, [d.MERGE, [["a", [d.MERGE, [["b", [d.APPEND, 1, E(1)]]]]]]]),
        ({"a": LONG, "b": LONG}, {"b": LONG, "a": LONG}, [d.SET, E({"b": LONG, "a": LONG})]),
        ({"a": LONG}, {"new": 1, "a": LONG}, [d.SET, E({"new": 1, "a": LONG})]),
        ({1: LONG}, {1: LONG, "a": 2}, [d.SET, E({1: LONG, "a": 2})]),
        ([LONG], (LONG, 1), [d.SET, E((LONG, 1))]),
        ([1, 2], [3, 4], [d.SET, E([3, 4])]),
        ({LONG}, {LONG, 1}, [d.SET, E({LONG, 1})]),
        (Tagged("D", {"a": LONG}), Tagged("D", {"a": LONG, "b": 1}), [d.SET, E(Tagged("D", {"a": LONG, "b": 1}))]),
    ],
    ids=lambda x: repr(sorted(x, key=str) if isinstance(x, set) else x)[:30],
)
def test_the_smallest_sensible_form_is_chosen(before: object, after: object, op: object) -> None:
    found = changed(before, after)
    if isinstance(before, tuple) and len(before) == 300:
        assert found[:2] == [d.APPEND, 69_700]
    else:
        assert found == op


def test_a_channel_comes_and_goes() -> None:
    assert diff(None, None) is None
    assert diff(None, E(1)) == [d.SET, E(1)]
    assert diff(E(1), None) == [d.DELETE]
    assert fold({"a": E(1), "b": E(2)}, {"a": [d.DELETE], "c": [d.SET, E(3)]}) == {"b": E(2), "c": E(3)}


def test_fold_leaves_the_state_it_was_given_alone() -> None:
    before = {"a": E([LONG])}
    fold(before, {"a": [d.APPEND, 1, E(1)]})
    assert before == {"a": E([LONG])}


def test_an_append_to_a_long_list_stores_and_walks_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[int] = []

    def counted(data: bytes | memoryview) -> Any:
        walked.append(len(data))
        return walker(data)

    monkeypatch.setattr("everstep_checkpoint.layout.walker", counted)
    items: list[object] = ["x" * 1000] * 1000
    op = diff(E(items), E([*items, "new"]))
    assert op == [d.APPEND, 1, E("new")]
    assert walked == []


def test_lists_too_long_to_walk_are_set_whole() -> None:
    before = [0] * (d.WALK_MAX + 1)
    op = changed(before, [1, *before[1:]])
    assert op[0] == d.SET
    assert changed(before, [*before, 1])[0] == d.APPEND


def test_dicts_nested_beyond_the_bound_are_set_at_the_bound() -> None:
    def deep(end: object) -> object:
        for _ in range(d.NEST_MAX + 5):
            end = {"k": end, "long": LONG}
        return end

    op, levels = changed(deep(1), deep(2)), 0
    while op[0] == d.MERGE:
        op, levels = op[1][0][1], levels + 1
    assert levels == d.NEST_MAX


# -- what facts wrote

FACTS: dict[tuple[int | str, str], bytes] = {
    (1, "c"): E([1, 2]),
    (2, "c"): E([3]),
    (3, "c"): E((4,)),
    ("7-1", "c"): E({"role": "user", "content": LONG}),
    ("7-2", "m"): E([Tagged("Msg", {"text": LONG, "id": None})]),
    ("7-3", "n"): E(5),
}


def written(ref: int | str, channel: str) -> bytes:
    return FACTS[ref, channel]


def taken(before: object, op: list[Any]) -> object:
    stored = decode_delta(encode_delta({"c": op}))
    return PLAIN.decode(fold({"c": E(before)}, stored, written)["c"])


def test_the_items_of_several_facts_are_appended_in_the_order_named() -> None:
    assert taken([0], [d.TAKE_APPEND, [2, 3, 1], "c"]) == [0, 3, 4, 1, 2]
    assert taken((0,), [d.TAKE_APPEND, [1], "c"]) == (0, 1, 2)
    assert fold({}, {"c": [d.TAKE_APPEND, [1], "c"]}, written) == {"c": E([1, 2])}


def test_a_value_is_taken_as_it_was_written_and_then_edited_in_order() -> None:
    message = {"role": "user", "content": LONG}
    assert taken(0, [d.TAKE, "7-3", "n", []]) == 5
    assert taken(0, [d.TAKE, "7-3", "n", [["wrap"], ["wrap"]]]) == [[5]]
    assert taken(0, [d.TAKE, "7-1", "c", [["wrap"], ["set", [0, "id"], E("new")]]]) == [{**message, "id": "new"}]
    assert taken(0, [d.TAKE, "7-1", "c", [["set", ["role"], E("ai")]]]) == {**message, "role": "ai"}
    assert taken(0, [d.TAKE, 3, "c", [["set", [0], E("x" * 300)]]]) == ("x" * 300,)
    assert taken(0, [d.TAKE, 1, "c", [["set", [], E(None)]]]) is None
    found = taken(0, [d.TAKE, "7-2", "m", [["set", [0, "id"], E("id 1")]]])
    assert found == [Tagged("Msg", {"text": LONG, "id": "id 1"})]


def test_refs_name_each_fact_once_in_order_of_first_use() -> None:
    delta: d.Delta = {
        "a": [d.TAKE, "7-1", "c", []],
        "b": [d.TAKE_APPEND, [3, 1, 3], "c"],
        "c": [d.SET, E(1)],
        "d": [d.TAKE, 1, "c", []],
    }
    assert refs(delta) == ["7-1", 3, 1]


# -- what can't be

LIST, DICT = E([1, 2]), E({"a": 1})
IMPOSSIBLE: list[tuple[dict[str, bytes], list[Any]]] = [
    ({}, [d.APPEND, 1, E(1)]),
    ({}, [d.DELETE]),
    ({"c": DICT}, [d.APPEND, 1, E(1)]),
    ({"c": LIST}, [d.APPEND, 2, E(1)]),
    ({"c": LIST}, [d.APPEND, 1, E(1) + E(2)]),
    ({"c": LIST}, [d.APPEND, 1, b""]),
    ({"c": LIST}, [d.APPEND, 2**60, E(1)]),
    ({"c": LIST}, [d.APPEND, 1, b"\xc1"]),
    ({"c": LIST}, [d.SPLICE, 1, 2, 0, b""]),
    ({"c": LIST}, [d.SPLICE, 3, 0, 1, E(1)]),
    ({"c": LIST}, [d.MERGE, [["a", [d.SET, E(1)]]]]),
    ({"c": DICT}, [d.MERGE, [["b", [d.DELETE]]]]),
    ({"c": DICT}, [d.MERGE, [["b", [d.APPEND, 1, E(1)]]]]),
    ({"c": E({1: 2})}, [d.MERGE, [["b", [d.SET, E(1)]]]]),
    ({"c": b"\xdd\xff\xff\xff\xff"}, [d.SPLICE, 0, 5, 0, b""]),
    ({"c": b"\xc7"}, [d.APPEND, 1, E(1)]),
    ({"c": b""}, [d.APPEND, 1, E(1)]),
    ({"c": b"\x93\x01"}, [d.SPLICE, 0, 2, 0, b""]),
    ({"c": LIST}, [d.TAKE_APPEND, ["7-3"], "n"]),
    ({"c": DICT}, [d.TAKE_APPEND, [1], "c"]),
    ({}, [d.TAKE, 1, "c", [["set", [2], E(1)]]]),
    ({}, [d.TAKE, 1, "c", [["set", ["a"], E(1)]]]),
    ({}, [d.TAKE, "7-1", "c", [["set", ["no", "way"], E(1)]]]),
    ({}, [d.TAKE, "7-2", "m", [["set", [0, 1], E(1)]]]),
]


@pytest.mark.parametrize(("state", "op"), IMPOSSIBLE, ids=lambda x: repr(x)[:40])
def test_a_change_that_does_not_fit_is_a_corrupt_entry_that_names_the_channel(
    state: dict[str, bytes], op: list[Any]
) -> None:
    stored = decode_delta(encode_delta({"c": op}))
    with pytest.raises(CorruptEntry, match="channel 'c'"):
        fold(state, stored, written)


def test_taking_without_facts_is_a_corrupt_entry() -> None:
    with pytest.raises(CorruptEntry, match="no facts"):
        fold({}, {"c": [d.TAKE, 1, "c", []]})


DEEP: list[Any] = [d.SET, b"\x01"]
for _ in range(d.NEST_MAX + 3):
    DEEP = [d.MERGE, [["k", DEEP]]]

MALFORMED_OPS: list[Any] = [
    None, 0, [], [99], [7, b""], ["0", b""], [True, 1, b""], [d.SET], [d.SET, 1], [d.SET, "text"], [d.SET, b"", b""],
    [d.APPEND, -1, b""], [d.APPEND, True, b""], [d.APPEND, 1.0, b""], [d.MERGE, {}], [d.MERGE, [["k"]]],
    [d.MERGE, [[1, [d.DELETE]]]], [d.MERGE, [["k", [d.TAKE, 1, "c", []]]]], [d.SPLICE, 0, -1, 0, b""],
    [d.TAKE, "x", "c", []], [d.TAKE, -1, "c", []], [d.TAKE, 1, 2, []], [d.TAKE, 1, "c", [["cut"]]],
    [d.TAKE, 1, "c", [["set", "a", b""]]], [d.TAKE, 1, "c", [["set", [-1], b""]]],
    [d.TAKE, 1, "c", [["set", ["a"] * 65, b""]]], [d.TAKE, 1, "c", [[]]], [d.TAKE_APPEND, 1, "c"],
    [d.TAKE_APPEND, [None], "c"], DEEP,
]  # fmt: skip


@pytest.mark.parametrize("op", MALFORMED_OPS, ids=lambda x: repr(x)[:40])
def test_an_op_of_unknown_form_is_a_corrupt_entry_before_and_while_it_is_applied(op: Any) -> None:
    with pytest.raises(CorruptEntry):
        decode_delta(encode_delta({"c": op}))
    with pytest.raises(CorruptEntry, match="channel 'c'"):
        fold({"c": LIST}, {"c": op}, written)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x90", b"\x81\x01\x90", b"\x80\x80", b"\xdf\xff\xff\xff\xff", b"\x91" * 5000, E({"a": (1,)})],
    ids=lambda x: repr(x)[:20],
)
def test_malformed_deltas_and_snapshots_are_corrupt_entries(data: bytes) -> None:
    with pytest.raises(CorruptEntry):
        decode_delta(data)
    with pytest.raises(CorruptEntry):
        decode_state(data)


def test_a_snapshot_maps_channels_to_bytes_and_nothing_else() -> None:
    state = {"b": E(1), "a": E([LONG]), "\ud800": b""}
    found = decode_state(encode_state(state))
    assert list(found.items()) == list(state.items())
    for wrong in ({"a": "text"}, {1: b""}, {b"a": b""}, {"a": None}):
        with pytest.raises(CorruptEntry, match="snapshot"):
            decode_state(E(wrong))


@settings(max_examples=200)
@given(st.binary(max_size=60), values)
def test_any_stored_bytes_fold_or_are_a_corrupt_entry(data: bytes, value: object) -> None:
    for stored in (data, E({"c": [d.SET, data]}), E({"c": [d.APPEND, 1, data]}), E({"c": [d.SPLICE, 0, 1, 1, data]})):
        with suppress(CorruptEntry):
            fold({"c": E(value)}, decode_delta(stored))


@settings(max_examples=100)
@given(st.binary(max_size=30), st.binary(max_size=30))
def test_diff_of_bytes_that_are_no_encoding_never_lies(before: bytes, after: bytes) -> None:
    op = diff(before, after)
    assert op is None or fold({"c": before}, {"c": op}) == {"c": after}


LISTS = st.lists(st.integers(0, 9), max_size=3)
OPS = st.one_of(
    st.builds(lambda value: [d.SET, E(value)], st.one_of(LISTS, st.integers(0, 9))),
    st.builds(lambda items, more: [d.APPEND, len(items) + more, b"".join(map(E, items))], LISTS, st.integers(0, 1)),
    st.just([d.DELETE]),
)


@given(
    state=st.dictionaries(st.sampled_from("xy"), LISTS), deltas=st.lists(st.dictionaries(st.sampled_from("xy"), OPS))
)
def test_two_deltas_in_one_come_to_what_they_come_to_one_behind_the_other(
    state: dict[str, Any], deltas: list[Any]
) -> None:
    """Also where one does not fit."""

    def folded(*each: Any) -> dict[str, bytes] | None:
        found = {name: E(value) for name, value in state.items()}
        try:
            for delta in each:
                found = fold(found, delta)
        except CorruptEntry:
            return None
        return found

    both: Any = {}
    for number, delta in enumerate(deltas, 1):
        both = merged(both, delta)
        if both is None:
            break
        assert folded(both) == folded(*deltas[:number])


@pytest.mark.parametrize(
    "op",
    [
        [6, [1] * 3000, "c"],
        [6, ["1-1"] * 2, "c"],
        [5, 1, "c", [["wrap"]] * 20_000],
    ],
    ids=["a fact over and over", "twice", "wrapped over and over"],
)
def test_a_few_bytes_can_not_name_a_value_over_and_over(op: list[Any]) -> None:
    with pytest.raises(CorruptEntry):
        decode_delta(encode_delta({"c": op}))
    with pytest.raises(CorruptEntry):
        fold({}, {"c": op}, lambda ref, channel: E([b"x" * 1000] * 1000))


def test_what_a_delta_sets_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d, "STATE_MAX", 10_000)
    value = E(b"x" * 3000)
    taken: dict[str, list[Any]] = {f"c{i}": [5, 1, "c", []] for i in range(4)}
    with pytest.raises(CorruptEntry, match="over 10,000 bytes"):
        fold({}, taken, lambda ref, channel: value)
    assert len(fold({}, dict(list(taken.items())[:3]), lambda ref, channel: value)) == 3
