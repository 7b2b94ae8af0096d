"""HDFS over WebHDFS (also HttpFS and Knox). Version tag: length, modification time and inode number.

WebHDFS has no If-Match: a piece of up to 8 MiB is held until GETFILESTATUS, asked after its last byte, has proven that
the file is still the one that was listed. Paths below ``.snapshot`` never change, so they are what to name for data
that is written while it is read.

Users: ``user.name`` (simple authentication), a delegation token, or Basic for a gateway. Kerberos (SPNEGO) is not built
in: `hdfs fetchdt --webservice URL FILE` makes a delegation token, which goes into the Secret under ``token``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

from dsfs.errors import SourceChanged, SourceError, SourceMissing, SourceUnavailable, SourceUnsupported
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Sink, walk
from dsfs.sources.hadoop_answers import listed, name_of, object_of
from dsfs.sources.hadoop_client import WebHdfsClient
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

PIECE_BYTES: Final = 8 * MiB  # three requests a piece: OPEN at the namenode and at the datanode, then the check
_DIRECTORY: Final = SourceObject("", Kind.DIRECTORY)


class WebHdfsSource:
    """One directory or file, ``root``, of the file system behind the namenodes ``bases``; see ``WebHdfsClient``."""

    revision = ""  # a listing has no name of its own here

    def __init__(
        self,
        bases: tuple[str, ...],
        root: str,
        *,
        uri: str,
        user: str | None = None,
        token: str | None = None,
        basic: tuple[str, str] | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._client = WebHdfsClient(bases, uri=uri, user=user, token=token, basic=basic, timeouts=timeouts)
        self._root = root
        self._batches = True  # until a namenode does not know LISTSTATUS_BATCH (Hadoop before 2.9)
        self._single: bool | None = None  # whether the root is one file; None: not asked yet
        self.uri = uri
        self.identity = f"webhdfs:{','.join(sorted(bases))}{root}"

    # -- Source ---------------------------------------------------------------------------------------------------

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``. A page is what the namenode gives at once, 1000 names by default."""
        if directory and path_parts(directory) is None:
            raise SourceMissing(f"{self._shown(directory)} is no path")
        after = ""
        while True:
            entries, remaining = await self._entries(directory, after)
            objects, last = [], ""
            for entry in entries:
                name = name_of(entry)
                if name == "":  # a file was listed, and answers with itself
                    if directory or len(entries) != 1:
                        raise SourceMissing(f"{self._shown(directory)} is a file")
                    name = self._root.rpartition("/")[2]
                if name is not None:
                    last = name
                    found = object_of(entry, f"{directory}/{name}" if directory else name)
                    if found is not None:
                        objects.append(found)
            if not remaining:
                yield ListingPage(tuple(objects), (directory,))
                return
            if not last or last == after:
                raise SourceUnavailable(f"{self._shown(directory)}: the listing does not go on")
            after = last
            yield ListingPage(tuple(objects))

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        async for page in walk(self.list_directory):
            yield page

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        if path and path_parts(path) is None:
            return None
        if await self._is_single():
            single = self._root.rpartition("/")[2]
            return await self._status(path, self._root) if path == single else _DIRECTORY if not path else None
        try:
            return await self._status(path, self._full(path))
        except SourceMissing:
            if path:
                await self._status("", self._full(""))  # gone with its root is missing, and not "there is no such name"
                return None
            raise

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        full = self._root if await self._is_single() else self._full(obj.path)
        for start in range(wanted.start, wanted.stop, PIECE_BYTES):
            piece = ByteRange(start, min(start + PIECE_BYTES, wanted.stop))
            data: bytearray | None = None
            failed: SourceError | None = None
            try:
                data = await self._client.piece(full, piece)
            except (SourceUnavailable, SourceUnsupported) as error:
                failed = error  # a short answer of a file that was cut is a change
            except SourceMissing as error:
                raise SourceChanged(f"{self._shown(obj.path)} is gone") from error
            await self._check(obj, full, failed)
            assert data is not None
            await sink.write(start, data)

    async def close(self) -> None:
        """See ``Source``."""
        await self._client.close()

    # -- what is there --------------------------------------------------------------------------------------------

    async def _is_single(self) -> bool:
        if self._single is None:
            found = await self._status("", self._full(""))
            self._single = found is not None and found.kind is Kind.FILE
        return self._single

    async def _entries(self, directory: str, after: str) -> tuple[list[Mapping[str, object]], int]:
        full, what = self._full(directory), self._shown(directory)
        if self._batches:
            try:
                parameters = {"op": "LISTSTATUS_BATCH"} | ({"startAfter": after} if after else {})
                return listed(await self._client.ask(full, parameters), what)
            except SourceUnsupported:
                if after:
                    raise
                self._batches = False
        return listed(await self._client.ask(full, {"op": "LISTSTATUS"}), what)

    async def _status(self, path: str, full: str) -> SourceObject | None:
        body = await self._client.ask(full, {"op": "GETFILESTATUS"})
        status = body.get("FileStatus") if isinstance(body, dict) else None
        if not isinstance(status, dict):
            raise SourceUnavailable(f"{self.uri}: {full}: that is no status")
        return object_of(status, path)

    async def _check(self, obj: SourceObject, full: str, failed: SourceError | None) -> None:
        """That the file is still the one that was listed. ``failed``: why its bytes did not come, if they did not."""
        what = self._shown(obj.path)
        try:
            now = await self._status(obj.path, full)
        except SourceMissing as error:
            raise SourceChanged(f"{what} is gone") from error
        except SourceError:
            if failed is not None:
                raise failed from None  # the first of two failures says more
            raise
        if now is None or now.version_tag != obj.version_tag:
            raise SourceChanged(f"{what} is not the file that was listed any more")
        if failed is not None:
            raise failed

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root or "/"

    def _shown(self, path: str) -> str:
        whole = f"{self.uri}/{path}" if path else self.uri
        return whole.encode("utf-8", "backslashreplace").decode()
