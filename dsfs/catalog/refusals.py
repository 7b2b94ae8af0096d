"""Names that a source does not let be listed, or looked at, while all of it is listed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from dsfs.catalog.lookup import REFUSED
from dsfs.model import Kind

_MOST = 10_000  # names that a revision may be without; where more are refused, it is not sealed
_SET = f"""
    UPDATE entry SET listed = {REFUSED} WHERE parent = ? AND name = ?
    AND ((kind = {Kind.DIRECTORY:d} AND listed = 0) OR (kind = {Kind.FILE:d} AND size IS NULL))
"""
_SET_BELOW = f"""
    UPDATE entry SET listed = {REFUSED} WHERE listed = 0 AND ino IN (
        WITH RECURSIVE below (ino) AS (
            SELECT ino FROM entry WHERE parent = ? AND name = ? AND kind = {Kind.DIRECTORY:d}
            UNION ALL
            SELECT entry.ino FROM entry JOIN below ON entry.parent = below.ino WHERE kind = {Kind.DIRECTORY:d}
        )
        SELECT ino FROM below
    )
"""


class Refusals:
    """Paths, and why. Whoever writes the catalog guards it."""

    def __init__(self) -> None:
        self._why: dict[str, str] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._why

    @property
    def are_many(self) -> bool:
        """Whether a revision without all of these would be none."""
        return len(self._why) > _MOST

    @property
    def why(self) -> str:
        """Why the first of them was; "" where nothing was."""
        return next(iter(self._why.values()), "")

    def add(self, path: str, why: str) -> None:
        """The source does not let a directory be listed, or a file be looked at."""
        if not self.are_many:
            self._why.setdefault(path, why)

    def forget(self, path: str) -> None:
        """It is known by now."""
        self._why.pop(path, None)

    def clear(self) -> None:
        self._why.clear()

    def seal(self, db: sqlite3.Connection, place_of: Callable[[str], tuple[int, bytes] | None]) -> None:
        """Have the catalog say what was refused, and is not known by another way: somebody may have listed it.

        ``place_of`` a path is the number of its directory and its name there, if it has one.
        """
        refused = 0
        refusal = ""
        for path, why in self._why.items():
            place = place_of(path)
            if place is not None:
                of_path = db.execute(_SET, place).rowcount
                of_path += db.execute(_SET_BELOW, place).rowcount  # what the listing of all did not come to
                refused, refusal = refused + of_path, refusal or (why if of_path else "")
        if refused:
            db.executemany("INSERT INTO meta VALUES (?, ?)", [("refused", refused), ("refusal", refusal)])
