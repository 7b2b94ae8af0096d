"""The command line as others script against it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.mounts import dsfs


def one_line_failure(done: CompletedProcess[str], *words: str) -> str:
    """Exit status 1, nothing on stdout, one line on stderr with these words in it; the line."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("dsfs: ")
    assert "Traceback" not in lines[0]
    missing = [word for word in words if word not in lines[0]]
    assert not missing, (missing, lines[0])
    return lines[0]


def wrong_usage(done: CompletedProcess[str], *words: str) -> str:
    """Exit status 2, nothing on stdout, a usage message on stderr."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    missing = [word for word in words if word not in done.stderr]
    assert not missing, (missing, done.stderr)
    return done.stderr


def contents_below(*directories: Path) -> Iterator[tuple[Path, bytes]]:
    """Every regular file and what is in it; other tests may have theirs there, which come and go."""
    for directory in directories:
        for parent, _names, files in os.walk(directory):
            for path in (Path(parent, name) for name in files):
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISREG(path.lstat().st_mode):
                        yield path, path.read_bytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with a few files."""
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    (directory / "a.txt").write_bytes(b"first")
    (directory / "sub/b.bin").write_bytes(bytes(range(256)) * 20_000)
    return directory


@pytest.fixture
def try_mount(tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """``dsfs mount`` that is meant to fail: onto an empty directory, with a cache of its own."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()

    def call(*argv: str | Path, **how: Any) -> CompletedProcess[str]:
        return dsfs("mount", *argv, mountpoint, f"--cache-dir={tmp_path}/cache", **how)

    return call


def flip_byte(cache_dir: Path, at_least_bytes: int) -> None:
    """Change one byte, on the disk, of the only cached object of such a size."""
    objects = [path for path in (cache_dir / "objects").rglob("*") if path.is_file() and path.suffix != ".map"]
    (large,) = [path for path in objects if path.stat().st_size >= at_least_bytes]
    with open(large, "r+b") as file:
        file.seek(1_500_000)
        (byte,) = file.read(1)
        file.seek(1_500_000)
        file.write(bytes([byte ^ 0x40]))
