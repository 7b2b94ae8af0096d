"""Any mix of listings, in any order, becomes the one tree; and what somebody saw once stays true."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.catalog.lookup import IMPOSSIBLE, ROOT_INO, SMALL_FILE_BYTES, Catalog, Row
from dsfs.catalog.writer import CatalogWriter
from dsfs.errors import CatalogError
from dsfs.model import Kind, ListingPage, SourceObject
from tests.model.listings import JUNK, SIZES, Tree, shown_size_of, trees

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


@contextmanager
def new_catalog() -> Iterator[tuple[CatalogWriter, Catalog]]:
    with tempfile.TemporaryDirectory(prefix="dsfs-catalog-", dir=MEMORY) as directory:
        path = f"{directory}/one.sqlite"
        writer = CatalogWriter.create(path, "one", 1)
        catalog = Catalog(path)
        try:
            yield writer, catalog
        finally:
            catalog.close()
            writer.close()


def shown(catalog: Catalog, ino: int, page_size: int = 1000) -> list[Row]:
    """All of a directory, as readdir with pages of this size would get it."""
    rows: list[Row] = []
    while page := catalog.children(ino, rows[-1].name if rows else b"", page_size):
        assert len(page) <= page_size
        rows += page
        assert len({row.ino for row in rows}) == len(rows), "each name comes once"
    return rows


def everything(catalog: Catalog) -> dict[str, Row]:
    """Every row by path, from the root down."""
    found: dict[str, Row] = {}
    waiting = [("", ROOT_INO)]
    while waiting:
        directory, ino = waiting.pop()
        for row in shown(catalog, ino):
            path = f"{directory}/{os.fsdecode(row.name)}" if directory else os.fsdecode(row.name)
            found[path] = row
            if row.kind == Kind.DIRECTORY:
                waiting.append((path, row.ino))
    return found


numbers = st.integers(0, 2**16)


@given(
    trees,
    st.integers(1, 5),
    st.lists(numbers, max_size=20),
    st.lists(st.sampled_from(JUNK), max_size=3),
    st.lists(st.tuples(numbers, st.booleans()), max_size=12),
)
@settings(deadline=None, max_examples=150)
def test_any_mix_of_listings_gives_the_tree(
    tree: Tree, page_size: int, order: list[int], junk: list[str], on_demand: list[tuple[int, bool]]
) -> None:
    """``on_demand``: before which page somebody looks into which directory, and whether that comes in two pages."""
    with new_catalog() as (writer, catalog):
        pages = tree.tree_pages(page_size, order, junk)
        directories = sorted(tree.directories)
        seen: dict[str, Row] = {}
        listed: dict[str, list[bytes]] = {}

        def look() -> None:
            now = everything(catalog)
            for path, row in seen.items():
                assert now[path].ino == row.ino, "an inode number never changes"
                assert now[path].kind in (row.kind, Kind.DIRECTORY)
            seen.update(now)
            for path in ("", *(path for path, row in now.items() if row.kind == Kind.DIRECTORY)):
                ino = now[path].ino if path else ROOT_INO
                if path in listed or catalog.is_listed(ino):
                    assert catalog.is_listed(ino)
                    names = [row.name for row in shown(catalog, ino)]
                    assert names == listed.setdefault(path, names), "what was listed once stays"
                    assert names == sorted(tree.names_in(path))

        for number, page in enumerate(pages):
            for draw, in_two in on_demand:
                if draw % len(pages) == number:
                    directory = directories[draw % len(directories)]
                    objects = tree.objects_in(directory)
                    if in_two:
                        half = len(objects) // 2
                        writer.add(ListingPage(tuple(objects[half:])))
                        look()
                        objects = objects[:half]
                    writer.add(ListingPage(tuple(objects), (directory,)))
                    look()
            writer.add(page)
            look()
        writer.seal()
        catalog.refresh()
        look()
        assert catalog.sealed
        found = everything(catalog)
        assert {path for path, row in found.items() if row.kind == Kind.FILE} == tree.files
        assert {path for path, row in found.items() if row.kind == Kind.DIRECTORY} == tree.directories - {""}
        assert len({row.ino for row in found.values()} | {ROOT_INO}) == len(found) + 1
        for path, row in found.items():
            assert catalog.path_of(row.ino) == path
            assert catalog.find(path) == catalog.row(row.ino) == catalog.lookup(row.parent, row.name) == row
            if row.kind == Kind.FILE:
                known = shown_size_of(path) is not None
                assert (row.size, row.tag) == (shown_size_of(path), f"tag of {path!a}" if known else "")
                assert row.listed == (0 if known else IMPOSSIBLE)
            else:
                assert row.subdirs == list(tree.names_in(path).values()).count(Kind.DIRECTORY)
        sizes = list(map(shown_size_of, tree.files))
        assert catalog.totals() == (len(tree.files), min(sum(filter(None, sizes)), 2**63 - 1), len(junk))
        assert catalog.impossible == sizes.count(None)


@given(trees, st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_readdir_gives_each_name_once_in_order_whatever_the_page(tree: Tree, page_size: int) -> None:
    with new_catalog() as (writer, catalog):
        for directory in tree.directories:
            writer.add(ListingPage(tuple(tree.objects_in(directory)), (directory,)))
        for directory in tree.directories:
            row = catalog.find(directory)
            assert row is not None
            assert [child.name for child in shown(catalog, row.ino, page_size)] == sorted(tree.names_in(directory))


def test_a_name_that_was_looked_up_keeps_its_number_when_its_directory_is_listed() -> None:
    with new_catalog() as (writer, catalog):
        writer.add_found({"d/x": SourceObject("d/x", size=3, version_tag="1")})
        before = catalog.find("d/x")
        assert before is not None
        writer.add(ListingPage((SourceObject("d/w", size=1), SourceObject("d/x", size=3, version_tag="1")), ("d",)))
        assert catalog.find("d/x") == before


def test_a_listed_directory_gets_no_new_names_from_anywhere() -> None:
    """The source changed between two listings; what a reader saw is true for the whole revision."""
    with new_catalog() as (writer, catalog):
        writer.add(ListingPage((SourceObject("d/x", size=3), SourceObject("d/sub", Kind.DIRECTORY)), ("d",)))
        before = everything(catalog)
        late = ("d/new", "d/new2/y", "d/x/y", "d/sub")
        for path in late:
            writer.add_found({path: SourceObject(path, size=1)})
        writer.add(ListingPage(tuple(SourceObject(path, size=1) for path in late), ("d/new2", "d/x", "d/none")))
        assert everything(catalog) == before
        writer.add(ListingPage((SourceObject("d/sub/y", size=1),)))
        assert set(everything(catalog)) == {*before, "d/sub/y"}


def test_the_version_that_was_seen_first_stays() -> None:
    with new_catalog() as (writer, catalog):
        writer.add_found({"x": SourceObject("x", size=3, version_tag="1")})
        writer.add(ListingPage((SourceObject("x", size=4, version_tag="2"),), ("",)))
        row = catalog.find("x")
        assert row is not None
        assert (row.size, row.tag) == (3, "1")


def test_a_size_that_was_not_known_is_learnt_and_a_dead_name_goes() -> None:
    with new_catalog() as (writer, catalog):
        listing = [SourceObject(name, size=None) for name in ("dead", "known", "later")]
        writer.add(ListingPage(tuple(listing), ("",)))
        assert [name for _ino, _parent, name in writer.unresolved(0, 10)] == [b"dead", b"known", b"later"]
        first, _parent, _name = writer.unresolved(0, 1)[0]
        assert [name for _ino, _parent, name in writer.unresolved(first, 10)] == [b"known", b"later"]
        assert writer.unresolved_in(ROOT_INO, b"known", 10) == [(ROOT_INO, b"known"), (ROOT_INO, b"later")]
        ino = catalog.find("known")
        writer.add_found({"known": SourceObject("known", size=7, version_tag="t", mtime_ns=9)})
        writer.add_found({"stranger": SourceObject("stranger", size=7), "dead": None, "known": None})
        found = everything(catalog)
        assert set(found) == {"known", "later"}, "a listed directory gets no new names"
        assert ino is not None
        assert found["known"] == ino._replace(size=7, tag="t", mtime_ns=9)


def test_paths_with_more_parts_than_python_has_frames() -> None:
    deep = "/".join(["d"] * 3000)
    with new_catalog() as (writer, catalog):
        writer.add(ListingPage((SourceObject(f"{deep}/x", size=1),), ("", deep)))
        row = catalog.find(f"{deep}/x")
        assert row is not None
        assert catalog.path_of(row.ino) == f"{deep}/x"
        assert catalog.directory_path(row.parent) == deep
        assert writer.path_of(row.parent) == deep


@pytest.mark.parametrize("mtime_ns", [253402300799 * 10**9, -(10**20), 2**63])
def test_a_time_that_no_calendar_has_costs_nothing_else(mtime_ns: int) -> None:
    with new_catalog() as (writer, catalog):
        writer.add(ListingPage((SourceObject("x", size=1, mtime_ns=mtime_ns), SourceObject("y", size=2)), ("",)))
        assert set(everything(catalog)) == {"x", "y"}


@given(st.lists(st.one_of(st.sampled_from(SIZES), st.integers(0, 2**63 - 1)), max_size=12))
@settings(deadline=None, max_examples=60)
def test_sizes_are_summed_exactly_up_to_what_a_number_holds(sizes: list[int]) -> None:
    with new_catalog() as (writer, catalog):
        writer.add(ListingPage(tuple(SourceObject(str(at), size=size) for at, size in enumerate(sizes)), ("",)))
        possible = [size for size in sizes if 0 <= size < 2**63]
        expected = (len(sizes), min(sum(possible), 2**63 - 1), 0)
        assert catalog.totals() == expected
        writer.seal()
        catalog.refresh()
        assert catalog.totals() == expected
        large = [size for size in possible if size > SMALL_FILE_BYTES]
        assert catalog.large_bytes() == min(sum(large), 2**63 - 1)
        assert catalog.impossible == len(sizes) - len(possible)
        with closing(sqlite3.connect(catalog.file)) as db:
            db.execute("DELETE FROM meta WHERE key = 'large_bytes'")
            db.commit()
        with closing(Catalog(catalog.file)) as of_an_older_version:
            assert of_an_older_version.large_bytes() == min(sum(large), 2**63 - 1)


def test_a_size_that_no_file_can_have_costs_nothing_else() -> None:
    """Its name is there, whether a listing says it or a look at the name; nobody asks for what was said."""
    with new_catalog() as (writer, catalog):
        listing = [SourceObject("listed", size=-1, version_tag="t"), SourceObject("x", size=1)]
        writer.add(ListingPage((*listing, *(SourceObject(name, size=None) for name in ("asked", "later"))), ("",)))
        writer.add_found({"asked": SourceObject("asked", size=2**63), "d/found": SourceObject("d/found", size=2**64)})
        assert [name for _ino, _parent, name in writer.unresolved(0, 10)] == [b"later"]
        assert writer.unresolved_in(ROOT_INO, b"", 10) == [(ROOT_INO, b"later")]
        writer.add_found({"later": SourceObject("later", size=9)})
        writer.seal()
        catalog.refresh()
        found = everything(catalog)
        assert {path for path, row in found.items() if row.listed == IMPOSSIBLE} == {"listed", "asked"}
        assert {path: row.size for path, row in found.items()} == {"listed": None, "asked": None, "later": 9, "x": 1}
        assert catalog.totals() == (4, 10, 0)
        assert catalog.refusal == "2 files have a size at the source that no file can have, one of them: 'listed'"


def test_a_size_that_was_impossible_may_be_another_when_it_is_looked_at() -> None:
    with new_catalog() as (writer, catalog):
        wrong = [SourceObject(name, size=-1, version_tag="t") for name in ("file", "directory", "above")]
        writer.add(ListingPage(tuple(wrong), ()))
        writer.add_found({"directory": SourceObject("directory", Kind.DIRECTORY)})
        writer.add(ListingPage((SourceObject("above/x", size=1),), ("",)))
        writer.add_found({"file": SourceObject("file", size=3, version_tag="t")})
        assert not catalog.is_listed(everything(catalog)["directory"].ino)
        writer.seal()
        catalog.refresh()
        assert catalog.impossible == 0
        assert catalog.refusal == ""
        assert {path: row.kind for path, row in everything(catalog).items()} == {
            **dict.fromkeys(["directory", "above"], Kind.DIRECTORY),
            **dict.fromkeys(["above/x", "file"], Kind.FILE),
        }


def test_a_link_shows_where_it_points() -> None:
    with new_catalog() as (writer, catalog):
        writer.add(ListingPage((SourceObject("l", Kind.SYMLINK, target="../é\udcff", version_tag="t"),), ("",)))
        row = catalog.find("l")
        assert row is not None
        assert (row.target, row.size) == ("../é".encode() + b"\xff", 6)


def test_a_disk_that_is_full_costs_the_page_and_not_the_catalog() -> None:
    """SQLite's own limit on pages stands for the disk: it says the same, at the same places."""
    many = tuple(SourceObject(f"d/{number:05}" + "n" * 200, size=1) for number in range(2000))
    with new_catalog() as (writer, catalog):
        writer.add(ListingPage((SourceObject("first", size=1),)))
        (pages,) = writer._db.execute("PRAGMA page_count").fetchone()
        writer._db.execute(f"PRAGMA max_page_count = {pages + 3}")
        for _again in range(2):
            with pytest.raises(CatalogError, match="full"):
                writer.add(ListingPage(many, ("", "d")))
            assert set(everything(catalog)) == {"first"}
            assert not catalog.is_listed(ROOT_INO)
        writer._db.execute("PRAGMA max_page_count = 1073741823")
        writer.add(ListingPage(many, ("", "d")))
        assert len(everything(catalog)) == 2002
        writer.seal()


def test_a_page_that_cannot_be_taken_in_leaves_nothing_behind() -> None:
    """A number that SQLite cannot hold stands for any error in the middle of a page."""
    with new_catalog() as (writer, catalog):
        wrong = SourceObject("y", size=1, executable=2**70)  # type: ignore[arg-type]
        with pytest.raises(OverflowError):
            writer.add(ListingPage((SourceObject("d/e/x", size=1), wrong), ("d",)))
        assert everything(catalog) == {}
        writer.add(ListingPage((SourceObject("d/e/x", size=1),), ("", "d", "d/e")))
        assert set(everything(catalog)) == {"d", "d/e", "d/e/x"}


def test_what_is_no_catalog_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        path = f"{directory}/x"
        with pytest.raises(CatalogError):
            Catalog(path)
        with open(path, "wb") as file:
            file.write(b"no database at all" * 100)
        with pytest.raises(CatalogError):
            Catalog(path)
        os.unlink(path)
        CatalogWriter.create(path, "r", 1).close()
        db = sqlite3.connect(path)
        db.execute("UPDATE meta SET value = 99 WHERE key = 'layout'")
        db.commit()
        db.close()
        with pytest.raises(CatalogError, match="99"):
            Catalog(path)
