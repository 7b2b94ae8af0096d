"""When the rest is worth bringing in behind readers that jump about: of a large file, and of the small files below a
directory."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cachetools import LRUCache

COMPLETE_SHARE = 0.25
"""A file of which so much was read is likely to be read whole; below it a reader may just look at a header."""
MANY_SHARE = 1 / 16
"""So many of many files, in no order, are not read for their own sake: whoever takes them like that takes them all."""
ROOM_SHARE = 0.5
"""What is larger than this part of the cache would push out more than it is worth."""

FIRST_LOOK_FILES = 64
"""Below a directory, until it is asked how many there are."""
_KNOWN_DIRECTORIES = 8192
_KNOWN_FILES = 1024  # the kernel asks for one in pieces, and other readers in between


def worth_completing(present_bytes: int, size_bytes: int, cache_limit_bytes: int) -> bool:
    """Whether to fetch what is missing of a file in the background."""
    return size_bytes * COMPLETE_SHARE <= present_bytes < size_bytes and fits(size_bytes, cache_limit_bytes)


def fits(size_bytes: int, cache_limit_bytes: int) -> bool:
    """Whether the cache has room for it beside what others want."""
    return size_bytes <= cache_limit_bytes * ROOM_SHARE


class Samples:
    """Small files that were read and were not here, counted in every directory that they lie below.

    Those below a directory that is brought as a whole say nothing of what lies beside it, and count no more above it.
    A directory is due once: what was found there is answered with ``measured`` or ``not_yet``, or it stays as it is.
    """

    def __init__(self) -> None:
        self._missed: LRUCache[int, int] = LRUCache(_KNOWN_DIRECTORIES)
        self._due: dict[int, float] = {}  # of those that were due before: when they are again
        self._coming: dict[int, int] = {}  # files below a directory that come with directories below it
        self._brought: set[int] = set()
        self._lately: LRUCache[int, bool] = LRUCache(_KNOWN_FILES)

    def is_new(self, ino: int) -> bool:
        """Whether this is the first piece of a file that is asked for."""
        if ino in self._lately:
            return False
        self._lately[ino] = True
        return True

    def missed(self, directories: Iterable[int]) -> list[int]:
        """One more file below all of these, the nearest first; of which it is time to look how many there are."""
        due = []
        for directory in directories:
            if directory in self._brought:
                break
            count = self._missed[directory] = self._missed.get(directory, 0) + 1
            if count >= self._due.get(directory, FIRST_LOOK_FILES):
                self._due[directory] = math.inf
                due.append(directory)
        return due

    def measured(self, directory: int, files: int) -> bool:
        """There are so many small files below it: whether the rest of them is worth having now."""
        need = max(FIRST_LOOK_FILES, (files - self._coming.get(directory, 0)) * MANY_SHARE)
        if self._missed.get(directory, 0) >= need:
            return True
        self._due[directory] = need
        return False

    def not_yet(self, directory: int) -> None:
        """Nobody knows how many there are, for now."""
        self._due[directory] = max(FIRST_LOOK_FILES, 2.0 * self._missed.get(directory, 0))

    def brought(self, directory: int, files: int, above: Iterable[int]) -> None:
        """So many small files below it are here or come; ``above`` are the directories that it lies below."""
        self._brought.add(directory)
        files -= self._coming.pop(directory, 0)
        missed = self._missed.pop(directory, 0)
        for each in above:
            self._coming[each] = self._coming.get(each, 0) + files
            self._missed[each] = max(0, self._missed.get(each, 0) - missed)
