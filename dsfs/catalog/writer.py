"""Rows from listings: what was listed first stays, so that what a reader saw once is true for the whole revision."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import Any, NamedTuple

import structlog
from cachetools import LRUCache

from dsfs.catalog.lookup import CATALOG_LAYOUT, IMPOSSIBLE, ROOT_INO, SUM_OF_LARGE_SIZES, SUM_OF_SIZES
from dsfs.catalog.refusals import Refusals
from dsfs.errors import CatalogError, SourceError
from dsfs.model import Kind, ListingPage, SourceObject, is_name, is_size, path_parts

log = structlog.get_logger()

# What is there stays; but a directory wins over a file of its name (a key `a` beside `a/b`), and a row of which only
# the name was known takes its size, time and tag.
_INSERT = """
    INSERT INTO entry (parent, name, kind, size, mtime_ns, tag, target, executable, listed)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (parent, name) DO UPDATE SET
        kind = excluded.kind, size = excluded.size, mtime_ns = excluded.mtime_ns, tag = excluded.tag,
        executable = excluded.executable, listed = excluded.listed
    WHERE (entry.kind = 0 AND excluded.kind = 1) OR (entry.size IS NULL AND excluded.kind = entry.kind)
"""


_MTIME_LIMIT_NS = 2**63 - 1  # what SQLite can hold, the year 2262; some servers say 9999 for "never expires"
_WANTED = 64


class _Directory(NamedTuple):
    ino: int
    listed: bool


class CatalogWriter:
    """The one writer of a catalog that is not sealed yet. Any thread may call; calls exclude each other and block."""

    def __init__(self, path: str) -> None:
        self.file = path
        self._lock = threading.RLock()  # who holds it may ask for a path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA cache_size = -16384")
            (self._created_ns,) = self._db.execute("SELECT value FROM meta WHERE key = 'created_ns'").fetchone()
        except sqlite3.Error as error:
            raise CatalogError(f"catalog {path} cannot be written: {error}") from error
        self._directories: LRUCache[tuple[str, ...], _Directory] = LRUCache(8192)
        self._said: set[str] = set()
        self._sealed = False  # then all that may be asked is in the catalog, and who comes late looks there
        self._revision = ""
        self.refusals = Refusals()  # to be looked at from elsewhere, no more
        self.wanted: deque[tuple[int, bytes]] = deque(maxlen=_WANTED)
        """Directories, and from which name on somebody looks there."""
        self.reshaped: list[int] = []
        """Once it is sealed: directories in which a look at a name has shown that it is none, or a directory."""

    @classmethod
    def create(cls, path: str, revision: str, created_ns: int, first_ino: int = ROOT_INO + 1) -> CatalogWriter:
        """A new catalog with nothing but its root; numbers are given from ``first_ino`` on.

        Raises CatalogError when the disk refuses.
        """
        try:
            temporary = f"{path}.new"
            if os.path.exists(temporary):
                os.unlink(temporary)
            db = sqlite3.connect(temporary, isolation_level=None)
            db.execute("PRAGMA journal_mode = WAL")  # readers look while the crawl writes
            db.executescript(resources.files("dsfs.catalog").joinpath("schema.sql").read_text())
            db.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [
                    ("layout", CATALOG_LAYOUT),
                    ("revision", revision),
                    ("created_ns", created_ns),
                    ("sealed", 0),
                    ("files", 0),
                    ("bytes", 0),
                    ("skipped", 0),
                ],
            )
            db.execute(
                "INSERT INTO entry (ino, parent, name, kind, size, mtime_ns) VALUES (?, 0, x'', ?, 0, ?)",
                (ROOT_INO, Kind.DIRECTORY, created_ns),
            )
            if first_ino > ROOT_INO + 1:  # SQLite goes on behind the largest number; this row goes with the seal
                db.execute(
                    "INSERT INTO entry (ino, parent, name, kind, size) VALUES (?, 0, x'00', -1, 0)", (first_ino - 1,)
                )
                db.execute("INSERT INTO meta VALUES ('next_ino', ?)", (first_ino,))
            db.close()  # the last connection to close empties the WAL, so the rename moves all of it
            os.rename(temporary, path)
            return cls(path)
        except (sqlite3.Error, OSError) as error:
            raise CatalogError(f"catalog {path} cannot be made: {error}") from error

    def begin(self) -> None:
        """All is listed from the start: what was skipped before, or refused, will be so again."""
        with self._lock, self._open_transaction() as is_open:
            if is_open:
                self.refusals.clear()
                self._db.execute("UPDATE meta SET value = 0 WHERE key = 'skipped'")

    def add(self, page: ListingPage, *, of_all: bool = True) -> None:
        """Take in a page of a listing. Directories that are listed already keep exactly the names they have.

        ``of_all``: of one of the whole tree, which counts what is skipped.
        """
        for path, why in page.refused:
            self.refuse(path, why)
        with self._lock, self._open_transaction() as is_open:
            if not is_open:
                return
            rows = []
            skipped = 0
            directories: dict[str, _Directory | None] = {}  # of this page: mostly few, with many names each
            for obj in page.objects:
                above, _, name = obj.path.rpartition("/")
                parts = _names(above) if above and above not in directories else ()
                if parts is None or not _is_name(name) or (not above and "/" in obj.path):
                    skipped += 1
                    self._say_once("names that cannot be paths are skipped", obj.path)
                    continue
                if above not in directories:
                    directories[above] = self._directory(parts)
                parent = directories[above]
                if parent is not None and not parent.listed:
                    rows.append(self._values(parent.ino, name, obj))
            self._db.executemany(_INSERT, rows)
            if skipped and of_all:
                self._db.execute("UPDATE meta SET value = value + ? WHERE key = 'skipped'", (skipped,))
            for path in page.complete:
                self._mark_listed(path)

    def add_found(self, found: Mapping[str, SourceObject | None]) -> None:
        """Take in names that were asked for, before their directory is listed, or whose size was not known yet.

        None for one that a listing had and that is not there when looked at closely: a dead link in an index.
        """
        with self._lock, self._open_transaction() as is_open:
            if not is_open:
                return
            for path, obj in found.items():
                self.refusals.forget(path)
                parts = _names(path)
                parent = self._directory(parts[:-1]) if parts else None
                if parts and parent is not None:
                    self._add_one(parent, parts[-1], obj)

    def _add_one(self, parent: _Directory, name: str, obj: SourceObject | None) -> None:
        if obj is None:
            self._db.execute(
                # kept, as a readdir that is under way may go on behind it
                "UPDATE entry SET kind = -1, size = 0 WHERE parent = ? AND name = ? AND size IS NULL",
                (parent.ino, os.fsencode(name)),
            )
        elif not parent.listed:
            self._db.execute(_INSERT, self._values(parent.ino, name, obj))
        elif obj.size is not None:
            _parent, raw_name, kind, size, mtime_ns, tag, *_rest, listed = self._values(parent.ino, name, obj)
            self._db.execute(
                "UPDATE entry SET kind = ?, size = ?, mtime_ns = ?, tag = ?, listed = ? "
                "WHERE parent = ? AND name = ? AND size IS NULL",
                (kind, size, mtime_ns, tag, listed, parent.ino, raw_name),
            )
        if obj is not None and obj.kind is Kind.DIRECTORY:
            self._db.execute(_SET_FOUND, (parent.ino, os.fsencode(name)))

    def refuse(self, path: str, why: str, of_name: type[SourceError] | None = None) -> None:
        """See ``Refusals.add``."""
        with self._lock:
            self.refusals.add(path, why, of_name)

    def refusal(self) -> SourceError | None:
        """What was said of the first name that was refused; None where none was."""
        with self._lock:
            return self.refusals.first

    def refuses_single_names(self) -> bool:
        """Whether there is a file that is not refused, and not very many that are."""
        query = f"SELECT 1 FROM entry WHERE kind IN ({Kind.FILE:d}, {Kind.SYMLINK:d}) AND size IS NOT NULL LIMIT 1"
        return not self.refusals.are_many and bool(self._select(query))

    def want(self, parent: int, name: bytes) -> None:
        """Somebody looks at a name whose size is not known: those behind it in its directory come first."""
        self.wanted.append((parent, name))

    def next_wanted(self) -> tuple[int, bytes] | None:
        """The latest of those, and it is none of them any more."""
        return self.wanted.pop() if self.wanted else None

    def unresolved_in(self, parent: int, first: bytes, limit: int) -> list[tuple[int, bytes]]:
        """(parent, name) of files of one directory whose size is not known, from a name on."""
        query = f"SELECT parent, name FROM entry WHERE parent = ? AND name >= ? AND {_UNKNOWN} ORDER BY name LIMIT ?"
        return self._select(query, parent, first, limit)

    def unresolved(self, after: int, limit: int, order: str = "ASC") -> list[tuple[int, int, bytes]]:
        """(ino, parent, name) of files whose size is not known, with numbers above one; DESC: the last of them."""
        query = f"SELECT ino, parent, name FROM entry WHERE ino > ? AND {_UNKNOWN} ORDER BY ino {order} LIMIT ?"
        return self._select(query, after, limit)

    def _select(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            return [] if self._sealed else self._db.execute(query, values).fetchall()

    def is_listed(self, path: str) -> bool:
        """Whether every name of a directory is here."""
        with self._lock:
            if self._sealed:
                return True
            ino = ROOT_INO
            (listed,) = self._db.execute("SELECT listed FROM entry WHERE ino = ?", (ino,)).fetchone()
            for name in os.fsencode(path).split(b"/") if path else ():
                found = self._db.execute(_FIND, (ino, name)).fetchone()
                if found is None:
                    return False
                ino, _kind, listed = found
            return bool(listed)

    def found_directories(self) -> list[str]:
        """Those that were found to be some when somebody looked at their names, and that no listing has had since."""
        with self._lock:
            query = "SELECT ino FROM entry WHERE kind = 1 AND listed = 0 AND executable = 1"
            many = self.refusals.are_many  # then it fails, however many more there are
            found = [] if self._sealed or many else self._db.execute(query).fetchall()
        return [path for (ino,) in found if not self.refusals.of_listing(path := self.path_of(ino))]

    def name_revision(self, revision: str) -> None:
        """Take the source's own name for what is listed, instead of the time."""
        with self._lock:
            if revision != self._revision and not self._sealed:
                with self._transaction():
                    self._db.execute("UPDATE meta SET value = ? WHERE key = 'revision'", (revision,))
                self._revision = revision

    def path_of(self, ino: int) -> str:
        """The path of a directory, from its number."""
        names: list[bytes] = []
        with self._lock:
            while ino != ROOT_INO:
                ino, name = self._db.execute("SELECT parent, name FROM entry WHERE ino = ?", (ino,)).fetchone()
                names.append(name)
        return os.fsdecode(b"/".join(reversed(names)))

    def seal(self) -> None:
        """Everything is here: count, mark, and fold the log into the file. The writer is closed by this."""
        with self._lock:
            with self._transaction():
                self._db.execute("DELETE FROM entry WHERE parent = 0 AND ino != ?", (ROOT_INO,))
                self.refusals.seal(self._db, self._place_of)
                # No listing said of these that they are whole, yet the whole tree is: markers in listings, mostly.
                pending = self._db.execute("SELECT ino FROM entry WHERE kind = 1 AND listed = 0").fetchall()
                reshaped = self._db.execute(_RESHAPED).fetchall()
                self._db.executemany(_SET_LISTED, ((ino, ino) for (ino,) in pending))
                self._db.executemany(_COUNT_DIRECTORIES, ((ino, ino) for (ino,) in reshaped))
                files, size_bytes, large_bytes, impossible, one = self._db.execute(_TOTALS).fetchone()
                found = [("files", files), ("bytes", size_bytes), ("large_bytes", large_bytes), ("sealed", 1)]
                if impossible:
                    found += [("impossible", impossible), ("impossible_one", ascii(self.path_of(one)[-300:]))]
                self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", found)
            self._sealed = True
            self.reshaped = [ino for (ino,) in reshaped]
            try:
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error as error:  # the log is read beside the file, until somebody can fold it in
                log.warning("catalog not folded into one file", catalog=self.file, reason=str(error))
            self._db.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _open_transaction(self) -> Iterator[bool]:
        """A transaction; or, once the catalog is sealed, False and nothing to do."""
        if self._sealed:
            yield False
            return
        with self._transaction():
            yield True

    # -- inside a transaction -------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing. Raises CatalogError when the disk refuses; the same call may be tried again later."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._directories.clear()  # it may name rows that are rolled back here
                if self._db.in_transaction:  # after some errors, as of a full disk, SQLite has rolled back by itself
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise CatalogError(f"catalog {self.file} cannot be written: {error}") from error

    def _values(self, parent: int, name: str, obj: SourceObject) -> tuple[object, ...]:
        target = None if obj.target is None else os.fsencode(obj.target)
        mtime_ns = obj.mtime_ns or (self._created_ns if obj.kind is Kind.DIRECTORY else 0)
        size = 0 if obj.kind is Kind.DIRECTORY else len(target) if target is not None else obj.size
        mtime_ns = min(max(mtime_ns, -_MTIME_LIMIT_NS), _MTIME_LIMIT_NS)
        tag, listed = obj.version_tag, 0
        if not tag.isascii():
            tag = tag.encode("utf-8", "backslashreplace").decode()  # a lone surrogate is no SQLite text
        if size is not None and not is_size(size):  # the name is there, and the file cannot be
            self._say_once("sizes that no file can have: such files cannot be read", obj.path, size_bytes=size)
            size, tag, listed = None, "", IMPOSSIBLE
        return parent, os.fsencode(name), int(obj.kind), size, mtime_ns, tag, target, int(obj.executable), listed

    def _directory(self, parts: tuple[str, ...]) -> _Directory | None:
        """A directory, made with its parents if it is not a row yet; None when its listed parent has no such name."""
        depth = len(parts)
        while depth and parts[:depth] not in self._directories:
            depth -= 1
        directory = self._directories.get(parts[:depth])
        if directory is None:
            (listed,) = self._db.execute("SELECT listed FROM entry WHERE ino = ?", (ROOT_INO,)).fetchone()
            directory = self._directories[()] = _Directory(ROOT_INO, bool(listed))
        for end in range(depth + 1, len(parts) + 1):  # a loop, as a path may have more parts than Python has frames
            child = self._child(directory, os.fsencode(parts[end - 1]))
            if child is None:
                return None
            directory = self._directories[parts[:end]] = child
        return directory

    def _child(self, parent: _Directory, name: bytes) -> _Directory | None:
        found = self._db.execute(_FIND, (parent.ino, name)).fetchone()
        if found is None or found[1] != Kind.DIRECTORY:
            if parent.listed:
                return None
            values = (parent.ino, name, int(Kind.DIRECTORY), 0, self._created_ns, "", None, 0, 0)
            self._db.execute(_INSERT, values)
            found = self._db.execute(_FIND, (parent.ino, name)).fetchone()
        ino, kind, listed = found
        return _Directory(ino, bool(listed)) if kind == Kind.DIRECTORY else None

    def _place_of(self, path: str) -> tuple[int, bytes] | None:
        parts = _names(path)
        parent = self._directory(parts[:-1]) if parts else None
        return (parent.ino, os.fsencode(parts[-1])) if parts and parent is not None else None

    def _mark_listed(self, path: str) -> None:
        parts = _names(path) if path else ()
        directory = None if parts is None else self._directory(parts)
        if parts is not None and directory is not None and not directory.listed:
            self._db.execute(_SET_LISTED, (directory.ino, directory.ino))
            self._directories[parts] = _Directory(directory.ino, True)

    def _say_once(self, event: str, path: str, **more: int) -> None:
        if event not in self._said:
            self._said.add(event)
            log.warning(event, catalog=self.file, example=ascii(path[:300]), **more)


def _is_name(name: str) -> bool:
    """As ``is_name``, and as ``_names`` for one of them."""
    return is_name(name) and (name.isascii() or _names(name) is not None)


def _names(path: str) -> tuple[str, ...] | None:
    """As ``path_parts``; also None for text that stands for no bytes: a lone surrogate, which JSON can carry."""
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    return path_parts(path)


_UNKNOWN = "size IS NULL AND listed = 0"  # not of one that no file can have: the source has said it
_TOTALS = f"""
    SELECT count(*), {SUM_OF_SIZES}, {SUM_OF_LARGE_SIZES}, count(iif(listed = {IMPOSSIBLE}, 1, NULL)),
        min(iif(listed = {IMPOSSIBLE}, ino, NULL))
    FROM entry WHERE kind = 0
"""
_SET_FOUND = "UPDATE entry SET executable = 1 WHERE parent = ? AND name = ? AND kind = 1 AND listed = 0"
_FIND = "SELECT ino, kind, listed FROM entry WHERE parent = ? AND name = ?"
_SET_LISTED = """
    UPDATE entry SET listed = 1, subdirs = (SELECT count(*) FROM entry AS e WHERE e.parent = ? AND e.kind = 1)
    WHERE ino = ?
"""
_COUNT_DIRECTORIES = """
    UPDATE entry SET subdirs = (SELECT count(*) FROM entry AS e WHERE e.parent = ? AND e.kind = 1) WHERE ino = ?
"""
_RESHAPED = "SELECT DISTINCT parent FROM entry WHERE kind = -1 OR (kind = 1 AND executable = 1)"
