"""--min-free on a disk of its own that somebody else fills, as du and df see it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import Mounts, dsfs, eventually
from tests.pages import drop_pages
from tests.resilience.conftest import MIB, make_tree, mount_path

DISK_MIB, FREE_MIB = 128, 32
FLIGHT_MIB = 8  # what may be on its way when somebody looks


@pytest.fixture
def disk(tmp_path: Path, mounts: Mounts) -> Iterator[Path]:
    """A real file system: ext4 in a file."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    yield place
    mounts.close_quietly()  # who uses it goes first
    subprocess.run(["umount", place], check=True)  # and has let go of every file


def free_mib(place: Path) -> float:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize / MIB


def test_others_get_their_room_and_give_it_back(mounts: Mounts, tmp_path: Path, disk: Path) -> None:
    source = make_tree(tmp_path / "source", files=12, large_mib=70)
    files = [file.relative_to(source) for file in source.rglob("*") if file.is_file()]
    mount = mount_path(mounts, "daemon", source, f"--min-free={FREE_MIB}MiB", "--cache-size=100%", cache_dir=disk / "c")
    mount.expect_log("cache directory in trouble")  # when the filler wins a race for the last blocks

    def read_all() -> None:
        for file in files:
            drop_pages(mount.root / file)  # so that the daemon is asked
            assert (mount.root / file).read_bytes() == (source / file).read_bytes()

    read_all()
    eventually(lambda: mount.dataset()["cached_bytes"] > 60 * MIB, 20, "the cache fills what it may")
    assert free_mib(disk) >= FREE_MIB - FLIGHT_MIB
    room_mib = int(free_mib(disk))
    writer = subprocess.Popen(["dd", "if=/dev/zero", f"of={disk}/filler", "bs=1M", f"count={room_mib - 4}"], stderr=-3)
    assert writer.wait(60) == 0  # it got what was free
    eventually(lambda: free_mib(disk) >= FREE_MIB - 1, 30, "the cache has given its room back")
    read_all()  # and nothing fails for it
    eventually(lambda: free_mib(disk) >= FREE_MIB - 1, 30, "it has not taken more again")
    kept = mount.status()["cache_used"]
    (disk / "filler").unlink()
    read_all()
    eventually(lambda: mount.look()["cache_used"] > kept + 10 * MIB, 30, "the cache uses what is free again")
    assert free_mib(disk) >= FREE_MIB - FLIGHT_MIB


def test_a_disk_that_others_fill_is_told_of(mounts: Mounts, tmp_path: Path, disk: Path) -> None:
    """Nothing is kept, everything is read, and whoever looks or warms is told why."""
    source = make_tree(tmp_path / "source", files=2, large_mib=1)
    mount = mount_path(mounts, "daemon", source, f"--min-free={DISK_MIB}MiB", cache_dir=disk / "c")
    for file in source.rglob("*"):
        if file.is_file():
            assert (mount.root / file.relative_to(source)).read_bytes() == file.read_bytes()
    told = mount.look()
    assert "others fill the disk of the cache" in told["message"]
    assert "--min-free" in told["message"]
    assert told["healthy"]
    done = dsfs("warm", "data", "-m", mount.mountpoint)
    assert done.returncode == 1
    assert "--min-free" in done.stderr
