"""What the node tier holds, by object: space, owners, order of last use. Can be rebuilt from ``objects/``.

One diskcache row per object, key → (bytes, owners, last use). diskcache iterates in order of insertion, so a use that
deletes and inserts again keeps the rows in order of last use. Uses and sizes are collected in memory and written in
one transaction a second: a transaction takes about as long as a small object takes to be fetched.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import diskcache

from dsfs.cache.eviction import Cached

_TOTALS = "#totals"  # not a key of an object, which is 64 hex digits
_CLEAN = "#clean"


@dataclass(slots=True)
class _Pending:
    """What happened to one object since the last flush: perhaps a removal, then perhaps more."""

    removed: bool = False
    lost_bytes: int = 0  # of what was added and removed again between two flushes
    added_bytes: int = 0
    owners: set[str] = field(default_factory=set)


class Index:
    """Safe to use from several threads. ``used_bytes`` and ``owner_bytes`` are kept exact in memory."""

    def __init__(self, directory: str) -> None:
        self._cache = diskcache.Cache(directory, eviction_policy="none", cull_limit=0, size_limit=2**62)
        self._lock = threading.Lock()  # guards everything below; never held while the disk is waited for
        self._flushing = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        totals: dict[str, int] = self._cache.get(_TOTALS) or {}
        self._owner_bytes = {owner: size for owner, size in totals.items() if owner}
        self._used_bytes = totals.get("", 0)
        self.was_clean = bool(self._cache.pop(_CLEAN, default=False))
        """False: the last server did not end in order, and objects/ may hold what the index does not know."""

    @property
    def used_bytes(self) -> int:
        """Space of all objects, in bytes."""
        return self._used_bytes

    def owner_bytes(self, owner: str) -> int:
        """Bytes cached of what this dataset has used; an object that two datasets use counts for both."""
        return self._owner_bytes.get(owner, 0)

    def add(self, key: str, size_bytes: int, owner: str) -> None:
        """Note that so many more bytes of an object are here, brought by this dataset."""
        with self._lock:
            self._used_bytes += size_bytes
            pending = self._pending.setdefault(key, _Pending())
            pending.added_bytes += size_bytes
            pending.owners.add(owner)

    def use(self, key: str, owner: str) -> None:
        """Note that a dataset used an object just now."""
        with self._lock:
            self._pending.setdefault(key, _Pending()).owners.add(owner)

    def remove(self, key: str) -> None:
        """Note that an object is gone."""
        with self._lock:
            before = self._pending.get(key, _Pending())
            self._pending[key] = _Pending(removed=True, lost_bytes=before.lost_bytes + before.added_bytes)

    def flush(self, now_s: float) -> None:
        """Write what was noted since the last flush. Blocks on the disk."""
        with self._flushing:
            with self._lock:
                pending, self._pending = self._pending, {}
            if not pending:
                return
            with self._cache.transact():
                for key, change in pending.items():
                    self._apply(key, change, now_s)
                self._cache.set(_TOTALS, {**self._owner_bytes, "": self._used_bytes})

    def _apply(self, key: str, change: _Pending, now_s: float) -> None:
        old_bytes, old_owners, _last = self._cache.pop(key, default=(0, (), 0.0))
        with self._lock:
            if change.removed:
                self._used_bytes -= old_bytes + change.lost_bytes
                self._count(old_owners, -old_bytes)
                old_bytes, old_owners = 0, ()
            new_owners = tuple(sorted(change.owners.union(old_owners)))
            size_bytes = old_bytes + change.added_bytes
            self._count(old_owners, -old_bytes)
            self._count(new_owners, size_bytes)
        if size_bytes > 0:  # a use of what was evicted meanwhile is no object
            self._cache.set(key, (size_bytes, new_owners, now_s))

    def _count(self, owners: tuple[str, ...], size_bytes: int) -> None:
        for owner in owners:
            self._owner_bytes[owner] = self._owner_bytes.get(owner, 0) + size_bytes

    def oldest_first(self) -> Iterator[Cached]:
        """Every object, least recently used first; as of the last flush."""
        for key in self._cache:
            if key.startswith("#"):
                continue
            row = self._cache.get(key)
            if row is not None:
                size_bytes, owners, last_used_s = row
                yield Cached(key, size_bytes, last_used_s, owners)

    def __contains__(self, key: str) -> bool:
        return key in self._cache

    def clear(self) -> None:
        """Forget everything, before a rebuild."""
        with self._flushing, self._lock:
            self._pending.clear()
            self._cache.clear()
            self._used_bytes = 0
            self._owner_bytes.clear()

    def close(self, now_s: float) -> None:
        """Flush, and say that this end was in order."""
        self.flush(now_s)
        self._cache.set(_CLEAN, True)
        self._cache.close()
