"""Opens that the kernel serves alone are counted, by dataset and by pod, and nobody is disturbed by it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsfs.cache.open_index import open_index
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually

FILES = {f"f{number:03}": os.urandom(1000 + number) for number in range(200)}
POD = "12345678-1234-1234-1234-123456789abc"
LABELS = {"namespace": "team", "dataset": "data"}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    for name, data in FILES.items():
        (directory / name).write_bytes(data)
    return directory


def mount_openless(mounts: Mounts, files: Path, *flags: str) -> Mount:
    """A dataset that has turned openless: all of it is in the kernel's cache, and the daemon is not asked any more."""
    manifest = write_manifests(files.parent / "m.yaml", dataset("data", files, "team", readPath="openless"))
    mount = mounts.mount("-f", manifest, *flags, dataset="team/data")
    for name, data in FILES.items():
        assert (mount.root / name).read_bytes() == data
    return mount


def watched(mount: Mount) -> None:
    """Waits, also for a server that is just starting."""

    def is_watched() -> bool:
        try:
            return mount.sum_of("dsfs_opens_watched", **LABELS) == 1
        except OSError:
            return False

    eventually(is_watched, 20, "opens are watched")


def listeners(mount: Mount) -> list[int]:
    """Processes of the server that have the listener's name."""
    found = []
    for thread in Path(f"/proc/{mount.server_pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread, or a process, that has ended
            children = [int(pid) for pid in (thread / "children").read_text().split()]
            found += [pid for pid in children if "open_listener" in Path(f"/proc/{pid}/cmdline").read_text()]
    return found


@contextlib.contextmanager
def a_pod_of(uid: str) -> Iterator[Path]:
    """A control group as a kubelet makes one; the file that takes a process in."""
    with open("/proc/mounts", encoding="utf-8") as table:
        kinds = {line.split()[2]: line.split()[1] for line in table if line.split()[2] in ("cgroup", "cgroup2")}
    name = f"kubepods-pod{uid.replace('-', '_')}.slice"
    group = Path(kinds.get("cgroup2") or kinds["cgroup"]) / name
    group.mkdir()
    try:
        yield group / "cgroup.procs"
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), 10, "the pod's processes have ended")
        group.rmdir()


READER = """
import os, sys
directory, procs, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(procs, "w") as file:
    file.write(str(os.getpid()))
for _ in range(rounds):
    for name in sorted(os.listdir(directory)):
        os.close(os.open(f"{directory}/{name}", os.O_RDONLY))
input()
"""


def test_every_open_is_counted_by_dataset_and_pod(mounts: Mounts, files: Path) -> None:
    mount = mount_openless(mounts, files)
    watched(mount)
    asked = mount.operations()
    with a_pod_of(POD) as procs:
        argv = [sys.executable, "-c", READER, str(mount.root), str(procs), "1"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as reader:
            eventually(lambda: mount.sum_of("dsfs_opens_total", pod=POD, **LABELS) >= len(FILES), 15, "opens are seen")
            reader.communicate("\n", timeout=20)
        assert reader.returncode == 0
    assert mount.sum_of("dsfs_opens_total", pod=POD, **LABELS) == len(FILES)
    size = sum(map(len, FILES.values()))
    assert mount.sum_of("dsfs_opened_bytes_total", pod=POD, **LABELS) == size
    assert mount.sum_of("dsfs_opens_total", pod="", **LABELS) <= 2 * len(FILES), "and the others are ours"
    assert mount.sum_of("dsfs_open_overflows_total") == 0
    after = mount.operations()
    assert after["open"] == asked["open"] == 1, "to look at an open sends no other"
    assert after.get("getattr", 0) == asked.get("getattr", 0)


def test_counting_goes_on_in_the_next_server(mounts: Mounts, files: Path) -> None:
    mount = mount_openless(mounts, files)
    watched(mount)
    before = mount.server_pid
    mount.kill_server()
    eventually(lambda: mount.server_pid not in (0, before), 20, "another server")
    watched(mount)
    assert (mount.root / "f000").read_bytes() == FILES["f000"]
    eventually(lambda: mount.sum_of("dsfs_opens_total", **LABELS) == 1, 10, "the open is counted")
    # a listener that ends is replaced by nothing at once, and harms nobody
    mount.expect_log("the listener for opens ended")
    (listener,) = listeners(mount)
    os.kill(listener, 9)
    eventually(lambda: mount.sum_of("dsfs_opens_watched", **LABELS) == 0, 10, "the metrics say so")
    assert (mount.root / "f001").read_bytes() == FILES["f001"]


def test_use_keeps_from_eviction(mounts: Mounts, files: Path) -> None:
    """The kernel reads f000 alone: it is the one that was used last all the same."""
    mount = mount_openless(mounts, files)
    watched(mount)
    # what was used in the minute before is not noted again: the next server has not seen it
    assert dsfs("restart", mount.mountpoint).returncode == 0
    watched(mount)
    assert (mount.root / "f000").read_bytes() == FILES["f000"]
    eventually(lambda: mount.sum_of("dsfs_opens_total", **LABELS) >= 1, 10, "the open is counted")
    assert mount.unmount().returncode == 0
    index = open_index(f"{mount.cache_dir}/index")
    rows = list(index.victims_first())
    assert len(rows) == len(FILES)
    assert [row.content_bytes for row in rows[-1:]] == [len(FILES["f000"])]


def test_it_can_be_turned_off(mounts: Mounts, files: Path) -> None:
    mount = mount_openless(mounts, files, "--no-count-opens")
    assert listeners(mount) == []
    assert not [name for name in mount.metrics() if name.startswith(("dsfs_opens_", "dsfs_opened_"))]
