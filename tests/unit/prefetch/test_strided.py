"""Equal distances are seen after a few steps, forwards and backwards; others cost nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.prefetch.formats import FOOTER_BYTES, HEADER_BYTES, first_wants
from dsfs.prefetch.strided import MOST_BYTES, Strides
from dsfs.ranges import ByteRange, KiB, MiB

SIZE = 4096 * MiB


def runs(start: int, distance: int, length: int, number: int) -> list[ByteRange]:
    found = [ByteRange(start + step * distance, start + step * distance + length) for step in range(number)]
    return [run for run in found if run.start >= 0 and run.stop <= SIZE]


def pieces(run: ByteRange, length: int) -> list[ByteRange]:
    """As the kernel asks for what a program reads at once."""
    return [ByteRange(at, min(at + length, run.stop)) for at in range(run.start, run.stop, length)]


@given(
    st.sampled_from([-1, 1]),
    st.integers(1, 4 * MiB),
    st.integers(0, 64 * MiB),
    st.sampled_from([128 * KiB, 1 * MiB]),
)
@settings(deadline=None)
def test_the_fourth_step_and_those_behind_it_were_asked_for(direction: int, length: int, gap: int, piece: int) -> None:
    distance = direction * (length + max(gap, 8 * KiB) if direction > 0 else length + gap)
    strides = Strides()
    asked: list[ByteRange] = []
    for number, run in enumerate(runs(0 if direction > 0 else SIZE - length, distance, length, 20)):
        if number >= 4:
            assert any(each.start <= run.start and run.stop <= each.stop for each in asked)
        for wanted in pieces(run, piece):
            found = strides.on_read(wanted, SIZE)
            assert sum(each.length for each in found) <= MOST_BYTES + length
            asked += found
    assert len({each.start for each in asked}) == len(asked), "nothing is asked for twice"
    assert all(0 <= each.start < each.stop <= SIZE for each in asked)
    assert 0 <= strides.unread_bytes() <= MOST_BYTES + length
    assert strides.used_bytes() + strides.unread_bytes() == sum(each.length for each in asked)


def test_what_was_asked_for_in_a_row_that_ended_was_not_used() -> None:
    strides = Strides()
    asked = [found for run in runs(0, 16 * MiB, MiB, 6) for found in strides.on_read(run, SIZE)]
    ahead = sum(each.length for each in asked if each.start > 5 * 16 * MiB)
    assert strides.unread_bytes() == ahead > 0
    strides.on_read(ByteRange(3 * 1024 * MiB, 3 * 1024 * MiB + 100), SIZE)
    assert strides.unread_bytes() == ahead
    assert strides.used_bytes() == sum(each.length for each in asked) - ahead


@given(st.integers(0, 2**64))
@settings(deadline=None, max_examples=30)
def test_random_reads_ask_for_nothing(seed: int) -> None:
    rng = random.Random(seed)  # not Hypothesis' own: it would find places at equal distances, and they are no chance
    strides = Strides()
    for _read in range(300):
        start = rng.randrange(SIZE - MiB)
        assert strides.on_read(ByteRange(start, start + 64 * KiB), SIZE) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/b.parquet", ByteRange(10 * MiB - FOOTER_BYTES, 10 * MiB)),
        ("MODEL.SafeTensors", ByteRange(0, HEADER_BYTES)),
        ("x.bin", None),
        ("parquet", None),
    ],
)
def test_what_is_wanted_first(name: str, found: ByteRange | None) -> None:
    assert first_wants(name, 10 * MiB) == found


@given(st.integers(1, 2 * MiB), st.sampled_from(["a.parquet", "a.safetensors"]))
def test_what_is_wanted_first_lies_in_the_file(size: int, name: str) -> None:
    found = first_wants(name, size)
    assert found is not None
    assert 0 <= found.start < found.stop <= size
