"""The keeper may die too: the server that lives starts another, and whoever is killed next is replaced again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.process import LAST
from tests.mounts import (
    DSFS,
    Mount,
    Mounts,
    clean_environment,
    dsfs,
    eventually,
    is_mounted,
    leftovers,
    processes_of,
    runtime_dir_of,
)
from tests.resilience.conftest import DIRECT, make_tree, mount_path, readers


def may_lower_order() -> bool:
    """CAP_SYS_RESOURCE, the 24th of <linux/capability.h>."""
    fields = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if line[:3] == "Cap")
    return bool(int(fields["CapEff"], 16) & 1 << 24)


def keepers_of(mount: Mount) -> list[int]:
    return processes_of([runtime_dir_of(mount.mountpoint)], (b"daemon.keeper",))


@pytest.mark.parametrize("path", DIRECT)
def test_keeper_and_server_killed_one_after_the_other(mounts: Mounts, tmp_path: Path, path: str) -> None:
    source = make_tree(tmp_path / "source")
    mount = mount_path(mounts, path, source)
    mount.wait_phase("READY")
    before = mount.status()
    with readers(mount, source, tmp_path) as reading:
        reading.wait_progress()
        for _ in range(2):
            keeper = mount.kill_keeper()
            reading.check()
            server = mount.kill_server()
            reading.wait_progress()
            status = mount.status()
            assert status["keeper_pid"] == mount.keeper_pid != keeper
            assert status["server_pid"] == mount.server_pid_now() != server
    assert keepers_of(mount) == [mount.keeper_pid]
    after = mount.status()
    assert after["healthy"] is True
    assert {**after["datasets"][0], "cached_bytes": 0} == {**before["datasets"][0], "cached_bytes": 0}
    assert mount.sum_of("dsfs_server_restarts_total") == 2  # it survives the keepers that counted


def test_the_keeper_is_the_last_that_the_kernel_ends(mounts: Mounts, tmp_path: Path) -> None:
    """When memory is short: without it the mount is gone, and a server is replaced. What it starts is as we are."""

    def order(pid: int | str) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    asks = "from daemon.process import end_last; end_last(); print(open('/proc/self/oom_score_adj').read())"
    last = int(subprocess.run([sys.executable, "-c", asks], check=True, capture_output=True).stdout)
    assert last == LAST if may_lower_order() else last == order("self")
    mount = mounts.mount(make_tree(tmp_path / "source", files=4))
    for _ in range(2):
        assert order(mount.keeper_pid) == last
        assert order(mount.server_pid) == order("self")
        mount.kill_keeper()  # the next one is started by the server
        mount.kill_server()


def test_keeper_killed_while_a_server_takes_over(mounts: Mounts, tmp_path: Path) -> None:
    """During `dsfs restart`, at whatever step: the mount stays, and so do its readers."""
    source = make_tree(tmp_path / "source", files=8)
    mount = mount_path(mounts, "passthrough", source)
    mount.expect_log("keeper is gone|another server has the connections")
    with readers(mount, source, tmp_path, number=1) as reading:
        for what in ("stopping finish=true", "server handed over"):
            seen = mount.log().count(what)
            keeper = mount.keeper_pid
            restart = subprocess.Popen([DSFS, "restart", mount.mountpoint], stderr=subprocess.PIPE, text=True)
            eventually(lambda what=what, seen=seen: mount.log().count(what) > seen, 30, f"the log says {what}")
            os.kill(keeper, signal.SIGKILL)
            _out, said = restart.communicate(timeout=30)
            assert restart.returncode in (0, 1)
            assert "Traceback" not in said
            eventually(lambda keeper=keeper: mount.look()["keeper_pid"] != keeper, 20, "another keeper")
            reading.wait_progress()
    eventually(lambda: keepers_of(mount) == [mount.keeper_pid], 20, "one keeper")


def test_stopped_keeper_is_not_replaced(mounts: Mounts, tmp_path: Path) -> None:
    """It has the lock, and goes on where it was; unmounting wakes it up."""
    mount = mount_path(mounts, "openless", make_tree(tmp_path / "source", files=4))
    keeper = mount.keeper_pid
    os.kill(keeper, signal.SIGSTOP)
    argv = [sys.executable, "-P", "-m", "daemon.keeper", str(runtime_dir_of(mount.mountpoint)), "--adopt"]
    assert subprocess.run(argv, timeout=30, check=False).returncode == 0  # it leaves whoever started it at once
    eventually(lambda: keepers_of(mount) == [keeper], 20, "the second one gives up")
    assert dsfs("unmount", mount.mountpoint).returncode == 0
    assert leftovers(mount.mountpoint) == []


def test_a_socket_that_was_removed_is_made_anew_for_the_next_server(mounts: Mounts, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_path(mounts, "daemon", source)
    runtime = runtime_dir_of(mount.mountpoint)
    keeper, server = mount.keeper_pid, mount.server_pid
    for name in ("keeper.sock", "control.sock"):
        (runtime / name).unlink()
    os.kill(server, signal.SIGKILL)
    assert (mount.root / "large").read_bytes() == (source / "large").read_bytes()
    assert mount.server_pid != server
    assert mount.keeper_pid == keeper
    assert mount.status()["healthy"] is True


def test_a_socket_that_was_removed_is_made_anew_for_an_upgrade(mounts: Mounts, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_path(mounts, "daemon", source)
    keeper, server = mount.keeper_pid, mount.server_pid
    (runtime_dir_of(mount.mountpoint) / "keeper.sock").unlink()
    os.kill(keeper, signal.SIGHUP)  # `dsfs restart` would ask at that socket
    eventually(lambda: mount.server_pid != server, 30, "another one serves")
    assert mount.keeper_pid == keeper


def test_foreground_stays_when_its_keeper_is_killed(mounts: Mounts, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", files=4)
    mountpoint, cache = mounts.place()
    mount = mounts.adopt(mountpoint, cache)
    argv = [DSFS, "mount", str(source), str(mountpoint), f"--cache-dir={cache}", "--foreground"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=clean_environment())
    try:
        eventually(lambda: is_mounted(mountpoint) and mount.look()["healthy"], 20, "it is mounted")
        for _ in range(2):
            mount.kill_keeper()
        assert process.poll() is None
        assert (mountpoint / "d1/f001").read_bytes() == (source / "d1/f001").read_bytes()
        process.terminate()
        _out, said = process.communicate(timeout=20)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    finally:
        process.kill()
    assert not is_mounted(mountpoint)
    assert leftovers(mountpoint) == []


def test_a_keeper_that_cannot_be_started_is_tried_again(mounts: Mounts, tmp_path: Path) -> None:
    """Its runtime directory is damaged, say: the server goes on without one until it can be."""
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_path(mounts, "passthrough", source)
    config, aside = runtime_dir_of(mount.mountpoint) / "keeper.json", tmp_path / "keeper.json"
    server, keeper = mount.server_pid, mount.keeper_pid
    mount.expect_log("keeper is gone|FileNotFoundError|Traceback|keeper.py")
    config.rename(aside)
    try:
        os.kill(keeper, signal.SIGKILL)
        eventually(lambda: "no keeper yet" in mount.log(), 10, "it was tried")
        assert (mount.root / "d1/f001").read_bytes() == (source / "d1/f001").read_bytes()
    finally:
        aside.rename(config)
    eventually(lambda: mount.keeper_pid != keeper and mount.look()["healthy"], 20, "another keeper")
    assert mount.server_pid == server


def test_portable_session_gets_another_keeper_too(mounts: Mounts, tmp_path: Path) -> None:
    """It cannot resume after its server, but a keeper that dies costs nothing, and the next one does its work."""
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_path(mounts, "pyfuse3", source)
    held = os.open(mount.root / "d1/f001", os.O_RDONLY)
    try:
        mount.kill_keeper()
        assert os.pread(held, 4, 0) == (source / "d1/f001").read_bytes()[:4]
    finally:
        os.close(held)
    first = mount.kill_server()
    eventually(lambda: mount.server_pid != first, 20, "another server")
    assert (mount.root / "d1/f001").read_bytes() == (source / "d1/f001").read_bytes()
