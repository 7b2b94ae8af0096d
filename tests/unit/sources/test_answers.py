"""Which bytes an answer holds; when that is not proven, none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from dsfs.errors import SourceChanged, SourceUnavailable
from dsfs.ranges import ByteRange
from dsfs.sources.answers import (
    ContentRange,
    body_place,
    check_not_coded,
    copy_body,
    has_open_end,
    http_date_ns,
    parse_content_range,
    retry_after_s,
)
from tests.sources.sinks import KeepingSink


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-9/100", ContentRange(ByteRange(0, 10), 100)),
        ("Bytes 5-5/6", ContentRange(ByteRange(5, 6), 6)),
        ("bytes 0-9/*", ContentRange(ByteRange(0, 10), None)),
        ("bytes */7", ContentRange(None, 7)),
        ("bytes 9-0/100", None),
        ("bytes 0-100/100", None),
        ("bytes=0-9/100", None),
        ("items 0-9/100", None),
        ("bytes 0-9", None),
        ("", None),
        (None, None),
    ],
)
def test_content_range(text: str | None, expected: ContentRange | None) -> None:
    assert parse_content_range(text) == expected


WANTED = ByteRange(10, 20)


@pytest.mark.parametrize(
    ("status", "content_range", "length", "expected"),
    [
        (206, "bytes 10-19/100", 10, WANTED),
        (206, "bytes 10-19/100", None, WANTED),
        (206, "bytes 10-19/*", 10, WANTED),
        (200, "bytes 10-19/100", 10, WANTED),
        (200, None, 100, ByteRange(0, 100)),
        (206, None, 10, SourceUnavailable),
        (206, "bytes 10-19/100", 9, SourceUnavailable),
        (206, "bytes 11-20/100", 10, SourceUnavailable),
        (206, "bytes 10-18/100", 9, SourceUnavailable),
        (206, "bytes 0-99/100", 100, SourceUnavailable),
        (200, "bytes 10-19/100", 100, SourceUnavailable),
        (200, "nonsense", 100, SourceUnavailable),
        (200, None, None, SourceUnavailable),
        (206, "bytes 10-19/101", 10, SourceChanged),
        (200, None, 99, SourceChanged),
        (200, None, 10, SourceChanged),
    ],
)
def test_body_place(
    status: int, content_range: str | None, length: int | None, expected: ByteRange | type[Exception]
) -> None:
    if isinstance(expected, ByteRange):
        assert body_place(status, content_range, length, 100, WANTED, "x") == expected
    else:
        with pytest.raises(expected):
            body_place(status, content_range, length, 100, WANTED, "x")


@given(st.binary(min_size=1, max_size=80), st.lists(st.integers(1, 9), max_size=80), st.data())
def test_copy_body_cuts_the_wanted_part(data: bytes, sizes: list[int], draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, len(data) - 1))
    stop = draw.draw(st.integers(start + 1, len(data)))
    sink = KeepingSink(ByteRange(start, stop))

    async def body() -> AsyncIterator[bytes]:
        position = 0
        for size in sizes:
            yield data[position : position + size]
            position += size

    sent = min(sum(sizes), len(data))
    copying = copy_body(body(), ByteRange(0, len(data)), sink.wanted, sink, "x")
    if sent >= stop:
        asyncio.run(copying)
        assert sink.data == data[start:stop]
    else:
        with pytest.raises(SourceUnavailable):
            asyncio.run(copying)
        assert sink.data == data[start:sent]


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        ([b"01234", b"56789"], True),
        ([b"0123456789", b""], True),
        ([b"0123456789", b"", b"x"], False),
        ([b"01234", b"56789x"], False),
        ([b"0123456789x"], False),
        ([b"01234"], False),
    ],
)
def test_a_body_without_a_length_must_end_where_the_range_does(pieces: list[bytes], ends: bool) -> None:
    sink = KeepingSink(WANTED)

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    copying = copy_body(body(), WANTED, WANTED, sink, "x", open_end=True)
    if ends:
        asyncio.run(copying)
        assert sink.data == b"0123456789"
    else:
        with pytest.raises(SourceUnavailable):
            asyncio.run(copying)
        assert len(sink.data) < 10


@pytest.mark.parametrize(
    ("headers", "open_end"),
    [
        ({"content-length": "10"}, False),
        ({}, True),
        ({"Transfer-Encoding": "chunked"}, True),
        ({"Transfer-Encoding": "chunked", "Content-Length": "10"}, True),
    ],
)
def test_a_length_counts_where_nothing_overrides_it(headers: dict[str, str], open_end: bool) -> None:
    assert has_open_end(CIMultiDict(headers)) is open_end


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("Transfer-Encoding", "chunked", True),
        ("Transfer-Encoding", "Identity, chunked", True),
        ("Transfer-Encoding", "gzip, chunked", False),
        ("Transfer-Encoding", "deflate", False),
        ("Content-Encoding", "identity", True),
        ("Content-Encoding", "", True),
        ("Content-Encoding", "GZIP", False),
    ],
)
def test_what_a_body_is_coded_with(name: str, value: str, plain: bool) -> None:
    headers = CIMultiDict({name: value})
    if plain:
        check_not_coded(headers, "x")
    else:
        with pytest.raises(SourceUnavailable, match="compressed"):
            check_not_coded(headers, "x")
    headers.add(name, "br")  # a header may come twice
    with pytest.raises(SourceUnavailable, match="compressed"):
        check_not_coded(headers, "x")


NOW = datetime(2026, 3, 3, 10, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("Tue, 03 Mar 2026 10:00:30 GMT", 30.0),
        ("Tue, 03 Mar 2026 09:00:00 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        ("", None),
    ],
)
def test_retry_after(text: str, expected: float | None) -> None:
    assert retry_after_s({"Retry-After": text}, NOW) == expected


def test_http_date() -> None:
    assert http_date_ns("Tue, 03 Mar 2026 10:00:00 GMT") == int(NOW.timestamp()) * 10**9
    assert http_date_ns("banana") == http_date_ns(None) == 0
