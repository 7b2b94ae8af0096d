"""A new revision beside the shown one: the same things keep their numbers, and every change is told."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.catalog.diff import (
    Changes,
    ManyChanges,
    adopt_numbers,
    changes,
    keep_below_refused,
    keep_unreadable,
    newly_refused,
)
from dsfs.catalog.lookup import ROOT_INO, Catalog
from dsfs.catalog.writer import CatalogWriter
from dsfs.errors import CatalogError, SourceDeclined, SourceError, SourceRefused
from dsfs.model import Kind, ListingPage, SourceObject

NAMES = st.sampled_from(["a", "b", "c", "d"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PATHS, st.integers(0, 3), max_size=10)  # path → version
_numbers = itertools.count()


def sealed(directory: Path, tree: dict[str, int]) -> str:
    writer = CatalogWriter.create(f"{directory}/{next(_numbers)}.sqlite", "r", time.time_ns())
    objects = [SourceObject(path, Kind.FILE, version, 1, f"v{version}") for path, version in sorted(tree.items())]
    writer.add(ListingPage(tuple(objects)))
    writer.seal()
    return writer.file


def rows(file: str) -> dict[str, tuple[int, int, str]]:
    """path → (number, kind, tag) of everything that a reader finds by walking from the root."""
    catalog = Catalog(file)
    found: dict[str, tuple[int, int, str]] = {"": (ROOT_INO, int(Kind.DIRECTORY), "")}
    waiting = [("", ROOT_INO)]
    while waiting:
        above, ino = waiting.pop()
        for row in catalog.children(ino, b"", 100):
            path = f"{above}/{row.name.decode()}" if above else row.name.decode()
            assert path not in found
            assert row.parent == ino
            assert catalog.path_of(row.ino) == path
            found[path] = (row.ino, row.kind, row.tag)
            if row.kind == Kind.DIRECTORY:
                waiting.append((path, row.ino))
    catalog.close()
    return found


def test_a_catalog_that_cannot_be_compared_is_not_left_open(tmp_path: Path) -> None:
    new = sealed(tmp_path, {"a": 1})
    with pytest.raises(CatalogError, match="cannot be compared with") as caught:
        changes(new, f"{tmp_path}/nowhere/shown.sqlite", 10)
    assert new not in {os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}, caught


@settings(max_examples=150, deadline=None)
@given(before=TREES, after=TREES, again=TREES)
def test_the_same_things_keep_their_numbers_and_no_number_is_given_twice(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, int], after: dict[str, int], again: dict[str, int]
) -> None:
    directory = tmp_path_factory.mktemp("diff")
    first, second, third = (sealed(directory, tree) for tree in (before, after, again))
    known = rows(first)
    meaning = {number: (path, kind, tag) for path, (number, kind, tag) in known.items()}
    shown, free = first, max(meaning) + 1
    for file in (second, third):
        expected = {path: (kind, tag) for path, (_number, kind, tag) in rows(file).items()}
        free = adopt_numbers(file, shown, free)
        now = rows(file)
        assert {path: (kind, tag) for path, (_number, kind, tag) in now.items()} == expected
        for path, (number, kind, tag) in now.items():
            assert number < free
            if path in known and known[path][1:] == (kind, tag) and _same_above(path, known, now):
                assert number == known[path][0]
            # whatever a number has meant once, it means for ever
            assert meaning.setdefault(number, (path, kind, tag)) == (path, kind, tag)
        _check_changes(file, shown, known, now)
        known, shown = now, file


def _same_above(path: str, known: dict[str, tuple[int, int, str]], now: dict[str, tuple[int, int, str]]) -> bool:
    """Whether every directory above is the same one in both."""
    parts = path.split("/")
    return all(known["/".join(parts[:n])][0] == now["/".join(parts[:n])][0] for n in range(1, len(parts)))


def _check_changes(
    new: str, shown: str, known: dict[str, tuple[int, int, str]], now: dict[str, tuple[int, int, str]]
) -> None:
    found = changes(new, shown, 1000)
    assert isinstance(found, Changes)

    def names(tree: dict[str, tuple[int, int, str]]) -> dict[tuple[int, bytes], int]:
        return {
            (tree[path.rpartition("/")[0]][0], path.rpartition("/")[2].encode()): number
            for path, (number, _kind, _tag) in tree.items()
            if path
        }

    was, is_now = names(known), names(now)
    differing = {name for name in was.keys() | is_now.keys() if was.get(name) != is_now.get(name)}
    assert set(found.names) == differing
    assert set(found.directories) == {parent for parent, _name in differing}
    assert bool(found) == bool(differing)


def test_more_changes_than_are_held_in_memory_are_the_same_ones(tmp_path: Path) -> None:
    first, second = sealed(tmp_path, {}), sealed(tmp_path, {f"{number:02}": 1 for number in range(20)})
    adopt_numbers(second, first, 2)
    found, many = changes(second, first, 20), changes(second, first, 19)
    assert isinstance(found, Changes)
    assert isinstance(many, ManyChanges)
    assert sorted(many.names()) == sorted(found.names)
    assert len(found.names) == 20


def test_a_directory_in_which_nothing_changed_keeps_its_time(tmp_path: Path) -> None:
    first, second = sealed(tmp_path, {"a/x": 1, "b/x": 1}), sealed(tmp_path, {"a/x": 1, "b/x": 2})
    adopt_numbers(second, first, 100)
    old, new = Catalog(first), Catalog(second)
    times = {name: (old.find(name), new.find(name)) for name in ("a", "b")}
    assert times["a"][0].mtime_ns == times["a"][1].mtime_ns  # type: ignore[union-attr]
    assert times["b"][0].mtime_ns != times["b"][1].mtime_ns  # type: ignore[union-attr]


def test_what_is_kept_below_a_refused_directory_is_counted_however_large_it_is(tmp_path: Path) -> None:
    files: list[str] = []
    for number, found in enumerate([(2**63 - 1, 2**62, -1), ()]):
        writer = CatalogWriter.create(f"{tmp_path}/{number}.sqlite", "r", 1)
        refused = ListingPage((SourceObject("d", Kind.DIRECTORY), SourceObject("x", size=5)), ("",), (("d", "no"),))
        writer.add(refused)
        writer.add_found({f"d/{size}": SourceObject(f"d/{size}", size=size) for size in found})
        writer.seal()
        files.append(writer.file)
    shown, new = files
    adopt_numbers(new, shown, Catalog(shown).next_ino())
    keep_below_refused(new, shown)
    assert Catalog(new).totals() == Catalog(shown).totals() == (4, 2**63 - 1, 0)
    assert Catalog(new).large_bytes() == 2**63 - 1


def test_a_size_that_no_file_can_have_is_a_change_and_no_refusal(tmp_path: Path) -> None:
    before, after, again = (sealed(tmp_path, {"a": size, "b": 1}) for size in (1, -1, -1))
    adopt_numbers(after, before, 100)
    adopt_numbers(again, after, 200)
    assert changes(after, before, 10) == Changes(((ROOT_INO, b"a"),), (ROOT_INO,))
    assert newly_refused(after, before) is None
    assert not changes(again, after, 10)
    assert Catalog(again).impossible == 1


def with_odd(directory: Path, known: dict[str, int], odd: dict[str, type[SourceError]]) -> str:
    """As ``sealed``, of a source that says what is odd in place of a size."""
    writer = CatalogWriter.create(f"{directory}/{next(_numbers)}.sqlite", "r", time.time_ns())
    objects = [SourceObject(path, Kind.FILE, size, 1, f"v{size}") for path, size in known.items()]
    writer.add(ListingPage((*objects, *(SourceObject(path, size=None) for path in odd)), ("",)))
    for path, kind in odd.items():
        writer.refuse(path, f"{path}: {kind.__name__}", kind)
    writer.seal()
    return writer.file


def test_a_file_that_cannot_be_read_any_more_stays_as_it_was_and_nothing_else(tmp_path: Path) -> None:
    shown = with_odd(tmp_path, {"a": 7, "b": 1}, {"c": SourceDeclined})
    free, before = Catalog(shown).next_ino(), Catalog(shown)
    for known, names in (({"b": 2}, {b"b"}), ({"b": 2}, set()), ({"a": 7, "b": 2}, set())):
        odd = dict.fromkeys({"a", "c"} - set(known), SourceDeclined)
        new = with_odd(tmp_path, known, odd)  # type: ignore[arg-type]
        free = adopt_numbers(new, shown, free)
        assert newly_refused(new, shown) is None
        keep_unreadable(new, shown)
        found, catalog = changes(new, shown, 10), Catalog(new)
        assert isinstance(found, Changes)
        assert {name for _parent, name in found.names} == names
        assert found.refused == (catalog.unreadable != Catalog(shown).unreadable)
        assert catalog.find("a") == before.find("a")
        assert catalog.totals() == (3, 9, 0)
        assert catalog.large_bytes() == 0
        assert catalog.unreadable == len(odd), "the status still says that it cannot be read"
        assert catalog.refusal.endswith("a: SourceDeclined" if "a" in odd else "c: SourceDeclined")
        shown = new


def test_a_directory_is_not_taken_away_by_a_look_at_its_name_that_was_declined(tmp_path: Path) -> None:
    shown, new = sealed(tmp_path, {"a/x": 1, "b": 1}), with_odd(tmp_path, {"b": 1}, {"a": SourceDeclined})
    adopt_numbers(new, shown, 100)
    odd = newly_refused(new, shown)
    assert odd is not None
    assert Catalog(new).path_of(odd) == "a"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": SourceRefused, "b": SourceDeclined}, {"a": SourceDeclined, "b": SourceRefused}),
        (
            {"a": SourceRefused, "b": SourceRefused, "c": SourceDeclined, "d": SourceDeclined},
            {"a": SourceRefused, "b": SourceDeclined, "c": SourceDeclined, "d": SourceRefused},
        ),
        ({"a": SourceRefused}, {"a": SourceRefused}),
    ],
    ids=["and what is told", "though the same is told", "the same"],
)
def test_as_many_that_are_refused_need_not_be_the_same(
    tmp_path: Path, before: dict[str, type[SourceError]], after: dict[str, type[SourceError]]
) -> None:
    shown, new = (with_odd(tmp_path, {"x": 1}, odd) for odd in (before, after))
    adopt_numbers(new, shown, 100)
    assert changes(new, shown, 10) == Changes((), (), before != after)
    assert Catalog(new).refused == Catalog(shown).refused


def test_what_is_told_of_one_that_cannot_be_read_is_of_today(tmp_path: Path) -> None:
    files = []
    for number, why in enumerate(("423", "451")):
        writer = CatalogWriter.create(f"{tmp_path}/told{number}.sqlite", "r", 1)
        writer.add(ListingPage((SourceObject("a", size=None), SourceObject("x", size=1)), ("",)))
        writer.refuse("a", why, SourceDeclined)
        writer.seal()
        files.append(writer.file)
    shown, new = files
    adopt_numbers(new, shown, 100)
    assert changes(new, shown, 10) == Changes((), (), True)


def test_a_number_of_what_was_deleted_long_ago_is_not_given_again(tmp_path: Path) -> None:
    """Revisions are forgotten: their numbers are not."""
    tree = {f"{number:02}": 1 for number in range(40)}
    shown = sealed(tmp_path, tree)
    given = {number for number, _kind, _tag in rows(shown).values()}
    for path in sorted(tree, reverse=True)[:30]:
        del tree[path]
        following = sealed(tmp_path, tree)
        adopt_numbers(following, shown, Catalog(shown).next_ino())
        shown = following
    last = sealed(tmp_path, {**tree, "new": 1})
    adopt_numbers(last, shown, Catalog(shown).next_ino())
    assert rows(last)["new"][0] not in given
