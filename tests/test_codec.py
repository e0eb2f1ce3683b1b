"""The codec: what goes in comes out, in the same bytes everywhere, and nothing from data is ever obeyed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import struct
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from enum import KEEP, Enum, Flag, IntEnum, auto
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel, field_validator

from everstep_checkpoint.codec import DEPTH_MAX, PLAIN, Codec, Registry
from everstep_checkpoint.errors import CorruptEntry, GraphError, TooLarge, UnknownType
from everstep_checkpoint.tagged import Tagged
from everstep_checkpoint.types import ENUM, OBJECT, SET, TUPLE

CODEC = Codec()


# -- a graph's own types


class Colour(Enum):
    RED = "r"
    BLUE = "b"
    CRIMSON = "r"  # an alias of RED  # noqa: PIE796


class Level(IntEnum):
    LOW = 1


class Right(Flag):
    READ = auto()
    WRITE = auto()


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclasses.dataclass(frozen=True)
class Doc:
    title: str
    tags: tuple[str, ...] = ()
    made_of: Any = None
    length: int = dataclasses.field(init=False, default=0)


class Note(BaseModel):
    text: str
    at: datetime | None = Field(default=None, alias="written_at")
    inner: Doc | None = None
    counts: dict[str, int] = {}


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    n: int = Field(default=0, validation_alias=AliasChoices("n", "number"))
    _hidden: int = 7


class Names(RootModel[list[str]]):
    pass


def registered() -> Registry:
    registry = Registry()
    for cls in (Colour, Level, Right, Point, Doc, Note, Loose, Names):
        registry.add(cls)
    return registry


TYPED = Codec(registered())


# -- round trips


def same(a: object, b: object) -> bool:
    """Equal in type, all the way down, with NaN equal to itself and -0.0 different from 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(map(same, a, b)) and all(map(same, a.values(), b.values()))
    if isinstance(a, (datetime, time)):
        assert isinstance(b, (datetime, time))
        zones = (str(a.tzinfo), type(a.tzinfo)) == (str(b.tzinfo), type(b.tzinfo))
        return zones and a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold
    if isinstance(a, Decimal):
        return str(a) == str(b)
    return a == b


texts = st.text(st.characters(codec=None), max_size=8)  # lone surrogates too
zones = st.one_of(
    st.none(),
    st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("UTC"), timezone(timedelta(hours=5, minutes=45))]),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), texts),
)
keys = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**400), 2**400),
    texts,
    st.sampled_from(["__type__", "lc", "type", "\x00", "", "constructor"]),
    st.binary(max_size=8),
    st.dates(),
    st.uuids(),
    st.timedeltas(),
)
scalars = st.one_of(
    keys,
    st.floats(),
    st.decimals(),
    st.datetimes(timezones=zones).map(lambda t: t.replace(fold=1) if t.second % 2 else t),
    st.times(timezones=zones),
    st.binary(max_size=8).map(bytearray),
)
hashables = st.recursive(keys, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(hashables, max_size=4)
        | st.frozensets(hashables, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(values)
def test_a_value_comes_back_as_it_was_and_both_readers_give_the_same_bytes(value: object) -> None:
    encoded = CODEC.encode(value)
    found = CODEC.decode(encoded)
    assert same(found, value)
    assert CODEC.encode(found) == encoded
    assert PLAIN.encode(PLAIN.decode(encoded)) == encoded


own = st.one_of(
    st.sampled_from([Colour.RED, Colour.BLUE, Level.LOW]),
    st.sampled_from([Right(0), Right.READ, Right.READ | Right.WRITE]),
    st.builds(Point, st.integers(), st.integers()),
)
typed_values = st.recursive(
    scalars | own,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(own | texts, inner, max_size=3)
        | st.sets(own, max_size=3)
        | st.builds(Doc, texts, st.tuples(texts), inner)
        | st.builds(Note, text=st.just("t"), written_at=st.datetimes(), inner=st.builds(Doc, texts))
        | st.builds(lambda extra: Loose.model_validate({"n": 1, "more": extra}), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(typed_values)
def test_registered_objects_read_plainly_encode_to_the_same_bytes(value: object) -> None:
    encoded = TYPED.encode(value)
    assert TYPED.encode(TYPED.decode(encoded)) == encoded
    plain = PLAIN.decode(encoded)
    assert PLAIN.encode(plain) == encoded
    assert TYPED.encode(plain) == encoded


@pytest.mark.parametrize(
    "value",
    [2**64, 2**63, -(2**63), -(2**63) - 1, 2**100_000, True, 1, 1.0, -0.0, math.nan, -math.inf, "\ud800", b"", ""],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) or value < 2**65 else "2**100000",
)
def test_numbers_and_texts_at_the_edge_keep_type_and_bits(value: object) -> None:
    assert same(CODEC.decode(CODEC.encode([value, {"k": value}])), [value, {"k": value}])


def test_every_kind_of_registered_object_comes_back() -> None:
    doc = Doc("a", ("x",), {"deep": [Point(1), Colour.BLUE]})
    object.__setattr__(doc, "length", 9)
    note = Note(text="n", written_at=datetime(2026, 1, 2, tzinfo=UTC), inner=doc, counts={"z": 1, "a": 2})
    loose = Loose.model_validate({"number": 3, "more": {"x": (1,)}})
    value = [doc, note, loose, Names(["a"]), Point(1, 2), Level.LOW, Right.READ | Right.WRITE, Colour.CRIMSON]
    found = TYPED.decode(TYPED.encode(value))
    assert isinstance(found, list)
    assert found == value
    assert [type(x) for x in found] == [type(x) for x in value]
    assert found[0].length == 9
    assert list(found[1].counts) == ["z", "a"]


def test_a_decoded_value_is_never_shared() -> None:
    encoded = CODEC.encode({"a": [1], "b": {1}})
    one, two = CODEC.decode(encoded), CODEC.decode(encoded)
    assert isinstance(one, dict)
    one["a"].append(2)
    one["b"].add(2)
    assert two == {"a": [1], "b": {1}}


def test_times_keep_zone_fold_and_nakedness() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    twice = [datetime(2024, 10, 27, 2, 30, tzinfo=berlin, fold=fold) for fold in (0, 1)]
    found = CODEC.decode(CODEC.encode([*twice, datetime(2024, 1, 1), time(1, tzinfo=UTC)]))
    assert isinstance(found, list)
    assert [t.utcoffset() for t in found[:2]] == [timedelta(hours=2), timedelta(hours=1)]
    assert found[0].tzinfo is berlin
    assert found[2].tzinfo is None
    assert found[3] == time(1, tzinfo=UTC)


def test_a_time_that_pydantic_parsed_becomes_one_with_the_same_fixed_offset() -> None:
    parsed = Note.model_validate_json('{"text": "x", "written_at": "2024-01-01T00:00:00+01:30"}').at
    found = CODEC.decode(CODEC.encode(parsed))
    assert found == parsed
    assert isinstance(found, datetime)
    assert found.tzinfo == timezone(timedelta(hours=1, minutes=30))


def test_a_decimal_has_one_encoding_whatever_the_decimal_context_says() -> None:
    with localcontext() as context:
        context.capitals = 0
        small = CODEC.encode(Decimal("1E+30"))
    assert small == CODEC.encode(Decimal("1E+30"))


def test_equal_sets_built_in_any_order_have_equal_bytes() -> None:
    forward = CODEC.encode({str(i) for i in range(100)} | set(range(100)))
    backward = CODEC.encode({*range(99, -1, -1), *(str(i) for i in range(99, -1, -1))})
    assert forward == backward


SEEDED = """
import hashlib, sys
from everstep_checkpoint.codec import Codec
value = {"tags": {f"tag {i}" for i in range(50)}, "f": frozenset({(b"a", "b"), None, 1.5, "x"}), "d": {"b": 1, "a": 2}}
sys.stdout.write(hashlib.sha256(Codec().encode(value)).hexdigest())
"""


def test_the_digest_of_an_encoding_is_the_same_under_every_hash_seed() -> None:
    def digest(seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", SEEDED], env=env, capture_output=True, check=True, text=True
        ).stdout

    found = {digest(seed) for seed in ("0", "1", "4242")}
    assert len(found) == 1
    assert len(found.pop()) == hashlib.sha256().digest_size * 2


def test_threads_can_share_a_codec() -> None:
    value = [{"n": (i, {"a", "b"}), "own": Point(i)} for i in range(50)]
    wanted, failures = TYPED.encode(value), []

    def work() -> None:
        for _ in range(40):
            if TYPED.encode(value) != wanted or TYPED.decode(wanted) != value:
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# -- what is refused


class Mine:
    pass


class Text(str):
    __slots__ = ()


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None, /) -> timedelta:
        return timedelta(0)

    def dst(self, _: datetime | None, /) -> timedelta:
        return timedelta(0)

    def tzname(self, _: datetime | None, /) -> str:
        return "mine"


@dataclasses.dataclass
class Stranger:
    n: int = 0


@dataclasses.dataclass
class Greedy:
    n: int
    seed: dataclasses.InitVar[int]


REFUSED: list[tuple[object, str, str]] = [
    ({"docs": [0, {"x": Mine()}]}, "channel 'docs', key 'docs', item 1, key 'x'", "plain data"),
    ((1, frozenset({(2, Text("t"))})), "item 1, an item of the set, item 1", "str(...)"),
    ({Text("k"): 1}, "the key 'k' itself", "str(...)"),
    (OrderedDict(a=1), "channel 'docs':", "dict(...)"),
    (defaultdict(list), "channel 'docs':", "dict(...)"),
    ([True, type("Whole", (int,), {})(1)], "item 1", "int(...)"),
    ([Stranger()], "item 0", "add_type(Stranger)"),
    ([memoryview(b"x")], "item 0", "bytes(...)"),
    ([bytearray(b"x"), {"k": msgpack.ExtType(OBJECT, b"x")}], "item 1, key 'k'", ""),
    ([msgpack.Timestamp(1)], "item 0", ""),
    ([datetime(2024, 1, 1, tzinfo=Zone())], "item 0", "zoneinfo"),
    ([Tagged("Doc", 3)], "item 0", ""),
    ([Doc("a", made_of={"q": Mine()})], "item 0, field 'made_of' of Doc, key 'q'", ""),
    ([Right.READ, Mine], "item 1", ""),
]


@pytest.mark.parametrize(("value", "path", "remedy"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_value_outside_the_table_is_refused_with_the_path_to_it(value: object, path: str, remedy: str) -> None:
    with pytest.raises(UnknownType) as caught:
        TYPED.encode(value, "channel 'docs'")
    assert path in str(caught.value)
    assert remedy in str(caught.value)
    assert caught.value.fix


def test_a_dataclass_that_could_not_be_rebuilt_is_refused_while_it_can_still_be_told() -> None:
    registry = Registry()
    registry.add(Greedy)
    with pytest.raises(UnknownType, match="seed"):
        Codec(registry).encode(Greedy(1, 2))


def test_two_objects_that_differ_by_identity_alone_are_refused() -> None:
    @dataclasses.dataclass(eq=False)
    class Thing:
        n: int

    registry = Registry()
    registry.add(Thing)
    codec = Codec(registry)
    assert isinstance(codec.decode(codec.encode([Thing(1), Thing(1)])), list)
    for value in ({Thing(1), Thing(1)}, {Thing(1): "a", Thing(1): "b"}):
        with pytest.raises(UnknownType, match="__eq__"):
            codec.encode(value)


def test_a_flag_with_nameless_bits_is_refused() -> None:
    class Bits(Flag, boundary=KEEP):
        ONE = 1

    registry = Registry()
    registry.add(Bits)
    with pytest.raises(UnknownType, match="no name"):
        Codec(registry).encode(Bits(9))


def nested(levels: int, wrap: Any) -> object:
    value: object = 0
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: {"k": x}, lambda x: frozenset({x})])
def test_nesting_is_bounded_and_what_is_accepted_can_be_read_on_a_small_stack(wrap: Any) -> None:
    with pytest.raises(TooLarge, match="nested deeper"):
        CODEC.encode(nested(DEPTH_MAX + 1, wrap))
    value = nested(DEPTH_MAX // 2 - 1, wrap)
    found: list[object] = []
    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=lambda: found.append(CODEC.decode(CODEC.encode(value))))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert found == [value]


def test_a_value_that_contains_itself_or_explodes_is_refused_quickly() -> None:
    loop: list[Any] = []
    loop.append(loop)
    double: list[Any] = []
    double += [double, double]
    laughs: Any = ("ha",)
    for _ in range(60):
        laughs = (laughs, laughs)
    codec = Codec(value_max=2**16)
    for value in (loop, double, laughs, {"a": [0] * 2**16}, b"x" * 2**16):
        with pytest.raises(TooLarge):
            codec.encode(value)


def test_the_cap_is_checked_before_anything_is_read() -> None:
    small = Codec(value_max=10)
    with pytest.raises(TooLarge, match="channel 'a'"):
        small.encode(["x" * 10], "channel 'a'")
    assert small.decode(small.encode("x" * 9)) == "x" * 9
    with pytest.raises(TooLarge, match="the cap is 10"):
        small.decode(b"\xc1" * 11, "channel 'a'")


# -- what is read


def ext(code: int, content: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, content))
    return packed


MALFORMED = {
    "nothing": b"",
    "never used": b"\xc1",
    "trailing bytes": b"\x01\x02",
    "cut short": b"\x92\x01",
    "lying array": b"\xdd\xff\xff\xff\xff",
    "lying map": b"\xdf\xff\xff\xff\xff\x01",
    "lying bytes": b"\xc6\xff\xff\xff\xffab",
    "lying ext": b"\xc9\xff\xff\xff\xff\x02",
    "not UTF-8": b"\xa1\xff",
    "list as a key": b"\x81\x90\x01",
    "depth bomb": b"\x91" * 100_000,
    "many lying arrays": b"".join([b"\xdd\x00\x10\x00\x00"] * 1000) + b"\xc0" * 2**20,
    "msgpack timestamp": b"\x91\xd6\xff\x00\x00\x00\x01",
    "bad timestamp": b"\xd4\xff\x01",
    "unknown ext": ext(99, b"\x90"),
    "tuple of nothing": ext(TUPLE, b""),
    "tuple of a number": ext(TUPLE, b"\x01"),
    "tuple and more": ext(TUPLE, b"\x90\x90"),
    "set twice the same": ext(SET, b"\x92\x01\x01"),
    "set of lists": ext(SET, b"\x91\x90"),
    "object without name": ext(OBJECT, b"\x92\x01\x80"),
    "object without fields": ext(OBJECT, b"\x91\xa1a"),
    "object with a list": ext(OBJECT, b"\x92\xa1a\x90"),
    "object with numbered fields": ext(OBJECT, b"\x92\xa1a\x81\x01\x01"),
    "enum with a number": ext(ENUM, b"\x92\xa1a\x01"),
    "short datetime": ext(6, b"\x00"),
    "datetime in month 13": ext(6, struct.pack(">HBBBBBIB", 2024, 13, 1, 0, 0, 0, 0, 0)),
    "path as a zone": ext(6, struct.pack(">HBBBBBIB", 2024, 1, 1, 0, 0, 0, 0, 0) + b"z../../etc/passwd"),
    "endless offset": ext(6, struct.pack(">HBBBBBIB", 2024, 1, 1, 0, 0, 0, 0, 0) + b"o" + b"\x7f" * 8),
    "short UUID": ext(10, b"\x00"),
    "no decimal": ext(11, b"os.system"),
    "loose decimal": ext(11, b" 1_0 "),
    "endless decimal": ext(11, b"1E+99999999999999999999"),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("codec", [TYPED, PLAIN], ids=["typed", "plain"])
def test_malformed_bytes_are_a_corrupt_entry(codec: Codec, data: bytes) -> None:
    with pytest.raises(CorruptEntry, match="channel 'x'"):
        codec.decode(data, "channel 'x'")


@pytest.mark.parametrize("codec", [TYPED, PLAIN], ids=["typed", "plain"])
def test_a_bomb_of_typed_values_does_not_exhaust_the_stack(codec: Codec) -> None:
    bomb = b"\x90"
    for _ in range(5000):
        bomb = ext(TUPLE, b"\x91" + bomb)
    with pytest.raises(CorruptEntry):
        codec.decode(bomb)


@settings(max_examples=300)
@given(st.binary(max_size=60) | values.map(CODEC.encode).flatmap(lambda b: st.permutations(list(b)).map(bytes)))
def test_any_bytes_are_a_value_or_a_named_error(data: bytes) -> None:
    for codec in (TYPED, PLAIN):
        with suppress(CorruptEntry, UnknownType):
            codec.decode(data)


def test_hostile_keys_stay_data() -> None:
    value = {"__type__": "Doc", "lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {"command": "id"}}
    assert TYPED.decode(TYPED.encode(value)) == value


def test_a_name_that_is_not_registered_is_never_imported() -> None:
    encoded = PLAIN.encode({"k": Tagged("subprocess.Popen", {"args": "id"})})
    with pytest.raises(UnknownType, match=r"channel 'x'.*subprocess\.Popen"):
        TYPED.decode(encoded, "channel 'x'")
    assert PLAIN.decode(encoded) == {"k": Tagged("subprocess.Popen", {"args": "id"})}
    for name in ("langchain_core.load.Serializable", "langchain_core.messages", "langchain_core.os"):
        with pytest.raises(UnknownType, match="does not know"):
            TYPED.decode(PLAIN.encode(Tagged(name, {})))


def test_a_zone_unknown_here_says_what_to_install() -> None:
    data = struct.pack(">HBBBBBIB", 2024, 1, 1, 0, 0, 0, 0, 0) + b"zEurope/Atlantis"
    with pytest.raises(UnknownType, match="tzdata"):
        CODEC.decode(ext(6, data))


def test_fields_that_do_not_suit_the_class_are_a_clear_error() -> None:
    class Strict(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def positive(cls, n: int) -> int:
            assert n > 0, "n must be positive"
            return n

    registry = registered()
    registry.add(Strict)
    codec = Codec(registry)
    cases = [
        (Tagged("Strict", {"n": -1}), "n must be positive"),
        (Tagged("Strict", {}), "does not suit"),
        (Tagged("Doc", {"gone": 1}), "gone"),
        (Tagged("Colour", "GREEN"), "GREEN"),
        (Tagged("Right", ["READ", "FLY"]), "FLY"),
        (Tagged("Point", {"x": 1, "z": 2}), "z"),
        (Tagged("Point", "RED"), "another kind"),
    ]
    for value, said in cases:
        with pytest.raises(UnknownType, match=said):
            codec.decode(PLAIN.encode(value), "channel 'x'")


def test_tagged_objects_are_equal_and_hash_by_what_they_hold() -> None:
    one, two = Tagged("P", {"x": [1]}), Tagged("P", {"x": [1]})
    assert one == two
    assert len({one, two, Tagged("P", {"x": [True]}), Tagged("P", "x"), Tagged("P", ["x"])}) == 4
    assert one != "P"


# -- the registry


def test_a_name_belongs_to_one_class() -> None:
    registry = registered()
    registry.add(Doc)
    with pytest.raises(GraphError, match="'Doc'"):
        registry.add(dataclasses.make_dataclass("Doc", ["n"]))
    with pytest.raises(GraphError, match="'Doc'"):
        registry.add(Stranger, name="Doc")
    with pytest.raises(GraphError, match="'Doc'"):
        registry.add(Stranger, aliases=["Doc"])
    with pytest.raises(GraphError, match="already"):
        registry.add(Doc, name="Other")
    with pytest.raises(GraphError, match="langchain"):
        registry.add(Stranger, name="langchain_core.HumanMessage")
    for no_class in (int, dict, Mine):
        with pytest.raises(GraphError, match="can't be registered"):
            registry.add(no_class)
    assert Stranger not in registry.names().values()


def test_a_renamed_class_is_read_under_its_old_name_and_written_under_the_new() -> None:
    old, new = Registry(), Registry()
    old.add(Stranger, name="Old")
    new.add(Stranger, name="New", aliases=["Old"])
    assert new.names() == {"New": Stranger, "Old": Stranger}
    found = Codec(new).decode(Codec(old).encode(Stranger(5)))
    assert found == Stranger(5)
    assert PLAIN.decode(Codec(new).encode(found)) == Tagged("New", {"n": 5})


# -- langchain-core


def messages() -> list[Any]:
    m = pytest.importorskip("langchain_core.messages")
    call = {"name": "f", "args": {"a": 1}, "id": "2", "type": "tool_call"}
    chunk = {"name": "f", "args": '{"a": 1', "id": "2", "index": 0, "type": "tool_call_chunk"}
    return [
        m.HumanMessage("hi", id="1", more=3),
        m.AIMessage("x", tool_calls=[call], usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
        m.SystemMessage([{"type": "text", "text": "s"}]),
        m.ToolMessage("r", tool_call_id="3", artifact={1, 2}),
        m.ChatMessage("a", role="b"),
        m.FunctionMessage("a", name="f"),
        m.RemoveMessage(id="9"),
        m.HumanMessageChunk(content="q"),
        m.AIMessageChunk(content="ab", tool_call_chunks=[chunk]),
        m.SystemMessageChunk(content="q"),
        m.ToolMessageChunk(content="q", tool_call_id="1"),
        m.ChatMessageChunk(content="q", role="r"),
        m.FunctionMessageChunk(content="q", name="r"),
    ]


def test_messages_of_langchain_need_no_registration() -> None:
    for message in messages():
        encoded = CODEC.encode([message])
        found = CODEC.decode(encoded)
        assert isinstance(found, list)
        assert type(found[0]) is type(message)
        assert vars(found[0]) == vars(message)
        assert CODEC.encode(found) == encoded == PLAIN.encode(PLAIN.decode(encoded))
        assert isinstance(plain := PLAIN.decode(encoded), list)
        assert plain[0].name == f"langchain_core.{type(message).__name__}"


LAZY = """
import sys
from everstep_checkpoint.codec import PLAIN, Codec
from everstep_checkpoint.tagged import Tagged
from everstep_checkpoint.errors import UnknownType
message = PLAIN.encode(Tagged("langchain_core.HumanMessage", {"content": "hi"}))
try:
    Codec().encode(object())
except UnknownType:
    pass
PLAIN.decode(message)
assert "langchain_core" not in sys.modules, "imported without need"
sys.modules["langchain_core"] = None
try:
    Codec().decode(message)
except UnknownType as error:
    sys.stdout.write(str(error))
"""


def test_langchain_is_imported_only_to_build_a_message_and_its_absence_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Install langchain-core" in done.stdout


def test_dates_and_ids_take_few_bytes() -> None:
    sizes = [len(CODEC.encode(x)) for x in (date(2024, 1, 1), UUID(int=1), timedelta(1), datetime(2024, 1, 1))]
    assert sizes == [6, 18, 15, 15]
