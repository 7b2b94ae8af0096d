"""Mounts that are in use are not unmounted, whoever has made them; dead ones are."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import running
from daemon.cli import mount
from dsfs.errors import MountError


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    """A directory that somebody stands in."""
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as user:
        yield str(tmp_path)
        user.kill()


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was unmounted, of mounts that no runtime directory of ours knows: another user's."""
    done: list[str] = []
    monkeypatch.setattr(running, "all_mounts", list)
    monkeypatch.setattr(mount, "_is_ours", lambda _place: True)
    monkeypatch.setattr(mount, "_detach_all", done.append)
    return done


def test_a_mount_of_another_user_that_is_in_use_stays(place: str, detached: list[str]) -> None:
    with pytest.raises(MountError, match=rf"{place} is in use by sleep \(pid .*--lazy"):
        mount.unmount(place)
    assert detached == []
    mount.unmount(place, lazy=True)
    assert detached == [place]


def test_a_mount_of_another_user_that_nobody_uses_goes(tmp_path: Path, detached: list[str]) -> None:
    mount.unmount(str(tmp_path))
    assert detached == [str(tmp_path)]


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.ECONNABORTED, mount.NO_ANSWER])
def test_a_dead_mount_goes_with_whoever_is_in_it(
    place: str, detached: list[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(mount, "errno_of_look", lambda _place, _within_s: code)
    mount.unmount(place)
    assert detached == [place]
