"""When the rest of a file is worth having."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsfs.prefetch.completion import COMPLETE_SHARE, ROOM_SHARE, worth_completing

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
