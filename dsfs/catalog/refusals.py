"""Names that a source does not let be listed, or looked at, or read, while all of it is listed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from dsfs.catalog.lookup import REFUSED, UNREADABLE
from dsfs.errors import SourceError, SourceRefused
from dsfs.model import Kind

_MOST = 10_000  # names that a revision may be without; where more are refused, it is not sealed
_SET = f"""
    UPDATE entry SET listed = ? WHERE parent = ? AND name = ?
    AND ((kind = {Kind.DIRECTORY:d} AND listed = 0) OR (kind = {Kind.FILE:d} AND size IS NULL))
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

    def __contains__(self, path: str) -> bool:
        return path in self._said

    @property
    def are_many(self) -> bool:
        """Whether a revision without all of these would be none."""
        return len(self._said) > _MOST

    @property
    def first(self) -> SourceError | None:
        """What was said of the first of them."""
        kind, why = next(iter(self._said.values()), (SourceError, ""))
        return kind(why) if self._said else None

    def add(self, path: str, why: str, kind: type[SourceError]) -> None:
        """The source does not let a directory be listed, or a file be looked at or read."""
        if not self.are_many:
            self._said.setdefault(path, (kind, why))

    def forget(self, path: str) -> None:
        """It is known by now."""
        self._said.pop(path, None)

    def clear(self) -> None:
        self._said.clear()

    def seal(self, db: sqlite3.Connection, place_of: Callable[[str], tuple[int, bytes] | None]) -> None:
        """Have the catalog say what was refused, and is not known by another way: somebody may have listed it.

        ``place_of`` a path is the number of its directory and its name there, if it has one.
        """
        number = dict.fromkeys(_TOLD, 0)
        of_one: dict[int, str] = {}
        for path, (kind, why) in self._said.items():
            place = place_of(path)
            if place is not None:
                mark = REFUSED if issubclass(kind, SourceRefused) else UNREADABLE
                of_path = db.execute(_SET, (mark, *place)).rowcount
                of_path += db.execute(_SET_BELOW, (mark, *place)).rowcount  # what the listing of all did not come to
                number[mark] += of_path
                if of_path:
                    of_one.setdefault(mark, why)
        for mark, why in of_one.items():
            key, key_of_one = _TOLD[mark]
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(key, number[mark]), (key_of_one, why)])
