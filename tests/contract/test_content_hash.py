"""A server that sends other bytes than its list has the hash of, with the ETag of the right ones."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.contract.conftest import dataset, write_manifests
from tests.mounts import Mounts, dsfs, eventually
from tests.servers.archive_files import files_server

SMALL, LARGE = os.urandom(300_000), os.urandom(9_000_011)


@pytest.mark.parametrize("through", ["itself", "reference", "path"])
def test_a_lie_is_not_served_nor_kept_and_heals(mounts: Mounts, tmp_path: Path, through: str) -> None:
    """Whichever dataset shows the file: one that refers to another keeps its bytes in the same place."""
    with files_server() as server:
        listed = []
        for name, data in (("small", SMALL), ("large", LARGE)):
            server.put(name, data)
            server.lies[name] = bytes(len(data))
            listed.append({"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        server.put("index.json", json.dumps(listed).encode())
        manifest = write_manifests(
            tmp_path / "m.yaml",
            dataset(
                "data",
                f"{server.url}index.json",
                "team",
                type="HTTP",
                source={"options": {"list": "true"}},
                readPath="daemon",
                mountOptions={"path": "below"} if through == "path" else {},
            ),
            dataset("lent", "dataset://team/data", "team", type="REFERENCE", readPath="daemon"),
        )
        name = "team/lent" if through == "reference" else "team/data"
        mount = mounts.mount("-f", manifest, "--read-timeout=20s", "--cache-size=1GiB", dataset=name)
        below = "below/" if through == "path" else ""
        root = mount.root / below
        mount.expect_log("fetch failed")
        mount.expect_log("what the source sent is not what it lists")
        with pytest.raises(OSError, match="Input/output error"):
            (root / "small").read_bytes()
        tried = mount.sum_of("dsfs_cache_corrupt_blocks_total")
        assert tried > 0
        (root / "large").read_bytes()  # all that can be said before its end is that it is of one version
        eventually(lambda: mount.sum_of("dsfs_cache_corrupt_blocks_total") > tried, 20, "the large lie is dropped")
        # Dropped while it was still being read, the rest came once more, and what is not whole cannot be looked at.
        dsfs("warm", f"{name}/{below}large", "-m", mount.mountpoint)
        eventually(lambda: _kept(mount.cache_dir) == [], 10, "nothing is kept")
        server.lies.clear()
        assert (root / "small").read_bytes() == SMALL
        assert _kept(mount.cache_dir) != []


def _kept(cache: Path) -> list[Path]:
    return list((cache / "objects").glob("*/*.map"))
