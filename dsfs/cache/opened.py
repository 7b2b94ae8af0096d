"""Which objects of the node tier are open, and which of those have lost their name meanwhile."""

from __future__ import annotations

import os
import threading
import weakref

from cachetools import LRUCache

from dsfs.cache.complete import CachedObject


class Opened:
    """Any thread. ``kept`` of them stay open, those that were used last; the others as long as somebody holds them."""

    def __init__(self, kept: int) -> None:
        self._lock = threading.RLock()  # guards everything below
        self._recent: LRUCache[str, CachedObject] = LRUCache(kept)
        self._by_key: weakref.WeakValueDictionary[str, CachedObject] = weakref.WeakValueDictionary()
        self._leaving: weakref.WeakSet[CachedObject] = weakref.WeakSet()  # unlinked, and kept by who has them open

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def get(self, key: str) -> CachedObject | None:
        with self._lock:
            return self._by_key.get(key)

    def use(self, key: str) -> CachedObject | None:
        """As ``get``, for who is going to read it."""
        with self._lock:
            return self._recent.get(key) or self._by_key.get(key)

    def keep(self, obj: CachedObject) -> None:
        """From now on it is the one of its key."""
        with self._lock:
            self._recent[obj.key] = self._by_key[obj.key] = obj
        self._look_again(obj)

    def keep_if_none(self, obj: CachedObject) -> None:
        """As ``keep``, unless there is one: somebody may have begun it anew just now, and that one counts."""
        with self._lock:
            if obj.key in self._by_key:
                return
            self._recent[obj.key] = self._by_key[obj.key] = obj
        self._look_again(obj)

    def _look_again(self, obj: CachedObject) -> None:
        """Who drops an object unlinks it, then has what is open forgotten: one that was opened before and is kept
        since would be handed out on and on, corrupt or not."""
        if os.fstat(obj.fd).st_nlink:
            return
        with self._lock:
            if self._by_key.get(obj.key) is obj:
                self._forget(obj.key)

    def forget(self, key: str) -> None:
        """The object has lost its name: who holds it keeps it."""
        with self._lock:
            self._forget(key)

    def _forget(self, key: str) -> None:
        obj = self._by_key.pop(key, None)
        self._recent.pop(key, None)
        if obj is not None:
            obj.unlinked = True
            self._leaving.add(obj)

    def close_idle(self) -> None:
        """What nobody reads just now gives its descriptors back."""
        with self._lock:
            idle = list(self._recent.values())
            self._recent.clear()
        idle.clear()  # closed here, without the lock

    def leaving_bytes(self) -> int:
        """What the disk gets back by itself, as complete objects without a name are let go."""
        with self._lock:  # threads that evict add to it
            leaving = list(self._leaving)
        return sum(obj.size_bytes for obj in leaving if obj.complete)
