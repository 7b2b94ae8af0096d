"""Objects whose files say themselves that they are complete."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from dsfs.cache.blockmap import BlockMap
from dsfs.cache.complete import CompleteObject, mark_of, open_complete, open_known_complete, open_object
from dsfs.cache.index import Index
from dsfs.cache.layout import open_layout
from dsfs.cache.mapfile import STATES_AT
from dsfs.cache.node import NodeTier
from dsfs.cache.whole import remove_object
from dsfs.ranges import ByteRange

BLOCK = 4096
SIZE = 3 * BLOCK - 7
CONTENT = bytes(1 + number % 255 for number in range(SIZE))
KEY = "5a" * 32
BOOT = bytes(range(16))


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[NodeTier]:
    layout = open_layout(str(tmp_path / "cache"))
    index = Index(layout.index)
    yield NodeTier(layout, index, lambda: 1 << 30, BOOT, BLOCK)
    index.close(0.0)
    layout.release()


def known(path: str, boot: bytes = BOOT) -> CompleteObject | None:
    return open_known_complete(path, KEY, SIZE, boot)


def published(path: str, blocks: range) -> BlockMap:
    obj = BlockMap.create(path, KEY, SIZE, BLOCK, BOOT)
    with obj.writer() as writer:
        for block in blocks:
            writer.publish(block, CONTENT[block * BLOCK : (block + 1) * BLOCK])
    return obj


def test_what_is_stored_whole_is_known_to_be_complete_and_opens_without_its_map(tier: NodeTier) -> None:
    tier.put_whole(KEY, SIZE, CONTENT, "")
    path = tier.layout.object_path(KEY)
    obj = known(path)
    assert obj is not None
    into = bytearray(SIZE)
    assert obj.read(ByteRange(0, SIZE), memoryview(into))
    assert bytes(into) == CONTENT
    assert known(path, boot=b"another boot....") is None
    assert open_known_complete(path, KEY, SIZE - 1, BOOT) is None


def test_a_large_object_is_marked_once_it_is_found_complete(tier: NodeTier) -> None:
    path = tier.layout.object_path(KEY)
    obj = published(path, range(2))
    assert open_complete(path, KEY, SIZE, BLOCK, BOOT) is None
    with obj.writer() as writer:
        writer.publish(2, CONTENT[2 * BLOCK :])
    assert known(path) is None
    assert isinstance(open_object(path, KEY, SIZE, BLOCK, BOOT), CompleteObject)
    assert known(path) is not None


def unlink_but(path: str, unlink: Callable[[str], None], name: str) -> None:
    if name == path:
        raise OSError(errno.EIO, "a bad disk")
    unlink(name)


@pytest.mark.parametrize("harm", ["written", "punched", "truncated", "dropped by half", "copied", "map touched"])
def test_a_mark_does_not_outlive_what_it_says(
    tier: NodeTier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    tier.put_whole(KEY, SIZE, CONTENT, "")
    path = tier.layout.object_path(KEY)
    assert known(path) is not None
    match harm:
        case "written":
            with open(path, "r+b") as file:
                file.write(b"x")
        case "punched":
            fd = os.open(path, os.O_RDWR)
            os.truncate(fd, BLOCK)
            os.truncate(fd, SIZE)
            os.close(fd)
        case "truncated":
            os.truncate(path, SIZE - 1)
        case "dropped by half":
            monkeypatch.setattr("os.unlink", partial(unlink_but, path, os.unlink))
            with pytest.raises(OSError, match="bad disk"):
                remove_object(path)
            monkeypatch.undo()
            assert not os.path.exists(f"{path}.map")
            assert os.path.exists(path)
        case "copied":
            shutil.copyfile(path, tmp_path / "copy")
            os.rename(tmp_path / "copy", path)
        case "map touched":
            with open(f"{path}.map", "r+b") as file:
                file.seek(STATES_AT)
                file.write(b"\0")
            assert open_complete(path, KEY, SIZE, BLOCK, BOOT) is None  # what is wrong with a map is seen
            return
    assert known(path) is None


def test_no_clock_shows_a_mark() -> None:
    for key in (KEY, "00" * 32, "ff" * 32):
        for boot in (BOOT, bytes(16), b"\xff" * 16):
            assert 0 <= mark_of(key, boot) < 1_100_000_000 * 10**9  # before 2005


def test_opening_while_it_is_dropped_and_brought_in_anew_never_shows_a_hole(tier: NodeTier) -> None:
    """As opening is for any thread: a new object without blocks may appear between any two steps of it."""
    path = tier.layout.object_path(KEY)
    rounds, stop = 300, threading.Event()
    wrong: list[bytes] = []
    opened = 0

    def look() -> None:
        nonlocal opened
        into = bytearray(SIZE)
        while not stop.is_set():
            for obj in (open_complete(path, KEY, SIZE, BLOCK, BOOT), known(path)):
                if obj is not None and obj.read(ByteRange(0, SIZE), memoryview(into)):
                    opened += 1
                    if bytes(into) != CONTENT:
                        wrong.append(bytes(into))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for number in range(rounds):
            if number % 2:
                tier.put_whole(KEY, SIZE, CONTENT, "")
            else:
                published(path, range(3) if number % 4 else range(2))
            tier.drop(KEY)
        while not opened:  # at least once it was there at the right time
            tier.put_whole(KEY, SIZE, CONTENT, "")
            tier.drop(KEY)
    finally:
        stop.set()
        looking.join()
    assert not wrong


def test_what_is_dropped_while_it_is_read_is_not_kept_open(tier: NodeTier) -> None:
    """It may be dropped because it is corrupt, and then no later reader shall have it."""
    tier.put_whole(KEY, SIZE, CONTENT, "")
    obj = tier.open_complete(KEY, SIZE, "")
    assert obj is not None
    tier.drop(KEY)
    tier.keep_open(obj)
    assert tier.open(KEY, SIZE, "") is None
    assert not tier.knows(KEY)
