"""Servers that lie, break off and hang: the right bytes or the right error in bounded time, never wrong bytes."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import random
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from dsfs.errors import (
    RetryLater,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.model import Kind, ListingPage, SourceObject
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Source
from dsfs.sources.http import HttpSource
from dsfs.sources.http_lists import HttpListSource
from dsfs.sources.s3 import S3Options, S3Source
from dsfs.sources.timeouts import Timeouts
from tests.servers import hostile as h
from tests.servers.process import HOST
from tests.servers.streams import listening
from tests.sources.sinks import KeepingSink, WireReading

SHORT: Final = Timeouts(connect_s=3.0, idle_s=1.0)
LONG: Final = Timeouts(connect_s=10.0, idle_s=10.0)  # where nothing is late but on a machine that does much else
DATA: Final = random.Random(3).randbytes(3 * MiB)
PATH: Final = "/bucket/f"
RIGHT: Final = None  # no error: the bytes

# Behaviour, what HttpSource may do, what S3Source may do.
CASES: Final = [
    (h.other_range, SourceUnavailable, SourceUnavailable),
    (h.other_bytes_count, SourceUnavailable, SourceUnavailable),
    (h.whole_for_range, RIGHT, RIGHT),
    (h.part_under_200, RIGHT, RIGHT),
    (h.part_under_200_unsaid, SourceChanged, SourceChanged),
    (h.no_content_range, SourceUnavailable, SourceUnavailable),
    (h.nonsense_range, SourceUnavailable, SourceUnavailable),
    (h.wrong_total, SourceChanged, SourceChanged),
    (h.short_body, SourceUnavailable, SourceUnavailable),
    (h.short_length, SourceUnavailable, SourceUnavailable),
    (h.chunked, RIGHT, RIGHT),
    (h.chunked_and_longer, SourceUnavailable, SourceUnavailable),
    (h.chunked_and_longer_than_said, SourceUnavailable, SourceUnavailable),
    (h.compressed_on_its_way, SourceUnavailable, SourceUnavailable),
    (h.reset_midway, SourceUnavailable, SourceUnavailable),
    (h.stall_midway, SourceTimeout, SourceTimeout),
    (h.stall_at_once, SourceTimeout, SourceTimeout),
    (h.other_etag, SourceChanged, SourceChanged),
    (h.other_version, SourceChanged, SourceChanged),
    (h.redirect_to_itself, SourceUnavailable, SourceUnavailable),
    (h.status(403), SourceRefused, SourceRefused),
    (h.status(404), SourceChanged, SourceChanged),
    (h.status(410), SourceChanged, SourceChanged),
    (h.status(412), SourceChanged, SourceChanged),
    (h.status(416, Content_Range="bytes */5"), SourceChanged, SourceChanged),
    (h.status(429), RetryLater, RetryLater),
    (h.status(500), SourceUnavailable, SourceUnavailable),
    (h.status(503), RetryLater, RetryLater),
]


@pytest.fixture
def server() -> Iterator[h.Hostile]:
    with h.hostile() as server:
        server.files[PATH] = DATA
        yield server


def http(server: h.Hostile, timeouts: Timeouts = SHORT) -> HttpSource:
    return HttpSource(f"{server.url}bucket/", timeouts=timeouts)


def http_over_wire(server: h.Hostile, timeouts: Timeouts = SHORT) -> HttpSource:
    return WireReading(http(server, timeouts))  # type: ignore[return-value]  # reads as one


def s3(server: h.Hostile, timeouts: Timeouts = SHORT) -> S3Source:
    options = S3Options(endpoint=server.url.rstrip("/"), region="us-east-1", anonymous="true")
    return S3Source("bucket", "", options, timeouts=timeouts)


def s3_over_wire(server: h.Hostile, timeouts: Timeouts = SHORT) -> S3Source:
    server.files["/bucket/another"] = b"x"
    return WireReading(s3(server, timeouts))  # type: ignore[return-value]  # reads as one


def s3_with_client(server: h.Hostile, timeouts: Timeouts = SHORT) -> S3Source:
    source = s3(server, timeouts)
    source._reader.obstore_refused = True
    return source


def listed(source: Source) -> SourceObject:
    etag = h.etag_of(DATA)
    return SourceObject("f", size=len(DATA), version_tag=etag.strip('"') if of_s3(source) else etag)


def of_s3(source: object) -> bool:
    return isinstance(source.source if isinstance(source, WireReading) else source, S3Source)


@pytest.mark.parametrize("make", [http, http_over_wire, s3, s3_over_wire, s3_with_client])
@pytest.mark.parametrize(("behaviour", "from_http", "from_s3"), CASES)
@pytest.mark.parametrize("wanted", [ByteRange(MiB - 5, 2 * MiB), ByteRange(0, 1000), ByteRange(0, len(DATA))])
def test_the_right_bytes_or_the_right_error(
    server: h.Hostile,
    make: Callable[[h.Hostile, Timeouts], Source],
    behaviour: h.Behaviour,
    from_http: type[SourceError] | None,
    from_s3: type[SourceError] | None,
    wanted: ByteRange,
) -> None:
    # Not only one request: S3Source may ask a second time, by its other library.
    server.always(PATH, behaviour)

    async def run() -> None:
        source = make(server, SHORT if SourceTimeout in (from_http, from_s3) else LONG)
        expected = from_s3 if of_s3(source) else from_http
        whole_object = wanted.length == len(DATA)
        if whole_object and behaviour in (h.part_under_200_unsaid,):
            expected = RIGHT  # then 200 is true
        sink = KeepingSink(wanted)
        started = time.monotonic()
        try:
            if expected is RIGHT:
                await source.read(listed(source), wanted, sink)
                assert len(sink.data) == wanted.length
            else:
                with pytest.raises(expected) as caught:
                    await source.read(listed(source), wanted, sink)
                assert type(caught.value) is expected
                assert "\n" not in str(caught.value)
        finally:
            await source.close()
        assert time.monotonic() - started < 15
        assert bytes(sink.data) == DATA[wanted.start : wanted.start + len(sink.data)]

    asyncio.run(run())


@pytest.mark.parametrize("make", [http, http_over_wire])
def test_http_refuses_compressed_answers(server: h.Hostile, make: type[HttpSource]) -> None:
    server.always(PATH, h.compressed)

    async def run() -> None:
        source = make(server)
        sink = KeepingSink(ByteRange(0, 100))
        with pytest.raises(SourceUnavailable, match="compressed"):
            await source.read(listed(source), ByteRange(0, 100), sink)
        assert not sink.data
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("make", [http, http_over_wire])
def test_http_gives_stored_bytes_where_it_is_told_that_they_are_compressed(
    server: h.Hostile, make: type[HttpSource]
) -> None:
    server.always(PATH, h.stored_compressed)

    async def run() -> None:
        lister, source = http(server), make(server)
        obj = await lister.stat("f")
        assert obj is not None
        assert (obj.size, obj.version_tag) == (len(DATA), f"{h.etag_of(DATA)} gzip")
        for wanted in (ByteRange(10, 5000), ByteRange(0, len(DATA))):
            sink = KeepingSink(wanted)
            await source.read(obj, wanted, sink)
            assert sink.data == DATA[wanted.start : wanted.stop]
        asked = [asked for asked in server.asked if asked.path == PATH and asked.method == "GET" and asked.range]
        assert [each.headers.get("if-match") for each in asked[-2:]] == [h.etag_of(DATA)] * 2
        await lister.close()
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("make", [http, http_over_wire])
@pytest.mark.parametrize(
    ("now", "error"),
    [
        (h.compressed, SourceUnavailable),
        (lambda *answer: h.chunked(*answer).with_headers(Content_Encoding="gzip"), SourceUnavailable),
        (lambda *answer: h.compressed_on_its_way(*answer).with_headers(Content_Encoding="gzip"), SourceUnavailable),
        (lambda _asked, _data, answer: answer.with_headers(Content_Encoding="br"), SourceUnavailable),
        (lambda *answer: h.other_etag(*answer).with_headers(Content_Encoding="gzip"), SourceChanged),
        (lambda *answer: h.wrong_total(*answer).with_headers(Content_Encoding="gzip"), SourceChanged),
        (lambda _asked, _data, answer: answer, SourceChanged),
    ],
    ids=[
        "shorter",
        "without a length",
        "by its transfer",
        "otherwise",
        "another version",
        "another size",
        "not at all",
    ],
)
def test_what_was_stored_compressed_comes_so_or_not_at_all(
    server: h.Hostile, make: type[HttpSource], now: h.Behaviour, error: type[SourceError]
) -> None:
    server.always(PATH, now)
    obj = SourceObject("f", size=len(DATA), version_tag=f"{h.etag_of(DATA)} gzip")

    async def run() -> None:
        source = make(server)
        sink = KeepingSink(ByteRange(0, 100))
        with pytest.raises(error):
            await source.read(obj, sink.wanted, sink)
        assert not sink.data
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("make", [http, http_over_wire])
def test_what_is_compressed_on_its_way_is_not_the_file_however_long_it_is(
    server: h.Hostile, make: type[HttpSource]
) -> None:
    server.always(PATH, h.as_long_as_compressed)

    async def run() -> None:
        lister, source = http(server), make(server)
        obj = await lister.stat("f")
        assert obj is not None
        assert obj.version_tag == h.etag_of(DATA)
        for wanted in (ByteRange(0, 100), ByteRange(0, len(DATA))):
            sink = KeepingSink(wanted)
            with pytest.raises(SourceUnavailable, match="compressed"):
                await source.read(obj, wanted, sink)
            assert not sink.data
        await lister.close()
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "behaviour",
    [
        h.compressed,
        lambda *answer: h.compressed_on_its_way(*answer).with_headers(Content_Encoding="gzip"),
        lambda *answer: h.stored_compressed(*answer).with_headers(ETag='W/"a"'),
        lambda *answer: h.stored_compressed(*answer).with_headers(ETag=None),
    ],
    ids=["a byte is more than one", "by its transfer too", "a weak version", "none but a time"],
)
def test_what_is_not_surely_stored_compressed_is_not_listed(server: h.Hostile, behaviour: h.Behaviour) -> None:
    server.always(PATH, behaviour)
    server.files["/bucket/urls.txt"] = b"f\n"

    async def run() -> None:
        for source in (http(server), HttpListSource(f"{server.url}bucket/", "urls.txt", timeouts=SHORT)):
            with pytest.raises(SourceUnsupported, match="compressed"):
                await source.stat("f")
            await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("name", ["urls.txt", "urls.csv", "hashes.csv"])
def test_a_list_names_stored_bytes_too(server: h.Hostile, name: str) -> None:
    """With their sizes or hashes or without."""
    server.always(PATH, h.stored_compressed)
    server.files["/bucket/urls.txt"] = b"f\n"
    server.files["/bucket/urls.csv"] = f"path,size\nf,{len(DATA)}\n".encode()
    server.files["/bucket/hashes.csv"] = f"path,sha256\nf,{hashlib.sha256(DATA).hexdigest()}\n".encode()

    async def run() -> None:
        source = HttpListSource(f"{server.url}bucket/", name, timeouts=SHORT)
        obj = await source.stat("f")
        assert obj is not None
        sink = KeepingSink(ByteRange(3, 500))
        await source.read(obj, sink.wanted, sink)
        assert sink.data == DATA[3:500]
        await source.close()

    asyncio.run(run())


def test_what_a_list_has_the_size_of_is_not_what_is_compressed_on_its_way(server: h.Hostile) -> None:
    """However long the answer is, and nor is it what is stored otherwise later."""
    server.files["/bucket/urls.csv"] = f"path,size\nf,{len(DATA)}\n".encode()

    async def run() -> None:
        for behaviour, error in (
            (long_enough_compressed, SourceUnsupported),
            (lambda *answer: h.stored_compressed(*answer).with_headers(ETag='W/"a"'), SourceUnavailable),
            (lambda *answer: h.chunked(*answer).with_headers(Content_Encoding="gzip"), SourceUnavailable),
        ):
            server.always(PATH, behaviour)
            source = HttpListSource(f"{server.url}bucket/", "urls.csv", timeouts=SHORT)
            obj = await source.stat("f")
            assert obj is not None
            sink = KeepingSink(ByteRange(0, 100))
            with pytest.raises(error, match="compressed"):
                await source.read(obj, sink.wanted, sink)
            assert not sink.data
            await source.close()
        server.always(PATH, h.stored_compressed)
        source = HttpListSource(f"{server.url}bucket/", "urls.csv", timeouts=SHORT)
        sink = KeepingSink(ByteRange(0, 100))
        await source.read(obj, sink.wanted, sink)
        server.always(PATH, lambda _asked, _data, answer: answer)
        with pytest.raises(SourceChanged):
            await source.read(obj, sink.wanted, sink)
        await source.close()

    asyncio.run(run())


def long_enough_compressed(asked: h.Asked, data: bytes, answer: h.Answer) -> h.Answer:
    """Compressed on its way, and by chance as long as what was asked for; but not where that is one byte."""
    return h.as_long_as_compressed(asked, data, answer) if len(answer.body) > 1 else h.compressed(asked, data, answer)


@pytest.mark.parametrize("make", [s3, s3_over_wire, s3_with_client])
def test_s3_gives_stored_bytes_whatever_their_encoding_is_called(server: h.Hostile, make: type[S3Source]) -> None:
    """An object stored with Content-Encoding: gzip is listed with its stored size, so its stored bytes are the file."""
    server.always(PATH, lambda asked, data, answer: answer.with_headers(Content_Encoding="gzip"))

    async def run() -> None:
        source = make(server)
        sink = KeepingSink(ByteRange(10, 5000))
        await source.read(listed(source), ByteRange(10, 5000), sink)
        assert sink.data == DATA[10:5000]
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("make", [http, http_over_wire, s3_over_wire, s3_with_client, s3])
def test_retry_after(server: h.Hostile, make: type[HttpSource]) -> None:
    server.behave(PATH, h.status(429, Retry_After="7"))

    async def run() -> None:
        source = make(server)
        with pytest.raises(RetryLater) as caught:
            await source.read(listed(source), ByteRange(0, 10), KeepingSink(ByteRange(0, 10)))
        # obstore does not show headers of failures
        assert caught.value.retry_after_s == (None if make is s3 else 7.0)
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("make", [http, http_over_wire, s3, s3_over_wire, s3_with_client])
def test_a_retry_goes_on_where_the_last_one_ended(server: h.Hostile, make: type[HttpSource]) -> None:
    server.behave(PATH, h.reset_midway, h.short_body, h.status(500))

    async def run() -> None:
        source = make(server)
        sink = KeepingSink(ByteRange(5, len(DATA)))
        for _failure in range(3):
            with pytest.raises(SourceUnavailable):
                await source.read(listed(source), ByteRange(5 + len(sink.data), len(DATA)), sink)
        await source.read(listed(source), ByteRange(5 + len(sink.data), len(DATA)), sink)
        assert sink.data == DATA[5:]
        await source.close()

    asyncio.run(run())
    starts = [asked.range[0] for asked in server.asked if asked.range]
    assert starts == sorted(starts)
    assert starts[-1] > MiB


@pytest.mark.parametrize("make", [http, http_over_wire, s3, s3_over_wire, s3_with_client])
def test_the_first_bytes_do_not_wait_for_the_last(server: h.Hostile, make: type[HttpSource]) -> None:
    gate = server.gate(PATH, after_bytes=2 * MiB)

    class Opening(KeepingSink):
        async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            await super().write(offset, data)
            if len(self.data) >= MiB:
                gate.open()

    async def run() -> None:
        source = make(server)
        sink = Opening(ByteRange(0, len(DATA)))
        await source.read(listed(source), sink.wanted, sink)
        assert sink.data == DATA
        await source.close()

    asyncio.run(run())


def test_the_fallback_is_kept_and_only_after_it_helped(server: h.Hostile) -> None:
    async def run() -> None:
        source = s3(server)
        obj = listed(source)
        server.always(PATH, h.nonsense_range)
        with pytest.raises(SourceUnavailable):
            await source.read(obj, ByteRange(0, 10), KeepingSink(ByteRange(0, 10)))
        assert not source._reader.obstore_refused
        server.always(PATH, h.part_under_200)
        for expected in (2, 1, 1):
            before = server.requests[PATH]
            await source.read(obj, ByteRange(0, 10), KeepingSink(ByteRange(0, 10)))
            assert server.requests[PATH] - before == expected
        await source.close()

    asyncio.run(run())


def test_credentials_and_headers_stay_with_their_host(server: h.Hostile) -> None:
    with h.hostile() as elsewhere:
        elsewhere.files["/f"] = DATA
        server.always(PATH, lambda asked, data, answer: h.Answer(302, {"Location": f"{elsewhere.url}f"}, b""))

        async def run() -> None:
            source = HttpSource(
                f"{server.url}bucket/", headers={"X-Team": "vision"}, authorization="Bearer s3cret", timeouts=SHORT
            )
            obj = await source.stat("f")
            assert obj is not None
            assert obj.size == len(DATA)
            sink = KeepingSink(ByteRange(3, 30))
            await source.read(obj, sink.wanted, sink)
            assert sink.data == DATA[3:30]
            await source.close()

        asyncio.run(run())
        assert all(asked.headers["authorization"] == "Bearer s3cret" for asked in server.asked)
        assert all(asked.headers["x-team"] == "vision" for asked in server.asked)
        assert elsewhere.asked
        assert not any({"authorization", "x-team"} & asked.headers.keys() for asked in elsewhere.asked)


@pytest.mark.parametrize("code", [403, 405, 501])
def test_stat_asks_with_get_where_head_is_refused(server: h.Hostile, code: int) -> None:
    def no_head(asked: h.Asked, data: bytes, answer: h.Answer) -> h.Answer:
        return h.Answer(code, {}, b"") if asked.method == "HEAD" else answer

    server.files["/bucket/empty"] = b""
    server.always(PATH, no_head)
    server.always("/bucket/empty", no_head)

    async def run() -> None:
        source = http(server)
        found, empty = await source.stat("f"), await source.stat("empty")
        assert found is not None
        assert (found.size, found.version_tag) == (len(DATA), h.etag_of(DATA))
        assert empty is not None
        assert empty.size == 0
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("listed", [False, True])
def test_stat_does_not_believe_a_head_that_says_nothing_is_there(server: h.Hostile, listed: bool) -> None:
    server.files |= {"/bucket/empty": b"", "/bucket/list.txt": b"f\nempty\n"}
    for path in (PATH, "/bucket/empty"):
        server.always(path, h.empty_head)

    async def run() -> None:
        source = HttpListSource(f"{server.url}bucket/list.txt", "true", timeouts=SHORT) if listed else http(server)
        found, empty = await source.stat("f"), await source.stat("empty")
        assert found is not None
        assert (found.size, found.version_tag) == (len(DATA), h.etag_of(DATA))
        assert empty is not None
        assert (empty.size, empty.version_tag) == (0, h.etag_of(b""))
        assert empty.mtime_ns
        await source.close()

    asyncio.run(run())
    assert server.requests["/bucket/empty"] == 2


def test_stat_where_get_is_refused_too(server: h.Hostile) -> None:
    server.always(PATH, h.status(403))

    async def run() -> None:
        source = http(server)
        with pytest.raises(SourceRefused):
            await source.stat("f")
        await source.close()

    asyncio.run(run())


def test_a_url_of_one_file(server: h.Hostile) -> None:
    async def run() -> None:
        source = HttpSource(f"{server.url}bucket/f", timeouts=SHORT)
        pages = [page async for page in source.list_tree()]
        (obj,) = [obj for page in pages for obj in page.objects]
        assert (obj.path, obj.kind, obj.size) == ("f", Kind.FILE, len(DATA))
        sink = KeepingSink(ByteRange(1, 9))
        await source.read(obj, sink.wanted, sink)
        assert sink.data == DATA[1:9]
        assert await source.stat("g") is None
        await source.close()

    asyncio.run(run())


def test_netrc_is_honoured_and_a_secret_wins(
    server: h.Hostile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password fromnetrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    async def run() -> None:
        for authorization in (None, "Bearer t"):
            source = HttpSource(f"{server.url}bucket/", authorization=authorization, timeouts=SHORT)
            await source.stat("f")
            await source.close()

    asyncio.run(run())
    sent = [asked.headers.get("authorization") for asked in server.asked]
    assert sent == [f"Basic {b64encode(b'me:fromnetrc').decode()}", "Bearer t"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (h.Answer(200, {"Content-Type": "text/html"}, b"<html>Please log in to the network</html>"), SourceUnavailable),
        (h.Answer(200, {"Content-Type": "application/xml"}, b"<ListBucketResult><IsTru"), SourceUnavailable),
        (
            h.Answer(200, {}, b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"),
            SourceUnavailable,
        ),
        (h.Answer(500, {}, b""), SourceUnavailable),
        (h.Answer(503, {"Retry-After": "3"}, b"<Error><Code>SlowDown</Code></Error>"), RetryLater),
        (h.Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>"), SourceRefused),
        (h.Answer(404, {}, b"<Error><Code>NoSuchBucket</Code></Error>"), SourceMissing),
        (h.Answer(200, {}, b"<ListBucketResult>", content_length=500, stall_after=10), SourceTimeout),
        (h.Answer(200, {}, b"<ListBucketResult>", content_length=500, reset_after=10), SourceUnavailable),
    ],
)
def test_s3_listings_that_are_none(server: h.Hostile, answer: h.Answer, kind: type[SourceError]) -> None:
    server.files["/bucket"] = b""
    server.always("/bucket", lambda *_: answer)

    async def run() -> None:
        source = s3(server)
        for listing in (source.list_directory(""), source.list_tree()):
            with pytest.raises(kind) as caught:
                await completed(listing)
            assert type(caught.value) is kind
            assert "\n" not in str(caught.value)
        if b"true" not in answer.body:
            with pytest.raises(kind):
                await source.stat("f")
        await source.close()

    asyncio.run(run())


async def completed(listing: AsyncIterator[ListingPage]) -> None:
    """To the end of it; a page that calls anything complete is a lie here."""
    async for page in listing:
        assert not page.complete


INDEX: Final = b'<html><a href="a">a</a> <a href="b/">b/</a>' + b" " * 1000


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (h.Answer(200, {"Content-Type": "text/html"}, INDEX, content_length=5000), SourceUnavailable),
        (h.Answer(200, {"Content-Type": "text/html"}, INDEX, content_length=5000, stall_after=500), SourceTimeout),
        (h.Answer(200, {"Content-Type": "text/html"}, INDEX, content_length=5000, reset_after=500), SourceUnavailable),
        (h.Answer(200, {"Content-Type": "application/json"}, b"[]"), SourceUnsupported),
        (h.Answer(404, {}, b""), SourceMissing),
        (h.Answer(403, {}, b""), SourceRefused),
        (h.Answer(429, {"Retry-After": "3"}, b""), RetryLater),
        (h.Answer(502, {}, b""), SourceUnavailable),
        (h.Answer(301, {"Location": "/bucket/"}, b""), SourceUnavailable),
        (h.Answer(301, {"Location": "ftp://x/"}, b""), SourceUnsupported),
    ],
)
def test_http_listings_that_are_none(server: h.Hostile, answer: h.Answer, kind: type[SourceError]) -> None:
    server.always("/bucket/", lambda *_: answer)

    async def run() -> None:
        source = http(server)
        for listing in (source.list_directory(""), source.list_tree()):
            with pytest.raises(kind) as caught:
                await completed(listing)
            assert type(caught.value) is kind
        await source.close()

    asyncio.run(run())


def test_a_part_of_an_index_is_not_taken_for_all_of_it(server: h.Hostile) -> None:
    links = b'<a href="f">f</a><a href="d/">d</a>' * 20
    html = {"Content-Type": "text/html", "Content-Range": f"bytes 0-{len(links) - 1}/{9 * len(links)}"}
    server.always("/bucket/", lambda *_: h.Answer(206, html, links))
    server.always("/bucket/d/", lambda *_: h.Answer(206, html, links))

    async def run() -> None:
        source = http(server)
        for directory in ("", "d"):
            with pytest.raises(SourceUnavailable, match="a part of an answer"):
                await completed(source.list_directory(directory))
        with pytest.raises(SourceUnavailable, match="a part of an answer"):
            await source.stat("d")
        await source.close()

    asyncio.run(run())


def leading_to(place: str, method: str) -> h.Behaviour:
    """A redirect; for GET alone, if that is the method, as some servers allow no HEAD."""

    def answer(asked: h.Asked, _data: bytes, _answer: h.Answer) -> h.Answer:
        refuses = method == "GET" and asked.method == "HEAD"
        return h.Answer(405 if refuses else 302, {"Location": place}, b"")

    return answer


_LOG_IN = b'<html><form action="/session"></form><a href="help">help</a></html>'


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_page_to_log_in_is_neither_an_index_nor_a_file(server: h.Hostile, method: str) -> None:
    """Where a session has run out, a server leads there and says 200."""
    page = {"Content-Type": "text/html; charset=utf-8"}
    server.always("/login", lambda asked, *_: h.Answer(200, page, _LOG_IN))
    server.files["/login"] = _LOG_IN

    for path in ("/bucket/", "/bucket/f", "/bucket/page.html"):
        server.always(path, leading_to("/login?next=%2F", method))

    async def run() -> None:
        source = http(server)
        for listing in (source.list_directory(""), source.list_tree()):
            with pytest.raises(SourceRefused, match="/login"):
                await completed(listing)
        with pytest.raises(SourceRefused, match="/login"):
            await source.stat("f")
        page = await source.stat("page.html")
        assert page is not None
        assert page.size == len(_LOG_IN)  # nobody can tell
        await source.close()

    asyncio.run(run())


def test_an_index_that_is_stored_compressed_is_not_an_empty_one(server: h.Hostile) -> None:
    headers = {"Content-Type": "text/html", "Content-Encoding": "gzip"}
    server.always("/bucket/", lambda *_: h.Answer(200, headers, gzip.compress(b'<a href="f">f</a>')))

    async def run() -> None:
        source = http(server)
        with pytest.raises(SourceUnavailable, match="compressed"):
            await completed(source.list_directory(""))
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_link_that_leads_to_a_page_is_a_dead_one_where_the_index_is_shown(server: h.Hostile, method: str) -> None:
    """As sites say "not found", and as they call the latest of some directories."""
    page = {"Content-Type": "text/html"}
    links = b'<a href="f">f</a><a href="gone">gone</a><a href="latest">l</a><a href="docs/">d</a>'
    server.always("/bucket/", lambda *_: h.Answer(200, page, links))
    server.always("/404.html", lambda *_: h.Answer(200, page, b"not found"))
    server.always("/2024/", lambda *_: h.Answer(200, page, b'<a href="g">g</a>'))

    for name, to in (("gone", "/404.html"), ("latest", "/2024/"), ("docs/", "/404.html"), ("latest/", "/2024/")):
        server.always(f"/bucket/{name}", leading_to(to, method))

    async def run() -> None:
        source = http(server)
        assert await source.stat("gone") is None
        assert await source.stat("latest") == SourceObject("latest", Kind.DIRECTORY)
        assert [obj.path async for page in source.list_directory("latest") for obj in page.objects] == ["latest/g"]
        with pytest.raises(SourceMissing):
            await completed(source.list_directory("docs"))
        tree = [obj.path async for page in source.list_tree() for obj in page.objects]
        assert sorted(tree) == ["docs", "f", "gone", "latest"]
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("place", ["/accounts/login/", "/"])
def test_a_page_without_names_elsewhere_is_no_index(server: h.Hostile, place: str) -> None:
    """As some frameworks have theirs to log in."""
    server.always("/bucket/", lambda *_: h.Answer(302, {"Location": f"{place}?next=/bucket/"}, b""))
    server.always(place, lambda *_: h.Answer(200, {"Content-Type": "text/html"}, b"<form></form>"))

    async def run() -> None:
        source = http(server)
        with pytest.raises(SourceRefused, match="not what was asked for"):
            await completed(source.list_directory(""))
        await source.close()

    asyncio.run(run())


def test_an_index_behind_a_redirect(server: h.Hostile) -> None:
    for place in ("/elsewhere/", "/bucket/index.html", "/mirror/bucket/"):
        server.always("/bucket/", lambda *_, place=place: h.Answer(302, {"Location": place}, b""))
        server.always(place, lambda *_: h.Answer(200, {"Content-Type": "text/html"}, b'<a href="f">f</a>'))

        async def run() -> None:
            source = http(server)
            pages = [page async for page in source.list_directory("")]
            assert [obj.path for page in pages for obj in page.objects] == ["f"]
            await source.close()

        asyncio.run(run())


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_directory_that_a_mirror_has_elsewhere_is_one(server: h.Hostile, method: str) -> None:
    server.always("/bucket/a%20b", leading_to("/pub/mirror/a%20b", method))
    server.always("/pub/mirror/a%20b", lambda *_: h.Answer(301, {"Location": "/pub/mirror/a%20b/"}, b""))
    server.always("/pub/mirror/a%20b/", lambda *_: h.Answer(200, {"Content-Type": "text/html"}, b'<a href="f">f</a>'))

    async def run() -> None:
        source = http(server)
        assert await source.stat("a b") == SourceObject("a b", Kind.DIRECTORY)
        await source.close()

    asyncio.run(run())


def test_where_a_redirect_leads_is_asked_for_as_it_was_given(server: h.Hostile) -> None:
    """Its signature is of these very characters."""
    server.always(PATH, lambda *_: h.Answer(302, {"Location": "/store/f%2Fg%27;v=1 é?sig=a%27"}, b""))

    async def run() -> None:
        source = http(server)
        with pytest.raises(SourceChanged):
            await source.read(listed(source), ByteRange(0, 10), KeepingSink(ByteRange(0, 10)))
        await source.close()

    asyncio.run(run())
    assert server.asked[-1].path == "/store/f%2Fg%27;v=1%20%C3%A9"


def test_a_file_that_comes_later_is_one(server: h.Hostile) -> None:
    async def run() -> None:
        source = HttpSource(server.url.rstrip("/") + PATH, timeouts=SHORT)
        with pytest.raises(SourceMissing):
            await completed(source.list_tree())
        server.files[PATH] = b"here"
        assert [obj.path async for page in source.list_tree() for obj in page.objects] == ["f"]
        await source.close()

    del server.files[PATH]
    asyncio.run(run())


@pytest.mark.parametrize("charset", ["hex", "rot13", "zip", "undefined", "no-such", "cp1252", "utf-16", "idna"])
def test_an_index_may_name_any_charset(server: h.Hostile, charset: str) -> None:
    """Python knows codecs by such names that are of no text; then it is taken for UTF-8."""
    page = b'<a href="%C3%BC">x</a> \xff'.decode("latin-1").encode("utf-16" if charset == "utf-16" else "latin-1")
    headers = {"Content-Type": f"text/html; charset={charset}"}
    server.always("/bucket/", lambda *_: h.Answer(200, headers, page))

    async def run() -> None:
        source = http(server)
        if charset != "idna":  # which is of text, but of no other than names of hosts
            assert [obj.path async for page in source.list_directory("") for obj in page.objects] == ["ü"]
        else:
            with pytest.raises(SourceUnsupported, match="charset") as caught:
                await completed(source.list_directory(""))
            assert "\n" not in str(caught.value)
        await source.close()

    asyncio.run(run())


def test_a_page_that_is_no_index_is_not_looked_through_for_minutes(server: h.Hostile) -> None:
    server.always("/bucket/", lambda *_: h.Answer(200, {"Content-Type": "text/html"}, b"<!-- " * 10_000))

    async def run() -> None:
        source = http(server)
        with pytest.raises(SourceUnsupported, match="no directory index"):
            await completed(source.list_directory(""))
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        (b"<html><body><a href=f>f</a></body></html>", True),
        (b"<a href=f>f</a>", True),
        (b"<html><body><a href=f>f</a>", False),
        (b"<html><body><a href=f>f</a><a hre", False),
    ],
)
def test_an_index_that_ends_with_its_connection_must_say_so(said: bytes, whole: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + said)

    async def run() -> None:
        async with listening(serve) as (port, _connections):
            source = HttpSource(f"http://{HOST}:{port}/d/", timeouts=SHORT)
            if whole:
                assert [obj.path async for page in source.list_directory("") for obj in page.objects] == ["f"]
            else:
                with pytest.raises(SourceUnavailable, match="broke off"):
                    await completed(source.list_directory(""))
            await source.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("software", "names", "whole"), [("Caddy", 9_999, True), ("Caddy", 10_000, False), ("x", 10_000, True)]
)
def test_caddy_shows_no_more_names_and_does_not_say_so(
    server: h.Hostile, software: str, names: int, whole: bool
) -> None:
    links = "".join(f'<a href="./{number}">x</a>' for number in range(names)).encode()
    server.always("/bucket/", lambda *_: h.Answer(200, {"Content-Type": "text/html", "Server": software}, links))

    async def run() -> None:
        source = http(server)
        if whole:
            assert len([obj async for page in source.list_directory("") for obj in page.objects]) == names
        else:
            with pytest.raises(SourceUnsupported, match="file_limit"):
                await completed(source.list_directory(""))
        await source.close()

    asyncio.run(run())


def test_names_that_lead_elsewhere_are_not_walked_into(server: h.Hostile) -> None:
    links = b'<a href="%2e%2e/">x</a><a href="%2E/">x</a><a href="d/">d</a>'
    for place in ("/bucket/", "/bucket/d/"):
        server.always(place, lambda *_: h.Answer(200, {"Content-Type": "text/html"}, links))
    server.always("/bucket/d/d/", lambda *_: h.Answer(200, {"Content-Type": "text/html"}, b'<a href="f">f</a>'))

    async def run() -> None:
        source = http(server)
        assert "d/d/f" in [obj.path async for page in source.list_tree() for obj in page.objects]
        await source.close()

    asyncio.run(run())
    assert set(server.requests) == {"/bucket/", "/bucket/d/", "/bucket/d/d/"}


def test_other_headers_may_bring_another_answer() -> None:
    plain, one, other = (HttpSource("http://h/d/", headers=sent) for sent in ({}, {"X-P": "1"}, {"X-P": "2"}))
    assert len({plain.identity, one.identity, other.identity}) == 3
    assert one.identity == HttpSource("http://h/d/", headers={"x-p": "1"}).identity


@pytest.mark.parametrize(
    ("behaviour", "may"),
    [
        (h.status(403), SourceRefused),
        (h.status(404), SourceChanged),
        (h.status(500), SourceUnavailable),
        (h.compressed, SourceUnavailable),
        (h.short_body, SourceUnavailable),
        (h.stall_midway, SourceTimeout),
        (h.other_etag, SourceChanged),
        (h.other_range, SourceUnavailable),
        (h.wrong_total, SourceChanged),
        (h.chunked_and_longer, SourceUnavailable),
        (h.compressed_on_its_way, SourceUnavailable),
    ],
)
def test_what_may_be_a_signature_is_in_no_error(
    server: h.Hostile, behaviour: h.Behaviour, may: type[SourceError]
) -> None:
    """Of the query of a URL nobody can know what in it is secret."""

    async def run() -> None:
        source = HttpSource(f"{server.url.rstrip('/')}{PATH}?temp_url_part=s3cr3t", timeouts=SHORT)
        assert "s3cr3t" not in source.uri
        obj = await source.stat("f")
        assert obj is not None
        server.always(PATH, behaviour)
        with pytest.raises(may) as caught:
            await source.read(obj, ByteRange(0, len(DATA)), KeepingSink(ByteRange(0, len(DATA))))
        assert "s3cr3t" not in str(caught.value)
        assert PATH in str(caught.value)
        await source.close()

    asyncio.run(run())
