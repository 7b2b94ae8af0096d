"""A catalog whose writer died before any of its statements: it is right as far as it came, and can go on."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dsfs.catalog.lookup import ROOT_INO, Catalog
from dsfs.catalog.writer import CatalogWriter
from dsfs.model import ListingPage
from tests.faults.sweep import Counter, crash_at_every_call
from tests.model.listings import Tree, size_of

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
TREE = Tree(frozenset(["a", "a/b", "c", "d/e/f", "d/g", "\udcff"]), frozenset(["m"]))
TREE_PAGES = TREE.tree_pages(3, [], ["//"])
ON_DEMAND = ListingPage(tuple(TREE.objects_in("d")), ("d",))


@pytest.fixture
def directory() -> Iterator[Callable[[], str]]:
    numbers = itertools.count()
    root = tempfile.mkdtemp(prefix="dsfs-faults-", dir=MEMORY)

    def make() -> str:
        where = f"{root}/{next(numbers)}"
        os.mkdir(where)
        return where

    yield make
    shutil.rmtree(root)


def traced(counter: Counter) -> None:
    """SQLite does not come by ``os``: what counts is each statement, COMMIT and checkpoint among them."""
    real = sqlite3.connect

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db = real(*args, **kwargs)
        db.set_trace_callback(lambda sql: counter(sql.strip()[:20], lambda: None))
        return db

    sqlite3.connect = connect  # in the child only


def path_in(where: str) -> str:
    return f"{where}/one.sqlite"


def rows(catalog: Catalog, directory: str) -> dict[bytes, int] | None:
    row = catalog.find(directory)
    return None if row is None else {child.name: child.kind for child in catalog.children(row.ino, b"", 1000)}


def right_so_far(where: str) -> bool:
    """Whether it is sealed; asserts that nothing in it is wrong."""
    catalog = Catalog(path_in(where))
    try:
        for path in TREE.directories:
            shown = rows(catalog, path)
            row = catalog.find(path)
            if shown is None or row is None:
                assert not catalog.sealed
                continue
            assert set(shown) <= set(TREE.names_in(path))
            if catalog.is_listed(row.ino):
                assert shown == TREE.names_in(path)
                assert row.subdirs == sum(kind == 1 for kind in shown.values())
        if catalog.sealed:
            assert catalog.totals() == (len(TREE.files), sum(map(size_of, TREE.files)), 1)
        return catalog.sealed
    finally:
        catalog.close()


def numbers_of(where: str) -> dict[str, int]:
    catalog = Catalog(path_in(where))
    try:
        found = {path: catalog.find(path) for path in TREE.files | TREE.directories}
        return {path: row.ino for path, row in found.items() if row is not None}
    finally:
        catalog.close()


def check(where: str, _survived: bool) -> None:
    path = path_in(where)
    before: dict[str, int] = {}
    skipped_so_far = 0
    if os.path.exists(path):
        if right_so_far(where):
            return
        before = numbers_of(where)
        catalog = Catalog(path)
        skipped_so_far = catalog.totals()[2]
        catalog.close()
        writer = CatalogWriter(path)
    else:
        writer = CatalogWriter.create(path, "one", 1)
    for page in TREE_PAGES if not skipped_so_far else TREE.tree_pages(3, [], []):
        writer.add(page)
    writer.seal()
    assert right_so_far(where)
    after = numbers_of(where)
    assert before == {path: after[path] for path in before}, "a number that was shown stays"
    assert after[""] == ROOT_INO


def nothing(_where: str) -> None:
    pass


def half_listed(where: str) -> None:
    writer = CatalogWriter.create(path_in(where), "one", 1)
    writer.add(TREE_PAGES[0])
    writer.close()


def test_a_crash_while_it_is_made(directory: Callable[[], str]) -> None:
    def operation(where: str) -> Callable[[Counter], None]:
        def run(counter: Counter) -> None:
            traced(counter)
            CatalogWriter.create(path_in(where), "one", 1)

        return run

    assert "rename" in crash_at_every_call(nothing, operation, check, directory)


def test_a_crash_while_pages_are_taken_in_and_sealed(directory: Callable[[], str]) -> None:
    def operation(where: str) -> Callable[[Counter], None]:
        def run(counter: Counter) -> None:
            traced(counter)
            writer = CatalogWriter(path_in(where))
            writer.add(ON_DEMAND)
            for page in TREE_PAGES[1:]:
                writer.add(page)
            writer.seal()

        return run

    calls = crash_at_every_call(half_listed, operation, check, directory)
    assert calls.count("COMMIT") == len(TREE_PAGES) + 1
    assert "PRAGMA wal_checkpoin" in calls
