"""When the rest is worth having: of a file, and of many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsfs.prefetch.completion import (
    COMPLETE_SHARE,
    FIRST_LOOK_FILES,
    MANY_SHARE,
    ROOM_SHARE,
    Samples,
    worth_completing,
)

sizes = st.integers(1, 2**40)


@given(sizes, sizes, sizes)
def test_never_what_is_whole_nor_what_would_push_out_too_much(present: int, size: int, limit: int) -> None:
    if worth_completing(present, size, limit):
        assert size * COMPLETE_SHARE <= present < size <= limit * ROOM_SHARE


@given(sizes, sizes)
def test_once_worth_it_stays_worth_it_until_it_is_whole(size: int, limit: int) -> None:
    worth = [worth_completing(size * step // 64, size, limit) for step in range(64)]
    assert worth == sorted(worth)
    assert not worth_completing(size, size, limit)
    assert not worth_completing(0, size, limit)


def test_a_look_at_a_header_is_not_worth_a_file() -> None:
    assert not worth_completing(24, 100, 1000)
    assert worth_completing(25, 100, 1000)
    assert worth_completing(25, 100, 200)
    assert not worth_completing(25, 100, 199)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=900),
    st.lists(st.integers(1, 3000), min_size=6, max_size=6),
    st.integers(0, 2),
)
def test_a_directory_is_brought_when_its_share_was_read(reads: list[int], sizes: list[int], unknown: int) -> None:
    """Directories 1 to 6 lie below 0. ``unknown``: so often it is too early to say how many files there are."""
    files = dict(enumerate(sizes, 1))
    samples = Samples()
    seen = dict.fromkeys(range(7), 0)  # where that counts: not below what is brought
    asked = dict.fromkeys(range(7), 0)
    brought: set[int] = set()
    for read in reads:
        above = [read, 0] if read else [0]
        if not brought.intersection(above):
            for directory in above:
                seen[directory] += 1
        for directory in samples.missed(above):
            assert directory not in brought
            asked[directory] += 1
            left = files[directory] if directory else sum(n for d, n in files.items() if d not in brought)
            if asked[directory] <= unknown:
                samples.not_yet(directory)
            elif samples.measured(directory, files[directory] if directory else sum(sizes)):
                assert seen[directory] >= max(FIRST_LOOK_FILES, left * MANY_SHARE)
                samples.brought(directory, files[directory] if directory else sum(sizes), [0] if directory else [])
                brought.add(directory)
                if directory:
                    seen[0] -= seen[directory]
    for directory, most in files.items():
        if not brought.intersection((directory, 0)):
            assert seen[directory] < max(FIRST_LOOK_FILES * 2**unknown, most * MANY_SHARE)
        assert asked[directory] <= unknown + 2, "few looks"


def test_what_is_read_below_one_directory_says_nothing_of_what_is_beside_it() -> None:
    samples = Samples()
    for _ in range(FIRST_LOOK_FILES - 1):
        assert samples.missed([2, 1]) == []
    assert samples.missed([2, 1]) == [2, 1]
    assert samples.measured(2, 400)
    samples.brought(2, 400, [1])
    assert not samples.measured(1, 1000)
    assert samples.missed([2, 1]) == [], "all of that comes"
    for _ in range(FIRST_LOOK_FILES - 1):
        assert samples.missed([3, 1]) == []
    assert samples.missed([3, 1]) == [3, 1]
    assert not samples.measured(3, 2000)
    assert samples.measured(1, 1000)


def test_the_pieces_of_a_file_are_one_file() -> None:
    samples = Samples()
    assert [samples.is_new(ino) for ino in (7, 7, 8, 7, 8, 9)] == [True, False, True, False, False, True]
