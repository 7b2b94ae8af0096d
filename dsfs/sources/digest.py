"""The hash of a whole object that some sources have, and what it is compared with once the whole object is here."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Protocol, runtime_checkable

import anycrc
from crc32c import crc32c

from dsfs.model import SourceObject
from dsfs.sources.base import Source


class Hasher(Protocol):
    """What hashlib's objects are."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Digest:
    """``algorithm`` is md5, sha1, sha256, sha512, crc32, crc32c or crc64nvme, ``hex`` in lower case.

    ``git_blob``: with Git's header before it.

    ``disown`` is there when the source does not say that this is a hash of the content, and only uses to be one:
    whoever finds that it is not calls it, and gets no more of these from the source.
    """

    algorithm: str
    hex: str
    git_blob: bool = False
    disown: Callable[[], None] | None = field(default=None, compare=False)

    def hasher(self, size_bytes: int) -> Hasher:
        """A new one, for an object of this size. CPU for each MiB: md5 1.4 ms, sha256 and sha1 0.6, crc32 0.3,
        crc64nvme 0.08, crc32c 0.04 (one machine); hashlib lets other threads run."""
        if self.algorithm in _CRCS:
            return _Crc(*_CRCS[self.algorithm])
        head = b"blob %d\0" % size_bytes if self.git_blob else b""
        return hashlib.new(self.algorithm, head, usedforsecurity=False)

    def hex_of(self, data: memoryview) -> str:
        """What these bytes hash to. Off the FUSE loop."""
        found = self.hasher(len(data))
        found.update(data)
        return found.hexdigest()

    def is_of(self, data: memoryview) -> bool:
        """Whether these bytes are the object. Off the FUSE loop."""
        return self.hex_of(data) == self.hex


_CRC64NVME: Final = anycrc.Model("CRC64-NVME")
_CRCS: Final[dict[str, tuple[Callable[[memoryview, int], int], int]]] = {
    "crc32": (zlib.crc32, 8),
    "crc32c": (crc32c, 8),
    "crc64nvme": (lambda data, before: int(_CRC64NVME.calc(data, before)), 16),
}


class _Crc:
    def __init__(self, function: Callable[[memoryview, int], int], digits: int) -> None:
        self._function = function
        self._digits = digits
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:0{self._digits}x}"


def git_blob(oid: str) -> Digest:
    """A Git object id of 40 or 64 digits."""
    return Digest("sha1" if len(oid) == 40 else "sha256", oid, git_blob=True)


@runtime_checkable
class DigestSource(Protocol):
    """A source whose version tags say what the content's hash is."""

    def digest_of(self, obj: SourceObject) -> Digest | None:
        """From any thread. None where there is none, or where a guess (``Digest.disown``) would cost too much now."""


@runtime_checkable
class AskedDigestSource(Protocol):
    """A source that has hashes of content which it does not list."""

    def may_tell(self, obj: SourceObject) -> bool:
        """Whether it is worth asking. From any thread."""

    async def ask_digest(self, obj: SourceObject) -> Digest | None:
        """One request, for what was listed as ``obj``; None: it has none. On asyncio. Raises SourceError."""


def digest_of(source: Source, obj: SourceObject) -> Digest | None:
    """What the content of an object must hash to, if its source says so in the listing."""
    return source.digest_of(obj) if _lists_digests(type(source)) else None  # type: ignore[attr-defined]


@cache  # 20 µs each time, otherwise
def _lists_digests(kind: type) -> bool:
    return issubclass(kind, DigestSource)


def may_tell(source: Source, obj: SourceObject) -> bool:
    """Whether the source may say when it is asked."""
    return isinstance(source, AskedDigestSource) and source.may_tell(obj)


async def ask_digest(source: Source, obj: SourceObject) -> Digest | None:
    """What it says then. Raises SourceError."""
    return await source.ask_digest(obj) if isinstance(source, AskedDigestSource) else None
