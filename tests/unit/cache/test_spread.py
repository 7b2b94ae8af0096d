"""What a file system is told of where directories should lie."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from dsfs.cache.layout import open_layout
from dsfs.cache.spread import spread_directories

GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS, <linux/fs.h>
TOP_DIRECTORY = 0x00020000


def flags_of(directory: Path) -> int | None:
    """None where the file system has none."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        return int(struct.unpack("=q", fcntl.ioctl(fd, GET_FLAGS, bytes(8)))[0]) & 0xFFFFFFFF
    except OSError:
        return None
    finally:
        os.close(fd)


def file_system_of(directory: Path) -> str:
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    device = os.stat(directory).st_dev
    (kind, *_more) = [f[f.index("-") + 1] for f in lines if f[2] == f"{os.major(device)}:{os.minor(device)}"]
    return kind


def test_the_directories_of_a_cache_lie_apart_on_ext4(tmp_path: Path) -> None:
    before = flags_of(tmp_path)
    layout = open_layout(f"{tmp_path}/cache")
    layout.release()
    if file_system_of(tmp_path) != "ext4":
        pytest.skip("no ext4")
    for directory in (tmp_path / "cache", tmp_path / "cache/objects"):
        assert before is not None
        assert flags_of(directory) == before | TOP_DIRECTORY, directory
    assert flags_of(tmp_path / "cache/objects/ab") == before, "an end of the hierarchy"


def test_other_file_systems_are_left_as_they_are() -> None:
    spread_directories("/proc/self")
    with pytest.raises(FileNotFoundError):
        spread_directories("/proc/self/none")
