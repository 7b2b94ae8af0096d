"""What the index of an archive says about its members, and the version tag that carries it.

A tag is enough to read a member: a catalog that another process sealed needs no index here before its first byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from dsfs.model import Kind, SourceObject

STORED: Final = 0
DEFLATED: Final = 8
TAR: Final = -1  # "stored, and the offset is that of the data": a tar has no header between
_PLACE: Final = re.compile(r"(-?\d+):(\d+)\+(\d+):(\d+):([0-9a-f]{8}):(\d+)(:e)?")


@dataclass(frozen=True, slots=True)
class Member:
    """One name in an archive.

    ``method`` is zip's number of the compression, or TAR. ``offset`` is where the zip's local header begins, or the
    tar's data; ``stored_bytes`` what the data takes in the archive, ``size`` what it is as a file.
    """

    path: str
    kind: Kind = Kind.FILE
    mtime_ns: int = 0
    target: str | None = None
    method: int = TAR
    offset: int = 0
    stored_bytes: int = 0
    size: int = 0
    crc32: int = 0
    encrypted: bool = False

    def listed(self, archive: SourceObject) -> SourceObject:
        """The member as a source lists it. Its mode is ``mountOptions.mode``: what the archive has is its packer's."""
        if self.kind is not Kind.FILE:
            return SourceObject(self.path, self.kind, 0, self.mtime_ns, target=self.target)
        return SourceObject(self.path, Kind.FILE, self.size, self.mtime_ns, self.tag(archive))

    def tag(self, archive: SourceObject) -> str:
        """The archive's version and size, and the place, size and checksum in it."""
        place = f"{self.method}:{self.offset}+{self.stored_bytes}:{self.size}:{self.crc32:08x}:{archive.size}"
        return f"{archive.version_tag}#{place}{':e' if self.encrypted else ''}"


def member_of_tag(obj: SourceObject, archive_path: str) -> tuple[SourceObject, Member] | None:
    """The archive and the member that a version tag of ours names; None for another text."""
    archive_tag, _, place = obj.version_tag.rpartition("#")
    match = _PLACE.fullmatch(place)
    if match is None:
        return None
    method, offset, stored, size, archive_bytes = (int(match[group]) for group in (1, 2, 3, 4, 6))
    archive = SourceObject(archive_path, Kind.FILE, archive_bytes, 0, archive_tag)
    return archive, Member(
        obj.path, Kind.FILE, obj.mtime_ns, None, method, offset, stored, size, int(match[5], 16), match[7] is not None
    )


def tidy(name: str) -> tuple[str, bool]:
    """A name without a leading ``./`` and a trailing ``/``, and whether it is a directory by that.

    Absolute names and ``..`` stay as they are: the catalog skips them.
    """
    while name.startswith("./"):
        name = name[2:]
    if name == ".":
        return "", True
    return (name[:-1], True) if name.endswith("/") else (name, False)
