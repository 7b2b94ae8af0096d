"""What this kernel and user can do; chooses the session."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from typing import NamedTuple

from dsfs.errors import MountError

_CAP_SYS_ADMIN = 21  # <linux/capability.h>


_DEVICE = "/dev/fuse"


class Lack(NamedTuple):
    """What is not here, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} ({self.remedy})"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Read once at start. ``kernel`` is (major, minor); ``device_errno`` is 0, or why /dev/fuse cannot be opened."""

    kernel: tuple[int, int]
    device_errno: int
    sys_admin: bool
    fusermount: bool
    pyfuse3: bool

    @property
    def device(self) -> bool:
        return self.device_errno == 0

    @property
    def direct(self) -> bool:
        return self.device and self.sys_admin

    @property
    def portable(self) -> bool:
        return self.lacks_for_portable() is None

    def lacks_device(self) -> Lack | None:
        """None: it can be opened."""
        if self.device:
            return None
        remedy = "load the fuse module: modprobe fuse; in a container add the device /dev/fuse"
        if self.device_errno == errno.EACCES:
            remedy = f"chmod 666 {_DEVICE}, as udev does, or run as root"
        elif self.device_errno == errno.EPERM:  # the device cgroup of a container
            remedy = f"give the container the device {_DEVICE}"
        return Lack(f"{_DEVICE}: {os.strerror(self.device_errno)}", remedy)

    def lacks_for_portable(self) -> Lack | None:
        """What the pyfuse3 session needs first."""
        if not self.device:
            return self.lacks_device()
        if not self.pyfuse3:
            return Lack("pyfuse3 cannot be imported", "install libfuse3 and pyfuse3, or run as root")
        if not self.fusermount and not self.sys_admin:
            return Lack("fusermount3 is missing", "install the package fuse3, or run as root")
        return None

    @property
    def passthrough(self) -> bool:
        """Whether the kernel may know passthrough; INIT says whether it does. The device may be open already."""
        return self.sys_admin and self.kernel >= (6, 9)


def look() -> Capabilities:
    """Look at this machine. Opens files in /proc, and /dev/fuse, which mounts nothing yet."""
    release = os.uname().release.split(".")
    try:
        kernel = (int(release[0]), int("".join(c for c in release[1] if c.isdigit())))
    except (IndexError, ValueError):
        kernel = (0, 0)
    effective = 0
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
    return Capabilities(
        kernel,
        _device_errno(),
        bool(effective >> _CAP_SYS_ADMIN & 1),
        shutil.which("fusermount3") is not None,
        _has_pyfuse3(),
    )


def may_allow_others(config: str = "/etc/fuse.conf") -> bool:
    """Whether fusermount3 lets users have others enter their mounts."""
    try:
        with open(config, encoding="utf-8", errors="replace") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def choose_session(wanted: str, capabilities: Capabilities) -> str:
    """``auto`` becomes ``direct`` or ``pyfuse3``. Raises MountError with what to do when it cannot be had."""
    if wanted == "direct" or (wanted == "auto" and capabilities.direct):
        if capabilities.direct:
            return "direct"
        if (lack := capabilities.lacks_device()) is not None:
            raise MountError(str(lack))
        raise MountError("the direct session needs CAP_SYS_ADMIN: run as root, or use --session pyfuse3")
    lack = capabilities.lacks_for_portable()
    if lack is not None:
        raise MountError(str(lack))
    return "pyfuse3"


def _device_errno() -> int:
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _has_pyfuse3() -> bool:
    from importlib.util import find_spec

    return find_spec("pyfuse3") is not None
