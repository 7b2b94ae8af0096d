"""The head of an HTTP/1.1 answer: status and headers out of bytes, strictly (RFC 9112, sections 2 to 6)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from multidict import CIMultiDict

_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class BadHead(Exception):
    """What came is no answer of an HTTP server, or one whose body has no length that can be trusted."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers. ``document`` is the beginning of the body of an answer that gives no bytes of a file."""

    status: int
    headers: CIMultiDict[str]
    content_length: int | None
    keeps_open: bool
    document: bytes = b""

    @property
    def framed(self) -> bool:
        """Whether the body is just so many bytes: no transfer coding that would have to be taken off."""
        return self.content_length is not None and "Transfer-Encoding" not in self.headers


def parse_head(raw: bytes) -> Head:
    """Everything up to, but without, the empty line. Raises BadHead.

    Lines that go on (obs-fold), names with odd characters and lengths that disagree are refused: a proxy and we might
    read them in two ways, and then the body of one answer is the head of the next.
    """
    lines = raw.split(b"\r\n")
    version, _, rest = lines[0].partition(b" ")
    code = rest[:3]
    if (
        version not in (b"HTTP/1.1", b"HTTP/1.0")
        or len(code) != 3
        or not code.isdigit()
        or rest[3:4] not in (b"", b" ")
    ):
        raise BadHead("no HTTP/1.1 status line")
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines[1:]:
        headers.add(*_header(line))
    said = " ".join(headers.getall("Connection", ())).lower()
    keeps_open = "close" not in said and (version == b"HTTP/1.1" or "keep-alive" in said)
    return Head(int(code), headers, _content_length(headers), keeps_open)


@lru_cache(maxsize=256)  # most lines of an answer were in the one before
def _header(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or not name or not _TOKEN.issuperset(name) or b"\n" in value or b"\r" in value or b"\0" in value:
        raise BadHead("a header line that is none")
    return name.decode("ascii"), value.strip(b" \t").decode("latin-1")


def _content_length(headers: CIMultiDict[str]) -> int | None:
    values = {part.strip() for value in headers.getall("Content-Length", ()) for part in value.split(",")}
    if not values:
        return None
    value = values.pop()
    if values or not value.isascii() or not value.isdigit() or len(value) > 19:
        raise BadHead("lengths that disagree")
    return int(value)
