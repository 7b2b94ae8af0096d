"""What a read-only file system answers to everything that would change it, and to locks and controls."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import stat
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.conftest import Case


def _open(flags: int) -> Callable[[bytes, bytes], object]:
    return lambda file, new: os.open(file, flags)


def _create(flags: int) -> Callable[[bytes, bytes], object]:
    return lambda file, new: os.open(new, flags, 0o644)


# (file that is there, name that is not) → a call
WRITES: dict[str, Callable[[bytes, bytes], object]] = {
    "open O_WRONLY": _open(os.O_WRONLY),
    "open O_RDWR": _open(os.O_RDWR),
    "open O_TRUNC": _open(os.O_RDONLY | os.O_TRUNC),
    "open O_APPEND": _open(os.O_WRONLY | os.O_APPEND),
    "open O_CREAT": _create(os.O_WRONLY | os.O_CREAT),
    "open O_CREAT O_EXCL": _create(os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "open O_TMPFILE": lambda file, new: os.open(os.path.dirname(new), os.O_RDWR | os.O_TMPFILE),
    "mkdir": lambda file, new: os.mkdir(new),
    "mknod": lambda file, new: os.mknod(new, stat.S_IFREG | 0o644),
    "mkfifo": lambda file, new: os.mkfifo(new),
    "unlink": lambda file, new: os.unlink(file),
    "rmdir": lambda file, new: os.rmdir(os.path.dirname(file) + b"/sub"),
    "rename": lambda file, new: os.rename(file, new),
    "replace": lambda file, new: os.replace(file, os.path.dirname(file) + b"/page"),
    "link": lambda file, new: os.link(file, new),
    "symlink": lambda file, new: os.symlink(b"x", new),
    "chmod": lambda file, new: os.chmod(file, 0o777),
    "chown": lambda file, new: os.chown(file, 0, 0),
    "lchown": lambda file, new: os.lchown(file, 1, 1),
    "truncate": lambda file, new: os.truncate(file, 0),
    "utime": lambda file, new: os.utime(file),
    "utime of a directory": lambda file, new: os.utime(os.path.dirname(file), (1, 1)),
    "setxattr": lambda file, new: os.setxattr(file, "user.x", b"1"),
    "setxattr of ours": lambda file, new: os.setxattr(file, "user.dsfs.cached", b"1"),
    "removexattr": lambda file, new: os.removexattr(file, "user.dsfs.source"),
    "access W_OK": lambda file, new: _access(file, os.W_OK),
}


def _access(path: bytes, mode: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.access(path, mode) != 0:
        raise OSError(ctypes.get_errno(), "access")


@pytest.mark.parametrize("call", WRITES)
def test_changes_are_refused(case: Case, call: str) -> None:
    before = os.lstat(case.at(b"small.txt"))
    with pytest.raises(OSError) as raised:  # noqa: PT011  # the errno is looked at
        WRITES[call](case.at(b"small.txt"), case.at(b"new"))
    assert raised.value.errno == errno.EROFS, raised.value
    assert not os.path.lexists(case.at(b"new"))
    assert os.lstat(case.at(b"small.txt")).st_mtime_ns == before.st_mtime_ns


def test_on_an_open_descriptor(case: Case) -> None:
    fd = os.open(case.at(b"small.txt"), os.O_RDONLY)
    try:
        for call in (lambda: os.write(fd, b"x"), lambda: os.posix_fallocate(fd, 0, 10), lambda: os.pwrite(fd, b"x", 0)):
            with pytest.raises(OSError) as raised:  # noqa: PT011
                call()
            assert raised.value.errno == errno.EBADF
        with pytest.raises(OSError) as raised:  # noqa: PT011
            os.ftruncate(fd, 0)
        assert raised.value.errno == errno.EINVAL  # ftruncate(2): not open for writing
        with pytest.raises(OSError) as raised:  # noqa: PT011
            os.fchmod(fd, 0o777)
        assert raised.value.errno == errno.EROFS
        os.fsync(fd)
    finally:
        os.close(fd)


def test_locks_work(case: Case, tmp_path: Path) -> None:
    first, second = (os.open(case.at(b"small.txt"), os.O_RDONLY) for _ in range(2))
    try:
        fcntl.flock(first, fcntl.LOCK_SH)
        fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(second, fcntl.LOCK_UN)
        fcntl.lockf(first, fcntl.LOCK_SH | fcntl.LOCK_NB, 5)
        fcntl.lockf(first, fcntl.LOCK_UN)
        with pytest.raises(OSError, match="Bad file descriptor"):
            fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fcntl(2): needs a descriptor for writing
    finally:
        os.close(first)
        os.close(second)


@pytest.mark.parametrize("request_number", [termios.TIOCGWINSZ, 0x80086601, 0xC020660B, 0x12345678])
def test_no_ioctl_is_known(case: Case, request_number: int) -> None:
    """TIOCGWINSZ, FS_IOC_GETFLAGS, FS_IOC_FIEMAP (EOPNOTSUPP is what the kernel says to that one itself), nonsense."""
    fd = os.open(case.at(b"small.txt"), os.O_RDONLY)
    try:
        with pytest.raises(OSError) as raised:  # noqa: PT011
            fcntl.ioctl(fd, request_number, array.array("B", bytes(64)), True)
        if request_number == 0xC020660B:
            assert raised.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
        else:
            assert raised.value.errno == errno.ENOTTY
    finally:
        os.close(fd)


def test_reading_is_allowed_to_look(case: Case) -> None:
    _access(case.at(b"small.txt"), os.R_OK)
    _access(case.at(b"small.txt"), os.R_OK | os.X_OK)  # 0775 without its write bits
    _access(case.at(b"sub"), os.R_OK | os.X_OK)
