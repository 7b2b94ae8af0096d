"""The index under a full disk, and its sums under any order of what it is told."""

from __future__ import annotations

import os
import pickle
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.cache.eviction import Cached
from dsfs.cache.index import Index, forget_clean
from dsfs.cache.open_index import open_index
from dsfs.cache.rows import Rows

KEYS = [f"{number:064x}" for number in range(3)]
events = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "use", "remove", "shrink", "flush"]),
        st.sampled_from(KEYS),
        st.sampled_from("ab"),
    ),
    max_size=30,
)


@given(events)
@settings(deadline=None, max_examples=60)
def test_sums_are_those_of_a_dictionary(events: list[tuple[str, str, str]]) -> None:
    size: dict[str, int] = {}
    owners: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        index = Index(directory)
        for what, key, owner in events:
            match what:
                case "add":
                    index.add(key, 10, 10, owner)
                    size[key] = size.get(key, 0) + 10
                    owners.setdefault(key, set()).add(owner)
                case "use":
                    index.use(key, owner)
                    if key in size:
                        owners[key].add(owner)
                case "remove":
                    index.remove(key)
                    size.pop(key, None)
                    owners.pop(key, None)
                case "shrink" if size.get(key, 0) > 10:
                    index.shrink(key, 10, 10)
                    size[key] -= 10
                case "flush":
                    index.flush(1.0)
        index.flush(2.0)
        rows = {row.key: row for row in index.everything()}
        assert {key: row.cached_bytes for key, row in rows.items()} == size
        assert index.used_bytes == sum(size.values())
        for owner in "ab":
            assert index.owner_bytes(owner) == sum(row.cached_bytes for row in rows.values() if owner in row.owners)
        for key, row in rows.items():
            assert set(row.owners) >= owners[key]
        index.close(3.0)
        again = Index(directory)
        assert again.was_clean
        assert again.used_bytes == index.used_bytes
        again.close(4.0)
        assert Index(directory).owner_bytes("a") == index.owner_bytes("a")


def test_least_recently_used_comes_first(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    for key in KEYS:
        index.add(key, 10, 10, "a")
        index.flush(0.0)
    index.flush(100.0)  # a use is noted to the minute
    index.use(KEYS[0], "a")
    index.flush(101.0)
    assert [row.key for row in index.everything()] == [KEYS[1], KEYS[2], KEYS[0]]
    index.close(2.0)


@pytest.mark.parametrize("jump_s", [-7200.0, 7200.0, -86_400.0 * 400])
def test_a_clock_that_jumps_changes_nothing_of_the_order(tmp_path: Path, jump_s: float) -> None:
    """Neither is a use after the jump taken for one of the same minute, nor does the order go by the clock."""
    index, now_s = Index(str(tmp_path)), 1e9
    for key in KEYS:
        index.add(key, 10, 10, "a")
        index.flush(now_s)
    index.flush(now_s + jump_s)
    index.use(KEYS[0], "a")
    index.flush(now_s + jump_s)
    assert [row.key for row in index.everything()] == [KEYS[1], KEYS[2], KEYS[0]]
    index.close(now_s)
    again = Index(str(tmp_path))
    assert again.was_clean
    assert [row.key for row in again.everything()] == [KEYS[1], KEYS[2], KEYS[0]]
    again.close(now_s + jump_s)


def test_a_full_disk_loses_nothing_that_the_next_flush_can_write(tmp_path: Path) -> None:
    """SQLite's own limit on pages stands for the disk."""
    index = Index(str(tmp_path))
    index.add(KEYS[0], 10, 10, "a")
    index.flush(0.0)
    ((pages,),) = index._rows._cache._sql("PRAGMA page_count").fetchall()
    index._rows._cache._sql(f"PRAGMA max_page_count = {pages}").fetchall()
    keys = [f"{number:064x}" for number in range(100, 1100)]
    for key in keys:
        index.add(key, 10, 10, "b" * 100)
    index.remove(KEYS[0])
    for _again in range(2):
        with pytest.raises(OSError, match="index of the cache cannot be written"):
            index.flush(1.0)
        index.add(keys[0], 5, 5, "a")
        assert KEYS[0] in index
        assert index.owner_bytes("b" * 100) == 10 * len(keys)
    index._rows._cache._sql("PRAGMA max_page_count = 1073741823").fetchall()
    index.flush(2.0)
    rows = {row.key: row.cached_bytes for row in index.everything()}
    assert rows == dict.fromkeys(keys, 10) | {keys[0]: 20}
    assert index.used_bytes == sum(rows.values())
    assert index.owner_bytes("b" * 100) == index.used_bytes
    assert index.owner_bytes("a") == 20
    index.close(3.0)


def test_a_priority_that_cannot_be_written_is_as_it_was(tmp_path: Path) -> None:
    """A connection that may only read stands for a disk that refuses."""
    index = Index(str(tmp_path))
    for key in KEYS:
        index.add(key, 10, 10, "a")
    index.flush(0.0)
    index._rows._cache._sql("PRAGMA query_only = 1").fetchall()
    with pytest.raises(OSError, match="index of the cache cannot be written"):
        index.set_priority("a", 3)
    assert {row.priority for row in index.everything()} == {0}
    index._rows._cache._sql("PRAGMA query_only = 0").fetchall()
    index.set_priority("a", 3)
    assert {row.priority for row in index.everything()} == {3}
    assert index._rows.classes() == [f"p{2**31 + 3}"]
    index.close(1.0)
    again = Index(str(tmp_path))
    assert {row.priority for row in again.everything()} == {3}
    again.close(2.0)


def test_an_end_that_the_disk_refuses_is_not_in_order(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    index.add(KEYS[0], 10, 10, "a")
    assert KEYS[0] in index
    assert KEYS[1] not in index
    index.flush(0.0)
    ((pages,),) = index._rows._cache._sql("PRAGMA page_count").fetchall()
    index._rows._cache._sql(f"PRAGMA max_page_count = {pages}").fetchall()
    for number in range(100, 1100):
        index.add(f"{number:064x}", 10, 10, "a")
    index.close(1.0)
    again = Index(str(tmp_path))
    assert not again.was_clean
    assert [row.key for row in again.everything()] == [KEYS[0]]
    again.close(2.0)


def test_a_crash_forgets_what_was_not_written_and_counts_nothing_twice(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    index.add(KEYS[0], 10, 10, "a")
    index.flush(0.0)
    index.add(KEYS[1], 10, 10, "a")
    index._rows._cache.close()  # killed
    after = Index(str(tmp_path))
    assert not after.was_clean
    assert after.used_bytes == sum(row.cached_bytes for row in after.everything()) == 10
    after.close(1.0)


def test_what_nobody_shows_any_more_goes_first_and_is_whose_who_shows_it_again(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    index.set_priority("low", -5)
    for number, owner in enumerate(("low", "left", "left", "both")):
        index.add(f"{number:064x}", 10, 10, owner)
        index.flush(float(number))
    index.use(f"{3:064x}", "left")
    index.disown("left", iter([f"{number:064x}" for number in (1, 2, 3, 9)]))
    assert (index.owner_bytes("left"), index.owner_bytes("both"), index.used_bytes) == (0, 10, 40)
    order = [int(each.key, 16) for each in index.victims_first()]
    assert order == [1, 2, 0, 3]
    index.use(f"{1:064x}", "another")
    index.flush(5.0)
    assert index.owner_bytes("another") == 10
    assert [int(each.key, 16) for each in index.victims_first()] == [2, 0, 3, 1]
    index.close(6.0)


@pytest.mark.parametrize("priority", [0, 1])
def test_what_was_asked_for_takes_the_places_of_what_is_used_but_not_of_a_higher_priority(
    tmp_path: Path, priority: int
) -> None:
    index = Index(str(tmp_path))
    index.limit_bytes = 640
    index.set_priority("others", priority)
    for number in range(62):  # there is room for all of them
        index.add(f"{number:064x}", 10, 10, "others")
    for minute in range(3):  # a use is noted to the minute
        index.flush(120.0 * minute)
        for number in range(62):
            index.use(f"{number:064x}", "others")
    index.flush(500.0)
    wanted = [f"{number:064x}" for number in range(100, 104)]
    for number, key in enumerate(wanted):
        with index.asked_for(key):
            index.add(key, 10, 10, "own")
            if number < 2:
                index.flush(501.0)  # before all of it is here
                gone = {each.key for each in index.choose_victims(10)}
                assert key not in gone or priority == 1
    index.flush(502.0)
    gone = {each.key for each in index.choose_victims(30)}
    assert len(gone) == 3
    assert len(gone & set(wanted)) == (0 if priority == 0 else 2), "one of the others is in the window still"
    index.close(503.0)


def test_a_large_object_that_was_asked_for_grows(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    index.limit_bytes = 640
    index.set_priority("high", 1)
    for number in range(26):
        index.add(f"{number:064x}", 10, 10, "others")
        index.add(f"{number + 32:064x}", 10, 10, "high")
    large = f"{100:064x}"
    index.add(large, 100, 100, "own")
    index.flush(0.0)
    assert index.choose_victims(50, large) == [], "it was used no more than others"
    with index.asked_for(large):
        gone = index.choose_victims(500, large)
    assert {each.owners for each in gone} == {("others",)}
    assert len(gone) == 26
    assert index.choose_victims(50, large) == [], "it is as others again"
    index.close(101.0)


def test_who_has_not_looked_to_the_end_does_not_say_that_all_is_known(tmp_path: Path) -> None:
    """A server that is replaced while it looks through what the one that crashed has left."""
    for is_whole, expected in ((False, False), (True, True), (True, True)):
        index = Index(str(tmp_path))
        index.is_whole = is_whole
        index.close(1.0)
        again = Index(str(tmp_path))
        assert again.was_clean is expected
        again.close(2.0)


def test_a_disk_that_refuses_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used is known again once the disk takes something; and what changed meanwhile is looked for."""
    directory = str(tmp_path / "index")
    os.mkdir(directory)
    index = Index(directory)
    index.add(KEYS[0], 10, 10, "a")
    index.close(1.0)
    forget, full = Rows.forget, sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    def refuse(rows: Rows, names: list[str]) -> None:
        if rows._cache.directory == directory:
            raise full
        forget(rows, names)

    with structlog.testing.capture_logs() as said, monkeypatch.context() as patch:
        patch.setattr(Rows, "forget", refuse)
        for _ in range(2):
            other = open_index(directory)
            assert (other.was_clean, other.used_bytes) == (False, 0)
            other.close(2.0)
    assert len(said) == 4
    with structlog.testing.capture_logs(), monkeypatch.context() as patch:
        patch.setattr(Rows, "forget", refuse)
        beside = open_index(directory)
    beside.close(4.0)  # the disk has room again by now
    again = open_index(directory)
    assert (again.was_clean, again.used_bytes, again.owner_bytes("a")) == (False, 10, 10)
    again.close(5.0)


def test_sharing_ends_however_many_uses_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsfs.cache.index._NOTED_USES", 50)
    index = Index(str(tmp_path))
    keys = [f"{number:064x}" for number in range(2_000)]
    for key in keys:
        index.add(key, 10, 10, "a")
    index.flush(1.0)
    seen = 0
    everything = index.everything

    def counted() -> Iterator[Cached]:
        nonlocal seen
        for each in everything():
            seen += 1
            assert seen <= 3 * len(keys), "rows that it has written itself are met again and again"
            yield each

    monkeypatch.setattr(index, "everything", counted)
    index.share("a", "b")
    assert index.owner_bytes("b") == 10 * len(keys)


def test_damage_that_is_met_while_it_is_used_is_gone_for_the_next_server(tmp_path: Path) -> None:
    directory = f"{tmp_path}/index"
    index = open_index(directory)
    keys = [f"{number:064x}" for number in range(5_000)]
    for key in keys:
        index.add(key, 10, 10, "a")
    index.close(1.0)
    index = open_index(directory)
    with open(f"{directory}/cache.db", "r+b") as file:
        pages = os.path.getsize(file.name) // 4096
        for page in range(4, pages):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    with pytest.raises(OSError, match="cannot be read"):
        list(index.everything())
    again = open_index(directory)
    assert not again.was_clean
    assert list(again.everything()) == []
    again.add(keys[0], 10, 10, "a")
    again.flush(2.0)
    assert [each.key for each in again.everything()] == [keys[0]]
    again.close(3.0)


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.directory),)


@pytest.mark.parametrize("name", ["#format", "#totals", "#priorities", "#pins", "#clean"])
def test_nothing_in_it_is_unpickled(tmp_path: Path, name: str) -> None:
    """An index that came from elsewhere holds what others have written: it is damaged, and no program."""
    payload = Payload(tmp_path / "ran")
    for use in (open_index, forget_clean):
        directory = str(tmp_path / use.__name__)
        Index(directory).close(0.0)
        with closing(sqlite3.connect(f"{directory}/cache.db")) as connection, connection:
            connection.execute("DELETE FROM Cache WHERE key = ?", (name,))
            connection.execute(
                "INSERT INTO Cache (key, raw, store_time, mode, value) VALUES (?, 1, 0, 4, ?)",
                (name, pickle.dumps(payload)),
            )
        index = use(directory)
        assert not payload.directory.exists()
        if index is not None:
            assert not index.was_clean
            index.close(1.0)


def test_a_note_that_is_long_is_kept(tmp_path: Path) -> None:
    """diskcache keeps it in a file of its own."""
    index = Index(str(tmp_path))
    for number in range(3000):
        index.add(KEYS[0], 1, 1, f"{number:020d}")
    index.flush(1.0)
    assert list(tmp_path.rglob("*.val"))
    index.close(2.0)
    again = Index(str(tmp_path))
    assert again.used_bytes == 3000
    assert again.owner_bytes(f"{7:020d}") == 3000
    again.close(3.0)
