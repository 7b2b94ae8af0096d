"""Reading list files: what is a path, what is a URL, what is shown where."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfs.errors import SourceUnsupported
from dsfs.sources.http_list_file import Entry, format_of, parse_list

URL = "http://host/data/list.txt?version=2"


def test_text() -> None:
    lines = [
        "\ufeff# comment",
        "a b",
        "./c",
        "/rooted",
        "http://host/data/d%20e?sig=1",
        "https://other:8/x/y",
        "",
        "  ",
    ]
    assert parse_list("\n".join(lines).encode(), ".txt", URL) == [
        Entry("a b", "http://host/data/a%20b"),
        Entry("c", "http://host/data/c"),
        Entry("/rooted", "http://host/data//rooted"),
        Entry("d e", "http://host/data/d%20e?sig=1"),
        Entry("other:8/x/y", "https://other:8/x/y"),
    ]


def test_names_that_are_not_utf8_keep_their_bytes() -> None:
    (entry,) = parse_list(b"caf\xe9%\n", ".txt", URL)
    assert entry == Entry("caf\udce9%", "http://host/data/caf%E9%25")


def test_json_fields() -> None:
    digest = "AB" * 32
    rows = [
        {"path": "shown/here", "url": "../else/x", "size": "7", "sha256": f"sha256:{digest}", "mtime": 1.5},
        {"name": "n", "size": None, "unknown": [1]},
    ]
    assert parse_list(json.dumps(rows).encode(), ".json", URL) == [
        Entry("shown/here", "http://host/else/x", 7, digest.lower(), 1_500_000_000),
        Entry("n", "http://host/data/n"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"path": 1},
        {"path": "a", "size": -1},
        {"path": "a", "size": True},
        {"path": "a", "size": 1.5},
        {"path": "a", "size": 2**63},
        {"path": "a", "mtime": "yesterday"},
        {"path": "a", "mtime": 1e300},
        {"path": "a", "url": "file:///etc/passwd"},
        {"url": "http://"},
    ],
)
def test_wrong_rows_are_named(row: object) -> None:
    with pytest.raises(SourceUnsupported, match="entry 2"):
        parse_list(json.dumps([{"path": "fine"}, row]).encode(), ".json", URL)


def test_one_line_twice_is_one_file() -> None:
    assert len(parse_list(b"a\na\n", ".txt", URL)) == 1


def test_formats() -> None:
    assert [format_of(f"http://h/{name}") for name in ("a.TXT?x=.json", "a.json", "a.csv", "a", "a.html?b.csv")] == [
        ".txt",
        ".json",
        ".csv",
        None,
        None,
    ]


@given(st.binary(max_size=200), st.sampled_from([".txt", ".json", ".csv"]))
def test_whatever_comes_is_a_list_or_one_line(data: bytes, kind: str) -> None:
    with contextlib.suppress(SourceUnsupported):
        assert all(entry.url.startswith(("http://", "https://")) for entry in parse_list(data, kind, URL))
