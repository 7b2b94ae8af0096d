"""The keeper: mounts, holds every connection's descriptor, starts servers and hands the descriptors to them.

It imports the standard library only and never talks to the network: what must not die should do little. A server
may die at any moment; the keeper holds duplicates of all descriptors, so the kernel keeps the requests, and the next
server answers them.

    python -m daemon.keeper RUNTIME_DIR READY_FD

RUNTIME_DIR holds ``keeper.json`` (mountpoint, server_argv, own_mounts) and gets ``keeper.sock``. READY_FD takes one
line of JSON: {"ok": true} once the first server is ready, or {"error": "…"}, with "unexpected": true when only the
log says why.

The protocol on ``keeper.sock`` (unix, SOCK_SEQPACKET; one JSON object a message; version 1):

    server → keeper                                       keeper → server
    {"op": "hello", "version": 1, "pid": …}               {"version": 1, "restarts": …, "connections": count,
                                                          "held": count}, for each connection
                                                          {"name", "dev", "state"} + descriptor, and for each that is
                                                          held {"name"} + descriptor
    {"op": "mount", "name", "path", "source"}             {"name", "dev", "state"} + descriptor, or {"name", "error"}
    {"op": "state", "name", "state": {…}}                 nothing; what the next server is told about the connection
    {"op": "unmount", "name"}                             {"name"} or {"name", "error"}
    {"op": "hold", "name"} + descriptor                   nothing; kept for the next server (a memfd: never on a disk)
    {"op": "ready"}, {"op": "failed", "error"}            nothing
    {"op": "restart"}                                     {"ok": true} once another server is ready, or {"error"}
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
LARGEST_MESSAGE = 64 * 1024

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 1, 2, 4, 1024  # <linux/mount.h>
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_FIRST_RESTART_S, _LONGEST_RESTART_S = 0.1, 10.0
_STEADY_S = 5.0  # a server that lived so long did not fail at its start
_SERVER_STOP_S = 8.0
_CHECK_S = 30.0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


@dataclass
class Connection:
    """A mounted file system: its descriptor, where it is, and what servers want their successors to know."""

    fd: int
    path: str
    dev: str
    state: dict[str, Any] = field(default_factory=dict)


class Keeper:
    def __init__(self, runtime_dir: str, ready_fd: int) -> None:
        with open(f"{runtime_dir}/keeper.json", encoding="utf-8") as file:
            config = json.load(file)
        self._runtime_dir = runtime_dir
        self._ready_fd = ready_fd
        self._mountpoint: str = config["mountpoint"]
        self._server_argv: list[str] = config["server_argv"]
        self._own_mounts: bool = config["own_mounts"]  # False: the server mounts, with libfuse
        self._connections: dict[str, Connection] = {}
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()  # guards _connections; mounts and unmounts run in threads
        self._server: subprocess.Popen[bytes] | None = None
        self._server_since = 0.0
        self._restart_s = _FIRST_RESTART_S
        self._restarts = -1
        self._planned = False  # the server was asked to end, for another to take over
        self._restart_peers: list[socket.socket] = []
        self._told = False
        self._stopping = False
        self._selector = selectors.DefaultSelector()

    # -- life -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor for each dataset
        lock_fd = os.open(f"{self._runtime_dir}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)  # held for life: a runtime directory without it belongs to a dead keeper
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"{self._runtime_dir}/keeper.sock")
        listener.listen(8)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(wake_r, selectors.EVENT_READ)
        self._start_server()
        status = 0
        while not self._stopping:
            for key, _events in self._selector.select():
                if key.fileobj is listener:
                    self._accept(listener)
                elif key.fileobj == wake_r:
                    os.read(wake_r, 512)
                    status = self._look_after_server() or status
                elif isinstance(key.fileobj, socket.socket):
                    self._serve(key.fileobj)
        self._stop()
        return status

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _address = listener.accept()
        except OSError as error:
            _say(f"a peer cannot be accepted: {error}")
            time.sleep(0.1)  # out of descriptors: whoever frees one does not wake us
            return
        self._selector.register(peer, selectors.EVENT_READ)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            quiet, _other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            threading.Thread(target=self._restart, args=(quiet,), daemon=True).start()
        elif number != signal.SIGCHLD:
            self._stopping = True

    def _start_server(self) -> None:
        self._restarts += 1
        self._server_since = time.monotonic()
        try:
            self._server = subprocess.Popen([*self._server_argv, self._runtime_dir])
        except OSError as error:  # no memory, or an installation that is just being replaced
            _say(f"no server can be started: {error}")
            self._server = None
            if self._told:
                self._start_after(self._restart_s)
                self._restart_s = min(self._restart_s * 2, _LONGEST_RESTART_S)
            else:
                self._tell({"error": f"no server can be started: {error}"})
                self._stopping = True

    def _start_after(self, delay_s: float) -> None:
        timer = threading.Timer(delay_s, self._start_later)
        timer.daemon = True
        timer.start()

    def _look_after_server(self) -> int:
        """After a SIGCHLD: start the next server. Nonzero when the first one ended before it was ready."""
        if self._server is None or self._server.poll() is None or self._stopping:
            return 0
        code = self._server.returncode
        if not self._told:
            self._tell({"error": f"the server ended with status {code} before it was ready", "unexpected": True})
            self._stopping = True
            return 1
        if self._planned:
            self._planned = False
            _say("server handed over")
            self._start_server()
            return 0
        self._answer_restart({"error": f"the new server ended with status {code} before it was ready"})
        if not self._own_mounts:
            _umount(self._mountpoint)  # libfuse's connection died with the server
        if time.monotonic() - self._server_since >= _STEADY_S:
            self._restart_s = _FIRST_RESTART_S
        delay_s = 0.0 if self._restart_s == _FIRST_RESTART_S else self._restart_s
        self._restart_s = min(self._restart_s * 2, _LONGEST_RESTART_S)
        _say(f"server ended with status {code}, the next one starts in {delay_s:g} s")
        if delay_s:
            self._server = None
            self._start_after(delay_s)
        else:
            self._start_server()
        return 0

    def _start_later(self) -> None:
        if not self._stopping:
            self._start_server()

    def _restart(self, peer: socket.socket) -> None:
        """Upgrade: make sure that another server can start, then have the one that runs hand over to it.

        The one that ends answers no more requests; those it had taken are repeated by the kernel to the next.
        """
        if not self._own_mounts:
            _send(peer, {"error": "the pyfuse3 session cannot hand over: unmount, and mount again"})
            return
        try:
            check = subprocess.run(
                [*self._server_argv, self._runtime_dir, "--check"], capture_output=True, timeout=_CHECK_S, check=False
            )
            problem = "" if check.returncode == 0 else check.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            failed = check.returncode != 0
        except (OSError, subprocess.TimeoutExpired) as error:
            problem, failed = str(error), True
        server = self._server
        if failed or server is None:
            _send(peer, {"error": f"the new version does not start, the old one stays: {problem}"})
            return
        self._restart_peers.append(peer)
        self._planned = True
        server.terminate()
        try:
            server.wait(_SERVER_STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()

    def _answer_restart(self, message: dict[str, Any]) -> None:
        peers, self._restart_peers = self._restart_peers, []
        for peer in peers:
            _send(peer, message)

    def _tell(self, message: dict[str, Any]) -> None:
        """Say once how the start went, to whoever waits for it."""
        if self._told:
            return
        self._told = True
        try:
            os.write(self._ready_fd, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            _say("nobody waits for the mount any more")
        os.close(self._ready_fd)

    def _stop(self) -> None:
        """Detach the tree first, so that nobody starts something new in it, then end the server."""
        if self._own_mounts:
            with self._lock:
                paths = sorted((connection.path for connection in self._connections.values()), key=len)
            if paths:
                _umount(paths[0])  # the outermost: MNT_DETACH takes what is mounted below along
        server = self._server
        if server is not None and server.poll() is None:
            server.terminate()
            try:
                server.wait(_SERVER_STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        if not self._own_mounts:
            _umount(self._mountpoint)
        self._tell({"error": "stopped"})
        for name in ("keeper.sock", "control.sock"):
            if os.path.exists(f"{self._runtime_dir}/{name}"):
                os.unlink(f"{self._runtime_dir}/{name}")

    # -- the protocol ---------------------------------------------------------------------------------------------

    def _serve(self, peer: socket.socket) -> None:
        try:
            raw, fds, _flags, _address = socket.recv_fds(peer, LARGEST_MESSAGE, 1)
            message = json.loads(raw) if raw else None
        except (OSError, ValueError) as error:
            _say(f"a peer on the keeper's socket is dropped: {error}")
            message, fds = None, []
        if not isinstance(message, dict):
            self._selector.unregister(peer)
            peer.close()
            return
        name = str(message.get("name", ""))
        match message.get("op"):
            case "hello":
                self._hand_over(peer)
            case "mount":
                arguments = (peer, name, str(message.get("path", "")), str(message.get("source", "")))
                threading.Thread(target=self._mount, args=arguments, daemon=True).start()
            case "unmount":
                threading.Thread(target=self._unmount, args=(peer, name), daemon=True).start()
            case "state":
                with self._lock:
                    if name in self._connections:
                        self._connections[name].state = message.get("state", {})
            case "hold" if fds:
                before = self._held.pop(name, None)
                if before is not None:
                    os.close(before)
                self._held[name] = fds.pop()
            case "restart":
                threading.Thread(target=self._restart, args=(peer,), daemon=True).start()
            case "ready":
                self._tell({"ok": True})
                self._answer_restart({"ok": True})
            case "failed":
                if not self._told:
                    self._tell({"error": str(message.get("error", "the server failed"))})
                    self._stopping = True
            case other:
                _send(peer, {"error": f"unknown operation {other!r}"})
        for fd in fds:
            os.close(fd)

    def _hand_over(self, peer: socket.socket) -> None:
        with self._lock:
            connections = dict(self._connections)
        hello = {"version": VERSION, "restarts": self._restarts}
        _send(peer, {**hello, "connections": len(connections), "held": len(self._held)})
        for name, connection in sorted(connections.items()):
            _send(peer, {"name": name, "dev": connection.dev, "state": connection.state}, connection.fd)
        for name, fd in sorted(self._held.items()):
            _send(peer, {"name": name}, fd)

    def _mount(self, peer: socket.socket, name: str, path: str, source: str) -> None:
        with self._lock:
            known = self._connections.get(name)
        if known is not None:  # a server that died between asking and hearing
            _send(peer, {"name": name, "dev": known.dev, "state": known.state}, known.fd)
            return
        try:
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            _send(peer, {"name": name, "error": f"/dev/fuse: {error.strerror}"})
            return
        options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions,allow_other"
        flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOATIME
        if _libc.mount(os.fsencode(source), os.fsencode(path), b"fuse.dsfs", flags, options.encode()) != 0:
            error_text = os.strerror(ctypes.get_errno())
            os.close(fd)
            _send(peer, {"name": name, "error": f"mount on {path}: {error_text}"})
            return
        connection = Connection(fd, path, _device_at(path))
        with self._lock:
            self._connections[name] = connection
        _send(peer, {"name": name, "dev": connection.dev, "state": {}}, fd)

    def _unmount(self, peer: socket.socket, name: str) -> None:
        with self._lock:
            connection = self._connections.pop(name, None)
        if connection is None:
            _send(peer, {"name": name, "error": "not mounted"})
            return
        _umount(connection.path)
        os.close(connection.fd)
        _send(peer, {"name": name})


def _send(peer: socket.socket, message: dict[str, Any], fd: int | None = None) -> None:
    try:
        socket.send_fds(peer, [json.dumps(message).encode()], [] if fd is None else [fd])
    except OSError as error:  # the server died while it was answered: the next one asks again
        _say(f"answer not delivered: {error}")


def _umount(path: str) -> None:
    """Detach a mount and all below it. Never enters it, so nothing in it can make this hang."""
    if _libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return
    code = ctypes.get_errno()
    if os.getuid() != 0:  # an unprivileged mount is fusermount3's to undo
        subprocess.run(["fusermount3", "-u", "-z", "-q", path], check=False)
        return
    _say(f"unmounting {path}: {os.strerror(code)}")


def _device_at(path: str) -> str:
    """The "major:minor" of the file system mounted last at a path; asks the mount table, not the file system."""
    found = ""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split(b" ")
            place = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), fields[4])
            if place == os.fsencode(path):
                found = fields[2].decode("ascii")
    return found


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} keeper: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(Keeper(sys.argv[1], int(sys.argv[2])).run())
