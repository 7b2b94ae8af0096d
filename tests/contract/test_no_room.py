"""Reading what the cache has no room for: it comes from the origin each time, and each time once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs
from tests.servers import hostile as web
from tests.servers.web_tree import gets, put_tree, some_files

KIB, MIB = 1 << 10, 1 << 20
PATHS = ["passthrough", "openless", "pyfuse3"]


@pytest.fixture
def server() -> Iterator[web.Hostile]:
    with web.hostile() as running:
        yield running


def mount_tree(mounts: Mounts, uri: str, path: str, *flags: str, **spec: Any) -> Mount:
    session, spec = ("pyfuse3", spec) if path == "pyfuse3" else ("direct", spec | {"readPath": path})
    manifest = write_manifests(mounts.directory / "m.yaml", dataset("data", uri, "team", type="HTTP", **spec))
    return mounts.mount("-f", manifest, *flags, session=session, dataset="team/data")


def sent_bytes(server: web.Hostile, path: str) -> int:
    asked = [each for each in list(server.asked) if each.method == "GET" and each.path == f"/data/{path}"]
    size = len(server.files[f"/data/{path}"])
    return sum(min(each.range[1], size - 1) - each.range[0] + 1 if each.range else size for each in asked)


def read_in_steps(path: Path, step: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(step), b""))


@pytest.mark.parametrize("path", PATHS)
def test_a_large_file_beyond_its_quota_comes_once(mounts: Mounts, server: web.Hostile, path: str) -> None:
    files = some_files(1, 40 * MIB + 5)
    mount = mount_tree(mounts, put_tree(server, files), path, cache={"quota": "4MiB"})
    for name, data in files.items():
        assert read_in_steps(mount.root / name, 128 * KIB) == data
        assert len(data) <= sent_bytes(server, name) <= len(data) + 2 * MIB
    assert mount.dataset()["cached_bytes"] <= 4 * MIB
    from_origin = mount.sum_of("dsfs_read_bytes_total", tier="origin")
    assert from_origin >= 30 * MIB, "what is not kept does not count as a hit"


@pytest.mark.parametrize("path", PATHS)
def test_small_files_beyond_their_quota_come_once(mounts: Mounts, server: web.Hostile, path: str) -> None:
    """In their order, so that the next ones are brought ahead."""
    files = some_files(30, 600_000)
    mount = mount_tree(mounts, put_tree(server, files), path, cache={"quota": "1MiB"})
    for name, data in files.items():
        assert read_in_steps(mount.root / name, 64 * KIB) == data
    assert gets(server) == dict.fromkeys(files, 1)


@pytest.mark.parametrize("size", [500_000, MIB, 3 * MIB])
def test_what_is_on_its_way_counts_for_the_quota(mounts: Mounts, server: web.Hostile, size: int) -> None:
    files = some_files(24, size)
    mount = mount_tree(mounts, put_tree(server, files), "auto", cache={"quota": "5MiB"})
    with ThreadPoolExecutor(8) as readers:
        for name, data in zip(files, readers.map(lambda name: (mount.root / name).read_bytes(), files), strict=True):
            assert data == files[name]
    assert 0 < mount.dataset()["cached_bytes"] <= 5 * MIB


def test_beside_what_is_pinned_a_file_comes_once(mounts: Mounts, server: web.Hostile) -> None:
    files = {"held": b"h" * (9 * MIB), **some_files(1, 20 * MIB)}
    mount = mount_tree(mounts, put_tree(server, files), "openless", "--cache-size=12MiB")
    done = dsfs("warm", "--pin", "team/data/held", "-m", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    assert read_in_steps(mount.root / "d/f000", 128 * KIB) == files["d/f000"]
    assert sent_bytes(server, "d/f000") <= 22 * MIB
    assert sent_bytes(server, "held") == 9 * MIB
