"""The mount outlives its process: "a crash or an upgrade fails no read"."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import (
    Mounts,
    eventually,
    fuse_mounts_below,
    is_mounted,
)
from tests.resilience.conftest import DIRECT, Web, errno_of_read, make_tree, mount_path, outlives_a_stop, readers

KILLS = 4


@pytest.mark.parametrize("path", DIRECT)
def test_readers_do_not_notice_that_the_server_is_killed(mounts: Mounts, tmp_path: Path, path: str) -> None:
    source = make_tree(tmp_path / "source")
    mount = mount_path(mounts, path, source)
    pids = {mount.server_pid}
    keeper = mount.keeper_pid
    with readers(mount, source, tmp_path) as reading:
        reading.wait_progress()
        for _ in range(KILLS):
            killed = mount.kill_server()
            reading.wait_progress()
            pid = mount.server_pid
            assert pid not in pids
            assert killed in pids
            pids.add(pid)
    assert mount.keeper_pid == keeper
    assert mount.dataset()["read_path"] == path
    assert mount.status()["healthy"] is True


def test_healthy_is_told_once_readers_are_answered(mounts: Mounts, tmp_path: Path) -> None:
    """The portable session is mounted anew after a kill: until then there is an empty directory in its place."""
    source = make_tree(tmp_path / "source", files=4)
    datasets = [dataset(f"d{number}", source, "team") for number in range(40)]  # each takes a moment to come back
    mount = mounts.mount("-f", write_manifests(tmp_path / "m.yaml", *datasets), session="pyfuse3", dataset="team/d0")

    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{mount.http}/healthz", timeout=5):
            return True
        return False

    for _ in range(3):
        mount.kill_server()
        eventually(lambda: not is_mounted(mount.mountpoint), 10, "the killed server's mount is gone")
        deadline = time.monotonic() + 30
        while not answers():  # without a pause: what is told is looked at in the same moment
            assert time.monotonic() < deadline, f"not healthy within 30 s: {mount.look()}"
        assert sorted(os.listdir(mount.root)) == sorted(os.listdir(source))


@pytest.mark.parametrize("path", DIRECT)
def test_killed_while_everything_is_cold(mounts: Mounts, tmp_path: Path, web_origin: Web, path: str) -> None:
    """In the middle of fetches, with requests in flight that nobody has answered."""
    source = make_tree(web_origin.root / "data", files=60, large_mib=24)
    mount = mount_path(mounts, path, f"{web_origin.url}data/", type="HTTP")
    with readers(mount, source, tmp_path) as reading:
        for _ in range(3):
            mount.kill_server()  # without waiting: the readers are somewhere in their first rounds
            eventually(lambda: mount.server_pid_now() is not None, 20, "the next server is started")
            reading.check()
        reading.wait_progress()
    for file in source.rglob("*"):
        if file.is_file():
            assert (mount.root / file.relative_to(source)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("path", DIRECT)
def test_what_is_cached_is_read_while_no_server_is_there(mounts: Mounts, tmp_path: Path, path: str) -> None:
    """Passthrough needs no daemon for handles that are open; the others wait, and go on."""
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_path(mounts, path, source)
    data = (source / "d1/f001").read_bytes()
    os.close(os.open(mount.root / "d1/f001", os.O_RDONLY))  # the first close of a connection is told: no FLUSH, please
    held = os.open(mount.root / "d1/f001", os.O_RDONLY)  # not open(): that asks whether it is a terminal
    try:
        assert os.pread(held, len(data), 0) == data
        keeper = mount.keeper_pid
        os.kill(keeper, signal.SIGSTOP)  # so that it starts no other
        try:
            mount.kill_server()
            if path == "passthrough":
                os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(held, len(data), 0) == data  # from the cache file, or from the page cache
            if path == "openless":
                again = os.open(mount.root / "d1/f001", os.O_RDONLY)
                assert os.pread(again, len(data), 0) == data
                os.close(again)
        finally:
            os.kill(keeper, signal.SIGCONT)
        eventually(lambda: mount.look()["healthy"], 20, "the next server answers")
        assert os.pread(held, len(data), 0) == data
    finally:
        os.close(held)
    assert errno_of_read(mount.root / "large") == 0


@pytest.mark.parametrize("path", ["openless", "daemon"])
def test_a_server_that_is_stopped_is_replaced(mounts: Mounts, tmp_path: Path, web_origin: Web, path: str) -> None:
    source = make_tree(web_origin.root / "data", files=8)
    mount = mount_path(mounts, path, f"{web_origin.url}data/", type="HTTP")
    outlives_a_stop(mount, source, "d0/f000", "d1/f001", "d1")
    assert mount.log().count("the server was ready, and has said nothing for 20 s") == 1
    mount.kill_keeper()
    outlives_a_stop(mount, source, "d2/f002", "d3/f003", "d3")  # a keeper that has adopted it watches it too


def test_portable_session_is_mounted_again(mounts: Mounts, tmp_path: Path) -> None:
    """It cannot resume, but it must not stay away either."""
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_path(mounts, "pyfuse3", source)
    data = (source / "d1/f001").read_bytes()
    assert (mount.root / "d1/f001").read_bytes() == data
    first = mount.server_pid
    mount.kill_server()
    eventually(lambda: mount.server_pid != first, 20, "another server")
    eventually(lambda: (mount.root / "d1/f001").exists(), 20, "it is mounted again")
    assert (mount.root / "d1/f001").read_bytes() == data
    assert len(fuse_mounts_below(mount.mountpoint)) == 1
