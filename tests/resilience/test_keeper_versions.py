"""An old keeper works with a new server, an old server with a new keeper: each speaks what the other understands."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.keeping.mounting import detach, device_of, mount_fuse
from daemon.settings import Settings
from dsfs.errors import MountError
from dsfs.fuse.keeper_client import connect
from tests.mounts import Mounts, dsfs, eventually, is_mounted, runtime_dir_of
from tests.resilience.conftest import make_tree


class KeeperOfVersion1:
    """The protocol as it was before there was a version 2: it knows no `adopt`, and says version 1 to everybody."""

    def __init__(self, path: Path, version: int = 1) -> None:
        self.heard: list[dict[str, Any]] = []
        self.connections: dict[str, tuple[int, str, str, dict[str, Any]]] = {}
        self.held: dict[str, int] = {}
        self.ready = 0
        self._version = version
        self._restarts = -1
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                peer, _address = self._listener.accept()
            except OSError:  # closed
                return
            with peer:
                while True:
                    raw, fds, _flags, _from = socket.recv_fds(peer, 65536, 1)
                    if not raw:
                        break
                    self._obey(peer, json.loads(raw), fds)

    def _obey(self, peer: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
        self.heard.append(message)
        name = message.get("name", "")
        match message["op"]:
            case "hello":
                self._restarts += 1
                counts = {"connections": len(self.connections), "held": len(self.held)}
                self._send(peer, {"version": self._version, "restarts": self._restarts, **counts})
                for known, (fd, _path, dev, state) in self.connections.items():
                    self._send(peer, {"name": known, "dev": dev, "state": state}, fd)
                for known, fd in self.held.items():
                    self._send(peer, {"name": known}, fd)
            case "mount":
                fd = mount_fuse(message["path"], message["source"])
                self.connections[name] = (fd, message["path"], device_of(fd, message["path"]), {})
                self._send(peer, {"name": name, "dev": self.connections[name][2], "state": {}}, fd)
            case "state":
                self.connections[name] = (*self.connections[name][:3], message["state"])
            case "hold":
                self.held[name] = fds[0]
            case "ready":
                self.ready += 1
            case other:
                self._send(peer, {"error": f"unknown operation {other!r}"})

    @staticmethod
    def _send(peer: socket.socket, message: dict[str, Any], fd: int | None = None) -> None:
        socket.send_fds(peer, [json.dumps(message).encode()], [] if fd is None else [fd])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for fd, path, _dev, _state in self.connections.values():
            detach(path)
            os.close(fd)


@pytest.fixture
def old_keeper(tmp_path: Path) -> Iterator[KeeperOfVersion1]:
    keeper = KeeperOfVersion1(tmp_path / "old.sock")
    try:
        yield keeper
    finally:
        keeper.close()


@pytest.mark.usefixtures("none_is_cleared")
def test_new_server_with_an_old_keeper(mounts: Mounts, tmp_path: Path, old_keeper: KeeperOfVersion1) -> None:
    """It mounts, is killed, and goes on with what the old keeper has kept: descriptors and state."""
    source = make_tree(tmp_path / "source", files=4)
    mountpoint, cache = mounts.place()
    runtime = runtime_dir_of(mountpoint)
    (runtime / "journal").mkdir(parents=True)
    settings = {
        "mountpoint": str(mountpoint),
        "runtime_dir": str(runtime),
        "cache_dir": str(cache),
        "source_uri": str(source),
        "keeper": str(tmp_path / "old.sock"),
    }
    Settings(**settings).save()
    (runtime / "keeper.json").write_text(json.dumps({"mountpoint": str(mountpoint)}))
    mounts.adopt(mountpoint, cache)
    code = f"import sys; from daemon.server import run; sys.exit(run({str(runtime)!r}))"
    for start in (1, 2):
        server = subprocess.Popen([sys.executable, "-P", "-c", code])
        try:
            eventually(lambda start=start: old_keeper.ready == start, 20, "it is ready")
            for file in source.rglob("f*"):
                assert (mountpoint / file.relative_to(source)).read_bytes() == file.read_bytes()
        finally:
            server.kill()
            server.wait()
    assert is_mounted(mountpoint)
    assert {message["op"] for message in old_keeper.heard} <= {"hello", "mount", "state", "hold", "ready"}
    assert [message["version"] for message in old_keeper.heard if message["op"] == "hello"] == [3, 3]


def test_old_server_with_a_new_keeper(mounts: Mounts, tmp_path: Path) -> None:
    """What a server of version 1 says and hears, on the socket of a keeper of now."""
    mount = mounts.mount(make_tree(tmp_path / "source", files=1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.connect(str(runtime_dir_of(mount.mountpoint) / "keeper.sock"))
        other.send(json.dumps({"op": "hello", "version": 1, "pid": os.getpid()}).encode())
        assert json.loads(other.recv(65536)) == {"version": 1, "error": "another server has the connections"}
        other.send(json.dumps({"op": "no such thing"}).encode())
        assert "unknown operation" in json.loads(other.recv(65536))["error"]
        other.send(b"no JSON")
        assert other.recv(65536) == b""
    mountpoint, _cache = mounts.place()
    path = tmp_path / "new.sock"
    argv = [sys.executable, "-P", "-m", "daemon.keeper", "--alone", str(path), "60"]
    keeper = subprocess.Popen(argv)
    try:
        eventually(path.exists, 20, "it listens")
        for restarts in (0, 1):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
                server.connect(str(path))
                server.send(json.dumps({"op": "hello", "version": 1, "pid": os.getpid()}).encode())
                hello = json.loads(server.recv(65536))
                assert hello == {"version": 1, "restarts": restarts, "connections": restarts, "held": 0}
                if restarts:
                    raw, fds, _flags, _from = socket.recv_fds(server, 65536, 1)
                    assert json.loads(raw)["state"] == {"offered": 5}
                    os.close(fds[0])
                else:
                    mount_it = {"op": "mount", "name": "default/x", "path": str(mountpoint), "source": "dsfs:x"}
                    server.send(json.dumps(mount_it).encode())
                    raw, fds, _flags, _from = socket.recv_fds(server, 65536, 1)
                    assert json.loads(raw)["name"] == "default/x"
                    os.close(fds[0])
                    state = {"op": "state", "name": "default/x", "state": {"offered": 5}}
                    server.send(json.dumps(state).encode())
                    server.send(json.dumps({"op": "ready"}).encode())
    finally:
        keeper.terminate()
        assert keeper.wait(15) == 0
    assert not is_mounted(mountpoint)
    assert dsfs("status", mount.mountpoint).returncode == 0


def test_a_keeper_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    keeper = KeeperOfVersion1(tmp_path / "future.sock", version=99)

    async def greet() -> None:
        async with connect(str(tmp_path / "future.sock"), None):
            raise AssertionError("it was accepted")

    try:
        with pytest.raises(MountError, match="speaks version 99"):
            trio.run(greet)
    finally:
        keeper.close()
