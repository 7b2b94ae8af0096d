"""What the node tier holds, by object: space, owners, order of last use. Can be rebuilt from ``objects/``.

One diskcache row per object, key → (space, content, owners, last use). diskcache iterates in order of insertion, so a
use that deletes and inserts again keeps the rows in order of last use. Uses and sizes are collected in memory and
written in one transaction a second: a transaction takes about as long as a small object takes to be fetched.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import diskcache
import structlog

from dsfs.cache.eviction import Cached

log = structlog.get_logger()

_TOTALS = "#totals"  # not a key of an object, which is 64 hex digits
_CLEAN = "#clean"
_NOTED_S = 60.0
_NOTED_USES = 200_000


@dataclass(slots=True)
class _Pending:
    """What happened to one object since the last flush: perhaps a removal, then perhaps more."""

    removed: bool = False
    lost_bytes: int = 0  # of what was added and removed again between two flushes
    added_bytes: int = 0
    content_bytes: int = 0  # of files, without what a disk and a map add
    owners: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Totals:
    """Bytes in rows: space of all objects, content by owner."""

    all: int
    by_owner: dict[str, int]

    def count(self, owners: tuple[str, ...], size_bytes: int, content_bytes: int) -> None:
        self.all += size_bytes
        for owner in owners:
            self.by_owner[owner] = self.by_owner.get(owner, 0) + content_bytes


def _joined(first: dict[str, _Pending], then: dict[str, _Pending]) -> dict[str, _Pending]:
    """What happened to each object, from two times that follow each other."""
    joined = dict(first)
    for key, change in then.items():
        before = first.get(key)
        if before is not None:
            lost_bytes = before.lost_bytes + change.lost_bytes
            if change.removed:
                lost_bytes += before.added_bytes
                change = _Pending(True, lost_bytes, change.added_bytes, change.content_bytes, change.owners)
            else:
                change = _Pending(
                    before.removed,
                    lost_bytes,
                    before.added_bytes + change.added_bytes,
                    before.content_bytes + change.content_bytes,
                    before.owners | change.owners,
                )
        joined[key] = change
    return joined


class Index:
    """Safe to use from several threads. ``used_bytes`` and ``owner_bytes`` are kept exact in memory."""

    def __init__(self, directory: str) -> None:
        self._cache = diskcache.Cache(directory, eviction_policy="none", cull_limit=0, size_limit=2**62)
        self._lock = threading.Lock()  # guards everything below; never held while the disk is waited for
        self._flushing = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._unflushed_bytes: Counter[str] = Counter()  # by owner: added since the last flush
        self._noted: set[tuple[str, str]] = set()  # uses of this minute, which need not be noted again
        self._noted_since_s = 0.0
        totals: dict[str, int] = self._cache.get(_TOTALS) or {}
        self._owner_bytes = {owner: size for owner, size in totals.items() if owner}
        self._used_bytes = self._row_bytes = totals.get("", 0)
        self.was_clean = bool(self._cache.pop(_CLEAN, default=False))
        """False: the last server did not end in order, and objects/ may hold what the index does not know."""

    @property
    def used_bytes(self) -> int:
        """Space of all objects, in bytes."""
        return self._used_bytes

    def owner_bytes(self, owner: str) -> int:
        """Bytes of files that are here and that this dataset has used; what two datasets use counts for both."""
        return self._owner_bytes.get(owner, 0) + self._unflushed_bytes[owner]

    def add(self, key: str, size_bytes: int, content_bytes: int, owner: str) -> None:
        """Note that so many more bytes of an object are here, brought by this dataset: space, and content."""
        with self._lock:
            self._used_bytes += size_bytes
            pending = self._pending.setdefault(key, _Pending())
            pending.added_bytes += size_bytes
            pending.content_bytes += content_bytes
            pending.owners.add(owner)
            self._unflushed_bytes[owner] += content_bytes

    def shrink(self, key: str, size_bytes: int, content_bytes: int) -> None:
        """Note that so many bytes of an object are gone, space and content, and the rest of it is not."""
        with self._lock:
            self._used_bytes -= size_bytes
            pending = self._pending.setdefault(key, _Pending())
            pending.added_bytes -= size_bytes
            pending.content_bytes -= content_bytes

    def use(self, key: str, owner: str) -> None:
        """Note that a dataset used an object just now: to the minute, as a row costs more to write than most reads."""
        if (key, owner) in self._noted:
            return
        with self._lock:
            if len(self._noted) >= _NOTED_USES:
                self._noted.clear()
            self._noted.add((key, owner))
            self._pending.setdefault(key, _Pending()).owners.add(owner)

    def remove(self, key: str) -> None:
        """Note that an object is gone."""
        with self._lock:
            before = self._pending.get(key, _Pending())
            self._pending[key] = _Pending(removed=True, lost_bytes=before.lost_bytes + before.added_bytes)

    def flush(self, now_s: float) -> None:
        """Write what was noted since the last flush. Blocks on the disk.

        Raises OSError when the disk refuses; then nothing of it counts as written, and the next flush tries again.
        """
        with self._flushing:
            with self._lock:
                if abs(now_s - self._noted_since_s) >= _NOTED_S:
                    self._noted.clear()
                    self._noted_since_s = now_s
                pending, self._pending = self._pending, {}
                self._unflushed_bytes.clear()
            if not pending:
                return
            after = _Totals(self._row_bytes, dict(self._owner_bytes))
            lost_bytes = 0
            try:
                with self._cache.transact():
                    for key, change in pending.items():
                        lost_bytes += self._apply(key, change, now_s, after)
                    # What is in rows, not what is in use: after a crash, what came meanwhile is found in objects/.
                    self._cache.set(_TOTALS, {**after.by_owner, "": after.all})
            except (sqlite3.Error, diskcache.Timeout, OSError) as error:
                with self._lock:
                    self._pending = _joined(pending, self._pending)
                raise OSError(errno.EIO, f"the index of the cache cannot be written: {error}") from error
            with self._lock:
                self._row_bytes, self._owner_bytes = after.all, after.by_owner
                self._used_bytes -= lost_bytes

    def _apply(self, key: str, change: _Pending, now_s: float, totals: _Totals) -> int:
        """Write one row, inside a transaction; how many bytes of those in use are not any more."""
        row: tuple[int, int, tuple[str, ...], float] = self._cache.pop(key, default=(0, 0, (), 0.0))
        row_bytes, row_content, row_owners, _last = row
        totals.count(row_owners, -row_bytes, -row_content)
        lost_bytes = change.lost_bytes
        if change.removed:
            lost_bytes += row_bytes
            row_bytes, row_content, row_owners = 0, 0, ()
        size_bytes = row_bytes + change.added_bytes
        if size_bytes > 0:
            owners = tuple(sorted(change.owners.union(row_owners)))
            content_bytes = max(0, row_content + change.content_bytes)
            totals.count(owners, size_bytes, content_bytes)
            self._cache.set(key, (size_bytes, content_bytes, owners, now_s))
            return lost_bytes
        return lost_bytes + size_bytes  # a use of what was evicted meanwhile; or more was taken back than was known

    def oldest_first(self) -> Iterator[Cached]:
        """Every object, least recently used first; as of the last flush."""
        for key in self._cache:
            if key.startswith("#"):
                continue
            row = self._cache.get(key)
            if row is not None:
                size_bytes, content_bytes, owners, last_used_s = row
                yield Cached(key, size_bytes, last_used_s, owners, content_bytes)

    def __contains__(self, key: str) -> bool:
        return key in self._cache

    def clear(self) -> None:
        """Forget everything, before a rebuild."""
        with self._flushing, self._lock:
            self._pending.clear()
            self._cache.clear()
            self._used_bytes = self._row_bytes = 0
            self._owner_bytes = {}

    def close(self, now_s: float) -> None:
        """Flush, and say that this end was in order."""
        self.flush(now_s)
        self._cache.set(_CLEAN, True)
        self._cache.close()


def open_index(directory: str) -> Index:
    """The index of a cache; a damaged one is begun anew, and found again in ``objects/``."""
    try:
        return Index(directory)
    except sqlite3.DatabaseError as error:
        log.warning("index of the cache is damaged and built anew", directory=directory, reason=str(error))
        shutil.rmtree(directory)
        os.makedirs(directory, mode=0o700)
        return Index(directory)
