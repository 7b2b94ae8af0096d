"""What a ranged GET answered: which bytes a body is, proven before any of it is used (RFC 9110, 14 and 15)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol, runtime_checkable

from multidict import MultiMapping

from dsfs.errors import SourceChanged, SourceUnavailable
from dsfs.ranges import ByteRange
from dsfs.sources.base import Buffer, Sink

_CONTENT_RANGE = re.compile(r"\s*bytes\s+(?:(\d{1,20})-(\d{1,20})|\*)/(\d{1,20}|\*)\s*", re.IGNORECASE)


class ContentRange(NamedTuple):
    """``range`` is None in an answer to a range that cannot be met (416); ``total`` when the server does not know."""

    range: ByteRange | None
    total: int | None


def parse_content_range(text: str | None) -> ContentRange | None:
    """``bytes 0-9/100`` → bytes 0 to 10 of 100. None for what is missing or nonsense."""
    match = _CONTENT_RANGE.fullmatch(text or "")
    if match is None:
        return None
    first, last, total = match.groups()
    size = None if total == "*" else int(total)
    if first is None:
        return ContentRange(None, size)
    place = ByteRange(int(first), int(last) + 1)
    if place.length == 0 or (size is not None and place.stop > size):
        return None
    return ContentRange(place, size)


def body_place(
    status: int, content_range: str | None, content_length: int | None, size: int, wanted: ByteRange, what: str
) -> ByteRange:
    """Which bytes of an object of ``size`` bytes the body holds: the wanted ones, or (200, Range ignored) all of them.

    The version must be proven apart from this. Raises SourceChanged for an object of another size, SourceUnavailable
    for an answer that proves nothing. ``what`` names the object in messages.
    """
    place = parse_content_range(content_range)
    if place is not None and place.total is not None and place.total != size:
        raise SourceChanged(f"{what} has {place.total} bytes now, {size} when it was listed")
    if status == 206 or content_range is not None:  # `rclone serve s3` has the right headers under the wrong status
        if place is None or place.range != wanted or content_length not in (None, wanted.length):
            got = "no range" if place is None or place.range is None else f"{place.range.start}-{place.range.stop}"
            raise SourceUnavailable(
                f"{what}: asked for bytes {wanted.start}-{wanted.stop}, the server answered {status} with {got} "
                f"in {content_length} bytes"
            )
        return wanted
    if content_length is None:
        raise SourceUnavailable(f"{what}: the server ignores ranges and does not say how long its answer is")
    if content_length != size:
        raise SourceChanged(f"{what} has {content_length} bytes now, {size} when it was listed")
    return ByteRange(0, size)


def check_whole(status: int, what: str) -> None:
    """Raises SourceUnavailable for a part of what was asked for whole: it would be taken for all that there is."""
    if status == 206:
        raise SourceUnavailable(f"{what}: HTTP 206, a part of an answer, though none was asked for")


def check_not_coded(headers: MultiMapping[str], what: str, *, stored: bool = False) -> None:
    """Raises SourceUnavailable for a body that is not the bytes of the file. ``stored``: a Content-Encoding is theirs.

    Of what a Transfer-Encoding names our libraries take off "chunked" and nothing else (RFC 9112, section 6.1).
    """
    coded: dict[str, tuple[str, ...]] = {"Transfer-Encoding": ("", "identity", "chunked")}
    if not stored:
        coded["Content-Encoding"] = ("", "identity")
    for name, plain in coded.items():
        said = ",".join(headers.getall(name, ())).lower()
        if any(coding.strip() not in plain for coding in said.split(",")):
            raise SourceUnavailable(f"{what}: compressed answer ({said}), though none was asked for")


def content_coding(headers: MultiMapping[str]) -> str:
    """What a Content-Encoding names: ``gzip``, or several with commas; "" for bytes as they are."""
    said = ",".join(headers.getall("Content-Encoding", ())).lower().split(",")
    return ",".join(coding for each in said if (coding := each.strip()) not in ("", "identity"))


def has_open_end(headers: Mapping[str, str]) -> bool:
    """Whether no header that counts says how long the body is (RFC 9112, section 6.3)."""
    return "Content-Length" not in headers or "Transfer-Encoding" in headers


class WholeAnswer(Exception):
    """The server ignores ranges, and who asked would rather read the whole file once. Nothing was read of it."""


@runtime_checkable
class ChoosySink(Protocol):
    """A sink that wants to know when more comes than it asked for."""

    def comes_whole(self) -> None:
        """Raises WholeAnswer to have the answer broken off."""


async def copy_body(
    body: AsyncIterable[Buffer], place: ByteRange, wanted: ByteRange, sink: Sink, what: str, *, open_end: bool = False
) -> None:
    """Write the wanted part of a body that starts at ``place.start``; SourceUnavailable if it ends too early.

    ``open_end`` (see ``has_open_end``): that the body holds ``place`` is not proven before it has ended with it, so one
    that goes on is SourceUnavailable as well.
    """
    if open_end:
        body = _ending(body, place.length, what)
    if place != wanted and isinstance(sink, ChoosySink):
        sink.comes_whole()
    position = place.start
    async for piece in body:
        start, stop = max(position, wanted.start), min(position + len(piece), wanted.stop)
        if start < stop:
            whole = stop - start == len(piece)
            await sink.write(start, piece if whole else memoryview(piece)[start - position : stop - position])
        position += len(piece)
        if position >= wanted.stop:
            return
    raise SourceUnavailable(f"{what}: the answer ended at byte {position} of {wanted.stop}")


async def _ending(body: AsyncIterable[Buffer], length: int, what: str) -> AsyncIterator[Buffer]:
    """The pieces of a body of so many bytes, the last one when nothing has come behind it."""
    left, last = length, None
    async for piece in body:
        left -= len(piece)
        if left < 0:
            raise SourceUnavailable(f"{what}: the answer goes on behind the {length} bytes that it was to have")
        if left:
            yield piece
        elif len(piece):
            last = piece
    if last is not None:
        yield last


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or an HTTP date; None without one that can be read."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())


def http_date_ns(text: str | None) -> int:
    """Unix nanoseconds of an HTTP date; 0 without one."""
    try:
        return int(parsedate_to_datetime(text or "").timestamp()) * 10**9
    except (ValueError, OverflowError):
        return 0
