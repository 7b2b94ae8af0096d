"""libnfs by ctypes: one connection to an NFS export in user space, v3 or v4, without a kernel mount.

The PyPI package ``libnfs`` (2016) wraps the same library without timeouts, nanoseconds and v4, so it is not used.
Known are libnfs 4 and 5 (``libnfs.so.13`` and ``.14``, in Debian 12 to 13 and Ubuntu 22.04 to 24.04); libnfs 6 has
other argument orders. Calls block, and let go of the GIL. Failures are ``OSError`` with the errno that libnfs made of
them: EINTR when an answer did not come in time, EIO for a connection that cannot be made or broke.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

from dsfs.sources.options import NotHere

_SONAMES: Final = ("libnfs.so.14", "libnfs.so.13")
_SYN_COUNT: Final = 2  # about 7 s until a host that does not answer is given up
_MOUNT_ERRORS: Final = {
    "MNT3ERR_NOENT": errno.ENOENT,
    "MNT3ERR_NOTDIR": errno.ENOTDIR,
    "MNT3ERR_ACCES": errno.EACCES,
    "MNT3ERR_PERM": errno.EACCES,
}
# libnfs makes EPERM of this one, as of a refusal.
_UNKNOWN_HOST: Final = "Can not resolv into IPv4/v6 structure"
# What is left of a connection that was refused, or ended by the other side.
_ENDED: Final = "nfs_service failed"
_BROKEN: Final = frozenset({errno.EINTR, errno.EIO, errno.EFAULT, errno.ETIMEDOUT})
# ftype3 and nfs_ftype4 (RFC 1813 and 7530) have the same numbers
_TYPES: Final = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFBLK, 4: stat.S_IFCHR, 5: stat.S_IFLNK}
_TARGET_MAX_BYTES: Final = 4096
_READ_MAX_BYTES: Final = 2**20  # over v4 libnfs sends a larger READ as it is, and loses the connection over the answer


class _Stat(ctypes.Structure):  # struct nfs_stat_64 in <nfsc/libnfs.h>
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"),
            *("atime", "mtime", "ctime", "atime_nsec", "mtime_nsec", "ctime_nsec", "used"),
        )
    )


class _Timeval(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("usec", ctypes.c_long))


class _Dirent(ctypes.Structure):  # struct nfsdirent
    pass


_Dirent._fields_ = (
    ("next", ctypes.POINTER(_Dirent)),
    ("name", ctypes.c_char_p),
    ("inode", ctypes.c_uint64),
    ("type", ctypes.c_uint32),
    ("mode", ctypes.c_uint32),
    ("size", ctypes.c_uint64),
    ("atime", _Timeval),
    ("mtime", _Timeval),
    ("ctime", _Timeval),
    ("uid", ctypes.c_uint32),
    ("gid", ctypes.c_uint32),
    ("nlink", ctypes.c_uint32),
    ("dev", ctypes.c_uint64),
    ("rdev", ctypes.c_uint64),
    ("blksize", ctypes.c_uint64),
    ("blocks", ctypes.c_uint64),
    ("used", ctypes.c_uint64),
    ("atime_nsec", ctypes.c_uint32),
    ("mtime_nsec", ctypes.c_uint32),
    ("ctime_nsec", ctypes.c_uint32),
)


class Attributes(NamedTuple):
    """What is asked of a name; ``type`` is S_IFMT of its mode, 0 for what is none of the usual.

    No file id: libnfs 4 lists garbage for it over v4, and some servers count them anew at each look.
    """

    type: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class NfsServer:
    """Whom to connect to. ``port`` and ``mountport`` are None to ask the portmapper (v3) or to use 2049 (v4)."""

    host: str
    port: int | None = None
    mountport: int | None = None
    uid: int | None = None
    gid: int | None = None


@cache
def library() -> Any:
    """libnfs with its functions declared. Raises NotHere without it."""
    for name in _SONAMES:
        try:
            return _declared(ctypes.CDLL(name))
        except (OSError, AttributeError):  # not here, or one that lacks a function
            continue
    raise NotHere(
        "NFS: libnfs is not on this machine (apt install libnfs13, or libnfs14 on newer systems; "
        "or mount the export, and name the place with the option directory)"
    )


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    pointer, text, number, offset = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64
    handle = ctypes.POINTER(ctypes.c_void_p)
    declared: dict[str, tuple[Any, list[Any]]] = {
        "nfs_init_context": (pointer, []),
        "nfs_destroy_context": (None, [pointer]),
        "nfs_get_error": (text, [pointer]),
        "nfs_parse_url_dir": (pointer, [pointer, text]),
        "nfs_destroy_url": (None, [pointer]),
        "nfs_set_timeout": (None, [pointer, number]),
        "nfs4_set_client_name": (None, [pointer, text]),
        "nfs4_set_verifier": (None, [pointer, text]),
        "nfs_mount": (number, [pointer, text, text]),
        "nfs_lstat64": (number, [pointer, text, ctypes.POINTER(_Stat)]),
        "nfs_fstat64": (number, [pointer, pointer, ctypes.POINTER(_Stat)]),
        "nfs_open": (number, [pointer, text, number, handle]),
        "nfs_close": (number, [pointer, pointer]),
        "nfs_pread": (number, [pointer, pointer, offset, offset, pointer]),
        "nfs_readlink": (number, [pointer, text, pointer, number]),
        "nfs_opendir": (number, [pointer, text, handle]),
        "nfs_readdir": (ctypes.POINTER(_Dirent), [pointer, pointer]),
        "nfs_closedir": (None, [pointer, pointer]),
    }
    for name, (result, arguments) in declared.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Connection:
    """One export, mounted. Not for two threads at once. Paths are absolute in the export, in bytes."""

    def __init__(self, server: NfsServer, version: int, export: bytes, timeout_s: float) -> None:
        self._lib = library()
        self._broken = False  # nothing will be answered on it any more
        self._context: int | None = self._lib.nfs_init_context()
        if not self._context:
            raise OSError(errno.ENOMEM, "no memory for a connection")
        try:
            self._configure(server, version, timeout_s)
            self._check(self._lib.nfs_mount(self._context, server.host.encode("idna"), export))
        except BaseException:
            self.close()
            raise

    def _configure(self, server: NfsServer, version: int, timeout_s: float) -> None:
        settings = {"version": version, "autoreconnect": 0, "dircache": 0, "auto-traverse-mounts": 0}
        settings["tcp-syncnt"] = _SYN_COUNT
        given = {"nfsport": server.port, "mountport": server.mountport, "uid": server.uid, "gid": server.gid}
        settings |= {key: value for key, value in given.items() if value is not None}
        # Nested exports are not looked for: that asks MOUNT for its EXPORT list, which not all servers have.
        # Ports can be set in no other way; host and path of this URL are not used.
        url = "nfs://host/path?" + "&".join(f"{key}={value}" for key, value in settings.items())
        parsed = self._lib.nfs_parse_url_dir(self._context, url.encode())
        if not parsed:
            raise OSError(errno.EINVAL, "libnfs does not take its settings")
        self._lib.nfs_destroy_url(parsed)
        self._lib.nfs_set_timeout(self._context, int(timeout_s * 1000))
        if version == 4:
            # By default pid and second: two connections of one second would be one client, and lose each other's state.
            self._lib.nfs4_set_client_name(self._context, f"dsfs {os.getpid()} {secrets.token_hex(8)}".encode())
            self._lib.nfs4_set_verifier(self._context, secrets.token_hex(8).encode())

    def close(self) -> None:
        """Gives the socket back; says no good-bye to the server, which may be gone."""
        if self._context:
            self._lib.nfs_destroy_context(self._context)
            self._context = None

    def stat(self, path: bytes) -> Attributes:
        """Does not follow a symbolic link in the last part."""
        found = _Stat()
        self._check(self._lib.nfs_lstat64(self._context, path, ctypes.byref(found)))
        return _attributes(found)

    def readlink(self, path: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(_TARGET_MAX_BYTES)
        self._check(self._lib.nfs_readlink(self._context, path, buffer, len(buffer)))
        return buffer.value

    def listdir(self, path: bytes) -> Iterator[tuple[bytes, Attributes | None]]:
        """All names but ``.`` and ``..``; None for attributes that the server did not send with them."""
        directory = ctypes.c_void_p()
        self._check(self._lib.nfs_opendir(self._context, path, ctypes.byref(directory)))  # reads all of it
        try:
            while entry := self._lib.nfs_readdir(self._context, directory):
                found = entry.contents
                if found.name not in (b".", b".."):
                    mtime_ns = found.mtime.sec * 10**9 + found.mtime_nsec
                    ctime_ns = found.ctime.sec * 10**9 + found.ctime_nsec
                    kind = _TYPES.get(found.type, 0)
                    known = Attributes(kind, found.size, mtime_ns, ctime_ns) if found.type else None
                    yield found.name, known
        finally:
            self._lib.nfs_closedir(self._context, directory)

    @contextmanager
    def opened(self, path: bytes) -> Iterator[OpenFile]:
        """Fails with ELOOP when the last part is a symbolic link."""
        handle = ctypes.c_void_p()
        flags = os.O_RDONLY | os.O_NOFOLLOW
        self._check(self._lib.nfs_open(self._context, path, flags, ctypes.byref(handle)))
        try:
            yield OpenFile(self, handle)
        finally:
            if not self._broken:  # else it would wait once more, for nothing
                self._lib.nfs_close(self._context, handle)

    def fstat(self, handle: ctypes.c_void_p) -> Attributes:
        found = _Stat()
        self._check(self._lib.nfs_fstat64(self._context, handle, ctypes.byref(found)))
        return _attributes(found)

    def pread(self, handle: ctypes.c_void_p, offset: int, length: int) -> bytearray:
        """Shorter only at the end of the file."""
        data, got = bytearray(length), 0
        view = (ctypes.c_char * length).from_buffer(data)
        try:
            start = ctypes.addressof(view)
            while got < length:
                wanted = min(length - got, _READ_MAX_BYTES)
                count = self._check(self._lib.nfs_pread(self._context, handle, offset + got, wanted, start + got))
                if count == 0:
                    break
                got += count
        finally:
            del view  # a bytearray that is looked into cannot be cut
        del data[got:]
        return data

    def _check(self, result: int) -> int:
        if result >= 0:
            return result
        text = (self._lib.nfs_get_error(self._context) or b"").decode(errors="replace")
        said = re.search("|".join(_MOUNT_ERRORS), text)  # libnfs makes EPERM of all of these
        number = _MOUNT_ERRORS[said[0]] if said else -result
        if _UNKNOWN_HOST in text:
            number, text = errno.EIO, "the host's name does not resolve"
        elif _ENDED in text:
            text = "the connection was refused or ended"
        self._broken = self._broken or number in _BROKEN
        raise OSError(number, " ".join(text.split())[:200] or os.strerror(number))


class OpenFile(NamedTuple):
    """A file that is open on a connection."""

    connection: Connection
    handle: ctypes.c_void_p

    def stat(self) -> Attributes:
        return self.connection.fstat(self.handle)

    def pread(self, offset: int, length: int) -> bytearray:
        return self.connection.pread(self.handle, offset, length)


def _attributes(found: Any) -> Attributes:
    mtime_ns, ctime_ns = found.mtime * 10**9 + found.mtime_nsec, found.ctime * 10**9 + found.ctime_nsec
    return Attributes(stat.S_IFMT(found.mode), found.size, mtime_ns, ctime_ns)
