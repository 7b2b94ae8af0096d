"""The HTML page that a web server makes of a directory → the names in it.

Made for nginx, Apache, Caddy, Python's http.server and `rclone serve http`, who agree on ``<a href>`` and little else.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
from html.parser import HTMLParser
from typing import Final
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import structlog

from dsfs.errors import SourceUnavailable, SourceUnsupported
from dsfs.model import Kind, SourceObject
from dsfs.ranges import KiB, MiB

_PLAIN = re.compile(r"(?!\.{1,2}/?$)([\w.~!$&'()*+,=@%-]+)(/?)", re.ASCII)
"""A link that means the same wherever it is joined to: one segment, neither "." nor ".." (RFC 3986 section 4.2)."""

log = structlog.get_logger()

_PARSED_AT_ONCE: Final = 16 * KiB  # html.parser takes about 10 ms for so much, and the loop has other readers
_LONGEST_TAG: Final = 64 * KiB
"""What has not ended (a tag, a comment) is looked through again with each piece: 40 ms for so much."""
_LONGEST_SCRIPT: Final = 1 * MiB  # of a script or style html.parser looks for the end alone, in 60 ms at most
_LONGEST_REST: Final = 1 * KiB
"""At the end of a page html.parser tries anew behind each "<" of what has not ended: 20 ms, and 90 s for 64 KiB."""

_WHOLE = ("html", "body")
_MOST_OF_CADDY = 10_000
"""Names of a directory that Caddy shows, without a word on there being more (its browse.go, defaultDirEntryLimit)."""


class IndexParser(HTMLParser):
    """Takes pieces of a page, gives out children. A name that is linked twice (icon and text) counts once."""

    def __init__(self, url: str, directory: str, charset: str | None = None) -> None:
        """``url`` is where the page came from, after redirects; ``directory`` the path that children get in front."""
        super().__init__(convert_charrefs=True)
        self._decoder = _decoder(charset)
        self._url = self._base = url  # until there is a <base>
        place = urlsplit(url)
        self._origin = (place.scheme, place.netloc)
        self._parts = _decoded_parts(place.path)[:-1]  # behind the last "/" is the page's own name
        self._prefix = f"{directory}/" if directory else ""
        self._is_open = False  # the page has said where it begins, and not yet where it ends
        self._seen: set[str] = set()
        self._found: list[SourceObject] = []

    async def parse(self, data: bytes) -> None:
        """What has come of the page, in turns with whoever else waits for the loop. Raises SourceUnsupported."""
        for start in range(0, len(data), _PARSED_AT_ONCE):
            self._parse(data[start : start + _PARSED_AT_ONCE])
            await asyncio.sleep(0)

    def end(self) -> None:
        """Of the page. Raises SourceUnsupported."""
        self._parse(b"", last=True)

    def _parse(self, data: bytes, *, last: bool = False) -> None:
        try:
            self.feed(self._decoder.decode(data, last))
            self._check_rest(_LONGEST_TAG if self.cdata_elem is None else _LONGEST_SCRIPT)
            if last and self.cdata_elem is None:  # in a script there is no name
                self._check_rest(_LONGEST_REST)
                self.close()
        except UnicodeError as error:  # codecs there are that cannot replace what they do not know
            raise self._no_index("it is not in the charset that it names") from error
        except AssertionError as error:  # that is how html.parser says "<![" and no word that it knows
            raise self._no_index("it is not HTML") from error

    def _check_rest(self, longest: int) -> None:
        if len(self.rawdata) > longest:
            raise self._no_index("something in it begins and does not end")

    def _no_index(self, why: str) -> SourceUnsupported:
        return SourceUnsupported(f"{self._url.partition('?')[0]} is no directory index ({why})")

    def check_whole(self, url: str, server: str, *, framed: bool) -> None:
        """Raises SourceUnavailable for a page that broke off where nothing else says so, as it was not ``framed``;
        SourceUnsupported for one of a ``server`` that shows no more names."""
        if self._is_open and not framed:
            raise SourceUnavailable(f"{url}: the index broke off before its end")
        if len(self._seen) == _MOST_OF_CADDY and server.startswith("Caddy"):
            raise SourceUnsupported(
                f"{url}: Caddy shows the first {_MOST_OF_CADDY} names of a directory "
                "(raise file_limit of its file_server's browse, or give a list)"
            )

    def take(self) -> list[SourceObject]:
        """What was found since the last call."""
        found, self._found = self._found, []
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        if tag in _WHOLE:
            self._is_open = True
        href = next((value for key, value in attrs if key == "href"), None)
        if href is None:
            return
        if tag == "base":
            self._base = urljoin(self._base, href)
        elif tag == "a":
            child = self._child(href.strip())
            if child is not None and child.path not in self._seen:
                self._seen.add(child.path)
                self._found.append(child)

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        if tag in _WHOLE:
            self._is_open = False

    def _child(self, href: str) -> SourceObject | None:
        """None for what is no child: the parent, a sort order, another host, a place further down."""
        if self._base == self._url and (plain := _PLAIN.fullmatch(href)):  # nearly all: a tenth of the processor time
            return self._named(_decoded(plain[1]), bool(plain[2]))
        try:
            link = urlsplit(urljoin(self._base, href))
        except ValueError:
            return None
        # "?" and "#" in a name are written %3F and %23, so what stands behind a bare one is no name.
        if (link.scheme, link.netloc) != self._origin or "?" in href or "#" in href:
            return None
        parts = _decoded_parts(link.path)
        directory = parts[-1] == ""
        if directory:
            parts.pop()
        if len(parts) != len(self._parts) + 1 or parts[:-1] != self._parts:
            return None
        return self._named(parts[-1], directory)

    def _named(self, name: str, directory: bool) -> SourceObject | None:
        if name == "" or "/" in name:  # an encoded "/" (%2F) is no name and must not look like two
            return None
        if directory:
            return SourceObject(self._prefix + name, Kind.DIRECTORY)
        return SourceObject(self._prefix + name, Kind.FILE, None)


def _decoded_parts(path: str) -> list[str]:
    return [_decoded(part) for part in path.split("/")]


def _decoded(part: str) -> str:
    """Names are bytes: percent-decoded, and what is not UTF-8 is carried as surrogate escapes."""
    if part.isascii() and "%" not in part:
        return part
    return os.fsdecode(unquote_to_bytes(part.encode("utf-8", "surrogateescape")))


def _decoder(charset: str | None) -> codecs.IncrementalDecoder:
    try:
        if charset and codecs.lookup(charset).name != "utf-8":
            "".encode(charset)  # LookupError for a codec that is of no text: hex, rot13, zip
            return codecs.getincrementaldecoder(charset)("replace")
    except (LookupError, ValueError):
        log.debug("unknown charset of an index taken for UTF-8", charset=charset[:40] if charset else "")
    return codecs.getincrementaldecoder("utf-8")("surrogateescape")
