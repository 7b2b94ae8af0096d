"""What counts as trouble of a cache directory, and when it is over."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsfs.cache.index import Index
from dsfs.cache.layout import Layout, open_layout
from dsfs.cache.node import NodeTier

BLOCK = 1 << 20


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[NodeTier]:
    layout = open_layout(str(tmp_path / "cache"))
    tier = NodeTier(layout, Index(layout.index), lambda: 1 << 30, b"b" * 16, BLOCK)
    yield tier
    tier.index.close(2.0)
    layout.release()


def test_files_that_are_renamed_while_they_are_measured(tier: NodeTier) -> None:
    """Catalogs are written under another name first, many at once when a server starts."""
    stop = threading.Event()

    def write(number: int) -> None:
        place = Path(tier.layout.catalogs) / f"team.{number}"
        place.mkdir()
        while not stop.is_set():
            (place / "catalog.new").write_bytes(b"catalog")
            os.rename(place / "catalog.new", place / "catalog")

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(300):
            tier.layout.overhead_bytes()  # raises nothing
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_trouble_is_over_though_nothing_is_brought(tier: NodeTier) -> None:
    tier.note_trouble(OSError(errno.EIO, "for a moment"))
    assert tier.in_trouble
    tier.upkeep()
    assert not tier.in_trouble
    assert not any(files for _directory, _names, files in os.walk(tier.layout.objects)), "nothing is left of the try"


def test_a_disk_that_cannot_be_measured_is_trouble_and_no_error(
    tier: NodeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_layout: Layout) -> int:
        raise OSError(errno.EIO, "a bad disk")

    monkeypatch.setattr(Layout, "overhead_bytes", unreadable)
    tier.upkeep()
    assert tier.statistics().trouble == os.strerror(errno.EIO)


def test_trouble_lasts_while_the_disk_refuses(tier: NodeTier, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    tier.note_trouble(OSError(errno.EIO, "for a moment"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        tier.upkeep()
        assert tier.statistics().trouble == os.strerror(errno.ENOSPC)
    tier.upkeep()
    assert not tier.in_trouble
