"""Heads of answers: what is right is read, what two readers could take in two ways is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfs.sources.wire_head import BadHead, parse_head


def test_an_answer_as_servers_give_it() -> None:
    head = parse_head(b'HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\netag: "x"\r\nContent-Range:bytes 0-9/20')
    assert (head.status, head.content_length, head.framed, head.keeps_open) == (206, 10, True, True)
    assert head.headers["ETag"] == '"x"'
    assert head.headers["content-range"] == "bytes 0-9/20"


@pytest.mark.parametrize(
    ("raw", "keeps_open", "framed"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close", False, True),
        (b"HTTP/1.1 200\r\nContent-Length: 1, 1", True, True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1", False, True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: Keep-Alive", True, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1", True, False),
        (b"HTTP/1.1 200 OK", True, False),
    ],
)
def test_how_a_body_ends(raw: bytes, keeps_open: bool, framed: bool) -> None:
    head = parse_head(raw)
    assert (head.keeps_open, head.framed) == (keeps_open, framed)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x1",
        b"HTTP/1.1 200 OK\r\nContent-Length : 1",
        b"HTTP/1.1 200 OK\r\nA: b\r\n goes on",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 7",
        b"HTTP/1.1 200 OK\r\nA: b\0",
    ],
)
def test_what_is_refused(raw: bytes) -> None:
    with pytest.raises(BadHead):
        parse_head(raw)


@given(st.binary(max_size=200), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: "]))
def test_any_bytes_are_a_head_or_refused(raw: bytes, before: bytes) -> None:
    try:
        head = parse_head(before + raw)
    except BadHead:
        return
    assert 0 <= head.status <= 999
    assert head.content_length is None or head.content_length >= 0
