"""What was added is there, always; what was not is hardly ever."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from dsfs.cache.marks import Marks


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@given(st.sets(st.integers(0, 500)), st.integers(0, 10))
def test_against_a_set(numbers: set[int], expected: int) -> None:
    marks = Marks(expected)
    for number in numbers:
        marks.add(key(number))
    assert {number for number in range(500) if key(number) in marks} >= numbers - {500}


def test_few_are_taken_for_others() -> None:
    marks = Marks(20_000)
    for number in range(20_000):
        marks.add(key(number))
    assert sum(key(number) in marks for number in range(20_000, 70_000)) < 50_000 / 50
