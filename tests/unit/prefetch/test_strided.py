"""Equal distances are seen after a few steps, forwards and backwards; others cost nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.prefetch.formats import FOOTER_BYTES, HEADER_BYTES, first_wants
from dsfs.prefetch.sequential import Streams
from dsfs.prefetch.strided import MOST_BYTES, Strides
from dsfs.prefetch.worth import Worth
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


@pytest.mark.parametrize("start", [0, 8 * MiB])
@pytest.mark.parametrize("distance", [3 * MiB, 4 * MiB, 8 * MiB, 16 * MiB, 32 * MiB])
@pytest.mark.parametrize("piece", [128 * KiB, 1 * MiB])
def test_who_goes_forward_in_steps_is_not_taken_for_one_who_reads_all(start: int, distance: int, piece: int) -> None:
    size, longest = 1024 * MiB, 64 * MiB
    streams, strides = Streams(), Strides()
    brought: set[int] = set()
    needed: set[int] = set()
    for place in range(start, size - MiB, distance):
        for wanted in pieces(ByteRange(place, place + MiB), piece):
            needed.add(wanted.start // MiB)
            ahead = streams.on_read(wanted, size, longest)
            found = ([] if ahead is None else [ahead]) + ([] if streams.forward else strides.on_read(wanted, size))
            brought.update(block for each in found for block in range(each.start // MiB, -(-each.stop // MiB)))
    vain = len(brought - needed) * MiB
    assert vain <= longest + MOST_BYTES, "no more than what is ahead of one who reads all, and of the last step"
    assert len(needed - brought) <= 8, "the steps were seen"


def test_who_reads_most_of_a_file_reads_ahead() -> None:
    streams, asked = Streams(), 0
    for place in range(0, 512 * MiB, 2 * MiB):
        ahead = streams.on_read(ByteRange(place, place + MiB), 512 * MiB, 64 * MiB)
        asked += ahead.length if ahead else 0
    assert asked > 500 * MiB


def test_who_reads_all_after_steps_is_read_ahead_of_again() -> None:
    streams, size = Streams(), 2048 * MiB
    for place in range(0, 1024 * MiB, 8 * MiB):
        streams.on_read(ByteRange(place, place + MiB), size, 64 * MiB)
    assert not streams.forward
    asked = 0
    for place in range(1024 * MiB, size, MiB):
        ahead = streams.on_read(ByteRange(place, place + MiB), size, 64 * MiB)
        asked += ahead.length if ahead else 0
    assert asked > 1000 * MiB


def test_who_hops_is_read_ahead_of_as_far_as_those_before() -> None:
    streams, rng = Streams(), random.Random(5)
    places = [number * 64 * MiB + 100 * KiB for number in range(1, 60)]
    rng.shuffle(places)
    for number, place in enumerate(places):
        run = ByteRange(place, place + 4 * MiB)
        asked = [streams.on_read(wanted, SIZE, 64 * MiB) for wanted in pieces(run, MiB)]
        if number > 4:
            assert [each for each in asked if each] == [ByteRange(place + 2 * MiB, run.stop)]


@pytest.mark.parametrize(("workers", "chunk"), [(2, 8 * MiB), (4, 4 * MiB), (4, 16 * MiB), (8, 4 * MiB), (2, 32 * MiB)])
def test_workers_who_share_a_file_in_chunks_read_what_was_asked_for(workers: int, chunk: int) -> None:
    """In lock step, so that it looks like one who leaves out most."""
    worth = Worth()
    size, streams, strides = 512 * MiB, Streams(worth), Strides()
    asked: set[int] = set()
    missed = 0
    for group in range(0, size, workers * chunk):
        for at in range(0, chunk, MiB):
            for wanted in (
                ByteRange(place + at, place + at + MiB) for place in range(group, group + workers * chunk, chunk)
            ):
                missed += wanted.start // MiB not in asked
                ahead = streams.on_read(wanted, size, 64 * MiB)
                found = ([] if ahead is None else [ahead]) + ([] if streams.forward else strides.on_read(wanted, size))
                asked.update(block for each in found for block in range(each.start // MiB, -(-each.stop // MiB)))
                asked.add(wanted.start // MiB)
    assert missed <= 0.02 * size / MiB
    assert worth.share > 0.3
