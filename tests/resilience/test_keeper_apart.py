"""`dsfs keeper` and `dsfs serve` as processes of their own, and what a service manager keeps for the keeper."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import DSFS, Mount, Mounts, clean_environment, dsfs, eventually, is_mounted, runtime_dir_of
from tests.resilience.conftest import errno_of_read, make_tree, outlives_a_stop, readers
from tests.servers.process import HOST, free_ports


class Apart:
    """A keeper and servers of one mount, started by hand."""

    def __init__(self, mounts: Mounts, source: Path) -> None:
        mountpoint, self._cache = mounts.place()
        self.mount: Mount = mounts.adopt(mountpoint, self._cache)
        self.mount.expect_log("keeper is gone")
        self.source = source
        self.socket = mounts.directory / "apart" / "keeper.sock"
        self._log = mounts.directory / "apart.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, *argv: str, fds: tuple[int, ...] = (), before: tuple[str, ...] = (), **environ: str
    ) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            env = {**clean_environment(), **environ}
            process = subprocess.Popen([*before, DSFS, *argv], stdout=log, stderr=log, env=env, pass_fds=fds)
        self.processes.append(process)
        return process

    def start_keeper(self, *flags: str, before: tuple[str, ...] = (), **environ: str) -> subprocess.Popen[bytes]:
        process = self.start("keeper", f"--socket={self.socket}", *flags, before=before, **environ)
        eventually(self.socket.exists, 20, "the keeper listens")
        return process

    def start_server(self, *what: str) -> subprocess.Popen[bytes]:
        where = (*(what or (str(self.source),)), str(self.mount.mountpoint))
        return self.start("serve", f"--keeper={self.socket}", *where, f"--cache-dir={self._cache}")

    def wait_healthy(self) -> None:
        eventually(
            lambda: is_mounted(self.mount.mountpoint) and self.mount.look()["healthy"], 30, f"healthy: {self.log()}"
        )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def apart(mounts: Mounts, tmp_path: Path) -> Iterator[Apart]:
    made = Apart(mounts, make_tree(tmp_path / "source", files=8))
    try:
        yield made
    finally:
        dsfs("unmount", made.mount.mountpoint)
        made.end()


def test_each_is_replaced(apart: Apart, tmp_path: Path) -> None:
    first = apart.start_server()  # may come before its keeper
    keeper = apart.start_keeper()
    apart.wait_healthy()
    mount = apart.mount
    with readers(mount, apart.source, tmp_path, number=2) as reading:
        reading.wait_progress()
        keeper.kill()  # its pod is gone
        keeper.wait()
        reading.wait_progress()
        apart.start_keeper()
        eventually(lambda: "another keeper has everything" in apart.log(), 20, "the server has found it")
        pid = mount.kill_server()  # a crash: the stand-by of the same `dsfs serve` goes on
        reading.wait_progress()
        assert mount.server_pid != pid
        second = apart.start_server()  # an upgrade: it takes over, and the first one stays in the background
        eventually(lambda: "server handed over" in apart.log(), 30, "the second takes over")
        apart.wait_healthy()
        assert first.poll() is None
        first.terminate()
        assert first.wait(15) == 0
        reading.wait_progress()
        second.kill()  # a pod that dies without a word, and comes again
        os.kill(mount.server_pid, signal.SIGKILL)
        apart.start_server()
        reading.wait_progress()
    restart = dsfs("restart", mount.mountpoint)
    assert restart.returncode == 1
    assert "dsfs serve" in restart.stderr
    assert dsfs("unmount", mount.mountpoint).returncode == 0
    assert not is_mounted(mount.mountpoint)
    assert apart.processes[-1].wait(15) == 0
    assert not runtime_dir_of(mount.mountpoint).exists()


def test_a_new_server_follows_its_manifests_and_a_crash_does_not(apart: Apart, tmp_path: Path) -> None:
    other = make_tree(tmp_path / "other", files=3)
    shared = dataset("b", apart.source, "team", share=True, shareToNamespaceSelector={"matchLabels": {"tier": "x"}})
    lent = dataset("lent", "dataset://team/b", "lab", type="REFERENCE")
    lab = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab", "labels": {"tier": "x"}}}
    first = (dataset("a", apart.source, "team"), shared, dataset("c", apart.source, "team"), lent, lab)
    file = write_manifests(tmp_path / "m.yaml", *first)
    by_hand = write_manifests(tmp_path / "hand.yaml", dataset("hand", apart.source, "team"))
    apart.start_keeper()
    apart.start_server("-f", str(file))
    apart.wait_healthy()
    team = apart.mount.mountpoint / "team"
    names = sorted(os.listdir(apart.source))
    assert sorted(os.listdir(team)) == ["a", "b", "c"]
    assert sorted(os.listdir(apart.mount.mountpoint / "lab/lent")) == names
    assert dsfs("dataset", "apply", "-f", by_hand, "-m", apart.mount.mountpoint).returncode == 0
    with open(team / "b/large", "rb") as held:
        write_manifests(file, shared, dataset("c", other, "team"), dataset("d", other, "team"), lent)
        apart.mount.kill_server()
        assert sorted(os.listdir(team)) == ["a", "b", "c", "hand"], "a crash shows what was shown"
        assert sorted(os.listdir(team / "c")) == names
        assert sorted(os.listdir(apart.mount.mountpoint / "lab/lent")) == names
        apart.start_server("-f", str(file))
        eventually(lambda: sorted(os.listdir(team)) == ["b", "c", "d", "hand"], 30, "the next one follows the file")
        eventually(lambda: sorted(os.listdir(team / "c")) == sorted(os.listdir(other)), 30, "also to another source")
        apart.wait_healthy()
        assert held.read() == (apart.source / "large").read_bytes(), "what stays is not mounted anew"
    message = apart.mount.wait_phase("FAILED", "lent")["message"]
    assert "not shared with namespace lab" in message, "its Namespace is gone from the file, and its labels with it"
    file.write_text("no: manifest")
    apart.start_server("-f", str(file))
    eventually(lambda: apart.log().count("server handed over") == 2, 30, "another takes over")
    apart.wait_healthy()
    assert sorted(os.listdir(team)) == ["b", "c", "d", "hand"], "what cannot be read changes nothing"


def test_manifests_that_cannot_be_read_are_told_of(apart: Apart, tmp_path: Path) -> None:
    file = write_manifests(tmp_path / "m.yaml", dataset("a", apart.source, "team"))
    http, mount = f"{HOST}:{free_ports(1)[0]}", apart.mount
    mount.http = http

    def told() -> str:
        """What status says; the gauge and the log say the same, and health nothing of it."""
        message = str(mount.look().get("message", ""))
        assert mount.sum_of("dsfs_manifests_trouble") == bool(message)
        with urllib.request.urlopen(f"http://{http}/healthz", timeout=5) as answer:
            assert answer.status == 200
        return message

    apart.start_keeper()
    apart.start_server("-f", str(file), f"--http={http}")
    apart.wait_healthy()
    assert told() == ""
    file.write_text("no: manifest")
    eventually(lambda: mount.look().get("message"), 60, "it is seen while the server runs")
    assert str(file) in told()
    assert "what is shown stays" in apart.log()
    assert str(file) in dsfs("status", mount.mountpoint).stdout
    apart.start_server("-f", str(file), f"--http={http}")
    eventually(lambda: "server handed over" in apart.log(), 30, "another takes over")
    apart.wait_healthy()
    eventually(lambda: mount.look().get("message"), 60, "and tells it too")
    assert str(file) in told()
    assert os.listdir(mount.mountpoint / "team") == ["a"]
    write_manifests(file, dataset("a", apart.source, "team"))
    eventually(lambda: not mount.look().get("message"), 60, "it is corrected")
    assert told() == ""


def test_a_directory_that_has_no_manifests_yet_and_one_that_has_none_any_more(apart: Apart, tmp_path: Path) -> None:
    """As of a fresh service: it mounts an empty tree, and shows what comes. One that is empty all at once may be of a
    volume that is not there just now: what is shown stays."""
    directory, mountpoint = tmp_path / "datasets", apart.mount.mountpoint
    directory.mkdir()
    apart.start_keeper()
    apart.start_server("-f", str(directory))
    apart.wait_healthy()
    assert os.listdir(mountpoint) == []
    apart.mount.kill_server()
    apart.wait_healthy()
    manifest = write_manifests(directory / "m.yaml", dataset("data", apart.source, "team"))
    apart.start_server("-f", str(directory))
    eventually(lambda: (mountpoint / "team/data/large").exists(), 30, "the next one shows what has come")
    apart.wait_healthy()
    manifest.unlink()
    apart.start_server("-f", str(directory))
    eventually(lambda: apart.log().count("server handed over") == 2, 30, "another takes over")
    apart.wait_healthy()
    assert (mountpoint / "team/data/large").exists()
    assert f"{directory}: no manifests are there" in apart.log()
    assert "error" not in apart.log()
    (tmp_path / "mnt").mkdir()
    for argv in (("mount", "-f", directory, tmp_path / "mnt"), ("dataset", "apply", "-f", directory)):
        assert "has no manifests" in dsfs(*argv).stderr


def test_a_silent_server_that_no_signal_of_the_keeper_reaches(apart: Apart, tmp_path: Path) -> None:
    """They are pods, with a pid namespace each: the server's own stand-by has to end it when an upgrade needs that."""
    keeper = apart.start_keeper(before=("unshare", "--pid", "--fork", "--kill-child"))
    first = apart.start_server()
    apart.wait_healthy()
    silent = apart.mount.server_pid_now()
    assert silent is not None
    with readers(apart.mount, apart.source, tmp_path, number=1) as reading:
        reading.wait_progress()
        os.kill(silent, signal.SIGSTOP)
        apart.start_server()
        eventually(lambda: "is asked to end it" in apart.log(), 30, "the keeper cannot end it by itself")
        reading.wait_progress()
    assert "takes no SIGKILL" in apart.log()
    assert not Path(f"/proc/{silent}").exists()
    assert first.poll() is None
    assert dsfs("unmount", apart.mount.mountpoint).returncode == 0
    keeper.kill()  # unshare takes no SIGTERM


def test_a_server_that_is_stopped_is_replaced(apart: Apart) -> None:
    apart.start_keeper()
    served = apart.start_server()
    apart.wait_healthy()
    outlives_a_stop(apart.mount, apart.source, "d0/f000", "d1/f001", "d1")
    assert apart.log().count("has said nothing") == 1
    assert served.poll() is None


def test_wrong_use(apart: Apart, mounts: Mounts) -> None:
    apart.start_keeper()
    again = dsfs("keeper", f"--socket={apart.socket}")
    assert again.returncode == 1
    assert "another keeper listens there" in again.stderr
    apart.start_server()
    apart.wait_healthy()
    elsewhere, _cache = mounts.place()
    done = dsfs("serve", f"--keeper={apart.socket}", apart.source, elsewhere)
    assert done.returncode == 1
    assert f"this keeper holds {apart.mount.mountpoint}" in done.stderr
    assert dsfs("keeper", "--socket=/tmp/x.sock", "--patience=soon").returncode == 2


class Manager:
    """What of systemd a keeper speaks to: takes descriptors, gives them to the next process."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)
        self.stored: dict[str, int] = {}
        self.ready = 0

    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                raw, fds, _flags, _address = socket.recv_fds(self._socket, 4096, 4)
                fields = dict(line.split("=", 1) for line in raw.decode().splitlines())
                if "READY" in fields:
                    self.ready += 1
                elif "FDSTOREREMOVE" in fields:
                    os.close(self.stored.pop(fields["FDNAME"]))
                elif "FDSTORE" in fields:
                    self.stored[fields["FDNAME"]] = fds[0]

    def start(self, apart: Apart) -> subprocess.Popen[bytes]:
        """A keeper that is given what was stored, from descriptor 3 on."""
        names = list(self.stored)
        script = 'export LISTEN_PID=$$; exec "$0" "$@"'
        given = [os.dup(self.stored[name]) for name in names]
        moved = [os.fspath(DSFS), "keeper", f"--socket={apart.socket}", "--patience=2s"]

        def place() -> None:
            high = [os.dup2(fd, 200 + number) for number, fd in enumerate(given)]
            for number, fd in enumerate(high):
                os.dup2(fd, 3 + number)

        env = {
            **clean_environment(),
            "NOTIFY_SOCKET": self.address,
            "LISTEN_FDS": str(len(names)),
            "LISTEN_FDNAMES": ":".join(names),
        }
        process = subprocess.Popen(
            ["/bin/sh", "-c", script, *moved], env=env, preexec_fn=place, pass_fds=[3 + n for n in range(len(names))]
        )
        for fd in given:
            os.close(fd)
        apart.processes.append(process)
        eventually(apart.socket.exists, 20, "the keeper listens")
        return process

    def close(self) -> None:
        self._socket.close()
        for fd in self.stored.values():
            os.close(fd)


@pytest.mark.usefixtures("none_is_cleared")
def test_service_manager_keeps_the_descriptors(apart: Apart, tmp_path: Path) -> None:
    """With both processes gone the mount lives: its descriptors are in the store, and so is what they are."""
    manager = Manager(tmp_path)
    try:
        keeper = manager.start(apart)
        server = apart.start_server()
        apart.wait_healthy()
        manager.hear()
        assert manager.ready == 1
        os.close(os.open(apart.mount.root / "d1/f001", os.O_RDONLY))  # the first close is told: no FLUSH, please
        held = os.open(apart.mount.root / "d1/f001", os.O_RDONLY)
        data = (apart.source / "d1/f001").read_bytes()
        assert os.pread(held, 10, 0) == data[:10]
        manager.hear()
        for process in (keeper, server):
            process.kill()
            process.wait()
        os.kill(apart.mount.server_pid, signal.SIGKILL)
        manager.hear()
        apart.socket.unlink()
        keeper = manager.start(apart)
        # Nobody serves for longer than its patience: it answers itself, and takes no descriptor with it.
        assert errno_of_read(apart.mount.root / "large") != 0
        apart.start_server()
        apart.wait_healthy()
        assert os.pread(held, len(data), 0) == data
        os.close(held)
        assert (apart.mount.root / "large").read_bytes() == (apart.source / "large").read_bytes()
        keeper.terminate()
        assert keeper.wait(15) == 0
        assert is_mounted(apart.mount.mountpoint)
        apart.socket.unlink(missing_ok=True)
        manager.hear()
        manager.start(apart)
        eventually(lambda: "another keeper has everything" in apart.log(), 20, "the server has found it")
        assert dsfs("unmount", apart.mount.mountpoint).returncode == 0
        manager.hear()
        assert list(manager.stored) == ["table"]
    finally:
        manager.close()
