"""What must be written down before it is shown: datasets' numbers and the kernel's open handles, after every crash."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dsfs.datasets.store import DatasetStore
from dsfs.filesystem.read_path import InodeMode
from dsfs.fuse.resume import OpenJournal
from dsfs.fuse.wire import UNIQUE_RESEND
from tests.faults.sweep import BROKEN, NO_SPACE, Counter, Fault, crash_at_every_call, fail_at_every_call

STORES = ((OpenJournal, "_store"),)


@pytest.fixture
def directory(tmp_path: Path) -> Callable[[], str]:
    numbers = itertools.count()

    def make() -> str:
        where = f"{tmp_path}/{next(numbers)}"
        os.mkdir(where)
        return where

    return make


# -- numbers ------------------------------------------------------------------------------------------


def two_numbers(where: str) -> None:
    store = DatasetStore(where)
    assert (store.number("ns/a"), store.number("ns/b")) == (2, 3)


def a_third(where: str) -> Callable[[Counter], None]:
    store = DatasetStore(where)
    return lambda _counter: record_shown(where, store.number("ns/c"))


def record_shown(where: str, number: int) -> None:
    """Stands for the kernel, which remembers what it was told."""
    fd = os.open(f"{where}/shown", os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, str(number).encode(), 0)
    os.close(fd)


def numbers_hold(where: str, _survived: bool) -> None:
    store = DatasetStore(where)
    assert (store.number("ns/a"), store.number("ns/b")) == (2, 3)
    if os.path.exists(f"{where}/shown") and (shown := Path(where, "shown").read_text()):
        assert store.number("ns/c") == int(shown)
        assert store.number("ns/d") != int(shown)


def test_a_crash_never_takes_a_number_back_that_was_shown(directory: Callable[[], str]) -> None:
    assert "rename" in crash_at_every_call(two_numbers, a_third, numbers_hold, directory)


@pytest.mark.parametrize("fault", [NO_SPACE, BROKEN], ids=["ENOSPC", "EIO"])
def test_a_number_that_could_not_be_written_is_not_given_out(fault: Fault, directory: Callable[[], str]) -> None:
    """Not on the second time of asking either, which might be answered from memory."""

    def asked_twice(where: str) -> Callable[[Counter], None]:
        store = DatasetStore(where)

        def run(_counter: Counter) -> None:
            try:
                store.number("ns/c")
            except OSError:
                number = store.number("ns/c")
                with open(f"{where}/numbers.json", encoding="utf-8") as file:
                    assert json.load(file)["ns/c"] == number
                raise

        return run

    fail_at_every_call(two_numbers, asked_twice, numbers_hold, directory, fault)


# -- the journal of open handles ----------------------------------------------------------------------
#
# One operation of the kernel against a journal that has nodeid 7 open twice in passthrough (backing id 3) and 8 once in
# cached mode. After a crash the kernel repeats what was not answered.


def three_handles(where: str) -> None:
    journal = OpenJournal(f"{where}/journal")
    journal.opened(2, 7, 3)
    journal.opened(4, 7, 3)
    journal.opened(6, 8, 0)
    journal.close()


def nothing(_where: str) -> None:
    pass


def handles(journal: OpenJournal, nodeid: int) -> int:
    """How many open handles the journal counts: by releasing them, as the kernel would."""
    count = 0
    while journal.mode(nodeid) is not None:
        journal.released(1000 + 2 * count, nodeid)
        count += 1
    return count


@pytest.mark.parametrize("nodeid", [7, 8, 9])
def test_an_open_that_crashes_and_is_repeated_is_never_counted_too_low(
    nodeid: int, directory: Callable[[], str]
) -> None:
    before = {7: 2, 8: 1}

    def operation(where: str) -> Callable[[Counter], None]:
        journal = OpenJournal(f"{where}/journal")
        return lambda _counter: journal.opened(10, nodeid, 5)

    def check(where: str, survived: bool) -> None:
        journal = OpenJournal(f"{where}/journal")
        if not survived:
            journal.opened(10 | UNIQUE_RESEND, nodeid, 5)
        assert journal.mode(nodeid) is (InodeMode.CACHED if nodeid == 8 else InodeMode.PASSTHROUGH)
        if nodeid != 8:
            assert journal.backing_id(nodeid) == {7: 3, 9: 5}[nodeid]
        for other in (7, 8, 9):
            true = before.get(other, 0) + (other == nodeid)
            counted = handles(journal, other)
            assert true <= counted <= true + (other == nodeid)
        journal.close()

    assert crash_at_every_call(three_handles, operation, check, directory, *STORES) == ["store record"] * (
        4 if nodeid == 9 else 2  # a new record has its nodeid and backing id to store as well
    )


@pytest.mark.parametrize("nodeid", [7, 8])
def test_a_release_that_crashes_and_is_repeated_is_never_counted_too_low(
    nodeid: int, directory: Callable[[], str]
) -> None:
    before = {7: 2, 8: 1}

    def operation(where: str) -> Callable[[Counter], None]:
        journal = OpenJournal(f"{where}/journal")
        return lambda _counter: journal.released(10, nodeid) and None

    def check(where: str, survived: bool) -> None:
        journal = OpenJournal(f"{where}/journal")
        if not survived:
            journal.released(10 | UNIQUE_RESEND, nodeid)
        for other in (7, 8):
            true = before[other] - (other == nodeid)
            assert true <= handles(journal, other) <= true + (other == nodeid)
        journal.close()

    assert crash_at_every_call(three_handles, operation, check, directory, *STORES) == ["store record"] * 2


def test_a_journal_that_grows_keeps_all_of_it(directory: Callable[[], str]) -> None:
    full = 1024

    def filled(where: str) -> None:
        journal = OpenJournal(f"{where}/journal")
        for nodeid in range(full):
            journal.opened(2 * nodeid, 100 + nodeid, nodeid)
        journal.close()

    def operation(where: str) -> Callable[[Counter], None]:
        journal = OpenJournal(f"{where}/journal")
        return lambda _counter: journal.opened(9998, 9, 5)

    def check(where: str, survived: bool) -> None:
        journal = OpenJournal(f"{where}/journal")
        assert journal.open_inodes in ((full + 1,) if survived else (full, full + 1))
        assert all(journal.mode(100 + nodeid) is not None for nodeid in range(full))
        assert all(journal.backing_id(100 + nodeid) == nodeid for nodeid in range(1, full))
        journal.close()

    assert "posix_fallocate" in crash_at_every_call(filled, operation, check, directory, *STORES)


def test_a_journal_that_cannot_grow_refuses_the_open_and_keeps_what_it_has(directory: Callable[[], str]) -> None:
    def filled(where: str) -> None:
        journal = OpenJournal(f"{where}/journal")
        for nodeid in range(1024):
            journal.opened(2 * nodeid, 100 + nodeid, 1)
        journal.close()

    def operation(where: str) -> Callable[[Counter], None]:
        journal = OpenJournal(f"{where}/journal")
        return lambda _counter: journal.opened(9998, 9, 5)

    def check(where: str, returned: bool) -> None:
        journal = OpenJournal(f"{where}/journal")
        assert (journal.mode(9) is not None) is returned
        assert all(journal.mode(100 + nodeid) is not None for nodeid in range(1024))
        journal.close()

    fail_at_every_call(filled, operation, check, directory, NO_SPACE, *STORES)


def test_a_new_journal_that_crashes_can_be_opened(directory: Callable[[], str]) -> None:
    def operation(where: str) -> Callable[[Counter], None]:
        return lambda _counter: OpenJournal(f"{where}/journal").opened(2, 7, 3)

    def check(where: str, survived: bool) -> None:
        journal = OpenJournal(f"{where}/journal")
        if not survived:
            journal.opened(2 | UNIQUE_RESEND, 7, 3)
        assert handles(journal, 7) >= 1
        journal.close()

    crash_at_every_call(nothing, operation, check, directory, *STORES)
