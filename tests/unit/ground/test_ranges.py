"""The arithmetic of ranges and blocks against sets of byte numbers, which cannot be wrong."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dsfs.ranges import ByteRange, block_count, block_range, blocks_of, runs

small = st.integers(0, 200)
block_sizes = st.integers(1, 17)


@given(small, small, small)
def test_clipped_is_the_part_inside_the_file(start: int, stop: int, size: int) -> None:
    clipped = ByteRange(start, stop).clipped(size)
    assert set(range(*clipped)) == set(range(start, stop)) & set(range(size))
    assert 0 <= clipped.start <= clipped.stop <= size or clipped.length == 0
    assert clipped.length == len(range(*clipped))


@given(small, block_sizes)
def test_blocks_tile_a_file_without_gap_or_overlap(size: int, block_bytes: int) -> None:
    tiles = [block_range(block, size, block_bytes) for block in range(block_count(size, block_bytes))]
    assert [byte for tile in tiles for byte in range(*tile)] == list(range(size))
    assert all(tile.length > 0 for tile in tiles)


@given(small, small, block_sizes)
def test_blocks_of_are_those_that_share_a_byte(start: int, stop: int, block_bytes: int) -> None:
    assert list(blocks_of(ByteRange(start, stop), block_bytes)) == sorted(
        {byte // block_bytes for byte in range(start, stop)}
    )


@given(st.sets(st.integers(0, 60)).map(sorted), st.integers(1, 9))
def test_runs_have_every_block_once_and_are_as_few_as_may_be(blocks: list[int], longest: int) -> None:
    found = list(runs(blocks, longest))
    assert [block for run in found for block in run] == blocks
    assert all(0 < len(run) <= longest for run in found)
    for run, after in itertools.pairwise(found):
        assert len(run) == longest or run.stop < after.start
