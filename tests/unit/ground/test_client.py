"""Where a program looks for running mounts of its user."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsfs import client
from dsfs.errors import MountError

UID = 54_321  # nobody's


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user with a session; what it has in /tmp belongs to it."""
    own = Path(f"/tmp/dsfs-{UID}")
    own.mkdir(mode=0o700, exist_ok=True)  # a run that was ended may have left it
    os.chown(own, UID, UID)
    monkeypatch.setattr(os, "getuid", lambda: UID)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    yield own
    own.chmod(0o700)
    for path in sorted(own.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    own.rmdir()


def test_a_mount_of_another_session_is_found(user: Path, tmp_path: Path) -> None:
    for root, name in ((tmp_path, "of this session"), (user, "of none")):
        place = root / "dsfs" / name
        place.mkdir(parents=True)
        (place / "keeper.json").write_text(json.dumps({"mountpoint": f"/{name}"}))
    assert client.runtime_root() == f"{tmp_path}/dsfs"
    found = [os.path.basename(path) for path in client.runtime_directories()]
    assert found == ["of this session", "of none"]
    user.chmod(0o777)  # others could put theirs there
    assert [os.path.basename(path) for path in client.runtime_directories()] == ["of this session"]


def test_without_a_session_what_others_may_write_to_is_refused(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert client.runtime_root() == f"{user}/dsfs"
    user.chmod(0o770)
    with pytest.raises(MountError, match="chmod 700"):
        client.runtime_root()


def test_what_is_below_what() -> None:
    for path, directory, expected in (
        ("/a/b", "/a", True),
        ("/a", "/a", True),
        ("/a/../b", "/a", False),
        ("/ab", "/a", False),
        ("/a", "/a/b", False),
        ("/x", "/", True),
    ):
        assert client.is_below(path, directory) is expected, (path, directory)
