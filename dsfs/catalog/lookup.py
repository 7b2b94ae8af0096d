"""Look-ups in a catalog: by name, by inode number, in order for readdir. Plain, indexed, microseconds each."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from cachetools import LRUCache

from dsfs.errors import CatalogError
from dsfs.model import SIZE_MAX_BYTES, Kind
from dsfs.ranges import MiB

CATALOG_LAYOUT = 1
ROOT_INO = 1
REFUSED = 2
"""In the column ``listed``: the source did not let it be looked at."""
IMPOSSIBLE = 3
"""In the column ``listed``: the source says that the file is of a size that no file can have."""
UNREADABLE = 4
"""In the column ``listed``: the source does not say of the file what it takes to read it, and does of others."""

SMALL_FILE_BYTES = 4 * MiB
"""What is larger counts as a large file where a read path is chosen."""


def _sum_of(size: str) -> str:
    high, low = f"coalesce(sum({size} >> 32), 0)", f"coalesce(sum({size} & 0xffffffff), 0)"
    return f"iif(({high} + ({low} >> 32)) >> 31, {SIZE_MAX_BYTES}, ({high} << 32) + {low})"


SUM_OF_SIZES = _sum_of("size")
"""An SQL aggregate: at most as much as SQLite holds. Its own ``sum`` fails beyond, and ``total`` is inexact."""
SUM_OF_LARGE_SIZES = _sum_of(f"iif(size > {SMALL_FILE_BYTES}, size, 0)")
"""As SUM_OF_SIZES, of large files alone."""

INO_BITS = 40
"""Of a number within a dataset, at most."""
_COLUMNS = "ino, parent, name, kind, size, mtime_ns, tag, target, executable, listed, subdirs"
_BY_NAME = f"SELECT {_COLUMNS} FROM entry WHERE parent = ? AND name = ? AND kind >= 0"
_BY_INO = f"SELECT {_COLUMNS} FROM entry WHERE ino = ? AND kind >= 0"
_AFTER = f"SELECT {_COLUMNS} FROM entry WHERE parent = ? AND name > ? AND kind >= 0 ORDER BY name LIMIT ?"
_CHILDREN = f"SELECT {_COLUMNS} FROM entry WHERE parent = ? AND kind >= 0 ORDER BY name"
_NAME_OF = "SELECT parent, name FROM entry WHERE ino = ?"
_SMALL_BELOW = f"""
    WITH RECURSIVE below (ino) AS (
        SELECT ?
        UNION ALL
        SELECT entry.ino FROM entry JOIN below ON entry.parent = below.ino WHERE kind = {Kind.DIRECTORY:d}
    )
    SELECT count(*), total(size) FROM entry JOIN below ON entry.parent = below.ino
    WHERE kind = {Kind.FILE:d} AND size BETWEEN 1 AND ?
"""


class Row(NamedTuple):
    """One entry; the columns are explained in schema.sql."""

    ino: int
    parent: int
    name: bytes
    kind: int
    size: int | None
    mtime_ns: int
    tag: str
    target: bytes | None
    executable: int
    listed: int
    subdirs: int


class Catalog:
    """One revision, for reading. Used by one thread. What a writer commits is seen by the next call."""

    def __init__(self, path: str) -> None:
        self.file = path
        self._paths: LRUCache[int, str] = LRUCache(4096)
        self._parents: LRUCache[int, int] = LRUCache(4096)  # of directories
        self._db = _open(path)
        self.sealed = False
        self.refused = 0
        """Names that the source does not let be looked at, once it is sealed."""
        self.unreadable = 0
        """Files of which it does not say what it takes to read them, once it is sealed; some may be as they were."""
        self.impossible = 0
        """Files of sizes that none can have, once it is sealed."""
        try:
            self.created_ns = int(self._meta("created_ns"))
            self.refresh()
        except sqlite3.Error as error:
            raise CatalogError(f"catalog {path}: {error}") from error

    @property
    def name(self) -> str:
        """What the file is called, which stays when the revision gets its source's name."""
        return os.path.basename(self.file).removesuffix(".sqlite")

    def refresh(self) -> None:
        """Look what the revision is called and whether it was sealed; a sealed one is read without any lock.

        But not while rows are in the log only: SQLite ignores the log of what it is told is immutable, and names
        would be missing. The log stays when the writer died before it folded it in, or a reader kept it from that.
        """
        self.revision = str(self._meta("revision"))
        if not self.sealed and int(self._meta("sealed")):
            self.sealed = True
            self.refused = int(self._meta("refused", 0))
            self.unreadable = int(self._meta("unreadable", 0))
            self.impossible = int(self._meta("impossible", 0))
            if not _is_in_log(self.file):
                self._db.close()
                self._db = _connect(self.file, immutable=True)

    def close(self) -> None:
        self._db.close()

    def lookup(self, parent: int, name: bytes) -> Row | None:
        row = self._db.execute(_BY_NAME, (parent, name)).fetchone()
        return Row._make(row) if row else None

    def row(self, ino: int) -> Row | None:
        row = self._db.execute(_BY_INO, (ino,)).fetchone()
        return Row._make(row) if row else None

    def is_listed(self, ino: int) -> bool:
        """Whether every name in this directory is known, so that a name that is not a row does not exist."""
        if self.sealed:
            return not (self.refused and self.is_refused(ino))
        row = self._db.execute("SELECT listed FROM entry WHERE ino = ?", (ino,)).fetchone()
        return bool(row and row[0]) and row[0] != REFUSED

    def is_refused(self, ino: int) -> bool:
        """Whether the source did not let an entry be looked at when all of it was listed."""
        row = self._db.execute("SELECT listed FROM entry WHERE ino = ?", (ino,)).fetchone()
        return bool(row) and row[0] == REFUSED

    @property
    def refusal(self) -> str:
        """For people: what the source does not let be looked at, what cannot be read as it is there, and what no file
        can be; "" where that is nothing."""
        said = []
        if self.refused:
            what, one = ("1 name is", "") if self.refused == 1 else (f"{self.refused} names are", ", one of them")
            said.append(f"{what} refused by the source{one}: {self._meta('refusal', '')}")
        if self.unreadable:
            what, one = ("1 file", "") if self.unreadable == 1 else (f"{self.unreadable} files", ", one of them")
            said.append(f"{what} cannot be read from the source{one}: {self._meta('unreadable_one')}")
        if self.impossible:
            what, one = (
                ("1 file has", "") if self.impossible == 1 else (f"{self.impossible} files have", ", one of them")
            )
            said.append(f"{what} a size at the source that no file can have{one}: {self._meta('impossible_one')}")
        return "; ".join(said)

    def children(self, parent: int, after: bytes, limit: int) -> list[Row]:
        """Entries of a directory in order of name, behind a name that need not be there (b"": from the start)."""
        return [Row._make(row) for row in self._db.execute(_AFTER, (parent, after, limit))]

    def name_of(self, ino: int) -> bytes | None:
        """What an entry is called in its directory; also of one that is not shown any more."""
        found = self._db.execute(_NAME_OF, (ino,)).fetchone()
        return found[1] if found else None

    def path_of(self, ino: int) -> str:
        """The path of an entry, relative to the dataset's root ("" for the root itself)."""
        names: list[bytes] = []
        above = ""
        while ino != ROOT_INO:  # a loop, as a path may have more parts than Python has frames
            known = self._paths.get(ino)
            if known is not None:
                above = known
                break
            found = self._db.execute(_NAME_OF, (ino,)).fetchone()
            if found is None:
                raise CatalogError(f"catalog {self.file} has no entry {ino}")
            ino, name = found
            names.append(name)
        below = os.fsdecode(b"/".join(reversed(names)))
        return f"{above}/{below}" if above and below else above or below

    def directory_path(self, ino: int) -> str:
        """As ``path_of``, and remembered: neighbours share it."""
        if ino == ROOT_INO:
            return ""
        known = self._paths.get(ino)
        if known is None:
            known = self.path_of(ino)
            self._paths[ino] = known
        return known

    def directories_above(self, ino: int) -> list[int]:
        """Those that an entry lies below, the nearest first, the root last; none for what is no entry here."""
        above: list[int] = []
        while ino != ROOT_INO:
            parent = self._parents.get(ino)
            if parent is None:
                found = self._db.execute(_NAME_OF, (ino,)).fetchone()
                if found is None:
                    return []
                parent = found[0]
                if above:
                    self._parents[ino] = parent
            above.append(parent)
            ino = parent
        return above

    def count_small_below(self, directory: int, largest: int) -> tuple[int, int]:
        """How many files of at most ``largest`` bytes, and not empty, lie anywhere below a directory, and their bytes.
        For scans, on a catalog opened for it."""
        files, size = self._db.execute(_SMALL_BELOW, (directory, largest)).fetchone()
        return files, int(size)

    def files_below(self, directory: int) -> Iterator[tuple[str, Row]]:
        """Every file and link anywhere below a directory with its path, directory by directory, by name. For scans, on
        a catalog opened for it."""
        waiting = [directory]
        while waiting:
            ino = waiting.pop()
            path = self.path_of(ino)
            within = []
            for values in self._db.execute(_CHILDREN, (ino,)):
                row = Row._make(values)
                if row.kind == Kind.DIRECTORY:
                    within.append(row.ino)
                else:
                    yield join(path, row.name), row
            waiting.extend(reversed(within))

    def find(self, path: str) -> Row | None:
        """The entry at a path, if it is a row already."""
        row = self.row(ROOT_INO)
        for name in os.fsencode(path).split(b"/") if path else ():
            if row is None:
                return None
            row = self.lookup(row.ino, name)
        return row

    def files(self) -> Iterator[tuple[str, Row]]:
        """Every file and link with its path, in order of number. For scans, on a catalog opened for it."""
        query = f"SELECT {_COLUMNS} FROM entry WHERE kind >= 0 AND kind != ?"
        for values in self._db.execute(query, (Kind.DIRECTORY,)):
            row = Row._make(values)
            yield join(self.directory_path(row.parent), row.name), row

    def directories(self) -> list[int]:
        """Every directory, by number. For scans, on a catalog opened for it."""
        return [ino for (ino,) in self._db.execute("SELECT ino FROM entry WHERE kind = ?", (Kind.DIRECTORY,))]

    def totals(self) -> tuple[int, int, int]:
        """Files, their bytes, and names that were skipped; what is known so far while it is not sealed."""
        if self.sealed:
            return int(self._meta("files")), int(self._meta("bytes")), int(self._meta("skipped"))
        files, size = self._db.execute(f"SELECT count(*), {SUM_OF_SIZES} FROM entry WHERE kind = 0").fetchone()
        return files, size, int(self._meta("skipped"))

    def next_ino(self) -> int:
        """The first number behind all that this revision gave, and those that were shown before it. Raises
        CatalogError."""
        try:
            (largest,) = self._db.execute("SELECT max(ino) FROM entry").fetchone()
        except sqlite3.Error as error:
            raise CatalogError(f"catalog {self.file}: {error}") from error
        return max(int(largest) + 1, int(self._meta("next_ino", 0)))

    def large_bytes(self) -> int:
        """Bytes in files of more than SMALL_FILE_BYTES. A scan, unless it was sealed by a version that counts them."""
        known = int(self._meta("large_bytes", -1))
        if known >= 0:
            return known
        if 0 < int(self._meta("largest", 0)) <= SMALL_FILE_BYTES:  # what those versions noted
            return 0
        (size,) = self._db.execute(f"SELECT {SUM_OF_LARGE_SIZES} FROM entry WHERE kind = 0").fetchone()
        return int(size)

    def _meta(self, key: str, default: int | str | None = None) -> int | str:
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone() or (default,)
        if found[0] is None:
            raise CatalogError(f"catalog {self.file} has no {key}: it is damaged; remove it to have it listed again")
        value: int | str = found[0]
        return value


def join(directory: str, name: bytes) -> str:
    """A path from a directory's path and a name in it."""
    text = os.fsdecode(name)
    return f"{directory}/{text}" if directory else text


def _open(path: str) -> sqlite3.Connection:
    try:
        return _connect(path, immutable=False)
    except CatalogError:
        # In a directory that cannot be written SQLite finds no place for the log of a catalog that has none.
        if not os.path.exists(path) or _is_in_log(path):
            raise
        db = _connect(path, immutable=True)
        if db.execute("SELECT value FROM meta WHERE key = 'sealed'").fetchone() != (1,):
            db.close()
            raise
        return db


def _is_in_log(path: str) -> bool:
    """Whether rows are in SQLite's log that are not in the file yet."""
    return os.path.exists(f"{path}-wal") and os.path.getsize(f"{path}-wal") > 0


def _connect(path: str, *, immutable: bool) -> sqlite3.Connection:
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        db = sqlite3.connect(
            f"file:{quoted}?mode={'ro&immutable=1' if immutable else 'ro'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        db.execute("PRAGMA cache_size = -8192")  # KiB: bounds memory however large the catalog is
        (layout,) = db.execute("SELECT value FROM meta WHERE key = 'layout'").fetchone() or (None,)
    except sqlite3.Error as error:
        raise CatalogError(f"catalog {path}: {error}") from error
    if layout != CATALOG_LAYOUT:
        raise CatalogError(f"catalog {path} has layout {layout!r}, this dsfs knows {CATALOG_LAYOUT}")
    return db
