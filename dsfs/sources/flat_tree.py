"""Directories out of a flat listing of keys: shown when first seen, complete when the listing leaves them.

Object stores list in the order of bytes, so what is in a directory stands together, and it is complete at the first key
behind it. For a server that does not keep to that (directory buckets say so) all is complete at the end.

A listing may be taken in runs, each of keys that follow one another (``key_ranges``). A directory that is open where a
run begins or ends is in two of them, so it is complete at the end as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsfs.errors import SourceUnavailable
from dsfs.model import Kind, ListingPage, SourceObject, is_name, path_parts


class FlatTree:
    """What all runs of one listing know together."""

    def __init__(self) -> None:
        self.in_order = True
        # Directories that were left, and whether they were told complete; by hash, a fifth of what paths would take.
        self._left: dict[int, bool] = {}
        self._untold: dict[str, None] = {}  # those that were left and not told

    def run(self, first: str = "") -> Run:
        """Keys that follow one another.

        ``first``: the path it begins with, if another run may have keys of the directories above that one.
        """
        return Run(self, first.count("/"))

    def finish(self) -> ListingPage:
        """All keys were here."""
        return ListingPage((), (*self._untold, ""))

    # -- for runs -------------------------------------------------------------------------------------------------

    def was_told(self, directory: str) -> bool | None:
        """Whether a directory was called complete; None for one that was not left yet."""
        return self._left.get(hash(directory))

    def leave(self, directory: str) -> None:
        if self._left.setdefault(hash(directory), False) is False:
            self._untold[directory] = None

    def tell(self, directory: str) -> None:
        self._left[hash(directory)] = True
        self._untold.pop(directory, None)


class Run:
    """Keys in the order in which they are listed."""

    def __init__(self, tree: FlatTree, shared_depth: int) -> None:
        self.overlaps = False
        """Set when keys may come that another run has too: then this one calls nothing complete any more."""
        self._tree = tree
        self._objects: list[SourceObject] = []
        self._complete: list[str] = []  # left, and told with the next page that is still in order
        self._open: list[str] = []  # paths, from the outermost in
        self._shared_depth = shared_depth  # how many of the open ones may be in the run before too
        self._last = ""
        self._directory = ""

    def add(self, obj: SourceObject) -> None:
        path, is_directory = obj.path, obj.kind is Kind.DIRECTORY
        directory, _, name = (path, "", "") if is_directory else path.rpartition("/")
        if directory != self._directory:
            parts = path_parts(directory) if directory else ()
            if parts is None or not (is_directory or is_name(name)):
                self._objects.append(obj)  # the catalog counts it; it says nothing about directories
                return
            self._change_to(_from_the_top(parts))
            self._directory = directory
        key = f"{path}/" if is_directory else path
        if key < self._last:  # the order of text is that of its bytes in UTF-8
            self._tree.in_order = False
        self._last = key
        if not is_directory:
            self._objects.append(obj)

    def take_page(self) -> ListingPage:
        """What came since the last page."""
        complete: list[str] = []
        if self._tree.in_order:
            complete, self._complete = self._complete, []
            for directory in complete:
                self._tree.tell(directory)
        page = ListingPage(tuple(self._objects), tuple(complete))
        self._objects = []
        return page

    def end(self, following: str = "") -> None:
        """No more keys; ``following`` is the path that comes next, in another run."""
        above = following.rpartition("/")[0]
        self._change_to(_from_the_top(above.split("/") if above else ()), enter=False)
        while self._open:
            self._tree.leave(self._open.pop())

    def _change_to(self, directories: list[str], *, enter: bool = True) -> None:
        shared = 0
        while shared < min(len(self._open), len(directories)) and self._open[shared] == directories[shared]:
            shared += 1
        while len(self._open) > shared:
            directory = self._open.pop()
            self._tree.leave(directory)
            if len(self._open) >= self._shared_depth and not self.overlaps:
                self._complete.append(directory)
        if self._last:
            self._shared_depth = min(self._shared_depth, shared)
        if enter:
            for directory in directories[shared:]:
                self._enter(directory)

    def _enter(self, directory: str) -> None:
        self._open.append(directory)
        told = self._tree.was_told(directory)
        if told is None:
            self._objects.append(SourceObject(directory, Kind.DIRECTORY))
        elif told and not self.overlaps:
            raise SourceUnavailable(f"the listing comes back to {directory!r}, which it had left: it is not in order")


def _from_the_top(parts: Sequence[str]) -> list[str]:
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]
