"""The background check by itself: how far it goes, what it finds, and what it leaves alone."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from dsfs import metrics
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.index import Index
from dsfs.cache.layout import open_layout
from dsfs.cache.mapfile import STATES_AT
from dsfs.cache.node import NodeTier
from dsfs.cache.past_cache import PastCache
from dsfs.cache.scrub import LONGEST_PAUSE_S, Scrub, pause_s
from dsfs.cache.verify import rebuild_index, verify
from dsfs.ranges import ByteRange
from tests.pages import cached_pages, drop_pages

BLOCK = 4096
BOOT = bytes(16)


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[NodeTier]:
    layout = open_layout(f"{tmp_path}/cache")
    index = Index(layout.index)
    yield NodeTier(layout, index, lambda: 1 << 30, BOOT, BLOCK)
    index.close(time.time())
    layout.release()


def after_a_boot(tier: NodeTier) -> NodeTier:
    return NodeTier(tier.layout, tier.index, lambda: 1 << 30, b"another boot ...", BLOCK)


def key_of(number: int) -> str:
    return f"{number:02x}" * 32


def data_of(number: int, blocks: int = 3) -> bytes:
    return bytes([number + 1]) * (blocks * BLOCK - 7)


def put(tier: NodeTier, number: int, blocks: int = 3) -> None:
    data = data_of(number, blocks)
    tier.put_whole(key_of(number), len(data), data, "a/one")


def flip(tier: NodeTier, number: int, at: int) -> None:
    with open(tier.layout.object_path(key_of(number)), "r+b") as file:
        file.seek(at)
        file.write(b"\xff")


def whole_round(scrub: Scrub, budget_bytes: int) -> int:
    rounds, seen = scrub.place.rounds, 0
    while scrub.place.rounds == rounds:
        seen += scrub.step(budget_bytes)
    return seen


@pytest.mark.parametrize("budget_bytes", [1, BLOCK, 5 * BLOCK, 1 << 20])
def test_a_round_looks_at_every_byte_once(tier: NodeTier, budget_bytes: int) -> None:
    for number in range(7):
        put(tier, number * 36, blocks=1 + number)
    size = sum(len(data_of(0, 1 + number)) for number in range(7))
    scrub = Scrub(tier)
    assert whole_round(scrub, budget_bytes) == size
    assert whole_round(scrub, budget_bytes) == size


def test_a_step_keeps_to_its_budget_inside_of_an_object(tier: NodeTier) -> None:
    put(tier, 1, blocks=50)
    assert Scrub(tier).step(4 * BLOCK) == 4 * BLOCK


@pytest.mark.parametrize("blocks_first", range(1, 6))
def test_another_one_goes_on_where_this_one_was(tier: NodeTier, blocks_first: int) -> None:
    for number in (3, 4, 200):
        put(tier, number)
    first = Scrub(tier)
    seen = sum(first.step(1) for _block in range(blocks_first))
    first.save()
    assert seen + whole_round(Scrub(tier), 1) == 3 * len(data_of(0))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"after": "zz", "blocks": 0, "rounds": 0}', '{"after": 1}'])
def test_a_place_that_cannot_be_read_is_the_beginning(tier: NodeTier, text: str) -> None:
    put(tier, 9)
    Path(tier.layout.scrub).write_text(text)
    assert whole_round(Scrub(tier), 1 << 20) == len(data_of(0))


def test_a_bad_object_goes_and_others_stay(tier: NodeTier) -> None:
    for number in (1, 2, 3):
        put(tier, number)
    before = metrics.CORRUPT_BLOCKS._value.get()
    flip(tier, 2, BLOCK + 5)
    whole_round(Scrub(tier), 1 << 20)
    assert [tier.open(key_of(number), len(data_of(0)), "a/one") is not None for number in (1, 2, 3)] == [
        True,
        False,
        True,
    ]
    assert metrics.CORRUPT_BLOCKS._value.get() == before + 1


@pytest.mark.parametrize("refused", [False, True])
def test_what_the_disk_cannot_read_is_not_called_wrong(
    tier: NodeTier, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """The kernel's pages of it are right; and what a disk that takes no more keeps is not told of as dropped."""
    put(tier, 2)
    obj = tier.open(key_of(2), len(data_of(2)), "a/one")
    assert obj is not None
    told: list[str] = []
    tier.on_bad = told.append

    def read_only(_path: str) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        if refused:
            patch.setattr("dsfs.cache.objects.remove_object", read_only)
        before = metrics.CORRUPT_BLOCKS._value.get()
        tier.drop_unreadable(obj, OSError(errno.EIO, os.strerror(errno.EIO)))
        tier.drop_unreadable(obj, OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        assert metrics.CORRUPT_BLOCKS._value.get() == before + (not refused)
    assert told == []
    assert obj.unlinked is not refused


@pytest.mark.parametrize("way", ["scrub", "verify", "rebuild", "open"])
def test_an_object_that_is_torn_is_counted_whoever_finds_it(tier: NodeTier, way: str) -> None:
    put(tier, 2)
    os.truncate(tier.layout.map_path(key_of(2)), 40)
    tier.index.remove(key_of(2))
    before = metrics.CORRUPT_BLOCKS._value.get()
    work: dict[str, Callable[[], object]] = {
        "scrub": partial(whole_round, Scrub(tier), 1 << 20),
        "verify": partial(verify, tier),
        "rebuild": partial(rebuild_index, tier),
        "open": partial(tier.open, key_of(2), len(data_of(2)), "a/one"),
    }
    work[way]()
    assert not os.path.exists(tier.layout.object_path(key_of(2)))
    assert metrics.CORRUPT_BLOCKS._value.get() == before + 1


def test_a_bad_block_of_what_is_being_written_goes_alone_and_is_counted_once(tier: NodeTier) -> None:
    size = 6 * BLOCK
    obj = tier.create(key_of(5), size)
    for block in range(3):
        tier.publish(obj, block, bytes([block + 1]) * BLOCK, "a/one")
    flip(tier, 5, BLOCK + 1)
    whole_round(Scrub(tier), 1 << 20)
    assert [obj.state(block) for block in range(6)] == [1, 0, 1, 0, 0, 0]
    tier.publish(obj, 4, bytes(BLOCK), "a/one")
    tier.publish(obj, 1, bytes(BLOCK), "a/one")
    assert tier.index.used_bytes == obj.space_bytes()


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """No more than so many may be opened inside."""
    free = (number for number in itertools.count() if not os.path.exists(f"/proc/self/fd/{number}"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, count, None)), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("way", ["scrub", "verify", "rebuild"])
def test_who_may_open_no_more_files_drops_nothing(tier: NodeTier, way: str, count: int) -> None:
    for number in (1, 2, 3):
        put(tier, number)
        if way == "rebuild":
            tier.index.remove(key_of(number))
    before = metrics.CORRUPT_BLOCKS._value.get()
    later = after_a_boot(tier)  # so that there is something to check
    scrub = Scrub(later)
    work: dict[str, Callable[[], object]] = {
        "scrub": partial(whole_round, scrub, 1 << 20),
        "verify": partial(verify, later),
        "rebuild": partial(rebuild_index, later),
    }
    refused: int | None = errno.EMFILE
    try:
        with descriptors(count):
            work[way]()
    except OSError as error:
        refused = error.errno
    assert refused == errno.EMFILE
    work[way]()
    assert metrics.CORRUPT_BLOCKS._value.get() == before
    assert [tier.open(key_of(number), len(data_of(0)), "a/one") is not None for number in (1, 2, 3)] == [True] * 3


def test_a_block_that_goes_before_it_is_looked_at_is_not_wrong(tier: NodeTier) -> None:
    obj = tier.create(key_of(5), 6 * BLOCK)
    tier.publish(obj, 1, bytes([1]) * BLOCK, "a/one")
    assert obj.retract([1]) == BLOCK
    assert obj.check(1)


def test_it_is_no_use_of_what_it_looks_at(tier: NodeTier) -> None:
    put(tier, 1)
    tier.index.flush(time.time())
    (before,) = tier.index.everything()
    whole_round(Scrub(tier), 1 << 20)
    tier.index.flush(time.time() + 3600)
    assert list(tier.index.everything()) == [before]


def test_what_another_boot_wrote_is_believed_afterwards(tier: NodeTier) -> None:
    put(tier, 1)
    later = after_a_boot(tier)
    whole_round(Scrub(later), 1 << 20)
    obj = BlockMap.open(tier.layout.object_path(key_of(1)), key_of(1), len(data_of(0)), BLOCK, later.boot)
    assert obj.complete


def test_pages_that_nobody_had_do_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    fd = os.open(path, os.O_RDWR)
    drop_pages(fd)
    disk = PastCache()
    with disk.reading(fd) as read:
        assert bytes(read(ByteRange(0, 1 << 20))) == path.read_bytes()[: 1 << 20]
    drop_pages(fd)
    with disk.reading(fd) as read:
        for start in range(0, 1 << 20, 1 << 18):
            read(ByteRange(start, start + (1 << 18)))
    assert cached_pages(fd) == 0  # a look with RWF_NOWAIT has the kernel read ahead
    os.close(fd)


def test_a_week_for_a_full_disk_and_a_minute_at_most() -> None:
    week = 7 * 86400.0
    assert pause_s(1 << 20, 4 << 40, week) == pytest.approx(0.144, rel=0.01)
    assert pause_s(1 << 20, 1 << 20, week) == LONGEST_PAUSE_S
    assert pause_s(1 << 20, 0, 5.0) == 5.0


@pytest.mark.parametrize("look", ["scrub", "verify"])
def test_a_state_that_is_none_is_one_to_check(tier: NodeTier, look: str) -> None:
    """It may be of a block that is right, and of one that is not."""
    for number in (1, 2):
        put(tier, number, blocks=3)
        with open(tier.layout.map_path(key_of(number)), "r+b") as file:
            file.seek(STATES_AT + 1)
            file.write(b"\x77")
    flip(tier, 2, BLOCK + 5)
    if look == "verify":
        assert verify(tier).bad == 1
    else:
        whole_round(Scrub(tier), 1 << 20)
    right = tier.open(key_of(1), len(data_of(1)), "a/one")
    wrong = tier.open(key_of(2), len(data_of(2)), "a/one")
    assert right is not None
    assert right.complete
    if wrong is not None:
        assert isinstance(wrong, BlockMap)
        assert wrong.absent(ByteRange(0, len(data_of(2)))) == [1]


def test_directories_that_somebody_removed_are_made_again(tier: NodeTier) -> None:
    for directory in (f"{tier.layout.objects}/01", tier.layout.unproven):
        os.rmdir(directory)
    tier.upkeep()
    put(tier, 1)
    assert tier.open(key_of(1), len(data_of(1)), "a/one") is not None
