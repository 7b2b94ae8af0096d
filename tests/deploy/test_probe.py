"""``dsfs probe`` and /livez: what a cluster asks to know whether a node's datasets can be read."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually
from tests.servers import hostile as web

DATASET = """\
apiVersion: dsfs.dev/v1alpha1
kind: Dataset
metadata: {{name: {name}, namespace: vision}}
spec: {{source: {{type: PVC, uri: "{source}"}}, readPath: {read_path}}}
---
"""


@pytest.fixture
def mount(tmp_path: Path, mounts: Mounts) -> Mount:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.bin").write_bytes(os.urandom(70_000))
    manifests = tmp_path / "sets.yaml"
    manifests.write_text(
        "".join(DATASET.format(name=path, source=source, read_path=path) for path in ("openless", "passthrough"))
    )
    made = mounts.mount("-f", manifests)
    for name in ("openless", "passthrough"):
        assert (made.mountpoint / "vision" / name / "a.bin").read_bytes()
    return made


def test_a_node_that_reads_passes(mount: Mount) -> None:
    done = dsfs("probe", mount.mountpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    file = mount.mountpoint / "vision" / "openless" / "a.bin"
    assert dsfs("probe", file).returncode == 0
    before = mount.operations()
    assert dsfs("probe", mount.mountpoint.parent).returncode == 0  # a directory above, as a pod mounts it
    after = mount.operations()
    assert after["statfs"] - before["statfs"] >= 3  # the root and both datasets were asked, not the kernel's caches
    assert after["read"] > before["read"]


@contextlib.contextmanager
def stopped_server(mount: Mount) -> Iterator[None]:
    """For no longer than one verb takes: the keeper ends a server that is silent."""
    server = mount.server_pid
    os.kill(server, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGCONT)


def test_a_server_that_hangs_is_told_within_the_bound(mount: Mount) -> None:
    with stopped_server(mount):
        done = dsfs("probe", mount.mountpoint, "--within", "1s")
    assert done.returncode == 1
    assert "no answer within 1 s" in done.stderr
    assert str(mount.mountpoint) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with stopped_server(mount):
        message = mount.status()["message"]
    assert "its server does not answer" in message
    assert dsfs("probe", mount.mountpoint).returncode == 0


def test_a_place_without_a_mount_fails(tmp_path: Path) -> None:
    done = dsfs("probe", tmp_path)
    assert done.returncode == 1
    assert "no dsfs mount there" in done.stderr


def test_alive_is_not_healthy(mount: Mount) -> None:
    """A cache disk in trouble is no reason to restart a server."""

    def code(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://{mount.http}{path}", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert code("/livez") == code("/healthz") == 200
    mount.expect_log("cache directory in trouble")
    objects = mount.cache_dir / "objects"
    subprocess.run(["mount", "--bind", objects, objects], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", objects], check=True)
        dsfs("evict", "vision/openless", "-m", mount.mountpoint)  # asks the disk for something that it refuses
        assert code("/healthz") == 503
        assert code("/livez") == 200
    finally:
        subprocess.run(["umount", objects], check=True)


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_an_origin_that_is_silent_is_not_the_nodes_fault(mounts: Mounts, tmp_path: Path, session: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.bin").write_bytes(os.urandom(70_000))
    with web.hostile() as server:
        server.always("/silent/", web.silence)
        silent = dataset("silent", f"{server.url}silent/", "vision", type="HTTP")
        manifest = write_manifests(tmp_path / "sets.yaml", silent, dataset("well", source, "vision"))
        made = mounts.mount("-f", manifest, "--read-timeout=4s", session=session)
        made.expect_log("listing failed")
        assert (made.mountpoint / "vision/well/a.bin").read_bytes()
        done = dsfs("probe", made.mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        eventually(lambda: made.unmount().returncode == 0, 20, "whoever looked there has gone")
