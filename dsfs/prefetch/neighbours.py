"""Small files that are read in the order of their directory: the next ones are brought ahead.

The caller looks names up; here are only numbers. A walk is one reader, or several that share a listing, in one
directory: it begins with a file that was not here, and is believed when the next one, or one of the next few, follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cachetools import LRUCache

from dsfs.prefetch.worth import Worth
from dsfs.ranges import MiB

LOOK_FILES = 8
"""Behind the last one read: a reader that skips so few still goes in order."""
BELIEVED_STEPS = 3
MOST_FILES, MOST_BYTES = 64, 32 * MiB
_BEHIND_FILES = 32  # readers that share a listing arrive in any order
_WALKS = 32
_FRUITLESS_WALKS = 32  # in a row, and the readers are known to jump about
_LOOK_EVERY = 8


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A file of a directory: its number, its size in bytes."""

    ino: int
    size_bytes: int


@dataclass(slots=True, eq=False)
class Walk:
    """``files`` from a little behind the reader on, in order. ``position``: the next one that a reader may come to;
    ``asked``: the next one that may be brought. ``unread``: those that were brought and not come to."""

    directory: int
    files: list[Neighbour]
    position: int = 0
    asked: int = 0
    steps: int = 0
    window: int = BELIEVED_STEPS
    at_end: bool = False
    unread: dict[int, int] = field(default_factory=dict)


class Neighbours:
    """The walks of one dataset. ``used`` and ``wasted`` bytes go to ``worth``."""

    def __init__(self, worth: Worth) -> None:
        self.worth = worth
        self._walks: LRUCache[int, Walk] = LRUCache(_WALKS)
        self._where: dict[int, Walk] = {}
        self._fruitless = 0
        self._unlooked = 0

    def worth_beginning(self) -> bool:
        """Whether to look what is behind the file that was missed: mostly not, while readers only jump about."""
        self._unlooked += 1
        if self._fruitless >= _FRUITLESS_WALKS and self._unlooked < _LOOK_EVERY:
            return False
        self._unlooked = 0
        return True

    def follows(self, ino: int) -> Walk | None:
        """The walk that comes to this file with its next step, if any."""
        return self._where.get(ino)

    def begin(self, directory: int, behind: Sequence[Neighbour]) -> None:
        """A file was read that was not here and that no walk has come to; ``behind`` it are these."""
        known = self._walks.get(directory)
        if known is not None and any(self._where.get(each.ino) is known for each in behind):
            return  # a reader a little behind the others of that walk
        if known is not None:
            self._drop(known)
        elif len(self._walks) >= _WALKS:
            self._drop(self._walks.popitem()[1])  # the one that was used least lately
        walk = self._walks[directory] = Walk(directory, list(behind))
        for each in behind:
            self._where[each.ino] = walk

    def step(self, walk: Walk, ino: int) -> list[Neighbour]:
        """A walk has come to a file; what to bring now. Then see ``wants_more``."""
        self._walks.get(walk.directory)  # used just now
        place = next(place for place, each in enumerate(walk.files) if each.ino == ino)
        self.worth.note(walk.unread.pop(ino, 0), 0)
        if place < walk.position:
            return []
        walk.steps += 1
        walk.position = place + 1
        walk.asked = max(walk.asked, walk.position)
        self._forget_behind(walk)
        if walk.steps < BELIEVED_STEPS:
            return []
        self._fruitless = 0
        walk.window = min(2 * walk.window, MOST_FILES)
        stop = walk.position + self.worth.allowed(walk.window)
        ahead = walk.files[walk.position : stop]
        size = 0
        for count, each in enumerate(ahead):
            size += each.size_bytes
            if size > MOST_BYTES:
                del ahead[max(count, 1) :]
                break
        asked, walk.asked = walk.asked, max(walk.asked, walk.position + len(ahead))
        brought = walk.files[asked : walk.asked]
        walk.unread.update((each.ino, each.size_bytes) for each in brought)
        return brought

    def wants_more(self, walk: Walk) -> tuple[int, int] | None:
        """Behind which number the next files of the directory are due, and how many of them; None: not now."""
        left = len(walk.files) - walk.position
        if walk.at_end or left > max(LOOK_FILES, 2 * walk.window) or not walk.files:
            return None
        # among many, readers that jump about would meet three of them soon
        return walk.files[-1].ino, 2 * MOST_FILES if walk.steps >= BELIEVED_STEPS else LOOK_FILES

    def more(self, walk: Walk, behind: Sequence[Neighbour]) -> None:
        """The next files of the directory; none at its end, or where so few names are none of small files."""
        walk.at_end = not behind and walk.steps >= BELIEVED_STEPS
        for each in behind:
            walk.files.append(each)
            self._where[each.ino] = walk

    def end(self) -> None:
        """Nobody reads any more."""
        for walk in list(self._walks.values()):
            self._drop(walk)

    def _forget_behind(self, walk: Walk) -> None:
        gone = walk.position - _BEHIND_FILES
        if gone > _BEHIND_FILES:
            self._count(walk, gone)
            del walk.files[:gone]
            walk.position -= gone
            walk.asked -= gone

    def _drop(self, walk: Walk) -> None:
        self._fruitless += walk.steps < BELIEVED_STEPS
        self._count(walk, len(walk.files))
        self._walks.pop(walk.directory, None)

    def _count(self, walk: Walk, stop: int) -> None:
        for each in walk.files[:stop]:
            self.worth.note(0, walk.unread.pop(each.ino, 0))
            if self._where.get(each.ino) is walk:
                del self._where[each.ino]
