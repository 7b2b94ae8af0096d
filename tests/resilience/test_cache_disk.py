"""The cache's disk: full, small, damaged. Reads stay right; the cache is an optimisation."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import one_line_failure
from tests.mounts import Mount, Mounts, dsfs, eventually
from tests.pages import drop_pages
from tests.resilience.conftest import DIRECT, MIB, make_tree, mount_path

PATHS = (*DIRECT, "pyfuse3")


@pytest.fixture
def tmpfs(tmp_path: Path, mounts: Mounts) -> Iterator[Callable[[str], Path]]:
    """A small file system in memory."""
    made: list[Path] = []

    def make(size: str) -> Path:
        place = tmp_path / f"tmpfs{len(made)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
        made.append(place)
        return place

    yield make
    mounts.close_quietly()  # who uses it goes first
    for place in made:
        subprocess.run(["umount", "-l", place], check=True)


def compare(mount: Mount, source: Path) -> None:
    for file in sorted(source.rglob("*")):
        if file.is_file():
            assert (mount.root / file.relative_to(source)).read_bytes() == file.read_bytes(), file


@pytest.mark.parametrize("path", PATHS)
def test_full(mounts: Mounts, tmp_path: Path, tmpfs: Callable[[str], Path], path: str) -> None:
    """More is read than the disk holds, and the cache was told that it may have it all."""
    source = make_tree(tmp_path / "source", files=40, large_mib=24)
    mount = mount_path(mounts, path, source, "--cache-size=1GiB", cache_dir=tmpfs("12m"))
    mount.wait_phase("READY")
    mount.expect_log("cache|full|No space")
    for _ in range(2):
        compare(mount, source)
    assert mount.dataset()["phase"] == "READY"


@pytest.mark.parametrize("path", DIRECT)
def test_read_only_for_a_while(mounts: Mounts, tmp_path: Path, path: str) -> None:
    source = make_tree(tmp_path / "source", files=6, large_mib=1)
    before = mount_path(mounts, path, source)
    assert before.unmount().returncode == 0
    objects = before.cache_dir / "objects"
    subprocess.run(["mount", "--bind", objects, objects], check=True)
    try:
        mount = mount_path(mounts, path, source, cache_dir=before.cache_dir)
        files = sorted(source.rglob("f*"))

        def is_right(file: Path) -> bool:
            return (mount.root / file.relative_to(source)).read_bytes() == file.read_bytes()

        assert is_right(files[0])
        subprocess.run(["mount", "-o", "remount,bind,ro", objects], check=True)
        mount.expect_log("cache directory in trouble")
        assert all(map(is_right, files[:3]))
        status = mount.look()
        assert status["healthy"] is False
        assert "the cache directory is in trouble: Read-only file system" in status["message"]
        assert "in trouble: Read-only" in dsfs("status", mount.mountpoint).stdout
        assert mount.metrics()["dsfs_cache_trouble"] == 1
        subprocess.run(["mount", "-o", "remount,bind,rw", objects], check=True)
        assert all(map(is_right, files))
        assert mount.look()["healthy"] is True
        assert mount.metrics()["dsfs_cache_trouble"] == 0
    finally:
        mounts.close_quietly()
        subprocess.run(["umount", "-l", objects], check=True)


@pytest.mark.parametrize("path", PATHS)
def test_much_smaller_than_what_is_read(mounts: Mounts, tmp_path: Path, path: str) -> None:
    source = make_tree(tmp_path / "source", files=40, large_mib=24)
    mount = mount_path(mounts, path, source, "--cache-size=6MiB")
    for _ in range(2):
        compare(mount, source)
    eventually(lambda: mount.look()["cache_used"] <= 6 * MIB, 15, "the cache is within its size")


def test_a_server_takes_over_on_a_full_disk(mounts: Mounts, tmp_path: Path, tmpfs: Callable[[str], Path]) -> None:
    """What is cached is read, though nothing can be written down; and once there is room all is as it was."""
    source, place = make_tree(tmp_path / "source", files=10, large_mib=2), tmpfs("24m")
    mount = mount_path(mounts, "daemon", source, "--cache-size=16MiB", "--min-free=0", cache_dir=place / "cache")
    mount.wait_phase("READY")
    compare(mount, source)
    size = mount.dataset()["bytes"]
    assert size > 2 * MIB
    eventually(lambda: mount.dataset()["cached_bytes"] == size, 20, "all of it is cached, and written down")
    mount.expect_log("cache|No space|full")
    with open(place / "filler", "wb", buffering=0) as filler:
        while os.statvfs(place).f_bavail:
            filler.write(bytes(4096))
    hidden = tmp_path / "hidden"
    os.rename(source, hidden)
    try:
        for _ in range(2):
            mount.kill_server()
            assert mount.server_pid
            for file in sorted(hidden.rglob("f*")):
                drop_pages(mount.root / file.relative_to(hidden))
                assert (mount.root / file.relative_to(hidden)).read_bytes() == file.read_bytes()
    finally:
        os.rename(hidden, source)
    (place / "filler").unlink()
    mount.kill_server()
    assert mount.server_pid
    eventually(lambda: mount.dataset()["cached_bytes"] == size, 20, "it knows all that it has")
    compare(mount, source)


@pytest.mark.parametrize("path", ["passthrough", "daemon"])
def test_a_server_takes_over_on_a_disk_that_has_become_read_only(mounts: Mounts, tmp_path: Path, path: str) -> None:
    """As an ext4 does after an error: what is cached is read, the rest comes from the origin and is not kept."""
    source, cache = tmp_path / "source", tmp_path / "cache"
    cache.mkdir()
    for number in range(4):  # a directory each: neighbours are read ahead
        (source / f"d{number}").mkdir(parents=True)
        (source / f"d{number}/f").write_bytes(os.urandom(40_000 + number))
    mount = mount_path(mounts, path, source, cache_dir=cache)
    mount.wait_phase("READY")
    first, *_others = sorted(source.rglob("f*"))
    assert (mount.root / first.relative_to(source)).read_bytes() == first.read_bytes()
    cached = mount.dataset()["cached_bytes"]
    # over the one that has files open for writing, which nobody can make read-only
    subprocess.run(["mount", "--bind", "-o", "ro", cache, cache], check=True)
    try:
        mount.expect_log("cache|Read-only")
        for _ in range(2):
            mount.kill_server()
            eventually(lambda: mount.look()["datasets"], 20, "a server answers, though it is not well")
            drop_pages(mount.root / first.relative_to(source))
            before = mount.sum_of("dsfs_origin_read_bytes_total")
            assert (mount.root / first.relative_to(source)).read_bytes() == first.read_bytes()
            # a byte may be asked for, to see whether this one may read at all: no proof of it can be written down
            assert mount.sum_of("dsfs_origin_read_bytes_total") - before in (0, 1)
            compare(mount, source)
    finally:
        subprocess.run(["umount", "-l", cache], check=True)
    mount.kill_server()
    eventually(lambda: mount.look()["healthy"], 20, "the next one is")
    for file in source.rglob("f"):
        drop_pages(mount.root / file.relative_to(source))
    compare(mount, source)
    eventually(lambda: mount.dataset()["cached_bytes"] > cached, 20, "it is kept again")
    assert mount.look()["healthy"]


def test_no_room_at_all(tmp_path: Path, tmpfs: Callable[[str], Path]) -> None:
    """Not even for what says that it is a cache."""
    place = tmpfs("64k")
    (place / "cache").mkdir()
    room = os.statvfs(place).f_bavail * 4096
    (place / "filler").write_bytes(bytes(room))
    (tmp_path / "mnt").mkdir()
    source = make_tree(tmp_path / "source", files=2, large_mib=1)
    done = dsfs("mount", source, tmp_path / "mnt", f"--cache-dir={place}/cache")
    one_line_failure(done, str(place / "cache"), "No space")


@pytest.mark.parametrize("path", ["passthrough", "openless"])
def test_damaged_while_unmounted(mounts: Mounts, tmp_path: Path, path: str) -> None:
    source = make_tree(tmp_path / "source", files=6, large_mib=6)
    mount = mount_path(mounts, path, source)
    compare(mount, source)
    eventually(lambda: mount.dataset()["cached_bytes"] == mount.dataset()["bytes"], 15, "all of it is cached")
    assert mount.unmount().returncode == 0
    objects = sorted(p for p in (mount.cache_dir / "objects").rglob("*") if p.is_file() and p.suffix != ".map")
    assert len(objects) == 7
    for number, place in enumerate(objects):
        size = place.stat().st_size
        with open(place, "r+b") as file:
            if number % 3 == 0:  # a torn file
                file.truncate(size // 2)
            else:
                file.seek(size // 2)
                (byte,) = file.read(1)
                file.seek(size // 2)
                file.write(bytes([byte ^ 1]))
    assert dsfs("verify", f"--cache-dir={mount.cache_dir}").returncode == 1
    again = mount_path(mounts, path, source, cache_dir=mount.cache_dir)
    compare(again, source)


def data_files(mount: Mount) -> list[Path]:
    return [p for p in (mount.cache_dir / "objects").rglob("*") if p.is_file() and p.suffix != ".map"]


@pytest.mark.parametrize("path", DIRECT)
def test_cut_off_while_mounted(mounts: Mounts, tmp_path: Path, path: str) -> None:
    source = make_tree(tmp_path / "source", files=6, large_mib=6)
    mount = mount_path(mounts, path, source)
    compare(mount, source)
    eventually(lambda: mount.dataset()["cached_bytes"] == mount.dataset()["bytes"], 15, "all of it is cached")
    for number, place in enumerate(data_files(mount)):
        os.truncate(place, place.stat().st_size // 2 * (number % 2))
    mount.expect_log("cached object dropped")
    for file in source.rglob("*"):
        if file.is_file():
            drop_pages(mount.root / file.relative_to(source))
    for _again in range(2):
        compare(mount, source)


def test_cut_off_while_more_of_it_is_stored(mounts: Mounts, tmp_path: Path) -> None:
    """What is stored behind the cut would make the file as long as it was, with zeros where blocks were."""
    source = make_tree(tmp_path / "source", files=1, large_mib=40)
    mount = mount_path(mounts, "passthrough", source)
    whole = (source / "large").read_bytes()
    with open(mount.root / "large", "rb") as file:
        assert file.read(MIB) == whole[:MIB]
    assert 0 < mount.dataset()["cached_bytes"] < 40 * MIB
    for place in data_files(mount):
        os.truncate(place, 0)
    mount.expect_log("cached object dropped")
    with open(mount.root / "large", "rb") as file:
        file.seek(36 * MIB)
        assert file.read(MIB) == whole[36 * MIB : 37 * MIB]
    for _again in range(3):
        drop_pages(mount.root / "large")
        assert (mount.root / "large").read_bytes() == whole


def test_torn_maps_and_lost_index(mounts: Mounts, tmp_path: Path) -> None:
    """What a crash can leave: torn maps, data without maps, an index that is gone. Nothing of it is believed."""
    source = make_tree(tmp_path / "source", files=6, large_mib=6)
    mount = mount_path(mounts, "daemon", source)
    compare(mount, source)
    assert mount.unmount().returncode == 0
    maps = sorted((mount.cache_dir / "objects").rglob("*.map"))
    assert len(maps) == 7
    maps[0].unlink()
    for torn in maps[1:3]:
        with open(torn, "r+b") as file:
            file.truncate(40)
    maps[3].write_bytes(os.urandom(maps[3].stat().st_size))
    shutil.rmtree(mount.cache_dir / "index")
    again = mount_path(mounts, "daemon", source, cache_dir=mount.cache_dir)
    again.expect_log("cached object dropped|index of the cache")
    compare(again, source)
