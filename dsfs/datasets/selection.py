"""Which files of a dataset are meant: by a glob, which is a path, a directory or a pattern; or small ones below a
directory. Scans of a catalog, in threads."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import trio

from dsfs.cache.marks import Marks
from dsfs.cache.space import whole_space
from dsfs.catalog.diff import left
from dsfs.catalog.lookup import Catalog, Row, join
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.model import Kind, SourceObject

CATALOG = trio.CapacityLimiter(2)
"""Threads that scan catalogs."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Of what is named: files, their bytes, and what they take on a disk."""

    files: int
    bytes: int
    space_bytes: int


Found = Generator[tuple[str, Row], None, None]
"""Paths and rows. Each scan opens the catalog anew, so that it does not stand in the way of look-ups."""


def matching(catalog_file: str, glob: str) -> Found:
    """The files that a glob names, in order of listing; "" names all."""
    pattern = glob.rstrip("/")
    with closing(Catalog(catalog_file)) as catalog:
        for path, row in catalog.files():
            if row.kind == Kind.FILE and row.size is not None and named(path, pattern):
                yield path, row


def small_below(catalog_file: str, directory: int, largest: int) -> Found:
    """The files of at most ``largest`` bytes, and not empty, anywhere below a directory."""
    with closing(Catalog(catalog_file)) as catalog:
        for path, row in catalog.files_below(directory):
            if row.kind == Kind.FILE and 0 < (row.size or 0) <= largest:
                yield path, row


def left_behind(catalog_file: str, next_file: str) -> Found:
    """The files of a revision that are not, or not the same, in the next one."""
    with closing(Catalog(catalog_file)) as before, closing(Catalog(next_file)) as now:
        for ino in left(next_file, catalog_file):
            row = before.row(ino)
            if row is not None and row.kind == Kind.FILE:
                path = join(before.directory_path(row.parent), row.name)
                found = now.find(path)
                if found is None or found.tag != row.tag:
                    yield path, row


def marked(catalog_file: str, origin: Origin) -> Marks:
    """The objects of a revision's files, in a thread of trio."""
    with closing(Catalog(catalog_file)) as catalog:
        marks = Marks(catalog.totals()[0])
    for path, row in matching(catalog_file, ""):
        trio.from_thread.check_cancelled()
        marks.add(origin.key_of(path, row.tag))
    return marks


def named(path: str, pattern: str) -> bool:
    """Whether a path is what a pattern says, or below it, or matches it; ``*`` takes a ``/`` too."""
    return not pattern or path == pattern or path.startswith(f"{pattern}/") or fnmatch.fnmatchcase(path, pattern)


def measure(found: Found, block_bytes: int) -> Totals:
    """What bringing in all of it would come to."""
    files = size_bytes = space_bytes = 0
    for _path, row in found:
        size = row.size or 0
        files += 1
        size_bytes += size
        space_bytes += whole_space(size, block_bytes)
    return Totals(files, size_bytes, space_bytes)


class Batches:
    """The files that were found, so many at a time. Any thread may call, one at a time."""

    def __init__(self, found: Found, origin: Origin) -> None:
        self._origin = origin
        self._found = found
        self._lock = threading.Lock()

    def next(self, most: int) -> list[RemoteFile]:
        """Empty at the end."""
        with self._lock:
            return [remote_file(self._origin, path, row) for path, row in islice(self._found, most)]

    def close(self) -> None:
        with self._lock:
            self._found.close()  # it holds the catalog open


def remote_file(origin: Origin, path: str, row: Row) -> RemoteFile:
    """What the cache and the source call a file."""
    size = row.size or 0
    obj = SourceObject(path, Kind(row.kind), size, row.mtime_ns, row.tag)
    return RemoteFile(origin.key_of(path, row.tag), size, obj, origin)
