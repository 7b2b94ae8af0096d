"""What ``dsfs bench`` makes of a tree in which something is broken."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import bench
from dsfs.ranges import MiB


def test_what_cannot_be_read_is_passed_over_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for directory in ("broken", "well"):
        (tmp_path / directory).mkdir()
    for name in ("well/read", "well/lost", "well/large"):
        (tmp_path / name).write_bytes(b"x" * (9 * MiB if name.endswith("large") else 100))
    scandir, open_ = os.scandir, os.open

    def broken_scandir(path: str) -> Any:
        if path.endswith("broken"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return scandir(path)

    def broken_open(path: str, flags: int) -> int:
        if path.endswith(("lost", "large")):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return open_(path, flags)

    monkeypatch.setattr(os, "scandir", broken_scandir)
    monkeypatch.setattr(os, "open", broken_open)
    bench.bench(str(tmp_path), readers=1, seconds=0.2)
    printed = capsys.readouterr()
    assert "largest file, 4 KiB at random" in printed.out
    assert printed.err.startswith("dsfs: 3 names passed over that cannot be read, the first ")
    assert printed.err.endswith("/broken: Input/output error\n")


def test_the_directory_itself_has_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_scandir(path: str) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(os, "scandir", broken_scandir)
    with pytest.raises(OSError, match="Input/output error"):
        bench.survey(str(tmp_path), 1.0, {})
