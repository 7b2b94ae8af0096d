"""What is said of a machine on which nothing can be mounted."""

from __future__ import annotations

import errno

import pytest

from dsfs.errors import MountError
from dsfs.fuse.capabilities import Capabilities, choose_session

_KERNEL = (6, 12)


def _user(*, device_errno: int = 0, fusermount: bool = True, pyfuse3: bool = True) -> Capabilities:
    return Capabilities(_KERNEL, device_errno, False, fusermount, pyfuse3)


@pytest.mark.parametrize("session", ["auto", "direct", "pyfuse3"])
@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "/dev/fuse: Permission denied (chmod 666 /dev/fuse, as udev does, or run as root)"),
        (errno.EPERM, "/dev/fuse: Operation not permitted (give the container the device /dev/fuse)"),
        (errno.ENOENT, "/dev/fuse: No such file or directory (load the fuse module: modprobe fuse; in a container"),
    ],
)
def test_why_the_device_cannot_be_opened_is_said(session: str, number: int, says: str) -> None:
    with pytest.raises(MountError) as told:
        choose_session(session, _user(device_errno=number))
    assert str(told.value).startswith(says)


def test_what_else_is_missing_is_said() -> None:
    assert choose_session("auto", _user()) == "pyfuse3"
    with pytest.raises(MountError, match="needs CAP_SYS_ADMIN: run as root"):
        choose_session("direct", _user())
    with pytest.raises(MountError, match="pyfuse3 cannot be imported"):
        choose_session("auto", _user(pyfuse3=False))
    with pytest.raises(MountError, match="fusermount3 is missing"):
        choose_session("auto", _user(fusermount=False))
