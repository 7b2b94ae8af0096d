"""Mounting and detaching FUSE connections, and finding them in the mount table. Enters a mount only to mount in it."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from daemon.keeping.loop import say

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 1, 2, 4, 1024  # <linux/mount.h>
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_READ_AHEAD_KIB = 1024  # as dsfs/fuse/direct.py, which may not set it where /sys is read-only (a container)
TYPES = ("fuse.dsfs", "fuse.fuse.dsfs")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


class Mounted(NamedTuple):
    """A line of the mount table. ``dev`` is "major:minor"; the minor number is the connection's id in fusectl."""

    dev: str
    path: str
    type: str
    source: str


def mount_table() -> Iterator[Mounted]:
    """What is mounted here, the outermost first."""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            before, _, after = line.partition(b" - ")
            fields, kind = before.split(b" "), after.split(b" ")
            yield Mounted(fields[2].decode("ascii"), _plain(fields[4]), kind[0].decode(), _plain(kind[1]))


def _plain(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))


def mount_fuse(path: str, source: str) -> int:
    """Mount a new connection; its descriptor. Raises OSError. May wait for whoever serves the mount that it lies in."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions,allow_other"
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    if _libc.mount(os.fsencode(source), os.fsencode(path), b"fuse.dsfs", flags, options.encode()) != 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, os.strerror(code), path)
    _set_read_ahead(device_of(fd, path))
    return fd


def _set_read_ahead(dev: str) -> None:
    """The kernel's default of 128 KiB costs a third. Set before INIT, whose answer can only lower it."""
    try:
        with open(f"/sys/class/bdi/{dev}/read_ahead_kb", "w", encoding="ascii") as file:
            file.write(str(_READ_AHEAD_KIB))
    except OSError as error:
        say(f"read-ahead of {dev} stays at the kernel's default: {error.strerror}")


def detach(path: str) -> None:
    """Detach a mount and all below it. Never enters it, so nothing in it can make this hang."""
    if _libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return
    code = ctypes.get_errno()
    if os.getuid() != 0:  # an unprivileged mount is fusermount3's to undo
        subprocess.run(["fusermount3", "-u", "-z", "-q", path], check=False)
    elif code not in (errno.EINVAL, errno.ENOENT):  # somebody else has unmounted it
        say(f"unmounting {path}: {os.strerror(code)}")


def device_of(fd: int, path: str) -> str:
    """The "major:minor" of a connection, from its descriptor (kernels that tell) or from the mount table."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("fuse_connection:"):
                return f"0:{int(line.split()[1])}"
    return next((mounted.dev for mounted in reversed(list(mount_table())) if mounted.path == path), "")


def place_of(dev: str) -> str:
    """Where a connection is mounted, "" if it is not; the shortest path, as bind mounts of it lie elsewhere too."""
    return min((mounted.path for mounted in mount_table() if mounted.dev == dev), key=len, default="")
