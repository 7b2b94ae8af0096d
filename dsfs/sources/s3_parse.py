"""Pages of ListObjectsV2 into the dictionaries that botocore makes of them, for 2 µs a key where it takes 85.

A listing of a million keys is a thousand such documents, and botocore's general parser takes most of the time of one.
Servers write every key of a page alike, so a pattern made from the first one reads them all. A document that is in any
way not as expected goes to botocore's parser, which then says what it makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from xml.sax.saxutils import unescape

from aiobotocore.parsers import AioResponseParserFactory
from botocore.handlers import BUILTIN_HANDLERS
from botocore.utils import lowercase_dict

_BEFORE: Final = "before-parse.s3.*"
_PARSED: Final = "dsfs.listing"
_WANTED: Final = ("Key", "LastModified", "ETag", "Size")

_DOCUMENT = re.compile(r"\s*(<\?xml [^>]*\?>\s*)?<ListBucketResult[ >]")
_FIRST_KEY = re.compile(r"<Contents>((?:<\w+>[^<]*</\w+>|<Owner>(?:<\w+>[^<]*</\w+>)*</Owner>)+)</Contents>")
_PART = re.compile(r"<(Owner)>.*?</Owner>|<(\w+)>")
_PREFIX = re.compile(r"<CommonPrefixes><Prefix>([^<]*)</Prefix></CommonPrefixes>")
_TRUNCATED = re.compile(r"<IsTruncated>(true|false)</IsTruncated>")
_TEXT = re.compile(r"<(EncodingType|NextContinuationToken)>([^<]*)</")


def listings_parsed_here(session: Any) -> None:
    """Have the clients that a session will make parse pages of listings with this module."""
    # botocore's own hook here parses each document once more, to see whether it is an error; ours has to come first.
    session.register(_BEFORE, _parse_first)
    for event, handler, *_how in BUILTIN_HANDLERS:
        if event == _BEFORE:
            session.unregister(event, handler)
            session.register(event, handler)
    session.register_component("response_parser_factory", _Factory())


def _parse_first(response_dict: dict[str, Any], operation_model: Any, **_: object) -> None:
    if operation_model.name == "ListObjectsV2" and response_dict["status_code"] == 200:
        page = parsed_page(response_dict["body"])
        if page is not None:
            response_dict[_PARSED], response_dict["body"] = page, b""


class _Factory(AioResponseParserFactory):  # type: ignore[misc]  # the library has no types
    def create_parser(self, protocol_name: str) -> Any:
        return _Parser(super().create_parser(protocol_name))


class _Parser:
    """Asks the library's parser about everything but pages of a listing."""

    def __init__(self, general: Any) -> None:
        self._general = general

    async def parse(self, response: Mapping[str, Any], shape: Any) -> Any:
        page = response.get(_PARSED)
        if page is None:
            return await self._general.parse(response, shape)
        page["ResponseMetadata"] = {"HTTPStatusCode": 200, "HTTPHeaders": lowercase_dict(response["headers"])}
        return page


def parsed_page(body: bytes) -> dict[str, Any] | None:
    """What ``dsfs.sources.s3`` looks at in a page; None if it is not exactly like one."""
    try:
        return _page(body.decode())
    except ValueError:  # text that is no UTF-8, a character by number, a time or a size of another kind
        return None


def _page(text: str) -> dict[str, Any] | None:
    """Raises ValueError."""
    truncated = _TRUNCATED.findall(text)
    if _DOCUMENT.match(text) is None or not text.rstrip().endswith("</ListBucketResult>") or len(truncated) != 1:
        return None
    contents = _contents(text)
    prefixes = [{"Prefix": _plain(prefix)} for prefix in _PREFIX.findall(text)]
    if contents is None or len(prefixes) != text.count("<CommonPrefixes"):
        return None
    page = {name: _plain(value) for name, value in _TEXT.findall(text)}
    return {**page, "IsTruncated": truncated[0] == "true", "Contents": contents, "CommonPrefixes": prefixes}


def _contents(text: str) -> list[dict[str, Any]] | None:
    count = text.count("<Contents")
    if not count:
        return []
    first = _FIRST_KEY.search(text)
    pattern = first and _pattern(tuple(owner or name for owner, name in _PART.findall(first[1])))
    if not pattern:
        return None
    times: dict[str, datetime] = {}  # many keys of a page were written within one second
    key_at, time_at, etag_at, size_at = (pattern.groupindex[name] - 1 for name in _WANTED)
    contents = [
        {
            "Key": _plain(values[key_at]),
            "LastModified": times.get(values[time_at]) or times.setdefault(values[time_at], _time(values[time_at])),
            "ETag": _plain(values[etag_at].replace("&quot;", '"').replace("&#34;", '"')),
            "Size": int(values[size_at]),
        }
        for values in pattern.findall(text)
    ]
    return contents if len(contents) == count else None


@lru_cache(maxsize=16)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str] | None:
    """Of a key with these parts in this order; None if one that is wanted is not there, or twice."""
    if any(names.count(name) != 1 for name in _WANTED):
        return None
    parts = []
    for name in names:
        if name in _WANTED:
            parts.append(f"<{name}>(?P<{name}>[^<]*)</{name}>")
        elif name == "Owner":
            parts.append(r"<Owner>(?:<\w+>[^<]*</\w+>)*</Owner>")
        else:
            parts.append(f"<{name}>[^<]*</{name}>")
    return re.compile(f"<Contents>{''.join(parts)}</Contents>")


def _plain(text: str) -> str:
    """Text without its entities. Raises ValueError for one that is not XML's own."""
    if "&" not in text:
        return text
    plain = unescape(text, {"&quot;": '"', "&apos;": "'", "&#34;": '"', "&#39;": "'"})
    if "&#" in text.replace("&#34;", "").replace("&#39;", ""):
        raise ValueError("a character by number")
    return plain


def _time(text: str) -> datetime:
    """Raises ValueError, also for a time without its zone."""
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("no time zone")
    return when
