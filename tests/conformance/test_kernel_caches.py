"""What is asked of the daemon, and what the kernel answers alone: a revision is immutable, so it may keep all of it."""

from __future__ import annotations

import collections
import os
import random
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.conformance.conftest import MIB, READ_PATHS
from tests.mounts import Mount, Mounts, eventually
from tests.pages import drop_pages
from tests.resilience.conftest import mount_path
from tests.servers.hostile import hostile

FILES = {f"d{n % 3}/f{n:02d}": random.Random(n).randbytes(50_000 + n) for n in range(30)}
LARGE = random.Random(99).randbytes(12 * MIB + 99)
NAMES = ("lookup", "getattr", "readlink", "readdir", "readdirplus")
BYTES = ("open", "read", "release")


@pytest.fixture(params=READ_PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def mounted(mounts: Mounts, path: str, tmp_path: Path) -> Mount:
    """A small tree with a link and a large file, on one read path."""
    source = tmp_path / "source"
    for name, data in {**FILES, "large": LARGE}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    (source / "link").symlink_to("d0/f00")
    mount = mount_path(mounts, path, source)
    mount.wait_phase("READY")
    return mount


def asked(mount: Mount, work: Callable[[], object]) -> collections.Counter[str]:
    """Which requests reached the daemon meanwhile."""
    before = mount.operations()
    work()
    after = mount.operations()
    return collections.Counter({name: int(after[name] - before.get(name, 0)) for name in after})


def asked_again(mount: Mount, work: Callable[[], object], never: Collection[str]) -> collections.Counter[str]:
    """As ``asked``, and fails if something that is never needed was asked for.

    The page cache is the machine's: somebody else may need the memory or drop it, so the best of a few rounds counts.
    """
    for _ in range(4):
        requests = asked(mount, work)
        if not any(requests[name] for name in never):
            return requests
    raise AssertionError(f"the daemon is asked again and again: {+requests}")


def epoch(root: Path) -> None:
    for name, data in FILES.items():
        assert (root / name).stat().st_size == len(data)
        assert (root / name).read_bytes() == data


def test_second_epoch(mounted: Mount, path: str) -> None:
    first = asked(mounted, lambda: epoch(mounted.root))
    assert first["lookup"] >= len(FILES)
    never = (*NAMES, *BYTES) if path == "openless" else (*NAMES, "read")
    again = asked_again(mounted, lambda: epoch(mounted.root), never)
    if path == "openless":
        assert first["open"] == 1  # which was told ENOSYS
        assert first["read"] >= len(FILES)
    elif path == "passthrough":
        assert (first["open"], again["open"]) == (len(FILES), len(FILES))
        assert first["read"] == 0  # small files are complete before their first open is answered
    else:
        assert again["open"] == len(FILES)


def test_what_the_kernel_has_dropped_comes_from_the_disk_of_the_cache(mounted: Mount, path: str) -> None:
    """Also where an object is not there any more that the daemon took for granted."""
    large = mounted.root / "large"
    epoch(mounted.root)
    assert large.read_bytes() == LARGE
    eventually(lambda: int(os.getxattr(large, "user.dsfs.cached")) == len(LARGE), 20, "the file is complete")
    source_bytes = mounted.sum_of("dsfs_origin_read_bytes_total")
    objects = [file for file in mounted.cache_dir.glob("objects/*/*") if file.suffix == ""]
    assert len(objects) > len(FILES)

    def again() -> None:
        for file in (*objects, large, *(mounted.root / name for name in FILES)):
            drop_pages(file)
        with ThreadPoolExecutor(8) as pool:
            for name, data in zip(FILES, pool.map(lambda name: (mounted.root / name).read_bytes(), FILES), strict=True):
                assert data == FILES[name]
        assert large.read_bytes() == LARGE

    requests = asked(mounted, again)
    assert path == "passthrough" or requests["read"] >= len(FILES)
    assert mounted.sum_of("dsfs_origin_read_bytes_total") == source_bytes
    for file in objects[::2]:
        file.unlink()
        Path(f"{file}.map").unlink()
    again()


def test_names_attributes_links_and_listings_are_kept(mounted: Mount, path: str) -> None:
    root = mounted.root

    def look() -> None:
        for directory, _names, _files in os.walk(root):
            assert os.listdir(directory)
        assert os.readlink(root / "link") == "d0/f00"
        for name in FILES:
            assert (root / name).stat().st_size

    first = asked(mounted, look)
    assert first["readdirplus"] + first["readdir"] > 0
    assert first["readlink"] >= 1
    # pyfuse3 has no way to ask for CACHE_SYMLINKS and FOPEN_CACHE_DIR
    asked_again(mounted, look, NAMES if path != "pyfuse3" else ("lookup", "getattr"))


def test_absent_names_are_kept(mounted: Mount) -> None:
    def look() -> None:
        for name in ("none", "d0/none"):
            assert not (mounted.root / name).exists()

    first = asked(mounted, look)
    assert first["lookup"] >= 2
    asked_again(mounted, look, ("lookup",))


def test_a_complete_file_in_passthrough_is_read_without_the_daemon(mounts: Mounts, mounted: Mount, path: str) -> None:
    if path != "passthrough":
        pytest.skip("passthrough only")
    large = mounted.root / "large"
    assert large.read_bytes() == LARGE
    eventually(lambda: int(os.getxattr(large, "user.dsfs.cached")) == len(LARGE), 20, "the file is complete")
    opened = mounted.sum_of("dsfs_kernel_opened_bytes_total")

    def read() -> None:
        fd = os.open(large, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 1000, 5 * MIB) == LARGE[5 * MIB : 5 * MIB + 1000]
        os.close(fd)
        assert large.read_bytes() == LARGE

    requests = asked(mounted, read)
    assert requests["read"] == 0
    assert requests["open"] == 2
    assert mounted.sum_of("dsfs_kernel_opened_bytes_total") == opened + 2 * len(LARGE)


@pytest.mark.parametrize("size", [3 * MIB + 5, 20 * MIB + 5])
def test_many_readers_of_one_file_cause_one_fetch(mounts: Mounts, path: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with hostile() as server:
        server.files["/file.bin"] = data
        mount = mount_path(mounts, path, f"{server.url}file.bin", type="HTTP")
        before = len(server.asked)
        sent = server.sent_bytes["/file.bin"]
        with ThreadPoolExecutor(8) as pool:
            for read in pool.map(lambda _: (mount.root / "file.bin").read_bytes(), range(8)):
                assert read == data
        gets = [each for each in server.asked[before:] if each.method == "GET"]
        assert server.sent_bytes["/file.bin"] - sent == size, [each.range for each in gets]
        if size < 4 * MIB:
            assert len(gets) == 1
        counted = partial(mount.sum_of, "dsfs_origin_request_seconds_count")
        eventually(lambda: counted() == len(gets), 10, "what readers had at once is stored and counted")
        (mount.root / "file.bin").read_bytes()
        assert counted() == len(gets)
