"""What lies below a directory, anywhere."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.catalog.lookup import ROOT_INO
from dsfs.model import Kind
from tests.model.listings import Tree, trees
from tests.unit.catalog.test_listings import everything, new_catalog


@given(trees, st.integers(0, 2**12))
@settings(deadline=None)
def test_what_is_below_is_what_paths_say(tree: Tree, largest: int) -> None:
    with new_catalog() as (writer, catalog):
        for page in tree.tree_pages(3, [], []):
            writer.add(page)
        rows = everything(catalog)
        places = {"": ROOT_INO, **{path: row.ino for path, row in rows.items() if row.kind == Kind.DIRECTORY}}
        for place, ino in places.items():
            below = {path: row for path, row in rows.items() if not place or path.startswith(f"{place}/")}
            names = {path: row for path, row in below.items() if row.kind != Kind.DIRECTORY}
            found = list(catalog.files_below(ino))
            assert dict(found) == names
            assert len(found) == len(names), "each comes once"
            small = [row.size for row in names.values() if row.kind == Kind.FILE and 0 < (row.size or 0) <= largest]
            assert catalog.count_small_below(ino, largest) == (len(small), sum(size or 0 for size in small))
        for path, row in rows.items():
            above = [path]
            while above[-1]:
                above.append(os.path.dirname(above[-1]))
            for _again in range(2):  # known by heart then
                assert catalog.directories_above(row.ino) == [places[each] for each in above[1:]]
        assert catalog.directories_above(ROOT_INO) == []
        assert catalog.directories_above(10**9) == []
