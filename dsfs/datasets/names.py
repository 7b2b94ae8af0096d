"""What a dataset's names stand for: looked up in the revisions that readers have seen, or asked of the source."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import TypeVar

import structlog
import trio

from dsfs.bridge import Bridge
from dsfs.catalog import crawl
from dsfs.catalog.lookup import IMPOSSIBLE, UNREADABLE, Catalog, Row, join
from dsfs.catalog.writer import CatalogWriter
from dsfs.datasets.once import Once
from dsfs.datasets.selection import remote_file
from dsfs.errors import CatalogError, ConfigError, SizeImpossible, SourceRefused, SourceUnsupported
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.patience import patiently
from dsfs.model import Kind, SourceObject

log = structlog.get_logger()

_T = TypeVar("_T")

_OLDER_REVISIONS = 16  # whose open files can still be read, unless their bytes are gone
_REMEMBERED_ROWS = 4096


class Names:
    """File side only. ``answered`` is set once there is something to look at, or the source has failed."""

    def __init__(self, dataset: str, origin: Origin, bridge: Bridge, timeout_s: float) -> None:
        self.answered = trio.Event()
        self.writer: CatalogWriter | None = None
        """Of the first revision, until it is sealed: it takes what the source is asked for meanwhile."""
        self.on_refused: Callable[[], None] = lambda: None
        """Called when somebody is told that the source refused something when it was listed."""
        self._dataset = dataset
        self._origin = origin
        self._bridge = bridge
        self._timeout_s = timeout_s
        self._catalog: Catalog | None = None
        self._older: list[Catalog] = []
        self._rows: dict[int, Row] = {}
        self._listing = Once()
        self._resolving = Once()

    # -- which revisions ------------------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """The revision that is shown."""
        if self._catalog is None:
            raise ConfigError(f"{self._dataset}: no revision is open")
        return self._catalog

    @property
    def known(self) -> tuple[Catalog, ...]:
        """The revisions that readers may have seen numbers of, the one that is shown first."""
        return (self.catalog, *self._older)

    def open(self, file: str, older: Sequence[str] = ()) -> None:
        """Begin with the catalog of a revision, and of those that were shown before it, as far as they are there."""
        self._catalog = Catalog(file)
        for path in older:
            try:
                catalog = Catalog(path)
                catalog.next_ino()
                self._older.append(catalog)
            except CatalogError as error:  # its open files end, and nothing else
                log.warning("older revision cannot be read", dataset=self._dataset, reason=str(error))

    def reopen(self, file: str, older: Sequence[str]) -> bool:
        """As ``open``, of what a server before this one has shown, and list on what is not whole; False when that is
        there no more, and with it what its numbers mean."""
        try:
            with closing(Catalog(file)) as catalog:
                catalog.next_ino()
                if not catalog.sealed:
                    self.writer = CatalogWriter(file)
        except CatalogError as error:
            log.warning("what was shown is lost, it is listed anew", dataset=self._dataset, reason=str(error))
            return False
        self.open(file, older)
        return True

    def show_instead(self, file: str) -> None:
        """Show another revision in place of one that nobody has seen anything of."""
        self.catalog.close()
        self._catalog = Catalog(file)
        self._rows.clear()

    def show_next(self, file: str) -> None:
        """Show another revision; the one before it can still be looked at by its numbers."""
        self._older.insert(0, self.catalog)
        self._catalog = Catalog(file)
        self._rows.clear()
        for forgotten in self._older[_OLDER_REVISIONS:]:
            forgotten.close()
        del self._older[_OLDER_REVISIONS:]

    # -- looking --------------------------------------------------------------------------------------------------

    async def list_directory(self, ino: int) -> None:
        """Have every name of a directory in the catalog. Raises SourceError."""
        await self._answer()
        if not self.catalog.is_listed(ino):
            await self._listing.do(ino, lambda: self._list(ino))
            self._check_refused(ino)

    async def find(self, parent: int, name: bytes) -> Row | None:
        """One name of a directory, known or not; None when it is certain that there is none. Raises SourceError."""
        await self._answer()
        listed = self.catalog.is_listed(parent)  # before the look: the crawl goes on beside this
        row = self.catalog.lookup(parent, name)
        if listed:
            if row is not None and row.size is None:
                await self.resolve(row)
                self._check_refused(row.ino)
                row = self.catalog.lookup(parent, name)
            return row
        if row is None:
            self._check_refused(parent)
        try:
            path = join(self.catalog.directory_path(parent), name)
            path.encode("utf-8", "surrogateescape")
        except UnicodeError:
            return None
        writer = self.writer
        if writer is not None and await self._patiently(lambda: self._find(writer, path)) is None:
            return None
        row = self.catalog.lookup(parent, name)
        if row is None:  # all was sealed while the source was asked
            self._check_refused(parent)
        elif row.size is None:
            self._check_refused(row.ino)
        return row

    def _check_refused(self, ino: int) -> None:
        """Raises SourceRefused for what the source did not let be looked at when all of it was listed, SizeImpossible
        for a file of a size that none can have, SourceUnsupported for one of which it did not say how it can be read.
        """
        row = self.catalog.row(ino)
        if row is not None and row.listed == IMPOSSIBLE:
            self.on_refused()
            path = self.catalog.path_of(ino)
            raise SizeImpossible(f"{self._dataset}: at its source {path!r} is of a size that no file can have")
        if row is not None and row.listed == UNREADABLE:
            self.on_refused()
            path = self.catalog.path_of(ino)
            raise SourceUnsupported(f"{self._dataset}: {path!r} cannot be read from its source (why: dsfs status)")
        if self.catalog.is_refused(ino):
            self.on_refused()
            remedy = f"let it be read, then: dsfs dataset resync {self._dataset}"
            raise SourceRefused(f"{self._dataset}: the source refused {self.catalog.path_of(ino)} ({remedy})")

    async def _answer(self) -> None:
        """Wait until there is something to look at. Raises SourceTimeout."""
        with trio.move_on_after(self._timeout_s):
            await self.answered.wait()
        if not self.answered.is_set():
            raise self._origin.no_answer(self._timeout_s)

    async def resolve(self, row: Row) -> None:
        """Learn size and version of a file of which only the name is known; those behind it come next. Raises
        SourceError."""
        await self._resolving.do(row.ino, lambda: self._resolve(row))

    async def _list(self, ino: int) -> None:
        writer = self.writer
        if writer is not None:
            path = self.catalog.directory_path(ino)
            scope = trio.CancelScope()

            def progressed() -> None:
                scope.deadline = trio.current_time() + self._timeout_s  # a huge directory may take its time

            async def work() -> None:
                with self._origin.held() as source:
                    await self._bridge.call(
                        crawl.list_directory, source, writer, path, lambda: self._bridge.soon(progressed)
                    )

            await patiently(self._origin, work, self._timeout_s, scope)

    async def _find(self, writer: CatalogWriter, path: str) -> SourceObject | None:
        with self._origin.held() as source:
            return await self._bridge.call(crawl.find, source, writer, path)

    async def _resolve(self, row: Row) -> None:
        writer = self.writer
        if writer is None:
            return
        writer.want(row.parent, row.name)
        path = join(self.catalog.directory_path(row.parent), row.name)

        async def work() -> None:
            with self._origin.held() as source:
                await self._bridge.call(crawl.resolve, source, writer, [path])

        await self._patiently(work)

    async def _patiently(self, call: Callable[[], Awaitable[_T]]) -> _T:
        return await patiently(self._origin, call, self._timeout_s)

    def row(self, ino: int) -> Row | None:
        """An entry of the revision that is shown, or of one before it that somebody may have open."""
        known = self._rows.get(ino)
        if known is not None:
            return known
        for catalog in self.known:
            row = catalog.row(ino)
            if row is not None:
                return self._remembered(row)
        return None

    def lookup(self, parent: int, name: bytes) -> Row | None:
        """A name of the revision that is shown, if it is a row already."""
        row = self.catalog.lookup(parent, name)
        return None if row is None else self._remembered(row)

    def _remembered(self, row: Row) -> Row:
        """Who looks a name up opens it next. A file whose size is known stays as it is for the whole revision."""
        if row.kind == Kind.FILE and row.size is not None:
            if len(self._rows) >= _REMEMBERED_ROWS:
                self._rows.clear()
            self._rows[row.ino] = row
        return row

    def children(self, parent: int, after_ino: int, limit: int) -> list[Row]:
        """Entries of a directory in order of name, behind the one with a number (0: from the start).

        The revision may have been swapped since that one was listed: its name is looked for in older ones too, so that
        a readdir under way goes on and never ends early. Raises OSError (ESTALE) for a number that nobody knows.
        """
        after = b""
        if after_ino:
            names = (catalog.name_of(after_ino) for catalog in self.known)
            known = next((name for name in names if name is not None), None)
            if known is None:
                raise OSError(errno.ESTALE, "a directory position of a revision that is not known any more")
            after = known
        return self.catalog.children(parent, after, limit)

    def path_of(self, ino: int) -> str:
        """Where an entry is, or was. Raises CatalogError for a number that was never shown."""
        if self._older and self.catalog.row(ino) is None:
            for catalog in self._older:
                if catalog.row(ino) is not None:
                    return catalog.path_of(ino)
        return self.catalog.path_of(ino)

    def any_file(self) -> SourceObject | None:
        """A file with at least one byte in it, if there is one. Scans the catalog: not for the loop."""
        catalog = Catalog(self.catalog.file)
        try:
            for path, row in catalog.files():
                if row.kind == Kind.FILE and row.size:
                    return remote_file(self._origin, path, row).obj
            return None
        finally:
            catalog.close()

    def remote_file(self, row: Row) -> RemoteFile:
        """What the cache and the source call a file."""
        return remote_file(self._origin, self.path_of(row.ino), row)
