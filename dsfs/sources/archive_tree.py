"""A flat set of paths in memory (a list file, the members of an archive) → directories and pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dsfs.errors import SourceMissing
from dsfs.model import Kind, ListingPage, SourceObject, path_parts

PAGE_NAMES: Final = 1000


class Tree:
    """Every path is added once. Directories that are only implied are there too.

    A path that cannot be shown is among the names of the root, as it is written: the catalog skips and counts it.
    """

    def __init__(self) -> None:
        self._children: dict[str, list[SourceObject]] = {"": []}

    def add(self, obj: SourceObject) -> None:
        """Take one name."""
        parts = path_parts(obj.path)
        if parts is None:
            self._children[""].append(obj)
        elif obj.kind is Kind.DIRECTORY:
            self._enter(obj)
        else:
            parent = obj.path.rpartition("/")[0]
            if parent not in self._children:
                self._enter(SourceObject(parent, Kind.DIRECTORY))
            self._children[parent].append(obj)

    def is_directory(self, path: str) -> bool:
        """Whether there is such a directory."""
        return path in self._children

    def directory(self, directory: str, what: str) -> Iterator[ListingPage]:
        """The names in one directory, the last page complete. SourceMissing, told of ``what``, when there is none."""
        children = self._children.get(directory)
        if children is None:
            raise SourceMissing(f"{what} has no directory {directory!r}")
        for start in range(0, len(children), PAGE_NAMES):
            yield ListingPage(tuple(children[start : start + PAGE_NAMES]))
        yield ListingPage((), (directory,))

    def pages(self) -> Iterator[ListingPage]:
        """All names; a directory's own name comes before what is in it, for it was entered earlier."""
        objects: list[SourceObject] = []
        complete: list[str] = []
        for directory, children in self._children.items():
            for start in range(0, len(children), PAGE_NAMES):
                objects += children[start : start + PAGE_NAMES]
                if len(objects) >= PAGE_NAMES:
                    yield ListingPage(tuple(objects), tuple(complete))
                    objects, complete = [], []
            complete.append(directory)
            if len(complete) >= PAGE_NAMES:
                yield ListingPage(tuple(objects), tuple(complete))
                objects, complete = [], []
        yield ListingPage(tuple(objects), tuple(complete))

    def _enter(self, obj: SourceObject) -> None:
        if obj.path in self._children:
            return
        parent = obj.path.rpartition("/")[0]
        if parent not in self._children:
            self._enter(SourceObject(parent, Kind.DIRECTORY))
        self._children[parent].append(obj)
        self._children[obj.path] = []
