"""When blocks are written past the page cache; that what is written so is read back right, next to what is not."""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfs.cache.blockmap import BlockMap
from dsfs.cache.direct import LEAST_BYTES_PER_S, PROBE_EVERY, REMEMBERED, SECTOR_BYTES, DirectWrites, pays
from dsfs.cache.new_file import new_file, write_all
from dsfs.ranges import ByteRange
from tests.pages import drop_pages

BLOCK = 64 * 1024
KEY = "ab" * 32


@given(st.lists(st.floats(1e6, 1e10), max_size=REMEMBERED), st.integers(0, PROBE_EVERY))
def test_a_disk_is_judged_by_the_best_of_enough_writes(rates: list[float], since_probe: int) -> None:
    chosen = pays(rates, since_probe)
    if len(rates) < REMEMBERED or since_probe == PROBE_EVERY:
        assert chosen
    else:
        assert chosen == (max(rates) >= LEAST_BYTES_PER_S)


def test_a_slow_disk_is_probed_now_and_then() -> None:
    direct = DirectWrites()
    direct._rates.extend([1e6] * REMEMBERED)
    chosen = [direct.choose() for _ in range(2 * PROBE_EVERY + 2)]
    assert chosen.count(True) == 2


def test_a_write_that_is_refused_says_nothing_about_the_disk() -> None:
    direct = DirectWrites()
    for _ in range(2 * REMEMBERED):
        with pytest.raises(OSError, match="not aligned"), direct.timed(BLOCK):
            raise OSError(errno.EINVAL, "not aligned")
    assert not direct._rates
    with direct.timed(BLOCK):
        pass
    assert len(direct._rates) == 1


def test_blocks_past_the_cache_beside_blocks_through_it(tmp_path: Path) -> None:
    """In random order, with reads between that have the kernel read ahead into what is not written yet."""
    rng = random.Random(5)
    size = 24 * BLOCK + 1000  # the last block is not aligned
    content = rng.randbytes(size)
    obj = BlockMap.create(str(tmp_path / "object"), KEY, size, BLOCK, b"b" * 16)
    aligned = memoryview(mmap.mmap(-1, BLOCK))
    direct = DirectWrites()
    order = list(range(obj.blocks))
    rng.shuffle(order)
    for count, block in enumerate(order):
        place = ByteRange(block * BLOCK, min((block + 1) * BLOCK, size))
        data = content[place.start : place.stop]
        aligned[: place.length] = data
        with obj.writer() as writer:
            if count % 3:
                writer.publish(block, aligned[: place.length].toreadonly(), direct)
            else:
                writer.publish(block, data, direct)  # where bytes lie is not ours to choose: it may be refused
        into = bytearray(place.length)
        assert obj.read(place, memoryview(into))
        assert into == data
    whole = bytearray(size)
    assert obj.read(ByteRange(0, size), memoryview(whole))
    assert whole == content
    assert obj.complete
    assert all(obj.check(block) for block in range(obj.blocks))
    drop_pages(tmp_path / "object")
    assert (tmp_path / "object").read_bytes() == content


@pytest.mark.parametrize("size", [1, SECTOR_BYTES - 1, SECTOR_BYTES, 3 * SECTOR_BYTES, 3 * SECTOR_BYTES + 77])
@pytest.mark.parametrize("offset", [0, 1])
def test_a_new_file_past_the_cache(tmp_path: Path, size: int, offset: int) -> None:
    """``offset``: where in memory its bytes begin; where that is not aligned, the kernel may refuse."""
    content = random.Random(size).randbytes(size)
    memory = memoryview(mmap.mmap(-1, 4 * SECTOR_BYTES))[offset : offset + size]
    memory[:] = content
    direct = DirectWrites()
    with new_file(str(tmp_path / "new")) as (fd, _replaced):
        assert write_all(fd, memory.toreadonly(), direct) >= size
        assert os.fstat(fd).st_size == size
        assert os.pread(fd, size + 1, 0) == content
    assert (tmp_path / "new").read_bytes() == content


def test_a_new_file_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: memoryview, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with new_file(str(tmp_path / "new")) as (fd, _replaced), pytest.raises(OSError, match="full"):
        write_all(fd, memoryview(mmap.mmap(-1, SECTOR_BYTES)), DirectWrites())
