"""Names that a source does not let be listed, or looked at, or read, while all of it is listed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from dsfs.catalog.lookup import REFUSED, UNREADABLE
from dsfs.errors import SourceError, SourceRefused
from dsfs.model import Kind

_MOST = 10_000  # names that a revision may be without; where more are refused, it is not sealed
_SET_FILE = f"UPDATE entry SET listed = ? WHERE parent = ? AND name = ? AND kind = {Kind.FILE:d} AND size IS NULL"
_SET_DIRECTORY = f"""
    UPDATE entry SET listed = ? WHERE parent = ? AND name = ? AND kind = {Kind.DIRECTORY:d} AND listed = 0
"""
_SET_BELOW = f"""
    UPDATE entry SET listed = ? WHERE listed = 0 AND ino IN (
        WITH RECURSIVE below (ino) AS (
            SELECT ino FROM entry WHERE parent = ? AND name = ? AND kind = {Kind.DIRECTORY:d}
            UNION ALL
            SELECT entry.ino FROM entry JOIN below ON entry.parent = below.ino WHERE kind = {Kind.DIRECTORY:d}
        )
        SELECT ino FROM below
    )
"""
_TOLD = {REFUSED: ("refused", "refusal"), UNREADABLE: ("unreadable", "unreadable_one")}


class Refusals:
    """Paths, and what was said of each. Whoever writes the catalog guards it."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[type[SourceError], str]] = {}  # no errors: those hold on to what raised them
        self._names: set[str] = set()  # those of which it was said when somebody looked at the name alone
        self.declined = 0
        """How many were not refused, but cannot be read as they are there."""

    def of_listing(self, path: str) -> bool:
        """Whether it was said when the path was listed, or by a listing: a look at a name says nothing of a directory
        that another look has found there."""
        return path in self._said and path not in self._names

    @property
    def are_many(self) -> bool:
        """Whether a revision without all of these would be none."""
        return len(self._said) > _MOST

    @property
    def first(self) -> SourceError | None:
        """What was said of the first of them."""
        kind, why = next(iter(self._said.values()), (SourceError, ""))
        return kind(why) if self._said else None

    def add(self, path: str, why: str, of_name: type[SourceError] | None) -> None:
        """The source does not let a directory be listed; or, when somebody looked at the name, a file be looked at or
        read, and what it said is of that kind."""
        if self.are_many or self.of_listing(path):
            return
        if of_name is None:
            self.forget(path)
            self._said[path] = (SourceRefused, why)
        elif path not in self._said:
            self._said[path] = (of_name, why)
            self._names.add(path)
            self.declined += not issubclass(of_name, SourceRefused)

    def forget(self, path: str) -> None:
        """It is known by now."""
        kind, _why = self._said.pop(path, (SourceRefused, ""))
        self._names.discard(path)
        self.declined -= not issubclass(kind, SourceRefused)

    def clear(self) -> None:
        self._said.clear()
        self._names.clear()
        self.declined = 0

    def seal(self, db: sqlite3.Connection, place_of: Callable[[str], tuple[int, bytes] | None]) -> None:
        """Have the catalog say what was refused, and is not known by another way: somebody may have listed it.

        ``place_of`` a path is the number of its directory and its name there, if it has one.
        """
        number = dict.fromkeys(_TOLD, 0)
        of_one: dict[int, str] = {}
        for path, (kind, why) in sorted(self._said.items()):  # the same one of them is told of the next revision
            place = place_of(path)
            if place is None:
                continue
            of_file = REFUSED if issubclass(kind, SourceRefused) else UNREADABLE
            # A directory is refused whatever was said of its name: only that says that names in it are not known.
            # The last: what the listing of all did not come to.
            for mark, query in ((of_file, _SET_FILE), (REFUSED, _SET_DIRECTORY), (REFUSED, _SET_BELOW)):
                of_path = db.execute(query, (mark, *place)).rowcount
                number[mark] += of_path
                if of_path:
                    of_one.setdefault(mark, why)
        for mark, why in of_one.items():
            key, key_of_one = _TOLD[mark]
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(key, number[mark]), (key_of_one, why)])
