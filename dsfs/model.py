"""The shared words: what a source lists, what the cache is addressed by, in which phase a dataset is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum, StrEnum

NAME_MAX_BYTES = 255  # NAME_MAX in <linux/limits.h>; also what our statfs says
SIZE_MAX_BYTES = 2**63 - 1  # off_t; it is also the largest number that SQLite holds


class Kind(IntEnum):
    """What a name in a dataset is. The numbers are stored in catalogs."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One name that a source lists.

    ``path`` is relative to the dataset's root, parts separated by ``/``; bytes that are not UTF-8 are carried as
    surrogate escapes (PEP 383). ``size`` in bytes as the source says, though no file can have it (``is_size``); None
    when the listing did not say, then ``Source.stat`` must.
    ``version_tag`` is what makes this version of the file unique at its source; empty when ``size`` is None and for
    directories. ``target`` is where a symbolic link points. ``executable``: the source says that the file is a program.
    """

    path: str
    kind: Kind = Kind.FILE
    size: int | None = 0
    mtime_ns: int = 0
    version_tag: str = ""
    target: str | None = None
    executable: bool = False


@dataclass(frozen=True, slots=True)
class ListingPage:
    """Some of what a source lists, and the directories that are wholly listed once this page is taken in.

    ``refused`` are directories that the source does not let be listed, each with why.
    """

    objects: tuple[SourceObject, ...]
    complete: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


class ReadPath(StrEnum):
    """How the kernel gets a dataset's bytes (DESIGN section 3)."""

    AUTO = "auto"
    PASSTHROUGH = "passthrough"
    OPENLESS = "openless"
    DAEMON = "daemon"


class Phase(StrEnum):
    """Where a dataset stands; the words of BaizeAI/dataset."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    READY = "READY"
    FAILED = "FAILED"


class Tier(StrEnum):
    """Where a block was found; also a metric label."""

    NODE = "node"
    SHARED = "shared"
    ORIGIN = "origin"


def object_key(source_identity: str, path: str, version_tag: str) -> str:
    """The name of one version of one file in every cache: sha256 over identity, path and tag, in hex."""
    digest = hashlib.sha256()
    for part in (source_identity, path, version_tag):
        raw = part.encode("utf-8", "surrogateescape")
        digest.update(len(raw).to_bytes(8, "big"))  # lengths first: "a","bc" and "ab","c" must differ
        digest.update(raw)
    return digest.hexdigest()


def path_parts(path: str) -> tuple[str, ...] | None:
    """The names in a path, or None for one that cannot be shown in a file system.

    Refused: empty parts (``//``, a leading ``/``), ``.`` and ``..``, NUL, and names over 255 bytes. A trailing ``/``
    is the caller's to strip: it says "directory" and is no name.
    """
    parts = tuple(path.split("/"))
    return parts if all(map(is_name, parts)) else None


def is_name(part: str) -> bool:
    """Whether one part of a path can be shown: see ``path_parts``."""
    if part in ("", ".", "..") or "\0" in part:
        return False
    return len(part) * 4 <= NAME_MAX_BYTES or len(part.encode("utf-8", "surrogateescape")) <= NAME_MAX_BYTES


def is_size(size_bytes: int) -> bool:
    """Whether a file can be so large."""
    return 0 <= size_bytes <= SIZE_MAX_BYTES
