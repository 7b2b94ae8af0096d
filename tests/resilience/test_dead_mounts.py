"""Mounts of which both processes are gone: listed, cleared, replaced; nobody ever waits for them without a bound.

All such tests are here, one after the other: ``dsfs doctor --clear`` clears the dead mounts of all.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from daemon.doctor import kernel_patience
from dsfs.fuse.patience import kernel_patience_s, within_patience
from tests.manifests import dataset, write_manifests
from tests.mounts import (
    Mount,
    Mounts,
    abort,
    dsfs,
    eventually,
    fuse_mounts_below,
    is_mounted,
    leftovers,
    processes_of,
    runtime_dir_of,
)
from tests.resilience.conftest import errno_of_read, make_tree, mount_path


def kill_all_of(mount: Mount) -> None:
    abort(mount.mountpoint)
    eventually(lambda: mount.server_pid_now() is None, 10, "all are gone")


def dead_of(mount: Mount) -> list[dict[str, Any]]:
    checks = json.loads(dsfs("doctor", "--json").stdout)["checks"]
    return [each for each in checks if each["name"] == "dead mount" and str(mount.mountpoint) in each["result"]]


@pytest.mark.parametrize("path", ["passthrough", "openless", "daemon"])
def test_a_dataset_that_the_kernel_has_cut_off_is_mounted_anew(mounts: Mounts, tmp_path: Path, path: str) -> None:
    """As by ``umount -f`` of one that is in use, its abort switch, or a request that the kernel did not wait for."""
    source = make_tree(tmp_path / "source", files=4)
    manifests = write_manifests(tmp_path / "m.yaml", *(dataset(name, source, readPath=path) for name in ("one", "two")))
    mount = mounts.mount("-f", manifests)
    mount.expect_log("mounted anew")
    one, two = mount.mountpoint / "default/one", mount.mountpoint / "default/two"
    expected = (source / "d0/f000").read_bytes()
    with open(one / "d0/f000", "rb", buffering=0) as held, open(two / "d0/f000", "rb", buffering=0) as other:
        assert held.read(1) == other.read(1) == expected[:1]
        assert subprocess.run(["umount", "-f", one], capture_output=True, check=False).returncode != 0, "it is in use"
        eventually(lambda: errno_of_read(one / "d0/f000") == 0, 10, "it is there again")
        assert (one / "d0/f000").read_bytes() == expected
        assert os.pread(other.fileno(), 100, 0) == expected[:100]
        assert mount.dataset("one")["phase"] == "READY"
        mount.kill_server()
        assert (one / "d0/f000").read_bytes() == expected
    assert len([place for _dev, place in fuse_mounts_below(one)]) == 1


@pytest.mark.usefixtures("none_is_cleared")
def test_listed_and_cleared(mounts: Mounts, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_path(mounts, "passthrough", source)
    assert dead_of(mount) == []
    connections = [device.partition(":")[2] for device, _place in fuse_mounts_below(mount.mountpoint)]
    kill_all_of(mount)
    found = dead_of(mount)
    assert len(found) == len(connections) == 2
    for check, connection in zip(found, connections, strict=True):
        assert f"/sys/fs/fuse/connections/{connection}/abort" in check["remedy"]
        assert "dsfs doctor --clear" in check["remedy"]
    assert mount.status()["healthy"] is False
    done = dsfs("doctor", "--clear")
    assert f"{mount.mountpoint}: detached" in done.stderr
    assert not is_mounted(mount.mountpoint)
    assert not runtime_dir_of(mount.mountpoint).exists()
    assert dead_of(mount) == []


@pytest.mark.usefixtures("none_is_cleared")
def test_a_mount_whose_keeper_is_stopped_is_not_dead(mounts: Mounts, tmp_path: Path) -> None:
    """And whoever looks does not wait for it: its server is gone too."""
    mount = mount_path(mounts, "daemon", make_tree(tmp_path / "source", files=4))
    keeper = mount.keeper_pid
    os.kill(keeper, signal.SIGSTOP)
    try:
        mount.kill_server()
        assert dead_of(mount) == []
        assert dsfs("doctor", "--clear").returncode == 0
        assert is_mounted(mount.mountpoint)
    finally:
        os.kill(keeper, signal.SIGCONT)
    eventually(lambda: mount.look()["healthy"], 20, "it heals")


def _sysctl(directory: Path, default_s: int, longest_s: int) -> float | None:
    (directory / "default_request_timeout").write_text(f"{default_s}\n")
    (directory / "max_request_timeout").write_text(f"{longest_s}\n")
    return kernel_patience_s(str(directory))


def test_kernel_patience(tmp_path: Path) -> None:
    assert kernel_patience_s(str(tmp_path)) is None  # a kernel that knows no such limit
    assert _sysctl(tmp_path, 0, 0) is None
    assert _sysctl(tmp_path, 60, 0) == 60
    assert _sysctl(tmp_path, 0, 40) == 40
    assert _sysctl(tmp_path, 60, 40) == 40
    assert _sysctl(tmp_path, 5, 0) == 15  # as the kernel does
    assert within_patience(30, None) == 30
    assert within_patience(30, 60) == 30
    assert within_patience(30, 40) == 25
    assert within_patience(30, 15) == 7.5
    assert kernel_patience(None, 30).ok
    assert kernel_patience(45, 30).ok
    bad = kernel_patience(40, 30)
    assert not bad.ok
    assert "cut to 25 s" in bad.result
    assert "sysctl" in bad.remedy


@pytest.mark.parametrize("path", ["passthrough", "pyfuse3"])
def test_both_processes_killed_and_mounted_anew(mounts: Mounts, tmp_path: Path, path: str) -> None:
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_path(mounts, path, source)
    data = (source / "d1/f001").read_bytes()
    assert (mount.root / "d1/f001").read_bytes() == data
    keeper, server = mount.keeper_pid, mount.server_pid
    os.kill(keeper, signal.SIGSTOP)
    for pid in (server, keeper):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not processes_of([runtime_dir_of(mount.mountpoint)]), 10, "both are gone")
    assert is_mounted(mount.mountpoint)
    assert errno_of_read(mount.root / "d1/f001") in (errno.ENOTCONN, errno.ECONNABORTED)
    status = mount.status()
    assert status["healthy"] is False
    again = mount_path(mounts, path, source, mountpoint=mount.mountpoint, cache_dir=mount.cache_dir)
    assert "dead mount" in again.said
    assert (again.root / "d1/f001").read_bytes() == data
    assert again.status()["healthy"] is True
    assert len(fuse_mounts_below(mount.mountpoint)) == (2 if path == "passthrough" else 1)


def test_dead_mount_can_be_unmounted(mounts: Mounts, tmp_path: Path) -> None:
    mount = mount_path(mounts, "passthrough", make_tree(tmp_path / "source", files=4))
    keeper, server = mount.keeper_pid, mount.server_pid
    os.kill(keeper, signal.SIGSTOP)
    for pid in (server, keeper):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not processes_of([runtime_dir_of(mount.mountpoint)]), 10, "both are gone")
    done = dsfs("unmount", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    assert leftovers(mount.mountpoint) == []
