"""Entries of a hub's listing become pages of ours: directories out of paths, filters, one level out of a whole tree."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing

from dsfs.errors import SourceMissing
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.sources.hub import Filters

Entries = AsyncGenerator[list[SourceObject], None]
"""Pages of a listing, in any order, paths relative to the dataset's root."""


class Shown:
    """Which paths a dataset shows: those below ``root`` (a directory of the repository, "" for all) that filters let.

    With filters a directory is there because a file in it is: git knows no other directories, and the hubs' own tools
    make none for files they leave out.
    """

    def __init__(self, root: str, filters: Filters) -> None:
        self.root = root
        self.filters = filters

    def inner(self, path: str) -> str | None:
        """The path in the dataset of a path in the repository; None for what is not below the root."""
        if not self.root:
            return path
        return path[len(self.root) + 1 :] if path.startswith(f"{self.root}/") else None

    def outer(self, path: str) -> str:
        """The path in the repository."""
        return f"{self.root}/{path}" if self.root and path else self.root or path

    def allow(self, obj: SourceObject) -> bool:
        if not self.filters:
            return True
        return obj.kind is not Kind.DIRECTORY and self.filters.allow(self.outer(obj.path))


async def tree_pages(entries: Entries, shown: Shown) -> AsyncIterator[ListingPage]:
    """A flat listing of all. Hubs promise no order (huggingface_hub: ``list_repo_tree``): all is complete at the end.

    Keeps the names of directories, and of no files.
    """
    directories: dict[str, None] = {}
    async for page in entries:
        objects: list[SourceObject] = []
        for obj in page:
            if not shown.allow(obj):
                continue
            for directory in _directories_of(obj):
                if directory not in directories:
                    directories[directory] = None
                    objects.append(SourceObject(directory, Kind.DIRECTORY))
            if obj.kind is not Kind.DIRECTORY:
                objects.append(obj)
        yield ListingPage(tuple(objects))
    yield ListingPage((), (*directories, ""))


async def directory_pages(entries: Entries, shown: Shown, directory: str, what: str) -> AsyncIterator[ListingPage]:
    """The names directly in a directory, from a listing of it (with filters: of all below it).

    Raises SourceMissing when nothing is there and it is not the root: git has no empty directories.
    """
    below = f"{directory}/" if directory else ""
    seen: set[str] = set()
    async for page in entries:
        objects: list[SourceObject] = []
        for obj in page:
            if not obj.path.startswith(below) or obj.path == below or not shown.allow(obj):
                continue
            name, slash, _ = obj.path[len(below) :].partition("/")
            child = SourceObject(below + name, Kind.DIRECTORY) if slash else obj
            if child.path not in seen:
                seen.add(child.path)
                objects.append(child)
        yield ListingPage(tuple(objects))
    if not seen and directory:
        raise SourceMissing(f"{what}: there is no directory {directory!r}")
    yield ListingPage((), (directory,))


async def any_shown(entries: Entries, shown: Shown) -> bool:
    """Whether a listing has anything that is shown."""
    async with aclosing(entries):
        async for page in entries:
            if any(shown.allow(obj) for obj in page):
                return True
    return False


def _directories_of(obj: SourceObject) -> Iterable[str]:
    """From the outermost in; those of a name that cannot be shown are left out: the catalog counts that name alone."""
    parts = path_parts(obj.path)
    if parts is None:
        return ()
    depth = len(parts) if obj.kind is Kind.DIRECTORY else len(parts) - 1
    return ["/".join(parts[: i + 1]) for i in range(depth)]
