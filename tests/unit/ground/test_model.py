"""Keys that cannot meet, and paths that can be shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsfs.model import NAME_MAX_BYTES, object_key, path_parts

escaped = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
triple = st.tuples(escaped, escaped, escaped)


@given(triple, triple)
def test_two_versions_have_one_key_only_if_they_are_one(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (object_key(*one) == object_key(*other)) == (one == other)


@given(st.text("ab", min_size=1, max_size=6), st.integers(0, 6), st.integers(0, 6))
def test_a_key_does_not_depend_on_the_parts_put_together(text: str, first: int, second: int) -> None:
    """ "a","bc" and "ab","c" are two files."""
    cuts = sorted((first % (len(text) + 1), second % (len(text) + 1)))
    parts = text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]
    moved = text[: cuts[0]] + text[cuts[0] : cuts[1]], "", text[cuts[1] :]
    assert (object_key(*parts) == object_key(*moved)) == (parts == moved)


def test_a_key_is_the_name_of_a_file() -> None:
    key = object_key("s3://bucket", "a/../b\0", "tag")
    assert len(key) == 64
    assert set(key) <= set("0123456789abcdef")


@given(
    st.lists(st.sampled_from(["a", "b.c", "", ".", "..", "x\0y", "é" * 127, "é" * 128, "z" * 255, "z" * 256, "\udcff"]))
)
def test_parts_are_names_that_a_file_system_can_show(parts: list[str]) -> None:
    can_be_shown = parts and all(
        part not in ("", ".", "..")
        and "\0" not in part
        and len(part.encode("utf-8", "surrogateescape")) <= NAME_MAX_BYTES
        for part in parts
    )
    assert path_parts("/".join(parts)) == (tuple(parts) if can_be_shown else None)
