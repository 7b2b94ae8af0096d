"""``dsfs bench``: numbers for any directory."""

from __future__ import annotations

import json
from pathlib import Path

from tests.contract.conftest import one_line_failure
from tests.mounts import Mounts, dsfs
from tests.resilience.conftest import make_tree


def test_a_mount_is_measured(mounts: Mounts, tmp_path: Path) -> None:
    mount = mounts.mount(make_tree(tmp_path / "source", files=8))
    done = dsfs("bench", mount.mountpoint, "--seconds=2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["path"] == str(mount.mountpoint)
    assert [row["unit"] for row in found["rows"]] == ["names/s", "MB/s", "reads/s", "files/s"]
    assert all(row["first"] > 0 and row["again"] > 0 for row in found["rows"])


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "only").write_bytes(b"x")
    done = dsfs("bench", tmp_path, "--seconds=0.1")
    assert done.returncode == 0, done.stderr
    assert "no file of 8 MiB or more" in done.stdout
    one_line_failure(dsfs("bench", tmp_path / "none"), str(tmp_path / "none"), "no such directory")
