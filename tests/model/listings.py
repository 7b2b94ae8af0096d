"""Random trees as object stores have them, how a source lists them, and what they must look like as directories."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from dsfs.model import Kind, ListingPage, SourceObject

NAMES = ("a", "b", "a.b", "a-", "A", "é", "\udcff", "\udc80x")
"""Close to each other in every order, and some that are no UTF-8."""
JUNK = ("a//b", "//", "/a", "a/../b", "./a", "..", "n" * 256, "a/" + "é" * 128, "x\0y", "\ud800")

names = st.sampled_from(NAMES)
keys = st.lists(names, min_size=1, max_size=3).map("/".join)


SIZES = (0, 1, 2**62, 2**63 - 4096, 2**63 - 1, 2**63, 10**19, 2**70, -1)
"""Of names with a ``b`` in them; sums of some are more than any file can have."""


def size_of(path: str) -> int:
    """As a source says it."""
    drawn = sum(path.encode("utf-8", "surrogateescape")) * 7
    return SIZES[drawn % len(SIZES)] if "b" in path else drawn


def shown_size_of(path: str) -> int | None:
    """What the catalog must say; None for what no file can have."""
    size = size_of(path)
    return size if 0 <= size < 2**63 else None


@dataclass
class Tree:
    """``keys`` are files as the store has them; ``markers`` are keys that end in ``/``."""

    keys: frozenset[str]
    markers: frozenset[str] = frozenset()
    directories: set[str] = field(init=False)
    files: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.directories = {""} | set(self.markers)
        for key in self.keys | self.markers:
            parts = key.split("/")
            self.directories.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        self.files = set(self.keys) - self.directories  # a key `a` beside `a/b` shows the directory

    def names_in(self, directory: str) -> dict[bytes, Kind]:
        """What readdir must show."""
        prefix = f"{directory}/" if directory else ""
        shown: dict[bytes, Kind] = {}
        for kind, paths in ((Kind.FILE, self.files), (Kind.DIRECTORY, self.directories - {""})):
            for path in paths:
                name = path.removeprefix(prefix)
                if path.startswith(prefix) and "/" not in name:
                    shown[name.encode("utf-8", "surrogateescape")] = kind
        return shown

    def objects_in(self, directory: str) -> list[SourceObject]:
        """What a source says when it lists one directory: keys and common prefixes, `a` and `a/` both."""
        prefix = f"{directory}/" if directory else ""
        files = [key for key in self.keys if key.startswith(prefix) and "/" not in key.removeprefix(prefix)]
        directories = [
            path for path in self.directories - {""} if path.startswith(prefix) and "/" not in path.removeprefix(prefix)
        ]
        return [file_object(key) for key in sorted(files)] + [
            SourceObject(path, Kind.DIRECTORY) for path in sorted(directories)
        ]

    def tree_pages(self, page_size: int, order: list[int], junk: list[str]) -> list[ListingPage]:
        """A whole listing, flat, in some order; a directory is complete with the page of the last key below it."""
        objects = [file_object(key) for key in sorted(self.keys)]
        objects += [SourceObject(path, Kind.DIRECTORY) for path in sorted(self.markers)]
        objects += [SourceObject(path, size=1, version_tag="t") for path in junk]
        for at, draw in enumerate(order):
            if objects:
                one, other = at % len(objects), draw % len(objects)
                objects[one], objects[other] = objects[other], objects[one]
        pages = [objects[at : at + page_size] for at in range(0, len(objects), page_size)] or [[]]
        last = {"": len(pages) - 1}
        for number, page in enumerate(pages):
            for obj in page:
                if obj.path in junk:
                    continue
                parts = obj.path.split("/")
                for depth in range(1, len(parts) + (obj.kind is Kind.DIRECTORY)):
                    last["/".join(parts[:depth])] = number
        return [
            ListingPage(
                tuple(page), tuple(path for path, at in last.items() if at == number and path in self.directories)
            )
            for number, page in enumerate(pages)
        ]


def file_object(path: str) -> SourceObject:
    return SourceObject(path, size=size_of(path), mtime_ns=5, version_tag=f"tag of {path!a}")


trees = st.builds(
    Tree,
    st.frozensets(keys, max_size=14),
    st.frozensets(st.lists(names, min_size=1, max_size=2).map("/".join), max_size=3),
)
