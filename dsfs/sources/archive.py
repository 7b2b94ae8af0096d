"""The members of a zip or a tar as files, without its download: ``archive=true``, over one object of any source.

Version tag: that of the archive, with the member's place, size and checksum. Inflating never gives more than the size
that the archive declares, which is the size that is shown; an archive that lies about it gives an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from dsfs.errors import ConfigError, SourceChanged, SourceMissing, SourceUnsupported
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange
from dsfs.sources.archive_inflate import MemberReader
from dsfs.sources.archive_members import Member, member_of_tag
from dsfs.sources.archive_ranges import read_range
from dsfs.sources.archive_tar import BLOCK_BYTES, is_tar_header, tar_members
from dsfs.sources.archive_tree import Tree
from dsfs.sources.archive_zip import zip_members
from dsfs.sources.base import Sink, Source

_COMPRESSED: Final = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4", ".7z", ".rar", ".z")
_ADVICE: Final = "cannot be read in the middle: it is not seekable (pack the files as .zip or as plain .tar)"
_MAGIC: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")


def refuse_unseekable(name: str) -> None:
    """Raises ConfigError for a name that says "compressed as a whole"."""
    if name.lower().endswith(_COMPRESSED):
        raise ConfigError(f"archive: {name!r} {_ADVICE}")


class ArchiveSource:
    """The members of the archive at ``path`` of another source. Closes that source when it is closed itself."""

    revision = ""  # the version tags carry the archive's version

    def __init__(self, inner: Source, path: str) -> None:
        self._inner = inner
        self._path = path
        self._reader = MemberReader(inner)
        self._loading = asyncio.Lock()
        self._archive: SourceObject | None = None  # the version whose index is loaded
        self._members: dict[str, Member] = {}
        self._tree = Tree()
        self.uri = inner.uri
        self.identity = f"archive {path} of {inner.identity}"

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``. The root looks whether the archive is another one now; what is below belongs to that look."""
        await self._load(anew=not directory)
        for page in self._tree.directory(directory, self.uri):
            yield page

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        await self._load(anew=True)
        for page in self._tree.pages():
            yield page
            await asyncio.sleep(0)  # an archive of a million has other readers beside it

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        if path_parts(path) is None:
            return None
        archive = await self._load()
        if self._tree.is_directory(path):
            return SourceObject(path, Kind.DIRECTORY)
        member = self._members.get(path)
        return None if member is None else member.listed(archive)

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``. Needs no index: the tag says where the bytes are, and of which version of the archive."""
        place = member_of_tag(obj, self._path)
        if place is None:
            raise SourceChanged(f"{self.uri}: {obj.path!r} was not listed by this archive")
        archive, member = place
        await self._reader.read(archive, member, wanted, sink)

    async def close(self) -> None:
        """See ``Source``."""
        await self._inner.close()

    async def _load(self, *, anew: bool = False) -> SourceObject:
        if self._archive is None or anew:
            async with self._loading:
                if self._archive is None or anew:
                    self._archive = await self._fetch()
        return self._archive

    async def _fetch(self) -> SourceObject:
        found = await self._inner.stat(self._path)
        if found is None or found.kind is not Kind.FILE:
            raise SourceMissing(f"{self.uri}: there is no archive of this name")
        if self._archive is not None and found.version_tag == self._archive.version_tag:
            return self._archive
        if await self._is_zip(found):
            members = await zip_members(self._inner, found)
        else:
            members = await tar_members(self._inner, found)
        tree = Tree()
        for number, member in enumerate(members):
            tree.add(member.listed(found))
            if number % 2000 == 0:
                await asyncio.sleep(0)
        self._members, self._tree = {member.path: member for member in members}, tree
        return found

    async def _is_zip(self, found: SourceObject) -> bool:
        """By the name, else by the first bytes. Raises SourceUnsupported for what is neither zip nor tar."""
        name = self._path.lower()
        head = await read_range(self._inner, found, ByteRange(0, min(BLOCK_BYTES, found.size or 0)))
        if head.startswith(_MAGIC):
            raise SourceUnsupported(f"{self.uri} {_ADVICE}")
        if name.endswith(".zip") or head.startswith(b"PK"):
            return True
        if len(head) == BLOCK_BYTES and is_tar_header(head):
            return False
        raise SourceUnsupported(f"{self.uri} is neither a zip nor a tar archive")
