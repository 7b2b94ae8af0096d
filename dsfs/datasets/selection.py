"""What a glob names in a dataset: a path, a directory, or a pattern. Scans of a catalog, in threads."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice

import trio

from dsfs.cache.space import map_space, space_of
from dsfs.catalog.lookup import Catalog, Row
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


def matching(catalog_file: str, glob: str) -> Generator[tuple[str, Row], None, None]:
    """(path, row) of the files that a glob names, in order of listing; "" names all.

    Opens the catalog anew, so that a long scan does not stand in the way of look-ups.
    """
    catalog = Catalog(catalog_file)
    try:
        pattern = glob.rstrip("/")
        for path, row in catalog.files():
            if row.kind == Kind.FILE and row.size is not None and named(path, pattern):
                yield path, row
    finally:
        catalog.close()


def named(path: str, pattern: str) -> bool:
    """Whether a path is what a pattern says, or below it, or matches it; ``*`` takes a ``/`` too."""
    return not pattern or path == pattern or path.startswith(f"{pattern}/") or fnmatch.fnmatchcase(path, pattern)


def measure(catalog_file: str, glob: str, block_bytes: int) -> Totals:
    """What bringing in all that a glob names would come to."""
    files = size_bytes = space_bytes = 0
    for _path, row in matching(catalog_file, glob):
        size = row.size or 0
        files += 1
        size_bytes += size
        space_bytes += space_of(size) + map_space(size, block_bytes)
    return Totals(files, size_bytes, space_bytes)


class Batches:
    """The files that a glob names, so many at a time. Any thread may call, one at a time."""

    def __init__(self, catalog_file: str, glob: str, origin: Origin) -> None:
        self._origin = origin
        self._rows = matching(catalog_file, glob)
        self._lock = threading.Lock()

    def next(self, most: int) -> list[RemoteFile]:
        """Empty at the end."""
        with self._lock:
            return [remote_file(self._origin, path, row) for path, row in islice(self._rows, most)]

    def close(self) -> None:
        with self._lock:
            self._rows.close()  # it holds the catalog open


def remote_file(origin: Origin, path: str, row: Row) -> RemoteFile:
    """What the cache and the source call a file."""
    size = row.size or 0
    obj = SourceObject(path, Kind(row.kind), size, row.mtime_ns, row.tag)
    return RemoteFile(origin.key_of(path, row.tag), size, obj, origin)
