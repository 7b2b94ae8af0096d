"""How much of the shared tier is in use, and what goes when it is too much, without a leader.

No node knows what the others write, so each counts: directory by directory, again and again, as fast as a small share
of its time allows. Keys are hashes, so directories fill evenly, and those not counted yet are taken to be like the
others. Any node may evict, and two that evict at once are harmless: a reader whose file vanishes goes to the origin.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from dsfs.cache.shared_layout import PUBLIC, opened_directory
from dsfs.cache.shared_lease import SUFFIX

FRESH_S = 60.0
"""What was used within this is not evicted: other nodes are about to read it."""
FORGOTTEN_S = 3600.0
"""A lease or an unfinished file that nobody touched for so long belongs to nobody."""
_SAMPLE = 16
_DIRECTORY = re.compile("[0-9a-f]{2}")
_FILE = re.compile(rf"[0-9a-f]{{64}}\.[0-9a-f]+({re.escape(SUFFIX)}|\.[0-9a-z-]+\.new)?")
"""What a file of ours can be called (``Group.path``). What is called otherwise is not, wherever it lies."""
_NONE_OF_OURS = (FileNotFoundError, PermissionError, NotADirectoryError)
"""Gone, an area of somebody else, a stray file or a link."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the shared tier; its path is below the root. ``used_ns`` is on that file system's clock."""

    path: str
    space_bytes: int
    used_ns: int

    @property
    def published(self) -> bool:
        return not self.path.endswith((SUFFIX, ".new"))


def directories(root: str) -> list[str]:
    """Every directory that may hold groups, of all areas that we may look into; below the root. Raises OSError."""
    areas = [PUBLIC, *(f"private/{name}" for name in _names(root, "private"))]
    return [f"{area}/{name}" for area in areas for name in _names(root, area) if _DIRECTORY.fullmatch(name)]


@contextmanager
def _opened_to_list(root: str, below: str) -> Iterator[int]:
    with opened_directory(root, below) as way:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=way)
        try:
            yield fd
        finally:
            os.close(fd)


def _names(root: str, below: str) -> list[str]:
    try:
        with _opened_to_list(root, below) as fd:
            return os.listdir(fd)
    except _NONE_OF_OURS:
        return []


def entries(root: str, directory: str) -> list[Entry]:
    """The files in one directory below the root. Raises OSError."""
    found = []
    try:
        with _opened_to_list(root, directory) as fd, os.scandir(fd) as scan:
            for each in scan:
                if not _FILE.fullmatch(each.name):
                    continue
                try:
                    if not each.is_file(follow_symlinks=False):
                        continue
                    info = each.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # evicted by another node
                # not every file system counts blocks
                space_bytes = max(info.st_blocks * 512, info.st_size)
                found.append(Entry(f"{directory}/{each.name}", space_bytes, info.st_mtime_ns))
    except _NONE_OF_OURS:
        return []
    return found


def choose(candidates: Iterable[Entry], need_bytes: int, now_ns: int, fresh_s: float = FRESH_S) -> list[Entry]:
    """What to remove: all that was forgotten, then the least recently used, until ``need_bytes`` are covered.

    Nothing that is fresh, and no lease or unfinished file that somebody may be working on.
    """
    chosen, freed_bytes = [], 0
    published = []
    for entry in candidates:
        if entry.published:
            published.append(entry)
        elif now_ns - entry.used_ns > FORGOTTEN_S * 1e9:
            chosen.append(entry)
            freed_bytes += entry.space_bytes
    for entry in sorted(published, key=lambda each: each.used_ns):
        if freed_bytes >= need_bytes or now_ns - entry.used_ns < fresh_s * 1e9:
            break
        chosen.append(entry)
        freed_bytes += entry.space_bytes
    return chosen


def remove(root: str, victims: Iterable[Entry]) -> int:
    """Unlink; the bytes that were freed by us. Raises OSError when no file can be."""
    in_directory: dict[str, list[Entry]] = {}
    for entry in victims:
        in_directory.setdefault(os.path.dirname(entry.path), []).append(entry)
    freed_bytes = 0
    refused: OSError | None = None
    for directory, inside in in_directory.items():
        try:
            with opened_directory(root, directory) as fd:
                for entry in inside:
                    try:
                        os.unlink(os.path.basename(entry.path), dir_fd=fd)
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        refused = error  # one alone does not keep those behind it
                        continue
                    freed_bytes += entry.space_bytes
        except (FileNotFoundError, NotADirectoryError):
            continue  # it was put aside since we looked
        except OSError as error:
            refused = error
    if refused is not None and not freed_bytes:
        raise refused
    return freed_bytes


class Usage:
    """The estimate. Not for several threads at once."""

    def __init__(self, order: random.Random) -> None:
        self._order = order
        self._counted: dict[str, int] = {}
        self._known: list[str] = []
        self._to_count: list[str] = []

    @property
    def bytes(self) -> int:
        """In use, by what is known now."""
        return self.guess(self._counted)

    def guess(self, counted: Mapping[str, int]) -> int:
        """What all directories hold, from what some of them do."""
        return sum(counted.values()) * len(self._known) // len(counted) if counted else 0

    def counted(self, directory: str) -> int:
        """What one directory holds, by what is known now; in bytes."""
        return self._counted.get(directory, 0)

    def next(self) -> str | None:
        """Which directory to count now; None: begin another round."""
        return self._to_count.pop() if self._to_count else None

    def begin(self, found: list[str]) -> None:
        """Another round over what is there now, in an order of its own, so that nodes do not walk in step."""
        self._known = found
        self._counted = {each: self._counted[each] for each in found if each in self._counted}
        self._to_count = list(found)
        self._order.shuffle(self._to_count)

    def count(self, directory: str, found: Iterable[Entry]) -> None:
        """What a directory holds now."""
        self._counted[directory] = sum(entry.space_bytes for entry in found)

    def add(self, directory: str, size_bytes: int) -> None:
        """We published so much there (or, below zero, removed it)."""
        if directory in self._counted:
            self._counted[directory] = max(0, self._counted[directory] + size_bytes)
        elif directory not in self._known:
            self._known.append(directory)
            self._counted[directory] = size_bytes

    def sample(self, but: Collection[str]) -> list[str]:
        """A few directories to look for victims in, others than these."""
        left = [each for each in self._known if each not in but]
        return self._order.sample(left, min(_SAMPLE, len(left)))
