"""Opening the index of a cache that may be damaged, or on a disk that refuses."""

from __future__ import annotations

import glob
import os
import shutil
import sqlite3
import tempfile
import weakref

import structlog

from dsfs.cache.index import Index, forget_clean
from dsfs.cache.rows import is_damaged, is_note_of_damage, note_damaged

log = structlog.get_logger()

_MEMORY = "/dev/shm"
_PREFIX = "dsfs-index-"
_REFUSED = {
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
}
"""Of a disk, or a process, that cannot do it now: there may be nothing wrong with the file."""


def open_index(directory: str) -> Index:
    """The index of a cache; a damaged one is begun anew, and found again in ``objects/``.

    Where the disk refuses to be written to, what is cached is to be read all the same: an index that lasts as long as
    this server is made of ``objects/``, and the one on the disk stays as it is. Raises OSError, sqlite3.Error.
    """
    try:
        if not is_damaged(directory):
            return Index(directory)
        reason = "a server before has met damage in it"
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in _REFUSED:
            log.warning("index of the cache cannot be used now", directory=directory, reason=str(error))
            return _in_memory(directory)
        reason = str(error)
    log.warning("index of the cache is damaged and built anew", directory=directory, reason=reason)
    try:
        note_damaged(directory)  # until all of it is gone, whatever ends this meanwhile
        for name in sorted(os.listdir(directory), key=is_note_of_damage):
            path = f"{directory}/{name}"
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        return Index(directory)
    except (OSError, sqlite3.OperationalError) as error:
        log.warning("index of the cache cannot be used now", directory=directory, reason=str(error))
        return _in_memory(directory)


def _in_memory(directory: str) -> Index:
    """One that lasts as long as this server; the one on the disk is not believed again before it was brought up to
    date."""
    for place in glob.glob(f"{_MEMORY}/{_PREFIX}*"):
        if not os.path.exists(f"/proc/{place.rpartition('.')[2]}"):  # of one that was killed
            shutil.rmtree(place, ignore_errors=True)
    scratch = tempfile.mkdtemp(
        prefix=_PREFIX, suffix=f".{os.getpid()}", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None
    )
    index = Index(scratch)

    def leave() -> None:
        try:
            forget_clean(directory)
        except (sqlite3.Error, OSError) as error:
            log.warning("index of the cache still cannot be used", directory=directory, reason=str(error))

    index.before_close = leave
    weakref.finalize(index, shutil.rmtree, scratch, ignore_errors=True)
    return index
