"""What a pod sees of the mounts, and when: a node, a kubelet and a container runtime in mount namespaces.

deploy/examples/README.md promises these. The node's directory is on a shared mount, as systemd makes / one; a container
is a mount namespace of its own whose volume is a recursive bind, made a slave for HostToContainer and private for None
(what runc does), and a subPath is a plain bind that the kubelet makes on the node first (its subpath_linux.go).
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.mounts import Mount, Mounts, dsfs, eventually

MANIFEST = """\
apiVersion: dsfs.dev/v1alpha1
kind: Dataset
metadata: {{name: {name}, namespace: vision}}
spec: {{source: {{type: PVC, uri: "{source}"}}, readPath: {read_path}}}
---
"""

NOT_MOUNTED = ["[Errno 116] Stale file handle"]  # never an empty directory, which a job would take for an empty dataset

# Runs in the container: expressions come in on stdin, a line each, and what they are goes out.
AGENT = """
import os, sys
names = {"os": os}; names["names"] = names
for line in sys.stdin:
    try:
        answer = eval(line, names)
    except OSError as error:
        answer = error
    print(repr(answer), flush=True)
"""


class Container:
    """A process in a mount namespace of its own that sees ``volume`` at ``at``."""

    def __init__(self, volume: Path, at: Path, propagation: str) -> None:
        at.mkdir(exist_ok=True)
        script = f'mount --rbind "$0" "$1" && mount --make-r{propagation} "$1" && exec "$2" -uc "$3"'
        self._process = subprocess.Popen(
            # The runtime makes all of its namespace a slave first, so that nothing of the container gets out.
            ["unshare", "--mount", "--propagation=slave", "sh", "-c", script, volume, at, sys.executable, AGENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.at = at

    def ask(self, expression: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the container ended with {self._process.wait()}"
        names = {error.__name__: error for error in (FileNotFoundError, PermissionError, OSError)}
        return eval(answer, names)

    def names(self, path: str = ".") -> list[str]:
        listed = self.ask(f"os.listdir({str(self.at / path)!r})")
        return [str(listed)] if isinstance(listed, OSError) else sorted(listed)

    def mounts(self) -> list[str]:
        """Where dsfs is mounted below the volume, as the container's mount table has it."""
        table = self.ask("open('/proc/self/mountinfo').read()")
        places = [line.split(" ")[4] for line in table.splitlines() if " - fuse.dsfs " in line]
        return sorted(os.path.relpath(place, self.at) for place in places if place.startswith(str(self.at)))

    def close(self) -> None:
        self._process.communicate(timeout=20)


@pytest.fixture
def node(tmp_path: Path, mounts: Mounts) -> Iterator[Path]:
    """A node's /mnt/dsfs, on a shared mount."""
    root = tmp_path / "node"
    root.mkdir()
    subprocess.run(["mount", "--bind", root, root], check=True)
    subprocess.run(["mount", "--make-shared", root], check=True)
    (root / "data").mkdir()
    yield root
    mounts.close_quietly()
    subprocess.run(["umount", "-l", root], check=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Container]]:
    started: list[Container] = []

    def begin(volume: Path, propagation: str = "slave") -> Container:
        started.append(Container(volume, tmp_path / f"container{len(started)}", propagation))
        started[-1].ask("0")  # its mounts are made
        return started[-1]

    yield begin
    for container in started:
        container.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    place.mkdir()
    for number in range(3):
        (place / f"{number}.bin").write_bytes(os.urandom(300_000))
    return place


def mount_at(mounts: Mounts, node: Path, source: Path, *names: str, read_paths: Sequence[str] = ()) -> Mount:
    manifests = node.parent / "sets.yaml"
    pairs = zip(names, read_paths or ["auto"] * len(names), strict=True)
    manifests.write_text("".join(MANIFEST.format(name=name, source=source, read_path=path) for name, path in pairs))
    return mounts.mount("-f", manifests, mountpoint=node / "data")


def add(mount: Mount, source: Path, name: str) -> None:
    text = mount.mountpoint.parent.parent / f"{name}.yaml"
    text.write_text(MANIFEST.format(name=name, source=source, read_path="auto"))
    done = dsfs("dataset", "apply", "-f", text, "-m", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    mount.wait_phase("READY", name)


def bind(source: Path, target: Path) -> None:
    """What a kubelet does for a subPath."""
    target.mkdir()
    subprocess.run(["mount", "--bind", source, target], check=True)


def test_a_pod_that_was_there_first_sees_what_is_mounted_later(
    mounts: Mounts, node: Path, source: Path, start: Callable[..., Container]
) -> None:
    early = start(node)
    assert early.names("data") == []
    mount = mount_at(mounts, node, source, "first")
    assert early.names("data/vision") == ["first"]
    add(mount, source, "second")
    assert early.names("data/vision") == ["first", "second"]
    for name in ("first", "second"):
        assert (
            early.ask(f"open({str(early.at)!r} + '/data/vision/{name}/1.bin', 'rb').read()")
            == (source / "1.bin").read_bytes()
        )
    assert dsfs("dataset", "delete", "vision/first", "-m", mount.mountpoint).returncode == 0
    assert early.names("data/vision") == ["second"]
    assert mount.unmount().returncode == 0
    assert early.names("data") == []  # an unmount reaches it too: an empty directory, not a dead mount
    assert early.mounts() == []
    mount_at(mounts, node, source, "third")
    assert early.names("data/vision") == ["third"]  # and so does the next mount: the volume is the directory above


def test_a_pod_without_propagation_sees_what_was_there(
    mounts: Mounts, node: Path, source: Path, start: Callable[..., Container]
) -> None:
    mount = mount_at(mounts, node, source, "first")
    pod = start(node, "private")
    assert pod.names("data/vision/first") == ["0.bin", "1.bin", "2.bin"]
    add(mount, source, "second")
    assert pod.names("data/vision/second") == NOT_MOUNTED  # the name is there, the mount is not


def test_a_namespace_as_the_volume(mounts: Mounts, node: Path, source: Path, start: Callable[..., Container]) -> None:
    mount = mount_at(mounts, node, source, "first")
    pod = start(mount.mountpoint / "vision")
    assert pod.names("first") == ["0.bin", "1.bin", "2.bin"]
    add(mount, source, "second")
    assert pod.names("second") == ["0.bin", "1.bin", "2.bin"]


def test_sub_paths(mounts: Mounts, node: Path, source: Path, start: Callable[..., Container]) -> None:
    """A dataset by subPath is fine; a namespace by subPath is not: a plain bind leaves out what is mounted below."""
    mount = mount_at(mounts, node, source, "first")
    of_dataset, of_namespace = node.parent / "sub0", node.parent / "sub1"
    bind(mount.mountpoint / "vision" / "first", of_dataset)
    bind(mount.mountpoint / "vision", of_namespace)
    try:
        assert start(of_dataset).names() == ["0.bin", "1.bin", "2.bin"]
        pod = start(of_namespace)
        assert pod.names() == ["first"]
        assert pod.names("first") == NOT_MOUNTED
        add(mount, source, "second")
        assert pod.names("second") == ["0.bin", "1.bin", "2.bin"]
    finally:
        for place in (of_dataset, of_namespace):
            subprocess.run(["umount", "-l", place], check=True)


def test_a_restart_of_the_server_is_not_noticed_inside(
    mounts: Mounts, node: Path, source: Path, start: Callable[..., Container]
) -> None:
    """Asked to (an upgrade) and killed, on every read path: open files, maps and names go on, in the same mounts."""
    paths = ("passthrough", "openless", "daemon")
    mount = mount_at(mounts, node, source, *paths, read_paths=paths)
    pod = start(node)
    contents = [(source / f"{number}.bin").read_bytes() for number in range(3)]
    pod.ask("names.update(mmap=__import__('mmap'), files={}, maps={})")
    for path in paths:
        place = f"{pod.at}/data/vision/{path}"
        pod.ask(f"files.update({path}=open('{place}/0.bin', 'rb', 0))")
        assert pod.ask(f"files['{path}'].read(1000)") == contents[0][:1000]
        pod.ask(f"maps.update({path}=mmap.mmap(os.open('{place}/1.bin', 0), 0, prot=mmap.PROT_READ))")
    before = pod.mounts()
    for number, end in enumerate((lambda: dsfs("restart", mount.mountpoint), mount.kill_server), start=1):
        server = mount.server_pid
        end()
        for path in paths:
            place = f"{pod.at}/data/vision/{path}"
            assert pod.ask(f"files['{path}'].read(1000)") == contents[0][1000 * number : 1000 * (number + 1)]
            assert pod.ask(f"maps['{path}'][{mmap.PAGESIZE}:]") == contents[1][mmap.PAGESIZE :]
            assert pod.ask(f"open('{place}/2.bin', 'rb').read()") == contents[2]
            assert pod.names(f"data/vision/{path}") == ["0.bin", "1.bin", "2.bin"]
        eventually(lambda old=server: mount.server_pid != old, 20, "another server answers")
    assert pod.mounts() == before  # the same mounts: nothing had to be propagated
    add(mount, source, "later")
    assert pod.names("data/vision/later") == ["0.bin", "1.bin", "2.bin"]
    # A container that starts anew, after all that, finds everything.
    assert start(node).names("data/vision") == sorted([*paths, "later"])
