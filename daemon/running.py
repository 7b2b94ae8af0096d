"""Where running mounts are found: a directory each, locked by its keeper for as long as that lives."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daemon.keeping.mounting import mount_table
from daemon.locks import is_held, take_within
from dsfs.client import is_below, place_of, runtime_directories, runtime_root
from dsfs.errors import MountError

_HEALING_S = 3.0
_LOOKED_AT_S = 0.2  # who only looks has a lock for a moment


@dataclass(frozen=True, slots=True)
class Running:
    """One mount that was started. ``alive``: its keeper is. ``keeper_alone``: that is somebody else's."""

    runtime_dir: str
    mountpoint: str
    keeper_pid: int
    alive: bool
    keeper_socket: str
    keeper_alone: bool = False

    @property
    def control_socket(self) -> str:
        return f"{self.runtime_dir}/control.sock"


def runtime_dir_of(mountpoint: str) -> str:
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return f"{runtime_root()}/{digest}"


def all_mounts() -> list[Running]:
    """Every mount that this user started and that was not unmounted in order."""
    found = map(look, runtime_directories())
    return [running for running in found if running is not None]


def find(mountpoint: str | None) -> Running:
    """The mount at a place, or the only one there is. Raises MountError that says what there is."""
    found = all_mounts()
    if mountpoint is not None:
        place = place_of(mountpoint)
        for running in found:
            if running.mountpoint == place and (running.alive or _is_healing(running)):
                return running
        raise MountError(f"{place}: dsfs has nothing mounted there ({_list([each for each in found if each.alive])})")
    alive = [running for running in found if running.alive or _is_healing(running)]
    if len(alive) == 1:
        return alive[0]
    if not alive:
        raise MountError("no dsfs mount is running (start one with dsfs mount)")
    raise MountError(f"several dsfs mounts are running: name one with -m ({_list(alive)})")


def find_below(path: str) -> tuple[Running, str]:
    """The mount that an absolute path leads into, and the path as the mount table has it, links on the way to it
    followed. What comes behind the mount point need not be there and is not asked. Raises MountError."""
    found = all_mounts()
    parts = os.path.normpath(f"/{path.lstrip('/')}").split("/")
    for end in range(2, len(parts) + 1):  # from the top, so that a mount that hangs is not entered
        place = "/".join([place_of("/".join(parts[:end])), *parts[end:]])
        around = [running for running in found if is_below(place, running.mountpoint)]
        if around:
            innermost = max(around, key=lambda each: (each.alive, len(each.mountpoint)))
            return find(innermost.mountpoint), place
    alive = [running for running in found if running.alive]
    raise MountError(f"{path}: is in no mount of dsfs ({_list(alive)}; a name has no / in front)")


@contextmanager
def starting(mountpoint: str) -> Iterator[None]:
    """Nobody else starts a mount there meanwhile: until its keeper has its lock, nothing else shows that it comes.

    Raises MountError if somebody does already.
    """
    root = runtime_root()
    for directory in (os.path.dirname(root), root):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    path = f"{runtime_dir_of(mountpoint)}.starting"
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not take_within(fd, _LOOKED_AT_S):
            os.close(fd)
            raise MountError(f"{mountpoint}: another dsfs mount is just starting there (wait for it)")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                break
        os.close(fd)  # of one that has just ended, and has removed it
    try:
        yield
    finally:
        os.unlink(path)
        os.close(fd)


def is_starting(runtime_dir: str) -> bool:
    """Whether somebody is just starting the mount that is to have this runtime directory."""
    try:
        fd = os.open(f"{runtime_dir}.starting", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return is_held(fd)
    finally:
        os.close(fd)


def prepare(mountpoint: str) -> str:
    """A clean runtime directory for a new mount. Raises MountError when one is alive there."""
    path = runtime_dir_of(mountpoint)
    running = look(path)
    if running is not None and running.alive:
        raise MountError(f"{mountpoint}: dsfs is mounted there already (pid {running.keeper_pid}); unmount it first")
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(f"{path}/journal", mode=0o700, exist_ok=True)
    os.chmod(os.path.dirname(path), 0o700)
    return path


def forget(runtime_dir: str) -> None:
    """Remove what an ended mount left."""
    shutil.rmtree(runtime_dir, ignore_errors=True)


def forget_all_but_log(runtime_dir: str) -> None:
    """As ``forget``, for a start of which nothing but the log can say why it failed."""
    for name in os.listdir(runtime_dir):
        if name != "server.log":
            path = f"{runtime_dir}/{name}"
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def mounted_at(mountpoint: str) -> list[str]:
    """File system types mounted at a place, the outermost first; reads the table, never touches the place."""
    return [mounted.type for mounted in mount_table() if mounted.path == mountpoint]


def server_answers(running: Running) -> bool:
    """Whether its server lives; without a keeper it is just starting another."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            server.connect(running.control_socket)
        except OSError:
            return False
    return True


def _is_healing(running: Running) -> bool:
    """Whether the server of a keeper that was killed is starting another; waits until it has."""
    if not server_answers(running):
        return False
    deadline = time.monotonic() + _HEALING_S
    while time.monotonic() < deadline:
        now = look(running.runtime_dir)
        if now is not None and now.alive:
            return True
        time.sleep(0.02)
    return False


def look(path: str) -> Running | None:
    """What a runtime directory says; None when it is none."""
    try:
        with open(f"{path}/keeper.json", encoding="utf-8") as file:
            config = json.load(file)
        mountpoint = str(config["mountpoint"])
        lock_fd = os.open(config.get("lock", f"{path}/lock"), os.O_RDWR | os.O_CLOEXEC)
    except (OSError, ValueError, KeyError):
        return None
    alive = is_held(lock_fd)
    try:
        pid = int(os.pread(lock_fd, 20, 0) or b"0")
    except ValueError:
        pid = 0
    os.close(lock_fd)
    return Running(
        path, mountpoint, pid, alive, config.get("socket", f"{path}/keeper.sock"), keeper_alone="socket" in config
    )


def _list(alive: list[Running]) -> str:
    return "mounted: " + ", ".join(running.mountpoint for running in alive) if alive else "nothing is mounted"
