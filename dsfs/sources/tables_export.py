"""Tables that an API makes on demand: fetched once, held in memory for a while, and read from there.

Such an answer has no size before it was fetched and no ranges, and two of them differ whenever the table changed
between. So it is fetched whole (up to EXPORT_BYTES_MAX), and its version tag is the checksum of what came.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from dsfs.errors import SourceChanged, SourceMissing
from dsfs.model import Kind, SourceObject
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Sink

EXPORT_BYTES_MAX: Final = 64 * MiB
HELD_BYTES_MAX: Final = 128 * MiB  # for one source; the cache on disk holds what was read
TOO_LARGE: Final = "take the download that the catalog offers, and show it from S3, HTTP or a directory"


class Exports:
    """The exports of one source, by path. One is fetched at a time: catalogs ration exports, and memory is bounded."""

    def __init__(self, fetch: Callable[[str], Awaitable[bytes]], uri: str) -> None:
        """``fetch`` gives the bytes of a path as they are now; SourceMissing when there are none."""
        self._fetch = fetch
        self._uri = uri
        self._held: OrderedDict[str, tuple[SourceObject, bytes]] = OrderedDict()
        self._turn = asyncio.Lock()

    async def stat(self, path: str) -> SourceObject | None:
        """Size and version of what an export gives now; what is held already is taken for that."""
        try:
            return (await self._export(path))[0]
        except SourceMissing:
            return None

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source.read``."""
        try:
            now, data = await self._export(obj.path)
        except SourceMissing as error:
            raise SourceChanged(f"{self._uri}: {obj.path!r} is gone") from error
        if now.version_tag != obj.version_tag:
            raise SourceChanged(f"{self._uri}: {obj.path!r} is another table now than when it was listed")
        await sink.write(wanted.start, memoryview(data)[wanted.start : wanted.stop])

    def forget(self) -> None:
        """What is held is not believed any more: somebody lists anew."""
        self._held.clear()

    async def _export(self, path: str) -> tuple[SourceObject, bytes]:
        async with self._turn:
            if path not in self._held:
                data = await self._fetch(path)
                # In a thread, and hashlib gives up the interpreter's lock: 64 MiB take 50 ms.
                digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
                tag = f"sha256:{digest}:{len(data)}"
                self._held[path] = (SourceObject(path, Kind.FILE, len(data), 0, tag), data)
                while len(self._held) > 1 and sum(len(held) for _, held in self._held.values()) > HELD_BYTES_MAX:
                    self._held.popitem(last=False)
            self._held.move_to_end(path)
            return self._held[path]
