"""The slow check of everything that lies in the node tier, while it is in use: a disk that forgets is found out before
somebody reads what it forgot. ``verify`` is the quick one, which somebody asked for and waits for.

How far it is stands in ``scrub.json`` of the cache directory, so a server that is restarted each day gets to the end
too. What is brought in behind the place where it is waits for the next round.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from dsfs import metrics
from dsfs.cache.damage import DamagedObject
from dsfs.cache.layout import is_map
from dsfs.cache.mapfile import State
from dsfs.cache.node import NodeTier
from dsfs.cache.past_cache import PastCache
from dsfs.cache.verify import drop_damaged, is_right, open_by_key
from dsfs.ranges import MiB, block_range

STEP_BYTES = 1 * MiB
"""What is checked between two pauses; a block of a large object, or some small objects."""
LONGEST_PAUSE_S = 60.0
_STEP_OBJECTS = 256
_FANS = 256
_libc = ctypes.CDLL(None, use_errno=True)
_SET_PRIORITY = {"x86_64": 251, "aarch64": 30}.get(platform.machine())  # ioprio_set(2), which glibc has no name for
_THIS_THREAD, _IDLE, _DEFAULT = 1, 3 << 13, 0  # IOPRIO_WHO_PROCESS; classes idle and none, <linux/ioprio.h>


def pause_s(checked_bytes: int, used_bytes: int, every_s: float) -> float:
    """How long to rest after so much was checked, if a cache of this size is to be gone through once in ``every_s``.

    Never longer than a minute, so a small cache is gone through more often.
    """
    return min(checked_bytes / max(used_bytes, 1) * every_s, every_s, LONGEST_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Place:
    """What was checked last: an object, and how many of its blocks; ``after`` is empty at the beginning of a round."""

    after: str = ""
    blocks: int = 0
    rounds: int = 0


class Scrub:
    """One thread at a time calls ``step`` and ``save``."""

    def __init__(self, tier: NodeTier) -> None:
        self._tier = tier
        self._disk = PastCache()
        self._file = tier.layout.scrub
        self.place = self._saved = _load(self._file)
        self._left: list[str] = []  # keys of the directory that it is in, the next one last
        self._fan = int(self.place.after[:2] or "0", 16) - 1

    def step(self, budget_bytes: int = STEP_BYTES) -> int:
        """Check about so many bytes; how many there were, 0 at the end of a round. Blocks on the disk.

        Raises OSError of what says nothing about an object: that one is looked at another time.
        """
        done = 0
        with _idle_priority():
            for _object in range(_STEP_OBJECTS):
                if not self._left and not self._next_fan():
                    return done
                done += self._check(self._left[-1], budget_bytes - done)
                if done >= budget_bytes:
                    break
        return done

    def save(self) -> None:
        """Write down how far it is. Raises OSError."""
        if self.place != self._saved:
            with open(f"{self._file}.new", "w", encoding="ascii") as file:
                json.dump(asdict(self.place), file)
            os.rename(f"{self._file}.new", self._file)
            self._saved = self.place

    def _next_fan(self) -> bool:
        """Whether there is a directory left; else the next round begins."""
        while not self._left:
            self._fan += 1
            if self._fan == _FANS:
                self._fan = -1
                self.place = Place(rounds=self.place.rounds + 1)
                metrics.SCRUB_ROUNDS.inc()
                return False
            self._read_fan()
        return True

    def _read_fan(self) -> None:
        after, blocks = self.place.after, self.place.blocks
        keys = (name[:-4] for name in os.listdir(f"{self._tier.layout.objects}/{self._fan:02x}") if is_map(name))
        self._left = sorted((key for key in keys if key > after or (key == after and blocks)), reverse=True)

    def _check(self, key: str, budget_bytes: int) -> int:
        """Check more of an object, as far as the budget goes; the bytes that were looked at."""
        first = self.place.blocks if key == self.place.after else 0
        try:
            obj = open_by_key(self._tier, key)
        except FileNotFoundError:
            self._done_with(key)  # evicted meanwhile
            return 0
        except (DamagedObject, OSError) as error:
            drop_damaged(self._tier, key, error)
            self._done_with(key)
            return 0
        looked_at = 0
        with self._disk.reading(obj.fd) as read:
            for block in range(first, obj.blocks):
                if obj.state(block) == State.ABSENT:
                    continue
                if looked_at and looked_at >= budget_bytes:
                    self.place = Place(key, block, self.place.rounds)
                    return looked_at
                size_bytes = block_range(block, obj.size_bytes, obj.block_bytes).length
                looked_at += size_bytes
                metrics.SCRUBBED_BYTES.inc(size_bytes)
                if not is_right(obj, block, read):
                    self._tier.drop_bad_block(obj, block)
                    if obj.complete:
                        break  # dropped as a whole
        self._done_with(key)
        return looked_at

    def _done_with(self, key: str) -> None:
        self._left.pop()
        self.place = Place(key, 0, self.place.rounds)


def _load(path: str) -> Place:
    """Where the server before this one was; at the beginning when that cannot be known."""
    try:
        with open(path, encoding="ascii") as file:
            found = json.load(file)
        place = Place(str(found["after"]), int(found["blocks"]), int(found["rounds"]))
        int(place.after or "0", 16)
        return place
    except (OSError, ValueError, KeyError, TypeError):
        return Place()


@contextmanager
def _idle_priority() -> Iterator[None]:
    """What this thread reads waits for everybody else's, where the disk's scheduler heeds it (BFQ, mq-deadline)."""
    _set_priority(_IDLE)
    try:
        yield
    finally:
        _set_priority(_DEFAULT)  # the thread is one of a pool


def _set_priority(priority: int) -> None:
    if _SET_PRIORITY is not None:
        _libc.syscall(_SET_PRIORITY, _THIS_THREAD, 0, priority)
