"""Directories out of a flat S3 listing: each is shown once, and complete only when nothing of it is still to come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfs.errors import SourceUnavailable
from dsfs.model import Kind, SourceObject, path_parts
from dsfs.sources.flat_tree import FlatTree

PARTS = st.sampled_from(["a", "a-b", "a.b", "b", "é", "日", "", ".", "..", "z" * 300])
KEYS = st.lists(PARTS, min_size=1, max_size=4).map("/".join).filter(lambda key: key not in ("", "/"))


def listing(keys: list[str], page_keys: int) -> tuple[dict[str, Kind], list[str], list[str]]:
    """What a catalog would make of it; checks that nothing comes behind a "complete"."""
    tree = FlatTree()
    run = tree.run()
    pages = []
    for start in range(0, len(keys), page_keys):
        for key in keys[start : start + page_keys]:
            marker = key.endswith("/")
            run.add(SourceObject(key.removesuffix("/"), Kind.DIRECTORY if marker else Kind.FILE))
        pages.append(run.take_page())
    run.end()
    pages += [run.take_page(), tree.finish()]
    shown: dict[str, Kind] = {}
    skipped: list[str] = []
    complete: list[str] = []
    for page in pages:
        for obj in page.objects:
            if path_parts(obj.path) is None:
                skipped.append(obj.path)
                continue
            assert obj.path.rpartition("/")[0] not in complete
            assert obj.kind is Kind.FILE or obj.path not in shown or shown[obj.path] is Kind.FILE
            shown[obj.path] = max(obj.kind, shown.get(obj.path, Kind.FILE))
        complete += page.complete
    return shown, complete, skipped


def expected(keys: list[str]) -> tuple[dict[str, Kind], list[str]]:
    shown: dict[str, Kind] = {}
    skipped = []
    for key in keys:
        marker = key.endswith("/")
        parts = path_parts(key.removesuffix("/"))
        if parts is None:
            skipped.append(key.removesuffix("/"))
            continue
        for i in range(1, len(parts)):
            shown["/".join(parts[:i])] = Kind.DIRECTORY
        path = "/".join(parts)
        shown[path] = Kind.DIRECTORY if marker else shown.get(path, Kind.FILE)
    return shown, skipped


@given(st.sets(KEYS, max_size=30), st.integers(1, 8))
def test_a_listing_in_order(keys: set[str], page_keys: int) -> None:
    ordered = sorted(keys, key=str.encode)
    shown, complete, skipped = listing(ordered, page_keys)
    want, bad = expected(ordered)
    assert shown == want
    assert skipped == bad
    assert sorted(complete) == sorted({"", *(path for path, kind in want.items() if kind is Kind.DIRECTORY)})
    assert complete[-1] == ""


@given(st.lists(KEYS, max_size=30, unique=True), st.integers(1, 8))
def test_a_listing_out_of_order_is_right_or_refused(keys: list[str], page_keys: int) -> None:
    try:
        shown, complete, _ = listing(keys, page_keys)
    except SourceUnavailable:
        return
    want, _ = expected(keys)
    assert shown == want
    assert set(complete) == {"", *(path for path, kind in want.items() if kind is Kind.DIRECTORY)}


def test_a_directory_is_complete_as_soon_as_it_is_left() -> None:
    tree = FlatTree().run()
    for key in ("a/1", "a/2", "b/1"):
        tree.add(SourceObject(key))
    assert tree.take_page().complete == ("a",)


def test_coming_back_to_what_was_called_complete_is_an_error() -> None:
    tree = FlatTree().run()
    tree.add(SourceObject("b/1"))
    tree.add(SourceObject("c"))
    assert tree.take_page().complete == ("b",)
    with pytest.raises(SourceUnavailable, match="not in order"):
        tree.add(SourceObject("b/0"))


def test_what_no_run_is_in_at_its_end_is_complete_at_the_end() -> None:
    """The run that follows begins in the same directory with a key that is no path, so it never enters it."""
    tree = FlatTree()
    first, second = tree.run(), tree.run("a//b")
    first.add(SourceObject("a/1"))
    first.end("a//b")
    second.add(SourceObject("a//b"))
    second.end()
    assert (first.take_page().complete, second.take_page().complete) == ((), ())
    assert tree.finish().complete == ("a", "")
