"""The hash of a whole object that some sources list, and what it is compared with once the whole object is here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from dsfs.model import SourceObject
from dsfs.ranges import MiB
from dsfs.sources.base import Source

_PIECE_BYTES: Final = 1 * MiB


@dataclass(frozen=True, slots=True)
class Digest:
    """``algorithm`` as hashlib calls it, ``hex`` in lower case. ``git_blob``: with Git's header before it."""

    algorithm: str
    hex: str
    git_blob: bool = False

    def is_of(self, data: memoryview) -> bool:
        """Whether these bytes are the object. Off the FUSE loop: about 1 ms for each MiB; hashlib lets others run."""
        return self._hashed(data) == self.hex

    def is_of_file(self, fd: int, size_bytes: int) -> bool:
        """As ``is_of``, of a file. Raises OSError when it cannot be read. Blocks on the disk."""
        found = self._new(size_bytes)
        buffer = memoryview(bytearray(_PIECE_BYTES))
        position = 0
        while position < size_bytes:
            count = os.preadv(fd, [buffer[: size_bytes - position]], position)
            if count == 0:
                return False
            found.update(buffer[:count])
            position += count
        return found.hexdigest() == self.hex

    def _hashed(self, data: memoryview) -> str:
        found = self._new(len(data))
        found.update(data)
        return found.hexdigest()

    def _new(self, size_bytes: int) -> hashlib._Hash:
        head = b"blob %d\0" % size_bytes if self.git_blob else b""
        return hashlib.new(self.algorithm, head, usedforsecurity=False)


def git_blob(oid: str) -> Digest:
    """A Git object id of 40 or 64 digits."""
    return Digest("sha1" if len(oid) == 40 else "sha256", oid, git_blob=True)


@runtime_checkable
class DigestSource(Protocol):
    """A source whose version tags say what the content's hash is."""

    def digest_of(self, obj: SourceObject) -> Digest | None:
        """From any thread. None where it is not certain: an ETag that only looks like an MD5 is none."""


def digest_of(source: Source, obj: SourceObject) -> Digest | None:
    """What the content of an object must hash to, if its source says."""
    return source.digest_of(obj) if isinstance(source, DigestSource) else None
