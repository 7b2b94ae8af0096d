"""What was never here: "never" is never said of what is."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from dsfs.cache.heard_of import HeardOf

keys_ = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")


@given(st.lists(keys_), st.lists(keys_), st.lists(keys_), st.lists(keys_))
def test_what_is_here_is_heard_of(before: list[str], lying: list[str], coming: list[str], after: list[str]) -> None:
    heard_of = HeardOf()
    for key in before:
        heard_of.note(key)
    assert not any(heard_of.never(key) for key in (*before, *lying, *coming, *after)), "nothing is known yet"

    def names() -> Iterator[str]:
        yield from before
        yield from (name for key in lying for name in (key, f"{key}.map"))
        for key in coming:
            heard_of.note(key)  # stored behind the place where the names are gone through

    heard_of.learn(names())
    for key in after:
        heard_of.note(key)
    assert not any(heard_of.never(key) for key in (*before, *lying, *coming, *after))


def test_what_is_gone_is_forgotten_when_names_are_gone_through() -> None:
    heard_of = HeardOf()
    gone, other = "ab" * 32, "cd" * 32
    assert heard_of.is_stale
    heard_of.learn([gone])
    assert not heard_of.is_stale
    assert (heard_of.never(gone), heard_of.never(other)) == (False, True)
    heard_of.learn([other])
    assert (heard_of.never(gone), heard_of.never(other)) == (True, False)


def test_a_disk_that_cannot_be_gone_through_changes_nothing() -> None:
    def names() -> Iterator[str]:
        yield "ab" * 32
        raise OSError

    heard_of = HeardOf()
    for _ in range(2):
        try:
            heard_of.learn(names())
        except OSError:
            assert not heard_of.never("cd" * 32)
            assert heard_of.is_stale


def test_names_that_are_no_keys_are_passed_over() -> None:
    heard_of = HeardOf()
    heard_of.learn([".nfs000000000001", "lost+found", "", "ab" * 32])
    assert (heard_of.never("ab" * 32), heard_of.never("cd" * 32)) == (False, True)
