"""A new revision beside the one that is shown: unchanged entries keep their numbers, and what has changed is told.

The new catalog was crawled with numbers of its own. ``adopt_numbers`` gives every entry that is the same in both (kind,
size, version or else time, link target, at the same path) the number that it is shown under, so that kernel caches,
open handles and cached bytes live on; all others get numbers that were never given to anything in this dataset.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from dsfs.catalog.lookup import IMPOSSIBLE, REFUSED, ROOT_INO, SUM_OF_LARGE_SIZES, SUM_OF_SIZES, UNREADABLE
from dsfs.errors import CatalogError
from dsfs.model import Kind

_SAME = """
    o.kind = e.kind AND (e.kind = 1 OR (o.size IS e.size AND (o.mtime_ns = e.mtime_ns OR e.tag != '') AND o.tag = e.tag
    AND o.target IS e.target AND o.executable = e.executable))
"""

_DIFFERENT = """
    SELECT parent, name FROM (
        SELECT e.parent, e.name FROM main.entry AS e LEFT JOIN shown.entry AS o
            ON o.parent = e.parent AND o.name = e.name WHERE o.ino IS NOT e.ino
        UNION
        SELECT o.parent, o.name FROM shown.entry AS o LEFT JOIN main.entry AS e
            ON e.parent = o.parent AND e.name = o.name WHERE e.ino IS NULL
    ) WHERE parent != 0
"""

# A file that cannot be read there any more, in place of the one that is shown: it gets that one's number, and its row.
_LOST = f"e.listed = {UNREADABLE} AND o.kind = {Kind.FILE:d} AND o.size IS NOT NULL"

# Where no name differs: a name is refused newly only if it is new, or that revision is not shown. Numbers alone do not
# do: one may be refused now that could not be read, and another the other way round.
_REFUSED_DIFFER = """
    SELECT EXISTS (
        SELECT 1 FROM (VALUES ('refused'), ('refusal'), ('unreadable'), ('unreadable_one')) AS told
        WHERE (SELECT value FROM main.meta WHERE key = told.column1)
        IS NOT (SELECT value FROM shown.meta WHERE key = told.column1)
    ) OR EXISTS (
        SELECT 1 FROM main.entry AS e JOIN shown.entry AS o ON o.ino = e.ino WHERE e.listed > 1 AND e.listed != o.listed
    )
"""

_NEWLY_REFUSED = f"""
    SELECT e.ino FROM main.entry AS e JOIN shown.entry AS o ON o.parent = e.parent AND o.name = e.name
    WHERE (e.listed = {REFUSED} OR (e.listed = {UNREADABLE} AND o.kind = {Kind.DIRECTORY:d}))
    AND o.listed NOT IN ({REFUSED}, {UNREADABLE}) AND o.kind >= 0 AND o.size IS NOT NULL
    AND (o.kind != 1 OR o.listed) LIMIT 1
"""

# What is known below a directory that is refused before and after. Numbers are the same, and none was given since.
_KEEP_BELOW_REFUSED = f"""
    INSERT OR IGNORE INTO main.entry
    WITH RECURSIVE below (ino) AS (
        SELECT e.ino FROM main.entry AS e JOIN shown.entry AS o ON o.ino = e.ino
        WHERE e.kind = 1 AND e.listed = {REFUSED} AND o.listed = {REFUSED}
        UNION
        SELECT o.ino FROM shown.entry AS o JOIN below ON o.parent = below.ino WHERE o.kind = 1
    )
    SELECT * FROM shown.entry WHERE parent IN below
"""
_KEEP_LOST = f"""
    UPDATE main.entry SET size = o.size, tag = o.tag, executable = o.executable, listed = 0
    FROM shown.entry AS o WHERE o.ino = entry.ino AND entry.listed = {UNREADABLE} AND o.size IS NOT NULL
"""
_COUNT = f"""
    UPDATE main.meta SET value = CASE key
        WHEN 'files' THEN (SELECT count(*) FROM main.entry WHERE kind = 0)
        WHEN 'bytes' THEN (SELECT {SUM_OF_SIZES} FROM main.entry WHERE kind = 0)
        WHEN 'large_bytes' THEN (SELECT {SUM_OF_LARGE_SIZES} FROM main.entry WHERE kind = 0)
        WHEN 'unreadable' THEN (SELECT count(*) FROM main.entry WHERE listed = {UNREADABLE})
        WHEN 'impossible' THEN (SELECT count(*) FROM main.entry WHERE listed = {IMPOSSIBLE} AND kind = 0)
        ELSE (SELECT count(*) FROM main.entry WHERE listed = {REFUSED}) END
    WHERE key IN
"""


@dataclass(frozen=True, slots=True)
class Changes:
    """From one revision to the next, in the numbers that both share.

    ``names`` are (directory, name) that were added, removed, or are something else now; ``directories`` those they
    are in. ``refused``: the source refuses other names than before, which is no change that a kernel remembers.
    """

    names: tuple[tuple[int, bytes], ...]
    directories: tuple[int, ...]
    refused: bool = False

    def __bool__(self) -> bool:
        return bool(self.names) or self.refused


@dataclass(frozen=True, slots=True)
class ManyChanges:
    """As ``Changes``, of more names than are held in memory."""

    new_file: str
    shown_file: str

    def names(self) -> Iterator[tuple[int, bytes]]:
        """(directory, name) of each. Blocks on the disk; raises CatalogError."""
        with _both(self.new_file, self.shown_file) as db:
            yield from db.execute(_DIFFERENT)


def adopt_numbers(new_file: str, shown_file: str, next_ino: int) -> int:
    """Renumber a sealed catalog after the one that is shown. Blocks on the disk.

    ``next_ino`` is the first number that was never given; returns the next one after this.
    """
    with _both(new_file, shown_file, "cannot be numbered after") as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TEMP TABLE number (ino INTEGER PRIMARY KEY, given INTEGER NOT NULL)")
        db.execute("CREATE TEMP TABLE level (ino INTEGER PRIMARY KEY, given INTEGER NOT NULL)")
        db.execute("INSERT INTO level VALUES (?, ?)", (ROOT_INO, ROOT_INO))
        while db.execute("SELECT 1 FROM level LIMIT 1").fetchone():
            db.execute("INSERT INTO number SELECT ino, given FROM level")
            db.execute("CREATE TEMP TABLE below (ino INTEGER PRIMARY KEY, given INTEGER)")
            db.execute(
                f"""
                INSERT INTO below SELECT e.ino, o.ino FROM level JOIN main.entry AS e ON e.parent = level.ino
                LEFT JOIN shown.entry AS o ON o.parent = level.given AND o.name = e.name AND ({_SAME} OR ({_LOST}))
                """
            )
            (fresh,) = db.execute("SELECT count(*) FROM below WHERE given IS NULL").fetchone()
            db.execute(
                """
                UPDATE below SET given = fresh.given FROM (
                    SELECT ino, ? + row_number() OVER (ORDER BY ino) - 1 AS given FROM below WHERE given IS NULL
                ) AS fresh WHERE below.ino = fresh.ino
                """,
                (next_ino,),
            )
            next_ino += fresh
            db.execute("DELETE FROM level")
            db.execute("INSERT INTO level SELECT ino, given FROM below")
            db.execute("DROP TABLE below")
        db.execute("UPDATE main.entry SET ino = -ino, parent = -parent")  # out of the way of the numbers to come
        db.execute("UPDATE main.entry SET ino = given FROM number WHERE number.ino = -entry.ino")
        db.execute("UPDATE main.entry SET parent = given FROM number WHERE number.ino = -entry.parent")
        # A directory in which nothing changed keeps its time, which most sources do not have: it is when it was listed.
        db.execute(f"CREATE TEMP TABLE changed AS SELECT DISTINCT parent FROM ({_DIFFERENT})")
        db.execute(
            """
            UPDATE main.entry SET mtime_ns = o.mtime_ns FROM shown.entry AS o
            WHERE o.ino = entry.ino AND entry.kind = 1 AND entry.ino NOT IN (SELECT parent FROM changed)
            """
        )
        # So does a file that its version tag says is the same, as one of a commit that did not touch it.
        db.execute(
            """
            UPDATE main.entry SET mtime_ns = o.mtime_ns FROM shown.entry AS o
            WHERE o.ino = entry.ino AND entry.kind != 1
            """
        )
        db.execute("INSERT OR REPLACE INTO main.meta VALUES ('next_ino', ?)", (next_ino,))
        db.execute("COMMIT")
    return next_ino


def changes(new_file: str, shown_file: str, at_most: int) -> Changes | ManyChanges:
    """What differs between two catalogs with common numbers; at most so many names are held in memory."""
    with _both(new_file, shown_file) as db:
        names = db.execute(f"{_DIFFERENT} LIMIT ?", (at_most + 1,)).fetchall()
        (refused,) = db.execute(_REFUSED_DIFFER).fetchone()
    if len(names) > at_most:
        return ManyChanges(new_file, shown_file)
    directories = tuple(sorted({parent for parent, _name in names}))
    return Changes(tuple((parent, name) for parent, name in names), directories, bool(refused))


def keep_below_refused(new_file: str, shown_file: str) -> None:
    """Take over what somebody has found in directories that the source refuses to list, before and now, from the
    revision that is shown. Blocks on the disk."""
    with _both(new_file, shown_file, "cannot take over from") as db:
        db.execute("BEGIN IMMEDIATE")
        if db.execute(_KEEP_BELOW_REFUSED).rowcount:
            db.execute(f"{_COUNT} ('files', 'bytes', 'large_bytes', 'unreadable', 'impossible', 'refused')")
        db.execute("COMMIT")


def keep_unreadable(new_file: str, shown_file: str) -> None:
    """Take over files that cannot be read any more from the revision that is shown, after all else: what it says of
    their number, and of one of them why, stays true. Blocks on the disk."""
    with _both(new_file, shown_file, "cannot take over from") as db:
        db.execute("BEGIN IMMEDIATE")
        if db.execute(_KEEP_LOST).rowcount:
            db.execute(f"{_COUNT} ('bytes', 'large_bytes')")
        db.execute("COMMIT")


def newly_refused(new_file: str, shown_file: str) -> int | None:
    """The number, in the new one of two catalogs with common numbers, of something that its source refused, or of
    a directory that it said was none and could not be read, and that the other one has. Blocks on the disk."""
    with _both(new_file, shown_file) as db:
        found = db.execute(_NEWLY_REFUSED).fetchone()
    return None if found is None else int(found[0])


def left(new_file: str, shown_file: str) -> Iterator[int]:
    """Numbers of the first revision's files that the next one does not have. Blocks on the disk."""
    with _both(new_file, shown_file) as db:
        yield from (
            ino
            for (ino,) in db.execute(
                """
                SELECT o.ino FROM shown.entry AS o LEFT JOIN main.entry AS e ON e.ino = o.ino
                WHERE o.kind != 1 AND e.ino IS NULL
                """
            )
        )


@contextmanager
def _both(new_file: str, shown_file: str, undone: str = "cannot be compared with") -> Iterator[sqlite3.Connection]:
    """The new catalog, with the other one beside it. Raises CatalogError, also for what is done with them inside."""
    try:
        with closing(sqlite3.connect(new_file, isolation_level=None)) as db:
            db.execute("ATTACH DATABASE ? AS shown", (shown_file,))
            db.execute("PRAGMA cache_size = -16384")
            yield db
    except sqlite3.Error as error:
        raise CatalogError(f"{new_file}: {undone} {shown_file}: {error}") from error
