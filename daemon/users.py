"""Who uses a mount: looked up in /proc, which never enters the mount and so never hangs on it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dsfs.errors import MountError


def check_unused(mountpoint: str, runtime_dir: str = "") -> None:
    """Raises MountError when somebody uses a mount; see ``users_of``."""
    users = users_of(mountpoint, but_not_of=runtime_dir)
    if users:
        raise MountError(f"{mountpoint} is in use by {', '.join(users)}; stop that, then unmount (or unmount --lazy)")


def users_of(mountpoint: str, at_most: int = 5, but_not_of: str = "") -> list[str]:
    """Processes with a working directory, a root, an open file or a mapping below a mount point: "name (pid 42)".

    ``but_not_of``: a runtime directory; its server, and what that started, look at files themselves.
    """
    found = []
    inside = f"{mountpoint.rstrip('/')}/"
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        if any(path == mountpoint or path.startswith(inside) for path in _paths(pid)):
            if but_not_of and _is_of(int(pid), but_not_of):
                continue
            found.append(f"{_name(pid)} (pid {pid})")
            if len(found) == at_most:
                break
    return found


def _paths(pid: str) -> Iterator[str]:
    places = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
    try:
        places += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        pass  # it ended meanwhile, or is somebody else's
    for place in places:
        try:
            yield os.readlink(place)
        except OSError:
            continue
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                fields = line.rstrip("\n").split(maxsplit=5)
                if len(fields) == 6 and fields[5].startswith("/"):
                    yield fields[5]
    except OSError:
        return


def _is_of(pid: int, runtime_dir: str) -> bool:
    """Whether a process, or one that it descends from, was started for a mount: its command line says so."""
    while pid > 1:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                if os.fsencode(runtime_dir) in cmdline.read().split(b"\0"):
                    return True
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                pid = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return "a process"
