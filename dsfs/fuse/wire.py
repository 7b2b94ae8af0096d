"""The FUSE protocol as tables: structs, opcodes, flags. Names and field order as in <linux/fuse.h>, protocol 7.45.

All are native byte order without implicit padding; sizes are asserted in tests/unit/fuse/test_wire.py.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

KERNEL_VERSION = 7
KERNEL_MINOR_VERSION = 45
MIN_READ_BUFFER = 8192  # FUSE_MIN_READ_BUFFER

IN_HEADER = Struct("=IIQQIIIHH")  # fuse_in_header: len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER = Struct("=IiQ")  # fuse_out_header: len error unique
INIT_IN = Struct("=IIII")  # fuse_init_in, what every minor version since 6 has: major minor max_readahead flags
INIT_IN_FLAGS2 = Struct("=I")  # fuse_init_in.flags2, behind it since 7.36
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")  # fuse_init_out: major minor max_readahead flags max_background
# congestion_threshold max_write time_gran max_pages map_alignment flags2 max_stack_depth request_timeout unused
ATTR = Struct("=QQQQQQIIIIIIIIII")  # fuse_attr: ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode
# nlink uid gid rdev blksize flags
ENTRY_OUT = Struct("=QQQQII")  # fuse_entry_out before attr: nodeid generation entry_valid attr_valid + their nsec
ATTR_OUT = Struct("=QII")  # fuse_attr_out before attr: attr_valid attr_valid_nsec dummy
GETATTR_IN = Struct("=IIQ")  # fuse_getattr_in: getattr_flags dummy fh
OPEN_IN = Struct("=II")  # fuse_open_in: flags open_flags
OPEN_OUT = Struct("=QIi")  # fuse_open_out: fh open_flags backing_id
READ_IN = Struct("=QQIIQII")  # fuse_read_in: fh offset size read_flags lock_owner flags padding
RELEASE_IN = Struct("=QIIQ")  # fuse_release_in: fh flags release_flags lock_owner
GETXATTR_IN = Struct("=II")  # fuse_getxattr_in: size padding
GETXATTR_OUT = Struct("=II")  # fuse_getxattr_out: size padding
KSTATFS = Struct("=QQQQQIIII24x")  # fuse_kstatfs: blocks bfree bavail files ffree bsize namelen frsize padding spare
INTERRUPT_IN = Struct("=Q")  # fuse_interrupt_in: unique
DIRENT = Struct("=QQII")  # fuse_dirent before name: ino off namelen type
NOTIFY_INVAL_INODE_OUT = Struct("=Qqq")  # fuse_notify_inval_inode_out: ino off len
NOTIFY_INVAL_ENTRY_OUT = Struct("=QII")  # fuse_notify_inval_entry_out before name: parent namelen flags
BACKING_MAP = Struct("=iIQ")  # fuse_backing_map: fd flags padding


class Opcode(IntEnum):
    """enum fuse_opcode; the lower-case name is also the metric label."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class InitFlag(IntFlag):
    """INIT flags, the upper 32 bits as they stand in flags2."""

    ASYNC_READ = 1 << 0
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


class OpenFlag(IntFlag):
    """fuse_open_out.open_flags"""

    KEEP_CACHE = 1 << 1
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


class Notify(IntEnum):
    """enum fuse_notify_code; sent as the error of a message with unique 0."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7
    INC_EPOCH = 8


UNIQUE_RESEND = 1 << 63  # FUSE_UNIQUE_RESEND: set in unique when the kernel repeats a request

# ioctls of /dev/fuse: _IOW(FUSE_DEV_IOC_MAGIC = 229, nr, type)
DEV_IOC_BACKING_OPEN = 1 << 30 | BACKING_MAP.size << 16 | 229 << 8 | 1
DEV_IOC_BACKING_CLOSE = 1 << 30 | 4 << 16 | 229 << 8 | 2
