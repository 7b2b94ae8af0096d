"""A version that crashes at once: no spinning, a clear state, an errno in bounded time; a fixed one heals the mount."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounts import Mount, Mounts, dsfs, eventually
from tests.resilience.conftest import errno_of_read, make_tree, mount_path

# Put on PYTHONPATH: every Python of the mount runs it at its start. What it breaks is named in a file, then or later.
_BREAK = """
import os, sys
def mode():
    try:
        with open({flag!r}) as file:
            return file.read()
    except FileNotFoundError:
        return ""
if "daemon.server" in sys.orig_argv:
    at_start = mode()
    if at_start == "import":
        sys.exit("ImportError: this build is broken")
    os.register_at_fork(after_in_child=lambda: os._exit(3) if at_start == "fork" or mode() == "fork now" else None)
"""


class Broken:
    def __init__(self, directory: Path) -> None:
        self._flag = directory / "broken"
        site = directory / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(_BREAK.format(flag=str(self._flag)))
        self.site = str(site)

    def how(self, what: str) -> None:
        self._flag.write_text(what)


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    return Broken(tmp_path)


def mount_broken(mounts: Mounts, source: Path, broken: Broken, path: str = "daemon") -> Mount:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", broken.site, prepend=os.pathsep)  # what is tested may be found there too
        return mount_path(mounts, path, source, "--read-timeout=2s")


def test_crash_loop(mounts: Mounts, tmp_path: Path, broken: Broken) -> None:
    source = make_tree(tmp_path / "source", files=8)
    mount = mount_broken(mounts, source, broken)
    data = (source / "d1/f001").read_bytes()
    held = os.open(mount.root / "d1/f001", os.O_RDONLY)
    try:
        assert os.pread(held, 10, 0) == data[:10]
        broken.how("fork now")
        os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)
        reader = subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1]).read()", mount.root / "large"])
        mount.kill_server()
        assert reader.wait(30) != 0  # one that was waiting before the kill, or came after it
        assert errno_of_read(mount.root / "d2/f002") == errno.ETIMEDOUT
        status = mount.status()
        assert status["healthy"] is False
        assert status["server_pid"] == 0
        assert "in a row have failed" in status["message"]
        assert "status 3" in status["message"]
        shown = dsfs("status", mount.mountpoint).stdout
        assert "NOT HEALTHY" in shown
        assert "in a row have failed" in shown
        done = dsfs("restart", mount.mountpoint)
        assert done.returncode == 1
        assert "does not start, nor does the old one" in done.stderr
        assert "status 3" in done.stderr
        broken.how("")
        done = dsfs("restart", mount.mountpoint)
        assert done.returncode == 0, done.stderr
        assert mount.status()["healthy"] is True
        assert os.pread(held, len(data), 0) == data
        for file in source.rglob("f*"):
            assert (mount.root / file.relative_to(source)).read_bytes() == file.read_bytes()
        assert mount.sum_of("dsfs_server_restarts_total") >= 1
    finally:
        os.close(held)


def test_new_version_that_fails_leaves_the_old_one(mounts: Mounts, tmp_path: Path, broken: Broken) -> None:
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_broken(mounts, source, broken, "openless")
    mount.expect_log("Traceback")  # Python's own, of the broken build
    server = mount.server_pid
    broken.how("import")
    done = dsfs("restart", mount.mountpoint)
    assert done.returncode == 1
    assert "the old one stays" in done.stderr
    assert "this build is broken" in done.stderr
    assert mount.server_pid == server
    broken.how("fork")  # it starts, and its servers do not: the old version's stand-by is still there
    done = dsfs("restart", mount.mountpoint)
    assert done.returncode == 1
    assert "the old one serves again" in done.stderr
    assert "status 3" in done.stderr
    assert mount.status()["healthy"] is True
    assert (mount.root / "d1/f001").read_bytes() == (source / "d1/f001").read_bytes()
    broken.how("")
    assert dsfs("restart", mount.mountpoint).returncode == 0
    assert mount.server_pid != server


def test_crash_loop_ends_by_itself(mounts: Mounts, tmp_path: Path, broken: Broken) -> None:
    source = make_tree(tmp_path / "source", files=4)
    mount = mount_broken(mounts, source, broken, "passthrough")
    broken.how("import")
    mount.kill_server()  # the stand-by has the version that ran, and goes on with that
    eventually(lambda: mount.look()["healthy"], 20, "the version that ran serves")
    broken.how("fork now")
    mount.kill_server()
    eventually(lambda: mount.look().get("message", "").count("failed"), 20, "the loop is told")
    broken.how("")
    eventually(lambda: mount.look()["healthy"], 30, "the next one serves")
    assert (mount.root / "large").read_bytes() == (source / "large").read_bytes()
