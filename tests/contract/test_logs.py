"""``--log-format``, and what a failed read leaves in the log."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.contract.conftest import wrong_usage
from tests.mounts import Mounts


def test_a_failed_read_is_one_line_with_dataset_and_errno(mounts: Mounts, source: Path) -> None:
    (source / "sub/b.bin").unlink()  # beside large files a small one is fetched when it is opened
    mount = mounts.mount(source, "--log-format=json")
    mount.wait_phase("READY")
    with open(mount.root / "a.txt", "rb", buffering=0) as held:  # of this revision, also when the next one is shown
        (source / "a.txt").write_bytes(b"changed under the mount")
        for _ in range(3):
            with pytest.raises(OSError, match="Stale file handle"):
                os.pread(held.fileno(), 100, 0)
    ours = [line for line in mount.log().splitlines() if " keeper: " not in line]
    lines = [json.loads(line) for line in ours]
    failed = [line for line in lines if line["event"] == "request failed"]
    assert {(line["dataset"], line["errno"]) for line in failed} == {("default/source", "ESTALE")}
    assert len(failed) == 1, "three failures, one cause"
    (fetch,) = [line for line in lines if line["event"] == "fetch failed"]
    assert (fetch["level"], fetch["dataset"], fetch["path"], fetch["offset"]) == (
        "warning",
        "default/source",
        "a.txt",
        0,
    )


def test_other_formats_are_refused(try_mount: Callable[..., CompletedProcess[str]], source: Path) -> None:
    wrong_usage(try_mount(source, "--log-format=xml"), "--log-format", "console", "json")
