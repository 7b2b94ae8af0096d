"""The index's rows on disk: one for each object, in order of last use, by the class that eviction looks at.

diskcache makes the table, brings it up to date and guards it between threads; rows go in and out in bulk, by SQL on the
table that it documents, as a million of them one by one would take minutes. A row that is written anew goes to the end
of its class, so ``rowid`` is the order of last use.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import diskcache

_AT_ONCE = 500  # names in one statement; SQLite takes 999 from its oldest version on
_READ_AHEAD = 256
_DAMAGED = "damaged"
_RAW = 1  # diskcache's mode of a value that is text
_TEXT_FILE = 3  # and of one that is text in a file, as it is long

# One statement for all rows: Python's lock is given away and fetched back for each, which beside a busy loop took ten
# times as long, and disturbed it as often.
_DELETE = "DELETE FROM Cache WHERE raw = 1 AND key IN (SELECT value FROM json_each(?))"
_INSERT = """
    INSERT INTO Cache (key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value)
    SELECT json_extract(value, '$[0]'), 1, ?1, NULL, ?1, 0, json_extract(value, '$[1]'), 0, ?2, NULL,
        json_extract(value, '$[2]')
    FROM json_each(?3)
"""


class Row(NamedTuple):
    """What is known of one object.

    ``space_bytes`` is what it takes on disk, ``content_bytes`` what of a file is in it; both are 0 for what is pinned
    and not here yet. ``pins`` are the datasets that hold it, each with the round in which that was last looked up, and
    ``whole_bytes`` the space that all of a pinned object takes.
    """

    space_bytes: int = 0
    content_bytes: int = 0
    owners: tuple[str, ...] = ()
    last_used_s: float = 0.0
    pins: tuple[tuple[str, int], ...] = ()
    whole_bytes: int = 0


class Rows:
    """Safe to use from several threads; whoever writes holds ``transact()``.

    Raises OSError when the disk refuses; but what an opening needs raises as sqlite3 and diskcache do, so that damage
    is seen: ``__init__``, ``noted``, ``forget``, ``clear``.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        with _no_checkpoint(directory):
            self._cache = diskcache.Cache(
                directory, eviction_policy="none", cull_limit=0, size_limit=2**62, tag_index=True
            )

    @contextmanager
    def transact(self) -> Iterator[None]:
        """All that is written inside is there afterwards, or nothing of it."""
        with self._trouble("written"), self._cache.transact():
            yield

    def get(self, keys: Sequence[str]) -> dict[str, Row]:
        """The rows of those keys that have one."""
        found: dict[str, Row] = {}
        with self._trouble("read"):
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, value FROM Cache WHERE raw = 1 AND key IN ({marks})"
                found.update((key, _row(value)) for key, value in self._cache._sql(query, tuple(some)))
        return found

    def put(self, rows: Mapping[str, Row | None], class_of: Mapping[str, str]) -> None:
        """Write rows, each to the end of its class; None removes one."""
        if not rows:
            return
        written = [
            (key, class_of[key], json.dumps(row, separators=(",", ":"))) for key, row in rows.items() if row is not None
        ]
        connection = self._cache._con
        connection.execute(_DELETE, (json.dumps(list(rows)),))
        connection.execute(_INSERT, (time.time(), _RAW, json.dumps(written)))

    def of_class(self, name: str) -> Iterator[tuple[str, Row]]:
        """Rows of one class, least recently used first. Those that are written meanwhile come again, at the end."""
        after = 0
        while True:
            with self._trouble("read"):
                some = self._cache._sql(
                    "SELECT rowid, key, value FROM Cache WHERE tag = ? AND rowid > ? ORDER BY rowid LIMIT ?",
                    (name, after, _READ_AHEAD),
                ).fetchall()
                rows = [(key, _row(value)) for _rowid, key, value in some]
            yield from rows
            if some:
                after = some[-1][0]
            if len(some) < _READ_AHEAD:
                return

    def of_owner(self, owner: str) -> Iterator[str]:
        """Keys of what a dataset uses. SQLite looks through all rows for them, in a thread of its own time."""
        after = 0
        while True:
            with self._trouble("read"):
                some = self._cache._sql(
                    "SELECT rowid, key, value FROM Cache WHERE raw = 1 AND rowid > ? AND instr(value, ?)"
                    " ORDER BY rowid LIMIT ?",
                    (after, json.dumps(owner), _READ_AHEAD),
                ).fetchall()
                keys = [key for _rowid, key, value in some if not key.startswith("#") and owner in _row(value).owners]
            yield from keys
            if len(some) < _READ_AHEAD:
                return
            after = some[-1][0]

    def classes(self) -> list[str]:
        """The classes that there are rows of. A look-up each."""
        found: list[str] = []
        last = ""
        while True:
            with self._trouble("read"):
                ((name,),) = self._cache._sql("SELECT min(tag) FROM Cache WHERE tag > ?", (last,)).fetchall()
            if name is None:
                return found
            found.append(name)
            last = name

    def __len__(self) -> int:
        """About how many rows; what is noted beside them counts too."""
        with self._trouble("read"):
            return len(self._cache)

    def note(self, name: str, value: object) -> None:
        """Keep something else beside the rows; ``name`` is no key of an object."""
        with self._trouble("written"):
            self._cache.set(name, json.dumps(value))

    def noted(self, name: str) -> Any:
        """What ``note`` kept last, or None. Not by diskcache's own ``get``: of a row that says it is a pickle, that
        would run whatever is in it."""
        query = "SELECT mode, filename, value FROM Cache WHERE key = ? AND raw = 1"
        for mode, filename, value in self._cache._sql(query, (name,)).fetchall():
            if mode not in (_RAW, _TEXT_FILE):
                raise _BadRowError(f"{name} is no text")
            with contextlib.suppress(OSError):  # a file that is gone: not known
                return json.loads(self._cache.disk.fetch(mode, filename, value, False))
        return None

    def forget(self, names: Iterable[str]) -> None:
        for name in names:
            self._cache.delete(name)  # pop() would unpickle it

    def clear(self) -> None:
        self._cache.clear()

    def close(self) -> None:
        self._cache.close()

    @contextmanager
    def _trouble(self, what: str) -> Iterator[None]:
        """What the table meets, as the OSError that users of the cache know what to do about: go on without it."""
        try:
            yield
        except (sqlite3.Error, diskcache.Timeout) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # none of Python's own errors has one
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or isinstance(error, _BadRowError):
                note_damaged(self._directory)
            raise OSError(errno.EIO, f"the index of the cache cannot be {what}: {error}") from error


@contextmanager
def _no_checkpoint(directory: str) -> Iterator[None]:
    """diskcache closes its connection once while it opens, and the last one that closes has SQLite bring the whole log
    to the database and wait for the disk twice: tens of milliseconds, for which readers wait when a server takes over.
    With this one open it is not the last. Raises sqlite3.Error for what is no database.
    """
    path = f"{directory}/{diskcache.core.DBNAME}"
    if not os.path.exists(path):
        yield
        return
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA schema_version").fetchone()  # it is opened with the first statement
        yield


def note_damaged(directory: str) -> None:
    """Have whoever opens these rows next begin anew."""
    with contextlib.suppress(OSError), open(f"{directory}/{_DAMAGED}", "xb"):
        pass


def is_note_of_damage(name: str) -> bool:
    """Whether that is what a file beside the rows is."""
    return name == _DAMAGED


def is_damaged(directory: str) -> bool:
    """Whether somebody has met damage in these rows while they were used."""
    return os.path.exists(f"{directory}/{_DAMAGED}")


class _BadRowError(sqlite3.DatabaseError):
    """Text that no row was written as."""


def _row(text: str) -> Row:
    try:
        space_bytes, content_bytes, owners, last_used_s, pins, whole_bytes = json.loads(text)
        held = tuple((dataset, number) for dataset, number in pins)
    except (ValueError, TypeError) as error:
        raise _BadRowError(str(error)) from error
    return Row(space_bytes, content_bytes, tuple(owners), last_used_s, held, whole_bytes)
