"""What this kernel and user can do; chooses the session."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from dsfs.errors import MountError

_CAP_SYS_ADMIN = 21  # <linux/capability.h>


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Read once at start. ``kernel`` is (major, minor)."""

    kernel: tuple[int, int]
    device: bool
    sys_admin: bool
    fusermount: bool
    pyfuse3: bool

    @property
    def direct(self) -> bool:
        return self.device and self.sys_admin

    @property
    def portable(self) -> bool:
        return self.pyfuse3 and self.device and (self.fusermount or self.sys_admin)

    @property
    def passthrough(self) -> bool:
        """Whether the kernel may know passthrough; INIT says whether it does. The device may be open already."""
        return self.sys_admin and self.kernel >= (6, 9)


def look() -> Capabilities:
    """Look at this machine. Opens nothing but files in /proc."""
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
        os.access("/dev/fuse", os.R_OK | os.W_OK),
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
        raise MountError("the direct session needs /dev/fuse and CAP_SYS_ADMIN: run as root, or use --session pyfuse3")
    if capabilities.portable:
        return "pyfuse3"
    if not capabilities.device:
        raise MountError(
            "/dev/fuse cannot be opened: load the fuse module (modprobe fuse) or run the container with it"
        )
    if not capabilities.pyfuse3:
        raise MountError(
            "pyfuse3 cannot be imported: install libfuse3 and pyfuse3, or run as root for the direct session"
        )
    raise MountError("fusermount3 is missing: install the package fuse3, or run as root")


def _has_pyfuse3() -> bool:
    from importlib.util import find_spec

    return find_spec("pyfuse3") is not None
