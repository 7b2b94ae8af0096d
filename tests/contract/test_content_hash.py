"""A server that sends other bytes than its list has the hash of, with the ETag of the right ones."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dsfs.cache.layout import open_layout, trust_id
from dsfs.cache.node import NodeTier
from dsfs.cache.open_index import open_index
from dsfs.ranges import block_count, block_range
from tests.manifests import dataset, write_manifests
from tests.mounts import Mounts, dsfs, eventually
from tests.pages import drop_pages
from tests.servers.archive_files import FilesServer, files_server

SMALL, LARGE = os.urandom(300_000), os.urandom(9_000_011)


def listed(server: FilesServer, files: dict[str, bytes], **spec: Any) -> dict[str, Any]:
    """A dataset of files that the server lists with their hashes."""
    for name, data in files.items():
        server.put(name, data)
    rows = [{"path": at, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for at, data in files.items()]
    server.put("index.json", json.dumps(rows).encode())
    uri, source = f"{server.url}index.json", {"options": {"list": "true"}}
    return dataset("data", uri, "team", type="HTTP", source=source, **spec)


@pytest.mark.parametrize("through", ["itself", "reference", "path"])
def test_a_lie_is_not_served_nor_kept_and_heals(mounts: Mounts, tmp_path: Path, through: str) -> None:
    """Whichever dataset shows the file: one that refers to another keeps its bytes in the same place."""
    with files_server() as server:
        files = {"small": SMALL, "large": LARGE}
        server.lies.update((name, bytes(len(data))) for name, data in files.items())
        below = {"mountOptions": {"path": "below"}} if through == "path" else {}
        manifest = write_manifests(
            tmp_path / "m.yaml",
            listed(server, files, readPath="daemon", **below),
            dataset("lent", "dataset://team/data", "team", type="REFERENCE", readPath="daemon"),
        )
        name = "team/lent" if through == "reference" else "team/data"
        mount = mounts.mount("-f", manifest, "--read-timeout=20s", "--cache-size=1GiB", dataset=name)
        place = "below/" if through == "path" else ""
        root = mount.root / place
        mount.expect_log("fetch failed")
        mount.expect_log("what the source sent is not what it lists")
        with pytest.raises(OSError, match="Input/output error"):
            (root / "small").read_bytes()
        tried = mount.sum_of("dsfs_cache_corrupt_blocks_total")
        assert tried > 0
        (root / "large").read_bytes()  # all that can be said before its end is that it is of one version
        eventually(lambda: mount.sum_of("dsfs_cache_corrupt_blocks_total") > tried, 20, "the large lie is dropped")
        # Dropped while it was still being read, the rest came once more, and what is not whole cannot be looked at.
        dsfs("warm", f"{name}/{place}large", "-m", mount.mountpoint)
        eventually(lambda: _kept(mount.cache_dir) == [], 10, "nothing is kept")
        assert f"{place}large: what the source sent is not" in mount.dataset(name.split("/")[1])["message"]
        server.lies.clear()
        assert (root / "small").read_bytes() == SMALL
        assert _kept(mount.cache_dir) != []


@pytest.mark.parametrize("path", ["passthrough", "openless", "daemon"])
def test_what_a_server_had_no_time_to_hash_the_next_one_does(mounts: Mounts, tmp_path: Path, path: str) -> None:
    """All of a large file came, with checksums that fit, and the server ended before it was compared."""
    with files_server() as server:
        manifest = write_manifests(tmp_path / "m.yaml", listed(server, {"large": LARGE}, readPath=path))
        mount = mounts.mount("-f", manifest, "--cache-size=1GiB", dataset="team/data")
        assert (mount.root / "large").read_bytes() == LARGE
        eventually(lambda: not _unproven(mount.cache_dir), 20, "it is proven")
        assert mount.unmount().returncode == 0
        (key,) = [each.name for each in (mount.cache_dir / "objects").glob("*/*") if each.suffix != ".map"]
        _store_wrong(mount.cache_dir, key)
        assert _unproven(mount.cache_dir) == [key]
        again = mounts.mount("-f", manifest, "--cache-size=1GiB", cache_dir=mount.cache_dir, dataset="team/data")
        again.expect_log("what the source sent is not what it lists")
        (again.root / "large").read_bytes()
        eventually(lambda: again.sum_of("dsfs_cache_corrupt_blocks_total") == 1, 20, "it is found out")
        assert again.sum_of("dsfs_kernel_opened_bytes_total") == 0  # the kernel was not handed what was not proven
        assert again.log().count("what the source sent is not what it lists") == 1
        assert (again.root / "large").read_bytes() == LARGE
        eventually(lambda: not _unproven(again.cache_dir) and _kept(again.cache_dir), 20, "the next one is proven")
        eventually(lambda: again.dataset()["message"] == "", 5, "all is well")
        if path == "passthrough":
            before = again.sum_of("dsfs_kernel_opened_bytes_total")  # the read before may have been handed over, too
            (again.root / "large").read_bytes()
            assert again.sum_of("dsfs_kernel_opened_bytes_total") == before + len(LARGE)


def test_what_was_shared_of_a_lie_reaches_nobody_else(mounts: Mounts, tmp_path: Path) -> None:
    """Its parts are shared as they come, before it is seen to be one."""
    shared = tmp_path / "shared"
    with files_server() as server:
        server.lies["large"] = bytes(len(LARGE))
        manifest = write_manifests(tmp_path / "m.yaml", listed(server, {"large": LARGE}, readPath="daemon", share=True))
        flags = ("-f", manifest, "--cache-size=1GiB", f"--shared-cache={shared}")
        mount = mounts.mount(*flags, dataset="team/data")
        mount.expect_log("what the source sent is not what it lists")
        (mount.root / "large").read_bytes()
        eventually(lambda: mount.sum_of("dsfs_cache_corrupt_blocks_total") > 0, 20, "the lie is dropped")
        # Dropped while it was still being read, the rest came once more, and what is not whole cannot be looked at.
        dsfs("warm", "team/data/large", "-m", mount.mountpoint)
        eventually(lambda: _kept(mount.cache_dir) == [], 10, "nothing is kept")
        assert not [path for path in shared.glob("p*/**/*") if path.is_file()], "nor shared"
        server.lies.clear()
        drop_pages(mount.root / "large")
        assert (mount.root / "large").read_bytes() == LARGE
        eventually(lambda: not _unproven(mount.cache_dir), 20, "it is proven")
        other = mounts.mount(*flags, dataset="team/data")
        assert (other.root / "large").read_bytes() == LARGE
        eventually(lambda: not _unproven(other.cache_dir), 20, "there too")
        assert other.sum_of("dsfs_cache_corrupt_blocks_total") == 0


def _store_wrong(cache: Path, key: str) -> None:
    """As a server that is killed between the last block and the hash leaves an object."""
    layout = open_layout(str(cache))
    index = open_index(layout.index)
    tier = NodeTier(layout, index, lambda: 1 << 30, trust_id(layout.root))
    tier.drop(key)
    tier.unproven.add(key)
    obj = tier.create(key, len(LARGE))
    for block in range(block_count(len(LARGE), tier.block_bytes)):
        tier.publish(obj, block, bytes(block_range(block, len(LARGE), tier.block_bytes).length), "team/data")
    assert obj.complete
    index.close(time.time())
    layout.release()


def _unproven(cache: Path) -> list[str]:
    return [each.name for each in (cache / "unproven").iterdir()]


def _kept(cache: Path) -> list[Path]:
    return list((cache / "objects").glob("*/*.map"))
