"""Whatever stands in Redis, who reads it gets a value or an error of ours, in bounded time and memory."""

from __future__ import annotations

import json
import random
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzzing
from everstep.show import jsonable
from everstep_checkpoint import entries as e
from everstep_checkpoint.errors import CorruptEntry, EverstepError
from everstep_checkpoint.keys import Keys
from everstep_scheduler.client import inbox, manifest
from everstep_scheduler.client.intake import take
from golden.dump import DumpLog
from servers import run_seed, soaked

SOAK_S = 300.0
SLOW_S = 5.0


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_a_fuzzed_input_is_a_value_or_an_error_of_ours(target: str) -> None:
    @settings(max_examples=60 if target == "log" else 120, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def fuzz(dice: random.Random) -> None:
        fuzzing.TARGETS[target](dice)

    fuzz()


def test_fuzzed_inputs_of_this_run_s_seed() -> None:
    fuzz_for(3.0, run_seed())


@pytest.mark.soak
def test_fuzzed_inputs_for_five_minutes(record_property: Callable[[str, object], None]) -> None:
    record_property("shown", f"{fuzz_for(soaked(SOAK_S), run_seed()):,} fuzzed inputs")


def fuzz_for(seconds: float, seed: str) -> int:
    """Cases until the time is over. Returns how many; a failure names its target and the seed of its dice."""
    end, count = time.monotonic() + seconds, 0
    for target, its_seed in fuzzing.cases(seed):
        began = time.monotonic()
        try:
            fuzzing.TARGETS[target](random.Random(its_seed))
        except BaseException as error:
            error.add_note(f"fuzzing.TARGETS[{target!r}](random.Random({its_seed!r}))")
            raise
        assert time.monotonic() - began < SLOW_S, f"fuzzing.TARGETS[{target!r}](random.Random({its_seed!r})) is slow"
        count += 1
        if time.monotonic() > end:
            break
    return count


# What fuzzing found: a field, and what in it ended in an error that was not ours.
FOUND = [
    ("digest", b"rfhlKxPP7tGP8wdW136TAahExGtzPqbXOoW3PC"),
    ("digest", b"nvzbYOSH7eht8pNi4w0fg0WyaX_YOilK80OQF4\xc2\xb242Baw"),
    ("kind", b""),
    ("delta", b"\x00\x81\xa52of\x13t\x92\x00\xc4\x01\x01"),
    ("of", b"4-"),
    ("of", b"[]"),
    ("of", b"0~3"),
    ("next", b"[null]"),
    ("next", b"[1,2]"),
    ("next", b"[[[1,2]]]"),
    ("next", b"[[1]]"),
    ("at", b"179547729897599999999999999999999"),
    ("at", b"9" * 5000),
    ("writes", b"\x00\x91\x92\xa5cou+ta"),
    ("writes", b"\x00\x91\x92\xa5items\xc0"),
    ("parts", b"1.5"),
    ("parts", b"[null]"),
    ("parent", "a \u00b2 c".encode()),
    ("parent", b"a " + b"9" * 5000 + b" c"),
    ("v", b"9" * 5000),
    ("tasks", b"[null]"),
    ("tasks", b'[["a","g",0,"e"]]'),
    ("record", b"\x00\x81\xa4tags\x01"),
]


@pytest.mark.parametrize(("name", "junk"), FOUND)
def test_what_fuzzing_found_stays_found(name: str, junk: bytes) -> None:
    for base in fuzzing._logs():  # pyright: ignore[reportPrivateUsage]
        at = next((i for i, x in enumerate(base.entries) if name in x.raw), len(base.entries) - 1)
        entry = fuzzing.read_entry(base.entries[at].id, {**base.entries[at].raw, name: junk})
        if entry is not None:
            fuzzing.read_log(DumpLog(base.thread, [*base.entries[:at], entry, *base.entries[at + 1 :]]))


def test_a_large_number_is_shown_as_hex() -> None:
    assert jsonable({"n": 1 << 20_000})["n"].startswith("0x1000")
    assert jsonable(10**4000) == 10**4000


# -- caps before anything is decoded


def entry(**fields: Any) -> e.Entry:
    raw = {name: value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}
    return e.read_entry("1-1", {"v": b"1", "kind": b"task_done", **raw})


def test_a_packed_value_is_refused_by_name_and_not_unpacked() -> None:
    bomb = b"\x01" + zlib.compress(b"\0" * 50_000_000)
    with pytest.raises(CorruptEntry, match="compressed envelope, which this reader can't open"):
        entry(writes=bomb).writes()


def test_fields_over_their_caps_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e, "FIELD_MAX", 100)
    monkeypatch.setattr(e, "JSON_MAX", 100)
    with pytest.raises(CorruptEntry, match="'writes' has 2,001 bytes, the cap is 100"):
        entry(writes=b"\x00" + b"\xff" * 2000).writes()
    with pytest.raises(CorruptEntry, match="'next' has 2,000 bytes, the cap is 100"):
        _ = entry(next=b"[" * 2000).next


@pytest.mark.parametrize("header", [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"])
def test_a_lying_header_costs_nothing(header: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(CorruptEntry):
        entry(writes=b"\x00" + header + b"\xff\xff\xff\xff" + b"\x01" * 1000).writes()
    assert time.monotonic() - began < 1.0


def test_a_manifest_over_its_cap_is_refused_and_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CorruptEntry, match="cap"):
        fuzzing_manifest(b"[" * (manifest.MANIFEST_MAX + 1))

    def read(name: str) -> manifest.Manifest:
        return fuzzing_manifest(b"{" if name == "bad" else _good())

    assert [each.name for each in manifest.readable(["bad", "good"], read)] == ["fuzzed"]
    assert "not readable" in caplog.text


def _good() -> bytes:
    return fuzzing._published().model_dump_json().encode()  # pyright: ignore[reportPrivateUsage]


def fuzzing_manifest(stored: bytes) -> manifest.Manifest:
    return manifest.read(fuzzing.OneKey(stored), Keys(), "x")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"count":' * 100_000, json.dumps({"count": "9" * 900_000})])
def test_a_deep_or_long_input_in_the_inbox_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(EverstepError):
        take(fuzzing._published(), inbox._json(text))  # pyright: ignore[reportPrivateUsage]


def test_a_nested_input_is_refused_as_too_deep() -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(EverstepError, match="nested deeper"):
        take(fuzzing._published(), {"nested": deep})
