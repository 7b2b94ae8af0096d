"""Directory indexes as five servers write them.

nginx, Python and rclone were recorded; Apache and Caddy, which do not run here, are written after their templates.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfs.errors import SourceUnsupported
from dsfs.model import Kind
from dsfs.ranges import KiB, MiB
from dsfs.sources.http_index import IndexParser

INDEXES = Path(__file__).parent / "indexes"
URL = "http://127.0.0.1:8080/d%201/"
FILES = {"a b.txt", "amp&semi;.txt", "col:on.txt", "per%cent.txt", "q?h#.txt", "ü.txt"}


def parsed(html: str, url: str = URL, directory: str = "", piece: int = 1 << 20) -> dict[str, Kind]:
    parser = fed(html.encode("utf-8", "surrogateescape"), url, directory, piece)
    found = parser.take()
    assert len({obj.path for obj in found}) == len(found)
    assert all(obj.size is None for obj in found if obj.kind is Kind.FILE)
    return {obj.path: obj.kind for obj in found}


def fed(page: bytes, url: str = URL, directory: str = "", piece: int = 1 << 20) -> IndexParser:
    """To the end of the page."""
    parser = IndexParser(url, directory)

    async def run() -> None:
        for start in range(0, len(page), piece):
            await parser.parse(page[start : start + piece])
        parser.end()

    asyncio.run(run())
    return parser


@pytest.mark.parametrize("piece", [1 << 20, 7])
@pytest.mark.parametrize(
    ("server", "more_files", "more_directories"),
    [
        ("nginx", {"latin-\udce9.txt", "new\nline"}, set()),
        ("python", set(), {"link"}),
        ("apache", set(), set()),
        ("caddy", set(), set()),
        ("rclone", set(), set()),
    ],
)
def test_children_and_nothing_else(server: str, more_files: set[str], more_directories: set[str], piece: int) -> None:
    html = (INDEXES / f"{server}.html").read_text("utf-8", "surrogateescape")
    found = parsed(html, piece=piece)
    assert {name for name, kind in found.items() if kind is Kind.FILE} == FILES | more_files
    assert {name for name, kind in found.items() if kind is Kind.DIRECTORY} == {"sub dir"} | more_directories


def test_children_carry_the_path_of_their_directory() -> None:
    assert set(parsed('<a href="x">', directory="a/b")) == {"a/b/x"}


@pytest.mark.parametrize(
    "href",
    [
        "",
        ".",
        "./",
        "..",
        "../",
        "../other",
        "/",
        "/d%201/",
        "/d%201",
        "?C=N;O=D",
        "#top",
        "x#part",
        "x?download=1",
        "sub/further",
        "http://elsewhere/d%201/x",
        "https://127.0.0.1:8080/d%201/x",
        "http://127.0.0.1:8081/d%201/x",
        "//elsewhere/x",
        "mailto:someone@example.org",
        "javascript:void(0)",
        "a%2Fb",
        "http://[broken/x",
    ],
)
def test_what_is_no_child(href: str) -> None:
    assert parsed(f'<a href="{href}">x</a>') == {}


@pytest.mark.parametrize(
    "href", ["x", "./x", "/d%201/x", "/d 1/x", "http://127.0.0.1:8080/d%201/x", "../d%201/x", "sub/../x"]
)
def test_the_same_child_in_many_words(href: str) -> None:
    assert parsed(f"<a href='{href}'>one</a> <A HREF='{href}'>two</A>") == {"x": Kind.FILE}


def test_base_is_honoured() -> None:
    assert parsed('<base href="/d%201/"><a href="x">', url="http://127.0.0.1:8080/d%201/index.html") == {"x": Kind.FILE}
    assert parsed('<base href="/other/"><a href="x">') == {}


@given(st.text("ab.~!$&'()*+,;=:@%/?#2Ee0 -_\u00fc", max_size=8))
def test_a_plain_link_is_the_child_that_it_is_when_joined(href: str) -> None:
    link = f'<a href="{href}">x</a>'
    assert parsed(link) == parsed(f'<base href="{URL}">{link}')


@given(st.text(max_size=300))
def test_no_page_breaks_the_parser(html: str) -> None:
    parsed(html)
    parsed(f'<a href="{html}">')


@pytest.mark.parametrize("unit", [b"<!-- ", b"<a ", b'<a "', b"<a b=c d ", b"<? ", b"</x ", b"<script>var a = 1;</b>"])
@pytest.mark.parametrize("size", [2 * KiB, 63 * KiB, 8 * MiB])
def test_a_page_of_what_does_not_end_is_refused_soon(unit: bytes, size: int) -> None:
    """html.parser took minutes for each of these, and nobody else had a turn."""
    page = (unit * (size // len(unit) + 1))[:size]
    started = time.monotonic()
    if b"script" in unit and size < MiB:
        assert fed(page).take() == []  # a script may have no end
    else:
        with pytest.raises(SourceUnsupported, match="does not end"):
            fed(page)
    assert time.monotonic() - started < 15


def test_a_large_index_is_parsed_in_turns() -> None:
    page = b"".join(b'<a href="%08d">%08d</a> 03-Mar-2026 10:00 4711\n' % (number, number) for number in range(100_000))
    longest = since = 0

    class Watched(IndexParser):
        def feed(self, data: str) -> None:
            nonlocal longest, since
            since += len(data)
            longest = max(longest, since)
            super().feed(data)

    async def run() -> None:
        async def another() -> None:
            nonlocal since
            while True:
                since = 0
                await asyncio.sleep(0)

        parser, waiting = Watched(URL, ""), asyncio.create_task(another())
        await parser.parse(page)
        parser.end()
        waiting.cancel()
        assert len(parser.take()) == 100_000

    asyncio.run(run())
    assert longest <= 32 * KiB


@pytest.mark.parametrize("long", [b"<style>%b</style>", b"<script>%b</script>", b"<title>%b</title>"])
def test_a_page_may_carry_much_beside_its_names(long: bytes) -> None:
    page = b'<a href="a">a</a>' + long % (b"x{y:z} " * 100_000) + b'<a href="b">b</a>'
    assert {obj.path for obj in fed(page).take()} == {"a", "b"}


@pytest.mark.parametrize("page", [b"<![endif]-->", b"<![CDATA[x]]>", b"<!DOCTYPE html [x]>", b"<!-->", b"</>", b"<?x>"])
def test_what_few_pages_have_breaks_no_parser(page: bytes) -> None:
    assert {obj.path for obj in fed(page + b'<a href="a">a</a>').take()} == {"a"}


@pytest.mark.parametrize("page", [b"<![x[", b"<![ ", b"<![<"])
def test_what_the_parser_has_no_word_for_is_one_line(page: bytes) -> None:
    with pytest.raises(SourceUnsupported, match=r"no directory index \(it is not HTML\)$"):
        fed(page + b"]]>")


@given(
    st.lists(st.sampled_from([b"<![", b"<!", b"<?", b"<a ", b"</", b"--", b"x", b'"', b"=", b"]]", b">", b"<script"]))
)
def test_whatever_comes_is_an_index_or_one_line(pieces: list[bytes]) -> None:
    with contextlib.suppress(SourceUnsupported):
        fed(b"".join(pieces), piece=5)
