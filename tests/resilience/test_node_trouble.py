"""What a node may run short of: memory, file descriptors. Reads go on."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mounts import Mount, Mounts, dsfs, eventually, processes_of, runtime_dir_of
from tests.resilience.conftest import DIRECT, Web, make_tree, mount_path, readers

MIB = 1 << 20
SPARE_DESCRIPTORS = 6  # less than a single fetch of several takes
MEMORY = Path("/sys/fs/cgroup/memory")


def processes_by_name(mount: Mount) -> dict[str, int]:
    """The pids of keeper, server and stand-by."""
    found = {}
    for pid in processes_of([runtime_dir_of(mount.mountpoint)]):
        with contextlib.suppress(OSError):
            found[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
    return found


@pytest.mark.parametrize("path", DIRECT)
def test_few_descriptors(mounts: Mounts, web_origin: Web, path: str) -> None:
    """All is cold, everybody reads at once, and all handles stay open."""
    make_tree(web_origin.root, files=40)
    mount = mount_path(mounts, path, web_origin.url, "--read-timeout=60s", type="HTTP")
    mount.wait_phase("READY")
    server = mount.server_pid
    few = len(os.listdir(f"/proc/{server}/fd")) + SPARE_DESCRIPTORS
    resource.prlimit(server, resource.RLIMIT_NOFILE, (few, few))
    mount.expect_log("descriptor|Too many open files|open no more files|out of system resource")
    held: list[int] = []

    def same(file: Path) -> bool:
        fd = os.open(mount.root / file.relative_to(web_origin.root), os.O_RDONLY)
        held.append(fd)
        wanted = file.read_bytes()
        got = b""
        while len(got) < len(wanted) and (piece := os.pread(fd, MIB, len(got))):
            got += piece
        return got == wanted

    files = [file for file in web_origin.root.rglob("*") if file.is_file()]
    try:
        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(same, files))
            assert len(held) == len(files)
            assert all(pool.map(same, files))
    finally:
        for fd in held:
            os.close(fd)
    assert "no descriptor is left" in mount.log() or "cache directory in trouble" in mount.log()
    assert mount.server_pid_now() == server
    assert mount.unmount().returncode == 0
    assert dsfs("verify", f"--cache-dir={mount.cache_dir}").returncode == 0


@pytest.fixture
def group(mounts: Mounts) -> Iterator[Path]:
    """A memory cgroup of 256 MiB (of version 1: the suite's machines have no memory controller of version 2)."""
    if not (MEMORY / "cgroup.procs").exists():
        pytest.skip("no memory cgroup of version 1 is mounted")
    place = MEMORY / f"dsfs-test-{os.getpid()}"
    place.mkdir()
    (place / "memory.limit_in_bytes").write_text(str(256 * MIB))
    yield place
    mounts.close_quietly()  # who is in it goes first
    eventually(lambda: not (place / "cgroup.procs").read_text(), 20, "nobody is left in the cgroup")
    place.rmdir()


# Takes memory of the group until a process is gone, which the kernel is told to choose first. A file in memory: that is
# the group's, and makes this process no larger.
_GLUTTON = """
import os, select, sys
group, pid, *others = sys.argv[1:]
# It goes before the keeper, which may not be able to say so itself and holds more memory of its own than this does.
for each, order in ((pid, "1000"), *((other, "900") for other in others), ("self", "500")):
    with open("/proc/" + each + "/oom_score_adj", "w") as file:
        file.write(order)
with open(group + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
watched = os.pidfd_open(int(pid))
memory, size = os.memfd_create("glutton"), 0
while not select.select([watched], [], [], 0)[0]:
    size += os.write(memory, bytes(1 << 20))
    assert size < 1 << 30, "the group has no limit"
"""


@pytest.mark.parametrize("path", ["passthrough", "daemon"])
def test_out_of_memory(mounts: Mounts, tmp_path: Path, group: Path, path: str) -> None:
    """The kernel kills the server, and the stand-by too if that is not enough, for the memory of their group."""
    source = make_tree(tmp_path / "source")
    mount = mount_path(mounts, path, source)
    server, keeper = mount.server_pid, mount.keeper_pid
    found = processes_by_name(mount)
    for pid in found.values():
        (group / "cgroup.procs").write_text(str(pid))
    with readers(mount, source, tmp_path, number=2) as reading:
        reading.wait_progress()
        victims = [str(server), str(found["dsfs-standby"])]
        done = subprocess.run([sys.executable, "-c", _GLUTTON, group, *victims], check=False, timeout=30)
        assert done.returncode in (0, -signal.SIGKILL)  # the server was too little for the kernel
        reading.wait_progress()
    assert mount.server_pid != server
    assert mount.status()["healthy"] is True
    assert mount.keeper_pid == keeper


def test_a_server_whose_memory_is_small_goes_on(mounts: Mounts, web_origin: Web, group: Path, tmp_path: Path) -> None:
    """A limit far below what is read: what is in flight is bounded by it."""
    (group / "memory.limit_in_bytes").write_text(str(128 * MIB))
    make_tree(web_origin.root, files=40, large_mib=96)
    mount = mount_path(mounts, "daemon", web_origin.url, type="HTTP")
    for pid in processes_by_name(mount).values():
        (group / "cgroup.procs").write_text(str(pid))
    mount.kill_server()  # the next one is in it from its first page on
    with readers(mount, web_origin.root, tmp_path, number=2) as reading:
        reading.wait_progress()
        assert (mount.root / "large").read_bytes() == (web_origin.root / "large").read_bytes()
        reading.wait_progress()
