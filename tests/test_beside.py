"""Promises of beside.py: notes beside encodings, as many as there is room for."""

from __future__ import annotations

import gc

from everstep_checkpoint.beside import Beside


def test_a_note_belongs_to_one_object_and_the_longest_unused_goes() -> None:
    notes: Beside[str] = Beside(250)
    first, second, third = (bytes(100) for _ in range(3))
    notes.put(first, "a")
    notes.put(second, "b")
    assert notes.get(first) == "a"
    assert notes.get(bytes(100)) is None, "equal, and another one"
    notes.put(third, "c")
    assert [notes.get(each) for each in (first, second, third)] == ["a", None, "c"]
    notes.put(first, "A")
    assert [notes.get(first), notes.get(third)] == ["A", "c"]
    notes.put(bytes(251), "too long for all of them")
    assert notes.get(third) == "c"


def test_what_a_note_holds_counts_too() -> None:
    notes: Beside[bytes] = Beside(250)
    first, second = bytes(100), bytes(101)
    notes.put(first, b"")
    notes.put(second, b"")
    notes.put(second, bytes(50), 50)  # 251 bytes: the longest unused goes
    assert (notes.get(first), notes.get(second)) == (None, bytes(50))
    notes.put(second, b"")  # which holds nothing again
    notes.put(first, bytes(49), 49)
    assert (notes.get(first), notes.get(second)) == (bytes(49), b"")


def test_an_object_that_comes_where_another_one_was_has_no_note() -> None:
    """The one that has a note is held: no other one can have its place in memory."""
    notes: Beside[int] = Beside(10_000)
    for number in range(1000):
        data = number.to_bytes(100, "big")
        assert notes.get(data) is None
        notes.put(data, number)
        del data
        gc.collect(0)
