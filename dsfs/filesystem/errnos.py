"""Failures → errno, one table."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

from dsfs.errors import (
    AnotherServes,
    CacheDirectoryBusy,
    CacheDirectoryError,
    CacheFull,
    CatalogError,
    ConfigError,
    DsfsError,
    MountError,
    NotShared,
    NotVisible,
    PinRefused,
    RetryLater,
    SizeImpossible,
    SourceChanged,
    SourceDeclined,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
)

ERRNO_OF: Final[Mapping[type[DsfsError], int]] = {
    NotVisible: errno.ENOENT,  # not EACCES: a team does not learn which datasets others have
    SourceChanged: errno.ESTALE,
    SourceRefused: errno.EACCES,
    SourceTimeout: errno.ETIMEDOUT,
    # A directory or bucket that is gone behind a name that was listed: not ENOENT, which kernel and user would take
    # for "there is no such name".
    SourceMissing: errno.ESTALE,
    SizeImpossible: errno.EOVERFLOW,  # stat(2): a size that cannot be represented
    SourceUnsupported: errno.EIO,
    SourceUnavailable: errno.EIO,
    SourceDeclined: errno.EIO,
    RetryLater: errno.EIO,
    SourceError: errno.EIO,
    CacheFull: errno.EIO,
    PinRefused: errno.EIO,
    CacheDirectoryError: errno.EIO,
    CacheDirectoryBusy: errno.EIO,
    CatalogError: errno.EIO,
    ConfigError: errno.EIO,
    NotShared: errno.EIO,
    MountError: errno.EIO,
    AnotherServes: errno.EIO,
    DsfsError: errno.EIO,
}

QUIET: Final = frozenset(
    {errno.ENOENT, errno.ENODATA, errno.ENOSYS, errno.EINTR, errno.ERANGE, errno.ENOTTY, errno.ENAMETOOLONG}
)
"""What programs are answered all day, and no failure: it is neither counted nor logged."""


def errno_of(error: BaseException) -> int:
    """The errno that a reader gets. What is not one of ours is EIO, or its own errno if it has one."""
    for kind in type(error).__mro__:
        if kind in ERRNO_OF:
            return ERRNO_OF[kind]
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO
